//! The next certificate, over the session that stands: nothing is dialled anew, and the session lives on.

use std::convert::Infallible;
use std::time::Duration;

use weft_transport::pki::Request;
use weft_transport::{Identity, IdentityError, Session, TransportError};
use weft_wire::Timestamp;
use weft_wire::identity::{IdentityAnswer, IdentityRequest};
use weft_wire::query::QueryError;

use super::JOINED_FILE;

/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest sleep at a stretch: clocks are set, and machines suspended.
const CLOCK_LOOK: Duration = Duration::from_secs(60);
/// Shortest pause after a failure; the federator refuses more often than every ten seconds.
const RETRY_MIN: Duration = Duration::from_secs(15);
/// Longest pause after a failure.
const RETRY_MAX: Duration = Duration::from_secs(600);

/// Why there is no new certificate yet.
#[derive(Debug, thiserror::Error)]
pub enum NotRenewed {
    /// The session.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Our files, or what was signed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The federator said no.
    #[error("{0}")]
    Refused(QueryError),
    /// It said something else.
    #[error("the answer makes no sense")]
    Nonsense,
}

/// When to ask for the next one: after two thirds of the life, and up to a twentieth of it sooner, so that nodes which joined
/// together do not ask together.
pub fn due((from, until): (Timestamp, Timestamp), seed: u64) -> Timestamp {
    let life = until.0.saturating_sub(from.0).max(0);
    let sooner = (life / 20).max(1).unsigned_abs();
    let mixed = blake3::hash(&[seed.to_le_bytes(), until.0.to_le_bytes()].concat());
    let mut first = [0; 8];
    first.copy_from_slice(&mixed.as_bytes()[..8]);
    let jitter = (u64::from_le_bytes(first) % sooner) as i64;
    Timestamp(from.0.saturating_add(life / 3 * 2).saturating_sub(jitter))
}

/// Gets the next certificate whenever it is time, as long as the session stands. Only for one that came from a federator:
/// others are exchanged by whoever made them.
pub async fn keep_renewed(
    identity: &Identity,
    session: &Session,
    clock: fn() -> Timestamp,
    seed: u64,
) -> Infallible {
    if !identity.directory().join(JOINED_FILE).exists() {
        return std::future::pending().await;
    }
    loop {
        wait_until(due(identity.validity(), seed), clock).await;
        match renew(identity, session).await {
            Ok(()) => tracing::info!(not_after = %identity.not_after(), "certificate renewed"),
            Err(error) => {
                let left = identity.not_after().0.saturating_sub(clock().0).max(0);
                let pause = Duration::from_micros(left.unsigned_abs() / 10);
                let pause = pause.clamp(RETRY_MIN, RETRY_MAX);
                tracing::warn!(%error, until = %identity.not_after(), again_in = ?pause, "the certificate was not renewed");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn wait_until(end: Timestamp, clock: fn() -> Timestamp) {
    loop {
        let left = end.0.saturating_sub(clock().0);
        if left <= 0 {
            return;
        }
        let left = Duration::from_micros(left.unsigned_abs());
        tokio::time::sleep(left.min(CLOCK_LOOK)).await;
    }
}

/// One certificate, with a new key.
pub async fn renew(identity: &Identity, session: &Session) -> Result<(), NotRenewed> {
    let request = Request::new()?;
    let (mut sender, mut receiver) = session.open_bi().await?;
    let question = IdentityRequest::Renew {
        request: request.der().to_vec(),
    };
    sender.send(&question, ANSWER_TIMEOUT).await?;
    sender.finish();
    let (chain, roots) = match receiver.expect(ANSWER_TIMEOUT).await? {
        IdentityAnswer::Certificate { chain, roots, .. } => (chain, roots),
        IdentityAnswer::Error(error) => return Err(NotRenewed::Refused(error)),
        _ => return Err(NotRenewed::Nonsense),
    };
    if request.check(&chain, &roots)? != *identity.id() {
        return Err(NotRenewed::Nonsense);
    }
    let identity = identity.clone();
    let installed = tokio::task::spawn_blocking(move || {
        request.install(identity.directory(), &chain, &roots)?;
        identity.reload()
    });
    match installed.await {
        Ok(installed) => installed.map(|_| ()).map_err(NotRenewed::Identity),
        Err(_) => Err(NotRenewed::Nonsense),
    }
}
