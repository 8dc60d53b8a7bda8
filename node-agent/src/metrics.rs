//! `/metrics` and `/healthz` over HTTP/1.1, as small as it can be: one request a connection, and few at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use weft_wire::exposition::{CONTENT_TYPE, Exposition, Kind};

use crate::counters::Counters;
use crate::spool::SpoolTotals;
use crate::spool::shared::SharedSpool;
use crate::time;

/// Requests served at a time. More wait in the listener's queue.
const MAX_REQUESTS: usize = 4;
/// Bytes of a request that are looked at; a request that is longer is not answered.
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// Longest a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the listener failed (no descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A capture thread that was at work longer ago does not capture. It is many times a second, but for a sweep of many sockets.
const CAPTURE_PATIENCE_MS: u64 = 30_000;

/// What is told of.
#[derive(Clone)]
pub struct Told {
    /// Totals.
    pub counters: Arc<Counters>,
    /// The spool.
    pub spool: SharedSpool,
    /// Whether a session with the federator stands.
    pub connected: watch::Receiver<bool>,
    /// When the certificate ends, in seconds since 1970.
    pub certificate_ends: Arc<dyn Fn() -> u64 + Send + Sync>,
}

/// Serves until its task is dropped.
pub async fn serve(listener: TcpListener, told: Told) {
    let places = Arc::new(Semaphore::new(MAX_REQUESTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let told = told.clone();
        tokio::spawn(async move {
            let _ = timeout(REQUEST_TIMEOUT, exchange(stream, &told)).await;
            drop(place);
        });
    }
}

async fn exchange(mut stream: TcpStream, told: &Told) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if request.len() >= MAX_REQUEST_BYTES || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = request
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let (status, kind, body) = answer(line, told);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn answer(line: &[u8], told: &Told) -> (&'static str, &'static str, String) {
    const TEXT: &str = "text/plain; charset=utf-8";
    match line {
        b"GET /metrics HTTP/1.1" | b"GET /metrics HTTP/1.0" => {
            let totals = told.spool.totals();
            let text = render(
                &told.counters,
                &totals,
                *told.connected.borrow(),
                (told.certificate_ends)(),
            );
            ("200 OK", CONTENT_TYPE, text)
        }
        b"GET /healthz HTTP/1.1" | b"GET /healthz HTTP/1.0" => {
            let now_ms = time::monotonic_ns() / 1_000_000;
            let failing = failing(&told.counters, now_ms);
            if !failing.is_empty() {
                let words = failing.join("\n") + "\n";
                return ("503 Service Unavailable", TEXT, words);
            }
            // Away from its federator it does what it is there for: starting it anew would help nobody.
            let words = if *told.connected.borrow() {
                "ok\n"
            } else {
                "ok: no session with the federator, spooling\n"
            };
            ("200 OK", TEXT, words.into())
        }
        _ => (
            "404 Not Found",
            TEXT,
            "GET /metrics or /healthz\n".to_owned(),
        ),
    }
}

/// Why it does not do what it is there for, in words; empty when it does.
fn failing(counters: &Counters, now_ms: u64) -> Vec<String> {
    let mut why = Vec::new();
    let round = counters.capture_round_ms.load(Relaxed);
    if round == 0 {
        why.push("not ready: nothing was captured yet".to_owned());
    } else if now_ms.saturating_sub(round) > CAPTURE_PATIENCE_MS {
        let seconds = now_ms.saturating_sub(round) / 1_000;
        why.push(format!("no capture for {seconds} s"));
    }
    if counters.spool_failing.load(Relaxed) > 0 {
        why.push(
            "the spool takes nothing: is the disk full, or read-only? the ring buffers".into(),
        );
    }
    why
}

/// The text format. The spool speaks for itself; its counters win over what the capture keeps of it.
fn render(
    counters: &Counters,
    spool: &SpoolTotals,
    connected: bool,
    certificate_ends: u64,
) -> String {
    let mut text = Exposition::default();
    for (name, kind, help, value) in counters.all() {
        let value = match name {
            "spool_bytes" => spool.bytes,
            "spool_dropped" => spool.rows_dropped,
            "spool_refused" => spool.rows_refused,
            _ => value,
        };
        // Base units, by which Prometheus goes.
        match name {
            "cpu_permille" => text.one(
                Kind::Gauge,
                "weft_agent_cpu_ratio",
                "Part of one processor that the agent took over the last ten seconds.",
                value as f64 / 1_000.0,
            ),
            "capture_round_ms" => {}
            _ if kind == "counter" => text.one(
                Kind::Counter,
                &format!("weft_agent_{name}_total"),
                help,
                value,
            ),
            _ => text.one(Kind::Gauge, &format!("weft_agent_{name}"), help, value),
        }
    }
    let now_ms = time::monotonic_ns() / 1_000_000;
    for (name, help, value) in [
        (
            "certificate_expiry_timestamp_seconds",
            "When its certificate ends, in seconds since 1970.",
            certificate_ends,
        ),
        (
            "ready",
            "1 while /healthz says 200.",
            u64::from(failing(counters, now_ms).is_empty()),
        ),
        (
            "connected",
            "Whether a session with the federator stands.",
            u64::from(connected),
        ),
    ] {
        text.one(Kind::Gauge, &format!("weft_agent_{name}"), help, value);
    }
    text.family(
        Kind::Gauge,
        "weft_agent_build_info",
        "Always 1; the label says which program this is.",
    )
    .put(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.finish()
}

#[cfg(test)]
mod tests {
    use weft_wire::exposition::read;

    use super::*;

    #[test]
    fn the_text_keeps_to_the_rules_and_has_every_counter() {
        let totals = SpoolTotals {
            bytes: 7,
            ..SpoolTotals::default()
        };
        let counters = Counters::default();
        counters.cpu_permille.store(250, Relaxed);
        let read = read(&render(&counters, &totals, true, 5)).unwrap();
        let value = |name: &str| read[&format!("weft_agent_{name}")].values[""];
        assert_eq!(value("spool_bytes"), 7.0, "the spool speaks for itself");
        assert_eq!(value("kernel_dropped_total"), 0.0);
        assert_eq!((value("connected"), value("cpu_ratio")), (1.0, 0.25));
        assert_eq!(value("certificate_expiry_timestamp_seconds"), 5.0);
        for (name, kind, _, _) in counters.all() {
            let name = match (name, kind) {
                ("cpu_permille", _) => "cpu_ratio".to_owned(),
                // In `ready`.
                ("capture_round_ms", _) => "ready".to_owned(),
                (name, "counter") => format!("{name}_total"),
                (name, _) => name.to_owned(),
            };
            assert!(read.contains_key(&format!("weft_agent_{name}")), "{name}");
        }
    }

    #[test]
    fn an_agent_that_sees_or_keeps_nothing_is_failing() {
        let counters = Counters::default();
        assert_eq!(
            failing(&counters, 9),
            ["not ready: nothing was captured yet"]
        );
        counters.capture_round_ms.store(5, Relaxed);
        assert!(failing(&counters, 5 + CAPTURE_PATIENCE_MS).is_empty());
        assert_eq!(
            failing(&counters, 6 + CAPTURE_PATIENCE_MS),
            ["no capture for 30 s"]
        );
        counters.spool_failing.store(1, Relaxed);
        assert_eq!(failing(&counters, 5).len(), 1);
    }
}
