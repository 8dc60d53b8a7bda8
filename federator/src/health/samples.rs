//! Totals as they were, so that what happened lately can be told from what happened since the start.
//!
//! Two rings: every ten seconds for an hour, every ten minutes for a day. Some 600 bytes a sample: 300 KB when full.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A ring: seconds between two samples, and how many are kept.
type Ring = (u64, usize);
const FINE: Ring = (10, 361);
const COARSE: Ring = (600, 145);

/// Longest window that is remembered.
#[cfg(test)]
const MAX_WINDOW_S: u64 = COARSE.0 * (COARSE.1 as u64 - 1);

/// Totals at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Halves taken.
    pub halves: u64,
    /// Connections stitched.
    pub stitched: u64,
    /// Halves that got a partner.
    pub matched: u64,
    /// Halves that did not.
    pub unmatched: u64,
    /// Names of the counters; the same list for all samples, as a rule.
    pub(super) names: Arc<[String]>,
    pub(super) counters: Vec<u64>,
}

impl Totals {
    /// With these counters.
    pub fn with(mut self, counters: &BTreeMap<String, u64>, like: Option<&Self>) -> Self {
        self.names = match like {
            Some(like) if like.names.iter().eq(counters.keys()) => like.names.clone(),
            _ => counters.keys().cloned().collect(),
        };
        self.counters = counters.values().copied().collect();
        self
    }

    fn counter(&self, name: &str) -> u64 {
        let found = self
            .names
            .binary_search_by(|known| known.as_str().cmp(name));
        found.map_or(0, |index| self.counters[index])
    }

    /// What came since `before`. A total that fell (an agent was forgotten) did not grow.
    pub fn since(&self, before: &Self) -> Growth {
        let grown = |now: u64, then: u64| now.saturating_sub(then);
        let counters = self.names.iter().zip(&self.counters);
        Growth {
            halves: grown(self.halves, before.halves),
            stitched: grown(self.stitched, before.stitched),
            matched: grown(self.matched, before.matched),
            unmatched: grown(self.unmatched, before.unmatched),
            counters: counters
                .map(|(name, now)| (name.clone(), grown(*now, before.counter(name))))
                .collect(),
        }
    }
}

/// By how much totals grew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Halves taken.
    pub halves: u64,
    /// Connections stitched.
    pub stitched: u64,
    /// Halves that got a partner.
    pub matched: u64,
    /// Halves that did not.
    pub unmatched: u64,
    /// Counters by name.
    pub counters: BTreeMap<String, u64>,
}

impl Growth {
    /// Part that was matched; those past their hold count as unmatched.
    pub fn match_ratio(&self, past_hold: u64) -> Option<f64> {
        let all = self.matched + self.unmatched + past_hold;
        (all > 0).then(|| self.matched as f64 / all as f64)
    }
}

/// See the module. Times are seconds since the program's start.
#[derive(Debug)]
pub struct Samples {
    fine: VecDeque<(u64, Totals)>,
    coarse: VecDeque<(u64, Totals)>,
}

impl Samples {
    /// Begins with how things stand at the start.
    pub fn new(first: Totals) -> Self {
        Self {
            fine: VecDeque::from([(0, first.clone())]),
            coarse: VecDeque::from([(0, first)]),
        }
    }

    /// Whether it is time for another sample.
    pub fn due(&self, now_s: u64) -> bool {
        is_due(&self.fine, FINE, now_s)
    }

    /// Keeps a sample.
    pub fn keep(&mut self, now_s: u64, totals: &Totals) {
        for (ring, limits) in [(&mut self.fine, FINE), (&mut self.coarse, COARSE)] {
            if is_due(ring, limits, now_s) {
                if ring.len() == limits.1 {
                    ring.pop_front();
                }
                ring.push_back((now_s, totals.clone()));
            }
        }
    }

    /// The newest sample.
    pub fn last(&self) -> Option<&Totals> {
        self.fine.back().map(|(_, totals)| totals)
    }

    /// How long ago, and how, things stood at the beginning of a window that ends now. The window is never shorter than asked,
    /// but where no sample is as old.
    pub fn before(&self, now_s: u64, window_s: u64) -> (u64, &Totals) {
        let begin = now_s.saturating_sub(window_s);
        let all = || self.coarse.iter().chain(&self.fine);
        let at_least = all()
            .filter(|(at, _)| *at <= begin)
            .max_by_key(|(at, _)| *at);
        let oldest = || all().min_by_key(|(at, _)| *at);
        match at_least.or_else(oldest) {
            Some((at, totals)) => (now_s.saturating_sub(*at), totals),
            // Never: both rings have their first sample from the start.
            None => (0, &self.coarse[0].1),
        }
    }
}

fn is_due(ring: &VecDeque<(u64, Totals)>, (every_s, _): Ring, now_s: u64) -> bool {
    ring.back().is_none_or(|(at, _)| now_s >= at + every_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(halves: u64, like: Option<&Totals>) -> Totals {
        let counters = [("a".to_owned(), 7), ("late_rows".to_owned(), halves / 2)].into();
        Totals {
            halves,
            matched: halves,
            ..Totals::default()
        }
        .with(&counters, like)
    }

    #[test]
    fn a_window_is_of_what_came_in_it() {
        let mut samples = Samples::new(totals(0, None));
        // A half a second, for two days.
        for now in 1..=172_800 {
            if samples.due(now) {
                let next = totals(now, samples.last());
                samples.keep(now, &next);
            }
        }
        let now = 172_800;
        let last = totals(now, samples.last());
        for (asked, covers) in [
            (10, 10),
            (60, 60),
            (65, 70),
            (3_600, 3_600),
            // Beyond the fine ring: to the coarse one's sample before.
            (3_601, 4_200),
            (86_400, 86_400),
            (MAX_WINDOW_S * 2, MAX_WINDOW_S),
        ] {
            let (seconds, before) = samples.before(now, asked);
            assert_eq!(seconds, covers, "asked for {asked}");
            let grown = last.since(before);
            assert_eq!(grown.halves, covers);
            assert_eq!(grown.counters["late_rows"], covers / 2);
            assert_eq!(grown.counters["a"], 0);
        }
        assert_eq!(
            (samples.fine.len(), samples.coarse.len()),
            (FINE.1, COARSE.1)
        );
        let shared = samples
            .fine
            .iter()
            .all(|(_, t)| Arc::ptr_eq(&t.names, &last.names));
        assert!(shared, "names are kept once");
    }

    #[test]
    fn before_there_are_samples_the_start_counts() {
        let samples = Samples::new(Totals::default());
        let (seconds, before) = samples.before(3, 600);
        assert_eq!(seconds, 3);
        // A counter that was not there at the start began at 0.
        assert_eq!(totals(8, None).since(before).counters["late_rows"], 4);
    }

    #[test]
    fn the_match_ratio_is_of_the_window() {
        let before = Totals {
            matched: 1000,
            ..Totals::default()
        };
        let now = Totals {
            matched: 1010,
            unmatched: 20,
            ..Totals::default()
        };
        assert_eq!(now.since(&before).match_ratio(10), Some(0.25));
        assert_eq!(before.since(&before).match_ratio(0), None);
    }
}
