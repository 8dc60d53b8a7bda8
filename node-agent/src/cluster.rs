//! What this agent tells of its cluster, if it is the one that does: from the watchers to the uplink.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use weft_kubernetes::Api;
use weft_kubernetes::speaker::{self, Speaker, SpeakerCounts};
use weft_wire::cluster::{ClusterBatch, ClusterEvent, MAX_CLUSTER_EVENTS};

use crate::config::{Config, Enabled};
use crate::counters::Counters;
use crate::pods;

/// A batch ends when its texts are longer than this together.
const BATCH_BYTES: usize = 256 << 10;
/// Time between two attempts to make a client.
const SETUP_INTERVAL: Duration = Duration::from_secs(30);
/// Time between two updates of the counters.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// What the uplink takes from.
pub struct ClusterFeed {
    /// The cluster's name.
    pub cluster: String,
    /// What happened.
    pub events: Receiver<ClusterEvent>,
    /// Told the number of the session that listens, if one does: with each, everything is told anew.
    pub listening: watch::Sender<Option<u64>>,
}

impl ClusterFeed {
    /// What waits, at most a batch of it, as soon as there is something. Nothing is lost when this is dropped while it
    /// waits.
    pub async fn next(&mut self) -> Option<ClusterBatch> {
        let first = self.events.recv().await?;
        let mut bytes = size(&first);
        let mut events = vec![first];
        while events.len() < MAX_CLUSTER_EVENTS && bytes < BATCH_BYTES {
            let Ok(event) = self.events.try_recv() else {
                break;
            };
            bytes += size(&event);
            events.push(event);
        }
        Some(ClusterBatch {
            cluster: self.cluster.clone(),
            events,
        })
    }
}

/// Starts to stand for the cluster's lease; `None` where there is no API server or it is not wanted. Gives the lease back when
/// `stop` says so.
pub fn start(
    config: &Config,
    seed: u64,
    stop: watch::Receiver<bool>,
) -> Option<(ClusterFeed, Arc<SpeakerCounts>, tokio::task::JoinHandle<()>)> {
    let settings = &config.kubernetes;
    let wanted = settings.enabled == Enabled::Auto && settings.cluster;
    if !wanted || !pods::Sources::of(config).is_some_and(|sources| sources.api) {
        return None;
    }
    let (out, events) = speaker::queue();
    let (listening, hears) = watch::channel(None);
    let counts = Arc::new(SpeakerCounts::default());
    let speaker = Speaker {
        identity: config.name.clone(),
        namespace: settings.lease_namespace.clone(),
        seed,
    };
    let (api, counted) = (pods::settings(config), Arc::clone(&counts));
    let mut stopped = stop.clone();
    let task = tokio::spawn(async move {
        loop {
            match Api::connect(&api).await {
                Ok(api) => return speaker.run(&api, &out, &counted, hears, stop).await,
                Err(error) => tracing::warn!(%error, "the cluster's objects are not watched"),
            }
            tokio::select! {
                () = tokio::time::sleep(SETUP_INTERVAL) => {}
                _ = stopped.wait_for(|stop| *stop) => return,
            }
        }
    });
    let feed = ClusterFeed {
        cluster: config.site.cluster.clone(),
        events,
        listening,
    };
    Some((feed, counts, task))
}

/// Brings the shared counters up to date until the task is dropped.
pub async fn publish(counts: Arc<SpeakerCounts>, counters: Arc<Counters>) {
    loop {
        let read = |one: &AtomicU64| one.load(Relaxed);
        counters.cluster_leads.store(read(&counts.leads), Relaxed);
        counters
            .cluster_failures
            .store(read(&counts.failures), Relaxed);
        counters
            .cluster_dropped
            .store(read(&counts.dropped), Relaxed);
        counters
            .cluster_skipped
            .store(read(&counts.skipped), Relaxed);
        tokio::time::sleep(PUBLISH_INTERVAL).await;
    }
}

fn size(event: &ClusterEvent) -> usize {
    let ClusterEvent::Put(object) = event else {
        return 64;
    };
    let lists = [
        &object.addresses,
        &object.ports,
        &object.hosts,
        &object.refers_to,
    ];
    let texts = [
        &object.namespace,
        &object.name,
        &object.uid,
        &object.of,
        &object.sort,
    ];
    let listed: usize = lists.into_iter().flatten().map(|text| text.len() + 8).sum();
    listed + texts.iter().map(|text| text.len() + 8).sum::<usize>()
}
