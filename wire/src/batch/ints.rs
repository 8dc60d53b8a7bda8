//! Columns of integers: how they are cut into classes, written and read.

use std::collections::HashMap;

use super::BatchError;
use super::bits::{BitWriter, Cursor, LOAD_BITS, bit_length, load, mask, write_varint};

/// Most classes of a column: two columns' classes share a byte.
pub(super) const MAX_CLASSES: usize = 16;
/// A value of its own class must be at least one of so many.
const HOT_ONE_IN: usize = 24;

/// Values from `base` on, as `width` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    base: u64,
    width: u32,
}

/// How a column is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// All values are this one.
    Constant(u64),
    /// All values in one class: no class byte.
    Packed(Class),
    /// Several classes.
    Classes(Vec<Class>),
}

const CONSTANT: u8 = 0;
const PACKED: u8 = 1;
const CLASSES: u8 = 2;

/// A column as written: its layout, for [`Layout::Classes`] the class of each value, and the bits.
pub(super) struct Written {
    pub(super) layout: Layout,
    pub(super) classes: Vec<u8>,
    pub(super) bits: Vec<u8>,
}

/// Chooses the smallest layout and writes the column.
pub(super) fn write(values: &[u64]) -> Written {
    let (layout, classes) = choose(values);
    let mut bits = BitWriter::default();
    match &layout {
        Layout::Constant(_) => {}
        Layout::Packed(class) => values
            .iter()
            .for_each(|value| bits.write(value - class.base, class.width)),
        Layout::Classes(table) => {
            for (value, class) in values.iter().zip(&classes) {
                let class = table[usize::from(*class)];
                bits.write(value - class.base, class.width);
            }
        }
    }
    Written {
        layout,
        classes,
        bits: bits.finish(),
    }
}

fn choose(values: &[u64]) -> (Layout, Vec<u8>) {
    let (Some(min), Some(max)) = (values.iter().min(), values.iter().max()) else {
        return (Layout::Constant(0), Vec::new());
    };
    if min == max {
        return (Layout::Constant(*min), Vec::new());
    }
    let packed = Class {
        base: *min,
        width: bit_length(max - min),
    };
    // A class byte that gains less than half a bit is not worth its decoding.
    let mut best = (Layout::Packed(packed), Vec::new());
    let mut best_cost = (f64::from(packed.width) - 0.5) * values.len() as f64;
    for candidate in [magnitudes(values), clusters(values)] {
        let cost = candidate.cost();
        if cost < best_cost {
            best_cost = cost;
            best = (Layout::Classes(candidate.table), candidate.classes);
        }
    }
    best
}

/// A way to cut a column.
struct Cut {
    table: Vec<Class>,
    classes: Vec<u8>,
}

impl Cut {
    /// Bits: the entropy of the classes and the offsets.
    fn cost(&self) -> f64 {
        let mut counts = [0u32; MAX_CLASSES];
        self.classes
            .iter()
            .for_each(|class| counts[usize::from(*class)] += 1);
        let rows = self.classes.len() as f64;
        let cost = |(count, class): (&u32, &Class)| match f64::from(*count) {
            0.0 => 0.0,
            count => count * ((rows / count).log2() + f64::from(class.width)),
        };
        counts.iter().zip(&self.table).map(cost).sum()
    }
}

/// A group of values that becomes a class.
#[derive(Clone, Copy)]
struct Group {
    min: u64,
    max: u64,
    count: usize,
}

impl Group {
    fn width(&self) -> u32 {
        bit_length(self.max - self.min)
    }

    fn merged(self, other: Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            count: self.count + other.count,
        }
    }

    fn bits(&self) -> usize {
        self.width() as usize * self.count
    }

    fn class(&self) -> Class {
        Class {
            base: self.min,
            width: self.width(),
        }
    }
}

/// Cuts by magnitude (one class per length in bits), with classes of their own for frequent values: for what is
/// spread over orders of magnitude, as sizes and times are.
fn magnitudes(values: &[u64]) -> Cut {
    let mut counts: HashMap<u64, usize> = HashMap::new();
    values
        .iter()
        .for_each(|value| *counts.entry(*value).or_default() += 1);
    let mut hot: Vec<(u64, usize)> = counts
        .iter()
        .map(|(value, count)| (*value, *count))
        .filter(|(_, count)| count * HOT_ONE_IN >= values.len())
        .collect();
    hot.sort_unstable_by_key(|(value, count)| (usize::MAX - count, *value));
    hot.truncate(MAX_CLASSES / 2);
    let mut groups: Vec<Group> = Vec::new();
    let mut by_length = [None::<Group>; 65];
    for (value, count) in &counts {
        if hot.iter().any(|(found, _)| found == value) {
            continue;
        }
        let one = Group {
            min: *value,
            max: *value,
            count: *count,
        };
        let slot = &mut by_length[bit_length(*value) as usize];
        *slot = Some(slot.map_or(one, |group| group.merged(one)));
    }
    groups.extend(by_length.into_iter().flatten());
    merge(&mut groups, MAX_CLASSES - hot.len());
    let mut table: Vec<Class> = hot
        .iter()
        .map(|(value, _)| Class {
            base: *value,
            width: 0,
        })
        .collect();
    table.extend(groups.iter().map(Group::class));
    let class_of = |value: &u64| match hot.iter().position(|(found, _)| found == value) {
        Some(index) => index as u8,
        None => (hot.len() + groups.partition_point(|group| group.max < *value)) as u8,
    };
    let classes = values.iter().map(class_of).collect();
    Cut { table, classes }
}

