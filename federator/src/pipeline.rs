//! From a received batch to a stored row: three threads in a line, each with a bounded queue in front of it.
//!
//! - `journal` writes and syncs whatever waits, in groups, acknowledges, and hands the entries on as they were received;
//! - `core` decodes and applies them in the journal's order, and lets time pass;
//! - `store` writes what changed.
//!
//! When one cannot follow, the queue before it fills up and the one before waits: down to the agents, by QUIC's flow control.
//! When one fails, nothing goes on: [`Pipeline::failed`] says why, and the program ends. What was acknowledged is in the journal.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use weft_mesh::MeshKey;
use weft_wire::batch::lookups::LookupDecoder;
use weft_wire::batch::{BatchDecoder, BatchError};
use weft_wire::control::PeerMessage;
use weft_wire::{AgentInfo, AgentKey, Timestamp, codec, frame::Kind};

use crate::agents::AgentState;
use crate::clock;
use crate::config::Config;
use crate::core::{Contact, Core, CoreConfig, CoreCounters, Input, Told};
use crate::delays::Delays;
use crate::journal::{AgentEntry, BatchEntry, Entry, EntryRef, Journal, PeerEntry};
use crate::peers::Peers;
use crate::record::{Flush, Row};
use crate::store::{Readers, Store, StoreOptions};

/// Submissions that wait for the journal.
pub const SUBMISSIONS: usize = 64;
/// Entries that wait for the core, at most.
const ENTRIES: usize = 16_384;
/// Bytes of messages, as they were received, that are on their way to the core: so far may what is durable and
/// acknowledged be ahead of what is decided and stored. Four million halves: a burst passes at the journal's pace, and
/// a question that waits for all of it to be stored is still answered.
pub const BACKLOG_BYTES: usize = 96 << 20;
/// Bytes that one sync of the journal covers at most.
const GROUP_BYTES: usize = 16 << 20;
/// Flushes whose rows' memory waits to be used again.
const SPARES: usize = 1;
/// Longest pause between two looks at the clock.
const TICK: Duration = Duration::from_millis(10);
/// Rows beyond which a flush does not wait for its time.
const FLUSH_ROWS: usize = 500_000;
/// How often old connections are deleted.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);

/// What goes into the pipeline.
pub enum Submission {
    /// A valid batch of an agent, of halves or of lookups.
    Batch {
        /// Of what.
        of: Rows,
        /// When it arrived.
        at: Timestamp,
        /// Whose it is; told when it is durable.
        agent: Arc<AgentState>,
        /// Its sequence number.
        seq: u64,
        /// The agent's clock ahead of ours.
        skew_us: i64,
        /// Payload of the frame; the batch begins at [`SEQ_BYTES`].
        payload: Vec<u8>,
        /// When its newest half was seen, by the agent's clock.
        newest: Option<Timestamp>,
        /// Its place in the backlog.
        room: Room,
    },
    /// An agent said who it is.
    Agent {
        /// When.
        at: Timestamp,
        /// Its key.
        key: AgentKey,
        /// What it said.
        info: AgentInfo,
    },
    /// A peer said something that outlives this process.
    Peer {
        /// When.
        at: Timestamp,
        /// Its name.
        peer: String,
        /// What it said.
        message: PeerMessage,
        /// Number within its session.
        seq: u64,
        /// Told when it is durable.
        acks: Arc<watch::Sender<u64>>,
        /// Its place in the backlog.
        room: Room,
    },
    /// Something between us and a peer that needs no journal.
    Contact {
        /// Number of our session to that peer, where it is about that.
        session: u64,
        /// What happened.
        contact: Contact,
        /// Its place in the backlog, if it is large.
        room: Option<Room>,
    },
    /// What a peer said before needs no journal, or is durable with this.
    Acknowledge {
        /// Number within its session.
        seq: u64,
        /// Told.
        acks: Arc<watch::Sender<u64>>,
    },
    /// Answered when everything submitted before is in the store.
    Barrier(oneshot::Sender<()>),
}

