//! The cases of datagrams.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use weft_agent_common::{datagram_counter, direction};
use weft_wire::{
    Application, DatagramSort, Datagrams, Fingerprint, Half, HalfState, Owner, Protocol, Role,
};

use crate::packet::{Packet, checksum};
use crate::world::{Case, LEADER, World, counter, ip, loopback, myself, pair, patience};

/// All of them.
pub const ALL: &[Case] = &[
    ("udp_ipv4", |world| {
        exchange(world, loopback(4), loopback(4), true)
    }),
    ("udp_ipv6", |world| {
        exchange(world, loopback(6), loopback(6), true)
    }),
    ("udp_v4_mapped_is_v4", |world| {
        exchange(world, Ipv6Addr::UNSPECIFIED.into(), loopback(4), true)
    }),
    ("udp_unconnected_ipv4", |world| {
        exchange(world, loopback(4), loopback(4), false)
    }),
    ("udp_unconnected_ipv6", |world| {
        exchange(world, Ipv6Addr::UNSPECIFIED.into(), loopback(6), false)
    }),
    ("udp_many_clients_of_one_socket", many_clients),
    ("udp_segmented_by_the_kernel", segmented),
    ("udp_fragmented", fragmented),
    ("udp_extension_headers", extension_headers),
    ("udp_two_before_an_answer", two_before_an_answer),
    ("udp_unanswered", unanswered),
    ("udp_idle_is_closed_and_begins_anew", idle),
    ("udp_open_is_updated", open_is_updated),
    ("udp_low_entropy_is_not_distinct", low_entropy),
    ("udp_sender_of_another_process", sender_of_another_process),
    ("udp_full_ring_drops_and_counts", full_ring),
    ("udp_full_map_drops_and_counts", full_map),
    ("udp_agent_restarted", restarted),
    ("udp_and_tcp_of_a_thread_that_is_gone", thread_that_is_gone),
    ("udp_older_than_the_hooks", older_than_the_hooks),
    ("dns_over_udp_up_to_4096_bytes", dns_over_udp),
    ("dns_over_tcp_segments", dns_over_tcp),
    ("dns_full_ring_drops_and_counts", dns_full_ring),
];

/// Bytes that look like chance, different for each seed.
fn chance(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut byte = || {
        state = weft_wire::mix64(state.wrapping_add(1));
        state as u8
    };
    (0..length).map(|_| byte()).collect()
}

fn bound(address: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket
        .set_read_timeout(Some(patience(Duration::from_secs(10))))
        .unwrap();
    socket
}

/// A server socket that is reached by `call`, and its address there.
fn server(listen: IpAddr, call: IpAddr) -> (UdpSocket, SocketAddr) {
    let socket = bound(listen);
    let address = SocketAddr::new(call, socket.local_addr().unwrap().port());
    (socket, address)
}

