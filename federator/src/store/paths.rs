//! How rows' bytes travelled: classified once for each pair of agents and what stands between them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_cloud_context::{classify, classify_unmatched};
use weft_wire::query::{PathClass, Unmatched};

use super::append::StoredPath;
use super::end_of;
use crate::core::Mixed;
use crate::record::{AgentNumber, AgentRecord, Row, Side, address_words, code};

/// Paths remembered; forgotten all at once when full.
const MAX_PATHS: usize = 65_536;
/// Numbers remembered of what stands between two ends; forgotten all at once when full, and given anew.
pub const MAX_VIAS: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub struct Paths {
    known: HashMap<Key, StoredPath, Mixed>,
    vias: HashMap<Arc<str>, u32>,
    last_via: u32,
    /// Not yet in the store.
    fresh: Vec<(u32, Arc<str>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    agents: u64,
    called: (u64, u64),
    caller: (u64, u64),
}

impl Paths {
    /// Starts with what the store knows.
    pub fn new(vias: Vec<(u32, Arc<str>)>) -> Self {
        Self {
            last_via: vias.iter().map(|(number, _)| *number).max().unwrap_or(0),
            vias: vias
                .into_iter()
                .map(|(number, via)| (via, number))
                .collect(),
            known: HashMap::with_hasher(Mixed(crate::pipeline::random_seed())),
            fresh: Vec::new(),
        }
    }

    /// The row's path.
    pub fn of(&mut self, agents: &HashMap<AgentNumber, Arc<AgentRecord>>, row: &Row) -> StoredPath {
        let (Some(client), Some(server)) = (&row.client, &row.server) else {
            let path = classify_unmatched(row.unmatched.unwrap_or(Unmatched::Pending));
            return StoredPath {
                class: code::of(&code::CLASSES, &path.class),
                ..StoredPath::default()
            };
        };
        let key = Key {
            agents: u64::from(client.agent) << 32 | u64::from(server.agent),
            called: between(client.half.remote.ip(), server.half.local.ip()),
            caller: between(server.half.remote.ip(), client.half.local.ip()),
        };
        if let Some(path) = self.known.get(&key) {
            return *path;
        }
        let path = self.classified(agents, client, server);
        if self.known.len() >= MAX_PATHS {
            self.known.clear();
        }
        self.known.insert(key, path);
        path
    }

    /// Numbers given since the last time.
    pub fn take_fresh(&mut self) -> Vec<(u32, Arc<str>)> {
        std::mem::take(&mut self.fresh)
    }

    fn classified(
        &mut self,
        agents: &HashMap<AgentNumber, Arc<AgentRecord>>,
        client: &Side,
        server: &Side,
    ) -> StoredPath {
        let (Some(client), Some(server)) = (end_of(agents, client), end_of(agents, server)) else {
            return StoredPath {
                class: code::of(&code::CLASSES, &PathClass::Unknown),
                ..StoredPath::default()
            };
        };
        let path = classify(&client, &server);
        StoredPath {
            class: code::of(&code::CLASSES, &path.class),
            crosses: code::crosses(&path.crosses),
            via: self.via(&path.via),
        }
    }

    fn via(&mut self, addresses: &[String]) -> u32 {
        if addresses.is_empty() {
            return 0;
        }
        let text: Arc<str> = addresses.join(" ").into();
        if let Some(number) = self.vias.get(&text) {
            return *number;
        }
        if self.vias.len() >= MAX_VIAS {
            self.vias.clear();
        }
        self.last_via += 1;
        self.vias.insert(text.clone(), self.last_via);
        self.fresh.push((self.last_via, text));
        self.last_via
    }
}

/// The address that stands there instead of the other; zero where none does.
fn between(seen: IpAddr, own: IpAddr) -> (u64, u64) {
    if seen == own {
        (0, 0)
    } else {
        address_words(seen)
    }
}
