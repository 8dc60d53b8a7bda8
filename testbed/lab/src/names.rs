//! Name servers (dnsmasq, unbound) and those who ask them (dig, dnsperf, curl). Who asked what, and what the answer was, is read
//! from the servers' logs; over which flows, from the routers' connection tracking.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{During, LabError, Result};
use crate::host::{Host, Process};
use crate::topology::Flow;
use crate::truth::{self, Connection, End};
use crate::wait;
use crate::workload::{self, Fetched};

/// The zone that both servers answer for.
pub const ZONE: &str = "lab.example";
/// Addresses of the name `many`: as many as an answer of 4,096 bytes holds.
const MANY: u8 = 253;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// dnsmasq.
    Dnsmasq,
    /// unbound.
    Unbound,
}

/// A name server for the zone: `web` has one address (of either family), `a` is three aliases away from it, `many` has as many addresses as fit,
/// and there is nothing else. Ends when dropped.
pub struct NameServer {
    kind: Kind,
    process: Process,
}

/// A question as the server's log has it, with the code of the answer: (name, type, code).
pub type Question = (String, String, String);

/// Who used which local port of a client; whoever is not noted is curl.
#[derive(Debug, Default)]
pub struct Askers(BTreeMap<(String, u16), &'static str>);

impl NameServer {
    /// Starts one and waits until it answers. `web` has the address `web`.
    pub fn start(host: &Host, kind: Kind, address: SocketAddr, web: &str) -> Result<Self> {
        let dir = host.dir().join("names");
        fs::create_dir_all(&dir).during("creating", &dir)?;
        let process = match kind {
            Kind::Dnsmasq => dnsmasq(host, &dir, address, web)?,
            Kind::Unbound => unbound(host, &dir, address, web)?,
        };
        let mut server = Self { kind, process };
        host.await_listener(address)
            .or_else(|error| server.process.check_alive().and(Err(error)))?;
        Ok(server)
    }

    /// Name of its process.
    pub fn process(&self) -> &'static str {
        match self.kind {
            Kind::Dnsmasq => "dnsmasq",
            Kind::Unbound => "unbound",
        }
    }

    /// How often it was asked what, by its own log.
    pub fn asked(&self) -> Result<BTreeMap<Question, u64>> {
        let log = self.process.log();
        let text = fs::read_to_string(log).during("reading", log)?;
        Ok(match self.kind {
            Kind::Dnsmasq => dnsmasq_log(&text),
            Kind::Unbound => unbound_log(&text),
        })
    }
}

fn dnsmasq(host: &Host, dir: &Path, address: SocketAddr, web: &str) -> Result<Process> {
    let hosts = dir.join("hosts");
    let mut text = format!("{web} web.{ZONE}\n");
    for last in 1..=MANY {
        let _ = writeln!(text, "10.9.1.{last} many.{ZONE}");
    }
    fs::write(&hosts, text).during("writing", &hosts)?;
    let config = dir.join("dnsmasq.conf");
    let text = format!(
        "keep-in-foreground\nno-resolv\nno-hosts\nuser=root\npid-file={0}/pid\nport={1}\nlisten-address={2}\nbind-interfaces\n\
         log-queries=extra\nlog-facility=-\nedns-packet-max=4096\nlocal=/{ZONE}/\naddn-hosts={0}/hosts\n\
         cname=a.{ZONE},b.{ZONE}\ncname=b.{ZONE},c.{ZONE}\ncname=c.{ZONE},web.{ZONE}\n",
        dir.display(),
        address.port(),
        address.ip()
    );
    fs::write(&config, text).during("writing", &config)?;
    host.spawn(
        "dnsmasq",
        "/usr/sbin/dnsmasq",
        &["-C", &config.to_string_lossy()],
    )
}

/// The type of an address's record.
fn record_type(address: SocketAddr) -> &'static str {
    if address.is_ipv4() { "A" } else { "AAAA" }
}

fn unbound(host: &Host, dir: &Path, address: SocketAddr, web: &str) -> Result<Process> {
    let zone = dir.join("zone");
    let mut text = format!(
        "$ORIGIN {ZONE}.\n$TTL 60\n@ SOA ns admin 1 3600 600 86400 60\n@ NS ns\nns {0} {1}\nweb {0} {web}\n\
         a CNAME b\nb CNAME c\nc CNAME web\n",
        record_type(address),
        address.ip()
    );
    for last in 1..=MANY {
        let _ = writeln!(text, "many A 10.9.1.{last}");
    }
    fs::write(&zone, text).during("writing", &zone)?;
    let config = dir.join("unbound.conf");
    let text = format!(
        "server:\n interface: {2}@{1}\n do-daemonize: no\n chroot: \"\"\n username: \"\"\n directory: \"{0}\"\n\
         \x20pidfile: \"{0}/pid\"\n use-syslog: no\n logfile: \"\"\n verbosity: 0\n log-replies: yes\n\
         \x20edns-buffer-size: 4096\n max-udp-size: 4096\n access-control: 0.0.0.0/0 allow\n access-control: ::/0 allow\n module-config: \"iterator\"\n\
         \x20num-threads: 1\n\
         auth-zone:\n name: \"{ZONE}\"\n zonefile: \"{0}/zone\"\n for-downstream: yes\n for-upstream: no\n\
         remote-control:\n control-enable: no\n",
        dir.display(),
        address.port(),
        address.ip()
    );
    fs::write(&config, text).during("writing", &config)?;
    host.spawn(
        "unbound",
        "/usr/sbin/unbound",
        &["-d", "-c", &config.to_string_lossy()],
    )
}

