//! A federator killed with -9 at any moment loses nothing that it acknowledged and counts nothing twice.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use weft_federator::testing::{Agent, World, address, batch_of, half};
use weft_wire::{HalfState, Role};

/// Starts the program and waits until it listens.
fn start(config: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft-federator"))
        .args(["run", "--config"])
        .arg(config)
        .env("WEFT_LOG", "info")
        .env("NO_COLOR", "1")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    loop {
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("it ended before it listened: {said}"))
            .unwrap();
        said.push_str(&line);
        said.push('\n');
        if line.contains("listening") {
            break;
        }
    }
    // Somebody must read what it says, or it would wait.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

/// Sends everything above what is durable, a batch of ten a number, until the session ends or all is acknowledged.
async fn deliver(agent: &mut Agent, role: Role, last: u64) -> bool {
    for seq in agent.durable_seq + 1..=last {
        let numbers = (seq as u32 - 1) * 10 + 1..=seq as u32 * 10;
        let halves = numbers
            .map(|n| half(agent.key, n, role, HalfState::Closed))
            .collect();
        if agent.send(seq, &batch_of("load", halves)).await.is_err() {
            return false;
        }
    }
    agent.acknowledged(last).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let address = address();
    let config = folder.path().join("federator.toml");
    std::fs::write(&config, world.federator("fed-a", &address, &[]).unwrap()).unwrap();
    let mut acknowledged = [0, 0];
    // Killed while the journal is written, while the store is, between the two, and while it restores.
    for round in 0..6u64 {
        let mut federator = start(&config);
        let mut client = world.agent("fed-a", &address, "a1").await.unwrap();
        let mut server = world.agent("fed-a", &address, "a2").await.unwrap();
        for (agent, known) in [(&client, acknowledged[0]), (&server, acknowledged[1])] {
            assert!(
                agent.durable_seq >= known,
                "what was acknowledged is gone: {} < {known}",
                agent.durable_seq
            );
        }
        let last = (round + 1) * 40;
        let pause = std::time::Duration::from_millis([5, 150, 30, 400, 80, 15][round as usize]);
        let deliveries = async {
            tokio::join!(
                deliver(&mut client, Role::Client, last),
                deliver(&mut server, Role::Server, last)
            )
        };
        let _ = tokio::time::timeout(pause, deliveries).await;
        federator.kill().unwrap();
        federator.wait().unwrap();
        acknowledged = [
            client.acknowledged.max(acknowledged[0]),
            server.acknowledged.max(acknowledged[1]),
        ];
    }
    let mut federator = start(&config);
    let mut client = world.agent("fed-a", &address, "a1").await.unwrap();
    let mut server = world.agent("fed-a", &address, "a2").await.unwrap();
    assert!(deliver(&mut client, Role::Client, 240).await);
    assert!(deliver(&mut server, Role::Server, 240).await);
    let answer = world.connections(&address).await.unwrap();
    assert_eq!(answer.connections.len(), 2400);
    assert_eq!(answer.completeness.halves.matched, 4800);
    assert!(answer.completeness.halves.unmatched.is_empty());
    // An orderly end leaves the store complete.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(federator.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert!(federator.wait().unwrap().success());
}
