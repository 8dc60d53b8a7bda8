//! What batches say: new halves, news of known ones, lookups.

use weft_mesh::Withdrawn;
use weft_wire::query::Unmatched;
use weft_wire::{
    AgentKey, Application, Fingerprint, Half, HalfBatch, HalfState, LookupBatch, Role,
};

use super::slots::{Slot, SlotNumber, Stored};
use super::{Core, CoreCounters};
use crate::record::{AgentNumber, CutOff, LookupRow, Row, is_client};

/// Halves whose places in memory are read ahead.
const AHEAD: usize = 64;

impl Core {
    /// The agent whose batch this is, if it is a new one.
    fn taken(&mut self, key: AgentKey, seq: u64) -> Option<AgentNumber> {
        let Some(agent) = self.agents.of_key(key) else {
            self.counters.unknown_agent += 1;
            return None;
        };
        if self.sequences.get(&key).is_some_and(|last| *last >= seq) {
            self.counters.repeated_batches += 1;
            return None;
        }
        self.sequences.insert(key, seq);
        self.sequences_changed.insert(key, seq);
        Some(agent)
    }

    /// Lookups are stored as they are: nothing is decided about them.
    pub(super) fn looked_up(&mut self, key: AgentKey, seq: u64, batch: LookupBatch) {
        let Some(agent) = self.taken(key, seq) else {
            return;
        };
        let owners: Vec<(u32, AgentNumber)> = batch
            .owners
            .iter()
            .map(|owner| (self.owners.number(owner), self.agents.within(agent, owner)))
            .collect();
        for mut lookup in batch.lookups {
            let Some((owner, agent)) = owners.get(lookup.owner as usize) else {
                continue;
            };
            lookup.owner = *owner;
            self.counters.lookups += 1;
            let agent = *agent;
            self.lookups.push(LookupRow { agent, lookup });
        }
    }

    pub(super) fn batch(&mut self, key: AgentKey, seq: u64, skew_us: i64, batch: &HalfBatch) {
        if let Some(agent) = self.taken(key, seq) {
            self.told(key, skew_us, batch);
            self.halves(agent, skew_us, batch);
        }
    }

    pub(super) fn halves(&mut self, agent: AgentNumber, skew_us: i64, batch: &HalfBatch) {
        let Some(known) = self.agents.find(agent) else {
            return;
        };
        let (network, key) = (known.network, known.record.key);
        let hosts: Vec<u64> = batch
            .owners
            .iter()
            .map(|owner| known.host(owner.netns))
            .collect();
        let owners: Vec<(u32, u64, AgentNumber)> = batch
            .owners
            .iter()
            .zip(hosts)
            .map(|(owner, host)| {
                let agent = self.agents.within(agent, owner);
                (self.owners.number(owner), host, agent)
            })
            .collect();
        let names: Vec<u32> = batch
            .names
            .iter()
            .map(|name| self.name_number(name))
            .collect();
        for (at, half) in batch.halves.iter().enumerate() {
            if at % AHEAD == 0 {
                self.touch_next(&batch.halves[at..]);
            }
            let Some((owner, host, agent)) = owners.get(half.owner as usize) else {
                continue;
            };
            // Of a server's peer no name is told.
            let name = match half.name {
                0 => 0,
                _ if half.role == Role::Server => 0,
                index => names.get(index as usize - 1).copied().unwrap_or(0),
            };
            let half = Half {
                owner: *owner,
                name,
                ..*half
            };
            self.counters.rows += 1;
            match self.slots.of_id(half.id) {
                Some(number) => self.update(number, *agent, (skew_us, batch.boot), &half),
                None if self.is_of_the_gone(key, batch.boot, &half) => {
                    self.counters.after_gone += 1
                }
                None => {
                    let mut slot = Slot::new(half, *agent, network, *host, skew_us);
                    slot.boot = batch.boot;
                    slot.share = key.map_or(0, |key| key.0);
                    self.add(slot);
                }
            }
        }
        self.take_in();
    }

