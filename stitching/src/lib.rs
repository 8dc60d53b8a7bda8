//! The join of the two ends of a connection. Pure: no clock, no randomness, no IO, no knowledge of the protocol
//! between agents and federators. Time comes in as microseconds since the Unix epoch, facts as [`HalfView`]s,
//! decisions go out as [`Output`]s.
//!
//! Reading order: [`view`] (what is known of one half), [`judge`](mod@judge) (may these two be one connection, and how
//! sure is that), [`mod@nat`] (what was rewritten between them, and what else should agree), [`stitcher`] (finds the pairs
//! among millions), then the parts it is made of:
//! `terms` (what goes in and what comes out), `circumstances` (the rules below the first), `datagrams` (those for UDP), `decide` (one pair, or several), `table` (with `lanes`) and `timers`. [`chains`] stands apart: which two connections of one process are one way. [`testing`] is for benchmarks.
//!
//! What must stay absent: wall clocks, hash maps with random seeds, tokio, and any rule that lets arrival order or
//! chance choose between two possible partners.

#![forbid(unsafe_code)]

pub mod judge;
pub mod nat;
pub mod stitcher;
pub mod chains;
mod circumstances;
mod datagrams;
mod decide;
mod lanes;
mod table;
mod terms;
pub mod testing;
mod timers;
pub mod view;

pub use judge::{Confidence, Fit, Rule, Verdict, fit_in_place, judge};
pub use nat::{Check, Nat, checks, nat};
pub use stitcher::{Candidate, Config, Counters, Handle, Key, Output, Reason, Stitcher};
pub use view::{
    DatagramSort, Datagrams, Fingerprint, HalfView, Halves, Role, scope_key, udp_scope,
};
