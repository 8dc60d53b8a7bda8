//! What a person asks: the reports name the pairs of workloads that really talked, and say what they could not ask.

mod common;

use std::collections::BTreeSet;

use common::{compare, ok, settle};
use serde_json::Value;
use weft_lab::answer;
use weft_lab::topology::{self, Topology};
use weft_lab::traffic;
use weft_lab::weft::Weft;
use weft_lab::workload::{Fetch, Servers};

/// Client and server workload and number of connections of every row of a report.
fn pairs(weft: &Weft<'_>, region: usize, report: &str) -> BTreeSet<(String, String, u64)> {
    let answer = ok(weft.json_of(region, &["report", report]));
    let rows = answer["rows"].as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value["workload"].as_str().unwrap_or_default().to_owned();
    let pair = |row: &Value| {
        (
            name(&row["client"]),
            name(&row["server"]),
            row["connections"].as_u64().unwrap_or_default(),
        )
    };
    rows.iter().map(pair).collect()
}

fn expected(rows: &[(&str, &str, u64)]) -> BTreeSet<(String, String, u64)> {
    rows.iter()
        .map(|(client, server, count)| ((*client).into(), (*server).into(), *count))
        .collect()
}

fn run(topology: &Topology, servers: &Servers, weft: &mut Weft<'_>) {
    let ledger = ok(traffic::drive(topology, |_| {
        vec![Fetch::Small(20), Fetch::Large(2)]
    }));
    let score = compare(weft, &settle(topology, servers, &ledger));
    common::assert_perfect(&score);
}

#[test]
fn reports_and_health() {
    let topology = ok(topology::demo());
    let servers = ok(Servers::start(&topology));
    let mut weft = ok(Weft::start(&topology));
    run(&topology, &servers, &mut weft);

    assert_eq!(
        pairs(&weft, 0, "cross-cloud"),
        expected(&[("checkout", "shop", 22), ("batch", "ledger", 22)])
    );
    assert_eq!(
        pairs(&weft, 0, "hairpins"),
        expected(&[("checkout", "ledger", 22)])
    );
    let health = ok(weft.ask(&["health"]));
    assert_eq!(health.status, 0, "{health:?}");

    let rows = ok(weft.connections());
    let hairpin = rows
        .iter()
        .find(|row| row.path.class == "hairpin")
        .map(|row| row.id.clone());
    let explained = ok(weft.ask(&["explain", hairpin.as_deref().unwrap_or("none")]));
    assert_eq!(explained.status, 0, "{explained:?}");
    for word in [
        "tcp-isn-pair",
        "bytes-both-ends",
        "hairpin",
        "curl",
        "nginx",
    ] {
        assert!(
            explained.stdout.contains(word),
            "{word} is missing in\n{}",
            explained.stdout
        );
    }

    ok(weft.kill_federator(1));
    let answer = ok(weft.json(&["connections"]));
    assert_eq!(answer::unreachable(&answer), [weft.federator_name(1)]);
    let health = ok(weft.ask(&["health"]));
    assert!(health.status != 0, "{health:?}");
    let all = expected(&[("checkout", "shop", 22), ("batch", "ledger", 22)]);
    assert_eq!(pairs(&weft, 0, "cross-cloud"), all);

    // The other way round, the server's home answers with its copies of what the silent one has.
    ok(weft.start_federator(1));
    ok(weft.await_connected());
    ok(weft.kill_federator(0));
    assert_eq!(pairs(&weft, 1, "cross-cloud"), all);
}

#[test]
fn failed_connections_have_no_partner() {
    let topology = ok(topology::hairpin());
    let weft = ok(Weft::start(&topology));
    // Nothing listens anywhere.
    let flow = &topology.flows[0];
    let url = format!("http://{}/", flow.target);
    let (status, _, _) = ok(flow
        .client
        .try_run("curl", &["-s", "--max-time", "5", &url]));
    assert_eq!(status.code(), Some(7), "curl must be refused");
    let row = ok(weft_lab::wait::until(
        "the refused connection",
        std::time::Duration::from_secs(60),
        || {
            let rows = weft.connections()?;
            Ok(rows
                .into_iter()
                .find(|row| row.state == "failed")
                .ok_or_else(|| "none yet".to_owned()))
        },
    ));
    assert!(row.matched.is_none() && row.server.is_none(), "{row:?}");
    assert_eq!(row.path.unmatched.as_deref(), Some("not-established"));
    assert_eq!(
        row.client.map(|end| end.remote),
        Some(flow.target.to_string())
    );
}
