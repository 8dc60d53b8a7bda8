//! Who is there: the shell around [`Membership`], which decides. One task owns it; messages travel on the sessions that federators
//! have with each other, as datagrams where they fit.
//!
//! A message counts only if its session's certificate is a federator's and the message says to be that one's: who has a
//! federator's key can speak in that one's name alone.

mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use weft_mesh::membership::node::sender_of;
use weft_mesh::membership::{Effect, Membership, Node};
use weft_transport::{Session, TransportError};
use weft_wire::control::CloseCode;

pub use self::view::View;
use crate::clock;
use crate::config::Config;
use crate::core::Contact;
use crate::enrol::kept::Kept;
use crate::peers::Peers;
use crate::pipeline::{Submission, random_seed};
use crate::server::SEND_TIMEOUT;

/// Changes of who owns what within this are told to the core together.
const GATHER: Duration = Duration::from_millis(200);
/// How often those that are known and not there are asked to let this one in.
const JOIN_EVERY: Duration = Duration::from_secs(2);
/// How many are asked at once; then the next.
const JOIN_AT_ONCE: usize = 8;
/// Messages and orders that wait for the task. More messages are dropped, and counted.
const INBOX: usize = 1024;
/// Messages on streams that are on their way. More are dropped, and counted.
const STREAMS: usize = 64;
/// Messages of one member a second; ten times what a member has to say. More are dropped, and counted.
const RATE: f64 = 100.0;
/// What a member may say at once.
const BURST: f64 = 300.0;
/// Members that are remembered over a restart.
const MAX_REMEMBERED: usize = 256;

/// Totals since the start.
#[derive(Debug, Default)]
pub struct MemberCounters {
    /// Messages received.
    pub received: AtomicU64,
    /// Messages sent.
    pub sent: AtomicU64,
    /// Of these, such that took a stream.
    pub sent_on_streams: AtomicU64,
    /// Messages that could not be sent: no session, or too many on their way.
    pub unsent: AtomicU64,
    /// Messages not taken: their sender says too much, or too many wait.
    pub limited: AtomicU64,
    /// Messages in another's name, or that nobody can understand.
    pub refused: AtomicU64,
    /// How often a member was gone.
    pub downs: AtomicU64,
}

/// What outlives the program.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Remembered {
    /// Of the last start; the next is higher, whatever the clock says.
    run: u64,
    draining: bool,
    /// Others: name, region, address.
    members: Vec<(String, String, String)>,
}

enum Order {
    Received(Vec<u8>),
    Drain(bool, oneshot::Sender<anyhow::Result<()>>),
}

/// The rest of the program's side.
#[derive(Debug)]
pub struct Members {
    orders: mpsc::Sender<Order>,
    view: watch::Receiver<Arc<View>>,
    /// Totals.
    pub counters: Arc<MemberCounters>,
    buckets: Mutex<HashMap<String, (f64, Instant)>>,
}

/// The task's side.
pub struct Task {
    membership: Membership,
    began: Instant,
    orders: mpsc::Receiver<Order>,
    view: watch::Sender<Arc<View>>,
    counters: Arc<MemberCounters>,
    streams: Arc<Semaphore>,
    peers: Arc<Peers>,
    submissions: mpsc::Sender<Submission>,
    kept: Kept,
    remembered: Remembered,
    /// Whom to ask: name and address.
    seeds: Vec<(String, String)>,
    next_seed: usize,
    /// Since when each member is as it is.
    since: BTreeMap<String, Instant>,
    told: Vec<(String, u8)>,
    tell_at: Option<Instant>,
}

/// Who was there before the last restart.
pub fn remembered(data_dir: &Path) -> Vec<(String, String, String)> {
    let kept: anyhow::Result<Remembered> = Kept::at(data_dir, "member.json").read();
    kept.map_or_else(
        |error| {
            tracing::warn!(%error, "members of before are not known");
            Vec::new()
        },
        |kept| kept.members,
    )
}

