//! Lookups from agents to reports, over real QUIC: acknowledged once durable, counted once, merged over the mesh.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use weft_federator::run::Federator;
use weft_federator::testing::{Agent, Answered, Operator, World, address, batch_of, half, local};
use weft_wire::query::{DnsReport, Filter, Question, Scope, SqlValue};
use weft_wire::{Answer, HalfState, Lookup, LookupBatch, Owner, Pod, Process, Role, Timestamp};

fn lookup(owner: u32, name: &str, code: Option<u16>) -> Lookup {
    let found = code == Some(0);
    Lookup {
        local: SocketAddr::from(([10, 1, 0, 2], 40_000)),
        resolver: SocketAddr::from(([10, 96, 0, 10], 53)),
        asked_at: weft_federator::clock::now(),
        latency_us: code.map(|_| 400),
        name: name.into(),
        qtype: 1,
        code,
        answers: found
            .then(|| Answer::Address([192, 0, 2, 7].into(), 30))
            .into_iter()
            .collect(),
        answer_total: u16::from(found),
        owner,
        ..Lookup::default()
    }
}

/// Two processes: curl in a pod, and systemd on the host.
fn batch(lookups: Vec<Lookup>) -> LookupBatch {
    let owner = |process: &str, workload: &str, pod| Owner {
        process: Some(Process {
            pid: 7,
            name: process.into(),
            ..Process::default()
        }),
        workload: workload.into(),
        pod,
        ..Owner::default()
    };
    let pod = Pod {
        namespace: "shop".into(),
        name: "cart-7f9".into(),
        ..Pod::default()
    };
    LookupBatch {
        boot: 7,
        owners: vec![
            owner("curl", "cart", Some(pod)),
            owner("systemd", "host", None),
        ],
        lookups,
    }
}

fn some() -> LookupBatch {
    let wasted = Lookup {
        search_of: Some("api.bad.example.com".into()),
        ..lookup(0, "api.bad.example.com.shop.svc.cluster.local", Some(3))
    };
    batch(vec![
        wasted,
        lookup(0, "api.bad.example.com", Some(0)),
        lookup(0, "db.shop.svc.cluster.local", Some(0)),
        lookup(0, "db.shop.svc.cluster.local", Some(0)),
        lookup(1, "db.shop.svc.cluster.local", None),
        // What a server was asked does not count again.
        Lookup {
            role: Role::Server,
            ..lookup(1, "db.shop.svc.cluster.local", Some(0))
        },
    ])
}

async fn dns(operator: &Operator, scope: Scope, report: DnsReport, from: Option<&str>) -> Answered {
    let question = Question::Dns {
        report,
        filter: Filter {
            from: from.map(str::to_owned),
            since: Some(Timestamp(weft_federator::clock::now().0 - 3_600_000_000)),
            ..Filter::default()
        },
        top: 20,
    };
    operator.ask(scope, question).await.unwrap().unwrap()
}

