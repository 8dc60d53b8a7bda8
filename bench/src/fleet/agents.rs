//! The agents: each dials, says hello and how it is, sends what it has, and comes back when its session ends, by the rules of the
//! real one ([`Machine`]).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use weft_agent::uplink::machine::{Machine, Step};
use weft_agent::uplink::{PEER_TIMEOUT, STATUS_INTERVAL};
use weft_transport::{
    Dialler, Expect, FrameReceiver, FrameSender, Identity, PeerRole, Session, SpiffeId,
    TransportError, pki,
};
use weft_wire::control::{Ack, AgentHello, AgentStatus, AgentWelcome, PROTOCOL_VERSION};
use weft_wire::{AgentInfo, batch};

use crate::uplink::{DOMAIN, REGION, now};
use crate::workload::Workload;

/// UDP sockets that the agents share.
const SOCKETS: usize = 16;

/// All of them.
pub struct Fleet {
    address: String,
    agents: Mutex<Vec<Agent>>,
    prober: Dialler,
    load: watch::Sender<bool>,
    batch_every: Duration,
    /// Which start of the federator is the current one.
    run: AtomicUsize,
    connected: AtomicUsize,
    attempts: AtomicUsize,
    acknowledged: AtomicUsize,
    why: Mutex<String>,
}

/// One of them.
struct Agent {
    number: usize,
    dialler: Dialler,
    batches: Vec<Vec<u8>>,
}

/// Makes their certificates.
pub fn issue(folder: &Path, agents: usize) -> Result<Vec<PathBuf>> {
    let validity = pki::Validity::days_from(now(), 1);
    (0..agents)
        .map(|number| {
            let name = name(number);
            let id = SpiffeId::new(DOMAIN, REGION, PeerRole::Agent, &name)?;
            let out = folder.join(name);
            pki::issue(&folder.join("ca"), &out, &id, validity)?;
            Ok(out)
        })
        .collect()
}

fn name(number: usize) -> String {
    format!("node-{number:05}")
}

impl Fleet {
    /// Reads the identities and makes the batches: those of two neighbours are the ends of the same connections.
    pub fn new(
        address: &str,
        identities: &[PathBuf],
        batches: usize,
        rows: usize,
        batch_every: Duration,
    ) -> Result<Arc<Self>> {
        let mut sockets = Vec::with_capacity(SOCKETS);
        for at in 0..SOCKETS {
            let identity = Identity::load(&identities[at % identities.len()])?;
            sockets.push(Dialler::new(&identity)?);
        }
        let mut workload = Workload::new(11);
        let mut agents = Vec::with_capacity(identities.len());
        let mut others = Vec::new();
        for (number, folder) in identities.iter().enumerate() {
            let identity = Identity::load(folder)?;
            let dialler = sockets[number % SOCKETS].with_identity(&identity)?;
            if number % 2 == 0 {
                others = (0..batches)
                    .map(|_| workload.pair_of_batches(rows))
                    .collect();
            }
            let own = others
                .iter()
                .map(|pair| batch::encode(&pair[number % 2]).context("a batch"));
            agents.push(Agent {
                number,
                dialler,
                batches: own.collect::<Result<_>>()?,
            });
        }
        Ok(Arc::new(Self {
            address: address.to_owned(),
            agents: Mutex::new(agents),
            prober: sockets.swap_remove(0),
            load: watch::Sender::new(false),
            batch_every,
            run: AtomicUsize::new(0),
            connected: AtomicUsize::new(0),
            attempts: AtomicUsize::new(0),
            acknowledged: AtomicUsize::new(0),
            why: Mutex::default(),
        }))
    }

    /// One session that ends at once.
    pub async fn probe(&self) -> Result<()> {
        let session = self
            .prober
            .dial(&self.address, &Expect::any_federator())
            .await?;
        session.close(weft_wire::control::CloseCode::Done, "");
        Ok(())
    }

    /// All dial.
    pub fn begin(self: &Arc<Self>) {
        let agents = std::mem::take(&mut *lock(&self.agents));
        for agent in agents {
            tokio::spawn(agent.run(self.clone()));
        }
    }

    /// Begins or ends the load.
    pub fn load(&self, on: bool) {
        self.load.send_replace(on);
    }

