//! A world of its own for each case, and how it is torn down.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use weft_agent::attribution::{Attribution, RealHost};
use weft_agent::capture::Capture;
use weft_agent::clock::Clock;
use weft_agent::config::Config;
use weft_agent::counters::Counters;
use weft_agent::flows::Flows;
use weft_agent::kernel::{DatagramPlan, Datagrams, Hooks, Plan, hooks};
use weft_agent::lookups::Lookups;
use weft_agent::sink::BatchSink;
use weft_agent::snapshot::Snapshot;
use weft_agent::table::{Identity, Table};
use weft_agent::time;
use weft_wire::{AgentKey, Half, HalfBatch, Lookup, LookupBatch, Owner, PeerName};

use crate::packet::Packet;

/// A case: its name and what it does.
pub type Case = (&'static str, fn(&mut World));

/// Longest a case may take: a limit for a hang, no measurement.
const CASE_LIMIT: Duration = Duration::from_secs(60);
/// Longest to wait for something that must come.
const WAIT_LIMIT: Duration = Duration::from_secs(20);

/// A limit for a hang, times `WEFT_PATIENCE`: on a machine whose processor is software all takes longer.
pub fn patience(limit: Duration) -> Duration {
    let word = std::env::var("WEFT_PATIENCE").unwrap_or_default();
    limit * word.parse().unwrap_or(1)
}

fn cases() -> impl Iterator<Item = &'static Case> {
    let all = super::cases::ALL
        .iter()
        .chain(super::losses::ALL)
        .chain(super::datagrams::ALL)
        .chain(super::calls::ALL)
        .chain(super::nginx::ALL)
        .chain(super::tls::ALL);
    all.chain(super::lookups::ALL)
}

/// Runs every case that a filter admits, one after the other: they share sysctls of one kernel.
pub fn run_all(arguments: &[String]) -> ExitCode {
    if arguments.iter().any(|argument| argument == "--list") {
        cases().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() {
        println!(
            "error: these tests attach kernel programs and need root\nhint:  sudo -E cargo test -p weft-agent"
        );
        return ExitCode::FAILURE;
    }
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let mut failed = 0;
    let mut run = 0;
    for (name, _) in cases() {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        run += 1;
        let outcome = run_case(name);
        println!("test {name} ... {outcome}");
        failed += usize::from(outcome == FAILED);
    }
    println!("\n{run} cases, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What becomes of a case, as it is printed.
const PASSED: &str = "ok";
const FAILED: &str = "FAILED";
/// Not for this kernel; the case has said why.
const SKIPPED: &str = "skipped";
/// With this a case's process says that.
const SKIP: i32 = 77;

/// Ends a case that this kernel has not the hooks for, and says what is missing. Where `WEFT_CALL_HOOKS` is `required`
/// it is a failure.
pub fn skip(missing: &dyn std::fmt::Display) -> ! {
    if std::env::var_os("WEFT_CALL_HOOKS").is_some_and(|word| word == "required") {
        panic!("{missing}");
    }
    println!("{missing}");
    std::process::exit(SKIP)
}

fn run_case(name: &str) -> &'static str {
    let place = Place::make(name);
    let mut child = myself("inside")
        .args([
            name,
            place.cgroup.to_str().unwrap(),
            place.pins.to_str().unwrap(),
        ])
        .spawn()
        .unwrap();
    let deadline = Instant::now() + patience(CASE_LIMIT);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return match status.code() {
                Some(0) => PASSED,
                Some(SKIP) => SKIPPED,
                _ => FAILED,
            };
        }
        if Instant::now() > deadline {
            println!("{name}: hangs, {} s now", patience(CASE_LIMIT).as_secs());
            let _ = child.kill();
            let _ = child.wait();
            return FAILED;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What outlives a case's process, removed when dropped.
pub struct Place {
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Its directory in bpffs; not there before something is pinned.
    pub pins: PathBuf,
}

impl Place {
    /// For a case of this name.
    pub fn make(name: &str) -> Self {
        let unique = format!("weft-test-{}-{name}", std::process::id());
        let place = Self {
            cgroup: cgroup_mount().join(&unique),
            pins: Path::new("/sys/fs/bpf").join(&unique),
        };
        fs::create_dir(&place.cgroup).unwrap();
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if fs::write(self.cgroup.join("cgroup.kill"), "1").is_err() {
            // Kernels before 5.14.
            let left = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap_or_default();
            for pid in left.lines().filter_map(|pid| pid.parse().ok()) {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
            }
        }
        hooks::unload(&self.pins);
        let deadline = Instant::now() + patience(WAIT_LIMIT);
        while fs::remove_dir(&self.cgroup).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where cgroup v2 is mounted.
fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .expect("a cgroup2 mount");
    line.split(' ').nth(1).unwrap().into()
}

pub fn myself(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(role);
    command
}

/// The case's own process: enters its namespace and cgroup, then does what the case says.
pub fn inside(arguments: &[String]) -> ExitCode {
    let [name, cgroup, pins] = arguments else {
        return ExitCode::FAILURE;
    };
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").unwrap();
    ip(&["link", "set", "lo", "up"]);
    let mut world = World::new(cgroup.into(), pins.into());
    let (_, case) = cases().find(|(known, _)| known == name).unwrap();
    case(&mut world);
    ExitCode::SUCCESS
}

/// A process that connects, sends a little and is gone.
pub fn connect_and_exit(arguments: &[String]) -> ExitCode {
    let address: SocketAddr = arguments[0].parse().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"bye").unwrap();
    ExitCode::SUCCESS
}

/// The name of the process [`thread_connects_and_exits`], and that of its thread.
pub const LEADER: &str = "weft-leader";
const THREAD: &str = "weft-thread";

/// A process of which a thread connects and sends a datagram, and that is gone: `thread TCP UDP`.
pub fn thread_connects_and_exits(arguments: &[String]) -> ExitCode {
    fs::write("/proc/self/comm", LEADER).unwrap();
    let [tcp, udp] = [0, 1].map(|index| arguments[index].parse::<SocketAddr>().unwrap());
    let speak = move || {
        TcpStream::connect(tcp).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"hello", udp).unwrap();
    };
    let thread = std::thread::Builder::new().name(THREAD.into()).spawn(speak);
    thread.unwrap().join().unwrap();
    ExitCode::SUCCESS
}

/// A process that listens, on a port that others may share, and tells everyone who calls its process id: `listen PORT`.
pub fn listen(arguments: &[String]) -> ExitCode {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
        sockopt,
    };
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )
    .unwrap();
    setsockopt(&fd, sockopt::ReusePort, &true).unwrap();
    let port = arguments[0].parse().unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
    listen(&fd, Backlog::new(64).unwrap()).unwrap();
    let listener = TcpListener::from(fd);
    println!("{}", listener.local_addr().unwrap());
    for stream in listener.incoming() {
        let _ = stream.unwrap().write_all(&std::process::id().to_le_bytes());
    }
    ExitCode::SUCCESS
}

