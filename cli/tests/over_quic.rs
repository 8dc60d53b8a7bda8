//! The program itself against a federator's session layer on loopback: what each way of failing looks like.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::*;
use tempfile::TempDir;
use tokio::sync::mpsc;
use weft_transport::pki::{self, Validity};
use weft_transport::{FrameSender, Identity, Listener, PeerRole, Session, SpiffeId};
use weft_wire::Timestamp;
use weft_wire::control::CloseCode;
use weft_wire::query::{QueryError, Request, Response};

const DEADLINE: Duration = Duration::from_secs(20);

/// What the federator does with a request.
#[derive(Clone)]
enum Play {
    /// Answers with these pieces.
    Answer(Vec<Response>),
    /// Answers with these pieces and closes.
    Close(Vec<Response>, CloseCode),
    /// Answers with these pieces and says nothing more.
    Stall(Vec<Response>),
}

struct Mesh {
    dir: TempDir,
    address: SocketAddr,
    /// A message a request that was taken and, as far as it will be, answered.
    taken: mpsc::Receiver<Request>,
    /// Serves while it lives.
    _runtime: tokio::runtime::Runtime,
}

impl Mesh {
    fn new(play: Play) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        pki::init_ca(&ca, "weft.example", Validity::days_from(now(), 1)).unwrap();
        let identity = issue(&ca, &dir.path().join("fed"), PeerRole::Federator, "fed-a");
        issue(&ca, &dir.path().join("me"), PeerRole::Operator, "ana");
        issue(&ca, &dir.path().join("agent"), PeerRole::Agent, "node-a1");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let guard = runtime.enter();
        let listener = Listener::bind(
            "127.0.0.1:0".parse().unwrap(),
            &Identity::load(&identity).unwrap(),
        )
        .unwrap();
        drop(guard);
        let address = listener.local_addr().unwrap();
        let (sender, taken) = mpsc::channel(16);
        runtime.spawn(async move {
            while let Some(session) = listener.accept().await {
                tokio::spawn(serve(session, play.clone(), sender.clone()));
            }
        });
        Self {
            dir,
            address,
            taken,
            _runtime: runtime,
        }
    }

    fn weft(&self, identity: &str, typed: &str) -> Command {
        command(
            &self.address.to_string(),
            &self.dir.path().join(identity),
            typed,
        )
    }

    fn run(&self, typed: &str) -> Output {
        self.weft("me", typed).output().unwrap()
    }
}

async fn serve(session: Session, play: Play, taken: mpsc::Sender<Request>) {
    if session
        .require_role(&[PeerRole::Operator, PeerRole::Federator])
        .is_err()
    {
        return;
    }
    while let Ok((mut sender, mut receiver)) = session.accept_bi().await {
        let Ok(request) = receiver.expect::<Request>(DEADLINE).await else {
            return;
        };
        match &play {
            Play::Answer(pieces) => {
                say(&mut sender, pieces).await;
                sender.finish();
                let _ = sender.delivered(DEADLINE).await;
            }
            Play::Close(pieces, code) => {
                say(&mut sender, pieces).await;
                session.close(*code, "as the test wants: that takes admin");
            }
            Play::Stall(pieces) => {
                say(&mut sender, pieces).await;
                let _ = taken.send(request).await;
                // Keeps the stream open.
                let _ = session.closed().await;
                return;
            }
        }
        let _ = taken.send(request).await;
    }
}

async fn say(sender: &mut FrameSender, pieces: &[Response]) {
    for piece in pieces {
        let _ = sender.send(piece, DEADLINE).await;
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    Timestamp(i64::try_from(since.as_micros()).unwrap())
}

fn issue(ca: &Path, out: &Path, role: PeerRole, name: &str) -> PathBuf {
    let id = SpiffeId::new(&pki::ca_domain(ca).unwrap(), "use1", role, name).unwrap();
    pki::issue(ca, out, &id, Validity::days_from(now(), 1)).unwrap();
    out.to_owned()
}

fn command(address: &str, identity: &Path, typed: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(typed.split_whitespace()).env_clear();
    command
        .env("WEFT_FEDERATOR", address)
        .env("WEFT_IDENTITY", identity);
    command.stdin(Stdio::null());
    command
}

fn three() -> Response {
    Response::Connections(vec![hairpin(), outward(), ambiguous()])
}

fn failed(output: &Output, code: i32, error: &str) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{err}");
    let lines: Vec<&str> = err.lines().collect();
    assert!(lines.len() == 4, "{err}");
    for (line, label) in lines
        .iter()
        .zip(["error: ", "cause: ", "hint:  ", "more:  weft help "])
    {
        assert!(line.starts_with(label), "{err}");
    }
    assert!(lines[3].ends_with(error), "{err}");
}

