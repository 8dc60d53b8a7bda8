//! Where endpoints are: each federator says behind which public addresses its own can appear, and a half whose peer lies outside
//! of all that is nobody's other end. Nobody is asked about it.
//!
//! A summary is complete or not said at all: who says one vouches for it. It only ever claims too much: where there is no room,
//! neighbouring prefixes become a shorter one. Private addresses are never judged by: the same are in use in many places, and some
//! networks reach each other by them.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};

use weft_wire::control::{MAX_PREFIXES, Prefix, Summary};

use crate::owner::Mixer;

type Map<K, V> = HashMap<K, V, std::hash::BuildHasherDefault<Mixer>>;

/// What an address that was learnt stands for: itself, or its subnet, in which a host and its containers have many.
const LEARNT_BITS: u8 = 64;
const IPV4_BITS: u8 = 96;

/// Addresses by their first bits, IPv4 ones as they are mapped to IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Net {
    bits: u128,
    length: u8,
}

impl Net {
    fn new(address: u128, length: u8) -> Self {
        let bits = address & mask(length);
        Self { bits, length }
    }

    fn of(prefix: &Prefix) -> Self {
        let more = if prefix.address.is_ipv4() {
            IPV4_BITS
        } else {
            0
        };
        let length = prefix.length.saturating_add(more).min(128);
        Self::new(bits_of(prefix.address), length)
    }

    fn prefix(self) -> Prefix {
        let address = Ipv6Addr::from_bits(self.bits);
        match address
            .to_ipv4_mapped()
            .filter(|_| self.length >= IPV4_BITS)
        {
            Some(address) => Prefix {
                address: address.into(),
                length: self.length - IPV4_BITS,
            },
            None => Prefix {
                address: address.into(),
                length: self.length,
            },
        }
    }

    fn covers(self, address: u128) -> bool {
        address & mask(self.length) == self.bits
    }

    /// How little it covers, of the addresses of its kind: subnets count as one.
    fn narrowness(self) -> u8 {
        match self.length.checked_sub(IPV4_BITS) {
            Some(bits) if Ipv6Addr::from_bits(self.bits).to_ipv4_mapped().is_some() => 2 * bits,
            _ => self.length.min(LEARNT_BITS),
        }
    }

    /// The longest that covers both.
    fn around(self, other: Self) -> Self {
        let same = (self.bits ^ other.bits).leading_zeros() as u8;
        Self::new(self.bits, same.min(self.length).min(other.length))
    }
}

fn mask(length: u8) -> u128 {
    u128::MAX
        .checked_shl(128 - u32::from(length.min(128)))
        .unwrap_or(0)
}

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Whether an address means the same everywhere.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let shared = first == 100 && second & 0xc0 == 64;
            let other = address.is_private() || address.is_loopback() || address.is_link_local();
            !(shared || other || first == 0 || first >= 224)
        }
        // Global unicast, of which those of unique local, link-local and special use are no part; and not the NAT64 prefix.
        IpAddr::V6(address) => address.segments()[0] & 0xe000 == 0x2000,
    }
}

/// At most `limit` that cover the same, or more where that is too few: neighbours that have most in common become one.
fn condense(nets: impl IntoIterator<Item = Net>, limit: usize) -> Vec<Net> {
    let sorted: BTreeSet<Net> = nets.into_iter().collect();
    let mut list: Vec<Net> = Vec::new();
    for net in sorted {
        if !list.last().is_some_and(|last| last.covers(net.bits)) {
            list.push(net);
        }
    }
    while list.len() > limit {
        let close = |place: &usize| list[place - 1].around(list[*place]).narrowness();
        let Some(place) = (1..list.len()).max_by_key(close) else {
            break;
        };
        list[place - 1] = list[place - 1].around(list[place]);
        list.remove(place);
        // The shorter one may cover what comes next, and what came before.
        let joined = list[place - 1];
        list.retain(|net| *net == joined || !joined.covers(net.bits));
    }
    list
}

