//! What a finished TCP half costs on the way from agent to federator.
use crate::figure::Figure;
use anyhow::{Result, bail};
/// What this bench measures.
pub const FIGURES: &[&str] = &["wire.bytes_per_half", "wire.decode_ns_per_half"];
/// Not yet.
pub fn run(_: &[&'static str]) -> Result<Vec<Figure>> {
    bail!("not yet")
}
