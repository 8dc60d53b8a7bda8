//! The owner's part: which offers belong together.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use weft_wire::Role;
use weft_wire::control::{Handle, Offer};
use weft_wire::model::mix64;

/// A hash map without hidden randomness. Its keys are keyed hashes already, so no outsider can make them collide.
pub(crate) type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

/// Mixes the words of a key.
#[derive(Default)]
pub(crate) struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mix64(self.0 ^ word).wrapping_add(1);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

/// A home, by its index among the members.
pub type HomeIndex = usize;

/// Offers that one owner keeps for one routing key: more is not chance but somebody who sends one ISN over and over.
const MAX_PER_ROUTING_KEY: usize = 64;

/// Timers that may be in the queue for each offer that a home may make: those of withdrawn ones stay until they are due.
/// Beyond it the home's new offers are refused, and no other home's.
const TIMERS_PER_OFFER: usize = 4;

/// What the owner has to tell a home about one of its handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// It has a partner.
    Matched {
        yours: Handle,
        theirs: Handle,
        home: HomeIndex,
        partial: bool,
    },
    /// Several would fit.
    Ambiguous(Handle),
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerCounters {
    /// Offers taken, those made again included.
    pub offers: u64,
    /// Pairs found, partial ones included.
    pub pairs: u64,
    /// Pairs of which only the routing key agreed.
    pub partial: u64,
    /// Offers found ambiguous.
    pub ambiguous: u64,
    /// Offers refused because their home, the owner or the routing key had too many.
    pub refused: u64,
    /// Offers that expired without partner.
    pub expired: u64,
}

/// What an owner keeps of one offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptOffer {
    /// Whose it is, by its place among the members.
    pub home: HomeIndex,
    /// What was said.
    pub offer: Offer,
    /// When.
    pub arrived: i64,
    /// The partner that was found.
    pub partner: Option<(HomeIndex, Handle)>,
}

pub(crate) struct Limits {
    pub(crate) expiry_us: i64,
    pub(crate) partial_delay_us: i64,
    pub(crate) max_offers: usize,
    pub(crate) max_offers_per_home: usize,
    pub(crate) stitched_at_home: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// Waits, but not for this one: they agreed in part, and its home has found that they do not belong together.
    Refused {
        partner: (HomeIndex, Handle),
    },
    /// With the partner of this name.
    Matched {
        partner: (HomeIndex, Handle),
        partial: bool,
    },
    Ambiguous,
}

/// One routing key or two.
#[derive(Clone, Copy)]
struct Routes {
    first: u64,
    second: Option<u64>,
}

impl Routes {
    fn iter(self) -> impl Iterator<Item = u64> {
        std::iter::once(self.first).chain(self.second)
    }
}

#[derive(Clone, Copy)]
struct Entry {
    home: HomeIndex,
    offer: Offer,
    arrived: i64,
    state: State,
    /// Its home has what it needs; kept to recognise a third.
    withdrawn: bool,
}

impl Entry {
    fn name(&self) -> (HomeIndex, Handle) {
        (self.home, self.offer.handle)
    }

    /// Free for a full agreement: one that rests on the routing key alone gives way.
    fn free(&self) -> bool {
        matches!(
            self.state,
            State::Waiting | State::Refused { .. } | State::Matched { partial: true, .. }
        ) && !self.withdrawn
    }

    /// Has no partner, and is to have one.
    fn waits(&self) -> bool {
        matches!(self.state, State::Waiting | State::Refused { .. })
    }

    /// Whether its home has said that this one is not its partner.
    fn refuses(&self, other: (HomeIndex, Handle)) -> bool {
        matches!(self.state, State::Refused { partner } if partner == other)
    }

    fn full_partner(&self) -> Option<(HomeIndex, Handle)> {
        match self.state {
            State::Matched {
                partner,
                partial: false,
            } => Some(partner),
            _ => None,
        }
    }
}

