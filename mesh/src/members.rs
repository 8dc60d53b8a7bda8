//! Who owns a routing key: highest random weight (Thaler and Ravishankar 1998). Every member comes to the same
//! answer from the same list of names, in any order; when a member goes, only its keys move.

use weft_wire::model::mix64;

/// The federators of a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// Name and its hash, in the order of the names.
    list: Vec<(String, u64)>,
}

impl Members {
    /// The mesh of these names; one that is given twice counts once.
    pub fn new<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
        names.sort();
        names.dedup();
        let list = names.into_iter().map(|name| {
            let mut first = [0; 8];
            first.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
            (name, u64::from_le_bytes(first))
        });
        Self {
            list: list.collect(),
        }
    }

    /// The owner's index; 0 for an empty mesh.
    pub fn rendezvous(&self, routing_key: u64) -> usize {
        let weight = |hash: u64| mix64(routing_key ^ mix64(hash));
        let best = self
            .list
            .iter()
            .enumerate()
            .max_by_key(|(index, (_, hash))| (weight(*hash), std::cmp::Reverse(*index)));
        best.map_or(0, |(index, _)| index)
    }

    /// The name at an index.
    pub fn name(&self, index: usize) -> &str {
        self.list.get(index).map_or("", |(name, _)| name)
    }

    /// The index of a name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.list
            .binary_search_by(|(known, _)| known.as_str().cmp(name))
            .ok()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_load_is_even() {
        let names = ["fed-a", "fed-b", "fed-c", "fed-d"];
        let (members, turned) = (Members::new(names), Members::new(names.into_iter().rev()));
        assert_eq!(members, turned);
        let mut load = [0; 4];
        for key in 0..40_000u64 {
            load[members.rendezvous(key)] += 1;
        }
        assert!(load.iter().all(|n| (9_500..10_500).contains(n)), "{load:?}");
    }

    #[test]
    fn when_a_member_goes_only_its_keys_move() {
        let (all, fewer) = (Members::new(["a", "b", "c"]), Members::new(["a", "c"]));
        for key in 0..10_000 {
            let owner = all.name(all.rendezvous(key));
            if owner != "b" {
                assert_eq!(fewer.name(fewer.rendezvous(key)), owner);
            }
        }
    }
}
