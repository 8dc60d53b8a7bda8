//! Made-up agents and operators, for tests and benchmarks: they speak the real protocol over real QUIC.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, bail};
use weft_transport::{
    Dialler, Expect, FrameReceiver, FrameSender, Identity, PeerRole, SpiffeId, pki,
};
use weft_wire::cluster::ClusterBatch;
use weft_wire::control::{Ack, AgentHello, AgentStatus, AgentWelcome, PROTOCOL_VERSION};
use weft_wire::query::{
    ChainLink, Completeness, Connection, DnsRow, Filter, LookupRecord, QueryError, Question,
    ReportRow, Request, Response, Scope, SqlValue,
};
use weft_wire::{
    AgentInfo, AgentKey, Fingerprint, Half, HalfBatch, HalfId, HalfState, LookupBatch, Owner,
    Process, Protocol, Role, Site, Timestamp, batch,
};

use crate::clock;
use crate::config::Config;
use crate::run::Federator;

/// Trust domain of everything here.
pub const DOMAIN: &str = "test.example";
/// Longest wait for an answer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a CA and identities made as they are asked for.
#[derive(Debug)]
pub struct World {
    folder: PathBuf,
}

impl World {
    /// Makes the CA.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let world = Self {
            folder: folder.to_path_buf(),
        };
        pki::init_ca(
            &world.folder.join("ca"),
            DOMAIN,
            pki::Validity::days_from(clock::now(), 30),
        )?;
        let key: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(world.mesh_key(), key)?;
        Ok(world)
    }

    /// The mesh's key.
    pub fn mesh_key(&self) -> PathBuf {
        self.folder.join("mesh.key")
    }

    /// The folder of an identity, made when it is not there.
    pub fn identity(&self, region: &str, role: PeerRole, name: &str) -> anyhow::Result<PathBuf> {
        let out = self.folder.join(format!("{region}-{}-{name}", role.name()));
        if !out.exists() {
            let id = SpiffeId::new(DOMAIN, region, role, name)?;
            pki::issue(
                &self.folder.join("ca"),
                &out,
                &id,
                pki::Validity::days_from(clock::now(), 30),
            )?;
        }
        Ok(out)
    }

    /// A configuration file's text. Peers: (name, address); everyone's region is `r-NAME`.
    pub fn federator(
        &self,
        name: &str,
        listen: &str,
        peers: &[(&str, &str)],
    ) -> anyhow::Result<String> {
        let region = format!("r-{name}");
        let identity = self.identity(&region, PeerRole::Federator, name)?;
        let mut text = format!(
            "name = {name:?}\nregion = {region:?}\nlisten = {listen:?}\nidentity = {:?}\ndata_dir = {:?}\n[stitch]\nhold_ms = 200\n[store]\nflush_interval_ms = 100\n",
            identity.display().to_string(),
            self.folder
                .join(format!("data-{name}"))
                .display()
                .to_string(),
        );
        text.push_str(&format!(
            "[mesh]\nkey_file = {:?}\n",
            self.mesh_key().display().to_string()
        ));
        for (peer, address) in peers {
            text.push_str(&format!(
                "[[mesh.peer]]\nname = {peer:?}\nregion = \"r-{peer}\"\naddress = {address:?}\n"
            ));
        }
        Ok(text)
    }

    /// The same, read.
    pub fn config(
        &self,
        name: &str,
        listen: &str,
        peers: &[(&str, &str)],
    ) -> anyhow::Result<Config> {
        Config::parse(&self.federator(name, listen, peers)?)
    }

    /// Starts a federator that knows no other; where it listens.
    pub async fn start(&self, name: &str) -> anyhow::Result<(Federator, String)> {
        let federator = Federator::start(self.config(name, "127.0.0.1:0", &[])?).await?;
        let address = federator.address()?.to_string();
        Ok((federator, address))
    }

    /// Connects a made-up agent.
    pub async fn agent(&self, federator: &str, address: &str, name: &str) -> anyhow::Result<Agent> {
        let folder = self.identity(&format!("r-{federator}"), PeerRole::Agent, name)?;
        Agent::connect(&Identity::load(&folder)?, address, name).await
    }

    /// All connections of the federator that listens there.
    pub async fn connections(&self, address: &str) -> anyhow::Result<Answered> {
        self.operator(address).await?.connections(local()).await
    }

    /// Connects an operator.
    pub async fn operator(&self, address: &str) -> anyhow::Result<Operator> {
        let folder = self.identity("ops", PeerRole::Operator, "op")?;
        let dialler = Dialler::new(&Identity::load(&folder)?)?;
        let session = dialler.dial(address, &Expect::any_federator()).await?;
        Ok(Operator {
            session,
            _dialler: dialler,
        })
    }
}

