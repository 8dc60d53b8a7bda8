//! `weft-bench`: what Weft reaches on this machine, beside others in the same run.
//!
//! Reading order: [`stitch`], [`wire`], [`federator`], [`fleet`], [`agent`], [`dns`] (one bench each), [`figure`] (what comes out), and what
//! they share: [`host`] and [`traffic`] (namespaces and the load in them), [`leftovers`] (what a run makes, and how it goes),
//! [`uplink`] (an agent's session), [`workload`] (halves), [`machine`].

mod stitch;
mod wire;
mod federator;
mod fleet;
mod agent;
mod dns;
mod figure;
mod host;
mod leftovers;
mod traffic;
mod uplink;
mod workload;
mod machine;

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use figure::Figure;

/// Measures what Weft reaches on this machine.
#[derive(Parser)]
struct Arguments {
    /// Only the benches whose name begins with this
    #[arg(long, value_name = "PREFIX")]
    only: Option<String>,
    /// Write the figures here, as a JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

/// Programs that the benches run in namespaces of their own.
#[derive(Subcommand)]
#[command(hide = true)]
enum Part {
    /// Accept and close
    Accept { listen: SocketAddr },
    /// Take datagrams and forget them
    Discard { listen: SocketAddr },
    /// Answer every DNS question with an address
    Answer { listen: SocketAddr },
    /// Connect and wait for the close, in the windows that stdin says
    Load { threads: usize },
    /// Accept and keep
    Hold { listen: SocketAddr },
    /// Open connections and keep them
    Open { server: SocketAddr, count: usize },
    /// Send datagrams back
    Echo { listen: SocketAddr },
    /// Ask an echo
    Datagrams { server: SocketAddr, seconds: f64 },
    /// Acknowledge an agent's batches and count them
    Sink {
        listen: SocketAddr,
        identity: PathBuf,
        count: PathBuf,
    },
}

/// A bench: the names of its figures, and how to get them.
struct Bench {
    figures: &'static [&'static str],
    run: fn(&[&'static str]) -> Result<Vec<Figure>>,
}

const BENCHES: &[Bench] = &[
    Bench {
        figures: stitch::FIGURES,
        run: stitch::run,
    },
    Bench {
        figures: wire::FIGURES,
        run: wire::run,
    },
    Bench {
        figures: federator::FIGURES,
        run: federator::run,
    },
    Bench {
        figures: fleet::FIGURES,
        run: fleet::run,
    },
    Bench {
        figures: agent::FIGURES,
        run: agent::run,
    },
    Bench {
        figures: dns::FIGURES,
        run: dns::run,
    },
];

fn main() -> ExitCode {
    match try_main() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// True when every bench asked for has a value.
fn try_main() -> Result<bool> {
    let arguments = Arguments::parse();
    if let Some(part) = arguments.part {
        run_part(part)?;
        return Ok(true);
    }
    leftovers::go_on_signals()?;
    leftovers::sweep();
    let figures = measure(arguments.only.as_deref().unwrap_or_default());
    leftovers::stop_if_interrupted();
    let figures = figures?;
    print!("{}", figure::table(&figures));
    if let Some(path) = &arguments.json {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        serde_json::to_writer_pretty(file, &figures)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(figures.iter().all(|figure| figure.value.is_some()))
}

fn run_part(part: Part) -> Result<()> {
    match part {
        Part::Accept { listen } => traffic::accept(listen),
        Part::Discard { listen } => traffic::discard(listen),
        Part::Answer { listen } => traffic::answer(listen),
        Part::Load { threads } => traffic::load(threads),
        Part::Hold { listen } => traffic::hold(listen),
        Part::Open { server, count } => traffic::open(server, count),
        Part::Echo { listen } => traffic::echo(listen),
        Part::Datagrams { server, seconds } => traffic::datagrams(server, seconds),
        Part::Sink {
            listen,
            identity,
            count,
        } => agent::sink(listen, &identity, &count),
    }
}

fn measure(prefix: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for bench in BENCHES {
        let wanted: Vec<&'static str> = bench
            .figures
            .iter()
            .copied()
            .filter(|name| name.starts_with(prefix))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        eprintln!("measuring {}", wanted.join(", "));
        match (bench.run)(&wanted) {
            Ok(measured) => figures.extend(measured),
            Err(error) => figures.extend(wanted.iter().map(|name| Figure::error(name, &error))),
        }
    }
    anyhow::ensure!(!figures.is_empty(), "no bench begins with '{prefix}'");
    Ok(figures)
}
