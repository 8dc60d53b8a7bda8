//! The records that the kernel programs and the agent share.
//!
//! Everything here is `repr(C)` without implicit padding, and its layout is asserted: kernel programs stay attached
//! across agent restarts, so a record may be older than the agent that reads it. Whoever changes a layout
//! raises [`LAYOUT_VERSION`]; pins carry it in their path, so that old buffers are never read as new ones.
//!
//! Nothing here decides anything: what a record means is said in the agent's `decode`.

#![no_std]

mod datagram;

pub use datagram::*;

use core::mem::{offset_of, size_of};

pub mod calls;

/// Version of every layout below; part of the path under which maps and links are pinned.
pub const LAYOUT_VERSION: u32 = 2;

/// Bytes of a process name in the kernel, terminator included (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// An IPv6 address in network order; IPv4 appears as `::ffff:a.b.c.d`.
pub type Address = [u8; 16];

/// What a record reports: [`Record::kind`].
pub mod kind {
    /// Established.
    pub const OPEN: u8 = 1;
    /// Still established; counters are current.
    pub const UPDATE: u8 = 2;
    /// Was established, is closed.
    pub const CLOSE: u8 = 3;
    /// Never established.
    pub const FAILED: u8 = 4;
}

/// Which end a record describes: [`Record::role`].
pub mod role {
    /// Active open.
    pub const CLIENT: u8 = 1;
    /// Passive open.
    pub const SERVER: u8 = 2;
    /// Both ends opened actively (RFC 9293, 3.5, figure 8); the initial sequence numbers decide.
    pub const SIMULTANEOUS: u8 = 3;
    /// Both ends sent a SYN, but the other never had ours: for it this end is the server.
    pub const CROSSED: u8 = 4;
}

/// Where a tracked socket is in its life: [`SocketState::phase`].
pub mod phase {
    /// Created or listening.
    pub const IDLE: u8 = 0;
    /// SYN sent.
    pub const CONNECTING: u8 = 1;
    /// Established.
    pub const ESTABLISHED: u8 = 2;
    /// Closed; it may connect again.
    pub const DONE: u8 = 3;
}

/// Slots of the per-CPU drop counters.
pub mod counter {
    /// Records lost because the ring buffer was full.
    pub const RING_FULL: u32 = 0;
    /// Connections not tracked because the map of connections was full, or the kernel had no memory.
    pub const NO_STORAGE: u32 = 1;
    /// Number of slots.
    pub const SLOTS: u32 = 2;
}

/// The whole of what the kernel knows about one connection at one moment.
///
/// Self-contained: losing any other record of the same socket does not make this one wrong.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// One of [`kind`].
    pub kind: u8,
    /// One of [`role`].
    pub role: u8,
    /// How many connections this socket made before (it may connect again after it failed or was disconnected).
    pub generation: u16,
    /// The socket's error number when it closed; 0 for none.
    pub error: u32,
    /// Kernel socket cookie: unique until the next boot.
    pub cookie: u64,
    /// Monotonic time of this record.
    pub at_ns: u64,
    /// Monotonic time of establishment; of the first SYN where there was none.
    pub opened_ns: u64,
    /// Payload bytes acknowledged by the peer, SYN and FIN excluded.
    pub bytes_sent: u64,
    /// Payload bytes received in order, FIN excluded.
    pub bytes_received: u64,
    /// cgroup v2 id of the owner; 0 when unknown.
    pub cgroup: u64,
    /// This end.
    pub local: Address,
    /// The other end.
    pub remote: Address,
    /// Port of this end, host order.
    pub local_port: u16,
    /// Port of the other end, host order.
    pub remote_port: u16,
    /// Inode of the socket's network namespace; 0 when unknown.
    pub netns: u32,
    /// Initial sequence number of this end; meaningless in [`kind::FAILED`].
    pub isn_local: u32,
    /// Initial sequence number of the other end; meaningless in [`kind::FAILED`].
    pub isn_remote: u32,
    /// Segments sent.
    pub packets_sent: u32,
    /// Segments received.
    pub packets_received: u32,
    /// Smoothed round-trip time in microseconds; 0 when unknown.
    pub rtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// Process (thread group) that connected or listens; 0 when unknown.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name, NUL-padded.
    pub comm: [u8; COMM_LEN],
}

/// What the kernel remembers of a connection, or of a socket that is none yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketState {
    /// As [`Record::opened_ns`].
    pub opened_ns: u64,
    /// No update before this monotonic time.
    pub next_update_ns: u64,
    /// As [`Record::cgroup`].
    pub cgroup: u64,
    /// As [`Record::pid`].
    pub pid: u32,
    /// As [`Record::uid`].
    pub uid: u32,
    /// As [`Record::comm`].
    pub comm: [u8; COMM_LEN],
    /// As [`Record::netns`].
    pub netns: u32,
    /// As [`Record::generation`].
    pub generation: u16,
    /// As [`Record::role`].
    pub role: u8,
    /// One of [`phase`].
    pub phase: u8,
}

/// Bits of a tag, or of a connection's key, that are the socket's cookie. Cookies are counted up from 1: 48 bits last for
/// nine years at a million sockets a second. The bits above say how many connections the socket made before.
pub const COOKIE_BITS: u32 = 48;

/// How many places in a row a connection may take in the array of connections, beginning with its cookie's own.
pub const PLACES: u32 = 4;

/// What the kernel remembers of a connection from its SYN to its end: enough to report it while it is open.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Whose it is, and where in its life.
    pub state: SocketState,
    /// As [`Record::local`].
    pub local: Address,
    /// As [`Record::remote`].
    pub remote: Address,
    /// As [`Record::local_port`].
    pub local_port: u16,
    /// As [`Record::remote_port`].
    pub remote_port: u16,
    /// As [`Record::isn_local`].
    pub isn_local: u32,
    /// As [`Record::isn_remote`].
    pub isn_remote: u32,
    /// Nothing; the layout has no implicit padding.
    pub unused: u32,
}

/// Where a listening socket is: what accepted sockets have in common with it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Address; all zero for every address of the socket's family.
    pub address: Address,
    /// As [`Record::netns`].
    pub netns: u32,
    /// Port, host order.
    pub port: u16,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
}

/// A listening socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// Its cookie: it alone takes its entry away.
    pub cookie: u64,
    /// What accepted sockets start with.
    pub state: SocketState,
}

/// What the agent writes down about pinned state when it makes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Added to a ring position to make it unique over all rings this agent ever had.
    pub ring_base: u64,
    /// Monotonic time at which the hooks were attached.
    pub attached_ns: u64,
    /// Hash of the programs that are attached, their settings and their cgroup.
    pub attachment: u64,
    /// UTC microseconds minus monotonic microseconds, so that a time stays the same across the agent's restarts.
    pub clock_offset_us: i64,
}

const _: () = {
    assert!(size_of::<Record>() == 144);
    assert!(offset_of!(Record, cookie) == 8);
    assert!(offset_of!(Record, local) == 56);
    assert!(offset_of!(Record, local_port) == 88);
    assert!(offset_of!(Record, pid) == 120);
    assert!(offset_of!(Record, comm) == 128);
    assert!(size_of::<SocketState>() == 56);
    assert!(offset_of!(SocketState, pid) == 24);
    assert!(offset_of!(SocketState, netns) == 48);
    assert!(size_of::<Connection>() == 104);
    assert!(offset_of!(Connection, local) == 56);
    assert!(offset_of!(Connection, isn_local) == 92);
    assert!(size_of::<ListenerKey>() == 24);
    assert!(size_of::<Listener>() == 64);
    assert!(size_of::<Meta>() == 32);
};
