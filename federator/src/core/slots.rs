//! Halves in memory.

use std::collections::HashMap;

use weft_mesh::half_view;
use weft_stitching::{self as stitching, Candidate, HalfView, Halves, Key};
use weft_wire::query::{Confidence, Unmatched};
use weft_wire::{Fingerprint, Half, HalfId, Role};

use super::names::Mixed;
use crate::record::{AgentNumber, CutOff, Side};

/// Index of a half in memory.
pub type SlotNumber = u32;

/// No slot.
pub const NONE: SlotNumber = SlotNumber::MAX;

/// Where a row under a slot's id was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Nowhere.
    No,
    /// Among those that may change.
    Live,
    /// Among the settled.
    Done,
}

/// A half in memory: one of ours, or the other end of one as a peer's card told it.
#[derive(Clone, Debug)]
pub struct Slot {
    /// As last reported; `owner` is an owner's number.
    pub half: Half,
    /// Who reported it.
    pub agent: AgentNumber,
    /// The other end.
    pub partner: SlotNumber,
    /// How the other end was found.
    pub evidence: &'static str,
    /// How sure that is.
    pub confidence: Confidence,
    /// Why there is no other end.
    pub unmatched: Unmatched,
    /// Scope of its addresses.
    pub network: u64,
    /// Scope of its loopback addresses.
    pub host: u64,
    /// The agent's clock ahead of ours.
    pub skew_us: i64,
    /// The boot of its host.
    pub boot: u64,
    /// Told by a peer.
    pub remote: bool,
    /// Given to the stitcher and not taken back.
    pub waiting: bool,
    /// Counted among those that wait for a partner.
    pub pending: bool,
    /// Past its hold, without partner.
    pub past_hold: bool,
    /// Given to the mesh.
    pub offered: bool,
    /// Its other end is at another home, and the two have not yet told each other everything.
    pub card_due: bool,
    /// Who could not be asked when it was given up.
    pub cut_off: CutOff,
    /// It came back from the store because its other end waits somewhere.
    pub asked_for: bool,
    /// A link to another home is in the store.
    pub link_stored: bool,
    /// Changed since the last flush.
    pub dirty: bool,
    /// In the queue of those that leave.
    pub leaving: bool,
    /// Where its row is.
    pub stored: Stored,
    /// When it came, and the journal's position before the entry that brought it.
    pub came: (i64, u64),
    /// Of whose share of the memory it takes: the agent's key; 0 for nobody's.
    pub share: u64,
    used: bool,
}

impl Slot {
    /// A half that has just come.
    pub fn new(half: Half, agent: AgentNumber, network: u64, host: u64, skew_us: i64) -> Self {
        let unmatched = if half.state.established() {
            Unmatched::Pending
        } else {
            Unmatched::NotEstablished
        };
        Self {
            half,
            agent,
            partner: NONE,
            evidence: "",
            confidence: Confidence::Low,
            unmatched,
            network,
            host,
            skew_us,
            boot: 0,
            remote: false,
            waiting: false,
            pending: false,
            past_hold: false,
            offered: false,
            card_due: false,
            cut_off: CutOff::default(),
            asked_for: false,
            link_stored: false,
            dirty: false,
            leaving: false,
            stored: Stored::No,
            came: (i64::MIN, 0),
            share: 0,
            used: true,
        }
    }

    /// The half as a row has it.
    pub fn side(&self) -> Side {
        Side {
            half: self.half,
            agent: self.agent,
        }
    }

    /// The half as the rules see it.
    pub fn view(&self) -> HalfView {
        let half = half_view(&self.half, self.network, self.host);
        let shift = |at: i64| at.saturating_sub(self.skew_us);
        HalfView {
            opened_at: shift(half.opened_at),
            closed_at: half.closed_at.map(shift),
            seen_at: shift(half.seen_at),
            ..half
        }
    }