#[test]
fn an_answer_in_pieces() {
    let mut mesh = Mesh::new(Play::Answer(vec![three(), three(), end()]));
    let output = mesh.run("connections --format ndjson");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 6);
    assert_eq!(
        mesh.taken.blocking_recv().unwrap().version,
        weft_wire::control::PROTOCOL_VERSION
    );
}

#[test]
fn watching_keeps_its_session() {
    let mesh = Mesh::new(Play::Answer(vec![three(), end()]));
    let mut child = mesh
        .weft("me", "connections --watch=500ms")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        assert!(
            lines
                .next()
                .unwrap()
                .unwrap()
                .starts_with("{\"schema\":\"weft.connections/1\"")
        );
    }
    interrupt(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn nobody_there() {
    let mesh = Mesh::new(Play::Answer(vec![]));
    let me = mesh.dir.path().join("me");
    // Bound, so that nobody else takes the port, and never read.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    failed(
        &command(&address, &me, "connections").output().unwrap(),
        2,
        "E-REACH",
    );
    failed(
        &command("nowhere.invalid:7443", &me, "connections")
            .output()
            .unwrap(),
        2,
        "E-REACH",
    );
    let health = command("nowhere.invalid:7443", &me, "health")
        .output()
        .unwrap();
    failed(&health, 2, "E-REACH");
    assert_eq!(
        String::from_utf8(health.stdout).unwrap(),
        "FAIL: federator nowhere.invalid:7443 does not answer\n"
    );
}

#[test]
fn certificates_of_another_ca_or_none() {
    let mesh = Mesh::new(Play::Answer(vec![three(), end()]));
    let stranger = Mesh::new(Play::Answer(vec![]));
    let address = mesh.address.to_string();
    failed(
        &command(&address, &stranger.dir.path().join("me"), "connections")
            .output()
            .unwrap(),
        2,
        "E-TRUST",
    );
    failed(
        &command(&address, &mesh.dir.path().join("nothing"), "connections")
            .output()
            .unwrap(),
        2,
        "E-IDENTITY",
    );
    failed(
        &command(&address, &mesh.dir.path().join("nothing"), "health")
            .output()
            .unwrap(),
        3,
        "E-IDENTITY",
    );
}

#[test]
fn another_role() {
    let mesh = Mesh::new(Play::Answer(vec![three(), end()]));
    failed(
        &mesh.weft("agent", "connections").output().unwrap(),
        2,
        "E-ROLE",
    );
}

#[test]
fn who_is_shut_out_hears_which_certificate_it_takes() {
    let mesh = Mesh::new(Play::Close(vec![three()], CloseCode::Role));
    let output = mesh.run("connections");
    failed(&output, 2, "E-ROLE");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("--role admin"), "{text}");
}

#[test]
fn every_way_of_hanging_up() {
    for (code, error) in [
        (CloseCode::Version, "E-VERSION"),
        (CloseCode::Role, "E-ROLE"),
        (CloseCode::Draining, "E-BUSY"),
        (CloseCode::Limit, "E-BUSY"),
        (CloseCode::Superseded, "E-BUSY"),
        (CloseCode::Internal, "E-LOST"),
        (CloseCode::Malformed, "E-LOST"),
        (CloseCode::Done, "E-LOST"),
    ] {
        let mesh = Mesh::new(Play::Close(vec![three()], code));
        failed(&mesh.run("connections"), 2, error);
    }
}

#[test]
fn an_answer_to_another_question_and_one_without_an_end() {
    failed(
        &Mesh::new(Play::Answer(vec![three(), end()])).run("report hairpins"),
        2,
        "E-PROTOCOL",
    );
    failed(
        &Mesh::new(Play::Answer(vec![three()])).run("connections"),
        2,
        "E-LOST",
    );
}

#[test]
fn the_federators_own_words() {
    let error = QueryError {
        code: "E-SQL".into(),
        what: "not accepted".into(),
        cause: "a \x1b[31mtypo".into(),
        hint: "DESCRIBE".into(),
    };
    let mesh = Mesh::new(Play::Answer(vec![Response::Error(error)]));
    let output = mesh.run("sql SELEC");
    failed(&output, 2, "E-SQL");
    assert!(!output.stderr.contains(&0x1b));
}

#[test]
fn interrupted_while_waiting() {
    let mut mesh = Mesh::new(Play::Stall(vec![three()]));
    let child = mesh
        .weft("me", "connections --format ndjson")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    mesh.taken.blocking_recv().unwrap();
    interrupt(child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .starts_with("interrupted: ")
    );
}

#[test]
fn a_reader_that_leaves() {
    let many = Response::Connections(vec![hairpin(); 2_000]);
    let mesh = Mesh::new(Play::Answer(vec![many, end()]));
    let mut child = mesh
        .weft("me", "connections --json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

fn interrupt(pid: u32) {
    assert!(
        Command::new("kill")
            .args(["-INT", &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}
