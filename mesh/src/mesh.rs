//! The state machine of one federator in the mesh.

mod outbox;
mod ownership;
mod reach;

use std::collections::{BTreeSet, VecDeque};

use weft_stitching::{HalfView, Verdict};
use weft_wire::control::{EndpointCard, MatchNotice, Offer, PeerMessage};
use weft_wire::{Half, HalfId, Role, Site, Timestamp};

pub use self::outbox::IN_FLIGHT;
use self::outbox::{Ask, InFlight, Peer, Session};
use crate::home::{Act, Asks, Home, HomeCounters, Link, Withdrawn};
use crate::keys::{Keys, MeshKey, handle};
use crate::members::Members;
use crate::owner::{HomeIndex, KeptOffer, Limits, Owner, OwnerCounters, Word};
use crate::policy::KeepHome;
use crate::summary::{Others, Own};

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
    /// How long what somebody waits for may wait for company before it is sent, in microseconds; what nobody waits for waits
    /// some times as long (`outbox::UNHURRIED`). A match is late by up to three times this. 0: nothing waits.
    pub gather_us: i64,
    /// Offers kept as owner; about 170 bytes each. Beyond it offers are refused, and their halves find no partner.
    pub max_offers: usize,
    /// Of these, from one home.
    pub max_offers_per_home: usize,
    /// Whether homes find pairs among their own halves, so that an owner need not, and must not: a home that has both and did not
    /// pair them has a reason.
    pub stitched_at_home: bool,
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
    /// Addresses of our endpoints that were not in our summary, until a peer saw them.
    pub addresses_learnt: u64,
    /// Halves that nobody is asked about now: no other federator has the address of their peers.
    pub held_back: u64,
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
/// **What has expired** is not known here. [`recall`](Self::recall) asks the homes that may have it to look for the other end of a
/// half that came late; what a federator finds when it is asked so, or had to give up while it was [`cut_off`](Self::cut_off), it
/// offers again.
///
/// **Where endpoints are.** [`vouch`](Self::vouch) says behind which public addresses our own can appear; all others are told.
/// While every other federator has said so, a half whose peer's address is nobody's is kept and not offered, until it is
/// somebody's.
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
    own: Own,
    others: Others,
    peers: Vec<Peer>,
    /// Peers for which something may be ready to be sent: with a thousand of them, to look at each is too much.
    ready: BTreeSet<HomeIndex>,
    /// Peers for which something waits for company, by when it is to be sent.
    gathering: BTreeSet<(i64, HomeIndex)>,
    keep_home: KeepHome,
    /// The clock is ahead of `now` by the time in which the program was down.
    slept_us: i64,
    effects: VecDeque<Effect>,
    overflowed: u64,
    recalls_dropped: u64,
    doubts_dropped: u64,
    now: i64,
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
            stitched_at_home: config.stitched_at_home,
        };
        Some(Self {
            name,
            home: Home::new(config.max_halves),
            owner: Owner::new(homes, limits),
            own: Own::default(),
            others: Others::default(),
            peers: (0..homes).map(|_| Peer::default()).collect(),
            ready: BTreeSet::new(),
            gathering: BTreeSet::new(),
            keep_home: KeepHome::default(),
            slept_us: 0,
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
        let asks = self.describe(half, view);
        self.see(view);
        let outside = self.outside(view.remote.ip());
        self.home
            .offer(half, asks, view.closed_at.is_some(), outside)
    }

    /// After a restart: a half with the link that was stored with it.
    pub fn restore(&mut self, half: HalfId, view: &HalfView, link: &Link) {
        let asks = self.describe(half, view);
        if let Some(peer) = self.config.members.index(&link.peer) {
            let finished = view.closed_at.is_some();
            self.home
                .restore(self.now, half, asks, finished, peer, link);
        }
    }

    /// What is told to no other home from here on, not even of the other end of one of its halves.
    pub fn keep_home(&mut self, what: KeepHome) {
        self.keep_home = what;
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
        let asks = self.describe(half, view);
        self.home.updated(half, view, &asks);
    }

    /// The program had been down for so long, and `now` does not include that: keys of the mesh follow the clock.
    pub fn slept(&mut self, us: i64) {
        self.slept_us = self.slept_us.saturating_add(us.max(0));
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
            summary_due: true,
            heard: self.peers[index].heard,
            due: self.peers[index].due,
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
        self.heard_of(index, message);
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
            PeerMessage::Summary(summary) => self.told_where(index, summary),
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
        if self.peers[index].is_blocked() {
            self.ready.insert(index);
        }
        let Some(session) = &mut self.peers[index].session else {
            return;
        };
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
        self.gathered();
        for peer in std::mem::take(&mut self.ready) {
            self.send(peer, records);
        }
    }

    /// When [`advance`](Self::advance) next has anything to do, if nothing happens before; but for what expires.
    pub fn next_timer(&self) -> Option<i64> {
        let gathered = self.gathering.first().map(|(at, _)| *at);
        [gathered, self.owner.next_timer()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Everything that this federator keeps of offers as their owner.
    pub fn kept(&self) -> impl Iterator<Item = KeptOffer> {
        self.owner.kept()
    }

    /// The next effect.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Totals since the start.
    pub fn counters(&self) -> Counters {
        Counters {
            home: self.home.counters,
            addresses_learnt: self.own.learnt,
            held_back: self.home.held_back() as u64,
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

    fn describe(&self, half: HalfId, view: &HalfView) -> Asks {
        let clock = self.now.saturating_add(self.slept_us);
        let (present, before) = self.config.key.keys_at(clock, view);
        let ask = |keys: Keys| {
            let offer = Offer {
                routing_key: keys.routing,
                matching_key: keys.matching,
                role: match view.role {
                    weft_stitching::Role::Client => Role::Client,
                    weft_stitching::Role::Server => Role::Server,
                },
                opened_at: Timestamp(view.opened_at),
                handle: handle(&self.config.name, half),
            };
            (offer, self.config.members.rendezvous(keys.routing))
        };
        Asks {
            first: ask(present),
            second: before.map(ask),
        }
    }

    fn perform(&mut self, act: Act, records: &impl Records) {
        match act {
            Act::Offer(owner, offer) if owner == self.name => {
                self.owner.offer(self.now, owner, offer)
            }
            Act::Offer(owner, offer) => self.queue(owner, true, |peer| {
                peer.asks.push_back(Ask::Offer(offer));
            }),
            Act::Withdraw(owner, handle) if owner == self.name => {
                self.owner.withdraw(owner, handle)
            }
            Act::Withdraw(owner, handle) => self.queue(owner, false, |peer| {
                peer.asks.push_back(Ask::Withdraw(handle));
            }),
            Act::Card(to, half, _) if to == self.name => {
                if let Some((card, finished)) = self.write_card(half, records) {
                    let round = self.home.round(half);
                    self.take_card(to, Box::new(card), records);
                    self.home.card_acknowledged(self.now, half, finished, round);
                }
            }
            Act::Card(to, half, pressing) => {
                self.queue(to, pressing, |peer| peer.cards.push_back(half));
            }
            Act::Doubt(to, handle) if to == self.name => self.home.doubted(to, handle),
            Act::Doubt(to, handle) => self.doubt(to, handle),
            Act::Join(half, card, verdict, named_at) => {
                self.appears(card.half.remote.ip());
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
                self.queue(home, true, |peer| peer.notices.push_back(notice));
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
        let mut card = records.card(half)?;
        self.keep_home.strip(&mut card);
        let Card {
            half: own,
            owner,
            name,
            agent,
            site,
        } = card;
        let finished = own.state.finished();
        let card = EndpointCard {
            yours: link.theirs,
            theirs: handle(&self.config.name, half),
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
}
