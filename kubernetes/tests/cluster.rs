//! What one agent tells of its cluster: the lease, snapshots and changes, from a server that behaves as the real one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
// The other test uses the rest.
#[allow(dead_code)]
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::json;
use server::{Fault, Server};
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio::time::timeout;
use weft_kubernetes::speaker::{MAX_WAITING, Speaker, SpeakerCounts, queue};
use weft_kubernetes::{Api, Settings};
use weft_wire::cluster::{ClusterEvent, ObjectKind};

const SERVICES: &str = "/api/v1/services";

struct Agent {
    events: Receiver<ClusterEvent>,
    counts: Arc<SpeakerCounts>,
    listening: watch::Sender<Option<u64>>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    /// Uid to name, by kind; what a receiver knows.
    known: BTreeMap<ObjectKind, BTreeMap<String, String>>,
    listed: BTreeMap<ObjectKind, BTreeMap<String, String>>,
}

impl Agent {
    async fn start(server: &Server, name: &str) -> Self {
        let file = server.kubeconfig();
        let settings = Settings {
            kubeconfig: Some(file.path().into()),
            context: None,
        };
        let api = Api::connect(&settings).await.unwrap();
        let (out, events) = queue();
        let counts = Arc::new(SpeakerCounts::default());
        let (listening, hears) = watch::channel(Some(1));
        let (stop, stopped) = watch::channel(false);
        let seed = u64::from(name.as_bytes()[0]);
        let speaker = Speaker {
            identity: name.into(),
            namespace: "weft".into(),
            seed,
        };
        let counted = Arc::clone(&counts);
        let task =
            tokio::spawn(async move { speaker.run(&api, &out, &counted, hears, stopped).await });
        Self {
            events,
            counts,
            listening,
            stop,
            task,
            known: BTreeMap::new(),
            listed: BTreeMap::new(),
        }
    }

    fn leads(&self) -> bool {
        self.counts.leads.load(Relaxed) == 1
    }

    /// Takes what was told, as a federator would.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = tokio::time::Instant::now() + Duration::from_secs(40);
        while !holds(self) {
            assert!(
                tokio::time::Instant::now() < end,
                "{what} did not come about: {:?}",
                self.known
            );
            match timeout(Duration::from_millis(20), self.events.recv()).await {
                Ok(Some(ClusterEvent::Begin(kind))) => {
                    self.listed.insert(kind, BTreeMap::new());
                }
                Ok(Some(ClusterEvent::Put(object))) => {
                    let into = match self.listed.get_mut(&object.kind) {
                        Some(listed) => listed,
                        None => self.known.entry(object.kind).or_default(),
                    };
                    into.insert(object.uid, object.name);
                }
                Ok(Some(ClusterEvent::Gone(kind, uid))) => {
                    self.known.entry(kind).or_default().remove(&uid);
                }
                Ok(Some(ClusterEvent::End(kind))) => {
                    let listed = self.listed.remove(&kind).unwrap();
                    self.known.insert(kind, listed);
                }
                Ok(None) => panic!("{what}: it ended"),
                Err(_) => {}
            }
        }
    }

    fn services(&self) -> Vec<&str> {
        let known = self.known.get(&ObjectKind::Service);
        known
            .into_iter()
            .flatten()
            .map(|(_, name)| name.as_str())
            .collect()
    }
}

