//! Brings what is in the spool to the federator: in order, again until acknowledged.
//!
//! [`machine`] decides (pure: time and randomness are passed in); [`Uplink::run`] dials, sends and receives.

pub mod machine;

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use weft_transport::{
    Dialler, Expect, Fault, FrameReceiver, FrameSender, Identity, Session, TransportError,
};
use weft_wire::cluster::ClusterBatch;
use weft_wire::control::{Ack, AgentHello, AgentStatus, AgentWelcome, CloseCode, PROTOCOL_VERSION};
use weft_wire::{AgentInfo, Timestamp};

use crate::cluster::ClusterFeed;
use crate::join::renew::keep_renewed;
use crate::spool::shared::SharedSpool;
use crate::spool::{Entry, SpoolError};
use machine::{Machine, Misbehaviour, Step};

/// Longest wait for an answer to the hello, and for the federator to read.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(20);
/// Highest sequence number that a clock in microseconds and the batches since can have reached.
const MAX_SEQ: u64 = u64::MAX >> 1;
/// How often the federator hears how the agent is, and the spool is flushed to the disk.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(3);

/// What the uplink needs from the rest of the agent.
pub struct Uplink {
    /// `host:port` of the home federator.
    pub federator: String,
    /// Certificate and key.
    pub identity: Identity,
    /// What it dials from.
    pub socket: UdpSocket,
    /// What the agent says of itself.
    pub agent: AgentInfo,
    /// Where batches wait.
    pub spool: SharedSpool,
    /// The counters to report; the spool's own are filled in.
    pub status: Arc<dyn Fn() -> AgentStatus + Send + Sync>,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
    /// Seeds the jitter of the waits between attempts: different on every host.
    pub seed: u64,
    /// Told whether a session stands.
    pub connected: watch::Sender<bool>,
    /// What is told of the cluster, if this agent may be the one that does.
    pub cluster: Option<tokio::sync::Mutex<ClusterFeed>>,
}

/// Why a session ended, as the log shows it.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the spool cannot be read: {0}")]
    Spool(#[from] SpoolError),
}

struct Link {
    session: Session,
    send: FrameSender,
    receive: FrameReceiver,
}

