//! What an owner has of halves that it does not match, and what a home keeps to itself.

use std::net::IpAddr;

use weft_mesh::{Card, KeepHome, KeptOffer};
use weft_wire::control::{Handle, Offer};
use weft_wire::{
    Fingerprint, Half, NameSource, Owner, PeerName, Pod, Process, Role, Site, Timestamp,
};

use crate::federator::{EXPIRY, Federator, SECOND, config, half};

const HALVES: u64 = 2000;

/// Every byte of it: what is added to what is kept does not compile here until it is looked at.
fn bytes(kept: &KeptOffer) -> Vec<u8> {
    let KeptOffer {
        home,
        offer,
        arrived,
        partner,
    } = kept;
    let Offer {
        routing_key,
        matching_key,
        role,
        opened_at: Timestamp(opened_at),
        handle: Handle(handle),
    } = offer;
    assert_eq!(*partner, None);
    let mut bytes = vec![*home as u8, *role as u8];
    for word in [routing_key, matching_key, handle] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(arrived.to_le_bytes());
    bytes.extend(opened_at.to_le_bytes());
    bytes
}

fn ends(id: u64) -> [std::net::SocketAddr; 2] {
    let port = 20_000 + (id % 20_000) as u16;
    let client: IpAddr = if id.is_multiple_of(2) {
        [10, 77, (id >> 8) as u8, id as u8].into()
    } else {
        format!("2001:db8:77::{id:x}").parse().unwrap()
    };
    let server: IpAddr = if id.is_multiple_of(2) {
        [203, 0, 113, id as u8].into()
    } else {
        format!("2001:db8:99::{id:x}").parse().unwrap()
    };
    [(client, port).into(), (server, 8443).into()]
}

fn halves() -> impl Iterator<Item = Half> {
    (0..HALVES).map(|id| {
        let fingerprint = match id % 3 {
            0 => Fingerprint::Unknown,
            _ => Fingerprint::TcpIsn {
                client: 0x5a00_0000 + (id as u32) * 7919,
                server: 0x3b00_0000 + (id as u32) * 104_729,
            },
        };
        let role = if id.is_multiple_of(2) {
            Role::Client
        } else {
            Role::Server
        };
        half(id, role, fingerprint, ends(id))
    })
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn an_owner_keeps_no_address_port_name_or_isn_of_what_it_does_not_match() {
    // It is its own home, so that nothing is left out by the way.
    let mut owner = Federator::new(config("fed-here", &["fed-here"], HALVES as usize));
    halves().for_each(|half| owner.offer(half));
    owner.advance(SECOND);
    let kept: Vec<Vec<u8>> = owner.mesh.kept().map(|kept| bytes(&kept)).collect();
    assert_eq!(kept.len(), HALVES as usize);
    let all = kept.concat();
    for name in ["fed-here", "node", "one"] {
        assert!(!holds(&all, name.as_bytes()), "{name}");
    }
    for half in halves() {
        for end in [half.local, half.remote] {
            let address: Vec<u8> = match end.ip() {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            let turned: Vec<u8> = address.iter().rev().copied().collect();
            for needle in [address, turned, end.ip().to_string().into_bytes()] {
                assert!(!holds(&all, &needle), "{end}");
            }
        }
        if let Fingerprint::TcpIsn { client, server } = half.fingerprint {
            for isn in [client, server] {
                for needle in [isn.to_le_bytes(), isn.to_be_bytes()] {
                    assert!(!holds(&all, &needle), "{isn:08x}");
                }
            }
        }
    }
    // Two bytes are met by chance: in 24 that look random once in some 1,400 offers.
    let of_port = kept
        .iter()
        .filter(|kept| holds(kept, &8443_u16.to_le_bytes()) || holds(kept, &8443_u16.to_be_bytes()))
        .count();
    assert!(
        of_port < 10,
        "the servers' port is in {of_port} of {HALVES}"
    );
    owner.advance(SECOND + 2 * EXPIRY);
    assert_eq!(owner.mesh.kept().count(), 0);
}

fn card() -> Card {
    let process = Process {
        name: "worker".into(),
        exe: Some("/opt/secret/worker".into()),
        user: Some("alice".into()),
        args: Some("--token-file /secret".into()),
        ..Process::default()
    };
    Card {
        half: half(1, Role::Client, Fingerprint::Unknown, ends(2)),
        owner: Owner {
            process: Some(process.clone()),
            sharers: vec![process],
            cgroup: "/kubepods/worker".into(),
            container: Some("c0ffee".into()),
            netns: 7,
            workload: "checkout".into(),
            pod: Some(Pod {
                name: "checkout-1".into(),
                labels: vec![("team".into(), "payments".into())],
                ..Pod::default()
            }),
            unit: Some("worker.service".into()),
            ..Owner::default()
        },
        name: Some(PeerName {
            name: "db.internal.example".into(),
            source: NameSource::DnsProcess,
        }),
        agent: "node-alpha".into(),
        site: Site::default(),
    }
}

#[test]
fn what_a_region_keeps_is_in_no_card() {
    for (word, gone, stays) in [
        (
            "processes",
            &["worker", "secret", "alice", "c0ffee"][..],
            &["checkout", "payments", "db.internal", "node-alpha"][..],
        ),
        (
            "arguments",
            &["token-file"],
            &[
                "/opt/secret/worker",
                "alice",
                "checkout",
                "payments",
                "db.internal",
            ],
        ),
        (
            "names",
            &["alice", "checkout", "db.internal", "node-alpha"],
            &["/opt/secret/worker", "token-file"],
        ),
        (
            "labels",
            &["payments"],
            &["checkout-1", "token-file", "db.internal"],
        ),
    ] {
        let mut card = card();
        KeepHome::of([word]).unwrap().strip(&mut card);
        let text = format!("{card:?}");
        for part in gone {
            assert!(!text.contains(part), "{word}: {part} in {text}");
        }
        for part in stays {
            assert!(text.contains(part), "{word}: no {part} in {text}");
        }
        assert_eq!((card.owner.netns, card.half), (7, self::card().half));
    }
    assert_eq!(KeepHome::of(["nothing"]), Err("nothing"));
    let mut all = card();
    KeepHome::of(KeepHome::WORDS).unwrap().strip(&mut all);
    let only_netns = Owner {
        netns: 7,
        ..Owner::default()
    };
    assert_eq!((all.owner, all.name), (only_netns, None));
}
