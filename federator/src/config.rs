//! The configuration file. `docs/federator.toml` is a sample with every setting and its meaning.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::limits::Limits;

/// Most peers.
pub const MAX_PEERS: usize = 1024;

/// A whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name; must be the certificate's.
    pub name: String,
    /// Region; must be the certificate's.
    pub region: String,
    /// Where agents, peers and operators connect (UDP).
    pub listen: SocketAddr,
    /// Folder with `ca.pem`, `cert.pem`, `key.pem`.
    pub identity: PathBuf,
    /// Folder of journal and store.
    pub data_dir: PathBuf,
    /// The other federators.
    #[serde(default)]
    pub mesh: Mesh,
    /// Stitching.
    #[serde(default)]
    pub stitch: Stitch,
    /// The journal.
    #[serde(default)]
    pub journal: Journal,
    /// The store.
    #[serde(default)]
    pub store: Store,
    /// What one agent and one peer may do.
    #[serde(default)]
    pub limits: Limits,
    /// Agents.
    #[serde(default)]
    pub agents: Agents,
    /// Questions.
    #[serde(default)]
    pub query: Query,
    /// Names.
    #[serde(default)]
    pub dns: Dns,
    /// Certificates for the region's agents; none are signed without it.
    pub enrol: Option<Enrolment>,
    /// Metrics; none are served without it.
    pub metrics: Option<Metrics>,
}

/// The other federators.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mesh {
    /// File with 32 bytes in hexadecimal, the same on all federators. Needed with peers.
    pub key_file: Option<PathBuf>,
    /// Others to ask who is there, `NAME@HOST:PORT`; one that can be reached is enough.
    pub seeds: Vec<String>,
    /// Where other federators, and the agents of the region, reach this one, `HOST:PORT`; by default `listen`, if that is an
    /// address.
    pub advertise: Option<String>,
    /// How large a share of all offers it owns, 0 to 16.
    pub weight: u8,
    /// The others.
    #[serde(rename = "peer")]
    pub peers: Vec<Peer>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            key_file: None,
            seeds: Vec::new(),
            advertise: None,
            weight: 1,
            peers: Vec::new(),
        }
    }
}

impl Mesh {
    /// Whether this federator is one of several, or may become so.
    pub fn takes_part(&self) -> bool {
        let asked = !self.peers.is_empty() || !self.seeds.is_empty() || self.advertise.is_some();
        asked && self.key_file.is_some()
    }

    /// All that the configuration names. Of a seed the region is not known.
    pub fn known(&self) -> Vec<Peer> {
        let mut known = self.peers.clone();
        for (name, address) in self.seeds.iter().filter_map(|seed| seed.split_once('@')) {
            if !known.iter().any(|peer| peer.name == name) {
                known.push(Peer {
                    name: name.into(),
                    region: String::new(),
                    address: address.into(),
                });
            }
        }
        known
    }
}

/// Another federator.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// `host:port` or `address:port`.
    pub address: String,
}

/// Stitching.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stitch {
    /// How long a half waits for its other end at home before the mesh is asked.
    pub hold_ms: u64,
    /// How long a half waits altogether.
    pub expiry_s: u64,
    /// Most halves in memory.
    pub max_open: usize,
}

/// The journal.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Journal {
    /// Beyond it agents are told to wait.
    pub max_bytes: u64,
    /// With less disk free agents are told to wait, so that the store can still write what is acknowledged.
    pub min_free_bytes: u64,
}

/// The store.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// How often rows are written.
    pub flush_interval_ms: u64,
    /// How long connections are kept.
    pub retention_days: u32,
    /// DuckDB's threads.
    pub threads: u32,
    /// DuckDB's memory.
    pub memory_limit: String,
}

/// Agents.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agents {
    /// How long `weft health` names one that has no session.
    pub silent_days: u32,
}

