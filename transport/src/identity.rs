//! Who this program is, and what it demands of a peer's certificate.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use weft_wire::{AgentKey, Timestamp};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::error::IdentityError;
pub use crate::spiffe::{PeerRole, SpiffeError, SpiffeId};

/// Application protocol of every session.
pub const ALPN: &[u8] = b"weft/1";
/// File with the CA's certificate, in an identity's and in a CA's directory.
pub const CA_FILE: &str = "ca.pem";
/// File with the own certificate.
pub const CERTIFICATE_FILE: &str = "cert.pem";
/// File with the own private key, mode 600.
pub const KEY_FILE: &str = "key.pem";

/// Certificate, key and trust of this program. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    id: SpiffeId,
    not_after: Timestamp,
    pub(crate) client: Arc<rustls::ClientConfig>,
    pub(crate) server: Arc<rustls::ServerConfig>,
    /// Derived from the private key: the same after a restart, unknown to everybody else.
    pub(crate) reset_key: [u8; 32],
}

/// Context of the key derivation (BLAKE3's `derive_key`); never used for anything else.
const RESET_CONTEXT: &str = "weft 2026-11-22 QUIC stateless reset and connection ids";

impl fmt::Debug for Identity {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id.to_string())
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads [`CA_FILE`], [`CERTIFICATE_FILE`] and [`KEY_FILE`] of a directory. A key that others can read is refused.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let certificates = read_certificates(&dir.join(CERTIFICATE_FILE))?;
        let roots = read_certificates(&dir.join(CA_FILE))?;
        let key = read_key(&dir.join(KEY_FILE))?;
        let content = |detail: String| IdentityError::Content {
            path: dir.join(CERTIFICATE_FILE),
            detail,
        };
        let holder = holder(&certificates[0]).map_err(content)?;
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).map_err(|error| IdentityError::Content {
                path: dir.join(CA_FILE),
                detail: error.to_string(),
            })?;
        }
        let reset_key = blake3::derive_key(RESET_CONTEXT, key.secret_der());
        let (client, server) = tls_configs(&holder.id, Arc::new(store), certificates, key)
            .map_err(|error| content(error.to_string()))?;
        Ok(Self {
            id: holder.id,
            not_after: holder.not_after,
            client: Arc::new(client),
            server: Arc::new(server),
            reset_key,
        })
    }

    /// The name in the own certificate.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The key that belongs to the name.
    pub fn key(&self) -> AgentKey {
        self.id.key()
    }

    /// End of the own certificate's validity.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whole days until the own certificate ends; negative when it has.
    pub fn days_left(&self, now: Timestamp) -> i64 {
        days_between(now, self.not_after)
    }
}

pub(crate) fn days_between(now: Timestamp, end: Timestamp) -> i64 {
    end.0.saturating_sub(now.0).div_euclid(86_400_000_000)
}

pub(crate) fn read_certificates(
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let content = |detail: String| IdentityError::Content {
        path: path.into(),
        detail,
    };
    let pem = fs::read(path).map_err(|source| IdentityError::Io {
        path: path.into(),
        source,
    })?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(error.to_string()))?;
    if certificates.is_empty() {
        Err(content("no certificate in it".into()))
    } else {
        Ok(certificates)
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let io = |source| IdentityError::Io {
        path: path.into(),
        source,
    };
    let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::KeyReadable {
            path: path.into(),
            mode,
        });
    }
    PrivateKeyDer::from_pem_slice(&fs::read(path).map_err(io)?).map_err(|_| {
        IdentityError::Content {
            path: path.into(),
            detail: "no private key in it".into(),
        }
    })
}

/// What a certificate says of its holder.
pub(crate) struct Holder {
    pub(crate) id: SpiffeId,
    pub(crate) not_after: Timestamp,
}

/// Reads the name: exactly one URI among the alternative names, and it is a SPIFFE id of ours.
pub(crate) fn holder(certificate: &CertificateDer<'_>) -> Result<Holder, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let uris = uris(&parsed)?;
    let [uri] = uris.as_slice() else {
        return Err(format!(
            "{} URI names in a certificate, must be exactly one",
            uris.len()
        ));
    };
    let id = uri
        .parse()
        .map_err(|error: SpiffeError| error.to_string())?;
    let not_after = Timestamp(
        parsed
            .validity()
            .not_after
            .timestamp()
            .saturating_mul(1_000_000),
    );
    Ok(Holder { id, not_after })
}

/// The URIs among a certificate's alternative names.
pub(crate) fn uris<'a>(certificate: &X509Certificate<'a>) -> Result<Vec<&'a str>, String> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    let names = names
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let uri = |name: &GeneralName<'a>| {
        if let GeneralName::URI(uri) = name {
            Some(*uri)
        } else {
            None
        }
    };
    Ok(names.iter().filter_map(uri).collect())
}

fn tls_configs(
    own: &SpiffeId,
    roots: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(rustls::ClientConfig, rustls::ServerConfig), rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let verifier = Arc::new(PeerVerifier {
        domain: own.domain().into(),
        roots,
        clients,
        provider: provider.clone(),
    });
    let tls13 = &[&rustls::version::TLS13];
    let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(tls13)?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_auth_cert(certificates.clone(), key.clone_key())?;
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(tls13)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    server.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the certificate, whose validity may have ended since.
    client.resumption = rustls::client::Resumption::disabled();
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((client, server))
}

/// Demands of a peer, on either side: a chain to the CA, validity, extended key usage for its side, and exactly one
/// SPIFFE id, of the own trust domain. Which role and name it must have is for the code that knows why it talks
/// to it, and is answered with a close code that says so. Host names play no part.
#[derive(Debug)]
struct PeerVerifier {
    domain: String,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
}

impl PeerVerifier {
    fn check_name(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        match holder(certificate) {
            Ok(holder) if holder.id.domain() == self.domain => Ok(()),
            // Goes to the peer as the alert access_denied.
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }
}

fn tls12_is_not_spoken() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(PeerIncompatible::Tls12NotOffered.into())
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        self.check_name(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls12_is_not_spoken()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .clients
            .verify_client_cert(end_entity, intermediates, now)?;
        self.check_name(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls12_is_not_spoken()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
