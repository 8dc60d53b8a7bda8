//! The home's part: what became of our halves that are matched, or looked for, through the mesh.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weft_stitching::judge::fit;
use weft_stitching::{Fit, HalfView, Role, Verdict};
use weft_wire::HalfId;
use weft_wire::control::{EndpointCard, Handle, Offer};

use crate::keys::card_view;
use crate::members::Members;
use crate::owner::{HomeIndex, Map};

/// Why a half is taken back from the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// It has a partner at home.
    Matched,
    /// Several halves would fit it, or its match was contested.
    Ambiguous,
    /// It has waited long enough. A half whose partner is named already stays until the other home has spoken.
    Expired,
}

/// What a home knows of the other end of one of its halves; what the federator stores with the half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The other end's home.
    pub peer: String,
    /// Its name for the other end.
    pub theirs: Handle,
    /// Only the routing key agreed.
    pub partial: bool,
    /// The other end's card came and was found good: the halves are joined.
    pub joined: bool,
    /// The other end's last word has come: its half is finished.
    pub heard_final: bool,
    /// The other home has acknowledged our last word: our half, finished.
    pub told_final: bool,
}

/// How much the other home has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Told {
    Nothing,
    Open,
    Final,
}

/// What the home wants done.
#[derive(Debug)]
pub(crate) enum Act {
    Offer(HomeIndex, Offer),
    Withdraw(HomeIndex, Handle),
    /// Send the card of this half.
    Card(HomeIndex, HalfId),
    /// Tell a home that its handle is in doubt.
    Doubt(HomeIndex, Handle),
    /// The half, the other end, and since when the other end is named.
    Join(HalfId, Box<EndpointCard>, Verdict, i64),
    Undo(HalfId),
    Done(HalfId),
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HomeCounters {
    /// Halves given to the mesh.
    pub offered: u64,
    /// Halves not given to it because it had too many.
    pub refused: u64,
    /// Halves joined.
    pub joined: u64,
    /// Matches undone.
    pub undone: u64,
    /// Notices and cards for handles that are not known (any more).
    pub unknown_handle: u64,
    /// Cards that do not fit the half they claim to be the other end of.
    pub rejected: u64,
    /// Notices or cards that name a second partner for a half.
    pub conflicting: u64,
    /// Named partners whose home never spoke.
    pub silent: u64,
    /// Halves offered to another owner, because federators came or went.
    pub reoffered: u64,
}

#[derive(Clone, Debug)]
struct LinkState {
    peer: HomeIndex,
    theirs: Handle,
    /// When it was first named, in this run of the program.
    named_at: i64,
    partial: bool,
    /// A card has come, and it was too early to judge it.
    early: bool,
    joined: bool,
    heard_final: bool,
    /// Acknowledged.
    told: Told,
    /// Queued or on its way in the present session.
    sent: Told,
    /// How often our card was begun anew: an acknowledgement of an earlier one counts no more.
    round: u32,
}

struct OwnHalf {
    offer: Offer,
    owner: HomeIndex,
    finished: bool,
    link: Option<LinkState>,
    done: bool,
}

/// Halves of this home that the mesh is asked about or has matched.
pub(crate) struct Home {
    halves: Map<u64, OwnHalf>,
    handles: Map<u64, HalfId>,
    /// Ids by those who may have to be told again: the owner, and the partner's home.
    by_peer: BTreeMap<HomeIndex, BTreeSet<u64>>,
    /// When to forget: halves that are done, and links that stay silent.
    timers: VecDeque<(i64, HalfId)>,
    acts: VecDeque<Act>,
    max_halves: usize,
    pub(crate) counters: HomeCounters,
}

impl Home {
    pub(crate) fn new(max_halves: usize) -> Self {
        Self {
            halves: Map::default(),
            handles: Map::default(),
            by_peer: BTreeMap::new(),
            timers: VecDeque::new(),
            acts: VecDeque::new(),
            max_halves,
            counters: HomeCounters::default(),
        }
    }

    pub(crate) fn poll(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.halves.len()
    }

