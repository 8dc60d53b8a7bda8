//! What outlives the expiry, and what must not be forgotten before it. One federator is owner and both homes at once.

use weft_mesh::{Effect, Withdrawn};
use weft_stitching::Rule;
use weft_wire::{Fingerprint, Half, HalfId, Role};

use crate::federator::{Federator, SECOND, closed, config, ends, half};

fn alone() -> Federator {
    Federator::new(config("fed", &["fed"], 100))
}

/// Of a client whose first number a SYN proxy keeps, whatever it makes of the server's.
fn proxied(id: u64, role: Role, server: u32) -> Half {
    half(id, role, Fingerprint::TcpIsn { client: 1, server }, ends())
}

#[test]
fn a_syn_proxied_connection_is_joined_however_long_it_lives() {
    let mut federator = alone();
    federator.offer(proxied(1, Role::Client, 2));
    federator.offer(proxied(2, Role::Server, 3));
    for second in 0..1000 {
        if second == 120 {
            for id in [1, 2] {
                let now = second * SECOND;
                federator.mesh.withdraw(now, HalfId(id), Withdrawn::Expired);
            }
        }
        assert_eq!(federator.advance(second * SECOND), []);
    }
    for half in [proxied(1, Role::Client, 2), proxied(2, Role::Server, 3)] {
        federator.updated(closed(half, 1000 * SECOND));
    }
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
    let mut federator = alone();
    federator.offer(proxied(1, Role::Client, 2));
    federator.offer(proxied(2, Role::Client, 2));
    let undone = |id| Effect::Undo { half: HalfId(id) };
    assert_eq!(federator.advance(SECOND), [undone(1), undone(2)]);
    federator.offer(proxied(3, Role::Server, 2));
    assert_eq!(federator.advance(2 * SECOND), [undone(3)]);
    federator.offer(proxied(4, Role::Client, 2));
    assert_eq!(federator.advance(3 * SECOND), [undone(4)]);
}
