//! The processes of a cgroup, and the sockets each has open.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use weft_agent_common::COMM_LEN;

/// Most cgroups, and most processes, that are looked at. Beyond it they are left out and counted.
pub const MAX_PLACES: usize = 65_536;

/// A process of the watched cgroup.
#[derive(Clone, Debug)]
pub struct Resident {
    /// Process id.
    pub pid: u32,
    /// cgroup v2 id.
    pub cgroup: u64,
    /// Inode of its network namespace.
    pub netns: u32,
}

/// Who has a socket open, and as what.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Descriptor.
    pub fd: i32,
    /// cgroup v2 id of the process.
    pub cgroup: u64,
}

/// Every process below a cgroup, and how many places were left out.
pub fn residents(root: &Path) -> (Vec<Resident>, u64) {
    let (mut found, mut left_out) = (Vec::new(), 0);
    let mut places: Vec<PathBuf> = vec![root.to_path_buf()];
    let mut seen = 0;
    while let Some(place) = places.pop() {
        seen += 1;
        if seen > MAX_PLACES || found.len() > MAX_PLACES {
            left_out += 1;
            continue;
        }
        let cgroup = fs::metadata(&place)
            .map(|meta| meta.ino())
            .unwrap_or_default();
        let pids = fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
        // Pid 0 is a process outside our own pid namespace.
        for pid in pids
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| *pid != 0)
        {
            let netns = fs::metadata(format!("/proc/{pid}/ns/net")).map(|meta| meta.ino() as u32);
            found.extend(netns.ok().map(|netns| Resident { pid, cgroup, netns }));
        }
        let below = fs::read_dir(&place).into_iter().flatten().flatten();
        places.extend(
            below
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    (found, left_out)
}

/// Sockets by inode. Of several processes that share one, the one with the lowest pid holds it: the parent of
/// workers, as a rule the one that listened.
pub fn holders(residents: &[Resident]) -> HashMap<u32, Holder> {
    let mut holders: HashMap<u32, Holder> = HashMap::new();
    for resident in residents {
        for entry in fs::read_dir(format!("/proc/{}/fd", resident.pid))
            .into_iter()
            .flatten()
            .flatten()
        {
            let Some(inode) = fs::read_link(entry.path())
                .ok()
                .and_then(|link| socket_inode(&link))
            else {
                continue;
            };
            let Some(fd) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let holder = Holder {
                pid: resident.pid,
                fd,
                cgroup: resident.cgroup,
            };
            holders
                .entry(inode)
                .and_modify(|known| {
                    if holder.pid < known.pid {
                        *known = holder
                    }
                })
                .or_insert(holder);
        }
    }
    holders
}

/// A process's name, as the kernel pads it.
pub fn comm(pid: u32) -> [u8; COMM_LEN] {
    let mut comm = [0; COMM_LEN];
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    let length = name.len().min(COMM_LEN - 1);
    comm[..length].copy_from_slice(&name[..length]);
    comm
}

fn socket_inode(link: &Path) -> Option<u32> {
    link.to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_sockets() {
        assert_eq!(socket_inode(Path::new("socket:[123]")), Some(123));
        assert_eq!(socket_inode(Path::new("/dev/null")), None);
        assert_eq!(comm(std::process::id())[COMM_LEN - 1], 0);
    }
}
