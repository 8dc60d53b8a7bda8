//! How a node gets its first certificate: one question, one answer, at an address for that alone.
//!
//! The node has no certificate yet, so only the listener shows one. The node knows the fingerprint of the CA that it must stand
//! under, and says nothing before it has seen that. Nobody without a certificate comes near the address where sessions are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use weft_wire::codec::{self, Message};
use weft_wire::frame::{Decoder, HEADER_BYTES, MAX_IDENTITY};
use weft_wire::identity::{IdentityAnswer, IdentityRequest};
use weft_wire::query::QueryError;

use crate::counters::Counters;
use crate::endpoint::{Dialler, HANDSHAKE_TIMEOUT, socket};
use crate::error::{CloseReason, TransportError};
use crate::guests::Guests;
use crate::holder::holder;
use crate::identity::{Identity, PeerRole};
use crate::revocations::Revocations;
use crate::token::Fingerprint;
use crate::trust::Trust;

/// Application protocol of joining.
pub const JOIN_ALPN: &[u8] = b"weft-join/1";
/// Longest question of a node that joins.
pub const MAX_QUESTION_BYTES: usize = 64 << 10;
/// Nodes that join at a time; more are refused and counted.
pub const MAX_JOINS: usize = 64;
/// Of them, from one address (of IPv6: from one /64).
pub const MAX_JOINS_OF_ONE: usize = 8;
/// A node that takes longer, from its handshake to having read its answer, is given up.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Decides who gets a certificate.
pub trait Admit: Send + Sync + 'static {
    /// Answers one question; `from` is the address it came from, which is proven.
    fn admit(
        self: Arc<Self>,
        from: SocketAddr,
        request: IdentityRequest,
    ) -> impl Future<Output = IdentityAnswer> + Send;
}

/// Answers nodes that have no certificate yet, until it is dropped.
#[derive(Debug)]
pub struct JoinListener {
    endpoint: quinn::Endpoint,
    counters: Arc<Counters>,
}

impl JoinListener {
    /// Binds an address. Must be called within a tokio runtime.
    pub fn bind(address: SocketAddr, identity: &Identity) -> Result<Self, TransportError> {
        let misuse = |error: &dyn std::fmt::Display| TransportError::Misuse(error.to_string());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| misuse(&error))?
            .with_no_client_auth()
            .with_cert_resolver(identity.shown_to_nodes());
        tls.alpn_protocols = vec![JOIN_ALPN.to_vec()];
        tls.send_tls13_tickets = 0;
        let crypto = QuicServerConfig::try_from(tls).map_err(|error| misuse(&error))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(transport_config());
        let cannot_bind = |error: std::io::Error| {
            TransportError::Misuse(format!("cannot listen on {address}: {error}"))
        };
        let endpoint = quinn::Endpoint::new(
            EndpointConfig::default(),
            Some(server),
            socket(address).map_err(cannot_bind)?,
            Arc::new(TokioRuntime),
        )
        .map_err(cannot_bind)?;
        Ok(Self {
            endpoint,
            counters: Arc::default(),
        })
    }

    /// The address bound.
    pub fn local_addr(&self) -> Result<SocketAddr, TransportError> {
        self.endpoint
            .local_addr()
            .map_err(|error| TransportError::Misuse(error.to_string()))
    }

    /// What happened to handshakes.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Answers until the task is aborted.
    pub async fn serve<A: Admit>(&self, admit: Arc<A>) {
        let room = Arc::new(Semaphore::new(MAX_JOINS));
        let guests = Arc::new(Guests::new(MAX_JOINS_OF_ONE));
        while let Some(incoming) = self.endpoint.accept().await {
            // Always: who joins has time, and a forged address must cost nothing.
            if !incoming.remote_address_validated() {
                self.counters.retried();
                let _ = incoming.retry();
                continue;
            }
            let remote = incoming.remote_address();
            let guest = guests.enter(remote.ip());
            let (Some(guest), Ok(permit)) = (guest, room.clone().try_acquire_owned()) else {
                self.counters.full();
                incoming.refuse();
                continue;
            };
            let (admit, counters) = (admit.clone(), self.counters.clone());
            tokio::spawn(async move {
                let answered = timeout(JOIN_TIMEOUT, answer(incoming, remote, admit)).await;
                match answered {
                    Ok(Ok(())) => counters.established(),
                    Ok(Err(error)) => {
                        if let TransportError::Closed(reason) = &error {
                            counters.ended(reason);
                        }
                        tracing::debug!(%remote, %error, "a node that wanted to join was not answered");
                    }
                    Err(_) => counters.handshake_timed_out(),
                }
                drop((guest, permit));
            });
        }
    }
}

impl Drop for JoinListener {
    fn drop(&mut self) {
        self.endpoint.close(0u32.into(), b"");
    }
}

async fn answer<A: Admit>(
    incoming: quinn::Incoming,
    remote: SocketAddr,
    admit: Arc<A>,
) -> Result<(), TransportError> {
    let connection = incoming.await.map_err(closed)?;
    let (mut send, mut receive) = connection.accept_bi().await.map_err(closed)?;
    let question = receive
        .read_to_end(HEADER_BYTES + MAX_QUESTION_BYTES)
        .await
        .map_err(|error| TransportError::Misuse(error.to_string()))?;
    let answer = match one_message::<IdentityRequest>(&question) {
        Ok(request @ IdentityRequest::Join { .. }) => admit.admit(remote, request).await,
        Ok(other) => IdentityAnswer::Error(not_here(format!(
            "{} needs a certificate, and another address",
            other.name()
        ))),
        Err(detail) => IdentityAnswer::Error(not_here(detail)),
    };
    let mut bytes = Vec::new();
    codec::append(&mut bytes, &answer)
        .map_err(|error| TransportError::Misuse(error.to_string()))?;
    send.write_all(&bytes)
        .await
        .map_err(|_| TransportError::StreamEnded)?;
    let _ = send.finish();
    // Until the node has it: closing sooner could take it away again.
    let _ = send.stopped().await;
    connection.close(0u32.into(), b"");
    Ok(())
}

