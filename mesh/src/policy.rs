//! What a region keeps to itself: told to no other home, not even where it has the other end of the connection.

use crate::mesh::Card;

/// What is left out of the cards that other homes are sent. Addresses, ports, times and bytes are what a match is judged by, and the
/// namespace of a socket says which loopback addresses are its own: these stay in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepHome {
    /// Processes, units, cgroups and containers; with them their arguments.
    pub processes: bool,
    /// Arguments of processes.
    pub arguments: bool,
    /// Names: of peers as clients knew them, of users, workloads, pods and images, and of the agent's host.
    pub names: bool,
    /// Labels of pods.
    pub labels: bool,
}

impl KeepHome {
    /// What there is, as configurations name it.
    pub const WORDS: [&'static str; 4] = ["processes", "arguments", "names", "labels"];

    /// The policy of these words; the first that means nothing otherwise.
    pub fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        let mut keep = Self::default();
        for word in words {
            match word {
                "processes" => keep.processes = true,
                "arguments" => keep.arguments = true,
                "names" => keep.names = true,
                "labels" => keep.labels = true,
                other => return Err(other),
            }
        }
        Ok(keep)
    }

    /// Takes out of a card what stays.
    pub fn strip(self, card: &mut Card) {
        let Card {
            half: _,
            owner,
            name,
            agent,
            site,
        } = card;
        let processes = owner.process.iter_mut().chain(&mut owner.sharers);
        for process in processes {
            if self.arguments {
                process.args = None;
            }
            if self.names {
                process.user = None;
            }
        }
        if self.processes {
            owner.process = None;
            owner.sharers.clear();
            owner.cgroup.clear();
            owner.container = None;
            owner.unit = None;
            owner.escaped = false;
        }
        if let Some(pod) = owner.pod.as_mut().filter(|_| self.labels) {
            pod.labels.clear();
        }
        if self.names {
            owner.workload.clear();
            owner.pod = None;
            *name = None;
            // Which agent it was stays known, so that loopback addresses of one host are not taken for another's; its name does not.
            *agent = blake3::hash(agent.as_bytes()).to_hex()[..16].to_owned();
            site.namespace.clear();
        }
    }
}
