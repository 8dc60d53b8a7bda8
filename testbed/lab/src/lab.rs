//! A lab: its hosts and networks, and how they are removed whatever happens.
//!
//! Everything of a lab carries its name (`wl-PID-N`): network namespaces `wl-PID-N.HOST`, a cgroup directory
//! `weft-lab/wl-PID-N` and a directory of files. [`sweep`] can therefore remove what a dead lab left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use nix::unistd::Uid;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::command;
use crate::error::{During, LabError, Result};
use crate::host::{Host, KERNEL_PORTS, tail};

/// First part of every lab's name.
const PREFIX: &str = "wl-";
/// Its process may end without the lab's end.
const KEEP_FILE: &str = "keep";
/// Who made the lab: pid and start time, as a pid may be used again.
const MAKER_FILE: &str = "maker";
/// Lines of each log that a failed test prints.
const LOG_LINES: usize = 25;

/// Labs of this process that a signal must take down.
static LIVE: Mutex<Vec<String>> = Mutex::new(Vec::new());
static SIGNALS: Once = Once::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network of hosts on this machine. Dropping it removes all of it.
pub struct Lab {
    name: String,
    dir: PathBuf,
    hosts: Mutex<Vec<Host>>,
}

impl Lab {
    /// Makes an empty lab. Needs root; removes leftovers of dead labs first.
    pub fn new() -> Result<Self> {
        if !Uid::effective().is_root() {
            return Err(LabError::Missing {
                what: "root".into(),
                hint: "run this with sudo".into(),
            });
        }
        sweep()?;
        handle_signals();
        let name = format!(
            "{PREFIX}{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = base_dir().join(&name);
        live().push(name.clone());
        let lab = Self {
            name,
            dir,
            hosts: Mutex::default(),
        };
        lab.prepare()?;
        Ok(lab)
    }

    fn prepare(&self) -> Result<()> {
        fs::create_dir_all(&self.dir).during("creating", &self.dir)?;
        let maker = self.dir.join(MAKER_FILE);
        let me = std::process::id();
        fs::write(
            &maker,
            format!("{me} {}", start_time(me).unwrap_or_default()),
        )
        .during("writing", &maker)?;
        let bpf = self.bpf_dir();
        fs::create_dir_all(&bpf).during("creating", &bpf)?;
        command::run("mount", ["-t", "bpf", "weft-lab", &bpf.to_string_lossy()])?;
        let cgroup = lab_cgroup(&self.name)?;
        fs::create_dir_all(&cgroup).during("creating", &cgroup)
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory for the lab's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A BPF file system of the lab's own: unmounting it detaches everything pinned in it.
    pub fn bpf_dir(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// Adds a host without any network but loopback.
    pub fn host(&self, name: &str) -> Result<Host> {
        let netns = format!("{}.{name}", self.name);
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).during("creating", &dir)?;
        let cgroup = lab_cgroup(&self.name)?.join(name);
        fs::create_dir_all(&cgroup).during("creating", &cgroup)?;
        command::run("ip", ["netns", "add", &netns])?;
        let host = Host::new(name, netns, cgroup, dir);
        command::run("ip", ["-n", host.netns(), "link", "set", "lo", "up"])?;
        host.sysctl("net.ipv4.ip_local_port_range", KERNEL_PORTS)?;
        self.hosts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(host.clone());
        Ok(host)
    }

    /// The ends of all the hosts' logs, for a failed test's output.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for host in self
            .hosts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            for file in files_with(host.dir(), "log") {
                text += &format!(
                    "--- {} {}\n{}\n",
                    host.name(),
                    file.display(),
                    tail(&file, LOG_LINES)
                );
            }
        }
        text
    }

    /// Lets the lab outlive this process; [`down`] removes it.
    pub fn keep(self) -> Result<String> {
        let file = self.dir.join(KEEP_FILE);
        fs::write(&file, "").during("writing", &file)?;
        live().retain(|name| *name != self.name);
        let name = self.name.clone();
        std::mem::forget(self);
        Ok(name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs());
        }
        // Held until all is gone: a signal that comes now waits, and one that came first ends the process meanwhile.
        let mut live = live();
        if let Some(at) = live.iter().position(|name| *name == self.name) {
            live.remove(at);
            report(&self.name, remove(&self.name));
        }
    }
}

fn report(name: &str, removed: Result<()>) {
    if let Err(error) = removed {
        eprintln!("lab {name} was not removed completely: {error}");
    }
}

/// Removes what labs left behind whose process is dead; gives their names.
pub fn sweep() -> Result<Vec<String>> {
    remove_where(|name| !is_kept(name) && !maker_lives(name))
}

/// Removes the labs that were kept, and those of dead processes; gives their names.
pub fn down() -> Result<Vec<String>> {
    remove_where(|name| is_kept(name) || !maker_lives(name))
}

/// A host of the lab that was kept, by its name.
pub fn kept_host(name: &str) -> Result<Host> {
    let missing = |what: String| LabError::Missing {
        what,
        hint: "cargo xtask demo --keep".into(),
    };
    let lab = leftovers()?.into_iter().find(|lab| is_kept(lab));
    let lab = lab.ok_or_else(|| missing("a lab that was left running".into()))?;
    let netns = format!("{lab}.{name}");
    if !Path::new("/run/netns").join(&netns).exists() {
        return Err(missing(format!("host {name} of lab {lab}")));
    }
    Ok(Host::new(
        name,
        netns,
        lab_cgroup(&lab)?.join(name),
        base_dir().join(&lab).join(name),
    ))
}

