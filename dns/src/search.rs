//! Questions that only tried the search path. A resolver that is told to search asks for `db.shop.svc.cluster.local`,
//! `db.svc.cluster.local`, … before it asks for what the program said (`ndots`). Each such try that fails is waste, and
//! the name that was meant is what a reader wants to see.
//!
//! A failed question is held for a moment. What the same asker asks next says whether it was such a try: the name without
//! the suffix, or with a later one. Nothing is concluded from one question alone.

use std::collections::{BTreeMap, VecDeque};

use weft_wire::Timestamp;

use crate::name;

/// How long a failed question waits for the next one.
pub const HOLD_US: i64 = 1_000_000;
/// Most that wait for one asker's next question; the oldest goes on as it is.
pub const MAX_HELD_PER_ASKER: usize = 16;
/// Most that wait at all; likewise.
pub const MAX_HELD: usize = 4_096;

/// Failed questions that wait; `T` is what goes on when it is known what they were.
#[derive(Debug)]
pub struct Search<T> {
    held: BTreeMap<u64, Held<T>>,
    by_asker: BTreeMap<u64, VecDeque<u64>>,
    serial: u64,
}

#[derive(Debug)]
struct Held<T> {
    asker: u64,
    name: String,
    until: Timestamp,
    item: T,
}

/// One that goes on, and the name that was meant, if it only tried.
pub type Released<T> = (T, Option<String>);

impl<T> Default for Search<T> {
    fn default() -> Self {
        Self {
            held: BTreeMap::new(),
            by_asker: BTreeMap::new(),
            serial: 0,
        }
    }
}

impl<T> Search<T> {
    /// What is held.
    pub fn items_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.held.values_mut().map(|held| &mut held.item)
    }

    /// Takes a question that was answered with "no such name". `list` is the asker's search list, empty when it is not known.
    pub fn failed(
        &mut self,
        asker: u64,
        name: &str,
        list: &[String],
        at: Timestamp,
        item: T,
        out: &mut Vec<Released<T>>,
    ) {
        // The bare name may have been tried first.
        let bare = list
            .iter()
            .filter_map(|suffix| name::before(name, suffix))
            .find(|bare| self.of(asker).any(|held| held.name == *bare));
        if let Some(bare) = bare {
            out.push((item, Some(bare.to_owned())));
            return;
        }
        self.serial += 1;
        let held = Held {
            asker,
            name: name.to_owned(),
            until: Timestamp(at.0.saturating_add(HOLD_US)),
            item,
        };
        self.held.insert(self.serial, held);
        let mine = self.by_asker.entry(asker).or_default();
        mine.push_back(self.serial);
        let oldest = (mine.len() > MAX_HELD_PER_ASKER)
            .then(|| mine[0])
            .or_else(|| {
                (self.held.len() > MAX_HELD)
                    .then(|| self.held.first_key_value().map(|(serial, _)| *serial))?
            });
        out.extend(
            oldest
                .and_then(|serial| self.release(serial))
                .map(|item| (item, None)),
        );
    }

    /// Takes a question that is being asked: those that it explains go on.
    pub fn asked(&mut self, asker: u64, name: &str, list: &[String], out: &mut Vec<Released<T>>) {
        let Some(mine) = self.by_asker.get(&asker) else {
            return;
        };
        let explained: Vec<(u64, String)> = mine
            .iter()
            .filter_map(|serial| {
                let meant = meant(&self.held.get(serial)?.name, name, list)?;
                Some((*serial, meant.to_owned()))
            })
            .collect();
        for (serial, meant) in explained {
            out.extend(self.release(serial).map(|item| (item, Some(meant))));
        }
    }

    /// Those that waited long enough.
    pub fn due(&mut self, now: Timestamp, out: &mut Vec<Released<T>>) {
        while let Some((serial, _)) = self
            .held
            .first_key_value()
            .filter(|(_, held)| held.until <= now)
        {
            let serial = *serial;
            out.extend(self.release(serial).map(|item| (item, None)));
        }
    }

    /// All, at the end.
    pub fn drain(&mut self) -> Vec<Released<T>> {
        self.by_asker.clear();
        std::mem::take(&mut self.held)
            .into_values()
            .map(|held| (held.item, None))
            .collect()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    fn of(&self, asker: u64) -> impl Iterator<Item = &Held<T>> {
        let mine = self.by_asker.get(&asker).into_iter().flatten();
        mine.filter_map(|serial| self.held.get(serial))
    }

    fn release(&mut self, serial: u64) -> Option<T> {
        let held = self.held.remove(&serial)?;
        if let Some(mine) = self.by_asker.get_mut(&held.asker) {
            mine.retain(|other| *other != serial);
            if mine.is_empty() {
                self.by_asker.remove(&held.asker);
            }
        }
        Some(held.item)
    }
}

