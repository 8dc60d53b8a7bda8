//! What is wrong with a federator or an agent, by objectives.

use serde::Serialize;
use weft_wire::query::{AgentHealth, FederatorHealth};

use crate::figures::{bytes, count, counted, duration_us, percent, time};
use crate::health::measures;
use crate::health::objectives::{Objectives, Subject};

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

/// Counters of what was refused for cause: problems of the window in which they grow.
const REFUSED_LATELY: [(&str, &str, &str); 7] = [
    (
        "handshakes_refused_expired",
        "handshakes were refused: the certificate had ended",
        "its log says from where; agents renew by themselves: were they off for longer?",
    ),
    (
        "handshakes_refused_revoked",
        "handshakes were refused: somebody who is shut out knocks",
        "weft pki revoked lists who is",
    ),
    (
        "handshakes_refused_unknown_ca",
        "handshakes were refused: the certificate is of another CA",
        "after a change of the CA: is the new one in every ca.pem? docs/operating.md, Certificates",
    ),
    (
        "disk_full_refusals",
        "sessions were refused: the disk was full",
        "free disk, or lower [store] retention_days",
    ),
    (
        "journal_full_refusals",
        "sessions were refused: the journal was full",
        "is the store's disk slow? raise [journal] max_bytes",
    ),
    (
        "agents_full_refusals",
        "agents were refused: there are too many",
        "another federator",
    ),
    (
        "sessions_full_refusals",
        "sessions were refused: there are too many",
        "another federator",
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
    pub code: String,
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
pub(crate) fn problems(f: &FederatorHealth, objectives: &Objectives) -> Vec<Problem> {
    let mut found = of_federator(f, objectives);
    let silent = measures::value(f, Subject::AgentsSilent).unwrap_or(0.0);
    let silence = objectives.judge(Subject::AgentsSilent, silent);
    let of_agents = |agent| of_agent(agent, f, objectives, silence);
    found.extend(f.agents.iter().flat_map(of_agents));
    found
}

/// Of which time counters are: in words.
pub(crate) fn within(f: &FederatorHealth) -> String {
    match &f.window {
        Some(window) => {
            let micros = i64::try_from(window.seconds.saturating_mul(1_000_000));
            format!("in the last {}", duration_us(micros.unwrap_or(i64::MAX)))
        }
        None => "since its start".to_owned(),
    }
}

/// What is wrong with a federator itself.
pub(crate) fn of_federator(f: &FederatorHealth, objectives: &Objectives) -> Vec<Problem> {
    let mut found = Findings::new(format!("federator {}", f.name), objectives);
    if !f.reached {
        let why = f.error.as_deref().unwrap_or("no reason known");
        found.judged(
            Subject::Unreached,
            1.0,
            "unreached",
            || {
                format!(
                    "does not answer ({why}); its matches are made when it returns within stitch.expiry_s"
                )
            },
            "is weft-federator running there, and its UDP port open?",
        );
        return found.list;
    }
    certificate(&mut found, f.certificate_days_left);
    for trouble in &f.troubles {
        let severity = if trouble.failing {
            Severity::Critical
        } else {
            Severity::Warning
        };
        let words = format!("{} (since {} UTC)", trouble.words, time(trouble.since));
        found.add(severity, &trouble.code, words, remedy(&trouble.code));
    }
    if !f.troubles.iter().any(|trouble| trouble.code == "disk-full") {
        let free = f.disk_free_bytes;
        let severity = objectives.judge(Subject::DiskFree, free as f64);
        let code = if severity == Severity::Critical {
            "disk-full"
        } else {
            "disk-low"
        };
        let words = || format!("{} of disk left", bytes(free));
        let hint = "free disk, or lower [store] retention_days";
        found.judged(Subject::DiskFree, free as f64, code, words, hint);
    }
    if !f
        .troubles
        .iter()
        .any(|trouble| trouble.code == "journal-full")
        && let Some(fill) = measures::value(f, Subject::JournalFill)
    {
        let words = || {
            format!(
                "its journal is {} full: the store does not follow",
                percent(fill * 100.0)
            )
        };
        found.judged(
            Subject::JournalFill,
            fill,
            "journal-fill",
            words,
            remedy("journal-full"),
        );
    }
    for (subject, code, what) in [
        (
            Subject::MatchRatio,
            "match-ratio",
            "of its halves are matched",
        ),
        (
            Subject::LossRatio,
            "loss-ratio",
            "of the halves seen were lost",
        ),
    ] {
        if let Some(ratio) = measures::value(f, subject) {
            let words = || format!("{} {what}", percent(ratio * 100.0));
            found.judged(subject, ratio, code, words, "docs/operating.md, Alerts");
        }
    }
    let down = measures::value(f, Subject::PeersDown).unwrap_or(0.0);
    let down = objectives.judge(Subject::PeersDown, down);
    for peer in &f.peers {
        if !peer.connected {
            let queued = counted(
                usize::try_from(peer.queued).unwrap_or(usize::MAX),
                "message waits",
                "messages wait",
            );
            let since = match peer.last_seen {
                Some(at) => format!(" since {} UTC", time(at)),
                None => String::new(),
            };
            let why = peer
                .error
                .as_deref()
                .map_or(String::new(), |why| format!(" ({why})"));
            found.add(
                down,
                "peer-away",
                format!("no session with {}{since}{why}; {queued}", peer.name),
                "see the log of both: weft-federator",
            );
            continue;
        }
        skew(
            &mut found,
            peer.clock_skew_us,
            &format!("the clock of {}", peer.name),
        );
    }
    if let Some(delay) = f.exchange_delay_us {
        let micros = i64::try_from(delay).unwrap_or(i64::MAX);
        found.judged(
            Subject::Exchange,
            delay as f64 / 1e6,
            "exchange-slow",
            || {
                format!(
                    "matches with other regions take {} at the median",
                    duration_us(micros)
                )
            },
            "compare rtt and queues: weft health --json",
        );
    }
    let (counters, within) = (measures::counted(f), within(f));
    for (name, number) in counters {
        if is_loss(name) && *number > 0 {
            found.judged(
                Subject::LostHalves,
                measures::dropped(f) as f64,
                "dropped",
                || format!("{name} = {} {within}", count(*number)),
                "docs/operating.md says what each counter means",
            );
        }
    }
    for (name, words, hint) in LIMITS_REACHED {
        let number = counters.get(name).copied().unwrap_or(0);
        if number > 0 {
            found.warning("limit", format!("{} {words}", count(number)), hint);
        }
    }
    for (name, words, hint) in REFUSED_LATELY {
        let number = counters.get(name).copied().unwrap_or(0);
        // What was refused before the window, or at any time since the start, is no problem of now.
        if f.window.is_some() && number > 0 {
            found.warning(
                "refused",
                format!("{} {words} {within}", count(number)),
                hint,
            );
        }
    }
    found.list
}

/// What to do about a trouble that a federator tells of itself.
fn remedy(code: &str) -> &'static str {
    match code {
        "disk-full" => "free disk, or lower [store] retention_days; it goes on by itself",
        "journal-full" => {
            "is the store's disk slow? raise [journal] max_bytes; it goes on by itself"
        }
        "store-behind" => {
            "is the store's disk slow, or [store] memory_limit small? its log says more"
        }
        "clock-stepped" => "run chrony or systemd-timesyncd on all hosts",
        _ => "docs/operating.md, Alerts",
    }
}

/// A counter of what is gone, as against what was refused or went otherwise than it should.
pub(crate) fn is_loss(counter: &str) -> bool {
    counter.contains("dropped")
}

/// How problems name an agent.
pub(crate) fn agent(a: &AgentHealth, f: &FederatorHealth) -> String {
    format!("agent {} of {}", a.name, f.name)
}

/// What is wrong with one of its agents.
fn of_agent(
    a: &AgentHealth,
    f: &FederatorHealth,
    objectives: &Objectives,
    silence: Severity,
) -> Vec<Problem> {
    let mut found = Findings::new(agent(a, f), objectives);
    if !a.connected {
        found.add(
            silence,
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
    if a.connected {
        let words = || {
            format!(
                "halves become durable {} late; {} spooled",
                duration_us(a.lag_us),
                bytes(a.spool_bytes)
            )
        };
        let hint = "is the link or the federator too slow?";
        found.judged(Subject::Lag, a.lag_us as f64 / 1e6, "lag", words, hint);
    }
    if a.connected && a.spool_failing {
        found.critical(
            "spool-failing",
            "its spool takes nothing; the kernel's ring buffers until it is full".to_owned(),
            "on that host: is the disk of [agent] data_dir full, or read-only?",
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
        // Which of them the window saw is not known: all are named when it saw any.
        if number > 0 && a.lost_in_window != Some(0) {
            let words = || format!("{} {what}", count(number));
            let lost = measures::lost_by(a) as f64;
            found.judged(Subject::LostHalves, lost, "dropped", words, hint);
        }
    }
    found.list
}

fn certificate(found: &mut Findings<'_>, days: i64) {
    let hint = "weft pki issue …, then put the files in place";
    if days < 0 {
        found.critical("certificate", "its certificate has ended".to_owned(), hint);
    } else {
        let words = || format!("its certificate ends in {days} d");
        found.judged(
            Subject::Certificate,
            days as f64,
            "certificate",
            words,
            hint,
        );
    }
}

fn skew(found: &mut Findings<'_>, skew_us: i64, whose: &str) {
    let words = || {
        let way = if skew_us > 0 { "ahead" } else { "behind" };
        let off = duration_us(i64::try_from(skew_us.unsigned_abs()).unwrap_or(i64::MAX));
        format!("{whose} is {off} {way}")
    };
    let seconds = skew_us.unsigned_abs() as f64 / 1e6;
    let hint = "run chrony or systemd-timesyncd on all hosts";
    found.judged(Subject::Skew, seconds, "clock-skew", words, hint);
}

struct Findings<'a> {
    subject: String,
    objectives: &'a Objectives,
    list: Vec<Problem>,
}

impl<'a> Findings<'a> {
    fn new(subject: String, objectives: &'a Objectives) -> Self {
        Self {
            subject,
            objectives,
            list: Vec::new(),
        }
    }

    fn warning(&mut self, code: &str, words: String, hint: &str) {
        self.add(Severity::Warning, code, words, hint);
    }

    fn critical(&mut self, code: &str, words: String, hint: &str) {
        self.add(Severity::Critical, code, words, hint);
    }

    /// A problem if the value is beyond its bounds.
    fn judged(
        &mut self,
        subject: Subject,
        value: f64,
        code: &str,
        words: impl FnOnce() -> String,
        hint: &str,
    ) {
        let severity = self.objectives.judge(subject, value);
        if severity != Severity::Ok {
            self.add(severity, code, words(), hint);
        }
    }

    fn add(&mut self, severity: Severity, code: &str, words: String, hint: &str) {
        // What the objectives do not mind is no problem.
        if severity == Severity::Ok {
            return;
        }
        self.list.push(Problem {
            severity,
            subject: self.subject.clone(),
            code: code.to_owned(),
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

    const CERTIFICATE_WARN_DAYS: i64 = 14;
    const CERTIFICATE_FAIL_DAYS: i64 = 3;
    const DISK_WARN_BYTES: u64 = 5_000_000_000;
    const DISK_FAIL_BYTES: u64 = 1_000_000_000;
    const SKEW_WARN_US: i64 = 1_000_000;
    const LAG_WARN_US: i64 = 30_000_000;
    const EXCHANGE_WARN_US: u64 = 5_000_000;

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
    fn after(change: impl FnOnce(&mut FederatorHealth)) -> Vec<(String, Severity)> {
        let mut federator = well();
        change(&mut federator);
        let found = problems(&federator, &Objectives::default());
        found.into_iter().map(|p| (p.code, p.severity)).collect()
    }

    #[test]
    fn counters_that_mean_loss_are_warnings() {
        let counted = |name: &str| after(|f| f.counters.extend([(name.to_owned(), 1)]));
        assert_eq!(
            counted("memory_full_halves"),
            [("limit".to_owned(), Severity::Warning)]
        );
        assert_eq!(
            counted("not_offered_halves"),
            [("limit".to_owned(), Severity::Warning)]
        );
        assert_eq!(counted("sessions_lost"), []);
        assert_eq!(counted("peer_messages_refused"), []);
    }

    #[test]
    fn thresholds_hold_to_the_unit() {
        use Severity::{Critical, Warning};
        assert_eq!(after(|_| ()), []);
        assert_eq!(
            after(|f| f.reached = false),
            [("unreached".to_owned(), Critical)]
        );
        assert_eq!(
            after(|f| f.certificate_days_left -= 1),
            [("certificate".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.certificate_days_left = CERTIFICATE_FAIL_DAYS + 1),
            [("certificate".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.certificate_days_left = CERTIFICATE_FAIL_DAYS),
            [("certificate".to_owned(), Critical)]
        );
        assert_eq!(
            after(|f| f.agents[0].certificate_days_left = -1),
            [("certificate".to_owned(), Critical)]
        );
        assert_eq!(
            after(|f| f.disk_free_bytes -= 1),
            [("disk-low".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.disk_free_bytes = DISK_FAIL_BYTES - 1),
            [("disk-full".to_owned(), Critical)]
        );
        assert_eq!(
            after(|f| f.exchange_delay_us = Some(EXCHANGE_WARN_US + 1)),
            [("exchange-slow".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.peers[0].connected = false),
            [("peer-away".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.peers[0].clock_skew_us += 1),
            [("clock-skew".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.agents[0].clock_skew_us -= 1),
            [("clock-skew".to_owned(), Warning)]
        );
        let trouble = |code: &str, failing| weft_wire::query::Trouble {
            code: code.into(),
            failing,
            ..weft_wire::query::Trouble::default()
        };
        assert_eq!(
            after(|f| {
                f.disk_free_bytes = 0;
                f.troubles = vec![trouble("disk-full", true), trouble("clock-stepped", false)];
            }),
            [
                ("disk-full".to_owned(), Critical),
                ("clock-stepped".to_owned(), Warning)
            ]
        );
        assert_eq!(
            after(|f| (f.journal_bytes, f.journal_max_bytes) = (5, 10)),
            []
        );
        assert_eq!(
            after(|f| (f.journal_bytes, f.journal_max_bytes) = (6, 10)),
            [("journal-fill".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.agents[0].spool_failing = true),
            [("spool-failing".to_owned(), Critical)]
        );
        assert_eq!(
            after(|f| f.agents[0].lag_us += 1),
            [("lag".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| {
                f.agents[0].connected = false;
                f.agents[0].certificate_days_left = -1;
            }),
            [("silent".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.agents[0].kernel_dropped = 1),
            [("dropped".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.agents[0].table_dropped = 1),
            [("dropped".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.agents[0].given_up = vec![Detail::Processes]),
            [("detail".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.agents[0].spool_dropped = 1),
            [("dropped".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.counters.extend([("rows_dropped".into(), 1)])),
            [("dropped".to_owned(), Warning)]
        );
        assert_eq!(
            after(|f| f.counters.extend([("frames_refused".into(), 1)])),
            []
        );
    }

    /// A window is about what it saw: what was before it is no problem any more, what is refused in it is one.
    #[test]
    fn a_window_judges_what_it_saw() {
        use weft_wire::query::HealthWindow;
        let window = |f: &mut FederatorHealth, name: &str, count| {
            f.counters.insert(name.into(), 9);
            f.agents[0].kernel_dropped = 9;
            f.agents[0].lost_in_window = Some(0);
            f.window = Some(HealthWindow {
                seconds: 600,
                counters: [(name.to_owned(), count)].into(),
                ..HealthWindow::default()
            });
        };
        assert_eq!(after(|f| window(f, "rows_dropped", 0)), []);
        assert_eq!(
            after(|f| window(f, "rows_dropped", 1)),
            [("dropped".to_owned(), Severity::Warning)]
        );
        assert_eq!(after(|f| window(f, "disk_full_refusals", 0)), []);
        assert_eq!(
            after(|f| window(f, "disk_full_refusals", 2)),
            [("refused".to_owned(), Severity::Warning)]
        );
        assert_eq!(
            after(|f| f.counters.extend([("disk_full_refusals".into(), 1)])),
            []
        );
        assert_eq!(
            after(|f| {
                window(f, "rows_dropped", 0);
                f.agents[0].lost_in_window = Some(3);
            }),
            [("dropped".to_owned(), Severity::Warning)]
        );
    }

    #[test]
    fn objectives_judge_in_place_of_what_is_built_in() {
        let objectives = Objectives::parse(
            "[match_ratio]\ncritical = 0.9\n[agents_silent]\ncritical = 1\n[disk_free_bytes]\n[loss_ratio]\nwarning = 0.1\n",
        )
        .unwrap();
        let mut f = well();
        f.match_ratio = Some(0.89);
        f.agents[0].connected = false;
        f.disk_free_bytes = 0;
        f.halves = 8;
        f.agents[0].spool_dropped = 2;
        let found: Vec<_> = problems(&f, &objectives)
            .into_iter()
            .map(|p| (p.code, p.severity))
            .collect();
        assert_eq!(
            found,
            [
                ("match-ratio".to_owned(), Severity::Critical),
                ("loss-ratio".to_owned(), Severity::Warning),
                ("silent".to_owned(), Severity::Critical),
                ("dropped".to_owned(), Severity::Warning),
            ]
        );
    }
}
