//! The state machine of one federator in the mesh.

mod ownership;

use std::collections::{BTreeSet, VecDeque};

use weft_stitching::{HalfView, Verdict};
use weft_wire::control::{EndpointCard, Handle, MatchNotice, Offer, PeerMessage, Recall};
use weft_wire::{Half, HalfId, Role, Site, Timestamp};

use crate::home::{Act, Home, HomeCounters, Link, Withdrawn};
use crate::keys::MeshKey;
use crate::members::Members;
use crate::owner::{HomeIndex, Limits, Owner, OwnerCounters, Word};

/// How a [`Mesh`] is set. The same on all federators, but for `name` and the limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// This federator.
    pub name: String,
    /// All federators, this one among them.
    pub members: Members,
    /// The mesh's secret.
    pub key: MeshKey,
    /// How long an owner keeps an offer, in microseconds: the stitcher's expiry.
    pub expiry_us: i64,
    /// How long an owner waits for full agreement before it pairs offers that agree only on the client's ISN.
    /// Longer than agents and homes need to report both ends; a match by `tcp-client-isn` is late by this or by the
    /// connection's life, whichever is longer.
    pub partial_delay_us: i64,
    /// Offers kept as owner; about 170 bytes each. Beyond it offers are refused, and their halves find no partner.
    pub max_offers: usize,
    /// Of these, from one home.
    pub max_offers_per_home: usize,
    /// Own halves given to the mesh and not yet done; about 170 bytes each. Beyond it [`Mesh::offer`] refuses.
    pub max_halves: usize,
}

/// What a card says of our half. Times corrected for the agent's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// The half.
    pub half: Half,
    /// Process and workload behind it.
    pub owner: weft_wire::Owner,
    /// The name under which it knew its peer.
    pub name: Option<weft_wire::PeerName>,
    /// Name of the agent that saw it.
    pub agent: String,
    /// Its place.
    pub site: Site,
}

/// The federator's records.
pub trait Records {
    /// Our half as the rules see it; `None` when it is forgotten.
    fn view(&self, half: HalfId) -> Option<HalfView>;
    /// Our half for its card; `None` when it is forgotten.
    fn card(&self, half: HalfId) -> Option<Card>;
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send this on our own session to the peer, with this number.
    Send {
        /// Name of the peer.
        peer: String,
        /// Number within the session, from 1.
        seq: u64,
        /// What to send.
        message: PeerMessage,
    },
    /// Our half and the card's are one connection. Comes again when the other end has news.
    Join {
        /// Our half.
        half: HalfId,
        /// The other end.
        card: Box<EndpointCard>,
        /// By which rule, and how sure.
        verdict: Verdict,
        /// When the other end was first named, by the owner or by its own home.
        named_at: i64,
    },
    /// Several halves claim to be this half's other end: it is ambiguous, and if it was joined it is no more.
    Undo {
        /// Our half.
        half: HalfId,
    },
    /// Both ends are finished, both homes know: nothing more will come of this half, [`Mesh::link`] need not be stored.
    Done {
        /// Our half.
        half: HalfId,
    },
    /// Our session to the peer is of no more use: the peer was restarted, even if that has not shown yet, or it does not
    /// acknowledge and too much waits for it. Close it and dial again.
    Redial {
        /// Name of the peer.
        peer: String,
    },
}

/// What a peer did wrong; the session is closed for it. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misbehaved {
    /// It is not a member of this mesh.
    #[error("the sender is not a member of this mesh")]
    Stranger,
    /// It sent a card in another federator's name.
    #[error("a card in another federator's name")]
    Impersonation,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// As home.
    pub home: HomeCounters,
    /// As owner.
    pub owner: OwnerCounters,
    /// Offers kept as owner now.
    pub offers: u64,
    /// Own halves in the mesh now.
    pub halves: u64,
    /// Own sessions ended because the peer did not acknowledge and too much waited for it.
    pub overflowed: u64,
    /// Recalls not sent to a peer because too many waited for it.
    pub recalls_dropped: u64,
    /// Doubts not sent to a peer because too many waited for it.
    pub doubts_dropped: u64,
}

