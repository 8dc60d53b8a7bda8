//! Who gets a certificate of this region, and who is shut out.
//!
//! Reading order: [`roles`] (who may do what), [`tokens`] (one string, one node), [`share`] (revocations reach every federator),
//! then [`Enrol`], which answers.

pub mod roles;
pub(crate) mod kept;
pub mod cloud;
pub mod tokens;
pub mod share;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft_transport::join::Admit;
use weft_transport::pki::{Issued, Signer, Validity, key_mark};
use weft_transport::revocations::Revocations;
use weft_transport::token::new_secret;
use weft_transport::{
    FrameReceiver, FrameSender, Identity, IdentityError, PeerRole, Session, SpiffeId, Token,
    TransportError,
};
use weft_wire::Timestamp;
use weft_wire::control::CloseCode;
use weft_wire::frame::{Frame, Kind};
use weft_wire::identity::{
    Hidden, IdentityAnswer, IdentityRequest, MAX_SHARED, Proof, Revocation, Subject,
};
use weft_wire::query::QueryError;

use self::kept::Kept;
use self::roles::Act;
use self::tokens::{MAX_TTL_S, MIN_TTL_S, TokenRefused, Tokens};
use crate::agents::AgentStates;
use crate::clock;
use crate::config::{Config, Enrolment};
use crate::server::{HELLO_TIMEOUT, SEND_TIMEOUT};

/// An agent that asks for another certificate sooner than this after the last is refused.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(10);
/// A revocation that claims to be from so much later than now is not believed, in microseconds: it could never be lifted.
const MAX_FUTURE_US: i64 = 86_400_000_000;

/// Totals since the start.
#[derive(Debug, Default)]
pub struct EnrolCounters {
    /// Tokens made.
    pub tokens: AtomicU64,
    /// Nodes let in.
    pub joined: AtomicU64,
    /// Nodes refused.
    pub join_refusals: AtomicU64,
    /// Certificates renewed.
    pub renewed: AtomicU64,
    /// Renewals refused.
    pub renewal_refusals: AtomicU64,
    /// Revocations learned, from whomever.
    pub revocations: AtomicU64,
    /// Revocations not taken: no room, or from a time to come.
    pub revocations_refused: AtomicU64,
}

/// Signs, and shuts out.
pub struct Enrol {
    identity: Identity,
    region: String,
    signing: Option<Signing>,
    tokens: Mutex<Tokens>,
    /// Also the lock under which the file is written.
    revoked: Mutex<Kept>,
    agents: Arc<AgentStates>,
    counters: Arc<EnrolCounters>,
}

struct Signing {
    signer: Signer,
    settings: Enrolment,
    /// Where agents report.
    federator: String,
}

impl Enrol {
    /// Reads what is kept, and the signing CA if there is one. From here on the identity refuses whom it knows to be revoked.
    pub fn open(
        config: &Config,
        identity: Identity,
        agents: Arc<AgentStates>,
        counters: Arc<EnrolCounters>,
    ) -> anyhow::Result<Self> {
        let revoked = Kept::at(&config.data_dir, "revoked.json");
        let known: Vec<Revocation> = revoked.read()?;
        identity.revocations().learn(&known)?;
        let signing = config
            .enrol
            .clone()
            .map(|settings| signing(config, &identity, settings))
            .transpose()?;
        Ok(Self {
            identity,
            region: config.region.clone(),
            signing,
            tokens: Mutex::new(Tokens::open(&config.data_dir, &config.name)?),
            revoked: Mutex::new(revoked),
            agents,
            counters,
        })
    }

    /// Who is shut out.
    pub fn revocations(&self) -> &Revocations {
        self.identity.revocations()
    }

