//! The core: one single-threaded state machine that decides everything about connections.
//!
//! Pure: no IO, no clock, no randomness of its own. Journal entries and time go in ([`Core::apply`], [`Core::advance`]); what the store
//! has to write ([`Core::flush`]) and what peers have to be told come out. The same journal gives the same rows.
//!
//! # Life of a half
//!
//! It comes with a batch, waits in the [`Stitcher`], meets its other end there or through the mesh, or expires. Its row is
//! written as a live one while anything may change, and as a settled one when nothing is expected any more: both ends
//! closed and the peer (if any) told, or no partner and closed. A settled half stays in memory a little longer
//! ([`LINGER_US`]), so that a late word about it still finds it; then its id is remembered for a while, so that a half
//! that comes twice is not counted twice.
//!
//! # Time
//!
//! Time is the federator's, and stands still while it is down ([`Input::Start`] says how long that was): agents spool
//! meanwhile, and their halves must find those that came before.

mod abandoned;
mod departed;
mod exchange;
mod intake;
mod names;
mod overflow;
mod recall;
mod rows;
mod slots;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use weft_mesh::{Link, Mesh, MeshKey, Withdrawn};
use weft_stitching::{self as stitching, Candidate, Output, Reason, Rule, Stitcher, judge};
use weft_wire::control::PeerMessage;
use weft_wire::query::{Confidence, Unmatched};
use weft_wire::{
    AgentInfo, AgentKey, Half, HalfBatch, HalfId, LookupBatch, MAX_NAME_BYTES, PeerName, Timestamp,
};

use self::abandoned::Abandoned;
use self::departed::Departed;
pub use self::departed::GENERATION;
pub use self::exchange::{Contact, Told};
pub use self::names::Mixed;
use self::names::{Agents, MAX_NAMES, Owners, PeerNames};
use self::overflow::Overflow;
pub use self::slots::view_of;
use self::slots::{NONE, Slot, SlotNumber, Slots, Stored};
use crate::record::{
    AgentRecord, Found, Joined, Loaded, LookupRow, NameNumber, Row, Sought, Standing,
};

/// How long a settled half stays in memory, in microseconds.
pub const LINGER_US: i64 = 10_000_000;

/// How long a half that waits for its other end is not written, in microseconds: most meet it meanwhile, and are written once.
/// A restart reads as much of the journal again.
pub const HELD_US: i64 = 5_000_000;

/// Halves that are not written because they wait; others are written at once.
pub const MAX_HELD: usize = 500_000;

/// Timers run at multiples of this, in microseconds, however often [`Core::advance`] is called: so a replay, that only knows
/// when entries came, decides the same.
pub const TICK_US: i64 = 10_000;

/// How a core is set.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This federator's name.
    pub name: String,
    /// How long a half waits before it is offered, in microseconds.
    pub hold_us: i64,
    /// How long a half waits altogether, in microseconds.
    pub expiry_us: i64,
    /// Most halves in memory.
    pub max_open: usize,
    /// Random, from outside: keeps peers from choosing collisions. No result depends on it.
    pub seed: u64,
    /// Names of the other federators, and the mesh's key; `None` for a federator alone.
    pub mesh: Option<(Vec<String>, MeshKey)>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The program was started; it had been down for so long.
    Start {
        /// Microseconds since the last entry before.
        down_us: i64,
    },
    /// An agent said who it is.
    Agent {
        /// Its key.
        key: AgentKey,
        /// What it said.
        info: AgentInfo,
    },
    /// A batch of an agent.
    Batch {
        /// Its key.
        agent: AgentKey,
        /// Its sequence number.
        seq: u64,
        /// Its clock ahead of ours.
        skew_us: i64,
        /// The halves.
        batch: HalfBatch,
    },
    /// An agent has been silent for so long that it is taken for gone.
    Gone {
        /// Its key.
        key: AgentKey,
    },
    /// Lookups of an agent.
    Lookups {
        /// Its key.
        agent: AgentKey,
        /// The batch's sequence number.
        seq: u64,
        /// The lookups.
        batch: LookupBatch,
    },
    /// Halves that had been given up come back from the store.
    Found(Vec<Found>),
    /// A peer said something that outlives this process.
    Peer {
        /// Its name.
        peer: String,
        /// What it said.
        message: PeerMessage,
    },
}

