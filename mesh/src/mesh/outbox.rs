//! What waits for peers, and when it is sent: alone it would be a message for each word, so words wait a little for company.

use std::collections::{BTreeSet, VecDeque};

use weft_wire::HalfId;
use weft_wire::control::{Handle, MatchNotice, Offer, PeerMessage, Recall};

use super::{Effect, Mesh, Records};
use crate::owner::HomeIndex;

/// Messages to one peer that may be unacknowledged at a time.
pub const IN_FLIGHT: usize = 64;
/// Items in one message, chosen so that it stays far below the frame's limit (a card is at most a few KiB).
const ITEMS: usize = 4096;
const CARDS: usize = 128;

/// Words that nobody waits for may wait so many times as long as others: withdrawals, and cards that follow a first one.
pub const UNHURRIED: i64 = 50;
/// Words that wait for one peer and are enough for a message.
const ENOUGH: usize = 512;

/// What may wait for one peer: so many asks for each of [`Config::max_halves`], so many notices for each of
/// [`Config::max_offers_per_home`]. A session begins with one for each; the rest is for what changes after. Beyond it
/// the session is ended, what waits is dropped, and the next session says again what still holds.
const WAITING_FOR_EACH: usize = 2;

/// Recalls that may wait for one peer. More are dropped, and counted: their halves are found when they come again.
pub(super) const MAX_RECALLS: usize = 65_536;

/// Handles in doubt that may wait for one peer. A peer that reaches us while we cannot reach it makes ever more of them. More
/// are dropped, and counted: an owner says its own again with the next session; of a home's own the other home learns nothing.
const MAX_DOUBTS: usize = 65_536;

/// What waits for one peer. Asks and notices are bounded by [`WAITING_FOR_EACH`], cards by the own halves.
#[derive(Default)]
pub(super) struct Peer {
    pub(super) session: Option<Session>,
    /// Of the last hello, on either session.
    pub(super) instance: Option<u64>,
    pub(super) asks: VecDeque<Ask>,
    pub(super) notices: VecDeque<MatchNotice>,
    pub(super) cards: VecDeque<HalfId>,
    /// Handles of theirs in doubt, each once; kept until acknowledged.
    pub(super) doubts: BTreeSet<Handle>,
    /// Kept until acknowledged.
    pub(super) recalls: VecDeque<Recall>,
    /// It is to be told where our endpoints are.
    pub(super) summary_due: bool,
    /// It has said something, on any session.
    pub(super) heard: bool,
    /// When what waits is to be sent.
    pub(super) due: Option<i64>,
}

impl Peer {
    /// Whether more is to be sent as soon as something is acknowledged.
    pub(super) fn is_blocked(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| session.in_flight.len() >= IN_FLIGHT)
    }
}

/// What a home tells an owner, in its order.
#[derive(Clone, Copy)]
pub(super) enum Ask {
    Offer(Offer),
    Withdraw(Handle),
}

#[derive(Default)]
pub(super) struct Session {
    pub(super) seq: u64,
    pub(super) in_flight: VecDeque<(u64, Vec<InFlight>)>,
}

pub(super) enum InFlight {
    Card {
        half: HalfId,
        finished: bool,
        round: u32,
    },
    Doubt(Handle),
    Recall(Recall),
}

impl Mesh {
    /// Queues a doubt, which is kept until a session takes it.
    pub(super) fn doubt(&mut self, to: HomeIndex, handle: Handle) {
        let doubts = &mut self.peers[to].doubts;
        if doubts.len() >= MAX_DOUBTS && !doubts.contains(&handle) {
            self.doubts_dropped += 1;
            return;
        }
        doubts.insert(handle);
        self.ready.insert(to);
    }

    /// Queues for a peer that can be reached; one that cannot is told when its session begins.
    pub(super) fn queue(&mut self, to: HomeIndex, pressing: bool, item: impl FnOnce(&mut Peer)) {
        let peer = &mut self.peers[to];
        if peer.session.is_none() {
            return;
        }
        item(peer);
        self.gather(to, pressing);
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
    pub(super) fn redial(&mut self, to: HomeIndex) {
        self.lose_session(to);
        let peer = &mut self.peers[to];
        peer.asks = VecDeque::new();
        peer.notices = VecDeque::new();
        peer.cards = VecDeque::new();
        self.effects.push_back(Effect::Redial {
            peer: self.config.members.name(to).to_owned(),
        });
    }

    /// Something waits for a peer: sends it with what else there is, soon or at once.
    pub(super) fn gather(&mut self, to: HomeIndex, pressing: bool) {
        let peer = &mut self.peers[to];
        let wait_us = match (pressing, self.config.gather_us) {
            (true, wait) => wait,
            (false, wait) => wait.saturating_mul(UNHURRIED),
        };
        let waiting = peer.asks.len() + peer.notices.len() + peer.cards.len();
        if wait_us == 0 || waiting >= ENOUGH {
            self.ready.insert(to);
            return;
        }
        let at = self.now.saturating_add(wait_us);
        if peer.due.is_none_or(|due| at < due) {
            if let Some(due) = peer.due.replace(at) {
                self.gathering.remove(&(due, to));
            }
            self.gathering.insert((at, to));
        }
    }

    /// What has waited long enough is ready.
    pub(super) fn gathered(&mut self) {
        while let Some((at, to)) = self
            .gathering
            .first()
            .copied()
            .filter(|(at, _)| *at <= self.now)
        {
            self.gathering.remove(&(at, to));
            self.peers[to].due = None;
            self.ready.insert(to);
        }
    }

    /// Sends what waits for a peer, as far as it may be unacknowledged.
    pub(super) fn send(&mut self, to: HomeIndex, records: &impl Records) {
        if let Some(due) = self.peers[to].due.take() {
            self.gathering.remove(&(due, to));
        }
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
        if std::mem::take(&mut peer.summary_due)
            && let Some(summary) = self.own.summary()
        {
            return Some((PeerMessage::Summary(summary), Vec::new()));
        }
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