/// `dnsmasq[PID]: SERIAL PEER query[TYPE] NAME from PEER`, then what was found, where `is NXDOMAIN` says that there is no such name.
fn dnsmasq_log(text: &str) -> BTreeMap<Question, u64> {
    let (mut asked, mut codes) = (Vec::new(), BTreeMap::new());
    for line in text.lines() {
        let Some((_, said)) = line.split_once("]: ") else {
            continue;
        };
        let words: Vec<_> = said.split_whitespace().collect();
        match words[..] {
            [serial, peer, query, name, "from", _] if query.starts_with("query[") => {
                let kind = query.trim_start_matches("query[").trim_end_matches(']');
                asked.push(((serial.to_owned(), peer.to_owned()), name, kind));
            }
            [serial, peer, .., "is", "NXDOMAIN"] => {
                codes.insert((serial.to_owned(), peer.to_owned()), "nxdomain");
            }
            _ => {}
        }
    }
    count(asked.into_iter().map(|(key, name, kind)| {
        let code = codes.get(&key).copied().unwrap_or("noerror");
        (name.to_lowercase(), kind.to_owned(), code.to_owned())
    }))
}

/// `[TIME] unbound[PID:THREAD] info: CLIENT NAME. TYPE CLASS CODE SECONDS CACHED BYTES`.
fn unbound_log(text: &str) -> BTreeMap<Question, u64> {
    count(text.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, _, "info:", _, name, kind, "IN", code, _, _, _] = words[..] else {
            return None;
        };
        let name = name.trim_end_matches('.').to_lowercase();
        Some((name, kind.to_owned(), code.to_lowercase()))
    }))
}

fn count(questions: impl Iterator<Item = Question>) -> BTreeMap<Question, u64> {
    let mut counts = BTreeMap::new();
    for question in questions {
        *counts.entry(question).or_default() += 1;
    }
    counts
}

impl Askers {
    fn note(&mut self, host: &Host, first: u16, count: u16, process: &'static str) {
        for port in first..first + count {
            self.0.insert((host.name().to_owned(), port), process);
        }
    }

    /// Asks with dig from a port of its own; `options` as dig takes them. Gives what it printed.
    pub fn dig(&mut self, flow: &Flow, name: &str, options: &[&str]) -> Result<String> {
        let port = flow.client.take_ports(1)?;
        self.note(&flow.client, port, 1, "dig");
        let any = if flow.target.is_ipv4() {
            "0.0.0.0"
        } else {
            "::"
        };
        let (from, at) = (format!("{any}#{port}"), format!("@{}", flow.target.ip()));
        let (name, kind) = (format!("{name}.{ZONE}"), record_type(flow.target));
        let mut words = vec!["-b", &from, &at, &name, kind, "+tries=1", "+time=5"];
        words.extend(options);
        flow.client.run("/usr/bin/dig", &words)
    }

    /// Asks for `names` over and over with dnsperf.
    pub fn dnsperf(&mut self, flow: &Flow, names: &[&str], rate: u32, seconds: u32) -> Result<()> {
        const SOCKETS: u16 = 2;
        let first = flow.client.take_ports(SOCKETS)?;
        self.note(&flow.client, first, SOCKETS, "dnsperf");
        let file = flow.client.dir().join("questions");
        let text: String = names
            .iter()
            .map(|name| format!("{name}.{ZONE} A\n"))
            .collect();
        fs::write(&file, text).during("writing", &file)?;
        let words = [
            ("-s", flow.target.ip().to_string()),
            ("-x", first.to_string()),
            ("-c", SOCKETS.to_string()),
            ("-Q", rate.to_string()),
            ("-l", seconds.to_string()),
            ("-d", file.display().to_string()),
        ];
        let words: Vec<_> = words
            .iter()
            .flat_map(|(option, value)| [*option, value])
            .collect();
        flow.client.run("/usr/bin/dnsperf", &words).map(drop)
    }

