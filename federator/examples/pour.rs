//! Pours halves into a federator over loopback QUIC, and says how many a second became durable and how many stored.
//!
//! `cargo run --release -p weft-federator --example pour -- [HALVES] [AGENTS] [ROWS OF A BATCH]`
//!
//! Half of the agents see client ends, half server ends; every connection is stitched. The federator runs in this process;
//! the agents' batches are encoded beforehand.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use weft_federator::run::Federator;
use weft_federator::testing::{World, batch_of, half, local};
use weft_wire::{HalfState, Role, batch};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|argument| argument.parse::<usize>());
    let halves = arguments.next().transpose()?.unwrap_or(1_000_000);
    let agents = arguments
        .next()
        .transpose()?
        .unwrap_or(4)
        .next_multiple_of(2);
    let rows = arguments.next().transpose()?.unwrap_or(10_000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(pour(halves, agents, rows))
}

async fn pour(halves: usize, agents: usize, rows: usize) -> anyhow::Result<()> {
    let folder =
        tempfile::tempdir_in(std::env::var("WEFT_POUR_DIR").unwrap_or_else(|_| ".".into()))?;
    let world = World::new(folder.path())?;
    let federator = Federator::start(world.config("fed-a", "127.0.0.1:0", &[])?).await?;
    let address = federator.address()?.to_string();
    let each = halves / agents;
    let mut connected = Vec::new();
    for index in 0..agents {
        let agent = world.agent("fed-a", &address, &format!("a{index}")).await?;
        let role = if index % 2 == 0 {
            Role::Client
        } else {
            Role::Server
        };
        let first = (index / 2 * each) as u32;
        let numbers: Vec<u32> = (first + 1..=first + each as u32).collect();
        let batches: Result<Vec<Vec<u8>>, _> = numbers
            .chunks(rows)
            .map(|numbers| {
                let halves = numbers
                    .iter()
                    .map(|n| half(agent.key, *n, role, HalfState::Closed))
                    .collect();
                batch::encode(&batch_of("load", halves))
            })
            .collect();
        connected.push((agent, batches?));
    }
    let bytes: usize = connected
        .iter()
        .flat_map(|(_, batches)| batches)
        .map(Vec::len)
        .sum();
    let (cpu, began) = (cpu_seconds(), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for (mut agent, batches) in connected {
        tasks.spawn(async move {
            for (index, batch) in batches.iter().enumerate() {
                agent.send_encoded(index as u64 + 1, batch).await?;
            }
            agent.acknowledged(batches.len() as u64).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let (durable, durable_cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let operator = world.operator(&address).await?;
    let question = weft_wire::query::Question::Connections {
        filter: Default::default(),
        limit: 1,
    };
    let answer = operator.ask(local(), question).await??;
    let (stored, stored_cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let count = (each * agents) as f64;
    println!(
        "{count} halves of {:.1} bytes, {} matched",
        bytes as f64 / count,
        answer.completeness.halves.matched
    );
    println!(
        "durable: {:.0} a second ({durable:.2} s, {durable_cpu:.2} s of CPU, both ends)",
        count / durable
    );
    println!(
        "stored:  {:.0} a second ({stored:.2} s, {stored_cpu:.2} s of CPU)",
        count / stored
    );
    let progress = federator.progress();
    println!(
        "store:   {} rows written in {} transactions, {:.2} s",
        progress.rows_written.load(Relaxed),
        progress.transactions.load(Relaxed),
        progress.store_us.load(Relaxed) as f64 / 1e6
    );
    federator.drain().await;
    Ok(())
}

/// CPU time of this process so far.
fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
    })
}
