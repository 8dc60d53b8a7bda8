//! What kernel and agent share about datagrams: UDP flows, and the packets of name servers.

use core::mem::{offset_of, size_of};

use crate::{Address, COMM_LEN};

/// Bytes of a flow's first datagrams that reach the agent. Both ends of a flow must take the same number: the fingerprint is
/// made of them.
pub const SNAP_LEN: usize = 128;

/// Payload bytes of a name server's packet that reach the agent; longer ones are cut, and say so.
pub const DNS_SNAP_LEN: usize = 4_608;

/// Words of the set of ports whose packets are copied whole: a bit for each port.
pub const PORT_SET_WORDS: usize = 65_536 / 32;

/// Kinds of records about flows, beside those of [`crate::kind`] in the same ring: the first byte.
pub mod flow_kind {
    /// The first datagram in a direction: a [`super::FlowFirst`].
    pub const FIRST: u8 = 16;
    /// A flow's last word, and it is gone from the map: a [`super::FlowEnd`].
    pub const END: u8 = 17;
    /// A socket with several flows is gone; they are still in the map: a [`super::FlowEnd`] with its first flow's key.
    pub const RELEASE: u8 = 18;
}

/// Which way a packet went.
pub mod direction {
    /// Out of the socket.
    pub const SENT: u8 = 1;
    /// Into the socket.
    pub const RECEIVED: u8 = 2;
}

/// Slots of the per-CPU counters of what was lost about datagrams.
pub mod datagram_counter {
    /// Records about flows that the ring had no room for: a fingerprint or an end is missing.
    pub const FLOW_RING_FULL: u32 = 0;
    /// Datagrams that belong to no flow because the map was full.
    pub const FLOWS_FULL: u32 = 1;
    /// Name servers' packets that their ring had no room for.
    pub const DNS_RING_FULL: u32 = 2;
    /// Packets whose headers could not be read.
    pub const UNREADABLE: u32 = 3;
    /// Sockets whose state the kernel had no memory for: their flows end by their idle time.
    pub const NO_STORAGE: u32 = 4;
    /// Name servers' packets longer than [`super::DNS_SNAP_LEN`], and therefore cut.
    pub const DNS_CUT: u32 = 5;
    /// Number of slots.
    pub const SLOTS: u32 = 6;
}

/// What makes a flow one. Ordered by socket, so that a socket's flows are neighbours.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Kernel socket cookie: unique until the next boot.
    pub cookie: u64,
    /// The other end.
    pub remote: Address,
    /// This end, as the packets say: a socket may be bound to every address.
    pub local: Address,
    /// Port of the other end, host order.
    pub remote_port: u16,
    /// Port of this end, host order.
    pub local_port: u16,
    /// 0.
    pub zero: u32,
}

/// The process behind a socket, as the kernel named it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOwner {
    /// cgroup v2 id; 0 when unknown.
    pub cgroup: u64,
    /// Process (thread group); 0 when unknown.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name, NUL-padded.
    pub comm: [u8; COMM_LEN],
    /// Inode of the socket's network namespace; 0 when unknown.
    pub netns: u32,
    /// One of [`socket_origin`].
    pub origin: u32,
}

/// How much is known of a socket's past: [`SocketOwner::origin`].
pub mod socket_origin {
    /// Older than the hooks and not yet looked at, or the kernel's own: no process is named.
    pub const UNKNOWN: u32 = 0;
    /// The hooks saw its creation.
    pub const CREATED: u32 = 1;
    /// Older than the hooks; the agent found the process that has it.
    pub const ADOPTED: u32 = 2;
    /// The agent's own, for its session with its federator. Only the agent writes this.
    pub const AGENT: u32 = 3;
}

/// What the kernel counts for a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowState {
    /// Monotonic time of its first datagram.
    pub opened_ns: u64,
    /// Monotonic time of its last one.
    pub last_ns: u64,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Datagrams sent; a segmented one counts as its segments.
    pub packets_sent: u64,
    /// Datagrams received.
    pub packets_received: u64,
    /// The process that sent first; before it sent, the one that has the socket.
    pub owner: SocketOwner,
    /// [`direction`] of its first datagram.
    pub opened_by: u8,
    /// Set of [`direction`]s whose first datagram was seen.
    pub seen: u8,
    /// Set of [`direction`]s whose first datagram the ring had no room for.
    pub lost: u8,
    /// 1 when a port is a name server's.
    pub dns: u8,
    /// 0.
    pub zero: u32,
}

/// The first datagram in a direction. Self-contained.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowFirst {
    /// [`flow_kind::FIRST`].
    pub kind: u8,
    /// One of [`direction`].
    pub direction: u8,
    /// Bytes of `snap` that are the datagram's.
    pub captured: u16,
    /// Payload bytes of the datagram; of its first segment if it was segmented.
    pub length: u32,
    /// Monotonic time.
    pub at_ns: u64,
    /// Which flow.
    pub key: FlowKey,
    /// The flow, this datagram included.
    pub state: FlowState,
    /// How it begins.
    pub snap: [u8; SNAP_LEN],
}

