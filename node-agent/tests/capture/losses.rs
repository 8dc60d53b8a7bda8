//! The cases of what no hook saw and what found no room: full rings and maps, agents that start late, fail, or are killed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use weft_wire::{Fingerprint, Half, HalfState, Role};

use crate::cases::{check_bytes, check_fingerprints, check_owner, check_pair, listen};
use crate::world::{Case, World, counter, pair, patience};

/// All of them.
pub const ALL: &[Case] = &[
    ("full_ring_drops_and_counts", full_ring),
    ("ends_lost_with_a_full_ring_are_found", lost_ends),
    (
        "connections_without_a_place_outlive_the_agent",
        without_place,
    ),
    ("ends_that_no_hook_saw_are_found_at_the_start", unseen_ends),
    ("a_failed_attach_keeps_what_is_unread", failed_attach),
    ("full_map_drops_and_counts", full_map),
    ("older_than_the_hooks", older_than_the_hooks),
    ("killed_agent_loses_and_doubles_nothing", killed_agent),
];

/// More connections at a time than the kernel may follow: the rest are counted, and there is room again after.
fn full_map(world: &mut World) {
    world.settings.max_connections = 8;
    world.watch();
    let (listener, address) = listen();
    let streams: Vec<_> = (0..20)
        .map(|_| {
            (
                TcpStream::connect(address).unwrap(),
                listener.accept().unwrap(),
            )
        })
        .collect();
    let tracked = world.halves().len();
    assert!((8..40).contains(&tracked), "{tracked}");
    let untracked = counter(world, |counters| &counters.kernel_untracked);
    assert_eq!(tracked as u64 + untracked, 40);
    drop(streams);
    world.finished(tracked);
    drop(TcpStream::connect(address).unwrap());
    drop(listener.accept().unwrap());
    world.finished(tracked + 2);
    assert_eq!(
        counter(world, |counters| &counters.kernel_untracked),
        untracked
    );
}

/// What does not fit is dropped and counted, what fits is right.
fn full_ring(world: &mut World) {
    world.settings.ring_bytes = 4096;
    world.watch();
    let (listener, address) = listen();
    const CONNECTIONS: u64 = 100;
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(address).unwrap();
        drop(listener.accept().unwrap());
        drop(stream);
    }
    let records = world.records_in_ring();
    let records_per_half = if world.placed() { 1 } else { 2 };
    let halves = world.rows();
    let dropped = counter(world, |counters| &counters.kernel_dropped);
    assert!(!halves.is_empty() && dropped > 0);
    assert_eq!(
        records + dropped,
        CONNECTIONS * 2 * records_per_half,
        "every record is there or counted"
    );
    // Room again: nothing stays broken.
    let stream = TcpStream::connect(address).unwrap();
    let client = stream.local_addr().unwrap();
    drop(listener.accept().unwrap());
    drop(stream);
    let halves = world.wait("the new pair", |halves| {
        halves
            .iter()
            .filter(|(half, _)| half.local == client || half.remote == client)
            .count()
            == 2
    });
    assert!(halves.iter().any(|(half, _)| half.local == client));
    assert_eq!(counter(world, |counters| &counters.kernel_dropped), dropped);
}

/// Ends that the ring had no room for are found where connections are kept.
fn lost_ends(world: &mut World) {
    world.settings.ring_bytes = 32 << 10;
    world.watch();
    world.snapshot();
    let (listener, address) = listen();
    const CONNECTIONS: usize = 200;
    let streams: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let stream = TcpStream::connect(address).unwrap();
            world.rows();
            (stream, listener.accept().unwrap())
        })
        .collect();
    world.wait("all open", |halves| halves.len() == 2 * CONNECTIONS);
    drop(streams);
    // A socket takes a moment to close, and its end may be lost after a look; the agent looks again and again, too.
    let open = |world: &mut World| {
        let halves = world.halves();
        halves.iter().any(|(half, _)| !half.state.finished())
    };
    for _ in 0..1_000 {
        if world.placed() || !open(world) {
            break;
        }
        world.sweep();
        std::thread::sleep(Duration::from_millis(5));
    }
    let halves = world.finished(2 * CONNECTIONS);
    assert_eq!(halves.len(), 2 * CONNECTIONS);
    assert!(counter(world, |counters| &counters.kernel_dropped) > 0);
    assert_eq!(counter(world, |counters| &counters.open), 0);
}

