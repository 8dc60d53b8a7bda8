//! Every role tries every kind of request, on real sessions.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use weft_federator::clock;
use weft_federator::run::Federator;
use weft_federator::testing::World;
use weft_transport::pki::Request as SigningRequest;
use weft_transport::{
    Dialler, Expect, FrameReceiver, FrameSender, Identity, PeerRole, Session, TransportError,
};
use weft_wire::AgentInfo;
use weft_wire::cluster::ClusterBatch;
use weft_wire::codec;
use weft_wire::control::{AgentHello, AgentStatus, CloseCode, PROTOCOL_VERSION, PeerHello};
use weft_wire::federation::FederationRequest;
use weft_wire::identity::{Hidden, IdentityRequest, Proof, Subject};
use weft_wire::query::{DnsReport, Filter, Question, Report, ReportOrder, Request, Scope};

const PATIENCE: Duration = Duration::from_secs(30);
/// The name of everybody here; each role has a certificate for it.
const NAME: &str = "fed-b";
const ROLES: [PeerRole; 4] = [
    PeerRole::Agent,
    PeerRole::Federator,
    PeerRole::Operator,
    PeerRole::Admin,
];

/// A request as bytes, and who may make it: agent, federator, operator, admin.
type Kind = (&'static str, Vec<u8>, [bool; 4]);

fn frame<M: codec::Message>(message: &M) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::append(&mut bytes, message).unwrap();
    bytes
}

fn hello() -> Vec<u8> {
    frame(&AgentHello {
        version: PROTOCOL_VERSION,
        agent: AgentInfo {
            name: NAME.into(),
            ..AgentInfo::default()
        },
        now: clock::now(),
    })
}

fn question(what: Question) -> Vec<u8> {
    frame(&Request {
        version: PROTOCOL_VERSION,
        scope: Scope::Local { absent: Vec::new() },
        what,
    })
}

fn kinds() -> Vec<Kind> {
    let filter = Filter::default;
    let readers = [false, true, true, true];
    let agents = [true, false, false, false];
    let federators = [false, true, false, false];
    let admins = [false, false, false, true];
    let request = || SigningRequest::new().unwrap().der().to_vec();
    let peer = PeerHello {
        version: PROTOCOL_VERSION,
        name: NAME.into(),
        region: format!("r-{NAME}"),
        instance: 1,
        now: clock::now(),
    };
    let report = Question::Report {
        report: Report::Hairpins,
        filter: filter(),
        by: ReportOrder::Bytes,
        top: 1,
    };
    let token = IdentityRequest::CreateToken {
        role: "agent".into(),
        region: "r-fed-a".into(),
        node: None,
        ttl_s: 60,
    };
    let join = IdentityRequest::Join {
        proof: Proof::Token(Hidden("x".into())),
        name: String::new(),
        request: request(),
    };
    let sql = Question::Sql {
        text: "SELECT 1".into(),
        filter: filter(),
        limit: 1,
    };
    let subject = Subject::Serial("ab".into());
    vec![
        ("report", hello(), agents),
        (
            "connections",
            question(Question::Connections {
                filter: filter(),
                limit: 1,
            }),
            readers,
        ),
        (
            "explain",
            question(Question::Explain {
                id_prefix: "abcd".into(),
            }),
            readers,
        ),
        ("report of connections", question(report), readers),
        ("sql", question(sql), readers),
        ("health", question(Question::Health), readers),
        (
            "health since",
            question(Question::HealthSince { window_s: 60 }),
            readers,
        ),
        (
            "chains",
            question(Question::Chains { halves: Vec::new() }),
            readers,
        ),
        (
            "dns",
            question(Question::Dns {
                report: DnsReport::Top,
                filter: filter(),
                top: 1,
            }),
            readers,
        ),
        (
            "lookups",
            question(Question::Lookups {
                filter: filter(),
                limit: 1,
            }),
            readers,
        ),
        ("exchange", frame(&peer), federators),
        (
            "share",
            frame(&IdentityRequest::Share(Vec::new())),
            federators,
        ),
        (
            "renew",
            frame(&IdentityRequest::Renew { request: request() }),
            agents,
        ),
        ("create a token", frame(&token), admins),
        (
            "revoke",
            frame(&IdentityRequest::Revoke {
                subject,
                revoked: false,
            }),
            admins,
        ),
        (
            "list revocations",
            frame(&IdentityRequest::Revoked),
            [false, false, true, true],
        ),
        ("join", frame(&join), [false; 4]),
        (
            "list federators",
            frame(&FederationRequest::Federators),
            readers,
        ),
        ("one federator", frame(&FederationRequest::Own), readers),
        (
            "drain",
            frame(&FederationRequest::Drain {
                federator: "fed-a".into(),
                draining: false,
            }),
            admins,
        ),
    ]
}

