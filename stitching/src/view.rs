//! What is known of one half: the facts that the rules look at, and nothing else.

use std::net::{IpAddr, SocketAddr};

use crate::stitcher::{Candidate, Handle, Key};

/// Which end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Opened it.
    Client,
    /// Accepted it.
    Server,
}

impl Role {
    /// The other end.
    pub fn opposite(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What NAT cannot change about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fingerprint {
    /// Not known: the connection is older than its agent.
    Unknown,
    /// The TCP initial sequence numbers of both ends.
    TcpIsn {
        /// The client's.
        client: u32,
        /// The server's.
        server: u32,
    },
    /// The first datagram each way.
    Datagrams(Datagrams),
}

/// Hashes of the first datagram each way of a UDP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Datagrams {
    /// Which bytes were hashed; part of the hashes too.
    pub sort: DatagramSort,
    /// Of the client's first.
    pub client: u64,
    /// Of the server's first; 0: none was seen (yet).
    pub server: u64,
    /// This end takes the bytes for such that tell flows apart.
    pub distinct: bool,
}

/// Which bytes of a datagram are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DatagramSort {
    /// Length and first bytes.
    Other,
    /// Id and question of a DNS message.
    Dns,
    /// Connection ids of a QUIC Initial.
    Quic,
}

/// One end's view of an established connection. Small and `Copy`: made on the fly from the caller's record.
///
/// Times are microseconds since the Unix epoch, corrected for the clock skew of the agent as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfView {
    /// Which end this is.
    pub role: Role,
    /// What NAT cannot change.
    pub fingerprint: Fingerprint,
    /// The network in which the addresses mean something ([`scope_key`] of cloud, account and network name; of UDP the
    /// [`udp_scope`] of that).
    pub network: u64,
    /// The host's network namespace ([`scope_key`] of agent and namespace): the network of loopback and link-local
    /// addresses, which mean nothing outside it.
    pub host: u64,
    /// This end's own address and port.
    pub local: SocketAddr,
    /// The peer as seen from here.
    pub remote: SocketAddr,
    /// Established; for a half without fingerprint the time it was found, which is later.
    pub opened_at: i64,
    /// Closed; `None` while open.
    pub closed_at: Option<i64>,
    /// When it was last reported on.
    pub seen_at: i64,
    /// Payload bytes sent and acknowledged.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Datagrams sent; of TCP not looked at.
    pub packets_sent: u64,
    /// Datagrams received.
    pub packets_received: u64,
}

impl HalfView {
    /// The client's address as this end sees it.
    pub fn client_address(&self) -> SocketAddr {
        canonical(if self.role == Role::Client {
            self.local
        } else {
            self.remote
        })
    }

    /// The server's address as this end sees it.
    pub fn server_address(&self) -> SocketAddr {
        canonical(if self.role == Role::Client {
            self.remote
        } else {
            self.local
        })
    }

    /// Whether one socket is both ends: TCP lets a socket connect to itself.
    pub fn is_self_connection(&self) -> bool {
        let one_isn =
            matches!(self.fingerprint, Fingerprint::TcpIsn { client, server } if client == server);
        one_isn && canonical(self.local) == canonical(self.remote)
    }

