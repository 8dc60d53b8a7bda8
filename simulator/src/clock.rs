//! Clocks that are off, and run fast or slow.

use weft_wire::Timestamp;

/// True time when the simulation begins, in microseconds since the Unix epoch.
pub const EPOCH_US: i64 = 1_700_000_000_000_000;

/// A clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Ahead of the true time at the beginning, in microseconds.
    pub offset_us: i64,
    /// Microseconds gained in a second.
    pub drift_ppm: i64,
}

impl Clock {
    /// Ahead of the true time now.
    pub fn ahead_us(&self, now: i64) -> i64 {
        self.offset_us + now / 1_000_000 * self.drift_ppm
    }

    /// What it shows.
    pub fn reads(&self, now: i64) -> Timestamp {
        Timestamp(EPOCH_US + now + self.ahead_us(now))
    }
}
