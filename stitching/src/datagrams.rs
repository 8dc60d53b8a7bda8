//! UDP flows: `udp-first-datagram` and `quic-connection-id`.
//!
//! Many flows may begin with the same bytes, also one after the other, so nothing is decided when a half comes: after its
//! hold first among those with the same addresses, then among all that begin alike. A half has two entries for that, both in the
//! table of halves with ISNs: one by addresses and first datagram, which has the hold, and a twin by the datagram alone.

use std::collections::BTreeMap;

use crate::decide::{Decision, decide, spread};
use crate::judge::{Fit, fit, fit_in_place, rule_of};
use crate::stitcher::{Candidate, Handle, Key, Stitcher};
use crate::table::{Entry, Slot, State};
use crate::view::{Fingerprint, HalfView, Halves, Role, mix64};

/// More halves that begin alike than this are not told apart: they are ambiguous, as a fleet that greets alike is.
pub(crate) const CROWD: usize = 64;
/// First datagrams of which it is remembered that there were more halves than had room.
const BLIND_AT_MOST: usize = 4096;

/// First datagrams with which more halves began than there was room for: those that are known may look like the only ones
/// and are not. Until all that were known then have expired, such are ambiguous.
#[derive(Default)]
pub(crate) struct Blind {
    until: BTreeMap<u32, i64>,
    all_until: Option<i64>,
}

impl Blind {
    fn add(&mut self, client: u32, now: i64, until: i64) {
        if self.until.len() >= BLIND_AT_MOST && !self.until.contains_key(&client) {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() < BLIND_AT_MOST || self.until.contains_key(&client) {
            self.until.insert(client, until);
        } else {
            self.all_until = Some(until);
        }
    }

    fn holds(&self, client: u32, now: i64) -> bool {
        let after = |until: &i64| *until > now;
        self.until.get(&client).is_some_and(after) || self.all_until.as_ref().is_some_and(after)
    }

    /// Memory asked for, about.
    pub(crate) fn allocated_bytes(&self) -> usize {
        self.until.len() * 2 * size_of::<(u32, i64)>()
    }
}

/// What came of a look at a half whose hold is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is one.
    Given,
    /// There will be one, when the hold of another with the same addresses is over. Nobody else is asked until then: among all
    /// that begin alike it may look like one of many.
    Pending,
    /// None of those known fits.
    None,
}

/// The second word of a twin, whose first is made of the client's first datagram.
fn twin_word(client: u32) -> u32 {
    mix64(u64::from(client)) as u32
}

/// Both keys of a UDP half.
fn keys(view: &HalfView) -> Option<([u32; 2], u32)> {
    match view.candidate(Handle(0)).key {
        Key::Datagrams { flow, client } => Some((flow, client)),
        Key::Isn { .. } | Key::Tuple(_) => None,
    }
}

impl Stitcher {
    pub(crate) fn insert_datagrams(&mut self, half: &Candidate, flow: [u32; 2], client: u32) {
        let [a, b] = flow;
        let known = self.isn.table.find(a, half.handle.0);
        if known.is_some_and(|(_, entry)| entry.b == b && entry.role == half.role) {
            self.counters.repeated += 1;
            return;
        }
        let until = self.now.saturating_add(self.config.expiry_us);
        let new = Entry {
            a,
            b,
            handle: half.handle.0,
            role: half.role,
            state: State::Held,
        };
        let found = self.isn.table.find_key(a, b);
        let room = self.isn.table.open() < self.config.max_open;
        let Some(slot) = room.then(|| self.isn.table.place(new, &found)).flatten() else {
            self.blind.add(client, self.now, until);
            return self.full(half.handle);
        };
        self.isn.begin_hold(slot, a, self.now);
        // Dormant says of a twin that its half is in its hold, or has a partner without NAT that is.
        let twin = Entry {
            a: client,
            b: twin_word(client),
            state: State::Dormant,
            ..new
        };
        if !self.isn.add(twin, self.now) {
            self.counters.not_indexed += 1;
            self.blind.add(client, self.now, until);
        }
    }

