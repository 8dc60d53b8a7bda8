//! What is still well: bounds of everything that `weft health` judges, those that are built in or those of a file.

use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use crate::diagnosis::Severity;
use crate::failure::Failure;
use crate::when::duration;

/// Largest file of objectives.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// On which side of a bound it is no longer well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Above it.
    Above,
    /// Below it.
    Below,
    /// At it, or above. Of whole numbers.
    AtLeast,
    /// At it, or below. Of whole numbers.
    AtMost,
}

/// What a number is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// A part of a whole: 0 to 1.
    Ratio,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// Days.
    Days,
}

/// What is judged: one number of each federator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Whether the federator does not answer: 1, else 0.
    Unreached,
    /// Part of its halves that is matched.
    MatchRatio,
    /// Halves taken that agents, or it, lost.
    LostHalves,
    /// Of what agents saw, the part that was lost.
    LossRatio,
    /// The latest of its agents.
    Lag,
    /// The clock that is off most, of agents and peers.
    Skew,
    /// Agents without a session.
    AgentsSilent,
    /// Peers without a session.
    PeersDown,
    /// Part of what its journal may hold.
    JournalFill,
    /// Free disk.
    DiskFree,
    /// The certificate that ends first: its own or that of an agent with a session.
    Certificate,
    /// Matches between regions, at the median.
    Exchange,
}

/// Bounds of one subject.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bounds {
    /// A warning from here.
    pub warning: Option<f64>,
    /// Critical from here.
    pub critical: Option<f64>,
}

/// Everything that is fixed about a subject.
struct Kind {
    subject: Subject,
    key: &'static str,
    help: &'static str,
    side: Side,
    unit: Unit,
    built_in: Bounds,
}

const fn bounds(warning: Option<f64>, critical: Option<f64>) -> Bounds {
    Bounds { warning, critical }
}

/// In the order of [`Subject`].
const KINDS: [Kind; 12] = [
    Kind {
        subject: Subject::Unreached,
        key: "federators_unreached",
        help: "1 where the federator does not answer.",
        side: Side::AtLeast,
        unit: Unit::Count,
        built_in: bounds(None, Some(1.0)),
    },
    Kind {
        subject: Subject::MatchRatio,
        key: "match_ratio",
        help: "Part of the halves past their hold that is matched.",
        side: Side::Below,
        unit: Unit::Ratio,
        built_in: bounds(None, None),
    },
    Kind {
        subject: Subject::LostHalves,
        key: "lost_halves",
        help: "What was lost, by agents or by the federator.",
        side: Side::AtLeast,
        unit: Unit::Count,
        built_in: bounds(Some(1.0), None),
    },
    Kind {
        subject: Subject::LossRatio,
        key: "loss_ratio",
        help: "Part of the halves seen that was lost.",
        side: Side::Above,
        unit: Unit::Ratio,
        built_in: bounds(None, None),
    },
    Kind {
        subject: Subject::Lag,
        key: "lag_seconds",
        help: "Age of the newest half when it became durable, of the agent that is latest.",
        side: Side::Above,
        unit: Unit::Seconds,
        built_in: bounds(Some(30.0), None),
    },
    Kind {
        subject: Subject::Skew,
        key: "skew_seconds",
        help: "How far the clock is off that is off most, of agents and peers.",
        side: Side::Above,
        unit: Unit::Seconds,
        built_in: bounds(Some(1.0), None),
    },
    Kind {
        subject: Subject::AgentsSilent,
        key: "agents_silent",
        help: "Agents without a session.",
        side: Side::AtLeast,
        unit: Unit::Count,
        built_in: bounds(Some(1.0), None),
    },
    Kind {
        subject: Subject::PeersDown,
        key: "peers_down",
        help: "Peers without a session.",
        side: Side::AtLeast,
        unit: Unit::Count,
        built_in: bounds(Some(1.0), None),
    },
    Kind {
        subject: Subject::JournalFill,
        key: "journal_fill_ratio",
        help: "Part of what the journal may hold.",
        side: Side::Above,
        unit: Unit::Ratio,
        built_in: bounds(Some(0.5), Some(0.9)),
    },
    Kind {
        subject: Subject::DiskFree,
        key: "disk_free_bytes",
        help: "Free disk under the federator.",
        side: Side::Below,
        unit: Unit::Bytes,
        built_in: bounds(Some(5e9), Some(1e9)),
    },
    Kind {
        subject: Subject::Certificate,
        key: "certificate_days",
        help: "Whole days until the first certificate ends: its own or that of an agent with a session.",
        side: Side::AtMost,
        unit: Unit::Days,
        built_in: bounds(Some(14.0), Some(3.0)),
    },
    Kind {
        subject: Subject::Exchange,
        key: "exchange_seconds",
        help: "From the owner's notice to the stored match, at the median.",
        side: Side::Above,
        unit: Unit::Seconds,
        built_in: bounds(Some(5.0), None),
    },
];

