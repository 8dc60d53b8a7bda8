//! Owners, names of peers and agents by number.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use weft_mesh::{host_key, network_key};
use weft_wire::{AgentKey, Owner, PeerName};

use serde::Serialize;

use crate::record::{AgentNumber, AgentRecord};

/// Owners, and names of peers, kept in memory that no half in memory refers to; beyond it they are forgotten, and get
/// another number when they come again.
pub const MAX_IDLE: usize = 262_144;

/// Bytes that those have at most which came since some were forgotten last, about: an owner can have texts of 4 KiB in every
/// field. Beyond it the idle are forgotten too.
pub const MAX_NEW_BYTES: usize = 64 << 20;

/// Names of peers in memory, at about 200 bytes each. Beyond it halves with other names are taken without, and these are counted.
pub const MAX_NAMES: usize = 1_048_576;

/// Descriptions of agents, for each namespace of pods on their hosts another, of some 500 bytes. Beyond it pods are told to
/// be in the namespace that their agent's configuration names.
pub const MAX_DESCRIPTIONS: usize = 262_144;

/// Namespaces of pods that one agent is described for: it cannot use up [`MAX_DESCRIPTIONS`]. Pods of further ones are told
/// to be in the namespace that the agent's configuration names.
pub const MAX_NAMESPACES_OF_AN_AGENT: usize = 4096;

/// Owners by number.
pub type Owners = Interned<Owner>;

/// Names of peers by number; a half without one has 0, which no name has.
pub type PeerNames = Interned<PeerName>;

/// One in memory.
#[derive(Debug)]
struct Entry<T> {
    value: Arc<T>,
    /// Halves in memory that refer to it.
    halves: u32,
}

/// What many halves refer to, by number: numbers are given in the order of first appearance and never again.
#[derive(Debug)]
pub struct Interned<T> {
    numbers: HashMap<Arc<T>, u32>,
    entries: HashMap<u32, Entry<T>>,
    next: u32,
    /// Not yet in the store.
    fresh: Vec<u32>,
    /// Of those that came since some were forgotten last.
    new_bytes: usize,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            entries: HashMap::new(),
            next: 0,
            fresh: Vec::new(),
            new_bytes: 0,
        }
    }
}

/// Counts what is written.
struct Bytes(usize);

impl std::io::Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a value takes, about: as long as it is as text.
fn bytes_of(value: &impl Serialize) -> usize {
    let mut bytes = Bytes(0);
    // Counting does not fail.
    let _ = serde_json::to_writer(&mut bytes, value);
    bytes.0
}

impl<T: Clone + Eq + Hash + Serialize> Interned<T> {
    /// Starts with those of the live rows.
    pub fn load(&mut self, known: HashMap<u32, Arc<T>>, next: u32) {
        for (number, value) in known {
            self.numbers.insert(value.clone(), number);
            self.entries.insert(number, Entry { value, halves: 0 });
        }
        self.next = next;
    }

    /// Its number; a new one if it is not known.
    pub fn number(&mut self, value: &T) -> u32 {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.new_bytes += bytes_of(value);
        let value = Arc::new(value.clone());
        self.numbers.insert(value.clone(), number);
        self.entries.insert(number, Entry { value, halves: 0 });
        self.fresh.push(number);
        number
    }

    /// Its number; `None` when it is not known and there are so many.
    pub fn number_within(&mut self, limit: usize, value: &T) -> Option<u32> {
        let full = self.entries.len() >= limit && !self.numbers.contains_key(value);
        (!full).then(|| self.number(value))
    }

    /// The one with a number.
    pub fn find(&self, number: u32) -> Option<&Arc<T>> {
        self.entries.get(&number).map(|entry| &entry.value)
    }

    /// A half refers to it now.
    pub fn hold(&mut self, number: u32) {
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.halves += 1;
        }
    }

    /// A half refers to it no more.
    pub fn release(&mut self, number: u32) {
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.halves = entry.halves.saturating_sub(1);
        }
    }

    /// Those that the store does not have yet.
    pub fn take_fresh(&mut self) -> Vec<(u32, Arc<T>)> {
        let fresh = std::mem::take(&mut self.fresh);
        let taken = fresh
            .iter()
            .filter_map(|number| Some((*number, self.find(*number)?.clone())))
            .collect();
        self.forget_idle();
        taken
    }

    /// How many are in memory.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Only called when nothing is fresh: what is forgotten is in the store.
    fn forget_idle(&mut self) {
        let heavy = self.new_bytes >= MAX_NEW_BYTES;
        if self.entries.len() < MAX_IDLE && !heavy {
            return;
        }
        let used = self
            .entries
            .values()
            .filter(|entry| entry.halves > 0)
            .count();
        if self.entries.len() - used < MAX_IDLE && !heavy {
            return;
        }
        self.new_bytes = 0;
        self.entries.retain(|_, entry| entry.halves > 0);
        let entries = &self.entries;
        self.numbers
            .retain(|_, number| entries.contains_key(number));
    }
}

