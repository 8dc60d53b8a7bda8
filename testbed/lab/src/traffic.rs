//! Drives a topology's flows, all of them at once, and keeps the books.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::error::{LabError, Result};
use crate::topology::{Flow, Topology};
use crate::truth::{Connection, Ledger};
use crate::udp::{Asked, EchoServers, Talk};
use crate::wait;
use crate::workload::{Fetch, Fetched, Server, Servers, fetch, redis_benchmark};

/// Time between two rounds of [`keep_driving`]: load enough, and the local ports last.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs a flow's jobs, given by its number, all flows at the same time; gives what curl reported.
pub fn drive(topology: &Topology, jobs: impl Fn(usize) -> Vec<Fetch> + Sync) -> Result<Ledger> {
    collect(topology, |number, flow| {
        let done = jobs(number).into_iter().map(|job| fetch(flow, job));
        Ok(done.collect::<Result<Vec<_>>>()?.concat())
    })
}

/// Repeats `jobs` on every flow until `meanwhile` is done; gives what curl reported and what `meanwhile` gave.
pub fn keep_driving<T>(
    topology: &Topology,
    jobs: &[Fetch],
    meanwhile: impl FnOnce() -> Result<T> + Send,
) -> Result<(Ledger, T)>
where
    T: Send,
{
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let driven = scope.spawn(|| {
            collect(topology, |_, flow| {
                let mut all = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    for job in jobs {
                        all.extend(fetch(flow, *job)?);
                    }
                    thread::sleep(PAUSE);
                }
                Ok(all)
            })
        });
        let outcome = meanwhile();
        stop.store(true, Ordering::Relaxed);
        let ledger = driven.join().map_err(|_| panicked())??;
        Ok((ledger, outcome?))
    })
}

/// Runs redis-benchmark on some flows, given with the port of the flow's target, one after the other.
pub fn drive_redis(
    topology: &Topology,
    flows: &[(usize, u16)],
    connections: u32,
    ledger: &mut Ledger,
) -> Result<()> {
    for (number, port) in flows {
        let flow = &topology.flows[*number];
        let _server = Server::redis(&flow.server)?;
        redis_benchmark(flow, *port, connections)?;
        ledger.note_redis(*number, *port);
    }
    Ok(())
}

fn collect(
    topology: &Topology,
    run: impl Fn(usize, &Flow) -> Result<Vec<Fetched>> + Sync,
) -> Result<Ledger> {
    let mut ledger = Ledger::default();
    for (number, fetched) in each(topology, run)? {
        ledger.note(number, vec![fetched]);
    }
    Ok(ledger)
}

/// Runs something for every flow on a thread of its own.
fn each(
    topology: &Topology,
    run: impl Fn(usize, &Flow) -> Result<Vec<Fetched>> + Sync,
) -> Result<Asked> {
    let run = &run;
    let results = thread::scope(|scope| {
        let flows = topology.flows.iter().enumerate();
        let running: Vec<_> = flows
            .map(|(number, flow)| scope.spawn(move || run(number, flow)))
            .collect();
        running
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect::<Vec<_>>()
    });
    let mut all = Asked::new();
    for (number, result) in results.into_iter().enumerate() {
        let done = result.map_err(|_| panicked())??;
        all.extend(done.into_iter().map(|one| (number, one)));
    }
    Ok(all)
}

fn panicked() -> LabError {
    LabError::Truth("a thread of the workload panicked".into())
}

/// Lets every flow's client talk, all at the same time; gives what they reported.
pub fn talk(
    topology: &Topology,
    servers: &EchoServers,
    talk: impl Fn(usize) -> Talk + Sync,
) -> Result<Asked> {
    let (talk, servers) = (&talk, &servers);
    each(topology, |number, flow| servers.ask(flow, talk(number)))
}

/// Lets every flow's client say the same again and again until `meanwhile` is done.
pub fn keep_talking<T: Send>(
    topology: &Topology,
    servers: &EchoServers,
    talk: Talk,
    meanwhile: impl FnOnce() -> Result<T> + Send,
) -> Result<(Asked, T)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let talking = scope.spawn(|| {
            each(topology, |_, flow| {
                let mut all = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    all.extend(servers.ask(flow, talk)?);
                    thread::sleep(PAUSE);
                }
                Ok(all)
            })
        });
        let outcome = meanwhile();
        stop.store(true, Ordering::Relaxed);
        let asked = talking.join().map_err(|_| panicked())??;
        Ok((asked, outcome?))
    })
}

/// The truth about UDP flows, once the servers have written all of it.
pub fn settle_flows(
    topology: &Topology,
    servers: &EchoServers,
    asked: &Asked,
) -> Result<Vec<Connection>> {
    settled(|| servers.settle(topology, asked))
}

/// The truth about all that a ledger holds, once the servers have written their logs: they do so after they have answered.
pub fn settle(topology: &Topology, servers: &Servers, ledger: &Ledger) -> Result<Vec<Connection>> {
    settled(|| ledger.settle(topology, servers))
}

fn settled(look: impl Fn() -> Result<Vec<Connection>>) -> Result<Vec<Connection>> {
    wait::until(
        "the programs' logs to agree",
        Duration::from_secs(30),
        || match look() {
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
