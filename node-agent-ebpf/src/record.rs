//! Reading a socket and writing the record.

use aya_ebpf::bindings::{BPF_RB_NO_WAKEUP, bpf_sock_ops};
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::programs::SockOpsContext;
use core::ffi::c_void;
use core::ptr::{addr_of, read_volatile};
use weft_agent_common::{Address, Connection, ListenerKey, Record, counter};

use crate::maps::{RING, count};
use crate::{
    OFFSET_NET_INUM, OFFSET_SK_ERR, OFFSET_SK_FLAGS, OFFSET_SKC_NET, OFFSET_WRITE_SEQ, Skip,
};

/// `AF_INET`.
const INET: u32 = 2;
/// Bit of `SOCK_DEAD` in `sk_flags`: the process let go of the socket.
const SOCK_DEAD: u64 = 1 << 0;
/// Bit of `SOCK_DONE` in `sk_flags`: set when the peer's FIN was received in order, and by nothing else.
const SOCK_DONE: u64 = 1 << 1;
/// TCP states in which this end has sent or queued a FIN: FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING.
const FIN_SENT: u32 = 1 << 4 | 1 << 5 | 1 << 9 | 1 << 11;
/// TCP states in which the peer's FIN was certainly received: CLOSE_WAIT, LAST_ACK, CLOSING.
const FIN_RECEIVED: u32 = 1 << 8 | 1 << 9 | 1 << 11;

/// What is counted on a socket, SYN and FIN taken out.
pub struct Counters {
    bytes_sent: u64,
    bytes_received: u64,
    error: u32,
    /// No process has the socket any more; assumed where BTF does not show it.
    pub orphan: bool,
}

impl Counters {
    /// Reads them. `tcp_state` is the state before the change, where this is about a change. An accepted socket starts counting
    /// after its SYN, a connecting one before.
    #[inline(always)]
    pub fn read(ctx: &SockOpsContext, sk: *mut c_void, passive: bool, tcp_state: u32) -> Self {
        let ops = ctx.ops;
        // SAFETY: the verifier checks every access to the context.
        let (acked, received, una, snd_nxt) = unsafe {
            (
                (*ops).bytes_acked,
                (*ops).bytes_received,
                (*ops).snd_una,
                (*ops).snd_nxt,
            )
        };
        let hidden = Hidden::read(sk);
        let in_states = |set: u32| set >> (tcp_state & 31) & 1 == 1;
        let sent_end = if hidden.known {
            hidden.write_seq
        } else {
            snd_nxt
        };
        let fin_acked = in_states(FIN_SENT) && una == sent_end;
        let fin_received = if hidden.known {
            hidden.flags & SOCK_DONE != 0
        } else {
            in_states(FIN_RECEIVED)
        };
        Self {
            bytes_sent: acked.saturating_sub(u64::from(!passive) + u64::from(fin_acked)),
            bytes_received: received.saturating_sub(u64::from(fin_received)),
            error: hidden.error,
            orphan: !hidden.known || hidden.flags & SOCK_DEAD != 0,
        }
    }
}

/// Both initial sequence numbers, own first, of an established connection.
///
/// The kernel's byte counters grow with every acknowledged sequence number and the initial ones never move, so
/// `snd_una - bytes_acked` is the initial sequence number at any moment, whatever a fast open put into the SYN.
#[inline(always)]
pub fn initial_sequence_numbers(ctx: &SockOpsContext, passive: bool) -> (u32, u32) {
    let ops = ctx.ops;
    // SAFETY: the verifier checks every access to the context.
    let (acked, received, una, rcv_nxt) = unsafe {
        (
            (*ops).bytes_acked,
            (*ops).bytes_received,
            (*ops).snd_una,
            (*ops).rcv_nxt,
        )
    };
    (
        una.wrapping_sub(acked as u32)
            .wrapping_sub(u32::from(passive)),
        rcv_nxt.wrapping_sub(received as u32).wrapping_sub(1),
    )
}

/// Fields that only BTF shows.
struct Hidden {
    known: bool,
    write_seq: u32,
    flags: u64,
    error: u32,
}

impl Hidden {
    #[inline(always)]
    fn read(sk: *mut c_void) -> Self {
        let unknown = Self {
            known: false,
            write_seq: 0,
            flags: 0,
            error: 0,
        };
        if OFFSET_WRITE_SEQ.load() == 0 {
            return unknown;
        }
        // SAFETY: the helper checks the socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk) }.cast::<u8>();
        if tcp.is_null() {
            return unknown;
        }
        // SAFETY: a trusted kernel pointer at offsets of the running kernel's own BTF; the verifier checks both.
        unsafe {
            Self {
                known: true,
                write_seq: read_volatile(tcp.add(OFFSET_WRITE_SEQ.load() as usize).cast()),
                flags: read_volatile(tcp.add(OFFSET_SK_FLAGS.load() as usize).cast()),
                error: read_volatile(tcp.add(OFFSET_SK_ERR.load() as usize).cast()),
            }
        }
    }
}

/// Inode of a socket's network namespace; 0 without BTF.
#[inline(always)]
pub fn netns(sk: *mut c_void) -> u32 {
    if OFFSET_NET_INUM.load() == 0 {
        return 0;
    }
    // SAFETY: the helper checks the socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk) }.cast::<u8>();
    if tcp.is_null() {
        return 0;
    }
    // SAFETY: a trusted kernel pointer at offsets of the running kernel's own BTF; the verifier checks both, and a
    // socket holds its namespace.
    unsafe {
        let net: *const u8 = read_volatile(tcp.add(OFFSET_SKC_NET.load() as usize).cast());
        if net.is_null() {
            return 0;
        }
        read_volatile(net.add(OFFSET_NET_INUM.load() as usize).cast())
    }
}

