//! Records of the call hooks: who uses a socket, and processes that come and go.
//!
//! The call hooks live as long as the agent, not longer, so these layouts have no version of their own.

use core::mem::{offset_of, size_of};

use crate::COMM_LEN;

/// Most bytes of a socket's first use each way.
pub const FIRST_BYTES: usize = 256;
/// Most bytes of an executable's path.
pub const EXECUTABLE_BYTES: usize = 256;
/// Most bytes of a process's arguments.
pub const ARGUMENT_BYTES: usize = 512;

/// What a record reports: its first byte.
pub mod call_kind {
    /// A process accepted a connection: [`super::SocketCall`].
    pub const ACCEPTED: u8 = 1;
    /// A process sends on a connection for the first time: [`super::SocketCall`].
    pub const SENT: u8 = 2;
    /// A process received on a connection for the first time: [`super::SocketCall`].
    pub const RECEIVED: u8 = 3;
    /// A process runs a program: [`super::ProcessCall`].
    pub const EXECUTED: u8 = 4;
    /// A process is gone: [`super::ProcessCall`].
    pub const EXITED: u8 = 5;
}

/// Slots of the call hooks' per-CPU counters.
pub mod call_counter {
    /// Records lost because the ring was full.
    pub const RING_FULL: u32 = 0;
    /// Uses of a socket that were not remembered, because the kernel had no memory.
    pub const NO_MEMORY: u32 = 1;
    /// Number of slots.
    pub const SLOTS: u32 = 2;
}

/// Indices into the table of facts about the running kernel, which the agent takes from its BTF.
pub mod call_fact {
    /// Offset of `sock_common.skc_cookie`.
    pub const SKC_COOKIE: usize = 0;
    /// Offset of `msghdr.msg_iter`.
    pub const MSG_ITER: usize = 1;
    /// Offset of `iov_iter.iter_type`, or of `iov_iter.type` before 5.14.
    pub const ITER_TYPE: usize = 2;
    /// Which of that byte's bits are the type.
    pub const ITER_TYPE_MASK: usize = 3;
    /// Value of `ITER_IOVEC`.
    pub const ITER_IOVEC: usize = 4;
    /// Value of `ITER_UBUF`; where there is none (before 6.0), one that no type has.
    pub const ITER_UBUF: usize = 5;
    /// Offset of `iov_iter.__iov`, or of `iov_iter.iov` before 6.4.
    pub const ITER_VECTOR: usize = 6;
    /// Offset of `iov_iter.ubuf`.
    pub const ITER_BUFFER: usize = 7;
    /// Offset of `task_struct.group_leader`.
    pub const TASK_LEADER: usize = 8;
    /// Offset of `task_struct.start_boottime`.
    pub const TASK_STARTED: usize = 9;
    /// Offset of `task_struct.real_parent`.
    pub const TASK_PARENT: usize = 10;
    /// Offset of `task_struct.tgid`.
    pub const TASK_TGID: usize = 11;
    /// Offset of `task_struct.pid`.
    pub const TASK_PID: usize = 12;
    /// Offset of `task_struct.comm`.
    pub const TASK_COMM: usize = 13;
    /// Offset of `task_struct.mm`.
    pub const TASK_MEMORY: usize = 14;
    /// Offset of `task_struct.exit_code`.
    pub const TASK_EXIT_CODE: usize = 15;
    /// Offset of `mm_struct.arg_start`.
    pub const ARGUMENTS_START: usize = 16;
    /// Offset of `mm_struct.arg_end`.
    pub const ARGUMENTS_END: usize = 17;
    /// Offset of `linux_binprm.filename`.
    pub const PROGRAM_NAME: usize = 18;
    /// Number of parameters of `inet_csk_accept`: where the trampoline puts the result.
    pub const ACCEPT_PARAMETERS: usize = 19;
    /// Number of parameters of `tcp_recvmsg`.
    pub const RECEIVE_PARAMETERS: usize = 20;
    /// Number of facts.
    pub const COUNT: usize = 21;
}

/// A process and a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketCall {
    /// One of [`call_kind`].
    pub kind: u8,
    /// Always 0.
    pub zero: u8,
    /// How many of [`SocketCall::first`] are there.
    pub length: u16,
    /// Process (thread group).
    pub pid: u32,
    /// Kernel socket cookie.
    pub cookie: u64,
    /// Monotonic time.
    pub at_ns: u64,
    /// When the process started, in nanoseconds since boot, sleep included.
    pub started_ns: u64,
    /// cgroup v2 id of the process.
    pub cgroup: u64,
    /// Its user.
    pub uid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its name, NUL-padded.
    pub comm: [u8; COMM_LEN],
    /// The first bytes that it sent or received; after [`SocketCall::length`] there may be anything.
    pub first: [u8; FIRST_BYTES],
}

/// A process that begins or ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessCall {
    /// One of [`call_kind`].
    pub kind: u8,
    /// Always 0.
    pub zero: u8,
    /// How many of [`ProcessCall::executable`] are there.
    pub executable_length: u16,
    /// Process (thread group).
    pub pid: u32,
    /// Monotonic time.
    pub at_ns: u64,
    /// When the process started, in nanoseconds since boot, sleep included.
    pub started_ns: u64,
    /// cgroup v2 id of the process.
    pub cgroup: u64,
    /// Its user.
    pub uid: u32,
    /// Its parent.
    pub parent: u32,
    /// What it ended with, as `wait` would say; 0 when it begins.
    pub exit_code: u32,
    /// How many of [`ProcessCall::arguments`] are there.
    pub arguments_length: u16,
    /// Always 0.
    pub zeros: u16,
    /// Its name, NUL-padded.
    pub comm: [u8; COMM_LEN],
    /// Its parent's name, NUL-padded.
    pub parent_comm: [u8; COMM_LEN],
    /// The program as it was asked for; after its length there may be anything.
    pub executable: [u8; EXECUTABLE_BYTES],
    /// The arguments, each ended by NUL; after their length there may be anything.
    pub arguments: [u8; ARGUMENT_BYTES],
}

const _: () = {
    assert!(size_of::<SocketCall>() == 64 + FIRST_BYTES);
    assert!(offset_of!(SocketCall, first) == 64);
    assert!(size_of::<ProcessCall>() == 80 + EXECUTABLE_BYTES + ARGUMENT_BYTES);
    assert!(offset_of!(ProcessCall, executable) == 80);
};
