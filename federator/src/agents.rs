//! What is known of each agent while the program runs: its sequence numbers, its session, its clock.

mod losses;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;
use weft_transport::Session;
use weft_wire::control::{AgentStatus, CloseCode};
use weft_wire::query::AgentHealth;
use weft_wire::{AgentInfo, AgentKey, Timestamp};

use crate::limits::{Budget, Cost, Rates};
use losses::Losses;

/// Most agents known. When there are as many, those without a session that were heard last the longest ago make room,
/// some hundred of them, unless that was within [`RECENT_US`]: then the new one is refused with [`CloseCode::Limit`].
/// Hosts that come and go, each with a name of its own, so lock nobody out: only so many at a time can.
pub const MAX_AGENTS: usize = 16_384;

/// An agent that was heard within this, in microseconds, is not forgotten for another: it may be between two sessions.
pub const RECENT_US: i64 = 60_000_000;

/// Agents that make room at once: looking for them means looking at all.
const FORGOTTEN_AT_ONCE: usize = 256;

/// Part of a lower estimate of an agent's clock that is believed: 1/8, as of a round trip.
const SKEW_SHIFT: u32 = 3;

/// One agent.
#[derive(Debug)]
pub struct AgentState {
    /// Its key.
    pub key: AgentKey,
    durable: watch::Sender<u64>,
    inner: Mutex<Inner>,
    /// Of all its sessions together.
    budget: Mutex<Budget>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Highest sequence number given to the journal.
    submitted: u64,
    session: Option<Session>,
    info: AgentInfo,
    status: AgentStatus,
    losses: Losses,
    last_seen: Timestamp,
    skew_us: Option<i64>,
    lag_us: i64,
    halves: u64,
    /// It was taken for gone, and has not been heard since.
    gone: bool,
}

impl AgentState {
    fn new(key: AgentKey, durable: u64) -> Self {
        let inner = Inner {
            submitted: durable,
            ..Inner::default()
        };
        Self {
            key,
            durable: watch::Sender::new(durable),
            inner: Mutex::new(inner),
            budget: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses some of what it may do in a time; how long to wait before more of it is read.
    pub fn charge(&self, rates: Rates, now: Timestamp, cost: Cost) -> std::time::Duration {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.charge(rates, now, cost)
    }

    /// Follows what is durable.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.durable.subscribe()
    }

    /// A session of this agent begins; an older one ends.
    pub fn begin(&self, session: &Session, info: &AgentInfo) {
        let older = {
            let mut inner = self.inner();
            inner.info = info.clone();
            inner.session.replace(session.clone())
        };
        if let Some(older) = older {
            older.close(
                CloseCode::Superseded,
                "a newer session of this agent took over",
            );
        }
    }

    /// Claims a sequence number and submits; `false` when it was submitted before. Both at once: two sessions of one agent, of
    /// which the newer took over, must not submit in another order than they claimed.
    pub fn claim(&self, seq: u64, halves: usize, submit: impl FnOnce()) -> bool {
        let mut inner = self.inner();
        if seq <= inner.submitted {
            return false;
        }
        inner.submitted = seq;
        inner.halves += halves as u64;
        submit();
        true
    }

    /// The batch is durable.
    pub fn became_durable(&self, seq: u64, newest: Option<Timestamp>, now: Timestamp) {
        if let Some(newest) = newest {
            self.inner().lag_us = now.0.saturating_sub(newest.0);
        }
        self.durable.send_replace(seq);
    }

    /// Something came, with the agent's clock as it was when it was sent. Whatever delays it makes the agent's clock seem
    /// late, never early: a higher estimate is better, a lower one may be drift.
    pub fn heard(&self, agent_clock: Option<Timestamp>, now: Timestamp) -> i64 {
        let mut inner = self.inner();
        inner.last_seen = now;
        inner.gone = false;
        if let Some(clock) = agent_clock {
            let seen = clock.0.saturating_sub(now.0);
            inner.skew_us = Some(match inner.skew_us {
                Some(known) if seen < known => known + (seen.saturating_sub(known) >> SKEW_SHIFT),
                _ => seen,
            });
        }
        inner.skew_us.unwrap_or(0)
    }

    /// The agent's own counters.
    pub fn reported(&self, status: AgentStatus, now: Timestamp) {
        let mut inner = self.inner();
        inner.losses.told(&status, now);
        inner.status = status;
    }

    /// When it was heard last; `None` while it has a session.
    fn away_since(&self) -> Option<Timestamp> {
        let inner = self.inner();
        let live = inner
            .session
            .as_ref()
            .is_some_and(|session| session.close_reason().is_none());
        (!live).then_some(inner.last_seen)
    }

    /// For `weft health`; what it lost since then, if asked.
    pub fn health(&self, now: Timestamp, since: Option<Timestamp>) -> AgentHealth {
        let inner = self.inner();
        let live = inner
            .session
            .as_ref()
            .filter(|session| session.close_reason().is_none());
        AgentHealth {
            name: inner.info.name.clone(),
            version: inner.info.version.clone(),
            connected: live.is_some(),
            last_seen: inner.last_seen,
            lag_us: inner.lag_us,
            clock_skew_us: inner.skew_us.unwrap_or(0),
            certificate_days_left: inner
                .session
                .as_ref()
                .map_or(0, |session| session.peer_days_left(now)),
            halves: inner.halves,
            open: inner.status.open,
            spool_bytes: inner.status.spool_bytes,
            kernel_dropped: inner.status.kernel_dropped,
            table_dropped: inner.status.table_dropped,
            spool_dropped: inner.status.spool_dropped,
            given_up: inner.status.given_up.clone(),
            spool_failing: inner.status.spool_failing,
            lost_in_window: since.map(|since| inner.losses.since(Some(since))),
        }
    }
}

/// All agents.
#[derive(Debug, Default)]
pub struct AgentStates {
    by_key: Mutex<HashMap<AgentKey, Arc<AgentState>>>,
    /// When it was first asked who is gone: who was not heard since the start of the program is silent since then.
    asked: OnceLock<Timestamp>,
    /// Those that made room for others, with the time of which they are silent.
    displaced: Mutex<BTreeMap<AgentKey, Timestamp>>,
}

impl AgentStates {
    /// Starts with what is durable.
    pub fn new(sequences: &[(AgentKey, u64)]) -> Self {
        let known = sequences
            .iter()
            .map(|(key, seq)| (*key, Arc::new(AgentState::new(*key, *seq))));
        Self {
            by_key: Mutex::new(known.collect()),
            ..Self::default()
        }
    }

