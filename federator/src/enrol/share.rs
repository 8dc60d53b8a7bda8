//! Revocations from federator to federator: each tells each what it knows, when a session begins and when it learns more.
//! Whoever learns something new tells it on, so it also reaches those that the first one cannot.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use weft_transport::{Session, TransportError};
use weft_wire::identity::{IdentityAnswer, IdentityRequest, MAX_SHARED, Revocation};

use super::Enrol;
use crate::peers::Peers;
use crate::server::SEND_TIMEOUT;

/// How often it is looked whether a peer has not been told: far below the ten seconds in which a revocation holds everywhere.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for a peer to have made durable what it was told.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// Tells all peers until the task is aborted.
pub async fn run(enrol: Arc<Enrol>, peers: Arc<Peers>) {
    let revocations = enrol.revocations().clone();
    let mut changes = revocations.changes();
    // The session on which a peer was told, and what version of the list.
    let mut told: HashMap<String, (Session, u64)> = HashMap::new();
    loop {
        let version = *changes.borrow_and_update();
        let mut telling = tokio::task::JoinSet::new();
        for link in peers.all() {
            let Some(session) = link.session() else {
                continue;
            };
            let is_told = told
                .get(&link.name)
                .is_some_and(|(on, at)| on.is_same(&session) && *at == version);
            if !is_told {
                let (name, list) = (link.name.clone(), revocations.all());
                telling.spawn(async move { (name, tell(&session, &list).await, session) });
            }
        }
        // A peer that does not answer costs the others at most the timeout.
        while let Some(done) = telling.join_next().await {
            match done {
                Ok((name, Ok(()), session)) => {
                    told.insert(name, (session, version));
                }
                Ok((peer, Err(error), _)) => {
                    tracing::debug!(peer, %error, "a peer was not told what is revoked; again soon");
                }
                Err(_) => {}
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

async fn tell(session: &Session, list: &[Revocation]) -> Result<(), TransportError> {
    for piece in list.chunks(MAX_SHARED) {
        let (mut sender, mut receiver) = session.open_bi().await?;
        let share = IdentityRequest::Share(piece.to_vec());
        sender.send(&share, SEND_TIMEOUT).await?;
        sender.finish();
        match receiver.expect::<IdentityAnswer>(PEER_TIMEOUT).await? {
            IdentityAnswer::Done => {}
            other => return Err(TransportError::Misuse(format!("answered {other:?}"))),
        }
    }
    Ok(())
}
