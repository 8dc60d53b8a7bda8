//! Which pod and container an id or a uid belongs to. Pure: time comes in, in milliseconds of any monotonic clock.
//!
//! Inputs: [`PodIndex::begin`], [`PodIndex::apply`] for each listed pod, [`PodIndex::end`], which marks what was not listed
//! as gone; [`PodIndex::apply`] and [`PodIndex::remove`] for events; [`PodIndex::expire`] now and then. Outputs:
//! [`PodIndex::find`], and [`PodIndex::generation`], which changes when an earlier answer might.
//!
//! What is gone is kept for [`GRACE_MS`]: its connections are still reported after its end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use weft_wire::Pod;
use weft_wire::model::MAX_LABELS;

use crate::object::{ContainerSpec, ContainerStatus, PodObject};
use crate::owner;

/// How long a pod that is gone is still known.
pub const GRACE_MS: u64 = 120_000;
/// Most pods known, gone ones included. A node is made for 110, at most some hundreds. Full: those gone longest make room;
/// where none is gone, new ones are refused and counted.
pub const MAX_PODS: usize = 1_024;
/// Most containers of a pod, those of earlier runs included. Beyond it the oldest are forgotten and counted.
pub const MAX_CONTAINERS: usize = 32;
/// Longest name, label or image that is kept; what is longer is cut. The API server allows 253, 63 and (of images) more.
pub const MAX_TEXT_BYTES: usize = 512;

/// What happened to the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods not taken because [`MAX_PODS`] were known.
    pub refused: u64,
    /// Pods gone that were forgotten early to make room.
    pub evicted: u64,
    /// Containers forgotten because their pod had [`MAX_CONTAINERS`].
    pub containers_dropped: u64,
    /// Pods of other nodes, which a server that does as it is asked does not send.
    pub foreign: u64,
}

/// See the module.
#[derive(Debug)]
pub struct PodIndex {
    node: String,
    labels: Vec<String>,
    pods: HashMap<String, Known>,
    containers: HashMap<String, String>,
    /// Static pods: the hash that stands in cgroups to the uid of the mirror.
    hashes: HashMap<String, String>,
    listed: Option<HashSet<String>>,
    generation: u64,
    counts: Counts,
}

#[derive(Debug)]
struct Known {
    pod: Arc<Pod>,
    hash: String,
    /// Oldest first.
    containers: Vec<Container>,
    gone_at_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Container {
    id: String,
    name: String,
    image: String,
}

impl PodIndex {
    /// Knows nothing yet. Takes pods of `node` only (empty: any), and keeps these labels of them.
    pub fn new(node: &str, labels: &[String]) -> Self {
        Self {
            node: node.to_owned(),
            labels: labels.iter().take(MAX_LABELS).cloned().collect(),
            pods: HashMap::new(),
            containers: HashMap::new(),
            hashes: HashMap::new(),
            listed: None,
            generation: 0,
            counts: Counts::default(),
        }
    }

    /// A list begins, again from its first page if one was under way.
    pub fn begin(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// A list is complete: what it did not name is gone.
    pub fn end(&mut self, now_ms: u64) {
        let Some(listed) = self.listed.take() else {
            return;
        };
        for (uid, known) in &mut self.pods {
            if !listed.contains(uid) {
                known.gone_at_ms.get_or_insert(now_ms);
            }
        }
    }

    /// A pod as it is now.
    pub fn apply(&mut self, object: &PodObject, now_ms: u64) {
        let uid = &object.metadata.uid;
        if !self.node.is_empty() && object.spec.node_name != self.node {
            self.counts.foreign += 1;
            return;
        }
        if uid.is_empty() || !(self.pods.contains_key(uid) || self.make_room()) {
            return;
        }
        if let Some(listed) = &mut self.listed {
            listed.insert(uid.clone());
        }
        let pod = self.pod(object);
        let hash = text(&object.metadata.annotations.config_hash);
        let before = self.pods.remove(uid);
        let (mut containers, gone_at_ms) = match &before {
            Some(known) => (known.containers.clone(), known.gone_at_ms),
            None => (Vec::new(), None),
        };
        merge(&mut containers, object);
        let surplus = containers.len().saturating_sub(MAX_CONTAINERS);
        for dropped in containers.drain(..surplus) {
            self.containers.remove(&dropped.id);
            self.counts.containers_dropped += 1;
        }
        for container in &containers {
            self.containers.insert(container.id.clone(), uid.clone());
        }
        if !hash.is_empty() {
            self.hashes.insert(hash.clone(), uid.clone());
        }
        let changed = |known: &Known| {
            *known.pod != pod || known.containers != containers || known.hash != hash
        };
        if before.as_ref().is_none_or(changed) {
            self.generation += 1;
        }
        let known = Known {
            pod: Arc::new(pod),
            hash,
            containers,
            gone_at_ms: object.terminated().then(|| gone_at_ms.unwrap_or(now_ms)),
        };
        self.pods.insert(uid.clone(), known);
    }

    /// A pod is no more.
    pub fn remove(&mut self, uid: &str, now_ms: u64) {
        if let Some(known) = self.pods.get_mut(uid) {
            known.gone_at_ms.get_or_insert(now_ms);
        }
    }

    /// Forgets what has been gone for long.
    pub fn expire(&mut self, now_ms: u64) {
        let old: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, known)| {
                known
                    .gone_at_ms
                    .is_some_and(|gone_at_ms| now_ms.saturating_sub(gone_at_ms) >= GRACE_MS)
            })
            .map(|(uid, _)| uid.clone())
            .collect();
        old.iter().for_each(|uid| self.forget(uid));
    }

