//! Whose socket it is.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel};
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_uid_gid,
};
use core::ffi::c_void;
use core::mem::MaybeUninit;
use weft_agent_common::{COMM_LEN, SocketState};

use crate::{OFFSET_TASK_COMM, OFFSET_TASK_LEADER};

/// Writes the current process into a socket's state. Call it in a system call's context only.
#[inline(always)]
pub fn write(state: &mut SocketState) {
    state.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    state.uid = bpf_get_current_uid_gid() as u32;
    // SAFETY: the helper takes nothing and returns a number.
    state.cgroup = unsafe { bpf_get_current_cgroup_id() };
    write_name(&mut state.comm);
}

/// Writes the current process's name: its first thread's. Threads have names of their own, which say little of the program;
/// without BTF it is the thread's.
#[inline(always)]
pub fn write_name(comm: &mut [u8; COMM_LEN]) {
    if OFFSET_TASK_LEADER.load() != 0 {
        // SAFETY: the helper takes nothing; what it returns is only read through `read`.
        let task = unsafe { bpf_get_current_task() };
        if let Some(name) = leader_name(task) {
            *comm = name;
            return;
        }
    }
    if let Ok(name) = bpf_get_current_comm() {
        *comm = name;
    }
}

/// The name of a task's first thread; the task must be a kernel address.
#[inline(always)]
pub fn leader_name(task: u64) -> Option<[u8; COMM_LEN]> {
    let leader: u64 = read(task.wrapping_add(u64::from(OFFSET_TASK_LEADER.load())))?;
    read(leader.wrapping_add(u64::from(OFFSET_TASK_COMM.load())))
}

/// A value at a kernel address; `None` where there is nothing.
#[inline(always)]
pub fn read<T: Copy>(from: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address and fills the whole value or fails.
    unsafe {
        let failed = bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            from as *const c_void,
        );
        (failed == 0).then(|| value.assume_init())
    }
}
