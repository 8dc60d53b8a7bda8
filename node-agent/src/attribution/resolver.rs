//! The `resolv.conf` of a process, which lies in its own root and is a container's to write.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// Most bytes read of it.
const MAX_BYTES: u64 = 64 << 10;

/// Reads `etc/resolv.conf` below a root. Links are followed within that root alone, and nothing but a regular file is
/// opened: a container could name a device or a pipe of the host's otherwise.
pub fn configuration(root: &Path) -> Option<String> {
    let path = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = open(root, path | OFlag::O_DIRECTORY, Mode::empty()).ok()?;
    let how = OpenHow::new()
        .flags(path)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found = File::from(openat2(root, "etc/resolv.conf", how).ok()?);
    if !found.metadata().ok()?.is_file() {
        return None;
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_within_the_root_and_only_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(configuration(root), None);
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(root.join("run")).unwrap();
        fs::write(root.join("run/stub.conf"), "search a.example\n").unwrap();
        let conf = root.join("etc/resolv.conf");
        // Absolute: within a container it means the container's own.
        symlink("/run/stub.conf", &conf).unwrap();
        assert_eq!(configuration(root).as_deref(), Some("search a.example\n"));
        fs::remove_file(&conf).unwrap();
        symlink("/etc/passwd", &conf).unwrap();
        assert_eq!(configuration(root), None, "the host's file is not in there");
        fs::remove_file(&conf).unwrap();
        nix::unistd::mkfifo(&conf, Mode::S_IRWXU).unwrap();
        assert_eq!(configuration(root), None);
    }
}
