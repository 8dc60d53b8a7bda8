//! Columns of integers, read.

use super::BatchError;
use super::bits::{Cursor, LOAD_BITS, load, mask};
use super::ints::{CLASSES, CONSTANT, Class, Layout, MAX_CLASSES, PACKED, Plane, SPARSE};
use super::{MAX_ROWS, check};

/// No column has more values: of sixteen records for each lookup there are fewer.
const MAX_COLUMN: usize = 1 << 20;

/// What a column is read into. Of a value that is wider than its column, the low bits count.
pub(super) trait Number: Copy + Default {
    fn of(value: u64) -> Self;
}

impl Number for u64 {
    #[inline(always)]
    fn of(value: u64) -> Self {
        value
    }
}

impl Number for i64 {
    #[inline(always)]
    fn of(value: u64) -> Self {
        value as i64
    }
}

impl Number for u32 {
    #[inline(always)]
    fn of(value: u64) -> Self {
        value as u32
    }
}

impl Number for u16 {
    #[inline(always)]
    fn of(value: u64) -> Self {
        value as u16
    }
}

/// Two columns about to be read.
pub(super) struct Reader {
    layouts: [Layout; 2],
    /// Where the class bytes are: one of the constants of [`Plane`].
    plane: u8,
    /// Of the bits.
    pub(super) bytes: usize,
}

impl Reader {
    /// Reads the layouts and the length of the bits.
    pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<Self, BatchError> {
        let layouts = [read_layout(cursor)?, read_layout(cursor)?];
        let plane = cursor.byte()?;
        let classed = layouts.iter().any(Layout::has_classes);
        if plane > Plane::STORED || classed != (plane != Plane::NONE) {
            return Err(BatchError::Malformed("the place of its class bytes"));
        }
        let bytes = usize::try_from(cursor.varint()?).map_err(|_| BatchError::Truncated)?;
        Ok(Self {
            layouts,
            plane,
            bytes,
        })
    }

    /// Takes the class bytes of so many rows from where they are.
    pub(super) fn plane<'a>(
        &self,
        rows: usize,
        compressed: &mut Cursor<'a>,
        stored: &mut Cursor<'a>,
    ) -> Result<&'a [u8], BatchError> {
        match self.plane {
            Plane::NONE => Ok(&[]),
            Plane::COMPRESSED => compressed.take(rows),
            _ => stored.take(rows),
        }
    }

    /// Reads so many values of each column; `class_bytes` is empty when there are none. `bits` begins with the section
    /// and goes on with what follows, up to the slack: what a value beyond the section would be is unspecified, and the
    /// bits used then do not fit the length.
    pub(super) fn read<A: Number, B: Number>(
        &self,
        rows: usize,
        class_bytes: &[u8],
        bits: &[u8],
        first: &mut Vec<A>,
        second: &mut Vec<B>,
    ) -> Result<(), BatchError> {
        first.resize(rows, A::default());
        second.resize(rows, B::default());
        let tables = [&self.layouts[0], &self.layouts[1]].map(Layout::table);
        let widest = |table: &[Class]| table.iter().map(|class| class.width).max().unwrap_or(0);
        let used = if widest(&tables[0]) + widest(&tables[1]) > LOAD_BITS {
            read_wide(&tables, class_bytes, bits, first, second)
        } else if self.plane != Plane::NONE {
            read_classes(&tables, class_bytes, bits, first, second)
        } else {
            read_packed([tables[0][0], tables[1][0]], bits, first, second)
        };
        if used.div_ceil(8) != self.bytes {
            return Err(BatchError::Malformed("the length of a column"));
        }
        patch(&self.layouts[0], first)?;
        patch(&self.layouts[1], second)
    }
}

/// Puts the exceptions of a sparse column in their places.
fn patch<A: Number>(layout: &Layout, column: &mut [A]) -> Result<(), BatchError> {
    if let Layout::Sparse(_, exceptions) = layout {
        for (row, value) in exceptions {
            *column
                .get_mut(*row as usize)
                .ok_or(BatchError::Malformed("an exception beyond the rows"))? = A::of(*value);
        }
    }
    Ok(())
}

fn read_layout(cursor: &mut Cursor<'_>) -> Result<Layout, BatchError> {
    Ok(match cursor.byte()? {
        CONSTANT => Layout::Constant(cursor.varint()?),
        SPARSE => {
            let value = cursor.varint()?;
            let count = cursor.count("exceptions of a column", MAX_ROWS)?;
            let mut next = 0;
            let mut exceptions = Vec::new();
            for _ in 0..count {
                let row = next + cursor.count("rows", MAX_COLUMN)?;
                check("rows", row, MAX_COLUMN)?;
                exceptions.push((row as u32, cursor.varint()?));
                next = row + 1;
            }
            Layout::Sparse(value, exceptions)
        }
        PACKED => Layout::Packed(read_class(cursor)?),
        CLASSES => {
            let count = usize::from(cursor.byte()?);
            check("classes of a column", count, MAX_CLASSES)?;
            Layout::Classes(
                (0..count)
                    .map(|_| read_class(cursor))
                    .collect::<Result<_, _>>()?,
            )
        }
        _ => return Err(BatchError::Malformed("an unknown layout of a column")),
    })
}

