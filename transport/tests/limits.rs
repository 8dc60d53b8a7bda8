//! What one peer can take: sessions, memory of what it does not read, sessions that it leaves half open, datagrams that
//! somebody sends again. Whoever is honest goes on.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::net::UdpSocket;
use weft_transport::pki::{self, Validity};
use weft_transport::{
    CloseReason, Dialler, Expect, FrameReceiver, FrameSender, Identity, Limits, Listener, PeerRole,
    Session, SpiffeId, TransportError,
};
use weft_wire::Timestamp;
use weft_wire::control::{Ack, CloseCode};

const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    dir: TempDir,
    listener: Arc<Listener>,
    address: String,
}

impl World {
    fn new(limits: Limits) -> Self {
        let dir = TempDir::new().unwrap();
        pki::init_ca(&dir.path().join("ca"), "weft.test", days()).unwrap();
        let fed = issue(&dir, PeerRole::Federator, "fed");
        let listener = Listener::bind_with((Ipv4Addr::LOCALHOST, 0).into(), &fed, limits).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self {
            dir,
            listener: Arc::new(listener),
            address,
        }
    }

    /// Answers what everybody says with the same.
    fn echoing(self) -> Self {
        let listener = self.listener.clone();
        tokio::spawn(async move {
            while let Some(session) = listener.accept().await {
                tokio::spawn(echo(session));
            }
        });
        self
    }

    fn dialler(&self, name: &str) -> Dialler {
        Dialler::new(&issue(&self.dir, PeerRole::Agent, name)).unwrap()
    }

    async fn closed_here(&self, code: CloseCode) -> u64 {
        let counts = self.listener.counters().read().closed_here;
        let found = counts.into_iter().find(|(found, _)| *found == code);
        found.map_or(0, |(_, count)| count)
    }
}

fn days() -> Validity {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Validity::days_from(Timestamp(since.as_micros() as i64), 5)
}

fn issue(dir: &TempDir, role: PeerRole, name: &str) -> Identity {
    let id = SpiffeId::new("weft.test", "r", role, name).unwrap();
    let out = dir.path().join(name);
    pki::issue(&dir.path().join("ca"), &out, &id, days()).unwrap();
    Identity::load(&out).unwrap()
}

async fn echo(session: Session) -> Result<(), TransportError> {
    let (mut sender, mut receiver) = session.accept_bi().await?;
    while let Some(frame) = receiver.recv().await? {
        let ack: Ack = session.decode(&frame)?;
        sender.send(&ack, PATIENCE).await?;
    }
    Ok(())
}

async fn dial(dialler: &Dialler, address: &str) -> Session {
    dialler
        .dial(address, &Expect::federator("fed"))
        .await
        .unwrap()
}

async fn says(sender: &mut FrameSender, receiver: &mut FrameReceiver, seq: u64) {
    sender.send(&Ack { seq }, PATIENCE).await.unwrap();
    let heard: Ack = receiver.expect(PATIENCE).await.unwrap();
    assert_eq!(heard.seq, seq);
}

async fn end(session: &Session) -> CloseReason {
    tokio::time::timeout(PATIENCE, session.closed())
        .await
        .unwrap()
}

#[tokio::test]
async fn one_name_cannot_take_the_sessions_of_all() {
    let world = World::new(Limits::default()).echoing();
    let thief = world.dialler("thief");
    let mut held = Vec::new();
    for _ in 0..Limits::default().sessions_of_one {
        let session = dial(&thief, &world.address).await;
        let (mut sender, mut receiver) = session.open_bi().await.unwrap();
        says(&mut sender, &mut receiver, 1).await;
        held.push((session, sender, receiver));
    }
    let over = dial(&thief, &world.address).await;
    assert_eq!(end(&over).await.peer_code(), Some(CloseCode::Limit));
    assert_eq!(world.closed_here(CloseCode::Limit).await, 1);
    let honest = dial(&world.dialler("honest"), &world.address).await;
    let (mut sender, mut receiver) = honest.open_bi().await.unwrap();
    says(&mut sender, &mut receiver, 1).await;
    // Room comes back.
    let (session, ..) = held.pop().unwrap();
    session.close(CloseCode::Done, "");
    let again = tokio::time::timeout(PATIENCE, async {
        loop {
            let session = dial(&thief, &world.address).await;
            let (mut sender, mut receiver) = session.open_bi().await.unwrap();
            let said = sender.send(&Ack { seq: 1 }, PATIENCE).await;
            if said.is_ok() && receiver.expect::<Ack>(PATIENCE).await.is_ok() {
                return;
            }
        }
    });
    again.await.unwrap();
}

