//! Sessions: one QUIC connection with a peer whose name is proven, and framed streams on it.

mod datagrams;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;
use weft_wire::cluster::ClusterBatch;
use weft_wire::codec::{self, DecodeError, Message};
use weft_wire::control::{CloseCode, PeerMessage};
use weft_wire::frame::{self, Decoder, Frame};
use weft_wire::{AgentKey, Timestamp};

use crate::counters::Counters;
use crate::error::{CloseReason, MAX_REASON_CHARS, TransportError};
use crate::holder::{Holder, holder};
use crate::identity::{PeerRole, SpiffeId, days_between};
use crate::revocations::Revocations;
use crate::seats::Seats;

pub use self::datagrams::DATAGRAM_BUFFER_BYTES;

/// What a peer hears whose certificate's time is over.
const EXPIRED: &[u8] = b"the certificate has ended";
/// What a peer hears who is shut out while its session stands.
const REVOKED: &[u8] = b"the certificate is revoked";
/// What a peer hears that has as many sessions as it may.
const TOO_MANY: &[u8] = b"too many sessions of this name";
/// Longest sleep at a stretch until a certificate ends: clocks are set, and machines suspended.
const CLOCK_LOOK: Duration = Duration::from_secs(600);

/// Waits for a point in time by the system's clock.
async fn until(end: Timestamp) {
    loop {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let end = Duration::from_micros(end.0.max(0).unsigned_abs());
        let Some(left) = end.checked_sub(now).filter(|left| !left.is_zero()) else {
            return;
        };
        tokio::time::sleep(left.min(CLOCK_LOOK)).await;
    }
}

/// A session with a peer. Cheap to clone; closed with [`CloseCode::Done`] when the last clone and the last stream are
/// dropped.
#[derive(Clone, Debug)]
pub struct Session {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: quinn::Connection,
    peer: SpiffeId,
    /// What the peer has proven; moves on when it is given another certificate on this session.
    proven: watch::Sender<Proven>,
    counters: Arc<Counters>,
    closed: AtomicBool,
}

/// Until when a session's peer is who it says, and by which certificates.
#[derive(Debug)]
struct Proven {
    not_after: Timestamp,
    /// Of the first certificate, and of the latest.
    serials: [String; 2],
}

/// Ends a session whose peer's certificate ends or is revoked.
struct Watch {
    connection: quinn::Connection,
    peer: SpiffeId,
    proven: watch::Receiver<Proven>,
    revocations: Revocations,
    counters: Arc<Counters>,
}

impl Watch {
    async fn run(mut self) -> quinn::ConnectionError {
        let mut changes = self.revocations.changes();
        loop {
            let (end, revoked) = {
                let proven = self.proven.borrow_and_update();
                let [first, latest] = &proven.serials;
                (
                    proven.not_after,
                    self.revocations.hit(&self.peer, &[first, latest]),
                )
            };
            if revoked {
                return self.close(REVOKED).await;
            }
            tokio::select! {
                end = self.connection.closed() => return end,
                () = until(end) => return self.close(EXPIRED).await,
                // Without its sender nobody can hold the session any more: it is being closed.
                changed = self.proven.changed() => if changed.is_err() {
                    return self.connection.closed().await;
                },
                _ = changes.changed() => {}
            }
        }
    }

    async fn close(&self, why: &[u8]) -> quinn::ConnectionError {
        // Closed by another before: then that counts.
        if self.connection.close_reason().is_none() {
            self.counters.closed_here(CloseCode::Identity);
            self.connection
                .close((CloseCode::Identity as u32).into(), why);
        }
        self.connection.closed().await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.connection.close_reason().is_none() && !self.closed.swap(true, Relaxed) {
            self.counters.closed_here(CloseCode::Done);
            self.connection.close((CloseCode::Done as u32).into(), b"");
        }
    }
}

