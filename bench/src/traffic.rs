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
