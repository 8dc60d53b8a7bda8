//! Brings what is in the spools to the federators: in order, again until acknowledged.
//!
//! [`machine`] decides when to dial and send, [`region`] where the agent belongs (both pure: time and randomness are passed in);
//! [`Uplink::run`] dials, sends and receives. There is one session with the home, and one with each earlier home for as long as
//! there is something for it: connections stay with the federator that was the home when they were opened.

pub mod machine;
pub mod region;

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
use weft_wire::federation;
use weft_wire::frame::{Frame, Kind};
use weft_wire::{AgentInfo, Timestamp};

use crate::cluster::ClusterFeed;
use crate::join::renew::keep_renewed;
use crate::spool::homes::{Home, Homes};
use crate::spool::shared::SharedSpool;
use crate::spool::{Entry, SpoolError};
use machine::{Machine, Misbehaviour, Step};
use region::Region;

/// Longest wait for an answer to the hello, and for the federator to read.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(20);
/// Highest sequence number that a clock in microseconds and the batches since can have reached.
const MAX_SEQ: u64 = u64::MAX >> 1;
/// How often the federator hears how the agent is, and the spool is flushed to the disk.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(3);

/// An earlier home is dialled when something waits for it; it is looked so often whether that is so.
const FORMER_INTERVAL: Duration = Duration::from_secs(1);
/// A session with an earlier home ends when nothing was left for so long.
const FORMER_IDLE: Duration = Duration::from_secs(30);
/// Longest wait for a federator that the agent may move to.
const TRY_TIMEOUT: Duration = Duration::from_secs(3);

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
    #[error("this agent belongs to {name} at {address}")]
    Elsewhere { name: String, address: String },
    #[error("nothing is left for this earlier home")]
    Delivered,
}

/// Which session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    /// The home.
    Present(Home),
    /// An earlier one, for what was opened while it was home.
    Former(Home),
}

