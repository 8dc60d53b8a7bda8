//! Whose a socket is: what the kernel said, completed by what the host knows of that process.
//!
//! The kernel names process, user and cgroup at the moment that counts. The rest is read from the host soon after, and the
//! process may be gone by then: then the kernel's name stands and there is no executable.

pub mod cgroup;
pub mod secrets;
mod users;
pub mod namespaces;
pub mod host;
mod resolver;

use std::collections::HashMap;
use std::sync::Arc;

use weft_kubernetes::Pods;
use weft_wire::{Owner, Pod, Process};

pub use host::{Host, ProcessFacts, RealHost};

use cgroup::Place;
use namespaces::Namespaces;
use secrets::Sieve;

use crate::calls::processes::Processes;
use crate::clock::Clock;
use crate::config::Config;
use crate::decode::OwnerKey;

/// Most owners remembered, at about 400 bytes each. Full: the cache is emptied and counted, and owners are looked up
/// again.
pub const MAX_OWNERS: usize = 16_384;
/// A remembered process is looked at again after this time, in case its pid is another's now.
const RECHECK_NS: u64 = 1_000_000_000;
/// Start times are kept in ticks of 10 ms; a process that started later than this after its socket's event is not
/// the one.
const START_SLACK_US: i64 = 20_000;

/// Most mount namespaces remembered of which it is known whether a container's process is in them. Full: forgotten.
const MAX_MOUNTS: usize = 1_024;
/// Time between two searches for a mount namespace among all processes. What comes sooner is not searched for, and
/// counted.
const SEARCH_INTERVAL_NS: u64 = 200_000_000;
/// Time between two looks for owners whose pod became known later than their first connection.
const PODS_INTERVAL_NS: u64 = 500_000_000;

/// Answers whose a socket is.
pub struct Attribution<H> {
    host: H,
    naming: Config,
    sieve: Option<Sieve>,
    pods: Option<Pods>,
    cache: HashMap<OwnerKey, Known>,
    /// Processes as the call hooks saw them begin, for those that are gone before they are looked at.
    pub processes: Processes,
    users: HashMap<u32, String>,
    host_namespaces: Namespaces,
    /// Whether a container's process is in a mount namespace.
    mounts: HashMap<u64, bool>,
    searched_ns: Option<u64>,
    pods_seen: (u64, u64),
    /// Processes are not looked at, to stay within the limits: the kernel's name for them stands.
    plain: bool,
    /// Owners not looked at for that.
    pub plain_owners: u64,
    /// Owners that have escaped from their container, or into one.
    pub escaped: u64,
    /// Searches for a mount namespace left out because the last was just before.
    pub searches_skipped: u64,
    /// Owners whose process was gone before it was looked at.
    pub gone: u64,
    /// Times the cache was full.
    pub evictions: u64,
}

struct Known {
    owner: Arc<Owner>,
    /// Of what is in a container or a pod.
    place: Option<Box<Place>>,
    start_ticks: Option<u64>,
    checked_ns: u64,
}

impl<H: Host> Attribution<H> {
    /// `naming` says what workloads are called.
    pub fn new(host: H, naming: Config) -> Self {
        Self {
            host_namespaces: host.host_namespaces(),
            host,
            sieve: naming.process.sieve(),
            naming,
            pods: None,
            cache: HashMap::new(),
            processes: Processes::default(),
            users: HashMap::new(),
            mounts: HashMap::new(),
            searched_ns: None,
            pods_seen: (0, 0),
            plain: false,
            plain_owners: 0,
            escaped: 0,
            searches_skipped: 0,
            gone: 0,
            evictions: 0,
        }
    }

    /// Takes the pods of containers from here.
    pub fn with_pods(mut self, pods: Pods) -> Self {
        self.pods = Some(pods);
        self
    }

    /// Whether to do without what processes say of themselves. What is known of them is forgotten either way, and asked again.
    pub fn plain(&mut self, plain: bool) {
        self.plain = plain;
        self.cache = HashMap::new();
        self.users = HashMap::new();
    }

    /// The `resolv.conf` that a process reads.
    pub fn resolver_configuration(&self, pid: u32) -> Option<String> {
        self.host.resolver_configuration(pid)
    }

    /// Where pods are taken from.
    pub fn pods(&self) -> Option<&Pods> {
        self.pods.as_ref()
    }