/// More connections than places: the next agent finds those without a place too, although nothing is recorded of them.
fn without_place(world: &mut World) {
    const CONNECTIONS: usize = 7;
    // As many places, and as many connections without one; where there are no places some are not followed.
    world.settings.max_connections = 8;
    world.watch();
    let (listener, address) = listen();
    let open = || {
        let stream = TcpStream::connect(address).unwrap();
        (stream, listener.accept().unwrap())
    };
    let staying: Vec<_> = (0..CONNECTIONS).map(|_| open()).collect();
    let untracked = counter(world, |counters| &counters.kernel_untracked);
    let followed = 2 * CONNECTIONS - untracked as usize;
    assert!(followed >= 8, "{followed}");
    world.wait("all open", |halves| halves.len() == followed);
    world.forget();
    world.watch();
    world.capture().take_over();
    let halves = world.wait("all again", |halves| halves.len() == followed);
    for (half, _) in &halves {
        assert_eq!(half.state, HalfState::Open);
        assert_ne!(half.fingerprint, Fingerprint::Unknown);
    }
    drop(staying);
    assert_eq!(world.finished(followed).len(), followed);
    assert_eq!(counter(world, |counters| &counters.open), 0);
}

/// Hooks detached while connections end: the next agent closes what is kept of them, and nothing else.
fn unseen_ends(world: &mut World) {
    world.watch();
    let (listener, address) = listen();
    let open = |listener: &TcpListener| {
        let stream = TcpStream::connect(address).unwrap();
        (stream, listener.accept().unwrap())
    };
    let (ending, staying) = (open(&listener), open(&listener));
    let from = staying.0.local_addr().unwrap();
    world.wait("all open", |halves| halves.len() == 4);
    let links = std::fs::read_dir(
        world
            .pins
            .join(format!("v{}", weft_agent_common::LAYOUT_VERSION)),
    );
    world.forget();
    for link in links.unwrap().flatten() {
        if link.file_name().to_string_lossy().starts_with("link_") {
            std::fs::remove_file(link.path()).unwrap();
        }
    }
    drop(ending);
    world.watch();
    world.snapshot();
    let halves = world.wait("both looks", |halves| halves.len() == 4);
    let finished = |half: &Half| half.state.finished();
    assert_eq!(halves.iter().filter(|(half, _)| finished(half)).count(), 2);
    let (client, server) = pair(&halves, from);
    assert!(!finished(&client.0) && !finished(&server.0));
    drop(staying);
    let (client, server) = pair(&world.finished(4), from);
    check_fingerprints(&client.0, &server.0);
}

/// An agent that cannot attach leaves what its predecessor did not read.
fn failed_attach(world: &mut World) {
    world.watch();
    let (listener, address) = listen();
    for _ in 0..10 {
        let stream = TcpStream::connect(address).unwrap();
        drop(listener.accept().unwrap());
        drop(stream);
    }
    let unread = world.records_in_ring();
    assert!(unread >= 20);
    world.forget();
    let watched = std::mem::replace(&mut world.cgroup, "/proc".into());
    assert!(world.try_watch().is_err());
    world.cgroup = watched;
    world.watch();
    assert_eq!(world.records_in_ring(), unread);
    world.finished(20);
}