/// Who could not be asked about a half when it was to be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// Its owner.
    pub owner: bool,
    /// The home of its named partner.
    pub partner: bool,
}

/// One federator's part in the mesh: a home of its own halves, and an owner of a share of all offers.
///
/// # Contract
///
/// **Inputs.** Of the stitcher: [`offer`](Self::offer) for each half that it offers, [`withdraw`](Self::withdraw) when it
/// matched, doubts or expires one that was offered. Of the agents: [`updated`](Self::updated) when a half that was
/// offered has closed. Of sessions: [`session_up`](Self::session_up) and [`session_down`](Self::session_down) for the one
/// that we dial, [`peer_session_up`](Self::peer_session_up) for the one that the peer dials, [`received`](Self::received)
/// for each message on the latter, [`acked`](Self::acked) for each acknowledgement on the former (of the present
/// session only). [`advance`](Self::advance) after any of these, and every 100 ms or so; then [`poll`](Self::poll) until `None`.
///
/// **Sends** carry their number within the session. They come only while a session is up; when it is lost they need not
/// be kept: what the peer has not acknowledged is said again when the next one begins. At most [`IN_FLIGHT`] are
/// unacknowledged at a time.
///
/// **What the federator must make durable** before it acknowledges: every message that [`received`](Self::received)
/// was given of the kinds `Matched`, `Cards` and `Ambiguous` (offers and withdrawals change nothing that outlives this
/// process, and may be acknowledged at once). What is stored with a half is its [`link`](Self::link) and what `Join`, `Undo` and
/// `Done` said, read together after `advance` and a `poll` that gave `None`. After a restart, in this order: `offer` (with the stored state of the
/// half) for every established half without partner that is within its expiry, [`restore`](Self::restore) for each
/// half with a stored [`link`](Self::link) that is not `Done`, then `received` with the journalled messages that the store
/// does not include, in their order, with what the stitcher says in between. Handles are hashes of the half's id, so those
/// given out before the restart are still right. Sessions come after.
///
/// **What has expired** is not known here. [`recall`](Self::recall) asks all homes to look for the other end of a half that came
/// late; what a federator finds when it is asked so, or had to give up while it was [`cut_off`](Self::cut_off), it offers again.
///
/// **Guarantees.** A half is joined only by its other end's card and [`judge`](weft_stitching::judge()), never by an owner's word: a
/// lying owner or a colliding hash joins nothing. Both homes judge the same two halves by the same rules. Messages
/// may be repeated, and come late or out of order from one session to the next. Every pair of halves whose homes and
/// owner can reach each other for long enough within the expiry is joined. If a third half with the same fingerprint
/// comes up within the expiry, all three are `Undo`ne.
///
/// **Not covered.** Two halves of which only one has ISNs meet only at one home: their routing keys differ.
pub struct Mesh {
    name: HomeIndex,
    config: Config,
    home: Home,
    owner: Owner,
    peers: Vec<Peer>,
    /// Peers for which something may be ready to be sent: with a thousand of them, to look at each is too much.
    ready: BTreeSet<HomeIndex>,
    effects: VecDeque<Effect>,
    overflowed: u64,
    recalls_dropped: u64,
    doubts_dropped: u64,
    now: i64,
}

/// Messages to one peer that may be unacknowledged at a time.
pub const IN_FLIGHT: usize = 64;
/// Items in one message, chosen so that it stays far below the frame's limit (a card is at most a few KiB).
const ITEMS: usize = 4096;
const CARDS: usize = 128;

/// What may wait for one peer: so many asks for each of [`Config::max_halves`], so many notices for each of
/// [`Config::max_offers_per_home`]. A session begins with one for each; the rest is for what changes after. Beyond it
/// the session is ended, what waits is dropped, and the next session says again what still holds.
const WAITING_FOR_EACH: usize = 2;

