//! Who is there: federators find each other from one that is known, notice who is gone, and tell each other. SWIM (Das, Gupta,
//! Motivala 2002), by the crate `foca`; pure: time and randomness are given, what is to be sent is a value.
//!
//! The members that are there are not all that may own offers: one that drains owns none, nor does one that comes and goes
//! too often ([`FLAPS`]).

pub mod node;

use std::collections::{BTreeMap, VecDeque};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{
    AccumulatingRuntime, Foca, NoCustomBroadcast, OwnedNotification, PeriodicParams, Timer,
};

use self::node::{Lots, Plain, key_of};
pub use self::node::{Malformed, Node};
use crate::members::{MAX_WEIGHT, Members};

/// Longest message. What does not fit into a datagram goes on a stream.
pub const MAX_BYTES: usize = 16 * 1024;
/// One that was gone so often within the time in which that is half forgotten ([`FLAPS_HALF_LIFE_US`]) owns nothing until it is
/// less than one.
pub const FLAPS: u32 = 3;
/// After this, being gone counts half.
pub const FLAPS_HALF_LIFE_US: i64 = 300_000_000;
/// Members that are kept in mind, gone ones included. More are not let in.
pub const MAX_MEMBERS: usize = 4096;

/// A member that was gone once counts so much.
const ONCE: u32 = 1024;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send this to the member: as a datagram if it fits in one.
    Send {
        /// To whom.
        to: Node,
        /// What.
        bytes: Vec<u8>,
    },
    /// A member has come: dial it.
    Up(Node),
    /// What a member says of itself has changed.
    Changed(Node),
    /// A member is gone.
    Down(Node),
    /// Who may own offers has changed: for [`Mesh::owners_changed`](crate::Mesh::owners_changed).
    Owners(Vec<(String, u8)>),
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages received.
    pub received: u64,
    /// Of these, such that said nothing that can be understood.
    pub malformed: u64,
    /// Messages sent.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// How often a member was gone.
    pub downs: u64,
    /// How often this one was believed gone by others, and came back.
    pub rejoined: u64,
    /// Members that there was no room for.
    pub refused: u64,
}

#[derive(Clone, Debug)]
struct Known {
    node: Node,
    up: bool,
    /// How often it was gone, times [`ONCE`], as of the time beside it.
    gone: (u32, i64),
    damped: bool,
}

/// One federator's view of who is there.
///
/// # Contract
///
/// **Inputs.** [`join`](Self::join) with one that is known by name, [`received`](Self::received) for each message of a member (the
/// shell has checked who sent it), [`advance`](Self::advance) when [`next_timer`](Self::next_timer) says so,
/// [`drain`](Self::drain), [`weigh`](Self::weigh) and [`leave`](Self::leave) as operators want. After each, [`poll`](Self::poll) until
/// `None`. Time never goes back; one that is given earlier counts as the latest.
///
/// **Guarantees.** As SWIM's: who is gone is found out by everyone in a few seconds, whatever their number, and each
/// member sends a few messages a second. Who is only cut off comes back by itself when the cut is mended. All members that hear
/// from each other come to the same owners, but for damping, which each decides by what it saw.
pub struct Membership {
    foca: Foca<Node, Plain, Lots, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Node>,
    timers: BTreeMap<(i64, u64), Timer<Node>>,
    order: u64,
    now: i64,
    known: BTreeMap<String, Known>,
    /// Of these, such as own nothing because they come and go.
    damped: usize,
    owners: Vec<(String, u8)>,
    effects: VecDeque<Effect>,
    counters: Counters,
}

impl Membership {
    /// A federator that knows nobody. `seed` chooses whom it asks first; no result depends on it.
    pub fn new(own: Node, seed: u64) -> Self {
        let mut membership = Self {
            foca: Foca::new(own, config(), Lots(seed), Plain),
            runtime: AccumulatingRuntime::new(),
            timers: BTreeMap::new(),
            order: 0,
            now: i64::MIN,
            known: BTreeMap::new(),
            damped: 0,
            owners: Vec::new(),
            effects: VecDeque::new(),
            counters: Counters::default(),
        };
        membership.review();
        membership
    }

    /// This federator.
    pub fn own(&self) -> &Node {
        self.foca.identity()
    }

