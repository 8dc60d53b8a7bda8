//! From a received batch to a stored row: three threads in a line, each with a bounded queue in front of it.
//!
//! - `journal` writes and syncs whatever waits, in groups, acknowledges, and hands the entries on as they were received;
//! - `core` decodes and applies them in the journal's order, and lets time pass;
//! - `store` writes what changed.
//!
//! Beside them `recall` looks in the store for the other ends of halves that came late, and submits what it finds.
//!
//! When one cannot follow, the queue before it fills up and the one before waits: down to the agents, by QUIC's flow control.
//! When one fails, nothing goes on: [`Pipeline::failed`] says why, and the program ends. What was acknowledged is in the journal.

mod threads;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use weft_mesh::{MAX_KEYS, MeshKey};
use weft_wire::batch::lookups::LookupDecoder;
use weft_wire::batch::{BatchDecoder, BatchError};
use weft_wire::control::PeerMessage;
use weft_wire::{AgentInfo, AgentKey, Timestamp, codec, frame::Kind};

use self::threads::{CoreEnds, StoreEnds, run_core, run_journal, run_recall, run_store};
use crate::agents::AgentState;
use crate::clock;
use crate::config::Config;
use crate::core::{Contact, Core, CoreConfig, CoreCounters, Input};
use crate::delays::Delays;
use crate::journal::{AgentEntry, BatchEntry, Entry, EntryRef, Journal, PeerEntry};
use crate::membership::remembered;
use crate::peers::Peers;
use crate::recall::Recaller;
use crate::record::{Flush, Found};
use crate::store::{Readers, Store, StoreOptions};

/// Submissions that wait for the journal.
pub const SUBMISSIONS: usize = 64;
/// Entries that wait for the core, at most.
const ENTRIES: usize = 16_384;
/// Bytes of messages, as they were received, that are on their way to the core: so far may what is durable and
/// acknowledged be ahead of what is decided and stored. Four million halves: a burst passes at the journal's pace, and
/// a question that waits for all of it to be stored is still answered.
pub const BACKLOG_BYTES: usize = 96 << 20;
/// Searches in the store that wait. While there are as many, what is sought is gathered.
const SOUGHT: usize = 4;
/// Flushes whose rows' memory waits to be used again.
const SPARES: usize = 1;

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
    /// An agent has been silent for long.
    Gone {
        /// When.
        at: Timestamp,
        /// Its key.
        key: AgentKey,
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
    /// Halves that had been given up come back from the store.
    Found {
        /// When.
        at: Timestamp,
        /// These.
        found: Vec<Found>,
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
    /// When the store began its present transaction.
    pub storing_since: Mutex<Option<Instant>>,
    /// Bytes free on the disk, by the last look at it.
    pub disk_free: AtomicU64,
    /// Halves that were to be looked for in the store, and had no room among those.
    pub recalls_dropped: AtomicU64,
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
        let core_config = core_config(config)?;
        let recaller = Recaller::new(&core_config, readers.clone());
        let mut core = Core::new(core_config, loaded);
        let mut decoder = Decoders::default();
        let (mut last, mut foreign) = (None, 0_u64);
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
                    None => foreign += 1,
                }
            },
        )?;
        anyhow::ensure!(
            foreign == 0,
            "{foreign} entries of the journal are of another version of this program, and not in the store yet: start that \
             version once more and stop it with SIGTERM"
        );
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
            recaller,
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
            recaller,
        } = parts;
        let progress = Arc::new(Progress::default());
        progress.journal_bytes.store(journal.bytes(), Relaxed);
        let (submissions, submitted) = mpsc::channel(SUBMISSIONS);
        let (to_core, entries) = sync_channel(ENTRIES);
        let (to_store, flushes) = sync_channel(1);
        let (to_recaller, sought) = sync_channel(SOUGHT);
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
            Box::new(move || {
                let ends = StoreEnds {
                    flushes,
                    emptied,
                    to_recaller,
                };
                run_store(store, &ends, retention_us, &shared)
            }),
        )?;
        let shared = progress.clone();
        // Not kept from ending by this one.
        let results = submissions.downgrade();
        thread(
            "recall",
            Box::new(move || run_recall(recaller, &sought, &results, &shared)),
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
    recaller: Recaller,
}

/// After a new key's time the one before it is in use for so long, too: some times what a half waits at most by default.
const KEY_OVERLAP_US: i64 = 3_600_000_000;

/// Reads the mesh's key, or the keys that follow each other: one to a line, and behind each but the first the time from which on
/// it is in use, in seconds since 1970.
pub fn mesh_key(path: &std::path::Path) -> anyhow::Result<MeshKey> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let mut keys = Vec::new();
    for (number, line) in lines.enumerate() {
        let (key, from) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let from_us = match from.trim() {
            "" if number == 0 => Some(i64::MIN),
            from => from
                .parse::<i64>()
                .ok()
                .and_then(|from| from.checked_mul(1_000_000)),
        };
        let from_us = from_us.with_context(|| {
            format!(
                "{}: the time of key {} is no number of seconds",
                path.display(),
                number + 1
            )
        })?;
        keys.push((from_us, key_bytes(path, key)?));
    }
    MeshKey::rotating(keys, KEY_OVERLAP_US)
        .with_context(|| format!("{}: there are to be 1 to {MAX_KEYS} keys", path.display()))
}

fn key_bytes(path: &std::path::Path, text: &str) -> anyhow::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let what = || format!("{} does not hold 32 bytes in hexadecimal", path.display());
    anyhow::ensure!(text.len() == 64 && text.is_ascii(), what());
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).with_context(what)?;
    }
    Ok(bytes)
}

fn core_config(config: &Config) -> anyhow::Result<CoreConfig> {
    let known = config.mesh.known().into_iter().map(|peer| peer.name);
    let before = remembered(&config.data_dir)
        .into_iter()
        .map(|(name, ..)| name);
    let peers = known.chain(before).collect();
    let key = config.mesh.key_file.as_deref().map(mesh_key).transpose()?;
    let key = key.filter(|_| config.mesh.takes_part());
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

/// An entry of the journal as the core takes it. What was written was valid; `None`: for another version of this program.
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
        Entry::Gone { arrived_at, agent } => (arrived_at, Some(Input::Gone { key: agent })),
        Entry::Batch(entry) => (entry.arrived_at, decoders.input(Rows::Halves, &entry).ok()),
        Entry::Lookups(entry) => (entry.arrived_at, decoders.input(Rows::Lookups, &entry).ok()),
        Entry::Found(PeerEntry {
            arrived_at,
            message,
        }) => {
            let found = codec::from_bytes(Kind::PeerMessages, &message).ok();
            (arrived_at, found.map(Input::Found))
        }
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
