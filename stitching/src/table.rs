//! The table of halves: open addressing by the routing word, one cache line per bucket, fixed capacity.
//!
//! A bucket is 16 words: five routing words, five second words, five handles, and one word with a role and a state for
//! each of the five and counts of the entries that wanted to live here but had to move on, each by a step of its own
//! (steps of one would pile full buckets up into long runs). That count (the idea of
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
/// Classes of entries, by their hash, whose passing by is counted apart: a search goes on only for its own class.
const CLASSES: u32 = 3;
const PASSED_SHIFT: u32 = 20;
/// A count that has reached this stays: it is no longer known how many there are.
const PASSED_MAX: u32 = 15;

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
    /// As matched, by the client's ISN alone.
    MatchedInPart = 7,
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
            7 => Self::MatchedInPart,
            _ => return None,
        })
    }

    /// Can still get a partner.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Self::Held | Self::Offered | Self::Dormant)
    }

    /// Was part of a pair.
    pub(crate) fn remembered(self) -> bool {
        matches!(self, Self::Matched | Self::Contested | Self::MatchedInPart)
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
    /// From home.
    walk: Walk,
}

/// The buckets in which an entry may live, in order.
#[derive(Clone, Copy, Default)]
pub(crate) struct Walk {
    index: u32,
    step: u32,
    /// Where the count of the class is in a bucket's last word.
    shift: u32,
}

impl Walk {
    /// Entries of this class that passed the bucket by.
    fn passed(&self, meta: u32) -> u32 {
        meta >> self.shift & PASSED_MAX
    }

    fn step(&mut self, buckets: u32) {
        self.index += self.step;
        if self.index >= buckets {
            self.index -= buckets;
        }
    }
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

    /// Loads the buckets of the first `count` keys at once, so that the memory works on all of them at the same time
    /// instead of one after the other; what follows finds them in the cache. Returns where each key's search begins. The
    /// passes are apart so that nothing but loads is in the second and the last, and the processor gets far ahead in them.
    #[inline]
    pub(crate) fn touch<const N: usize>(&self, keys: &[u32; N], count: usize) -> [Walk; N] {
        let buckets = self.lines();
        let meta = |index: u32| buckets[index as usize][META];
        let count = count.min(N);
        let mut walks = [Walk::default(); N];
        for (walk, a) in walks.iter_mut().zip(keys).take(count) {
            *walk = self.walk(*a);
        }
        std::hint::black_box(
            walks[..count]
                .iter()
                .fold(0, |sum: u32, walk| sum.wrapping_add(meta(walk.index))),
        );
        // Where a search, or a place for a new entry, leads beyond home. Without a branch: what is not kept is overwritten.
        let (mut beyond, mut kept) = ([0; N], 0);
        for walk in &walks[..count] {
            let here = meta(walk.index);
            let mut next = *walk;
            next.step(self.buckets);
            beyond[kept] = next.index;
            kept += usize::from((walk.passed(here) != 0) | (used_lanes(here) == ALL_LANES));
        }
        std::hint::black_box(
            beyond[..kept]
                .iter()
                .fold(0, |sum: u32, index| sum.wrapping_add(meta(*index))),
        );
        walks
    }

    /// Looks for the whole key, and for room on the way.
    pub(crate) fn find_key(&self, a: u32, b: u32) -> Found {
        self.find_key_from(self.walk(a), a, b)
    }

    /// As [`find_key`](Self::find_key), for a key whose beginning is known from [`touch`](Self::touch).
    #[inline]
    pub(crate) fn find_key_from(&self, walk: Walk, a: u32, b: u32) -> Found {
        let mut found = Found {
            hit: None,
            several: false,
            free: None,
            searched: 0,
            walk,
        };
        let mut walk = walk;
        loop {
            let bucket = self.line(walk.index);
            let used = used_lanes(bucket[META]);
            let hits = used & equal_lanes(bucket, a, LANES, b);
            if hits != 0 {
                found.several |= found.hit.is_some() || hits & (hits - 1) != 0;
                found.hit = found.hit.or(Some(Slot {
                    bucket: walk.index,
                    lane: hits.trailing_zeros() / 4,
                }));
            }
            if found.free.is_none() && used != ALL_LANES {
                let lane = (!used & ALL_LANES).trailing_zeros() / 4;
                found.free = Some((
                    Slot {
                        bucket: walk.index,
                        lane,
                    },
                    found.searched,
                ));
            }
            found.searched += 1;
            if walk.passed(bucket[META]) == 0 || found.searched >= MAX_PROBE.min(self.buckets) {
                return found;
            }
            walk.step(self.buckets);
        }
    }

    /// Calls `each` for every entry with this routing word.
    pub(crate) fn with_routing(&self, a: u32, mut each: impl FnMut(Slot, Entry)) {
        let mut walk = self.walk(a);
        for _ in 0..MAX_PROBE.min(self.buckets) {
            let index = walk.index;
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
            if walk.passed(bucket[META]) == 0 {
                return;
            }
            walk.step(self.buckets);
        }
    }

    /// The entry of one half.
    pub(crate) fn find(&self, a: u32, handle: u32) -> Option<(Slot, Entry)> {
        self.find_from(self.walk(a), a, handle)
    }

    /// As [`find`](Self::find), for a key whose beginning is known from [`touch`](Self::touch).
    #[inline]
    pub(crate) fn find_from(&self, mut walk: Walk, a: u32, handle: u32) -> Option<(Slot, Entry)> {
        for _ in 0..MAX_PROBE.min(self.buckets) {
            let bucket = self.line(walk.index);
            let hits = used_lanes(bucket[META]) & equal_lanes(bucket, a, 2 * LANES, handle);
            if hits != 0 {
                let slot = Slot {
                    bucket: walk.index,
                    lane: hits.trailing_zeros() / 4,
                };
                return unpack(bucket, slot.lane).map(|entry| (slot, entry));
            }
            if walk.passed(bucket[META]) == 0 {
                return None;
            }
            walk.step(self.buckets);
        }
        None
    }

