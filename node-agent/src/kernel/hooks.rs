//! Loading, attaching, pinning, taking over, removing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, SkStorage};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSock, SockOps};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use weft_agent_common::{
    COOKIE_BITS, Connection, LAYOUT_VERSION, Listener, ListenerKey, Meta, PLACES, SocketState,
    counter,
};

use super::btf::Btf;
use super::datagrams;
use super::sys::tags::Tags;
use super::sys::{Plain, Ring};
use crate::decode::ConnectionKey;

/// The kernel programs, embedded at build time.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft.bpf.o"));

/// Maps that are pinned, by their name in the object.
pub(super) const MAPS: [&str; 8] = [
    "RING",
    "DROPS",
    "META",
    "TAGS",
    "CONNECTIONS",
    "CROWDED",
    "LISTENERS",
    "SOCKETS",
];
/// Links that are pinned.
const LINKS: [&str; 2] = [CREATE, "link_ops"];
const CREATE: &str = "link_create";
/// Every way to attach, the best first: which helpers a program type may call, and which instructions there are, differs between
/// kernels, and the verifier is the one to ask.
const WAYS: [Way; 3] = [
    Way {
        ops: "weft_ops",
        current: true,
    },
    Way {
        ops: "weft_ops",
        current: false,
    },
    Way {
        ops: HASHED,
        current: false,
    },
];
/// Follows sockets where there is no compare-and-exchange: every connection is in the hash map.
pub const HASHED: &str = "weft_hashed_ops";
/// Fewest places for connections; a mapping has a page at least.
const LEAST_PLACES: u32 = 8;
/// A connection finds no place when the next few are taken; so many of a hundred do when all places but these are.
const CROWDED_PERCENT: u32 = 25;
/// The part of a tag that is a cookie.
const COOKIE: u64 = (1 << COOKIE_BITS) - 1;
/// Size of the ring that nobody reads.
const TRIAL_RING_BYTES: u32 = 1 << 16;
/// The kernel's own BTF.
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Fields that the programs need, with the global that takes each.
pub(super) const FIELDS: [(&str, &str, &str); 5] = [
    ("OFFSET_WRITE_SEQ", "tcp_sock", "write_seq"),
    ("OFFSET_SK_FLAGS", "sock_common", "skc_flags"),
    ("OFFSET_SK_ERR", "sock", "sk_err"),
    ("OFFSET_SKC_NET", "sock_common", "skc_net"),
    ("OFFSET_NET_INUM", "net", "ns"),
];

/// Which programs are attached.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// The one that follows sockets.
    ops: &'static str,
    /// It may ask for the current process: nothing has to remember who made a socket.
    current: bool,
}

impl Way {
    /// Connections have places of their own.
    fn placed(self) -> bool {
        self.ops != HASHED
    }

    /// Link and program, in the order of attaching: what remembers a socket comes before what needs it.
    fn programs(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let create = (!self.current).then_some((CREATE, "weft_create"));
        create.into_iter().chain([("link_ops", self.ops)])
    }
}

/// What to attach, where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// cgroup v2 directory.
    pub cgroup: PathBuf,
    /// Directory in bpffs.
    pub pin_dir: PathBuf,
    /// Size of the ring.
    pub ring_bytes: u32,
    /// Most connections followed by the kernel.
    pub max_connections: u32,
    /// Time between updates.
    pub update_interval_ns: u64,
    /// UTC minus monotonic microseconds, measured now; kept with a new ring.
    pub clock_offset_us: i64,
    /// UTC nanoseconds now; numbers a new ring.
    pub now_ns: u64,
    /// Monotonic nanoseconds now.
    pub monotonic_ns: u64,
}

