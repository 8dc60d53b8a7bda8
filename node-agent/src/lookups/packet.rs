//! Bytes of a record from the name servers' ring to what it says. Pure; the bytes may be of a program that is older than
//! this one.

use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use weft_agent_common::{DnsPacket, SocketOwner, direction};
use weft_wire::Protocol;

use crate::decode::OwnerKey;

/// Flags of TCP that say where a stream begins or ends.
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;

/// A packet of a name server or to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Sent by this end, else received.
    pub sent: bool,
    /// UDP or TCP.
    pub protocol: Protocol,
    /// Opens a TCP stream.
    pub syn: bool,
    /// Ends one.
    pub ends: bool,
    /// Bytes of each datagram but the last where several came as one; else 0.
    pub segment_bytes: u16,
    /// Payload bytes of the packet.
    pub length: u32,
    /// Sequence number of the first of them.
    pub sequence: u32,
    /// Kernel socket cookie.
    pub cookie: u64,
    /// Monotonic time.
    pub at_ns: u64,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Whose socket it is; `None` for TCP.
    pub owner: Option<OwnerKey>,
    /// Payload, as far as it was captured.
    pub payload: &'a [u8],
}

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Shorter than it says it is.
    #[error("a name server's packet with {0} bytes")]
    Length(usize),
    /// Not a direction, or not a protocol.
    #[error("a name server's packet of direction {0}, protocol {1}")]
    Kind(u8, u8),
}

/// Decodes one record.
pub fn decode(bytes: &[u8]) -> Result<Packet<'_>, PacketError> {
    let (head, rest) = bytes
        .split_at_checked(size_of::<DnsPacket>())
        .ok_or(PacketError::Length(bytes.len()))?;
    let captured = usize::from(short(head, offset_of!(DnsPacket, captured)));
    let payload = rest
        .get(..captured)
        .ok_or(PacketError::Length(bytes.len()))?;
    let way = head[offset_of!(DnsPacket, direction)];
    let number = head[offset_of!(DnsPacket, protocol)];
    let protocol = match number {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return Err(PacketError::Kind(way, number)),
    };
    if !matches!(way, direction::SENT | direction::RECEIVED) {
        return Err(PacketError::Kind(way, number));
    }
    let flags = head[offset_of!(DnsPacket, tcp_flags)];
    let address = |address: usize, port: usize| {
        let address = Ipv6Addr::from(array::<16>(head, address));
        SocketAddr::new(IpAddr::V6(address).to_canonical(), short(head, port))
    };
    Ok(Packet {
        sent: way == direction::SENT,
        protocol,
        syn: flags & SYN != 0,
        ends: flags & (FIN | RST) != 0,
        segment_bytes: short(head, offset_of!(DnsPacket, segment_bytes)),
        length: word(head, offset_of!(DnsPacket, length)).max(captured as u32),
        sequence: word(head, offset_of!(DnsPacket, sequence)),
        cookie: long(head, offset_of!(DnsPacket, cookie)),
        at_ns: long(head, offset_of!(DnsPacket, at_ns)),
        local: address(
            offset_of!(DnsPacket, local),
            offset_of!(DnsPacket, local_port),
        ),
        remote: address(
            offset_of!(DnsPacket, remote),
            offset_of!(DnsPacket, remote_port),
        ),
        owner: (protocol == Protocol::Udp).then(|| owner(head)),
        payload,
    })
}

impl<'a> Packet<'a> {
    /// The datagrams that came as one: what was captured of each, and its length.
    pub fn datagrams(&self) -> impl Iterator<Item = (&'a [u8], u32)> {
        let each = match u32::from(self.segment_bytes) {
            0 => self.length.max(1),
            bytes => bytes,
        };
        let (length, payload) = (self.length, self.payload);
        (0..length.div_ceil(each)).map(move |index| {
            let from = index * each;
            let length = each.min(length - from);
            let rest = payload.get(from as usize..).unwrap_or_default();
            (&rest[..rest.len().min(length as usize)], length)
        })
    }
}

