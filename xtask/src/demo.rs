//! `cargo xtask demo`: builds everything and hands over to `weft-lab demo`, which needs root.

use anyhow::{Result, bail};

use crate::layout::Layout;
use crate::sh::{as_root, run, step};
use crate::{ebpf, setup};

/// What becomes of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Up, shown, and down again.
    Once,
    /// Left running.
    Keep,
    /// Removed.
    Down,
}

/// Programs of the lab: it finds the others beside its own executable.
pub const PROGRAMS: &[&str] = &["weft-agent", "weft-federator", "weft-cli", "weft-lab"];

/// Setup, build, run.
pub fn demo(layout: &Layout, mode: Mode) -> Result<()> {
    // Refused before the long build.
    as_root("true").map(drop)?;
    let lab = layout.target.join("debug/weft-lab");
    if mode != Mode::Down || !lab.exists() {
        setup::setup(layout)?;
        ebpf::build(layout)?;
        step(
            "build agent, federator, command line and lab (minutes when the cache is empty)",
            || {
                let packages = PROGRAMS.iter().flat_map(|name| ["--package", name]);
                run(layout.cargo().arg("build").args(packages).arg("--bins"))
            },
        )?;
    }
    let mut command = as_root(&lab)?;
    command.arg("demo").current_dir(&layout.root);
    match mode {
        Mode::Once => {}
        Mode::Keep => drop(command.arg("--keep")),
        Mode::Down => drop(command.arg("--down")),
    }
    // Ctrl-C reaches the lab as well, which then cleans up; wait for it whatever it says.
    let status = command.status()?;
    if !status.success() {
        bail!(
            "the demo ended with {status}; `cargo xtask demo --down` removes what it may have left"
        );
    }
    Ok(())
}
