//! The table of halves: open addressing by the routing word, one cache line per bucket, fixed capacity.
//!
//! A bucket is 16 words: four routing words, four second words, four handles, and four words about the lanes: a role, a
//! state and the number of the entry's timer, and one of four counts of the entries that wanted to live here but had to
//! move on: to the bucket beside it, and then by a step of their own (short steps would pile full buckets up into long runs). That count (the idea of
//! F14's overflow counts) ends a search at the first bucket that nothing passed by, without tombstones, so a
//! table that lives for months does not slow down.
//!
//! Memory is asked for zeroed and in one piece; the operating system lends a page when it is first written.

use crate::lanes::{LANES, equal, none_of};
use crate::timers::SEQUENCE_BITS;
use crate::view::Role;

/// Words per bucket: one cache line.
const WORDS: usize = 16;
/// Where in a bucket the second words begin.
const SECOND: usize = LANES;
/// The handles.
const HANDLE: usize = 2 * LANES;
/// The words about the lanes.
const META: usize = 3 * LANES;
/// Buckets that one routing word may spread over. Halves that share a client ISN live side by side, so this also limits
/// what a peer that sends one ISN over and over can cost everyone else.
const MAX_PROBE: u32 = 40;
/// Of those, the ones beyond home that are loaded ahead.
const TOUCHED_BEYOND: u32 = 2;
/// Buckets within which the common cases are looked for.
const MEET_AT_MOST: u32 = 8;
/// In a lane's last word: state and role, ...
const LANE_BITS: u32 = 0xf;
const STATE_BITS: u32 = 7;
const ROLE_BIT: u32 = 8;
/// ... the entries of one class that passed the bucket by (classes are by the hash; a search goes on only for its own), ...
const PASSED_SHIFT: u32 = 4;
/// A count that has reached this stays: it is no longer known how many there are.
const PASSED_MAX: u32 = 7;
/// ... and the number of the timer.
const SEQUENCE_SHIFT: u32 = 32 - SEQUENCE_BITS;
const SEQUENCE_MASK: u32 = u32::MAX << SEQUENCE_SHIFT;

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

/// The buckets in which an entry may live, in order: home, the bucket beside it, and so on in pairs. A pair lies in one page
/// of memory, where the second costs little once the first is loaded.
#[derive(Clone, Copy, Default)]
pub(crate) struct Walk {
    index: u32,
    /// From pair to pair.
    step: u32,
    /// All bits set in the second bucket of a pair, none in the first.
    second: u32,
    /// Which of a bucket's counts is about this entry.
    class: u32,
}

type Bucket = [u32; WORDS];

/// What [`Table::meet`] found.
pub(crate) enum Met {
    /// Nothing with its key: it is in the table now.
    Stored,
    /// One of the other role that waits.
    Partner {
        handle: u32,
        slot: Slot,
        distance: u32,
        /// It is in its hold, and this is its timer.
        held: bool,
        sequence: u32,
    },
    /// Something less common: nothing was done.
    Elsewhere,
}

impl Walk {
    /// Entries of this class that passed the bucket by.
    #[inline]
    fn passed(&self, bucket: &Bucket) -> u32 {
        bucket[META + self.class as usize % LANES] >> PASSED_SHIFT & PASSED_MAX
    }

    #[inline]
    fn step(&mut self, buckets: u32) {
        self.index = (self.index ^ 1) + (self.step & self.second);
        self.second = !self.second;
        if self.index >= buckets {
            self.index -= buckets;
        }
    }
}

pub(crate) struct Table {
    words: Vec<u32>,
    /// Words before the first pair of cache lines.
    offset: usize,
    buckets: u32,
    seed: u32,
    /// [`STATE_BITS`], where the compiler does not know it: with a constant it makes twenty scalar instructions of four
    /// comparisons at once.
    state_bits: u32,
    occupied: usize,
    remembered: usize,
}

