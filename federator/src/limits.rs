//! What one agent and one peer may do in a time. Who does more is slowed down: its session is not read until its debt is worked off,
//! so its data waits at its own end, and nobody else's does.
//!
//! Pure: time is passed in. [`crate::server`] sleeps and counts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use weft_transport::Limits as Listening;
use weft_wire::Timestamp;

use crate::config::MAX_PEERS;

/// So many seconds of its rates anybody may have at once: who was away brings what waited.
pub const BURST_S: u64 = 20;
/// A hello counts as so many frames: it is journalled, and a handshake came before it.
pub const HELLO_FRAMES: u64 = 20;

/// The section `[limits]` of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sessions at a time.
    pub sessions: usize,
    /// Sessions of one agent or federator at a time.
    pub sessions_of_one: usize,
    /// Handshakes at a time; half of them from one address.
    pub handshakes: usize,
    /// Frames a second of one agent: batches, and what it says of itself and of its cluster.
    pub agent_frames_per_s: u64,
    /// Bytes a second of one agent, as they come or unpacked, whichever is more.
    pub agent_bytes_per_s: u64,
    /// Rows a second of one agent.
    pub agent_rows_per_s: u64,
    /// An agent whose clock is farther off is turned away.
    pub agent_clock_skew_s: u64,
    /// Frames a second of another federator.
    pub peer_frames_per_s: u64,
    /// Bytes a second of another federator.
    pub peer_bytes_per_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let listening = Listening::default();
        Self {
            sessions: listening.sessions,
            sessions_of_one: listening.sessions_of_one,
            handshakes: listening.handshakes,
            agent_frames_per_s: 100,
            agent_bytes_per_s: 4 << 20,
            agent_rows_per_s: 125_000,
            agent_clock_skew_s: 86_400,
            peer_frames_per_s: 5_000,
            peer_bytes_per_s: 32 << 20,
        }
    }
}

impl Limits {
    /// Names the setting that cannot be.
    pub fn check(&self) -> anyhow::Result<()> {
        let positive = [
            ("sessions", self.sessions as u64),
            ("sessions_of_one", self.sessions_of_one as u64),
            ("handshakes", self.handshakes as u64),
            ("agent_frames_per_s", self.agent_frames_per_s),
            ("agent_bytes_per_s", self.agent_bytes_per_s),
            ("agent_rows_per_s", self.agent_rows_per_s),
            ("agent_clock_skew_s", self.agent_clock_skew_s),
            ("peer_frames_per_s", self.peer_frames_per_s),
            ("peer_bytes_per_s", self.peer_bytes_per_s),
        ];
        for (name, value) in positive {
            anyhow::ensure!(value > 0, "limits.{name} must not be 0");
        }
        Ok(())
    }

    /// What the listener keeps to.
    pub fn listening(&self) -> Listening {
        Listening {
            sessions: self.sessions,
            handshakes: self.handshakes,
            sessions_of_one: self.sessions_of_one,
            ..Listening::default()
        }
    }

    /// Of one agent.
    pub fn agent(&self) -> Rates {
        Rates([
            self.agent_frames_per_s,
            self.agent_bytes_per_s,
            self.agent_rows_per_s,
        ])
    }

    /// Of one peer, whose rows are not counted.
    pub fn peer(&self) -> Rates {
        Rates([self.peer_frames_per_s, self.peer_bytes_per_s, u64::MAX])
    }

    /// How far a clock is off, in whole seconds, if that is too far.
    pub fn clock_off_s(&self, skew_us: i64) -> Option<u64> {
        let off_s = skew_us.unsigned_abs() / 1_000_000;
        (off_s > self.agent_clock_skew_s).then_some(off_s)
    }
}

/// Frames, bytes and rows a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates([u64; 3]);

/// What something costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Frames.
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
}

/// What one agent or peer has used lately, worked off at its rates.
#[derive(Debug, Default)]
pub struct Budget {
    at: Timestamp,
    used: [f64; 3],
}

impl Budget {
    /// Uses it, and says how long to wait before the next is read. What is used up waits for the rate; [`BURST_S`] of it are free.
    pub fn charge(&mut self, rates: Rates, now: Timestamp, cost: Cost) -> Duration {
        // A clock that was set back gives nothing away.
        let passed_s = now.0.saturating_sub(self.at.0).max(0) as f64 / 1e6;
        self.at = now;
        let costs = [cost.frames, cost.bytes, cost.rows];
        let mut wait_s = 0.0_f64;
        for ((used, rate), cost) in self.used.iter_mut().zip(rates.0).zip(costs) {
            let rate = rate as f64;
            *used = (*used - passed_s * rate).max(0.0) + cost as f64;
            wait_s = wait_s.max(*used / rate - BURST_S as f64);
        }
        Duration::try_from_secs_f64(wait_s).unwrap_or_default()
    }
}

