//! Whose socket it is.

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_uid_gid,
};
use weft_agent_common::SocketState;

/// Writes the current process into a socket's state. Call it in a system call's context only.
#[inline(always)]
pub fn write(state: &mut SocketState) {
    state.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    state.uid = bpf_get_current_uid_gid() as u32;
    // SAFETY: the helper takes nothing and returns a number.
    state.cgroup = unsafe { bpf_get_current_cgroup_id() };
    if let Ok(comm) = bpf_get_current_comm() {
        state.comm = comm;
    }
}
