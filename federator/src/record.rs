//! What the core hands to the store: rows whose strings have been replaced by numbers.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_mesh::Link;
use weft_wire::control::Recall;
use weft_wire::query::{Confidence, ConnectionState, PathClass, Unmatched};
use weft_wire::{
    AgentInfo, AgentKey, Application, DatagramSort, Fingerprint, Half, HalfId, HalfState, Lookup,
    Owner, PeerName, Protocol, Role, Timestamp,
};

/// Number of an agent's description in the store's `agents` table.
pub type AgentNumber = u32;

/// Number of an owner in the store's `owners` table; in a [`Side`], `half.owner` is one.
pub type OwnerNumber = u32;

/// Number of a name in the store's `names` table; 0 for none. In a [`Side`], `half.name` is one, and only the client's has one.
pub type NameNumber = u32;

/// One end of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Side {
    /// The half; its `owner` is an [`OwnerNumber`], its `name` a [`NameNumber`].
    pub half: Half,
    /// Who saw it.
    pub agent: AgentNumber,
}

/// How the two ends were joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Evidence code.
    pub evidence: &'static str,
    /// How sure.
    pub confidence: Confidence,
}

/// A connection as it stands now; replaces what was stored under its id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// The client's end.
    pub client: Option<Side>,
    /// The server's end.
    pub server: Option<Side>,
    /// How they were joined; `None` when one end is missing.
    pub joined: Option<Joined>,
    /// Why one end is missing.
    pub unmatched: Option<Unmatched>,
    /// The two homes have not yet told each other everything.
    pub card_due: bool,
    /// Who could not be asked when the half was given up.
    pub cut_off: CutOff,
    /// Nothing more is expected: the row leaves memory.
    pub settled: bool,
}

/// Who of the mesh could not be asked about a half when it was given up: it is looked for again when they return. Also
/// bits of a column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutOff(pub u8);

impl CutOff {
    /// Its owner.
    pub const OWNER: u8 = 2;
    /// Another home: that of its partner, or any that might have a late half's.
    pub const HOME: u8 = 4;
}

/// What is to be looked for in the store when this is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sought {
    /// Other ends of halves that came late, ours or a peer's.
    pub recalls: Vec<Recall>,
    /// What was given up while these peers could not be reached.
    pub returned: Vec<String>,
}

/// Recalls that are gathered, 16 bytes each. More are dropped, and counted.
pub const MAX_RECALLS: usize = 1 << 20;

impl Sought {
    /// Whether it is nothing.
    pub fn is_empty(&self) -> bool {
        self.recalls.is_empty() && self.returned.is_empty()
    }

    /// Takes these recalls as far as there is room; how many there was no room for.
    pub fn recall(&mut self, recalls: &[Recall]) -> usize {
        let room = MAX_RECALLS.saturating_sub(self.recalls.len());
        let taken = recalls.len().min(room);
        self.recalls.extend_from_slice(&recalls[..taken]);
        recalls.len() - taken
    }

    /// What a peer's absence has kept is to be looked for.
    pub fn peer_returned(&mut self, peer: &str) {
        if !self.returned.iter().any(|known| known == peer) {
            self.returned.push(peer.to_owned());
        }
    }

    /// Takes another one's too; how many recalls there was no room for.
    #[must_use]
    pub fn add(&mut self, other: Self) -> usize {
        for peer in &other.returned {
            self.peer_returned(peer);
        }
        if self.recalls.is_empty() {
            self.recalls = other.recalls;
            return 0;
        }
        self.recall(&other.recalls)
    }
}

/// A half that was given up and comes back from the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Who reported it.
    pub agent: AgentNumber,
    /// The half.
    pub half: Half,
    /// Its owner.
    pub owner: Owner,
    /// Its peer's name.
    pub name: Option<PeerName>,
    /// Its other end waits somewhere: it need not be looked for.
    pub asked_for: bool,
}

/// A description of an agent, ours or a peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRecord {
    /// Its key; `None` for an agent of a peer.
    pub key: Option<AgentKey>,
    /// Its home.
    pub federator: String,
    /// What it says of itself.
    pub info: AgentInfo,
    /// Its site's namespace is that of pods on its host, and not what it says of itself.
    pub pods: bool,
}

/// A lookup as it is stored; nothing about it changes any more.
#[derive(Clone, Debug, PartialEq)]
pub struct LookupRow {
    /// Who saw it.
    pub agent: AgentNumber,
    /// The lookup; its `owner` is an [`OwnerNumber`].
    pub lookup: Lookup,
}

