//! Which agent of a cluster watches what belongs to the cluster: the one that holds a Lease (`coordination.k8s.io/v1`). Pure.
//!
//! The driver asks [`Elector::step`] and does what it says; of a read it tells [`Elector::seen`], of a write
//! [`Elector::written`] or [`Elector::lost`], of a failure [`Elector::failed`]. [`Elector::leads`] says whether to speak.
//!
//! Clocks of nodes are not compared: a lease has expired when it stood unchanged for its duration by *our* clock. Writes
//! name the version that was read, so that of two who take an expired lease one meets a conflict. Who cannot renew stops
//! to speak before another may: after [`STEP_DOWN`], shorter than [`DURATION`]. For a while nobody speaks then; never two.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use weft_wire::{Timestamp, mix64};

use crate::object::{Meta, nullable};

/// How long a lease holds without being renewed.
pub const DURATION: Duration = Duration::from_secs(15);
/// Time between two renewals.
pub const RENEW: Duration = Duration::from_secs(5);
/// After so long without a renewal that worked the holder stops to speak.
pub const STEP_DOWN: Duration = Duration::from_secs(10);
/// Time between two looks of one that does not hold it; up to twice that, by chance.
pub const LOOK: Duration = Duration::from_secs(5);

/// A lease as the API server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LeaseObject {
    /// Metadata.
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
    /// Who holds it.
    #[serde(deserialize_with = "nullable")]
    pub spec: LeaseSpec,
}

/// `LeaseSpec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    /// Who holds it; empty: nobody.
    #[serde(deserialize_with = "nullable")]
    pub holder_identity: String,
    /// For how long after `renew_time`.
    #[serde(deserialize_with = "nullable")]
    pub lease_duration_seconds: u32,
    /// When it was taken.
    #[serde(deserialize_with = "nullable")]
    pub acquire_time: String,
    /// When it was renewed last.
    #[serde(deserialize_with = "nullable")]
    pub renew_time: String,
    /// How often it changed hands.
    #[serde(deserialize_with = "nullable")]
    pub lease_transitions: u32,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Read the lease.
    Read,
    /// Make it (`POST`): there is none.
    Create(Value),
    /// Replace it (`PUT`).
    Replace(Value),
    /// Ask again after this time.
    Wait(Duration),
}

/// See the module.
#[derive(Debug)]
pub struct Elector {
    identity: String,
    namespace: String,
    name: String,
    random: u64,
    next: Duration,
    /// What was read last; `Some(None)`: there is no lease.
    read: Option<Option<LeaseObject>>,
    /// The version that stands, and since when by our clock.
    observed: Option<(String, Duration)>,
    /// When the last renewal that worked was sent.
    renewed: Option<Duration>,
    sent: Duration,
    releasing: bool,
}

impl Elector {
    /// `identity` must differ between agents.
    pub fn new(namespace: &str, name: &str, identity: &str, seed: u64) -> Self {
        Self {
            identity: identity.into(),
            namespace: namespace.into(),
            name: name.into(),
            random: seed,
            next: Duration::ZERO,
            read: None,
            observed: None,
            renewed: None,
            sent: Duration::ZERO,
            releasing: false,
        }
    }

    /// What to do now; `utc` is what a renewal carries.
    pub fn step(&mut self, now: Duration, utc: Timestamp) -> Step {
        if now < self.next {
            return Step::Wait(self.next - now);
        }
        let Some(read) = &self.read else {
            return Step::Read;
        };
        let Some(lease) = read else {
            self.sent = now;
            return Step::Create(self.record(None, utc));
        };
        if lease.spec.holder_identity == self.identity || self.expired(lease, now) {
            let lease = lease.clone();
            self.sent = now;
            return Step::Replace(self.record(Some(&lease), utc));
        }
        self.read = None;
        self.next = now + LOOK + LOOK.mul_f64((self.draw() >> 40) as f64 / f64::from(1 << 24));
        Step::Wait(self.next - now)
    }

    /// A read gave this; `None`: there is no lease.
    pub fn seen(&mut self, now: Duration, lease: Option<LeaseObject>) {
        if let Some(lease) = &lease {
            self.observe(now, lease);
            if lease.spec.holder_identity != self.identity {
                self.renewed = None;
            }
        }
        self.read = Some(lease);
    }

