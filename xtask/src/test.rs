//! `cargo xtask test`: all that can fail, each step timed, none skipped because an earlier one failed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::layout::{Layout, is_root};
use crate::sh::{as_root, run, seconds, step};
use crate::{ebpf, fuzz, kernel_matrix, setup, tidy};

/// Names that `--only` takes, in the order in which they run.
pub const STEPS: &[&str] = &["tidy", "deny", "unit", "doc", "fuzz", "kernels", "lab"];

/// The package whose tests need root, real time and the machine to themselves.
const LAB: &str = "weft-lab";
/// The agent's tests of the running kernel: they need root as well, and bring their own order.
const CAPTURE: (&str, &str) = ("weft-agent", "test capture");
/// A test executable that runs longer than this hangs.
const UNIT_LIMIT_S: u64 = 15 * 60;
const LAB_LIMIT_S: u64 = 40 * 60;
/// Everything but the kernel programs, which no host can link.
pub const WORKSPACE: &[&str] = &["--workspace", "--exclude", "weft-agent-ebpf"];

/// What came of a part of a step.
pub struct Outcome {
    name: String,
    passed: u64,
    failed: u64,
    took: Duration,
    /// What failed in it, in a few words.
    why: Option<String>,
}

/// Characters of one outcome's reason in the closing line.
const WHY_CHARS: usize = 600;

/// All outcomes so far.
#[derive(Default)]
pub struct Summary {
    outcomes: Vec<Outcome>,
}

impl Summary {
    /// Does `work` and counts it as one check.
    pub fn check(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        let start = Instant::now();
        let result = step(name, work);
        if let Err(error) = &result {
            eprintln!("    error: {error:#}");
        }
        let failed = u64::from(result.is_err());
        let why = result.err().map(|error| format!("{error:#}"));
        self.add(name, (1 - failed, failed), why, start.elapsed());
    }

    fn add(
        &mut self,
        name: &str,
        (passed, failed): (u64, u64),
        why: Option<String>,
        took: Duration,
    ) {
        self.outcomes.push(Outcome {
            name: name.to_owned(),
            passed,
            failed,
            took,
            why,
        });
    }

    /// Prints the table and the closing line; an error when anything failed.
    fn close(&self, took: Duration) -> Result<()> {
        println!(
            "\n{:<58} {:>7} {:>7} {:>12}",
            "", "PASSED", "FAILED", "TOOK"
        );
        for outcome in &self.outcomes {
            let Outcome {
                name,
                passed,
                failed,
                took,
                ..
            } = outcome;
            println!("{name:<58} {passed:>7} {failed:>7} {:>12}", seconds(*took));
        }
        let (passed, failed) = self.totals();
        println!("{:<58} {:>7} {:>7} {:>12}\n", "all", "", "", seconds(took));
        println!("{passed} passed, {failed} failed");
        if failed > 0 {
            // A build machine's log may be cut anywhere but at its end: the last line says what failed.
            let names = self.outcomes.iter().filter(|o| o.failed > 0).map(|o| {
                let why = o.why.as_deref().unwrap_or_default().replace('\n', " | ");
                let why: String = why.chars().take(WHY_CHARS).collect();
                let name = &o.name;
                if why.is_empty() {
                    name.clone()
                } else {
                    format!("{name} ({why})")
                }
            });
            bail!("failed: {}", names.collect::<Vec<_>>().join(", "));
        }
        if passed == 0 {
            bail!("nothing ran");
        }
        Ok(())
    }

    fn totals(&self) -> (u64, u64) {
        self.outcomes.iter().fold((0, 0), |(passed, failed), o| {
            (passed + o.passed, failed + o.failed)
        })
    }
}

/// The steps named, or all.
pub fn test(layout: &Layout, only: &[String]) -> Result<()> {
    let start = Instant::now();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|step| step == name);
    let mut summary = Summary::default();
    summary.check("setup", || setup::setup(layout, setup::Purpose::Test));
    summary.check("kernel programs", || ebpf::build(layout));
    if wanted("tidy") {
        tidy::tidy(layout, &mut summary);
    }
    if wanted("deny") {
        tidy::deny(layout, &mut summary);
    }
    if ["unit", "lab", "kernels"].into_iter().any(wanted) {
        executables(layout, &mut summary, wanted);
    }
    if wanted("doc") {
        summary.check("documentation tests", || {
            run(layout
                .cargo()
                .args(["test", "--quiet", "--doc"])
                .args(WORKSPACE))
        });
    }
    if wanted("fuzz") {
        fuzz::check(layout, &mut summary);
    }
    summary.close(start.elapsed())
}

