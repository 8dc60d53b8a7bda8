//! What changes when federators come and go: who owns which offers.

use super::{Mesh, Peer};
use crate::owner::HomeIndex;

impl Mesh {
    /// Who may own offers now, with the weight of each; nobody else owns any. Halves whose owner is another now are offered to that
    /// one, and to no other; how many these are. A name that was not known becomes a member.
    ///
    /// Federators that do not agree on it for a while ask different owners, who then do not find the pair; as soon as they agree
    /// again, they ask the same.
    pub fn owners_changed(&mut self, owners: &[(String, u8)]) -> usize {
        for (name, _) in owners {
            self.meet(name);
        }
        let members = &mut self.config.members;
        let mut weights = vec![0; members.len()];
        for (name, weight) in owners {
            if let Some(index) = members.index(name) {
                weights[index] = *weight;
            }
        }
        let (mut more, mut less) = (Vec::new(), Vec::new());
        for (index, weight) in weights.into_iter().enumerate() {
            match members.weigh(index, weight) {
                before if before < members.weight(index) => more.push(index),
                before if before > members.weight(index) => less.push(index),
                _ => {}
            }
        }
        self.home.reassign(&self.config.members, &more, &less)
    }

    /// A federator becomes known.
    fn meet(&mut self, name: &str) -> HomeIndex {
        let index = self.config.members.add(name, 0);
        while self.peers.len() < self.config.members.len() {
            self.peers.push(Peer::default());
            self.owner.meet();
        }
        index
    }
}
