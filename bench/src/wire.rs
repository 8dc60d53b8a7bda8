//! What a finished TCP half costs on the way from agent to federator.

use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use weft_transport::{Identity, Listener};
use weft_wire::batch::BatchDecoder;
use weft_wire::control::Ack;
use weft_wire::frame::Kind;
use weft_wire::testing::{Generator, Workload};
use weft_wire::{AgentKey, HalfBatch, batch, codec};

use crate::figure::{Better, Figure};
use crate::uplink::{self, PATIENCE};
use crate::{leftovers, machine};

/// What this bench measures.
pub const FIGURES: &[&str] = &[BYTES, DECODE, DECODE_ROWS];
const BYTES: &str = "wire.bytes_per_half";
const DECODE: &str = "wire.decode_ns_per_half";
const DECODE_ROWS: &str = "wire.decode_rows_ns_per_half";

/// Halves in a batch: what the documented workload's node, 10,000 a second, has in an agent's flush interval of 200 ms.
const ROWS: usize = 2000;
const BATCHES: usize = 500;
/// The fastest of so many runs: the others had company.
const DECODE_RUNS: usize = 7;
/// Around each UDP payload: IPv4 (20) and UDP (8).
const HEADERS: u64 = 28;

/// Runs both on the same batches.
pub fn run(wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let mut generator = Generator::new(Workload::default(), 1);
    let batches: Vec<HalfBatch> = (0..BATCHES).map(|_| generator.batch(ROWS)).collect();
    let encoded = batches
        .iter()
        .map(batch::encode)
        .collect::<Result<Vec<_>, _>>()?;
    let mut figures = Vec::new();
    if wanted.contains(&BYTES) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        figures.push(runtime.block_on(bytes(&encoded))?);
    }
    if wanted.contains(&DECODE) || wanted.contains(&DECODE_ROWS) {
        let measured = decode(&encoded, &batches)?;
        figures.extend(
            measured
                .into_iter()
                .filter(|figure| wanted.contains(&figure.name.as_str())),
        );
    }
    Ok(figures)
}

/// Real QUIC packets over loopback, both ways: data, acknowledgements of QUIC's and ours, handshake.
async fn bytes(encoded: &[Vec<u8>]) -> Result<Figure> {
    let dir = leftovers::directory()?;
    uplink::issue_identities(dir.path())?;
    let identity = Identity::load(&uplink::identity_dir(dir.path(), uplink::FEDERATOR))?;
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), &identity)?;
    let address = listener.local_addr()?.to_string();
    let batches = encoded.len() as u64;
    let acknowledge = tokio::spawn(async move {
        let session = listener.accept().await.context("no session")?;
        let (mut sender, mut receiver) = uplink::greet(&session).await?;
        while let Some(frame) = receiver.recv().await? {
            if frame.kind == Kind::HalfBatch {
                let (seq, _) = codec::split_batch(&frame)?;
                sender.send(&Ack { seq }, PATIENCE).await?;
                if seq == batches {
                    break;
                }
            }
        }
        // Until the dialler has read its totals and goes.
        session.closed().await;
        anyhow::Ok(())
    });
    let mut uplink = uplink::dial(&address, uplink::AGENT, dir.path()).await?;
    for (seq, bytes) in (1..).zip(encoded) {
        uplink.sender.send_batch(seq, bytes, PATIENCE).await?;
        // As an agent does: a batch is sent when it is there, not when the buffer is full.
        let ack: Ack = uplink.receiver.expect(PATIENCE).await?;
        ensure!(ack.seq == seq, "an acknowledgement out of order");
    }
    let totals = uplink.line.session.udp_totals();
    drop(uplink);
    acknowledge.await??;
    let datagrams = totals.datagrams_sent + totals.datagrams_received;
    let bytes = totals.bytes_sent + totals.bytes_received + datagrams * HEADERS;
    let halves = (encoded.len() * ROWS) as f64;
    let alone = encoded.iter().map(Vec::len).sum::<usize>() as f64 / halves;
    Ok(Figure::new(BYTES, bytes as f64 / halves, "bytes", Better::Lower).goal(24.0).note(format!(
        "QUIC, UDP and IP headers and acknowledgements both ways included, {datagrams} datagrams; the batches alone are \
         {alone:.1}; batches of {ROWS}"
    )))
}

/// Batch to columns, and to rows, decompression included, on one thread.
fn decode(encoded: &[Vec<u8>], batches: &[HalfBatch]) -> Result<[Figure; 2]> {
    let agent = AgentKey(1);
    let mut decoder = BatchDecoder::new();
    for (bytes, batch) in encoded.iter().zip(batches).take(2) {
        let decoded = decoder.decode_batch(bytes, agent)?;
        ensure!(
            decoded.halves.len() == batch.halves.len(),
            "the codec loses rows"
        );
    }
    let columns = fastest(encoded, |bytes| {
        black_box(decoder.decode(bytes)?);
        Ok(())
    })?;
    let rows = fastest(encoded, |bytes| {
        black_box(decoder.decode_batch(bytes, agent)?);
        Ok(())
    })?;
    let figure = |name, value, into| {
        Figure::new(name, value, "ns", Better::Lower).note(format!(
            "{into}; CPU time, decompression and checks included; {ROWS} halves a batch, best of {DECODE_RUNS} runs over \
             {BATCHES} batches with the same owners"
        ))
    };
    Ok([
        figure(DECODE, columns, "to columns").goal(25.0),
        figure(DECODE_ROWS, rows, "to rows, as the federator takes them"),
    ])
}

/// Nanoseconds of CPU time a half, in the fastest of some runs.
fn fastest(encoded: &[Vec<u8>], mut decode: impl FnMut(&[u8]) -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..DECODE_RUNS {
        let start = machine::own_cpu_time()?;
        for bytes in encoded {
            decode(black_box(bytes))?;
        }
        let took = machine::own_cpu_time()?.saturating_sub(start);
        best = best.min(took.as_secs_f64());
    }
    Ok(best * 1e9 / (encoded.len() * ROWS) as f64)
}
