//! Times as no clock has them, from an agent to every question: refused where they never were, and harmless everywhere.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use weft_federator::testing::{Agent, Operator, World, batch_of, half, local};
use weft_federator::times::{FIRST, LAST};
use weft_wire::query::{DnsReport, Filter, Question, Report, ReportOrder, Scope};
use weft_wire::{
    Fingerprint, HalfBatch, HalfState, Lookup, LookupBatch, Owner, Process, Role, Timestamp,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    Opened,
    Closed,
    Seen,
    Process,
    Sharer,
    Asked,
    LookupProcess,
}

const ALL: [Of; 7] = [
    Of::Opened,
    Of::Closed,
    Of::Seen,
    Of::Process,
    Of::Sharer,
    Of::Asked,
    Of::LookupProcess,
];

/// What one agent sends: times changed in a batch of halves or of lookups, and the state of the half.
type Sent = (Vec<(Of, i64)>, HalfState);

fn sent() -> impl Strategy<Value = Sent> {
    let time = prop_oneof![
        4 => prop::sample::select(vec![
            i64::MIN, -i64::MAX, i64::MAX, i64::MAX - 1, -1, FIRST.0, LAST.0, LAST.0 + 1,
            // The ends of DuckDB's calendar.
            -9_223_372_022_400_000_000, 9_223_372_036_854_775_806,
        ]),
        1 => any::<i64>(),
        1 => FIRST.0..=LAST.0,
    ];
    let state = prop::sample::select(vec![HalfState::Open, HalfState::Closed, HalfState::Refused]);
    let changes = prop::collection::vec((prop::sample::select(ALL.to_vec()), time), 1..3);
    (changes, state)
}

fn halves(agent: &Agent, number: u32, (changes, state): &Sent) -> HalfBatch {
    let mut one = half(agent.key, number, Role::Client, *state);
    if *state == HalfState::Refused {
        one.fingerprint = Fingerprint::Unknown;
    }
    let mut batch = batch_of("web", vec![]);
    let owner = &mut batch.owners[0];
    for (of, time) in changes {
        let at = Timestamp(*time);
        match of {
            Of::Opened => one.opened_at = at,
            Of::Closed => one.closed_at = Some(at),
            Of::Seen => one.seen_at = at,
            Of::Process => owner.process.as_mut().unwrap().started_at = at,
            Of::Sharer => owner.sharers.push(Process {
                started_at: at,
                ..Process::default()
            }),
            Of::Asked | Of::LookupProcess => {}
        }
    }
    batch.halves.push(one);
    batch
}

fn lookups((changes, _): &Sent) -> LookupBatch {
    let mut owner = Owner::default();
    let mut lookup = Lookup {
        name: "a.example".into(),
        asked_at: weft_federator::clock::now(),
        ..Lookup::default()
    };
    for (of, time) in changes {
        match of {
            Of::Asked => lookup.asked_at = Timestamp(*time),
            Of::LookupProcess => {
                owner.process = Some(Process {
                    started_at: Timestamp(*time),
                    ..Process::default()
                });
            }
            _ => {}
        }
    }
    LookupBatch {
        boot: 7,
        owners: vec![owner],
        lookups: vec![lookup],
    }
}

fn questions() -> Vec<Question> {
    let filter = Filter::default;
    let mut all = vec![
        Question::Connections {
            filter: filter(),
            limit: 1000,
        },
        Question::Lookups {
            filter: filter(),
            limit: 1000,
        },
        Question::Explain {
            id_prefix: String::new(),
        },
        Question::Health,
    ];
    for text in [
        "SELECT * FROM connection",
        "SELECT opened_at::DATE AS day, max(duration_us) FROM connection GROUP BY ALL",
        "SELECT * FROM lookups",
    ] {
        all.push(Question::Sql {
            text: text.into(),
            filter: filter(),
            limit: 1000,
        });
    }
    for report in [
        Report::Dependencies,
        Report::NorthSouth,
        Report::Hairpins,
        Report::CrossCloud,
    ] {
        all.push(Question::Report {
            report,
            filter: filter(),
            by: ReportOrder::Bytes,
            top: 10,
        });
    }
    let name = "example".to_owned();
    for report in [
        DnsReport::Top,
        DnsReport::Hotspots,
        DnsReport::External,
        DnsReport::Failures,
        DnsReport::Threats,
        DnsReport::Bypass,
        DnsReport::Explain { name },
    ] {
        all.push(Question::Dns {
            report,
            filter: filter(),
            top: 10,
        });
    }
    all
}