/// The name that was meant by asking for `first`, given that `then` was asked for afterwards.
///
/// With a search list: `first` is a name and a suffix of the list, `then` the name alone or with a suffix further down.
/// Without one: `then` is the beginning of `first`, or both are a Kubernetes service's name tried in two places.
pub fn meant<'a>(first: &str, then: &'a str, list: &[String]) -> Option<&'a str> {
    let alone = || {
        let rest = first.strip_prefix(then)?.strip_prefix('.')?;
        (!then.is_empty() && name::before(first, rest) == Some(then)).then_some(then)
    };
    if list.is_empty() {
        return alone().or_else(|| in_cluster(first, then));
    }
    list.iter().enumerate().find_map(|(at, suffix)| {
        let bare = name::before(first, suffix)?;
        if bare == then {
            return Some(then);
        }
        list[at + 1..]
            .iter()
            .filter_map(|later| name::before(then, later))
            .find(|other| *other == bare)
    })
}

/// `db.shop.svc.cluster.local` and then `db.svc.cluster.local`, or that and then `db.cluster.local`.
fn in_cluster<'a>(first: &str, then: &'a str) -> Option<&'a str> {
    name::suffixes(then).skip(1).find_map(|common| {
        let (long, short) = (name::before(first, common)?, name::before(then, common)?);
        let extra = long.strip_prefix(short)?.strip_prefix('.')?;
        let namespace = common.starts_with("svc.") && name::labels(extra) == 1;
        (namespace || extra == "svc").then_some(short)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> Vec<String> {
        [
            "shop.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local",
            "ec2.internal",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// What each of the failed questions is found to have meant, in order of their release.
    fn run(list: &[String], questions: &[(&str, bool)]) -> Vec<(String, Option<String>)> {
        let mut search = Search::default();
        let mut out = Vec::new();
        for (at, (name, fails)) in questions.iter().enumerate() {
            search.asked(7, name, list, &mut out);
            if *fails {
                search.failed(
                    7,
                    name,
                    list,
                    Timestamp(at as i64),
                    (*name).to_owned(),
                    &mut out,
                );
            }
        }
        out.extend(search.drain());
        out
    }

    fn meant_by(list: &[String], questions: &[(&str, bool)]) -> Vec<Option<String>> {
        run(list, questions)
            .into_iter()
            .map(|(_, meant)| meant)
            .collect()
    }

    #[test]
    fn an_outside_name_asked_from_a_pod() {
        let questions = [
            ("s3.amazonaws.com.shop.svc.cluster.local", true),
            ("s3.amazonaws.com.svc.cluster.local", true),
            ("s3.amazonaws.com.cluster.local", true),
            ("s3.amazonaws.com.ec2.internal", true),
            ("s3.amazonaws.com", false),
        ];
        let all = vec![Some("s3.amazonaws.com".to_owned()); 4];
        assert_eq!(meant_by(&list(), &questions), all);
        assert_eq!(meant_by(&[], &questions), all);
    }

    #[test]
    fn a_service_of_another_namespace() {
        let questions = [
            ("db.data.shop.svc.cluster.local", true),
            ("db.data.svc.cluster.local", false),
        ];
        assert_eq!(meant_by(&list(), &questions), [Some("db.data".to_owned())]);
        assert_eq!(meant_by(&[], &questions), [Some("db.data".to_owned())]);
    }

    #[test]
    fn the_bare_name_first() {
        let questions = [
            ("a.b.c.d.e.f", true),
            ("a.b.c.d.e.f.shop.svc.cluster.local", true),
            ("a.b.c.d.e.f.svc.cluster.local", true),
        ];
        let meant = Some("a.b.c.d.e.f".to_owned());
        assert_eq!(meant_by(&list(), &questions), [meant.clone(), meant, None]);
    }

    #[test]
    fn unrelated_failures_stay_failures() {
        let questions = [
            ("a.b.example.com", true),
            ("a.example.com", true),
            ("example.com", true),
            ("zz", true),
            ("z", true),
        ];
        assert_eq!(meant_by(&[], &questions), vec![None; 5]);
        assert_eq!(meant_by(&list(), &questions), vec![None; 5]);
    }

    #[test]
    fn another_asker_explains_nothing_and_all_limits_hold() {
        let mut search = Search::default();
        let mut out = Vec::new();
        search.failed(1, "x.example.com", &[], Timestamp(0), 0, &mut out);
        search.asked(2, "x", &[], &mut out);
        assert!(out.is_empty());
        search.due(Timestamp(HOLD_US), &mut out);
        assert_eq!(out, [(0, None)]);
        out.clear();
        for item in 0..2 * MAX_HELD {
            search.failed(item as u64 / 20, "x.y", &[], Timestamp(0), item, &mut out);
            assert!(search.len() <= MAX_HELD);
        }
        assert_eq!(out.len() + search.len(), 2 * MAX_HELD);
        assert_eq!(
            search.by_asker.values().map(VecDeque::len).sum::<usize>(),
            search.len()
        );
    }
}