/// Recalls that may wait for one peer. More are dropped, and counted: their halves are found when they come again.
const MAX_RECALLS: usize = 65_536;

/// Handles in doubt that may wait for one peer. A peer that reaches us while we cannot reach it makes ever more of them. More
/// are dropped, and counted: an owner says its own again with the next session; of a home's own the other home learns nothing.
const MAX_DOUBTS: usize = 65_536;

/// What waits for one peer. Asks and notices are bounded by [`WAITING_FOR_EACH`], cards by the own halves.
#[derive(Default)]
struct Peer {
    session: Option<Session>,
    /// Of the last hello, on either session.
    instance: Option<u64>,
    asks: VecDeque<Ask>,
    notices: VecDeque<MatchNotice>,
    cards: VecDeque<HalfId>,
    /// Handles of theirs in doubt, each once; kept until acknowledged.
    doubts: BTreeSet<Handle>,
    /// Kept until acknowledged.
    recalls: VecDeque<Recall>,
}

/// What a home tells an owner, in its order.
#[derive(Clone, Copy)]
enum Ask {
    Offer(Offer),
    Withdraw(Handle),
}

#[derive(Default)]
struct Session {
    seq: u64,
    in_flight: VecDeque<(u64, Vec<InFlight>)>,
}

enum InFlight {
    Card {
        half: HalfId,
        finished: bool,
        round: u32,
    },
    Doubt(Handle),
    Recall(Recall),
}

impl Mesh {
    /// A federator of the mesh that knows nothing yet. `None` when it is not a member itself.
    pub fn new(config: Config) -> Option<Self> {
        let name = config.members.index(&config.name)?;
        let homes = config.members.len();
        let limits = Limits {
            expiry_us: config.expiry_us,
            partial_delay_us: config.partial_delay_us,
            max_offers: config.max_offers,
            max_offers_per_home: config.max_offers_per_home,
        };
        Some(Self {
            name,
            home: Home::new(config.max_halves),
            owner: Owner::new(homes, limits),
            peers: (0..homes).map(|_| Peer::default()).collect(),
            ready: BTreeSet::new(),
            effects: VecDeque::new(),
            overflowed: 0,
            recalls_dropped: 0,
            doubts_dropped: 0,
            now: i64::MIN,
            config,
        })
    }

    /// The stitcher found no partner for this half: ask the mesh. `false`: there is no room ([`Config::max_halves`]).
    pub fn offer(&mut self, half: HalfId, view: &HalfView) -> bool {
        let (offer, owner) = self.describe(half, view);
        self.home
            .offer(half, offer, owner, view.closed_at.is_some())
    }

    /// After a restart: a half with the link that was stored with it.
    pub fn restore(&mut self, half: HalfId, view: &HalfView, link: &Link) {
        let described = self.describe(half, view);
        if let Some(peer) = self.config.members.index(&link.peer) {
            let finished = view.closed_at.is_some();
            self.home
                .restore(self.now, half, described, finished, peer, link);
        }
    }

    /// What is to be stored with a half; `None` when it has no named partner.
    pub fn link(&self, half: HalfId) -> Option<Link> {
        self.home
            .link(half, |peer| self.config.members.name(peer).to_owned())
    }

    /// The half has been offered, and is no longer to be.
    pub fn withdraw(&mut self, now: i64, half: HalfId, why: Withdrawn) {
        self.home.withdraw(now, half, why);
    }

    /// A half that was offered has closed, or the answer to its first datagram was seen.
    pub fn updated(&mut self, half: HalfId, view: &HalfView) {
        let (offer, _) = self.describe(half, view);
        self.home.updated(half, view, offer);
    }

