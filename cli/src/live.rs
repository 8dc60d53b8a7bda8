//! The world as it is: QUIC, the clock, Ctrl-C.

use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::Runtime;
use tokio::time::Instant;
use weft_transport::{Dialler, Expect, Identity, Session, TransportError};
use weft_wire::Timestamp;
use weft_wire::federation::{FederationAnswer, FederationRequest};
use weft_wire::identity::{IdentityAnswer, IdentityRequest};
use weft_wire::query::{Request, Response};

use crate::failure::Failure;
use crate::world::{Pause, Progress, Received, Target, World};

/// Silence after which an answer is given up: the longest query that a federator runs, with room.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest that sending a request may take.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// After so long something is said on a terminal.
pub const PROGRESS_AFTER: Duration = Duration::from_millis(500);
/// When a stream ends too early, so long the reason for it is waited for.
pub const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);
/// Most pieces of an answer: at a piece of 8 MiB at most far above what [`crate::plan::MAX_ROWS`] rows take.
pub const MAX_PIECES: usize = 100_000;

/// The world as it is. Keeps its session between questions (`--watch`).
#[derive(Default)]
pub struct Live {
    connected: Option<Connected>,
    runtime: Option<Runtime>,
}

struct Connected {
    target: Target,
    dialler: Dialler,
    session: Session,
}

impl World for Live {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    }

    fn ask(
        &mut self,
        target: &Target,
        request: &Request,
        progress: Progress,
    ) -> Result<Received, Failure> {
        let runtime = self.runtime()?;
        let connected = self
            .connected
            .take()
            .filter(|c| c.target == *target && c.session.close_reason().is_none());
        let asked = runtime.block_on(interruptible(target, request, progress, connected));
        self.runtime = Some(runtime);
        let (received, connected) = asked?;
        self.connected = connected;
        Ok(received)
    }

    fn identify(
        &mut self,
        target: &Target,
        request: &IdentityRequest,
    ) -> Result<IdentityAnswer, Failure> {
        let runtime = self.runtime()?;
        let answered = runtime.block_on(identify(target, request));
        self.runtime = Some(runtime);
        let (answer, connected) = answered?;
        self.connected = Some(connected);
        Ok(answer)
    }

    fn federation(
        &mut self,
        target: &Target,
        request: &FederationRequest,
    ) -> Result<FederationAnswer, Failure> {
        let runtime = self.runtime()?;
        let answered = runtime.block_on(federation(target, request));
        self.runtime = Some(runtime);
        let (answer, connected) = answered?;
        self.connected = Some(connected);
        Ok(answer)
    }

    fn pause(&mut self, duration: Duration) -> Pause {
        let Ok(runtime) = self.runtime() else {
            return Pause::Interrupted;
        };
        let pause = runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(duration) => Pause::Elapsed,
                _ = tokio::signal::ctrl_c() => Pause::Interrupted,
            }
        });
        self.runtime = Some(runtime);
        pause
    }
}

impl Live {
    fn runtime(&mut self) -> Result<Runtime, Failure> {
        if let Some(runtime) = self.runtime.take() {
            return Ok(runtime);
        }
        let built = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        built.map_err(|e| {
            Failure::new(
                "E-INTERNAL",
                "weft cannot start",
                e.to_string(),
                "check ulimit -u and ulimit -n",
            )
        })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // The federator should hear that we are gone, not time out.
        if let (Some(connected), Some(runtime)) = (self.connected.take(), &self.runtime) {
            drop(connected.session);
            runtime.block_on(connected.dialler.wait_idle());
        }
    }
}

async fn interruptible(
    target: &Target,
    request: &Request,
    progress: Progress,
    connected: Option<Connected>,
) -> Result<(Received, Option<Connected>), Failure> {
    let mut responses = Vec::new();
    let mut bar = Bar::new(progress, target);
    let asking = ask(target, request, connected, &mut responses, &mut bar);
    let connected = tokio::select! {
        asked = asking => Some(asked?),
        _ = tokio::signal::ctrl_c() => None,
    };
    bar.clear();
    let interrupted = connected.is_none();
    Ok((
        Received {
            responses,
            interrupted,
        },
        connected,
    ))
}

async fn ask(
    target: &Target,
    request: &Request,
    connected: Option<Connected>,
    responses: &mut Vec<Response>,
    bar: &mut Bar,
) -> Result<Connected, Failure> {
    let connected = match connected {
        Some(connected) => connected,
        None => bar.during(connect(target)).await?,
    };
    let exchange = exchange(&connected.session, request, responses, bar).await;
    match exchange {
        Ok(()) => Ok(connected),
        Err(error) => Err(Failure::transport(
            &told_by_peer(error, &connected.session).await,
            target,
        )),
    }
}

