mod abandoned;
mod cards;
mod replay;

use super::intake::merge;
use super::*;
use crate::record::{Flush, code};
use weft_wire::{
    DatagramSort, Datagrams, Fingerprint, Half, HalfState, Owner, Protocol, Role, Site,
};

fn config() -> CoreConfig {
    CoreConfig {
        name: "fed-a".into(),
        hold_us: 1_500_000,
        expiry_us: 120_000_000,
        max_open: 10_000,
        seed: 3,
        mesh: None,
    }
}

fn core() -> Core {
    let mut core = Core::new(config(), Loaded::default());
    for key in [1, 2] {
        let info = AgentInfo {
            name: format!("a{key}"),
            site: Site {
                cloud: "aws".into(),
                ..Site::default()
            },
            ..AgentInfo::default()
        };
        core.apply(
            key,
            Timestamp(0),
            Input::Agent {
                key: AgentKey(key),
                info,
            },
        );
    }
    core
}

fn half(agent: u64, cookie: u64, role: Role, isn: u32, state: HalfState) -> Half {
    Half {
        id: HalfId::new(AgentKey(agent), 7, cookie),
        cookie,
        protocol: Protocol::Tcp,
        role,
        state,
        fingerprint: Fingerprint::TcpIsn {
            client: isn,
            server: isn.wrapping_mul(7),
        },
        local: if role == Role::Client {
            "10.0.0.1:4000"
        } else {
            "10.9.9.9:80"
        }
        .parse()
        .unwrap(),
        remote: "203.0.113.9:80".parse().unwrap(),
        opened_at: Timestamp(1000),
        closed_at: state.finished().then_some(Timestamp(2000)),
        seen_at: Timestamp(if state.finished() { 2000 } else { 1500 }),
        bytes_sent: 5,
        bytes_received: 5,
        packets_sent: 1,
        packets_received: 1,
        rtt_us: 10,
        retransmits: 0,
        owner: 0,
        ..Half::default()
    }
}

fn batch(core: &mut Core, at: i64, agent: u64, seq: u64, halves: Vec<Half>) {
    let owner = Owner {
        workload: format!("w{agent}"),
        ..Owner::default()
    };
    let batch = HalfBatch {
        boot: 7,
        owners: vec![owner],
        halves,
        ..HalfBatch::default()
    };
    core.apply(
        10 + seq,
        Timestamp(at),
        Input::Batch {
            agent: AgentKey(agent),
            seq,
            skew_us: 0,
            batch,
        },
    );
}

#[test]
fn two_closed_ends_make_one_settled_row() {
    let mut core = core();
    batch(
        &mut core,
        1,
        1,
        1,
        vec![half(1, 1, Role::Client, 9, HalfState::Closed)],
    );
    batch(
        &mut core,
        2,
        2,
        1,
        vec![half(2, 1, Role::Server, 9, HalfState::Closed)],
    );
    let flush = core.flush();
    assert_eq!(flush.rows.len(), 1);
    let row = flush.rows[0];
    assert!(row.settled && row.client.is_some() && row.server.is_some());
    assert_eq!(row.joined.unwrap().evidence, code::EVIDENCE[1]);
    assert_eq!(row.joined.unwrap().confidence, Confidence::Exact);
    assert_eq!((flush.owners.len(), flush.agents.len()), (2, 2));
    assert_eq!(flush.sequences, [(AgentKey(1), 1), (AgentKey(2), 1)]);
    core.advance(Timestamp(LINGER_US + 2));
    assert_eq!(core.in_memory(), 0);
    batch(
        &mut core,
        LINGER_US + 3,
        1,
        2,
        vec![half(1, 1, Role::Client, 9, HalfState::Closed)],
    );
    assert_eq!(core.flush().rows, [], "a half that left does not come back");
    assert_eq!(core.counters().late, 1);
}

