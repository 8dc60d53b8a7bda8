//! A documented workload: finished halves as a busy node makes them, from a seed.
//!
//! Shared by the tests, the fuzz corpus and the bench, so that figures are about the same rows. What it models, and
//! why:
//!
//! - A node with [`Workload::workloads`] containers; each serves one port and calls a few others. Two thirds of the
//!   halves are servers' (an accept), one third clients' (a connect): a service is called more often than it calls.
//! - Peers: [`Workload::peers`] addresses, popular ones much more than others (Zipf). One in 16 is IPv6.
//! - Initial sequence numbers: uniformly random (RFC 6528), so 8 bytes that nothing compresses. Ephemeral ports:
//!   uniform over Linux's default range 32768 to 60999; where the peer is behind a NAT that randomises (one in four),
//!   over 1024 to 65535.
//! - Cookies: as the kernel makes them, each CPU from a range of 4096 of its own ([`Workload::cpus`]).
//! - Arrivals are random (exponential gaps), [`Workload::per_second`]. Rows come in the order of closing. Lifetimes,
//!   sizes and round trips are log-normal around a median of their service: 5 ms (spread 1.2 in the natural
//!   logarithm), a few hundred bytes up (0.7), a few thousand down (1.2), 300 µs (0.6). One connection in ten is a
//!   health check of a constant size. One in 200 has retransmissions, one in 500 was refused and has no server ISN.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::*;

/// A small generator (SplitMix64): the same seed gives the same rows on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0)
    }

    /// Uniform below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(limit)) >> 64) as u64
    }

    /// Uniform in (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Exponential with this mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    /// Log-normal: `median` times e to the power of a normal deviate times `spread`.
    pub fn log_normal(&mut self, median: f64, spread: f64) -> f64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        median * (spread * normal).exp()
    }
}

/// The node that the rows come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Containers on the node.
    pub workloads: usize,
    /// Distinct peers' addresses.
    pub peers: usize,
    /// CPUs.
    pub cpus: usize,
    /// Connections finished a second.
    pub per_second: f64,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            workloads: 12,
            peers: 60,
            cpus: 8,
            per_second: 10_000.0,
        }
    }
}

/// Makes batch after batch of one node.
#[derive(Debug)]
pub struct Generator {
    workload: Workload,
    random: Random,
    now_us: f64,
    owners: Vec<Owner>,
    locals: Vec<IpAddr>,
    peers: Vec<IpAddr>,
    next_cookie: Vec<u64>,
    cookie_ranges: u64,
}

/// The range of cookies that a CPU takes at a time (`COOKIE_LOCAL_BATCH` of the kernel).
const COOKIE_RANGE: u64 = 4096;

impl Generator {
    /// From a seed.
    pub fn new(workload: Workload, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let owners = (0..workload.workloads)
            .map(|index| owner(&mut random, index))
            .collect();
        let locals = (0..workload.workloads)
            .map(|index| address(&mut random, index as u64, 0x0a01))
            .collect();
        let peers = (0..workload.peers)
            .map(|index| address(&mut random, index as u64, 0x0a02))
            .collect();
        let next_cookie = (0..workload.cpus as u64)
            .map(|cpu| (1000 + cpu) * COOKIE_RANGE)
            .collect();
        let cookie_ranges = 1000 + workload.cpus as u64;
        Self {
            workload,
            random,
            now_us: 1.795e15,
            owners,
            locals,
            peers,
            next_cookie,
            cookie_ranges,
        }
    }

    /// The next rows, finished one after the other.
    pub fn batch(&mut self, rows: usize) -> HalfBatch {
        let halves = (0..rows).map(|_| self.half()).collect();
        HalfBatch {
            boot: 0x5eed_b007_5eed_b007,
            owners: self.owners.clone(),
            halves,
            ..HalfBatch::default()
        }
    }

    fn half(&mut self) -> Half {
        self.now_us += self.random.exponential(1e6 / self.workload.per_second);
        let owner = self.zipf(self.workload.workloads);
        let role = if self.random.below(3) == 0 {
            Role::Client
        } else {
            Role::Server
        };
        // A client calls the few services that its workload needs.
        let peer = match role {
            Role::Client => (owner * 7 + self.zipf(4)) % self.peers.len(),
            Role::Server => self.zipf(self.peers.len()),
        };
        let server_port = 8000
            + if role == Role::Client {
                peer % 9
            } else {
                owner
            } as u16;
        let client_port = match (role, peer % 4) {
            (Role::Server, 3) => 1024 + self.random.below(64_512),
            _ => 32_768 + self.random.below(28_232),
        } as u16;
        let (local, remote) = match role {
            Role::Client => (client_port, server_port),
            Role::Server => (server_port, client_port),
        };
        let refused = role == Role::Client && self.random.below(500) == 0;
        let life = if refused {
            150.0
        } else {
            self.random.log_normal(5_000.0, 1.2)
        };
        let seen_at = Timestamp(self.now_us as i64);
        let mut half = Half {
            id: HalfId(0),
            cookie: self.cookie(),
            protocol: Protocol::Tcp,
            role,
            state: if refused {
                HalfState::Refused
            } else {
                HalfState::Closed
            },
            fingerprint: Fingerprint::Unknown,
            local: SocketAddr::new(self.locals[owner], local),
            remote: SocketAddr::new(self.peers[peer], remote),
            opened_at: Timestamp(seen_at.0 - life as i64),
            closed_at: Some(seen_at),
            seen_at,
            bytes_sent: 0,
            bytes_received: 0,
            packets_sent: 1,
            packets_received: 1,
            rtt_us: 0,
            retransmits: 0,
            owner: owner as u32,
            ..Half::default()
        };
        if !refused {
            let (client, server) = (self.random.bits() as u32, self.random.bits() as u32);
            half.fingerprint = Fingerprint::TcpIsn { client, server };
            self.traffic(&mut half, owner);
        }
        half
    }

