//! What the agent counts: one struct of atomics, written by whoever does the work, read by the uplink and the metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use weft_wire::Timestamp;
use weft_wire::control::{AgentStatus, Detail};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident: $kind:literal $help:literal,)*) => {
        /// Totals since the agent's start, and a few current values.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])* pub $name: AtomicU64,)*
        }

        impl Counters {
            /// Name, Prometheus type, help text and value of each.
            pub fn all(&self) -> Vec<(&'static str, &'static str, &'static str, u64)> {
                vec![$((stringify!($name), $kind, $help, self.$name.load(Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Records the kernel lost because the ring was full. Counted by the kernel, since the hooks were attached.
    kernel_dropped: "counter" "Records lost because the kernel's ring buffer was full.",
    /// Sockets the kernel could not track for want of memory, since the hooks were attached.
    kernel_untracked: "counter" "Sockets not tracked because the kernel had no memory for their state.",
    /// Open halves not tracked because the connection table was full.
    table_dropped: "counter" "Halves not tracked because the connection table was full.",
    /// Halves lost because the spool reached its limit.
    spool_dropped: "counter" "Halves lost because the spool reached its limit.",
    /// Rows skipped because the federator refused their batch again and again.
    spool_refused: "counter" "Rows skipped because the federator refused their batch again and again.",
    /// Bytes now in the spool.
    spool_bytes: "gauge" "Bytes now in the spool.",
    /// Connections now in the table.
    open: "gauge" "Connections now open in the table.",
    /// Rows handed to the sink.
    halves: "counter" "Rows reported.",
    /// Records read from the ring.
    records: "counter" "Records read from the ring.",
    /// Records that could not be decoded.
    malformed: "counter" "Records that could not be decoded.",
    /// Batches the sink refused; they are offered again.
    append_failures: "counter" "Batches that could not be written; they are tried again.",
    /// Owners whose process was gone before it was looked at.
    owners_gone: "counter" "Owners whose process was gone before it was looked at.",
    /// Times the owner cache was full and was emptied.
    owner_evictions: "counter" "Times the owner cache was full and was emptied.",
    /// Uses of sockets and lives of processes that the kernel lost because the ring of calls was full.
    calls_dropped: "counter" "Calls lost because the call hooks' ring buffer was full.",
    /// Calls read from their ring.
    calls: "counter" "Calls read from the call hooks' ring buffer.",
    /// Owners found outside of their container, or inside one from outside.
    escaped: "counter" "Processes found outside of their container's namespaces, or in a container's from outside.",
    /// Searches for a container's namespace left out because another was just before.
    escape_searches_skipped: "counter" "Searches for a container's namespace left out because another was just before.",
    /// Pods known.
    pods: "gauge" "Pods of this node that are known, those that ended of late included.",
    /// Whether what is known of pods is what the API server knows.
    pods_live: "gauge" "Whether what is known of pods is what the API server knows.",
    /// Pods not taken or forgotten early because too many were known.
    pods_dropped: "counter" "Pods not taken, or forgotten early, because too many were known.",
    /// Containers forgotten because their pod had too many.
    pod_containers_dropped: "counter" "Containers forgotten because their pod had too many.",
    /// Objects that were too large or could not be read.
    pod_objects_skipped: "counter" "Pods that were too large or could not be read.",
    /// Requests for pods that failed.
    pod_failures: "counter" "Requests for pods that failed.",
    /// Whether this agent is the one that watches the cluster's objects.
    cluster_leads: "gauge" "Whether this agent is the one that watches the cluster's objects.",
    /// Requests for the lease or for objects that failed.
    cluster_failures: "counter" "Requests for the lease or for objects of the cluster that failed.",
    /// Events dropped because the uplink did not take them; their kind was listed again.
    cluster_dropped: "counter" "Events of the cluster dropped because too many waited; their kind was listed again.",
    /// Objects that were too large or could not be read.
    cluster_skipped: "counter" "Objects of the cluster that were too large or could not be read.",
    /// Bytes in the ring not yet consumed.
    ring_used: "gauge" "Bytes in the ring not yet consumed.",
    /// UDP flows now open.
    flows_open: "gauge" "UDP flows now open.",
    /// UDP flows not tracked because the flow table was full.
    flows_dropped: "counter" "UDP flows not tracked because the flow table was full.",
    /// UDP flows of the agent's own session, which are not reported.
    flows_own: "counter" "UDP flows of the agent's own session with its federator, which are not reported.",
    /// First datagrams and ends of flows that the kernel's ring had no room for.
    flow_records_dropped: "counter" "First datagrams and ends of UDP flows lost because the ring buffer was more than half full.",
    /// Datagrams that belong to no flow because the kernel's map was full.
    flow_datagrams_untracked: "counter" "Datagrams not counted because the kernel's map of flows was full.",
    /// UDP sockets the kernel had no memory for.
    flow_sockets_untracked: "counter" "UDP sockets not remembered because the kernel had no memory for their state.",
    /// Readings and removals in the kernel's maps of flows that failed.
    flow_failures: "counter" "Readings and removals in the kernel's maps of flows that failed.",
    /// Packets whose headers could not be read.
    packets_unreadable: "counter" "Packets whose headers could not be read.",
    /// Name servers' packets lost because their ring was full.
    dns_packets_dropped: "counter" "Packets of name servers lost because their ring buffer was full.",
    /// Name servers' packets longer than what is copied of one.
    dns_packets_cut: "counter" "Packets of name servers longer than what is copied of one.",
    /// Packets of name servers read.
    dns_packets: "counter" "Packets of name servers read.",
    /// DNS messages in them.
    dns_messages: "counter" "DNS messages read.",
    /// Packets and messages that could not be read, or not to their end.
    dns_malformed: "counter" "Packets and DNS messages that could not be read, or not to their end.",
    /// Messages that are no question or answer of this host.
    dns_other: "counter" "DNS messages that are no question or answer of this host: notifications, updates, multicast of others.",
    /// Answers that came again.
    dns_duplicates: "counter" "DNS answers that came again.",
    /// Answers without a question.
    dns_orphans: "counter" "DNS answers whose question was not seen.",
    /// Questions not waited for because too many waited.
    dns_questions_dropped: "counter" "DNS questions dropped because too many waited for their answer.",
    /// Questions that wait for their answer.
    dns_waiting: "gauge" "DNS questions that wait for their answer.",
    /// Directions of TCP connections with name servers that could not be followed.
    dns_streams_given_up: "counter" "Directions of TCP connections with name servers given up: a gap, or no message.",
    /// Packets by TCP whose connection was not known.
    dns_owners_unknown: "counter" "Packets of name servers by TCP whose connection was not known.",
    /// Lookups handed over.
    lookups: "counter" "Lookups handed to the spool.",
    /// Names of addresses remembered.
    names_known: "gauge" "Names of addresses remembered.",
    /// Failures to write names of addresses down.
    names_save_failures: "counter" "Times that the names of addresses could not be written down for the next start.",
    /// Names of addresses or connections forgotten early because there were too many.
    names_dropped: "counter" "Names of addresses, or of open connections, forgotten early because there were too many.",
    /// Connections whose peer has a name.
    connections_named: "counter" "Connections whose peer's name was known.",
    /// How much detail is given up at the moment, of `Detail::ORDER`.
    detail_given_up: "gauge" "Kinds of detail given up at the moment to stay within the limits, of 4: processes, updates, first bytes, lookups.",
    /// Times that detail was given up.
    detail_steps: "counter" "Times that one more kind of detail was given up to stay within the limits.",
    /// Owners named without looking at their process.
    owners_plain: "counter" "Owners named without looking at their process, to stay within the limits.",
    /// Updates of open connections not told.
    updates_skipped: "counter" "Updates of connections that stay open not told, to stay within the limits.",
    /// First bytes not looked at.
    first_bytes_skipped: "counter" "First bytes of connections not looked at, to stay within the limits.",
    /// Packets of name servers not looked at.
    dns_packets_skipped: "counter" "Packets of name servers not looked at, to stay within the limits.",
    /// Whether what is seen cannot be written to the spool at the moment.
    spool_failing: "gauge" "Whether the spool takes nothing at the moment; the kernel's ring buffers meanwhile.",
    /// Milliseconds since the boot, at the capture thread's last round.
    capture_round_ms: "gauge" "When the capture thread was last at work, in milliseconds since the boot.",
    /// Resident bytes.
    resident_bytes: "gauge" "Resident bytes of the agent.",
    /// Thousandths of one processor over ten seconds.
    cpu_permille: "gauge" "Thousandths of one processor that the agent took over the last ten seconds.",
    /// Sockets not looked at in a snapshot because it reached its limit or a namespace could not be entered.
    snapshot_skipped: "counter" "Sockets or namespaces a snapshot had to leave out.",
}

impl Counters {
    /// What the federator is told.
    pub fn status(&self, now: Timestamp) -> AgentStatus {
        AgentStatus {
            now,
            kernel_dropped: self.kernel_dropped.load(Relaxed)
                + self.kernel_untracked.load(Relaxed)
                + self.flow_records_dropped.load(Relaxed)
                + self.flow_datagrams_untracked.load(Relaxed)
                + self.flow_sockets_untracked.load(Relaxed),
            table_dropped: self.table_dropped.load(Relaxed) + self.flows_dropped.load(Relaxed),
            spool_dropped: self.spool_dropped.load(Relaxed),
            spool_bytes: self.spool_bytes.load(Relaxed),
            open: self.open.load(Relaxed),
            halves: self.halves.load(Relaxed),
            given_up: Detail::ORDER
                .into_iter()
                .take(self.detail_given_up.load(Relaxed) as usize)
                .collect(),
            spool_failing: self.spool_failing.load(Relaxed) > 0,
        }
    }
}
