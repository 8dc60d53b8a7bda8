//! Signatures that clouds make over what they know of a machine: PKCS #7 as AWS makes it, RS256 as Google does. Only the
//! signature is checked here; what was signed is judged by whoever asks.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use ring::digest::{SHA256, digest};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longest proof that is looked at, in bytes.
pub const MAX_PROOF_BYTES: usize = 32 << 10;
/// How deep a PKCS #7 message may nest.
const MAX_DEPTH: usize = 24;

/// Why a proof proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProofError {
    /// Not of the form.
    #[error("it is not of the form: {0}")]
    Form(&'static str),
    /// Nobody whose certificate or key is known signed it.
    #[error("none of the known keys made its signature")]
    Signature,
    /// A certificate of ours cannot be used.
    #[error("a certificate to check it with cannot be used")]
    Certificate,
}

// 1.2.840.113549.1.7.2, .7.1, .9.3, .9.4, .1.1, .1.11 and 2.16.840.1.101.3.4.2.1, as DER has them.
const SIGNED_DATA: &[u8] = &[42, 134, 72, 134, 247, 13, 1, 7, 2];
const DATA: &[u8] = &[42, 134, 72, 134, 247, 13, 1, 7, 1];
const CONTENT_TYPE: &[u8] = &[42, 134, 72, 134, 247, 13, 1, 9, 3];
const MESSAGE_DIGEST: &[u8] = &[42, 134, 72, 134, 247, 13, 1, 9, 4];
const RSA: &[u8] = &[42, 134, 72, 134, 247, 13, 1, 1, 1];
const RSA_SHA256: &[u8] = &[42, 134, 72, 134, 247, 13, 1, 1, 11];
const SHA256_OID: &[u8] = &[96, 134, 72, 1, 101, 3, 4, 2, 1];

const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// [0], constructed.
const TAGGED_0: u8 = 0xa0;
const CONSTRUCTED: u8 = 0x20;

/// One element of BER: AWS writes lengths that are not known beforehand, which DER has not.
#[derive(Debug)]
struct Element<'a> {
    tag: u8,
    /// What it holds, without its end mark.
    content: &'a [u8],
    /// Its length was written beforehand, as in DER.
    definite: bool,
}

/// The first element, and what follows it.
fn element(bytes: &[u8], depth: usize) -> Result<(Element<'_>, &[u8]), ProofError> {
    let cut = ProofError::Form("cut off");
    if depth > MAX_DEPTH {
        return Err(ProofError::Form("nested too deeply"));
    }
    let (&tag, rest) = bytes.split_first().ok_or(cut)?;
    if tag & 0x1f == 0x1f {
        return Err(ProofError::Form("a tag of several bytes"));
    }
    let (&first, rest) = rest.split_first().ok_or(cut)?;
    if first == 0x80 {
        if tag & CONSTRUCTED == 0 {
            return Err(ProofError::Form("a value without a length"));
        }
        let mut after = rest;
        // Up to the end mark, two zero bytes at this level.
        while !after.starts_with(&[0, 0]) {
            after = element(after, depth + 1)?.1;
        }
        let content = &rest[..rest.len() - after.len()];
        let definite = false;
        return Ok((
            Element {
                tag,
                content,
                definite,
            },
            &after[2..],
        ));
    }
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count > 4 || count > rest.len() {
            return Err(ProofError::Form("a length of too many bytes"));
        }
        let (digits, rest) = rest.split_at(count);
        let length = digits
            .iter()
            .fold(0usize, |length, digit| length << 8 | usize::from(*digit));
        (length, rest)
    };
    if length > rest.len() {
        return Err(cut);
    }
    let (content, after) = rest.split_at(length);
    let definite = true;
    Ok((
        Element {
            tag,
            content,
            definite,
        },
        after,
    ))
}

