//! Drives a topology's flows, all of them at once, and keeps the books.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use crate::error::{LabError, Result};
use crate::topology::{Flow, Topology};
use crate::truth::{Connection, Ledger};
use crate::wait;
use crate::workload::{Fetch, Servers, fetch};

/// Runs these jobs on every flow of a topology at the same time; gives what curl reported.
pub fn drive(topology: &Topology, jobs: &[Fetch]) -> Result<Ledger> {
    let mut ledger = Ledger::default();
    let results = thread::scope(|scope| {
        let run = |flow: &Flow| {
            jobs.iter()
                .map(|job| fetch(flow, *job))
                .collect::<Result<Vec<_>>>()
        };
        let running: Vec<_> = topology
            .flows
            .iter()
            .map(|flow| scope.spawn(move || run(flow)))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join())
            .collect::<Vec<_>>()
    });
    for (number, result) in results.into_iter().enumerate() {
        let done =
            result.map_err(|_| LabError::Truth("a thread of the workload panicked".into()))??;
        done.into_iter()
            .for_each(|connections| ledger.note(number, connections));
    }
    Ok(ledger)
}

/// The truth about all that a ledger holds, once the servers have written their logs: they do so after they have answered.
pub fn settle(topology: &Topology, servers: &Servers, ledger: &Ledger) -> Result<Vec<Connection>> {
    wait::until(
        "the programs' logs to agree",
        Duration::from_secs(30),
        || match ledger.settle(topology, servers) {
            Ok(connections) => Ok(Ok(connections)),
            Err(LabError::Truth(why)) => Ok(Err(why)),
            Err(other) => Err(other),
        },
    )
}

/// How many connections there were with each kind of rewriting, for a line of output.
pub fn by_nat(connections: &[Connection]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for connection in connections {
        let nat = connection.nat();
        let name = if nat.is_empty() {
            "none".to_owned()
        } else {
            nat.join("+")
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
        .iter()
        .map(|(nat, count)| format!("{count} {nat}"))
        .collect::<Vec<_>>()
        .join(", ")
}
