//! Rows as Arrow columns, a DuckDB vector at a time.

use std::sync::Arc;

use duckdb::arrow::array::{
    ArrayRef, PrimitiveArray, StructArray, TimestampMicrosecondArray, UInt8Array, UInt32Array,
    UInt64Array,
};
use duckdb::arrow::buffer::NullBuffer;
use duckdb::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, Fields, Schema, SchemaRef, TimeUnit,
    TimestampMicrosecondType as Time, UInt8Type as U8, UInt16Type as U16, UInt32Type as U32,
    UInt64Type as U64,
};
use duckdb::arrow::error::ArrowError;
use duckdb::arrow::record_batch::RecordBatch;

use crate::record::{Row, Side, address_words, code, isn_of};
use crate::store::schema::{NO_CODE, SIDE_COLUMNS, SIDES, Type, fact_columns};

/// Rows of one record batch: the size of a DuckDB vector.
pub const VECTOR_ROWS: usize = 2048;

/// How a row's bytes travelled, as the store keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredPath {
    /// Number of the class.
    pub class: u8,
    /// Bits of the boundaries.
    pub crosses: u8,
    /// Number of the addresses in between; 0 for none.
    pub via: u32,
}

/// The connection tables as Arrow knows them.
#[derive(Debug)]
pub struct Columns {
    table: SchemaRef,
    fact: Fields,
    side: Fields,
}

impl Default for Columns {
    /// As in [`schema`](super::schema).
    fn default() -> Self {
        let fields = |columns: &mut dyn Iterator<Item = (&'static str, Type)>| -> Fields {
            columns
                .map(|(name, kind)| Field::new(name, data_type(kind), true))
                .collect()
        };
        let fact = fields(&mut fact_columns());
        let side = fields(&mut SIDE_COLUMNS.into_iter());
        let mut table = vec![
            Field::new("id", DataType::UInt64, true),
            Field::new("opened_at", data_type(Type::Time), true),
            Field::new("seen_at", data_type(Type::Time), true),
            Field::new("fact", DataType::Struct(fact.clone()), true),
        ];
        table.extend(SIDES.map(|name| Field::new(name, DataType::Struct(side.clone()), true)));
        Self {
            table: Arc::new(Schema::new(table)),
            fact,
            side,
        }
    }
}

impl Columns {
    /// The rows as one record batch.
    pub fn batch(&self, rows: &[&Row], paths: &[StoredPath]) -> Result<RecordBatch, ArrowError> {
        let side = |of: fn(&Row) -> Option<&Side>| -> Result<ArrayRef, ArrowError> {
            let sides: Vec<Option<&Side>> = rows.iter().map(|row| of(row)).collect();
            let columns = side_columns(&sides);
            Ok(Arc::new(StructArray::try_new(
                self.side.clone(),
                columns,
                None,
            )?))
        };
        let facts = fact_arrays(rows, paths);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(
                rows.iter().map(|row| row.id().0),
            )),
            Arc::new(TimestampMicrosecondArray::from_iter_values(
                rows.iter().map(|row| row.opened_at().0),
            )),
            Arc::new(TimestampMicrosecondArray::from_iter_values(
                rows.iter().map(|row| row.seen_at().0),
            )),
            Arc::new(StructArray::try_new(self.fact.clone(), facts, None)?),
            side(|row| row.client.as_ref())?,
            side(|row| row.server.as_ref())?,
        ];
        RecordBatch::try_new(self.table.clone(), columns)
    }
}

fn data_type(kind: Type) -> DataType {
    match kind {
        Type::U8 => DataType::UInt8,
        Type::U16 => DataType::UInt16,
        Type::U32 => DataType::UInt32,
        Type::U64 => DataType::UInt64,
        Type::Time => DataType::Timestamp(TimeUnit::Microsecond, None),
    }
}

/// Null only where some are.
fn times(values: impl Iterator<Item = Option<i64>> + Clone) -> ArrayRef {
    let nulls = NullBuffer::from_iter(values.clone().map(|value| value.is_some()));
    let values: Vec<i64> = values.map(Option::unwrap_or_default).collect();
    Arc::new(TimestampMicrosecondArray::new(
        values.into(),
        Some(nulls).filter(|nulls| nulls.null_count() > 0),
    ))
}

