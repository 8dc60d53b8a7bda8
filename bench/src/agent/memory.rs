//! What the agent takes of memory while very many connections are open.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Program;
use super::watcher::{Agent, Watcher};
use crate::figure::{Better, Figure};
use crate::host::{Host, Hosts};
use crate::machine;

/// What is measured here.
pub const FIGURES: &[&str] = &[RESIDENT];
pub const RESIDENT: &str = "agent.resident_bytes";

/// Connections that are open.
const OPEN: usize = 100_000;
/// What they take at most.
const GOAL: f64 = (30 << 20) as f64;
/// Connections of a process and its port, at most: it has only so many descriptors, and so many ports to call from.
const MOST_EACH: usize = 50_000;
/// Descriptors that a process needs beside.
const SPARE_DESCRIPTORS: usize = 64;
/// Where the first server listens.
const FIRST_PORT: u16 = 8080;
/// Longest wait for the agent to report all.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the agent goes about its work with all of them open: longer than the interval of updates.
const STAY: Duration = Duration::from_secs(12);

/// Measures it.
pub fn run(_wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let hosts = Hosts::new()?;
    for host in [&hosts.server, &hosts.client] {
        allow_many(host)?;
    }
    let agent = Agent::prepare(&hosts)?;
    let running = agent.start()?;
    let at_start = machine::resident_bytes_of(running.pid())?;
    let each = machine::descriptors()?
        .saturating_sub(SPARE_DESCRIPTORS)
        .min(MOST_EACH);
    ensure!(each > 0, "no descriptors left");
    let mut programs = Vec::new();
    for (number, first) in (0..OPEN).step_by(each).enumerate() {
        let port = FIRST_PORT + u16::try_from(number).context("too few descriptors a process")?;
        let server = SocketAddr::from((hosts.server.address, port)).to_string();
        let count = each.min(OPEN - first).to_string();
        programs.push(Program::start(&hosts.server, &["hold", &server])?);
        programs.push(Program::start(&hosts.client, &["open", &server, &count])?);
    }
    let start = Instant::now();
    while agent.reported() < OPEN as u64 {
        ensure!(
            start.elapsed() < PATIENCE,
            "the agent reported {} of {OPEN} connections",
            agent.reported()
        );
        sleep(Duration::from_millis(100));
    }
    running.settle()?;
    let mut most = 0;
    let start = Instant::now();
    while start.elapsed() < STAY {
        most = most.max(machine::resident_bytes_of(running.pid())?);
        sleep(Duration::from_millis(20));
    }
    if let Some(path) = std::env::var_os("WEFT_BENCH_SMAPS") {
        let smaps = fs::read(format!("/proc/{}/smaps", running.pid()))?;
        fs::write(Path::new(&path), smaps)?;
    }
    let peak = machine::peak_resident_bytes_of(running.pid())?;
    let note = format!(
        "the most of {} s with {OPEN} connections open; {:.1} MiB before they came, {:.1} MiB at the most while they came; maps \
         in the kernel not included (weft-agent doctor says what they take)",
        STAY.as_secs(),
        at_start as f64 / f64::from(1 << 20),
        peak as f64 / f64::from(1 << 20),
    );
    Ok(vec![
        Figure::new(RESIDENT, most as f64, "bytes", Better::Lower)
            .goal(GOAL)
            .note(note),
    ])
}

/// Lets a host's programs call from almost every port.
fn allow_many(host: &Host) -> Result<()> {
    let mut command: Command = host.command(Path::new("sysctl"));
    command.args(["-qw", "net.ipv4.ip_local_port_range=1024 65535"]);
    let status = command.status().context("cannot run sysctl")?;
    ensure!(status.success(), "cannot widen the range of ports");
    Ok(())
}
