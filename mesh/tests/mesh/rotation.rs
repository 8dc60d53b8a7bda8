//! A new key for the mesh, at federators that get it at different times.

use std::collections::BTreeSet;

use weft_mesh::{Effect, MeshKey};
use weft_wire::{Fingerprint, HalfId, Role};

use crate::federator::{EXPIRY, Federator, SECOND, config, ends, half};

const TURN: i64 = 1000 * SECOND;
const OVERLAP: i64 = 2 * EXPIRY;
const NAMES: [&str; 3] = ["fed-a", "fed-b", "fed-c"];

fn old() -> MeshKey {
    MeshKey::new([1; 32])
}

fn new() -> MeshKey {
    MeshKey::rotating(vec![(0, [1; 32]), (TURN, [2; 32])], OVERLAP).unwrap()
}

/// The first two offer the ends of a connection at these times; which of them are joined.
fn joined(keys: [MeshKey; 3], offered_at: [i64; 2]) -> BTreeSet<u64> {
    let mut federators: Vec<Federator> = NAMES
        .iter()
        .zip(keys)
        .map(|(name, key)| {
            let mut config = config(name, &NAMES, 100);
            config.key = key;
            Federator::new(config)
        })
        .collect();
    for from in 0..3 {
        for peer in NAMES.iter().filter(|peer| **peer != NAMES[from]) {
            federators[from].mesh.session_up(peer, 1);
        }
    }
    let fingerprint = Fingerprint::TcpIsn {
        client: 7,
        server: 8,
    };
    let mut joined = BTreeSet::new();
    let begin = offered_at[0].min(offered_at[1]);
    for now in (begin..begin + EXPIRY).step_by(SECOND as usize) {
        for end in [0, 1] {
            let role = [Role::Client, Role::Server][end];
            if now == offered_at[end] {
                federators[end].advance(now);
                federators[end].offer(half(end as u64 + 1, role, fingerprint, ends()));
            }
        }
        for _ in 0..4 {
            for from in 0..3 {
                for effect in federators[from].advance(now) {
                    match effect {
                        Effect::Send { peer, seq, message } => {
                            let to = NAMES.iter().position(|name| *name == peer).unwrap();
                            federators[to].received(now, NAMES[from], &message);
                            federators[from].mesh.acked(now, &peer, seq);
                        }
                        Effect::Join { half, .. } => drop(joined.insert(half.0)),
                        Effect::Undo { half: HalfId(id) } => panic!("{id} in doubt"),
                        Effect::Done { .. } | Effect::Redial { .. } => {}
                    }
                }
            }
        }
    }
    joined
}

#[test]
fn no_half_is_missed_by_a_rotation() {
    let both = BTreeSet::from([1, 2]);
    for keys in [
        [new(), new(), new()],
        [old(), new(), new()],
        [new(), old(), new()],
        [new(), new(), old()],
        [old(), new(), old()],
    ] {
        for first in [-2, -1, 0, 1, 60] {
            for later in [0, 1, 30, 100] {
                let at = [TURN + first * SECOND, TURN + (first + later) * SECOND];
                assert_eq!(joined(keys.clone(), at), both, "{at:?}");
                assert_eq!(joined(keys.clone(), [at[1], at[0]]), both, "{at:?}");
            }
        }
    }
}

#[test]
fn at_the_end_of_the_overlap_those_with_the_new_key_go_on() {
    let both = BTreeSet::from([1, 2]);
    for before in [-100, -1, 0] {
        let at = [
            TURN + OVERLAP + before * SECOND,
            TURN + OVERLAP + 5 * SECOND,
        ];
        assert_eq!(joined([new(), new(), new()], at), both);
    }
    let late = [TURN + OVERLAP + SECOND; 2];
    assert_eq!(joined([new(), old(), new()], late), BTreeSet::new());
}
