//! The call hooks: the process that really speaks. On kernels that have neither trampolines nor kprobes these cases say
//! what is missing and are skipped.

use std::collections::BTreeMap;
use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use weft_agent::calls::hooks::{CallHooks, Mode};
use weft_agent::calls::{Calls, RING_BYTES};
use weft_agent::privileges::NEEDED;
use weft_wire::{Application, Half, HalfState, NameSource, Owner, Process};

use crate::world::{Case, World, loopback, myself, pair, skip};

/// All of them.
pub const ALL: &[Case] = &[
    ("calls_workers_by_trampolines", |world| {
        workers(world, Mode::Trampolines)
    }),
    ("calls_workers_by_kprobes", |world| {
        workers(world, Mode::Probes)
    }),
    ("calls_pipeline_of_short_lives", pipeline),
    ("calls_socket_passed_on", |world| {
        passed_on(world, Mode::Trampolines)
    }),
    ("calls_socket_passed_on_by_kprobes", |world| {
        passed_on(world, Mode::Probes)
    }),
    ("calls_first_bytes", first_bytes),
    ("calls_full_ring_drops_and_counts", full_ring),
    ("calls_with_the_least_capabilities", |world| {
        least_capabilities(world, Mode::Trampolines)
    }),
    ("calls_with_the_least_capabilities_by_kprobes", |world| {
        least_capabilities(world, Mode::Probes)
    }),
];

