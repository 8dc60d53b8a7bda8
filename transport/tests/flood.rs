//! Whoever holds places without using them, from one address: others, from elsewhere, are served all the while.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use weft_transport::join::{self, Admit, JoinListener, MAX_JOINS_OF_ONE};
use weft_transport::pki::{self, Validity};
use weft_transport::{
    Counts, Dialler, Expect, Fingerprint, Identity, Limits, Listener, PeerRole, SpiffeId,
};
use weft_wire::Timestamp;
use weft_wire::identity::{Hidden, IdentityAnswer, IdentityRequest, Proof};

const PATIENCE: Duration = Duration::from_secs(60);
/// Where the flood comes from; everybody else is at 127.0.0.1.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

struct World(TempDir);

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        pki::init_ca(&dir.path().join("ca"), "weft.test", days()).unwrap();
        Self(dir)
    }

    fn identity(&self, role: PeerRole, name: &str) -> Identity {
        let id = SpiffeId::new("weft.test", "r", role, name).unwrap();
        let out = self.0.path().join(name);
        if !out.exists() {
            pki::issue(&self.0.path().join("ca"), &out, &id, days()).unwrap();
        }
        Identity::load(&out).unwrap()
    }

    fn fingerprint(&self) -> Fingerprint {
        let pem = std::fs::read_to_string(self.0.path().join("ca/ca.pem")).unwrap();
        Fingerprint::of_pem(&pem).unwrap()
    }
}

fn days() -> Validity {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Validity::days_from(Timestamp(since.as_micros() as i64), 5)
}

/// What of a dialler's datagrams gets through.
#[derive(Clone, Copy)]
enum Lets {
    /// The first, and one for each time that the address must be proven.
    Begin,
    /// All that belong to the handshake, nothing after it.
    ShakeHands,
}

/// Carries datagrams between a dialler and a listener that sees them come from [`ELSEWHERE`].
async fn relay(listener: SocketAddr, lets: Lets) -> String {
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let back = UdpSocket::bind((ELSEWHERE, 0)).await.unwrap();
    let address = front.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut out, mut back_in) = (vec![0; 65_536], vec![0; 65_536]);
        let (mut client, mut beginnings) = (None, 1);
        loop {
            tokio::select! {
                Ok((length, from)) = front.recv_from(&mut out) => {
                    client = Some(from);
                    let passes = match lets {
                        Lets::Begin => std::mem::take(&mut beginnings) > 0,
                        // RFC 9000, 17: only the handshake's packets have long headers.
                        Lets::ShakeHands => out[0] & 0x80 != 0,
                    };
                    if passes {
                        let _ = back.send_to(&out[..length], listener).await;
                    }
                }
                Ok((length, _)) = back.recv_from(&mut back_in) => {
                    // RFC 9000, 17.2.5: a retry.
                    if back_in[0] & 0xf0 == 0xf0 {
                        beginnings = 1;
                    }
                    if let Some(client) = client {
                        let _ = front.send_to(&back_in[..length], client).await;
                    }
                }
                else => return,
            }
        }
    });
    address
}

async fn until(counts: impl Fn() -> Counts, good: impl Fn(&Counts) -> bool) {
    let found = timeout(PATIENCE, async {
        while !good(&counts()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(found.await.is_ok(), "{:?}", counts());
}

#[tokio::test]
async fn one_address_cannot_take_the_handshakes_of_all() {
    let world = World::new();
    let limits = Limits {
        handshakes: 8,
        ..Limits::default()
    };
    let fed = world.identity(PeerRole::Federator, "fed");
    let listener = Listener::bind_with((Ipv4Addr::LOCALHOST, 0).into(), &fed, limits).unwrap();
    let address = listener.local_addr().unwrap();
    let thief = world.identity(PeerRole::Agent, "thief");
    let counts = || listener.counters().read();
    let mut dials: Vec<JoinHandle<()>> = Vec::new();
    let mut dial = || {
        let dialler = Dialler::new(&thief).unwrap();
        dials.push(tokio::spawn(async move {
            let relay = relay(address, Lets::Begin).await;
            let _ = dialler.dial(&relay, &Expect::any_federator()).await;
        }));
    };
    // Half of them are for one address, and half of those are free of proof; then all is said that is needed, and no more.
    for proven in 0..=2 {
        dial();
        dial();
        until(counts, |counts| counts.retried >= 2 * proven).await;
    }
    until(counts, |counts| counts.refused_full >= 1).await;
    let honest = Dialler::new(&world.identity(PeerRole::Agent, "honest")).unwrap();
    let (address, expected) = (address.to_string(), Expect::federator("fed"));
    let session = honest.dial(&address, &expected).await.unwrap();
    assert_eq!(session.peer().name(), "fed");
    for dial in dials {
        dial.abort();
    }
}

struct Lenient;

impl Admit for Lenient {
    async fn admit(self: Arc<Self>, _: SocketAddr, _: IdentityRequest) -> IdentityAnswer {
        IdentityAnswer::Done
    }
}

#[tokio::test]
async fn who_joins_without_asking_keeps_nobody_out() {
    let world = World::new();
    let fed = world.identity(PeerRole::Federator, "fed");
    let listener = JoinListener::bind((Ipv4Addr::LOCALHOST, 0).into(), &fed).unwrap();
    let (address, counters) = (listener.local_addr().unwrap(), listener.counters().clone());
    let serving = tokio::spawn(async move { listener.serve(Arc::new(Lenient)).await });
    let fingerprint = world.fingerprint();
    let question = IdentityRequest::Join {
        proof: Proof::Token(Hidden("secret".into())),
        name: "node".into(),
        request: Vec::new(),
    };
    let mut silent = Vec::new();
    for _ in 0..=MAX_JOINS_OF_ONE {
        let (relay, question) = (relay(address, Lets::ShakeHands).await, question.clone());
        silent.push(tokio::spawn(async move {
            let _ = join::ask(&relay, fingerprint, &question).await;
        }));
    }
    until(|| counters.read(), |counts| counts.refused_full >= 1).await;
    let address = address.to_string();
    let answer = join::ask(&address, fingerprint, &question).await.unwrap();
    assert_eq!(answer, IdentityAnswer::Done);
    assert_eq!(counters.read().established, 1);
    // Each is given up, and its place is free again.
    until(
        || counters.read(),
        |counts| {
            counts.handshake_timeouts + counts.idle_timeouts + counts.lost
                >= MAX_JOINS_OF_ONE as u64
        },
    )
    .await;
    for dial in silent {
        dial.abort();
    }
    serving.abort();
}
