//! The join, on one core.
//!
//! A steady state at N open halves: first N clients' halves that nothing answers yet, then for each new client's half
//! the server's half of the oldest open one (in shuffled order within a window). Every half is one random access to a
//! table that is far larger than any cache. Time in the stitcher runs so that each half waits 1.6 s for its partner: at
//! 16 million open that is the rate of the goal.
//! Time measured is CPU time. Measured after the timers of matched halves have begun to run out, so that their cost is in the figure.

mod peer;

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_stitching::stitcher::Key;
use weft_stitching::{Candidate, Config, HalfView, Halves, Handle, Output, Role, Stitcher};

use crate::figure::{Better, Figure};
use crate::machine;

/// What this bench measures.
pub const FIGURES: &[&str] = &[RATE_1M, RATE_4M, RATE_16M, BYTES];
const RATE_1M: &str = "stitch.halves_per_second.1m";
const RATE_4M: &str = "stitch.halves_per_second.4m";
const RATE_16M: &str = "stitch.halves_per_second.16m";
const BYTES: &str = "stitch.bytes_per_open_half";

const SIZES: [(&str, usize); 3] = [(RATE_1M, 1 << 20), (RATE_4M, 1 << 22), (RATE_16M, 1 << 24)];
const GOAL_RATE: f64 = 20e6;
const GOAL_BYTES: f64 = 48.0;

/// Halves handed over at a time: what a batch or two from agents holds.
const BATCH: usize = 4096;
/// Servers' halves come in the order of the clients' but for a shuffle within so many.
const SHUFFLE: usize = 1 << 16;
/// How long a half waits for its partner in the stitcher's time.
const WAIT_US: usize = 1_600_000;
/// Longer than that, so none is offered elsewhere.
const HOLD_US: i64 = 2_000_000;
/// How often the driver lets the stitcher's timers run.
const ADVANCE_US: i64 = 10_000;
/// Small tables turn over often enough to time it.
const MEASURED_AT_LEAST: usize = 1 << 24;
/// Runs of the whole; the fastest counts, the others had company.
const RUNS: usize = 3;

