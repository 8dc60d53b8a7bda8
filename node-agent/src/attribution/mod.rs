//! Whose a socket is: what the kernel said, completed by what the host knows of that process.
//!
//! The kernel names process, user and cgroup at the moment that counts. The rest is read from the host soon after, and the
//! process may be gone by then: then the kernel's name stands and there is no executable.

pub mod cgroup;
pub mod host;
pub mod secrets;

use std::collections::HashMap;
use std::sync::Arc;

use weft_wire::{Owner, Process, Timestamp};

pub use host::{Host, ProcessFacts, RealHost};

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

/// Answers whose a socket is.
pub struct Attribution<H> {
    host: H,
    naming: Config,
    cache: HashMap<OwnerKey, Known>,
    /// Processes as the call hooks saw them begin, for those that are gone before they are looked at.
    pub processes: Processes,
    users: HashMap<u32, Option<String>>,
    /// Owners whose process was gone before it was looked at.
    pub gone: u64,
    /// Times the cache was full.
    pub evictions: u64,
}

struct Known {
    owner: Arc<Owner>,
    start_ticks: Option<u64>,
    checked_ns: u64,
}

impl<H: Host> Attribution<H> {
    /// `naming` says what workloads are called.
    pub fn new(host: H, naming: Config) -> Self {
        Self {
            host,
            naming,
            cache: HashMap::new(),
            processes: Processes::default(),
            users: HashMap::new(),
            gone: 0,
            evictions: 0,
        }
    }

    /// The owner of a socket whose event happened at `at_ns`; `now_ns` is the monotonic time of asking.
    pub fn owner(&mut self, key: &OwnerKey, at_ns: u64, now_ns: u64, clock: &Clock) -> Arc<Owner> {
        if let Some(known) = self.cache.get_mut(key) {
            if now_ns < known.checked_ns.saturating_add(RECHECK_NS) {
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
        let facts = (key.pid != 0)
            .then(|| self.host.process(key.pid))
            .flatten()
            .filter(|facts| {
                let started = self.host.started_at(facts.start_ticks, clock);
                started.0 <= at.0.saturating_add(START_SLACK_US)
            });
        let facts = facts.or_else(|| self.remembered(key.pid, at, clock));
        if key.pid != 0 && facts.is_none() {
            self.gone += 1;
        }
        let start_ticks = facts.as_ref().map(|facts| facts.start_ticks);
        let owner = Arc::new(self.describe(key, facts, clock));
        self.cache.insert(
            *key,
            Known {
                owner: Arc::clone(&owner),
                start_ticks,
                checked_ns: now_ns,
            },
        );
        owner
    }

    /// What the call hooks saw of a process that is gone.
    fn remembered(&self, pid: u32, at: Timestamp, clock: &Clock) -> Option<ProcessFacts> {
        let known = self.processes.find(pid)?;
        let started = self.host.started_at(known.start_ticks, clock);
        (started.0 <= at.0.saturating_add(START_SLACK_US)).then(|| known.facts())
    }

    fn describe(&mut self, key: &OwnerKey, facts: Option<ProcessFacts>, clock: &Clock) -> Owner {
        let facts_cgroup = facts
            .as_ref()
            .map(|facts| facts.cgroups.clone())
            .unwrap_or_default();
        let cgroup = self
            .host
            .cgroup(key.cgroup)
            .or_else(|| cgroup::unified(&facts_cgroup))
            .unwrap_or_default();
        let mut place = cgroup::place(&cgroup);
        if place.containers.is_empty() {
            let other = cgroup::of_process(&facts_cgroup);
            if !other.containers.is_empty() || place.unit.is_none() {
                place = other;
            }
        }
        let container = place.container().map(str::to_owned);
        let netns = match (key.netns, &facts) {
            (0, Some(facts)) => facts.netns,
            (netns, _) => netns,
        };
        let process = (key.pid != 0).then(|| self.process(key, facts, clock));
        let name = process
            .as_ref()
            .map(|process| process.name.as_str())
            .unwrap_or("unknown");
        Owner {
            workload: self.naming.workload(name),
            process,
            cgroup,
            container,
            netns,
            ..Owner::default()
        }
    }

    fn process(&mut self, key: &OwnerKey, facts: Option<ProcessFacts>, clock: &Clock) -> Process {
        let host = &self.host;
        let user = self
            .users
            .entry(key.uid)
            .or_insert_with(|| host.user(key.uid))
            .clone();
        let kernel_name = comm(&key.comm);
        match facts {
            Some(facts) => Process {
                pid: key.pid,
                started_at: host.started_at(facts.start_ticks, clock),
                name: if facts.name.is_empty() {
                    kernel_name
                } else {
                    facts.name
                },
                exe: facts.exe,
                uid: key.uid,
                user,
                ..Process::default()
            },
            None => Process {
                pid: key.pid,
                started_at: Timestamp(0),
                name: kernel_name,
                exe: None,
                uid: key.uid,
                user,
                ..Process::default()
            },
        }
    }
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
    use std::cell::RefCell;

    use super::*;

    #[derive(Default)]
    struct FakeHost {
        processes: RefCell<HashMap<u32, ProcessFacts>>,
    }

    impl Host for FakeHost {
        fn process(&self, pid: u32) -> Option<ProcessFacts> {
            self.processes.borrow().get(&pid).cloned()
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
            netns: 5,
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
