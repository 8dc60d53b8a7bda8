//! DNS through NAT: every flow with a name server is stitched, and what Weft says of lookups is what the servers' logs say.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{assert_perfect, compare, ok};
use serde_json::Value;
use weft_lab::names::{self, Askers, Kind, NameServer, Question, ZONE};
use weft_lab::score::is_named;
use weft_lab::topology::{self, Flow, Topology};
use weft_lab::traffic::{self, by_nat};
use weft_lab::truth::Ledger;
use weft_lab::weft::Weft;
use weft_lab::workload::{Server, Servers};
use weft_lab::{Result, wait};

/// The address of `web`: where the routers forward from.
const WEB: &str = "198.51.100.2";
/// The same over IPv6.
const WEB6: &str = "2001:db8:b::2";
/// Its name.
const WEB_NAME: &str = "web.lab.example";
/// Fetches by name of each client.
const FETCHES: u16 = 4;

/// What dig asks for, and how often.
const DIGS: [(&str, &[&str], usize); 6] = [
    ("web", &[], 4),
    ("a", &[], 3),
    ("missing", &[], 3),
    ("many", &["+bufsize=4096"], 3),
    ("many", &["+tcp"], 3),
    ("many", &["+bufsize=512", "+ignore"], 2),
];

/// What dnsperf asks each server for. It numbers its questions from 0: two that begin with the same name, within seconds of
/// each other, begin alike, and behind NAT nothing tells them apart.
const QUESTIONS: [&[&str]; 2] = [&["web", "a", "missing"], &["missing", "web", "a"]];

/// Asks in all ways; gives how many questions dig put.
fn ask(askers: &mut Askers, flow: &Flow, questions: &[&str]) -> Result<u64> {
    let mut digs = 0;
    for (name, options, times) in DIGS {
        for _ in 0..times {
            let said = askers.dig(flow, name, options)?;
            digs += 1;
            let large = said.contains("rcvd: 409") || said.contains("rcvd: 408");
            let whole = name == "many" && !options.contains(&"+ignore");
            assert_eq!(large, whole, "{said}");
        }
    }
    askers.dnsperf(flow, questions, 100, 2)?;
    Ok(digs)
}

fn rows(answer: &Value) -> Vec<Value> {
    assert_eq!(answer["truncated"], Value::Bool(false), "{answer}");
    answer["rows"].as_array().cloned().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// How often each question was put, by the lookups that an agent told in a role.
fn told(lookups: &[Value], agent: &str, role: &str) -> BTreeMap<Question, u64> {
    let mut counts = BTreeMap::new();
    let mine = lookups
        .iter()
        .filter(|row| row["agent"] == agent && row["role"] == role);
    for row in mine {
        let question = (text(&row["name"]), text(&row["qtype"]), text(&row["code"]));
        *counts.entry(question).or_default() += 1;
    }
    counts
}

fn lookups(weft: &Weft<'_>) -> Result<Vec<Value>> {
    let query = "SELECT agent, role, transport, name, qtype, code, process, latency_us, truncated, response_bytes, \
                 answer_total FROM lookups";
    Ok(rows(&weft.json(&["sql", query, "--top", "100000"])?))
}

struct World<'a> {
    topology: &'a Topology,
    servers: Vec<NameServer>,
    logs: Vec<BTreeMap<Question, u64>>,
}

impl World<'_> {
    /// Both ends' lookups are those of the servers' logs.
    fn agree(&self, weft: &Weft<'_>) -> Result<std::result::Result<Vec<Value>, String>> {
        let lookups = lookups(weft)?;
        for (flow, log) in self.topology.flows.iter().zip(&self.logs) {
            for (host, role) in [(&flow.client, "client"), (&flow.server, "server")] {
                let told = told(&lookups, host.name(), role);
                if told != *log {
                    return Ok(Err(format!("{host:?} {role}: {told:?}, the log {log:?}")));
                }
            }
        }
        Ok(Ok(lookups))
    }

    /// How often each name was asked for, at both servers.
    fn by_name(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for ((name, ..), times) in self.logs.iter().flatten() {
            *counts.entry(name.clone()).or_default() += times;
        }
        counts
    }
}

