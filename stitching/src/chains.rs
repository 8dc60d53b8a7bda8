//! Which two connections of one process are one way: what a proxy takes from its client goes on to a server.
//!
//! A proxy that hands bytes on ends one TCP connection and opens another: no fingerprint goes through. But its own agent sees
//! both legs, in one process and by one clock. [`link`] is given all of a process's legs and says which belong together.
//!
//! What decides:
//!
//! 1. *Bytes.* Legs that belong together carry the same number each way, both more than none.
//! 2. *Time.* Bytes that come from one and go to the other, and others back, need both at a time: their lives overlap. (First
//!    from client to server: the front was open before, the back until after; the answer the other way round.)
//! 3. *Order.* A proxy that connects on demand opens the back after the front was. One that connects ahead does not. So
//!    order counts only where the process has shown, and never the contrary, that it connects on demand: by pairs that bytes and
//!    time tell alone, and by never having opened more backs than it had been called.
//!
//! Legs that could belong together by these make groups; in a group with as many fronts as backs, where each must have one of
//! the other, a pair is linked when there is no other way to give each its own. Whatever could be linked in two ways is
//! [`Standing::Ambiguous`]; nothing chooses. Contract: pure, of no state; the answer does not depend on the order of the legs.
//! It rests on all legs being there: one that was lost can make another look as if it were the only one.

use std::collections::{BTreeMap, BTreeSet};

/// One connection of a process, as its agent saw it. Times are of one clock, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leg {
    /// When it was established; `None`: before anybody looked.
    pub opened: Option<i64>,
    /// When it closed; `None`: it is open.
    pub closed: Option<i64>,
    /// When its bytes were counted; of a closed one after the last.
    pub counted: i64,
    /// Payload that the process received on it.
    pub received: u64,
    /// Payload that it sent.
    pub sent: u64,
    /// Whether every leg whose life overlaps with this one's is given too.
    pub whole: bool,
}

/// What links two legs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// The same bytes each way at the same time, and no other leg fits either of them.
    Bytes,
    /// … others fit one of them, and each of those has another.
    Elimination,
    /// … and the front was first, as with all others of this process.
    Order,
}

impl Evidence {
    /// Stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Bytes => "relayed-bytes",
            Self::Elimination => "relayed-bytes-by-elimination",
            Self::Order => "relayed-bytes-in-order",
        }
    }
}

/// What is known of a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It belongs to this one of the other side.
    Linked {
        /// Index into the other side.
        other: usize,
        /// By what.
        evidence: Evidence,
    },
    /// So many of the other side fit, and nothing tells which.
    Ambiguous {
        /// How many; at most [`MAX_FITTING`] are counted.
        fitting: usize,
    },
    /// None fits.
    Alone,
}

/// What [`link`] found, by the indices of what it was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chains {
    /// Of the connections that the process accepted.
    pub fronts: Vec<Standing>,
    /// Of those that it opened.
    pub backs: Vec<Standing>,
}

/// Most legs of the other side that are looked at for one; a leg with more is ambiguous, and so are they.
pub const MAX_FITTING: usize = 64;
/// Pairs found by bytes and time that must have been opened in order before order counts.
pub const WITNESSES: usize = 3;
/// Times that the process must have been called with no call before it waiting for its back, and no back waiting for a call.
pub const EVEN_CALLS: usize = 8;
/// What comes in on one leg has gone out on the other after this time: counters read later are whole.
pub const RELAY_US: i64 = 2_000_000;
/// Most legs a side of a group that is looked through; those of a larger one are ambiguous.
pub const MAX_GROUP: usize = 4_096;
/// Most that may be left of it when all that had no choice have been taken out.
const MAX_REST: usize = 512;

/// Says which legs of one process belong together. `fronts` are those that it accepted, `backs` those that it opened.
pub fn link(fronts: &[Leg], backs: &[Leg]) -> Chains {
    let mut found = Found::new(fronts.len(), backs.len());
    let by_bytes = Fits::of(fronts, backs, &found, false);
    found.take(&by_bytes, fronts, backs, false);
    if found.connects_on_demand(fronts, backs) {
        let in_order = Fits::of(fronts, backs, &found, true);
        found.take(&in_order, fronts, backs, true);
    }
    found.into_chains(&by_bytes)
}