/// The offers of all homes whose routing key this federator owns. Soft state: every home makes its offers again
/// when a session to the owner begins.
///
/// Two offers of opposite roles that agree on the matching key are a pair at once. Two that agree only on the routing key
/// are a pair after a delay, if nothing else has that routing key. Two offers of one role with one matching key make
/// all offers with it ambiguous, also those already paired, and those that come later: pairs are kept for
/// that until they expire.
pub(crate) struct Owner {
    limits: Limits,
    groups: Map<u64, Vec<Entry>>,
    /// Under which routing keys a handle was offered: that of the present mesh key, and that of the one before.
    routing: Map<(HomeIndex, Handle), Routes>,
    /// The handles that each home offered.
    per_home: Vec<BTreeSet<Handle>>,
    partial: VecDeque<(i64, u64)>,
    /// When it arrived, its routing key, whose it was.
    expiry: VecDeque<(i64, u64, HomeIndex)>,
    /// How many of `expiry` are of each home.
    timers: Vec<usize>,
    words: VecDeque<(HomeIndex, Word)>,
    counters: OwnerCounters,
}

impl Owner {
    pub(crate) fn new(homes: usize, limits: Limits) -> Self {
        Self {
            limits,
            groups: Map::default(),
            routing: Map::default(),
            per_home: vec![BTreeSet::new(); homes],
            partial: VecDeque::new(),
            expiry: VecDeque::new(),
            timers: vec![0; homes],
            words: VecDeque::new(),
            counters: OwnerCounters::default(),
        }
    }

    /// One home more.
    pub(crate) fn meet(&mut self) {
        self.per_home.push(BTreeSet::new());
        self.timers.push(0);
    }

    pub(crate) fn counters(&self) -> OwnerCounters {
        self.counters
    }

    /// Offers kept now.
    pub(crate) fn len(&self) -> usize {
        self.routing.len()
    }

    pub(crate) fn poll(&mut self) -> Option<(HomeIndex, Word)> {
        self.words.pop_front()
    }

    /// A home offers a half, perhaps again.
    pub(crate) fn offer(&mut self, now: i64, home: HomeIndex, offer: Offer) {
        self.counters.offers += 1;
        let name = (home, offer.handle);
        match self.routing.get(&name) {
            Some(routes) if routes.iter().any(|key| key == offer.routing_key) => {
                return self.offer_again(now, name, offer);
            }
            Some(routes) if routes.second.is_some() => self.forget(name, routes.first),
            _ => {}
        }
        let group_len = self.groups.get(&offer.routing_key).map_or(0, Vec::len);
        let full = self.routing.len() >= self.limits.max_offers
            || self.per_home[home].len() >= self.limits.max_offers_per_home
            || group_len >= MAX_PER_ROUTING_KEY
            || self.timers[home]
                >= self
                    .limits
                    .max_offers_per_home
                    .saturating_mul(TIMERS_PER_OFFER);
        if full {
            self.counters.refused += 1;
            return;
        }
        let only = Routes {
            first: offer.routing_key,
            second: None,
        };
        self.routing
            .entry(name)
            .and_modify(|routes| routes.second = Some(offer.routing_key))
            .or_insert(only);
        self.per_home[home].insert(offer.handle);
        let entry = Entry {
            home,
            offer,
            arrived: now,
            state: State::Waiting,
            withdrawn: false,
        };
        self.groups
            .entry(offer.routing_key)
            .or_default()
            .push(entry);
        self.partial.push_back((now, offer.routing_key));
        self.expiry.push_back((now, offer.routing_key, home));
        self.timers[home] += 1;
        self.match_fully(offer.routing_key, offer.matching_key);
    }

    /// The home does not know yet what was found about this offer, or did not like it.
    fn offer_again(&mut self, now: i64, name: (HomeIndex, Handle), offer: Offer) {
        let Some(group) = self.groups.get_mut(&offer.routing_key) else {
            return;
        };
        let Some(entry) = group.iter_mut().find(|entry| entry.name() == name) else {
            return;
        };
        let withdrawn = std::mem::take(&mut entry.withdrawn);
        if withdrawn
            && let State::Matched {
                partner,
                partial: true,
            } = entry.state
        {
            entry.state = State::Refused { partner };
            self.partial.push_back((now, offer.routing_key));
        }
        if entry.offer.matching_key != offer.matching_key || entry.offer.role != offer.role {
            entry.offer = offer;
            entry.state = State::Waiting;
            return self.match_fully(offer.routing_key, offer.matching_key);
        }
        match entry.state {
            State::Waiting | State::Refused { .. } => {
                self.match_fully(offer.routing_key, offer.matching_key);
            }
            State::Matched { partner, partial } => self.tell(name, partner, partial),
            State::Ambiguous => self.words.push_back((name.0, Word::Ambiguous(name.1))),
        }
    }

