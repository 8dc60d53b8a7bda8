//! Places of which one network has only so many at a time, so that one cannot take the room of all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Networks after which those are forgotten that have nobody here.
const MANY: usize = 1024;

/// Places by network: an address of IPv4, or a /64 of IPv6.
#[derive(Debug)]
pub(crate) struct Guests {
    most_of_one: usize,
    by_network: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

/// One of them; free again when dropped.
pub(crate) type Guest = OwnedSemaphorePermit;

impl Guests {
    /// None yet; of one network so many at most.
    pub(crate) fn new(most_of_one: usize) -> Self {
        Self {
            most_of_one: most_of_one.clamp(1, Semaphore::MAX_PERMITS),
            by_network: Mutex::default(),
        }
    }

    /// Whether this address's network has half of what it may have, or more.
    pub(crate) fn crowded(&self, address: IpAddr) -> bool {
        self.places(address).available_permits() <= self.most_of_one / 2
    }

    /// `None` when this address's network has as many as it may.
    pub(crate) fn enter(&self, address: IpAddr) -> Option<Guest> {
        self.places(address).try_acquire_owned().ok()
    }

    /// Waits until this address's network has fewer than it may.
    pub(crate) async fn wait(&self, address: IpAddr) -> Option<Guest> {
        self.places(address).acquire_owned().await.ok()
    }

    /// Held by whoever is there or waits.
    fn places(&self, address: IpAddr) -> Arc<Semaphore> {
        let network = network(address);
        let mut by_network = self
            .by_network
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = by_network.get(&network).and_then(Weak::upgrade) {
            return places;
        }
        if by_network.len() >= MANY {
            by_network.retain(|_, places| places.strong_count() > 0);
        }
        let places = Arc::new(Semaphore::new(self.most_of_one));
        by_network.insert(network, Arc::downgrade(&places));
        places
    }
}

/// Whoever has one address of a /64 has them all.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_so_many_and_another_has_its_own() {
        let guests = Guests::new(2);
        let enter = |address: &str| guests.enter(address.parse().unwrap());
        let held = [enter("10.0.0.1"), enter("::ffff:10.0.0.1")];
        assert!(held.iter().all(Option::is_some));
        assert!(guests.crowded("10.0.0.1".parse().unwrap()));
        assert!(!guests.crowded("10.0.0.2".parse().unwrap()));
        assert!(enter("10.0.0.1").is_none());
        let six = [enter("2001:db8::1"), enter("2001:db8::2:1")];
        assert!(six.iter().all(Option::is_some));
        assert!(enter("2001:db8::ffff").is_none(), "of the same /64");
        assert!(enter("2001:db8:0:1::1").is_some());
        drop(held);
        assert!(enter("10.0.0.1").is_some());
    }

    #[test]
    fn networks_without_guests_are_forgotten() {
        let guests = Guests::new(1);
        let held = guests.enter([10, 0, 0, 1].into());
        for number in 0..3 * MANY as u32 {
            guests.enter(IpAddr::V4((0x0b00_0000 + number).into()));
        }
        assert!(guests.by_network.lock().unwrap().len() <= MANY);
        assert!(guests.enter([10, 0, 0, 1].into()).is_none());
        drop(held);
    }
}
