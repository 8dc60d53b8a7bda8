//! What is kept of an open connection, and where. Compact: a host may have hundreds of thousands.
//!
//! Bytes of a connection: 96 in a slot (a pair of IPv6 addresses 32 more, apart), and 5 to 10 in the index that finds the slot
//! by its key. Slots come in blocks, the lowest free one is taken first, and a block of which nothing is used is given back: so
//! what is taken follows what is open, and nothing is ever copied to a larger place but the index.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use weft_wire::{Fingerprint, Half, HalfState, Owner, Protocol, Role, Timestamp, mix64};

use crate::decode::ConnectionKey;

/// Slots of a block.
const BLOCK: usize = 1_024;
/// How full the index becomes before it is doubled: four of five.
const FULL: (usize, usize) = (4, 5);

/// The addresses of both ends, this one first.
#[derive(Clone, Debug)]
enum Ends {
    V4([Ipv4Addr; 2]),
    /// Also of one of each kind.
    V6(Box<[Ipv6Addr; 2]>),
}

impl Ends {
    fn of(ends: [IpAddr; 2]) -> Self {
        match ends {
            [IpAddr::V4(local), IpAddr::V4(remote)] => Self::V4([local, remote]),
            ends => Self::V6(Box::new(ends.map(|end| match end {
                IpAddr::V4(end) => end.to_ipv6_mapped(),
                IpAddr::V6(end) => end,
            }))),
        }
    }

    fn addresses(&self) -> [IpAddr; 2] {
        match self {
            Self::V4(ends) => ends.map(IpAddr::V4),
            Self::V6(ends) => ends.map(|end| IpAddr::V6(end).to_canonical()),
        }
    }
}

/// An open connection: what a row says that cannot be computed.
#[derive(Clone, Debug)]
pub struct Kept {
    key: ConnectionKey,
    ends: Ends,
    /// Whose it is.
    pub owner: Arc<Owner>,
    opened_at: Timestamp,
    /// When the counters were read.
    pub seen_at: Timestamp,
    bytes_sent: u64,
    bytes_received: u64,
    packets_sent: u32,
    packets_received: u32,
    rtt_us: u32,
    retransmits: u32,
    /// Initial sequence numbers, the client's first.
    isn: [u32; 2],
    ports: [u16; 2],
    role: Role,
    /// The initial sequence numbers are known.
    fingerprint: bool,
    /// A row is due.
    pub changed: bool,
}

const _: () = assert!(size_of::<Option<Kept>>() == 96);

impl Kept {
    /// Of the row of an open TCP connection.
    pub fn new(key: ConnectionKey, half: &Half, owner: Arc<Owner>) -> Self {
        let (isn, fingerprint) = match half.fingerprint {
            Fingerprint::TcpIsn { client, server } => ([client, server], true),
            _ => ([0; 2], false),
        };
        let count = |packets: u64| u32::try_from(packets).unwrap_or(u32::MAX);
        Self {
            key,
            ends: Ends::of([half.local.ip(), half.remote.ip()]),
            owner,
            opened_at: half.opened_at,
            seen_at: half.seen_at,
            bytes_sent: half.bytes_sent,
            bytes_received: half.bytes_received,
            packets_sent: count(half.packets_sent),
            packets_received: count(half.packets_received),
            rtt_us: half.rtt_us,
            retransmits: half.retransmits,
            isn,
            ports: [half.local.port(), half.remote.port()],
            role: half.role,
            fingerprint,
            changed: false,
        }
    }

    /// The row; its id is the table's to say.
    pub fn half(&self) -> Half {
        let [local, remote] = self.ends.addresses();
        let [client, server] = self.isn;
        Half {
            cookie: self.key.0,
            protocol: Protocol::Tcp,
            role: self.role,
            state: HalfState::Open,
            fingerprint: if self.fingerprint {
                Fingerprint::TcpIsn { client, server }
            } else {
                Fingerprint::Unknown
            },
            local: SocketAddr::new(local, self.ports[0]),
            remote: SocketAddr::new(remote, self.ports[1]),
            opened_at: self.opened_at,
            closed_at: None,
            seen_at: self.seen_at,
            bytes_sent: self.bytes_sent,
            bytes_received: self.bytes_received,
            packets_sent: self.packets_sent.into(),
            packets_received: self.packets_received.into(),
            rtt_us: self.rtt_us,
            retransmits: self.retransmits,
            ..Half::default()
        }
    }

