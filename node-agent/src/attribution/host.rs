//! What the host knows of processes, cgroups and users: the one place of attribution that reads anything.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use weft_wire::Timestamp;

use super::cgroup::{self, Place};
use super::namespaces::Namespaces;
use super::resolver;
use super::secrets::MAX_READ_BYTES;
use super::users::Users;
use crate::clock::Clock;
use crate::kernel::sys;

/// Between the readings of two clocks so much may pass.
const SUSPENDED_NOISE_NS: u64 = 20_000_000;

/// Most processes looked at to find a container's first, or one in a mount namespace.
const MAX_PROCESSES: usize = 4_096;
/// Most directories below a container's cgroup that are looked into.
const MAX_DIRECTORIES: usize = 256;

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
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// `/proc/PID/cmdline`, with every secret in it, up to [`MAX_READ_BYTES`].
    pub cmdline: Vec<u8>,
    /// Process id of its parent; 0 for none.
    pub parent: u32,
    /// Name of that.
    pub parent_name: String,
}

/// Where attribution looks things up.
pub trait Host {
    /// A process, if it is there.
    fn process(&self, pid: u32) -> Option<ProcessFacts>;
    /// Namespaces of the host.
    fn host_namespaces(&self) -> Namespaces;
    /// Namespaces of the first process of the innermost container that `/proc/PID/cgroup` names.
    fn first_process(&self, cgroups: &str) -> Option<Namespaces>;
    /// Whether some container's process is in a mount namespace.
    fn container_has(&self, mnt: u64) -> bool;
    /// Its start time alone.
    fn start_ticks(&self, pid: u32) -> Option<u64>;
    /// A start time as wall-clock time.
    fn started_at(&self, ticks: u64, clock: &Clock) -> Timestamp;
    /// Path of a cgroup within its hierarchy.
    fn cgroup(&self, id: u64) -> Option<String>;
    /// A user's name.
    fn user(&self, uid: u32) -> Option<String>;
    /// The `resolv.conf` that a process reads.
    fn resolver_configuration(&self, _pid: u32) -> Option<String> {
        None
    }
}

/// This machine.
#[derive(Debug)]
pub struct RealHost {
    proc: PathBuf,
    mount: Option<(PathBuf, File)>,
    ticks_per_second: u64,
    /// How much the machine slept: the clock of start times goes on then, the monotonic one does not. Renewed only when
    /// it slept again, so that a process's start time stays the same.
    suspended_ns: Cell<u64>,
    users: Users,
}

impl RealHost {
    /// `cgroup` is any directory of the cgroup v2 hierarchy.
    pub fn new(cgroup: &Path) -> Self {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
            .ok()
            .flatten();
        Self {
            proc: "/proc".into(),
            mount: mount_of(cgroup)
                .and_then(|mount| File::open(&mount).ok().map(|file| (mount, file))),
            ticks_per_second: ticks
                .and_then(|ticks| u64::try_from(ticks).ok())
                .filter(|ticks| *ticks > 0)
                .unwrap_or(100),
            suspended_ns: Cell::new(suspended_ns()),
            users: Users::of_the_system(),
        }
    }

    fn dir(&self, pid: u32) -> PathBuf {
        self.proc.join(pid.to_string())
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
        let dir = self.dir(pid);
        let stat = stat(&dir)?;
        let exe = fs::read_link(dir.join("exe")).ok().map(|path| {
            let path = path.to_string_lossy().into_owned();
            path.strip_suffix(" (deleted)")
                .map(str::to_owned)
                .unwrap_or(path)
        });
        let mut cmdline = Vec::new();
        if let Ok(file) = File::open(dir.join("cmdline")) {
            // What was read before an error counts.
            let _ = file.take(MAX_READ_BYTES as u64).read_to_end(&mut cmdline);
        }
        let parent = self::stat(&self.dir(stat.parent)).filter(|_| stat.parent != 0);
        Some(ProcessFacts {
            start_ticks: stat.start_ticks,
            name: stat.name,
            exe,
            cgroups: fs::read_to_string(dir.join("cgroup")).unwrap_or_default(),
            namespaces: namespaces(&dir),
            cmdline,
            parent: stat.parent,
            parent_name: parent.map(|parent| parent.name).unwrap_or_default(),
        })
    }

    fn host_namespaces(&self) -> Namespaces {
        host_namespaces(&self.proc)
    }

    fn first_process(&self, cgroups: &str) -> Option<Namespaces> {
        let mut first: Option<(u64, PathBuf)> = None;
        for directory in container_directories(cgroups) {
            for pid in processes_below(&directory) {
                let dir = self.dir(pid);
                let Some(stat) = stat(&dir) else { continue };
                if first
                    .as_ref()
                    .is_none_or(|(ticks, _)| stat.start_ticks < *ticks)
                {
                    first = Some((stat.start_ticks, dir));
                }
            }
            if first.is_some() {
                break;
            }
        }
        first.map(|(_, dir)| namespaces(&dir))
    }

