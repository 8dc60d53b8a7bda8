//! Columns of integers: how they are cut into classes, written and read.

use super::BatchError;
use super::bits::{BitWriter, Cursor, LOAD_BITS, bit_length, load, mask, write_varint};

/// Most classes of a column: two columns' classes share a byte.
pub(super) const MAX_CLASSES: usize = 16;
/// A value of its own class must be at least one of so many.
const HOT_ONE_IN: usize = 24;
/// Values that are looked at to find the frequent ones.
const SAMPLE: usize = 256;

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

/// Two columns as written: their layouts, the class bytes when any has classes, and the bits.
pub(super) struct Written {
    pub(super) layouts: [Layout; 2],
    pub(super) class_bytes: Option<Vec<u8>>,
    pub(super) bits: Vec<u8>,
}

/// Chooses the smallest layouts and writes two columns of the same length: their classes share a byte, the low four
/// bits for the first, and their offsets follow one another in the bits.
pub(super) fn write(columns: [&[u64]; 2]) -> Written {
    let [(first, first_classes), (second, second_classes)] = columns.map(choose);
    let class = |classes: &[u8], row: usize| classes.get(row).copied().unwrap_or(0);
    let (first_table, second_table) = (first.table(), second.table());
    let rows = columns[0].len();
    let mut bits = BitWriter::default();
    for row in 0..rows {
        for (column, table, classes) in [
            (columns[0], &first_table, &first_classes),
            (columns[1], &second_table, &second_classes),
        ] {
            let class = table[usize::from(class(classes, row))];
            bits.write(column[row] - class.base, class.width);
        }
    }
    let classed = first.has_classes() || second.has_classes();
    let pair = |row| class(&first_classes, row) | class(&second_classes, row) << 4;
    Written {
        class_bytes: classed.then(|| (0..rows).map(pair).collect()),
        layouts: [first, second],
        bits: bits.finish(),
    }
}

impl Layout {
    pub(super) fn has_classes(&self) -> bool {
        matches!(self, Self::Classes(_))
    }

