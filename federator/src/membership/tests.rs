use std::time::Duration;

use weft_mesh::Membership;
use weft_mesh::membership::Node;
use weft_mesh::membership::node::{in_order_for, sender_of};

use super::*;

fn two() -> (Membership, Membership) {
    let node = |name: &str| Node::new(name, "r1", "192.0.2.1:7443", 1);
    let (mut a, mut b) = (
        Membership::new(node("fed-a"), 1),
        Membership::new(node("fed-b"), 2),
    );
    a.join(0, "fed-b", "192.0.2.1:7443");
    for _ in 0..8 {
        while let Some(effect) = a.poll() {
            if let Effect::Send { bytes, .. } = effect {
                assert_eq!(sender_of(&bytes).unwrap().name, "fed-a");
                b.received(0, &bytes);
            }
        }
        while let Some(effect) = b.poll() {
            if let Effect::Send { bytes, .. } = effect {
                assert_eq!(sender_of(&bytes).unwrap().name, "fed-b");
                a.received(0, &bytes);
            }
        }
    }
    (a, b)
}

#[test]
fn agents_are_shared_and_a_draining_federator_has_none() {
    let (a, mut b) = two();
    let view = View::of(&a, &BTreeMap::new());
    let first = |view: &View, agent: &str| view.homes_of(agent).homes[0].name.clone();
    let homes: Vec<String> = (0..100)
        .map(|n| first(&view, &format!("node{n}")))
        .collect();
    let of_a = homes.iter().filter(|home| *home == "fed-a").count();
    assert!((30..70).contains(&of_a), "{of_a}");
    // Both come to the same.
    let other = View::of(&b, &BTreeMap::new());
    for (n, home) in homes.iter().enumerate() {
        assert_eq!(*home, first(&other, &format!("node{n}")));
        assert_eq!(view.homes_of(&format!("node{n}")).homes.len(), 2);
    }
    b.drain(1, true);
    let drained = View::of(&b, &BTreeMap::new());
    for n in 0..100 {
        let homes = drained.homes_of(&format!("node{n}")).homes;
        assert_eq!(homes.len(), 1);
        assert_eq!(homes[0].name, "fed-a");
    }
}

#[test]
fn agents_of_one_that_goes_have_their_own_next() {
    let all = vec!["a", "b", "c"];
    for n in 0..1000 {
        let agent = format!("node{n}");
        let order = in_order_for(&agent, all.clone());
        let rest: Vec<&str> = all
            .iter()
            .copied()
            .filter(|name| *name != order[0])
            .collect();
        assert_eq!(in_order_for(&agent, rest), order[1..]);
    }
}

#[test]
fn a_member_that_says_too_much_is_not_heard() {
    let (orders, _inbox) = mpsc::channel(INBOX);
    let (a, _) = two();
    let (_view, seen) = watch::channel(Arc::new(View::of(&a, &BTreeMap::new())));
    let members = Members {
        orders,
        view: seen,
        counters: Arc::default(),
        buckets: Mutex::default(),
    };
    let now = Instant::now();
    let said = |peer: &str, times: usize, at: Instant| {
        let times = 0..times;
        times.filter(|_| members.may_say(peer, at)).count()
    };
    assert_eq!(said("fed-b", 1000, now), BURST as usize);
    assert_eq!(
        said("fed-c", 10, now),
        10,
        "another member is not kept from it"
    );
    let later = now + Duration::from_secs(1);
    assert_eq!(said("fed-b", 1000, later), RATE as usize);
}
