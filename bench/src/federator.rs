//! The federator, from QUIC to durable.
use crate::figure::Figure;
use anyhow::{Result, bail};
/// What this bench measures.
pub const FIGURES: &[&str] = &[
    "federator.halves_per_second",
    "federator.stored_halves_per_second",
];
/// Not yet.
pub fn run(_: &[&'static str]) -> Result<Vec<Figure>> {
    bail!("not yet")
}