/// What a batch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Halves.
    Halves,
    /// Lookups.
    Lookups,
}

/// Sequence number before the batch in a frame's payload.
pub const SEQ_BYTES: usize = 8;

/// A message's place in the backlog ([`BACKLOG_BYTES`]), given back when the core has taken it.
pub type Room = OwnedSemaphorePermit;

/// Waits for a message's place in the backlog.
pub async fn room(backlog: &Arc<Semaphore>, bytes: usize) -> Option<Room> {
    let bytes = bytes.min(BACKLOG_BYTES) as u32;
    backlog.clone().acquire_many_owned(bytes).await.ok()
}

enum ToCore {
    /// A batch as it was received: it is short like that, and decoded when its turn comes.
    Batch {
        of: Rows,
        position: u64,
        at: Timestamp,
        agent: AgentKey,
        seq: u64,
        skew_us: i64,
        payload: Vec<u8>,
        room: Room,
    },
    Entry {
        position: u64,
        at: Timestamp,
        input: Box<Input>,
        room: Option<Room>,
    },
    Contact {
        session: u64,
        contact: Contact,
        room: Option<Room>,
    },
    Barrier(oneshot::Sender<()>),
}

struct ToStore {
    flush: Option<Flush>,
    done: Vec<oneshot::Sender<()>>,
}

/// What others may know of the pipeline's state.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the journal.
    pub journal_bytes: AtomicU64,
    /// Position below which the store needs nothing of the journal.
    pub released_position: AtomicU64,
    /// Halves in memory.
    pub in_memory: AtomicU64,
    /// Halves that wait for a partner.
    pub waiting: AtomicU64,
    /// Rows written since the start.
    pub rows_written: AtomicU64,
    /// Transactions in which they were written.
    pub transactions: AtomicU64,
    /// Time that writing them took.
    pub store_us: AtomicU64,
    /// Syncs of the journal.
    pub syncs: AtomicU64,
    /// Totals of the core.
    pub core: Mutex<CoreCounters>,
    /// Totals of the stitcher.
    pub stitching: Mutex<weft_stitching::Counters>,
    /// Totals of the mesh.
    pub mesh: Mutex<Option<weft_mesh::Counters>>,
    /// Halves without partner that are past their hold.
    pub past_hold: AtomicU64,
    /// Transactions that the store has not done yet.
    pub flushes: AtomicU64,
    /// From the other end's naming to the stored match.
    pub exchange: Delays,
}

/// A running pipeline.
pub struct Pipeline {
    /// Into it. The pipeline drains and ends when all clones are dropped.
    pub submissions: mpsc::Sender<Submission>,
    /// Its state.
    pub progress: Arc<Progress>,
    /// For readers of the store.
    pub readers: Readers,
    /// Durable sequence numbers at the start.
    pub sequences: Vec<(AgentKey, u64)>,
    threads: Vec<JoinHandle<()>>,
    failures: mpsc::Receiver<anyhow::Error>,
}

