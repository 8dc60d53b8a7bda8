//! Whose a UDP socket is: the process that made it, then the one that really sends.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel};
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
};
use core::ffi::c_void;
use weft_agent_common::{SocketOwner, socket_origin};

use crate::owner::{leader_name, read, write_name};
use crate::{
    CURRENT_IN_SKB, OFFSET_CRED_UID, OFFSET_NET_INUM, OFFSET_SKC_NET, OFFSET_TASK_CRED,
    OFFSET_TASK_TGID,
};

/// Values of [`CURRENT_IN_SKB`]: the helpers of the current process may be called.
const HELPERS: u8 = 1;
/// The task's own fields are read.
const TASK: u8 = 2;
/// Bytes of a socket's beginning that are read for its namespace.
const SOCK_HEAD: usize = 64;

/// Writes the current process, in a hook that may ask for it.
#[inline(always)]
pub fn write_current(owner: &mut SocketOwner) {
    owner.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    owner.uid = bpf_get_current_uid_gid() as u32;
    // SAFETY: the helper takes nothing and returns a number.
    owner.cgroup = unsafe { bpf_get_current_cgroup_id() };
    write_name(&mut owner.comm);
}

/// Writes the process that is sending. UDP leaves in the system call of its sender; sockets of the kernel's own do not, and
/// they are never of a known origin.
#[inline(always)]
pub fn write_sender(owner: &mut SocketOwner) {
    if owner.origin == socket_origin::UNKNOWN {
        return;
    }
    if CURRENT_IN_SKB.load() == HELPERS {
        write_current(owner);
    } else if CURRENT_IN_SKB.load() == TASK {
        write_task(owner);
    }
}

#[inline(always)]
fn write_task(owner: &mut SocketOwner) {
    // SAFETY: the helper takes nothing; what it returns is only read through `read`.
    let task = unsafe { bpf_get_current_task() };
    let Some(pid) = read::<u32>(task.wrapping_add(u64::from(OFFSET_TASK_TGID.load()))) else {
        return;
    };
    if pid != owner.pid {
        // Of another process's cgroup nothing is known here; the agent reads it from the process.
        owner.cgroup = 0;
    }
    owner.pid = pid;
    if let Some(comm) = leader_name(task) {
        owner.comm = comm;
    }
    let cred = read::<u64>(task.wrapping_add(u64::from(OFFSET_TASK_CRED.load())));
    let uid = cred.and_then(|cred| read(cred.wrapping_add(u64::from(OFFSET_CRED_UID.load()))));
    if let Some(uid) = uid {
        owner.uid = uid;
    }
}

/// Inode of a socket's network namespace; 0 without BTF.
#[inline(always)]
pub fn netns(sk: *mut c_void) -> u32 {
    let offset = OFFSET_SKC_NET.load() as usize;
    if offset == 0 || offset > SOCK_HEAD - 8 {
        return 0;
    }
    // The verifier lets nobody add to a socket's pointer, so its beginning is read whole.
    let mut head = [0_u64; SOCK_HEAD / 8];
    // SAFETY: the helper checks every address; the buffer has this size.
    if unsafe { bpf_probe_read_kernel(head.as_mut_ptr().cast(), SOCK_HEAD as u32, sk) } != 0 {
        return 0;
    }
    let net = head[offset / 8];
    read(net.wrapping_add(u64::from(OFFSET_NET_INUM.load()))).unwrap_or_default()
}