/// The end of a flow or of a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEnd {
    /// [`flow_kind::END`] or [`flow_kind::RELEASE`].
    pub kind: u8,
    /// 1 when the socket is gone; 0 when the flow was idle so long that what came next is another flow.
    pub released: u8,
    /// 0.
    pub zero: [u8; 6],
    /// Monotonic time of this record.
    pub at_ns: u64,
    /// Which flow.
    pub key: FlowKey,
    /// Its final counters; zero in [`flow_kind::RELEASE`].
    pub state: FlowState,
}

/// What the kernel remembers with a UDP socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramSocket {
    /// Who made it, or has it.
    pub owner: SocketOwner,
    /// Its first flow.
    pub first: FlowKey,
    /// 0 no flow, 1 one, 2 several.
    pub flows: u32,
    /// 1 when it was released: what arrives still belongs to nobody.
    pub released: u32,
}

/// What the agent notes of an open flow beside the kernel's map, to have it after its own death. The kernel programs never
/// read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowNote {
    /// As [`FlowState::opened_ns`]: of which flow with this key.
    pub opened_ns: u64,
    /// Hash of the client's first datagram; 0 when there is none.
    pub client: u64,
    /// Hash of the server's.
    pub server: u64,
    /// Bits of the agent's own.
    pub flags: u64,
}

/// What the agent writes down about the datagram hooks when it attaches them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramMeta {
    /// Hash of the programs that are attached, their settings and their cgroup.
    pub attachment: u64,
    /// Monotonic time at which these hooks were first attached.
    pub attached_ns: u64,
    /// Added to a position in the name servers' ring to make it unique over all such rings.
    pub dns_ring_base: u64,
}

/// Head of a name server's packet in its ring; `captured` payload bytes follow it at once, then room that means nothing (the
/// record's length in the ring is one of a few sizes).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsPacket {
    /// One of [`direction`].
    pub direction: u8,
    /// IANA protocol number: 17 or 6.
    pub protocol: u8,
    /// Flags of the TCP segment (FIN 1, SYN 2, RST 4, PSH 8, ACK 16); 0 for UDP. Segments without payload are here
    /// when they carry SYN, FIN or RST, so that the stream's first byte is known: sequence number of the SYN plus one.
    pub tcp_flags: u8,
    /// 0.
    pub zero: u8,
    /// Payload bytes that follow: the smaller of `length` and [`DNS_SNAP_LEN`].
    pub captured: u16,
    /// Where several datagrams come as one (segmentation offload, UDP): bytes of each but the last; else 0.
    pub segment_bytes: u16,
    /// Payload bytes of the packet.
    pub length: u32,
    /// TCP: sequence number of the first payload byte (of the SYN, if it is one).
    pub sequence: u32,
    /// Kernel socket cookie.
    pub cookie: u64,
    /// Monotonic time.
    pub at_ns: u64,
    /// This end.
    pub local: Address,
    /// The other end.
    pub remote: Address,
    /// Port of this end, host order.
    pub local_port: u16,
    /// Port of the other end, host order.
    pub remote_port: u16,
    /// 0.
    pub zero2: u32,
    /// Whose socket it is. All zero for TCP: there the cookie tells, in the table of connections.
    pub owner: SocketOwner,
}

/// Payload bytes that the sizes of a [`DnsPacket`] record have room for.
pub const DNS_ROOM: [usize; 4] = [128, 512, 1_536, DNS_SNAP_LEN];

const _: () = {
    assert!(size_of::<FlowKey>() == 48);
    assert!(offset_of!(FlowKey, remote_port) == 40);
    assert!(size_of::<SocketOwner>() == 40);
    assert!(offset_of!(SocketOwner, comm) == 16);
    assert!(size_of::<FlowState>() == 96);
    assert!(offset_of!(FlowState, owner) == 48);
    assert!(offset_of!(FlowState, opened_by) == 88);
    assert!(size_of::<FlowFirst>() == 16 + 48 + 96 + SNAP_LEN);
    assert!(offset_of!(FlowFirst, key) == 16);
    assert!(offset_of!(FlowFirst, snap) == 160);
    assert!(size_of::<FlowEnd>() == 160);
    assert!(offset_of!(FlowEnd, state) == 64);
    assert!(size_of::<DatagramSocket>() == 96);
    assert!(size_of::<FlowNote>() == 32);
    assert!(size_of::<DatagramMeta>() == 24);
    assert!(size_of::<DnsPacket>() == 112);
    assert!(offset_of!(DnsPacket, cookie) == 16);
    assert!(offset_of!(DnsPacket, local) == 32);
    assert!(offset_of!(DnsPacket, owner) == 72);
};
