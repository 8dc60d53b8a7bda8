//! Questions and answers.
//!
//! [`filter`] says which connections, [`rows`] reads them, [`report`] sums them up, [`sql`] fences the user's statements in;
//! [`merge`] makes one answer of several federators'; [`dns`] is about lookups, [`chains`] about proxies. Whatever was
//! acknowledged before the question came is in the answer: the store is brought up to date first.

pub mod filter;
pub mod rows;
pub mod report;
pub mod sql;
pub mod merge;
pub mod apart;
pub mod dns;
pub mod chains;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use weft_transport::{FrameSender, TransportError};
use weft_wire::control::PROTOCOL_VERSION;
use weft_wire::query::{
    ChainLink, Completeness, Connection, DnsRow, FederatorHealth, Filter, HalfCounts, LookupRecord,
    MAX_CHAIN_HALVES, QueryError, Question, Reach, ReportRow, Request, Response, Scope, SqlValue,
};

use self::report::Asked;
use self::sql::SqlLimits;
use crate::clusters::Clusters;
use crate::config;
use crate::health::Vitals;
use crate::peers::{PeerLink, Peers};
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
    /// Questions that read at a time.
    pub room: Semaphore,
    /// Answers of this federator alone that are being made or sent: they are in memory until the asker has them.
    pub local_answers: Semaphore,
    /// The same of the whole mesh; apart, so that two federators that ask each other do not wait for each other.
    pub mesh_answers: Semaphore,
    /// The other federators.
    pub peers: Arc<Peers>,
    /// How this federator is.
    pub vitals: Arc<Vitals>,
    /// What agents told of their clusters.
    pub clusters: Arc<Clusters>,
    /// Limits.
    pub limits: config::Query,
    /// What the configuration says of names.
    pub lists: Arc<dns::Lists>,
}

/// An answer, whole.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    /// Connections.
    pub connections: Vec<Connection>,
    /// Rows of a report.
    pub report: Vec<ReportRow>,
    /// Columns of an SQL answer.
    pub columns: Option<Vec<String>>,
    /// Its rows.
    pub rows: Vec<Vec<SqlValue>>,
    /// Health.
    pub health: Vec<FederatorHealth>,
    /// Rows of a report on lookups.
    pub dns: Vec<DnsRow>,
    /// Lookups.
    pub lookups: Vec<LookupRecord>,
    /// What goes on through a proxy.
    pub chains: Vec<ChainLink>,
    /// Who was asked, and answered or not.
    pub federators: Vec<Reach>,
    /// Halves by what became of them.
    pub halves: HalfCounts,
    /// The limit cut rows off.
    pub truncated: bool,
}

/// What a peer answered, or why it did not.
type FromPeer = (Arc<PeerLink>, Result<Answer, String>);

impl Queries {
    /// Answers one request.
    pub async fn answer(
        &self,
        mut sender: FrameSender,
        request: Request,
    ) -> Result<(), TransportError> {
        let places = match request.scope {
            Scope::Local { .. } => &self.local_answers,
            Scope::Mesh => &self.mesh_answers,
        };
        // Closed never; health is short, and wanted most when there is no place.
        let _place = match request.what {
            Question::Health | Question::HealthSince { .. } => None,
            _ => places.acquire().await.ok(),
        };
        let answer = match request.scope {
            Scope::Local { absent } => self.local(request.what, &absent).await,
            Scope::Mesh => self.mesh(request.what).await,
        };
        match answer {
            Ok(answer) => send(&mut sender, answer).await?,
            Err(error) => sender.send(&Response::Error(error), SEND_TIMEOUT).await?,
        }
        sender.finish();
        Ok(())
    }

