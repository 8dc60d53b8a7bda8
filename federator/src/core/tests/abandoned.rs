//! Open halves that no agent will close, and what is known of agents after a restart.

use super::*;
use crate::record::Standing;

const DAY: i64 = 86_400_000_000;

/// A batch of a boot, by a clock that is ahead.
fn told(core: &mut Core, at: i64, seq: u64, (boot, skew_us): (u64, i64), halves: Vec<Half>) {
    let batch = HalfBatch {
        boot,
        owners: vec![Owner::default()],
        halves,
        ..HalfBatch::default()
    };
    let agent = AgentKey(1);
    let input = Input::Batch {
        agent,
        seq,
        skew_us,
        batch,
    };
    core.apply(10 + seq, Timestamp(at), input);
}

fn of_boot(boot: u64, cookie: u64, state: HalfState) -> Half {
    Half {
        id: HalfId::new(AgentKey(1), boot, cookie),
        ..half(1, cookie, Role::Client, cookie as u32, state)
    }
}

/// A core that starts with what another one has flushed.
fn restarted(flushes: Vec<Flush>) -> Core {
    let mut loaded = Loaded {
        next_owner: 100,
        next_name: 1,
        ..Loaded::default()
    };
    for flush in flushes {
        loaded.position = flush.position;
        loaded
            .live
            .retain(|row: &Row| !flush.replaced.contains(&row.id()));
        loaded
            .live
            .extend(flush.rows.into_iter().filter(|row| !row.settled));
        loaded.agents.extend(flush.agents);
        loaded.owners.extend(flush.owners);
        loaded.sequences.extend(flush.sequences);
        loaded.descriptions.extend(flush.descriptions);
        for (key, standing) in flush.standings {
            loaded.standings.retain(|(known, _)| *known != key);
            loaded.standings.push((key, standing));
        }
    }
    Core::new(config(), loaded)
}

fn states(flush: &Flush) -> Vec<(HalfState, bool)> {
    let of = |row: &Row| (row.client.unwrap().half.state, row.settled);
    flush.rows.iter().map(of).collect()
}

#[test]
fn what_was_open_on_a_host_that_was_started_again_is_closed() {
    let mut core = core();
    let (old, new) = (
        of_boot(7, 1, HalfState::Open),
        of_boot(8, 3, HalfState::Open),
    );
    told(
        &mut core,
        1,
        1,
        (7, 0),
        vec![old, of_boot(7, 2, HalfState::Closed)],
    );
    core.flush();
    told(&mut core, 2, 2, (8, 0), vec![new]);
    let flush = core.flush();
    let mut seen: Vec<_> = flush
        .rows
        .iter()
        .map(|row| (row.id(), row.sides().next().unwrap().half))
        .collect();
    seen.sort_by_key(|(_, half)| half.state.finished());
    assert_eq!(
        seen[0],
        (
            new.id,
            Half {
                owner: seen[0].1.owner,
                ..new
            }
        )
    );
    assert_eq!(
        (seen[1].0, seen[1].1.state),
        (old.id, HalfState::HostRestarted)
    );
    assert_eq!(seen[1].1.closed_at, Some(old.seen_at));
    assert_eq!(core.counters().host_restarted, 1);
    // Without partner it leaves like any other, once it has been waited for.
    core.advance(Timestamp(200_000_000));
    let flush = core.flush();
    assert!(
        flush
            .rows
            .iter()
            .any(|row| row.id() == old.id && row.settled)
    );
}

#[test]
fn that_is_so_after_a_restart_of_the_federator_too() {
    let mut first = core();
    let old = of_boot(7, 1, HalfState::Open);
    told(&mut first, 1, 1, (7, 0), vec![old]);
    let mut second = restarted(vec![first.flush()]);
    second.advance(Timestamp(2));
    told(
        &mut second,
        3,
        2,
        (7, 0),
        vec![of_boot(7, 2, HalfState::Open)],
    );
    assert_eq!(second.counters().host_restarted, 0);
    told(
        &mut second,
        4,
        3,
        (8, 0),
        vec![of_boot(8, 1, HalfState::Open)],
    );
    assert_eq!(second.counters().host_restarted, 2);
}

