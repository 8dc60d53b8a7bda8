//! What the agent costs the host it watches.
//!
//! A server that accepts and closes, on a host of its own (namespace and cgroup), under as much load as a client on a
//! second host can make. Rounds with and without the agent alternate, so that a machine that gets slower or faster
//! meanwhile does not decide. The agent is the real one, kernel programs and uplink included; the federator it talks to is
//! a stand-in that acknowledges and counts, as the real one would run elsewhere.

mod sink;
mod watcher;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::figure::{Better, Figure};
use crate::host::{Host, Hosts};
use crate::machine;
use watcher::Softflowd;

pub use watcher::{Agent, Watcher, sibling};

pub use sink::sink;

/// What this bench measures.
pub const FIGURES: &[&str] = &[RATIO, CPU];
const RATIO: &str = "agent.accept_close_ratio";
const CPU: &str = "agent.cpu_us_per_connection";

/// Pairs of windows, with and without; one more runs first and is not counted.
const ROUNDS: usize = 9;
const WINDOW_S: f64 = 3.0;
/// Enough to keep the server's queue from running empty.
const THREADS: usize = 4;

/// Runs both; they share the rounds.
pub fn run(wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let hosts = Hosts::new()?;
    let server = SocketAddr::from((hosts.server.address, 8080));
    let _server = Program::start(&hosts.server, &["accept", &server.to_string()])?;
    let rounds = rounds(&hosts, server)?;
    let mut figures = Vec::new();
    if wanted.contains(&RATIO) {
        figures.push(ratio(&rounds)?);
    }
    if wanted.contains(&CPU) {
        let softflowd = softflowd(&hosts, server);
        figures.push(cpu(&rounds, softflowd)?);
    }
    Ok(figures)
}

/// One window of load.
#[derive(Clone, Copy, Debug)]
struct Window {
    connections: u64,
    per_second: f64,
    /// CPU time of what watched.
    watcher_cpu: Duration,
}

/// A window with the agent, and the one beside it without.
struct Round {
    with: Window,
    without: Window,
}

fn rounds(hosts: &Hosts, server: SocketAddr) -> Result<Vec<Round>> {
    let agent = Agent::prepare(hosts)?;
    load(hosts, server, None)?;
    let mut rounds = Vec::new();
    for number in 0..=ROUNDS {
        // Which comes first alternates too.
        let (with, without) = if number % 2 == 0 {
            let with = watched(hosts, server, &agent)?;
            (with, load(hosts, server, None)?)
        } else {
            let without = load(hosts, server, None)?;
            (watched(hosts, server, &agent)?, without)
        };
        eprintln!(
            "  round {number}: {:.0} connections/s with, {:.0} without",
            with.per_second, without.per_second
        );
        if number > 0 {
            rounds.push(Round { with, without });
        }
    }
    Ok(rounds)
}

/// A window under the agent's eyes.
fn watched(hosts: &Hosts, server: SocketAddr, agent: &Agent) -> Result<Window> {
    let running = agent.start()?;
    let window = load(hosts, server, Some(&running))?;
    running.finish(window.connections)?;
    Ok(window)
}

fn load(hosts: &Hosts, server: SocketAddr, watcher: Option<&dyn Watcher>) -> Result<Window> {
    let cpu = || {
        watcher.map_or(Ok(Duration::ZERO), |watcher| {
            machine::cpu_time(watcher.pid())
        })
    };
    let before = cpu()?;
    let seconds = WINDOW_S.to_string();
    let mut command = hosts.client.command(&std::env::current_exe()?);
    command.args(["load", &server.to_string(), &seconds, &THREADS.to_string()]);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run the load")?;
    ensure!(output.status.success(), "the load failed");
    let text = String::from_utf8(output.stdout).context("the load's answer")?;
    let mut words = text.split_whitespace();
    let mut word = || words.next().context("the load's answer is short");
    let connections: u64 = word()?.parse()?;
    let failed: u64 = word()?.parse()?;
    let elapsed: f64 = word()?.parse()?;
    ensure!(
        failed == 0 && connections > 0,
        "{connections} connections succeeded and {failed} failed"
    );
    if let Some(watcher) = watcher {
        watcher.settle()?;
    }
    Ok(Window {
        connections,
        per_second: connections as f64 / elapsed,
        watcher_cpu: cpu()?.saturating_sub(before),
    })
}

fn ratio(rounds: &[Round]) -> Result<Figure> {
    let ratios: Vec<f64> = rounds
        .iter()
        .map(|round| round.with.per_second / round.without.per_second)
        .collect();
    let of = |pick: fn(f64, f64) -> f64| ratios.iter().copied().reduce(pick).context("no rounds");
    let (worst, best) = (of(f64::min)?, of(f64::max)?);
    let rate = machine::median(
        rounds
            .iter()
            .map(|round| round.without.per_second)
            .collect(),
    )
    .context("no rounds")?;
    let value = machine::median(ratios).context("no rounds")?;
    Ok(Figure::new(RATIO, value, "ratio", Better::Higher).goal(0.97).note(format!(
        "median of {ROUNDS} alternating rounds of {WINDOW_S} s ({worst:.3} to {best:.3}); {rate:.0} connections/s without; \
         server, load and agent share {} cores",
        machine::cores()
    )))
}

fn cpu(rounds: &[Round], softflowd: Result<Window>) -> Result<Figure> {
    let per_connection =
        |window: &Window| window.watcher_cpu.as_secs_f64() * 1e6 / window.connections as f64;
    let value = machine::median(
        rounds
            .iter()
            .map(|round| per_connection(&round.with))
            .collect(),
    )
    .context("no rounds")?;
    let mut figure = Figure::new(CPU, value, "us", Better::Lower);
    let note = "CPU time of the process until all is acknowledged; what the kernel programs cost is in the ratio";
    match softflowd {
        Ok(window) => figure = figure.peer("softflowd", per_connection(&window)).note(note),
        Err(error) => figure = figure.note(format!("{note}; softflowd could not run: {error:#}")),
    }
    Ok(figure)
}

/// The peer under the same load, on the interface that the server is reached by.
fn softflowd(hosts: &Hosts, server: SocketAddr) -> Result<Window> {
    let running = Softflowd::start(hosts)?;
    load(hosts, server, Some(&running))
}

/// A subcommand of this program on a host, killed when dropped.
pub(crate) struct Program(Child);

impl Program {
    /// Starts it and waits until it says that it is ready.
    pub(crate) fn start(host: &Host, arguments: &[&str]) -> Result<Self> {
        let mut command = host.command(&std::env::current_exe()?);
        let child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start")?;
        let mut program = Self(child);
        let stdout = program.0.stdout.take().context("no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .context("cannot hear it")?;
        if line.trim() != "ready" {
            bail!("`{}` did not start", arguments.join(" "));
        }
        Ok(program)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
