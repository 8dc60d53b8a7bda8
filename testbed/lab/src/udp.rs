//! UDP workloads: an echo in Python, and QUIC. Each end's own account of every flow is the truth, joined across the routers'
//! translations.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::conntrack::{Table, Tuple};
use crate::error::{During, LabError, Result};
use crate::host::{Host, Process};
use crate::topology::{Flow, Topology};
use crate::truth::{self, Connection, End};
use crate::wait;
use crate::workload::{Fetched, Served};

const ECHO: &str = include_str!("programs/echo.py");
/// Debian's own: an interpreter that is first in the path may be a script.
const PYTHON: &str = "/usr/bin/python3";

/// What speaks.
#[derive(Clone, Debug)]
pub enum Speaker {
    /// `echo.py`.
    Echo,
    /// The lab's program for QUIC, at this path.
    Quic(PathBuf),
}

/// What clients say, each flow from a local port of its own.
#[derive(Clone, Copy, Debug)]
pub enum Talk {
    /// So many flows with so many datagrams each way, of chance.
    Random(u16, u16),
    /// So many flows with so many datagrams each way, of chance, with this many milliseconds between two.
    Paced(u16, u16, u16),
    /// The first with datagrams that are all alike.
    Ping(u16, u16),
    /// So many QUIC connections with a request of so many bytes each, sent back.
    Request(u16, usize),
}

/// A server that sends back what it is sent; ends when dropped.
pub struct EchoServer {
    host: Host,
    address: SocketAddr,
    process: Process,
}

/// The servers of a topology's flows.
pub struct EchoServers {
    speaker: Speaker,
    dir: PathBuf,
    all: Vec<EchoServer>,
}

/// What a client reported on a flow, given by its number.
pub type Asked = Vec<(usize, Fetched)>;

impl Speaker {
    fn process(&self) -> &'static str {
        match self {
            Self::Echo => "python3",
            Self::Quic(_) => "weft-lab-quic",
        }
    }

    fn evidence(&self) -> &'static str {
        match self {
            Self::Echo => "udp-first-datagram",
            Self::Quic(_) => "quic-connection-id",
        }
    }
}

impl EchoServers {
    /// Starts a server for every flow's service and waits until it is there.
    pub fn start(topology: &Topology, speaker: Speaker) -> Result<Self> {
        let dir = topology.lab.dir().to_owned();
        let script = dir.join("echo.py");
        fs::write(&script, ECHO).during("writing", &script)?;
        let mut servers = Self {
            speaker,
            dir,
            all: Vec::new(),
        };
        for flow in &topology.flows {
            let known =
                |server: &EchoServer| server.host == flow.server && server.address == flow.service;
            if !servers.all.iter().any(known) {
                let server = servers.serve(flow)?;
                servers.all.push(server);
            }
        }
        Ok(servers)
    }

    fn serve(&self, flow: &Flow) -> Result<EchoServer> {
        let (ip, port) = (
            flow.service.ip().to_string(),
            flow.service.port().to_string(),
        );
        let name = format!("{}-{}", self.speaker.process(), flow.service.ip()).replace(':', "-");
        let process = match &self.speaker {
            Speaker::Echo => {
                let script = self.script();
                flow.server
                    .spawn(&name, PYTHON, &[&script, "serve", &ip, &port])?
            }
            Speaker::Quic(program) => {
                let certificate = self.certificate(flow.service);
                flow.server.spawn(
                    &name,
                    program,
                    &["serve", &flow.service.to_string(), &certificate],
                )?
            }
        };
        let mut server = EchoServer {
            host: flow.server.clone(),
            address: flow.service,
            process,
        };
        server.ready()?;
        if let Speaker::Quic(_) = self.speaker {
            let certificate = PathBuf::from(self.certificate(flow.service));
            wait::until("a certificate", Duration::from_secs(20), || {
                Ok(certificate.exists().then_some(()).ok_or(String::new()))
            })?;
        }
        Ok(server)
    }

    fn script(&self) -> String {
        self.dir.join("echo.py").to_string_lossy().into_owned()
    }

    fn certificate(&self, service: SocketAddr) -> String {
        let name = format!("quic-{service}").replace([':', '[', ']'], "-");
        self.dir.join(name).to_string_lossy().into_owned()
    }

    /// Runs one client on a flow to its end; gives what it reported.
    pub fn ask(&self, flow: &Flow, talk: Talk) -> Result<Vec<Fetched>> {
        let out = match (&self.speaker, talk) {
            (Speaker::Echo, Talk::Random(count, rounds)) => {
                self.echo(flow, [count, rounds, 0], "random")?
            }
            (Speaker::Echo, Talk::Paced(count, rounds, pause_ms)) => {
                self.echo(flow, [count, rounds, pause_ms], "random")?
            }
            (Speaker::Echo, Talk::Ping(count, rounds)) => {
                self.echo(flow, [count, rounds, 0], "ping")?
            }
            (Speaker::Quic(program), Talk::Request(count, bytes)) => {
                let first = flow.client.take_ports(count)?.to_string();
                let count = count.to_string();
                let (target, certificate) =
                    (flow.target.to_string(), self.certificate(flow.service));
                let bytes = bytes.to_string();
                let words = ["ask", &*target, &certificate, &first, &count, &bytes];
                flow.client.run(program, &words)?
            }
            (speaker, talk) => {
                return Err(LabError::Truth(format!("{speaker:?} cannot do {talk:?}")));
            }
        };
        let lines = out.lines().filter_map(|line| line.strip_prefix("asked "));
        lines
            .map(|line| {
                let (local, remote, sent, received) = account(line)?;
                Ok(Fetched {
                    local,
                    remote,
                    sent,
                    received,
                })
            })
            .collect()
    }

