//! The programs that make the agent's load, as subcommands of this one: each runs on a host of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::machine;

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

/// Connects, waits for the server to close, closes. Each line on stdin is a window, `ADDRESS SECONDS`; its answer is the number
/// of connections, of those that failed, and the seconds they took.
pub fn load(threads: usize) -> Result<()> {
    for line in std::io::stdin().lines() {
        let line = line.context("cannot read what to do")?;
        let (server, seconds) = line.split_once(' ').context("ADDRESS SECONDS")?;
        let (done, failed, elapsed) = window(server.parse()?, seconds.parse()?, threads);
        writeln!(std::io::stdout(), "{done} {failed} {elapsed}")
            .context("cannot say what was done")?;
    }
    Ok(())
}

fn window(server: SocketAddr, seconds: f64, threads: usize) -> (u64, u64, f64) {
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
    (done.into_inner(), failed.into_inner(), elapsed)
}

fn connect_once(server: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    let mut buffer = [0; 1];
    // The end of the stream: nothing is ever sent.
    stream.read(&mut buffer).map(drop)
}

/// Accepts and keeps what it accepted, until it is killed.
pub fn hold(listen: SocketAddr) -> Result<()> {
    machine::allow_descriptors()?;
    let listener = TcpListener::bind(listen).context("cannot listen")?;
    println!("ready");
    let mut kept = Vec::new();
    loop {
        // A client that has gone again is the client's business.
        kept.extend(listener.accept().ok());
    }
}

/// Opens connections, sends a byte on each, and keeps them until it is killed.
pub fn open(server: SocketAddr, count: usize) -> Result<()> {
    machine::allow_descriptors()?;
    let mut kept = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(server).context("cannot connect")?;
        stream.write_all(b"x")?;
        kept.push(stream);
    }
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// Sends every datagram back, until it is killed.
pub fn echo(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).context("cannot listen")?;
    println!("ready");
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        // A client that is gone is no reason to stop.
        let _ = socket.send_to(&buffer[..length], from);
    }
}

/// Datagrams that [`datagrams`] sends from each of its sockets.
pub const DATAGRAMS_OF_A_SOCKET: usize = 16;

/// Asks an echo and waits for its answer, from a new socket every so often; prints the number of answers.
pub fn datagrams(server: SocketAddr, seconds: f64) -> Result<()> {
    let (start, mut answers) = (Instant::now(), 0_u64);
    let mut buffer = [0; 64];
    while start.elapsed().as_secs_f64() < seconds {
        let socket = UdpSocket::bind("0.0.0.0:0").context("no socket")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        for _ in 0..DATAGRAMS_OF_A_SOCKET {
            socket.send(&buffer)?;
            answers += u64::from(socket.recv(&mut buffer).is_ok());
        }
    }
    writeln!(std::io::stdout(), "{answers}").context("cannot say what was done")
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
