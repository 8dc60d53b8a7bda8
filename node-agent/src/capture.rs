//! The capture loop's body: ring to batches. Boring on purpose: what is decided is decided in `decode` and `table`.
//!
//! Losing and doubling nothing: records are read without giving their space back; a batch and the position behind its last
//! record go to the sink together; only then is the space given back. Killed in between, the next agent starts at
//! the later of the two positions.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use weft_agent_common::{Connection, counter};
use weft_wire::control::Detail;
use weft_wire::{HalfBatch, Owner, Timestamp};

use crate::attribution::{Attribution, Host};
use crate::calls::Calls;
use crate::clock::Clock;
use crate::config::Limits;
use crate::counters::Counters;
use crate::decode::{ConnectionKey, decode, opening};
use crate::flows::{Flows, is_flow_record};
use crate::kernel::{Hooks, sys};
use crate::limits::{Change, Governor, Usage};
use crate::lookups::{Lookups, name_rows};
use crate::places::Places;
use crate::sink::BatchSink;
use crate::table::{self, Row, Table};
use crate::time;

/// Rows of one batch, at most. A batch of this size is some 100 KB encoded.
pub const MAX_BATCH_ROWS: usize = 8_192;

/// Owns everything between the ring and the sink.
pub struct Capture<H, S> {
    /// The hooks.
    pub hooks: Hooks,
    /// The connection table.
    pub table: Table,
    /// Who owns what.
    pub attribution: Attribution<H>,
    /// Kernel time to wall-clock time.
    pub clock: Clock,
    /// The call hooks, where this kernel has them.
    pub calls: Option<Calls>,
    /// UDP, where this kernel has the hooks for it.
    pub flows: Option<Flows>,
    /// DNS, where there is UDP.
    pub lookups: Option<Lookups>,
    /// What the process may take.
    pub governor: Governor,
    sink: S,
    counters: Arc<Counters>,
    position: u64,
    places: Places,
    /// Connections that a look missed, once the ring was read up to the second position: what was written by then.
    gone: VecDeque<(Vec<ConnectionKey>, u64, Timestamp)>,
    /// A batch that the sink has not taken, with the position that goes with it.
    unsent: Option<(HalfBatch, u64)>,
    /// Rows of flows for the batches of this flush, and whether they were asked for.
    flow_rows: Vec<Row>,
    flows_drained: bool,
    flushed: u64,
}

impl<H: Host, S: BatchSink> Capture<H, S> {
    /// Starts where the last agent left off.
    pub fn new(
        hooks: Hooks,
        table: Table,
        attribution: Attribution<H>,
        clock: Clock,
        sink: S,
        counters: Arc<Counters>,
    ) -> Self {
        let position = resume_at(&hooks, sink.last_ring_position());
        let places = Places::new(hooks.tags.len());
        Self {
            hooks,
            table,
            attribution,
            clock,
            calls: None,
            flows: None,
            lookups: None,
            governor: Governor::new(Limits::default().into()),
            sink,
            counters,
            position,
            places,
            gone: VecDeque::new(),
            unsent: None,
            flow_rows: Vec::new(),
            flows_drained: false,
            flushed: position,
        }
    }

    /// Reads what is in the ring. `now_ns` is monotonic. Reads nothing while the sink refuses: the ring buffers.
    pub fn poll(&mut self, now_ns: u64) {
        let mut read = 0;
        let end = self.hooks.ring.produced();
        if let Some(calls) = &mut self.calls {
            calls.poll(&mut self.attribution.processes);
        }
        while self.unsent.is_none() && self.position < end {
            let Some((bytes, next)) = self.hooks.ring.peek(self.position) else {
                break;
            };
            let flows = self.flows.as_mut().filter(|_| is_flow_record(bytes));
            let understood = match flows {
                Some(flows) => flows
                    .apply(bytes, &mut self.attribution, &self.clock, now_ns)
                    .map_err(|error| error.to_string()),
                None => decode(bytes)
                    .map_err(|error| error.to_string())
                    .map(|event| {
                        let owner = self.attribution.owner(
                            &Calls::speaker(self.calls.as_ref(), &event),
                            event.at_ns,
                            now_ns,
                            &self.clock,
                        );
                        self.table.apply(&event, &owner, &self.clock);
                        if let Some(lookups) = &mut self.lookups {
                            let ends = [event.local, event.remote];
                            lookups.connection(event.key.cookie(), ends, &owner);
                        }
                    }),
            };
            if let Err(error) = understood {
                tracing::debug!(%error, "record skipped");
                self.counters.malformed.fetch_add(1, Relaxed);
            }
            self.position = next;
            read += 1;
            if self.pending() >= MAX_BATCH_ROWS && self.flush().is_err() {
                break;
            }
        }
        self.counters.records.fetch_add(read, Relaxed);
        self.close_gone();
        if self.position >= end && self.unsent.is_none() {
            if let Some(lookups) = &mut self.lookups {
                lookups.caught_up();
            }
            self.read_lookups(now_ns);
            self.sweep_flows(now_ns);
        }
    }

