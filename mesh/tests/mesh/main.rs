//! The mesh's state machine as its caller sees it: one federator against a peer's messages, two homes, three federators in a
//! simulated world.

// Everything in this crate is a test.
#![allow(clippy::unwrap_used)]

mod agreement;
mod expiry;
mod federator;
mod limits;
mod simulation;
mod outside;
mod privacy;
mod rotation;
