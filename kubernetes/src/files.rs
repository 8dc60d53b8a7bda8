//! Pods without an API server: from what container runtimes and the kubelet leave on disk.
//!
//! Read, each where it is there:
//! - `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`, links that the kubelet makes: id to pod and container name;
//! - `/var/log/pods/NAMESPACE_POD_UID/CONTAINER/`: uid to pod;
//! - `/var/lib/docker/containers/ID/config.v2.json`: labels and image;
//! - `config.json` in the state directories of containerd and CRI-O: annotations.
//!
//! None of them says what owns a pod, nor its labels. What a container writes into a log does not get there: only names of
//! files and the runtimes' own files count. Names are checked before they are believed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::object::{ContainerSpec, ContainerStatus, Meta, PodObject, nullable};

/// Most entries of a directory that are looked at; a node has some hundreds of containers.
pub const MAX_ENTRIES: usize = 8_192;
/// Largest file of a runtime that is read.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// What is known of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    id: String,
    image: String,
}

/// Directories in which pods are looked for, all below one root (`/` but in tests).
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

/// Directories of containerd and CRI-O with one directory a container, and where in that its `config.json` is.
const STATE: &[(&str, &str, &str)] = &[
    (
        "containerd",
        "run/containerd/io.containerd.runtime.v2.task/k8s.io",
        "config.json",
    ),
    (
        "containerd of k3s",
        "run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io",
        "config.json",
    ),
    (
        "CRI-O",
        "run/containers/storage/overlay-containers",
        "userdata/config.json",
    ),
    (
        "CRI-O",
        "var/lib/containers/storage/overlay-containers",
        "userdata/config.json",
    ),
];

impl Files {
    /// Below `root`, which is `/` but for tests and agents that see the host's files elsewhere.
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Which of them are there, in words; empty: there is nothing to read.
    pub fn present(&self) -> Vec<&'static str> {
        let kubelet = [
            ("kubelet", "var/log/pods"),
            ("docker", "var/lib/docker/containers"),
        ];
        let state = STATE.iter().map(|(name, directory, _)| (*name, *directory));
        let mut present: Vec<_> = kubelet
            .into_iter()
            .chain(state)
            .filter(|(_, directory)| self.root.join(directory).is_dir())
            .map(|(name, _)| name)
            .collect();
        present.dedup();
        present
    }

    /// Every pod that the files know.
    pub fn read(&self) -> Vec<PodObject> {
        let mut containers: BTreeMap<String, Found> = BTreeMap::new();
        let mut uids: BTreeMap<(String, String), String> = BTreeMap::new();
        for name in names(&self.root.join("var/log/pods")) {
            if let Some((namespace, pod, uid)) = log_directory(&name) {
                uids.insert((namespace, pod), uid);
            }
        }
        for name in names(&self.root.join("var/log/containers")) {
            if let Some(found) = log_link(&name) {
                containers.insert(found.id.clone(), found);
            }
        }
        let docker = self.root.join("var/lib/docker/containers");
        for id in names(&docker) {
            let found = read_json(&docker.join(&id).join("config.v2.json"))
                .and_then(|config| of_docker(&id, config));
            containers.extend(found.map(|found| (id, found)));
        }
        for (_, directory, file) in STATE {
            let directory = self.root.join(directory);
            for id in names(&directory) {
                let found = read_json(&directory.join(&id).join(file))
                    .and_then(|config| of_spec(&id, config));
                containers.extend(found.map(|found| (id, found)));
            }
        }
        pods(containers.into_values(), uids)
    }
}

/// Containers put together to pods. A pod without a known uid cannot be told from its namesakes, and is left out.
fn pods(
    containers: impl Iterator<Item = Found>,
    uids: BTreeMap<(String, String), String>,
) -> Vec<PodObject> {
    let mut pods: BTreeMap<String, PodObject> = BTreeMap::new();
    for found in containers {
        let key = (found.namespace, found.pod);
        let uid = match found.uid.is_empty() {
            true => uids.get(&key).cloned(),
            false => Some(found.uid),
        };
        let Some(uid) = uid else { continue };
        let pod = entry(&mut pods, &key.0, &key.1, uid);
        pod.spec.containers.push(ContainerSpec {
            name: found.container.clone(),
            image: found.image.clone(),
        });
        pod.status.container_statuses.push(ContainerStatus {
            name: found.container,
            image: found.image,
            container_id: found.id,
            ..ContainerStatus::default()
        });
    }
    for ((namespace, name), uid) in uids {
        entry(&mut pods, &namespace, &name, uid);
    }
    pods.into_values().collect()
}

