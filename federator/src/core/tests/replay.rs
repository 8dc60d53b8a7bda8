//! The same journal gives the same rows, however often it is delivered, flushed and replayed.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Step {
    pause: i64,
    agent: u64,
    halves: Vec<(u64, bool)>,
    flush: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (
        0i64..3_000_000,
        1u64..=2,
        prop::collection::vec((1u64..12, any::<bool>()), 0..6),
        any::<bool>(),
    )
        .prop_map(|(pause, agent, halves, flush)| Step {
            pause,
            agent,
            halves,
            flush,
        });
    prop::collection::vec(step, 1..40)
}

/// Runs the steps; every one `twice` is delivered again, as an agent does that saw no acknowledgement.
fn run(steps: &[Step], flush_when: impl Fn(&Step) -> bool, twice: bool) -> BTreeMap<HalfId, Row> {
    let (mut core, mut now, mut flushes) = (core(), 0, Vec::new());
    for (seq, step) in steps.iter().enumerate() {
        now += step.pause;
        let role = if step.agent == 1 {
            Role::Client
        } else {
            Role::Server
        };
        let halves: Vec<Half> = step
            .halves
            .iter()
            .map(|(cookie, closed)| {
                let state = if *closed {
                    HalfState::Closed
                } else {
                    HalfState::Open
                };
                half(step.agent, *cookie, role, *cookie as u32, state)
            })
            .collect();
        for _ in 0..=usize::from(twice) {
            batch(&mut core, now, step.agent, seq as u64 + 1, halves.clone());
        }
        if flush_when(step) {
            flushes.push(core.flush());
        }
    }
    flushes.push(core.flush());
    stored(&flushes)
}

/// The same with a journal, and a restart after every flush `restart` says; the flush holds back what waits.
fn run_restarting(steps: &[Step], restart: impl Fn(usize) -> bool) -> BTreeMap<HalfId, Row> {
    let (mut core, mut now, mut flushes, mut journal) = (core(), 0, Vec::new(), Vec::new());
    flushes.push(core.flush());
    for (seq, step) in steps.iter().enumerate() {
        now += step.pause / 16;
        let role = if step.agent == 1 {
            Role::Client
        } else {
            Role::Server
        };
        let halves = step.halves.iter().map(|(cookie, closed)| {
            let state = if *closed {
                HalfState::Closed
            } else {
                HalfState::Open
            };
            half(step.agent, *cookie, role, *cookie as u32, state)
        });
        let batch = HalfBatch {
            boot: 7,
            owners: vec![Owner::default()],
            halves: halves.collect(),
            ..HalfBatch::default()
        };
        let input = Input::Batch {
            agent: AgentKey(step.agent),
            seq: seq as u64 + 1,
            skew_us: 0,
            batch,
        };
        journal.push((10 + seq as u64, Timestamp(now), input.clone()));
        core.apply(10 + seq as u64, Timestamp(now), input);
        if step.flush {
            flushes.push(core.flush_all_but_waiting());
        }
        if restart(seq) {
            core = restarted(&flushes, &journal);
        }
    }
    flushes.push(core.flush());
    stored(&flushes)
}

/// What a new program makes of the store and the journal.
fn restarted(flushes: &[Flush], journal: &[(u64, Timestamp, Input)]) -> Core {
    let mut loaded = Loaded::default();
    let rows = stored(flushes);
    for row in rows.values() {
        if row.settled {
            loaded.departed.extend(row.sides().map(|side| side.half.id));
        } else {
            let settled = false;
            loaded.live.push(Row { settled, ..*row });
        }
    }
    for flush in flushes {
        loaded.agents.extend(flush.agents.iter().cloned());
        loaded.owners.extend(flush.owners.iter().cloned());
        loaded.sequences.extend(&flush.sequences);
        loaded.descriptions.extend(&flush.descriptions);
        loaded.position = flush.position;
        loaded.held = flush.held.iter().copied().collect();
        loaded.held_from = flush.held_from;
    }
    loaded.next_owner = loaded.owners.len() as u32;
    let (position, held_from) = (loaded.position, loaded.held_from);
    let mut core = Core::new(config(), loaded);
    for (after, at, input) in journal.iter().filter(|(after, ..)| *after > held_from) {
        if *after <= position {
            core.recover(*after, *at, input.clone());
        } else {
            core.apply(*after, *at, input.clone());
        }
    }
    core
}

