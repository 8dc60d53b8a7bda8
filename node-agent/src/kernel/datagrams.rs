//! The hooks for datagrams: attached beside those for connections, with whose ring they share, and as independent of them as
//! can be: where a kernel refuses these, connections are seen all the same.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use aya::maps::{Array, Map, MapData, PerCpuArray, SkStorage};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, Program};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use weft_agent_common::{
    DatagramMeta, DatagramSocket, FlowKey, FlowNote, FlowState, PORT_SET_WORDS, datagram_counter,
};

use super::btf::Btf;
use super::hooks::{self, HookError, Hooks, MAPS, OBJECT, Plan, VMLINUX};
use super::sys::batch::HashTable;
use super::sys::{Plain, Ring};

/// Maps that are pinned, by their name in the object.
const OWN_MAPS: [&str; 6] = [
    "FLOWS",
    "FLOW_NOTES",
    "DATAGRAM_SOCKETS",
    "DNS_RING",
    "DATAGRAM_DROPS",
    "DATAGRAM_META",
];
/// Links that are pinned, and the program of each. What remembers a socket comes before what needs it.
const OWN_LINKS: [(&str, &str); 4] = [
    ("link_udp_create", "weft_udp_create"),
    ("link_egress", "weft_egress"),
    ("link_ingress", "weft_ingress"),
    ("link_udp_release", "weft_udp_release"),
];
/// Fields of a process that no helper tells, or that are read where the helpers may not be called, with the global that takes each.
pub(super) const TASK_FIELDS: [(&str, &str, &str); 5] = [
    ("OFFSET_TASK_TGID", "task_struct", "tgid"),
    ("OFFSET_TASK_COMM", "task_struct", "comm"),
    ("OFFSET_TASK_LEADER", "task_struct", "group_leader"),
    ("OFFSET_TASK_CRED", "task_struct", "cred"),
    ("OFFSET_CRED_UID", "cred", "uid"),
];
/// Size of a trial's maps.
const TRIAL_FLOWS: u32 = 1;
const TRIAL_RING_BYTES: u32 = 1 << 16;

/// What is watched of datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatagramPlan {
    /// Most flows at a time.
    pub max_flows: u32,
    /// Size of the ring of name servers' packets.
    pub dns_ring_bytes: u32,
    /// A flow that was idle so long is over.
    pub idle_ns: u64,
    /// The same for a single question and answer of DNS.
    pub dns_idle_ns: u64,
    /// Ports of name servers.
    pub dns_ports: Vec<u16>,
}

impl Default for DatagramPlan {
    fn default() -> Self {
        Self {
            max_flows: 65_536,
            dns_ring_bytes: 8 << 20,
            idle_ns: 60_000_000_000,
            dns_idle_ns: 10_000_000_000,
            dns_ports: vec![53, 5353],
        }
    }
}

/// How the programs learn which process is sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sender {
    /// Not at all: the socket's creator is named.
    Creator = 0,
    /// By the helpers for the current process (kernel 6.16).
    Helpers = 1,
    /// By the fields of the current task (BTF).
    Task = 2,
}

/// Attached hooks and their maps. Dropping it leaves them attached.
pub struct Datagrams {
    /// Flows, as the kernel counts them.
    pub flows: HashTable<FlowKey, FlowState>,
    /// What the agent noted of open flows.
    pub notes: HashTable<FlowKey, FlowNote>,
    /// Packets of name servers.
    pub dns_ring: Ring,
    /// What was written down when the hooks were attached.
    pub meta: DatagramMeta,
    sockets: SkStorage<MapData, Plain<DatagramSocket>>,
    drops: PerCpuArray<MapData, u64>,
    _links: Vec<PinnedLink>,
}

impl Datagrams {
    /// Takes over what is pinned, or attaches. `hooks` are attached already.
    pub fn attach(plan: &Plan, datagrams: &DatagramPlan, hooks: &Hooks) -> Result<Self, HookError> {
        let dir = hooks::versioned(&plan.pin_dir);
        let wanted = attachment(plan, datagrams, hooks)?;
        let links = || OWN_LINKS.map(|(link, _)| link).into_iter();
        match Self::open(&dir) {
            Ok(found) if found.meta.attachment == wanted => return Ok(found),
            Ok(_) => hooks::remove(&dir, links()),
            Err(_) => hooks::remove(&dir, links().chain(OWN_MAPS)),
        }
        let attached = try_senders(|sender| attach_new(plan, datagrams, &dir, wanted, sender));
        attached.map_err(|error| {
            hooks::remove(&dir, links().chain(OWN_MAPS));
            explained(plan, error)
        })?;
        Self::open(&dir)
    }

