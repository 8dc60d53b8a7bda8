//! Against a fake federator over real QUIC on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::SystemTime;

use tempfile::TempDir;
use weft_transport::pki::{self, Validity};
use weft_transport::{Listener, PeerRole, SpiffeId};
use weft_wire::batch;
use weft_wire::frame::Kind;

use super::*;
use crate::sink::BatchSink;
use crate::spool::tests::{batch as rows, open};

const PATIENCE: Duration = Duration::from_secs(30);

fn now() -> Timestamp {
    Timestamp(
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_micros() as i64,
    )
}

fn identity(dir: &Path, role: PeerRole, name: &str) -> Identity {
    let ca = dir.join("ca");
    if !ca.exists() {
        pki::init_ca(&ca, "weft.test", Validity::days_from(now(), 2)).unwrap();
    }
    let id = SpiffeId::new("weft.test", "r", role, name).unwrap();
    pki::issue(&ca, &dir.join(name), &id, Validity::days_from(now(), 1)).unwrap();
    Identity::load(&dir.join(name)).unwrap()
}

/// What a federator keeps when it is restarted.
#[derive(Default)]
struct Durable {
    seq: u64,
    cookies: Vec<u64>,
}

/// How the fake behaves in one life.
#[derive(Clone, Copy)]
struct Life {
    /// Dies without a word after so many batches, of which it has stored all but the last.
    dies_after: usize,
    /// Sends every acknowledgement three times, and an old one.
    repeats: bool,
}

const FOREVER: Life = Life {
    dies_after: usize::MAX,
    repeats: false,
};

