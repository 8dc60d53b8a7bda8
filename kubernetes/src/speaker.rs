//! The one agent of a cluster that tells its federator what there is in it: holds the lease, watches, passes on.
//!
//! Nothing is kept of the cluster: objects go to a queue of [`MAX_WAITING`] events as they are read. While it is full no page
//! is asked for; what a watch brings in then is dropped and counted, and that kind is listed again, so that the
//! receiver's picture is whole in the end.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Method;
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};
use tokio::sync::watch;
use weft_wire::Timestamp;
use weft_wire::cluster::{ClusterEvent, ObjectKind};

use crate::api::{Api, Failed};
use crate::cluster::{self, AnyObject};
use crate::follow::{self, Health, Sink};
use crate::lease::{Elector, LeaseObject, Step};
use crate::watch::{Failure, PAGE_OBJECTS, Watcher};

/// Most events that wait for the federator, of some 500 bytes each.
pub const MAX_WAITING: usize = 4 * PAGE_OBJECTS as usize;
/// Name of the lease.
pub const LEASE: &str = "weft-cluster-watcher";
/// How often a lease that is held is looked at.
const TICK: Duration = Duration::from_millis(200);

/// Longest wait, at the end, for the lease to be given back.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Who speaks, and where.
#[derive(Clone, Debug)]
pub struct Speaker {
    /// Differs between agents.
    pub identity: String,
    /// Namespace of the lease.
    pub namespace: String,
    /// Differs between agents.
    pub seed: u64,
}

/// How it goes.
#[derive(Debug, Default)]
pub struct SpeakerCounts {
    /// Whether this agent holds the lease.
    pub leads: AtomicU64,
    /// Requests that failed.
    pub failures: AtomicU64,
    /// Events dropped because too many waited; their kind was listed again.
    pub dropped: AtomicU64,
    /// Objects that were too large or could not be read.
    pub skipped: AtomicU64,
}

/// A queue for what is told.
pub fn queue() -> (Sender<ClusterEvent>, Receiver<ClusterEvent>) {
    channel(MAX_WAITING)
}