    /// The pod of the first of these containers that is known, or of a uid as a cgroup carries it. By the uid alone the
    /// container within the pod is not known, and its name and image are empty.
    pub fn find<'a>(
        &self,
        containers: impl IntoIterator<Item = &'a str>,
        uid: Option<&str>,
    ) -> Option<Pod> {
        let by_container = containers.into_iter().find_map(|id| {
            let known = self.pods.get(self.containers.get(id)?)?;
            let container = known
                .containers
                .iter()
                .find(|container| container.id == id)?;
            Some(Pod {
                container: container.name.clone(),
                image: container.image.clone(),
                ..Pod::clone(&known.pod)
            })
        });
        by_container.or_else(|| {
            let uid = uid?;
            let uid = self.hashes.get(uid).map_or(uid, String::as_str);
            Some(Pod::clone(&self.pods.get(uid)?.pod))
        })
    }

    /// Changes whenever [`PodIndex::find`] might answer otherwise than before.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Pods known, gone ones included.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn make_room(&mut self) -> bool {
        if self.pods.len() < MAX_PODS {
            return true;
        }
        let oldest = self
            .pods
            .iter()
            .filter_map(|(uid, known)| Some((known.gone_at_ms?, uid.clone())))
            .min();
        match oldest {
            Some((_, uid)) => {
                self.forget(&uid);
                self.counts.evicted += 1;
                true
            }
            None => {
                self.counts.refused += 1;
                false
            }
        }
    }

    fn forget(&mut self, uid: &str) {
        let Some(known) = self.pods.remove(uid) else {
            return;
        };
        for container in &known.containers {
            if self
                .containers
                .get(&container.id)
                .is_some_and(|of| of == uid)
            {
                self.containers.remove(&container.id);
            }
        }
        if self.hashes.get(&known.hash).is_some_and(|of| of == uid) {
            self.hashes.remove(&known.hash);
        }
    }

    fn pod(&self, object: &PodObject) -> Pod {
        let meta = &object.metadata;
        let (owner_kind, owner_name) = owner::top(meta);
        Pod {
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            uid: text(&meta.uid),
            owner_kind: text(&owner_kind),
            owner_name: text(&owner_name),
            labels: self
                .labels
                .iter()
                .filter_map(|label| Some((label.clone(), text(meta.labels.get(label)?))))
                .collect(),
            ..Pod::default()
        }
    }
}

/// Adds the containers that a pod's status names; those of earlier runs stay.
fn merge(containers: &mut Vec<Container>, object: &PodObject) {
    let (spec, status) = (&object.spec, &object.status);
    let images: BTreeMap<&str, &str> = [
        &spec.init_containers,
        &spec.ephemeral_containers,
        &spec.containers,
    ]
    .into_iter()
    .flatten()
    .map(|ContainerSpec { name, image }| (name.as_str(), image.as_str()))
    .collect();
    let statuses = [
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
        &status.container_statuses,
    ];
    for ContainerStatus {
        name,
        image,
        container_id,
        last_state,
    } in statuses.into_iter().flatten()
    {
        // What the pod asks for says more than what the runtime made of it, which may be a bare digest.
        let image = images.get(name.as_str()).copied().unwrap_or(image);
        for id in [&last_state.terminated.container_id, container_id] {
            let id = id.rsplit_once("://").map_or(id.as_str(), |(_, id)| id);
            let known = containers.iter().any(|container| container.id == id);
            if !id.is_empty() && id.len() <= MAX_TEXT_BYTES && !known {
                containers.push(Container {
                    id: id.to_owned(),
                    name: text(name),
                    image: text(image),
                });
            }
        }
    }
}

/// A text within [`MAX_TEXT_BYTES`], cut between characters.
fn text(value: &str) -> String {
    let end = (0..=value.len().min(MAX_TEXT_BYTES))
        .rev()
        .find(|at| value.is_char_boundary(*at))
        .unwrap_or_default();
    value[..end].to_owned()
}

#[cfg(test)]
mod tests;
