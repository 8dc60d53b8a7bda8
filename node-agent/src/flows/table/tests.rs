use proptest::prelude::*;
use weft_wire::AgentKey;

use super::*;

const IDENTITY: Identity = Identity {
    agent: AgentKey(1),
    boot: 2,
};
const SECOND: u64 = 1_000_000_000;

fn settings() -> Settings {
    Settings {
        limit: 100,
        attached_ns: 0,
        idle_ns: 60 * SECOND,
        dns_idle_ns: 10 * SECOND,
        update_ns: 10 * SECOND,
    }
}

fn table(notes: Vec<(FlowKey, FlowNote)>) -> Table {
    Table::new(IDENTITY, settings(), notes)
}

fn key(cookie: u64, port: u16) -> FlowKey {
    FlowKey {
        cookie,
        remote_port: port,
        local_port: 9,
        ..FlowKey::default()
    }
}

fn state(opened_ns: u64, last_ns: u64, sent: u64, received: u64) -> FlowState {
    FlowState {
        opened_ns,
        last_ns,
        bytes_sent: sent * 10,
        bytes_received: received * 10,
        packets_sent: sent,
        packets_received: received,
        owner: SocketOwner {
            origin: socket_origin::CREATED,
            ..SocketOwner::default()
        },
        opened_by: direction::SENT,
        seen: direction::SENT,
        ..FlowState::default()
    }
}

fn first(key: FlowKey, state: FlowState, way: u8, word: &[u8]) -> FlowEvent {
    FlowEvent::First {
        key,
        state,
        way,
        length: word.len() as u32,
        snap: word.to_vec(),
    }
}

fn apply(table: &mut Table, event: FlowEvent) {
    let owner = |_: &SocketOwner| Arc::new(Owner::default());
    table.apply(event, owner, |_| None, &Clock::new(0));
}

fn sweep(table: &mut Table, entries: &[(FlowKey, FlowState)], now_ns: u64) {
    let reading = Reading {
        now_ns,
        applied_ns: now_ns,
    };
    let owner = |_: &SocketOwner, _| Arc::new(Owner::default());
    table.sweep(entries, reading, owner, &Clock::new(0));
}

fn drain(table: &mut Table, now_ns: u64) -> Vec<Half> {
    let rows = table.drain(now_ns, &Clock::new(0));
    rows.into_iter().map(|row| row.half).collect()
}

fn prints_of(half: &Half) -> Option<(bool, bool)> {
    match half.fingerprint {
        Fingerprint::Datagrams(datagrams) => Some((datagrams.client != 0, datagrams.server != 0)),
        _ => None,
    }
}

#[test]
fn opened_answered_and_ended_within_one_batch_is_one_row() {
    let mut table = table(Vec::new());
    let flow = key(1, 5);
    apply(
        &mut table,
        first(
            flow,
            state(SECOND, SECOND, 1, 0),
            direction::SENT,
            b"question",
        ),
    );
    apply(
        &mut table,
        first(
            flow,
            state(SECOND, 2 * SECOND, 1, 1),
            direction::RECEIVED,
            b"answer",
        ),
    );
    let end = FlowEvent::End {
        key: flow,
        state: state(SECOND, 2 * SECOND, 1, 1),
        released_ns: Some(3 * SECOND),
    };
    apply(&mut table, end);
    let halves = drain(&mut table, 4 * SECOND);
    assert_eq!(halves.len(), 1);
    assert_eq!(halves[0].state, HalfState::Closed);
    assert_eq!(halves[0].closed_at, Some(Timestamp(3_000_000)));
    assert_eq!(prints_of(&halves[0]), Some((true, true)));
    assert_eq!(halves[0].role, Role::Client);
    assert!(table.leaving().is_empty(), "the kernel removed it");
    assert!(table.notes().is_empty(), "nobody needs a note of it");
}

