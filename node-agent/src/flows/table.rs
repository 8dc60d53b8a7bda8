//! The flow table: which UDP flows are open, and which rows the next batch owes.
//!
//! Contract. Inputs: [`Table::apply`] with one event and its owner, in the order of the ring; [`Table::sweep`] with a reading
//! of the kernel's map, made after everything before it in the ring was applied. Outputs: [`Table::drain`], everything
//! that changed since the last one, one row for each flow; [`Table::notes`], to be kept before those rows are;
//! [`Table::leaving`], what the kernel's map need not have any more once they are. No clock, no IO.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use weft_agent_common::{FlowKey, FlowNote, FlowState, SocketOwner, direction, socket_origin};
use weft_wire::{
    Application, DatagramSort, Datagrams, Fingerprint, Half, HalfId, HalfState, Owner, Protocol,
    Role, Timestamp, mix64,
};

use super::fingerprint::{self, Print};
use super::record::FlowEvent;
use super::repeats::{Repeats, Seen};
use crate::clock::Clock;
use crate::decode;
use crate::table::{Identity, Row};

/// A flow that the reading of a map shows is taken for new only if it was opened so long before what was read of the ring:
/// else its first record may still come.
const SETTLED_NS: u64 = 1_000_000_000;
/// Idle time of a single exchange while the map is more than half full.
const CROWDED_IDLE_NS: u64 = 1_000_000_000;

/// Bits of [`FlowNote::flags`]: two for the client's sort, then these.
const CLIENT_DISTINCT: u64 = 1 << 2;
const SERVER_DISTINCT: u64 = 1 << 3;

/// How flows are judged.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Most flows at a time; the kernel's map has as many.
    pub limit: usize,
    /// When the hooks were attached, monotonic.
    pub attached_ns: u64,
    /// A flow that was idle so long is over.
    pub idle_ns: u64,
    /// The same for a single question and answer of DNS.
    pub dns_idle_ns: u64,
    /// Time between two rows of a flow that stays open.
    pub update_ns: u64,
}

/// When a map was read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Now, monotonic.
    pub now_ns: u64,
    /// Everything recorded before was applied.
    pub applied_ns: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Table {
    identity: Identity,
    settings: Settings,
    open: BTreeMap<FlowKey, Flow>,
    /// Of an agent before this one, until their flows are seen.
    restored: HashMap<FlowKey, FlowNote>,
    changed: Vec<FlowKey>,
    finished: Vec<Row>,
    unnoted: Vec<FlowKey>,
    leaving: HashMap<FlowKey, Leaving>,
    forgotten: Vec<FlowKey>,
    repeats: Repeats,
    /// Sockets that are gone, with their times, since the last reading.
    released: HashMap<u64, u64>,
    round: u64,
    dropped: u64,
    own: u64,
    /// Rows of a flow that stays open come after so many intervals.
    sparse: u64,
}

#[derive(Clone, Debug)]
struct Flow {
    state: FlowState,
    client: Option<Print>,
    server: Option<Print>,
    owner: Arc<Owner>,
    opened_at: Timestamp,
    seen_ns: u64,
    /// When its last row was given; `None` before the first.
    reported_ns: Option<u64>,
    /// `state.last_ns` when it was reported.
    reported_last_ns: u64,
    changed: bool,
    noted: bool,
    round: u64,
}

/// A flow that is over and still in the kernel's map.
#[derive(Clone, Debug)]
pub struct Leaving {
    /// Its key.
    pub key: FlowKey,
    /// Tells it from another with the same key.
    pub opened_ns: u64,
    flow: Flow,
    closed_ns: u64,
}

impl Table {
    /// `notes` are those of an agent before this one.
    pub fn new(identity: Identity, settings: Settings, notes: Vec<(FlowKey, FlowNote)>) -> Self {
        Self {
            identity,
            settings,
            open: BTreeMap::new(),
            restored: notes.into_iter().collect(),
            changed: Vec::new(),
            finished: Vec::new(),
            unnoted: Vec::new(),
            leaving: HashMap::new(),
            forgotten: Vec::new(),
            repeats: Repeats::default(),
            released: HashMap::new(),
            round: 0,
            dropped: 0,
            own: 0,
            sparse: 1,
        }
    }

    /// Rows of flows that stay open come after so many intervals from now on.
    pub fn sparse(&mut self, intervals: u64) {
        self.sparse = intervals;
    }

