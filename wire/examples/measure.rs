//! Size and decoding time of batches of the documented workload, by rows in a batch.
//!
//! With a number as argument: only batches of so many rows, decoded for long; for a profiler.

use std::time::Instant;

use weft_wire::AgentKey;
use weft_wire::batch::lookups::{self, LookupDecoder};
use weft_wire::batch::{BatchDecoder, BatchError, encode};
use weft_wire::testing::{Generator, LookupGenerator, Workload};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let only = std::env::args()
        .nth(1)
        .map(|rows| rows.parse())
        .transpose()?;
    match only {
        Some(rows) => measure(rows, 1000)?,
        None => [128, 512, 2048, 4096, 8192, 16384]
            .into_iter()
            .try_for_each(|rows| measure(rows, 20))
            .and_then(|()| [100, 1000, 4000].into_iter().try_for_each(measure_lookups))?,
    }
    Ok(())
}

fn measure_lookups(rows: usize) -> Result<(), BatchError> {
    let mut generator = LookupGenerator::new(5_000.0, 7);
    let batches = (0..(20_000 / rows))
        .map(|_| lookups::encode(&generator.batch(rows)))
        .collect::<Result<Vec<_>, _>>()?;
    let bytes: usize = batches.iter().map(Vec::len).sum();
    let count = (rows * batches.len()) as f64;
    let mut decoder = LookupDecoder::new();
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let start = Instant::now();
        for batch in &batches {
            std::hint::black_box(decoder.decode(batch)?);
        }
        best = best.min(start.elapsed().as_nanos() as f64 / count);
    }
    println!(
        "{rows:6} lookups: {:6.2} bytes each, {best:6.2} ns to decode",
        bytes as f64 / count
    );
    Ok(())
}

fn measure(rows: usize, runs: usize) -> Result<(), BatchError> {
    let mut generator = Generator::new(Workload::default(), 7);
    let batches = (0..(65_536 / rows))
        .map(|_| encode(&generator.batch(rows)))
        .collect::<Result<Vec<_>, _>>()?;
    let bytes: usize = batches.iter().map(Vec::len).sum();
    let halves = (rows * batches.len()) as f64;
    let mut decoder = BatchDecoder::new();
    let (mut best, mut best_rows) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..runs {
        let start = Instant::now();
        for batch in &batches {
            std::hint::black_box(decoder.decode(batch)?);
        }
        best = best.min(start.elapsed().as_nanos() as f64 / halves);
    }
    for _ in 0..runs.min(20) {
        let start = Instant::now();
        for batch in &batches {
            std::hint::black_box(decoder.decode_batch(batch, AgentKey(1))?);
        }
        best_rows = best_rows.min(start.elapsed().as_nanos() as f64 / halves);
    }
    println!(
        "{rows:6} rows: {:6.2} bytes a half, {best:6.2} ns to decode, {best_rows:6.2} ns to rows",
        bytes as f64 / halves
    );
    Ok(())
}