/// An agent's description with what is computed from it once.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The description.
    pub record: Arc<AgentRecord>,
    /// The network in which its addresses mean something.
    pub network: u64,
}

impl Agent {
    /// The scope of addresses that mean something in one network namespace of its host only.
    pub fn host(&self, netns: u32) -> u64 {
        host_key(&self.record.federator, &self.record.info.name, netns)
    }
}

/// Descriptions kept of one agent; one that changes more often is told as it was described last.
pub const MAX_DESCRIPTIONS_OF_AN_AGENT: usize = 1024;

/// Agents' descriptions, ours and peers'. A description that changes gets a new number, so that old rows keep the old
/// one.
#[derive(Debug, Default)]
pub struct Agents {
    list: HashMap<AgentNumber, Agent>,
    by_key: HashMap<AgentKey, AgentNumber>,
    /// By home, name and namespace (what the pods of a host do is told of their namespaces): its descriptions, the one in
    /// force last.
    by_name: HashMap<(String, String, String), Vec<AgentNumber>>,
    /// By home and name: how many namespaces it is described for.
    namespaces: HashMap<(String, String), usize>,
    next: AgentNumber,
    fresh: Vec<AgentNumber>,
}

impl Agents {
    /// Starts with all that the store knows.
    pub fn load(&mut self, agents: HashMap<AgentNumber, Arc<AgentRecord>>) {
        let mut numbers: Vec<_> = agents.into_iter().collect();
        numbers.sort_by_key(|(number, _)| *number);
        for (number, record) in numbers {
            self.place(number, record);
            self.next = number + 1;
        }
    }

    /// The number of this description; a new one if that agent was never described so.
    pub fn number(&mut self, record: AgentRecord) -> AgentNumber {
        let name = name_of(&record);
        if let Some(numbers) = self.by_name.get_mut(&name) {
            let list = &self.list;
            let same = |number: &AgentNumber| {
                list.get(number)
                    .is_some_and(|agent| *agent.record == record)
            };
            let full = numbers.len() >= MAX_DESCRIPTIONS_OF_AN_AGENT;
            let known = numbers.iter().rposition(same);
            if let Some(at) = known.or_else(|| numbers.len().checked_sub(1).filter(|_| full)) {
                let number = numbers.remove(at);
                numbers.push(number);
                if let Some(key) = record.key.filter(|_| !record.pods) {
                    self.by_key.insert(key, number);
                }
                return number;
            }
        }
        let number = self.next;
        self.next += 1;
        self.place(number, Arc::new(record));
        self.fresh.push(number);
        number
    }

    /// The description of an agent for an owner: what a pod does is done in the pod's namespace, wherever the host is said to
    /// be.
    pub fn within(&mut self, agent: AgentNumber, owner: &Owner) -> AgentNumber {
        let Some(pod) = owner.pod.as_ref().filter(|pod| !pod.namespace.is_empty()) else {
            return agent;
        };
        let Some(known) = self.list.get(&agent) else {
            return agent;
        };
        if known.record.info.site.namespace == pod.namespace {
            return agent;
        }
        let mut record = AgentRecord::clone(&known.record);
        record.info.site.namespace.clone_from(&pod.namespace);
        record.pods = true;
        let name = name_of(&record);
        if !self.by_name.contains_key(&name) {
            let of_one = self.namespaces.get(&(name.0, name.1)).copied();
            if self.list.len() >= MAX_DESCRIPTIONS
                || of_one.is_some_and(|count| count >= MAX_NAMESPACES_OF_AN_AGENT)
            {
                return agent;
            }
        }
        self.number(record)
    }

    fn place(&mut self, number: AgentNumber, record: Arc<AgentRecord>) {
        let network = network_key(&record.federator, &record.info.site);
        if let Some(key) = record.key.filter(|_| !record.pods) {
            self.by_key.insert(key, number);
        }
        let name = name_of(&record);
        let home_and_name = (name.0.clone(), name.1.clone());
        let described = self.by_name.entry(name).or_default();
        if described.is_empty() {
            *self.namespaces.entry(home_and_name).or_default() += 1;
        }
        described.push(number);
        self.list.insert(number, Agent { record, network });
    }

    /// Says which description of an agent was in force.
    pub fn describe(&mut self, key: AgentKey, number: AgentNumber) {
        if self.list.contains_key(&number) {
            self.by_key.insert(key, number);
        }
    }

    /// The latest description of one of our own agents.
    pub fn of_key(&self, key: AgentKey) -> Option<AgentNumber> {
        self.by_key.get(&key).copied()
    }

    /// The description with a number.
    pub fn find(&self, number: AgentNumber) -> Option<&Agent> {
        self.list.get(&number)
    }

    /// Those that the store does not have yet.
    pub fn take_fresh(&mut self) -> Vec<(AgentNumber, Arc<AgentRecord>)> {
        let fresh = std::mem::take(&mut self.fresh);
        fresh
            .iter()
            .filter_map(|number| Some((*number, self.list.get(number)?.record.clone())))
            .collect()
    }
}

fn name_of(record: &AgentRecord) -> (String, String, String) {
    let info = &record.info;
    (
        record.federator.clone(),
        info.name.clone(),
        info.site.namespace.clone(),
    )
}

