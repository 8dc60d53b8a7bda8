//! A world of hosts and NATs from one seed. It knows the truth; the stitcher sees what agents report of it, late, out of
//! order, more than once or never, by clocks that are wrong.

mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use common::{Fate, Ledger};
use weft_stitching::*;

const SECOND: i64 = 1_000_000;
const SEEDS: u64 = 400;
const CONNECTIONS: usize = 60;
const HOSTS: usize = 8;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, limit: i64) -> i64 {
        (self.next() % limit as u64) as i64
    }

    fn chance(&mut self, percent: i64) -> bool {
        self.below(100) < percent
    }
}

/// What stands between two hosts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Between {
    Nothing,
    Masquerade,
    Dnat,
    DoubleNat,
    Nat66,
    SynProxy,
    SynProxyAndDnat,
    TerminatingProxy,
}

const BETWEEN: [Between; 8] = [
    Between::Nothing,
    Between::Masquerade,
    Between::Dnat,
    Between::DoubleNat,
    Between::Nat66,
    Between::SynProxy,
    Between::SynProxyAndDnat,
    Between::TerminatingProxy,
];

/// A half at the end of its life, and when its reports come.
struct Half {
    view: HalfView,
    open_report: i64,
    close_report: i64,
    lost: bool,
    again: bool,
}

#[derive(Default)]
struct World {
    halves: Vec<Half>,
    fates: BTreeMap<u32, Fate>,
    ports: u16,
}

/// One end as its host has it.
struct End {
    role: Role,
    host: usize,
    isns: (u32, u32),
    local: SocketAddr,
    remote: SocketAddr,
}

/// What both ends of a TCP connection have in common.
#[derive(Clone, Copy)]
struct Life {
    opened: i64,
    closed: i64,
    to_server: u64,
    to_client: u64,
}

fn host_address(host: usize, six: bool) -> IpAddr {
    // Hosts of both networks have the same private addresses.
    let number = (host % (HOSTS / 2)) as u16 + 1;
    if six {
        [0xfd00, 0, 0, 0, 0, 0, 0, number].into()
    } else {
        [10, 0, 0, number as u8].into()
    }
}

fn network(host: usize) -> u64 {
    (host / (HOSTS / 2)) as u64
}

impl World {
    fn half(&mut self, random: &mut Random, end: &End, life: Life, old: bool, lossy: bool) -> u32 {
        let skew = (end.host as i64 * 7919 % 11 - 5) * SECOND / 20;
        let (sent, received) = match end.role {
            Role::Client => (life.to_server, life.to_client),
            Role::Server => (life.to_client, life.to_server),
        };
        // An agent that starts later finds the connection, without its ISNs.
        let found = if old {
            life.opened + random.below(life.closed - life.opened)
        } else {
            life.opened
        };
        let (client, server) = end.isns;
        let view = HalfView {
            role: end.role,
            fingerprint: if old {
                Fingerprint::Unknown
            } else {
                Fingerprint::TcpIsn { client, server }
            },
            network: network(end.host),
            host: end.host as u64,
            local: end.local,
            remote: end.remote,
            opened_at: found + skew + random.below(SECOND / 5),
            closed_at: Some(life.closed + skew + random.below(SECOND / 5)),
            seen_at: life.closed + skew + SECOND / 5,
            bytes_sent: sent,
            bytes_received: received,
            packets_sent: 0,
            packets_received: 0,
        };
        let (open_report, close_report) = (
            found + random.below(4 * SECOND),
            life.closed + random.below(4 * SECOND),
        );
        let (lost, again) = (lossy && random.chance(10), random.chance(20));
        let handle = self.halves.len() as u32;
        self.halves.push(Half {
            view,
            open_report,
            close_report,
            lost,
            again,
        });
        if !lost {
            self.fates.insert(handle, Fate::Alone);
        }
        handle
    }

