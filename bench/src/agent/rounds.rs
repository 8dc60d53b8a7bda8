//! How many connections a server accepts and closes with the agent, over how many without.
//!
//! Two such servers, one in the cgroup that the agent watches and one beside it. The load goes to one and to the other in short
//! turns; while it goes to the one that is not watched, the agent is stopped (SIGSTOP), so that it takes nothing of that turn,
//! and what it left undone it does in its own. Two turns beside each other are a pair: a machine that gets slower or faster takes
//! both along, and the median of many pairs' ratios has an interval that says how far it can be trusted. Load, both servers and
//! the agent have one core together: whatever any of them takes is missing for connections, and no scheduler's luck is in it.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Program;
use super::watcher::{Agent, Softflowd, Watcher};
use crate::figure::{Better, Figure};
use crate::host::Hosts;
use crate::machine;

/// What is measured here.
pub const FIGURES: &[&str] = &[RATIO, HOOKS, CPU, CPU_PER_MILLION];
pub const RATIO: &str = "agent.accept_close_ratio";
pub const HOOKS: &str = "agent.accept_close_ratio.hooks";
pub const CPU: &str = "agent.cpu_us_per_connection";
pub const CPU_PER_MILLION: &str = "agent.cpu_s_per_million_connections";

/// Pairs of turns that count, and those before them that warm up.
const PAIRS: usize = 60;
const WARM_UP: usize = 4;
const TURN_S: f64 = 0.5;
/// Pairs that show how equal both servers are while nobody watches.
const EQUAL_PAIRS: usize = 12;
/// Pairs without the agent's process, and its time to read what they left.
const HOOK_PAIRS: usize = 24;
const CATCH_UP: Duration = Duration::from_millis(300);
/// The peer's window.
const PEER_S: f64 = 5.0;
/// Enough to keep the server's queue from running empty.
const THREADS: usize = 4;
/// Where the servers listen.
const WATCHED: u16 = 8080;
const UNWATCHED: u16 = 8081;

/// Measures all; they share the turns.
pub fn run(wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let mut hosts = Hosts::new()?;
    let core = machine::cores() - 1;
    hosts.server.core = Some(core);
    hosts.client.core = Some(core);
    let beside = hosts.beside_server("unwatched")?;
    let [watched, unwatched] =
        [WATCHED, UNWATCHED].map(|port| SocketAddr::from((hosts.server.address, port)));
    let _servers = [
        Program::start(&hosts.server, &["accept", &watched.to_string()])?,
        Program::start(&beside, &["accept", &unwatched.to_string()])?,
    ];
    let mut load = Load::start(&hosts)?;
    let equal = pairs(EQUAL_PAIRS, |pair| {
        both(pair, |mine| {
            load.turn(if mine { watched } else { unwatched }, TURN_S)
        })
    })?;
    let agent = Agent::prepare(&hosts)?;
    let running = agent.start()?;
    let before = machine::cpu_time(running.pid())?;
    let mut connections = 0;
    let measured = pairs(PAIRS, |pair| {
        both(pair, |mine| {
            if !mine {
                return load.turn(unwatched, TURN_S);
            }
            signal(running.pid(), Signal::SIGCONT)?;
            let turn = load.turn(watched, TURN_S)?;
            signal(running.pid(), Signal::SIGSTOP)?;
            connections += turn.connections;
            Ok(turn)
        })
    })?;
    signal(running.pid(), Signal::SIGCONT)?;
    running.settle()?;
    let cpu = machine::cpu_time(running.pid())?.saturating_sub(before);
    let seen = connections;
    let hooked = pairs(HOOK_PAIRS, |pair| {
        signal(running.pid(), Signal::SIGSTOP)?;
        let pair = both(pair, |mine| {
            let turn = load.turn(if mine { watched } else { unwatched }, TURN_S)?;
            connections += if mine { turn.connections } else { 0 };
            Ok(turn)
        })?;
        // What the ring holds now is read outside of any turn.
        signal(running.pid(), Signal::SIGCONT)?;
        sleep(CATCH_UP);
        Ok(pair)
    })?;
    running.settle()?;
    running.finish(connections)?;
    let mut figures = Vec::new();
    if wanted.contains(&RATIO) {
        figures.push(ratio(&measured, &equal)?);
    }
    if wanted.contains(&HOOKS) {
        figures.push(hooks(&hooked)?);
    }
    let per_connection = cpu.as_secs_f64() * 1e6 / seen as f64;
    let note = format!(
        "CPU time of the process until all of {seen} connections is acknowledged; what the kernel programs take is in the \
         ratio, and in agent.hook_ns"
    );
    if wanted.contains(&CPU) {
        let figure = Figure::new(CPU, per_connection, "us", Better::Lower);
        figures.push(match softflowd(&hosts, &mut load, watched) {
            Ok(peer) => figure.peer("softflowd", peer).note(note.clone()),
            Err(error) => figure.note(format!("{note}; softflowd could not run: {error:#}")),
        });
    }
    if wanted.contains(&CPU_PER_MILLION) {
        let figure = Figure::new(CPU_PER_MILLION, per_connection, "s", Better::Lower);
        figures.push(figure.note(note));
    }
    Ok(figures)
}

