//! `weft sql`: a table of any shape.

use std::collections::BTreeSet;

use weft_wire::query::SqlValue;

use crate::answer::Answer;
use crate::failure::Failure;
use crate::figures::counted;
use crate::table::{Column, Table};
use crate::view::{Text, View, json};

pub(crate) fn view(
    columns: &[String],
    rows: &[Vec<SqlValue>],
    answer: &Answer,
) -> Result<View, Failure> {
    let names = distinct(columns);
    let mut hints = Vec::new();
    if answer.truncated {
        hints.push("there are more rows: --limit 10000, or aggregate in SQL".to_owned());
    }
    Ok(View {
        schema: "weft.sql/1".to_owned(),
        rows: rows
            .iter()
            .map(|row| object(&names, row))
            .collect::<Result<_, _>>()?,
        more: vec![("columns", json(&names)?)],
        text: Text::table(table(&names, rows)),
        paths: names,
        summary: counted(rows.len(), "row", "rows"),
        hints,
        ..View::default()
    })
}

/// Names that can be keys: a name that comes again gets a number.
fn distinct(columns: &[String]) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut names = Vec::with_capacity(columns.len());
    for column in columns {
        let mut name = column.clone();
        let mut number = 2;
        while !taken.insert(name.clone()) {
            name = format!("{column}_{number}");
            number += 1;
        }
        names.push(name);
    }
    names
}

/// A row as an object, in the order of its columns.
fn object(names: &[String], row: &[SqlValue]) -> Result<String, Failure> {
    let mut fields = Vec::with_capacity(row.len());
    for (name, value) in names.iter().zip(row) {
        let value = match value {
            SqlValue::Null => "null".to_owned(),
            SqlValue::Bool(b) => b.to_string(),
            SqlValue::Int(i) => i.to_string(),
            SqlValue::UInt(u) => u.to_string(),
            // JSON has no NaN and no infinity.
            SqlValue::Float(f) if !f.is_finite() => "null".to_owned(),
            SqlValue::Float(f) => json(f)?,
            SqlValue::Text(text) => json(text)?,
        };
        fields.push(format!("{}:{value}", json(name)?));
    }
    Ok(format!("{{{}}}", fields.join(",")))
}

fn table(names: &[String], rows: &[Vec<SqlValue>]) -> Table {
    let numeric = |index: usize| {
        let mut values = rows
            .iter()
            .filter_map(|row| row.get(index))
            .filter(|v| **v != SqlValue::Null)
            .peekable();
        values.peek().is_some()
            && values
                .all(|v| matches!(v, SqlValue::Int(_) | SqlValue::UInt(_) | SqlValue::Float(_)))
    };
    let columns = names.iter().enumerate().map(|(index, name)| {
        // The first columns are the ones people put first.
        let priority = u8::try_from(index / 4).unwrap_or(u8::MAX);
        Column {
            title: name.clone(),
            right: numeric(index),
            priority,
            brief: None,
        }
    });
    let cell = |value: &SqlValue| match value {
        SqlValue::Null => "-".to_owned(),
        SqlValue::Bool(b) => b.to_string(),
        SqlValue::Int(i) => i.to_string(),
        SqlValue::UInt(u) => u.to_string(),
        SqlValue::Float(f) => f.to_string(),
        SqlValue::Text(text) => text.clone(),
    };
    Table {
        columns: columns.collect(),
        rows: rows
            .iter()
            .map(|row| row.iter().map(cell).collect())
            .collect(),
    }
}
