//! Rows as Arrow columns, a DuckDB vector at a time.

use std::sync::Arc;

use duckdb::arrow::array::{
    ArrayRef, PrimitiveArray, StringBuilder, TimestampMicrosecondArray, UInt8Array, UInt32Array,
    UInt64Array,
};
use duckdb::arrow::buffer::NullBuffer;
use duckdb::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, Schema, SchemaRef, TimeUnit,
    TimestampMicrosecondType as Time, UInt8Type as U8, UInt16Type as U16, UInt32Type as U32,
    UInt64Type as U64,
};
use duckdb::arrow::record_batch::RecordBatch;
use weft_wire::Timestamp;

use crate::record::{Row, Side, address_words, code, isn_of};
use crate::store::schema::{Type, connection_columns};

/// Rows of one record batch: the size of a DuckDB vector.
pub const VECTOR_ROWS: usize = 2048;

/// How a row's bytes travelled, as the store keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredPath {
    /// Number of the class.
    pub class: u8,
    /// Bits of the boundaries.
    pub crosses: u8,
    /// Addresses in between, separated by spaces.
    pub via: Option<Arc<str>>,
}

/// The Arrow schema of a connection table.
pub fn arrow_schema() -> SchemaRef {
    let fields: Vec<Field> = connection_columns()
        .into_iter()
        .map(|(name, kind)| {
            let data_type = match kind {
                Type::U8 => DataType::UInt8,
                Type::U16 => DataType::UInt16,
                Type::U32 => DataType::UInt32,
                Type::U64 => DataType::UInt64,
                Type::Time => DataType::Timestamp(TimeUnit::Microsecond, None),
                Type::Text => DataType::Utf8,
            };
            Field::new(name, data_type, true)
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// The rows as one record batch.
pub fn record_batch(
    schema: &SchemaRef,
    rows: &[&Row],
    paths: &[StoredPath],
) -> Result<RecordBatch, duckdb::arrow::error::ArrowError> {
    let mut columns = Vec::with_capacity(schema.fields().len());
    row_columns(&mut columns, rows, paths);
    side_columns(
        &mut columns,
        &rows
            .iter()
            .map(|row| row.client.as_ref())
            .collect::<Vec<_>>(),
    );
    side_columns(
        &mut columns,
        &rows
            .iter()
            .map(|row| row.server.as_ref())
            .collect::<Vec<_>>(),
    );
    RecordBatch::try_new(schema.clone(), columns)
}

fn row_columns(columns: &mut Vec<ArrayRef>, rows: &[&Row], paths: &[StoredPath]) {
    let bytes = |each: &dyn Fn(&Row) -> Option<u8>| -> ArrayRef {
        Arc::new(rows.iter().map(|row| each(row)).collect::<UInt8Array>())
    };
    let times = |each: &dyn Fn(&Row) -> Option<Timestamp>| -> ArrayRef {
        Arc::new(
            rows.iter()
                .map(|row| each(row).map(|time| time.0))
                .collect::<TimestampMicrosecondArray>(),
        )
    };
    columns.push(Arc::new(
        rows.iter()
            .map(|row| Some(row.id().0))
            .collect::<UInt64Array>(),
    ));
    columns.push(bytes(&|row| {
        row.sides().next().map(|side| side.half.protocol as u8)
    }));
    columns.push(bytes(&|row| Some(code::of(&code::STATES, &row.state()))));
    columns.push(times(&|row| Some(row.opened_at())));
    columns.push(times(&|row| row.closed_at()));
    columns.push(times(&|row| Some(row.seen_at())));
    columns.push(bytes(&|row| {
        row.joined
            .map(|joined| code::of(&code::EVIDENCE, &joined.evidence))
    }));
    columns.push(bytes(&|row| {
        row.joined
            .map(|joined| code::of(&code::CONFIDENCES, &joined.confidence))
    }));
    columns.push(bytes(&|row| {
        row.unmatched
            .map(|reason| code::of(&code::UNMATCHED, &reason))
    }));
    columns.push(Arc::new(UInt8Array::from_iter_values(
        paths.iter().map(|path| path.class),
    )));
    columns.push(Arc::new(UInt8Array::from_iter_values(
        paths.iter().map(|path| path.crosses),
    )));
    let mut via = StringBuilder::new();
    for path in paths {
        via.append_option(path.via.as_deref());
    }
    columns.push(Arc::new(via.finish()));
    columns.push(bytes(&|row| Some(u8::from(row.card_due))));
}

fn side_columns(columns: &mut Vec<ArrayRef>, sides: &[Option<&Side>]) {
    let seen = NullBuffer::from_iter(sides.iter().map(Option::is_some));
    let builder = SideColumns { sides, seen };
    columns.push(builder.of::<U64>(|side| side.half.id.0));
    columns.push(builder.of::<U32>(|side| side.agent));
    columns.push(builder.of::<U32>(|side| side.half.owner));
    columns.push(builder.of::<U8>(|side| code::of(&code::HALF_STATES, &side.half.state)));
    let isn = |each: fn((u32, u32)) -> u32| -> ArrayRef {
        Arc::new(
            sides
                .iter()
                .map(|side| {
                    side.and_then(|side| isn_of(side.half.fingerprint))
                        .map(each)
                })
                .collect::<UInt32Array>(),
        )
    };
    columns.push(isn(|(client, _)| client));
    columns.push(isn(|(_, server)| server));
    columns.push(builder.of::<Time>(|side| side.half.opened_at.0));
    columns.push(Arc::new(
        sides
            .iter()
            .map(|side| side.and_then(|side| side.half.closed_at).map(|time| time.0))
            .collect::<TimestampMicrosecondArray>(),
    ));
    columns.push(builder.of::<Time>(|side| side.half.seen_at.0));
    columns.push(builder.of::<U64>(|side| address_words(side.half.local.ip()).0));
    columns.push(builder.of::<U64>(|side| address_words(side.half.local.ip()).1));
    columns.push(builder.of::<U16>(|side| side.half.local.port()));
    columns.push(builder.of::<U64>(|side| address_words(side.half.remote.ip()).0));
    columns.push(builder.of::<U64>(|side| address_words(side.half.remote.ip()).1));
    columns.push(builder.of::<U16>(|side| side.half.remote.port()));
    columns.push(builder.of::<U64>(|side| side.half.bytes_sent));
    columns.push(builder.of::<U64>(|side| side.half.bytes_received));
    columns.push(builder.of::<U64>(|side| side.half.packets_sent));
    columns.push(builder.of::<U64>(|side| side.half.packets_received));
    columns.push(builder.of::<U32>(|side| side.half.rtt_us));
    columns.push(builder.of::<U32>(|side| side.half.retransmits));
}

/// Columns that are null exactly where the end was not seen share one null mask.
struct SideColumns<'a> {
    sides: &'a [Option<&'a Side>],
    seen: NullBuffer,
}

impl SideColumns<'_> {
    fn of<T: ArrowPrimitiveType>(&self, each: impl Fn(&Side) -> T::Native) -> ArrayRef {
        let values: Vec<T::Native> = self
            .sides
            .iter()
            .map(|side| side.map_or(Default::default(), &each))
            .collect();
        Arc::new(PrimitiveArray::<T>::new(
            values.into(),
            Some(self.seen.clone()),
        ))
    }
}
