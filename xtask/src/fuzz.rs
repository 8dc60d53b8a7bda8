//! Fuzz targets: each replays its committed corpus, then searches for its share of the time.
//!
//! libFuzzer, built by plain cargo: `fuzz/.cargo/config.toml` has the flags, and no other toolchain is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::layout::Layout;
use crate::sh::{capture, run, step};
use crate::test::Summary;

/// Time for all targets together.
pub const TOTAL_SECONDS: u64 = 60;
/// A target that needs more than this for one input has found something.
const INPUT_LIMIT_S: u64 = 10;
const MEMORY_LIMIT_MB: u64 = 2048;
#[cfg(target_arch = "x86_64")]
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
#[cfg(target_arch = "aarch64")]
const TRIPLE: &str = "aarch64-unknown-linux-gnu";

/// The fuzz step of `cargo xtask test`.
pub fn check(layout: &Layout, summary: &mut Summary) {
    let mut targets = Vec::new();
    summary.check("fuzz: build", || {
        targets = build(layout)?;
        Ok(())
    });
    let share = share(TOTAL_SECONDS, targets.len());
    for target in &targets {
        summary.check(&format!("fuzz: {}", name(target)), || {
            fuzz(layout, target, share)
        });
    }
}

/// `cargo xtask fuzz`.
pub fn run_all(layout: &Layout, seconds: u64, only: Option<&str>) -> Result<()> {
    let mut targets = step("build the fuzz targets", || build(layout))?;
    if let Some(only) = only {
        targets.retain(|target| name(target) == only);
    }
    if targets.is_empty() {
        bail!("no such target");
    }
    let share = share(seconds, targets.len());
    for target in &targets {
        step(&format!("fuzz {} for {share} s", name(target)), || {
            fuzz(layout, target, share)
        })?;
    }
    Ok(())
}

fn share(seconds: u64, targets: usize) -> u64 {
    (seconds / targets.max(1) as u64).max(1)
}

/// Builds all targets and returns their executables.
fn build(layout: &Layout) -> Result<Vec<PathBuf>> {
    let fuzz = layout.root.join("fuzz");
    let manifest = fuzz.join("Cargo.toml");
    let metadata = capture(
        layout
            .cargo()
            .args([
                "metadata",
                "--format-version",
                "1",
                "--no-deps",
                "--quiet",
                "--manifest-path",
            ])
            .arg(&manifest),
    )?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata is not JSON")?;
    let names: Vec<&str> = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"][0] == "bin")
        .filter_map(|target| target["name"].as_str())
        .collect();
    if names.is_empty() {
        bail!("fuzz/ has no targets");
    }
    // Apart from the workspace's, whose compiler flags are others.
    let target_dir = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(_) => layout.target.join("fuzz"),
        None => fuzz.join("target"),
    };
    run(layout
        .cargo()
        .current_dir(&fuzz)
        .args([
            "build",
            "--quiet",
            "--release",
            "--bins",
            "--target",
            TRIPLE,
            "--target-dir",
        ])
        .arg(&target_dir)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
    Ok(names
        .iter()
        .map(|name| target_dir.join(TRIPLE).join("release").join(name))
        .collect())
}

/// One target: its corpus first, every input of it, then new ones.
fn fuzz(layout: &Layout, target: &Path, seconds: u64) -> Result<()> {
    let name = name(target);
    let corpus = layout.root.join("fuzz/corpus").join(&name);
    let count = fs::read_dir(&corpus)
        .with_context(|| format!("{name} has no corpus in fuzz/corpus"))?
        .count();
    if count == 0 {
        bail!("the corpus of {name} is empty");
    }
    let artifacts = layout.root.join("fuzz/artifacts").join(&name);
    fs::create_dir_all(&artifacts).context("cannot make the directory for findings")?;
    // What the search finds stays in the cache: growing the corpus is a decision.
    let found = layout.cache.join("fuzz").join(&name);
    fs::create_dir_all(&found).context("cannot make the directory for new inputs")?;
    search(libfuzzer(target, &artifacts).arg("-runs=0").arg(&corpus))?;
    let mut command = libfuzzer(target, &artifacts);
    command
        .arg(format!("-max_total_time={seconds}"))
        .args([&found, &corpus]);
    let executions = search(&mut command)?;
    eprintln!("      {count} inputs of the corpus pass, and {executions} new ones");
    Ok(())
}

/// Runs libFuzzer, whose words are of interest only when it found something; gives the number of inputs tried.
fn search(command: &mut Command) -> Result<u64> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("cannot run the target")?;
    let words = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{words}");
        bail!("a failing input was found ({})", output.status);
    }
    let executions = words
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    executions
        .and_then(|number| number.trim().parse().ok())
        .context("libFuzzer gave no statistics")
}

fn libfuzzer(target: &Path, artifacts: &Path) -> Command {
    let mut command = Command::new(target);
    let mut prefix = std::ffi::OsString::from("-artifact_prefix=");
    prefix.push(artifacts);
    prefix.push("/");
    command
        .arg(prefix)
        .args(["-verbosity=0", "-print_final_stats=1"]);
    command
        .arg(format!("-timeout={INPUT_LIMIT_S}"))
        .arg(format!("-rss_limit_mb={MEMORY_LIMIT_MB}"));
    command
}

fn name(target: &Path) -> String {
    target
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
