//! Where a packet goes and where its payload begins.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use core::arch::asm;
use core::ptr::{addr_of, read_volatile};
use weft_agent_common::{Address, direction};

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

/// A packet's two ends and its transport header.
pub struct Headers {
    /// Sender.
    pub source: Address,
    /// Receiver.
    pub destination: Address,
    /// Both ports.
    pub ports: Ports,
    /// Transport protocol.
    pub protocol: u8,
    /// Where its header begins.
    pub offset: u32,
}

/// Ports in host order.
#[derive(Clone, Copy)]
pub struct Ports {
    /// The sender's.
    pub source: u16,
    /// The receiver's.
    pub destination: u16,
}

/// Reads them. `wanted` says whether a TCP packet with these ports is of interest: the others leave here.
///
/// The kernel keeps network and transport header in the linear part of every packet that reaches these hooks.
#[inline(always)]
pub fn read(skb: *mut __sk_buff, wanted: impl Fn(Ports) -> bool) -> Result<Headers, Skip> {
    // SAFETY: the verifier checks every access to the context and the packet.
    unsafe {
        let data = read_volatile(addr_of!((*skb).data)) as usize;
        let end = read_volatile(addr_of!((*skb).data_end)) as usize;
        if data + V4_LEN as usize > end {
            return Err(Skip::Unreadable);
        }
        let first: u8 = at(data, 0);
        if first >> 4 == 4 {
            let protocol: u8 = at(data, 9);
            if protocol != UDP && protocol != TCP {
                return Err(Skip::NotOurs);
            }
            let offset = u32::from(first & 15) << 2;
            let ports = ports(data, end, offset)?;
            if protocol == TCP && !wanted(ports) {
                return Err(Skip::NotOurs);
            }
            // All but the first fragment have no ports. (Fragments are whole again, or not yet made, where these hooks are;
            // only a process that writes its own headers can show one.)
            if at::<u16>(data, 6) & 0x1fff_u16.to_be() != 0 {
                return Err(Skip::NotOurs);
            }
            Ok(Headers {
                source: mapped(at(data, 12)),
                destination: mapped(at(data, 16)),
                ports,
                protocol,
                offset,
            })
        } else {
            if data + V6_LEN as usize > end {
                return Err(Skip::Unreadable);
            }
            let next: u8 = at(data, 6);
            let (source, destination) = (words(data, 8), words(data, 24));
            let (protocol, offset, ports) = if next == UDP || next == TCP {
                (next, V6_LEN, ports(data, end, V6_LEN)?)
            } else {
                extended(skb, next)?
            };
            if protocol == TCP && !wanted(ports) {
                return Err(Skip::NotOurs);
            }
            Ok(Headers {
                source,
                destination,
                ports,
                protocol,
                offset,
            })
        }
    }
}

/// Ports behind IPv6 extension headers.
#[inline(always)]
fn extended(skb: *mut __sk_buff, first: u8) -> Result<(u8, u32, Ports), Skip> {
    let (mut next, mut offset) = (first, V6_LEN);
    for _ in 0..MAX_EXTENSIONS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION | AUTHENTICATION | FRAGMENT => {}
            TCP | UDP => {
                let [a, b, c, d]: [u8; 4] = load(skb, offset)?;
                let ports = Ports {
                    source: u16::from_be_bytes([a, b]),
                    destination: u16::from_be_bytes([c, d]),
                };
                return Ok((next, offset, ports));
            }
            _ => return Err(Skip::NotOurs),
        }
        let [following, length, high, low]: [u8; 4] = load(skb, offset)?;
        let later_fragment = u16::from_be_bytes([high, low]) & 0xfff8 != 0;
        if next == FRAGMENT && later_fragment {
            return Err(Skip::NotOurs);
        }
        offset += match next {
            FRAGMENT => 8,
            AUTHENTICATION => (u32::from(length) + 2) << 2,
            _ => (u32::from(length) + 1) << 3,
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

/// # Safety
/// `data` and `end` must be the packet's own, from its context.
#[inline(always)]
unsafe fn ports(data: usize, end: usize, offset: u32) -> Result<Ports, Skip> {
    let transport = data + offset as usize;
    if transport + 8 > end {
        return Err(Skip::Unreadable);
    }
    // SAFETY: the caller's; the verifier checks every access.
    let (source, destination) = unsafe { (at::<u16>(transport, 0), at::<u16>(transport, 2)) };
    Ok(Ports {
        source: u16::from_be(source),
        destination: u16::from_be(destination),
    })
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

impl Headers {
    /// This end and the other: addresses and ports.
    #[inline(always)]
    pub fn ends(&self, way: u8) -> (Address, u16, Address, u16) {
        let Self {
            source,
            destination,
            ports,
            ..
        } = self;
        if way == direction::SENT {
            (*source, ports.source, *destination, ports.destination)
        } else {
            (*destination, ports.destination, *source, ports.source)
        }
    }
}
