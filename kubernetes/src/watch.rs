//! When to list, when to watch, when to wait. Pure: time is the time since the start, randomness comes from a seed.
//!
//! The driver asks [`Watcher::step`] and does what it says. Of a list it tells [`Watcher::page`] or [`Watcher::failed`]; of a
//! watch [`Watcher::watching`] when it stands, [`Watcher::event`] for each event with the version it carries (bookmarks
//! too), and [`Watcher::ended`] or [`Watcher::failed`]. [`Watcher::page`] says when a list is complete.
//!
//! - The first list asks for any version that the server has at hand (`resourceVersion=0`), as a node's own components do: a
//!   thousand agents that restart do not read etcd. After 410 Gone it asks for the newest.
//! - Pages follow by their token; a token that expired starts the list again, and twice in a row one without pages.
//! - A watch goes on from the last version heard of, also after it ended or was cut. Once that version is too old
//!   (410 Gone as a status or as an event) everything is listed again.
//! - Whatever fails is tried again after a wait that doubles, with jitter, up to [`LONGEST_WAIT`]; never before the
//!   `Retry-After` that the server asked for.

use std::time::Duration;

use weft_wire::mix64;

/// Objects of a page.
pub const PAGE_OBJECTS: u32 = 500;
/// First wait after a failure; doubles with each further one.
pub const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait of our own choice.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Longest wait that a server may ask for.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);
/// A watch that ends sooner without a word is a failure: else a server that ends each at once would be asked without end.
pub const SHORTEST_WATCH: Duration = Duration::from_secs(2);
/// So many watches in a row that fail without a word end the trust in our version: everything is listed again.
pub const FAILURES_TO_RELIST: u32 = 4;
/// Shortest time that a watch is asked for; the longest is twice that. Agents that started together spread out.
pub const WATCH_S: u32 = 240;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// List a page.
    List(List),
    /// Watch from a version on.
    Watch(Watch),
    /// Ask again after this time.
    Wait(Duration),
}

/// A request for a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// `resourceVersion`, if one is asked for.
    pub version: Option<String>,
    /// `continue`: the page after the one that gave this. `None`: the first.
    pub token: Option<String>,
    /// `limit`; `None`: everything at once.
    pub limit: Option<u32>,
}

/// A request for a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// `resourceVersion`.
    pub version: String,
    /// `timeoutSeconds`.
    pub timeout_s: u32,
}

/// Why something failed, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// 410: the version or token is too old.
    Gone,
    /// 429 or 503, with what `Retry-After` says.
    Busy(Option<Duration>),
    /// 401 or 403.
    Forbidden,
    /// 404: the server does not have such objects.
    Missing,
    /// Anything else: no connection, cut off, another status, not understood.
    Other,
}

/// What a page meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paged {
    /// More pages follow.
    More,
    /// That was the last.
    Complete,
}

/// See the module.
#[derive(Debug)]
pub struct Watcher {
    random: u64,
    state: State,
    /// Failures in a row.
    failures: u32,
    /// Watches in a row that failed without a word.
    silent: u32,
    /// Tokens in a row that expired.
    expired: u32,
    not_before: Duration,
    /// Times that everything was listed again because a version was too old.
    pub relists: u64,
    /// Requests that failed.
    pub total_failures: u64,
}

#[derive(Debug)]
enum State {
    Listing(List),
    Watching {
        version: String,
        /// Since when the watch stands, and whether anything came.
        since: Option<Duration>,
        heard: bool,
    },
}

impl Watcher {
    /// About to list. The seed should differ between agents.
    pub fn new(seed: u64) -> Self {
        let cached = List {
            version: Some("0".into()),
            token: None,
            limit: Some(PAGE_OBJECTS),
        };
        Self {
            random: seed,
            state: State::Listing(cached),
            failures: 0,
            silent: 0,
            expired: 0,
            not_before: Duration::ZERO,
            relists: 0,
            total_failures: 0,
        }
    }

    /// What to do now.
    pub fn step(&mut self, now: Duration) -> Step {
        if now < self.not_before {
            return Step::Wait(self.not_before - now);
        }
        match &self.state {
            State::Listing(list) => Step::List(list.clone()),
            State::Watching { version, .. } => {
                let version = version.clone();
                let timeout_s = WATCH_S + (self.draw() % u64::from(WATCH_S)) as u32;
                Step::Watch(Watch { version, timeout_s })
            }
        }
    }

