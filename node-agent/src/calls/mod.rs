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

use weft_agent_common::calls::call_counter;
use weft_wire::{Application, Role};

use crate::decode::OwnerKey;
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
    /// What is known of processes.
    pub processes: Processes,
    /// Records read.
    pub records: u64,
    /// Records that were not understood.
    pub malformed: u64,
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
            processes: Processes::default(),
            records: 0,
            malformed: 0,
        }
    }

    /// How the hooks are attached.
    pub fn mode(&self) -> hooks::Mode {
        self.hooks.mode
    }

    /// Reads what is in the ring. Called after the end of the socket hooks' ring was looked up and before it is read
    /// up to there: a call comes before the end of its connection.
    pub fn poll(&mut self) {
        while let Some((bytes, next)) = self.hooks.ring.peek(self.position) {
            match decode::decode(bytes) {
                Ok(call) => self.apply(call),
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

    fn apply(&mut self, call: Call) {
        match call {
            Call::Socket(call) => {
                self.processes.used_a_socket(&call.process);
                self.speakers.apply(call);
            }
            Call::Begun(begun) => self.processes.begun(begun),
            Call::Ended(ended) => self.processes.ended(&ended.process),
        }
    }

    /// Whose a connection is: the process that speaks on it, where that is known; else what the socket hooks said.
    pub fn owner(&self, cookie: u64, said: &OwnerKey) -> OwnerKey {
        self.speakers.speaker(cookie).map_or(*said, |process| {
            OwnerKey {
                pid: process.pid,
                uid: process.uid,
                comm: process.comm,
                cgroup: process.cgroup,
                // A fact of the socket, not of the process.
                netns: said.netns,
            }
        })
    }

    /// What is spoken on a connection, and the name that its client called the server by.
    pub fn spoken(&mut self, cookie: u64, role: Role) -> (Application, Option<protocol::Named>) {
        self.speakers.spoken(cookie, role)
    }

    /// Records lost because the ring was full.
    pub fn ring_full(&self) -> u64 {
        self.hooks.dropped(call_counter::RING_FULL)
    }
}