/// Whether two legs can belong together, whatever else there is.
fn fit(front: &Leg, back: &Leg) -> bool {
    let overlap = front.opened.unwrap_or(i64::MIN) <= back.closed.unwrap_or(i64::MAX)
        && back.opened.unwrap_or(i64::MIN) <= front.closed.unwrap_or(i64::MAX);
    overlap && bytes_fit(front, back)
}

fn bytes_fit(front: &Leg, back: &Leg) -> bool {
    // What an open leg has carried so far is the least that it will have.
    let at_most = |open: &Leg, closed: &Leg| {
        open.received <= closed.sent && open.sent <= closed.received && some(closed)
    };
    match (front.closed, back.closed) {
        (None, None) => true,
        // With the other leg closed long ago, nothing more comes on this one.
        (None, Some(closed)) if front.counted < closed.saturating_add(RELAY_US) => {
            at_most(front, back)
        }
        (Some(closed), None) if back.counted < closed.saturating_add(RELAY_US) => {
            at_most(back, front)
        }
        _ => same_bytes(front, back),
    }
}

fn some(leg: &Leg) -> bool {
    leg.received > 0 && leg.sent > 0
}

/// The same number each way, and some.
fn same_bytes(front: &Leg, back: &Leg) -> bool {
    (front.received, front.sent) == (back.sent, back.received) && some(front)
}

fn in_order(front: &Leg, back: &Leg) -> bool {
    match (front.opened, back.opened) {
        (Some(front), Some(back)) => front <= back,
        // Before anybody looked: it may have been.
        (None, _) => true,
        (Some(_), None) => false,
    }
}

/// Who fits whom.
struct Fits {
    /// By front: backs, rising.
    fronts: Vec<Vec<usize>>,
    backs: Vec<Vec<usize>>,
    /// More fit than were looked at, or than are here.
    crowded: [Vec<bool>; 2],
}

impl Fits {
    /// Of those that are not linked yet.
    fn of(fronts: &[Leg], backs: &[Leg], found: &Found, ordered: bool) -> Self {
        let mut fits = Self {
            fronts: vec![Vec::new(); fronts.len()],
            backs: vec![Vec::new(); backs.len()],
            crowded: [
                fronts.iter().map(|leg| !leg.whole).collect(),
                backs.iter().map(|leg| !leg.whole).collect(),
            ],
        };
        // Two closed legs fit with the same bytes alone.
        let mut closed: BTreeMap<(u64, u64), Vec<usize>> = BTreeMap::new();
        let mut open = Vec::new();
        for (index, back) in backs.iter().enumerate() {
            match back.closed {
                _ if found.backs[index].is_some() => {}
                Some(_) => closed
                    .entry((back.received, back.sent))
                    .or_default()
                    .push(index),
                None => open.push(index),
            }
        }
        let all: Vec<usize> = closed.values().flatten().chain(&open).copied().collect();
        let none = Vec::new();
        for (at, front) in fronts.iter().enumerate() {
            if found.fronts[at].is_some() {
                continue;
            }
            let same = closed.get(&(front.sent, front.received)).unwrap_or(&none);
            let candidates: Box<dyn Iterator<Item = &usize>> = match front.closed {
                Some(_) => Box::new(same.iter().chain(&open)),
                None => Box::new(all.iter()),
            };
            for &other in candidates {
                let back = &backs[other];
                if fit(front, back) && (!ordered || in_order(front, back)) {
                    fits.add(at, other);
                }
            }
        }
        fits
    }

    fn add(&mut self, front: usize, back: usize) {
        if self.fronts[front].len() < MAX_FITTING && self.backs[back].len() < MAX_FITTING {
            self.fronts[front].push(back);
            self.backs[back].push(front);
        } else {
            self.crowded[0][front] = true;
            self.crowded[1][back] = true;
        }
    }

