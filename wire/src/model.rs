//! The words of the design as types: halves, fingerprints, sites, processes.

mod lookup;
mod owner;
mod time;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use lookup::*;
pub use owner::*;
pub use time::Timestamp;

/// Identifies one half, forever and everywhere: 64 mixed bits of the reporting agent's identity, the
/// kernel's boot and the socket cookie.
///
/// An agent that is restarted gives a connection that is still open the same id again, so a half is
/// never counted twice. Text form: 16 lower-case hexadecimal digits.
///
/// Two of a billion halves share an id with a probability of about 3 % (birthday bound); stores
/// therefore compare the agent too before they replace a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HalfId(pub u64);

/// A hash of an agent's whole SPIFFE id; the key under which a federator keeps its sequence numbers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct AgentKey(pub u64);

/// Transport protocol; the discriminant is the IANA protocol number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Protocol {
    /// TCP, RFC 9293.
    #[default]
    Tcp = 6,
    /// UDP, RFC 768.
    Udp = 17,
}

/// Which end of a connection a half saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Opened the connection (active open); of UDP: sent the first datagram that was seen.
    #[default]
    Client,
    /// Accepted it (passive open); of UDP: received that.
    Server,
}

/// Where a half is in its life. Of UDP: open or closed (idle for long, or its socket released).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HalfState {
    /// Established and not yet closed.
    #[default]
    Open,
    /// Was established, is closed.
    Closed,
    /// Never established: the peer, or a host on the way, refused (RST or ICMP unreachable).
    Refused,
    /// Never established: nothing answered before the kernel gave up.
    TimedOut,
    /// Never established: this end gave up first (the socket was closed while connecting).
    Aborted,
    /// Was established, and its host was started again since. Concluded by its home: no agent says so.
    HostRestarted,
    /// Was established, and its agent has been silent for so long that nobody knows. Concluded by its home: no agent says so.
    AgentGone,
}

/// What NAT cannot change about a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fingerprint {
    /// Nothing known: the connection is older than the agent, or was never established.
    #[default]
    Unknown,
    /// TCP initial sequence numbers (RFC 9293, 3.4.1), of the client's and the server's SYN.
    TcpIsn {
        /// Initial sequence number of the client.
        client: u32,
        /// Initial sequence number of the server.
        server: u32,
    },
    /// The first datagram each way.
    Datagrams(Datagrams),
}

/// What NAT leaves alone of a UDP flow: hashes of the first datagram each way.
///
/// The hash is the first 8 bytes, little-endian, of blake3 over a byte that says the sort (its discriminant) and
/// the bytes that the sort names. An agent computes it, from raw bytes; at most [`DATAGRAM_SNAP_BYTES`] count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Datagrams {
    /// Which bytes were hashed.
    pub sort: DatagramSort,
    /// Hash of the client's first datagram.
    pub client: u64,
    /// Hash of the server's first; 0: none was seen (yet).
    pub server: u64,
    /// Whether the bytes themselves can tell flows apart; else a thousand flows may have the same hashes.
    pub distinct: bool,
}

/// Bytes of a datagram that count for its hash; the same at both ends, or hashes differ.
pub const DATAGRAM_SNAP_BYTES: usize = 128;

/// Which bytes of a datagram its hash is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum DatagramSort {
    /// Its length and first bytes.
    #[default]
    Other = 0,
    /// Of a DNS message: id and question section.
    Dns = 1,
    /// Of a QUIC Initial: both connection ids.
    Quic = 2,
}

/// What is spoken on a connection, as far as its first bytes tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Application {
    /// Not known.
    #[default]
    Unknown = 0,
    /// TLS; what is inside is not seen.
    Tls = 1,
    /// HTTP/1.
    Http1 = 2,
    /// HTTP/2, in the clear.
    Http2 = 3,
    /// PostgreSQL.
    Postgres = 4,
    /// MySQL.
    Mysql = 5,
    /// Redis.
    Redis = 6,
    /// Kafka.
    Kafka = 7,
    /// MongoDB.
    Mongodb = 8,
    /// AMQP.
    Amqp = 9,
    /// DNS.
    Dns = 10,
    /// QUIC.
    Quic = 11,
}

/// The name under which a connection's peer was known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerName {
    /// Lower-case, without a final dot; at most [`MAX_NAME_BYTES`].
    pub name: String,
    /// How the agent knows it.
    pub source: NameSource,
}

/// How an agent came to a peer's name, the surest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum NameSource {
    /// The same process had looked it up.
    #[default]
    DnsProcess = 0,
    /// A process of the same pod had.
    DnsPod = 1,
    /// A process of the same node had.
    DnsNode = 2,
    /// It stood in the TLS greeting.
    Sni = 3,
    /// It stood in a request's `Host`.
    HttpHost = 4,
}

