//! What one run of each kernel program takes, by the kernel's own statistics.
//!
//! The programs of a host whose server accepts and closes, then of one that answers datagrams: so the programs that see every
//! packet are shown twice, since TCP must leave them at once. The statistics take two readings of a clock a run, which are in
//! the figures.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

use super::Program;
use super::rounds::Load;
use super::watcher::{Agent, Watcher};
use crate::figure::{Better, Figure};
use crate::host::Hosts;
use crate::machine;
use crate::traffic::DATAGRAMS_OF_A_SOCKET;

/// What is measured here.
pub const FIGURES: &[&str] = &[
    OPS,
    EGRESS[0],
    INGRESS[0],
    EGRESS[1],
    INGRESS[1],
    UDP_CREATE,
    UDP_RELEASE,
];
pub const OPS: &str = "agent.hook_ns.weft_ops";
/// With TCP, and with UDP.
pub const EGRESS: [&str; 2] = [
    "agent.hook_ns.weft_egress.tcp",
    "agent.hook_ns.weft_egress.udp",
];
pub const INGRESS: [&str; 2] = [
    "agent.hook_ns.weft_ingress.tcp",
    "agent.hook_ns.weft_ingress.udp",
];
pub const UDP_CREATE: &str = "agent.hook_ns.weft_udp_create";
pub const UDP_RELEASE: &str = "agent.hook_ns.weft_udp_release";

const WINDOW_S: f64 = 4.0;
const TCP: u16 = 8080;
const UDP: u16 = 8082;
/// Before what counts.
const WARM_UP_S: f64 = 0.5;
/// The kernel cuts a program's name to this.
const KERNEL_NAME_BYTES: usize = 15;

/// Measures all; they share the windows.
pub fn run(wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let mut hosts = Hosts::new()?;
    let core = machine::cores() - 1;
    hosts.server.core = Some(core);
    hosts.client.core = Some(core);
    let tcp = SocketAddr::from((hosts.server.address, TCP));
    // On the client's host: the watched end is the one that makes the sockets.
    let udp = SocketAddr::from((hosts.client.address, UDP));
    let _servers = [
        Program::start(&hosts.server, &["accept", &tcp.to_string()])?,
        Program::start(&hosts.client, &["echo", &udp.to_string()])?,
    ];
    let mut load = Load::start(&hosts)?;
    let agent = Agent::prepare(&hosts)?;
    let others = ids()?;
    let running = agent.start()?;
    let _statistics = enable_stats(Stats::RunTime).context("no statistics of programs (5.8)")?;
    load.connections(tcp, WARM_UP_S)?;
    let before = runs(&others)?;
    let connections = load.connections(tcp, WINDOW_S)?;
    let by_tcp = since(&before, &runs(&others)?);
    running.settle()?;
    let before = runs(&others)?;
    let answers = datagrams(&hosts, udp)?;
    let by_udp = since(&before, &runs(&others)?);
    drop(running);
    let of_connections = format!("accept and close, {connections} connections");
    let of_datagrams =
        format!("an echo asked {answers} times, each socket {DATAGRAMS_OF_A_SOCKET} times");
    let figure = |name: &'static str, runs: &Runs, of: &str, per: u64| -> Result<Figure> {
        let program = name.split('.').nth(2).context("a program's name")?;
        let run = runs.get(program).copied().unwrap_or_default();
        ensure!(run.count > 0, "{program} did not run");
        let each = run.time_ns as f64 / run.count as f64;
        let note = format!(
            "{of}: {:.1} runs and {:.0} ns for each",
            run.count as f64 / per as f64,
            run.time_ns as f64 / per as f64
        );
        Ok(Figure::new(name, each, "ns", Better::Lower).note(note))
    };
    let figures = FIGURES.iter().filter(|name| wanted.contains(name));
    let figures = figures.map(|name| {
        let made = if *name == OPS || name.ends_with(".tcp") {
            figure(name, &by_tcp, &of_connections, connections)
        } else {
            figure(name, &by_udp, &of_datagrams, answers)
        };
        made.unwrap_or_else(|error| Figure::error(name, &error))
    });
    Ok(figures.collect())
}

/// Asks an echo from the watched host.
fn datagrams(hosts: &Hosts, echo: SocketAddr) -> Result<u64> {
    let mut command = hosts.server.command(&std::env::current_exe()?);
    command.args(["datagrams", &echo.to_string(), &WINDOW_S.to_string()]);
    let output = command.output().context("cannot send datagrams")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let answers = text.trim().parse().context("the answers' number")?;
    ensure!(answers > 0, "no datagram was answered");
    Ok(answers)
}

/// How often a program ran, and how long.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    count: u64,
    time_ns: u64,
}

type Runs = BTreeMap<String, Run>;

/// Programs that are loaded.
fn ids() -> Result<HashSet<u32>> {
    loaded_programs()
        .map(|program| Ok(program.context("cannot list programs")?.id()))
        .collect()
}

/// Of all programs but these.
fn runs(others: &HashSet<u32>) -> Result<Runs> {
    let mut runs = Runs::new();
    for program in loaded_programs() {
        let program = program.context("cannot list programs")?;
        let Some(name) = program
            .name_as_str()
            .filter(|_| !others.contains(&program.id()))
        else {
            continue;
        };
        // Unloaded meanwhile: not the agent's.
        let Ok(fd) = program.fd() else { continue };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
        let field = |name: &str| -> Result<u64> {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            let number = line.with_context(|| format!("no {name} of a program (kernel 5.12)"))?;
            Ok(number.trim().parse()?)
        };
        let run = runs.entry(whole_name(name)).or_default();
        run.count += field("run_cnt:")?;
        run.time_ns += field("run_time_ns:")?;
    }
    Ok(runs)
}

/// A program's name from what the kernel kept of it.
fn whole_name(cut: &str) -> String {
    let mut names = FIGURES.iter().filter_map(|name| name.split('.').nth(2));
    names
        .find(|name| name.starts_with(cut) && cut.len() == KERNEL_NAME_BYTES)
        .unwrap_or(cut)
        .to_owned()
}

fn since(before: &Runs, after: &Runs) -> Runs {
    let mut since = after.clone();
    for (name, run) in &mut since {
        let Run { count, time_ns } = before.get(name).copied().unwrap_or_default();
        run.count = run.count.saturating_sub(count);
        run.time_ns = run.time_ns.saturating_sub(time_ns);
    }
    since
}
