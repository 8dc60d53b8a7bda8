//! A queue of timers that all run equally long: the order of arrival is the order of the deadlines.
//!
//! Four bytes a timer, and the time once for every millisecond in which any was started. A timer's number is its place in
//! the queue; its entry in the table keeps the number, so that a timer need not say whose it is, but for the bucket. A
//! timer can be cancelled: that is one bit in a map small enough for the cache. The map may be too small for all
//! timers there are; then a timer is not cancelled, and when it is due, its owner finds nothing to do.

use std::collections::VecDeque;

/// Timers per segment: memory comes and goes in steps of this (64 KiB), so the queue never holds twice what it needs.
const SEGMENT: usize = 16_384;

/// The grain of the recorded times. Times are rounded up to it, so nothing is due early.
const GRAIN_US: i64 = 1_000;

/// Bits of a timer's number that its entry keeps, and so, as a power of two, the most timers that can be cancelled.
pub(crate) const SEQUENCE_BITS: u32 = 25;

/// Timers to a word of the map.
const WORD: u32 = u64::BITS;

/// What a timer is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timer {
    /// The routing word of the entry.
    pub(crate) a: u32,
    /// The timer's number.
    pub(crate) sequence: u32,
}

pub(crate) struct Timers {
    segments: VecDeque<Vec<u32>>,
    /// Timers already taken from the first segment.
    taken: usize,
    spare: Option<Vec<u32>>,
    runs: VecDeque<(i64, usize)>,
    len: usize,
    /// The next timer's number.
    next: u32,
    /// A bit for each timer, set when it is cancelled; the place of a timer's bit is its number, modulo the map's size.
    cancelled: Vec<u64>,
}

/// The part of a timer's number that is kept.
#[inline]
pub(crate) fn kept(sequence: u32) -> u32 {
    sequence & ((1 << SEQUENCE_BITS) - 1)
}

impl Timers {
    /// An empty queue, in which up to about this many timers can be cancelled, and whose numbers begin with this one.
    pub(crate) fn new(cancellable: usize, first: u32) -> Self {
        let bits = cancellable.next_power_of_two().min(1 << SEQUENCE_BITS);
        let words = if cancellable == 0 {
            0
        } else {
            bits.div_ceil(WORD as usize)
        };
        Self {
            segments: VecDeque::new(),
            taken: 0,
            spare: None,
            runs: VecDeque::new(),
            len: 0,
            next: first,
            cancelled: vec![0; words],
        }
    }

    /// Starts a timer; `now` never goes back. Returns its number.
    pub(crate) fn push(&mut self, now: i64, a: u32) -> u32 {
        let sequence = self.upcoming();
        self.extend(now, &[a]);
        kept(sequence)
    }

    /// The number of the next timer, of which [`kept`] counts.
    pub(crate) fn upcoming(&self) -> u32 {
        self.next
    }

    /// Starts some timers.
    pub(crate) fn extend(&mut self, now: i64, mut timers: &[u32]) {
        if timers.is_empty() {
            return;
        }
        match self.runs.back_mut() {
            // Recorded times are rounded up already.
            Some((time, count)) if *time >= now => *count += timers.len(),
            _ => {
                let rounded = now
                    .saturating_add(GRAIN_US - 1)
                    .div_euclid(GRAIN_US)
                    .saturating_mul(GRAIN_US);
                self.runs.push_back((rounded, timers.len()));
            }
        }
        self.len += timers.len();
        self.next = self.next.wrapping_add(timers.len() as u32);
        while !timers.is_empty() {
            let room = match self.segments.back_mut() {
                Some(segment) if segment.len() < SEGMENT => segment,
                _ => {
                    let spare = self.spare.take();
                    self.segments
                        .push_back(spare.unwrap_or_else(|| Vec::with_capacity(SEGMENT)));
                    continue;
                }
            };
            let (now, later) = timers.split_at(timers.len().min(SEGMENT - room.len()));
            room.extend_from_slice(now);
            timers = later;
        }
    }

    /// Stops a timer that has not been taken yet, or is one of the next `upcoming`, if the map has a bit for each.
    #[inline]
    pub(crate) fn cancel(&mut self, sequence: u32, upcoming: usize) {
        if self.len + upcoming <= self.cancelled.len() * WORD as usize {
            let word = (sequence / WORD) as usize & (self.cancelled.len() - 1);
            self.cancelled[word] |= 1 << (sequence % WORD);
        }
    }

    /// Takes timers started at or before `until`, and the oldest beyond `limit`; returns how many.
    pub(crate) fn pop(&mut self, until: i64, limit: usize, into: &mut [Timer]) -> usize {
        let mut popped = 0;
        while popped < into.len() {
            let Some((time, count)) = self.runs.front().copied() else {
                break;
            };
            let due = if time <= until {
                count
            } else {
                count.min(self.len.saturating_sub(limit))
            };
            if due == 0 {
                break;
            }
            let (taken, live) = self.take(due, &mut into[popped..]);
            if taken == 0 {
                break;
            }
            popped += live;
            self.len -= taken;
            if taken == count {
                self.runs.pop_front();
            } else if let Some((_, left)) = self.runs.front_mut() {
                *left -= taken;
            }
        }
        popped
    }