    fn traffic(&mut self, half: &mut Half, owner: usize) {
        let (up, down) = if self.random.below(10) == 0 {
            (87, 142)
        } else {
            let service = 1.0 + owner as f64 / 4.0;
            (
                self.random.log_normal(300.0 * service, 0.7) as u64,
                self.random.log_normal(2_000.0 * service, 1.2) as u64,
            )
        };
        // Handshake and end, data segments, and an acknowledgement for every second segment of the other side.
        let (segments_up, segments_down) = (up.div_ceil(1448), down.div_ceil(1448));
        let (packets_up, packets_down) = (
            3 + segments_up + segments_down.div_ceil(2),
            2 + segments_down + segments_up.div_ceil(2),
        );
        (
            half.bytes_sent,
            half.bytes_received,
            half.packets_sent,
            half.packets_received,
        ) = match half.role {
            Role::Client => (up, down, packets_up, packets_down),
            Role::Server => (down, up, packets_down, packets_up),
        };
        half.rtt_us = self.random.log_normal(300.0, 0.6) as u32;
        if self.random.below(200) == 0 {
            half.retransmits = 1 + self.random.below(4) as u32;
            half.packets_sent += u64::from(half.retransmits);
        }
    }

    /// Index below `count`, 0 the most frequent.
    fn zipf(&mut self, count: usize) -> usize {
        let last = count as f64;
        (((last + 1.0).powf(self.random.unit()) - 1.0) as usize).min(count - 1)
    }

    fn cookie(&mut self) -> u64 {
        let cpu = self.random.below(self.workload.cpus as u64) as usize;
        let cookie = self.next_cookie[cpu];
        self.next_cookie[cpu] += 1;
        if self.next_cookie[cpu].is_multiple_of(COOKIE_RANGE) {
            self.next_cookie[cpu] = self.cookie_ranges * COOKIE_RANGE;
            self.cookie_ranges += 1;
        }
        cookie
    }
}

fn owner(random: &mut Random, index: usize) -> Owner {
    let container: String = (0..4).map(|_| format!("{:016x}", random.bits())).collect();
    let name = [
        "frontend",
        "checkout",
        "cart",
        "postgres",
        "redis-server",
        "nginx",
    ][index % 6];
    Owner {
        process: Some(Process {
            pid: 1000 + random.below(1 << 22) as u32,
            started_at: Timestamp(1_795_000_000_000_000 + random.below(1 << 40) as i64),
            name: name.into(),
            exe: Some(format!("/usr/bin/{name}")),
            uid: 1000 + index as u32 % 3,
            user: None,
            ..Process::default()
        }),
        cgroup: format!(
            "/kubepods.slice/kubepods-burstable.slice/cri-containerd-{container}.scope"
        ),
        container: Some(container),
        netns: 0xf000_0000 + index as u32,
        workload: format!("{name}-{index}"),
        ..Owner::default()
    }
}

fn address(random: &mut Random, index: u64, network: u64) -> IpAddr {
    if index % 16 == 15 {
        let bits = u128::from(random.bits());
        return Ipv6Addr::from_bits(0xfd00 << 112 | bits).into();
    }
    Ipv4Addr::from_bits((network << 16 | random.below(1 << 16)) as u32).into()
}

/// Makes batch after batch of a node's lookups, of the same workloads.
///
/// What it models: a Kubernetes node whose resolver is one address (`ndots:5`). Each workload knows
/// [`LookupGenerator::NAMES`] names, a few much more often asked than the others; a third are outside the cluster, and
/// a process that asks for one tries the three suffixes of its search path first, in vain. Every question is asked for
/// A and AAAA, one right after the other, from one port. Ids and ports are random. Names inside have one address and a
/// life of 30 s, less what the resolver's cache has used up (whole seconds, uniform); outside one to four (popular
/// services change them from answer to answer: a choice of eight), half of them behind an alias, and a life of up to
/// five minutes; there is one AAAA outside for two names in three, none inside. One in 50 takes a second try, one in 300
/// is never answered. Latencies are log-normal around 300 µs (spread 0.8), outside 8 ms.
#[derive(Debug)]
pub struct LookupGenerator {
    random: Random,
    now_us: f64,
    per_second: f64,
    owners: Vec<Owner>,
    locals: Vec<IpAddr>,
    waiting: std::collections::VecDeque<Lookup>,
}

