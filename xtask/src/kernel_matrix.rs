//! `cargo xtask kernel-matrix`: the agent's capture tests on other kernels than this machine's.
//!
//! Reading order: [`debian`] (where kernels come from), [`initramfs`] (what runs in the machine), [`machine`] (QEMU),
//! [`report`] (what it said, and the table).

mod debian;
mod initramfs;
mod machine;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
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
    setup::setup(layout, setup::Purpose::Test)?;
    ebpf::build(layout)?;
    let tests = test::build_capture(layout)?;
    let host = step("test this machine's kernel", || on_host(&tests, cases))?;
    let mut columns = vec![(HOST.to_owned(), host)];
    columns.extend(machines(layout, &tests, choice, cases)?);
    conclude(&columns)
}

/// Cases that run with all tests, chosen by words in their names: each hook, each way to lose something, and what
/// differs between kernels.
const FAST: &[&str] = &[
    "ipv4",
    "ipv6",
    "simultaneous_open",
    "full_ring",
    "killed_agent",
    "calls_workers",
    "calls_nginx",
    "calls_socket_passed_on",
    "calls_first_bytes",
];

/// Machines that run at a time: without acceleration each keeps a core busy.
const MACHINES: usize = 2;

/// Part of all tests: the fast cases on the oldest and the newest, with a test program that was built already. (This
/// machine's own kernel is tested with the lab.)
pub fn ends(layout: &Layout, tests: &Path) -> Result<()> {
    let cases: Vec<String> = FAST.iter().map(|case| (*case).to_owned()).collect();
    conclude(&machines(layout, tests, &Choice::Ends, &cases)?)
}

/// Each chosen kernel in a machine of its own, a few at a time. One that breaks leaves the others alone.
fn machines(
    layout: &Layout,
    tests: &Path,
    choice: &Choice,
    cases: &[String],
) -> Result<Vec<(String, Report)>> {
    let prepared: Vec<Prepared> = choice
        .kernels()
        .into_iter()
        .map(|kernel| prepare(layout, kernel, tests, cases))
        .collect::<Result<_>>()?;
    let mut columns = Vec::new();
    for some in prepared.chunks(MACHINES) {
        let reports = thread::scope(|scope| {
            let started: Vec<_> = some
                .iter()
                .map(|machine| scope.spawn(|| machine.run()))
                .collect();
            started
                .into_iter()
                .map(|machine| machine.join().unwrap_or_default())
                .collect::<Vec<_>>()
        });
        let titles = some.iter().map(|machine| machine.kernel.series.to_owned());
        columns.extend(titles.zip(reports));
    }
    Ok(columns)
}

/// Prints the table; an error that names each kernel's refused programs and failed cases.
fn conclude(columns: &[(String, Report)]) -> Result<()> {
    print!("\n{}", report::table(columns));
    let bad: Vec<String> = columns
        .iter()
        .filter_map(|(title, report)| {
            let complaints = report.complaints();
            (!complaints.is_empty()).then(|| format!("{title}: {}", complaints.join("; ")))
        })
        .collect();
    if bad.is_empty() {
        return Ok(());
    }
    bail!("{}", bad.join("; "))
}

/// A machine that can be started.
struct Prepared {
    kernel: Kernel,
    dir: PathBuf,
    vmlinuz: PathBuf,
    initramfs: Vec<u8>,
}

fn prepare(layout: &Layout, kernel: Kernel, tests: &Path, cases: &[String]) -> Result<Prepared> {
    let image = debian::image(layout, kernel)?;
    let initramfs = initramfs::build(&initramfs::Contents {
        busybox: &debian::busybox(layout)?,
        modules: &image.modules,
        tests,
        arguments: cases,
    })?;
    Ok(Prepared {
        kernel,
        dir: layout.target.join("kernel-matrix").join(kernel.series),
        vmlinuz: image.vmlinuz,
        initramfs,
    })
}

impl Prepared {
    /// Runs it to its end; every line that it says bears its series.
    fn run(&self) -> Report {
        let series = self.kernel.series;
        let start = Instant::now();
        eprintln!("==> test kernel {series}");
        let mut report = Report::default();
        let ended = machine::run(&self.dir, &self.vmlinuz, &self.initramfs, |line| {
            eprintln!("    {series}: {line}");
            report.line(line);
        });
        report.broken = ended.err().map(|error| format!("{error:#}"));
        let (passed, failed) = report.counts();
        let took = seconds(start.elapsed());
        let release = &report.release;
        eprintln!("    {series}: {passed} passed, {failed} failed on {release} in {took}");
        report
    }
}

/// The same program on this machine.
fn on_host(tests: &Path, cases: &[String]) -> Result<Report> {
    let mut report = Report::default();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    report.line(&format!("weft-vm: kernel {}", release.trim()));
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
        let conclude = |report: &Report| conclude(&[("5.10".to_owned(), report.clone())]);
        assert!(conclude(&Report::default()).is_err());
        let mut report = Report::default();
        report.line("test a ... ok");
        assert!(conclude(&report).is_ok());
        report.line("program p refused E");
        let error = conclude(&report).map_err(|error| error.to_string());
        assert_eq!(error, Err("5.10: p refused: E".to_owned()));
    }
}
