//! What the host knows of processes, cgroups and users: the one place of attribution that reads anything.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use weft_wire::Timestamp;

use crate::clock::Clock;
use crate::kernel::sys;

/// Between the readings of two clocks so much may pass.
const SUSPENDED_NOISE_NS: u64 = 20_000_000;

/// What is read of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Start time in clock ticks since boot: with the pid, unique.
    pub start_ticks: u64,
    /// Name of its main thread.
    pub name: String,
    /// Executable.
    pub exe: Option<String>,
    /// `/proc/PID/cgroup`.
    pub cgroups: String,
    /// Inode of its network namespace; 0 when unknown.
    pub netns: u32,
}

/// Where attribution looks things up.
pub trait Host {
    /// A process, if it is there.
    fn process(&self, pid: u32) -> Option<ProcessFacts>;
    /// Its start time alone.
    fn start_ticks(&self, pid: u32) -> Option<u64>;
    /// A start time as wall-clock time.
    fn started_at(&self, ticks: u64, clock: &Clock) -> Timestamp;
    /// Path of a cgroup within its hierarchy.
    fn cgroup(&self, id: u64) -> Option<String>;
    /// A user's name.
    fn user(&self, uid: u32) -> Option<String>;
}

/// This machine.
#[derive(Debug)]
pub struct RealHost {
    mount: Option<(PathBuf, File)>,
    ticks_per_second: u64,
    /// How much the machine slept: the clock of start times goes on then, the monotonic one does not. Renewed only when
    /// it slept again, so that a process's start time stays the same.
    suspended_ns: Cell<u64>,
}

impl RealHost {
    /// `cgroup` is any directory of the cgroup v2 hierarchy.
    pub fn new(cgroup: &Path) -> Self {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
            .ok()
            .flatten();
        Self {
            mount: mount_of(cgroup)
                .and_then(|mount| File::open(&mount).ok().map(|file| (mount, file))),
            ticks_per_second: ticks
                .and_then(|ticks| u64::try_from(ticks).ok())
                .filter(|ticks| *ticks > 0)
                .unwrap_or(100),
            suspended_ns: Cell::new(suspended_ns()),
        }
    }

    fn suspended_ns(&self) -> u64 {
        let now = suspended_ns();
        if now.abs_diff(self.suspended_ns.get()) > SUSPENDED_NOISE_NS {
            self.suspended_ns.set(now);
        }
        self.suspended_ns.get()
    }
}

impl Host for RealHost {
    fn process(&self, pid: u32) -> Option<ProcessFacts> {
        let dir = Path::new("/proc").join(pid.to_string());
        let (name, start_ticks) = parse_stat(&fs::read_to_string(dir.join("stat")).ok()?)?;
        let exe = fs::read_link(dir.join("exe")).ok().map(|path| {
            let path = path.to_string_lossy().into_owned();
            path.strip_suffix(" (deleted)")
                .map(str::to_owned)
                .unwrap_or(path)
        });
        Some(ProcessFacts {
            start_ticks,
            name,
            exe,
            cgroups: fs::read_to_string(dir.join("cgroup")).unwrap_or_default(),
            netns: fs::metadata(dir.join("ns/net"))
                .map(|ns| ns.ino() as u32)
                .unwrap_or_default(),
        })
    }

    fn start_ticks(&self, pid: u32) -> Option<u64> {
        let stat =
            fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        parse_stat(&stat).map(|(_, ticks)| ticks)
    }

    fn started_at(&self, ticks: u64, clock: &Clock) -> Timestamp {
        let boottime_ns = ticks.saturating_mul(1_000_000_000 / self.ticks_per_second);
        clock.utc(boottime_ns.saturating_sub(self.suspended_ns()))
    }

    fn cgroup(&self, id: u64) -> Option<String> {
        let (path, file) = self.mount.as_ref().filter(|_| id != 0)?;
        let found = sys::cgroup_path(file, id).ok()?;
        let relative = found.strip_prefix(path).ok()?;
        Some(format!("/{}", relative.display()))
    }

    fn user(&self, uid: u32) -> Option<String> {
        nix::unistd::User::from_uid(uid.into())
            .ok()
            .flatten()
            .map(|user| user.name)
    }
}

/// Name and start time from `/proc/PID/stat`. The name may hold anything, parentheses too.
fn parse_stat(stat: &str) -> Option<(String, u64)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    // The field after the name is the third; the start time is the 22nd.
    let start = tail.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some((name.to_owned(), start))
}

/// The nearest parent that is the root of a mounted file system.
fn mount_of(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    let own = device(&path)?;
    path.ancestors()
        .take_while(|at| device(at) == Some(own))
        .last()
        .map(Path::to_path_buf)
}

/// Rounded to milliseconds: the two clocks are read one after the other.
fn suspended_ns() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    let read =
        |clock| clock_gettime(clock).map(|time| time.tv_sec() * 1_000 + time.tv_nsec() / 1_000_000);
    match (
        read(ClockId::CLOCK_MONOTONIC),
        read(ClockId::CLOCK_BOOTTIME),
    ) {
        // One millisecond may pass between the readings.
        (Ok(monotonic), Ok(boottime)) if boottime - monotonic > 1 => {
            (boottime - monotonic) as u64 * 1_000_000
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let stat = "12 (a) (b)) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(parse_stat(stat), Some(("a) (b)".to_owned(), 4711)));
        assert_eq!(parse_stat("12 (a"), None);
        assert_eq!(parse_stat("12 (a) S 1"), None);
    }

    #[test]
    fn this_process_is_found() {
        let host = RealHost::new(Path::new("/proc"));
        let facts = host.process(std::process::id()).unwrap();
        assert_eq!(
            facts.exe,
            std::env::current_exe().unwrap().to_str().map(str::to_owned)
        );
        assert_eq!(
            host.start_ticks(std::process::id()),
            Some(facts.start_ticks)
        );
        assert_ne!(facts.netns, 0);
    }
}