    /// Asks this one to be let in: to be called now and then for each of those in the configuration that are not
    /// [`up`](Self::up). Members that found only each other would stay by themselves.
    pub fn join(&mut self, now: i64, name: &str, address: &str) {
        if name != self.own().name {
            self.pass(now);
            let to = Node::new(name, "", address, 0);
            self.then(|foca, runtime| foca.announce(to, runtime));
        }
    }

    /// A message of a member.
    pub fn received(&mut self, now: i64, bytes: &[u8]) {
        self.pass(now);
        self.counters.received += 1;
        self.then(|foca, runtime| foca.handle_data(bytes, runtime));
    }

    /// Time has passed.
    pub fn advance(&mut self, now: i64) {
        self.pass(now);
        while let Some(entry) = self
            .timers
            .first_entry()
            .filter(|entry| entry.key().0 <= self.now)
        {
            let timer = entry.remove();
            self.then(|foca, runtime| foca.handle_timer(timer, runtime));
        }
        if self.damped > 0 {
            self.review();
        }
    }

    /// When [`advance`](Self::advance) is to be called.
    pub fn next_timer(&self) -> Option<i64> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// This federator is to be relieved, or no more.
    pub fn drain(&mut self, now: i64, draining: bool) {
        self.change(now, |node| node.draining = draining);
    }

    /// This federator is to own more, or less.
    pub fn weigh(&mut self, now: i64, weight: u8) {
        self.change(now, |node| node.weight = weight.min(MAX_WEIGHT));
    }

    fn change(&mut self, now: i64, change: impl FnOnce(&mut Node)) {
        self.pass(now);
        let mut node = self.own().clone();
        change(&mut node);
        if node != *self.own() {
            node.run += 1;
            self.then(|foca, runtime| foca.change_identity(node, runtime));
            self.review();
        }
    }

    /// This federator goes, and says so.
    pub fn leave(&mut self, now: i64) {
        self.pass(now);
        self.then(|foca, runtime| foca.leave_cluster(runtime));
    }

    /// The next effect.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Other members that are there.
    pub fn up(&self) -> impl Iterator<Item = &Node> {
        let up = self.known.values().filter(|known| known.up);
        up.map(|known| &known.node)
    }

    /// Members that were there and are gone.
    pub fn down(&self) -> impl Iterator<Item = &Node> {
        let down = self.known.values().filter(|known| !known.up);
        down.map(|known| &known.node)
    }

    /// Whether a member owns nothing because it comes and goes too often.
    pub fn damped(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(|known| known.damped)
    }

    /// Who may own offers, with weights, by name. Never empty: where nobody else may, this one does.
    pub fn owners(&self) -> &[(String, u8)] {
        &self.owners
    }

    /// The federator of a region that an agent of this name belongs to.
    pub fn home_of(&self, agent: &str, region: &str) -> Option<&Node> {
        let there = self.up().chain([self.own()]);
        let there: Vec<&Node> = there.filter(|node| node.region == region).collect();
        let owns = |node: &&&Node| self.owners.iter().any(|(name, _)| *name == node.name);
        let names: Vec<&str> = there
            .iter()
            .filter(owns)
            .map(|node| node.name.as_str())
            .collect();
        let members = Members::new(names);
        let name = members.name(members.rendezvous(key_of(agent)));
        there.into_iter().find(|node| node.name == name)
    }

