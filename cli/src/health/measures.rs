//! What is judged, as numbers with their bounds: for Nagios' performance data and for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;

use weft_wire::Timestamp;
use weft_wire::exposition::{Exposition, Kind};
use weft_wire::query::{AgentHealth, FederatorHealth};

use super::objectives::{Objectives, Side, Subject, Unit};
use crate::diagnosis::{Problem, Severity, is_loss};

/// A number of a federator.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// Of what.
    pub subject: Subject,
    /// Of which federator.
    pub federator: String,
    /// The number.
    pub value: f64,
}

/// Everything that other programs read of a check.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// How it stands.
    pub status: Severity,
    /// In one line, without the status.
    pub summary: String,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What was judged.
    pub measures: Vec<Measure>,
    /// Counters by federator and name, since its start.
    pub counters: Vec<(String, BTreeMap<String, u64>)>,
    /// By what it was judged.
    pub objectives: Objectives,
    /// When.
    pub at: Timestamp,
}

/// Counters of the window that was asked about; since the start where none was.
pub(crate) fn counted(f: &FederatorHealth) -> &BTreeMap<String, u64> {
    f.window
        .as_ref()
        .map_or(&f.counters, |window| &window.counters)
}

/// What an agent lost, in that window or since its start.
pub(crate) fn lost_by(a: &AgentHealth) -> u64 {
    let since_start = a
        .kernel_dropped
        .saturating_add(a.table_dropped)
        .saturating_add(a.spool_dropped);
    a.lost_in_window.unwrap_or(since_start)
}

/// Everything that it or its agents lost.
pub(crate) fn dropped(f: &FederatorHealth) -> u64 {
    let own = counted(f)
        .iter()
        .filter(|(name, _)| is_loss(name))
        .map(|(_, number)| *number);
    own.chain(f.agents.iter().map(lost_by))
        .fold(0, u64::saturating_add)
}

/// Part of its halves that is matched, in the window or the last hour.
pub(crate) fn match_ratio(f: &FederatorHealth) -> Option<f64> {
    match &f.window {
        Some(window) => window.match_ratio,
        None => f.match_ratio,
    }
}

/// The value of a subject; `None` where there is nothing to judge.
pub(crate) fn value(f: &FederatorHealth, subject: Subject) -> Option<f64> {
    if subject == Subject::Unreached {
        return Some(f64::from(u8::from(!f.reached)));
    }
    if !f.reached {
        return None;
    }
    let on = || f.agents.iter().filter(|agent| agent.connected);
    let seconds = |micros: u64| micros as f64 / 1e6;
    match subject {
        Subject::Unreached => None,
        Subject::MatchRatio => match_ratio(f),
        Subject::LostHalves => Some(dropped(f) as f64),
        Subject::LossRatio => {
            let taken = f.window.as_ref().map_or(f.halves, |window| window.halves);
            let all = taken.saturating_add(dropped(f));
            (all > 0).then(|| dropped(f) as f64 / all as f64)
        }
        Subject::Lag => on()
            .map(|agent| agent.lag_us)
            .max()
            .map(|lag| seconds(u64::try_from(lag).unwrap_or(0))),
        Subject::Skew => on()
            .map(|agent| agent.clock_skew_us)
            .chain(peers_on(f).map(|peer| peer.clock_skew_us))
            .map(i64::unsigned_abs)
            .max()
            .map(seconds),
        Subject::AgentsSilent => Some((f.agents.len() - on().count()) as f64),
        Subject::PeersDown => Some((f.peers.len() - peers_on(f).count()) as f64),
        Subject::JournalFill => {
            let most = f.journal_max_bytes;
            (most > 0).then(|| (f.journal_bytes as f64 / most as f64).min(1.0))
        }
        Subject::DiskFree => Some(f.disk_free_bytes as f64),
        Subject::Certificate => on()
            .map(|agent| agent.certificate_days_left)
            .chain([f.certificate_days_left])
            .min()
            .map(|days| days as f64),
        Subject::Exchange => f.exchange_delay_us.map(seconds),
    }
}

fn peers_on(f: &FederatorHealth) -> impl Iterator<Item = &weft_wire::query::PeerHealth> {
    f.peers.iter().filter(|peer| peer.connected)
}

/// Every value of every federator.
pub(crate) fn measures(rows: &[FederatorHealth]) -> Vec<Measure> {
    let of = |subject| {
        rows.iter().filter_map(move |f| {
            Some(Measure {
                subject,
                federator: f.name.clone(),
                value: value(f, subject)?,
            })
        })
    };
    Subject::all().flat_map(of).collect()
}

