//! How long something took, lately.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use weft_wire::Timestamp;

/// Delays that count; older ones are forgotten.
const WINDOW: usize = 1024;

/// The last delays, in microseconds.
#[derive(Debug, Default)]
pub struct Delays {
    last: Mutex<VecDeque<u64>>,
}

impl Delays {
    /// What began at these times has ended.
    pub fn since(&self, began: &[Timestamp], now: Timestamp) {
        if began.is_empty() {
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        for at in began.iter().rev().take(WINDOW) {
            if last.len() == WINDOW {
                last.pop_front();
            }
            let delay = now.0.saturating_sub(at.0);
            last.push_back(u64::try_from(delay).unwrap_or(0));
        }
    }

    /// The median; `None` when there was nothing yet.
    pub fn median(&self) -> Option<u64> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sorted: Vec<u64> = last.iter().copied().collect();
        drop(last);
        let middle = sorted.len().checked_sub(1)? / 2;
        Some(*sorted.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_last() {
        let delays = Delays::default();
        assert_eq!(delays.median(), None);
        delays.since(
            &[Timestamp(90), Timestamp(50), Timestamp(10)],
            Timestamp(100),
        );
        assert_eq!(delays.median(), Some(50));
        delays.since(&vec![Timestamp(200); WINDOW], Timestamp(207));
        assert_eq!(delays.median(), Some(7));
    }
}
