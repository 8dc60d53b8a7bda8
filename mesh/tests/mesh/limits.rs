//! What one peer can cost: by not acknowledging, and by offering and withdrawing as fast as it can.

use weft_mesh::{Config, Effect, Withdrawn};
use weft_wire::control::{Handle, Offer, PeerMessage};
use weft_wire::{Fingerprint, HalfId, Role, Timestamp};

use crate::federator::{EXPIRY, Federator, config, ends, half};

const MAX_HALVES: usize = 10;
const MAX_OFFERS: usize = 30;
const MAX_OFFERS_PER_HOME: usize = 10;
const WAITING: usize = 2 * MAX_HALVES;

fn one_of_three() -> Federator {
    Federator::new(Config {
        max_offers: MAX_OFFERS,
        max_offers_per_home: MAX_OFFERS_PER_HOME,
        ..config("fed-a", &["fed-a", "fed-b", "fed-c"], MAX_HALVES)
    })
}

fn ask(federator: &mut Federator, id: u64) {
    let print = Fingerprint::TcpIsn {
        client: id as u32,
        server: id as u32,
    };
    federator.offer(half(id, Role::Client, print, ends()));
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

fn offered(federator: &mut Federator, now: i64) -> Vec<Offer> {
    federator
        .advance(now)
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

fn redial() -> Effect {
    Effect::Redial {
        peer: "fed-b".into(),
    }
}

#[test]
fn asks_of_a_peer_that_does_not_acknowledge_end_the_session_and_come_again() {
    let mut federator = one_of_three();
    federator.mesh.session_up("fed-b", 1);
    (1..=8).for_each(|id| ask(&mut federator, id));
    let standing = offered(&mut federator, 0);
    assert!(!standing.is_empty());
    let mut redials = 0;
    for id in 100..1000 {
        ask(&mut federator, id);
        redials += federator.advance(0).contains(&redial()) as u64;
        federator.mesh.withdraw(0, HalfId(id), Withdrawn::Matched);
        redials += federator.advance(0).contains(&redial()) as u64;
        assert!(federator.mesh.queued("fed-b") <= WAITING);
    }
    assert_eq!((redials, federator.mesh.counters().overflowed), (1, 1));
    federator.mesh.session_up("fed-b", 1);
    assert_eq!(offered(&mut federator, 0), standing);
}

#[test]
fn notices_for_a_peer_that_does_not_acknowledge_end_the_session_and_come_again() {
    let mut federator = one_of_three();
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
fn doubts_for_a_peer_that_cannot_be_reached_wait_once_each_and_within_a_limit() {
    const PAIRS: u64 = 40_000;
    let mut federator = one_of_three();
    // It reaches us, and we never reach it. Two servers fit one client: all are in doubt until they are withdrawn.
    let mut claimed = |round: u64, first: u64| {
        let now = EXPIRY * round as i64;
        federator.advance(now);
        let offer = |role, handle| Offer {
            opened_at: Timestamp(now),
            ..offer(1, role, handle)
        };
        let offers = [
            offer(Role::Client, first),
            offer(Role::Server, first + 1),
            offer(Role::Server, first + 2),
        ];
        federator.received(now, "fed-b", &PeerMessage::Offers(offers.into()));
        let withdrawn = (first..first + 3).map(Handle).collect();
        federator.received(now, "fed-b", &PeerMessage::Withdraw(withdrawn));
        let dropped = federator.mesh.counters().doubts_dropped;
        (federator.mesh.queued("fed-b") as u64, dropped)
    };
    let mut last = (0, 0);
    for round in 0..1000 {
        last = claimed(round, 1);
    }
    let (each, dropped) = last;
    assert!(
        (1..=3).contains(&each) && dropped == 0,
        "each handle once: {last:?}"
    );
    for round in 1000..1000 + PAIRS {
        last = claimed(round, 10 * round);
    }
    let (waiting, dropped) = last;
    assert_eq!(waiting, 65_536);
    assert!(dropped >= PAIRS, "{dropped}");
}

#[test]
fn a_home_that_offers_and_withdraws_without_end_is_refused_alone() {
    let mut federator = one_of_three();
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