/// A made-up agent with a session.
pub struct Agent {
    /// Its key.
    pub key: AgentKey,
    /// What the federator had of it when it connected.
    pub durable_seq: u64,
    /// Highest sequence number acknowledged.
    pub acknowledged: u64,
    /// Its session.
    pub session: weft_transport::Session,
    sender: FrameSender,
    receiver: FrameReceiver,
    _dialler: Dialler,
}

impl Agent {
    /// Connects and says hello.
    pub async fn connect(identity: &Identity, address: &str, name: &str) -> anyhow::Result<Self> {
        let dialler = Dialler::new(identity)?;
        let session = dialler.dial(address, &Expect::any_federator()).await?;
        let (mut sender, mut receiver) = session.open_bi().await?;
        let site = Site {
            cloud: "lab".into(),
            zone: format!("zone-{name}"),
            ..Site::default()
        };
        let agent = AgentInfo {
            name: name.into(),
            site,
            ..AgentInfo::default()
        };
        let hello = AgentHello {
            version: PROTOCOL_VERSION,
            agent,
            now: clock::now(),
        };
        sender.send(&hello, PATIENCE).await?;
        let welcome: AgentWelcome = receiver.expect(PATIENCE).await?;
        let durable_seq = welcome.durable_seq;
        let key = identity.key();
        Ok(Self {
            key,
            durable_seq,
            acknowledged: durable_seq,
            session,
            sender,
            receiver,
            _dialler: dialler,
        })
    }

    /// Sends a batch.
    pub async fn send(&mut self, seq: u64, halves: &HalfBatch) -> anyhow::Result<()> {
        self.send_encoded(seq, &batch::encode(halves)?).await
    }

    /// Sends a batch that is encoded already.
    pub async fn send_encoded(&mut self, seq: u64, encoded: &[u8]) -> anyhow::Result<()> {
        Ok(self.sender.send_batch(seq, encoded, PATIENCE).await?)
    }

    /// Sends lookups.
    pub async fn send_lookups(&mut self, seq: u64, lookups: &LookupBatch) -> anyhow::Result<()> {
        self.send_encoded_lookups(seq, &batch::lookups::encode(lookups)?)
            .await
    }

    /// Sends lookups that are encoded already.
    pub async fn send_encoded_lookups(&mut self, seq: u64, encoded: &[u8]) -> anyhow::Result<()> {
        Ok(self.sender.send_lookups(seq, encoded, PATIENCE).await?)
    }

    /// Tells of a cluster.
    pub async fn tell(&mut self, batch: &ClusterBatch) -> anyhow::Result<()> {
        Ok(self.sender.send_cluster(1, batch, PATIENCE).await?)
    }

    /// Sends its counters.
    pub async fn report(&mut self, status: &AgentStatus) -> anyhow::Result<()> {
        Ok(self.sender.send(status, PATIENCE).await?)
    }

    /// Waits until this sequence number is acknowledged.
    pub async fn acknowledged(&mut self, seq: u64) -> anyhow::Result<()> {
        while self.acknowledged < seq {
            let ack: Ack = self.receiver.expect(PATIENCE).await?;
            self.acknowledged = ack.seq;
        }
        Ok(())
    }
}

/// Half of a made-up connection: two of one number, of two agents and roles, are the ends of one, as seen through a NAT
/// that rewrites everything.
pub fn half(agent: AgentKey, number: u32, role: Role, state: HalfState) -> Half {
    let port = 1024 + (number % 60_000) as u16;
    // Ports are few: beyond them comes the next host, and the next address of the NAT.
    let host = (number / 60_000) as u8;
    let (local, remote) = match role {
        Role::Client => (([10, 1, host, 2], port), ([203, 0, 113, 9], 443)),
        Role::Server => (
            ([198, 51, 100, 2], 8443),
            ([198, 51, 100, 1 + host], port.wrapping_mul(3)),
        ),
    };
    let at = clock::now();
    let (sent, received) = if role == Role::Client {
        (18_204, 977)
    } else {
        (977, 18_204)
    };
    Half {
        id: HalfId::new(agent, BOOT, number.into()),
        cookie: number.into(),
        protocol: Protocol::Tcp,
        role,
        state,
        fingerprint: Fingerprint::TcpIsn {
            client: number.wrapping_mul(0x9e37_79b1),
            server: number.wrapping_mul(0x85eb_ca6b) ^ 0x5bd1_e995,
        },
        local: local.into(),
        remote: remote.into(),
        opened_at: Timestamp(at.0 - 2000),
        closed_at: state.finished().then_some(at),
        seen_at: at,
        bytes_sent: sent,
        bytes_received: received,
        packets_sent: 12,
        packets_received: 11,
        rtt_us: 800,
        retransmits: 0,
        owner: 0,
        ..Half::default()
    }
}

