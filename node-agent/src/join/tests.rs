//! Joining and renewing, against a made-up federator on real QUIC.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use weft_transport::join::{Admit, JoinListener};
use weft_transport::pki::{self, Signer, Validity};
use weft_transport::token::new_secret;
use weft_transport::{Dialler, Expect, Listener, PeerRole, Session, SpiffeId};
use weft_wire::Timestamp;

use super::*;

const DOMAIN: &str = "weft.test";
const PATIENCE: Duration = Duration::from_secs(30);

struct Federator {
    dir: TempDir,
    identity: Identity,
}

impl Federator {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let validity = Validity::days_from(time::now(), 10);
        pki::init_ca(&dir.path().join("ca"), DOMAIN, validity).unwrap();
        pki::init_region_ca(
            &dir.path().join("ca"),
            &dir.path().join("region"),
            "r",
            validity,
        )
        .unwrap();
        let id = SpiffeId::new(DOMAIN, "r", PeerRole::Federator, "fed").unwrap();
        pki::issue(
            &dir.path().join("ca"),
            &dir.path().join("fed"),
            &id,
            validity,
        )
        .unwrap();
        let identity = Identity::load(&dir.path().join("fed")).unwrap();
        Self { dir, identity }
    }

    fn sign(&self, name: &str, request: &[u8], seconds: i64) -> IdentityAnswer {
        let signer = Signer::load(&self.dir.path().join("region")).unwrap();
        let id = SpiffeId::new(DOMAIN, "r", PeerRole::Agent, name).unwrap();
        let validity = Validity::seconds_from(time::now(), seconds);
        let issued = signer.sign_request(request, &id, validity).unwrap();
        IdentityAnswer::Certificate {
            chain: issued.chain,
            roots: self.identity.roots_pem(),
            federator: "fed.example:7443".into(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Admit for Federator {
    async fn admit(self: Arc<Self>, _: SocketAddr, request: IdentityRequest) -> IdentityAnswer {
        let IdentityRequest::Join { name, request, .. } = request else {
            panic!("{request:?}");
        };
        if name.is_empty() {
            return IdentityAnswer::Error(QueryError {
                code: NAME_WANTED.into(),
                what: String::new(),
                cause: String::new(),
                hint: String::new(),
            });
        }
        self.sign(&name, &request, 3600)
    }
}

/// A federator that lets in whoever asks, its token, and a runtime that it lives in.
fn serving() -> (Arc<Federator>, Token, tokio::runtime::Runtime) {
    let federator = Arc::new(Federator::new());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let entered = runtime.enter();
    let listener =
        JoinListener::bind((Ipv4Addr::LOCALHOST, 0).into(), &federator.identity).unwrap();
    let token = Token {
        address: listener.local_addr().unwrap().to_string(),
        fingerprint: federator.identity.root_fingerprint().unwrap(),
        secret: new_secret().unwrap(),
    };
    let admit = federator.clone();
    runtime.spawn(async move { listener.serve(admit).await });
    drop(entered);
    (federator, token, runtime)
}

fn typed(federator: &Federator, token: &Token) -> Join {
    let token_file = federator.file("token");
    fs::write(&token_file, token.to_string()).unwrap();
    Join {
        config: federator.file("etc/agent.toml"),
        identity: Some(federator.file("identity")),
        name: Some("node-1".into()),
        token_file: Some(token_file),
        replace: false,
    }
}

#[test]
fn a_token_becomes_a_certificate_and_a_configuration() {
    use std::os::unix::fs::PermissionsExt;
    let (federator, token, _runtime) = serving();
    let typed = typed(&federator, &token);
    let said = join(&typed).unwrap();
    assert!(
        said.contains("spiffe://weft.test/region/r/agent/node-1"),
        "{said}"
    );
    assert!(!said.contains(&token.secret.0));
    let config = Config::load(&typed.config).unwrap();
    assert_eq!(
        (config.name.as_str(), config.federator.as_str()),
        ("node-1", "fed.example:7443")
    );
    let mode = |name: &str| {
        let path = config.identity.join(name);
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode("key.pem"), 0o600);
    assert!(!config.identity.join(KEY_FILE).exists());
    let again = join(&typed).unwrap_err().to_string();
    assert!(again.contains("--replace"), "{again}");
    assert!(
        join(&Join {
            replace: true,
            ..typed
        })
        .is_ok()
    );
}

#[test]
fn without_a_name_the_host_gives_it() {
    let (federator, token, _runtime) = serving();
    let typed = Join {
        name: None,
        ..typed(&federator, &token)
    };
    join(&typed).unwrap();
    assert_eq!(Config::load(&typed.config).unwrap().name, host_name());
}

#[test]
fn a_federator_of_another_ca_hears_nothing() {
    let (federator, token, _runtime) = serving();
    let wrong = Token {
        fingerprint: Federator::new().identity.root_fingerprint().unwrap(),
        ..token
    };
    let error = join(&typed(&federator, &wrong)).unwrap_err();
    assert_eq!(error.code, "E-TRUST");
    let lines = error.to_string();
    assert_eq!(lines.lines().count(), 4, "{lines}");
    assert!(!lines.contains(&wrong.secret.0));
    // The key waits for the next try.
    assert!(federator.file("identity").join(KEY_FILE).exists());
}

#[test]
fn what_is_no_token_is_not_repeated() {
    let federator = Federator::new();
    let typed = Join {
        token_file: Some(federator.file("token")),
        config: federator.file("agent.toml"),
        identity: Some(federator.file("identity")),
        name: None,
        replace: false,
    };
    fs::write(federator.file("token"), "weft1:secret-part").unwrap();
    let error = join(&typed).unwrap_err();
    assert_eq!(error.code, "E-TOKEN");
    assert!(!error.to_string().contains("secret-part"));
}

/// Renews everybody for so long, and lives on with them.
async fn renewing(federator: Arc<Federator>, session: Session, seconds: i64) {
    while let Ok((mut sender, mut receiver)) = session.accept_bi().await {
        let IdentityRequest::Renew { request } = receiver.expect(PATIENCE).await.unwrap() else {
            panic!("another request");
        };
        let answer = federator.sign(session.peer().name(), &request, seconds);
        if let IdentityAnswer::Certificate { chain, .. } = &answer {
            let serial = pki::serials(chain).unwrap().remove(0);
            let until = Timestamp(time::now().0 + seconds * 1_000_000);
            session.peer_renewed(until, &serial);
        }
        sender.send(&answer, PATIENCE).await.unwrap();
        sender.finish();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_the_certificate_it_began_with() {
    let federator = Arc::new(Federator::new());
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), &federator.identity).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = federator.clone();
    tokio::spawn(async move {
        while let Some(session) = listener.accept().await {
            tokio::spawn(renewing(serving.clone(), session, 3600));
        }
    });
    let dir = federator.file("node");
    let request = Request::new().unwrap();
    // Two seconds to live: two thirds of its life are over, as that begins five minutes back.
    let IdentityAnswer::Certificate { chain, roots, .. } = federator.sign("n", request.der(), 2)
    else {
        panic!("no certificate");
    };
    request.install(&dir, &chain, &roots).unwrap();
    fs::write(dir.join(JOINED_FILE), "").unwrap();
    let identity = Identity::load(&dir).unwrap();
    let (first_end, first_serial) = (identity.not_after(), identity.serial());
    let dialler = Dialler::new(&identity).unwrap();
    let session = dialler
        .dial(&address, &Expect::federator("fed"))
        .await
        .unwrap();
    let keeping = {
        let (identity, session) = (identity.clone(), session.clone());
        tokio::spawn(async move { renew::keep_renewed(&identity, &session, time::now, 7).await })
    };
    while time::now().0 < first_end.0 + 1_500_000 {
        assert_eq!(session.close_reason(), None);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(identity.serial(), first_serial);
    assert!(identity.not_after().0 > first_end.0 + 3_000_000_000);
    assert_eq!(Identity::load(&dir).unwrap().serial(), identity.serial());
    // The new one is also what the next handshake presents.
    let next = dialler.dial(&address, &Expect::federator("fed")).await;
    renew::renew(&identity, &next.unwrap()).await.unwrap();
    keeping.abort();
}

#[test]
fn nodes_that_joined_together_do_not_ask_together() {
    let life = (Timestamp(0), Timestamp(86_400_000_000));
    let mut times: Vec<_> = (0..50).map(|seed| renew::due(life, seed).0).collect();
    times.sort_unstable();
    times.dedup();
    assert_eq!(times.len(), 50);
    let (first, last) = (times[0], times[49]);
    assert!(first >= 86_400_000_000 / 60 * 37 && last <= 86_400_000_000 / 3 * 2);
}
