//! The call hooks: which process really accepts, sends and receives, and processes that come and go.
//!
//! An object of its own, beside the socket hooks': where a kernel has no kprobes or trampolines, this one is not loaded
//! and the other is none the worse. Each hook is there twice, as trampoline (`fentry`, `fexit`) and as `kprobe`; both
//! only translate into the same functions. Kernel memory is read at offsets that the agent found in the kernel's BTF.
//!
//! TCP's own functions are hooked, not those of the socket layer above: since 6.6 the system calls go round `sock_sendmsg`
//! and `sock_recvmsg`, while every TCP byte passes `tcp_sendmsg` and `tcp_recvmsg` on all kernels, and nothing else does.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_ANY, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user,
};
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_task, bpf_get_current_uid_gid, bpf_ktime_get_ns,
};
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe, map, raw_tracepoint};
use aya_ebpf::maps::{LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::{
    FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext,
};
use core::arch::asm;
use core::hint::black_box;
use core::mem::MaybeUninit;
use core::ptr::{addr_of_mut, read_volatile};
use weft_agent_common::COMM_LEN;
use weft_agent_common::calls::{
    ARGUMENT_BYTES, EXECUTABLE_BYTES, FIRST_BYTES, ProcessCall, SocketCall, call_counter,
    call_fact, call_kind,
};

/// Facts about the running kernel, by [`call_fact`].
#[unsafe(no_mangle)]
static FACTS: Facts = Facts([0; call_fact::COUNT]);

/// Default size of the ring; the agent's configuration overrides it when it makes the map.
const RING_BYTES: u32 = 4 << 20;
/// Pairs of a socket and a process that are remembered; beyond it the longest unused is forgotten, and that process's
/// next use of that socket is recorded again.
const USERS_LEN: u32 = 65_536;
/// Calls of `tcp_recvmsg` under way; beyond it the oldest is forgotten, and not recorded.
const RECEIVING_LEN: u32 = 8_192;

/// Records for the agent. Full: the new record is dropped and counted.
#[map]
static CALLS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Counters by [`call_counter`].
#[map]
static CALL_DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(call_counter::SLOTS, 0);

/// Which processes use a socket, and in which ways that is known already.
#[map]
static USERS: LruHashMap<User, u8> = LruHashMap::with_max_entries(USERS_LEN, 0);

/// Receiving threads, and where they want their bytes.
#[map]
static RECEIVING: LruHashMap<u64, Receiving> = LruHashMap::with_max_entries(RECEIVING_LEN, 0);

/// A process that uses a socket.
#[repr(C)]
#[derive(Clone, Copy)]
struct User {
    cookie: u64,
    pid: u32,
    zero: u32,
}

/// A call of `tcp_recvmsg` under way.
#[repr(C)]
#[derive(Clone, Copy)]
struct Receiving {
    cookie: u64,
    buffer: u64,
    length: u64,
}

/// Why there is no record. Nothing reads it but the verifier and a person: what matters is counted.
#[derive(Clone, Copy)]
enum Skip {
    /// Not one of ours: the socket has no cookie, so the socket hooks do not follow it.
    NotOurs,
    /// Nothing new.
    Known,
    /// Kernel memory could not be read.
    Unreadable,
    /// The ring is full (counted).
    RingFull,
}

// ---- entry points ----

/// `struct sock *inet_csk_accept(…)`.
#[fexit]
pub fn weft_accept(ctx: FExitContext) -> i32 {
    // The number of parameters changed in 6.10. The verifier knows the fact as a constant and looks at one branch only.
    let sk = match fact(call_fact::ACCEPT_PARAMETERS) {
        4 => slot::<4>(&ctx),
        _ => slot::<2>(&ctx),
    };
    let _ = accepted(sk);
    0
}

#[kretprobe]
pub fn weft_accept_probe(ctx: RetProbeContext) -> u32 {
    let _ = accepted(ctx.ret());
    0
}

/// `int tcp_sendmsg(struct sock *, struct msghdr *, size_t)`.
#[fentry]
pub fn weft_send(ctx: FEntryContext) -> i32 {
    let _ = sending(ctx.arg(0), ctx.arg(1));
    0
}

#[kprobe]
pub fn weft_send_probe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(message)) = (ctx.arg(0), ctx.arg(1)) {
        let _ = sending(sk, message);
    }
    0
}

/// `int tcp_recvmsg(struct sock *, struct msghdr *, …)`.
#[fentry]
pub fn weft_receive(ctx: FEntryContext) -> i32 {
    let _ = receiving(ctx.arg(0), ctx.arg(1));
    0
}

#[kprobe]
pub fn weft_receive_probe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(message)) = (ctx.arg(0), ctx.arg(1)) {
        let _ = receiving(sk, message);
    }
    0
}

