//! What the agent costs the host it watches.
//!
//! Reading order: [`rounds`] (how many connections a server loses by it), [`programs`] (what each kernel program takes),
//! [`memory`] (what open connections take), [`watcher`] (the agent and its peer at work), [`mod@sink`].
//!
//! The agent is the real one, kernel programs and uplink included; the federator it talks to is a stand-in that acknowledges
//! and counts, as the real one would run elsewhere.

mod memory;
mod programs;
mod rounds;
mod sink;
mod watcher;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};

use crate::figure::Figure;
use crate::host::Host;

pub use watcher::{Agent, Watcher, sibling};

pub use sink::sink;

/// What this bench measures.
pub const FIGURES: &[&str] = &[
    rounds::RATIO,
    rounds::HOOKS,
    rounds::CPU,
    rounds::CPU_PER_MILLION,
    programs::OPS,
    programs::EGRESS[0],
    programs::INGRESS[0],
    programs::EGRESS[1],
    programs::INGRESS[1],
    programs::UDP_CREATE,
    programs::UDP_RELEASE,
    memory::RESIDENT,
];

/// Measures those of its figures that are wanted.
type Part = fn(&[&'static str]) -> Result<Vec<Figure>>;

/// Runs those that are wanted. One that cannot run takes none of the others with it.
pub fn run(wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let parts: [Part; 3] = [rounds::run, programs::run, memory::run];
    let figures = [rounds::FIGURES, programs::FIGURES, memory::FIGURES];
    let mut all = Vec::new();
    for (part, names) in parts.into_iter().zip(figures) {
        let names: Vec<&'static str> = names
            .iter()
            .copied()
            .filter(|name| wanted.contains(name))
            .collect();
        if names.is_empty() {
            continue;
        }
        match part(&names) {
            Ok(measured) => all.extend(measured),
            Err(error) => all.extend(names.iter().map(|name| Figure::error(name, &error))),
        }
    }
    Ok(all)
}

/// A subcommand of this program on a host, killed when dropped.
pub(crate) struct Program(Child);

impl Program {
    /// Starts it and waits until it says that it is ready.
    pub(crate) fn start(host: &Host, arguments: &[&str]) -> Result<Self> {
        let mut command = host.command(&std::env::current_exe()?);
        let child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start")?;
        let mut program = Self(child);
        let stdout = program.0.stdout.take().context("no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .context("cannot hear it")?;
        if line.trim() != "ready" {
            bail!("`{}` did not start", arguments.join(" "));
        }
        Ok(program)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