impl Session {
    /// Takes over an established connection. `admission` is given back when it has ended.
    pub(crate) fn new(
        connection: quinn::Connection,
        counters: Arc<Counters>,
        revocations: &Revocations,
        admission: Option<(OwnedSemaphorePermit, Arc<Seats>)>,
    ) -> Result<Self, TransportError> {
        let certificates = connection
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        let leaf = certificates.as_ref().and_then(|chain| chain.first());
        // The verifier has let pass only what has a name; this is a second line.
        let holder = leaf
            .ok_or_else(|| "no certificate".to_owned())
            .and_then(holder)
            .map_err(|detail| {
                connection.close(
                    (CloseCode::Identity as u32).into(),
                    b"no name in the certificate",
                );
                counters.closed_here(CloseCode::Identity);
                TransportError::PeerMisbehaved {
                    code: CloseCode::Identity,
                    detail,
                }
            })?;
        let seat = match &admission {
            Some((_, seats)) => {
                let Some(seat) = seats.enter(&holder.id) else {
                    connection.close((CloseCode::Limit as u32).into(), TOO_MANY);
                    counters.closed_here(CloseCode::Limit);
                    return Err(TransportError::PeerMisbehaved {
                        code: CloseCode::Limit,
                        detail: format!("{} has too many sessions", holder.id),
                    });
                };
                Some(seat)
            }
            None => None,
        };
        counters.established();
        let Holder {
            id,
            not_after,
            serial,
            ..
        } = holder;
        let proven = watch::Sender::new(Proven {
            not_after,
            serials: [serial.clone(), serial],
        });
        let watch = Watch {
            connection: connection.clone(),
            peer: id.clone(),
            proven: proven.subscribe(),
            revocations: revocations.clone(),
            counters: counters.clone(),
        };
        let totals = counters.clone();
        tokio::spawn(async move {
            let end = watch.run().await;
            totals.ended(&CloseReason::from_quinn(&end));
            drop((admission, seat));
        });
        let inner = Inner {
            connection,
            peer: id,
            proven,
            counters,
            closed: AtomicBool::new(false),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Whether this is the very same session.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The peer's proven name.
    pub fn peer(&self) -> &SpiffeId {
        &self.inner.peer
    }

    /// The key that belongs to the peer's name.
    pub fn peer_key(&self) -> AgentKey {
        self.inner.peer.key()
    }

    /// End of the peer's certificate's validity; of the latest, when it was given another one on this session.
    pub fn peer_not_after(&self) -> Timestamp {
        self.inner.proven.borrow().not_after
    }

    /// The peer was given another certificate over this session, so to nobody else: the session lives as long as that.
    pub fn peer_renewed(&self, not_after: Timestamp, serial: &str) {
        self.inner.proven.send_modify(|proven| {
            proven.not_after = proven.not_after.max(not_after);
            proven.serials[1] = serial.to_owned();
        });
    }

    /// Whole days until the peer's certificate ends; negative when it has.
    pub fn peer_days_left(&self, now: Timestamp) -> i64 {
        days_between(now, self.peer_not_after())
    }

    /// Smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.inner.connection.rtt()
    }

    /// The peer's address; IPv4 as such.
    pub fn remote_addr(&self) -> SocketAddr {
        let address = self.inner.connection.remote_address();
        SocketAddr::new(canonical(address.ip()), address.port())
    }

    /// Bytes of UDP payload sent and received so far, and in how many datagrams each: what the session costs.
    pub fn udp_totals(&self) -> UdpTotals {
        let stats = self.inner.connection.stats();
        UdpTotals {
            bytes_sent: stats.udp_tx.bytes,
            datagrams_sent: stats.udp_tx.datagrams,
            bytes_received: stats.udp_rx.bytes,
            datagrams_received: stats.udp_rx.datagrams,
        }
    }

    /// Closes the session and tells the peer why. The first call counts; bytes not yet acknowledged are lost.
    pub fn close(&self, code: CloseCode, reason: &str) {
        if self.inner.connection.close_reason().is_none() && !self.inner.closed.swap(true, Relaxed)
        {
            self.inner.counters.closed_here(code);
            let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
            self.inner
                .connection
                .close((code as u32).into(), reason.as_bytes());
        }
    }

    /// Waits for the end of the session.
    pub async fn closed(&self) -> CloseReason {
        CloseReason::from_quinn(&self.inner.connection.closed().await)
    }

    /// How the session ended, if it did.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.inner
            .connection
            .close_reason()
            .map(|error| CloseReason::from_quinn(&error))
    }

    /// Opens a stream. The peer learns of it with the first frame. Waits while [`crate::endpoint::MAX_STREAMS`] are open.
    pub async fn open_bi(&self) -> Result<(FrameSender, FrameReceiver), TransportError> {
        let (send, receive) = self.inner.connection.open_bi().await.map_err(closed)?;
        Ok(self.framed(send, receive))
    }