    /// Sessions count anew from now on: the federator that they were with is gone.
    pub fn forget(&self) {
        self.run.fetch_add(1, Relaxed);
        self.connected.store(0, Relaxed);
    }

    /// Agents that have a session.
    pub fn connected(&self) -> usize {
        self.connected.load(Relaxed)
    }

    /// Sessions that were dialled.
    pub fn attempts(&self) -> usize {
        self.attempts.load(Relaxed)
    }

    /// Batches acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Relaxed)
    }

    /// Why a session ended or did not begin, the latest.
    pub fn why(&self) -> String {
        lock(&self.why).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Link {
    session: Session,
    send: FrameSender,
    receive: FrameReceiver,
}

impl Agent {
    async fn run(self, fleet: Arc<Fleet>) {
        let start = Instant::now();
        let mut machine = Machine::new(self.number as u64);
        loop {
            match machine.step(start.elapsed()) {
                Step::Wait(time) => sleep(time).await,
                Step::Dial => {
                    if let Err(error) = self.attempt(&fleet, &mut machine, start).await {
                        *lock(&fleet.why) = error.to_string();
                    }
                    machine.ended(start.elapsed());
                }
            }
        }
    }

    async fn attempt(
        &self,
        fleet: &Fleet,
        machine: &mut Machine,
        start: Instant,
    ) -> Result<(), TransportError> {
        fleet.attempts.fetch_add(1, Relaxed);
        let (link, welcome) = self.connect(&fleet.address).await?;
        machine.connected(start.elapsed(), welcome.durable_seq);
        let run = fleet.run.load(Relaxed);
        fleet.connected.fetch_add(1, Relaxed);
        let served = self
            .serve(link, fleet, welcome.durable_seq, machine, start)
            .await;
        if run == fleet.run.load(Relaxed) {
            fleet.connected.fetch_sub(1, Relaxed);
        }
        served
    }

    async fn connect(&self, address: &str) -> Result<(Link, AgentWelcome), TransportError> {
        let session = self.dialler.dial(address, &Expect::any_federator()).await?;
        let (mut send, mut receive) = session.open_bi().await?;
        let agent = AgentInfo {
            name: name(self.number),
            version: "bench".to_owned(),
            ..AgentInfo::default()
        };
        let hello = AgentHello {
            version: PROTOCOL_VERSION,
            agent,
            now: now(),
        };
        send.send(&hello, PEER_TIMEOUT).await?;
        let welcome = receive.expect(PEER_TIMEOUT).await?;
        let link = Link {
            session,
            send,
            receive,
        };
        Ok((link, welcome))
    }

    async fn serve(
        &self,
        mut link: Link,
        fleet: &Fleet,
        durable_seq: u64,
        machine: &mut Machine,
        start: Instant,
    ) -> Result<(), TransportError> {
        let mut load = fleet.load.subscribe();
        // Not all at the same moment.
        let first = fleet.batch_every.mul_f64(self.number as f64 * 0.618 % 1.0);
        let mut batches = interval_at(Instant::now() + first, fleet.batch_every);
        let mut status = tokio::time::interval(STATUS_INTERVAL);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = durable_seq;
        loop {
            let on = *load.borrow_and_update();
            tokio::select! {
                received = link.receive.recv() => {
                    let frame = received?.ok_or(TransportError::StreamEnded)?;
                    let ack: Ack = link.session.decode(&frame)?;
                    // One that was never sent cannot come from a federator of ours.
                    let _ = machine.acknowledged(start.elapsed(), ack.seq);
                    fleet.acknowledged.fetch_add(1, Relaxed);
                }
                _ = status.tick() => {
                    let status = AgentStatus { now: now(), ..AgentStatus::default() };
                    link.send.send(&status, PEER_TIMEOUT).await?;
                }
                _ = batches.tick(), if on => {
                    if let Some(batch) = self.batches.get(told as usize) {
                        told += 1;
                        machine.sent(start.elapsed(), told, batch.len());
                        link.send.send_batch(told, batch, PEER_TIMEOUT).await?;
                    }
                }
                _ = load.changed() => batches.reset_after(first),
            }
        }
    }
}
