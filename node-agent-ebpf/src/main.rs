//! The kernel side of the Weft agent: observes TCP sockets, never decides.
//!
//! Two programs, both on cgroup v2. `sock_create` notes who made a socket; `sock_ops` follows it from connect or
//! listen to its end. A short connection costs one ring record, never a wake-up, and nothing for each packet but the
//! round-trip callback's comparison of two times. What stays open the agent finds where connections are kept.
//!
//! Entry points only translate: each calls one fallible function and lets the traffic pass whatever it says.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod datagram;
mod maps;
mod owner;
mod places;
mod record;
mod socket;

use aya_ebpf::Global;
use aya_ebpf::macros::{cgroup_skb, cgroup_sock, sock_ops};
use aya_ebpf::programs::{SkBuffContext, SockContext, SockOpsContext};
use weft_agent_common::{PORT_SET_WORDS, direction};

/// Nanoseconds between two updates of a connection that stays open.
#[unsafe(no_mangle)]
static UPDATE_INTERVAL_NS: Global<u64> = Global::new(10_000_000_000);

/// Whether `sock_ops` may ask for the current process (kernel 6.16). Where it may not, a connection belongs to the
/// process that created its socket.
#[unsafe(no_mangle)]
static CURRENT_IN_SOCK_OPS: Global<u8> = Global::new(0);

/// Number of places for connections less one.
#[unsafe(no_mangle)]
static PLACE_MASK: Global<u32> = Global::new(0);

/// Byte offsets of kernel fields, from the running kernel's BTF; all 0 where it has none. One global each: the
/// verifier must see every one of them as a constant, and it does not follow constants through a struct on the stack.
#[unsafe(no_mangle)]
static OFFSET_WRITE_SEQ: Global<u32> = Global::new(0);
/// `sock_common.skc_flags`.
#[unsafe(no_mangle)]
static OFFSET_SK_FLAGS: Global<u32> = Global::new(0);
/// `sock.sk_err`.
#[unsafe(no_mangle)]
static OFFSET_SK_ERR: Global<u32> = Global::new(0);
/// `sock_common.skc_net`.
#[unsafe(no_mangle)]
static OFFSET_SKC_NET: Global<u32> = Global::new(0);
/// `net.ns.inum`.
#[unsafe(no_mangle)]
static OFFSET_NET_INUM: Global<u32> = Global::new(0);

/// `task_struct.tgid`.
#[unsafe(no_mangle)]
static OFFSET_TASK_TGID: Global<u32> = Global::new(0);
/// `task_struct.comm`.
#[unsafe(no_mangle)]
static OFFSET_TASK_COMM: Global<u32> = Global::new(0);
/// `task_struct.group_leader`.
#[unsafe(no_mangle)]
static OFFSET_TASK_LEADER: Global<u32> = Global::new(0);
/// `task_struct.cred`.
#[unsafe(no_mangle)]
static OFFSET_TASK_CRED: Global<u32> = Global::new(0);
/// `cred.uid`.
#[unsafe(no_mangle)]
static OFFSET_CRED_UID: Global<u32> = Global::new(0);

/// How the packet programs learn who is sending: 0 not at all (the socket's creator is named), 1 by the helpers for the
/// current process (kernel 6.16), 2 by the task's fields.
#[unsafe(no_mangle)]
static CURRENT_IN_SKB: Global<u8> = Global::new(0);

/// Nanoseconds without a datagram after which the next one begins another flow.
#[unsafe(no_mangle)]
static FLOW_IDLE_NS: Global<u64> = Global::new(60_000_000_000);
/// The same for a flow with a name server of at most one datagram each way.
#[unsafe(no_mangle)]
static DNS_IDLE_NS: Global<u64> = Global::new(10_000_000_000);
/// A bit for each port whose packets are copied whole.
#[unsafe(no_mangle)]
static DNS_PORTS: Global<[u32; PORT_SET_WORDS]> = Global::new([0; PORT_SET_WORDS]);

/// The verdict with which a cgroup program lets everything pass.
const PASS: u32 = 1;

#[cgroup_sock(sock_create)]
pub fn weft_create(ctx: SockContext) -> i32 {
    let _ = socket::created(&ctx);
    PASS as i32
}

#[sock_ops]
pub fn weft_ops(ctx: SockOpsContext) -> u32 {
    let _ = socket::event::<true>(&ctx);
    PASS
}

/// The same for kernels without compare-and-exchange (before 5.12), which refuse a program that holds one. Every connection is
/// in the hash map.
#[sock_ops]
pub fn weft_hashed_ops(ctx: SockOpsContext) -> u32 {
    let _ = socket::event::<false>(&ctx);
    PASS
}

#[cgroup_skb(egress)]
pub fn weft_egress(ctx: SkBuffContext) -> i32 {
    let _ = datagram::packet(&ctx, direction::SENT);
    PASS as i32
}

#[cgroup_skb(ingress)]
pub fn weft_ingress(ctx: SkBuffContext) -> i32 {
    let _ = datagram::packet(&ctx, direction::RECEIVED);
    PASS as i32
}

#[cgroup_sock(sock_create)]
pub fn weft_udp_create(ctx: SockContext) -> i32 {
    let _ = datagram::created(&ctx);
    PASS as i32
}

#[cgroup_sock(sock_release)]
pub fn weft_udp_release(ctx: SockContext) -> i32 {
    let _ = datagram::released(&ctx);
    PASS as i32
}

/// Why an event was not recorded. Nothing reads it but the verifier and a person: what matters is counted.
#[derive(Clone, Copy)]
pub enum Skip {
    /// Not one of ours: another protocol, another callback.
    NotOurs,
    /// A packet's headers could not be read (counted).
    Unreadable,
    /// The callback carries no full socket.
    NoSocket,
    /// The socket has no state, because it is older than the hooks or there was no memory (counted then).
    NoState,
    /// The ring is full (counted).
    RingFull,
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