    /// Waits for a stream that the peer opens.
    pub async fn accept_bi(&self) -> Result<(FrameSender, FrameReceiver), TransportError> {
        let (send, receive) = self.inner.connection.accept_bi().await.map_err(closed)?;
        Ok(self.framed(send, receive))
    }

    /// Demands a role of the peer; another one is told [`CloseCode::Role`].
    pub fn require_role(&self, allowed: &[PeerRole]) -> Result<(), TransportError> {
        if allowed.contains(&self.peer().role()) {
            return Ok(());
        }
        Err(self.misbehaved(CloseCode::Role, format!("{} may not do this", self.peer())))
    }

    /// Demands that what the peer calls itself is what its certificate says; otherwise it is told
    /// [`CloseCode::Identity`].
    pub fn require_name(&self, claimed: &str) -> Result<(), TransportError> {
        if claimed == self.peer().name() {
            return Ok(());
        }
        Err(self.misbehaved(
            CloseCode::Identity,
            format!("{} claims to be {claimed:?}", self.peer()),
        ))
    }

    /// Demands that the peer is of this region; otherwise it is told [`CloseCode::Identity`].
    pub fn require_region(&self, region: &str) -> Result<(), TransportError> {
        if region == self.peer().region() {
            return Ok(());
        }
        Err(self.misbehaved(
            CloseCode::Identity,
            format!("{} is not of region {region:?}", self.peer()),
        ))
    }

    /// Closes the session because of what the peer did, and gives the error to return.
    pub fn misbehaved(&self, code: CloseCode, detail: impl Into<String>) -> TransportError {
        let detail = detail.into();
        self.close(code, &detail);
        TransportError::PeerMisbehaved { code, detail }
    }

    /// Decodes a frame. When that fails the session is closed with the code that fits.
    pub fn decode<M: Message>(&self, frame: &Frame) -> Result<M, TransportError> {
        codec::decode(frame).map_err(|error| self.undecodable(&error))
    }

    /// Closes the session because of a frame that could not be decoded, and gives the error to return.
    pub fn undecodable(&self, error: &DecodeError) -> TransportError {
        self.misbehaved(error.close_code(), error.to_string())
    }

    fn framed(
        &self,
        send: quinn::SendStream,
        receive: quinn::RecvStream,
    ) -> (FrameSender, FrameReceiver) {
        let sender = FrameSender {
            session: self.clone(),
            stream: send,
            buffer: Vec::new(),
        };
        (
            sender,
            FrameReceiver {
                session: self.clone(),
                stream: receive,
                decoder: Decoder::new(),
            },
        )
    }
}

/// What a session has cost on the wire, UDP payloads only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpTotals {
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Datagrams received.
    pub datagrams_received: u64,
}

fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

fn closed(error: quinn::ConnectionError) -> TransportError {
    TransportError::Closed(CloseReason::from_quinn(&error))
}

/// The sending half of a stream.
#[derive(Debug)]
pub struct FrameSender {
    session: Session,
    stream: quinn::SendStream,
    buffer: Vec<u8>,
}

impl FrameSender {
    /// The session the stream is on.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Sends a message within a deadline. When the peer does not read in time the session is closed with
    /// [`CloseCode::Limit`].
    pub async fn send<M: Message>(
        &mut self,
        message: &M,
        within: Duration,
    ) -> Result<(), TransportError> {
        self.write_frame(within, |out| codec::append(out, message))
            .await
    }

    /// Sends an encoded batch; see [`FrameSender::send`].
    pub async fn send_batch(
        &mut self,
        seq: u64,
        batch: &[u8],
        within: Duration,
    ) -> Result<(), TransportError> {
        self.write_frame(within, |out| codec::append_batch(out, seq, batch))
            .await
    }

    /// Sends encoded lookups; see [`FrameSender::send`].
    pub async fn send_lookups(
        &mut self,
        seq: u64,
        batch: &[u8],
        within: Duration,
    ) -> Result<(), TransportError> {
        self.write_frame(within, |out| codec::append_lookups(out, seq, batch))
            .await
    }

    /// Sends what happened in a cluster; see [`FrameSender::send`].
    pub async fn send_cluster(
        &mut self,
        seq: u64,
        batch: &ClusterBatch,
        within: Duration,
    ) -> Result<(), TransportError> {
        self.write_frame(within, |out| codec::append_cluster(out, seq, batch))
            .await
    }

    /// Sends a message between federators; see [`FrameSender::send`].
    pub async fn send_peer(
        &mut self,
        seq: u64,
        message: &PeerMessage,
        within: Duration,
    ) -> Result<(), TransportError> {
        self.write_frame(within, |out| codec::append_peer(out, seq, message))
            .await
    }

