//! Questions and answers.
//!
//! [`filter`] says which connections, [`rows`] reads them, and here the answers go out. Whatever was acknowledged before the
//! question came is in the answer: the store is brought up to date first.

pub mod filter;
pub mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use weft_transport::{FrameSender, TransportError};
use weft_wire::query::{
    Completeness, Connection, Filter, HalfCounts, QueryError, Question, Reach, Request, Response,
};

use crate::pipeline::Submission;
use crate::server::SEND_TIMEOUT;
use crate::store::{Readers, StoreError};

/// Most connections of one answer.
pub const MAX_CONNECTIONS: u32 = 1_000_000;
/// Rows in one piece of an answer: far below a frame's limit, as a connection is at most a few KiB.
const PIECE_ROWS: usize = 256;
/// Longest wait until what was acknowledged is in the store.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(30);

/// What answers need.
pub struct Queries {
    /// This federator's name.
    pub name: String,
    /// The store.
    pub readers: Readers,
    /// Brings the store up to date.
    pub submissions: mpsc::Sender<Submission>,
    /// Questions answered at a time.
    pub room: Semaphore,
}

/// An answer, whole.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// Connections.
    pub connections: Vec<Connection>,
    /// Halves by what became of them.
    pub halves: HalfCounts,
    /// The limit cut rows off.
    pub truncated: bool,
}

impl Queries {
    /// Answers one request.
    pub async fn answer(&self, mut sender: FrameSender, request: Request) -> Result<(), TransportError> {
        let Ok(_permit) = self.room.acquire().await else { return Ok(()) };
        let answer = self.find(request).await;
        match answer {
            Ok(answer) => self.send(&mut sender, answer).await?,
            Err(error) => sender.send(&Response::Error(error), SEND_TIMEOUT).await?,
        }
        sender.finish();
        Ok(())
    }

    async fn find(&self, request: Request) -> Result<Answer, QueryError> {
        self.bring_up_to_date().await?;
        match request.what {
            Question::Connections { filter, limit } => self.connections(filter, limit).await,
            Question::Explain { id_prefix } => self.explain(id_prefix).await,
            _ => Err(failure("E-UNSUPPORTED", "this question", "is not answered yet", "")),
        }
    }

    /// Waits until everything acknowledged so far is in the store.
    pub async fn bring_up_to_date(&self) -> Result<(), QueryError> {
        let (done, waiting) = oneshot::channel();
        let failed = |cause: &str| failure("E-STORE", "the store cannot be brought up to date", cause, "weft health");
        self.submissions.send(Submission::Barrier(done)).await.map_err(|_| failed("shutting down"))?;
        match tokio::time::timeout(BARRIER_TIMEOUT, waiting).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(failed("the store failed")),
            Err(_) => Err(failed("it is far behind")),
        }
    }

    async fn connections(&self, filter: Filter, limit: u32) -> Result<Answer, QueryError> {
        let limit = limit.clamp(1, MAX_CONNECTIONS);
        let name = self.name.clone();
        self.read(move |connection| rows::connections(connection, &name, &filter, limit)).await
    }

    async fn explain(&self, prefix: String) -> Result<Answer, QueryError> {
        let name = self.name.clone();
        self.read(move |connection| rows::explain(connection, &name, &prefix)).await
    }

    /// Runs a reader on a thread that may wait.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&duckdb::Connection) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, QueryError> {
        let readers = self.readers.clone();
        let task = tokio::task::spawn_blocking(move || {
            let connection = readers.connection().map_err(store_failure)?;
            work(&connection)
        });
        task.await.map_err(|error| failure("E-INTERNAL", "the question failed", &error.to_string(), "weft health"))?
    }

    async fn send(&self, sender: &mut FrameSender, answer: Answer) -> Result<(), TransportError> {
        let mut rows = answer.connections.into_iter();
        loop {
            let piece: Vec<Connection> = rows.by_ref().take(PIECE_ROWS).collect();
            if piece.is_empty() {
                break;
            }
            sender.send(&Response::Connections(piece), SEND_TIMEOUT).await?;
        }
        let me = Reach { federator: self.name.clone(), reached: true, error: None };
        let completeness = Completeness { federators: vec![me], halves: answer.halves };
        sender.send(&Response::End { completeness, truncated: answer.truncated }, SEND_TIMEOUT).await
    }
}

/// Puts an error together.
pub fn failure(code: &str, what: &str, cause: &str, hint: &str) -> QueryError {
    QueryError { code: code.into(), what: what.into(), cause: cause.into(), hint: hint.into() }
}

/// An error of the store, for the one who asked.
pub fn store_failure(error: impl Into<StoreError>) -> QueryError {
    failure("E-STORE", "the store cannot be read", &error.into().to_string(), "weft health")
}

/// Adds counts of another federator.
pub fn add_counts(to: &mut HalfCounts, more: &HalfCounts) {
    to.matched += more.matched;
    to.dropped += more.dropped;
    for (reason, count) in &more.unmatched {
        *to.unmatched.entry(*reason).or_default() += count;
    }
}

/// An empty set of counts.
pub fn no_counts() -> HalfCounts {
    HalfCounts { matched: 0, unmatched: BTreeMap::new(), dropped: 0 }
}

/// Shared by all sessions.
pub type SharedQueries = Arc<Queries>;