#[test]
fn a_row_written_alone_is_replaced_when_the_other_end_comes() {
    let mut core = core();
    let server = half(2, 1, Role::Server, 9, HalfState::Open);
    batch(&mut core, 1, 2, 1, vec![server]);
    let flush = core.flush();
    assert_eq!(
        (flush.rows[0].id(), flush.rows[0].settled),
        (server.id, false)
    );
    let client = half(1, 1, Role::Client, 9, HalfState::Open);
    batch(&mut core, 2, 1, 1, vec![client]);
    let flush = core.flush();
    assert_eq!((flush.rows.len(), flush.rows[0].id()), (1, client.id));
    assert_eq!(flush.replaced, [server.id]);
    batch(
        &mut core,
        3,
        1,
        2,
        vec![half(1, 1, Role::Client, 9, HalfState::Closed)],
    );
    let flush = core.flush();
    assert_eq!(
        (flush.replaced, flush.rows[0].settled),
        (vec![client.id], false)
    );
    batch(
        &mut core,
        4,
        2,
        2,
        vec![half(2, 1, Role::Server, 9, HalfState::Closed)],
    );
    let flush = core.flush();
    assert_eq!(
        (flush.replaced, flush.rows[0].settled),
        (vec![client.id], true)
    );
}

#[test]
fn an_agent_that_restarted_does_not_take_back_what_was_known() {
    let mut core = core();
    let first = half(1, 1, Role::Client, 9, HalfState::Open);
    batch(&mut core, 1, 1, 1, vec![first]);
    let again = Half {
        fingerprint: Fingerprint::Unknown,
        opened_at: Timestamp(1400),
        seen_at: Timestamp(1600),
        bytes_sent: 70,
        ..first
    };
    batch(&mut core, 2, 1, 2, vec![again]);
    let side = core.flush().rows[0].client.unwrap();
    assert_eq!(
        (side.half.fingerprint, side.half.opened_at),
        (first.fingerprint, first.opened_at)
    );
    assert_eq!(side.half.bytes_sent, 70);
    batch(
        &mut core,
        3,
        2,
        1,
        vec![half(2, 1, Role::Server, 9, HalfState::Open)],
    );
    assert!(core.flush().rows[0].joined.is_some());
}

#[test]
fn an_end_counts_although_the_agents_clock_was_set_back() {
    let open = half(1, 1, Role::Client, 5, HalfState::Open);
    let mut closed = half(1, 1, Role::Client, 5, HalfState::Closed);
    closed.seen_at = Timestamp(open.seen_at.0 - 500);
    closed.bytes_sent = open.bytes_sent + 1;
    assert_eq!(merge(&open, &closed), Some(closed));
    assert_eq!(merge(&closed, &open), None);
}

#[test]
fn no_partner_expires_and_leaves() {
    let mut core = core();
    batch(
        &mut core,
        0,
        1,
        1,
        vec![half(1, 1, Role::Client, 9, HalfState::Closed)],
    );
    batch(
        &mut core,
        0,
        1,
        2,
        vec![half(1, 2, Role::Client, 10, HalfState::Refused)],
    );
    let flush = core.flush();
    assert_eq!(
        flush
            .rows
            .iter()
            .map(|row| row.unmatched)
            .collect::<Vec<_>>(),
        [Some(Unmatched::Pending), Some(Unmatched::NotEstablished)]
    );
    assert_eq!(
        flush.rows.iter().map(|row| row.settled).collect::<Vec<_>>(),
        [false, true]
    );
    core.advance(Timestamp(122_000_000));
    let flush = core.flush();
    assert_eq!(
        (flush.rows[0].unmatched, flush.rows[0].settled),
        (Some(Unmatched::NoPartner), true)
    );
    core.advance(Timestamp(140_000_000));
    assert_eq!(core.in_memory(), 0);
}

