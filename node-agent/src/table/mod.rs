//! The connection table: which connections are open, and which rows the next batch owes.
//!
//! Contract. Inputs: [`Table::apply`] with one event and its owner, in the order of the ring; [`Table::adopt`] with a
//! connection older than the hooks. Output: [`Table::drain`], everything that changed since the last one, one row for
//! each connection: what opened and closed in between is one finished row. No clock, no IO.

pub mod kept;

use std::collections::HashMap;
use std::sync::Arc;

use weft_wire::{AgentKey, Half, HalfId, HalfState, Owner, Protocol, Timestamp};

use crate::clock::Clock;
use crate::decode::{ConnectionKey, Event};
use kept::{Kept, Slots};

/// Of so many updates one is told while detail is given up.
pub const SPARSE: i64 = 8;
/// How long a connection's turn is then.
const UPDATE_TURN_US: i64 = 10_000_000;
/// Keys of changed connections for which room is kept from one batch to the next.
const CHANGED_KEPT: usize = 8_192;

/// Who is speaking: with it a connection's id is the same after every restart of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The agent.
    pub agent: AgentKey,
    /// The kernel's boot.
    pub boot: u64,
}

/// A row for the next batch.
#[derive(Clone, Debug)]
pub struct Row {
    /// The half; its `owner` index is set when the batch is made.
    pub half: Half,
    /// Whose it is.
    pub owner: Arc<Owner>,
}

/// See the module.
#[derive(Debug)]
pub struct Table {
    identity: Identity,
    limit: usize,
    open: Slots,
    changed: Vec<ConnectionKey>,
    finished: Vec<Row>,
    dropped: u64,
    sparse: bool,
    skipped: u64,
}

impl Table {
    /// Tracks at most `limit` open connections. Beyond it a connection is reported when it closes, not before; each
    /// such omission is counted.
    pub fn new(identity: Identity, limit: usize) -> Self {
        Self {
            identity,
            limit,
            open: Slots::default(),
            changed: Vec::new(),
            finished: Vec::new(),
            dropped: 0,
            sparse: false,
            skipped: 0,
        }
    }

    /// Takes one event.
    pub fn apply(&mut self, event: &Event, owner: &Arc<Owner>, clock: &Clock) {
        let mut half = half(event, self.identity, clock);
        if event.state.finished() {
            if let Some(before) = self.open.remove(event.key) {
                half = after(half, &before);
            }
            self.finished.push(Row {
                half,
                owner: Arc::clone(owner),
            });
            return;
        }
        if let Some(before) = self.open.get_mut(event.key) {
            half = after(half, before);
            let changed = before.changed;
            // Which of its updates is told depends on when it is, so that all take turns.
            let told = !self.sparse
                || (half.seen_at.0 / UPDATE_TURN_US).rem_euclid(SPARSE)
                    == (event.key.0 as i64).rem_euclid(SPARSE);
            *before = Kept::new(event.key, &half, Arc::clone(owner));
            before.changed = changed || told;
            if before.changed && !changed {
                self.changed.push(event.key);
            }
            self.skipped += u64::from(!before.changed);
        } else if self.open.len() >= self.limit {
            // Counted once, not with each of its updates.
            self.dropped += u64::from(event.at_ns == event.opened_ns);
        } else {
            let mut kept = Kept::new(event.key, &half, Arc::clone(owner));
            kept.changed = true;
            self.open.insert(kept);
            self.changed.push(event.key);
        }
    }

    /// Whether to tell only one of [`SPARSE`] updates of connections that stay open. What ends is told with all of its counts.
    pub fn sparse(&mut self, sparse: bool) {
        self.sparse = sparse;
    }

    /// Updates not told for that.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Takes a connection that the kernel knows and the hooks do not report: open at `seen`, or gone since. One that
    /// the hooks did report is left alone, since they know more.
    pub fn adopt(&mut self, key: ConnectionKey, mut half: Half, owner: &Arc<Owner>) {
        half.id = HalfId::new(self.identity.agent, self.identity.boot, key.0);
        half.cookie = key.0;
        if self.open.contains(key) {
            return;
        }
        self.finished.push(Row {
            half,
            owner: Arc::clone(owner),
        });
    }

    /// Closes one that the kernel does not keep any more and whose end it could not report. Its last known counters stand.
    /// False when its end was reported.
    pub fn lost(&mut self, key: ConnectionKey, at: Timestamp) -> bool {
        let Some(kept) = self.open.remove(key) else {
            return false;
        };
        let at = at.max(kept.seen_at);
        self.close(kept, at);
        true
    }