impl Table {
    /// A table of at least `slots` entries' room. `seed` makes the placement unpredictable to peers.
    pub(crate) fn new(slots: usize, seed: u32) -> Self {
        let buckets = slots.div_ceil(2 * LANES).clamp(1, 1 << 29) * 2;
        let words = vec![0u32; (buckets + 2) * WORDS];
        let offset = words
            .as_ptr()
            .align_offset(2 * WORDS * size_of::<u32>())
            .min(2 * WORDS);
        Self {
            words,
            offset,
            buckets: buckets as u32,
            seed,
            state_bits: std::hint::black_box(STATE_BITS),
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

    /// Loads the buckets of the keys at once, so that the memory works on all of them at the same time
    /// instead of one after the other; what follows finds them in the cache. Says where each key's search begins. Passes
    /// with nothing but loads are apart from the others, so that the processor gets far ahead in them.
    #[inline]
    pub(crate) fn touch<const N: usize>(
        &self,
        keys: impl ExactSizeIterator<Item = u32>,
        walks: &mut [Walk; N],
    ) {
        let lines = self.lines();
        let count = keys.len().min(N);
        for (walk, a) in walks.iter_mut().zip(keys) {
            *walk = self.walk(a);
        }
        let load = |walks: &[Walk]| {
            let metas = walks.iter().map(|walk| lines[walk.index as usize][META]);
            std::hint::black_box(metas.fold(0, u32::wrapping_add));
        };
        let walks = &walks[..count];
        load(walks);
        // Where a search, or a place for a new entry, leads beyond home, and beyond that. Without a branch: what is not
        // kept is overwritten.
        let (mut beyond, mut kept) = ([Walk::default(); N], 0);
        for walk in walks {
            beyond[kept] = *walk;
            beyond[kept].step(self.buckets);
            kept += usize::from(self.leads_on(walk, &lines[walk.index as usize]));
        }
        for _ in 1..TOUCHED_BEYOND {
            load(&beyond[..kept]);
            let reached = std::mem::take(&mut kept);
            for at in 0..reached {
                let walk = beyond[at];
                beyond[kept] = walk;
                beyond[kept].step(self.buckets);
                kept += usize::from(self.leads_on(&walk, &lines[walk.index as usize]));
            }
        }
        load(&beyond[..kept]);
    }

    #[inline]
    fn leads_on(&self, walk: &Walk, bucket: &Bucket) -> bool {
        (walk.passed(bucket) != 0) | (self.free_lanes(bucket) == 0)
    }

    /// The common cases of a new half: nothing has its key, and it is stored; or one of the other role that waits has, and
    /// that is found. All in one pass, for this is where the time goes.
    #[inline(always)]
    pub(crate) fn meet(&mut self, walk: Walk, new: &Entry, sequence: u32, room: bool) -> Met {
        let (state_bits, buckets) = (self.state_bits, self.buckets);
        let role = pack(new.role, new.state);
        let lines = self.words[self.offset..].as_chunks_mut::<WORDS>().0;
        let (mut at, mut distance) = (walk, 0);
        let (mut partner, mut free) = (None, None);
        loop {
            let bucket = &lines[at.index as usize];
            let hits = keyed_lanes(bucket, new.a, new.b);
            if hits != 0 {
                let lane = hits.trailing_zeros();
                if hits & (hits - 1) != 0 || partner.is_some() {
                    return Met::Elsewhere;
                }
                partner = Some((at.index, lane, distance));
            } else if free.is_none() {
                let lanes = none_of(part::<META>(bucket), state_bits);
                if lanes != 0 {
                    free = Some((at.index, lanes.trailing_zeros(), distance));
                }
            }
            if at.passed(bucket) == 0 && (free.is_some() || partner.is_some()) {
                break;
            }
            at.step(buckets);
            distance += 1;
            if distance == MEET_AT_MOST {
                return Met::Elsewhere;
            }
        }
        if let Some((index, lane, distance)) = partner {
            let bucket = &lines[index as usize];
            let meta = bucket[META + lane as usize % LANES];
            let waits = meta & STATE_BITS <= State::Dormant as u32;
            if !waits || (meta ^ role) & ROLE_BIT == 0 {
                return Met::Elsewhere;
            }
            return Met::Partner {
                handle: bucket[HANDLE + lane as usize % LANES],
                slot: Slot {
                    bucket: index,
                    lane,
                },
                distance,
                held: meta & STATE_BITS == State::Held as u32,
                sequence: meta >> SEQUENCE_SHIFT,
            };
        }
        let Some((index, lane, distance)) = free.filter(|_| room) else {
            return Met::Elsewhere;
        };
        let bucket = &mut lines[index as usize];
        let lane = lane as usize % LANES;
        bucket[lane] = new.a;
        bucket[SECOND + lane] = new.b;
        bucket[HANDLE + lane] = new.handle;
        // The count of those that passed by stays.
        let meta = &mut bucket[META + lane];
        *meta = *meta & PASSED_MAX << PASSED_SHIFT | sequence << SEQUENCE_SHIFT | role;
        self.occupied += 1;
        if distance != 0 {
            self.count_passed(walk, distance, true);
        }
        Met::Stored
    }

    /// As [`set_state`](Self::set_state) or [`clear`](Self::clear), for an entry that [`meet`](Self::meet) found, so far
    /// from the beginning of its walk.
    #[inline(always)]
    pub(crate) fn settle(&mut self, walk: Walk, slot: Slot, distance: u32, keep: bool) {
        let word = &mut self.line_mut(slot.bucket)[META + slot.lane as usize % LANES];
        if keep {
            *word = *word & !STATE_BITS | State::Matched as u32;
            self.remembered += 1;
        } else {
            *word &= !LANE_BITS;
            self.occupied -= 1;
            if distance != 0 {
                self.count_passed(walk, distance, false);
            }
        }
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
            let hits = keyed_lanes(bucket, a, b);
            if hits != 0 {
                found.several |= found.hit.is_some() || hits & (hits - 1) != 0;
                found.hit = found.hit.or(Some(Slot::first(walk.index, hits)));
            }
            if found.free.is_none() {
                let free = self.free_lanes(bucket);
                if free != 0 {
                    found.free = Some((Slot::first(walk.index, free), found.searched));
                }
            }
            found.searched += 1;
            if walk.passed(bucket) == 0 || found.searched >= MAX_PROBE.min(self.buckets) {
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
                    let slot = Slot {
                        bucket: index,
                        lane,
                    };
                    each(slot, entry);
                }
            }
            if walk.passed(bucket) == 0 {
                return;
            }
            walk.step(self.buckets);
        }
    }

