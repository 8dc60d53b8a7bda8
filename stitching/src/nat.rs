//! What was rewritten between the two ends of a match, and what else both ends should agree on.

use std::fmt;

use crate::judge::{TOLERANCE_US, bytes_agree};
use crate::view::{Fingerprint, HalfView};

/// What differs between the two views of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// The client's address.
    pub source: bool,
    /// The client's port.
    pub source_port: bool,
    /// The server's address.
    pub destination: bool,
    /// The server's port.
    pub destination_port: bool,
    /// One end speaks IPv4, the other IPv6.
    pub family: bool,
}

impl Nat {
    /// The words for it, in this order: `source`, `source-port`, `destination`, `destination-port`.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        [
            (self.source, "source"),
            (self.source_port, "source-port"),
            (self.destination, "destination"),
            (self.destination_port, "destination-port"),
        ]
        .into_iter()
        .filter_map(|(rewritten, word)| rewritten.then_some(word))
    }

    /// Nothing was rewritten.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Names the NAT between two ends from their two views.
pub fn nat(client: &HalfView, server: &HalfView) -> Nat {
    let (source, translated_source) = (client.client_address(), server.client_address());
    let (destination, translated_destination) = (client.server_address(), server.server_address());
    Nat {
        source: source.ip() != translated_source.ip(),
        source_port: source.port() != translated_source.port(),
        destination: destination.ip() != translated_destination.ip(),
        destination_port: destination.port() != translated_destination.port(),
        family: source.is_ipv4() != translated_source.is_ipv4(),
    }
}

/// A check of a match by what both ends counted; [`fmt::Display`] prints the figures compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// At close, what one end sent the other received.
    BytesBothEnds {
        /// Sent by the client, received by the server.
        to_server: (u64, u64),
        /// Sent by the server, received by the client.
        to_client: (u64, u64),
    },
    /// Both ends were established at about one time: the server's minus the client's, in microseconds.
    OpenedTogether(i64),
}

impl Check {
    /// Its evidence code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BytesBothEnds { .. } => "bytes-both-ends",
            Self::OpenedTogether(_) => "opened-together",
        }
    }

    /// Whether the ends agree.
    pub fn agrees(&self) -> bool {
        match self {
            Self::BytesBothEnds {
                to_server,
                to_client,
            } => to_server.0 == to_server.1 && to_client.0 == to_client.1,
            Self::OpenedTogether(difference) => {
                difference.unsigned_abs() <= TOLERANCE_US.unsigned_abs()
            }
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BytesBothEnds {
                to_server,
                to_client,
            } => write!(
                f,
                "client sent {}, server received {}; server sent {}, client received {}",
                to_server.0, to_server.1, to_client.0, to_client.1
            ),
            Self::OpenedTogether(difference) => write!(f, "server {difference} us after client"),
        }
    }
}

/// What can be checked of a match now: bytes once both ends are closed, opening times where both saw the opening.
pub fn checks(client: &HalfView, server: &HalfView) -> impl Iterator<Item = Check> {
    let closed = client.closed_at.is_some() && server.closed_at.is_some();
    let bytes = closed.then_some(Check::BytesBothEnds {
        to_server: (client.bytes_sent, server.bytes_received),
        to_client: (server.bytes_sent, client.bytes_received),
    });
    debug_assert!(bytes.is_none_or(|check| check.agrees() == bytes_agree(client, server)));
    let saw_opening = [client, server]
        .iter()
        .all(|half| half.fingerprint != Fingerprint::Unknown);
    let opened = saw_opening
        .then(|| Check::OpenedTogether(server.opened_at.saturating_sub(client.opened_at)));
    bytes.into_iter().chain(opened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Role, tests::half};

    #[test]
    fn names_every_rewrite() {
        let (client, server) = (half(Role::Client), half(Role::Server));
        assert!(nat(&client, &server).is_none());
        // The masquerade and DNAT measured on a real router.
        let client = HalfView {
            local: "10.1.0.2:48568".parse().unwrap(),
            remote: "203.0.113.9:443".parse().unwrap(),
            ..client
        };
        let server = HalfView {
            local: "198.51.100.2:8443".parse().unwrap(),
            remote: "198.51.100.1:51713".parse().unwrap(),
            ..server
        };
        let words: Vec<_> = nat(&client, &server).words().collect();
        assert_eq!(
            words,
            ["source", "source-port", "destination", "destination-port"]
        );
        let port_kept = HalfView {
            remote: "198.51.100.1:48568".parse().unwrap(),
            ..server
        };
        assert_eq!(
            nat(&client, &port_kept).words().collect::<Vec<_>>(),
            ["source", "destination", "destination-port"]
        );
    }

    #[test]
    fn family_translation_is_seen_and_v4_mapped_is_not_one() {
        let (client, server) = (half(Role::Client), half(Role::Server));
        let six = HalfView {
            local: "[2001:db8::1]:40000".parse().unwrap(),
            remote: "[64:ff9b::a00:2]:80".parse().unwrap(),
            ..client
        };
        let found = nat(&six, &server);
        assert!(
            found.family
                && found.source
                && found.destination
                && !found.source_port
                && !found.destination_port
        );
        let mapped = HalfView {
            local: "[::ffff:10.0.0.1]:40000".parse().unwrap(),
            remote: "[::ffff:10.0.0.2]:80".parse().unwrap(),
            ..client
        };
        assert!(nat(&mapped, &server).is_none());
    }

    #[test]
    fn bytes_are_checked_at_close_only() {
        let client = HalfView {
            bytes_sent: 10,
            bytes_received: 20,
            ..half(Role::Client)
        };
        let server = HalfView {
            bytes_sent: 20,
            bytes_received: 10,
            ..half(Role::Server)
        };
        let codes = |c: &HalfView, s: &HalfView| {
            checks(c, s)
                .map(|x| (x.code(), x.agrees()))
                .collect::<Vec<_>>()
        };
        assert_eq!(codes(&client, &server), [("opened-together", true)]);
        let client = HalfView {
            closed_at: Some(5),
            ..client
        };
        let server = HalfView {
            closed_at: Some(5),
            ..server
        };
        assert_eq!(
            codes(&client, &server),
            [("bytes-both-ends", true), ("opened-together", true)]
        );
        let short = HalfView {
            bytes_received: 9,
            opened_at: 3_000_000,
            ..server
        };
        assert_eq!(
            codes(&client, &short),
            [("bytes-both-ends", false), ("opened-together", false)]
        );
        let unknown = HalfView {
            fingerprint: Fingerprint::Unknown,
            ..short
        };
        assert_eq!(codes(&client, &unknown), [("bytes-both-ends", false)]);
    }
}
