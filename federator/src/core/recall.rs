//! Halves whose other ends came too late, or could not be asked for: they come back from the store.
//!
//! A half that is without partner after its hold and was opened long ago may be the late one of two. Its other end has expired,
//! here or at another home: all that may have it look for it by routing key in what they have stored ([`Sought`](crate::record::Sought)). What is found
//! is put back into memory through the journal ([`Input::Found`](super::Input::Found)), waits again as if it had just come, and the
//! usual rules decide. A half that is given up while its owner, or another home concerned, cannot be reached is marked,
//! and comes back when a session to that peer begins.

use weft_mesh::MeshKey;
use weft_stitching::{Fingerprint, HalfView};
use weft_wire::control::Recall;
use weft_wire::query::Unmatched;
use weft_wire::{Half, Timestamp};

use super::slots::{Slot, SlotNumber, Stored};
use super::{Core, CoreConfig};
use crate::record::{CutOff, Found};

impl CoreConfig {
    /// The key by which what is stored is looked for: the mesh's; a federator alone has no secrets from itself.
    pub fn key(&self) -> MeshKey {
        let mesh = self.mesh.as_ref();
        mesh.map_or_else(|| MeshKey::new([0; 32]), |(_, key)| key.clone())
    }
}

impl Core {
    /// Whether a half's other end may have come and expired before it.
    fn is_late(&self, view: &HalfView) -> bool {
        let clock = self.now.saturating_add(self.down_us);
        // Clocks differ.
        clock.saturating_sub(view.opened_at) > self.config.expiry_us / 2
    }

    /// What a half's other end is looked for by: under each key of the mesh that it may be known under.
    fn recalls_of(&self, view: &HalfView) -> impl Iterator<Item = Recall> + use<> {
        let clock = self.now.saturating_add(self.down_us);
        let (present, before) = self.key.keys_at(clock, view);
        let opened_at = Timestamp(view.opened_at);
        [Some(present), before]
            .into_iter()
            .flatten()
            .map(move |keys| Recall {
                routing_key: keys.routing,
                opened_at,
            })
    }

    /// Whether a half's other end is to be looked for.
    fn is_sought(&self, slot: &Slot, view: &HalfView) -> bool {
        let datagrams = matches!(view.fingerprint, Fingerprint::Datagrams(_));
        !slot.asked_for && !datagrams && self.is_late(view)
    }

    /// A half is past its hold without partner.
    pub(super) fn seek_if_late(&mut self, number: SlotNumber, view: &HalfView) {
        if !self.is_sought(&self.slots[number], view) {
            return;
        }
        self.counters.sought += 1;
        for recall in self.recalls_of(view) {
            self.recalled(&[recall]);
            if let Some(mesh) = &mut self.mesh {
                mesh.recall(recall, view.remote.ip());
            }
        }
    }

    /// We, or a peer, have halves that came late.
    pub(super) fn recalled(&mut self, recalls: &[Recall]) {
        self.counters.recalls_dropped += self.sought.recall(recalls) as u64;
    }

    /// A half is given up: notes whether everyone concerned could be asked.
    pub(super) fn note_cut_off(&mut self, number: SlotNumber) {
        let Some(mesh) = &self.mesh else { return };
        let slot = &self.slots[number];
        let mut bits = 0;
        if slot.offered {
            let cut = mesh.cut_off(slot.half.id);
            bits |= if cut.owner { CutOff::OWNER } else { 0 };
            bits |= if cut.partner { CutOff::HOME } else { 0 };
        }
        let view = slot.view();
        let late = !slot.asked_for && self.is_late(&view);
        if late && !mesh.reaches_all_behind(view.remote.ip()) {
            bits |= CutOff::HOME;
        }
        self.slots[number].cut_off = CutOff(bits);
    }

    /// A session to a peer begins: what was given up without it is looked for again.
    pub(super) fn returned(&mut self, peer: &str) {
        self.sought.peer_returned(peer);
        let cut_off = self.slots.numbers_where(|slot| {
            slot.cut_off != CutOff::default() && !slot.remote && !slot.matched()
        });
        for number in cut_off {
            self.rejoin(number);
        }
        self.take_in();
        // Late ones that wait and could not be looked for there.
        let waiting = self
            .slots
            .numbers_where(|slot| slot.pending && slot.past_hold && !slot.matched());
        for number in waiting {
            let view = self.slots[number].view();
            if self.is_sought(&self.slots[number], &view) {
                for recall in self.recalls_of(&view) {
                    if let Some(mesh) = &mut self.mesh {
                        mesh.recall_from(peer, recall, view.remote.ip());
                    }
                }
            }
        }
    }

    /// Halves come back from the store.
    pub(super) fn found(&mut self, found: Vec<Found>) {
        for one in found {
            match self.slots.of_id(one.half.id) {
                Some(number) => {
                    self.slots[number].asked_for |= one.asked_for;
                    self.rejoin(number);
                }
                None => self.take_back(one),
            }
        }
        self.take_in();
    }

    /// A half that was given up and is still in memory waits again.
    fn rejoin(&mut self, number: SlotNumber) {
        let slot = &mut self.slots[number];
        let given_up = matches!(
            slot.unmatched,
            Unmatched::NoPartner | Unmatched::NoFingerprint
        );
        if slot.matched() || slot.remote || !given_up || !slot.half.state.established() {
            return;
        }
        slot.unmatched = Unmatched::Pending;
        slot.cut_off = CutOff::default();
        slot.leaving = false;
        let candidate = slot.candidate(number);
        if std::mem::replace(&mut slot.waiting, true) {
            self.stitcher.remove(&candidate);
        }
        self.counters.recalled += 1;
        self.candidates.push(candidate);
        self.pend(number);
        self.touch(number);
    }

    fn take_back(&mut self, found: Found) {
        let room = self.slots.count() < self.config.max_open;
        let Some(agent) = self.agents.find(found.agent).filter(|_| room) else {
            self.counters.recalls_dropped += 1;
            return;
        };
        let (network, host) = (agent.network, agent.host(found.owner.netns));
        let agent_key = agent.record.key;
        let half = Half {
            owner: self.owners.number(&found.owner),
            name: found.name.as_ref().map_or(0, |name| self.name_number(name)),
            ..found.half
        };
        self.hold(&half);
        let standing = self.standing(agent_key);
        let mut slot = Slot::new(half, found.agent, network, host, standing.skew_us);
        slot.boot = standing.boot.unwrap_or(0);
        slot.stored = Stored::Done;
        slot.came = (self.now, self.entry_from);
        slot.asked_for = found.asked_for;
        slot.waiting = true;
        let number = self.slots.add(slot);
        self.counters.recalled += 1;
        self.candidates.push(self.slots[number].candidate(number));
        self.pend(number);
        self.touch(number);
    }
}
