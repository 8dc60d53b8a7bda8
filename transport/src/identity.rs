//! Who this program is. Certificate, key and trusted CAs are read from a directory and exchanged when its files change,
//! without a restart: handshakes from then on use the new ones, sessions that stand go on.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use weft_wire::{AgentKey, Timestamp};

use crate::error::IdentityError;
use crate::files::{self, Files, Stamp, to_pem};
pub use crate::files::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};
use crate::holder::{Holder, holder};
use crate::revocations::Revocations;
pub use crate::spiffe::{PeerRole, SpiffeError, SpiffeId};
use crate::token::Fingerprint;
use crate::trust::{Trust, holds};

/// Application protocol of every session.
pub const ALPN: &[u8] = b"weft/1";
/// How often [`Identity::follow`] looks at the files.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// Certificate, key and trust of this program. Cheap to clone; clones are one, and change together.
#[derive(Clone)]
pub struct Identity {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    id: SpiffeId,
    own: Arc<Own>,
    trust: Arc<Trust>,
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
    reset_key: [u8; 32],
    /// The files as they were when they were read last.
    seen: Mutex<Option<Stamp>>,
}

/// Context of the key derivation (BLAKE3's `derive_key`); never used for anything else.
const RESET_CONTEXT: &str = "weft 2026-11-22 QUIC stateless reset and connection ids";

impl fmt::Debug for Identity {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.shared.id.to_string())
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the files of a directory: [`CA_FILE`], [`CERTIFICATE_FILE`] and [`KEY_FILE`], or the same under the names that
    /// cert-manager or SPIRE give them. A key that others can read is refused.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        files::finish_install(dir);
        let seen = Stamp::of(dir);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (current, roots, reset_key) = read(dir, &provider)?;
        let id = current.holder.id.clone();
        let trust = Arc::new(Trust::new(
            id.domain(),
            roots,
            Revocations::default(),
            provider.clone(),
        ));
        let own = Arc::new(Own {
            current: RwLock::new(Arc::new(current)),
        });
        let (client, server) = tls_configs(&own, &trust, &provider)
            .map_err(|error| IdentityError::Crypto(error.to_string()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                dir: dir.into(),
                id,
                own,
                trust,
                client: Arc::new(client),
                server: Arc::new(server),
                reset_key,
                seen: Mutex::new(seen),
            }),
        })
    }

    /// Reads the files again if they changed, and says whether they did. Files that do not belong together, or are another's,
    /// change nothing.
    pub fn reload(&self) -> Result<bool, IdentityError> {
        let shared = &self.shared;
        let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Stamp::of(&shared.dir);
        if *seen == now {
            return Ok(false);
        }
        // What cannot be used now is looked at again only when it has changed again.
        *seen = now;
        let (current, roots, _) = read(&shared.dir, shared.trust.provider())?;
        if current.holder.id != shared.id {
            return Err(IdentityError::Content {
                path: shared.dir.clone(),
                detail: format!(
                    "the certificate is now for {}, this program is {}: restart it to change that",
                    current.holder.id, shared.id
                ),
            });
        }
        shared.trust.exchange(roots);
        shared.own.exchange(current);
        Ok(true)
    }

    /// Reloads whenever the files change, for as long as it is polled. What cannot be used is said in the log, once a change.
    pub async fn follow(&self) {
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            let identity = self.clone();
            // Disks can hang.
            let reloaded = tokio::task::spawn_blocking(move || identity.reload()).await;
            match reloaded {
                Ok(Ok(true)) => {
                    tracing::info!(id = %self.id(), not_after = %self.not_after(), "certificate and CAs read again");
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "changed certificates cannot be used; the ones before go on");
                }
                Ok(Ok(false)) | Err(_) => {}
            }
        }
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.shared.dir
    }

    /// The name in the own certificate.
    pub fn id(&self) -> &SpiffeId {
        &self.shared.id
    }

    /// The key that belongs to the name.
    pub fn key(&self) -> AgentKey {
        self.shared.id.key()
    }

    /// From when to when the own certificate holds.
    pub fn validity(&self) -> (Timestamp, Timestamp) {
        let holder = &self.shared.own.current().holder;
        (holder.not_before, holder.not_after)
    }

    /// End of the own certificate's validity.
    pub fn not_after(&self) -> Timestamp {
        self.validity().1
    }

    /// Serial number of the own certificate, in lower hexadecimal digits.
    pub fn serial(&self) -> String {
        self.shared.own.current().holder.serial.clone()
    }

    /// Whole days until the own certificate ends; negative when it has.
    pub fn days_left(&self, now: Timestamp) -> i64 {
        days_between(now, self.not_after())
    }

    /// Who is shut out: handshakes refuse them, sessions with them end.
    pub fn revocations(&self) -> &Revocations {
        self.shared.trust.revocations()
    }

    pub(crate) fn client(&self) -> Arc<rustls::ClientConfig> {
        self.shared.client.clone()
    }

    pub(crate) fn server(&self) -> Arc<rustls::ServerConfig> {
        self.shared.server.clone()
    }

    /// The own certificate with the CAs after it: a node that joins knows one of these by its fingerprint.
    pub(crate) fn shown_to_nodes(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::new(WithRoots(self.shared.own.clone()))
    }

    /// The CA that the own certificate stands under, PEM-less: its fingerprint. `None` when its chain does not hold.
    pub fn root_fingerprint(&self) -> Option<Fingerprint> {
        let current = self.shared.own.current();
        let mut roots = current.roots.iter();
        let root =
            roots.find(|root| holds(std::slice::from_ref(*root), &current.certified.cert))?;
        Some(Fingerprint::of(root))
    }

    /// The CAs that are trusted, PEM.
    pub fn roots_pem(&self) -> String {
        let current = self.shared.own.current();
        current.roots.iter().map(|root| to_pem(root)).collect()
    }

    /// Derived from the private key that there was at the start: the same after a restart with it, unknown to everybody else.
    pub(crate) fn reset_key(&self) -> &[u8; 32] {
        &self.shared.reset_key
    }
}

