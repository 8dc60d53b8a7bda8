//! This machine's clocks: the only place that reads them.

use nix::time::{ClockId, clock_gettime};
use weft_wire::Timestamp;

/// The kernel's monotonic clock, the one of its records.
pub fn monotonic_ns() -> u64 {
    nanos(ClockId::CLOCK_MONOTONIC)
}

/// UTC in nanoseconds since the epoch.
pub fn utc_ns() -> u64 {
    nanos(ClockId::CLOCK_REALTIME)
}

/// UTC now.
pub fn now() -> Timestamp {
    Timestamp(i64::try_from(utc_ns() / 1_000).unwrap_or(i64::MAX))
}

/// UTC minus monotonic microseconds; of three measurements the one that was interrupted least.
pub fn clock_offset_us() -> i64 {
    let measure = || {
        let before = monotonic_ns();
        let utc = utc_ns();
        let after = monotonic_ns();
        let offset = (i128::from(utc) - i128::from(before.midpoint(after))) / 1_000;
        (after - before, i64::try_from(offset).unwrap_or_default())
    };
    (0..3)
        .map(|_| measure())
        .min()
        .map(|(_, offset)| offset)
        .unwrap_or_default()
}

fn nanos(clock: ClockId) -> u64 {
    clock_gettime(clock)
        .map(|time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
        .unwrap_or_default()
}
