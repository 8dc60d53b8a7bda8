//! Tokens, joining, renewal and revocation, with real federators and real QUIC.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use weft_federator::clock;
use weft_federator::config::Config;
use weft_federator::run::Federator;
use weft_federator::testing::{Agent, World, address, batch_of, half};
use weft_transport::pki::{self, Request, Validity};
use weft_transport::{
    CloseReason, Dialler, Expect, Identity, PeerRole, Refusal, Session, Token, TransportError, join,
};
use weft_wire::control::CloseCode;
use weft_wire::identity::{IdentityAnswer, IdentityRequest, Proof, Subject};
use weft_wire::{HalfState, Role};

const PATIENCE: Duration = Duration::from_secs(30);
/// In which a revocation must hold everywhere.
const TEN_SECONDS: Duration = Duration::from_secs(10);

struct Region {
    folder: tempfile::TempDir,
    world: World,
}

impl Region {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(folder.path()).unwrap();
        pki::init_region_ca(
            &folder.path().join("ca"),
            &folder.path().join("region-ca"),
            "r-fed-a",
            Validity::days_from(clock::now(), 10),
        )
        .unwrap();
        Self { folder, world }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, listen: &str, join: &str) -> String {
        let text = self.world.federator("fed-a", listen, &[]).unwrap();
        format!(
            "{text}\n[enrol]\nlisten = {join:?}\naddress = {join:?}\nca = {:?}\n",
            self.path("region-ca").display().to_string()
        )
    }

    async fn ask(
        &self,
        address: &str,
        role: PeerRole,
        request: &IdentityRequest,
    ) -> IdentityAnswer {
        let identity = self.world.identity("ops", role, "alice").unwrap();
        ask(&identity, address, request).await
    }

    async fn token(&self, address: &str, node: Option<&str>) -> Token {
        let request = IdentityRequest::CreateToken {
            role: "agent".into(),
            region: "r-fed-a".into(),
            node: node.map(str::to_owned),
            ttl_s: 600,
        };
        match self.ask(address, PeerRole::Admin, &request).await {
            IdentityAnswer::Token { token, .. } => token.0.parse().unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

async fn ask(identity: &Path, address: &str, request: &IdentityRequest) -> IdentityAnswer {
    let dialler = Dialler::new(&Identity::load(identity).unwrap()).unwrap();
    let session = dialler
        .dial(address, &Expect::any_federator())
        .await
        .unwrap();
    on(&session, request).await
}

async fn on(session: &Session, request: &IdentityRequest) -> IdentityAnswer {
    let (mut sender, mut receiver) = session.open_bi().await.unwrap();
    sender.send(request, PATIENCE).await.unwrap();
    sender.finish();
    receiver.expect(PATIENCE).await.unwrap()
}

async fn try_join(token: &Token, name: &str, request: &Request) -> IdentityAnswer {
    let question = IdentityRequest::Join {
        proof: Proof::Token(token.secret.clone()),
        name: name.into(),
        request: request.der().to_vec(),
    };
    join::ask(&token.address, token.fingerprint, &question)
        .await
        .unwrap()
}

async fn joined(token: &Token, name: &str, request: &Request, dir: &Path) -> Identity {
    match try_join(token, name, request).await {
        IdentityAnswer::Certificate { chain, roots, .. } => {
            request.install(dir, &chain, &roots).unwrap();
            Identity::load(dir).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

fn why(answer: IdentityAnswer) -> String {
    match answer {
        IdentityAnswer::Error(error) => format!("{}: {}", error.code, error.cause),
        other => panic!("{other:?}"),
    }
}

/// Two addresses that nobody takes.
fn addresses() -> [String; 2] {
    [(); 2].map(|()| address())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_reports_and_renews_on_one_session() {
    let region = Region::new();
    let [listen, join] = addresses();
    let config = Config::parse(&region.text(&listen, &join)).unwrap();
    let federator = Federator::start(config).await.unwrap();
    let token = region.token(&listen, None).await;
    let request = Request::new().unwrap();
    let identity = joined(&token, "node-1", &request, &region.path("node-1")).await;
    assert_eq!(
        identity.id().to_string(),
        "spiffe://test.example/region/r-fed-a/agent/node-1"
    );
    let day_us = 86_400_000_000;
    let left = identity.not_after().0 - clock::now().0;
    assert!((day_us / 2..=day_us).contains(&left), "{left}");

    let mut agent = Agent::connect(&identity, &listen, "node-1").await.unwrap();
    let next = Request::new().unwrap();
    let renewing = IdentityRequest::Renew {
        request: next.der().to_vec(),
    };
    let IdentityAnswer::Certificate { chain, roots, .. } = on(&agent.session, &renewing).await
    else {
        panic!("not renewed");
    };
    let serial = identity.serial();
    next.install(&region.path("node-1"), &chain, &roots)
        .unwrap();
    assert!(identity.reload().unwrap());
    assert_ne!(identity.serial(), serial);
    let soon = why(on(&agent.session, &renewing).await);
    assert!(soon.starts_with("E-LIMIT"), "{soon}");
    let rows = vec![half(agent.key, 1, Role::Client, HalfState::Closed)];
    agent.send(1, &batch_of("web", rows)).await.unwrap();
    agent.acknowledged(1).await.unwrap();

    // Another node does not get the name, and a token for the name does.
    let other = region.token(&listen, None).await;
    let taken = why(try_join(&other, "node-1", &Request::new().unwrap()).await);
    assert!(taken.contains("already"), "{taken}");
    let bound = region.token(&listen, Some("node-1")).await;
    joined(&bound, "", &Request::new().unwrap(), &region.path("again")).await;
    let elsewhere = IdentityRequest::CreateToken {
        role: "agent".into(),
        region: "elsewhere".into(),
        node: None,
        ttl_s: 60,
    };
    let refused = why(region.ask(&listen, PeerRole::Admin, &elsewhere).await);
    assert!(refused.contains("r-fed-a"), "{refused}");
    federator.drain().await;
}

fn start(config: &Path) -> std::process::Child {
    std::process::Command::new(env!("CARGO_BIN_EXE_weft-federator"))
        .args(["run", "--config"])
        .arg(config)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Asks until the federator answers.
async fn listening(identity: &Path, address: &str) {
    let dialler = Dialler::new(&Identity::load(identity).unwrap()).unwrap();
    for _ in 0..60 {
        let expect = Expect::any_federator();
        let dial = dialler.dial(address, &expect);
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(500), dial).await {
            return;
        }
    }
    panic!("nobody listens at {address}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_spent_also_after_kill_9() {
    let region = Region::new();
    let [listen, join] = addresses();
    let config = region.path("fed-a.toml");
    std::fs::write(&config, region.text(&listen, &join)).unwrap();
    let admin = region
        .world
        .identity("ops", PeerRole::Admin, "alice")
        .unwrap();
    let mut federator = start(&config);
    listening(&admin, &listen).await;
    let token = region.token(&listen, None).await;
    let request = Request::new().unwrap();
    joined(&token, "n1", &request, &region.path("n1")).await;
    federator.kill().unwrap();
    federator.wait().unwrap();
    let mut federator = start(&config);
    listening(&admin, &listen).await;
    let used = why(try_join(&token, "n2", &Request::new().unwrap()).await);
    assert!(used.contains("used before"), "{used}");
    // Whose answer was lost asks again, with the key that it had.
    joined(&token, "n1", &request, &region.path("n1-again")).await;
    let kept = std::fs::read_to_string(region.path("data-fed-a").join("tokens.json")).unwrap();
    assert!(!kept.contains(&token.secret.0));
    federator.kill().unwrap();
    federator.wait().unwrap();
}

/// Federators in a row, each a peer of its neighbours only.
async fn row(world: &World, names: &[&str]) -> (Vec<String>, Vec<Federator>) {
    let at: Vec<String> = names.iter().map(|_| address()).collect();
    let mut federators = Vec::new();
    for (index, name) in names.iter().enumerate() {
        federators.push(neighbour(world, names, &at, index, name).await);
    }
    (at, federators)
}

async fn neighbour(
    world: &World,
    names: &[&str],
    at: &[String],
    index: usize,
    name: &str,
) -> Federator {
    let peers: Vec<(&str, &str)> = [index.wrapping_sub(1), index + 1]
        .into_iter()
        .filter(|other| *other < names.len())
        .map(|other| (names[other], at[other].as_str()))
        .collect();
    let config = world.config(name, &at[index], &peers).unwrap();
    Federator::start(config).await.unwrap()
}

async fn revoke(world: &World, at: &str, subject: Subject, revoked: bool) {
    let admin = world.identity("ops", PeerRole::Admin, "alice").unwrap();
    let answer = ask(&admin, at, &IdentityRequest::Revoke { subject, revoked }).await;
    assert_eq!(answer, IdentityAnswer::Done);
}

/// How a federator takes this certificate now: `None` when it does.
async fn refusal(identity: &Identity, at: &str) -> Option<Refusal> {
    let dialler = Dialler::new(identity).unwrap();
    let reason = match dialler.dial(at, &Expect::any_federator()).await {
        // A client's handshake is done before the server has judged its certificate.
        Ok(session) => match session.open_bi().await {
            Ok(_) => tokio::time::timeout(Duration::from_millis(300), session.closed())
                .await
                .ok()?,
            Err(TransportError::Closed(reason)) => reason,
            Err(error) => panic!("{error}"),
        },
        Err(TransportError::Closed(reason)) => reason,
        Err(error) => panic!("{error}"),
    };
    match reason {
        CloseReason::Refused(refusal) => Some(refusal),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_reaches_all_ends_sessions_and_outlives_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let names = ["fed-a", "fed-b", "fed-c"];
    let (at, mut federators) = row(&world, &names).await;
    let thief = world.agent("fed-c", &at[2], "thief").await.unwrap();
    let honest = world.agent("fed-c", &at[2], "honest").await.unwrap();
    let dir = world.identity("r-fed-c", PeerRole::Agent, "thief").unwrap();
    let identity = Identity::load(&dir).unwrap();
    let name = Subject::Name(identity.id().to_string());
    // Until the row is linked, so that what is measured is the word's way along it.
    for (federator, links) in federators.iter().zip([1, 2, 1]) {
        let server = federator.server();
        let linked = async {
            while server
                .peers
                .all()
                .filter(|link| link.session().is_some())
                .count()
                < links
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, linked).await.unwrap();
    }
    revoke(&world, &at[0], name.clone(), true).await;
    // Said to the first of the row; the session is at the last, which the first does not know.
    let end = tokio::time::timeout(TEN_SECONDS, thief.session.closed())
        .await
        .expect("within ten seconds");
    assert_eq!(end.peer_code(), Some(CloseCode::Identity));
    for at in &at {
        assert_eq!(refusal(&identity, at).await, Some(Refusal::Revoked));
    }
    assert_eq!(honest.session.close_reason(), None);

    // Alone after a restart it still knows.
    for federator in federators.drain(..) {
        federator.drain().await;
    }
    let last = neighbour(&world, &names, &at, 2, "fed-c").await;
    assert_eq!(refusal(&identity, &at[2]).await, Some(Refusal::Revoked));
    revoke(&world, &at[2], name, false).await;
    assert_eq!(refusal(&identity, &at[2]).await, None);
    // One certificate, by its number; the name goes on with another.
    revoke(&world, &at[2], Subject::Serial(identity.serial()), true).await;
    assert_eq!(refusal(&identity, &at[2]).await, Some(Refusal::Revoked));
    std::fs::remove_dir_all(&dir).unwrap();
    let dir = world.identity("r-fed-c", PeerRole::Agent, "thief").unwrap();
    let another = Identity::load(&dir).unwrap();
    assert_eq!(refusal(&another, &at[2]).await, None);
    last.drain().await;
}
