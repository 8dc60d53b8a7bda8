//! When owners come and go, only the offers whose owner changed are made again, and each to the owner that everyone would choose.

// Everything in this file is a test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use weft_mesh::{Card, Config, Effect, Members, Mesh, MeshKey, Records};
use weft_stitching::{Fingerprint, HalfView, Role};
use weft_wire::HalfId;
use weft_wire::control::{Handle, PeerMessage};

const HALVES: u64 = 300;

struct Nothing;

impl Records for Nothing {
    fn view(&self, _: HalfId) -> Option<HalfView> {
        None
    }

    fn card(&self, _: HalfId) -> Option<Card> {
        None
    }
}

fn view(number: u64) -> HalfView {
    HalfView {
        role: Role::Client,
        fingerprint: Fingerprint::TcpIsn {
            client: number as u32 * 7 + 1,
            server: 5,
        },
        network: 1,
        host: 1,
        local: "10.0.0.1:40000".parse().unwrap(),
        remote: "198.51.100.7:443".parse().unwrap(),
        opened_at: 0,
        closed_at: None,
        seen_at: 0,
        bytes_sent: 0,
        bytes_received: 0,
        packets_sent: 0,
        packets_received: 0,
    }
}

fn mesh(peers: &[&str]) -> Mesh {
    let mut mesh = Mesh::new(Config {
        name: "fed-a".into(),
        members: Members::new(["fed-a", "fed-b", "fed-c"]),
        key: MeshKey::new([3; 32]),
        expiry_us: 1_000_000_000,
        partial_delay_us: 5_000_000,
        gather_us: 0,
        stitched_at_home: true,
        max_offers: 10_000,
        max_offers_per_home: 10_000,
        max_halves: 10_000,
    })
    .unwrap();
    peers.iter().for_each(|peer| mesh.session_up(peer, 1));
    (0..HALVES).for_each(|number| assert!(mesh.offer(HalfId(number), &view(number))));
    mesh
}

/// What is said now: by handle, to whom it is offered, and from whom it is taken back.
fn said(mesh: &mut Mesh) -> (BTreeMap<Handle, String>, BTreeMap<Handle, String>) {
    mesh.advance(1, &Nothing);
    let (mut offered, mut withdrawn) = (BTreeMap::new(), BTreeMap::new());
    while let Some(effect) = mesh.poll() {
        let Effect::Send { peer, message, .. } = effect else {
            panic!("{effect:?}")
        };
        match message {
            PeerMessage::Offers(offers) => {
                for offer in offers {
                    assert!(offered.insert(offer.handle, peer.clone()).is_none());
                }
            }
            PeerMessage::Withdraw(handles) => {
                withdrawn.extend(handles.into_iter().map(|handle| (handle, peer.clone())));
            }
            other => panic!("{other:?}"),
        }
    }
    (offered, withdrawn)
}

fn owners(names: &[(&str, u8)]) -> Vec<(String, u8)> {
    let named = |(name, weight): &(&str, u8)| ((*name).to_owned(), *weight);
    names.iter().map(named).collect()
}

#[test]
fn when_an_owner_goes_its_offers_are_made_to_others_and_come_back_with_it() {
    let mut mesh = mesh(&["fed-b", "fed-c"]);
    let (first, _) = said(&mut mesh);
    let of_b = first.values().filter(|peer| *peer == "fed-b").count();
    assert!((70..130).contains(&of_b), "{of_b}");

    let moved = mesh.owners_changed(&owners(&[("fed-a", 1), ("fed-c", 1)]));
    assert_eq!(moved, of_b);
    let (offered, withdrawn) = said(&mut mesh);
    assert_eq!(withdrawn.len(), of_b);
    for handle in withdrawn.keys() {
        assert_eq!(first[handle], "fed-b", "only its offers move");
    }
    assert!(
        offered
            .iter()
            .all(|(handle, peer)| peer == "fed-c" && withdrawn.contains_key(handle))
    );

    let all = owners(&[("fed-a", 1), ("fed-b", 1), ("fed-c", 1)]);
    assert_eq!(mesh.owners_changed(&all), of_b);
    let (offered, _) = said(&mut mesh);
    let back: Vec<_> = first.iter().filter(|(_, peer)| *peer == "fed-b").collect();
    assert_eq!(offered.iter().collect::<Vec<_>>(), back);
    assert_eq!(
        mesh.owners_changed(&all),
        0,
        "the same again changes nothing"
    );
    assert_eq!(mesh.counters().home.reoffered, 2 * of_b as u64);
}

#[test]
fn one_that_was_not_known_gets_its_share() {
    let mut mesh = mesh(&["fed-b", "fed-c"]);
    said(&mut mesh);
    let four = owners(&[("fed-a", 1), ("fed-b", 1), ("fed-c", 1), ("fed-d", 2)]);
    let moved = mesh.owners_changed(&four);
    assert!((90..150).contains(&moved), "{moved}");
    let (offered, withdrawn) = said(&mut mesh);
    assert!(
        offered.is_empty() && !withdrawn.is_empty(),
        "it cannot be reached yet"
    );
    mesh.session_up("fed-d", 1);
    let (offered, _) = said(&mut mesh);
    assert_eq!(offered.len(), moved);
    assert!(offered.values().all(|peer| peer == "fed-d"));
}
