//! How many sessions one name may have at a time, so that one stolen key cannot take the room of all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::spiffe::{PeerRole, SpiffeId};

/// Most sessions of one agent or federator at a time: the one in use, those it left without a word (they last for
/// [`crate::endpoint::IDLE_TIMEOUT`]), and a few. More are closed with `limit`.
pub const MAX_SESSIONS_OF_ONE: usize = 8;
/// Most sessions of one operator at a time: many programs may share a name.
pub const MAX_SESSIONS_OF_OPERATOR: usize = 64;

/// Sessions by name.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    by_name: Mutex<HashMap<SpiffeId, usize>>,
}

/// One of them; free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    name: SpiffeId,
}

impl Seats {
    /// `None` when the name has as many as it may.
    pub(crate) fn enter(self: &Arc<Self>, name: &SpiffeId) -> Option<Seat> {
        let most = match name.role() {
            PeerRole::Agent | PeerRole::Federator => MAX_SESSIONS_OF_ONE,
            PeerRole::Operator | PeerRole::Admin => MAX_SESSIONS_OF_OPERATOR,
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