#[test]
fn what_waits_is_not_written_and_survives_a_restart_in_the_journal() {
    let mut core = core();
    let first = core.flush();
    let client = half(1, 1, Role::Client, 9, HalfState::Closed);
    let input = |agent, half: Half| Input::Batch {
        agent: AgentKey(agent),
        seq: 1,
        skew_us: 0,
        batch: HalfBatch {
            owners: vec![Owner::default()],
            halves: vec![half],
            ..HalfBatch::default()
        },
    };
    let mut journal = vec![(11, Timestamp(5), input(1, client))];
    core.apply(11, Timestamp(5), input(1, client));
    let second = core.flush_all_but_waiting();
    assert!(second.rows.is_empty());
    assert_eq!((second.position, second.held_from), (11, 2));
    assert_eq!(second.held, [client.id]);
    assert_eq!(core.unflushed(), 0);

    let server = half(2, 1, Role::Server, 9, HalfState::Closed);
    journal.push((12, Timestamp(6), input(2, server)));
    let mut core = restarted(&[first.clone(), second.clone()], &journal);
    let third = core.flush_all_but_waiting();
    assert_eq!(third.rows.len(), 1);
    assert!(third.rows[0].settled && third.rows[0].joined.is_some());
    assert!(third.held.is_empty());

    // One for which nobody comes is written all the same.
    let mut core = restarted(&[first, second], &journal[..1]);
    core.advance(Timestamp(6 + HELD_US));
    assert_eq!(core.flush_all_but_waiting().rows.len(), 1);
}

#[test]
fn batches_that_are_replayed_before_the_next_hello_have_the_description_that_was_in_force() {
    let hello = |zone: &str| {
        let mut info = AgentInfo {
            name: "a1".into(),
            ..AgentInfo::default()
        };
        info.site.zone = zone.into();
        let key = AgentKey(1);
        Input::Agent { key, info }
    };
    let mut core = Core::new(config(), Loaded::default());
    // Back where it was: not what was described last for the first time.
    for (position, zone) in [(1, "here"), (2, "there"), (3, "here")] {
        core.apply(position, Timestamp(0), hello(zone));
    }
    let first = core.flush();
    let client = half(1, 1, Role::Client, 9, HalfState::Closed);
    let input = Input::Batch {
        agent: AgentKey(1),
        seq: 1,
        skew_us: 0,
        batch: HalfBatch {
            owners: vec![Owner::default()],
            halves: vec![client],
            ..HalfBatch::default()
        },
    };
    let mut core = restarted(std::slice::from_ref(&first), &[(11, Timestamp(5), input)]);
    let agent = core.flush().rows[0].client.unwrap().agent;
    let (_, record) = first.agents.iter().find(|(n, _)| *n == agent).unwrap();
    assert_eq!(record.info.site.zone, "here");
}

#[test]
fn one_long_step_decides_as_many_short_ones() {
    let (mut one, mut many) = (core(), core());
    for core in [&mut one, &mut many] {
        batch(
            core,
            0,
            1,
            1,
            vec![
                half(1, 1, Role::Client, 9, HalfState::Closed),
                half(1, 2, Role::Client, 10, HalfState::Open),
            ],
        );
    }
    for at in 1..1300 {
        many.advance(Timestamp(at * 100_003));
    }
    one.advance(Timestamp(1299 * 100_003));
    assert_eq!(one.flush(), many.flush());
    assert_eq!((one.counters(), one.now), (many.counters(), many.now));
}

fn states(rows: &BTreeMap<HalfId, Row>) -> Vec<(HalfId, Option<HalfId>, Option<Unmatched>, bool)> {
    rows.iter()
        .map(|(id, row)| {
            (
                *id,
                row.server.map(|side| side.half.id),
                row.unmatched,
                row.settled,
            )
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_same_journal_gives_the_same_rows(steps in steps()) {
        let once = run(&steps, |step| step.flush, false);
        prop_assert_eq!(&once, &run(&steps, |step| step.flush, false));
        prop_assert_eq!(&once, &run(&steps, |step| step.flush, true), "delivered twice");
        prop_assert_eq!(states(&once), states(&run(&steps, |_| false, false)), "flushed at other times");
    }

    #[test]
    fn restarts_change_nothing(steps in steps(), restarts in prop::collection::vec(any::<bool>(), 40)) {
        let once = run_restarting(&steps, |_| false);
        prop_assert_eq!(states(&once), states(&run_restarting(&steps, |step| restarts[step])));
    }
}
