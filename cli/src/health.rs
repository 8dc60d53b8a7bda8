//! `weft health` and `weft federators`: how everything stands.

pub mod measures;
pub mod objectives;

use weft_wire::Timestamp;
use weft_wire::control::CloseCode;
use weft_wire::query::FederatorHealth;

use crate::EXIT_FINDING;
use crate::diagnosis::{
    Problem, Severity, agent as of_agent, is_loss, of_federator, problems, within,
};
use crate::failure::Failure;
use crate::figures::{bytes, count, counted, duration_us, percent};
use crate::health::measures::{Check, counted as counted_by, dropped, lost_by, match_ratio};
use crate::health::objectives::Objectives;
use crate::output::Output;
use crate::table::{Table, figure, text};
use crate::view::{Block, Text, View, json, json_rows, paths};

pub(crate) fn view(
    rows: &[FederatorHealth],
    objectives: &Objectives,
    now: Timestamp,
) -> Result<View, Failure> {
    let found = |f| problems(f, objectives);
    let problems: Vec<Problem> = rows.iter().flat_map(found).collect();
    let status = status(rows, &problems);
    let summary = summary(rows, &problems);
    let mut text = vec![
        Block::Lines(vec![format!("{}: {summary}", status.word())]),
        Block::Table(federator_table(rows)),
        listed(&problems),
    ];
    let agents = agents_of_interest(rows, &problems, now);
    if !agents.rows.is_empty() {
        text.push(Block::Table(agents));
    }
    text.push(Block::Lines(counters(rows)));
    Ok(View {
        schema: "weft.health/1".to_owned(),
        more: vec![("status", json(&status)?), ("problems", json(&problems)?)],
        text: Text(text),
        hints: hints(&problems),
        exit: status.exit_code(),
        check: Some(Check {
            status,
            summary,
            measures: measures::measures(rows),
            counters: rows
                .iter()
                .filter(|f| f.reached)
                .map(|f| (f.name.clone(), f.counters.clone()))
                .collect(),
            problems,
            objectives: objectives.clone(),
            at: now,
        }),
        ..base(rows)?
    })
}

pub(crate) fn federators(rows: &[FederatorHealth]) -> Result<View, Failure> {
    let objectives = Objectives::default();
    let found = |f| of_federator(f, &objectives);
    let problems: Vec<Problem> = rows.iter().flat_map(found).collect();
    let exit = if status(rows, &problems) == Severity::Ok {
        0
    } else {
        EXIT_FINDING
    };
    Ok(View {
        schema: "weft.federators/1".to_owned(),
        more: vec![("problems", json(&problems)?)],
        text: Text(vec![Block::Table(federator_table(rows)), listed(&problems)]),
        summary: counted(rows.len(), "federator", "federators"),
        hints: hints(&problems),
        exit,
        ..base(rows)?
    })
}

/// Exit code when it was not even understood what to check: 2 would be an alarm.
pub(crate) const EXIT_UNKNOWN: u8 = Severity::Unknown as u8;

/// The first line and the exit code where there is no answer: a federator that is away is critical, everything else says
/// nothing about it.
pub(crate) fn unanswered(failure: &Failure, now: Timestamp, output: &mut Output<'_>) -> u8 {
    let Failure::Told(told) = failure else {
        return 0;
    };
    let severity = match told.code.as_str() {
        "E-REACH" | "E-LOST" | "E-TIMEOUT" | "E-BUSY" => Severity::Critical,
        _ => Severity::Unknown,
    };
    // The failure itself follows on stderr; a monitor shows the first line of stdout.
    let _ = output.failed_check(&Check::failed(severity, &told.what, now));
    severity.exit_code()
}

fn base(rows: &[FederatorHealth]) -> Result<View, Failure> {
    let columns = [
        "name",
        "region",
        "version",
        "reached",
        "error",
        "uptime_s",
        "halves_per_second",
        "halves",
        "stitched",
        "match_ratio",
        "open_halves",
        "exchange_delay_us",
        "certificate_days_left",
        "journal_bytes",
        "store_bytes",
        "disk_free_bytes",
    ];
    Ok(View {
        rows: json_rows(rows)?,
        paths: paths(&columns),
        ..View::default()
    })
}

fn status(rows: &[FederatorHealth], problems: &[Problem]) -> Severity {
    if rows.is_empty() {
        return Severity::Unknown;
    }
    problems
        .iter()
        .map(|p| p.severity)
        .max()
        .unwrap_or(Severity::Ok)
}

/// The first line, after the status: what a Nagios screen shows.
fn summary(rows: &[FederatorHealth], problems: &[Problem]) -> String {
    let reached = rows.iter().filter(|f| f.reached).count();
    let agents = rows.iter().flat_map(|f| &f.agents);
    let (all, connected) = agents.fold((0, 0), |(all, on), a| {
        (all + 1, on + usize::from(a.connected))
    });
    let problems = match problems.len() {
        0 => "no problems".to_owned(),
        n => counted(n, "problem", "problems"),
    };
    let federators = counted(rows.len(), "federator", "federators");
    format!(
        "{reached} of {federators}, {connected} of {}, {problems}",
        counted(all, "agent", "agents")
    )
}