    /// This federator's own answer.
    async fn local(&self, what: Question, absent: &[String]) -> Result<Answer, QueryError> {
        if let Question::Health | Question::HealthSince { .. } = what {
            let window_s = match what {
                Question::HealthSince { window_s } => Some(window_s),
                _ => None,
            };
            let health = vec![self.vitals.health(window_s)];
            return Ok(Answer {
                health,
                federators: vec![self.me()],
                ..Answer::default()
            });
        }
        self.bring_up_to_date().await?;
        let name = self.name.clone();
        // Which halves were lost is not known: those told of since the window's beginning may be of it.
        let counted_since = match &what {
            Question::Dns { .. }
            | Question::Lookups { .. }
            | Question::Health
            | Question::HealthSince { .. }
            | Question::Chains { .. } => None,
            Question::Connections { filter, .. }
            | Question::Report { filter, .. }
            | Question::Sql { filter, .. } => Some(filter.since),
            Question::Explain { .. } => Some(None),
        };
        let mut answer = match what {
            Question::Connections { filter, limit } => {
                let limit = limit.clamp(1, MAX_CONNECTIONS);
                self.read(move |db| rows::connections(db, &name, &filter, limit))
                    .await?
            }
            Question::Explain { id_prefix } => {
                self.read(move |db| rows::explain(db, &name, &id_prefix))
                    .await?
            }
            Question::Report {
                report,
                filter,
                by,
                top,
            } => {
                let asked = Asked {
                    report,
                    filter,
                    by,
                    top,
                    absent: absent.to_vec(),
                };
                self.read(move |db| report::report(db, &name, &asked))
                    .await?
            }
            Question::Sql {
                text,
                filter,
                limit,
            } => {
                let most = self.limits.sql_max_connections;
                let lookups = sql::names_lookups(&text).then(|| of_askers(&filter));
                let mut seen = self
                    .read(move |db| rows::connections(db, &name, &filter, most))
                    .await?;
                if let Some(filter) = lookups {
                    let more = self.read(move |db| dns::lookups(db, &filter, most)).await?;
                    seen.lookups = more.lookups;
                    seen.truncated |= more.truncated;
                }
                self.sql(seen, text, limit).await?
            }
            Question::Dns {
                report,
                filter,
                top,
            } => {
                let lists = self.lists.clone();
                self.read(move |db| dns::report(db, &lists, &report, &filter, top))
                    .await?
            }
            Question::Lookups { filter, limit } => {
                self.read(move |db| dns::lookups(db, &filter, limit))
                    .await?
            }
            Question::Chains { halves } => self.read(move |db| chains::chains(db, &halves)).await?,
            Question::Health | Question::HealthSince { .. } => Answer::default(),
        };
        if let Some(since) = counted_since {
            answer.halves.dropped = self.vitals.dropped(since);
        }
        answer.federators = vec![self.me()];
        Ok(answer)
    }