    /// A hash of (network, client address, server address): equal for two halves that see the connection alike.
    pub fn tuple_key(&self) -> u64 {
        let (client, server) = (self.client_address(), self.server_address());
        let near = is_near(client.ip()) || is_near(server.ip());
        let mut key = mix64(if near { self.host } else { self.network } ^ u64::from(near));
        for address in [client, server] {
            let bits = match address.ip() {
                IpAddr::V4(ip) => u128::from(u32::from(ip)) | 1 << 127,
                IpAddr::V6(ip) => u128::from(ip),
            };
            key = mix64(key ^ bits as u64).wrapping_add((bits >> 64) as u64);
            // Spread over the word: else the next port and the next address of a peer could be those of another flow.
            let port = u64::from(address.port()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            key = mix64(key).wrapping_add(port);
        }
        mix64(key)
    }

    /// What the [`Stitcher`](crate::Stitcher) is given of this half.
    pub fn candidate(&self, handle: Handle) -> Candidate {
        let key = match self.fingerprint {
            Fingerprint::TcpIsn { client, server } => Key::Isn { client, server },
            Fingerprint::Unknown => Key::Tuple(self.tuple_key()),
            Fingerprint::Datagrams(first) => {
                let client = mix64(first.client ^ (first.sort as u64 + 1));
                let flow = mix64(client ^ self.tuple_key());
                Key::Datagrams {
                    flow: [(flow >> 32) as u32, flow as u32],
                    client: (client >> 32) as u32,
                }
            }
        };
        Candidate {
            handle,
            role: self.role,
            key,
        }
    }
}

/// The caller's records, as the rules need to see them.
pub trait Halves {
    /// The half with this handle; `None` when the caller has forgotten it, and then so does the stitcher.
    fn view(&self, handle: Handle) -> Option<HalfView>;
}

impl<F: Fn(Handle) -> Option<HalfView>> Halves for F {
    fn view(&self, handle: Handle) -> Option<HalfView> {
        self(handle)
    }
}

/// A key for the place in which addresses mean something, from the words that name it. Not secret.
pub fn scope_key<'a>(words: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    words.into_iter().fold(0x5745_4654, |key, word| {
        let key = word
            .chunks(8)
            .fold(mix64(key ^ word.len() as u64), |key, chunk| {
                let mut bytes = [0; 8];
                bytes[..chunk.len()].copy_from_slice(chunk);
                mix64(key ^ u64::from_le_bytes(bytes))
            });
        key.wrapping_add(1)
    })
}

/// The same place for UDP, whose ports are others than TCP's: for [`HalfView::network`] and [`HalfView::host`].
pub fn udp_scope(key: u64) -> u64 {
    mix64(key ^ 17)
}

/// v4-mapped IPv6 is IPv4; flow label and scope id are not part of an address.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Loopback and link-local addresses exist once per host.
fn is_near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A half of `10.0.0.1:40000 -> 10.0.0.2:80` with ISNs 1 and 2, open from 0.
    pub(crate) fn half(role: Role) -> HalfView {
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
            fingerprint: Fingerprint::TcpIsn {
                client: 1,
                server: 2,
            },
            network: 7,
            host: if role == Role::Client { 1 } else { 2 },
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
    fn both_ends_have_one_tuple_key() {
        let (client, server) = (half(Role::Client), half(Role::Server));
        assert_eq!(client.tuple_key(), server.tuple_key());
        let mapped = HalfView {
            local: "[::ffff:10.0.0.1]:40000".parse().unwrap(),
            ..client
        };
        assert_eq!(mapped.tuple_key(), server.tuple_key());
        let elsewhere = HalfView {
            network: 8,
            ..server
        };
        assert_ne!(client.tuple_key(), elsewhere.tuple_key());
        let other_port = HalfView {
            remote: "10.0.0.2:81".parse().unwrap(),
            ..client
        };
        assert_ne!(client.tuple_key(), other_port.tuple_key());
    }

    #[test]
    fn ports_and_addresses_that_follow_each_other_have_keys_of_their_own() {
        let mut keys = std::collections::HashSet::new();
        for (port, last) in (0..64_u16).flat_map(|port| (0..64).map(move |last| (port, last))) {
            keys.insert(
                HalfView {
                    local: ([10, 0, 0, 1], 2000 + port).into(),
                    remote: ([198, 51, 100, last], 53).into(),
                    ..half(Role::Client)
                }
                .tuple_key(),
            );
        }
        assert_eq!(keys.len(), 64 * 64);
    }

    #[test]
    fn loopback_is_a_network_of_its_own() {
        let loopback = |role, host| {
            let half = half(role);
            let to_loopback =
                |a: SocketAddr| SocketAddr::new("127.0.0.1".parse().unwrap(), a.port());
            HalfView {
                host,
                local: to_loopback(half.local),
                remote: to_loopback(half.remote),
                ..half
            }
        };
        assert_eq!(
            loopback(Role::Client, 1).tuple_key(),
            loopback(Role::Server, 1).tuple_key()
        );
        assert_ne!(
            loopback(Role::Client, 1).tuple_key(),
            loopback(Role::Server, 2).tuple_key()
        );
    }

    #[test]
    fn scope_keys_tell_words_apart() {
        let key = |words: &[&str]| scope_key(words.iter().map(|w| w.as_bytes()));
        assert_eq!(key(&["aws", "net"]), key(&["aws", "net"]));
        assert_ne!(key(&["aws", "net"]), key(&["awsn", "et"]));
        assert_ne!(key(&["aws", ""]), key(&["aws"]));
        assert_ne!(key(&["a\0"]), key(&["a"]));
    }
}
