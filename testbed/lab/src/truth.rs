//! What really happened: the programs' logs, joined across the routers' translations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::conntrack::{self, Table, Tuple};
use crate::error::{LabError, Result};
use crate::host::Host;
use crate::topology::{Flow, Through, Topology};
use crate::workload::{Fetched, Relayed, Served, Servers};

/// A connection or UDP flow that really was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who opened it.
    pub client: End,
    /// Who accepted it.
    pub server: End,
    /// Payload from client to server.
    pub up: u64,
    /// Payload from server to client.
    pub down: u64,
    /// What the network leaves of the evidence that the ends belong together, in the words of `weft`.
    pub evidence: &'static str,
}

/// One end of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Name of the host.
    pub host: String,
    /// Name of the process.
    pub process: &'static str,
    /// Own address.
    pub local: SocketAddr,
    /// The peer as seen from here.
    pub remote: SocketAddr,
}

/// Evidence of a connection that routers rewrite: both initial sequence numbers.
const TCP: &str = "tcp-isn-pair";

/// Collects what curl reported on each flow, and in the end the whole truth.
#[derive(Debug, Default)]
pub struct Ledger {
    fetched: Vec<(usize, Fetched)>,
    redis: BTreeSet<(usize, u16)>,
}

impl Connection {
    /// What was rewritten between the ends, in the words of `weft`.
    pub fn nat(&self) -> Vec<&'static str> {
        let (client, server) = (&self.client, &self.server);
        let differences = [
            (client.local.ip() != server.remote.ip(), "source"),
            (client.local.port() != server.remote.port(), "source-port"),
            (client.remote.ip() != server.local.ip(), "destination"),
            (
                client.remote.port() != server.local.port(),
                "destination-port",
            ),
        ];
        differences
            .into_iter()
            .filter_map(|(differs, name)| differs.then_some(name))
            .collect()
    }
}

impl Ledger {
    /// Notes what curl reported on a flow.
    pub fn note(&mut self, flow: usize, connections: Vec<Fetched>) {
        self.fetched
            .extend(connections.into_iter().map(|connection| (flow, connection)));
    }

    /// Notes that a flow's client also called redis on this port of the flow's target: these connections are
    /// taken from its first router's table.
    pub fn note_redis(&mut self, flow: usize, port: u16) {
        self.redis.insert((flow, port));
    }

    /// Number of connections that curl reported.
    pub fn fetched(&self) -> usize {
        self.fetched.len()
    }

    /// Follows every connection through its routers to its server, and checks that both sides' logs tell the same.
    pub fn settle(&self, topology: &Topology, servers: &Servers) -> Result<Vec<Connection>> {
        let tables = tables(&topology.flows, "tcp")?;
        let logs = Logs::read(topology, servers)?;
        let mut all = Vec::new();
        for (number, flow) in topology.flows.iter().enumerate() {
            let mine = self
                .fetched
                .iter()
                .filter(|(flow, _)| *flow == number)
                .map(|(_, connection)| connection);
            for fetched in mine {
                all.extend(settle_one(flow, fetched, &tables, &logs)?);
            }
            for (_, port) in self.redis.iter().filter(|(flow, _)| *flow == number) {
                all.extend(settle_redis(flow, *port, &tables)?);
            }
        }
        distinct(&all)?;
        Ok(all)
    }
}

/// The tables of all routers of some flows, by name.
pub(crate) fn tables(flows: &[Flow], protocol: &str) -> Result<BTreeMap<String, Table>> {
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    for router in flows.iter().flat_map(|flow| &flow.path) {
        if !tables.contains_key(router.name()) {
            tables.insert(
                router.name().to_owned(),
                conntrack::table(router, protocol)?,
            );
        }
    }
    Ok(tables)
}

/// All the servers' logs, read once.
struct Logs {
    served: BTreeMap<String, BTreeMap<(SocketAddr, SocketAddr), Served>>,
    relayed: BTreeMap<(String, Tuple), Relayed>,
}

impl Logs {
    fn read(topology: &Topology, servers: &Servers) -> Result<Self> {
        let mut logs = Self {
            served: BTreeMap::new(),
            relayed: BTreeMap::new(),
        };
        for server in &servers.all {
            logs.served
                .insert(server.host.name().into(), servers.served(&server.host)?);
        }
        for flow in &topology.flows {
            for leg in servers.relayed(&flow.server)? {
                let front = Tuple {
                    source: leg.front.0,
                    destination: leg.front.1,
                };
                logs.relayed.insert((flow.server.name().into(), front), leg);
            }
        }
        Ok(logs)
    }

