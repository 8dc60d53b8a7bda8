//! Real programs: nginx, haproxy, redis, curl. Their own logs are the truth.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::error::{During, LabError, Result};
use crate::host::{Host, Process};
use crate::topology::{Flow, Through, Topology};

/// Size of the small file that nginx serves.
pub const SMALL_BYTES: usize = 1_500;
/// Size of the large one.
pub const LARGE_BYTES: usize = 400_000;

/// A server of the lab; ends when dropped.
pub struct Server {
    /// Where it runs.
    pub host: Host,
    /// Its process.
    pub process: Process,
    kind: Kind,
    log: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nginx,
    Haproxy,
    Redis,
}

/// All servers of a topology's flows.
pub struct Servers {
    /// Each once.
    pub all: Vec<Server>,
}

/// One connection as a server's log has it, its requests added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Bytes received, headers included.
    pub received: u64,
    /// Bytes sent, headers included.
    pub sent: u64,
    /// The process that served it; 0 where the log has none.
    pub pid: u32,
}

/// One connection as haproxy's log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// Client and haproxy's address of the first leg.
    pub front: (SocketAddr, SocketAddr),
    /// haproxy's and the origin's address of the second leg.
    pub back: (SocketAddr, SocketAddr),
    /// Bytes from client to origin.
    pub up: u64,
    /// Bytes from origin to client.
    pub down: u64,
}

/// One connection as curl reports it, its transfers added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// curl's own address.
    pub local: SocketAddr,
    /// The address it called.
    pub remote: SocketAddr,
    /// Bytes sent, headers included.
    pub sent: u64,
    /// Bytes received, headers included.
    pub received: u64,
}

/// What one curl does.
#[derive(Clone, Copy, Debug)]
pub enum Fetch {
    /// This many connections, each for one small file; `Connection: close`.
    Small(u16),
    /// As [`Fetch::Small`], each with a request of another length than all others of both hosts of a cloud.
    Varied(u16),
    /// One connection with this many requests for small files.
    KeptAlive(u16),
    /// This many connections for a large file, several at a time.
    Large(u16),
    /// This many connections that send a large file.
    Upload(u16),
    /// One connection for a large file, at a rate that makes it last for about this many seconds.
    Slow(u16),
    /// As [`Fetch::Small`], each from the next local port, so that other hosts can use the very same ports.
    FromPorts {
        /// The first port.
        first: u16,
        /// How many.
        count: u16,
    },
}

/// The line that curl writes for a transfer.
pub(crate) const REPORT: &str = "weft %{exitcode} %{local_ip} %{local_port} %{remote_ip} %{remote_port} %{size_request} \
     %{size_upload} %{size_header} %{size_download}\\n";

impl Servers {
    /// Starts what a topology's flows need and waits until it listens.
    pub fn start(topology: &Topology) -> Result<Self> {
        let mut nginx: BTreeMap<String, (Host, Vec<SocketAddr>)> = BTreeMap::new();
        let mut all: Vec<Server> = Vec::new();
        for flow in &topology.flows {
            let (host, service) = match &flow.through {
                Through::Relay(origin, address) => {
                    if !all
                        .iter()
                        .any(|s| s.host == flow.server && s.kind == Kind::Haproxy)
                    {
                        all.push(Server::haproxy(&flow.server, flow.service, *address)?);
                    }
                    (origin, *address)
                }
                _ => (&flow.server, flow.service),
            };
            let entry = nginx
                .entry(host.name().to_owned())
                .or_insert_with(|| (host.clone(), Vec::new()));
            if !entry.1.contains(&service) {
                entry.1.push(service);
            }
        }
        for (host, listen) in nginx.values() {
            all.push(Server::nginx(host, listen)?);
        }
        Ok(Self { all })
    }

