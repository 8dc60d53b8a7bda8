//! Sessions: who may do what.
//!
//! Agents open one stream with their hello; operators and federators open a stream for each question, federators also one
//! for what they say to each other.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use weft_transport::{FrameReceiver, FrameSender, Listener, PeerRole, Session, TransportError};
use weft_wire::batch::lookups::LookupDecoder;
use weft_wire::batch::{BatchDecoder, BatchError, unpacked_bytes};
use weft_wire::control::{
    Ack, AgentHello, AgentStatus, AgentWelcome, CloseCode, PROTOCOL_VERSION, PeerHello, PeerMessage,
};
use weft_wire::federation::FederationRequest;
use weft_wire::frame::{Frame, Kind};
use weft_wire::query::Request;
use weft_wire::{Timestamp, codec};

use crate::agents::{AgentState, AgentStates};
use crate::core::Contact;
use crate::enrol::roles::{self, Act};
use crate::enrol::{Enrol, EnrolCounters};
use crate::limits::{Cost, HELLO_FRAMES, LimitCounters, Limits, PeerBudgets};
use crate::peers::Peers;
use crate::pipeline::{Progress, Room, Rows, SEQ_BYTES, Submission, room};
use crate::query::Queries;
use crate::{clock, times};

mod federation;

use self::federation::HomesOf;

/// A peer that says nothing at first is turned away.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that does not read is given up.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams of one session worked on at a time; more wait.
const STREAMS: usize = 16;

/// What a session needs.
pub struct Server {
    /// This federator's name.
    pub name: String,
    /// Agents.
    pub agents: Arc<AgentStates>,
    /// Into the pipeline.
    pub submissions: mpsc::Sender<Submission>,
    /// Room on the way to the core.
    pub backlog: Arc<Semaphore>,
    /// The pipeline's state.
    pub progress: Arc<Progress>,
    /// Beyond it agents are refused.
    pub journal_max_bytes: u64,
    /// What one agent and one peer may do in a time.
    pub limits: Limits,
    /// What each peer has used of it.
    pub peer_budgets: PeerBudgets,
    /// With less disk free, agents are refused.
    pub min_free_bytes: u64,
    /// The other federators.
    pub peers: Arc<Peers>,
    /// Answers.
    pub queries: Arc<Queries>,
    /// Certificates, and who is shut out.
    pub enrol: Arc<Enrol>,
    /// Totals.
    pub counters: Arc<ServerCounters>,
    /// When it began.
    pub started: Instant,
}

/// Totals since the start.
#[derive(Debug, Default)]
pub struct ServerCounters {
    /// Batches taken.
    pub batches: AtomicU64,
    /// Bytes of them.
    pub batch_bytes: AtomicU64,
    /// Halves in them.
    pub halves: AtomicU64,
    /// Lookups in them.
    pub lookups: AtomicU64,
    /// Batches that had been taken before.
    pub repeated_batches: AtomicU64,
    /// Sessions refused because the journal is full.
    pub journal_full: AtomicU64,
    /// Sessions refused because hardly any disk is left.
    pub disk_full: AtomicU64,
    /// Sessions refused because there are too many agents.
    pub agents_full: AtomicU64,
    /// Batches refused for times that never were.
    pub times_refused: AtomicU64,
    /// The same times in what peers said, which were corrected.
    pub times_corrected: AtomicU64,
    /// Who was slowed down or turned away.
    pub limits: LimitCounters,
    /// Of the address where nodes join, where there is one.
    pub joining: OnceLock<Arc<weft_transport::Counters>>,
    /// Of certificates.
    pub enrol: Arc<EnrolCounters>,
}

impl Server {
    /// Accepts sessions until the listener is closed.
    pub async fn run(self: Arc<Self>, listener: Arc<Listener>) {
        while let Some(session) = listener.accept().await {
            let server = self.clone();
            tokio::spawn(async move {
                let peer = session.peer().to_string();
                match server.serve(session).await {
                    Ok(()) | Err(TransportError::StreamEnded) => {
                        tracing::debug!(peer, "session ended")
                    }
                    Err(TransportError::Closed(reason))
                        if reason.peer_code() == Some(CloseCode::Done) =>
                    {
                        tracing::debug!(peer, "session ended")
                    }
                    Err(error) => tracing::info!(peer, %error, "session ended"),
                }
            });
        }
    }