    /// A write worked; it is ours for [`DURATION`] from when it was sent.
    pub fn written(&mut self, now: Duration, lease: LeaseObject) {
        self.observe(now, &lease);
        if self.releasing {
            self.renewed = None;
            return;
        }
        self.renewed = Some(self.sent);
        self.read = Some(Some(lease));
        self.next = now + RENEW;
    }

    /// A write met a conflict: another was faster. What stands is read again.
    pub fn lost(&mut self, now: Duration) {
        self.read = None;
        self.next = now + RENEW / 10;
    }

    /// A request failed. Who leads still does, until [`STEP_DOWN`].
    pub fn failed(&mut self, now: Duration) {
        self.read = None;
        let wait = if self.leads(now) { RENEW / 5 } else { LOOK };
        self.next = now + wait;
    }

    /// Whether this agent speaks for the cluster.
    pub fn leads(&self, now: Duration) -> bool {
        self.renewed
            .is_some_and(|renewed| now.saturating_sub(renewed) < STEP_DOWN)
    }

    /// How long to wait for an answer now: who leads must hear soon enough to stop before another may begin.
    pub fn patience(&self, now: Duration) -> Duration {
        match self.renewed {
            Some(renewed) if self.leads(now) => STEP_DOWN.saturating_sub(now - renewed),
            _ => STEP_DOWN,
        }
    }

    /// Gives the lease back, if it is held: the record to replace it with.
    pub fn release(&mut self, utc: Timestamp) -> Option<Value> {
        self.renewed?;
        let lease = self.read.clone()??;
        self.releasing = true;
        self.renewed = None;
        let mut record = self.record(Some(&lease), utc);
        record["spec"]["holderIdentity"] = Value::Null;
        // What others wait for, from now on.
        record["spec"]["leaseDurationSeconds"] = 1.into();
        Some(record)
    }

    fn observe(&mut self, now: Duration, lease: &LeaseObject) {
        let version = &lease.metadata.resource_version;
        if self
            .observed
            .as_ref()
            .is_none_or(|(seen, _)| seen != version)
        {
            self.observed = Some((version.clone(), now));
        }
    }

    /// Nobody's, or unchanged for as long as it says.
    fn expired(&self, lease: &LeaseObject, now: Duration) -> bool {
        let lasts = match lease.spec.lease_duration_seconds {
            0 => DURATION,
            seconds => Duration::from_secs(seconds.into()),
        };
        lease.spec.holder_identity.is_empty()
            || self
                .observed
                .as_ref()
                .is_some_and(|(_, since)| now.saturating_sub(*since) >= lasts)
    }

