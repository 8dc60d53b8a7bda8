//! Real QUIC on loopback: what is wrong is answered with the right code, counted, and harms nobody else.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use weft_transport::pki::{self, Validity};
use weft_transport::{
    CloseReason, Dialler, Expect, Fault, FrameReceiver, FrameSender, Identity, Limits, Listener,
    PeerRole, Refusal, Session, SpiffeId, TransportError,
};
use weft_wire::control::{AgentHello, AgentWelcome, CloseCode, PROTOCOL_VERSION};
use weft_wire::frame::{self, Kind};
use weft_wire::{AgentInfo, Timestamp};

const DOMAIN: &str = "weft.test";
/// Long enough for the slowest machine; no test waits so long when it passes.
const PATIENCE: Duration = Duration::from_secs(30);

fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Timestamp(since.as_micros() as i64)
}

struct Pki {
    dir: TempDir,
}

impl Pki {
    fn new() -> Self {
        Self::of(DOMAIN)
    }

    fn of(domain: &str) -> Self {
        let pki = Self {
            dir: TempDir::new().unwrap(),
        };
        pki::init_ca(&pki.path("ca"), domain, Validity::days_from(now(), 10)).unwrap();
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, role: PeerRole, name: &str) -> Identity {
        self.issue_with(DOMAIN, role, name, Validity::days_from(now(), 5))
    }

    fn issue_with(&self, domain: &str, role: PeerRole, name: &str, validity: Validity) -> Identity {
        let id = SpiffeId::new(domain, "region-1", role, name).unwrap();
        let out = self.path(&format!("{role}-{name}"));
        pki::issue(&self.path("ca"), &out, &id, validity).unwrap();
        Identity::load(&out).unwrap()
    }
}

fn expired() -> Validity {
    let day_us = 86_400_000_000;
    Validity {
        not_before: Timestamp(now().0 - 2 * day_us),
        not_after: Timestamp(now().0 - day_us),
    }
}

fn hello(version: u16, name: &str) -> AgentHello {
    AgentHello {
        version,
        agent: AgentInfo {
            name: name.into(),
            ..AgentInfo::default()
        },
        now: now(),
    }
}

fn bind(identity: &Identity) -> (Listener, String) {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), identity).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Does what a federator does with an agent's session: hello, name, welcome, then echoes the numbers of batches as
/// acknowledgements.
async fn serve(session: Session) -> Result<(), TransportError> {
    session.require_role(&[PeerRole::Agent])?;
    let (mut send, mut receive) = session.accept_bi().await?;
    let hello: AgentHello = receive.expect(PATIENCE).await?;
    session.require_name(&hello.agent.name)?;
    let welcome = AgentWelcome {
        version: PROTOCOL_VERSION,
        federator: "fed-a".into(),
        durable_seq: 0,
        now: now(),
    };
    send.send(&welcome, PATIENCE).await?;
    while let Some(frame) = receive.recv().await? {
        let (seq, _) =
            weft_wire::codec::split_batch(&frame).map_err(|error| session.undecodable(&error))?;
        send.send(&weft_wire::control::Ack { seq }, PATIENCE)
            .await?;
    }
    Ok(())
}

/// A listener that serves agents until the test ends.
struct World {
    pki: Pki,
    listener: std::sync::Arc<Listener>,
    address: String,
}

impl World {
    fn new() -> Self {
        let pki = Pki::new();
        let (listener, address) = bind(&pki.issue(PeerRole::Federator, "fed-a"));
        let listener = std::sync::Arc::new(listener);
        let accepting = listener.clone();
        tokio::spawn(async move {
            while let Some(session) = accepting.accept().await {
                tokio::spawn(serve(session));
            }
        });
        Self {
            pki,
            listener,
            address,
        }
    }

    async fn dial(&self, identity: &Identity) -> Session {
        Dialler::new(identity)
            .unwrap()
            .dial(&self.address, &Expect::federator("fed-a"))
            .await
            .unwrap()
    }

    async fn closed_here(&self, code: CloseCode) -> u64 {
        let counts = self.listener.counters().read().closed_here;
        counts
            .into_iter()
            .find(|(found, _)| *found == code)
            .map_or(0, |(_, count)| count)
    }
}

