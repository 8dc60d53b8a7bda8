//! What kind of address it is, by the registries that say so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where an address means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// Inside one network: RFC 1918 and unique local IPv6 (RFC 4193).
    Private,
    /// Between a subscriber and a carrier's NAT: 100.64.0.0/10 (RFC 6598). Providers also give it to pods, so that it
    /// says nothing about a path having left.
    Shared,
    /// On one link: 169.254.0.0/16 (RFC 3927), fe80::/10 (RFC 4291). Cloud metadata services live here.
    LinkLocal,
    /// On one host.
    Loopback,
    /// The example ranges of RFC 5737 and RFC 3849.
    Documentation,
    /// No host on the internet may have it: unspecified, multicast, benchmarking (RFC 2544), protocol
    /// assignments and reserved space (RFC 6890).
    Reserved,
    /// Everything else: means the same everywhere.
    Global,
}

impl AddressClass {
    /// The class of an address. An IPv6 address that carries an IPv4 one (v4-mapped, or the well-known NAT64 prefix of
    /// RFC 6052) has that one's class: it is where the bytes go.
    pub fn of(address: IpAddr) -> Self {
        match canonical(address) {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    /// Whether hosts of strangers may be reached at such an address, so that a path through it has left the network.
    ///
    /// Documentation ranges count: they stand for the internet wherever they are used at all (laboratories,
    /// examples), and no real network carries them.
    pub fn is_public(self) -> bool {
        matches!(self, Self::Global | Self::Documentation)
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, c, _] = address.octets();
        match (a, b, c) {
            _ if address.is_private() => Self::Private,
            (100, 64..=127, _) => Self::Shared,
            _ if address.is_link_local() => Self::LinkLocal,
            _ if address.is_loopback() => Self::Loopback,
            _ if address.is_documentation() => Self::Documentation,
            (0, _, _) | (192, 0, 0) | (198, 18..=19, _) | (224.., _, _) => Self::Reserved,
            _ => Self::Global,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        match address.segments() {
            _ if address.is_loopback() => Self::Loopback,
            _ if address.is_unspecified() || address.is_multicast() => Self::Reserved,
            [0xfc00..=0xfdff, ..] => Self::Private,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Self::Documentation,
            // NAT64 with a prefix of one's own, RFC 8215.
            [0x64, 0xff9b, 1, ..] => Self::Private,
            [0x2000..=0x3fff, ..] => Self::Global,
            _ => Self::Reserved,
        }
    }
}

/// The address that counts: IPv4 where an IPv6 address carries one (v4-mapped, NAT64's 64:ff9b::/96).
pub fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address.to_canonical() else {
        return address.to_canonical();
    };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => IpAddr::V6(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_has_its_class() {
        use AddressClass::*;
        for (address, class) in [
            ("10.255.0.1", Private),
            ("172.15.0.1", Global),
            ("172.16.0.1", Private),
            ("172.32.0.1", Global),
            ("192.168.1.1", Private),
            ("100.63.255.255", Global),
            ("100.64.0.0", Shared),
            ("100.127.255.255", Shared),
            ("100.128.0.0", Global),
            ("169.254.169.254", LinkLocal),
            ("127.0.0.53", Loopback),
            ("192.0.2.1", Documentation),
            ("198.51.100.1", Documentation),
            ("203.0.113.9", Documentation),
            ("198.18.0.1", Reserved),
            ("198.20.0.1", Global),
            ("0.0.0.0", Reserved),
            ("192.0.0.8", Reserved),
            ("224.0.0.1", Reserved),
            ("255.255.255.255", Reserved),
            ("8.8.8.8", Global),
            ("::1", Loopback),
            ("::", Reserved),
            ("fd12::1", Private),
            ("fe80::1", LinkLocal),
            ("ff02::1", Reserved),
            ("2001:db8:1::1", Documentation),
            ("2a00:1450::1", Global),
            ("::ffff:10.0.0.1", Private),
            ("64:ff9b::a00:1", Private),
            ("64:ff9b::808:808", Global),
            ("64:ff9b:1::1", Private),
        ] {
            assert_eq!(
                AddressClass::of(address.parse().unwrap()),
                class,
                "{address}"
            );
        }
    }
}
