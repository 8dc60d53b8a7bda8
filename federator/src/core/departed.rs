//! Ids of halves that left memory lately.

use std::collections::HashSet;

use weft_wire::HalfId;

use super::names::Mixed;

/// Ids in a generation; there are two, and the older one is forgotten when the younger is full. Up to 40 MB each.
pub const GENERATION: usize = 2_000_000;

/// A bounded memory of ids: the last [`GENERATION`] to twice that.
#[derive(Debug)]
pub struct Departed {
    young: HashSet<HalfId, Mixed>,
    old: HashSet<HalfId, Mixed>,
}

impl Departed {
    /// Nothing yet.
    pub fn new(seed: u64) -> Self {
        Self {
            young: HashSet::with_hasher(Mixed(seed)),
            old: HashSet::with_hasher(Mixed(seed)),
        }
    }

    /// Remembers an id.
    pub fn insert(&mut self, id: HalfId) {
        if self.young.len() >= GENERATION {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(id);
    }

    /// Whether an id is remembered.
    pub fn contains(&self, id: HalfId) -> bool {
        self.young.contains(&id) || self.old.contains(&id)
    }
}
