//! A proxy in user space ends one connection and opens another. Which two are one way is read from haproxy's log; Weft must say the
//! same, or that it cannot say, and never link two that are not.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{assert_perfect, compare, ok, settle};
use weft_lab::answer::{Row, RowEnd};
use weft_lab::topology;
use weft_lab::traffic;
use weft_lab::wait;
use weft_lab::weft::Weft;
use weft_lab::workload::{Fetch, Servers};

/// How Weft's links agree with haproxy's log, each way.
#[derive(Debug, Default)]
struct Links {
    right: usize,
    wrong: usize,
    ambiguous: usize,
    missing: usize,
    evidence: BTreeMap<String, usize>,
}

impl Links {
    fn of(rows: &[Row], direction: &str, truth: &BTreeMap<String, String>) -> Self {
        let mut links = Self::default();
        for row in rows {
            let expected = truth.get(&row.id);
            let mut steps = row.chain.iter().filter(|step| step.direction == direction);
            match (steps.next(), expected) {
                (None, None) => {}
                (None, Some(_)) => links.missing += 1,
                (Some(step), expected) => match (&step.connection, expected) {
                    (None, Some(_)) => {
                        assert_eq!(
                            (step.evidence.as_str(), &step.confidence),
                            ("ambiguous", &None)
                        );
                        assert!(step.fitting > 0);
                        links.ambiguous += 1;
                    }
                    (None, None) => {}
                    (Some(other), expected) if expected == Some(other) => {
                        assert_eq!(step.process.as_deref(), Some("haproxy"));
                        let sure = step.confidence.clone().unwrap_or_default();
                        let evidence = format!("{sure} {}", step.evidence);
                        *links.evidence.entry(evidence).or_default() += 1;
                        links.right += 1;
                    }
                    (Some(_), _) => links.wrong += 1,
                },
            }
            links.wrong += steps.count();
        }
        links
    }

    fn recall(&self) -> f64 {
        let all = self.right + self.ambiguous + self.missing;
        self.right as f64 * 100.0 / all.max(1) as f64
    }

    fn precision(&self) -> f64 {
        self.right as f64 * 100.0 / (self.right + self.wrong).max(1) as f64
    }
}

/// What no two clients send alike: every chain is found, both ways.
#[test]
fn what_differs_goes_on_through_haproxy() {
    for links in through_haproxy(|| vec![Fetch::Varied(60)]) {
        assert_eq!((links.ambiguous, links.right), (0, 120), "{links:?}");
    }
}

/// Two clients that do the same at the same time, one of them sixteen times at once: what cannot be told apart is said to be so.
#[test]
fn what_is_alike_is_never_linked_wrongly() {
    through_haproxy(|| {
        vec![
            Fetch::Small(30),
            Fetch::KeptAlive(5),
            Fetch::Large(16),
            Fetch::Upload(4),
        ]
    });
}

/// Runs both clients' fetches through haproxy and compares, each way.
fn through_haproxy(jobs: impl Fn() -> Vec<Fetch> + Sync) -> [Links; 2] {
    let topology = ok(topology::relay());
    let mut weft = ok(Weft::start(&topology));
    let servers = ok(Servers::start(&topology));
    let ledger = ok(traffic::drive(&topology, |_| jobs()));
    let truth = settle(&topology, &servers, &ledger);
    assert_perfect(&compare(&mut weft, &truth));

    let proxy = &topology.flows[0].server;
    let relayed = ok(servers.relayed(proxy));
    let rows = ok(wait::until(
        "all legs to be followed",
        Duration::from_secs(30),
        || {
            let rows = weft.chained()?;
            let told = rows.iter().any(|row| !row.chain.is_empty());
            Ok(if told {
                Ok(rows)
            } else {
                Err("no chain".to_owned())
            })
        },
    ));
    let at_proxy = |end: &Option<RowEnd>| {
        let end = end.as_ref().filter(|end| end.agent == proxy.name())?;
        Some((end.local.clone(), end.remote.clone()))
    };
    let mut ids = BTreeMap::new();
    for row in &rows {
        let ends = [at_proxy(&row.client), at_proxy(&row.server)];
        ids.extend(ends.into_iter().flatten().map(|end| (end, row.id.clone())));
    }
    let id = |own: &dyn ToString, peer: &dyn ToString| {
        let key = (own.to_string(), peer.to_string());
        ids.get(&key)
            .cloned()
            .unwrap_or_else(|| panic!("no connection {key:?}"))
    };
    let to: BTreeMap<String, String> = relayed
        .iter()
        .map(|leg| {
            let front = id(&leg.front.1, &leg.front.0);
            (front, id(&leg.back.0, &leg.back.1))
        })
        .collect();
    let from = to.iter().map(|(front, back)| (back.clone(), front.clone()));
    let from: BTreeMap<_, _> = from.collect();
    assert_eq!((to.len(), from.len()), (relayed.len(), relayed.len()));
    assert_eq!(rows.len(), 2 * relayed.len());
    let both = [("to", &to), ("from", &from)].map(|(direction, truth)| {
        let links = Links::of(&rows, direction, truth);
        println!(
            "{} {direction}: {} chains, recall {:.2} %, precision {:.2} %, {} ambiguous, {} missing, {:?}",
            topology.name,
            truth.len(),
            links.recall(),
            links.precision(),
            links.ambiguous,
            links.missing,
            links.evidence
        );
        assert_eq!((links.wrong, links.missing), (0, 0), "{links:?}");
        assert!(links.right > 0);
        links
    });
    explained(&weft, &rows, &to, proxy.name());
    both
}

/// An explanation goes on through the proxy, and back.
fn explained(weft: &Weft<'_>, rows: &[Row], to: &BTreeMap<String, String>, proxy: &str) {
    let linked = rows.iter().find_map(|row| {
        let step = row.chain.iter().find(|step| step.direction == "to")?;
        Some((row, step.connection.clone()?))
    });
    let Some((front, back)) = linked else {
        panic!("none is linked");
    };
    assert_eq!(to.get(&front.id), Some(&back));
    for (id, other, way) in [
        (&front.id, &back, "goes on through haproxy"),
        (&back, &front.id, "came through haproxy"),
    ] {
        let answer = ok(weft.ask(&["explain", id]));
        let line = answer.stdout.lines().find(|line| line.contains(way));
        let line = line.unwrap_or_else(|| panic!("{}{}", answer.stdout, answer.stderr));
        println!("{line}");
        assert!(line.starts_with("chain") && line.contains(other.as_str()) && line.contains(proxy));
    }
}