/// Totals since the start of the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreCounters {
    /// Rows of batches.
    pub rows: u64,
    /// Lookups.
    pub lookups: u64,
    /// Halves seen for the first time.
    pub halves: u64,
    /// Pairs made.
    pub stitched: u64,
    /// Pairs undone because a third half had the same claim.
    pub contested: u64,
    /// Halves that expired without partner.
    pub expired: u64,
    /// Halves with several possible partners.
    pub ambiguous: u64,
    /// Rows about halves that had left memory; nothing new in them.
    pub late: u64,
    /// Rows older than what was known.
    pub outdated: u64,
    /// Halves whose id another agent's half has; not kept.
    pub id_collisions: u64,
    /// Halves stored without a chance to be matched because memory was full.
    pub memory_full: u64,
    /// The same because memory was getting full and the half's agent had half of it.
    pub share_full: u64,
    /// Batches of an agent that never said who it is; not kept.
    pub unknown_agent: u64,
    /// Batches that had been applied before.
    pub repeated_batches: u64,
    /// Established halves that got their partner.
    pub matched_halves: u64,
    /// Of the pairs, those whose other end is at another home.
    pub joined: u64,
    /// Halves that came so late that their other ends were looked for in the store, and in those of all homes.
    pub sought: u64,
    /// Halves that came back from the store, because they were looked for or a peer returned.
    pub recalled: u64,
    /// Of those looked for or found, such that there was no room for.
    pub recalls_dropped: u64,
    /// Names of peers that there was no room for: connections are kept without.
    pub names_dropped: u64,
    /// Halves that the mesh was not asked about, because it had too many.
    pub not_offered: u64,
    /// Messages of peers that may not say what they said.
    pub peer_misbehaved: u64,
    /// Open halves that were closed because their host had been started again.
    pub host_restarted: u64,
    /// Open halves that were closed because their agent was gone.
    pub agent_gone: u64,
    /// Rows about halves of an agent that was taken for gone and came back; they had left memory.
    pub after_gone: u64,
}

/// See the module.
pub struct Core {
    config: CoreConfig,
    now: i64,
    /// Live rows and links of the store, until the time is known.
    asleep: Option<(Vec<Row>, HashMap<HalfId, Link>)>,
    /// Time that passed while the program was down.
    down_us: i64,
    position: u64,
    /// Journal position before the entry that is applied.
    entry_from: u64,
    flushed_position: u64,
    /// Those of the store's halves that are still to be taken from the journal.
    to_recover: HashSet<HalfId>,
    /// Of `dirty`, those that the last flush held back.
    held: usize,
    slots: Slots,
    owners: Owners,
    names: PeerNames,
    agents: Agents,
    stitcher: Stitcher,
    mesh: Option<Mesh>,
    /// Makes the routing keys by which late halves are looked for.
    key: MeshKey,
    told: VecDeque<Told>,
    departed: Departed,
    dirty: Vec<SlotNumber>,
    /// Memory for the next flush's rows.
    spare: Vec<Row>,
    leaving: VecDeque<(i64, SlotNumber)>,
    leaving_late: VecDeque<(i64, SlotNumber)>,
    replaced: Vec<HalfId>,
    replaced_done: Vec<HalfId>,
    replaced_from: Timestamp,
    sought: Sought,
    /// Stored without ever having been in memory.
    overflow: Overflow,
    /// Not yet in the store.
    lookups: Vec<LookupRow>,
    /// When the other ends of halves joined since the last flush were named, by the federator's clock.
    named: Vec<Timestamp>,
    sequences: BTreeMap<AgentKey, u64>,
    sequences_changed: BTreeMap<AgentKey, u64>,
    standings: BTreeMap<AgentKey, Standing>,
    abandoned: Abandoned,
    counters: CoreCounters,
    past_hold: usize,
    /// Halves that wait for a partner.
    pending: usize,
    candidates: Vec<Candidate>,
    closed: Vec<Candidate>,
}

