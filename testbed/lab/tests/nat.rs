//! Every connection through every network is stitched, none wrongly, with the right process, bytes and NAT.

mod common;

use std::sync::Mutex;

use common::{assert_perfect, compare, ok, settle};
use weft_lab::score::Score;
use weft_lab::topology::{self, Topology};
use weft_lab::weft::Weft;
use weft_lab::workload::{Fetch, Servers};
use weft_lab::{Result, traffic};

/// Connections over all networks that the figures must rest on.
const AT_LEAST: usize = 5_000;
/// Networks below.
const NETWORKS: usize = 8;

static TOTAL: Mutex<(usize, Option<Score>)> = Mutex::new((0, None));

/// Runs `jobs` on every flow and redis-benchmark on some, and compares Weft's answer with the truth.
fn stitched(make: fn() -> Result<Topology>, jobs: fn(usize) -> Vec<Fetch>, redis: &[(usize, u16)]) {
    let topology = ok(make());
    let servers = ok(Servers::start(&topology));
    let mut weft = ok(Weft::start(&topology));
    let mut ledger = ok(traffic::drive(&topology, jobs));
    ok(traffic::drive_redis(&topology, redis, 50, &mut ledger));
    let truth = settle(&topology, &servers, &ledger);
    let score = compare(&mut weft, &truth);
    println!("{}: {score} ({})", topology.name, traffic::by_nat(&truth));
    add_up(&score);
    assert_perfect(&score);
}

/// Prints the sum once all networks are through.
fn add_up(score: &Score) {
    let mut total = TOTAL
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    total.0 += 1;
    *total.1.get_or_insert_default() += score.clone();
    let (done, Some(sum)) = &*total else { return };
    if *done == NETWORKS {
        println!("all {NETWORKS} networks: {sum}");
        assert!(
            sum.truth >= AT_LEAST,
            "{} connections are too few for the figures",
            sum.truth
        );
    }
}

/// `small` short connections, and some of every other kind.
fn mixed(small: u16) -> Vec<Fetch> {
    vec![
        Fetch::Small(small),
        Fetch::KeptAlive(20),
        Fetch::Large(12),
        Fetch::Upload(5),
        Fetch::Slow(3),
    ]
}

#[test]
fn two_clouds() {
    stitched(
        topology::two_clouds,
        |_| mixed(150),
        &[(0, 6381), (1, 6381)],
    );
}

#[test]
fn carrier() {
    stitched(topology::carrier, |_| mixed(300), &[(0, 6381)]);
}

#[test]
fn destination() {
    stitched(topology::destination, |_| mixed(300), &[]);
}

#[test]
fn nat66() {
    stitched(topology::nat66, |_| mixed(150), &[]);
}

#[test]
fn hairpin() {
    stitched(topology::hairpin, |_| mixed(150), &[(0, 6382)]);
}

/// Only the client's initial sequence number agrees.
#[test]
fn syn_proxy() {
    stitched(topology::syn_proxy, |_| mixed(300), &[]);
}

/// The truth has the two legs as connections of their own; a row that joins client and origin would be wrong.
#[test]
fn relay() {
    stitched(topology::relay, |_| mixed(250), &[]);
}

/// Clients with the same address use the very same ports towards the same server.
#[test]
fn overlap() {
    let jobs = |number| {
        let first = if number < 2 { 62_000 } else { 63_000 };
        [vec![Fetch::FromPorts { first, count: 150 }], mixed(20)].concat()
    };
    stitched(topology::overlap, jobs, &[]);
}