/// In the order of [`fact_columns`].
fn fact_arrays(rows: &[&Row], paths: &[StoredPath]) -> Vec<ArrayRef> {
    let codes = |each: &dyn Fn(&Row) -> Option<u8>| -> ArrayRef {
        let values = rows.iter().map(|row| each(row).unwrap_or(NO_CODE));
        Arc::new(UInt8Array::from_iter_values(values))
    };
    let path = |each: fn(&StoredPath) -> u8| -> ArrayRef {
        Arc::new(UInt8Array::from_iter_values(paths.iter().map(each)))
    };
    vec![
        codes(&|row| row.sides().next().map(|side| side.half.protocol as u8)),
        codes(&|row| Some(code::of(&code::STATES, &row.state()))),
        times(rows.iter().map(|row| row.closed_at().map(|at| at.0))),
        codes(&|row| {
            row.joined
                .map(|joined| code::of(&code::EVIDENCE, &joined.evidence))
        }),
        codes(&|row| {
            row.joined
                .map(|joined| code::of(&code::CONFIDENCES, &joined.confidence))
        }),
        codes(&|row| {
            row.unmatched
                .map(|reason| code::of(&code::UNMATCHED, &reason))
        }),
        path(|path| path.class),
        path(|path| path.crosses),
        Arc::new(UInt32Array::from_iter_values(
            paths.iter().map(|path| path.via),
        )),
        codes(&|row| Some(u8::from(row.card_due) | row.cut_off.0)),
        Arc::new(UInt32Array::from_iter_values(
            rows.iter().map(|row| row.name().0),
        )),
        Arc::new(UInt32Array::from_iter_values(
            rows.iter().map(|row| row.name().1),
        )),
        codes(&|row| Some(row.application() as u8)),
    ]
}

/// In the order of [`SIDE_COLUMNS`].
fn side_columns(sides: &[Option<&Side>]) -> Vec<ArrayRef> {
    let seen = NullBuffer::from_iter(sides.iter().map(Option::is_some));
    let builder = SideColumns {
        sides,
        seen: Some(seen).filter(|seen| seen.null_count() > 0),
    };
    let isn = |each: fn((u32, u32)) -> u32| -> ArrayRef {
        let known = |side: &Option<&Side>| side.and_then(|side| isn_of(side.half.fingerprint));
        let nulls = NullBuffer::from_iter(sides.iter().map(|side| known(side).is_some()));
        let values: Vec<u32> = sides
            .iter()
            .map(|side| known(side).map_or(0, each))
            .collect();
        Arc::new(UInt32Array::new(
            values.into(),
            Some(nulls).filter(|nulls| nulls.null_count() > 0),
        ))
    };
    vec![
        builder.of::<U64>(|side| side.half.id.0),
        builder.of::<U32>(|side| side.agent),
        builder.of::<U32>(|side| side.half.owner),
        builder.of::<U8>(|side| code::of(&code::HALF_STATES, &side.half.state)),
        isn(|(client, _)| client),
        isn(|(_, server)| server),
        builder.of::<Time>(|side| side.half.opened_at.0),
        times(
            sides
                .iter()
                .map(|side| side.and_then(|side| side.half.closed_at).map(|at| at.0)),
        ),
        builder.of::<Time>(|side| side.half.seen_at.0),
        builder.of::<U64>(|side| address_words(side.half.local.ip()).0),
        builder.of::<U64>(|side| address_words(side.half.local.ip()).1),
        builder.of::<U16>(|side| side.half.local.port()),
        builder.of::<U64>(|side| address_words(side.half.remote.ip()).0),
        builder.of::<U64>(|side| address_words(side.half.remote.ip()).1),
        builder.of::<U16>(|side| side.half.remote.port()),
        builder.of::<U64>(|side| side.half.bytes_sent),
        builder.of::<U64>(|side| side.half.bytes_received),
        builder.of::<U64>(|side| side.half.packets_sent),
        builder.of::<U64>(|side| side.half.packets_received),
        builder.of::<U32>(|side| side.half.rtt_us),
        builder.of::<U32>(|side| side.half.retransmits),
    ]
}

/// Columns that are null exactly where the end was not seen share one null mask.
struct SideColumns<'a> {
    sides: &'a [Option<&'a Side>],
    /// None where all are seen.
    seen: Option<NullBuffer>,
}

impl SideColumns<'_> {
    fn of<T: ArrowPrimitiveType>(&self, each: impl Fn(&Side) -> T::Native) -> ArrayRef {
        let values: Vec<T::Native> = self
            .sides
            .iter()
            .map(|side| side.map_or(Default::default(), &each))
            .collect();
        Arc::new(PrimitiveArray::<T>::new(values.into(), self.seen.clone()))
    }
}