    /// The entry of one half.
    pub(crate) fn find(&self, a: u32, handle: u32) -> Option<(Slot, Entry)> {
        self.search(self.walk(a), |bucket| handled_lanes(bucket, a, handle))
    }

    /// The entry of a timer, for a key whose beginning is known from [`touch`](Self::touch).
    #[inline]
    pub(crate) fn find_timed(&self, walk: Walk, a: u32, sequence: u32) -> Option<(Slot, Entry)> {
        self.search(walk, |bucket| timed_lanes(bucket, a, sequence))
    }

    #[inline]
    fn search(&self, mut walk: Walk, lanes: impl Fn(&Bucket) -> u32) -> Option<(Slot, Entry)> {
        for _ in 0..MAX_PROBE.min(self.buckets) {
            let bucket = self.line(walk.index);
            let hits = lanes(bucket);
            if hits != 0 {
                let slot = Slot::first(walk.index, hits);
                return unpack(bucket, slot.lane).map(|entry| (slot, entry));
            }
            if walk.passed(bucket) == 0 {
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

    /// The number of an entry's timer.
    #[inline]
    pub(crate) fn sequence(&self, slot: Slot) -> u32 {
        self.line(slot.bucket)[META + slot.lane as usize % LANES] >> SEQUENCE_SHIFT
    }

    /// The entry has another timer now.
    pub(crate) fn set_sequence(&mut self, slot: Slot, sequence: u32) {
        let word = &mut self.line_mut(slot.bucket)[META + slot.lane as usize % LANES];
        *word = *word & !SEQUENCE_MASK | sequence << SEQUENCE_SHIFT;
    }

    /// Stores an entry where a search for its key found room, or beyond. `None`: no room within reach.
    #[inline]
    pub(crate) fn place(&mut self, entry: Entry, found: &Found) -> Option<Slot> {
        let (slot, distance) = found
            .free
            .or_else(|| self.room_beyond(found.walk, found.searched))?;
        self.count_passed(found.walk, distance, true);
        let bucket = self.line_mut(slot.bucket);
        let lane = slot.lane as usize % LANES;
        bucket[lane] = entry.a;
        bucket[SECOND + lane] = entry.b;
        bucket[HANDLE + lane] = entry.handle;
        set_lane(bucket, slot.lane, pack(entry.role, entry.state));
        self.occupied += 1;
        self.remembered += usize::from(entry.state.remembered());
        Some(slot)
    }

    fn room_beyond(&self, mut walk: Walk, searched: u32) -> Option<(Slot, u32)> {
        let limit = MAX_PROBE.min(self.buckets);
        (0..searched).for_each(|_| walk.step(self.buckets));
        for distance in searched..limit {
            let free = self.free_lanes(self.line(walk.index));
            if free != 0 {
                return Some((Slot::first(walk.index, free), distance));
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
    #[inline]
    pub(crate) fn clear(&mut self, slot: Slot) {
        let Some(entry) = self.entry(slot) else {
            return;
        };
        set_lane(self.line_mut(slot.bucket), slot.lane, 0);
        let home = self.walk(entry.a);
        if home.index != slot.bucket {
            let mut walk = home;
            let mut distance = 0;
            while walk.index != slot.bucket && distance < MAX_PROBE {
                walk.step(self.buckets);
                distance += 1;
            }
            self.count_passed(home, distance, false);
        }
        self.occupied -= 1;
        self.remembered -= usize::from(entry.state.remembered());
    }

    /// Corrects the counts of the buckets between home and the one an entry lives in.
    fn count_passed(&mut self, mut walk: Walk, distance: u32, one_more: bool) {
        for _ in 0..distance {
            let bucket = self.line_mut(walk.index);
            let passed = walk.passed(bucket);
            let meta = &mut bucket[META + walk.class as usize % LANES];
            match passed {
                PASSED_MAX => {}
                0 if !one_more => {}
                _ if one_more => *meta += 1 << PASSED_SHIFT,
                _ => *meta -= 1 << PASSED_SHIFT,
            }
            walk.step(self.buckets);
        }
    }

    #[inline]
    fn walk(&self, a: u32) -> Walk {
        let hash = mix(a ^ self.seed);
        let scale = |word: u64, range: u32| ((word * u64::from(range)) >> 32) as u32;
        Walk {
            index: scale(hash >> 32, self.buckets),
            // Steps are so short that none of a walk's buckets comes twice.
            step: 2 + 2 * scale(hash & 0xffff_ffff, self.buckets / MAX_PROBE),
            second: 0,
            class: hash as u32 % LANES as u32,
        }
    }

    /// Lanes without an entry.
    #[inline]
    fn free_lanes(&self, bucket: &Bucket) -> u32 {
        none_of(part::<META>(bucket), self.state_bits)
    }

    #[inline]
    fn lines(&self) -> &[Bucket] {
        self.words[self.offset..].as_chunks().0
    }

    #[inline]
    fn line(&self, index: u32) -> &Bucket {
        &self.lines()[index as usize]
    }

    #[inline]
    fn line_mut(&mut self, index: u32) -> &mut Bucket {
        &mut self.words[self.offset..].as_chunks_mut().0[index as usize]
    }
}

impl Slot {
    #[inline]
    fn first(bucket: u32, lanes: u32) -> Self {
        Self {
            bucket,
            lane: lanes.trailing_zeros(),
        }
    }
}

/// A hash of which both halves are used: two multiplications by odd constants (those of SplitMix64).
#[inline]
fn mix(a: u32) -> u64 {
    let x = (u64::from(a) + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x ^ x >> 32).wrapping_mul(0x94d0_49bb_1331_11eb)
}

/// The four words of a kind.
#[inline]
fn part<const FROM: usize>(bucket: &Bucket) -> &[u32; LANES] {
    &bucket.as_chunks().0[FROM / LANES]
}

/// Lanes with this key.
#[inline]
fn keyed_lanes(bucket: &Bucket, a: u32, b: u32) -> u32 {
    let (first, second) = (part::<0>(bucket), part::<SECOND>(bucket));
    equal::<STATE_BITS, { u32::MAX }>((first, a), (second, b), part::<META>(bucket))
}

/// Lanes with this routing word and handle.
#[inline]
fn handled_lanes(bucket: &Bucket, a: u32, handle: u32) -> u32 {
    let (first, handles) = (part::<0>(bucket), part::<HANDLE>(bucket));
    equal::<STATE_BITS, { u32::MAX }>((first, a), (handles, handle), part::<META>(bucket))
}

/// Lanes with this routing word and this timer.
#[inline]
fn timed_lanes(bucket: &Bucket, a: u32, sequence: u32) -> u32 {
    let (first, meta) = (part::<0>(bucket), part::<META>(bucket));
    let timer = (meta, sequence << SEQUENCE_SHIFT);
    equal::<STATE_BITS, SEQUENCE_MASK>((first, a), timer, meta)
}

#[inline]
fn set_lane(bucket: &mut Bucket, lane: u32, bits: u32) {
    let word = &mut bucket[META + lane as usize % LANES];
    *word = *word & !LANE_BITS | bits;
}

#[inline]
fn pack(role: Role, state: State) -> u32 {
    u32::from(role == Role::Server) << 3 | state as u32
}

#[inline]
fn unpack(bucket: &Bucket, lane: u32) -> Option<Entry> {
    let lane = lane as usize % LANES;
    let bits = bucket[META + lane];
    Some(Entry {
        state: State::from_bits(bits)?,
        role: if bits & ROLE_BIT == 0 {
            Role::Client
        } else {
            Role::Server
        },
        a: bucket[lane],
        b: bucket[SECOND + lane],
        handle: bucket[HANDLE + lane],
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
        table.place(entry, &found).is_some()
    }

    #[test]
    fn buckets_are_cache_lines() {
        let table = Table::new(1000, 0);
        assert_eq!(table.lines().as_ptr().align_offset(128), 0);
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
            let counts = || table.lines().iter().flat_map(|bucket| &bucket[META..]).map(|meta| meta >> PASSED_SHIFT & PASSED_MAX);
            prop_assert!(counts().all(|count| count == 0 || count == PASSED_MAX));
            prop_assert!(table.lines().iter().all(|bucket| table.free_lanes(bucket) == 0xf));
        }
    }
}
