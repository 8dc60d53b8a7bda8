//! A socket's life: which callback means what, and what is remembered between them.

use aya_ebpf::Global;
use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_TCP_LISTEN_CB,
};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::programs::{SockContext, SockOpsContext};
use weft_agent_common::{Connection, Listener, SocketState, counter, kind, phase, role};

use crate::maps::{LISTENERS, SOCKETS, count};
use crate::record::{self, Counters, Tuple, Written};
use crate::{CURRENT_IN_SOCK_OPS, Skip, UPDATE_INTERVAL_NS, owner, places};

/// `IPPROTO_TCP`.
const TCP: u32 = 6;
/// `SOCK_STREAM`.
const STREAM: u32 = 1;
/// The SYN flag of a segment.
const SYN: u32 = 0x02;
/// `TCP_LISTEN` of the kernel's TCP states.
const LISTEN: u32 = 10;
/// Whether the kernel completes every simultaneous open with an ACK (before 6.10), and hides what it answers.
#[unsafe(no_mangle)]
static SYN_MET_IS_HIDDEN: Global<u8> = Global::new(0);
/// Segments that complete an open in which only the other's SYN arrived: that SYN, and the ACK of our answer.
const SEGMENTS_OF_CROSSED_OPEN: u32 = 2;
/// `TCP_ESTABLISHED` of the kernel's TCP states.
const ESTABLISHED: u32 = 1;
/// A socket of which nothing is known.
pub const EMPTY: SocketState = SocketState {
    opened_ns: 0,
    next_update_ns: 0,
    cgroup: 0,
    pid: 0,
    uid: 0,
    comm: [0; 16],
    netns: 0,
    generation: 0,
    role: 0,
    phase: phase::IDLE,
};
/// `TCP_CLOSE` of the kernel's TCP states.
const CLOSE: u32 = 7;

/// A socket was created: remember by whom.
#[inline(always)]
pub fn created(ctx: &SockContext) -> Result<(), Skip> {
    // SAFETY: the verifier checks every access to the context.
    let (sort, protocol) = unsafe { ((*ctx.sock).type_, (*ctx.sock).protocol) };
    if sort != STREAM || protocol != TCP {
        return Err(Skip::NotOurs);
    }
    owner::write(storage(ctx.sock.cast(), true)?);
    Ok(())
}

