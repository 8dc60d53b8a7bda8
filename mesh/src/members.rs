//! Who owns a routing key: highest random weight (Thaler and Ravishankar 1998). Every member comes to the same
//! answer from the same list of names and weights, in any order; when a member goes, only its keys move.

use std::collections::BTreeMap;

use weft_wire::model::mix64;

/// The highest weight. A member of weight two owns twice as many keys as one of weight one; it draws that many lots, which needs
/// no arithmetic that differs between machines.
pub const MAX_WEIGHT: u8 = 16;

/// The federators of a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// In the order in which they became known: a member keeps its index.
    list: Vec<Member>,
    by_name: BTreeMap<String, usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    name: String,
    hash: u64,
    /// 0: owns nothing.
    weight: u8,
}

impl Member {
    /// The best of its lots for a key; nothing when it has none.
    fn lot(&self, routing_key: u64) -> Option<u64> {
        let lots = 0..u64::from(self.weight);
        lots.map(|lot| mix64(routing_key ^ mix64(self.hash.wrapping_add(lot))))
            .max()
    }
}

impl Members {
    /// The mesh of these names; one that is given twice counts once. All have weight one.
    pub fn new<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
        names.sort();
        let mut members = Self {
            list: Vec::new(),
            by_name: BTreeMap::new(),
        };
        for name in names {
            members.add(&name, 1);
        }
        members
    }

    /// Makes a name known, if it is not; its index.
    pub(crate) fn add(&mut self, name: &str, weight: u8) -> usize {
        if let Some(index) = self.index(name) {
            return index;
        }
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
        self.list.push(Member {
            name: name.to_owned(),
            hash: u64::from_le_bytes(first),
            weight: weight.min(MAX_WEIGHT),
        });
        self.by_name.insert(name.to_owned(), self.list.len() - 1);
        self.list.len() - 1
    }

    /// Gives a member another weight; its former one.
    pub(crate) fn weigh(&mut self, index: usize, weight: u8) -> u8 {
        let member = self.list.get_mut(index);
        member.map_or(0, |member| {
            std::mem::replace(&mut member.weight, weight.min(MAX_WEIGHT))
        })
    }

    /// A member's weight; 0 for one that owns nothing.
    pub fn weight(&self, index: usize) -> u8 {
        self.list.get(index).map_or(0, |member| member.weight)
    }

    /// The owner's index; 0 for an empty mesh.
    pub fn rendezvous(&self, routing_key: u64) -> usize {
        let lots = self.list.iter().enumerate();
        let lots = lots.filter_map(|(index, member)| Some((member.lot(routing_key)?, index)));
        // Of two equal lots, one in 2^64, the name decides: indexes are not the same everywhere.
        let better = |(lot, index): &(u64, usize), (other, at): &(u64, usize)| {
            lot.cmp(other)
                .then_with(|| self.name(*at).cmp(self.name(*index)))
        };
        lots.max_by(better).map_or(0, |(_, index)| index)
    }

    /// The owner, if it is one of these or the one that it was.
    pub(crate) fn better_of(&self, routing_key: u64, was: usize, candidates: &[usize]) -> usize {
        let lot = |index: usize| self.list.get(index).and_then(|m| m.lot(routing_key));
        candidates.iter().copied().fold(was, |best, candidate| {
            if lot(candidate) > lot(best) {
                candidate
            } else {
                best
            }
        })
    }

    /// The name at an index.
    pub fn name(&self, index: usize) -> &str {
        self.list.get(index).map_or("", |member| &member.name)
    }

    /// The index of a name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether none is known.
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

    #[test]
    fn who_becomes_known_later_owns_as_much_as_if_known_before() {
        let (early, mut late) = (Members::new(["a", "b", "c"]), Members::new(["b", "c"]));
        late.add("a", 1);
        for key in 0..10_000 {
            assert_eq!(
                early.name(early.rendezvous(key)),
                late.name(late.rendezvous(key))
            );
        }
    }

    #[test]
    fn load_follows_the_weights() {
        let mut members = Members::new(["a", "b", "c"]);
        members.weigh(0, 3);
        members.weigh(2, 0);
        let mut load = [0; 3];
        for key in 0..40_000u64 {
            load[members.rendezvous(key)] += 1;
        }
        assert!((29_000..31_000).contains(&load[0]), "{load:?}");
        assert_eq!(load[2], 0);
    }

    #[test]
    fn a_heavier_member_takes_keys_only_for_itself() {
        let mut members = Members::new(["a", "b", "c"]);
        let before: Vec<usize> = (0..10_000).map(|key| members.rendezvous(key)).collect();
        members.weigh(1, 2);
        for (key, was) in (0..10_000).zip(before) {
            let now = members.rendezvous(key);
            assert!(now == was || now == 1);
            assert_eq!(members.better_of(key, was, &[1]), now);
        }
    }
}