    /// Which connection.
    pub fn key(&self) -> ConnectionKey {
        self.key
    }

    /// When it opened.
    pub fn opened_at(&self) -> Timestamp {
        self.opened_at
    }
}

type Block = Box<[Option<Kept>]>;

/// Connections by key. See the module.
#[derive(Debug, Default)]
pub struct Slots {
    /// Open addressing by the mixed key, linear: 0 for nothing, else a slot and one. As long as a power of two.
    index: Vec<u32>,
    blocks: Vec<Option<(Block, usize)>>,
    /// Slots of blocks that exist or existed, and hold nothing; the lowest first.
    free: BinaryHeap<Reverse<u32>>,
    len: usize,
}

impl Slots {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this one is there.
    pub fn contains(&self, key: ConnectionKey) -> bool {
        self.find(key).is_some()
    }

    /// One of them.
    pub fn get_mut(&mut self, key: ConnectionKey) -> Option<&mut Kept> {
        let (_, slot) = self.find(key)?;
        let (block, _) = self.blocks.get_mut(slot as usize / BLOCK)?.as_mut()?;
        block[slot as usize % BLOCK].as_mut()
    }

    /// Adds one, or takes the place of what has its key.
    pub fn insert(&mut self, kept: Kept) {
        if let Some(before) = self.get_mut(kept.key) {
            *before = kept;
            return;
        }
        if (self.len + 1) * FULL.1 > self.index.len() * FULL.0 {
            self.grow();
        }
        let slot = self.free_slot();
        self.enter(kept.key, slot);
        let place = &mut self.blocks[slot as usize / BLOCK];
        let (block, used) = place.get_or_insert_with(|| ((0..BLOCK).map(|_| None).collect(), 0));
        block[slot as usize % BLOCK] = Some(kept);
        *used += 1;
        self.len += 1;
    }

    /// Takes one out.
    pub fn remove(&mut self, key: ConnectionKey) -> Option<Kept> {
        let (at, slot) = self.find(key)?;
        self.leave(at);
        let place = self.blocks.get_mut(slot as usize / BLOCK)?;
        let (block, used) = place.as_mut()?;
        let kept = block[slot as usize % BLOCK].take();
        *used -= 1;
        if *used == 0 {
            *place = None;
        }
        self.free.push(Reverse(slot));
        self.len -= 1;
        if self.len == 0 && self.index.len() > BLOCK {
            // After a flood even the index is given back.
            *self = Self::default();
        }
        kept
    }

    fn free_slot(&mut self) -> u32 {
        if let Some(Reverse(slot)) = self.free.pop() {
            return slot;
        }
        let first = (self.blocks.len() * BLOCK) as u32;
        self.blocks.push(None);
        self.free
            .extend((first + 1..first + BLOCK as u32).map(Reverse));
        first
    }

    /// Where the search for a key begins.
    fn home(&self, key: ConnectionKey) -> usize {
        mix64(key.0) as usize & (self.index.len() - 1)
    }

    /// Where in the index a key is, and its slot.
    fn find(&self, key: ConnectionKey) -> Option<(usize, u32)> {
        if self.index.is_empty() {
            return None;
        }
        let mut at = self.home(key);
        loop {
            let slot = self.index[at].checked_sub(1)?;
            if self.key(slot) == Some(key) {
                return Some((at, slot));
            }
            at = (at + 1) & (self.index.len() - 1);
        }
    }

    fn key(&self, slot: u32) -> Option<ConnectionKey> {
        let (block, _) = self.blocks.get(slot as usize / BLOCK)?.as_ref()?;
        block[slot as usize % BLOCK].as_ref().map(Kept::key)
    }

    /// Notes a key that is not there; there is room.
    fn enter(&mut self, key: ConnectionKey, slot: u32) {
        let mut at = self.home(key);
        while self.index[at] != 0 {
            at = (at + 1) & (self.index.len() - 1);
        }
        self.index[at] = slot + 1;
    }

