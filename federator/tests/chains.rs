//! Chains: two connections of one process, asked for by their ends.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use weft_federator::testing::{Operator, World, batch_of, half};
use weft_wire::query::{ChainLink, Confidence, MAX_CHAIN_HALVES, Question, Scope};
use weft_wire::{Half, HalfBatch, HalfId, HalfState, Owner, Process, Role};

async fn chains(operator: &Operator, halves: Vec<HalfId>) -> Vec<ChainLink> {
    let question = Question::Chains { halves };
    let answer = operator.ask(Scope::Mesh, question).await.unwrap().unwrap();
    answer.chains
}

/// What a proxy hands on, and what another process on its host has carried alike.
fn proxy(halves: [Half; 3]) -> HalfBatch {
    let [front, back, mut neighbour] = halves;
    neighbour.owner = 1;
    let mut batch = batch_of("proxy", vec![front, back, neighbour]);
    batch.owners.push(Owner {
        process: Some(Process {
            pid: 43,
            ..Process::default()
        }),
        ..Owner::default()
    });
    batch
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_takes_and_hands_on_is_one_way() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let (federator, address) = world.start("fed-a").await.unwrap();
    let mut agent = world.agent("fed-a", &address, "a1").await.unwrap();
    let closed = |number, role| half(agent.key, number, role, HalfState::Closed);
    let halves = [
        closed(1, Role::Server),
        closed(2, Role::Client),
        closed(3, Role::Client),
    ];
    let [front, back, neighbour] = halves.map(|half| half.id);
    let rival = closed(4, Role::Client);
    agent.send(1, &proxy(halves)).await.unwrap();
    agent.acknowledged(1).await.unwrap();

    let operator = world.operator(&address).await.unwrap();
    let links = chains(&operator, vec![front, back, neighbour]).await;
    assert_eq!(links.len(), 2, "{links:#?}");
    for (half, role, other) in [(front, Role::Server, back), (back, Role::Client, front)] {
        let link = links.iter().find(|link| link.half == half).unwrap();
        assert_eq!((link.role, link.pid), (role, Some(42)));
        assert_eq!(link.other.as_ref().map(|c| c.id), Some(other));
        assert_eq!(
            (link.evidence.as_str(), link.confidence),
            ("relayed-bytes", Some(Confidence::High))
        );
        assert_eq!(link.proxy.agent, "a1");
        assert!(link.checks.iter().all(|check| check.agrees));
        assert_eq!(link.checks.len(), 3);
    }

    // Another that would fit just as well: then nothing is chosen.
    agent
        .send(2, &batch_of("proxy", vec![rival]))
        .await
        .unwrap();
    agent.acknowledged(2).await.unwrap();
    let links = chains(&operator, vec![front]).await;
    assert_eq!(links.len(), 1);
    assert_eq!(
        (links[0].evidence.as_str(), links[0].fitting),
        ("ambiguous", 2)
    );
    assert_eq!((&links[0].other, links[0].confidence), (&None, None));

    let question = Question::Chains {
        halves: vec![front; MAX_CHAIN_HALVES + 1],
    };
    let refused = operator.ask(Scope::Mesh, question).await.unwrap();
    assert_eq!(refused.unwrap_err().code, "E-CHAINS");
    federator.drain().await;
}
