//! `cargo xtask setup`: what a bare Debian 12 machine lacks. Does nothing, quickly, when nothing is missing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::ebpf;
use crate::layout::{Layout, find_program, link};
use crate::sh::{as_root, capture, run, step};

/// What the machine is made ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Building, and the lab with its first workloads.
    Demo,
    /// All tests.
    Test,
    /// The bench.
    Bench,
    /// All of it.
    All,
}

/// Where a package is needed: the demo installs nothing that only tests want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Always,
    Demo,
    Test,
    Bench,
    /// By tests and by the bench.
    Measured,
}

impl Purpose {
    fn includes(self, part: Use) -> bool {
        match part {
            Use::Always => true,
            Use::Demo => self != Self::Bench,
            Use::Test => matches!(self, Self::Test | Self::All),
            Use::Bench => matches!(self, Self::Bench | Self::All),
            Use::Measured => self != Self::Demo,
        }
    }
}

/// A Debian package and what it is here for.
struct Package {
    name: &'static str,
    why: &'static str,
    part: Use,
    /// A program that serves as well, wherever it came from.
    unless: Option<&'static str>,
    /// Only the kernel programs' build needs it: not where rustup's nightly does that.
    bpf: bool,
}

const fn package(part: Use, name: &'static str, why: &'static str) -> Package {
    Package {
        name,
        why,
        part,
        unless: None,
        bpf: false,
    }
}

const PACKAGES: &[Package] = &[
    Package {
        unless: Some("cc"),
        ..package(
            Use::Always,
            "build-essential",
            "C compiler and linker: ring, zstd, all linking",
        )
    },
    Package {
        bpf: true,
        ..package(
            Use::Always,
            "rustc-web",
            "a rustc that comes with its library's source",
        )
    },
    Package {
        bpf: true,
        ..package(Use::Always, "cargo-web", "the cargo that goes with it")
    },
    Package {
        bpf: true,
        ..package(
            Use::Always,
            "rust-web-src",
            "core's source, built for the BPF target",
        )
    },
    Package {
        bpf: true,
        ..package(
            Use::Always,
            "llvm-22-dev",
            "the LLVM of that rustc, for bpf-linker",
        )
    },
    Package {
        bpf: true,
        ..package(Use::Always, "libzstd-dev", "LLVM links to it")
    },
    Package {
        unless: Some("git"),
        ..package(Use::Always, "git", "tidy: the list of files")
    },
    Package {
        unless: Some("npm"),
        ..package(Use::Always, "npm", "fetches DuckDB's shared library")
    },
    package(
        Use::Always,
        "iproute2",
        "lab: namespaces, veth pairs, routes",
    ),
    package(Use::Always, "nftables", "lab: NAT"),
    package(
        Use::Demo,
        "conntrack",
        "lab: the kernel's own list of translations, the truth to compare with",
    ),
    package(Use::Always, "procps", "lab: sysctl"),
    package(Use::Always, "util-linux", "bench: taskset; lab: nsenter"),
    package(Use::Demo, "nginx-light", "lab: an HTTP workload"),
    package(Use::Demo, "curl", "lab: its client"),
    package(
        Use::Test,
        "redis-server",
        "lab: a workload with connections that stay open",
    ),
    package(Use::Test, "redis-tools", "lab: its client"),
    package(Use::Test, "faketime", "lab: certificates that have ended"),
    package(
        Use::Test,
        "haproxy",
        "lab: an L4 proxy, which must not be taken for NAT",
    ),
    package(
        Use::Test,
        "qemu-system-x86",
        "kernel-matrix: machines with other kernels",
    ),
    package(Use::Bench, "softflowd", "bench: the peer of the agent"),
    package(
        Use::Bench,
        "nfdump",
        "bench: collects what softflowd exports",
    ),
    package(Use::Test, "python3", "lab: a UDP workload"),
    package(Use::Test, "dnsmasq-base", "lab: a name server"),
    package(Use::Test, "unbound", "lab: another"),
    package(Use::Test, "bind9-dnsutils", "lab: dig, which asks them"),
    package(
        Use::Measured,
        "dnsperf",
        "lab: asks them steadily; bench: so does it there",
    ),
    package(
        Use::Bench,
        "tshark",
        "bench: the peer of the agent's reading of DNS",
    ),
];

