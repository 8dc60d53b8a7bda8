//! What the rest of the program sees of the membership.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;
use weft_mesh::membership::node::in_order_for;
use weft_mesh::membership::{Membership, Node};
use weft_wire::federation::{FederatorState, HomeAddress, Homes, MAX_HOMES, Presence};

use crate::peers::Peers;

/// Who is there, at one time.
#[derive(Clone, Debug)]
pub struct View {
    /// This federator.
    pub own: Node,
    /// Others that are there.
    pub up: Vec<Node>,
    /// Such as are gone.
    pub down: Vec<Node>,
    damped: BTreeSet<String>,
    owners: BTreeMap<String, u8>,
    since: BTreeMap<String, Instant>,
}

impl View {
    /// As it is now.
    pub fn of(membership: &Membership, since: &BTreeMap<String, Instant>) -> Self {
        let up: Vec<Node> = membership.up().cloned().collect();
        let damped = up.iter().map(|node| node.name.clone());
        Self {
            own: membership.own().clone(),
            damped: damped.filter(|name| membership.damped(name)).collect(),
            down: membership.down().cloned().collect(),
            owners: membership.owners().iter().cloned().collect(),
            since: since.clone(),
            up,
        }
    }

    /// The federators of the region that take an agent of this name, the one that it belongs to first; this one, where there
    /// is no other.
    pub fn homes_of(&self, agent: &str) -> Homes {
        // Whom nobody can send an agent to keeps those that it has.
        if self.own.address.is_empty() && !self.own.draining {
            return Homes::default();
        }
        let near = |node: &&Node| {
            node.region == self.own.region
                && !node.address.is_empty()
                && self.owners.contains_key(&node.name)
        };
        let able: Vec<&Node> = self.up.iter().chain([&self.own]).filter(near).collect();
        let names = able.iter().map(|node| node.name.as_str()).collect();
        let homes = in_order_for(agent, names).into_iter().take(MAX_HOMES);
        let home = |name: &str| able.iter().find(|node| node.name == name);
        let homes = homes.filter_map(home).map(|node| HomeAddress {
            name: node.name.clone(),
            address: node.address.clone(),
        });
        Homes {
            homes: homes.collect(),
        }
    }

    fn seconds(&self, name: &str, started: Instant) -> u64 {
        let since = self.since.get(name).copied().unwrap_or(started);
        since.elapsed().as_secs()
    }

    /// This federator, for an operator.
    pub fn own_state(&self, agents: u64, started: Instant) -> FederatorState {
        FederatorState {
            name: self.own.name.clone(),
            region: self.own.region.clone(),
            address: self.own.address.clone(),
            asked: true,
            state: if self.own.draining {
                Presence::Draining
            } else {
                Presence::Up
            },
            for_s: started.elapsed().as_secs(),
            weight: self.own.weight,
            agents: Some(agents),
            rtt_us: None,
            error: None,
        }
    }

    /// The others, for an operator.
    pub fn states(&self, peers: &Peers, started: Instant) -> Vec<FederatorState> {
        let mut states: BTreeMap<String, FederatorState> = BTreeMap::new();
        for link in peers.all() {
            let session = link.session();
            let node = self.up.iter().find(|node| node.name == link.name);
            let gone = self.down.iter().any(|node| node.name == link.name);
            let state = match node {
                _ if gone => Presence::Down,
                Some(node) if node.draining => Presence::Draining,
                Some(node) if self.damped.contains(&node.name) => Presence::Damped,
                _ if session.is_none() => Presence::Suspect,
                _ => Presence::Up,
            };
            let error = session.is_none().then(|| link.error());
            let state = FederatorState {
                name: link.name.clone(),
                region: link.region(),
                address: link.address(),
                asked: false,
                state,
                for_s: self.seconds(&link.name, started),
                weight: node.map_or(1, |node| node.weight),
                agents: None,
                rtt_us: session.map(|session| session.rtt().as_micros() as u64),
                error,
            };
            states.insert(link.name.clone(), state);
        }
        states.into_values().collect()
    }
}
