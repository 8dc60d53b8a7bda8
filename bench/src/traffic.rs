//! The programs that make the agent's load, as subcommands of this one: each runs on a host of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Accepts and closes, and does nothing else, until it is killed.
pub fn accept(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).context("cannot listen")?;
    println!("ready");
    loop {
        // A client that has gone again is the client's business.
        drop(listener.accept());
    }
}

/// Takes datagrams and forgets them: the collector that a flow exporter sends to.
pub fn discard(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).context("cannot listen")?;
    println!("ready");
    let mut buffer = [0; 65536];
    loop {
        let _ = socket.recv(&mut buffer);
    }
}

/// Connects, waits for the server to close, closes; prints the number of connections and the seconds they took.
pub fn load(server: SocketAddr, seconds: f64, threads: usize) -> Result<()> {
    let done = AtomicU64::new(0);
    let failed = AtomicU64::new(0);
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while Instant::now() < end {
                    let counter = if connect_once(server).is_ok() {
                        &done
                    } else {
                        &failed
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let elapsed = start.elapsed().as_secs_f64();
    let (done, failed) = (done.into_inner(), failed.into_inner());
    writeln!(std::io::stdout(), "{done} {failed} {elapsed}").context("cannot say what was done")
}

fn connect_once(server: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    let mut buffer = [0; 1];
    // The end of the stream: nothing is ever sent.
    stream.read(&mut buffer).map(drop)
}

/// Answers every DNS question with one address.
pub fn answer(listen: SocketAddr) -> Result<()> {
    const RECORD: &[u8] = b"\xc0\x0c\0\x01\0\x01\0\0\x01\x2c\0\x04\x0a\x4d\0\x09";
    let socket = UdpSocket::bind(listen).context("cannot listen")?;
    println!("ready");
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let end = length + RECORD.len();
        if length < 12 || end > buffer.len() {
            continue;
        }
        // A response, recursion available, one answer; what dnsperf asks has no additional section.
        buffer[2] |= 0x80;
        buffer[3] = 0x80;
        buffer[7] = 1;
        buffer[length..end].copy_from_slice(RECORD);
        // A client that is gone is no reason to stop.
        let _ = socket.send_to(&buffer[..end], from);
    }
}