impl Pipeline {
    /// Opens store and journal, replays, and starts the threads.
    pub fn start(config: &Config, peers: Arc<Peers>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&config.data_dir)?;
        let store = Store::open(&StoreOptions {
            path: config.store_file(),
            threads: config.store.threads,
            memory_limit: config.store.memory_limit.clone(),
        })?;
        let readers = store.readers()?;
        let loaded = store.load()?;
        let (covered, from) = (loaded.position, loaded.held_from.min(loaded.position));
        let live = loaded.live.len();
        let mut core = Core::new(core_config(config)?, loaded);
        let mut decoder = Decoders::default();
        let mut last = None;
        let (mut journal, recovery) = Journal::open(
            &config.journal_folder(),
            from,
            covered,
            |position, entry| {
                let (at, input) = replayed(entry, &mut decoder);
                last = Some(at);
                match input {
                    Some(input) if position <= covered => core.recover(position, at, input),
                    Some(input) => core.apply(position, at, input),
                    None => {}
                }
            },
        )?;
        let now = clock::now();
        let down_us = last
            .map_or(0, |last: Timestamp| now.0.saturating_sub(last.0))
            .max(0);
        let position = journal.append(EntryRef::Start {
            arrived_at: now,
            down_us,
        })?;
        journal.commit()?;
        core.apply(position, now, Input::Start { down_us });
        core.advance(now);
        core.forget_delays();
        tracing::info!(
            live,
            entries = recovery.entries,
            torn_bytes = recovery.torn_bytes,
            down_ms = down_us / 1000,
            "state restored"
        );
        if recovery.missing_bytes > 0 {
            tracing::error!(
                bytes = recovery.missing_bytes,
                "journal segments are missing: what they held is lost"
            );
        }
        let sequences = core
            .sequences()
            .iter()
            .map(|(key, seq)| (*key, *seq))
            .collect();
        let parts = Parts {
            journal,
            core,
            store,
            readers,
            peers,
        };
        Ok(Self::spawn(config, parts, sequences)?)
    }

    fn spawn(
        config: &Config,
        parts: Parts,
        sequences: Vec<(AgentKey, u64)>,
    ) -> std::io::Result<Self> {
        let Parts {
            journal,
            core,
            store,
            readers,
            peers,
        } = parts;
        let progress = Arc::new(Progress::default());
        progress.journal_bytes.store(journal.bytes(), Relaxed);
        let (submissions, submitted) = mpsc::channel(SUBMISSIONS);
        let (to_core, entries) = sync_channel(ENTRIES);
        let (to_store, flushes) = sync_channel(1);
        let (emptied, empty) = sync_channel(SPARES);
        let (failed, failures) = mpsc::channel(4);
        let interval = Duration::from_millis(config.store.flush_interval_ms);
        let retention_us = i64::from(config.store.retention_days) * 86_400_000_000;
        let mut threads = Vec::new();
        let mut thread = |name: &str, work: Box<dyn FnOnce() -> anyhow::Result<()> + Send>| {
            let failed = failed.clone();
            let run = move || {
                let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                if let Err(error) =
                    worked.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
                {
                    // Fails only when the program is ending already.
                    let _ = failed.blocking_send(error);
                }
            };
            threads.push(
                std::thread::Builder::new()
                    .name(format!("weft-{name}"))
                    .spawn(run)?,
            );
            std::io::Result::Ok(())
        };
        let shared = progress.clone();
        thread(
            "journal",
            Box::new(move || run_journal(journal, submitted, &to_core, &shared)),
        )?;
        let shared = progress.clone();
        thread(
            "core",
            Box::new(move || {
                let ends = CoreEnds {
                    entries,
                    to_store,
                    empty,
                };
                run_core(core, &ends, interval, &shared, &peers)
            }),
        )?;
        let shared = progress.clone();
        thread(
            "store",
            Box::new(move || run_store(store, &flushes, &emptied, retention_us, &shared)),
        )?;
        Ok(Self {
            submissions,
            progress,
            readers,
            sequences,
            threads,
            failures,
        })
    }

    /// Waits for the first failure.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.failures.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Writes everything that was submitted, and ends. All other clones of `submissions` must be gone.
    pub fn drain(self) {
        drop(self.submissions);
        for thread in self.threads {
            // A panic has been printed by then.
            let _ = thread.join();
        }
    }
}

struct Parts {
    journal: Journal,
    core: Core,
    store: Store,
    readers: Readers,
    peers: Arc<Peers>,
}

/// Reads the mesh's key.
pub fn mesh_key(path: &std::path::Path) -> anyhow::Result<MeshKey> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = text.trim();
    let mut bytes = [0; 32];
    anyhow::ensure!(
        text.len() == 64 && text.is_ascii(),
        "{} does not hold 32 bytes in hexadecimal",
        path.display()
    );
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16)
            .with_context(|| format!("{} does not hold 32 bytes in hexadecimal", path.display()))?;
    }
    Ok(MeshKey::new(bytes))
}

