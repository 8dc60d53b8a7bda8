//! Certificates and CAs are exchanged while sessions run, on real QUIC: none drops, and each step of a rotation lets both
//! sides in.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use weft_transport::pki::{self, Validity};
use weft_transport::{
    CloseReason, Dialler, Expect, FrameReceiver, FrameSender, Identity, Listener, PeerRole,
    Refusal, Session, SpiffeId, TransportError,
};
use weft_wire::Timestamp;
use weft_wire::control::Ack;

const DOMAIN: &str = "weft.test";
const PATIENCE: Duration = Duration::from_secs(30);

fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Timestamp(since.as_micros() as i64)
}

fn ten_days() -> Validity {
    Validity::days_from(now(), 10)
}

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        for ca in ["old", "new"] {
            pki::init_ca(&place.path(ca), DOMAIN, ten_days()).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn certificates(&self, of: &str) -> String {
        std::fs::read_to_string(self.path(of).join("ca.pem")).unwrap()
    }

    fn issue(&self, ca: &str, role: PeerRole, name: &str, out: &str) -> PathBuf {
        let id = SpiffeId::new(DOMAIN, "r", role, name).unwrap();
        let out = self.path(out);
        pki::issue(&self.path(ca), &out, &id, ten_days()).unwrap();
        out
    }

    /// Puts another certificate, of this CA, into an identity's directory; trust stays as it is.
    fn reissue(&self, ca: &str, role: PeerRole, name: &str, dir: &Path) {
        let fresh = self.issue(ca, role, name, &format!("fresh-{name}-{ca}"));
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        let trusted = read(dir.join("ca.pem"));
        let (key, chain) = (read(fresh.join("key.pem")), read(fresh.join("cert.pem")));
        pki::install(dir, &key, &chain, &trusted).unwrap();
    }

    /// Sets whom an identity trusts.
    fn trust(&self, dir: &Path, cas: &[&str]) {
        let all: String = cas.iter().map(|ca| self.certificates(ca)).collect();
        std::fs::write(dir.join("ca.pem"), all).unwrap();
    }
}

async fn echo(session: Session) -> Result<(), TransportError> {
    let (mut sender, mut receiver) = session.accept_bi().await?;
    while let Some(frame) = receiver.recv().await? {
        let ack: Ack = session.decode(&frame)?;
        sender.send(&ack, PATIENCE).await?;
    }
    Ok(())
}

/// A session that is used all along.
struct Used {
    session: Session,
    sender: FrameSender,
    receiver: FrameReceiver,
    seq: u64,
}

impl Used {
    async fn new(dialler: &Dialler, address: &str) -> Self {
        let expect = Expect::federator("fed");
        let session = dialler.dial(address, &expect).await.unwrap();
        let (sender, receiver) = session.open_bi().await.unwrap();
        let mut used = Self {
            session,
            sender,
            receiver,
            seq: 0,
        };
        used.works().await;
        used
    }

    async fn works(&mut self) {
        self.seq += 1;
        let said = Ack { seq: self.seq };
        self.sender.send(&said, PATIENCE).await.unwrap();
        let heard: Ack = self.receiver.expect(PATIENCE).await.unwrap();
        assert_eq!(heard, said);
        assert_eq!(self.session.close_reason(), None);
    }
}

#[tokio::test]
async fn the_ca_is_exchanged_step_by_step_and_no_session_drops() {
    let place = Place::new();
    let fed_dir = place.issue("old", PeerRole::Federator, "fed", "fed");
    let agent_dir = place.issue("old", PeerRole::Agent, "a", "a");
    let (fed, agent) = (
        Identity::load(&fed_dir).unwrap(),
        Identity::load(&agent_dir).unwrap(),
    );
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), &fed).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Some(session) = listener.accept().await {
            tokio::spawn(echo(session));
        }
    });
    let dialler = Dialler::new(&agent).unwrap();
    let mut sessions = vec![Used::new(&dialler, &address).await];
    let steps: [(&str, &dyn Fn()); 6] = [
        ("the federator trusts both", &|| {
            place.trust(&fed_dir, &["old", "new"])
        }),
        ("the agent trusts both", &|| {
            place.trust(&agent_dir, &["old", "new"])
        }),
        ("the agent is of the new CA", &|| {
            place.reissue("new", PeerRole::Agent, "a", &agent_dir);
        }),
        ("the federator is of the new CA", &|| {
            place.reissue("new", PeerRole::Federator, "fed", &fed_dir);
        }),
        ("the federator trusts the new one only", &|| {
            place.trust(&fed_dir, &["new"])
        }),
        ("the agent trusts the new one only", &|| {
            place.trust(&agent_dir, &["new"])
        }),
    ];
    for (step, change) in steps {
        change();
        let changed = [fed.reload().unwrap(), agent.reload().unwrap()];
        assert!(changed[0] != changed[1], "{step}: one of the two changed");
        sessions.push(Used::new(&dialler, &address).await);
        for session in &mut sessions {
            session.works().await;
        }
    }
    // The old CA is out: who comes with a certificate of it is refused.
    let stale = place.issue("old", PeerRole::Agent, "b", "b");
    place.trust(&stale, &["new"]);
    let stale = Dialler::new(&Identity::load(&stale).unwrap()).unwrap();
    let reason = match stale.dial(&address, &Expect::federator("fed")).await {
        Ok(session) => session.closed().await,
        Err(TransportError::Closed(reason)) => reason,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(reason, CloseReason::Refused(Refusal::UnknownCa));
}

