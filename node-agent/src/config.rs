//! The agent's configuration file. `docs/agent.toml` is the annotated sample, and a test reads it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weft_wire::Site;

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
    /// Size of the ring buffer in bytes, a power of two of at least a page. A connection takes two records of 152 bytes.
    /// Full: new records are dropped and counted. Changing it takes `weft-agent unload` first.
    pub ring_bytes: u32,
    /// Seconds between two updates of a connection that stays open.
    pub update_interval_s: u32,
    /// Most connections tracked while open: 120 bytes of kernel memory each, taken at once, and about 400 of the agent's as
    /// they come. Beyond it connections are not seen, and counted. Changing it takes `weft-agent unload` first.
    pub max_connections: u32,
    /// Directory in bpffs for maps and links; by default one named after the agent.
    pub pin_dir: Option<PathBuf>,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            ring_bytes: 16 << 20,
            update_interval_s: 10,
            max_connections: 262_144,
            pin_dir: None,
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
        self.workload_rule
            .iter()
            .find(|rule| rule.process == process)
            .map(|rule| rule.workload.clone())
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