    pub(crate) fn offer(
        &mut self,
        id: HalfId,
        offer: Offer,
        owner: HomeIndex,
        finished: bool,
    ) -> bool {
        if self.halves.contains_key(&id.0) {
            return true;
        }
        if self.halves.len() >= self.max_halves {
            self.counters.refused += 1;
            return false;
        }
        self.counters.offered += 1;
        self.handles.insert(offer.handle.0, id);
        self.file(id, owner);
        self.halves.insert(
            id.0,
            OwnHalf {
                offer,
                owner,
                finished,
                link: None,
                done: false,
            },
        );
        self.acts.push_back(Act::Offer(owner, offer));
        true
    }

    /// A half that was linked before a restart.
    pub(crate) fn restore(
        &mut self,
        now: i64,
        id: HalfId,
        (offer, owner): (Offer, HomeIndex),
        finished: bool,
        peer: HomeIndex,
        link: &Link,
    ) {
        let told = if link.told_final {
            Told::Final
        } else {
            Told::Nothing
        };
        let link = LinkState {
            peer,
            theirs: link.theirs,
            named_at: now,
            partial: link.partial,
            early: false,
            joined: link.joined,
            heard_final: link.heard_final,
            told,
            sent: told,
            round: 0,
        };
        self.handles.insert(offer.handle.0, id);
        self.file(id, owner);
        self.file(id, peer);
        self.halves.insert(
            id.0,
            OwnHalf {
                offer,
                owner,
                finished,
                link: Some(link),
                done: false,
            },
        );
        self.send_card(id);
    }

    pub(crate) fn link(&self, id: HalfId, name: impl Fn(HomeIndex) -> String) -> Option<Link> {
        let link = self.halves.get(&id.0)?.link.as_ref()?;
        Some(Link {
            peer: name(link.peer),
            theirs: link.theirs,
            partial: link.partial,
            joined: link.joined,
            heard_final: link.heard_final,
            told_final: link.told == Told::Final,
        })
    }

    /// The owner of a half, and the home of its partner if one is named.
    pub(crate) fn concerned(&self, id: HalfId) -> (Option<HomeIndex>, Option<HomeIndex>) {
        let half = self.halves.get(&id.0);
        let link = half.and_then(|half| half.link.as_ref());
        (half.map(|half| half.owner), link.map(|link| link.peer))
    }

    pub(crate) fn withdraw(&mut self, now: i64, id: HalfId, why: Withdrawn) {
        let Some(half) = self.halves.get(&id.0) else {
            return;
        };
        match (&half.link, why) {
            (Some(link), Withdrawn::Expired) => {
                if !link.joined {
                    self.timers.push_back((now, id));
                }
                return;
            }
            (Some(link), _) if link.joined || link.sent > Told::Nothing => {
                self.acts.push_back(Act::Doubt(link.peer, link.theirs));
            }
            _ => {}
        }
        self.forget(id);
    }

    /// Our half was reported on again. Its keys may be others now: the answer to a first datagram was seen.
    pub(crate) fn updated(&mut self, id: HalfId, own: &HalfView, offer: Offer) {
        let Some(half) = self.halves.get_mut(&id.0) else {
            return;
        };
        if half.link.is_none()
            && half.offer.routing_key == offer.routing_key
            && half.offer.matching_key != offer.matching_key
        {
            half.offer = offer;
            self.acts.push_back(Act::Offer(half.owner, offer));
        }
        if half.finished || own.closed_at.is_none() {
            return;
        }
        half.finished = true;
        self.send_card(id);
    }

    /// The owner names a partner.
    pub(crate) fn notice(
        &mut self,
        now: i64,
        yours: Handle,
        theirs: Handle,
        peer: HomeIndex,
        partial: bool,
    ) {
        if let Some(id) = self.known(yours)
            && self.name_partner(now, id, theirs, peer, partial)
        {
            self.send_card(id);
        }
    }

