//! What outlives the expiry, and what must not be forgotten before it. One federator is owner and both homes at once.

// Everything in this file is a test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use weft_mesh::{Card, Config, Effect, Members, Mesh, MeshKey, Records, Withdrawn, card_view};
use weft_stitching::{HalfView, Rule};
use weft_wire::control::{EndpointCard, Handle};
use weft_wire::{Fingerprint, Half, HalfId, HalfState, Owner, Protocol, Role, Site, Timestamp};

const SECOND: i64 = 1_000_000;
const EXPIRY: i64 = 120 * SECOND;

struct Federator {
    mesh: Mesh,
    halves: Book,
}

#[derive(Default)]
struct Book(BTreeMap<u64, Half>);

impl Records for Book {
    fn view(&self, half: HalfId) -> Option<HalfView> {
        Some(view_of(*self.0.get(&half.0)?))
    }

    fn card(&self, half: HalfId) -> Option<Card> {
        Some(Card {
            half: *self.0.get(&half.0)?,
            owner: Owner::default(),
            agent: "node".into(),
            site: Site::default(),
        })
    }
}

fn view_of(half: Half) -> HalfView {
    card_view(&EndpointCard {
        yours: Handle(0),
        theirs: Handle(0),
        partial: false,
        half,
        owner: Owner::default(),
        agent: "node".into(),
        federator: "fed".into(),
        site: Site::default(),
    })
}

fn half(id: u64, role: Role, server_isn: u32) -> Half {
    let (client, server) = (([10, 0, 0, 1], 1000).into(), ([10, 0, 0, 2], 80).into());
    let (local, remote) = match role {
        Role::Client => (client, server),
        Role::Server => (server, client),
    };
    Half {
        id: HalfId(id),
        cookie: id,
        protocol: Protocol::Tcp,
        role,
        state: HalfState::Open,
        fingerprint: Fingerprint::TcpIsn {
            client: 1,
            server: server_isn,
        },
        local,
        remote,
        opened_at: Timestamp(0),
        closed_at: None,
        seen_at: Timestamp(0),
        bytes_sent: 0,
        bytes_received: 0,
        packets_sent: 0,
        packets_received: 0,
        rtt_us: 0,
        retransmits: 0,
        owner: 0,
        ..Half::default()
    }
}

impl Federator {
    fn new() -> Self {
        let config = Config {
            name: "fed".into(),
            members: Members::new(["fed"]),
            key: MeshKey::new([9; 32]),
            expiry_us: EXPIRY,
            partial_delay_us: 5 * SECOND,
            max_offers: 100,
            max_offers_per_home: 100,
            max_halves: 100,
        };
        Self {
            mesh: Mesh::new(config).unwrap(),
            halves: Book::default(),
        }
    }

    fn offer(&mut self, half: Half) {
        assert!(self.mesh.offer(half.id, &view_of(half)));
        self.halves.0.insert(half.id.0, half);
    }

    fn close(&mut self, id: u64, at: i64) {
        let half = self.halves.0.get_mut(&id).unwrap();
        half.state = HalfState::Closed;
        half.closed_at = Some(Timestamp(at));
        self.mesh.updated(half.id, &view_of(*half));
    }

    fn advance(&mut self, now: i64) -> Vec<Effect> {
        self.mesh.advance(now, &self.halves);
        std::iter::from_fn(|| self.mesh.poll()).collect()
    }
}

#[test]
fn a_syn_proxied_connection_is_joined_however_long_it_lives() {
    let mut federator = Federator::new();
    federator.offer(half(1, Role::Client, 2));
    federator.offer(half(2, Role::Server, 3));
    for second in 0..1000 {
        if second == 120 {
            for id in [1, 2] {
                let now = second * SECOND;
                federator.mesh.withdraw(now, HalfId(id), Withdrawn::Expired);
            }
        }
        assert_eq!(federator.advance(second * SECOND), []);
    }
    federator.close(1, 1000 * SECOND);
    federator.close(2, 1000 * SECOND);
    let mut joined: Vec<_> = federator
        .advance(1000 * SECOND)
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Join { half, verdict, .. } => Some((half.0, verdict.rule)),
            _ => None,
        })
        .collect();
    joined.sort();
    joined.dedup();
    assert_eq!(joined, [(1, Rule::TcpClientIsn), (2, Rule::TcpClientIsn)]);
    assert_eq!(federator.mesh.counters().home.silent, 0);
}

#[test]
fn what_is_in_doubt_stays_so_for_those_who_come_later() {
    let mut federator = Federator::new();
    federator.offer(half(1, Role::Client, 2));
    federator.offer(half(2, Role::Client, 2));
    let undone = |id| Effect::Undo { half: HalfId(id) };
    assert_eq!(federator.advance(SECOND), [undone(1), undone(2)]);
    federator.offer(half(3, Role::Server, 2));
    assert_eq!(federator.advance(2 * SECOND), [undone(3)]);
    federator.offer(half(4, Role::Client, 2));
    assert_eq!(federator.advance(3 * SECOND), [undone(4)]);
}