#[test]
fn idle_flows_leave_and_what_came_late_is_told() {
    let mut table = table(Vec::new());
    let flow = key(1, 5);
    let before = state(SECOND, SECOND, 1, 0);
    apply(
        &mut table,
        first(flow, before, direction::SENT, b"question"),
    );
    sweep(&mut table, &[(flow, before)], 60 * SECOND);
    assert!(table.leaving().is_empty());
    sweep(&mut table, &[(flow, before)], 62 * SECOND);
    // Until it has left the map it is not taken for another one.
    sweep(&mut table, &[(flow, before)], 63 * SECOND);
    let halves = drain(&mut table, 63 * SECOND);
    assert_eq!(halves.len(), 1);
    assert_eq!(halves[0].closed_at, Some(Timestamp(1_000_000)));
    let leaving = table.leaving().remove(0);
    let late = state(SECOND, 63 * SECOND, 2, 0);
    table.left(leaving, late, &Clock::new(0));
    let again = drain(&mut table, 64 * SECOND);
    assert_eq!((again[0].id, again[0].packets_sent), (halves[0].id, 2));
    assert_eq!(table.forgotten(), [flow]);
}

#[test]
fn single_exchanges_of_dns_end_sooner_and_all_when_there_is_no_room() {
    let mut table = table(Vec::new());
    let mut dns = state(SECOND, SECOND, 1, 1);
    dns.dns = 1;
    let plain = state(SECOND, SECOND, 1, 1);
    let entries = [(key(1, 1), dns), (key(2, 2), plain)];
    sweep(&mut table, &entries, 12 * SECOND);
    assert_eq!(table.leaving().len(), 1);
    let many: Vec<_> = (0..60).map(|n| (key(10 + n, 1), plain)).collect();
    sweep(&mut table, &many, 13 * SECOND);
    assert_eq!(table.leaving().len(), 60);
}

#[test]
fn a_key_used_again_is_another_flow() {
    let mut table = table(Vec::new());
    let flow = key(1, 5);
    apply(
        &mut table,
        first(flow, state(1, SECOND, 1, 0), direction::SENT, b"one"),
    );
    apply(
        &mut table,
        first(
            flow,
            state(90 * SECOND, 90 * SECOND, 1, 0),
            direction::SENT,
            b"two",
        ),
    );
    // Too late: it was closed when the other began, with the same counters.
    let end = FlowEvent::End {
        key: flow,
        state: state(1, SECOND, 1, 0),
        released_ns: None,
    };
    apply(&mut table, end);
    let halves = drain(&mut table, 91 * SECOND);
    let open: Vec<_> = halves
        .iter()
        .filter(|half| half.state == HalfState::Open)
        .collect();
    assert_eq!(open.len(), 1, "the end of the one is not that of the other");
    let ids: std::collections::BTreeSet<_> = halves.iter().map(|half| half.id).collect();
    assert_eq!(ids.len(), 2);
}

#[test]
fn a_next_agent_knows_by_the_notes() {
    let mut old = table(Vec::new());
    let flow = key(1, 5);
    let opened = state(SECOND, SECOND, 1, 0);
    apply(
        &mut old,
        first(
            flow,
            opened,
            direction::SENT,
            b"question, and some more of it",
        ),
    );
    let before = drain(&mut old, SECOND);
    let notes = old.notes();
    assert_eq!(notes.len(), 1);
    let mut new = table(notes);
    sweep(
        &mut new,
        &[(flow, state(SECOND, 29 * SECOND, 5, 0))],
        30 * SECOND,
    );
    let after = drain(&mut new, 30 * SECOND);
    assert_eq!(after[0].fingerprint, before[0].fingerprint);
    assert_eq!((after[0].id, after[0].packets_sent), (before[0].id, 5));
    // Without a note: that it is there, and no more.
    let mut blind = table(Vec::new());
    sweep(&mut blind, &[(flow, opened)], 30 * SECOND);
    let blind = drain(&mut blind, 30 * SECOND);
    assert_eq!((blind[0].id, prints_of(&blind[0])), (before[0].id, None));
}