#[test]
fn an_agent_that_boots_with_every_batch_is_swept_for_now_and_then() {
    let mut core = core();
    for boot in 0..100 {
        told(
            &mut core,
            1 + boot as i64,
            1 + boot,
            (boot, 0),
            vec![of_boot(boot, 1, HalfState::Open)],
        );
    }
    assert_eq!(core.counters().host_restarted, 1, "the first time at once");
    core.advance(Timestamp(20_000_000));
    assert_eq!(core.counters().host_restarted, 99);
}

#[test]
fn of_an_agent_that_is_gone_everything_is_closed_and_goes_on_if_it_comes_back() {
    let mut core = core();
    let open = of_boot(7, 1, HalfState::Open);
    told(&mut core, 1, 1, (7, 0), vec![open]);
    core.flush();
    core.apply(20, Timestamp(2), Input::Gone { key: AgentKey(1) });
    let flush = core.flush();
    assert_eq!(states(&flush), [(HalfState::AgentGone, false)]);
    assert_eq!(
        (flush.replaced, flush.rows[0].state()),
        (vec![open.id], weft_wire::query::ConnectionState::Closed)
    );
    let later = Half {
        seen_at: Timestamp(9000),
        bytes_sent: 70,
        ..open
    };
    told(&mut core, 9000, 2, (7, 0), vec![later]);
    let flush = core.flush();
    assert_eq!(states(&flush), [(HalfState::Open, false)]);
    assert_eq!(
        (
            flush.replaced,
            flush.rows[0].client.unwrap().half.bytes_sent
        ),
        (vec![open.id], 70)
    );
    assert_eq!(core.counters().halves, 1, "counted once");
}

#[test]
fn what_left_memory_when_its_agent_was_gone_is_not_counted_again() {
    let mut core = core();
    let open = of_boot(7, 1, HalfState::Open);
    told(&mut core, 1, 1, (7, 0), vec![open]);
    let first = core.flush();
    core.apply(20, Timestamp(2), Input::Gone { key: AgentKey(1) });
    core.advance(Timestamp(200_000_000));
    let second = core.flush();
    assert_eq!(states(&second), [(HalfState::AgentGone, true)]);
    core.advance(Timestamp(400_000_000));
    assert_eq!(core.in_memory(), 0);
    // Even after a restart, when the ids of what has left are forgotten.
    let mut core = restarted(vec![first, second]);
    core.advance(Timestamp(7 * DAY));
    let news = |half: Half| Half {
        seen_at: Timestamp(7 * DAY),
        ..half
    };
    let kept = Half {
        opened_at: Timestamp(DAY),
        ..of_boot(7, 2, HalfState::Closed)
    };
    told(&mut core, 7 * DAY, 2, (7, 0), vec![news(open), news(kept)]);
    let flush = core.flush();
    let ids: Vec<HalfId> = flush.rows.iter().map(Row::id).collect();
    assert_eq!(ids, [kept.id], "what it saw and kept meanwhile is new");
    assert_eq!(core.counters().after_gone, 1);
}

#[test]
fn an_agents_clock_is_remembered_over_a_restart() {
    // Ahead by far more than any rule bears: without it the two would be an hour apart.
    let ahead = 3_600_000_000;
    let mut first = core();
    let of = |agent, role| flow(agent, role, 88, DatagramSort::Dns, HalfState::Closed);
    let client = Half {
        opened_at: Timestamp(ahead + 1000),
        closed_at: Some(Timestamp(ahead + 2000)),
        seen_at: Timestamp(ahead + 2000),
        ..of(1, Role::Client)
    };
    told(&mut first, 2000, 1, (7, ahead), vec![client]);
    let flush = first.flush();
    let standing = Standing {
        skew_us: ahead,
        boot: Some(7),
        newest: client.seen_at,
        gone_before: None,
    };
    assert_eq!(
        flush.standings.iter().find(|(key, _)| *key == AgentKey(1)),
        Some(&(AgentKey(1), standing))
    );
    let mut second = restarted(vec![flush]);
    second.advance(Timestamp(3000));
    batch(&mut second, 4000, 2, 1, vec![of(2, Role::Server)]);
    second.advance(Timestamp(10_000_000));
    assert_eq!(second.counters().stitched, 1);
}
