//! Three federators, sessions that break, messages that come late or twice, restarts that lose what was not durable:
//! afterwards everything that can be matched is, and nothing is joined wrongly. One seed is one run.

use std::collections::{BTreeMap, VecDeque};

use weft_mesh::{Card, Config, Effect, Link, Mesh, Records};
use weft_stitching::{HalfView, Rule};
use weft_wire::control::PeerMessage;
use weft_wire::{
    DatagramSort, Datagrams, Fingerprint, Half, HalfId, HalfState, Role, Site, Timestamp,
};

use crate::federator::{SECOND, card, config, half, view};

const NAMES: [&str; 3] = ["fed-a", "fed-b", "fed-c"];
const SEEDS: u64 = 300;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (weft_wire::model::mix64(self.0) % limit as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What a half should come to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Truth {
    Joined(u64, Rule),
    NotJoined,
}

#[derive(Clone)]
struct Own {
    half: Half,
    closed: Half,
    truth: Truth,
}

/// No network has a name: each federator's is another.
fn view_of(name: &str, half: Half) -> HalfView {
    view(name, half, Site::default())
}

struct Book<'a> {
    name: &'static str,
    halves: &'a BTreeMap<u64, Own>,
}

impl Records for Book<'_> {
    fn view(&self, half: HalfId) -> Option<HalfView> {
        Some(view_of(self.name, self.halves.get(&half.0)?.half))
    }

    fn card(&self, half: HalfId) -> Option<Card> {
        Some(card(self.halves.get(&half.0)?.half, Site::default()))
    }
}

/// What a federator has stored; all that a restart leaves.
#[derive(Clone, Default)]
struct Stored {
    halves: BTreeMap<u64, Own>,
    links: BTreeMap<u64, Option<Link>>,
    joined: BTreeMap<u64, u64>,
    undone: Vec<u64>,
    done: Vec<u64>,
}

struct Federator {
    name: &'static str,
    mesh: Mesh,
    instance: u64,
    now: Stored,
    durable: Stored,
    /// Acknowledgements that wait for durability: peer, session, number.
    acks: Vec<(usize, u64, u64)>,
}

/// One federator's own session to another.
#[derive(Default)]
struct Line {
    /// 0 while down.
    session: u64,
    messages: VecDeque<(u64, u64, PeerMessage)>,
    acks: VecDeque<(u64, u64)>,
}

struct World {
    random: Random,
    time: i64,
    federators: Vec<Federator>,
    lines: BTreeMap<(usize, usize), Line>,
    /// Messages of sessions that are gone, and still come.
    ghosts: Vec<(usize, usize, PeerMessage)>,
    unoffered: Vec<(usize, Own)>,
    sessions: u64,
    verdicts: BTreeMap<u64, Rule>,
}

fn mesh(name: &str) -> Mesh {
    Mesh::new(Config {
        expiry_us: 10_000 * SECOND,
        ..config(name, &NAMES, 10_000)
    })
    .unwrap()
}

impl World {
    fn new(seed: u64, duplicates: bool) -> Self {
        let federators = NAMES
            .map(|name| Federator {
                name,
                mesh: mesh(name),
                instance: 1,
                now: Stored::default(),
                durable: Stored::default(),
                acks: Vec::new(),
            })
            .into();
        let mut world = Self {
            random: Random(seed),
            time: SECOND,
            federators,
            lines: BTreeMap::new(),
            ghosts: Vec::new(),
            unoffered: Vec::new(),
            sessions: 0,
            verdicts: BTreeMap::new(),
        };
        for i in 0..40 {
            world.connection(i, duplicates);
        }
        world
    }

    fn connection(&mut self, i: u64, duplicates: bool) {
        let kind = self.random.below(15);
        if kind >= 10 {
            return self.flow(i, kind, duplicates);
        }
        let (client, server) = (i * 10 + 1, i * 10 + 2);
        let isns = (7000 + i as u32, 9000 + i as u32);
        let (rule, server_isns) = match kind {
            0 | 1 => (Some(Rule::TcpClientIsn), (isns.0, 1)),
            2 => (None, (isns.0, 1)),
            _ => (Some(Rule::TcpIsnPair), isns),
        };
        let doubled = duplicates && kind == 9;
        let truth = |other| match rule {
            Some(rule) if !doubled => Truth::Joined(other, rule),
            _ => Truth::NotJoined,
        };
        let bytes = if kind == 2 { 55 } else { 100 };
        self.half(client, Role::Client, isns, 100, truth(server));
        if kind != 3 || doubled {
            self.half(server, Role::Server, server_isns, bytes, truth(client));
        } else if let Some((_, own)) = self.unoffered.last_mut() {
            own.truth = Truth::NotJoined; // The other end is not ours.
        }
        if doubled {
            self.half(
                i * 10 + 3,
                Role::Server,
                server_isns,
                bytes,
                Truth::NotJoined,
            );
        }
    }