/// Merges neighbours, those first that make the fewest more bits.
fn merge(groups: &mut Vec<Group>, limit: usize) {
    while groups.len() > limit {
        let more = |pair: &[Group]| {
            pair[0]
                .merged(pair[1])
                .bits()
                .saturating_sub(pair[0].bits() + pair[1].bits())
        };
        let Some(at) = (0..groups.len() - 1).min_by_key(|at| more(&groups[*at..at + 2])) else {
            return;
        };
        groups[at] = groups[at].merged(groups[at + 1]);
        groups.remove(at + 1);
    }
}

/// Cuts at the widest gaps: for values that lie in a few ranges, as cookies do (each CPU takes them from a range
/// of its own).
fn clusters(values: &[u64]) -> Cut {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let mut gaps: Vec<(u64, usize)> = sorted
        .windows(2)
        .enumerate()
        .map(|(at, pair)| (pair[1] - pair[0], at + 1))
        .collect();
    gaps.sort_unstable_by_key(|(gap, at)| (u64::MAX - gap, *at));
    gaps.truncate(MAX_CLASSES - 1);
    gaps.retain(|(gap, _)| *gap > 0);
    let mut cuts: Vec<usize> = gaps
        .iter()
        .map(|(_, at)| *at)
        .chain([0, sorted.len()])
        .collect();
    cuts.sort_unstable();
    let ranges: Vec<(u64, u64)> = cuts
        .windows(2)
        .map(|cut| (sorted[cut[0]], sorted[cut[1] - 1]))
        .collect();
    let table = ranges
        .iter()
        .map(|(min, max)| Class {
            base: *min,
            width: bit_length(max - min),
        })
        .collect();
    let classes = values
        .iter()
        .map(|value| ranges.partition_point(|(_, max)| max < value) as u8)
        .collect();
    Cut { table, classes }
}

/// Appends layout and length of the bits.
pub(super) fn write_layout(out: &mut Vec<u8>, written: &Written) {
    let write_class = |out: &mut Vec<u8>, class: &Class| {
        write_varint(out, class.base);
        out.push(class.width as u8);
    };
    match &written.layout {
        Layout::Constant(value) => {
            out.push(CONSTANT);
            write_varint(out, *value);
            return;
        }
        Layout::Packed(class) => {
            out.push(PACKED);
            write_class(out, class);
        }
        Layout::Classes(table) => {
            out.push(CLASSES);
            out.push(table.len() as u8);
            table.iter().for_each(|class| write_class(out, class));
        }
    }
    write_varint(out, written.bits.len() as u64);
}

/// Reads layout and length of the bits.
pub(super) fn read_layout(cursor: &mut Cursor<'_>) -> Result<(Layout, usize), BatchError> {
    let read_class = |cursor: &mut Cursor<'_>| {
        let class = Class {
            base: cursor.varint()?,
            width: u32::from(cursor.byte()?),
        };
        if class.width > 64 {
            Err(BatchError::Malformed("a field of more than 64 bits"))
        } else {
            Ok(class)
        }
    };
    let layout = match cursor.byte()? {
        CONSTANT => return Ok((Layout::Constant(cursor.varint()?), 0)),
        PACKED => Layout::Packed(read_class(cursor)?),
        CLASSES => {
            let count = usize::from(cursor.byte()?);
            super::check("classes of a column", count, MAX_CLASSES)?;
            Layout::Classes(
                (0..count)
                    .map(|_| read_class(cursor))
                    .collect::<Result<_, _>>()?,
            )
        }
        _ => return Err(BatchError::Malformed("an unknown layout of a column")),
    };
    let bytes = usize::try_from(cursor.varint()?).map_err(|_| BatchError::Truncated)?;
    Ok((layout, bytes))
}

/// Which half of the class bytes is a column's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Nibble {
    Low,
    High,
}