/// What was slowed down, in total.
#[derive(Debug, Default)]
pub struct LimitCounters {
    /// Frames of agents after which the agent had to wait.
    pub agent_frames: AtomicU64,
    /// How long, in milliseconds.
    pub agent_ms: AtomicU64,
    /// The same of peers.
    pub peer_frames: AtomicU64,
    /// How long, in milliseconds.
    pub peer_ms: AtomicU64,
    /// Sessions of agents whose clock is too far off, or that told of times too far ahead.
    pub clocks: AtomicU64,
}

impl LimitCounters {
    /// By the names that `weft health` and the metrics have.
    pub fn read(&self) -> [(&'static str, u64); 5] {
        [
            ("agent_frames_slowed", self.agent_frames.load(Relaxed)),
            ("agent_slowed_ms", self.agent_ms.load(Relaxed)),
            ("peer_frames_slowed", self.peer_frames.load(Relaxed)),
            ("peer_slowed_ms", self.peer_ms.load(Relaxed)),
            ("clock_refusals", self.clocks.load(Relaxed)),
        ]
    }

    /// An agent waits.
    pub fn agent_waits(&self, wait: Duration) {
        self.agent_frames.fetch_add(1, Relaxed);
        self.agent_ms.fetch_add(millis(wait), Relaxed);
    }

    /// A peer waits.
    pub fn peer_waits(&self, wait: Duration) {
        self.peer_frames.fetch_add(1, Relaxed);
        self.peer_ms.fetch_add(millis(wait), Relaxed);
    }
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// The peers' budgets, whatever sessions they have. Peers are known ones, and few.
#[derive(Debug, Default)]
pub struct PeerBudgets(Mutex<HashMap<String, Arc<Mutex<Budget>>>>);

impl PeerBudgets {
    /// Charges a peer.
    pub fn charge(&self, peer: &str, rates: Rates, now: Timestamp, cost: Cost) -> Duration {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() > MAX_PEERS && !all.contains_key(peer) {
            all.clear();
        }
        let budget = all.entry(peer.to_owned()).or_default().clone();
        drop(all);
        let mut budget = budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.charge(rates, now, cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates([10, 1_000, u64::MAX]);

    fn at(seconds: f64) -> Timestamp {
        Timestamp(1_000_000_000 + (seconds * 1e6) as i64)
    }

    fn frames(frames: u64) -> Cost {
        Cost {
            frames,
            ..Cost::default()
        }
    }

    #[test]
    fn a_burst_is_free_and_what_lasts_is_the_rate() {
        let mut budget = Budget::default();
        assert_eq!(budget.charge(RATES, at(0.0), frames(200)), Duration::ZERO);
        let wait = budget.charge(RATES, at(0.0), frames(5));
        assert_eq!(wait, Duration::from_millis(500));
        let wait = budget.charge(RATES, at(0.5), frames(10));
        assert_eq!(wait, Duration::from_secs(1), "who waited owes only the new");
        assert_eq!(budget.charge(RATES, at(60.0), frames(200)), Duration::ZERO);
    }

    #[test]
    fn what_is_used_most_counts() {
        let mut budget = Budget::default();
        let cost = Cost {
            frames: 1,
            bytes: 21_000,
            rows: u64::MAX / 2,
        };
        assert_eq!(budget.charge(RATES, at(0.0), cost), Duration::from_secs(1));
    }

    #[test]
    fn a_clock_set_back_gives_nothing_and_takes_nothing() {
        let mut budget = Budget::default();
        budget.charge(RATES, at(0.0), frames(200));
        let wait = budget.charge(RATES, at(-1e6), frames(10));
        assert_eq!(wait, Duration::from_secs(1));
    }

    #[test]
    fn peers_have_a_budget_each_over_all_their_sessions() {
        let budgets = PeerBudgets::default();
        let charge = |peer| budgets.charge(peer, RATES, at(0.0), frames(150));
        assert_eq!(charge("a"), Duration::ZERO);
        assert_eq!(charge("a"), Duration::from_secs(10));
        assert_eq!(charge("b"), Duration::ZERO);
    }
}