    /// A UDP flow.
    fn flow(&mut self, i: u64, kind: usize, duplicates: bool) {
        let (client, server) = (i * 10 + 1, i * 10 + 2);
        let print = |client, server, distinct| {
            Fingerprint::Datagrams(Datagrams {
                sort: DatagramSort::Other,
                client,
                server,
                distinct,
            })
        };
        let whole = |distinct| print(500 + i, 700 + i, distinct);
        let rule = Rule::UdpFirstDatagram;
        let (to_client, to_server) = (Truth::Joined(client, rule), Truth::Joined(server, rule));
        if kind == 10 && duplicates {
            // A fleet that greets alike: who talks to whom cannot be told.
            for j in 0..4 {
                let role = [Role::Client, Role::Server][j % 2];
                let id = i * 10 + 1 + j as u64;
                self.any(id, role, whole(false), whole(false), 100, Truth::NotJoined);
            }
            return;
        }
        let (of_client, of_server) = match kind {
            10 | 11 => (whole(true), whole(true)),
            // One that greets as others might, and nobody else does.
            12 => (whole(false), whole(false)),
            // The answer was lost.
            13 => (print(500 + i, 0, true), whole(true)),
            _ => (whole(true), whole(true)),
        };
        // The answer comes after the half was offered.
        let early = if kind == 14 {
            print(500 + i, 0, true)
        } else {
            of_client
        };
        self.any(client, Role::Client, early, of_client, 100, to_server);
        self.any(server, Role::Server, of_server, of_server, 100, to_client);
    }

    fn half(&mut self, id: u64, role: Role, isns: (u32, u32), bytes: u64, truth: Truth) {
        let (client, server) = isns;
        let print = Fingerprint::TcpIsn { client, server };
        self.any(id, role, print, print, bytes, truth);
    }

    fn any(
        &mut self,
        id: u64,
        role: Role,
        early: Fingerprint,
        late: Fingerprint,
        bytes: u64,
        truth: Truth,
    ) {
        // The server has a public address, the same in every network; a private one would say nothing in another.
        let ends = [([10, 0, 0, 1], 1000).into(), ([198, 51, 100, 2], 80).into()];
        let half = half(id, role, early, ends);
        let at = Some(Timestamp(SECOND));
        let closed = Half {
            state: HalfState::Closed,
            fingerprint: late,
            closed_at: at,
            bytes_sent: bytes,
            bytes_received: bytes,
            ..half
        };
        let home = self.random.below(3);
        self.unoffered.push((
            home,
            Own {
                half,
                closed,
                truth,
            },
        ));
    }

    fn offer(&mut self) {
        if self.unoffered.is_empty() {
            return;
        }
        let (home, own) = self
            .unoffered
            .swap_remove(self.random.below(self.unoffered.len()));
        let federator = &mut self.federators[home];
        assert!(
            federator
                .mesh
                .offer(own.half.id, &view_of(federator.name, own.half))
        );
        // A half is acknowledged to its agent when it is durable: here at once.
        for stored in [&mut federator.now, &mut federator.durable] {
            stored.halves.insert(own.half.id.0, own.clone());
        }
    }

    fn close_one(&mut self, home: usize, all: bool) {
        let federator = &mut self.federators[home];
        let open = federator
            .now
            .halves
            .values()
            .filter(|own| own.half != own.closed);
        let open: Vec<u64> = open.map(|own| own.half.id.0).collect();
        let chosen = if open.is_empty() {
            0
        } else {
            self.random.below(open.len())
        };
        for id in open
            .iter()
            .enumerate()
            .filter(|(i, _)| all || *i == chosen)
            .map(|(_, id)| id)
        {
            for stored in [&mut federator.now, &mut federator.durable] {
                if let Some(own) = stored.halves.get_mut(id) {
                    own.half = own.closed;
                }
            }
            let view = view_of(federator.name, federator.now.halves[id].half);
            federator.mesh.updated(HalfId(*id), &view);
        }
    }

