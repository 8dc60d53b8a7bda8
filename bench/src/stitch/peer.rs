//! The same rows through a database's batch join.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use duckdb::Connection;
use duckdb::arrow::array::{ArrayRef, RecordBatch, UInt32Array, UInt64Array};

use super::{RUNS, mix, shuffled};
use crate::machine;

/// Rows handed to the database at a time while its tables are filled.
const CHUNK: usize = 1 << 16;

/// Rows a second of a one-thread hash join of `pairs` clients' halves with their servers' halves, both sides counted;
/// the fastest of several runs.
pub fn hash_join(pairs: usize) -> Result<f64> {
    let database = Connection::open_in_memory().context("cannot open DuckDB")?;
    database.execute_batch("SET threads = 1")?;
    for (table, order) in [
        ("client", identity as fn(usize) -> usize),
        ("server", shuffled),
    ] {
        fill(&database, table, pairs, order)?;
    }
    let query = "SELECT count(*), sum(client.handle), sum(server.handle) FROM client JOIN server USING (key)";
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let start = machine::own_cpu_time()?;
        let found: i64 = database
            .query_row(query, [], |row| row.get(0))
            .context("the join")?;
        best = best.min(machine::own_cpu_time()?.saturating_sub(start).as_secs_f64());
        ensure!(
            found == pairs as i64,
            "the join found {found} of {pairs} pairs"
        );
    }
    Ok(2.0 * pairs as f64 / best)
}

fn identity(pair: usize) -> usize {
    pair
}

fn fill(database: &Connection, table: &str, pairs: usize, order: fn(usize) -> usize) -> Result<()> {
    database.execute_batch(&format!(
        "CREATE TABLE {table} (key UBIGINT, handle UINTEGER)"
    ))?;
    let mut appender = database.appender(table)?;
    for first in (0..pairs).step_by(CHUNK) {
        let rows = (first..first + CHUNK).map(order);
        let keys: ArrayRef = Arc::new(
            rows.clone()
                .map(|pair| mix(pair as u64))
                .collect::<UInt64Array>(),
        );
        let handles: ArrayRef = Arc::new(rows.map(|pair| pair as u32).collect::<UInt32Array>());
        let chunk = RecordBatch::try_from_iter([("key", keys), ("handle", handles)])?;
        appender.append_record_batch(chunk)?;
    }
    appender.flush().context("cannot fill the table")
}
