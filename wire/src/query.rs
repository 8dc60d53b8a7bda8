//! What an operator (or a federator on an operator's behalf) asks, and the answers.
//!
//! One request is one bidirectional QUIC stream: a [`Request`] frame, then [`Response`] frames, the last
//! of which is [`Response::End`] or [`Response::Error`].
//!
//! The answer types are also the product's JSON (`weft … --format json`): within a schema version fields are only added.

mod chains;
mod dns;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use chains::*;
pub use dns::*;

use crate::control::{CloseCode, Detail};
use crate::model::{Application, HalfId, NameSource, Pod, Process, Protocol, Site, Timestamp};

/// A question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Must be [`crate::control::PROTOCOL_VERSION`].
    pub version: u16,
    /// Whose connections.
    pub scope: Scope,
    /// The question itself.
    pub what: Question,
}

/// Which federators answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// The whole mesh: the federator that is asked asks the others and merges.
    Mesh,
    /// Only the federator that is asked. Between federators this says for which unreachable homes the
    /// copies count: a connection is counted by its client's home, or, where that cannot be asked, by the server's.
    Local {
        /// Names of homes that do not answer.
        absent: Vec<String>,
    },
}

/// The questions there are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Question {
    /// Connections, newest first.
    Connections {
        /// Which.
        filter: Filter,
        /// At most this many.
        limit: u32,
    },
    /// Connections whose id begins with these hexadecimal digits (both views, evidence, path).
    Explain {
        /// 4 to 16 hexadecimal digits.
        id_prefix: String,
    },
    /// An aggregate over connections.
    Report {
        /// Which report.
        report: Report,
        /// Over which connections.
        filter: Filter,
        /// Order.
        by: ReportOrder,
        /// At most this many rows.
        top: u32,
    },
    /// One read-only SQL statement over this window's connections.
    Sql {
        /// The statement.
        text: String,
        /// Window whose connections of the other federators are fetched when the scope is the mesh.
        filter: Filter,
        /// At most this many rows.
        limit: u32,
    },
    /// The federation's health.
    Health,
    /// An aggregate over lookups.
    Dns {
        /// Which report.
        report: DnsReport,
        /// Over which lookups: times, and the asker as the client's end; the server's end does not count.
        filter: Filter,
        /// At most this many rows.
        top: u32,
    },
    /// Lookups, newest first.
    Lookups {
        /// Which; as [`Question::Dns`].
        filter: Filter,
        /// At most this many.
        limit: u32,
    },
    /// As [`Question::Health`], with what happened lately besides.
    HealthSince {
        /// Within so many seconds.
        window_s: u32,
    },
    /// Whether connections go on, or came, through a proxy at one of their ends.
    Chains {
        /// Ends: halves of connections; at most [`MAX_CHAIN_HALVES`].
        halves: Vec<HalfId>,
    },
}

/// The reports there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// The two ends are in different Kubernetes clusters.
    CrossCluster,
    /// … in different clouds.
    CrossCloud,
    /// … in different regions.
    CrossRegion,
    /// … in different namespaces.
    CrossNamespace,
    /// One end is unmanaged (no agent, or none that is ours).
    NorthSouth,
    /// Both ends are ours and near each other, the path left the network.
    Hairpins,
    /// Who depends on whom.
    Dependencies,
}

/// Row order of a report, largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportOrder {
    /// Bytes both ways.
    #[default]
    Bytes,
    /// Number of connections.
    Connections,
}

