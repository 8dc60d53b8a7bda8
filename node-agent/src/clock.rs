//! Kernel time to wall-clock time.

use weft_wire::Timestamp;

/// How far a newly measured offset may be from the one in use before the clock counts as set anew. The two clocks are
/// steered alike, so anything smaller is the noise of measuring, and a steady offset keeps a connection's times equal
/// in all its rows.
const STEP_US: i64 = 1_000;

/// Converts monotonic nanoseconds with a remembered offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    offset_us: i64,
}

impl Clock {
    /// With an offset of UTC minus monotonic microseconds.
    pub fn new(offset_us: i64) -> Self {
        Self { offset_us }
    }

    /// The offset in use.
    pub fn offset_us(&self) -> i64 {
        self.offset_us
    }

    /// Takes a measured offset into account. True when the wall clock was set and the offset in use changed.
    pub fn adjust(&mut self, measured_us: i64) -> bool {
        let stepped = measured_us.abs_diff(self.offset_us) > STEP_US.unsigned_abs();
        if stepped {
            self.offset_us = measured_us;
        }
        stepped
    }

    /// Wall-clock time of a monotonic one.
    pub fn utc(&self, monotonic_ns: u64) -> Timestamp {
        let micros = i64::try_from(monotonic_ns / 1_000).unwrap_or(i64::MAX);
        Timestamp(self.offset_us.saturating_add(micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_ignored_and_a_step_is_not() {
        let mut clock = Clock::new(1_000_000);
        assert!(!clock.adjust(1_000_900));
        assert_eq!(clock.utc(5_999), Timestamp(1_000_005));
        assert!(clock.adjust(5_000_000));
        assert_eq!(
            clock.utc(u64::MAX),
            Timestamp(5_000_000 + (u64::MAX / 1_000) as i64)
        );
    }
}
