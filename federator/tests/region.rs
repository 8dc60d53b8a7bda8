//! Several federators in one region, real agents' uplinks, real QUIC: they find each other from one seed, share the agents, and
//! no connection is lost or counted twice when one is drained or killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weft_agent::sink::BatchSink;
use weft_agent::spool::SpoolLimits;
use weft_agent::spool::shared::SharedSpool;
use weft_agent::uplink::Uplink;
use weft_federator::clock;
use weft_federator::testing::{Answered, PATIENCE, World, batch_of, half};
use weft_transport::{Dialler, Expect, Identity, PeerRole};
use weft_wire::control::AgentStatus;
use weft_wire::federation::{FederationAnswer, FederationRequest, FederatorState, Presence};
use weft_wire::query::{Filter, Question, Report, ReportOrder, Scope};
use weft_wire::{AgentInfo, AgentKey, Half, HalfState, Role, Timestamp};

/// A federator's program, killed when it is dropped.
struct Program(Child);

impl Program {
    fn start(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weft-federator"))
            .args(["run", "--config"])
            .arg(config)
            .env("WEFT_LOG", "info")
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        while !said.contains("listening") {
            let line = lines.next();
            let line = line.unwrap_or_else(|| panic!("it ended before it listened: {said}"));
            said.push_str(&line.unwrap());
            said.push('\n');
        }
        std::thread::spawn(move || lines.for_each(drop));
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An agent without a kernel: its spools, and the real uplink.
struct Node {
    key: AgentKey,
    spool: SharedSpool,
    position: u64,
    halves: BTreeMap<u32, Half>,
    _stop: watch::Sender<bool>,
}

impl Node {
    fn report(&mut self, halves: Vec<Half>) {
        self.position += 1;
        self.spool
            .append(&batch_of("load", halves), self.position)
            .unwrap();
    }

    fn open(&mut self, number: u32, role: Role) {
        let half = half(self.key, number, role, HalfState::Open);
        self.halves.insert(number, half);
        self.report(vec![half]);
    }

    fn close(&mut self, number: u32) {
        let half = self.halves.get_mut(&number).unwrap();
        let at = Timestamp(clock::now().0.max(half.seen_at.0 + 1));
        half.state = HalfState::Closed;
        (half.closed_at, half.seen_at) = (Some(at), at);
        let half = *half;
        self.report(vec![half]);
    }

    fn home(&self) -> String {
        let homes = self.spool.homes();
        homes.name(homes.current()).to_owned()
    }

    fn delivered(&self) -> bool {
        let homes = self.spool.homes().known.len();
        (0..homes).all(|home| !self.spool.lock_of(home).has_rows())
    }
}

struct Lab {
    world: World,
    folder: tempfile::TempDir,
    addresses: BTreeMap<&'static str, String>,
}

/// Name and region of each; the first is everyone's seed.
const FEDERATORS: [(&str, &str); 3] = [("fed-a", "r1"), ("fed-b", "r1"), ("fed-c", "r2")];

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(folder.path()).unwrap();
        let sockets = FEDERATORS.map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = |socket: &std::net::UdpSocket| socket.local_addr().unwrap().to_string();
        let names = FEDERATORS.into_iter().map(|(name, _)| name);
        let addresses = names.zip(sockets.iter().map(address)).collect();
        Self {
            world,
            folder,
            addresses,
        }
    }