#[tokio::test]
async fn who_does_not_read_is_given_up_and_others_go_on() {
    let world = World::new(Limits::default());
    let slow = dial(&world.dialler("slow"), &world.address).await;
    let accepted = world.listener.accept().await.unwrap();
    let (_sender, _unread) = slow.open_bi().await.unwrap();
    let (mut opened, _) = accepted.open_bi().await.unwrap();
    let honest = dial(&world.dialler("honest"), &world.address).await;
    let other = world.listener.accept().await.unwrap();
    let echoing = tokio::spawn(echo(other));
    let (mut sender, mut receiver) = honest.open_bi().await.unwrap();
    says(&mut sender, &mut receiver, 1).await;
    // More than the windows hold: from some point on it waits for the reader.
    let piece = vec![0; 1 << 20];
    let mut sent = 0;
    let error = loop {
        match opened.send_bytes(&piece, Duration::from_millis(500)).await {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 64, "what is not read has a limit");
    };
    assert!(matches!(error, TransportError::TimedOut { .. }), "{error}");
    assert_eq!(end(&slow).await.peer_code(), Some(CloseCode::Limit));
    says(&mut sender, &mut receiver, 2).await;
    echoing.abort();
}

/// Carries datagrams between a dialler and the listener until it is cut; may send each of the dialler's twice, and once more
/// later.
struct Relay {
    address: String,
    cut: Arc<AtomicBool>,
}

impl Relay {
    async fn new(listener: &str, copies: usize) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap().to_string();
        let listener: SocketAddr = listener.parse().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = cut.clone();
        tokio::spawn(async move {
            let (mut out, mut back_in) = (vec![0; 65_536], vec![0; 65_536]);
            let mut client = None;
            let mut earlier: Vec<Vec<u8>> = Vec::new();
            loop {
                tokio::select! {
                    Ok((length, from)) = front.recv_from(&mut out) => {
                        client = Some(from);
                        if is_cut.load(Relaxed) { continue; }
                        for _ in 0..=copies {
                            let _ = back.send_to(&out[..length], listener).await;
                        }
                        if copies > 0 {
                            earlier.push(out[..length].to_vec());
                            if let Some(old) = earlier.get(earlier.len() / 2) {
                                let _ = back.send_to(old, listener).await;
                            }
                        }
                    }
                    Ok((length, _)) = back.recv_from(&mut back_in) => {
                        if let (Some(client), false) = (client, is_cut.load(Relaxed)) {
                            let _ = front.send_to(&back_in[..length], client).await;
                        }
                    }
                    else => return,
                }
            }
        });
        Self { address, cut }
    }
}

#[tokio::test]
async fn a_peer_that_vanishes_leaves_its_place() {
    let limits = Limits {
        sessions: 1,
        handshakes: 8,
        ..Limits::default()
    };
    let world = World::new(limits).echoing();
    let relay = Relay::new(&world.address, 0).await;
    let session = dial(&world.dialler("gone"), &relay.address).await;
    let (mut sender, mut receiver) = session.open_bi().await.unwrap();
    says(&mut sender, &mut receiver, 1).await;
    relay.cut.store(true, Relaxed);
    // Both ends come to the same, each by itself.
    assert_eq!(end(&session).await, CloseReason::IdleTimeout);
    let honest = world.dialler("honest");
    let again = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Ok(session) = honest.dial(&world.address, &Expect::federator("fed")).await {
                return session;
            }
        }
    });
    let session = again.await.unwrap();
    let (mut sender, mut receiver) = session.open_bi().await.unwrap();
    says(&mut sender, &mut receiver, 1).await;
    assert_eq!(world.listener.counters().read().idle_timeouts, 1);
}

#[tokio::test]
async fn datagrams_that_come_again_change_nothing() {
    let world = World::new(Limits::default()).echoing();
    let relay = Relay::new(&world.address, 2).await;
    let session = dial(&world.dialler("copied"), &relay.address).await;
    let (mut sender, mut receiver) = session.open_bi().await.unwrap();
    for seq in 1..200 {
        says(&mut sender, &mut receiver, seq).await;
    }
    let counts = world.listener.counters().read();
    assert_eq!(counts.established, 1, "{counts:?}");
    assert_eq!(session.close_reason(), None);
}
