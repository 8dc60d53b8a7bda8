//! Halves a second on one core, and bytes for each half that waits:
//! `cargo run --release -p weft-stitching --example throughput [OPEN...]`.

use std::time::Instant;

/// Seconds that this thread has had a processor: other programs then count only by what they do to the caches.
fn processor_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? * 1024.0)
}

fn main() {
    let arguments: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|open| open.parse().ok())
        .collect();
    let sizes = if arguments.is_empty() {
        vec![1_000_000, 4_000_000, 16_000_000]
    } else {
        arguments
    };
    let start = Instant::now();
    for open in sizes {
        let before = resident_bytes().unwrap_or_default();
        let found = weft_stitching::testing::stitch_rate(open, 2.0, || {
            processor_seconds().unwrap_or_else(|| start.elapsed().as_secs_f64())
        });
        println!(
            "{open} open: {:.1} million halves/s, {:.1} bytes a half asked for, {:.1} resident at most (above before)",
            found.halves_per_second / 1e6,
            found.bytes_per_open_half,
            (resident_bytes().unwrap_or_default() - before) / open as f64,
        );
    }
}
