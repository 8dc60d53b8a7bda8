//! A steady load for benchmarks: the clock is the caller's.

use crate::stitcher::{Candidate, Config, Handle, Key, Output, Stitcher};
use crate::view::{HalfView, Role, mix64};

/// Halves inserted at once.
const BATCH: usize = 4096;
/// Halves a second of the time that the stitcher is told.
const TOLD_RATE: i64 = 20_000_000;
/// Batches between two calls of `advance`.
const ADVANCE_EVERY: u64 = 32;

/// What [`stitch_rate`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Halves inserted in a second, everything included: timers, outputs drained.
    pub halves_per_second: f64,
    /// Memory asked for, for each half that waits: table, timers, outputs.
    pub bytes_per_open_half: f64,
    /// Halves inserted while the clock ran.
    pub halves: u64,
    /// Pairs made while the clock ran: half of the halves.
    pub stitched: u64,
}

/// A stitcher at work: of the halves that come, every second one meets its partner, the others wait. The partner comes
/// when `open` others have come, so that this many wait at any time.
pub struct Steady {
    stitcher: Stitcher,
    open: u64,
    next: u64,
    batch: Vec<Candidate>,
    stitched: u64,
    batches: u64,
    halves: u64,
}

impl Steady {
    /// A stitcher in which `open` halves wait.
    pub fn new(open: usize) -> Self {
        let told_us = |halves: i64| halves.saturating_mul(1_000_000) / TOLD_RATE;
        // Partners come 2 x open halves later; the hold is longer, else every half would be offered first.
        let hold_us = told_us(open as i64).saturating_mul(5) / 2;
        let config = Config {
            hold_us,
            expiry_us: 120_000_000,
            max_open: open + 2 * BATCH,
            seed: 0x5eed,
        };
        let stitcher = Stitcher::new(config);
        let (batch, open) = (Vec::with_capacity(BATCH), open as u64);
        let mut steady = Self {
            stitcher,
            open,
            next: 0,
            batch,
            stitched: 0,
            batches: 0,
            halves: 0,
        };
        while steady.next < open {
            steady.prepare(false);
            steady.work();
        }
        steady
    }

    /// Makes the next halves: not part of what is measured.
    pub fn prepare(&mut self, with_partners: bool) {
        self.batch.clear();
        while self.batch.len() + 2 <= BATCH {
            self.batch.push(candidate(self.next, Role::Client));
            if with_partners {
                self.batch
                    .push(candidate(self.next - self.open, Role::Server));
            }
            self.next += 1;
        }
    }

    /// Stitches them: what is measured. Returns how many there were.
    pub fn work(&mut self) -> u64 {
        self.halves += self.batch.len() as u64;
        let now = self.halves as i64 * 1_000 / (TOLD_RATE / 1_000);
        self.stitcher.insert(now, &self.batch);
        self.batches += 1;
        if self.batches.is_multiple_of(ADVANCE_EVERY) {
            self.stitcher.advance(now, &|_: Handle| None::<HalfView>);
        }
        while let Some(output) = self.stitcher.poll() {
            self.stitched += u64::from(matches!(output, Output::Stitched { .. }));
        }
        self.batch.len() as u64
    }

    /// The stitcher.
    pub fn stitcher(&self) -> &Stitcher {
        &self.stitcher
    }
}

fn candidate(connection: u64, role: Role) -> Candidate {
    let isns = mix64(connection);
    let handle = Handle((connection as u32) << 1 | u32::from(role == Role::Server));
    Candidate {
        handle,
        role,
        key: Key::Isn {
            client: (isns >> 32) as u32,
            server: isns as u32,
        },
    }
}

/// Measures the steady state at this many waiting halves, until every one of them has been replaced and `for_seconds` have
/// been spent. `seconds` is a clock.
pub fn stitch_rate(open: usize, for_seconds: f64, mut seconds: impl FnMut() -> f64) -> Measured {
    let mut steady = Steady::new(open);
    let before = steady.stitched;
    let (mut halves, mut spent) = (0, 0.0);
    while spent < for_seconds || halves < 2 * open as u64 {
        steady.prepare(true);
        let start = seconds();
        halves += steady.work();
        spent += seconds() - start;
    }
    let bytes = steady.stitcher.allocated_bytes() as f64;
    Measured {
        halves_per_second: halves as f64 / spent,
        bytes_per_open_half: bytes / steady.stitcher.open() as f64,
        halves,
        stitched: steady.stitched - before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_what_it_says() {
        let mut clock = 0.0;
        let found = stitch_rate(50_000, 1.0, || {
            clock += 0.01;
            clock
        });
        assert_eq!(found.stitched * 2, found.halves);
        let mut steady = Steady::new(50_000);
        for _ in 0..100 {
            steady.prepare(true);
            steady.work();
            assert!(steady.stitcher.open().abs_diff(50_000) <= 2 * BATCH);
        }
        let counters = steady.stitcher.counters();
        assert_eq!(
            (
                counters.full,
                counters.offered,
                counters.ambiguous,
                counters.repeated
            ),
            (0, 0, 0, 0)
        );
    }
}
