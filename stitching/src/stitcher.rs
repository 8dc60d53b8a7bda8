//! Finds the pairs among millions of halves.

use std::collections::VecDeque;

use crate::datagrams::{Blind, Verdict};
use crate::judge::Rule;
use crate::table::{Entry, Met, Slot, State, Table, Walk};
use crate::timers::{SEQUENCE_BITS, Timer, Timers, kept};
use crate::view::{Fingerprint, Halves, Role};

pub use crate::terms::{Candidate, Config, Counters, Handle, Key, Output, Reason};

/// Joins halves into connections.
///
/// # Contract
///
/// **Inputs.** [`insert`](Self::insert) gives halves, each handle once; [`closed`](Self::closed) says that halves
/// which have no partner yet have closed (the rule `tcp-client-isn` needs it); [`settle`](Self::settle) that a half
/// got its partner elsewhere; [`distrust`](Self::distrust) that one was ambiguous before this stitcher knew it;
/// [`remove`](Self::remove) that the caller has forgotten one;
/// [`advance`](Self::advance) that time has passed. Call `advance` often (every 10 ms or at [`next_timer`](Self::next_timer)),
/// after what arrived before `now` was inserted. Time never goes back: an earlier `now` counts as the latest one.
///
/// **Outputs** wait in a queue; [`poll`](Self::poll) it empty after every input (it has no limit of its own: an input
/// adds at most a few outputs for each half it is about).
///
/// **Life of a half.** It waits `hold` for a partner at home, is then given out once as [`Output::Offer`], waits on
/// until `expiry` after its insertion, and is given out as [`Output::Expired`] and forgotten. If by then its connection
/// is still open ([`Halves::view`] says so), it goes on waiting, silently, until it is closed or forgotten by the
/// caller: the other end's agent may yet start. Timers have a grain of 1 ms.
///
/// **Facts.** The stitcher keeps 17 bytes of a half; where a rule needs more it asks the [`Halves`] passed in, which
/// must know each half that is inserted and not yet stitched or expired, and should still know stitched
/// ones for `hold` more (else a contest by tuple goes unnoticed). A handle may be used for a new half once the
/// old one is removed, or has expired and closed, or was stitched longer than `expiry` ago.
///
/// **What is decided.** Rules in their order, [`Rule`]:
/// - `tcp-isn-pair`, as soon as both ends are known.
/// - `tcp-client-isn`, for halves past their hold, both closed, when [`judge`](crate::judge()) says yes to the pair and no
///   to every other pair that either could make. While it would say "later" to another, it waits.
/// - `reversed-tuple`, for halves past their hold of which at least one has no ISN, under the same condition.
/// - `quic-connection-id` and `udp-first-datagram`, for halves past their hold, under the same condition: first among those
///   with the same addresses, then among those whose client sent the same first datagram. More of these than
///   64 are ambiguous, and so is every one for `expiry` after one of them found no room.
///
/// **Ambiguity.** Two halves of one role with one fingerprint, known at the same time, make every half with that
/// fingerprint ambiguous for as long as any of them is known: also those that come later. The order of arrival does
/// not matter: where the pair was made before the third half came, the pair is [`Output::Contested`], and the third
/// ambiguous. Pairs are remembered for that until the `expiry` of the half that came first, as long as there is room (for
/// a seventh of `max_open`, and for as many more as fewer halves wait than may;
/// [`Counters::not_remembered`]). The first of two halves whose partner never comes is not wronged: both are
/// ambiguous, not stitched. Guaranteed is therefore: a pair stands only if no third half with the same fingerprint came
/// within `expiry`, or `not_remembered` counted.
///
/// **Limits.** Fixed memory from [`Config::max_open`], taken when the table fills up. See [`Reason::Full`],
/// [`Counters`].
pub struct Stitcher {
    pub(crate) config: Config,
    pub(crate) now: i64,
    /// Halves with ISNs, by (client ISN, server ISN), and UDP flows, by their first datagrams.
    pub(crate) isn: Index,
    /// Halves without, and offered ones with ISNs as hints, by tuple key.
    pub(crate) tuple: Index,
    out: VecDeque<Output>,
    pub(crate) counters: Counters,
    pub(crate) blind: Blind,
    /// Reused between calls.
    group: Vec<(Slot, Entry)>,
}

/// A table and the timers of its entries.
pub(crate) struct Index {
    pub(crate) table: Table,
    hold: Timers,
    expiry: Timers,
    /// Entries beyond which pairs are no longer remembered, and hints no longer taken.
    remember_up_to: usize,
}