    /// Reads the packets of name servers.
    fn read_lookups(&mut self, now_ns: u64) {
        if let (Some(lookups), Some(flows)) = (&mut self.lookups, &mut self.flows) {
            let ring = &mut flows.datagrams.dns_ring;
            let (hooks, calls) = (&self.hooks, self.calls.as_ref());
            let kept = |cookie| {
                let (key, kept) = hooks.connection_of(cookie)?;
                Some(Calls::speaker(calls, &opening(key, &kept)?))
            };
            lookups.poll(ring, &kept, &mut self.attribution, &self.clock, now_ns);
        }
    }

    /// Reads the kernel's map of flows, now that everything recorded before is in the table.
    fn sweep_flows(&mut self, now_ns: u64) {
        if let Some(flows) = &mut self.flows {
            flows.applied(now_ns);
            flows.sweep(&mut self.attribution, &self.clock, now_ns);
        }
    }

    fn pending(&self) -> usize {
        self.table.pending() + self.flows.as_ref().map_or(0, Flows::pending)
    }

    /// Reports the open connections that no look finds: an earlier agent read of their opening, and they may be silent for long. Once,
    /// at the start.
    pub fn take_over(&mut self) {
        let now_ns = time::monotonic_ns();
        for (key, kept) in self.hooks.without_place() {
            let event = opening(key, &kept).filter(|_| !self.table.knows(key));
            let Some(event) = event else { continue };
            let speaker = Calls::speaker(self.calls.as_ref(), &event);
            let owner = self
                .attribution
                .owner(&speaker, event.at_ns, now_ns, &self.clock);
            self.table.apply(&event, &owner, &self.clock);
            if let Some(lookups) = &mut self.lookups {
                lookups.connection(key.cookie(), [event.local, event.remote], &owner);
            }
        }
    }

    /// Looks at what the kernel keeps: reports what stays open, and finds ends that were lost with a full ring. Not while the sink
    /// refuses: it would pile up.
    pub fn look(&mut self, now_ns: u64) {
        if self.unsent.is_some() {
            return;
        }
        let Self {
            hooks,
            table,
            attribution,
            clock,
            places,
            lookups,
            ..
        } = self;
        let mut gone = Vec::new();
        let mut opened = |place: usize, tag: u64| {
            let key = ConnectionKey(tag);
            if table.knows(key) {
                return true;
            }
            let kept = hooks.connection(place, tag);
            let Some(event) = kept.and_then(|kept| opening(key, &kept)) else {
                return false;
            };
            let owner = attribution.owner(&event.owner, event.at_ns, now_ns, clock);
            table.apply(&event, &owner, clock);
            if let Some(lookups) = lookups {
                lookups.connection(key.cookie(), [event.local, event.remote], &owner);
            }
            true
        };
        places.look(
            |place| hooks.tags.get(place),
            &mut opened,
            |tag| gone.push(ConnectionKey(tag)),
        );
        if !gone.is_empty() {
            // The kernel makes a place free after it has taken room for the record of the end.
            let written = hooks.ring.produced();
            self.gone.push_back((gone, written, clock.utc(now_ns)));
        }
    }

    /// Reports the end of a connection that no hook saw, with what the kernel kept of it.
    pub fn end_unseen(&mut self, key: ConnectionKey, kept: &Connection) {
        let now_ns = time::monotonic_ns();
        if let Some(event) = opening(key, kept) {
            let owner = self
                .attribution
                .owner(&event.owner, event.at_ns, now_ns, &self.clock);
            if !self.table.knows(key) {
                self.table.apply(&event, &owner, &self.clock);
            }
            self.table.lost(key, self.clock.utc(now_ns));
        }
    }

    /// Closes what was gone at a look and whose end was not in the ring.
    fn close_gone(&mut self) {
        while let Some((keys, written, at)) = self.gone.front() {
            if self.position < *written {
                return;
            }
            let lost = keys
                .iter()
                .filter(|key| self.table.lost(**key, *at))
                .count();
            if lost > 0 {
                tracing::debug!(lost, "ends that the ring had no room for");
            }
            self.gone.pop_front();
        }
    }

