//! The cases.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use weft_wire::{Fingerprint, Half, HalfState, Owner, Role};

use crate::world::{Case, World, loopback, pair};

/// All of them.
pub const ALL: &[Case] = &[
    ("ipv4", |world| exchange(world, loopback(4).to_string().parse().unwrap(), loopback(4))),
    ("ipv6", |world| exchange(world, loopback(6).to_string().parse().unwrap(), loopback(6))),
    ("v4_mapped_is_v4", |world| exchange(world, Ipv6Addr::UNSPECIFIED.into(), loopback(4))),
];

/// A connection that carries 5,000 bytes one way and 70,000 the other; the client closes first.
fn exchange(world: &mut World, listen: std::net::IpAddr, call: std::net::IpAddr) {
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

fn check_pair(client: &(Half, Owner), server: &(Half, Owner), from: SocketAddr, to: SocketAddr) {
    assert_eq!((client.0.role, server.0.role), (Role::Client, Role::Server));
    assert_eq!((client.0.local, client.0.remote), (from, to));
    assert_eq!((server.0.local, server.0.remote), (to, from));
    assert_eq!((client.0.state, server.0.state), (HalfState::Closed, HalfState::Closed));
    assert!(matches!(client.0.fingerprint, Fingerprint::TcpIsn { client, server } if client != server));
    assert_eq!(client.0.fingerprint, server.0.fingerprint);
    for (half, owner) in [client, server] {
        let process = owner.process.clone().unwrap();
        assert_eq!(process.pid, std::process::id());
        assert_eq!(process.exe.as_deref(), std::env::current_exe().unwrap().to_str());
        assert!(process.exe.unwrap().contains(&process.name));
        assert_eq!((process.uid, process.user.as_deref()), (0, Some("root")));
        assert!(process.started_at <= half.opened_at && half.opened_at <= half.closed_at.unwrap());
        assert!(owner.cgroup.starts_with("/weft-test-"), "{}", owner.cgroup);
        assert_eq!(u64::from(owner.netns), std::os::unix::fs::MetadataExt::ino(&std::fs::metadata("/proc/self/ns/net").unwrap()));
    }
}

fn check_bytes(half: &Half, sent: u64, received: u64) {
    assert_eq!((half.bytes_sent, half.bytes_received), (sent, received), "{half:?}");
}
