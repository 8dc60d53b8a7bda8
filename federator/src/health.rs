//! How this federator is: for `weft health` and for metrics.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use weft_transport::{Identity, Listener};
use weft_wire::Timestamp;
use weft_wire::control::CloseCode;
use weft_wire::query::FederatorHealth;

use crate::agents::AgentStates;
use crate::clock;
use crate::config::Config;
use crate::core::CoreCounters;
use crate::peers::Peers;
use crate::pipeline::Progress;
use crate::server::ServerCounters;

/// Seconds over which the rate of halves is taken.
const RATE_WINDOW: usize = 60;

/// How often the totals are taken from which the match ratio of the last hour is.
const RATIO_EVERY: Duration = Duration::from_secs(60);
/// So many of them: an hour.
const RATIO_SAMPLES: usize = 60;

/// Halves that got a partner, and that did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcomes {
    matched: u64,
    unmatched: u64,
}

impl Outcomes {
    fn of(core: &CoreCounters) -> Self {
        Self {
            matched: core.matched_halves,
            unmatched: core.expired + core.ambiguous,
        }
    }

    /// Part that was matched since `before`; those past their hold count as unmatched.
    fn ratio_since(self, before: Self, past_hold: u64) -> Option<f64> {
        let matched = self.matched.saturating_sub(before.matched);
        let unmatched = self.unmatched.saturating_sub(before.unmatched) + past_hold;
        let all = matched + unmatched;
        (all > 0).then(|| matched as f64 / all as f64)
    }
}