    /// The configuration of one: the seed is the only other one that it names.
    fn config(&self, name: &str, region: &str) -> PathBuf {
        let identity = self.world.identity(region, PeerRole::Federator, name);
        let (seed, _) = FEDERATORS[0];
        let seeds = if name == seed {
            format!("advertise = {:?}", self.addresses[name])
        } else {
            format!("seeds = [\"{seed}@{}\"]", self.addresses[seed])
        };
        let text = format!(
            "name = {name:?}\nregion = {region:?}\nlisten = {:?}\nidentity = {:?}\ndata_dir = {:?}\n[stitch]\nhold_ms = 200\n\
             [store]\nflush_interval_ms = 100\n[mesh]\nkey_file = {:?}\n{seeds}\n",
            self.addresses[name],
            identity.unwrap(),
            self.folder.path().join(format!("data-{name}")),
            self.world.mesh_key(),
        );
        let path = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    fn start(&self, name: &str) -> Program {
        let (_, region) = FEDERATORS
            .into_iter()
            .find(|(one, _)| *one == name)
            .unwrap();
        Program::start(&self.config(name, region))
    }

    /// An agent of the first region, whose configuration names the seed.
    fn node(&self, name: &str) -> Node {
        let identity = self.world.identity("r1", PeerRole::Agent, name).unwrap();
        let identity = Identity::load(&identity).unwrap();
        let federator = self.addresses["fed-a"].clone();
        let data = self.folder.path().join(format!("agent-{name}"));
        std::fs::create_dir_all(&data).unwrap();
        let clock_us = u64::try_from(clock::now().0).unwrap();
        let spool = SharedSpool::open(&data, SpoolLimits::default(), &federator, clock_us).unwrap();
        let (stop, stopped) = watch::channel(false);
        let key = identity.key();
        let uplink = Uplink {
            federator,
            identity,
            socket: Dialler::socket().unwrap(),
            agent: AgentInfo {
                name: name.into(),
                ..AgentInfo::default()
            },
            spool: spool.clone(),
            status: Arc::new(AgentStatus::default),
            clock: clock::now,
            seed: key.0,
            connected: watch::channel(false).0,
            cluster: None,
        };
        tokio::spawn(uplink.run(stopped));
        Node {
            key,
            spool,
            position: 0,
            halves: BTreeMap::new(),
            _stop: stop,
        }
    }

    async fn request(
        &self,
        name: &str,
        role: PeerRole,
        request: &FederationRequest,
    ) -> FederationAnswer {
        let identity = self.world.identity("ops", role, "someone").unwrap();
        let dialler = Dialler::new(&Identity::load(&identity).unwrap()).unwrap();
        let expected = Expect::federator(name);
        let session = dialler.dial(&self.addresses[name], &expected).await;
        let (mut sender, mut receiver) = session.unwrap().open_bi().await.unwrap();
        sender.send(request, PATIENCE).await.unwrap();
        sender.finish();
        receiver.expect(PATIENCE).await.unwrap()
    }

    async fn federators(&self, asked: &str) -> Vec<FederatorState> {
        let request = FederationRequest::Federators;
        match self.request(asked, PeerRole::Operator, &request).await {
            FederationAnswer::Federators(states) => states,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until one that is asked sees this.
    async fn until_seen(&self, asked: &str, good: impl Fn(&[FederatorState]) -> bool) {
        let mut last = Vec::new();
        for _ in 0..300 {
            last = self.federators(asked).await;
            if good(&last) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("{asked} never saw it: {last:#?}");
    }

    async fn connections(&self, asked: &str) -> Answered {
        let operator = self.world.operator(&self.addresses[asked]).await.unwrap();
        operator.connections(Scope::Mesh).await.unwrap()
    }

    async fn reported(&self, asked: &str) -> u64 {
        let operator = self.world.operator(&self.addresses[asked]).await.unwrap();
        let question = Question::Report {
            report: Report::Dependencies,
            filter: Filter::default(),
            by: ReportOrder::Connections,
            top: 1000,
        };
        let answer = operator.ask(Scope::Mesh, question).await.unwrap().unwrap();
        answer.report.iter().map(|row| row.connections).sum()
    }

    /// Waits until all that was opened is there, once, with both its ends, whoever is asked.
    async fn until_true(&self, all: u64) {
        let mut last = String::new();
        for _ in 0..150 {
            let answer = self.connections("fed-c").await;
            let counts = &answer.completeness.halves;
            let matched = answer.connections.iter().filter(|c| c.matched.is_some());
            let closed = matched.filter(|c| c.closed_at.is_some()).count() as u64;
            let reported = self.reported("fed-b").await;
            if (answer.connections.len() as u64, closed, reported) == (all, all, all)
                && counts.matched == 2 * all
                && counts.unmatched.is_empty()
            {
                return;
            }
            last = format!(
                "{} connections, {closed} matched and closed, {reported} in the report, {counts:?}",
                answer.connections.len()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("never {all}: {last}");
    }
}

async fn until(what: &str, good: impl Fn() -> bool) {
    for _ in 0..600 {
        if good() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}");
}

fn all_up(states: &[FederatorState]) -> bool {
    states.len() == 3 && states.iter().all(|state| state.state == Presence::Up)
}

/// Opens connections between neighbours in the ring of nodes; their numbers.
fn open(nodes: &mut [Node], numbers: std::ops::Range<u32>) {
    for number in numbers {
        let (client, server) = ends(nodes.len(), number);
        nodes[client].open(number, Role::Client);
        nodes[server].open(number, Role::Server);
    }
}

fn close(nodes: &mut [Node], numbers: std::ops::Range<u32>) {
    for number in numbers {
        let (client, server) = ends(nodes.len(), number);
        nodes[client].close(number);
        nodes[server].close(number);
    }
}

fn ends(nodes: usize, number: u32) -> (usize, usize) {
    let client = number as usize % nodes;
    (client, (client + 1) % nodes)
}

fn homes(nodes: &[Node]) -> BTreeMap<String, usize> {
    let mut homes = BTreeMap::new();
    for node in nodes {
        *homes.entry(node.home()).or_default() += 1;
    }
    homes
}

const NODES: [&str; 6] = ["node0", "node1", "node2", "node3", "node4", "node5"];

/// Three that found each other by one seed, agents at both homes of the first region.
async fn begin(lab: &Lab) -> (BTreeMap<&'static str, Program>, Vec<Node>) {
    let programs = FEDERATORS.map(|(name, _)| (name, lab.start(name)));
    for (name, _) in FEDERATORS {
        lab.until_seen(name, all_up).await;
    }
    let nodes: Vec<Node> = NODES.into_iter().map(|name| lab.node(name)).collect();
    until("agents are shared", || {
        homes(&nodes)
            .keys()
            .map(String::as_str)
            .eq(["fed-a", "fed-b"])
    })
    .await;
    (programs.into(), nodes)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_drained_gives_its_agents_to_the_other() {
    let lab = Lab::new();
    let (_programs, mut nodes) = begin(&lab).await;
    open(&mut nodes, 1..25);
    let drain = |draining| FederationRequest::Drain {
        federator: "fed-b".into(),
        draining,
    };
    let done = lab.request("fed-b", PeerRole::Admin, &drain(true)).await;
    assert!(matches!(done, FederationAnswer::Done { .. }), "{done:?}");
    until("all agents are with the other", || {
        homes(&nodes).keys().map(String::as_str).eq(["fed-a"])
    })
    .await;
    lab.until_seen("fed-c", |states| {
        let b = states.iter().find(|state| state.name == "fed-b").unwrap();
        b.state == Presence::Draining
    })
    .await;
    // Some live on with the home that they had, some are opened with the new one.
    open(&mut nodes, 25..49);
    close(&mut nodes, 1..49);
    until("everything is delivered", || {
        nodes.iter().all(Node::delivered)
    })
    .await;
    lab.until_true(48).await;
    let done = lab.request("fed-b", PeerRole::Admin, &drain(false)).await;
    assert!(matches!(done, FederationAnswer::Done { .. }), "{done:?}");
    until("agents are shared again", || homes(&nodes).len() == 2).await;
    open(&mut nodes, 49..61);
    close(&mut nodes, 49..61);
    until("everything is delivered", || {
        nodes.iter().all(Node::delivered)
    })
    .await;
    lab.until_true(60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_under_load_loses_and_doubles_nothing() {
    let lab = Lab::new();
    let (mut programs, mut nodes) = begin(&lab).await;
    let mut number = 1;
    let mut load = async |nodes: &mut Vec<Node>, rounds: u32| {
        for _ in 0..rounds {
            open(nodes, number..number + 6);
            if number > 18 {
                close(nodes, number - 18..number - 12);
            }
            number += 6;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        number
    };
    load(&mut nodes, 30).await;
    // What it has not acknowledged by now stands in its journal, or does not.
    programs.remove("fed-a").unwrap().kill();
    load(&mut nodes, 30).await;
    until("all agents are with the one that is left", || {
        homes(&nodes).keys().map(String::as_str).eq(["fed-b"])
    })
    .await;
    load(&mut nodes, 30).await;
    lab.until_seen("fed-b", |states| {
        let a = states.iter().find(|state| state.name == "fed-a").unwrap();
        a.state == Presence::Down
    })
    .await;
    programs.insert("fed-a", lab.start("fed-a"));
    load(&mut nodes, 30).await;
    lab.until_seen("fed-c", all_up).await;
    let end = load(&mut nodes, 1).await;
    close(&mut nodes, end - 18..end);
    until("everything is delivered", || {
        nodes.iter().all(Node::delivered)
    })
    .await;
    lab.until_true(u64::from(end - 1)).await;
    until("agents are shared again", || homes(&nodes).len() == 2).await;
}
