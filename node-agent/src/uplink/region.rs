//! Where the agent belongs: with the first of the region's federators that is there.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::spool::homes::Homes;

/// A home without a session for so long is gone: the agent moves, if another federator of the region is there. Longer than a
/// restart takes.
pub const GONE_AFTER: Duration = Duration::from_secs(8);
/// A federator that did not answer is not tried again for so long; twice as long with each further time.
pub const FIRST_REST: Duration = Duration::from_secs(30);
/// At most for so long.
pub const LONGEST_REST: Duration = Duration::from_secs(600);

/// What the agent remembers of the region's federators. Time is the time since the start.
#[derive(Debug, Default)]
pub struct Region {
    /// How often each did not answer, and until when it is not tried.
    failures: BTreeMap<String, (u32, Duration)>,
    /// Since when the home is away.
    away_since: Option<Duration>,
}

impl Region {
    /// The session with the home stands.
    pub fn stands(&mut self) {
        self.away_since = None;
    }

    /// There is no session with the home.
    pub fn lost(&mut self, now: Duration) {
        self.away_since.get_or_insert(now);
    }

    /// A federator did not answer.
    pub fn failed(&mut self, name: &str, now: Duration) {
        let (times, until) = self.failures.entry(name.to_owned()).or_default();
        let rest = FIRST_REST.saturating_mul(1 << (*times).min(16));
        *times += 1;
        *until = now + rest.min(LONGEST_REST);
    }

    fn rests(&self, name: &str, now: Duration) -> bool {
        self.failures
            .get(name)
            .is_some_and(|(_, until)| now < *until)
    }

    /// Where the agent belongs rather than with its present home.
    pub fn better(&mut self, homes: &Homes, now: Duration) -> Option<(String, String)> {
        let own = homes.name(homes.current());
        // Those of which nobody speaks any more are forgotten.
        self.failures
            .retain(|name, _| homes.told.iter().any(|(told, _)| told == name));
        let mut able = homes
            .told
            .iter()
            .filter(|(name, _)| name == own || !self.rests(name, now));
        able.next().filter(|(name, _)| name != own).cloned()
    }

    /// Where the agent may go when its home has been away for long, in the order of preference.
    pub fn instead(&mut self, homes: &Homes, now: Duration) -> Vec<(String, String)> {
        let gone = |since| now.saturating_sub(since) >= GONE_AFTER;
        if !self.away_since.is_some_and(gone) {
            return Vec::new();
        }
        let own = homes.name(homes.current()).to_owned();
        let others = homes.told.iter().filter(|(name, _)| *name != own);
        let others: Vec<_> = others
            .filter(|(name, _)| !self.rests(name, now))
            .cloned()
            .collect();
        if !others.is_empty() && !self.rests(&own, now) {
            // It may be first again, by the word of one that has not noticed: not at once.
            self.failed(&own, now);
        }
        others
    }
}

#[cfg(test)]
mod tests {
    use weft_wire::federation::HomeAddress;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn homes(told: &[&str], present: &str) -> Homes {
        let mut homes = Homes::new("fed:1");
        homes.named(0, present);
        let told: Vec<_> = told
            .iter()
            .map(|name| HomeAddress {
                name: (*name).into(),
                address: format!("{name}:1"),
            })
            .collect();
        homes.tell(&told);
        homes
    }

    fn names(list: &[(String, String)]) -> Vec<&str> {
        list.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn it_goes_where_it_belongs_unless_that_one_does_not_answer() {
        let mut region = Region::default();
        let told = homes(&["b", "a", "c"], "a");
        assert_eq!(region.better(&told, S).unwrap().0, "b");
        region.failed("b", S);
        assert_eq!(region.better(&told, 2 * S), None, "the home is the next");
        assert_eq!(region.better(&told, S + FIRST_REST).unwrap().0, "b");
        region.failed("b", S + FIRST_REST);
        assert_eq!(region.better(&told, S + 2 * FIRST_REST), None);
        assert_eq!(region.better(&homes(&["a", "b"], "a"), S), None);
        assert_eq!(region.better(&homes(&[], "a"), S), None);
    }

    #[test]
    fn a_home_is_gone_after_a_while_and_not_before() {
        let mut region = Region::default();
        let told = homes(&["a", "b", "c"], "a");
        assert!(region.instead(&told, 100 * S).is_empty(), "it stands");
        region.lost(100 * S);
        assert!(region.instead(&told, 101 * S).is_empty());
        region.stands();
        region.lost(200 * S);
        region.lost(205 * S);
        let others = region.instead(&told, 200 * S + GONE_AFTER);
        assert_eq!(names(&others), ["b", "c"]);
        // Home with b now, which has not noticed that a is gone.
        let at_b = homes(&["a", "b", "c"], "b");
        assert_eq!(region.better(&at_b, 210 * S), None);
        assert_eq!(region.better(&at_b, 250 * S).unwrap().0, "a");
        let alone = homes(&[], "a");
        assert!(region.instead(&alone, 300 * S).is_empty());
    }
}
