//! A whole federation in one process: federators, agents, links, clocks and faults, from one seed, in virtual time.
//!
//! What decides is the real thing: each simulated federator runs the federator's own core, with its stitcher and its part of the
//! mesh. What is simulated is everything around it: agents that report connections of which the simulator knows the
//! truth, journals and stores that survive a crash, sessions that break. One number reproduces a run.
//!
//! Reading order: [`scenario`] (what is asked), [`truth`] (what really happens, and what must come of it), [`queue`] (time),
//! [`links`] (delay, loss, partitions), [`clock`], `agents` and `homes` (what runs on top), `store` (what survives, with
//! the invariants that are checked whenever it changes), `sessions`, `members`, `faults`, [`world`] (which holds all of it),
//! [`outcome`] (what is measured) and [`breakage`] (what must be caught).
//!
//! What must stay absent: real time, real randomness, IO; and any decision of Weft's own.

#![forbid(unsafe_code)]

/// The federator's core as it is, from its own sources: its crate brings a database and a runtime along, and this one
/// is to stay pure.
#[path = "../../federator/src/core/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod core;
/// The rows that the core writes.
#[path = "../../federator/src/record.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod record;

pub mod scenario;
pub mod truth;
pub mod queue;
pub mod links;
pub mod clock;
mod agents;
mod homes;
mod store;
mod sessions;
mod members;
mod faults;
pub mod world;
pub mod outcome;
pub mod breakage;

pub use breakage::Breakage;
pub use outcome::{Outcome, Violation};
pub use scenario::{Rotation, Scenario};
pub use world::run;
