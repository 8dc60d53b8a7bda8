//! The cases.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, connect, sendto, setsockopt, socket,
    sockopt,
};
use weft_wire::{Fingerprint, Half, HalfState, Owner, Role};

use crate::world::{Case, World, ip, loopback, pair, sysctl};

/// All of them.
pub const ALL: &[Case] = &[
    ("ipv4", |world| exchange(world, loopback(4), loopback(4))),
    ("ipv6", |world| exchange(world, loopback(6), loopback(6))),
    ("v4_mapped_is_v4", |world| {
        exchange(world, Ipv6Addr::UNSPECIFIED.into(), loopback(4))
    }),
    ("server_closes_first", server_closes_first),
    ("half_closed_and_aborted", half_closed_and_aborted),
    ("refused", refused),
    ("timed_out", timed_out),
    ("aborted", aborted),
    ("connects_again_on_the_same_socket", connects_again),
    ("fast_open", fast_open),
    ("simultaneous_open", simultaneous_open),
    ("simultaneous_open_one_after_the_other", open_in_turn),
    ("process_gone", process_gone),
    ("listener_of_another_process", listener_of_another_process),
    ("listeners_that_share_a_port", shared_port),
    ("open_is_seen_and_updated", open_and_updated),
    ("receiver_is_updated", receiver_is_updated),
    ("without_the_hooks_for_datagrams", without_datagrams),
];

/// A connection that carries 5,000 bytes one way and 70,000 the other; the client closes first.
fn exchange(world: &mut World, listen: IpAddr, call: IpAddr) {
    world.watch();
    let listener = TcpListener::bind(SocketAddr::new(listen, 0)).unwrap();
    let server = SocketAddr::new(call, listener.local_addr().unwrap().port());
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 5_000];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(&vec![1; 70_000]).unwrap();
        assert_eq!(stream.read(&mut request).unwrap(), 0);
    });
    let mut stream = TcpStream::connect(server).unwrap();
    let client = stream.local_addr().unwrap();
    stream.write_all(&[2; 5_000]).unwrap();
    stream.read_exact(&mut vec![0; 70_000]).unwrap();
    drop(stream);
    serving.join().unwrap();
    let halves = world.finished(2);
    assert_eq!(halves.len(), 2);
    let (at_client, at_server) = pair(&halves, client);
    check_pair(&at_client, &at_server, client, server);
    check_bytes(&at_client.0, 5_000, 70_000);
    check_bytes(&at_server.0, 70_000, 5_000);
}

/// A kernel that refuses what is for datagrams (here: a map of that size) shows connections all the same.
fn without_datagrams(world: &mut World) {
    world.settings.datagrams.max_flows = u32::MAX;
    exchange(world, loopback(4), loopback(4));
    assert!(world.capture().flows.is_none());
}

pub fn check_pair(
    client: &(Half, Owner),
    server: &(Half, Owner),
    from: SocketAddr,
    to: SocketAddr,
) {
    assert_eq!((client.0.role, server.0.role), (Role::Client, Role::Server));
    assert_eq!((client.0.local, client.0.remote), (from, to));
    assert_eq!((server.0.local, server.0.remote), (to, from));
    assert_eq!(
        (client.0.state, server.0.state),
        (HalfState::Closed, HalfState::Closed)
    );
    check_fingerprints(&client.0, &server.0);
    for (half, owner) in [client, server] {
        check_owner(owner);
        let process = owner.process.clone().unwrap();
        assert!(process.started_at <= half.opened_at && half.opened_at <= half.closed_at.unwrap());
    }
}

pub fn check_fingerprints(client: &Half, server: &Half) {
    assert!(
        matches!(client.fingerprint, Fingerprint::TcpIsn { client, server } if client != server)
    );
    assert_eq!(client.fingerprint, server.fingerprint);
}

/// This very process.
pub fn check_owner(owner: &Owner) {
    let process = owner.process.clone().unwrap();
    assert_eq!(process.pid, std::process::id());
    assert_eq!(
        process.exe.as_deref(),
        std::env::current_exe().unwrap().to_str()
    );
    assert!(process.exe.unwrap().contains(&process.name));
    assert_eq!((process.uid, process.user.as_deref()), (0, Some("root")));
    assert!(owner.cgroup.starts_with("/weft-test-"), "{}", owner.cgroup);
    assert_eq!(
        u64::from(owner.netns),
        std::fs::metadata("/proc/self/ns/net").unwrap().ino()
    );
    assert_eq!(owner.workload, "tests");
}

