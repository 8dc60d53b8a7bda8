//! What really happens: connections through every kind of NAT, and what must come of them.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use weft_wire::control::Prefix;
use weft_wire::model::mix64;
use weft_wire::query::Unmatched;
use weft_wire::testing::Random;
use weft_wire::{
    AgentKey, DatagramSort, Datagrams, Fingerprint, Half, HalfId, HalfState, Protocol, Role,
    Timestamp,
};

use crate::clock::Clock;
use crate::scenario::{MILLI, Scenario};

/// No agent at this end.
pub(crate) const OUTSIDE: u32 = u32::MAX;
/// Not yet.
pub(crate) const NEVER: i64 = i64::MAX;

/// What must come of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Its ends are joined.
    Joined,
    /// Its ends are joined when both have closed; before, they may be open without partner.
    JoinedAtEnd,
    /// Evidence is thin: joined rightly or not at all.
    Maybe,
    /// Nobody sees the other end.
    Alone,
}

/// What lies between the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One network, no NAT.
    Direct,
    /// A service's address within one network (DNAT).
    Service,
    /// Out and in again by public addresses of one region.
    Hairpin,
    /// An agent that came too late at both ends: no fingerprint.
    Late,
    /// Source NAT that leaves the port as it was.
    SourceKept,
    /// Source NAT with another port.
    Source,
    /// Source and destination NAT with other ports.
    Both,
    /// IPv6, no NAT.
    Six,
    /// A proxy for the handshake: another server ISN.
    SynProxy,
    /// QUIC through both NATs.
    Quic,
    /// UDP whose first datagrams tell flows apart.
    Datagrams,
    /// UDP that greets as others do.
    Greeting,
    /// The client's ISN is that of another connection of the same time.
    Twin,
    /// To somebody without agent.
    Out,
    /// From somebody without agent.
    In,
    /// Refused by somebody without agent.
    Refused,
}

impl Kind {
    fn crosses(self) -> bool {
        !matches!(
            self,
            Self::Direct | Self::Service | Self::Hairpin | Self::Late
        )
    }

    fn expect(self) -> Expect {
        match self {
            Self::Out | Self::In | Self::Refused => Expect::Alone,
            Self::Late | Self::Greeting => Expect::Maybe,
            Self::SynProxy => Expect::JoinedAtEnd,
            _ => Expect::Joined,
        }
    }

    fn is_udp(self) -> bool {
        matches!(self, Self::Quic | Self::Datagrams | Self::Greeting)
    }
}

/// How a half stands in its home's store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No row yet.
    Absent,
    /// Waits.
    Pending,
    /// Without partner, for this reason.
    Reason(Unmatched),
    Joined,
}

/// One end of a connection, as the simulator follows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// Who sees it; [`OUTSIDE`] for nobody.
    pub(crate) agent: u32,
    /// Acknowledged to its agent.
    pub(crate) acknowledged: bool,
    /// The last that its home heard of it is its end.
    pub(crate) closed: bool,
    /// Its home knows that the other end is at its end, too.
    pub(crate) other_closed: bool,
    /// Rows of its home's store that it is in.
    pub(crate) rows: u8,
    pub(crate) standing: Standing,
    /// Its home asked nobody about it when it wrote it.
    pub(crate) held_back: bool,
    /// When its home knew of it first.
    pub(crate) arrived_at: i64,
    /// When its home heard from the other end's home first.
    pub(crate) card_at: i64,
    /// When its home's store had it joined first.
    pub(crate) joined_at: i64,
}

impl End {
    fn new(agent: u32) -> Self {
        Self {
            agent,
            acknowledged: false,
            closed: false,
            other_closed: false,
            rows: 0,
            standing: Standing::Absent,
            held_back: false,
            arrived_at: NEVER,
            card_at: NEVER,
            joined_at: NEVER,
        }
    }
}

/// A connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    pub(crate) kind: Kind,
    pub(crate) expect: Expect,
    pub(crate) opened_at: i64,
    /// Client and server.
    pub(crate) ends: [End; 2],
}

/// A connection that is not closed yet: its halves by their agents' clocks.
pub(crate) struct Active {
    pub(crate) connection: u32,
    pub(crate) halves: [Option<Half>; 2],
}