/// The same, with its result. The number of parameters changed in 5.19 and again after 6.12.
#[fexit]
pub fn weft_received(ctx: FExitContext) -> i32 {
    let result = match fact(call_fact::RECEIVE_PARAMETERS) {
        6 => slot::<6>(&ctx),
        5 => slot::<5>(&ctx),
        _ => slot::<4>(&ctx),
    };
    let _ = received(result as i32);
    0
}

#[kretprobe]
pub fn weft_received_probe(ctx: RetProbeContext) -> u32 {
    let _ = received(ctx.ret::<u64>() as i32);
    0
}

/// `sched_process_exec(struct task_struct *, pid_t, struct linux_binprm *)`.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn weft_exec(ctx: RawTracePointContext) -> i32 {
    let _ = executed(word(&ctx, 0), word(&ctx, 2));
    0
}

/// `sched_process_exit(struct task_struct *, …)`.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn weft_exit(ctx: RawTracePointContext) -> i32 {
    let _ = exited(word(&ctx, 0));
    0
}

/// The slot of a trampoline's context that the result is in. In assembler: of branches that read different slots the
/// compiler makes one read at a variable offset, and the verifier allows no such thing on a context.
#[inline(always)]
fn slot<const INDEX: i32>(ctx: &FExitContext) -> u64 {
    let value: u64;
    // SAFETY: a read of the context, which the verifier checks.
    unsafe {
        asm!("{0} = *(u64 *)({1} + {2})", out(reg) value, in(reg) ctx.as_ptr(), const INDEX * 8);
    }
    value
}

#[inline(always)]
fn word(ctx: &RawTracePointContext, index: usize) -> u64 {
    // SAFETY: the verifier checks every access to the context.
    unsafe { *ctx.as_ptr().cast::<u64>().add(index) }
}

// ---- sockets ----

/// The process has a new connection.
#[inline(always)]
fn accepted(sk: u64) -> Result<(), Skip> {
    if sk == 0 {
        return Err(Skip::NotOurs);
    }
    emit(call_kind::ACCEPTED, cookie(sk)?, 0, 0)
}

/// The process is about to send: its bytes are there.
#[inline(always)]
fn sending(sk: u64, message: u64) -> Result<(), Skip> {
    let cookie = cookie(sk)?;
    first_use(cookie, call_kind::SENT)?;
    let (buffer, length) = buffer(message).unwrap_or((0, 0));
    emit(call_kind::SENT, cookie, buffer, length)
}

/// The process is about to receive: where the bytes go must be remembered until they are there.
#[inline(always)]
fn receiving(sk: u64, message: u64) -> Result<(), Skip> {
    let cookie = cookie(sk)?;
    if known(&user(cookie), call_kind::RECEIVED) {
        return Err(Skip::Known);
    }
    let (buffer, length) = buffer(message).unwrap_or((0, 0));
    let call = Receiving {
        cookie,
        buffer,
        length,
    };
    RECEIVING
        .insert(&bpf_get_current_pid_tgid(), &call, u64::from(BPF_ANY))
        .map_err(|_| {
            count(call_counter::NO_MEMORY);
            Skip::Unreadable
        })
}

/// Received, or not.
#[inline(always)]
fn received(result: i32) -> Result<(), Skip> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread writes its entry.
    let call = match unsafe { RECEIVING.get(&thread) } {
        Some(call) => *call,
        None => return Err(Skip::Known),
    };
    let _ = RECEIVING.remove(&thread);
    if result <= 0 {
        return Err(Skip::NotOurs);
    }
    first_use(call.cookie, call_kind::RECEIVED)?;
    let length = core::cmp::min(call.length, result as u64);
    emit(call_kind::RECEIVED, call.cookie, call.buffer, length)
}

/// The cookie that the socket hooks gave the socket; they met it first.
#[inline(always)]
fn cookie(sk: u64) -> Result<u64, Skip> {
    match read::<u64>(sk, call_fact::SKC_COOKIE)? {
        0 => Err(Skip::NotOurs),
        cookie => Ok(cookie),
    }
}

#[inline(always)]
fn user(cookie: u64) -> User {
    User {
        cookie,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        zero: 0,
    }
}

#[inline(always)]
fn known(user: &User, way: u8) -> bool {
    // SAFETY: a byte, written whole.
    unsafe { USERS.get(user) }.is_some_and(|ways| ways & 1 << way != 0)
}

/// Remembers that this process uses this socket this way; an error when that was known.
#[inline(always)]
fn first_use(cookie: u64, way: u8) -> Result<(), Skip> {
    let user = user(cookie);
    // SAFETY: a byte, written whole.
    let ways = unsafe { USERS.get(&user) }.copied().unwrap_or(0);
    if ways & 1 << way != 0 {
        return Err(Skip::Known);
    }
    if USERS
        .insert(&user, &(ways | 1 << way), u64::from(BPF_ANY))
        .is_err()
    {
        count(call_counter::NO_MEMORY);
    }
    Ok(())
}