    fn both(&mut self, client: u32, server: u32, fate: impl Fn(u32) -> Fate) {
        if self.fates.contains_key(&client) && self.fates.contains_key(&server) {
            self.fates.insert(client, fate(server));
            self.fates.insert(server, fate(client));
        }
    }

    fn port(&mut self) -> u16 {
        self.ports += 1;
        20_000 + self.ports
    }

    fn connection(
        &mut self,
        random: &mut Random,
        isns: (u32, u32),
        opened: i64,
        lossy: bool,
    ) -> [u32; 2] {
        let between = BETWEEN[random.below(8) as usize];
        let six = between == Between::Nat66 || random.chance(30);
        let near = random.chance(15);
        let client_host = random.below(HOSTS as i64) as usize;
        let mut server_host = random.below(HOSTS as i64) as usize;
        if between == Between::Nothing || between == Between::SynProxy {
            server_host = server_host % (HOSTS / 2) + client_host / (HOSTS / 2) * (HOSTS / 2);
        }
        let loopback = between == Between::Nothing && near;
        if loopback {
            server_host = client_host;
        }
        let life = Life {
            opened,
            closed: opened + SECOND / 2 + random.below(30 * SECOND),
            to_server: 1 + random.next() % 1_000_000,
            to_client: 1 + random.next() % 1_000_000,
        };
        let address = |host| {
            if loopback {
                IpAddr::from([127, 0, 0, 1])
            } else {
                host_address(host, six)
            }
        };
        let source = SocketAddr::new(address(client_host), self.port());
        let server = SocketAddr::new(address(server_host), 1000 + random.below(3) as u16);
        let public: IpAddr = if six {
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, 9].into()
        } else {
            [203, 0, 113, 9].into()
        };
        let masqueraded = SocketAddr::new(public, self.port());
        let (called, caller) = match between {
            Between::Nothing | Between::SynProxy => (server, source),
            Between::Masquerade => (server, masqueraded),
            Between::Dnat | Between::SynProxyAndDnat => {
                (SocketAddr::new(public, server.port()), source)
            }
            Between::DoubleNat | Between::TerminatingProxy => {
                (SocketAddr::new(public, 443), masqueraded)
            }
            Between::Nat66 => (server, SocketAddr::new(public, source.port())),
        };
        let server_isns = match between {
            Between::SynProxy | Between::SynProxyAndDnat => (isns.0, random.next() as u32),
            Between::TerminatingProxy => (random.next() as u32, random.next() as u32),
            _ => isns,
        };
        let (old_client, old_server) = (lossy && random.chance(10), lossy && random.chance(10));
        let client = End {
            role: Role::Client,
            host: client_host,
            isns,
            local: source,
            remote: called,
        };
        let server = End {
            role: Role::Server,
            host: server_host,
            isns: server_isns,
            local: server,
            remote: caller,
        };
        let c = self.half(random, &client, life, old_client, lossy);
        let s = self.half(random, &server, life, old_server, lossy);
        let old = old_client || old_server;
        let rule = match between {
            Between::TerminatingProxy => None,
            Between::Nothing | Between::SynProxy if old => Some(Rule::ReversedTuple),
            _ if old => None,
            Between::SynProxy | Between::SynProxyAndDnat => Some(Rule::TcpClientIsn),
            _ => Some(Rule::TcpIsnPair),
        };
        if let Some(rule) = rule {
            self.both(c, s, |other| Fate::Stitched(other, rule));
        }
        [c, s]
    }

    /// A socket that has connected to itself.
    fn self_connection(&mut self, random: &mut Random) {
        let life = Life {
            opened: 5 * SECOND,
            closed: 25 * SECOND,
            to_server: 3,
            to_client: 3,
        };
        let address = SocketAddr::new(host_address(0, false), self.port());
        let isn = random.next() as u32;
        let end = End {
            role: Role::Client,
            host: 0,
            isns: (isn, isn),
            local: address,
            remote: address,
        };
        let handle = self.half(random, &end, life, false, false);
        self.fates
            .insert(handle, Fate::Stitched(handle, Rule::TcpIsnPair));
    }

    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut world = Self::default();
        let mut isn = random.next() as u32;
        for _ in 0..CONNECTIONS {
            // Some hosts use an ISN again at once: for another connection, with another server ISN.
            if !random.chance(10) {
                isn = random.next() as u32;
            }
            let isns = (isn, random.next() as u32);
            let opened = random.below(40 * SECOND);
            world.connection(&mut random, isns, opened, true);
        }
        world.self_connection(&mut random);
        // Two connections with one fingerprint, at one time, all of it reported: nobody can tell them apart.
        let isns = (random.next() as u32, random.next() as u32);
        let mut halves = Vec::new();
        while halves.len() < 4 {
            let before = world.halves.len();
            let [c, s] = world.connection(&mut random, isns, 20 * SECOND, false);
            if world.fates[&c] == Fate::Stitched(s, Rule::TcpIsnPair) {
                halves.extend([c, s]);
            } else {
                world.halves.truncate(before);
                world.fates.retain(|handle, _| (*handle as usize) < before);
            }
        }
        for half in halves {
            world.fates.insert(half, Fate::Ambiguous);
        }
        world
    }

    /// Reports, in the order in which they come: time, half, and whether it is the closing.
    fn reports(&self) -> Vec<(i64, u32, bool)> {
        let mut reports = Vec::new();
        for (handle, half) in self
            .halves
            .iter()
            .enumerate()
            .filter(|(_, half)| !half.lost)
        {
            let handle = handle as u32;
            reports.push((half.open_report, handle, false));
            reports.push((half.close_report, handle, true));
            if half.again {
                reports.push((half.open_report + SECOND, handle, false));
            }
        }
        reports.sort();
        reports
    }
}