    /// A half came so late that its other end may have expired: asks all homes that can be reached to offer that again.
    pub fn recall(&mut self, recall: Recall) {
        for peer in 0..self.peers.len() {
            if self.peers[peer].session.is_some() {
                self.queue_recall(peer, recall);
            }
        }
    }

    /// The same, of one home that could not be reached before.
    pub fn recall_from(&mut self, peer: &str, recall: Recall) {
        if let Some(peer) = self.config.members.index(peer)
            && self.peers[peer].session.is_some()
        {
            self.queue_recall(peer, recall);
        }
    }

    fn queue_recall(&mut self, to: HomeIndex, recall: Recall) {
        let peer = &mut self.peers[to];
        if peer.recalls.len() >= MAX_RECALLS {
            self.recalls_dropped += 1;
            return;
        }
        peer.recalls.push_back(recall);
        self.ready.insert(to);
    }

    /// Whether there is a session of ours to every other federator.
    pub fn reaches_all(&self) -> bool {
        let others = self.peers.iter().enumerate();
        let mut others = others.filter(|(index, _)| *index != self.name);
        others.all(|(_, peer)| peer.session.is_some())
    }

    /// Who of those concerned with an offered half cannot be reached.
    pub fn cut_off(&self, half: HalfId) -> CutOff {
        let away = |index: HomeIndex| index != self.name && self.peers[index].session.is_none();
        let (owner, partner) = self.home.concerned(half);
        CutOff {
            owner: owner.is_some_and(away),
            partner: partner.is_some_and(away),
        }
    }

    /// Our session to this peer begins; `instance` is from its hello.
    pub fn session_up(&mut self, peer: &str, instance: u64) {
        let Some(index) = self.config.members.index(peer) else {
            return;
        };
        let mut doubts = std::mem::take(&mut self.peers[index].doubts);
        let unacknowledged = self.peers[index]
            .session
            .take()
            .map(|session| session.in_flight)
            .unwrap_or_default();
        let mut recalls = std::mem::take(&mut self.peers[index].recalls);
        for item in unacknowledged.into_iter().flat_map(|(_, items)| items) {
            match item {
                // The owner's part says its own again with every session.
                InFlight::Doubt(handle) => drop(doubts.insert(handle)),
                InFlight::Recall(recall) => recalls.push_back(recall),
                InFlight::Card { .. } => {}
            }
        }
        self.peers[index] = Peer {
            session: Some(Session::default()),
            instance: Some(instance),
            doubts,
            recalls,
            ..Peer::default()
        };
        self.ready.insert(index);
        self.home.session_begins(index);
        self.owner.tell_again(index);
    }

    /// Our session to this peer ended.
    pub fn session_down(&mut self, peer: &str) {
        let Some(index) = self.config.members.index(peer) else {
            return;
        };
        self.lose_session(index);
    }

    fn lose_session(&mut self, index: HomeIndex) {
        let peer = &mut self.peers[index];
        let in_flight = peer
            .session
            .take()
            .map(|session| session.in_flight)
            .unwrap_or_default();
        for item in in_flight.into_iter().flat_map(|(_, items)| items) {
            match item {
                InFlight::Doubt(handle) => drop(peer.doubts.insert(handle)),
                InFlight::Recall(recall) => peer.recalls.push_back(recall),
                InFlight::Card { .. } => {}
            }
        }
    }

    /// The peer's session to us begins; `instance` is from its hello.
    pub fn peer_session_up(&mut self, peer: &str, instance: u64) {
        let Some(index) = self.config.members.index(peer) else {
            return;
        };
        self.owner.home_returns(index);
        let known = &mut self.peers[index];
        if known.session.is_some() && known.instance.is_some_and(|before| before != instance) {
            self.redial(index);
        }
        self.peers[index].instance = Some(instance);
    }

