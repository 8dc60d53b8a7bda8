//! Control messages: what agents and federators tell each other, apart from batches of halves.
//!
//! A session is one QUIC connection. Its dialler opens one bidirectional stream, sends a hello and then its
//! messages; the acceptor answers a hello and then acknowledgements on the same stream. Every message
//! is a frame (`crate::frame`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::{AgentInfo, Half, Owner, PeerName, Role, Site, Timestamp};

/// The version of everything in this crate. A peer with another one is turned away with
/// [`CloseCode::Version`]. It rises when the encoding of any message changes.
pub const PROTOCOL_VERSION: u16 = 2;

/// Why a session was closed: the QUIC application error code, and what each side counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
pub enum CloseCode {
    /// Orderly end.
    Done = 0,
    /// The peer speaks another protocol version.
    Version = 1,
    /// A frame was longer than its kind allows.
    Oversized = 2,
    /// A frame or message could not be decoded.
    Malformed = 3,
    /// The peer claimed a name that is not the one in its certificate.
    Identity = 4,
    /// The peer's role may not do what it tried.
    Role = 5,
    /// The peer sent a message that its state does not allow.
    Unexpected = 6,
    /// A limit on connections, streams or rate was reached.
    Limit = 7,
    /// A newer session of the same peer took over.
    Superseded = 8,
    /// This end is shutting down.
    Draining = 9,
    /// This end failed (disk full, store broken); the peer should try again later.
    Internal = 10,
}

impl CloseCode {
    /// All codes, in the order of their numbers, which begin at 0 and leave no gap.
    pub const ALL: [Self; 11] = [
        Self::Done,
        Self::Version,
        Self::Oversized,
        Self::Malformed,
        Self::Identity,
        Self::Role,
        Self::Unexpected,
        Self::Limit,
        Self::Superseded,
        Self::Draining,
        Self::Internal,
    ];

    /// The code with this number; `None` for one that this version does not know.
    pub fn from_number(number: u64) -> Option<Self> {
        usize::try_from(number)
            .ok()
            .and_then(|index| Self::ALL.get(index).copied())
    }

    /// Name in metrics and texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Version => "version",
            Self::Oversized => "oversized",
            Self::Malformed => "malformed",
            Self::Identity => "identity",
            Self::Role => "role",
            Self::Unexpected => "unexpected",
            Self::Limit => "limit",
            Self::Superseded => "superseded",
            Self::Draining => "draining",
            Self::Internal => "internal",
        }
    }
}

/// Agent to federator, first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentHello {
    /// Must be [`PROTOCOL_VERSION`].
    pub version: u16,
    /// Who it is; the name is checked against the certificate.
    pub agent: AgentInfo,
    /// The agent's clock as it sends this.
    pub now: Timestamp,
}

/// Federator to agent, in answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentWelcome {
    /// The federator's protocol version.
    pub version: u16,
    /// The federator's name.
    pub federator: String,
    /// Highest batch sequence number of this agent that is durable; 0 for none. The agent drops what is
    /// not above it from its spool and sends the rest in order.
    pub durable_seq: u64,
    /// The federator's clock.
    pub now: Timestamp,
}

/// Agent to federator, now and then beside its batches. Counters are totals since the agent's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The agent's clock as it sends this.
    pub now: Timestamp,
    /// Records lost because a kernel buffer was full.
    pub kernel_dropped: u64,
    /// Halves not tracked because the connection table was full.
    pub table_dropped: u64,
    /// Halves lost because the spool reached its limit (oldest first).
    pub spool_dropped: u64,
    /// Bytes now in the spool.
    pub spool_bytes: u64,
    /// Connections now open in its table.
    pub open: u64,
    /// Halves reported.
    pub halves: u64,
    /// Detail that it gives up at the moment to stay within its limits, the first given up first.
    pub given_up: Vec<Detail>,
    /// Whether its spool takes nothing at the moment.
    pub spool_failing: bool,
}

/// What an agent gives up when its limits on memory and processor time are passed. Never connections, bytes or packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// Executables, arguments and parents of processes: their names stay.
    Processes,
    /// Most updates of connections that stay open: their ends stay exact.
    Updates,
    /// What is spoken on connections, by their first bytes.
    FirstBytes,
    /// DNS lookups, and names of peers.
    Lookups,
}

