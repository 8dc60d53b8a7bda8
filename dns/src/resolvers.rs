//! Who answers DNS where it cannot be read: over TLS and QUIC by their port (RFC 7858, RFC 9250), over HTTPS by the
//! addresses and names of the public services that do (`data/resolvers.txt`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use weft_wire::{LookupTransport, Protocol};

use crate::name;

/// DNS over TLS, and over QUIC.
pub const DOT_PORT: u16 = 853;
/// HTTPS.
pub const HTTPS_PORT: u16 = 443;

const KNOWN: &str = include_str!("../data/resolvers.txt");

/// Public services of DNS over HTTPS.
#[derive(Clone, Debug, Default)]
pub struct Resolvers {
    addresses: BTreeMap<IpAddr, String>,
    names: BTreeMap<String, String>,
    /// Lines that could not be read.
    pub skipped: usize,
}

impl Resolvers {
    /// Those that are shipped.
    pub fn known() -> Self {
        Self::parse(KNOWN)
    }

    /// One service a line: its name, then its addresses and host names. `#` begins a comment.
    pub fn parse(text: &str) -> Self {
        let mut resolvers = Self::default();
        for line in text.lines() {
            let mut words = line
                .split('#')
                .next()
                .unwrap_or_default()
                .split_whitespace();
            let Some(service) = words.next() else {
                continue;
            };
            for word in words {
                if let Ok(address) = word.parse::<IpAddr>() {
                    resolvers.addresses.insert(address, service.to_owned());
                } else if let Some(name) = name::normalise(word) {
                    resolvers.names.insert(name, service.to_owned());
                } else {
                    resolvers.skipped += 1;
                }
            }
        }
        resolvers
    }

    /// Whether a connection to there carries lookups that cannot be read.
    pub fn hidden(&self, protocol: Protocol, remote: SocketAddr) -> Option<LookupTransport> {
        match (protocol, remote.port()) {
            (_, DOT_PORT) => Some(LookupTransport::Dot),
            // By TCP, or by QUIC.
            (_, HTTPS_PORT) => self
                .addresses
                .contains_key(&remote.ip().to_canonical())
                .then_some(LookupTransport::Doh),
            _ => None,
        }
    }

    /// The same of a connection to port 443 by the name that its peer was known by.
    pub fn hidden_by_name(&self, remote: SocketAddr, name: &str) -> Option<LookupTransport> {
        (remote.port() == HTTPS_PORT && self.service_of_name(name).is_some())
            .then_some(LookupTransport::Doh)
    }

    /// Whose address this is.
    pub fn service(&self, address: IpAddr) -> Option<&str> {
        self.addresses
            .get(&address.to_canonical())
            .map(String::as_str)
    }

    /// Whose host this is: the name itself, or one below (services give each customer a name of its own).
    pub fn service_of_name(&self, name: &str) -> Option<&str> {
        name::suffixes(name).find_map(|suffix| self.names.get(suffix).map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_can_be_read_and_is_found() {
        let known = Resolvers::known();
        assert_eq!(known.skipped, 0);
        assert!(known.addresses.len() > 60 && known.names.len() > 30);
        let at = |text: &str| known.hidden(Protocol::Tcp, text.parse().unwrap());
        assert_eq!(at("8.8.8.8:443"), Some(LookupTransport::Doh));
        assert_eq!(at("[::ffff:1.1.1.1]:443"), Some(LookupTransport::Doh));
        assert_eq!(at("[2620:fe::fe]:443"), Some(LookupTransport::Doh));
        assert_eq!(at("10.0.0.1:853"), Some(LookupTransport::Dot));
        assert_eq!(at("8.8.8.8:53"), None);
        assert_eq!(at("10.0.0.1:443"), None);
        let web = "10.0.0.1:443".parse().unwrap();
        assert_eq!(
            known.hidden_by_name(web, "abc123.dns.nextdns.io"),
            Some(LookupTransport::Doh)
        );
        assert_eq!(known.hidden_by_name(web, "example.com"), None);
        assert_eq!(known.service("9.9.9.9".parse().unwrap()), Some("quad9"));
    }
}
