//! What the agent may take of its host, and what it gives up to stay within.
//!
//! [`Governor`] decides, [`sizes`] fits the kernel's maps, [`usage`] reads what is taken. Counts (connections, bytes, packets) are
//! never given up: they are counted in the kernel, and every connection's end is told with them. Detail is, in the order of
//! [`Detail::ORDER`], a step at a time, and taken up again a step at a time when there was room for a while.
//!
//! Contract of [`Governor`]: [`Governor::look`] with what the process has taken so far, about once a second; it gives the change
//! of what is given up, if there is one. No clock, no IO.

pub mod sizes;
pub mod usage;

use std::collections::VecDeque;
use std::fmt::{self, Display};

use weft_wire::control::Detail;

use crate::config::Limits;

/// Time over which the share of a processor is taken.
const WINDOW_NS: u64 = 10_000_000_000;
/// Time at least between two steps: long enough to see what the last one did.
const STEP_NS: u64 = 5_000_000_000;
/// There must be room for so long before detail is taken up again; doubled each time that it had to be given up again soon.
const ROOM_NS: u64 = 30_000_000_000;
/// Longest that this becomes.
const MOST_ROOM_NS: u64 = 960_000_000_000;
/// Room is what lies below so many hundredths of a limit.
const ROOM_PERCENT: u64 = 70;

/// The limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Most resident bytes of the process.
    pub memory_bytes: u64,
    /// Most hundredths of one processor, over ten seconds.
    pub cpu_percent: u32,
}

impl From<Limits> for Budget {
    fn from(limits: Limits) -> Self {
        Self {
            memory_bytes: limits.memory_bytes,
            cpu_percent: limits.cpu_percent,
        }
    }
}

/// What the process has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// When, monotonic.
    pub at_ns: u64,
    /// Processor time since its start.
    pub cpu_ns: u64,
    /// Resident bytes now.
    pub resident_bytes: u64,
}

/// Which limit was passed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Over {
    /// Hundredths of one processor that were taken.
    Cpu(f64),
    /// Bytes that are resident.
    Memory(u64),
}

/// What is given up now is not what it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// One thing more, and why.
    GivenUp(Detail, Over),
    /// One thing is taken up again.
    TakenUp(Detail),
    /// A limit is passed and nothing is left to give up.
    NothingLeft(Over),
}

/// See the module.
#[derive(Debug)]
pub struct Governor {
    budget: Budget,
    seen: VecDeque<Usage>,
    /// How many of [`Detail::ORDER`] are given up.
    level: usize,
    stepped_ns: Option<u64>,
    room_since_ns: Option<u64>,
    room_ns: u64,
    /// The last step was to take up something.
    took_up: bool,
    said_nothing_left: bool,
}

