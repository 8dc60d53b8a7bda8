//! How many of something one network has at a time, so that one place cannot take the room of all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts by network: an address of IPv4, or a /64 of IPv6.
#[derive(Debug)]
pub(crate) struct Guests {
    most_of_one: usize,
    by_network: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them; leaves when dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    guests: Arc<Guests>,
    network: IpAddr,
}

impl Guests {
    /// None yet; of one network so many at most.
    pub(crate) fn new(most_of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            most_of_one,
            by_network: Mutex::default(),
        })
    }

    /// Whether this address's network has half of what it may have, or more.
    pub(crate) fn crowded(&self, address: IpAddr) -> bool {
        let by_network = self
            .by_network
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = by_network.get(&network(address)).copied();
        count.unwrap_or_default() >= self.most_of_one.div_ceil(2)
    }

    /// `None` when this address's network has as many as it may.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let network = network(address);
        let mut by_network = self
            .by_network
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = by_network.entry(network).or_default();
        if *count >= self.most_of_one {
            return None;
        }
        *count += 1;
        Some(Guest {
            guests: self.clone(),
            network,
        })
    }
}

/// Whoever has one address of a /64 has them all.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut by_network = self
            .guests
            .by_network
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_network.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                by_network.remove(&self.network);
            }
        }
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
}