fn entry<'a>(
    pods: &'a mut BTreeMap<String, PodObject>,
    namespace: &str,
    name: &str,
    uid: String,
) -> &'a mut PodObject {
    pods.entry(uid.clone()).or_insert_with(|| PodObject {
        metadata: Meta {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            uid,
            ..Meta::default()
        },
        ..PodObject::default()
    })
}

/// `NAMESPACE_POD_UID`.
fn log_directory(name: &str) -> Option<(String, String, String)> {
    let mut parts = name.split('_');
    let (namespace, pod, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let valid = parts.next().is_none() && is_label(namespace) && is_name(pod) && is_uid(uid);
    valid.then(|| (namespace.to_owned(), pod.to_owned(), uid.to_owned()))
}

/// `POD_NAMESPACE_CONTAINER-ID.log`.
fn log_link(name: &str) -> Option<Found> {
    let mut parts = name.strip_suffix(".log")?.split('_');
    let (pod, namespace, container) = (parts.next()?, parts.next()?, parts.next()?);
    let (container, id) = container.rsplit_once('-')?;
    let valid = parts.next().is_none()
        && is_name(pod)
        && is_label(namespace)
        && is_label(container)
        && is_id(id);
    valid.then(|| Found {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: container.to_owned(),
        id: id.to_owned(),
        ..Found::default()
    })
}

/// What is read of Docker's `config.v2.json` and of an OCI `config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    #[serde(rename = "Config", deserialize_with = "nullable")]
    docker: DockerConfig,
    #[serde(deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DockerConfig {
    #[serde(deserialize_with = "nullable")]
    image: String,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
}

fn of_docker(id: &str, config: RuntimeConfig) -> Option<Found> {
    let label = |key: &str| config.docker.labels.get(key).cloned().unwrap_or_default();
    checked(Found {
        namespace: label("io.kubernetes.pod.namespace"),
        pod: label("io.kubernetes.pod.name"),
        uid: label("io.kubernetes.pod.uid"),
        container: label("io.kubernetes.container.name"),
        id: id.to_owned(),
        image: config.docker.image,
    })
}

/// containerd annotates `io.kubernetes.cri.…`, CRI-O `io.kubernetes.…` as the kubelet labels.
fn of_spec(id: &str, config: RuntimeConfig) -> Option<Found> {
    let first = |keys: &[&str]| {
        keys.iter()
            .find_map(|key| config.annotations.get(*key).cloned())
            .unwrap_or_default()
    };
    checked(Found {
        namespace: first(&[
            "io.kubernetes.cri.sandbox-namespace",
            "io.kubernetes.pod.namespace",
        ]),
        pod: first(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"]),
        uid: first(&["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"]),
        container: first(&[
            "io.kubernetes.cri.container-name",
            "io.kubernetes.container.name",
        ]),
        id: id.to_owned(),
        image: first(&[
            "io.kubernetes.cri.image-name",
            "io.kubernetes.cri-o.ImageName",
            "io.kubernetes.cri-o.Image",
        ]),
    })
}

/// A container of a pod; the pod's sandbox has no name of its own.
fn checked(found: Found) -> Option<Found> {
    let named = is_label(&found.container) && found.container != "POD";
    let valid = is_id(&found.id)
        && is_label(&found.namespace)
        && is_name(&found.pod)
        && (found.uid.is_empty() || is_uid(&found.uid));
    (named && valid).then_some(found)
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .take(MAX_ENTRIES)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn read_json(path: &Path) -> Option<RuntimeConfig> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= MAX_FILE_BYTES)
        .then(|| serde_json::from_slice(&bytes).ok())
        .flatten()
}