/// An agent whose session must survive what others do.
struct Healthy {
    send: FrameSender,
    receive: FrameReceiver,
    seq: u64,
}

impl Healthy {
    async fn connect(world: &World) -> Self {
        let identity = world.pki.issue(PeerRole::Agent, "healthy");
        let (mut send, mut receive) = world.dial(&identity).await.open_bi().await.unwrap();
        send.send(&hello(PROTOCOL_VERSION, "healthy"), PATIENCE)
            .await
            .unwrap();
        let welcome: AgentWelcome = receive.expect(PATIENCE).await.unwrap();
        assert_eq!(welcome.federator, "fed-a");
        Self {
            send,
            receive,
            seq: 0,
        }
    }

    async fn still_works(&mut self) {
        self.seq += 1;
        self.send
            .send_batch(self.seq, b"rows", PATIENCE)
            .await
            .unwrap();
        let ack: weft_wire::control::Ack = self.receive.expect(PATIENCE).await.unwrap();
        assert_eq!(ack.seq, self.seq);
    }
}

async fn peer_code(session: &Session) -> Option<CloseCode> {
    tokio::time::timeout(PATIENCE, session.closed())
        .await
        .unwrap()
        .peer_code()
}

/// A session sends these bytes; it must be closed with this code, and a healthy one must not notice.
async fn misbehave(bytes: &[u8], expected: CloseCode) {
    let world = World::new();
    let mut healthy = Healthy::connect(&world).await;
    healthy.still_works().await;
    let session = world.dial(&world.pki.issue(PeerRole::Agent, "bad")).await;
    let (mut send, mut receive) = session.open_bi().await.unwrap();
    send.send_bytes(bytes, PATIENCE).await.unwrap();
    assert_eq!(peer_code(&session).await, Some(expected));
    let error = receive.recv().await.unwrap_err();
    assert!(
        matches!(&error, TransportError::Closed(CloseReason::Peer { code, .. }) if *code == Some(expected)),
        "{error}"
    );
    assert_eq!(world.closed_here(expected).await, 1);
    healthy.still_works().await;
}

fn hello_bytes(version: u16, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    weft_wire::codec::append(&mut bytes, &hello(version, name)).unwrap();
    bytes
}

#[tokio::test]
async fn another_version_is_told_so_whatever_follows() {
    // A later version's hello may look like anything after its version.
    let mut bytes = Vec::new();
    frame::append(
        &mut bytes,
        Kind::AgentHello,
        &[&(PROTOCOL_VERSION + 1).to_le_bytes(), b"\xff\xff\xff\xff"],
    )
    .unwrap();
    misbehave(&bytes, CloseCode::Version).await;
}

#[tokio::test]
async fn an_oversized_frame_is_told_so() {
    let mut bytes = hello_bytes(PROTOCOL_VERSION, "bad");
    bytes.extend_from_slice(&(Kind::HalfBatch.limit() as u32 + 2).to_le_bytes());
    bytes.push(Kind::HalfBatch as u8);
    misbehave(&bytes, CloseCode::Oversized).await;
}

#[tokio::test]
async fn a_malformed_frame_is_told_so() {
    let mut bytes = hello_bytes(PROTOCOL_VERSION, "bad");
    bytes.extend_from_slice(&[3, 0, 0, 0, 99, 0, 0]);
    misbehave(&bytes, CloseCode::Malformed).await;
}

#[tokio::test]
async fn a_malformed_message_is_told_so() {
    let mut bytes = Vec::new();
    frame::append(
        &mut bytes,
        Kind::AgentHello,
        &[&PROTOCOL_VERSION.to_le_bytes(), &[0xff; 40]],
    )
    .unwrap();
    misbehave(&bytes, CloseCode::Malformed).await;
}

#[tokio::test]
async fn another_kind_than_expected_is_told_so() {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, Kind::Ack, &[&[1]]).unwrap();
    misbehave(&bytes, CloseCode::Unexpected).await;
}

#[tokio::test]
async fn a_claim_to_be_another_agent_is_told_so() {
    misbehave(
        &hello_bytes(PROTOCOL_VERSION, "healthy"),
        CloseCode::Identity,
    )
    .await;
}