/// One turn of load.
#[derive(Clone, Copy, Debug)]
struct Turn {
    connections: u64,
    per_second: f64,
}

/// A watched turn and the one beside it.
struct Pair {
    with: Turn,
    without: Turn,
}

impl Pair {
    fn ratio(&self) -> f64 {
        self.with.per_second / self.without.per_second
    }
}

/// So many pairs after the warm-up.
fn pairs(count: usize, mut pair: impl FnMut(usize) -> Result<Pair>) -> Result<Vec<Pair>> {
    let mut all = (0..WARM_UP + count)
        .map(&mut pair)
        .collect::<Result<Vec<_>>>()?;
    Ok(all.split_off(WARM_UP))
}

/// Which turn comes first alternates.
fn both(number: usize, mut turn: impl FnMut(bool) -> Result<Turn>) -> Result<Pair> {
    let first = number.is_multiple_of(2);
    let (a, b) = (turn(first)?, turn(!first)?);
    let (with, without) = if first { (a, b) } else { (b, a) };
    Ok(Pair { with, without })
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid).context("a pid")?);
    kill(pid, signal).context("cannot stop or continue the agent")
}

fn ratio(pairs: &[Pair], equal: &[Pair]) -> Result<Figure> {
    let of = |pairs: &[Pair]| pairs.iter().map(Pair::ratio).collect::<Vec<_>>();
    let ratios = machine::Spread::of(of(pairs)).context("no pairs")?;
    let equal = machine::Spread::of(of(equal)).context("no pairs")?;
    let without = pairs.iter().map(|pair| pair.without.per_second).collect();
    let rate = machine::median(without).context("no pairs")?;
    Ok(Figure::new(RATIO, ratios.median, "ratio", Better::Higher)
        .goal(0.97)
        .note(format!(
            "median of {PAIRS} pairs of {TURN_S} s, 95 % interval {:.4} to {:.4}; both servers unwatched: {:.4} ({:.4} to {:.4}); \
             {rate:.0} connections/s without; servers, load and agent share one core",
            ratios.low, ratios.high, equal.median, equal.low, equal.high
        )))
}

/// What the kernel programs alone leave.
fn hooks(pairs: &[Pair]) -> Result<Figure> {
    let ratios = pairs.iter().map(Pair::ratio).collect();
    let ratios = machine::Spread::of(ratios).context("no pairs")?;
    let note = format!(
        "the part of it that the kernel programs take: median of {HOOK_PAIRS} pairs of {TURN_S} s in which the agent was stopped, 95 % \
         interval {:.4} to {:.4}",
        ratios.low, ratios.high
    );
    Ok(Figure::new(HOOKS, ratios.median, "ratio", Better::Higher).note(note))
}

/// The peer under the same load, on the interface that the server is reached by: CPU microseconds a connection.
fn softflowd(hosts: &Hosts, load: &mut Load, server: SocketAddr) -> Result<f64> {
    let running = Softflowd::start(hosts)?;
    let before = machine::cpu_time(running.pid())?;
    let turn = load.turn(server, PEER_S)?;
    running.settle()?;
    let cpu = machine::cpu_time(running.pid())?.saturating_sub(before);
    Ok(cpu.as_secs_f64() * 1e6 / turn.connections as f64)
}

/// The program that makes the load, one turn after the other.
pub struct Load {
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Load {
    /// On the client's host.
    pub fn start(hosts: &Hosts) -> Result<Self> {
        let mut command = hosts.client.command(&std::env::current_exe()?);
        command
            .args(["load", &THREADS.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot run the load")?;
        let say = child.stdin.take().context("no stdin")?;
        let hear = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self { child, say, hear })
    }

    /// Connections one after the other for so many seconds.
    fn turn(&mut self, server: SocketAddr, seconds: f64) -> Result<Turn> {
        writeln!(self.say, "{server} {seconds}").context("the load has ended")?;
        let mut answer = String::new();
        self.hear.read_line(&mut answer)?;
        let mut words = answer.split_whitespace();
        let mut word = || words.next().context("the load's answer is short");
        let connections: u64 = word()?.parse()?;
        let failed: u64 = word()?.parse()?;
        let elapsed: f64 = word()?.parse()?;
        ensure!(
            failed == 0 && connections > 0,
            "{connections} connections succeeded and {failed} failed"
        );
        Ok(Turn {
            connections,
            per_second: connections as f64 / elapsed,
        })
    }

    /// How many connections there were.
    pub fn connections(&mut self, server: SocketAddr, seconds: f64) -> Result<u64> {
        Ok(self.turn(server, seconds)?.connections)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
