//! `cargo xtask kernel-matrix`: the agent's capture tests on other kernels than this machine's.
//!
//! Reading order: [`debian`] (where kernels come from), [`initramfs`] (what runs in the machine), [`machine`] (QEMU),
//! [`report`] (what it said, and the table).

mod debian;
mod initramfs;
mod machine;
mod report;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::layout::Layout;
use crate::sh::{as_root, seconds, step};
use crate::{ebpf, setup, test};

use debian::{KERNELS, Kernel};
use report::Report;

/// The column of this machine's own kernel.
const HOST: &str = "host";

/// Which kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The oldest and the newest: what a build machine has time for.
    Ends,
    /// All of them.
    All,
    /// One series.
    One(String),
}

impl Choice {
    /// From `--kernel`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "ends" => Ok(Self::Ends),
            series if KERNELS.iter().any(|kernel| kernel.series == series) => {
                Ok(Self::One(series.to_owned()))
            }
            other => Err(format!(
                "no kernel '{other}'; there are {}, ends, all",
                KERNELS.map(|kernel| kernel.series).join(", ")
            )),
        }
    }

    fn kernels(&self) -> Vec<Kernel> {
        match self {
            Self::All => KERNELS.to_vec(),
            Self::Ends => vec![KERNELS[0], KERNELS[KERNELS.len() - 1]],
            Self::One(series) => KERNELS
                .into_iter()
                .filter(|kernel| kernel.series == series)
                .collect(),
        }
    }
}

/// The command: builds, runs this machine's kernel and the chosen ones, prints the table.
pub fn kernel_matrix(layout: &Layout, choice: &Choice, cases: &[String]) -> Result<()> {
    setup::setup(layout)?;
    ebpf::build(layout)?;
    let tests = test::build_capture(layout)?;
    let host = step("test this machine's kernel", || on_host(&tests, cases))?;
    let mut columns = vec![(HOST.to_owned(), host)];
    columns.extend(machines(layout, &tests, choice, cases)?);
    conclude(&columns)
}

/// Cases that run with all tests, chosen by words in their names: each hook, each way to lose something, and what
/// differs between kernels. Attaching takes seconds without acceleration; all of them take a kernel some minutes.
const FAST: &[&str] = &[
    "ipv4",
    "ipv6",
    "simultaneous_open",
    "full_ring",
    "killed_agent",
    "calls_workers",
    "calls_pipeline",
    "calls_socket_passed_on",
    "calls_first_bytes",
];

/// Part of all tests: the fast cases on the oldest and the newest, with a test program that was built already. (This
/// machine's own kernel is tested with the lab.)
pub fn ends(layout: &Layout, tests: &Path) -> Result<()> {
    let cases: Vec<String> = FAST.iter().map(|case| (*case).to_owned()).collect();
    conclude(&machines(layout, tests, &Choice::Ends, &cases)?)
}

/// Each chosen kernel in a machine of its own.
fn machines(
    layout: &Layout,
    tests: &Path,
    choice: &Choice,
    cases: &[String],
) -> Result<Vec<(String, Report)>> {
    let mut columns = Vec::new();
    for kernel in choice.kernels() {
        let start = Instant::now();
        let report = step(&format!("test kernel {}", kernel.series), || {
            on_machine(layout, kernel, tests, cases)
        })?;
        let (passed, failed) = report.counts();
        eprintln!(
            "    {passed} passed, {failed} failed on {} in {}",
            report.release,
            seconds(start.elapsed())
        );
        columns.push((kernel.series.to_owned(), report));
    }
    Ok(columns)
}

/// Prints the table; an error when a kernel refuses a program or fails a test.
fn conclude(columns: &[(String, Report)]) -> Result<()> {
    print!("\n{}", report::table(columns));
    let bad: Vec<&str> = columns
        .iter()
        .filter(|(_, report)| !good(report))
        .map(|(title, _)| title.as_str())
        .collect();
    if bad.is_empty() {
        return Ok(());
    }
    bail!("not all is well on {}", bad.join(", "))
}

/// Everything that ran passed, nothing was refused, and something was asked for.
fn good(report: &Report) -> bool {
    report.counts().0 + report.skipped > 0
        && report.counts().1 == 0
        && report.refused().next().is_none()
}

fn on_machine(layout: &Layout, kernel: Kernel, tests: &Path, cases: &[String]) -> Result<Report> {
    let image = debian::image(layout, kernel)?;
    let initramfs = initramfs::build(&initramfs::Contents {
        busybox: &debian::busybox(layout)?,
        modules: &image.modules,
        tests,
        arguments: cases,
    })?;
    let dir = layout.target.join("kernel-matrix").join(kernel.series);
    let mut report = Report::default();
    machine::run(&dir, &image.vmlinuz, &initramfs, |line| {
        eprintln!("    {line}");
        report.line(line);
    })
    .with_context(|| format!("kernel {}", kernel.series))?;
    Ok(report)
}

/// The same program on this machine.
fn on_host(tests: &Path, cases: &[String]) -> Result<Report> {
    let mut report = Report {
        release: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        ..Report::default()
    };
    let programs = ["programs".to_owned()];
    for arguments in [&programs[..], cases] {
        let mut command: Command = as_root(tests)?;
        let output = command
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {}", tests.display()))?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            eprintln!("    {line}");
            report.line(line);
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_chosen_by_series() {
        assert_eq!(Choice::parse("6.1"), Ok(Choice::One("6.1".into())));
        assert!(Choice::parse("4.19").is_err_and(|error| error.contains("5.10, 6.1, 6.12")));
        let series = |choice: Choice| -> Vec<&str> {
            choice
                .kernels()
                .iter()
                .map(|kernel| kernel.series)
                .collect()
        };
        assert_eq!(series(Choice::Ends), ["5.10", "6.12"]);
        assert_eq!(series(Choice::All).len(), 3);
        assert_eq!(series(Choice::One("6.1".into())), ["6.1"]);
    }

    #[test]
    fn a_column_without_tests_is_no_success() {
        assert!(!good(&Report::default()));
        let mut report = Report::default();
        report.line("test a ... ok");
        assert!(good(&report));
        report.line("program p refused E");
        assert!(!good(&report));
    }
}
