//! What goes into the stitcher and what comes out: halves as it keeps them, its settings, its decisions, its totals.

use crate::judge::Rule;
#[cfg(doc)]
use crate::stitcher::Stitcher;
#[cfg(doc)]
use crate::view::HalfView;
use crate::view::Role;

/// The caller's name for a half: an index into its own table. Not used again for another half before the stitcher
/// has let go of it; see [`Stitcher`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u32);

/// What a half is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The initial sequence numbers.
    Isn {
        /// The client's.
        client: u32,
        /// The server's.
        server: u32,
    },
    /// [`HalfView::tuple_key`], where no ISN is known.
    Tuple(u64),
    /// The first datagrams.
    Datagrams {
        /// A hash of the client's first and of [`HalfView::tuple_key`].
        flow: [u32; 2],
        /// A hash of the client's first alone.
        client: u32,
    },
}

/// A half, as far as the stitcher keeps it. [`HalfView::candidate`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The caller's name for it.
    pub handle: Handle,
    /// Which end.
    pub role: Role,
    /// What it is found by.
    pub key: Key,
}

/// How a [`Stitcher`] is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a half waits for a partner at home before it is offered, in microseconds. Longer costs latency across
    /// regions; shorter costs offers. Sensible: 0.5 to 5 s, above the agents' flush interval.
    pub hold_us: i64,
    /// How long a half waits altogether. An agent whose reports come later than this after the other end's loses the
    /// match, unless the connection is still open. Above `hold_us`.
    pub expiry_us: i64,
    /// Halves waiting at one time, at most 2^30. The table takes about 34 bytes for each, once it has been in use.
    /// Beyond it, a half can still meet a partner that waits, but does not wait itself ([`Reason::Full`]).
    pub max_open: usize,
    /// Random, from outside: makes the table's layout unpredictable to peers. No result depends on it.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hold_us: 1_500_000,
            expiry_us: 120_000_000,
            max_open: 4_000_000,
            seed: 0,
        }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// These two are one connection. For a socket connected to itself both handles are the same.
    Stitched {
        /// The client's end.
        client: Handle,
        /// The server's end.
        server: Handle,
        /// By this rule; [`judge`](crate::judge()) on both views says how sure it is.
        rule: Rule,
    },
    /// No partner at home within the hold: ask the mesh. The half goes on waiting here too.
    Offer(Handle),
    /// Several halves would fit this one, or it is one of several that would fit another. Given once for each half
    /// concerned; if it had been offered, the offer should be withdrawn.
    Ambiguous {
        /// The half.
        handle: Handle,
        /// The best rule by which there were several.
        rule: Rule,
    },
    /// A third half with the same claim came after this half had got its partner. Neither the pair nor the third can be
    /// trusted: the caller undoes the match of this half and of its partner, and calls both ambiguous.
    Contested {
        /// One end of the pair.
        handle: Handle,
    },
    /// The half has no partner, for this reason. Unless its connection is still open, it is forgotten now.
    Expired {
        /// The half.
        handle: Handle,
        /// Why.
        reason: Reason,
    },
}

/// Why a half has no partner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// None came in time.
    NoPartner,
    /// As above, and no initial sequence number is known.
    NoFingerprint,
    /// There was no room to let it wait: [`Config::max_open`] (a quarter of it for halves without ISNs), or too many
    /// halves with one client ISN.
    Full,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Halves taken.
    pub inserted: u64,
    /// Pairs made.
    pub stitched: u64,
    /// Halves found ambiguous.
    pub ambiguous: u64,
    /// Pairs contested by a third half.
    pub contested: u64,
    /// Halves given back as offers.
    pub offered: u64,
    /// Halves that expired without partner.
    pub expired: u64,
    /// Halves for which there was no room to wait.
    pub full: u64,
    /// Halves given a second time, and ignored.
    pub repeated: u64,
    /// Pairs not remembered for want of room: a third half would not be noticed.
    pub not_remembered: u64,
    /// Offered halves with ISNs left out of the index by tuple for want of room: `reversed-tuple` cannot find them. And UDP
    /// halves that can be found by their addresses alone: what begins like them is ambiguous for `expiry`.
    pub not_indexed: u64,
    /// Timers that ran early because there were too many.
    pub timers_early: u64,
}
