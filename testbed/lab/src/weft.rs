//! Weft on a topology: certificates, configurations, daemons that can be killed and started again, and questions.
//! The daemons and `weft` are the real programs, run as a user would; nothing of Weft is linked into the lab.

mod faults;

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::answer::{self, Row};
use crate::error::{During, LabError, Result};
use crate::host::{Host, Process};
use crate::topology::{Node, Region, Topology};
use crate::wait;

/// Trust domain of the lab's certificates.
const DOMAIN: &str = "weft.lab";
/// What an answer may hold: more than any test makes.
const LIMIT: &str = "100000";

/// Names that the lab gives to programs as workloads, by the number at the end of the host's name.
const WORKLOADS: [(&str, [&str; 2]); 4] = [
    ("curl", ["checkout", "batch"]),
    ("nginx", ["shop", "ledger"]),
    ("redis-server", ["cache", "sessions"]),
    ("redis-benchmark", ["checkout", "batch"]),
];

/// What a test sets.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Seconds after which a UDP flow without datagrams is over.
    pub idle_timeout_s: u32,
    /// Seconds after which a half without partner has none; the federators' default where it is not set.
    pub expiry_s: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            idle_timeout_s: 4,
            expiry_s: None,
        }
    }
}

/// A host that is a node of a Kubernetes cluster.
#[derive(Clone, Debug)]
pub struct ClusterNode {
    /// Name of the host.
    pub host: String,
    /// The node's name in the cluster.
    pub node: String,
    /// Leads to the API server.
    pub kubeconfig: PathBuf,
    /// Labels of pods that are reported.
    pub labels: Vec<String>,
}

/// Weft, running on a topology.
pub struct Weft<'a> {
    topology: &'a Topology,
    programs: Programs,
    identities: PathBuf,
    settings: Settings,
    cluster: Option<ClusterNode>,
    federators: Vec<Daemon>,
    agents: Vec<Daemon>,
}

/// A daemon of Weft: its program and configuration, and its process while it runs.
struct Daemon {
    name: String,
    host: Host,
    program: PathBuf,
    config: PathBuf,
    process: Option<Process>,
}

/// Where Weft's programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    agent: PathBuf,
    federator: PathBuf,
    weft: PathBuf,
}

/// What `weft` answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Exit status; -1 when a signal ended it.
    pub status: i32,
    /// The answer.
    pub stdout: String,
    /// Notices.
    pub stderr: String,
}

impl Programs {
    /// In `WEFT_BIN_DIR`, else in the target directory that the running program is in.
    pub fn find() -> Result<Self> {
        let dir = match env::var_os("WEFT_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => beside_executable()?,
        };
        let program = |name: &str, package: &str| {
            let path = dir.join(name);
            if path.is_file() {
                return Ok(path);
            }
            Err(LabError::Missing {
                what: path.display().to_string(),
                hint: format!("cargo build --package {package} (or set WEFT_BIN_DIR)"),
            })
        };
        Ok(Self {
            agent: program("weft-agent", "weft-agent")?,
            federator: program("weft-federator", "weft-federator")?,
            weft: program("weft", "weft-cli")?,
        })
    }
}

impl<'a> Weft<'a> {
    /// Makes certificates, starts the federators and an agent on every node, and waits until all are connected.
    pub fn start(topology: &'a Topology) -> Result<Self> {
        Self::start_with(topology, Settings::default())
    }

    /// As [`Weft::start`], with settings of the test's own.
    pub fn start_with(topology: &'a Topology, settings: Settings) -> Result<Self> {
        Self::start_in(topology, settings, None)
    }

    /// As [`Weft::start_with`], with a host that is a node of a cluster.
    pub fn start_in(
        topology: &'a Topology,
        settings: Settings,
        cluster: Option<ClusterNode>,
    ) -> Result<Self> {
        let programs = Programs::find()?;
        let identities = topology.lab.dir().join("identities");
        let mut weft = Self {
            topology,
            programs,
            identities,
            settings,
            cluster,
            federators: Vec::new(),
            agents: Vec::new(),
        };
        weft.issue_certificates()?;
        let key = topology.lab.dir().join("mesh.key");
        fs::write(&key, random_key()?).during("writing", &key)?;
        for region in &topology.regions {
            weft.federators.push(weft.federator(region, &key)?);
        }
        for region in &topology.regions {
            for node in &region.nodes {
                weft.agents.push(weft.agent(region, node)?);
            }
        }
        for daemon in weft.federators.iter_mut().chain(&mut weft.agents) {
            daemon.start()?;
        }
        weft.await_connected()?;
        Ok(weft)
    }

    /// Waits until every federator answers, sees its agents and its peers.
    pub fn await_connected(&mut self) -> Result<()> {
        let expected = (self.federators.len(), self.agents.len());
        wait::until(
            "all agents and federators to be connected",
            Duration::from_secs(60),
            || {
                for daemon in self.federators.iter_mut().chain(&mut self.agents) {
                    daemon.check()?;
                }
                let answer = self.ask(&["health", "--format", "json"])?;
                let Ok(health) = serde_json::from_str::<Value>(&answer.stdout) else {
                    return Ok(Err(format!("{answer:?}")));
                };
                let seen = answer::connected(&health);
                Ok(
                    if seen == (expected.0, expected.1, expected.0 * (expected.0 - 1)) {
                        Ok(())
                    } else {
                        Err(format!(
                            "federators, agents, peer sessions {seen:?}, expected agents {}",
                            expected.1
                        ))
                    },
                )
            },
        )
    }