async fn say(session: &Session, bytes: &[u8]) -> (FrameSender, Result<bool, TransportError>) {
    let (mut sender, mut receiver): (FrameSender, FrameReceiver) = session.open_bi().await.unwrap();
    let said = sender.send_bytes(bytes, PATIENCE).await;
    let answered = match said {
        Ok(()) => receiver
            .recv_within(PATIENCE)
            .await
            .map(|frame| frame.is_some()),
        Err(error) => Err(error),
    };
    (sender, answered)
}

/// Whether the request is answered. If not, the session must end with a code that says so.
async fn answered(session: &Session, bytes: &[u8], what: &str) -> bool {
    let (_sender, answered) = say(session, bytes).await;
    if matches!(answered, Ok(true)) {
        return true;
    }
    let end = tokio::time::timeout(PATIENCE, session.closed())
        .await
        .unwrap_or_else(|_| panic!("{what}: neither answered nor refused"));
    let code = end.peer_code();
    assert!(
        matches!(code, Some(CloseCode::Role | CloseCode::Unexpected)),
        "{what}: {end:?}"
    );
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_tries_every_request() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let config = world
        .config("fed-a", "127.0.0.1:0", &[(NAME, "127.0.0.1:9")])
        .unwrap();
    let federator = Federator::start(config).await.unwrap();
    let address = federator.address().unwrap().to_string();
    let expect = Expect::federator("fed-a");
    for (index, role) in ROLES.into_iter().enumerate() {
        let identity = world.identity(&format!("r-{NAME}"), role, NAME).unwrap();
        let dialler = Dialler::new(&Identity::load(&identity).unwrap()).unwrap();
        for (kind, bytes, allowed) in kinds() {
            let what = format!("{role}, {kind}");
            let session = dialler.dial(&address, &expect).await.unwrap();
            let first = answered(&session, &bytes, &what).await;
            let mut later = false;
            if role == PeerRole::Agent {
                // An agent's session begins with its hello; the rest comes beside it.
                let session = dialler.dial(&address, &expect).await.unwrap();
                let (_kept, welcomed) = say(&session, &hello()).await;
                assert!(matches!(welcomed, Ok(true)), "{what}: {welcomed:?}");
                later = answered(&session, &bytes, &what).await;
            }
            assert_eq!(first || later, allowed[index], "{what}");
        }
    }
    federator.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_of_its_own_cluster_only() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let (federator, address) = world.start("fed-a").await.unwrap();
    let mut agent = world.agent("fed-a", &address, "node").await.unwrap();
    let own = ClusterBatch::default();
    let foreign = ClusterBatch {
        cluster: "another".into(),
        ..ClusterBatch::default()
    };
    agent.tell(&own).await.unwrap();
    agent.report(&AgentStatus::default()).await.unwrap();
    agent.tell(&foreign).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, agent.session.closed());
    let end = end.await.expect("it was let tell");
    assert_eq!(end.peer_code(), Some(CloseCode::Identity), "{end:?}");
    federator.drain().await;
}