    /// The agent with this key; `None` when there are too many. One that was forgotten and comes back begins with the
    /// sequence number 0 here; the core still knows what it applied.
    pub fn of(&self, key: AgentKey, now: Timestamp) -> Option<Arc<AgentState>> {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = by_key.get(&key) {
            return Some(known.clone());
        }
        if by_key.len() >= MAX_AGENTS {
            self.forget_away(&mut by_key, now);
        }
        if by_key.len() >= MAX_AGENTS {
            return None;
        }
        self.displaced().remove(&key);
        let state = Arc::new(AgentState::new(key, 0));
        by_key.insert(key, state.clone());
        Some(state)
    }

    fn displaced(&self) -> MutexGuard<'_, BTreeMap<AgentKey, Timestamp>> {
        self.displaced
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that have been silent for longer than this, each once.
    pub fn gone(&self, now: Timestamp, silent_us: i64) -> Vec<AgentKey> {
        let started = *self.asked.get_or_init(|| now);
        let is_gone = |since: Timestamp| now.0.saturating_sub(since.max(started).0) > silent_us;
        let mut gone = Vec::new();
        let by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        for state in by_key.values() {
            if state.away_since().is_some_and(is_gone)
                && !std::mem::replace(&mut state.inner().gone, true)
            {
                gone.push(state.key);
            }
        }
        drop(by_key);
        let mut displaced = self.displaced();
        let too_many = displaced.len() > MAX_AGENTS;
        displaced.retain(|key, since| {
            let keep = !(is_gone(*since) || too_many);
            if !keep {
                gone.push(*key);
            }
            keep
        });
        gone
    }

    /// Makes room: of those without a session, the ones that were heard last the longest ago.
    fn forget_away(&self, by_key: &mut HashMap<AgentKey, Arc<AgentState>>, now: Timestamp) {
        let away = by_key.values().filter_map(|state| {
            let since = state.away_since()?;
            (now.0.saturating_sub(since.0) >= RECENT_US).then_some((since, state.key))
        });
        let mut away: Vec<_> = away.collect();
        away.sort_unstable();
        for (since, key) in away.into_iter().take(FORGOTTEN_AT_ONCE) {
            by_key.remove(&key);
            self.displaced().insert(key, since);
        }
    }

    /// Whether an agent with this key ever reported here, as far as is remembered.
    pub fn knows(&self, key: AgentKey) -> bool {
        let by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        by_key.contains_key(&key)
    }

    /// How many have a session.
    pub fn connected(&self) -> u64 {
        let by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        let there = by_key.values().filter(|state| state.away_since().is_none());
        there.count() as u64
    }