    /// Hands over everything that is due. On an error nothing is lost: the same batch is offered again next time.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.unsent.is_none() {
            // A name that was learnt before a connection is in its first row.
            self.read_lookups(time::monotonic_ns());
        }
        while self.unsent.is_some() || self.cut_batch() {
            let Some((batch, position)) = &self.unsent else {
                break;
            };
            let position = self.hooks.state.ring_base.saturating_add(*position);
            self.sink.append(batch, position).inspect_err(|_| {
                self.counters.append_failures.fetch_add(1, Relaxed);
            })?;
            self.counters
                .halves
                .fetch_add(batch.halves.len() as u64, Relaxed);
            self.unsent = None;
        }
        self.flows_drained = false;
        self.flushed = self.position;
        self.hooks.ring.consume(self.position);
        if let Some(flows) = &mut self.flows {
            flows.settle(&self.clock);
        }
        if let (Some(lookups), Some(flows)) = (&mut self.lookups, &self.flows) {
            let flushed = lookups.flush(&flows.datagrams.dns_ring, &mut self.sink);
            flushed.inspect_err(|_| {
                self.counters.append_failures.fetch_add(1, Relaxed);
            })?;
        }
        Ok(())
    }

    /// The next batch of what is due, one at a time: what a hundred thousand rows take is never taken at once. Only the last may
    /// carry the new position: with any other, records whose rows are in a later batch would count as taken. False when
    /// nothing is due.
    fn cut_batch(&mut self) -> bool {
        let mut rows = self.table.drain(MAX_BATCH_ROWS);
        if let Some(calls) = &mut self.calls {
            let now_ns = time::monotonic_ns();
            calls.complete(&mut rows, &mut self.attribution, now_ns, &self.clock);
        }
        if let Some(flows) = &mut self.flows
            && !self.flows_drained
        {
            self.flow_rows = flows.drain(&self.clock, time::monotonic_ns());
            self.flows_drained = true;
        }
        let room = MAX_BATCH_ROWS.saturating_sub(rows.len());
        let from = self.flow_rows.len().saturating_sub(room);
        rows.extend(self.flow_rows.drain(from..));
        if rows.is_empty() {
            return false;
        }
        let last = self.table.pending() == 0 && self.flow_rows.is_empty();
        let position = if last { self.position } else { self.flushed };
        let boot = self.table.identity().boot;
        let (lookups, calls) = (self.lookups.as_mut(), self.calls.as_ref());
        self.unsent = Some((batch(boot, rows, lookups, calls), position));
        true
    }

    /// Gives open connections and flows, and lookups that are not handed over, what became known of their owners since; see [`Attribution::renewed`].
    pub fn renew_owners(&mut self) -> HashMap<*const Owner, Arc<Owner>> {
        let renewed = self.attribution.renewed(time::monotonic_ns());
        if !renewed.is_empty() {
            self.table.reown(&renewed);
            if let Some(flows) = &mut self.flows {
                flows.reown(&renewed);
            }
            if let Some(lookups) = &mut self.lookups {
                lookups.reown(&renewed);
            }
        }
        renewed
    }

    /// Looks at what the process takes, and gives up detail or takes it up again.
    pub fn govern(&mut self, usage: Usage) {
        let change = self.governor.look(usage);
        let counters = &self.counters;
        counters.resident_bytes.store(usage.resident_bytes, Relaxed);
        let permille = (self.governor.cpu_percent() * 10.0) as u64;
        counters.cpu_permille.store(permille, Relaxed);
        let Some(change) = change else { return };
        match change {
            Change::GivenUp(detail, _) => {
                tracing::warn!("{change}; connections, bytes and packets stay exact");
                counters.detail_steps.fetch_add(1, Relaxed);
                self.give_up(detail, true);
            }
            Change::TakenUp(detail) => {
                tracing::info!("{change}");
                self.give_up(detail, false);
            }
            Change::NothingLeft(_) => tracing::warn!("{change}"),
        }
        let given_up = self.governor.given_up().len() as u64;
        self.counters.detail_given_up.store(given_up, Relaxed);
    }

    fn give_up(&mut self, detail: Detail, give_up: bool) {
        match detail {
            Detail::Processes => self.attribution.plain(give_up),
            Detail::Updates => {
                self.table.sparse(give_up);
                if let Some(flows) = &mut self.flows {
                    flows.sparse(if give_up { table::SPARSE as u64 } else { 1 });
                }
            }
            Detail::FirstBytes => {
                if let Some(calls) = &mut self.calls {
                    calls.without_first_bytes = give_up;
                }
            }
            Detail::Lookups => {
                if let Some(lookups) = &mut self.lookups {
                    lookups.skip(give_up);
                }
            }
        }
        if give_up {
            sys::give_back();
        }
    }

    /// Whether looks at silent connections are left out.
    pub fn looks_sparsely(&self) -> bool {
        self.governor.given_up().contains(&Detail::Updates)
    }

    /// That it is at work, and whether what it sees can be kept.
    pub fn says_how_it_is(&self, spool_failing: bool) {
        let counters = &self.counters;
        counters
            .spool_failing
            .store(u64::from(spool_failing), Relaxed);
        let now_ms = time::monotonic_ns() / 1_000_000;
        counters.capture_round_ms.store(now_ms, Relaxed);
    }

    /// Brings the shared counters up to date.
    pub fn publish(&self) {
        let counters = &self.counters;
        counters
            .kernel_dropped
            .store(self.hooks.ring_full() + self.hooks.discarded, Relaxed);
        counters
            .kernel_untracked
            .store(self.hooks.dropped(counter::NO_STORAGE), Relaxed);
        counters.table_dropped.store(self.table.dropped(), Relaxed);
        counters.open.store(self.table.open() as u64, Relaxed);
        counters.escaped.store(self.attribution.escaped, Relaxed);
        let plain = self.attribution.plain_owners;
        counters.owners_plain.store(plain, Relaxed);
        let skipped = self.table.skipped();
        counters.updates_skipped.store(skipped, Relaxed);
        if let Some(calls) = &self.calls {
            let skipped = calls.first_bytes_skipped;
            counters.first_bytes_skipped.store(skipped, Relaxed);
            counters.calls.store(calls.records, Relaxed);
            counters.calls_dropped.store(calls.ring_full(), Relaxed);
        }
        counters
            .escape_searches_skipped
            .store(self.attribution.searches_skipped, Relaxed);
        if let Some(pods) = self.attribution.pods() {
            let counts = pods.counts();
            counters.pods.store(pods.len() as u64, Relaxed);
            counters
                .pods_dropped
                .store(counts.refused + counts.evicted, Relaxed);
            counters
                .pod_containers_dropped
                .store(counts.containers_dropped, Relaxed);
            counters.pod_objects_skipped.store(pods.skipped(), Relaxed);
            counters.pod_failures.store(pods.failures(), Relaxed);
            counters
                .pods_live
                .store(u64::from(pods.source().live), Relaxed);
        }
        if let Some(flows) = &self.flows {
            flows.publish(counters);
        }
        if let Some(lookups) = &self.lookups {
            lookups.publish(counters);
        }
        counters.owners_gone.store(self.attribution.gone, Relaxed);
        counters
            .owner_evictions
            .store(self.attribution.evictions, Relaxed);
        counters.ring_used.store(
            self.hooks
                .ring
                .produced()
                .saturating_sub(self.hooks.ring.consumed()),
            Relaxed,
        );
    }

    /// The shared counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The sink, to look at it.
    pub fn sink(&self) -> &S {
        &self.sink
    }
}