    /// Owners about whose pod more is known than when they were given out: what they were, by address, and what they are
    /// now. Empty as long as nothing changed.
    pub fn renewed(&mut self, now_ns: u64) -> HashMap<*const Owner, Arc<Owner>> {
        let mut renewed = HashMap::new();
        let Some(pods) = &self.pods else {
            return renewed;
        };
        let generation = pods.generation();
        let (seen, at_ns) = self.pods_seen;
        if seen == generation || now_ns < at_ns.saturating_add(PODS_INTERVAL_NS) {
            return renewed;
        }
        self.pods_seen = (generation, now_ns);
        for known in self.cache.values_mut() {
            let Some(place) = &known.place else { continue };
            let pod = pod_of(pods, place);
            // A pod that is no longer known was one.
            if pod.is_none() || pod == known.owner.pod {
                continue;
            }
            let mut owner = Owner::clone(&known.owner);
            let process = owner
                .process
                .as_ref()
                .map_or("unknown", |process| &process.name);
            owner.workload = self.naming.workload_in(process, pod.as_ref());
            owner.pod = pod;
            let owner = Arc::new(owner);
            renewed.insert(Arc::as_ptr(&known.owner), Arc::clone(&owner));
            known.owner = owner;
        }
        renewed
    }

    /// The owner of a socket whose event happened at `at_ns`; `now_ns` is the monotonic time of asking.
    pub fn owner(&mut self, key: &OwnerKey, at_ns: u64, now_ns: u64, clock: &Clock) -> Arc<Owner> {
        if let Some(known) = self.cache.get_mut(key) {
            if self.plain || now_ns < known.checked_ns.saturating_add(RECHECK_NS) {
                return Arc::clone(&known.owner);
            }
            known.checked_ns = now_ns;
            let start_ticks = self.host.start_ticks(key.pid);
            if start_ticks.is_none() || start_ticks == known.start_ticks {
                return Arc::clone(&known.owner);
            }
        }
        self.learn(key, at_ns, now_ns, clock)
    }

    fn learn(&mut self, key: &OwnerKey, at_ns: u64, now_ns: u64, clock: &Clock) -> Arc<Owner> {
        if self.cache.len() >= MAX_OWNERS {
            self.cache.clear();
            self.users.clear();
            self.evictions += 1;
        }
        let at = clock.utc(at_ns);
        let facts = (key.pid != 0 && !self.plain)
            .then(|| self.host.process(key.pid))
            .flatten()
            .filter(|facts| {
                let started = self.host.started_at(facts.start_ticks, clock);
                started.0 <= at.0.saturating_add(START_SLACK_US)
            });
        self.plain_owners += u64::from(self.plain);
        let facts = facts.or_else(|| self.remembered(key.pid, at, clock));
        if key.pid != 0 && facts.is_none() && !self.plain {
            self.gone += 1;
        }
        let start_ticks = facts.as_ref().map(|facts| facts.start_ticks);
        let (owner, place) = self.describe(key, facts, now_ns, clock);
        let owner = Arc::new(owner);
        self.cache.insert(
            *key,
            Known {
                owner: Arc::clone(&owner),
                place: (!place.containers.is_empty() || place.pod.is_some())
                    .then(|| Box::new(place)),
                start_ticks,
                checked_ns: now_ns,
            },
        );
        owner
    }

    /// What the call hooks saw of a process that is gone.
    fn remembered(
        &self,
        pid: u32,
        at: weft_wire::Timestamp,
        clock: &Clock,
    ) -> Option<ProcessFacts> {
        let known = self.processes.find(pid)?;
        let started = self.host.started_at(known.start_ticks, clock);
        (started.0 <= at.0.saturating_add(START_SLACK_US)).then(|| known.facts())
    }

    fn describe(
        &mut self,
        key: &OwnerKey,
        facts: Option<ProcessFacts>,
        now_ns: u64,
        clock: &Clock,
    ) -> (Owner, Place) {
        let cgroups = facts.as_ref().map_or("", |facts| &facts.cgroups);
        let cgroup = self
            .host
            .cgroup(key.cgroup)
            .or_else(|| cgroup::unified(cgroups))
            .unwrap_or_default();
        let mut place = cgroup::place(&cgroup);
        if place.containers.is_empty() {
            let other = cgroup::of_process(cgroups);
            if !other.containers.is_empty() || place.unit.is_none() {
                place = other;
            }
        }
        let netns = match (key.netns, &facts) {
            (0, Some(facts)) => facts.namespaces.net as u32,
            (netns, _) => netns,
        };
        let escaped = facts
            .as_ref()
            .is_some_and(|facts| self.has_escaped(facts, now_ns));
        self.escaped += u64::from(escaped);
        let pod = self.pods.as_ref().and_then(|pods| pod_of(pods, &place));
        let process = (key.pid != 0).then(|| self.process(key, facts, clock));
        let name = process.as_ref().map_or("unknown", |process| &process.name);
        let owner = Owner {
            workload: self.naming.workload_in(name, pod.as_ref()),
            process,
            cgroup,
            container: place.container().map(str::to_owned),
            netns,
            pod,
            unit: place.unit.clone(),
            escaped,
            ..Owner::default()
        };
        (owner, place)
    }

