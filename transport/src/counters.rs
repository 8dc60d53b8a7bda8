//! What happened to sessions, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use weft_wire::control::CloseCode;

use crate::error::{CloseReason, Refusal};

const CODES: usize = CloseCode::ALL.len();

/// Totals since the start, shared by an endpoint's sessions.
#[derive(Debug, Default)]
pub struct Counters {
    established: AtomicU64,
    closed_here: [AtomicU64; CODES],
    closed_by_peer: [AtomicU64; CODES],
    closed_by_peer_unknown_code: AtomicU64,
    idle_timeouts: AtomicU64,
    lost: AtomicU64,
    refused: [AtomicU64; Refusal::NAMES.len()],
    handshake_timeouts: AtomicU64,
    refused_full: AtomicU64,
    retried: AtomicU64,
}

/// A reading of [`Counters`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sessions established.
    pub established: u64,
    /// Sessions that this end closed, by code; only codes that occurred.
    pub closed_here: Vec<(CloseCode, u64)>,
    /// Sessions that the peer closed, by code; only codes that occurred.
    pub closed_by_peer: Vec<(CloseCode, u64)>,
    /// Sessions that the peer closed with a code of a later version.
    pub closed_by_peer_unknown_code: u64,
    /// Sessions on which nothing was heard for too long.
    pub idle_timeouts: u64,
    /// Sessions lost otherwise (peer reset, QUIC violated).
    pub lost: u64,
    /// Handshakes that failed, by reason; only reasons that occurred.
    pub refused: Vec<(&'static str, u64)>,
    /// Handshakes not finished in time.
    pub handshake_timeouts: u64,
    /// Handshakes turned away because a limit was reached.
    pub refused_full: u64,
    /// Handshakes that were asked to prove their address first.
    pub retried: u64,
}

impl Counters {
    /// Reads all.
    pub fn read(&self) -> Counts {
        let by_code = |counters: &[AtomicU64; CODES]| {
            let read = CloseCode::ALL
                .into_iter()
                .zip(counters)
                .map(|(code, count)| (code, count.load(Relaxed)));
            read.filter(|(_, count)| *count > 0).collect()
        };
        let refused = Refusal::NAMES
            .into_iter()
            .zip(&self.refused)
            .map(|(name, count)| (name, count.load(Relaxed)));
        Counts {
            established: self.established.load(Relaxed),
            closed_here: by_code(&self.closed_here),
            closed_by_peer: by_code(&self.closed_by_peer),
            closed_by_peer_unknown_code: self.closed_by_peer_unknown_code.load(Relaxed),
            idle_timeouts: self.idle_timeouts.load(Relaxed),
            lost: self.lost.load(Relaxed),
            refused: refused.filter(|(_, count)| *count > 0).collect(),
            handshake_timeouts: self.handshake_timeouts.load(Relaxed),
            refused_full: self.refused_full.load(Relaxed),
            retried: self.retried.load(Relaxed),
        }
    }

    pub(crate) fn established(&self) {
        self.established.fetch_add(1, Relaxed);
    }

    pub(crate) fn closed_here(&self, code: CloseCode) {
        self.closed_here[code as usize].fetch_add(1, Relaxed);
    }

    /// Counts an end that this end did not choose.
    pub(crate) fn ended(&self, reason: &CloseReason) {
        let counter = match reason {
            CloseReason::Here => return,
            CloseReason::Peer {
                code: Some(code), ..
            } => &self.closed_by_peer[*code as usize],
            CloseReason::Peer { code: None, .. } => &self.closed_by_peer_unknown_code,
            CloseReason::Refused(refusal) => &self.refused[refusal.index()],
            CloseReason::IdleTimeout => &self.idle_timeouts,
            CloseReason::Lost(_) => &self.lost,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn handshake_timed_out(&self) {
        self.handshake_timeouts.fetch_add(1, Relaxed);
    }

    pub(crate) fn full(&self) {
        self.refused_full.fetch_add(1, Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.retried.fetch_add(1, Relaxed);
    }
}