    /// Every class byte finds a class: unused ones are as the constant 0.
    fn table(&self) -> [Class; MAX_CLASSES] {
        let mut table = [Class { base: 0, width: 0 }; MAX_CLASSES];
        match self {
            Self::Constant(base) => table[0].base = *base,
            Self::Packed(class) => table[0] = *class,
            Self::Classes(classes) => table
                .iter_mut()
                .zip(classes)
                .for_each(|(slot, class)| *slot = *class),
        }
        table
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
    let best_cost = (f64::from(packed.width) - 0.5) * values.len() as f64;
    // Sorting takes the longest: only where magnitudes say nothing.
    for cut in [magnitudes, clusters] {
        let candidate = cut(values);
        let cost = candidate.cost();
        if cost < best_cost {
            best = (Layout::Classes(candidate.table), candidate.classes);
            break;
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
    let hot = frequent(values);
    let mut by_length = [None::<Group>; 65];
    for value in values.iter().filter(|value| !hot.contains(value)) {
        let one = Group {
            min: *value,
            max: *value,
            count: 1,
        };
        let slot = &mut by_length[bit_length(*value) as usize];
        *slot = Some(slot.map_or(one, |group| group.merged(one)));
    }
    let mut groups: Vec<Group> = by_length.into_iter().flatten().collect();
    merge(&mut groups, MAX_CLASSES - hot.len());
    let mut table: Vec<Class> = hot
        .iter()
        .map(|value| Class {
            base: *value,
            width: 0,
        })
        .collect();
    table.extend(groups.iter().map(Group::class));
    let mut by_length = [0; 65];
    for (length, class) in by_length.iter_mut().enumerate() {
        *class = hot.len() as u8
            + groups.partition_point(|group| (bit_length(group.max) as usize) < length) as u8;
    }
    let class_of = |value: &u64| match hot.iter().position(|found| found == value) {
        Some(index) => index as u8,
        None => by_length[bit_length(*value) as usize],
    };
    let classes = values.iter().map(class_of).collect();
    Cut { table, classes }
}

/// Values that are at least one of [`HOT_ONE_IN`] in a sample, the most frequent first.
fn frequent(values: &[u64]) -> Vec<u64> {
    let mut sample: Vec<u64> = values
        .iter()
        .step_by(values.len().div_ceil(SAMPLE))
        .copied()
        .collect();
    sample.sort_unstable();
    let mut counted: Vec<(usize, u64)> = sample
        .chunk_by(u64::eq)
        .map(|same| (same.len(), same[0]))
        .filter(|(count, _)| count * HOT_ONE_IN >= sample.len())
        .collect();
    counted.sort_unstable_by_key(|(count, value)| (usize::MAX - count, *value));
    counted.truncate(MAX_CLASSES / 2);
    counted.into_iter().map(|(_, value)| value).collect()
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

/// Appends the layouts and the length of the bits.
pub(super) fn write_layouts(out: &mut Vec<u8>, written: &Written) {
    let write_class = |out: &mut Vec<u8>, class: &Class| {
        write_varint(out, class.base);
        out.push(class.width as u8);
    };
    for layout in &written.layouts {
        match layout {
            Layout::Constant(value) => {
                out.push(CONSTANT);
                write_varint(out, *value);
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
    }
    write_varint(out, written.bits.len() as u64);
}

/// Two columns about to be read.
pub(super) struct Reader {
    layouts: [Layout; 2],
    pub(super) bytes: usize,
}

impl Reader {
    /// Reads the layouts and the length of the bits.
    pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<Self, BatchError> {
        let layouts = [read_layout(cursor)?, read_layout(cursor)?];
        let bytes = usize::try_from(cursor.varint()?).map_err(|_| BatchError::Truncated)?;
        Ok(Self { layouts, bytes })
    }

    /// Whether there are class bytes.
    pub(super) fn has_classes(&self) -> bool {
        self.layouts.iter().any(Layout::has_classes)
    }

    /// Reads as many values as the outputs have; `class_bytes` is empty when there are none. `bits` begins with the
    /// section and goes on with what follows, up to the slack: what a value beyond the section would be is
    /// unspecified, and the bits used then do not fit the length.
    pub(super) fn read(
        &self,
        class_bytes: &[u8],
        bits: &[u8],
        out: [&mut [u64]; 2],
    ) -> Result<(), BatchError> {
        let [first, second] = [&self.layouts[0], &self.layouts[1]].map(Layout::table);
        let widest = |table: &[Class]| table.iter().map(|class| class.width).max().unwrap_or(0);
        let used = if widest(&first) + widest(&second) > LOAD_BITS {
            read_wide([&first, &second], class_bytes, bits, out)
        } else if self.has_classes() {
            read_classes([&first, &second], class_bytes, bits, out)
        } else {
            read_packed([first[0], second[0]], bits, out)
        };
        if used.div_ceil(8) == self.bytes {
            Ok(())
        } else {
            Err(BatchError::Malformed("the length of a column"))
        }
    }
}

fn read_layout(cursor: &mut Cursor<'_>) -> Result<Layout, BatchError> {
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
    Ok(match cursor.byte()? {
        CONSTANT => Layout::Constant(cursor.varint()?),
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
    })
}

/// A table with what the loop needs of a class precomputed, in arrays: a class is a nibble, so no index is out of range.
struct Unpack {
    bases: [u64; MAX_CLASSES],
    masks: [u64; MAX_CLASSES],
    widths: [usize; MAX_CLASSES],
}

impl Unpack {
    fn new(table: &[Class; MAX_CLASSES]) -> Self {
        Self {
            bases: table.map(|class| class.base),
            masks: table.map(|class| mask(class.width)),
            widths: table.map(|class| class.width as usize),
        }
    }
}

/// One load for both values of a row. The place of a row depends on the widths of those before it, but not on their
/// values: the chain through the loop is an addition.
fn read_classes(
    tables: [&[Class; MAX_CLASSES]; 2],
    class_bytes: &[u8],
    bits: &[u8],
    out: [&mut [u64]; 2],
) -> usize {
    let [first, second] = tables.map(Unpack::new);
    let [first_out, second_out] = out;
    let mut at = 0;
    for ((first_value, second_value), pair) in first_out.iter_mut().zip(second_out).zip(class_bytes)
    {
        let (low, high) = (usize::from(pair & 15), usize::from(pair >> 4));
        let word = load(bits, at >> 3) >> (at & 7);
        *first_value = (word & first.masks[low]).wrapping_add(first.bases[low]);
        *second_value =
            (word >> first.widths[low] & second.masks[high]).wrapping_add(second.bases[high]);
        at += first.widths[low] + second.widths[high];
    }
    at
}

fn read_packed([first, second]: [Class; 2], bits: &[u8], out: [&mut [u64]; 2]) -> usize {
    let [first_out, second_out] = out;
    if first.width + second.width == 0 {
        first_out.fill(first.base);
        second_out.fill(second.base);
        return 0;
    }
    let (first_mask, second_mask) = (mask(first.width), mask(second.width));
    let step = (first.width + second.width) as usize;
    let mut at = 0;
    for (first_value, second_value) in first_out.iter_mut().zip(second_out) {
        let word = load(bits, at >> 3) >> (at & 7);
        *first_value = (word & first_mask).wrapping_add(first.base);
        *second_value = (word >> first.width & second_mask).wrapping_add(second.base);
        at += step;
    }
    at
}

/// For fields that one load may not cover: extreme values only.
fn read_wide(
    tables: [&[Class; MAX_CLASSES]; 2],
    class_bytes: &[u8],
    bits: &[u8],
    out: [&mut [u64]; 2],
) -> usize {
    let field = |at: usize, width: u32| (load(bits, at >> 3) >> (at & 7)) & mask(width);
    let [first_out, second_out] = out;
    let mut at = 0;
    for (row, (first, second)) in first_out.iter_mut().zip(second_out).enumerate() {
        let pair = class_bytes.get(row).copied().unwrap_or(0);
        let classes = [
            tables[0][usize::from(pair & 15)],
            tables[1][usize::from(pair >> 4)],
        ];
        for (value, class) in [first, second].into_iter().zip(classes) {
            let low = class.width.min(32);
            let offset = field(at, low) | field(at + 32, class.width - low) << 32;
            *value = offset.wrapping_add(class.base);
            at += class.width as usize;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(values: &[u64]) -> Written {
        let reversed: Vec<u64> = values.iter().rev().copied().collect();
        round_trip_of([&reversed, values]);
        let zeros = vec![0; values.len()];
        round_trip_of([&zeros, values]);
        round_trip_of([values, &zeros])
    }

    fn round_trip_of(columns: [&[u64]; 2]) -> Written {
        let written = write(columns);
        let mut layouts = Vec::new();
        write_layouts(&mut layouts, &written);
        let reader = Reader::parse(&mut Cursor(&layouts)).unwrap();
        assert_eq!(
            (&reader.layouts, reader.bytes),
            (&written.layouts, written.bits.len())
        );
        let mut bits = written.bits.clone();
        bits.extend([0; 8]);
        let (mut first, mut second) = (vec![1; columns[0].len()], vec![1; columns[1].len()]);
        let class_bytes = written.class_bytes.clone().unwrap_or_default();
        reader
            .read(&class_bytes, &bits, [&mut first, &mut second])
            .unwrap();
        assert_eq!([first.as_slice(), second.as_slice()], columns);
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
        assert!(written.layouts[0].has_classes());
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
