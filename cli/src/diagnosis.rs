//! What is wrong with a federator or an agent, by thresholds.

use serde::Serialize;
use weft_wire::query::{AgentHealth, FederatorHealth};

use crate::figures::{bytes, count, counted, duration_us, time};

/// A certificate that ends within so many days is a warning, …
pub const CERTIFICATE_WARN_DAYS: i64 = 14;
/// … and within so many a failure.
pub const CERTIFICATE_FAIL_DAYS: i64 = 3;
/// Less free disk than this under a federator is a warning, …
pub const DISK_WARN_BYTES: u64 = 5_000_000_000;
/// … and less than this a failure: it stops taking batches when nothing is left.
pub const DISK_FAIL_BYTES: u64 = 1_000_000_000;
/// A clock that is off by more is a warning: times of the two ends no longer order events.
pub const SKEW_WARN_US: i64 = 1_000_000;
/// Halves that become durable later than this after their making are a warning.
pub const LAG_WARN_US: i64 = 30_000_000;
/// Matches between regions that take longer than this, at the median, are a warning.
pub const EXCHANGE_WARN_US: u64 = 5_000_000;

/// Counters of a federator that mean missing matches: name, in words, and what to do.
const LIMITS_REACHED: [(&str, &str, &str); 7] = [
    (
        "memory_full_halves",
        "halves were stored without a chance to be matched: too many were open",
        "raise [stitch] max_open",
    ),
    (
        "not_offered_halves",
        "halves were not offered to the mesh: too many waited",
        "are the peers reachable? weft health --json shows their queues",
    ),
    (
        "owner_refused_offers",
        "offers of other homes were refused: too many waited here",
        "raise [stitch] max_open",
    ),
    (
        "stitcher_not_remembered_pairs",
        "pairs were not watched for a third half with the same claim: too many were open",
        "raise [stitch] max_open",
    ),
    (
        "stitcher_not_indexed_halves",
        "halves could not be found by their addresses: too many waited",
        "raise [stitch] max_open",
    ),
    (
        "stitcher_timers_early",
        "halves waited shorter than they should: too many were open",
        "raise [stitch] max_open",
    ),
    (
        "half_id_collisions",
        "halves had the id of another agent's half and were not kept",
        "please report this",
    ),
];

/// How bad it is; the words of Nagios in JSON, ours in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Needs attention some time.
    Warning,
    /// Answers are wrong or missing now, or soon.
    Critical,
    /// Nothing can be said.
    Unknown,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Of what: `federator fed-a`, `agent node-a1 of fed-a`.
    pub subject: String,
    /// Stable code.
    pub code: &'static str,
    /// In words.
    pub words: String,
    /// What to do.
    pub hint: String,
}

impl Severity {
    /// Never by colour alone.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warn",
            Self::Critical => "FAIL",
            Self::Unknown => "unknown",
        }
    }

    /// Exit code of a Nagios plugin.
    pub fn exit_code(self) -> u8 {
        self as u8
    }
}

/// Everything wrong with a federator and its agents.
pub(crate) fn problems(f: &FederatorHealth) -> Vec<Problem> {
    let mut found = of_federator(f);
    found.extend(f.agents.iter().flat_map(|agent| of_agent(agent, &f.name)));
    found
}

/// What is wrong with a federator itself.
pub(crate) fn of_federator(f: &FederatorHealth) -> Vec<Problem> {
    let mut found = Findings::new(format!("federator {}", f.name));
    if !f.reached {
        let why = f.error.as_deref().unwrap_or("no reason known");
        found.critical(
            "unreached",
            format!("does not answer ({why}); its matches are made when it returns within stitch.expiry_s"),
            "is weft-federator running there, and its UDP port open?",
        );
        return found.list;
    }
    certificate(&mut found, f.certificate_days_left);
    if f.disk_free_bytes < DISK_FAIL_BYTES {
        found.critical(
            "disk-full",
            format!("{} of disk left", bytes(f.disk_free_bytes)),
            "free disk, or lower [store] retention_days",
        );
    } else if f.disk_free_bytes < DISK_WARN_BYTES {
        found.warning(
            "disk-low",
            format!("{} of disk left", bytes(f.disk_free_bytes)),
            "free disk, or lower [store] retention_days",
        );
    }
    for peer in &f.peers {
        if !peer.connected {
            let queued = counted(
                usize::try_from(peer.queued).unwrap_or(usize::MAX),
                "message waits",
                "messages wait",
            );
            found.warning(
                "peer-away",
                format!("no session with {}; {queued}", peer.name),
                "see the log of both: weft-federator",
            );
        }
        skew(
            &mut found,
            peer.clock_skew_us,
            &format!("the clock of {}", peer.name),
        );
    }
    if let Some(delay) = f
        .exchange_delay_us
        .filter(|delay| *delay > EXCHANGE_WARN_US)
    {
        let delay = duration_us(i64::try_from(delay).unwrap_or(i64::MAX));
        found.warning(
            "exchange-slow",
            format!("matches with other regions take {delay} at the median"),
            "compare rtt and queues: weft health --json",
        );
    }
    for (name, number) in &f.counters {
        if is_loss(name) && *number > 0 {
            found.warning(
                "dropped",
                format!("{name} = {} since its start", count(*number)),
                "docs/operating.md says what each counter means",
            );
        }
    }
    for (name, words, hint) in LIMITS_REACHED {
        let number = f.counters.get(name).copied().unwrap_or(0);
        if number > 0 {
            found.warning("limit", format!("{} {words}", count(number)), hint);
        }
    }
    found.list
}