    /// The answer of the whole mesh, as far as it can be reached.
    async fn mesh(&self, what: Question) -> Result<Answer, QueryError> {
        match what {
            Question::Connections { filter, limit } => {
                let limit = limit.clamp(1, MAX_CONNECTIONS);
                self.everyones(Question::Connections { filter, limit }, limit as usize)
                    .await
            }
            Question::Explain { .. } => self.everyones(what, usize::MAX).await,
            Question::Sql {
                text,
                filter,
                limit,
            } => {
                let most = self.limits.sql_max_connections;
                let lookups = sql::names_lookups(&text).then(|| Question::Lookups {
                    filter: of_askers(&filter),
                    limit: most,
                });
                let question = Question::Connections {
                    filter,
                    limit: most,
                };
                let mut seen = self.everyones(question, most as usize).await?;
                if let Some(question) = lookups {
                    let (more, cut) = self.ask_all(&question, &[]).await?.join();
                    seen.truncated |= cut || more.lookups.len() > most as usize;
                    seen.lookups = more.lookups;
                    merge::reached_twice(&mut seen.federators, more.federators);
                }
                self.sql(seen, text, limit).await
            }
            Question::Report {
                report,
                filter,
                by,
                top,
            } => {
                let question = Question::Report {
                    report,
                    filter,
                    by,
                    top: report::MAX_ROWS,
                };
                let mut parts = self.ask_all(&question, &[]).await?;
                let absent: Vec<String> = parts.failed().map(|link| link.name.clone()).collect();
                if !absent.is_empty() {
                    // Their connections are counted by the copies of those that can be asked.
                    parts = self.ask_all(&question, &absent).await?;
                    // One that is back by now is counted already.
                    for (link, answer) in &mut parts.others {
                        if absent.contains(&link.name) && answer.is_ok() {
                            *answer = Err("it did not answer at first".into());
                        }
                    }
                }
                let (mut answer, cut) = parts.join();
                let (rows, truncated) =
                    report::merge(std::mem::take(&mut answer.report), by, top.max(1));
                Ok(Answer {
                    report: rows,
                    truncated: truncated || cut,
                    ..answer
                })
            }
            Question::Dns {
                report,
                filter,
                top,
            } => {
                let question = Question::Dns {
                    report: report.clone(),
                    filter,
                    top: dns::MAX_ROWS,
                };
                let (mut answer, cut) = self.ask_all(&question, &[]).await?.join();
                let (dns, truncated) =
                    dns::merge(&report, std::mem::take(&mut answer.dns), top.max(1));
                Ok(Answer {
                    dns,
                    truncated: truncated || cut,
                    ..answer
                })
            }
            Question::Lookups { limit, .. } => {
                let (mut answer, cut) = self.ask_all(&what, &[]).await?.join();
                answer
                    .lookups
                    .sort_by_key(|lookup| std::cmp::Reverse(lookup.asked_at));
                let truncated = cut || answer.lookups.len() > limit as usize;
                answer.lookups.truncate(limit as usize);
                Ok(Answer {
                    truncated,
                    ..answer
                })
            }
            Question::Chains { .. } => {
                let (mut answer, cut) = self.ask_all(&what, &[]).await?.join();
                answer.chains = chains::merge(std::mem::take(&mut answer.chains));
                answer.truncated |= cut;
                Ok(answer)
            }
            Question::Health | Question::HealthSince { .. } => {
                let parts = self.ask_all(&what, &[]).await?;
                let unreached: Vec<_> = parts.failed().map(|link| not_reached(link)).collect();
                let (mut answer, _) = parts.join();
                answer.health.extend(unreached);
                answer.health.sort_by(|a, b| a.name.cmp(&b.name));
                Ok(answer)
            }
        }
    }

    /// Connections of all, merged.
    async fn everyones(&self, question: Question, limit: usize) -> Result<Answer, QueryError> {
        let (mut answer, cut) = self.ask_all(&question, &[]).await?.join();
        let (connections, truncated) =
            merge::connections(std::mem::take(&mut answer.connections), limit);
        Ok(Answer {
            connections,
            truncated: truncated || cut,
            ..answer
        })
    }

    /// Asks everyone at once; this federator too.
    async fn ask_all(&self, question: &Question, absent: &[String]) -> Result<Parts, QueryError> {
        let mut tasks = JoinSet::new();
        let within = Duration::from_secs(self.limits.peer_timeout_s);
        for link in self.peers.all() {
            let request = Request {
                version: PROTOCOL_VERSION,
                scope: Scope::Local {
                    absent: absent.to_vec(),
                },
                what: question.clone(),
            };
            tasks.spawn(async move {
                let answer = match timeout(within, ask(&link, &request)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(format!("no answer within {} s", within.as_secs())),
                };
                (link, answer)
            });
        }
        let own = self.local(question.clone(), absent).await?;
        let mut others = Vec::new();
        while let Some(answered) = tasks.join_next().await {
            others.extend(answered.ok());
        }
        others.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        Ok(Parts { own, others })
    }