    /// A message from a peer, on its session. For what must be durable before it is acknowledged see [`Mesh`].
    pub fn received(
        &mut self,
        now: i64,
        peer: &str,
        message: &PeerMessage,
        records: &impl Records,
    ) -> Result<(), Misbehaved> {
        let index = self
            .config
            .members
            .index(peer)
            .ok_or(Misbehaved::Stranger)?;
        self.now = self.now.max(now);
        match message {
            PeerMessage::Offers(offers) => offers
                .iter()
                .for_each(|offer| self.owner.offer(self.now, index, *offer)),
            PeerMessage::Withdraw(handles) => handles
                .iter()
                .for_each(|handle| self.owner.withdraw(index, *handle)),
            PeerMessage::Matched(notices) => {
                for notice in notices {
                    if let Some(home) = self.config.members.index(&notice.home) {
                        self.home.notice(
                            self.now,
                            notice.yours,
                            notice.theirs,
                            home,
                            notice.partial,
                        );
                    }
                }
            }
            PeerMessage::Cards(cards) => {
                if cards.iter().any(|card| card.federator != peer) {
                    return Err(Misbehaved::Impersonation);
                }
                cards
                    .iter()
                    .for_each(|card| self.take_card(index, Box::new(card.clone()), records));
            }
            PeerMessage::Ambiguous(handles) => handles
                .iter()
                .for_each(|handle| self.home.doubted(index, *handle)),
            // What has expired is not known here: the federator looks for it in its store.
            PeerMessage::Recall(_) => {}
        }
        Ok(())
    }

    /// The peer has made everything up to this number of the present session durable.
    pub fn acked(&mut self, now: i64, peer: &str, seq: u64) {
        let Some(index) = self.config.members.index(peer) else {
            return;
        };
        let Some(session) = &mut self.peers[index].session else {
            return;
        };
        self.ready.insert(index);
        while session
            .in_flight
            .front()
            .is_some_and(|(first, _)| *first <= seq)
        {
            for item in session
                .in_flight
                .pop_front()
                .map(|(_, items)| items)
                .unwrap_or_default()
            {
                if let InFlight::Card {
                    half,
                    finished,
                    round,
                } = item
                {
                    self.home.card_acknowledged(now, half, finished, round);
                }
            }
        }
    }

    /// Time has passed, or anything else has happened: decides, and prepares what is to be sent.
    pub fn advance(&mut self, now: i64, records: &impl Records) {
        self.now = self.now.max(now);
        self.owner.advance(self.now);
        self.home.advance(self.now, self.config.expiry_us);
        loop {
            while let Some(act) = self.home.poll() {
                self.perform(act, records);
            }
            let Some((home, word)) = self.owner.poll() else {
                break;
            };
            self.tell(home, word);
        }
        for peer in std::mem::take(&mut self.ready) {
            self.send(peer, records);
        }
    }

    /// The next effect.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Totals since the start.
    pub fn counters(&self) -> Counters {
        Counters {
            home: self.home.counters,
            owner: self.owner.counters(),
            offers: self.owner.len() as u64,
            halves: self.home.len() as u64,
            overflowed: self.overflowed,
            recalls_dropped: self.recalls_dropped,
            doubts_dropped: self.doubts_dropped,
        }
    }

    /// Items that wait for a peer, for its health.
    pub fn queued(&self, peer: &str) -> usize {
        self.config.members.index(peer).map_or(0, |index| {
            let peer = &self.peers[index];
            let urgent = peer.doubts.len() + peer.recalls.len();
            peer.asks.len() + peer.notices.len() + peer.cards.len() + urgent
        })
    }

    fn describe(&self, half: HalfId, view: &HalfView) -> (Offer, HomeIndex) {
        let keys = self.config.key.keys(view);
        let offer = Offer {
            routing_key: keys.routing,
            matching_key: keys.matching,
            role: match view.role {
                weft_stitching::Role::Client => Role::Client,
                weft_stitching::Role::Server => Role::Server,
            },
            opened_at: Timestamp(view.opened_at),
            handle: self.config.key.handle(&self.config.name, half),
        };
        (offer, self.config.members.rendezvous(keys.routing))
    }

