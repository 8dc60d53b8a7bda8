//! Several federators on loopback: connections whose ends are at home in two of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use weft_federator::run::Federator;
use weft_federator::testing::{Agent, Operator, World, address, batch_of, half, local};
use weft_wire::query::{Connection, Question, Unmatched};
use weft_wire::{
    Application, DatagramSort, Datagrams, Fingerprint, Half, HalfBatch, HalfState, NameSource,
    PeerName, Process, Protocol, Role,
};

struct Mesh {
    world: World,
    addresses: Vec<(String, String)>,
    federators: Vec<Option<Federator>>,
    _folder: tempfile::TempDir,
}

impl Mesh {
    async fn start(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(folder.path()).unwrap();
        let addresses = names
            .iter()
            .map(|name| ((*name).to_owned(), address()))
            .collect();
        let federators = names.iter().map(|_| None).collect();
        let mut mesh = Self {
            world,
            addresses,
            federators,
            _folder: folder,
        };
        for index in 0..names.len() {
            mesh.restart(index).await;
        }
        mesh
    }

    async fn restart(&mut self, index: usize) {
        if let Some(federator) = self.federators[index].take() {
            federator.drain().await;
        }
        let (name, address) = &self.addresses[index];
        // The socket of the one before is closed by a task of its own, a little later.
        while std::net::UdpSocket::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let peers: Vec<(&str, &str)> = self
            .addresses
            .iter()
            .filter(|(other, _)| other != name)
            .map(|(name, address)| (name.as_str(), address.as_str()))
            .collect();
        let config = self.world.config(name, address, &peers).unwrap();
        self.federators[index] = Some(Federator::start(config).await.unwrap());
    }

    async fn agent(&self, index: usize, name: &str) -> Agent {
        let (federator, address) = &self.addresses[index];
        self.world.agent(federator, address, name).await.unwrap()
    }

    async fn operator(&self, index: usize) -> Operator {
        self.world.operator(&self.addresses[index].1).await.unwrap()
    }