/// Halves worked on together, so that their memory accesses overlap.
const BLOCK: usize = 128;
/// Slots for every hundred halves that may wait. At 48 to 55 % full, few searches leave the first pair of buckets.
const SLOTS_PERCENT: usize = 208;
/// Pairs are remembered, and hints taken, while less than this part of the slots is in use.
const REMEMBER_PERCENT: usize = 55;
/// The index by tuple has room for one in this many of the halves that may wait.
const TUPLE_SHARE: usize = 4;
/// Hints take one in this many of its places: halves without ISNs have no other index, and must not be crowded out.
const HINT_SHARE: usize = 2;
const MAX_OPEN: usize = 1 << 30;
/// Where the numbers of the second queue of timers begin: as far from the first one's as can be. An entry does not say in which
/// queue its timer is, and finds the timer of another with the same routing word if that has the same number.
const EXPIRY_NUMBERS: u32 = 1 << (SEQUENCE_BITS - 1);

impl Index {
    fn new(max_open: usize, seed: u32) -> Self {
        let table = Table::new(max_open.max(64) * SLOTS_PERCENT / 100, seed);
        let remember_up_to = table.slots() * REMEMBER_PERCENT / 100;
        Self {
            table,
            hold: Timers::new(timers_at_most(max_open), 0),
            expiry: Timers::new(0, EXPIRY_NUMBERS),
            remember_up_to,
        }
    }

    pub(crate) fn add(&mut self, entry: Entry, now: i64) -> bool {
        if self.table.occupied() >= self.remember_up_to {
            return false;
        }
        let found = self.table.find_key(entry.a, entry.b);
        let Some(slot) = self.table.place(entry, &found) else {
            return false;
        };
        if entry.state == State::Held {
            self.begin_hold(slot, entry.a, now);
        } else {
            self.begin_expiry(slot, entry.a, now);
        }
        true
    }

    #[inline]
    pub(crate) fn begin_hold(&mut self, slot: Slot, a: u32, now: i64) {
        let sequence = self.hold.push(now, a);
        self.table.set_sequence(slot, sequence);
    }

    pub(crate) fn begin_expiry(&mut self, slot: Slot, a: u32, now: i64) {
        let sequence = self.expiry.push(now, a);
        self.table.set_sequence(slot, sequence);
    }

    /// Forgets an entry, and its hold.
    #[inline]
    pub(crate) fn clear(&mut self, slot: Slot) {
        if self
            .table
            .entry(slot)
            .is_some_and(|entry| entry.state == State::Held)
        {
            self.hold.cancel(self.table.sequence(slot), 0);
        }
        self.table.clear(slot);
    }

    /// The entry has its partner: remember it if there is room. Returns whether there was.
    pub(crate) fn matched(&mut self, slot: Slot, state: State) -> bool {
        let room = self.table.occupied() <= self.remember_up_to;
        if room {
            self.table.set_state(slot, state);
        } else {
            self.clear(slot);
        }
        room
    }

    fn allocated_bytes(&self) -> usize {
        self.table.allocated_bytes() + self.hold.allocated_bytes() + self.expiry.allocated_bytes()
    }
}

impl Stitcher {
    /// An empty stitcher.
    pub fn new(config: Config) -> Self {
        let config = Config {
            max_open: config.max_open.clamp(1, MAX_OPEN),
            ..config
        };
        Self {
            now: i64::MIN,
            isn: Index::new(config.max_open, config.seed as u32),
            tuple: Index::new(config.max_open / TUPLE_SHARE, (config.seed >> 32) as u32),
            out: VecDeque::new(),
            counters: Counters::default(),
            blind: Blind::default(),
            group: Vec::new(),
            config,
        }
    }

    /// Takes halves. The larger the batch, the faster; hundreds are enough.
    pub fn insert(&mut self, now: i64, halves: &[Candidate]) {
        self.now = self.now.max(now);
        let mut walks = [Walk::default(); BLOCK];
        for block in halves.chunks(BLOCK) {
            self.isn
                .table
                .touch(block.iter().map(|half| words(half.key).0), &mut walks);
            self.counters.inserted += block.len() as u64;
            self.insert_block(block, &walks);
        }
    }