    /// Asks the first region's federator, as the operator would.
    pub fn ask(&self, words: &[&str]) -> Result<Answer> {
        self.ask_region(0, words)
    }

    /// Asks a region's federator.
    pub fn ask_region(&self, region: usize, words: &[&str]) -> Result<Answer> {
        let command = self.command_line(region, words);
        let words: Vec<_> = command.iter().skip(1).map(String::as_str).collect();
        let (status, stdout, stderr) = self
            .topology
            .operator
            .try_run(&self.programs.weft, &words)?;
        Ok(Answer {
            status: status.code().unwrap_or(-1),
            stdout,
            stderr,
        })
    }

    /// The command line for a question, to be run on the operator's host.
    pub fn command_line(&self, region: usize, words: &[&str]) -> Vec<String> {
        let address = self.topology.regions[region].address.to_string();
        let identity = self.identities.join("operator").display().to_string();
        let mut line = vec![self.programs.weft.display().to_string()];
        line.extend(words.iter().map(|word| (*word).to_owned()));
        line.extend(["--federator".into(), address, "--identity".into(), identity]);
        line
    }

    /// Asks the first region's federator for an answer in JSON.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        self.json_of(0, words)
    }

    /// Asks a region's federator for an answer in JSON.
    pub fn json_of(&self, region: usize, words: &[&str]) -> Result<Value> {
        let mut all = words.to_vec();
        all.extend(["--format", "json"]);
        let answer = self.ask_region(region, &all)?;
        serde_json::from_str(&answer.stdout).map_err(|_| LabError::Unreadable {
            what: format!("weft {}", words.join(" ")),
            text: format!("{} {} {}", answer.status, answer.stdout, answer.stderr),
        })
    }

    /// All connections of the mesh.
    pub fn connections(&self) -> Result<Vec<Row>> {
        answer::rows(&self.json(&["connections", "--top", LIMIT])?)
    }

    /// The same with what goes on through proxies.
    pub fn chained(&self) -> Result<Vec<Row>> {
        answer::rows(&self.json(&["connections", "--chains", "--top", LIMIT])?)
    }

    /// Kills the agent of a host with SIGKILL.
    pub fn kill_agent(&mut self, host: &Host) -> Result<()> {
        self.agent_of(host)?.kill()
    }

    /// Starts the agent of a host again.
    pub fn start_agent(&mut self, host: &Host) -> Result<()> {
        self.agent_of(host)?.start()
    }

    /// Kills a region's federator with SIGKILL.
    pub fn kill_federator(&mut self, region: usize) -> Result<()> {
        self.federators[region].kill()
    }

    /// Starts a region's federator again.
    pub fn start_federator(&mut self, region: usize) -> Result<()> {
        self.federators[region].start()
    }

    /// Name of a region's federator.
    pub fn federator_name(&self, region: usize) -> &str {
        &self.federators[region].name
    }

    /// Fails with the log's end when a daemon ended by itself.
    pub fn check_alive(&mut self) -> Result<()> {
        self.federators
            .iter_mut()
            .chain(&mut self.agents)
            .try_for_each(Daemon::check)
    }

    fn agent_of(&mut self, host: &Host) -> Result<&mut Daemon> {
        let found = self.agents.iter_mut().find(|daemon| daemon.host == *host);
        found.ok_or_else(|| LabError::Missing {
            what: format!("an agent on {host:?}"),
            hint: "see the topology".into(),
        })
    }

    fn issue_certificates(&self) -> Result<()> {
        let ca = self.identities.join("ca");
        fs::create_dir_all(&self.identities).during("creating", &self.identities)?;
        self.pki(&["init", "--dir", &ca.to_string_lossy(), "--domain", DOMAIN])?;
        let issue = |role: &str, region: &str, name: &str| {
            let (ca, out) = (ca.to_string_lossy(), self.identities.join(name));
            self.pki(&[
                "issue",
                "--ca",
                &ca,
                "--role",
                role,
                "--region",
                region,
                "--name",
                name,
                "--out",
                &out.to_string_lossy(),
            ])
        };
        for region in &self.topology.regions {
            issue("federator", region.name, region.federator.name())?;
            for node in &region.nodes {
                issue("agent", region.name, node.host.name())?;
            }
        }
        issue("operator", self.topology.regions[0].name, "operator")
    }

    fn pki(&self, words: &[&str]) -> Result<()> {
        let mut all = vec!["pki"];
        all.extend(words);
        self.topology
            .operator
            .run(&self.programs.weft, &all)
            .map(drop)
    }

    fn federator(&self, region: &Region, key: &Path) -> Result<Daemon> {
        let host = &region.federator;
        let name = host.name();
        let peers = self
            .topology
            .regions
            .iter()
            .filter(|peer| peer.name != region.name)
            .map(|peer| Peer {
                name: peer.federator.name().into(),
                region: peer.name.into(),
                address: peer.address.to_string(),
            });
        let config = FederatorConfig {
            name,
            region: region.name,
            listen: format!("0.0.0.0:{}", region.address.port()),
            identity: self.identities.join(name),
            data_dir: host.dir().join("federator"),
            mesh: Mesh {
                key_file: key.to_owned(),
                peer: peers.collect(),
            },
            stitch: Stitch {
                expiry_s: self.settings.expiry_s,
            },
        };
        let path = write_config(host, "federator.toml", &config)?;
        Ok(Daemon::new(name, host, &self.programs.federator, path))
    }

    fn agent(&self, region: &Region, node: &Node) -> Result<Daemon> {
        let host = &node.host;
        let name = host.name();
        let second = usize::from(name.ends_with('2'));
        let config = AgentConfig {
            name,
            federator: region.address.to_string(),
            identity: self.identities.join(name),
            data_dir: host.dir().join("agent"),
            cgroup: host.cgroup().to_owned(),
            site: &node.site,
            workload_rule: WORKLOADS.map(|(process, names)| WorkloadRule {
                process,
                workload: names[second],
            }),
            capture: Capture {
                pin_dir: self.topology.lab.bpf_dir().join(name),
            },
            datagrams: Datagrams {
                idle_timeout_s: self.settings.idle_timeout_s,
                dns_idle_timeout_s: self.settings.idle_timeout_s.min(3),
            },
            kubernetes: self
                .cluster
                .as_ref()
                .filter(|cluster| cluster.host == name)
                .map(|cluster| Kubernetes {
                    kubeconfig: cluster.kubeconfig.clone(),
                    node: cluster.node.clone(),
                    labels: cluster.labels.clone(),
                    cluster: false,
                }),
        };
        let path = write_config(host, "agent.toml", &config)?;
        Ok(Daemon::new(name, host, &self.programs.agent, path))
    }
}