    /// Takes one event. `read` looks a flow up in the kernel's map.
    pub fn apply(
        &mut self,
        event: FlowEvent,
        owner: impl FnOnce(&SocketOwner) -> Arc<Owner>,
        read: impl Fn(&FlowKey) -> Option<FlowState>,
        clock: &Clock,
    ) {
        match event {
            FlowEvent::First {
                key,
                state,
                way,
                length,
                snap,
            } => {
                let print = fingerprint::print(length, &snap);
                self.first(key, state, way, print, owner, clock);
            }
            FlowEvent::End {
                key,
                state,
                released_ns,
            } => {
                // Another flow with its key was seen first, and closed it.
                let newer = |flow: &Flow| flow.state.opened_ns > state.opened_ns;
                if self.open.get(&key).is_some_and(newer) {
                    return;
                }
                let flow = self.known(&key, state, owner, clock);
                let closed_ns = released_ns.unwrap_or(state.last_ns);
                self.finish(&key, flow, closed_ns, clock);
                self.forgotten.push(key);
            }
            FlowEvent::Release { cookie, at_ns } => self.release(cookie, at_ns, read, clock),
        }
    }

    fn first(
        &mut self,
        key: FlowKey,
        state: FlowState,
        way: u8,
        print: Print,
        owner: impl FnOnce(&SocketOwner) -> Arc<Owner>,
        clock: &Clock,
    ) {
        let before = self.open.get(&key).map(|flow| flow.state.opened_ns);
        match before {
            Some(opened_ns) if opened_ns > state.opened_ns => return,
            Some(opened_ns) if opened_ns < state.opened_ns => self.overtaken(&key, clock),
            None if self.open.len() >= self.settings.limit => {
                self.dropped += 1;
                return;
            }
            _ => {}
        }
        let mut flow = self.known(&key, state, owner, clock);
        let opens = way == state.opened_by;
        let seen = match (opens, state.opened_by == direction::SENT) {
            (true, true) => Seen::ClientsAtClient,
            (true, false) => Seen::ClientsAtServer,
            (false, true) => Seen::ServersAtClient,
            (false, false) => Seen::ServersAtServer,
        };
        let slot = if opens {
            &mut flow.client
        } else {
            &mut flow.server
        };
        // Of two CPUs that both thought theirs was the first, the first in the ring stands.
        if slot.is_none() {
            let repeated =
                print.sort == DatagramSort::Other && self.repeats.repeated(print.hash, seen);
            *slot = Some(Print {
                distinct: print.distinct && !repeated,
                ..print
            });
            flow.noted = false;
            self.unnoted.push(key);
        }
        if !flow.changed {
            flow.changed = true;
            self.changed.push(key);
        }
        self.open.insert(key, flow);
    }

    /// Takes out what is known of a flow, and brings it up to date; new where nothing is.
    fn known(
        &mut self,
        key: &FlowKey,
        state: FlowState,
        owner: impl FnOnce(&SocketOwner) -> Arc<Owner>,
        clock: &Clock,
    ) -> Flow {
        let found = self.open.remove(key);
        match found {
            Some(mut flow) if flow.state.opened_ns == state.opened_ns => {
                if flow.state.owner != state.owner {
                    flow.owner = owner(&state.owner);
                }
                flow.take(state);
                flow
            }
            _ => {
                let mut flow = Flow {
                    state,
                    client: None,
                    server: None,
                    owner: owner(&state.owner),
                    opened_at: clock.utc(state.opened_ns),
                    seen_ns: state.last_ns,
                    reported_ns: None,
                    reported_last_ns: 0,
                    changed: false,
                    noted: false,
                    round: self.round,
                };
                self.own += u64::from(flow.is_own());
                if let Some(note) = self.restored.remove(key)
                    && note.opened_ns == state.opened_ns
                {
                    (flow.client, flow.server) = prints(&note);
                    flow.noted = true;
                }
                flow
            }
        }
    }

    /// Another flow has its key now, and its own end was not told (or comes later in the ring, and is the same).
    fn overtaken(&mut self, key: &FlowKey, clock: &Clock) {
        if let Some(flow) = self.open.remove(key) {
            let closed_ns = flow.state.last_ns;
            self.finish(key, flow, closed_ns, clock);
        }
    }