    /// The hold of a UDP half is over.
    pub(crate) fn datagrams_held(
        &mut self,
        slot: Slot,
        entry: Entry,
        view: &HalfView,
        halves: &impl Halves,
    ) -> Verdict {
        let Some((_, client)) = keys(view) else {
            return Verdict::None;
        };
        match self.try_in_place(slot, entry, halves) {
            Verdict::None => {
                self.release_pending(entry, halves);
                match self.try_elsewhere(client, entry.handle, halves) {
                    true => Verdict::Given,
                    false => Verdict::None,
                }
            }
            other => other,
        }
    }

    /// What waited for this half, with which it shares a key, and waited in vain.
    fn release_pending(&mut self, entry: Entry, halves: &impl Halves) {
        let mut waiting = Vec::new();
        self.isn.table.with_routing(entry.a, |slot, other| {
            let like = other.b == entry.b && other.role != entry.role;
            if like && other.state == State::Offered {
                waiting.push((slot, other));
            }
        });
        for (slot, other) in waiting {
            let view = halves.view(Handle(other.handle));
            let Some((_, client)) = view.as_ref().and_then(keys) else {
                continue;
            };
            // Dormant, a twin says that its half was not offered yet.
            let twin = self.isn.table.find(client, other.handle);
            if !twin.is_some_and(|(_, twin)| twin.state == State::Dormant) {
                continue;
            }
            let still_nothing = self.try_in_place(slot, other, halves) == Verdict::None;
            if still_nothing && !self.try_elsewhere(client, other.handle, halves) {
                self.offer(other.handle);
            }
        }
    }

    fn try_elsewhere(&mut self, client: u32, handle: u32, halves: &impl Halves) -> bool {
        if let Some((twin, known)) = self.isn.table.find(client, handle)
            && known.state == State::Dormant
        {
            self.isn.table.set_state(twin, State::Offered);
        }
        self.try_first_datagram(client, handle, halves)
    }

    /// The time of one of the entries of a UDP half is over.
    pub(crate) fn datagrams_expired(
        &mut self,
        slot: Slot,
        entry: Entry,
        view: &HalfView,
        halves: &impl Halves,
    ) {
        let Some((flow, client)) = keys(view) else {
            return self.isn.clear(slot);
        };
        let own = [entry.a, entry.b] == flow;
        if !own {
            // A twin lives as long as its half.
            match self.isn.table.find(flow[0], entry.handle) {
                Some((_, half)) if half.b == flow[1] => {
                    self.isn
                        .begin_expiry(slot, entry.a, self.now_of_insertion())
                }
                _ => self.isn.clear(slot),
            }
            return;
        }
        let decided = entry.state.waits()
            && (self.try_in_place(slot, entry, halves) == Verdict::Given
                || self.try_elsewhere(client, entry.handle, halves));
        let open = view.closed_at.is_none();
        if decided || entry.state.waits() && open {
            if self
                .isn
                .table
                .entry(slot)
                .is_some_and(|left| left.handle == entry.handle)
            {
                self.isn
                    .begin_expiry(slot, entry.a, self.now_of_insertion());
            }
            if decided {
                return;
            }
            self.isn.table.set_state(slot, State::Dormant);
        } else {
            self.isn.clear(slot);
            if let Some((twin, _)) = self.isn.table.find(client, entry.handle) {
                self.isn.clear(twin);
            }
        }
        if entry.state == State::Offered {
            self.expired(entry.handle, crate::stitcher::Reason::NoPartner);
        }
    }

    /// Whether an entry is a twin, as far as it tells itself.
    pub(crate) fn is_twin(entry: &Entry) -> bool {
        entry.b == twin_word(entry.a)
    }