fn outside(mut told: impl Iterator<Item = Timestamp>, owners: &[Owner]) -> bool {
    let never = |at: Timestamp| !(FIRST..=LAST).contains(&at);
    let mut processes = owners
        .iter()
        .flat_map(|owner| owner.process.iter().chain(&owner.sharers));
    told.any(never) || processes.any(|process| never(process.started_at))
}

async fn everything_is_answered(operator: &Operator, after: &Sent) {
    for question in questions() {
        let words = format!("{question:?} after {after:?}");
        let scope = match question {
            Question::Explain { .. } => local(),
            _ => Scope::Mesh,
        };
        let explains = matches!(question, Question::Explain { .. });
        match operator.ask(scope, question).await.expect(&words) {
            Ok(_) => {}
            // That many begin so.
            Err(error) if explains && error.code != "E-STORE" => {}
            Err(error) => panic!("{words}: {error}"),
        }
    }
}

#[test]
fn no_time_of_an_agent_ends_its_federator_or_blinds_a_question() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let (mut federator, address) = runtime.block_on(world.start("fed-a")).unwrap();
    let operator = runtime.block_on(world.operator(&address)).unwrap();
    let number = Cell::new(0);
    let one = |sent: &Sent| {
        number.set(number.get() + 1);
        runtime.block_on(async {
            // Twice, the second time with news: what was written is replaced.
            for round in 0..2 {
                let mut agent = world.agent("fed-a", &address, "a1").await.unwrap();
                let mut batch = halves(&agent, number.get(), sent);
                let half = &mut batch.halves[0];
                half.seen_at = Timestamp(half.seen_at.0.saturating_add(round * 1000));
                let told = [Some(half.opened_at), half.closed_at, Some(half.seen_at)];
                let outside = outside(told.into_iter().flatten(), &batch.owners);
                let seq = agent.durable_seq + 1;
                agent.send(seq, &batch).await.unwrap();
                let taken = agent.acknowledged(seq).await.is_ok();
                assert!(!(outside && taken), "{sent:?} was taken");
                drop(agent);

                let mut agent = world.agent("fed-a", &address, "a1").await.unwrap();
                let batch = lookups(sent);
                let outside = self::outside([batch.lookups[0].asked_at].into_iter(), &batch.owners);
                let seq = agent.durable_seq + 1;
                agent.send_lookups(seq, &batch).await.unwrap();
                let taken = agent.acknowledged(seq).await.is_ok();
                assert_eq!(taken, !outside, "{sent:?}");
                // What came is written before the news of it comes.
                operator.connections(local()).await.unwrap();
            }
            everything_is_answered(&operator, sent).await;
        });
    };
    // The farthest of each, then whatever comes.
    for of in ALL {
        for time in [-i64::MAX, i64::MAX] {
            one(&(vec![(of, time)], HalfState::Refused));
        }
    }
    let mut runner = TestRunner::new(Config {
        cases: 16,
        max_shrink_iters: 20,
        failure_persistence: None,
        ..Config::default()
    });
    let ran = runner.run(&sent(), |sent| {
        one(&sent);
        Ok(())
    });
    ran.unwrap();
    let health = runtime.block_on(operator.ask(local(), Question::Health));
    let health = health.unwrap().unwrap().health;
    let refused = health[0].counters["times_refused"];
    assert!(refused >= 28, "{refused}");
    let ended = runtime.block_on(async {
        let soon = std::time::Duration::from_millis(500);
        tokio::time::timeout(soon, federator.failed()).await.is_ok()
    });
    assert!(!ended, "the federator goes on");
    runtime.block_on(federator.drain());
}