/// What a federator says of itself.
#[derive(Debug, Default)]
pub(crate) struct Own {
    nets: Option<Vec<Net>>,
    version: u64,
    /// Addresses that were not in the summary and are its endpoints' after all.
    pub(crate) learnt: u64,
}

impl Own {
    /// What it vouches for: everything.
    pub(crate) fn vouch(&mut self, now: i64, prefixes: &[Prefix]) {
        let given = prefixes.iter().map(Net::of);
        let known = self.nets.take().into_iter().flatten();
        self.nets = Some(condense(given.chain(known), MAX_PREFIXES));
        self.next(now);
    }

    /// An endpoint of ours appears behind this address. Whether that is news.
    pub(crate) fn learn(&mut self, now: i64, address: IpAddr) -> bool {
        let Some(nets) = &mut self.nets else {
            return false;
        };
        let bits = bits_of(address.to_canonical());
        if !is_public(address) || nets.iter().any(|net| net.covers(bits)) {
            return false;
        }
        let length = if address.to_canonical().is_ipv4() {
            128
        } else {
            LEARNT_BITS
        };
        let more = std::mem::take(nets)
            .into_iter()
            .chain([Net::new(bits, length)]);
        *nets = condense(more, MAX_PREFIXES);
        self.learnt += 1;
        self.next(now);
        true
    }

    fn next(&mut self, now: i64) {
        self.version = (self.version + 1).max(u64::try_from(now).unwrap_or(0));
    }

    /// As it is told; `None` while it vouches for nothing.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let nets = self.nets.as_ref()?;
        Some(Summary {
            version: self.version,
            prefixes: nets.iter().map(|net| net.prefix()).collect(),
        })
    }
}

/// What the other federators say.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// By their place among the members; `None` for one that has not said.
    said: Vec<Option<(u64, Vec<Net>)>>,
    /// How many say each.
    all: Map<Net, u32>,
    /// How many of `all` have each length.
    lengths: Map<u8, u32>,
    /// How many have said.
    known: usize,
}

impl Others {
    /// One says where its endpoints are. Whether something is covered now that was not.
    pub(crate) fn say(&mut self, who: usize, summary: &Summary) -> bool {
        if self.said.len() <= who {
            self.said.resize_with(who + 1, || None);
        }
        let before = self.said[who].take();
        if let Some((version, nets)) = before {
            if version >= summary.version {
                self.said[who] = Some((version, nets));
                return false;
            }
            nets.iter().for_each(|net| self.remove(*net));
            self.known -= 1;
        }
        let nets = condense(summary.prefixes.iter().map(Net::of), MAX_PREFIXES);
        let mut grown = false;
        for net in &nets {
            grown |= !self.all.contains_key(net);
            self.add(*net);
        }
        self.said[who] = Some((summary.version, nets));
        self.known += 1;
        grown
    }

    fn add(&mut self, net: Net) {
        let count = self.all.entry(net).or_default();
        *count += 1;
        if *count == 1 {
            *self.lengths.entry(net.length).or_default() += 1;
        }
    }

    fn remove(&mut self, net: Net) {
        let Some(count) = self.all.get_mut(&net) else {
            return;
        };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.all.remove(&net);
        if let Some(of_length) = self.lengths.get_mut(&net.length) {
            *of_length -= 1;
            if *of_length == 0 {
                self.lengths.remove(&net.length);
            }
        }
    }

    /// How many have said.
    pub(crate) fn known(&self) -> usize {
        self.known
    }

    /// Whether this one has said.
    pub(crate) fn has_said(&self, who: usize) -> bool {
        self.said.get(who).is_some_and(Option::is_some)
    }

    /// Whether endpoints of somebody who has said can appear behind the address.
    pub(crate) fn cover(&self, address: IpAddr) -> bool {
        let bits = bits_of(address.to_canonical());
        let mut lengths = self.lengths.keys();
        lengths.any(|length| self.all.contains_key(&Net::new(bits, *length)))
    }