    /// The flows between a client and its name server, as its first router has them, over UDP and TCP.
    pub fn settle(&self, flow: &Flow, server: &NameServer) -> Result<Vec<Connection>> {
        let clients: BTreeSet<_> = flow
            .client
            .run("hostname", &["-I"])?
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        let mut all = Vec::new();
        for protocol in ["udp", "tcp"] {
            let tables = truth::tables(std::slice::from_ref(flow), protocol)?;
            let first = flow
                .path
                .first()
                .and_then(|router| tables.get(router.name()));
            let entries = first.into_iter().flat_map(|table| table.values());
            let mine = entries.filter(|entry| {
                entry.before.destination == flow.target
                    && clients.contains(&entry.before.source.ip().to_string())
            });
            for entry in mine {
                let arrived = truth::translate(&flow.path, entry.before, &tables)?;
                let payload = |carried: crate::conntrack::Carried| {
                    let six = flow.target.is_ipv6();
                    let bytes = match protocol {
                        "udp" => carried.datagrams(six),
                        _ => carried.payload(six),
                    };
                    bytes.ok_or_else(|| LabError::Truth(format!("counters of {entry:?}")))
                };
                let key = (flow.client.name().to_owned(), entry.before.source.port());
                all.push(Connection {
                    client: End {
                        host: flow.client.name().into(),
                        process: self.0.get(&key).copied().unwrap_or("curl"),
                        local: entry.before.source,
                        remote: entry.before.destination,
                    },
                    server: End {
                        host: flow.server.name().into(),
                        process: server.process(),
                        local: arrived.destination,
                        remote: arrived.source,
                    },
                    up: payload(entry.up)?,
                    down: payload(entry.down)?,
                    evidence: match protocol {
                        "udp" => "udp-first-datagram",
                        _ => "tcp-isn-pair",
                    },
                });
            }
        }
        Ok(all)
    }
}

/// Fetches small files from a host that is called by its name, which is looked up at a name server: one connection each. `names` is
/// the flow to that server.
pub fn fetch_by_name(flow: &Flow, names: &Flow, name: &str, count: u16) -> Result<Vec<Fetched>> {
    let resolv: PathBuf = flow.client.dir().join("resolv.conf");
    let text = format!("nameserver {}\n", names.target.ip());
    fs::write(&resolv, text).during("writing", &resolv)?;
    let mut all = Vec::new();
    for _ in 0..count {
        let port = flow.client.take_ports(1)?.to_string();
        let url = format!("http://{name}.{ZONE}:{}/small", flow.target.port());
        // A view of the files of its own, with another list of name servers.
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec curl \"$@\"";
        let resolv = resolv.to_string_lossy();
        let words = [
            "--mount",
            "sh",
            "-c",
            script,
            &resolv,
            "-q",
            "-s",
            "-S",
            if flow.target.is_ipv4() { "-4" } else { "-6" },
            "--local-port",
            &port,
            "-H",
            "Connection: close",
            "-o",
            "/dev/null",
            "-w",
            workload::REPORT,
            &url,
        ];
        let out = flow.client.run("unshare", &words)?;
        all.extend(workload::connections_of(&out)?);
    }
    Ok(all)
}

/// Waits until a server's log holds as many questions as were asked.
pub fn await_asked(server: &NameServer, at_least: u64) -> Result<BTreeMap<Question, u64>> {
    wait::until("the name server's log", Duration::from_secs(20), || {
        let asked = server.asked()?;
        let sum: u64 = asked.values().sum();
        Ok(if sum >= at_least {
            Ok(asked)
        } else {
            Err(format!("{sum} of {at_least} questions"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str, kind: &str, code: &str) -> Question {
        (name.into(), kind.into(), code.into())
    }

    #[test]
    fn dnsmasq_tells_questions_and_codes_by_serial() {
        let text = "dnsmasq[8]: 1 127.0.0.1/30 query[A] web.lab.example from 127.0.0.1\n\
             dnsmasq[8]: 1 127.0.0.1/30 /hosts web.lab.example is 198.51.100.2\n\
             dnsmasq[8]: 3 127.0.0.1/31 query[AAAA] no.lab.example from 127.0.0.1\n\
             dnsmasq[8]: 3 127.0.0.1/31 config no.lab.example is NXDOMAIN\n";
        let expected = [
            (question("no.lab.example", "AAAA", "nxdomain"), 1),
            (question("web.lab.example", "A", "noerror"), 1),
        ];
        assert_eq!(dnsmasq_log(text), BTreeMap::from(expected));
    }

    #[test]
    fn unbound_tells_replies() {
        let line = "[1795385694] unbound[29312:0] info: 127.0.0.1 missing.lab.example. A IN NXDOMAIN 0.000000 1 93\n";
        let text = format!(
            "{line}[1795385694] unbound[29312:0] info: start of service (unbound 1.17.1).\n{line}"
        );
        let expected = [(question("missing.lab.example", "A", "nxdomain"), 2)];
        assert_eq!(unbound_log(&text), BTreeMap::from(expected));
    }
}