    /// Answers a request of an operator or a federator; `first` came on a stream of its own.
    pub async fn serve(
        self: &Arc<Self>,
        session: &Session,
        mut sender: FrameSender,
        first: &Frame,
    ) -> Result<(), TransportError> {
        let request: IdentityRequest = session.decode(first)?;
        let Some(act) = Act::of(&request) else {
            let words = format!("{} may not be asked here", request.name());
            return Err(session.misbehaved(CloseCode::Role, words));
        };
        roles::require(session, act)?;
        let (enrol, by) = (self.clone(), session.peer().clone());
        let answer = blocking(move || enrol.answer(&by, request)).await;
        sender.send(&answer, SEND_TIMEOUT).await?;
        sender.finish();
        Ok(())
    }

    /// Answers what an agent asks beside reporting, until its session ends.
    pub async fn serve_agent(self: &Arc<Self>, session: &Session) -> Result<(), TransportError> {
        let mut last: Option<Instant> = None;
        loop {
            let (mut sender, mut receiver) = session.accept_bi().await?;
            let Some(request) = first_request(session, &mut receiver).await? else {
                continue;
            };
            let IdentityRequest::Renew { request } = request else {
                let words = format!("{} may not {}", session.peer(), request.name());
                return Err(session.misbehaved(CloseCode::Role, words));
            };
            let answer = if last.is_some_and(|last| last.elapsed() < MIN_RENEWAL_INTERVAL) {
                let cause = format!("the last was less than {MIN_RENEWAL_INTERVAL:?} ago");
                Err(refused(
                    "E-LIMIT",
                    "no certificate was signed",
                    cause,
                    "wait",
                ))
            } else {
                last = Some(Instant::now());
                self.renew(session, request).await
            };
            let count = match answer {
                Ok(_) => &self.counters.renewed,
                Err(_) => &self.counters.renewal_refusals,
            };
            count.fetch_add(1, Relaxed);
            let answer = answer.unwrap_or_else(IdentityAnswer::Error);
            sender.send(&answer, SEND_TIMEOUT).await?;
            sender.finish();
        }
    }

    async fn renew(
        self: &Arc<Self>,
        session: &Session,
        request: Vec<u8>,
    ) -> Result<IdentityAnswer, QueryError> {
        let (enrol, id) = (self.clone(), session.peer().clone());
        let issued = blocking(move || enrol.sign(&id, &request)).await?;
        // Before it is sent: the session must not end for the old one's end while the new one is there.
        session.peer_renewed(issued.not_after, &issued.serial);
        Ok(self.certificate(issued))
    }

    fn answer(&self, by: &SpiffeId, request: IdentityRequest) -> IdentityAnswer {
        let answered = match request {
            IdentityRequest::CreateToken {
                role,
                region,
                node,
                ttl_s,
            } => self.create_token(by, (&role, &region), node, ttl_s),
            IdentityRequest::Revoke { subject, revoked } => self
                .revoke(by, subject, revoked)
                .map(|()| IdentityAnswer::Done),
            IdentityRequest::Share(words) => self.learn(words).map(|()| IdentityAnswer::Done),
            IdentityRequest::Revoked => {
                let mut all = self.revocations().all();
                all.truncate(MAX_SHARED);
                Ok(IdentityAnswer::Revoked(all))
            }
            IdentityRequest::Join { .. } | IdentityRequest::Renew { .. } => Err(refused(
                "E-ROLE",
                "not asked here",
                "this session is no node's".into(),
                "weft-agent join",
            )),
        };
        answered.unwrap_or_else(IdentityAnswer::Error)
    }

    fn signing(&self) -> Result<&Signing, QueryError> {
        self.signing.as_ref().ok_or_else(|| {
            refused(
                "E-ENROL",
                "this federator signs no certificates",
                "it has no [enrol] in its configuration".into(),
                "weft pki region-ca --region REGION --out DIR, then set [enrol] (docs/federator.toml)",
            )
        })
    }