fn read_class(cursor: &mut Cursor<'_>) -> Result<Class, BatchError> {
    let class = Class {
        base: cursor.varint()?,
        width: u32::from(cursor.byte()?),
    };
    if class.width > 64 {
        Err(BatchError::Malformed("a field of more than 64 bits"))
    } else {
        Ok(class)
    }
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
fn read_classes<A: Number, B: Number>(
    tables: &[[Class; MAX_CLASSES]; 2],
    class_bytes: &[u8],
    bits: &[u8],
    first_out: &mut [A],
    second_out: &mut [B],
) -> usize {
    let (first, second) = (Unpack::new(&tables[0]), Unpack::new(&tables[1]));
    let mut at = 0;
    for ((first_value, second_value), pair) in first_out.iter_mut().zip(second_out).zip(class_bytes)
    {
        let (low, high) = (usize::from(pair & 15), usize::from(pair >> 4));
        let word = load(bits, at >> 3) >> (at & 7);
        *first_value = A::of((word & first.masks[low]).wrapping_add(first.bases[low]));
        let word = word >> first.widths[low];
        *second_value = B::of((word & second.masks[high]).wrapping_add(second.bases[high]));
        at += first.widths[low] + second.widths[high];
    }
    at
}

fn read_packed<A: Number, B: Number>(
    [first, second]: [Class; 2],
    bits: &[u8],
    first_out: &mut [A],
    second_out: &mut [B],
) -> usize {
    if first.width + second.width == 0 {
        first_out.fill(A::of(first.base));
        second_out.fill(B::of(second.base));
        return 0;
    }
    let (first_mask, second_mask) = (mask(first.width), mask(second.width));
    let step = (first.width + second.width) as usize;
    let mut at = 0;
    for (first_value, second_value) in first_out.iter_mut().zip(second_out) {
        let word = load(bits, at >> 3) >> (at & 7);
        *first_value = A::of((word & first_mask).wrapping_add(first.base));
        *second_value = B::of((word >> first.width & second_mask).wrapping_add(second.base));
        at += step;
    }
    at
}

/// For fields that one load may not cover: extreme values only.
fn read_wide<A: Number, B: Number>(
    tables: &[[Class; MAX_CLASSES]; 2],
    class_bytes: &[u8],
    bits: &[u8],
    first_out: &mut [A],
    second_out: &mut [B],
) -> usize {
    let field = |at: usize, width: u32| (load(bits, at >> 3) >> (at & 7)) & mask(width);
    let mut at = 0;
    let mut value = |class: Class| {
        let low = class.width.min(32);
        let offset = field(at, low) | field(at + 32, class.width - low) << 32;
        at += class.width as usize;
        offset.wrapping_add(class.base)
    };
    for (row, (first, second)) in first_out.iter_mut().zip(second_out).enumerate() {
        let pair = class_bytes.get(row).copied().unwrap_or(0);
        *first = A::of(value(tables[0][usize::from(pair & 15)]));
        *second = B::of(value(tables[1][usize::from(pair >> 4)]));
    }
    at
}

#[cfg(test)]
mod tests {
    use super::super::ints::{Plane, Written, write, write_layouts};
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
        let rows = columns[0].len();
        let (mut first, mut second) = (vec![1u64; 3], vec![1u64; 500]);
        let class_bytes = match &written.plane {
            Plane::None => &[],
            Plane::Compressed(bytes) | Plane::Stored(bytes) => bytes.as_slice(),
        };
        reader
            .read(rows, class_bytes, &bits, &mut first, &mut second)
            .unwrap();
        assert_eq!([first.as_slice(), second.as_slice()], columns);
        let (mut first, mut second) = (Vec::<u16>::new(), Vec::<u32>::new());
        reader
            .read(rows, class_bytes, &bits, &mut first, &mut second)
            .unwrap();
        assert!(first.iter().zip(columns[0]).all(|(a, b)| *a == *b as u16));
        assert!(second.iter().zip(columns[1]).all(|(a, b)| *a == *b as u32));
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

    #[test]
    fn few_other_values_cost_nothing_but_themselves() {
        let values: Vec<u64> = (0..2000).map(|i| u64::from(i % 200 == 7) * i).collect();
        let written = round_trip(&values);
        assert!(matches!(&written.layouts[0], Layout::Sparse(0, few) if few.len() == 10));
        assert_eq!((&written.plane, written.bits.len()), (&Plane::None, 0));
    }

    #[test]
    fn an_exception_beyond_the_rows_is_refused() {
        let layouts = [3, 9, 1, 4, 77, 0, 0, 0, 0];
        let reader = Reader::parse(&mut Cursor(&layouts)).unwrap();
        let read = |rows| {
            let (mut first, mut second) = (Vec::<u64>::new(), Vec::<u64>::new());
            let read = reader.read(rows, &[], &[0; 8], &mut first, &mut second);
            read.map(|()| first)
        };
        assert_eq!(read(5), Ok(vec![9, 9, 9, 9, 77]));
        assert!(read(4).is_err());
    }
}