/// Attaches the socket hooks, then the call hooks.
fn watch(world: &mut World, mode: Mode, ring_bytes: u32) {
    world.watch();
    match CallHooks::attach_as(mode, ring_bytes) {
        Ok(hooks) => world.capture().calls = Some(Calls::with(hooks)),
        Err(missing) => skip(&missing),
    }
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((loopback(4), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A process that accepts on a listener that its parent made, its standard input. Everyone who calls is told its process
/// id, and is served until they hang up.
pub fn worker() -> ExitCode {
    let fd = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let listener = TcpListener::from(fd);
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(&std::process::id().to_le_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// A process that is handed a connection through its standard input, and answers on it with its process id.
pub fn receiver() -> ExitCode {
    let stdin = std::io::stdin();
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut byte = [0];
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        stdin.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )
    .unwrap();
    let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
        return ExitCode::FAILURE;
    };
    let mut request = [0; 4];
    nix::sys::socket::recv(fds[0], &mut request, MsgFlags::MSG_WAITALL).unwrap();
    let answer = std::process::id().to_le_bytes();
    nix::sys::socket::send(fds[0], &answer, MsgFlags::empty()).unwrap();
    ExitCode::SUCCESS
}

fn process(owner: &Owner) -> &Process {
    owner.process.as_ref().expect("a process")
}

/// A server of four processes that accept on one listener: each connection is its worker's, not the listener's.
fn workers(world: &mut World, mode: Mode) {
    const WORKERS: usize = 4;
    const ROUNDS: usize = 8;
    watch(world, mode, RING_BYTES);
    let (listener, address) = listen();
    let mut children: Vec<Child> = (0..WORKERS)
        .map(|_| {
            let listener = OwnedFd::from(listener.try_clone().unwrap());
            myself("worker")
                .stdin(Stdio::from(listener))
                .spawn()
                .unwrap()
        })
        .collect();
    let mut answered = BTreeMap::new();
    for _ in 0..ROUNDS {
        // As many at once as there are workers: each must take one.
        let mut streams: Vec<TcpStream> = (0..WORKERS)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        for stream in &mut streams {
            let mut pid = [0; 4];
            stream.read_exact(&mut pid).unwrap();
            answered.insert(stream.local_addr().unwrap(), u32::from_le_bytes(pid));
        }
    }
    let halves = world.finished(2 * WORKERS * ROUNDS);
    for (from, pid) in &answered {
        let (client, server) = pair(&halves, *from);
        assert_eq!(process(&client.1).pid, std::process::id());
        let worker = process(&server.1);
        assert_eq!(worker.pid, *pid, "the worker that answered");
        assert_eq!(
            worker.exe.as_deref(),
            std::env::current_exe().unwrap().to_str()
        );
        assert!(worker.started_at.0 > 0);
        assert_eq!(server.1.sharers, []);
    }
    let distinct: std::collections::BTreeSet<&u32> = answered.values().collect();
    assert_eq!(distinct.len(), WORKERS, "every worker answered");
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Processes of a pipeline in a shell that live for milliseconds, all of them gone before anyone looks.
fn pipeline(world: &mut World) {
    const CLIENTS: usize = 20;
    watch(world, Mode::Trampolines, RING_BYTES);
    let (listener, address) = listen();
    let serving = std::thread::spawn(move || {
        for _ in 0..CLIENTS {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        }
    });
    let program = std::env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    let script =
        format!("for i in $(seq {CLIENTS}); do {program} connect {address} | cat; done; true");
    let status = Command::new("sh").args(["-c", &script]).status().unwrap();
    assert!(status.success());
    serving.join().unwrap();
    let halves = world.finished(2 * CLIENTS);
    let clients: Vec<&(Half, Owner)> = halves
        .iter()
        .filter(|(half, _)| half.remote == address)
        .collect();
    assert_eq!(clients.len(), CLIENTS);
    let mut pids = std::collections::BTreeSet::new();
    for (half, owner) in clients {
        let process = process(owner);
        assert_eq!(process.exe.as_deref(), Some(program));
        assert!(program.contains(&process.name) && !process.name.is_empty());
        assert!(process.started_at.0 > 0 && process.started_at <= half.opened_at);
        let args = format!("{program} connect {address}");
        assert_eq!(process.args.as_deref(), Some(args.as_str()));
        assert_eq!(process.parent_name, "sh");
        assert_eq!((half.bytes_sent, half.state), (3, HalfState::Closed));
        pids.insert(process.pid);
    }
    assert_eq!(pids.len(), CLIENTS, "each was another process");
}

/// A connection accepted here and passed to another process, which does all the talking: it is that process's, and this one
/// shares it.
fn passed_on(world: &mut World, mode: Mode) {
    watch(world, mode, RING_BYTES);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = myself("receiver")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    let (listener, address) = listen();
    let mut client = TcpStream::connect(address).unwrap();
    let (server, from) = listener.accept().unwrap();
    client.write_all(b"ping").unwrap();
    sendmsg::<()>(
        ours.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&[server.as_raw_fd()])],
        MsgFlags::empty(),
        None,
    )
    .unwrap();
    drop(server);
    let mut pid = [0; 4];
    client.read_exact(&mut pid).unwrap();
    assert_eq!(u32::from_le_bytes(pid), child.id());
    assert!(child.wait().unwrap().success());
    drop(client);
    let halves = world.finished(2);
    let (client, server) = pair(&halves, from);
    assert_eq!(process(&client.1).pid, std::process::id());
    assert_eq!(client.1.sharers, []);
    assert_eq!(process(&server.1).pid, child.id());
    let sharers: Vec<u32> = server.1.sharers.iter().map(|process| process.pid).collect();
    assert_eq!(sharers, [std::process::id()]);
}

/// A request in the buffers of one call, its answer, and what that is.
type Exchange = (&'static [&'static [u8]], &'static [u8], Application);

/// What is spoken is told by both ends, however the bytes are handed over.
fn first_bytes(world: &mut World) {
    watch(world, Mode::Trampolines, RING_BYTES);
    let (listener, address) = listen();
    let mut expected = BTreeMap::new();
    let requests: [Exchange; 4] = [
        (
            &[b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"],
            b"HTTP/1.1 204 No Content\r\n\r\n",
            Application::Http1,
        ),
        // Two buffers in one call.
        (
            &[b"*1\r\n", b"$4\r\nPING\r\n"],
            b"+PONG\r\n",
            Application::Redis,
        ),
        (&[&[b'x'; 1_000]], b"yes", Application::Unknown),
        // The server speaks first; nothing else is said.
        (
            &[],
            b"\x4a\x00\x00\x00\x0a8.0.35\x00\x08\x00\x00\x00abcdefgh\x00",
            Application::Mysql,
        ),
    ];
    for (request, answer, application) in requests {
        let mut client = TcpStream::connect(address).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        let parts: Vec<IoSlice<'_>> = request.iter().map(|part| IoSlice::new(part)).collect();
        if !parts.is_empty() {
            let length = client.write_vectored(&parts).unwrap();
            server.read_exact(&mut vec![0; length]).unwrap();
        }
        server.write_all(answer).unwrap();
        client.read_exact(&mut vec![0; answer.len()]).unwrap();
        drop(client);
        drop(server);
        expected.insert(from, application);
    }
    let halves = world.finished(2 * expected.len());
    for (from, application) in expected {
        let (client, server) = pair(&halves, from);
        assert_eq!(
            (client.0.application, server.0.application),
            (application, application)
        );
        // Nothing was looked up: what the client said names its peer, and nothing names the client.
        let name = world.named(from).map(|(_, name)| (name.name, name.source));
        let said = (application == Application::Http1)
            .then(|| ("a.example".to_owned(), NameSource::HttpHost));
        assert_eq!(name, said);
        assert_eq!(world.named(server.0.local), None);
    }
}

/// What does not fit is dropped and counted; what comes after is right again.
fn full_ring(world: &mut World) {
    // One connection of this process with one call each: accepted, sent, received.
    const CALLS: u64 = 3;
    const CONNECTIONS: u64 = 50;
    watch(world, Mode::Trampolines, 4096);
    let (listener, address) = listen();
    let exchange = || {
        let mut client = TcpStream::connect(address).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        client.write_all(b"one").unwrap();
        server.read_exact(&mut [0; 3]).unwrap();
        from
    };
    for _ in 0..CONNECTIONS {
        exchange();
    }
    world.finished(2 * CONNECTIONS as usize);
    let calls = |world: &mut World| {
        let calls = world.capture().calls.as_ref().unwrap();
        (calls.records, calls.ring_full())
    };
    let (records, dropped) = calls(world);
    assert!(records > 0 && dropped > 0, "{records} read, {dropped} lost");
    // Other processes of the machine may be seen too.
    assert!(records + dropped >= CALLS * CONNECTIONS);
    let from = exchange();
    world.finished(2 * CONNECTIONS as usize + 2);
    let (after, still) = calls(world);
    assert_eq!(still, dropped);
    assert!(after >= records + CALLS);
    let halves = world.halves();
    let (_, server) = pair(&halves, from);
    assert_eq!(process(&server.1).pid, std::process::id());
}

/// Becomes nobody, with what the agent needs and nothing else.
fn become_nobody(mode: Mode) {
    use caps::{CapSet, Capability, CapsHashSet};
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    const NOBODY: u32 = 65_534;
    let mut needed: CapsHashSet = NEEDED.iter().map(|(one, _)| *one).collect();
    let kernel = aya::util::KernelVersion::current().unwrap();
    if kernel < aya::util::KernelVersion::new(5, 11, 0) {
        // The memory of maps is locked memory there.
        needed.insert(Capability::CAP_SYS_RESOURCE);
    }
    let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    if mode == Mode::Probes && paranoid.is_ok_and(|level| level.trim() == "3") {
        // Debian's own level: kprobes are for whoever administers the system.
        needed.insert(Capability::CAP_SYS_ADMIN);
    }
    nix::sys::prctl::set_keepcaps(true).unwrap();
    setgroups(&[]).unwrap();
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setresgid(group, group, group).unwrap();
    setresuid(user, user, user).unwrap();
    caps::set(None, CapSet::Effective, &needed).unwrap();
    caps::set(None, CapSet::Permitted, &needed).unwrap();
    assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), needed);
}

/// Attached, and heard of, by another user than root who may do no more than the agent says it needs.
fn least_capabilities(world: &mut World, mode: Mode) {
    std::fs::create_dir(&world.pins).unwrap();
    std::os::unix::fs::chown(&world.pins, Some(65_534), Some(65_534)).unwrap();
    become_nobody(mode);
    watch(world, mode, RING_BYTES);
    let (listener, address) = listen();
    let mut client = TcpStream::connect(address).unwrap();
    let (mut server, from) = listener.accept().unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    server.read_exact(&mut [0; 16]).unwrap();
    drop(client);
    drop(server);
    let halves = world.finished(2);
    let (client, server) = pair(&halves, from);
    for (half, owner) in [&client, &server] {
        assert_eq!(process(owner).pid, std::process::id());
        assert_eq!(half.application, Application::Http1);
    }
    assert!(world.capture().calls.as_ref().unwrap().records >= 3);
}