    fn record(&self, lease: Option<&LeaseObject>, utc: Timestamp) -> Value {
        let utc = utc.to_string();
        let spec = lease.map(|lease| &lease.spec);
        let ours = spec.is_some_and(|spec| spec.holder_identity == self.identity);
        let acquired = match spec.filter(|_| ours) {
            Some(spec) if !spec.acquire_time.is_empty() => spec.acquire_time.clone(),
            _ => utc.clone(),
        };
        let transitions = spec.map_or(0, |spec| {
            spec.lease_transitions.saturating_add(u32::from(!ours))
        });
        let mut metadata = json!({"namespace": self.namespace, "name": self.name});
        if let Some(lease) = lease {
            metadata["resourceVersion"] = lease.metadata.resource_version.clone().into();
        }
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": DURATION.as_secs(),
                "acquireTime": acquired,
                "renewTime": utc,
                "leaseTransitions": transitions,
            },
        })
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.random)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The API server's part: one lease, versions, conflicts.
    #[derive(Default)]
    struct Server {
        lease: Option<LeaseObject>,
        version: u64,
    }

    impl Server {
        fn write(&mut self, record: &Value, create: bool) -> Option<LeaseObject> {
            let mut lease: LeaseObject = serde_json::from_value(record.clone()).unwrap();
            let fits = match &self.lease {
                None => create,
                Some(old) => {
                    !create && old.metadata.resource_version == lease.metadata.resource_version
                }
            };
            if !fits {
                return None;
            }
            self.version += 1;
            lease.metadata.resource_version = self.version.to_string();
            self.lease = Some(lease.clone());
            Some(lease)
        }

        /// Lets an agent do what it is to do now, with a server that answers or not.
        fn turn(&mut self, elector: &mut Elector, now: Duration, answers: bool) {
            for _ in 0..4 {
                let step = elector.step(now, Timestamp(now.as_micros() as i64));
                if let Step::Wait(_) = step {
                    return;
                }
                if !answers {
                    return elector.failed(now);
                }
                match step {
                    Step::Read => elector.seen(now, self.lease.clone()),
                    Step::Create(record) | Step::Replace(record) => {
                        match self.write(&record, record["metadata"]["resourceVersion"].is_null()) {
                            Some(lease) => elector.written(now, lease),
                            None => elector.lost(now),
                        }
                    }
                    Step::Wait(_) => {}
                }
            }
        }
    }

    const S: Duration = Duration::from_secs(1);

    fn elector(name: &str, seed: u64) -> Elector {
        Elector::new("weft", "weft-cluster-watcher", name, seed)
    }

    #[test]
    fn the_first_takes_it_and_keeps_it() {
        let (mut server, mut a, mut b) = (Server::default(), elector("a", 1), elector("b", 2));
        for second in 0..120 {
            server.turn(&mut a, S * second, true);
            server.turn(&mut b, S * second, true);
            assert!(a.leads(S * second) && !b.leads(S * second), "{second}");
        }
        let spec = server.lease.unwrap().spec;
        assert_eq!(
            (spec.holder_identity.as_str(), spec.lease_transitions),
            ("a", 0)
        );
        assert_eq!(spec.acquire_time, Timestamp(0).to_string());
        assert!(spec.renew_time > spec.acquire_time);
    }

    #[test]
    fn an_expired_one_is_taken_after_its_holder_fell_silent() {
        let (mut server, mut a, mut b) = (Server::default(), elector("a", 1), elector("b", 2));
        let mut taken = None;
        for second in 0..120 {
            let now = S * second;
            server.turn(&mut a, now, second < 30);
            server.turn(&mut b, now, true);
            assert!(!(a.leads(now) && b.leads(now)));
            if b.leads(now) {
                taken.get_or_insert(second);
            }
        }
        let taken = taken.unwrap();
        assert!((30..30 + 30).contains(&taken), "{taken}");
        assert_eq!(server.lease.unwrap().spec.lease_transitions, 1);
    }

    #[test]
    fn one_given_back_is_taken_soon() {
        let (mut server, mut a, mut b) = (Server::default(), elector("a", 1), elector("b", 2));
        server.turn(&mut a, S, true);
        server.turn(&mut b, S, true);
        let record = a.release(Timestamp(0)).unwrap();
        let lease = server.write(&record, false).unwrap();
        a.written(S * 2, lease);
        assert!(!a.leads(S * 2));
        for second in 2..15 {
            server.turn(&mut b, S * second, true);
        }
        assert!(b.leads(S * 14));
        assert_eq!(
            b.release(Timestamp(0))
                .map(|record| record["spec"]["holderIdentity"].is_null()),
            Some(true)
        );
        assert_eq!(a.release(Timestamp(0)), None);
    }

    #[test]
    fn its_own_from_before_a_restart_is_taken_up_again() {
        let (mut server, mut a) = (Server::default(), elector("a", 1));
        server.turn(&mut a, S, true);
        let mut again = elector("a", 3);
        server.turn(&mut again, S * 2, true);
        assert!(again.leads(S * 2));
        assert_eq!(server.lease.unwrap().spec.lease_transitions, 0);
    }

    proptest! {
        /// Whoever is cut off, for however long, in whatever order: never do two lead at a time.
        #[test]
        fn never_two(turns in proptest::collection::vec((0_usize..3, 0_u64..4_000, 0_u8..4), 0..400)) {
            let mut server = Server::default();
            let mut electors = [elector("a", 1), elector("b", 2), elector("c", 3)];
            let mut now = Duration::ZERO;
            for (who, ms, luck) in turns {
                now += Duration::from_millis(ms);
                server.turn(&mut electors[who], now, luck > 0);
                let leading = electors.iter().filter(|elector| elector.leads(now)).count();
                prop_assert!(leading <= 1);
            }
        }
    }
}