/// Begins, as a member that knows its seeds.
pub fn start(
    config: &Config,
    address: String,
    peers: Arc<Peers>,
    submissions: mpsc::Sender<Submission>,
) -> anyhow::Result<(Arc<Members>, Task)> {
    let kept = Kept::at(&config.data_dir, "member.json");
    let mut remembered: Remembered = kept.read().unwrap_or_default();
    let now = u64::try_from(clock::now().0).unwrap_or(0);
    remembered.run = now.max(remembered.run.saturating_add(1 << 20));
    kept.write(&remembered)?;
    let mut own = Node::new(&config.name, &config.region, &address, remembered.run);
    own.weight = config.mesh.weight;
    own.draining = remembered.draining;
    let membership = Membership::new(own, random_seed());
    let seeds = peers
        .all()
        .map(|link| (link.name.clone(), link.address()))
        .collect();
    let counters = Arc::new(MemberCounters::default());
    let (orders, inbox) = mpsc::channel(INBOX);
    let (view, seen) = watch::channel(Arc::new(View::of(&membership, &BTreeMap::new())));
    let members = Arc::new(Members {
        orders,
        view: seen,
        counters: counters.clone(),
        buckets: Mutex::default(),
    });
    let task = Task {
        membership,
        began: Instant::now(),
        orders: inbox,
        view,
        counters,
        streams: Arc::new(Semaphore::new(STREAMS)),
        peers,
        submissions,
        kept,
        remembered,
        seeds,
        next_seed: 0,
        since: BTreeMap::new(),
        told: Vec::new(),
        tell_at: None,
    };
    Ok((members, task))
}