pub fn check_bytes(half: &Half, sent: u64, received: u64) {
    assert_eq!(
        (half.bytes_sent, half.bytes_received),
        (sent, received),
        "{half:?}"
    );
}

pub fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((loopback(4), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Whatever order the last packets come in, a FIN is no byte.
fn server_closes_first(world: &mut World) {
    world.watch();
    let (listener, address) = listen();
    const ROUNDS: usize = 200;
    let serving = std::thread::spawn(move || {
        for round in 0..ROUNDS {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&vec![0; round]).unwrap();
        }
    });
    for round in 0..ROUNDS {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut all = Vec::new();
        assert_eq!(stream.read_to_end(&mut all).unwrap(), round);
    }
    serving.join().unwrap();
    let halves = world.finished(2 * ROUNDS);
    for role in [Role::Client, Role::Server] {
        let mut bytes: Vec<(u64, u64)> = halves
            .iter()
            .filter(|(half, _)| half.role == role)
            .map(|(half, _)| (half.bytes_sent, half.bytes_received))
            .collect();
        bytes.sort_unstable();
        let expected =
            (0..ROUNDS as u64).map(|n| if role == Role::Server { (n, 0) } else { (0, n) });
        assert_eq!(bytes, expected.collect::<Vec<_>>(), "{role:?}");
    }
}

/// A half-closed connection goes on carrying bytes; one cut off by a reset counts what arrived.
fn half_closed_and_aborted(world: &mut World) {
    world.watch();
    let (listener, address) = listen();
    let mut client = TcpStream::connect(address).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"question").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = Vec::new();
    server.read_to_end(&mut all).unwrap();
    server.write_all(b"a").unwrap();
    client.read_exact(&mut [0]).unwrap();
    // The client goes before the server's FIN: one byte was received, and no FIN.
    drop(client);
    let half = |halves: &[(Half, Owner)], role| {
        halves.iter().find(|(half, _)| half.role == role).unwrap().0
    };
    let halves = world.wait("the client's end", |halves| {
        halves
            .iter()
            .any(|(half, _)| half.role == Role::Client && half.state == HalfState::Closed)
    });
    check_bytes(&half(&halves, Role::Client), 8, 1);
    // A reset answers data for a socket that is gone.
    let _ = server.write_all(b"more");
    let halves = world.wait("the server's end", |halves| {
        halves.iter().all(|(half, _)| half.state.finished())
    });
    check_bytes(&half(&halves, Role::Server), 1, 8);
}