    fn echo(&self, flow: &Flow, [count, rounds, pause_ms]: [u16; 3], kind: &str) -> Result<String> {
        let first = flow.client.take_ports(count)?;
        let numbers = [flow.target.port(), first, count, rounds, pause_ms].map(|n| n.to_string());
        let (script, ip) = (self.script(), flow.target.ip().to_string());
        let mut words = vec![script.as_str(), "ask", &ip];
        words.extend(numbers.iter().map(String::as_str));
        words.push(kind);
        flow.client.run(PYTHON, &words)
    }

    /// Follows every flow through its routers to its server, and checks that both ends' accounts tell the same.
    pub fn settle(&self, topology: &Topology, asked: &Asked) -> Result<Vec<Connection>> {
        let tables = truth::tables(&topology.flows, "udp")?;
        let mut served: BTreeMap<String, BTreeMap<_, Served>> = BTreeMap::new();
        for server in &self.all {
            let log = served.entry(server.host.name().to_owned()).or_default();
            log.extend(server.served()?);
        }
        let mut all = Vec::new();
        for (number, fetched) in asked {
            let flow = &topology.flows[*number];
            let log = served.get(flow.server.name());
            all.push(self.settle_one(flow, fetched, &tables, log)?);
        }
        truth::distinct(&all)?;
        Ok(all)
    }

    fn settle_one(
        &self,
        flow: &Flow,
        fetched: &Fetched,
        tables: &BTreeMap<String, Table>,
        log: Option<&BTreeMap<(SocketAddr, SocketAddr), Served>>,
    ) -> Result<Connection> {
        let before = Tuple {
            source: fetched.local,
            destination: fetched.remote,
        };
        let arrived = truth::translate(&flow.path, before, tables)?;
        let entry = log.and_then(|log| log.get(&(arrived.source, arrived.destination)));
        let entry = entry.copied().unwrap_or_default();
        let agree = match self.speaker {
            Speaker::Echo => entry.received == fetched.sent,
            // quinn does not count the datagram that makes a connection.
            Speaker::Quic(_) => entry.received > 0,
        };
        if !agree || entry.sent != fetched.received {
            return Err(LabError::Truth(format!(
                "{fetched:?}, but the server {entry:?} on {arrived:?}"
            )));
        }
        let end = |host: &Host, local, remote| End {
            host: host.name().into(),
            process: self.speaker.process(),
            local,
            remote,
        };
        Ok(Connection {
            client: end(&flow.client, before.source, before.destination),
            server: end(&flow.server, arrived.destination, arrived.source),
            up: fetched.sent,
            down: fetched.received,
            evidence: self.speaker.evidence(),
        })
    }
}

impl EchoServer {
    fn ready(&mut self) -> Result<()> {
        let port = format!("sport = :{}", self.address.port());
        let (host, process) = (&self.host, &mut self.process);
        wait::until("a UDP server", Duration::from_secs(20), || {
            process.check_alive()?;
            let out = host.run("ss", &["-Hlun", &port])?;
            let there = out.contains(&self.address.to_string());
            Ok(there.then_some(()).ok_or(out))
        })
    }

    /// Its flows, by (client as it sees it, own address).
    fn served(&self) -> Result<BTreeMap<(SocketAddr, SocketAddr), Served>> {
        let log: &Path = self.process.log();
        let text = fs::read_to_string(log).during("reading", log)?;
        let mut flows: BTreeMap<_, Served> = BTreeMap::new();
        // The last line may be half written.
        for line in text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
        {
            let Some(line) = line.trim_end().strip_prefix("served ") else {
                continue;
            };
            let (client, own, up, down) = account(line)?;
            let entry = flows.entry((client, own)).or_default();
            entry.received += up;
            entry.sent += down;
        }
        Ok(flows)
    }
}

/// `IP PORT IP PORT BYTES BYTES`.
fn account(line: &str) -> Result<(SocketAddr, SocketAddr, u64, u64)> {
    let unreadable = || LabError::Unreadable {
        what: "a flow's account".into(),
        text: line.into(),
    };
    let fields: Vec<_> = line.split(' ').collect();
    let [ip, port, peer, peer_port, first, second] = fields[..] else {
        return Err(unreadable());
    };
    let address = |ip: &str, port: &str| {
        let (ip, port) = (ip.parse().ok()?, port.parse().ok()?);
        Some(SocketAddr::new(ip, port))
    };
    let number = |text: &str| text.parse().map_err(|_| unreadable());
    Ok((
        address(ip, port).ok_or_else(unreadable)?,
        address(peer, peer_port).ok_or_else(unreadable)?,
        number(first)?,
        number(second)?,
    ))
}
