//! Where things are: the checkout, and the cache that outlives it.

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Paths that several commands share.
pub struct Layout {
    /// The checkout.
    pub root: PathBuf,
    /// Downloads and tools; shared by all checkouts of one user.
    pub cache: PathBuf,
    /// Where cargo puts the workspace's build products.
    pub target: PathBuf,
}

impl Layout {
    /// From cargo's environment, or, for a binary run by hand, from where it was built.
    pub fn find() -> Result<Self> {
        let manifest =
            env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest)
            .parent()
            .context("xtask/ has no parent directory")?
            .to_owned();
        let cache = match env::var_os("WEFT_CACHE") {
            Some(dir) => PathBuf::from(dir),
            None => {
                PathBuf::from(env::var_os("HOME").context("neither WEFT_CACHE nor HOME is set")?)
                    .join(".cache/weft")
            }
        };
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Ok(Self {
            root,
            cache,
            target,
        })
    }

    /// The place in the checkout that `.cargo/config.toml` points build scripts at.
    pub fn local_cache(&self) -> PathBuf {
        self.root.join(".cache")
    }

    /// Tools installed with cargo, outside everybody's PATH.
    pub fn tools(&self) -> PathBuf {
        self.cache.join("tools")
    }

    /// The directory that holds libduckdb.so.
    pub fn duckdb(&self) -> PathBuf {
        self.cache.join("duckdb/package")
    }

    /// A cargo command in the checkout, with the toolchain that runs this program.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        // Set by `cargo run` for this program only; a child would take them for its own, and build scripts that watch
        // them (ring's does) would run again, with all that stands on them.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        command
    }
}

/// Whether this process may do what root may.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// Whether `program` is on PATH (or in the places where Debian keeps what only root runs).
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Makes `link` point at `target`; leaves it alone when it does.
pub fn link(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|now| now == target) {
        return Ok(());
    }
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    if link.symlink_metadata().is_ok() {
        fs::remove_file(link).with_context(|| format!("cannot replace {}", link.display()))?;
    }
    symlink(target, link)
        .with_context(|| format!("cannot link {} to {}", link.display(), target.display()))
}
