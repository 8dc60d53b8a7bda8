//! Packets of name servers, copied for the agent. Nothing is parsed here.

use aya_ebpf::bindings::{__sk_buff, BPF_RB_NO_WAKEUP};
use core::ptr::{addr_of, addr_of_mut, read_volatile};
use weft_agent_common::{DNS_ROOM, DNS_SNAP_LEN, DnsPacket, FlowKey, datagram_counter};

use super::headers::{self, Transport};
use super::maps::{DNS_RING, FLOWS, count};
use super::{Datagram, NOBODY, now};
use crate::Skip;

/// FIN, SYN and RST.
const MARKS: u8 = 1 | 2 | 4;

/// What differs between the two protocols.
struct Packet {
    way: u8,
    protocol: u8,
    tcp_flags: u8,
    segment_bytes: u16,
    sequence: u32,
    /// Where the payload begins, and its bytes.
    offset: u32,
    length: u32,
}

/// Copies a datagram, or a segment if it carries payload or begins or ends the stream.
#[inline(always)]
pub fn packet(skb: *mut __sk_buff, transport: Transport, way: u8) -> Result<(), Skip> {
    let packet = if transport.protocol == headers::UDP {
        let datagram = Datagram::of(skb, transport);
        Packet {
            way,
            protocol: headers::UDP,
            tcp_flags: 0,
            segment_bytes: datagram.segment as u16,
            sequence: 0,
            offset: datagram.offset,
            length: datagram.bytes,
        }
    } else {
        segment(skb, transport, way)?
    };
    let key = headers::key(skb, transport, way)?;
    copy(skb, &key, &packet)
}

#[inline(always)]
fn segment(skb: *mut __sk_buff, transport: Transport, way: u8) -> Result<Packet, Skip> {
    let fixed: [u8; 16] = headers::load(skb, u32::from(transport.offset))?;
    let offset = u32::from(transport.offset) + (u32::from(fixed[12] >> 4) << 2);
    // SAFETY: the verifier checks every access to the context.
    let len = unsafe { read_volatile(addr_of!((*skb).len)) };
    let packet = Packet {
        way,
        protocol: headers::TCP,
        tcp_flags: fixed[13],
        segment_bytes: 0,
        sequence: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        offset,
        length: len.saturating_sub(offset),
    };
    if packet.length == 0 && packet.tcp_flags & MARKS == 0 {
        return Err(Skip::NotOurs);
    }
    Ok(packet)
}

/// Copies it into the smallest record that has room. (A record's size must be known to the verifier, and scratch memory would
/// be shared with whatever interrupts this program on its CPU.)
#[inline(always)]
fn copy(skb: *mut __sk_buff, key: &FlowKey, packet: &Packet) -> Result<(), Skip> {
    if packet.length > DNS_SNAP_LEN as u32 {
        count(datagram_counter::DNS_CUT);
    }
    if packet.length <= DNS_ROOM[0] as u32 {
        fill::<{ DNS_ROOM[0] }>(skb, key, packet)
    } else if packet.length <= DNS_ROOM[1] as u32 {
        fill::<{ DNS_ROOM[1] }>(skb, key, packet)
    } else if packet.length <= DNS_ROOM[2] as u32 {
        fill::<{ DNS_ROOM[2] }>(skb, key, packet)
    } else {
        fill::<{ DNS_ROOM[3] }>(skb, key, packet)
    }
}

/// A packet with its room.
#[repr(C)]
struct Roomy<const ROOM: usize> {
    head: DnsPacket,
    payload: [u8; ROOM],
}

#[inline(always)]
fn fill<const ROOM: usize>(
    skb: *mut __sk_buff,
    key: &FlowKey,
    packet: &Packet,
) -> Result<(), Skip> {
    let Some(mut entry) = DNS_RING.reserve_untyped::<Roomy<ROOM>>(0) else {
        count(datagram_counter::DNS_RING_FULL);
        return Err(Skip::RingFull);
    };
    let record = entry.as_mut_ptr();
    let captured = packet.length.min(ROOM as u32);
    // SAFETY: memory of the ring, as large as the record, ours until it is submitted.
    unsafe {
        let head = addr_of_mut!((*record).head);
        (*head).direction = packet.way;
        (*head).protocol = packet.protocol;
        (*head).tcp_flags = packet.tcp_flags;
        (*head).zero = 0;
        (*head).captured = captured as u16;
        (*head).segment_bytes = packet.segment_bytes;
        (*head).length = packet.length;
        (*head).sequence = packet.sequence;
        (*head).cookie = key.cookie;
        (*head).at_ns = now();
        (*head).local = key.local;
        (*head).remote = key.remote;
        (*head).local_port = key.local_port;
        (*head).remote_port = key.remote_port;
        (*head).zero2 = 0;
        // Of a stream the cookie tells whose it is.
        (*head).owner = match FLOWS.get_ptr(key) {
            Some(state) if packet.protocol == headers::UDP => (*state).owner,
            _ => NOBODY,
        };
        let payload = addr_of_mut!((*record).payload);
        headers::copy(skb, packet.offset, payload.cast(), captured, ROOM as u32);
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    Ok(())
}