impl LookupGenerator {
    /// Names that a workload asks for.
    pub const NAMES: usize = 24;
    const WORKLOADS: usize = 12;

    /// So many questions a second, from a seed.
    pub fn new(per_second: f64, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let owners = (0..Self::WORKLOADS)
            .map(|index| owner(&mut random, index))
            .collect();
        let locals = (0..Self::WORKLOADS)
            .map(|index| address(&mut random, index as u64, 0x0a01))
            .collect();
        Self {
            random,
            now_us: 1.795e15,
            per_second,
            owners,
            locals,
            waiting: std::collections::VecDeque::new(),
        }
    }

    /// The next rows, in the order of asking.
    pub fn batch(&mut self, rows: usize) -> LookupBatch {
        let mut lookups = Vec::with_capacity(rows);
        while lookups.len() < rows {
            if self.waiting.is_empty() {
                self.ask();
            }
            lookups.extend(self.waiting.pop_front());
        }
        LookupBatch {
            boot: 0x5eed_b007_5eed_b007,
            owners: self.owners.clone(),
            lookups,
        }
    }

    /// What a process asks to connect to one name.
    fn ask(&mut self) {
        let workload = self.random.below(Self::WORKLOADS as u64) as usize;
        let last = (Self::NAMES + 1) as f64;
        let name = (last.powf(self.random.unit()) as usize - 1).min(Self::NAMES - 1);
        if !name.is_multiple_of(3) {
            let full = format!(
                "service-{}.shop.svc.cluster.local",
                (workload * 5 + name) % 40
            );
            let short = full.split('.').next().map(str::to_owned);
            self.pair(workload, full, short, Some((name as u64, false)));
            return;
        }
        let full = format!("api{name}.region-{}.example.com", (workload + name) % 5);
        for suffix in [
            "shop.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local",
        ] {
            let tried = format!("{full}.{suffix}");
            self.pair(workload, tried, Some(full.clone()), None);
        }
        self.pair(workload, full, None, Some((name as u64, true)));
    }

    /// A and AAAA of a name; `found` is which name it is and whether it is outside.
    fn pair(
        &mut self,
        workload: usize,
        name: String,
        search_of: Option<String>,
        found: Option<(u64, bool)>,
    ) {
        let port = 32_768 + self.random.below(28_232) as u16;
        for qtype in [1, 28] {
            self.now_us += self.random.exponential(1e6 / self.per_second);
            let request_bytes = name.len() as u32 + 29;
            let outside = found.is_some_and(|(_, outside)| outside);
            let mut lookup = Lookup {
                local: SocketAddr::new(self.locals[workload], port),
                resolver: SocketAddr::from((Ipv4Addr::new(10, 96, 0, 10), 53)),
                asked_at: Timestamp(self.now_us as i64),
                id: self.random.bits() as u16,
                name: name.clone(),
                qtype,
                search_of: search_of.clone(),
                request_bytes,
                tries: 1 + u8::from(self.random.below(50) == 0),
                owner: workload as u32,
                ..Lookup::default()
            };
            if self.random.below(300) > 0 {
                let median = if outside { 8_000.0 } else { 300.0 };
                lookup.latency_us = Some(self.random.log_normal(median, 0.8) as u32);
                lookup.code = Some(if found.is_some() { 0 } else { 3 });
                if let Some((name, outside)) = found {
                    self.answer(&mut lookup, name, outside);
                }
                let empty = if lookup.answers.is_empty() { 75 } else { 0 };
                lookup.response_bytes = request_bytes + empty + 16 * lookup.answers.len() as u32;
            }
            self.waiting.push_back(lookup);
        }
    }

    fn answer(&mut self, lookup: &mut Lookup, name: u64, outside: bool) {
        let life = self.random.below(if outside { 300 } else { 30 }) as u32;
        let v6 = lookup.qtype == 28;
        if !outside && !v6 {
            let service = Ipv4Addr::from_bits(0x0a60_0000 + name as u32 * 77);
            lookup.answers.push(Answer::Address(service.into(), life));
        }
        if outside && (!v6 || name % 9 < 6) {
            if name.is_multiple_of(2) {
                let alias = format!("edge-{name}.cdn.example.net");
                lookup.answers.push(Answer::Alias(alias));
            }
            let choice = self.random.below(8);
            for record in 0..=name % 4 {
                let bits = mix64((name << 8) | ((choice + record) % 8));
                let address = match v6 {
                    false => Ipv4Addr::from_bits(bits as u32).into(),
                    true => Ipv6Addr::from_bits(0x2600 << 112 | u128::from(bits)).into(),
                };
                lookup.answers.push(Answer::Address(address, life));
            }
        }
        lookup.answer_total = lookup.answers.len() as u16;
    }
}
