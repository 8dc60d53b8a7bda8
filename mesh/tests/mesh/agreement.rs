//! Two homes that judge the same two halves at different times: neither stays joined where the other rejects.

use weft_mesh::Effect;
use weft_wire::control::{Handle, MatchNotice, PeerMessage};
use weft_wire::{Fingerprint, Half, Role, Timestamp};

use crate::federator::{Federator, SECOND, closed, config, ends, half};

const NAMES: [&str; 2] = ["fed-a", "fed-b"];

/// A home with sessions to all others, and one half, which it has offered.
struct Home {
    federator: Federator,
    half: Half,
}

impl Home {
    /// The half has no ISN: only its addresses speak for it.
    fn new(name: &str, id: u64, role: Role) -> Self {
        let mut federator = Federator::new(config(name, &NAMES, 100));
        for peer in NAMES.into_iter().filter(|peer| *peer != name) {
            federator.mesh.session_up(peer, 1);
        }
        let half = half(id, role, Fingerprint::Unknown, ends());
        federator.offer(half);
        Self { federator, half }
    }

    fn handle(&self) -> Handle {
        weft_mesh::keys::handle(&self.federator.name, self.half.id)
    }

    /// The owner names the other's half.
    fn named(&mut self, other: &Self) {
        let notice = MatchNotice {
            yours: self.handle(),
            theirs: other.handle(),
            home: other.federator.name.clone(),
            partial: false,
        };
        self.received(&other.federator.name, &PeerMessage::Matched(vec![notice]));
    }

    fn received(&mut self, from: &str, message: &PeerMessage) {
        self.federator.received(0, from, message);
    }

    fn updated(&mut self, half: Half) {
        self.half = half;
        self.federator.updated(half);
    }

    /// It is seen alive long after it was offered.
    fn seen_alive(&mut self) {
        let seen_at = Timestamp(100 * SECOND);
        self.updated(Half {
            seen_at,
            ..self.half
        });
    }

    fn advance(&mut self) -> Vec<Effect> {
        self.federator.advance(0)
    }

    fn rejected(&self) -> u64 {
        self.federator.mesh.counters().home.rejected
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
    let mut a = Home::new("fed-a", 1, Role::Client);
    let mut b = Home::new("fed-b", 2, Role::Server);
    a.named(&b);
    let early = said(a.advance());
    assert!(
        matches!(early.as_slice(), [PeerMessage::Cards(_)]),
        "{early:?}"
    );
    // Meanwhile a's half is seen alive, long after b's has closed.
    a.seen_alive();
    b.updated(closed(b.half, SECOND));
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
    assert_eq!(a.rejected(), 1);
}

#[test]
fn one_that_rejects_before_it_spoke_says_nothing() {
    let mut a = Home::new("fed-a", 1, Role::Client);
    let mut b = Home::new("fed-b", 2, Role::Server);
    a.seen_alive();
    b.updated(closed(b.half, SECOND));
    b.named(&a);
    for card in said(b.advance()) {
        a.received("fed-b", &card);
    }
    assert_eq!(said(a.advance()), []);
    assert_eq!(a.rejected(), 1);
}
