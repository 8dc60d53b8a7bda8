//! The case of TLS: a real client greets a real server by its name, and nobody has looked anything up.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use weft_agent::calls::hooks::{CallHooks, Mode};
use weft_agent::calls::{Calls, RING_BYTES};
use weft_wire::{Application, NameSource, Role};

use crate::world::{Case, World, loopback, patience, skip};

/// All of them.
pub const ALL: &[Case] = &[
    ("calls_tls_greeting_names_the_connection", |world| {
        greeting(world, Mode::Trampolines)
    }),
    (
        "calls_tls_greeting_names_the_connection_by_kprobes",
        |world| greeting(world, Mode::Probes),
    ),
];

/// The servers' port, in hexadecimal as the kernel lists it.
const PORT: (u16, &str) = (8443, ":20FB");
const NAME: &str = "shop.example";

fn openssl(dir: &Path) -> Command {
    let mut command = Command::new("openssl");
    // What the machine has configured does not count.
    command.env("OPENSSL_CONF", "/dev/null").current_dir(dir);
    command.stdin(Stdio::null());
    command
}

fn succeeded(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// `openssl s_server` on a loopback address, with a certificate of its own making; ended when dropped.
struct Server(Child);

impl Server {
    fn start(dir: &Path, family: u8) -> Self {
        let address = SocketAddr::new(loopback(family), PORT.0).to_string();
        let mut command = openssl(dir);
        command.args(["s_server", "-www", "-cert", "cert.pem", "-key", "key.pem"]);
        command.args(["-accept", &address, if family == 4 { "-4" } else { "-6" }]);
        let mut server = Self(command.stdout(Stdio::null()).spawn().unwrap());
        let table = format!("/proc/self/net/tcp{}", if family == 4 { "" } else { "6" });
        let deadline = Instant::now() + patience(Duration::from_secs(20));
        // Asked of the kernel: a connection to try would be one more.
        while !fs::read_to_string(&table).unwrap().contains(PORT.1) {
            assert_eq!(server.0.try_wait().unwrap(), None, "openssl has ended");
            assert!(Instant::now() < deadline, "openssl does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Both ends know that it is TLS; the client's has the name that it greeted its server by, and none when it gave none.
fn greeting(world: &mut World, mode: Mode) {
    world.watch();
    match CallHooks::attach_as(mode, RING_BYTES) {
        Ok(hooks) => world.capture().calls = Some(Calls::with(hooks)),
        Err(missing) => skip(&missing),
    }
    let dir = tempfile::tempdir().unwrap();
    let mut certificate = openssl(dir.path());
    certificate.args([
        "req", "-x509", "-nodes", "-newkey", "ec", "-subj", "/CN=lab",
    ]);
    certificate.args(["-pkeyopt", "ec_paramgen_curve:P-256"]);
    certificate.args(["-keyout", "key.pem", "-out", "cert.pem"]);
    match certificate.output() {
        Ok(output) => succeeded(&output),
        Err(error) => skip(&format!("openssl does not start: {error}")),
    }
    let mut greeted = Vec::new();
    for family in [4, 6] {
        let _server = Server::start(dir.path(), family);
        let address = SocketAddr::new(loopback(family), PORT.0).to_string();
        for name in [Some(NAME), None] {
            let mut client = openssl(dir.path());
            client.args(["s_client", "-connect", &address]);
            match name {
                Some(name) => client.args(["-servername", name]),
                None => client.arg("-noservername"),
            };
            // Greets, hears, and says goodbye at the end of its input.
            succeeded(&client.output().unwrap());
            greeted.push((loopback(family), name));
        }
    }
    let halves = world.finished(2 * greeted.len());
    assert_eq!(halves.len(), 2 * greeted.len());
    let mut told: Vec<(IpAddr, Option<String>)> = Vec::new();
    for (half, owner) in &halves {
        assert_eq!(half.application, Application::Tls);
        assert_eq!(owner.process.as_ref().unwrap().name, "openssl");
        let named = world.named(half.local).map(|(_, name)| name);
        match half.role {
            Role::Server => assert_eq!(named, None, "who is called has no name for the caller"),
            Role::Client => {
                let source = named.as_ref().map(|name| name.source);
                assert_eq!(source, named.as_ref().map(|_| NameSource::Sni));
                told.push((half.local.ip(), named.map(|name| name.name)));
            }
        }
    }
    let greeted = greeted
        .into_iter()
        .map(|(address, name)| (address, name.map(str::to_owned)));
    let mut greeted: Vec<_> = greeted.collect();
    told.sort();
    greeted.sort();
    assert_eq!(told, greeted);
}