/// One of TCP's callbacks.
#[inline(always)]
pub fn event<const PLACED: bool>(ctx: &SockOpsContext) -> Result<(), Skip> {
    match ctx.op() {
        BPF_SOCK_OPS_RTT_CB => measured::<PLACED>(ctx),
        BPF_SOCK_OPS_STATE_CB => changed::<PLACED>(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established::<PLACED>(ctx, role::CLIENT),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established::<PLACED>(ctx, role::SERVER),
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting::<PLACED>(ctx),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(ctx),
        _ => Err(Skip::NotOurs),
    }
}

/// The first SYN is about to leave. The process is the one that connects, which may not be the socket's creator.
#[inline(always)]
fn connecting<const PLACED: bool>(ctx: &SockOpsContext) -> Result<(), Skip> {
    let sk = record::socket(ctx)?;
    let mut state = match storage(sk, false) {
        Ok(known) => *known,
        Err(_) => EMPTY,
    };
    describe(sk, &mut state);
    state.phase = phase::CONNECTING;
    state.role = role::CLIENT;
    state.opened_ns = now();
    let kept = places::keep::<PLACED>(record::cookie(ctx), state.generation)
        .inspect_err(|_| count(counter::NO_STORAGE))?;
    start(ctx, kept.connection, &state);
    call_me(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
    Ok(())
}

/// What does not change from here on.
#[inline(always)]
fn start(ctx: &SockOpsContext, connection: &mut Connection, state: &SocketState) {
    let tuple = Tuple::read(ctx.ops);
    connection.local = tuple.local;
    connection.remote = tuple.remote;
    connection.local_port = tuple.local_port;
    connection.remote_port = tuple.remote_port;
    connection.isn_local = 0;
    connection.isn_remote = 0;
    connection.state = *state;
}

/// Asks for callbacks; what other programs asked for stays.
#[inline(always)]
fn call_me(ctx: &SockOpsContext, flags: u32) {
    // SAFETY: the verifier checks every access to the context.
    let present = unsafe { (*ctx.ops).bpf_sock_ops_cb_flags };
    let _ = ctx.set_cb_flags((present | flags) as i32);
}

/// Accepted connections will start with what is written here.
#[inline(always)]
fn listening(ctx: &SockOpsContext) -> Result<(), Skip> {
    let sk = record::socket(ctx)?;
    if CURRENT_IN_SOCK_OPS.load() == 0 {
        describe(sk, storage(sk, true)?);
        return Ok(());
    }
    let mut listener = Listener {
        cookie: record::cookie(ctx),
        state: EMPTY,
    };
    describe(sk, &mut listener.state);
    let key = record::listener_key(ctx, listener.state.netns);
    call_me(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
    if LISTENERS
        .insert(key, listener, u64::from(BPF_NOEXIST))
        .is_err()
    {
        *storage(sk, true)? = listener.state;
    }
    Ok(())
}

/// What a newly accepted socket starts with: its listener's own copy, or the entry of where it listens.
#[inline(always)]
fn accepted(ctx: &SockOpsContext, sk: *mut core::ffi::c_void) -> SocketState {
    if let Ok(inherited) = storage(sk, false) {
        return *inherited;
    }
    let mut key = record::listener_key(ctx, record::netns(sk));
    // SAFETY: entries are replaced, never changed in place.
    if let Some(listener) = unsafe { LISTENERS.get(&key) } {
        return listener.state;
    }
    key.address = [0; 16];
    // SAFETY: as above.
    match unsafe { LISTENERS.get(&key) } {
        Some(listener) => listener.state,
        None => EMPTY,
    }
}

/// Established. `side` is what the kernel calls it: an end whose SYN met the other's is told it was passive, and is
/// recognised by its SYN's having been acknowledged. If the other end met ours too, it answered with SYN and ACK; if it did
/// not, it took our answer for that of a server, and sent an ACK. Kernels before 6.10 refuse the other's SYN and ACK with
/// an ACK, and the other's refusal of ours completes: there the segment that was refused is counted, and that tells.
#[inline(always)]
fn established<const PLACED: bool>(ctx: &SockOpsContext, side: u8) -> Result<(), Skip> {
    let sk = record::socket(ctx)?;
    let cookie = record::cookie(ctx);
    let time = now();
    // SAFETY: the verifier checks every access to the context.
    let (flags, segments, sent_syn) = unsafe {
        (
            (*ctx.ops).skb_tcp_flags,
            (*ctx.ops).segs_in,
            (*ctx.ops).bytes_acked != 0,
        )
    };
    let refused = SYN_MET_IS_HIDDEN.load() != 0 && segments > SEGMENTS_OF_CROSSED_OPEN;
    let met = flags & SYN != 0 || refused;
    let called = side == role::CLIENT || sent_syn;
    let known = if called {
        places::find::<PLACED>(cookie)
    } else {
        Err(Skip::NoState)
    };
    let kept = match known {
        Ok(kept) => kept,
        Err(_) => {
            let kept = places::keep::<PLACED>(cookie, 0).inspect_err(|_| {
                // One that called was counted at its SYN, unless the hooks came after that.
                if !called {
                    count(counter::NO_STORAGE);
                }
            })?;
            start(ctx, kept.connection, &accepted(ctx, sk));
            kept
        }
    };
    let role = match (side, sent_syn) {
        (role::SERVER, true) if met => role::SIMULTANEOUS,
        (role::SERVER, true) => role::CROSSED,
        _ => side,
    };
    let (isn_local, isn_remote) = record::initial_sequence_numbers(ctx, role == role::SERVER);
    let connection = &mut *kept.connection;
    connection.isn_local = isn_local;
    connection.isn_remote = isn_remote;
    connection.state.role = role;
    connection.state.opened_ns = time;
    connection.state.next_update_ns = time.wrapping_add(UPDATE_INTERVAL_NS.load());
    connection.state.phase = phase::ESTABLISHED;
    call_me(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG);
    if kept.has_place() {
        return Ok(());
    }
    // SAFETY: the verifier checks every access to the context.
    let tcp_state = unsafe { (*ctx.ops).state };
    let counters = Counters::read(ctx, sk, role == role::SERVER, tcp_state);
    record::write(ctx, kept.connection, cookie, kind::OPEN, time, counters).map(Written::submit)
}

/// A round-trip time was measured: the moment to say how a connection that stays open is doing.
#[inline(always)]
fn measured<const PLACED: bool>(ctx: &SockOpsContext) -> Result<(), Skip> {
    // SAFETY: the verifier checks every access to the context.
    let tcp_state = unsafe { (*ctx.ops).state };
    if tcp_state != ESTABLISHED {
        return Err(Skip::NotOurs);
    }
    let cookie = record::cookie(ctx);
    let connection = places::find::<PLACED>(cookie)?.connection;
    let time = now();
    let state = &mut connection.state;
    if time < state.next_update_ns || state.phase != phase::ESTABLISHED {
        return Err(Skip::NotOurs);
    }
    state.next_update_ns = time.wrapping_add(UPDATE_INTERVAL_NS.load());
    let sk = record::socket(ctx)?;
    let counters = Counters::read(ctx, sk, state.role == role::SERVER, tcp_state);
    record::write(ctx, connection, cookie, kind::UPDATE, time, counters).map(Written::submit)
}

/// The TCP state changed; only the end matters.
#[inline(always)]
fn changed<const PLACED: bool>(ctx: &SockOpsContext) -> Result<(), Skip> {
    let (old, new) = (ctx.arg(0), ctx.arg(1));
    if new != CLOSE {
        return Err(Skip::NotOurs);
    }
    let sk = record::socket(ctx)?;
    let cookie = record::cookie(ctx);
    if old == LISTEN {
        return unlisten(ctx, sk, cookie);
    }
    let kept = places::find::<PLACED>(cookie)?;
    let state = kept.connection.state;
    let kind = if state.phase == phase::CONNECTING {
        kind::FAILED
    } else {
        kind::CLOSE
    };
    let counters = Counters::read(ctx, sk, state.role == role::SERVER, old);
    if kind == kind::FAILED || !counters.orphan {
        // The process has the socket still, and may connect it again: the next connection is another one.
        if let Ok(again) = storage(sk, true) {
            *again = state;
            again.phase = phase::DONE;
            again.generation = state.generation.wrapping_add(1);
        }
    }
    let written = record::write(ctx, kept.connection, cookie, kind, now(), counters);
    // In this order: whoever reads of the end does not find the connection kept.
    kept.release(cookie);
    written.map(Written::submit)
}

/// A listener is gone, and its entry with it, if it is its own.
#[inline(always)]
fn unlisten(ctx: &SockOpsContext, sk: *mut core::ffi::c_void, cookie: u64) -> Result<(), Skip> {
    let key = record::listener_key(ctx, record::netns(sk));
    // SAFETY: entries are replaced, never changed in place.
    match unsafe { LISTENERS.get(&key) } {
        Some(listener) if listener.cookie == cookie => {
            LISTENERS.remove(key).map_err(|_| Skip::NoState)
        }
        _ => Err(Skip::NoState),
    }
}

/// The facts about a socket that only a system call's context, or BTF, can tell.
#[inline(always)]
fn describe(sk: *mut core::ffi::c_void, state: &mut SocketState) {
    if CURRENT_IN_SOCK_OPS.load() != 0 {
        owner::write(state);
    }
    state.netns = record::netns(sk);
}

/// A socket's state; made when `create` says so and there is none.
#[inline(always)]
fn storage(sk: *mut core::ffi::c_void, create: bool) -> Result<&'static mut SocketState, Skip> {
    let flags = if create {
        u64::from(BPF_SK_STORAGE_GET_F_CREATE)
    } else {
        0
    };
    // SAFETY: the helper checks the map and the socket; its pointer stays valid until the program returns.
    let state = unsafe { bpf_sk_storage_get(SOCKETS.as_ptr(), sk, core::ptr::null_mut(), flags) };
    // SAFETY: as above; the storage holds a `SocketState`, which the kernel zeroes when it makes it.
    match unsafe { state.cast::<SocketState>().as_mut() } {
        Some(state) => Ok(state),
        None => {
            if create {
                count(counter::NO_STORAGE);
            }
            Err(Skip::NoState)
        }
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing and returns a number.
    unsafe { bpf_ktime_get_ns() }
}