fn owner(head: &[u8]) -> OwnerKey {
    let at = offset_of!(DnsPacket, owner);
    OwnerKey {
        pid: word(head, at + offset_of!(SocketOwner, pid)),
        uid: word(head, at + offset_of!(SocketOwner, uid)),
        comm: array(head, at + offset_of!(SocketOwner, comm)),
        cgroup: long(head, at + offset_of!(SocketOwner, cgroup)),
        netns: word(head, at + offset_of!(SocketOwner, netns)),
    }
}

/// Offsets are those of a type that the bytes were measured by.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn short(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(array(bytes, at))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(array(bytes, at))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(array(bytes, at))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record as the kernel writes it.
    #[derive(Clone, Copy)]
    pub struct Record<'a> {
        pub sent: bool,
        pub protocol: u8,
        pub flags: u8,
        pub sequence: u32,
        pub segment_bytes: u16,
        pub at_ns: u64,
        pub pid: u32,
        pub payload: &'a [u8],
        pub length: u32,
    }

    impl Record<'_> {
        pub fn bytes(&self) -> Vec<u8> {
            let mut bytes = vec![0; size_of::<DnsPacket>()];
            let mut put =
                |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
            put(
                offset_of!(DnsPacket, direction),
                &[if self.sent { 1 } else { 2 }],
            );
            put(offset_of!(DnsPacket, protocol), &[self.protocol]);
            put(offset_of!(DnsPacket, tcp_flags), &[self.flags]);
            put(
                offset_of!(DnsPacket, captured),
                &(self.payload.len() as u16).to_ne_bytes(),
            );
            put(
                offset_of!(DnsPacket, segment_bytes),
                &self.segment_bytes.to_ne_bytes(),
            );
            put(offset_of!(DnsPacket, length), &self.length.to_ne_bytes());
            put(
                offset_of!(DnsPacket, sequence),
                &self.sequence.to_ne_bytes(),
            );
            put(offset_of!(DnsPacket, cookie), &77_u64.to_ne_bytes());
            put(offset_of!(DnsPacket, at_ns), &self.at_ns.to_ne_bytes());
            for (at, last) in [
                (offset_of!(DnsPacket, local), 1),
                (offset_of!(DnsPacket, remote), 53),
            ] {
                put(
                    at,
                    &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last],
                );
            }
            put(offset_of!(DnsPacket, local_port), &40_000_u16.to_ne_bytes());
            put(offset_of!(DnsPacket, remote_port), &53_u16.to_ne_bytes());
            put(
                offset_of!(DnsPacket, owner) + offset_of!(SocketOwner, pid),
                &self.pid.to_ne_bytes(),
            );
            bytes.extend_from_slice(self.payload);
            bytes.extend([0xee; 9]);
            bytes
        }
    }

    #[test]
    fn a_packet_says_what_was_captured() {
        let record = Record {
            sent: true,
            protocol: 17,
            flags: 0,
            sequence: 0,
            segment_bytes: 0,
            at_ns: 5,
            pid: 9,
            payload: b"abcdefgh",
            length: 20,
        };
        let bytes = record.bytes();
        let packet = decode(&bytes).unwrap();
        assert_eq!(packet.remote, "10.0.0.53:53".parse().unwrap());
        assert_eq!(
            (packet.payload, packet.length, packet.cookie),
            (&b"abcdefgh"[..], 20, 77)
        );
        assert_eq!(packet.owner.map(|owner| owner.pid), Some(9));
        let whole: Vec<_> = packet.datagrams().collect();
        assert_eq!(whole, [(&b"abcdefgh"[..], 20)]);
        let several = Packet {
            segment_bytes: 6,
            length: 14,
            ..packet
        };
        let several: Vec<_> = several.datagrams().collect();
        assert_eq!(
            several,
            [(&b"abcdef"[..], 6), (&b"gh"[..], 6), (&b""[..], 2)]
        );
        assert_eq!(decode(&bytes[..115]), Err(PacketError::Length(115)));
        let tcp = Record {
            protocol: 6,
            flags: SYN,
            ..record
        }
        .bytes();
        let tcp = decode(&tcp).unwrap();
        assert!(tcp.syn && !tcp.ends && tcp.owner.is_none());
        assert_eq!(
            decode(
                &Record {
                    protocol: 1,
                    ..record
                }
                .bytes()
            ),
            Err(PacketError::Kind(1, 1))
        );
    }
}