impl Subject {
    /// All, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.iter().map(|kind| kind.subject)
    }

    fn kind(self) -> &'static Kind {
        &KINDS[self as usize]
    }

    /// Its key in a file; its name in metrics and performance data.
    pub fn key(self) -> &'static str {
        self.kind().key
    }

    /// In words.
    pub fn help(self) -> &'static str {
        self.kind().help
    }

    /// On which side it is no longer well.
    pub fn side(self) -> Side {
        self.kind().side
    }

    /// What it is of.
    pub fn unit(self) -> Unit {
        self.kind().unit
    }
}

/// What is still well.
#[derive(Clone, Debug, PartialEq)]
pub struct Objectives {
    /// Of which window; since the start where there is none.
    pub window_s: Option<u32>,
    bounds: [Bounds; KINDS.len()],
}

impl Default for Objectives {
    fn default() -> Self {
        Self {
            window_s: None,
            bounds: std::array::from_fn(|index| KINDS[index].built_in),
        }
    }
}

impl Objectives {
    /// Bounds of a subject.
    pub fn of(&self, subject: Subject) -> Bounds {
        self.bounds[subject as usize]
    }

    /// How bad a value is.
    pub fn judge(&self, subject: Subject, value: f64) -> Severity {
        let beyond = |bound: Option<f64>| {
            bound.is_some_and(|bound| match subject.side() {
                Side::Above => value > bound,
                Side::Below => value < bound,
                Side::AtLeast => value >= bound,
                Side::AtMost => value <= bound,
            })
        };
        let bounds = self.of(subject);
        if beyond(bounds.critical) {
            Severity::Critical
        } else if beyond(bounds.warning) {
            Severity::Warning
        } else {
            Severity::Ok
        }
    }

    /// Those of a file.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let text = read(path).map_err(|cause| {
            let what = format!("the objectives {} cannot be read", path.display());
            Failure::new(
                "E-OBJECTIVES",
                what,
                cause,
                "name a file: --objectives FILE",
            )
        })?;
        Self::parse(&text).map_err(|cause| {
            let what = format!("the objectives {} cannot be understood", path.display());
            Failure::new("E-OBJECTIVES", what, cause, "weft help objectives")
        })
    }

    /// Those of a text; what is wrong names line and key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            format!("line {line}: {}", error.message().replace('\n', " "))
        })?;
        let at = |offset: usize| line_of(text, offset);
        let mut objectives = Self::default();
        if let Some(since) = &file.since {
            let seconds = duration(since.get_ref())
                .and_then(|time| u32::try_from(time.as_secs()).ok())
                .filter(|seconds| *seconds > 0);
            objectives.window_s = Some(seconds.ok_or_else(|| {
                let line = at(since.span().start);
                format!("line {line}: since: it must be a duration of a second or more, as \"15m\"")
            })?);
        }
        for kind in &KINDS {
            let Some(typed) = file.of(kind.subject) else {
                continue;
            };
            let read = |key: &str, bound: &Option<Spanned<f64>>| {
                let Some(bound) = bound else { return Ok(None) };
                let value = *bound.get_ref();
                fits(kind.unit, value).map(|()| Some(value)).map_err(|why| {
                    let line = at(bound.span().start);
                    format!("line {line}: {}.{key}: {why}", kind.key)
                })
            };
            let found = Bounds {
                warning: read("warning", &typed.warning)?,
                critical: read("critical", &typed.critical)?,
            };
            if let (Some(warning), Some(critical), Some(typed)) =
                (found.warning, found.critical, &typed.critical)
            {
                let in_order = match kind.side {
                    Side::Above | Side::AtLeast => critical >= warning,
                    Side::Below | Side::AtMost => critical <= warning,
                };
                if !in_order {
                    let line = at(typed.span().start);
                    let key = kind.key;
                    return Err(format!(
                        "line {line}: {key}.critical: {critical} is reached before the warning, {warning}"
                    ));
                }
            }
            objectives.bounds[kind.subject as usize] = found;
        }
        Ok(objectives)
    }
}

