//! Kernels from Debian's packages, fetched with an apt of our own: the machine's sources and lists stay as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::layout::Layout;
use crate::sh::{capture, run, step};

/// A kernel that the tests must pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its series, as `--kernel` takes it.
    pub series: &'static str,
    /// The suite that carries it.
    suite: &'static str,
}

/// Oldest first.
pub const KERNELS: [Kernel; 3] = [
    Kernel {
        series: "5.10",
        suite: "bullseye",
    },
    Kernel {
        series: "6.1",
        suite: "bookworm",
    },
    Kernel {
        series: "6.12",
        suite: "bookworm-backports",
    },
];

/// Where packages are, the archive of old releases last.
const MIRRORS: [&str; 2] = [
    "http://deb.debian.org/debian",
    "http://archive.debian.org/debian",
];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Depends on the newest image of a suite. The cloud flavour has what the tests need and is a third of the size.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// The suite that busybox comes from.
const BUSYBOX_SUITE: &str = "bookworm";

/// A kernel on disk.
pub struct Image {
    /// What QEMU boots.
    pub vmlinuz: PathBuf,
    /// Its modules, `kernel/` and so on below.
    pub modules: PathBuf,
}

/// The newest image of a series, fetched once; removing `kernels/` from the cache fetches the newest again.
pub fn image(layout: &Layout, kernel: Kernel) -> Result<Image> {
    let dir = layout.cache.join("kernels").join(kernel.series);
    if !dir.exists() {
        step(&format!("fetch Debian's kernel {}", kernel.series), || {
            let apt = Apt::new(layout, kernel.suite)?;
            let package = apt.dependency(META_PACKAGE)?;
            apt.unpack(&package, &dir)
        })?;
    }
    let release = only_entry(&dir.join("lib/modules"))?;
    let name = release
        .file_name()
        .context("modules have no release")?
        .to_string_lossy()
        .into_owned();
    Ok(Image {
        vmlinuz: dir.join("boot").join(format!("vmlinuz-{name}")),
        modules: release,
    })
}

/// A busybox that needs no library.
pub fn busybox(layout: &Layout) -> Result<PathBuf> {
    let dir = layout.cache.join("kernels/busybox");
    if !dir.exists() {
        step("fetch busybox", || {
            Apt::new(layout, BUSYBOX_SUITE)?.unpack("busybox-static", &dir)
        })?;
    }
    Ok(dir.join("bin/busybox"))
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let mut entries =
        fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    match (entries.next(), entries.next()) {
        (Some(entry), None) => Ok(entry?.path()),
        _ => bail!("{} should hold one directory", dir.display()),
    }
}

/// An apt that knows one suite, with lists of its own.
struct Apt {
    root: PathBuf,
}

impl Apt {
    /// Fetches the suite's lists from the first mirror that has it.
    fn new(layout: &Layout, suite: &str) -> Result<Self> {
        if cfg!(not(target_arch = "x86_64")) {
            bail!("the kernels are for x86-64 machines");
        }
        let apt = Self {
            root: layout.cache.join("kernels/apt").join(suite),
        };
        for dir in ["lists/partial", "cache/archives/partial", "download"] {
            fs::create_dir_all(apt.root.join(dir)).context("cannot create apt's directories")?;
        }
        let mut refused = None;
        for mirror in MIRRORS {
            let source = format!("deb [signed-by={KEYRING} arch=amd64] {mirror} {suite} main\n");
            fs::write(apt.root.join("sources.list"), source)
                .context("cannot write apt's sources")?;
            match run(apt
                .command("apt-get")
                .args(["-qq", "--error-on=any", "update"]))
            {
                Ok(()) => return Ok(apt),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.context("no mirror is known")?).context(format!("no mirror has {suite}"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let at = |name: &str| self.root.join(name).display().to_string();
        for option in [
            format!("Dir::State={}", at("")),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            format!("Dir::Etc::SourceList={}", at("sources.list")),
            "Dir::Etc::SourceParts=/nonexistent".to_owned(),
            // Descriptions and icons are several times what is needed.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::CNF::DefaultEnabled=false".to_owned(),
            // As root apt would fetch as another user, who cannot write here.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    /// What a package that only points at another points at.
    fn dependency(&self, package: &str) -> Result<String> {
        let text = capture(self.command("apt-cache").args(["depends", package]))?;
        text.lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .with_context(|| format!("{package} depends on nothing"))
    }

    /// Fetches a package and unpacks it into `dir`, whole or not at all.
    fn unpack(&self, package: &str, dir: &Path) -> Result<()> {
        let download = self.root.join("download");
        remove(&download)?;
        fs::create_dir_all(&download).context("cannot create the download directory")?;
        run(self
            .command("apt-get")
            .args(["-qq", "download", package])
            .current_dir(&download)
            .stdout(Stdio::null()))?;
        let archive = only_entry(&download)?;
        let fresh = self.root.join("fresh");
        remove(&fresh)?;
        run(Command::new("dpkg").arg("-x").arg(&archive).arg(&fresh))?;
        fs::rename(&fresh, dir)
            .with_context(|| format!("cannot put {} in place", dir.display()))?;
        remove(&download)
    }
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}