/// Services that these packages start by themselves. The lab runs its own, in its namespaces.
const SERVICES: &[(&str, &str)] = &[
    ("nginx-light", "nginx"),
    ("redis-server", "redis-server"),
    ("haproxy", "haproxy"),
    ("softflowd", "softflowd"),
    ("nfdump", "nfdump"),
    ("unbound", "unbound"),
];

const BPF_LINKER: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";

/// The library of DuckDB 1.5.6, which the crate 1.10506 goes with, prebuilt: its C++ takes half an hour here.
const DUCKDB_PACKAGE: &str = "@duckdb/node-bindings-linux-x64@1.5.6-r.1";
const DUCKDB_ARCHIVE: &str = "duckdb-node-bindings-linux-x64-1.5.6-r.1.tgz";
const DUCKDB_SHA512: &str = "21772b64913a904a8cd19e30c1d5671811d7fdface4b7dd53cd0300d743f43e1\
                             6cf386f4e7c41ef78721ac208870d2651bc6375072145387817824315b998dd5";

/// Installs what is missing.
pub fn setup(layout: &Layout, purpose: Purpose) -> Result<()> {
    fs::create_dir_all(&layout.cache)
        .with_context(|| format!("cannot create {}", layout.cache.display()))?;
    let rustup = ebpf::rustup_can_build();
    packages(purpose, rustup)?;
    if !rustup {
        bpf_linker(layout)?;
    }
    duckdb(layout)?;
    link(&layout.duckdb(), &layout.local_cache().join("duckdb"))
}

/// Debian packages.
fn packages(purpose: Purpose, rustup_builds_bpf: bool) -> Result<()> {
    let wanted = PACKAGES
        .iter()
        .filter(|package| purpose.includes(package.part))
        .filter(|package| !(package.bpf && rustup_builds_bpf));
    let missing: Vec<&Package> = match find_program("dpkg-query") {
        Some(_) => wanted
            .filter(|package| {
                package
                    .unless
                    .is_none_or(|program| find_program(program).is_none())
            })
            .filter(|package| !installed(package.name))
            .collect(),
        None => {
            eprintln!(
                "note: not a Debian system; what its packages would bring must be there already:"
            );
            wanted.for_each(|package| eprintln!("        {:<16} {}", package.name, package.why));
            return Ok(());
        }
    };
    if missing.is_empty() {
        return Ok(());
    }
    step(
        &format!("install {} Debian packages", missing.len()),
        || {
            for package in &missing {
                eprintln!("      {:<16} {}", package.name, package.why);
            }
            let _quiet = ServicePolicy::forbid()?;
            run(apt()?.args(["-qq", "update"]))?;
            let names = missing.iter().map(|package| package.name);
            run(apt()?
                .args([
                    "-qq",
                    "-o",
                    "Dpkg::Use-Pty=0",
                    "--no-install-recommends",
                    "install",
                ])
                .args(names))?;
            disable_services(&missing)
        },
    )
}