    async fn serve(self: Arc<Self>, session: Session) -> Result<(), TransportError> {
        match session.peer().role() {
            PeerRole::Agent => self.serve_agent(session).await,
            PeerRole::Operator | PeerRole::Federator | PeerRole::Admin => {
                self.serve_streams(session).await
            }
        }
    }

    async fn serve_agent(&self, session: Session) -> Result<(), TransportError> {
        let accepted = tokio::time::timeout(HELLO_TIMEOUT, session.accept_bi()).await;
        let Ok(streams) = accepted else {
            return Err(session.misbehaved(CloseCode::Unexpected, "no hello"));
        };
        let (mut sender, mut receiver) = streams?;
        let hello: AgentHello = receiver.expect(HELLO_TIMEOUT).await?;
        session.require_name(&hello.agent.name)?;
        let Some(agent) = self.agents.of(session.peer_key(), clock::now()) else {
            self.counters.agents_full.fetch_add(1, Relaxed);
            return Err(session.misbehaved(CloseCode::Limit, "too many agents"));
        };
        self.check_journal(&session)?;
        let said = sent_at(hello.now, &session);
        self.check_clock(&session, said)?;
        let cost = Cost {
            frames: HELLO_FRAMES,
            ..Cost::default()
        };
        let wait = agent.charge(self.limits.agent(), clock::now(), cost);
        if !wait.is_zero() {
            self.counters.limits.agent_waits(wait);
            tokio::time::sleep(wait).await;
        }
        let now = clock::now();
        agent.heard(Some(said), now);
        agent.begin(&session, &hello.agent);
        let cluster = hello.agent.site.cluster.clone();
        self.submit(
            &session,
            Submission::Agent {
                at: now,
                key: agent.key,
                info: hello.agent,
            },
        )
        .await?;
        let mut durable = agent.durable();
        let welcome = AgentWelcome {
            version: PROTOCOL_VERSION,
            federator: self.name.clone(),
            durable_seq: *durable.borrow_and_update(),
            now: clock::now(),
        };
        sender.send(&welcome, SEND_TIMEOUT).await?;
        let mut homes = HomesOf::new(&self.peers, &session);
        let acknowledge = async {
            loop {
                tokio::select! {
                    changed = durable.changed() => {
                        if changed.is_err() {
                            return Ok(());
                        }
                        let seq = *durable.borrow_and_update();
                        sender.send(&Ack { seq }, SEND_TIMEOUT).await?;
                    }
                    told = homes.changed() => sender.send(&told, SEND_TIMEOUT).await?,
                }
            }
        };
        tokio::select! {
            ended = acknowledge => ended,
            ended = self.receive(&session, &agent, &cluster, &mut receiver) => ended,
            ended = self.enrol.serve_agent(&session) => ended,
        }
    }

    async fn receive(
        &self,
        session: &Session,
        agent: &Arc<AgentState>,
        cluster: &str,
        receiver: &mut FrameReceiver,
    ) -> Result<(), TransportError> {
        let mut slowed = false;
        while let Some(frame) = receiver.recv().await? {
            let mut cost = Cost {
                frames: 1,
                bytes: frame.payload.len() as u64,
                rows: 0,
            };
            match frame.kind {
                Kind::HalfBatch | Kind::LookupBatch => {
                    let of = match frame.kind {
                        Kind::LookupBatch => Rows::Lookups,
                        _ => Rows::Halves,
                    };
                    let (rows, unpacked) = self.take_batch(session, agent, of, frame).await?;
                    cost.rows = rows as u64;
                    cost.bytes = cost.bytes.max(unpacked as u64);
                }
                Kind::ClusterObjects => {
                    let (_, batch) = codec::decode_cluster(&frame)
                        .map_err(|error| session.undecodable(&error))?;
                    if batch.cluster != cluster {
                        return Err(session.misbehaved(
                            CloseCode::Identity,
                            "objects of a cluster that is not its own",
                        ));
                    }
                    self.queries.clusters.apply(clock::now(), batch);
                }
                Kind::AgentStatus => {
                    let status: AgentStatus = session.decode(&frame)?;
                    // Who tells no time is not asked for it.
                    if status.now != Timestamp::default() {
                        let said = sent_at(status.now, session);
                        self.check_clock(session, said)?;
                        agent.heard(Some(said), clock::now());
                    }
                    agent.reported(status, clock::now());
                }
                other => {
                    return Err(
                        session.misbehaved(CloseCode::Unexpected, format!("{other:?} of an agent"))
                    );
                }
            }
            let wait = agent.charge(self.limits.agent(), clock::now(), cost);
            if !wait.is_zero() {
                if !std::mem::replace(&mut slowed, true) {
                    tracing::warn!(
                        agent = session.peer().name(),
                        "more than [limits] allows: it is slowed down"
                    );
                }
                self.counters.limits.agent_waits(wait);
                // Nothing is read meanwhile: what the agent has waits where it is.
                tokio::time::sleep(wait).await;
            }
        }
        Ok(())
    }

