//! What opened and what ended, by looking at the kernel's places for connections now and then.
//!
//! Contract. [`Places::look`] is given whose each place is. A connection that two looks in a row find, it hands out as opened, again at
//! each look until it is taken; one that was taken and is not there any more, it hands out as gone. Shorter ones are never
//! handed out: their end is in the ring. No clock, no IO.

/// What the last look saw: 8 bytes a place, and a bit.
#[derive(Debug)]
pub struct Places {
    seen: Vec<u64>,
    taken: Vec<u64>,
}

impl Places {
    /// For so many places, none of which was looked at.
    pub fn new(count: usize) -> Self {
        Self {
            seen: vec![0; count],
            taken: vec![0; count.div_ceil(64)],
        }
    }

    /// One look at every place. `opened` says whether it takes the connection.
    pub fn look(
        &mut self,
        tag: impl Fn(usize) -> u64,
        mut opened: impl FnMut(usize, u64) -> bool,
        mut gone: impl FnMut(u64),
    ) {
        for (index, seen) in self.seen.iter_mut().enumerate() {
            let now = tag(index);
            if now == 0 && *seen == 0 {
                continue;
            }
            let (word, bit) = (&mut self.taken[index / 64], 1_u64 << (index % 64));
            let taken = *word & bit != 0;
            if now != *seen {
                if taken {
                    gone(*seen);
                    *word &= !bit;
                }
                *seen = now;
            } else if !taken && opened(index, now) {
                *word |= bit;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn look(places: &mut Places, tags: &[u64], take: bool) -> (Vec<u64>, Vec<u64>) {
        let (mut opened, mut gone) = (Vec::new(), Vec::new());
        places.look(
            |index| tags[index],
            |_, tag| {
                opened.push(tag);
                take
            },
            |tag| gone.push(tag),
        );
        (opened, gone)
    }

    #[test]
    fn two_looks_make_a_connection_open_and_one_makes_it_gone() {
        let mut places = Places::new(3);
        assert_eq!(look(&mut places, &[0, 7, 0], true), (vec![], vec![]));
        assert_eq!(look(&mut places, &[0, 7, 9], false), (vec![7], vec![]));
        assert_eq!(look(&mut places, &[0, 7, 0], true), (vec![7], vec![]));
        assert_eq!(look(&mut places, &[0, 7, 0], true), (vec![], vec![]));
        assert_eq!(look(&mut places, &[0, 8, 0], true), (vec![], vec![7]));
        assert_eq!(look(&mut places, &[0, 0, 0], true), (vec![], vec![]));
    }

    proptest! {
        /// Whatever happens in the places, what is open and not gone is what the last two looks both saw.
        #[test]
        fn what_is_open_is_what_two_looks_saw(looks in proptest::collection::vec(proptest::collection::vec(0_u64..3, 70), 1..20)) {
            let mut places = Places::new(70);
            let mut open = std::collections::BTreeSet::new();
            let mut before = vec![0; 70];
            for (round, tags) in looks.into_iter().enumerate() {
                // A tag is never used again.
                let tags: Vec<u64> = tags.iter().enumerate().map(|(index, tag)| match tag {
                    0 => 0,
                    1 => before[index],
                    _ => (round * 70 + index + 1) as u64,
                }).collect();
                let (opened, gone) = look(&mut places, &tags, true);
                gone.iter().for_each(|tag| assert!(open.remove(tag)));
                opened.iter().for_each(|tag| assert!(open.insert(*tag)));
                let expected = tags.iter().zip(&before).filter(|(now, then)| now == then && **now != 0).map(|(now, _)| *now);
                prop_assert_eq!(&open, &expected.collect());
                before = tags;
            }
        }
    }
}