impl Daemon {
    fn new(name: &str, host: &Host, program: &Path, config: PathBuf) -> Self {
        Self {
            name: name.into(),
            host: host.clone(),
            program: program.into(),
            config,
            process: None,
        }
    }

    fn start(&mut self) -> Result<()> {
        let kind = self
            .program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let process = self.host.spawn(
            &kind,
            &self.program,
            &["run", "--config", &self.config.to_string_lossy()],
        )?;
        self.process = Some(process);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.process
            .take()
            .map_or(Ok(()), |mut process| process.kill())
    }

    fn check(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), Process::check_alive)
    }
}

#[derive(Serialize)]
struct FederatorConfig<'a> {
    name: &'a str,
    region: &'a str,
    listen: String,
    identity: PathBuf,
    data_dir: PathBuf,
    mesh: Mesh,
    stitch: Stitch,
}

#[derive(Serialize)]
struct Stitch {
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry_s: Option<u64>,
}

#[derive(Serialize)]
struct Mesh {
    key_file: PathBuf,
    peer: Vec<Peer>,
}

#[derive(Serialize)]
struct Peer {
    name: String,
    region: String,
    address: String,
}

#[derive(Serialize)]
struct AgentConfig<'a> {
    name: &'a str,
    federator: String,
    identity: PathBuf,
    data_dir: PathBuf,
    cgroup: PathBuf,
    site: &'a crate::host::Site,
    workload_rule: [WorkloadRule; WORKLOADS.len()],
    capture: Capture,
    datagrams: Datagrams,
    #[serde(skip_serializing_if = "Option::is_none")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Serialize)]
struct Kubernetes {
    kubeconfig: PathBuf,
    node: String,
    labels: Vec<String>,
    cluster: bool,
}

#[derive(Serialize)]
struct WorkloadRule {
    process: &'static str,
    workload: &'static str,
}

#[derive(Serialize)]
struct Datagrams {
    idle_timeout_s: u32,
    dns_idle_timeout_s: u32,
}

#[derive(Serialize)]
struct Capture {
    pin_dir: PathBuf,
}

fn write_config(host: &Host, name: &str, config: &impl Serialize) -> Result<PathBuf> {
    let path = host.dir().join(name);
    let text = toml::to_string(config).map_err(|error| LabError::Unreadable {
        what: name.into(),
        text: error.to_string(),
    })?;
    fs::write(&path, text).during("writing", &path)?;
    Ok(path)
}

/// The directory with the programs: that of the running executable, or its parent for a test in `deps`.
fn beside_executable() -> Result<PathBuf> {
    let own = Path::new("/proc/self/exe");
    let exe = fs::read_link(own).during("reading", own)?;
    let dir = exe.parent().unwrap_or(Path::new("/"));
    Ok(if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir).to_owned()
    } else {
        dir.to_owned()
    })
}

/// 32 random bytes in hexadecimal.
fn random_key() -> Result<String> {
    use std::io::Read;
    let source = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 32];
    fs::File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .during("reading", source)?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}