/// Nobody listens.
fn refused(world: &mut World) {
    world.watch();
    let (listener, address) = listen();
    drop(listener);
    let error = TcpStream::connect(address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let halves = world.finished(1);
    assert_eq!(halves.len(), 1);
    let (half, owner) = &halves[0];
    assert_eq!(
        (half.state, half.role, half.remote),
        (HalfState::Refused, Role::Client, address)
    );
    assert_eq!(
        (half.fingerprint, half.bytes_sent, half.bytes_received),
        (Fingerprint::Unknown, 0, 0)
    );
    check_owner(owner);
}

/// An address whose packets go nowhere.
fn blackhole() -> SocketAddr {
    ip(&[
        "link", "add", "void", "type", "veth", "peer", "name", "deaf",
    ]);
    ip(&["link", "set", "deaf", "up"]);
    ip(&["addr", "add", "198.51.100.1/24", "dev", "void"]);
    ip(&["link", "set", "void", "up"]);
    ip(&[
        "neigh",
        "add",
        "198.51.100.9",
        "lladdr",
        "02:00:00:00:00:09",
        "dev",
        "void",
    ]);
    "198.51.100.9:9".parse().unwrap()
}

/// Nothing answers.
fn timed_out(world: &mut World) {
    world.watch();
    let address = blackhole();
    sysctl("ipv4/tcp_syn_retries", "1");
    let error = TcpStream::connect(address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let halves = world.finished(1);
    let half = halves[0].0;
    assert_eq!((half.state, half.remote), (HalfState::TimedOut, address));
    assert_eq!(half.fingerprint, Fingerprint::Unknown);
    assert!(half.retransmits >= 1);
}

/// This end gives up first.
fn aborted(world: &mut World) {
    world.watch();
    let address = blackhole();
    let error = TcpStream::connect_timeout(&address, Duration::from_millis(50)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let halves = world.finished(1);
    assert_eq!(
        (halves[0].0.state, halves[0].0.remote),
        (HalfState::Aborted, address)
    );
}

/// One socket, two attempts: two halves.
fn connects_again(world: &mut World) {
    world.watch();
    let (listener, address) = listen();
    let nobody = SocketAddr::new(address.ip(), 1);
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )
    .unwrap();
    let to = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => SockaddrIn::from(v4),
        SocketAddr::V6(_) => unreachable!(),
    };
    assert_eq!(
        connect(fd.as_raw_fd(), &to(nobody)),
        Err(nix::errno::Errno::ECONNREFUSED)
    );
    connect(fd.as_raw_fd(), &to(address)).unwrap();
    drop(fd);
    drop(listener.accept().unwrap());
    let halves = world.finished(3);
    let client: Vec<_> = halves
        .iter()
        .filter(|(half, _)| half.role == Role::Client)
        .map(|(half, _)| half)
        .collect();
    assert_eq!(client.len(), 2);
    assert_ne!(client[0].id, client[1].id);
    assert_eq!(
        (client[0].state, client[0].remote),
        (HalfState::Refused, nobody)
    );
    assert_eq!(
        (client[1].state, client[1].remote),
        (HalfState::Closed, address)
    );
}

/// Data in the SYN moves every sequence number but the initial ones.
fn fast_open(world: &mut World) {
    world.watch();
    // Client and server, and a cookie is not asked for.
    sysctl(
        "ipv4/tcp_fastopen",
        &(0x1 | 0x2 | 0x4 | 0x200 | 0x400_u32).to_string(),
    );
    let (listener, address) = listen();
    let SocketAddr::V4(to) = address else {
        unreachable!()
    };
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )
    .unwrap();
    let sent = sendto(
        fd.as_raw_fd(),
        &[7; 300],
        &SockaddrIn::from(to),
        MsgFlags::from_bits_retain(libc::MSG_FASTOPEN),
    );
    assert_eq!(sent, Ok(300));
    let mut client = TcpStream::from(fd);
    let (mut server, _) = listener.accept().unwrap();
    let in_syn = std::fs::read_to_string("/proc/net/netstat").unwrap();
    server.read_exact(&mut [0; 300]).unwrap();
    server.write_all(&[8; 500]).unwrap();
    client.read_exact(&mut [0; 500]).unwrap();
    let from = client.local_addr().unwrap();
    drop(client);
    drop(server);
    let halves = world.finished(2);
    assert_eq!(
        netstat(&in_syn, "TCPFastOpenPassive"),
        1,
        "the SYN carried the data"
    );
    let (at_client, at_server) = pair(&halves, from);
    check_pair(&at_client, &at_server, from, address);
    check_bytes(&at_client.0, 300, 500);
    check_bytes(&at_server.0, 500, 300);
}

/// A counter of `/proc/net/netstat`.
fn netstat(text: &str, name: &str) -> u64 {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        if let Some(at) = names.split(' ').position(|known| known == name) {
            return values.split(' ').nth(at).unwrap().parse().unwrap();
        }
    }
    panic!("no {name}");
}

/// Both ends send a SYN before either sees the other's: one must be the client, one the server. Kernels before 6.10 do not tell
/// what completed the open, and where the SYNs overtook each other on the way between two processors both ends may look
/// alike: there only what does not depend on it is asked for.
fn simultaneous_open(world: &mut World) {
    let old = aya::util::KernelVersion::current()
        .is_ok_and(|version| version < aya::util::KernelVersion::new(6, 10, 0));
    world.watch();
    let closed = open_simultaneously(world, 1);
    for half in &closed {
        check_bytes(half, 5, 5);
    }
    let end = |role| closed.iter().find(|half| half.role == role);
    match (end(Role::Client), end(Role::Server)) {
        (Some(client), Some(server)) => {
            check_fingerprints(client, server);
            assert_eq!((client.local, client.remote), (server.remote, server.local));
        }
        _ => assert!(old, "one client and one server: {closed:?}"),
    }
}

