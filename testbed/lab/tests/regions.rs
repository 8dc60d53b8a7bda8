//! Three regions under load while one thing after the other goes wrong: afterwards the same totals as the truth, and meanwhile
//! `weft health` says what is refused or degraded.
//!
//! Pauses and cuts take 60 s each with `WEFT_LAB_FULL=1`; without it they take 12 s.

mod common;

use std::thread::sleep;
use std::time::Duration;

use common::{assert_perfect, compare, ok, settle};
use serde_json::Value;
use weft_lab::topology::{self, Topology};
use weft_lab::truth::Connection;
use weft_lab::weft::Weft;
use weft_lab::workload::{Fetch, Servers};
use weft_lab::{Result, traffic};

/// Load before the first fault, and after the last.
const SPAN: Duration = Duration::from_secs(3);

/// Short and long connections; the slow one spans a fault.
const LOAD: &[Fetch] = &[
    Fetch::Small(10),
    Fetch::KeptAlive(5),
    Fetch::Slow(3),
    Fetch::Small(5),
];

/// How long something stands still or is cut off.
fn break_span() -> Duration {
    let full = std::env::var("WEFT_LAB_FULL").is_ok_and(|set| set == "1");
    Duration::from_secs(if full { 60 } else { 12 })
}

/// Drives the load while `faults` happen; afterwards every connection is there once, with its bytes.
fn survives(
    what: &str,
    topology: &Topology,
    faults: impl FnOnce(&Topology, &mut Weft<'_>) -> Result<()> + Send,
) {
    let servers = ok(Servers::start(topology));
    let mut weft = ok(Weft::start(topology));
    let (ledger, ()) = ok(traffic::keep_driving(topology, LOAD, || {
        sleep(SPAN);
        faults(topology, &mut weft)?;
        sleep(SPAN);
        Ok(())
    }));
    let truth = settle(topology, &servers, &ledger);
    let score = compare(&mut weft, &truth);
    let (counted, real) = (totals(&weft), sum(&truth));
    println!("{what}: {score}");
    println!(
        "  connections, bytes to servers, bytes to clients: {counted:?} reported, {real:?} really"
    );
    assert_perfect(&score);
    assert_eq!(counted, real);
}

/// What the report over all dependencies adds up to.
fn totals(weft: &Weft<'_>) -> (u64, u64, u64) {
    let report = ok(weft.json(&["report", "dependencies"]));
    let rows = report["rows"].as_array().cloned().unwrap_or_default();
    let add = |key: &str| rows.iter().filter_map(|row| row[key].as_u64()).sum();
    assert_eq!(report["truncated"], Value::Bool(false));
    (
        add("connections"),
        add("bytes_to_server"),
        add("bytes_to_client"),
    )
}

fn sum(truth: &[Connection]) -> (u64, u64, u64) {
    (
        truth.len() as u64,
        truth.iter().map(|c| c.up).sum(),
        truth.iter().map(|c| c.down).sum(),
    )
}

/// Waits for a problem, and prints how it was told.
fn told(weft: &Weft<'_>, region: usize, code: &str, about: &str) -> Result<()> {
    let words = weft.await_problem(region, code, about)?;
    println!("  told meanwhile: {code}: {words}");
    Ok(())
}

#[test]
fn stopped_and_cut_off() {
    let topology = ok(topology::three());
    survives(
        "three regions, a federator and an agent stopped, each link cut",
        &topology,
        |topology, weft| {
            let stopped = weft.federator_name(1).to_owned();
            weft.pause_federator(1)?;
            told(weft, 0, "unreached", &stopped)?;
            sleep(break_span());
            weft.resume_federator(1)?;
            weft.await_none_of(0, &["unreached", "peer-away"])?;

            let host = topology.regions[2].nodes[0].host.clone();
            weft.pause_agent(&host)?;
            told(weft, 0, "silent", host.name())?;
            sleep(break_span());
            weft.resume_agent(&host)?;
            weft.await_none_of(0, &["silent"])?;

            for (one, other) in [(0, 1), (1, 2), (2, 0)] {
                topology.set_link_cut(Some((one, other)))?;
                let missed = weft.federator_name(other).to_owned();
                told(weft, one, "unreached", &missed)?;
                sleep(break_span());
                topology.set_link_cut(None)?;
                weft.await_none_of(one, &["unreached", "peer-away"])?;
            }
            Ok(())
        },
    );
}

#[test]
fn certificates_end_and_the_ca_is_another() {
    let topology = ok(topology::three());
    survives(
        "three regions, an agent's certificate ended, another CA",
        &topology,
        |topology, weft| {
            let host = topology.regions[0].nodes[0].host.clone();
            weft.expire_agent(&host)?;
            weft.kill_agent(&host)?;
            weft.start_agent(&host)?;
            told(weft, 0, "silent", host.name())?;
            told(weft, 0, "refused", "the certificate had ended")?;
            weft.renew_agent(&host)?;
            weft.await_none_of(0, &["silent"])?;

            let (region, agent) = (2, topology.regions[2].nodes[0].host.clone());
            weft.rotate_ca(|step| {
                sleep(SPAN);
                weft.await_none_of(0, &["silent", "unreached", "peer-away"])?;
                println!("  {step}: nobody is away");
                Ok(())
            })?;
            // What begins anew has the new one.
            weft.kill_federator(region)?;
            weft.start_federator(region)?;
            weft.kill_agent(&agent)?;
            weft.start_agent(&agent)?;
            weft.await_connected()
        },
    );
}

#[test]
fn federators_replaced() {
    let topology = ok(topology::three());
    survives(
        "three regions, each federator ended and started again",
        &topology,
        |topology, weft| {
            for region in 0..topology.regions.len() {
                weft.replace_federator(region)?;
                weft.await_connected()?;
            }
            Ok(())
        },
    );
}
