//! Accepting and dialling sessions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use weft_wire::control::CloseCode;

use crate::counters::Counters;
use crate::error::{CloseReason, TransportError};
use crate::guests::{Guest, Guests};
use crate::identity::{Identity, PeerRole};
use crate::limits::Limits;
pub use crate::limits::{HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, KEEP_ALIVE, MAX_STREAMS};
use crate::limits::{
    HANDSHAKES_PART_OF_ONE, RESET_INTERVAL, SEND_WINDOW_BYTES, SESSION_WINDOW_BYTES,
    SOCKET_BUFFER_BYTES, STREAM_WINDOW_BYTES, TURN_TIMEOUT, WAITING_BYTES, WAITING_HANDSHAKES,
};
use crate::revocations::Revocations;
use crate::seats::Seats;
use crate::session::{DATAGRAM_BUFFER_BYTES, Session};

/// Sessions that are established and wait for [`Listener::accept`].
const READY_SESSIONS: usize = 64;

/// Of one end; who dials keeps the session alive.
fn transport_config(keep_alive: Option<Duration>) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(keep_alive)
        .max_concurrent_bidi_streams(MAX_STREAMS.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(SESSION_WINDOW_BYTES.into())
        .send_window(SEND_WINDOW_BYTES);
    Arc::new(config)
}

/// A UDP socket with large buffers; one of IPv6 takes IPv4 too.
pub(crate) fn socket(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Smaller buffers only cost speed.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Accepts sessions on an address until it is dropped; sessions accepted before go on.
#[derive(Debug)]
pub struct Listener {
    endpoint: quinn::Endpoint,
    counters: Arc<Counters>,
    ready: Mutex<mpsc::Receiver<Session>>,
    accepting: AbortHandle,
}

impl Listener {
    /// Binds an address with the default limits. Must be called within a tokio runtime.
    pub fn bind(address: SocketAddr, identity: &Identity) -> Result<Self, TransportError> {
        Self::bind_with(address, identity, Limits::default())
    }

    /// Binds an address.
    pub fn bind_with(
        address: SocketAddr,
        identity: &Identity,
        limits: Limits,
    ) -> Result<Self, TransportError> {
        let crypto = QuicServerConfig::try_from(identity.server())
            .map_err(|error| TransportError::Misuse(error.to_string()))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(transport_config(None));
        let waiting = limits.handshakes.saturating_mul(WAITING_HANDSHAKES);
        server.max_incoming(waiting.saturating_mul(2));
        server.incoming_buffer_size(WAITING_BYTES);
        server.incoming_buffer_size_total(WAITING_BYTES.saturating_mul(waiting as u64));
        let cannot_bind = |error: std::io::Error| {
            TransportError::Misuse(format!("cannot listen on {address}: {error}"))
        };
        let endpoint = quinn::Endpoint::new(
            endpoint_config(identity),
            Some(server),
            socket(address).map_err(cannot_bind)?,
            Arc::new(TokioRuntime),
        )
        .map_err(cannot_bind)?;
        let counters = Arc::new(Counters::default());
        let (sender, ready) = mpsc::channel(READY_SESSIONS);
        let accept = accept_all(
            endpoint.clone(),
            Arc::new(Gate::new(limits)),
            (counters.clone(), identity.revocations().clone()),
            sender,
        );
        let accepting = tokio::spawn(accept).abort_handle();
        Ok(Self {
            endpoint,
            counters,
            ready: Mutex::new(ready),
            accepting,
        })
    }

    /// The address bound.
    pub fn local_addr(&self) -> Result<SocketAddr, TransportError> {
        self.endpoint
            .local_addr()
            .map_err(|error| TransportError::Misuse(error.to_string()))
    }

    /// The next session whose peer has proven its name; `None` after [`Listener::close`].
    pub async fn accept(&self) -> Option<Session> {
        self.ready.lock().await.recv().await
    }

    /// What happened to sessions and handshakes.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Closes all sessions, accepts no more, and waits a moment for the peers to hear of it.
    pub async fn close(&self, code: CloseCode, reason: &str) {
        self.accepting.abort();
        self.endpoint.close((code as u32).into(), reason.as_bytes());
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Permits for what is limited.
struct Gate {
    limits: Limits,
    sessions: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    guests: Guests,
    /// Handshakes that wait for their turn.
    waiting: Arc<Semaphore>,
    waiting_guests: Guests,
    seats: Arc<Seats>,
}

/// What a handshake holds while it lasts.
type Entry = (OwnedSemaphorePermit, Guest);

impl Gate {
    fn new(limits: Limits) -> Self {
        let semaphore =
            |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self {
            limits,
            sessions: semaphore(limits.sessions),
            handshakes: semaphore(limits.handshakes),
            guests: Guests::new(limits.handshakes / HANDSHAKES_PART_OF_ONE),
            waiting: semaphore(limits.handshakes.saturating_mul(WAITING_HANDSHAKES)),
            waiting_guests: Guests::new(
                limits.handshakes.saturating_mul(WAITING_HANDSHAKES) / HANDSHAKES_PART_OF_ONE,
            ),
            seats: Arc::new(Seats::new(&limits)),
        }
    }

    /// A handshake's place, if one is free.
    fn enter(&self, from: IpAddr) -> Option<Entry> {
        let guest = self.guests.enter(from)?;
        Some((self.handshakes.clone().try_acquire_owned().ok()?, guest))
    }

    /// A place to wait for that, if one is free.
    fn line_up(&self, from: IpAddr) -> Option<Entry> {
        let guest = self.waiting_guests.enter(from)?;
        Some((self.waiting.clone().try_acquire_owned().ok()?, guest))
    }

    /// A handshake's place when it is this one's turn: of its network, then of all.
    async fn turn(&self, from: IpAddr) -> Option<Entry> {
        let guest = self.guests.wait(from).await?;
        Some((self.handshakes.clone().acquire_owned().await.ok()?, guest))
    }

    fn crowded(&self, from: IpAddr) -> bool {
        self.handshakes.available_permits() < self.limits.handshakes / 2
            || self.guests.crowded(from)
    }
}

/// A listener that was killed and came back knows its own connection ids again, and tells whoever still uses them that the
/// session is gone (stateless reset, RFC 9000, 10.3). Without that the peer would find out by [`IDLE_TIMEOUT`].
fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let key = identity.reset_key();
    let id_key = key
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &key[8..])));
    config.min_reset_interval(RESET_INTERVAL);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
    config
}

