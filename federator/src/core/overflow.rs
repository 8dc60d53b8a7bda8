//! Halves for which memory had no room: stored as they are, and replaced when there is news of them.

use std::collections::{BTreeMap, HashMap};

use weft_wire::{Fingerprint, Half, HalfId, Timestamp};

use super::intake::completed;
use super::names::Mixed;
use crate::record::{AgentNumber, Row};

/// What is remembered of a half that is stored while it is open.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Who reported it.
    pub agent: AgentNumber,
    /// Whether its row is in the store, not only on its way.
    pub stored: bool,
    fingerprint: Fingerprint,
    opened_at: Timestamp,
    seen_at: Timestamp,
}

impl Known {
    /// The half as last reported, with what was known of it; `None` when that is newer.
    pub fn merged(&self, new: &Half) -> Option<Half> {
        let fingerprint = completed(self.fingerprint, new.fingerprint);
        (new.state.finished() || new.seen_at >= self.seen_at).then_some(Half {
            fingerprint,
            opened_at: self.opened_at.min(new.opened_at),
            ..*new
        })
    }
}

/// Rows of such halves. Only those that are open are remembered, and not more than `limit`.
#[derive(Debug)]
pub struct Overflow {
    /// Not in the store yet.
    fresh: BTreeMap<HalfId, Row>,
    known: HashMap<HalfId, Known, Mixed>,
    limit: usize,
}

impl Overflow {
    /// None yet.
    pub fn new(limit: usize, seed: u64) -> Self {
        Self {
            fresh: BTreeMap::new(),
            known: HashMap::with_hasher(Mixed(seed)),
            limit,
        }
    }

    /// What is remembered of a half.
    pub fn known(&self, id: HalfId) -> Option<Known> {
        self.known.get(&id).copied()
    }

    /// Whether another open half can be remembered.
    pub fn has_room(&self) -> bool {
        self.known.len() < self.limit
    }

    /// Rows that wait for the next flush.
    pub fn unflushed(&self) -> usize {
        self.fresh.len()
    }

    /// Takes a half's row; an older one that waits is replaced. The half is remembered unless the row is settled.
    pub fn put(&mut self, half: &Half, agent: AgentNumber, row: Row) {
        self.fresh.insert(half.id, row);
        if row.settled {
            self.known.remove(&half.id);
            return;
        }
        let known = Known {
            agent,
            stored: false,
            fingerprint: half.fingerprint,
            opened_at: half.opened_at,
            seen_at: half.seen_at,
        };
        self.known.insert(half.id, known);
    }

    /// The half has found room in memory.
    pub fn forget(&mut self, id: HalfId) {
        self.known.remove(&id);
        self.fresh.remove(&id);
    }

    /// Rows to be written now, by id.
    pub fn take_fresh(&mut self) -> Vec<Row> {
        let fresh = std::mem::take(&mut self.fresh);
        for id in fresh.keys() {
            if let Some(known) = self.known.get_mut(id) {
                known.stored = true;
            }
        }
        fresh.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use weft_wire::{DatagramSort, Datagrams, HalfState, Protocol};

    use super::*;

    #[test]
    fn the_answer_to_a_first_datagram_completes_what_memory_had_no_room_for() {
        let said = |server, seen_at| Half {
            protocol: Protocol::Udp,
            state: HalfState::Open,
            fingerprint: Fingerprint::Datagrams(Datagrams {
                sort: DatagramSort::Other,
                client: 5,
                server,
                distinct: true,
            }),
            seen_at: Timestamp(seen_at),
            ..Half::default()
        };
        let (asked, answered) = (said(0, 1), said(9, 2));
        let known = Known {
            agent: 0,
            stored: true,
            fingerprint: asked.fingerprint,
            opened_at: asked.opened_at,
            seen_at: asked.seen_at,
        };
        let merged = known.merged(&answered).unwrap();
        assert_eq!(merged.fingerprint, answered.fingerprint);
        assert_eq!(known.merged(&said(9, 0)), None);
    }
}