fn core_config(config: &Config) -> anyhow::Result<CoreConfig> {
    let peers = config
        .mesh
        .peers
        .iter()
        .map(|peer| peer.name.clone())
        .collect();
    let key = config.mesh.key_file.as_deref().map(mesh_key).transpose()?;
    Ok(CoreConfig {
        mesh: key.map(|key| (peers, key)),
        name: config.name.clone(),
        hold_us: i64::try_from(config.stitch.hold_ms * 1000).unwrap_or(i64::MAX),
        expiry_us: i64::try_from(config.stitch.expiry_s * 1_000_000).unwrap_or(i64::MAX),
        max_open: config.stitch.max_open,
        seed: random_seed(),
    })
}

/// Not the same in two runs.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// Batches to what the core takes.
#[derive(Debug, Default)]
struct Decoders {
    halves: BatchDecoder,
    lookups: LookupDecoder,
}

impl Decoders {
    fn input<B: AsRef<[u8]>>(
        &mut self,
        of: Rows,
        entry: &BatchEntry<B>,
    ) -> Result<Input, BatchError> {
        let (agent, seq, bytes) = (entry.agent, entry.seq, entry.batch.as_ref());
        Ok(match of {
            Rows::Halves => Input::Batch {
                agent,
                seq,
                skew_us: entry.skew_us,
                batch: self.halves.decode_batch(bytes, agent)?,
            },
            Rows::Lookups => Input::Lookups {
                agent,
                seq,
                batch: self.lookups.decode(bytes)?,
            },
        })
    }
}

/// An entry of the journal as the core takes it. What was written was valid.
fn replayed(entry: Entry, decoders: &mut Decoders) -> (Timestamp, Option<Input>) {
    match entry {
        Entry::Start {
            arrived_at,
            down_us,
        } => (arrived_at, Some(Input::Start { down_us })),
        Entry::Agent(AgentEntry {
            arrived_at,
            agent,
            info,
        }) => {
            let info = codec::from_bytes(Kind::AgentHello, &info).ok();
            (
                arrived_at,
                info.map(|info| Input::Agent { key: agent, info }),
            )
        }
        Entry::Batch(entry) => (entry.arrived_at, decoders.input(Rows::Halves, &entry).ok()),
        Entry::Lookups(entry) => (entry.arrived_at, decoders.input(Rows::Lookups, &entry).ok()),
        Entry::Peer(PeerEntry {
            arrived_at,
            message,
        }) => {
            let said: Option<(String, PeerMessage)> =
                codec::from_bytes(Kind::PeerMessages, &message).ok();
            (
                arrived_at,
                said.map(|(peer, message)| Input::Peer { peer, message }),
            )
        }
    }
}

fn run_journal(
    mut journal: Journal,
    mut submitted: mpsc::Receiver<Submission>,
    to_core: &SyncSender<ToCore>,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut durable = Vec::new();
    let mut onward = Vec::new();
    while let Some(first) = submitted.blocking_recv() {
        let mut next = Some(first);
        while let Some(submission) = next {
            write_entry(&mut journal, submission, &mut durable, &mut onward)?;
            let room = journal.pending_bytes() < GROUP_BYTES && onward.len() < SUBMISSIONS;
            next = if room {
                submitted.try_recv().ok()
            } else {
                None
            };
        }
        if journal.pending_bytes() > 0 {
            journal.commit()?;
            progress.syncs.fetch_add(1, Relaxed);
        }
        let now = clock::now();
        for durable in durable.drain(..) {
            match durable {
                Durable::Agent(agent, seq, newest) => agent.became_durable(seq, newest, now),
                Durable::Peer(acks, seq) => drop(acks.send_replace(seq)),
            }
        }
        for message in onward.drain(..) {
            if to_core.send(message).is_err() {
                anyhow::bail!("the core has ended");
            }
        }
        journal.release(progress.released_position.load(Relaxed))?;
        progress.journal_bytes.store(journal.bytes(), Relaxed);
    }
    Ok(())
}