    /// A page came, with the list's version and the token of the next page.
    pub fn page(&mut self, version: &str, token: &str) -> Paged {
        if !token.is_empty() {
            let limit = match &self.state {
                State::Listing(list) => list.limit,
                State::Watching { .. } => Some(PAGE_OBJECTS),
            };
            // The token names the version; giving another is an error.
            self.state = State::Listing(List {
                version: None,
                token: Some(token.to_owned()),
                limit,
            });
            return Paged::More;
        }
        self.state = State::Watching {
            version: version.to_owned(),
            since: None,
            heard: false,
        };
        (self.failures, self.silent, self.expired) = (0, 0, 0);
        Paged::Complete
    }

    /// The watch stands.
    pub fn watching(&mut self, now: Duration) {
        if let State::Watching { since, heard, .. } = &mut self.state {
            (*since, *heard) = (Some(now), false);
        }
    }

    /// An event came, a bookmark too. `version` is that of its object; empty when it could not be read.
    pub fn event(&mut self, version: &str) {
        if let State::Watching {
            version: last,
            heard,
            ..
        } = &mut self.state
        {
            *heard = true;
            if !version.is_empty() {
                *last = version.to_owned();
            }
            (self.failures, self.silent) = (0, 0);
        }
    }

    /// The watch ended in order.
    pub fn ended(&mut self, now: Duration) {
        let State::Watching { since, heard, .. } = &self.state else {
            return;
        };
        let lasted = since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        if lasted >= SHORTEST_WATCH {
            (self.failures, self.silent) = (0, 0);
        } else if *heard {
            // It said something and stopped: at once again, but not in a tight loop.
            self.not_before = now + FIRST_WAIT;
        } else {
            self.failed(now, Failure::Other);
        }
    }

    /// The request failed, or the watch was cut or gave an error.
    pub fn failed(&mut self, now: Duration, failure: Failure) {
        self.total_failures += 1;
        if failure == Failure::Gone {
            return self.gone(now);
        }
        self.failures = self.failures.saturating_add(1);
        let mut wait = self.wait();
        match failure {
            Failure::Busy(Some(asked)) => wait = wait.max(asked.min(LONGEST_RETRY_AFTER)),
            // Nothing changes soon.
            Failure::Forbidden | Failure::Missing => wait = wait.max(LONGEST_WAIT / 2),
            _ => {}
        }
        self.not_before = now + wait;
        if matches!(self.state, State::Watching { .. }) && failure == Failure::Other {
            self.silent += 1;
            if self.silent >= FAILURES_TO_RELIST {
                self.relist(Some(PAGE_OBJECTS));
            }
        }
    }

    /// What the server has forgotten must be read anew, in its newest version: an older one would undo what we know.
    fn gone(&mut self, now: Duration) {
        let paging = matches!(&self.state, State::Listing(list) if list.token.is_some());
        let first = matches!(&self.state, State::Listing(list) if list.token.is_none());
        self.expired += u32::from(paging);
        if first || self.expired > 1 {
            self.failures = self.failures.saturating_add(1);
            self.not_before = now + self.wait();
        }
        self.relist((self.expired < 2).then_some(PAGE_OBJECTS));
    }

    fn relist(&mut self, limit: Option<u32>) {
        self.relists += 1;
        self.silent = 0;
        self.state = State::Listing(List {
            version: None,
            token: None,
            limit,
        });
    }