#[test]
fn downtime_does_not_expire_what_waits() {
    let mut core = core();
    batch(
        &mut core,
        0,
        1,
        1,
        vec![half(1, 1, Role::Client, 9, HalfState::Closed)],
    );
    let an_hour = 3_600_000_000;
    core.apply(20, Timestamp(an_hour), Input::Start { down_us: an_hour });
    core.advance(Timestamp(an_hour + 1));
    batch(
        &mut core,
        an_hour + 2,
        2,
        1,
        vec![half(2, 1, Role::Server, 9, HalfState::Closed)],
    );
    assert!(core.flush().rows[0].joined.is_some());
}

#[test]
fn a_half_from_the_store_waits_on() {
    let mut first = core();
    let server = half(2, 1, Role::Server, 9, HalfState::Closed);
    batch(&mut first, 0, 2, 1, vec![server]);
    let flush = first.flush();
    let loaded = Loaded {
        position: flush.position,
        live: flush.rows,
        agents: flush.agents.into_iter().collect(),
        owners: flush.owners.into_iter().collect(),
        next_owner: 1,
        sequences: flush.sequences,
        ..Loaded::default()
    };
    let mut second = Core::new(config(), loaded);
    let an_hour = 3_600_000_000;
    second.apply(20, Timestamp(an_hour), Input::Start { down_us: 0 });
    second.advance(Timestamp(an_hour + 60_000_000));
    assert_eq!(second.flush().rows, [], "nothing has changed");
    let client = half(1, 1, Role::Client, 9, HalfState::Closed);
    batch(&mut second, an_hour + 61_000_000, 1, 1, vec![client]);
    let flush = second.flush();
    assert_eq!(
        flush.rows[0].server.map(|side| side.half.id),
        Some(server.id)
    );
    assert_eq!(
        (flush.replaced, flush.rows[0].settled),
        (vec![server.id], true)
    );
}

#[test]
fn a_third_claim_undoes_the_pair() {
    let mut core = core();
    batch(
        &mut core,
        1,
        1,
        1,
        vec![half(1, 1, Role::Client, 9, HalfState::Closed)],
    );
    batch(
        &mut core,
        2,
        2,
        1,
        vec![half(2, 1, Role::Server, 9, HalfState::Closed)],
    );
    let pair = core.flush().rows[0].id();
    batch(
        &mut core,
        3,
        2,
        2,
        vec![half(2, 2, Role::Server, 9, HalfState::Closed)],
    );
    let flush = core.flush();
    assert_eq!(flush.replaced_done, [pair]);
    assert_eq!(flush.rows.len(), 3);
    assert!(
        flush
            .rows
            .iter()
            .all(|row| row.unmatched == Some(Unmatched::Ambiguous) && row.joined.is_none())
    );
}

/// The end of a late pair that is closed has left; its other end and the one that came between them are not a pair for that.
#[test]
fn what_was_ambiguous_before_a_restart_is_no_pair_after_it() {
    let between = |half: Half| {
        let (client, server) = (([10, 0, 0, 1], 4000).into(), ([10, 9, 9, 9], 80).into());
        let (local, remote) = match half.role {
            Role::Client => (client, server),
            Role::Server => (server, client),
        };
        Half {
            local,
            remote,
            ..half
        }
    };
    let late = |half: Half| Half {
        fingerprint: Fingerprint::Unknown,
        ..between(half)
    };
    let mut first = core();
    let client = late(half(1, 1, Role::Client, 0, HalfState::Open));
    let server = late(half(2, 1, Role::Server, 0, HalfState::Closed));
    batch(&mut first, 1, 1, 1, vec![client]);
    batch(&mut first, 2, 2, 1, vec![server]);
    first.advance(Timestamp(2_000_000));
    assert!(first.flush().rows[0].joined.is_some());
    let next = between(half(2, 2, Role::Server, 9, HalfState::Open));
    batch(&mut first, 2_000_001, 2, 2, vec![next]);
    first.advance(Timestamp(4_000_000));
    let flush = first.flush();
    let ambiguous = |row: &&Row| row.unmatched == Some(Unmatched::Ambiguous);
    assert_eq!(flush.rows.iter().filter(ambiguous).count(), 3);
    let live: Vec<_> = flush.rows.into_iter().filter(|row| !row.settled).collect();
    assert_eq!(live.len(), 2);
    let mut agents: HashMap<_, _> = flush.agents.into_iter().collect();
    let mut owners: HashMap<_, _> = flush.owners.into_iter().collect();
    for side in live.iter().flat_map(Row::sides) {
        let agent = first.agents.find(side.agent).unwrap();
        agents.insert(side.agent, agent.record.clone());
        let owner = first.owners.find(side.half.owner).unwrap();
        owners.insert(side.half.owner, owner.clone());
    }
    let mut second = Core::new(
        config(),
        Loaded {
            position: flush.position,
            live,
            agents,
            owners,
            next_owner: 9,
            departed: vec![server.id],
            ..Loaded::default()
        },
    );
    second.advance(Timestamp(4_000_001));
    assert_eq!(second.in_memory(), 2);
    second.advance(Timestamp(20_000_000));
    assert_eq!(second.flush().rows, [], "nothing has changed");
    assert_eq!(second.counters().stitched, 0);
}

