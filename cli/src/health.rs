//! `weft health` and `weft federators`: what is wrong, and how everything stands.

use serde::Serialize;
use weft_wire::Timestamp;
use weft_wire::query::{AgentHealth, FederatorHealth};

use crate::EXIT_FINDING;
use crate::failure::Failure;
use crate::figures::{bytes, count, counted, duration_us, percent};
use crate::table::{Table, figure, text};
use crate::view::{Text, View, json, json_rows, paths};

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

pub(crate) fn view(rows: &[FederatorHealth], now: Timestamp) -> Result<View, Failure> {
    let problems: Vec<Problem> = rows.iter().flat_map(problems).collect();
    let status = status(rows, &problems);
    let mut tail: Vec<String> = problems.iter().map(line).collect();
    let agents = agents_of_interest(rows, now);
    if !agents.rows.is_empty() {
        tail.push(String::new());
        tail.extend(agents.lines(None));
    }
    let counters = counters(rows);
    if !counters.is_empty() {
        tail.push(String::new());
        tail.extend(counters);
    }
    Ok(View {
        schema: "weft.health/1".to_owned(),
        more: vec![("status", json(&status)?), ("problems", json(&problems)?)],
        text: Text { head: vec![headline(rows, status, &problems)], table: federator_table(rows), tail },
        hints: hints(&problems),
        exit: status.exit_code(),
        ..base(rows)?
    })
}

pub(crate) fn federators(rows: &[FederatorHealth], _now: Timestamp) -> Result<View, Failure> {
    let problems: Vec<Problem> = rows.iter().flat_map(of_federator).collect();
    let tail = problems.iter().map(line).collect();
    let exit = if status(rows, &problems) == Severity::Ok { 0 } else { EXIT_FINDING };
    Ok(View {
        schema: "weft.federators/1".to_owned(),
        more: vec![("problems", json(&problems)?)],
        text: Text { head: Vec::new(), table: federator_table(rows), tail },
        summary: counted(rows.len(), "federator", "federators"),
        hints: hints(&problems),
        exit,
        ..base(rows)?
    })
}

fn base(rows: &[FederatorHealth]) -> Result<View, Failure> {
    let columns = [
        "name", "region", "version", "reached", "error", "uptime_s", "halves_per_second", "halves", "stitched", "match_ratio",
        "open_halves", "exchange_delay_us", "certificate_days_left", "journal_bytes", "store_bytes", "disk_free_bytes",
    ];
    Ok(View { rows: json_rows(rows)?, paths: paths(&columns), ..View::default() })
}

fn status(rows: &[FederatorHealth], problems: &[Problem]) -> Severity {
    if rows.is_empty() {
        return Severity::Unknown;
    }
    problems.iter().map(|p| p.severity).max().unwrap_or(Severity::Ok)
}

/// The first line: what a Nagios screen shows.
fn headline(rows: &[FederatorHealth], status: Severity, problems: &[Problem]) -> String {
    let reached = rows.iter().filter(|f| f.reached).count();
    let agents = rows.iter().flat_map(|f| &f.agents);
    let (all, connected) = agents.fold((0, 0), |(all, on), a| (all + 1, on + usize::from(a.connected)));
    let problems = match problems.len() {
        0 => "no problems".to_owned(),
        n => counted(n, "problem", "problems"),
    };
    let federators = counted(rows.len(), "federator", "federators");
    format!("{}: {reached} of {federators}, {connected} of {}, {problems}", status.word(), counted(all, "agent", "agents"))
}

fn line(problem: &Problem) -> String {
    format!("{:<4}  {}: {}", problem.severity.word(), problem.subject, problem.words)
}

fn hints(problems: &[Problem]) -> Vec<String> {
    let mut hints: Vec<String> = Vec::new();
    for problem in problems {
        if !problem.hint.is_empty() && !hints.contains(&problem.hint) {
            hints.push(problem.hint.clone());
        }
    }
    hints
}

fn problems(f: &FederatorHealth) -> Vec<Problem> {
    let mut found = of_federator(f);
    found.extend(f.agents.iter().flat_map(|agent| of_agent(agent, &f.name)));
    found
}