    /// An agent whose clock is far off would be stored at times that nobody looks at.
    fn check_clock(&self, session: &Session, said: Timestamp) -> Result<(), TransportError> {
        let skew_us = said.0.saturating_sub(clock::now().0);
        let Some(off_s) = self.limits.clock_off_s(skew_us) else {
            return Ok(());
        };
        self.counters.limits.clocks.fetch_add(1, Relaxed);
        let words = format!("a clock that is {off_s} s off");
        Err(session.misbehaved(CloseCode::Limit, words))
    }

    /// The same of what a batch tells: nothing is seen so long before it happens. Not the session's fault but the batch's, which
    /// the agent then leaves out.
    fn check_times(
        &self,
        session: &Session,
        newest: Option<Timestamp>,
        skew_us: i64,
    ) -> Result<(), TransportError> {
        let now = clock::now().0.saturating_add(skew_us);
        let ahead_us = newest.map_or(0, |newest| newest.0.saturating_sub(now));
        let Some(off_s) = self.limits.clock_off_s(ahead_us.max(0)) else {
            return Ok(());
        };
        self.counters.limits.clocks.fetch_add(1, Relaxed);
        let words = format!("a batch with times that are {off_s} s ahead");
        Err(session.misbehaved(CloseCode::Malformed, words))
    }

    async fn take_batch(
        &self,
        session: &Session,
        agent: &Arc<AgentState>,
        of: Rows,
        frame: Frame,
    ) -> Result<(usize, usize), TransportError> {
        let split = match of {
            Rows::Halves => codec::split_batch(&frame),
            Rows::Lookups => codec::split_lookups(&frame),
        };
        let (seq, bytes) = split.map_err(|error| session.undecodable(&error))?;
        let (rows, newest) = looked_at(of, bytes).map_err(|error| {
            let refused = u64::from(error == times::OUT_OF_RANGE);
            self.counters.times_refused.fetch_add(refused, Relaxed);
            session.misbehaved(error.close_code(), error.to_string())
        })?;
        let taken = (rows, unpacked_bytes(bytes));
        let halves = if of == Rows::Halves { rows } else { 0 };
        self.check_journal(session)?;
        let backlog = self.room(session, frame.payload.len()).await?;
        // Room first, then the claim: a number is only claimed for what is really submitted.
        let Ok(room) = self.submissions.reserve().await else {
            return Err(draining(session));
        };
        let at = clock::now();
        let skew_us = agent.heard(None, at);
        self.check_times(session, newest, skew_us)?;
        let batch_bytes = (frame.payload.len() - SEQ_BYTES) as u64;
        let submission = Submission::Batch {
            of,
            at,
            agent: agent.clone(),
            seq,
            skew_us,
            payload: frame.payload,
            newest,
            room: backlog,
        };
        if !agent.claim(seq, halves, || {
            room.send(submission);
        }) {
            self.counters.repeated_batches.fetch_add(1, Relaxed);
            return Ok(taken);
        }
        self.counters.batches.fetch_add(1, Relaxed);
        self.counters.batch_bytes.fetch_add(batch_bytes, Relaxed);
        let total = match of {
            Rows::Halves => &self.counters.halves,
            Rows::Lookups => &self.counters.lookups,
        };
        total.fetch_add(rows as u64, Relaxed);
        Ok(taken)
    }