impl Core {
    /// Starts with what the store holds.
    pub fn new(config: CoreConfig, loaded: Loaded) -> Self {
        let stitcher = Stitcher::new(stitching::Config {
            hold_us: config.hold_us,
            expiry_us: config.expiry_us,
            max_open: config.max_open,
            seed: config.seed,
        });
        let mut core = Self {
            now: i64::MIN,
            asleep: None,
            down_us: 0,
            position: loaded.position,
            entry_from: loaded.held_from,
            flushed_position: loaded.position,
            to_recover: loaded.held,
            held: 0,
            slots: Slots::new(config.seed),
            owners: Owners::default(),
            names: PeerNames::default(),
            agents: Agents::default(),
            stitcher,
            mesh: exchange::mesh(&config),
            told: VecDeque::new(),
            departed: Departed::new(config.seed),
            dirty: Vec::new(),
            spare: Vec::new(),
            leaving: VecDeque::new(),
            leaving_late: VecDeque::new(),
            replaced: Vec::new(),
            replaced_done: Vec::new(),
            replaced_from: Timestamp(i64::MAX),
            sought: Sought::default(),
            key: config.key(),
            overflow: Overflow::new(config.max_open, config.seed),
            lookups: Vec::new(),
            named: Vec::new(),
            sequences: loaded.sequences.iter().copied().collect(),
            sequences_changed: BTreeMap::new(),
            standings: loaded.standings.into_iter().collect(),
            abandoned: Abandoned::default(),
            counters: CoreCounters::default(),
            past_hold: 0,
            pending: 0,
            candidates: Vec::new(),
            closed: Vec::new(),
            config,
        };
        core.owners.load(loaded.owners, loaded.next_owner);
        core.names.load(loaded.names, loaded.next_name.max(1));
        for id in loaded.departed {
            core.departed.insert(id);
        }
        core.agents.load(loaded.agents);
        for (key, number) in loaded.descriptions {
            core.agents.describe(key, number);
        }
        core.asleep = Some((loaded.live, loaded.links));
        core
    }

    /// Puts the live rows back into memory at the first sign of the time: their timers run from then, not from the
    /// beginning of time.
    fn wake(&mut self, at: Timestamp) {
        if let Some((rows, links)) = self.asleep.take() {
            self.now = at.0.saturating_sub(self.down_us);
            for row in &rows {
                self.restore(row, &links);
            }
        }
    }

    /// Puts a live row back into memory.
    fn restore(&mut self, row: &Row, links: &HashMap<HalfId, Link>) {
        let numbers = [row.client, row.server].map(|side| {
            let side = side?;
            let agent = self.agents.find(side.agent)?;
            let remote = agent.record.federator != self.config.name;
            let netns = self
                .owners
                .find(side.half.owner)
                .map_or(0, |owner| owner.netns);
            let (network, host) = (agent.network, agent.host(netns));
            // A peer has taken its agent's skew off.
            let standing = self.standing(agent.record.key.filter(|_| !remote));
            let mut slot = Slot::new(side.half, side.agent, network, host, standing.skew_us);
            slot.boot = standing.boot.unwrap_or(0);
            slot.remote = remote;
            self.hold(&side.half);
            Some(self.slots.add(slot))
        });
        let [client, server] = numbers;
        for number in [client, server].into_iter().flatten() {
            if let Some(reason) = row.unmatched {
                self.slots[number].unmatched = reason;
            }
            self.slots[number].card_due = row.card_due && !self.slots[number].remote;
            self.slots[number].cut_off = row.cut_off;
        }
        if let Some(first) = client.or(server) {
            self.slots[first].stored = Stored::Live;
        }
        if let (Some(client), Some(server), Some(joined)) = (client, server, row.joined) {
            self.link(client, server, joined);
        }
        for number in [client, server].into_iter().flatten() {
            // The stitcher must know matched halves too, to notice a third with the same claim.
            if !self.slots[number].remote && self.slots[number].half.state.established() {
                let candidate = self.slots[number].candidate(number);
                self.stitcher.insert(self.now, &[candidate]);
                self.slots[number].waiting = true;
                if self.slots[number].matched() {
                    self.stitcher.settle(&candidate);
                } else if self.slots[number].unmatched == Unmatched::Pending {
                    self.pend(number);
                } else if self.slots[number].unmatched == Unmatched::Ambiguous {
                    // What it could not be told from may have left memory, and not come back.
                    self.stitcher.distrust(&candidate);
                }
                self.restore_link(number, links.get(&self.slots[number].half.id));
            }
        }
        while self.stitcher.poll().is_some() {}
    }

