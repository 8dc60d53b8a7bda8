//! The root file system of a test machine: busybox, modules, the tests and what they need, as one archive.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::layout::find_program;
use crate::sh::capture;

/// Runs in the machine.
const INIT: &str = include_str!("../../../testbed/vm/init");
/// Drivers and protocols that are modules in Debian's kernels, without what these need themselves.
const MODULES: &[&str] = &["tcp_diag", "udp_diag", "veth"];
/// Programs that the tests call, besides busybox.
const PROGRAMS: &[&str] = &["ip", "nginx", "curl", "openssl"];

/// What goes in.
pub struct Contents<'a> {
    /// A static busybox.
    pub busybox: &'a Path,
    /// The kernel's modules.
    pub modules: &'a Path,
    /// The test program.
    pub tests: &'a Path,
    /// Its arguments: which cases to run.
    pub arguments: &'a [String],
}

/// The archive, as the kernel unpacks it.
pub fn build(contents: &Contents<'_>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("bin/busybox", 0o755, &read(contents.busybox)?);
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\n");
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n");
    archive.file("weft/capture", 0o755, &read(contents.tests)?);
    archive.file(
        "weft/arguments",
        0o644,
        contents.arguments.join("\n").as_bytes(),
    );
    let mut needed = vec![contents.tests.to_owned()];
    for name in PROGRAMS {
        let file = find_program(name).with_context(|| format!("no {name} on this machine"))?;
        archive.file(&format!("sbin/{name}"), 0o755, &read(&file)?);
        needed.push(file);
    }
    for library in libraries(&needed)? {
        archive.file(&library, 0o755, &read(Path::new(&library))?);
    }
    let mut names = String::new();
    for (name, module) in closure(contents.modules, MODULES)? {
        archive.file(&format!("lib/modules/{name}.ko"), 0o644, &module);
        names += &format!("{name}.ko\n");
    }
    archive.file("weft/modules", 0o644, names.as_bytes());
    Ok(archive.finish())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Every shared library of some programs, loader included, by its path on this machine.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for program in programs {
        let text = capture(Command::new("ldd").arg(program))?;
        all.extend(library_paths(&text));
    }
    Ok(all)
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`, not the vDSO.
fn library_paths(text: &str) -> impl Iterator<Item = String> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
}

/// Modules and what they depend on, in the order in which they load. One that is built in, or that this kernel does
/// not have, is left out: the test that needs it says so.
fn closure(modules: &Path, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    find_modules(&modules.join("kernel"), &mut files)?;
    let mut ordered: Vec<(String, Vec<u8>)> = Vec::new();
    let mut waiting: Vec<String> = wanted.iter().rev().map(|name| (*name).to_owned()).collect();
    while let Some(name) = waiting.last().cloned() {
        let done = |name: &str| ordered.iter().any(|(known, _)| known == name);
        let Some(file) = files
            .iter()
            .find(|file| module_name(file).is_some_and(|found| found == name))
            .filter(|_| !done(&name))
        else {
            waiting.pop();
            continue;
        };
        let bytes = module(file)?;
        let missing: Vec<String> = dependencies(&bytes)
            .into_iter()
            .filter(|dependency| !done(dependency))
            .collect();
        if missing.is_empty() || missing.iter().any(|name| waiting.contains(name)) {
            waiting.pop();
            ordered.push((name, bytes));
        } else {
            waiting.extend(missing);
        }
    }
    Ok(ordered)
}

fn find_modules(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find_modules(&path, into)?;
        } else if module_name(&path).is_some() {
            into.push(path);
        }
    }
    Ok(())
}

/// A module's name from its file's: dashes and underscores are the same to the kernel.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let name = name.strip_suffix(".xz").unwrap_or(name);
    Some(name.strip_suffix(".ko")?.replace('-', "_"))
}

/// A module, unpacked.
fn module(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|end| end != "xz") {
        return read(file);
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(file)
        .output()
        .context("cannot run xz")?;
    if !output.status.success() {
        bail!("xz cannot unpack {}", file.display());
    }
    Ok(output.stdout)
}

/// What a module says it depends on: the string `depends=a,b` among its own facts.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or_default();
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// A cpio archive of the form `newc`, which is what the kernel reads.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    const DIRECTORY: u32 = 0o040_755;
    const REGULAR: u32 = 0o100_000;

    /// Adds a file and the directories above it. `path` may begin with a slash.
    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = path.trim_start_matches('/');
        for (end, _) in path.match_indices('/') {
            if self.directories.insert(path[..end].to_owned()) {
                self.entry(&path[..end], Self::DIRECTORY, &[]);
            }
        }
        self.entry(path, Self::REGULAR | mode, content);
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let name_len = path.len() as u32 + 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            0,
            0,
            name_len,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_kernel_reads() {
        let mut archive = Archive::default();
        archive.file("/a/b", 0o755, b"hello");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let headers: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(headers.len(), 3, "directory, file, trailer");
        assert!(headers.iter().all(|at| at % 4 == 0));
        let field = |header: usize, index: usize| {
            let at = headers[header] + 6 + 8 * index;
            u32::from_str_radix(&text[at..at + 8], 16).expect("hexadecimal")
        };
        assert_eq!((field(0, 1), field(1, 1)), (0o040_755, 0o100_755));
        assert_eq!((field(1, 6), field(1, 11)), (5, 4));
        let name = headers[1] + 6 + 8 * 13;
        assert_eq!(&text[name..name + 4], "a/b\0");
        assert_eq!(&text[(name + 4).next_multiple_of(4)..][..5], "hello");
    }

    #[test]
    fn libraries_are_read_off_ldd() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(
            library_paths(text).collect::<Vec<_>>(),
            ["/lib/libc.so.6", "/lib64/ld.so.2"]
        );
    }

    #[test]
    fn modules_say_what_they_need() {
        assert_eq!(
            dependencies(b"x\0depends=inet-diag,b\0name=c\0"),
            ["inet_diag", "b"]
        );
        assert!(dependencies(b"x\0depends=\0name=c\0").is_empty());
        assert_eq!(
            module_name(Path::new("a/nf-nat.ko.xz")).as_deref(),
            Some("nf_nat")
        );
        assert_eq!(module_name(Path::new("a/modules.order")), None);
    }
}
