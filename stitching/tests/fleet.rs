//! UDP behind NAT: fleets that all send "ping", DNS ids that collide, first datagrams that get lost. No match is ever wrong;
//! what the bytes cannot tell apart stays ambiguous.

mod common;

use common::{Fate, Ledger};
use weft_stitching::*;

const SECOND: i64 = 1_000_000;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % limit
    }
}

/// Both halves of a flow: numbers 2i and 2i + 1.
fn flow(random: &mut Random, i: u64, ping: bool) -> [HalfView; 2] {
    let (sort, hash, distinct) = match random.below(3) {
        _ if ping => (DatagramSort::Other, 1, false),
        0 => (DatagramSort::Dns, 100 + random.below(40), true),
        1 => (DatagramSort::Quic, 1000 + i, true),
        _ => (DatagramSort::Other, 1000 + i, true),
    };
    let masqueraded = random.below(3) > 0;
    let opened = random.below(60) as i64 * SECOND / 2;
    // What was lost is sent again.
    let lost = if random.below(10) == 0 { 5 * SECOND } else { 0 };
    let source = ([10, 0, 0, 1 + random.below(9) as u8], 2000 + i as u16).into();
    let seen = if masqueraded {
        ([203, 0, 113, 9], 30_000 + i as u16).into()
    } else {
        source
    };
    let target = ([198, 51, 100, 1 + random.below(3) as u8], 53).into();
    let client = HalfView {
        role: Role::Client,
        fingerprint: Fingerprint::Datagrams(Datagrams {
            sort,
            client: hash,
            server: hash + 5000,
            distinct,
        }),
        network: 1,
        host: 1,
        local: source,
        remote: target,
        opened_at: opened,
        closed_at: Some(opened + lost + SECOND),
        seen_at: opened + lost + SECOND,
        bytes_sent: 4,
        bytes_received: 4,
        packets_sent: 1 + u64::from(lost > 0),
        packets_received: 1,
    };
    let server = HalfView {
        role: Role::Server,
        host: 2,
        local: target,
        remote: seen,
        opened_at: opened + lost + SECOND / 20,
        packets_sent: 1,
        packets_received: 1,
        ..client
    };
    [client, server]
}

fn run(seed: u64, flows: u64, ping: bool) -> [usize; 3] {
    let mut random = Random(seed);
    let views: Vec<_> = (0..flows)
        .flat_map(|i| flow(&mut random, i, ping))
        .collect();
    let lookup = |handle: Handle| views.get(handle.0 as usize).copied();
    let mut order: Vec<_> = (0..views.len()).collect();
    order.sort_by_key(|i| views[*i].opened_at + (i * 7919 % 13) as i64 * SECOND / 10);
    let mut stitcher = Stitcher::new(Config {
        hold_us: 2 * SECOND,
        expiry_us: 120 * SECOND,
        max_open: 10_000,
        seed,
    });
    let mut ledger = Ledger::default();
    for i in order {
        let now = views[i].opened_at + 2 * SECOND;
        stitcher.advance(now, &lookup);
        stitcher.insert(now, &[views[i].candidate(Handle(i as u32))]);
        ledger.drain(&mut stitcher);
    }
    for second in 0..400 {
        stitcher.advance((40 + second) * SECOND, &lookup);
        ledger.drain(&mut stitcher);
    }
    let mut counts = [0; 3];
    for (handle, fate) in &ledger.fates {
        match fate {
            Fate::Stitched(other, _) => {
                assert_eq!(
                    other ^ 1,
                    *handle,
                    "seed {seed}: {:?}",
                    views[*handle as usize]
                );
                counts[0] += 1;
            }
            Fate::Ambiguous => counts[1] += 1,
            Fate::Alone => counts[2] += 1,
        }
    }
    counts
}

fn sum(flows: u64, ping: bool) -> [usize; 3] {
    (0..100)
        .map(|seed| run(seed, flows, ping))
        .fold([0; 3], |sum, counts| [0, 1, 2].map(|i| sum[i] + counts[i]))
}

#[test]
fn bytes_that_tell_flows_apart_are_enough_behind_any_nat() {
    let [stitched, ambiguous, alone] = sum(60, false);
    println!("{stitched} halves stitched, {ambiguous} ambiguous, {alone} alone");
    assert!(stitched * 100 > 80 * (stitched + ambiguous + alone));
}

#[test]
fn a_fleet_that_greets_alike_is_never_joined_wrongly() {
    for flows in [2, 20, 200] {
        let [stitched, ambiguous, alone] = sum(flows, true);
        println!("{flows} flows: {stitched} halves stitched, {ambiguous} ambiguous, {alone} alone");
        assert!(stitched > 0);
        // More than there is room for side by side: what has no room is not taken for one that nobody else resembles.
        assert!(flows < 200 || alone == 0, "{alone} of {flows} flows");
    }
}

/// A crowd that greets alike, part of it without NAT: the addresses tell those apart, however many others there are, and
/// whoever's hold is over first.
#[test]
fn a_crowd_does_not_keep_neighbours_apart() {
    let mut random = Random(7);
    let views: Vec<HalfView> = (0..120)
        .flat_map(|i| {
            let [client, server] = flow(&mut random, i, true);
            let masqueraded = i % 2 == 0;
            let opened_at = i as i64 * SECOND / 100;
            let source = ([10, 0, 0, 1], 2000 + i as u16).into();
            let seen = ([203, 0, 113, 9], 30_000 + i as u16).into();
            let client = HalfView {
                local: source,
                opened_at,
                closed_at: Some(opened_at + SECOND),
                packets_sent: 1,
                ..client
            };
            let server = HalfView {
                remote: if masqueraded { seen } else { source },
                opened_at,
                closed_at: Some(opened_at + SECOND),
                ..server
            };
            [client, server]
        })
        .collect();
    let lookup = |handle: Handle| views.get(handle.0 as usize).copied();
    let mut stitcher = Stitcher::new(Config {
        hold_us: SECOND,
        expiry_us: 20 * SECOND,
        max_open: 10_000,
        seed: 1,
    });
    let mut ledger = Ledger::default();
    // Servers' ends are told later than those of clients.
    for late in [0, 1] {
        for i in (late..views.len()).step_by(2) {
            let now = views[i].opened_at + late as i64 * SECOND / 2;
            stitcher.insert(now, &[views[i].candidate(Handle(i as u32))]);
        }
    }
    let neighbour = |i: u32| i / 2 % 2 == 1;
    for tick in 10..400 {
        stitcher.advance(tick * SECOND / 10, &lookup);
        ledger.drain(&mut stitcher);
        // Elsewhere they are some of many that begin alike, and doubted.
        let offered: Vec<_> = ledger.offers().filter(|i| neighbour(*i)).collect();
        assert_eq!(offered, [], "at {tick}");
    }
    for (i, view) in views
        .iter()
        .enumerate()
        .filter(|(i, _)| neighbour(*i as u32))
    {
        let fate = ledger.fates.get(&(i as u32));
        let stitched = matches!(fate, Some(Fate::Stitched(other, _)) if *other == i as u32 ^ 1);
        assert!(stitched, "{fate:?} {view:?}");
    }
}