impl Governor {
    /// Nothing is given up.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            seen: VecDeque::new(),
            level: 0,
            stepped_ns: None,
            room_since_ns: None,
            room_ns: ROOM_NS,
            took_up: false,
            said_nothing_left: false,
        }
    }

    /// What is given up now.
    pub fn given_up(&self) -> &'static [Detail] {
        &Detail::ORDER[..self.level]
    }

    /// The share of a processor over the window, in hundredths; 0 before the window's first two looks.
    pub fn cpu_percent(&self) -> f64 {
        match (self.seen.front(), self.seen.back()) {
            (Some(first), Some(last)) if last.at_ns > first.at_ns => {
                let cpu_ns = last.cpu_ns.saturating_sub(first.cpu_ns);
                cpu_ns as f64 * 100.0 / (last.at_ns - first.at_ns) as f64
            }
            _ => 0.0,
        }
    }

    /// Takes one look.
    pub fn look(&mut self, usage: Usage) -> Option<Change> {
        self.seen.push_back(usage);
        while self
            .seen
            .get(1)
            .is_some_and(|second| second.at_ns.saturating_add(WINDOW_NS) <= usage.at_ns)
        {
            self.seen.pop_front();
        }
        let over = self.over(usage, 100);
        let room = self.over(usage, ROOM_PERCENT).is_none();
        if !room {
            self.room_since_ns = None;
        } else if self.room_since_ns.is_none() {
            self.room_since_ns = Some(usage.at_ns);
        }
        let rested = |since: Option<u64>, rest_ns: u64| {
            since.is_none_or(|since| since.saturating_add(rest_ns) <= usage.at_ns)
        };
        match over {
            Some(over) if rested(self.stepped_ns, STEP_NS) => self.give_up(over, usage.at_ns),
            None if self.level > 0
                && self.room_since_ns.is_some()
                && rested(self.room_since_ns, self.room_ns)
                && rested(self.stepped_ns, self.room_ns) =>
            {
                Some(self.take_up(usage.at_ns))
            }
            _ => None,
        }
    }

    /// The limit of which more than so many hundredths are taken. The share of a processor counts once the window is half full: an
    /// agent that starts reads much at once.
    fn over(&self, usage: Usage, percent: u64) -> Option<Over> {
        if usage.resident_bytes > self.budget.memory_bytes / 100 * percent {
            return Some(Over::Memory(usage.resident_bytes));
        }
        let first_ns = self.seen.front().map_or(usage.at_ns, |first| first.at_ns);
        let taken = self.cpu_percent();
        let limit = f64::from(self.budget.cpu_percent) * percent as f64 / 100.0;
        (usage.at_ns - first_ns >= WINDOW_NS / 2 && taken > limit).then_some(Over::Cpu(taken))
    }

    fn give_up(&mut self, over: Over, at_ns: u64) -> Option<Change> {
        let Some(detail) = Detail::ORDER.get(self.level) else {
            let again = std::mem::replace(&mut self.said_nothing_left, true);
            return (!again).then_some(Change::NothingLeft(over));
        };
        let since = self
            .stepped_ns
            .map_or(u64::MAX, |stepped| at_ns.saturating_sub(stepped));
        self.room_ns = match since {
            // Taken up a moment ago, and too early.
            since if self.took_up && since < self.room_ns => (self.room_ns * 2).min(MOST_ROOM_NS),
            since if since > MOST_ROOM_NS => ROOM_NS,
            _ => self.room_ns,
        };
        self.took_up = false;
        self.level += 1;
        self.stepped(at_ns);
        Some(Change::GivenUp(*detail, over))
    }

    fn take_up(&mut self, at_ns: u64) -> Change {
        self.level -= 1;
        self.said_nothing_left = false;
        self.took_up = true;
        self.stepped(at_ns);
        Change::TakenUp(Detail::ORDER[self.level])
    }

    /// What was taken before a step says nothing of what is taken after it.
    fn stepped(&mut self, at_ns: u64) {
        self.stepped_ns = Some(at_ns);
        self.room_since_ns = None;
        let last = self.seen.pop_back();
        self.seen.clear();
        self.seen.extend(last);
    }
}