/// Its timers run from the first time that is heard of, and not through all the time before it.
#[test]
fn a_row_that_was_open_before_a_restart_waits_from_then_on() {
    let year_us = 365 * 86_400 * 1_000_000;
    let mut first = core();
    let open = half(1, 1, Role::Client, 9, HalfState::Open);
    batch(&mut first, 54 * year_us, 1, 1, vec![open]);
    let flush = first.flush();
    let mut second = Core::new(
        config(),
        Loaded {
            position: flush.position,
            live: flush.rows,
            agents: flush.agents.into_iter().collect(),
            owners: flush.owners.into_iter().collect(),
            ..Loaded::default()
        },
    );
    second.advance(Timestamp(55 * year_us));
    assert_eq!((second.in_memory(), second.waiting()), (1, 1));
    batch(
        &mut second,
        55 * year_us + 1,
        2,
        1,
        vec![half(2, 1, Role::Server, 9, HalfState::Open)],
    );
    assert!(second.flush().rows[0].joined.is_some());
}

#[test]
fn a_full_memory_stores_without_waiting() {
    let mut core = Core::new(
        CoreConfig {
            max_open: 2,
            ..config()
        },
        Loaded::default(),
    );
    core.apply(
        1,
        Timestamp(0),
        Input::Agent {
            key: AgentKey(1),
            info: AgentInfo::default(),
        },
    );
    let halves = (1..=5)
        .map(|cookie| half(1, cookie, Role::Client, cookie as u32, HalfState::Closed))
        .collect();
    batch(&mut core, 1, 1, 1, halves);
    assert_eq!(core.in_memory(), 2);
    assert_eq!(core.counters().memory_full, 3);
    assert_eq!(core.flush().rows.len(), 5, "nothing is lost");
}

