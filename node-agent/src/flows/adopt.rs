//! UDP sockets older than the hooks: whose they are is looked up once, when the hooks are attached.

use std::collections::{HashMap, HashSet};
use std::fs;

use weft_agent_common::{DatagramSocket, SocketOwner, socket_origin};

use crate::kernel::{Datagrams, sys};
use crate::snapshot::processes::{self, Holder, Resident};

/// Most sockets looked at. Beyond it their flows have no process until they send, and are counted.
const MAX_SOCKETS: usize = 65_536;

/// Names the process of every UDP socket that the hooks did not see made. Says how many were left out.
pub fn adopt(
    datagrams: &mut Datagrams,
    residents: &[Resident],
    holders: &HashMap<u32, Holder>,
) -> u64 {
    let (mut seen, mut left_out, mut count) = (HashSet::new(), 0, 0);
    for resident in residents {
        if !seen.insert(resident.netns) {
            continue;
        }
        for table in ["udp", "udp6", "raw", "raw6"] {
            let text = fs::read_to_string(format!("/proc/{}/net/{table}", resident.pid));
            for (uid, inode) in text.unwrap_or_default().lines().filter_map(listed) {
                let Some(holder) = holders.get(&inode) else {
                    continue;
                };
                count += 1;
                if count > MAX_SOCKETS || !take(datagrams, holder, uid, resident.netns) {
                    left_out += 1;
                }
            }
        }
    }
    left_out
}

/// False when the socket is gone, or cannot be had.
fn take(datagrams: &mut Datagrams, holder: &Holder, uid: u32, netns: u32) -> bool {
    let Ok(socket) = sys::descriptor_of(holder.pid, holder.fd) else {
        return false;
    };
    let known = datagrams.socket(&socket).unwrap_or_default();
    if known.owner.origin != socket_origin::UNKNOWN {
        return true;
    }
    let owner = SocketOwner {
        cgroup: holder.cgroup,
        pid: holder.pid,
        uid,
        comm: processes::comm(holder.pid),
        netns,
        origin: socket_origin::ADOPTED,
    };
    let state = DatagramSocket { owner, ..known };
    datagrams.adopt(&socket, state).is_ok()
}

/// A socket's user and inode in a line of `/proc/net/udp`.
fn listed(line: &str) -> Option<(u32, u32)> {
    let mut words = line.split_ascii_whitespace().skip(7);
    let uid = words.next()?.parse().ok()?;
    Some((uid, words.nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_inode() {
        let text = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                     401: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 12345 2 0000000000000000 0\n";
        assert_eq!(
            text.lines().filter_map(listed).collect::<Vec<_>>(),
            [(101, 12_345)]
        );
    }
}
