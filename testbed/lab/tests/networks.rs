//! The lab itself: every network does to connections what it is there for, and its truth is sound. No Weft here.

mod common;

use common::{ok, settle};
use weft_lab::topology::{self, Topology};
use weft_lab::truth::Connection;
use weft_lab::workload::{Fetch, Servers};
use weft_lab::{Result, traffic};

/// Connections that [`rewritten`] makes on each flow.
const EACH: usize = 27;

/// Runs a little of everything through a network and gives what was rewritten on each connection.
fn rewritten(make: fn() -> Result<Topology>) -> Vec<Vec<&'static str>> {
    let topology = ok(make());
    let servers = ok(Servers::start(&topology));
    let jobs = |_| {
        vec![
            Fetch::Small(20),
            Fetch::KeptAlive(5),
            Fetch::Large(4),
            Fetch::Upload(2),
        ]
    };
    let ledger = ok(traffic::drive(&topology, jobs));
    assert_eq!(ledger.fetched(), topology.flows.len() * EACH);
    let truth = settle(&topology, &servers, &ledger);
    println!(
        "{}: {} connections ({})",
        topology.name,
        truth.len(),
        traffic::by_nat(&truth)
    );
    truth.iter().map(Connection::nat).collect()
}

fn count(found: &[Vec<&'static str>], nat: &[&str]) -> usize {
    found.iter().filter(|one| **one == nat).count()
}

const BOTH: &[&str] = &["source", "source-port", "destination", "destination-port"];
const SOURCE: &[&str] = &["source", "source-port"];

#[test]
fn two_clouds() {
    let found = rewritten(topology::two_clouds);
    assert_eq!(
        [
            count(&found, BOTH),
            count(&found, SOURCE),
            count(&found, &[])
        ],
        [4 * EACH, EACH, EACH]
    );
}

#[test]
fn carrier() {
    assert_eq!(count(&rewritten(topology::carrier), BOTH), 2 * EACH);
}

#[test]
fn destination() {
    let found = rewritten(topology::destination);
    assert_eq!(count(&found, &["destination", "destination-port"]), EACH);
    assert_eq!(count(&found, &["destination"]), EACH);
}

#[test]
fn nat66() {
    assert_eq!(count(&rewritten(topology::nat66), BOTH), 4 * EACH);
}

#[test]
fn hairpin() {
    assert_eq!(count(&rewritten(topology::hairpin), BOTH), 4 * EACH);
}

#[test]
fn syn_proxy() {
    assert_eq!(count(&rewritten(topology::syn_proxy), SOURCE), 2 * EACH);
}

#[test]
fn relay() {
    let found = rewritten(topology::relay);
    assert_eq!(
        [count(&found, BOTH), count(&found, &[])],
        [2 * EACH, 2 * EACH]
    );
}

#[test]
fn overlap() {
    let found = rewritten(topology::overlap);
    assert_eq!(
        [count(&found, BOTH), count(&found, SOURCE)],
        [2 * EACH, 2 * EACH]
    );
}

#[test]
fn redis_counts_by_conntrack() {
    let topology = ok(topology::hairpin());
    let servers = ok(Servers::start(&topology));
    let mut ledger = weft_lab::truth::Ledger::default();
    ok(traffic::drive_redis(
        &topology,
        &[(0, 6382)],
        50,
        &mut ledger,
    ));
    let truth = settle(&topology, &servers, &ledger);
    // The benchmark asks for the server's configuration on a connection of its own before it starts.
    assert!(truth.len() > 50, "{} connections", truth.len());
    let answers: u64 = truth
        .iter()
        .map(|connection| connection.down)
        .filter(|down| down % 5 == 0)
        .sum();
    assert_eq!(
        answers,
        500 * "$-1\r\n".len() as u64,
        "{:?}",
        truth.iter().map(|c| c.down).collect::<Vec<_>>()
    );
}