fn of_federator(f: &FederatorHealth) -> Vec<Problem> {
    let mut found = Findings::new(format!("federator {}", f.name));
    if !f.reached {
        let why = f.error.as_deref().unwrap_or("no reason known");
        found.critical("unreached", format!("does not answer ({why}); its matches are held and made when it returns"), "is weft-federator running there, and its UDP port open?");
        return found.list;
    }
    certificate(&mut found, f.certificate_days_left);
    if f.disk_free_bytes < DISK_FAIL_BYTES {
        found.critical("disk-full", format!("{} of disk left", bytes(f.disk_free_bytes)), "free disk, or lower [store] retention_days");
    } else if f.disk_free_bytes < DISK_WARN_BYTES {
        found.warning("disk-low", format!("{} of disk left", bytes(f.disk_free_bytes)), "free disk, or lower [store] retention_days");
    }
    for peer in &f.peers {
        if !peer.connected {
            let queued = counted(usize::try_from(peer.queued).unwrap_or(usize::MAX), "message waits", "messages wait");
            found.warning("peer-away", format!("no session with {}; {queued}", peer.name), "see the log of both: weft-federator");
        }
        skew(&mut found, peer.clock_skew_us, &format!("the clock of {}", peer.name));
    }
    if let Some(delay) = f.exchange_delay_us.filter(|delay| *delay > EXCHANGE_WARN_US) {
        let delay = duration_us(i64::try_from(delay).unwrap_or(i64::MAX));
        found.warning("exchange-slow", format!("matches with other regions take {delay} at the median"), "compare rtt and queues: weft health --json");
    }
    for (name, number) in &f.counters {
        if is_loss(name) && *number > 0 {
            found.warning("dropped", format!("{name} = {} since its start", count(*number)), "docs/operating.md says what each counter means");
        }
    }
    found.list
}

/// A counter of what is gone, as against what was refused.
fn is_loss(counter: &str) -> bool {
    counter.contains("dropped") || counter.contains("lost")
}

fn of_agent(a: &AgentHealth, federator: &str) -> Vec<Problem> {
    let mut found = Findings::new(format!("agent {} of {federator}", a.name));
    if !a.connected {
        found.warning("silent", format!("no session since {} UTC; it spools meanwhile", crate::figures::time(a.last_seen)), "on that host: weft-agent doctor");
    }
    certificate(&mut found, a.certificate_days_left);
    skew(&mut found, a.clock_skew_us, "its clock");
    if a.connected && a.lag_us > LAG_WARN_US {
        found.warning("lag", format!("halves become durable {} late; {} spooled", duration_us(a.lag_us), bytes(a.spool_bytes)), "is the link or the federator too slow?");
    }
    for (number, what, hint) in [
        (a.kernel_dropped, "records lost: a kernel buffer was full", "raise [capture] ring_bytes"),
        (a.table_dropped, "halves not tracked: the connection table was full", "raise [capture] max_connections"),
        (a.spool_dropped, "halves lost: the spool was full", "raise [spool] max_bytes"),
    ] {
        if number > 0 {
            found.warning("dropped", format!("{} {what}", count(number)), hint);
        }
    }
    found.list
}

fn certificate(found: &mut Findings, days: i64) {
    let hint = "weft pki issue …, then restart it";
    match days {
        ..0 => found.critical("certificate", "its certificate has ended".to_owned(), hint),
        0..=CERTIFICATE_FAIL_DAYS => found.critical("certificate", format!("its certificate ends in {days} d"), hint),
        ..=CERTIFICATE_WARN_DAYS => found.warning("certificate", format!("its certificate ends in {days} d"), hint),
        _ => {}
    }
}

fn skew(found: &mut Findings, skew_us: i64, whose: &str) {
    if skew_us.unsigned_abs() > SKEW_WARN_US.unsigned_abs() {
        let way = if skew_us > 0 { "ahead" } else { "behind" };
        let off = duration_us(i64::try_from(skew_us.unsigned_abs()).unwrap_or(i64::MAX));
        found.warning("clock-skew", format!("{whose} is {off} {way}"), "run chrony or systemd-timesyncd on all hosts");
    }
}

struct Findings {
    subject: String,
    list: Vec<Problem>,
}

impl Findings {
    fn new(subject: String) -> Self {
        Self { subject, list: Vec::new() }
    }

    fn warning(&mut self, code: &'static str, words: String, hint: &str) {
        self.add(Severity::Warning, code, words, hint);
    }

    fn critical(&mut self, code: &'static str, words: String, hint: &str) {
        self.add(Severity::Critical, code, words, hint);
    }

    fn add(&mut self, severity: Severity, code: &'static str, words: String, hint: &str) {
        self.list.push(Problem { severity, subject: self.subject.clone(), code, words, hint: hint.to_owned() });
    }
}

