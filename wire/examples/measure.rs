//! Size and decoding time of batches of the documented workload, by rows in a batch.

use std::time::Instant;

use weft_wire::batch::{BatchDecoder, encode};
use weft_wire::testing::{Generator, Workload};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for rows in [128, 512, 2048, 4096, 8192, 16384] {
        let mut generator = Generator::new(Workload::default(), 7);
        let batches = (0..(65_536 / rows))
            .map(|_| encode(&generator.batch(rows)))
            .collect::<Result<Vec<_>, _>>()?;
        let bytes: usize = batches.iter().map(Vec::len).sum();
        let halves = (rows * batches.len()) as f64;
        let mut decoder = BatchDecoder::new();
        let mut best = f64::INFINITY;
        for _ in 0..20 {
            let start = Instant::now();
            let mut sum = 0;
            for batch in &batches {
                sum += decoder
                    .decode(batch)?
                    .bytes_sent
                    .last()
                    .copied()
                    .unwrap_or(0);
            }
            std::hint::black_box(sum);
            best = best.min(start.elapsed().as_nanos() as f64 / halves);
        }
        println!(
            "{rows:6} rows: {:6.2} bytes a half, {best:6.2} ns to decode",
            bytes as f64 / halves
        );
    }
    Ok(())
}
