//! The other federators: a session of our own to each, dialled again and again, for what we have to say and to ask.
//!
//! One that does not answer costs a dial now and then and nothing else. Those of the configuration are known from the start;
//! others become known when they dial, or when the [membership](crate::membership) says where they are.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use weft_transport::{Dialler, Expect, Session, TransportError};
use weft_wire::Timestamp;
use weft_wire::control::{Ack, CloseCode, PROTOCOL_VERSION, PeerHello, PeerMessage};
use weft_wire::query::PeerHealth;

use crate::clock;
use crate::config::{MAX_PEERS, Peer};
use crate::core::{Contact, Told};
use crate::membership::Members;
use crate::pipeline::Submission;
use crate::server::{HELLO_TIMEOUT, SEND_TIMEOUT, sent_at};

/// First pause before a peer is dialled again; doubles up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two dials.
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a peer to answer a dial. QUIC asks again ever more rarely; a peer that comes back is found sooner by
/// dialling again.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Messages that wait to be sent to one peer; the mesh leaves at most `weft_mesh::mesh::IN_FLIGHT` unacknowledged.
const OUTBOX: usize = 2 * weft_mesh::mesh::IN_FLIGHT;

/// Number of a session of ours, and where its messages go.
type Outbox = (u64, mpsc::Sender<(u64, PeerMessage)>);

/// One peer.
#[derive(Debug)]
pub struct PeerLink {
    /// Its name.
    pub name: String,
    /// Its region; empty while it is not known.
    region: Mutex<String>,
    /// Where it is reached; empty while that is not known.
    address: Mutex<String>,
    /// Its address stands in the configuration: what it says of itself does not change that.
    fixed: bool,
    /// Of the present session.
    outbox: Mutex<Option<Outbox>>,
    session: Mutex<Option<Session>>,
    /// The peer's session to us.
    inbound: Mutex<Option<Session>>,
    last_seen: AtomicI64,
    skew_us: AtomicI64,
    /// Items that the mesh has for it.
    pub queued: AtomicU64,
    error: Mutex<String>,
}

/// All peers by name.
#[derive(Debug)]
pub struct Peers {
    /// This federator, as it says hello.
    me: (String, String),
    /// Which run of the program this is.
    pub instance: u64,
    /// Whether federators that the configuration does not name are let in.
    open: bool,
    links: RwLock<BTreeMap<String, Arc<PeerLink>>>,
    /// Links that nobody dials yet.
    fresh: Mutex<Vec<Arc<PeerLink>>>,
    added: Notify,
    /// Federators that there was no room for.
    pub refused: AtomicU64,
    /// Who owns offers, as the core was told last. Held while it is told: what was decided later is told later.
    owners: tokio::sync::Mutex<Vec<(String, u8)>>,
    members: OnceLock<Arc<Members>>,
}