/// Runs on one core.
pub fn run(wanted: &[&'static str]) -> Result<Vec<Figure>> {
    machine::pin(machine::cores() - 1)?;
    let figures = measure(wanted);
    machine::unpin()?;
    figures
}

fn measure(wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut bytes = None;
    for (name, open) in SIZES {
        let for_bytes = name == RATE_16M && wanted.contains(&BYTES);
        if !wanted.contains(&name) && !for_bytes {
            continue;
        }
        let runs = if wanted.contains(&name) { RUNS } else { 1 };
        let results = (0..runs)
            .map(|_| steady(open))
            .collect::<Result<Vec<_>>>()?;
        let best = results
            .iter()
            .copied()
            .max_by(|a, b| a.rate.total_cmp(&b.rate))
            .context("no runs")?;
        bytes = Some(best);
        if wanted.contains(&name) {
            let peer = peer::hash_join(open)?;
            let figure = Figure::new(name, best.rate, "halves/s", Better::Higher).goal(GOAL_RATE);
            figures.push(figure.peer("DuckDB hash join, 1 thread, same rows", peer).note(format!(
                "CPU time of one core, {open} open throughout, best of {RUNS} runs; filling the empty table {:.1} M/s",
                best.fill_rate / 1e6
            )));
        }
    }
    if let (Some(result), true) = (bytes, wanted.contains(&BYTES)) {
        let figure =
            Figure::new(BYTES, result.bytes_per_half, "bytes", Better::Lower).goal(GOAL_BYTES);
        figures.push(figure.note(format!(
            "all memory the stitcher asked for, timers included, at {} open; the process grew by {:.1} a half",
            1 << 24,
            result.resident_per_half
        )));
    }
    Ok(figures)
}

/// What a run gave.
#[derive(Clone, Copy)]
struct Steady {
    rate: f64,
    fill_rate: f64,
    bytes_per_half: f64,
    resident_per_half: f64,
}

/// The driver: batches in, decisions out, time now and then.
struct Driver {
    stitcher: Stitcher,
    open: usize,
    halves: usize,
    advanced_at: i64,
    busy: Duration,
    stitched: u64,
}

impl Driver {
    fn give(&mut self, batch: &[Candidate]) -> Result<()> {
        // In the wait of one half, all that are open get their partner, and as many come.
        let now = (self.halves * WAIT_US / (2 * self.open)) as i64;
        let start = machine::own_cpu_time()?;
        self.stitcher.insert(now, batch);
        if now >= self.advanced_at + ADVANCE_US {
            self.stitcher.advance(now, &NoFacts);
            self.advanced_at = now;
        }
        while let Some(output) = self.stitcher.poll() {
            if let Output::Stitched { client, server, .. } = black_box(output) {
                self.stitched += u64::from(client.0 == server.0 ^ SERVER_BIT);
            }
        }
        self.busy += machine::own_cpu_time()?.saturating_sub(start);
        self.halves += batch.len();
        Ok(())
    }
}

fn steady(open: usize) -> Result<Steady> {
    let resident = machine::resident_bytes()?;
    let config = Config {
        hold_us: HOLD_US,
        max_open: open + SHUFFLE,
        seed: 7,
        ..Config::default()
    };
    let stitcher = Stitcher::new(config);
    let mut driver = Driver {
        stitcher,
        open,
        halves: 0,
        advanced_at: 0,
        busy: Duration::ZERO,
        stitched: 0,
    };
    let mut batch = Vec::with_capacity(BATCH);
    for first in (0..open).step_by(BATCH) {
        batch.clear();
        batch.extend((first..first + BATCH).map(client));
        driver.give(&batch)?;
    }
    let fill_rate = open as f64 / driver.busy.as_secs_f64();
    // Two holds of the stitcher's time, so that timers of matched halves run out throughout what is measured.
    let warm = 2 * open * (2 * HOLD_US as usize) / WAIT_US;
    let measured = (2 * open).max(MEASURED_AT_LEAST);
    let mut pairs = turnover(open, &mut driver, 0, warm / 2)?;
    driver.busy = Duration::ZERO;
    pairs = turnover(open, &mut driver, pairs, measured / 2)?;
    let halves = measured as f64;
    let counters = driver.stitcher.counters();
    ensure!(
        driver.stitched == pairs as u64,
        "{} of {pairs} pairs were made: {counters:?}",
        driver.stitched
    );
    ensure!(
        counters.expired == 0 && counters.full == 0,
        "halves were lost: {counters:?}"
    );
    ensure!(counters.offered == 0, "halves were offered: {counters:?}");
    let waiting = driver.stitcher.open() as f64;
    Ok(Steady {
        rate: halves / driver.busy.as_secs_f64(),
        fill_rate,
        bytes_per_half: driver.stitcher.allocated_bytes() as f64 / waiting,
        resident_per_half: machine::resident_bytes()?.saturating_sub(resident) as f64 / waiting,
    })
}

/// From the pair numbered `from` on, `count` servers' halves and as many new clients'. Returns the next number.
fn turnover(open: usize, driver: &mut Driver, from: usize, count: usize) -> Result<usize> {
    let mut batch = Vec::with_capacity(BATCH);
    let to = (from + count).next_multiple_of(SHUFFLE);
    for first in (from..to).step_by(BATCH / 2) {
        batch.clear();
        for pair in first..first + BATCH / 2 {
            batch.push(server(shuffled(pair)));
            batch.push(client(open + pair));
        }
        driver.give(&batch)?;
    }
    Ok(to)
}

/// A number's place within its window, far from its neighbours'.
fn shuffled(number: usize) -> usize {
    let window = number & !(SHUFFLE - 1);
    window | (number.wrapping_mul(40_503) & (SHUFFLE - 1))
}

const SERVER_BIT: u32 = 1 << 31;

fn client(pair: usize) -> Candidate {
    Candidate {
        handle: Handle(pair as u32),
        role: Role::Client,
        key: key(pair),
    }
}

fn server(pair: usize) -> Candidate {
    Candidate {
        handle: Handle(pair as u32 | SERVER_BIT),
        role: Role::Server,
        key: key(pair),
    }
}

fn key(pair: usize) -> Key {
    let word = mix(pair as u64);
    Key::Isn {
        client: (word >> 32) as u32,
        server: word as u32,
    }
}

/// A bijection (the finaliser of SplitMix64), so that no two pairs share a key.
fn mix(number: u64) -> u64 {
    let word = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Nothing is asked about halves that match by their whole fingerprint.
struct NoFacts;

impl Halves for NoFacts {
    fn view(&self, _: Handle) -> Option<HalfView> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shuffle_loses_nothing() {
        let mut seen: Vec<usize> = (SHUFFLE..2 * SHUFFLE).map(shuffled).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(SHUFFLE..2 * SHUFFLE));
    }
}
