//! `weft-lab`: two clouds on this machine, to look at.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use weft_lab::{demo, lab};

/// Two clouds on one machine: network namespaces, kernel NAT, real programs, Weft.
#[derive(Debug, Parser)]
#[command(name = "weft-lab", version)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lay the demo's network out, run traffic through it and show what Weft says
    Demo {
        /// Leave it running and print how to explore it
        #[arg(long, conflicts_with = "down")]
        keep: bool,
        /// Take down what was left running
        #[arg(long)]
        down: bool,
    },
    /// Take down labs that were left running, and leftovers of dead ones
    Down,
    /// Run a command on a host of the lab that was left running, in its network and cgroup
    Exec {
        /// Host: aws1, aws2, gcp1, gcp2, operator, …
        host: String,
        /// The command
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> Result<ExitCode> {
    match Args::parse().verb {
        Verb::Demo { down: true, .. } | Verb::Down => {
            let removed = lab::down()?;
            eprintln!("{} labs taken down", removed.len());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Demo { keep, .. } => {
            let agrees = demo::run(keep)?;
            Ok(if agrees {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Verb::Exec { host, command } => {
            let host = lab::kept_host(&host)?;
            let status = host.command(&command[0]).args(&command[1..]).status()?;
            Ok(status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .map_or(ExitCode::FAILURE, ExitCode::from))
        }
    }
}