/// Why the kernel side is not there.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// A file or directory.
    #[error("{path}: {error}")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The directory for pins is not in bpffs.
    #[error("{0} is not in a BPF file system")]
    NotBpffs(PathBuf),
    /// The object does not load.
    #[error("load the kernel programs: {0}")]
    Load(#[from] aya::EbpfError),
    /// A program was refused, or does not attach.
    #[error("program {name}: {}", brief(error))]
    Program {
        /// Which.
        name: &'static str,
        /// The verifier's or the system call's answer.
        error: aya::programs::ProgramError,
    },
    /// A program is not in the object.
    #[error("the embedded object has no program {0}")]
    NoProgram(&'static str),
    /// A link was refused.
    #[error("link: {0}")]
    Link(#[from] aya::programs::links::LinkError),
    /// A map was refused.
    #[error("map: {0}")]
    Map(#[from] aya::maps::MapError),
    /// A pin was refused.
    #[error("pin: {0}")]
    Pin(#[from] aya::pin::PinError),
    /// The ring could not be mapped.
    #[error("map the ring buffer: {0}")]
    Ring(io::Error),
    /// The tags could not be mapped.
    #[error("map the places for connections: {0}")]
    Mapping(io::Error),
}

/// Lines of a verifier's log that say what it did not like: the last ones.
const LOG_LINES: usize = 5;

/// An error and its causes on one line.
pub fn brief(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!("\n{inner}");
        cause = inner.source();
    }
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("processed "))
        .collect();
    let head = lines.len().min(1);
    let tail = lines.len().saturating_sub(LOG_LINES).max(head);
    [&lines[..head], &lines[tail..]].concat().join(" | ")
}

/// Attached hooks and their maps. Dropping it leaves them attached.
pub struct Hooks {
    /// The ring.
    pub ring: Ring,
    drops: PerCpuArray<MapData, u64>,
    /// Whose the places for connections are.
    pub tags: Tags,
    connections: Array<MapData, Plain<Connection>>,
    crowded: HashMap<MapData, u64, Plain<Connection>>,
    listeners: HashMap<MapData, Plain<ListenerKey>, Plain<Listener>>,
    sockets: SkStorage<MapData, Plain<SocketState>>,
    /// What was written down when the ring was made.
    pub state: Meta,
    /// The ring was there already.
    pub resumed: bool,
    /// Records that nobody will read: they were in a ring that had to go.
    pub discarded: u64,
    _links: Vec<PinnedLink>,
}

impl Hooks {
    /// Takes over what is pinned, or attaches.
    pub fn attach(plan: &Plan) -> Result<Self, HookError> {
        require_bpffs(&plan.pin_dir)?;
        let wanted = attachment(plan)?;
        let mut discarded = remove_other_versions(&plan.pin_dir);
        let dir = versioned(&plan.pin_dir);
        create(&dir)?;
        match Self::open(&dir) {
            Ok(hooks) if hooks.state.attachment == wanted => return Ok(hooks),
            Ok(_) => remove(&dir, LINKS.into_iter()),
            Err(_) if maps_are_whole(&dir) => remove(&dir, LINKS.into_iter()),
            Err(_) => {
                discarded += unread(&dir);
                remove(&dir, LINKS.into_iter().chain(MAPS));
            }
        }
        let resumed = dir.join("META").exists();
        attach_any(plan, &dir, wanted, resumed).inspect_err(|_| {
            // What an earlier agent left unread waits for the next one.
            if !resumed {
                remove(&dir, LINKS.into_iter().chain(MAPS));
                let _ = fs::remove_dir(&dir);
            }
        })?;
        let mut hooks = Self::open(&dir)?;
        if discarded > 0 {
            tracing::warn!(
                records = discarded,
                "records of an earlier agent could not be kept"
            );
        }
        hooks.discarded = discarded;
        hooks.resumed = resumed;
        Ok(hooks)
    }

    fn open(dir: &Path) -> Result<Self, HookError> {
        let map = |name: &str| MapData::from_pin(dir.join(name));
        let ring = map("RING")?;
        let size = ring.info()?.max_entries();
        let meta: Array<MapData, Plain<Meta>> = Array::try_from(Map::Array(map("META")?))?;
        let state: Plain<Meta> = meta.get(&0, 0)?;
        let tags = map("TAGS")?;
        let places = tags.info()?.max_entries();
        let links = LINKS
            .iter()
            .map(|link| dir.join(link))
            .filter(|link| !link.ends_with(CREATE) || link.exists());
        let links = links.map(PinnedLink::from_pin).collect::<Result<_, _>>()?;
        Ok(Self {
            ring: Ring::map(ring.fd(), size).map_err(HookError::Ring)?,
            drops: PerCpuArray::try_from(Map::PerCpuArray(map("DROPS")?))?,
            tags: Tags::map(tags.fd(), places).map_err(HookError::Mapping)?,
            connections: Array::try_from(Map::Array(map("CONNECTIONS")?))?,
            crowded: HashMap::try_from(Map::HashMap(map("CROWDED")?))?,
            listeners: HashMap::try_from(Map::HashMap(map("LISTENERS")?))?,
            sockets: SkStorage::try_from(Map::SkStorage(map("SOCKETS")?))?,
            state: state.0,
            resumed: true,
            discarded: 0,
            _links: links,
        })
    }

    /// A drop counter, summed over all CPUs.
    pub fn dropped(&self, slot: u32) -> u64 {
        self.drops
            .get(&slot, 0)
            .map(|values| values.iter().sum())
            .unwrap_or_default()
    }

    /// Records lost to a full ring.
    pub fn ring_full(&self) -> u64 {
        self.dropped(counter::RING_FULL)
    }

    /// Whether the hooks follow this connection.
    pub fn follows(&self, cookie: u64) -> bool {
        let mask = self.tags.len() - 1;
        let mut places = (0..PLACES as usize).map(|step| (cookie as usize + step) & mask);
        places.any(|place| self.tags.get(place) & COOKIE == cookie)
            || self.crowded.get(&cookie, 0).is_ok()
    }

    /// What is kept of the connection with this cookie.
    pub fn connection_of(&self, cookie: u64) -> Option<(ConnectionKey, Connection)> {
        let mask = self.tags.len() - 1;
        let mut places = (0..PLACES as usize).map(|step| (cookie as usize + step) & mask);
        if let Some(place) = places.find(|place| self.tags.get(*place) & COOKIE == cookie) {
            let tag = self.tags.get(place);
            let ours = (tag & COOKIE == cookie).then(|| self.connection(place, tag));
            return ours.flatten().map(|kept| (ConnectionKey(tag), kept));
        }
        let Plain(kept) = self.crowded.get(&cookie, 0).ok()?;
        Some((ConnectionKey::new(cookie, kept.state.generation), kept))
    }

    /// Connections that have no place: no look at the tags finds them.
    pub fn without_place(&self) -> impl Iterator<Item = (ConnectionKey, Connection)> {
        let entries = self.crowded.iter().flatten();
        entries
            .map(|(cookie, Plain(kept))| (ConnectionKey::new(cookie, kept.state.generation), kept))
    }

    /// What is kept of the connection at a place; `None` when it is another's by now.
    pub fn connection(&self, place: usize, tag: u64) -> Option<Connection> {
        let connection = self.connections.get(&(place as u32), 0).ok()?.0;
        (self.tags.get(place) == tag).then_some(connection)
    }

    /// Takes out of what is kept the connections that `leaked` points at.
    pub fn kept(
        &mut self,
        leaked: impl Fn(ConnectionKey, &Connection) -> bool,
    ) -> Vec<(ConnectionKey, Connection)> {
        let mut out = Vec::new();
        for place in 0..self.tags.len() {
            let tag = self.tags.get(place);
            let found = (tag != 0).then(|| self.connection(place, tag)).flatten();
            let found = found.filter(|kept| leaked(ConnectionKey(tag), kept));
            if let Some(kept) = found.filter(|_| self.tags.free(place, tag)) {
                out.push((ConnectionKey(tag), kept));
            }
        }
        let crowded: Vec<(u64, Plain<Connection>)> = self.crowded.iter().flatten().collect();
        for (cookie, Plain(kept)) in crowded {
            let key = ConnectionKey::new(cookie, kept.state.generation);
            if leaked(key, &kept) && self.crowded.remove(&cookie).is_ok() {
                out.push((key, kept));
            }
        }
        out
    }

    /// Cookies of the listeners that the hooks know without looking at the socket.
    pub fn listeners(&self) -> HashSet<u64> {
        self.listeners
            .iter()
            .filter_map(|entry| entry.ok().map(|(_, listener)| listener.0.cookie))
            .collect()
    }

    /// What the hooks remember with a socket itself.
    pub fn state_of(&self, socket: &impl std::os::fd::AsRawFd) -> Option<SocketState> {
        self.sockets.get(socket, 0).ok().map(|state| state.0)
    }

    /// Makes the hooks track a socket that is older than they are.
    pub fn track(
        &mut self,
        socket: &impl std::os::fd::AsRawFd,
        state: SocketState,
    ) -> Result<(), HookError> {
        Ok(self.sockets.insert(socket, Plain(state), 0)?)
    }
}

/// The kernel programs, by name.
pub fn programs() -> impl Iterator<Item = &'static str> {
    ["weft_create", "weft_ops", HASHED].into_iter()
}

/// Whether every map is pinned: then only links are missing.
fn maps_are_whole(dir: &Path) -> bool {
    MAPS.iter()
        .all(|map| MapData::from_pin(dir.join(map)).is_ok())
}

/// Records in a pinned ring that nobody has read.
fn unread(dir: &Path) -> u64 {
    let count = || -> Result<u64, HookError> {
        let map = MapData::from_pin(dir.join("RING"))?;
        let size = map.info()?.max_entries();
        let mut ring = Ring::map(map.fd(), size).map_err(HookError::Ring)?;
        let (mut position, mut count) = (ring.consumed(), 0);
        while let Some((_, next)) = ring.peek(position) {
            (position, count) = (next, count + 1);
        }
        Ok(count)
    };
    count().unwrap_or(0)
}

/// Detaches everything and removes what is pinned. True when there was something.
pub fn unload(pin_dir: &Path) -> bool {
    let mut found = false;
    for version in versions(pin_dir) {
        found = true;
        clear(&version);
    }
    let _ = fs::remove_dir(pin_dir);
    found
}

/// Loads and attaches one program with maps of its own, and lets go of all of it.
pub fn try_program(plan: &Plan, name: &'static str, current: bool) -> Result<(), HookError> {
    let cgroup = File::open(&plan.cgroup).map_err(|error| path(&plan.cgroup, error))?;
    let mut small = plan.clone();
    small.ring_bytes = TRIAL_RING_BYTES;
    small.max_connections = 1;
    let way = Way { ops: name, current };
    let mut object = load(&small, None, way, VerifierLogLevel::DEBUG)?;
    attach_program(&mut object, name, &cgroup).map(drop)
}

/// Attaches in the first way that the kernel takes.
fn attach_any(plan: &Plan, dir: &Path, attachment: u64, resumed: bool) -> Result<(), HookError> {
    let mut first = None;
    for way in WAYS {
        match attach_new(plan, dir, attachment, way) {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::debug!(%error, ?way, "refused");
                remove(dir, LINKS.into_iter());
                if !resumed {
                    // Another way has maps of other sizes.
                    remove(dir, MAPS.into_iter());
                }
                first.get_or_insert((error, way));
            }
        }
    }
    Err(match first {
        // Once more, for the verifier's words.
        Some((error @ HookError::Program { name, .. }, way)) => {
            try_program(plan, name, way.current).err().unwrap_or(error)
        }
        Some((error, _)) => error,
        None => HookError::NoProgram("weft_ops"),
    })
}