    /// Takes one journal entry, in the journal's order. `at` is the federator's clock when it arrived, `position`
    /// the journal's position after it.
    pub fn apply(&mut self, position: u64, at: Timestamp, input: Input) {
        self.entry_from = std::mem::replace(&mut self.position, position);
        self.to_recover = HashSet::new();
        match input {
            Input::Start { down_us } => self.slept(down_us),
            Input::Agent { key, info } => {
                let federator = self.config.name.clone();
                self.agents.number(AgentRecord {
                    key: Some(key),
                    federator,
                    info,
                    pods: false,
                });
                // Written with it: which description is in force.
                let seq = self.sequences.get(&key).copied().unwrap_or(0);
                self.sequences_changed.insert(key, seq);
            }
            Input::Batch {
                agent,
                seq,
                skew_us,
                batch,
            } => {
                self.advance(at);
                self.batch(agent, seq, skew_us, &batch);
            }
            Input::Gone { key } => {
                self.advance(at);
                self.gone(key);
            }
            Input::Lookups { agent, seq, batch } => {
                self.advance(at);
                self.looked_up(agent, seq, batch);
            }
            Input::Found(found) => {
                self.advance(at);
                self.found(found);
            }
            Input::Peer { peer, message } => {
                self.advance(at);
                self.heard(&peer, &message);
            }
        }
    }

    fn slept(&mut self, us: i64) {
        self.down_us += us.max(0);
        if let Some(mesh) = &mut self.mesh {
            mesh.slept(us);
        }
    }

    /// Takes a journal entry that the store covers, but for the halves that it left to be taken from here; in the journal's
    /// order, and before all that are [applied](Self::apply).
    pub fn recover(&mut self, position: u64, at: Timestamp, input: Input) {
        match input {
            Input::Start { down_us } => self.slept(down_us),
            Input::Agent { .. }
            | Input::Gone { .. }
            | Input::Lookups { .. }
            | Input::Found(_)
            | Input::Peer { .. } => {}
            Input::Batch {
                agent,
                skew_us,
                mut batch,
                ..
            } => {
                batch
                    .halves
                    .retain(|half| self.to_recover.contains(&half.id));
                if let Some(number) = self
                    .agents
                    .of_key(agent)
                    .filter(|_| !batch.halves.is_empty())
                {
                    self.advance(at);
                    self.halves(number, skew_us, &batch);
                    self.booted(agent, batch.boot, true);
                }
            }
        }
        self.entry_from = position;
    }

    /// Time has passed.
    pub fn advance(&mut self, at: Timestamp) {
        self.wake(at);
        let now = self.now.max(at.0.saturating_sub(self.down_us));
        let mut last = None;
        while let Some(due) = self
            .stitcher
            .next_timer()
            .filter(|due| last.replace(*due) != Some(*due))
        {
            let tick = due
                .saturating_add(TICK_US - 1)
                .div_euclid(TICK_US)
                .saturating_mul(TICK_US);
            if tick > now {
                break;
            }
            self.now = self.now.max(tick);
            self.stitcher.advance(self.now, &self.slots);
            self.decide();
        }
        self.now = now;
        self.close_abandoned();
        self.converse();
        self.leave(now);
    }

