//! What it costs the agent to read every DNS question and answer of a host.
//!
//! A name server on a host of its own answers dnsperf's steady load. The agent, and in a window of its own tshark, watch
//! that server: both take every message apart and pair questions with answers.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::agent::{Agent, Program, Watcher};
use crate::figure::{Better, Figure};
use crate::host::Hosts;
use crate::{leftovers, machine};

/// What this bench measures.
pub const FIGURES: &[&str] = &[CPU];
const CPU: &str = "agent.cpu_s_per_million_dns_queries";

const QUERIES_PER_SECOND: u32 = 20_000;
/// Of the agent, and of the peer.
const WINDOW_S: u32 = 30;
const PEER_WINDOW_S: u32 = 10;
/// Distinct names asked for.
const NAMES: u32 = 10_000;

/// Counters of the agent that say that something of DNS, or the flow it belongs to, was lost or not understood.
const LOSSES: [&str; 12] = [
    "dns_packets_dropped",
    "dns_packets_cut",
    "dns_malformed",
    "dns_orphans",
    "dns_duplicates",
    "dns_questions_dropped",
    "flow_records_dropped",
    "flow_datagrams_untracked",
    "flows_dropped",
    "packets_unreadable",
    "append_failures",
    "spool_dropped",
];

/// A window of load.
#[derive(Clone, Copy, Debug)]
struct Window {
    sent: u64,
    completed: u64,
    cpu: Duration,
}

impl Window {
    fn cpu_s_per_million(self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.completed as f64
    }
}

/// Runs it.
pub fn run(_wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let hosts = Hosts::new()?;
    let _server = Program::start(&hosts.server, &["answer", "0.0.0.0:53"])?;
    let dir = leftovers::directory()?;
    let names: String = (0..NAMES)
        .map(|n| format!("host{n}.department{}.example.com A\n", n % 97))
        .collect();
    fs::write(dir.path().join("names"), names).context("cannot write the names")?;
    let agent = Agent::prepare(&hosts)?;
    let running = agent.start()?;
    let before = agent.lookups();
    let window = load(&hosts, dir.path(), WINDOW_S, &running)?;
    let reported = agent.lookups() - before;
    let lost = agent.lost(&LOSSES)?;
    drop(running);
    let note = format!(
        "{QUERIES_PER_SECOND} queries/s for {WINDOW_S} s: {} sent, {} answered, {reported} lookups reported, {lost}; \
         CPU time of the process until all is acknowledged, kernel programs not included",
        window.sent, window.completed
    );
    let figure = Figure::new(CPU, window.cpu_s_per_million(), "s", Better::Lower);
    let peer =
        Tshark::start(&hosts).and_then(|tshark| load(&hosts, dir.path(), PEER_WINDOW_S, &tshark));
    Ok(vec![match peer {
        Ok(peer) => figure.peer("tshark", peer.cpu_s_per_million()).note(note),
        Err(error) => figure.note(format!("{note}; tshark could not run: {error:#}")),
    }])
}

fn load(hosts: &Hosts, dir: &Path, seconds: u32, watcher: &dyn Watcher) -> Result<Window> {
    let before = cpu_time(watcher.pid())?;
    let names = dir.join("names");
    let mut command = hosts.client.command(Path::new("/usr/bin/dnsperf"));
    command
        .args(["-s", &hosts.server.address.to_string(), "-d"])
        .arg(&names)
        .args([
            "-l",
            &seconds.to_string(),
            "-Q",
            &QUERIES_PER_SECOND.to_string(),
        ])
        .args(["-c", "8", "-q", "1000"]);
    let output = command
        .stderr(Stdio::null())
        .output()
        .context("cannot run dnsperf")?;
    ensure!(output.status.success(), "dnsperf failed");
    let text = String::from_utf8_lossy(&output.stdout);
    let field = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        number
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("dnsperf says nothing of '{name}'"))
    };
    let (sent, completed) = (field("Queries sent:")?, field("Queries completed:")?);
    ensure!(completed > 0, "no query was answered");
    watcher.settle()?;
    Ok(Window {
        sent,
        completed,
        cpu: cpu_time(watcher.pid())?.saturating_sub(before),
    })
}

/// Of a process and its children: tshark leaves the capturing to one.
fn cpu_time(pid: u32) -> Result<Duration> {
    let children =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    std::iter::once(pid)
        .chain(children)
        .map(machine::cpu_time)
        .sum()
}

/// The peer: names, codes and times of all messages on the server's interface.
struct Tshark {
    child: Child,
    _dir: TempDir,
}

impl Tshark {
    fn start(hosts: &Hosts) -> Result<Self> {
        let host = hosts.beside_server("tshark")?;
        let dir = leftovers::directory()?;
        let mut command = host.command(Path::new("/usr/bin/tshark"));
        command
            .args([
                "-n",
                "-l",
                "-q",
                "-i",
                hosts.server.interface,
                "-f",
                "port 53",
                "-T",
                "fields",
            ])
            .args([
                "-e",
                "frame.time_epoch",
                "-e",
                "ip.src",
                "-e",
                "ip.dst",
                "-e",
                "dns.id",
            ])
            .args([
                "-e",
                "dns.qry.name",
                "-e",
                "dns.qry.type",
                "-e",
                "dns.flags.rcode",
                "-e",
                "dns.time",
            ])
            .args(["-e", "dns.a"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // It keeps what it captures in files there.
        command.env("TMPDIR", dir.path());
        let mut child = command.spawn().context("cannot start tshark")?;
        sleep(Duration::from_secs(3));
        ensure!(child.try_wait()?.is_none(), "tshark did not stay");
        Ok(Self { child, _dir: dir })
    }
}

impl Watcher for Tshark {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn settle(&self) -> Result<()> {
        // It is done when it uses no more CPU.
        let mut last = cpu_time(self.pid())?;
        for _ in 0..30 {
            sleep(Duration::from_millis(500));
            let now = cpu_time(self.pid())?;
            if now.saturating_sub(last) < Duration::from_millis(20) {
                break;
            }
            last = now;
        }
        Ok(())
    }
}

impl Drop for Tshark {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