    /// The other end's home speaks.
    pub(crate) fn card(
        &mut self,
        now: i64,
        peer: HomeIndex,
        card: Box<EndpointCard>,
        own: impl Fn(HalfId) -> Option<HalfView>,
    ) {
        let Some(id) = self.known(card.yours) else {
            return;
        };
        if !self.name_partner(now, id, card.theirs, peer, card.partial) {
            return;
        }
        let link = self.halves.get(&id.0).and_then(|half| half.link.as_ref());
        let spoken = link.is_some_and(|link| link.sent > Told::Nothing);
        self.send_card(id);
        match own(id) {
            Some(own) => self.weigh(id, &own, card, spoken),
            None => self.forget(id),
        }
    }

    /// An owner or the other home has doubts.
    pub(crate) fn doubted(&mut self, from: HomeIndex, yours: Handle) {
        let Some(id) = self.known(yours) else { return };
        let Some(half) = self.halves.get(&id.0) else {
            return;
        };
        if half.owner == from || half.link.as_ref().is_some_and(|link| link.peer == from) {
            self.undo(id);
        }
    }

    /// A session to this peer begins: says everything that it has not acknowledged.
    pub(crate) fn session_begins(&mut self, peer: HomeIndex) {
        let ids = self.by_peer.get(&peer).cloned();
        for id in ids.into_iter().flatten() {
            let Some(half) = self.halves.get_mut(&id) else {
                continue;
            };
            match &mut half.link {
                None if half.owner == peer => self.acts.push_back(Act::Offer(peer, half.offer)),
                Some(link) => {
                    // A partner that agrees in part may be refused: the owner is to go on looking.
                    if half.owner == peer && link.partial && !link.joined {
                        self.acts.push_back(Act::Offer(peer, half.offer));
                    }
                    if link.peer == peer {
                        link.sent = link.told;
                        self.send_card(HalfId(id));
                    }
                }
                None => {}
            }
        }
    }

    /// Owners have gained weight, or lost some: halves that are another's now are offered to that one. How many.
    pub(crate) fn reassign(
        &mut self,
        members: &Members,
        more: &[HomeIndex],
        less: &[HomeIndex],
    ) -> usize {
        let mut moved = Vec::new();
        let of_less = less.iter().flat_map(|owner| self.by_peer.get(owner));
        for id in of_less.flatten() {
            if let Some(half) = self.halves.get(id) {
                let to = members.rendezvous(half.offer.routing_key);
                moved.push((*id, to));
            }
        }
        if !more.is_empty() {
            for (id, half) in &self.halves {
                if !less.contains(&half.owner) {
                    let to = members.better_of(half.offer.routing_key, half.owner, more);
                    moved.push((*id, to));
                }
            }
        }
        moved.sort_unstable();
        moved.dedup();
        moved
            .into_iter()
            .filter(|(id, to)| self.move_to(HalfId(*id), *to))
            .count()
    }

    /// Another owns the half's offer now.
    fn move_to(&mut self, id: HalfId, to: HomeIndex) -> bool {
        let Some(half) = self.halves.get_mut(&id.0) else {
            return false;
        };
        let from = std::mem::replace(&mut half.owner, to);
        if from == to || half.done {
            return false;
        }
        let (offer, peer) = (half.offer, half.peer());
        let asked = half
            .link
            .as_ref()
            .is_none_or(|link| link.partial && !link.joined);
        if peer != from || half.link.is_none() {
            self.unfile(id, from);
        }
        self.file(id, to);
        if asked {
            self.acts.push_back(Act::Withdraw(from, offer.handle));
            self.acts.push_back(Act::Offer(to, offer));
        }
        self.counters.reoffered += u64::from(asked);
        asked
    }

    /// The peer has made a card durable.
    pub(crate) fn card_acknowledged(&mut self, now: i64, id: HalfId, finished: bool, round: u32) {
        let link = self
            .halves
            .get_mut(&id.0)
            .and_then(|half| half.link.as_mut());
        let Some(link) = link.filter(|link| link.round == round) else {
            return;
        };
        link.told = link
            .told
            .max(if finished { Told::Final } else { Told::Open });
        self.finish(now, id);
    }

    /// Which card of this half is the present one.
    pub(crate) fn round(&self, id: HalfId) -> u32 {
        self.halves
            .get(&id.0)
            .and_then(|half| half.link.as_ref())
            .map_or(0, |link| link.round)
    }