/// One end's view of one connection, as far as it is known at `seen_at`. Later rows of the same `id`
/// replace earlier ones; they never contradict them on identity, addresses, role or opening time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Half {
    /// Identity; see [`HalfId`]. Not on the wire in a batch: a receiver computes it from the sender's key,
    /// [`HalfBatch::boot`] and `cookie`, so that nobody can speak of another's halves.
    pub id: HalfId,
    /// The kernel's socket cookie: unique within a boot. Of UDP a mix of it with the peer and the flow's opening, for
    /// one socket has many flows.
    pub cookie: u64,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Which end this is.
    pub role: Role,
    /// Where in its life.
    pub state: HalfState,
    /// What NAT cannot change.
    pub fingerprint: Fingerprint,
    /// This end's own address and port. v4-mapped IPv6 is IPv4.
    pub local: SocketAddr,
    /// The peer as this end sees it.
    pub remote: SocketAddr,
    /// Established (or, where it never was, first tried), by the agent's clock.
    pub opened_at: Timestamp,
    /// Closed, by the agent's clock; `None` while open.
    pub closed_at: Option<Timestamp>,
    /// When the counters below were read, by the agent's clock.
    pub seen_at: Timestamp,
    /// Payload bytes sent and acknowledged by the peer; of UDP: sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Segments or datagrams sent.
    pub packets_sent: u64,
    /// Segments or datagrams received.
    pub packets_received: u64,
    /// Smoothed round-trip time in microseconds; 0 when unknown.
    pub rtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// Index into the owners that travel with the half ([`HalfBatch::owners`]).
    pub owner: u32,
    /// The peer's name: 0 for none, else index + 1 into the names that travel with the half ([`HalfBatch::names`]).
    pub name: u32,
    /// How long before `opened_at` that name was learnt, in microseconds.
    pub named_before_us: u32,
    /// What is spoken.
    pub application: Application,
}

/// Halves of one agent with the dictionary that they point into. The unit of encoding, delivery,
/// acknowledgement and deduplication.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HalfBatch {
    /// Names the boot of the kernel that made the cookies; see [`HalfId::new`].
    pub boot: u64,
    /// Processes and workloads; [`Half::owner`] is an index into this list.
    pub owners: Vec<Owner>,
    /// Names of peers; [`Half::name`] is an index + 1 into this list.
    pub names: Vec<PeerName>,
    /// The rows.
    pub halves: Vec<Half>,
}

impl HalfBatch {
    /// The name of a row's peer.
    pub fn name_of(&self, half: &Half) -> Option<&PeerName> {
        self.names.get((half.name as usize).checked_sub(1)?)
    }
}

impl Default for Half {
    fn default() -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Self {
            id: HalfId::default(),
            cookie: 0,
            protocol: Protocol::default(),
            role: Role::default(),
            state: HalfState::default(),
            fingerprint: Fingerprint::default(),
            local: nowhere,
            remote: nowhere,
            opened_at: Timestamp::default(),
            closed_at: None,
            seen_at: Timestamp::default(),
            bytes_sent: 0,
            bytes_received: 0,
            packets_sent: 0,
            packets_received: 0,
            rtt_us: 0,
            retransmits: 0,
            owner: 0,
            name: 0,
            named_before_us: 0,
            application: Application::default(),
        }
    }
}

/// The place of an endpoint. An empty string is "not known".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Site {
    /// Provider: `aws`, `gcp`, `azure`, `onprem`.
    pub cloud: String,
    /// Account, project or subscription.
    pub account: String,
    /// Region.
    pub region: String,
    /// Availability zone.
    pub zone: String,
    /// Network (VPC); addresses mean nothing outside it.
    pub network: String,
    /// Kubernetes cluster.
    pub cluster: String,
    /// Kubernetes namespace.
    pub namespace: String,
}

/// What an agent says of itself when it connects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Name within the region; must be the one in its certificate.
    pub name: String,
    /// Program version.
    pub version: String,
    /// The host's place, from the agent's configuration.
    pub site: Site,
    /// Kernel release.
    pub kernel: String,
    /// Host name.
    pub host: String,
}

impl HalfState {
    /// Whether the connection was ever established: only those can have a second half.
    pub fn established(self) -> bool {
        !matches!(self, Self::Refused | Self::TimedOut | Self::Aborted)
    }

    /// Whether the end was concluded from something else, and not seen.
    pub fn concluded(self) -> bool {
        matches!(self, Self::HostRestarted | Self::AgentGone)
    }

    /// Whether nothing more will come of it.
    pub fn finished(self) -> bool {
        self != Self::Open
    }
}

impl Role {
    /// The other end.
    pub fn opposite(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

impl HalfId {
    /// Mixes what makes a half unique. Deterministic: the same socket gives the same id after the
    /// agent's restart.
    pub fn new(agent: AgentKey, boot: u64, cookie: u64) -> Self {
        Self(mix64(mix64(agent.0 ^ boot).wrapping_add(cookie)))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits that spreads every input bit.
pub fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl fmt::Display for HalfId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for HalfId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl Serialize for HalfId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            s.collect_str(self)
        } else {
            s.serialize_u64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for HalfId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            String::deserialize(d)?
                .parse()
                .map_err(serde::de::Error::custom)
        } else {
            u64::deserialize(d).map(Self)
        }
    }
}
