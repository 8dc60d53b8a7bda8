//! Questions about lookups, and their answers.

use serde::{Deserialize, Serialize};

use crate::model::{LookupProtocol, LookupTransport, Role, Site, Timestamp};

/// The reports on lookups there are. All are about what clients asked; what a server was asked by others is not counted
/// again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DnsReport {
    /// Who asks most: a row for each process of a pod, container or host.
    Top,
    /// Which names are asked most, and by whom: a row for each name.
    Hotspots,
    /// Names outside: a row for each domain that somebody registered.
    External,
    /// What failed, was never answered, or only tried the search path: a row for each name and outcome.
    Failures,
    /// Names on a threat list: a row for each name and who asked for it.
    Threats,
    /// Everything about one name and what is below it: a row for each name, outcome and who asked.
    Explain {
        /// The name.
        name: String,
    },
    /// Who asks where the names are not seen (DNS over TLS or HTTPS): a row for each process, transport and resolver, counting
    /// connections. No other report counts them.
    Bypass,
}

/// A row of a report on lookups. What a report has no use for is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DnsRow {
    /// The name; of [`DnsReport::External`] the domain that somebody registered; empty in [`DnsReport::Top`].
    pub name: String,
    /// On which side the name is, and why: `external`, or `configured`, `reserved`, `single-label`, `unlisted`.
    pub kind: String,
    /// The entry of a threat list that it is, or is below.
    pub threat: Option<String>,
    /// `answered`, `search-path` (a try with a suffix, in vain), `unanswered`, or the response code: `nxdomain`, `servfail`.
    pub outcome: String,
    /// Who asked; where there are several, the one that asked most.
    pub asker: Asker,
    /// How often that one asked.
    pub asker_lookups: u64,
    /// How many asked.
    pub askers: u64,
    /// Different names.
    pub names: u64,
    /// Lookups.
    pub lookups: u64,
    /// Of those, inside ([`DnsRow::kind`] is not `external`).
    pub internal: u64,
    /// Of those, answered with an error, tries of the search path included.
    pub failed: u64,
    /// Of those, never answered.
    pub unanswered: u64,
    /// Of those, tries with a suffix of the search path that came to nothing.
    pub wasted: u64,
    /// Questions that had to be sent again.
    pub repeated: u64,
    /// Those with a known latency.
    pub timed: u64,
    /// Their mean latency, microseconds; null without any.
    pub latency_us: Option<u64>,
    /// The longest, microseconds.
    pub latency_max_us: Option<u64>,
    /// Resolvers that were asked, at most 8; of [`DnsReport::Explain`], and the one of [`DnsReport::Bypass`].
    pub resolvers: Vec<String>,
    /// What was answered, at most 8; of [`DnsReport::Explain`] only.
    pub answers: Vec<String>,
    /// First question.
    pub first_seen: Timestamp,
    /// Last question.
    pub last_seen: Timestamp,
    /// How the questions travelled, `dot` or `doh`; of [`DnsReport::Bypass`] only.
    pub transport: String,
    /// The asker's own address and port of the last one; of [`DnsReport::Bypass`] only.
    pub example: Option<String>,
}

/// Who asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Asker {
    /// Name of the agent.
    pub agent: String,
    /// Name of its home federator.
    pub federator: String,
    /// Place; of a pod its own namespace.
    pub site: Site,
    /// Workload.
    pub workload: String,
    /// Pod.
    pub pod: Option<String>,
    /// Container id.
    pub container: Option<String>,
    /// Name of the process.
    pub process: Option<String>,
}

/// A lookup as it is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LookupRecord {
    /// Who saw it; on a client's side who asked.
    pub asker: Asker,
    /// Process id.
    pub pid: Option<u32>,
    /// Client asked, server was asked.
    pub role: Role,
    /// DNS or multicast DNS.
    pub protocol: LookupProtocol,
    /// How it travelled.
    pub transport: LookupTransport,
    /// Own address and port.
    pub local: String,
    /// The peer's.
    pub resolver: String,
    /// When it was first asked.
    pub asked_at: Timestamp,
    /// Until the answer; null when there was none.
    pub latency_us: Option<u32>,
    /// The name.
    pub name: String,
    /// Type, `A` for one; `TYPE123` where it has no usual name.
    pub qtype: String,
    /// `noerror`, `nxdomain` and so on; null when there was no answer.
    pub code: Option<String>,
    /// Whether the answer was cut.
    pub truncated: bool,
    /// How often it was sent.
    pub tries: u8,
    /// The first answers: `address/seconds` or a name.
    pub answers: Vec<String>,
    /// How many there were.
    pub answer_total: u16,
    /// Bytes of the question.
    pub request_bytes: u32,
    /// Bytes of the answer.
    pub response_bytes: u32,
    /// What was meant, when this only tried a suffix of the search path.
    pub search_of: Option<String>,
}

impl DnsRow {
    /// Adds up two rows about the same; who asked most is kept.
    pub fn add(&mut self, other: Self) {
        self.askers += other.askers;
        if (other.asker_lookups, &self.asker) > (self.asker_lookups, &other.asker) {
            (self.asker, self.asker_lookups) = (other.asker, other.asker_lookups);
        }
        let timed = self.timed + other.timed;
        let total = |row: Option<u64>, timed: u64| u128::from(row.unwrap_or(0)) * u128::from(timed);
        let sum = total(self.latency_us, self.timed) + total(other.latency_us, other.timed);
        self.latency_us = (timed > 0).then(|| (sum / u128::from(timed.max(1))) as u64);
        self.timed = timed;
        self.latency_max_us = self.latency_max_us.max(other.latency_max_us);
        self.names = self.names.max(other.names);
        self.lookups += other.lookups;
        self.internal += other.internal;
        self.failed += other.failed;
        self.unanswered += other.unanswered;
        self.wasted += other.wasted;
        self.repeated += other.repeated;
        for (list, more) in [
            (&mut self.resolvers, other.resolvers),
            (&mut self.answers, other.answers),
        ] {
            list.extend(more);
            list.sort();
            list.dedup();
            list.truncate(8);
        }
        if self.threat.is_none() {
            self.threat = other.threat;
        }
        if other.last_seen > self.last_seen {
            self.example = other.example;
        }
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
    }
}

/// Word of a response code by its IANA number.
pub fn code_word(code: u16) -> String {
    const WORDS: [&str; 11] = [
        "noerror", "formerr", "servfail", "nxdomain", "notimp", "refused", "yxdomain", "yxrrset",
        "nxrrset", "notauth", "notzone",
    ];
    match WORDS.get(usize::from(code)) {
        Some(word) => (*word).to_owned(),
        None => format!("code-{code}"),
    }
}

/// Word of a type by its IANA number.
pub fn type_word(qtype: u16) -> String {
    let word = match qtype {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        35 => "NAPTR",
        43 => "DS",
        48 => "DNSKEY",
        64 => "SVCB",
        65 => "HTTPS",
        255 => "ANY",
        other => return format!("TYPE{other}"),
    };
    word.to_owned()
}