    fn advance(&mut self, home: usize) {
        let federator = &mut self.federators[home];
        let book = Book {
            name: federator.name,
            halves: &federator.now.halves,
        };
        federator.mesh.advance(self.time, &book);
        let effects: Vec<_> = std::iter::from_fn(|| federator.mesh.poll()).collect();
        for effect in effects {
            let federator = &mut self.federators[home];
            match effect {
                Effect::Send { peer, seq, message } => {
                    let to = NAMES.iter().position(|name| *name == peer).unwrap();
                    let line = self.lines.entry((home, to)).or_default();
                    assert_ne!(line.session, 0, "sends only while a session is up");
                    line.messages.push_back((line.session, seq, message));
                }
                Effect::Join {
                    half,
                    card,
                    verdict,
                    ..
                } => {
                    let other = card.half.id.0;
                    let before = federator.now.joined.insert(half.0, other);
                    assert!(
                        before.is_none_or(|before| before == other),
                        "{half} changed its partner"
                    );
                    self.verdicts.insert(half.0, verdict.rule);
                }
                Effect::Undo { half } => {
                    federator.now.joined.remove(&half.0);
                    federator.now.undone.push(half.0);
                }
                Effect::Done { half } => federator.now.done.push(half.0),
                Effect::Redial { peer } => {
                    let to = NAMES.iter().position(|name| *name == peer).unwrap();
                    self.lose(home, to, true);
                }
            }
        }
    }

