//! Whom a session may be with: the chain to a trusted CA, the name in the certificate, and what was revoked. Trust can be
//! exchanged while sessions run.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::holder::{Holder, holder, serial, uris};
use crate::revocations::Revocations;
use crate::spiffe::PeerRole;

/// What may be exchanged of the trust: the CAs.
#[derive(Debug)]
pub(crate) struct Trust {
    roots: RwLock<Arc<RootCertStore>>,
    /// The own trust domain.
    domain: String,
    revocations: Revocations,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    pub(crate) fn new(
        domain: &str,
        roots: RootCertStore,
        revocations: Revocations,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self {
            roots: RwLock::new(Arc::new(roots)),
            domain: domain.into(),
            revocations,
            provider,
        }
    }

    /// From the next handshake on these are trusted. Sessions that stand are not touched.
    pub(crate) fn exchange(&self, roots: RootCertStore) {
        *self.roots.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(roots);
    }

    pub(crate) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    pub(crate) fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    fn roots(&self) -> Arc<RootCertStore> {
        self.roots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Demands a chain to one of the CAs, validity, extended key usage for its side, and exactly one SPIFFE id, of the own trust
    /// domain, which every CA on the way may give. Which role and name it must have is for the code that knows why it talks
    /// to it, and is answered with a close code that says so. Host names play no part.
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), rustls::Error> {
        let roots = self.roots();
        let end_entity = EndEntityCert::try_from(leaf).map_err(refusal)?;
        let holder = holder(leaf);
        let may_issue = |path: &VerifiedPath<'_>| {
            let holder = holder.as_ref().ok();
            let mut issuers = path.intermediate_certificates();
            // What is no name is refused below, whoever signed it.
            let allowed = issuers
                .all(|issuer| holder.is_none_or(|holder| self.may_sign(&issuer.der(), holder)));
            if allowed {
                Ok(())
            } else {
                Err(webpki::Error::NameConstraintViolation)
            }
        };
        let path = end_entity.verify_for_usage(
            self.provider.signature_verification_algorithms.all,
            &roots.roots,
            intermediates,
            now,
            usage,
            None,
            Some(&may_issue),
        );
        let path = path.map_err(refusal)?;
        // Goes to the peer as the alert access_denied.
        let nameless = || CertificateError::ApplicationVerificationFailure;
        let holder = holder.map_err(|_| nameless())?;
        if holder.id.domain() != self.domain {
            return Err(nameless().into());
        }
        let by_revoked = path
            .intermediate_certificates()
            .any(|issuer| revoked_serial(&self.revocations, &issuer.der()));
        if by_revoked || self.revocations.hit(&holder.id, &[&holder.serial]) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(())
    }

    /// Whether a CA between the root and the holder may sign for it. One whose own name is a region's signs for agents of that
    /// region only; one with a name of another domain for nobody here.
    fn may_sign(&self, issuer: &CertificateDer<'_>, holder: &Holder) -> bool {
        let Ok((_, parsed)) = X509Certificate::from_der(issuer) else {
            return false;
        };
        let Ok(uris) = uris(&parsed) else {
            return false;
        };
        uris.iter().all(|uri| match crate::spiffe::scope(uri) {
            Some((domain, None)) => domain == holder.id.domain(),
            Some((domain, Some(region))) => {
                domain == holder.id.domain()
                    && region == holder.id.region()
                    && holder.id.role() == PeerRole::Agent
            }
            None => false,
        })
    }
}

/// Whether a chain of our own stands under one of these CAs now.
pub(crate) fn holds(roots: &[CertificateDer<'_>], chain: &[CertificateDer<'_>]) -> bool {
    let mut store = RootCertStore::empty();
    for root in roots {
        if store.add(root.clone().into_owned()).is_err() {
            return false;
        }
    }
    let Some((leaf, rest)) = chain.split_first() else {
        return false;
    };
    let Ok(end_entity) = EndEntityCert::try_from(leaf) else {
        return false;
    };
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    end_entity
        .verify_for_usage(
            algorithms.all,
            &store.roots,
            rest,
            UnixTime::now(),
            KeyUsage::client_auth(),
            None,
            None,
        )
        .is_ok()
}

fn revoked_serial(revocations: &Revocations, certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| revocations.hit_serial(&serial(&parsed)))
}

/// What webpki found, as rustls tells it to the peer.
fn refusal(error: webpki::Error) -> rustls::Error {
    use webpki::Error as Found;
    match error {
        Found::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }.into()
        }
        Found::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }.into()
        }
        Found::InvalidCertValidity => CertificateError::Expired.into(),
        Found::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        Found::InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
        Found::RequiredEkuNotFoundContext(_)
        | Found::CaUsedAsEndEntity
        | Found::EndEntityUsedAsCa
        | Found::PathLenConstraintViolated => CertificateError::InvalidPurpose.into(),
        Found::NameConstraintViolation => CertificateError::ApplicationVerificationFailure.into(),
        _ => CertificateError::BadEncoding.into(),
    }
}

fn tls12_is_not_spoken() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(PeerIncompatible::Tls12NotOffered.into())
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now, KeyUsage::server_auth())?;
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
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for Trust {
    /// None: a peer has one certificate and presents it. The CAs may be exchanged at any time, and many of them are nobody's
    /// business before the handshake is done.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
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
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
