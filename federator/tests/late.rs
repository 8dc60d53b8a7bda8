//! Halves whose other ends are late: by an agent that was away, or because federators could not reach each other. Real cores
//! and stores, simulated time and network.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use weft_federator::core::{Contact, Core, CoreConfig, Input, Told};
use weft_federator::recall::Recaller;
use weft_federator::record::Row;
use weft_federator::store::{Store, StoreOptions, read, schema};
use weft_federator::testing::{batch_of, half};
use weft_mesh::MeshKey;
use weft_wire::control::PeerMessage;
use weft_wire::query::Unmatched;
use weft_wire::{AgentInfo, AgentKey, Half, HalfState, Role, Timestamp};

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const STEP: i64 = SECOND / 4;

struct Federator {
    name: String,
    core: Core,
    store: Store,
    recaller: Recaller,
    position: u64,
    seq: u64,
}

impl Federator {
    fn new(folder: &std::path::Path, name: &str, all: &[&str]) -> Self {
        let store = Store::open(&StoreOptions {
            path: folder.join(name),
            threads: 1,
            memory_limit: "200MB".into(),
        })
        .unwrap();
        let peers = all.iter().filter(|other| **other != name);
        let config = CoreConfig {
            name: name.into(),
            hold_us: 3 * SECOND / 2,
            expiry_us: 120 * SECOND,
            max_open: 10_000,
            seed: 7,
            mesh: Some((
                peers.map(|p| (*p).to_owned()).collect(),
                MeshKey::new([3; 32]),
            )),
        };
        let recaller = Recaller::new(&config, store.readers().unwrap());
        let core = Core::new(config, store.load().unwrap());
        Self {
            name: name.into(),
            core,
            store,
            recaller,
            position: 0,
            seq: 0,
        }
    }

    fn apply(&mut self, now: i64, input: Input) {
        self.position += 1;
        self.core.apply(self.position, Timestamp(now), input);
    }

    fn flush(&mut self, now: i64) {
        if !self.core.changed() {
            return;
        }
        let flush = self.core.flush_all_but_waiting();
        self.store.flush(&flush).unwrap();
        let mut all = Vec::new();
        self.recaller
            .look(Timestamp(now), &flush.sought, |found| {
                all.push(found);
                true
            })
            .unwrap();
        for found in all {
            self.apply(now, Input::Found(found));
        }
    }

    fn rows(&self) -> Vec<Row> {
        let connection = self.store.readers().unwrap().connection().unwrap();
        let sql = format!("SELECT * FROM {} ORDER BY id", schema::PLAIN);
        read::rows(&connection, &sql, []).unwrap()
    }
}

