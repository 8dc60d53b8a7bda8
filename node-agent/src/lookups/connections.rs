//! Whose TCP connections with name servers are. Their packets say nothing of it, and come before the connection is reported: the
//! kernel is asked. Of one that it does not keep any more the end has been recorded; when all that was recorded by then has been
//! read and nobody told, it is older than the hooks, and nobody's.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use weft_wire::Owner;

/// Most connections remembered; the oldest goes, and is counted where its owner was never told.
pub const MAX_CONNECTIONS: usize = 4_096;

/// Owners by socket cookie. Until an owner is told, something of its own stands for it.
#[derive(Debug, Default)]
pub struct Connections {
    known: HashMap<u64, Known>,
    /// Cookie of each stand-in, by its address. The stand-in itself is kept as long.
    stand_ins: HashMap<usize, u64>,
    order: VecDeque<u64>,
    /// How often all that was recorded of connections has been read.
    readings: u64,
    /// Connections whose owner was never told.
    pub unknown: u64,
}

#[derive(Debug, Default)]
struct Known {
    stand_in: Option<Arc<Owner>>,
    owner: Option<Arc<Owner>>,
    /// As many readings there had been when the kernel did not keep it.
    missed_at: u64,
}

impl Connections {
    /// Tells whose a connection is.
    pub fn tell(&mut self, cookie: u64, owner: &Arc<Owner>) {
        self.entry(cookie).owner = Some(Arc::clone(owner));
    }

    /// Everything that had been recorded of connections has been read.
    pub fn caught_up(&mut self) {
        self.readings += 1;
    }

    /// Whether nothing was heard of a connection yet.
    pub fn is_new(&self, cookie: u64) -> bool {
        !self.known.contains_key(&cookie)
    }

    /// Gives connections the owners that took the place of theirs, by address.
    pub fn reown(&mut self, renewed: &HashMap<*const Owner, Arc<Owner>>) {
        let owners = self.known.values_mut().filter_map(|it| it.owner.as_mut());
        for owner in owners {
            if let Some(new) = renewed.get(&Arc::as_ptr(owner)) {
                *owner = Arc::clone(new);
            }
        }
    }

    /// Whose a connection is, or what stands for it.
    pub fn owner(&mut self, cookie: u64) -> Arc<Owner> {
        let (new, readings) = (self.is_new(cookie), self.readings);
        let known = self.entry(cookie);
        if let Some(owner) = &known.owner {
            return Arc::clone(owner);
        }
        if new {
            known.missed_at = readings;
        }
        let stand_in = Arc::clone(known.stand_in.get_or_insert_with(Arc::default));
        self.stand_ins.insert(address(&stand_in), cookie);
        stand_in
    }

    /// The owner that something stands for, if it was told; else what was given.
    pub fn real<'a>(&'a self, owner: &'a Arc<Owner>) -> &'a Arc<Owner> {
        let known = self.stands_for(owner);
        known
            .and_then(|known| known.owner.as_ref())
            .unwrap_or(owner)
    }

    /// Whether something stands for an owner who may still be told.
    pub fn awaits(&self, owner: &Arc<Owner>) -> bool {
        let known = self.stands_for(owner);
        known.is_some_and(|known| known.owner.is_none() && known.missed_at >= self.readings)
    }

    fn stands_for(&self, owner: &Arc<Owner>) -> Option<&Known> {
        self.known.get(self.stand_ins.get(&address(owner))?)
    }

    fn entry(&mut self, cookie: u64) -> &mut Known {
        if !self.known.contains_key(&cookie) {
            self.order.push_back(cookie);
            if self.order.len() > MAX_CONNECTIONS
                && let Some(oldest) = self.order.pop_front()
            {
                self.forget(oldest);
            }
        }
        self.known.entry(cookie).or_default()
    }

    fn forget(&mut self, cookie: u64) {
        let Some(known) = self.known.remove(&cookie) else {
            return;
        };
        self.unknown += u64::from(known.owner.is_none());
        if let Some(stand_in) = known.stand_in {
            self.stand_ins.remove(&address(&stand_in));
        }
    }
}

fn address(owner: &Arc<Owner>) -> usize {
    Arc::as_ptr(owner).addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_may_be_told_late() {
        let mut connections = Connections::default();
        let early = connections.owner(7);
        assert!(connections.awaits(&early));
        assert!(Arc::ptr_eq(connections.real(&early), &early));
        let owner = Arc::new(Owner {
            workload: "db".into(),
            ..Owner::default()
        });
        assert!(!connections.awaits(&owner));
        connections.tell(7, &owner);
        assert!(!connections.awaits(&early));
        assert!(Arc::ptr_eq(connections.real(&early), &owner));
        assert!(Arc::ptr_eq(&connections.owner(7), &owner));
        let renewed = Arc::new(Owner::default());
        connections.reown(&HashMap::from([(
            Arc::as_ptr(&owner),
            Arc::clone(&renewed),
        )]));
        assert!(Arc::ptr_eq(connections.real(&early), &renewed));
        connections.tell(7, &owner);
        for cookie in 100..100 + MAX_CONNECTIONS as u64 {
            connections.owner(cookie);
        }
        assert_eq!(
            (connections.known.len(), connections.unknown),
            (MAX_CONNECTIONS, 0)
        );
        assert!(Arc::ptr_eq(connections.real(&early), &early), "forgotten");
        connections.owner(99);
        assert_eq!(
            (connections.stand_ins.len(), connections.unknown),
            (MAX_CONNECTIONS, 1)
        );
    }
}
