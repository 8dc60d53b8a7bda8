//! Which name an address was known by, when, and to whom.
//!
//! A connection's peer is called by the name that its process had last looked up to that address, else its pod or
//! container, else the node. A name counts for as long as the answer may be kept and some while after: programs keep
//! connections' names longer than their resolvers do.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_wire::{NameSource, Timestamp};

/// Longest time to live that is believed, in seconds.
pub const MAX_TTL_S: u32 = 86_400;
/// Most entries (a name that somebody knows an address by) of one address; the oldest goes.
pub const MAX_PER_ADDRESS: usize = 32;

/// Who asked. Keys are the caller's; 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// The process.
    pub process: u64,
    /// Its pod, or container.
    pub group: u64,
}

/// A name that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name asked for.
    pub name: Arc<str>,
    /// Who had asked.
    pub source: NameSource,
    /// How long before.
    pub before_us: u32,
}

/// A name of an address as somebody was told it: what a cache takes from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learnt {
    /// Who had asked.
    pub asker: Asker,
    /// The name asked for.
    pub name: Arc<str>,
    /// What it has.
    pub address: IpAddr,
    /// How long the answer may be kept, in seconds.
    pub ttl_s: u32,
    /// First, last but one and last time.
    pub at: [Timestamp; 3],
}

/// See the module. Two generations stand for least recently used: what is used moves to the young one, and when that has half
/// of all entries allowed, the old one goes.
#[derive(Debug)]
pub struct NameCache {
    young: Generation,
    old: Generation,
    limit: usize,
    grace_us: i64,
    /// Entries dropped while they still counted, because there were too many.
    pub evicted: u64,
}

#[derive(Debug, Default)]
struct Generation {
    addresses: BTreeMap<IpAddr, Vec<Entry>>,
    entries: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    asker: Asker,
    name: Arc<str>,
    /// First, last but one and last time it was learnt: a connection opened in between has been named before.
    learnt: [Timestamp; 3],
    until: Timestamp,
}

impl NameCache {
    /// Keeps at most `limit` entries, each for its time to live and `grace_us` more.
    pub fn new(limit: usize, grace_us: i64) -> Self {
        Self {
            young: Generation::default(),
            old: Generation::default(),
            limit: limit.max(2),
            grace_us,
            evicted: 0,
        }
    }

    /// Takes what another cache had learnt. True when it was new.
    pub fn relearn(&mut self, learnt: &Learnt) -> bool {
        let Learnt { asker, name, .. } = learnt;
        let [first, middle, last] = learnt.at;
        let new = self.learn(*asker, name, learnt.address, learnt.ttl_s, first);
        for (before, at) in [(first, middle), (middle, last)] {
            if at > before {
                self.learn(*asker, name, learnt.address, learnt.ttl_s, at);
            }
        }
        new
    }

    /// All that it holds, for another cache.
    pub fn entries(&self) -> impl Iterator<Item = Learnt> {
        let addresses = [&self.old, &self.young].map(|generation| generation.addresses.iter());
        addresses
            .into_iter()
            .flatten()
            .flat_map(|(address, entries)| {
                entries.iter().map(|entry| {
                    let kept_us = entry.until.0 - entry.learnt[2].0 - self.grace_us;
                    Learnt {
                        asker: entry.asker,
                        name: Arc::clone(&entry.name),
                        address: *address,
                        ttl_s: u32::try_from(kept_us / 1_000_000).unwrap_or(0),
                        at: entry.learnt,
                    }
                })
            })
    }

    /// Takes an answer. True when it was new.
    pub fn learn(
        &mut self,
        asker: Asker,
        name: &Arc<str>,
        address: IpAddr,
        ttl: u32,
        at: Timestamp,
    ) -> bool {
        let address = address.to_canonical();
        self.rejuvenate(address, at);
        let kept_us = i64::from(ttl.min(MAX_TTL_S)) * 1_000_000 + self.grace_us;
        let until = Timestamp(at.0.saturating_add(kept_us));
        let entries = self.young.addresses.entry(address).or_default();
        let before = entries.len();
        let known = entries
            .iter()
            .position(|entry| entry.asker == asker && entry.name == *name && entry.until >= at);
        let entry = match known.map(|index| entries.remove(index)) {
            Some(mut entry) => {
                entry.learnt = [entry.learnt[0], entry.learnt[2], at];
                entry.until = entry.until.max(until);
                entry
            }
            None => Entry {
                asker,
                name: Arc::clone(name),
                learnt: [at; 3],
                until,
            },
        };
        // The newest is last.
        entries.push(entry);
        if entries.len() > MAX_PER_ADDRESS {
            self.evicted += u64::from(entries.remove(0).until >= at);
        }
        self.young.entries = self.young.entries + entries.len() - before;
        if self.young.entries > self.limit / 2 {
            let dropped = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            let counted = dropped.addresses.values().flatten();
            self.evicted += counted.filter(|entry| entry.until >= at).count() as u64;
        }
        known.is_none()
    }