/// Where everything about this federator can be read.
pub struct Vitals {
    name: String,
    region: String,
    data: PathBuf,
    store: PathBuf,
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
    /// Once a minute, for an hour.
    outcomes: Mutex<VecDeque<(Instant, Outcomes)>>,
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
        Self {
            name: config.name.clone(),
            region: config.region.clone(),
            data: config.data_dir.clone(),
            store: config.store_file(),
            started: Instant::now(),
            silent_us: i64::from(config.agents.silent_days) * 86_400_000_000,
            identity,
            listener,
            agents,
            peers,
            progress,
            sessions,
            samples: Mutex::new(VecDeque::from([(Instant::now(), 0)])),
            outcomes: Mutex::new(VecDeque::from([(Instant::now(), Outcomes::default())])),
        }
    }

    /// Takes a sample every second, until the task is aborted.
    pub async fn sample(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
            samples.push_back((Instant::now(), self.sessions.halves.load(Relaxed)));
            if samples.len() > RATE_WINDOW {
                samples.pop_front();
            }
            drop(samples);
            self.sample_outcomes();
        }
    }

    fn sample_outcomes(&self) {
        let now = Outcomes::of(&self.core());
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        if outcomes
            .back()
            .is_none_or(|(at, _)| at.elapsed() >= RATIO_EVERY)
        {
            outcomes.push_back((Instant::now(), now));
            if outcomes.len() > RATIO_SAMPLES {
                outcomes.pop_front();
            }
        }
    }

    fn core(&self) -> CoreCounters {
        *self
            .progress
            .core
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the last hour, or of the time since the start if that is shorter.
    fn match_ratio(&self) -> Option<f64> {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = outcomes.front().map(|(_, before)| *before);
        let past_hold = self.progress.past_hold.load(Relaxed);
        Outcomes::of(&self.core()).ratio_since(before.unwrap_or_default(), past_hold)
    }

    fn halves_per_second(&self) -> f64 {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Everything.
    pub fn health(&self) -> FederatorHealth {
        let now = clock::now();
        let progress = &self.progress;
        let core = self.core();
        FederatorHealth {
            name: self.name.clone(),
            region: self.region.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            reached: true,
            error: None,
            uptime_s: self.started.elapsed().as_secs(),
            agents: self.agents.health(now, self.silent_us),
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
        let stitching = *self
            .progress
            .stitching
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mesh = (*self
            .progress
            .mesh
            .lock()
            .unwrap_or_else(PoisonError::into_inner))
        .unwrap_or_default();
        let sessions = &self.sessions;
        let transport = self.listener.counters().read();
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
        for (reason, count) in transport.refused {
            counters.insert(
                format!("handshakes_refused_{}", reason.replace('-', "_")),
                count,
            );
        }
        counters
    }

    /// As Prometheus text.
    pub fn metrics(&self) -> String {
        let health = self.health();
        let progress = &self.progress;
        let mut text = String::new();
        let mut one = |kind: &str, name: &str, help: &str, value: f64| {
            text.push_str(&format!("# HELP weft_federator_{name} {help}\n# TYPE weft_federator_{name} {kind}\nweft_federator_{name} {value}\n"));
        };
        let load = |value: &std::sync::atomic::AtomicU64| value.load(Relaxed) as f64;
        one(
            "counter",
            "halves_total",
            "Halves taken.",
            health.halves as f64,
        );
        one(
            "counter",
            "rows_total",
            "Rows of batches taken.",
            load(&self.sessions.halves),
        );
        one(
            "counter",
            "lookups_total",
            "Lookups taken.",
            load(&self.sessions.lookups),
        );
        one(
            "counter",
            "batches_total",
            "Batches taken.",
            load(&self.sessions.batches),
        );
        one(
            "counter",
            "batch_bytes_total",
            "Bytes of batches taken.",
            load(&self.sessions.batch_bytes),
        );
        one(
            "counter",
            "stitched_total",
            "Connections stitched.",
            health.stitched as f64,
        );
        one(
            "gauge",
            "waiting_halves",
            "Halves that wait for a partner.",
            health.open_halves as f64,
        );
        one(
            "gauge",
            "memory_halves",
            "Halves in memory.",
            load(&progress.in_memory),
        );
        one(
            "gauge",
            "journal_bytes",
            "Bytes of the journal.",
            health.journal_bytes as f64,
        );
        one(
            "counter",
            "journal_syncs_total",
            "Syncs of the journal.",
            load(&progress.syncs),
        );
        one(
            "counter",
            "store_rows_total",
            "Rows written to the store.",
            load(&progress.rows_written),
        );
        one(
            "counter",
            "store_seconds_total",
            "Time that took.",
            load(&progress.store_us) / 1e6,
        );
        one(
            "gauge",
            "store_bytes",
            "Bytes of the store.",
            health.store_bytes as f64,
        );
        one(
            "gauge",
            "disk_free_bytes",
            "Bytes free on its disk.",
            health.disk_free_bytes as f64,
        );
        one(
            "gauge",
            "certificate_days_left",
            "Days until the certificate ends.",
            health.certificate_days_left as f64,
        );
        let connected = health.agents.iter().filter(|agent| agent.connected).count();
        one(
            "gauge",
            "agents_connected",
            "Agents connected.",
            connected as f64,
        );
        let connected = health.peers.iter().filter(|peer| peer.connected).count();
        one(
            "gauge",
            "peers_connected",
            "Peers connected.",
            connected as f64,
        );
        text.push_str("# HELP weft_federator_events_total What was dropped, refused or went otherwise than it should.\n# TYPE weft_federator_events_total counter\n");
        for (name, count) in &health.counters {
            text.push_str(&format!(
                "weft_federator_events_total{{event=\"{name}\"}} {count}\n"
            ));
        }
        text.push_str("# HELP weft_federator_sessions_closed_total Sessions closed, by code.\n# TYPE weft_federator_sessions_closed_total counter\n");
        for (code, count) in &health.closes {
            text.push_str(&format!(
                "weft_federator_sessions_closed_total{{code=\"{}\"}} {count}\n",
                code.name()
            ));
        }
        text
    }
}

fn disk_free(path: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(path)
        .map_or(0, |stat| stat.blocks_available() * stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_match_ratio_forgets_what_was_before_its_window() {
        let (before, now) = (
            Outcomes {
                matched: 1000,
                unmatched: 0,
            },
            Outcomes {
                matched: 1010,
                unmatched: 20,
            },
        );
        assert_eq!(now.ratio_since(before, 10), Some(0.25));
        assert_eq!(before.ratio_since(before, 0), None);
    }
}