async fn connect(target: &Target) -> Result<Connected, Failure> {
    let identity = Identity::load(&target.identity)
        .map_err(|error| Failure::identity(&error, &target.identity))?;
    let dialler = Dialler::new(&identity).map_err(|error| Failure::transport(&error, target))?;
    let dialled = dialler
        .dial(&target.federator, &Expect::any_federator())
        .await;
    let session = dialled.map_err(|error| Failure::transport(&error, target))?;
    Ok(Connected {
        target: target.clone(),
        dialler,
        session,
    })
}

async fn identify(
    target: &Target,
    request: &IdentityRequest,
) -> Result<(IdentityAnswer, Connected), Failure> {
    let connected = connect(target).await?;
    let exchange = async {
        let (mut sender, mut receiver) = connected.session.open_bi().await?;
        sender.send(request, SEND_TIMEOUT).await?;
        sender.finish();
        receiver.expect::<IdentityAnswer>(ANSWER_TIMEOUT).await
    };
    match exchange.await {
        Ok(answer) => Ok((answer, connected)),
        Err(error) => Err(Failure::transport(
            &told_by_peer(error, &connected.session).await,
            target,
        )),
    }
}

async fn federation(
    target: &Target,
    request: &FederationRequest,
) -> Result<(FederationAnswer, Connected), Failure> {
    let connected = connect(target).await?;
    let exchange = async {
        let (mut sender, mut receiver) = connected.session.open_bi().await?;
        sender.send(request, SEND_TIMEOUT).await?;
        sender.finish();
        receiver.expect::<FederationAnswer>(ANSWER_TIMEOUT).await
    };
    match exchange.await {
        Ok(answer) => Ok((answer, connected)),
        Err(error) => Err(Failure::transport(
            &told_by_peer(error, &connected.session).await,
            target,
        )),
    }
}

async fn exchange(
    session: &Session,
    request: &Request,
    responses: &mut Vec<Response>,
    bar: &mut Bar,
) -> Result<(), TransportError> {
    let (mut sender, mut receiver) = session.open_bi().await?;
    sender.send(request, SEND_TIMEOUT).await?;
    sender.finish();
    loop {
        let response = bar
            .during(receiver.expect::<Response>(ANSWER_TIMEOUT))
            .await?;
        let last = matches!(response, Response::End { .. } | Response::Error(_));
        bar.count(&response);
        responses.push(response);
        if last {
            return Ok(());
        }
        if responses.len() > MAX_PIECES {
            return Err(session.misbehaved(
                weft_wire::control::CloseCode::Limit,
                "an answer without an end",
            ));
        }
    }
}

/// A stream that ends may do so because the whole session was closed with a reason: that is the one to tell.
async fn told_by_peer(error: TransportError, session: &Session) -> TransportError {
    if error != TransportError::StreamEnded {
        return error;
    }
    tokio::time::timeout(CLOSE_TIMEOUT, session.closed())
        .await
        .map_or(error, TransportError::Closed)
}

/// A line on stderr that says that something is happening, once it takes long.
struct Bar {
    shown: Option<ProgressBar>,
    allowed: bool,
    begun: Instant,
    federator: String,
    rows: usize,
}

impl Bar {
    fn new(progress: Progress, target: &Target) -> Self {
        let allowed = progress == Progress::Shown && std::io::stderr().is_terminal();
        Self {
            shown: None,
            allowed,
            begun: Instant::now(),
            federator: target.federator.clone(),
            rows: 0,
        }
    }

    /// Waits for something, and says so when it takes long.
    async fn during<T>(&mut self, future: impl Future<Output = T>) -> T {
        if !self.allowed || self.shown.is_some() {
            return future.await;
        }
        let mut future = std::pin::pin!(future);
        tokio::select! {
            done = &mut future => return done,
            () = tokio::time::sleep_until(self.begun + PROGRESS_AFTER) => {}
        }
        self.show();
        future.await
    }

    fn show(&mut self) {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} asking {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.set_message(self.federator.clone());
        bar.enable_steady_tick(Duration::from_millis(120));
        self.shown = Some(bar);
    }

    fn count(&mut self, response: &Response) {
        self.rows += match response {
            Response::Connections(rows) => rows.len(),
            Response::Report(rows) => rows.len(),
            Response::SqlRows(rows) => rows.len(),
            Response::Health(rows) => rows.len(),
            Response::Dns(rows) => rows.len(),
            Response::Lookups(rows) => rows.len(),
            Response::Chains(rows) => rows.len(),
            Response::SqlColumns(_) | Response::End { .. } | Response::Error(_) => 0,
        };
        if let Some(bar) = &self.shown {
            bar.set_message(format!("{}, {} rows", self.federator, self.rows));
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.shown.take() {
            bar.finish_and_clear();
        }
    }
}