async fn deliver(agent: &mut Agent, seq: u64) {
    agent.send_lookups(seq, &some()).await.unwrap();
    agent.acknowledged(seq).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_report_says_what_was_asked_and_a_restart_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let list = folder.path().join("threats");
    std::fs::write(&list, "0.0.0.0 other.example\n").unwrap();
    let mut config = world.config("fed-a", "127.0.0.1:0", &[]).unwrap();
    config.dns.threats = vec![list.clone()];
    let federator = Federator::start(config.clone()).await.unwrap();
    let address = federator.address().unwrap().to_string();
    let mut agent = world.agent("fed-a", &address, "a1").await.unwrap();
    deliver(&mut agent, 1).await;
    // Halves and lookups share their numbers.
    let halves = vec![half(agent.key, 1, Role::Client, HalfState::Open)];
    agent.send(2, &batch_of("web", halves)).await.unwrap();
    deliver(&mut agent, 3).await;
    deliver(&mut agent, 3).await;
    let operator = world.operator(&address).await.unwrap();

    let top = dns(&operator, local(), DnsReport::Top, None).await;
    let counts: Vec<_> = top
        .dns
        .iter()
        .map(|row| {
            (
                row.asker.process.as_deref().unwrap(),
                row.lookups,
                row.names,
                row.wasted,
                row.unanswered,
            )
        })
        .collect();
    assert_eq!(counts, [("curl", 8, 3, 2, 0), ("systemd", 2, 1, 0, 2)]);
    assert_eq!(top.dns[0].asker.pod.as_deref(), Some("cart-7f9"));
    assert_eq!(top.dns[0].latency_us, Some(400));
    assert_eq!(
        dns(&operator, local(), DnsReport::Top, Some("host"))
            .await
            .dns
            .len(),
        1
    );

    let hot = dns(&operator, local(), DnsReport::Hotspots, None).await.dns;
    assert_eq!(
        (hot[0].name.as_str(), hot[0].lookups, hot[0].askers),
        ("db.shop.svc.cluster.local", 6, 2)
    );
    assert_eq!(
        (hot[0].kind.as_str(), hot[0].asker_lookups),
        ("reserved", 4)
    );
    let outside = dns(&operator, local(), DnsReport::External, None).await.dns;
    let names: Vec<_> = outside
        .iter()
        .map(|row| (row.name.as_str(), row.kind.as_str(), row.lookups))
        .collect();
    assert_eq!(names, [("", "reserved", 8), ("example.com", "external", 2)]);
    let failed = dns(&operator, local(), DnsReport::Failures, None).await.dns;
    let names: Vec<_> = failed
        .iter()
        .map(|row| (row.name.as_str(), row.outcome.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            ("api.bad.example.com", "search-path"),
            ("db.shop.svc.cluster.local", "unanswered")
        ]
    );

    assert!(
        dns(&operator, local(), DnsReport::Threats, None)
            .await
            .dns
            .is_empty()
    );
    std::fs::write(&list, "0.0.0.0 other.example\nbad.example.com\n").unwrap();
    let listed = dns(&operator, local(), DnsReport::Threats, None).await.dns;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].name.as_str(), listed[0].threat.as_deref()),
        ("api.bad.example.com", Some("bad.example.com"))
    );
    assert_eq!(listed[0].asker.process.as_deref(), Some("curl"));

    let name = "bad.example.com".to_owned();
    let explained = dns(&operator, local(), DnsReport::Explain { name }, None)
        .await
        .dns;
    assert_eq!(explained.len(), 1);
    assert_eq!(
        (&explained[0].resolvers[..], &explained[0].answers[..]),
        (
            &["10.96.0.10:53".to_owned()][..],
            &["192.0.2.7/30".to_owned()][..]
        )
    );

    let sql = "SELECT process, count(*) AS n FROM lookups WHERE role = 'client' GROUP BY 1 ORDER BY 2 DESC";
    let rows = operator.sql(Scope::Mesh, sql).await.unwrap().unwrap().rows;
    assert_eq!(rows[0], [SqlValue::Text("curl".into()), SqlValue::Int(8)]);

    drop(operator);
    drop(agent);
    federator.drain().await;
    let federator = Federator::start(config).await.unwrap();
    let address = federator.address().unwrap().to_string();
    let agent = world.agent("fed-a", &address, "a1").await.unwrap();
    assert_eq!(agent.durable_seq, 3);
    let operator = world.operator(&address).await.unwrap();
    assert_eq!(
        dns(&operator, local(), DnsReport::Top, None).await.dns,
        top.dns
    );
    federator.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_federators_answer_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let [a, b] = [(); 2].map(|()| address());
    let peers = [[("fed-b", b.as_str())], [("fed-a", a.as_str())]];
    let mut federators = Vec::new();
    for (name, address, peers) in [("fed-a", &a, &peers[0]), ("fed-b", &b, &peers[1])] {
        let config = world.config(name, address, peers).unwrap();
        federators.push(Federator::start(config).await.unwrap());
    }
    let mut agents = [
        world.agent("fed-a", &a, "a1").await.unwrap(),
        world.agent("fed-b", &b, "b1").await.unwrap(),
    ];
    for agent in &mut agents {
        deliver(agent, 1).await;
    }
    // What only one was asked.
    let more = batch(vec![lookup(0, "only.b.example.org", Some(0))]);
    agents[1].send_lookups(2, &more).await.unwrap();
    agents[1].acknowledged(2).await.unwrap();

    for address in [&a, &b] {
        let operator = world.operator(address).await.unwrap();
        // A federator that has just started may not have reached the other yet.
        let mut hot = dns(&operator, Scope::Mesh, DnsReport::Hotspots, None).await;
        for _ in 0..200 {
            if hot
                .completeness
                .federators
                .iter()
                .all(|one| one.error.is_none())
            {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            hot = dns(&operator, Scope::Mesh, DnsReport::Hotspots, None).await;
        }
        let counts: Vec<_> = hot
            .dns
            .iter()
            .map(|row| (row.name.as_str(), row.lookups))
            .collect();
        assert_eq!(counts[0], ("db.shop.svc.cluster.local", 6));
        assert!(counts.contains(&("only.b.example.org", 1)), "{counts:?}");
        let outside = dns(&operator, Scope::Mesh, DnsReport::External, None).await;
        let mut outside: Vec<_> = outside
            .dns
            .iter()
            .map(|row| (row.name.as_str(), row.lookups))
            .collect();
        outside.sort_unstable();
        assert_eq!(outside, [("", 8), ("example.com", 2), ("example.org", 1)]);
        let sql = "SELECT count(*) AS n FROM lookups WHERE role = 'client'";
        let rows = operator.sql(Scope::Mesh, sql).await.unwrap().unwrap().rows;
        assert_eq!(rows, [[SqlValue::Int(11)]]);
        // Asked alone, each says its own.
        let own = dns(&operator, local(), DnsReport::Top, None).await.dns;
        let own: u64 = own.iter().map(|row| row.lookups).sum();
        assert_eq!(own, if address == &a { 5 } else { 6 });
    }
    for federator in federators {
        federator.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_none_ends_the_session_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let (federator, address) = world.start("fed-a").await.unwrap();
    let mut agent = world.agent("fed-a", &address, "a1").await.unwrap();
    agent
        .send_encoded_lookups(1, &[1, 200, 1, 0])
        .await
        .unwrap();
    assert!(agent.acknowledged(1).await.is_err());
    let operator = world.operator(&address).await.unwrap();
    assert!(
        dns(&operator, local(), DnsReport::Top, None)
            .await
            .dns
            .is_empty()
    );
    federator.drain().await;
}
