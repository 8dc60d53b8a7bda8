//! UDP flows: from the kernel's map and records to halves.
//!
//! [`fingerprint`], [`record`], [`repeats`] and [`table`] are pure; this module feeds them. Losing and doubling nothing: a flow
//! stays in the kernel's map until its last row is with the sink, and what is known of it beyond that map is noted in
//! another one before any row that tells it. A row given twice has the same id.

pub mod adopt;
pub mod fingerprint;
pub mod record;
pub mod repeats;
pub mod table;

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use weft_agent_common::{FlowKey, FlowNote, SocketOwner, datagram_counter, socket_origin};
use weft_wire::Owner;

pub use record::is_flow_record;

use crate::attribution::{Attribution, Host};
use crate::clock::Clock;
use crate::counters::Counters;
use crate::decode::OwnerKey;
use crate::kernel::hooks::HookError;
use crate::kernel::{DatagramPlan, Datagrams};
use crate::snapshot::processes::{Holder, Resident};
use crate::table::{Identity, Row};
use table::{Reading, Settings, Table};

/// Time between two readings of the kernel's map.
pub const SWEEP_NS: u64 = 2_000_000_000;

/// The kernel's flows and the table of them.
pub struct Flows {
    /// The hooks.
    pub datagrams: Datagrams,
    table: Table,
    swept_ns: u64,
    /// Everything recorded before this was applied.
    applied_ns: u64,
    failures: u64,
}

impl Flows {
    /// Goes on where the last agent stopped.
    pub fn new(
        datagrams: Datagrams,
        identity: Identity,
        plan: &DatagramPlan,
        update_ns: u64,
    ) -> Self {
        let notes = datagrams.notes.entries().unwrap_or_else(|error| {
            tracing::warn!(%error, "the notes on open flows cannot be read; their fingerprints are unknown");
            Vec::new()
        });
        let limit = datagrams.flows.capacity() as usize;
        let settings = Settings {
            limit,
            attached_ns: datagrams.meta.attached_ns,
            idle_ns: plan.idle_ns,
            dns_idle_ns: plan.dns_idle_ns,
            update_ns,
        };
        Self {
            table: Table::new(identity, settings, notes),
            datagrams,
            swept_ns: 0,
            applied_ns: 0,
            failures: 0,
        }
    }

    /// Names the processes of sockets older than the hooks, and says how many were left out.
    pub fn adopt(&mut self, residents: &[Resident], holders: &HashMap<u32, Holder>) -> u64 {
        adopt::adopt(&mut self.datagrams, residents, holders)
    }

    /// Reports none of a socket's flows: the agent's own session with its federator is nobody's workload. Noted with the
    /// socket, in the kernel, so that the next agent knows it too where this one is killed. To be called before anything is sent.
    pub fn leave_out(&mut self, socket: &impl AsRawFd) -> Result<(), HookError> {
        let mut state = self.datagrams.socket(socket).unwrap_or_default();
        state.owner.origin = socket_origin::AGENT;
        self.datagrams.adopt(socket, state)
    }

    /// Takes a record. `now_ns` is monotonic.
    pub fn apply<H: Host>(
        &mut self,
        bytes: &[u8],
        attribution: &mut Attribution<H>,
        clock: &Clock,
        now_ns: u64,
    ) -> Result<(), record::FlowRecordError> {
        let event = record::decode(bytes)?;
        let flows = &self.datagrams.flows;
        self.table.apply(
            event,
            |socket| owner(attribution, socket, now_ns, now_ns, clock),
            |key| flows.get(key).ok().flatten(),
            clock,
        );
        Ok(())
    }

    /// Says that everything recorded before this time was applied.
    pub fn applied(&mut self, before_ns: u64) {
        self.applied_ns = before_ns;
    }

    /// Reads the kernel's map when it is time to.
    pub fn sweep<H: Host>(&mut self, attribution: &mut Attribution<H>, clock: &Clock, now_ns: u64) {
        if now_ns < self.swept_ns.saturating_add(SWEEP_NS) {
            return;
        }
        self.sweep_now(attribution, clock, now_ns);
    }