#[test]
fn a_flow_found_in_the_map_is_told_at_once_even_just_after_boot() {
    let mut table = table(Vec::new());
    let flow = key(1, 5);
    sweep(
        &mut table,
        &[(flow, state(SECOND, SECOND, 1, 0))],
        3 * SECOND,
    );
    assert_eq!(drain(&mut table, 3 * SECOND).len(), 1);
    // The next one is an update, and comes when one is due.
    let moved = state(SECOND, 4 * SECOND, 2, 0);
    sweep(&mut table, &[(flow, moved)], 5 * SECOND);
    assert!(drain(&mut table, 5 * SECOND).is_empty());
    sweep(&mut table, &[(flow, moved)], 13 * SECOND);
    assert_eq!(drain(&mut table, 13 * SECOND)[0].packets_sent, 2);
}

#[test]
fn a_socket_older_than_the_hooks_has_fingerprints_only_after_the_idle_time() {
    for (opened_ns, known) in [(59 * SECOND, false), (61 * SECOND, true)] {
        let mut table = table(Vec::new());
        let mut old = state(opened_ns, opened_ns, 1, 0);
        old.owner.origin = socket_origin::ADOPTED;
        apply(&mut table, first(key(1, 1), old, direction::SENT, b"word"));
        let halves = drain(&mut table, opened_ns);
        assert_eq!(prints_of(&halves[0]).is_some(), known);
    }
}

#[test]
fn who_receives_first_is_the_server() {
    let mut table = table(Vec::new());
    let mut received = state(SECOND, SECOND, 0, 1);
    received.opened_by = direction::RECEIVED;
    apply(
        &mut table,
        first(key(1, 1), received, direction::RECEIVED, b"word"),
    );
    let halves = drain(&mut table, SECOND);
    assert_eq!(halves[0].role, Role::Server);
    assert_eq!(prints_of(&halves[0]), Some((true, false)));
}

#[test]
fn a_full_table_counts() {
    let mut table = table(Vec::new());
    for port in 0..101 {
        apply(
            &mut table,
            first(key(1, port), state(1, 1, 1, 0), direction::SENT, b"word"),
        );
    }
    assert_eq!((table.open(), table.dropped()), (100, 1));
}

proptest! {
    /// Whatever the order of sweeps, records and drains: each flow's last row has its final counters, and is closed.
    #[test]
    fn every_flow_ends_with_its_last_counters(
        steps in proptest::collection::vec((0_u64..4, 0_u8..5), 1..120)
    ) {
        let mut table = table(Vec::new());
        let mut kernel: BTreeMap<FlowKey, FlowState> = BTreeMap::new();
        let mut expected: HashMap<(FlowKey, u64), u64> = HashMap::new();
        let mut last: HashMap<HalfId, Half> = HashMap::new();
        let mut now = 100 * SECOND;
        let mut take = |table: &mut Table, kernel: &mut BTreeMap<FlowKey, FlowState>, now: u64| {
            for half in drain(table, now) {
                last.insert(half.id, half);
            }
            for leaving in table.leaving() {
                if let Some(state) = kernel.remove(&leaving.key) {
                    if state.opened_ns == leaving.opened_ns {
                        table.left(leaving, state, &Clock::new(0));
                    } else {
                        kernel.insert(leaving.key, state);
                    }
                }
            }
        };
        for (cookie, what) in steps {
            now += SECOND / 2;
            let flow = key(cookie, 1);
            match what {
                0 | 1 => {
                    let fresh = !kernel.contains_key(&flow);
                    let entry = kernel.entry(flow).or_insert(state(now, now, 0, 0));
                    entry.last_ns = now;
                    entry.packets_sent += 1;
                    entry.bytes_sent += 10;
                    expected.insert((flow, entry.opened_ns), entry.packets_sent);
                    let entry = *entry;
                    if fresh {
                        apply(&mut table, first(flow, entry, direction::SENT, b"word"));
                    }
                }
                2 => {
                    let entries: Vec<_> = kernel.iter().map(|(key, state)| (*key, *state)).collect();
                    sweep(&mut table, &entries, now);
                }
                3 => take(&mut table, &mut kernel, now),
                _ => if let Some(state) = kernel.remove(&flow) {
                    apply(&mut table, FlowEvent::End { key: flow, state, released_ns: Some(now) });
                }
            }
        }
        now += 100 * SECOND;
        let entries: Vec<_> = kernel.iter().map(|(key, state)| (*key, *state)).collect();
        sweep(&mut table, &entries, now);
        take(&mut table, &mut kernel, now);
        prop_assert!(kernel.is_empty());
        prop_assert_eq!(table.open(), 0);
        prop_assert_eq!(last.len(), expected.len());
        for ((flow, opened_ns), packets) in expected {
            let id = HalfId::new(IDENTITY.agent, IDENTITY.boot, flow_cookie(&flow, opened_ns));
            let half = last.get(&id).expect("a row of every flow");
            prop_assert_eq!(half.state, HalfState::Closed);
            prop_assert_eq!(half.packets_sent, packets);
        }
    }
}