impl<'a> Element<'a> {
    /// What it is made of.
    fn parts(&self) -> Result<Vec<Element<'a>>, ProofError> {
        let (mut parts, mut rest) = (Vec::new(), self.content);
        while !rest.is_empty() {
            let (part, after) = element(rest, 0)?;
            parts.push(part);
            rest = after;
        }
        Ok(parts)
    }

    fn only(&self) -> Result<Element<'a>, ProofError> {
        let mut parts = self.parts()?;
        match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => Err(ProofError::Form("one element was expected")),
        }
    }

    /// Octets, which BER may cut into pieces.
    fn octets(&self, depth: usize) -> Result<Vec<u8>, ProofError> {
        match self.tag {
            OCTETS => Ok(self.content.to_vec()),
            tag if tag == OCTETS | CONSTRUCTED && depth < MAX_DEPTH => {
                let mut all = Vec::new();
                for part in self.parts()? {
                    all.extend(part.octets(depth + 1)?);
                }
                Ok(all)
            }
            _ => Err(ProofError::Form("octets were expected")),
        }
    }

    /// The OID that an AlgorithmIdentifier, or the like, begins with.
    fn algorithm(&self) -> Result<&'a [u8], ProofError> {
        match self.parts()?.first() {
            Some(first) if self.tag == SEQUENCE && first.tag == OID => Ok(first.content),
            _ => Err(ProofError::Form("an algorithm was expected")),
        }
    }
}

/// What was signed, if one of these certificates (PEM, several one after another) signed it with SHA-256 and RSA of 2048 bits
/// or more. `message`: PKCS #7 signed data that holds what it signs, in base64, with or without its frame of dashes.
pub fn verify_pkcs7(message: &str, certificates: &str) -> Result<Vec<u8>, ProofError> {
    if message.len() > MAX_PROOF_BYTES {
        return Err(ProofError::Form("too long"));
    }
    let base64: String = message
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .flat_map(|line| line.chars().filter(|c| !c.is_whitespace()))
        .collect();
    let bytes = BASE64
        .decode(base64.as_bytes())
        .map_err(|_| ProofError::Form("not base64"))?;
    let signed = signed_data(&bytes)?;
    let mut known = 0;
    for certificate in CertificateDer::pem_slice_iter(certificates.as_bytes()) {
        let certificate = certificate.map_err(|_| ProofError::Certificate)?;
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|_| ProofError::Certificate)?;
        known += 1;
        let key = parsed.public_key().subject_public_key.data.as_ref();
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key);
        if key.verify(&signed.message, signed.signature).is_ok() {
            return Ok(signed.content);
        }
    }
    if known == 0 {
        return Err(ProofError::Certificate);
    }
    Err(ProofError::Signature)
}

struct Signed<'a> {
    content: Vec<u8>,
    /// What the signature is over.
    message: Vec<u8>,
    signature: &'a [u8],
}

fn signed_data(bytes: &[u8]) -> Result<Signed<'_>, ProofError> {
    let form = ProofError::Form;
    let (outer, rest) = element(bytes, 0)?;
    let outer_parts = outer.parts()?;
    let [kind, explicit] = outer_parts.as_slice() else {
        return Err(form("no PKCS #7 message"));
    };
    if !rest.is_empty() || kind.content != SIGNED_DATA || explicit.tag != TAGGED_0 {
        return Err(form("no signed data"));
    }
    let parts = explicit.only()?.parts()?;
    // Version, digests, content; certificates and lists, which do not count; signers.
    let ([_, _, content, ..], Some(signers)) = (parts.as_slice(), parts.last()) else {
        return Err(form("no signed data"));
    };
    let content_parts = content.parts()?;
    let [kind, explicit] = content_parts.as_slice() else {
        return Err(form("what was signed is not in it"));
    };
    if kind.content != DATA || explicit.tag != TAGGED_0 {
        return Err(form("something else than data was signed"));
    }
    let content = explicit.only()?.octets(0)?;
    if signers.tag != SET {
        return Err(form("nobody signed it"));
    }
    // One signer: with several, one that is good could stand beside one that is not.
    let signer = signers.only()?.parts()?;
    let [_, _, digest_algorithm, rest @ ..] = signer.as_slice() else {
        return Err(form("nobody signed it"));
    };
    if digest_algorithm.algorithm()? != SHA256_OID {
        return Err(form("its digest is not SHA-256"));
    }
    let (attributes, rest) = match rest {
        [first, rest @ ..] if first.tag == TAGGED_0 => (Some(first), rest),
        rest => (None, rest),
    };
    let [algorithm, signature, ..] = rest else {
        return Err(form("it has no signature"));
    };
    if ![RSA, RSA_SHA256].contains(&algorithm.algorithm()?) || signature.tag != OCTETS {
        return Err(form("its signature is not of RSA"));
    }
    let message = match attributes {
        Some(attributes) => attributes_signed(attributes, &content)?,
        None => content.clone(),
    };
    Ok(Signed {
        content,
        message,
        signature: signature.content,
    })
}

