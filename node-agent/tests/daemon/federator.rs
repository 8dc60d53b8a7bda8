//! Stands in for the federator: takes one agent's batches in order, remembers what it saw, acknowledges.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use weft_transport::{Identity, Listener, Session, TransportError};
use weft_wire::control::{Ack, AgentHello, AgentStatus, AgentWelcome, Detail, PROTOCOL_VERSION};
use weft_wire::frame::Kind;
use weft_wire::{Half, HalfId, HalfState, Owner, Timestamp, batch, codec};

/// Nothing here takes as long as this unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Of each connection's end: its last state, and how many batches ended it.
pub type Seen = HashMap<HalfId, (HalfState, u32)>;

#[derive(Default)]
struct Taken {
    durable_seq: u64,
    seen: Seen,
    /// The last row of each, and whose it is.
    rows: HashMap<HalfId, (Half, Owner)>,
    given_up: Vec<Detail>,
}

/// The stand-in; its threads end with the process.
pub struct Federator {
    /// Where it listens.
    pub address: SocketAddr,
    taken: Arc<Mutex<Taken>>,
    _runtime: tokio::runtime::Runtime,
}

impl Federator {
    /// Starts one with the identity in a directory.
    pub fn start(identity: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let identity = Identity::load(identity).unwrap();
        let listener = runtime
            .block_on(async { Listener::bind("127.0.0.1:0".parse().unwrap(), &identity) })
            .unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Arc::new(Mutex::new(Taken::default()));
        let shared = Arc::clone(&taken);
        runtime.spawn(async move {
            while let Some(session) = listener.accept().await {
                let taken = Arc::clone(&shared);
                // A killed agent's session ends without a word, some time.
                tokio::spawn(async move { serve(session, &taken).await });
            }
        });
        Self {
            address,
            taken,
            _runtime: runtime,
        }
    }

    /// What it saw so far.
    pub fn seen(&self) -> Seen {
        self.taken.lock().unwrap().seen.clone()
    }

    /// The last row of each connection's end, and whose it is.
    pub fn rows(&self) -> Vec<(Half, Owner)> {
        self.taken.lock().unwrap().rows.values().cloned().collect()
    }

    /// Detail that the agent said last that it gives up.
    pub fn given_up(&self) -> Vec<Detail> {
        self.taken.lock().unwrap().given_up.clone()
    }
}

async fn serve(session: Session, taken: &Mutex<Taken>) -> Result<(), TransportError> {
    let (mut sender, mut receiver) = session.accept_bi().await?;
    let _hello: AgentHello = receiver.expect(PATIENCE).await?;
    let welcome = AgentWelcome {
        version: PROTOCOL_VERSION,
        federator: "fed".into(),
        durable_seq: taken.lock().unwrap().durable_seq,
        now: Timestamp(0),
    };
    sender.send(&welcome, PATIENCE).await?;
    while let Some(frame) = receiver.recv().await? {
        if frame.kind == Kind::AgentStatus {
            let status: AgentStatus = codec::decode(&frame).unwrap();
            taken.lock().unwrap().given_up = status.given_up;
        }
        let (Kind::HalfBatch | Kind::LookupBatch) = frame.kind else {
            continue;
        };
        let (seq, bytes) = codec::split_batch(&frame).unwrap();
        {
            let mut taken = taken.lock().unwrap();
            if seq > taken.durable_seq {
                taken.durable_seq = seq;
                if frame.kind == Kind::HalfBatch {
                    taken.take(bytes, &session);
                }
            }
        }
        sender.send(&Ack { seq }, PATIENCE).await?;
    }
    Ok(())
}

impl Taken {
    fn take(&mut self, bytes: &[u8], session: &Session) {
        let batch = batch::decode(bytes, session.peer_key()).unwrap();
        for half in batch.halves {
            if half.protocol != weft_wire::Protocol::Tcp {
                continue;
            }
            let (state, ends) = self.seen.entry(half.id).or_insert((half.state, 0));
            *ends += u32::from(half.state.finished());
            *state = half.state;
            let owner = batch.owners[half.owner as usize].clone();
            self.rows.insert(half.id, (half, owner));
        }
    }
}
