//! Two hosts on one machine: a network namespace and a cgroup each, joined by a veth pair. Gone when dropped.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::machine;

/// Names of what the benches make begin with this and the process id.
const PREFIX: &str = "weft-bench";

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
    /// Makes them; clears up after a run that was killed.
    pub fn new() -> Result<Self> {
        let top = machine::cgroup2()?;
        remove_leftovers(&top)?;
        let name = format!("{PREFIX}-{}", std::process::id());
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
        // Nothing more can be done about a failure than the next run does.
        for host in [&self.server, &self.client] {
            let _ = ip(&["netns", "delete", &host.netns]);
        }
        remove_cgroup(&self.cgroup);
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

/// Removes what a killed run left: its process is gone, its names are still there.
fn remove_leftovers(top: &Path) -> Result<()> {
    let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in namespaces.filter_map(|entry| entry.file_name().into_string().ok()) {
        if dead(&name) {
            ip(&["netns", "delete", &name])?;
        }
    }
    for entry in fs::read_dir(top)
        .context("cannot read the cgroup tree")?
        .flatten()
    {
        if entry.file_name().to_str().is_some_and(dead) {
            remove_cgroup(&entry.path());
        }
    }
    Ok(())
}

/// Whether `name` is of a run whose process is gone.
fn dead(name: &str) -> bool {
    let pid = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_prefix('-')?.split('-').next());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    // A directory that still holds a process stays, for the next run.
    let _ = fs::remove_dir(dir);
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("cannot run ip")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