    fn create_token(
        &self,
        by: &SpiffeId,
        (role, region): (&str, &str),
        node: Option<String>,
        ttl_s: u32,
    ) -> Result<IdentityAnswer, QueryError> {
        let no_token =
            |cause: String, hint: &str| refused("E-TOKEN", "no token was made", cause, hint);
        let signing = self.signing()?;
        if role != PeerRole::Agent.name() {
            let cause = format!("tokens are for agents, not for the role {role:?}");
            return Err(no_token(
                cause,
                "weft pki issue --role ROLE makes other certificates",
            ));
        }
        if region != self.region {
            let cause = format!("this federator signs for region {:?}", self.region);
            return Err(no_token(
                cause,
                "ask a federator of that region: --federator HOST:PORT",
            ));
        }
        if !(MIN_TTL_S..=MAX_TTL_S).contains(&ttl_s) {
            let cause = format!("a token waits {MIN_TTL_S} to {MAX_TTL_S} seconds, not {ttl_s}");
            return Err(no_token(cause, "--ttl 30m"));
        }
        if let Some(node) = &node {
            self.id(node)?;
        }
        let Some(fingerprint) = self.identity.root_fingerprint() else {
            let cause = "its own certificate stands under none of its CAs".into();
            return Err(no_token(cause, "weft-federator doctor"));
        };
        let crypto = |error: IdentityError| no_token(error.to_string(), "ask again");
        let secret = new_secret().map_err(crypto)?;
        let now = clock::now();
        let expires_at = Timestamp(now.0 + i64::from(ttl_s) * 1_000_000);
        self.tokens()
            .create(&secret, node, expires_at, by.to_string(), now)
            .map_err(|error| {
                no_token(error.to_string(), "weft health shows the federator's disk")
            })?;
        self.counters.tokens.fetch_add(1, Relaxed);
        tracing::info!(%by, until = %expires_at, "a token was made");
        let token = Token {
            address: signing.settings.address.clone(),
            fingerprint,
            secret,
        };
        Ok(IdentityAnswer::Token {
            token: Hidden(token.to_string()),
            expires_at,
        })
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of an agent here.
    fn id(&self, name: &str) -> Result<SpiffeId, QueryError> {
        let domain = self.identity.id().domain();
        SpiffeId::new(domain, &self.region, PeerRole::Agent, name).map_err(|error| {
            refused(
                "E-JOIN",
                "no agent can be called so",
                error.to_string(),
                "letters, digits, '.', '_' and '-'",
            )
        })
    }

    fn join(
        &self,
        proof: &Proof,
        name: &str,
        request: &[u8],
    ) -> Result<IdentityAnswer, QueryError> {
        self.signing()?;
        let no_key = |error: IdentityError| {
            let cause = error.to_string();
            refused(
                "E-JOIN",
                "the request cannot be signed",
                cause,
                "weft-agent join makes it",
            )
        };
        let key = key_mark(request).map_err(no_key)?;
        let now = clock::now();
        let id = match proof {
            Proof::Token(secret) => {
                if !name.is_empty() {
                    self.id(name)?;
                }
                let taken = |name: &str| self.id(name).is_ok_and(|id| self.agents.knows(id.key()));
                let name = self
                    .tokens()
                    .redeem(secret, name, &key, now, taken)
                    .map_err(|error| token_refused(&error))?;
                self.id(&name)?
            }
            Proof::Aws(_) | Proof::Gcp(_) => {
                let id = self.id(&self.cloud_name(proof, now)?)?;
                self.tokens()
                    .claim(id.name(), &key)
                    .map_err(|error| token_refused(&error))?;
                id
            }
        };
        let issued = self.sign(&id, request)?;
        self.tokens()
            .signed(id.name(), issued.not_after, now)
            .map_err(|error| token_refused(&error))?;
        tracing::info!(%id, serial = issued.serial, "a node joined");
        Ok(self.certificate(issued))
    }

    /// The name that a cloud proves.
    fn cloud_name(&self, proof: &Proof, now: Timestamp) -> Result<String, QueryError> {
        let settings = &self.signing()?.settings;
        let audience = || {
            self.identity
                .root_fingerprint()
                .map(|found| found.to_string())
                .unwrap_or_default()
        };
        let proven = match (proof, &settings.aws, &settings.gcp) {
            (Proof::Aws(document), Some(aws), _) => cloud::aws(&document.0, aws, now),
            (Proof::Gcp(token), _, Some(gcp)) => cloud::gcp(&token.0, gcp, &audience(), now),
            _ => {
                let cause = "this federator lets in nobody by the word of that cloud".into();
                let hint =
                    "weft token create, or [enrol.aws] and [enrol.gcp] (docs/federator.toml)";
                return Err(refused("E-JOIN", "the node cannot join", cause, hint));
            }
        };
        proven.map_err(|error| {
            let hint = "weft token create makes a token instead";
            refused("E-JOIN", "the node cannot join", error.to_string(), hint)
        })
    }

    fn sign(&self, id: &SpiffeId, request: &[u8]) -> Result<Issued, QueryError> {
        let signing = self.signing()?;
        if self.revocations().hit(id, &[]) {
            let cause = format!("{id} is revoked");
            return Err(refused(
                "E-REVOKED",
                "no certificate was signed",
                cause,
                "weft pki revoke --lift --name ID lets it in again",
            ));
        }
        let seconds = i64::from(signing.settings.certificate_hours) * 3600;
        let validity = Validity::seconds_from(clock::now(), seconds);
        signing
            .signer
            .sign_request(request, id, validity)
            .map_err(|error| {
                let cause = error.to_string();
                refused(
                    "E-ENROL",
                    "no certificate was signed",
                    cause,
                    "weft-federator doctor",
                )
            })
    }

    fn certificate(&self, issued: Issued) -> IdentityAnswer {
        IdentityAnswer::Certificate {
            chain: issued.chain,
            roots: self.identity.roots_pem(),
            federator: self
                .signing
                .as_ref()
                .map(|signing| signing.federator.clone())
                .unwrap_or_default(),
        }
    }

    fn revoke(&self, by: &SpiffeId, subject: Subject, revoked: bool) -> Result<(), QueryError> {
        let nobody = |cause: String| {
            refused(
                "E-REVOKE",
                "nothing was revoked",
                cause,
                "weft pki revoke --name spiffe://DOMAIN/region/R/ROLE/NAME, or --certificate cert.pem",
            )
        };
        match &subject {
            Subject::Name(name) => {
                let id: SpiffeId =
                    name.parse()
                        .map_err(|error: weft_transport::identity::SpiffeError| {
                            nobody(error.to_string())
                        })?;
                if id.domain() != self.identity.id().domain() {
                    return Err(nobody(format!("{id} is of another trust domain")));
                }
            }
            Subject::Serial(serial) => {
                let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                if !(1..=40).contains(&serial.len()) || !serial.bytes().all(hexadecimal) {
                    return Err(nobody(
                        "a serial number has 1 to 40 hexadecimal digits".into(),
                    ));
                }
            }
        }
        // After what was said before, also when that came from a clock that is ahead.
        let before = self.revocations().all();
        let before = before.iter().find(|word| word.subject == subject);
        let at = before.map_or(0, |word| word.at.0.saturating_add(1));
        let word = Revocation {
            subject,
            revoked,
            at: Timestamp(clock::now().0.max(at)),
            by: by.to_string(),
        };
        tracing::warn!(subject = %word.subject, %by, revoked, "revocation");
        self.learn(vec![word])
    }

    /// On the disk before it is said to be done.
    fn learn(&self, mut words: Vec<Revocation>) -> Result<(), QueryError> {
        let failed = |cause: String| {
            refused(
                "E-REVOKE",
                "not everything was revoked",
                cause,
                "weft health shows the federator's disk",
            )
        };
        let said = words.len();
        let latest = clock::now().0.saturating_add(MAX_FUTURE_US);
        words.retain(|word| word.at.0 <= latest);
        let ignored = said - words.len();
        self.counters
            .revocations_refused
            .fetch_add(ignored as u64, Relaxed);
        let file = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        let news = self.revocations().learn(&words).map_err(|error| {
            self.counters.revocations_refused.fetch_add(1, Relaxed);
            failed(error.to_string())
        })?;
        self.counters
            .revocations
            .fetch_add(news.len() as u64, Relaxed);
        if news.is_empty() {
            return Ok(());
        }
        // It holds from now on, here; that it holds after a restart too must be so before anybody is told.
        file.write(&self.revocations().all())
            .map_err(|error| failed(format!("{error:#}")))
    }
}

impl Admit for Enrol {
    async fn admit(self: Arc<Self>, from: SocketAddr, request: IdentityRequest) -> IdentityAnswer {
        let IdentityRequest::Join {
            proof,
            name,
            request,
        } = request
        else {
            let cause = format!("{} is not asked here", request.name());
            return IdentityAnswer::Error(refused("E-JOIN", "the node cannot join", cause, ""));
        };
        let enrol = self.clone();
        let answered = blocking(move || enrol.join(&proof, &name, &request)).await;
        let count = match &answered {
            Ok(_) => &self.counters.joined,
            Err(error) => {
                tracing::warn!(%from, %error, "a node was not let in");
                &self.counters.join_refusals
            }
        };
        count.fetch_add(1, Relaxed);
        answered.unwrap_or_else(IdentityAnswer::Error)
    }
}

fn signing(config: &Config, identity: &Identity, settings: Enrolment) -> anyhow::Result<Signing> {
    let signer = Signer::load(&settings.ca).context("enrol.ca")?;
    ensure!(
        signer.domain() == identity.id().domain(),
        "enrol.ca is of trust domain {:?}, the certificate of {:?}",
        signer.domain(),
        identity.id().domain()
    );
    ensure!(
        signer.region().is_none_or(|region| region == config.region),
        "enrol.ca signs for region {:?}, this federator is of {:?}",
        signer.region().unwrap_or_default(),
        config.region
    );
    let federator = settings.federator.clone().unwrap_or_else(|| {
        let host = settings
            .address
            .rsplit_once(':')
            .map_or("", |(host, _)| host);
        format!("{host}:{}", config.listen.port())
    });
    Ok(Signing {
        signer,
        settings,
        federator,
    })
}

async fn first_request(
    session: &Session,
    receiver: &mut FrameReceiver,
) -> Result<Option<IdentityRequest>, TransportError> {
    let Some(first) = receiver.recv_within(HELLO_TIMEOUT).await? else {
        return Ok(None);
    };
    if first.kind != Kind::IdentityRequest {
        let words = format!("{} may not say {:?} here", session.peer(), first.kind);
        return Err(session.misbehaved(CloseCode::Role, words));
    }
    session.decode(&first).map(Some)
}

fn token_refused(error: &TokenRefused) -> QueryError {
    let hint = match error {
        TokenRefused::NoName => "weft-agent join --name NAME",
        TokenRefused::OtherNode(_) => "weft-agent join --name with that name, or another token",
        TokenRefused::Taken(_) => "weft token create --node NAME makes one for that name",
        TokenRefused::Full | TokenRefused::Disk(_) => "weft health shows the federator's disk",
        TokenRefused::Unknown
        | TokenRefused::Elsewhere(_)
        | TokenRefused::Expired(_)
        | TokenRefused::Used => "weft token create makes another one",
    };
    let code = match error {
        TokenRefused::NoName => "E-NAME",
        _ => "E-JOIN",
    };
    refused(code, "the node cannot join", error.to_string(), hint)
}

fn refused(code: &str, what: &str, cause: String, hint: &str) -> QueryError {
    QueryError {
        code: code.into(),
        what: what.into(),
        cause,
        hint: hint.into(),
    }
}

/// Disks hang, and keys take time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
