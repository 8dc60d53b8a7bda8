//! Open halves that no agent will close: of a host that was started again, and of an agent that has been silent for long.
//!
//! Sockets do not outlive a boot: when a batch names another boot than the one before, what was open is closed
//! ([`HalfState::HostRestarted`]). Of an agent that is silent nobody knows; after a time that is configured it is taken for gone
//! ([`Input::Gone`](super::Input::Gone)), and what was open is closed too ([`HalfState::AgentGone`]). Both go their way like any close: to the store, to
//! the other end's home, out of memory.
//!
//! Such an agent may come back. What is still in memory goes on where it was. Of what has left memory a row stands in the
//! store: news of it is counted and not taken, or it would be counted twice. New halves are taken as ever, also those that the agent
//! kept meanwhile: they were opened after the last that it had told.

use std::collections::BTreeMap;

use weft_wire::{AgentKey, Half, HalfBatch, HalfState};

use super::Core;
use super::slots::{Slot, SlotNumber};
use crate::record::Standing;

/// Between two looks at all halves in memory, in microseconds: who says that it boots with every batch costs no more than this.
const SWEEP_US: i64 = 10_000_000;

/// What is to be closed.
#[derive(Debug, Default)]
pub(super) struct Abandoned {
    agents: BTreeMap<AgentKey, Closing>,
    swept_at: Option<i64>,
}

/// What of an agent's halves.
#[derive(Clone, Copy, Debug, Default)]
struct Closing {
    /// All but those of this boot.
    boot: Option<u64>,
    /// All.
    gone: bool,
}

impl Core {
    /// What is known of an agent.
    pub(super) fn standing(&self, key: Option<AgentKey>) -> Standing {
        key.and_then(|key| self.standings.get(&key).copied())
            .unwrap_or_default()
    }

    /// A batch of an agent is about to be taken.
    pub(super) fn told(&mut self, key: AgentKey, skew_us: i64, batch: &HalfBatch) {
        let newest = batch.halves.iter().map(|half| half.seen_at).max();
        let standing = self.standings.entry(key).or_default();
        standing.skew_us = skew_us;
        standing.newest = standing.newest.max(newest.unwrap_or_default());
        self.booted(key, batch.boot, false);
    }

    /// An agent told of halves of this boot; `before`: some time ago, and the one that is known may have followed.
    pub(super) fn booted(&mut self, key: AgentKey, boot: u64, before: bool) {
        let known = self.standings.entry(key).or_default();
        match known.boot {
            None => known.boot = Some(boot),
            Some(known) if known == boot => {}
            Some(known) => {
                let boot = if before { known } else { boot };
                self.abandoned.agents.entry(key).or_default().boot = Some(boot);
                self.close_abandoned();
            }
        }
    }

    /// An agent is gone.
    pub(super) fn gone(&mut self, key: AgentKey) {
        let Some(standing) = self.standings.get_mut(&key) else {
            return;
        };
        standing.gone_before = Some(standing.newest);
        // Written with it.
        let seq = self.sequences.get(&key).copied().unwrap_or(0);
        self.sequences_changed.insert(key, seq);
        self.abandoned.agents.entry(key).or_default().gone = true;
        self.close_abandoned();
    }

    /// Whether a half that is not in memory was told before its agent was taken for gone.
    pub(super) fn is_of_the_gone(&self, key: Option<AgentKey>, boot: u64, half: &Half) -> bool {
        let standing = self.standing(key);
        standing.boot == Some(boot) && standing.gone_before.is_some_and(|at| half.opened_at < at)
    }

    /// Closes what is to be closed, if that is due.
    pub(super) fn close_abandoned(&mut self) {
        let last = self.abandoned.swept_at;
        let due = last.is_none_or(|at| self.now.saturating_sub(at) >= SWEEP_US);
        if self.abandoned.agents.is_empty() || !due {
            return;
        }
        self.abandoned.swept_at = Some(self.now);
        let agents = std::mem::take(&mut self.abandoned.agents);
        let known = &self.agents;
        let end = |slot: &Slot| {
            let key = known.find(slot.agent)?.record.key?;
            let closing = agents.get(&key)?;
            match closing {
                Closing { gone: true, .. } => Some(HalfState::AgentGone),
                Closing {
                    boot: Some(boot), ..
                } if *boot != slot.boot => Some(HalfState::HostRestarted),
                Closing { .. } => None,
            }
        };
        let is_open = |slot: &Slot| !slot.remote && slot.half.state == HalfState::Open;
        let numbers = self
            .slots
            .numbers_where(|slot| is_open(slot) && end(slot).is_some());
        let ends: Vec<_> = numbers
            .into_iter()
            .filter_map(|number| Some((number, end(&self.slots[number])?)))
            .collect();
        for (number, state) in ends {
            self.conclude(number, state);
        }
        for (key, closing) in agents {
            if let Some(boot) = closing.boot {
                self.standings.entry(key).or_default().boot = Some(boot);
            }
        }
        self.take_in();
    }

    fn conclude(&mut self, number: SlotNumber, state: HalfState) {
        match state {
            HalfState::HostRestarted => self.counters.host_restarted += 1,
            _ => self.counters.agent_gone += 1,
        }
        let slot = &mut self.slots[number];
        slot.half.state = state;
        // Nobody knows when; this is when it was there last.
        slot.half.closed_at = Some(slot.half.seen_at);
        let (id, candidate) = (slot.half.id, slot.candidate(number));
        if slot.waiting && !slot.matched() {
            self.closed.push(candidate);
        }
        let slot = &self.slots[number];
        if slot.offered
            && let Some(mesh) = &mut self.mesh
        {
            mesh.updated(id, &slot.view());
        }
        self.touch(number);
    }
}
