//! Where a packet goes and where its payload begins.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use core::arch::asm;
use core::ptr::{addr_of, read_volatile};
use weft_agent_common::{Address, FlowKey, direction};

use crate::Skip;

/// IANA protocol numbers.
pub const TCP: u8 = 6;
/// As above.
pub const UDP: u8 = 17;
/// Extension headers of IPv6 that may stand before the transport's: hop-by-hop options, routing, fragment, authentication,
/// destination options.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
/// Most extension headers passed over; a packet with more counts as unreadable.
const MAX_EXTENSIONS: u32 = 6;
/// Bytes of an IPv4 header without options, and of an IPv6 header.
const V4_LEN: u32 = 20;
const V6_LEN: u32 = 40;

/// A packet's transport header. As one number it goes from one kernel function to the next.
#[derive(Clone, Copy)]
pub struct Transport {
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Where it begins.
    pub offset: u16,
    /// Both ports.
    pub ports: Ports,
}

/// Ports in host order.
#[derive(Clone, Copy)]
pub struct Ports {
    /// The sender's.
    pub source: u16,
    /// The receiver's.
    pub destination: u16,
}

impl Transport {
    /// As one number, never below 2^48.
    #[inline(always)]
    pub fn pack(self) -> u64 {
        u64::from(self.protocol) << 48
            | u64::from(self.offset) << 32
            | u64::from(self.ports.source) << 16
            | u64::from(self.ports.destination)
    }

    /// What [`Transport::pack`] made.
    #[inline(always)]
    pub fn unpack(packed: u64) -> Self {
        Self {
            protocol: (packed >> 48) as u8,
            offset: (packed >> 32) as u16,
            ports: Ports {
                source: (packed >> 16) as u16,
                destination: packed as u16,
            },
        }
    }

    /// This end's port and the other's.
    #[inline(always)]
    fn ends(self, way: u8) -> (u16, u16) {
        let Ports {
            source,
            destination,
        } = self.ports;
        if way == direction::SENT {
            (source, destination)
        } else {
            (destination, source)
        }
    }
}

/// Finds it.
///
/// The kernel keeps network and transport header in the linear part of every packet that reaches these hooks.
#[inline(always)]
pub fn transport(skb: *mut __sk_buff) -> Result<Transport, Skip> {
    // SAFETY: the verifier checks every access to the context and the packet.
    unsafe {
        let data = read_volatile(addr_of!((*skb).data)) as usize;
        let end = read_volatile(addr_of!((*skb).data_end)) as usize;
        if data + V4_LEN as usize > end {
            return Err(Skip::Unreadable);
        }
        let first: u8 = at(data, 0);
        let (protocol, offset) = if first >> 4 == 4 {
            // All but the first fragment have no ports. (Fragments are whole again, or not yet made, where these hooks are;
            // only a process that writes its own headers can show one.)
            if at::<u16>(data, 6) & 0x1fff_u16.to_be() != 0 {
                return Err(Skip::NotOurs);
            }
            (at::<u8>(data, 9), u32::from(first & 15) << 2)
        } else {
            if data + V6_LEN as usize > end {
                return Err(Skip::Unreadable);
            }
            let next: u8 = at(data, 6);
            match next {
                HOP_BY_HOP | ROUTING | DESTINATION | AUTHENTICATION | FRAGMENT => {
                    return match weft_extended(skb, u32::from(next)) {
                        NOT_OURS => Err(Skip::NotOurs),
                        UNREADABLE => Err(Skip::Unreadable),
                        packed => Ok(Transport::unpack(packed)),
                    };
                }
                _ => (next, V6_LEN),
            }
        };
        if protocol != UDP && protocol != TCP {
            return Err(Skip::NotOurs);
        }
        let transport = data + offset as usize;
        if transport + 8 > end {
            return Err(Skip::Unreadable);
        }
        Ok(Transport {
            protocol,
            offset: offset as u16,
            ports: Ports {
                source: u16::from_be(at(transport, 0)),
                destination: u16::from_be(at(transport, 2)),
            },
        })
    }
}

/// Results of [`weft_extended`] that are no transport header.
const NOT_OURS: u64 = 0;
const UNREADABLE: u64 = 1;

/// The transport header behind IPv6 extension headers. A function that the verifier looks at by itself, once: its loop does not
/// multiply the paths through what calls it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_extended(skb: *mut __sk_buff, next: u32) -> u64 {
    match extended(skb, next as u8) {
        Ok(transport) => transport.pack(),
        Err(Skip::NotOurs) => NOT_OURS,
        Err(_) => UNREADABLE,
    }
}

