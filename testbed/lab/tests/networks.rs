//! The lab itself: every network does to connections what it is there for, and its truth is sound. No Weft here.

use weft_lab::topology::{self, Topology};
use weft_lab::workload::{Fetch, Servers};
use weft_lab::{Result, traffic};

/// Runs a little of everything through a network and gives what was rewritten on each connection.
fn rewritten(make: fn() -> Result<Topology>) -> Vec<Vec<&'static str>> {
    let topology = make().unwrap();
    let servers = Servers::start(&topology).unwrap();
    let jobs = [
        Fetch::Small(20),
        Fetch::KeptAlive(5),
        Fetch::Large(4),
        Fetch::Upload(2),
    ];
    let ledger = traffic::drive(&topology, &jobs).unwrap();
    assert_eq!(ledger.fetched(), topology.flows.len() * 27);
    let truth = traffic::settle(&topology, &servers, &ledger).unwrap();
    println!(
        "{}: {} connections ({})",
        topology.name,
        truth.len(),
        traffic::by_nat(&truth)
    );
    truth.iter().map(weft_lab::truth::Connection::nat).collect()
}

const BOTH: &[&str] = &["source", "source-port", "destination", "destination-port"];
const SOURCE: &[&str] = &["source", "source-port"];

#[test]
fn two_clouds() {
    let found = rewritten(topology::two_clouds);
    assert_eq!(found.iter().filter(|nat| **nat == BOTH).count(), 4 * 27);
    assert_eq!(found.iter().filter(|nat| **nat == SOURCE).count(), 27);
    assert_eq!(found.iter().filter(|nat| nat.is_empty()).count(), 27);
}

#[test]
fn carrier() {
    assert!(rewritten(topology::carrier).iter().all(|nat| nat == BOTH));
}

#[test]
fn destination() {
    let found = rewritten(topology::destination);
    assert_eq!(
        found
            .iter()
            .filter(|nat| **nat == ["destination", "destination-port"])
            .count(),
        27
    );
    assert_eq!(
        found.iter().filter(|nat| **nat == ["destination"]).count(),
        27
    );
}

#[test]
fn nat66() {
    assert!(rewritten(topology::nat66).iter().all(|nat| nat == BOTH));
}

#[test]
fn hairpin() {
    assert!(rewritten(topology::hairpin).iter().all(|nat| nat == BOTH));
}

#[test]
fn syn_proxy() {
    assert!(
        rewritten(topology::syn_proxy)
            .iter()
            .all(|nat| nat == SOURCE)
    );
}

#[test]
fn relay() {
    let found = rewritten(topology::relay);
    assert_eq!(found.iter().filter(|nat| **nat == BOTH).count(), 2 * 27);
    assert_eq!(found.iter().filter(|nat| nat.is_empty()).count(), 2 * 27);
}

#[test]
fn overlap() {
    let found = rewritten(topology::overlap);
    assert_eq!(found.iter().filter(|nat| **nat == BOTH).count(), 2 * 27);
    assert_eq!(found.iter().filter(|nat| **nat == SOURCE).count(), 2 * 27);
}