    /// The connections of one federator, once `good` says so of them.
    async fn until(&self, index: usize, good: impl Fn(&[Connection]) -> bool) -> Vec<Connection> {
        let operator = self.operator(index).await;
        let mut last = Vec::new();
        for _ in 0..200 {
            last = operator.connections(local()).await.unwrap().connections;
            if good(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never became good: {last:#?}");
    }

    async fn stop(mut self) {
        for federator in self.federators.iter_mut().filter_map(Option::take) {
            federator.drain().await;
        }
    }
}

fn all_joined(count: usize) -> impl Fn(&[Connection]) -> bool {
    move |all| {
        all.len() == count
            && all
                .iter()
                .all(|c| c.matched.is_some() && c.closed_at.is_some())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_federators_join_what_neither_can_alone() {
    let mesh = Mesh::start(&["fed-a", "fed-b"]).await;
    let (mut client, mut server) = (mesh.agent(0, "a1").await, mesh.agent(1, "b1").await);
    let of = |agent, role, state, range: std::ops::Range<u32>| -> Vec<_> {
        range.map(|n| half(agent, n, role, state)).collect()
    };
    // Some open at first, some closed at once.
    let mut clients = of(client.key, Role::Client, HalfState::Open, 1..6);
    clients.extend(of(client.key, Role::Client, HalfState::Closed, 6..31));
    client.send(1, &batch_of("web", clients)).await.unwrap();
    server
        .send(
            1,
            &batch_of("db", of(server.key, Role::Server, HalfState::Closed, 1..31)),
        )
        .await
        .unwrap();
    for index in 0..2 {
        mesh.until(index, |all| {
            all.len() == 30 && all.iter().all(|c| c.matched.is_some())
        })
        .await;
    }
    client
        .send(
            2,
            &batch_of("web", of(client.key, Role::Client, HalfState::Closed, 1..6)),
        )
        .await
        .unwrap();
    let (mut a, mut b) = (
        mesh.until(0, all_joined(30)).await,
        mesh.until(1, all_joined(30)).await,
    );
    a.sort_by_key(|c| c.id);
    b.sort_by_key(|c| c.id);
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a.id, b.id);
        assert_eq!(
            (
                a.client.as_ref().unwrap().half,
                b.client.as_ref().unwrap().half
            ),
            (a.id, a.id)
        );
        assert_eq!(a.server.as_ref().unwrap().federator, "fed-b");
        assert_eq!(a.server.as_ref().unwrap().workload, "db");
        assert_eq!(
            b.client.as_ref().unwrap().process,
            a.client.as_ref().unwrap().process
        );
        assert_eq!(a.matched.as_ref().unwrap().evidence, "tcp-isn-pair");
        assert!(
            b.matched
                .as_ref()
                .unwrap()
                .checks
                .iter()
                .all(|check| check.agrees)
        );
    }
    for index in 0..2 {
        let health = mesh.operator(index).await;
        let health = health.ask(local(), Question::Health).await.unwrap();
        let delay = health.unwrap().health[0].exchange_delay_us.unwrap();
        // At least a commit, at most what this test may take.
        assert!((100..30_000_000).contains(&delay), "{delay}");
    }
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_homes_know_the_clients_name_and_what_is_spoken() {
    let mut mesh = Mesh::start(&["fed-a", "fed-b"]).await;
    let (mut client, mut server) = (mesh.agent(0, "a1").await, mesh.agent(1, "b1").await);
    // The name was looked up by the client's process, and what is spoken is told by the server's end alone.
    let asked = |number| Half {
        name: 1,
        named_before_us: 71_000,
        ..half(client.key, number, Role::Client, HalfState::Open)
    };
    let named = HalfBatch {
        names: vec![PeerName {
            name: "api.shop.example".into(),
            source: NameSource::DnsProcess,
        }],
        ..batch_of("web", vec![asked(1), asked(2)])
    };
    let told = |number| Half {
        application: Application::Postgres,
        ..half(server.key, number, Role::Server, HalfState::Open)
    };
    let mut shared = batch_of("db", vec![told(1), told(2)]);
    shared.owners[0].sharers = vec![Process {
        pid: 43,
        name: "worker".into(),
        ..Process::default()
    }];
    client.send(1, &named).await.unwrap();
    server.send(1, &shared).await.unwrap();
    let known = |all: &[Connection]| {
        all.len() == 2
            && all.iter().all(|c| {
                let name = c.name.as_ref().map(|n| (&*n.name, n.source, n.before_us));
                let sharers = c.server.as_ref().map(|end| end.sharers.len());
                name == Some(("api.shop.example", NameSource::DnsProcess, 71_000))
                    && c.application == Some(Application::Postgres)
                    && sharers == Some(1)
            })
    };
    for index in 0..2 {
        mesh.until(index, known).await;
    }
    // From the store, and after the end, of which the agent says no name any more.
    mesh.restart(0).await;
    mesh.until(0, known).await;
    let mut client = mesh.agent(0, "a1").await;
    let closed = half(client.key, 1, Role::Client, HalfState::Closed);
    client
        .send(2, &batch_of("web", vec![closed]))
        .await
        .unwrap();
    mesh.until(0, |all| {
        known(all)
            && all
                .iter()
                .filter_map(|c| c.client.as_ref())
                .any(|end| end.state == HalfState::Closed)
    })
    .await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_neither_home_brings_them_together() {
    let mesh = Mesh::start(&["fed-a", "fed-b", "fed-c"]).await;
    let (mut client, mut server) = (mesh.agent(0, "a1").await, mesh.agent(1, "b1").await);
    // Of so many, some belong to each of the three.
    let of = |agent, role| {
        (1..=60)
            .map(|n| half(agent, n, role, HalfState::Closed))
            .collect()
    };
    client
        .send(1, &batch_of("web", of(client.key, Role::Client)))
        .await
        .unwrap();
    server
        .send(1, &batch_of("db", of(server.key, Role::Server)))
        .await
        .unwrap();
    mesh.until(0, all_joined(60)).await;
    mesh.until(1, all_joined(60)).await;
    assert!(
        mesh.operator(2)
            .await
            .connections(local())
            .await
            .unwrap()
            .connections
            .is_empty()
    );
    mesh.stop().await;
}

fn port_of(address: &str) -> u16 {
    address.parse::<std::net::SocketAddr>().unwrap().port()
}

/// The same end of a made-up connection, as a UDP flow: its first datagrams instead of sequence numbers.
fn udp(agent: weft_wire::AgentKey, number: u32, role: Role, sort: DatagramSort) -> Half {
    let tcp = half(agent, number, role, HalfState::Closed);
    Half {
        protocol: Protocol::Udp,
        fingerprint: Fingerprint::Datagrams(Datagrams {
            sort,
            client: u64::from(number) + 1000,
            server: u64::from(number) + 2000,
            distinct: true,
        }),
        packets_sent: 4,
        packets_received: 4,
        ..tcp
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_flows_of_two_federators_are_joined_by_their_first_datagrams() {
    let mesh = Mesh::start(&["fed-a", "fed-b"]).await;
    let (mut client, mut server) = (mesh.agent(0, "a1").await, mesh.agent(1, "b1").await);
    let sort = |number| match number % 2 {
        0 => DatagramSort::Quic,
        _ => DatagramSort::Other,
    };
    let of = |agent, role| -> Vec<_> { (1..=20).map(|n| udp(agent, n, role, sort(n))).collect() };
    // One greeting of several clients, which no server's end can be told to belong to.
    let alike = |agent, number, role| Half {
        fingerprint: Fingerprint::Datagrams(Datagrams {
            sort: DatagramSort::Other,
            client: 1,
            server: 2,
            distinct: true,
        }),
        ..udp(agent, number, role, DatagramSort::Other)
    };
    let mut clients = of(client.key, Role::Client);
    clients.extend([30, 31].map(|n| alike(client.key, n, Role::Client)));
    let mut servers = of(server.key, Role::Server);
    servers.extend([30, 31].map(|n| alike(server.key, n, Role::Server)));
    client.send(1, &batch_of("web", clients)).await.unwrap();
    server.send(1, &batch_of("db", servers)).await.unwrap();
    let decided = |all: &[Connection]| {
        let ambiguous = all
            .iter()
            .filter(|c| c.path.unmatched == Some(Unmatched::Ambiguous));
        all.iter().filter(|c| c.matched.is_some()).count() == 20 && ambiguous.count() == 2
    };
    for index in 0..2 {
        for one in mesh.until(index, decided).await {
            let Some(matched) = one.matched else { continue };
            let (client, server) = (one.client.unwrap(), one.server.unwrap());
            assert_eq!(one.protocol, Protocol::Udp);
            assert_eq!(
                (client.workload.as_str(), server.workload.as_str()),
                ("web", "db")
            );
            let expected = match matched.evidence.as_str() {
                "quic-connection-id" => 0,
                "udp-first-datagram" => 1,
                other => panic!("{other}"),
            };
            // The client's port says which flow it is, and the NAT made the other end's of it.
            let port = port_of(&client.local);
            assert_eq!((port - 1024) % 2, expected);
            assert_eq!(port_of(&server.remote), port.wrapping_mul(3));
        }
    }
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federator_that_was_away_catches_up() {
    let mut mesh = Mesh::start(&["fed-a", "fed-b"]).await;
    let mut client = mesh.agent(0, "a1").await;
    let of =
        |agent, role, state| -> Vec<_> { (1..=20).map(|n| half(agent, n, role, state)).collect() };
    client
        .send(
            1,
            &batch_of("web", of(client.key, Role::Client, HalfState::Open)),
        )
        .await
        .unwrap();
    client.acknowledged(1).await.unwrap();
    if let Some(federator) = mesh.federators[1].take() {
        federator.drain().await;
    }
    client
        .send(
            2,
            &batch_of("web", of(client.key, Role::Client, HalfState::Closed)),
        )
        .await
        .unwrap();
    client.acknowledged(2).await.unwrap();
    mesh.restart(1).await;
    let mut server = mesh.agent(1, "b1").await;
    server
        .send(
            1,
            &batch_of("db", of(server.key, Role::Server, HalfState::Closed)),
        )
        .await
        .unwrap();
    mesh.until(0, all_joined(20)).await;
    mesh.until(1, all_joined(20)).await;
    // Restarted after the match: the same, and no more.
    mesh.restart(0).await;
    mesh.restart(1).await;
    mesh.until(0, all_joined(20)).await;
    mesh.until(1, all_joined(20)).await;
    mesh.stop().await;
}