/// A hash function for keys that are well mixed already; the seed keeps agents from choosing collisions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mixed(pub u64);

/// See [`Mixed`].
#[derive(Clone, Copy, Debug)]
pub struct MixedHasher(u64);

impl std::hash::BuildHasher for Mixed {
    type Hasher = MixedHasher;

    fn build_hasher(&self) -> MixedHasher {
        MixedHasher(self.0)
    }
}

impl Hasher for MixedHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let wide =
            u128::from(self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        self.0 = (wide >> 64) as u64 ^ wide as u64;
    }
}

#[cfg(test)]
mod tests {
    use weft_wire::{AgentInfo, Pod, Site};

    use super::*;

    fn record(namespace: &str) -> AgentRecord {
        AgentRecord {
            key: Some(AgentKey(7)),
            federator: "fed-a".into(),
            info: AgentInfo {
                name: "n1".into(),
                site: Site {
                    cluster: "prod-a".into(),
                    namespace: namespace.into(),
                    ..Site::default()
                },
                ..AgentInfo::default()
            },
            pods: false,
        }
    }

    fn owner(namespace: &str) -> Owner {
        Owner {
            pod: Some(Pod {
                namespace: namespace.into(),
                ..Pod::default()
            }),
            ..Owner::default()
        }
    }

    #[test]
    fn what_a_pod_does_is_done_in_its_namespace() {
        let mut agents = Agents::default();
        let host = agents.number(record(""));
        let shop = agents.within(host, &owner("shop"));
        let pay = agents.within(host, &owner("pay"));
        assert_eq!(agents.within(host, &owner("shop")), shop);
        assert_eq!(agents.within(host, &Owner::default()), host);
        assert_eq!(agents.within(host, &owner("")), host);
        let namespace = |number| {
            agents
                .find(number)
                .unwrap()
                .record
                .info
                .site
                .namespace
                .clone()
        };
        assert_eq!(
            (namespace(host), namespace(shop), namespace(pay)),
            ("".into(), "shop".into(), "pay".into())
        );
        let stored: HashMap<_, _> = agents.take_fresh().into_iter().collect();
        // The agent itself is still the one that its key names, after a restart too.
        let mut again = Agents::default();
        again.load(stored);
        assert_eq!(
            (agents.of_key(AgentKey(7)), again.of_key(AgentKey(7))),
            (Some(host), Some(host))
        );
        assert_eq!(again.within(host, &owner("shop")), shop);
        assert_eq!(again.number(record("")), host);
        // The host's own namespace needs no other description.
        let own = agents.number(record("infra"));
        assert_eq!(agents.within(own, &owner("infra")), own);
    }

    fn described(zone: usize) -> AgentRecord {
        let mut info = AgentInfo {
            name: "a1".into(),
            ..AgentInfo::default()
        };
        info.site.zone = format!("z{zone}");
        AgentRecord {
            key: Some(AgentKey(1)),
            federator: "fed-a".into(),
            info,
            pods: false,
        }
    }

    #[test]
    fn labels_that_alternate_add_no_rows() {
        let mut agents = Agents::default();
        for turn in 0..100 {
            let number = agents.number(described(turn % 2));
            assert_eq!(number, (turn % 2) as AgentNumber);
            assert_eq!(agents.of_key(AgentKey(1)), Some(number));
        }
        assert_eq!(agents.take_fresh().len(), 2);
    }

    #[test]
    fn one_agent_cannot_use_up_the_namespaces_of_all() {
        let mut agents = Agents::default();
        let greedy = agents.number(record(""));
        for at in 0..MAX_NAMESPACES_OF_AN_AGENT + 10 {
            agents.within(greedy, &owner(&format!("n{at}")));
        }
        assert_eq!(agents.take_fresh().len(), MAX_NAMESPACES_OF_AN_AGENT);
        assert_eq!(agents.within(greedy, &owner("one-more")), greedy);
        let mut other = record("");
        other.info.name = "honest".into();
        let honest = agents.number(other);
        assert_ne!(agents.within(honest, &owner("one-more")), honest);
    }

    #[test]
    fn heavy_owners_are_forgotten_long_before_they_are_many() {
        let mut owners = Owners::default();
        let text = "x".repeat(1 << 20);
        for at in 0..(MAX_NEW_BYTES >> 20) + 1 {
            owners.number(&owner(&format!("{text}{at}")));
        }
        let kept = owners.number(&owner("kept"));
        owners.hold(kept);
        owners.take_fresh();
        assert_eq!(owners.count(), 1);
        assert!(owners.find(kept).is_some());
    }

    #[test]
    fn descriptions_of_an_agent_are_bounded() {
        let mut agents = Agents::default();
        for zone in 0..2 * MAX_DESCRIPTIONS_OF_AN_AGENT {
            agents.number(described(zone));
        }
        assert_eq!(agents.take_fresh().len(), MAX_DESCRIPTIONS_OF_AN_AGENT);
        assert_eq!(agents.number(described(3)), 3);
    }
}