fn not_here(cause: String) -> QueryError {
    QueryError {
        code: "E-JOIN".into(),
        what: "the node cannot join".into(),
        cause,
        hint: "compare the versions of weft-agent and weft-federator".into(),
    }
}

/// Asks for a certificate at `address`, once the CA that answers there has this fingerprint.
pub async fn ask(
    address: &str,
    fingerprint: Fingerprint,
    request: &IdentityRequest,
) -> Result<IdentityAnswer, TransportError> {
    let misuse = |error: &dyn std::fmt::Display| TransportError::Misuse(error.to_string());
    let mut question = Vec::new();
    codec::append(&mut question, request).map_err(|error| misuse(&error))?;
    let endpoint = quinn::Endpoint::new(
        EndpointConfig::default(),
        None,
        Dialler::socket()?,
        Arc::new(TokioRuntime),
    )
    .map_err(|error| misuse(&error))?;
    let config = client_config(fingerprint)?;
    let unreachable = |detail: String| TransportError::Unreachable {
        address: address.into(),
        detail,
    };
    let found = tokio::net::lookup_host(address)
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    let mut last = unreachable("the name has no address".into());
    for remote in found {
        match ask_one(&endpoint, config.clone(), remote, &question).await {
            Ok(answer) => {
                let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
                return Ok(answer);
            }
            Err(TransportError::Closed(reason @ CloseReason::Refused(_))) => {
                return Err(TransportError::Closed(reason));
            }
            Err(TransportError::Closed(reason)) => last = unreachable(reason.to_string()),
            Err(TransportError::TimedOut { after, .. }) => {
                last = unreachable(format!("no answer within {after:?}"));
            }
            Err(other) => return Err(other),
        }
    }
    Err(last)
}

async fn ask_one(
    endpoint: &quinn::Endpoint,
    config: quinn::ClientConfig,
    remote: SocketAddr,
    question: &[u8],
) -> Result<IdentityAnswer, TransportError> {
    let connecting = endpoint
        .connect_with(config, remote, "weft")
        .map_err(|error| TransportError::Misuse(error.to_string()))?;
    let late = |what, after| move |_| TransportError::TimedOut { what, after };
    let connection = timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(late("the handshake", HANDSHAKE_TIMEOUT))?
        .map_err(closed)?;
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(closed)?;
        send.write_all(question)
            .await
            .map_err(|_| TransportError::StreamEnded)?;
        let _ = send.finish();
        receive
            .read_to_end(HEADER_BYTES + MAX_IDENTITY)
            .await
            .map_err(|error| match error {
                quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error)) => {
                    closed(error)
                }
                _ => TransportError::StreamEnded,
            })
    };
    let answer = timeout(JOIN_TIMEOUT, exchange)
        .await
        .map_err(late("the answer", JOIN_TIMEOUT))??;
    connection.close(0u32.into(), b"");
    one_message(&answer).map_err(|detail| TransportError::PeerMisbehaved {
        code: weft_wire::control::CloseCode::Malformed,
        detail,
    })
}

fn closed(error: quinn::ConnectionError) -> TransportError {
    TransportError::Closed(CloseReason::from_quinn(&error))
}

/// Exactly one frame, of this message.
fn one_message<M: Message>(bytes: &[u8]) -> Result<M, String> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    let frame = decoder.poll().map_err(|error| error.to_string())?;
    let frame = frame.ok_or("part of a message")?;
    if decoder.is_partial() {
        return Err("more than one message".into());
    }
    codec::decode(&frame).map_err(|error| error.to_string())
}

fn transport_config() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(IdleTimeout::try_from(JOIN_TIMEOUT).ok())
        .max_concurrent_bidi_streams(1u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window((2 * MAX_IDENTITY as u32).into())
        .receive_window((2 * MAX_IDENTITY as u32).into());
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client_config(fingerprint: Fingerprint) -> Result<quinn::ClientConfig, TransportError> {
    let misuse = |error: &dyn std::fmt::Display| TransportError::Misuse(error.to_string());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| misuse(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned {
            fingerprint,
            provider: provider(),
        }))
        .with_no_client_auth();
    tls.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| misuse(&error))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport_config());
    Ok(config)
}

/// Trusts the one CA that has the fingerprint, and under it a federator.
#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    /// The rules for certificates, without any CA.
    fn nobody(&self, domain: &str, roots: RootCertStore) -> Trust {
        Trust::new(domain, roots, Revocations::default(), self.provider.clone())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == self.fingerprint)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots
            .add(pinned.clone().into_owned())
            .map_err(|_| CertificateError::BadEncoding)?;
        let holder =
            holder(end_entity).map_err(|_| CertificateError::ApplicationVerificationFailure)?;
        if holder.id.role() != PeerRole::Federator {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        self.nobody(holder.id.domain(), roots).verify_server_cert(
            end_entity,
            intermediates,
            name,
            ocsp,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(
            &self.nobody("", RootCertStore::empty()),
            message,
            certificate,
            signature,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(
            &self.nobody("", RootCertStore::empty()),
            message,
            certificate,
            signature,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