/// Connections and listeners that were there first.
fn older_than_the_hooks(world: &mut World) {
    let (listener, address) = listen();
    let mut client = TcpStream::connect(address).unwrap();
    let (mut server, from) = listener.accept().unwrap();
    client.write_all(b"before").unwrap();
    server.read_exact(&mut [0; 6]).unwrap();
    world.watch();
    world.snapshot();
    let halves = world.wait("both ends", |halves| halves.len() == 2);
    let (at_client, at_server) = pair(&halves, from);
    assert_eq!(
        (at_client.0.role, at_server.0.role),
        (Role::Client, Role::Server)
    );
    for (half, owner) in [&at_client, &at_server] {
        assert_eq!(
            (half.state, half.fingerprint),
            (HalfState::Open, Fingerprint::Unknown)
        );
        check_owner(owner);
    }
    check_bytes(&at_client.0, 6, 0);
    check_bytes(&at_server.0, 0, 6);
    // A listener older than the hooks: what it accepts now has fingerprint and owner.
    let new = TcpStream::connect(address).unwrap();
    let new_from = new.local_addr().unwrap();
    drop(listener.accept().unwrap());
    drop(new);
    let halves = world.wait("the new pair", |halves| {
        halves
            .iter()
            .filter(|(half, _)| half.state == HalfState::Closed)
            .count()
            == 2
    });
    let (new_client, new_server) = pair(&halves, new_from);
    check_pair(&new_client, &new_server, new_from, address);
    // The end of an old one is found out.
    client.write_all(b"after").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    world.sweep();
    drop(client);
    drop(server);
    world.sweep();
    let halves = world.halves();
    assert_eq!(halves.len(), 4);
    let (old_client, _) = pair(&halves, from);
    assert_eq!(
        (old_client.0.state, old_client.0.bytes_sent),
        (HalfState::Closed, 11)
    );
    assert_eq!(old_client.0.id, at_client.0.id);
}

/// kill -9 at the worst moments and at any other, again and again, under load.
fn killed_agent(world: &mut World) {
    const DEATHS: [&str; 3] = ["before", "after", "never"];
    // As many as the ring holds while nobody reads it, with room to spare.
    const UNREAD: usize = 500;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows");
    let written = || std::fs::metadata(&file).map_or(0, |meta| meta.len());
    let mut agent = world.agent_process(&file, DEATHS[0]);
    let attached = format!("v{}/link_ops", weft_agent_common::LAYOUT_VERSION);
    while !world.pins.join(&attached).exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let (listener, address) = listen();
    let (mut connections, mut deaths, mut lives) = (0, [0; 3], 0);
    let (mut since, mut length) = (0, written());
    while deaths.iter().any(|count| *count < 2) {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&vec![0; connections % 50]).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        drop(stream);
        server.read_to_end(&mut Vec::new()).unwrap();
        drop(server);
        (connections, since) = (connections + 1, since + 1);
        while since > UNREAD && written() == length && agent.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        if DEATHS[lives % 3] == "never" && since > UNREAD {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
        if agent.try_wait().unwrap().is_some() {
            deaths[lives % 3] += 1;
            lives += 1;
            agent = world.agent_process(&file, DEATHS[lives % 3]);
            (since, length) = (0, written());
        } else if written() != length {
            (since, length) = (since.min(UNREAD), written());
        }
    }
    let _ = agent.kill();
    agent.wait().unwrap();
    let mut agent = world.agent_process(&file, "never");
    let rows = closed_rows(&file, 2 * connections);
    agent.kill().unwrap();
    agent.wait().unwrap();
    let distinct: std::collections::BTreeSet<u64> =
        rows.iter().map(|(cookie, _)| *cookie).collect();
    let (expected, found) = (2 * connections, rows.len());
    assert_eq!(
        (found, distinct.len()),
        (expected, expected),
        "each end once"
    );
    let sent: u64 = rows.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(sent, (0..connections).map(|n| (n % 50) as u64).sum::<u64>());
}

/// Cookie and bytes sent of every closed row in a file, once there are as many as expected or none come any more.
fn closed_rows(file: &std::path::Path, expected: usize) -> Vec<(u64, u64)> {
    let deadline = std::time::Instant::now() + patience(Duration::from_secs(20));
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let closed: Vec<(u64, u64)> = text
            .lines()
            .filter(|line| line.contains(" Closed "))
            .map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                (words[0].parse().unwrap(), words[2].parse().unwrap())
            })
            .collect();
        if closed.len() >= expected || std::time::Instant::now() > deadline {
            return closed;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
