//! What can be asked about.

use std::fmt;

use crate::model::{Application, HalfState, Protocol};
use crate::query::{Confidence, ConnectionState, PathClass, Unmatched};

/// Which end's view a field belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// `client.…`
    Client,
    /// `server.…`
    Server,
}

/// A field of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// Id, 16 hexadecimal digits.
    Id,
    /// Transport protocol.
    Protocol,
    /// State of the connection.
    State,
    /// Name under which the client knew the server.
    Name,
    /// What is spoken.
    Application,
    /// Opening time.
    OpenedAt,
    /// Closing time; unknown while open.
    ClosedAt,
    /// Closing less opening time; unknown while open.
    Duration,
    /// Payload bytes both ways: the client's counters, or the server's where the client was not seen.
    Bytes,
    /// Evidence code of the match.
    Evidence,
    /// Confidence of the match.
    Confidence,
    /// What was rewritten between the ends; several.
    Nat,
    /// Path class.
    Class,
    /// Boundaries crossed; several.
    Crosses,
    /// Addresses in between; several.
    Via,
    /// Why there is no match.
    Unmatched,
    /// A field of one end; unknown where the end was not seen.
    Of(End, EndField),
}

/// A field of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndField {
    /// The end as a whole: only `is null` and `is not null`.
    Seen,
    /// Agent.
    Agent,
    /// Home federator.
    Federator,
    /// Cloud.
    Cloud,
    /// Account.
    Account,
    /// Region.
    Region,
    /// Zone.
    Zone,
    /// Network.
    Network,
    /// Cluster.
    Cluster,
    /// Namespace.
    Namespace,
    /// Workload.
    Workload,
    /// Name of the process.
    Process,
    /// Its id.
    Pid,
    /// Its executable.
    Exe,
    /// Its numeric user id.
    Uid,
    /// Its user's name.
    User,
    /// Container id.
    Container,
    /// Name of the pod.
    Pod,
    /// systemd unit.
    Unit,
    /// Whether the process is outside of its container's namespaces, or in a container's from outside.
    Escaped,
    /// Own address.
    Address,
    /// Own port.
    Port,
    /// Address of the peer as seen from this end.
    Remote,
    /// Port of the peer as seen from this end.
    RemotePort,
    /// Payload bytes sent.
    BytesSent,
    /// Payload bytes received.
    BytesReceived,
    /// Smoothed round-trip time.
    Rtt,
    /// Segments sent again.
    Retransmits,
    /// State of this half.
    State,
}

/// What kind of values a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text: `=`, `in`, `~`.
    Text,
    /// One of a few words: `=`, `in`.
    Choice(&'static [&'static str]),
    /// Address: `=`, `in`, both with networks.
    Address,
    /// Plain number.
    Number,
    /// Bytes.
    Size,
    /// Microseconds.
    Duration,
    /// Point in time.
    Time,
    /// An end: only `is null`.
    End,
}

const TOP: &[(&str, Field)] = &[
    ("id", Field::Id),
    ("protocol", Field::Protocol),
    ("state", Field::State),
    ("name", Field::Name),
    ("application", Field::Application),
    ("opened_at", Field::OpenedAt),
    ("closed_at", Field::ClosedAt),
    ("duration", Field::Duration),
    ("bytes", Field::Bytes),
    ("match.evidence", Field::Evidence),
    ("match.confidence", Field::Confidence),
    ("match.nat", Field::Nat),
    ("path.class", Field::Class),
    ("path.crosses", Field::Crosses),
    ("path.via", Field::Via),
    ("path.unmatched", Field::Unmatched),
];

/// The first name of a field is the one that is printed; the others are those of a JSON row.
const OF_END: &[(&str, EndField)] = &[
    ("agent", EndField::Agent),
    ("federator", EndField::Federator),
    ("cloud", EndField::Cloud),
    ("account", EndField::Account),
    ("region", EndField::Region),
    ("zone", EndField::Zone),
    ("network", EndField::Network),
    ("cluster", EndField::Cluster),
    ("namespace", EndField::Namespace),
    ("workload", EndField::Workload),
    ("process", EndField::Process),
    ("pid", EndField::Pid),
    ("exe", EndField::Exe),
    ("uid", EndField::Uid),
    ("user", EndField::User),
    ("container", EndField::Container),
    ("pod", EndField::Pod),
    ("unit", EndField::Unit),
    ("escaped", EndField::Escaped),
    ("address", EndField::Address),
    ("port", EndField::Port),
    ("remote", EndField::Remote),
    ("remote_port", EndField::RemotePort),
    ("bytes_sent", EndField::BytesSent),
    ("bytes_received", EndField::BytesReceived),
    ("rtt", EndField::Rtt),
    ("retransmits", EndField::Retransmits),
    ("state", EndField::State),
    ("local", EndField::Address),
    ("rtt_us", EndField::Rtt),
    ("site.cloud", EndField::Cloud),
    ("site.account", EndField::Account),
    ("site.region", EndField::Region),
    ("site.zone", EndField::Zone),
    ("site.network", EndField::Network),
    ("site.cluster", EndField::Cluster),
    ("site.namespace", EndField::Namespace),
    ("process.name", EndField::Process),
    ("process.pid", EndField::Pid),
    ("process.exe", EndField::Exe),
    ("process.uid", EndField::Uid),
    ("process.user", EndField::User),
    ("pod.name", EndField::Pod),
];

