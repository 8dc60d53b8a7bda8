//! What survives a crash, and what must hold whenever it changes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use weft_mesh::Link;
use weft_wire::query::Unmatched;
use weft_wire::{AgentKey, HalfId, Owner};

use crate::Breakage;
use crate::outcome::{Outcome, Violation};
use crate::record::{AgentNumber, AgentRecord, Flush, Loaded, OwnerNumber, Row, Side, Standing};
use crate::truth::{Connection, Standing as Stands, of_cookie};

/// Ids are mixed bits already.
#[derive(Default)]
pub(crate) struct AsItIs(u64);

impl std::hash::Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

type ById<T> = HashMap<u64, T, BuildHasherDefault<AsItIs>>;

/// The cookies of a stored row's own ends.
type Ends = [Option<u64>; 2];

/// One federator's store.
#[derive(Default)]
pub(crate) struct Stored {
    /// Whether it will be read again.
    durable: bool,
    rows: ById<Ends>,
    live: ById<Row>,
    departed: Vec<HalfId>,
    agents: HashMap<AgentNumber, Arc<AgentRecord>>,
    owners: HashMap<OwnerNumber, Arc<Owner>>,
    next_owner: OwnerNumber,
    links: BTreeMap<HalfId, Link>,
    sequences: BTreeMap<AgentKey, u64>,
    standings: BTreeMap<AgentKey, Standing>,
    position: u64,
    held: HashSet<HalfId>,
    held_from: u64,
}

impl Stored {
    pub(crate) fn new(durable: bool) -> Self {
        Self {
            durable,
            ..Self::default()
        }
    }

    /// What a new core starts with.
    pub(crate) fn load(&self, breakage: Option<Breakage>) -> Loaded {
        let mut live: Vec<Row> = self.live.values().copied().collect();
        live.sort_by_key(Row::id);
        let mut loaded = Loaded {
            position: self.position,
            held: self.held.clone(),
            held_from: self.held_from,
            departed: self.departed.clone(),
            live,
            agents: self.agents.clone(),
            owners: self.owners.clone(),
            next_owner: self.next_owner,
            links: self
                .links
                .iter()
                .map(|(id, link)| (*id, link.clone()))
                .collect(),
            sequences: self
                .sequences
                .iter()
                .map(|(key, seq)| (*key, *seq))
                .collect(),
            standings: self
                .standings
                .iter()
                .map(|(key, standing)| (*key, *standing))
                .collect(),
            ..Loaded::default()
        };
        if breakage == Some(Breakage::StoreLosesLinks) {
            loaded.links.clear();
        }
        loaded
    }

    /// One transaction; `ours` says which agents report to this federator.
    pub(crate) fn commit(
        &mut self,
        flush: &Flush,
        now: i64,
        breakage: Option<Breakage>,
        ours: impl Fn(u32) -> bool,
        truth: &mut [Connection],
        outcome: &mut Outcome,
    ) {
        for id in flush.replaced.iter().chain(&flush.replaced_done) {
            if breakage == Some(Breakage::RowsNotReplaced) {
                break;
            }
            self.live.remove(&id.0);
            for cookie in self.rows.remove(&id.0).into_iter().flatten().flatten() {
                let (connection, end) = of_cookie(cookie);
                truth[connection].ends[end].rows -= 1;
            }
        }
        for row in &flush.rows {
            self.check(row, outcome);
            let own = |side: &Option<Side>| {
                let cookie = side.as_ref()?.half.cookie;
                let (connection, end) = of_cookie(cookie);
                ours(truth[connection].ends[end].agent).then_some(cookie)
            };
            let ends = [own(&row.client), own(&row.server)];
            for (side, cookie) in [&row.client, &row.server].into_iter().zip(ends) {
                if let (Some(side), Some(cookie)) = (side, cookie) {
                    let (connection, end) = of_cookie(cookie);
                    let end = &mut truth[connection].ends[end];
                    end.rows += 1;
                    end.closed = side.half.state.finished();
                    end.standing = standing(row);
                    end.other_closed = row.sides().all(|side| side.half.state.finished());
                    if end.standing == Stands::Joined {
                        end.joined_at = end.joined_at.min(now);
                    }
                }
            }
            self.rows.insert(row.id().0, ends);
            self.keep(row);
        }
        for row in &flush.rows {
            for side in row.sides() {
                let (connection, end) = of_cookie(side.half.cookie);
                if truth[connection].ends[end].rows > 1 {
                    outcome.violated(Violation::CountedTwice, connection, now);
                }
            }
        }
        self.keep_rest(flush);
    }

    /// No wrong match, ever.
    fn check(&self, row: &Row, outcome: &mut Outcome) {
        if let (Some(client), Some(server)) = (&row.client, &row.server) {
            let ((one, first), (other, second)) =
                (of_cookie(client.half.cookie), of_cookie(server.half.cookie));
            if one != other || (first, second) != (0, 1) {
                outcome.violated(Violation::WrongMatch, one, other as i64);
            }
        }
    }

    fn keep(&mut self, row: &Row) {
        if !self.durable {
            return;
        }
        if row.settled {
            self.departed.extend(row.sides().map(|side| side.half.id));
        } else {
            self.live.insert(row.id().0, *row);
        }
    }

    fn keep_rest(&mut self, flush: &Flush) {
        if !self.durable {
            return;
        }
        self.agents.extend(flush.agents.iter().cloned());
        self.owners.extend(flush.owners.iter().cloned());
        let next = flush.owners.iter().map(|(number, _)| number + 1).max();
        self.next_owner = self.next_owner.max(next.unwrap_or(0));
        flush
            .links_changed
            .iter()
            .for_each(|id| drop(self.links.remove(id)));
        self.links.extend(flush.links.iter().cloned());
        self.sequences.extend(flush.sequences.iter().copied());
        self.standings.extend(flush.standings.iter().copied());
        self.position = flush.position;
        self.held = flush.held.iter().copied().collect();
        self.held_from = flush.held_from;
    }
}

fn standing(row: &Row) -> Stands {
    match (row.joined, row.unmatched) {
        (Some(_), _) => Stands::Joined,
        (None, None | Some(Unmatched::Pending)) => Stands::Pending,
        (None, Some(reason)) => Stands::Reason(reason),
    }
}