    async fn room(&self, session: &Session, bytes: usize) -> Result<Room, TransportError> {
        room(&self.backlog, bytes)
            .await
            .ok_or_else(|| draining(session))
    }

    fn check_journal(&self, session: &Session) -> Result<(), TransportError> {
        if self.progress.disk_free.load(Relaxed) < self.min_free_bytes {
            self.counters.disk_full.fetch_add(1, Relaxed);
            return Err(
                session.misbehaved(CloseCode::Internal, "the disk is full: try again later")
            );
        }
        if self.progress.journal_bytes.load(Relaxed) < self.journal_max_bytes {
            return Ok(());
        }
        self.counters.journal_full.fetch_add(1, Relaxed);
        Err(session.misbehaved(CloseCode::Internal, "the journal is full: try again later"))
    }

    async fn submit(
        &self,
        session: &Session,
        submission: Submission,
    ) -> Result<(), TransportError> {
        self.submissions
            .send(submission)
            .await
            .map_err(|_| draining(session))
    }

    async fn serve_streams(self: Arc<Self>, session: Session) -> Result<(), TransportError> {
        let room = Arc::new(Semaphore::new(STREAMS));
        loop {
            let (sender, receiver) = session.accept_bi().await?;
            let Ok(permit) = room.clone().acquire_owned().await else {
                return Ok(());
            };
            let server = self.clone();
            tokio::spawn(async move {
                let peer = receiver.session().peer().to_string();
                if let Err(error) = server.serve_stream(sender, receiver).await {
                    tracing::info!(peer, %error, "stream ended");
                }
                drop(permit);
            });
        }
    }

    async fn serve_stream(
        &self,
        sender: FrameSender,
        mut receiver: FrameReceiver,
    ) -> Result<(), TransportError> {
        let session = receiver.session().clone();
        let Some(first) = receiver.recv_within(HELLO_TIMEOUT).await? else {
            return Ok(());
        };
        match first.kind {
            Kind::Request => {
                roles::require(&session, Act::Ask)?;
                let request: Request = session.decode(&first)?;
                self.queries.answer(sender, request).await
            }
            Kind::PeerHello => {
                roles::require(&session, Act::Exchange)?;
                let hello: PeerHello = session.decode(&first)?;
                session.require_name(&hello.name)?;
                self.serve_peer(&session, &hello, sender, receiver).await
            }
            Kind::IdentityRequest => self.enrol.serve(&session, sender, &first).await,
            Kind::FederationRequest => {
                let request: FederationRequest = session.decode(&first)?;
                roles::require(&session, Act::of_federation(&request))?;
                self.answer_federation(sender, request).await
            }
            Kind::Member => {
                roles::require(&session, Act::Exchange)?;
                match self.peers.members() {
                    Some(members) => members.take(&session, first.payload),
                    None => Ok(()),
                }
            }
            other => Err(session.misbehaved(
                CloseCode::Unexpected,
                format!("{other:?} opens no conversation"),
            )),
        }
    }

