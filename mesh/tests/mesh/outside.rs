//! Halves whose peers have addresses that no other federator's endpoints appear behind.

use weft_mesh::Effect;
use weft_wire::control::{PeerMessage, Prefix, Summary};
use weft_wire::{Fingerprint, Half, Role};

use crate::federator::{Federator, SECOND, config, half};

fn prefix(address: &str, length: u8) -> Prefix {
    let address = address.parse().unwrap();
    Prefix { address, length }
}

fn said(version: u64, prefixes: &[Prefix]) -> PeerMessage {
    PeerMessage::Summary(Summary {
        version,
        prefixes: prefixes.to_vec(),
    })
}

/// A client's half to an address.
fn to(id: u64, remote: &str) -> Half {
    let ends = ["10.0.0.1:40000".parse().unwrap(), remote.parse().unwrap()];
    let client = id as u32;
    half(
        id,
        Role::Client,
        Fingerprint::TcpIsn { client, server: 9 },
        ends,
    )
}

/// With sessions to two peers, of which these have said where their endpoints are.
fn federator(saying: &[&str]) -> Federator {
    let mut federator = Federator::new(config("fed-a", &["fed-a", "fed-b", "fed-c"], 1000));
    for peer in ["fed-b", "fed-c"] {
        federator.mesh.peer_session_up(peer, 1);
        federator.mesh.session_up(peer, 1);
    }
    let somewhere = said(1, &[prefix("203.0.113.0", 28), prefix("2001:db8:b::", 48)]);
    for peer in saying {
        federator.received(0, peer, &somewhere);
    }
    federator
}

fn offers(effects: &[Effect]) -> usize {
    let offers = effects.iter().map(|effect| match effect {
        Effect::Send {
            message: PeerMessage::Offers(offers),
            ..
        } => offers.len(),
        _ => 0,
    });
    offers.sum()
}

#[test]
fn who_has_not_said_may_have_any_address() {
    let mut one = federator(&["fed-b"]);
    (0..200).for_each(|id| one.offer(to(id, "198.51.100.1:443")));
    one.advance(SECOND);
    let counters = one.mesh.counters();
    assert_eq!((counters.home.offered, counters.held_back), (200, 0));
}

#[test]
fn what_is_nobodys_is_held_back_but_for_a_sample_and_offered_when_it_is_somebodys() {
    let mut all = federator(&["fed-b", "fed-c"]);
    for id in 0..200 {
        let remote = if id % 2 == 0 {
            "198.51.100.1:443"
        } else {
            "[2001:db8:c::1]:443"
        };
        all.offer(to(id, remote));
    }
    for (id, near) in [
        (1000, "203.0.113.5:443"),
        (1001, "[2001:db8:b::7]:443"),
        (1002, "10.0.0.9:443"),
    ] {
        all.offer(to(id, near));
    }
    all.advance(SECOND);
    let counters = all.mesh.counters();
    assert_eq!(counters.home.offered + counters.held_back, 203);
    assert!(
        (180..200).contains(&counters.held_back),
        "{}",
        counters.held_back
    );
    let before = counters.home.offered;
    // Of one half of them the address becomes somebody's.
    all.received(2 * SECOND, "fed-c", &said(2, &[prefix("198.51.100.1", 32)]));
    let told = offers(&all.advance(2 * SECOND));
    let counters = all.mesh.counters();
    assert!((85..=100).contains(&counters.home.released));
    assert_eq!(counters.home.offered - before, counters.home.released);
    assert!(told > 0);
    // A federator that says nothing of it comes: it may have them all.
    all.mesh
        .owners_changed(&["fed-a", "fed-b", "fed-c", "fed-d"].map(|name| (name.to_owned(), 1)));
    all.mesh.peer_session_up("fed-d", 1);
    assert!(all.mesh.counters().held_back > 0);
    all.received(3 * SECOND, "fed-d", &PeerMessage::Withdraw(Vec::new()));
    assert_eq!(all.mesh.counters().held_back, 0);
}

#[test]
fn a_late_half_is_looked_for_only_where_it_may_be() {
    let recall = weft_wire::control::Recall {
        routing_key: 1,
        opened_at: weft_wire::Timestamp(1),
    };
    let mut all = federator(&["fed-b"]);
    all.received(0, "fed-c", &said(1, &[prefix("192.0.2.0", 24)]));
    for (remote, asked) in [
        ("203.0.113.9", 1),
        ("192.0.2.1", 1),
        ("198.51.100.1", 0),
        ("10.0.0.1", 2),
    ] {
        assert_eq!(
            all.mesh.recall(recall, remote.parse().unwrap()),
            asked,
            "{remote}"
        );
    }
    assert_eq!(
        federator(&["fed-b"])
            .mesh
            .recall(recall, "198.51.100.1".parse().unwrap()),
        1
    );
}
