//! `cargo xtask ebpf`: the kernel programs, built for the BPF target and put where the agent embeds them from.
//!
//! Two toolchains can do it: rustup's nightly with `rust-src` and a bpf-linker on PATH (a developer's machine),
//! or Debian's rustc-web with its source and our own bpf-linker (everywhere else; rustup's stable has no source of core).

use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::layout::{Layout, find_program};
use crate::sh::{run, step};

const TARGET: &str = "bpfel-unknown-none";
/// What goes into the object.
const SOURCES: &[&str] = &["node-agent-ebpf", "node-agent-common"];
/// Programs of the package, and the name under which the agent embeds each.
const OBJECTS: &[(&str, &str)] = &[
    ("weft-agent-ebpf", "weft.bpf.o"),
    ("weft-calls-ebpf", "weft-calls.bpf.o"),
];
/// Builds kept in the cache, newest first: a switch of branches then costs nothing.
const KEPT_BUILDS: usize = 8;

/// Builds the objects when their sources changed since the last time, here or in another checkout.
pub fn build(layout: &Layout) -> Result<()> {
    let fingerprint = fingerprint(&layout.root)?;
    let stamp = layout.local_cache().join("weft.bpf.fingerprint");
    let objects = || {
        OBJECTS
            .iter()
            .map(|(_, file)| layout.local_cache().join(file))
    };
    let there = objects().all(|object| object.exists());
    if there && fs::read_to_string(&stamp).is_ok_and(|old| old == fingerprint) {
        return Ok(());
    }
    let kept = layout.cache.join("ebpf").join(&fingerprint);
    if !kept.exists() {
        step("build the kernel programs", || compile(layout, &kept))?;
    }
    fs::create_dir_all(layout.local_cache()).context("cannot create .cache in the checkout")?;
    for (object, (_, file)) in objects().zip(OBJECTS) {
        let from = kept.join(file);
        // Untouched when equal, so that the agent is not built again for nothing.
        let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        if fs::read(&object).ok().as_ref() != Some(&bytes) {
            fs::write(&object, bytes)
                .with_context(|| format!("cannot write {}", object.display()))?;
        }
    }
    fs::write(&stamp, fingerprint).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Whether rustup's nightly and a bpf-linker on PATH can build for the BPF target.
pub fn rustup_can_build() -> bool {
    if find_program("bpf-linker").is_none() {
        return false;
    }
    let sysroot = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .stderr(Stdio::null())
        .output();
    sysroot.is_ok_and(|output| {
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        output.status.success() && path.join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

fn compile(layout: &Layout, to: &Path) -> Result<()> {
    let target_dir = layout.cache.join("ebpf-target");
    let (mut cargo, linker) = toolchain(layout)?;
    cargo
        .current_dir(&layout.root)
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "weft-agent-ebpf",
        ])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&linker))
        // The workspace's release profile is for programs; bpf-linker does its own link-time optimisation.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_TARGET_DIR");
    run(&mut cargo)?;
    let parent = to.parent().context("the object cache has no directory")?;
    let fresh = parent.join("fresh");
    fs::create_dir_all(&fresh).with_context(|| format!("cannot create {}", fresh.display()))?;
    for (program, file) in OBJECTS {
        let built = target_dir.join(TARGET).join("release").join(program);
        let size = fs::metadata(&built)
            .with_context(|| format!("cargo left no {}", built.display()))?
            .len();
        if size == 0 {
            bail!("the linker wrote an empty object");
        }
        fs::copy(&built, fresh.join(file))
            .with_context(|| format!("cannot copy {}", built.display()))?;
        eprintln!("      {file}: {} KiB for {TARGET}", size / 1024);
    }
    // Whole or not at all.
    fs::rename(&fresh, to).with_context(|| format!("cannot put {} in place", to.display()))?;
    prune(parent)
}

fn toolchain(layout: &Layout) -> Result<(Command, PathBuf)> {
    if rustup_can_build() {
        let mut cargo = Command::new("rustup");
        cargo.args(["run", "nightly", "cargo"]);
        // Set by the cargo that runs this program; the nightly one must find its own.
        cargo
            .env_remove("RUSTC")
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN");
        return Ok((
            cargo,
            find_program("bpf-linker").context("bpf-linker has gone from PATH")?,
        ));
    }
    let linker = layout.tools().join("bin/bpf-linker");
    let rustc = Path::new("/usr/bin/rustc");
    if !linker.exists() || !rustc.exists() {
        bail!("no toolchain for the kernel programs; `cargo xtask setup` installs one");
    }
    let mut cargo = Command::new("/usr/bin/cargo");
    // Debian's compiler is a release, and build-std an unstable flag.
    cargo
        .env("RUSTC", rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTUP_TOOLCHAIN");
    Ok((cargo, linker))
}

fn rustflags(linker: &Path) -> OsString {
    let mut flags = OsString::from("-Cdebuginfo=2\u{1f}-Clink-arg=--btf\u{1f}-Clinker=");
    flags.push(linker);
    flags
}

/// Everything that decides what the object holds: sources, and the crates they stand on.
fn fingerprint(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in &files {
        file.strip_prefix(root).unwrap_or(file).hash(&mut hasher);
        fs::read(file)
            .with_context(|| format!("cannot read {}", file.display()))?
            .hash(&mut hasher);
    }
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    for package in lock
        .split("[[package]]")
        .filter(|package| package.contains("name = \"aya-ebpf"))
    {
        package.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else if path
            .extension()
            .is_some_and(|end| end == "rs" || end == "toml")
        {
            into.push(path);
        }
    }
    Ok(())
}

fn prune(dir: &Path) -> Result<()> {
    let mut objects = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        objects.push((entry.metadata()?.modified()?, entry.path()));
    }
    objects.sort();
    let surplus = objects.len().saturating_sub(KEPT_BUILDS);
    for (_, path) in objects.drain(..surplus) {
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_source_changes_the_fingerprint() {
        let dir = std::env::temp_dir().join(format!("weft-fingerprint-{}", std::process::id()));
        for source in SOURCES {
            fs::create_dir_all(dir.join(source).join("src")).expect("directory");
        }
        fs::write(
            dir.join("Cargo.lock"),
            "[[package]]\nname = \"aya-ebpf\"\nversion = \"1\"\n",
        )
        .expect("lock");
        let file = dir.join("node-agent-ebpf/src/main.rs");
        fs::write(&file, "one").expect("source");
        let one = fingerprint(&dir).expect("fingerprint");
        assert_eq!(fingerprint(&dir).expect("fingerprint"), one);
        fs::write(&file, "two").expect("source");
        let two = fingerprint(&dir).expect("fingerprint");
        assert_ne!(two, one);
        fs::write(
            dir.join("Cargo.lock"),
            "[[package]]\nname = \"aya-ebpf\"\nversion = \"2\"\n",
        )
        .expect("lock");
        assert_ne!(fingerprint(&dir).expect("fingerprint"), two);
        fs::remove_dir_all(&dir).expect("clean up");
    }
}
