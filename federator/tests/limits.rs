//! What one agent's key is good for: spoiling that agent's data, and slowing nobody down but its holder. Over real sessions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use tempfile::TempDir;
use weft_federator::clock;
use weft_federator::config::Config;
use weft_federator::run::Federator;
use weft_federator::testing::{Agent, PATIENCE, World, batch_of, half, local};
use weft_transport::{Dialler, Expect, Identity, PeerRole, Session};
use weft_wire::control::{AgentHello, AgentStatus, AgentWelcome, CloseCode, PROTOCOL_VERSION};
use weft_wire::query::Question;
use weft_wire::{
    AgentInfo, AgentKey, Fingerprint, Half, HalfBatch, HalfId, HalfState, Owner, Role, Timestamp,
};

const DAY_US: i64 = 86_400_000_000;

struct Scene {
    world: World,
    federator: Federator,
    address: String,
    _folder: TempDir,
}

impl Scene {
    /// A federator with these limits.
    async fn new(limits: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(folder.path()).unwrap();
        let text = world.federator("fed-a", "127.0.0.1:0", &[]).unwrap();
        let config = Config::parse(&format!("{text}[limits]\n{limits}\n")).unwrap();
        let federator = Federator::start(config).await.unwrap();
        let address = federator.address().unwrap().to_string();
        Self {
            world,
            federator,
            address,
            _folder: folder,
        }
    }

    async fn agent(&self, name: &str) -> Agent {
        let agent = self.world.agent("fed-a", &self.address, name).await;
        agent.unwrap()
    }

    /// What `weft health` shows under this name.
    async fn counter(&self, name: &str) -> u64 {
        let operator = self.world.operator(&self.address).await.unwrap();
        let answer = operator.ask(local(), Question::Health).await.unwrap();
        answer.unwrap().health[0].counters[name]
    }

    /// A session of an agent that has not said anything, and its dialler.
    async fn session(&self, name: &str) -> (Session, Dialler) {
        let folder = self.world.identity("r-fed-a", PeerRole::Agent, name);
        let dialler = Dialler::new(&Identity::load(&folder.unwrap()).unwrap()).unwrap();
        let session = dialler.dial(&self.address, &Expect::any_federator()).await;
        (session.unwrap(), dialler)
    }
}

async fn end(session: &Session) -> Option<CloseCode> {
    let closed = tokio::time::timeout(PATIENCE, session.closed()).await;
    closed.expect("it was let go on").peer_code()
}

