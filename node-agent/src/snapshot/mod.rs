//! Sockets older than the hooks, and ends that the hooks lost.
//!
//! At the agent's start every listener of the watched processes that the hooks do not know is made known to them, so that
//! what it accepts has an owner; every established connection that they do not know is reported without initial
//! sequence numbers. Those are looked at again now and then, since no hook will say when they end. What the
//! hooks know, their maps tell; so a restarted agent needs no memory of what an earlier one did.

pub mod diag;
pub mod processes;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use weft_agent_common::{SocketState, phase};
use weft_wire::{Fingerprint, Half, HalfId, HalfState, Owner, Protocol, Role, Timestamp};

use crate::attribution::Host;
use crate::capture::Capture;
use crate::decode::{ConnectionKey, OwnerKey};
use crate::kernel::sys;
use crate::sink::BatchSink;
use crate::table::SPARSE;
use crate::table::kept::Kept;
use crate::time;
use diag::{DiagError, Listed, Progress};
use processes::{Holder, Resident};

/// Bytes of one datagram of an answer; the kernel makes none larger.
const DATAGRAM_BYTES: usize = 64 << 10;
/// Times a list is read that changes while it is read.
const DUMP_ATTEMPTS: usize = 3;
/// Longest wait for an answer of the kernel's, which comes at once or never.
const ANSWER_LIMIT_S: i64 = 2;
/// Sockets that a list gives in the time of asking for one: beyond so many to ask for, all are listed.
const LISTED_PER_ASKED: usize = 4;
/// Most older connections followed; some 200 bytes each. Beyond it they are reported once, as open, and counted.
const MAX_FOLLOWED: usize = 65_536;

/// What is followed between two looks.
pub struct Snapshot {
    cgroup: PathBuf,
    namespaces: HashMap<u32, Diag>,
    followed: HashMap<u64, Kept>,
    dropped: u64,
    swept_at: Timestamp,
    update_interval_us: i64,
}

impl Snapshot {
    /// Of the processes in this cgroup; what was not heard of for the interval is looked at.
    pub fn new(cgroup: &Path, update_interval_us: i64) -> Self {
        Self {
            cgroup: cgroup.into(),
            namespaces: HashMap::new(),
            followed: HashMap::new(),
            dropped: 0,
            swept_at: time::now(),
            update_interval_us,
        }
    }

    /// Once, when the agent starts, after the hooks are there.
    pub fn start<H: Host, S: BatchSink>(&mut self, capture: &mut Capture<H, S>) {
        self.dropped = capture.hooks.ring_full();
        let (residents, left_out) = processes::residents(&self.cgroup);
        capture
            .counters()
            .snapshot_skipped
            .fetch_add(left_out, Relaxed);
        self.enter(&residents, capture);
        let holders = processes::holders(&residents);
        if let Some(flows) = &mut capture.flows {
            let left_out = flows.adopt(&residents, &holders);
            let skipped = &capture.counters().snapshot_skipped;
            skipped.fetch_add(left_out, Relaxed);
        }
        let listeners = capture.hooks.listeners();
        let before = time::monotonic_ns();
        // Two looks: what a hundred thousand sockets are is not kept, only what the second look needs of the first.
        let mut alive = HashSet::new();
        let mut ports: HashSet<(u32, u16)> = HashSet::new();
        let entered = self.list(capture, |netns, socket, _| {
            if socket.state != diag::state::TIME_WAIT {
                alive.insert(socket.cookie);
            }
            if socket.state == diag::state::LISTEN {
                ports.insert((netns, socket.local.port()));
            }
        });
        let leaked = forget_leaked(capture, &entered, &alive, before);
        if leaked > 0 {
            tracing::warn!(connections = leaked, "ends that no hook saw");
        }
        drop(alive);
        capture.take_over();
        let mut followed = std::mem::take(&mut self.followed);
        self.list(capture, |netns, socket, capture| {
            if let Some(holder) = holders.get(&socket.inode) {
                let accepted = ports.contains(&(netns, socket.local.port()));
                adopt(
                    &mut followed,
                    capture,
                    (netns, accepted),
                    &socket,
                    holder,
                    &listeners,
                );
            }
        });
        self.followed = followed;
        tracing::info!(
            connections = self.followed.len(),
            "connections older than the hooks"
        );
    }

