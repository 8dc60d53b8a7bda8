//! The cases of a real pre-forking server and real short-lived clients: nginx with four workers, curls in a shell's pipeline.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use weft_agent::calls::hooks::Mode;
use weft_agent::calls::{Calls, RING_BYTES, hooks::CallHooks};
use weft_wire::{Application, Half, Owner, Process, Role};

use crate::world::{Case, World, pair, patience, skip};

/// All of them.
pub const ALL: &[Case] = &[
    ("calls_nginx_workers_and_curls", |world| {
        served(world, Mode::Trampolines)
    }),
    ("calls_nginx_workers_and_curls_by_kprobes", |world| {
        served(world, Mode::Probes)
    }),
    ("nginx_without_call_hooks", without_call_hooks),
];

const WORKERS: usize = 4;
/// One listener for all workers, and one for each.
const PORTS: [u16; 2] = [8080, 8081];
const CURLS: usize = 12;

/// nginx, its files and its workers; ended when dropped.
struct Nginx {
    master: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // At once, and its workers with it.
        let master = nix::unistd::Pid::from_raw(self.master.id() as i32);
        let _ = nix::sys::signal::kill(master, nix::sys::signal::SIGTERM);
        let _ = self.master.wait();
    }
}

impl Nginx {
    /// Answers every request with the process id of the worker that answers. The case is skipped where it is not installed.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let mut places = String::new();
        for place in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            places += &format!("{place}_temp_path {path}/{place};\n");
        }
        let [shared, own] = PORTS;
        let config = format!(
            "user root; worker_processes {WORKERS}; daemon off; pid {path}/pid; error_log stderr crit;\n\
             events {{ worker_connections 64; accept_mutex off; }}\n\
             http {{ access_log off; {places} server {{\n\
             listen 127.0.0.1:{shared}; listen 127.0.0.1:{own} reuseport;\n\
             location / {{ return 200 \"$pid\\n\"; }} }} }}\n"
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("nginx");
        command.args(["-p", path, "-e", "stderr", "-c"]).arg(&file);
        let master = match command.stdin(Stdio::null()).spawn() {
            Ok(master) => master,
            Err(error) => skip(&format!("nginx does not start: {error}")),
        };
        let mut nginx = Self { master, _dir: dir };
        let deadline = Instant::now() + patience(Duration::from_secs(20));
        while nginx.workers().len() < WORKERS {
            assert_eq!(nginx.master.try_wait().unwrap(), None, "nginx has ended");
            assert!(Instant::now() < deadline, "nginx has no workers");
            std::thread::sleep(Duration::from_millis(10));
        }
        nginx
    }

    fn workers(&self) -> BTreeSet<u32> {
        let master = self.master.id();
        let children = format!("/proc/{master}/task/{master}/children");
        let text = fs::read_to_string(children).unwrap_or_default();
        text.split(' ').filter_map(|pid| pid.parse().ok()).collect()
    }
}

/// A shell that starts one curl after the other in a pipeline. Each one's port, and the worker that answered.
fn curls(port: u16) -> BTreeMap<u16, u32> {
    let script = format!(
        "for i in $(seq {CURLS}); do curl -s -m 60 -w '%{{local_port}}\\n' http://127.0.0.1:{port}/ | cat; done; true"
    );
    let mut shell = Command::new("sh")
        .args(["-c", &script])
        .env("HOME", "/nonexistent")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(shell.stdout.take().unwrap()).lines();
    let words: Vec<u32> = lines.map(|line| line.unwrap().parse().unwrap()).collect();
    assert!(shell.wait().unwrap().success());
    assert_eq!(words.len(), 2 * CURLS, "two lines of each curl: {words:?}");
    let pairs = words.chunks(2).map(|pair| (pair[1] as u16, pair[0]));
    pairs.collect()
}

fn process(owner: &Owner) -> &Process {
    owner.process.as_ref().expect("a process")
}

/// Calls `check` with client and server of each connection, and the worker that answered it.
fn each(
    halves: &[(Half, Owner)],
    answers: &BTreeMap<u16, u32>,
    check: impl Fn(&(Half, Owner), &(Half, Owner), u32),
) {
    for (port, worker) in answers {
        let (client, server) = pair(halves, SocketAddr::from(([127, 0, 0, 1], *port)));
        assert_eq!((client.0.role, server.0.role), (Role::Client, Role::Server));
        check(&client, &server, *worker);
    }
}

/// The worker that accepted is named, and each curl, though all of them were gone before anyone looked.
fn served(world: &mut World, mode: Mode) {
    world.watch();
    match CallHooks::attach_as(mode, RING_BYTES) {
        Ok(hooks) => world.capture().calls = Some(Calls::with(hooks)),
        Err(missing) => skip(&missing),
    }
    let nginx = Nginx::start();
    let mut answers = BTreeMap::new();
    for port in PORTS {
        answers.extend(curls(port));
    }
    let halves = world.finished(2 * CURLS * PORTS.len());
    let workers = nginx.workers();
    let mut pids = BTreeSet::new();
    each(&halves, &answers, |client, server, worker| {
        assert!(workers.contains(&worker));
        assert_eq!(process(&server.1).pid, worker, "the worker that answered");
        assert_eq!(process(&server.1).name, "nginx");
        assert_eq!(process(&server.1).parent, nginx.master.id());
        assert_eq!(server.1.sharers, []);
        let curl = process(&client.1);
        assert_eq!(
            (curl.name.as_str(), curl.parent_name.as_str()),
            ("curl", "sh")
        );
        assert!(
            curl.exe
                .as_deref()
                .is_some_and(|exe| exe.ends_with("/curl"))
        );
        let url = format!("http://127.0.0.1:{}/", client.0.remote.port());
        assert!(
            curl.args
                .as_deref()
                .is_some_and(|args| args.ends_with(&url))
        );
        assert_eq!(
            (client.0.application, server.0.application),
            (Application::Http1, Application::Http1)
        );
    });
    for (_, owner) in &halves {
        pids.insert(process(owner).pid);
    }
    let answered: BTreeSet<u32> = answers.values().copied().collect();
    assert!(answered.len() > 1, "more than one worker answered");
    assert_eq!(
        pids.len(),
        answered.len() + answers.len(),
        "each curl is another process"
    );
}

/// What the socket hooks can say alone: the process that listens, and the process that connected by its number and name.
fn without_call_hooks(world: &mut World) {
    world.watch();
    let nginx = Nginx::start();
    let answers = curls(PORTS[0]);
    let halves = world.finished(2 * CURLS);
    each(&halves, &answers, |client, server, _| {
        assert_eq!(process(&server.1).pid, nginx.master.id());
        assert_eq!(process(&client.1).name, "curl");
    });
}