#[inline(always)]
fn extended(skb: *mut __sk_buff, first: u8) -> Result<Transport, Skip> {
    let (mut next, mut offset) = (first, V6_LEN);
    for _ in 0..MAX_EXTENSIONS {
        let [following, length, high, low]: [u8; 4] = load(skb, offset)?;
        offset += match next {
            TCP | UDP => {
                return Ok(Transport {
                    protocol: next,
                    offset: offset as u16,
                    ports: Ports {
                        source: u16::from_be_bytes([following, length]),
                        destination: u16::from_be_bytes([high, low]),
                    },
                });
            }
            HOP_BY_HOP | ROUTING | DESTINATION => (u32::from(length) + 1) << 3,
            AUTHENTICATION => (u32::from(length) + 2) << 2,
            // All but the first fragment have no ports.
            FRAGMENT if u16::from_be_bytes([high, low]) & 0xfff8 == 0 => 8,
            _ => return Err(Skip::NotOurs),
        };
        next = following;
    }
    Err(Skip::Unreadable)
}

/// Some bytes of a packet, wherever they are in memory.
#[inline(always)]
pub fn load<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Result<[u8; N], Skip> {
    let mut bytes = [0_u8; N];
    // SAFETY: the helper checks the packet's length, the verifier that of the buffer.
    match unsafe { bpf_skb_load_bytes(skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) } {
        0 => Ok(bytes),
        _ => Err(Skip::Unreadable),
    }
}

/// Copies `length` bytes of a packet, at most `room`.
///
/// # Safety
/// `to` must be memory of `room` bytes that the verifier lets this program write.
#[inline(always)]
pub unsafe fn copy(skb: *mut __sk_buff, offset: u32, to: *mut u8, length: u32, room: u32) {
    let mut less = u64::from(length).wrapping_sub(1);
    // The compiler may know already what is asked below, and would leave it out; the verifier does not. And the one of 5.10
    // learns nothing from a comparison with zero: so the size less one is compared.
    // SAFETY: a register moved to itself.
    unsafe { asm!("{less} = {less}", less = inout(reg) less) };
    if less >= u64::from(room) {
        return;
    }
    let size = less + 1;
    // SAFETY: the caller's; the helper checks the packet's length.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast(), size as u32) };
}

/// The flow that a packet belongs to.
#[inline(always)]
pub fn key(skb: *mut __sk_buff, transport: Transport, way: u8) -> Result<FlowKey, Skip> {
    let (source, destination) = addresses(skb)?;
    let (local_port, remote_port) = transport.ends(way);
    let (local, remote) = if way == direction::SENT {
        (source, destination)
    } else {
        (destination, source)
    };
    Ok(FlowKey {
        // SAFETY: the helper checks the packet's socket.
        cookie: unsafe { bpf_get_socket_cookie(skb.cast()) },
        remote,
        local,
        remote_port,
        local_port,
        zero: 0,
    })
}

/// Sender and receiver.
#[inline(always)]
fn addresses(skb: *mut __sk_buff) -> Result<(Address, Address), Skip> {
    // SAFETY: the verifier checks every access to the context and the packet.
    unsafe {
        let data = read_volatile(addr_of!((*skb).data)) as usize;
        let end = read_volatile(addr_of!((*skb).data_end)) as usize;
        if data + V4_LEN as usize > end {
            return Err(Skip::Unreadable);
        }
        if at::<u8>(data, 0) >> 4 == 4 {
            return Ok((mapped(at(data, 12)), mapped(at(data, 16))));
        }
        if data + V6_LEN as usize > end {
            return Err(Skip::Unreadable);
        }
        Ok((words(data, 8), words(data, 24)))
    }
}

/// # Safety
/// The verifier must be able to see that so many bytes are there.
#[inline(always)]
unsafe fn at<T>(data: usize, offset: usize) -> T {
    // SAFETY: the caller's. Packets need not be aligned; the kernel knows how to read them on its machine.
    unsafe { read_volatile((data + offset) as *const T) }
}

/// # Safety
/// As [`at`].
#[inline(always)]
unsafe fn words(data: usize, offset: usize) -> Address {
    // SAFETY: the caller's.
    let words: [u32; 4] = unsafe {
        [
            at(data, offset),
            at(data, offset + 4),
            at(data, offset + 8),
            at(data, offset + 12),
        ]
    };
    // SAFETY: four words are sixteen bytes, and every bit pattern is a byte's.
    unsafe { core::mem::transmute::<[u32; 4], Address>(words) }
}

/// An IPv4 address as an IPv6 one.
#[inline(always)]
fn mapped(v4: u32) -> Address {
    // SAFETY: as in `words`.
    unsafe { core::mem::transmute::<[u32; 4], Address>([0, 0, 0xffff_u32.to_be(), v4]) }
}
