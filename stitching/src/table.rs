//! The table of halves: open addressing by the routing word, one cache line per bucket, fixed capacity.
//!
//! A bucket is 16 words: five routing words, five second words, five handles, and one word with a role and a state for
//! each of the five and a count of the entries that wanted to live here but had to move on. That count (the idea of
//! F14's overflow counts) ends a search at the first bucket that nothing passed by, without tombstones, so a
//! table that lives for months does not slow down.
//!
//! Memory is asked for zeroed and in one piece; the operating system lends a page when it is first written.

use crate::view::Role;

/// Entries per bucket.
const LANES: usize = 5;
/// Words per bucket: one cache line.
const WORDS: usize = 16;
const META: usize = 15;
/// Buckets that one routing word may spread over. Halves that share a client ISN live side by side, so this also limits
/// what a peer that sends one ISN over and over can cost everyone else.
const MAX_PROBE: u32 = 32;
const PASSED_SHIFT: u32 = 24;
/// A count that has reached this stays: it is no longer known how many there are.
const PASSED_MAX: u32 = 0xff;

/// What an entry is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// For a partner at home, during the hold.
    Held = 1,
    /// For a partner anywhere.
    Offered = 2,
    /// As offered, past its expiry, and the connection is still open.
    Dormant = 3,
    /// For nothing: several would fit.
    Ambiguous = 4,
    /// For nothing: has its partner. Kept to recognise a third half.
    Matched = 5,
    /// As matched, and a third half has come.
    Contested = 6,
}

impl State {
    fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            1 => Self::Held,
            2 => Self::Offered,
            3 => Self::Dormant,
            4 => Self::Ambiguous,
            5 => Self::Matched,
            6 => Self::Contested,
            _ => return None,
        })
    }

    /// Can still get a partner.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Self::Held | Self::Offered | Self::Dormant)
    }

    /// Was part of a pair.
    pub(crate) fn remembered(self) -> bool {
        matches!(self, Self::Matched | Self::Contested)
    }
}

/// An entry, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// First word of the key: chooses the bucket.
    pub(crate) a: u32,
    /// Second word of the key.
    pub(crate) b: u32,
    pub(crate) handle: u32,
    pub(crate) role: Role,
    pub(crate) state: State,
}

/// Where an entry lives. Valid until the table is next changed by `place` or `clear`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    bucket: u32,
    lane: u32,
}

/// What a search for a whole key found on its way.
pub(crate) struct Found {
    /// An entry with the whole key.
    pub(crate) hit: Option<Slot>,
    /// There are more than that one.
    pub(crate) several: bool,
    /// Room, at this many buckets from home.
    free: Option<(Slot, u32)>,
    /// Buckets searched.
    searched: u32,
}

pub(crate) struct Table {
    words: Vec<u32>,
    /// Words before the first cache line boundary.
    offset: usize,
    buckets: u32,
    seed: u32,
    occupied: usize,
    remembered: usize,
}

impl Table {
    /// A table of at least `slots` entries' room. `seed` makes the placement unpredictable to peers.
    pub(crate) fn new(slots: usize, seed: u32) -> Self {
        let buckets = slots.div_ceil(LANES).clamp(1, 1 << 29);
        let words = vec![0u32; (buckets + 1) * WORDS];
        let offset = words
            .as_ptr()
            .align_offset(WORDS * size_of::<u32>())
            .min(WORDS);
        Self {
            words,
            offset,
            buckets: buckets as u32,
            seed,
            occupied: 0,
            remembered: 0,
        }
    }

    pub(crate) fn slots(&self) -> usize {
        self.buckets as usize * LANES
    }

    /// Entries, remembered ones included.
    pub(crate) fn occupied(&self) -> usize {
        self.occupied
    }

    /// Entries that are not just remembered.
    pub(crate) fn open(&self) -> usize {
        self.occupied - self.remembered
    }