/// A counter of what is gone, as against what was refused or went otherwise than it should.
pub(crate) fn is_loss(counter: &str) -> bool {
    counter.contains("dropped")
}

/// What is wrong with one of its agents.
pub(crate) fn of_agent(a: &AgentHealth, federator: &str) -> Vec<Problem> {
    let mut found = Findings::new(format!("agent {} of {federator}", a.name));
    if !a.connected {
        found.warning(
            "silent",
            format!(
                "no session since {} UTC; it spools meanwhile",
                time(a.last_seen)
            ),
            "on that host: weft-agent doctor; if it was removed: nothing, it is forgotten after [agents] silent_days",
        );
    } else {
        // Of one without a session only the certificate that it had is known: it may have another, or be gone for good.
        certificate(&mut found, a.certificate_days_left);
    }
    skew(&mut found, a.clock_skew_us, "its clock");
    if a.connected && a.lag_us > LAG_WARN_US {
        found.warning(
            "lag",
            format!(
                "halves become durable {} late; {} spooled",
                duration_us(a.lag_us),
                bytes(a.spool_bytes)
            ),
            "is the link or the federator too slow?",
        );
    }
    if !a.given_up.is_empty() {
        let words: Vec<&str> = a.given_up.iter().map(|detail| detail.words()).collect();
        found.warning(
            "detail",
            format!(
                "gives up detail to stay within its limits (counts stay exact): {}",
                words.join("; ")
            ),
            "raise [limits] cpu_percent or memory_bytes; the agent's log says which was passed",
        );
    }
    for (number, what, hint) in [
        (
            a.kernel_dropped,
            "records lost: a kernel buffer was full",
            "raise [capture] ring_bytes",
        ),
        (
            a.table_dropped,
            "halves not tracked: the connection table was full",
            "raise [capture] max_connections",
        ),
        (
            a.spool_dropped,
            "halves lost: the spool was full",
            "raise [spool] max_bytes",
        ),
    ] {
        if number > 0 {
            found.warning("dropped", format!("{} {what}", count(number)), hint);
        }
    }
    found.list
}

fn certificate(found: &mut Findings, days: i64) {
    let hint = "weft pki issue …, then restart it";
    if days < 0 {
        found.critical("certificate", "its certificate has ended".to_owned(), hint);
    } else if days <= CERTIFICATE_FAIL_DAYS {
        found.critical(
            "certificate",
            format!("its certificate ends in {days} d"),
            hint,
        );
    } else if days <= CERTIFICATE_WARN_DAYS {
        found.warning(
            "certificate",
            format!("its certificate ends in {days} d"),
            hint,
        );
    }
}

fn skew(found: &mut Findings, skew_us: i64, whose: &str) {
    if skew_us.unsigned_abs() > SKEW_WARN_US.unsigned_abs() {
        let way = if skew_us > 0 { "ahead" } else { "behind" };
        let off = duration_us(i64::try_from(skew_us.unsigned_abs()).unwrap_or(i64::MAX));
        found.warning(
            "clock-skew",
            format!("{whose} is {off} {way}"),
            "run chrony or systemd-timesyncd on all hosts",
        );
    }
}

struct Findings {
    subject: String,
    list: Vec<Problem>,
}

impl Findings {
    fn new(subject: String) -> Self {
        Self {
            subject,
            list: Vec::new(),
        }
    }

    fn warning(&mut self, code: &'static str, words: String, hint: &str) {
        self.add(Severity::Warning, code, words, hint);
    }

    fn critical(&mut self, code: &'static str, words: String, hint: &str) {
        self.add(Severity::Critical, code, words, hint);
    }