    fn perform(&mut self, act: Act, records: &impl Records) {
        match act {
            Act::Offer(owner, offer) if owner == self.name => {
                self.owner.offer(self.now, owner, offer)
            }
            Act::Offer(owner, offer) => {
                self.queue(owner, |peer| peer.asks.push_back(Ask::Offer(offer)))
            }
            Act::Withdraw(owner, handle) if owner == self.name => {
                self.owner.withdraw(owner, handle)
            }
            Act::Withdraw(owner, handle) => {
                self.queue(owner, |peer| peer.asks.push_back(Ask::Withdraw(handle)))
            }
            Act::Card(to, half) if to == self.name => {
                if let Some((card, finished)) = self.write_card(half, records) {
                    let round = self.home.round(half);
                    self.take_card(to, Box::new(card), records);
                    self.home.card_acknowledged(self.now, half, finished, round);
                }
            }
            Act::Card(to, half) => self.queue(to, |peer| peer.cards.push_back(half)),
            Act::Doubt(to, handle) if to == self.name => self.home.doubted(to, handle),
            Act::Doubt(to, handle) => self.doubt(to, handle),
            Act::Join(half, card, verdict, named_at) => {
                self.effects.push_back(Effect::Join {
                    half,
                    card,
                    verdict,
                    named_at,
                });
                self.home.finish(self.now, half);
            }
            Act::Undo(half) => self.effects.push_back(Effect::Undo { half }),
            Act::Done(half) => self.effects.push_back(Effect::Done { half }),
        }
    }

    /// Queues a doubt, which is kept until a session takes it.
    fn doubt(&mut self, to: HomeIndex, handle: Handle) {
        let doubts = &mut self.peers[to].doubts;
        if doubts.len() >= MAX_DOUBTS && !doubts.contains(&handle) {
            self.doubts_dropped += 1;
            return;
        }
        doubts.insert(handle);
        self.ready.insert(to);
    }

    /// Queues for a peer that can be reached; one that cannot is told when its session begins.
    fn queue(&mut self, to: HomeIndex, item: impl FnOnce(&mut Peer)) {
        let peer = &mut self.peers[to];
        if peer.session.is_none() {
            return;
        }
        item(peer);
        self.ready.insert(to);
        let peer = &self.peers[to];
        let asks = self.config.max_halves.saturating_mul(WAITING_FOR_EACH);
        let notices = self
            .config
            .max_offers_per_home
            .saturating_mul(WAITING_FOR_EACH);
        if peer.asks.len() > asks || peer.notices.len() > notices {
            self.overflowed += 1;
            self.redial(to);
        }
    }

    /// Our session is of no more use. What the next one says anew need not wait.
    fn redial(&mut self, to: HomeIndex) {
        self.lose_session(to);
        let peer = &mut self.peers[to];
        peer.asks = VecDeque::new();
        peer.notices = VecDeque::new();
        peer.cards = VecDeque::new();
        self.effects.push_back(Effect::Redial {
            peer: self.config.members.name(to).to_owned(),
        });
    }

    fn tell(&mut self, home: HomeIndex, word: Word) {
        match word {
            Word::Matched {
                yours,
                theirs,
                home: other,
                partial,
            } if home == self.name => {
                self.home.notice(self.now, yours, theirs, other, partial);
            }
            Word::Ambiguous(yours) if home == self.name => self.home.doubted(home, yours),
            Word::Matched {
                yours,
                theirs,
                home: other,
                partial,
            } => {
                let notice = MatchNotice {
                    yours,
                    theirs,
                    home: self.config.members.name(other).to_owned(),
                    partial,
                };
                self.queue(home, |peer| peer.notices.push_back(notice));
            }
            Word::Ambiguous(yours) => self.doubt(home, yours),
        }
    }

    fn take_card(&mut self, from: HomeIndex, card: Box<EndpointCard>, records: &impl Records) {
        self.home
            .card(self.now, from, card, |half| records.view(half));
    }

