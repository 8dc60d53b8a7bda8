//! Which name a connection's peer was known by, and which connections carry lookups that cannot be read. A connection keeps
//! what was said of it in its first row: rows of one connection never contradict each other.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use super::saved::Saved;
use crate::calls::protocol::Named as Spoken;
use weft_dns::Asker;
use weft_dns::cache::{Learnt, NameCache, Named};
use weft_dns::resolvers::Resolvers;
use weft_wire::{
    Half, HalfId, Lookup, LookupTransport, NameSource, Owner, PeerName, Role, Timestamp,
};

/// Most names of addresses remembered, at about 150 bytes each. Beyond it those unused for longest go, and are counted.
pub const MAX_NAMES: usize = 65_536;
/// How long a name counts after its time to live: programs keep names longer than resolvers do.
pub const GRACE_US: i64 = 600_000_000;
/// Most open connections whose name is kept. Beyond it a connection is named in its first row alone, and counted.
pub const MAX_KEPT: usize = 262_144;

/// Names peers.
#[derive(Debug)]
pub struct Names {
    cache: NameCache,
    saved: Option<Saved>,
    resolvers: Resolvers,
    /// What was said of connections that are open.
    kept: HashMap<HalfId, Said>,
    hidden: Vec<(Lookup, Arc<Owner>)>,
    /// Connections named.
    pub named: u64,
    /// Connections whose name was not kept because too many were.
    pub unkept: u64,
}

#[derive(Clone, Debug)]
struct Said {
    name: Option<Named>,
    hidden: Option<LookupTransport>,
}

/// Names of one batch.
#[derive(Debug, Default)]
pub struct Dictionary {
    names: Vec<PeerName>,
    known: HashMap<(Arc<str>, NameSource), u32>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            cache: NameCache::new(MAX_NAMES, GRACE_US),
            saved: None,
            resolvers: Resolvers::known(),
            kept: HashMap::new(),
            hidden: Vec::new(),
            named: 0,
            unkept: 0,
        }
    }
}

impl Names {
    /// An owner's process was told that a name has this address.
    pub fn learn(&mut self, owner: &Owner, name: &Arc<str>, address: (IpAddr, u32), at: Timestamp) {
        let (address, ttl_s) = address;
        let learnt = Learnt {
            asker: asker(owner),
            name: Arc::clone(name),
            address,
            ttl_s,
            at: [at; 3],
        };
        let new = self.cache.relearn(&learnt);
        if let Some(saved) = &mut self.saved {
            saved.note(&learnt, new);
        }
    }

    /// Takes over what an earlier agent of this boot wrote down there, and writes down from now on.
    pub fn save_in(&mut self, path: &Path, boot: u64) {
        let saved = Saved::new(path, boot, number(&("names", 1_u32, Timestamp(1))));
        let (taken, damaged) = saved.read(&mut self.cache);
        tracing::info!(taken, damaged, "names of addresses from before");
        self.saved = Some(saved);
    }

    /// Writes down what was learnt since.
    pub fn save(&mut self) {
        if let Some(saved) = &mut self.saved {
            saved.write(&self.cache);
        }
    }

    /// Forgets everything but where it is written down.
    pub fn forget(&mut self) {
        let saved = self.saved.take();
        *self = Self {
            saved,
            ..Self::default()
        };
    }

    /// Times that the names could not be written down.
    pub fn unsaved(&self) -> u64 {
        self.saved.as_ref().map_or(0, |saved| saved.failures)
    }

    /// Owners whose pod has become known: what their containers had asked before counts as asked by that pod.
    pub fn regroup<'a>(&mut self, owners: impl Iterator<Item = &'a Arc<Owner>>) {
        let groups: HashMap<u64, u64> = owners
            .map(|owner| (outside_pods(owner), asker(owner).group))
            .filter(|(before, now)| *before != 0 && before != now)
            .collect();
        if !groups.is_empty() {
            self.cache.regroup(|group| groups.get(&group).copied());
        }
    }

    /// Fills in what is known of a row's peer: the name that was looked up, else the one that was spoken. The row is about to go
    /// into a batch with these names.
    pub fn name(
        &mut self,
        half: &mut Half,
        owner: &Arc<Owner>,
        spoken: Option<&Spoken>,
        names: &mut Dictionary,
    ) {
        if half.role != Role::Client {
            return;
        }
        let finished = half.state.finished();
        let known = if finished {
            self.kept.remove(&half.id)
        } else {
            self.kept.get(&half.id).cloned()
        };
        let mut said = known.unwrap_or_else(|| self.say(half, owner));
        if let (None, Some(spoken)) = (&said.name, spoken) {
            // What is spoken comes after the connection's first row, as often as not.
            said.name = Some(as_named(spoken));
            self.named += 1;
            self.keep(half, &said);
        }
        if let Some(named) = &said.name {
            half.name = names.index(named);
            half.named_before_us = named.before_us;
        }
    }

    /// What there is to say of a connection when its first row goes out.
    fn say(&mut self, half: &Half, owner: &Arc<Owner>) -> Said {
        let name = self
            .cache
            .name_for(asker(owner), half.remote.ip(), half.opened_at);
        let by_name = |named: &Named| self.resolvers.hidden_by_name(half.remote, &named.name);
        let hidden = self
            .resolvers
            .hidden(half.protocol, half.remote)
            .or_else(|| name.as_ref().and_then(by_name))
            .filter(|_| half.state.established());
        let said = Said { name, hidden };
        self.named += u64::from(said.name.is_some());
        if let Some(transport) = said.hidden {
            self.hidden
                .push((hidden_lookup(half, transport), Arc::clone(owner)));
        }
        if said.name.is_some() || said.hidden.is_some() {
            self.keep(half, &said);
        }
        said
    }

    fn keep(&mut self, half: &Half, said: &Said) {
        if half.state.finished() {
            return;
        }
        if self.kept.len() < MAX_KEPT || self.kept.contains_key(&half.id) {
            self.kept.insert(half.id, said.clone());
        } else {
            self.unkept += 1;
        }
    }

    /// Lookups that cannot be read, one for each connection that may carry any.
    pub fn hidden(&mut self) -> Vec<(Lookup, Arc<Owner>)> {
        std::mem::take(&mut self.hidden)
    }

    /// Names of addresses dropped while they still counted.
    pub fn evicted(&self) -> u64 {
        self.cache.evicted
    }

    /// Names of addresses held.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }
}