struct World {
    now: i64,
    federators: Vec<Federator>,
    /// Pairs that cannot reach each other, and since which session.
    cut: Vec<(usize, usize)>,
    instance: u64,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let new = |name: &&str| Federator::new(folder.path(), name, names);
        let mut world = Self {
            now: 1_700_000_000 * SECOND,
            federators: names.iter().map(new).collect(),
            cut: Vec::new(),
            instance: 0,
            _folder: folder,
        };
        for from in 0..names.len() {
            for role in [Role::Client, Role::Server] {
                let info = AgentInfo {
                    name: format!("agent-{from}-{role:?}"),
                    ..AgentInfo::default()
                };
                let key = key(from, role);
                world.federators[from].apply(world.now, Input::Agent { key, info });
            }
            for to in from + 1..names.len() {
                world.connect(from, to, true);
            }
        }
        world
    }

    fn connect(&mut self, a: usize, b: usize, up: bool) {
        self.instance += 1;
        self.cut.retain(|pair| *pair != (a, b));
        if !up {
            self.cut.push((a, b));
        }
        for (from, to) in [(a, b), (b, a)] {
            let peer = self.federators[to].name.clone();
            let instance = to as u64;
            let core = &mut self.federators[from].core;
            match up {
                false => core.contact(&Contact::Down { peer }),
                true => {
                    let up = peer.clone();
                    core.contact(&Contact::PeerUp { peer, instance });
                    core.contact(&Contact::Up { peer: up, instance });
                }
            }
        }
    }

    fn run(&mut self, for_us: i64) {
        let until = self.now + for_us;
        while self.now < until {
            self.now += STEP;
            for index in 0..self.federators.len() {
                self.federators[index].core.advance(Timestamp(self.now));
                self.deliver(index);
                self.federators[index].flush(self.now);
                self.deliver(index);
            }
        }
    }

    fn deliver(&mut self, from: usize) {
        while let Some(told) = self.federators[from].core.poll_told() {
            let Told::Send { peer, seq, message } = told else {
                panic!("{told:?}")
            };
            let to = self.federators.iter().position(|f| f.name == peer).unwrap();
            if self.cut.contains(&(from.min(to), from.max(to))) {
                continue;
            }
            let name = self.federators[from].name.clone();
            let receiver = &mut self.federators[to];
            match message {
                PeerMessage::Offers(_)
                | PeerMessage::Withdraw(_)
                | PeerMessage::Summary(_)
                | PeerMessage::Recall(_) => {
                    let peer = name;
                    receiver.core.contact(&Contact::Said { peer, message });
                }
                message => receiver.apply(
                    self.now,
                    Input::Peer {
                        peer: name,
                        message,
                    },
                ),
            }
            self.federators[from]
                .core
                .contact(&Contact::Acked { peer, seq });
        }
    }

    /// Ends of made-up connections, opened `ago`, arrive at a federator.
    fn report(&mut self, index: usize, role: Role, numbers: std::ops::Range<u32>, ago: i64) {
        let (at, agent) = (self.now - ago, key(index, role));
        let halves = numbers.map(|number| Half {
            opened_at: Timestamp(at),
            closed_at: Some(Timestamp(at + SECOND)),
            seen_at: Timestamp(at + SECOND),
            ..half(agent, number, role, HalfState::Closed)
        });
        let batch = batch_of("w", halves.collect());
        let (now, federator) = (self.now, &mut self.federators[index]);
        federator.seq += 1;
        let seq = federator.seq;
        federator.apply(
            now,
            Input::Batch {
                agent,
                seq,
                skew_us: 0,
                batch,
            },
        );
    }

    /// How many rows are joined, and the others by their reason.
    fn states(&self, index: usize) -> (usize, BTreeMap<Unmatched, usize>) {
        let (mut joined, mut others) = (0, BTreeMap::new());
        for row in self.federators[index].rows() {
            match row.unmatched {
                None => joined += 1,
                Some(reason) => *others.entry(reason).or_default() += 1,
            }
        }
        (joined, others)
    }
}

/// Clients and servers are on hosts of their own.
fn key(index: usize, role: Role) -> AgentKey {
    AgentKey(2 * index as u64 + role as u64)
}

fn lonely(count: usize) -> BTreeMap<Unmatched, usize> {
    [(Unmatched::NoPartner, count)].into()
}

#[test]
fn what_an_agent_delivers_ten_minutes_late_is_matched_at_home() {
    let mut world = World::new(&["fed-a"]);
    world.report(0, Role::Client, 1..41, 0);
    world.run(10 * MINUTE);
    assert_eq!(world.states(0), (0, lonely(40)));
    assert_eq!(world.federators[0].core.in_memory(), 0);
    world.report(0, Role::Server, 11..51, 10 * MINUTE);
    world.run(10 * SECOND);
    assert_eq!(world.states(0).0, 30);
    world.run(5 * MINUTE);
    // Each once: thirty pairs, ten clients and ten servers.
    assert_eq!(world.states(0), (30, lonely(20)));
    assert_eq!(world.federators[0].core.in_memory(), 0);
}