enum Durable {
    Agent(Arc<AgentState>, u64, Option<Timestamp>),
    Peer(Arc<watch::Sender<u64>>, u64),
}

fn write_entry(
    journal: &mut Journal,
    submission: Submission,
    durable: &mut Vec<Durable>,
    onward: &mut Vec<ToCore>,
) -> anyhow::Result<()> {
    match submission {
        Submission::Batch {
            of,
            at,
            agent,
            seq,
            skew_us,
            payload,
            newest,
            room,
        } => {
            let bytes = payload.get(SEQ_BYTES..).unwrap_or_default();
            let key = agent.key;
            let entry = BatchEntry {
                arrived_at: at,
                agent: key,
                seq,
                skew_us,
                batch: bytes,
            };
            let position = journal.append(match of {
                Rows::Halves => EntryRef::Batch(entry),
                Rows::Lookups => EntryRef::Lookups(entry),
            })?;
            let newest = newest.map(|newest| Timestamp(newest.0.saturating_sub(skew_us)));
            durable.push(Durable::Agent(agent, seq, newest));
            onward.push(ToCore::Batch {
                of,
                position,
                at,
                agent: key,
                seq,
                skew_us,
                payload,
                room,
            });
        }
        Submission::Agent { at, key, info } => {
            let bytes = codec::to_bytes(Kind::AgentHello, &info)?;
            let entry = AgentEntry {
                arrived_at: at,
                agent: key,
                info: bytes.as_slice(),
            };
            let position = journal.append(EntryRef::Agent(entry))?;
            onward.push(ToCore::Entry {
                position,
                at,
                input: Box::new(Input::Agent { key, info }),
                room: None,
            });
        }
        Submission::Peer {
            at,
            peer,
            message,
            seq,
            acks,
            room,
        } => {
            let said = (peer, message);
            let bytes = codec::to_bytes(Kind::PeerMessages, &said)?;
            let position = journal.append(EntryRef::Peer(PeerEntry {
                arrived_at: at,
                message: &bytes,
            }))?;
            durable.push(Durable::Peer(acks, seq));
            let (peer, message) = said;
            onward.push(ToCore::Entry {
                position,
                at,
                input: Box::new(Input::Peer { peer, message }),
                room: Some(room),
            });
        }
        Submission::Acknowledge { seq, acks } => durable.push(Durable::Peer(acks, seq)),
        Submission::Contact {
            session,
            contact,
            room,
        } => onward.push(ToCore::Contact {
            session,
            contact,
            room,
        }),
        Submission::Barrier(done) => onward.push(ToCore::Barrier(done)),
    }
    Ok(())
}

/// The core's ends of its channels.
struct CoreEnds {
    entries: Receiver<ToCore>,
    to_store: SyncSender<ToStore>,
    /// Rows' memory back from the store.
    empty: Receiver<Vec<Row>>,
}

