//! What watches the server: the agent, or the peer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::Program;
use crate::host::{Host, Hosts};
use crate::{leftovers, machine, uplink};

const SINK: &str = "127.0.0.1:7443";
const METRICS: &str = "127.0.0.1:9464";
const COLLECTOR: &str = "127.0.0.1:9995";
/// Longest wait for a program to come up or to finish.
const PATIENCE: Duration = Duration::from_secs(20);
/// The part of the connections that the agent may miss.
const MISSED_AT_MOST: f64 = 0.001;
/// Between two looks.
const GLANCE: Duration = Duration::from_millis(50);

/// Something that watches and has a cost.
pub trait Watcher {
    /// Its process.
    fn pid(&self) -> u32;
    /// Waits until what it saw has been dealt with.
    fn settle(&self) -> Result<()>;
}

/// The agent's configuration and surroundings, made once.
pub struct Agent {
    dir: TempDir,
    host: Host,
    program: PathBuf,
    _sink: Program,
}

/// The agent at work.
pub struct RunningAgent<'a> {
    agent: &'a Agent,
    child: Child,
    reported_before: u64,
}

impl Agent {
    /// Certificates, configuration, a federator to talk to.
    pub fn prepare(hosts: &Hosts) -> Result<Self> {
        let dir = leftovers::directory()?;
        let host = hosts.beside_server("agent")?;
        let program = sibling("weft-agent")?;
        uplink::issue_identities(dir.path())?;
        let count = dir.path().join("count");
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let identity = text(uplink::identity_dir(dir.path(), uplink::FEDERATOR));
        // Where the agent has a core, the federator is elsewhere.
        let mut elsewhere = host.clone();
        elsewhere.core = host.core.map(|core| (core + 1) % machine::cores());
        let sink = Program::start(&elsewhere, &["sink", SINK, &identity, &text(count)])?;
        let config = format!(
            "name = \"bench\"\nfederator = \"{SINK}\"\nidentity = \"{0}/bench\"\ndata_dir = \"{0}/spool\"\n\
             cgroup = \"{1}\"\n\n[site]\ncloud = \"bench\"\n\n\
             [capture]\npin_dir = \"{2}\"\n\n\
             [lookups]\nenabled = true\n\n[metrics]\nlisten = \"{METRICS}\"\n",
            dir.path().display(),
            hosts.server.cgroup().display(),
            leftovers::pins().display()
        );
        fs::write(dir.path().join("agent.toml"), config)
            .context("cannot write the configuration")?;
        Ok(Self {
            dir,
            host,
            program,
            _sink: sink,
        })
    }

