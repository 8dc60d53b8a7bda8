//! A queue of timers that all run equally long: the order of arrival is the order of the deadlines.
//!
//! Eight bytes a timer, and the time once for every millisecond in which any was started. A timer is never cancelled:
//! when it is due, its owner looks whether there is still something to do.

use std::collections::VecDeque;

/// Timers per segment: memory comes and goes in steps of this (64 KiB), so the queue never holds twice what it needs.
const SEGMENT: usize = 8192;

/// The grain of the recorded times. Times are rounded up to it, so nothing is due early.
const GRAIN_US: i64 = 1_000;

/// What a timer is about: the routing word of an entry and its handle.
pub(crate) type Timer = (u32, u32);

#[derive(Default)]
pub(crate) struct Timers {
    segments: VecDeque<Vec<Timer>>,
    /// Timers already taken from the first segment.
    taken: usize,
    spare: Option<Vec<Timer>>,
    runs: VecDeque<(i64, usize)>,
    len: usize,
}

impl Timers {
    /// Starts a timer; `now` never goes back.
    pub(crate) fn push(&mut self, now: i64, timer: Timer) {
        match self.runs.back_mut() {
            // Recorded times are rounded up already.
            Some((time, count)) if *time >= now => *count += 1,
            _ => {
                let rounded = now
                    .saturating_add(GRAIN_US - 1)
                    .div_euclid(GRAIN_US)
                    .saturating_mul(GRAIN_US);
                self.runs.push_back((rounded, 1));
            }
        }
        match self.segments.back_mut() {
            Some(segment) if segment.len() < SEGMENT => segment.push(timer),
            _ => {
                let mut segment = self
                    .spare
                    .take()
                    .unwrap_or_else(|| Vec::with_capacity(SEGMENT));
                segment.push(timer);
                self.segments.push_back(segment);
            }
        }
        self.len += 1;
    }

    /// Takes timers started at or before `until`, and the oldest beyond `limit`; returns how many.
    pub(crate) fn pop(&mut self, until: i64, limit: usize, into: &mut [Timer]) -> usize {
        let mut popped = 0;
        while popped < into.len() {
            let Some((time, count)) = self.runs.front_mut() else {
                break;
            };
            if *time > until && self.len <= limit {
                break;
            }
            *count -= 1;
            if *count == 0 {
                self.runs.pop_front();
            }
            let Some(timer) = self.take() else { break };
            into[popped] = timer;
            popped += 1;
        }
        popped
    }

    fn take(&mut self) -> Option<Timer> {
        let timer = *self.segments.front()?.get(self.taken)?;
        self.taken += 1;
        self.len -= 1;
        if self.taken == SEGMENT || self.len == 0 {
            let mut segment = self.segments.pop_front()?;
            segment.clear();
            self.spare = Some(segment);
            self.taken = 0;
        }
        Some(timer)
    }

    /// When the oldest was started.
    pub(crate) fn oldest(&self) -> Option<i64> {
        self.runs.front().map(|(time, _)| *time)
    }

    pub(crate) fn allocated_bytes(&self) -> usize {
        let segments = self.segments.len() + usize::from(self.spare.is_some());
        segments * SEGMENT * size_of::<Timer>()
            + self.segments.capacity() * size_of::<Vec<Timer>>()
            + self.runs.capacity() * size_of::<(i64, usize)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(timers: &mut Timers, until: i64, limit: usize) -> Vec<u32> {
        let mut into = [(0, 0); 7];
        let mut all = Vec::new();
        loop {
            let n = timers.pop(until, limit, &mut into);
            all.extend(into[..n].iter().map(|t| t.1));
            if n == 0 {
                return all;
            }
        }
    }

    #[test]
    fn due_in_order_and_never_early() {
        let mut timers = Timers::default();
        for i in 0..20_000u32 {
            timers.push(i64::from(i), (0, i));
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
        timers.push(30_000, (0, 1));
        assert_eq!(drain(&mut timers, 30_000, 0), [1]);
    }

    #[test]
    fn gives_memory_back() {
        let mut timers = Timers::default();
        for i in 0..1_000_000u32 {
            timers.push(0, (0, i));
        }
        let full = timers.allocated_bytes();
        assert!(full < 8_100_000, "{full}");
        assert_eq!(drain(&mut timers, 0, 0).len(), 1_000_000);
        assert!(timers.allocated_bytes() < 100_000);
    }
}
