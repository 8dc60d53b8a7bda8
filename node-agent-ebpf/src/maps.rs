//! The maps, their limits, and what happens when they are full.

use aya_ebpf::bindings::{
    BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use core::marker::{PhantomData, Sync};
use weft_agent_common::{Connection, Listener, ListenerKey, Meta, Record, SocketState, counter};

/// Default size of the ring; the agent's configuration overrides it when it makes the map.
const RING_BYTES: usize = 16 << 20;

/// Flags of the socket storage: its size is the number of sockets, and a child gets a copy of its listener's.
const STORAGE_FLAGS: usize = (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize;

/// Records for the agent. Full: the new record is dropped and counted in [`DROPS`]. Kernel 5.8.
#[btf_map]
pub static RING: RingBuf<Record, RING_BYTES> = RingBuf::new();

/// Counters by [`counter`]. Per CPU, so that counting needs no atomics.
#[btf_map]
pub static DROPS: PerCpuArray<u64, { counter::SLOTS as usize }> = PerCpuArray::new();

/// Written and read by the agent only; here so that it lives and dies with the other maps.
#[btf_map]
pub static META: Array<Meta, 1> = Array::new();

/// Default number of places; the agent's configuration overrides it when it makes the maps. A power of two.
const PLACES: usize = 262_144;
/// Default size of [`CROWDED`]; overridden likewise.
const MAX_CROWDED: usize = 65_536;
/// Most listening sockets in [`LISTENERS`].
const MAX_LISTENERS: usize = 16_384;

/// Whose place each one of [`CONNECTIONS`] is: a connection's cookie, with its generation above; 0 for nobody's. Apart, so that the
/// agent sees what opened and what ended by looking at eight bytes each. Taken by a compare-and-exchange. Kernel 5.5 (mapped), 5.12
/// (the exchange); where there is none, every connection is in [`CROWDED`].
#[btf_map]
pub static TAGS: Array<u64, PLACES, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Connections from their SYN to their end, at the place of their cookie or one of the next few: a tenth of the cost of
/// a hash map's insertion and removal, since cookies are counted up and neighbours share pages. All taken: the connection
/// goes to [`CROWDED`].
#[btf_map]
pub static CONNECTIONS: Array<Connection, PLACES> = Array::new();

/// Connections that found no place, by cookie. Full: the connection is not tracked, and counted in [`DROPS`].
#[btf_map]
pub static CROWDED: HashMap<u64, Connection, MAX_CROWDED> = HashMap::new();

/// Listening sockets by where they listen, so that accepted ones find their owner. Full, or taken by another socket
/// (`SO_REUSEPORT`): the listener gets an entry in [`SOCKETS`] instead.
#[btf_map]
pub static LISTENERS: HashMap<
    ListenerKey,
    Listener,
    MAX_LISTENERS,
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// What is remembered with a socket itself, for the few that need it: created where `sock_ops` cannot name the process,
/// listeners that [`LISTENERS`] has no place for or that are older than the hooks, sockets that may connect again.
/// No memory: counted in [`DROPS`]. Kernel 5.9.
#[btf_map]
pub static SOCKETS: ClonedSkStorage<SocketState> = ClonedSkStorage::new();

/// Socket storage that an accepted socket inherits from its listener. The field names and types are what the
/// loader reads from BTF; nothing is ever stored in the struct.
#[repr(C)]
pub struct ClonedSkStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; STORAGE_FLAGS],
    _value: PhantomData<T>,
}

// SAFETY: the pointers are never dereferenced; the kernel owns the data and its synchronisation.
unsafe impl<T> Sync for ClonedSkStorage<T> {}

impl<T> ClonedSkStorage<T> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
            _value: PhantomData,
        }
    }

    /// What the socket helpers take for the map.
    pub fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// Adds one to a drop counter.
pub fn count(slot: u32) {
    if let Some(value) = DROPS.get_ptr_mut(slot) {
        // SAFETY: a per-CPU slot that only this CPU writes; the map outlives the program.
        unsafe { *value += 1 };
    }
}
