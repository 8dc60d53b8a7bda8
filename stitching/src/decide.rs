//! One pair, or several that could be: decided about a half and those around it.

use crate::judge::Fit;
use crate::table::{Entry, Slot, State};

/// What follows for a half.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing yet.
    None,
    /// The half in the first slot and that in the second, and nothing else could be part of it.
    Pair([(Slot, Entry); 2]),
    /// These could be parts of several pairs.
    Ambiguous(Vec<(Slot, Entry)>),
    /// It would fit the first, which are a pair already: it and what else it would fit is ambiguous.
    Contest(Vec<(Slot, Entry)>, Vec<(Slot, Entry)>),
}

/// Decides about the half in `own`. `group` are all that are known under its key, itself among them; `fits` says what two
/// of them, of opposite roles, can be to each other.
pub(crate) fn decide(
    own: (Slot, Entry),
    group: &[(Slot, Entry)],
    fits: impl Fn(&Entry, &Entry) -> Fit,
) -> Decision {
    // One whose hold is not over may yet find a partner by a better rule; then it comes back to this.
    let fit_now = |x: &Entry, y: &Entry| match fits(x, y) {
        Fit::Yes(_) if y.state == State::Held => Fit::Later,
        fit => fit,
    };
    let partners = |x: &Entry, paired: bool| -> Vec<((Slot, Entry), Fit)> {
        let others = group
            .iter()
            .filter(|(_, y)| y.role != x.role && y.handle != x.handle);
        let of_kind = others.filter(|(_, y)| y.state.remembered() == paired);
        of_kind
            .map(|other| (*other, fit_now(x, &other.1)))
            .filter(|(_, fit)| *fit != Fit::No)
            .collect()
    };
    let sure = |partners: &[((Slot, Entry), Fit)]| {
        partners
            .iter()
            .filter(|(_, fit)| *fit != Fit::Later)
            .count()
    };

    let spread = |entries| spread(entries, group, &fits);
    let mine = partners(&own.1, false);
    let known = mine
        .iter()
        .filter(|(_, fit)| *fit != Fit::Later)
        .map(|(other, _)| *other);

    let pair = partners(&own.1, true);
    if !pair.is_empty() {
        let theirs = pair
            .iter()
            .flat_map(|((_, entry), _)| partners(entry, true));
        let pair = distinct(pair.iter().copied().chain(theirs).map(|(other, _)| other));
        let mut others = spread(distinct(pair.iter().copied().chain(known).chain([own])));
        others.retain(|(_, entry)| !entry.state.remembered());
        return Decision::Contest(pair, others);
    }
    let Some((partner, _)) = mine.iter().find(|(_, fit)| *fit != Fit::Later) else {
        return Decision::None;
    };
    let theirs = partners(&partner.1, false);
    if mine.len() == 1 && theirs.len() == 1 {
        return match partner.1.state {
            State::Ambiguous => Decision::Ambiguous(vec![own]),
            _ => Decision::Pair([own, *partner]),
        };
    }
    if sure(&mine) < 2 && sure(&theirs) < 2 {
        return Decision::None;
    }
    let theirs = theirs
        .iter()
        .filter(|(_, fit)| *fit != Fit::Later)
        .map(|(other, _)| *other);
    Decision::Ambiguous(spread(distinct(known.chain(theirs).chain([own]))))
}

/// What would fit one that is ambiguous has no sure partner either, and so on: these, and all such, as far as they wait.
pub(crate) fn spread(
    mut entries: Vec<(Slot, Entry)>,
    group: &[(Slot, Entry)],
    fits: impl Fn(&Entry, &Entry) -> Fit,
) -> Vec<(Slot, Entry)> {
    let mut next = 0;
    while let Some((_, x)) = entries.get(next).copied() {
        for (slot, y) in group {
            let known = entries.iter().any(|(_, entry)| entry.handle == y.handle);
            let waits = y.state.waits() && y.state != State::Held;
            if !known && waits && y.role != x.role && matches!(fits(&x, y), Fit::Yes(_)) {
                entries.push((*slot, *y));
            }
        }
        next += 1;
    }
    entries.retain(|(_, entry)| entry.state.waits());
    entries
}

fn distinct(entries: impl Iterator<Item = (Slot, Entry)>) -> Vec<(Slot, Entry)> {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|(_, entry)| (entry.handle, entry.role));
    entries.dedup_by_key(|(_, entry)| entry.handle);
    entries
}