    /// Among those with the same addresses and first datagram.
    fn try_in_place(&mut self, slot: Slot, entry: Entry, halves: &impl Halves) -> Verdict {
        let mut group = Vec::new();
        self.isn.table.with_routing(entry.a, |slot, other| {
            if other.b == entry.b {
                group.push((slot, other));
            }
        });
        if group.len() < 2 {
            return Verdict::None;
        }
        let views = views(&group, halves);
        let fits = |x: &Entry, y: &Entry| either(&views, x, y, fit_in_place);
        let decision = decide((slot, entry), &group, fits);
        let held = |other: &Entry| other.state == State::Held && other.role != entry.role;
        let pending = |(_, other): &(Slot, Entry)| held(other) && fits(&entry, other) != Fit::No;
        if decision == Decision::None && group.iter().any(pending) {
            return Verdict::Pending;
        }
        let doubtful: Vec<_> = match &decision {
            Decision::Ambiguous(entries) => entries.iter().map(|(_, entry)| entry.handle).collect(),
            Decision::Contest(pair, entries) => {
                let all = pair.iter().chain(entries);
                all.map(|(_, entry)| entry.handle).collect()
            }
            Decision::Pair(_) | Decision::None => Vec::new(),
        };
        if !self.carry_out_datagrams(decision, State::Matched, &views) {
            return Verdict::None;
        }
        // What begins like these, and saw them in the midst of a decision, is told.
        for handle in doubtful {
            if let Some((_, client)) = view_of(&views, handle).as_ref().and_then(keys) {
                self.doubt_those_like(client, handle, halves);
            }
        }
        Verdict::Given
    }

    fn doubt_those_like(&mut self, client: u32, handle: u32, halves: &impl Halves) {
        let group = self.those_like(client);
        let own: Vec<_> = group
            .iter()
            .filter(|(_, entry)| entry.handle == handle)
            .copied()
            .collect();
        if own.is_empty() || group.len() > CROWD {
            return;
        }
        let views = views(&group, halves);
        let others = spread(own, &group, |x, y| fit_begun_alike(&views, x, y));
        if !others.is_empty() {
            self.carry_out_datagrams(Decision::Ambiguous(others), State::Ambiguous, &views);
        }
    }

    /// All that begin with the same datagram but those with a partner that has their addresses.
    fn those_like(&self, client: u32) -> Vec<(Slot, Entry)> {
        let mut group = Vec::new();
        self.isn.table.with_routing(client, |slot, other| {
            if other.b == twin_word(client) && other.state != State::Matched {
                group.push((slot, other));
            }
        });
        group
    }

    /// Among all that begin alike.
    pub(crate) fn try_first_datagram(
        &mut self,
        client: u32,
        handle: u32,
        halves: &impl Halves,
    ) -> bool {
        let Some((slot, entry)) = self.isn.table.find(client, handle) else {
            return self.doubt_without_twin(client, handle, halves);
        };
        if entry.state != State::Offered {
            return false;
        }
        let mut group = self.those_like(client);
        let blind = self.blind.holds(client, self.now);
        if group.len() < 2 && !blind {
            return false;
        }
        let views = views(&group, halves);
        if group.len() > CROWD {
            // Those in their hold may yet find one with their addresses; else they come here themselves.
            group.retain(|(_, entry)| entry.state == State::Offered);
            return self.carry_out_datagrams(Decision::Ambiguous(group), State::Ambiguous, &views);
        }
        let fits = |x: &Entry, y: &Entry| fit_begun_alike(&views, x, y);
        let decision = match decide((slot, entry), &group, fits) {
            Decision::Pair(_) if blind => Decision::Ambiguous(vec![(slot, entry)]),
            decision => decision,
        };
        self.carry_out_datagrams(decision, State::MatchedInPart, &views)
    }

    /// A half for whose twin there was no room cannot be looked for among those that begin alike. While it is known that these
    /// were too many, it is ambiguous as they are.
    fn doubt_without_twin(&mut self, client: u32, handle: u32, halves: &impl Halves) -> bool {
        if !self.blind.holds(client, self.now) {
            return false;
        }
        let Some(view) = halves.view(Handle(handle)) else {
            return false;
        };
        let own = keys(&view).and_then(|([a, _], _)| self.isn.table.find(a, handle));
        let Some((slot, _)) = own.filter(|(_, entry)| entry.state == State::Offered) else {
            return false;
        };
        self.ambiguous(rule_of(Some(view.fingerprint)), handle);
        self.isn.table.set_state(slot, State::Ambiguous);
        true
    }