    /// When time next decides anything if nothing else happens, by the federator's clock; but for what expires at other homes.
    pub fn next_timer(&self) -> Option<Timestamp> {
        let leaves = self.leaving.front().map(|(at, _)| *at);
        let mesh = self.mesh.as_ref().and_then(Mesh::next_timer);
        let first = [self.stitcher.next_timer(), mesh, leaves];
        let first = first.into_iter().flatten().min()?;
        Some(Timestamp(first.saturating_add(self.down_us)))
    }

    /// What was joined so far was joined before, in another run: how long that took is not known.
    pub fn forget_delays(&mut self) {
        self.named.clear();
    }

    /// Totals.
    pub fn counters(&self) -> CoreCounters {
        self.counters
    }

    /// The stitcher's totals.
    pub fn stitching_counters(&self) -> stitching::Counters {
        self.stitcher.counters()
    }

    /// Halves in memory.
    pub fn in_memory(&self) -> usize {
        self.slots.count()
    }

    /// Halves that wait for a partner.
    pub fn waiting(&self) -> usize {
        self.pending
    }

    /// Halves without partner that are past their hold.
    pub fn past_hold(&self) -> usize {
        self.past_hold
    }

    /// A half refers to its owner and its name now.
    fn hold(&mut self, half: &Half) {
        self.owners.hold(half.owner);
        if half.name != 0 {
            self.names.hold(half.name);
        }
    }

    /// A half refers to them no more.
    fn release(&mut self, half: &Half) {
        self.owners.release(half.owner);
        if half.name != 0 {
            self.names.release(half.name);
        }
    }

    /// The number of a peer's name; 0 when there is no room for it.
    fn name_number(&mut self, name: &PeerName) -> NameNumber {
        let number = (name.name.len() <= MAX_NAME_BYTES)
            .then(|| self.names.number_within(MAX_NAMES, name))
            .flatten();
        self.counters.names_dropped += u64::from(number.is_none());
        number.unwrap_or(0)
    }

    /// Owners in memory.
    pub fn owners(&self) -> usize {
        self.owners.count()
    }

    /// Rows that the next flush will write, about.
    pub fn unflushed(&self) -> usize {
        self.dirty.len() - self.held + self.overflow.unflushed() + self.lookups.len()
    }

    /// Whether the next flush has anything to write.
    pub fn changed(&self) -> bool {
        self.position != self.flushed_position
            || self.held + self.unflushed() > 0
            || !self.sought.is_empty()
    }

    /// Highest sequence number of each agent that was applied.
    pub fn sequences(&self) -> &BTreeMap<AgentKey, u64> {
        &self.sequences
    }

    /// The half begins to wait for a partner.
    fn pend(&mut self, number: SlotNumber) {
        self.pending += usize::from(!std::mem::replace(&mut self.slots[number].pending, true));
    }

    /// The half changed: its row is written with the next flush.
    fn touch(&mut self, number: SlotNumber) {
        if !self.slots[number].dirty {
            self.slots[number].dirty = true;
            self.dirty.push(number);
        }
    }

    /// Acts on what the stitcher decided.
    fn decide(&mut self) {
        while let Some(output) = self.stitcher.poll() {
            match output {
                Output::Stitched {
                    client,
                    server,
                    rule,
                } => self.stitched(client.0, server.0, rule),
                Output::Offer(handle) => self.offer(handle.0),
                Output::Ambiguous { handle, .. } => self.ambiguous(handle.0),
                Output::Contested { handle } => self.contested(handle.0),
                Output::Expired { handle, reason } => self.expired(handle.0, reason),
            }
        }
    }

    fn stitched(&mut self, client: SlotNumber, server: SlotNumber, rule: Rule) {
        if self.slots[client].matched() || self.slots[server].matched() {
            return;
        }
        let confidence = if rule == Rule::TcpIsnPair && client != server {
            // As the rules say of all such: the views need not be made.
            Confidence::Exact
        } else {
            let verdict = judge(&self.slots[client].view(), &self.slots[server].view());
            verdict.map_or(Confidence::Low, |verdict| confidence(verdict.confidence))
        };
        self.link(
            client,
            server,
            Joined {
                evidence: rule.evidence(),
                confidence,
            },
        );
        self.counters.stitched += 1;
        self.counters.matched_halves += 2;
        for number in [client, server] {
            self.withdraw(number, Withdrawn::Matched);
            self.touch(number);
        }
    }

