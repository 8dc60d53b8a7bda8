//! `cargo xtask demo`: builds everything and hands over to `weft-lab demo`, which needs root.

use anyhow::{Result, bail};

use crate::ebpf;
use crate::layout::Layout;
use crate::setup::{self, Purpose};
use crate::sh::{as_root, run, step};

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

/// What takes longest to compile and waits for nothing that setup brings, neither DuckDB nor the kernel programs.
const FIRST: &[&str] = &[
    "weft-cli",
    "weft-lab",
    "weft-kubernetes",
    "weft-dns",
    "weft-mesh",
];

/// Setup and kernel programs. On a new machine that is minutes of downloads and of compilers that use one core, so what
/// can be compiled already is compiled meanwhile.
fn prepare(layout: &Layout) -> Result<()> {
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let packages = FIRST.iter().flat_map(|name| ["--package", name]);
            run(layout.cargo().args(["build", "--quiet"]).args(packages))
        });
        let ready = setup::setup(layout, Purpose::Demo).and_then(|()| ebpf::build(layout));
        let first = first
            .join()
            .unwrap_or_else(|_| bail!("the thread that builds ended in a panic"));
        ready.and(first)
    })
}

/// Setup, build, run.
pub fn demo(layout: &Layout, mode: Mode) -> Result<()> {
    // Refused before the long build.
    as_root("true").map(drop)?;
    let lab = layout.target.join("debug/weft-lab");
    if mode != Mode::Down || !lab.exists() {
        prepare(layout)?;
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
