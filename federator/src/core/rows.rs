//! What the store has to write, and how halves leave memory.

use weft_wire::Timestamp;
use weft_wire::query::Unmatched;

use super::slots::{NONE, Slot, SlotNumber, Stored};
use super::{Core, HELD_US, LINGER_US, MAX_HELD};
use crate::record::{Flush, Joined, Row, is_client};

/// Rows whose memory is kept between two flushes.
const MAX_SPARE: usize = 1_000_000;

impl Core {
    /// Whether nothing more is expected of the half, or of the pair that it is in.
    pub(super) fn settled(&self, slot: &Slot) -> bool {
        let finished = |slot: &Slot| slot.half.state.finished() && !slot.card_due;
        match slot.partner {
            NONE => finished(slot) && slot.unmatched != Unmatched::Pending,
            partner => finished(slot) && finished(&self.slots[partner]),
        }
    }

    /// Everything that changed since the last flush.
    pub fn flush(&mut self) -> Flush {
        self.take(false)
    }

    /// The same, but for halves that came lately and wait: of these the journal is enough.
    pub fn flush_all_but_waiting(&mut self) -> Flush {
        self.take(true)
    }

    /// Whether the half need not be written yet.
    fn may_wait(&self, slot: &Slot) -> bool {
        slot.stored == Stored::No
            && !slot.matched()
            && !slot.remote
            && !slot.offered
            && slot.unmatched == Unmatched::Pending
            && self.now.saturating_sub(slot.came.0) < HELD_US
    }

    fn take(&mut self, hold: bool) -> Flush {
        self.flushed_position = self.position;
        let mut rows = std::mem::take(&mut self.spare);
        rows.extend(self.overflow.take_fresh());
        rows.reserve(self.dirty.len());
        let (mut links, mut links_changed) = (Vec::new(), Vec::new());
        let mut dirty = std::mem::take(&mut self.dirty);
        let (mut held, mut held_from) = (Vec::new(), self.position);
        dirty.retain(|number| {
            let Some(slot) = self.slots.find(*number).filter(|slot| slot.dirty) else {
                return false;
            };
            if hold && held.len() < MAX_HELD && self.may_wait(slot) {
                held.push(slot.half.id);
                held_from = held_from.min(slot.came.1);
                return true;
            }
            self.write_link(*number, &mut links, &mut links_changed);
            rows.push(self.row(*number));
            false
        });
        self.held = dirty.len();
        self.dirty = dirty;
        Flush {
            position: self.position,
            held,
            held_from,
            named: std::mem::take(&mut self.named),
            agents: self.agents.take_fresh(),
            owners: self.owners.take_fresh(),
            names: self.names.take_fresh(),
            replaced: std::mem::take(&mut self.replaced),
            replaced_done: std::mem::take(&mut self.replaced_done),
            replaced_from: std::mem::replace(&mut self.replaced_from, Timestamp(i64::MAX)),
            sought: std::mem::take(&mut self.sought),
            rows,
            lookups: std::mem::take(&mut self.lookups),
            links_changed,
            links,
            descriptions: self
                .sequences_changed
                .keys()
                .filter_map(|key| Some((*key, self.agents.of_key(*key)?)))
                .collect(),
            standings: self
                .sequences_changed
                .keys()
                .map(|key| (*key, self.standing(Some(*key))))
                .collect(),
            sequences: std::mem::take(&mut self.sequences_changed)
                .into_iter()
                .collect(),
        }
    }

    /// Takes back the memory of a flush's rows: fresh memory for half a million costs as much as filling it.
    pub fn reuse(&mut self, mut rows: Vec<Row>) {
        rows.clear();
        if rows.capacity() <= MAX_SPARE {
            self.spare = rows;
        }
    }

    /// The row that the half is in, about to be written.
    fn row(&mut self, number: SlotNumber) -> Row {
        let partner = self.slots[number].partner;
        let settled = self.settled(&self.slots[number]);
        let (mut client, mut server) = (None, None);
        for number in [Some(number), (partner != NONE).then_some(partner)]
            .into_iter()
            .flatten()
        {
            self.unstore(number);
            let slot = &mut self.slots[number];
            slot.dirty = false;
            *(if is_client(&slot.half) {
                &mut client
            } else {
                &mut server
            }) = Some(number);
        }
        // A socket connected to itself is both ends.
        if partner == number {
            (client, server) = (Some(number), Some(number));
        }
        if let Some(first) = client.or(server) {
            self.slots[first].stored = if settled { Stored::Done } else { Stored::Live };
        }
        if settled {
            self.begin_leaving(number);
        }
        let slot = &self.slots[number];
        Row {
            client: client.map(|number| self.slots[number].side()),
            server: server.map(|number| self.slots[number].side()),
            joined: slot.matched().then_some(Joined {
                evidence: slot.evidence,
                confidence: slot.confidence,
            }),
            unmatched: (!slot.matched()).then_some(slot.unmatched),
            cut_off: slot.cut_off,
            card_due: slot.card_due || (partner != NONE && self.slots[partner].card_due),
            settled,
        }
    }

    fn begin_leaving(&mut self, number: SlotNumber) {
        let slot = &self.slots[number];
        let (partner, ambiguous) = (
            slot.partner,
            slot.unmatched == Unmatched::Ambiguous && !slot.matched(),
        );
        if slot.leaving || (partner != NONE && self.slots[partner].leaving) {
            return;
        }
        self.slots[number].leaving = true;
        // Another half with an ambiguous one's claim must find it while it would have been waited for.
        if ambiguous {
            self.leaving_late
                .push_back((self.now.saturating_add(self.config.expiry_us), number));
        } else {
            self.leaving
                .push_back((self.now.saturating_add(LINGER_US), number));
        }
    }

    /// Lets settled halves go whose time has come.
    pub(super) fn leave(&mut self, now: i64) {
        while let Some((at, number)) = self.leaving.front().copied()
            && at <= now
        {
            self.leaving.pop_front();
            self.depart(number);
        }
        while let Some((at, number)) = self.leaving_late.front().copied()
            && at <= now
        {
            self.leaving_late.pop_front();
            self.depart(number);
        }
    }

    fn depart(&mut self, number: SlotNumber) {
        // The number may have been given to another half since.
        let Some(partner) = self
            .slots
            .find(number)
            .filter(|slot| slot.leaving)
            .map(|slot| slot.partner)
        else {
            return;
        };
        self.slots[number].leaving = false;
        // Touched since: it will be written and leave again.
        let numbers = [
            Some(number),
            (partner != NONE && partner != number).then_some(partner),
        ];
        let numbers = numbers.into_iter().flatten();
        if numbers.clone().any(|number| self.slots[number].dirty)
            || !self.settled(&self.slots[number])
        {
            return;
        }
        for number in numbers {
            self.hold_over(number);
            let slot = &self.slots[number];
            let (half, remote) = (slot.half, slot.remote);
            if slot.waiting {
                let candidate = slot.candidate(number);
                self.stitcher.remove(&candidate);
            }
            if !remote {
                self.departed.insert(half.id);
            }
            self.release(&half);
            self.slots.remove(number);
        }
    }
}