    /// The half no longer waits for a partner.
    fn hold_over(&mut self, number: SlotNumber) {
        self.pending -= usize::from(std::mem::take(&mut self.slots[number].pending));
        self.past_hold -= usize::from(std::mem::take(&mut self.slots[number].past_hold));
    }

    fn link(&mut self, client: SlotNumber, server: SlotNumber, joined: Joined) {
        for (number, partner) in [(client, server), (server, client)] {
            self.hold_over(number);
            let slot = &mut self.slots[number];
            slot.partner = partner;
            slot.evidence = joined.evidence;
            slot.confidence = joined.confidence;
        }
    }

    fn ambiguous(&mut self, number: SlotNumber) {
        if self.slots.find(number).is_none_or(Slot::matched) {
            return;
        }
        self.counters.ambiguous += 1;
        self.hold_over(number);
        self.slots[number].unmatched = Unmatched::Ambiguous;
        self.withdraw(number, Withdrawn::Ambiguous);
        self.touch(number);
    }

    /// A third half with the same claim came: neither the pair nor the third can be trusted.
    fn contested(&mut self, number: SlotNumber) {
        let Some(partner) = self
            .slots
            .find(number)
            .filter(|slot| slot.matched())
            .map(|slot| slot.partner)
        else {
            return;
        };
        self.counters.contested += 1;
        for number in [number, partner] {
            self.withdraw(number, Withdrawn::Ambiguous);
        }
        self.part(number);
    }

    /// Undoes a match: its halves are ambiguous, and one that a peer told is forgotten.
    fn part(&mut self, number: SlotNumber) {
        let partner = self.slots[number].partner;
        for number in [number, partner] {
            self.unstore(number);
            let slot = &mut self.slots[number];
            slot.partner = NONE;
            slot.evidence = "";
            slot.card_due = false;
            slot.unmatched = Unmatched::Ambiguous;
            if slot.remote {
                let half = self.slots[number].half;
                self.release(&half);
                self.slots.remove(number);
            } else {
                self.touch(number);
            }
        }
    }

    /// The row under the half's id, if there is one, goes with the next flush.
    fn unstore(&mut self, number: SlotNumber) {
        let slot = &mut self.slots[number];
        let (id, opened_at, partner) = (slot.half.id, slot.half.opened_at, slot.partner);
        match std::mem::replace(&mut slot.stored, Stored::No) {
            Stored::No => {}
            Stored::Live => self.replaced.push(id),
            Stored::Done => {
                self.replaced_done.push(id);
                let other = self.slots.find(partner).map(|slot| slot.half.opened_at);
                let opened_at = other.map_or(opened_at, |other| other.min(opened_at));
                self.replaced_from = self.replaced_from.min(opened_at);
            }
        }
    }

    fn expired(&mut self, number: SlotNumber, reason: Reason) {
        let Some(slot) = self.slots.find(number) else {
            return;
        };
        if slot.matched() {
            return;
        }
        let reason = match reason {
            Reason::NoPartner => Unmatched::NoPartner,
            Reason::NoFingerprint => Unmatched::NoFingerprint,
            Reason::Full => {
                self.counters.memory_full += 1;
                Unmatched::NoPartner
            }
        };
        let ambiguous = slot.unmatched == Unmatched::Ambiguous;
        self.note_cut_off(number);
        self.counters.expired += 1;
        self.hold_over(number);
        if !ambiguous {
            self.slots[number].unmatched = reason;
        }
        self.withdraw(number, Withdrawn::Expired);
        self.touch(number);
    }
}

fn confidence(confidence: stitching::Confidence) -> Confidence {
    match confidence {
        stitching::Confidence::Low => Confidence::Low,
        stitching::Confidence::Medium => Confidence::Medium,
        stitching::Confidence::High => Confidence::High,
        stitching::Confidence::Exact => Confidence::Exact,
    }
}

#[cfg(test)]
mod tests;
