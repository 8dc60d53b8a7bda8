//! A small certificate authority: an ECDSA P-256 root that signs leaves, and CAs of regions that sign agents.
//!
//! Private keys are written with mode 600, never over an existing file, and appear in no text.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use weft_wire::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::IdentityError;
use crate::files::{self, CA_FILE, CERTIFICATE_FILE, KEY_FILE, to_pem};
use crate::holder::{Holder, holder, serial, uris};
use crate::spiffe::{PeerRole, SpiffeId, check_domain, scope};

pub use crate::files::install;

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
        Self::seconds_from(now, i64::from(days) * 86_400)
    }

    /// From now (less [`Validity::CLOCK_TOLERANCE_S`]) for so many seconds.
    pub fn seconds_from(now: Timestamp, seconds: i64) -> Self {
        let later = seconds.saturating_mul(1_000_000);
        Self {
            not_before: Timestamp(now.0.saturating_sub(Self::CLOCK_TOLERANCE_S * 1_000_000)),
            not_after: Timestamp(now.0.saturating_add(later)),
        }
    }
}

/// Makes a CA for a trust domain: [`CA_FILE`] and [`CA_KEY_FILE`] in `dir`, which is created when missing.
pub fn init_ca(dir: &Path, domain: &str, validity: Validity) -> Result<(), IdentityError> {
    check_domain(domain)?;
    let key = new_key()?;
    let common_name = format!("Weft CA of {domain}, {}", mark(&key));
    // One CA may stand between it and a leaf: a region's.
    let params = ca_params(validity, &common_name, &format!("spiffe://{domain}"), 1)?;
    let certificate = params.self_signed(&key).map_err(crypto)?;
    write_pair(
        dir,
        (CA_KEY_FILE, &key.serialize_pem()),
        &[(CA_FILE, &certificate.pem())],
    )
}

/// Makes a CA under another one, with which a region's federator signs its agents: [`CA_FILE`] (it, then the one above it) and
/// [`CA_KEY_FILE`] in `out`. What it signs for another region or role is accepted by nobody.
pub fn init_region_ca(
    ca_dir: &Path,
    out: &Path,
    region: &str,
    validity: Validity,
) -> Result<(), IdentityError> {
    let above = Signer::load(ca_dir)?;
    // Also checks the region's letters.
    SpiffeId::new(&above.domain, region, PeerRole::Agent, "any")?;
    if above.path_length == Some(0) {
        return Err(IdentityError::Content {
            path: ca_dir.join(CA_FILE),
            detail: "this CA signs leaves only: no CA may stand below it (weft pki init makes one that may)"
                .into(),
        });
    }
    let key = new_key()?;
    let common_name = format!("Weft CA of {}/{region}, {}", above.domain, mark(&key));
    let uri = format!("spiffe://{}/region/{region}", above.domain);
    let mut params = ca_params(above.within(validity), &common_name, &uri, 0)?;
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &above.issuer).map_err(crypto)?;
    let chain = format!("{}{}", certificate.pem(), above.pem);
    write_pair(
        out,
        (CA_KEY_FILE, &key.serialize_pem()),
        &[(CA_FILE, &chain)],
    )
}

/// A part of its own in the name: two CAs of one domain are then told apart as "unknown CA", not as a bad signature.
fn mark(key: &KeyPair) -> String {
    blake3::hash(key.public_key_raw()).to_hex()[..8].to_owned()
}

fn ca_params(
    validity: Validity,
    common_name: &str,
    uri: &str,
    below: u8,
) -> Result<CertificateParams, IdentityError> {
    let mut params = params(validity, common_name, uri)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Makes a key and a certificate for `id`: [`CA_FILE`], [`CERTIFICATE_FILE`] and [`KEY_FILE`] in `out`, which is created
/// when missing.
pub fn issue(
    ca_dir: &Path,
    out: &Path,
    id: &SpiffeId,
    validity: Validity,
) -> Result<(), IdentityError> {
    let signer = Signer::load(ca_dir)?;
    let key = new_key()?;
    let issued = signer.sign(&key, id, validity)?;
    let public = [(CERTIFICATE_FILE, issued.chain), (CA_FILE, signer.root_pem)];
    write_pair(
        out,
        (KEY_FILE, &key.serialize_pem()),
        &public.each_ref().map(|(name, text)| (*name, text.as_str())),
    )
}

/// The trust domain that a CA (or the CA file of an identity) is of.
pub fn ca_domain(dir: &Path) -> Result<String, IdentityError> {
    Ok(read_ca(&dir.join(CA_FILE))?.domain)
}

/// A CA with its key.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    domain: String,
    region: Option<String>,
    not_after: Timestamp,
    path_length: Option<u32>,
    /// Its certificate, and those above it as far as its file has them.
    pem: String,
    /// What stands between it, itself included, and the root; empty for a root.
    between: String,
    /// The topmost certificate of its file.
    root_pem: String,
}

impl std::fmt::Debug for Signer {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("domain", &self.domain)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// A signed certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// It, and what stands between it and the root, PEM.
    pub chain: String,
    /// Its number, in lower hexadecimal digits.
    pub serial: String,
    /// Until when it holds.
    pub not_after: Timestamp,
}