    /// See [`namespaces`]. The process's own cgroup counts here, not the one that its socket was made in.
    fn has_escaped(&mut self, facts: &ProcessFacts, now_ns: u64) -> bool {
        let (own, host) = (facts.namespaces, self.host_namespaces);
        let place = cgroup::of_process(&facts.cgroups);
        if !place.containers.is_empty() {
            // The first process is looked for only where its answer counts.
            let suspect = namespaces::left(own, host, None)
                || (own.pid != 0 && own.pid == host.pid)
                || (own.net != 0 && own.net == host.net);
            return suspect && namespaces::left(own, host, self.host.first_process(&facts.cgroups));
        }
        namespaces::may_have_entered(&place, own, host) && self.container_has(own.mnt, now_ns)
    }

    fn container_has(&mut self, mnt: u64, now_ns: u64) -> bool {
        if let Some(known) = self.mounts.get(&mnt) {
            return *known;
        }
        let soon = |at_ns: u64| now_ns < at_ns.saturating_add(SEARCH_INTERVAL_NS);
        if self.searched_ns.is_some_and(soon) {
            self.searches_skipped += 1;
            return false;
        }
        self.searched_ns = Some(now_ns);
        if self.mounts.len() >= MAX_MOUNTS {
            self.mounts.clear();
        }
        let found = self.host.container_has(mnt);
        self.mounts.insert(mnt, found);
        found
    }

    fn process(&mut self, key: &OwnerKey, facts: Option<ProcessFacts>, clock: &Clock) -> Process {
        let host = &self.host;
        let user = self.users.get(&key.uid).cloned().or_else(|| {
            // One that is not known yet may be later.
            let user = host.user(key.uid)?;
            self.users.insert(key.uid, user.clone());
            Some(user)
        });
        let mut process = Process {
            pid: key.pid,
            name: comm(&key.comm),
            uid: key.uid,
            user,
            ..Process::default()
        };
        if let Some(facts) = facts {
            process.started_at = host.started_at(facts.start_ticks, clock);
            if !facts.name.is_empty() {
                process.name = facts.name;
            }
            process.exe = facts.exe;
            process.args = self
                .sieve
                .as_ref()
                .filter(|_| !facts.cmdline.is_empty())
                .map(|sieve| sieve.line(&facts.cmdline));
            process.parent = facts.parent;
            process.parent_name = facts.parent_name;
        }
        process
    }
}

/// The pod of a place: by the innermost container that is known, else by the pod's uid.
fn pod_of(pods: &Pods, place: &Place) -> Option<Pod> {
    if place.containers.is_empty() && place.pod.is_none() {
        return None;
    }
    let ids = place
        .containers
        .iter()
        .map(|container| container.id.as_str());
    pods.find(ids, place.pod.as_deref())
}