    /// What happened becomes durable, and only then is it acknowledged.
    fn store(&mut self, home: usize) {
        self.advance(home);
        let federator = &mut self.federators[home];
        for id in federator.now.halves.keys() {
            federator
                .now
                .links
                .insert(*id, federator.mesh.link(HalfId(*id)));
        }
        federator.durable = federator.now.clone();
        for (from, session, seq) in federator.acks.drain(..) {
            if let Some(line) = self
                .lines
                .get_mut(&(from, home))
                .filter(|line| line.session == session)
            {
                line.acks.push_back((session, seq));
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize) {
        let Some(line) = self.lines.get_mut(&(from, to)) else {
            return;
        };
        let Some((session, seq, message)) = line.messages.pop_front() else {
            return;
        };
        self.hand_over(from, to, &message);
        self.federators[to].acks.push((from, session, seq));
    }

    fn hand_over(&mut self, from: usize, to: usize, message: &PeerMessage) {
        let federator = &mut self.federators[to];
        let book = Book {
            name: federator.name,
            halves: &federator.now.halves,
        };
        federator
            .mesh
            .received(self.time, NAMES[from], message, &book)
            .unwrap();
    }

    fn acknowledge(&mut self, from: usize, to: usize) {
        let Some(line) = self.lines.get_mut(&(from, to)) else {
            return;
        };
        if let Some((_, seq)) = line.acks.pop_front() {
            self.federators[from].mesh.acked(self.time, NAMES[to], seq);
        }
    }

    fn connect(&mut self, from: usize, to: usize) {
        let line = self.lines.entry((from, to)).or_default();
        if from == to || line.session != 0 {
            return;
        }
        self.sessions += 1;
        line.session = self.sessions;
        let (here, there) = (self.federators[from].instance, self.federators[to].instance);
        self.federators[to].mesh.peer_session_up(NAMES[from], here);
        self.federators[from].mesh.session_up(NAMES[to], there);
    }

    fn lose(&mut self, from: usize, to: usize, known: bool) {
        let line = std::mem::take(self.lines.entry((from, to)).or_default());
        for (_, _, message) in line.messages {
            if self.random.chance(30) {
                self.ghosts.push((from, to, message));
            }
        }
        if known && line.session != 0 {
            self.federators[from].mesh.session_down(NAMES[to]);
        }
    }

    fn restart(&mut self, home: usize) {
        for other in 0..3 {
            self.lose(home, other, false);
            self.lose(other, home, true);
        }
        let federator = &mut self.federators[home];
        federator.mesh = mesh(federator.name);
        federator.instance += 1;
        federator.acks.clear();
        federator.now = federator.durable.clone();
        for (id, own) in &federator.now.halves {
            let view = view_of(federator.name, own.half);
            match federator.now.links.get(id) {
                _ if federator.now.done.contains(id) || federator.now.undone.contains(id) => {}
                Some(Some(link)) => federator.mesh.restore(own.half.id, &view, link),
                _ => assert!(federator.mesh.offer(own.half.id, &view)),
            }
        }
    }

    fn step(&mut self, restarts: bool) {
        let (x, y) = (self.random.below(3), self.random.below(3));
        match self.random.below(100) {
            0..15 => self.offer(),
            15..20 => self.close_one(x, false),
            20..50 => self.deliver(x, y),
            50..60 => self.acknowledge(x, y),
            60..70 => self.store(x),
            70..80 => self.connect(x, y),
            80..83 => self.lose(x, y, true),
            83..84 if restarts => self.restart(x),
            84..88 if !self.ghosts.is_empty() => {
                let (from, to, message) = self
                    .ghosts
                    .swap_remove(self.random.below(self.ghosts.len()));
                self.hand_over(from, to, &message);
                if self.random.chance(30) {
                    self.hand_over(from, to, &message);
                }
            }
            _ => {
                self.time += SECOND / 10;
                self.advance(x);
            }
        }
    }

    fn settle(&mut self) {
        while !self.unoffered.is_empty() {
            self.offer();
        }
        for _ in 0..200 {
            self.time += SECOND / 2;
            for x in 0..3 {
                self.close_one(x, true);
                self.advance(x);
                for y in 0..3 {
                    self.connect(x, y);
                    for _ in 0..50 {
                        self.deliver(x, y);
                        self.acknowledge(x, y);
                    }
                }
                self.store(x);
            }
        }
    }

    /// For the reader of a failure.
    fn explain(&self) {
        for federator in &self.federators {
            println!("{}: {:?}", federator.name, federator.mesh.counters());
            for id in federator.now.halves.keys() {
                let (joined, done) = (
                    federator.now.joined.get(id),
                    federator.now.done.contains(id),
                );
                println!(
                    "  {id}: {joined:?} done {done} {:?}",
                    federator.mesh.link(HalfId(*id))
                );
            }
        }
    }

    fn check(&self, seed: u64, done: bool) {
        self.explain();
        for federator in &self.federators {
            for (id, own) in &federator.now.halves {
                let joined = federator.now.joined.get(id);
                match own.truth {
                    Truth::Joined(other, rule) => {
                        assert_eq!(
                            joined,
                            Some(&other),
                            "seed {seed}: half {id} at {}",
                            federator.name
                        );
                        assert_eq!(self.verdicts[id], rule, "seed {seed}");
                        assert!(
                            !done || federator.now.done.contains(id),
                            "seed {seed}: {id} not done"
                        );
                    }
                    Truth::NotJoined => {
                        assert_eq!(joined, None, "seed {seed}: half {id} at {}", federator.name)
                    }
                }
            }
            let counters = federator.mesh.counters();
            assert_eq!((counters.home.refused, counters.owner.refused), (0, 0));
        }
    }
}

fn run(seed: u64, restarts: bool, duplicates: bool) {
    let mut world = World::new(seed, duplicates);
    for _ in 0..2000 {
        world.step(restarts);
    }
    world.settle();
    world.check(seed, true);
}

#[test]
fn everything_is_matched_through_lost_sessions_and_restarts() {
    (0..SEEDS).for_each(|seed| run(seed, true, false));
}

#[test]
fn what_three_halves_claim_is_joined_to_none() {
    (0..SEEDS).for_each(|seed| run(seed, false, true));
}

#[test]
fn an_offer_says_nothing_of_the_connection() {
    let mut world = World::new(1, false);
    for from in 0..3 {
        (0..3).for_each(|to| world.connect(from, to));
    }
    while !world.unoffered.is_empty() {
        world.offer();
    }
    (0..3).for_each(|home| world.advance(home));
    let words: Vec<Vec<u8>> = world
        .federators
        .iter()
        .flat_map(|federator| federator.now.halves.values())
        .flat_map(|own| {
            let (client, server) = match own.half.fingerprint {
                Fingerprint::TcpIsn { client, server } => (client.into(), server.into()),
                Fingerprint::Datagrams(first) => (first.client, first.server),
                Fingerprint::Unknown => panic!(),
            };
            let short = |word: u64| word.to_le_bytes()[..4].to_vec();
            [
                own.half.id.0.to_le_bytes().to_vec(),
                short(client),
                short(server),
            ]
        })
        .chain([vec![10, 0, 0, 1], vec![10, 0, 0, 2]])
        .filter(|word| word.iter().filter(|byte| **byte != 0).count() > 1)
        .collect();
    let mut offers = 0;
    for line in world.lines.values() {
        for (_, _, message) in &line.messages {
            let PeerMessage::Offers(list) = message else {
                panic!("{message:?}")
            };
            for offer in list {
                offers += 1;
                let bytes: Vec<u8> = [offer.routing_key, offer.matching_key, offer.handle.0]
                    .iter()
                    .flat_map(|word| [word.to_le_bytes(), word.to_be_bytes()].concat())
                    .collect();
                for word in &words {
                    assert!(
                        !bytes.windows(word.len()).any(|part| part == word),
                        "{word:?} in {offer:?}"
                    );
                }
            }
        }
    }
    assert!(offers > 20);
}
