//! Rules on what stands in files.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::sh::capture;

/// Longest Rust file: beyond this it is usually two things.
const MAX_LINES: usize = 800;

/// Paths of somebody's machine. Split here, so that this file passes its own rule.
const MACHINE_PATHS: &[&str] = &[
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/wo", "rk/"),
    concat!("/re", "po/"),
    concat!("/fa", "rm/"),
    concat!("/Us", "ers/"),
];

/// Where `unsafe` may stand: code that shares memory with the kernel.
const UNSAFE_DIRS: &[&str] = &["node-agent-ebpf/", "node-agent-common/"];
/// And so many files of the agent.
const UNSAFE_FILES_OF_AGENT: usize = 1;

/// What pure crates may not name in their own code; their tests may.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "SystemTime",
    "Instant::now",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "RandomState",
    "static mut",
    "thread_local!",
];
const PURE_DIRS: &[&str] = &[
    "wire/src/",
    "stitching/src/",
    "dns/src/",
    "mesh/src/",
    "simulator/src/",
    "node-agent-common/src/",
];

/// A published file.
struct File {
    path: String,
    text: String,
}

/// Reads every file that git knows or would add, and applies all rules.
pub fn check(root: &Path) -> Result<()> {
    let list = capture(
        Command::new("git")
            // The checkout may belong to another user than the one who tests it.
            .args(["-c", "safe.directory=*"])
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(root),
    )?;
    let mut files = Vec::new();
    for path in list.split('\0').filter(|path| !path.is_empty()) {
        match fs::read(root.join(path)) {
            // Corpora and pictures are not text.
            Ok(bytes) => files.extend(String::from_utf8(bytes).ok().map(|text| File {
                path: path.to_owned(),
                text,
            })),
            // Removed, and not yet said so to git.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
        }
    }
    super::report(&findings(&files))
}

fn findings(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut unsafe_in_agent = Vec::new();
    for file in files {
        findings.extend(machine_paths(file));
        if !file.path.ends_with(".rs") {
            continue;
        }
        let lines = file.text.lines().count();
        if lines > MAX_LINES {
            findings.push(format!(
                "{}: {lines} lines; the limit is {MAX_LINES}",
                file.path
            ));
        }
        findings.extend(impurities(file));
        let unsafe_lines = unsafe_lines(file);
        if unsafe_lines.is_empty() || UNSAFE_DIRS.iter().any(|dir| file.path.starts_with(dir)) {
            continue;
        }
        if file.path.starts_with("node-agent/src/") {
            unsafe_in_agent.push(file.path.as_str());
        } else {
            findings.extend(
                unsafe_lines
                    .iter()
                    .map(|line| format!("{}:{line}: unsafe is not for this crate", file.path)),
            );
        }
    }
    if unsafe_in_agent.len() > UNSAFE_FILES_OF_AGENT {
        findings.push(format!(
            "unsafe code in several files of the agent: {}",
            unsafe_in_agent.join(", ")
        ));
    }
    findings
}

fn machine_paths(file: &File) -> Vec<String> {
    let numbered = file.text.lines().zip(1..);
    numbered
        .filter_map(|(line, number)| {
            let path = MACHINE_PATHS.iter().find(|path| names_path(line, path))?;
            Some(format!(
                "{}:{number}: a path of one machine ({path})",
                file.path
            ))
        })
        .collect()
}

/// Whether `path` stands in `line` as the beginning of a path, not in the middle of a longer one.
fn names_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || "_-.~}/$".contains(c)))
    })
}

fn impurities(file: &File) -> Vec<String> {
    if !PURE_DIRS.iter().any(|dir| file.path.starts_with(dir)) || is_test_file(&file.path) {
        return Vec::new();
    }
    let code = own_code(&file.text);
    code.filter_map(|(line, number)| {
        let word = IMPURE.iter().find(|word| line.contains(**word))?;
        Some(format!(
            "{}:{number}: {word} in a crate that must stay pure",
            file.path
        ))
    })
    .collect()
}

fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// Lines of code before the test module, without comments.
fn own_code(text: &str) -> impl Iterator<Item = (&str, usize)> {
    text.lines()
        .zip(1..)
        .take_while(|(line, _)| line.trim() != "#[cfg(test)]")
        .filter(|(line, _)| !line.trim_start().starts_with("//"))
}

/// Lines that switch the lint off: without that, the compiler refuses every `unsafe`.
fn unsafe_lines(file: &File) -> Vec<usize> {
    const SWITCHES: &[&str] = &[
        concat!("allow(unsafe", "_code"),
        concat!("expect(unsafe", "_code"),
    ];
    let numbered = file.text.lines().zip(1..);
    numbered
        .filter(|(line, _)| SWITCHES.iter().any(|switch| line.contains(switch)))
        .map(|(_, number)| number)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        findings(&[File {
            path: path.into(),
            text: text.into(),
        }])
    }

    #[test]
    fn machine_paths_are_found_in_any_file() {
        let own = format!("see {}somebody/notes", MACHINE_PATHS[1]);
        assert_eq!(found("README.md", &own).len(), 1);
        for path in MACHINE_PATHS {
            let inside = format!("see /etc/weft and testbed{path}x");
            assert!(found("README.md", &inside).is_empty(), "{inside}");
        }
    }

    #[test]
    fn pure_crates_name_no_clock_outside_tests() {
        let clock = "fn f() { let _ = std::time::SystemTime::now(); }\n";
        assert_eq!(found("stitching/src/lib.rs", clock).len(), 1);
        assert!(found("federator/src/lib.rs", clock).is_empty());
        assert!(
            found(
                "stitching/src/lib.rs",
                &format!("#[cfg(test)]\nmod tests {{ {clock} }}")
            )
            .is_empty()
        );
        assert!(found("stitching/src/lib.rs", "// never SystemTime\n").is_empty());
    }

    #[test]
    fn unsafe_has_its_places() {
        let switch = concat!("#![allow(unsafe", "_code)]\n");
        assert_eq!(found("wire/src/lib.rs", switch).len(), 1);
        assert!(found("node-agent-ebpf/src/main.rs", switch).is_empty());
        assert!(found("node-agent/src/ring.rs", switch).is_empty());
        let two = ["node-agent/src/a.rs", "node-agent/src/b.rs"].map(|path| File {
            path: path.into(),
            text: switch.into(),
        });
        assert_eq!(findings(&two).len(), 1);
    }

    #[test]
    fn long_files_are_named() {
        assert_eq!(found("wire/src/x.rs", &"\n".repeat(MAX_LINES + 1)).len(), 1);
    }
}