    /// Reads where the next halves will be looked for, all at once: the memory serves them together.
    fn touch_next(&self, halves: &[Half]) {
        let touched = halves.iter().take(AHEAD).fold(0, |sum, half| {
            sum ^ self.slots.touch(half.id) ^ usize::from(self.departed.contains(half.id))
        });
        std::hint::black_box(touched);
    }

    /// Gives the stitcher what has come, and acts on what it says.
    pub(super) fn take_in(&mut self) {
        let candidates = std::mem::take(&mut self.candidates);
        self.stitcher.insert(self.now, &candidates);
        self.candidates = candidates;
        self.candidates.clear();
        self.decide();
        let closed = std::mem::take(&mut self.closed);
        if !closed.is_empty() {
            self.stitcher.closed(self.now, &closed, &self.slots);
            self.decide();
        }
        self.closed = closed;
        self.closed.clear();
    }

    fn add(&mut self, mut slot: Slot) {
        let id = slot.half.id;
        if self.departed.contains(id) {
            self.counters.late += 1;
            return;
        }
        let known = self.overflow.known(id);
        if let Some(known) = known {
            if !self.same_agent(known.agent, slot.agent) {
                self.counters.id_collisions += 1;
                return;
            }
            let Some(merged) = known.merged(&slot.half) else {
                self.counters.outdated += 1;
                return;
            };
            slot.half = merged;
        } else {
            self.counters.halves += 1;
        }
        if self.no_room(slot.share).is_some() {
            self.leave(i64::MAX);
        }
        if let Some(counter) = self.no_room(slot.share) {
            *counter(&mut self.counters) += u64::from(known.is_none());
            self.store_unmatched(&slot, known.is_some_and(|known| known.stored));
            return;
        }
        if let Some(known) = known {
            self.overflow.forget(id);
            if known.stored {
                slot.stored = Stored::Live;
            }
        }
        self.hold(&slot.half);
        let established = slot.half.state.established();
        slot.came = (self.now, self.entry_from);
        let number = self.slots.add(slot);
        if established {
            self.candidates.push(self.slots[number].candidate(number));
            self.slots[number].waiting = true;
            self.pend(number);
        }
        self.touch(number);
    }

    /// Whether there is no room for a half of this share, and what counts it. An agent that floods leaves room for others: when
    /// memory gets scarce it has half of it at most.
    fn no_room(&self, share: u64) -> Option<fn(&mut CoreCounters) -> &mut u64> {
        let (count, most) = (self.slots.count(), self.config.max_open);
        if count >= most {
            return Some(|counters| &mut counters.memory_full);
        }
        let scarce = count.saturating_mul(4) >= most.saturating_mul(3);
        let half = self.slots.of_share(share).saturating_mul(2) >= most;
        (share != 0 && scarce && half).then_some(|counters| &mut counters.share_full)
    }

    /// There is no room to let the half wait: it is stored as it is. What comes of it later replaces that if it was open and
    /// there was room to remember it, and is late otherwise.
    fn store_unmatched(&mut self, slot: &Slot, stored: bool) {
        let id = slot.half.id;
        if stored {
            self.replaced.push(id);
        }
        let known = self.overflow.known(id).is_some();
        let settled = slot.half.state.finished() || !(known || self.overflow.has_room());
        if settled {
            self.departed.insert(id);
        }
        let reason = if slot.half.state.established() {
            Unmatched::NoPartner
        } else {
            Unmatched::NotEstablished
        };
        let (client, server) = if is_client(&slot.half) {
            (Some(slot.side()), None)
        } else {
            (None, Some(slot.side()))
        };
        let row = Row {
            client,
            server,
            joined: None,
            unmatched: Some(reason),
            card_due: false,
            cut_off: CutOff::default(),
            settled,
        };
        self.overflow.put(&slot.half, slot.agent, row);
    }

