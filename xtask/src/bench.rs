//! `cargo xtask bench`: builds in release mode and runs weft-bench, which does the measuring.

use anyhow::{Result, bail};

use crate::layout::Layout;
use crate::sh::{as_root, run, step};
use crate::{ebpf, setup};

/// Setup, build, measure.
pub fn bench(layout: &Layout, only: Option<&str>, json: Option<&str>) -> Result<()> {
    setup::setup(layout, setup::Purpose::Bench)?;
    ebpf::build(layout)?;
    step(
        "build agent, federator and benches in release mode (minutes when the cache is empty)",
        || {
            let packages = ["weft-bench", "weft-agent", "weft-federator"]
                .iter()
                .flat_map(|name| ["--package", name]);
            run(layout
                .cargo()
                .args(["build", "--release", "--bins"])
                .args(packages))
        },
    )?;
    // The agent's benches make network namespaces and load kernel programs.
    // When this program is killed they end too, and clear up.
    let mut command = as_root("setpriv")?;
    command
        .args(["--pdeathsig", "TERM", "--"])
        .arg(layout.target.join("release/weft-bench"));
    command.current_dir(&layout.root);
    command.args(only.iter().flat_map(|prefix| ["--only", prefix]));
    command.args(json.iter().flat_map(|file| ["--json", file]));
    let status = command.status()?;
    if !status.success() {
        bail!("weft-bench ended with {status}: not every figure could be measured");
    }
    Ok(())
}
