//! `/metrics` and `/healthz` over HTTP/1.1: one request a connection, and few at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use weft_wire::exposition::CONTENT_TYPE;

use crate::health::Vitals;

/// Requests at a time; more are closed unanswered.
const REQUESTS: usize = 16;
/// Longest request.
const REQUEST_BYTES: usize = 8 << 10;
/// Longest exchange.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until the task is aborted.
pub async fn serve(listener: TcpListener, vitals: Arc<Vitals>) {
    let room = Arc::new(Semaphore::new(REQUESTS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: not at full speed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            continue;
        };
        let vitals = vitals.clone();
        tokio::spawn(async move {
            // Whoever asks too slowly, or leaves, gets no answer.
            let _ = timeout(PATIENCE, exchange(stream, &vitals)).await;
            drop(permit);
        });
    }
}

async fn exchange(mut stream: TcpStream, vitals: &Vitals) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut piece).await?;
        if read == 0 || request.len() + read > REQUEST_BYTES {
            return Ok(());
        }
        request.extend_from_slice(&piece[..read]);
    }
    let line = request
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let (status, kind, body) = answer(line, vitals);
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn answer(line: &[u8], vitals: &Vitals) -> (&'static str, &'static str, String) {
    const TEXT: &str = "text/plain; charset=utf-8";
    match line {
        b"GET /metrics HTTP/1.1" | b"GET /metrics HTTP/1.0" => {
            ("200 OK", CONTENT_TYPE, vitals.metrics())
        }
        b"GET /healthz HTTP/1.1" | b"GET /healthz HTTP/1.0" => {
            let failing = vitals.failing();
            if failing.is_empty() {
                ("200 OK", TEXT, "ok\n".into())
            } else {
                let words = failing.join("\n") + "\n";
                ("503 Service Unavailable", TEXT, words)
            }
        }
        _ => ("404 Not Found", TEXT, "GET /metrics or /healthz\n".into()),
    }
}