fn any_like(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::from([0, 0, 0, 0]),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Receives one datagram and answers it.
fn answer(server: &UdpSocket, expected: usize, with: &[u8]) -> SocketAddr {
    let mut buffer = vec![0; 65_536];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(length, expected);
    server.send_to(with, from).unwrap();
    from
}

fn receive(client: &UdpSocket, expected: usize) {
    let mut buffer = vec![0; 65_536];
    assert_eq!(client.recv(&mut buffer).unwrap(), expected);
}

fn datagrams(half: &Half) -> Datagrams {
    match half.fingerprint {
        Fingerprint::Datagrams(datagrams) => datagrams,
        other => panic!("{other:?} of {half:?}"),
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn check_counts(half: &Half, bytes: (u64, u64), packets: (u64, u64)) {
    assert_eq!(
        (half.bytes_sent, half.bytes_received),
        bytes,
        "bytes of {half:?}"
    );
    assert_eq!(
        (half.packets_sent, half.packets_received),
        packets,
        "packets of {half:?}"
    );
}

/// Both ends of a flow, as they must be.
fn check_pair(client: &(Half, Owner), server: &(Half, Owner)) {
    assert_eq!((client.0.role, server.0.role), (Role::Client, Role::Server));
    assert_eq!(
        (client.0.local, client.0.remote),
        (server.0.remote, server.0.local)
    );
    assert_eq!(client.0.fingerprint, server.0.fingerprint);
    assert_ne!(client.0.id, server.0.id);
    for (half, owner) in [client, server] {
        assert_eq!(half.protocol, Protocol::Udp);
        let process = owner.process.clone().unwrap();
        assert_eq!(process.pid, std::process::id());
        assert!(owner.cgroup.starts_with("/weft-test-"), "{}", owner.cgroup);
        assert_ne!(owner.netns, 0);
        assert!(half.opened_at <= half.seen_at);
        assert!(half.closed_at.is_none_or(|closed| half.opened_at <= closed));
    }
}

/// One datagram of 300 bytes, an answer of 700, another of 20: sockets closed, client first.
fn exchange(world: &mut World, listen: IpAddr, call: IpAddr, connected: bool) {
    world.watch();
    let (server, address) = server(listen, call);
    let client = if connected {
        let client = bound(call);
        client.connect(address).unwrap();
        client.send(&chance(1, 300)).unwrap();
        client
    } else {
        let client = bound(any_like(call));
        client.send_to(&chance(1, 300), address).unwrap();
        client
    };
    let from = answer(&server, 300, &chance(2, 700));
    receive(&client, 700);
    client.send_to(&chance(3, 20), address).ok();
    if connected {
        client.send(&chance(3, 20)).unwrap();
        // Linux lets a connected IPv6 socket name an address; the first of the two went out then.
    }
    let mut buffer = [0; 100];
    let mut more = 0;
    server
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    while server.recv(&mut buffer).is_ok() {
        more += 1;
    }
    assert!(more >= 1);
    drop(client);
    drop(server);
    let halves = world.finished(2);
    assert_eq!(halves.len(), 2);
    let (at_client, at_server) = pair(&halves, canonical(from));
    check_pair(&at_client, &at_server);
    assert_eq!(at_client.0.remote, canonical(address));
    check_counts(&at_client.0, (300 + 20 * more, 700), (1 + more, 1));
    check_counts(&at_server.0, (700, 300 + 20 * more), (1, 1 + more));
    let found = datagrams(&at_client.0);
    assert!(found.distinct && found.server != 0 && found.client != found.server);
    assert_eq!(found.sort, DatagramSort::Other);
}

/// One socket, twenty clients, one of which talks twice as much.
fn many_clients(world: &mut World) {
    world.watch();
    let (server, address) = server(any_like(loopback(4)), loopback(4));
    let clients: Vec<UdpSocket> = (0..20).map(|_| bound(loopback(4))).collect();
    for (seed, client) in clients.iter().enumerate() {
        client
            .send_to(&chance(seed as u64, 100 + seed), address)
            .unwrap();
        answer(&server, 100 + seed, &chance(1_000 + seed as u64, 50));
        receive(client, 50);
    }
    let halves = world.wait("all of them", |halves| halves.len() == 40);
    assert!(
        halves
            .iter()
            .all(|(half, _)| half.state == HalfState::Open && half.closed_at.is_none())
    );
    let addresses: Vec<SocketAddr> = clients
        .iter()
        .map(|client| client.local_addr().unwrap())
        .collect();
    clients[7].send_to(&[1; 1_000], address).unwrap();
    answer(&server, 1_000, &[2; 9]);
    drop(server);
    drop(clients);
    let halves = world.finished(40);
    assert_eq!(halves.len(), 40);
    for (seed, from) in addresses.into_iter().enumerate() {
        let (at_client, at_server) = pair(&halves, from);
        check_pair(&at_client, &at_server);
        let (more, fewer) = if seed == 7 { (1_000, 9) } else { (0, 0) };
        let sent = 100 + seed as u64 + more;
        let packets = if seed == 7 { 2 } else { 1 };
        check_counts(&at_client.0, (sent, 50 + fewer), (packets, packets));
        check_counts(&at_server.0, (50 + fewer, sent), (packets, packets));
    }
}

/// One call, seven datagrams: the receiver sees each.
fn segmented(world: &mut World) {
    world.watch();
    let (server, address) = server(loopback(4), loopback(4));
    let client = bound(loopback(4));
    client.connect(address).unwrap();
    setsockopt(&client, sockopt::UdpGsoSegment, &500).unwrap();
    assert_eq!(client.send(&chance(5, 3_200)).unwrap(), 3_200);
    let mut received = 0;
    for _ in 0..7 {
        received += server.recv(&mut [0; 1_000]).unwrap();
    }
    assert_eq!(received, 3_200);
    let from = client.local_addr().unwrap();
    drop(client);
    drop(server);
    let (at_client, at_server) = pair(&world.finished(2), from);
    check_pair(&at_client, &at_server);
    check_counts(&at_client.0, (3_200, 0), (7, 0));
    check_counts(&at_server.0, (0, 3_200), (0, 7));
}

/// Above the MTU: fragments on the way, one datagram for both ends.
fn fragmented(world: &mut World) {
    ip(&["link", "set", "lo", "mtu", "1500"]);
    world.watch();
    for family in [4, 6] {
        let (server, address) = server(loopback(family), loopback(family));
        let client = bound(loopback(family));
        client.connect(address).unwrap();
        let seed = u64::from(family);
        client.send(&chance(seed, 9_000)).unwrap();
        let from = answer(&server, 9_000, &chance(7 + seed, 4_000));
        receive(&client, 4_000);
        drop(client);
        drop(server);
        let halves = world.finished(2);
        let (at_client, at_server) = pair(&halves, from);
        check_pair(&at_client, &at_server);
        check_counts(&at_client.0, (9_000, 4_000), (1, 1));
        check_counts(&at_server.0, (4_000, 9_000), (1, 1));
        assert!(datagrams(&at_server.0).distinct);
    }
}

/// IPv6 with destination options and a routing header before the transport's, as a process writes that makes its own
/// packets.
fn extension_headers(world: &mut World) {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket,
    };
    world.watch();
    let (server, address) = server(loopback(6), loopback(6));
    let SocketAddr::V6(to) = address else {
        unreachable!()
    };
    let from: SocketAddr = "[::1]:4000".parse().unwrap();
    let payload = chance(8, 77);
    // Destination options: six bytes of padding. Then the same once more.
    let options = [[60, 0, 1, 4, 0, 0, 0, 0], [17, 0, 1, 4, 0, 0, 0, 0]].concat();
    let mut udp = [from.port(), to.port(), 8 + payload.len() as u16, 0]
        .map(u16::to_be_bytes)
        .concat();
    udp.extend(&payload);
    let sum = checksum(&to.ip().octets(), &udp);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(((options.len() + udp.len()) as u16).to_be_bytes());
    packet.extend([60, 64]);
    packet.extend(to.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(options);
    packet.extend(udp);
    let raw = socket(
        AddressFamily::Inet6,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::Raw,
    )
    .unwrap();
    let there = SockaddrIn6::from(std::net::SocketAddrV6::new(*to.ip(), 0, 0, 0));
    let sent = sendto(raw.as_raw_fd(), &packet, &there, MsgFlags::empty());
    assert_eq!(sent, Ok(packet.len()));
    let mut buffer = [0; 100];
    assert_eq!(server.recv_from(&mut buffer).unwrap(), (77, from));
    drop(raw);
    drop(server);
    let halves = world.finished(2);
    let (at_client, at_server) = pair(&halves, from);
    check_pair(&at_client, &at_server);
    check_counts(&at_client.0, (77, 0), (1, 0));
    check_counts(&at_server.0, (0, 77), (0, 1));
}

/// The first one is the fingerprint's, whatever follows it.
fn two_before_an_answer(world: &mut World) {
    world.watch();
    let (server, address) = server(loopback(4), loopback(4));
    let client = bound(loopback(4));
    client.connect(address).unwrap();
    client.send(&chance(10, 64)).unwrap();
    client.send(&chance(11, 65)).unwrap();
    server.recv(&mut [0; 100]).unwrap();
    answer(&server, 65, &chance(12, 66));
    receive(&client, 66);
    let from = client.local_addr().unwrap();
    drop(client);
    drop(server);
    let (at_client, at_server) = pair(&world.finished(2), from);
    check_pair(&at_client, &at_server);
    check_counts(&at_client.0, (129, 66), (2, 1));
    let expected = weft_agent::flows::fingerprint::print(64, &chance(10, 64));
    assert_eq!(datagrams(&at_server.0).client, expected.hash);
}

/// Nobody answers: a client, with no server's hash.
fn unanswered(world: &mut World) {
    world.watch();
    let (server, address) = server(loopback(4), loopback(4));
    let client = bound(loopback(4));
    client.send_to(&chance(13, 40), address).unwrap();
    let from = client.local_addr().unwrap();
    drop(client);
    drop(server);
    let (at_client, at_server) = pair(&world.finished(2), from);
    check_pair(&at_client, &at_server);
    assert_eq!(datagrams(&at_client.0).server, 0);
}

/// Idle: over, while the sockets are there. Then another flow between the same ends.
fn idle(world: &mut World) {
    world.settings.datagrams.idle_ns = 300_000_000;
    world.settings.datagrams.dns_idle_ns = 300_000_000;
    world.watch();
    let (server, address) = server(loopback(4), loopback(4));
    let client = bound(loopback(4));
    client.connect(address).unwrap();
    for round in 0..3_u64 {
        client.send(&chance(20 + round, 64)).unwrap();
        answer(&server, 64, &chance(30 + round, 32));
        receive(&client, 32);
        if round < 2 {
            std::thread::sleep(Duration::from_millis(400));
        }
        if round == 1 {
            // Also where the agent swept in between: the kernel's and the agent's word are the same.
            world.sweep_flows();
            world.finished(4);
        }
    }
    world.wait("three flows", |halves| halves.len() == 6);
    std::thread::sleep(Duration::from_millis(400));
    world.sweep_flows();
    let halves = world.finished(6);
    assert_eq!(halves.len(), 6);
    for (half, _) in &halves {
        let bytes = (half.bytes_sent, half.bytes_received);
        let expected = if half.role == Role::Client {
            (64, 32)
        } else {
            (32, 64)
        };
        assert_eq!(bytes, expected);
        let twins = halves
            .iter()
            .filter(|(other, _)| other.fingerprint == half.fingerprint);
        assert_eq!(twins.count(), 2, "each flow has its own fingerprint");
        let lasted = half.closed_at.unwrap().0 - half.opened_at.0;
        assert!(lasted < 300_000, "closed at its last datagram: {lasted}");
    }
    assert_eq!(world.flows_in_kernel(), 0);
    drop(client);
    drop(server);
    assert_eq!(world.halves().len(), 6);
}

/// What stays open is seen, and its counters move.
fn open_is_updated(world: &mut World) {
    world.settings.update_interval_ns = 1_000_000;
    world.watch();
    let (server, address) = server(loopback(4), loopback(4));
    let client = bound(loopback(4));
    client.connect(address).unwrap();
    for _ in 0..10 {
        client.send(&chance(40, 64)).unwrap();
        server.recv(&mut [0; 100]).unwrap();
    }
    let halves = world.wait("ten datagrams", |halves| {
        halves.len() == 2 && halves.iter().all(|(half, _)| half.seen_at.0 != 0)
    });
    let opened: Vec<_> = halves.iter().map(|(half, _)| half.opened_at).collect();
    client.send(&chance(41, 64)).unwrap();
    server.recv(&mut [0; 100]).unwrap();
    world.sweep_flows();
    let halves = world.wait("eleven datagrams", |halves| {
        halves
            .iter()
            .all(|(half, _)| half.packets_sent + half.packets_received == 11)
    });
    assert!(halves.iter().all(|(half, _)| half.state == HalfState::Open));
    let still: Vec<_> = halves.iter().map(|(half, _)| half.opened_at).collect();
    assert_eq!(opened, still);
}

/// A fleet that says the same: no word of any is distinct but, perhaps, the first one's.
fn low_entropy(world: &mut World) {
    world.watch();
    let (server, address) = server(loopback(4), loopback(4));
    let client = bound(loopback(4));
    client.send_to(b"ping", address).unwrap();
    answer(&server, 4, b"pong");
    // Chance by the look of it, but the same from all.
    let constant = chance(50, 48);
    let fleet: Vec<UdpSocket> = (0..3).map(|_| bound(loopback(4))).collect();
    for member in &fleet {
        member.send_to(&constant, address).unwrap();
        answer(&server, 48, &constant);
    }
    drop((fleet, client, server));
    let halves = world.finished(8);
    let distinct: Vec<bool> = halves
        .iter()
        .filter(|(half, _)| half.bytes_sent == 48)
        .map(|(half, _)| datagrams(half).distinct)
        .collect();
    assert_eq!(distinct.len(), 6);
    assert!(distinct.iter().filter(|distinct| **distinct).count() <= 2);
    let pings = halves.iter().filter(|(half, _)| half.bytes_sent == 4);
    assert_eq!(pings.clone().count(), 2);
    assert!(pings.clone().all(|(half, _)| !datagrams(half).distinct));
}

/// Made here, used there: the flow is of the process that sends.
fn sender_of_another_process(world: &mut World) {
    world.watch();
    let (server, address) = server(loopback(4), loopback(4));
    let client = bound(loopback(4));
    client.connect(address).unwrap();
    let from = client.local_addr().unwrap();
    let mut child = myself("send")
        .stdin(Stdio::from(OwnedFd::from(client)))
        .spawn()
        .unwrap();
    let pid = child.id();
    assert_eq!(answer(&server, 64, b"thanks"), from);
    let status = child.wait().unwrap();
    assert!(status.success());
    drop(server);
    let (at_client, at_server) = pair(&world.finished(2), from);
    assert_eq!(at_client.1.process.map(|process| process.pid), Some(pid));
    assert_eq!(
        at_server.1.process.map(|process| process.pid),
        Some(std::process::id())
    );
    assert_eq!(at_client.0.fingerprint, at_server.0.fingerprint);
}

/// What does not fit is counted, and the counters of every flow are right all the same.
fn full_ring(world: &mut World) {
    world.settings.ring_bytes = 4096;
    world.watch();
    let (server, address) = server(loopback(4), loopback(4));
    let clients: Vec<UdpSocket> = (0..30).map(|_| bound(loopback(4))).collect();
    for (seed, client) in clients.iter().enumerate() {
        client.send_to(&chance(seed as u64, 64), address).unwrap();
        answer(&server, 64, &chance(100 + seed as u64, 32));
    }
    // Two first datagrams at each of two ends.
    let records = world.records_in_ring();
    world.halves();
    let dropped = counter(world, |counters| &counters.flow_records_dropped);
    assert!(records > 0 && dropped > 0);
    assert_eq!(records + dropped, 4 * 30, "each is there or counted");
    // Not taken for new before a record could still have come.
    std::thread::sleep(Duration::from_millis(1_100));
    let halves = world.wait("every flow", |halves| halves.len() == 60);
    world.sweep_flows();
    let halves = if halves.len() == 60 {
        world.halves()
    } else {
        halves
    };
    for (half, _) in &halves {
        let (bytes, packets) = match half.role {
            Role::Client => ((64, 32), (1, 1)),
            Role::Server => ((32, 64), (1, 1)),
        };
        check_counts(half, bytes, packets);
    }
    let unknown = halves
        .iter()
        .filter(|(half, _)| half.fingerprint == Fingerprint::Unknown);
    assert!(
        unknown.count() > 0,
        "a lost first datagram is no fingerprint"
    );
}

/// More flows than there is room for: counted, and there is room again after.
fn full_map(world: &mut World) {
    world.settings.datagrams.max_flows = 8;
    world.watch();
    let (server, address) = server(loopback(4), loopback(4));
    let clients: Vec<UdpSocket> = (0..20).map(|_| bound(loopback(4))).collect();
    for client in &clients {
        client.send_to(&chance(1, 64), address).unwrap();
        server.recv(&mut [0; 100]).unwrap();
    }
    assert_eq!(world.halves().len(), 8);
    let untracked = counter(world, |counters| &counters.flow_datagrams_untracked);
    assert_eq!(untracked, 32);
    drop(clients);
    drop(server);
    world.finished(8);
    assert_eq!(world.flows_in_kernel(), 0);
    let again = UdpSocket::bind((loopback(4), 0)).unwrap();
    again.send_to(&chance(2, 64), address).unwrap();
    world.wait("another one", |halves| halves.len() == 9);
    assert_eq!(
        counter(world, |counters| &counters.flow_datagrams_untracked),
        untracked
    );
}

/// A new agent knows what the old one knew: same ids, same fingerprints, counters that include what came in between.
/// Of a process that is gone its own name is known, and not that of the thread that spoke.
fn thread_that_is_gone(world: &mut World) {
    world.watch();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addresses = [listener.local_addr().unwrap(), socket.local_addr().unwrap()];
    let arguments = addresses.map(|address| address.to_string());
    let mut child = myself("thread").args(arguments).spawn().unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success());
    drop(listener.accept().unwrap());
    let of_child = |owner: &Owner| {
        let process = owner.process.as_ref().filter(|process| process.pid == pid);
        process.map(|process| (process.name.clone(), process.exe.clone()))
    };
    let rows = world.wait("both ends of both", |halves| {
        halves
            .iter()
            .filter(|(_, owner)| of_child(owner).is_some())
            .count()
            == 2
    });
    let names: Vec<_> = rows
        .iter()
        .filter_map(|(_, owner)| of_child(owner))
        .collect();
    assert_eq!(
        names,
        [(LEADER.to_owned(), None), (LEADER.to_owned(), None)]
    );
}

fn restarted(world: &mut World) {
    world.watch();
    let (server, address) = server(loopback(4), loopback(4));
    let client = bound(loopback(4));
    client.connect(address).unwrap();
    client.send(&chance(60, 64)).unwrap();
    let from = answer(&server, 64, &chance(61, 32));
    receive(&client, 32);
    let before = pair(&world.wait("both", |halves| halves.len() == 2), from);
    world.forget();
    client.send(&chance(62, 100)).unwrap();
    answer(&server, 100, &chance(63, 200));
    // And a whole flow that no agent sees while it lives.
    let other = bound(loopback(4));
    other.send_to(&chance(64, 80), address).unwrap();
    let other_from = answer(&server, 80, &chance(65, 90));
    drop(other);
    world.watch();
    let halves = world.wait("what came meanwhile", |halves| halves.len() >= 2);
    assert!(!halves.is_empty());
    drop(client);
    drop(server);
    let halves = world.finished(4);
    let after = pair(&halves, from);
    check_pair(&after.0, &after.1);
    for (before, after) in [(&before.0.0, &after.0.0), (&before.1.0, &after.1.0)] {
        assert_eq!(before.id, after.id);
        assert_eq!(before.fingerprint, after.fingerprint);
        assert_eq!(before.opened_at, after.opened_at);
    }
    check_counts(&after.0.0, (164, 232), (2, 2));
    check_counts(&after.1.0, (232, 164), (2, 2));
    let (at_client, at_server) = pair(&halves, other_from);
    check_pair(&at_client, &at_server);
    check_counts(&at_client.0, (80, 90), (1, 1));
}

/// A socket that may have talked before: no fingerprint, and the right process all the same.
fn older_than_the_hooks(world: &mut World) {
    let (server, address) = server(loopback(4), loopback(4));
    let client = bound(loopback(4));
    client.connect(address).unwrap();
    client.send(&chance(70, 64)).unwrap();
    let from = answer(&server, 64, &chance(71, 32));
    world.watch();
    world.snapshot();
    client.send(&chance(72, 64)).unwrap();
    answer(&server, 64, &chance(73, 32));
    drop(client);
    drop(server);
    let halves = world.finished(2);
    let (at_client, at_server) = pair(&halves, from);
    for (half, owner) in [&at_client, &at_server] {
        assert_eq!(half.fingerprint, Fingerprint::Unknown);
        assert_eq!(
            owner.process.as_ref().map(|process| process.pid),
            Some(std::process::id())
        );
    }
}

/// A message of DNS: header, one question, and whatever makes it long.
fn message(id: u16, response: bool, length: usize) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([if response { 0x81 } else { 1 }, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.extend(b"\x02db\x07example\x00\x00\x01\x00\x01");
    bytes.resize(length, 0xee);
    bytes
}

/// Copied whole each way at both ends, with owner; longer ones are cut and counted; other ports are not there.
fn dns_over_udp(world: &mut World) {
    world.watch();
    let server = UdpSocket::bind((loopback(4), 53)).unwrap();
    let address = server.local_addr().unwrap();
    let client = bound(loopback(4));
    client.connect(address).unwrap();
    let (stranger, elsewhere) = (bound(loopback(4)), bound(loopback(4)));
    stranger
        .send_to(&message(1, false, 60), elsewhere.local_addr().unwrap())
        .unwrap();
    const ANSWERS: [usize; 6] = [128, 129, 512, 1_232, 4_096, 5_000];
    for (id, length) in ANSWERS.into_iter().enumerate() {
        client.send(&message(id as u16, false, 40)).unwrap();
        answer(&server, 40, &message(id as u16, true, length));
        receive(&client, length);
    }
    let packets = world.dns_packets();
    assert_eq!(packets.len(), 4 * ANSWERS.len());
    let cookies: std::collections::BTreeSet<u64> =
        packets.iter().map(|packet| packet.cookie).collect();
    assert_eq!(cookies.len(), 2);
    let from = client.local_addr().unwrap();
    for (id, (exchange, length)) in packets.chunks(4).zip(ANSWERS).enumerate() {
        let expected = [
            (direction::SENT, from, address, 40),
            (direction::RECEIVED, address, from, 40),
            (direction::SENT, address, from, length),
            (direction::RECEIVED, from, address, length),
        ];
        for (packet, (way, local, remote, length)) in exchange.iter().zip(expected) {
            assert_eq!(
                (packet.direction, packet.local, packet.remote),
                (way, local, remote)
            );
            assert_eq!((packet.protocol, packet.length), (17, length as u32));
            let whole = message(id as u16, length != 40, length);
            assert_eq!(packet.payload, whole[..length.min(4_608)]);
            assert_eq!(packet.pid, std::process::id());
        }
    }
    assert_eq!(world.datagrams_lost(datagram_counter::DNS_CUT), 2);
    assert_eq!(world.datagrams_lost(datagram_counter::DNS_RING_FULL), 0);
    drop(client);
    let halves = world.wait("the client's end", |halves| {
        halves
            .iter()
            .any(|(half, _)| half.local == from && half.state.finished())
    });
    let (at_client, at_server) = pair(&halves, from);
    assert_eq!(datagrams(&at_client.0).sort, DatagramSort::Dns);
    assert_eq!(at_client.0.fingerprint, at_server.0.fingerprint);
    assert_eq!(at_client.0.application, Application::Dns);
}

/// Segments of both ends in order, from the SYN on: put together they are what was written.
fn dns_over_tcp(world: &mut World) {
    world.watch();
    let listener = TcpListener::bind((loopback(4), 53)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (mut server, from) = listener.accept().unwrap();
    let framed = |message: Vec<u8>| {
        let mut bytes = (message.len() as u16).to_be_bytes().to_vec();
        bytes.extend(message);
        bytes
    };
    let question = framed(message(7, false, 50));
    let reply = framed(message(7, true, 4_096));
    use std::io::{Read, Write};
    client.write_all(&question[..2]).unwrap();
    client.write_all(&question[2..]).unwrap();
    server.read_exact(&mut vec![0; question.len()]).unwrap();
    server.write_all(&reply).unwrap();
    client.read_exact(&mut vec![0; reply.len()]).unwrap();
    drop(client);
    drop(server);
    let halves = world.finished(2);
    let packets = world.dns_packets();
    assert!(packets.iter().all(|packet| packet.protocol == 6));
    for (local, sent, received) in [(from, &question, &reply), (address, &reply, &question)] {
        let cookie = halves
            .iter()
            .find(|(half, _)| half.local == local)
            .unwrap()
            .0
            .cookie;
        let stream = |way: u8| -> Vec<u8> {
            let mine: Vec<&Packet> = packets
                .iter()
                .filter(|packet| packet.direction == way && packet.local == local)
                .collect();
            let syn = mine.iter().find(|packet| packet.tcp_flags & 2 != 0);
            let first = syn.expect("the SYN is there").sequence.wrapping_add(1);
            let mut bytes: Vec<u8> = Vec::new();
            for packet in mine.iter().filter(|packet| !packet.payload.is_empty()) {
                let at = packet.sequence.wrapping_sub(first) as usize;
                bytes.resize(bytes.len().max(at + packet.payload.len()), 0);
                bytes[at..at + packet.payload.len()].copy_from_slice(&packet.payload);
            }
            bytes
        };
        assert_eq!(&stream(direction::SENT), sent);
        assert_eq!(&stream(direction::RECEIVED), received);
        let known = packets
            .iter()
            .filter(|packet| packet.local == local && packet.cookie == cookie);
        assert!(known.count() >= 4, "the cookie of its connection");
    }
}

/// What does not fit is dropped and counted.
fn dns_full_ring(world: &mut World) {
    world.settings.datagrams.dns_ring_bytes = 16_384;
    world.watch();
    let server = UdpSocket::bind((loopback(4), 53)).unwrap();
    let address = server.local_addr().unwrap();
    let client = bound(loopback(4));
    for id in 0..100 {
        client.send_to(&message(id, false, 100), address).unwrap();
        server.recv(&mut [0; 200]).unwrap();
    }
    let there = world.dns_packets().len() as u64;
    let dropped = world.datagrams_lost(datagram_counter::DNS_RING_FULL);
    assert!(there > 10 && dropped > 0);
    assert_eq!(there + dropped, 200);
    client.send_to(&message(1, false, 100), address).unwrap();
    assert_eq!(world.dns_packets().len(), 2, "room again");
}