    /// Forgets what is done, and partners that stayed silent, after `keep_us`. The partner of a partial match has nothing
    /// to say before the connection ends.
    pub(crate) fn advance(&mut self, now: i64, keep_us: i64) {
        while let Some((at, id)) = self.timers.front().copied() {
            if at > now.saturating_sub(keep_us) {
                break;
            }
            self.timers.pop_front();
            let joined = |half: &OwnHalf| half.link.as_ref().is_some_and(|link| link.joined);
            let partial = |half: &OwnHalf| {
                half.link
                    .as_ref()
                    .is_some_and(|link| link.partial || link.early)
            };
            match self.halves.get(&id.0) {
                Some(half) if half.done => self.forget(id),
                Some(half) if !joined(half) && partial(half) && !half.finished => {
                    self.timers.push_back((now, id));
                }
                Some(half) if !joined(half) => {
                    self.counters.silent += 1;
                    self.forget(id);
                }
                _ => {}
            }
        }
    }

    /// Both ends have said their last word: nothing more will come.
    pub(crate) fn finish(&mut self, now: i64, id: HalfId) {
        let Some(half) = self.halves.get_mut(&id.0) else {
            return;
        };
        let Some(link) = &half.link else { return };
        if !half.done && link.joined && link.heard_final && link.told == Told::Final {
            half.done = true;
            self.timers.push_back((now, id));
            self.acts.push_back(Act::Done(id));
        }
    }

    fn known(&mut self, handle: Handle) -> Option<HalfId> {
        let id = self.handles.get(&handle.0).copied();
        self.counters.unknown_handle += u64::from(id.is_none());
        id
    }

    /// Whether this is (now) the half's partner.
    fn name_partner(
        &mut self,
        now: i64,
        id: HalfId,
        theirs: Handle,
        peer: HomeIndex,
        partial: bool,
    ) -> bool {
        let before = self.halves.get(&id.0).map(OwnHalf::peer);
        let named = self.weigh_partner(now, id, theirs, peer, partial);
        let after = self.halves.get(&id.0).map(OwnHalf::peer);
        if let (Some(before), Some(after)) = (before, after)
            && before != after
        {
            self.leave(id, before);
            self.file(id, after);
        }
        named
    }

    fn weigh_partner(
        &mut self,
        now: i64,
        id: HalfId,
        theirs: Handle,
        peer: HomeIndex,
        partial: bool,
    ) -> bool {
        let Some(half) = self.halves.get_mut(&id.0) else {
            return false;
        };
        match &mut half.link {
            Some(link) if (link.peer, link.theirs) == (peer, theirs) => {
                link.partial &= partial;
                true
            }
            Some(link) if link.joined && partial => {
                self.counters.conflicting += 1;
                false
            }
            Some(link) if !link.joined && link.partial != partial => {
                // Full agreement takes the place of a partial one, and is not displaced by it.
                self.counters.conflicting += 1;
                if !partial {
                    half.link = Some(LinkState::new(now, peer, theirs, partial));
                }
                !partial
            }
            Some(_) => {
                self.counters.conflicting += 1;
                self.undo(id);
                false
            }
            None => {
                half.link = Some(LinkState::new(now, peer, theirs, partial));
                true
            }
        }
    }

    /// Sends our card, if it says more than what was sent. That of a partial match waits for the end: before, it
    /// decides nothing.
    fn send_card(&mut self, id: HalfId) {
        let Some(half) = self.halves.get_mut(&id.0) else {
            return;
        };
        let Some(link) = &mut half.link else { return };
        let level = if half.finished {
            Told::Final
        } else {
            Told::Open
        };
        if link.sent < level && (half.finished || !link.partial) {
            link.sent = level;
            self.acts.push_back(Act::Card(link.peer, id));
        }
    }