fn federator_table(rows: &[FederatorHealth]) -> Table {
    let columns = vec![
        text("NAME", 0),
        text("REGION", 6),
        text("STATE", 0),
        figure("AGENTS", 1),
        figure("PEERS", 1),
        figure("SKEW", 5),
        figure("LAG", 4),
        figure("HALVES/S", 2),
        figure("MATCHED", 2),
        figure("OPEN", 6),
        figure("EXCHANGE", 5),
        figure("DROPPED", 3),
        figure("CERT", 3),
        figure("STORE", 7),
        figure("DISK FREE", 4),
        text("VERSION", 8),
        figure("UP", 7),
    ];
    Table { columns, rows: rows.iter().map(federator_row).collect() }
}

fn federator_row(f: &FederatorHealth) -> Vec<String> {
    let state = of_federator(f).iter().map(|p| p.severity).max().unwrap_or(Severity::Ok);
    let mut row = vec![f.name.clone(), f.region.clone(), state.word().to_owned()];
    if !f.reached {
        row.resize(17, "-".to_owned());
        return row;
    }
    let of = |on: usize, all: usize| format!("{on}/{all}");
    let furthest = |values: &mut dyn Iterator<Item = i64>| values.max_by_key(|v| v.unsigned_abs()).map_or("-".to_owned(), duration_us);
    let skews = f.agents.iter().filter(|a| a.connected).map(|a| a.clock_skew_us).chain(f.peers.iter().filter(|p| p.connected).map(|p| p.clock_skew_us));
    row.extend([
        of(f.agents.iter().filter(|a| a.connected).count(), f.agents.len()),
        of(f.peers.iter().filter(|p| p.connected).count(), f.peers.len()),
        furthest(&mut { skews }),
        furthest(&mut f.agents.iter().filter(|a| a.connected).map(|a| a.lag_us)),
        per_second(f.halves_per_second),
        f.match_ratio.map_or("-".to_owned(), |ratio| percent(ratio * 100.0)),
        count(f.open_halves),
        f.exchange_delay_us.map_or("-".to_owned(), |us| duration_us(i64::try_from(us).unwrap_or(i64::MAX))),
        count(dropped(f)),
        format!("{} d", f.certificate_days_left),
        bytes(f.store_bytes.saturating_add(f.journal_bytes)),
        bytes(f.disk_free_bytes),
        f.version.clone(),
        duration_us(i64::try_from(f.uptime_s).unwrap_or(i64::MAX).saturating_mul(1_000_000)),
    ]);
    row
}

fn per_second(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { count(rate.round() as u64) }
}

/// Everything that it or its agents lost.
fn dropped(f: &FederatorHealth) -> u64 {
    let own = f.counters.iter().filter(|(name, _)| is_loss(name)).map(|(_, number)| *number);
    own.chain(f.agents.iter().map(lost)).fold(0, u64::saturating_add)
}

fn lost(a: &AgentHealth) -> u64 {
    a.kernel_dropped.saturating_add(a.table_dropped).saturating_add(a.spool_dropped)
}

/// Agents with problems.
fn agents_of_interest(rows: &[FederatorHealth], now: Timestamp) -> Table {
    let columns = vec![
        text("AGENT", 0),
        text("FEDERATOR", 1),
        text("STATE", 0),
        figure("LAST SEEN", 1),
        figure("SKEW", 3),
        figure("LAG", 3),
        figure("OPEN", 4),
        figure("SPOOL", 2),
        figure("DROPPED", 1),
        figure("CERT", 2),
        text("VERSION", 5),
    ];
    let pairs = rows.iter().flat_map(|f| f.agents.iter().map(move |a| (f, a)));
    let rows = pairs.filter_map(|(f, a)| {
        let worst = of_agent(a, &f.name).iter().map(|p| p.severity).max()?;
        Some(vec![
            a.name.clone(),
            f.name.clone(),
            worst.word().to_owned(),
            duration_us(now.0.saturating_sub(a.last_seen.0).max(0)),
            duration_us(a.clock_skew_us),
            duration_us(a.lag_us),
            count(a.open),
            bytes(a.spool_bytes),
            count(lost(a)),
            format!("{} d", a.certificate_days_left),
            a.version.clone(),
        ])
    });
    Table { columns, rows: rows.collect() }
}

/// What was refused, or closed for cause: no problem by itself, never hidden.
fn counters(rows: &[FederatorHealth]) -> Vec<String> {
    let mut lines = Vec::new();
    for f in rows {
        let counted = f.counters.iter().filter(|(name, n)| **n > 0 && !is_loss(name)).map(|(name, n)| format!("{name} {}", count(*n)));
        let closed = f.closes.iter().filter(|(_, n)| *n > 0).map(|(code, n)| format!("closed {} {}", code.name(), count(*n)));
        let all: Vec<String> = counted.chain(closed).collect();
        if !all.is_empty() {
            lines.push(format!("note  federator {} counts since its start: {}", f.name, all.join(", ")));
        }
    }
    lines
}