    /// The connections of nginx on `host`, by (client as nginx sees it, own address).
    pub fn served(&self, host: &Host) -> Result<BTreeMap<(SocketAddr, SocketAddr), Served>> {
        let server = self
            .all
            .iter()
            .find(|s| s.host == *host && s.kind == Kind::Nginx);
        server.map_or_else(|| Ok(BTreeMap::new()), Server::served)
    }

    /// The connections of haproxy on `host`.
    pub fn relayed(&self, host: &Host) -> Result<Vec<Relayed>> {
        let server = self
            .all
            .iter()
            .find(|s| s.host == *host && s.kind == Kind::Haproxy);
        server.map_or_else(|| Ok(Vec::new()), Server::relayed)
    }
}

impl Server {
    /// nginx on these addresses, with files to fetch and a place to upload to.
    pub fn nginx(host: &Host, listen: &[SocketAddr]) -> Result<Self> {
        Self::nginx_with(host, listen, 1)
    }

    /// The same with so many worker processes, which accept on the sockets that the first process listens on.
    pub fn nginx_with(host: &Host, listen: &[SocketAddr], workers: u8) -> Result<Self> {
        let dir = host.dir().join("nginx");
        let root = dir.join("files");
        fs::create_dir_all(&root).during("creating", &root)?;
        fs::write(root.join("small"), "s".repeat(SMALL_BYTES)).during("writing", &root)?;
        fs::write(root.join("large"), "l".repeat(LARGE_BYTES)).during("writing", &root)?;
        let log = dir.join("access");
        let config = dir.join("nginx.conf");
        let text = nginx_config(&dir, listen, workers);
        fs::write(&config, text).during("writing", &config)?;
        let process = host.spawn(
            "nginx",
            "nginx",
            &[
                "-p",
                &dir.to_string_lossy(),
                "-c",
                &config.to_string_lossy(),
            ],
        )?;
        let server = Self {
            host: host.clone(),
            process,
            kind: Kind::Nginx,
            log,
        };
        server.ready(listen)
    }

    /// haproxy that hands TCP connections from `front` to `origin`.
    pub fn haproxy(host: &Host, front: SocketAddr, origin: SocketAddr) -> Result<Self> {
        let config = host.dir().join("haproxy.cfg");
        let text = format!(
            "global\n    log stdout format raw local0\n    maxconn 2000\n    nbthread 1\n\
             defaults\n    mode tcp\n    timeout connect 10s\n    timeout client 60s\n    timeout server 60s\n    log global\n\
             frontend in\n    bind {front}\n    default_backend out\n\
             \x20   log-format \"relayed %ci:%cp %fi:%fp %bi:%bp %si:%sp %U %B\"\n\
             backend out\n    server origin {origin}\n"
        );
        fs::write(&config, text).during("writing", &config)?;
        let process = host.spawn(
            "haproxy",
            "haproxy",
            &["-db", "-f", &config.to_string_lossy()],
        )?;
        let log = process.log().to_owned();
        let server = Self {
            host: host.clone(),
            process,
            kind: Kind::Haproxy,
            log,
        };
        server.ready(&[front])
    }

    /// redis, in memory only, on the usual port.
    pub fn redis(host: &Host) -> Result<Self> {
        let args = [
            "--port",
            "6379",
            "--bind",
            "0.0.0.0",
            "--protected-mode",
            "no",
            "--save",
            "",
        ];
        let process = host.spawn("redis", "redis-server", &args)?;
        let log = process.log().to_owned();
        let server = Self {
            host: host.clone(),
            process,
            kind: Kind::Redis,
            log,
        };
        server.ready(&[SocketAddr::from(([0, 0, 0, 0], 6379))])
    }

    fn ready(mut self, listen: &[SocketAddr]) -> Result<Self> {
        for address in listen {
            self.host
                .await_listener(*address)
                .or_else(|error| self.process.check_alive().and(Err(error)))?;
        }
        Ok(self)
    }