/// Which connections. Empty parts do not restrict.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    /// Active at or after this time.
    pub since: Option<Timestamp>,
    /// Opened before this time.
    pub until: Option<Timestamp>,
    /// The client's end: a workload, CIDR, agent, or `field:value`.
    pub from: Option<String>,
    /// The server's end.
    pub to: Option<String>,
    /// An expression over both ends, as `weft help filter` describes it.
    pub expression: Option<String>,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// Some rows of [`Question::Connections`] or [`Question::Explain`].
    Connections(Vec<Connection>),
    /// Some rows of [`Question::Report`].
    Report(Vec<ReportRow>),
    /// Column names of [`Question::Sql`], once, before its rows.
    SqlColumns(Vec<String>),
    /// Some rows of [`Question::Sql`].
    SqlRows(Vec<Vec<SqlValue>>),
    /// [`Question::Health`]: a federator each.
    Health(Vec<FederatorHealth>),
    /// Some rows of [`Question::Dns`].
    Dns(Vec<DnsRow>),
    /// Some rows of [`Question::Lookups`].
    Lookups(Vec<LookupRecord>),
    /// The end of a complete answer.
    End {
        /// What the answer rests on.
        completeness: Completeness,
        /// The limit cut rows off.
        truncated: bool,
    },
    /// The request failed.
    Error(QueryError),
    /// Some rows of [`Question::Chains`].
    Chains(Vec<ChainLink>),
}

/// Why a question has no answer; printed as `error:`, `cause:`, `hint:`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct QueryError {
    /// Stable code, `E-…`.
    pub code: String,
    /// What went wrong.
    pub what: String,
    /// Why.
    pub cause: String,
    /// What to do; a command where there is one.
    pub hint: String,
}

/// One connection: two halves where both were seen and joined, one where not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// The client's half's id where it was seen, else the server's.
    pub id: HalfId,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Earliest opening either end saw.
    pub opened_at: Timestamp,
    /// Latest closing either end saw; null while one is open.
    pub closed_at: Option<Timestamp>,
    /// How things stand.
    pub state: ConnectionState,
    /// The name under which the client knew the server; null when it is not known.
    pub name: Option<ServerName>,
    /// What is spoken: as the client's end saw it, or, where that could not tell, the server's; null when neither could.
    pub application: Option<Application>,
    /// The client's end; null when unseen.
    pub client: Option<Endpoint>,
    /// The server's end; null when unseen.
    pub server: Option<Endpoint>,
    /// How the two were matched; null when they were not.
    #[serde(rename = "match")]
    pub matched: Option<Match>,
    /// How the bytes travelled.
    pub path: Path,
}

/// The name under which a client knew its server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerName {
    /// The name, lower-case, without a final dot.
    pub name: String,
    /// How its agent knows that.
    pub source: NameSource,
    /// How long before the opening it was learnt, in microseconds; 0 where it was spoken on the connection.
    pub before_us: u32,
}

/// How things stand with a connection's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionState {
    /// Established now.
    Open,
    /// Closed.
    Closed,
    /// Never established.
    Failed,
}

/// One end of a connection, as its agent saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Id of this half.
    pub half: HalfId,
    /// Name of the agent.
    pub agent: String,
    /// Name of its home federator.
    pub federator: String,
    /// Place.
    pub site: Site,
    /// Workload.
    pub workload: String,
    /// Process.
    pub process: Option<Process>,
    /// Container id.
    pub container: Option<String>,
    /// Pod; null when it is not in one, or nobody said so.
    pub pod: Option<Pod>,
    /// systemd unit; null when it is in none.
    pub unit: Option<String>,
    /// Whether the process is outside of its container's namespaces, or in a container's from outside.
    pub escaped: bool,
    /// Other processes that use the same socket, by rising process id.
    pub sharers: Vec<Process>,
    /// Own address and port, `ip:port`, IPv6 in brackets.
    pub local: String,
    /// The peer as seen from here.
    pub remote: String,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Smoothed round-trip time; null when unknown.
    pub rtt_us: Option<u32>,
    /// Segments sent again.
    pub retransmits: u32,
    /// State of this half.
    pub state: crate::model::HalfState,
    /// Client's and server's initial sequence numbers in hexadecimal; null when unknown.
    pub isn: Option<[String; 2]>,
}

/// How two halves were matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Match {
    /// Evidence code of the rule, `tcp-isn-pair` for one.
    pub evidence: String,
    /// How sure that is.
    pub confidence: Confidence,
    /// What was rewritten between the ends: of `source`, `source-port`, `destination`, `destination-port`; empty for none.
    pub nat: Vec<String>,
    /// Checks made after the match, `bytes-both-ends: agrees` for one.
    pub checks: Vec<Check>,
}