/// The bytes of the attributes that are signed in the content's place (RFC 5652, 5.4), once they speak of this content.
fn attributes_signed(attributes: &Element<'_>, content: &[u8]) -> Result<Vec<u8>, ProofError> {
    let (mut kind, mut digested) = (None, None);
    for attribute in attributes.parts()? {
        let parts = attribute.parts()?;
        let [name, values] = parts.as_slice() else {
            return Err(ProofError::Form("an attribute without a value"));
        };
        let seen = match name.content {
            CONTENT_TYPE => &mut kind,
            MESSAGE_DIGEST => &mut digested,
            _ => continue,
        };
        if seen.replace(values.only()?.content).is_some() {
            return Err(ProofError::Form("an attribute twice"));
        }
    }
    if !attributes.definite || kind != Some(DATA) {
        return Err(ProofError::Form("its attributes are not those of data"));
    }
    if digested != Some(digest(&SHA256, content).as_ref()) {
        return Err(ProofError::Signature);
    }
    let length = attributes.content.len();
    let mut message = vec![SET];
    match length {
        0..=0x7f => message.push(length as u8),
        0x80..=0xff => message.extend([0x81, length as u8]),
        _ => message.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    if length > 0xffff {
        return Err(ProofError::Form("too long"));
    }
    message.extend(attributes.content);
    Ok(message)
}

/// A JWT taken apart; nothing in it is to be believed before [`Jwt::verify`].
#[derive(Clone, Debug)]
pub struct Jwt<'a> {
    /// The header, JSON.
    pub header: Vec<u8>,
    signed: &'a str,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Jwt<'a> {
    /// Takes it apart.
    pub fn split(text: &'a str) -> Result<Self, ProofError> {
        let form = ProofError::Form("no JWT");
        let text = text.trim();
        if text.len() > MAX_PROOF_BYTES {
            return Err(ProofError::Form("too long"));
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(form)?;
        let (header, payload) = signed.split_once('.').ok_or(form)?;
        let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| form);
        Ok(Self {
            header: decode(header)?,
            signed,
            payload: decode(payload)?,
            signature: decode(signature)?,
        })
    }

    /// The payload (JSON), if the RSA key with this modulus and exponent (base64url, as in a JWK) signed it with SHA-256. The
    /// header's word on the algorithm does not count: there is one.
    pub fn verify(&self, modulus: &str, exponent: &str) -> Result<&[u8], ProofError> {
        let decode = |part: &str| {
            BASE64URL_NOPAD
                .decode(part.as_bytes())
                .map_err(|_| ProofError::Certificate)
        };
        let key = RsaPublicKeyComponents {
            n: decode(modulus)?,
            e: decode(exponent)?,
        };
        key.verify(
            &RSA_PKCS1_2048_8192_SHA256,
            self.signed.as_bytes(),
            &self.signature,
        )
        .map_err(|_| ProofError::Signature)?;
        Ok(&self.payload)
    }
}