    /// A socket with several flows is gone.
    fn release(
        &mut self,
        cookie: u64,
        at_ns: u64,
        read: impl Fn(&FlowKey) -> Option<FlowState>,
        clock: &Clock,
    ) {
        self.released.insert(cookie, at_ns);
        let from = FlowKey {
            cookie,
            ..FlowKey::default()
        };
        let keys: Vec<FlowKey> = self
            .open
            .range(from..)
            .map(|(key, _)| *key)
            .take_while(|key| key.cookie == cookie)
            .collect();
        for key in keys {
            let Some(mut flow) = self.open.remove(&key) else {
                continue;
            };
            if let Some(state) = read(&key).filter(|state| flow.is(state)) {
                flow.take(state);
            }
            self.leave(key, flow, at_ns, clock);
        }
    }

    /// Takes a reading of the kernel's map into account.
    pub fn sweep(
        &mut self,
        entries: &[(FlowKey, FlowState)],
        reading: Reading,
        mut owner: impl FnMut(&SocketOwner, u64) -> Arc<Owner>,
        clock: &Clock,
    ) {
        self.round += 1;
        let crowded = entries.len() > self.settings.limit / 2;
        for (key, state) in entries {
            let leaving = self.leaving.get(key);
            if leaving.is_some_and(|leaving| leaving.opened_ns == state.opened_ns) {
                continue;
            }
            let known = self.open.get(key).map(|flow| flow.state.opened_ns);
            let settled = state.opened_ns.saturating_add(SETTLED_NS) < reading.applied_ns
                || self.released.contains_key(&key.cookie)
                || self
                    .restored
                    .get(key)
                    .is_some_and(|note| note.opened_ns == state.opened_ns);
            match known {
                // Its first record was lost, or it is of an agent before this one.
                None if settled => {}
                Some(opened_ns) if opened_ns < state.opened_ns && settled => {
                    self.overtaken(key, clock);
                }
                Some(opened_ns) if opened_ns == state.opened_ns => {}
                _ => continue,
            }
            if known.is_none() && self.open.len() >= self.settings.limit {
                self.dropped += 1;
                continue;
            }
            let flow = self.known(key, *state, |socket| owner(socket, state.opened_ns), clock);
            self.swept(*key, flow, crowded, reading.now_ns, clock);
        }
        self.released.clear();
        self.missing(reading, clock);
        // What no flow in the map claims by now never will be.
        if self.round == 2 {
            let unclaimed = std::mem::take(&mut self.restored);
            self.forgotten.extend(unclaimed.into_keys());
        }
    }

    fn swept(&mut self, key: FlowKey, mut flow: Flow, crowded: bool, now_ns: u64, clock: &Clock) {
        flow.round = self.round;
        flow.seen_ns = flow.seen_ns.max(now_ns);
        if let Some(closed_ns) = self.released.get(&key.cookie).copied() {
            self.leave(key, flow, closed_ns, clock);
            return;
        }
        if now_ns
            > flow
                .state
                .last_ns
                .saturating_add(self.idle_ns(&flow.state, crowded))
        {
            let closed_ns = flow.state.last_ns;
            self.leave(key, flow, closed_ns, clock);
            return;
        }
        let due = flow.reported_ns.is_none_or(|reported_ns| {
            now_ns >= reported_ns.saturating_add(self.settings.update_ns * self.sparse)
        });
        let moved = flow.reported_last_ns < flow.state.last_ns;
        if moved && due && !flow.changed {
            flow.changed = true;
            self.changed.push(key);
        }
        self.open.insert(key, flow);
    }