fn run(seed: u64) -> usize {
    let world = World::new(seed);
    let config = Config {
        hold_us: 1_500_000,
        expiry_us: 120 * SECOND,
        max_open: 10_000,
        seed,
    };
    let mut stitcher = Stitcher::new(config);
    let mut ledger = Ledger::default();
    // What the caller has been told: a half is inserted once, by its first report, whichever that is.
    let mut known: BTreeMap<u32, HalfView> = BTreeMap::new();
    for (time, handle, closing) in world.reports() {
        let last = world.halves[handle as usize].view;
        let open = HalfView {
            closed_at: None,
            seen_at: last.opened_at,
            bytes_sent: 0,
            bytes_received: 0,
            ..last
        };
        let lookup =
            |known: &BTreeMap<u32, HalfView>, handle: Handle| known.get(&handle.0).copied();
        stitcher.advance(time, &|handle: Handle| lookup(&known, handle));
        ledger.drain(&mut stitcher);
        let candidate = last.candidate(Handle(handle));
        let first = !known.contains_key(&handle);
        if closing || first {
            known.insert(handle, if closing { last } else { open });
        }
        if first {
            stitcher.insert(time, &[candidate]);
        } else if closing {
            stitcher.closed(time, &[candidate], &|handle: Handle| lookup(&known, handle));
        }
        ledger.drain(&mut stitcher);
    }
    for second in 0..400 {
        stitcher.advance((100 + second) * SECOND, &|handle: Handle| {
            known.get(&handle.0).copied()
        });
        ledger.drain(&mut stitcher);
    }
    for (handle, truth) in &world.fates {
        let view = world.halves[*handle as usize].view;
        assert_eq!(
            ledger.fates.get(handle),
            Some(truth),
            "seed {seed}, half {handle}: {view:?}"
        );
    }
    assert_eq!(stitcher.open(), 0, "seed {seed}");
    world
        .fates
        .values()
        .filter(|fate| matches!(fate, Fate::Stitched(..)))
        .count()
}

#[test]
fn what_can_be_known_is_found_and_nothing_else() {
    let stitched: usize = (0..SEEDS).map(run).sum();
    assert!(stitched > 20_000, "{stitched} halves had a partner to find");
}