/// Everything that changed since the last one: one transaction of the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flush {
    /// Journal position that the state with these rows covers.
    pub position: u64,
    /// Halves that came lately, wait for their other ends and are not written yet: they are found again in the journal.
    pub held: Vec<HalfId>,
    /// Journal position above which the rows of `held` are.
    pub held_from: u64,
    /// New agents' descriptions.
    pub agents: Vec<(AgentNumber, Arc<AgentRecord>)>,
    /// New owners.
    pub owners: Vec<(OwnerNumber, Arc<Owner>)>,
    /// New names.
    pub names: Vec<(NameNumber, Arc<PeerName>)>,
    /// Ids of rows that were written before as live ones and are replaced or gone.
    pub replaced: Vec<HalfId>,
    /// Ids of rows that were written before as settled ones and are replaced or gone; rare, and slow.
    pub replaced_done: Vec<HalfId>,
    /// None of these was opened before.
    pub replaced_from: Timestamp,
    /// Rows.
    pub rows: Vec<Row>,
    /// Lookups.
    pub lookups: Vec<LookupRow>,
    /// Halves whose link to another home changed or is gone.
    pub links_changed: Vec<HalfId>,
    /// Links to other homes that are not done.
    pub links: Vec<(HalfId, Link)>,
    /// What is to be looked for afterwards.
    pub sought: Sought,
    /// When the other ends of halves that are joined with this were named to us, by our clock; some of them, if many.
    pub named: Vec<Timestamp>,
    /// Highest sequence number of each agent that is covered.
    pub sequences: Vec<(AgentKey, u64)>,
    /// Which description of these agents is in force.
    pub descriptions: Vec<(AgentKey, AgentNumber)>,
    /// What is known of these agents.
    pub standings: Vec<(AgentKey, Standing)>,
}

/// What a new core starts with.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Journal position that the rows cover.
    pub position: u64,
    /// Halves below it that are still to be taken from the journal.
    pub held: HashSet<HalfId>,
    /// Position above which these are.
    pub held_from: u64,
    /// Halves of the rows that settled last, oldest first.
    pub departed: Vec<HalfId>,
    /// Rows that may still change.
    pub live: Vec<Row>,
    /// All agents' descriptions.
    pub agents: HashMap<AgentNumber, Arc<AgentRecord>>,
    /// Owners of the live rows.
    pub owners: HashMap<OwnerNumber, Arc<Owner>>,
    /// First owner number that was never used.
    pub next_owner: OwnerNumber,
    /// Names in the live rows.
    pub names: HashMap<NameNumber, Arc<PeerName>>,
    /// First number of a name that was never used; 0 is none.
    pub next_name: NameNumber,
    /// Links to other homes that are not done.
    pub links: HashMap<HalfId, Link>,
    /// Durable sequence numbers.
    pub sequences: Vec<(AgentKey, u64)>,
    /// Which description of these agents was in force.
    pub descriptions: Vec<(AgentKey, AgentNumber)>,
    /// What was known of these agents.
    pub standings: Vec<(AgentKey, Standing)>,
}

/// What is known of an agent from its batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its clock ahead of ours.
    pub skew_us: i64,
    /// The boot of its host whose halves may be open; those of others were closed.
    pub boot: Option<u64>,
    /// The newest that it has seen, by its own clock.
    pub newest: Timestamp,
    /// All of its halves that were opened before this, by its own clock, had been told, and those that were open are closed: it
    /// had been silent for long.
    pub gone_before: Option<Timestamp>,
}

impl Row {
    /// The id: the client's half's where it was seen, else the server's.
    pub fn id(&self) -> HalfId {
        self.sides().next().map_or(HalfId(0), |side| side.half.id)
    }

    /// The ends that were seen, client first.
    pub fn sides(&self) -> impl Iterator<Item = &Side> {
        self.client.iter().chain(&self.server)
    }

    /// What is spoken: as the client's end saw it, or, where that could not tell, the server's.
    pub fn application(&self) -> Application {
        self.sides()
            .map(|side| side.half.application)
            .find(|application| *application != Application::Unknown)
            .unwrap_or_default()
    }

    /// The name under which the client knew the server, and how long before that was learnt, in microseconds.
    pub fn name(&self) -> (NameNumber, u32) {
        self.client
            .map_or((0, 0), |side| (side.half.name, side.half.named_before_us))
    }

    /// Earliest opening.
    pub fn opened_at(&self) -> Timestamp {
        self.sides()
            .map(|side| side.half.opened_at)
            .min()
            .unwrap_or_default()
    }

    /// Latest closing; `None` while an end is open.
    pub fn closed_at(&self) -> Option<Timestamp> {
        let mut latest = None;
        for side in self.sides() {
            if !side.half.state.finished() {
                return None;
            }
            latest = latest.max(side.half.closed_at);
        }
        latest
    }

    /// Last sign of life.
    pub fn seen_at(&self) -> Timestamp {
        self.sides()
            .map(|side| {
                side.half
                    .seen_at
                    .max(side.half.closed_at.unwrap_or_default())
            })
            .max()
            .unwrap_or_default()
    }

    /// How things stand with both ends.
    pub fn state(&self) -> ConnectionState {
        if self.sides().any(|side| !side.half.state.established()) {
            ConnectionState::Failed
        } else if self.sides().any(|side| side.half.state == HalfState::Open) {
            ConnectionState::Open
        } else {
            ConnectionState::Closed
        }
    }
}