/// Loads everything and pins maps and links.
fn attach_new(plan: &Plan, dir: &Path, attachment: u64, way: Way) -> Result<(), HookError> {
    let cgroup = File::open(&plan.cgroup).map_err(|error| path(&plan.cgroup, error))?;
    let mut object = load(plan, Some(dir), way, VerifierLogLevel::DISABLE)?;
    remember_new(plan, &mut object, attachment)?;
    for (link, program) in way.programs() {
        attach_program(&mut object, program, &cgroup)?.pin(dir.join(link))?;
    }
    Ok(())
}

/// Number of places: those that are pinned, or enough for the plan.
fn places(plan: &Plan, dir: Option<&Path>, way: Way) -> u32 {
    let pinned = dir.and_then(|dir| MapData::from_pin(dir.join("TAGS")).ok());
    pinned
        .and_then(|map| map.info().ok())
        .map(|info| info.max_entries())
        .unwrap_or_else(|| {
            let wanted = if way.placed() {
                plan.max_connections
            } else {
                LEAST_PLACES
            };
            wanted.clamp(LEAST_PLACES, 1 << 30).next_power_of_two()
        })
}

/// With a log the verifier takes longer over a program that it refuses; of others there is none.
fn load(
    plan: &Plan,
    dir: Option<&Path>,
    way: Way,
    log: VerifierLogLevel,
) -> Result<Ebpf, HookError> {
    let offsets = offsets();
    let current = u8::from(way.current);
    let syn_met_is_hidden = u8::from(
        KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 10, 0)),
    );
    let places = places(plan, dir, way);
    let mask = places - 1;
    let crowded = if way.placed() {
        (plan.max_connections / 100 * CROWDED_PERCENT).max(LEAST_PLACES)
    } else {
        plan.max_connections
    };
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(log)
        .override_global("UPDATE_INTERVAL_NS", &plan.update_interval_ns, true)
        .override_global("CURRENT_IN_SOCK_OPS", &current, true)
        .override_global("SYN_MET_IS_HIDDEN", &syn_met_is_hidden, true)
        .map_max_entries("RING", plan.ring_bytes)
        .override_global("PLACE_MASK", &mask, true)
        .map_max_entries("TAGS", places)
        .map_max_entries("CONNECTIONS", places)
        .map_max_entries("CROWDED", crowded);
    for ((global, _, _), offset) in FIELDS.iter().zip(&offsets) {
        loader.override_global(global, offset, true);
    }
    let task_fields = datagrams::task_offsets();
    for ((global, _, _), offset) in datagrams::TASK_FIELDS.iter().zip(&task_fields) {
        loader.override_global(global, offset, true);
    }
    if let Some(dir) = dir {
        for map in MAPS {
            loader.map_pin_path(map, dir.join(map));
        }
    }
    Ok(loader.load(OBJECT)?)
}