impl Check {
    /// A check that could not be made.
    pub fn failed(status: Severity, summary: &str, at: Timestamp) -> Self {
        Self {
            status,
            summary: summary.to_owned(),
            problems: Vec::new(),
            measures: Vec::new(),
            counters: Vec::new(),
            objectives: Objectives::default(),
            at,
        }
    }

    /// As a Nagios plugin says it: a line, performance data after `|`, then a line a problem.
    pub fn nagios(&self) -> String {
        // What Nagios would take for performance data.
        let plain = |text: &str| crate::figures::plain(text).replace('|', "/");
        let word = match self.status {
            Severity::Ok => "OK",
            Severity::Warning => "WARNING",
            Severity::Critical => "CRITICAL",
            Severity::Unknown => "UNKNOWN",
        };
        let mut text = format!("WEFT {word} - {}", plain(&self.summary));
        for (index, measure) in self.measures.iter().enumerate() {
            text.push_str(if index == 0 { " | " } else { " " });
            text.push_str(&self.performance(measure));
        }
        text.push('\n');
        for problem in &self.problems {
            let (word, words) = (problem.severity.word(), plain(&problem.words));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{word}: {}: {words}", plain(&problem.subject));
        }
        text
    }

    /// `'fed-a match_ratio'=0.99;0.98:;0.9:;0;1`
    fn performance(&self, measure: &Measure) -> String {
        let subject = measure.subject;
        let (unit, most) = match subject.unit() {
            Unit::Ratio => ("", "1"),
            Unit::Seconds => ("s", ""),
            Unit::Bytes => ("B", ""),
            Unit::Count | Unit::Days => ("", ""),
        };
        // An alert is outside of a range: `10` is 0 to 10, `10:` is 10 and more.
        let range = |bound: Option<f64>| {
            bound.map_or(String::new(), |bound| match subject.side() {
                Side::Above => format!("{bound}"),
                Side::Below => format!("{bound}:"),
                Side::AtLeast => format!("{}", bound - 1.0),
                Side::AtMost => format!("{}:", bound + 1.0),
            })
        };
        let bounds = self.objectives.of(subject);
        // A quote or an equals sign would end the label.
        let federator = measure.federator.replace(['\'', '=', '|'], "_");
        format!(
            "'{federator} {}'={}{unit};{};{};0;{most}",
            subject.key(),
            measure.value,
            range(bounds.warning),
            range(bounds.critical)
        )
    }

    /// As the text that Prometheus, or node_exporter's textfile collector, reads.
    pub fn prometheus(&self) -> String {
        let mut text = Exposition::default();
        text.one(
            Kind::Gauge,
            "weft_health_status",
            "How it stands: 0 ok, 1 warning, 2 critical, 3 unknown.",
            self.status.exit_code(),
        );
        text.one(
            Kind::Gauge,
            "weft_health_checked_timestamp_seconds",
            "When it was checked, in seconds since 1970.",
            self.at.0.div_euclid(1_000_000),
        );
        let mut problems = text.family(
            Kind::Gauge,
            "weft_health_problems",
            "Problems found, by severity.",
        );
        for (word, severity) in [
            ("warning", Severity::Warning),
            ("critical", Severity::Critical),
        ] {
            let found = self.problems.iter().filter(|p| p.severity == severity);
            problems.put(&[("severity", word)], found.count());
        }
        for subject in Subject::all() {
            let mut of = self
                .measures
                .iter()
                .filter(|measure| measure.subject == subject)
                .peekable();
            if of.peek().is_none() {
                continue;
            }
            // Base units.
            let (key, factor) = match subject {
                Subject::Certificate => ("certificate_left_seconds", 86_400.0),
                _ => (subject.key(), 1.0),
            };
            let name = format!("weft_health_{key}");
            let mut family = text.family(Kind::Gauge, &name, subject.help());
            for measure in of {
                family.put(&[("federator", &measure.federator)], measure.value * factor);
            }
        }
        if !self.counters.is_empty() {
            let mut events = text.family(
                Kind::Counter,
                "weft_health_events_total",
                "What federators dropped, refused or did otherwise than they should, since their start.",
            );
            for (federator, counters) in &self.counters {
                for (name, number) in counters {
                    events.put(&[("federator", federator), ("event", name)], number);
                }
            }
        }
        text.finish()
    }
}