    /// Now and then: how the older connections are doing, and those that the hooks say nothing of for long; and, where
    /// records were lost, which ends were among them.
    pub fn sweep<H: Host, S: BatchSink>(&mut self, capture: &mut Capture<H, S>) {
        let dropped = capture.hooks.ring_full();
        let lost = dropped > self.dropped;
        let looked_at = time::now();
        let since = std::mem::replace(&mut self.swept_at, looked_at);
        let rarer = if capture.looks_sparsely() { SPARSE } else { 1 };
        let interval_us = self.update_interval_us.saturating_mul(rarer);
        let mut due = capture.table.due_for_a_look(since, looked_at, interval_us);
        if lost || !due.is_empty() {
            let (residents, _) = processes::residents(&self.cgroup);
            self.enter(&residents, capture);
        }
        let few = due.len() * LISTED_PER_ASKED < capture.table.open();
        if !lost && self.followed.is_empty() && (few || due.is_empty()) {
            return self.ask_for(&due, capture, looked_at);
        }
        self.dropped = dropped;
        due.sort_unstable_by_key(|key| key.cookie());
        let mut alive = HashSet::new();
        let mut older = HashMap::new();
        let entered = self.list(capture, |_, socket, capture| {
            let at = due.binary_search_by_key(&socket.cookie, |key| key.cookie());
            if let Some(key) = at.ok().and_then(|at| due.get(at)) {
                capture
                    .table
                    .refresh(*key, |half, _| update(half, &socket, looked_at));
            }
            if lost && socket.state != diag::state::TIME_WAIT {
                alive.insert(socket.cookie);
            }
            if self.followed.contains_key(&socket.cookie) && socket.half_state().is_some() {
                older.insert(socket.cookie, socket);
            }
        });
        if lost {
            let found = capture.table.reconcile(
                |key, owner| !entered.contains(&owner.netns) || alive.contains(&key.cookie()),
                looked_at,
            );
            tracing::warn!(lost_ends = found, "the kernel's ring was full");
        }
        self.follow(capture, &entered, &older, looked_at);
    }

    /// Looks at some connections, one by one.
    fn ask_for<H: Host, S: BatchSink>(
        &self,
        due: &[ConnectionKey],
        capture: &mut Capture<H, S>,
        looked_at: Timestamp,
    ) {
        let Capture { table, .. } = capture;
        for key in due {
            table.refresh(*key, |half, owner| {
                let Some(diag) = self.namespaces.get(&owner.netns) else {
                    return false;
                };
                match diag.one(half, key.cookie()) {
                    Ok(Some(socket)) => update(half, &socket, looked_at),
                    // Its end is under way, or tells of itself.
                    Ok(None) => false,
                    Err(error) => {
                        tracing::debug!(%error, "connection left out");
                        false
                    }
                }
            });
        }
    }

    /// Opens a socket into every network namespace that residents live in.
    fn enter<H: Host, S: BatchSink>(&mut self, residents: &[Resident], capture: &Capture<H, S>) {
        let wanted: HashMap<u32, u32> = residents
            .iter()
            .map(|resident| (resident.netns, resident.pid))
            .collect();
        self.namespaces
            .retain(|netns, _| wanted.contains_key(netns));
        for (netns, pid) in wanted {
            if self.namespaces.contains_key(&netns) {
                continue;
            }
            match Diag::open(pid) {
                Ok(diag) => drop(self.namespaces.insert(netns, diag)),
                Err(error) => {
                    tracing::debug!(%error, netns, "namespace left out");
                    capture.counters().snapshot_skipped.fetch_add(1, Relaxed);
                }
            }
        }
    }

    /// Shows every socket of the namespaces, some of them more than once (a list that changes while it is read is read again), and
    /// says which namespaces could be read.
    fn list<H: Host, S: BatchSink>(
        &self,
        capture: &mut Capture<H, S>,
        mut each: impl FnMut(u32, Listed, &mut Capture<H, S>),
    ) -> HashSet<u32> {
        let mut entered = HashSet::new();
        for (netns, diag) in &self.namespaces {
            match diag.sockets(|socket| each(*netns, socket, capture)) {
                Ok(()) => drop(entered.insert(*netns)),
                Err(error) => {
                    tracing::debug!(%error, netns, "namespace left out");
                    capture.counters().snapshot_skipped.fetch_add(1, Relaxed);
                }
            }
        }
        entered
    }

    /// Gives followed connections the owners that took the place of theirs, and reports them again.
    pub fn reown<H: Host, S: BatchSink>(
        &mut self,
        renewed: &HashMap<*const Owner, Arc<Owner>>,
        capture: &mut Capture<H, S>,
    ) {
        if renewed.is_empty() {
            return;
        }
        for (cookie, kept) in &mut self.followed {
            if let Some(new) = renewed.get(&Arc::as_ptr(&kept.owner)) {
                kept.owner = Arc::clone(new);
                capture
                    .table
                    .adopt(ConnectionKey(*cookie), kept.half(), &kept.owner);
            }
        }
    }