    /// nginx must have logged the connection, with the bytes that curl counted.
    fn check(&self, host: &Host, tuple: Tuple, up: u64, down: u64) -> Result<()> {
        let entry = self
            .served
            .get(host.name())
            .and_then(|served| served.get(&(tuple.source, tuple.destination)));
        let entry = entry.ok_or_else(|| LabError::Truth(format!("nginx did not log {tuple:?}")))?;
        if (entry.received, entry.sent) != (up, down) {
            return Err(LabError::Truth(format!(
                "curl counted {up} and {down} bytes, nginx {entry:?} on {tuple:?}"
            )));
        }
        Ok(())
    }
}

/// One curl connection: the connection itself or, through a relay, its two.
fn settle_one(
    flow: &Flow,
    fetched: &Fetched,
    tables: &BTreeMap<String, Table>,
    logs: &Logs,
) -> Result<Vec<Connection>> {
    let before = Tuple {
        source: fetched.local,
        destination: fetched.remote,
    };
    let arrived = translate(&flow.path, before, tables)?;
    let client = End {
        host: flow.client.name().into(),
        process: "curl",
        local: before.source,
        remote: before.destination,
    };
    let end = |host: &Host, process, local, remote| End {
        host: host.name().into(),
        process,
        local,
        remote,
    };
    let (up, down) = (fetched.sent, fetched.received);
    let Through::Relay(origin, _) = &flow.through else {
        logs.check(&flow.server, arrived, up, down)?;
        let server = end(&flow.server, "nginx", arrived.destination, arrived.source);
        return Ok(vec![Connection {
            client,
            server,
            up,
            down,
            evidence: match flow.through {
                Through::SynProxy => "tcp-client-isn",
                _ => TCP,
            },
        }]);
    };
    let leg = logs.relayed.get(&(flow.server.name().into(), arrived));
    let leg = leg.ok_or_else(|| LabError::Truth(format!("haproxy did not log {arrived:?}")))?;
    logs.check(
        origin,
        Tuple {
            source: leg.back.0,
            destination: leg.back.1,
        },
        up,
        down,
    )?;
    let first = Connection {
        client,
        server: end(&flow.server, "haproxy", arrived.destination, arrived.source),
        up,
        down,
        evidence: TCP,
    };
    let second = Connection {
        client: end(&flow.server, "haproxy", leg.back.0, leg.back.1),
        server: end(origin, "nginx", leg.back.1, leg.back.0),
        up,
        down,
        evidence: TCP,
    };
    Ok(vec![first, second])
}

/// Connections of redis-benchmark, from the table of the flow's first router.
fn settle_redis(
    flow: &Flow,
    port: u16,
    tables: &BTreeMap<String, Table>,
) -> Result<Vec<Connection>> {
    let target = SocketAddr::new(flow.target.ip(), port);
    let first = flow
        .path
        .first()
        .and_then(|router| tables.get(router.name()));
    let first = first.ok_or_else(|| LabError::Truth(format!("{flow:?} passes no router")))?;
    let site = |address: SocketAddr| address.ip();
    let clients: BTreeSet<_> = flow
        .client
        .run("hostname", &["-I"])?
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let mine = first.values().filter(|entry| {
        entry.before.destination == target
            && clients.contains(&site(entry.before.source).to_string())
    });
    mine.map(|entry| {
        let arrived = translate(&flow.path, entry.before, tables)?;
        let payload = |carried: conntrack::Carried| {
            carried
                .payload(target.is_ipv6())
                .ok_or_else(|| LabError::Truth(format!("counters of {entry:?}")))
        };
        Ok(Connection {
            client: End {
                host: flow.client.name().into(),
                process: "redis-benchmark",
                local: entry.before.source,
                remote: entry.before.destination,
            },
            server: End {
                host: flow.server.name().into(),
                process: "redis-server",
                local: arrived.destination,
                remote: arrived.source,
            },
            up: payload(entry.up)?,
            down: payload(entry.down)?,
            evidence: TCP,
        })
    })
    .collect()
}

/// Where a connection comes out after its routers.
pub(crate) fn translate(
    path: &[Host],
    start: Tuple,
    tables: &BTreeMap<String, Table>,
) -> Result<Tuple> {
    path.iter().try_fold(start, |tuple, router| {
        let entry = tables
            .get(router.name())
            .and_then(|table| table.get(&tuple));
        entry
            .map(|entry| entry.after)
            .ok_or_else(|| LabError::Truth(format!("{router:?} did not track {tuple:?}")))
    })
}

/// Two connections with the same addresses at one end could be confused by the measurement itself.
pub(crate) fn distinct(connections: &[Connection]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for connection in connections {
        for end in [&connection.client, &connection.server] {
            if !seen.insert((end.host.clone(), end.local, end.remote)) {
                return Err(LabError::Truth(format!("{end:?} occurs twice")));
            }
        }
    }
    Ok(())
}
