//! The cases of DNS: real questions to a small name server, and the connections that follow them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use weft_wire::{Answer, Lookup, LookupTransport, NameSource, Role};

use crate::world::{Case, World, counter, patience};

/// All of them.
pub const ALL: &[Case] = &[
    ("lookups_over_udp", over_udp),
    ("lookups_over_tcp", over_tcp),
    ("lookups_name_the_connection_that_follows", names),
    ("lookups_failed_unanswered_and_searched", failures),
    ("lookups_that_hide_are_told", hidden),
    ("lookups_go_on_after_a_restart", restart),
    ("lookups_over_tcp_outlive_the_agent", killed),
    (
        "lookups_over_older_tcp_outlive_the_agent",
        killed_with_older,
    ),
    ("lookups_name_connections_after_a_restart", names_outlive),
    ("lookups_many_at_once", many),
];

const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

/// A query for an address.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.bytes());
    }
    out.extend([0, 0, 1, 0, 1]);
    out
}

/// What a server says: nothing to `silent.…`, that there is none to `none.…`, else that the name is an alias of `real.example`,
/// which is this host.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut out = query.to_vec();
    out[2] = 0x85;
    out[3] = 0x80;
    let name = &query[12..];
    if name.starts_with(b"\x06silent") {
        return None;
    }
    if name.starts_with(b"\x04none") {
        out[3] |= 3;
        return Some(out);
    }
    out[7] = 2;
    out.extend(b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x0e\x04real\x07example\0");
    out.extend(b"\x04real\x07example\0\0\x01\0\x01\0\0\0\x3c\0\x04\x7f\0\0\x01");
    Some(out)
}

fn serve() {
    let socket = UdpSocket::bind(SERVER).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = answer(&buffer[..length]) {
                socket.send_to(&answer, from).unwrap();
            }
        }
    });
    let listener = TcpListener::bind(SERVER).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while let Some(query) = framed(&mut stream) {
                write(&mut stream, &answer(&query).unwrap());
            }
        }
    });
}

fn framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// In pieces, as no sane server does and any network may.
fn write(stream: &mut TcpStream, message: &[u8]) {
    stream.set_nodelay(true).unwrap();
    let length = (message.len() as u16).to_be_bytes();
    for piece in [&length[..1], &length[1..], &message[..5], &message[5..]] {
        stream.write_all(piece).unwrap();
    }
}

fn client() -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(SERVER).unwrap();
    client
        .set_read_timeout(Some(patience(Duration::from_secs(10))))
        .unwrap();
    client
}

fn ask(client: &UdpSocket, id: u16, name: &str) {
    client.send(&query(id, name)).unwrap();
    client.recv(&mut [0; 512]).unwrap();
}

fn watch(world: &mut World) {
    world.settings.lookups = true;
    world.watch();
    serve();
}

/// The lookups that this end asked for.
fn asked(world: &mut World) -> Vec<Lookup> {
    let rows = world.lookups().into_iter();
    let asked = rows.filter(|(lookup, _)| lookup.role == Role::Client);
    asked.map(|(lookup, _)| lookup).collect()
}

fn over_udp(world: &mut World) {
    watch(world);
    let client = client();
    ask(&client, 7, "WWW.Example");
    let rows = world.lookups();
    assert_eq!(rows.len(), 2, "both ends are here: {rows:?}");
    for (lookup, owner) in &rows {
        assert_eq!(
            (lookup.name.as_str(), lookup.qtype, lookup.id),
            ("www.example", 1, 7)
        );
        assert_eq!(
            (lookup.code, lookup.answer_total, lookup.tries),
            (Some(0), 2, 1)
        );
        assert_eq!(lookup.answers[0], Answer::Alias("real.example".into()));
        assert_eq!(lookup.answers[1], Answer::Address(SERVER.ip(), 60));
        assert_eq!(lookup.request_bytes as usize, query(7, "www.example").len());
        assert!(lookup.latency_us.is_some());
        assert_eq!(owner.process.as_ref().unwrap().pid, std::process::id());
    }
    let (client_row, _) = rows.iter().find(|(it, _)| it.role == Role::Client).unwrap();
    assert_eq!(client_row.local, client.local_addr().unwrap());
    assert_eq!(client_row.resolver, SERVER);
}

fn over_tcp(world: &mut World) {
    watch(world);
    let mut stream = TcpStream::connect(SERVER).unwrap();
    for id in 1..=20 {
        write(&mut stream, &query(id, &format!("n{id}.example")));
        framed(&mut stream).unwrap();
    }
    let rows = world.lookups();
    assert_eq!(rows.len(), 40);
    for (lookup, owner) in &rows {
        assert_eq!(
            (lookup.transport, lookup.code),
            (LookupTransport::Tcp, Some(0))
        );
        assert_eq!(lookup.name, format!("n{}.example", lookup.id));
        assert_eq!(
            owner.process.as_ref().map(|it| it.pid),
            Some(std::process::id())
        );
    }
    drop(stream);
    assert_eq!(counter(world, |counters| &counters.dns_streams_given_up), 0);
}

