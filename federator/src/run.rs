//! The running program.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use weft_transport::join::JoinListener;
use weft_transport::{Dialler, Identity, Listener, PeerRole};
use weft_wire::control::CloseCode;

use crate::agents::AgentStates;
use crate::config::Config;
use crate::enrol::{Enrol, share};
use crate::health::{Sources, Vitals};
use crate::limits::PeerBudgets;
use crate::membership;
use crate::metrics::serve;
use crate::peers::Peers;
use crate::pipeline::{BACKLOG_BYTES, Pipeline, Progress, Submission, random_seed};
use crate::query::Queries;
use crate::query::dns::Lists;
use crate::server::{Server, ServerCounters};

/// Longest wait for sessions to end when the program is told to.
const DRAIN: Duration = Duration::from_secs(5);

/// How often it is looked who is gone.
const GONE_INTERVAL: Duration = Duration::from_secs(60);

/// A federator that takes sessions.
pub struct Federator {
    pipeline: Pipeline,
    listener: Arc<Listener>,
    server: Arc<Server>,
    tasks: JoinSet<()>,
    join_address: Option<std::net::SocketAddr>,
}

/// Loads the identity, and holds it against the configuration.
pub fn identity(config: &Config) -> anyhow::Result<Identity> {
    let identity = Identity::load(&config.identity)?;
    let id = identity.id();
    ensure!(
        id.role() == PeerRole::Federator,
        "the certificate is for {id}, which is no federator"
    );
    ensure!(
        id.name() == config.name,
        "the certificate is for {:?}, the configuration says {:?}",
        id.name(),
        config.name
    );
    ensure!(
        id.region() == config.region,
        "the certificate is for region {:?}, the configuration says {:?}",
        id.region(),
        config.region
    );
    Ok(identity)
}

/// Where others reach this federator; empty when that cannot be known.
fn advertised(config: &Config, listening: std::net::SocketAddr) -> String {
    match &config.mesh.advertise {
        Some(address) => address.clone(),
        None if listening.ip().is_unspecified() => {
            tracing::warn!(
                "mesh.advertise is not set and listen is no address: only federators that name this one in their configuration \
                 can dial it, and it tells agents of no other federator"
            );
            String::new()
        }
        None => listening.to_string(),
    }
}