/// A simultaneous open in a known order, on any kernel: the first end's SYN is lost, so is every answer to it, and the second's
/// SYN meets the first in its wait. The second completes the open by the answer and is the client.
fn open_in_turn(world: &mut World) {
    world.watch();
    let (first, second) = ("127.0.0.1:20001", "127.0.0.2:20002");
    // The refusal of the first SYN finds no way back.
    ip(&["rule", "add", "pref", "100", "lookup", "local"]);
    let lost = ["pref", "50", "from", "127.0.0.2", "to", "127.0.0.1"];
    ip(&[&["rule", "add"], &lost[..], &["blackhole"]].concat());
    ip(&["rule", "del", "pref", "0"]);
    let bound = |address: &str, flags| {
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        nix::sys::socket::bind(fd.as_raw_fd(), &v4(address)).unwrap();
        fd
    };
    let one = bound(first, SockFlag::SOCK_NONBLOCK);
    assert_eq!(
        connect(one.as_raw_fd(), &v4(second)),
        Err(nix::errno::Errno::EINPROGRESS)
    );
    let other = bound(second, SockFlag::empty());
    ip(&["rule", "del", "pref", "50"]);
    connect(other.as_raw_fd(), &v4(first)).unwrap();
    let (mut one, mut other) = (TcpStream::from(one), TcpStream::from(other));
    one.set_nonblocking(false).unwrap();
    one.write_all(b"one").unwrap();
    other.read_exact(&mut [0; 3]).unwrap();
    other.write_all(b"other").unwrap();
    one.read_exact(&mut [0; 5]).unwrap();
    drop(one);
    drop(other);
    let halves = world.finished(2);
    let (client, server) = pair(&halves, second.parse().unwrap());
    assert_eq!((client.0.role, server.0.role), (Role::Client, Role::Server));
    check_fingerprints(&client.0, &server.0);
    check_bytes(&client.0, 5, 3);
    check_bytes(&server.0, 3, 5);
}

fn v4(address: &str) -> SockaddrIn {
    SockaddrIn::from(address.parse::<std::net::SocketAddrV4>().unwrap())
}

/// Both ends of one more simultaneous open, once it is closed.
fn open_simultaneously(world: &mut World, opened: usize) -> Vec<Half> {
    let (left, right) = ("127.0.0.1:20001", "127.0.0.1:20002");
    let mut attempts = 0;
    let mut streams = loop {
        attempts += 1;
        assert!(
            attempts < 20_000,
            "no simultaneous open in so many attempts"
        );
        let barrier = std::sync::Arc::new(std::sync::Barrier::new(2));
        let other = std::sync::Arc::clone(&barrier);
        let thread = std::thread::spawn(move || dial(right, left, &other));
        let (a, b) = (dial(left, right, &barrier), thread.join().unwrap());
        world.rows();
        if let (Some(a), Some(b)) = (a, b) {
            break [a, b];
        }
    };
    for stream in &mut streams {
        stream.write_all(b"hello").unwrap();
    }
    for stream in &mut streams {
        stream.read_exact(&mut [0; 5]).unwrap();
    }
    drop(streams);
    let halves = world.wait("both ends closed", |halves| {
        halves
            .iter()
            .filter(|(half, _)| half.state == HalfState::Closed)
            .count()
            == 2 * opened
    });
    let mut closed: Vec<Half> = halves
        .iter()
        .map(|(half, _)| *half)
        .filter(|half| half.state == HalfState::Closed)
        .collect();
    closed.sort_by_key(|half| half.opened_at);
    closed.split_off(2 * (opened - 1))
}

/// Connects from a fixed port, both ends at once.
fn dial(from: &str, to: &str, barrier: &std::sync::Barrier) -> Option<TcpStream> {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )
    .unwrap();
    setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
    // Nothing lingers after a failed attempt.
    setsockopt(
        &fd,
        sockopt::Linger,
        &libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )
    .unwrap();
    let bound = nix::sys::socket::bind(fd.as_raw_fd(), &v4(from));
    barrier.wait();
    if bound.is_err() || connect(fd.as_raw_fd(), &v4(to)).is_err() {
        return None;
    }
    setsockopt(
        &fd,
        sockopt::Linger,
        &libc::linger {
            l_onoff: 0,
            l_linger: 0,
        },
    )
    .unwrap();
    Some(TcpStream::from(fd))
}