fn listed(problems: &[Problem]) -> Block {
    let line = |p: &Problem| format!("{:<4}  {}: {}", p.severity.word(), p.subject, p.words);
    Block::Lines(problems.iter().map(line).collect())
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
    Table {
        columns,
        rows: rows.iter().map(federator_row).collect(),
    }
}

fn federator_row(f: &FederatorHealth) -> Vec<String> {
    let state = of_federator(f, &Objectives::default())
        .iter()
        .map(|p| p.severity)
        .max()
        .unwrap_or(Severity::Ok);
    let mut row = vec![f.name.clone(), f.region.clone(), state.word().to_owned()];
    if !f.reached {
        row.resize(17, "-".to_owned());
        return row;
    }
    let of = |on: usize, all: usize| format!("{on}/{all}");
    let furthest = |values: &mut dyn Iterator<Item = i64>| {
        values
            .max_by_key(|v| v.unsigned_abs())
            .map_or("-".to_owned(), duration_us)
    };
    let skews = f
        .agents
        .iter()
        .filter(|a| a.connected)
        .map(|a| a.clock_skew_us)
        .chain(
            f.peers
                .iter()
                .filter(|p| p.connected)
                .map(|p| p.clock_skew_us),
        );
    row.extend([
        of(
            f.agents.iter().filter(|a| a.connected).count(),
            f.agents.len(),
        ),
        of(
            f.peers.iter().filter(|p| p.connected).count(),
            f.peers.len(),
        ),
        furthest(&mut { skews }),
        furthest(&mut f.agents.iter().filter(|a| a.connected).map(|a| a.lag_us)),
        per_second(rate(f)),
        match_ratio(f).map_or("-".to_owned(), |ratio| percent(ratio * 100.0)),
        count(f.open_halves),
        f.exchange_delay_us.map_or("-".to_owned(), |us| {
            duration_us(i64::try_from(us).unwrap_or(i64::MAX))
        }),
        count(dropped(f)),
        format!("{} d", f.certificate_days_left),
        bytes(f.store_bytes.saturating_add(f.journal_bytes)),
        bytes(f.disk_free_bytes),
        f.version.clone(),
        duration_us(
            i64::try_from(f.uptime_s)
                .unwrap_or(i64::MAX)
                .saturating_mul(1_000_000),
        ),
    ]);
    row
}

/// Halves a second: of the window, or of the last minute.
fn rate(f: &FederatorHealth) -> f64 {
    match &f.window {
        Some(window) => window.halves as f64 / (window.seconds.max(1) as f64),
        None => f.halves_per_second,
    }
}

fn per_second(rate: f64) -> String {
    if rate < 10.0 {
        format!("{rate:.1}")
    } else {
        count(rate.round() as u64)
    }
}

/// Agents with problems.
fn agents_of_interest(rows: &[FederatorHealth], problems: &[Problem], now: Timestamp) -> Table {
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
    let pairs = rows
        .iter()
        .flat_map(|f| f.agents.iter().map(move |a| (f, a)));
    let rows = pairs.filter_map(|(f, a)| {
        let subject = of_agent(a, f);
        let of = problems.iter().filter(|p| p.subject == subject);
        let worst = of.map(|p| p.severity).max()?;
        Some(vec![
            a.name.clone(),
            f.name.clone(),
            worst.word().to_owned(),
            duration_us(now.0.saturating_sub(a.last_seen.0).max(0)),
            duration_us(a.clock_skew_us),
            duration_us(a.lag_us),
            count(a.open),
            bytes(a.spool_bytes),
            count(lost_by(a)),
            format!("{} d", a.certificate_days_left),
            a.version.clone(),
        ])
    });
    Table {
        columns,
        rows: rows.collect(),
    }
}

/// What was refused, or closed for cause: no problem by itself, never hidden.
fn counters(rows: &[FederatorHealth]) -> Vec<String> {
    let mut lines = Vec::new();
    for f in rows {
        let counted = counted_by(f)
            .iter()
            .filter(|(name, n)| **n > 0 && !is_loss(name))
            .map(|(name, n)| format!("{name} {}", count(*n)));
        // Kept since the start only.
        let closes = if f.window.is_some() {
            &[]
        } else {
            f.closes.as_slice()
        };
        let closed = closes
            .iter()
            .filter(|(code, n)| *n > 0 && *code != CloseCode::Done);
        let closed =
            closed.map(|(code, n)| format!("sessions closed ({}) {}", code.name(), count(*n)));
        let all: Vec<String> = counted.chain(closed).collect();
        if !all.is_empty() {
            lines.push(format!(
                "note  federator {} counts {}: {}",
                f.name,
                within(f),
                all.join(", ")
            ));
        }
    }
    lines
}
