//! Drives a [`Watcher`] with real requests. No decision is made here.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::api::{Api, Change, Failed, Heard, Resource};
use crate::watch::{Failure, Paged, Step, Watcher};

/// Takes what is listed and watched.
pub trait Sink<T> {
    /// A list begins, or begins again.
    fn begin(&mut self);
    /// An object of the list, or one that is new or changed.
    fn apply(&mut self, object: T);
    /// An object that is gone, in its last state.
    fn remove(&mut self, object: T);
    /// The list is complete.
    fn end(&mut self);
    /// How it goes.
    fn health(&mut self, health: Health<'_>);
    /// Objects that were too large or could not be read.
    fn skipped(&mut self, objects: u64);
    /// Whether it took everything since the last [`Sink::begin`]. If not, everything is listed again.
    fn is_whole(&self) -> bool {
        true
    }
    /// Waits until it has room for a page.
    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// How following goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health<'a> {
    /// What is known is what the server knows.
    Live,
    /// It is not, for now.
    Failing(&'a Failed),
}

#[derive(Deserialize)]
struct Of<T> {
    object: T,
}

/// Follows a resource until the task is dropped.
pub async fn follow<T: DeserializeOwned>(
    api: &Api,
    resource: &Resource,
    watcher: &mut Watcher,
    sink: &mut impl Sink<T>,
) {
    let start = Instant::now();
    loop {
        turn(api, resource, watcher, sink, start).await;
    }
}

/// Does what the watcher asks for, once.
async fn turn<T: DeserializeOwned>(
    api: &Api,
    resource: &Resource,
    watcher: &mut Watcher,
    sink: &mut impl Sink<T>,
    start: Instant,
) {
    let done = match watcher.step(start.elapsed()) {
        Step::Wait(wait) => {
            tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
            return;
        }
        Step::List(list) => {
            sink.ready().await;
            if list.token.is_none() {
                sink.begin();
            }
            let mut unread = 0;
            let listed = api
                .list(resource, &list, |bytes| {
                    match serde_json::from_slice(bytes) {
                        Ok(object) => sink.apply(object),
                        Err(_) => unread += 1,
                    }
                })
                .await;
            listed.map(|head| {
                sink.skipped(unread + head.skipped);
                if watcher.page(&head.version, &head.token) == Paged::Complete {
                    sink.end();
                    sink.health(Health::Live);
                }
            })
        }
        Step::Watch(watch) => {
            let mut unread = 0;
            let watched = api
                .watch(resource, &watch, |heard| {
                    match heard {
                        Heard::Stands => watcher.watching(start.elapsed()),
                        Heard::Event {
                            change,
                            version,
                            line,
                        } => {
                            watcher.event(version);
                            unread += u64::from(!event(change, line, sink));
                        }
                    }
                    sink.is_whole()
                })
                .await;
            sink.skipped(unread);
            watched.map(|skipped| {
                sink.skipped(skipped);
                watcher.ended(start.elapsed());
            })
        }
    };
    if !sink.is_whole() {
        watcher.failed(start.elapsed(), Failure::Gone);
    } else if let Err(failed) = done {
        watcher.failed(start.elapsed(), failed.failure);
        sink.health(Health::Failing(&failed));
    }
}

/// Hands an event's object on; says whether it could be read.
fn event<T: DeserializeOwned>(change: Change, line: &[u8], sink: &mut impl Sink<T>) -> bool {
    if change == Change::Bookmark {
        return true;
    }
    match (change, serde_json::from_slice(line)) {
        (Change::Deleted, Ok(Of { object })) => sink.remove(object),
        (_, Ok(Of { object })) => sink.apply(object),
        (_, Err(_)) => return false,
    }
    true
}