    /// Judges a card against our own half; `spoken`: ours was sent before this one came.
    fn weigh(&mut self, id: HalfId, own: &HalfView, card: Box<EndpointCard>, spoken: bool) {
        let Some(half) = self.halves.get_mut(&id.0) else {
            return;
        };
        let Some(link) = &mut half.link else { return };
        let other = card_view(&card);
        let fit = if own.role == Role::Client {
            fit(own, &other)
        } else {
            fit(&other, own)
        };
        match fit {
            Fit::Yes(verdict) if card.partial || !verdict.in_part() || !link.partial => {
                link.heard_final |= card.half.state.finished();
                self.counters.joined += u64::from(!link.joined);
                let again = (link.partial || verdict.in_part()) && !link.joined;
                if !link.joined {
                    link.joined = true;
                    self.acts
                        .push_back(Act::Withdraw(half.owner, half.offer.handle));
                }
                if again {
                    // They may have had our card too early to make use of it.
                    link.told = Told::Nothing;
                    link.sent = Told::Nothing;
                    link.round += 1;
                }
                let named_at = link.named_at;
                self.acts.push_back(Act::Join(id, card, verdict, named_at));
                self.send_card(id);
            }
            // Too early: ours is not finished. When it is, our card makes the other home send its own again.
            Fit::Later | Fit::No if link.partial && own.closed_at.is_none() => {}
            // The whole fingerprints agree, but they are of bytes that others send too.
            Fit::Later if !link.joined => link.early = true,
            _ if link.joined => {
                // Identity and fingerprint cannot change; an update that looks otherwise is kept out.
                self.counters.rejected += 1;
                link.heard_final |= card.half.state.finished();
            }
            _ => {
                self.counters.rejected += 1;
                if link.partial {
                    return self.refuse_partner(id);
                }
                if spoken {
                    // By our earlier card, of an open half, the other home may have joined what we now reject. (Partial
                    // matches are judged by finished halves alone: there it comes to the same verdict.)
                    self.acts.push_back(Act::Doubt(link.peer, link.theirs));
                }
                self.forget(id);
            }
        }
    }

    fn file(&mut self, id: HalfId, peer: HomeIndex) {
        self.by_peer.entry(peer).or_default().insert(id.0);
    }

    /// The peer is no longer the partner's home; it may be the owner.
    fn leave(&mut self, id: HalfId, peer: HomeIndex) {
        if self.halves.get(&id.0).is_none_or(|half| half.owner != peer) {
            self.unfile(id, peer);
        }
    }

    fn unfile(&mut self, id: HalfId, peer: HomeIndex) {
        if let Some(ids) = self.by_peer.get_mut(&peer) {
            ids.remove(&id.0);
            if ids.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
    }

    /// One that agreed in part was not the other end: the half is offered again, for its real one may be late.
    fn refuse_partner(&mut self, id: HalfId) {
        let Some(half) = self.halves.get_mut(&id.0) else {
            return;
        };
        let before = half.peer();
        half.link = None;
        let (owner, offer) = (half.owner, half.offer);
        self.leave(id, before);
        self.acts.push_back(Act::Withdraw(owner, offer.handle));
        self.acts.push_back(Act::Offer(owner, offer));
    }

    fn undo(&mut self, id: HalfId) {
        self.counters.undone += 1;
        self.acts.push_back(Act::Undo(id));
        self.forget(id);
    }

    fn forget(&mut self, id: HalfId) {
        let Some(half) = self.halves.remove(&id.0) else {
            return;
        };
        self.handles.remove(&half.offer.handle.0);
        self.unfile(id, half.peer());
        self.unfile(id, half.owner);
        if !half.done {
            self.acts
                .push_back(Act::Withdraw(half.owner, half.offer.handle));
        }
    }
}

impl OwnHalf {
    /// Who has the next word on it.
    fn peer(&self) -> HomeIndex {
        self.link.as_ref().map_or(self.owner, |link| link.peer)
    }
}

impl LinkState {
    fn new(now: i64, peer: HomeIndex, theirs: Handle, partial: bool) -> Self {
        let (joined, heard_final) = (false, false);
        Self {
            peer,
            theirs,
            named_at: now,
            partial,
            early: false,
            joined,
            heard_final,
            told: Told::Nothing,
            sent: Told::Nothing,
            round: 0,
        }
    }
}
