//! The pods of a node, from a server that behaves as the real one and fails as it can.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod server;

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStatus, Pod, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    ManagedFieldsEntry, ObjectMeta, OwnerReference, Time,
};
use server::{Fault, Server};
use weft_kubernetes::index::MAX_PODS;
use weft_kubernetes::{Api, Pods, Settings};

const PODS: &str = "/api/v1/pods";

/// A pod as the API server sends it, with what makes real ones large.
fn pod(uid: &str, node: &str) -> Pod {
    let name = format!("checkout-6d9c8b7f5-{uid}");
    Pod {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some("shop".into()),
            uid: Some(uid.into()),
            creation_timestamp: Some(Time("2026-11-22T15:28:55Z".parse().unwrap())),
            labels: Some(
                [
                    ("app".into(), "checkout".into()),
                    ("pod-template-hash".into(), "6d9c8b7f5".into()),
                ]
                .into(),
            ),
            annotations: Some(
                [(
                    "kubectl.kubernetes.io/last-applied-configuration".into(),
                    "{\"items\":[{\"a\":\"}]\"}]}".repeat(100),
                )]
                .into(),
            ),
            owner_references: Some(vec![OwnerReference {
                api_version: "apps/v1".into(),
                kind: "ReplicaSet".into(),
                name: "checkout-6d9c8b7f5".into(),
                uid: "rs".into(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            managed_fields: Some(vec![
                ManagedFieldsEntry {
                    manager: Some("kubelet".into()),
                    operation: Some("Update".into()),
                    ..Default::default()
                };
                4
            ]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some(node.into()),
            containers: vec![Container {
                name: "app".into(),
                image: Some("registry.example/checkout:1.2".into()),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".into()),
            container_statuses: Some(vec![ContainerStatus {
                name: "app".into(),
                image: "sha256:77".into(),
                container_id: Some(format!("containerd://{}", container(uid))),
                state: Some(ContainerState {
                    running: Some(ContainerStateRunning::default()),
                    ..ContainerState::default()
                }),
                ..ContainerStatus::default()
            }]),
            ..PodStatus::default()
        }),
    }
}

fn container(uid: &str) -> String {
    format!("{:0>64}", uid.trim_start_matches('u'))
}

struct World {
    server: Server,
    pods: Pods,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    async fn start(server: Server) -> Self {
        let file = server.kubeconfig();
        let settings = Settings {
            kubeconfig: Some(file.path().into()),
            context: None,
        };
        let api = Api::connect(&settings).await.unwrap();
        let pods = Pods::new("n1", &["app".into()]);
        let following = pods.clone();
        let task = tokio::spawn(async move { following.follow(&api, "n1", 7).await });
        Self { server, pods, task }
    }

    fn knows(&self, uid: &str) -> bool {
        self.pods.find([container(uid).as_str()], None).is_some()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..1_500 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let requests = self.server.requests("");
        panic!(
            "{what} did not come about: {:?} {requests:#?}",
            self.pods.source()
        );
    }

    async fn until_known(&self, uid: &str) {
        self.until(uid, |world| world.knows(uid)).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn listed_then_watched() {
    let server = Server::start().await;
    server.put(PODS, pod("u1", "n1"));
    server.put(PODS, pod("u2", "n2"));
    let world = World::start(server).await;
    world.until_known("u1").await;
    let found = world.pods.find([container("u1").as_str()], None).unwrap();
    assert_eq!(
        (
            found.namespace.as_str(),
            found.owner_kind.as_str(),
            found.owner_name.as_str(),
            found.container.as_str()
        ),
        ("shop", "Deployment", "checkout", "app")
    );
    assert_eq!(
        (found.image.as_str(), found.labels),
        (
            "registry.example/checkout:1.2",
            vec![("app".into(), "checkout".into())]
        )
    );
    assert!(!world.knows("u2"));
    world.server.put(PODS, pod("u3", "n1"));
    world.until_known("u3").await;
    let lists = world.server.requests("limit");
    assert_eq!(
        lists,
        ["GET /api/v1/pods?fieldSelector=spec.nodeName%3Dn1&limit=500&resourceVersion=0"]
    );
    let source = world.pods.source();
    assert!(source.live && source.name == "API server", "{source:?}");
}

#[tokio::test]
async fn a_deleted_pod_is_still_known_for_a_while() {
    let server = Server::start().await;
    server.put(PODS, pod("u1", "n1"));
    let world = World::start(server).await;
    world.until_known("u1").await;
    world.server.delete(PODS, "u1");
    world.server.put(PODS, pod("u2", "n1"));
    world.until_known("u2").await;
    assert!(world.knows("u1"));
}

#[tokio::test]
async fn a_cut_watch_goes_on_from_the_last_bookmark() {
    let server = Server::start().await;
    server.put(PODS, pod("u1", "n1"));
    let world = World::start(server).await;
    world.until_known("u1").await;
    world
        .until("a watch", |world| {
            !world.server.requests("watch=true").is_empty()
        })
        .await;
    world.server.bookmark(PODS);
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.server.cut_watches();
    world
        .until("a second watch", |world| {
            world.server.requests("watch=true").len() > 1
        })
        .await;
    world.server.put(PODS, pod("u2", "n1"));
    world.until_known("u2").await;
    let watches = world.server.requests("watch=true");
    assert!(watches[0].contains("resourceVersion=1001&"), "{watches:?}");
    assert!(watches[1].contains("resourceVersion=1002&"), "{watches:?}");
    assert_eq!(world.server.requests("limit").len(), 1);
}

/// The line that was cut is sent again by the next watch.
#[tokio::test]
async fn a_watch_cut_within_a_line_loses_nothing() {
    let server = Server::start().await;
    server.put(PODS, pod("u1", "n1"));
    server.fail_watch(Fault::Hangup);
    let world = World::start(server).await;
    world.until_known("u1").await;
    world.server.put(PODS, pod("u2", "n1"));
    world.server.put(PODS, pod("u3", "n1"));
    let line = serde_json::to_string(&pod("u2", "n1")).unwrap().len();
    world.server.fail_watch(Fault::Cut(line + 300));
    world.server.cut_watches();
    world.until_known("u2").await;
    world.until_known("u3").await;
    assert_eq!(world.server.requests("limit").len(), 1);
}

#[tokio::test]
async fn a_version_that_is_gone_lists_again() {
    for fault in [Fault::GoneStatus, Fault::GoneEvent] {
        let server = Server::start().await;
        server.put(PODS, pod("u1", "n1"));
        server.put(PODS, pod("u2", "n1"));
        let world = World::start(server).await;
        world.until_known("u2").await;
        world
            .until("a watch", |world| {
                world.server.state.lock().unwrap().watches == 1
            })
            .await;
        world.server.fail_watch(fault);
        world.server.cut_watches();
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.server.delete(PODS, "u1");
        world.server.put(PODS, pod("u3", "n1"));
        world.server.compact();
        world.until_known("u3").await;
        let lists = world.server.requests("limit");
        // What must be newer than what was known does not come from a cache.
        assert_eq!(
            lists[1..],
            ["GET /api/v1/pods?fieldSelector=spec.nodeName%3Dn1&limit=500"],
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn a_token_that_expires_between_pages_begins_the_list_again() {
    let server = Server::start().await;
    for at in 0..1_000 {
        server.put(PODS, pod(&format!("u{at}"), "n1"));
    }
    let world = {
        // The second request meets 410.
        server.fail_list(Fault::Empty);
        server.fail_list(Fault::GoneStatus);
        World::start(server).await
    };
    world.until_known("u999").await;
    world
        .until("the whole list", |world| world.pods.source().live)
        .await;
    assert_eq!(world.pods.len(), 1_000);
}

#[tokio::test]
async fn a_busy_server_is_asked_again_when_it_said() {
    let server = Server::start().await;
    server.put(PODS, pod("u1", "n1"));
    server.fail_list(Fault::Busy(2));
    let world = World::start(server).await;
    world
        .until("a failure", |world| world.pods.failures() == 1)
        .await;
    let begun = std::time::Instant::now();
    assert!(
        world.pods.source().problem.contains("429"),
        "{:?}",
        world.pods.source()
    );
    world.until_known("u1").await;
    assert!(begun.elapsed() > Duration::from_millis(1_500));
    assert!(world.pods.source().live || world.pods.failures() == 1);
}

#[tokio::test]
async fn whatever_breaks_is_tried_again() {
    let server = Server::start().await;
    server.put(PODS, pod("u1", "n1"));
    for fault in [Fault::Broken, Fault::Hangup, Fault::Cut(700)] {
        server.fail_list(fault);
    }
    server.fail_watch(Fault::Broken);
    server.fail_watch(Fault::Empty);
    let world = World::start(server).await;
    world.until_known("u1").await;
    world.server.put(PODS, pod("u2", "n1"));
    world.until_known("u2").await;
    assert!(world.pods.failures() >= 4, "{}", world.pods.failures());
}

#[tokio::test]
async fn what_is_not_allowed_is_said_in_the_servers_words() {
    let server = Server::start().await;
    server.fail_list(Fault::Forbidden);
    let world = World::start(server).await;
    world
        .until("a failure", |world| world.pods.failures() == 1)
        .await;
    let source = world.pods.source();
    assert!(
        !source.live && source.problem.contains("cannot list resource"),
        "{source:?}"
    );
}

/// Ten thousand pods that claim to run on this node: pages, a limit, and memory that stays within it. The client is a
/// process of its own, so that only its memory counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_bounded() {
    let server = Server::start().await;
    for at in 0..10_000 {
        server.put(PODS, pod(&format!("u{at}"), "n1"));
    }
    let file = server.kubeconfig();
    let mut client = tokio::process::Command::new(std::env::current_exe().unwrap());
    client
        .args(["--exact", "flooded", "--ignored", "--nocapture"])
        .env("WEFT_TEST_KUBECONFIG", file.path());
    let output = client.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let figures: Vec<u64> = said
        .lines()
        .find_map(|line| line.strip_prefix("figures "))
        .unwrap()
        .split(' ')
        .map(|figure| figure.parse().unwrap())
        .collect();
    let [pods, refused, before, after] = figures[..] else {
        panic!("{said}")
    };
    assert_eq!((pods, refused), (MAX_PODS as u64, 10_000 - MAX_PODS as u64));
    assert_eq!(server.requests("limit=500").len(), 20);
    let sent = server.state.lock().unwrap().list_bytes;
    println!(
        "{} KB of lists, peak of resident memory {before} KB before, {after} KB after",
        sent / 1024
    );
    assert!(after - before < 16 * 1024, "{before} KB to {after} KB");
    assert!(sent / 1024 > 2 * 16 * 1024, "{sent} bytes prove nothing");
}

/// The other process of [`a_flood_is_bounded`].
#[tokio::test]
#[ignore = "started by a_flood_is_bounded"]
async fn flooded() {
    let Some(kubeconfig) = std::env::var_os("WEFT_TEST_KUBECONFIG") else {
        return;
    };
    let settings = Settings {
        kubeconfig: Some(kubeconfig.into()),
        context: None,
    };
    let api = Api::connect(&settings).await.unwrap();
    let pods = Pods::new("n1", &["app".into()]);
    let before = peak_kb();
    let following = pods.clone();
    let task = tokio::spawn(async move { following.follow(&api, "n1", 7).await });
    while !pods.source().live {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    task.abort();
    println!(
        "\nfigures {} {} {before} {}",
        pods.len(),
        pods.counts().refused,
        peak_kb()
    );
}

fn peak_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A server that does not know the field selector.
#[tokio::test]
async fn other_nodes_pods_are_left_out_also_when_they_are_sent() {
    let server = Server::start().await;
    for at in 0..600 {
        server.put(
            PODS,
            pod(&format!("u{at}"), if at % 100 == 0 { "n1" } else { "n2" }),
        );
    }
    server.state.lock().unwrap().ignores_selectors = true;
    let world = World::start(server).await;
    world
        .until("the whole list", |world| world.pods.source().live)
        .await;
    assert_eq!((world.pods.len(), world.pods.counts().foreign), (6, 594));
}

/// A client for TLS can be made: there is one provider of cryptography, and it is chosen.
#[tokio::test]
async fn tls_has_its_provider() {
    let api = Api::kubelet("https://127.0.0.1:1", None, None)
        .await
        .unwrap();
    let failed = api.get::<serde_json::Value>("/pods").await.unwrap_err();
    assert_eq!(failed.status, 0, "{failed}");
}