    /// Reports what changed on followed connections; those that are gone are closed with their last counters.
    fn follow<H: Host, S: BatchSink>(
        &mut self,
        capture: &mut Capture<H, S>,
        entered: &HashSet<u32>,
        alive: &HashMap<u64, Listed>,
        looked_at: Timestamp,
    ) {
        self.followed.retain(|cookie, kept| {
            let before = kept.half();
            let mut half = before;
            // The clock may have been set back.
            let looked_at = looked_at.max(before.seen_at);
            match alive.get(cookie) {
                Some(socket) => half = observed(socket, half.role, half.opened_at, looked_at),
                // Of a namespace that cannot be read nothing new is known.
                None if !entered.contains(&kept.owner.netns) => return true,
                None => {
                    half.state = HalfState::Closed;
                    half.closed_at = Some(looked_at);
                }
            }
            let key = ConnectionKey(*cookie);
            let moved = (before.bytes_sent, before.bytes_received)
                != (half.bytes_sent, half.bytes_received);
            if moved || half.state.finished() {
                capture.table.adopt(key, half, &kept.owner);
            }
            *kept = Kept::new(key, &half, Arc::clone(&kept.owner));
            !half.state.finished()
        });
    }
}

/// Makes a listener that is older than the hooks known to them, or follows a connection that is.
fn adopt<H: Host, S: BatchSink>(
    followed: &mut HashMap<u64, Kept>,
    capture: &mut Capture<H, S>,
    (netns, accepted): (u32, bool),
    socket: &Listed,
    holder: &Holder,
    listeners: &HashSet<u64>,
) {
    let listener = socket.state == diag::state::LISTEN;
    if !listener && socket.half_state().is_none() {
        return;
    }
    let known = if listener {
        listeners.contains(&socket.cookie)
    } else {
        capture.hooks.follows(socket.cookie) || followed.contains_key(&socket.cookie)
    };
    if known {
        return;
    }
    let owner = OwnerKey {
        pid: holder.pid,
        uid: socket.uid,
        comm: processes::comm(holder.pid),
        cgroup: holder.cgroup,
        netns,
    };
    if !listener {
        return adopt_connection(followed, capture, socket, &owner, accepted);
    }
    // Gone since it was listed: then there is nothing to adopt.
    let Ok(fd) = sys::descriptor_of(holder.pid, holder.fd) else {
        return;
    };
    match capture.hooks.state_of(&fd) {
        Some(known) if known.pid != 0 => {}
        _ => {
            let state = SocketState {
                cgroup: owner.cgroup,
                pid: owner.pid,
                uid: owner.uid,
                comm: owner.comm,
                netns,
                phase: phase::IDLE,
                ..SocketState::default()
            };
            if let Err(error) = capture.hooks.track(&fd, state) {
                tracing::debug!(%error, "listener left out");
                capture.counters().snapshot_skipped.fetch_add(1, Relaxed);
            }
        }
    }
}

fn adopt_connection<H: Host, S: BatchSink>(
    followed: &mut HashMap<u64, Kept>,
    capture: &mut Capture<H, S>,
    socket: &Listed,
    owner: &OwnerKey,
    accepted: bool,
) {
    let now_ns = time::monotonic_ns();
    let owner = capture
        .attribution
        .owner(owner, now_ns, now_ns, &capture.clock);
    // Nobody knows when it was opened; the hooks came after.
    let opened_at = capture.clock.utc(capture.hooks.state.attached_ns);
    let role = if accepted { Role::Server } else { Role::Client };
    let half = observed(socket, role, opened_at, time::now());
    let key = ConnectionKey(socket.cookie);
    capture.table.adopt(key, half, &owner);
    if followed.len() < MAX_FOLLOWED {
        followed.insert(socket.cookie, Kept::new(key, &half, owner));
    } else {
        capture.counters().snapshot_skipped.fetch_add(1, Relaxed);
    }
}

/// Closes what the kernel programs still keep although the socket is gone: its end fell into a time when no hook was attached.
fn forget_leaked<H: Host, S: BatchSink>(
    capture: &mut Capture<H, S>,
    entered: &HashSet<u32>,
    alive: &HashSet<u64>,
    before_ns: u64,
) -> usize {
    let leaked = capture.hooks.kept(|key, kept| {
        kept.state.opened_ns < before_ns
            && entered.contains(&kept.state.netns)
            && !alive.contains(&key.cookie())
    });
    for (key, kept) in &leaked {
        capture.end_unseen(*key, kept);
    }
    leaked.len()
}