    /// Flows that the map has no more and whose end was not told: a record was lost after the entry was removed.
    fn missing(&mut self, reading: Reading, clock: &Clock) {
        let round = self.round;
        let gone: Vec<FlowKey> = self
            .open
            .iter()
            .filter(|(_, flow)| {
                flow.round < round
                    && flow.state.last_ns.saturating_add(SETTLED_NS) < reading.applied_ns
            })
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.overtaken(&key, clock);
            self.forgotten.push(key);
        }
    }

    fn idle_ns(&self, state: &FlowState, crowded: bool) -> u64 {
        let single = state.packets_sent <= 1 && state.packets_received <= 1;
        match (single, crowded) {
            (true, true) => CROWDED_IDLE_NS.min(self.settings.idle_ns),
            (true, false) if state.dns != 0 => self.settings.dns_idle_ns,
            _ => self.settings.idle_ns,
        }
    }

    fn leave(&mut self, key: FlowKey, flow: Flow, closed_ns: u64, clock: &Clock) {
        self.finish(&key, flow.clone(), closed_ns, clock);
        let leaving = Leaving {
            key,
            opened_ns: flow.state.opened_ns,
            flow,
            closed_ns,
        };
        // An earlier flow with its key is not in the map any more.
        self.leaving.insert(key, leaving);
    }

    fn finish(&mut self, key: &FlowKey, flow: Flow, closed_ns: u64, clock: &Clock) {
        if flow.is_own() {
            return;
        }
        let row = self.row(key, &flow, Some(closed_ns), clock);
        self.finished.push(row);
    }

    /// Gives flows the owners that took the place of theirs, by address. What is open and changed is due again.
    pub fn reown(&mut self, renewed: &HashMap<*const Owner, Arc<Owner>>) {
        for (key, flow) in &mut self.open {
            if let Some(owner) = renewed.get(&Arc::as_ptr(&flow.owner)) {
                flow.owner = Arc::clone(owner);
                if !flow.changed {
                    flow.changed = true;
                    self.changed.push(*key);
                }
            }
        }
        for row in &mut self.finished {
            if let Some(owner) = renewed.get(&Arc::as_ptr(&row.owner)) {
                row.owner = Arc::clone(owner);
            }
        }
    }

    /// Hands out every row that is due. `now_ns` is monotonic.
    pub fn drain(&mut self, now_ns: u64, clock: &Clock) -> Vec<Row> {
        let mut rows = std::mem::take(&mut self.finished);
        for key in std::mem::take(&mut self.changed) {
            let Some(flow) = self.open.get_mut(&key).filter(|flow| flow.changed) else {
                continue;
            };
            flow.changed = false;
            flow.reported_ns = Some(now_ns);
            flow.reported_last_ns = flow.state.last_ns;
            if flow.is_own() {
                continue;
            }
            let flow = flow.clone();
            rows.push(self.row(&key, &flow, None, clock));
        }
        rows
    }

    /// What must be kept of flows that stay open, before the rows just drained are: a next agent has no other source for it.
    pub fn notes(&mut self) -> Vec<(FlowKey, FlowNote)> {
        let mut notes = Vec::new();
        for key in std::mem::take(&mut self.unnoted) {
            if let Some(flow) = self.open.get_mut(&key).filter(|flow| !flow.noted) {
                flow.noted = true;
                notes.push((key, flow.note()));
            }
        }
        notes
    }

    /// Flows whose last rows were drained, and which the kernel's map still has.
    pub fn leaving(&mut self) -> Vec<Leaving> {
        std::mem::take(&mut self.leaving).into_values().collect()
    }

    /// What the map had of a flow when it was taken out: what came since its last row is told too.
    pub fn left(&mut self, leaving: Leaving, state: FlowState, clock: &Clock) {
        self.forgotten.push(leaving.key);
        let mut flow = leaving.flow;
        if flow.state.last_ns < state.last_ns {
            flow.take(state);
            let closed_ns = leaving.closed_ns.max(state.last_ns);
            self.finish(&leaving.key, flow, closed_ns, clock);
        }
    }

    /// Keys whose notes are of no use any more.
    pub fn forgotten(&mut self) -> Vec<FlowKey> {
        let mut keys = std::mem::take(&mut self.forgotten);
        keys.retain(|key| !self.open.contains_key(key));
        keys
    }

    /// Rows that [`Table::drain`] would give, at most.
    pub fn pending(&self) -> usize {
        self.finished.len() + self.changed.len()
    }

    /// Flows now open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Flows not tracked because the table was full.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Flows of the agent's own session: followed as others are, never handed out.
    pub fn own(&self) -> u64 {
        self.own
    }

    fn row(&self, key: &FlowKey, flow: &Flow, closed_ns: Option<u64>, clock: &Clock) -> Row {
        let state = &flow.state;
        let cookie = flow_cookie(key, state.opened_ns);
        let role = if state.opened_by == direction::SENT {
            Role::Client
        } else {
            Role::Server
        };
        // A clock that was set back must not make the end older than the opening.
        let later = |ns: u64| clock.utc(ns).max(flow.opened_at);
        let closed_at = closed_ns.map(later);
        let seen_at = later(flow.seen_ns.max(state.last_ns));
        Row {
            half: Half {
                id: HalfId::new(self.identity.agent, self.identity.boot, cookie),
                cookie,
                protocol: Protocol::Udp,
                role,
                state: if closed_at.is_some() {
                    HalfState::Closed
                } else {
                    HalfState::Open
                },
                fingerprint: self.fingerprint(flow),
                local: decode::socket(key.local, key.local_port),
                remote: decode::socket(key.remote, key.remote_port),
                opened_at: flow.opened_at,
                closed_at,
                seen_at: closed_at.map_or(seen_at, |closed| closed.max(seen_at)),
                bytes_sent: state.bytes_sent,
                bytes_received: state.bytes_received,
                packets_sent: state.packets_sent,
                packets_received: state.packets_received,
                rtt_us: 0,
                retransmits: 0,
                owner: 0,
                name: 0,
                named_before_us: 0,
                application: application(flow),
            },
            owner: Arc::clone(&flow.owner),
        }
    }

    /// Unknown where the first datagram was lost, or is perhaps not the first: a socket older than the hooks may have
    /// talked before them, and only after so long that it would have been another flow anyway that does not matter.
    fn fingerprint(&self, flow: &Flow) -> Fingerprint {
        let state = &flow.state;
        let known_since = self
            .settings
            .attached_ns
            .saturating_add(self.settings.idle_ns);
        let late = state.owner.origin != socket_origin::CREATED && state.opened_ns < known_since;
        match flow.client {
            Some(client) if !late => Fingerprint::Datagrams(Datagrams {
                sort: client.sort,
                client: client.hash,
                server: flow.server.map_or(0, |server| server.hash),
                distinct: client.distinct || flow.server.is_some_and(|server| server.distinct),
            }),
            _ => Fingerprint::Unknown,
        }
    }
}