/// An address as two columns: IPv4 is kept v4-mapped, so that ranges are comparisons.
pub fn address_words(address: IpAddr) -> (u64, u64) {
    let bits = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    ((bits >> 64) as u64, bits as u64)
}

/// The inverse of [`address_words`].
pub fn address_of_words(high: u64, low: u64) -> IpAddr {
    Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).to_canonical()
}

/// The inverse of [`address_words`], with a port.
pub fn socket_of_words(high: u64, low: u64, port: u16) -> SocketAddr {
    SocketAddr::new(address_of_words(high, low), port)
}

/// Numbers that stand for enumerations in the store. Never change one: files live longer than programs.
pub mod code {
    use super::*;

    /// Evidence codes by number.
    pub const EVIDENCE: [&str; 6] = [
        "",
        "tcp-isn-pair",
        "tcp-client-isn",
        "reversed-tuple",
        "quic-connection-id",
        "udp-first-datagram",
    ];

    /// Boundaries of a path by bit.
    pub const CROSSES: [&str; 7] = [
        "cloud",
        "account",
        "region",
        "zone",
        "network",
        "cluster",
        "namespace",
    ];

    /// Half states by number.
    pub const HALF_STATES: [HalfState; 7] = [
        HalfState::Open,
        HalfState::Closed,
        HalfState::Refused,
        HalfState::TimedOut,
        HalfState::Aborted,
        HalfState::HostRestarted,
        HalfState::AgentGone,
    ];

    /// Sorts of first datagrams by number.
    pub const DATAGRAM_SORTS: [DatagramSort; 3] =
        [DatagramSort::Other, DatagramSort::Dns, DatagramSort::Quic];

    /// Connection states by number.
    pub const STATES: [ConnectionState; 3] = [
        ConnectionState::Open,
        ConnectionState::Closed,
        ConnectionState::Failed,
    ];

    /// Confidences by number.
    pub const CONFIDENCES: [Confidence; 4] = [
        Confidence::Low,
        Confidence::Medium,
        Confidence::High,
        Confidence::Exact,
    ];

    /// Reasons by number.
    pub const UNMATCHED: [Unmatched; 5] = [
        Unmatched::Pending,
        Unmatched::NoPartner,
        Unmatched::Ambiguous,
        Unmatched::NoFingerprint,
        Unmatched::NotEstablished,
    ];

    /// Path classes by number.
    pub const CLASSES: [PathClass; 10] = [
        PathClass::SameNode,
        PathClass::SameCluster,
        PathClass::SameZone,
        PathClass::CrossZone,
        PathClass::CrossRegion,
        PathClass::CrossCluster,
        PathClass::CrossCloud,
        PathClass::NorthSouth,
        PathClass::Hairpin,
        PathClass::Unknown,
    ];

    /// Number of a value in one of the lists above; 0 for one that is not in it.
    pub fn of<T: PartialEq>(list: &[T], value: &T) -> u8 {
        list.iter().position(|known| known == value).unwrap_or(0) as u8
    }

    /// A protocol's number is IANA's.
    pub fn protocol(number: u8) -> Protocol {
        if number == Protocol::Udp as u8 {
            Protocol::Udp
        } else {
            Protocol::Tcp
        }
    }

    /// Bits of the boundaries crossed.
    pub fn crosses(names: &[String]) -> u8 {
        CROSSES
            .iter()
            .enumerate()
            .filter(|(_, name)| names.iter().any(|n| n == *name))
            .map(|(bit, _)| 1 << bit)
            .sum()
    }

    /// The inverse of [`crosses`].
    pub fn crosses_of(bits: u8) -> Vec<String> {
        CROSSES
            .iter()
            .enumerate()
            .filter(|(bit, _)| bits & (1 << bit) != 0)
            .map(|(_, name)| (*name).to_owned())
            .collect()
    }
}

/// Client's and server's initial sequence numbers, where known.
pub fn isn_of(fingerprint: Fingerprint) -> Option<(u32, u32)> {
    match fingerprint {
        Fingerprint::Unknown | Fingerprint::Datagrams(_) => None,
        Fingerprint::TcpIsn { client, server } => Some((client, server)),
    }
}

/// The side a half belongs on.
pub fn is_client(half: &Half) -> bool {
    half.role == Role::Client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive() {
        for text in [
            "10.0.0.1:80",
            "255.255.255.255:65535",
            "[2001:db8::1]:443",
            "[::1]:1",
        ] {
            let socket: SocketAddr = text.parse().unwrap();
            let (high, low) = address_words(socket.ip());
            assert_eq!(socket_of_words(high, low, socket.port()), socket);
        }
    }

    #[test]
    fn crossings_survive() {
        let names = vec!["cloud".to_owned(), "namespace".to_owned()];
        assert_eq!(code::crosses_of(code::crosses(&names)), names);
    }
}
