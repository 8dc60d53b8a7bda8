//! Packets of name servers as the kernel's records have them.

use std::mem::offset_of;
use std::net::SocketAddr;

use weft_agent_common::{DnsPacket, SocketOwner};

/// A packet of a name server, as its record says.
#[derive(Debug)]
pub struct Packet {
    pub direction: u8,
    pub protocol: u8,
    pub tcp_flags: u8,
    pub length: u32,
    pub sequence: u32,
    pub cookie: u64,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub pid: u32,
    pub payload: Vec<u8>,
}

impl Packet {
    /// Reads one out of its record.
    pub fn read(bytes: &[u8]) -> Self {
        let array = |at: usize| -> [u8; 16] { bytes[at..at + 16].try_into().unwrap() };
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap());
        let captured = half(offset_of!(DnsPacket, captured)) as usize;
        let socket = weft_agent::decode::socket;
        Self {
            direction: bytes[offset_of!(DnsPacket, direction)],
            protocol: bytes[offset_of!(DnsPacket, protocol)],
            tcp_flags: bytes[offset_of!(DnsPacket, tcp_flags)],
            length: word(offset_of!(DnsPacket, length)),
            sequence: word(offset_of!(DnsPacket, sequence)),
            cookie: u64::from(word(offset_of!(DnsPacket, cookie)))
                | u64::from(word(offset_of!(DnsPacket, cookie) + 4)) << 32,
            local: socket(
                array(offset_of!(DnsPacket, local)),
                half(offset_of!(DnsPacket, local_port)),
            ),
            remote: socket(
                array(offset_of!(DnsPacket, remote)),
                half(offset_of!(DnsPacket, remote_port)),
            ),
            pid: word(offset_of!(DnsPacket, owner) + offset_of!(SocketOwner, pid)),
            payload: bytes[size_of::<DnsPacket>()..][..captured].to_vec(),
        }
    }
}

/// The checksum of a UDP datagram over IPv6 from an address to itself (RFC 8200, 8.1).
pub fn checksum(address: &[u8; 16], udp: &[u8]) -> u16 {
    let mut bytes = [&address[..], &address[..]].concat();
    bytes.extend((udp.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, 17]);
    bytes.extend(udp);
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