/// Brings a half up to date; false when nothing moved.
fn update(half: &mut Half, socket: &Listed, looked_at: Timestamp) -> bool {
    let (sent, received) = socket.payload(half.role == Role::Client);
    if socket.half_state().is_none() || (sent, received) == (half.bytes_sent, half.bytes_received) {
        return false;
    }
    let new = observed(socket, half.role, half.opened_at, looked_at);
    *half = Half {
        id: half.id,
        cookie: half.cookie,
        fingerprint: half.fingerprint,
        ..new
    };
    true
}

fn observed(socket: &Listed, role: Role, opened_at: Timestamp, seen_at: Timestamp) -> Half {
    let (bytes_sent, bytes_received) = socket.payload(role == Role::Client);
    Half {
        id: HalfId::default(),
        cookie: socket.cookie,
        protocol: Protocol::Tcp,
        role,
        state: HalfState::Open,
        fingerprint: Fingerprint::Unknown,
        local: socket.local,
        remote: socket.remote,
        opened_at,
        closed_at: None,
        seen_at,
        bytes_sent,
        bytes_received,
        packets_sent: u64::from(socket.info.segments_out),
        packets_received: u64::from(socket.info.segments_in),
        rtt_us: socket.info.rtt_us,
        retransmits: socket.info.retransmits,
        owner: 0,
        ..Half::default()
    }
}

/// How many TCP sockets there are in this process's own network namespace.
pub fn probe() -> io::Result<usize> {
    let mut count = 0;
    Diag::open(std::process::id())?.sockets(|_| count += 1)?;
    Ok(count)
}

/// A sock_diag socket, and the number of the last request on it.
#[derive(Debug)]
struct Diag {
    fd: OwnedFd,
    seq: Cell<u32>,
}

impl Diag {
    /// One in the network namespace of a process. A socket stays in the namespace it was made in, so a thread goes there for a
    /// moment.
    fn open(pid: u32) -> io::Result<Self> {
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        let made = std::thread::Builder::new()
            .name("weft-netns".into())
            .spawn(move || -> io::Result<OwnedFd> {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                let protocol = SockProtocol::NetlinkSockDiag;
                let fd = socket(
                    AddressFamily::Netlink,
                    SockType::Datagram,
                    SockFlag::SOCK_CLOEXEC,
                    protocol,
                )?;
                setsockopt(
                    &fd,
                    sockopt::ReceiveTimeout,
                    &TimeVal::seconds(ANSWER_LIMIT_S),
                )?;
                Ok(fd)
            })?;
        let fd = made
            .join()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
        Ok(Self {
            fd,
            seq: Cell::new(0),
        })
    }

    /// Every TCP socket of the namespace. A list that changes while it is read is read again.
    fn sockets(&self, mut each: impl FnMut(Listed)) -> io::Result<()> {
        let mut last = None;
        for _ in 0..DUMP_ATTEMPTS {
            let listed = [libc::AF_INET, libc::AF_INET6]
                .into_iter()
                .try_for_each(|family| self.dump(family as u8, &mut each));
            match listed {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::Other.into()))
    }

    fn dump(&self, family: u8, each: &mut impl FnMut(Listed)) -> io::Result<()> {
        let seq = self.next();
        self.ask(&diag::request(family, seq))?;
        let mut datagram = vec![0; DATAGRAM_BYTES];
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
            match diag::parse(&datagram[..length], seq, &mut *each) {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => return Ok(()),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    /// One socket; `None` when it is gone, or another.
    fn one(&self, half: &Half, cookie: u64) -> io::Result<Option<Listed>> {
        let seq = self.next();
        self.ask(&diag::request_one(half.local, half.remote, cookie, seq))?;
        let mut datagram = [0; 4096];
        let mut found = None;
        while found.is_none() {
            let length = recv(self.fd.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
            match diag::parse(&datagram[..length], seq, |listed| found = Some(listed)) {
                Ok(_) => {}
                Err(DiagError::Refused(_)) => break,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(found)
    }

    fn next(&self) -> u32 {
        self.seq.set(self.seq.get().wrapping_add(1));
        self.seq.get()
    }

    fn ask(&self, request: &[u8]) -> io::Result<()> {
        send(self.fd.as_raw_fd(), request, MsgFlags::empty())?;
        Ok(())
    }
}