/// A check of a match by what both ends counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Code of the check.
    pub code: String,
    /// Whether both ends agree.
    pub agrees: bool,
    /// The figures compared.
    pub detail: String,
}

/// How sure a match is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// Rests on circumstances that others could share.
    Low,
    /// Circumstances that others are unlikely to share.
    Medium,
    /// Chance or error is possible but improbable.
    High,
    /// 64 random bits agree.
    Exact,
}

/// How the bytes travelled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Path class.
    pub class: PathClass,
    /// Every boundary crossed: of `cluster`, `cloud`, `region`, `zone`, `namespace`, `network`, `account`.
    pub crosses: Vec<String>,
    /// Addresses that stand between the ends: the one the client called, the one the server was called from, where
    /// they are not an end's own.
    pub via: Vec<String>,
    /// Why there is no match: null when there is one.
    pub unmatched: Option<Unmatched>,
}

/// Path classes of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathClass {
    /// Both ends on one host.
    SameNode,
    /// Both in one cluster.
    SameCluster,
    /// Both in one zone.
    SameZone,
    /// One region, two zones.
    CrossZone,
    /// One cloud, two regions.
    CrossRegion,
    /// Two clusters.
    CrossCluster,
    /// Two clouds.
    CrossCloud,
    /// One end is unmanaged, as far as is known.
    NorthSouth,
    /// Both ends ours and near each other, the path not.
    Hairpin,
    /// Not enough is known of the sites.
    Unknown,
}

/// Why a half has no partner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unmatched {
    /// Not yet: still held or offered.
    Pending,
    /// No other half came in time: the other end has no agent, or something terminates TCP between them.
    NoPartner,
    /// Several halves would fit; which one is not known.
    Ambiguous,
    /// Older than its agent: no initial sequence numbers, and no reversed tuple either.
    NoFingerprint,
    /// Never established.
    NotEstablished,
}

/// A row of a report: a pair of workloads and what flowed between them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportRow {
    /// The calling side.
    pub client: Party,
    /// The called side.
    pub server: Party,
    /// Path class.
    pub class: PathClass,
    /// Addresses in between (of [`Path::via`]), distinct, at most 8.
    pub via: Vec<String>,
    /// Number of connections.
    pub connections: u64,
    /// Payload bytes from client to server.
    pub bytes_to_server: u64,
    /// Payload bytes from server to client.
    pub bytes_to_client: u64,
    /// First opening.
    pub first_seen: Timestamp,
    /// Last sign of life.
    pub last_seen: Timestamp,
    /// A connection to `weft explain`.
    pub example: HalfId,
}

/// One side of a report's row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Party {
    /// Workload; for an unmanaged end its address.
    pub workload: String,
    /// Place; empty for an unmanaged end.
    pub site: Site,
    /// Whether one of our agents saw it.
    pub managed: bool,
}

/// A cell of an SQL answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SqlValue {
    /// NULL.
    Null,
    /// Boolean.
    Bool(bool),
    /// Integer.
    Int(i64),
    /// Integer above the range of [`SqlValue::Int`].
    UInt(u64),
    /// Floating point.
    Float(f64),
    /// Text, and everything that has no type of its own here.
    Text(String),
}

/// What an answer rests on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Completeness {
    /// Federators of the mesh and whether each answered.
    pub federators: Vec<Reach>,
    /// Halves in the window, over all that answered.
    pub halves: HalfCounts,
}

/// Whether a federator answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Name.
    pub federator: String,
    /// It answered.
    pub reached: bool,
    /// Why not.
    pub error: Option<String>,
}

/// Halves by what became of them. `dropped` is what agents told of as lost since the
/// window's beginning (to the hour).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfCounts {
    /// Halves that belong to a stitched connection.
    pub matched: u64,
    /// Unmatched, by reason.
    pub unmatched: BTreeMap<Unmatched, u64>,
    /// Lost before they could be stored, and counted.
    pub dropped: u64,
}

