//! The stitcher against brute force over all observations, in spaces so small that collisions and ambiguity are the rule.

mod common;

use std::collections::BTreeMap;

use common::{Fate, Ledger};
use proptest::prelude::*;
use weft_stitching::*;

const SECOND: i64 = 1_000_000;
const HOLD: i64 = 2 * SECOND;

fn run(views: &[HalfView], steps: &[u8]) -> BTreeMap<u32, Fate> {
    let config = Config {
        hold_us: HOLD,
        expiry_us: 100 * SECOND,
        max_open: 10_000,
        seed: 7,
    };
    let mut stitcher = Stitcher::new(config);
    let lookup = |handle: Handle| views.get(handle.0 as usize).copied();
    let mut ledger = Ledger::default();
    let mut now = 0;
    let mut next = 0;
    for step in steps.iter().cycle() {
        let batch = (usize::from(*step) % 4 + 1).min(views.len() - next);
        let candidates: Vec<_> = (next..next + batch)
            .map(|i| views[i].candidate(Handle(i as u32)))
            .collect();
        stitcher.insert(now, &candidates);
        next += batch;
        now += i64::from(*step) * SECOND / 100;
        stitcher.advance(now, &lookup);
        ledger.drain(&mut stitcher);
        if next == views.len() {
            break;
        }
    }
    for _ in 0..300 {
        now += SECOND;
        stitcher.advance(now, &lookup);
        ledger.drain(&mut stitcher);
    }
    let open = views.iter().filter(|view| view.closed_at.is_none()).count();
    assert!(stitcher.open() <= 2 * open, "closed halves are forgotten");
    assert_eq!(
        stitcher.counters().not_remembered + stitcher.counters().full,
        0
    );
    ledger.fates
}

/// Pairs that fit by a rule below the first; a half in exactly one pair, whose partner is in no other, has a partner.
fn settle(views: &[HalfView], fates: &mut [Fate], rule: Rule, candidates: impl Fn(Fate) -> bool) {
    let fits = |client: &HalfView, server: &HalfView| {
        judge(client, server)
            .filter(|verdict| verdict.rule == rule)
            .map(|verdict| verdict.rule)
    };
    settle_by(views, fates, fits, candidates);
}

fn settle_by(
    views: &[HalfView],
    fates: &mut [Fate],
    fits: impl Fn(&HalfView, &HalfView) -> Option<Rule>,
    candidates: impl Fn(Fate) -> bool,
) {
    let mut edges = Vec::new();
    for (i, client) in views.iter().enumerate() {
        for (j, server) in views.iter().enumerate() {
            if let Some(rule) = fits(client, server)
                && candidates(fates[i])
                && candidates(fates[j])
            {
                edges.push((i, j, rule));
            }
        }
    }
    let degree = |half: usize| {
        edges
            .iter()
            .filter(|(i, j, _)| *i == half || *j == half)
            .count()
    };
    for (i, j, rule) in &edges {
        let clear = degree(*i) == 1
            && degree(*j) == 1
            && fates[*i] == Fate::Alone
            && fates[*j] == Fate::Alone;
        for (half, other) in [(*i, *j), (*j, *i)] {
            fates[half] = if clear {
                Fate::Stitched(other as u32, *rule)
            } else {
                Fate::Ambiguous
            };
        }
    }
}

/// Everything is known at once: who fits whom, and is it the only one.
fn brute_force(views: &[HalfView], rules: &[Rule]) -> BTreeMap<u32, Fate> {
    let mut fates = vec![Fate::Alone; views.len()];
    for (i, view) in views.iter().enumerate() {
        let same =
            |other: &HalfView, role| other.fingerprint == view.fingerprint && other.role == role;
        let known = view.fingerprint != Fingerprint::Unknown;
        let [clients, servers] = [Role::Client, Role::Server].map(|role| {
            (0..views.len())
                .filter(|j| known && same(&views[*j], role))
                .collect::<Vec<_>>()
        });
        if clients.len() > 1 || servers.len() > 1 {
            fates[i] = Fate::Ambiguous;
        } else if let ([client], [server]) = (&clients[..], &servers[..]) {
            let other = if *client == i { server } else { client };
            fates[i] = Fate::Stitched(*other as u32, Rule::TcpIsnPair);
        }
    }
    for rule in rules {
        settle(views, &mut fates, *rule, |fate| {
            !matches!(fate, Fate::Stitched(..))
        });
    }
    fates
        .into_iter()
        .enumerate()
        .map(|(i, fate)| (i as u32, fate))
        .collect()
}

#[derive(Clone, Debug)]
struct Shape {
    server: bool,
    isns: (u32, u32),
    known: bool,
    ports: (u16, u16),
    network: u64,
    closed: i64,
    opened: i64,
    bytes: u64,
}

fn shape() -> impl Strategy<Value = Shape> {
    let isns = (0..3u32, 0..4u32);
    (
        any::<bool>(),
        isns,
        any::<bool>(),
        (1..3u16, 1..3u16),
        0..2u64,
        0..3i64,
        0..2i64,
        0..2u64,
    )
        .prop_map(
            |(server, isns, known, ports, network, closed, opened, bytes)| Shape {
                server,
                isns,
                known,
                ports,
                network,
                closed,
                opened,
                bytes,
            },
        )
}

