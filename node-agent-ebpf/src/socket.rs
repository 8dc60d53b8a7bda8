//! A socket's life: which callback means what, and what is remembered between them.

use aya_ebpf::bindings::{
    BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB,
};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::programs::{SockContext, SockOpsContext};
use weft_agent_common::{SocketState, counter, kind, phase, role};

use crate::maps::{SOCKETS, count};
use crate::record::{self, Counters};
use crate::{CURRENT_IN_SOCK_OPS, Skip, UPDATE_INTERVAL_NS, owner};

/// `IPPROTO_TCP`.
const TCP: u32 = 6;
/// `SOCK_STREAM`.
const STREAM: u32 = 1;
/// The SYN flag of a segment.
const SYN: u32 = 0x02;
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
pub fn event(ctx: &SockOpsContext) -> Result<(), Skip> {
    match ctx.op() {
        BPF_SOCK_OPS_RTT_CB => measured(ctx),
        BPF_SOCK_OPS_STATE_CB => changed(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx, role::CLIENT),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established(ctx, role::SERVER),
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(ctx),
        _ => Err(Skip::NotOurs),
    }
}

/// The first SYN is about to leave. The process is the one that connects, which may not be the socket's creator.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) -> Result<(), Skip> {
    let sk = record::socket(ctx)?;
    let state = storage(sk, true)?;
    describe(sk, state);
    if state.phase != phase::IDLE {
        state.generation = state.generation.wrapping_add(1);
    }
    state.phase = phase::CONNECTING;
    state.role = role::CLIENT;
    state.opened_ns = now();
    let _ = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    Ok(())
}

/// Accepted connections will start with what is written here.
#[inline(always)]
fn listening(ctx: &SockOpsContext) -> Result<(), Skip> {
    let sk = record::socket(ctx)?;
    let state = storage(sk, true)?;
    describe(sk, state);
    state.phase = phase::IDLE;
    Ok(())
}

/// Established. `side` is what the kernel calls it: an end whose SYN met the other's is told it was passive, and is
/// recognised by having sent a SYN of its own. If the other end met ours too, it answered with SYN and ACK; if it did
/// not, it took our answer for that of a server, and sent an ACK. (Kernels before 6.10 complete both cases with an ACK.)
#[inline(always)]
fn established(ctx: &SockOpsContext, side: u8) -> Result<(), Skip> {
    let sk = record::socket(ctx)?;
    let state = storage(sk, true)?;
    let time = now();
    if side == role::SERVER && state.phase == phase::CONNECTING {
        // SAFETY: the verifier checks every access to the context.
        let met = unsafe { (*ctx.ops).skb_tcp_flags } & SYN != 0;
        state.role = if met { role::SIMULTANEOUS } else { role::CROSSED };
    } else {
        state.role = side;
    }
    state.phase = phase::ESTABLISHED;
    state.opened_ns = time;
    state.next_update_ns = time.wrapping_add(UPDATE_INTERVAL_NS.load());
    let _ = ctx.set_cb_flags((BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG) as i32);
    // SAFETY: the verifier checks every access to the context.
    let tcp_state = unsafe { (*ctx.ops).state };
    record::emit(ctx, state, kind::OPEN, time, Counters::read(ctx, sk, state, tcp_state))
}

/// A round-trip time was measured: the moment to say how a connection that stays open is doing.
#[inline(always)]
fn measured(ctx: &SockOpsContext) -> Result<(), Skip> {
    let sk = record::socket(ctx)?;
    let state = storage(sk, false)?;
    let time = now();
    if time < state.next_update_ns || state.phase != phase::ESTABLISHED {
        return Err(Skip::NotOurs);
    }
    state.next_update_ns = time.wrapping_add(UPDATE_INTERVAL_NS.load());
    // SAFETY: the verifier checks every access to the context.
    let tcp_state = unsafe { (*ctx.ops).state };
    record::emit(ctx, state, kind::UPDATE, time, Counters::read(ctx, sk, state, tcp_state))
}

/// The TCP state changed; only the end matters.
#[inline(always)]
fn changed(ctx: &SockOpsContext) -> Result<(), Skip> {
    let (old, new) = (ctx.arg(0), ctx.arg(1));
    if new != CLOSE {
        return Err(Skip::NotOurs);
    }
    let sk = record::socket(ctx)?;
    let state = storage(sk, false)?;
    let kind = match state.phase {
        phase::CONNECTING => kind::FAILED,
        phase::ESTABLISHED => kind::CLOSE,
        _ => return Err(Skip::NotOurs),
    };
    state.phase = phase::DONE;
    let counters = Counters::read(ctx, sk, state, old);
    record::emit(ctx, state, kind, now(), counters)
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
    let flags = if create { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
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