    fn container_has(&self, mnt: u64) -> bool {
        let Ok(entries) = fs::read_dir(&self.proc) else {
            return false;
        };
        entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
            .take(MAX_PROCESSES)
            .map(|entry| entry.path())
            .filter(|dir| namespace(dir, "mnt") == mnt)
            .filter_map(|dir| fs::read_to_string(dir.join("cgroup")).ok())
            .any(|cgroups| !cgroup::of_process(&cgroups).containers.is_empty())
    }

    fn start_ticks(&self, pid: u32) -> Option<u64> {
        stat(&self.dir(pid)).map(|stat| stat.start_ticks)
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

    fn resolver_configuration(&self, pid: u32) -> Option<String> {
        resolver::configuration(&self.dir(pid).join("root"))
    }

    fn user(&self, uid: u32) -> Option<String> {
        self.users.name(uid)
    }
}

/// What `/proc/PID/stat` says.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: u32,
    start_ticks: u64,
}

fn stat(dir: &Path) -> Option<Stat> {
    parse_stat(&fs::read_to_string(dir.join("stat")).ok()?)
}

/// The name may hold anything, parentheses too.
fn parse_stat(stat: &str) -> Option<Stat> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    // The field after the name is the third; the parent is the 4th, the start time the 22nd.
    let mut fields = tail.split_ascii_whitespace();
    Some(Stat {
        name: name.to_owned(),
        parent: fields.nth(1)?.parse().ok()?,
        start_ticks: fields.nth(17)?.parse().ok()?,
    })
}

fn namespaces(dir: &Path) -> Namespaces {
    Namespaces {
        mnt: namespace(dir, "mnt"),
        pid: namespace(dir, "pid"),
        net: namespace(dir, "net"),
    }
}

/// Namespaces of process 1, which are the host's; where they may not be read (it can more than we) those of the kernel's first
/// thread, which has never left them.
pub fn host_namespaces(proc: &Path) -> Namespaces {
    let (first, kernel) = (proc.join("1"), proc.join("2"));
    let is_kernel = stat(&kernel).is_some_and(|stat| stat.name == "kthreadd" && stat.parent == 0);
    let read = |kind| match namespace(&first, kind) {
        0 if is_kernel => namespace(&kernel, kind),
        inode => inode,
    };
    Namespaces {
        mnt: read("mnt"),
        pid: read("pid"),
        net: read("net"),
    }
}

fn namespace(dir: &Path, kind: &str) -> u64 {
    fs::metadata(dir.join("ns").join(kind))
        .map(|ns| ns.ino())
        .unwrap_or_default()
}

/// Directories of the innermost container in `/proc/PID/cgroup`, in each hierarchy, where they are usually mounted.
fn container_directories(cgroups: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let place: Place = cgroup::place(path);
        let Some(id) = place.container() else {
            continue;
        };
        // The path up to the directory that carries the id.
        let Some(end) = path.rfind(id) else { continue };
        let end = path[end..].find('/').map_or(path.len(), |at| end + at);
        let below = path[..end].trim_start_matches('/');
        let root = Path::new("/sys/fs/cgroup");
        match controllers {
            "" => found.extend([root.join("unified").join(below), root.join(below)]),
            controllers => {
                let name = controllers.trim_start_matches("name=");
                found.push(root.join(name).join(below));
            }
        }
    }
    found.retain(|directory| directory.join("cgroup.procs").exists());
    found
}

/// Processes of a cgroup and of those below it.
fn processes_below(directory: &Path) -> Vec<u32> {
    let (mut pids, mut queue) = (Vec::new(), vec![directory.to_path_buf()]);
    let mut looked_into = 0;
    while let Some(directory) = queue.pop() {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        looked_into += 1;
        if pids.len() >= MAX_PROCESSES || looked_into >= MAX_DIRECTORIES {
            break;
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                queue.push(entry.path());
            }
        }
    }
    pids.truncate(MAX_PROCESSES);
    pids
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
        let expected = Stat {
            name: "a) (b)".to_owned(),
            parent: 1,
            start_ticks: 4711,
        };
        assert_eq!(parse_stat(stat), Some(expected));
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
        assert_ne!(facts.namespaces.net, 0);
        assert_eq!(facts.parent, std::os::unix::process::parent_id());
        assert_ne!(facts.parent_name, "");
        let first = std::env::args().next().unwrap();
        assert!(facts.cmdline.starts_with(first.as_bytes()));
        assert!(!host.container_has(u64::MAX));
    }
}