    /// Totals since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn pass(&mut self, now: i64) {
        self.now = self.now.max(now);
    }

    /// Lets the protocol act, and takes what comes of it.
    fn then<E>(
        &mut self,
        act: impl FnOnce(
            &mut Foca<Node, Plain, Lots, NoCustomBroadcast>,
            &mut AccumulatingRuntime<Node>,
        ) -> Result<(), E>,
    ) {
        self.counters.malformed += u64::from(act(&mut self.foca, &mut self.runtime).is_err());
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.order += 1;
            let after = i64::try_from(after.as_micros()).unwrap_or(i64::MAX);
            self.timers
                .insert((self.now.saturating_add(after), self.order), timer);
        }
        while let Some((to, bytes)) = self.runtime.to_send() {
            self.counters.sent += 1;
            self.counters.sent_bytes += bytes.len() as u64;
            self.effects.push_back(Effect::Send {
                to,
                bytes: bytes.to_vec(),
            });
        }
        let mut changed = false;
        while let Some(notification) = self.runtime.to_notify() {
            changed = true;
            self.noted(notification);
        }
        if changed {
            self.review();
        }
    }

    fn noted(&mut self, notification: OwnedNotification<Node>) {
        match notification {
            OwnedNotification::MemberUp(node) => self.came(node),
            OwnedNotification::MemberDown(node) => self.went(&node),
            OwnedNotification::Rename(_, node) => {
                if let Some(known) = self.known.get_mut(&node.name) {
                    known.node = node.clone();
                    if known.up {
                        self.effects.push_back(Effect::Changed(node));
                    }
                }
            }
            OwnedNotification::Rejoin(_) => self.counters.rejoined += 1,
            OwnedNotification::Active | OwnedNotification::Idle | OwnedNotification::Defunct => {}
        }
    }

    fn came(&mut self, node: Node) {
        if self.known.len() >= MAX_MEMBERS && !self.known.contains_key(&node.name) {
            self.counters.refused += 1;
            return;
        }
        let fresh = Known {
            node: node.clone(),
            up: true,
            gone: (0, self.now),
            damped: false,
        };
        let known = self.known.entry(node.name.clone()).or_insert(fresh);
        known.node = node.clone();
        known.up = true;
        self.effects.push_back(Effect::Up(node));
    }

    fn went(&mut self, node: &Node) {
        let now = self.now;
        if let Some(known) = self.known.get_mut(&node.name).filter(|known| known.up) {
            known.up = false;
            known.gone = (known.gone_now(now) + ONCE, now);
            self.counters.downs += 1;
            self.effects.push_back(Effect::Down(known.node.clone()));
        }
    }

    /// Who owns what now.
    fn review(&mut self) {
        let now = self.now;
        self.damped = 0;
        for known in self.known.values_mut().filter(|known| known.gone.0 > 0) {
            let gone = known.gone_now(now);
            known.damped = gone >= FLAPS * ONCE || known.damped && gone >= ONCE;
            self.damped += usize::from(known.damped);
        }
        let others = self
            .known
            .values()
            .filter(|known| known.up && !known.damped);
        let all = others
            .map(|known| &known.node)
            .chain([self.foca.identity()]);
        let able = all.filter(|node| !node.draining && node.weight > 0);
        let mut owners: Vec<_> = able.map(|node| (node.name.as_str(), node.weight)).collect();
        if owners.is_empty() {
            owners.push((&self.foca.identity().name, 1));
        }
        // Known members are in the order of their names: all but the own one stand where they belong.
        owners.sort_unstable();
        let before = self.owners.iter();
        if !owners
            .iter()
            .copied()
            .eq(before.map(|(name, weight)| (name.as_str(), *weight)))
        {
            let own = |(name, weight): (&str, u8)| (name.to_owned(), weight);
            self.owners = owners.into_iter().map(own).collect();
            // Of several that were not taken yet only the last counts.
            self.effects
                .retain(|effect| !matches!(effect, Effect::Owners(_)));
            self.effects.push_back(Effect::Owners(self.owners.clone()));
        }
    }
}

impl Known {
    /// How much its absences count by now: half as much after each half-life, in a straight line between.
    fn gone_now(&self, now: i64) -> u32 {
        let (gone, at) = self.gone;
        let passed = now.saturating_sub(at).max(0);
        let halved = gone
            .checked_shr(u32::try_from(passed / FLAPS_HALF_LIFE_US).unwrap_or(u32::MAX))
            .unwrap_or(0);
        let rest = u64::from(halved) * (passed % FLAPS_HALF_LIFE_US) as u64
            / (2 * FLAPS_HALF_LIFE_US as u64);
        halved - rest as u32
    }
}

/// For links of up to some 300 ms both ways.
fn config() -> foca::Config {
    let count = |n: usize| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
    let every = |ms: u64, n: usize| {
        Some(PeriodicParams {
            frequency: Duration::from_millis(ms),
            num_members: count(n),
        })
    };
    foca::Config {
        probe_period: Duration::from_millis(2000),
        probe_rtt: Duration::from_millis(700),
        num_indirect_probes: count(3),
        max_transmissions: NonZeroU8::new(15).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: Duration::from_millis(6000),
        remove_down_after: Some(Duration::from_secs(24 * 3600)),
        max_packet_size: count(MAX_BYTES),
        notify_down_members: true,
        periodic_announce: every(20_000, 1),
        periodic_announce_to_down_members: every(10_000, 2),
        periodic_gossip: every(500, 3),
    }
}
