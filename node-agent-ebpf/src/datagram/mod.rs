//! Datagrams: UDP flows are counted, the first datagram each way is shown to the agent, and what goes to or comes from a
//! name server's port is copied whole.
//!
//! Two programs see every packet of the cgroup's sockets, one each way. TCP leaves them after a look at its ports.

mod flow;
mod headers;
mod maps;
mod name;
mod owner;

use aya_ebpf::bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::programs::{SkBuffContext, SockContext};
use core::ffi::c_void;
use core::ptr::{addr_of, from_ref, null_mut, read_volatile};
use weft_agent_common::{DatagramSocket, SocketOwner, datagram_counter, socket_origin};

use self::headers::{Ports, Transport};
use self::maps::{DATAGRAM_SOCKETS, count};
use crate::{DNS_PORTS, Skip};

/// `SOCK_DGRAM`.
const DGRAM: u32 = 2;
/// `SOCK_RAW`: who makes its own packets may make datagrams too.
const RAW: u32 = 3;
/// An owner that is not known.
const NOBODY: SocketOwner = SocketOwner {
    cgroup: 0,
    pid: 0,
    uid: 0,
    comm: [0; 16],
    netns: 0,
    origin: 0,
};
/// Bytes of a UDP header.
const UDP_HEADER: u32 = 8;

/// A packet on its way out of a socket or into it.
#[inline(always)]
pub fn packet(ctx: &SkBuffContext, way: u8) -> Result<(), Skip> {
    let skb = ctx.skb.skb;
    let transport = headers::transport(skb).inspect_err(|skip| {
        if matches!(skip, Skip::Unreadable) {
            count(datagram_counter::UNREADABLE);
        }
    })?;
    let dns = is_dns(transport.ports);
    let (way, packed) = (u32::from(way), transport.pack());
    if transport.protocol == headers::TCP {
        if dns {
            weft_name(skb, way, packed);
        }
    } else if weft_datagram(skb, way, packed) != 0 && dns {
        weft_name(skb, way, packed);
    }
    Ok(())
}

/// A datagram; 0 when it is no flow's. A function that the verifier looks at by itself, as it does at the next: what it knows of
/// a packet on one of many paths does not multiply the paths through what comes after.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_datagram(skb: *mut __sk_buff, way: u32, transport: u64) -> u64 {
    u64::from(flow::datagram(skb, Transport::unpack(transport), way as u8).is_ok())
}

/// A packet to or from a name server.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_name(skb: *mut __sk_buff, way: u32, transport: u64) -> u64 {
    u64::from(name::packet(skb, Transport::unpack(transport), way as u8).is_ok())
}

/// Sizes of a datagram, or of several that travel as one packet through this kernel (segmentation offload).
struct Datagram {
    /// Where the payload begins.
    offset: u32,
    /// Payload bytes.
    bytes: u32,
    /// Bytes of each but the last; 0 when it is one.
    segment: u32,
    /// How many.
    count: u32,
}

impl Datagram {
    #[inline(always)]
    fn of(skb: *mut __sk_buff, transport: Transport) -> Self {
        // SAFETY: the verifier checks every access to the context.
        let (len, segment, segments) = unsafe {
            (
                read_volatile(addr_of!((*skb).len)),
                read_volatile(addr_of!((*skb).gso_size)),
                read_volatile(addr_of!((*skb).gso_segs)),
            )
        };
        let offset = u32::from(transport.offset) + UDP_HEADER;
        let bytes = len.saturating_sub(offset);
        let count = match (segment, segments) {
            (0, _) => 1,
            // A packet from a virtual machine may come without their number.
            (_, 0) => bytes.div_ceil(segment),
            (_, known) => known,
        };
        Self {
            offset,
            bytes,
            segment,
            count,
        }
    }

    /// Payload bytes of the first.
    #[inline(always)]
    fn first(&self) -> u32 {
        if self.segment != 0 && self.segment < self.bytes {
            self.segment
        } else {
            self.bytes
        }
    }
}

/// Whether a port is a name server's.
#[inline(always)]
fn is_dns(ports: Ports) -> bool {
    let words = from_ref(&DNS_PORTS).cast::<u32>();
    let has = |port: u16| {
        // SAFETY: 65,536 bits, one for each port.
        let word = unsafe { read_volatile(words.add(usize::from(port >> 5))) };
        word >> (port & 31) & 1 != 0
    };
    has(ports.destination) || has(ports.source)
}

/// TCP's sockets leave here.
#[inline(always)]
fn sends_datagrams(ctx: &SockContext) -> Result<(), Skip> {
    // SAFETY: the verifier checks every access to the context.
    match unsafe { (*ctx.sock).type_ } {
        DGRAM | RAW => Ok(()),
        _ => Err(Skip::NotOurs),
    }
}

/// A socket was created: remember by whom.
#[inline(always)]
pub fn created(ctx: &SockContext) -> Result<(), Skip> {
    sends_datagrams(ctx)?;
    let sk = ctx.sock.cast();
    let socket = storage(sk, true)?;
    owner::write_current(&mut socket.owner);
    socket.owner.netns = owner::netns(sk);
    socket.owner.origin = socket_origin::CREATED;
    Ok(())
}

/// A socket is let go of: its flows end.
#[inline(always)]
pub fn released(ctx: &SockContext) -> Result<(), Skip> {
    sends_datagrams(ctx)?;
    let socket = storage(ctx.sock.cast(), false)?;
    socket.released = 1;
    flow::released(socket)
}

/// What is remembered with a socket; made when `create` says so and there is nothing.
#[inline(always)]
fn storage(sk: *mut c_void, create: bool) -> Result<&'static mut DatagramSocket, Skip> {
    let flags = if create {
        u64::from(BPF_SK_STORAGE_GET_F_CREATE)
    } else {
        0
    };
    // SAFETY: the helper checks the map and the socket; its pointer stays valid until the program returns, and the kernel
    // zeroes what it makes.
    unsafe {
        let found = bpf_sk_storage_get(
            from_ref(&DATAGRAM_SOCKETS).cast_mut().cast(),
            sk,
            null_mut(),
            flags,
        );
        match found.cast::<DatagramSocket>().as_mut() {
            Some(socket) => Ok(socket),
            None => {
                if create {
                    count(datagram_counter::NO_STORAGE);
                }
                Err(Skip::NoState)
            }
        }
    }
}

/// Monotonic time.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing and returns a number.
    unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() }
}