async fn accept_all(
    endpoint: quinn::Endpoint,
    gate: Arc<Gate>,
    (counters, revocations): (Arc<Counters>, Revocations),
    ready: mpsc::Sender<Session>,
) {
    while let Some(incoming) = endpoint.accept().await {
        let from = incoming.remote_address().ip();
        let proven = incoming.remote_address_validated();
        if gate.crowded(from) && !proven && incoming.may_retry() {
            counters.retried();
            // Cannot fail: it may retry.
            let _ = incoming.retry();
            continue;
        }
        let now = gate.enter(from);
        let later = match now {
            None if proven => gate.line_up(from),
            _ => None,
        };
        let session_permit = gate.sessions.clone().try_acquire_owned();
        let (Some(session_permit), true) = (session_permit.ok(), now.is_some() || later.is_some())
        else {
            counters.full();
            incoming.refuse();
            continue;
        };
        let (gate, counters, ready) = (gate.clone(), counters.clone(), ready.clone());
        let revocations = revocations.clone();
        tokio::spawn(async move {
            let entry = match now {
                Some(entry) => Some(entry),
                None => timeout(TURN_TIMEOUT, gate.turn(from)).await.ok().flatten(),
            };
            drop(later);
            let Some(entry) = entry else {
                counters.full();
                incoming.refuse();
                return;
            };
            if let Some(connection) = shake_hands(incoming, &counters).await {
                drop(entry);
                let admission = Some((session_permit, gate.seats.clone()));
                if let Ok(session) = Session::new(connection, counters, &revocations, admission) {
                    // Nobody waits any more: the session is dropped and so closed.
                    let _ = ready.send(session).await;
                }
            }
        });
    }
}

async fn shake_hands(incoming: quinn::Incoming, counters: &Counters) -> Option<quinn::Connection> {
    let remote = incoming.remote_address();
    match timeout(HANDSHAKE_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            let reason = CloseReason::from_quinn(&error);
            counters.ended(&reason);
            tracing::warn!(%remote, %reason, "a handshake failed");
            None
        }
        Err(_) => {
            counters.handshake_timed_out();
            None
        }
    }
}

fn client_config(identity: &Identity) -> Result<quinn::ClientConfig, TransportError> {
    let crypto = QuicClientConfig::try_from(identity.client())
        .map_err(|error| TransportError::Misuse(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport_config(Some(KEEP_ALIVE)));
    Ok(config)
}

/// Whom a dialler expects to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The role it must have.
    pub role: PeerRole,
    /// The name it must have; `None` for any.
    pub name: Option<String>,
    /// The region it must have; `None` for any.
    pub region: Option<String>,
}

