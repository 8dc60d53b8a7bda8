//! A statement that wants more memory than there is ends alone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Child, Command, Stdio};

use weft_federator::testing::{World, address, batch_of, half, local};
use weft_wire::{HalfState, Role};

/// Ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Most memory that the process has had, in bytes.
fn peak(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    words[1].parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_string_ends_the_statement_and_not_the_federator() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let address = address();
    let config = folder.path().join("federator.toml");
    std::fs::write(&config, world.federator("fed-a", &address, &[]).unwrap()).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_weft-federator"))
        .args(["run", "--config"])
        .arg(&config)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let federator = Running(child);
    let mut agent = loop {
        match world.agent("fed-a", &address, "a1").await {
            Ok(agent) => break agent,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    };
    let halves = (1..=20)
        .map(|n| half(agent.key, n, Role::Client, HalfState::Closed))
        .collect();
    agent.send(1, &batch_of("web", halves)).await.unwrap();
    agent.acknowledged(1).await.unwrap();
    let operator = world.operator(&address).await.unwrap();
    let count = "SELECT count(*), min(client_workload) FROM connection";
    let before = operator.sql(local(), count).await.unwrap().unwrap();
    for statement in [
        "SELECT length(repeat('x', 2000000000))",
        "SELECT repeat('x', 1800000000) || 'y'",
    ] {
        let error = operator.sql(local(), statement).await.unwrap().unwrap_err();
        assert!(error.code.starts_with("E-SQL"), "{error:?}");
        assert!(
            peak(&federator.0) < 600 << 20,
            "{statement}: {}",
            peak(&federator.0)
        );
    }
    let after = operator.sql(local(), count).await.unwrap().unwrap();
    assert_eq!((before.rows, before.columns), (after.rows, after.columns));
}