    /// The home no longer asks. A pair, and what is in doubt, stays known until it expires.
    pub(crate) fn withdraw(&mut self, home: HomeIndex, handle: Handle) {
        let name = (home, handle);
        for routing in self.routes_of(name) {
            match self.entry_mut(name, routing) {
                Some(entry) if !entry.waits() => entry.withdrawn = true,
                Some(_) => self.forget(name, routing),
                None => {}
            }
        }
    }

    /// A new session of this home begins: what it still asks for it will offer again.
    pub(crate) fn home_returns(&mut self, home: HomeIndex) {
        for name in self.names_of(home) {
            for routing in self.routes_of(name) {
                if self
                    .entry_mut(name, routing)
                    .is_some_and(|entry| entry.waits())
                {
                    self.forget(name, routing);
                }
            }
        }
    }

    /// A session to this home begins: what was said on the last one may be lost.
    pub(crate) fn tell_again(&mut self, home: HomeIndex) {
        for name in self.names_of(home) {
            for routing in self.routes_of(name) {
                let entry = self.entry_mut(name, routing);
                match entry.map(|entry| (entry.state, entry.withdrawn)) {
                    Some((State::Matched { partner, partial }, false)) => {
                        self.tell(name, partner, partial);
                    }
                    Some((State::Ambiguous, false)) => {
                        self.words.push_back((home, Word::Ambiguous(name.1)));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Time has passed.
    pub(crate) fn advance(&mut self, now: i64) {
        while let Some((arrived, routing)) = self.partial.front().copied() {
            if arrived > now.saturating_sub(self.limits.partial_delay_us) {
                break;
            }
            self.partial.pop_front();
            self.match_partially(routing);
        }
        let dead = now.saturating_sub(self.limits.expiry_us);
        while let Some((arrived, routing, home)) = self.expiry.front().copied() {
            if arrived > dead {
                break;
            }
            self.expiry.pop_front();
            self.timers[home] -= 1;
            let group = self.groups.get(&routing).map_or(&[][..], Vec::as_slice);
            let gone: Vec<_> = group
                .iter()
                .filter(|e| e.arrived <= dead)
                .map(|e| (e.name(), e.waits()))
                .collect();
            for (name, waited) in gone {
                self.counters.expired += u64::from(waited);
                self.forget(name, routing);
            }
        }
    }

    /// When time next decides anything: the oldest that may be paired in part.
    pub(crate) fn next_timer(&self) -> Option<i64> {
        let (arrived, _) = self.partial.front()?;
        Some(arrived.saturating_add(self.limits.partial_delay_us))
    }

    /// Everything that is kept of offers, for those who want to see that there is no more.
    pub(crate) fn kept(&self) -> impl Iterator<Item = KeptOffer> {
        self.groups.values().flatten().map(|entry| {
            // All there is: what is added here is to be looked at too.
            let Entry {
                home,
                offer,
                arrived,
                state,
                withdrawn: _,
            } = entry;
            let partner = match state {
                State::Waiting | State::Ambiguous => None,
                State::Refused { partner } | State::Matched { partner, .. } => Some(*partner),
            };
            KeptOffer {
                home: *home,
                offer: *offer,
                arrived: *arrived,
                partner,
            }
        })
    }

    fn routes_of(&self, name: (HomeIndex, Handle)) -> impl Iterator<Item = u64> + use<> {
        let routes = self.routing.get(&name).copied();
        routes.into_iter().flat_map(Routes::iter)
    }

    fn names_of(&self, home: HomeIndex) -> Vec<(HomeIndex, Handle)> {
        let handles = self.per_home[home].iter();
        handles.map(|handle| (home, *handle)).collect()
    }

    fn match_fully(&mut self, routing: u64, matching: u64) {
        let Some(group) = self.groups.get_mut(&routing) else {
            return;
        };
        let mut same: Vec<&mut Entry> = group
            .iter_mut()
            .filter(|e| e.offer.matching_key == matching)
            .collect();
        let clients = same.iter().filter(|e| e.offer.role == Role::Client).count();
        if clients > 1 || same.len() - clients > 1 {
            for entry in same {
                if entry.state != State::Ambiguous {
                    entry.state = State::Ambiguous;
                    self.counters.ambiguous += 1;
                    self.words
                        .push_back((entry.home, Word::Ambiguous(entry.offer.handle)));
                }
            }
            return;
        }
        let [x, y] = same.as_mut_slice() else { return };
        let may = |x: &Entry, y: &Entry| x.free() || x.full_partner() == Some(y.name());
        if self.limits.stitched_at_home && x.home == y.home {
            // Their home has both, and has its reasons: another half that is not past its hold, for one.
            return;
        }
        if !may(x, y) || !may(y, x) {
            // One of them stands in doubt, or its partner was another handle: what is said stays said.
            return;
        }
        let (first, second) = (x.name(), y.name());
        let left = [x.state, y.state];
        self.counters.pairs += u64::from(x.full_partner().is_none() && y.full_partner().is_none());
        x.state = State::Matched {
            partner: second,
            partial: false,
        };
        y.state = State::Matched {
            partner: first,
            partial: false,
        };
        for state in left {
            self.release_partial(routing, state, [first, second]);
        }
        self.tell(first, second, false);
        self.tell(second, first, false);
    }

    /// A better partner has come: the one that agreed in part waits again.
    fn release_partial(&mut self, routing: u64, state: State, pair: [(HomeIndex, Handle); 2]) {
        if let State::Matched {
            partner,
            partial: true,
        } = state
            && !pair.contains(&partner)
            && let Some(entry) = self.entry_mut(partner, routing)
        {
            entry.state = State::Waiting;
        }
    }

    fn match_partially(&mut self, routing: u64) {
        let Some(group) = self.groups.get_mut(&routing) else {
            return;
        };
        let mut open = group.iter_mut().filter(|e| e.full_partner().is_none());
        let (Some(x), Some(y), None) = (open.next(), open.next(), open.next()) else {
            return;
        };
        let refused = x.refuses(y.name()) || y.refuses(x.name());
        let refused = refused || self.limits.stitched_at_home && x.home == y.home;
        if refused
            || !x.waits()
            || !y.waits()
            || x.offer.role == y.offer.role
            || x.offer.matching_key == y.offer.matching_key
        {
            return;
        }
        let (first, second) = (x.name(), y.name());
        x.state = State::Matched {
            partner: second,
            partial: true,
        };
        y.state = State::Matched {
            partner: first,
            partial: true,
        };
        self.counters.pairs += 1;
        self.counters.partial += 1;
        self.tell(first, second, true);
        self.tell(second, first, true);
    }

    fn tell(
        &mut self,
        (home, yours): (HomeIndex, Handle),
        (other, theirs): (HomeIndex, Handle),
        partial: bool,
    ) {
        self.words.push_back((
            home,
            Word::Matched {
                yours,
                theirs,
                home: other,
                partial,
            },
        ));
    }

    fn entry_mut(&mut self, name: (HomeIndex, Handle), routing: u64) -> Option<&mut Entry> {
        let group = self.groups.get_mut(&routing)?;
        group.iter_mut().find(|entry| entry.name() == name)
    }

    fn forget(&mut self, name: (HomeIndex, Handle), routing: u64) {
        let Some(group) = self.groups.get_mut(&routing) else {
            return;
        };
        group.retain(|entry| entry.name() != name);
        if group.is_empty() {
            self.groups.remove(&routing);
        }
        match self.routing.get_mut(&name) {
            Some(Routes {
                first,
                second: Some(second),
            }) if *first == routing => {
                let only = Routes {
                    first: *second,
                    second: None,
                };
                self.routing.insert(name, only);
            }
            Some(routes) if routes.second == Some(routing) => routes.second = None,
            Some(routes) if routes.first == routing => {
                self.routing.remove(&name);
                self.per_home[name.0].remove(&name.1);
            }
            _ => {}
        }
    }
}