    pub(crate) fn allocated_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u32>()
    }

    /// Loads the buckets of many keys at once, so that the memory works on all of them at the same time instead of one
    /// after the other; what follows finds them in the cache.
    pub(crate) fn touch(&self, keys: impl Iterator<Item = u32>) {
        let buckets = self.lines();
        let sum = keys.fold(0u32, |sum, a| {
            sum.wrapping_add(buckets[self.home(a) as usize][META])
        });
        std::hint::black_box(sum);
    }

    /// Looks for the whole key, and for room on the way.
    pub(crate) fn find_key(&self, a: u32, b: u32) -> Found {
        let mut found = Found {
            hit: None,
            several: false,
            free: None,
            searched: 0,
        };
        let mut index = self.home(a);
        loop {
            let bucket = self.line(index);
            let meta = bucket[META];
            for lane in 0..LANES as u32 {
                let bits = lane_bits(meta, lane);
                if bits == 0 {
                    if found.free.is_none() {
                        found.free = Some((
                            Slot {
                                bucket: index,
                                lane,
                            },
                            found.searched,
                        ));
                    }
                } else if bucket[lane as usize] == a && bucket[LANES + lane as usize] == b {
                    found.several |= found.hit.is_some();
                    found.hit = found.hit.or(Some(Slot {
                        bucket: index,
                        lane,
                    }));
                }
            }
            found.searched += 1;
            if passed(meta) == 0 || found.searched >= MAX_PROBE.min(self.buckets) {
                return found;
            }
            index = self.next(index);
        }
    }

    /// Calls `each` for every entry with this routing word.
    pub(crate) fn with_routing(&self, a: u32, mut each: impl FnMut(Slot, Entry)) {
        let mut index = self.home(a);
        for _ in 0..MAX_PROBE.min(self.buckets) {
            let bucket = self.line(index);
            for lane in 0..LANES as u32 {
                if bucket[lane as usize] == a
                    && let Some(entry) = unpack(bucket, lane)
                {
                    each(
                        Slot {
                            bucket: index,
                            lane,
                        },
                        entry,
                    );
                }
            }
            if passed(bucket[META]) == 0 {
                return;
            }
            index = self.next(index);
        }
    }

    /// The entry of one half.
    pub(crate) fn find(&self, a: u32, handle: u32) -> Option<(Slot, Entry)> {
        let mut found = None;
        self.with_routing(a, |slot, entry| {
            if entry.handle == handle {
                found = Some((slot, entry));
            }
        });
        found
    }

    pub(crate) fn entry(&self, slot: Slot) -> Option<Entry> {
        unpack(self.line(slot.bucket), slot.lane)
    }

    /// Stores an entry where a search for its key found room, or beyond. `false`: no room within reach.
    pub(crate) fn place(&mut self, entry: Entry, found: &Found) -> bool {
        let Some((slot, distance)) = found
            .free
            .or_else(|| self.room_beyond(entry.a, found.searched))
        else {
            return false;
        };
        self.count_passed(entry.a, distance, true);
        let bucket = self.line_mut(slot.bucket);
        let lane = slot.lane as usize;
        bucket[lane] = entry.a;
        bucket[LANES + lane] = entry.b;
        bucket[2 * LANES + lane] = entry.handle;
        set_lane(bucket, slot.lane, pack(entry.role, entry.state));
        self.occupied += 1;
        self.remembered += usize::from(entry.state.remembered());
        true
    }

    fn room_beyond(&self, a: u32, searched: u32) -> Option<(Slot, u32)> {
        let limit = MAX_PROBE.min(self.buckets);
        let mut index = (0..searched).fold(self.home(a), |index, _| self.next(index));
        for distance in searched..limit {
            let meta = self.line(index)[META];
            if let Some(lane) = (0..LANES as u32).find(|lane| lane_bits(meta, *lane) == 0) {
                return Some((
                    Slot {
                        bucket: index,
                        lane,
                    },
                    distance,
                ));
            }
            index = self.next(index);
        }
        None
    }

    pub(crate) fn set_state(&mut self, slot: Slot, state: State) {
        let Some(entry) = self.entry(slot) else {
            return;
        };
        self.remembered += usize::from(state.remembered());
        self.remembered -= usize::from(entry.state.remembered());
        set_lane(
            self.line_mut(slot.bucket),
            slot.lane,
            pack(entry.role, state),
        );
    }

    /// Frees a slot.
    pub(crate) fn clear(&mut self, slot: Slot) {
        let Some(entry) = self.entry(slot) else {
            return;
        };
        set_lane(self.line_mut(slot.bucket), slot.lane, 0);
        let home = self.home(entry.a);
        let distance = if slot.bucket >= home {
            slot.bucket - home
        } else {
            slot.bucket + self.buckets - home
        };
        self.count_passed(entry.a, distance, false);
        self.occupied -= 1;
        self.remembered -= usize::from(entry.state.remembered());
    }

    /// Corrects the counts of the buckets between home and the one an entry lives in.
    fn count_passed(&mut self, a: u32, distance: u32, one_more: bool) {
        let mut index = self.home(a);
        for _ in 0..distance {
            let meta = &mut self.line_mut(index)[META];
            match passed(*meta) {
                PASSED_MAX => {}
                0 if !one_more => {}
                _ if one_more => *meta += 1 << PASSED_SHIFT,
                _ => *meta -= 1 << PASSED_SHIFT,
            }
            index = self.next(index);
        }
    }

    fn home(&self, a: u32) -> u32 {
        ((u64::from(mix32(a ^ self.seed)) * u64::from(self.buckets)) >> 32) as u32
    }

    fn next(&self, index: u32) -> u32 {
        if index + 1 == self.buckets {
            0
        } else {
            index + 1
        }
    }

    fn lines(&self) -> &[[u32; WORDS]] {
        self.words[self.offset..].as_chunks().0
    }

    fn line(&self, index: u32) -> &[u32; WORDS] {
        &self.lines()[index as usize]
    }

    fn line_mut(&mut self, index: u32) -> &mut [u32; WORDS] {
        &mut self.words[self.offset..].as_chunks_mut().0[index as usize]
    }
}