struct World {
    dir: TempDir,
    federator: Identity,
    address: SocketAddr,
    durable: Durable,
    statuses: u64,
    /// Refuses a batch with this cookie.
    refuses: Option<u64>,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let federator = identity(dir.path(), PeerRole::Federator, "fed-a");
        // Reserves a port for all lives.
        let address = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap();
        Self {
            dir,
            federator,
            address,
            durable: Durable::default(),
            statuses: 0,
            refuses: None,
        }
    }

    fn spool(&self) -> SharedSpool {
        SharedSpool::new(open(&self.dir))
    }

    /// Starts an uplink that runs until the sender is dropped.
    fn uplink(&self, spool: &SharedSpool) -> watch::Sender<bool> {
        let agent = self.dir.path().join("node");
        let identity = if agent.exists() {
            Identity::load(&agent).unwrap()
        } else {
            identity(self.dir.path(), PeerRole::Agent, "node")
        };
        let (stop, stopped) = watch::channel(false);
        let uplink = Uplink {
            cluster: None,
            socket: weft_transport::Dialler::socket().unwrap(),
            federator: self.address.to_string(),
            identity,
            agent: AgentInfo {
                name: "node".into(),
                ..AgentInfo::default()
            },
            spool: spool.clone(),
            status: Arc::new(AgentStatus::default),
            clock: now,
            seed: 1,
            connected: watch::channel(false).0,
        };
        tokio::spawn(uplink.run(stopped));
        stop
    }

    /// Lives until it dies, or has this many rows.
    async fn live(&mut self, life: Life, until_rows: usize) {
        let listener = self.bind().await;
        let lived = tokio::time::timeout(PATIENCE, async {
            while self.durable.cookies.len() < until_rows {
                let session = listener.accept().await.unwrap();
                if self.session(&session, life, until_rows).await {
                    return;
                }
            }
        });
        lived
            .await
            .expect("the agent never came with what was awaited");
        // As after kill -9 the peer hears nothing useful: the code is one that it must not rely on.
        listener.close(CloseCode::Internal, "killed").await;
    }

    /// The port of the last life is free a moment after its end.
    async fn bind(&self) -> Listener {
        for _ in 0..1000 {
            if let Ok(listener) = Listener::bind(self.address, &self.federator) {
                return listener;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("the port stays taken");
    }

    /// True when it died.
    async fn session(&mut self, session: &Session, life: Life, until_rows: usize) -> bool {
        let (mut send, mut receive) = session.accept_bi().await.unwrap();
        let _hello: AgentHello = receive.expect(PATIENCE).await.unwrap();
        let durable_seq = self.durable.seq;
        let welcome = AgentWelcome {
            version: PROTOCOL_VERSION,
            federator: "fed-a".into(),
            durable_seq,
            now: now(),
        };
        send.send(&welcome, PATIENCE).await.unwrap();
        let mut batches = 0;
        while let Ok(Some(frame)) = receive.recv().await {
            if frame.kind == Kind::AgentStatus {
                self.statuses += 1;
                continue;
            }
            let (seq, encoded) = weft_wire::codec::split_batch(&frame).unwrap();
            batches += 1;
            if batches == life.dies_after {
                return true;
            }
            assert!(
                seq > self.durable.seq,
                "in order, and nothing that is durable"
            );
            let decoded = batch::decode(encoded, session.peer_key()).unwrap();
            let refused = |half: &weft_wire::Half| Some(half.cookie) == self.refuses;
            if decoded.halves.iter().any(refused) {
                session.misbehaved(CloseCode::Malformed, "not understood");
                return false;
            }
            self.durable.seq = seq;
            self.durable
                .cookies
                .extend(decoded.halves.iter().map(|half| half.cookie));
            let acks = if life.repeats {
                [seq, seq, seq - 1, seq].to_vec()
            } else {
                vec![seq]
            };
            for seq in acks {
                send.send(&Ack { seq }, PATIENCE).await.unwrap();
            }
            if self.durable.cookies.len() >= until_rows {
                send.finish();
                let _ = send.delivered(Duration::from_secs(1)).await;
                return false;
            }
        }
        false
    }
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_through_restarts_of_the_federator() {
    let mut world = World::new();
    let mut spool = world.spool();
    for index in 0..20 {
        spool.append(&rows(index * 10, 10), index).unwrap();
    }
    let _stop = world.uplink(&spool);
    world
        .live(
            Life {
                dies_after: 4,
                repeats: false,
            },
            usize::MAX,
        )
        .await;
    spool.append(&rows(200, 10), 21).unwrap();
    world
        .live(
            Life {
                dies_after: 7,
                repeats: true,
            },
            usize::MAX,
        )
        .await;
    world.live(FOREVER, 210).await;
    assert_eq!(world.durable.cookies, (0..210).collect::<Vec<_>>());
    assert!(world.statuses > 0);
}

#[tokio::test]
async fn duplicate_acknowledgements_harm_nothing() {
    let mut world = World::new();
    let mut spool = world.spool();
    let _stop = world.uplink(&spool);
    for index in 0..100 {
        spool.append(&rows(index, 1), index).unwrap();
    }
    world
        .live(
            Life {
                dies_after: usize::MAX,
                repeats: true,
            },
            100,
        )
        .await;
    assert_eq!(world.durable.cookies, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_batch_that_is_refused_does_not_keep_back_the_others() {
    let mut world = World::new();
    let mut spool = world.spool();
    for index in 0..20 {
        spool.append(&rows(index, 1), index).unwrap();
    }
    world.refuses = Some(7);
    let _stop = world.uplink(&spool);
    world.live(FOREVER, 19).await;
    let all_but_one: Vec<_> = (0..20).filter(|cookie| *cookie != 7).collect();
    assert_eq!(world.durable.cookies, all_but_one);
    assert_eq!(spool.lock().totals().rows_refused, 1);
}

#[tokio::test]
async fn an_agent_restarted_sends_the_rest() {
    let mut world = World::new();
    let mut spool = world.spool();
    for index in 0..10 {
        spool.append(&rows(index, 1), index).unwrap();
    }
    let stop = world.uplink(&spool);
    world.live(FOREVER, 10).await;
    drop(stop);
    spool.append(&rows(10, 1), 10).unwrap();
    drop(spool);
    let spool = world.spool();
    let _stop = world.uplink(&spool);
    world.live(FOREVER, 11).await;
    assert_eq!(world.durable.cookies, (0..11).collect::<Vec<_>>());
}