/// A name that the client itself said, in the first bytes it sent.
fn as_named(spoken: &Spoken) -> Named {
    Named {
        name: spoken.name.as_str().into(),
        source: spoken.source,
        before_us: 0,
    }
}

impl Dictionary {
    /// Fills in the name that was spoken, where lookups are not read at all.
    pub fn name(&mut self, half: &mut Half, spoken: &Spoken) {
        if half.role == Role::Client {
            half.name = self.index(&as_named(spoken));
        }
    }

    fn index(&mut self, named: &Named) -> u32 {
        let key = (Arc::clone(&named.name), named.source);
        *self.known.entry(key).or_insert_with(|| {
            self.names.push(PeerName {
                name: named.name.as_ref().to_owned(),
                source: named.source,
            });
            self.names.len() as u32
        })
    }

    /// As a batch carries them.
    pub fn into_names(self) -> Vec<PeerName> {
        self.names
    }
}

/// A connection that carries lookups which nobody sees.
fn hidden_lookup(half: &Half, transport: LookupTransport) -> Lookup {
    Lookup {
        transport,
        role: Role::Client,
        local: half.local,
        resolver: half.remote,
        asked_at: half.opened_at,
        ..Lookup::default()
    }
}

/// An owner as the cache of names knows askers.
pub fn asker(owner: &Owner) -> Asker {
    let process = owner
        .process
        .as_ref()
        .filter(|process| process.pid != 0)
        .map_or(0, |process| number(&(process.pid, process.started_at)));
    let group = match &owner.pod {
        Some(pod) => number(&("pod", &pod.uid)),
        None => outside_pods(owner),
    };
    Asker { process, group }
}

/// The group that an owner asks as while nothing is known of its pod.
fn outside_pods(owner: &Owner) -> u64 {
    match (&owner.container, &owner.unit) {
        (Some(container), _) => number(&("container", container)),
        (_, Some(unit)) => number(&("unit", unit)),
        _ => 0,
    }
}