    /// Reads the kernel's map.
    pub fn sweep_now<H: Host>(
        &mut self,
        attribution: &mut Attribution<H>,
        clock: &Clock,
        now_ns: u64,
    ) {
        self.swept_ns = now_ns;
        let entries = match self.datagrams.flows.entries() {
            Ok(entries) => entries,
            Err(error) => return self.failed("read the flows", &error),
        };
        let reading = Reading {
            now_ns,
            applied_ns: self.applied_ns,
        };
        self.table.sweep(
            &entries,
            reading,
            |socket, at_ns| owner(attribution, socket, at_ns, now_ns, clock),
            clock,
        );
    }

    /// Gives flows the owners that took the place of theirs.
    pub fn reown(&mut self, renewed: &HashMap<*const Owner, Arc<Owner>>) {
        self.table.reown(renewed);
    }

    /// Hands out every row that is due, after noting what a next agent could not know of their flows.
    pub fn drain(&mut self, clock: &Clock, now_ns: u64) -> Vec<Row> {
        let rows = self.table.drain(now_ns, clock);
        let (keys, notes): (Vec<FlowKey>, Vec<FlowNote>) = self.table.notes().into_iter().unzip();
        if let (_, Err(error)) = self.datagrams.notes.write(&keys, &notes) {
            self.failed("note open flows", &error);
        }
        rows
    }

    /// The rows handed out are with the sink: what is over leaves the kernel's map.
    pub fn settle(&mut self, clock: &Clock) {
        for leaving in self.table.leaving() {
            match self.datagrams.flows.take(&leaving.key) {
                Ok(Some(state)) if state.opened_ns == leaving.opened_ns => {
                    self.table.left(leaving, state, clock);
                }
                // Another flow with its key has begun meanwhile.
                Ok(Some(state)) => {
                    let _ = self.datagrams.flows.put_new(&leaving.key, &state);
                }
                Ok(None) => {}
                Err(error) => self.failed("remove a flow", &error),
            }
        }
        if let Err(error) = self.datagrams.notes.remove(&self.table.forgotten()) {
            self.failed("remove notes", &error);
        }
    }

    fn failed(&mut self, what: &str, error: &std::io::Error) {
        tracing::debug!(%error, "cannot {what}");
        self.failures += 1;
    }

    /// Rows of flows that stay open come after so many intervals from now on.
    pub fn sparse(&mut self, intervals: u64) {
        self.table.sparse(intervals);
    }

    /// Rows that [`Flows::drain`] would give, at most.
    pub fn pending(&self) -> usize {
        self.table.pending()
    }

    /// Flows now open.
    pub fn open(&self) -> usize {
        self.table.open()
    }

    /// Brings the shared counters up to date.
    pub fn publish(&self, counters: &Counters) {
        let lost = |slot| self.datagrams.dropped(slot);
        for (counter, value) in [
            (&counters.flows_open, self.table.open() as u64),
            (
                &counters.flow_records_dropped,
                lost(datagram_counter::FLOW_RING_FULL),
            ),
            (
                &counters.flow_datagrams_untracked,
                lost(datagram_counter::FLOWS_FULL),
            ),
            (
                &counters.flow_sockets_untracked,
                lost(datagram_counter::NO_STORAGE),
            ),
            (
                &counters.packets_unreadable,
                lost(datagram_counter::UNREADABLE),
            ),
            (
                &counters.dns_packets_dropped,
                lost(datagram_counter::DNS_RING_FULL),
            ),
            (&counters.dns_packets_cut, lost(datagram_counter::DNS_CUT)),
            (&counters.flows_dropped, self.table.dropped()),
            (&counters.flows_own, self.table.own()),
            (&counters.flow_failures, self.failures),
        ] {
            counter.store(value, Relaxed);
        }
    }
}

fn owner<H: Host>(
    attribution: &mut Attribution<H>,
    socket: &SocketOwner,
    at_ns: u64,
    now_ns: u64,
    clock: &Clock,
) -> Arc<Owner> {
    let key = OwnerKey {
        pid: socket.pid,
        uid: socket.uid,
        comm: socket.comm,
        cgroup: socket.cgroup,
        netns: socket.netns,
    };
    attribution.owner(&key, at_ns, now_ns, clock)
}