fn is_id(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_uid(text: &str) -> bool {
    let digits = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    matches!(text.len(), 32 | 36) && text.bytes().all(digits)
}

/// RFC 1123: what namespaces and containers may be called.
fn is_label(text: &str) -> bool {
    text.len() <= 63 && !text.contains('.') && is_name(text)
}

/// What pods may be called: labels with dots between.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'-' | b'.');
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(allowed)
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::PodIndex;

    const A: &str = "a4f0c3b1c9e8a7d6b5c4f3e2d1c0b9a8f7e6d5c4b3a2f1e0d9c8b7a6f5e4d3c2";
    const UID: &str = "2ad1f2a6-6d6b-4c0e-9a3b-0f6a6e1f9d11";

    fn index(root: &Path) -> PodIndex {
        let mut index = PodIndex::new("", &[]);
        for pod in Files::new(root).read() {
            index.apply(&pod, 0);
        }
        index
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_kubelets_log_files_name_pods_and_containers() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &format!("var/log/pods/shop_web-0_{UID}/app/0.log"),
            "",
        );
        write(
            root.path(),
            &format!("var/log/containers/web-0_shop_side-car-{A}.log"),
            "",
        );
        write(
            root.path(),
            &format!("var/log/containers/other_shop_app-{}.log", "b".repeat(64)),
            "",
        );
        let index = index(root.path());
        let found = index.find([A], None).unwrap();
        assert_eq!(
            (
                found.namespace.as_str(),
                found.name.as_str(),
                found.uid.as_str(),
                found.container.as_str()
            ),
            ("shop", "web-0", UID, "side-car")
        );
        assert_eq!(index.find([], Some(UID)).unwrap().name, "web-0");
        // A container whose pod's uid no file names is left out.
        assert_eq!(index.len(), 1);
        assert_eq!(Files::new(root.path()).present(), ["kubelet"]);
    }

    #[test]
    fn dockers_labels() {
        let root = tempfile::tempdir().unwrap();
        let config = json!({"ID": A, "Config": {"Image": "web:1", "Labels": {
            "io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "shop",
            "io.kubernetes.pod.uid": UID, "io.kubernetes.container.name": "app"}}});
        write(
            root.path(),
            &format!("var/lib/docker/containers/{A}/config.v2.json"),
            &config.to_string(),
        );
        write(
            root.path(),
            &format!(
                "var/lib/docker/containers/{}/config.v2.json",
                "c".repeat(64)
            ),
            "{\"Config\":{\"Labels\":null}}",
        );
        let found = index(root.path()).find([A], None).unwrap();
        assert_eq!(
            (found.container.as_str(), found.image.as_str()),
            ("app", "web:1")
        );
    }

    #[test]
    fn annotations_of_containerd_and_crio() {
        for (path, annotations) in [
            (
                format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{A}/config.json"),
                json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-name": "web-0",
                    "io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-uid": UID,
                    "io.kubernetes.cri.container-name": "app", "io.kubernetes.cri.image-name": "web:1"}),
            ),
            (
                format!("run/containers/storage/overlay-containers/{A}/userdata/config.json"),
                json!({"io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": UID,
                    "io.kubernetes.container.name": "app", "io.kubernetes.cri-o.ImageName": "web:1"}),
            ),
        ] {
            let root = tempfile::tempdir().unwrap();
            let spec = json!({"ociVersion": "1.1.0", "process": {"args": ["x"]}, "annotations": annotations});
            write(root.path(), &path, &spec.to_string());
            let found = index(root.path()).find([A], None).unwrap();
            assert_eq!(
                (
                    found.name.as_str(),
                    found.container.as_str(),
                    found.image.as_str()
                ),
                ("web-0", "app", "web:1"),
                "{path}"
            );
        }
    }

    #[test]
    fn names_that_nobody_can_have_are_not_believed() {
        for name in [
            "shop_web-0_nouid",
            "Shop_web_2ad1f2a6-6d6b-4c0e-9a3b-0f6a6e1f9d11",
            "a_b_c_2ad1f2a6-6d6b-4c0e-9a3b-0f6a6e1f9d11",
            "_web_2ad1f2a6-6d6b-4c0e-9a3b-0f6a6e1f9d11",
            "",
        ] {
            assert_eq!(log_directory(name), None, "{name}");
        }
        for name in [
            format!("web_shop_app-{}.log", &A[1..]),
            format!("web_shop_-{A}.log"),
            format!("web_shop_app-{A}"),
            format!("web_sh.op_app-{A}.log"),
            String::new(),
        ] {
            assert_eq!(log_link(&name), None, "{name}");
        }
    }
}