impl Detail {
    /// In the order of giving up.
    pub const ORDER: [Self; 4] = [
        Self::Processes,
        Self::Updates,
        Self::FirstBytes,
        Self::Lookups,
    ];

    /// For a person.
    pub fn words(self) -> &'static str {
        match self {
            Self::Processes => "executables, arguments and parents of processes",
            Self::Updates => "most updates of connections that stay open",
            Self::FirstBytes => "what is spoken on connections",
            Self::Lookups => "DNS lookups and names of peers",
        }
    }
}

/// Federator to agent: everything up to `seq` is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Highest durable sequence number.
    pub seq: u64,
}

/// Federator to federator, first, and in answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerHello {
    /// Must be [`PROTOCOL_VERSION`].
    pub version: u16,
    /// Name; checked against the certificate.
    pub name: String,
    /// Region.
    pub region: String,
    /// Random, new at each start: tells a peer that lost its memory (its offers must be made again).
    pub instance: u64,
    /// The sender's clock.
    pub now: Timestamp,
}

/// Federator to federator. Delivered in order, acknowledged with [`Ack`] once what it changes is durable at
/// the receiver; each frame carries the sender's sequence number within the session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Halves for which the sender found no partner at home; the receiver is their owner.
    Offers(Vec<Offer>),
    /// Offers that are settled or expired; the owner forgets them.
    Withdraw(Vec<Handle>),
    /// Owner to home: these handles of yours have a partner elsewhere.
    Matched(Vec<MatchNotice>),
    /// Home to home: my end of a connection whose other end is yours.
    Cards(Vec<EndpointCard>),
    /// Owner to home, or home to home: several halves claim to be the other end of these handles of yours. They are
    /// ambiguous, and a match that they are part of is undone.
    Ambiguous(Vec<Handle>),
    /// Home to those that may have the other ends: of these I have an end that came late. Who has the other end, without partner
    /// and long expired, offers it again.
    Recall(Vec<Recall>),
    /// Home to every home, first in a session and whenever it has grown: only behind these addresses do my endpoints appear to
    /// others. Who never says so may have any address.
    Summary(Summary),
}

/// Most prefixes in a [`Summary`]; who has more says shorter ones.
pub const MAX_PREFIXES: usize = 256;

/// The public addresses behind which the endpoints of a federator's agents can appear: their own, those of NAT gateways and of load
/// balancers. Complete: what lies outside of all federators' summaries is nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Grows with each change, and from one run of the program to the next.
    pub version: u64,
    /// At most [`MAX_PREFIXES`].
    pub prefixes: Vec<Prefix>,
}

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Prefix {
    /// One of them.
    pub address: IpAddr,
    /// How many bits.
    pub length: u8,
}

/// What a late half is looked for by. No more than its offer says to the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    /// As in [`Offer`].
    pub routing_key: u64,
    /// As in [`Offer`].
    pub opened_at: Timestamp,
}

/// What names a half between a home and an owner, without saying anything of it: a hash, made by the home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Handle(pub u64);

/// The few bytes with which a home asks an owner about a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Keyed hash of what both ends always agree on; chooses the owner.
    pub routing_key: u64,
    /// Keyed hash of the whole fingerprint.
    pub matching_key: u64,
    /// Which end.
    pub role: Role,
    /// When the connection was opened, corrected for the agent's clock skew as far as its home knows it.
    pub opened_at: Timestamp,
    /// The home's name for the half.
    pub handle: Handle,
}

/// An owner's word that two offers belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatchNotice {
    /// The receiving home's own handle.
    pub yours: Handle,
    /// The handle of the other end at its home.
    pub theirs: Handle,
    /// Name of the other end's home.
    pub home: String,
    /// Only the routing key agreed (a SYN proxy in the path): both homes must judge by the cards.
    pub partial: bool,
}

/// One end of a matched connection, told by its home to the other end's home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointCard {
    /// The receiver's handle.
    pub yours: Handle,
    /// The sender's handle.
    pub theirs: Handle,
    /// Only the routing key agreed.
    pub partial: bool,
    /// The sender's end. Its `owner` and `name` indices mean nothing here.
    pub half: Half,
    /// Process and workload behind it.
    pub owner: Owner,
    /// The name under which it knew its peer.
    pub name: Option<PeerName>,
    /// Name of the agent that saw it.
    pub agent: String,
    /// Name of the sending federator.
    pub federator: String,
    /// Place of the agent.
    pub site: Site,
}