/// The process is gone before anyone looks: the kernel's name stands.
fn process_gone(world: &mut World) {
    world.watch();
    let (listener, address) = listen();
    let mut child = world.connecting_process(address);
    let pid = child.id();
    let (mut stream, from) = listener.accept().unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    drop(stream);
    assert!(child.wait().unwrap().success());
    let halves = world.finished(2);
    let (client, server) = pair(&halves, from);
    let process = client.1.process.clone().unwrap();
    let name: String = server.1.process.clone().unwrap().name;
    assert_eq!(
        (process.pid, process.exe, process.started_at.0),
        (pid, None, 0)
    );
    assert_eq!((process.name, process.uid), (name, 0));
    check_owner(&server.1);
    check_bytes(&client.0, 3, 0);
}

/// Accepted here, listened to elsewhere: the connection is the listener's.
fn listener_of_another_process(world: &mut World) {
    world.watch();
    let (mut child, address) = world.listening_process(0);
    let stream = TcpStream::connect(address).unwrap();
    let client = stream.local_addr().unwrap();
    drop(stream);
    let halves = world.finished(2);
    let (at_client, at_server) = pair(&halves, client);
    check_owner(&at_client.1);
    let process = at_server.1.process.clone().unwrap();
    assert_eq!(process.pid, child.id());
    assert_eq!(
        process.exe.as_deref(),
        std::env::current_exe().unwrap().to_str()
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Which of several listeners on one port accepted is told by the accepted connection alone.
fn shared_port(world: &mut World) {
    world.watch();
    let (first, address) = world.listening_process(0);
    let mut children = vec![first];
    for _ in 0..2 {
        children.push(world.listening_process(address.port()).0);
    }
    let mut answered = std::collections::BTreeMap::new();
    for _ in 0..60 {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut pid = [0; 4];
        stream.read_exact(&mut pid).unwrap();
        let from = stream.local_addr().unwrap();
        answered.insert(from, u32::from_le_bytes(pid));
    }
    let halves = world.finished(120);
    let distinct: std::collections::BTreeSet<&u32> = answered.values().collect();
    assert!(distinct.len() > 1, "more than one of them answered");
    for (from, pid) in &answered {
        let (_, server) = pair(&halves, *from);
        assert_eq!(server.1.process.map(|process| process.pid), Some(*pid));
    }
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// An open connection is seen while it is open, and its counters move.
fn open_and_updated(world: &mut World) {
    world.settings.update_interval_ns = 1_000_000;
    world.watch();
    let (listener, address) = listen();
    let mut client = TcpStream::connect(address).unwrap();
    let (mut server, from) = listener.accept().unwrap();
    let halves = world.wait("both ends open", |halves| halves.len() == 2);
    assert!(
        halves
            .iter()
            .all(|(half, _)| half.state == HalfState::Open && half.closed_at.is_none())
    );
    let opened = pair(&halves, from).0.0.opened_at;
    let mut sent = 0;
    world.wait("an update", |halves| {
        std::thread::sleep(Duration::from_millis(2));
        client.write_all(b"tick").unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        sent += 4;
        pair(halves, from).0.0.bytes_sent > 100
    });
    drop(client);
    drop(server);
    let halves = world.finished(2);
    let (client, server) = pair(&halves, from);
    assert_eq!((client.0.bytes_sent, server.0.bytes_received), (sent, sent));
    assert_eq!(client.0.opened_at, opened);
}

/// An end that only receives measures no round trips; it is looked at.
fn receiver_is_updated(world: &mut World) {
    world.watch();
    world.snapshot();
    let (listener, address) = listen();
    let mut client = TcpStream::connect(address).unwrap();
    let (mut server, from) = listener.accept().unwrap();
    let opened = pair(&world.wait("both ends", |halves| halves.len() == 2), from)
        .0
        .0;
    server.write_all(&[0; 1_000]).unwrap();
    client.read_exact(&mut [0; 1_000]).unwrap();
    world.sweep();
    let (client, server) = pair(&world.halves(), from);
    assert_eq!(
        (client.0.state, server.0.state),
        (HalfState::Open, HalfState::Open)
    );
    check_bytes(&client.0, 0, 1_000);
    check_bytes(&server.0, 1_000, 0);
    assert_eq!(
        (client.0.id, client.0.fingerprint),
        (opened.id, opened.fingerprint)
    );
    assert_eq!(client.0.opened_at, opened.opened_at);
}
