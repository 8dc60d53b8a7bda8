//! A host: a network namespace and a cgroup, and the processes that run in both.

use std::fmt;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::command;
use crate::error::{During, LabError, Result};
use crate::wait;

/// The place of a host, as an agent's configuration says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Site {
    /// Provider.
    pub cloud: String,
    /// Account or project.
    pub account: String,
    /// Region.
    pub region: String,
    /// Availability zone.
    pub zone: String,
    /// Network; addresses mean nothing outside it.
    pub network: String,
    /// Kubernetes cluster.
    pub cluster: String,
    /// Kubernetes namespace.
    pub namespace: String,
}

/// A host of a lab. Cheap to clone: a name for the namespace and the cgroup that the lab owns.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    name: String,
    netns: String,
    cgroup: PathBuf,
    dir: PathBuf,
    next_port: AtomicU16,
}

/// Local ports that the kernel chooses from. It may come back to one within some hundred connections.
pub(crate) const KERNEL_PORTS: &str = "10000 29999";
/// First local port of [`Host::take_ports`].
const FIRST_PORT: u16 = 30_000;

/// A process that the lab started; killed when this is dropped.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Host {
    pub(crate) fn new(name: &str, netns: String, cgroup: PathBuf, dir: PathBuf) -> Self {
        Self(Arc::new(Inner {
            name: name.to_owned(),
            netns,
            cgroup,
            dir,
            next_port: AtomicU16::new(FIRST_PORT),
        }))
    }

    /// Its name within the lab.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its network namespace, as `ip netns` knows it.
    pub fn netns(&self) -> &str {
        &self.0.netns
    }

    /// Its cgroup's directory.
    pub fn cgroup(&self) -> &Path {
        &self.0.cgroup
    }

    /// A directory for its files; removed with the lab.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Local ports that nobody has taken yet on this host, for connections that must not share a tuple with an earlier one.
    pub fn take_ports(&self, count: u16) -> Result<u16> {
        let taken = self
            .0
            .next_port
            .fetch_update(Relaxed, Relaxed, |first| first.checked_add(count));
        taken.map_err(|_| LabError::Truth(format!("{self:?} has no unused local ports left")))
    }

    /// A command that will run in this host's network and cgroup, in a process group of its own so that a
    /// terminal's Ctrl-C reaches the lab first.
    ///
    /// `ip netns exec` would replace `/sys` and hide the cgroups and BPF file system from an agent, so this enters the
    /// network namespace only.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.0.netns))
            .args(["--", "sh", "-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.0.cgroup.join("cgroup.procs"))
            .arg(program.as_ref())
            .process_group(0);
        command
    }

    /// Runs a command here to its end and gives its stdout; a failure is an error.
    pub fn run(&self, program: impl AsRef<Path>, args: &[&str]) -> Result<String> {
        command::output(self.command(program).args(args), None)
    }

    /// As [`Host::run`], whatever the exit status: status, stdout and stderr.
    pub fn try_run(
        &self,
        program: impl AsRef<Path>,
        args: &[&str],
    ) -> Result<(ExitStatus, String, String)> {
        let done = command::complete(self.command(program).args(args), None)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((done.status, text(&done.stdout), text(&done.stderr)))
    }

    /// Runs a command here with `input` on its stdin.
    pub fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        command::output(self.command(program).args(args), Some(input))
    }

    /// Starts a process here. Its stdout and stderr go to a log file of the host's directory.
    pub fn spawn(&self, name: &str, program: impl AsRef<Path>, args: &[&str]) -> Result<Process> {
        let log = self.0.dir.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .during("opening", &log)?;
        let second = file.try_clone().during("opening", &log)?;
        let mut command = self.command(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(second);
        let child = command.spawn().map_err(|source| LabError::Io {
            what: command::describe(&command),
            source,
        })?;
        Ok(Process {
            child,
            name: format!("{name} on {}", self.0.name),
            log,
        })
    }

    /// Sets a kernel parameter of this host's network namespace.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run("sysctl", &["-qw", &format!("{key}={value}")])
            .map(drop)
    }

    /// Loads an nftables ruleset, replacing what was there. Closing brackets may stand anywhere: nft wants each on a line of its own.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let rules = rules.replace('}', "\n}\n");
        self.feed("nft", &["-f", "-"], &format!("flush ruleset\n{rules}"))
            .map(drop)
    }

    /// Waits until something listens on a TCP address here.
    pub fn await_listener(&self, address: SocketAddr) -> Result<()> {
        let port = format!("sport = :{}", address.port());
        wait::until(
            &format!("a listener on {address} of {}", self.name()),
            Duration::from_secs(20),
            || {
                let out = self.run("ss", &["-Hltn", &port])?;
                Ok(if out.trim().is_empty() {
                    Err("none".to_owned())
                } else {
                    Ok(())
                })
            },
        )
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

impl PartialEq for Host {
    fn eq(&self, other: &Self) -> bool {
        self.0.netns == other.0.netns
    }
}

impl Process {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Kills it with SIGKILL and waits for its end: what a crash looks like to everyone else.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().map_err(|source| LabError::Io {
            what: format!("killing {}", self.name),
            source,
        })?;
        self.wait().map(drop)
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        // A pid above i32::MAX does not exist on Linux.
        let pid = Pid::from_raw(self.pid().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        self.wait()
    }

    /// Waits for its own end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().map_err(|source| LabError::Io {
            what: format!("waiting for {}", self.name),
            source,
        })
    }

    /// Fails, with the end of its log, when it has ended already.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(LabError::Command {
                command: self.name.clone(),
                status,
                stderr: tail(&self.log, 30),
            }),
            Err(source) => Err(LabError::Io {
                what: format!("looking for {}", self.name),
                source,
            }),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The last lines of a file; what there is of it.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