    /// All that hang together with this front.
    fn group(&self, front: usize, seen: &mut [bool]) -> Group {
        let mut group = Group::default();
        let mut waiting = vec![front];
        let mut seen_backs = BTreeSet::new();
        seen[front] = true;
        while let Some(front) = waiting.pop() {
            group.fronts.push(front);
            for &back in &self.fronts[front] {
                if !seen_backs.insert(back) {
                    continue;
                }
                for &other in &self.backs[back] {
                    if !std::mem::replace(&mut seen[other], true) {
                        waiting.push(other);
                    }
                }
            }
        }
        group.backs = seen_backs.into_iter().collect();
        group
    }
}

/// Legs that hang together by fitting.
#[derive(Default)]
struct Group {
    fronts: Vec<usize>,
    backs: Vec<usize>,
}

impl Group {
    /// The pairs that are in every way to give each leg its own; none if there is no such way, or if not all is known.
    fn forced(&self, fits: &Fits) -> Vec<(usize, usize)> {
        let known = |side: usize, legs: &[usize]| legs.iter().all(|leg| !fits.crowded[side][*leg]);
        if self.fronts.len() != self.backs.len()
            || self.fronts.len() > MAX_GROUP
            || !known(0, &self.fronts)
            || !known(1, &self.backs)
        {
            return Vec::new();
        }
        let mut fronts: BTreeMap<usize, Vec<usize>> =
            of_keys(&self.fronts, |leg| fits.fronts[leg].clone());
        let mut backs: BTreeMap<usize, Vec<usize>> =
            of_keys(&self.backs, |leg| fits.backs[leg].clone());
        let mut pairs = Vec::new();
        loop {
            let single = only(&fronts).or_else(|| only(&backs).map(|(back, front)| (front, back)));
            let Some((front, back)) = single else { break };
            pairs.push((front, back));
            remove(&mut fronts, front, &mut backs, back);
        }
        let left_alone = |side: &BTreeMap<usize, Vec<usize>>| side.values().any(Vec::is_empty);
        if left_alone(&fronts) || left_alone(&backs) || !can_be_paired(&fronts) {
            return Vec::new();
        }
        pairs
    }
}

fn of_keys<T>(keys: &[usize], of: impl Fn(usize) -> T) -> BTreeMap<usize, T> {
    keys.iter().map(|key| (*key, of(*key))).collect()
}

/// One that only one of the other side fits, and that.
fn only(side: &BTreeMap<usize, Vec<usize>>) -> Option<(usize, usize)> {
    side.iter()
        .find_map(|(leg, fitting)| match fitting.as_slice() {
            [other] => Some((*leg, *other)),
            _ => None,
        })
}

fn remove(
    fronts: &mut BTreeMap<usize, Vec<usize>>,
    front: usize,
    backs: &mut BTreeMap<usize, Vec<usize>>,
    back: usize,
) {
    for other in fronts.remove(&front).unwrap_or_default() {
        if let Some(fitting) = backs.get_mut(&other) {
            fitting.retain(|leg| *leg != front);
        }
    }
    for other in backs.remove(&back).unwrap_or_default() {
        if let Some(fitting) = fronts.get_mut(&other) {
            fitting.retain(|leg| *leg != back);
        }
    }
}

/// Whether each front can have a back of its own (Kuhn's augmenting paths). Of a group too large to say, no.
fn can_be_paired(fronts: &BTreeMap<usize, Vec<usize>>) -> bool {
    fn augment(
        front: usize,
        fronts: &BTreeMap<usize, Vec<usize>>,
        taken: &mut BTreeMap<usize, usize>,
        tried: &mut BTreeSet<usize>,
    ) -> bool {
        fronts[&front].iter().any(|&back| {
            if !tried.insert(back) {
                return false;
            }
            let free = match taken.get(&back).copied() {
                None => true,
                Some(holder) => augment(holder, fronts, taken, tried),
            };
            if free {
                taken.insert(back, front);
            }
            free
        })
    }
    if fronts.len() > MAX_REST {
        return false;
    }
    let mut taken = BTreeMap::new();
    fronts
        .keys()
        .all(|front| augment(*front, fronts, &mut taken, &mut BTreeSet::new()))
}

