//! The home's part: what became of our halves that are matched, or looked for, through the mesh.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

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
    /// Send the card of this half; whether somebody waits for it.
    Card(HomeIndex, HalfId, bool),
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
    /// Halves that owners were asked about.
    pub offered: u64,
    /// Halves that nobody was asked about: no other federator has the address of their peers.
    pub held_back: u64,
    /// Of these, such as were offered after all because somebody came to have it.
    pub released: u64,
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

/// What an owner is asked about a half, and which owner: under the present key, and during an overlap under the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asks {
    pub(crate) first: (Offer, HomeIndex),
    pub(crate) second: Option<(Offer, HomeIndex)>,
}

impl Asks {
    fn iter(&self) -> impl Iterator<Item = &(Offer, HomeIndex)> {
        std::iter::once(&self.first).chain(&self.second)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut (Offer, HomeIndex)> {
        std::iter::once(&mut self.first).chain(&mut self.second)
    }

    /// Asks its owners.
    fn offer(&self, acts: &mut VecDeque<Act>) {
        acts.extend(self.iter().map(|(offer, owner)| Act::Offer(*owner, *offer)));
    }

    /// Asks them no more. An owner forgets the half under both keys: where one is still asked for, it is to be offered again
    /// after this.
    fn withdraw(&self, acts: &mut VecDeque<Act>) {
        let owners = self.iter().map(|(_, owner)| *owner);
        let mut owners: Vec<HomeIndex> = owners.collect();
        owners.dedup();
        let handle = self.handle();
        acts.extend(owners.into_iter().map(|owner| Act::Withdraw(owner, handle)));
    }

    /// How many have another owner there.
    fn moved_to(&self, now: &Self) -> usize {
        let owners = self.iter().zip(now.iter());
        owners.filter(|((_, was), (_, is))| was != is).count()
    }

    /// The same under all keys.
    fn handle(&self) -> Handle {
        self.first.0.handle
    }

    /// Whether it is one of those that are asked about whatever is known of where their peers are.
    fn is_sample(&self) -> bool {
        self.iter()
            .any(|(offer, _)| offer.routing_key.is_multiple_of(SAMPLED))
    }
}

struct OwnHalf {
    asks: Asks,
    /// Nobody is asked: no other federator has the address of its peer.
    held_back: bool,
    finished: bool,
    link: Option<LinkState>,
    done: bool,
}

/// Of so many halves one is asked about although nobody has its peer's address: both ends of a connection choose the same. So an
/// address that its federator does not know of is found out.
const SAMPLED: u64 = 64;

/// Halves of this home that the mesh is asked about or has matched.
pub(crate) struct Home {
    halves: Map<u64, OwnHalf>,
    handles: Map<u64, HalfId>,
    /// Ids by those who may have to be told again: the owner, and the partner's home.
    by_peer: BTreeMap<HomeIndex, BTreeSet<u64>>,
    /// Halves that nobody is asked about, with the addresses of their peers.
    held_back: BTreeMap<u64, IpAddr>,
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
            held_back: BTreeMap::new(),
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

    /// `outside`: the address of its peer, if nobody is known to have that.
    pub(crate) fn offer(
        &mut self,
        id: HalfId,
        asks: Asks,
        finished: bool,
        outside: Option<IpAddr>,
    ) -> bool {
        if self.halves.contains_key(&id.0) {
            return true;
        }
        if self.halves.len() >= self.max_halves {
            self.counters.refused += 1;
            return false;
        }
        let outside = outside.filter(|_| !asks.is_sample());
        self.handles.insert(asks.handle().0, id);
        let half = OwnHalf {
            asks,
            held_back: outside.is_some(),
            finished,
            link: None,
            done: false,
        };
        self.halves.insert(id.0, half);
        match outside {
            Some(address) => {
                self.counters.held_back += 1;
                self.held_back.insert(id.0, address);
            }
            None => self.ask(id),
        }
        true
    }

    /// Asks the owners.
    fn ask(&mut self, id: HalfId) {
        let Some(half) = self.halves.get_mut(&id.0) else {
            return;
        };
        self.counters.offered += 1;
        half.held_back = false;
        half.asks.offer(&mut self.acts);
        self.refile(id, [None; 3]);
    }

    /// Halves that nobody was asked about, and whose peers' addresses are somebody's after all, are offered.
    pub(crate) fn release(&mut self, is_somebodys: impl Fn(IpAddr) -> bool) {
        let held_back = self.held_back.iter();
        let ids: Vec<u64> = held_back
            .filter(|(_, address)| is_somebodys(**address))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.held_back.remove(&id);
            self.counters.released += 1;
            self.ask(HalfId(id));
        }
    }

    /// Halves that nobody is asked about now.
    pub(crate) fn held_back(&self) -> usize {
        self.held_back.len()
    }

