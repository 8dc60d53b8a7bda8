//! A host to run the program on: a cgroup, a network namespace, certificates, a configuration. Gone when dropped.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use weft_agent::privileges::Use;
use weft_transport::{PeerRole, SpiffeId, pki};
use weft_wire::control::Detail;
use weft_wire::{Half, Owner, Timestamp};

use super::federator::{Federator, Seen};

/// Longest to wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(20);
/// `nobody`.
const NOBODY: u32 = 65_534;

/// Who runs the program.
#[derive(Clone, Copy)]
pub enum Agent<'a> {
    /// Root, with everything.
    AsRoot,
    /// Nobody, with these capabilities.
    AsNobody(&'a [Use]),
}

/// See the module.
pub struct Host {
    dir: TempDir,
    cgroup: PathBuf,
    pins: PathBuf,
    federator: Federator,
}

impl Host {
    /// Makes one, and moves this thread's process into its cgroup.
    pub fn new(name: &str) -> Self {
        Self::with(name, "")
    }

    /// The same with more in its configuration.
    pub fn with(name: &str, more: &str) -> Self {
        let unique = format!("weft-test-{}-{name}", std::process::id());
        let cgroup = cgroup_mount().join(&unique);
        fs::create_dir(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        issue_identities(dir.path());
        let federator = Federator::start(&dir.path().join("fed"));
        let pins = Path::new("/sys/fs/bpf").join(&unique);
        let config = format!(
            "name = \"agent\"\nfederator = \"{}\"\nidentity = \"{1}/agent\"\ndata_dir = \"{1}/data\"\ncgroup = \"{2}\"\n\
             [capture]\nring_bytes = 1048576\nmax_connections = 4096\npin_dir = \"{3}\"\n{more}",
            federator.address,
            dir.path().display(),
            cgroup.display(),
            pins.display()
        );
        fs::write(dir.path().join("agent.toml"), config).unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        Self {
            dir,
            cgroup,
            pins,
            federator,
        }
    }

    /// A listener on loopback.
    pub fn listener(&self) -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    /// Starts the program, outside of the cgroup that it watches.
    pub fn spawn(&self, who: Agent<'_>) -> Running {
        let owner = match who {
            Agent::AsRoot => 0,
            Agent::AsNobody(_) => NOBODY,
        };
        self.give_to(owner);
        let config = self.dir.path().join("agent.toml");
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(cgroup_mount());
        if let Agent::AsNobody(held) = who {
            let held: String = held
                .iter()
                .map(|(one, _)| {
                    format!(
                        ",+{}",
                        one.to_string().to_lowercase().trim_start_matches("cap_")
                    )
                })
                .collect();
            let user = NOBODY.to_string();
            command.args([
                "setpriv",
                "--reuid",
                &user,
                "--regid",
                &user,
                "--clear-groups",
            ]);
            command.arg(format!("--inh-caps=-all{held}"));
            command.arg(format!("--ambient-caps=-all{held}"));
        }
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let child = command
            .arg(env!("CARGO_BIN_EXE_weft-agent"))
            .args(["run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Running(child)
    }

    /// Starts it and waits until it has looked at everything.
    pub fn start(&self, who: Agent<'_>) -> Running {
        let started = || {
            self.log()
                .matches("connections older than the hooks")
                .count()
        };
        let before = started();
        let mut running = self.spawn(who);
        let deadline = Instant::now() + PATIENCE;
        while started() == before {
            assert!(running.0.try_wait().unwrap().is_none(), "{}", self.log());
            assert!(Instant::now() < deadline, "{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        running
    }

    /// Takes the hooks out.
    pub fn unload(&self) {
        weft_agent::kernel::hooks::unload(&self.pins);
    }

    /// What reached the federator.
    pub fn seen(&self) -> Seen {
        self.federator.seen()
    }

    /// Ends that reached it.
    pub fn closed(&self) -> usize {
        self.seen()
            .values()
            .filter(|(state, _)| state.finished())
            .count()
    }

    /// Waits until it has seen so many ends.
    pub fn wait_closed(&self, count: usize) {
        self.wait(&format!("{count} ends"), |seen| {
            seen.values().filter(|(state, _)| state.finished()).count() == count
        });
    }

    /// Waits until it has seen what it must.
    pub fn wait(&self, what: &str, ready: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !ready(&self.seen()) {
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}: {} ends of {} seen\n{}",
                self.closed(),
                self.seen().len(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The last row of each connection's end that reached it, and whose it is.
    pub fn rows(&self) -> Vec<(Half, Owner)> {
        self.federator.rows()
    }

    /// Waits until the agent says that it gives up at least this much.
    pub fn wait_given_up(&self, details: &[Detail]) {
        let deadline = Instant::now() + PATIENCE;
        while !self.federator.given_up().starts_with(details) {
            assert!(Instant::now() < deadline, "{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the program said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn give_to(&self, owner: u32) {
        let own = |path: &Path| chown(path, Some(owner), Some(owner)).unwrap();
        let mut places = vec![self.dir.path().to_path_buf()];
        while let Some(place) = places.pop() {
            own(&place);
            if place.is_dir() {
                places.extend(
                    fs::read_dir(&place)
                        .unwrap()
                        .flatten()
                        .map(|entry| entry.path()),
                );
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.unload();
        let _ = fs::write(cgroup_mount().join("cgroup.procs"), "0");
        let deadline = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.cgroup).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The program at work; killed when dropped.
pub struct Running(Child);

impl Running {
    /// SIGTERM; its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
        self.0.wait().unwrap().code()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        assert_eq!(self.0.wait().unwrap().signal(), Some(9));
    }

    /// Waits until it has given up; its exit code.
    pub fn ended(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(0)
    }

    /// A set of capabilities, from `/proc`.
    pub fn capabilities(&self, set: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(set)).unwrap();
        u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn issue_identities(dir: &Path) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let validity = pki::Validity::days_from(Timestamp(now.as_micros() as i64), 1);
    pki::init_ca(&dir.join("ca"), "test.example", validity).unwrap();
    for (role, name) in [(PeerRole::Agent, "agent"), (PeerRole::Federator, "fed")] {
        let id = SpiffeId::new("test.example", "here", role, name).unwrap();
        pki::issue(&dir.join("ca"), &dir.join(name), &id, validity).unwrap();
    }
}

fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .expect("a cgroup2 mount");
    line.split(' ').nth(1).unwrap().into()
}
