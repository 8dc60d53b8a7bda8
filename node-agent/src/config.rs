//! The agent's configuration file. `docs/agent.toml` is the annotated sample, and a test reads it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weft_wire::model::MAX_LABELS;
use weft_wire::{Pod, Site};

use crate::attribution::secrets::{self, Sieve};

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this agent within its region; the certificate's.
    pub name: String,
    /// `host:port` of its home federator.
    pub federator: String,
    /// Directory of `ca.pem`, `cert.pem` and `key.pem`.
    pub identity: PathBuf,
    /// Directory of the spool.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// cgroup v2 directory whose sockets are watched, its descendants included.
    #[serde(default = "default_cgroup")]
    pub cgroup: PathBuf,
    /// What sockets of this host are called; by default the name of their process.
    #[serde(default)]
    pub workload: Option<String>,
    /// Where this host is.
    #[serde(default)]
    pub site: Site,
    /// Workloads by process name; the first that fits.
    #[serde(default)]
    pub workload_rule: Vec<WorkloadRule>,
    /// What is captured, and how.
    #[serde(default)]
    pub capture: Capture,
    /// What is reported of processes.
    #[serde(default)]
    pub process: ProcessSettings,
    /// Pods, and the cluster.
    #[serde(default)]
    pub kubernetes: Kubernetes,
    /// DNS.
    #[serde(default)]
    pub lookups: Lookups,
    /// UDP flows, and packets of name servers.
    #[serde(default)]
    pub datagrams: Datagrams,
    /// What the agent may take of its host.
    #[serde(default)]
    pub limits: Limits,
    /// The spool.
    #[serde(default)]
    pub spool: Spool,
    /// Prometheus metrics; absent: none.
    #[serde(default)]
    pub metrics: Option<Metrics>,
}

/// Names the workload of a process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadRule {
    /// Kernel's name of the process.
    pub process: String,
    /// Its workload.
    pub workload: String,
}

/// Kernel side.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capture {
    /// Size of the ring buffer in bytes, a power of two of at least a page. A connection takes a record of 152 bytes at its end.
    /// Full: new records are dropped and counted. Changing it takes `weft-agent unload` first.
    pub ring_bytes: u32,
    /// Seconds between two updates of a connection that stays open.
    pub update_interval_s: u32,
    /// Most connections tracked while open: 150 bytes of kernel memory each, taken at once, and about 130 of the agent's as
    /// they come. Beyond it connections are not seen, and counted. Changing it takes `weft-agent unload` first.
    pub max_connections: u32,
    /// Directory in bpffs for maps and links; by default one named after the agent.
    pub pin_dir: Option<PathBuf>,
    /// Whether to hook calls (accept, send, receive, exec, exit) where the kernel lets: they name the process that really
    /// speaks, and what is spoken.
    pub calls: bool,
    /// Size of the ring of calls in bytes, a power of two of at least a page. A use of a socket takes 328 bytes, a process
    /// that begins or ends 856. Full: new ones are dropped and counted.
    pub calls_ring_bytes: u32,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            ring_bytes: 16 << 20,
            update_interval_s: 10,
            max_connections: 262_144,
            pin_dir: None,
            calls: true,
            calls_ring_bytes: crate::calls::RING_BYTES,
        }
    }
}

/// What is reported of processes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessSettings {
    /// Whether their arguments are.
    pub arguments: bool,
    /// What is cut from arguments, in place of [`secrets::DEFAULT_PATTERNS`]; see there for the form.
    pub secrets: Option<Vec<String>>,
    /// What is cut beside those.
    pub more_secrets: Vec<String>,
}

impl Default for ProcessSettings {
    fn default() -> Self {
        Self {
            arguments: true,
            secrets: None,
            more_secrets: Vec::new(),
        }
    }
}

impl ProcessSettings {
    /// What cuts secrets from arguments; `None`: arguments are not reported.
    pub fn sieve(&self) -> Option<Sieve> {
        let mut patterns = match &self.secrets {
            Some(patterns) => patterns.clone(),
            None => secrets::DEFAULT_PATTERNS
                .iter()
                .map(|pattern| (*pattern).to_owned())
                .collect(),
        };
        patterns.extend_from_slice(&self.more_secrets);
        self.arguments.then(|| Sieve::new(&patterns))
    }
}

