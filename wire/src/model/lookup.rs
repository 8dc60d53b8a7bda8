//! DNS lookups as an agent sees them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Owner, Role, Timestamp};

/// Most answers that travel with a [`Lookup`]; [`Lookup::answer_total`] counts all.
pub const MAX_ANSWERS: usize = 16;
/// Longest name in text, in bytes: what 255 bytes in a message become when every byte needs an escape (`\000`).
pub const MAX_NAME_BYTES: usize = 1024;

/// Questions and answers of one agent's host, with the dictionary that they point into. Delivered, acknowledged
/// and deduplicated as a [`super::HalfBatch`] is, under the same sequence of numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LookupBatch {
    /// Names the boot of the kernel.
    pub boot: u64,
    /// Processes and workloads; [`Lookup::owner`] is an index into this list.
    pub owners: Vec<Owner>,
    /// The rows.
    pub lookups: Vec<Lookup>,
}

/// One question, with its answer where there was one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// DNS or multicast DNS.
    pub protocol: LookupProtocol,
    /// How it travelled.
    pub transport: LookupTransport,
    /// Client: this end asked; server: it was asked.
    pub role: Role,
    /// This end's own address and port.
    pub local: SocketAddr,
    /// The peer: the resolver, or, of a server's lookup, who asked.
    pub resolver: SocketAddr,
    /// When the question was first sent, by the agent's clock.
    pub asked_at: Timestamp,
    /// From the first question to the answer; `None`: unanswered.
    pub latency_us: Option<u32>,
    /// The message's id.
    pub id: u16,
    /// The name asked for: lower-case, without the final dot, bytes that are no printable ASCII as `\ddd`; empty is the root.
    pub name: String,
    /// Type asked for, by its IANA number.
    pub qtype: u16,
    /// Response code (with EDNS's bits) by its IANA number; `None`: unanswered.
    pub code: Option<u16>,
    /// Whether the answer was cut (TC), to be asked again by TCP.
    pub truncated: bool,
    /// How often the question was sent; at least 1.
    pub tries: u8,
    /// The first answers, in order; at most [`MAX_ANSWERS`].
    pub answers: Vec<Answer>,
    /// How many answers there were.
    pub answer_total: u16,
    /// Bytes of the question's message.
    pub request_bytes: u32,
    /// Bytes of the answer's message; 0 when unanswered.
    pub response_bytes: u32,
    /// The name that the process meant, when this question only tries one with a suffix of the search path.
    pub search_of: Option<String>,
    /// Index into [`LookupBatch::owners`].
    pub owner: u32,
}

/// One record of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// A or AAAA, and for how many seconds it may be kept.
    Address(IpAddr, u32),
    /// CNAME, or what a PTR, SRV or MX record points to.
    Alias(String),
}

/// Which protocol of names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LookupProtocol {
    /// RFC 1035.
    #[default]
    Dns = 0,
    /// Multicast DNS, RFC 6762.
    Mdns = 1,
}

/// How a lookup travelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LookupTransport {
    /// Plain, by UDP.
    #[default]
    Udp = 0,
    /// Plain, by TCP.
    Tcp = 1,
    /// By TLS (RFC 7858): the name is not seen.
    Dot = 2,
    /// By HTTPS (RFC 8484): the name is not seen.
    Doh = 3,
}

impl Lookup {
    /// Whether there was an answer.
    pub fn answered(&self) -> bool {
        self.code.is_some()
    }
}

impl Default for Lookup {
    fn default() -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Self {
            protocol: LookupProtocol::default(),
            transport: LookupTransport::default(),
            role: Role::default(),
            local: nowhere,
            resolver: nowhere,
            asked_at: Timestamp::default(),
            latency_us: None,
            id: 0,
            name: String::new(),
            qtype: 0,
            code: None,
            truncated: false,
            tries: 1,
            answers: Vec::new(),
            answer_total: 0,
            request_bytes: 0,
            response_bytes: 0,
            search_of: None,
            owner: 0,
        }
    }
}
