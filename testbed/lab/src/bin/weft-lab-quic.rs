//! A QUIC client and server for the lab. Every line of output is one connection's own account of itself, in UDP payload bytes.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use tokio::task::JoinSet;

/// The name in the server's certificate.
const NAME: &str = "quic.lab";
/// Longest request.
const MAX_BYTES: usize = 1 << 20;

/// QUIC for the lab.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Sends back what it is sent
    Serve {
        /// Own address
        address: SocketAddr,
        /// Where the certificate is written
        certificate: PathBuf,
    },
    /// Opens connections, each from the next local port, sends so many bytes on each and reads them back
    Ask {
        /// The server
        target: SocketAddr,
        /// Its certificate
        certificate: PathBuf,
        /// First local port
        first: u16,
        /// Connections, all at a time
        count: u16,
        /// Bytes
        bytes: usize,
    },
}

// One thread: what the kernel says of the sender is the program's own name.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Args::parse().verb {
        Verb::Serve {
            address,
            certificate,
        } => serve(address, &certificate).await,
        Verb::Ask {
            target,
            certificate,
            first,
            count,
            bytes,
        } => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from(fs::read(&certificate)?))?;
            let config = ClientConfig::with_root_certificates(Arc::new(roots))?;
            let mut asking = JoinSet::new();
            for port in first..first + count {
                asking.spawn(ask(target, port, config.clone(), bytes));
            }
            while let Some(done) = asking.join_next().await {
                done??;
            }
            Ok(())
        }
    }
}

async fn serve(address: SocketAddr, certificate: &PathBuf) -> Result<()> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::with_single_cert(vec![made.cert.der().clone()], key.into())?;
    let endpoint = Endpoint::server(config, address)?;
    // Whoever finds it finds a server that listens.
    fs::write(certificate, made.cert.der()).context("cannot write the certificate")?;
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            if let Err(error) = echo(incoming, address).await {
                eprintln!("{error:#}");
            }
        });
    }
    Ok(())
}

async fn echo(incoming: quinn::Incoming, own: SocketAddr) -> Result<()> {
    let connection = incoming.await?;
    let peer = connection.remote_address();
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        let bytes = receive.read_to_end(MAX_BYTES).await?;
        send.write_all(&bytes).await?;
        send.finish()?;
    }
    connection.closed().await;
    report("served", peer, own, &connection)
}

async fn ask(target: SocketAddr, port: u16, config: ClientConfig, bytes: usize) -> Result<()> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => ([0, 0, 0, 0], port).into(),
        SocketAddr::V6(_) => ([0_u16; 8], port).into(),
    };
    // Connected, it would say its own address; quinn wants it unconnected.
    let probe = UdpSocket::bind(SocketAddr::new(any.ip(), 0))?;
    probe.connect(target)?;
    let local = SocketAddr::new(probe.local_addr()?.ip(), port);
    drop(probe);
    let socket = UdpSocket::bind(local)?;
    let mut endpoint = Endpoint::new(
        EndpointConfig::default(),
        None,
        socket,
        Arc::new(TokioRuntime),
    )?;
    endpoint.set_default_client_config(config);
    let connection = endpoint.connect(target, NAME)?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let payload = vec![b'q'; bytes];
    send.write_all(&payload).await?;
    send.finish()?;
    anyhow::ensure!(
        receive.read_to_end(MAX_BYTES).await? == payload,
        "another answer than what was sent"
    );
    connection.close(0_u8.into(), b"done");
    endpoint.wait_idle().await;
    report("asked", local, target, &connection)
}

/// From whom, to whom, and the bytes of UDP payload: a client's sent and received, a server's received and sent.
fn report(
    word: &str,
    client: SocketAddr,
    server: SocketAddr,
    connection: &Connection,
) -> Result<()> {
    let stats = connection.stats();
    let (sent, received) = (stats.udp_tx.bytes, stats.udp_rx.bytes);
    let (up, down) = if word == "asked" {
        (sent, received)
    } else {
        (received, sent)
    };
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{word} {} {} {} {} {up} {down}",
        client.ip(),
        client.port(),
        server.ip(),
        server.port()
    )?;
    Ok(out.flush()?)
}
