//! Columns of integers: how they are cut into classes, and written.

use super::bits::{BitWriter, bit_length, write_varint};

/// Most classes of a column: two columns' classes share a byte.
pub(super) const MAX_CLASSES: usize = 16;
/// A value of its own class must be at least one of so many.
const HOT_ONE_IN: usize = 24;
/// Values that are looked at to find the frequent ones.
const SAMPLE: usize = 256;
/// A column is sparse when at most one value of so many is another than the rest.
const SPARSE_ONE_IN: usize = 64;
/// Class bytes are compressed where that saves at least so many of their eight bits: decompression takes longer
/// than all the rest.
const COMPRESSION_SAVES_BITS: f64 = 2.0;

/// Values from `base` on, as `width` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) base: u64,
    pub(super) width: u32,
}

/// How a column is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// All values are this one.
    Constant(u64),
    /// All but few values are this one; those by row, in order.
    Sparse(u64, Vec<(u32, u64)>),
    /// All values in one class: no class byte.
    Packed(Class),
    /// Several classes.
    Classes(Vec<Class>),
}

pub(super) const CONSTANT: u8 = 0;
pub(super) const PACKED: u8 = 1;
pub(super) const CLASSES: u8 = 2;
pub(super) const SPARSE: u8 = 3;

/// Two columns as written: their layouts, the class bytes when any has classes, and the bits.
pub(super) struct Written {
    pub(super) layouts: [Layout; 2],
    pub(super) plane: Plane,
    pub(super) bits: Vec<u8>,
}

/// The class bytes of two columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plane {
    /// Neither has classes.
    None,
    /// To be compressed.
    Compressed(Vec<u8>),
    /// Too random for that to be worth it.
    Stored(Vec<u8>),
}

impl Plane {
    pub(super) const NONE: u8 = 0;
    pub(super) const COMPRESSED: u8 = 1;
    pub(super) const STORED: u8 = 2;

    fn of(bytes: Vec<u8>) -> Self {
        let mut counts = [0u32; 256];
        bytes
            .iter()
            .for_each(|byte| counts[usize::from(*byte)] += 1);
        let rows = bytes.len() as f64;
        let entropy: f64 = counts
            .iter()
            .filter(|count| **count > 0)
            .map(|count| f64::from(*count) / rows)
            .map(|share| -share * share.log2())
            .sum();
        if 8.0 - entropy < COMPRESSION_SAVES_BITS {
            Self::Stored(bytes)
        } else {
            Self::Compressed(bytes)
        }
    }
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
            if class.width > 0 {
                bits.write(column[row] - class.base, class.width);
            }
        }
    }
    let classed = first.has_classes() || second.has_classes();
    let pair = |row| class(&first_classes, row) | class(&second_classes, row) << 4;
    Written {
        plane: match classed {
            true => Plane::of((0..rows).map(pair).collect()),
            false => Plane::None,
        },
        layouts: [first, second],
        bits: bits.finish(),
    }
}

impl Layout {
    pub(super) fn has_classes(&self) -> bool {
        matches!(self, Self::Classes(_))
    }

    /// Every class byte finds a class: unused ones are as the constant 0.
    pub(super) fn table(&self) -> [Class; MAX_CLASSES] {
        let mut table = [Class { base: 0, width: 0 }; MAX_CLASSES];
        match self {
            Self::Constant(base) | Self::Sparse(base, _) => table[0].base = *base,
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
    if let Some(sparse) = sparse(values) {
        return (sparse, Vec::new());
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

/// One value and few exceptions, where that is what there is.
fn sparse(values: &[u64]) -> Option<Layout> {
    let usual = *frequent(values).first()?;
    let limit = values.len() / SPARSE_ONE_IN;
    let exceptions: Vec<(u32, u64)> = (0..)
        .zip(values)
        .filter(|(_, value)| **value != usual)
        .map(|(row, value)| (row, *value))
        .take(limit + 1)
        .collect();
    (exceptions.len() <= limit).then_some(Layout::Sparse(usual, exceptions))
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
            Layout::Sparse(value, exceptions) => {
                out.push(SPARSE);
                write_varint(out, *value);
                write_varint(out, exceptions.len() as u64);
                let mut next = 0;
                for (row, value) in exceptions {
                    write_varint(out, u64::from(row - next));
                    write_varint(out, *value);
                    next = row + 1;
                }
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
    out.push(match written.plane {
        Plane::None => Plane::NONE,
        Plane::Compressed(_) => Plane::COMPRESSED,
        Plane::Stored(_) => Plane::STORED,
    });
    write_varint(out, written.bits.len() as u64);
}
