//! Which datagrams were seen before: what a fleet sends alike looks like chance once, not twice. Pure.

use std::collections::HashSet;

use weft_wire::mix64;

/// Hashes remembered in each of two generations, 8 bytes and a little each. Full: the older generation is forgotten.
const GENERATION: usize = 16_384;
/// Whose datagram it was, and at which end it was seen: an echo is no repetition, nor is the other end on the same host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The client's, at the client.
    ClientsAtClient = 1,
    /// The client's, at the server.
    ClientsAtServer = 2,
    /// The server's, at the client.
    ServersAtClient = 3,
    /// The server's, at the server.
    ServersAtServer = 4,
}

/// Hashes of the first datagrams of other flows, the newest of them at least.
#[derive(Debug, Default)]
pub struct Repeats {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

impl Repeats {
    /// Whether another flow began with the same bytes; remembers that this one did.
    pub fn repeated(&mut self, hash: u64, seen: Seen) -> bool {
        let key = mix64(mix64(hash) ^ seen as u64);
        if self.young.contains(&key) {
            return true;
        }
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key);
        self.old.contains(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_time_is_a_repetition() {
        use Seen::{ClientsAtClient, ClientsAtServer, ServersAtClient};
        let mut repeats = Repeats::default();
        assert!(!repeats.repeated(1, ClientsAtClient));
        assert!(!repeats.repeated(1, ServersAtClient), "an echo is none");
        assert!(!repeats.repeated(1, ClientsAtServer), "nor the other end");
        assert!(repeats.repeated(1, ClientsAtClient) && repeats.repeated(1, ClientsAtServer));
        for hash in 2..2 + GENERATION as u64 {
            assert!(!repeats.repeated(hash, ClientsAtClient));
        }
        assert!(repeats.repeated(1, ClientsAtClient), "a generation later");
        for hash in 1_000_000..1_000_000 + 3 * GENERATION as u64 {
            repeats.repeated(hash, ClientsAtClient);
        }
        assert!(
            !repeats.repeated(2, ClientsAtClient),
            "three generations later"
        );
        assert!(repeats.young.len() <= GENERATION && repeats.old.len() <= GENERATION);
    }
}
