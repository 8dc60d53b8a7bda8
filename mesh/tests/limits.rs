//! What one peer can cost: by not acknowledging, and by offering and withdrawing as fast as it can.

// Everything in this file is a test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use weft_mesh::{Card, Config, Effect, Members, Mesh, MeshKey, Records, Withdrawn, card_view};
use weft_stitching::HalfView;
use weft_wire::control::{EndpointCard, Handle, Offer, PeerMessage};
use weft_wire::{Fingerprint, Half, HalfId, HalfState, Owner, Protocol, Role, Site, Timestamp};

const SECOND: i64 = 1_000_000;
const EXPIRY: i64 = 120 * SECOND;
const MAX_HALVES: usize = 10;
const MAX_OFFERS: usize = 30;
const MAX_OFFERS_PER_HOME: usize = 10;
const WAITING: usize = 2 * MAX_HALVES;

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
        federator: "fed-a".into(),
        site: Site::default(),
    })
}

fn half(id: u64) -> Half {
    Half {
        id: HalfId(id),
        cookie: id,
        protocol: Protocol::Tcp,
        role: Role::Client,
        state: HalfState::Open,
        fingerprint: Fingerprint::TcpIsn {
            client: id as u32,
            server: id as u32,
        },
        local: ([10, 0, 0, 1], 1000).into(),
        remote: ([10, 0, 0, 2], 80).into(),
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

fn offer(key: u64, role: Role, handle: u64) -> Offer {
    Offer {
        routing_key: key,
        matching_key: key,
        role,
        opened_at: Timestamp(0),
        handle: Handle(handle),
    }
}

struct Federator {
    mesh: Mesh,
    halves: Book,
}

impl Federator {
    fn new() -> Self {
        let config = Config {
            name: "fed-a".into(),
            members: Members::new(["fed-a", "fed-b", "fed-c"]),
            key: MeshKey::new([9; 32]),
            expiry_us: EXPIRY,
            partial_delay_us: 5 * SECOND,
            max_offers: MAX_OFFERS,
            max_offers_per_home: MAX_OFFERS_PER_HOME,
            max_halves: MAX_HALVES,
        };
        let (mesh, halves) = (Mesh::new(config).unwrap(), Book::default());
        Self { mesh, halves }
    }

    fn offer(&mut self, id: u64) {
        assert!(self.mesh.offer(HalfId(id), &view_of(half(id))));
        self.halves.0.insert(id, half(id));
    }

    fn received(&mut self, now: i64, peer: &str, message: &PeerMessage) {
        self.mesh
            .received(now, peer, message, &self.halves)
            .unwrap();
    }

    fn advance(&mut self, now: i64) -> Vec<Effect> {
        self.mesh.advance(now, &self.halves);
        std::iter::from_fn(|| self.mesh.poll()).collect()
    }

    fn offered(&mut self, now: i64) -> Vec<Offer> {
        self.advance(now)
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Send {
                    message: PeerMessage::Offers(offers),
                    ..
                } => Some(offers),
                _ => None,
            })
            .flatten()
            .collect()
    }
}

fn redial() -> Effect {
    Effect::Redial {
        peer: "fed-b".into(),
    }
}

#[test]
fn asks_of_a_peer_that_does_not_acknowledge_end_the_session_and_come_again() {
    let mut federator = Federator::new();
    federator.mesh.session_up("fed-b", 1);
    (1..=8).for_each(|id| federator.offer(id));
    let standing = federator.offered(0);
    assert!(!standing.is_empty());
    let mut redials = 0;
    for id in 100..1000 {
        federator.offer(id);
        redials += federator.advance(0).contains(&redial()) as u64;
        federator.mesh.withdraw(0, HalfId(id), Withdrawn::Matched);
        redials += federator.advance(0).contains(&redial()) as u64;
        assert!(federator.mesh.queued("fed-b") <= WAITING);
    }
    assert_eq!((redials, federator.mesh.counters().overflowed), (1, 1));
    federator.mesh.session_up("fed-b", 1);
    assert_eq!(federator.offered(0), standing);
}

#[test]
fn notices_for_a_peer_that_does_not_acknowledge_end_the_session_and_come_again() {
    let mut federator = Federator::new();
    federator.mesh.session_up("fed-b", 1);
    let pair = [offer(1, Role::Client, 1), offer(1, Role::Server, 2)];
    let pair = PeerMessage::Offers(pair.into());
    let mut redials = 0;
    for _ in 0..1000 {
        federator.received(0, "fed-b", &pair);
        redials += federator.advance(0).contains(&redial()) as u64;
        assert!(federator.mesh.queued("fed-b") <= 2 * MAX_OFFERS_PER_HOME);
    }
    assert_eq!((redials, federator.mesh.counters().overflowed), (1, 1));
    federator.mesh.session_up("fed-b", 1);
    let again = federator.advance(0);
    let [
        Effect::Send {
            message: PeerMessage::Matched(notices),
            ..
        },
    ] = again.as_slice()
    else {
        panic!("{again:?}")
    };
    assert_eq!(notices.len(), 2);
}

#[test]
fn a_home_that_offers_and_withdraws_without_end_is_refused_alone() {
    let mut federator = Federator::new();
    for handle in 0..1000 {
        let churn = PeerMessage::Offers(vec![offer(handle, Role::Client, handle)]);
        federator.received(0, "fed-b", &churn);
        federator.received(0, "fed-b", &PeerMessage::Withdraw(vec![Handle(handle)]));
    }
    let refused = federator.mesh.counters().owner.refused;
    assert!(refused > 800, "{refused}");
    let other = PeerMessage::Offers(vec![offer(7, Role::Server, 7)]);
    federator.received(0, "fed-c", &other);
    let counters = federator.mesh.counters();
    assert_eq!((counters.offers, counters.owner.refused), (1, refused));
    // Its timers are due: it may offer again.
    federator.advance(EXPIRY);
    let later = PeerMessage::Offers(vec![offer(8, Role::Server, 8)]);
    federator.received(EXPIRY, "fed-b", &later);
    let counters = federator.mesh.counters();
    assert_eq!((counters.offers, counters.owner.refused), (1, refused));
}
