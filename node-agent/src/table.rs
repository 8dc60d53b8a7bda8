//! The connection table: which connections are open, and which rows the next batch owes.
//!
//! Contract. Inputs: [`Table::apply`] with one event and its owner, in the order of the ring; [`Table::adopt`] with a
//! connection older than the hooks. Output: [`Table::drain`], everything that changed since the last one, one row for
//! each connection: what opened and closed in between is one finished row. No clock, no IO.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use weft_wire::{AgentKey, Half, HalfId, HalfState, Owner, Protocol, Timestamp, mix64};

use crate::clock::Clock;
use crate::decode::{ConnectionKey, Event};

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
    open: HashMap<ConnectionKey, Tracked, Mix>,
    changed: Vec<ConnectionKey>,
    finished: Vec<Row>,
    dropped: u64,
}

#[derive(Debug)]
struct Tracked {
    row: Row,
    changed: bool,
}

impl Table {
    /// Tracks at most `limit` open connections. Beyond it a connection is reported when it closes, not before; each
    /// such omission is counted.
    pub fn new(identity: Identity, limit: usize) -> Self {
        Self {
            identity,
            limit,
            open: HashMap::with_hasher(Mix),
            changed: Vec::new(),
            finished: Vec::new(),
            dropped: 0,
        }
    }

    /// Takes one event.
    pub fn apply(&mut self, event: &Event, owner: &Arc<Owner>, clock: &Clock) {
        let mut half = half(event, self.identity, clock);
        if event.state.finished() {
            if let Some(before) = self.open.remove(&event.key) {
                half = after(half, &before.row.half);
            }
            self.finished.push(Row {
                half,
                owner: Arc::clone(owner),
            });
            return;
        }
        let full = self.open.len() >= self.limit;
        match self.open.entry(event.key) {
            Entry::Occupied(mut entry) => {
                let tracked = entry.get_mut();
                half = after(half, &tracked.row.half);
                tracked.row = Row {
                    half,
                    owner: Arc::clone(owner),
                };
                if !tracked.changed {
                    tracked.changed = true;
                    self.changed.push(event.key);
                }
            }
            // Counted once, not with each of its updates.
            Entry::Vacant(_) if full => {
                self.dropped += u64::from(event.at_ns == event.opened_ns);
            }
            Entry::Vacant(entry) => {
                entry.insert(Tracked {
                    row: Row {
                        half,
                        owner: Arc::clone(owner),
                    },
                    changed: true,
                });
                self.changed.push(event.key);
            }
        }
    }

    /// Takes a connection that the kernel knows and the hooks do not report: open at `seen`, or gone since. One that
    /// the hooks did report is left alone, since they know more.
    pub fn adopt(&mut self, key: ConnectionKey, mut half: Half, owner: &Arc<Owner>) {
        half.id = HalfId::new(self.identity.agent, self.identity.boot, key.0);
        half.cookie = key.0;
        if self.open.contains_key(&key) {
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
        let Some(mut tracked) = self.open.remove(&key) else {
            return false;
        };
        let half = &mut tracked.row.half;
        half.state = HalfState::Closed;
        half.seen_at = half.seen_at.max(at);
        half.closed_at = Some(half.seen_at);
        self.finished.push(tracked.row);
        true
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
            .filter(|(key, tracked)| {
                tracked.row.half.seen_at < dumped_at && !alive(**key, &tracked.row.owner)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in &gone {
            if let Some(mut tracked) = self.open.remove(key) {
                tracked.row.half.state = HalfState::Closed;
                tracked.row.half.closed_at = Some(dumped_at);
                self.finished.push(tracked.row);
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
        let due = |tracked: &&Tracked| {
            let heard = tracked.row.half.seen_at;
            let silence = intervals(heard, now);
            silence > 0 && intervals(heard, since).checked_ilog2() < silence.checked_ilog2()
        };
        self.open
            .iter()
            .filter(|(_, tracked)| due(tracked))
            .map(|(key, _)| *key)
            .collect()
    }

    /// Brings connections up to date from another source. `look` changes the half, and says whether it did.
    pub fn refresh(
        &mut self,
        keys: &[ConnectionKey],
        mut look: impl FnMut(ConnectionKey, &mut Half, &Owner) -> bool,
    ) {
        for key in keys {
            let Some(tracked) = self.open.get_mut(key) else {
                continue;
            };
            let Row { half, owner } = &mut tracked.row;
            if look(*key, half, owner) && !tracked.changed {
                tracked.changed = true;
                self.changed.push(*key);
            }
        }
    }

    /// Gives open connections the owners that took the place of theirs, by address. What is open and changed is due again.
    pub fn reown(&mut self, renewed: &HashMap<*const Owner, Arc<Owner>>) {
        for (key, tracked) in &mut self.open {
            if let Some(owner) = renewed.get(&Arc::as_ptr(&tracked.row.owner)) {
                tracked.row.owner = Arc::clone(owner);
                if !tracked.changed {
                    tracked.changed = true;
                    self.changed.push(*key);
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

    /// Hands out every row that is due.
    pub fn drain(&mut self) -> Vec<Row> {
        let mut rows = std::mem::take(&mut self.finished);
        for key in self.changed.drain(..) {
            // A connection that closed since is not in the table any more, and its finished row is above.
            if let Some(tracked) = self.open.get_mut(&key).filter(|tracked| tracked.changed) {
                tracked.changed = false;
                rows.push(tracked.row.clone());
            }
        }
        rows
    }

    /// Who is speaking.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Rows that [`Table::drain`] would give, at most.
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
        self.open.contains_key(&key)
    }
}

/// A later row of a connection keeps its opening time, and is later also where the clock was set back in between: a
/// federator takes the row seen last.
fn after(mut half: Half, before: &Half) -> Half {
    half.opened_at = before.opened_at;
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

/// Hashes a connection's key with the mixer of the ids: keys are the kernel's own counters, nobody chooses them.
#[derive(Clone, Copy, Debug, Default)]
struct Mix;

#[derive(Debug, Default)]
struct MixHasher(u64);

impl BuildHasher for Mix {
    type Hasher = MixHasher;

    fn build_hasher(&self) -> MixHasher {
        MixHasher::default()
    }
}

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = mix64(self.0 ^ value);
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
        let rows = table.drain();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].half.state, HalfState::Closed);
        assert_eq!(rows[0].half.id, HalfId::new(AgentKey(1), 2, 1));
        assert!(table.drain().is_empty());
    }

    #[test]
    fn a_full_table_counts_and_still_reports_the_end() {
        let mut table = table(1);
        apply(&mut table, &event(1, HalfState::Open, 1_000));
        apply(&mut table, &event(2, HalfState::Open, 1_000));
        apply(&mut table, &event(2, HalfState::Closed, 3_000));
        assert_eq!((table.open(), table.dropped()), (1, 1));
        assert_eq!(table.drain().len(), 2);
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
        let half = table.drain()[0].half;
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
        table.drain();
        let new = Arc::new(Owner {
            workload: "checkout".into(),
            ..Owner::default()
        });
        table.reown(&HashMap::from([(Arc::as_ptr(&old), new)]));
        let rows = table.drain();
        assert_eq!(
            (rows.len(), rows[0].owner.workload.as_str()),
            (1, "checkout")
        );
        assert!(table.drain().is_empty());
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
        table.drain();
        let gone = table.reconcile(|key, _| key == ConnectionKey(1), Timestamp(5_000));
        let rows = table.drain();
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
                for row in table.drain() {
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
