//! Requests to an API server or a kubelet: through the `kube` crate's client (configuration, certificates, tokens that
//! are renewed), answered in pieces so that no list is ever held whole.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::object::nullable;
use crate::stream::{Items, Lines};
use crate::watch::{Failure, List, Watch};

/// Longest wait for the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest silence within a list.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
/// A watch that outlives what it was asked for by this is dead.
const WATCH_SLACK: Duration = Duration::from_secs(30);
/// Most bytes of an answer that is one object or an error.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Most bytes of a server's words that are shown.
const MAX_MESSAGE_BYTES: usize = 200;

/// Where the API server is and who asks.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// A kubeconfig file; `None`: the service account that a pod is given.
    pub kubeconfig: Option<PathBuf>,
    /// Context in it; `None`: its current one.
    pub context: Option<String>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No pod's environment, and no kubeconfig was named.
    #[error("not in a pod of a cluster: {0}")]
    NotInCluster(#[from] kube::config::InClusterError),
    /// The kubeconfig cannot be used.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// No client can be made of it.
    #[error("{0}")]
    Client(#[from] kube::Error),
    /// An address that is none.
    #[error("{0}")]
    Address(#[from] http::uri::InvalidUri),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failed {
    /// As far as it matters for what to do next.
    pub failure: Failure,
    /// HTTP status; 0 where there was no answer.
    pub status: u16,
    /// In words.
    pub message: String,
}

/// What is listed and watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Path, such as `/api/v1/pods`.
    pub path: String,
    /// `fieldSelector`, if any.
    pub field_selector: Option<String>,
}

/// What a list says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Version of the list.
    pub version: String,
    /// Token of the next page; empty: there is none.
    pub token: String,
    /// Objects that were too large and left out.
    pub skipped: u64,
}

/// What is heard of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// It stands.
    Stands,
    /// An event.
    Event {
        /// What happened.
        change: Change,
        /// Version of its object.
        version: &'a str,
        /// The whole line.
        line: &'a [u8],
    },
}

/// One event of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `ADDED` or `MODIFIED`.
    Applied,
    /// `DELETED`.
    Deleted,
    /// `BOOKMARK`: only the version counts.
    Bookmark,
}

/// A server.
#[derive(Clone)]
pub struct Api {
    client: kube::Client,
}

impl Api {
    /// The API server of this node's cluster.
    pub async fn connect(settings: &Settings) -> Result<Self, SetupError> {
        let config = match &settings.kubeconfig {
            Some(path) => {
                let options = KubeConfigOptions {
                    context: settings.context.clone(),
                    ..KubeConfigOptions::default()
                };
                let file = Kubeconfig::read_from(path)?;
                kube::Config::from_custom_kubeconfig(file, &options).await?
            }
            None => kube::Config::incluster()?,
        };
        Self::new(config)
    }

    /// A kubelet, which shows its own pods to who may `get` `nodes/proxy` or `nodes/pods`. Its certificate is often its own: without
    /// `ca` it is not checked, which is why the address should be this node's own.
    pub async fn kubelet(
        address: &str,
        token_file: Option<&Path>,
        ca: Option<&Path>,
    ) -> Result<Self, SetupError> {
        let mut config = kube::Config::new(address.parse()?);
        config.accept_invalid_certs = ca.is_none();
        config.root_cert_file = ca.map(Path::to_path_buf);
        config.auth_info = AuthInfo {
            token_file: token_file.map(|path| path.display().to_string()),
            ..AuthInfo::default()
        };
        Self::new(config)
    }

    fn new(mut config: kube::Config) -> Result<Self, SetupError> {
        // When to try again is decided in one place, `watch`.
        config.default_retry = false;
        Ok(Self {
            client: kube::Client::try_from(config)?,
        })
    }

