//! How this federator is: for `weft health` and for metrics.

mod exposed;
mod samples;
mod troubles;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weft_transport::{Identity, Listener, Refusal};
use weft_wire::Timestamp;
use weft_wire::control::CloseCode;
use weft_wire::query::{FederatorHealth, HealthWindow, Trouble};

use self::samples::{Samples, Totals};
pub use self::troubles::ALL as TROUBLES;
use self::troubles::{Reading, STEP_US, Troubles};

use crate::agents::AgentStates;
use crate::clock;
use crate::config::Config;
use crate::core::CoreCounters;
use crate::membership::MemberCounters;
use crate::peers::Peers;
use crate::pipeline::Progress;
use crate::server::ServerCounters;

/// Seconds over which the rate of halves is taken.
const RATE_WINDOW: usize = 60;

/// The window of the match ratio that is told where no window was asked about.
const RATIO_WINDOW_S: u64 = 3600;

/// Where everything about this federator can be read.
pub struct Vitals {
    name: String,
    region: String,
    data: PathBuf,
    store: PathBuf,
    journal_max_bytes: u64,
    min_free_bytes: u64,
    started: Instant,
    silent_us: i64,
    identity: Identity,
    listener: Arc<Listener>,
    agents: Arc<AgentStates>,
    peers: Arc<Peers>,
    progress: Arc<Progress>,
    /// Totals of the sessions.
    pub sessions: Arc<ServerCounters>,
    /// Halves in total, once a second.
    samples: Mutex<VecDeque<(Instant, u64)>>,
    totals: Mutex<Samples>,
    troubles: Mutex<Troubles>,
    clock: Mutex<Clock>,
    clock_steps: AtomicU64,
}

/// The clock beside the kernel's monotonic one.
#[derive(Debug)]
struct Clock {
    looked: Instant,
    showed: Timestamp,
    /// The last step: when, in microseconds since the start, and how far it went ahead.
    step: Option<(i64, i64)>,
}