impl Flow {
    fn is_own(&self) -> bool {
        self.state.owner.origin == socket_origin::AGENT
    }

    fn is(&self, state: &FlowState) -> bool {
        self.state.opened_ns == state.opened_ns
    }

    /// Takes newer counters; of two readings in disorder the greater stands.
    fn take(&mut self, state: FlowState) {
        let before = self.state;
        self.state = FlowState {
            last_ns: before.last_ns.max(state.last_ns),
            bytes_sent: before.bytes_sent.max(state.bytes_sent),
            bytes_received: before.bytes_received.max(state.bytes_received),
            packets_sent: before.packets_sent.max(state.packets_sent),
            packets_received: before.packets_received.max(state.packets_received),
            ..state
        };
    }

    fn note(&self) -> FlowNote {
        let distinct = |print: &Option<Print>, bit: u64| {
            if print.is_some_and(|print| print.distinct) {
                bit
            } else {
                0
            }
        };
        FlowNote {
            opened_ns: self.state.opened_ns,
            client: self.client.map_or(0, |print| print.hash),
            server: self.server.map_or(0, |print| print.hash),
            flags: self.client.map_or(0, |print| print.sort as u64)
                | distinct(&self.client, CLIENT_DISTINCT)
                | distinct(&self.server, SERVER_DISTINCT),
        }
    }
}

fn prints(note: &FlowNote) -> (Option<Print>, Option<Print>) {
    let sort = match note.flags & 3 {
        1 => DatagramSort::Dns,
        2 => DatagramSort::Quic,
        _ => DatagramSort::Other,
    };
    let print = |hash: u64, bit: u64| {
        (hash != 0).then_some(Print {
            sort,
            hash,
            distinct: note.flags & bit != 0,
        })
    };
    (
        print(note.client, CLIENT_DISTINCT),
        print(note.server, SERVER_DISTINCT),
    )
}

fn application(flow: &Flow) -> Application {
    match flow.client.map(|client| client.sort) {
        Some(DatagramSort::Dns) => Application::Dns,
        Some(DatagramSort::Quic) => Application::Quic,
        _ => Application::Unknown,
    }
}

/// What stands for a socket's cookie in a flow's identity: one socket has many flows, and the same two ends may have another
/// one later.
fn flow_cookie(key: &FlowKey, opened_ns: u64) -> u64 {
    let half = |address: &[u8; 16], at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&address[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    let ports = u64::from(key.remote_port) << 16 | u64::from(key.local_port);
    let parts = [
        half(&key.remote, 0),
        half(&key.remote, 8),
        half(&key.local, 0),
        half(&key.local, 8),
        ports,
        opened_ns,
    ];
    parts
        .iter()
        .fold(mix64(key.cookie), |mixed, part| mix64(mixed ^ part))
}

#[cfg(test)]
mod tests;
