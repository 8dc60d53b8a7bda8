//! A stand-in for the federator: acknowledges what the agent sends, and counts the connections in it.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result};
use tokio::task::LocalSet;
use weft_transport::{Identity, Listener, Session};
use weft_wire::batch;
use weft_wire::codec;
use weft_wire::control::Ack;
use weft_wire::frame::Kind;

use crate::uplink::{self, PATIENCE};

/// Extension of the file beside `count` with the number of lookups so far.
pub const LOOKUPS: &str = "lookups";

/// Runs until it is killed; writes the number of connections so far to `count`.
pub fn sink(listen: SocketAddr, identity: &Path, count: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let identity = Identity::load(identity).context("the federator's identity")?;
        let listener = Listener::bind(listen, &identity)?;
        println!("ready");
        let seen = Rc::new(RefCell::new(HashSet::new()));
        let lookups = Rc::new(Cell::new(0));
        let count: Rc<Path> = count.into();
        let sessions = LocalSet::new();
        let accept = async {
            // An agent that is killed ends its session without a word: the next one must not wait for that.
            while let Some(session) = listener.accept().await {
                tokio::task::spawn_local(serve(
                    session,
                    seen.clone(),
                    lookups.clone(),
                    count.clone(),
                ));
            }
        };
        sessions.run_until(accept).await;
        Ok(())
    })
}

/// One agent's session, to its end.
async fn serve(
    session: Session,
    seen: Rc<RefCell<HashSet<u64>>>,
    lookups: Rc<Cell<u64>>,
    count: Rc<Path>,
) -> Result<()> {
    let (mut sender, mut receiver) = uplink::greet(&session).await?;
    while let Some(frame) = receiver.recv().await? {
        if frame.kind == Kind::LookupBatch {
            let (seq, bytes) = codec::split_lookups(&frame)?;
            lookups.set(lookups.get() + batch::lookups::decode(bytes)?.lookups.len() as u64);
            let path = count.with_extension(LOOKUPS);
            fs::write(path, lookups.get().to_string()).context("cannot write the count")?;
            sender.send(&Ack { seq }, PATIENCE).await?;
        }
        if frame.kind != Kind::HalfBatch {
            continue;
        }
        let (seq, bytes) = codec::split_batch(&frame)?;
        let decoded = batch::decode(bytes, session.peer_key())?;
        // A row for the opening and one for the close count once.
        let total = {
            let mut seen = seen.borrow_mut();
            seen.extend(decoded.halves.iter().map(|half| half.id.0));
            seen.len()
        };
        fs::write(&count, total.to_string()).context("cannot write the count")?;
        sender.send(&Ack { seq }, PATIENCE).await?;
    }
    Ok(())
}
