//! Questions: filters, reports, SQL, health; of one federator and of the mesh.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use weft_federator::run::Federator;
use weft_federator::testing::{Answered, Operator, World, address, batch_of, half, local};
use weft_wire::query::{
    Filter, QueryError, Question, Report, ReportOrder, Scope, SqlValue, Unmatched,
};
use weft_wire::{Application, Half, HalfBatch, HalfState, NameSource, PeerName, Pod, Role, filter};

struct Pair {
    world: World,
    addresses: [String; 2],
    federators: Vec<Federator>,
    _folder: tempfile::TempDir,
}

impl Pair {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(folder.path()).unwrap();
        let addresses = [(); 2].map(|()| address());
        let names = ["fed-a", "fed-b"];
        let mut federators = Vec::new();
        for me in 0..2 {
            let other = (names[1 - me], addresses[1 - me].as_str());
            let config = world.config(names[me], &addresses[me], &[other]).unwrap();
            federators.push(Federator::start(config).await.unwrap());
        }
        Self {
            world,
            addresses,
            federators,
            _folder: folder,
        }
    }

    /// Ten connections from web (at home in a) to db (in b), one web has alone, one refused.
    async fn load(&self) {
        let mut client = self
            .world
            .agent("fed-a", &self.addresses[0], "a1")
            .await
            .unwrap();
        let mut server = self
            .world
            .agent("fed-b", &self.addresses[1], "b1")
            .await
            .unwrap();
        let mut clients: Vec<Half> = (1..=11)
            .map(|n| half(client.key, n, Role::Client, HalfState::Closed))
            .collect();
        clients.push(half(client.key, 12, Role::Client, HalfState::Refused));
        for half in &mut clients[..4] {
            (half.name, half.application) = (1, Application::Tls);
        }
        let servers = (1..=10)
            .map(|n| half(server.key, n, Role::Server, HalfState::Closed))
            .collect();
        let mut web = batch_of("web", clients);
        let owner = &mut web.owners[0];
        owner.pod = Some(Pod {
            namespace: "shop".into(),
            name: "web-7f9".into(),
            ..Pod::default()
        });
        (owner.unit, owner.escaped) = (Some("web.service".into()), true);
        let named = HalfBatch {
            names: vec![PeerName {
                name: "api.shop.example".into(),
                source: NameSource::Sni,
            }],
            ..web
        };
        client.send(1, &named).await.unwrap();
        server.send(1, &batch_of("db", servers)).await.unwrap();
        client.acknowledged(1).await.unwrap();
        server.acknowledged(1).await.unwrap();
        for address in &self.addresses {
            let operator = self.world.operator(address).await.unwrap();
            let mut matched = 0;
            for _ in 0..200 {
                matched = operator
                    .connections(local())
                    .await
                    .unwrap()
                    .completeness
                    .halves
                    .matched;
                if matched == 10 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(matched, 10);
        }
    }

    async fn operator(&self, index: usize) -> Operator {
        self.world.operator(&self.addresses[index]).await.unwrap()
    }

    async fn stop(self) {
        for federator in self.federators {
            federator.drain().await;
        }
    }
}

/// Connections of the federator that is asked, of those that the filter lets pass.
async fn passing(operator: &Operator, filter: Filter) -> Result<Answered, QueryError> {
    let question = Question::Connections { filter, limit: 100 };
    operator.ask(local(), question).await.unwrap()
}