#[tokio::test]
async fn files_that_change_are_noticed_and_bad_ones_change_nothing() {
    let place = Place::new();
    let dir = place.issue("old", PeerRole::Agent, "a", "a");
    let identity = Identity::load(&dir).unwrap();
    let first = identity.serial();
    // Half of an exchange: the key is another's.
    let fresh = place.issue("old", PeerRole::Agent, "a", "half");
    std::fs::remove_file(dir.join("key.pem")).unwrap();
    std::fs::copy(fresh.join("key.pem"), dir.join("key.pem")).unwrap();
    assert!(identity.reload().is_err());
    assert_eq!(identity.serial(), first);
    // Somebody else's.
    let other = place.issue("old", PeerRole::Agent, "b", "other");
    for name in ["key.pem", "cert.pem"] {
        std::fs::remove_file(dir.join(name)).unwrap();
        std::fs::copy(other.join(name), dir.join(name)).unwrap();
    }
    let error = identity.reload().unwrap_err().to_string();
    assert!(error.contains("restart"), "{error}");
    assert_eq!(
        (identity.serial(), identity.id().name()),
        (first.clone(), "a")
    );
    let followed = identity.clone();
    let following = tokio::spawn(async move { followed.follow().await });
    place.reissue("old", PeerRole::Agent, "a", &dir);
    let noticed = async {
        while identity.serial() == first {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.unwrap();
    following.abort();
}

#[tokio::test]
async fn a_regions_ca_signs_its_agents_and_nobody_else() {
    let place = Place::new();
    pki::init_region_ca(&place.path("old"), &place.path("ca-r"), "r", ten_days()).unwrap();
    let fed = Identity::load(&place.issue("old", PeerRole::Federator, "fed", "fed")).unwrap();
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), &fed).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Some(session) = listener.accept().await {
            tokio::spawn(echo(session));
        }
    });
    let signer = pki::Signer::load(&place.path("ca-r")).unwrap();
    let request = pki::Request::new().unwrap();
    for (region, role) in [
        ("s", PeerRole::Agent),
        ("r", PeerRole::Federator),
        ("r", PeerRole::Admin),
    ] {
        let id = SpiffeId::new(DOMAIN, region, role, "x").unwrap();
        assert!(signer.sign_request(request.der(), &id, ten_days()).is_err());
    }
    let id = SpiffeId::new(DOMAIN, "r", PeerRole::Agent, "x").unwrap();
    let issued = signer.sign_request(request.der(), &id, ten_days()).unwrap();
    let dir = place.path("x");
    request
        .install(&dir, &issued.chain, &place.certificates("old"))
        .unwrap();
    let agent = Dialler::new(&Identity::load(&dir).unwrap()).unwrap();
    Used::new(&agent, &address).await;
    // Whoever has the region's key and signs more with it, past our own care, is believed by nobody.
    for (region, role) in [("s", "agent"), ("r", "federator"), ("r", "admin")] {
        let dir = forged(&place, region, role);
        let dialler = Dialler::new(&Identity::load(&dir).unwrap()).unwrap();
        let reason = match dialler.dial(&address, &Expect::federator("fed")).await {
            Ok(session) => tokio::time::timeout(PATIENCE, session.closed())
                .await
                .unwrap(),
            Err(TransportError::Closed(reason)) => reason,
            Err(other) => panic!("{other}"),
        };
        assert!(
            matches!(reason, CloseReason::Refused(_)),
            "{region} {role}: {reason}"
        );
    }
}

/// A certificate that the region's CA must not make.
fn forged(place: &Place, region: &str, role: &str) -> PathBuf {
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
    let ca = place.path("ca-r");
    let chain = std::fs::read_to_string(ca.join("ca.pem")).unwrap();
    let key = std::fs::read_to_string(ca.join("ca-key.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&chain, KeyPair::from_pem(&key).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    let uri = format!("spiffe://{DOMAIN}/region/{region}/{role}/x");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let own = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&own, &issuer).unwrap();
    let dir = place.path(&format!("forged-{region}-{role}"));
    std::fs::create_dir_all(&dir).unwrap();
    let all = format!("{}{chain}", leaf.pem());
    pki::install(&dir, &own.serialize_pem(), &all, &place.certificates("old")).unwrap();
    dir
}