    /// Starts the program and waits until its hooks are in place.
    pub fn start(&self) -> Result<RunningAgent<'_>> {
        let log =
            fs::File::create(self.dir.path().join("agent.log")).context("cannot make the log")?;
        let mut command = self.host.command(&self.program);
        command.arg("run").arg("--config").arg(self.config());
        let child = command
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the agent")?;
        let mut running = RunningAgent {
            agent: self,
            child,
            reported_before: self.reported(),
        };
        let pins = leftovers::pins();
        let start = Instant::now();
        while fs::read_dir(&pins).map_or(0, Iterator::count) == 0 {
            if running.child.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                bail!("the agent did not start: {}", self.last_words());
            }
            sleep(GLANCE);
        }
        // Programs are attached one after the other, and the session is dialled after that.
        sleep(Duration::from_millis(700));
        Ok(running)
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("agent.toml")
    }

    /// Connections reported so far.
    pub fn reported(&self) -> u64 {
        let text = fs::read_to_string(self.dir.path().join("count")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Lookups reported so far.
    pub fn lookups(&self) -> u64 {
        let path = self
            .dir
            .path()
            .join("count")
            .with_extension(super::sink::LOOKUPS);
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// What the agent says that it lost: its counters of these names that are not 0, since its start.
    pub fn lost(&self, names: &[&str]) -> Result<String> {
        let mut command = self.host.command(Path::new("/usr/bin/curl"));
        command.args(["-s", "-S", &format!("http://{METRICS}/")]);
        let output = command.output().context("cannot run curl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lost = Vec::new();
        for name in names {
            let prefix = format!("weft_agent_{name}_total ");
            let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
            match value.with_context(|| format!("the agent says nothing of {name}"))? {
                "0" => {}
                value => lost.push(format!("{value} {name}")),
            }
        }
        Ok(match lost.is_empty() {
            true => "nothing lost".into(),
            false => lost.join(", "),
        })
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(4).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    fn unload(&self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command
            .arg("unload")
            .arg("--config")
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        ensure!(
            command.status().context("cannot run the agent")?.success(),
            "the agent could not unload its hooks"
        );
        Ok(())
    }
}

impl Watcher for RunningAgent<'_> {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn settle(&self) -> Result<()> {
        let all = || (self.agent.reported(), self.agent.lookups());
        let mut last = all();
        let start = Instant::now();
        // Twice the agent's flush interval without anything new.
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < Duration::from_millis(600) {
            ensure!(
                start.elapsed() < PATIENCE,
                "the agent does not come to an end: {}",
                self.agent.last_words()
            );
            sleep(GLANCE);
            let now = all();
            if now != last {
                (last, quiet_since) = (now, Instant::now());
            }
        }
        Ok(())
    }
}

impl RunningAgent<'_> {
    /// Stops it, takes its hooks out of the kernel, and checks that it saw what it was there to see.
    pub fn finish(mut self, expected: u64) -> Result<()> {
        let reported = self.agent.reported().saturating_sub(self.reported_before);
        // A few may still be of the time before.
        ensure!(
            reported <= expected + 1000,
            "the agent reported {reported} halves for {expected} connections"
        );
        let last_words = self.agent.last_words();
        self.stop()?;
        // What it may miss before its figures mean nothing.
        let missed = 1.0 - reported as f64 / expected as f64;
        ensure!(
            missed <= MISSED_AT_MOST,
            "the agent reported {reported} of {expected} connections, so its cost is not that of the work: {last_words}"
        );
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.child.kill().context("cannot stop the agent")?;
        self.child.wait().context("cannot wait for the agent")?;
        self.agent.unload()
    }
}

impl Drop for RunningAgent<'_> {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // The hooks outlive the process on purpose: take them out whatever happened.
            let _ = self.stop();
        }
    }
}

/// The flow exporter, exporting to a collector that forgets.
pub struct Softflowd {
    child: Child,
    /// Its pid file; it must have one.
    _dir: TempDir,
    _collector: Program,
}

impl Softflowd {
    /// Starts it on the server's interface.
    pub fn start(hosts: &Hosts) -> Result<Self> {
        let host = hosts.beside_server("softflowd")?;
        let collector = Program::start(&host, &["discard", COLLECTOR])?;
        let dir = leftovers::directory()?;
        let mut command = host.command(Path::new("/usr/sbin/softflowd"));
        // In the foreground, NetFlow 9, room for all flows, finished ones exported after a second: what makes it do the
        // work that the agent does, and not wait for its default of five minutes.
        command.args([
            "-d",
            "-v",
            "9",
            "-i",
            hosts.server.interface,
            "-n",
            COLLECTOR,
            "-m",
            "500000",
        ]);
        command.args([
            "-t",
            "tcp=2s",
            "-t",
            "tcp.fin=1s",
            "-t",
            "tcp.rst=1s",
            "-t",
            "expint=1s",
        ]);
        command
            .arg("-p")
            .arg(dir.path().join("pid"))
            .args(["-c", "none"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start softflowd")?;
        sleep(Duration::from_secs(1));
        ensure!(child.try_wait()?.is_none(), "softflowd did not stay");
        Ok(Self {
            child,
            _dir: dir,
            _collector: collector,
        })
    }
}

impl Watcher for Softflowd {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn settle(&self) -> Result<()> {
        // Its timeouts, and the export.
        sleep(Duration::from_secs(5));
        Ok(())
    }
}

impl Drop for Softflowd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program built beside this one.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{} is not built", path.display());
    Ok(path)
}