/// The full socket of a callback.
#[inline(always)]
pub fn socket(ctx: &SockOpsContext) -> Result<*mut c_void, Skip> {
    // SAFETY: the verifier checks every access to the context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        Err(Skip::NoSocket)
    } else {
        Ok(sk.cast())
    }
}

/// A socket's cookie.
#[inline(always)]
pub fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper checks the context.
    unsafe { bpf_get_socket_cookie(ctx.ops.cast()) }
}

/// Where a listener listens, or an accepted socket was accepted if its listener has an address.
#[inline(always)]
pub fn listener_key(ctx: &SockOpsContext, netns: u32) -> ListenerKey {
    let ops = ctx.ops;
    // SAFETY: the verifier checks every access to the context. All fields are read before any choice, as in `Tuple`.
    unsafe {
        let family = read_volatile(addr_of!((*ops).family));
        let local4 = read_volatile(addr_of!((*ops).local_ip4));
        let local6 = words(addr_of!((*ops).local_ip6).cast());
        let port = read_volatile(addr_of!((*ops).local_port));
        let any = family == INET && local4 == 0;
        let address = if any {
            [0; 16]
        } else {
            address(family, local4, local6)
        };
        ListenerKey {
            address,
            netns,
            port: port as u16,
            family: family as u16,
        }
    }
}

/// Both ends of a connection as the context shows them.
pub struct Tuple {
    /// This end.
    pub local: Address,
    /// The other.
    pub remote: Address,
    /// Port of this end.
    pub local_port: u16,
    /// Port of the other.
    pub remote_port: u16,
}

impl Tuple {
    /// Every field is read before any choice between them: of two branches that each read one, the compiler makes one
    /// read at a variable offset, and the verifier allows no such thing on a context.
    #[inline(always)]
    pub fn read(ops: *mut bpf_sock_ops) -> Self {
        // SAFETY: the verifier checks every access to the context.
        unsafe {
            let family = read_volatile(addr_of!((*ops).family));
            let local4 = read_volatile(addr_of!((*ops).local_ip4));
            let remote4 = read_volatile(addr_of!((*ops).remote_ip4));
            let local6 = words(addr_of!((*ops).local_ip6).cast());
            let remote6 = words(addr_of!((*ops).remote_ip6).cast());
            let local_port = read_volatile(addr_of!((*ops).local_port));
            let remote_port = read_volatile(addr_of!((*ops).remote_port));
            Self {
                local: address(family, local4, local6),
                remote: address(family, remote4, remote6),
                local_port: local_port as u16,
                remote_port: u32::from_be(remote_port) as u16,
            }
        }
    }
}

/// Four words of the context, each read on its own: the context takes no wider access.
///
/// # Safety
/// `at` must point at an address field of the context.
#[inline(always)]
unsafe fn words(at: *const u32) -> [u32; 4] {
    // SAFETY: the caller's; the verifier checks every access.
    unsafe {
        [
            read_volatile(at),
            read_volatile(at.add(1)),
            read_volatile(at.add(2)),
            read_volatile(at.add(3)),
        ]
    }
}

/// An address in network order, IPv4 mapped into IPv6. The context's words are in network order already.
#[inline(always)]
fn address(family: u32, v4: u32, v6: [u32; 4]) -> Address {
    let words = if family == INET {
        [0, 0, 0xffff_u32.to_be(), v4]
    } else {
        v6
    };
    // SAFETY: four words are sixteen bytes, and every bit pattern is a byte's.
    unsafe { core::mem::transmute::<[u32; 4], Address>(words) }
}

/// A record that was written and that nobody sees before [`Written::submit`].
pub struct Written(RingBufEntry<Record>);

impl Written {
    /// Hands it to the agent, which looks by its own clock: nobody is woken.
    #[inline(always)]
    pub fn submit(self) {
        self.0.submit(u64::from(BPF_RB_NO_WAKEUP));
    }
}

/// Writes a record into the ring; counts it where there is no room.
#[inline(always)]
pub fn write(
    ctx: &SockOpsContext,
    connection: &Connection,
    cookie: u64,
    kind: u8,
    at_ns: u64,
    counters: Counters,
) -> Result<Written, Skip> {
    let ops = ctx.ops;
    // SAFETY: the verifier checks every access to the context.
    let (packets_sent, packets_received, srtt, retransmits) = unsafe {
        (
            (*ops).segs_out,
            (*ops).segs_in,
            (*ops).srtt_us,
            (*ops).total_retrans,
        )
    };
    let Some(mut entry) = RING.reserve(0) else {
        count(counter::RING_FULL);
        return Err(Skip::RingFull);
    };
    let state = &connection.state;
    entry.write(Record {
        kind,
        role: state.role,
        generation: state.generation,
        error: counters.error,
        cookie,
        at_ns,
        opened_ns: state.opened_ns,
        bytes_sent: counters.bytes_sent,
        bytes_received: counters.bytes_received,
        cgroup: state.cgroup,
        local: connection.local,
        remote: connection.remote,
        local_port: connection.local_port,
        remote_port: connection.remote_port,
        netns: state.netns,
        isn_local: connection.isn_local,
        isn_remote: connection.isn_remote,
        packets_sent,
        packets_received,
        rtt_us: srtt >> 3,
        retransmits,
        pid: state.pid,
        uid: state.uid,
        comm: state.comm,
    });
    Ok(Written(entry))
}
