//! An identity's files: found under several names, and replaced all together or not at all.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::IdentityError;

/// File with the certificates of the CAs that are trusted, in an identity's and in a CA's directory.
pub const CA_FILE: &str = "ca.pem";
/// File with the own certificate, and what stands between it and the root.
pub const CERTIFICATE_FILE: &str = "cert.pem";
/// File with the own private key, mode 600.
pub const KEY_FILE: &str = "key.pem";

/// Names of the three files: ours, a Kubernetes secret's of type TLS (cert-manager), those of `spire-agent api fetch -write`.
const NAMES: [[&str; 3]; 3] = [
    [CA_FILE, CERTIFICATE_FILE, KEY_FILE],
    ["ca.crt", "tls.crt", "tls.key"],
    ["bundle.0.pem", "svid.0.pem", "svid.0.key"],
];

/// Where new files wait for all of them to be there.
const NEXT: &str = "next";
/// Is there when they are.
const COMPLETE: &str = "complete";

/// The three files of an identity.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Files {
    /// By the names that are there; by ours, where there are none.
    pub(crate) fn find(dir: &Path) -> Self {
        let there = |names: &&[&str; 3]| dir.join(names[1]).exists();
        let [ca, certificate, key] = NAMES.iter().find(there).unwrap_or(&NAMES[0]);
        Self {
            ca: dir.join(ca),
            certificate: dir.join(certificate),
            key: dir.join(key),
        }
    }
}

/// What tells whether the files are still the same: device, inode, length and time of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp([(u64, u64, u64, i64, i64); 3]);

impl Stamp {
    /// `None` while one is missing.
    pub(crate) fn of(dir: &Path) -> Option<Self> {
        let files = Files::find(dir);
        let one = |path: &Path| {
            let found = fs::metadata(path).ok()?;
            Some((
                found.dev(),
                found.ino(),
                found.len(),
                found.mtime(),
                found.mtime_nsec(),
            ))
        };
        Some(Self([
            one(&files.ca)?,
            one(&files.certificate)?,
            one(&files.key)?,
        ]))
    }
}

pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> IdentityError {
    let path = path.to_path_buf();
    move |source| IdentityError::Io { path, source }
}

/// All certificates of a file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let content = |detail: String| IdentityError::Content {
        path: path.into(),
        detail,
    };
    let pem = fs::read(path).map_err(io(path))?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(error.to_string()))?;
    if certificates.is_empty() {
        Err(content("no certificate in it".into()))
    } else {
        Ok(certificates)
    }
}

/// The private key of a file that only its owner can read.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    check_private(path)?;
    PrivateKeyDer::from_pem_slice(&fs::read(path).map_err(io(path))?).map_err(|_| {
        IdentityError::Content {
            path: path.into(),
            detail: "no private key in it".into(),
        }
    })
}

/// Refuses a file with a secret that others can read.
pub(crate) fn check_private(path: &Path) -> Result<(), IdentityError> {
    let mode = fs::metadata(path).map_err(io(path))?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(IdentityError::KeyReadable {
        path: path.into(),
        mode,
    })
}

pub(crate) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let encoded = data_encoding::BASE64.encode(certificate);
    // Base64 is of single bytes.
    for line in encoded.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Replaces an identity's files. Killed at any moment, the old ones or the new ones are there the next time they are read
/// (`finish_install`), never some of each.
pub fn install(dir: &Path, key: &str, chain: &str, roots: &str) -> Result<(), IdentityError> {
    let next = dir.join(NEXT);
    // What is left of an attempt that did not come far enough to count.
    let _ = fs::remove_dir_all(&next);
    fs::create_dir_all(&next).map_err(io(&next))?;
    fs::set_permissions(&next, fs::Permissions::from_mode(0o700)).map_err(io(&next))?;
    for (name, text, mode) in [
        (KEY_FILE, key, 0o600),
        (CERTIFICATE_FILE, chain, 0o644),
        (CA_FILE, roots, 0o644),
        (COMPLETE, "", 0o600),
    ] {
        write_durably(&next.join(name), text.as_bytes(), mode)?;
        sync_dir(&next)?;
    }
    sync_dir(dir)?;
    finish_install(dir);
    // Where that did not work, the next start tries again; what is asked for is not done before.
    if next.exists() {
        return Err(IdentityError::Content {
            path: next,
            detail: "the new files could not be moved to their place".into(),
        });
    }
    Ok(())
}

/// Moves new files that are complete to their places.
pub(crate) fn finish_install(dir: &Path) {
    let next = dir.join(NEXT);
    if !next.join(COMPLETE).exists() {
        return;
    }
    for name in [KEY_FILE, CERTIFICATE_FILE, CA_FILE] {
        let from = next.join(name);
        if from.exists() && fs::rename(&from, dir.join(name)).is_err() {
            return;
        }
    }
    // All are moved: that must be on the disk before the mark goes.
    if sync_dir(dir).is_ok() && fs::remove_file(next.join(COMPLETE)).is_ok() {
        let _ = fs::remove_dir(&next);
    }
}

/// Writes a new file and waits until it is on the disk.
pub(crate) fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(io(path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io(path))
}

fn sync_dir(dir: &Path) -> Result<(), IdentityError> {
    fs::File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(io(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The directory as a kill after so many steps of the installation leaves it.
    fn killed_after(steps: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in [KEY_FILE, CERTIFICATE_FILE, CA_FILE] {
            fs::write(at(name), "old").unwrap();
        }
        fs::create_dir(at(NEXT)).unwrap();
        let order = [KEY_FILE, CERTIFICATE_FILE, CA_FILE, COMPLETE];
        for name in order.iter().take(steps) {
            fs::write(at(NEXT).join(name), "new").unwrap();
        }
        for name in order.iter().take(steps.saturating_sub(4)) {
            fs::rename(at(NEXT).join(name), at(name)).unwrap();
        }
        dir
    }

    #[test]
    fn killed_at_any_moment_all_files_are_old_or_all_are_new() {
        for steps in 0..=7 {
            let dir = killed_after(steps);
            finish_install(dir.path());
            let expected = if steps < 4 { "old" } else { "new" };
            for name in [KEY_FILE, CERTIFICATE_FILE, CA_FILE] {
                let found = fs::read_to_string(dir.path().join(name)).unwrap();
                assert_eq!(found, expected, "{name} after {steps} steps");
            }
            install(dir.path(), "k", "c", "r").unwrap();
            let key = dir.path().join(KEY_FILE);
            assert_eq!(fs::read_to_string(&key).unwrap(), "k");
            assert_eq!(
                fs::metadata(&key).unwrap().permissions().mode() & 0o777,
                0o600
            );
            assert!(!dir.path().join(NEXT).exists());
        }
    }
}
