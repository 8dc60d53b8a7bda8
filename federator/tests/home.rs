//! One federator: agents in, connections out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use weft_federator::journal::{BatchEntry, EntryRef, Journal};
use weft_federator::run::Federator;
use weft_federator::testing::{World, batch_of, half, local};
use weft_wire::query::{ConnectionState, Filter, Question, Scope, Unmatched};
use weft_wire::{
    AgentKey, DatagramSort, Datagrams, Fingerprint, Half, HalfState, Protocol, Role, Timestamp,
};

#[tokio::test(flavor = "multi_thread")]
async fn two_ends_become_one_connection() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let (federator, address) = world.start("fed-a").await.unwrap();
    let mut client = world.agent("fed-a", &address, "a1").await.unwrap();
    let mut server = world.agent("fed-a", &address, "a2").await.unwrap();
    let of = |agent, role| {
        (1..=20)
            .map(|n| half(agent, n, role, HalfState::Closed))
            .collect()
    };
    let mut clients = batch_of("web", of(client.key, Role::Client));
    clients
        .halves
        .push(half(client.key, 99, Role::Client, HalfState::Open));
    client.send(1, &clients).await.unwrap();
    server
        .send(1, &batch_of("db", of(server.key, Role::Server)))
        .await
        .unwrap();
    client.acknowledged(1).await.unwrap();
    server.acknowledged(1).await.unwrap();

    let operator = world.operator(&address).await.unwrap();
    let answer = operator.connections(local()).await.unwrap();
    assert_eq!(answer.connections.len(), 21);
    assert_eq!(answer.completeness.halves.matched, 40);
    assert_eq!(answer.completeness.halves.unmatched[&Unmatched::Pending], 1);
    let joined: Vec<_> = answer
        .connections
        .iter()
        .filter(|c| c.matched.is_some())
        .collect();
    assert_eq!(joined.len(), 20);
    let one = joined[0];
    let (a, b) = (one.client.as_ref().unwrap(), one.server.as_ref().unwrap());
    assert_eq!((a.workload.as_str(), b.workload.as_str()), ("web", "db"));
    assert_eq!((a.agent.as_str(), b.federator.as_str()), ("a1", "fed-a"));
    let matched = one.matched.as_ref().unwrap();
    assert_eq!(matched.evidence, "tcp-isn-pair");
    assert_eq!(
        matched.nat,
        ["source", "source-port", "destination", "destination-port"]
    );
    assert!(matched.checks.iter().all(|check| check.agrees));
    assert_eq!(one.state, ConnectionState::Closed);

    let explained = operator
        .ask(
            local(),
            Question::Explain {
                id_prefix: one.id.to_string()[..12].into(),
            },
        )
        .await
        .unwrap()
        .unwrap();
    assert_eq!(explained.connections, std::slice::from_ref(one));
    let filter = Filter {
        from: Some("web".into()),
        expression: Some("server is null".into()),
        ..Filter::default()
    };
    let open = operator
        .ask(Scope::Mesh, Question::Connections { filter, limit: 5 })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(open.connections.len(), 1);
    federator.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_delivered_again_count_once() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let (federator, address) = world.start("fed-a").await.unwrap();
    let mut first = world.agent("fed-a", &address, "a1").await.unwrap();
    let batches: Vec<_> = (1..=5u32)
        .map(|n| {
            batch_of(
                "web",
                vec![half(first.key, n, Role::Client, HalfState::Closed)],
            )
        })
        .collect();
    for (index, batch) in batches.iter().enumerate() {
        first.send(index as u64 + 1, batch).await.unwrap();
    }
    first.acknowledged(5).await.unwrap();
    // A second session of the same agent takes over, and sends everything again.
    let mut second = world.agent("fed-a", &address, "a1").await.unwrap();
    assert_eq!(second.durable_seq, 5);
    assert!(first.acknowledged(6).await.is_err(), "superseded");
    for (index, batch) in batches.iter().enumerate().rev() {
        second.send(index as u64 + 1, batch).await.unwrap();
    }
    second
        .send(
            6,
            &batch_of(
                "web",
                vec![half(second.key, 6, Role::Client, HalfState::Closed)],
            ),
        )
        .await
        .unwrap();
    second.acknowledged(6).await.unwrap();
    let answer = world.connections(&address).await.unwrap();
    assert_eq!(answer.connections.len(), 6);
    federator.drain().await;

    // And after a restart everything is there.
    let (federator, address) = world.start("fed-a").await.unwrap();
    let agent = world.agent("fed-a", &address, "a1").await.unwrap();
    assert_eq!(agent.durable_seq, 6);
    let answer = world.connections(&address).await.unwrap();
    assert_eq!(answer.connections.len(), 6);
    federator.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_flow_that_waited_through_a_restart_is_joined() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let (federator, address) = world.start("fed-a").await.unwrap();
    let mut client = world.agent("fed-a", &address, "a1").await.unwrap();
    let asked = half(client.key, 1, Role::Client, HalfState::Closed);
    let flow = |half: Half| Half {
        protocol: Protocol::Udp,
        fingerprint: Fingerprint::Datagrams(Datagrams {
            sort: DatagramSort::Quic,
            client: 5,
            server: 9,
            distinct: true,
        }),
        opened_at: asked.opened_at,
        closed_at: asked.closed_at,
        seen_at: asked.seen_at,
        ..half
    };
    let one = |half: Half, workload| batch_of(workload, vec![flow(half)]);
    client.send(1, &one(asked, "web")).await.unwrap();
    client.acknowledged(1).await.unwrap();
    drop(client);
    federator.drain().await;

    let (federator, address) = world.start("fed-a").await.unwrap();
    let mut server = world.agent("fed-a", &address, "a2").await.unwrap();
    let answered = half(server.key, 1, Role::Server, HalfState::Closed);
    server.send(1, &one(answered, "db")).await.unwrap();
    server.acknowledged(1).await.unwrap();
    let mut joined = false;
    for _ in 0..200 {
        let answer = world.connections(&address).await.unwrap();
        joined = answer.completeness.halves.matched == 2;
        if joined {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(joined);
    federator.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_another_version_is_not_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let config = world.config("fed-a", "127.0.0.1:0", &[]).unwrap();
    let journal = || Journal::open(&config.journal_folder(), 0, 0, |_, _| ()).unwrap();
    let (mut written, _) = journal();
    let batch = BatchEntry {
        arrived_at: Timestamp(1),
        agent: AgentKey(2),
        seq: 3,
        skew_us: 0,
        batch: [250, 1, 2].as_slice(),
    };
    written.append(EntryRef::Batch(batch)).unwrap();
    let end = written.commit().unwrap();
    drop(written);
    let refused = Federator::start(config.clone()).await.err().unwrap();
    assert!(refused.to_string().contains("another version"), "{refused}");
    assert_eq!(journal().0.end(), end, "nothing was added");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_kept_apart() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let (federator, address) = world.start("fed-a").await.unwrap();
    let identity = world
        .identity("r-fed-a", weft_transport::PeerRole::Agent, "a1")
        .unwrap();
    let identity = weft_transport::Identity::load(&identity).unwrap();
    let impostor = weft_federator::testing::Agent::connect(&identity, &address, "a2").await;
    assert!(impostor.is_err(), "a name that is not the certificate's");
    let operator = world
        .identity("ops", weft_transport::PeerRole::Operator, "op")
        .unwrap();
    let operator = weft_transport::Identity::load(&operator).unwrap();
    assert!(
        weft_federator::testing::Agent::connect(&operator, &address, "op")
            .await
            .is_err(),
        "an operator sends no halves"
    );
    let answer = world.connections(&address).await.unwrap();
    assert!(answer.connections.is_empty());
    federator.drain().await;
}