/// Numbers a new ring, or notes new programs on an old one, before any program can write.
fn remember_new(plan: &Plan, object: &mut Ebpf, attachment: u64) -> Result<(), HookError> {
    let map = object
        .take_map("META")
        .ok_or(HookError::NoProgram("META"))?;
    let mut meta: Array<MapData, Plain<Meta>> = Array::try_from(map)?;
    let mut state = meta.get(&0, 0)?.0;
    if state.ring_base == 0 {
        state = Meta {
            ring_base: plan.now_ns,
            attached_ns: plan.monotonic_ns,
            clock_offset_us: plan.clock_offset_us,
            ..Meta::default()
        };
    }
    state.attachment = attachment;
    Ok(meta.set(0, Plain(state), 0)?)
}

fn attach_program(
    object: &mut Ebpf,
    name: &'static str,
    cgroup: &File,
) -> Result<FdLink, HookError> {
    let program = object.program_mut(name).ok_or(HookError::NoProgram(name))?;
    let refused = |error| HookError::Program { name, error };
    Ok(match program {
        aya::programs::Program::SockOps(ops) => {
            ops.load().map_err(refused)?;
            let id = ops
                .attach(cgroup, CgroupAttachMode::Single)
                .map_err(refused)?;
            FdLink::try_from(SockOps::take_link(ops, id).map_err(refused)?)?
        }
        aya::programs::Program::CgroupSock(sock) => {
            sock.load().map_err(refused)?;
            let id = sock
                .attach(cgroup, CgroupAttachMode::Single)
                .map_err(refused)?;
            FdLink::try_from(CgroupSock::take_link(sock, id).map_err(refused)?)?
        }
        _ => return Err(HookError::NoProgram(name)),
    })
}