    fn open(dir: &Path) -> Result<Self, HookError> {
        let map = |name: &str| MapData::from_pin(dir.join(name));
        let ring = map("DNS_RING")?;
        let size = ring.info()?.max_entries();
        let meta: Array<MapData, Plain<DatagramMeta>> =
            Array::try_from(Map::Array(map("DATAGRAM_META")?))?;
        let links = OWN_LINKS.iter().map(|(link, _)| dir.join(link));
        let links = links.map(PinnedLink::from_pin).collect::<Result<_, _>>()?;
        let other = HookError::NoProgram("FLOWS");
        Ok(Self {
            flows: HashTable::new(map("FLOWS")?).ok_or(other)?,
            notes: HashTable::new(map("FLOW_NOTES")?).ok_or(HookError::NoProgram("FLOW_NOTES"))?,
            dns_ring: Ring::map(ring.fd(), size).map_err(HookError::Ring)?,
            meta: meta.get(&0, 0)?.0,
            sockets: SkStorage::try_from(Map::SkStorage(map("DATAGRAM_SOCKETS")?))?,
            drops: PerCpuArray::try_from(Map::PerCpuArray(map("DATAGRAM_DROPS")?))?,
            _links: links,
        })
    }

    /// One of [`datagram_counter`], summed over all CPUs.
    pub fn dropped(&self, slot: u32) -> u64 {
        self.drops
            .get(&slot, 0)
            .map(|values| values.iter().sum())
            .unwrap_or_default()
    }

    /// What the hooks remember with a socket.
    pub fn socket(&self, socket: &impl AsRawFd) -> Option<DatagramSocket> {
        self.sockets.get(socket, 0).ok().map(|state| state.0)
    }

    /// Names the process of a socket that is older than the hooks.
    pub fn adopt(&mut self, socket: &impl AsRawFd, state: DatagramSocket) -> Result<(), HookError> {
        Ok(self.sockets.insert(socket, Plain(state), 0)?)
    }
}

/// The kernel programs, by name.
pub fn programs() -> impl Iterator<Item = &'static str> {
    OWN_LINKS.iter().map(|(_, program)| *program)
}

/// Loads and attaches one program with maps of its own, and lets go of all of it. Says how it would learn the sender.
pub fn try_program(plan: &Plan, name: &'static str) -> Result<Sender, HookError> {
    let cgroup = open_cgroup(plan)?;
    let mut small = plan.clone();
    small.ring_bytes = TRIAL_RING_BYTES;
    let datagrams = DatagramPlan {
        max_flows: TRIAL_FLOWS,
        dns_ring_bytes: TRIAL_RING_BYTES,
        ..DatagramPlan::default()
    };
    try_senders(|sender| {
        // The last way: what is wrong with it is wrong with all.
        let log = match sender {
            Sender::Creator => VerifierLogLevel::DEBUG,
            _ => VerifierLogLevel::DISABLE,
        };
        let mut object = load(&small, &datagrams, None, sender, log)?;
        attach_program(&mut object, name, &cgroup).map(|_| sender)
    })
}

/// A program that was refused is tried once more, for the verifier's words.
fn explained(plan: &Plan, error: HookError) -> HookError {
    match error {
        HookError::Program { name, .. } => try_program(plan, name).err().unwrap_or(error),
        _ => error,
    }
}

/// Which helpers a program type may call differs between kernels; the verifier is the one to ask. What it says of the last
/// way, which takes the least, is why there is none.
fn try_senders<T>(mut attempt: impl FnMut(Sender) -> Result<T, HookError>) -> Result<T, HookError> {
    attempt(Sender::Helpers)
        .or_else(|_| attempt(Sender::Task))
        .or_else(|_| attempt(Sender::Creator))
}

fn attach_new(
    plan: &Plan,
    datagrams: &DatagramPlan,
    dir: &Path,
    attachment: u64,
    sender: Sender,
) -> Result<(), HookError> {
    let cgroup = open_cgroup(plan)?;
    let log = VerifierLogLevel::DISABLE;
    let mut object = load(plan, datagrams, Some(dir), sender, log)?;
    remember_new(plan, &mut object, attachment)?;
    let links = || OWN_LINKS.map(|(link, _)| link).into_iter();
    for (link, program) in OWN_LINKS {
        let attached = attach_program(&mut object, program, &cgroup)
            .and_then(|attached| Ok(attached.pin(dir.join(link))?));
        attached.inspect_err(|_| hooks::remove(dir, links()))?;
    }
    tracing::debug!(?sender, "datagram hooks attached");
    Ok(())
}

fn load(
    plan: &Plan,
    datagrams: &DatagramPlan,
    dir: Option<&Path>,
    sender: Sender,
    log: VerifierLogLevel,
) -> Result<Ebpf, HookError> {
    let (socket_fields, task_fields) = (hooks::offsets(), task_offsets());
    let sender = sender as u8;
    let ports = port_set(&datagrams.dns_ports);
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(log)
        .override_global("FLOW_IDLE_NS", &datagrams.idle_ns, true)
        .override_global("DNS_IDLE_NS", &datagrams.dns_idle_ns, true)
        .override_global("CURRENT_IN_SKB", &sender, true)
        .override_global("DNS_PORTS", ports.as_slice(), true)
        .map_max_entries("RING", plan.ring_bytes)
        // Those for connections are pinned already; of a trial they are not used.
        .map_max_entries("TAGS", 1)
        .map_max_entries("CONNECTIONS", 1)
        .map_max_entries("CROWDED", 1)
        .map_max_entries("FLOWS", datagrams.max_flows)
        .map_max_entries("FLOW_NOTES", datagrams.max_flows)
        .map_max_entries("DNS_RING", datagrams.dns_ring_bytes);
    for ((global, _, _), offset) in hooks::FIELDS.iter().zip(&socket_fields) {
        loader.override_global(global, offset, true);
    }
    for ((global, _, _), offset) in TASK_FIELDS.iter().zip(&task_fields) {
        loader.override_global(global, offset, true);
    }
    if let Some(dir) = dir {
        for map in MAPS.into_iter().chain(OWN_MAPS) {
            loader.map_pin_path(map, dir.join(map));
        }
    }
    Ok(loader.load(OBJECT)?)
}