impl Clock {
    /// How far the clock was set since the last look, if it was.
    fn look(&mut self, at: Instant, shows: Timestamp, started: Instant) -> Option<i64> {
        let passed = micros(at.duration_since(self.looked));
        let ahead = shows.0.saturating_sub(self.showed.0).saturating_sub(passed);
        (self.looked, self.showed) = (at, shows);
        if ahead.saturating_abs() <= STEP_US {
            return None;
        }
        self.step = Some((micros(at.duration_since(started)), ahead));
        Some(ahead)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// What [`Vitals`] reads.
pub struct Sources {
    /// Who we are.
    pub identity: Identity,
    /// Sessions.
    pub listener: Arc<Listener>,
    /// Agents.
    pub agents: Arc<AgentStates>,
    /// Peers.
    pub peers: Arc<Peers>,
    /// The pipeline.
    pub progress: Arc<Progress>,
    /// Totals of the sessions.
    pub sessions: Arc<ServerCounters>,
}

impl Vitals {
    /// Of a federator that is starting.
    pub fn new(config: &Config, sources: Sources) -> Self {
        let Sources {
            identity,
            listener,
            agents,
            peers,
            progress,
            sessions,
        } = sources;
        let now = Instant::now();
        let vitals = Self {
            name: config.name.clone(),
            region: config.region.clone(),
            data: config.data_dir.clone(),
            store: config.store_file(),
            journal_max_bytes: config.journal.max_bytes,
            min_free_bytes: config.journal.min_free_bytes,
            started: now,
            silent_us: i64::from(config.agents.silent_days) * 86_400_000_000,
            identity,
            listener,
            agents,
            peers,
            progress,
            sessions,
            samples: Mutex::new(VecDeque::from([(now, 0)])),
            totals: Mutex::new(Samples::new(Totals::default())),
            troubles: Mutex::default(),
            clock: Mutex::new(Clock {
                looked: now,
                showed: clock::now(),
                step: None,
            }),
            clock_steps: AtomicU64::new(0),
        };
        vitals.look_at_disk();
        vitals
    }

    /// Takes a sample every second, until the task is aborted.
    pub async fn sample(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let mut samples = lock(&self.samples);
            samples.push_back((Instant::now(), self.sessions.halves.load(Relaxed)));
            if samples.len() > RATE_WINDOW {
                samples.pop_front();
            }
            drop(samples);
            self.look_at_disk();
            self.look_at_clock();
            self.keep_totals();
            self.troubles();
        }
    }

    fn keep_totals(&self) {
        let now_s = self.started.elapsed().as_secs();
        let mut kept = lock(&self.totals);
        if kept.due(now_s) {
            let totals = self.totals(kept.last());
            kept.keep(now_s, &totals);
        }
    }

    fn totals(&self, like: Option<&Totals>) -> Totals {
        let core = self.core();
        Totals {
            halves: core.halves,
            stitched: core.stitched + core.joined,
            matched: core.matched_halves,
            unmatched: core.expired + core.ambiguous,
            ..Totals::default()
        }
        .with(&self.counters(), like)
    }

    fn look_at_disk(&self) {
        self.progress
            .disk_free
            .store(disk_free(&self.data), Relaxed);
    }

    fn look_at_clock(&self) {
        let step = lock(&self.clock).look(Instant::now(), clock::now(), self.started);
        if let Some(ahead_us) = step {
            self.clock_steps.fetch_add(1, Relaxed);
            tracing::warn!(ahead_us, "the clock was set");
        }
    }

    /// What is wrong with it now, as far as it knows.
    pub fn troubles(&self) -> Vec<Trouble> {
        let progress = &self.progress;
        let now_us = micros(self.started.elapsed());
        let began = *lock(&progress.storing_since);
        let reading = Reading {
            now_us,
            journal: (progress.journal_bytes.load(Relaxed), self.journal_max_bytes),
            disk: (progress.disk_free.load(Relaxed), self.min_free_bytes),
            storing_since_us: began.map(|at| now_us - micros(at.elapsed())),
            step: lock(&self.clock).step,
        };
        lock(&self.troubles).look(&reading, clock::now())
    }

    /// Why it does not do what it is there for, in words; empty when it does.
    pub fn failing(&self) -> Vec<String> {
        let mut why: Vec<String> = self
            .troubles()
            .into_iter()
            .filter(|trouble| trouble.failing)
            .map(|trouble| format!("{}: {}", trouble.code, trouble.words))
            .collect();
        if self.identity.not_after() < clock::now() {
            why.push("certificate: it has ended, so nobody can have a session".into());
        }
        why
    }

    /// What happened within the last so many seconds.
    fn window(&self, window_s: u64) -> HealthWindow {
        let kept = lock(&self.totals);
        let (seconds, before) = kept.before(self.started.elapsed().as_secs(), window_s);
        let grown = self.totals(None).since(before);
        drop(kept);
        HealthWindow {
            seconds,
            halves: grown.halves,
            stitched: grown.stitched,
            match_ratio: grown.match_ratio(self.progress.past_hold.load(Relaxed)),
            lost: self.agents.lost(Some(ago(window_s))),
            counters: grown.counters,
        }
    }

    fn core(&self) -> CoreCounters {
        *lock(&self.progress.core)
    }

    /// Of the last hour, or of the time since the start if that is shorter.
    fn match_ratio(&self) -> Option<f64> {
        let kept = lock(&self.totals);
        let (_, before) = kept.before(self.started.elapsed().as_secs(), RATIO_WINDOW_S);
        let grown = self.totals(None).since(before);
        grown.match_ratio(self.progress.past_hold.load(Relaxed))
    }

    fn halves_per_second(&self) -> f64 {
        let samples = lock(&self.samples);
        let Some((at, before)) = samples.front() else {
            return 0.0;
        };
        let more = self.sessions.halves.load(Relaxed).saturating_sub(*before);
        more as f64 / at.elapsed().as_secs_f64().max(0.001)
    }

    /// Halves that agents counted as lost, since this time (to the hour).
    pub fn dropped(&self, since: Option<Timestamp>) -> u64 {
        self.agents.lost(since)
    }

    /// Everything; with what happened within the last so many seconds, if asked.
    pub fn health(&self, window_s: Option<u32>) -> FederatorHealth {
        let now = clock::now();
        let window_s = window_s.map(u64::from);
        let progress = &self.progress;
        let core = self.core();
        FederatorHealth {
            name: self.name.clone(),
            region: self.region.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            reached: true,
            error: None,
            uptime_s: self.started.elapsed().as_secs(),
            agents: self.agents.health(now, self.silent_us, window_s.map(ago)),
            peers: self.peers.all().map(|peer| peer.health()).collect(),
            halves_per_second: self.halves_per_second(),
            halves: core.halves,
            stitched: core.stitched + core.joined,
            match_ratio: self.match_ratio(),
            open_halves: progress.waiting.load(Relaxed),
            exchange_delay_us: progress.exchange.median(),
            certificate_days_left: self.identity.days_left(now),
            journal_bytes: progress.journal_bytes.load(Relaxed),
            store_bytes: self.store_bytes(),
            disk_free_bytes: disk_free(&self.data),
            counters: self.counters(),
            closes: self.closes(),
            journal_max_bytes: self.journal_max_bytes,
            troubles: self.troubles(),
            window: window_s.map(|window_s| self.window(window_s)),
        }
    }

    fn store_bytes(&self) -> u64 {
        let wal = self.store.with_extension("duckdb.wal");
        [&self.store, &wal]
            .into_iter()
            .filter_map(|path| std::fs::metadata(path).ok())
            .map(|data| data.len())
            .sum()
    }

    fn closes(&self) -> Vec<(CloseCode, u64)> {
        let counts = self.listener.counters().read();
        let mut sum: BTreeMap<u32, (CloseCode, u64)> = BTreeMap::new();
        for (code, count) in counts.closed_here.into_iter().chain(counts.closed_by_peer) {
            sum.entry(code as u32).or_insert((code, 0)).1 += count;
        }
        sum.into_values().collect()
    }

    /// What was dropped, refused or went otherwise than it should, by name.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let core = self.core();
        let stitching = *lock(&self.progress.stitching);
        let mesh = (*lock(&self.progress.mesh)).unwrap_or_default();
        let sessions = &self.sessions;
        let transport = self.listener.counters().read();
        let members = self.peers.members().map(|members| &members.counters);
        let member = |count: fn(&MemberCounters) -> &AtomicU64| {
            members.map_or(0, |members| count(members).load(Relaxed))
        };
        let mut counters: BTreeMap<String, u64> = [
            ("ambiguous_halves", core.ambiguous),
            ("contested_pairs", core.contested),
            ("expired_halves", core.expired),
            ("half_id_collisions", core.id_collisions),
            ("late_rows", core.late),
            ("outdated_rows", core.outdated),
            ("memory_full_halves", core.memory_full),
            ("unknown_agent_batches", core.unknown_agent),
            (
                "repeated_batches",
                core.repeated_batches + sessions.repeated_batches.load(Relaxed),
            ),
            ("late_halves", core.sought),
            ("recalled_halves", core.recalled),
            ("names_dropped", core.names_dropped),
            ("host_restarted_halves", core.host_restarted),
            ("agent_gone_halves", core.agent_gone),
            ("rows_after_agent_gone", core.after_gone),
            (
                "recalls_dropped",
                core.recalls_dropped
                    + mesh.recalls_dropped
                    + self.progress.recalls_dropped.load(Relaxed),
            ),
            ("peer_messages_refused", core.peer_misbehaved),
            ("not_offered_halves", core.not_offered),
            ("journal_full_refusals", sessions.journal_full.load(Relaxed)),
            ("disk_full_refusals", sessions.disk_full.load(Relaxed)),
            ("clock_steps", self.clock_steps.load(Relaxed)),
            ("agents_full_refusals", sessions.agents_full.load(Relaxed)),
            ("times_refused", sessions.times_refused.load(Relaxed)),
            ("times_corrected", sessions.times_corrected.load(Relaxed)),
            ("stitcher_not_remembered_pairs", stitching.not_remembered),
            ("stitcher_not_indexed_halves", stitching.not_indexed),
            ("stitcher_timers_early", stitching.timers_early),
            ("owner_refused_offers", mesh.owner.refused),
            ("mesh_unknown_handles", mesh.home.unknown_handle),
            ("mesh_rejected_cards", mesh.home.rejected),
            ("mesh_conflicting_partners", mesh.home.conflicting),
            ("mesh_silent_partners", mesh.home.silent),
            ("mesh_undone", mesh.home.undone),
            ("mesh_overflowed_sessions", mesh.overflowed),
            ("mesh_doubts_dropped", mesh.doubts_dropped),
            ("member_messages_unsent", member(|members| &members.unsent)),
            (
                "member_messages_limited",
                member(|members| &members.limited),
            ),
            (
                "member_messages_refused",
                member(|members| &members.refused),
            ),
            ("members_gone", member(|members| &members.downs)),
            ("federators_full_refusals", self.peers.refused.load(Relaxed)),
            ("tokens_created", sessions.enrol.tokens.load(Relaxed)),
            ("nodes_joined", sessions.enrol.joined.load(Relaxed)),
            ("join_refusals", sessions.enrol.join_refusals.load(Relaxed)),
            ("certificates_renewed", sessions.enrol.renewed.load(Relaxed)),
            (
                "renewal_refusals",
                sessions.enrol.renewal_refusals.load(Relaxed),
            ),
            (
                "revocations_learned",
                sessions.enrol.revocations.load(Relaxed),
            ),
            (
                "revocations_refused",
                sessions.enrol.revocations_refused.load(Relaxed),
            ),
            ("sessions_idle", transport.idle_timeouts),
            ("sessions_lost", transport.lost),
            ("sessions_full_refusals", transport.refused_full),
            ("handshake_timeouts", transport.handshake_timeouts),
            ("handshakes_retried", transport.retried),
        ]
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count))
        .collect();
        let limited = sessions.limits.read();
        counters.extend(limited.map(|(name, count)| (name.to_owned(), count)));
        counters.insert("share_full_halves".into(), core.share_full);
        if let Some(joining) = sessions.joining.get() {
            let joining = joining.read();
            counters.insert("joins_full_refusals".into(), joining.refused_full);
            counters.insert("join_timeouts".into(), joining.handshake_timeouts);
        }
        let refused: BTreeMap<_, _> = transport.refused.into_iter().collect();
        for reason in Refusal::NAMES {
            counters.insert(
                format!("handshakes_refused_{}", reason.replace('-', "_")),
                refused.get(reason).copied().unwrap_or(0),
            );
        }
        counters
    }
}

fn ago(seconds: u64) -> Timestamp {
    let micros = i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
    Timestamp(clock::now().0.saturating_sub(micros))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn disk_free(path: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(path)
        .map_or(0, |stat| stat.blocks_available() * stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_seen_and_one_that_drifts_is_not() {
        let started = Instant::now();
        let mut clock = Clock {
            looked: started,
            showed: Timestamp(0),
            step: None,
        };
        let at = |seconds| started + Duration::from_secs(seconds);
        assert_eq!(clock.look(at(1), Timestamp(1_900_000), started), None);
        assert_eq!(clock.look(at(2), Timestamp(2_000_000), started), None);
        let back = clock.look(at(3), Timestamp(3_000_000 - 3_600_000_000), started);
        assert_eq!(back, Some(-3_600_000_000));
        assert_eq!(clock.step, Some((3_000_000, -3_600_000_000)));
        let after = clock.look(at(4), Timestamp(4_000_000 - 3_600_000_000), started);
        assert_eq!(after, None);
        assert_eq!(clock.step, Some((3_000_000, -3_600_000_000)), "it is kept");
    }
}
