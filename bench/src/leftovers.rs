//! What a run makes outside of itself: network namespaces, cgroups, pinned kernel programs, directories. All of it carries the
//! run's name, so that it goes when the run is interrupted, and at the start of the next one where it was killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use crate::machine;

/// Names of runs begin with this; the process id follows.
const PREFIX: &str = "weft-bench";
/// Where network namespaces have their names.
const NAMESPACES: &str = "/run/netns";
/// Where the agents that are measured pin their programs.
const PINS: &str = "/sys/fs/bpf/weft";
/// Looks at a cgroup whose processes were killed, and the time between two.
const LOOKS: u32 = 100;
const GLANCE: Duration = Duration::from_millis(20);

/// A signal came.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The name of this run.
pub fn name() -> String {
    format!("{PREFIX}-{}", std::process::id())
}

/// Where this run's agent pins its programs.
pub fn pins() -> PathBuf {
    Path::new(PINS).join(name())
}

/// A directory of this run's own, gone when dropped.
pub fn directory() -> Result<TempDir> {
    let prefix = format!("{}-", name());
    let mut builder = tempfile::Builder::new();
    builder
        .prefix(&prefix)
        .tempdir()
        .context("no temporary directory")
}

/// Runs `ip`.
pub fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("cannot run ip")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Removes what runs left whose process is gone. What cannot be removed is said, and stays for the next run.
pub fn sweep() {
    remove(&dead);
}

/// Removes what a run of this name made.
pub fn remove_run(name: &str) {
    remove(&|other| run_of(other) == Some(name));
}

/// On Ctrl-C and `kill`: removes what this run made and ends as the signal would.
pub fn go_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot wait for signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            INTERRUPTED.store(true, Ordering::SeqCst);
            eprintln!("interrupted: removing what this run made");
            // What the main thread was making meanwhile is found the second time.
            remove_run(&name());
            remove_run(&name());
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Does not return when a signal came: what it was cut short in has failed, and the program ends as the signal says.
pub fn stop_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Everything whose name `goes`, the processes in it first.
fn remove(goes: &dyn Fn(&str) -> bool) {
    let cgroups = match machine::cgroup2() {
        Ok(top) => named(&top, goes),
        Err(_) => Vec::new(),
    };
    for cgroup in &cgroups {
        end_processes(cgroup);
    }
    // Without its pins a program leaves the kernel.
    let pins = named(Path::new(PINS), goes);
    for directory in pins.into_iter().chain(named(&std::env::temp_dir(), goes)) {
        say(
            &directory,
            fs::remove_dir_all(&directory).map_err(Into::into),
        );
    }
    for namespace in named(Path::new(NAMESPACES), goes) {
        let name = namespace.file_name().unwrap_or_default().to_string_lossy();
        say(&namespace, ip(&["netns", "delete", &name]));
    }
    for cgroup in &cgroups {
        say(cgroup, remove_cgroup(cgroup).map_err(Into::into));
    }
}

fn say(what: &Path, removed: Result<()>) {
    if let Err(error) = removed {
        eprintln!("{} stays: {error:#}", what.display());
    }
}

/// What is in a directory, if there is one, and `goes`.
fn named(directory: &Path, goes: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let of_runs = entries.filter(|entry| entry.file_name().to_str().is_some_and(goes));
    of_runs.map(|entry| entry.path()).collect()
}

/// The run that made what has this name: `weft-bench-PID`, or that and something more after a hyphen.
fn run_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(PREFIX)?.strip_prefix('-')?;
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let ends = rest[digits..].is_empty() || rest[digits..].starts_with('-');
    (digits > 0 && ends).then(|| &name[..PREFIX.len() + 1 + digits])
}

/// Whether this was made by a run whose process is gone; its number may be another program's by now.
fn dead(name: &str) -> bool {
    run_of(name).is_some_and(|run| {
        let pid = &run[PREFIX.len() + 1..];
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        program.trim_end() != PREFIX
    })
}

/// Kills all in a cgroup and below, and waits until they are gone.
fn end_processes(cgroup: &Path) {
    for _ in 0..LOOKS {
        let pids = processes(cgroup);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(GLANCE);
    }
}

fn processes(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = text.lines().filter_map(|pid| pid.parse().ok()).collect();
    pids.extend(below(cgroup).iter().flat_map(|child| processes(child)));
    // 0 is a process of another pid namespace: never one of a run's.
    pids.retain(|pid| *pid > 0);
    pids
}

fn remove_cgroup(cgroup: &Path) -> std::io::Result<()> {
    for child in below(cgroup) {
        remove_cgroup(&child)?;
    }
    fs::remove_dir(cgroup)
}

fn below(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_made_is_told_by_its_name() {
        for (made, run) in [
            ("weft-bench-12", Some("weft-bench-12")),
            ("weft-bench-12-s", Some("weft-bench-12")),
            ("weft-bench-12-aB3xyz", Some("weft-bench-12")),
            ("weft-bench-123", Some("weft-bench-123")),
            ("weft-bench-", None),
            ("weft-bench-12s", None),
            ("weft-bench", None),
            ("weft-lab-12", None),
        ] {
            assert_eq!(run_of(made), run, "{made}");
        }
    }

    #[test]
    fn a_run_is_dead_when_its_number_is_nobodys_or_anothers() {
        // Above every limit on process ids.
        assert!(dead("weft-bench-2147483647-s"));
        // The first process of the machine, or of the container, is no bench.
        assert!(dead("weft-bench-1"));
        assert!(!dead("weft-lab-1"));
    }
}