fn view(shape: &Shape) -> HalfView {
    let (client, server) = (
        ([10, 0, 0, 1], 1000 + shape.ports.0).into(),
        ([10, 0, 0, 2], shape.ports.1).into(),
    );
    let closed_at = (20 + 5 * shape.closed) * SECOND;
    let (role, local, remote, sent, received) = if shape.server {
        (Role::Server, server, client, 0, shape.bytes)
    } else {
        (Role::Client, client, server, shape.bytes, 0)
    };
    HalfView {
        role,
        fingerprint: Fingerprint::TcpIsn {
            client: shape.isns.0,
            server: shape.isns.1,
        },
        network: shape.network,
        host: u64::from(shape.server),
        local,
        remote,
        opened_at: 10 * shape.opened * SECOND,
        closed_at: Some(closed_at),
        seen_at: closed_at,
        bytes_sent: sent,
        bytes_received: received,
        packets_sent: 0,
        packets_received: 0,
    }
}

#[derive(Clone, Debug)]
struct Flow {
    server: bool,
    first: (u64, u64),
    sort: u8,
    distinct: bool,
    ports: (u16, u16),
    network: u64,
    opened: i64,
    life: i64,
    bytes: u64,
}

fn flow() -> impl Strategy<Value = Flow> {
    let first = (1..3u64, 0..3u64);
    let ports = (1..3u16, 1..3u16);
    (
        any::<bool>(),
        first,
        0..6u8,
        any::<bool>(),
        ports,
        0..2u64,
        0..5i64,
        0..2i64,
        0..2u64,
    )
        .prop_map(
            |(server, first, sort, distinct, ports, network, opened, life, bytes)| Flow {
                server,
                first,
                sort,
                distinct,
                ports,
                network,
                opened,
                life,
                bytes,
            },
        )
}

fn flow_view(flow: &Flow) -> HalfView {
    let half = view(&Shape {
        server: flow.server,
        isns: (0, 0),
        known: true,
        ports: flow.ports,
        network: flow.network,
        closed: 0,
        opened: 0,
        bytes: flow.bytes,
    });
    let opened_at = 3 * SECOND * flow.opened / 2;
    let (sent, received) = if flow.server { (0, 1) } else { (1, 0) };
    HalfView {
        fingerprint: Fingerprint::Datagrams(Datagrams {
            sort: match flow.sort {
                0 => DatagramSort::Quic,
                1 => DatagramSort::Dns,
                _ => DatagramSort::Other,
            },
            client: flow.first.0,
            server: flow.first.1,
            distinct: flow.distinct,
        }),
        opened_at,
        closed_at: Some(opened_at + (1 + 5 * flow.life) * SECOND),
        packets_sent: sent,
        packets_received: received,
        ..half
    }
}

/// Those without NAT first, then the others.
fn brute_force_of_flows(views: &[HalfView]) -> BTreeMap<u32, Fate> {
    let mut fates = vec![Fate::Alone; views.len()];
    let rule = |fit| match fit {
        Fit::Yes(verdict) => Some(verdict.rule),
        Fit::Later | Fit::No => None,
    };
    let no_pair = |fate| !matches!(fate, Fate::Stitched(..));
    settle_by(views, &mut fates, |x, y| rule(fit_in_place(x, y)), no_pair);
    settle_by(
        views,
        &mut fates,
        |x, y| rule(weft_stitching::judge::fit(x, y)),
        no_pair,
    );
    (0..).zip(fates).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Both ISNs alone: halves come one after the other over many holds, but all within one expiry.
    #[test]
    fn by_both_isns(shapes in prop::collection::vec(shape(), 1..14), steps in prop::collection::vec(0u8..255, 1..9)) {
        let mut views: Vec<_> = shapes.iter().map(view).collect();
        for (i, view) in views.iter_mut().enumerate() {
            // Nothing else about them fits.
            view.opened_at = 100 * SECOND * i as i64;
        }
        prop_assert_eq!(run(&views, &steps), brute_force(&views, &[]));
    }

    /// The client's ISN is enough where nothing else fits: all known within one hold. No two halves of one role have both
    /// ISNs alike: the later half of a pair that such a third one contests is not kept, so it is not weighed here.
    #[test]
    fn by_the_client_isn(shapes in prop::collection::vec(shape(), 1..10), steps in prop::collection::vec(0u8..15, 1..9)) {
        let mut seen = std::collections::BTreeSet::new();
        let shapes: Vec<_> = shapes.into_iter().filter(|shape| seen.insert((shape.server, shape.isns))).collect();
        let views: Vec<_> = shapes.iter().map(view).collect();
        prop_assert_eq!(run(&views, &steps), brute_force(&views, &[Rule::TcpClientIsn]));
    }

    /// Halves without ISNs find their reversed tuple, whenever they come.
    #[test]
    fn by_the_tuple(shapes in prop::collection::vec(shape(), 1..10), steps in prop::collection::vec(0u8..255, 1..9)) {
        let mut views: Vec<_> = shapes.iter().map(view).collect();
        for (i, (view, shape)) in views.iter_mut().zip(&shapes).enumerate() {
            let isns = Fingerprint::TcpIsn { client: i as u32, server: 0 };
            view.fingerprint = if shape.known { isns } else { Fingerprint::Unknown };
        }
        prop_assert_eq!(run(&views, &steps), brute_force(&views, &[Rule::ReversedTuple]));
    }

    /// UDP flows: all known within one hold.
    #[test]
    fn by_first_datagrams(flows in prop::collection::vec(flow(), 1..10), steps in prop::collection::vec(0u8..15, 1..9)) {
        let views: Vec<_> = flows.iter().map(flow_view).collect();
        prop_assert_eq!(run(&views, &steps), brute_force_of_flows(&views));
    }
}