fn service(uid: &str) -> serde_json::Value {
    json!({"metadata": {"name": format!("web-{uid}"), "namespace": "shop", "uid": uid},
        "spec": {"clusterIPs": ["10.0.0.9"], "selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]},
        "status": {"loadBalancer": {}}})
}

#[tokio::test]
async fn a_snapshot_then_changes_and_anew_with_each_session() {
    let server = Server::start().await;
    server.put(SERVICES, service("u1"));
    server.put(
        "/api/v1/nodes",
        json!({"metadata": {"name": "n1", "uid": "n"}}),
    );
    let mut agent = Agent::start(&server, "a").await;
    agent
        .until("a snapshot", |agent| {
            agent.known.len() == ObjectKind::ALL.len()
        })
        .await;
    assert_eq!(agent.services(), ["web-u1"]);
    assert_eq!(agent.known[&ObjectKind::Node]["n"], "n1");
    server.put(SERVICES, service("u2"));
    agent
        .until("a change", |agent| agent.services().len() == 2)
        .await;
    server.delete(SERVICES, "u1");
    agent
        .until("an end", |agent| agent.services() == ["web-u2"])
        .await;
    agent.known.clear();
    agent.listening.send_replace(Some(2));
    agent
        .until("a snapshot again", |agent| agent.services() == ["web-u2"])
        .await;
    agent.listening.send_replace(None);
    agent.task.abort();
}

#[tokio::test]
async fn one_of_two_speaks_and_the_other_takes_over() {
    let server = Server::start().await;
    server.put(SERVICES, service("u1"));
    let mut first = Agent::start(&server, "a").await;
    first.until("the lease", Agent::leads).await;
    let mut second = Agent::start(&server, "b").await;
    first
        .until("a snapshot", |agent| agent.services() == ["web-u1"])
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!second.leads() && second.events.is_empty());
    first.stop.send_replace(true);
    (&mut first.task).await.unwrap();
    second.until("the lease, given back", Agent::leads).await;
    second
        .until("a snapshot", |agent| agent.services() == ["web-u1"])
        .await;
    second.task.abort();
}

/// Renewals that are not answered: who held the lease stops to speak before another takes it, and ends when told to.
#[tokio::test]
async fn one_whose_renewals_hang_speaks_no_more_when_another_does() {
    let server = Server::start().await;
    let mut first = Agent::start(&server, "holder-a").await;
    first.until("the lease", Agent::leads).await;
    server.state.lock().unwrap().hangs = Some("holder-a".into());
    let mut second = Agent::start(&server, "holder-b").await;
    second
        .until("the lease, expired", |second| {
            assert!(!(first.leads() && second.leads()), "two speak");
            second.leads()
        })
        .await;
    assert!(!first.leads());
    first.stop.send_replace(true);
    (&mut first.task).await.unwrap();
    second.task.abort();
}

#[tokio::test]
async fn a_conflict_is_not_won() {
    let server = Server::start().await;
    server.state.lock().unwrap().conflicts = 2;
    let mut agent = Agent::start(&server, "a").await;
    agent.until("the lease", Agent::leads).await;
    let writes = server.requests("POST").len() + server.requests("PUT").len();
    assert!(writes >= 3, "{:?}", server.requests(""));
    agent.task.abort();
}

/// A receiver that takes nothing for a while: no more than the queue holds waits, and in the end it knows everything.
#[tokio::test]
async fn a_slow_receiver_bounds_what_waits_and_knows_all_in_the_end() {
    let server = Server::start().await;
    for at in 0..5_000 {
        server.put(SERVICES, service(&format!("u{at}")));
    }
    let mut agent = Agent::start(&server, "a").await;
    agent
        .until("a beginning", |agent| {
            agent.listed.contains_key(&ObjectKind::Service)
        })
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(agent.events.len() <= MAX_WAITING);
    let asked = server.requests("/services?").len();
    assert!(
        asked < 8,
        "pages are not asked for while the queue is full: {asked}"
    );
    agent
        .until("all of them", |agent| agent.services().len() == 5_000)
        .await;
    // A burst of changes that the queue cannot take.
    agent
        .until("a watch", |_| !server.requests("services?watch").is_empty())
        .await;
    for at in 0..6_000 {
        server.put(SERVICES, service(&format!("v{at}")));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    agent
        .until("all of them", |agent| agent.services().len() == 11_000)
        .await;
    assert!(agent.counts.dropped.load(Relaxed) > 0);
    agent.task.abort();
}

#[tokio::test]
async fn a_cluster_without_gateways_is_told_all_the_same() {
    let server = Server::start().await;
    server.put(SERVICES, service("u1"));
    server.state.lock().unwrap().missing =
        Some("/apis/gateway.networking.k8s.io/v1/gateways".into());
    server.fail_list(Fault::Broken);
    let mut agent = Agent::start(&server, "a").await;
    agent
        .until("services", |agent| agent.services() == ["web-u1"])
        .await;
    assert!(!agent.known.contains_key(&ObjectKind::Gateway));
    agent.task.abort();
}