#[tokio::test]
async fn a_stream_that_ends_within_a_frame_is_malformed() {
    let world = World::new();
    let session = world.dial(&world.pki.issue(PeerRole::Agent, "bad")).await;
    let (mut send, _receive) = session.open_bi().await.unwrap();
    send.send_bytes(&hello_bytes(PROTOCOL_VERSION, "bad")[..20], PATIENCE)
        .await
        .unwrap();
    send.finish();
    assert_eq!(peer_code(&session).await, Some(CloseCode::Malformed));
}

#[tokio::test]
async fn a_role_may_do_only_what_its_role_does() {
    let world = World::new();
    let mut healthy = Healthy::connect(&world).await;
    let session = world.dial(&world.pki.issue(PeerRole::Operator, "me")).await;
    assert_eq!(peer_code(&session).await, Some(CloseCode::Role));
    assert_eq!(world.closed_here(CloseCode::Role).await, 1);
    healthy.still_works().await;
}

/// The listener must refuse this identity with this reason, tell it so, and count it.
async fn refused(world: &World, identity: &Identity, refusal: Refusal) {
    let mut healthy = Healthy::connect(world).await;
    // A client's handshake is done before the server has judged its certificate: the refusal shows after, or at once.
    let reason = match Dialler::new(identity)
        .unwrap()
        .dial(&world.address, &Expect::any_federator())
        .await
    {
        Ok(session) => tokio::time::timeout(PATIENCE, session.closed())
            .await
            .unwrap(),
        Err(TransportError::Closed(reason)) => reason,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(reason, CloseReason::Refused(refusal.clone()));
    assert_eq!(reason.fault(), Fault::Incompatible);
    assert_eq!(
        world.listener.counters().read().refused,
        [(Refusal::NAMES[refusal.index()], 1)]
    );
    healthy.still_works().await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let world = World::new();
    let identity = world
        .pki
        .issue_with(DOMAIN, PeerRole::Agent, "old", expired());
    assert_eq!(identity.days_left(now()), -2);
    refused(&world, &identity, Refusal::Expired).await;
}

/// Presents `theirs` to a listener whose CA it knows: it trusts the listener, and is not trusted.
fn trusting(world: &World, theirs: &Pki, role: PeerRole, name: &str, domain: &str) -> Identity {
    theirs.issue_with(domain, role, name, Validity::days_from(now(), 5));
    let dir = theirs.path(&format!("{role}-{name}"));
    std::fs::copy(world.pki.path("ca").join("ca.pem"), dir.join("ca.pem")).unwrap();
    Identity::load(&dir).unwrap()
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let world = World::new();
    let other = Pki::new();
    let identity = trusting(&world, &other, PeerRole::Agent, "stranger", DOMAIN);
    refused(&world, &identity, Refusal::UnknownCa).await;
}

#[tokio::test]
async fn a_listener_of_another_ca_is_not_trusted() {
    let world = World::new();
    let other = Pki::new();
    let dialler = Dialler::new(&other.issue(PeerRole::Agent, "careful")).unwrap();
    let error = dialler
        .dial(&world.address, &Expect::any_federator())
        .await
        .unwrap_err();
    assert_eq!(
        error,
        TransportError::Closed(CloseReason::Refused(Refusal::UnknownCa))
    );
    assert_eq!(dialler.counters().read().refused, [("unknown-ca", 1)]);
}

#[tokio::test]
async fn a_federator_of_another_name_or_role_is_left() {
    let world = World::new();
    let dialler = Dialler::new(&world.pki.issue(PeerRole::Agent, "careful")).unwrap();
    let error = dialler
        .dial(&world.address, &Expect::federator("fed-b"))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            TransportError::PeerMisbehaved {
                code: CloseCode::Identity,
                ..
            }
        ),
        "{error}"
    );
    let elsewhere = Expect::federator("fed-a").of_region("region-2");
    let error = dialler.dial(&world.address, &elsewhere).await.unwrap_err();
    assert!(
        matches!(
            error,
            TransportError::PeerMisbehaved {
                code: CloseCode::Identity,
                ..
            }
        ),
        "{error}"
    );
    let operator = Expect {
        role: PeerRole::Operator,
        name: None,
        region: None,
    };
    let error = dialler.dial(&world.address, &operator).await.unwrap_err();
    assert!(
        matches!(
            error,
            TransportError::PeerMisbehaved {
                code: CloseCode::Role,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_agents_certificate_cannot_serve() {
    let pki = Pki::new();
    let (_listener, address) = bind(&pki.issue(PeerRole::Agent, "impostor"));
    let dialler = Dialler::new(&pki.issue(PeerRole::Agent, "victim")).unwrap();
    let error = dialler
        .dial(&address, &Expect::any_federator())
        .await
        .unwrap_err();
    assert!(
        matches!(error, TransportError::Closed(CloseReason::Refused(_))),
        "{error}"
    );
}

#[tokio::test]
async fn a_session_ends_with_the_peers_certificate() {
    let world = World::new();
    let validity = Validity {
        not_after: Timestamp(now().0 + 3_000_000),
        ..Validity::days_from(now(), 1)
    };
    let identity = world
        .pki
        .issue_with(DOMAIN, PeerRole::Agent, "short", validity);
    let dialler = Dialler::new(&identity).unwrap();
    let session = dialler
        .dial(&world.address, &Expect::any_federator())
        .await
        .unwrap();
    let (_send, _receive) = session.open_bi().await.unwrap();
    assert_eq!(peer_code(&session).await, Some(CloseCode::Identity));
    assert!(now() >= session_end(validity));
}

/// Certificates carry whole seconds.
fn session_end(validity: Validity) -> Timestamp {
    Timestamp(validity.not_after.0 / 1_000_000 * 1_000_000)
}

/// Begins a handshake from an address that never answers: only the first datagram arrives.
async fn forged_dial(identity: &Identity, listener: &str) -> tokio::task::JoinHandle<()> {
    let relay = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = relay.local_addr().unwrap().to_string();
    let dialler = Dialler::new(identity).unwrap();
    let dial = tokio::spawn(async move {
        let _ = dialler.dial(&address, &Expect::any_federator()).await;
    });
    let mut bytes = vec![0; 2048];
    let length = relay.recv(&mut bytes).await.unwrap();
    relay.send_to(&bytes[..length], listener).await.unwrap();
    dial
}

#[tokio::test]
async fn forged_addresses_cannot_fill_the_room_for_handshakes() {
    let pki = Pki::new();
    let identity = pki.issue(PeerRole::Federator, "fed-a");
    let limits = Limits {
        sessions: 64,
        handshakes: 8,
        ..Limits::default()
    };
    let listener = Listener::bind_with((Ipv4Addr::LOCALHOST, 0).into(), &identity, limits).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let agent = pki.issue(PeerRole::Agent, "honest");
    let mut forged = Vec::new();
    for _ in 0..24 {
        forged.push(forged_dial(&agent, &address).await);
    }
    let dialler = Dialler::new(&agent).unwrap();
    let session = dialler
        .dial(&address, &Expect::any_federator())
        .await
        .unwrap();
    let accepted = tokio::time::timeout(PATIENCE, listener.accept())
        .await
        .unwrap();
    assert!(accepted.is_some());
    let counts = listener.counters().read();
    assert!(counts.retried > 0, "{counts:?}");
    assert_eq!(counts.refused_full, 0, "{counts:?}");
    drop(session);
    for dial in forged {
        dial.abort();
    }
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let pki = Pki::new();
    let dialler = Dialler::new(&pki.issue(PeerRole::Agent, "alone")).unwrap();
    let error = dialler
        .dial("host.invalid:1", &Expect::any_federator())
        .await
        .unwrap_err();
    assert_eq!(error.fault(), Fault::Network);
}

#[tokio::test]
async fn sessions_over_the_limit_are_refused_and_room_comes_back() {
    let pki = Pki::new();
    let identity = pki.issue(PeerRole::Federator, "fed-a");
    let limits = Limits {
        sessions: 1,
        handshakes: 8,
        ..Limits::default()
    };
    let listener = Listener::bind_with((Ipv4Addr::LOCALHOST, 0).into(), &identity, limits).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dialler = Dialler::new(&pki.issue(PeerRole::Agent, "many")).unwrap();
    let first = dialler
        .dial(&address, &Expect::any_federator())
        .await
        .unwrap();
    let accepted = listener.accept().await.unwrap();
    let error = dialler
        .dial(&address, &Expect::any_federator())
        .await
        .unwrap_err();
    assert!(
        matches!(error, TransportError::Unreachable { .. }),
        "{error}"
    );
    assert_eq!(listener.counters().read().refused_full, 1);
    drop(first);
    assert_eq!(peer_code(&accepted).await, Some(CloseCode::Done));
    // The permit comes back just after the session's end is seen.
    let again = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Ok(session) = dialler.dial(&address, &Expect::any_federator()).await {
                return session;
            }
        }
    });
    assert_eq!(again.await.unwrap().peer().name(), "fed-a");
}

