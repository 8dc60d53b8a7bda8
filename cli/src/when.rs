//! Times and durations as people type them.

use std::time::Duration;

use weft_wire::Timestamp;

use crate::failure::Failure;

/// A point in time, not yet tied to a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So many microseconds ago.
    Ago(i64),
    /// Then.
    At(Timestamp),
}

/// The part of time that is asked about, not yet tied to a clock: with `--watch` it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// From; `None` for the beginning.
    pub since: Option<When>,
    /// Until; `None` for now.
    pub until: Option<When>,
}

/// The part of time that is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// From.
    pub since: Option<Timestamp>,
    /// Until.
    pub until: Option<Timestamp>,
}

/// An hour, in microseconds: what is asked about unless something else is typed.
pub const DEFAULT_SINCE_US: i64 = 3_600_000_000;

impl When {
    /// Reads `15m`, `now`, `2026-11-22`, `2026-11-22T15:00` (UTC) or RFC 3339 with any offset.
    pub fn parse(option: &str, text: &str) -> Result<Self, Failure> {
        let ago = text.strip_suffix(" ago").unwrap_or(text);
        if text == "now" {
            return Ok(Self::Ago(0));
        }
        if let Some(duration) = duration(ago) {
            return i64::try_from(duration.as_micros())
                .map(Self::Ago)
                .map_err(|_| Failure::time(option, text));
        }
        instant(text)
            .map(Self::At)
            .ok_or_else(|| Failure::time(option, text))
    }

    fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Ago(micros) => Timestamp(now.0.saturating_sub(micros)),
            Self::At(time) => time,
        }
    }
}

impl Span {
    /// Everything there is, for questions without a window.
    pub const ALL: Self = Self {
        since: None,
        until: None,
    };

    /// What it is at a given time.
    pub fn at(&self, now: Timestamp) -> Result<Window, Failure> {
        let window = Window {
            since: self.since.map(|w| w.at(now)),
            until: self.until.map(|w| w.at(now)),
        };
        match (window.since, window.until) {
            (Some(since), Some(until)) if since >= until => {
                Err(Failure::empty_window(since, until))
            }
            _ => Ok(window),
        }
    }
}

fn instant(text: &str) -> Option<Timestamp> {
    let micros = |t: jiff::Timestamp| Timestamp(t.as_microsecond());
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(micros(time));
    }
    let civil: jiff::civil::DateTime = text.parse().ok()?;
    civil
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()
        .map(|zoned| micros(zoned.timestamp()))
}

/// Reads `250ms`, `90s`, `15m`, `1h`, `7d`, `2w`, whole numbers only.
pub fn duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return None,
    };
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(millis)
        .map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_type_time_in_many_ways() {
        let at = |text: &str| Timestamp::parse(text).unwrap();
        for (text, when) in [
            ("1h", When::Ago(3_600_000_000)),
            ("15m ago", When::Ago(900_000_000)),
            ("2w", When::Ago(1_209_600_000_000)),
            ("now", When::Ago(0)),
            ("2026-11-22", When::At(at("2026-11-22T00:00:00.000000Z"))),
            (
                "2026-11-22T15:00",
                When::At(at("2026-11-22T15:00:00.000000Z")),
            ),
            (
                "2026-11-22 15:00:01",
                When::At(at("2026-11-22T15:00:01.000000Z")),
            ),
            (
                "2026-11-22T15:00:00+02:00",
                When::At(at("2026-11-22T13:00:00.000000Z")),
            ),
            (
                "2026-11-22T15:00:00.5Z",
                When::At(at("2026-11-22T15:00:00.500000Z")),
            ),
        ] {
            assert_eq!(When::parse("--since", text).unwrap(), when, "{text}");
        }
        for text in [
            "",
            "h",
            "1",
            "1.5h",
            "1y",
            "yesterday",
            "2026-13-01",
            "99999999999999999999h",
            "-1h",
        ] {
            assert!(When::parse("--since", text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_window_must_not_be_empty() {
        let span = Span {
            since: Some(When::Ago(5)),
            until: Some(When::Ago(5)),
        };
        assert!(span.at(Timestamp(100)).is_err());
        let span = Span {
            since: Some(When::Ago(5)),
            until: None,
        };
        assert_eq!(
            span.at(Timestamp(100)).unwrap(),
            Window {
                since: Some(Timestamp(95)),
                until: None
            }
        );
    }
}