    fn add(&mut self, severity: Severity, code: &'static str, words: String, hint: &str) {
        self.list.push(Problem {
            severity,
            subject: self.subject.clone(),
            code,
            words,
            hint: hint.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use weft_wire::control::Detail;

    use super::*;
    use weft_wire::query::PeerHealth;

    fn well() -> FederatorHealth {
        FederatorHealth {
            name: "fed-a".into(),
            reached: true,
            certificate_days_left: CERTIFICATE_WARN_DAYS + 1,
            disk_free_bytes: DISK_WARN_BYTES,
            exchange_delay_us: Some(EXCHANGE_WARN_US),
            peers: vec![PeerHealth {
                connected: true,
                clock_skew_us: SKEW_WARN_US,
                ..PeerHealth::default()
            }],
            agents: vec![agent()],
            ..FederatorHealth::default()
        }
    }

    fn agent() -> AgentHealth {
        AgentHealth {
            name: "node-a1".into(),
            connected: true,
            certificate_days_left: CERTIFICATE_WARN_DAYS + 1,
            clock_skew_us: -SKEW_WARN_US,
            lag_us: LAG_WARN_US,
            ..AgentHealth::default()
        }
    }

    /// The codes and severities found after one change to a federator that is well.
    fn after(change: impl FnOnce(&mut FederatorHealth)) -> Vec<(&'static str, Severity)> {
        let mut federator = well();
        change(&mut federator);
        problems(&federator)
            .iter()
            .map(|p| (p.code, p.severity))
            .collect()
    }

    #[test]
    fn counters_that_mean_loss_are_warnings() {
        let counted = |name: &str| after(|f| f.counters.extend([(name.to_owned(), 1)]));
        assert_eq!(
            counted("memory_full_halves"),
            [("limit", Severity::Warning)]
        );
        assert_eq!(
            counted("not_offered_halves"),
            [("limit", Severity::Warning)]
        );
        assert_eq!(counted("sessions_lost"), []);
        assert_eq!(counted("peer_messages_refused"), []);
    }

    #[test]
    fn thresholds_hold_to_the_unit() {
        use Severity::{Critical, Warning};
        assert_eq!(after(|_| ()), []);
        assert_eq!(after(|f| f.reached = false), [("unreached", Critical)]);
        assert_eq!(
            after(|f| f.certificate_days_left -= 1),
            [("certificate", Warning)]
        );
        assert_eq!(
            after(|f| f.certificate_days_left = CERTIFICATE_FAIL_DAYS + 1),
            [("certificate", Warning)]
        );
        assert_eq!(
            after(|f| f.certificate_days_left = CERTIFICATE_FAIL_DAYS),
            [("certificate", Critical)]
        );
        assert_eq!(
            after(|f| f.agents[0].certificate_days_left = -1),
            [("certificate", Critical)]
        );
        assert_eq!(after(|f| f.disk_free_bytes -= 1), [("disk-low", Warning)]);
        assert_eq!(
            after(|f| f.disk_free_bytes = DISK_FAIL_BYTES - 1),
            [("disk-full", Critical)]
        );
        assert_eq!(
            after(|f| f.exchange_delay_us = Some(EXCHANGE_WARN_US + 1)),
            [("exchange-slow", Warning)]
        );
        assert_eq!(
            after(|f| f.peers[0].connected = false),
            [("peer-away", Warning)]
        );
        assert_eq!(
            after(|f| f.peers[0].clock_skew_us += 1),
            [("clock-skew", Warning)]
        );
        assert_eq!(
            after(|f| f.agents[0].clock_skew_us -= 1),
            [("clock-skew", Warning)]
        );
        assert_eq!(after(|f| f.agents[0].lag_us += 1), [("lag", Warning)]);
        assert_eq!(
            after(|f| {
                f.agents[0].connected = false;
                f.agents[0].certificate_days_left = -1;
            }),
            [("silent", Warning)]
        );
        assert_eq!(
            after(|f| f.agents[0].kernel_dropped = 1),
            [("dropped", Warning)]
        );
        assert_eq!(
            after(|f| f.agents[0].table_dropped = 1),
            [("dropped", Warning)]
        );
        assert_eq!(
            after(|f| f.agents[0].given_up = vec![Detail::Processes]),
            [("detail", Warning)]
        );
        assert_eq!(
            after(|f| f.agents[0].spool_dropped = 1),
            [("dropped", Warning)]
        );
        assert_eq!(
            after(|f| f.counters.extend([("rows_dropped".into(), 1)])),
            [("dropped", Warning)]
        );
        assert_eq!(
            after(|f| f.counters.extend([("frames_refused".into(), 1)])),
            []
        );
    }
}