    /// Between half of the doubled wait and the whole.
    fn wait(&mut self) -> Duration {
        let doubled = FIRST_WAIT
            .saturating_mul(1 << self.failures.saturating_sub(1).min(16))
            .min(LONGEST_WAIT);
        let jitter = (self.draw() >> 40) as f64 / f64::from(1 << 24);
        doubled.mul_f64(0.5 + 0.5 * jitter)
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn listed() -> Watcher {
        let mut watcher = Watcher::new(7);
        assert_eq!(watcher.page("10", ""), Paged::Complete);
        watcher
    }

    fn version(watcher: &mut Watcher, now: Duration) -> String {
        match watcher.step(now) {
            Step::Watch(watch) => {
                assert!((WATCH_S..2 * WATCH_S).contains(&watch.timeout_s));
                watch.version
            }
            other => panic!("{other:?}"),
        }
    }

    fn wait(watcher: &mut Watcher, now: Duration) -> Duration {
        match watcher.step(now) {
            Step::Wait(wait) => wait,
            other => panic!("{other:?}"),
        }
    }

    fn list(watcher: &mut Watcher, now: Duration) -> List {
        match watcher.step(now) {
            Step::List(list) => list,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pages_then_a_watch_from_the_lists_version() {
        let mut watcher = Watcher::new(7);
        let first = list(&mut watcher, S);
        assert_eq!(
            (first.version.as_deref(), first.limit),
            (Some("0"), Some(500))
        );
        assert_eq!(watcher.page("10", "next"), Paged::More);
        let second = list(&mut watcher, S);
        assert_eq!(
            (second.version, second.token.as_deref()),
            (None, Some("next"))
        );
        assert_eq!(watcher.page("10", ""), Paged::Complete);
        assert_eq!(version(&mut watcher, S), "10");
    }

    #[test]
    fn a_watch_goes_on_from_the_last_event_or_bookmark() {
        let mut watcher = listed();
        watcher.watching(S);
        watcher.event("11");
        watcher.event("15");
        watcher.event("");
        watcher.ended(S * 300);
        assert_eq!(version(&mut watcher, S * 300), "15");
    }

    #[test]
    fn gone_lists_the_newest_at_once() {
        let mut watcher = listed();
        watcher.failed(S, Failure::Gone);
        assert_eq!(
            list(&mut watcher, S),
            List {
                limit: Some(500),
                ..List::default()
            }
        );
        assert_eq!(watcher.relists, 1);
    }

    #[test]
    fn a_token_that_expires_starts_again_and_then_without_pages() {
        let mut watcher = Watcher::new(7);
        watcher.page("10", "next");
        watcher.failed(S, Failure::Gone);
        assert_eq!(list(&mut watcher, S).limit, Some(500));
        watcher.page("11", "next");
        watcher.failed(S, Failure::Gone);
        let waited = wait(&mut watcher, S);
        assert_eq!(list(&mut watcher, S + waited), List::default());
    }

    #[test]
    fn a_server_that_always_says_gone_is_not_asked_without_end() {
        let (mut watcher, mut now) = (Watcher::new(7), S);
        for _ in 0..20 {
            watcher.failed(now, Failure::Gone);
            now += wait(&mut watcher, now);
        }
        assert!(now > LONGEST_WAIT * 5, "{now:?}");
    }

    #[test]
    fn waits_double_differ_and_end() {
        let waits = |seed| {
            let (mut watcher, mut now) = (Watcher::new(seed), S);
            let mut waits = Vec::new();
            for _ in 0..10 {
                watcher.failed(now, Failure::Other);
                let waited = wait(&mut watcher, now);
                waits.push(waited);
                now += waited;
            }
            waits
        };
        for (failures, wait) in waits(1).into_iter().enumerate() {
            let doubled = FIRST_WAIT.saturating_mul(1 << failures).min(LONGEST_WAIT);
            assert!(
                (doubled / 2..=doubled).contains(&wait),
                "{failures} {wait:?}"
            );
        }
        assert_ne!(waits(1), waits(2));
    }

    #[test]
    fn a_busy_server_is_left_alone_as_long_as_it_asks() {
        let mut watcher = Watcher::new(7);
        watcher.failed(S, Failure::Busy(Some(S * 30)));
        assert_eq!(wait(&mut watcher, S), S * 30);
        watcher.failed(S, Failure::Busy(Some(S * 100_000)));
        assert_eq!(wait(&mut watcher, S), LONGEST_RETRY_AFTER);
        watcher.failed(S, Failure::Busy(None));
        assert!(wait(&mut watcher, S) <= LONGEST_WAIT);
        watcher.failed(S, Failure::Forbidden);
        assert!(wait(&mut watcher, S) >= LONGEST_WAIT / 2);
    }

    #[test]
    fn watches_that_end_at_once_are_failures_and_in_the_end_a_relist() {
        let (mut watcher, mut now) = (listed(), S);
        for _ in 0..FAILURES_TO_RELIST {
            assert_eq!(version(&mut watcher, now), "10");
            watcher.watching(now);
            watcher.ended(now);
            now += wait(&mut watcher, now);
        }
        assert_eq!(list(&mut watcher, now).token, None);
        // What was said in between is a sign of life.
        let (mut watcher, mut now) = (listed(), S);
        for at in 0..10 {
            watcher.watching(now);
            watcher.event(&at.to_string());
            watcher.ended(now);
            now += wait(&mut watcher, now);
            assert_eq!(version(&mut watcher, now), at.to_string());
        }
    }
}
