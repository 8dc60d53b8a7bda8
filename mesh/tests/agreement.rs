//! Two homes that judge the same two halves at different times: neither stays joined where the other rejects.

// Everything in this file is a test.
#![allow(clippy::unwrap_used)]

use weft_mesh::{Card, Config, Effect, Members, Mesh, MeshKey, Records, card_view};
use weft_stitching::HalfView;
use weft_wire::control::{EndpointCard, Handle, MatchNotice, PeerMessage};
use weft_wire::{Fingerprint, Half, HalfId, HalfState, Owner, Protocol, Role, Site, Timestamp};

const SECOND: i64 = 1_000_000;
const NAMES: [&str; 2] = ["fed-a", "fed-b"];

struct Federator {
    name: &'static str,
    mesh: Mesh,
    half: Half,
}

struct Book(&'static str, Half);

impl Records for Book {
    fn view(&self, _: HalfId) -> Option<HalfView> {
        Some(view_of(self.0, self.1))
    }

    fn card(&self, _: HalfId) -> Option<Card> {
        Some(Card {
            half: self.1,
            owner: Owner::default(),
            agent: "node".into(),
            site: site(),
        })
    }
}

fn site() -> Site {
    Site {
        network: "one".into(),
        ..Site::default()
    }
}

fn view_of(name: &str, half: Half) -> HalfView {
    card_view(&EndpointCard {
        yours: Handle(0),
        theirs: Handle(0),
        partial: false,
        half,
        owner: Owner::default(),
        agent: "node".into(),
        federator: name.into(),
        site: site(),
    })
}

/// One without ISN: only its addresses speak for it.
fn half(id: u64, role: Role) -> Half {
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
        fingerprint: Fingerprint::Unknown,
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

fn key() -> MeshKey {
    MeshKey::new([9; 32])
}

impl Federator {
    fn new(name: &'static str, half: Half) -> Self {
        let mut mesh = Mesh::new(Config {
            name: name.into(),
            members: Members::new(NAMES),
            key: key(),
            expiry_us: 120 * SECOND,
            partial_delay_us: 5 * SECOND,
            max_offers: 100,
            max_offers_per_home: 100,
            max_halves: 100,
        })
        .unwrap();
        for peer in NAMES.into_iter().filter(|peer| *peer != name) {
            mesh.session_up(peer, 1);
        }
        assert!(mesh.offer(half.id, &view_of(name, half)));
        Self { name, mesh, half }
    }

    fn handle(&self) -> Handle {
        key().handle(self.name, self.half.id)
    }

    fn received(&mut self, from: &str, message: &PeerMessage) {
        let book = Book(self.name, self.half);
        self.mesh.received(0, from, message, &book).unwrap();
    }

    /// The owner names the other's half.
    fn named(&mut self, other: &Federator) {
        let notice = MatchNotice {
            yours: self.handle(),
            theirs: other.handle(),
            home: other.name.into(),
            partial: false,
        };
        self.received(other.name, &PeerMessage::Matched(vec![notice]));
    }

    fn advance(&mut self) -> Vec<Effect> {
        self.mesh.advance(0, &Book(self.name, self.half));
        std::iter::from_fn(|| self.mesh.poll()).collect()
    }
}

/// What is sent of cards and doubts; offers are no part of this.
fn said(effects: Vec<Effect>) -> Vec<PeerMessage> {
    effects
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Send { message, .. } => Some(message),
            _ => None,
        })
        .filter(|m| matches!(m, PeerMessage::Cards(_) | PeerMessage::Ambiguous(_)))
        .collect()
}

fn joins(effects: &[Effect]) -> bool {
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::Join { .. }))
}

#[test]
fn one_that_rejects_after_its_card_was_sent_says_so() {
    let mut a = Federator::new("fed-a", half(1, Role::Client));
    let mut b = Federator::new("fed-b", half(2, Role::Server));
    a.named(&b);
    let early = said(a.advance());
    assert!(
        matches!(early.as_slice(), [PeerMessage::Cards(_)]),
        "{early:?}"
    );
    // Meanwhile a's half is seen alive, long after b's has closed.
    a.half.seen_at = Timestamp(100 * SECOND);
    b.half.state = HalfState::Closed;
    b.half.closed_at = Some(Timestamp(SECOND));
    b.mesh.updated(b.half.id, &view_of(b.name, b.half));
    early.iter().for_each(|card| b.received("fed-a", card));
    let effects = b.advance();
    assert!(joins(&effects));
    for card in said(effects) {
        a.received("fed-b", &card);
    }
    let effects = a.advance();
    assert!(!joins(&effects));
    let doubts = said(effects);
    assert_eq!(doubts, [PeerMessage::Ambiguous(vec![b.handle()])]);
    doubts.iter().for_each(|doubt| b.received("fed-a", doubt));
    let undone = Effect::Undo { half: b.half.id };
    assert!(b.advance().contains(&undone));
    assert_eq!(a.mesh.counters().home.rejected, 1);
}

#[test]
fn one_that_rejects_before_it_spoke_says_nothing() {
    let mut a = Federator::new("fed-a", half(1, Role::Client));
    let mut b = Federator::new("fed-b", half(2, Role::Server));
    a.half.seen_at = Timestamp(100 * SECOND);
    b.half.state = HalfState::Closed;
    b.half.closed_at = Some(Timestamp(SECOND));
    b.named(&a);
    for card in said(b.advance()) {
        a.received("fed-b", &card);
    }
    assert_eq!(said(a.advance()), []);
    assert_eq!(a.mesh.counters().home.rejected, 1);
}