const BOUNDARIES: &[&str] = &[
    "cloud",
    "account",
    "region",
    "zone",
    "network",
    "cluster",
    "namespace",
];
const TRUTH: &[&str] = &["false", "true"];
const REWRITES: &[&str] = &["source", "source-port", "destination", "destination-port"];

impl End {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// The other one.
    pub fn opposite(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

impl EndField {
    /// Finds a field of an end by name.
    pub fn named(name: &str) -> Option<Self> {
        OF_END
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, field)| *field)
    }

    fn name(self) -> &'static str {
        OF_END
            .iter()
            .find(|(_, field)| *field == self)
            .map_or("", |(name, _)| name)
    }

    fn kind(self) -> Kind {
        match self {
            Self::Seen => Kind::End,
            Self::Address | Self::Remote => Kind::Address,
            Self::Pid | Self::Uid | Self::Port | Self::RemotePort | Self::Retransmits => {
                Kind::Number
            }
            Self::BytesSent | Self::BytesReceived => Kind::Size,
            Self::Rtt => Kind::Duration,
            Self::State => Kind::Choice(HalfState::WORDS),
            Self::Agent
            | Self::Federator
            | Self::Cloud
            | Self::Account
            | Self::Region
            | Self::Zone
            | Self::Network
            | Self::Cluster
            | Self::Namespace
            | Self::Workload
            | Self::Process
            | Self::Exe
            | Self::User
            | Self::Container
            | Self::Pod
            | Self::Unit => Kind::Text,
            Self::Escaped => Kind::Choice(TRUTH),
        }
    }
}

impl Field {
    /// Finds a field by name.
    pub fn named(name: &str) -> Option<Self> {
        if let Some((_, field)) = TOP.iter().find(|(known, _)| *known == name) {
            return Some(*field);
        }
        for end in [End::Client, End::Server] {
            match name.strip_prefix(end.as_str()) {
                Some("") => return Some(Self::Of(end, EndField::Seen)),
                Some(rest) => {
                    return rest
                        .strip_prefix('.')
                        .and_then(EndField::named)
                        .map(|f| Self::Of(end, f));
                }
                None => {}
            }
        }
        None
    }

    /// Every field, in the order in which help lists them; the ends as wholes last.
    pub fn all() -> impl Iterator<Item = Self> {
        let of = |end| {
            // Stop before the second names.
            OF_END
                .iter()
                .take_while(|(name, _)| *name != "local")
                .map(move |(_, field)| Self::Of(end, *field))
        };
        let ends = [End::Client, End::Server]
            .into_iter()
            .map(|end| Self::Of(end, EndField::Seen));
        TOP.iter()
            .map(|(_, field)| *field)
            .chain(of(End::Client))
            .chain(of(End::Server))
            .chain(ends)
    }

    /// What its values are.
    pub fn kind(self) -> Kind {
        match self {
            Self::Id | Self::Name | Self::Evidence => Kind::Text,
            // Not known is null.
            Self::Application => Kind::Choice(&Application::WORDS[1..]),
            Self::Protocol => Kind::Choice(Protocol::WORDS),
            Self::State => Kind::Choice(ConnectionState::WORDS),
            Self::OpenedAt | Self::ClosedAt => Kind::Time,
            Self::Duration => Kind::Duration,
            Self::Bytes => Kind::Size,
            Self::Confidence => Kind::Choice(Confidence::WORDS),
            Self::Nat => Kind::Choice(REWRITES),
            Self::Class => Kind::Choice(PathClass::WORDS),
            Self::Crosses => Kind::Choice(BOUNDARIES),
            Self::Via => Kind::Address,
            Self::Unmatched => Kind::Choice(Unmatched::WORDS),
            Self::Of(_, field) => field.kind(),
        }
    }

    /// The known name most like this one, for a hint.
    pub(super) fn nearest(name: &str) -> Option<String> {
        let bare = EndField::named(name).map(|field| Self::Of(End::Client, field));
        bare.map(|field| {
            format!(
                "{field} or server.{}",
                field.to_string().trim_start_matches("client.")
            )
        })
        .or_else(|| nearest(name, Self::all().map(|f| f.to_string())))
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(end, EndField::Seen) => f.write_str(end.as_str()),
            Self::Of(end, field) => write!(f, "{}.{}", end.as_str(), field.name()),
            top => f.write_str(
                TOP.iter()
                    .find(|(_, field)| field == top)
                    .map_or("", |(name, _)| name),
            ),
        }
    }
}

/// The candidate within a third of the word's length of edits, if there is one.
pub(super) fn nearest(word: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (distance(word, &candidate), candidate))
        .filter(|(edits, _)| *edits <= allowed)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Edit distance (Levenshtein), one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