pub(crate) fn days_between(now: Timestamp, end: Timestamp) -> i64 {
    end.0.saturating_sub(now.0).div_euclid(86_400_000_000)
}

/// The own certificate with its key, and what it says.
#[derive(Debug)]
struct Current {
    certified: Arc<CertifiedKey>,
    /// The same with [`Current::roots`] at the end of its chain.
    with_roots: Arc<CertifiedKey>,
    roots: Vec<CertificateDer<'static>>,
    holder: Holder,
}

/// Presents the current certificate, on either side.
#[derive(Debug)]
struct Own {
    current: RwLock<Arc<Current>>,
}

impl Own {
    fn current(&self) -> Arc<Current> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn exchange(&self, current: Current) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(current);
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified.clone())
    }
}

/// Presents it with the CAs that are trusted.
#[derive(Debug)]
struct WithRoots(Arc<Own>);

impl ResolvesServerCert for WithRoots {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().with_roots.clone())
    }
}

fn read(
    dir: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<(Current, RootCertStore, [u8; 32]), IdentityError> {
    let files = Files::find(dir);
    let certificates = files::certificates(&files.certificate)?;
    let roots = files::certificates(&files.ca)?;
    let key = files::private_key(&files.key)?;
    let content = |detail: String| IdentityError::Content {
        path: files.certificate.clone(),
        detail,
    };
    let holder = holder(&certificates[0]).map_err(content)?;
    let mut store = RootCertStore::empty();
    for root in &roots {
        store
            .add(root.clone())
            .map_err(|error| IdentityError::Content {
                path: files.ca.clone(),
                detail: error.to_string(),
            })?;
    }
    let reset_key = blake3::derive_key(RESET_CONTEXT, key.secret_der());
    // Checks that key and certificate belong together.
    let certified = CertifiedKey::from_der(certificates, key, provider)
        .map_err(|error| content(error.to_string()))?;
    let mut chain = certified.cert.clone();
    chain.extend(roots.iter().cloned());
    let current = Current {
        with_roots: Arc::new(CertifiedKey::new(chain, certified.key.clone())),
        certified: Arc::new(certified),
        roots,
        holder,
    };
    Ok((current, store, reset_key))
}

fn tls_configs(
    own: &Arc<Own>,
    trust: &Arc<Trust>,
    provider: &Arc<CryptoProvider>,
) -> Result<(rustls::ClientConfig, rustls::ServerConfig), rustls::Error> {
    let tls13 = &[&rustls::version::TLS13];
    let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(tls13)?
        .dangerous()
        .with_custom_certificate_verifier(trust.clone())
        .with_client_cert_resolver(own.clone());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(tls13)?
        .with_client_cert_verifier(trust.clone())
        .with_cert_resolver(own.clone());
    client.alpn_protocols = vec![ALPN.to_vec()];
    server.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the certificate, whose validity may have ended since.
    client.resumption = rustls::client::Resumption::disabled();
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((client, server))
}