fn many(agent: AgentKey, from: u32, count: u32) -> HalfBatch {
    let half = |number| half(agent, number, Role::Client, HalfState::Open);
    batch_of("flood", (from..from + count).map(half).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_too_many_rows_waits_and_others_do_not() {
    let scene = Scene::new("agent_rows_per_s = 500").await;
    let mut thief = scene.agent("thief").await;
    let mut honest = scene.agent("honest").await;
    for seq in 0..13 {
        let batch = many(thief.key, seq * 1000, 1000);
        thief.send(u64::from(seq) + 1, &batch).await.unwrap();
    }
    let batch = many(honest.key, 0, 10);
    honest.send(1, &batch).await.unwrap();
    honest.acknowledged(1).await.unwrap();
    // It is slowed down, and not closed: what it sent comes in the end.
    thief.acknowledged(13).await.unwrap();
    assert!(scene.counter("agent_frames_slowed").await > 0);
    assert!(scene.counter("agent_slowed_ms").await > 0);
    scene.federator.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_debt_of_an_agent_outlives_its_session() {
    let scene = Scene::new("agent_frames_per_s = 10").await;
    let thief = scene.agent("thief").await;
    drop(thief);
    let mut slowed = 0;
    // A hello is as much as twenty frames, and of frames there are two hundred at once.
    for _ in 0..14 {
        let mut thief = scene.agent("thief").await;
        thief.report(&AgentStatus::default()).await.unwrap();
        thief.send(1, &many(thief.key, 0, 1)).await.unwrap();
        thief.acknowledged(1).await.unwrap();
        slowed = scene.counter("agent_frames_slowed").await;
    }
    assert!(slowed > 0);
    scene.federator.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_unpacks_to_much_counts_as_much() {
    let scene = Scene::new("agent_bytes_per_s = 1000000").await;
    let mut thief = scene.agent("thief").await;
    let owner = |number: usize| Owner {
        workload: format!("{number:04}{}", "x".repeat(4000)),
        ..Owner::default()
    };
    for seq in 1..=7 {
        let mut batch = HalfBatch {
            owners: (0..1000).map(owner).collect(),
            ..many(thief.key, seq * 1000, 1000)
        };
        for (half, owner) in batch.halves.iter_mut().zip(0..) {
            half.owner = owner;
        }
        let encoded = weft_wire::batch::encode(&batch).unwrap();
        assert!(encoded.len() < 100_000, "{}", encoded.len());
        thief.send_encoded(seq.into(), &encoded).await.unwrap();
    }
    thief.acknowledged(7).await.unwrap();
    assert!(scene.counter("agent_frames_slowed").await > 0);
    scene.federator.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_far_off_is_told_so() {
    let scene = Scene::new("").await;
    for off_us in [2 * DAY_US, -2 * DAY_US, i64::MIN / 2] {
        let (session, _dialler) = scene.session("lost").await;
        let (mut sender, _receiver) = session.open_bi().await.unwrap();
        let hello = hello("lost", Timestamp(clock::now().0.saturating_add(off_us)));
        sender.send(&hello, PATIENCE).await.unwrap();
        assert_eq!(end(&session).await, Some(CloseCode::Limit));
    }
    // An hour off is measured and corrected for.
    let (session, _dialler) = scene.session("late").await;
    let (mut sender, mut receiver) = session.open_bi().await.unwrap();
    let hour = Timestamp(clock::now().0 - 3_600_000_000);
    sender.send(&hello("late", hour), PATIENCE).await.unwrap();
    let _: AgentWelcome = receiver.expect(PATIENCE).await.unwrap();
    let status = AgentStatus {
        now: Timestamp(i64::MIN),
        ..AgentStatus::default()
    };
    sender.send(&status, PATIENCE).await.unwrap();
    assert_eq!(end(&session).await, Some(CloseCode::Limit));
    assert_eq!(scene.counter("clock_refusals").await, 4);
    scene.federator.drain().await;
}

fn hello(name: &str, now: Timestamp) -> AgentHello {
    AgentHello {
        version: PROTOCOL_VERSION,
        agent: AgentInfo {
            name: name.into(),
            ..AgentInfo::default()
        },
        now,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_from_the_future_is_refused_by_itself() {
    let scene = Scene::new("").await;
    let mut thief = scene.agent("thief").await;
    let mut batch = many(thief.key, 0, 2);
    batch.halves[1].seen_at = Timestamp(clock::now().0 + 2 * DAY_US);
    thief.send(1, &batch).await.unwrap();
    // An agent leaves out what is refused as malformed, and goes on.
    assert_eq!(end(&thief.session).await, Some(CloseCode::Malformed));
    let mut thief = scene.agent("thief").await;
    thief.send(2, &many(thief.key, 5, 2)).await.unwrap();
    thief.acknowledged(2).await.unwrap();
    scene.federator.drain().await;
}

/// The same addresses and cookies as somebody else's, other sequence numbers: those only the two ends and what stands between them
/// know.
fn claimed(thief: AgentKey, number: u32, role: Role) -> Half {
    let theirs = half(thief, number, role, HalfState::Closed);
    Half {
        id: HalfId::new(thief, 7, number.into()),
        fingerprint: Fingerprint::TcpIsn {
            client: number,
            server: !number,
        },
        ..theirs
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_claims_the_addresses_of_others_gets_none_of_their_connections() {
    const CONNECTIONS: u32 = 50;
    let scene = Scene::new("").await;
    let mut client = scene.agent("client").await;
    let mut server = scene.agent("server").await;
    let mut thief = scene.agent("thief").await;
    let claims = |role| (1..=CONNECTIONS).map(move |number| (number, role));
    let claims = claims(Role::Client).chain(claims(Role::Server));
    for (seq, (number, role)) in (1..).zip(claims) {
        let claim = claimed(
            thief.key,
            number + 1000 * u32::from(role == Role::Server),
            role,
        );
        thief
            .send(seq, &batch_of("thief", vec![claim]))
            .await
            .unwrap();
    }
    thief
        .acknowledged(u64::from(CONNECTIONS) * 2)
        .await
        .unwrap();
    for (agent, role) in [(&mut client, Role::Client), (&mut server, Role::Server)] {
        let key = agent.key;
        let half = |number| half(key, number, role, HalfState::Closed);
        let batch = batch_of("honest", (1..=CONNECTIONS).map(half).collect());
        agent.send(1, &batch).await.unwrap();
        agent.acknowledged(1).await.unwrap();
    }
    let found = scene.world.connections(&scene.address).await.unwrap();
    let whole = found
        .connections
        .iter()
        .filter(|connection| connection.client.is_some() && connection.server.is_some());
    let mut matched = 0;
    for connection in whole {
        let ends = [&connection.client, &connection.server];
        let ends = ends.map(|end| end.as_ref().unwrap().agent.clone());
        assert_eq!(ends, ["client", "server"]);
        matched += 1;
    }
    assert_eq!(matched, CONNECTIONS);
    scene.federator.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_say_nothing_keep_nobody_else_waiting() {
    let scene = Scene::new("").await;
    let folder = scene.world.identity("ops", PeerRole::Operator, "flood");
    let dialler = Dialler::new(&Identity::load(&folder.unwrap()).unwrap()).unwrap();
    let session = dialler.dial(&scene.address, &Expect::any_federator()).await;
    let session = session.unwrap();
    let mut streams = Vec::new();
    for _ in 0..weft_transport::limits::MAX_STREAMS {
        let (mut sender, receiver) = session.open_bi().await.unwrap();
        // Of a frame's header, half.
        sender.send_bytes(&[1, 0], PATIENCE).await.unwrap();
        streams.push((sender, receiver));
    }
    let over = tokio::time::timeout(Duration::from_millis(200), session.open_bi()).await;
    assert!(over.is_err(), "there are as many as there may be");
    let found = scene.world.connections(&scene.address).await.unwrap();
    assert!(found.connections.is_empty());
    scene.agent("node").await;
    scene.federator.drain().await;
}