/// How often the process was called with as many backs opened as calls before; 0 if there ever were more backs than calls: then it
/// connects ahead, or on its own account.
fn even_calls(fronts: &[Leg], backs: &[Leg]) -> usize {
    let opened = |legs: &[Leg], order: u8| -> Vec<(i64, u8)> {
        legs.iter()
            .map(|leg| (leg.opened.unwrap_or(i64::MIN), order))
            .collect()
    };
    const CALL: u8 = 0;
    let mut events = opened(fronts, CALL);
    events.extend(opened(backs, 1));
    events.sort_unstable();
    let (mut waiting, mut even) = (0_usize, 0);
    for (_, kind) in events {
        if kind == CALL {
            even += usize::from(waiting == 0);
            waiting += 1;
        } else if waiting == 0 {
            return 0;
        } else {
            waiting -= 1;
        }
    }
    even
}

/// What was found so far.
struct Found {
    fronts: Vec<Option<(usize, Evidence)>>,
    backs: Vec<Option<(usize, Evidence)>>,
}

impl Found {
    fn new(fronts: usize, backs: usize) -> Self {
        Self {
            fronts: vec![None; fronts],
            backs: vec![None; backs],
        }
    }

    fn take(&mut self, fits: &Fits, fronts: &[Leg], backs: &[Leg], ordered: bool) {
        let mut seen = vec![false; fronts.len()];
        for front in 0..fronts.len() {
            if seen[front] || fits.fronts[front].is_empty() {
                continue;
            }
            let group = fits.group(front, &mut seen);
            // A leg that may still grow fits many: who is left when it has one is no proof of anything.
            let alike = group.fronts.iter().all(|front| {
                let fitting = &fits.fronts[*front];
                fitting
                    .iter()
                    .all(|back| same_bytes(&fronts[*front], &backs[*back]))
            });
            if !alike {
                continue;
            }
            let pairs = group.forced(fits);
            let evidence = match (ordered, group.fronts.len()) {
                (true, _) => Evidence::Order,
                (false, 1) => Evidence::Bytes,
                (false, _) => Evidence::Elimination,
            };
            for (front, back) in pairs {
                self.fronts[front] = Some((back, evidence));
                self.backs[back] = Some((front, evidence));
            }
        }
    }

    /// Whether the process has shown that it connects on demand.
    fn connects_on_demand(&self, fronts: &[Leg], backs: &[Leg]) -> bool {
        self.pairs_in_order(fronts, backs) && even_calls(fronts, backs) >= EVEN_CALLS
    }

    /// Whether the pairs found by bytes and time alone were all opened front first, and are enough.
    fn pairs_in_order(&self, fronts: &[Leg], backs: &[Leg]) -> bool {
        let mut witnesses = 0;
        for (front, found) in self.fronts.iter().enumerate() {
            let Some((back, _)) = found else { continue };
            let times = (fronts[front].opened, backs[*back].opened);
            if let (Some(front), Some(back)) = times {
                if front > back {
                    return false;
                }
                witnesses += 1;
            }
        }
        witnesses >= WITNESSES
    }

    fn into_chains(self, fits: &Fits) -> Chains {
        let standing = |found: Option<(usize, Evidence)>, fitting: &Vec<usize>| match found {
            Some((other, evidence)) => Standing::Linked { other, evidence },
            None if fitting.is_empty() => Standing::Alone,
            None => Standing::Ambiguous {
                fitting: fitting.len(),
            },
        };
        let side = |found: Vec<Option<(usize, Evidence)>>, fits: &[Vec<usize>]| {
            found
                .into_iter()
                .zip(fits)
                .map(|(found, fits)| standing(found, fits))
                .collect()
        };
        Chains {
            fronts: side(self.fronts, &fits.fronts),
            backs: side(self.backs, &fits.backs),
        }
    }
}

#[cfg(test)]
#[path = "chains_tests.rs"]
mod tests;
