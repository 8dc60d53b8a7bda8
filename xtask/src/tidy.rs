//! What a reviewer should not have to look for: format, lints, documentation, who depends on whom, what stands in files.

mod graph;
mod text;

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::layout::Layout;
use crate::sh::{run, step};
use crate::test::{Summary, WORKSPACE};

const DENY_VERSION: &str = "0.20.2";
/// Longest wait for the advisory database; without network it is skipped, and said so.
const ADVISORIES_LIMIT_S: u64 = 60;

/// Every check, whatever the others said.
pub fn tidy(layout: &Layout, summary: &mut Summary) {
    summary.check("tidy: rustfmt", || {
        run(layout.cargo().args(["fmt", "--all", "--", "--check", "-l"]))
    });
    summary.check("tidy: text rules", || text::check(&layout.root));
    summary.check("tidy: dependency graph", || graph::check(layout));
    summary.check("tidy: clippy", || {
        let mut cargo = layout.cargo();
        run(cargo
            .args(["clippy", "--quiet", "--keep-going", "--all-targets"])
            .args(WORKSPACE)
            .args(["--", "-D", "warnings"]))
    });
    summary.check("tidy: rustdoc", || {
        let mut cargo = layout.cargo();
        run(cargo
            .env("RUSTDOCFLAGS", "-D warnings")
            .args(["doc", "--quiet", "--keep-going", "--no-deps"])
            .args(WORKSPACE))
    });
}

/// Licences, banned crates and sources; known holes when the database can be reached.
pub fn deny(layout: &Layout, summary: &mut Summary) {
    summary.check("deny: licences, bans, sources", || {
        install_deny(layout)?;
        run(command(layout).args([
            "--log-level",
            "error",
            "check",
            "licenses",
            "bans",
            "sources",
        ]))
    });
    let mut fetch = Command::new("timeout");
    fetch
        .arg(ADVISORIES_LIMIT_S.to_string())
        .arg(layout.tools().join("bin/cargo-deny"))
        .arg("fetch");
    fetch
        .arg("db")
        .current_dir(&layout.root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if fetch.status().is_ok_and(|status| status.success()) {
        summary.check("deny: advisories", || {
            run(command(layout).args([
                "--log-level",
                "error",
                "check",
                "--disable-fetch",
                "advisories",
            ]))
        });
    } else {
        eprintln!(
            "note: the advisory database cannot be reached from here; advisories NOT checked"
        );
    }
}

fn command(layout: &Layout) -> Command {
    let mut command = Command::new(layout.tools().join("bin/cargo-deny"));
    command.current_dir(&layout.root);
    command
}

fn install_deny(layout: &Layout) -> Result<()> {
    let version = command(layout)
        .arg("--version")
        .stderr(Stdio::null())
        .output();
    if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(DENY_VERSION)) {
        return Ok(());
    }
    step(
        &format!("build cargo-deny {DENY_VERSION} (about three minutes)"),
        || {
            let build = layout.cache.join("deny-target");
            let mut cargo = layout.cargo();
            cargo.args([
                "install",
                "--quiet",
                "--locked",
                "--force",
                &format!("cargo-deny@{DENY_VERSION}"),
                "--root",
            ]);
            run(cargo.arg(layout.tools()).env("CARGO_TARGET_DIR", &build))?;
            std::fs::remove_dir_all(build).context("cannot remove cargo-deny's build directory")
        },
    )
}

/// All findings at once: one at a time is tedious.
fn report(findings: &[String]) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    for finding in findings {
        eprintln!("      {finding}");
    }
    bail!("{} findings", findings.len())
}
