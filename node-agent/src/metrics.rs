//! Prometheus text over HTTP, as small as it can be: every request is answered with all metrics.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::counters::Counters;
use crate::spool::SpoolTotals;
use crate::spool::shared::SharedSpool;

/// Requests served at a time. More wait in the listener's queue.
const MAX_REQUESTS: usize = 4;
/// Bytes of a request that are looked at; a request that is longer is not answered.
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// Longest a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the listener failed (no descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until its task is dropped.
pub async fn serve(
    listener: TcpListener,
    counters: Arc<Counters>,
    spool: SharedSpool,
    connected: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_REQUESTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let totals = spool.lock().totals();
        let body = render(&counters, &totals, *connected.borrow());
        tokio::spawn(async move {
            let _ = timeout(REQUEST_TIMEOUT, answer(stream, body)).await;
            drop(place);
        });
    }
}

async fn answer(mut stream: TcpStream, body: String) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if request.len() >= MAX_REQUEST_BYTES || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// The text format. The spool speaks for itself; its counters win over what the capture keeps of it.
fn render(counters: &Counters, spool: &SpoolTotals, connected: bool) -> String {
    let mut all = counters.all();
    for (name, _, _, value) in &mut all {
        match *name {
            "spool_bytes" => *value = spool.bytes,
            "spool_dropped" => *value = spool.rows_dropped,
            "spool_refused" => *value = spool.rows_refused,
            _ => {}
        }
    }
    all.push((
        "connected",
        "gauge",
        "Whether a session with the federator stands.",
        u64::from(connected),
    ));
    let line = |(name, kind, help, value): (&str, &str, &str, u64)| {
        let suffix = if kind == "counter" { "_total" } else { "" };
        format!(
            "# HELP weft_agent_{name}{suffix} {help}\n# TYPE weft_agent_{name}{suffix} {kind}\nweft_agent_{name}{suffix} {value}\n"
        )
    };
    all.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_carry_their_suffix_and_the_spool_speaks_for_itself() {
        let totals = SpoolTotals {
            bytes: 7,
            ..SpoolTotals::default()
        };
        let text = render(&Counters::default(), &totals, true);
        assert!(text.contains(
            "# TYPE weft_agent_kernel_dropped_total counter\nweft_agent_kernel_dropped_total 0\n"
        ));
        assert!(text.contains("\nweft_agent_spool_bytes 7\n"));
        assert!(text.ends_with("weft_agent_connected 1\n"));
    }
}
