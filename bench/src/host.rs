//! Two hosts on one machine: a network namespace and a cgroup each, joined by a veth pair. Gone when dropped.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::leftovers::{self, ip};
use crate::machine;

/// A host of the pair.
#[derive(Clone)]
pub struct Host {
    netns: String,
    cgroup: PathBuf,
    /// Its address on the link.
    pub address: Ipv4Addr,
    /// Its interface on the link.
    pub interface: &'static str,
    /// The only core that its programs run on; `None`: any.
    pub core: Option<usize>,
}

/// Both hosts.
pub struct Hosts {
    /// Where the measured server runs.
    pub server: Host,
    /// Where the load comes from.
    pub client: Host,
    cgroup: PathBuf,
}

impl Hosts {
    /// Makes them.
    pub fn new() -> Result<Self> {
        let top = machine::cgroup2()?;
        let name = leftovers::name();
        let cgroup = top.join(&name);
        let host = |letter: &str, last: u8, interface| Host {
            netns: format!("{name}-{letter}"),
            cgroup: cgroup.join(letter),
            address: Ipv4Addr::new(10, 77, 0, last),
            interface,
            core: None,
        };
        let hosts = Self {
            server: host("s", 1, "veth-s"),
            client: host("c", 2, "veth-c"),
            cgroup,
        };
        for host in [&hosts.server, &hosts.client] {
            fs::create_dir_all(&host.cgroup).context("cannot make a cgroup")?;
            ip(&["netns", "add", &host.netns])?;
            ip(&["-n", &host.netns, "link", "set", "lo", "up"])?;
        }
        let (s, c) = (&hosts.server, &hosts.client);
        let peer = ["peer", "name", c.interface, "netns", c.netns.as_str()];
        ip(&[
            [
                "link",
                "add",
                s.interface,
                "netns",
                s.netns.as_str(),
                "type",
                "veth",
            ]
            .as_slice(),
            &peer,
        ]
        .concat())?;
        for host in [s, c] {
            ip(&[
                "-n",
                &host.netns,
                "addr",
                "add",
                &format!("{}/24", host.address),
                "dev",
                host.interface,
            ])?;
            ip(&["-n", &host.netns, "link", "set", host.interface, "up"])?;
        }
        Ok(hosts)
    }

    /// A cgroup of neither host, in the server's network: for what watches it.
    pub fn beside_server(&self, name: &str) -> Result<Host> {
        let cgroup = self.cgroup.join(name);
        fs::create_dir_all(&cgroup).context("cannot make a cgroup")?;
        Ok(Host {
            cgroup,
            ..self.server.clone()
        })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        leftovers::remove_run(&leftovers::name());
    }
}

impl Host {
    /// Directory of the host's cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A command that will run on this host and end when the bench does.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(&self.cgroup)
            .args(["nsenter", &format!("--net=/run/netns/{}", self.netns), "--"])
            .args(["setpriv", "--pdeathsig", "KILL", "--"]);
        if let Some(core) = self.core {
            command.args(["taskset", "--cpu-list", &core.to_string()]);
        }
        command.arg(program).stdin(Stdio::null());
        command
    }
}