/// Offsets in the order of the fields above; all 0 when any is missing, since the programs rely on them together.
pub fn offsets() -> [u32; FIELDS.len()] {
    let bytes = fs::read(VMLINUX).unwrap_or_default();
    let mut offsets = [0; FIELDS.len()];
    let Some(btf) = Btf::parse(&bytes) else {
        return offsets;
    };
    for (slot, (_, structure, member)) in offsets.iter_mut().zip(FIELDS) {
        // A namespace's number is a member of a member.
        let inner = if structure == "net" {
            btf.offset("ns_common", "inum")
        } else {
            Some(0)
        };
        match btf.offset(structure, member).zip(inner) {
            Some((outer, inner)) => *slot = outer + inner,
            None => return [0; FIELDS.len()],
        }
    }
    offsets
}

/// What is attached is known by a hash of the programs, their settings and the cgroup.
pub(super) fn attachment(plan: &Plan) -> Result<u64, HookError> {
    let cgroup = fs::metadata(&plan.cgroup)
        .map_err(|error| path(&plan.cgroup, error))?
        .ino();
    let mut hash = blake3::Hasher::new();
    hash.update(OBJECT)
        .update(&cgroup.to_le_bytes())
        .update(&plan.update_interval_ns.to_le_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    Ok(u64::from_le_bytes(first))
}

/// Whether `dir`, or the nearest of its parents that exists, is in bpffs; mounts it at the usual place when that is
/// where `dir` is and nothing is mounted there.
pub fn require_bpffs(dir: &Path) -> Result<(), HookError> {
    const USUAL: &str = "/sys/fs/bpf";
    let is_bpffs = |at: &Path| {
        nix::sys::statfs::statfs(at)
            .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
    };
    let existing = dir
        .ancestors()
        .find(|at| at.exists())
        .unwrap_or(Path::new("/"));
    if is_bpffs(existing) {
        return Ok(());
    }
    if !dir.starts_with(USUAL) {
        return Err(HookError::NotBpffs(dir.into()));
    }
    nix::mount::mount(
        Some("bpf"),
        USUAL,
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .map_err(|error| path(Path::new(USUAL), error.into()))
}

pub(super) fn versioned(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{LAYOUT_VERSION}"))
}

fn versions(pin_dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(pin_dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .strip_prefix('v')
                .is_some_and(|rest| rest.parse::<u32>().is_ok())
        })
        .map(|entry| entry.path())
        .collect()
}

/// Hooks of another layout must go before ours come, or each connection would be seen twice. Gives the number of records that go
/// unread with them.
fn remove_other_versions(pin_dir: &Path) -> u64 {
    let mut discarded = 0;
    for version in versions(pin_dir)
        .into_iter()
        .filter(|dir| *dir != versioned(pin_dir))
    {
        discarded += unread(&version);
        clear(&version);
    }
    discarded
}

/// Removes a directory of pins whatever they are called: another version may have had others.
fn clear(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
    let _ = fs::remove_dir(dir);
}

pub(super) fn remove<'a>(dir: &Path, names: impl Iterator<Item = &'a str>) {
    for name in names {
        let _ = fs::remove_file(dir.join(name));
    }
}

fn create(dir: &Path) -> Result<(), HookError> {
    fs::create_dir_all(dir).map_err(|error| path(dir, error))
}

pub(super) fn path(path: &Path, error: io::Error) -> HookError {
    HookError::Path {
        path: path.into(),
        error,
    }
}
