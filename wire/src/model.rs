//! The words of the design as types: halves, fingerprints, sites, processes.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time: microseconds since the Unix epoch, UTC.
///
/// Text formats carry RFC 3339 with six fractional digits and `Z`; binary formats the integer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Protocol {
    /// TCP, RFC 9293.
    Tcp = 6,
    /// UDP, RFC 768.
    Udp = 17,
}

/// Which end of a connection a half saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Opened the connection (active open).
    Client,
    /// Accepted it (passive open).
    Server,
}

/// Where a half is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HalfState {
    /// Established and not yet closed.
    Open,
    /// Was established, is closed.
    Closed,
    /// Never established: the peer, or a host on the way, refused (RST or ICMP unreachable).
    Refused,
    /// Never established: nothing answered before the kernel gave up.
    TimedOut,
    /// Never established: this end gave up first (the socket was closed while connecting).
    Aborted,
}

/// What NAT cannot change about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fingerprint {
    /// Nothing known: the connection is older than the agent, or was never established.
    Unknown,
    /// TCP initial sequence numbers (RFC 9293, 3.4.1), of the client's and the server's SYN.
    TcpIsn {
        /// Initial sequence number of the client.
        client: u32,
        /// Initial sequence number of the server.
        server: u32,
    },
}

/// One end's view of one connection, as far as it is known at `seen_at`. Later rows of the same `id`
/// replace earlier ones; they never contradict them on identity, addresses, role or opening time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Half {
    /// Identity; see [`HalfId`]. Not on the wire in a batch: a receiver computes it from the sender's key,
    /// [`HalfBatch::boot`] and `cookie`, so that nobody can speak of another's halves.
    pub id: HalfId,
    /// The kernel's socket cookie: unique within a boot.
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
    /// Payload bytes sent and acknowledged by the peer.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Segments sent.
    pub packets_sent: u64,
    /// Segments received.
    pub packets_received: u64,
    /// Smoothed round-trip time in microseconds; 0 when unknown.
    pub rtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// Index into the owners that travel with the half ([`HalfBatch::owners`]).
    pub owner: u32,
}

/// The process, container and namespace behind a socket. A dictionary entry: many halves share one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The process that connected or listens; `None` when nothing could be learned of it.
    pub process: Option<Process>,
    /// Path of the cgroup v2 directory the socket's owner lives in, from the hierarchy's root.
    pub cgroup: String,
    /// Container id found in that path (64 hexadecimal digits), if it is a container's.
    pub container: Option<String>,
    /// Inode of the socket's network namespace; 0 when unknown.
    pub netns: u32,
    /// What the agent's configuration calls this workload.
    pub workload: String,
}

/// A process, as it was when its socket was made or first seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the host's PID namespace.
    pub pid: u32,
    /// Start time; tells a reused pid apart. 0 when the process was gone before it could be read.
    pub started_at: Timestamp,
    /// The kernel's name of it (`comm`).
    pub name: String,
    /// Executable; `None` when the process was gone before it could be read.
    pub exe: Option<String>,
    /// Numeric user id.
    pub uid: u32,
    /// User name, when the host knows one.
    pub user: Option<String>,
}

/// Halves of one agent with the dictionary that they point into. The unit of encoding, delivery,
/// acknowledgement and deduplication.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HalfBatch {
    /// Names the boot of the kernel that made the cookies; see [`HalfId::new`].
    pub boot: u64,
    /// Processes and workloads; [`Half::owner`] is an index into this list.
    pub owners: Vec<Owner>,
    /// The rows.
    pub halves: Vec<Half>,
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
        matches!(self, Self::Open | Self::Closed)
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

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.rem_euclid(1_000_000);
        let seconds = self.0.div_euclid(1_000_000);
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{micros:06}Z",
            second / 3600,
            second / 60 % 60,
            second % 60
        )
    }
}

/// Days since 1970-01-01 to year, month, day in the proleptic Gregorian calendar
/// (the era method: eras of 146,097 days, years that begin in March).
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            s.collect_str(self)
        } else {
            s.serialize_i64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            let text = String::deserialize(d)?;
            Self::parse(&text).ok_or_else(|| {
                serde::de::Error::custom(format!("not an RFC 3339 UTC time: {text}"))
            })
        } else {
            i64::deserialize(d).map(Self)
        }
    }
}

impl Timestamp {
    /// Parses exactly what [`fmt::Display`] prints: `YYYY-MM-DDTHH:MM:SS.ffffffZ`.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 27 || !text.is_ascii() {
            return None;
        }
        for (at, expected) in [
            (4, b'-'),
            (7, b'-'),
            (10, b'T'),
            (13, b':'),
            (16, b':'),
            (19, b'.'),
            (26, b'Z'),
        ] {
            if bytes[at] != expected {
                return None;
            }
        }
        let number = |range: std::ops::Range<usize>| {
            let digits = &text[range];
            digits
                .bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| digits.parse::<i64>().ok())
                .flatten()
        };
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second, micros) = (
            number(11..13)?,
            number(14..16)?,
            number(17..19)?,
            number(20..26)?,
        );
        if !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let days = days_from_civil(year, month, day);
        if civil_from_days(days) != (year, month, day) {
            return None;
        }
        Some(Self(
            (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros,
        ))
    }
}

/// The inverse of [`civil_from_days`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_prints_and_parses() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_795_361_335_123_456, "2026-11-22T15:28:55.123456Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(Timestamp(micros).to_string(), text);
            assert_eq!(Timestamp::parse(text), Some(Timestamp(micros)));
        }
        assert_eq!(Timestamp::parse("2026-02-30T00:00:00.000000Z"), None);
        assert_eq!(Timestamp::parse("2026-02-28 00:00:00.000000Z"), None);
    }
}