fn report(report: Report) -> Question {
    Question::Report {
        report,
        filter: Filter::default(),
        by: ReportOrder::Bytes,
        top: 10,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_answers_as_one() {
    let pair = Pair::start().await;
    pair.load().await;
    for index in 0..2 {
        let operator = pair.operator(index).await;
        let all = operator.connections(Scope::Mesh).await.unwrap();
        assert_eq!(all.connections.len(), 12);
        assert_eq!(all.completeness.federators.len(), 2);
        assert!(
            all.completeness
                .federators
                .iter()
                .all(|reach| reach.reached)
        );
        assert_eq!(all.completeness.halves.matched, 20);
        assert_eq!(all.completeness.halves.unmatched[&Unmatched::Pending], 1);
        assert_eq!(
            all.completeness.halves.unmatched[&Unmatched::NotEstablished],
            1
        );

        let rows = operator
            .ask(Scope::Mesh, report(Report::Dependencies))
            .await
            .unwrap()
            .unwrap()
            .report;
        let joined = rows.iter().find(|row| row.server.workload == "db").unwrap();
        assert_eq!(
            (joined.client.workload.as_str(), joined.connections),
            ("web", 10)
        );
        assert_eq!(
            (joined.bytes_to_server, joined.bytes_to_client),
            (182_040, 9_770)
        );
        assert!(joined.via.contains(&"203.0.113.9".to_owned()) && joined.client.managed);
        let alone = rows.iter().find(|row| !row.server.managed).unwrap();
        assert_eq!(
            (alone.server.workload.as_str(), alone.connections),
            ("203.0.113.9", 1)
        );
        assert_eq!(rows.len(), 2);

        let text = "SELECT server_workload AS w, count(*) AS n, sum(client_bytes_sent) AS sent FROM connection
            WHERE evidence = 'tcp-isn-pair' GROUP BY ALL";
        let sql = operator.sql(Scope::Mesh, text).await.unwrap().unwrap();
        assert_eq!(sql.columns, ["w", "n", "sent"]);
        assert_eq!(
            sql.rows,
            [[
                SqlValue::Text("db".into()),
                SqlValue::Int(10),
                SqlValue::Int(182_040)
            ]]
        );
        let text = "SELECT name, name_source, application, count(*) AS n FROM connection WHERE name IS NOT NULL GROUP BY ALL";
        let sql = operator.sql(Scope::Mesh, text).await.unwrap().unwrap();
        let [name, source, application] =
            ["api.shop.example", "sni", "tls"].map(|text| SqlValue::Text(text.into()));
        assert_eq!(sql.rows, [[name, source, application, SqlValue::Int(4)]]);
        let error = operator
            .sql(Scope::Mesh, "SELECT * FROM read_csv('/etc/passwd')")
            .await
            .unwrap()
            .unwrap_err();
        assert!(error.code.starts_with("E-SQL"), "{error:?}");

        let health = operator
            .ask(Scope::Mesh, Question::Health)
            .await
            .unwrap()
            .unwrap()
            .health;
        assert_eq!(
            health
                .iter()
                .map(|one| one.name.as_str())
                .collect::<Vec<_>>(),
            ["fed-a", "fed-b"]
        );
        assert!(
            health
                .iter()
                .all(|one| one.reached && one.peers.len() == 1 && one.agents.len() == 1)
        );
        assert!(
            health
                .iter()
                .all(|one| one.peers[0].connected && one.certificate_days_left >= 28)
        );
    }
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_counts_when_the_home_is_away() {
    let mut pair = Pair::start().await;
    pair.load().await;
    let away = pair.federators.remove(0);
    away.drain().await;
    let operator = pair.operator(1).await;
    let all = operator.connections(Scope::Mesh).await.unwrap();
    assert_eq!(all.connections.len(), 10);
    let reach = all
        .completeness
        .federators
        .iter()
        .find(|reach| reach.federator == "fed-a")
        .unwrap();
    assert!(!reach.reached && reach.error.is_some());
    let rows = operator
        .ask(Scope::Mesh, report(Report::Dependencies))
        .await
        .unwrap()
        .unwrap()
        .report;
    assert_eq!(
        rows.iter().map(|row| row.connections).collect::<Vec<_>>(),
        [10],
        "by the copies"
    );
    let rows = operator
        .ask(local(), report(Report::Dependencies))
        .await
        .unwrap()
        .unwrap()
        .report;
    assert!(rows.is_empty(), "the client's home keeps the record");
    let health = operator
        .ask(Scope::Mesh, Question::Health)
        .await
        .unwrap()
        .unwrap()
        .health;
    assert_eq!(
        health.iter().map(|one| one.reached).collect::<Vec<_>>(),
        [false, true]
    );
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_understands_filters_as_the_reference_does() {
    let pair = Pair::start().await;
    pair.load().await;
    let operator = pair.operator(0).await;
    let all = operator.connections(local()).await.unwrap().connections;
    assert_eq!(all.len(), 12);
    let id = all[3].id.to_string();
    let at = all[5].opened_at.to_string();
    let mut some = 0;
    for text in [
        "client.workload = web",
        "server.workload = \"db\" and not client is null",
        "client.workload ~ \"w?b\"",
        "client.workload ~ \"w%\"",
        "client.workload !~ \"x*\"",
        "name = api.shop.example",
        "name ~ \"*.shop.*\"",
        "name is null",
        "name != other.example",
        "application = tls",
        "application in (http1, http2)",
        "application is null",
        "server is null",
        "not (server is null or state = failed)",
        "client.address in 10.1.0.0/16",
        "client.address = 10.1.0.2",
        "client.address in 10.0.0.0/16",
        "client.address in ::/0",
        "server.remote in (198.51.100.0/24, 2001:db8::/32)",
        "client.port in (1025, 1026, 1100)",
        "client.port > 1030",
        "bytes >= 19181",
        "bytes < 1kb",
        "duration >= 2ms",
        "closed_at is null",
        &format!("id = {id}"),
        &format!("id ~ \"{}*\"", &id[..5]),
        &format!("opened_at < {at}"),
        &format!("not opened_at < {at}"),
        "state = closed",
        "state in (failed, open)",
        "client.state = refused",
        "protocol = tcp",
        "match.evidence = tcp-isn-pair",
        "match.evidence ~ \"tcp*\"",
        "match.evidence is null",
        "match.confidence = exact",
        "match.nat = source",
        "match.nat is null",
        "match.nat != destination-port",
        "path.class = north-south",
        "path.crosses = zone",
        "path.crosses is null",
        "path.crosses in (cloud, region, zone)",
        "path.via = 203.0.113.9",
        "path.via in 198.51.100.0/24",
        "path.via is null",
        "path.unmatched = pending",
        "path.unmatched is not null",
        "client.federator = fed-a and server.federator = fed-b",
        "server.cloud = lab",
        "server.region is null",
        "client.zone = zone-a1",
        "client.process = web",
        "client.pid = 42",
        "client.exe is null",
        "client.container is null",
        "client.pod = web-7f9 and server.pod is null",
        "not client.pod ~ \"web-*\"",
        "server.unit is null",
        "client.unit = web.service and server.escaped = false",
        "client.escaped = true",
        "server.escaped = false",
        "server.escaped != true",
        "server.escaped is null",
        "client.rtt >= 800us",
        "client.retransmits = 0",
        "server.bytes_received = 18204",
        "client.uid = 0",
    ] {
        let reference = filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut expected: Vec<_> = all
            .iter()
            .filter(|c| reference.matches(c))
            .map(|c| c.id)
            .collect();
        let filter = Filter {
            expression: Some(text.to_owned()),
            ..Filter::default()
        };
        let found = passing(&operator, filter).await;
        let found = found.unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut found: Vec<_> = found.connections.iter().map(|c| c.id).collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{text}");
        some += usize::from(!found.is_empty() && found.len() < all.len());
    }
    assert!(
        some > 20,
        "most filters should tell connections apart: {some}"
    );
    let nonsense = Filter {
        expression: Some("client.workload = 'x' ; drop".into()),
        ..Filter::default()
    };
    let error = passing(&operator, nonsense).await.unwrap_err();
    assert_eq!(error.code, "E-FILTER");
    let injection = Filter {
        from: Some("workload:x' OR '1'='1".into()),
        ..Filter::default()
    };
    let none = passing(&operator, injection).await.unwrap();
    assert!(none.connections.is_empty());
    pair.stop().await;
}