/// `cargo xtask tidy`.
pub fn tidy_only(layout: &Layout) -> Result<()> {
    let start = Instant::now();
    let mut summary = Summary::default();
    tidy::tidy(layout, &mut summary);
    summary.close(start.elapsed())
}

/// Builds every test once, with one set of features, and runs unit tests, the lab's, and the agent's on other kernels.
fn executables(layout: &Layout, summary: &mut Summary, wanted: impl Fn(&str) -> bool) {
    let mut built = Vec::new();
    summary.check("build programs and tests", || {
        run(layout.cargo().arg("build").args(WORKSPACE).arg("--bins"))?;
        built = build_tests(layout, WORKSPACE)?;
        Ok(())
    });
    let step = |test: &TestProgram| if test.needs_root() { "lab" } else { "unit" };
    for test in built.iter().filter(|test| wanted(step(test))) {
        run_tests(layout, test, summary);
    }
    if wanted("kernels") {
        summary.check("capture on the oldest and the newest kernel", || {
            let tests = built.iter().find(|test| test.is_capture());
            kernel_matrix::ends(
                layout,
                &tests.context("the capture tests were not built")?.file,
            )
        });
    }
}

/// Builds the agent's capture tests alone.
pub fn build_capture(layout: &Layout) -> Result<PathBuf> {
    let built = build_tests(layout, &["--package", CAPTURE.0, "--test", "capture"])?;
    let tests = built.into_iter().find(TestProgram::is_capture);
    Ok(tests.context("cargo built no capture tests")?.file)
}

/// A test executable.
struct TestProgram {
    package: String,
    target: String,
    file: PathBuf,
    /// Tests run in their package's directory.
    dir: PathBuf,
}

impl TestProgram {
    fn needs_root(&self) -> bool {
        self.package == LAB || self.is_capture()
    }

    fn is_capture(&self) -> bool {
        (self.package.as_str(), self.target.as_str()) == CAPTURE
    }
}

fn build_tests(layout: &Layout, what: &[&str]) -> Result<Vec<TestProgram>> {
    let mut cargo = layout.cargo();
    cargo
        .args([
            "test",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ])
        .args(what);
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo test")?;
    if !output.status.success() {
        bail!("cargo test --no-run failed ({})", output.status);
    }
    let text =
        String::from_utf8(output.stdout).context("cargo printed something else than UTF-8")?;
    let mut programs = Vec::new();
    for line in text.lines() {
        let message: Value = serde_json::from_str(line)
            .with_context(|| format!("not a message of cargo's: {line}"))?;
        programs.extend(test_program(&message));
    }
    // The lab last: it takes longest and wants the machine to itself.
    programs.sort_by_key(|test| {
        (
            test.package == LAB,
            test.package.clone(),
            test.target.clone(),
        )
    });
    Ok(programs)
}

fn test_program(message: &Value) -> Option<TestProgram> {
    if !message["profile"]["test"].as_bool()? {
        return None;
    }
    let dir = Path::new(message["manifest_path"].as_str()?)
        .parent()?
        .to_owned();
    // path+file:///somewhere/wire#weft-wire@0.1.0, or …/wire#0.1.0 where the directory has the package's name.
    let (path, fragment) = message["package_id"].as_str()?.rsplit_once('#')?;
    let package = fragment
        .split_once('@')
        .map_or_else(|| path.rsplit('/').next().unwrap_or(path), |(name, _)| name);
    let kind = message["target"]["kind"][0].as_str()?;
    let name = message["target"]["name"].as_str()?;
    Some(TestProgram {
        package: package.to_owned(),
        target: format!("{kind} {name}"),
        file: message["executable"].as_str()?.into(),
        dir,
    })
}

fn run_tests(layout: &Layout, test: &TestProgram, summary: &mut Summary) {
    let name = format!("{}, {}", test.package, test.target);
    let start = Instant::now();
    let mut names = Vec::new();
    let counts = step(&format!("test {name}"), || {
        run_program(layout, test, &mut names)
    });
    let (passed, failed) = counts.unwrap_or_else(|error| {
        eprintln!("    error: {error:#}");
        names.push(format!("{error:#}"));
        (0, 1)
    });
    // Binaries without tests of their own are many; a table of zeros tells nobody anything.
    if passed + failed > 0 {
        let why = (failed > 0).then(|| names.join(", "));
        summary.add(&name, (passed, failed), why, start.elapsed());
    }
}