    /// The name by which `asker` knew an address at a time.
    pub fn name_for(&mut self, asker: Asker, address: IpAddr, at: Timestamp) -> Option<Named> {
        let address = address.to_canonical();
        self.rejuvenate(address, at);
        let entries = self.young.addresses.get(&address)?;
        let best = entries
            .iter()
            .filter(|entry| entry.until >= at)
            .filter_map(|entry| Some((entry.source(asker), entry.learnt_before(at)?, entry)))
            // The nearest asker, of its entries the newest.
            .min_by_key(|(source, learnt, _)| (*source as u8, std::cmp::Reverse(*learnt)));
        best.map(|(source, learnt, entry)| Named {
            name: Arc::clone(&entry.name),
            source,
            before_us: u32::try_from(at.0 - learnt.0).unwrap_or(u32::MAX),
        })
    }

    /// Gives groups other keys: a container whose pod has become known asks as that pod from now on, and so must what it had asked.
    /// `to` says a group's new key, if it has one.
    pub fn regroup(&mut self, to: impl Fn(u64) -> Option<u64>) {
        let generations = [&mut self.young, &mut self.old];
        let entries = generations
            .into_iter()
            .flat_map(|generation| generation.addresses.values_mut().flatten());
        for entry in entries.filter(|entry| entry.asker.group != 0) {
            if let Some(group) = to(entry.asker.group) {
                entry.asker.group = group;
            }
        }
    }

    /// Entries held now.
    pub fn len(&self) -> usize {
        self.young.entries + self.old.entries
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves an address that is used to the young generation, without what has had its time.
    fn rejuvenate(&mut self, address: IpAddr, now: Timestamp) {
        if let Some(mut entries) = self.old.addresses.remove(&address) {
            self.old.entries -= entries.len();
            entries.retain(|entry| entry.until >= now);
            if !entries.is_empty() {
                self.young.entries += entries.len();
                self.young.addresses.insert(address, entries);
            }
        }
    }
}

impl Entry {
    fn source(&self, asker: Asker) -> NameSource {
        if self.asker.process != 0 && self.asker.process == asker.process {
            NameSource::DnsProcess
        } else if self.asker.group != 0 && self.asker.group == asker.group {
            NameSource::DnsPod
        } else {
            NameSource::DnsNode
        }
    }