impl Uplink {
    /// Runs until `stop` says true (or its sender is gone), then closes the session.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let dialler = loop {
            match self.dialler() {
                Ok(dialler) => break dialler,
                // No sockets or memory: may pass.
                Err(error) => tracing::error!(%error, "the uplink has no socket"),
            }
            tokio::select! {
                () = sleep(PEER_TIMEOUT) => {}
                () = stopped(&mut stop) => return,
            }
        };
        tokio::select! {
            () = self.keep_connected(&dialler) => {}
            () = self.identity.follow() => {}
            () = stopped(&mut stop) => {}
        }
        dialler.wait_idle().await;
    }

    fn dialler(&self) -> Result<Dialler, TransportError> {
        let socket = self.socket.try_clone();
        let socket = socket.map_err(|error| TransportError::Misuse(error.to_string()))?;
        Dialler::with_socket(&self.identity, socket)
    }

    async fn keep_connected(&self, dialler: &Dialler) {
        let start = Instant::now();
        let mut machine = Machine::new(self.seed);
        loop {
            match machine.step(start.elapsed()) {
                Step::Wait(time) => sleep(time).await,
                Step::Dial => {
                    let ended = self.attempt(dialler, &mut machine, start).await;
                    self.skip_refused(&mut machine, &ended);
                    machine.ended(start.elapsed());
                    self.connected.send_replace(false);
                    log_end(&self.federator, &ended);
                }
            }
        }
    }

    /// What the federator will never take must not keep back what comes after it.
    fn skip_refused(&self, machine: &mut Machine, ended: &Ended) {
        let Ended::Transport(TransportError::Closed(reason)) = ended else {
            return;
        };
        let version = match reason.peer_code() {
            Some(CloseCode::Version) => true,
            Some(CloseCode::Malformed | CloseCode::Oversized) => false,
            _ => return,
        };
        let Some(seq) = machine.refused(version) else {
            return;
        };
        let mut spool = self.spool.lock();
        let before = spool.totals().rows_refused;
        match spool.skip(seq) {
            Ok(Some(rows)) if before == 0 => tracing::error!(
                seq, rows, %reason,
                "the federator refuses a batch whenever it comes: it is skipped, and so are further ones, without a word \
                 (counter spool_refused). Was one of the two upgraded without the other?"
            ),
            Ok(Some(rows)) => tracing::debug!(seq, rows, %reason, "a refused batch is skipped"),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, seq, "a refused batch cannot be skipped"),
        }
    }

    /// One session, from dialling to its end.
    async fn attempt(&self, dialler: &Dialler, machine: &mut Machine, start: Instant) -> Ended {
        match self.connect(dialler).await {
            Ok((link, welcome)) => {
                tracing::info!(federator = %welcome.federator, durable_seq = welcome.durable_seq, "connected");
                self.connected.send_replace(true);
                let (session, served) = (
                    link.session.clone(),
                    self.serve(link, &welcome, machine, start),
                );
                let renewing = keep_renewed(&self.identity, &session, self.clock, self.seed);
                let served = tokio::select! {
                    served = served => served,
                    never = renewing => match never {},
                };
                if let Some(feed) = &self.cluster {
                    feed.lock().await.listening.send_replace(None);
                }
                match served {
                    Ok(never) => match never {},
                    Err(ended) => {
                        session.close(CloseCode::Done, "the uplink starts again");
                        ended
                    }
                }
            }
            Err(error) => error.into(),
        }
    }

    async fn connect(&self, dialler: &Dialler) -> Result<(Link, AgentWelcome), TransportError> {
        let session = dialler
            .dial(&self.federator, &Expect::any_federator())
            .await?;
        let (mut send, mut receive) = session.open_bi().await?;
        let hello = AgentHello {
            version: PROTOCOL_VERSION,
            agent: self.agent.clone(),
            now: (self.clock)(),
        };
        send.send(&hello, PEER_TIMEOUT).await?;
        let welcome = receive.expect(PEER_TIMEOUT).await?;
        Ok((
            Link {
                session,
                send,
                receive,
            },
            welcome,
        ))
    }

    async fn serve(
        &self,
        mut link: Link,
        welcome: &AgentWelcome,
        machine: &mut Machine,
        start: Instant,
    ) -> Result<std::convert::Infallible, Ended> {
        self.resume(&link.session, welcome)?;
        machine.connected(start.elapsed(), welcome.durable_seq);
        if !machine.careful() {
            link.send.send(&self.status(), PEER_TIMEOUT).await?;
        }
        let mut feed = match &self.cluster {
            Some(feed) => Some(feed.lock().await),
            None => None,
        };
        let mut told_seq = 0;
        if let Some(feed) = &feed {
            // Unlike any before.
            let session = start.elapsed().as_nanos() as u64;
            feed.listening.send_replace(Some(session));
        }
        let mut status = interval(STATUS_INTERVAL);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while machine.may_send() {
                let Some(entry) = self.spool.lock().next_entry()? else {
                    break;
                };
                self.send(&mut link.send, machine, start, &entry).await?;
            }
            tokio::select! {
                received = link.receive.recv() => {
                    let frame = received?.ok_or(TransportError::StreamEnded)?;
                    let ack: Ack = link.session.decode(&frame)?;
                    self.acknowledged(&link.session, machine, start, ack)?;
                }
                _ = status.tick() => {
                    if !machine.probing() {
                        link.send.send(&self.status(), PEER_TIMEOUT).await?;
                    }
                    self.sync().await?;
                    if machine.stalled(start.elapsed()) {
                        link.session.close(CloseCode::Limit, "no acknowledgement came");
                    }
                }
                batch = next(feed.as_deref_mut()), if !machine.probing() => {
                    told_seq += 1;
                    link.send.send_cluster(told_seq, &batch, PEER_TIMEOUT).await?;
                }
                () = self.spool.appended(), if machine.may_send() => {}
            }
        }
    }

    /// A disk that hangs holds up the session, and nobody else.
    async fn sync(&self) -> Result<(), SpoolError> {
        let spool = self.spool.clone();
        let synced = tokio::task::spawn_blocking(move || spool.sync()).await;
        // It is only ever cancelled when the program ends.
        synced.unwrap_or(Ok(()))
    }

    /// Brings the spool to where the federator is.
    fn resume(&self, session: &Session, welcome: &AgentWelcome) -> Result<(), Ended> {
        let durable_seq = welcome.durable_seq;
        if durable_seq > MAX_SEQ {
            let detail = format!("it has batch {durable_seq}, which nobody can have sent");
            return Err(session.misbehaved(CloseCode::Unexpected, detail).into());
        }
        let mut spool = self.spool.lock();
        if !spool.may_have_given(durable_seq) {
            tracing::warn!(
                durable_seq,
                "the federator has batches that the spool never gave; what waits gets higher numbers"
            );
            spool.renumber(durable_seq)?;
        }
        spool.acknowledge(durable_seq)?;
        spool.rewind();
        Ok(())
    }

    async fn send(
        &self,
        send: &mut FrameSender,
        machine: &mut Machine,
        start: Instant,
        entry: &Entry,
    ) -> Result<(), TransportError> {
        machine.sent(start.elapsed(), entry.seq, entry.batch.len());
        if entry.lookups {
            send.send_lookups(entry.seq, &entry.batch, PEER_TIMEOUT)
                .await
        } else {
            send.send_batch(entry.seq, &entry.batch, PEER_TIMEOUT).await
        }
    }

    fn acknowledged(
        &self,
        session: &Session,
        machine: &mut Machine,
        start: Instant,
        ack: Ack,
    ) -> Result<(), Ended> {
        match machine.acknowledged(start.elapsed(), ack.seq) {
            Ok(()) => Ok(self.spool.lock().acknowledge(ack.seq)?),
            Err(Misbehaviour::NeverSent) => {
                let detail = format!("it acknowledged batch {}, which was not sent", ack.seq);
                Err(session.misbehaved(CloseCode::Unexpected, detail).into())
            }
        }
    }

    fn status(&self) -> AgentStatus {
        let totals = self.spool.lock().totals();
        let mut status = (self.status)();
        status.now = (self.clock)();
        status.spool_bytes = totals.bytes;
        status.spool_dropped = totals.rows_dropped + totals.rows_refused;
        status
    }
}

/// What is told of the cluster next; never, where nothing is.
async fn next(feed: Option<&mut ClusterFeed>) -> ClusterBatch {
    let told = match feed {
        Some(feed) => feed.next().await,
        None => None,
    };
    match told {
        Some(batch) => batch,
        None => std::future::pending().await,
    }
}

fn log_end(federator: &str, ended: &Ended) {
    match ended {
        Ended::Transport(error) if error.fault() == Fault::Network => {
            tracing::info!(federator, %error, "not connected; batches wait in the spool");
        }
        ended => {
            tracing::error!(federator, error = %ended, "not connected; batches wait in the spool")
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: the program ends.
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests;
