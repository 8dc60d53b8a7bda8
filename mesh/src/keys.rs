//! What an offer says of a half: keyed hashes.
//!
//! Who does not hold the mesh's key learns nothing from them. A federator that holds it could try all 2^32 client ISNs, and
//! would learn an ISN, which says nothing of who talks to whom; a half without ISNs is hashed with its addresses, which
//! a federator could confirm that already suspects them.

use std::fmt;

use weft_stitching::{DatagramSort, Datagrams, Fingerprint, HalfView, Role, scope_key, udp_scope};
use weft_wire::control::{EndpointCard, Handle};
use weft_wire::{Half, HalfId, Protocol, Site};

/// Keys that a mesh has at a time: those of some rotations, the oldest first to be forgotten.
pub const MAX_KEYS: usize = 8;

/// The secret that all federators of a mesh share: a key, or several that follow each other.
///
/// A key is the present one from its time on, until that of the next. For some time after that (the overlap) halves are offered
/// under the one before it too: a federator that has the new key not yet, or whose clock is behind, finds them under that. The
/// overlap is to be longer than halves wait for their other ends.
#[derive(Clone, PartialEq, Eq)]
pub struct MeshKey {
    /// From when on, in the order of that; never empty.
    keys: Vec<(i64, [u8; 32])>,
    overlap_us: i64,
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshKey(secret)")
    }
}

/// The two hashes of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keys {
    /// Of what both ends always agree on: chooses the owner.
    pub routing: u64,
    /// Of the whole fingerprint.
    pub matching: u64,
}

impl MeshKey {
    /// The only key, with these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self {
            keys: vec![(i64::MIN, bytes)],
            overlap_us: 0,
        }
    }

    /// Keys with the times from which on they are the present one, in microseconds since the Unix epoch, and the overlap. The
    /// first is the present one before its time too. `None` without any key, or with more than [`MAX_KEYS`].
    pub fn rotating(mut keys: Vec<(i64, [u8; 32])>, overlap_us: i64) -> Option<Self> {
        keys.sort_unstable();
        (1..=MAX_KEYS)
            .contains(&keys.len())
            .then_some(Self { keys, overlap_us })
    }

    /// The hashes of a half under the present key, and during an overlap those under the one before.
    pub fn keys_at(&self, now: i64, half: &HalfView) -> (Keys, Option<Keys>) {
        let begun = self.keys.partition_point(|(from, _)| *from <= now);
        let present = begun.saturating_sub(1);
        let (from, key) = &self.keys[present];
        let before = present.checked_sub(1).map(|place| &self.keys[place].1);
        let before = before.filter(|_| now < from.saturating_add(self.overlap_us));
        (
            keys_under(key, half),
            before.map(|before| keys_under(before, half)),
        )
    }

    /// The hashes of a half under the newest key.
    pub fn keys(&self, half: &HalfView) -> Keys {
        self.keys_at(i64::MAX, half).0
    }

    /// The hashes of a half under each of the keys, the newest first.
    pub fn all_keys(&self, half: &HalfView) -> impl Iterator<Item = Keys> {
        let half = *half;
        let keys = self.keys.iter().rev();
        keys.map(move |(_, key)| keys_under(key, &half))
    }
}

/// The hashes of a half: of its ISNs or first datagrams, or, where they are not known, of network and addresses.
fn keys_under(key: &[u8; 32], half: &HalfView) -> Keys {
    match half.fingerprint {
        Fingerprint::TcpIsn { client, server } => Keys {
            routing: hash(key, b"isn", &[&client.to_le_bytes()]),
            matching: hash(
                key,
                b"isns",
                &[&client.to_le_bytes(), &server.to_le_bytes()],
            ),
        },
        // Of the server's, for the same reason as of its ISN, the routing key says nothing.
        Fingerprint::Datagrams(first) => {
            let (sort, client) = ([first.sort as u8], first.client.to_le_bytes());
            Keys {
                routing: hash(key, b"datagram", &[&sort, &client]),
                matching: hash(
                    key,
                    b"datagrams",
                    &[&sort, &client, &first.server.to_le_bytes()],
                ),
            }
        }
        Fingerprint::Unknown => {
            let tuple = half.tuple_key().to_le_bytes();
            Keys {
                routing: hash(key, b"tuple", &[&tuple]),
                matching: hash(key, b"tuples", &[&tuple]),
            }
        }
    }
}

/// A home's name for a half: the same after a restart and whatever becomes of the mesh's keys, and meaningless to everyone
/// else: the id is mixed from the random number of its host's boot.
pub fn handle(home: &str, half: HalfId) -> Handle {
    let parts: [&[u8]; 2] = [home.as_bytes(), &half.0.to_le_bytes()];
    Handle(hash(&[0; 32], b"handle", &parts))
}

