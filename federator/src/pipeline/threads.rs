//! What the three threads do.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use weft_wire::{Timestamp, codec, frame::Kind};

use super::{Decoders, Progress, Rows, SEQ_BYTES, SUBMISSIONS, Submission, ToCore, ToStore};
use crate::agents::AgentState;
use crate::clock;
use crate::core::{Contact, Core, Input, Told};
use crate::journal::{AgentEntry, BatchEntry, EntryRef, Journal, PeerEntry};
use crate::peers::Peers;
use crate::recall::Recaller;
use crate::record::{Row, Sought};
use crate::store::Store;

/// Bytes that one sync of the journal covers at most.
const GROUP_BYTES: usize = 16 << 20;
/// Longest pause between two looks at the clock.
const TICK: Duration = Duration::from_millis(10);
/// Rows beyond which a flush does not wait for its time.
const FLUSH_ROWS: usize = 500_000;
/// After a search in the store there is none for so many times as long as it took, and what is sought is gathered for one: when agents
/// come back that were away for long, all that they tell is late, and searches would take the processor from what is to be stored.
const REST_OF_SEARCH: u32 = 9;
/// But no longer than this.
const MAX_REST: Duration = Duration::from_secs(2);
/// Longest wait of a thread that has nothing to do.
const IDLE: Duration = Duration::from_secs(3600);
/// What is sought and found no place in the recaller's queue is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How often old connections are deleted.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);

pub(super) fn run_journal(
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
        Submission::Gone { at, key } => {
            let position = journal.append(EntryRef::Gone {
                arrived_at: at,
                agent: key,
            })?;
            onward.push(ToCore::Entry {
                position,
                at,
                input: Box::new(Input::Gone { key }),
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
        Submission::Found { at, found } => {
            let bytes = codec::to_bytes(Kind::PeerMessages, &found)?;
            let position = journal.append(EntryRef::Found(PeerEntry {
                arrived_at: at,
                message: &bytes,
            }))?;
            onward.push(ToCore::Entry {
                position,
                at,
                input: Box::new(Input::Found(found)),
                room: None,
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
pub(super) struct CoreEnds {
    pub(super) entries: Receiver<ToCore>,
    pub(super) to_store: SyncSender<ToStore>,
    /// Rows' memory back from the store.
    pub(super) empty: Receiver<Vec<Row>>,
}

pub(super) fn run_core(
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

fn storing(progress: &Progress, since: Option<Instant>) {
    if let Ok(mut storing) = progress.storing_since.lock() {
        *storing = since;
    }
}

/// The store's ends of its channels.
pub(super) struct StoreEnds {
    pub(super) flushes: Receiver<ToStore>,
    /// Rows' memory back to the core.
    pub(super) emptied: SyncSender<Vec<Row>>,
    pub(super) to_recaller: SyncSender<Sought>,
}

pub(super) fn run_store(
    mut store: Store,
    ends: &StoreEnds,
    retention_us: i64,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut retained: Option<Instant> = None;
    let mut sought = Sought::default();
    loop {
        let patience = if sought.is_empty() { IDLE } else { RETRY };
        let (flush, done, came) = match ends.flushes.recv_timeout(patience) {
            Ok(ToStore { flush, done }) => (flush, done, 1),
            Err(RecvTimeoutError::Timeout) => (None, Vec::new(), 0),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        if let Some(mut flush) = flush {
            let dropped = sought.add(std::mem::take(&mut flush.sought)) as u64;
            progress.recalls_dropped.fetch_add(dropped, Relaxed);
            let began = Instant::now();
            storing(progress, Some(began));
            store.flush(&flush)?;
            storing(progress, None);
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
            let _ = ends.emptied.try_send(flush.rows);
        }
        // What is written now is found.
        if !sought.is_empty() {
            match ends.to_recaller.try_send(std::mem::take(&mut sought)) {
                Ok(()) => {}
                Err(TrySendError::Full(back)) => sought = back,
                Err(TrySendError::Disconnected(_)) => anyhow::bail!("the recaller has ended"),
            }
        }
        progress.flushes.fetch_sub(came, Relaxed);
        for waiting in done {
            // Nobody waits any more: the question was given up.
            let _ = waiting.send(());
        }
        if retained.is_none_or(|at| at.elapsed() >= RETENTION_INTERVAL) {
            retained = Some(Instant::now());
            store.retain(Timestamp(clock::now().0.saturating_sub(retention_us)))?;
        }
    }
}

pub(super) fn run_recall(
    mut recaller: Recaller,
    ends: &Receiver<Sought>,
    results: &mpsc::WeakSender<Submission>,
    progress: &Progress,
) -> anyhow::Result<()> {
    let add = |sought: &mut Sought, more: Sought| {
        let dropped = sought.add(more) as u64;
        progress.recalls_dropped.fetch_add(dropped, Relaxed);
    };
    let mut sought = Sought::default();
    let mut rested = Instant::now();
    loop {
        let rest = rested.saturating_duration_since(Instant::now());
        match ends.recv_timeout(if sought.is_empty() { IDLE } else { rest }) {
            Ok(more) => add(&mut sought, more),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let began = Instant::now();
        if sought.is_empty() || began < rested {
            continue;
        }
        recaller.look(clock::now(), &std::mem::take(&mut sought), |found| {
            let Some(submissions) = results.upgrade() else {
                return false;
            };
            let at = clock::now();
            submissions
                .blocking_send(Submission::Found { at, found })
                .is_ok()
        })?;
        let rest = began.elapsed().saturating_mul(REST_OF_SEARCH);
        rested = Instant::now() + rest.min(MAX_REST);
    }
}
