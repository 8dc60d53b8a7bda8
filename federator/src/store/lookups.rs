//! Lookups in the store: a table that is only appended to.

use std::sync::Arc;

use duckdb::Connection;
use duckdb::arrow::array::{
    ArrayRef, BooleanArray, StringArray, TimestampMicrosecondArray, UInt8Array, UInt16Array,
    UInt32Array, UInt64Array,
};
use duckdb::arrow::record_batch::RecordBatch;
use weft_wire::{Answer, Lookup, Role};

use super::StoreError;
use super::append::VECTOR_ROWS;
use crate::record::{LookupRow, address_words};

/// Appends rows.
pub fn append(connection: &Connection, rows: &[LookupRow]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut appender = connection.appender("lookups")?;
    for vector in rows.chunks(VECTOR_ROWS) {
        appender.append_record_batch(record_batch(vector)?)?;
    }
    appender.flush()?;
    Ok(())
}

fn record_batch(rows: &[LookupRow]) -> Result<RecordBatch, StoreError> {
    let all = || rows.iter().map(|row| &row.lookup);
    let byte = |each: &dyn Fn(&Lookup) -> u8| -> ArrayRef {
        Arc::new(UInt8Array::from_iter_values(all().map(each)))
    };
    let short = |each: &dyn Fn(&Lookup) -> Option<u16>| -> ArrayRef {
        Arc::new(all().map(each).collect::<UInt16Array>())
    };
    let number = |each: &dyn Fn(&Lookup) -> Option<u32>| -> ArrayRef {
        Arc::new(all().map(each).collect::<UInt32Array>())
    };
    let word = |each: &dyn Fn(&Lookup) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(all().map(each)))
    };
    let text = |each: &dyn Fn(&Lookup) -> Option<String>| -> ArrayRef {
        Arc::new(all().map(each).collect::<StringArray>())
    };
    let columns: [(&str, ArrayRef); 22] = [
        (
            "agent",
            Arc::new(UInt32Array::from_iter_values(
                rows.iter().map(|row| row.agent),
            )),
        ),
        ("owner", number(&|lookup| Some(lookup.owner))),
        (
            "role",
            byte(&|lookup| u8::from(lookup.role == Role::Server)),
        ),
        ("protocol", byte(&|lookup| lookup.protocol as u8)),
        ("transport", byte(&|lookup| lookup.transport as u8)),
        (
            "local_high",
            word(&|lookup| address_words(lookup.local.ip()).0),
        ),
        (
            "local_low",
            word(&|lookup| address_words(lookup.local.ip()).1),
        ),
        ("local_port", short(&|lookup| Some(lookup.local.port()))),
        (
            "resolver",
            text(&|lookup| Some(lookup.resolver.to_string())),
        ),
        (
            "asked_at",
            Arc::new(TimestampMicrosecondArray::from_iter_values(
                all().map(|lookup| lookup.asked_at.0),
            )),
        ),
        ("latency_us", number(&|lookup| lookup.latency_us)),
        ("message", short(&|lookup| Some(lookup.id))),
        ("name", text(&|lookup| Some(lookup.name.clone()))),
        ("qtype", short(&|lookup| Some(lookup.qtype))),
        ("code", short(&|lookup| lookup.code)),
        (
            "truncated",
            Arc::new(
                all()
                    .map(|lookup| Some(lookup.truncated))
                    .collect::<BooleanArray>(),
            ),
        ),
        ("tries", byte(&|lookup| lookup.tries)),
        ("answers", text(&|lookup| Some(answers(&lookup.answers)))),
        ("answer_total", short(&|lookup| Some(lookup.answer_total))),
        (
            "request_bytes",
            number(&|lookup| Some(lookup.request_bytes)),
        ),
        (
            "response_bytes",
            number(&|lookup| Some(lookup.response_bytes)),
        ),
        ("search_of", text(&|lookup| lookup.search_of.clone())),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )?)
}

/// Answers as a column of text keeps them: addresses with their seconds to live behind a slash, names as they are, separated
/// by spaces. Names have none: what is not printable is escaped.
fn answers(answers: &[Answer]) -> String {
    let words: Vec<String> = answers
        .iter()
        .map(|answer| match answer {
            Answer::Address(address, life) => format!("{address}/{life}"),
            Answer::Alias(name) => name.clone(),
        })
        .collect();
    words.join(" ")
}