fn passed(meta: u32) -> u32 {
    meta >> PASSED_SHIFT
}

fn lane_bits(meta: u32, lane: u32) -> u32 {
    (meta >> (4 * lane)) & 15
}

fn set_lane(bucket: &mut [u32; WORDS], lane: u32, bits: u32) {
    bucket[META] = bucket[META] & !(15 << (4 * lane)) | bits << (4 * lane);
}

fn pack(role: Role, state: State) -> u32 {
    u32::from(role == Role::Server) << 3 | state as u32
}

fn unpack(bucket: &[u32; WORDS], lane: u32) -> Option<Entry> {
    let bits = lane_bits(bucket[META], lane);
    let lane = lane as usize;
    Some(Entry {
        state: State::from_bits(bits)?,
        role: if bits & 8 == 0 {
            Role::Client
        } else {
            Role::Server
        },
        a: bucket[lane],
        b: bucket[LANES + lane],
        handle: bucket[2 * LANES + lane],
    })
}

/// The finaliser of MurmurHash3 (Appleby): a bijection of 32 bits.
fn mix32(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(a: u32, b: u32, handle: u32) -> Entry {
        Entry {
            a,
            b,
            handle,
            role: Role::Server,
            state: State::Held,
        }
    }

    fn place(table: &mut Table, entry: Entry) -> bool {
        let found = table.find_key(entry.a, entry.b);
        table.place(entry, &found)
    }

    #[test]
    fn buckets_are_cache_lines() {
        let table = Table::new(1000, 0);
        assert_eq!(table.lines().as_ptr().align_offset(64), 0);
        assert!(table.lines().len() >= table.buckets as usize);
    }

    #[test]
    fn one_routing_word_fills_its_reach_and_no_more() {
        let mut table = Table::new(10_000, 1);
        let room = MAX_PROBE as usize * LANES;
        for i in 0..room as u32 {
            assert!(place(&mut table, entry(7, i, i)));
        }
        assert!(!place(&mut table, entry(7, 9999, 9999)));
        let (slot, _) = table.find(7, 3).unwrap();
        table.clear(slot);
        assert!(place(&mut table, entry(7, 9999, 9999)));
        assert_eq!(table.occupied(), room);
    }

    proptest! {
        /// Against a plain list, with keys so few and a table so small that entries spill over.
        #[test]
        fn behaves_as_a_list(
            ops in prop::collection::vec((0u32..12, 0u32..3, any::<bool>(), 1u32..7), 1..400),
            slots in 1usize..60,
        ) {
            let mut table = Table::new(slots, 3);
            let mut model: Vec<Entry> = Vec::new();
            for (step, (a, b, add, state)) in ops.into_iter().enumerate() {
                let state = State::from_bits(state).unwrap();
                if add {
                    let new = Entry { state, ..entry(a, b, step as u32) };
                    let placed = place(&mut table, new);
                    if placed {
                        model.push(new);
                    } else {
                        prop_assert!(model.len() == table.slots() || table.buckets > MAX_PROBE);
                    }
                } else if let Some(at) = model.iter().position(|e| e.a == a && e.b == b) {
                    let gone = model.remove(at);
                    let (slot, there) = table.find(a, gone.handle).unwrap();
                    prop_assert_eq!(there, gone);
                    table.set_state(slot, state);
                    prop_assert_eq!(table.entry(slot), Some(Entry { state, ..gone }));
                    table.clear(slot);
                }
                let hits = model.iter().filter(|e| e.a == a && e.b == b).count();
                let found = table.find_key(a, b);
                prop_assert_eq!((found.hit.is_some(), found.several), (hits > 0, hits > 1));
                let mut here = Vec::new();
                table.with_routing(a, |_, e| here.push(e));
                here.sort_by_key(|e| e.handle);
                let mut expected: Vec<_> = model.iter().copied().filter(|e| e.a == a).collect();
                expected.sort_by_key(|e| e.handle);
                prop_assert_eq!(here, expected);
                prop_assert_eq!(table.occupied(), model.len());
                prop_assert_eq!(table.open(), model.iter().filter(|e| !e.state.remembered()).count());
            }
            for gone in model {
                let (slot, _) = table.find(gone.a, gone.handle).unwrap();
                table.clear(slot);
            }
            prop_assert!(table.lines()[..table.buckets as usize].iter().all(|bucket| bucket[META] == 0));
        }
    }
}