/// What a report adds up to by name.
fn report(weft: &Weft<'_>, region: usize, words: &[&str], key: &str) -> BTreeMap<String, u64> {
    let mut all = vec!["dns"];
    all.extend(words);
    all.extend(["--top", "1000"]);
    let mut counts = BTreeMap::new();
    for row in rows(&ok(weft.json_of(region, &all))) {
        let name = text(if key == "name" {
            &row["name"]
        } else {
            &row["asker"][key]
        });
        *counts.entry(name).or_default() += row["lookups"].as_u64().unwrap_or_default();
    }
    counts
}

#[test]
fn lookups_through_nat() {
    let topology = ok(topology::names());
    let mut weft = ok(Weft::start(&topology));
    let (names, web) = topology.flows.split_at(2);
    let start = |flow: &Flow, kind| NameServer::start(&flow.server, kind, flow.service, WEB);
    let servers = vec![
        ok(start(&names[0], Kind::Dnsmasq)),
        ok(start(&names[1], Kind::Unbound)),
    ];
    let nginx = web
        .iter()
        .map(|flow| Server::nginx(&flow.server, &[flow.service]));
    let nginx = Servers {
        all: nginx.map(ok).collect(),
    };
    let (mut askers, mut ledger) = (Askers::default(), Ledger::default());
    let mut digs = 0;
    for (number, flow) in names.iter().enumerate() {
        digs += ok(ask(&mut askers, flow, QUESTIONS[number]));
        let fetched = ok(names::fetch_by_name(&web[number], flow, "web", FETCHES));
        ledger.note(2 + number, fetched);
    }
    let mut truth = ok(traffic::settle(&topology, &nginx, &ledger));
    for (flow, server) in names.iter().zip(&servers) {
        truth.extend(ok(askers.settle(flow, server)));
    }
    let score = compare(&mut weft, &truth);
    println!("{}: {score} ({})", topology.name, by_nat(&truth));
    assert_perfect(&score);
    check_names(&weft, WEB);

    let logs = servers
        .iter()
        .map(|server| ok(names::await_asked(server, digs / 2 + 200)));
    let world = World {
        topology: &topology,
        logs: logs.collect(),
        servers,
    };
    let told = ok(wait::until(
        "lookups to agree with the servers' logs",
        Duration::from_secs(60),
        || world.agree(&weft),
    ));
    check_lookups(&world, &told, digs);
    check_reports(&world, &weft);
}

/// Every curl had asked for the address that it called, and its connection carries that name and how long before it was.
fn check_names(weft: &Weft<'_>, web: &str) {
    let rows = ok(weft.connections());
    let fetches: Vec<_> = rows
        .iter()
        .filter_map(|row| Some((row, row.client.as_ref()?)))
        .filter(|(_, client)| client.remote.contains(web) && !client.remote.ends_with(":53"))
        .collect();
    let named = fetches.iter().filter(|(row, client)| {
        let process = client.process.as_ref().map(|process| process.name.as_str());
        row.name.as_ref().is_some_and(|name| {
            assert_eq!(process, Some("curl"));
            assert!((1..60_000_000).contains(&name.before_us), "{row:?}");
            (name.name.as_str(), name.source.as_str()) == (WEB_NAME, "dns-process")
        })
    });
    let named = named.count();
    println!("{named} of {} fetches by name carry it", fetches.len());
    assert_eq!([named, fetches.len()], [2 * usize::from(FETCHES); 2]);
}