/// Runs one executable, passes its output through, counts, and collects the names of what failed.
fn run_program(
    layout: &Layout,
    test: &TestProgram,
    failed: &mut Vec<String>,
) -> Result<(u64, u64)> {
    let (root, lab) = (test.needs_root(), test.package == LAB);
    let limit = if root { LAB_LIMIT_S } else { UNIT_LIMIT_S };
    let mut environment =
        BTreeMap::from([("CARGO_MANIFEST_DIR", test.dir.clone().into_os_string())]);
    environment.insert("LD_LIBRARY_PATH", layout.duckdb().into_os_string());
    let mut command = if root && !is_root() {
        as_root("env")?
    } else {
        Command::new("env")
    };
    command.args(environment.iter().map(|(name, value)| {
        let mut pair = std::ffi::OsString::from(name);
        pair.push("=");
        pair.push(value);
        pair
    }));
    command
        .args(["timeout", "--kill-after=30"])
        .arg(limit.to_string())
        .arg(&test.file);
    if lab {
        command.args(["--test-threads=1", "--nocapture"]);
    }
    let mut child = command
        .current_dir(&test.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", test.file.display()))?;
    let stdout = child.stdout.take().context("the test has no stdout")?;
    let mut counts = None;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read the test's output")?;
        let text = String::from_utf8_lossy(&line);
        println!("{text}");
        counts = parse_result(&text).or(counts);
        failed.extend(failed_test(&text).map(str::to_owned));
    }
    std::io::stdout().flush().context("cannot write")?;
    let status = child.wait().context("cannot wait for the test")?;
    match counts {
        Some((passed, failed)) if status.success() == (failed == 0) => Ok((passed, failed)),
        _ if status.code() == Some(124) => bail!("not done after {} min", limit / 60),
        _ => bail!(
            "{} ended with {status} before its tests did",
            test.file.display()
        ),
    }
}

/// `test some::name ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("test ")?;
    rest.strip_suffix(" ... FAILED")
}

/// `test result: ok. 3 passed; 0 failed; 0 ignored; …`, or `3 cases, 0 failed` of a harness of our own.
fn parse_result(line: &str) -> Option<(u64, u64)> {
    if let Some((cases, failed)) = line
        .strip_suffix(" failed")
        .and_then(|l| l.split_once(" cases, "))
    {
        let (cases, failed): (u64, u64) = (cases.parse().ok()?, failed.parse().ok()?);
        return Some((cases.checked_sub(failed)?, failed));
    }
    // With --nocapture a test's own output may stand before it on the line.
    let (_, rest) = line.split_once("test result: ")?;
    let count = |word: &str| -> Option<u64> {
        let before = rest.split_once(word)?.0;
        before
            .rsplit([' ', ';'])
            .find(|part| !part.is_empty())?
            .parse()
            .ok()
    };
    Some((count(" passed")?, count(" failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_line_is_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(parse_result(line), Some((12, 3)));
        assert_eq!(parse_result("running 3 tests"), None);
        assert_eq!(parse_result("14 cases, 2 failed"), Some((12, 2)));
    }

    #[test]
    fn one_failure_fails_the_whole() {
        let mut summary = Summary::default();
        summary.check("good", || Ok(()));
        assert!(summary.close(Duration::ZERO).is_ok());
        summary.check("bad", || bail!("no"));
        let names = failed_test("test a::b ... FAILED").map(str::to_owned);
        summary.add("many", (7, 2), names, Duration::ZERO);
        assert_eq!(summary.totals(), (8, 3));
        assert!(
            summary
                .close(Duration::ZERO)
                .is_err_and(|error| error.to_string() == "failed: bad (no), many (a::b)")
        );
    }

    #[test]
    fn test_programs_are_found_in_cargos_messages() {
        let message = serde_json::json!({
            "reason": "compiler-artifact",
            "package_id": "path+file:///x/testbed/lab#weft-lab@0.1.0",
            "manifest_path": "/x/testbed/lab/Cargo.toml",
            "target": {"kind": ["test"], "name": "stitch"},
            "profile": {"test": true},
            "executable": "/x/target/debug/deps/stitch-1",
        });
        let test = test_program(&message).expect("a test");
        assert_eq!(
            (test.package.as_str(), test.target.as_str()),
            ("weft-lab", "test stitch")
        );
        assert_eq!(test.dir, Path::new("/x/testbed/lab"));
        let program = serde_json::json!({"profile": {"test": false}, "executable": "/x/y"});
        assert!(test_program(&program).is_none());
    }
}