fn remove_where(condition: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in leftovers()? {
        if condition(&name) {
            remove(&name)?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// Names of all the labs there are traces of.
fn leftovers() -> Result<Vec<String>> {
    let mut names: Vec<String> = children(&base_dir());
    names.extend(children(&cgroup_root()?.join("weft-lab")));
    names.extend(
        children(Path::new("/run/netns"))
            .iter()
            .filter_map(|n| n.split_once('.'))
            .map(|n| n.0.to_owned()),
    );
    names.retain(|name| name.starts_with(PREFIX));
    names.sort();
    names.dedup();
    Ok(names)
}

/// Removes everything that carries a lab's name. Goes on after a failure and reports the first one.
fn remove(name: &str) -> Result<()> {
    let mut first = Ok(());
    let mut note = |result: Result<()>| {
        if first.is_ok() {
            first = result;
        }
    };
    let cgroup = lab_cgroup(name)?;
    note(empty_cgroup(&cgroup));
    let dir = base_dir().join(name);
    let bpf = dir.join("bpf");
    if is_mounted(&bpf) {
        note(command::run("umount", ["-l", &bpf.to_string_lossy()]).map(drop));
    }
    for netns in children(Path::new("/run/netns"))
        .iter()
        .filter(|n| n.split_once('.').is_some_and(|n| n.0 == name))
    {
        note(command::run("ip", ["netns", "del", netns]).map(drop));
    }
    for path in children(&cgroup)
        .iter()
        .map(|host| cgroup.join(host))
        .chain([cgroup.clone()])
    {
        if path.is_dir() && path.join("cgroup.procs").exists() {
            note(remove_cgroup(&path));
        }
    }
    if dir.exists() && !is_mounted(&bpf) {
        note(fs::remove_dir_all(&dir).during("removing", &dir));
    }
    first
}

/// Removes an empty cgroup with those below it, which a test made.
fn remove_cgroup(path: &Path) -> Result<()> {
    for below in children(path).iter().map(|name| path.join(name)) {
        if below.is_dir() {
            remove_cgroup(&below)?;
        }
    }
    fs::remove_dir(path).during("removing", path)
}

/// Kills all that runs in a lab's cgroups and waits until they are empty.
fn empty_cgroup(cgroup: &Path) -> Result<()> {
    let kill = cgroup.join("cgroup.kill");
    if !cgroup.exists() {
        return Ok(());
    }
    fs::write(&kill, "1").during("writing", &kill)?;
    let events = cgroup.join("cgroup.events");
    crate::wait::until(
        "the lab's processes to end",
        Duration::from_secs(20),
        || {
            let state = fs::read_to_string(&events).during("reading", &events)?;
            Ok(if state.contains("populated 0") {
                Ok(())
            } else {
                Err(state)
            })
        },
    )
}

/// Takes the labs of this process down on Ctrl-C and `kill`, then ends as the signal would.
fn handle_signals() {
    SIGNALS.call_once(|| {
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else {
            return;
        };
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                eprintln!("interrupted: taking the lab down");
                let names = live();
                for name in names.iter() {
                    // What another thread was making while this one removed is found the second time.
                    let first = remove(name);
                    report(name, first.and(remove(name)));
                }
                std::process::exit(128 + signal);
            }
        });
    });
}

fn live() -> std::sync::MutexGuard<'static, Vec<String>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_kept(name: &str) -> bool {
    base_dir().join(name).join(KEEP_FILE).exists()
}

/// Whether the process that made a lab still runs; where its file is gone, its pid in the name decides.
fn maker_lives(name: &str) -> bool {
    let recorded = fs::read_to_string(base_dir().join(name).join(MAKER_FILE)).ok();
    if let Some((pid, started)) = recorded.as_deref().and_then(|text| text.split_once(' ')) {
        let now = pid.parse().ok().and_then(start_time);
        return now.is_some_and(|now| now.to_string() == started);
    }
    let pid = name
        .trim_start_matches(PREFIX)
        .split('-')
        .next()
        .and_then(|pid| pid.parse().ok());
    pid.and_then(start_time).is_some()
}

/// When a process started, in ticks since boot; `None` when there is none.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; after it, the start time is the 20th field.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

fn base_dir() -> PathBuf {
    std::env::temp_dir().join("weft-lab")
}

/// The cgroup directory of a lab.
fn lab_cgroup(name: &str) -> Result<PathBuf> {
    Ok(cgroup_root()?.join("weft-lab").join(name))
}

/// Where the cgroup v2 hierarchy is mounted.
pub(crate) fn cgroup_root() -> Result<PathBuf> {
    static ROOT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let root = ROOT.get_or_init(|| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        line.split(' ').nth(4).map(PathBuf::from)
    });
    root.clone().ok_or_else(|| LabError::Missing {
        what: "a cgroup v2 mount".into(),
        hint: "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified".into(),
    })
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == path.to_str())
}

fn children(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn files_with(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let paths = children(dir).into_iter().map(|name| dir.join(name));
    let mut found: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}