    /// Its last known counters stand.
    fn close(&mut self, kept: Kept, at: Timestamp) {
        let mut half = self.row(&kept);
        half.state = HalfState::Closed;
        half.seen_at = at.max(half.seen_at);
        half.closed_at = Some(half.seen_at);
        self.finished.push(Row {
            half,
            owner: kept.owner,
        });
    }

    fn row(&self, kept: &Kept) -> Half {
        Half {
            id: HalfId::new(self.identity.agent, self.identity.boot, kept.key().0),
            ..kept.half()
        }
    }

    /// Closes what is tracked, last seen before `dumped_at` and not among the sockets that the kernel still has: its end
    /// was lost with a full ring. Its last known counters stand.
    pub fn reconcile(
        &mut self,
        alive: impl Fn(ConnectionKey, &Owner) -> bool,
        dumped_at: Timestamp,
    ) -> usize {
        let gone: Vec<ConnectionKey> = self
            .open
            .iter()
            .filter(|kept| kept.seen_at < dumped_at && !alive(kept.key(), &kept.owner))
            .map(Kept::key)
            .collect();
        for key in &gone {
            if let Some(kept) = self.open.remove(*key) {
                self.close(kept, dumped_at);
            }
        }
        gone.len()
    }

    /// Connections to look at again, of those last heard of an interval ago or longer: the hooks report on a connection when it
    /// measures a round trip, and one that only receives measures none. One that nothing moves on is looked at after one interval, two,
    /// four and so on: it becomes due when its silence passes such a length between `since` and `now`.
    pub fn due_for_a_look(
        &self,
        since: Timestamp,
        now: Timestamp,
        interval_us: i64,
    ) -> Vec<ConnectionKey> {
        let intervals = |from: Timestamp, to: Timestamp| {
            u64::try_from((to.0 - from.0) / interval_us.max(1)).unwrap_or(0)
        };
        let due = |kept: &&Kept| {
            let heard = kept.seen_at;
            let silence = intervals(heard, now);
            silence > 0 && intervals(heard, since).checked_ilog2() < silence.checked_ilog2()
        };
        self.open.iter().filter(due).map(Kept::key).collect()
    }

    /// Brings a connection up to date from another source. `look` changes the half, and says whether it did.
    pub fn refresh(&mut self, key: ConnectionKey, look: impl FnOnce(&mut Half, &Owner) -> bool) {
        let Some(kept) = self.open.get_mut(key) else {
            return;
        };
        let mut half = kept.half();
        if look(&mut half, &kept.owner) {
            let changed = kept.changed;
            *kept = Kept::new(key, &half, Arc::clone(&kept.owner));
            kept.changed = true;
            if !changed {
                self.changed.push(key);
            }
        }
    }

    /// Gives open connections the owners that took the place of theirs, by address. What is open and changed is due again.
    pub fn reown(&mut self, renewed: &HashMap<*const Owner, Arc<Owner>>) {
        for kept in self.open.iter_mut() {
            if let Some(owner) = renewed.get(&Arc::as_ptr(&kept.owner)) {
                kept.owner = Arc::clone(owner);
                if !kept.changed {
                    kept.changed = true;
                    self.changed.push(kept.key());
                }
            }
        }
        // An end that is not handed out yet is told with what is known now.
        for row in &mut self.finished {
            if let Some(owner) = renewed.get(&Arc::as_ptr(&row.owner)) {
                row.owner = Arc::clone(owner);
            }
        }
    }

    /// Hands out rows that are due, at most `limit` and what has ended first; fewer than that: there are no more.
    pub fn drain(&mut self, limit: usize) -> Vec<Row> {
        let mut rows = if self.finished.len() > limit {
            let rest = self.finished.split_off(limit);
            std::mem::replace(&mut self.finished, rest)
        } else {
            // As many are due the next time, as a rule.
            let room = Vec::with_capacity(self.finished.len());
            std::mem::replace(&mut self.finished, room)
        };
        while rows.len() < limit
            && let Some(key) = self.changed.pop()
        {
            // A connection that closed since is not in the table any more, and its finished row is above.
            let Some(kept) = self.open.get_mut(key).filter(|kept| kept.changed) else {
                continue;
            };
            kept.changed = false;
            let (half, owner) = (kept.half(), Arc::clone(&kept.owner));
            let id = HalfId::new(self.identity.agent, self.identity.boot, key.0);
            rows.push(Row {
                half: Half { id, ..half },
                owner,
            });
        }
        // What is left says whether there are more.
        while let Some(key) = self.changed.last()
            && !self.open.get_mut(*key).is_some_and(|kept| kept.changed)
        {
            self.changed.pop();
        }
        if self.changed.is_empty() {
            self.changed.shrink_to(CHANGED_KEPT);
        }
        rows
    }

