//! What the routers' connection tracking says: how each connection was rewritten, and what it carried.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::error::{LabError, Result};
use crate::host::Host;

/// Both ends of a connection, as seen at one place: who opened it, and whom it was opened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// The opening side.
    pub source: SocketAddr,
    /// The accepting side.
    pub destination: SocketAddr,
}

/// One entry of a router's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Before the router, on the client's side.
    pub before: Tuple,
    /// After it, on the server's side.
    pub after: Tuple,
    /// Packets and bytes from client to server, headers of IP and TCP included.
    pub up: Carried,
    /// The other way.
    pub down: Carried,
}

/// Counters of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Packets; a burst that the kernel moved in one piece counts as one.
    pub packets: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// A router's table, by the tuple before it.
pub type Table = HashMap<Tuple, Entry>;

impl Carried {
    /// Payload of UDP datagrams.
    pub fn datagrams(self, ipv6: bool) -> Option<u64> {
        let header = if ipv6 { 40 } else { 20 } + 8;
        self.bytes.checked_sub(self.packets * header)
    }

    /// Payload of a TCP connection that was opened and closed in order: timestamps in every segment (32 bytes of TCP
    /// header), 8 bytes more of options in the SYN.
    pub fn payload(self, ipv6: bool) -> Option<u64> {
        let header = if ipv6 { 40 } else { 20 } + 32;
        self.bytes.checked_sub(self.packets * header + 8)
    }
}

/// Reads the connections of a protocol (`tcp`, `udp`) out of a router's table.
pub fn table(router: &Host, protocol: &str) -> Result<Table> {
    let mut table = Table::new();
    for family in ["ipv4", "ipv6"] {
        for line in router
            .run("conntrack", &["-L", "-f", family, "-p", protocol])?
            .lines()
        {
            let entry = parse(line).ok_or_else(|| LabError::Unreadable {
                what: format!("conntrack of {router:?}"),
                text: line.to_owned(),
            })?;
            table.insert(entry.before, entry);
        }
    }
    Ok(table)
}

/// Reads `tcp 6 … src= dst= sport= dport= packets= bytes= src= …`: the original direction, then the reply's.
fn parse(line: &str) -> Option<Entry> {
    let mut words = line
        .split_whitespace()
        .filter_map(|word| word.split_once('='));
    let mut value = |key: &str| words.find(|(k, _)| *k == key).map(|(_, v)| v);
    let mut direction = || {
        let (source, destination): (IpAddr, IpAddr) =
            (value("src")?.parse().ok()?, value("dst")?.parse().ok()?);
        let (sport, dport) = (value("sport")?.parse().ok()?, value("dport")?.parse().ok()?);
        let carried = Carried {
            packets: value("packets")?.parse().ok()?,
            bytes: value("bytes")?.parse().ok()?,
        };
        let tuple = Tuple {
            source: SocketAddr::new(source, sport),
            destination: SocketAddr::new(destination, dport),
        };
        Some((tuple, carried))
    };
    let (before, up) = direction()?;
    let (reply, down) = direction()?;
    Some(Entry {
        before,
        after: Tuple {
            source: reply.destination,
            destination: reply.source,
        },
        up,
        down,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_directions_and_turns_the_reply_round() {
        let line = "tcp      6 117 TIME_WAIT src=10.1.0.2 dst=203.0.113.9 sport=48568 dport=443 packets=6 bytes=407 \
                    src=10.2.0.2 dst=198.51.100.1 sport=8443 dport=51713 packets=4 bytes=1900 [ASSURED] mark=0 use=1";
        let entry = parse(line).unwrap();
        assert_eq!(entry.before.source, "10.1.0.2:48568".parse().unwrap());
        assert_eq!(entry.before.destination, "203.0.113.9:443".parse().unwrap());
        assert_eq!(entry.after.source, "198.51.100.1:51713".parse().unwrap());
        assert_eq!(entry.after.destination, "10.2.0.2:8443".parse().unwrap());
        assert_eq!(entry.up.payload(false), Some(407 - 6 * 52 - 8));
    }

    #[test]
    fn an_entry_without_counters_is_not_taken_for_one() {
        assert_eq!(
            parse("tcp 6 5 CLOSE src=10.1.0.2 dst=203.0.113.9 sport=1 dport=2"),
            None
        );
    }
}