/// Notes new programs, before any of them can write.
fn remember_new(plan: &Plan, object: &mut Ebpf, attachment: u64) -> Result<(), HookError> {
    const NAME: &str = "DATAGRAM_META";
    let map = object.take_map(NAME).ok_or(HookError::NoProgram(NAME))?;
    let mut meta: Array<MapData, Plain<DatagramMeta>> = Array::try_from(map)?;
    let mut state = meta.get(&0, 0)?.0;
    if state.dns_ring_base == 0 {
        state.dns_ring_base = plan.now_ns;
        state.attached_ns = plan.monotonic_ns;
    }
    state.attachment = attachment;
    Ok(meta.set(0, Plain(state), 0)?)
}

fn attach_program(
    object: &mut Ebpf,
    name: &'static str,
    cgroup: &File,
) -> Result<FdLink, HookError> {
    let way = match name {
        "weft_egress" => CgroupSkbAttachType::Egress,
        _ => CgroupSkbAttachType::Ingress,
    };
    let refused = |error| HookError::Program { name, error };
    let program = object.program_mut(name).ok_or(HookError::NoProgram(name))?;
    Ok(match program {
        Program::CgroupSkb(skb) => {
            skb.load().map_err(refused)?;
            let id = skb
                .attach(cgroup, way, CgroupAttachMode::Single)
                .map_err(refused)?;
            FdLink::try_from(CgroupSkb::take_link(skb, id).map_err(refused)?)?
        }
        Program::CgroupSock(sock) => {
            sock.load().map_err(refused)?;
            let id = sock
                .attach(cgroup, CgroupAttachMode::Single)
                .map_err(refused)?;
            FdLink::try_from(CgroupSock::take_link(sock, id).map_err(refused)?)?
        }
        _ => return Err(HookError::NoProgram(name)),
    })
}

/// Offsets in the order of the fields above; all 0 when any is missing.
pub(super) fn task_offsets() -> [u32; TASK_FIELDS.len()] {
    let bytes = fs::read(VMLINUX).unwrap_or_default();
    let find = |btf: &Btf<'_>| {
        let mut offsets = [0; TASK_FIELDS.len()];
        for (slot, (_, structure, member)) in offsets.iter_mut().zip(TASK_FIELDS) {
            *slot = btf.offset(structure, member)?;
        }
        Some(offsets)
    };
    Btf::parse(&bytes)
        .and_then(|btf| find(&btf))
        .unwrap_or_default()
}

fn port_set(ports: &[u16]) -> Vec<u32> {
    let mut words = vec![0; PORT_SET_WORDS];
    for port in ports {
        words[usize::from(port >> 5)] |= 1 << (port & 31);
    }
    words
}

/// What is attached is known by a hash of the programs, their settings, their cgroup and the ring they write to.
fn attachment(plan: &Plan, datagrams: &DatagramPlan, hooks: &Hooks) -> Result<u64, HookError> {
    let mut hash = blake3::Hasher::new();
    hash.update(&hooks::attachment(plan)?.to_le_bytes())
        .update(&hooks.state.ring_base.to_le_bytes())
        .update(&datagrams.idle_ns.to_le_bytes())
        .update(&datagrams.dns_idle_ns.to_le_bytes());
    for port in &datagrams.dns_ports {
        hash.update(&port.to_le_bytes());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    Ok(u64::from_le_bytes(first))
}

fn open_cgroup(plan: &Plan) -> Result<File, HookError> {
    File::open(&plan.cgroup).map_err(|error| hooks::path(&plan.cgroup, error))
}

/// What is lost, by [`datagram_counter`], in the order of its slots.
pub const LOST: [(u32, &str); 6] = [
    (datagram_counter::FLOW_RING_FULL, "records of flows"),
    (datagram_counter::FLOWS_FULL, "datagrams without a flow"),
    (datagram_counter::DNS_RING_FULL, "name servers' packets"),
    (datagram_counter::UNREADABLE, "unreadable packets"),
    (datagram_counter::NO_STORAGE, "sockets without memory"),
    (datagram_counter::DNS_CUT, "name servers' packets cut"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_for_each_port() {
        let words = port_set(&[53, 5353, 65_535]);
        assert_eq!(words[1], 1 << (53 - 32));
        assert_eq!(words[5353 / 32], 1 << (5353 % 32));
        assert_eq!(words[2047], 1 << 31);
        assert_eq!(words.iter().map(|word| word.count_ones()).sum::<u32>(), 3);
    }
}
