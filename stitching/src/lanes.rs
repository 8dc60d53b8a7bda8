//! Comparisons of the four lanes of a bucket at once. One bit of a result for each lane.
//!
//! Written so that the compiler makes vector instructions of them (on x86-64 about fifteen for each of these functions):
//! differences in one word a lane, and one comparison at the end.

/// Lanes in a bucket of the table.
pub(crate) const LANES: usize = 4;

type Words = [u32; LANES];

/// Lanes that are used and in which two words are what they should be. Free ones have nothing in `meta` under `USED`, the
/// lowest bits. Of the second word only the bits under `MASK` count.
#[inline(always)]
pub(crate) fn equal<const USED: u32, const MASK: u32>(
    (first, a): (&Words, u32),
    (second, b): (&Words, u32),
    meta: &Words,
) -> u32 {
    let different: Words = std::array::from_fn(|lane| {
        // The bit above those under `USED`, if the lane is free.
        let free = (meta[lane] & USED).wrapping_sub(1) & (USED + 1);
        (first[lane] ^ a) | ((second[lane] ^ b) & MASK) | free
    });
    none_of(&different, u32::MAX)
}

/// Lanes in which none of these bits is set.
#[inline(always)]
pub(crate) fn none_of(words: &Words, mask: u32) -> u32 {
    (0..LANES).fold(0, |lanes, lane| {
        lanes | u32::from(words[lane] & mask == 0) << lane
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_one_by_one(
            first in prop::array::uniform4(0..3u32),
            second in prop::array::uniform4(0..3u32),
            meta in prop::array::uniform4(any::<u32>()),
            a in 0..3u32,
            b in 0..3u32,
        ) {
            // All bits matter.
            let spread = |word: u32| word.wrapping_mul(0xc000_0001);
            let (first, second, a, b) = (first.map(spread), second.map(spread), spread(a), spread(b));
            for lane in 0..LANES {
                let whole = equal::<7, { u32::MAX }>((&first, a), (&second, b), &meta);
                prop_assert_eq!(whole >> lane & 1 == 1, first[lane] == a && second[lane] == b && meta[lane] & 7 != 0);
                let part = equal::<7, 0xff00_0000>((&first, a), (&second, b), &meta);
                prop_assert_eq!(part >> lane & 1 == 1, first[lane] == a && (second[lane] ^ b) >> 24 == 0 && meta[lane] & 7 != 0);
                prop_assert_eq!(none_of(&meta, 7) >> lane & 1 == 1, meta[lane] & 7 == 0);
            }
        }
    }
}