/// Reads a column of as many values as `out` has. `bits` begins with its section and goes on with what follows, up to
/// the slack. Gives the bits used.
pub(super) fn read(
    layout: &Layout,
    pairs: &[u8],
    nibble: Nibble,
    bits: &[u8],
    out: &mut [u64],
) -> usize {
    match layout {
        Layout::Constant(value) => {
            out.fill(*value);
            0
        }
        Layout::Packed(class) if class.width <= LOAD_BITS => read_packed(*class, bits, out),
        Layout::Packed(class) => read_wide(&[*class], pairs, nibble, bits, out),
        Layout::Classes(table) if table.iter().any(|class| class.width > LOAD_BITS) => {
            read_wide(table, pairs, nibble, bits, out)
        }
        Layout::Classes(table) => match nibble {
            Nibble::Low => read_classes::<0>(table, pairs, bits, out),
            Nibble::High => read_classes::<4>(table, pairs, bits, out),
        },
    }
}

fn read_packed(class: Class, bits: &[u8], out: &mut [u64]) -> usize {
    let (mask, width) = (mask(class.width), class.width as usize);
    let mut at = 0;
    for value in out {
        *value = class
            .base
            .wrapping_add((load(bits, at >> 3) >> (at & 7)) & mask);
        at += width;
    }
    at
}

/// The place of a value depends on the widths before it, but not on the values: the chain through the loop is one
/// addition.
#[inline(always)]
fn read_classes<const SHIFT: u32>(
    table: &[Class],
    pairs: &[u8],
    bits: &[u8],
    out: &mut [u64],
) -> usize {
    let (mut bases, mut masks, mut widths) = ([0; MAX_CLASSES], [0; MAX_CLASSES], [0; MAX_CLASSES]);
    for (index, class) in table.iter().take(MAX_CLASSES).enumerate() {
        (bases[index], masks[index], widths[index]) =
            (class.base, mask(class.width), class.width as usize);
    }
    let mut at = 0;
    for (value, pair) in out.iter_mut().zip(pairs) {
        let class = usize::from((pair >> SHIFT) & 15);
        *value = (load(bits, at >> 3) >> (at & 7) & masks[class]).wrapping_add(bases[class]);
        at += widths[class];
    }
    at
}

/// For fields that one load may not cover: extreme values only.
fn read_wide(table: &[Class], pairs: &[u8], nibble: Nibble, bits: &[u8], out: &mut [u64]) -> usize {
    let mut at = 0;
    for (index, value) in out.iter_mut().enumerate() {
        let pair = pairs.get(index).copied().unwrap_or(0);
        let class = if table.len() == 1 {
            0
        } else {
            usize::from(if nibble == Nibble::Low {
                pair & 15
            } else {
                pair >> 4
            })
        };
        let class = table
            .get(class)
            .copied()
            .unwrap_or(Class { base: 0, width: 0 });
        let field = |at: usize, width: u32| (load(bits, at >> 3) >> (at & 7)) & mask(width);
        let low = class.width.min(32);
        let offset = field(at, low) | field(at + 32, class.width - low) << 32;
        *value = class.base.wrapping_add(offset);
        at += class.width as usize;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(values: &[u64]) -> Written {
        let written = write(values);
        let mut layout = Vec::new();
        write_layout(&mut layout, &written);
        let (read_back, bytes) = read_layout(&mut Cursor(&layout)).unwrap();
        assert_eq!((&read_back, bytes), (&written.layout, written.bits.len()));
        let mut bits = written.bits.clone();
        bits.extend([0; 8]);
        for (nibble, shift) in [(Nibble::Low, 0), (Nibble::High, 4)] {
            let pairs: Vec<u8> = written.classes.iter().map(|class| class << shift).collect();
            let mut out = vec![0; values.len()];
            let used = read(&written.layout, &pairs, nibble, &bits, &mut out);
            assert_eq!(out, values);
            assert_eq!(used.div_ceil(8), written.bits.len());
        }
        written
    }

    proptest! {
        #[test]
        fn any_values_round_trip(values in prop::collection::vec(any::<u64>(), 0..200)) {
            round_trip(&values);
        }

        #[test]
        fn values_of_any_magnitude_round_trip(values in prop::collection::vec((any::<u64>(), 0u32..64), 0..300)) {
            let values: Vec<u64> = values.into_iter().map(|(value, shift)| value >> shift).collect();
            round_trip(&values);
        }
    }

    #[test]
    fn values_in_few_ranges_cost_their_place_in_the_range() {
        let values: Vec<u64> = (0..4096).map(|i| (i % 4) * 1_000_000 + i / 4).collect();
        let written = round_trip(&values);
        assert!(matches!(written.layout, Layout::Classes(_)));
        assert!(written.bits.len() <= 4096 * 10 / 8);
    }

    #[test]
    fn a_frequent_value_costs_no_bits() {
        let values: Vec<u64> = (0..1000)
            .map(|i| if i % 10 == 0 { i * 7919 } else { 777 })
            .collect();
        assert!(round_trip(&values).bits.len() < 100 * 3);
    }
}
