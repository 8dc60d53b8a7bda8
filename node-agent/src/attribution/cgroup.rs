//! What a cgroup path says: container, runtime, pod, systemd unit. Pure.
//!
//! A path is read component by component from the root, so that what is nested (kind, Docker in Docker, systemd in a
//! container) is found at every depth; the innermost counts and the others are kept. Nothing here looks at the
//! machine: a path is a text that other programs wrote, and whatever does not have a known form is left alone.

/// Digits of a container id.
const ID_LEN: usize = 64;
/// Containers kept of one path, innermost first. Deeper nesting loses the outermost.
pub const MAX_NESTED: usize = 4;

/// Who made a container, as far as a path tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// The path does not say: kubelet's cgroupfs driver writes bare ids for Docker and containerd alike.
    #[default]
    Unknown,
    /// Docker.
    Docker,
    /// containerd, through the kubelet or nerdctl.
    Containerd,
    /// CRI-O.
    Crio,
    /// Podman.
    Podman,
}

/// One container of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id: 64 hexadecimal digits.
    pub id: String,
    /// Who made it.
    pub runtime: Runtime,
}

/// What a path says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Containers, innermost first.
    pub containers: Vec<Container>,
    /// Uid of the innermost pod as its files and cgroups carry it: a UUID, or 32 digits (the hash of its manifest) for a
    /// static pod, whose mirror in the API server has another uid.
    pub pod: Option<String>,
    /// systemd unit: the innermost service, scope or slice. Within a container only its own systemd's units count, and
    /// the service that Podman runs a container for.
    pub unit: Option<String>,
    /// Whether it is the monitor beside a container (conmon), which runs on the host.
    pub monitor: bool,
}

impl Place {
    /// The innermost container's id.
    pub fn container(&self) -> Option<&str> {
        self.containers
            .first()
            .map(|container| container.id.as_str())
    }

    /// How much it says; the more the better.
    fn weight(&self) -> (usize, bool, bool) {
        (
            self.containers.len(),
            self.pod.is_some(),
            self.unit.is_some(),
        )
    }
}

/// Reads a path of either hierarchy.
pub fn place(path: &str) -> Place {
    let mut place = Place::default();
    let (mut kubepods, mut outer) = (false, "");
    for component in path.split('/').filter(|part| !part.is_empty()) {
        // containerd without the systemd driver on a host with it: `SLICE:cri-containerd:ID` is one directory's name.
        let slice = component.split(':').next().unwrap_or(component);
        // From a cgroup namespace of the agent's own, what is above it is `..`.
        kubepods |= slice == ".." || stem(slice).split('-').any(|word| word == "kubepods");
        if kubepods && let Some(uid) = pod_uid(slice) {
            place.pod = Some(uid);
        }
        match leaf(component, outer) {
            Leaf::Container(container, dress) => {
                place.containers.insert(0, container);
                place.containers.truncate(MAX_NESTED);
                place.monitor = false;
                if dress != "libpod-payload-" {
                    place.unit = None;
                }
            }
            Leaf::Monitor => {
                place.monitor = true;
                place.unit = Some(component.to_owned());
            }
            Leaf::Other => unit(&mut place.unit, component),
        }
        outer = component;
    }
    place
}

/// What `/proc/PID/cgroup` says: the line that says most, the unified one where they are equal. With both hierarchies
/// mounted a runtime may use only one of them.
pub fn of_process(cgroups: &str) -> Place {
    let mut best = place(&unified(cgroups).unwrap_or_default());
    for path in cgroups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
    {
        let other = place(path);
        if other.weight() > best.weight() {
            best = other;
        }
    }
    best
}

/// The cgroup v2 path in `/proc/PID/cgroup`.
pub fn unified(cgroups: &str) -> Option<String> {
    cgroups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
}

enum Leaf<'a> {
    Container(Container, &'a str),
    Monitor,
    Other,
}

/// Whether a directory is a container's: its name is an id, alone or dressed by the runtime (`docker-ID.scope`,
/// `SLICE:cri-containerd:ID`).
fn leaf<'a>(component: &'a str, parent: &str) -> Leaf<'a> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let Some(at) = name.len().checked_sub(ID_LEN) else {
        return Leaf::Other;
    };
    let (Some(dress), Some(id)) = (name.get(..at), name.get(at..)) else {
        return Leaf::Other;
    };
    if !is_hex(id) || !(dress.is_empty() || dress.ends_with(['-', ':'])) {
        return Leaf::Other;
    }
    if dress.contains("conmon") {
        return Leaf::Monitor;
    }
    let runtime = match dress.trim_end_matches(['-', ':']).rsplit(':').next() {
        Some("docker") => Runtime::Docker,
        Some("cri-containerd" | "nerdctl") => Runtime::Containerd,
        Some("crio") => Runtime::Crio,
        Some("libpod" | "libpod-payload") => Runtime::Podman,
        Some("") if parent == "docker" => Runtime::Docker,
        _ => Runtime::Unknown,
    };
    let id = id.to_owned();
    Leaf::Container(Container { id, runtime }, dress)
}

/// The uid in `podUID` (cgroupfs driver) or `kubepods-burstable-podUID.slice` (systemd driver, which writes `_` for `-`).
fn pod_uid(component: &str) -> Option<String> {
    let stem = stem(component);
    let at = match stem.rfind("-pod") {
        Some(at) => at + 1,
        None => 0,
    };
    let uid = stem.get(at..)?.strip_prefix("pod")?.replace('_', "-");
    (is_uuid(&uid) || (uid.len() == 32 && is_hex(&uid))).then_some(uid)
}

/// Puts a deeper component's unit over what was found above it. The kubelet's slices say nothing that the pod does not.
fn unit(found: &mut Option<String>, component: &str) {
    let slice = component.ends_with(".slice") && !component.contains(':');
    let real = component.ends_with(".service") || component.ends_with(".scope");
    let kubepods = stem(component).split('-').any(|word| word == "kubepods");
    if real || (slice && !kubepods) {
        *found = Some(component.to_owned());
    }
}

fn stem(component: &str) -> &str {
    component.strip_suffix(".slice").unwrap_or(component)
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_uuid(text: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    text.split('-').map(str::len).eq(lengths) && text.split('-').all(is_hex)
}

#[cfg(test)]
// Also where another crate takes this file by path.
#[path = "cgroup/tests.rs"]
mod tests;
