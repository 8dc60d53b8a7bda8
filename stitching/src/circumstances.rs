//! The rules that rest on circumstances: `tcp-client-isn` and `reversed-tuple`. Both are for halves past their hold,
//! when the exact rule has had its chance.

use crate::decide::{Decision, decide};
use crate::judge::{Fit, Rule, fit};
use crate::stitcher::{Handle, Key, Stitcher, words};
use crate::table::{Entry, Slot, State};
use crate::view::{Fingerprint, HalfView, Halves, Role};

impl Stitcher {
    /// `tcp-client-isn` for a half past its hold. Whether it has a verdict now.
    pub(crate) fn try_client_isn(
        &mut self,
        slot: Slot,
        entry: Entry,
        halves: &impl Halves,
    ) -> bool {
        let mut group = Vec::new();
        self.isn.table.with_routing(entry.a, |slot, other| {
            // One that is matched by both ISNs is no rival.
            if other.b != entry.b && other.state != State::Matched {
                group.push((slot, other));
            }
        });
        if group.is_empty() {
            return false;
        }
        group.push((slot, entry));
        let view = |entry: &Entry| halves.view(Handle(entry.handle));
        let views: Vec<_> = group
            .iter()
            .filter_map(|(_, entry)| Some((entry.handle, view(entry)?)))
            .collect();
        let fits = |x: &Entry, y: &Entry| match (view_of(&views, x), view_of(&views, y)) {
            (Some(x_view), Some(y_view)) if x.b != y.b => fit_either(&x_view, &y_view),
            _ => Fit::No,
        };
        self.carry_out(
            Rule::TcpClientIsn,
            decide((slot, entry), &group, fits),
            &views,
        )
    }

    /// `reversed-tuple` for a half past its hold. Whether it has a verdict now.
    pub(crate) fn try_tuple(&mut self, slot: Slot, entry: Entry, halves: &impl Halves) -> bool {
        let mut known = 0;
        self.tuple
            .table
            .with_routing(entry.a, |_, other| known += u32::from(other.b == entry.b));
        if known < 2 {
            return false;
        }
        let (mut group, mut views, mut stale) = (Vec::new(), Vec::new(), Vec::new());
        self.tuple.table.with_routing(entry.a, |slot, other| {
            if other.b != entry.b {
                return;
            }
            match self.current(other, halves) {
                Some(view) => {
                    group.push((slot, other));
                    views.push((other.handle, view));
                }
                None => stale.push(slot),
            }
        });
        stale.into_iter().for_each(|slot| self.tuple.clear(slot));
        let fits = |x: &Entry, y: &Entry| match (view_of(&views, x), view_of(&views, y)) {
            (Some(x), Some(y)) if is_tuple_rule(&x, &y) => fit_either(&x, &y),
            _ => Fit::No,
        };
        self.carry_out(
            Rule::ReversedTuple,
            decide((slot, entry), &group, fits),
            &views,
        )
    }

    fn carry_out(&mut self, rule: Rule, decision: Decision, views: &[(u32, HalfView)]) -> bool {
        match decision {
            Decision::None => return false,
            Decision::Pair([x, y]) => {
                self.pair(rule, x.1, y.1);
                for (slot, entry) in [x, y] {
                    self.mark_matched(rule, slot, entry, views);
                }
            }
            Decision::Ambiguous(entries) => {
                for (slot, entry) in entries {
                    self.ambiguous(rule, entry.handle);
                    self.mark(rule, slot, entry, State::Ambiguous, views);
                }
            }
            Decision::Contest(pair, ambiguous) => {
                for (slot, entry) in pair {
                    self.doubt(rule, entry);
                    self.mark(rule, slot, entry, State::Contested, views);
                }
                for (slot, entry) in ambiguous {
                    self.ambiguous(rule, entry.handle);
                    self.mark(rule, slot, entry, State::Ambiguous, views);
                }
            }
        }
        true
    }

    /// A half with ISNs that the index by tuple led to has its own entry by them: it must say the same.
    fn mark(
        &mut self,
        rule: Rule,
        slot: Slot,
        entry: Entry,
        state: State,
        views: &[(u32, HalfView)],
    ) {
        if rule == Rule::TcpClientIsn {
            self.isn.table.set_state(slot, state);
            return;
        }
        self.tuple.table.set_state(slot, state);
        for own in self.entries_of(view_of(views, &entry), entry.handle) {
            self.isn.table.set_state(own, state);
        }
    }

    fn mark_matched(&mut self, rule: Rule, slot: Slot, entry: Entry, views: &[(u32, HalfView)]) {
        let remembered = if rule == Rule::TcpClientIsn {
            self.isn.matched(slot, State::MatchedInPart)
        } else {
            for own in self.entries_of(view_of(views, &entry), entry.handle) {
                self.isn.matched(own, State::Matched);
            }
            self.tuple.matched(slot, State::Matched)
        };
        self.counters.not_remembered += u64::from(!remembered);
    }

    /// The view of an entry in the index by tuple, if the entry still stands for what it did.
    fn current(&self, entry: Entry, halves: &impl Halves) -> Option<HalfView> {
        let view = halves.view(Handle(entry.handle))?;
        if words(Key::Tuple(view.tuple_key())) != (entry.a, entry.b) || view.role != entry.role {
            return None;
        }
        if view.fingerprint == Fingerprint::Unknown || !entry.state.waits() {
            return Some(view);
        }
        let (a, _) = words(view.candidate(Handle(entry.handle)).key);
        let (_, own) = self.isn.table.find(a, entry.handle)?;
        own.state.waits().then_some(view)
    }
}

fn view_of(views: &[(u32, HalfView)], entry: &Entry) -> Option<HalfView> {
    views
        .iter()
        .find(|(handle, _)| *handle == entry.handle)
        .map(|(_, view)| *view)
}

fn fit_either(x: &HalfView, y: &HalfView) -> Fit {
    if x.role == Role::Client {
        fit(x, y)
    } else {
        fit(y, x)
    }
}

/// At least one of the two has no ISN.
fn is_tuple_rule(x: &HalfView, y: &HalfView) -> bool {
    [x, y]
        .iter()
        .any(|view| view.fingerprint == Fingerprint::Unknown)
}