    fn served(&self) -> Result<BTreeMap<(SocketAddr, SocketAddr), Served>> {
        let mut connections: BTreeMap<_, Served> = BTreeMap::new();
        // Serial numbers tell two connections with the same addresses apart: then the truth is not one.
        let mut serials = BTreeMap::new();
        for line in read(&self.log)?.lines() {
            let fields: Vec<_> = line.split(' ').collect();
            let [serial, address, port, own, own_port, sent, received, pid] = fields[..] else {
                return Err(unreadable("nginx's log", line));
            };
            let key = (endpoint(address, port)?, endpoint(own, own_port)?);
            if serials
                .insert(key, serial.to_owned())
                .is_some_and(|earlier| earlier != serial)
            {
                return Err(LabError::Truth(format!(
                    "nginx on {:?} served {key:?} twice",
                    self.host
                )));
            }
            let entry = connections.entry(key).or_default();
            entry.sent += number(sent, "nginx's log")?;
            entry.received += number(received, "nginx's log")?;
            entry.pid = pid.parse().map_err(|_| unreadable("nginx's log", line))?;
        }
        Ok(connections)
    }

    fn relayed(&self) -> Result<Vec<Relayed>> {
        let text = read(&self.log)?;
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("relayed "));
        lines
            .map(|line| {
                let fields: Vec<_> = line.split(' ').collect();
                let [from, front, back, to, up, down] = fields[..] else {
                    return Err(unreadable("haproxy's log", line));
                };
                let address =
                    |text: &str| text.parse().map_err(|_| unreadable("haproxy's log", line));
                Ok(Relayed {
                    front: (address(from)?, address(front)?),
                    back: (address(back)?, address(to)?),
                    up: number(up, "haproxy's log")?,
                    down: number(down, "haproxy's log")?,
                })
            })
            .collect()
    }
}

/// Runs one curl on a flow to its end; gives its connections.
pub fn fetch(flow: &Flow, what: Fetch) -> Result<Vec<Fetched>> {
    let config = curl_config(flow, what)?;
    let mut args = vec!["-q", "--silent", "--show-error", "--no-progress-meter"];
    if matches!(what, Fetch::Large(_)) {
        args.extend(["--parallel", "--parallel-max", "16"]);
    }
    args.extend(["--config", "-"]);
    let out = flow.client.feed("curl", &args, &config)?;
    connections_of(&out)
}

/// The configuration for curl: one section a transfer, as some options hold for one only.
fn curl_config(flow: &Flow, what: Fetch) -> Result<String> {
    let transfers = match what {
        Fetch::Small(n)
        | Fetch::Varied(n)
        | Fetch::KeptAlive(n)
        | Fetch::Large(n)
        | Fetch::Upload(n) => n,
        Fetch::FromPorts { count, .. } => count,
        Fetch::Slow(_) => 1,
    };
    let kept = matches!(what, Fetch::KeptAlive(_));
    // The kernel would come back to a port soon, and two connections with the same addresses cannot be told apart in the logs.
    let first = match what {
        Fetch::FromPorts { first, .. } => first,
        _ => flow.client.take_ports(if kept { 1 } else { transfers })?,
    };
    let mut sections = Vec::new();
    for number in 0..transfers {
        let mut section = transfer(flow, what, number)?;
        section += &format!(
            "local-port = {}\n",
            if kept { first } else { first + number }
        );
        sections.push(section);
    }
    Ok(sections.join("next\n"))
}

