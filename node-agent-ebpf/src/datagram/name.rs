//! Packets of name servers, copied for the agent. Nothing is parsed here.

use aya_ebpf::bindings::{__sk_buff, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::bpf_get_socket_cookie;
use core::ptr::{addr_of, addr_of_mut, read_volatile};
use weft_agent_common::{DNS_ROOM, DNS_SNAP_LEN, DnsPacket, SocketOwner, datagram_counter};

use super::flow::Known;
use super::headers::{self, Headers};
use super::maps::{DNS_RING, count};
use super::{Datagram, now};
use crate::Skip;

/// FIN, SYN and RST.
const MARKS: u8 = 1 | 2 | 4;

/// A packet's part that is the same for both protocols.
struct Packet {
    way: u8,
    tcp_flags: u8,
    segment_bytes: u16,
    sequence: u32,
    offset: u32,
    length: u32,
}

/// A datagram.
#[inline(always)]
pub fn datagram(
    skb: *mut __sk_buff,
    headers: &Headers,
    datagram: &Datagram,
    way: u8,
    known: &Known,
) -> Result<(), Skip> {
    let packet = Packet {
        way,
        tcp_flags: 0,
        segment_bytes: datagram.segment as u16,
        sequence: 0,
        offset: datagram.offset,
        length: datagram.bytes,
    };
    copy(skb, headers, &packet, known)
}

/// A segment, if it carries payload or begins or ends the stream.
#[inline(always)]
pub fn segment(skb: *mut __sk_buff, headers: &Headers, way: u8) -> Result<(), Skip> {
    let fixed: [u8; 16] = headers::load(skb, headers.offset)?;
    let header = u32::from(fixed[12] >> 4) << 2;
    // SAFETY: the verifier checks every access to the context.
    let len = unsafe { read_volatile(addr_of!((*skb).len)) };
    let offset = headers.offset + header;
    let packet = Packet {
        way,
        tcp_flags: fixed[13],
        segment_bytes: 0,
        sequence: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        offset,
        length: len.saturating_sub(offset),
    };
    if packet.length == 0 && packet.tcp_flags & MARKS == 0 {
        return Err(Skip::NotOurs);
    }
    let known = Known {
        // SAFETY: the helper checks the packet's socket.
        cookie: unsafe { bpf_get_socket_cookie(skb.cast()) },
        at_ns: now(),
        owner: SocketOwner {
            cgroup: 0,
            pid: 0,
            uid: 0,
            comm: [0; 16],
            netns: 0,
            origin: 0,
        },
    };
    copy(skb, headers, &packet, &known)
}

/// Copies it into the smallest record that has room. (A record's size must be known to the verifier, and scratch memory would
/// be shared with whatever interrupts this program on its CPU.)
#[inline(always)]
fn copy(
    skb: *mut __sk_buff,
    headers: &Headers,
    packet: &Packet,
    known: &Known,
) -> Result<(), Skip> {
    if packet.length > DNS_SNAP_LEN as u32 {
        count(datagram_counter::DNS_CUT);
    }
    if packet.length <= DNS_ROOM[0] as u32 {
        fill::<{ DNS_ROOM[0] }>(skb, headers, packet, known)
    } else if packet.length <= DNS_ROOM[1] as u32 {
        fill::<{ DNS_ROOM[1] }>(skb, headers, packet, known)
    } else if packet.length <= DNS_ROOM[2] as u32 {
        fill::<{ DNS_ROOM[2] }>(skb, headers, packet, known)
    } else {
        fill::<{ DNS_ROOM[3] }>(skb, headers, packet, known)
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
    headers: &Headers,
    packet: &Packet,
    known: &Known,
) -> Result<(), Skip> {
    let Some(mut entry) = DNS_RING.reserve_untyped::<Roomy<ROOM>>(0) else {
        count(datagram_counter::DNS_RING_FULL);
        return Err(Skip::RingFull);
    };
    let record = entry.as_mut_ptr();
    let (local, local_port, remote, remote_port) = headers.ends(packet.way);
    let captured = packet.length.min(ROOM as u32);
    // SAFETY: memory of the ring, as large as the record, ours until it is submitted.
    unsafe {
        let head = addr_of_mut!((*record).head);
        (*head).direction = packet.way;
        (*head).protocol = headers.protocol;
        (*head).tcp_flags = packet.tcp_flags;
        (*head).zero = 0;
        (*head).captured = captured as u16;
        (*head).segment_bytes = packet.segment_bytes;
        (*head).length = packet.length;
        (*head).sequence = packet.sequence;
        (*head).cookie = known.cookie;
        (*head).at_ns = known.at_ns;
        (*head).local = local;
        (*head).remote = remote;
        (*head).local_port = local_port;
        (*head).remote_port = remote_port;
        (*head).zero2 = 0;
        (*head).owner = known.owner;
        let payload = addr_of_mut!((*record).payload);
        headers::copy(skb, packet.offset, payload.cast(), captured, ROOM as u32);
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    Ok(())
}