    /// The common cases of halves with ISNs are done here, with as little as possible for each; the others elsewhere.
    fn insert_block(&mut self, block: &[Candidate], walks: &[Walk; BLOCK]) {
        // Timers to be started at the end of the block.
        let (mut fresh, mut begun) = ([0; BLOCK], 0);
        for (half, walk) in block.iter().zip(walks) {
            let Key::Isn { client, server } = half.key else {
                // What follows may start a timer too.
                self.isn.hold.extend(self.now, &fresh[..begun]);
                begun = 0;
                match half.key {
                    Key::Datagrams { flow, client } => self.insert_datagrams(half, flow, client),
                    Key::Tuple(_) | Key::Isn { .. } => self.insert_tuple(half, half.key),
                }
                continue;
            };
            let new = Entry {
                a: client,
                b: server,
                handle: half.handle.0,
                role: half.role,
                state: State::Held,
            };
            let room = self.isn.table.open() < self.config.max_open;
            let sequence = kept(self.isn.hold.upcoming().wrapping_add(begun as u32));
            match self.isn.table.meet(*walk, &new, sequence, room) {
                Met::Stored => {
                    fresh[begun] = client;
                    begun += 1;
                }
                Met::Partner {
                    handle,
                    slot,
                    distance,
                    held,
                    sequence,
                } => {
                    let partner = Entry {
                        handle,
                        role: half.role.opposite(),
                        ..new
                    };
                    self.pair(Rule::TcpIsnPair, new, partner);
                    let keep = self.isn.table.occupied() <= self.isn.remember_up_to;
                    if held && !keep {
                        self.isn.hold.cancel(sequence, BLOCK);
                    }
                    self.isn.table.settle(*walk, slot, distance, keep);
                    self.counters.not_remembered += u64::from(!keep);
                }
                Met::Elsewhere => {
                    self.isn.hold.extend(self.now, &fresh[..begun]);
                    begun = 0;
                    self.insert_isn(half, *walk, client, server);
                }
            }
        }
        self.isn.hold.extend(self.now, &fresh[..begun]);
    }

    /// These halves, inserted and without partner so far, have closed; `halves` knows when and with what counters.
    pub fn closed(&mut self, now: i64, closed: &[Candidate], halves: &impl Halves) {
        self.now = self.now.max(now);
        for half in closed {
            match half.key {
                Key::Isn { client, .. } => {
                    if let Some((slot, entry)) = self.isn.table.find(client, half.handle.0)
                        && matches!(entry.state, State::Offered | State::Dormant)
                    {
                        self.try_client_isn(slot, entry, halves);
                    }
                }
                Key::Datagrams { client, .. } => {
                    self.try_first_datagram(client, half.handle.0, halves);
                }
                Key::Tuple(_) => {}
            }
        }
    }

    /// The half got its partner elsewhere. It stays known, so that a third half is noticed.
    pub fn settle(&mut self, half: &Candidate) {
        let (a, _) = words(half.key);
        let index = self.index(half.key);
        if let Some((slot, entry)) = index.table.find(a, half.handle.0)
            && !entry.state.remembered()
            && !index.matched(slot, State::Matched)
        {
            self.counters.not_remembered += 1;
        }
        if let Some((twin, entry)) = self.twin(half)
            && !entry.state.remembered()
        {
            self.isn.matched(twin, State::Matched);
        }
    }

    /// The half, just inserted, was found ambiguous in another run. It stays so, and makes others so: those that it could not be
    /// told from may be gone, and what is left of them would look like a pair.
    pub fn distrust(&mut self, half: &Candidate) {
        let (a, _) = words(half.key);
        let twin = self.twin(half);
        let index = self.index(half.key);
        if let Some((slot, entry)) = index.table.find(a, half.handle.0)
            && entry.state.waits()
        {
            index.table.set_state(slot, State::Ambiguous);
        }
        if let Some((twin, entry)) = twin
            && entry.state.waits()
        {
            self.isn.table.set_state(twin, State::Ambiguous);
        }
    }

    fn twin(&self, half: &Candidate) -> Option<(Slot, Entry)> {
        match half.key {
            Key::Datagrams { client, .. } => self.isn.table.find(client, half.handle.0),
            Key::Isn { .. } | Key::Tuple(_) => None,
        }
    }

    /// The caller has forgotten the half: as if it had never been.
    pub fn remove(&mut self, half: &Candidate) {
        let (a, _) = words(half.key);
        let index = self.index(half.key);
        if let Some((slot, _)) = index.table.find(a, half.handle.0) {
            index.clear(slot);
        }
        if let Some((twin, _)) = self.twin(half) {
            self.isn.clear(twin);
        }
    }