#[test]
fn a_key_is_private_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let pki = Pki::new();
    pki.issue(PeerRole::Agent, "node");
    for key in [
        pki.path("ca").join("ca-key.pem"),
        pki.path("agent-node").join("key.pem"),
    ] {
        assert_eq!(
            std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    let before = std::fs::read(pki.path("agent-node").join("key.pem")).unwrap();
    let id = SpiffeId::new(DOMAIN, "r", PeerRole::Agent, "node").unwrap();
    let again = |dir: &Path| pki::issue(&pki.path("ca"), dir, &id, Validity::days_from(now(), 1));
    let error = again(&pki.path("agent-node")).unwrap_err();
    assert!(
        matches!(error, weft_transport::IdentityError::Exists(_)),
        "{error}"
    );
    assert_eq!(
        std::fs::read(pki.path("agent-node").join("key.pem")).unwrap(),
        before
    );
    std::fs::set_permissions(
        pki.path("agent-node").join("key.pem"),
        std::fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    let error = Identity::load(&pki.path("agent-node")).unwrap_err();
    assert!(error.to_string().contains("640"), "{error}");
}

#[test]
fn a_ca_issues_only_for_its_own_domain() {
    let pki = Pki::of("other.test");
    assert_eq!(pki::ca_domain(&pki.path("ca")).unwrap(), "other.test");
    let id = SpiffeId::new(DOMAIN, "r", PeerRole::Agent, "node").unwrap();
    let error = pki::issue(
        &pki.path("ca"),
        &pki.path("out"),
        &id,
        Validity::days_from(now(), 1),
    )
    .unwrap_err();
    assert!(
        matches!(error, weft_transport::IdentityError::Domain { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_killed_listener_that_comes_back_ends_the_sessions_it_forgot() {
    let pki = Pki::new();
    let identity = pki.issue(PeerRole::Federator, "fed-a");
    let dying = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let first = identity.clone();
    let (told, bound) = tokio::sync::oneshot::channel();
    dying.spawn(async move {
        let (listener, address) = bind(&first);
        told.send(address).unwrap();
        while let Some(session) = listener.accept().await {
            tokio::spawn(serve(session));
        }
    });
    let address = bound.await.unwrap();
    let agent = Dialler::new(&pki.issue(PeerRole::Agent, "a1")).unwrap();
    let session = agent
        .dial(&address, &Expect::federator("fed-a"))
        .await
        .unwrap();
    // Both ends have confirmed the handshake: packets before that are never answered by a reset (RFC 9000, 10.3).
    let (mut send, mut receive) = session.open_bi().await.unwrap();
    send.send(&hello(PROTOCOL_VERSION, "a1"), PATIENCE)
        .await
        .unwrap();
    let _: AgentWelcome = receive.expect(PATIENCE).await.unwrap();
    // As by kill -9: nobody says goodbye, the address is free again.
    tokio::task::spawn_blocking(move || dying.shutdown_timeout(PATIENCE))
        .await
        .unwrap();
    let _listener = Listener::bind(address.parse().unwrap(), &identity).unwrap();
    let reason = tokio::time::timeout(PATIENCE, session.closed())
        .await
        .unwrap();
    assert!(matches!(reason, CloseReason::Lost(_)), "{reason:?}");
}