/// The later of what was given back and what the sink has; the sink's word counts only if it is about this ring.
fn resume_at(hooks: &Hooks, sink: Option<u64>) -> u64 {
    let consumed = hooks.ring.consumed();
    sink.and_then(|last| last.checked_sub(hooks.state.ring_base))
        .filter(|position| (consumed..=hooks.ring.produced()).contains(position))
        .unwrap_or(consumed)
}

/// Rows to a batch: equal owners become one entry of its dictionary, and peers get their names.
fn batch(
    boot: u64,
    mut rows: Vec<Row>,
    lookups: Option<&mut Lookups>,
    calls: Option<&Calls>,
) -> HalfBatch {
    let named = rows.iter_mut().map(|row| (&mut row.half, &row.owner));
    let mut batch = HalfBatch {
        boot,
        owners: Vec::new(),
        names: name_rows(lookups, calls, named),
        halves: Vec::with_capacity(rows.len()),
    };
    let mut known: HashMap<*const Owner, u32> = HashMap::new();
    // Rows of one owner come in runs.
    let mut last = (std::ptr::null(), 0);
    for Row { mut half, owner } in rows {
        let address = Arc::as_ptr(&owner);
        if last.0 != address {
            let number = *known.entry(address).or_insert_with(|| {
                batch.owners.push(Owner::clone(&owner));
                (batch.owners.len() - 1) as u32
            });
            last = (address, number);
        }
        half.owner = last.1;
        batch.halves.push(half);
    }
    batch
}