impl Federator {
    /// Restores the state and begins to take sessions.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let identity = identity(&config)?;
        let peers = Arc::new(Peers::new(
            &config.name,
            &config.region,
            &config.mesh.known(),
            random_seed(),
            config.mesh.takes_part(),
        ));
        for (name, region, address) in membership::remembered(&config.data_dir) {
            peers.place(&name, &region, &address);
        }
        let (starting, known) = (config.clone(), peers.clone());
        let pipeline =
            tokio::task::spawn_blocking(move || Pipeline::start(&starting, known)).await??;
        let listener = Listener::bind_with(config.listen, &identity, config.limits.listening());
        let listener = Arc::new(listener.context("cannot listen")?);
        let agents = Arc::new(AgentStates::new(&pipeline.sequences));
        let counters = Arc::new(ServerCounters::default());
        let enrol = Arc::new(Enrol::open(
            &config,
            identity.clone(),
            agents.clone(),
            counters.enrol.clone(),
        )?);
        let sources = Sources {
            identity: identity.clone(),
            listener: listener.clone(),
            agents: agents.clone(),
            peers: peers.clone(),
            progress: pipeline.progress.clone(),
            sessions: counters.clone(),
        };
        let vitals = Arc::new(Vitals::new(&config, sources));
        let queries = Arc::new(Queries {
            name: config.name.clone(),
            readers: pipeline.readers.clone(),
            submissions: pipeline.submissions.clone(),
            room: Semaphore::new(config.query.concurrent),
            local_answers: Semaphore::new(config.query.concurrent),
            mesh_answers: Semaphore::new(config.query.concurrent),
            peers: peers.clone(),
            vitals: vitals.clone(),
            clusters: Arc::default(),
            limits: config.query.clone(),
            lists: Arc::new(Lists::new(&config.dns)),
        });
        let server = Arc::new(Server {
            name: config.name.clone(),
            agents,
            submissions: pipeline.submissions.clone(),
            backlog: Arc::new(Semaphore::new(BACKLOG_BYTES)),
            progress: pipeline.progress.clone(),
            journal_max_bytes: config.journal.max_bytes,
            limits: config.limits.clone(),
            peer_budgets: PeerBudgets::default(),
            min_free_bytes: config.journal.min_free_bytes,
            queries,
            peers: peers.clone(),
            enrol: enrol.clone(),
            counters,
            started: tokio::time::Instant::now(),
        });
        let dialler = Dialler::new(&identity)?;
        let mut tasks = JoinSet::new();
        if config.mesh.takes_part() {
            let address = advertised(&config, listener.local_addr()?);
            let (members, task) = membership::start(
                &config,
                address,
                peers.clone(),
                pipeline.submissions.clone(),
            )?;
            peers.attach(members);
            tasks.spawn(task.run());
        }
        tasks.spawn(server.clone().run(listener.clone()));
        let silent_us = i64::from(config.agents.silent_days) * 86_400_000_000;
        tasks.spawn(agents_gone(server.clone(), silent_us));
        tasks.spawn(share::run(enrol.clone(), peers.clone()));
        let followed = identity.clone();
        tasks.spawn(async move { followed.follow().await });
        let mut join_address = None;
        if let Some(settings) = &config.enrol {
            let joins = JoinListener::bind(settings.listen, &identity).context("enrol.listen")?;
            join_address = Some(joins.local_addr()?);
            // Set once: here.
            let _ = server.counters.joining.set(joins.counters().clone());
            tasks.spawn(async move { joins.serve(enrol).await });
        }
        tasks.spawn(peers.run(dialler, pipeline.submissions.clone()));
        tasks.spawn(vitals.clone().sample());
        if let Some(metrics) = &config.metrics {
            let address = metrics.listen;
            let http = TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?;
            tasks.spawn(serve(http, vitals.clone()));
        }
        tracing::info!(name = config.name, address = %listener.local_addr()?, "listening");
        Ok(Self {
            pipeline,
            listener,
            server,
            tasks,
            join_address,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> anyhow::Result<std::net::SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Where nodes join, if they can.
    pub fn join_address(&self) -> Option<std::net::SocketAddr> {
        self.join_address
    }

    /// Totals of the sessions.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// How far the pipeline is.
    pub fn progress(&self) -> &Progress {
        &self.pipeline.progress
    }

    /// Waits for a failure that ends the program.
    pub async fn failed(&mut self) -> anyhow::Error {
        self.pipeline.failed().await
    }

    /// Ends: no more sessions, everything acknowledged into the store.
    pub async fn drain(mut self) {
        self.listener
            .close(CloseCode::Draining, "shutting down")
            .await;
        self.tasks.shutdown().await;
        // Sessions hold the server, and with it the way into the pipeline, until they have noticed.
        let ended = async {
            while Arc::strong_count(&self.server) > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let all = tokio::time::timeout(DRAIN, ended).await.is_ok();
        drop(self.server);
        if all {
            let _ = tokio::task::spawn_blocking(move || self.pipeline.drain()).await;
        } else {
            tracing::warn!("sessions did not end in time; the journal has what the store has not");
        }
    }
}

/// Tells the core of agents that have been silent for so long.
async fn agents_gone(server: Arc<Server>, silent_us: i64) {
    loop {
        let now = crate::clock::now();
        for key in server.agents.gone(now, silent_us) {
            if server
                .submissions
                .send(Submission::Gone { at: now, key })
                .await
                .is_err()
            {
                return;
            }
        }
        tokio::time::sleep(GONE_INTERVAL).await;
    }
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Config) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let mut federator = Federator::start(config).await?;
    tokio::select! {
        error = federator.failed() => return Err(error),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining");
    federator.drain().await;
    Ok(())
}
