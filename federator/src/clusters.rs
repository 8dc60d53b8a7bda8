//! What agents told of their Kubernetes clusters, for the table `cluster_objects` of `weft sql`.
//!
//! It is kept in memory only: with every session an agent tells everything anew ([`weft_wire::cluster`]), so after a restart
//! the table is whole again as soon as the agents are back.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use weft_wire::Timestamp;
use weft_wire::cluster::{ClusterBatch, ClusterEvent, ClusterObject, ObjectKind};

/// Most clusters known. What is told of further ones is refused, and counted.
pub const MAX_CLUSTERS: usize = 256;
/// Most objects of all clusters, of some 600 bytes each. Further ones are refused, and counted.
pub const MAX_OBJECTS: usize = 131_072;

/// See the module.
#[derive(Debug, Default)]
pub struct Clusters(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    clusters: BTreeMap<String, Cluster>,
    objects: usize,
    refused: u64,
}

#[derive(Debug, Default)]
struct Cluster {
    kinds: BTreeMap<ObjectKind, Kind>,
}

#[derive(Debug, Default)]
struct Kind {
    /// By uid, with the list that named it last.
    objects: BTreeMap<String, (u64, Told)>,
    /// Number of the list that is under way or was the last.
    list: u64,
}

/// An object and where it was told.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Told {
    /// The cluster.
    pub cluster: String,
    /// When it was told last.
    pub at: Timestamp,
    /// The object.
    pub object: ClusterObject,
}

impl Clusters {
    /// Takes what an agent tells.
    pub fn apply(&self, at: Timestamp, batch: ClusterBatch) {
        let mut state = self.state();
        for event in batch.events {
            state.apply(&batch.cluster, at, event);
        }
    }

    /// Every object.
    pub fn all(&self) -> Vec<Told> {
        let state = self.state();
        let kinds = state
            .clusters
            .values()
            .flat_map(|cluster| cluster.kinds.values());
        kinds
            .flat_map(|kind| kind.objects.values())
            .map(|(_, told)| told.clone())
            .collect()
    }

    /// Objects known, and how many were refused.
    pub fn counts(&self) -> (usize, u64) {
        let state = self.state();
        (state.objects, state.refused)
    }

    /// Nothing that panics holds this lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, cluster: &str, at: Timestamp, event: ClusterEvent) {
        if !self.clusters.contains_key(cluster) && self.clusters.len() >= MAX_CLUSTERS {
            self.refused += 1;
            return;
        }
        let kinds = &mut self.clusters.entry(cluster.to_owned()).or_default().kinds;
        match event {
            ClusterEvent::Begin(kind) => kinds.entry(kind).or_default().list += 1,
            ClusterEvent::Put(mut object) => {
                object.limit();
                let kind = kinds.entry(object.kind).or_default();
                let known = kind.objects.contains_key(&object.uid);
                if !known && self.objects >= MAX_OBJECTS {
                    self.refused += 1;
                    return;
                }
                self.objects += usize::from(!known);
                let told = Told {
                    cluster: cluster.to_owned(),
                    at,
                    object,
                };
                kind.objects
                    .insert(told.object.uid.clone(), (kind.list, told));
            }
            ClusterEvent::Gone(kind, uid) => {
                let gone = kinds
                    .get_mut(&kind)
                    .and_then(|kind| kind.objects.remove(&uid));
                self.objects -= usize::from(gone.is_some());
            }
            ClusterEvent::End(kind) => {
                let Some(kind) = kinds.get_mut(&kind) else {
                    return;
                };
                let (before, list) = (kind.objects.len(), kind.list);
                kind.objects.retain(|_, (named, _)| *named == list);
                self.objects -= before - kind.objects.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(uid: &str) -> ClusterObject {
        ClusterObject {
            kind: ObjectKind::Service,
            namespace: "shop".into(),
            name: format!("web-{uid}"),
            uid: uid.into(),
            of: String::new(),
            sort: String::new(),
            addresses: Vec::new(),
            ports: Vec::new(),
            hosts: Vec::new(),
            refers_to: Vec::new(),
        }
    }

    fn told(clusters: &Clusters, cluster: &str, events: Vec<ClusterEvent>) {
        let cluster = cluster.to_owned();
        clusters.apply(Timestamp(1), ClusterBatch { cluster, events });
    }

    fn names(clusters: &Clusters) -> Vec<String> {
        let all = clusters.all().into_iter();
        all.map(|told| format!("{}/{}", told.cluster, told.object.uid))
            .collect()
    }

    const SERVICE: ObjectKind = ObjectKind::Service;

    #[test]
    fn a_snapshot_replaces_what_it_does_not_name() {
        use ClusterEvent::{Begin, End, Gone, Put};
        let clusters = Clusters::default();
        told(
            &clusters,
            "a",
            vec![
                Begin(SERVICE),
                Put(object("1")),
                Put(object("2")),
                End(SERVICE),
            ],
        );
        told(&clusters, "b", vec![Put(object("1"))]);
        told(
            &clusters,
            "a",
            vec![
                Put(object("3")),
                Gone(SERVICE, "2".into()),
                Gone(SERVICE, "9".into()),
            ],
        );
        assert_eq!(names(&clusters), ["a/1", "a/3", "b/1"]);
        // Begun twice: only the second counts, and nothing is gone before its end.
        told(
            &clusters,
            "a",
            vec![
                Begin(SERVICE),
                Put(object("1")),
                Begin(SERVICE),
                Put(object("3")),
            ],
        );
        assert_eq!(names(&clusters), ["a/1", "a/3", "b/1"]);
        told(&clusters, "a", vec![End(SERVICE)]);
        assert_eq!(names(&clusters), ["a/3", "b/1"]);
        assert_eq!(clusters.counts(), (2, 0));
    }

    #[test]
    fn there_is_a_limit() {
        let clusters = Clusters::default();
        let events = (0..MAX_OBJECTS + 3).map(|at| ClusterEvent::Put(object(&at.to_string())));
        told(&clusters, "a", events.collect());
        assert_eq!(clusters.counts(), (MAX_OBJECTS, 3));
        for at in 0..MAX_CLUSTERS + 1 {
            told(
                &clusters,
                &format!("c{at}"),
                vec![ClusterEvent::Begin(SERVICE)],
            );
        }
        assert_eq!(clusters.counts().1, 3 + 2);
    }
}