impl With {
    fn home(self) -> Home {
        match self {
            Self::Present(home) | Self::Former(home) => home,
        }
    }
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
        let uplink = Arc::new(self);
        tokio::select! {
            () = uplink.clone().keep_delivering(&dialler) => {}
            () = uplink.identity.follow() => {}
            () = stopped(&mut stop) => {}
        }
        dialler.wait_idle().await;
    }

    /// Reports to the home, and to earlier ones what is theirs; begins again when the agent has moved.
    async fn keep_delivering(self: Arc<Self>, dialler: &Dialler) {
        let start = Instant::now();
        let mut region = Region::default();
        loop {
            let homes = self.spool.homes();
            let present = homes.current();
            // Ended when dropped.
            let mut former = tokio::task::JoinSet::new();
            for home in (0..homes.known.len()).filter(|home| *home != present) {
                let (uplink, dialler) = (self.clone(), dialler.clone());
                former.spawn(async move { uplink.deliver_to(&dialler, home).await });
            }
            let (name, address) = self
                .keep_connected(dialler, present, &mut region, start)
                .await;
            match self.spool.move_to(&name, &address, (self.clock)().0) {
                Ok(true) => tracing::info!(
                    federator = name,
                    address,
                    "new connections are reported to another federator of the region"
                ),
                Ok(false) => {
                    tracing::warn!(federator = name, "too many homes are remembered: not moved");
                    region.failed(&name, start.elapsed());
                }
                Err(error) => {
                    tracing::error!(%error, federator = name, "not moved");
                    region.failed(&name, start.elapsed());
                }
            }
        }
    }

    /// Delivers what belongs to an earlier home, whenever there is something.
    async fn deliver_to(&self, dialler: &Dialler, home: Home) {
        let start = Instant::now();
        let mut machine = Machine::new(self.seed ^ home as u64);
        loop {
            if !self.spool.lock_of(home).has_rows() {
                sleep(FORMER_INTERVAL).await;
                continue;
            }
            match machine.step(start.elapsed()) {
                Step::Wait(time) => sleep(time).await,
                Step::Dial => {
                    let with = With::Former(home);
                    let mut region = Region::default();
                    let ended = self
                        .attempt(dialler, with, &mut region, &mut machine, start)
                        .await;
                    self.skip_refused(home, &mut machine, &ended);
                    machine.ended(start.elapsed());
                    let federator = self.spool.homes().name(home).to_owned();
                    tracing::debug!(federator, %ended, "session with an earlier home ended");
                }
            }
        }
    }

    fn dialler(&self) -> Result<Dialler, TransportError> {
        let socket = self.socket.try_clone();
        let socket = socket.map_err(|error| TransportError::Misuse(error.to_string()))?;
        Dialler::with_socket(&self.identity, socket)
    }

    /// Reports to the home until the agent belongs elsewhere: name and address of where.
    async fn keep_connected(
        &self,
        dialler: &Dialler,
        home: Home,
        region: &mut Region,
        start: Instant,
    ) -> (String, String) {
        let mut machine = Machine::new(self.seed);
        region.lost(start.elapsed());
        loop {
            match machine.step(start.elapsed()) {
                Step::Wait(time) => sleep(time).await,
                Step::Dial => {
                    let with = With::Present(home);
                    let ended = self
                        .attempt(dialler, with, region, &mut machine, start)
                        .await;
                    self.skip_refused(home, &mut machine, &ended);
                    machine.ended(start.elapsed());
                    region.lost(start.elapsed());
                    self.connected.send_replace(false);
                    let homes = self.spool.homes();
                    log_end(homes.address(home), &ended);
                    let elsewhere = match ended {
                        Ended::Elsewhere { name, address } => vec![(name, address)],
                        _ => region.instead(&homes, start.elapsed()),
                    };
                    for (name, address) in elsewhere {
                        if self.is_there(dialler, &name, &address).await {
                            return (name, address);
                        }
                        region.failed(&name, start.elapsed());
                    }
                }
            }
        }
    }

    /// Whether a federator answers under this name.
    async fn is_there(&self, dialler: &Dialler, name: &str, address: &str) -> bool {
        let expected = Expect::federator(name);
        let dialled = tokio::time::timeout(TRY_TIMEOUT, dialler.dial(address, &expected)).await;
        matches!(dialled, Ok(Ok(_)))
    }

    /// What the federator will never take must not keep back what comes after it.
    fn skip_refused(&self, home: Home, machine: &mut Machine, ended: &Ended) {
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
        let mut spool = self.spool.lock_of(home);
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
    async fn attempt(
        &self,
        dialler: &Dialler,
        with: With,
        region: &mut Region,
        machine: &mut Machine,
        start: Instant,
    ) -> Ended {
        let homes = self.spool.homes();
        match self.connect(dialler, &homes, with.home()).await {
            Ok((link, welcome)) => {
                let (known, called) = (homes.name(with.home()), &welcome.federator);
                if !known.is_empty() && known != called {
                    // The configuration, or who answers at its address, has changed: that one has a spool of its own.
                    let (name, address) = (called.clone(), homes.configured.clone());
                    return Ended::Elsewhere { name, address };
                }
                if let Err(error) = self.spool.named(with.home(), called) {
                    tracing::warn!(%error, "the home's name is not kept");
                }
                tracing::info!(federator = %welcome.federator, durable_seq = welcome.durable_seq, "connected");
                let session = link.session.clone();
                let served = self.serve(link, &welcome, with, region, machine, start);
                let served = match with {
                    With::Present(_) => {
                        self.connected.send_replace(true);
                        let renewing =
                            keep_renewed(&self.identity, &session, self.clock, self.seed);
                        tokio::select! {
                            served = served => served,
                            never = renewing => match never {},
                        }
                    }
                    With::Former(_) => served.await,
                };
                if let (Some(feed), With::Present(_)) = (&self.cluster, with) {
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

    async fn connect(
        &self,
        dialler: &Dialler,
        homes: &Homes,
        home: Home,
    ) -> Result<(Link, AgentWelcome), TransportError> {
        // The operator's word counts, until the region's federators have said where they are.
        let asked = homes.told.is_empty() && home == homes.current();
        let (address, expected) = match homes.name(home) {
            "" => (self.federator.as_str(), Expect::any_federator()),
            _ if asked => (self.federator.as_str(), Expect::any_federator()),
            name => (homes.address(home), Expect::federator(name)),
        };
        let session = match dialler.dial(address, &expected).await {
            // What it tells of itself may be of no use from here.
            Err(_) if home == homes.current() && address != self.federator => {
                dialler.dial(&self.federator, &expected).await?
            }
            dialled => dialled?,
        };
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
        with: With,
        region: &mut Region,
        machine: &mut Machine,
        start: Instant,
    ) -> Result<std::convert::Infallible, Ended> {
        let (home, present) = (with.home(), matches!(with, With::Present(_)));
        self.resume(&link.session, welcome, home)?;
        machine.connected(start.elapsed(), welcome.durable_seq);
        if present {
            region.stands();
        }
        // How the agent is, and what it knows of its cluster, the home hears alone: told twice, it would count twice.
        if present && !machine.careful() {
            link.send.send(&self.status(), PEER_TIMEOUT).await?;
        }
        let mut feed = match &self.cluster {
            Some(feed) if present => Some(feed.lock().await),
            _ => None,
        };
        let mut busy = Instant::now();
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
                let Some(entry) = self.spool.lock_of(home).next_entry()? else {
                    break;
                };
                busy = Instant::now();
                self.send(&mut link.send, machine, start, &entry).await?;
            }
            tokio::select! {
                received = link.receive.recv() => {
                    let frame = received?.ok_or(TransportError::StreamEnded)?;
                    if frame.kind == Kind::Homes {
                        self.told(&link.session, &frame, present)?;
                    } else {
                        let ack: Ack = link.session.decode(&frame)?;
                        self.acknowledged(&link.session, machine, start, ack, home)?;
                        busy = Instant::now();
                    }
                }
                _ = status.tick() => {
                    if present && !machine.probing() {
                        link.send.send(&self.status(), PEER_TIMEOUT).await?;
                    }
                    if present && let Some((name, address)) = region.better(&self.spool.homes(), start.elapsed()) {
                        return Err(Ended::Elsewhere { name, address });
                    }
                    if !present && machine.idle() && busy.elapsed() >= FORMER_IDLE {
                        return Err(Ended::Delivered);
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
                () = self.spool.appended(home), if machine.may_send() => {}
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
    fn resume(&self, session: &Session, welcome: &AgentWelcome, home: Home) -> Result<(), Ended> {
        let durable_seq = welcome.durable_seq;
        if durable_seq > MAX_SEQ {
            let detail = format!("it has batch {durable_seq}, which nobody can have sent");
            return Err(session.misbehaved(CloseCode::Unexpected, detail).into());
        }
        let mut spool = self.spool.lock_of(home);
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
        home: Home,
    ) -> Result<(), Ended> {
        match machine.acknowledged(start.elapsed(), ack.seq) {
            Ok(()) => Ok(self.spool.lock_of(home).acknowledge(ack.seq)?),
            Err(Misbehaviour::NeverSent) => {
                let detail = format!("it acknowledged batch {}, which was not sent", ack.seq);
                Err(session.misbehaved(CloseCode::Unexpected, detail).into())
            }
        }
    }

    /// The federator says who is there in the region. What an earlier home says of it may be old.
    fn told(&self, session: &Session, frame: &Frame, present: bool) -> Result<(), TransportError> {
        let told: federation::Homes = session.decode(frame)?;
        if present && let Err(error) = self.spool.tell(&told.homes) {
            tracing::warn!(%error, "the region's federators are not kept");
        }
        Ok(())
    }

    fn status(&self) -> AgentStatus {
        let totals = self.spool.totals();
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