/// An agent that only captures, into a file, until it is killed: `agent CGROUP PINS FILE DEATH`.
pub fn agent(arguments: &[String]) -> ExitCode {
    let [cgroup, pins, file, death] = arguments else {
        return ExitCode::FAILURE;
    };
    let mut capture = start(
        Path::new(cgroup),
        Path::new(pins),
        &Settings::default(),
        FileSink::open(Path::new(file), death),
    );
    loop {
        capture.poll(time::monotonic_ns());
        capture.flush().unwrap();
    }
}

/// What a case may choose.
#[derive(Clone)]
pub struct Settings {
    /// Size of the ring.
    pub ring_bytes: u32,
    /// Most connections in the kernel's map.
    pub max_connections: u32,
    /// Time between updates.
    pub update_interval_ns: u64,
    /// Of datagrams.
    pub datagrams: DatagramPlan,
    /// Whether the packets of name servers are read.
    pub lookups: bool,
    /// Where names of addresses are kept for the next agent.
    pub names: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ring_bytes: 1 << 20,
            max_connections: 10_000,
            update_interval_ns: 3_600_000_000_000,
            datagrams: DatagramPlan {
                max_flows: 10_000,
                dns_ring_bytes: 1 << 20,
                ..DatagramPlan::default()
            },
            lookups: false,
            names: None,
        }
    }
}

/// The case's side: a capture with a sink in memory.
pub struct World {
    /// The watched cgroup.
    pub cgroup: PathBuf,
    /// Where pins go.
    pub pins: PathBuf,
    /// How to attach; change it before [`World::watch`].
    pub settings: Settings,
    capture: Option<Capture<RealHost, MemorySink>>,
    snapshot: Option<Snapshot>,
}

/// Keeps everything.
#[derive(Default)]
pub struct MemorySink {
    batches: Vec<HalfBatch>,
    lookups: Vec<LookupBatch>,
    last: Option<u64>,
}