    /// A half that was linked before a restart.
    pub(crate) fn restore(
        &mut self,
        now: i64,
        id: HalfId,
        asks: Asks,
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
        self.handles.insert(asks.handle().0, id);
        let half = OwnHalf {
            asks,
            held_back: false,
            finished,
            link: Some(link),
            done: false,
        };
        self.halves.insert(id.0, half);
        self.refile(id, [None; 3]);
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

    /// The owners of a half that is asked about, and the home of its partner if one is named.
    pub(crate) fn concerned(&self, id: HalfId) -> ([Option<HomeIndex>; 2], Option<HomeIndex>) {
        let half = self.halves.get(&id.0);
        let link = half.and_then(|half| half.link.as_ref());
        let [first, second, _] = half.map_or([None; 3], OwnHalf::concerned);
        ([first, second], link.map(|link| link.peer))
    }

    /// Whether nobody is asked about this one.
    pub(crate) fn is_held_back(&self, id: HalfId) -> bool {
        self.held_back.contains_key(&id.0)
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
    pub(crate) fn updated(&mut self, id: HalfId, own: &HalfView, asks: &Asks) {
        let Some(half) = self.halves.get_mut(&id.0) else {
            return;
        };
        for (offer, owner) in half.asks.iter_mut().filter(|_| half.link.is_none()) {
            let same = |new: &&(Offer, HomeIndex)| new.0.routing_key == offer.routing_key;
            let new = asks.iter().find(same).map(|(new, _)| *new);
            if let Some(new) = new.filter(|new| new.matching_key != offer.matching_key) {
                *offer = new;
                if !half.held_back {
                    self.acts.push_back(Act::Offer(*owner, new));
                }
            }
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
        if half.concerned().contains(&Some(from)) {
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
            if half.is_asked() {
                let theirs = half.asks.iter().filter(|(_, owner)| *owner == peer);
                let offers = theirs.map(|(offer, _)| Act::Offer(peer, *offer));
                self.acts.extend(offers);
            }
            if let Some(link) = half.link.as_mut().filter(|link| link.peer == peer) {
                link.sent = link.told;
                self.send_card(HalfId(id));
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
        let mut ids: Vec<u64> = if more.is_empty() {
            let of_less = less.iter().flat_map(|owner| self.by_peer.get(owner));
            of_less
                .flatten()
                .copied()
                .chain(self.held_back.keys().copied())
                .collect()
        } else {
            self.halves.keys().copied().collect()
        };
        ids.sort_unstable();
        ids.dedup();
        let mut reoffered = 0;
        for id in ids {
            let Some(half) = self.halves.get_mut(&id).filter(|half| !half.done) else {
                continue;
            };
            let (before, asked, was) = (half.concerned(), half.is_asked(), half.asks);
            for (offer, owner) in half.asks.iter_mut() {
                *owner = if less.contains(owner) {
                    members.rendezvous(offer.routing_key)
                } else {
                    members.better_of(offer.routing_key, *owner, more)
                };
            }
            // What nobody is asked about moves without a word.
            let moved = if asked { was.moved_to(&half.asks) } else { 0 };
            if moved > 0 {
                was.withdraw(&mut self.acts);
                half.asks.offer(&mut self.acts);
            }
            if half.concerned() != before {
                self.refile(HalfId(id), before);
            }
            reoffered += moved;
        }
        self.counters.reoffered += reoffered as u64;
        reoffered
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
        let before = self.halves.get(&id.0).map(OwnHalf::concerned);
        let named = self.weigh_partner(now, id, theirs, peer, partial);
        if let Some(half) = self
            .halves
            .get_mut(&id.0)
            .filter(|half| half.link.is_some())
            && std::mem::take(&mut half.held_back)
        {
            self.held_back.remove(&id.0);
        }
        if let Some(before) = before {
            self.refile(id, before);
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
            // What follows a first word is not in a hurry.
            let pressing = link.sent == Told::Nothing;
            link.sent = level;
            self.acts.push_back(Act::Card(link.peer, id, pressing));
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
                let in_part = link.partial || verdict.in_part();
                let again = in_part && !link.joined;
                // An owner that has found the pair need not be told that it was right; one that has paired in part may have
                // taken them for each other's.
                if !std::mem::replace(&mut link.joined, true) && in_part {
                    half.asks.withdraw(&mut self.acts);
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

    /// Files the half under those that are concerned now, and no more under those that were and are not.
    fn refile(&mut self, id: HalfId, before: [Option<HomeIndex>; 3]) {
        let now = self.halves.get(&id.0).map_or([None; 3], OwnHalf::concerned);
        for peer in before.into_iter().flatten() {
            if !now.contains(&Some(peer))
                && let Some(ids) = self.by_peer.get_mut(&peer)
            {
                ids.remove(&id.0);
                if ids.is_empty() {
                    self.by_peer.remove(&peer);
                }
            }
        }
        for peer in now.into_iter().flatten() {
            if !before.contains(&Some(peer)) {
                self.by_peer.entry(peer).or_default().insert(id.0);
            }
        }
    }

    /// One that agreed in part was not the other end: the half is offered again, for its real one may be late.
    fn refuse_partner(&mut self, id: HalfId) {
        let Some(half) = self.halves.get_mut(&id.0) else {
            return;
        };
        let before = half.concerned();
        half.link = None;
        let asks = half.asks;
        self.refile(id, before);
        asks.withdraw(&mut self.acts);
        asks.offer(&mut self.acts);
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
        self.held_back.remove(&id.0);
        self.handles.remove(&half.asks.handle().0);
        self.refile(id, half.concerned());
        if !half.done && !half.held_back {
            half.asks.withdraw(&mut self.acts);
        }
    }
}

impl OwnHalf {
    /// Whether owners are to look for its other end.
    fn is_asked(&self) -> bool {
        // A partner that agrees in part may be refused: they are to go on looking.
        let wanted = |link: &LinkState| link.partial && !link.joined;
        !self.held_back && self.link.as_ref().is_none_or(wanted)
    }

    /// Who may have to be told of it again: the owners, and the partner's home.
    fn concerned(&self) -> [Option<HomeIndex>; 3] {
        if self.held_back {
            return [None; 3];
        }
        let owner = |(_, owner): (Offer, HomeIndex)| owner;
        [
            Some(owner(self.asks.first)),
            self.asks.second.map(owner),
            self.link.as_ref().map(|link| link.peer),
        ]
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