/// One transfer of a curl.
fn transfer(flow: &Flow, what: Fetch, number: u16) -> Result<String> {
    let close = "header = \"Connection: close\"\n";
    let (path, options) = match what {
        Fetch::Small(_) | Fetch::FromPorts { .. } => ("small".into(), close.into()),
        Fetch::Varied(_) => {
            let second = usize::from(flow.client.name().ends_with('2'));
            let query = "x".repeat(2 * usize::from(number) + second);
            (format!("small?{query}"), close.into())
        }
        Fetch::KeptAlive(_) => ("small".into(), String::new()),
        Fetch::Large(_) => ("large".into(), close.into()),
        Fetch::Slow(seconds) => {
            let rate = LARGE_BYTES / usize::from(seconds.max(1));
            ("large".into(), format!("{close}limit-rate = {rate}\n"))
        }
        Fetch::Upload(_) => {
            // A file of the flow's own: other curls of this host may be reading theirs.
            let file = flow
                .client
                .dir()
                .join(format!("upload-to-{}", flow.target.port()));
            fs::write(&file, "u".repeat(LARGE_BYTES)).during("writing", &file)?;
            // Without Expect, the answer has no 100 Continue before it.
            let options = format!(
                "{close}header = \"Expect:\"\nupload-file = \"{}\"\n",
                file.display()
            );
            (format!("upload/{}-{number}", flow.client.name()), options)
        }
    };
    let url = format!("http://{}/{path}", flow.target);
    Ok(format!(
        "url = \"{url}\"\noutput = \"/dev/null\"\nwrite-out = \"{REPORT}\"\nmax-time = 300\n{options}"
    ))
}

/// Adds curl's transfers up by connection.
pub(crate) fn connections_of(report: &str) -> Result<Vec<Fetched>> {
    let mut connections: BTreeMap<SocketAddr, Fetched> = BTreeMap::new();
    for line in report.lines().filter_map(|line| line.strip_prefix("weft ")) {
        let fields: Vec<_> = line.split(' ').collect();
        let [
            "0",
            ip,
            port,
            peer,
            peer_port,
            request,
            upload,
            header,
            download,
        ] = fields[..]
        else {
            return Err(unreadable("curl's report", line));
        };
        let (local, remote) = (endpoint(ip, port)?, endpoint(peer, peer_port)?);
        let entry = connections.entry(local).or_insert(Fetched {
            local,
            remote,
            sent: 0,
            received: 0,
        });
        entry.sent += number(request, "curl's report")? + number(upload, "curl's report")?;
        entry.received += number(header, "curl's report")? + number(download, "curl's report")?;
    }
    Ok(connections.into_values().collect())
}

/// Runs redis-benchmark against the flow's host: this many connections at the same time, ten requests each.
pub fn redis_benchmark(flow: &Flow, port: u16, connections: u32) -> Result<()> {
    let (ip, port) = (flow.target.ip().to_string(), port.to_string());
    let (clients, requests) = (connections.to_string(), (connections * 10).to_string());
    let args = [
        "-h", &ip, "-p", &port, "-n", &requests, "-c", &clients, "-q", "-t", "get", "-d", "64",
    ];
    flow.client.run("redis-benchmark", &args).map(drop)
}

fn nginx_config(dir: &Path, listen: &[SocketAddr], workers: u8) -> String {
    let listens: String = listen
        .iter()
        .map(|a| format!("listen {a} backlog=4096;\n"))
        .collect();
    let dir = dir.display();
    format!(
        "user root;\nworker_processes {workers};\ndaemon off;\npid {dir}/pid;\nerror_log {dir}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         log_format truth '$connection $remote_addr $remote_port $server_addr $server_port $bytes_sent $request_length $pid';\n\
         access_log {dir}/access truth;\n\
         client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
         uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
         client_max_body_size 100m; keepalive_requests 1000000;\n\
         server {{\n{listens}root {dir}/files;\n\
         location /upload/ {{ root {dir}; dav_methods PUT; create_full_put_path on; }}\n}}\n}}\n"
    )
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).during("reading", path)
}

fn endpoint(ip: &str, port: &str) -> Result<SocketAddr> {
    let ip: IpAddr = ip.parse().map_err(|_| unreadable("an address", ip))?;
    let port = port.parse().map_err(|_| unreadable("a port", port))?;
    Ok(SocketAddr::new(ip, port))
}

fn number(text: &str, what: &str) -> Result<u64> {
    text.parse().map_err(|_| unreadable(what, text))
}

fn unreadable(what: &str, text: &str) -> LabError {
    LabError::Unreadable {
        what: what.to_owned(),
        text: text.to_owned(),
    }
}
