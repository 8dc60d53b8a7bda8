//! The program as it is run: a real configuration, real hooks, a federator that acknowledges over QUIC. It is stopped, killed and
//! started again, and run with no more than it needs.
//!
//! Needs root and cgroup v2; skipped elsewhere.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod federator;
mod host;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use host::{Agent, Host};
use weft_wire::control::Detail;
use weft_wire::{Half, HalfState, Role};

/// Both ends of `count` connections that come and go.
fn traffic(listener: &TcpListener, count: usize) {
    for _ in 0..count {
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(listener.accept().unwrap());
        drop(stream);
    }
}

/// One after the other: what is done moves this process between cgroups.
#[test]
fn daemon() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    stopped_started_and_killed();
    least_privileges();
    counts_stay_exact_when_detail_is_given_up();
}

/// No agent fits into a byte: it gives up what it can, says so, and counts on.
fn counts_stay_exact_when_detail_is_given_up() {
    const CONNECTIONS: u64 = 200;
    let host = Host::with("tight", "[limits]\nmemory_bytes = 1\n");
    let listener = host.listener();
    let mut agent = host.start(Agent::AsRoot);
    host.wait_given_up(&Detail::ORDER[..2]);
    let log = host.log();
    for detail in &Detail::ORDER[..2] {
        let said = log.matches(detail.words()).count();
        assert_eq!(said, 1, "{log}");
    }
    let before = host.rows().len();
    let mut sent = 0;
    for number in 1..=CONNECTIONS {
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        stream.write_all(&vec![b'x'; number as usize]).unwrap();
        peer.read_exact(&mut vec![0; number as usize]).unwrap();
        sent += number;
    }
    host.wait_closed(before + 2 * CONNECTIONS as usize);
    assert_eq!(agent.terminate(), Some(0));
    let rows = host.rows();
    let total = |of: fn(&Half) -> u64, role: Role| -> u64 {
        let rows = rows.iter().filter(|(half, _)| half.role == role);
        rows.map(|(half, _)| of(half)).sum()
    };
    let bytes = [
        total(|half| half.bytes_sent, Role::Client),
        total(|half| half.bytes_received, Role::Server),
    ];
    assert_eq!(bytes, [sent; 2]);
    // Of the client: SYN, the ACK that completes the opening, the payload and the FIN at least.
    assert!(total(|half| half.packets_sent, Role::Client) >= 4 * CONNECTIONS);
    for (_, owner) in &rows {
        let process = owner.process.as_ref().unwrap();
        assert_eq!((process.pid, &process.exe), (std::process::id(), &None));
    }
}

fn stopped_started_and_killed() {
    let host = Host::new("daemon");
    let listener = host.listener();
    let mut agent = host.start(Agent::AsRoot);
    let open = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _peer = listener.accept().unwrap();
    host.wait("an open connection", |seen| {
        seen.values()
            .filter(|(state, _)| *state == HalfState::Open)
            .count()
            == 2
    });

    // Told to stop, it delivers what it has.
    traffic(&listener, 50);
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(host.closed(), 100);

    // What happened without an agent waits for the next one.
    traffic(&listener, 50);
    agent = host.start(Agent::AsRoot);
    host.wait_closed(200);

    // Killed at any moment, it loses nothing and doubles nothing.
    for _ in 0..5 {
        traffic(&listener, 100);
        agent.kill();
        traffic(&listener, 20);
        agent = host.start(Agent::AsRoot);
    }
    drop(open);
    drop(_peer);
    host.wait_closed(200 + 5 * 240 + 2);
    let seen = host.seen();
    assert!(
        seen.values()
            .all(|(state, ends)| state.finished() && *ends == 1)
    );
    assert_eq!(agent.terminate(), Some(0));
}

fn least_privileges() {
    let host = Host::new("least");
    let listener = host.listener();
    // Root, but not with everything that root may do.
    let mut agent = host.start(Agent::AsRoot);
    let allowed: u64 = weft_agent::privileges::NEEDED
        .iter()
        .chain(&weft_agent::privileges::USEFUL)
        .map(|(one, _)| one.bitmask())
        .sum();
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(agent.capabilities(set) & !allowed, 0, "{set}");
    }
    assert_eq!(agent.terminate(), Some(0));
    host.unload();

    // Another user, with nothing but what is needed.
    let needed: Vec<_> = weft_agent::privileges::NEEDED.to_vec();
    let mut agent = host.start(Agent::AsNobody(&needed));
    traffic(&listener, 20);
    host.wait_closed(40);
    assert_eq!(agent.terminate(), Some(0));
    host.unload();

    // Every one of them is needed.
    for missing in &needed {
        let fewer: Vec<_> = needed
            .iter()
            .filter(|one| *one != missing)
            .copied()
            .collect();
        let agent = host.spawn(Agent::AsNobody(&fewer));
        assert_ne!(agent.ended(), Some(0), "without {}", missing.0);
    }
}