impl Expect {
    /// Any federator of the trust domain.
    pub fn any_federator() -> Self {
        Self {
            role: PeerRole::Federator,
            name: None,
            region: None,
        }
    }

    /// The federator of this name.
    pub fn federator(name: &str) -> Self {
        Self {
            role: PeerRole::Federator,
            name: Some(name.into()),
            region: None,
        }
    }

    /// The same, and of this region.
    pub fn of_region(self, region: &str) -> Self {
        Self {
            region: Some(region.into()),
            ..self
        }
    }
}

/// Dials sessions from one UDP socket.
#[derive(Clone, Debug)]
pub struct Dialler {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    counters: Arc<Counters>,
    revocations: Revocations,
}

impl Dialler {
    /// Binds a socket for both address families, or for IPv4 where there is no IPv6.
    pub fn socket() -> Result<UdpSocket, TransportError> {
        socket((Ipv6Addr::UNSPECIFIED, 0).into())
            .or_else(|_| socket((Ipv4Addr::UNSPECIFIED, 0).into()))
            .map_err(|error| TransportError::Misuse(error.to_string()))
    }

    /// With a socket of its own. Must be called within a tokio runtime.
    pub fn new(identity: &Identity) -> Result<Self, TransportError> {
        Self::with_socket(identity, Self::socket()?)
    }

    /// With this socket, as [`Dialler::socket`] binds it. Must be called within a tokio runtime.
    pub fn with_socket(identity: &Identity, socket: UdpSocket) -> Result<Self, TransportError> {
        let config = client_config(identity)?;
        let endpoint = quinn::Endpoint::new(
            EndpointConfig::default(),
            None,
            socket,
            Arc::new(TokioRuntime),
        )
        .map_err(|error| TransportError::Misuse(error.to_string()))?;
        Ok(Self {
            endpoint,
            config,
            counters: Arc::default(),
            revocations: identity.revocations().clone(),
        })
    }

    /// Dials as somebody else from the same socket: for programs that are many (load generators).
    pub fn with_identity(&self, identity: &Identity) -> Result<Self, TransportError> {
        Ok(Self {
            endpoint: self.endpoint.clone(),
            config: client_config(identity)?,
            counters: self.counters.clone(),
            revocations: identity.revocations().clone(),
        })
    }

    /// Dials `host:port` or `address:port` (every address that a name has, in turn) and checks who answers.
    ///
    /// The peer judges our certificate after this returns: when it refuses it, the first receive gives
    /// [`CloseReason::Refused`].
    pub async fn dial(&self, address: &str, expected: &Expect) -> Result<Session, TransportError> {
        let unreachable = |detail: String| TransportError::Unreachable {
            address: address.into(),
            detail,
        };
        let found = tokio::net::lookup_host(address)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let mut last = unreachable("the name has no address".into());
        for remote in found {
            match self.connect(address, remote).await {
                Ok(connection) => return self.check(connection, expected),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// What happened to sessions and handshakes.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Waits a moment until peers have heard that sessions were closed: before the program ends.
    pub async fn wait_idle(&self) {
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }

    async fn connect(
        &self,
        address: &str,
        remote: SocketAddr,
    ) -> Result<quinn::Connection, TransportError> {
        let unreachable = |detail: String| TransportError::Unreachable {
            address: address.into(),
            detail,
        };
        // The name is sent as SNI and plays no part in the verification.
        let connecting = self
            .endpoint
            .connect_with(self.config.clone(), remote, "weft")
            .map_err(|error| unreachable(error.to_string()))?;
        match timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => {
                let reason = CloseReason::from_quinn(&error);
                self.counters.ended(&reason);
                Err(match reason {
                    CloseReason::Refused(_) => TransportError::Closed(reason),
                    _ => unreachable(reason.to_string()),
                })
            }
            Err(_) => {
                self.counters.handshake_timed_out();
                Err(unreachable(format!(
                    "no answer within {HANDSHAKE_TIMEOUT:?}"
                )))
            }
        }
    }

    fn check(
        &self,
        connection: quinn::Connection,
        expected: &Expect,
    ) -> Result<Session, TransportError> {
        let session = Session::new(connection, self.counters.clone(), &self.revocations, None)?;
        session.require_role(&[expected.role])?;
        if let Some(name) = &expected.name {
            session.require_name(name)?;
        }
        if let Some(region) = &expected.region {
            session.require_region(region)?;
        }
        Ok(session)
    }
}