    fn carry_out_datagrams(
        &mut self,
        decision: Decision,
        matched: State,
        views: &[(u32, HalfView)],
    ) -> bool {
        let rule = |entry: &Entry| {
            let view = view_of(views, entry.handle);
            rule_of(view.map(|view| view.fingerprint))
        };
        match decision {
            Decision::None => return false,
            Decision::Pair([x, y]) => {
                self.pair(rule(&x.1), x.1, y.1);
                for (_, entry) in [x, y] {
                    for slot in self.entries_of(view_of(views, entry.handle), entry.handle) {
                        let remembered = self.isn.matched(slot, matched);
                        self.counters.not_remembered += u64::from(!remembered);
                    }
                }
            }
            Decision::Ambiguous(entries) => self.all_ambiguous(&entries, rule, views),
            Decision::Contest(pair, entries) => {
                for (_, entry) in pair {
                    self.doubt(rule(&entry), entry);
                    self.set_both(entry, State::Contested, views);
                }
                self.all_ambiguous(&entries, rule, views);
            }
        }
        true
    }

    fn all_ambiguous(
        &mut self,
        entries: &[(Slot, Entry)],
        rule: impl Fn(&Entry) -> crate::judge::Rule,
        views: &[(u32, HalfView)],
    ) {
        for (_, entry) in entries {
            self.ambiguous(rule(entry), entry.handle);
            self.set_both(*entry, State::Ambiguous, views);
        }
    }

    fn set_both(&mut self, entry: Entry, state: State, views: &[(u32, HalfView)]) {
        for slot in self.entries_of(view_of(views, entry.handle), entry.handle) {
            self.isn.table.set_state(slot, state);
        }
    }

    /// A half's entries in the table of those with ISNs or datagrams.
    pub(crate) fn entries_of(
        &self,
        view: Option<HalfView>,
        handle: u32,
    ) -> impl Iterator<Item = Slot> + use<> {
        let words = match view.map(|view| (view.fingerprint, keys(&view))) {
            Some((Fingerprint::TcpIsn { client, .. }, _)) => [Some(client), None],
            Some((Fingerprint::Datagrams(_), Some((flow, client)))) => {
                [Some(flow[0]), Some(client)]
            }
            _ => [None; 2],
        };
        let find = |word: Option<u32>| self.isn.table.find(word?, handle).map(|(slot, _)| slot);
        words.map(find).into_iter().flatten()
    }
}

fn views(group: &[(Slot, Entry)], halves: &impl Halves) -> Vec<(u32, HalfView)> {
    let mut views: Vec<_> = group
        .iter()
        .filter_map(|(_, entry)| Some((entry.handle, halves.view(Handle(entry.handle))?)))
        .collect();
    views.sort_by_key(|(handle, _)| *handle);
    views
}

fn view_of(views: &[(u32, HalfView)], handle: u32) -> Option<HalfView> {
    let at = views.binary_search_by_key(&handle, |(handle, _)| *handle);
    at.ok().map(|at| views[at].1)
}

fn fit_begun_alike(views: &[(u32, HalfView)], x: &Entry, y: &Entry) -> Fit {
    match either(views, x, y, fit) {
        // Its hold is not over.
        Fit::Yes(_) if y.state == State::Dormant => Fit::Later,
        fit => fit,
    }
}

fn either(
    views: &[(u32, HalfView)],
    x: &Entry,
    y: &Entry,
    fit: impl Fn(&HalfView, &HalfView) -> Fit,
) -> Fit {
    match (view_of(views, x.handle), view_of(views, y.handle)) {
        (Some(x), Some(y)) if x.role == Role::Client => fit(&x, &y),
        (Some(x), Some(y)) => fit(&y, &x),
        _ => Fit::No,
    }
}
