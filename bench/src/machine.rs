//! What the machine has and what a process used of it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Keeps the calling thread (and threads it starts later) on one core.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).context("no such core")?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot stay on core {core}"))
}

/// Lets the calling thread run anywhere again.
pub fn unpin() -> Result<()> {
    let mut set = CpuSet::new();
    for core in 0..cores() {
        set.set(core).context("no such core")?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot leave the core")
}

/// Descriptors that a process may have.
pub fn descriptors() -> Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(usize::try_from(most).unwrap_or(usize::MAX))
}

/// Lets this process have as many of them as it may.
pub fn allow_descriptors() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot have more descriptors")
}

/// Number of cores.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// CPU time this process has used, all threads: what a bench on one core takes, whoever else wants the core meanwhile.
pub fn own_cpu_time() -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("no CPU clock")?;
    Ok(Duration::from(now))
}

/// CPU time a process has used, user and system, all threads.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    // The name may hold spaces and parentheses; what follows the last parenthesis is regular.
    let (_, rest) = stat
        .rsplit_once(") ")
        .context("unexpected /proc/pid/stat")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks =
        |at: usize| -> Result<u64> { Ok(fields.get(at).context("short /proc/pid/stat")?.parse()?) };
    // Fields 14 and 15 of proc(5); the state is field 3.
    let ticks = ticks(11)? + ticks(12)?;
    let hz = sysconf(SysconfVar::CLK_TCK)
        .context("sysconf")?
        .context("no clock tick")?;
    Ok(Duration::from_secs_f64(ticks as f64 / hz as f64))
}

/// Time for which threads of a process could have run and had no core, all threads.
pub fn waited_for_cpu(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the process has ended")? {
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let waited = text
            .split_whitespace()
            .nth(1)
            .context("unexpected schedstat")?;
        total += waited.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}

/// Bytes a process caused to be written to disk.
pub fn bytes_written(pid: u32) -> Result<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).context("the process has ended")?;
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.context("no write_bytes in /proc/pid/io")?.parse()?)
}

/// Memory of this process that is in RAM.
pub fn resident_bytes() -> Result<u64> {
    resident_bytes_of(std::process::id())
}

/// Memory of a process that is in RAM.
pub fn resident_bytes_of(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmRSS:")
}

/// The most that a process ever had of it.
pub fn peak_resident_bytes_of(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, field: &str) -> Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).context("the process has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let line = line.with_context(|| format!("no {field} in /proc/pid/status"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// Where cgroup v2 is mounted: the only hierarchy on most hosts, beside the old ones on some.
pub fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        if let (Some(_), Some(dir), Some("cgroup2")) = (fields.next(), fields.next(), fields.next())
        {
            return Ok(dir.into());
        }
    }
    bail!("no cgroup v2 is mounted")
}

/// The middle one; of an even number, the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], upper)
    } else {
        upper
    })
}

/// The median of a sample, and the interval that holds the true one with 95 %: between two of the sorted values, whatever their
/// distribution is (each value is above the true median as often as a coin falls on one side).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The sample's median.
    pub median: f64,
    /// Lower end of the interval; with fewer than six values the smallest.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Spread {
    /// `None` of an empty sample.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let count = values.len();
        // The largest rank below which at most 2.5 % of the binomial distribution of `count` coins lie.
        let (mut chance, mut below, mut rank) = (0.5_f64.powi(count as i32), 0.0, 0);
        for heads in 0..count / 2 {
            below += chance;
            if below > 0.025 {
                break;
            }
            rank = heads;
            chance *= (count - heads) as f64 / (heads + 1) as f64;
        }
        Some(Self {
            low: *values.get(rank)?,
            high: *values.get(count.checked_sub(rank + 1)?)?,
            median: median(values)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_cpu() {
        let me = std::process::id();
        let before = cpu_time(me).expect("own stat");
        let mut sum = 0u64;
        while cpu_time(me).expect("own stat") < before + Duration::from_millis(20) {
            sum = (0..100_000u64).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
        assert!(cpu_time(u32::MAX).is_err());
    }

    #[test]
    fn the_interval_of_a_median_is_the_tables() {
        // Ranks 22 and 39 of 60 (counted from 1), 3 and 10 of 12, as tables of the sign test say; none of 4 is sure enough.
        for (count, low, high) in [(60, 22.0, 39.0), (12, 3.0, 10.0), (4, 1.0, 4.0)] {
            let spread = Spread::of((1..=count).map(f64::from).collect()).expect("values");
            assert_eq!((spread.low, spread.high), (low, high), "{count}");
        }
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
