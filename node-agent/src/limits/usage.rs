//! What this process takes, from the kernel.

use std::fs;

use nix::time::{ClockId, clock_gettime};

use super::Usage;
use crate::time;

/// Now. What cannot be read counts as nothing: then no detail is given up for it.
pub fn now() -> Usage {
    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    let nanoseconds = |seconds: i64, rest: i64| seconds.max(0) as u64 * 1_000_000_000 + rest as u64;
    Usage {
        at_ns: time::monotonic_ns(),
        cpu_ns: cpu.map_or(0, |time| nanoseconds(time.tv_sec(), time.tv_nsec())),
        resident_bytes: resident_bytes().unwrap_or_default(),
    }
}

fn resident_bytes() -> Option<u64> {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_something() {
        let usage = now();
        assert!(usage.at_ns > 0 && usage.cpu_ns > 0 && usage.resident_bytes > 1 << 20);
    }
}
