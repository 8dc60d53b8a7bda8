//! A small certificate authority: one ECDSA P-256 root that signs leaves directly.
//!
//! Private keys are written with mode 600, never over an existing file, and appear in no text.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use time::OffsetDateTime;
use weft_wire::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::IdentityError;
use crate::identity::{
    CA_FILE, CERTIFICATE_FILE, KEY_FILE, PeerRole, SpiffeId, read_certificates, uris,
};
use crate::spiffe::check_domain;

/// File with the CA's private key, mode 600.
pub const CA_KEY_FILE: &str = "ca-key.pem";

/// From when to when a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub not_before: Timestamp,
    /// Until.
    pub not_after: Timestamp,
}

impl Validity {
    /// How far a certificate's validity begins before its making, for peers whose clocks are behind.
    pub const CLOCK_TOLERANCE_S: i64 = 300;

    /// From now (less [`Validity::CLOCK_TOLERANCE_S`]) for so many days.
    pub fn days_from(now: Timestamp, days: u32) -> Self {
        Self {
            not_before: Timestamp(now.0.saturating_sub(Self::CLOCK_TOLERANCE_S * 1_000_000)),
            not_after: Timestamp(now.0.saturating_add(i64::from(days) * 86_400_000_000)),
        }
    }
}

/// Makes a CA for a trust domain: [`CA_FILE`] and [`CA_KEY_FILE`] in `dir`, which is created when missing.
pub fn init_ca(dir: &Path, domain: &str, validity: Validity) -> Result<(), IdentityError> {
    check_domain(domain)?;
    let key = new_key()?;
    // A part of its own in the name: two CAs of one domain are then told apart as "unknown CA", not as a bad signature.
    let mark = blake3::hash(key.public_key_raw()).to_hex();
    let common_name = format!("Weft CA of {domain}, {}", &mark[..8]);
    let mut params = params(validity, &common_name, &format!("spiffe://{domain}"))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(crypto)?;
    write_pair(
        dir,
        (CA_KEY_FILE, &key.serialize_pem()),
        &[(CA_FILE, &certificate.pem())],
    )
}

/// Makes a key and a certificate for `id`: [`CA_FILE`], [`CERTIFICATE_FILE`] and [`KEY_FILE`] in `out`, which is created
/// when missing.
pub fn issue(
    ca_dir: &Path,
    out: &Path,
    id: &SpiffeId,
    validity: Validity,
) -> Result<(), IdentityError> {
    let ca_pem = read_text(&ca_dir.join(CA_FILE))?;
    let domain = ca_domain(ca_dir)?;
    if domain != id.domain() {
        return Err(IdentityError::Domain {
            ca: domain,
            wanted: id.domain().into(),
        });
    }
    let key_path = ca_dir.join(CA_KEY_FILE);
    let no_key = |_| IdentityError::Content {
        path: key_path.clone(),
        detail: "no usable private key in it".into(),
    };
    let ca_key = KeyPair::from_pem(&read_text(&key_path)?).map_err(no_key)?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).map_err(crypto)?;

    let mut params = params(validity, id.name(), &id.to_string())?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    // Only federators accept sessions; everyone dials.
    params.extended_key_usages = match id.role() {
        PeerRole::Federator => vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
        PeerRole::Agent | PeerRole::Operator => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    let key = new_key()?;
    let certificate = params.signed_by(&key, &issuer).map_err(crypto)?;
    let public = [(CERTIFICATE_FILE, certificate.pem()), (CA_FILE, ca_pem)];
    write_pair(
        out,
        (KEY_FILE, &key.serialize_pem()),
        &public.each_ref().map(|(name, text)| (*name, text.as_str())),
    )
}

/// The trust domain that a CA (or the CA file of an identity) is of.
pub fn ca_domain(dir: &Path) -> Result<String, IdentityError> {
    let path = dir.join(CA_FILE);
    let certificates = read_certificates(&path)?;
    let content = |detail: String| IdentityError::Content {
        path: path.clone(),
        detail,
    };
    let (_, parsed) =
        X509Certificate::from_der(&certificates[0]).map_err(|error| content(error.to_string()))?;
    match uris(&parsed).map_err(content)?.as_slice() {
        [uri] if uri.starts_with("spiffe://") => Ok(uri["spiffe://".len()..].into()),
        _ => Err(content(
            "not a CA made by this program: it names no trust domain".into(),
        )),
    }
}

fn params(
    validity: Validity,
    common_name: &str,
    uri: &str,
) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.not_before = date(validity.not_before)?;
    params.not_after = date(validity.not_after)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let uri = uri.try_into().map_err(crypto)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    Ok(params)
}

fn date(time: Timestamp) -> Result<OffsetDateTime, IdentityError> {
    OffsetDateTime::from_unix_timestamp(time.0.div_euclid(1_000_000))
        .map_err(|_| IdentityError::Crypto("a validity beyond the year 9999".into()))
}

fn new_key() -> Result<KeyPair, IdentityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)
}

fn crypto(error: rcgen::Error) -> IdentityError {
    IdentityError::Crypto(error.to_string())
}

fn read_text(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(|source| IdentityError::Io {
        path: path.into(),
        source,
    })
}

/// Writes the private key first: when it exists nothing is changed.
fn write_pair(dir: &Path, key: (&str, &str), public: &[(&str, &str)]) -> Result<(), IdentityError> {
    fs::create_dir_all(dir).map_err(|source| IdentityError::Io {
        path: dir.into(),
        source,
    })?;
    let key_path = dir.join(key.0);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&key_path)
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => IdentityError::Exists(key_path.clone()),
            _ => IdentityError::Io {
                path: key_path.clone(),
                source,
            },
        })?;
    file.write_all(key.1.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|source| IdentityError::Io {
            path: key_path.clone(),
            source,
        })?;
    for (name, text) in public {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|source| IdentityError::Io { path, source })?;
    }
    Ok(())
}
