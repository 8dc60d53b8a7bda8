//! Certificates for the benches' own programs, and both ends of an agent's session.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use weft_transport::{
    Dialler, Expect, FrameReceiver, FrameSender, Identity, PeerRole, Session, SpiffeId, pki,
};
use weft_wire::control::{AgentHello, AgentWelcome, PROTOCOL_VERSION};
use weft_wire::{AgentInfo, Timestamp};

/// Trust domain of everything here.
pub const DOMAIN: &str = "bench.example";
/// Region of everything here.
pub const REGION: &str = "bench";
/// The one federator.
pub const FEDERATOR: &str = "fed-bench";
/// The agent, where there is one.
pub const AGENT: &str = "bench";
/// The agents of two nodes that talk to each other.
pub const NODES: [&str; 2] = ["node-clients", "node-servers"];
/// Who asks.
pub const OPERATOR: &str = "operator";
/// Nothing here takes as long as this unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Now, as the protocol tells time.
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(since.as_micros() as i64)
}

/// Makes a CA in `dir`, and below it an identity for everybody named above.
pub fn issue_identities(dir: &Path) -> Result<()> {
    let validity = pki::Validity::days_from(now(), 1);
    let ca = dir.join("ca");
    pki::init_ca(&ca, DOMAIN, validity).context("cannot make a CA")?;
    let holders = [
        (PeerRole::Agent, AGENT),
        (PeerRole::Agent, NODES[0]),
        (PeerRole::Agent, NODES[1]),
        (PeerRole::Federator, FEDERATOR),
        (PeerRole::Operator, OPERATOR),
    ];
    for (role, name) in holders {
        let id = SpiffeId::new(DOMAIN, REGION, role, name)?;
        pki::issue(&ca, &identity_dir(dir, name), &id, validity)
            .context("cannot issue a certificate")?;
    }
    Ok(())
}

/// Where [`issue_identities`] puts the identity of this name.
pub fn identity_dir(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}

/// A session with the federator, and the socket under it.
pub struct Line {
    /// The session.
    pub session: Session,
    /// The socket closes with it.
    _dialler: Dialler,
}

/// Dials with the identity of this name.
pub async fn connect(address: &str, name: &str, dir: &Path) -> Result<Line> {
    let identity =
        Identity::load(&identity_dir(dir, name)).context("an identity of the bench's own")?;
    let dialler = Dialler::new(&identity)?;
    let session = dialler.dial(address, &Expect::any_federator()).await?;
    Ok(Line {
        session,
        _dialler: dialler,
    })
}

/// An agent's session, greeted.
pub struct Uplink {
    /// The session, for its totals.
    pub line: Line,
    /// To the federator.
    pub sender: FrameSender,
    /// From it.
    pub receiver: FrameReceiver,
}

/// Dials as the agent of this name and exchanges greetings.
pub async fn dial(address: &str, name: &str, dir: &Path) -> Result<Uplink> {
    let line = connect(address, name, dir).await?;
    let (mut sender, mut receiver) = line.session.open_bi().await?;
    let agent = AgentInfo {
        name: name.to_owned(),
        version: "bench".to_owned(),
        ..AgentInfo::default()
    };
    sender
        .send(
            &AgentHello {
                version: PROTOCOL_VERSION,
                agent,
                now: now(),
            },
            PATIENCE,
        )
        .await?;
    let welcome: AgentWelcome = receiver.expect(PATIENCE).await?;
    if welcome.durable_seq != 0 {
        bail!("the federator knows this agent already");
    }
    Ok(Uplink {
        line,
        sender,
        receiver,
    })
}

/// Answers an agent's greeting on the stream that it opened.
pub async fn greet(session: &Session) -> Result<(FrameSender, FrameReceiver)> {
    let (mut sender, mut receiver) = session.accept_bi().await?;
    let _hello: AgentHello = receiver.expect(PATIENCE).await?;
    let welcome = AgentWelcome {
        version: PROTOCOL_VERSION,
        federator: FEDERATOR.to_owned(),
        durable_seq: 0,
        now: now(),
    };
    sender.send(&welcome, PATIENCE).await?;
    Ok((sender, receiver))
}