/// A federator's health.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FederatorHealth {
    /// Name.
    pub name: String,
    /// Region.
    pub region: String,
    /// Program version.
    pub version: String,
    /// False when it did not answer; then only name, region and `error` are known.
    pub reached: bool,
    /// Why it did not answer.
    pub error: Option<String>,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Its agents.
    pub agents: Vec<AgentHealth>,
    /// Its peers.
    pub peers: Vec<PeerHealth>,
    /// Halves a second over the last minute.
    pub halves_per_second: f64,
    /// Halves taken since start.
    pub halves: u64,
    /// Stitched connections since start.
    pub stitched: u64,
    /// Of the halves that are past their hold and were established, the part that is matched; null when there are none.
    pub match_ratio: Option<f64>,
    /// Open halves in the stitcher.
    pub open_halves: u64,
    /// Median time between the owner's notice and the stored match, microseconds; null before the first.
    pub exchange_delay_us: Option<u64>,
    /// Days until its certificate ends.
    pub certificate_days_left: i64,
    /// Bytes of its journal.
    pub journal_bytes: u64,
    /// Bytes of its store.
    pub store_bytes: u64,
    /// Bytes free on its disk.
    pub disk_free_bytes: u64,
    /// What was dropped or refused since start, by counter name.
    pub counters: BTreeMap<String, u64>,
    /// Sessions closed since start, by code.
    pub closes: Vec<(CloseCode, u64)>,
    /// What its journal may hold at most.
    pub journal_max_bytes: u64,
    /// What it knows itself to be wrong with it now.
    pub troubles: Vec<Trouble>,
    /// What happened within the window that was asked about; null when none was.
    pub window: Option<HealthWindow>,
}

/// Something that a federator knows to be wrong with itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Stable code: `journal-full`, `disk-full`, `store-behind`, `clock-stepped`.
    pub code: String,
    /// Whether it refuses what it is there for meanwhile, as against doing it worse.
    pub failing: bool,
    /// In words.
    pub words: String,
    /// Since when.
    pub since: Timestamp,
}

/// What happened to a federator within a window of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthWindow {
    /// Seconds that it covers: fewer than were asked about where it does not run, or remember, that long.
    pub seconds: u64,
    /// Halves taken.
    pub halves: u64,
    /// Connections stitched.
    pub stitched: u64,
    /// Part of the halves that got a partner, of those that got one or are past their hold; null when there are none.
    pub match_ratio: Option<f64>,
    /// Halves that agents told of as lost, to the hour.
    pub lost: u64,
    /// By how much each counter grew.
    pub counters: BTreeMap<String, u64>,
}

/// An agent, as its home knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentHealth {
    /// Name.
    pub name: String,
    /// Program version.
    pub version: String,
    /// Connected now.
    pub connected: bool,
    /// When it was last heard of.
    pub last_seen: Timestamp,
    /// Age of the newest half when it became durable, microseconds.
    pub lag_us: i64,
    /// Its clock ahead of the federator's, microseconds.
    pub clock_skew_us: i64,
    /// Days until its certificate ends.
    pub certificate_days_left: i64,
    /// Halves taken from it since the federator's start.
    pub halves: u64,
    /// Open connections in its table.
    pub open: u64,
    /// Bytes in its spool.
    pub spool_bytes: u64,
    /// Records it lost because a kernel buffer was full.
    pub kernel_dropped: u64,
    /// Halves it did not track because its table was full.
    pub table_dropped: u64,
    /// Halves it lost because its spool was full.
    pub spool_dropped: u64,
    /// Detail that it gives up at the moment to stay within its limits.
    pub given_up: Vec<Detail>,
    /// Whether its spool takes nothing at the moment: the kernel's ring buffers meanwhile.
    pub spool_failing: bool,
    /// Of what it lost, what it told of within the window that was asked about (to the hour); null when none was.
    pub lost_in_window: Option<u64>,
}

/// A peer, as a federator sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerHealth {
    /// Name.
    pub name: String,
    /// Connected now.
    pub connected: bool,
    /// When it was last heard of; null for never.
    pub last_seen: Option<Timestamp>,
    /// Its clock ahead of ours, microseconds.
    pub clock_skew_us: i64,
    /// Round-trip time of the QUIC connection, microseconds.
    pub rtt_us: u64,
    /// Messages waiting for it.
    pub queued: u64,
    /// Why there is no session; null while there is one.
    pub error: Option<String>,
}
