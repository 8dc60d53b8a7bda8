//! What a federator knows to be wrong with itself: for `weft health`, `/healthz` and metrics.

use weft_wire::Timestamp;
use weft_wire::query::Trouble;

/// A transaction of the store that takes longer means that the store does not follow.
pub const STORE_PATIENCE_US: i64 = 30_000_000;
/// A clock that moves by more than this against the kernel's monotonic one was set.
pub const STEP_US: i64 = 1_000_000;
/// So long a step of the clock is told of.
pub const STEP_TOLD_US: i64 = 3_600_000_000;

/// Codes of all troubles there are, and whether each means that something is refused.
pub const ALL: [(&str, bool); 4] = [
    ("disk-full", true),
    ("journal-full", true),
    ("store-behind", true),
    ("clock-stepped", false),
];

/// What is looked at. Times by the monotonic clock, microseconds since the program's start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Now.
    pub now_us: i64,
    /// Bytes of the journal, and what it may hold.
    pub journal: (u64, u64),
    /// Bytes free on the disk, and how many are kept free.
    pub disk: (u64, u64),
    /// When the store's present transaction began.
    pub storing_since_us: Option<i64>,
    /// The last step of the clock: when, and how far it went ahead.
    pub step: Option<(i64, i64)>,
}

/// Since when each trouble is there, by its place in [`ALL`].
#[derive(Debug, Default)]
pub struct Troubles([Option<i64>; ALL.len()]);

impl Troubles {
    /// Looks; gives what is wrong, with its beginning as the clock shows it now.
    pub fn look(&mut self, reading: &Reading, clock: Timestamp) -> Vec<Trouble> {
        let words = [
            disk_full(reading),
            journal_full(reading),
            store_behind(reading),
            clock_stepped(reading),
        ];
        let mut found = Vec::new();
        for (((code, failing), words), since) in ALL.into_iter().zip(words).zip(&mut self.0) {
            let Some((words, began_us)) = words else {
                *since = None;
                continue;
            };
            let began_us = *since.get_or_insert(began_us.unwrap_or(reading.now_us));
            found.push(Trouble {
                code: code.to_owned(),
                failing,
                words,
                since: Timestamp(clock.0.saturating_sub(reading.now_us - began_us)),
            });
        }
        found
    }
}

/// Words, and when it began where that is known better than by looking.
type Found = Option<(String, Option<i64>)>;

fn disk_full(reading: &Reading) -> Found {
    let (free, kept) = reading.disk;
    let words = || {
        format!(
            "{} of disk left, less than the {} of [journal] min_free_bytes: agents and peers are refused, and keep what they \
             have",
            megabytes(free),
            megabytes(kept)
        )
    };
    (free < kept).then(|| (words(), None))
}

fn journal_full(reading: &Reading) -> Found {
    let (bytes, most) = reading.journal;
    let words = || {
        format!(
            "the journal has {} and may have {}: agents and peers are refused, and keep what they have",
            megabytes(bytes),
            megabytes(most)
        )
    };
    (bytes >= most).then(|| (words(), None))
}

fn store_behind(reading: &Reading) -> Found {
    let since = reading.storing_since_us?;
    let took_us = reading.now_us.saturating_sub(since);
    let words = || {
        format!(
            "the store has been writing for {} s: questions wait, and the journal grows",
            took_us / 1_000_000
        )
    };
    (took_us > STORE_PATIENCE_US).then(|| (words(), Some(since)))
}

fn clock_stepped(reading: &Reading) -> Found {
    let (at, ahead) = reading.step?;
    let way = if ahead < 0 { "back" } else { "ahead" };
    let seconds = ahead.unsigned_abs() / 1_000_000;
    let words = format!("the clock was set {way} by {seconds} s");
    (reading.now_us.saturating_sub(at) < STEP_TOLD_US).then_some((words, Some(at)))
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Reading = Reading {
        now_us: 1_000_000_000,
        journal: (9, 10),
        disk: (10, 10),
        storing_since_us: Some(1_000_000_000 - STORE_PATIENCE_US),
        step: Some((1_000_000_000 - STEP_TOLD_US, -5_000_000)),
    };

    fn codes(reading: &Reading) -> Vec<String> {
        let found = Troubles::default().look(reading, Timestamp(0));
        found.into_iter().map(|trouble| trouble.code).collect()
    }

    #[test]
    fn thresholds_hold_to_the_unit() {
        assert_eq!(codes(&WELL), [] as [&str; 0]);
        let after = |change: fn(&mut Reading)| {
            let mut reading = WELL;
            change(&mut reading);
            codes(&reading)
        };
        assert_eq!(after(|r| r.disk.0 -= 1), ["disk-full"]);
        assert_eq!(after(|r| r.journal.0 += 1), ["journal-full"]);
        assert_eq!(
            after(|r| r.storing_since_us = r.storing_since_us.map(|at| at - 1)),
            ["store-behind"]
        );
        assert_eq!(
            after(|r| r.step = r.step.map(|(at, by)| (at + 1, by))),
            ["clock-stepped"]
        );
    }

    #[test]
    fn a_trouble_keeps_its_beginning_until_it_is_over() {
        let mut troubles = Troubles::default();
        let mut reading = WELL;
        reading.disk.0 = 0;
        let mut look = |reading: &Reading| troubles.look(reading, Timestamp(reading.now_us + 7));
        let first = look(&reading)[0].since;
        assert_eq!(first, Timestamp(WELL.now_us + 7));
        reading.now_us += 5_000_000;
        assert_eq!(look(&reading)[0].since, first);
        assert!(look(&WELL).is_empty());
        assert_eq!(look(&reading)[0].since, Timestamp(reading.now_us + 7));
    }

    #[test]
    fn a_step_is_told_with_its_way() {
        let mut reading = WELL;
        reading.step = Some((WELL.now_us, -3_600_000_000));
        let found = Troubles::default().look(&reading, Timestamp(5));
        assert_eq!(found[0].words, "the clock was set back by 3600 s");
        assert!(!found[0].failing);
    }
}