    /// What the stitcher is given of it.
    pub fn candidate(&self, slot: SlotNumber) -> Candidate {
        let handle = stitching::Handle(slot);
        match self.half.fingerprint {
            // What most are, without looking at more of the half than that needs.
            Fingerprint::TcpIsn { client, server } => Candidate {
                handle,
                role: match self.half.role {
                    Role::Client => stitching::Role::Client,
                    Role::Server => stitching::Role::Server,
                },
                key: Key::Isn { client, server },
            },
            Fingerprint::Unknown | Fingerprint::Datagrams(_) => self.view().candidate(handle),
        }
    }

    /// Whether it has its other end.
    pub fn matched(&self) -> bool {
        self.partner != NONE
    }
}

/// A half as the rules see it, its times by its agent's clock and its addresses in no network.
pub fn view_of(half: &Half) -> HalfView {
    half_view(half, 0, 0)
}

/// All halves in memory; ours can be found by id.
#[derive(Debug)]
pub struct Slots {
    list: Vec<Slot>,
    free: Vec<SlotNumber>,
    by_id: HashMap<HalfId, SlotNumber, Mixed>,
    /// How many are of each share.
    shares: HashMap<u64, usize, Mixed>,
}

impl Slots {
    /// None yet.
    pub fn new(seed: u64) -> Self {
        Self {
            list: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::with_hasher(Mixed(seed)),
            shares: HashMap::with_hasher(Mixed(seed)),
        }
    }

    /// Puts a half into memory.
    pub fn add(&mut self, slot: Slot) -> SlotNumber {
        let (id, remote) = (slot.half.id, slot.remote);
        if slot.share != 0 {
            *self.shares.entry(slot.share).or_default() += 1;
        }
        let number = match self.free.pop() {
            Some(number) => {
                self.list[number as usize] = slot;
                number
            }
            None => {
                self.list.push(slot);
                (self.list.len() - 1) as SlotNumber
            }
        };
        if !remote {
            self.by_id.insert(id, number);
        }
        number
    }

    /// Takes a half out of memory.
    pub fn remove(&mut self, number: SlotNumber) {
        let slot = &mut self.list[number as usize];
        slot.used = false;
        if let Some(count) = self.shares.get_mut(&slot.share) {
            *count -= 1;
            if *count == 0 {
                self.shares.remove(&slot.share);
            }
        }
        if !slot.remote {
            self.by_id.remove(&slot.half.id);
        }
        self.free.push(number);
    }

    /// One of our own halves.
    pub fn of_id(&self, id: HalfId) -> Option<SlotNumber> {
        self.by_id.get(&id).copied()
    }

    /// Reads where an id would be found, and where it is: what follows finds that in the cache. What is returned means nothing.
    pub fn touch(&self, id: HalfId) -> usize {
        self.of_id(id)
            .map_or(0, |number| self.list[number as usize].agent as usize)
    }

    /// Those of which this is so; looks at all.
    pub fn numbers_where(&self, is_so: impl Fn(&Slot) -> bool) -> Vec<SlotNumber> {
        let all = self.list.iter().zip(0..);
        all.filter(|(slot, _)| slot.used && is_so(slot))
            .map(|(_, number)| number)
            .collect()
    }

    /// Halves in memory.
    pub fn count(&self) -> usize {
        self.list.len() - self.free.len()
    }

    /// Halves in memory of this share.
    pub fn of_share(&self, share: u64) -> usize {
        self.shares.get(&share).copied().unwrap_or_default()
    }

    /// The slot, if a half is in it.
    pub fn find(&self, number: SlotNumber) -> Option<&Slot> {
        self.list.get(number as usize).filter(|slot| slot.used)
    }
}

impl std::ops::Index<SlotNumber> for Slots {
    type Output = Slot;

    fn index(&self, number: SlotNumber) -> &Slot {
        &self.list[number as usize]
    }
}

impl std::ops::IndexMut<SlotNumber> for Slots {
    fn index_mut(&mut self, number: SlotNumber) -> &mut Slot {
        &mut self.list[number as usize]
    }
}

impl Halves for Slots {
    fn view(&self, handle: stitching::Handle) -> Option<HalfView> {
        self.find(handle.0).map(Slot::view)
    }
}
