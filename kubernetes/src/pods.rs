//! The pods of this node, for who attributes sockets: an index that a task keeps up to date.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weft_wire::Pod;

use crate::api::{Api, Resource};
use crate::follow::{self, Health, Sink};
use crate::index::{Counts, MAX_PODS, PodIndex};
use crate::object::PodObject;
use crate::watch::{List, Watcher};

/// How often what is gone is looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(10);

const API_SERVER: &str = "API server";

/// Pods by container and uid; a handle that is cheap to clone.
#[derive(Clone, Debug)]
pub struct Pods(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    start: Instant,
    /// From the API server.
    index: Mutex<PodIndex>,
    /// From the kubelet or from files, where the other does not know.
    other: Mutex<PodIndex>,
    source: Mutex<Source>,
    other_source: Mutex<Source>,
    skipped: AtomicU64,
    failures: AtomicU64,
}

/// Where pods come from just now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// In words: `API server`, `kubelet`, `files of docker`. Empty: nothing yet.
    pub name: String,
    /// Whether it is up to date.
    pub live: bool,
    /// What goes wrong, if anything does.
    pub problem: String,
}

impl Pods {
    /// An empty index for a node (empty: any) that keeps these labels.
    pub fn new(node: &str, labels: &[String]) -> Self {
        Self(Arc::new(Shared {
            start: Instant::now(),
            index: Mutex::new(PodIndex::new(node, labels)),
            other: Mutex::new(PodIndex::new("", labels)),
            source: Mutex::default(),
            other_source: Mutex::default(),
            skipped: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }))
    }

    /// See [`PodIndex::find`].
    pub fn find<'a>(
        &self,
        containers: impl IntoIterator<Item = &'a str> + Clone,
        uid: Option<&str>,
    ) -> Option<Pod> {
        let found = self.index().find(containers.clone(), uid);
        found.or_else(|| lock(&self.0.other).find(containers, uid))
    }

    /// See [`PodIndex::generation`].
    pub fn generation(&self) -> u64 {
        let other = lock(&self.0.other).generation();
        self.index().generation().wrapping_add(other)
    }

    /// Pods known; one that both sources know counts twice.
    pub fn len(&self) -> usize {
        let other = lock(&self.0.other).len();
        self.index().len() + other
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        let (one, other) = (self.index().counts(), lock(&self.0.other).counts());
        Counts {
            refused: one.refused + other.refused,
            evicted: one.evicted + other.evicted,
            containers_dropped: one.containers_dropped + other.containers_dropped,
            foreign: one.foreign + other.foreign,
        }
    }

    /// Objects that were too large or could not be read.
    pub fn skipped(&self) -> u64 {
        self.0.skipped.load(Relaxed)
    }

    /// Requests that failed.
    pub fn failures(&self) -> u64 {
        self.0.failures.load(Relaxed)
    }

    /// The API server, and how that goes.
    pub fn source(&self) -> Source {
        lock(&self.0.source).clone()
    }

    /// What stands in for it, and how that goes.
    pub fn other_source(&self) -> Source {
        lock(&self.0.other_source).clone()
    }

    /// Follows the pods of `node` at an API server until the task is dropped. The seed should differ between agents.
    pub async fn follow(&self, api: &Api, node: &str, seed: u64) {
        let resource = Resource {
            path: "/api/v1/pods".into(),
            field_selector: Some(format!("spec.nodeName={node}")),
        };
        let mut sink = PodSink { pods: self.clone() };
        let expiry = async {
            loop {
                tokio::time::sleep(EXPIRY_INTERVAL).await;
                self.expire();
            }
        };
        let mut watcher = Watcher::new(seed);
        tokio::join!(
            follow::follow(api, &resource, &mut watcher, &mut sink),
            expiry
        );
    }

    /// Reads the pods that a kubelet has.
    pub async fn poll_kubelet(&self, api: &Api) {
        let resource = Resource {
            path: "/pods".into(),
            field_selector: None,
        };
        let (mut pods, mut skipped) = (Vec::new(), 0);
        let listed = api
            .list(
                &resource,
                &List::default(),
                |bytes| match serde_json::from_slice(bytes) {
                    Ok(pod) if pods.len() < MAX_PODS => pods.push(pod),
                    _ => skipped += 1,
                },
            )
            .await;
        self.0.skipped.fetch_add(skipped, Relaxed);
        match listed {
            Ok(_) => self.replace("kubelet", pods),
            Err(failed) => self.stand_in_failing("kubelet", &failed.message),
        }
    }

    /// Takes all pods there are from a source that stands in for the API server.
    pub fn replace(&self, source: &str, pods: impl IntoIterator<Item = PodObject>) {
        let now_ms = self.now_ms();
        let mut index = lock(&self.0.other);
        index.begin();
        for pod in pods {
            index.apply(&pod, now_ms);
        }
        index.end(now_ms);
        index.expire(now_ms);
        drop(index);
        self.say(&self.0.other_source, source, true, "");
    }

    /// Notes that what stands in does not work.
    pub fn stand_in_failing(&self, source: &str, problem: &str) {
        self.0.failures.fetch_add(1, Relaxed);
        self.say(&self.0.other_source, source, false, problem);
    }

    /// Notes that there is no API server, for now.
    pub fn failing(&self, problem: &str) {
        self.0.failures.fetch_add(1, Relaxed);
        self.say(&self.0.source, API_SERVER, false, problem);
    }

    fn expire(&self) {
        let now_ms = self.now_ms();
        self.index().expire(now_ms);
    }

    /// Remembers how it goes, and logs what is new of it.
    fn say(&self, source: &Mutex<Source>, name: &str, live: bool, problem: &str) {
        let mut source = lock(source);
        let news = (source.name.as_str(), source.live) != (name, live);
        *source = Source {
            name: name.into(),
            live,
            problem: problem.into(),
        };
        drop(source);
        match (news, live) {
            (true, true) => tracing::info!(source = name, pods = self.len(), "pods are known"),
            (true, false) => {
                tracing::warn!(source = name, problem, "pods may be missing or out of date");
            }
            (false, _) => {}
        }
    }

    fn now_ms(&self) -> u64 {
        self.0.start.elapsed().as_millis() as u64
    }

    fn index(&self) -> MutexGuard<'_, PodIndex> {
        lock(&self.0.index)
    }
}

struct PodSink {
    pods: Pods,
}

impl Sink<PodObject> for PodSink {
    fn begin(&mut self) {
        self.pods.index().begin();
    }

    fn apply(&mut self, pod: PodObject) {
        let now_ms = self.pods.now_ms();
        self.pods.index().apply(&pod, now_ms);
    }

    fn remove(&mut self, pod: PodObject) {
        let now_ms = self.pods.now_ms();
        self.pods.index().remove(&pod.metadata.uid, now_ms);
    }

    fn end(&mut self) {
        let now_ms = self.pods.now_ms();
        self.pods.index().end(now_ms);
    }

    fn health(&mut self, health: Health<'_>) {
        match health {
            Health::Live => self.pods.say(&self.pods.0.source, API_SERVER, true, ""),
            Health::Failing(failed) => self.pods.failing(&failed.message),
        }
    }

    fn skipped(&mut self, objects: u64) {
        self.pods.0.skipped.fetch_add(objects, Relaxed);
    }
}

/// Nothing that panics holds these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