fn read(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let taken = file
        .take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if taken as u64 > MAX_FILE_BYTES {
        return Err(format!("it is longer than {MAX_FILE_BYTES} bytes"));
    }
    Ok(text)
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

fn fits(unit: Unit, value: f64) -> Result<(), String> {
    if !value.is_finite() || value < 0.0 {
        return Err("it must be a number of 0 or more".into());
    }
    match unit {
        Unit::Ratio if value > 1.0 => Err("it is a part of a whole: 0 to 1".into()),
        Unit::Count | Unit::Days | Unit::Bytes if value.fract() != 0.0 => {
            Err("it must be a whole number".into())
        }
        _ => Ok(()),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    warning: Option<Spanned<f64>>,
    critical: Option<Spanned<f64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    since: Option<Spanned<String>>,
    federators_unreached: Option<Typed>,
    match_ratio: Option<Typed>,
    lost_halves: Option<Typed>,
    loss_ratio: Option<Typed>,
    lag_seconds: Option<Typed>,
    skew_seconds: Option<Typed>,
    agents_silent: Option<Typed>,
    peers_down: Option<Typed>,
    journal_fill_ratio: Option<Typed>,
    disk_free_bytes: Option<Typed>,
    certificate_days: Option<Typed>,
    exchange_seconds: Option<Typed>,
}

impl File {
    fn of(&self, subject: Subject) -> Option<&Typed> {
        match subject {
            Subject::Unreached => &self.federators_unreached,
            Subject::MatchRatio => &self.match_ratio,
            Subject::LostHalves => &self.lost_halves,
            Subject::LossRatio => &self.loss_ratio,
            Subject::Lag => &self.lag_seconds,
            Subject::Skew => &self.skew_seconds,
            Subject::AgentsSilent => &self.agents_silent,
            Subject::PeersDown => &self.peers_down,
            Subject::JournalFill => &self.journal_fill_ratio,
            Subject::DiskFree => &self.disk_free_bytes,
            Subject::Certificate => &self.certificate_days,
            Subject::Exchange => &self.exchange_seconds,
        }
        .as_ref()
    }
}

/// The built-in objectives as a file: what to begin with.
pub fn sample() -> String {
    let mut text = String::from(
        "# Objectives of `weft health --objectives FILE`: what is built in. A table that is left out stays as here; one that is\n\
         # empty judges nothing.\n\n# Judged is what happened within this time, at most a day. Left out: since the programs' start.\nsince = \"15m\"\n",
    );
    for kind in &KINDS {
        let way = match kind.side {
            Side::Above => "above",
            Side::Below => "below",
            Side::AtLeast => "from",
            Side::AtMost => "at most",
        };
        text.push_str(&format!(
            "\n# {} Not well: {way}\n[{}]\n",
            kind.help, kind.key
        ));
        for (key, bound) in [
            ("warning", kind.built_in.warning),
            ("critical", kind.built_in.critical),
        ] {
            match bound {
                Some(bound) => text.push_str(&format!("{key} = {bound}\n")),
                None => text.push_str(&format!("#{key} = …\n")),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_stand_in_the_order_of_their_subjects() {
        for (index, kind) in KINDS.iter().enumerate() {
            assert_eq!(kind.subject as usize, index);
        }
    }

    #[test]
    fn a_file_replaces_what_it_names_and_nothing_else() {
        let text =
            "since = \"15m\"\n[match_ratio]\nwarning = 0.98\ncritical = 0.9\n[lag_seconds]\n";
        let read = Objectives::parse(text).unwrap();
        assert_eq!(read.window_s, Some(900));
        assert_eq!(read.judge(Subject::MatchRatio, 0.98), Severity::Ok);
        assert_eq!(read.judge(Subject::MatchRatio, 0.979), Severity::Warning);
        assert_eq!(read.judge(Subject::MatchRatio, 0.899), Severity::Critical);
        assert_eq!(read.judge(Subject::Lag, 1e9), Severity::Ok, "it is empty");
        assert_eq!(read.judge(Subject::AgentsSilent, 1.0), Severity::Warning);
        assert_eq!(read.judge(Subject::Certificate, 14.0), Severity::Warning);
        assert_eq!(read.judge(Subject::Certificate, 15.0), Severity::Ok);
    }

    #[test]
    fn the_sample_says_what_is_built_in() {
        let read = Objectives::parse(&sample()).unwrap();
        let built_in = Objectives {
            window_s: Some(900),
            ..Objectives::default()
        };
        assert_eq!(read, built_in);
    }

    #[test]
    fn what_is_wrong_names_line_and_key() {
        for (text, line, words) in [
            ("\n[match_ratoi]\nwarning = 1\n", 2, "match_ratoi"),
            ("[match_ratio]\nwarn = 1\n", 2, "warn"),
            ("[match_ratio]\n\nwarning = \"x\"\n", 3, "invalid type"),
            ("[match_ratio]\nwarning = 98.0\n", 2, "match_ratio.warning"),
            ("[lag_seconds]\nwarning = -1\n", 2, "lag_seconds.warning"),
            ("[peers_down]\ncritical = 0.5\n", 2, "peers_down.critical"),
            (
                "[lag_seconds]\nwarning = 60\ncritical = 30\n",
                3,
                "lag_seconds.critical",
            ),
            (
                "[disk_free_bytes]\ncritical = 5\nwarning = 3\n",
                2,
                "disk_free_bytes.critical",
            ),
            ("since = \"soon\"\n", 1, "since"),
            ("since = 15\n", 1, "invalid type"),
            ("[lag_seconds\n", 1, ""),
        ] {
            let wrong = Objectives::parse(text).unwrap_err();
            assert!(wrong.starts_with(&format!("line {line}: ")), "{wrong}");
            assert!(wrong.contains(words), "{wrong}");
        }
    }
}
