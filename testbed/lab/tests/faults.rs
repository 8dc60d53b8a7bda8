//! Killed agents, killed federators and a cut between the regions, each under load: afterwards the same totals as the truth.

mod common;

use std::thread::sleep;
use std::time::Duration;

use common::{assert_perfect, compare, ok, settle};
use serde_json::Value;
use weft_lab::topology::{self, Topology};
use weft_lab::truth::Connection;
use weft_lab::udp::{EchoServers, Speaker, Talk};
use weft_lab::weft::Weft;
use weft_lab::workload::{Fetch, Servers};
use weft_lab::{Result, answer, traffic, wait};

/// Load before the fault, while something is away, and after it.
const SPAN: Duration = Duration::from_secs(4);
/// How long the regions cannot reach each other.
const CUT: Duration = Duration::from_secs(30);

/// Short and long connections; the slow one spans a fault.
const LOAD: &[Fetch] = &[
    Fetch::Small(25),
    Fetch::KeptAlive(5),
    Fetch::Large(2),
    Fetch::Upload(1),
    Fetch::Slow(3),
    Fetch::Small(10),
];

fn survives(what: &str, fault: impl FnOnce(&Topology, &mut Weft<'_>) -> Result<()> + Send) {
    let topology = ok(topology::demo());
    let servers = ok(Servers::start(&topology));
    let mut weft = ok(Weft::start(&topology));
    let (ledger, ()) = ok(traffic::keep_driving(&topology, LOAD, || {
        sleep(SPAN);
        fault(&topology, &mut weft)?;
        sleep(SPAN);
        Ok(())
    }));
    let truth = settle(&topology, &servers, &ledger);
    let score = compare(&mut weft, &truth);
    let (counted, real) = (totals(&weft), sum(&truth));
    println!("{what}: {score}");
    println!(
        "  connections, bytes to servers, bytes to clients: {counted:?} reported, {real:?} really"
    );
    assert_perfect(&score);
    assert_eq!(counted, real);
}

/// The same for UDP flows, some of which span the fault.
fn flows_survive(what: &str, fault: impl FnOnce(&Topology, &mut Weft<'_>) -> Result<()> + Send) {
    let topology = ok(topology::demo());
    let mut weft = ok(Weft::start(&topology));
    let servers = ok(EchoServers::start(&topology, Speaker::Echo));
    let (asked, ()) = ok(traffic::keep_talking(
        &topology,
        &servers,
        Talk::Paced(20, 8, 300),
        || {
            sleep(SPAN);
            fault(&topology, &mut weft)?;
            sleep(SPAN);
            Ok(())
        },
    ));
    let truth = ok(traffic::settle_flows(&topology, &servers, &asked));
    let score = compare(&mut weft, &truth);
    let (counted, real) = (totals(&weft), sum(&truth));
    println!("{what}: {score}");
    println!("  flows, bytes to servers, bytes to clients: {counted:?} reported, {real:?} really");
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

#[test]
fn killed_client_agent() {
    survives("agent of a client killed", |topology, weft| {
        let host = &topology.flows[0].client;
        weft.kill_agent(host)?;
        sleep(SPAN);
        weft.start_agent(host)
    });
}

#[test]
fn killed_server_agent() {
    survives("agent of a server killed", |topology, weft| {
        let host = &topology.flows[1].server;
        weft.kill_agent(host)?;
        sleep(SPAN);
        weft.start_agent(host)
    });
}

#[test]
fn killed_federators() {
    survives("each federator killed in turn", |_, weft| {
        for region in 0..2 {
            weft.kill_federator(region)?;
            sleep(SPAN);
            weft.start_federator(region)?;
            sleep(SPAN);
        }
        Ok(())
    });
}

#[test]
fn flows_and_a_killed_client_agent() {
    flows_survive("UDP, agent of a client killed", |topology, weft| {
        let host = &topology.flows[0].client;
        weft.kill_agent(host)?;
        sleep(SPAN);
        weft.start_agent(host)
    });
}

#[test]
fn flows_and_a_killed_server_agent() {
    flows_survive("UDP, agent of a server killed", |topology, weft| {
        let host = &topology.flows[1].server;
        weft.kill_agent(host)?;
        sleep(SPAN);
        weft.start_agent(host)
    });
}

#[test]
fn flows_and_a_killed_federator() {
    flows_survive("UDP, a federator killed", |_, weft| {
        weft.kill_federator(1)?;
        sleep(SPAN);
        weft.start_federator(1)
    });
}

#[test]
fn cut_between_regions() {
    survives("regions cut apart for 30 s", |topology, weft| {
        topology.set_cut(true)?;
        let other = [weft.federator_name(1).to_owned()];
        wait::until("the other region to be missed", CUT, || {
            let missed = answer::unreachable(&weft.json(&["report", "dependencies"])?);
            Ok(if missed == other {
                Ok(())
            } else {
                Err(format!("{missed:?}"))
            })
        })?;
        sleep(CUT);
        topology.set_cut(false)
    });
}