    fn write_card(&self, half: HalfId, records: &impl Records) -> Option<(EndpointCard, bool)> {
        let link = self.link(half)?;
        let Card {
            half: own,
            owner,
            name,
            agent,
            site,
        } = records.card(half)?;
        let finished = own.state.finished();
        let card = EndpointCard {
            yours: link.theirs,
            theirs: self.config.key.handle(&self.config.name, half),
            partial: link.partial,
            half: own,
            owner,
            name,
            agent,
            federator: self.config.name.clone(),
            site,
        };
        Some((card, finished))
    }

    /// Sends what waits for a peer, as far as it may be unacknowledged.
    fn send(&mut self, to: HomeIndex, records: &impl Records) {
        while self.peers[to]
            .session
            .as_ref()
            .is_some_and(|session| session.in_flight.len() < IN_FLIGHT)
        {
            let Some((message, in_flight)) = self.next_message(to, records) else {
                return;
            };
            let Some(session) = &mut self.peers[to].session else {
                return;
            };
            session.seq += 1;
            session.in_flight.push_back((session.seq, in_flight));
            let peer = self.config.members.name(to).to_owned();
            self.effects.push_back(Effect::Send {
                peer,
                seq: session.seq,
                message,
            });
        }
    }

    fn next_message(
        &mut self,
        to: HomeIndex,
        records: &impl Records,
    ) -> Option<(PeerMessage, Vec<InFlight>)> {
        fn some<T>(queue: &mut VecDeque<T>) -> Vec<T> {
            let n = queue.len().min(ITEMS);
            queue.drain(..n).collect()
        }
        let peer = &mut self.peers[to];
        if !peer.doubts.is_empty() {
            let first = std::iter::from_fn(|| peer.doubts.pop_first());
            let handles: Vec<_> = first.take(ITEMS).collect();
            let in_flight = handles.iter().copied().map(InFlight::Doubt).collect();
            return Some((PeerMessage::Ambiguous(handles), in_flight));
        }
        if !peer.recalls.is_empty() {
            let recalls = some(&mut peer.recalls);
            let in_flight = recalls.iter().copied().map(InFlight::Recall).collect();
            return Some((PeerMessage::Recall(recalls), in_flight));
        }
        if let Some(asked) = next_asks(&mut peer.asks) {
            return Some((asked, Vec::new()));
        }
        if !peer.notices.is_empty() {
            return Some((PeerMessage::Matched(some(&mut peer.notices)), Vec::new()));
        }
        let mut cards = Vec::new();
        let mut in_flight = Vec::new();
        while cards.len() < CARDS
            && let Some(half) = self.peers[to].cards.pop_front()
        {
            if let Some((card, finished)) = self.write_card(half, records) {
                cards.push(card);
                let round = self.home.round(half);
                in_flight.push(InFlight::Card {
                    half,
                    finished,
                    round,
                });
            }
        }
        (!cards.is_empty()).then_some((PeerMessage::Cards(cards), in_flight))
    }
}

/// A run of offers or of withdrawals: their order counts where a half is offered again.
fn next_asks(asks: &mut VecDeque<Ask>) -> Option<PeerMessage> {
    let (mut offers, mut withdrawals) = (Vec::new(), Vec::new());
    while offers.len() + withdrawals.len() < ITEMS {
        match asks.front() {
            Some(Ask::Offer(offer)) if withdrawals.is_empty() => offers.push(*offer),
            Some(Ask::Withdraw(handle)) if offers.is_empty() => withdrawals.push(*handle),
            _ => break,
        }
        asks.pop_front();
    }
    match (offers.is_empty(), withdrawals.is_empty()) {
        (true, true) => None,
        (false, _) => Some(PeerMessage::Offers(offers)),
        (true, false) => Some(PeerMessage::Withdraw(withdrawals)),
    }
}