/// Pods, and the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// Whether containers are looked up.
    pub enabled: Enabled,
    /// A kubeconfig; without one, the service account that a pod is given.
    pub kubeconfig: Option<PathBuf>,
    /// Context in it; without one, its current one.
    pub context: Option<String>,
    /// This node's name in the cluster; by default `NODE_NAME` of the environment, else the host's name.
    pub node: Option<String>,
    /// Labels of pods that are reported, at most 16.
    pub labels: Vec<String>,
    /// A kubelet to ask where there is no API server, such as `https://127.0.0.1:10250`.
    pub kubelet: Option<String>,
    /// File with the token that the kubelet accepts.
    pub kubelet_token: Option<PathBuf>,
    /// Certificates of who signed the kubelet's; without them it is not checked.
    pub kubelet_ca: Option<PathBuf>,
    /// Whether this agent may be the one that watches what belongs to the cluster.
    pub cluster: bool,
    /// Namespace of the lease that decides which one does.
    pub lease_namespace: String,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            enabled: Enabled::Auto,
            kubeconfig: None,
            context: None,
            node: None,
            labels: Vec::new(),
            kubelet: None,
            kubelet_token: None,
            kubelet_ca: None,
            cluster: true,
            lease_namespace: "weft".into(),
        }
    }
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enabled {
    /// Where it can be.
    Auto,
    /// Not.
    Off,
}

/// What is made of name servers' packets. Needs the hooks for datagrams.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lookups {
    /// Whether lookups are reported and peers named by them.
    pub enabled: bool,
}

impl Default for Lookups {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// UDP flows, and packets of name servers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Datagrams {
    /// Whether they are captured at all.
    pub enabled: bool,
    /// Most flows at a time: about 220 bytes of kernel memory each, taken at once, and about 500 of the agent's as they come.
    /// Beyond it datagrams are not seen, and counted; over half of it, single exchanges end after a second. Changing it
    /// takes `weft-agent unload` first.
    pub max_flows: u32,
    /// Seconds without a datagram after which a flow is over.
    pub idle_timeout_s: u32,
    /// The same for a flow with a name server of at most one datagram each way.
    pub dns_idle_timeout_s: u32,
    /// Whether the agent's own session with its federator is reported. Where agents watch the hosts of federators too, all of them
    /// must, for the other end to find its partner.
    pub own_session: bool,
    /// Ports of name servers, beside 53 and 5353: their packets are copied whole.
    pub dns_ports: Vec<u16>,
    /// Size in bytes of the ring for those packets, a power of two of at least 16384. Full: packets are dropped and counted.
    /// Changing it takes `weft-agent unload` first.
    pub dns_ring_bytes: u32,
}

impl Default for Datagrams {
    fn default() -> Self {
        Self {
            enabled: true,
            max_flows: 65_536,
            idle_timeout_s: 60,
            dns_idle_timeout_s: 10,
            own_session: false,
            dns_ports: Vec::new(),
            dns_ring_bytes: 8 << 20,
        }
    }
}

/// What the agent may take of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most resident bytes of the process. Beyond it detail is given up, step by step, and said and counted; connections, bytes and
    /// packets are not. Sane from 24 MiB on.
    pub memory_bytes: u64,
    /// Most hundredths of one processor that the process takes over ten seconds; beyond it likewise. What the kernel programs take is
    /// not in it.
    pub cpu_percent: u32,
    /// Most bytes of kernel memory for maps, which are taken at once. Sizes that do not fit are made smaller, and the log says which;
    /// what cannot be made to fit is refused.
    pub kernel_memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            cpu_percent: 10,
            kernel_memory_bytes: 128 << 20,
        }
    }
}

/// Batches on disk, until the federator has them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// Most bytes on disk. Beyond it the oldest batches are dropped and counted.
    pub max_bytes: u64,
    /// Milliseconds between two batches.
    pub flush_interval_ms: u64,
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 20,
            flush_interval_ms: 200,
        }
    }
}

