//! An API server that answers list and watch over HTTP/1.1 as the real one does, and fails as it can: by order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the next request of a kind meets instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 410 as HTTP status.
    GoneStatus,
    /// 200, then an `ERROR` event with code 410.
    GoneEvent,
    /// 429 with this `Retry-After`.
    Busy(u64),
    /// 500 with words that are no JSON.
    Broken,
    /// 403.
    Forbidden,
    /// The connection is closed without an answer.
    Hangup,
    /// So many bytes of the body, then the connection is cut.
    Cut(usize),
    /// A watch that ends at once, in order.
    Empty,
}

#[derive(Default)]
pub struct State {
    /// By resource path: objects by uid with their version, in order of creation.
    objects: BTreeMap<String, Vec<Value>>,
    /// Path and uid of each.
    known: std::collections::HashSet<String>,
    /// Version, path, type, object.
    events: Vec<(u64, String, &'static str, Value)>,
    version: u64,
    /// Versions up to this are forgotten.
    compacted: u64,
    list_faults: VecDeque<Fault>,
    watch_faults: VecDeque<Fault>,
    /// Bytes of lists sent.
    pub list_bytes: usize,
    /// Every request line, in order.
    pub requests: Vec<String>,
    /// Most connections that carried a watch at a time.
    pub watches: usize,
    /// A path that the server does not have.
    pub missing: Option<String>,
    /// Sends everything, whatever is selected.
    pub ignores_selectors: bool,
    /// So many writes meet a conflict.
    pub conflicts: u32,
    /// Writes whose text has this in it are never answered, and change nothing.
    pub hangs: Option<String>,
}

#[derive(Clone)]
pub struct Server {
    pub state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    cut: watch::Sender<u64>,
    pub address: std::net::SocketAddr,
}

impl Server {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            state: Arc::new(Mutex::new(State {
                version: 1_000,
                ..State::default()
            })),
            changed: watch::Sender::new(0),
            cut: watch::Sender::new(0),
            address: listener.local_addr().unwrap(),
        };
        let serving = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = serving.clone();
                tokio::spawn(async move {
                    let _ = server.serve(stream).await;
                });
            }
        });
        server
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        });
        std::fs::write(file.path(), text.to_string()).unwrap();
        file
    }

    /// Makes or changes an object.
    pub fn put(&self, path: &str, object: impl serde::Serialize) {
        let mut object = serde_json::to_value(object).unwrap();
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let uid = format!("{path} {}", object["metadata"]["uid"]);
        let is_new = state.known.insert(uid);
        let all = state.objects.entry(path.to_owned()).or_default();
        let same = |other: &&mut Value| other["metadata"]["uid"] == object["metadata"]["uid"];
        let kind = if is_new {
            all.push(object.clone());
            "ADDED"
        } else {
            *all.iter_mut().find(same).unwrap() = object.clone();
            "MODIFIED"
        };
        state.events.push((version, path.to_owned(), kind, object));
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn delete(&self, path: &str, uid: &str) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let all = state.objects.get_mut(path).unwrap();
        let at = all
            .iter()
            .position(|object| object["metadata"]["uid"] == uid)
            .unwrap();
        let mut object = all.remove(at);
        state
            .known
            .remove(&format!("{path} {}", object["metadata"]["uid"]));
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state
            .events
            .push((version, path.to_owned(), "DELETED", object));
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Sends a bookmark to every watch.
    pub fn bookmark(&self, path: &str) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {
            "resourceVersion": version.to_string(), "creationTimestamp": null}, "spec": {"containers": null}, "status": {}});
        state
            .events
            .push((version, path.to_owned(), "BOOKMARK", object));
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Forgets every version up to now.
    pub fn compact(&self) {
        let mut state = self.state.lock().unwrap();
        state.compacted = state.version;
        state.events.clear();
    }

    /// Cuts every watch that stands.
    pub fn cut_watches(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    pub fn fail_list(&self, fault: Fault) {
        self.state.lock().unwrap().list_faults.push_back(fault);
    }

    pub fn fail_watch(&self, fault: Fault) {
        self.state.lock().unwrap().watch_faults.push_back(fault);
    }

    pub fn requests(&self, containing: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let fits = |line: &&String| line.contains(containing);
        state.requests.iter().filter(fits).cloned().collect()
    }

    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                    break at + 4;
                }
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Ok(());
                }
            };
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase()
                        .strip_prefix("content-length:")
                        .map(|n| n.trim().parse::<usize>().unwrap())
                })
                .unwrap_or(0);
            while buffer.len() < end + length {
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Ok(());
                }
            }
            let body = buffer[end..end + length].to_vec();
            buffer.drain(..end + length);
            assert!(
                head.to_ascii_lowercase()
                    .contains("authorization: bearer secret"),
                "{head}"
            );
            let mut words = head.split(' ');
            let (method, target) = (words.next().unwrap(), words.next().unwrap());
            self.state
                .lock()
                .unwrap()
                .requests
                .push(format!("{method} {target}"));
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let query: BTreeMap<String, String> = query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(key, value)| {
                    (
                        key.to_owned(),
                        value.replace("%3D", "=").replace("%2F", "/"),
                    )
                })
                .collect();
            let go_on = match (method, query.contains_key("watch")) {
                ("GET", true) => self.watch(&mut stream, path, &query).await?,
                ("GET", false) if path.contains("/leases/") => {
                    self.object(&mut stream, path).await?
                }
                ("GET", false) => self.list(&mut stream, path, &query).await?,
                _ => self.write(&mut stream, method, path, &body).await?,
            };
            if !go_on {
                return Ok(());
            }
        }
    }

    async fn fault(
        &self,
        stream: &mut TcpStream,
        fault: Fault,
        body: &str,
    ) -> std::io::Result<bool> {
        match fault {
            Fault::GoneStatus => {
                let said = status(410, "Expired", "The provided continue parameter is too old");
                answer(stream, "410 Gone", "", &said).await
            }
            Fault::GoneEvent => {
                let event = json!({"type": "ERROR", "object": serde_json::from_str::<Value>(&status(410, "Expired", "too old resource version: 1 (2)")).unwrap()});
                answer(stream, "200 OK", "", &format!("{event}\n")).await
            }
            Fault::Busy(seconds) => {
                let said = status(
                    429,
                    "TooManyRequests",
                    "the server has received too many requests",
                );
                answer(
                    stream,
                    "429 Too Many Requests",
                    &format!("Retry-After: {seconds}\r\n"),
                    &said,
                )
                .await
            }
            Fault::Broken => answer(stream, "500 Internal Server Error", "", "<html>oops").await,
            Fault::Forbidden => {
                let said = status(
                    403,
                    "Forbidden",
                    "pods is forbidden: User \"x\" cannot list resource \"pods\"",
                );
                answer(stream, "403 Forbidden", "", &said).await
            }
            Fault::Hangup => Ok(false),
            Fault::Cut(bytes) => {
                start_chunks(stream).await?;
                chunk(stream, &body.as_bytes()[..bytes.min(body.len())]).await?;
                Ok(false)
            }
            Fault::Empty => answer(stream, "200 OK", "", "").await,
        }
    }

    async fn list(
        &self,
        stream: &mut TcpStream,
        path: &str,
        query: &BTreeMap<String, String>,
    ) -> std::io::Result<bool> {
        let missing = self.state.lock().unwrap().missing.as_deref() == Some(path);
        if missing {
            return answer(stream, "404 Not Found", "", "404 page not found\n").await;
        }
        let (fault, body) = {
            let mut state = self.state.lock().unwrap();
            let node = query
                .get("fieldSelector")
                .filter(|_| !state.ignores_selectors)
                .and_then(|selector| selector.strip_prefix("spec.nodeName="));
            let objects: Vec<&Value> = state
                .objects
                .get(path)
                .into_iter()
                .flatten()
                .filter(|object| node.is_none_or(|node| object["spec"]["nodeName"] == node))
                .collect();
            let (version, from) = match query.get("continue") {
                Some(token) => {
                    let (version, from) = token.split_once('.').unwrap();
                    (version.parse().unwrap(), from.parse().unwrap())
                }
                None => (state.version, 0),
            };
            let limit = query
                .get("limit")
                .map_or(usize::MAX, |limit| limit.parse().unwrap());
            let to = objects.len().min(from + limit.min(objects.len()));
            let mut metadata = json!({"resourceVersion": version.to_string()});
            if to < objects.len() {
                metadata["continue"] = format!("{version}.{to}").into();
                metadata["remainingItemCount"] = (objects.len() - to).into();
            }
            let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": &objects[from..to]});
            let fault = match state.list_faults.pop_front() {
                None if query.contains_key("continue") && version < state.compacted => {
                    Some(Fault::GoneStatus)
                }
                fault => fault,
            };
            let list = list.to_string();
            state.list_bytes += list.len();
            (fault, list)
        };
        match fault {
            Some(fault) => self.fault(stream, fault, &body).await,
            None => answer(stream, "200 OK", "", &body).await,
        }
    }

    async fn watch(
        &self,
        stream: &mut TcpStream,
        path: &str,
        query: &BTreeMap<String, String>,
    ) -> std::io::Result<bool> {
        let mut from: u64 = query["resourceVersion"].parse().unwrap();
        let fault = {
            let mut state = self.state.lock().unwrap();
            match state.watch_faults.pop_front() {
                None if from < state.compacted => Some(Fault::GoneEvent),
                fault => fault,
            }
        };
        if let Some(fault) = fault {
            let events = self.events(path, query, from).1;
            return self.fault(stream, fault, &events).await;
        }
        let (mut changed, mut cut) = (self.changed.subscribe(), self.cut.subscribe());
        self.state.lock().unwrap().watches += 1;
        start_chunks(stream).await?;
        let end = tokio::time::sleep(Duration::from_secs(
            query["timeoutSeconds"].parse().unwrap(),
        ));
        tokio::pin!(end);
        loop {
            let (last, events) = self.events(path, query, from);
            if !events.is_empty() {
                from = last;
                chunk(stream, events.as_bytes()).await?;
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = cut.changed() => return Ok(false),
                () = &mut end => {
                    stream.write_all(b"0\r\n\r\n").await?;
                    return Ok(true);
                }
            }
        }
    }

    fn events(&self, path: &str, query: &BTreeMap<String, String>, from: u64) -> (u64, String) {
        let state = self.state.lock().unwrap();
        let node = query
            .get("fieldSelector")
            .and_then(|selector| selector.strip_prefix("spec.nodeName="));
        let (mut last, mut lines) = (from, String::new());
        for (version, of, kind, object) in &state.events {
            let wanted =
                *kind == "BOOKMARK" || node.is_none_or(|node| object["spec"]["nodeName"] == node);
            if *version > from && of == path && wanted {
                last = *version;
                lines += &format!("{}\n", json!({"type": kind, "object": object}));
            }
        }
        (last, lines)
    }

    async fn object(&self, stream: &mut TcpStream, path: &str) -> std::io::Result<bool> {
        let found = {
            let state = self.state.lock().unwrap();
            state
                .objects
                .get(path)
                .and_then(|all| all.first())
                .map(Value::to_string)
        };
        match found {
            Some(object) => answer(stream, "200 OK", "", &object).await,
            None => {
                answer(
                    stream,
                    "404 Not Found",
                    "",
                    &status(404, "NotFound", "not found"),
                )
                .await
            }
        }
    }

    /// Creates and replaces; a replacement that does not name the version there is meets a conflict.
    async fn write(
        &self,
        stream: &mut TcpStream,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> std::io::Result<bool> {
        let mut object: Value = serde_json::from_slice(body).unwrap();
        let hangs = self.state.lock().unwrap().hangs.clone();
        if hangs.is_some_and(|text| object.to_string().contains(&text)) {
            return std::future::pending().await;
        }
        let said = {
            let mut state = self.state.lock().unwrap();
            let name = object["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let at = if method == "POST" {
                format!("{path}/{name}")
            } else {
                path.to_owned()
            };
            let old = state.objects.get(&at).and_then(|all| all.first()).cloned();
            let conflict = match (&old, method) {
                (Some(_), "POST") => true,
                (Some(old), _) => {
                    old["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"]
                }
                (None, "POST") => false,
                (None, _) => true,
            };
            if conflict || state.conflicts > 0 {
                state.conflicts = state.conflicts.saturating_sub(1);
                None
            } else {
                state.version += 1;
                object["metadata"]["resourceVersion"] = state.version.to_string().into();
                state.objects.insert(at, vec![object.clone()]);
                Some(object.to_string())
            }
        };
        match said {
            Some(object) => answer(stream, "200 OK", "", &object).await,
            None => {
                answer(
                    stream,
                    "409 Conflict",
                    "",
                    &status(409, "Conflict", "the object has been modified"),
                )
                .await
            }
        }
    }
}

fn status(code: u16, reason: &str, message: &str) -> String {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code})
    .to_string()
}

async fn start_chunks(stream: &mut TcpStream) -> std::io::Result<()> {
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
}

async fn chunk(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    stream
        .write_all(format!("{:x}\r\n", bytes.len()).as_bytes())
        .await?;
    stream.write_all(bytes).await?;
    stream.write_all(b"\r\n").await
}

async fn answer(
    stream: &mut TcpStream,
    status: &str,
    headers: &str,
    body: &str,
) -> std::io::Result<bool> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    for piece in body.as_bytes().chunks(8_000) {
        chunk(stream, piece).await?;
    }
    stream.write_all(b"0\r\n\r\n").await?;
    Ok(true)
}