/// A half's cookie says which end of which connection it is.
pub(crate) fn cookie(connection: u32, end: usize) -> u64 {
    u64::from(connection) << 1 | end as u64
}

/// The inverse of [`cookie`].
pub(crate) fn of_cookie(cookie: u64) -> (usize, usize) {
    ((cookie >> 1) as usize, (cookie & 1) as usize)
}

/// Spreads the words of a key; nobody chooses them to collide.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mix64(self.0.rotate_left(5) ^ word);
    }
}

type Spreading = BuildHasherDefault<Spread>;

/// Ports of one address are handed out in turn; one is used again as soon as it is free, and not before.
#[derive(Default)]
struct Ports {
    next: HashMap<IpAddr, u16, Spreading>,
    /// By address, port and what it is for: at a host its own number.
    busy: HashSet<(u64, IpAddr, u16), Spreading>,
}

impl Ports {
    /// The next port of `address`, of `count` from `first`, unless `wanted` is free.
    fn take(
        &mut self,
        owner: u64,
        address: IpAddr,
        first: u16,
        count: u16,
        wanted: Option<u16>,
    ) -> u16 {
        if let Some(port) = wanted.filter(|port| self.busy.insert((owner, address, *port))) {
            return port;
        }
        let next = self.next.entry(address).or_default();
        let around = count.saturating_mul(2).max(1);
        for _ in 0..around {
            *next = (*next + 1) % around;
            let port = first.saturating_add(*next);
            if self.busy.insert((owner, address, port)) {
                return port;
            }
        }
        // Where all are busy, more are found.
        let more = first.saturating_add(around)..=u16::MAX;
        more.into_iter()
            .find(|port| self.busy.insert((owner, address, *port)))
            .unwrap_or(first)
    }
}

/// Makes connections.
pub(crate) struct Source {
    random: Random,
    federators: u64,
    agents: u64,
    cross_percent: u64,
    outside_percent: u64,
    ports: u16,
    taken: Ports,
    made: u64,
    last_isn: u32,
}

const LOCAL: [Kind; 6] = [
    Kind::Direct,
    Kind::Direct,
    Kind::Direct,
    Kind::Service,
    Kind::Hairpin,
    Kind::Late,
];
const CROSS: [Kind; 12] = [
    Kind::SourceKept,
    Kind::Source,
    Kind::Source,
    Kind::Source,
    Kind::Both,
    Kind::Both,
    Kind::Six,
    Kind::Six,
    Kind::SynProxy,
    Kind::Quic,
    Kind::Datagrams,
    Kind::Greeting,
];
const ALONE: [Kind; 5] = [Kind::Out, Kind::Out, Kind::In, Kind::In, Kind::Refused];
/// First bytes of the addresses of nodes, load balancers and NAT gateways.
const PUBLIC: u32 = 40;
const SERVICES: u32 = 30;
const GATEWAYS: u32 = 20;
/// Public addresses of a region's nodes have so many bits in common behind these.
const REGION_BITS: u32 = 14;

/// Behind which addresses the endpoints of a region appear to others.
pub(crate) fn addresses_of(region: usize) -> Vec<Prefix> {
    let region = region as u32;
    let six = Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(region) << 64);
    [
        (
            v4((PUBLIC << 24) | (region << REGION_BITS)),
            32 - REGION_BITS as u8,
        ),
        (v4((SERVICES << 24) | region), 32),
        (v4((GATEWAYS << 24) | (region * 4)), 30),
        (IpAddr::V6(six), 64),
    ]
    .map(|(address, length)| Prefix { address, length })
    .to_vec()
}

/// Of so many crossing connections one has another's ISN.
const ONE_TWIN_OF: u64 = 500;

