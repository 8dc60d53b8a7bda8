//! Processes as they were when they began: whole, also when they are gone before anyone looks. Pure.

use std::collections::{HashMap, VecDeque};

use super::decode::{Begun, Caller};
use crate::attribution::ProcessFacts;

/// Most processes remembered, at some 700 bytes each with long arguments. Full: the oldest is forgotten and counted.
pub const MAX_PROCESSES: usize = 16_384;
/// Start times are compared in the ticks in which the host tells them.
const TICK_NS: u64 = 10_000_000;

/// What is remembered of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Start time in clock ticks since boot: with the pid, unique.
    pub start_ticks: u64,
    /// Name of its main thread.
    pub name: String,
    /// The program as it was asked for.
    pub exe: Option<String>,
    /// Its arguments, each ended by NUL, with every secret in them.
    pub cmdline: Vec<u8>,
    /// Process id of its parent.
    pub parent: u32,
    /// Name of that.
    pub parent_name: String,
}

impl Remembered {
    /// As the host would have told it while the process was there.
    pub fn facts(&self) -> ProcessFacts {
        ProcessFacts {
            start_ticks: self.start_ticks,
            name: self.name.clone(),
            exe: self.exe.clone(),
            cmdline: self.cmdline.clone(),
            parent: self.parent,
            parent_name: self.parent_name.clone(),
            ..ProcessFacts::default()
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Processes {
    known: HashMap<u32, Remembered>,
    order: VecDeque<u32>,
    /// Processes that ended.
    pub ended: u64,
    /// Processes forgotten because there were too many.
    pub evictions: u64,
}

impl Processes {
    /// A process runs a program.
    pub fn begun(&mut self, begun: Begun) {
        let facts = Remembered {
            start_ticks: begun.process.started_ns / TICK_NS,
            name: text(&begun.process.comm),
            exe: Some(begun.executable).filter(|path| !path.is_empty()),
            cmdline: begun.arguments,
            parent: begun.process.parent,
            parent_name: text(&begun.parent_comm),
        };
        self.keep(begun.process.pid, facts);
    }

    /// A process uses a socket. One that was forked and runs its parent's program is known by that; its name tells that
    /// it does.
    pub fn used_a_socket(&mut self, process: &Caller) {
        let start_ticks = process.started_ns / TICK_NS;
        if self
            .known
            .get(&process.pid)
            .is_some_and(|known| known.start_ticks == start_ticks)
        {
            return;
        }
        let name = text(&process.comm);
        let parent = self.known.get(&process.parent);
        let same = parent.filter(|parent| parent.name == name);
        let facts = Remembered {
            start_ticks,
            exe: same.and_then(|parent| parent.exe.clone()),
            cmdline: same
                .map(|parent| parent.cmdline.clone())
                .unwrap_or_default(),
            parent_name: parent.map(|parent| parent.name.clone()).unwrap_or_default(),
            name,
            parent: process.parent,
        };
        self.keep(process.pid, facts);
    }

    /// A process is gone. What is known of it stays until there is no more room: its connections are told later.
    pub fn ended(&mut self, _: &Caller) {
        self.ended += 1;
    }

    /// The process with this id that was last heard of.
    pub fn find(&self, pid: u32) -> Option<&Remembered> {
        self.known.get(&pid)
    }

    fn keep(&mut self, pid: u32, facts: Remembered) {
        if self.known.insert(pid, facts).is_none() {
            self.order.push_back(pid);
        }
        if self.known.len() > MAX_PROCESSES
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
            self.evictions += 1;
        }
    }
}

/// A kernel name, up to its terminator.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(pid: u32, parent: u32, name: &[u8]) -> Caller {
        let mut comm = [0; 16];
        comm[..name.len()].copy_from_slice(name);
        Caller {
            pid,
            parent,
            started_ns: u64::from(pid) * TICK_NS,
            comm,
            ..Caller::default()
        }
    }

    fn begun(pid: u32, name: &[u8]) -> Begun {
        Begun {
            process: caller(pid, 1, name),
            parent_comm: [0; 16],
            executable: "/bin/it".into(),
            arguments: b"it\0".to_vec(),
        }
    }

    #[test]
    fn a_forked_process_runs_its_parents_program_if_it_has_its_name() {
        let mut processes = Processes::default();
        processes.begun(begun(5, b"it"));
        processes.used_a_socket(&caller(6, 5, b"it"));
        processes.used_a_socket(&caller(7, 5, b"other"));
        let exe = |pid| processes.find(pid).and_then(|facts| facts.exe.clone());
        assert_eq!(exe(6).as_deref(), Some("/bin/it"));
        assert_eq!(exe(7), None);
        assert_eq!(
            processes.find(7).map(|facts| facts.parent_name.as_str()),
            Some("it")
        );
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut processes = Processes::default();
        for pid in 1..=MAX_PROCESSES as u32 + 1 {
            processes.begun(begun(pid, b"it"));
        }
        assert_eq!(
            (processes.known.len(), processes.evictions),
            (MAX_PROCESSES, 1)
        );
        assert!(processes.find(1).is_none());
    }
}