impl Speaker {
    /// Stands for the lease, and speaks while it is held and `listening` says that somebody listens; begins anew with each
    /// new number there. Runs until the task is dropped or `stop` is set, and then gives the lease back.
    pub async fn run(
        &self,
        api: &Api,
        out: &Sender<ClusterEvent>,
        counts: &Arc<SpeakerCounts>,
        mut listening: watch::Receiver<Option<u64>>,
        mut stop: watch::Receiver<bool>,
    ) {
        let start = Instant::now();
        let mut elector = Elector::new(&self.namespace, LEASE, &self.identity, self.seed);
        let mut speaking: Option<(u64, tokio::task::JoinHandle<()>)> = None;
        loop {
            let wait = tokio::select! {
                wait = self.stand(api, &mut elector, start, counts) => wait,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let leads = elector.leads(start.elapsed());
            let was = counts.leads.swap(leads.into(), Relaxed);
            if was != u64::from(leads) {
                tracing::info!(leads, "watching the cluster's objects for all agents of it");
            }
            let wanted = (*listening.borrow_and_update()).filter(|_| leads);
            if speaking.as_ref().map(|(session, _)| *session) != wanted {
                if let Some((_, task)) = speaking.take() {
                    task.abort();
                }
                speaking = wanted.map(|session| {
                    let (api, out, counts) = (api.clone(), out.clone(), Arc::clone(counts));
                    let seed = self.seed;
                    (
                        session,
                        tokio::spawn(async move { speak(&api, &out, &counts, seed).await }),
                    )
                });
            }
            tokio::select! {
                () = tokio::time::sleep(wait.min(TICK)) => {}
                _ = listening.changed() => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        if let Some((_, task)) = speaking.take() {
            task.abort();
        }
        if let Some(record) = elector.release(now()) {
            let path = format!("{}/{LEASE}", self.leases());
            // Without it others wait for the lease to expire; that is no reason not to end.
            let given_back = api.write::<LeaseObject>(Method::PUT, &path, &record);
            let _ = tokio::time::timeout(RELEASE_TIMEOUT, given_back).await;
        }
    }

    fn leases(&self) -> String {
        format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
            self.namespace
        )
    }

    /// Does what the elector asks for, until it asks to wait. A request that hangs is given up in time to step down.
    async fn stand(
        &self,
        api: &Api,
        elector: &mut Elector,
        start: Instant,
        counts: &SpeakerCounts,
    ) -> Duration {
        let path = format!("{}/{LEASE}", self.leases());
        loop {
            let step = elector.step(start.elapsed(), now());
            let patience = elector.patience(start.elapsed());
            let asked = tokio::time::timeout(patience, async {
                match &step {
                    Step::Wait(_) => Ok(None),
                    Step::Read => api.get::<LeaseObject>(&path).await,
                    Step::Create(record) => {
                        let made = api.write(Method::POST, &self.leases(), record).await;
                        made.map(Some)
                    }
                    Step::Replace(record) => api.write(Method::PUT, &path, record).await.map(Some),
                }
            });
            let answer: Result<Option<LeaseObject>, Failed> = match (asked.await, &step) {
                (_, Step::Wait(wait)) => return *wait,
                (Ok(answer), _) => answer,
                (Err(_), _) => Err(Failed {
                    failure: Failure::Other,
                    status: 0,
                    message: format!("no answer within {} s", patience.as_secs()),
                }),
            };
            match answer {
                Ok(lease) if step == Step::Read => elector.seen(start.elapsed(), lease),
                Ok(Some(lease)) => elector.written(start.elapsed(), lease),
                // A write is answered with what was written.
                Ok(None) => elector.lost(start.elapsed()),
                Err(failed) if failed.status == 409 => elector.lost(start.elapsed()),
                Err(failed) => {
                    if counts.failures.fetch_add(1, Relaxed) == 0 {
                        tracing::warn!(%failed, "the lease of the cluster's watcher cannot be had");
                    }
                    elector.failed(start.elapsed());
                }
            }
        }
    }
}

/// Watches every kind at a time.
async fn speak(api: &Api, out: &Sender<ClusterEvent>, counts: &Arc<SpeakerCounts>, seed: u64) {
    let mut tasks = tokio::task::JoinSet::new();
    for kind in ObjectKind::ALL {
        let (api, out, counts) = (api.clone(), out.clone(), Arc::clone(counts));
        tasks.spawn(async move {
            let mut watcher = Watcher::new(seed ^ (kind as u64) << 32);
            let mut sink = KindSink {
                kind,
                out,
                counts,
                lost: false,
                said: Mutex::new(String::new()),
            };
            follow::follow(&api, &cluster::resource(kind), &mut watcher, &mut sink).await;
        });
    }
    // Ends only when this is dropped, and the tasks with it.
    while tasks.join_next().await.is_some() {}
}

struct KindSink {
    kind: ObjectKind,
    out: Sender<ClusterEvent>,
    counts: Arc<SpeakerCounts>,
    /// An event was dropped: what the receiver knows of this kind is not whole.
    lost: bool,
    said: Mutex<String>,
}

impl KindSink {
    fn tell(&mut self, event: ClusterEvent) {
        if self.lost && !matches!(event, ClusterEvent::Begin(_)) {
            self.counts.dropped.fetch_add(1, Relaxed);
            return;
        }
        match self.out.try_send(event) {
            Ok(()) => self.lost = false,
            Err(TrySendError::Full(_)) => {
                self.lost = true;
                self.counts.dropped.fetch_add(1, Relaxed);
            }
            Err(TrySendError::Closed(_)) => {}
        }
    }
}

impl Sink<AnyObject> for KindSink {
    fn begin(&mut self) {
        self.tell(ClusterEvent::Begin(self.kind));
    }

    fn apply(&mut self, object: AnyObject) {
        self.tell(ClusterEvent::Put(cluster::told(self.kind, &object)));
    }

    fn remove(&mut self, object: AnyObject) {
        self.tell(ClusterEvent::Gone(self.kind, object.metadata.uid));
    }

    fn end(&mut self) {
        self.tell(ClusterEvent::End(self.kind));
    }

    fn health(&mut self, health: Health<'_>) {
        let Health::Failing(failed) = health else {
            return;
        };
        self.counts.failures.fetch_add(1, Relaxed);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        // Many clusters have no Gateway API: that is no problem.
        if *said != failed.message && failed.failure != Failure::Missing {
            tracing::warn!(kind = self.kind.as_str(), %failed, "objects of the cluster may be missing");
            said.clone_from(&failed.message);
        }
    }

    fn skipped(&mut self, objects: u64) {
        self.counts.skipped.fetch_add(objects, Relaxed);
    }

    fn is_whole(&self) -> bool {
        !self.lost
    }

    async fn ready(&mut self) {
        while self.out.capacity() <= PAGE_OBJECTS as usize && !self.out.is_closed() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(since.map_or(0, |since| since.as_micros() as i64))
}