    /// Sends a message of the membership; see [`FrameSender::send`].
    pub async fn send_member(
        &mut self,
        message: &[u8],
        within: Duration,
    ) -> Result<(), TransportError> {
        self.write_frame(within, |out| {
            frame::append(out, frame::Kind::Member, &[message])
        })
        .await
    }

    /// Sends bytes that hold whole frames already; see [`FrameSender::send`].
    pub async fn send_bytes(
        &mut self,
        frames: &[u8],
        within: Duration,
    ) -> Result<(), TransportError> {
        write(&self.session, &mut self.stream, frames, within).await
    }

    /// Says that nothing more will be sent. What was sent is still delivered.
    pub fn finish(&mut self) {
        // Fails only when it was finished or reset before.
        let _ = self.stream.finish();
    }

    /// Waits until the peer has acknowledged everything after [`FrameSender::finish`], or has stopped reading: before
    /// a session is closed after an answer.
    pub async fn delivered(&mut self, within: Duration) -> Result<(), TransportError> {
        match timeout(within, self.stream.stopped()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(TransportError::TimedOut {
                what: "delivering",
                after: within,
            }),
        }
    }

    /// Sends what `append` writes.
    async fn write_frame<E: std::fmt::Display>(
        &mut self,
        within: Duration,
        append: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), TransportError> {
        self.buffer.clear();
        append(&mut self.buffer).map_err(|error| TransportError::Misuse(error.to_string()))?;
        write(&self.session, &mut self.stream, &self.buffer, within).await
    }
}

async fn write(
    session: &Session,
    stream: &mut quinn::SendStream,
    bytes: &[u8],
    within: Duration,
) -> Result<(), TransportError> {
    use quinn::WriteError;
    match timeout(within, stream.write_all(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(WriteError::Stopped(_))) => Err(TransportError::StreamEnded),
        Ok(Err(WriteError::ConnectionLost(error))) => Err(closed(error)),
        Ok(Err(error @ (WriteError::ClosedStream | WriteError::ZeroRttRejected))) => {
            Err(TransportError::Misuse(error.to_string()))
        }
        Err(_) => {
            session.close(CloseCode::Limit, "the peer does not read");
            Err(TransportError::TimedOut {
                what: "sending",
                after: within,
            })
        }
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub struct FrameReceiver {
    session: Session,
    stream: quinn::RecvStream,
    decoder: Decoder,
}

impl FrameReceiver {
    /// The session the stream is on.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The next frame; `None` when the peer finished the stream after a whole frame. A bad frame closes the session
    /// with the code that fits. May be cancelled at any time without loss.
    pub async fn recv(&mut self) -> Result<Option<Frame>, TransportError> {
        use quinn::ReadError;
        loop {
            match self.decoder.poll() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(error) => {
                    return Err(self
                        .session
                        .misbehaved(error.close_code(), error.to_string()));
                }
            }
            match self.stream.read_chunk(Decoder::PUSH_LIMIT, true).await {
                Ok(Some(chunk)) => self.decoder.push(&chunk.bytes),
                Ok(None) if self.decoder.is_partial() => {
                    return Err(self
                        .session
                        .misbehaved(CloseCode::Malformed, "the stream ends within a frame"));
                }
                Ok(None) => return Ok(None),
                Err(ReadError::ConnectionLost(error)) => return Err(closed(error)),
                Err(ReadError::Reset(_)) => return Err(TransportError::StreamEnded),
                Err(error) => return Err(TransportError::Misuse(error.to_string())),
            }
        }
    }

    /// As [`FrameReceiver::recv`], with a deadline.
    pub async fn recv_within(&mut self, within: Duration) -> Result<Option<Frame>, TransportError> {
        match timeout(within, self.recv()).await {
            Ok(received) => received,
            Err(_) => Err(TransportError::TimedOut {
                what: "waiting for the peer",
                after: within,
            }),
        }
    }

    /// The next frame, which must be this message. Another kind, a message that cannot be decoded or another protocol
    /// version closes the session with the code that fits.
    pub async fn expect<M: Message>(&mut self, within: Duration) -> Result<M, TransportError> {
        let frame = self
            .recv_within(within)
            .await?
            .ok_or(TransportError::StreamEnded)?;
        self.session.decode(&frame)
    }
}