impl Members {
    /// Follows who is there.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Takes what a federator said on its session; ends that when it is said in another's name.
    pub fn take(&self, session: &Session, message: Vec<u8>) -> Result<(), TransportError> {
        let peer = session.peer();
        let claimed = sender_of(&message);
        let own = claimed
            .as_ref()
            .is_ok_and(|node| node.name == peer.name() && node.region == peer.region());
        if !own {
            self.counters.refused.fetch_add(1, Relaxed);
            let words = match claimed {
                Ok(node) => format!("{peer} speaks as {:?} of {:?}", node.name, node.region),
                Err(error) => format!("a message of the membership: {error}"),
            };
            return Err(session.misbehaved(CloseCode::Identity, words));
        }
        if !self.may_say(peer.name(), Instant::now())
            || self.orders.try_send(Order::Received(message)).is_err()
        {
            self.counters.limited.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Takes datagrams of a federator's session until it ends.
    pub async fn listen(&self, session: &Session) -> Result<(), TransportError> {
        loop {
            let message = session.recv_datagram().await?;
            self.take(session, message)?;
        }
    }

    /// This federator is to be relieved, or no more; on the disk when this returns.
    pub async fn drain(&self, draining: bool) -> anyhow::Result<()> {
        let (done, answer) = oneshot::channel();
        self.orders.send(Order::Drain(draining, done)).await?;
        answer.await?
    }

    /// Whether a member may say something more now.
    fn may_say(&self, peer: &str, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= crate::config::MAX_PEERS && !buckets.contains_key(peer) {
            buckets.retain(|_, (_, at)| now.duration_since(*at).as_secs() < 60);
        }
        let (tokens, at) = buckets.entry(peer.into()).or_insert((BURST, now));
        let earned = now.duration_since(*at).as_secs_f64() * RATE;
        (*tokens, *at) = ((*tokens + earned).min(BURST), now);
        let may = *tokens >= 1.0;
        *tokens -= f64::from(u8::from(may));
        may
    }
}

impl Task {
    /// Runs until it is aborted.
    pub async fn run(mut self) {
        let mut join = interval(JOIN_EVERY);
        join.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let timer = self.membership.next_timer().map_or_else(
                || Instant::now() + JOIN_EVERY,
                |at| self.began + Duration::from_micros(at.max(0).unsigned_abs()),
            );
            let tell_at = self.tell_at;
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Received(message)) => {
                        self.counters.received.fetch_add(1, Relaxed);
                        self.membership.received(self.now(), &message);
                    }
                    Some(Order::Drain(draining, done)) => {
                        // Nobody waits any more: it is done all the same.
                        let _ = done.send(self.drain(draining));
                    }
                    None => return,
                },
                () = sleep_until(timer) => self.membership.advance(self.now()),
                _ = join.tick() => {
                    self.join();
                    self.owners_may_differ();
                }
                () = sleep_until(tell_at.unwrap_or(timer)), if tell_at.is_some() => self.tell().await,
            }
            self.act();
        }
    }

    fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    fn drain(&mut self, draining: bool) -> anyhow::Result<()> {
        self.remembered.draining = draining;
        self.kept.write(&self.remembered)?;
        self.membership.drain(self.now(), draining);
        Ok(())
    }

    /// Asks those that are known and not there, some at a time. Members that found only each other would stay by themselves.
    fn join(&mut self) {
        let up: BTreeSet<String> = self.membership.up().map(|node| node.name.clone()).collect();
        let away: Vec<_> = self
            .seeds
            .iter()
            .filter(|(name, _)| !up.contains(name))
            .cloned()
            .collect();
        for _ in 0..away.len().min(JOIN_AT_ONCE) {
            let (name, address) = &away[self.next_seed % away.len()];
            self.next_seed = self.next_seed.wrapping_add(1);
            self.membership.join(self.now(), name, address);
        }
    }

    /// Does what the membership wants done.
    fn act(&mut self) {
        let mut changed = false;
        while let Some(effect) = self.membership.poll() {
            match effect {
                Effect::Send { to, bytes } => self.send(&to, bytes),
                Effect::Up(node) => {
                    tracing::info!(
                        peer = node.name,
                        region = node.region,
                        "a federator is there"
                    );
                    self.changed(&node);
                    changed = true;
                }
                Effect::Changed(node) => {
                    self.changed(&node);
                    changed = true;
                }
                Effect::Down(node) => {
                    tracing::warn!(
                        peer = node.name,
                        region = node.region,
                        "a federator is gone"
                    );
                    self.counters.downs.fetch_add(1, Relaxed);
                    self.since.insert(node.name, Instant::now());
                    changed = true;
                }
                Effect::Owners(_) => {
                    self.tell_soon();
                    changed = true;
                }
            }
        }
        if changed {
            self.remember();
            let view = View::of(&self.membership, &self.since);
            self.view.send_replace(Arc::new(view));
        }
    }

    fn changed(&mut self, node: &Node) {
        self.peers.place(&node.name, &node.region, &node.address);
        self.since.insert(node.name.clone(), Instant::now());
    }

    /// Others are asked after a restart, should the seeds be gone by then.
    fn remember(&mut self) {
        let up = self.membership.up().filter(|node| !node.address.is_empty());
        let members: Vec<_> = up
            .take(MAX_REMEMBERED)
            .map(|node| (node.name.clone(), node.region.clone(), node.address.clone()))
            .collect();
        // While nobody is there, those of before are the better answer.
        if members.is_empty() || members == self.remembered.members {
            return;
        }
        self.remembered.members = members;
        if let Err(error) = self.kept.write(&self.remembered) {
            tracing::warn!(%error, "who is there is not remembered");
        }
    }

    fn send(&self, to: &Node, message: Vec<u8>) {
        let unsent = || {
            self.counters.unsent.fetch_add(1, Relaxed);
        };
        let Some(link) = self.peers.find(&to.name) else {
            return unsent();
        };
        let ours = link.session();
        let any = ours.clone().or_else(|| link.inbound());
        // A program of an earlier release would end the session over a frame that it does not know.
        let Some(session) = any.filter(Session::takes_datagrams) else {
            return unsent();
        };
        if session.send_datagram(&message) {
            self.counters.sent.fetch_add(1, Relaxed);
            return;
        }
        let Ok(permit) = self.streams.clone().try_acquire_owned() else {
            return unsent();
        };
        let Some(session) = ours else { return unsent() };
        self.counters.sent.fetch_add(1, Relaxed);
        self.counters.sent_on_streams.fetch_add(1, Relaxed);
        tokio::spawn(async move {
            if let Ok((mut sender, _receiver)) = session.open_bi().await
                && sender.send_member(&message, SEND_TIMEOUT).await.is_ok()
            {
                sender.finish();
                // Whether it arrived the next probe shows.
                let _ = sender.delivered(SEND_TIMEOUT).await;
            }
            drop(permit);
        });
    }

    fn tell_soon(&mut self) {
        self.tell_at.get_or_insert(Instant::now() + GATHER);
    }

    /// Who owns offers: members, and federators of earlier releases, which are owners while there is a session.
    fn owners(&self) -> Vec<(String, u8)> {
        let mut owners = self.membership.owners().to_vec();
        for link in self.peers.all() {
            let old = link
                .session()
                .is_some_and(|session| !session.takes_datagrams());
            if old && !owners.iter().any(|(name, _)| *name == link.name) {
                owners.push((link.name.clone(), 1));
            }
        }
        owners.sort();
        owners
    }

    fn owners_may_differ(&mut self) {
        if self.owners() != self.told {
            self.tell_soon();
        }
    }

    async fn tell(&mut self) {
        // Alone at the start: those of the configuration stay owners for a moment, until it shows who is there.
        if self.membership.up().next().is_none()
            && !self.seeds.is_empty()
            && self.began.elapsed() < JOIN_EVERY
        {
            self.tell_at = Some(self.began + JOIN_EVERY);
            return;
        }
        self.tell_at = None;
        self.told = self.owners();
        self.peers
            .own(self.told.clone(), |owners| {
                let contact = Contact::Owners(owners);
                self.submissions.send(Submission::Contact {
                    session: 0,
                    contact,
                    room: None,
                })
            })
            .await;
    }
}

#[cfg(test)]
mod tests;