    /// Reads a page, object by object.
    pub async fn list(
        &self,
        resource: &Resource,
        list: &List,
        mut item: impl FnMut(&[u8]),
    ) -> Result<Head, Failed> {
        let mut query = Query::of(resource);
        query.add("limit", list.limit.map(|limit| limit.to_string()));
        query.add("continue", list.token.clone());
        query.add("resourceVersion", list.version.clone());
        let mut body = self
            .ask(Method::GET, &query.path(), None)
            .await?
            .into_body();
        let mut items = Items::default();
        while let Some(bytes) = piece(&mut body, PIECE_TIMEOUT).await? {
            items.push(&bytes, &mut item);
        }
        let head = items.head().ok_or_else(|| other("the list was cut off"))?;
        let head: ListHead =
            serde_json::from_slice(head).map_err(|error| other(format!("not a list: {error}")))?;
        Ok(Head {
            version: head.metadata.resource_version,
            token: head.metadata.token,
            skipped: items.skipped,
        })
    }

    /// Watches, as long as `hear` says to go on. `Ok` is an orderly end, with the number of events that were too large and left out.
    pub async fn watch(
        &self,
        resource: &Resource,
        watch: &Watch,
        mut hear: impl FnMut(Heard<'_>) -> bool,
    ) -> Result<u64, Failed> {
        let mut query = Query::of(resource);
        query.add("watch", Some("true".into()));
        query.add("allowWatchBookmarks", Some("true".into()));
        query.add("resourceVersion", Some(watch.version.clone()));
        query.add("timeoutSeconds", Some(watch.timeout_s.to_string()));
        let answer = self.ask(Method::GET, &query.path(), None).await?;
        let mut go_on = hear(Heard::Stands);
        let mut body = answer.into_body();
        let mut lines = Lines::default();
        let longest = Duration::from_secs(watch.timeout_s.into()) + WATCH_SLACK;
        let end = tokio::time::Instant::now() + longest;
        let mut failed = None;
        loop {
            let left = end.saturating_duration_since(tokio::time::Instant::now());
            // The version that was heard last still holds when the connection is cut: the caller has it.
            let Some(bytes) = piece(&mut body, left).await? else {
                return Ok(lines.skipped);
            };
            lines.push(&bytes, |line| {
                if failed.is_none() && go_on {
                    match pass_on(line, &mut hear) {
                        Ok(more) => go_on = more,
                        Err(error) => failed = Some(error),
                    }
                }
            });
            if let Some(failed) = failed {
                return Err(failed);
            }
            if !go_on {
                return Ok(lines.skipped);
            }
        }
    }

    /// Reads one object. `None`: there is none (404).
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failed> {
        match self.ask(Method::GET, path, None).await {
            Ok(answer) => one(answer).await.map(Some),
            Err(failed) if failed.failure == Failure::Missing => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    /// Makes (`POST`) or replaces (`PUT`) an object, and reads what became of it. Somebody else having been faster is
    /// status 409.
    pub async fn write<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        object: &serde_json::Value,
    ) -> Result<T, Failed> {
        let body = serde_json::to_vec(object).map_err(|error| other(error.to_string()))?;
        one(self.ask(method, path, Some(body)).await?).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Response<Body>, Failed> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, "application/json");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Body::from(body.unwrap_or_default()))
            .map_err(|error| other(error.to_string()))?;
        let answer = timeout(ANSWER_TIMEOUT, self.client.send(request))
            .await
            .map_err(|_| other("no answer"))?
            .map_err(|error| other(chain(&error)))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(refused(answer).await)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListHead {
    #[serde(deserialize_with = "nullable")]
    metadata: ListMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    #[serde(deserialize_with = "nullable")]
    resource_version: String,
    #[serde(rename = "continue", deserialize_with = "nullable")]
    token: String,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    sort: String,
    object: EventObject,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EventObject {
    #[serde(deserialize_with = "nullable")]
    metadata: EventMeta,
    #[serde(deserialize_with = "nullable")]
    code: u16,
    #[serde(deserialize_with = "nullable")]
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EventMeta {
    #[serde(deserialize_with = "nullable")]
    resource_version: String,
}

/// Passes one line on; an error is what the server says instead of an event.
fn pass_on(line: &[u8], hear: &mut impl FnMut(Heard<'_>) -> bool) -> Result<bool, Failed> {
    let read: Event =
        serde_json::from_slice(line).map_err(|error| other(format!("not an event: {error}")))?;
    let change = match read.sort.as_str() {
        "ADDED" | "MODIFIED" => Change::Applied,
        "DELETED" => Change::Deleted,
        "BOOKMARK" => Change::Bookmark,
        _ => {
            let status = StatusCode::from_u16(read.object.code).unwrap_or_default();
            return Err(Failed {
                failure: failure(status, None),
                status: read.object.code,
                message: shorten(&format!(
                    "the watch says {}: {}",
                    read.sort, read.object.message
                )),
            });
        }
    };
    Ok(hear(Heard::Event {
        change,
        version: &read.object.metadata.resource_version,
        line,
    }))
}

/// A path with its query.
struct Query(String, char);

impl Query {
    fn of(resource: &Resource) -> Self {
        let mut query = Self(resource.path.clone(), '?');
        query.add("fieldSelector", resource.field_selector.clone());
        query
    }

    fn add(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.0.push(self.1);
            self.0.push_str(key);
            self.0.push('=');
            for byte in value.bytes() {
                match byte {
                    b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        self.0.push(byte as char);
                    }
                    _ => self.0.push_str(&format!("%{byte:02X}")),
                }
            }
            self.1 = '&';
        }
    }

    fn path(self) -> String {
        self.0
    }
}

/// The next piece of a body; `None` at its end.
async fn piece(body: &mut Body, longest: Duration) -> Result<Option<Bytes>, Failed> {
    loop {
        let frame = timeout(longest, body.frame())
            .await
            .map_err(|_| other("nothing came"))?;
        match frame {
            None => return Ok(None),
            Some(Ok(frame)) => {
                // Anything else is a trailer.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => return Err(other(format!("cut off: {}", chain(&error)))),
        }
    }
}

async fn whole(mut body: Body) -> Result<Vec<u8>, Failed> {
    let mut all = Vec::new();
    while let Some(bytes) = piece(&mut body, PIECE_TIMEOUT).await? {
        all.extend_from_slice(&bytes);
        if all.len() > MAX_ANSWER_BYTES {
            return Err(other("the answer is too long"));
        }
    }
    Ok(all)
}

async fn one<T: DeserializeOwned>(answer: Response<Body>) -> Result<T, Failed> {
    serde_json::from_slice(&whole(answer.into_body()).await?)
        .map_err(|error| other(format!("not understood: {error}")))
}

async fn refused(answer: Response<Body>) -> Failed {
    let status = answer.status();
    let retry_after = answer
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let said = whole(answer.into_body()).await.unwrap_or_default();
    let message = match serde_json::from_slice::<EventObject>(&said) {
        Ok(object) => object.message,
        Err(_) => String::from_utf8_lossy(&said).into_owned(),
    };
    Failed {
        failure: failure(status, retry_after),
        status: status.as_u16(),
        message: shorten(&format!("{status}: {message}")),
    }
}

fn failure(status: StatusCode, retry_after: Option<Duration>) -> Failure {
    match status {
        StatusCode::GONE => Failure::Gone,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Failure::Busy(retry_after)
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Forbidden,
        StatusCode::NOT_FOUND => Failure::Missing,
        _ => Failure::Other,
    }
}

fn other(message: impl AsRef<str>) -> Failed {
    Failed {
        failure: Failure::Other,
        status: 0,
        message: shorten(message.as_ref()),
    }
}

/// An error with its causes; those of the client name only the last step.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

fn shorten(message: &str) -> String {
    let end = (0..=message.len().min(MAX_MESSAGE_BYTES))
        .rev()
        .find(|at| message.is_char_boundary(*at))
        .unwrap_or_default();
    message[..end].trim().replace(char::is_control, " ")
}