/// Questions to resolvers over IPv6, for addresses of IPv6, and the connections that follow.
#[test]
fn lookups_over_ipv6() {
    let topology = ok(topology::names66());
    let mut weft = ok(Weft::start(&topology));
    let (names, web) = topology.flows.split_at(2);
    let start = |flow: &Flow, kind| NameServer::start(&flow.server, kind, flow.service, WEB6);
    let servers = vec![
        ok(start(&names[0], Kind::Dnsmasq)),
        ok(start(&names[1], Kind::Unbound)),
    ];
    let nginx = web
        .iter()
        .map(|flow| Server::nginx(&flow.server, &[flow.service]));
    let nginx = Servers {
        all: nginx.map(ok).collect(),
    };
    let (mut askers, mut ledger) = (Askers::default(), Ledger::default());
    let mut asked = 0;
    for (number, flow) in names.iter().enumerate() {
        for (name, options) in [
            ("web", &[][..]),
            ("a", &[]),
            ("missing", &[]),
            ("a", &["+tcp"]),
        ] {
            let said = ok(askers.dig(flow, name, options));
            assert_eq!(said.contains(WEB6), name != "missing", "{said}");
            asked += 1;
        }
        let fetched = ok(names::fetch_by_name(&web[number], flow, "web", FETCHES));
        ledger.note(2 + number, fetched);
        asked += u64::from(FETCHES);
    }
    let mut truth = ok(traffic::settle(&topology, &nginx, &ledger));
    for (flow, server) in names.iter().zip(&servers) {
        truth.extend(ok(askers.settle(flow, server)));
    }
    let score = compare(&mut weft, &truth);
    println!("{}: {score} ({})", topology.name, by_nat(&truth));
    assert_perfect(&score);
    check_names(&weft, WEB6);
    let logs = servers
        .iter()
        .map(|server| ok(names::await_asked(server, asked / 2)));
    let world = World {
        topology: &topology,
        logs: logs.collect(),
        servers,
    };
    let told = ok(wait::until(
        "lookups to agree with the servers' logs",
        Duration::from_secs(60),
        || world.agree(&weft),
    ));
    let six = |row: &&Value| row["role"] == "client" && row["qtype"] == "AAAA";
    println!(
        "{} lookups of AAAA over IPv6",
        told.iter().filter(six).count()
    );
    assert_eq!(told.iter().filter(six).count() as u64, asked);
}

/// Who asked, what came of it, and how long it took.
fn check_lookups(world: &World<'_>, told: &[Value], digs: u64) {
    let clients: Vec<_> = told.iter().filter(|row| row["role"] == "client").collect();
    let of = |process: &str| {
        let named = |row: &&&Value| is_named(&text(&row["process"]), process);
        clients.iter().filter(named).count() as u64
    };
    let all: u64 = world.logs.iter().flat_map(BTreeMap::values).sum();
    let [dig, dnsperf, curl] = ["dig", "dnsperf", "curl"].map(of);
    println!("{all} lookups: {dig} of dig, {dnsperf} of dnsperf, {curl} of curl");
    assert_eq!(dig, digs);
    assert_eq!(dig + dnsperf + curl, all, "some have another process");
    assert!(
        curl >= 2 * u64::from(FETCHES) && dnsperf >= 300,
        "{curl} {dnsperf}"
    );
    for row in told {
        assert!(row["latency_us"].as_u64().is_some(), "{row}");
        let large = row["response_bytes"].as_u64().unwrap_or_default() > 4_000;
        let whole = row["name"] == format!("many.{ZONE}") && row["truncated"] == 0;
        assert_eq!(large, whole, "{row}");
        let server = world
            .servers
            .iter()
            .any(|server| row["process"] == server.process());
        assert_eq!(server, row["role"] == "server", "{row}");
    }
    let tcp: BTreeSet<_> = clients
        .iter()
        .filter(|row| row["transport"] == "tcp")
        .map(|row| text(&row["agent"]))
        .collect();
    assert_eq!(tcp.len(), 2, "over TCP");
}

/// The reports, asked at either federator, add up to what the logs say.
fn check_reports(world: &World<'_>, weft: &Weft<'_>) {
    let expected = world.by_name();
    let askers: BTreeMap<_, _> = world
        .topology
        .flows
        .iter()
        .zip(&world.logs)
        .map(|(flow, log)| (flow.client.name().to_owned(), log.values().sum::<u64>()))
        .collect();
    for region in 0..2 {
        assert_eq!(
            report(weft, region, &["hotspots"], "name"),
            expected,
            "at {region}"
        );
        assert_eq!(
            report(weft, region, &["top"], "agent"),
            askers,
            "at {region}"
        );
        let missing = format!("missing.{ZONE}");
        let failures = report(weft, region, &["failures"], "name");
        assert_eq!(
            failures.get(&missing),
            expected.get(&missing),
            "{failures:?}"
        );
    }
    let explained = ok(weft.ask(&["dns", "explain", &format!("a.{ZONE}")]));
    for word in ["dig", "dnsperf", WEB, "198.51.100.30", "198.51.100.31"] {
        assert!(
            explained.stdout.contains(word),
            "{word} is missing in\n{}",
            explained.stdout
        );
    }
}
