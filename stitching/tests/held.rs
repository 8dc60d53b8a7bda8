//! The exact rule has its chance first, and those that have no ISN have room.

use weft_stitching::*;

fn half(role: Role, server_isn: u32) -> HalfView {
    let (client, server) = (([10, 0, 0, 1], 1000).into(), ([10, 0, 0, 2], 80).into());
    let (local, remote) = if role == Role::Client {
        (client, server)
    } else {
        (server, client)
    };
    HalfView {
        role,
        fingerprint: Fingerprint::TcpIsn {
            client: 1,
            server: server_isn,
        },
        network: 1,
        host: 1,
        local,
        remote,
        opened_at: 0,
        closed_at: Some(5),
        seen_at: 5,
        bytes_sent: 0,
        bytes_received: 0,
        packets_sent: 0,
        packets_received: 0,
    }
}

#[test]
fn a_half_in_its_hold_is_left_to_the_exact_rule() {
    let views = [
        half(Role::Client, 2),
        half(Role::Server, 9),
        half(Role::Client, 9),
    ];
    let lookup = |handle: Handle| views.get(handle.0 as usize).copied();
    let candidate = |i: u32| views[i as usize].candidate(Handle(i));
    let mut stitcher = Stitcher::new(Config {
        hold_us: 10_000,
        max_open: 100,
        ..Config::default()
    });
    stitcher.insert(0, &[candidate(0)]);
    stitcher.advance(10_000, &lookup);
    assert_eq!(stitcher.poll(), Some(Output::Offer(Handle(0))));
    stitcher.insert(11_000, &[candidate(1)]);
    stitcher.closed(12_000, &[candidate(0)], &lookup);
    assert_eq!(stitcher.poll(), None);
    stitcher.insert(13_000, &[candidate(2)]);
    let (client, server, rule) = (Handle(2), Handle(1), Rule::TcpIsnPair);
    assert_eq!(
        stitcher.poll(),
        Some(Output::Stitched {
            client,
            server,
            rule
        })
    );
}

#[test]
fn offered_halves_leave_room_for_those_without_isns() {
    let crowd = 400;
    let port = |i: u32| 2000 + i as u16;
    let mut views: Vec<_> = (0..crowd)
        .map(|i| HalfView {
            fingerprint: Fingerprint::TcpIsn {
                client: i,
                server: i,
            },
            local: ([10, 0, 0, 1], port(i)).into(),
            closed_at: None,
            ..half(Role::Client, 0)
        })
        .collect();
    let unknown = |role| HalfView {
        fingerprint: Fingerprint::Unknown,
        ..half(role, 0)
    };
    views.extend([unknown(Role::Client), unknown(Role::Server)]);
    let lookup = |handle: Handle| views.get(handle.0 as usize).copied();
    let candidate = |i: u32| views[i as usize].candidate(Handle(i));
    let mut stitcher = Stitcher::new(Config {
        hold_us: 10_000,
        max_open: 400,
        ..Config::default()
    });
    let candidates: Vec<_> = (0..crowd).map(candidate).collect();
    stitcher.insert(0, &candidates);
    stitcher.advance(10_000, &lookup);
    while stitcher.poll().is_some() {}
    assert!(stitcher.counters().not_indexed > 0);
    stitcher.insert(11_000, &[candidate(crowd), candidate(crowd + 1)]);
    stitcher.advance(21_000, &lookup);
    let (client, server, rule) = (Handle(crowd), Handle(crowd + 1), Rule::ReversedTuple);
    let stitched = Output::Stitched {
        client,
        server,
        rule,
    };
    assert!(std::iter::from_fn(|| stitcher.poll()).any(|output| output == stitched));
}

#[test]
fn what_was_ambiguous_before_stays_so_and_makes_others_so() {
    let unknown = |role| HalfView {
        fingerprint: Fingerprint::Unknown,
        closed_at: None,
        ..half(role, 0)
    };
    let flow = |role| HalfView {
        fingerprint: Fingerprint::Datagrams(Datagrams {
            sort: DatagramSort::Quic,
            client: 1,
            server: 2,
            distinct: true,
        }),
        ..unknown(role)
    };
    let isn = |role| half(role, 9);
    for of in [&unknown as &dyn Fn(Role) -> HalfView, &flow, &isn] {
        let views = [of(Role::Client), of(Role::Server)];
        let lookup = |handle: Handle| views.get(handle.0 as usize).copied();
        let candidate = |i: u32| views[i as usize].candidate(Handle(i));
        let mut stitcher = Stitcher::new(Config {
            hold_us: 10_000,
            max_open: 100,
            ..Config::default()
        });
        stitcher.insert(0, &[candidate(0)]);
        stitcher.distrust(&candidate(0));
        stitcher.insert(0, &[candidate(1)]);
        stitcher.advance(20_000, &lookup);
        let outputs: Vec<_> = std::iter::from_fn(|| stitcher.poll()).collect();
        let of_second = |output: &Output| matches!(output, Output::Ambiguous { handle, .. } if *handle == Handle(1));
        assert!(
            outputs.iter().all(of_second) && !outputs.is_empty(),
            "{:?}: {outputs:?}",
            views[0].fingerprint
        );
    }
}