    /// Takes up to `most` timers from the first segment, and of those the ones that are not cancelled into `into`. Returns
    /// both counts.
    fn take(&mut self, most: usize, into: &mut [Timer]) -> (usize, usize) {
        let Some(segment) = self.segments.front() else {
            return (0, 0);
        };
        let first = self.next.wrapping_sub(self.len as u32);
        let timers = &segment[self.taken..];
        let timers = &timers[..most.min(timers.len())];
        let (mut taken, mut live) = (0, 0);
        while live < into.len() && taken < timers.len() {
            let sequence = first.wrapping_add(taken as u32);
            let place = (sequence / WORD) as usize & self.cancelled.len().wrapping_sub(1);
            let bit = sequence % WORD;
            let mut nothing = 0;
            let word = self.cancelled.get_mut(place).unwrap_or(&mut nothing);
            if bit == 0 && *word == u64::MAX && timers.len() - taken >= WORD as usize {
                *word = 0;
                taken += WORD as usize;
                continue;
            }
            let sequence = kept(sequence);
            into[live] = Timer {
                a: timers[taken],
                sequence,
            };
            live += usize::from(*word >> bit & 1 == 0);
            *word &= !(1 << bit);
            taken += 1;
        }
        self.taken += taken;
        if self.taken == SEGMENT || self.len == taken {
            self.spare = self.segments.pop_front().map(|mut segment| {
                segment.clear();
                segment
            });
            self.taken = 0;
        }
        (taken, live)
    }

    /// When the oldest was started; it may have been cancelled.
    pub(crate) fn oldest(&self) -> Option<i64> {
        self.runs.front().map(|(time, _)| *time)
    }

    pub(crate) fn allocated_bytes(&self) -> usize {
        let segments = self.segments.len() + usize::from(self.spare.is_some());
        segments * SEGMENT * size_of::<u32>()
            + self.segments.capacity() * size_of::<Vec<u32>>()
            + self.runs.capacity() * size_of::<(i64, usize)>()
            + self.cancelled.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(timers: &mut Timers, until: i64, limit: usize) -> Vec<u32> {
        let mut into = [Timer::default(); 7];
        let mut all = Vec::new();
        loop {
            let n = timers.pop(until, limit, &mut into);
            all.extend(into[..n].iter().map(|timer| timer.a));
            if n == 0 {
                return all;
            }
        }
    }

    #[test]
    fn due_in_order_and_never_early() {
        let mut timers = Timers::new(0, 0);
        for i in 0..20_000u32 {
            assert_eq!(timers.push(i64::from(i), i), i);
        }
        assert_eq!(
            drain(&mut timers, 9_999, usize::MAX),
            (0..=9_000).collect::<Vec<_>>()
        );
        assert_eq!(timers.oldest(), Some(10_000));
        assert_eq!(drain(&mut timers, 10_000, usize::MAX).last(), Some(&10_000));
        assert_eq!(
            drain(&mut timers, 0, 5_000).len(),
            4_999,
            "beyond the limit the oldest go early"
        );
        assert_eq!(drain(&mut timers, 20_000, 0).len(), 5_000);
        assert_eq!((timers.oldest(), timers.len), (None, 0));
        timers.push(30_000, 1);
        assert_eq!(drain(&mut timers, 30_000, 0), [1]);
    }

    #[test]
    fn gives_memory_back() {
        let mut timers = Timers::new(0, 0);
        for i in 0..1_000_000u32 {
            timers.push(0, i);
        }
        let full = timers.allocated_bytes();
        assert!(full < 4_100_000, "{full}");
        assert_eq!(drain(&mut timers, 0, 0).len(), 1_000_000);
        assert!(timers.allocated_bytes() < 100_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a plain list, through many turns of the map and with more timers than it has bits for.
        #[test]
        fn a_cancelled_timer_is_not_taken_and_no_other_is_lost(
            steps in prop::collection::vec((0..400usize, 0..400usize, any::<u64>()), 1..60),
            share in 0..5u64,
        ) {
            let mut timers = Timers::new(512, u32::MAX - 3000);
            let mut model: VecDeque<(Timer, bool)> = VecDeque::new();
            let mut a = 0;
            for (add, take, pick) in steps {
                for _ in 0..add {
                    a += 1;
                    let sequence = timers.push(0, a);
                    model.push_back((Timer { a, sequence }, false));
                }
                let all = model.len() <= 512;
                for (i, (timer, cancelled)) in model.iter_mut().enumerate() {
                    if (crate::view::mix64(pick ^ i as u64) & 3) < share && !*cancelled {
                        timers.cancel(timer.sequence, 0);
                        *cancelled = all;
                    }
                }
                let mut into = vec![Timer::default(); take];
                let n = timers.pop(0, usize::MAX, &mut into);
                for timer in &into[..n] {
                    while model.front().is_some_and(|(_, cancelled)| *cancelled) {
                        model.pop_front();
                    }
                    prop_assert_eq!(model.pop_front(), Some((*timer, false)));
                }
                // Cancelled ones after the last that was taken may be gone or not.
                while model.len() > timers.len {
                    prop_assert_eq!(model.pop_front().map(|(_, cancelled)| cancelled), Some(true));
                }
                prop_assert!(n == take || model.is_empty());
            }
        }
    }
}
