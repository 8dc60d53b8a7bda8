//! An answer as something that can be shown in every format.

use serde::Serialize;

use crate::answer::{Answer, Rows};
use crate::failure::Failure;
use crate::health::measures::Check;
use crate::plan::{Ask, What};
use crate::table::Table;
use crate::{connections, dns, explain, health, report, sql};

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Schema of the JSON, `weft.report.hairpins/1`.
    pub schema: String,
    /// Rows, each a JSON object on one line.
    pub rows: Vec<String>,
    /// More fields of the JSON envelope: name and JSON.
    pub more: Vec<(&'static str, String)>,
    /// Columns of CSV, paths into a row: `client.site.cloud`.
    pub paths: Vec<String>,
    /// The answer for people.
    pub text: Text,
    /// What it adds up to, for stderr.
    pub summary: String,
    /// What could be done next, for stderr.
    pub hints: Vec<String>,
    /// What other programs read of a check; of `weft health` only.
    pub check: Option<Check>,
    /// Exit code.
    pub exit: u8,
}

/// The answer for people, from top to bottom.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Text(pub Vec<Block>);

/// A part of a text.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Lines as they are.
    Lines(Vec<String>),
    /// A table.
    Table(Table),
}

impl Text {
    /// Lines alone.
    pub fn lines(lines: Vec<String>) -> Self {
        Self(vec![Block::Lines(lines)])
    }

    /// A table alone.
    pub fn table(table: Table) -> Self {
        Self(vec![Block::Table(table)])
    }
}

/// The view of an answer to a question.
pub fn of(ask: &Ask, answer: &Answer) -> Result<View, Failure> {
    match (&ask.what, &answer.rows) {
        (What::Connections { limit, chains, .. }, Rows::Connections(rows)) => {
            connections::view(rows, answer, *limit, *chains)
        }
        (What::Connections { limit, chains, .. }, Rows::None) => {
            connections::view(&[], answer, *limit, *chains)
        }
        (What::Explain { id_prefix }, Rows::Connections(rows)) => {
            explain::view(rows, id_prefix, answer)
        }
        (What::Explain { id_prefix }, Rows::None) => explain::view(&[], id_prefix, answer),
        (What::Report { which, by, .. }, Rows::Report(rows)) => {
            report::view(*which, *by, rows, answer)
        }
        (What::Report { which, by, .. }, Rows::None) => report::view(*which, *by, &[], answer),
        (What::Sql { .. }, Rows::Sql { columns, rows }) => sql::view(columns, rows, answer),
        (What::Sql { .. }, Rows::None) => sql::view(&[], &[], answer),
        (What::Dns { report, top, .. }, Rows::Dns(rows)) => dns::view(report, rows, answer, *top),
        (What::Dns { report, top, .. }, Rows::None) => dns::view(report, &[], answer, *top),
        (What::Health { objectives, .. }, Rows::Health(rows)) => {
            health::view(rows, objectives, answer.asked_at)
        }
        (What::Health { objectives, .. }, Rows::None) => {
            health::view(&[], objectives, answer.asked_at)
        }
        (What::Federators, Rows::Health(rows)) => health::federators(rows),
        (What::Federators, Rows::None) => health::federators(&[]),
        _ => Err(Failure::protocol("it answers another question")),
    }
}

/// A value as JSON on one line.
pub fn json<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value)
        .map_err(|error| Failure::protocol(format!("it has no JSON form: {error}")))
}

/// Values as JSON, a line each.
pub fn json_rows<T: Serialize>(values: &[T]) -> Result<Vec<String>, Failure> {
    values.iter().map(json).collect()
}

/// Paths as CSV columns.
pub fn paths(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
