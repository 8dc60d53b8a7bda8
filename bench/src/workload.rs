//! Made-up connections with both their ends, for the federator; with the spread of real ones: what cannot be compressed (sequence numbers, ports, times) is random,
//! what repeats (addresses, owners) repeats as often as on a busy node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use weft_wire::{
    Fingerprint, Half, HalfBatch, HalfId, HalfState, Owner, Process, Protocol, Role, Timestamp,
};

/// Processes on a node.
const OWNERS: u32 = 48;
/// Pods on a node, with an address each.
const PODS: u8 = 32;
/// Services that they call.
const SERVICES: u8 = 96;
/// Connections a second.
const PER_SECOND: f64 = 100_000.0;
/// Connections end within this of their opening, in microseconds.
const LONGEST_US: i64 = 10_000_000;
const START: Timestamp = Timestamp(1_700_000_000_000_000);
const BOOT: u64 = 0x7765_6674;

/// Both ends of one connection after the other.
pub struct Workload {
    random: u64,
    start: Timestamp,
    clock: f64,
    cookie: u64,
}

impl Workload {
    /// The same seed gives the same connections, at one time in the past.
    pub fn new(seed: u64) -> Self {
        Self {
            random: seed,
            start: START,
            clock: 0.0,
            cookie: 4096,
        }
    }

    /// Of so many connections the last end about `until`: who is told of them then is told in time.
    pub fn until(seed: u64, connections: usize, until: Timestamp) -> Self {
        let lasts = (connections as f64 * 1e6 / PER_SECOND) as i64 + LONGEST_US;
        Self {
            start: Timestamp(until.0 - lasts),
            ..Self::new(seed)
        }
    }

    /// Two batches of `rows` halves: the clients' node's and the servers' node's, in the order in which they closed.
    pub fn pair_of_batches(&mut self, rows: usize) -> [HalfBatch; 2] {
        let mut halves: [Vec<Half>; 2] = [Vec::with_capacity(rows), Vec::with_capacity(rows)];
        for _ in 0..rows {
            for (half, into) in self.connection().into_iter().zip(&mut halves) {
                into.push(half);
            }
        }
        halves.map(|halves| batch(self.start, halves))
    }

    /// A finished connection through NAT on both sides, as its two ends saw it.
    fn connection(&mut self) -> [Half; 2] {
        let isn = self.word();
        let fingerprint = Fingerprint::TcpIsn {
            client: (isn >> 32) as u32,
            server: isn as u32,
        };
        self.clock += -(1.0 - self.unit()).ln() * 1e6 / PER_SECOND;
        // A millisecond to ten seconds, sixty-four bytes to a megabyte: all sizes of magnitude as likely.
        let (lasted, delay) = (self.spread(1e3, LONGEST_US as f64), self.spread(100.0, 5e3));
        let (request, response) = (self.spread(64.0, 8e3) as u64, self.spread(64.0, 1e6) as u64);
        let service = (self.unit() * self.unit() * f64::from(SERVICES)) as u8;
        let pod = self.below(u64::from(PODS)) as u8;
        let port = 32_768 + self.below(28_232) as u16;
        let translated = 1_024 + self.below(64_512) as u16;
        let opened = self.start.0 + self.clock as i64;
        let retransmits = if self.below(100) == 0 {
            1 + self.below(3) as u32
        } else {
            0
        };
        self.cookie += 1 + self.below(3);
        let segments = |bytes: u64| bytes.div_ceil(1448);
        let client = Half {
            id: HalfId(0),
            cookie: self.cookie,
            protocol: Protocol::Tcp,
            role: Role::Client,
            state: HalfState::Closed,
            fingerprint,
            local: v4([10, 1, 0, pod], port),
            remote: v4([203, 0, 113, service], 443),
            opened_at: Timestamp(opened),
            closed_at: Some(Timestamp(opened + lasted as i64)),
            seen_at: Timestamp(opened + lasted as i64),
            bytes_sent: request,
            bytes_received: response,
            packets_sent: 4 + segments(request) + segments(response) / 2,
            packets_received: 3 + segments(response) + u64::from(self.below(3) == 0),
            rtt_us: (delay * (1.0 + self.unit() / 4.0)) as u32,
            retransmits,
            owner: u32::from(pod) * 3 / 2 % OWNERS,
            ..Half::default()
        };
        let closed = Timestamp(opened + (lasted + delay / 2.0) as i64);
        let server = Half {
            role: Role::Server,
            local: v4([10, 2, 0, service], 8443),
            remote: v4([198, 51, 100, 1], translated),
            opened_at: Timestamp(opened + (delay / 2.0) as i64),
            closed_at: Some(closed),
            seen_at: closed,
            bytes_sent: response,
            bytes_received: request,
            packets_sent: client.packets_received,
            packets_received: client.packets_sent,
            rtt_us: (delay * (1.0 + self.unit() / 4.0)) as u32,
            retransmits: 0,
            owner: u32::from(service) % OWNERS,
            ..client
        };
        [client, server]
    }

    /// SplitMix64.
    fn word(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.word() % limit
    }

    fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn spread(&mut self, from: f64, to: f64) -> f64 {
        from * (to / from).powf(self.unit())
    }
}

fn v4(ip: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port)
}

fn batch(start: Timestamp, mut halves: Vec<Half>) -> HalfBatch {
    halves.sort_by_key(|half| half.closed_at);
    let owner = |number: u32| Owner {
        process: Some(Process {
            pid: 2_000 + number * 37,
            started_at: Timestamp(start.0 - i64::from(number) * 86_000_123),
            name: format!("worker-{}", number % 12),
            exe: Some(format!("/usr/lib/service/worker-{}", number % 12)),
            uid: 1000 + number % 5,
            user: Some("service".to_owned()),
            ..Process::default()
        }),
        cgroup: format!("/kubepods.slice/kubepods-pod{number:08x}.slice/cri-{number:064x}.scope"),
        container: Some(format!("{number:064x}")),
        netns: 4_026_531_840 + number,
        workload: format!("workload-{}", number % 24),
        ..Owner::default()
    };
    HalfBatch {
        boot: BOOT,
        owners: (0..OWNERS).map(owner).collect(),
        halves,
        ..HalfBatch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_agree_on_what_nat_cannot_change() {
        let [clients, servers] = Workload::until(3, 100, START).pair_of_batches(100);
        assert_eq!((clients.halves.len(), servers.halves.len()), (100, 100));
        let find = |cookie| servers.halves.iter().find(|half| half.cookie == cookie);
        for client in &clients.halves {
            let server = find(client.cookie).expect("the other end");
            assert_eq!(client.fingerprint, server.fingerprint);
            assert_eq!(client.bytes_sent, server.bytes_received);
            assert_ne!(client.local, server.remote);
        }
        assert!(clients.halves.iter().all(|half| half.seen_at <= START));
        assert_eq!(
            Workload::until(3, 100, START).pair_of_batches(100),
            [clients, servers]
        );
    }
}