/// Prometheus text over HTTP.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Address to listen on.
    pub listen: SocketAddr,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is no configuration.
    #[error("{0}")]
    Parse(#[from] toml::de::Error),
    /// A value makes no sense.
    #[error("{field}: {problem}")]
    Value {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: path.into(),
            error,
        })?;
        Self::parse(&text)
    }

    /// Parses and checks.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |field, problem: &str| {
            Err(ConfigError::Value {
                field,
                problem: problem.into(),
            })
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(plain) {
            return value("name", "letters, digits, - _ . only");
        }
        if !self.capture.ring_bytes.is_power_of_two() || self.capture.ring_bytes < 4096 {
            return value("capture.ring_bytes", "a power of two, at least 4096");
        }
        if self.capture.update_interval_s == 0 {
            return value("capture.update_interval_s", "at least 1");
        }
        if self.capture.max_connections == 0 {
            return value("capture.max_connections", "at least 1");
        }
        if self.kubernetes.labels.len() > MAX_LABELS {
            return value("kubernetes.labels", "at most 16");
        }
        let datagrams = &self.datagrams;
        if datagrams.max_flows == 0 {
            return value("datagrams.max_flows", "at least 1");
        }
        if datagrams.idle_timeout_s == 0 || datagrams.dns_idle_timeout_s == 0 {
            return value(
                "datagrams.idle_timeout_s",
                "at least 1, as dns_idle_timeout_s",
            );
        }
        if !datagrams.dns_ring_bytes.is_power_of_two() || datagrams.dns_ring_bytes < 16_384 {
            return value("datagrams.dns_ring_bytes", "a power of two, at least 16384");
        }
        if self.limits.memory_bytes == 0 || self.limits.kernel_memory_bytes == 0 {
            return value("limits.memory_bytes", "at least 1, as kernel_memory_bytes");
        }
        if self.limits.cpu_percent == 0 {
            return value("limits.cpu_percent", "at least 1");
        }
        if !(10..=10_000).contains(&self.spool.flush_interval_ms) {
            return value("spool.flush_interval_ms", "10 to 10000");
        }
        Ok(())
    }

    /// Where maps and links are pinned, below which the layout's version follows.
    pub fn pin_dir(&self) -> PathBuf {
        self.capture
            .pin_dir
            .clone()
            .unwrap_or_else(|| Path::new("/sys/fs/bpf/weft").join(&self.name))
    }

    /// What a process's workload is called.
    pub fn workload(&self, process: &str) -> String {
        self.workload_in(process, None)
    }

    /// What the workload of a process in a pod is called: as a rule says, else what owns the pod, else the pod.
    pub fn workload_in(&self, process: &str, pod: Option<&Pod>) -> String {
        let rule = self
            .workload_rule
            .iter()
            .find(|rule| rule.process == process)
            .map(|rule| rule.workload.clone());
        let pod = || {
            pod.map(|pod| match pod.owner_name.as_str() {
                "" => pod.name.clone(),
                owner => owner.to_owned(),
            })
        };
        rule.or_else(pod)
            .or_else(|| self.workload.clone())
            .unwrap_or_else(|| process.to_owned())
    }
}

fn default_data_dir() -> PathBuf {
    "/var/lib/weft-agent".into()
}

fn default_cgroup() -> PathBuf {
    "/sys/fs/cgroup".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_parses_and_names_every_field() {
        let text = include_str!("../../docs/agent.toml");
        let config = Config::parse(text).unwrap();
        assert_eq!(config.workload("nginx"), "frontend");
        assert_eq!(config.workload("redis-server"), "checkout");
        // Uncommenting every `#key = …` line must still parse: the sample is the reference.
        let all: String = text
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| !rest.starts_with(' '))
                    .unwrap_or(line)
            })
            .collect::<Vec<_>>()
            .join("\n");
        Config::parse(&all).unwrap();
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let with = |extra: &str| {
            Config::parse(&format!(
                "name = 'a'\nfederator = 'f:1'\nidentity = '/i'\n{extra}"
            ))
            .map(|_| ())
        };
        assert!(with("").is_ok());
        assert!(with("unknown = 1").is_err());
        assert!(with("[capture]\nring_bytes = 5000").is_err());
        assert!(with("[spool]\nflush_interval_ms = 0").is_err());
        assert!(Config::parse("name = '../a'\nfederator = 'f:1'\nidentity = '/i'").is_err());
    }
}
