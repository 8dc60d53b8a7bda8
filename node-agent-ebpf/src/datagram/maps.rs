//! The maps of datagrams, their limits, and what happens when they are full.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::macros::btf_map;
use weft_agent_common::{
    DatagramMeta, DatagramSocket, DnsPacket, FlowKey, FlowNote, FlowState, datagram_counter,
};

/// Default size of [`FLOWS`]; the agent's configuration overrides it when it makes the map.
const MAX_FLOWS: usize = 65_536;
/// Default size of [`DNS_RING`]; the agent's configuration overrides it when it makes the map.
const DNS_RING_BYTES: usize = 8 << 20;

/// Flows, from their first datagram until their socket is gone or the agent finds them idle. Allocated at once. Full: the
/// datagram belongs to no flow, and is counted.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, FlowState, MAX_FLOWS> = HashMap::new();

/// What the agent notes of open flows, as many as there are. Here so that it lives and dies with [`FLOWS`].
#[btf_map]
pub static FLOW_NOTES: HashMap<FlowKey, FlowNote, MAX_FLOWS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// UDP sockets: who made them, and what to end with them. No memory: counted. Kernel 5.9.
#[btf_map]
pub static DATAGRAM_SOCKETS: SkStorage<DatagramSocket> = SkStorage::new();

/// Packets of name servers for the agent. Full: the packet is not copied, and counted. Kernel 5.8.
#[btf_map]
pub static DNS_RING: RingBuf<DnsPacket, DNS_RING_BYTES> = RingBuf::new();

/// Counters by [`datagram_counter`]. Per CPU, so that counting needs no atomics.
#[btf_map]
pub static DATAGRAM_DROPS: PerCpuArray<u64, { datagram_counter::SLOTS as usize }> =
    PerCpuArray::new();

/// Written and read by the agent only; here so that it lives and dies with the other maps.
#[btf_map]
pub static DATAGRAM_META: Array<DatagramMeta, 1> = Array::new();

/// Adds one to a counter.
pub fn count(slot: u32) {
    if let Some(value) = DATAGRAM_DROPS.get_ptr_mut(slot) {
        // SAFETY: a per-CPU slot; the map outlives the program. A program that interrupts another on its CPU may lose one
        // count, as with any such counter.
        unsafe { *value += 1 };
    }
}
