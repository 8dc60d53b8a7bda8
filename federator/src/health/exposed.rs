//! Everything a federator counts, as Prometheus reads it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use weft_wire::control::CloseCode;
use weft_wire::exposition::{Exposition, Kind};
use weft_wire::query::FederatorHealth;

use super::{TROUBLES, Vitals};
use crate::pipeline::BACKLOG_BYTES;

/// A microsecond in seconds.
const MICRO: f64 = 1e-6;

impl Vitals {
    /// As Prometheus text.
    pub fn metrics(&self) -> String {
        let health = self.health(None);
        let mut text = Exposition::default();
        text.family(
            Kind::Gauge,
            "weft_federator_build_info",
            "Always 1; the labels say which program this is.",
        )
        .put(
            &[
                ("federator", &health.name),
                ("region", &health.region),
                ("version", &health.version),
            ],
            1,
        );
        self.taken(&mut text, &health);
        self.kept(&mut text, &health);
        self.standing(&mut text, &health);
        peers(&mut text, &health);
        agents(&mut text, &health);
        let mut events = text.family(
            Kind::Counter,
            "weft_federator_events_total",
            "What was dropped, refused or went otherwise than it should, by name (docs/operating.md, Federator).",
        );
        for (name, count) in &health.counters {
            events.put(&[("event", name)], count);
        }
        let mut closes = text.family(
            Kind::Counter,
            "weft_federator_sessions_closed_total",
            "Sessions closed with a code, by either end.",
        );
        for code in CloseCode::ALL {
            let closed = health.closes.iter().find(|(known, _)| *known == code);
            closes.put(
                &[("code", code.name())],
                closed.map_or(0, |(_, count)| *count),
            );
        }
        text.finish()
    }

    /// What came in.
    fn taken(&self, text: &mut Exposition, health: &FederatorHealth) {
        let sessions = &self.sessions;
        let core = self.core();
        let load = |value: &AtomicU64| value.load(Relaxed);
        for (name, help, value) in [
            ("halves", "Halves seen for the first time.", health.halves),
            (
                "rows",
                "Rows of batches of halves taken, updates included.",
                load(&sessions.halves),
            ),
            ("lookups", "Lookups taken.", load(&sessions.lookups)),
            ("batches", "Batches taken.", load(&sessions.batches)),
            (
                "batch_bytes",
                "Bytes of batches taken.",
                load(&sessions.batch_bytes),
            ),
            (
                "stitched",
                "Connections of which both ends were joined.",
                health.stitched,
            ),
            (
                "joined",
                "Of those, with the other end at another home.",
                core.joined,
            ),
            (
                "matched_halves",
                "Established halves that got a partner.",
                core.matched_halves,
            ),
            (
                "sessions_established",
                "Sessions established.",
                self.listener.counters().read().established,
            ),
        ] {
            let name = format!("weft_federator_{name}_total");
            text.one(Kind::Counter, &name, help, value);
        }
    }

    /// Journal, store, memory, disk.
    fn kept(&self, text: &mut Exposition, health: &FederatorHealth) {
        let progress = &self.progress;
        let load = |value: &AtomicU64| value.load(Relaxed);
        for (name, help, value) in [
            (
                "journal_syncs",
                "Syncs of the journal.",
                load(&progress.syncs),
            ),
            (
                "store_rows",
                "Rows written to the store.",
                load(&progress.rows_written),
            ),
            (
                "store_transactions",
                "Transactions of the store.",
                load(&progress.transactions),
            ),
        ] {
            let name = format!("weft_federator_{name}_total");
            text.one(Kind::Counter, &name, help, value);
        }
        text.one(
            Kind::Counter,
            "weft_federator_store_seconds_total",
            "Time that writing to the store took.",
            load(&progress.store_us) as f64 * MICRO,
        );
        for (name, help, value) in [
            (
                "journal_bytes",
                "Bytes of the journal.",
                health.journal_bytes,
            ),
            (
                "journal_max_bytes",
                "What the journal may hold; beyond it agents and peers are refused.",
                health.journal_max_bytes,
            ),
            ("store_bytes", "Bytes of the store.", health.store_bytes),
            (
                "store_flushes_waiting",
                "Transactions that the store has not done yet.",
                load(&progress.flushes),
            ),
            (
                "backlog_max_bytes",
                "What may be on its way from the journal to the core; beyond it sessions wait.",
                BACKLOG_BYTES as u64,
            ),
            (
                "disk_free_bytes",
                "Bytes free on the disk of data_dir.",
                health.disk_free_bytes,
            ),
            (
                "disk_min_free_bytes",
                "With less free, agents and peers are refused.",
                self.min_free_bytes,
            ),
            (
                "waiting_halves",
                "Halves that wait for a partner.",
                health.open_halves,
            ),
            (
                "past_hold_halves",
                "Of those, past their hold: the mesh was asked.",
                load(&progress.past_hold),
            ),
            (
                "memory_halves",
                "Halves in memory.",
                load(&progress.in_memory),
            ),
        ] {
            let name = format!("weft_federator_{name}");
            text.one(Kind::Gauge, &name, help, value);
        }
    }

