//! A pod from its process to an answer: a process in a container's cgroup, an agent that hears of pods from an API server, a
//! federator, and `weft sql`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

#[path = "../../../kubernetes/tests/server/mod.rs"]
#[allow(dead_code, reason = "it can fail in more ways than this needs")]
mod server;

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::ok;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use server::Server;
use tokio::sync::oneshot;
use weft_lab::topology::{self, Flow};
use weft_lab::weft::{ClusterNode, Settings, Weft};
use weft_lab::workload::{LARGE_BYTES, Server as Web};
use weft_lab::{Host, wait};

const NODE: &str = "node-1";
const PODS: &str = "/api/v1/pods";

/// An API server in a host's network, on a thread of its own; ends when dropped.
struct Cluster {
    server: Server,
    kubeconfig: tempfile::NamedTempFile,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Cluster {
    fn start(host: &Host) -> Self {
        let netns = format!("/run/netns/{}", host.netns());
        let (made, server) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let netns = File::open(netns).expect("the host's network");
            setns(netns, CloneFlags::CLONE_NEWNET).expect("entering it");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                made.send(Server::start().await).expect("somebody waits");
                let _ = stopped.await;
            });
        });
        let server: Server = server.recv().expect("a server");
        Self {
            kubeconfig: server.kubeconfig(),
            server,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A pod of a Deployment with one container, as the API server sends it.
struct Pod {
    uid: &'static str,
    container: String,
}

impl Pod {
    fn new(uid: &'static str, digit: &str) -> Self {
        Self {
            uid,
            container: digit.repeat(64),
        }
    }

    fn name(&self) -> String {
        format!("checkout-6d9c8b7f5-{}", &self.uid[..5])
    }

    fn object(&self) -> Value {
        json!({
            "metadata": {"name": self.name(), "namespace": "shop", "uid": self.uid, "labels": {"app": "checkout", "pod-template-hash": "6d9c8b7f5"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "checkout-6d9c8b7f5",
                    "uid": "rs", "controller": true}]},
            "spec": {"nodeName": NODE, "containers": [{"name": "app", "image": "registry.example/checkout:1.2"}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "app", "image": "sha256:77",
                "containerID": format!("containerd://{}", self.container)}]}
        })
    }

    /// Makes the cgroup that containerd would.
    fn cgroup(&self, host: &Host) -> PathBuf {
        let uid = self.uid.replace('-', "_");
        let path = host.cgroup().join(format!(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/cri-containerd-{}.scope",
            self.container
        ));
        fs::create_dir_all(&path).expect("a cgroup");
        path
    }

    /// Fetches a file from within the container; `limit` is curl's option for a rate.
    fn fetch(&self, flow: &Flow, file: &str, limit: &str) -> weft_lab::Result<String> {
        let script = "echo $$ > \"$0/cgroup.procs\" && exec curl -q -sS -o /dev/null -w '%{local_port}' --limit-rate \"$1\" \"$2\"";
        let (cgroup, url) = (
            self.cgroup(&flow.client),
            format!("http://{}/{file}", flow.target),
        );
        let words = ["-c", script, &cgroup.to_string_lossy(), limit, &url];
        flow.client.run("sh", &words)
    }
}

/// What is known of the client of the connection from a port.
fn asked(weft: &Weft<'_>, port: &str) -> weft_lab::Result<Option<Value>> {
    let query = format!(
        "SELECT client_namespace, client_pod, client_pod_owner_kind, client_pod_owner, client_pod_container, \
         client_container, client_image, client_workload, client_process, server_process FROM connection \
         WHERE client_port = {port} AND evidence IS NOT NULL"
    );
    let answer = weft.json(&["sql", &query])?;
    Ok(answer["rows"]
        .as_array()
        .and_then(|rows| rows.first())
        .cloned())
}

/// Waits until that is the pod, with all that the API server says of it.
fn told(weft: &Weft<'_>, port: &str, pod: &Pod) {
    let expected = json!({
        "client_namespace": "shop", "client_pod": pod.name(), "client_pod_owner_kind": "Deployment",
        "client_pod_owner": "checkout", "client_pod_container": "app", "client_container": pod.container,
        "client_image": "registry.example/checkout:1.2", "client_workload": "checkout",
        "client_process": "curl", "server_process": "nginx"
    });
    let row = ok(wait::until(
        "the pod in an answer",
        Duration::from_secs(30),
        || {
            Ok(match asked(weft, port)? {
                Some(row) if row == expected => Ok(row),
                other => Err(format!("{other:?}")),
            })
        },
    ));
    println!("{row}");
}

/// One pod is known before it connects, the other only when its connection stands already.
#[test]
fn a_pods_process_is_told_with_its_owner() {
    let topology = ok(topology::two_clouds());
    let flow = &topology.flows[0];
    let cluster = Cluster::start(&flow.client);
    let early = Pod::new("2ad1f2a6-6d6b-4c0e-9a3b-0f6a6e1f9d11", "a");
    let late = Pod::new("7c0b9e52-1111-4c0e-9a3b-0f6a6e1f9d22", "b");
    cluster.server.put(PODS, early.object());
    let node = ClusterNode {
        host: flow.client.name().into(),
        node: NODE.into(),
        kubeconfig: cluster.kubeconfig.path().into(),
        labels: vec!["app".into()],
    };
    let weft = ok(Weft::start_in(&topology, Settings::default(), Some(node)));
    let _web = ok(Web::nginx(&flow.server, &[flow.service]));
    ok(wait::until("a watch", Duration::from_secs(30), || {
        let watches = cluster.server.state.lock().expect("unpoisoned").watches;
        Ok(if watches > 0 {
            Ok(())
        } else {
            Err("none".into())
        })
    }));
    let port = ok(early.fetch(flow, "small", "1G"));
    told(&weft, &port, &early);

    let rate = (LARGE_BYTES / 6).to_string();
    let port = thread::scope(|scope| {
        let slow = scope.spawn(|| ok(late.fetch(flow, "large", &rate)));
        let opened =
            "SELECT count(*) AS n FROM connection WHERE state = 'open' AND client_process = 'curl'";
        ok(wait::until("it to stand", Duration::from_secs(30), || {
            let answer = weft.json(&["sql", opened])?;
            Ok(match answer["rows"][0]["n"].as_u64() {
                Some(1..) => Ok(()),
                other => Err(format!("{other:?}")),
            })
        }));
        cluster.server.put(PODS, late.object());
        slow.join().expect("curl")
    });
    told(&weft, &port, &late);
    let watched = cluster.server.requests("fieldSelector=spec.nodeName");
    assert!(!watched.is_empty(), "only this node's pods are asked for");
}