#[test]
fn what_a_full_memory_stored_open_is_replaced_by_its_update() {
    let mut core = Core::new(
        CoreConfig {
            max_open: 2,
            ..config()
        },
        Loaded::default(),
    );
    let info = AgentInfo::default();
    let key = AgentKey(1);
    core.apply(1, Timestamp(0), Input::Agent { key, info });
    let of = |cookies: std::ops::RangeInclusive<u64>, state| -> Vec<_> {
        cookies
            .map(|cookie| half(1, cookie, Role::Client, cookie as u32, state))
            .collect()
    };
    let mut flushes = Vec::new();
    // Two fill memory, two are remembered beside it, the fifth is stored for good.
    batch(&mut core, 1, 1, 1, of(1..=5, HalfState::Open));
    // Before it was written: one row, the later one.
    batch(&mut core, 2, 1, 2, of(3..=3, HalfState::Closed));
    flushes.push(core.flush());
    assert_eq!(flushes[0].rows.len(), 5);
    assert_eq!(flushes[0].replaced, []);
    // After it was written: the row is replaced, once; those that are done are late.
    batch(&mut core, 3, 1, 3, of(3..=5, HalfState::Closed));
    flushes.push(core.flush());
    let fourth = half(1, 4, Role::Client, 4, HalfState::Closed);
    assert_eq!(flushes[1].replaced, [fourth.id]);
    assert_eq!(flushes[1].rows.len(), 1);
    assert!(flushes[1].rows[0].settled);
    batch(&mut core, 4, 1, 4, of(3..=5, HalfState::Closed));
    flushes.push(core.flush());
    assert_eq!(flushes[2].rows, []);
    assert_eq!(stored(&flushes).len(), 5);
    let counters = core.counters();
    assert_eq!((counters.halves, counters.memory_full), (5, 3));
    assert_eq!(counters.late, 2 + 3);
}

#[test]
fn what_a_full_memory_stored_open_comes_back_when_there_is_room() {
    let mut core = Core::new(
        CoreConfig {
            max_open: 1,
            ..config()
        },
        Loaded::default(),
    );
    let info = AgentInfo::default();
    let key = AgentKey(1);
    core.apply(1, Timestamp(0), Input::Agent { key, info });
    let first = half(1, 1, Role::Client, 1, HalfState::Refused);
    let open = half(1, 2, Role::Client, 2, HalfState::Open);
    batch(&mut core, 1, 1, 1, vec![first, open]);
    core.flush();
    core.advance(Timestamp(LINGER_US + 2));
    assert_eq!(core.in_memory(), 0);
    let at = LINGER_US + 3;
    batch(&mut core, at, 1, 2, vec![open]);
    assert_eq!((core.in_memory(), core.counters().halves), (1, 2));
    let flush = core.flush();
    assert_eq!((flush.replaced, flush.rows.len()), (vec![open.id], 1));
    assert_eq!(flush.rows[0].unmatched, Some(Unmatched::Pending));
}

/// What a store would hold after these flushes.
fn stored(flushes: &[Flush]) -> BTreeMap<HalfId, Row> {
    let mut rows = BTreeMap::new();
    for flush in flushes {
        for id in flush.replaced.iter().chain(&flush.replaced_done) {
            assert!(rows.remove(id).is_some(), "replaced what was not there");
        }
        for row in &flush.rows {
            assert!(rows.insert(row.id(), *row).is_none(), "two rows of one id");
        }
    }
    rows
}

#[test]
fn a_half_that_gains_its_sequence_numbers_is_offered_under_them() {
    let mut core = Core::new(
        CoreConfig {
            mesh: Some((vec!["fed-b".into()], MeshKey::new([1; 32]))),
            ..config()
        },
        Loaded::default(),
    );
    let info = AgentInfo::default();
    let key = AgentKey(1);
    core.apply(1, Timestamp(0), Input::Agent { key, info });
    let known = half(1, 1, Role::Client, 9, HalfState::Open);
    let unknown = Half {
        fingerprint: Fingerprint::Unknown,
        ..known
    };
    batch(&mut core, 1, 1, 1, vec![unknown]);
    core.advance(Timestamp(2_000_000));
    assert_eq!(core.mesh_counters().unwrap().home.offered, 1);
    assert_eq!((core.waiting(), core.past_hold()), (1, 1));
    let seen_at = Timestamp(1600);
    batch(&mut core, 2_000_001, 1, 2, vec![Half { seen_at, ..known }]);
    assert_eq!(core.mesh_counters().unwrap().halves, 0);
    core.advance(Timestamp(4_000_000));
    let counters = core.mesh_counters().unwrap();
    assert_eq!((counters.home.offered, counters.halves), (2, 1));
    assert_eq!(core.waiting(), 1, "one that is offered waits once");
}

