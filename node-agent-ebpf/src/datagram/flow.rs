//! A flow's life: counted in the map, shown to the agent at its first datagram each way and at its end.

use aya_ebpf::bindings::{
    __sk_buff, BPF_ANY, BPF_NOEXIST, BPF_RB_AVAIL_DATA, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE,
};
use aya_ebpf::helpers::generated::bpf_ringbuf_query;
use core::arch::asm;
use core::ptr::{addr_of, addr_of_mut, from_ref, read, read_volatile};
use weft_agent_common::{
    DatagramSocket, FlowEnd, FlowFirst, FlowKey, FlowState, SNAP_LEN, datagram_counter, direction,
    flow_kind,
};

use super::headers::{self, Transport};
use super::maps::{FLOWS, count};
use super::{Datagram, NOBODY, is_dns, now, owner, storage};
use crate::maps::RING;
use crate::{DNS_IDLE_NS, FLOW_IDLE_NS, Skip};

/// Counts a datagram.
#[inline(always)]
pub fn datagram(skb: *mut __sk_buff, transport: Transport, way: u8) -> Result<(), Skip> {
    let key = headers::key(skb, transport, way)?;
    let datagram = Datagram::of(skb, transport);
    let dns = is_dns(transport.ports);
    let at_ns = now();
    let mut flags = u64::from(BPF_NOEXIST);
    let mut known = None;
    if let Some(state) = FLOWS.get_ptr_mut(&key) {
        // SAFETY: the entry lives at least until the program returns. Other CPUs may write it too: the counters are
        // added to atomically, and of the rest the last write stands.
        let state = unsafe { &mut *state };
        if is_over(state, at_ns) {
            end(flow_kind::END, 0, &key, state, at_ns);
            flags = u64::from(BPF_ANY);
        } else {
            add(state, &datagram, way);
            state.last_ns = at_ns;
            known = Some(state);
        }
    }
    let state = match known {
        Some(state) => {
            let new = state.seen & way == 0;
            if new {
                state.seen |= way;
                answered(skb, state, way);
            }
            new.then_some(state)
        }
        None => open(skb, &key, &datagram, way, dns, at_ns, flags)?,
    };
    if let Some(state) = state
        && !first(skb, &key, state, &datagram, way, at_ns)
    {
        state.lost |= way;
    }
    Ok(())
}

/// Whether a flow was idle so long that a datagram now begins another one. Decided here and not by the agent's sweeps, so that
/// both ends decide alike.
#[inline(always)]
fn is_over(state: &FlowState, at_ns: u64) -> bool {
    let single = state.dns != 0 && state.packets_sent <= 1 && state.packets_received <= 1;
    let idle = if single {
        DNS_IDLE_NS.load()
    } else {
        FLOW_IDLE_NS.load()
    };
    at_ns > state.last_ns.wrapping_add(idle)
}

/// A new flow, as it is in the map. `None` when another CPU was first, or the map is full.
#[inline(always)]
fn open(
    skb: *mut __sk_buff,
    key: &FlowKey,
    datagram: &Datagram,
    way: u8,
    dns: bool,
    at_ns: u64,
    flags: u64,
) -> Result<Option<&'static mut FlowState>, Skip> {
    // SAFETY: the verifier checks every access to the context.
    let sk = unsafe { read_volatile(addr_of!((*skb).__bindgen_anon_2.sk)) };
    if sk.is_null() {
        return Err(Skip::NoSocket);
    }
    let mut state = FlowState {
        opened_ns: at_ns,
        last_ns: at_ns,
        bytes_sent: 0,
        bytes_received: 0,
        packets_sent: 0,
        packets_received: 0,
        owner: NOBODY,
        opened_by: way,
        seen: way,
        lost: 0,
        dns: u8::from(dns),
        zero: 0,
    };
    // Without memory for it the flow is followed all the same, and ends by its idle time.
    if let Ok(socket) = storage(sk.cast(), true) {
        if socket.released != 0 {
            return Err(Skip::NoSocket);
        }
        remember(socket, key);
        if socket.owner.netns == 0 {
            socket.owner.netns = owner::netns(sk.cast());
        }
        if way == direction::SENT {
            owner::write_sender(&mut socket.owner);
        }
        state.owner = socket.owner;
    }
    add(&mut state, datagram, way);
    let inserted = FLOWS.insert(key, &state, flags).is_ok();
    match FLOWS.get_ptr_mut(key) {
        // SAFETY: as in `datagram`.
        Some(kept) if inserted => Ok(Some(unsafe { &mut *kept })),
        Some(kept) => {
            // SAFETY: as in `datagram`.
            add(unsafe { &mut *kept }, datagram, way);
            Ok(None)
        }
        None => {
            count(datagram_counter::FLOWS_FULL);
            Ok(None)
        }
    }
}

/// The first datagram of the other direction: whose it is, when it is an answer.
#[inline(always)]
fn answered(skb: *mut __sk_buff, state: &mut FlowState, way: u8) {
    if way != direction::SENT {
        return;
    }
    // SAFETY: the verifier checks every access to the context.
    let sk = unsafe { read_volatile(addr_of!((*skb).__bindgen_anon_2.sk)) };
    if !sk.is_null()
        && let Ok(socket) = storage(sk.cast(), false)
    {
        owner::write_sender(&mut socket.owner);
        state.owner = socket.owner;
    }
}