#[test]
fn the_agents_own_session_is_followed_and_not_told() {
    let mut own = state(SECOND, 2 * SECOND, 3, 3);
    own.owner.origin = socket_origin::AGENT;
    let flow = key(1, 7443);
    let mut table = table(Vec::new());
    apply(&mut table, first(flow, own, direction::SENT, b"hello"));
    assert!(drain(&mut table, 3 * SECOND).is_empty());
    own.last_ns = 40 * SECOND;
    sweep(&mut table, &[(flow, own)], 40 * SECOND);
    assert!(drain(&mut table, 41 * SECOND).is_empty());
    assert_eq!((table.open(), table.own()), (1, 1));
    apply(
        &mut table,
        FlowEvent::End {
            key: flow,
            state: own,
            released_ns: Some(42 * SECOND),
        },
    );
    assert!(drain(&mut table, 43 * SECOND).is_empty());
    assert_eq!((table.open(), table.own()), (0, 1));
    // The agent before this one had it, and was killed: only its end is left.
    let mut next = Table::new(IDENTITY, settings(), Vec::new());
    apply(
        &mut next,
        FlowEvent::End {
            key: flow,
            state: own,
            released_ns: Some(42 * SECOND),
        },
    );
    assert!(drain(&mut next, 43 * SECOND).is_empty());
}

#[test]
fn owners_that_become_known_late_are_told_of_flows_that_stay_open() {
    let mut table = table(Vec::new());
    let (open, ended) = (key(1, 53), key(2, 53));
    let old = Arc::new(Owner::default());
    for flow in [open, ended] {
        let event = first(flow, state(SECOND, SECOND, 1, 0), direction::SENT, b"hello");
        let owner = |_: &SocketOwner| Arc::clone(&old);
        table.apply(event, owner, |_| None, &Clock::new(0));
    }
    assert_eq!(drain(&mut table, 2 * SECOND).len(), 2);
    apply(
        &mut table,
        FlowEvent::End {
            key: ended,
            state: state(SECOND, SECOND, 1, 0),
            released_ns: Some(2 * SECOND),
        },
    );
    let new = Arc::new(Owner {
        workload: "shop".into(),
        ..Owner::default()
    });
    table.reown(&HashMap::from([(Arc::as_ptr(&old), Arc::clone(&new))]));
    let rows = table.drain(3 * SECOND, &Clock::new(0));
    assert_eq!(rows.len(), 2, "one that ended, and one that is told again");
    assert!(rows.iter().all(|row| Arc::ptr_eq(&row.owner, &new)));
}