fn flow(agent: u64, role: Role, server: u64, sort: DatagramSort, state: HalfState) -> Half {
    Half {
        protocol: Protocol::Udp,
        fingerprint: Fingerprint::Datagrams(Datagrams {
            sort,
            client: 77,
            server,
            distinct: true,
        }),
        ..half(agent, 1, role, 9, state)
    }
}

#[test]
fn udp_halves_are_stitched_by_their_first_datagrams() {
    let (sure, likely) = (Confidence::High, Confidence::Medium);
    for (sort, evidence, confidence) in [
        (DatagramSort::Dns, "udp-first-datagram", likely),
        (DatagramSort::Quic, "quic-connection-id", sure),
    ] {
        let mut core = core();
        // The first report of the client comes before the answer does.
        let early = flow(1, Role::Client, 0, sort, HalfState::Open);
        batch(&mut core, 1, 1, 1, vec![early]);
        let server = flow(2, Role::Server, 88, sort, HalfState::Open);
        batch(&mut core, 2, 2, 1, vec![server]);
        let client = flow(1, Role::Client, 88, sort, HalfState::Closed);
        batch(&mut core, 3, 1, 2, vec![client]);
        core.advance(Timestamp(2_000_000));
        let flush = core.flush();
        let joined = flush.rows.iter().find_map(|row| row.joined).unwrap();
        assert_eq!(joined.evidence, evidence);
        assert_eq!(joined.confidence, confidence);
        assert!(code::EVIDENCE.contains(&joined.evidence));
        assert_eq!(core.counters().stitched, 1);
    }
}

#[test]
fn udp_and_tcp_on_the_same_ports_are_not_one_connection() {
    let mut core = core();
    let unknown = |agent, role, protocol| Half {
        protocol,
        fingerprint: Fingerprint::Unknown,
        local: if role == Role::Client {
            "10.0.0.1:53".parse().unwrap()
        } else {
            "10.0.0.2:53".parse().unwrap()
        },
        remote: if role == Role::Client {
            "10.0.0.2:53".parse().unwrap()
        } else {
            "10.0.0.1:53".parse().unwrap()
        },
        ..half(agent, 1, role, 9, HalfState::Open)
    };
    batch(
        &mut core,
        1,
        1,
        1,
        vec![unknown(1, Role::Client, Protocol::Tcp)],
    );
    batch(
        &mut core,
        2,
        2,
        1,
        vec![unknown(2, Role::Server, Protocol::Udp)],
    );
    core.advance(Timestamp(2_000_000));
    assert_eq!(core.counters().stitched, 0);
}

#[test]
fn an_agent_that_floods_leaves_room_for_others() {
    let mut core = core();
    let flood = |from: u64, to: u64| {
        let half = |cookie: u64| half(1, cookie, Role::Client, cookie as u32, HalfState::Open);
        (from..to).map(half).collect::<Vec<_>>()
    };
    let honest = |from: u64, to: u64| {
        let isn = |cookie: u64| 1_000_000 + cookie as u32;
        let half = |cookie: u64| half(2, cookie, Role::Server, isn(cookie), HalfState::Open);
        (from..to).map(half).collect::<Vec<_>>()
    };
    batch(&mut core, 1, 1, 1, flood(0, 7_000));
    assert_eq!(core.counters().share_full, 0, "there is room");
    batch(&mut core, 2, 1, 2, flood(7_000, 20_000));
    let counters = core.counters();
    assert_eq!((counters.share_full, counters.memory_full), (12_500, 0));
    batch(&mut core, 3, 2, 1, honest(0, 2_500));
    let counters = core.counters();
    assert_eq!((counters.share_full, counters.memory_full), (12_500, 0));
    assert_eq!(core.in_memory(), 10_000);
    batch(&mut core, 4, 2, 2, honest(2_500, 2_600));
    assert_eq!(core.counters().memory_full, 100, "then it is full for all");
}
