//! A server that forks: which process Weft names where several accept on one socket.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use common::{assert_perfect, compare, ok, settle};
use weft_lab::topology;
use weft_lab::traffic;
use weft_lab::weft::Weft;
use weft_lab::workload::{Fetch, Server, Servers};

const WORKERS: u8 = 4;

/// By its socket hooks alone an agent knows who listens: nginx's first process. Who of its workers accepted takes the call
/// hooks; where the kernel has them, the worker is named.
#[test]
fn nginx_with_workers() {
    let topology = ok(topology::carrier());
    let mut weft = ok(Weft::start(&topology));
    let started = topology
        .flows
        .iter()
        .map(|flow| Server::nginx_with(&flow.server, &[flow.service], WORKERS));
    let servers = Servers {
        all: started.map(ok).collect(),
    };
    let ledger = ok(traffic::drive(&topology, |_| {
        vec![Fetch::Large(64), Fetch::Small(20)]
    }));
    let truth = settle(&topology, &servers, &ledger);
    assert_perfect(&compare(&mut weft, &truth));

    let rows = ok(weft.connections());
    for (flow, server) in topology.flows.iter().zip(&servers.all) {
        let served = ok(servers.served(&flow.server));
        let served: BTreeMap<_, _> = served
            .iter()
            .map(|((peer, own), entry)| ((own.to_string(), peer.to_string()), entry.pid))
            .collect();
        let workers: BTreeSet<_> = served.values().collect();
        let (mut worker, mut listener) = (0, 0);
        let ends = rows.iter().filter_map(|row| row.server.as_ref());
        for end in ends.filter(|end| end.agent == flow.server.name()) {
            let named = end.process.as_ref().map(|process| process.pid);
            let accepted = served
                .get(&(end.local.clone(), end.remote.clone()))
                .copied();
            worker += usize::from(named == accepted);
            listener += usize::from(named == Some(server.process.pid()));
        }
        let log = flow.server.dir().join("weft-agent.log");
        let hooked = fs::read_to_string(log).is_ok_and(|log| log.contains("call hooks attached"));
        println!(
            "{:?}: {} connections accepted by {} workers, call hooks {hooked}: {worker} rows name the worker, {listener} the \
             process that listens",
            flow.server,
            served.len(),
            workers.len()
        );
        assert!(workers.len() > 1, "one worker took all");
        let expected = if hooked { worker } else { listener };
        assert_eq!(expected, served.len());
    }
}