    /// Whether none of this one's endpoints can appear behind the address.
    pub(crate) fn exclude(&self, who: usize, address: IpAddr) -> bool {
        let bits = bits_of(address.to_canonical());
        let said = self.said.get(who).and_then(Option::as_ref);
        is_public(address) && said.is_some_and(|(_, nets)| !nets.iter().any(|net| net.covers(bits)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix {
            address: address.parse().unwrap(),
            length: length.parse().unwrap(),
        }
    }

    fn summary(version: u64, prefixes: &[&str]) -> Summary {
        Summary {
            version,
            prefixes: prefixes.iter().map(|text| prefix(text)).collect(),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_covered_by_whoever_says_so_now() {
        let mut others = Others::default();
        assert!(others.say(1, &summary(1, &["203.0.113.0/28", "2001:db8:1::/48"])));
        assert!(
            !others.say(2, &summary(1, &["203.0.113.0/28"])),
            "nothing new"
        );
        for (address, covered) in [
            ("203.0.113.15", true),
            ("203.0.113.16", false),
            ("::ffff:203.0.113.1", true),
            ("2001:db8:1:2::9", true),
            ("2001:db8:2::9", false),
        ] {
            assert_eq!(others.cover(ip(address)), covered, "{address}");
        }
        assert!(others.exclude(2, ip("2001:db8:1::1")));
        assert!(!others.exclude(1, ip("2001:db8:1::1")));
        assert!(!others.exclude(3, ip("2001:db8:1::1")), "it has not said");
        assert!(
            !others.exclude(2, ip("10.0.0.1")),
            "private ones are not judged by"
        );
        assert!(
            !others.say(1, &summary(1, &["198.51.100.0/24"])),
            "an old one"
        );
        assert!(others.say(1, &summary(2, &["198.51.100.0/24"])));
        assert!(!others.cover(ip("2001:db8:1::1")));
        assert!(others.cover(ip("203.0.113.1")), "the other still says so");
        assert_eq!(others.known(), 2);
    }

    #[test]
    fn what_has_no_room_claims_more_and_never_less() {
        let mut own = Own::default();
        own.vouch(7, &[prefix("203.0.113.7/32")]);
        let addresses: Vec<IpAddr> = (0..3 * MAX_PREFIXES as u32)
            .map(|n| match n % 2 {
                0 => IpAddr::from((0x2c00_0000 + n * 977).to_be_bytes()),
                _ => {
                    IpAddr::from((0x2a01_u128 << 112 | u128::from(n * 31) << 70 | 5).to_be_bytes())
                }
            })
            .collect();
        for address in &addresses {
            own.learn(8, *address);
        }
        let summary = own.summary().unwrap();
        assert!(summary.prefixes.len() <= MAX_PREFIXES);
        let mut others = Others::default();
        others.say(1, &summary);
        assert!(addresses.iter().all(|address| others.cover(*address)));
        assert!(others.cover(ip("203.0.113.7")));
        assert!(!others.cover(ip("198.51.100.1")));
        assert!(own.learnt > MAX_PREFIXES as u64);
    }

    #[test]
    fn what_is_vouched_for_is_told_and_private_addresses_are_not_learnt() {
        let mut own = Own::default();
        assert!(!own.learn(1, ip("203.0.113.1")), "vouches for nothing");
        assert_eq!(own.summary(), None);
        own.vouch(5, &[]);
        assert_eq!(own.summary(), Some(summary(5, &[])));
        for address in [
            "10.1.2.3",
            "100.64.0.1",
            "fd00::1",
            "fe80::1",
            "127.0.0.1",
            "::1",
        ] {
            assert!(!own.learn(6, ip(address)), "{address}");
        }
        assert!(own.learn(6, ip("2001:db8:0:1:2:3:4:5")));
        assert!(!own.learn(6, ip("2001:db8:0:1::9")));
        assert_eq!(own.summary(), Some(summary(6, &["2001:db8:0:1::/64"])));
    }
}
