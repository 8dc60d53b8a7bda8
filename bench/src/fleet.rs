//! Ten thousand agents on one federator: what each takes of its memory, what they cost while nothing happens and under
//! a modest load, and how long it takes until all are back after it was killed.
//!
//! The federator is the real program on one core. The agents are one process on the other: each has a certificate and a session of
//! its own, says how it is as often as an agent does, and dials again when an agent would; they share a few UDP sockets.

mod agents;
mod target;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::time::sleep;

use crate::figure::{Better, Figure};
use crate::machine;
use agents::Fleet;
use target::Target;

/// What this bench measures.
pub const FIGURES: &[&str] = &[BYTES, IDLE, LOADED, STORM];
const BYTES: &str = "fleet.bytes_per_agent";
const IDLE: &str = "fleet.idle_cpu_percent";
const LOADED: &str = "fleet.loaded_cpu_percent";
const STORM: &str = "fleet.storm_s";
const STORM_GOAL_S: f64 = 30.0;

/// Agents.
const AGENTS: usize = 10_000;
/// Halves in a batch of the modest load.
const ROWS: usize = 32;
/// Every agent sends one so often.
const BATCH_EVERY: Duration = Duration::from_secs(10);
/// Batches that each agent has ready: for the measured time and what comes before it.
const BATCHES: usize = 3;
/// The federator's core; the agents have the last one.
const CORE: usize = 0;
/// Between a change and the measurement of what it led to.
const SETTLE: Duration = Duration::from_secs(4);
/// CPU is measured over so long.
const WINDOW: Duration = Duration::from_secs(20);
/// The agents' connecting is given up.
const LIMIT: Duration = Duration::from_secs(60);

/// One run gives all figures.
pub fn run(wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let agents = std::env::var("WEFT_BENCH_AGENTS").map_or(Ok(AGENTS), |count| count.parse())?;
    let mut target = Target::prepare(CORE)?;
    let folder = target.folder().to_path_buf();
    eprintln!("{agents} certificates");
    let identities = agents::issue(&folder, agents)?;
    machine::pin(machine::cores() - 1)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    let measured = runtime.block_on(measure(&mut target, identities));
    machine::unpin()?;
    let figures = measured.map_err(|error| error.context(target.last_words()))?;
    Ok(figures
        .into_iter()
        .filter(|figure| wanted.contains(&figure.name.as_str()))
        .collect())
}

/// What connecting took.
struct Storm {
    wall: Duration,
    cpu: Duration,
    attempts: usize,
}

async fn measure(target: &mut Target, identities: Vec<PathBuf>) -> Result<Vec<Figure>> {
    let agents = identities.len();
    let fleet = Fleet::new(target.address(), &identities, BATCHES, ROWS, BATCH_EVERY)?;
    target.start()?;
    target.up(&fleet).await?;
    let empty = target.resident()?;
    fleet.begin();
    let first = connected(target, &fleet, agents).await?;
    eprintln!("all connected after {:.1} s", first.wall.as_secs_f64());
    sleep(SETTLE).await;
    let idle = cpu_percent(target).await?;
    let full = target.resident()?;
    fleet.load(true);
    sleep(SETTLE).await;
    let sent = fleet.acknowledged();
    let loaded = cpu_percent(target).await?;
    let batches = (fleet.acknowledged() - sent) as f64 / WINDOW.as_secs_f64();
    fleet.load(false);
    let loaded_resident = target.resident()?;
    ensure!(
        fleet.connected() == agents,
        "only {} of {agents} agents stayed connected: {}",
        fleet.connected(),
        fleet.why()
    );
    let before = fleet.attempts();
    target.kill()?;
    fleet.forget();
    target.start()?;
    let mut storm = connected(target, &fleet, agents).await?;
    storm.attempts -= before;
    Ok(figures(
        agents,
        (empty, full, loaded_resident),
        (idle, loaded, batches),
        (&first, &storm),
    ))
}

fn figures(
    agents: usize,
    (empty, full, loaded_resident): (u64, u64, u64),
    (idle, loaded, batches): (f64, f64, f64),
    (first, storm): (&Storm, &Storm),
) -> Vec<Figure> {
    let each = |resident: u64| resident.saturating_sub(empty) as f64 / agents as f64;
    vec![
        Figure::new(BYTES, each(full), "bytes", Better::Lower).note(format!(
            "{agents} agents with a session each, resident {:.0} MB with them and {:.0} MB without; {:.0} bytes each after the load",
            full as f64 / 1e6,
            empty as f64 / 1e6,
            each(loaded_resident)
        )),
        Figure::new(IDLE, idle, "% of a core", Better::Lower).note(format!(
            "the federator's CPU while {agents} agents have nothing to report but how they are"
        )),
        Figure::new(LOADED, loaded, "% of a core", Better::Lower).note(format!(
            "with {batches:.0} batches a second of {ROWS} halves, one of each agent in {} s, acknowledged",
            BATCH_EVERY.as_secs()
        )),
        Figure::new(STORM, storm.wall.as_secs_f64(), "s", Better::Lower)
            .goal(STORM_GOAL_S)
            .note(format!(
                "from kill -9 of the federator until all {agents} agents are welcomed again: {} attempts, the federator used {:.1} s of CPU; \
                 when all dialled a new one at once {:.1} s, {} attempts, {:.1} s of CPU",
                storm.attempts,
                storm.cpu.as_secs_f64(),
                first.wall.as_secs_f64(),
                first.attempts,
                first.cpu.as_secs_f64()
            )),
    ]
}

/// Waits until all agents have a session with the program that runs now.
async fn connected(target: &Target, fleet: &Arc<Fleet>, agents: usize) -> Result<Storm> {
    let (start, cpu) = (Instant::now(), target.cpu()?);
    while fleet.connected() < agents {
        ensure!(
            start.elapsed() < LIMIT,
            "only {} of {agents} agents connected within {LIMIT:?}: {}",
            fleet.connected(),
            fleet.why()
        );
        sleep(Duration::from_millis(10)).await;
    }
    Ok(Storm {
        wall: start.elapsed(),
        cpu: target.cpu()?.saturating_sub(cpu),
        attempts: fleet.attempts(),
    })
}

async fn cpu_percent(target: &Target) -> Result<f64> {
    let (start, cpu) = (Instant::now(), target.cpu()?);
    sleep(WINDOW).await;
    let used = target.cpu()?.saturating_sub(cpu);
    Ok(used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
}