impl BatchSink for MemorySink {
    fn append(&mut self, batch: &HalfBatch, ring_position: u64) -> std::io::Result<()> {
        self.batches.push(batch.clone());
        self.last = Some(ring_position);
        Ok(())
    }

    fn last_ring_position(&self) -> Option<u64> {
        self.last
    }

    fn append_lookups(&mut self, batch: &LookupBatch, _position: u64) -> std::io::Result<()> {
        self.lookups.push(batch.clone());
        Ok(())
    }
}

/// Identity of every test's agent.
pub const IDENTITY: Identity = Identity {
    agent: AgentKey(1),
    boot: 2,
};

/// Settings as the agent's configuration would say them.
pub fn plan(cgroup: &Path, pins: &Path, settings: &Settings) -> Plan {
    Plan {
        cgroup: cgroup.into(),
        pin_dir: pins.into(),
        ring_bytes: settings.ring_bytes,
        max_connections: settings.max_connections,
        update_interval_ns: settings.update_interval_ns,
        clock_offset_us: time::clock_offset_us(),
        now_ns: time::utc_ns(),
        monotonic_ns: time::monotonic_ns(),
    }
}

fn start<S: BatchSink>(
    cgroup: &Path,
    pins: &Path,
    settings: &Settings,
    sink: S,
) -> Capture<RealHost, S> {
    let plan = plan(cgroup, pins, settings);
    let hooks = Hooks::attach(&plan).unwrap_or_else(|error| panic!("{error}"));
    // A kernel that refuses the hooks for datagrams must see connections all the same.
    let case = std::env::args().nth(2).unwrap_or_default();
    let required = settings.lookups || case.starts_with("udp_") || case.starts_with("dns_");
    let flows = match Datagrams::attach(&plan, &settings.datagrams, &hooks) {
        Ok(datagrams) => Some(Flows::new(
            datagrams,
            IDENTITY,
            &settings.datagrams,
            plan.update_interval_ns,
        )),
        Err(error) if required => panic!("{error}"),
        Err(_) => None,
    };
    let clock = Clock::new(hooks.state.clock_offset_us);
    let naming =
        Config::parse("name = 'a'\nfederator = 'f:1'\nidentity = '/i'\nworkload = 'tests'")
            .unwrap();
    let attribution = Attribution::new(RealHost::new(cgroup), naming);
    let mut capture = Capture::new(
        hooks,
        Table::new(IDENTITY, 10_000),
        attribution,
        clock,
        sink,
        Arc::new(Counters::default()),
    );
    capture.lookups = flows.as_ref().filter(|_| settings.lookups).map(|flows| {
        let (ring, base) = (
            &flows.datagrams.dns_ring,
            flows.datagrams.meta.dns_ring_base,
        );
        let ports = settings.datagrams.dns_ports.clone();
        let mut lookups = Lookups::new(IDENTITY.boot, ring, base, None, ports);
        if let Some(path) = &settings.names {
            lookups.save_names_in(path);
        }
        lookups
    });
    capture.flows = flows;
    capture
}

impl World {
    fn new(cgroup: PathBuf, pins: PathBuf) -> Self {
        Self {
            cgroup,
            pins,
            settings: Settings::default(),
            capture: None,
            snapshot: None,
        }
    }

    /// Attaches the hooks.
    pub fn watch(&mut self) {
        self.capture = Some(start(
            &self.cgroup,
            &self.pins,
            &self.settings,
            MemorySink::default(),
        ));
    }

    /// The agent is gone; its hooks stay.
    pub fn lose_agent(&mut self) {
        self.capture = None;
    }

    /// Reads the kernel's map of flows, whatever the time.
    pub fn sweep_flows(&mut self) {
        let now_ns = time::monotonic_ns();
        let capture = self.capture();
        let Capture {
            flows,
            attribution,
            clock,
            ..
        } = capture;
        flows
            .as_mut()
            .unwrap()
            .sweep_now(attribution, clock, now_ns);
    }

    fn datagrams(&mut self) -> &Datagrams {
        &self.capture().flows.as_ref().unwrap().datagrams
    }

    /// Flows now in the kernel's map.
    pub fn flows_in_kernel(&mut self) -> usize {
        self.datagrams().flows.entries().unwrap().len()
    }

    /// A counter of what was lost about datagrams.
    pub fn datagrams_lost(&mut self, slot: u32) -> u64 {
        self.datagrams().dropped(slot)
    }

