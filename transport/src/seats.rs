//! How many sessions one name may have at a time, so that one stolen key cannot take the room of all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::limits::Limits;
use crate::spiffe::{PeerRole, SpiffeId};

/// Sessions by name.
#[derive(Debug)]
pub(crate) struct Seats {
    of_one: usize,
    of_operator: usize,
    by_name: Mutex<HashMap<SpiffeId, usize>>,
}

/// One of them; free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    name: SpiffeId,
}

impl Seats {
    /// None taken yet.
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            of_one: limits.sessions_of_one,
            of_operator: limits.sessions_of_operator,
            by_name: Mutex::default(),
        }
    }

    /// `None` when the name has as many as it may.
    pub(crate) fn enter(self: &Arc<Self>, name: &SpiffeId) -> Option<Seat> {
        let most = match name.role() {
            PeerRole::Agent | PeerRole::Federator => self.of_one,
            PeerRole::Operator | PeerRole::Admin => self.of_operator,
        };
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = by_name.get(name).copied().unwrap_or_default();
        if taken >= most {
            return None;
        }
        by_name.insert(name.clone(), taken + 1);
        Some(Seat {
            seats: self.clone(),
            name: name.clone(),
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let seats = self.seats.clone();
        let mut by_name = seats.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = by_name.get_mut(&self.name) {
            *taken -= 1;
            if *taken == 0 {
                by_name.remove(&self.name);
            }
        }
    }
}
