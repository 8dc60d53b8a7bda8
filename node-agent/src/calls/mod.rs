//! The call hooks: which process really speaks on a connection, who shares its socket, what is spoken, and processes
//! that were gone before anyone looked.
//!
//! Reading order: [`facts`] (what must be known of the running kernel), [`hooks`] (attached as long as the agent lives),
//! [`decode`], [`speakers`] (what is known of each socket), [`processes`] (of each process), [`protocol`] (what first bytes
//! are). Where a kernel has neither trampolines nor kprobes, none of this is there, and the socket hooks' answers
//! stand: the process that connected or listens.

pub mod facts;
pub mod hooks;
pub mod decode;
pub mod speakers;
pub mod processes;
pub mod protocol;

use std::collections::HashMap;
use std::sync::Arc;

use weft_agent_common::calls::call_counter;
use weft_wire::{HalfId, Owner, Role};

use crate::attribution::{Attribution, Host};
use crate::clock::Clock;
use crate::decode::{ConnectionKey, Event, OwnerKey};
use crate::table::Row;
use decode::Call;
use hooks::{CallHooks, Missing};
use processes::Processes;
use speakers::Speakers;

/// Size of the ring of calls. A record has at most 850 bytes; this holds some 12,000 uses of sockets.
pub const RING_BYTES: u32 = 4 << 20;

/// Everything from the call hooks to what is known through them.
pub struct Calls {
    hooks: CallHooks,
    position: u64,
    /// What is known of sockets.
    pub speakers: Speakers,
    /// Records read.
    pub records: u64,
    /// Records that were not understood.
    pub malformed: u64,
    /// What is spoken is not looked at, to stay within the limits.
    pub without_first_bytes: bool,
    /// First bytes not looked at for that.
    pub first_bytes_skipped: u64,
    /// Names that clients called their servers by, of the rows that were completed last.
    named: HashMap<HalfId, protocol::Named>,
}

impl Calls {
    /// Attaches the hooks.
    pub fn attach(ring_bytes: u32) -> Result<Self, Missing> {
        let hooks = CallHooks::attach(ring_bytes)?;
        Ok(Self::with(hooks))
    }

    /// With hooks that are attached.
    pub fn with(hooks: CallHooks) -> Self {
        Self {
            position: hooks.ring.consumed(),
            hooks,
            speakers: Speakers::default(),
            records: 0,
            malformed: 0,
            without_first_bytes: false,
            first_bytes_skipped: 0,
            named: HashMap::new(),
        }
    }

    /// How the hooks are attached.
    pub fn mode(&self) -> hooks::Mode {
        self.hooks.mode
    }

    /// Reads what is in the ring. Called after the end of the socket hooks' ring was looked up and before it is read
    /// up to there: a call comes before the end of its connection.
    pub fn poll(&mut self, processes: &mut Processes) {
        while let Some((bytes, next)) = self.hooks.ring.peek(self.position) {
            match decode::decode(bytes) {
                Ok(Call::Socket(mut call)) => {
                    processes.used_a_socket(&call.process);
                    if self.without_first_bytes && !call.first.is_empty() {
                        call.first = Vec::new();
                        self.first_bytes_skipped += 1;
                    }
                    self.speakers.apply(call);
                }
                Ok(Call::Begun(begun)) => processes.begun(begun),
                Ok(Call::Ended(ended)) => processes.ended(&ended.process),
                Err(error) => {
                    tracing::debug!(%error, "call record skipped");
                    self.malformed += 1;
                }
            }
            self.records += 1;
            self.position = next;
        }
        self.hooks.ring.consume(self.position);
    }

    /// Whose a connection is: the process that speaks on it, where that is known; else what the socket hooks said.
    pub fn speaker(calls: Option<&Self>, event: &Event) -> OwnerKey {
        let said = event.owner;
        calls
            .and_then(|calls| calls.speakers.speaker(event.key.cookie()))
            .map_or(said, |process| key(process, said.netns))
    }

    /// Adds to rows what is spoken, and who else uses the socket; see also [`Calls::named`].
    pub fn complete<H: Host>(
        &mut self,
        rows: &mut [Row],
        attribution: &mut Attribution<H>,
        now_ns: u64,
        clock: &Clock,
    ) {
        // Rows of one owner and the same sharers keep one owner: a batch has each owner once.
        self.named.clear();
        let mut shared: HashMap<(*const Owner, Vec<OwnerKey>), [Arc<Owner>; 2]> = HashMap::new();
        for row in rows {
            let cookie = ConnectionKey(row.half.cookie).cookie();
            let (application, named) = self.speakers.spoken(cookie, row.half.role);
            row.half.application = application;
            if let (Role::Client, Some(named)) = (row.half.role, named) {
                self.named.insert(row.half.id, named);
            }
            let sharers: Vec<OwnerKey> = self
                .speakers
                .sharers(cookie)
                .map(|process| key(process, row.owner.netns))
                .collect();
            if !sharers.is_empty() {
                let owner = shared.entry((Arc::as_ptr(&row.owner), sharers.clone()));
                let [_, owner] = owner.or_insert_with(|| {
                    let mut owner = Owner::clone(&row.owner);
                    owner.sharers = sharers
                        .iter()
                        .map(|sharer| attribution.owner(sharer, now_ns, now_ns, clock))
                        .filter_map(|sharer| sharer.process.clone())
                        .collect();
                    // The first is kept so that its address stays its own.
                    [Arc::clone(&row.owner), Arc::new(owner)]
                });
                row.owner = Arc::clone(owner);
            }
            if row.half.state.finished() {
                self.speakers.forget(cookie);
            }
        }
    }

    /// The name that a client called its server by, of a row that was just completed.
    pub fn named(&self, half: HalfId) -> Option<&protocol::Named> {
        self.named.get(&half)
    }

    /// Records lost because the ring was full.
    pub fn ring_full(&self) -> u64 {
        self.hooks.dropped(call_counter::RING_FULL)
    }
}

/// A process as attribution asks for it. The network namespace is a fact of the socket, not of the process.
fn key(process: &decode::Caller, netns: u32) -> OwnerKey {
    OwnerKey {
        pid: process.pid,
        uid: process.uid,
        comm: process.comm,
        cgroup: process.cgroup,
        netns,
    }
}
