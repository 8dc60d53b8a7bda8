use proptest::prelude::*;
use serde_json::json;

use super::*;

fn object(value: serde_json::Value) -> PodObject {
    serde_json::from_value(value).unwrap()
}

/// A pod with a container `app`, whose id is given.
fn pod(uid: &str, id: &str, phase: &str) -> PodObject {
    object(json!({
        "metadata": {
            "name": format!("web-{uid}"), "namespace": "shop", "uid": uid, "resourceVersion": "5",
            "creationTimestamp": null,
            "labels": {"app": "web", "tier": "front", "pod-template-hash": "6d9c"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(1000)},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-6d9c", "controller": true}],
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "app", "image": "web:1"}], "initContainers": null},
        "status": {"phase": phase, "containerStatuses": [
            {"name": "app", "image": "sha256:77", "containerID": format!("containerd://{id}"), "lastState": {}},
        ]},
    }))
}

fn index() -> PodIndex {
    PodIndex::new("n1", &["app".into(), "absent".into()])
}

#[test]
fn a_container_is_found_with_its_pod() {
    let mut index = index();
    index.apply(&pod("u1", "c1", "Running"), 0);
    let found = index.find(["c0", "c1"], None).unwrap();
    assert_eq!(
        found,
        Pod {
            namespace: "shop".into(),
            name: "web-u1".into(),
            uid: "u1".into(),
            owner_kind: "Deployment".into(),
            owner_name: "web".into(),
            labels: vec![("app".into(), "web".into())],
            container: "app".into(),
            image: "web:1".into(),
        }
    );
    let by_uid = index.find([], Some("u1")).unwrap();
    assert_eq!(
        (by_uid.name.as_str(), by_uid.container.as_str()),
        ("web-u1", "")
    );
    assert_eq!(index.find(["c2"], Some("u2")), None);
}

#[test]
fn a_static_pod_is_found_by_the_hash_in_its_cgroup() {
    let mut index = index();
    let mut object = pod("u1", "c1", "Running");
    object.metadata.annotations.config_hash = "5f2b".into();
    index.apply(&object, 0);
    assert_eq!(index.find([], Some("5f2b")).unwrap().uid, "u1");
}

#[test]
fn what_is_gone_is_kept_for_a_while() {
    let mut index = index();
    index.apply(&pod("u1", "c1", "Running"), 0);
    index.apply(&pod("u2", "c2", "Running"), 0);
    index.apply(&pod("u3", "c3", "Succeeded"), 0);
    index.remove("u1", 1_000);
    index.expire(GRACE_MS - 1);
    assert_eq!(index.len(), 3);
    index.expire(GRACE_MS);
    assert_eq!((index.find(["c3"], None), index.len()), (None, 2));
    index.expire(GRACE_MS + 1_000);
    assert!(index.find(["c1"], None).is_none() && index.find(["c2"], None).is_some());
    assert_eq!((index.containers.len(), index.hashes.len()), (1, 0));
}

#[test]
fn a_list_marks_what_it_does_not_name() {
    let mut index = index();
    index.apply(&pod("u1", "c1", "Running"), 0);
    index.apply(&pod("u2", "c2", "Running"), 0);
    index.begin();
    index.apply(&pod("u1", "c1", "Running"), 10);
    // The list is begun again: its pages count no more.
    index.begin();
    index.apply(&pod("u2", "c2", "Running"), 20);
    index.end(20);
    index.expire(20 + GRACE_MS);
    assert!(index.find(["c1"], None).is_none() && index.find(["c2"], None).is_some());
}

#[test]
fn a_restarted_container_is_known_by_both_ids() {
    let mut index = index();
    index.apply(&pod("u1", "c1", "Running"), 0);
    index.apply(&pod("u1", "c2", "Running"), 0);
    assert!(index.find(["c1"], None).is_some() && index.find(["c2"], None).is_some());
    for run in 0..100 {
        index.apply(&pod("u1", &format!("r{run}"), "Running"), 0);
    }
    assert_eq!(index.containers.len(), MAX_CONTAINERS);
    assert_eq!(
        index.counts().containers_dropped,
        102 - MAX_CONTAINERS as u64
    );
    assert!(index.find(["r99"], None).is_some() && index.find(["c1"], None).is_none());
}

#[test]
fn generations_change_with_answers_only() {
    let mut index = index();
    index.apply(&pod("u1", "c1", "Running"), 0);
    let first = index.generation();
    index.apply(&pod("u1", "c1", "Running"), 5);
    assert_eq!(index.generation(), first);
    index.apply(&pod("u1", "c2", "Running"), 5);
    assert_ne!(index.generation(), first);
}

#[test]
fn there_is_a_limit_and_what_is_gone_makes_room() {
    let mut index = index();
    for at in 0..10_000 {
        index.apply(&pod(&format!("u{at}"), &format!("c{at}"), "Running"), at);
    }
    assert_eq!((index.len(), index.containers.len()), (MAX_PODS, MAX_PODS));
    assert_eq!(index.counts().refused, 10_000 - MAX_PODS as u64);
    index.remove("u7", 1);
    index.apply(&pod("new", "cn", "Running"), 2);
    assert_eq!((index.len(), index.counts().evicted), (MAX_PODS, 1));
    assert!(index.find(["cn"], None).is_some() && index.find(["c7"], None).is_none());
}

#[test]
fn other_nodes_pods_are_not_taken() {
    let mut index = PodIndex::new("n2", &[]);
    index.apply(&pod("u1", "c1", "Running"), 0);
    assert_eq!((index.len(), index.counts().foreign), (0, 1));
}

#[test]
fn long_texts_are_cut_between_characters() {
    assert_eq!(text(&"ü".repeat(MAX_TEXT_BYTES)).len(), MAX_TEXT_BYTES);
    assert_eq!(
        text(&format!("a{}", "ü".repeat(MAX_TEXT_BYTES))).len(),
        MAX_TEXT_BYTES - 1
    );
}

proptest! {
    /// Whatever happens, the side tables hold what the pods hold.
    #[test]
    fn tables_agree(steps in proptest::collection::vec((0_u8..6, 0_u8..5, 0_u8..4), 0..120)) {
        let mut index = index();
        let mut now = 0;
        for (what, uid, id) in steps {
            now += GRACE_MS / 4;
            let (uid, id) = (format!("u{uid}"), format!("c{uid}-{id}"));
            match what {
                0 => index.begin(),
                1 => index.end(now),
                2 => index.remove(&uid, now),
                3 => index.expire(now),
                4 => index.apply(&pod(&uid, &id, "Failed"), now),
                _ => index.apply(&pod(&uid, &id, "Running"), now),
            }
            let held: usize = index.pods.values().map(|known| known.containers.len()).sum();
            prop_assert_eq!(held, index.containers.len());
            for uid in index.containers.values() {
                prop_assert!(index.pods.contains_key(uid));
            }
        }
    }
}