    #[inline]
    pub(crate) fn entry(&self, slot: Slot) -> Option<Entry> {
        unpack(self.line(slot.bucket), slot.lane)
    }

    /// Stores an entry where a search for its key found room, or beyond. `false`: no room within reach.
    #[inline]
    pub(crate) fn place(&mut self, entry: Entry, found: &Found) -> bool {
        let Some((slot, distance)) = found
            .free
            .or_else(|| self.room_beyond(found.walk, found.searched))
        else {
            return false;
        };
        self.count_passed(found.walk, distance, true);
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

    fn room_beyond(&self, mut walk: Walk, searched: u32) -> Option<(Slot, u32)> {
        let limit = MAX_PROBE.min(self.buckets);
        (0..searched).for_each(|_| walk.step(self.buckets));
        for distance in searched..limit {
            let meta = self.line(walk.index)[META];
            if let Some(lane) = (0..LANES as u32).find(|lane| lane_bits(meta, *lane) == 0) {
                let bucket = walk.index;
                return Some((Slot { bucket, lane }, distance));
            }
            walk.step(self.buckets);
        }
        None
    }

    #[inline]
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
        let mut walk = self.walk(entry.a);
        let mut distance = 0;
        while walk.index != slot.bucket && distance < MAX_PROBE {
            walk.step(self.buckets);
            distance += 1;
        }
        self.count_passed(self.walk(entry.a), distance, false);
        self.occupied -= 1;
        self.remembered -= usize::from(entry.state.remembered());
    }

    /// Corrects the counts of the buckets between home and the one an entry lives in.
    fn count_passed(&mut self, mut walk: Walk, distance: u32, one_more: bool) {
        for _ in 0..distance {
            let meta = &mut self.line_mut(walk.index)[META];
            match walk.passed(*meta) {
                PASSED_MAX => {}
                0 if !one_more => {}
                _ if one_more => *meta += 1 << walk.shift,
                _ => *meta -= 1 << walk.shift,
            }
            walk.step(self.buckets);
        }
    }

    #[inline]
    fn walk(&self, a: u32) -> Walk {
        let hash = mix(a ^ self.seed);
        let scale = |word: u64, range: u32| ((word * u64::from(range)) >> 32) as u32;
        // Steps are so short that none of a walk's buckets comes twice.
        let step = 1 + scale(hash & 0xffff_ffff, self.buckets / MAX_PROBE);
        let shift = PASSED_SHIFT + 4 * ((hash & 0xffff) as u32 % CLASSES);
        Walk {
            index: scale(hash >> 32, self.buckets),
            step,
            shift,
        }
    }

    #[inline]
    fn lines(&self) -> &[[u32; WORDS]] {
        self.words[self.offset..].as_chunks().0
    }

    #[inline]
    fn line(&self, index: u32) -> &[u32; WORDS] {
        &self.lines()[index as usize]
    }

    #[inline]
    fn line_mut(&mut self, index: u32) -> &mut [u32; WORDS] {
        &mut self.words[self.offset..].as_chunks_mut().0[index as usize]
    }
}

/// A hash of which both halves are used: two multiplications by odd constants (those of SplitMix64).
#[inline]
fn mix(a: u32) -> u64 {
    let x = (u64::from(a) + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x ^ x >> 32).wrapping_mul(0x94d0_49bb_1331_11eb)
}

/// One bit for each lane, where its role and state are.
const ALL_LANES: u32 = 0x1_1111;

/// Lanes with an entry.
fn used_lanes(meta: u32) -> u32 {
    (meta | meta >> 1 | meta >> 2) & ALL_LANES
}

/// Lanes with this routing word and, at an offset, that word.
fn equal_lanes(bucket: &[u32; WORDS], a: u32, offset: usize, word: u32) -> u32 {
    (0..LANES).fold(0, |lanes, lane| {
        let equal = (bucket[lane] == a) & (bucket[offset + lane] == word);
        lanes | u32::from(equal) << (4 * lane)
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::mix64;
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

    #[test]
    fn walks_stay_short_in_a_full_table_that_lives_long() {
        let mut table = Table::new(100_000, 1);
        let full = table.slots() / 100 * 64;
        let key = |i: u64| ((mix64(i) >> 32) as u32, mix64(i) as u32);
        for i in 0..10 * full as u64 {
            let (a, b) = key(i);
            assert!(place(&mut table, entry(a, b, i as u32)));
            if let Some(old) = i.checked_sub(full as u64) {
                let (slot, _) = table.find(key(old).0, old as u32).unwrap();
                table.clear(slot);
            }
        }
        let searched: u64 = (0..10_000)
            .map(|i| u64::from(table.find_key(key(i).0, 0).searched))
            .sum();
        assert!(searched < 15_000, "{searched} buckets in 10,000 searches");
    }

    proptest! {
        /// Against a plain list, with keys so few and a table so small that entries spill over.
        #[test]
        fn behaves_as_a_list(
            ops in prop::collection::vec((0u32..12, 0u32..3, any::<bool>(), 1u32..8), 1..400),
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
            let counts = || table.lines().iter().flat_map(|bucket| [20, 24, 28].map(|shift| bucket[META] >> shift & 15));
            prop_assert!(counts().all(|count| count == 0 || count == PASSED_MAX));
            prop_assert!(table.lines().iter().all(|bucket| bucket[META] & 0xf_ffff == 0));
        }
    }
}
