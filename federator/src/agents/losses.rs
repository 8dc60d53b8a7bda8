//! Halves that an agent lost, by the hour in which it told: an old loss says nothing of a later window.

use std::collections::BTreeMap;

use weft_wire::Timestamp;
use weft_wire::control::AgentStatus;

const HOUR_US: i64 = 3_600_000_000;

/// Most hours that are told apart for one agent; of more, the oldest count as lost at any time before.
const MAX_HOURS: usize = 24 * 31;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// What the agent counted when it told last.
    total: u64,
    by_hour: BTreeMap<i64, u64>,
    /// Before the first of the hours.
    earlier: u64,
}

impl Losses {
    /// The agent tells what it lost since its start: first, or after a start, all of it may be new.
    pub(super) fn told(&mut self, status: &AgentStatus, now: Timestamp) {
        let total = status.kernel_dropped + status.table_dropped + status.spool_dropped;
        let more = if total < self.total {
            total
        } else {
            total - self.total
        };
        self.total = total;
        if more == 0 {
            return;
        }
        *self.by_hour.entry(now.0.div_euclid(HOUR_US)).or_default() += more;
        if self.by_hour.len() > MAX_HOURS
            && let Some((_, oldest)) = self.by_hour.pop_first()
        {
            self.earlier += oldest;
        }
    }

    /// Lost since this time, or in the hour before it; `None`: ever.
    pub(super) fn since(&self, since: Option<Timestamp>) -> u64 {
        let first = since.map_or(i64::MIN, |at| at.0.div_euclid(HOUR_US));
        let known: u64 = self.by_hour.range(first..).map(|(_, lost)| lost).sum();
        // Whether these are older is known only where a kept hour is older still.
        let oldest = self.by_hour.keys().next();
        let told_apart = oldest.is_some_and(|oldest| *oldest <= first);
        known + if told_apart { 0 } else { self.earlier }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(kernel_dropped: u64, spool_dropped: u64) -> AgentStatus {
        AgentStatus {
            kernel_dropped,
            spool_dropped,
            ..AgentStatus::default()
        }
    }

    fn hour(hour: i64) -> Timestamp {
        Timestamp(hour * HOUR_US + 5)
    }

    #[test]
    fn an_old_loss_is_not_of_a_later_window() {
        let mut losses = Losses::default();
        losses.told(&lost(3, 4), hour(10));
        losses.told(&lost(3, 4), hour(11));
        losses.told(&lost(3, 6), hour(12));
        let since = |at| losses.since(Some(hour(at)));
        assert_eq!([since(9), since(10), since(11), since(12)], [9, 9, 2, 2]);
        assert_eq!((since(13), losses.since(None)), (0, 9));
        losses.told(&lost(1, 0), hour(14));
        assert_eq!(losses.since(Some(hour(13))), 1, "it was started anew");
    }

    #[test]
    fn hours_are_kept_within_a_limit() {
        let mut losses = Losses::default();
        let most = MAX_HOURS as i64;
        for at in 0..most + 10 {
            losses.told(&lost(at as u64 + 1, 0), hour(at));
        }
        assert_eq!(losses.by_hour.len(), MAX_HOURS);
        assert_eq!(losses.since(None), MAX_HOURS as u64 + 10);
        assert_eq!(losses.since(Some(hour(3))), MAX_HOURS as u64 + 10);
        assert_eq!(losses.since(Some(hour(10))), MAX_HOURS as u64);
    }
}