impl Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(percent) => write!(
                f,
                "{percent:.1} % of a processor, over [limits] cpu_percent"
            ),
            Self::Memory(bytes) => write!(
                f,
                "{:.1} MiB resident, over [limits] memory_bytes",
                *bytes as f64 / f64::from(1 << 20)
            ),
        }
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GivenUp(detail, over) => {
                write!(f, "{over}: given up from now on: {}", detail.words())
            }
            Self::TakenUp(detail) => write!(f, "there is room again for {}", detail.words()),
            Self::NothingLeft(over) => write!(f, "{over}, and no detail is left to give up"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const BUDGET: Budget = Budget {
        memory_bytes: 1_000,
        cpu_percent: 10,
    };

    /// A process that takes `percent(second)` of a processor and `bytes(second)`, looked at every second: what changed when.
    fn watch(
        seconds: u64,
        percent: impl Fn(u64, usize) -> u64,
        bytes: impl Fn(u64, usize) -> u64,
    ) -> Vec<(u64, Change)> {
        let (mut governor, mut cpu_ns, mut changes) = (Governor::new(BUDGET), 0, Vec::new());
        for second in 0..seconds {
            let level = governor.level;
            cpu_ns += percent(second, level) * SECOND / 100;
            let change = governor.look(Usage {
                at_ns: second * SECOND,
                cpu_ns,
                resident_bytes: bytes(second, level),
            });
            changes.extend(change.map(|change| (second, change)));
        }
        changes
    }

    fn given_up(changes: &[(u64, Change)]) -> Vec<Detail> {
        let each = changes.iter().filter_map(|(_, change)| match change {
            Change::GivenUp(detail, _) => Some(*detail),
            _ => None,
        });
        each.collect()
    }

    #[test]
    fn within_the_limits_nothing_happens() {
        assert_eq!(watch(600, |_, _| 10, |_, _| 1_000), []);
    }

    #[test]
    fn detail_goes_in_its_order_until_nothing_is_left_which_is_said_once() {
        let changes = watch(120, |_, _| 50, |_, _| 0);
        assert_eq!(given_up(&changes), Detail::ORDER);
        assert!(changes.windows(2).all(|two| two[1].0 - two[0].0 >= 5));
        let last = changes.last().map(|(_, change)| *change);
        assert!(matches!(last, Some(Change::NothingLeft(Over::Cpu(_)))));
        assert_eq!(changes.len(), Detail::ORDER.len() + 1);
    }

    #[test]
    fn a_burst_at_the_start_gives_up_nothing() {
        assert_eq!(
            watch(60, |second, _| if second < 1 { 90 } else { 3 }, |_, _| 0),
            []
        );
    }

    #[test]
    fn memory_counts_at_once() {
        let changes = watch(4, |_, _| 0, |_, _| 1_001);
        assert_eq!(
            changes,
            [(0, Change::GivenUp(Detail::ORDER[0], Over::Memory(1_001)))]
        );
    }

    #[test]
    fn only_as_much_is_given_up_as_is_needed() {
        // Without the first two details the work fits.
        let changes = watch(29, |_, level| if level < 2 { 12 } else { 9 }, |_, _| 0);
        assert_eq!(given_up(&changes), Detail::ORDER[..2]);
    }

    #[test]
    fn what_was_given_up_comes_back_when_there_is_room_for_a_while() {
        let changes = watch(400, |second, _| if second < 60 { 50 } else { 1 }, |_, _| 0);
        let back: Vec<(u64, Detail)> = changes
            .iter()
            .filter_map(|(second, change)| match change {
                Change::TakenUp(detail) => Some((*second, *detail)),
                _ => None,
            })
            .collect();
        let details: Vec<Detail> = back.iter().map(|(_, detail)| *detail).collect();
        assert!(details.iter().eq(Detail::ORDER.iter().rev()), "{back:?}");
        assert!(back[0].0 >= 60 + 30);
    }

    #[test]
    fn what_does_not_fit_is_tried_ever_more_rarely() {
        let changes = watch(4_000, |_, level| if level == 0 { 20 } else { 2 }, |_, _| 0);
        let tries: Vec<u64> = changes
            .iter()
            .filter(|(_, change)| matches!(change, Change::TakenUp(_)))
            .map(|(second, _)| *second)
            .collect();
        let waits: Vec<u64> = tries.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(tries.len() < 12, "{tries:?}");
        assert!(waits.windows(2).all(|two| two[1] >= two[0]), "{waits:?}");
    }

    #[test]
    fn it_is_said_in_words() {
        let change = Change::GivenUp(Detail::Processes, Over::Cpu(14.25));
        assert_eq!(
            change.to_string(),
            "14.2 % of a processor, over [limits] cpu_percent: given up from now on: executables, arguments and parents of \
             processes"
        );
    }
}