    async fn serve_peer(
        &self,
        session: &Session,
        hello: &PeerHello,
        mut sender: FrameSender,
        mut receiver: FrameReceiver,
    ) -> Result<(), TransportError> {
        let peer = session.peer();
        let Some(link) = self.peers.meet(peer.name(), peer.region()) else {
            return Err(session.misbehaved(
                CloseCode::Role,
                format!("{} is no peer here", session.peer()),
            ));
        };
        let region = link.region();
        if !region.is_empty() {
            session.require_region(&region)?;
        }
        sender.send(&self.peers.hello(), SEND_TIMEOUT).await?;
        link.begin_inbound(session, hello);
        self.peers.introduce(&hello.name, &self.submissions).await;
        let up = Contact::PeerUp {
            peer: hello.name.clone(),
            instance: hello.instance,
        };
        self.submit(
            session,
            Submission::Contact {
                session: 0,
                contact: up,
                room: None,
            },
        )
        .await?;
        let acks = Arc::new(watch::Sender::new(0));
        let mut durable = acks.subscribe();
        let acknowledge = async {
            while durable.changed().await.is_ok() {
                let seq = *durable.borrow_and_update();
                sender.send(&Ack { seq }, SEND_TIMEOUT).await?;
            }
            Ok(())
        };
        let listen = async {
            while let Some(frame) = receiver.recv().await? {
                let (seq, mut message) =
                    codec::decode_peer(&frame).map_err(|error| session.undecodable(&error))?;
                let corrected = times::correct(&mut message);
                self.counters.times_corrected.fetch_add(corrected, Relaxed);
                let cost = Cost {
                    frames: 1,
                    bytes: frame.payload.len() as u64,
                    rows: 0,
                };
                let rates = self.limits.peer();
                let wait = self
                    .peer_budgets
                    .charge(&hello.name, rates, clock::now(), cost);
                if !wait.is_zero() {
                    self.counters.limits.peer_waits(wait);
                    tokio::time::sleep(wait).await;
                }
                let room = self.room(session, frame.payload.len()).await?;
                self.take_message(session, &hello.name, (seq, message, room), &acks)
                    .await?;
            }
            Ok(())
        };
        let members = async {
            match self.peers.members() {
                Some(members) => members.listen(session).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = acknowledge => ended,
            ended = listen => ended,
            ended = members => ended,
        }
    }

    async fn take_message(
        &self,
        session: &Session,
        peer: &str,
        (seq, message, room): (u64, PeerMessage, Room),
        acks: &Arc<watch::Sender<u64>>,
    ) -> Result<(), TransportError> {
        if let PeerMessage::Cards(cards) = &message
            && cards.iter().any(|card| card.federator != peer)
        {
            return Err(
                session.misbehaved(CloseCode::Identity, "a card in another federator's name")
            );
        }
        let peer = peer.to_owned();
        match message {
            // Soft state: nothing to make durable.
            message @ (PeerMessage::Offers(_)
            | PeerMessage::Withdraw(_)
            | PeerMessage::Summary(_)
            | PeerMessage::Recall(_)) => {
                let contact = Contact::Said { peer, message };
                self.submit(
                    session,
                    Submission::Contact {
                        session: 0,
                        contact,
                        room: Some(room),
                    },
                )
                .await?;
                // Only what was submitted before may be acknowledged with it: the journal tells, in order.
                let soft = Submission::Acknowledge {
                    seq,
                    acks: acks.clone(),
                };
                self.submit(session, soft).await
            }
            message => {
                self.check_journal(session)?;
                let at = clock::now();
                self.submit(
                    session,
                    Submission::Peer {
                        at,
                        peer,
                        message,
                        seq,
                        acks: acks.clone(),
                        room,
                    },
                )
                .await
            }
        }
    }
}

/// Checks a batch: how many rows, and when the newest half was seen. Of halves, no rows are made.
fn looked_at(of: Rows, bytes: &[u8]) -> Result<(usize, Option<Timestamp>), BatchError> {
    thread_local! {
        /// Its memory is worth keeping, and there are fewer threads than sessions.
        static DECODER: RefCell<BatchDecoder> = RefCell::new(BatchDecoder::new());
        static LOOKUPS: RefCell<LookupDecoder> = RefCell::new(LookupDecoder::new());
    }
    if of == Rows::Lookups {
        let batch = LOOKUPS.with_borrow_mut(|decoder| decoder.decode(bytes))?;
        times::check_lookups(&batch)?;
        return Ok((batch.lookups.len(), None));
    }
    DECODER.with_borrow_mut(|decoder| {
        let columns = decoder.decode(bytes)?;
        times::check_halves(columns)?;
        let newest = columns.seen_at.iter().max();
        Ok((columns.len(), newest.map(|at| Timestamp(*at))))
    })
}

/// The peer's clock when what it said arrived: half a round trip after it was sent.
pub fn sent_at(clock: Timestamp, session: &Session) -> Timestamp {
    let way_us = i64::try_from(session.rtt().as_micros() / 2).unwrap_or(i64::MAX);
    Timestamp(clock.0.saturating_add(way_us))
}

fn draining(session: &Session) -> TransportError {
    session.misbehaved(CloseCode::Draining, "shutting down")
}
