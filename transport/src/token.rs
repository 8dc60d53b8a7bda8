//! The one string with which a node joins: where, under which CA, and the secret.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use weft_wire::identity::Hidden;

use crate::error::IdentityError;

/// How tokens begin; another version begins otherwise.
const PREFIX: &str = "weft1";
/// Before the fingerprint: what it is one of.
const ALGORITHM: &str = "sha256-";
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Longest text that may be a token.
pub const MAX_TOKEN_BYTES: usize = 1024;

/// SHA-256 of a CA's certificate (DER): `openssl x509 -noout -fingerprint -sha256` shows the same digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate.
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, der).as_ref());
        Self(bytes)
    }

    /// Of the first certificate of a PEM text.
    pub fn of_pem(pem: &str) -> Result<Self, IdentityError> {
        use rustls_pki_types::pem::PemObject;
        rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes())
            .map(|der| Self::of(&der))
            .map_err(|error| IdentityError::Crypto(error.to_string()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A token: `weft1:HOST:PORT:sha256-FINGERPRINT:SECRET`. Not shown by `Debug`, and by `Display` only on purpose.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Where to join, `host:port`.
    pub address: String,
    /// The CA that the federator there must show.
    pub fingerprint: Fingerprint,
    /// What lets in.
    pub secret: Hidden,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}:{}:{}:(hidden)", self.address, self.fingerprint)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, secret) = (&self.address, &self.secret.0);
        write!(f, "{PREFIX}:{address}:{}:{secret}", self.fingerprint)
    }
}

/// Why a text is no token. None of these repeats the text: it may be most of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It does not begin as a token.
    #[error("it does not begin with \"weft1:\"")]
    Prefix,
    /// A part is missing or of another form.
    #[error("it is not weft1:HOST:PORT:sha256-FINGERPRINT:SECRET; was all of it pasted?")]
    Form,
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let rest = text
            .trim()
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.strip_prefix(':'))
            .ok_or(TokenError::Prefix)?;
        // From the end: addresses of IPv6 have colons of their own.
        let mut parts = rest.rsplitn(3, ':');
        let (Some(secret), Some(fingerprint), Some(address)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Form);
        };
        let digits = fingerprint
            .strip_prefix(ALGORITHM)
            .ok_or(TokenError::Form)?;
        let bytes = HEXLOWER_PERMISSIVE
            .decode(digits.as_bytes())
            .map_err(|_| TokenError::Form)?;
        let bytes = bytes.try_into().map_err(|_| TokenError::Form)?;
        let (host, port) = address.rsplit_once(':').ok_or(TokenError::Form)?;
        let well_formed = !host.is_empty()
            && port.parse::<u16>().is_ok_and(|port| port > 0)
            && (1..=256).contains(&secret.len())
            && secret.bytes().all(|byte| byte.is_ascii_graphic());
        if !well_formed {
            return Err(TokenError::Form);
        }
        Ok(Self {
            address: address.into(),
            fingerprint: Fingerprint(bytes),
            secret: Hidden(secret.into()),
        })
    }
}

/// A new secret, of 256 random bits.
pub fn new_secret() -> Result<Hidden, IdentityError> {
    let mut bytes = [0; SECRET_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| IdentityError::Crypto("no randomness".into()))?;
    Ok(Hidden(BASE64URL_NOPAD.encode(&bytes)))
}

/// What is kept of a secret. It has 256 random bits, so that a plain hash cannot be turned back.
pub fn secret_hash(secret: &Hidden) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, secret.0.as_bytes()).as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(address: &str) -> Token {
        Token {
            address: address.into(),
            fingerprint: Fingerprint::of(b"certificate"),
            secret: new_secret().unwrap(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for address in ["fed.example:7444", "192.0.2.1:7444", "[2001:db8::1]:7444"] {
            let token = token(address);
            assert_eq!(format!("  {token}\n").parse(), Ok(token.clone()));
            assert!(!format!("{token:?}").contains(&token.secret.0));
        }
    }

    #[test]
    fn what_is_none_is_told_so_without_repeating_it() {
        let good = token("fed.example:7444").to_string();
        for text in [
            String::new(),
            "weft1".into(),
            good.replacen("weft1", "weft2", 1),
            good.replacen("sha256-", "sha1-", 1),
            good[..good.len() - 50].into(),
            good.replacen(":7444", "", 1),
            good.replacen(":7444", ":0", 1),
            format!("{good} more"),
        ] {
            let error = text.parse::<Token>().unwrap_err();
            assert!(!error.to_string().contains("fed.example"), "{error}");
        }
    }

    #[test]
    fn two_secrets_differ_and_so_do_their_hashes() {
        let (one, other) = (new_secret().unwrap(), new_secret().unwrap());
        assert_ne!(one, other);
        assert_ne!(secret_hash(&one), secret_hash(&other));
        assert_eq!(one.0.len(), 43);
    }
}
