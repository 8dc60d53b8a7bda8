//! How a federator says that it is well, and that it is not: answers, `/metrics`, `/healthz`, and the alerts that are shipped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use weft_federator::health::TROUBLES;
use weft_federator::testing::{Agent, World, batch_of, half, local};
use weft_wire::control::AgentStatus;
use weft_wire::exposition;
use weft_wire::query::{FederatorHealth, Question};
use weft_wire::{HalfState, Role};

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(60);

fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// A free TCP port; somebody else could take it before the federator does, which a test would show.
fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

async fn health(world: &World, address: &str, window_s: u32) -> FederatorHealth {
    let operator = world.operator(address).await.unwrap();
    let asked = operator.ask(local(), Question::HealthSince { window_s });
    asked.await.unwrap().unwrap().health.remove(0)
}

async fn send(agent: &mut Agent, seq: u64, role: Role, numbers: std::ops::Range<u32>) {
    let halves = numbers
        .map(|number| half(agent.key, number, role, HalfState::Closed))
        .collect();
    agent.send(seq, &batch_of("load", halves)).await.unwrap();
    agent.acknowledged(seq).await.unwrap();
}

/// A federator with `/metrics`, two agents and 20 stitched connections.
async fn talked_to(
    world: &World,
    metrics: &str,
) -> (weft_federator::run::Federator, String, [Agent; 2]) {
    let mut text = world.federator("fed-a", "127.0.0.1:0", &[]).unwrap();
    text.push_str(&format!("[metrics]\nlisten = {metrics:?}\n"));
    let config = weft_federator::config::Config::parse(&text).unwrap();
    let federator = weft_federator::run::Federator::start(config).await.unwrap();
    let address = federator.address().unwrap().to_string();
    let mut client = world.agent("fed-a", &address, "a1").await.unwrap();
    let mut server = world.agent("fed-a", &address, "a2").await.unwrap();
    send(&mut client, 1, Role::Client, 1..21).await;
    send(&mut server, 1, Role::Server, 1..21).await;
    client
        .report(&AgentStatus {
            now: weft_federator::clock::now(),
            kernel_dropped: 3,
            spool_failing: true,
            ..AgentStatus::default()
        })
        .await
        .unwrap();
    world.connections(&address).await.unwrap();
    while !health(world, &address, 60).await.agents[0].spool_failing {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (federator, address, [client, server])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_counter_is_in_the_metrics_and_every_alert_is_about_one() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let metrics = free_port();
    let (_federator, address, _agents) = talked_to(&world, &metrics).await;
    let told = health(&world, &address, 60).await;
    let (status, body) = get(&metrics, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    let read = exposition::read(&body).unwrap_or_else(|wrong| panic!("{wrong}\n{body}"));
    let value = |name: &str| read[&format!("weft_federator_{name}")].values[""];
    assert_eq!(value("stitched_total"), 20.0);
    assert_eq!(value("ready"), 1.0);
    assert_eq!(value("agents_spool_failing"), 1.0);
    assert_eq!(value("agents_connected"), 2.0);
    let events = &read["weft_federator_events_total"].values;
    for name in told.counters.keys() {
        let label = format!("event={name:?}");
        assert!(events.contains_key(&label), "{name} is in weft health only");
    }
    for (code, _) in TROUBLES {
        let label = format!("code={code:?}");
        assert_eq!(read["weft_federator_trouble"].values[&label], 0.0);
    }
    // The alerts: of metrics that exist, of events that are counted, of troubles there are.
    let rules =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/prometheus/weft.rules.yml");
    let rules = std::fs::read_to_string(rules).unwrap();
    let named: BTreeSet<&str> = rules
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("weft_federator_"))
        .collect();
    assert!(named.len() > 10, "{named:?}");
    // There without peers, and before anything was matched, as help alone.
    let absent = [
        "weft_federator_match_ratio",
        "weft_federator_exchange_delay_seconds",
    ];
    for name in named {
        let known = read.contains_key(name) || absent.contains(&name);
        assert!(known, "an alert asks for {name}");
    }
    let labelled = |start: &str| -> Vec<String> {
        let pieces = rules.split(start).skip(1);
        let alternatives = pieces.flat_map(|piece| piece.split('"').next().unwrap().split('|'));
        alternatives.map(str::to_owned).collect()
    };
    for event in [labelled("event=~\""), labelled("event=\"")].concat() {
        assert!(
            told.counters.contains_key(&event),
            "an alert asks for {event}"
        );
    }
    for code in labelled("code=\"") {
        assert!(TROUBLES.iter().any(|(known, _)| **known == code), "{code}");
    }
    assert_eq!(
        get(&metrics, "/healthz"),
        ("HTTP/1.1 200 OK".into(), "ok\n".into())
    );
    assert_eq!(get(&metrics, "/other").0, "HTTP/1.1 404 Not Found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_has_what_came_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let (_federator, address, _agents) = talked_to(&world, &free_port()).await;
    // The first sample is of the start: whatever window is asked about, it is of everything until there are more.
    let told = health(&world, &address, 600).await;
    let window = told.window.unwrap();
    assert!(window.seconds <= told.uptime_s + 1);
    assert_eq!((window.halves, window.stitched), (40, 20));
    assert_eq!(window.match_ratio, Some(1.0));
    assert_eq!(window.counters.len(), told.counters.len());
    let lost: Vec<_> = told.agents.iter().map(|a| a.lost_in_window).collect();
    assert_eq!(lost.iter().flatten().sum::<u64>(), window.lost);
    assert_eq!(window.lost, 3);
    let operator = world.operator(&address).await.unwrap();
    let plain = operator
        .ask(local(), Question::Health)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(plain.health[0].window, None);
    assert_eq!(plain.health[0].agents[0].lost_in_window, None);
}

/// A federator whose data is on a small disk of its own.
struct OnSmallDisk {
    child: Child,
    disk: PathBuf,
}

impl OnSmallDisk {
    fn start(config: &Path, data: &Path) -> Self {
        std::fs::create_dir_all(data).unwrap();
        // A mount namespace of its own; whoever is not root takes a user namespace too.
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if !nix::unistd::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        let mut child = command
            .args([
                "sh",
                "-c",
                "mount -t tmpfs -o size=64m tmpfs \"$1\" && exec \"$2\" run --config \"$3\"",
                "sh",
            ])
            .arg(data)
            .arg(env!("CARGO_BIN_EXE_weft-federator"))
            .arg(config)
            .env("WEFT_LOG", "info")
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        while !said.contains("listening") {
            let line = lines.next();
            let line = line.unwrap_or_else(|| panic!("it ended before it listened: {said}"));
            said.push_str(&(line.unwrap() + "\n"));
        }
        // Somebody must read what it says, or it would wait.
        std::thread::spawn(move || lines.for_each(drop));
        let data = data.strip_prefix("/").unwrap();
        let disk = Path::new("/proc")
            .join(child.id().to_string())
            .join("root")
            .join(data);
        Self { child, disk }
    }

    fn filler(&self) -> PathBuf {
        self.disk.join("filler")
    }
}

impl Drop for OnSmallDisk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_nothing_acknowledged_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path()).unwrap();
    let bound = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = bound.local_addr().unwrap().to_string();
    drop(bound);
    let metrics = free_port();
    let mut text = world.federator("fed-a", &address, &[]).unwrap();
    text.push_str(&format!(
        "[journal]\nmin_free_bytes = 16777216\n[metrics]\nlisten = {metrics:?}\n"
    ));
    let config = folder.path().join("federator.toml");
    std::fs::write(&config, text).unwrap();
    let federator = OnSmallDisk::start(&config, &folder.path().join("data-fed-a"));
    let mut client = world.agent("fed-a", &address, "a1").await.unwrap();
    send(&mut client, 1, Role::Client, 1..101).await;
    assert_eq!(get(&metrics, "/healthz").0, "HTTP/1.1 200 OK");

    // What is acknowledged is stored as well: a question waits for that.
    assert_eq!(
        world.connections(&address).await.unwrap().connections.len(),
        100
    );

    // As disks fill, not from one moment to the next: below what is to be left, and then to the last byte.
    let mut filler = std::fs::File::create(federator.filler()).unwrap();
    let free = || {
        let stat = nix::sys::statvfs::statvfs(&federator.disk).unwrap();
        stat.blocks_available() * stat.fragment_size()
    };
    while free() > 8 << 20 {
        filler.write_all(&[7; 65_536]).unwrap();
    }
    wait_until(|| get(&metrics, "/healthz").0 == "HTTP/1.1 503 Service Unavailable");
    while filler.write_all(&[7; 65_536]).is_ok() {}
    drop(filler);
    let full = |told: &FederatorHealth| told.troubles.iter().any(|t| t.code == "disk-full");
    let said = || get(&metrics, "/healthz").1;
    wait_until(|| said().starts_with("disk-full: 0 MB of disk left"));
    let halves = vec![half(client.key, 200, Role::Client, HalfState::Closed)];
    let refused = async {
        client.send(2, &batch_of("load", halves)).await?;
        client.acknowledged(2).await
    };
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.contains("the disk is full"), "{refused}");
    let told = health(&world, &address, 60).await;
    assert!(full(&told), "{:?}", told.troubles);
    assert!(told.troubles[0].failing);
    assert_eq!(told.disk_free_bytes, 0);
    assert!(told.window.unwrap().counters["disk_full_refusals"] > 0);
    let read = exposition::read(&get(&metrics, "/metrics").1).unwrap();
    assert_eq!(read["weft_federator_ready"].values[""], 0.0);
    assert_eq!(
        read["weft_federator_trouble"].values["code=\"disk-full\""],
        1.0
    );

    // Room again: it goes on by itself, with everything.
    std::fs::remove_file(federator.filler()).unwrap();
    wait_until(|| get(&metrics, "/healthz").0 == "HTTP/1.1 200 OK");
    let mut client = world.agent("fed-a", &address, "a1").await.unwrap();
    let mut server = world.agent("fed-a", &address, "a2").await.unwrap();
    assert_eq!(
        client.durable_seq, 1,
        "what was not acknowledged was not kept"
    );
    send(&mut client, 2, Role::Client, 101..121).await;
    send(&mut server, 1, Role::Server, 1..121).await;
    let answer = world.connections(&address).await.unwrap();
    assert_eq!(answer.connections.len(), 120);
    assert_eq!(answer.completeness.halves.matched, 240);
    assert!(!full(&health(&world, &address, 60).await));
}

fn wait_until(mut reached: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !reached() {
        assert!(begun.elapsed() < PATIENCE, "it took too long");
        std::thread::sleep(Duration::from_millis(100));
    }
}
