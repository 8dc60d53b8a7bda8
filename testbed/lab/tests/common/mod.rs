//! What the lab's tests share.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::time::{Duration, Instant};

use weft_lab::score::Score;
use weft_lab::topology::Topology;
use weft_lab::truth::{Connection, Ledger};
use weft_lab::weft::Weft;
use weft_lab::workload::Servers;
use weft_lab::{Result, traffic};

/// How long Weft may take to agree: `WEFT_LAB_WAIT_S`, for whoever looks for a defect.
fn patience() -> Duration {
    let set = std::env::var("WEFT_LAB_WAIT_S").ok();
    let seconds = set.and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(180))
}

/// The value, or the test's end with the error in words.
pub fn ok<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// The truth about what a ledger holds.
pub fn settle(topology: &Topology, servers: &Servers, ledger: &Ledger) -> Vec<Connection> {
    ok(traffic::settle(topology, servers, ledger))
}

/// Asks Weft until it agrees with the truth, for at most a few minutes; gives the last comparison.
///
/// Its answer is then taken a second time: what agrees must stay so, and not be joined to something else later.
pub fn compare(weft: &mut Weft<'_>, truth: &[Connection]) -> Score {
    let end = Instant::now() + patience();
    loop {
        ok(weft.check_alive());
        let score = Score::of(truth, &ok(weft.connections()));
        if score.is_perfect() {
            std::thread::sleep(Duration::from_secs(2));
            return Score::of(truth, &ok(weft.connections()));
        }
        if Instant::now() > end {
            return score;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Fails with examples unless the comparison is perfect.
pub fn assert_perfect(score: &Score) {
    assert!(score.is_perfect(), "{score}\n{}", score.examples.join("\n"));
}