/// Notes with a socket that it has one more flow.
#[inline(always)]
fn remember(socket: &mut DatagramSocket, key: &FlowKey) {
    if socket.flows == 0 {
        socket.first = *key;
        socket.flows = 1;
    } else if socket.flows == 1 && !same(&socket.first, key) {
        socket.flows = 2;
    }
}

/// Word by word: the target's library compares bytes.
#[inline(always)]
fn same(a: &FlowKey, b: &FlowKey) -> bool {
    const WORDS: usize = size_of::<FlowKey>() / 8;
    // SAFETY: a key is so many aligned words, without gaps.
    let words = |key: &FlowKey| unsafe { read(from_ref(key).cast::<[u64; WORDS]>()) };
    let (a, b) = (words(a), words(b));
    (0..WORDS).fold(0, |other, at| other | (a[at] ^ b[at])) == 0
}

/// The socket is gone. A single flow's end is said here; of several, the agent finds the rest in the map.
#[inline(always)]
pub fn released(socket: &DatagramSocket) -> Result<(), Skip> {
    let at_ns = now();
    match socket.flows {
        0 => Err(Skip::NoState),
        1 => {
            let Some(state) = FLOWS.get_ptr_mut(&socket.first) else {
                return Err(Skip::NoState);
            };
            // SAFETY: as in `datagram`.
            if end(flow_kind::END, 1, &socket.first, unsafe { &*state }, at_ns) {
                let _ = FLOWS.remove(&socket.first);
            }
            Ok(())
        }
        _ => {
            end(
                flow_kind::RELEASE,
                1,
                &socket.first,
                &FlowState {
                    opened_ns: 0,
                    last_ns: 0,
                    bytes_sent: 0,
                    bytes_received: 0,
                    packets_sent: 0,
                    packets_received: 0,
                    owner: socket.owner,
                    opened_by: 0,
                    seen: 0,
                    lost: 0,
                    dns: 0,
                    zero: 0,
                },
                at_ns,
            );
            Ok(())
        }
    }
}

#[inline(always)]
fn add(state: &mut FlowState, datagram: &Datagram, way: u8) {
    let (bytes, packets) = if way == direction::SENT {
        (
            addr_of_mut!(state.bytes_sent),
            addr_of_mut!(state.packets_sent),
        )
    } else {
        (
            addr_of_mut!(state.bytes_received),
            addr_of_mut!(state.packets_received),
        )
    };
    // SAFETY: aligned fields of a live entry that are only ever added to.
    unsafe {
        add_atomically(bytes, datagram.bytes);
        add_atomically(packets, datagram.count);
    }
}

/// The one atomic instruction that kernels before 5.12 have. The target's library has none, because it cannot have all.
///
/// # Safety
/// `to` must be aligned memory that the verifier lets this program write.
#[inline(always)]
unsafe fn add_atomically(to: *mut u64, value: u32) {
    // SAFETY: the caller's.
    unsafe {
        asm!("lock *(u64 *)({to} + 0) += {value}", to = in(reg) to, value = in(reg) u64::from(value));
    }
}

/// Shows a first datagram to the agent, which looks by its own clock: nobody is woken. False when there is no room.
#[inline(always)]
fn first(
    skb: *mut __sk_buff,
    key: &FlowKey,
    state: &FlowState,
    datagram: &Datagram,
    way: u8,
    at_ns: u64,
) -> bool {
    let Some(mut entry) = room()
        .then(|| RING.reserve_untyped::<FlowFirst>(0))
        .flatten()
    else {
        count(datagram_counter::FLOW_RING_FULL);
        return false;
    };
    let record = entry.as_mut_ptr();
    let length = datagram.first();
    let captured = length.min(SNAP_LEN as u32);
    // SAFETY: memory of the ring, as large as the record, ours until it is submitted.
    unsafe {
        (*record).kind = flow_kind::FIRST;
        (*record).direction = way;
        (*record).captured = captured as u16;
        (*record).length = length;
        (*record).at_ns = at_ns;
        (*record).key = *key;
        (*record).state = *state;
        let snap = addr_of_mut!((*record).snap);
        // The ring's memory holds what was there before.
        *snap = [0; SNAP_LEN];
        headers::copy(skb, datagram.offset, snap.cast(), captured, SNAP_LEN as u32);
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}

/// Says how a flow ended. False when there is no room.
#[inline(always)]
fn end(kind: u8, gone: u8, key: &FlowKey, state: &FlowState, at_ns: u64) -> bool {
    let Some(mut entry) = room().then(|| RING.reserve_untyped::<FlowEnd>(0)).flatten() else {
        count(datagram_counter::FLOW_RING_FULL);
        return false;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: as in `first`.
    unsafe {
        (*record).kind = kind;
        (*record).released = gone;
        (*record).zero = [0; 6];
        (*record).at_ns = at_ns;
        (*record).key = *key;
        (*record).state = *state;
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}

/// Whether the ring is not yet half full: the other half is for connections, so that a flood of flows costs none of them.
#[inline(always)]
fn room() -> bool {
    // SAFETY: the helper takes the map and returns a number.
    let (used, size) = unsafe {
        let ring = from_ref(&RING).cast_mut();
        (
            bpf_ringbuf_query(ring.cast(), u64::from(BPF_RB_AVAIL_DATA)),
            bpf_ringbuf_query(ring.cast(), u64::from(BPF_RB_RING_SIZE)),
        )
    };
    used < size / 2
}