impl Peers {
    /// Those of the configuration. `open`: others of the trust domain may come.
    pub fn new(name: &str, region: &str, peers: &[Peer], instance: u64, open: bool) -> Self {
        let links: BTreeMap<_, _> = peers
            .iter()
            .map(|peer| (peer.name.clone(), Arc::new(PeerLink::new(peer, true))))
            .collect();
        let names = links.keys().cloned().chain([name.to_owned()]);
        let owners = names.map(|name| (name, 1)).collect();
        Self {
            me: (name.into(), region.into()),
            instance,
            open,
            fresh: Mutex::new(links.values().cloned().collect()),
            links: RwLock::new(links),
            added: Notify::new(),
            refused: AtomicU64::new(0),
            owners: tokio::sync::Mutex::new(owners),
            members: OnceLock::new(),
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = Arc<PeerLink>> + use<> {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<_> = links.values().cloned().collect();
        all.into_iter()
    }

    /// The one of this name.
    pub fn find(&self, name: &str) -> Option<Arc<PeerLink>> {
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        links.get(name).cloned()
    }

    /// The one of this name, which becomes known if it is not; `None` when it may not, or there are too many.
    pub fn meet(&self, name: &str, region: &str) -> Option<Arc<PeerLink>> {
        if let Some(known) = self.find(name) {
            return Some(known);
        }
        if !self.open || name == self.me.0 {
            return None;
        }
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        if links.len() >= MAX_PEERS && !links.contains_key(name) {
            self.refused.fetch_add(1, Relaxed);
            return None;
        }
        let link = links.entry(name.to_owned()).or_insert_with(|| {
            let peer = Peer {
                name: name.into(),
                region: region.into(),
                address: String::new(),
            };
            let link = Arc::new(PeerLink::new(&peer, false));
            lock(&self.fresh).push(link.clone());
            link
        });
        let link = link.clone();
        drop(links);
        self.added.notify_one();
        Some(link)
    }

    /// A member says where it is.
    pub fn place(&self, name: &str, region: &str, address: &str) {
        if let Some(link) = self.meet(name, region) {
            if link.region().is_empty() {
                *lock(&link.region) = region.into();
            }
            if !link.fixed && !address.is_empty() {
                *lock(&link.address) = address.into();
            }
        }
    }

    /// Tells who owns offers now. Whoever is known stays known, and owns nothing.
    pub async fn own<F: Future>(
        &self,
        mut now: Vec<(String, u8)>,
        tell: impl FnOnce(Vec<(String, u8)>) -> F,
    ) {
        let mut owners = self.owners.lock().await;
        for (name, _) in owners.iter() {
            if !now.iter().any(|(known, _)| known == name) {
                now.push((name.clone(), 0));
            }
        }
        owners.clone_from(&now);
        // Fails only while the program ends.
        let _ = tell(now).await;
    }

    /// A session begins with this one: the core must know its name before.
    pub async fn introduce(&self, name: &str, submissions: &mpsc::Sender<Submission>) {
        let mut owners = self.owners.lock().await;
        if owners.iter().any(|(known, _)| known == name) {
            return;
        }
        owners.push((name.to_owned(), 0));
        let contact = Contact::Owners(owners.clone());
        let told = Submission::Contact {
            session: 0,
            contact,
            room: None,
        };
        // Fails only while the program ends.
        let _ = submissions.send(told).await;
    }

    /// Where messages of the membership go.
    pub fn attach(&self, members: Arc<Members>) {
        // Once, at the start.
        let _ = self.members.set(members);
    }

    /// The membership, if this federator takes part in one.
    pub fn members(&self) -> Option<&Arc<Members>> {
        self.members.get()
    }

    /// What we say of ourselves.
    pub fn hello(&self) -> PeerHello {
        PeerHello {
            version: PROTOCOL_VERSION,
            name: self.me.0.clone(),
            region: self.me.1.clone(),
            instance: self.instance,
            now: clock::now(),
        }
    }

    /// Hands a message to the session that it was made for; one that has ended loses it, and the mesh says it again.
    pub fn tell(&self, session: u64, told: Told) {
        match told {
            Told::Send { peer, seq, message } => {
                let Some(link) = self.find(&peer) else { return };
                let mut outbox = lock(&link.outbox);
                let Some((_, sender)) = outbox.as_ref().filter(|(number, _)| *number == session)
                else {
                    return;
                };
                // Full: the peer acknowledges what it was not sent. The session ends.
                if sender.try_send((seq, message)).is_err() {
                    *outbox = None;
                }
            }
            Told::Redial { peer } => {
                if let Some(link) = self.find(&peer) {
                    *lock(&link.outbox) = None;
                }
            }
        }
    }

    /// Dials all peers, also those that become known later, until the task is aborted.
    pub async fn run(self: Arc<Self>, dialler: Dialler, submissions: mpsc::Sender<Submission>) {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            for link in std::mem::take(&mut *lock(&self.fresh)) {
                tasks.spawn(keep_in_touch(
                    self.clone(),
                    link,
                    dialler.clone(),
                    submissions.clone(),
                ));
            }
            self.added.notified().await;
        }
    }
}

impl PeerLink {
    fn new(peer: &Peer, fixed: bool) -> Self {
        Self {
            name: peer.name.clone(),
            region: Mutex::new(peer.region.clone()),
            address: Mutex::new(peer.address.clone()),
            fixed,
            outbox: Mutex::default(),
            session: Mutex::default(),
            inbound: Mutex::default(),
            last_seen: AtomicI64::new(i64::MIN),
            skew_us: AtomicI64::new(0),
            queued: AtomicU64::new(0),
            error: Mutex::new("not dialled yet".into()),
        }
    }

    /// Its region; empty while it is not known.
    pub fn region(&self) -> String {
        lock(&self.region).clone()
    }

    /// Where it is reached; empty while that is not known.
    pub fn address(&self) -> String {
        lock(&self.address).clone()
    }

    /// Its session to us, while there is one.
    pub fn inbound(&self) -> Option<Session> {
        lock(&self.inbound)
            .clone()
            .filter(|session| session.close_reason().is_none())
    }

    /// Our session, while there is one.
    pub fn session(&self) -> Option<Session> {
        lock(&self.session)
            .clone()
            .filter(|session| session.close_reason().is_none())
    }

    /// Why there is none.
    pub fn error(&self) -> String {
        lock(&self.error).clone()
    }

    /// The peer's session to us begins; an older one ends.
    pub fn begin_inbound(&self, session: &Session, hello: &PeerHello) {
        self.heard(sent_at(hello.now, session));
        let older = lock(&self.inbound).replace(session.clone());
        if let Some(older) = older {
            older.close(
                CloseCode::Superseded,
                "a newer session of this federator took over",
            );
        }
    }