/// Questions.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Query {
    /// Questions answered at a time; more wait.
    pub concurrent: usize,
    /// Longest run of a user's SQL statement.
    pub sql_timeout_s: u64,
    /// Memory of a user's SQL statement.
    pub sql_memory_limit: String,
    /// Most connections that a user's SQL statement sees.
    pub sql_max_connections: u32,
    /// How long peers have to answer.
    pub peer_timeout_s: u64,
}

/// Names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Suffixes of names that are internal, besides those that cannot be public.
    pub internal: Vec<String>,
    /// Files with names that somebody warns of.
    pub threats: Vec<PathBuf>,
}

/// Certificates for the region's agents.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// Where nodes without a certificate ask for one (UDP). Not where sessions are.
    pub listen: SocketAddr,
    /// The same as nodes dial it, `host:port`: it goes into tokens.
    pub address: String,
    /// Folder with `ca.pem` and `ca-key.pem` of the CA that signs: a region's (`weft pki region-ca`), or the root's.
    pub ca: PathBuf,
    /// How long a certificate holds. Agents get the next one after two thirds of it.
    #[serde(default = "default_certificate_hours")]
    pub certificate_hours: u32,
    /// Where agents report, `host:port`; by default `address` with the port of `listen` above.
    pub federator: Option<String>,
    /// Instances of AWS that are let in without a token.
    pub aws: Option<Aws>,
    /// Instances of Google Cloud that are let in without a token.
    pub gcp: Option<Gcp>,
}

/// Instances of AWS that are let in by their identity document.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aws {
    /// Of these accounts.
    pub accounts: Vec<String>,
    /// In these regions of AWS.
    pub regions: Vec<String>,
    /// Certificates of AWS (RSA-2048), each after a line `# REGION`, in place of those that are built in.
    pub certificates: Option<PathBuf>,
    /// Only so long after they were started: a document never expires by itself.
    #[serde(default = "default_max_age_minutes")]
    pub max_age_minutes: u32,
}

fn default_max_age_minutes() -> u32 {
    60
}

/// Instances of Google Cloud that are let in by their identity token.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gcp {
    /// Of these projects.
    pub projects: Vec<String>,
    /// Google's keys, as <https://www.googleapis.com/oauth2/v3/certs> gives them. Read again for each node.
    pub keys: PathBuf,
}

fn default_certificate_hours() -> u32 {
    24
}

/// Metrics.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Where `/metrics` and `/healthz` are served (TCP, HTTP).
    pub listen: SocketAddr,
}

impl Default for Stitch {
    fn default() -> Self {
        Self {
            hold_ms: 1500,
            expiry_s: 120,
            max_open: 4_000_000,
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            max_bytes: 8 << 30,
            min_free_bytes: 256 << 20,
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            flush_interval_ms: 500,
            retention_days: 30,
            threads: 1,
            memory_limit: "1GB".into(),
        }
    }
}

impl Default for Agents {
    fn default() -> Self {
        Self { silent_days: 7 }
    }
}