    /// Empties a place, and moves up what was put behind it because of it. Slots still hold what they held.
    fn leave(&mut self, at: usize) {
        let mask = self.index.len() - 1;
        let (mut hole, mut next) = (at, (at + 1) & mask);
        while let Some(key) = self.index[next]
            .checked_sub(1)
            .and_then(|slot| self.key(slot))
        {
            // Not before its home: a search that begins there must come by.
            let from_home = next.wrapping_sub(self.home(key)) & mask;
            if from_home >= next.wrapping_sub(hole) & mask {
                self.index[hole] = self.index[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.index[hole] = 0;
    }

    fn grow(&mut self) {
        let slots: Vec<u32> = std::mem::take(&mut self.index);
        self.index = vec![0; (slots.len() * 2).max(BLOCK)];
        for slot in slots.into_iter().filter_map(|slot| slot.checked_sub(1)) {
            if let Some(key) = self.key(slot) {
                self.enter(key, slot);
            }
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Kept> {
        let blocks = self.blocks.iter().flatten();
        blocks.flat_map(|(block, _)| block.iter().flatten())
    }

    /// All of them, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Kept> {
        let blocks = self.blocks.iter_mut().flatten();
        blocks.flat_map(|(block, _)| block.iter_mut().flatten())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn kept(key: u64, seen_at: i64) -> Kept {
        let half = Half {
            seen_at: Timestamp(seen_at),
            ..Half::default()
        };
        Kept::new(ConnectionKey(key), &half, Arc::default())
    }

    #[test]
    fn a_row_comes_back_as_it_was() {
        for (local, remote) in [
            ("10.0.0.1:1", "10.0.0.2:2"),
            ("[2001:db8::1]:1", "[2001:db8::2]:65535"),
            ("10.0.0.1:1", "[2001:db8::2]:2"),
        ] {
            let half = Half {
                cookie: 7,
                role: Role::Server,
                fingerprint: Fingerprint::TcpIsn {
                    client: 3,
                    server: 4,
                },
                local: local.parse().unwrap(),
                remote: remote.parse().unwrap(),
                opened_at: Timestamp(5),
                seen_at: Timestamp(6),
                bytes_sent: 1 << 40,
                bytes_received: 8,
                packets_sent: 9,
                packets_received: 10,
                rtt_us: 11,
                retransmits: 12,
                ..Half::default()
            };
            assert_eq!(
                Kept::new(ConnectionKey(7), &half, Arc::default()).half(),
                half
            );
        }
    }

    #[test]
    fn what_is_taken_follows_what_is_open() {
        let mut slots = Slots::default();
        (0..4 * BLOCK as u64).for_each(|key| slots.insert(kept(key, 0)));
        let blocks = |slots: &Slots| slots.blocks.iter().flatten().count();
        assert_eq!(blocks(&slots), 4);
        (0..3 * BLOCK as u64).for_each(|key| drop(slots.remove(ConnectionKey(key))));
        assert_eq!(blocks(&slots), 1);
        slots.insert(kept(1, 0));
        let found = slots.find(ConnectionKey(1)).map(|(_, slot)| slot);
        assert_eq!(found, Some(0), "the lowest slot");
        (0..4 * BLOCK as u64).for_each(|key| drop(slots.remove(ConnectionKey(key))));
        assert_eq!(
            (slots.len(), slots.index.capacity(), slots.free.len()),
            (0, 0, 0)
        );
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0_u64..3_000, 0_u8..3), 0..4_000)) {
            let (mut slots, mut model) = (Slots::default(), BTreeMap::new());
            for (step, (key, what)) in steps.into_iter().enumerate() {
                if what == 0 {
                    let gone = slots.remove(ConnectionKey(key)).map(|kept| kept.seen_at.0);
                    prop_assert_eq!(gone, model.remove(&key));
                } else {
                    slots.insert(kept(key, step as i64));
                    model.insert(key, step as i64);
                }
                prop_assert_eq!(slots.contains(ConnectionKey(key)), model.contains_key(&key));
            }
            let all: BTreeMap<u64, i64> = slots.iter().map(|kept| (kept.key.0, kept.seen_at.0)).collect();
            prop_assert_eq!(slots.len(), model.len());
            prop_assert_eq!(all, model);
        }
    }
}