fn apt() -> Result<Command> {
    let mut command = as_root("env")?;
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes"])
        .stdout(Stdio::null());
    Ok(command)
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

/// Keeps dpkg from starting services while it is held: Debian's policy-rc.d, put there unless there is one.
struct ServicePolicy {
    ours: bool,
}

impl ServicePolicy {
    const FILE: &str = "/usr/sbin/policy-rc.d";

    fn forbid() -> Result<Self> {
        if Path::new(Self::FILE).exists() {
            return Ok(Self { ours: false });
        }
        let script = format!(
            "printf '#!/bin/sh\\nexit 101\\n' > {0} && chmod 755 {0}",
            Self::FILE
        );
        run(as_root("sh")?.args(["-c", &script]))?;
        Ok(Self { ours: true })
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = as_root("rm").and_then(|mut rm| run(rm.args(["-f", Self::FILE])))
        {
            eprintln!(
                "warning: {error:#}; services will not start until {} is removed",
                Self::FILE
            );
        }
    }
}

/// Of the services just installed, none is to start at the next boot either.
fn disable_services(fresh: &[&Package]) -> Result<()> {
    if !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    for (_, unit) in SERVICES
        .iter()
        .filter(|(package, _)| fresh.iter().any(|f| f.name == *package))
    {
        run(as_root("systemctl")?.args(["--quiet", "disable", "--now", unit]))?;
    }
    Ok(())
}

/// bpf-linker, against Debian's LLVM.
fn bpf_linker(layout: &Layout) -> Result<()> {
    if installed_bpf_linker(layout) {
        return Ok(());
    }
    step(
        &format!("build bpf-linker {BPF_LINKER} (about a minute)"),
        || {
            let path = std::env::var("PATH").unwrap_or_default();
            let mut cargo = layout.cargo();
            cargo
                .env("PATH", format!("{LLVM}/bin:{path}"))
                .env("LLVM_PREFIX", LLVM)
                .env("LLVM_SYS_221_PREFIX", LLVM)
                .env("CARGO_TARGET_DIR", layout.cache.join("tools-target"))
                .args([
                    "install",
                    "--quiet",
                    "--force",
                    &format!("bpf-linker@{BPF_LINKER}"),
                ])
                .args(["--no-default-features", "--features", "llvm-22", "--root"])
                .arg(layout.tools());
            run(&mut cargo)?;
            fs::remove_dir_all(layout.cache.join("tools-target"))
                .context("cannot remove bpf-linker's build directory")
        },
    )
}

/// Asks it: one that was built against another LLVM does not even start.
fn installed_bpf_linker(layout: &Layout) -> bool {
    let mut version = Command::new(layout.tools().join("bin/bpf-linker"));
    version.arg("--version").stderr(Stdio::null());
    version
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(BPF_LINKER))
}

/// The shared library of DuckDB.
fn duckdb(layout: &Layout) -> Result<()> {
    let stamp = layout.duckdb().join(".sha512");
    if fs::read_to_string(&stamp).is_ok_and(|sum| sum.trim() == DUCKDB_SHA512) {
        return Ok(());
    }
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) {
        bail!(
            "no prebuilt DuckDB is known for this platform; set DUCKDB_LIB_DIR, or build with duckdb's feature `bundled`"
        );
    }
    step(&format!("fetch {DUCKDB_PACKAGE}"), || {
        let fresh = layout.cache.join("duckdb/fresh");
        // A leftover of an interrupted run.
        if fresh.exists() {
            fs::remove_dir_all(&fresh).context("cannot remove an old download")?;
        }
        fs::create_dir_all(&fresh).context("cannot create the download directory")?;
        run(Command::new("npm")
            .args([
                "pack",
                "--silent",
                "--ignore-scripts",
                DUCKDB_PACKAGE,
                "--pack-destination",
            ])
            .arg(&fresh)
            .current_dir(&fresh)
            .stdout(Stdio::null()))?;
        let archive = fresh.join(DUCKDB_ARCHIVE);
        let sum = capture(Command::new("sha512sum").arg(&archive))?;
        if !sum.starts_with(DUCKDB_SHA512) {
            bail!(
                "{DUCKDB_PACKAGE} is not what it was: its SHA-512 is {}",
                sum.split(' ').next().unwrap_or_default()
            );
        }
        run(Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(&fresh))?;
        fs::write(fresh.join("package/.sha512"), DUCKDB_SHA512)
            .context("cannot write the stamp")?;
        if layout.duckdb().exists() {
            fs::remove_dir_all(layout.duckdb()).context("cannot remove the old library")?;
        }
        fs::rename(fresh.join("package"), layout.duckdb())
            .context("cannot put the library in place")?;
        fs::remove_dir_all(&fresh).context("cannot remove the download directory")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(purpose: Purpose) -> Vec<&'static str> {
        let wanted = PACKAGES.iter().filter(|p| purpose.includes(p.part));
        wanted.map(|p| p.name).collect()
    }

    #[test]
    fn the_demo_waits_for_no_package_that_only_others_want() {
        let demo = names(Purpose::Demo);
        assert!(demo.contains(&"llvm-22-dev") && demo.contains(&"nginx-light"));
        assert!(!demo.contains(&"qemu-system-x86") && !demo.contains(&"tshark"));
        assert!(names(Purpose::Test).contains(&"qemu-system-x86"));
        assert!(names(Purpose::Bench).contains(&"tshark"));
        assert_eq!(names(Purpose::All).len(), PACKAGES.len());
    }
}