    /// Whether two numbers stand for one agent, before and after its description changed.
    fn same_agent(&self, one: AgentNumber, other: AgentNumber) -> bool {
        let key = |number| self.agents.find(number).map(|known| known.record.key);
        one == other || key(one) == key(other)
    }

    fn update(
        &mut self,
        number: SlotNumber,
        agent: AgentNumber,
        (skew_us, boot): (i64, u64),
        new: &Half,
    ) {
        if !self.same_agent(self.slots[number].agent, agent) {
            self.counters.id_collisions += 1;
            return;
        }
        let slot = &mut self.slots[number];
        let Some(mut merged) = merge(&slot.half, new) else {
            self.counters.outdated += 1;
            return;
        };
        if merged.owner != slot.half.owner {
            let known_process = self
                .owners
                .find(new.owner)
                .is_some_and(|owner| owner.process.is_some());
            if known_process {
                self.owners.release(slot.half.owner);
                self.owners.hold(new.owner);
                slot.agent = agent;
            } else {
                merged.owner = slot.half.owner;
            }
        }
        if merged.name != slot.half.name {
            self.names.release(slot.half.name);
            self.names.hold(merged.name);
        }
        let (was_finished, before) = (slot.half.state.finished(), slot.candidate(number));
        slot.half = merged;
        (slot.skew_us, slot.boot) = (skew_us, boot);
        let after = slot.candidate(number);
        let other_key = before.key != after.key && slot.waiting && !slot.matched();
        if other_key {
            self.stitcher.remove(&before);
            self.candidates.push(after);
        }
        if !was_finished && merged.state.finished() && slot.waiting && !slot.matched() {
            self.closed.push(after);
        }
        if slot.offered
            && let Some(mesh) = &mut self.mesh
        {
            mesh.updated(merged.id, &slot.view());
            // Its owner looks for it under a key that its other end does not have. It is offered again after its hold.
            if other_key && mesh.link(merged.id).is_none() {
                self.withdraw(number, Withdrawn::Matched);
            }
        }
        self.touch(number);
    }
}

/// What is known of a half after a newer row about it; `None` when the row is not newer. The end is newer than all before it,
/// whatever the agent's clock says: it may have been set back meanwhile.
pub(super) fn merge(known: &Half, new: &Half) -> Option<Half> {
    // What was only concluded is given up for what is told.
    let ended = known.state.finished() && !known.state.concluded();
    let older = match (ended, new.state.finished()) {
        (true, false) => true,
        (false, true) => false,
        _ => new.seen_at < known.seen_at,
    };
    if older || (known.role, known.local, known.remote) != (new.role, new.local, new.remote) {
        return None;
    }
    let fingerprint = completed(known.fingerprint, new.fingerprint);
    let opened_at = known.opened_at.min(new.opened_at);
    let state = if known.state == HalfState::Closed {
        known.state
    } else {
        new.state
    };
    // Both may be known only some time after the opening, and neither is unlearnt.
    let (name, named_before_us) = match new.name {
        0 => (known.name, known.named_before_us),
        name => (name, new.named_before_us),
    };
    let application = match new.application {
        Application::Unknown => known.application,
        told => told,
    };
    Some(Half {
        fingerprint,
        opened_at,
        state,
        name,
        named_before_us,
        application,
        ..*new
    })
}

/// What is known of a fingerprint after a newer row. A restarted agent finds an open connection again, but neither its sequence
/// numbers nor its opening time.
pub(super) fn completed(known: Fingerprint, new: Fingerprint) -> Fingerprint {
    match (known, new) {
        (Fingerprint::Unknown, new) => new,
        // The answer to the first datagram has come since.
        (Fingerprint::Datagrams(first), Fingerprint::Datagrams(new))
            if first.server == 0 && first.client == new.client =>
        {
            Fingerprint::Datagrams(new)
        }
        (first, _) => first,
    }
}