    /// Halves that agents told of as lost, since this time (to the hour).
    pub fn lost(&self, since: Option<Timestamp>) -> u64 {
        let by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = |state: &Arc<AgentState>| state.inner().losses.since(since);
        by_key.values().map(lost).sum()
    }

    /// All that have connected since the start, by name, but for those that have been silent for longer than this; with
    /// what each lost since then, if asked.
    pub fn health(
        &self,
        now: Timestamp,
        silent_us: i64,
        since: Option<Timestamp>,
    ) -> Vec<AgentHealth> {
        let states: Vec<_> = {
            let by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
            by_key.values().cloned().collect()
        };
        let mut health: Vec<_> = states
            .iter()
            .filter(|state| {
                let away = state.away_since();
                away.is_none_or(|since| now.0.saturating_sub(since.0) <= silent_us)
            })
            .map(|state| state.health(now, since))
            .filter(|agent| !agent.name.is_empty())
            .collect();
        health.sort_by(|a, b| a.name.cmp(&b.name));
        health
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_number_is_taken_once() {
        let state = AgentState::new(AgentKey(1), 5);
        assert!(!state.claim(5, 1, || ()));
        assert!(state.claim(7, 1, || ()));
        assert!(!state.claim(6, 1, || ()));
        assert!(!state.claim(7, 1, || ()));
        assert_eq!(*state.durable().borrow(), 5);
        state.became_durable(7, Some(Timestamp(10)), Timestamp(40));
        assert_eq!((*state.durable().borrow(), state.inner().lag_us), (7, 30));
    }

    #[test]
    fn delays_hardly_move_the_clock_estimate() {
        let state = AgentState::new(AgentKey(1), 0);
        assert_eq!(
            state.heard(Some(Timestamp(1_000_500)), Timestamp(1_000_000)),
            500
        );
        assert_eq!(
            state.heard(Some(Timestamp(1_000_100)), Timestamp(1_000_000)),
            450
        );
        assert_eq!(
            state.heard(Some(Timestamp(1_000_600)), Timestamp(1_000_000)),
            600
        );
        assert_eq!(state.heard(None, Timestamp(9)), 600);
    }

    #[test]
    fn who_is_silent_for_long_is_not_named_any_more() {
        let states = AgentStates::default();
        let state = states.of(AgentKey(1), Timestamp(0)).unwrap();
        state.inner().info.name = "node".into();
        state.heard(None, Timestamp(5));
        assert_eq!(states.health(Timestamp(15), 10, None).len(), 1);
        assert_eq!(states.health(Timestamp(16), 10, None).len(), 0);
        assert!(states.knows(AgentKey(1)));
    }

    #[test]
    fn who_is_silent_for_long_is_gone_once() {
        let states = AgentStates::new(&[(AgentKey(1), 5), (AgentKey(2), 5)]);
        assert_eq!(states.gone(Timestamp(1000), 10), []);
        states
            .of(AgentKey(2), Timestamp(1005))
            .unwrap()
            .heard(None, Timestamp(1005));
        assert_eq!(states.gone(Timestamp(1010), 10), []);
        assert_eq!(states.gone(Timestamp(1011), 10), [AgentKey(1)]);
        assert_eq!(states.gone(Timestamp(1016), 10), [AgentKey(2)]);
        assert_eq!(states.gone(Timestamp(1017), 10), []);
        states
            .of(AgentKey(1), Timestamp(1020))
            .unwrap()
            .heard(None, Timestamp(1020));
        assert_eq!(states.gone(Timestamp(1031), 10), [AgentKey(1)]);
    }

    #[test]
    fn there_is_a_limit() {
        let states = AgentStates::default();
        let now = Timestamp(RECENT_US);
        for key in 0..MAX_AGENTS as u64 {
            let state = states.of(AgentKey(key), now).unwrap();
            state.heard(None, Timestamp(if key == 7 { 0 } else { 1 }));
        }
        assert!(states.of(AgentKey(3), now).is_some());
        let came = states.of(AgentKey(u64::MAX), now).unwrap();
        came.heard(None, now);
        assert!(
            states.of(AgentKey(7), now).is_none(),
            "it was forgotten, and all others were heard lately"
        );
        assert_eq!(states.gone(now, 0), []);
        assert_eq!(states.gone(Timestamp(RECENT_US + 1), RECENT_US).len(), 0);
        assert!(states.displaced().contains_key(&AgentKey(7)));
        assert!(states.of(AgentKey(7), Timestamp(RECENT_US + 1)).is_some());
        assert!(!states.displaced().contains_key(&AgentKey(7)));
        assert!(states.of(AgentKey(u64::MAX), now).is_some());
    }
}
