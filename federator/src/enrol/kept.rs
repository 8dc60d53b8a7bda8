//! A small file that is there whole or not at all, whatever ends the program.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Where a value is kept.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
}

impl Kept {
    /// This file of the folder.
    pub fn at(folder: &Path, name: &str) -> Self {
        Self {
            path: folder.join(name),
        }
    }

    /// What is kept; the default where nothing is.
    pub fn read<T: Default + DeserializeOwned>(&self) -> anyhow::Result<T> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged", self.path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read {}", self.path.display()))
            }
        }
    }

    /// Keeps it: on the disk when this returns.
    pub fn write<T: Serialize>(&self, value: &T) -> anyhow::Result<()> {
        let next = self.path.with_extension("next");
        self.replace(value, &next)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn replace<T: Serialize>(&self, value: &T, next: &Path) -> anyhow::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(next)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(next, &self.path)?;
        if let Some(folder) = self.path.parent() {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}