    fn heard(&self, clock_of_peer: Timestamp) {
        let now = clock::now();
        self.last_seen.store(now.0, Relaxed);
        self.skew_us
            .store(clock_of_peer.0.saturating_sub(now.0), Relaxed);
    }

    /// For `weft health`.
    pub fn health(&self) -> PeerHealth {
        let session = self.session();
        let error = session.is_none().then(|| self.error());
        let last_seen = self.last_seen.load(Relaxed);
        PeerHealth {
            name: self.name.clone(),
            connected: session.is_some(),
            last_seen: if session.is_some() {
                Some(clock::now())
            } else {
                (last_seen != i64::MIN).then_some(Timestamp(last_seen))
            },
            clock_skew_us: self.skew_us.load(Relaxed),
            rtt_us: session.map_or(0, |session| session.rtt().as_micros() as u64),
            queued: self.queued.load(Relaxed),
            error,
        }
    }
}

async fn keep_in_touch(
    peers: Arc<Peers>,
    link: Arc<PeerLink>,
    dialler: Dialler,
    submissions: mpsc::Sender<Submission>,
) {
    let mut pause = BACK_OFF_MIN;
    let mut number = 0;
    loop {
        let (region, address) = (link.region(), link.address());
        if address.is_empty() {
            // It has dialled us, and has not said yet where it is.
            *lock(&link.error) = "where it is reached is not known yet".into();
            tokio::time::sleep(BACK_OFF_MIN).await;
            continue;
        }
        number += 1;
        let mut expected = Expect::federator(&link.name);
        if !region.is_empty() {
            expected = expected.of_region(&region);
        }
        let dial = dialler.dial(&address, &expected);
        let dialled = tokio::time::timeout(DIAL_TIMEOUT, dial).await;
        let dialled = dialled.unwrap_or_else(|_| {
            let detail = format!("no answer within {DIAL_TIMEOUT:?}");
            Err(TransportError::Unreachable {
                address: address.clone(),
                detail,
            })
        });
        match dialled {
            Ok(session) => {
                let ended = talk(&peers, &link, session, number, &submissions, &mut pause).await;
                let error = ended
                    .err()
                    .map_or_else(|| "the session ended".to_owned(), |error| error.to_string());
                tracing::info!(peer = link.name, error, "session to a peer ended");
                *lock(&link.error) = error;
            }
            Err(error) => {
                tracing::debug!(peer = link.name, %error, "a peer does not answer");
                *lock(&link.error) = error.to_string();
            }
        }
        if submissions.is_closed() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACK_OFF_MAX);
    }
}

/// One session, from hello to end.
async fn talk(
    peers: &Peers,
    link: &PeerLink,
    session: Session,
    number: u64,
    submissions: &mpsc::Sender<Submission>,
    pause: &mut Duration,
) -> Result<(), TransportError> {
    let (mut sender, mut receiver) = session.open_bi().await?;
    sender.send(&peers.hello(), SEND_TIMEOUT).await?;
    let hello: PeerHello = receiver.expect(HELLO_TIMEOUT).await?;
    session.require_name(&hello.name)?;
    *lock(&link.region) = session.peer().region().to_owned();
    link.heard(sent_at(hello.now, &session));
    peers.introduce(&link.name, submissions).await;
    *pause = BACK_OFF_MIN;
    let (outbox, mut messages) = mpsc::channel(OUTBOX);
    *lock(&link.outbox) = Some((number, outbox));
    *lock(&link.session) = Some(session.clone());
    tracing::info!(peer = link.name, "session to a peer");
    let name = link.name.clone();
    let contact = |contact| {
        submissions.send(Submission::Contact {
            session: number,
            contact,
            room: None,
        })
    };
    let up = Contact::Up {
        peer: name.clone(),
        instance: hello.instance,
    };
    // A send fails only while the program ends.
    let _ = contact(up).await;
    let say = async {
        while let Some((seq, message)) = messages.recv().await {
            sender.send_peer(seq, &message, SEND_TIMEOUT).await?;
        }
        Ok(())
    };
    let listen = async {
        loop {
            let Some(frame) = receiver.recv().await? else {
                return Ok(());
            };
            let ack: Ack = session.decode(&frame)?;
            link.last_seen.store(clock::now().0, Relaxed);
            let _ = contact(Contact::Acked {
                peer: name.clone(),
                seq: ack.seq,
            })
            .await;
        }
    };
    let members = async {
        match peers.members() {
            Some(members) => members.listen(&session).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = say => ended,
        ended = listen => ended,
        ended = members => ended,
    };
    *lock(&link.session) = None;
    *lock(&link.outbox) = None;
    session.close(CloseCode::Done, "");
    let _ = contact(Contact::Down { peer: name.clone() }).await;
    ended
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