impl Default for Query {
    fn default() -> Self {
        Self {
            concurrent: 4,
            sql_timeout_s: 30,
            sql_memory_limit: "512MB".into(),
            sql_max_connections: 200_000,
            peer_timeout_s: 10,
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Reads and checks a text.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.name.is_empty(), "name is empty");
        ensure!(
            self.mesh.peers.len() <= MAX_PEERS,
            "more than {MAX_PEERS} peers"
        );
        ensure!(
            self.mesh.peers.is_empty() || self.mesh.key_file.is_some(),
            "mesh.key_file is missing: it is needed with peers, the same on all federators"
        );
        ensure!(
            (self.mesh.seeds.is_empty() && self.mesh.advertise.is_none())
                || self.mesh.key_file.is_some(),
            "mesh.key_file is missing: it is needed with mesh.seeds and mesh.advertise, the same on all federators"
        );
        for seed in &self.mesh.seeds {
            let well = seed
                .split_once('@')
                .is_some_and(|(name, address)| !name.is_empty() && address.contains(':'));
            ensure!(well, "mesh.seeds: {seed:?} is not NAME@HOST:PORT");
        }
        ensure!(
            self.mesh
                .advertise
                .as_ref()
                .is_none_or(|address| address.rsplit_once(':').is_some()),
            "mesh.advertise must be host:port"
        );
        ensure!(
            self.mesh.weight <= weft_mesh::MAX_WEIGHT,
            "mesh.weight must be 0 to {}",
            weft_mesh::MAX_WEIGHT
        );
        for (index, peer) in self.mesh.peers.iter().enumerate() {
            ensure!(
                peer.name != self.name,
                "mesh.peer {:?} has this federator's own name",
                peer.name
            );
            let twice = self.mesh.peers[..index]
                .iter()
                .any(|other| other.name == peer.name);
            ensure!(!twice, "mesh.peer {:?} is there twice", peer.name);
        }
        ensure!(
            self.stitch.expiry_s * 1000 > self.stitch.hold_ms,
            "stitch.expiry_s must be longer than stitch.hold_ms"
        );
        ensure!(self.stitch.max_open > 0, "stitch.max_open must not be 0");
        ensure!(
            self.store.flush_interval_ms > 0,
            "store.flush_interval_ms must not be 0"
        );
        if let Some(enrol) = &self.enrol {
            ensure!(
                (1..=24 * 90).contains(&enrol.certificate_hours),
                "enrol.certificate_hours must be 1 to 2160"
            );
            ensure!(
                enrol.address.rsplit_once(':').is_some(),
                "enrol.address must be host:port"
            );
        }
        self.limits.check()?;
        ensure!(self.query.concurrent > 0, "query.concurrent must not be 0");
        Ok(())
    }

    /// The journal's folder.
    pub fn journal_folder(&self) -> PathBuf {
        self.data_dir.join("journal")
    }

    /// The store's file.
    pub fn store_file(&self) -> PathBuf {
        self.data_dir.join("store.duckdb")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_valid_and_complete() {
        let text = include_str!("../../docs/federator.toml");
        let config = Config::parse(text).unwrap();
        assert_eq!(config.mesh.peers.len(), 2);
        // What the sample shows as defaults are the defaults.
        let defaults =
            Config::parse("name='a'\nregion='r'\nlisten='0.0.0.0:1'\nidentity='i'\ndata_dir='d'")
                .unwrap();
        assert_eq!(
            format!("{:?}", config.stitch),
            format!("{:?}", defaults.stitch)
        );
        assert_eq!(
            format!("{:?}", config.journal),
            format!("{:?}", defaults.journal)
        );
        assert_eq!(
            format!("{:?}", config.store),
            format!("{:?}", defaults.store)
        );
        assert_eq!(
            format!("{:?}", config.limits),
            format!("{:?}", defaults.limits)
        );
        assert_eq!(
            format!("{:?}", config.query),
            format!("{:?}", defaults.query)
        );
    }

    #[test]
    fn mistakes_are_named() {
        let base = "name='a'\nregion='r'\nlisten='0.0.0.0:1'\nidentity='i'\ndata_dir='d'\n";
        for (addition, word) in [
            ("speed = 3", "speed"),
            (
                "[[mesh.peer]]\nname='b'\nregion='r'\naddress='x:1'",
                "key_file",
            ),
            (
                "[mesh]\nkey_file='k'\n[[mesh.peer]]\nname='a'\nregion='r'\naddress='x:1'",
                "own name",
            ),
            ("[stitch]\nhold_ms = 200000", "expiry_s"),
            ("[mesh]\nseeds = ['b@x:1']", "key_file"),
            ("[mesh]\nkey_file='k'\nseeds = ['x:1']", "NAME@HOST:PORT"),
            ("[mesh]\nkey_file='k'\nweight = 17", "weight"),
        ] {
            let error = format!(
                "{:#}",
                Config::parse(&format!("{base}{addition}")).unwrap_err()
            );
            assert!(error.contains(word), "{error}");
        }
    }
}