fn run_core(
    mut core: Core,
    ends: &CoreEnds,
    interval: Duration,
    progress: &Progress,
    peers: &Peers,
) -> anyhow::Result<()> {
    // Our sessions to peers by number: what is said is only right for the session that it was made for.
    let mut sessions = HashMap::new();
    let mut decoders = Decoders::default();
    let mut flushed = Instant::now();
    let mut done = Vec::new();
    loop {
        let received = ends.entries.recv_timeout(TICK);
        let ended = matches!(received, Err(RecvTimeoutError::Disconnected));
        match received {
            Ok(ToCore::Batch {
                of,
                position,
                at,
                agent,
                seq,
                skew_us,
                payload,
                room,
            }) => {
                let entry = BatchEntry {
                    arrived_at: at,
                    agent,
                    seq,
                    skew_us,
                    batch: payload.get(SEQ_BYTES..).unwrap_or_default(),
                };
                core.apply(position, at, decoders.input(of, &entry)?);
                drop(room);
            }
            Ok(ToCore::Entry {
                position,
                at,
                input,
                room,
            }) => {
                core.apply(position, at, *input);
                drop(room);
            }
            Ok(ToCore::Contact {
                session,
                contact,
                room,
            }) => {
                if let Contact::Up { peer, .. } = &contact {
                    sessions.insert(peer.clone(), session);
                }
                core.contact(&contact);
                drop(room);
            }
            Ok(ToCore::Barrier(waiting)) => done.push(waiting),
            Err(_) => core.advance(clock::now()),
        }
        while let Some(told) = core.poll_told() {
            let (Told::Send { peer, .. } | Told::Redial { peer }) = &told;
            let session = sessions.get(peer).copied().unwrap_or(0);
            peers.tell(session, told);
        }
        // While the store is busy, what changes is gathered: the more it has to do, the larger its transactions.
        let idle = progress.flushes.load(Relaxed) == 0;
        if ended
            || !done.is_empty()
            || (idle && flushed.elapsed() >= interval)
            || core.unflushed() >= FLUSH_ROWS
        {
            core.advance(clock::now());
            flushed = Instant::now();
            report(&core, progress, peers);
            let changed = core.changed();
            if changed || !done.is_empty() {
                if let Ok(rows) = ends.empty.try_recv() {
                    core.reuse(rows);
                }
                // Who asks is to see everything, and an orderly end leaves the store complete.
                let whole = ended || !done.is_empty();
                let flush = changed.then(|| {
                    if whole {
                        core.flush()
                    } else {
                        core.flush_all_but_waiting()
                    }
                });
                progress.flushes.fetch_add(1, Relaxed);
                if ends
                    .to_store
                    .send(ToStore {
                        flush,
                        done: std::mem::take(&mut done),
                    })
                    .is_err()
                {
                    anyhow::bail!("the store has ended");
                }
            }
        }
        if ended {
            return Ok(());
        }
    }
}

fn report(core: &Core, progress: &Progress, peers: &Peers) {
    for peer in peers.all() {
        peer.queued.store(core.queued(&peer.name) as u64, Relaxed);
    }
    progress.in_memory.store(core.in_memory() as u64, Relaxed);
    progress.waiting.store(core.waiting() as u64, Relaxed);
    progress.past_hold.store(core.past_hold() as u64, Relaxed);
    if let Ok(mut counters) = progress.mesh.lock() {
        *counters = core.mesh_counters();
    }
    if let Ok(mut counters) = progress.stitching.lock() {
        *counters = core.stitching_counters();
    }
    if let Ok(mut counters) = progress.core.lock() {
        *counters = core.counters();
    }
}

fn run_store(
    mut store: Store,
    flushes: &Receiver<ToStore>,
    emptied: &SyncSender<Vec<Row>>,
    retention_us: i64,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut retained: Option<Instant> = None;
    while let Ok(ToStore { flush, done }) = flushes.recv() {
        if let Some(flush) = flush {
            let began = Instant::now();
            store.flush(&flush)?;
            progress
                .store_us
                .fetch_add(began.elapsed().as_micros() as u64, Relaxed);
            progress.transactions.fetch_add(1, Relaxed);
            progress
                .rows_written
                .fetch_add(flush.rows.len() as u64, Relaxed);
            let needed = flush.position.min(flush.held_from);
            progress.released_position.store(needed, Relaxed);
            progress.exchange.since(&flush.named, clock::now());
            // Enough spares, or the core has ended: then it is simply given back.
            let _ = emptied.try_send(flush.rows);
        }
        progress.flushes.fetch_sub(1, Relaxed);
        for waiting in done {
            // Nobody waits any more: the question was given up.
            let _ = waiting.send(());
        }
        if retained.is_none_or(|at| at.elapsed() >= RETENTION_INTERVAL) {
            retained = Some(Instant::now());
            store.retain(Timestamp(clock::now().0.saturating_sub(retention_us)))?;
        }
    }
    Ok(())
}