/// A kernel name, up to its terminator.
fn comm(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use weft_kubernetes::object::PodObject;
    use weft_wire::Timestamp;

    use super::*;

    #[derive(Default)]
    struct FakeHost {
        processes: RefCell<HashMap<u32, ProcessFacts>>,
        first: Cell<Option<Namespaces>>,
        searches: Cell<u32>,
    }

    const HOST: Namespaces = Namespaces {
        mnt: 1,
        pid: 2,
        net: 3,
    };

    impl Host for FakeHost {
        fn process(&self, pid: u32) -> Option<ProcessFacts> {
            self.processes.borrow().get(&pid).cloned()
        }
        fn host_namespaces(&self) -> Namespaces {
            HOST
        }
        fn first_process(&self, _: &str) -> Option<Namespaces> {
            self.first.get()
        }
        fn container_has(&self, mnt: u64) -> bool {
            self.searches.set(self.searches.get() + 1);
            mnt == 77
        }
        fn start_ticks(&self, pid: u32) -> Option<u64> {
            self.process(pid).map(|facts| facts.start_ticks)
        }
        fn started_at(&self, ticks: u64, clock: &Clock) -> Timestamp {
            clock.utc(ticks * 10_000_000)
        }
        fn cgroup(&self, id: u64) -> Option<String> {
            (id == 9).then(|| format!("/docker/{}", "ab".repeat(32)))
        }
        fn user(&self, uid: u32) -> Option<String> {
            (uid == 0).then(|| "root".to_owned())
        }
    }

    fn facts(start_ticks: u64) -> ProcessFacts {
        ProcessFacts {
            start_ticks,
            name: "web".into(),
            exe: Some("/bin/web".into()),
            cgroups: String::new(),
            namespaces: Namespaces { net: 5, ..HOST },
            cmdline: b"/bin/web\0--token=abc\0".to_vec(),
            parent: 1,
            parent_name: "init".into(),
        }
    }

    fn attribution(host: FakeHost) -> Attribution<FakeHost> {
        let naming = Config::parse("name = 'a'\nfederator = 'f:1'\nidentity = '/i'").unwrap();
        Attribution::new(host, naming)
    }

    const KEY: OwnerKey = OwnerKey {
        pid: 7,
        uid: 0,
        comm: *b"thread-3\0\0\0\0\0\0\0\0",
        cgroup: 9,
        netns: 0,
    };
    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_living_process_is_described_by_the_host() {
        let host = FakeHost::default();
        host.processes.borrow_mut().insert(7, facts(100));
        let mut attribution = attribution(host);
        let owner = attribution.owner(&KEY, 2 * SECOND, 2 * SECOND, &Clock::new(0));
        let process = owner.process.clone().unwrap();
        assert_eq!(
            (process.name.as_str(), process.exe.as_deref()),
            ("web", Some("/bin/web"))
        );
        assert_eq!(
            (process.started_at, process.user.as_deref()),
            (Timestamp(1_000_000), Some("root"))
        );
        assert_eq!(
            (owner.container.clone(), owner.netns),
            (Some("ab".repeat(32)), 5)
        );
        assert_eq!(owner.workload, "web");
    }

    #[test]
    fn arguments_and_parent_are_told_without_secrets() {
        let host = FakeHost::default();
        host.processes.borrow_mut().insert(7, facts(100));
        let owner = attribution(host).owner(&KEY, 2 * SECOND, 2 * SECOND, &Clock::new(0));
        let process = owner.process.clone().unwrap();
        assert_eq!(process.args.as_deref(), Some("/bin/web --token=***"));
        assert_eq!((process.parent, process.parent_name.as_str()), (1, "init"));
    }

    #[test]
    fn who_is_outside_of_his_container_is_flagged() {
        let host = FakeHost::default();
        let container = format!("0::/docker/{}\n", "ab".repeat(32));
        let inside = Namespaces {
            mnt: 11,
            pid: 12,
            net: 13,
        };
        host.first.set(Some(inside));
        for (pid, cgroups, namespaces) in [
            (1, container.as_str(), inside),
            (2, container.as_str(), HOST),
            (3, container.as_str(), Namespaces { net: 3, ..inside }),
            (4, "0::/system.slice/a.service\n", HOST),
            (
                5,
                "0::/system.slice/a.service\n",
                Namespaces { mnt: 77, ..HOST },
            ),
            (
                6,
                "0::/system.slice/b.service\n",
                Namespaces { mnt: 78, ..HOST },
            ),
        ] {
            let process = ProcessFacts {
                cgroups: cgroups.into(),
                namespaces,
                ..facts(100)
            };
            host.processes.borrow_mut().insert(pid, process);
        }
        let mut attribution = attribution(host);
        let mut escaped = |pid: u32, now_ns: u64| {
            let key = OwnerKey { pid, ..KEY };
            let owner = attribution.owner(&key, now_ns, now_ns, &Clock::new(0));
            owner.escaped
        };
        let flagged: Vec<u32> = (1..7)
            .filter(|pid| escaped(*pid, u64::from(*pid) * 2 * SECOND))
            .collect();
        assert_eq!(flagged, [2, 3, 5]);
        assert_eq!(
            (attribution.escaped, attribution.host.searches.get()),
            (3, 2)
        );
    }

    #[test]
    fn searches_for_a_namespace_are_few() {
        let host = FakeHost::default();
        for pid in 1..=50 {
            let namespaces = Namespaces {
                mnt: 100 + u64::from(pid) % 5,
                ..HOST
            };
            let process = ProcessFacts {
                namespaces,
                ..facts(1)
            };
            host.processes.borrow_mut().insert(pid, process);
        }
        let mut attribution = attribution(host);
        for pid in 1..=50 {
            let key = OwnerKey { pid, ..KEY };
            // Two in the same moment, then none for a while.
            let now_ns = SECOND + u64::from(pid / 2) * SEARCH_INTERVAL_NS;
            attribution.owner(&key, now_ns, now_ns, &Clock::new(0));
        }
        assert_eq!(attribution.host.searches.get(), 5);
        assert!(attribution.searches_skipped > 0);
    }

    fn pod(container: &str) -> PodObject {
        let mut pod = PodObject::default();
        pod.metadata.uid = "2ad1f2a6-6d6b-4c0e-9a3b-0f6a6e1f9d11".into();
        pod.metadata.name = "ledger-0".into();
        pod.metadata.owner_references = vec![weft_kubernetes::object::OwnerReference {
            kind: "StatefulSet".into(),
            name: "ledger".into(),
            controller: true,
        }];
        pod.status.container_statuses = vec![weft_kubernetes::object::ContainerStatus {
            name: "app".into(),
            container_id: container.into(),
            ..Default::default()
        }];
        pod
    }

    #[test]
    fn a_pod_that_becomes_known_late_renews_its_owners() {
        let pods = Pods::new("", &[]);
        let host = FakeHost::default();
        host.processes.borrow_mut().insert(7, facts(100));
        let mut attribution = attribution(host).with_pods(pods.clone());
        let clock = Clock::new(0);
        let first = attribution.owner(&KEY, 2 * SECOND, 2 * SECOND, &clock);
        let other = attribution.owner(
            &OwnerKey { cgroup: 0, ..KEY },
            2 * SECOND,
            2 * SECOND,
            &clock,
        );
        assert_eq!((first.pod.clone(), first.workload.as_str()), (None, "web"));
        assert!(attribution.renewed(3 * SECOND).is_empty());
        pods.replace("files", [pod(&"ab".repeat(32))]);
        let renewed = attribution.renewed(4 * SECOND);
        assert_eq!(renewed.len(), 1);
        let owner = &renewed[&Arc::as_ptr(&first)];
        let named = owner.pod.clone().unwrap();
        assert_eq!(
            (
                named.name.as_str(),
                named.container.as_str(),
                owner.workload.as_str()
            ),
            ("ledger-0", "app", "ledger")
        );
        assert!(!renewed.contains_key(&Arc::as_ptr(&other)));
        assert!(attribution.renewed(9 * SECOND).is_empty());
        let later = attribution.owner(&KEY, 4 * SECOND, 4 * SECOND, &clock);
        assert!(Arc::ptr_eq(&later, owner));
        // What is forgotten of a pod does not change what was said.
        pods.replace("files", []);
        assert!(attribution.renewed(20 * SECOND).is_empty());
    }

    #[test]
    fn a_process_that_is_gone_keeps_the_kernels_name() {
        let mut attribution = attribution(FakeHost::default());
        let owner = attribution.owner(&KEY, SECOND, SECOND, &Clock::new(0));
        let process = owner.process.clone().unwrap();
        assert_eq!(
            (process.name.as_str(), process.exe, process.started_at),
            ("thread-3", None, Timestamp(0))
        );
        assert_eq!(attribution.gone, 1);
    }

    #[test]
    fn a_reused_pid_is_not_the_owner() {
        let host = FakeHost::default();
        host.processes.borrow_mut().insert(7, facts(900));
        let mut attribution = attribution(host);
        let owner = attribution.owner(&KEY, SECOND, SECOND, &Clock::new(0));
        assert_eq!(owner.process.clone().unwrap().exe, None);
    }

    #[test]
    fn a_remembered_process_is_checked_again() {
        let host = FakeHost::default();
        host.processes.borrow_mut().insert(7, facts(100));
        let mut attribution = attribution(host);
        let clock = Clock::new(0);
        let first = attribution.owner(&KEY, 2 * SECOND, 2 * SECOND, &clock);
        attribution.host.processes.borrow_mut().remove(&7);
        let gone = attribution.owner(&KEY, 4 * SECOND, 4 * SECOND, &clock);
        assert!(Arc::ptr_eq(&first, &gone));
        attribution
            .host
            .processes
            .borrow_mut()
            .insert(7, facts(500));
        let other = attribution.owner(&KEY, 6 * SECOND, 6 * SECOND, &clock);
        assert_eq!(
            other.process.clone().unwrap().started_at,
            Timestamp(5_000_000)
        );
    }

    #[test]
    fn nobody_known_is_nobody() {
        let mut attribution = attribution(FakeHost::default());
        let owner = attribution.owner(&OwnerKey::default(), SECOND, SECOND, &Clock::new(0));
        assert_eq!(
            (
                owner.process.clone(),
                owner.workload.as_str(),
                attribution.gone
            ),
            (None, "unknown", 0)
        );
    }
}