struct Ca {
    certificate: CertificateDer<'static>,
    above: Vec<CertificateDer<'static>>,
    domain: String,
    region: Option<String>,
    not_after: Timestamp,
    path_length: Option<u32>,
    is_root: bool,
}

/// The first certificate of a file, which must be a CA with a name of ours.
fn read_ca(path: &Path) -> Result<Ca, IdentityError> {
    let content = |detail: String| IdentityError::Content {
        path: path.into(),
        detail,
    };
    let mut all = files::certificates(path)?;
    let above = all.split_off(1);
    let certificate = all.remove(0);
    let (_, parsed) =
        X509Certificate::from_der(&certificate).map_err(|error| content(error.to_string()))?;
    let uris = uris(&parsed).map_err(content)?;
    let named = match uris.as_slice() {
        [uri] => scope(uri),
        _ => None,
    };
    let Some((domain, region)) = named else {
        return Err(content(
            "not a CA made by this program: it names no trust domain".into(),
        ));
    };
    let constraints = parsed
        .basic_constraints()
        .map_err(|error| content(error.to_string()))?;
    let (domain, region) = (domain.to_owned(), region.map(str::to_owned));
    let not_after = Timestamp(
        parsed
            .validity()
            .not_after
            .timestamp()
            .saturating_mul(1_000_000),
    );
    let path_length = constraints.and_then(|found| found.value.path_len_constraint);
    let is_root = parsed.subject() == parsed.issuer();
    Ok(Ca {
        certificate,
        above,
        domain,
        region,
        not_after,
        path_length,
        is_root,
    })
}

impl Signer {
    /// Reads [`CA_FILE`] and [`CA_KEY_FILE`] of a directory. A key that others can read is refused.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let ca = read_ca(&dir.join(CA_FILE))?;
        let key_path = dir.join(CA_KEY_FILE);
        files::check_private(&key_path)?;
        let no_key = |_| IdentityError::Content {
            path: key_path.clone(),
            detail: "no usable private key in it".into(),
        };
        let pem = fs::read_to_string(&key_path).map_err(files::io(&key_path))?;
        let key = KeyPair::from_pem(&pem).map_err(no_key)?;
        let (_, parsed) = X509Certificate::from_der(&ca.certificate)
            .map_err(|error| IdentityError::Crypto(error.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(IdentityError::Content {
                path: key_path,
                detail: "the key of another CA".into(),
            });
        }
        let issuer = Issuer::from_ca_cert_der(&ca.certificate, key).map_err(crypto)?;
        let own = to_pem(&ca.certificate);
        let above: Vec<_> = ca.above.iter().map(|one| to_pem(one)).collect();
        Ok(Self {
            issuer,
            root_pem: above.last().unwrap_or(&own).clone(),
            between: match (ca.is_root, above.split_last()) {
                (true, _) => String::new(),
                (false, None) => own.clone(),
                (false, Some((_, below_root))) => format!("{own}{}", below_root.concat()),
            },
            pem: format!("{own}{}", above.concat()),
            domain: ca.domain,
            region: ca.region,
            not_after: ca.not_after,
            path_length: ca.path_length,
        })
    }

    /// Its trust domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The one region whose agents it may sign; `None` for all regions and roles.
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// End of its own validity: nothing that it signs lives longer.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The root that it stands under, or is, as its file has it: PEM.
    pub fn root(&self) -> &str {
        &self.root_pem
    }