#[test]
fn what_comes_late_to_another_home_is_matched() {
    let mut world = World::new(&["fed-a", "fed-b", "fed-c"]);
    world.report(0, Role::Client, 1..41, 0);
    world.run(10 * MINUTE);
    assert_eq!(world.states(0), (0, lonely(40)));
    world.report(1, Role::Server, 1..41, 10 * MINUTE);
    world.run(30 * SECOND);
    assert_eq!((world.states(0).0, world.states(1).0), (40, 40));
    world.run(5 * MINUTE);
    for index in 0..2 {
        assert_eq!(world.states(index), (40, BTreeMap::new()));
        assert_eq!(world.federators[index].core.in_memory(), 0);
    }
}

#[test]
fn a_long_cut_between_two_federators_loses_no_match() {
    let mut world = World::new(&["fed-a", "fed-b"]);
    world.connect(0, 1, false);
    world.report(0, Role::Client, 1..61, 0);
    world.report(1, Role::Server, 1..41, 0);
    world.run(30 * MINUTE);
    assert_eq!(world.states(0), (0, lonely(60)));
    assert_eq!(world.states(1), (0, lonely(40)));
    world.connect(0, 1, true);
    world.run(MINUTE);
    assert_eq!((world.states(0).0, world.states(1).0), (40, 40));
    world.run(5 * MINUTE);
    assert_eq!(world.states(0), (40, lonely(20)));
    assert_eq!(world.states(1), (40, BTreeMap::new()));
    assert_eq!(world.federators[0].core.in_memory(), 0);
}

#[test]
fn a_long_cut_from_the_owner_or_between_the_homes_loses_no_match() {
    // Some of these have each of the three as owner; a cut between two of them meets them at all stages.
    for cut in [(0, 1), (0, 2), (1, 2)] {
        let mut world = World::new(&["fed-a", "fed-b", "fed-c"]);
        world.connect(cut.0, cut.1, false);
        world.report(0, Role::Client, 1..61, 0);
        world.report(1, Role::Server, 1..61, 0);
        world.run(30 * MINUTE);
        world.connect(cut.0, cut.1, true);
        world.run(MINUTE);
        let joined = (world.states(0).0, world.states(1).0);
        assert_eq!(joined, (60, 60), "cut {cut:?}");
        world.run(5 * MINUTE);
        assert_eq!(world.states(0), (60, BTreeMap::new()), "cut {cut:?}");
        assert_eq!(world.states(1), (60, BTreeMap::new()), "cut {cut:?}");
    }
}

#[test]
fn what_came_back_survives_a_restart() {
    let mut world = World::new(&["fed-a", "fed-b"]);
    world.report(0, Role::Client, 1..41, 0);
    world.run(10 * MINUTE);
    world.connect(0, 1, false);
    world.report(1, Role::Server, 1..41, 10 * MINUTE);
    world.run(MINUTE);
    // Only what the store holds is left of the one that was asked for.
    let federator = &world.federators[0];
    assert_eq!(federator.core.in_memory(), 0);
    world.connect(0, 1, true);
    world.run(4 * SECOND);
    let federator = &mut world.federators[0];
    let config = CoreConfig {
        name: "fed-a".into(),
        hold_us: 3 * SECOND / 2,
        expiry_us: 120 * SECOND,
        max_open: 10_000,
        seed: 7,
        mesh: Some((vec!["fed-b".into()], MeshKey::new([3; 32]))),
    };
    federator.flush(world.now);
    federator.core = Core::new(config, federator.store.load().unwrap());
    world.connect(0, 1, false);
    world.connect(0, 1, true);
    world.run(MINUTE);
    assert_eq!((world.states(0).0, world.states(1).0), (40, 40));
    world.run(5 * MINUTE);
    assert_eq!(world.states(0), (40, BTreeMap::new()));
    assert_eq!(world.states(1), (40, BTreeMap::new()));
}