const BOOT: u64 = 7;

/// A batch of such halves, of one process.
pub fn batch_of(workload: &str, halves: Vec<Half>) -> HalfBatch {
    let process = Process {
        pid: 42,
        name: workload.into(),
        ..Process::default()
    };
    let owner = Owner {
        process: Some(process),
        workload: workload.into(),
        ..Owner::default()
    };
    HalfBatch {
        boot: BOOT,
        owners: vec![owner],
        halves,
        ..HalfBatch::default()
    }
}

/// An operator with a session.
pub struct Operator {
    session: weft_transport::Session,
    _dialler: Dialler,
}

/// What an operator was answered.
#[derive(Debug, Default)]
pub struct Answered {
    /// Connections.
    pub connections: Vec<Connection>,
    /// Rows of a report.
    pub report: Vec<ReportRow>,
    /// Columns of an SQL answer.
    pub columns: Vec<String>,
    /// Its rows.
    pub rows: Vec<Vec<SqlValue>>,
    /// Health.
    pub health: Vec<weft_wire::query::FederatorHealth>,
    /// Rows of a report on lookups.
    pub dns: Vec<DnsRow>,
    /// Lookups.
    pub lookups: Vec<LookupRecord>,
    /// What goes on through a proxy.
    pub chains: Vec<ChainLink>,
    /// What it rests on.
    pub completeness: Completeness,
    /// Whether there is more.
    pub truncated: bool,
}

impl Operator {
    /// Asks.
    pub async fn ask(
        &self,
        scope: Scope,
        what: Question,
    ) -> anyhow::Result<Result<Answered, QueryError>> {
        let (mut sender, mut receiver) = self.session.open_bi().await?;
        sender
            .send(
                &Request {
                    version: PROTOCOL_VERSION,
                    scope,
                    what,
                },
                PATIENCE,
            )
            .await?;
        sender.finish();
        let mut answer = Answered::default();
        loop {
            match receiver
                .expect(PATIENCE)
                .await
                .context("waiting for an answer")?
            {
                Response::Connections(mut rows) => answer.connections.append(&mut rows),
                Response::Report(mut rows) => answer.report.append(&mut rows),
                Response::SqlColumns(columns) => answer.columns = columns,
                Response::SqlRows(mut rows) => answer.rows.append(&mut rows),
                Response::Health(mut federators) => answer.health.append(&mut federators),
                Response::Dns(mut rows) => answer.dns.append(&mut rows),
                Response::Lookups(mut rows) => answer.lookups.append(&mut rows),
                Response::Chains(mut rows) => answer.chains.append(&mut rows),
                Response::End {
                    completeness,
                    truncated,
                } => {
                    return Ok(Ok(Answered {
                        completeness,
                        truncated,
                        ..answer
                    }));
                }
                Response::Error(error) => return Ok(Err(error)),
            }
        }
    }

    /// All connections of this federator, or of the mesh.
    pub async fn connections(&self, scope: Scope) -> anyhow::Result<Answered> {
        let question = Question::Connections {
            filter: Filter::default(),
            limit: 1_000_000,
        };
        match self.ask(scope, question).await? {
            Ok(answer) => Ok(answer),
            Err(error) => bail!("{error}"),
        }
    }

    /// One SQL statement.
    pub async fn sql(
        &self,
        scope: Scope,
        text: &str,
    ) -> anyhow::Result<Result<Answered, QueryError>> {
        let question = Question::Sql {
            text: text.into(),
            filter: Filter::default(),
            limit: 10_000,
        };
        self.ask(scope, question).await
    }
}

/// An address that nobody else takes, also while nobody listens there: the host is this process's alone, and the port none that is
/// given to who asks for any.
pub fn address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let [_, first, second, third] = std::process::id().to_be_bytes();
    let port = NEXT.fetch_add(1, Relaxed);
    format!("127.{}.{second}.{third}:{port}", 64 + first % 64)
}

/// Only the federator that is asked.
pub fn local() -> Scope {
    Scope::Local { absent: Vec::new() }
}