    /// The last time that it was learnt before `at`.
    fn learnt_before(&self, at: Timestamp) -> Option<Timestamp> {
        self.learnt
            .iter()
            .rev()
            .copied()
            .find(|learnt| *learnt <= at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE_US: i64 = 1_000_000;

    fn asker(process: u64, group: u64) -> Asker {
        Asker { process, group }
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn the_nearest_asker_names() {
        let mut cache = NameCache::new(100, GRACE_US);
        let [own, pod, node] = ["own.example", "pod.example", "node.example"].map(Arc::from);
        cache.learn(asker(1, 9), &own, address(1), 60, Timestamp(10));
        cache.learn(asker(2, 9), &pod, address(1), 60, Timestamp(20));
        cache.learn(asker(3, 8), &node, address(1), 60, Timestamp(30));
        let mut ask = |who, at| {
            let named = cache.name_for(who, address(1), Timestamp(at));
            named.map(|n| (n.name.to_string(), n.source, n.before_us))
        };
        assert_eq!(
            ask(asker(1, 9), 110),
            Some(("own.example".into(), NameSource::DnsProcess, 100))
        );
        assert_eq!(
            ask(asker(4, 9), 110),
            Some(("pod.example".into(), NameSource::DnsPod, 90))
        );
        assert_eq!(
            ask(asker(5, 0), 110),
            Some(("node.example".into(), NameSource::DnsNode, 80))
        );
        assert_eq!(ask(asker(1, 9), 9), None);
        assert_eq!(ask(asker(0, 0), 60_000_000 + GRACE_US + 31), None);
    }

    #[test]
    fn a_group_with_another_key_finds_what_it_had_asked() {
        // So small that the first entry is in the old generation.
        let mut cache = NameCache::new(4, GRACE_US);
        for (last, group) in [(1, 9), (2, 9), (3, 8), (4, 0)] {
            let name = Arc::from(format!("n{last}.example"));
            cache.learn(asker(7, group), &name, address(last), 60, Timestamp(10));
        }
        assert_eq!(cache.len(), 4);
        cache.regroup(|group| (group == 9 || group == 0).then_some(5));
        let mut source = |last, group| {
            let named = cache.name_for(asker(1, group), address(last), Timestamp(20));
            named.map(|named| named.source)
        };
        let (pod, node) = (Some(NameSource::DnsPod), Some(NameSource::DnsNode));
        assert_eq!([source(1, 5), source(2, 5)], [pod; 2]);
        assert_eq!(
            [source(1, 9), source(3, 5), source(3, 8)],
            [node, node, pod]
        );
        assert_eq!(source(4, 5), node, "nobody's group stays nobody's");
    }

    #[test]
    fn asking_again_does_not_unname_what_was_opened_before() {
        let mut cache = NameCache::new(100, GRACE_US);
        let name = Arc::from("a.example");
        for at in [10, 50, 90, 130] {
            cache.learn(asker(1, 0), &name, address(1), 60, Timestamp(at));
        }
        let mut before = |at| {
            cache
                .name_for(asker(1, 0), address(1), Timestamp(at))
                .map(|n| n.before_us)
        };
        assert_eq!(
            [before(9), before(20), before(100), before(131)],
            [None, Some(10), Some(10), Some(1)]
        );
    }

    proptest! {
        /// With room for everything: what a search over all that was ever learnt says. Without: never a wrong name.
        #[test]
        fn as_a_search_over_everything(
            steps in proptest::collection::vec((1_u64..4, 0_u64..3, 0_u8..6, 0_usize..3, 0_u32..4, 0_i64..900_000, any::<bool>()), 1..120),
            limit in prop_oneof![Just(100_000_usize), 2_usize..20],
        ) {
            let names: [Arc<str>; 3] = ["a", "b", "c"].map(Arc::from);
            let mut cache = NameCache::new(limit, GRACE_US);
            let mut all: Vec<(Asker, usize, IpAddr, Timestamp, Timestamp)> = Vec::new();
            let mut now = 0;
            for (process, group, host, name, ttl, pause, learns) in steps {
                now += pause;
                let (who, at) = (asker(process, group), Timestamp(now));
                if learns {
                    cache.learn(who, &names[name], address(host), ttl, at);
                    all.push((who, name, address(host), at, Timestamp(now + i64::from(ttl) * 1_000_000 + GRACE_US)));
                    prop_assert!(cache.len() <= limit.max(MAX_PER_ADDRESS));
                    continue;
                }
                let source = |other: Asker| if other.process == who.process { NameSource::DnsProcess }
                    else if other.group != 0 && other.group == who.group { NameSource::DnsPod } else { NameSource::DnsNode };
                let alive = |(_, _, to, _, until): &&(Asker, usize, IpAddr, Timestamp, Timestamp)| *to == address(host) && *until >= at;
                let got = cache.name_for(who, address(host), at);
                if limit == 100_000 {
                    // Learning again keeps the longer of the times to live.
                    let expected = all.iter()
                        .filter(|one| all.iter().filter(alive).any(|other| (one.0, one.1, one.2) == (other.0, other.1, other.2)))
                        .min_by_key(|(other, _, _, learnt, _)| (source(*other) as u8, std::cmp::Reverse(*learnt)));
                    prop_assert_eq!(
                        got.as_ref().map(|n| (n.source, n.before_us)),
                        expected.map(|(other, _, _, learnt, _)| (source(*other), (now - learnt.0) as u32))
                    );
                }
                if let Some(named) = got {
                    prop_assert!(all.iter().filter(alive).any(|(other, name, ..)| *names[*name] == *named.name && source(*other) == named.source));
                }
            }
        }
    }
}