    /// How it is.
    fn standing(&self, text: &mut Exposition, health: &FederatorHealth) {
        text.one(
            Kind::Gauge,
            "weft_federator_uptime_seconds",
            "Time since its start.",
            health.uptime_s,
        );
        text.one(
            Kind::Gauge,
            "weft_federator_certificate_expiry_timestamp_seconds",
            "When its certificate ends, in seconds since 1970.",
            self.identity.not_after().0 as f64 * MICRO,
        );
        text.one(
            Kind::Gauge,
            "weft_federator_ready",
            "1 while /healthz says 200.",
            u8::from(self.failing().is_empty()),
        );
        let mut troubles = text.family(
            Kind::Gauge,
            "weft_federator_trouble",
            "1 while it knows this to be wrong with itself.",
        );
        for (code, _) in TROUBLES {
            let there = health.troubles.iter().any(|trouble| trouble.code == code);
            troubles.put(&[("code", code)], u8::from(there));
        }
        if let Some(ratio) = health.match_ratio {
            text.one(
                Kind::Gauge,
                "weft_federator_match_ratio",
                "Of the halves of the last hour past their hold, the part that is matched; absent without any.",
                ratio,
            );
        }
        if let Some(delay) = health.exchange_delay_us {
            text.one(
                Kind::Gauge,
                "weft_federator_exchange_delay_seconds",
                "From the owner's notice to the stored match, the median of the last 1,024; absent before the first.",
                delay as f64 * MICRO,
            );
        }
    }
}

fn peers(text: &mut Exposition, health: &FederatorHealth) {
    let mut each =
        |name: &str, help: &str, value: &dyn Fn(&weft_wire::query::PeerHealth) -> f64| {
            let mut family = text.family(Kind::Gauge, name, help);
            for peer in &health.peers {
                family.put(&[("peer", &peer.name)], value(peer));
            }
        };
    each(
        "weft_federator_peer_connected",
        "1 while there is a session to this peer.",
        &|peer| f64::from(u8::from(peer.connected)),
    );
    each(
        "weft_federator_peer_queued",
        "Messages that wait for this peer.",
        &|peer| peer.queued as f64,
    );
    each(
        "weft_federator_peer_rtt_seconds",
        "Round-trip time to this peer; 0 without a session.",
        &|peer| peer.rtt_us as f64 * MICRO,
    );
    each(
        "weft_federator_peer_clock_skew_seconds",
        "How far this peer's clock is ahead.",
        &|peer| peer.clock_skew_us as f64 * MICRO,
    );
    each(
        "weft_federator_peer_last_seen_timestamp_seconds",
        "When this peer was last heard of, in seconds since 1970; 0 for never.",
        &|peer| peer.last_seen.map_or(0.0, |at| at.0 as f64 * MICRO),
    );
}

/// Over all agents: a series for each of thousands would cost more than it tells, and each has its own `/metrics`.
fn agents(text: &mut Exposition, health: &FederatorHealth) {
    let connected = || health.agents.iter().filter(|agent| agent.connected);
    let furthest = |values: &mut dyn Iterator<Item = i64>| {
        let furthest = values.max_by_key(|value| value.unsigned_abs());
        furthest.unwrap_or(0) as f64 * MICRO
    };
    let on = connected().count();
    for (name, help, value) in [
        ("agents_connected", "Agents with a session.", on as f64),
        (
            "agents_silent",
            "Agents without a session that were heard of within [agents] silent_days.",
            (health.agents.len() - on) as f64,
        ),
        (
            "agents_degraded",
            "Agents that give up detail to stay within their limits.",
            connected().filter(|a| !a.given_up.is_empty()).count() as f64,
        ),
        (
            "agents_spool_failing",
            "Agents whose spool takes nothing.",
            connected().filter(|a| a.spool_failing).count() as f64,
        ),
        (
            "agents_spool_bytes",
            "Bytes in the spools of all agents.",
            health.agents.iter().map(|a| a.spool_bytes as f64).sum(),
        ),
        (
            "agents_lag_seconds",
            "Age of the newest half when it became durable, of the agent that is latest.",
            furthest(&mut connected().map(|a| a.lag_us)),
        ),
        (
            "agents_clock_skew_seconds",
            "How far ahead the clock is of the agent whose clock is off most.",
            furthest(&mut connected().map(|a| a.clock_skew_us)),
        ),
    ] {
        text.one(Kind::Gauge, &format!("weft_federator_{name}"), help, value);
    }
    let shortest = connected().map(|a| a.certificate_days_left).min();
    if let Some(days) = shortest {
        text.one(
            Kind::Gauge,
            "weft_federator_agents_certificate_left_seconds",
            "Until the first of the agents' certificates ends, in whole days; absent without agents.",
            days * 86_400,
        );
    }
    let lost = |of: fn(&weft_wire::query::AgentHealth) -> u64| -> u64 {
        health.agents.iter().map(of).fold(0, u64::saturating_add)
    };
    // Gauges, for an agent that is forgotten takes its share with it.
    let mut family = text.family(
        Kind::Gauge,
        "weft_federator_agents_lost_halves",
        "What the agents that are known count as lost since their starts, by place.",
    );
    family.put(&[("place", "kernel")], lost(|a| a.kernel_dropped));
    family.put(&[("place", "table")], lost(|a| a.table_dropped));
    family.put(&[("place", "spool")], lost(|a| a.spool_dropped));
}