    /// Runs the user's statement over what was seen.
    async fn sql(&self, seen: Answer, text: String, limit: u32) -> Result<Answer, QueryError> {
        if seen.truncated {
            let cause = format!(
                "it sees at most {} connections, and as many lookups; the window has more",
                self.limits.sql_max_connections
            );
            return Err(failure(
                "E-SQL-SIZE",
                "the statement was not run",
                &cause,
                "a shorter --since, or a --where that keeps fewer",
            ));
        }
        let limits = SqlLimits {
            timeout: Duration::from_secs(self.limits.sql_timeout_s),
            memory: self.limits.sql_memory_limit.clone(),
            rows: limit,
        };
        let (connections, lookups) = (seen.connections, seen.lookups);
        let objects = match sql::needs_objects(&text) {
            true => self.clusters.all(),
            false => Vec::new(),
        };
        let answered = self
            .blocking(move || apart::run(connections, lookups, objects, text, limits))
            .await?;
        let sql::SqlAnswer {
            columns,
            rows,
            truncated,
        } = answered;
        Ok(Answer {
            connections: Vec::new(),
            lookups: Vec::new(),
            columns: Some(columns),
            rows,
            truncated,
            ..seen
        })
    }

    /// Waits until everything acknowledged so far is in the store.
    pub async fn bring_up_to_date(&self) -> Result<(), QueryError> {
        let (done, waiting) = oneshot::channel();
        let failed = |cause: &str| {
            failure(
                "E-STORE",
                "the store cannot be brought up to date",
                cause,
                "weft health",
            )
        };
        self.submissions
            .send(Submission::Barrier(done))
            .await
            .map_err(|_| failed("shutting down"))?;
        match timeout(BARRIER_TIMEOUT, waiting).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(failed("the store failed")),
            Err(_) => Err(failed("it is far behind")),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&duckdb::Connection) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, QueryError> {
        let readers = self.readers.clone();
        self.blocking(move || work(&readers.connection().map_err(store_failure)?))
            .await
    }

    /// Runs what may take long on a thread that may wait; only so many at a time.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, QueryError> {
        let internal =
            |cause: &str| failure("E-INTERNAL", "the question failed", cause, "weft health");
        let _permit = self
            .room
            .acquire()
            .await
            .map_err(|_| internal("shutting down"))?;
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| internal(&error.to_string()))?
    }

    fn me(&self) -> Reach {
        Reach {
            federator: self.name.clone(),
            reached: true,
            error: None,
        }
    }
}

/// The answers of all.
struct Parts {
    own: Answer,
    others: Vec<FromPeer>,
}

impl Parts {
    /// Those that did not answer.
    fn failed(&self) -> impl Iterator<Item = &Arc<PeerLink>> {
        self.others
            .iter()
            .filter(|(_, answer)| answer.is_err())
            .map(|(link, _)| link)
    }

    /// One answer, its rows one after the other, and whether one was cut off.
    fn join(self) -> (Answer, bool) {
        let mut all = self.own;
        let mut cut = all.truncated;
        for (link, answer) in self.others {
            let (answer, error) = match answer {
                Ok(answer) => (answer, None),
                Err(error) => (Answer::default(), Some(error)),
            };
            all.federators.push(Reach {
                federator: link.name.clone(),
                reached: error.is_none(),
                error,
            });
            all.connections.extend(answer.connections);
            all.report.extend(answer.report);
            all.health.extend(answer.health);
            all.dns.extend(answer.dns);
            all.lookups.extend(answer.lookups);
            all.chains.extend(answer.chains);
            merge::add_counts(&mut all.halves, &answer.halves);
            cut |= answer.truncated;
        }
        (all, cut)
    }
}

/// What of a filter on connections is about who asks: a lookup has no server's end.
fn of_askers(filter: &Filter) -> Filter {
    Filter {
        to: None,
        expression: None,
        ..filter.clone()
    }
}

fn not_reached(link: &PeerLink) -> FederatorHealth {
    FederatorHealth {
        name: link.name.clone(),
        region: link.region(),
        error: Some(link.error()),
        ..FederatorHealth::default()
    }
}

