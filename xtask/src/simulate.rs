//! `cargo xtask simulate`: a federation in one process, from one seed.

use std::ffi::OsString;

use anyhow::{Result, bail};

use crate::layout::Layout;
use crate::sh::run;

/// Builds the simulator in release mode and runs it with the arguments given.
pub fn simulate(layout: &Layout, args: &[OsString]) -> Result<()> {
    run(layout.cargo().args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "weft-simulator",
    ]))?;
    let status = std::process::Command::new(layout.target.join("release/weft-simulate"))
        .args(args)
        .status()?;
    if !status.success() {
        bail!("weft-simulate ended with {status}");
    }
    Ok(())
}