    /// Time has passed: offers what has been held long enough, expires what is too old.
    pub fn advance(&mut self, now: i64, halves: &impl Halves) {
        self.now = self.now.max(now);
        let (hold, expiry) = (
            self.now.saturating_sub(self.config.hold_us),
            self.now.saturating_sub(self.config.expiry_us),
        );
        let limit = timers_at_most(self.config.max_open);
        let mut due = [Timer::default(); BLOCK];
        self.run(
            hold,
            limit,
            &mut due,
            |s| &mut s.tuple.hold,
            |s| &s.tuple.table,
            |s, slot, e| s.tuple_held(slot, e, halves),
        );
        self.run(
            hold,
            limit,
            &mut due,
            |s| &mut s.isn.hold,
            |s| &s.isn.table,
            |s, slot, e| s.isn_held(slot, e, halves),
        );
        self.run(
            expiry,
            limit,
            &mut due,
            |s| &mut s.isn.expiry,
            |s| &s.isn.table,
            |s, slot, e| s.isn_expired(slot, e, halves),
        );
        self.run(
            expiry,
            limit,
            &mut due,
            |s| &mut s.tuple.expiry,
            |s| &s.tuple.table,
            |s, slot, e| s.tuple_expired(slot, e, halves),
        );
    }

    /// The earliest time at which [`advance`](Self::advance) has something to do.
    pub fn next_timer(&self) -> Option<i64> {
        let after =
            |timers: &Timers, delay: i64| timers.oldest().map(|at| at.saturating_add(delay));
        [
            after(&self.isn.hold, self.config.hold_us),
            after(&self.tuple.hold, self.config.hold_us),
            after(&self.isn.expiry, self.config.expiry_us),
            after(&self.tuple.expiry, self.config.expiry_us),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next decision.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// Halves that wait now. An offered one with ISNs counts twice while the index by tuple has a hint to it.
    pub fn open(&self) -> usize {
        self.isn.table.open() + self.tuple.table.open()
    }

    /// Totals since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Memory asked for, all included.
    pub fn allocated_bytes(&self) -> usize {
        self.isn.allocated_bytes()
            + self.tuple.allocated_bytes()
            + self.out.capacity() * size_of::<Output>()
            + self.group.capacity() * size_of::<(Slot, Entry)>()
            + self.blind.allocated_bytes()
    }

    fn index(&mut self, key: Key) -> &mut Index {
        match key {
            Key::Isn { .. } | Key::Datagrams { .. } => &mut self.isn,
            Key::Tuple(_) => &mut self.tuple,
        }
    }

    #[inline(never)]
    fn insert_isn(&mut self, half: &Candidate, walk: Walk, client: u32, server: u32) {
        let new = Entry {
            a: client,
            b: server,
            handle: half.handle.0,
            role: half.role,
            state: State::Held,
        };
        let found = self.isn.table.find_key_from(walk, client, server);
        if let Some(slot) = found.hit {
            let pair = self
                .isn
                .table
                .entry(slot)
                .filter(|e| !found.several && e.state.waits() && e.role != half.role);
            match pair {
                Some(partner) => {
                    self.pair(Rule::TcpIsnPair, new, partner);
                    self.counters.not_remembered +=
                        u64::from(!self.isn.matched(slot, State::Matched));
                }
                None => self.join_crowd(new),
            }
            return;
        }
        let room = self.isn.table.open() < self.config.max_open;
        match room.then(|| self.isn.table.place(new, &found)).flatten() {
            Some(slot) => self.isn.begin_hold(slot, client, self.now),
            None => self.full(half.handle),
        }
    }

    /// There is more than one half with this fingerprint already, or one of this role, or a pair.
    fn join_crowd(&mut self, new: Entry) {
        let mut group = std::mem::take(&mut self.group);
        group.clear();
        self.isn.table.with_routing(new.a, |slot, entry| {
            if entry.b == new.b {
                group.push((slot, entry));
            }
        });
        if group
            .iter()
            .any(|(_, e)| e.handle == new.handle && e.role == new.role)
        {
            self.counters.repeated += 1;
        } else {
            for (slot, entry) in &group {
                self.doubt(Rule::TcpIsnPair, *entry);
                self.isn.table.set_state(*slot, doubted(entry.state));
            }
            self.ambiguous(Rule::TcpIsnPair, new.handle);
            let _best_effort = self.isn.add(
                Entry {
                    state: State::Ambiguous,
                    ..new
                },
                self.now,
            );
        }
        self.group = group;
    }

    fn insert_tuple(&mut self, half: &Candidate, key: Key) {
        let (a, b) = words(key);
        let known = self.tuple.table.find(a, half.handle.0);
        if known.is_some_and(|(_, e)| e.b == b && e.role == half.role) {
            self.counters.repeated += 1;
            return;
        }
        let new = Entry {
            a,
            b,
            handle: half.handle.0,
            role: half.role,
            state: State::Held,
        };
        if !self.tuple.add(new, self.now) {
            self.full(half.handle);
        }
    }

    /// Works off the due timers of one queue, block by block.
    fn run(
        &mut self,
        until: i64,
        limit: usize,
        due: &mut [Timer; BLOCK],
        queue: impl Fn(&mut Self) -> &mut Timers,
        table: impl Fn(&Self) -> &Table,
        work: impl Fn(&mut Self, Slot, Entry),
    ) {
        let mut walks = [Walk::default(); BLOCK];
        loop {
            let early = queue(self).oldest().is_some_and(|oldest| oldest > until);
            let n = queue(self).pop(until, limit, due);
            if n == 0 {
                return;
            }
            self.counters.timers_early += if early { n as u64 } else { 0 };
            table(self).touch(due[..n].iter().map(|timer| timer.a), &mut walks);
            for (timer, walk) in due[..n].iter().zip(walks) {
                if let Some((slot, entry)) = table(self).find_timed(walk, timer.a, timer.sequence) {
                    work(self, slot, entry);
                }
            }
        }
    }

    /// The hold of a half with ISNs is over.
    fn isn_held(&mut self, slot: Slot, entry: Entry, halves: &impl Halves) {
        let Entry { a, handle, .. } = entry;
        self.isn.begin_expiry(slot, a, self.now_of_insertion());
        if entry.state != State::Held {
            return;
        }
        self.isn.table.set_state(slot, State::Offered);
        let entry = Entry {
            state: State::Offered,
            ..entry
        };
        let Some(view) = halves.view(Handle(handle)) else {
            return;
        };
        if view.is_self_connection() {
            self.pair(Rule::TcpIsnPair, entry, entry);
            self.isn.matched(slot, State::Matched);
            return;
        }
        let verdict = match view.fingerprint {
            Fingerprint::Datagrams(_) => self.datagrams_held(slot, entry, &view, halves),
            Fingerprint::TcpIsn { .. } | Fingerprint::Unknown => {
                match self.try_client_isn(slot, entry, halves) {
                    true => Verdict::Given,
                    false => Verdict::None,
                }
            }
        };
        let found =
            verdict == Verdict::Given || self.index_by_tuple(entry, view.tuple_key(), halves);
        if !found && verdict == Verdict::None {
            self.offer(handle);
        }
    }

    /// Makes an offered half with ISNs known to those without. Whether that led to a verdict.
    fn index_by_tuple(&mut self, entry: Entry, key: u64, halves: &impl Halves) -> bool {
        let (a, b) = words(Key::Tuple(key));
        let hint = Entry { a, b, ..entry };
        let room = self.tuple.table.occupied() < self.tuple.remember_up_to / HINT_SHARE;
        let added = room && self.tuple.add(hint, self.now_of_insertion());
        self.counters.not_indexed += u64::from(!added);
        let slot = self.tuple.table.find(a, entry.handle).filter(|_| added);
        slot.is_some_and(|(slot, _)| self.try_tuple(slot, hint, halves))
    }

    /// The hold of a half without ISNs is over.
    fn tuple_held(&mut self, slot: Slot, entry: Entry, halves: &impl Halves) {
        let Entry { a, handle, .. } = entry;
        self.tuple.begin_expiry(slot, a, self.now_of_insertion());
        if entry.state != State::Held {
            return;
        }
        self.tuple.table.set_state(slot, State::Offered);
        let entry = Entry {
            state: State::Offered,
            ..entry
        };
        if halves.view(Handle(handle)).is_some() && !self.try_tuple(slot, entry, halves) {
            self.offer(handle);
        }
    }

    /// Expiry counts from insertion; its timer is started at the end of the hold.
    pub(crate) fn now_of_insertion(&self) -> i64 {
        self.now.saturating_sub(self.config.hold_us)
    }

    fn isn_expired(&mut self, slot: Slot, entry: Entry, halves: &impl Halves) {
        let Entry { a, handle, .. } = entry;
        if entry.state == State::Held {
            return; // The timer was of another that is gone.
        }
        match halves.view(Handle(handle)) {
            Some(view) if matches!(view.fingerprint, Fingerprint::Datagrams(_)) => {
                return self.datagrams_expired(slot, entry, &view, halves);
            }
            None if Self::is_twin(&entry) => return self.isn.clear(slot),
            _ => {}
        }
        if entry.state.waits() && self.try_client_isn(slot, entry, halves) {
            // Kept, so that a third half is noticed.
            if self
                .isn
                .table
                .entry(slot)
                .is_some_and(|left| left.handle == handle)
            {
                self.isn.begin_expiry(slot, a, self.now_of_insertion());
            }
            return;
        }
        if entry.state.waits()
            && halves
                .view(Handle(handle))
                .is_some_and(|view| view.closed_at.is_none())
        {
            self.isn.table.set_state(slot, State::Dormant);
            self.isn.begin_expiry(slot, a, self.now_of_insertion());
        } else {
            self.isn.table.clear(slot);
        }
        if entry.state == State::Offered {
            self.expired(handle, Reason::NoPartner);
        }
    }

    fn tuple_expired(&mut self, slot: Slot, entry: Entry, halves: &impl Halves) {
        let Entry { a, handle, .. } = entry;
        if entry.state == State::Held {
            return; // The timer was of another that is gone.
        }
        let view = halves.view(Handle(handle));
        let hint = view.is_some_and(|view| view.fingerprint != Fingerprint::Unknown);
        if entry.state.waits() && view.is_some_and(|view| view.closed_at.is_none()) {
            self.tuple.table.set_state(slot, State::Dormant);
            self.tuple.begin_expiry(slot, a, self.now_of_insertion());
        } else {
            self.tuple.table.clear(slot);
        }
        // A hint's own entry, by its ISNs, says it.
        if entry.state == State::Offered && !hint {
            self.expired(handle, Reason::NoFingerprint);
        }
    }

    pub(crate) fn pair(&mut self, rule: Rule, x: Entry, y: Entry) {
        let (client, server) = if x.role == Role::Client {
            (x, y)
        } else {
            (y, x)
        };
        self.counters.stitched += 1;
        self.out.push_back(Output::Stitched {
            client: Handle(client.handle),
            server: Handle(server.handle),
            rule,
        });
    }

    /// Says what a third half means for one that was there before.
    pub(crate) fn doubt(&mut self, rule: Rule, entry: Entry) {
        match entry.state {
            State::Matched | State::MatchedInPart => {
                self.counters.contested += 1;
                self.out.push_back(Output::Contested {
                    handle: Handle(entry.handle),
                });
            }
            State::Held | State::Offered | State::Dormant => self.ambiguous(rule, entry.handle),
            State::Ambiguous | State::Contested => {}
        }
    }

    pub(crate) fn ambiguous(&mut self, rule: Rule, handle: u32) {
        self.counters.ambiguous += 1;
        self.out.push_back(Output::Ambiguous {
            handle: Handle(handle),
            rule,
        });
    }

    pub(crate) fn offer(&mut self, handle: u32) {
        self.counters.offered += 1;
        self.out.push_back(Output::Offer(Handle(handle)));
    }

    pub(crate) fn expired(&mut self, handle: u32, reason: Reason) {
        self.counters.expired += 1;
        self.out.push_back(Output::Expired {
            handle: Handle(handle),
            reason,
        });
    }

    pub(crate) fn full(&mut self, handle: Handle) {
        self.counters.full += 1;
        self.out.push_back(Output::Expired {
            handle,
            reason: Reason::Full,
        });
    }
}

/// Timers of a queue beyond which the oldest run early.
fn timers_at_most(max_open: usize) -> usize {
    max_open.saturating_mul(2).max(BLOCK)
}

/// What becomes of an entry when a third half comes.
fn doubted(state: State) -> State {
    if state.remembered() {
        State::Contested
    } else {
        State::Ambiguous
    }
}

/// Both words of a key: the first finds the bucket.
pub(crate) fn words(key: Key) -> (u32, u32) {
    match key {
        Key::Isn { client, server } => (client, server),
        Key::Tuple(key) => ((key >> 32) as u32, key as u32),
        Key::Datagrams { flow, .. } => (flow[0], flow[1]),
    }
}