    /// Who is speaking.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Rows that [`Table::drain`] would give, at most; none after it gave the last.
    pub fn pending(&self) -> usize {
        self.finished.len() + self.changed.len()
    }

    /// Connections now open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Open connections not tracked because the table was full.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether this connection is tracked.
    pub fn knows(&self, key: ConnectionKey) -> bool {
        self.open.contains(key)
    }
}

/// A later row of a connection keeps its opening time, and is later also where the clock was set back in between: a
/// federator takes the row seen last.
fn after(mut half: Half, before: &Kept) -> Half {
    half.opened_at = before.opened_at();
    half.seen_at = half.seen_at.max(before.seen_at);
    half.closed_at = half.closed_at.map(|_| half.seen_at);
    half
}

fn half(event: &Event, identity: Identity, clock: &Clock) -> Half {
    let seen_at = clock.utc(event.at_ns);
    Half {
        id: HalfId::new(identity.agent, identity.boot, event.key.0),
        cookie: event.key.0,
        protocol: Protocol::Tcp,
        role: event.role,
        state: event.state,
        fingerprint: event.fingerprint,
        local: event.local,
        remote: event.remote,
        opened_at: clock.utc(event.opened_ns),
        closed_at: event.state.finished().then_some(seen_at),
        seen_at,
        bytes_sent: event.bytes_sent,
        bytes_received: event.bytes_received,
        packets_sent: u64::from(event.packets_sent),
        packets_received: u64::from(event.packets_received),
        rtt_us: event.rtt_us,
        retransmits: event.retransmits,
        owner: 0,
        ..Half::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use weft_wire::{Fingerprint, Role};

    use super::*;
    use crate::decode::OwnerKey;

    const IDENTITY: Identity = Identity {
        agent: AgentKey(1),
        boot: 2,
    };

    fn event(key: u64, state: HalfState, at_ns: u64) -> Event {
        Event {
            key: ConnectionKey(key),
            role: Role::Client,
            state,
            fingerprint: Fingerprint::TcpIsn {
                client: 1,
                server: 2,
            },
            local: "10.0.0.1:1".parse().unwrap(),
            remote: "10.0.0.2:2".parse().unwrap(),
            opened_ns: 1_000,
            at_ns,
            bytes_sent: at_ns,
            bytes_received: 0,
            packets_sent: 0,
            packets_received: 0,
            rtt_us: 0,
            retransmits: 0,
            owner: OwnerKey::default(),
        }
    }

    fn table(limit: usize) -> Table {
        Table::new(IDENTITY, limit)
    }

    fn apply(table: &mut Table, event: &Event) {
        table.apply(event, &Arc::new(Owner::default()), &Clock::new(0));
    }

    #[test]
    fn opened_and_closed_within_one_batch_is_one_row() {
        let mut table = table(8);
        apply(&mut table, &event(1, HalfState::Open, 2_000));
        apply(&mut table, &event(1, HalfState::Closed, 3_000));
        let rows = table.drain(usize::MAX);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].half.state, HalfState::Closed);
        assert_eq!(rows[0].half.id, HalfId::new(AgentKey(1), 2, 1));
        assert!(table.drain(usize::MAX).is_empty());
    }

    #[test]
    fn a_sparse_table_tells_one_update_of_eight_and_the_exact_end() {
        let mut table = table(8);
        apply(&mut table, &event(5, HalfState::Open, 1_000));
        table.drain(usize::MAX);
        table.sparse(true);
        let turns = 1..=64_u64;
        let told = turns.filter(|turn| {
            apply(
                &mut table,
                &event(5, HalfState::Open, turn * 10_000_000_000),
            );
            !table.drain(usize::MAX).is_empty()
        });
        assert_eq!((told.count(), table.skipped()), (8, 56));
        apply(&mut table, &event(5, HalfState::Closed, 777_000_000_000));
        let rows = table.drain(usize::MAX);
        assert_eq!((rows.len(), rows[0].half.bytes_sent), (1, 777_000_000_000));
    }

    #[test]
    fn rows_are_handed_out_in_parts() {
        let mut table = table(64);
        for key in 0..10 {
            apply(&mut table, &event(key, HalfState::Open, 1_000));
        }
        for key in 0..4 {
            apply(&mut table, &event(key, HalfState::Closed, 2_000));
        }
        let parts: Vec<(usize, bool)> = (0..4)
            .map(|_| (table.drain(3).len(), table.pending() == 0))
            .collect();
        assert_eq!(parts, [(3, false), (3, false), (3, false), (1, true)]);
    }

    #[test]
    fn a_full_table_counts_and_still_reports_the_end() {
        let mut table = table(1);
        apply(&mut table, &event(1, HalfState::Open, 1_000));
        apply(&mut table, &event(2, HalfState::Open, 1_000));
        apply(&mut table, &event(2, HalfState::Closed, 3_000));
        assert_eq!((table.open(), table.dropped()), (1, 1));
        assert_eq!(table.drain(usize::MAX).len(), 2);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_the_end_older_than_the_opening() {
        let mut table = table(8);
        let owner = Arc::new(Owner::default());
        table.apply(
            &event(1, HalfState::Open, 2_000),
            &owner,
            &Clock::new(5_000),
        );
        table.apply(&event(1, HalfState::Closed, 3_000), &owner, &Clock::new(0));
        let half = table.drain(usize::MAX)[0].half;
        assert_eq!(
            (half.opened_at, half.seen_at),
            (Timestamp(5_001), Timestamp(5_002))
        );
        assert_eq!(half.closed_at, Some(Timestamp(5_002)));
    }

    #[test]
    fn a_renewed_owner_is_told_of_what_is_open() {
        let mut table = table(8);
        let (old, other) = (Arc::new(Owner::default()), Arc::new(Owner::default()));
        table.apply(&event(1, HalfState::Open, 2_000), &old, &Clock::new(0));
        table.apply(&event(2, HalfState::Open, 2_000), &other, &Clock::new(0));
        table.drain(usize::MAX);
        let new = Arc::new(Owner {
            workload: "checkout".into(),
            ..Owner::default()
        });
        table.reown(&HashMap::from([(Arc::as_ptr(&old), new)]));
        let rows = table.drain(usize::MAX);
        assert_eq!(
            (rows.len(), rows[0].owner.workload.as_str()),
            (1, "checkout")
        );
        assert!(table.drain(usize::MAX).is_empty());
    }

    #[test]
    fn a_silent_connection_is_looked_at_ever_more_rarely() {
        let mut table = table(8);
        apply(&mut table, &event(1, HalfState::Open, 1_000));
        let looks: Vec<i64> = (1..40)
            .filter(|second| {
                let at = |second: i64| Timestamp(second * 1_000_000 + 500);
                let due = table.due_for_a_look(at(second - 1), at(*second), 1_000_000);
                !due.is_empty()
            })
            .collect();
        assert_eq!(looks, [1, 2, 4, 8, 16, 32]);
    }

    #[test]
    fn a_connection_beyond_the_limit_counts_once() {
        let mut table = table(1);
        let opened = |key, at_ns| Event {
            opened_ns: 2_000,
            ..event(key, HalfState::Open, at_ns)
        };
        for at_ns in [2_000, 3_000, 4_000] {
            apply(&mut table, &opened(1, at_ns));
            apply(&mut table, &opened(2, at_ns));
        }
        assert_eq!(table.dropped(), 1);
    }

    #[test]
    fn an_end_lost_by_the_kernel_is_found_missing() {
        let mut table = table(8);
        apply(&mut table, &event(1, HalfState::Open, 2_000));
        apply(&mut table, &event(2, HalfState::Open, 2_000));
        apply(&mut table, &event(3, HalfState::Open, 9_000_000));
        table.drain(usize::MAX);
        let gone = table.reconcile(|key, _| key == ConnectionKey(1), Timestamp(5_000));
        let rows = table.drain(usize::MAX);
        assert_eq!((gone, rows.len()), (1, 1));
        assert_eq!(rows[0].half.closed_at, Some(Timestamp(5_000)));
        assert!(table.knows(ConnectionKey(1)) && table.knows(ConnectionKey(3)));
    }

    proptest! {
        /// Whatever the order of batches, the last row of each connection is what a plain map of last events says.
        #[test]
        fn the_last_row_is_the_last_event(
            steps in proptest::collection::vec((0_u64..6, 0_u8..4), 0..200)
        ) {
            let mut table = table(64);
            let (mut expected, mut got) = (BTreeMap::new(), BTreeMap::new());
            let mut closed = std::collections::BTreeSet::new();
            let mut time = 1_000;
            let take = |table: &mut Table, got: &mut BTreeMap<HalfId, Half>| {
                for row in table.drain(usize::MAX) {
                    got.insert(row.half.id, row.half);
                }
            };
            for (key, what) in steps {
                time += 1_000;
                if closed.contains(&key) {
                    continue;
                }
                let state = match what {
                    0 => { take(&mut table, &mut got); continue }
                    1 => HalfState::Closed,
                    _ => HalfState::Open,
                };
                if state == HalfState::Closed {
                    closed.insert(key);
                }
                let event = event(key, state, time);
                apply(&mut table, &event);
                expected.insert(HalfId::new(AgentKey(1), 2, key), (state, time));
            }
            take(&mut table, &mut got);
            let got: BTreeMap<_, _> = got.into_iter().map(|(id, half)| (id, (half.state, half.bytes_sent))).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