fn hash(key: &[u8; 32], what: &[u8], parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(what);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// [`HalfView::network`] of an agent's site: the same at every federator. A network without a name is one of its
/// federator's own: the same private addresses behind another federator are others.
pub fn network_key(federator: &str, site: &Site) -> u64 {
    let home = if site.network.is_empty() {
        federator
    } else {
        ""
    };
    scope_key([
        site.cloud.as_bytes(),
        site.account.as_bytes(),
        site.network.as_bytes(),
        home.as_bytes(),
    ])
}

/// [`HalfView::host`] of an agent and a network namespace on its host.
pub fn host_key(federator: &str, agent: &str, netns: u32) -> u64 {
    scope_key([
        federator.as_bytes(),
        agent.as_bytes(),
        &netns.to_le_bytes()[..],
    ])
}

/// The other end of a match, as its home's card tells it. Times on a card are corrected by its sender.
pub fn card_view(card: &EndpointCard) -> HalfView {
    half_view(
        &card.half,
        network_key(&card.federator, &card.site),
        host_key(&card.federator, &card.agent, card.owner.netns),
    )
}

/// A half as the rules see it, its times as they are, in the place with these keys ([`network_key`], [`host_key`]).
pub fn half_view(half: &Half, network: u64, host: u64) -> HalfView {
    let scope = |key| match half.protocol {
        Protocol::Tcp => key,
        Protocol::Udp => udp_scope(key),
    };
    HalfView {
        role: match half.role {
            weft_wire::Role::Client => Role::Client,
            weft_wire::Role::Server => Role::Server,
        },
        fingerprint: match half.fingerprint {
            weft_wire::Fingerprint::Unknown => Fingerprint::Unknown,
            weft_wire::Fingerprint::TcpIsn { client, server } => {
                Fingerprint::TcpIsn { client, server }
            }
            weft_wire::Fingerprint::Datagrams(first) => Fingerprint::Datagrams(Datagrams {
                sort: match first.sort {
                    weft_wire::DatagramSort::Other => DatagramSort::Other,
                    weft_wire::DatagramSort::Dns => DatagramSort::Dns,
                    weft_wire::DatagramSort::Quic => DatagramSort::Quic,
                },
                client: first.client,
                server: first.server,
                distinct: first.distinct,
            }),
        },
        network: scope(network),
        host: scope(host),
        local: half.local,
        remote: half.remote,
        opened_at: half.opened_at.0,
        closed_at: half.closed_at.map(|at| at.0),
        seen_at: half.seen_at.0,
        bytes_sent: half.bytes_sent,
        bytes_received: half.bytes_received,
        packets_sent: half.packets_sent,
        packets_received: half.packets_received,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(role: Role, fingerprint: Fingerprint) -> HalfView {
        let (client, server) = (
            "10.0.0.1:40000".parse().unwrap(),
            "10.0.0.2:80".parse().unwrap(),
        );
        let (local, remote) = if role == Role::Client {
            (client, server)
        } else {
            (server, client)
        };
        HalfView {
            role,
            fingerprint,
            network: 1,
            host: 1,
            local,
            remote,
            opened_at: 0,
            closed_at: None,
            seen_at: 0,
            bytes_sent: 0,
            bytes_received: 0,
            packets_sent: 0,
            packets_received: 0,
        }
    }

    #[test]
    fn both_ends_have_the_same_keys() {
        let key = MeshKey::new([7; 32]);
        for fingerprint in [
            Fingerprint::Unknown,
            Fingerprint::TcpIsn {
                client: 1,
                server: 2,
            },
            datagrams(1, 2),
        ] {
            let (client, server) = (
                half(Role::Client, fingerprint),
                half(Role::Server, fingerprint),
            );
            assert_eq!(key.keys(&client), key.keys(&server));
            assert_ne!(key.keys(&client), MeshKey::new([8; 32]).keys(&client));
            assert_ne!(key.keys(&client).routing, key.keys(&client).matching);
        }
    }

    #[test]
    fn a_new_key_is_used_from_its_time_on_and_the_old_one_for_the_overlap() {
        let half = half(Role::Client, datagrams(1, 2));
        let [first, second] = [[1; 32], [2; 32]].map(|bytes| MeshKey::new(bytes).keys(&half));
        let both = MeshKey::rotating(vec![(1000, [2; 32]), (500, [1; 32])], 100).unwrap();
        for (now, expected) in [
            (0, (first, None)),
            (999, (first, None)),
            (1000, (second, Some(first))),
            (1099, (second, Some(first))),
            (1100, (second, None)),
        ] {
            assert_eq!(both.keys_at(now, &half), expected, "at {now}");
        }
        assert_eq!(both.all_keys(&half).collect::<Vec<_>>(), [second, first]);
        assert_eq!(MeshKey::rotating(Vec::new(), 100), None);
    }

    fn datagrams(client: u64, server: u64) -> Fingerprint {
        Fingerprint::Datagrams(Datagrams {
            sort: DatagramSort::Other,
            client,
            server,
            distinct: true,
        })
    }

    #[test]
    fn an_answer_that_was_not_seen_keeps_the_routing_key_only() {
        let key = MeshKey::new([7; 32]);
        let of = |client, server| key.keys(&half(Role::Client, datagrams(client, server)));
        assert_eq!(of(1, 2).routing, of(1, 0).routing);
        assert_ne!(of(1, 2).matching, of(1, 0).matching);
        assert_ne!(of(1, 2).routing, of(2, 2).routing);
    }

    #[test]
    fn a_syn_proxy_keeps_the_routing_key_only() {
        let key = MeshKey::new([7; 32]);
        let client = key.keys(&half(
            Role::Client,
            Fingerprint::TcpIsn {
                client: 1,
                server: 2,
            },
        ));
        let server = key.keys(&half(
            Role::Server,
            Fingerprint::TcpIsn {
                client: 1,
                server: 3,
            },
        ));
        assert_eq!(client.routing, server.routing);
        assert_ne!(client.matching, server.matching);
    }

    #[test]
    fn a_network_without_a_name_is_not_shared_by_federators() {
        let site = |network: &str| Site {
            network: network.into(),
            ..Site::default()
        };
        let key = |federator, network| network_key(federator, &site(network));
        assert_eq!(key("fed-a", "vpc"), key("fed-b", "vpc"));
        assert_eq!(key("fed-a", ""), key("fed-a", ""));
        assert_ne!(key("fed-a", ""), key("fed-b", ""));
        assert_ne!(key("fed-a", "vpc"), key("fed-a", ""));
    }

    #[test]
    fn the_key_does_not_print() {
        assert_eq!(format!("{:?}", MeshKey::new([7; 32])), "MeshKey(secret)");
    }
}