    /// Takes every packet of name servers out of their ring.
    pub fn dns_packets(&mut self) -> Vec<Packet> {
        let flows = self.capture().flows.as_mut().unwrap();
        let ring = &mut flows.datagrams.dns_ring;
        let (mut position, mut packets) = (ring.consumed(), Vec::new());
        while let Some((bytes, next)) = ring.peek(position) {
            packets.push(Packet::read(bytes));
            position = next;
        }
        ring.consume(position);
        packets
    }

    /// Lets go of the hooks, which stay.
    pub fn forget(&mut self) {
        (self.capture, self.snapshot) = (None, None);
    }

    /// Whether the hooks would attach.
    pub fn try_watch(&self) -> Result<(), String> {
        let plan = plan(&self.cgroup, &self.pins, &self.settings);
        Hooks::attach(&plan)
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// The running capture.
    pub fn capture(&mut self) -> &mut Capture<RealHost, MemorySink> {
        self.capture.as_mut().expect("watch() first")
    }

    /// Reads the rings once and gives every lookup so far.
    pub fn lookups(&mut self) -> Vec<(Lookup, Owner)> {
        self.rows();
        self.lookups_handed_over()
    }

    /// The same before the agent has looked for open connections.
    pub fn lookups_at_once(&mut self) -> Vec<(Lookup, Owner)> {
        let capture = self.capture();
        capture.poll(time::monotonic_ns());
        capture.flush().unwrap();
        self.lookups_handed_over()
    }

    fn lookups_handed_over(&mut self) -> Vec<(Lookup, Owner)> {
        let batches = self.capture().sink().lookups.iter();
        let rows = batches.flat_map(|batch| {
            let owner = |lookup: &Lookup| batch.owners[lookup.owner as usize].clone();
            batch
                .lookups
                .iter()
                .map(move |lookup| (lookup.clone(), owner(lookup)))
        });
        rows.collect()
    }

    /// The newest row of the connection with this end, and the name of its peer.
    pub fn named(&mut self, local: SocketAddr) -> Option<(Half, PeerName)> {
        self.rows();
        let batches = self.capture().sink().batches.iter();
        let rows = batches.flat_map(|batch| batch.halves.iter().map(move |half| (half, batch)));
        // As a federator does: a later row that tells no name unlearns none.
        let mut own = rows.rev().filter(|(half, _)| half.local == local);
        own.find_map(|(half, batch)| Some((*half, batch.name_of(half)?.clone())))
    }

    /// Reads the ring once and gives every row so far, one for each update.
    pub fn rows(&mut self) -> Vec<(Half, Owner)> {
        let capture = self.capture();
        capture.poll(time::monotonic_ns());
        for _ in 0..2 {
            capture.look(time::monotonic_ns());
        }
        capture.poll(time::monotonic_ns());
        capture.flush().unwrap();
        capture
            .sink()
            .batches
            .iter()
            .flat_map(|batch| {
                batch
                    .halves
                    .iter()
                    .map(|half| (*half, batch.owners[half.owner as usize].clone()))
            })
            .collect()
    }

    /// The newest row of each connection, in the order in which they were first seen.
    pub fn halves(&mut self) -> Vec<(Half, Owner)> {
        let mut newest: Vec<(Half, Owner)> = Vec::new();
        for row in self.rows() {
            match newest.iter_mut().find(|(half, _)| half.id == row.0.id) {
                Some(known) => *known = row,
                None => newest.push(row),
            }
        }
        newest
    }

    /// Waits until the newest rows are as they must be.
    pub fn wait(
        &mut self,
        what: &str,
        mut ready: impl FnMut(&[(Half, Owner)]) -> bool,
    ) -> Vec<(Half, Owner)> {
        let deadline = Instant::now() + patience(WAIT_LIMIT);
        loop {
            let halves = self.halves();
            if ready(&halves) {
                return halves;
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}: {halves:#?}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for `count` connections that are all finished.
    pub fn finished(&mut self, count: usize) -> Vec<(Half, Owner)> {
        self.wait("finished halves", |halves| {
            halves.len() >= count && halves.iter().all(|(half, _)| half.state.finished())
        })
    }

    /// Starts a process that connects and is gone at once.
    pub fn connecting_process(&self, address: SocketAddr) -> Child {
        myself("connect").arg(address.to_string()).spawn().unwrap()
    }

    /// Starts a process that listens (on any port for 0) and accepts until it is killed.
    pub fn listening_process(&self, port: u16) -> (Child, SocketAddr) {
        let mut child = myself("listen")
            .arg(port.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        (child, line.trim().parse().unwrap())
    }

    /// Whether connections have places where the agent finds them; else their opening is a record too.
    pub fn placed(&mut self) -> bool {
        self.capture().hooks.tags.len() > self.settings.max_connections as usize / 2
    }

    /// Records that wait in the ring.
    pub fn records_in_ring(&mut self) -> u64 {
        let ring = &mut self.capture().hooks.ring;
        let (mut position, mut count) = (ring.consumed(), 0);
        while let Some((_, next)) = ring.peek(position) {
            (position, count) = (next, count + 1);
        }
        count
    }

    /// As the agent does when it starts.
    pub fn snapshot(&mut self) {
        let mut snapshot = Snapshot::new(&self.cgroup, 0);
        snapshot.start(self.capture());
        self.snapshot = Some(snapshot);
    }

    /// As the agent does now and then.
    pub fn sweep(&mut self) {
        let mut snapshot = self.snapshot.take().expect("snapshot() first");
        snapshot.sweep(self.capture());
        self.snapshot = Some(snapshot);
    }

    /// Starts an agent process that writes what it sees to a file.
    pub fn agent_process(&self, file: &Path, death: &str) -> Child {
        let (cgroup, pins) = (self.cgroup.to_str().unwrap(), self.pins.to_str().unwrap());
        myself("agent")
            .args([cgroup, pins, file.to_str().unwrap(), death])
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }
}

/// Runs `ip`.
pub fn ip(arguments: &[&str]) {
    let status = Command::new("ip")
        .args(arguments)
        .status()
        .expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments:?}");
}

/// A process that uses a socket made by another: its standard input.
pub fn send() -> ExitCode {
    use std::os::fd::AsFd;
    let fd = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let socket = std::net::UdpSocket::from(fd);
    socket.send(&[0x5a; 64]).unwrap();
    socket.recv(&mut [0; 16]).unwrap();
    ExitCode::SUCCESS
}

/// Sets a sysctl of this network namespace.
pub fn sysctl(name: &str, value: &str) {
    fs::write(Path::new("/proc/sys/net").join(name), value).unwrap();
}

/// Both ends of the connection that `local` is one end of: client first.
pub fn pair(halves: &[(Half, Owner)], client: SocketAddr) -> ((Half, Owner), (Half, Owner)) {
    let find = |matches: &dyn Fn(&Half) -> bool| {
        let found: Vec<_> = halves.iter().filter(|(half, _)| matches(half)).collect();
        assert_eq!(found.len(), 1, "exactly one half: {halves:#?}");
        found[0].clone()
    };
    (
        find(&|half| half.local == client),
        find(&|half| half.remote == client),
    )
}

/// A loopback address of a family.
pub fn loopback(family: u8) -> IpAddr {
    if family == 4 {
        IpAddr::from([127, 0, 0, 1])
    } else {
        IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])
    }
}

/// Appends after which an agent that is to die does.
const LIFE_APPENDS: u32 = 20;

/// A sink that is a file of lines `cookie state bytes_sent position`, flushed with each batch.
pub struct FileSink {
    path: PathBuf,
    last: Option<u64>,
    /// `before` or `after` the write, or never.
    death: String,
    appends: u32,
}

impl FileSink {
    fn open(path: &Path, death: &str) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let last = text
            .lines()
            .last()
            .and_then(|line| line.rsplit(' ').next())
            .and_then(|word| word.parse().ok());
        Self {
            path: path.into(),
            last,
            death: death.into(),
            appends: 0,
        }
    }
}

impl FileSink {
    /// kill -9, at the moment that is asked for.
    fn die(&self, moment: &str) {
        if self.death == moment && self.appends > LIFE_APPENDS {
            let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
        }
    }
}

impl BatchSink for FileSink {
    fn append(&mut self, batch: &HalfBatch, ring_position: u64) -> std::io::Result<()> {
        self.appends += 1;
        self.die("before");
        let mut lines = String::new();
        for half in &batch.halves {
            lines += &format!(
                "{} {:?} {} {ring_position}\n",
                half.cookie, half.state, half.bytes_sent
            );
        }
        // One write call: a kill leaves the whole of it or nothing (a file in memory, shorter than its limit on a write).
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)?
            .write_all(lines.as_bytes())?;
        self.die("after");
        self.last = Some(ring_position);
        Ok(())
    }

    fn last_ring_position(&self) -> Option<u64> {
        self.last
    }
}

/// A counter of the capture's shared ones, read after publishing.
pub fn counter(
    world: &mut World,
    read: impl Fn(&Counters) -> &std::sync::atomic::AtomicU64,
) -> u64 {
    let capture = world.capture();
    capture.publish();
    read(capture.counters()).load(Ordering::Relaxed)
}
