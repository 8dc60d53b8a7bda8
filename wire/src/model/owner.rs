//! Who is behind a socket: process, container, pod.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// Most processes that an [`Owner`] names as sharers of its socket; of more, the lowest process ids.
pub const MAX_SHARERS: usize = 8;
/// Most labels of a [`Pod`].
pub const MAX_LABELS: usize = 16;
/// Longest text of an [`Owner`], in bytes: the longest path of the kernel.
pub const MAX_TEXT_BYTES: usize = 4096;

/// The process, container and namespace behind a socket. A dictionary entry: many halves share one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The process that connected, accepted or listens; `None` when nothing could be learned of it.
    pub process: Option<Process>,
    /// Path of the cgroup v2 directory the socket's owner lives in, from the hierarchy's root.
    pub cgroup: String,
    /// Container id found in that path (64 hexadecimal digits), if it is a container's.
    pub container: Option<String>,
    /// Inode of the socket's network namespace; 0 when unknown.
    pub netns: u32,
    /// What the agent's configuration calls this workload; where there is a pod, the name of the pod's owner.
    pub workload: String,
    /// The pod that the container belongs to, when an API server, kubelet or runtime said so.
    pub pod: Option<Pod>,
    /// The systemd unit in the cgroup's path, if there is one.
    pub unit: Option<String>,
    /// Whether a process of a container's cgroup runs in the host's namespaces, or the reverse.
    pub escaped: bool,
    /// Other processes that use the same socket, by rising process id; at most [`MAX_SHARERS`].
    pub sharers: Vec<Process>,
}

/// A process, as it was when its socket was made or first seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the host's PID namespace.
    pub pid: u32,
    /// Start time; tells a reused pid apart. 0 when the process was gone before it could be read.
    pub started_at: Timestamp,
    /// The kernel's name of it (`comm`).
    pub name: String,
    /// Executable; `None` when the process was gone before it could be read.
    pub exe: Option<String>,
    /// Numeric user id.
    pub uid: u32,
    /// User name, when the host knows one.
    pub user: Option<String>,
    /// Its arguments, separated by spaces, with secrets cut by the agent; `None` when they could not be read.
    #[serde(default)]
    pub args: Option<String>,
    /// Process id of its parent; 0 when unknown.
    #[serde(default)]
    pub parent: u32,
    /// Name of its parent; empty when unknown.
    #[serde(default)]
    pub parent_name: String,
}

/// A Kubernetes pod and the container in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Kind of what owns it at the top: `Deployment`, `StatefulSet`, `DaemonSet`, `Job`, `CronJob`; empty when nothing does.
    pub owner_kind: String,
    /// Name of that.
    pub owner_name: String,
    /// Those of its labels that the agent's configuration chooses; at most [`MAX_LABELS`].
    pub labels: Vec<(String, String)>,
    /// The container's name in the pod.
    pub container: String,
    /// Its image.
    pub image: String,
}

impl Owner {
    /// Whether all its texts and lists are within their limits. A batch with another is refused.
    pub fn within_limits(&self) -> bool {
        let mut within = self.sharers.len() <= MAX_SHARERS
            && self
                .pod
                .as_ref()
                .is_none_or(|pod| pod.labels.len() <= MAX_LABELS);
        self.texts(&mut |text| within &= text.len() <= MAX_TEXT_BYTES);
        within
    }

    /// Itself, or what of it is within the limits: lists lose their end, and so do texts.
    pub fn cut(&self) -> Cow<'_, Self> {
        if self.within_limits() {
            return Cow::Borrowed(self);
        }
        let mut owner = self.clone();
        owner.sharers.truncate(MAX_SHARERS);
        if let Some(pod) = &mut owner.pod {
            pod.labels.truncate(MAX_LABELS);
        }
        owner.texts_mut(&mut |text| text.truncate(cut(text, MAX_TEXT_BYTES).len()));
        Cow::Owned(owner)
    }

    fn texts(&self, see: &mut impl FnMut(&str)) {
        let Self {
            process,
            cgroup,
            container,
            netns: _,
            workload,
            pod,
            unit,
            escaped: _,
            sharers,
        } = self;
        [cgroup, workload]
            .into_iter()
            .chain(container)
            .chain(unit)
            .for_each(|text| see(text));
        for process in process.iter().chain(sharers) {
            [&process.name, &process.parent_name]
                .into_iter()
                .chain(&process.exe)
                .chain(&process.user)
                .chain(&process.args)
                .for_each(|text| see(text));
        }
        if let Some(pod) = pod {
            [
                &pod.namespace,
                &pod.name,
                &pod.uid,
                &pod.owner_kind,
                &pod.owner_name,
                &pod.container,
                &pod.image,
            ]
            .into_iter()
            .chain(pod.labels.iter().flat_map(|(key, value)| [key, value]))
            .for_each(|text| see(text));
        }
    }

    fn texts_mut(&mut self, change: &mut impl FnMut(&mut String)) {
        [&mut self.cgroup, &mut self.workload]
            .into_iter()
            .chain(&mut self.container)
            .chain(&mut self.unit)
            .for_each(&mut *change);
        for process in self.process.iter_mut().chain(&mut self.sharers) {
            [&mut process.name, &mut process.parent_name]
                .into_iter()
                .chain(&mut process.exe)
                .chain(&mut process.user)
                .chain(&mut process.args)
                .for_each(&mut *change);
        }
        if let Some(pod) = &mut self.pod {
            [
                &mut pod.namespace,
                &mut pod.name,
                &mut pod.uid,
                &mut pod.owner_kind,
                &mut pod.owner_name,
                &mut pod.container,
                &mut pod.image,
            ]
            .into_iter()
            .chain(pod.labels.iter_mut().flat_map(|(key, value)| [key, value]))
            .for_each(&mut *change);
        }
    }
}

/// The longest beginning of a text that is not longer than this.
pub(crate) fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}