/// Asks one peer over our session to it.
async fn ask(link: &PeerLink, request: &Request) -> Result<Answer, String> {
    let session = link.session().ok_or_else(|| link.error())?;
    let (mut sender, mut receiver) = session.open_bi().await.map_err(|error| error.to_string())?;
    sender
        .send(request, SEND_TIMEOUT)
        .await
        .map_err(|error| error.to_string())?;
    sender.finish();
    let mut answer = Answer::default();
    loop {
        let piece = receiver
            .expect(SEND_TIMEOUT)
            .await
            .map_err(|error| error.to_string())?;
        match piece {
            Response::Connections(mut rows) => answer.connections.append(&mut rows),
            Response::Report(mut rows) => answer.report.append(&mut rows),
            Response::Health(mut federators) => answer.health.append(&mut federators),
            Response::Dns(mut rows) => answer.dns.append(&mut rows),
            Response::Lookups(mut rows) => answer.lookups.append(&mut rows),
            Response::Chains(mut rows) => answer.chains.append(&mut rows),
            Response::End {
                completeness,
                truncated,
            } => {
                return Ok(Answer {
                    halves: completeness.halves,
                    truncated,
                    ..answer
                });
            }
            Response::Error(error) => return Err(error.to_string()),
            Response::SqlColumns(_) | Response::SqlRows(_) => {
                return Err("an answer to another question".into());
            }
        }
        if answer.connections.len() > MAX_CONNECTIONS as usize
            || answer.report.len() > 2 * report::MAX_ROWS as usize
            || answer.dns.len() > 2 * dns::MAX_ROWS as usize
            || answer.lookups.len() > dns::MAX_LOOKUPS as usize
            || answer.chains.len() > MAX_CHAIN_HALVES
        {
            return Err("an answer longer than was asked for".into());
        }
    }
}

async fn send(sender: &mut FrameSender, answer: Answer) -> Result<(), TransportError> {
    send_pieces(sender, answer.connections, Response::Connections).await?;
    send_pieces(sender, answer.report, Response::Report).await?;
    send_pieces(sender, answer.dns, Response::Dns).await?;
    send_pieces(sender, answer.lookups, Response::Lookups).await?;
    send_pieces(sender, answer.chains, Response::Chains).await?;
    if let Some(columns) = answer.columns {
        sender
            .send(&Response::SqlColumns(columns), SEND_TIMEOUT)
            .await?;
        send_pieces(sender, answer.rows, Response::SqlRows).await?;
    }
    if !answer.health.is_empty() {
        sender
            .send(&Response::Health(answer.health), SEND_TIMEOUT)
            .await?;
    }
    let completeness = Completeness {
        federators: answer.federators,
        halves: answer.halves,
    };
    sender
        .send(
            &Response::End {
                completeness,
                truncated: answer.truncated,
            },
            SEND_TIMEOUT,
        )
        .await
}

async fn send_pieces<T>(
    sender: &mut FrameSender,
    rows: Vec<T>,
    response: impl Fn(Vec<T>) -> Response,
) -> Result<(), TransportError> {
    let mut rows = rows.into_iter();
    loop {
        let piece: Vec<T> = rows.by_ref().take(PIECE_ROWS).collect();
        if piece.is_empty() {
            return Ok(());
        }
        sender.send(&response(piece), SEND_TIMEOUT).await?;
    }
}

/// Puts an error together.
pub fn failure(code: &str, what: &str, cause: &str, hint: &str) -> QueryError {
    QueryError {
        code: code.into(),
        what: what.into(),
        cause: cause.into(),
        hint: hint.into(),
    }
}

/// An error of the store, for the one who asked.
pub fn store_failure(error: impl Into<StoreError>) -> QueryError {
    failure(
        "E-STORE",
        "the store cannot be read",
        &error.into().to_string(),
        "weft health",
    )
}