fn names(world: &mut World) {
    watch(world);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = client();
    ask(&client, 1, "db.shop.example");
    let before = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    ask(&client, 2, "other.example");
    let after = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    for (stream, expected) in [(&before, "db.shop.example"), (&after, "other.example")] {
        let local = stream.local_addr().unwrap();
        let (half, name) = world.named(local).unwrap();
        assert_eq!(half.role, Role::Client);
        assert_eq!(
            (name.name.as_str(), name.source),
            (expected, NameSource::DnsProcess)
        );
        assert!((1..10_000_000).contains(&half.named_before_us));
    }
    let accepted = listener.local_addr().unwrap();
    assert!(
        world.named(accepted).is_none(),
        "who is called has no name for the caller"
    );
    // The name stays although another was learnt since.
    let local = before.local_addr().unwrap();
    drop(before);
    world.rows();
    let (_, name) = world.named(local).unwrap();
    assert_eq!(name.name, "db.shop.example");
}

fn failures(world: &mut World) {
    watch(world);
    let client = client();
    ask(&client, 1, "none.real.example.shop.svc.cluster.local");
    ask(&client, 2, "none.real.example.svc.cluster.local");
    ask(&client, 3, "none.real.example");
    for _ in 0..3 {
        client.send(&query(4, "silent.example")).unwrap();
    }
    world.lookups();
    thread::sleep(Duration::from_millis(1_100));
    let rows = asked(world);
    let meant: Vec<_> = rows.iter().map(|row| row.search_of.as_deref()).collect();
    assert_eq!(
        meant,
        [Some("none.real.example"), Some("none.real.example"), None]
    );
    assert!(rows.iter().all(|row| row.code == Some(3)));
    // Ten seconds are not waited for here.
    let late = world.capture().lookups.as_mut().unwrap().close();
    let silent: Vec<_> = late.iter().filter(|row| row.role == Role::Client).collect();
    assert_eq!(silent.len(), 1, "{late:?}");
    assert_eq!(
        (silent[0].tries, silent[0].code, silent[0].latency_us),
        (3, None, None)
    );
}

fn hidden(world: &mut World) {
    watch(world);
    let listener = TcpListener::bind("127.0.0.1:853").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let rows = asked(world);
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].transport, rows[0].name.as_str()),
        (LookupTransport::Dot, "")
    );
    assert_eq!(rows[0].local, stream.local_addr().unwrap());
    drop(stream);
    assert_eq!(asked(world).len(), 1, "once for each connection");
}

fn restart(world: &mut World) {
    watch(world);
    let client = client();
    ask(&client, 1, "first.example");
    assert_eq!(asked(world).len(), 1);
    world.lose_agent();
    ask(&client, 2, "second.example");
    world.watch();
    let rows = asked(world);
    let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(
        names,
        ["second.example"],
        "the ring held what came meanwhile, and nothing else"
    );
}

/// The agent dies when it has read of a lookup and not yet of the connection under it.
fn killed(world: &mut World) {
    watch(world);
    let mut stream = TcpStream::connect(SERVER).unwrap();
    write(&mut stream, &query(1, "first.example"));
    framed(&mut stream).unwrap();
    let before = world.lookups_at_once();
    world.lose_agent();
    world.watch();
    let after = world.lookups();
    let rows: Vec<_> = before.into_iter().chain(after).collect();
    assert_eq!(rows.len(), 2, "one at either end: {rows:?}");
    for (lookup, owner) in &rows {
        assert_eq!(
            (lookup.name.as_str(), lookup.code),
            ("first.example", Some(0))
        );
        let process = owner.process.as_ref().map(|it| it.pid);
        assert_eq!(process, Some(std::process::id()));
    }
}

/// The same with a connection that no hook knows: its lookups wait for one reading more, and then are nobody's.
fn killed_with_older(world: &mut World) {
    serve();
    let mut stream = TcpStream::connect(SERVER).unwrap();
    write(&mut stream, &query(1, "unseen.example"));
    framed(&mut stream).unwrap();
    world.settings.lookups = true;
    world.watch();
    write(&mut stream, &query(2, "second.example"));
    framed(&mut stream).unwrap();
    assert!(world.lookups_at_once().is_empty(), "they wait");
    world.lose_agent();
    world.watch();
    let rows = world.lookups();
    assert_eq!(rows.len(), 2, "one at either end: {rows:?}");
    for (lookup, owner) in &rows {
        assert_eq!(
            (lookup.name.as_str(), lookup.code),
            ("second.example", Some(0))
        );
        assert_eq!(owner.process, None);
    }
    assert_eq!(world.lookups().len(), 2);
}

/// Looked up before the agent died, opened when the next one was there.
fn names_outlive(world: &mut World) {
    let dir = tempfile::tempdir().unwrap();
    world.settings.names = Some(dir.path().join("names"));
    watch(world);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = client();
    ask(&client, 1, "before.example");
    // The first time all is written, then what is new.
    world.lookups();
    ask(&client, 2, "db.shop.example");
    world.lookups();
    world.lose_agent();
    world.watch();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (half, name) = world.named(stream.local_addr().unwrap()).unwrap();
    assert_eq!(
        (name.name.as_str(), name.source),
        ("db.shop.example", NameSource::DnsProcess)
    );
    assert!(half.named_before_us > 0);
}

fn many(world: &mut World) {
    const QUESTIONS: u16 = 5_000;
    world.settings.datagrams.dns_ring_bytes = 8 << 20;
    watch(world);
    let client = client();
    for id in 0..QUESTIONS {
        ask(&client, id, &format!("n{id}.example"));
        if id % 500 == 0 {
            world.lookups();
        }
    }
    let mut ids: Vec<u16> = asked(world).iter().map(|row| row.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..QUESTIONS).collect::<Vec<_>>());
    assert_eq!(counter(world, |counters| &counters.dns_packets_dropped), 0);
    assert_eq!(counter(world, |counters| &counters.dns_orphans), 0);
}