/// Never 0, which is nobody. The keys are the host's own, not a peer's to choose.
fn number(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use weft_wire::{HalfState, Process};

    use super::*;

    fn owner(pid: u32, container: Option<&str>) -> Arc<Owner> {
        Arc::new(Owner {
            process: Some(Process {
                pid,
                ..Process::default()
            }),
            container: container.map(str::to_owned),
            ..Owner::default()
        })
    }

    fn half(id: u64, remote: &str, at: i64, state: HalfState) -> Half {
        Half {
            id: HalfId(id),
            state,
            remote: remote.parse().unwrap(),
            opened_at: Timestamp(at),
            ..Half::default()
        }
    }

    fn name(
        names: &mut Names,
        mut half: Half,
        owner: &Arc<Owner>,
    ) -> Option<(String, NameSource, u32)> {
        let mut dictionary = Dictionary::default();
        names.name(&mut half, owner, None, &mut dictionary);
        let list = dictionary.into_names();
        let found = list.get((half.name as usize).checked_sub(1)?)?;
        Some((found.name.clone(), found.source, half.named_before_us))
    }

    #[test]
    fn a_connection_is_named_by_who_asked_and_stays_so() {
        let mut names = Names::default();
        let s3 = "s3.amazonaws.com".into();
        let address = "52.216.1.1".parse().unwrap();
        let (python, other) = (owner(4, Some("c")), owner(5, Some("c")));
        names.learn(&python, &s3, (address, 60), Timestamp(1_000));
        let open = half(1, "52.216.1.1:443", 72_000, HalfState::Open);
        let expected = Some((
            "s3.amazonaws.com".to_owned(),
            NameSource::DnsProcess,
            71_000,
        ));
        assert_eq!(name(&mut names, open, &python), expected);
        // Looked up under another name since: the connection is what it was.
        names.learn(
            &python,
            &"other.example".into(),
            (address, 60),
            Timestamp(80_000),
        );
        let later = half(1, "52.216.1.1:443", 72_000, HalfState::Open);
        assert_eq!(name(&mut names, later, &python), expected);
        let closed = half(1, "52.216.1.1:443", 72_000, HalfState::Closed);
        assert_eq!(name(&mut names, closed, &python), expected);
        assert!(names.kept.is_empty());
        let new = half(2, "52.216.1.1:443", 90_000, HalfState::Closed);
        assert_eq!(
            name(&mut names, new, &other),
            Some(("other.example".into(), NameSource::DnsPod, 10_000))
        );
        assert_eq!((names.named, names.hidden().len()), (2, 0));
        let server = Half {
            role: Role::Server,
            ..half(3, "52.216.1.1:443", 90_000, HalfState::Closed)
        };
        assert_eq!(name(&mut names, server, &python), None);
    }

    #[test]
    fn what_a_container_asked_before_its_pod_was_known_is_its_pods() {
        let mut names = Names::default();
        let in_pod = |pid: u32, container: &str| {
            let mut owner = Owner::clone(&owner(pid, Some(container)));
            owner.pod = Some(weft_wire::Pod {
                uid: "u".into(),
                ..weft_wire::Pod::default()
            });
            Arc::new(owner)
        };
        let address = "10.0.0.1".parse().unwrap();
        let asked = owner(4, Some("c"));
        names.learn(&asked, &"db.example".into(), (address, 60), Timestamp(1));
        let source = |names: &mut Names, id, owner: &Arc<Owner>| {
            let half = half(id, "10.0.0.1:5432", 5, HalfState::Closed);
            name(names, half, owner).map(|(_, source, _)| source)
        };
        let sidecar = in_pod(9, "d");
        assert_eq!(source(&mut names, 1, &sidecar), Some(NameSource::DnsNode));
        names.regroup([in_pod(4, "c")].iter());
        assert_eq!(source(&mut names, 2, &sidecar), Some(NameSource::DnsPod));
        let same = in_pod(4, "c");
        assert_eq!(source(&mut names, 3, &same), Some(NameSource::DnsProcess));
        let stranger = owner(5, Some("e"));
        assert_eq!(source(&mut names, 4, &stranger), Some(NameSource::DnsNode));
    }

    #[test]
    fn what_was_spoken_names_a_connection_without_a_lookup() {
        let mut names = Names::default();
        let process = owner(4, None);
        let address = "10.0.0.1".parse().unwrap();
        names.learn(&process, &"db.example".into(), (address, 60), Timestamp(1));
        let spoken = Spoken {
            name: "shop.example".to_owned(),
            source: NameSource::Sni,
        };
        let mut row = |id, remote: &str, state, spoken: Option<&Spoken>| {
            let mut dictionary = Dictionary::default();
            let mut half = half(id, remote, 5, state);
            names.name(&mut half, &process, spoken, &mut dictionary);
            let list = dictionary.into_names();
            (half.name as usize).checked_sub(1).map(|at| {
                assert_eq!(half.named_before_us > 0, list[at].source != NameSource::Sni);
                list[at].name.clone()
            })
        };
        // Its first row came before its first bytes; once named it stays so.
        assert_eq!(row(1, "10.0.0.2:443", HalfState::Open, None), None);
        let shop = Some("shop.example".to_owned());
        assert_eq!(row(1, "10.0.0.2:443", HalfState::Open, Some(&spoken)), shop);
        assert_eq!(row(1, "10.0.0.2:443", HalfState::Closed, None), shop);
        assert_eq!(
            row(2, "10.0.0.2:443", HalfState::Closed, Some(&spoken)),
            shop
        );
        // A lookup is worth more: it was asked before.
        let db = Some("db.example".to_owned());
        assert_eq!(row(3, "10.0.0.1:443", HalfState::Closed, Some(&spoken)), db);
        assert!(names.kept.is_empty());
    }

    #[test]
    fn connections_that_hide_lookups_are_told_once() {
        let mut names = Names::default();
        let browser = owner(4, None);
        names.learn(
            &browser,
            &"abc.dns.nextdns.io".into(),
            ("10.9.9.9".parse().unwrap(), 60),
            Timestamp(1),
        );
        for (id, remote, transport) in [
            (1, "8.8.8.8:443", Some(LookupTransport::Doh)),
            (2, "10.0.0.1:853", Some(LookupTransport::Dot)),
            (3, "10.9.9.9:443", Some(LookupTransport::Doh)),
            (4, "10.0.0.1:443", None),
        ] {
            for state in [HalfState::Open, HalfState::Open, HalfState::Closed] {
                name(&mut names, half(id, remote, 5, state), &browser);
            }
            let told: Vec<_> = names
                .hidden()
                .into_iter()
                .map(|(lookup, _)| lookup.transport)
                .collect();
            assert_eq!(told, Vec::from_iter(transport), "{remote}");
        }
        name(
            &mut names,
            half(5, "10.0.0.1:853", 5, HalfState::Refused),
            &browser,
        );
        assert!(names.hidden().is_empty());
    }
}