    /// Signs the key of a request (PKCS #10, DER) for this name. What else the request says does not count.
    pub fn sign_request(
        &self,
        request: &[u8],
        id: &SpiffeId,
        validity: Validity,
    ) -> Result<Issued, IdentityError> {
        self.sign(&requested_key(request)?, id, validity)
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        validity: Validity,
    ) -> Result<Issued, IdentityError> {
        if self.domain != id.domain() {
            return Err(IdentityError::Domain {
                ca: self.domain.clone(),
                wanted: id.domain().into(),
            });
        }
        let may = |region: &str| region == id.region() && id.role() == PeerRole::Agent;
        if !self.region.as_deref().is_none_or(may) {
            return Err(IdentityError::Content {
                path: PathBuf::from(CA_FILE),
                detail: format!("this CA signs only agents of its region, not {id}"),
            });
        }
        let validity = self.within(validity);
        let mut params = params(validity, id.name(), &id.to_string())?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(new_serial()?);
        // Only federators accept sessions; everyone dials.
        params.extended_key_usages = match id.role() {
            PeerRole::Federator => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            PeerRole::Agent | PeerRole::Operator | PeerRole::Admin => {
                vec![ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        let certificate = params.signed_by(key, &self.issuer).map_err(crypto)?;
        let Holder {
            serial, not_after, ..
        } = holder(certificate.der()).map_err(IdentityError::Crypto)?;
        Ok(Issued {
            chain: format!("{}{}", certificate.pem(), self.between),
            serial,
            not_after,
        })
    }

    /// No longer than the CA itself.
    fn within(&self, validity: Validity) -> Validity {
        Validity {
            not_after: validity.not_after.min(self.not_after),
            ..validity
        }
    }
}

/// A new key and a request to sign it.
pub struct Request {
    key: KeyPair,
    der: Vec<u8>,
}

impl std::fmt::Debug for Request {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

impl Request {
    /// Makes a key.
    pub fn new() -> Result<Self, IdentityError> {
        Self::of(new_key()?)
    }

    /// The key of a request that was not answered: what was asked before can be asked again.
    pub fn again(key_file: &Path) -> Result<Self, IdentityError> {
        files::check_private(key_file)?;
        let pem = fs::read_to_string(key_file).map_err(files::io(key_file))?;
        Self::of(KeyPair::from_pem(&pem).map_err(|_| IdentityError::Content {
            path: key_file.into(),
            detail: "no usable private key in it".into(),
        })?)
    }

    fn of(key: KeyPair) -> Result<Self, IdentityError> {
        let request = CertificateParams::default()
            .serialize_request(&key)
            .map_err(crypto)?;
        let der = request.der().to_vec();
        Ok(Self { key, der })
    }

    /// PKCS #10, DER: what is sent.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Writes the key to a new file of mode 600, before it is asked to be signed.
    pub fn keep(&self, key_file: &Path) -> Result<(), IdentityError> {
        files::write_durably(key_file, self.key.serialize_pem().as_bytes(), 0o600)
    }

    /// Whose certificate it is that was signed. It must be for this key, and hold now under one of the roots that came with it:
    /// with anything else this program could not come back.
    pub fn check(&self, chain: &str, roots: &str) -> Result<SpiffeId, IdentityError> {
        let refused = |detail: &str| {
            IdentityError::Crypto(format!("what was signed cannot be used: {detail}"))
        };
        let all = |pem: &str| {
            CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| refused(&error.to_string()))
        };
        let (chain, roots) = (all(chain)?, all(roots)?);
        let leaf = chain.first().ok_or_else(|| refused("nothing"))?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| refused(&error.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != self.key.public_key_raw() {
            return Err(refused("it is for another key"));
        }
        if !crate::trust::holds(&roots, &chain) {
            return Err(refused("it stands under no CA that came with it"));
        }
        let holder = holder(leaf).map_err(|detail| refused(&detail))?;
        Ok(holder.id)
    }

    /// Puts key, certificate and CAs into an identity's directory, all or none, after [`Request::check`].
    pub fn install(&self, dir: &Path, chain: &str, roots: &str) -> Result<SpiffeId, IdentityError> {
        let id = self.check(chain, roots)?;
        files::install(dir, &self.key.serialize_pem(), chain, roots)?;
        Ok(id)
    }
}

/// A mark of the key in a request: the same for the same key, and it says nothing of it.
pub fn key_mark(request: &[u8]) -> Result<[u8; 32], IdentityError> {
    let key = requested_key(request)?;
    Ok(*blake3::hash(&key.subject_public_key_info()).as_bytes())
}

/// The key that a request proves to have.
fn requested_key(request: &[u8]) -> Result<rcgen::PublicKey, IdentityError> {
    let request = CertificateSigningRequestDer::from(request);
    // Checks the request's own signature, so that who asks has the key.
    let request = CertificateSigningRequestParams::from_der(&request).map_err(crypto)?;
    if rcgen::PublicKeyData::algorithm(&request.public_key) != &PKCS_ECDSA_P256_SHA256 {
        return Err(IdentityError::Crypto(
            "the key to be signed is not of ECDSA P-256".into(),
        ));
    }
    Ok(request.public_key)
}

/// Serial numbers of all certificates of a PEM text, in lower hexadecimal digits.
pub fn serials(pem: &str) -> Result<Vec<String>, IdentityError> {
    let error = |error: String| IdentityError::Crypto(error);
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|certificate| {
            let certificate = certificate.map_err(|e| error(e.to_string()))?;
            let (_, parsed) =
                X509Certificate::from_der(&certificate).map_err(|e| error(e.to_string()))?;
            Ok(serial(&parsed))
        })
        .collect()
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

/// 127 random bits, so that a number names one certificate whoever signed it.
fn new_serial() -> Result<SerialNumber, IdentityError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| IdentityError::Crypto("no randomness".into()))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn crypto(error: rcgen::Error) -> IdentityError {
    IdentityError::Crypto(error.to_string())
}

/// Writes the private key first: when it exists nothing is changed.
fn write_pair(dir: &Path, key: (&str, &str), public: &[(&str, &str)]) -> Result<(), IdentityError> {
    fs::create_dir_all(dir).map_err(files::io(dir))?;
    let key_path = dir.join(key.0);
    files::write_durably(&key_path, key.1.as_bytes(), 0o600).map_err(|error| match error {
        IdentityError::Io { path, source }
            if source.kind() == std::io::ErrorKind::AlreadyExists =>
        {
            IdentityError::Exists(path)
        }
        other => other,
    })?;
    for (name, text) in public {
        let path = dir.join(name);
        fs::write(&path, text).map_err(files::io(&path))?;
    }
    Ok(())
}