/// The first buffer of a message, if it is a process's memory (it is not when a file or a pipe is sent).
#[inline(always)]
fn buffer(message: u64) -> Result<(u64, u64), Skip> {
    let iterator = message + u64::from(fact(call_fact::MSG_ITER));
    let sort =
        u32::from(read::<u8>(iterator, call_fact::ITER_TYPE)?) & fact(call_fact::ITER_TYPE_MASK);
    if sort == fact(call_fact::ITER_UBUF) {
        // How long it is stands elsewhere on each kernel; what the call returns, or the end of the memory, limits it.
        return Ok((read(iterator, call_fact::ITER_BUFFER)?, FIRST_BYTES as u64));
    }
    if sort != fact(call_fact::ITER_IOVEC) {
        return Err(Skip::NotOurs);
    }
    let vector: u64 = read(iterator, call_fact::ITER_VECTOR)?;
    Ok((read_at(vector)?, read_at(vector + 8)?))
}

#[inline(always)]
fn emit(kind: u8, cookie: u64, buffer: u64, length: u64) -> Result<(), Skip> {
    let Some(mut entry) = CALLS.reserve::<SocketCall>(0) else {
        count(call_counter::RING_FULL);
        return Err(Skip::RingFull);
    };
    let record = entry.as_mut_ptr();
    let task = current();
    // SAFETY: the record is ours until it is submitted, and each field is written before; `bytes` stays within.
    unsafe {
        addr_of_mut!((*record).kind).write(kind);
        addr_of_mut!((*record).zero).write(0);
        addr_of_mut!((*record).pid).write((bpf_get_current_pid_tgid() >> 32) as u32);
        addr_of_mut!((*record).cookie).write(cookie);
        addr_of_mut!((*record).at_ns).write(bpf_ktime_get_ns());
        addr_of_mut!((*record).started_ns).write(started(task));
        addr_of_mut!((*record).cgroup).write(bpf_get_current_cgroup_id());
        addr_of_mut!((*record).uid).write(bpf_get_current_uid_gid() as u32);
        addr_of_mut!((*record).parent).write(parent(task).0);
        addr_of_mut!((*record).comm).write(bpf_get_current_comm().unwrap_or([0; COMM_LEN]));
        let first = addr_of_mut!((*record).first).cast::<u8>();
        let copied = user_bytes::<FIRST_BYTES>(first, buffer, length);
        addr_of_mut!((*record).length).write(copied);
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    Ok(())
}

// ---- processes ----

/// A program runs in a process.
#[inline(always)]
fn executed(task: u64, program: u64) -> Result<(), Skip> {
    let Some(mut entry) = CALLS.reserve::<ProcessCall>(0) else {
        count(call_counter::RING_FULL);
        return Err(Skip::RingFull);
    };
    let record = entry.as_mut_ptr();
    let name: u64 = read(program, call_fact::PROGRAM_NAME).unwrap_or(0);
    let memory: u64 = read(task, call_fact::TASK_MEMORY).unwrap_or(0);
    let from: u64 = read(memory, call_fact::ARGUMENTS_START).unwrap_or(0);
    let to: u64 = read(memory, call_fact::ARGUMENTS_END).unwrap_or(0);
    // SAFETY: the record is ours until it is submitted; `executable` and `arguments` are written within their bounds.
    unsafe {
        describe(record, call_kind::EXECUTED, task);
        let executable = addr_of_mut!((*record).executable);
        let length =
            bpf_probe_read_kernel_str(executable.cast(), EXECUTABLE_BYTES as u32, name as *const _);
        // The final NUL is counted.
        let length = if length > 0 { length as u16 - 1 } else { 0 };
        addr_of_mut!((*record).executable_length).write(length);
        let arguments = addr_of_mut!((*record).arguments).cast::<u8>();
        let length = user_bytes::<ARGUMENT_BYTES>(arguments, from, to.wrapping_sub(from));
        addr_of_mut!((*record).arguments_length).write(length);
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    Ok(())
}

/// A thread ends; the process does with its first.
#[inline(always)]
fn exited(task: u64) -> Result<(), Skip> {
    let pid: u32 = read(task, call_fact::TASK_PID)?;
    if pid != read::<u32>(task, call_fact::TASK_TGID)? {
        return Err(Skip::NotOurs);
    }
    let Some(mut entry) = CALLS.reserve::<ProcessCall>(0) else {
        count(call_counter::RING_FULL);
        return Err(Skip::RingFull);
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted.
    unsafe {
        describe(record, call_kind::EXITED, task);
        let code = read(task, call_fact::TASK_EXIT_CODE).unwrap_or(0);
        addr_of_mut!((*record).exit_code).write(code);
        addr_of_mut!((*record).executable_length).write(0);
        addr_of_mut!((*record).arguments_length).write(0);
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    Ok(())
}

/// What is the same at both ends of a process's life.
///
/// # Safety
/// `record` must be a reserved entry of the ring.
#[inline(always)]
unsafe fn describe(record: *mut ProcessCall, kind: u8, task: u64) {
    let (parent, parent_comm) = parent(task);
    // SAFETY: the caller's.
    unsafe {
        addr_of_mut!((*record).kind).write(kind);
        addr_of_mut!((*record).zero).write(0);
        addr_of_mut!((*record).zeros).write(0);
        addr_of_mut!((*record).pid).write((bpf_get_current_pid_tgid() >> 32) as u32);
        addr_of_mut!((*record).at_ns).write(bpf_ktime_get_ns());
        addr_of_mut!((*record).started_ns).write(started(task));
        addr_of_mut!((*record).cgroup).write(bpf_get_current_cgroup_id());
        addr_of_mut!((*record).uid).write(bpf_get_current_uid_gid() as u32);
        addr_of_mut!((*record).parent).write(parent);
        addr_of_mut!((*record).parent_comm).write(parent_comm);
        addr_of_mut!((*record).exit_code).write(0);
        addr_of_mut!((*record).comm).write(bpf_get_current_comm().unwrap_or([0; COMM_LEN]));
    }
}

#[inline(always)]
fn current() -> u64 {
    // SAFETY: the helper takes nothing and returns the address of a task.
    unsafe { bpf_get_current_task() }
}

/// When a task's process started.
#[inline(always)]
fn started(task: u64) -> u64 {
    let leader: u64 = read(task, call_fact::TASK_LEADER).unwrap_or(0);
    read(leader, call_fact::TASK_STARTED).unwrap_or(0)
}

/// Process id and name of a task's parent.
#[inline(always)]
fn parent(task: u64) -> (u32, [u8; COMM_LEN]) {
    let parent: u64 = read(task, call_fact::TASK_PARENT).unwrap_or(0);
    (
        read(parent, call_fact::TASK_TGID).unwrap_or(0),
        read(parent, call_fact::TASK_COMM).unwrap_or([0; COMM_LEN]),
    )
}

// ---- memory ----

/// Facts are read one by one: copied as a whole they would not fit the stack.
#[repr(transparent)]
struct Facts([u32; call_fact::COUNT]);

/// A fact. The map of read-only data is frozen, so the verifier knows it as a constant.
#[inline(always)]
fn fact(index: usize) -> u32 {
    // SAFETY: within the table; volatile, for the loader writes it.
    unsafe { read_volatile(&raw const FACTS.0[index]) }
}

/// A field of a kernel struct, at the offset that a fact names.
#[inline(always)]
fn read<T: Copy>(from: u64, field: usize) -> Result<T, Skip> {
    read_at(from.wrapping_add(u64::from(fact(field))))
}

#[inline(always)]
fn read_at<T: Copy>(at: u64) -> Result<T, Skip> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address, and fills the value or says that it did not.
    unsafe {
        let size = size_of::<T>() as u32;
        match bpf_probe_read_kernel(value.as_mut_ptr().cast(), size, at as *const _) {
            0 => Ok(value.assume_init()),
            _ => Err(Skip::Unreadable),
        }
    }
}

/// Copies up to `MAX` bytes of the current process's memory, and says how many. Where the memory ends before, as many
/// as there are in its page.
///
/// # Safety
/// There must be room for `MAX` bytes at `to`.
#[inline(always)]
unsafe fn user_bytes<const MAX: usize>(to: *mut u8, from: u64, length: u64) -> u16 {
    if from == 0 || length == 0 {
        return 0;
    }
    let wanted = core::cmp::min(length, MAX as u64) as u32;
    // SAFETY: the helper checks the source; the caller the destination.
    if unsafe { bpf_probe_read_user(to.cast(), wanted, from as *const _) } == 0 {
        return wanted as u16;
    }
    let page_rest = (4096 - (from & 4095)) as u32;
    // The verifier does not learn from a comparison of two variables; the compiler must not know better.
    let wanted = core::cmp::min(black_box(core::cmp::min(wanted, page_rest)), MAX as u32);
    // SAFETY: as above.
    match unsafe { bpf_probe_read_user(to.cast(), wanted, from as *const _) } {
        0 => wanted as u16,
        _ => 0,
    }
}

/// Adds one to a counter.
#[inline(always)]
fn count(slot: u32) {
    if let Some(value) = CALL_DROPS.get_ptr_mut(slot) {
        // SAFETY: a per-CPU slot that only this CPU writes; the map outlives the program.
        unsafe { *value += 1 };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