impl Source {
    pub(crate) fn new(scenario: &Scenario, seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            federators: scenario.federators as u64,
            agents: scenario.agents as u64,
            cross_percent: scenario.cross_percent,
            outside_percent: scenario.outside_percent,
            ports: scenario.ports,
            taken: Ports::default(),
            made: 0,
            last_isn: 0,
        }
    }

    /// The next connection, opened at `now`; `clock` is each agent's.
    pub(crate) fn open(
        &mut self,
        now: i64,
        clock: impl Fn(u32) -> Clock,
    ) -> (Connection, [Option<Half>; 2]) {
        let kind = self.kind();
        let client = self.random.below(self.agents);
        let server = self.other_end(client, kind);
        let agents = [
            if kind == Kind::In {
                OUTSIDE
            } else {
                client as u32
            },
            if matches!(kind, Kind::Out | Kind::Refused) {
                OUTSIDE
            } else {
                server as u32
            },
        ];
        let connection = Connection {
            kind,
            expect: kind.expect(),
            opened_at: now,
            ends: agents.map(End::new),
        };
        let (seen, prints) = (
            self.addresses(kind, client, server),
            self.fingerprints(kind),
        );
        let number = self.made as u32;
        self.made += 1;
        let bytes = [
            300 + self.random.below(2_000),
            500 + self.random.below(60_000),
        ];
        let reach = 1 + self.random.below(20) as i64;
        let half = |end: usize| {
            let agent = agents[end];
            if agent == OUTSIDE {
                return None;
            }
            let (own, peer) = (seen[end][end], seen[end][1 - end]);
            let opened = clock(agent).reads(now + end as i64 * reach * MILLI);
            let cookie = cookie(number, end);
            Some(Half {
                id: HalfId::new(AgentKey(u64::from(agent) + 1), 7, cookie),
                cookie,
                protocol: if kind.is_udp() {
                    Protocol::Udp
                } else {
                    Protocol::Tcp
                },
                role: [Role::Client, Role::Server][end],
                state: if kind == Kind::Refused {
                    HalfState::Refused
                } else {
                    HalfState::Open
                },
                fingerprint: prints[end],
                local: own,
                remote: peer,
                opened_at: opened,
                closed_at: (kind == Kind::Refused).then_some(opened),
                seen_at: opened,
                bytes_sent: bytes[end],
                bytes_received: bytes[1 - end],
                packets_sent: 5 + end as u64,
                packets_received: 6 - end as u64,
                rtt_us: 2000,
                ..Half::default()
            })
        };
        let halves = [half(0), half(1)];
        (connection, halves)
    }

    /// Its ports are free again.
    pub(crate) fn closed(&mut self, client: u64, halves: &[Option<Half>; 2]) {
        if let Some(half) = halves[0] {
            self.taken
                .busy
                .remove(&(client + 1, half.local.ip(), half.local.port()));
        }
        if let Some(half) = halves[1] {
            self.taken
                .busy
                .remove(&(0, half.remote.ip(), half.remote.port()));
        }
    }

    fn kind(&mut self) -> Kind {
        let dice = self.random.below(100);
        let mut of = |kinds: &[Kind]| kinds[self.random.below(kinds.len() as u64) as usize];
        if dice < self.outside_percent {
            of(&ALONE)
        } else if dice < self.outside_percent + self.cross_percent && self.federators > 1 {
            let kind = of(&CROSS);
            if self.random.below(ONE_TWIN_OF) == 0 {
                Kind::Twin
            } else {
                kind
            }
        } else {
            of(&LOCAL)
        }
    }

    /// An agent of the same region, or of another.
    fn other_end(&mut self, client: u64, kind: Kind) -> u64 {
        let (home, regions) = (client % self.federators, self.federators);
        let region = if kind.crosses() && regions > 1 {
            (home + 1 + self.random.below(regions - 1)) % regions
        } else {
            home
        };
        let there = (self.agents + regions - 1 - region) / regions;
        if there == 0 {
            return client;
        }
        region + regions * self.random.below(there)
    }

    /// Both addresses (client's, server's) as each end (client, server) sees them.
    fn addresses(&mut self, kind: Kind, client: u64, server: u64) -> [[SocketAddr; 2]; 2] {
        let regions = self.federators;
        // Every region uses the same private addresses.
        let private = |agent: u64| v4((10 << 24) | ((agent / regions) as u32 + 1));
        let public = |agent: u64| {
            let (region, number) = ((agent % regions) as u32, (agent / regions) as u32);
            v4((PUBLIC << 24)
                | (((region << REGION_BITS) | (number % (1 << REGION_BITS))) & 0x00ff_ffff))
        };
        let service = |agent: u64| v4((SERVICES << 24) | (agent % regions) as u32);
        let six = |agent: u64| {
            IpAddr::V6(Ipv6Addr::from_bits(
                0x2001_0db8 << 96
                    | u128::from(agent % regions) << 64
                    | u128::from(agent / regions + 1),
            ))
        };
        let gateway =
            v4((GATEWAYS << 24) | ((client % regions) as u32 * 4 + self.random.below(4) as u32));
        let stranger =
            v4(((150 + self.random.below(40) as u32) << 24) | self.random.below(1 << 16) as u32);
        let count = self.ports;
        let port = self
            .taken
            .take(client + 1, private(client), 32_768, count, None);
        let kept = (kind == Kind::SourceKept).then_some(port);
        let translated = self
            .taken
            .take(0, gateway, 1024, count.saturating_mul(2), kept);
        let from = SocketAddr::new(private(client), port);
        let at = |ip, port| SocketAddr::new(ip, port);
        match kind {
            Kind::Direct | Kind::Late => [[from, at(private(server), 8080)]; 2],
            Kind::Service => [
                [from, at(v4((10 << 24) | (96 << 16) | 1), 80)],
                [from, at(private(server), 8080)],
            ],
            Kind::Hairpin => [
                [from, at(service(server), 443)],
                [at(gateway, translated), at(private(server), 8443)],
            ],
            Kind::SourceKept | Kind::Source | Kind::Twin | Kind::Datagrams | Kind::Greeting => [
                [from, at(public(server), 443)],
                [at(gateway, translated), at(public(server), 443)],
            ],
            Kind::Both | Kind::Quic => [
                [from, at(service(server), 443)],
                [at(gateway, translated), at(private(server), 8443)],
            ],
            Kind::SynProxy => [
                [from, at(service(server), 443)],
                [at(gateway, translated), at(private(server), 443)],
            ],
            Kind::Six => [[at(six(client), port), at(six(server), 443)]; 2],
            Kind::Out | Kind::Refused => [[from, at(stranger, 443)]; 2],
            Kind::In => [[at(stranger, translated), at(private(server), 8443)]; 2],
        }
    }

    /// As each end (client, server) sees it.
    fn fingerprints(&mut self, kind: Kind) -> [Fingerprint; 2] {
        // Every client ISN once, in an order that looks random: 2^32 of them, and an odd factor.
        let isn = (self.made as u32)
            .wrapping_mul(0x9e37_79b1)
            .rotate_left(7)
            .wrapping_mul(0x85eb_ca6b);
        let client = if kind == Kind::Twin {
            self.last_isn
        } else {
            isn
        };
        if kind != Kind::SynProxy {
            self.last_isn = isn;
        }
        let server = self.random.bits() as u32;
        let tcp = |server| Fingerprint::TcpIsn { client, server };
        let flow = |sort, client, server, distinct| {
            Fingerprint::Datagrams(Datagrams {
                sort,
                client,
                server,
                distinct,
            })
        };
        match kind {
            Kind::Late => [Fingerprint::Unknown; 2],
            Kind::Refused => [Fingerprint::Unknown; 2],
            Kind::SynProxy => [tcp(server), tcp(self.random.bits() as u32)],
            Kind::Quic => {
                [flow(
                    DatagramSort::Quic,
                    self.random.bits(),
                    self.random.bits() | 1,
                    true,
                ); 2]
            }
            Kind::Datagrams => {
                [flow(
                    DatagramSort::Other,
                    self.random.bits(),
                    self.random.bits() | 1,
                    true,
                ); 2]
            }
            Kind::Greeting => [flow(DatagramSort::Other, 1 + self.random.below(50), 7, false); 2],
            _ => [tcp(server); 2],
        }
    }
}

fn v4(bits: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(bits))
}

/// The half when it has closed, by the clock of its agent.
pub(crate) fn closed(half: &Half, at: Timestamp) -> Half {
    let closed_at = Some(at.max(half.opened_at));
    Half {
        state: HalfState::Closed,
        closed_at,
        seen_at: at.max(half.seen_at),
        ..*half
    }
}

/// The time of the simulation's beginning, for readers of a failure.
pub(crate) fn seconds(at: i64) -> f64 {
    if at == NEVER {
        f64::INFINITY
    } else {
        at as f64 / 1e6
    }
}
