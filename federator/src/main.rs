//! `weft-federator`: run it, check it, ask its version.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft_federator::query::apart;
use weft_federator::{config::Config, doctor::doctor, run::run};

/// The Weft federator: takes halves of connections from agents, joins them, and answers questions.
#[derive(Parser)]
#[command(name = "weft-federator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs until SIGTERM.
    Run {
        /// Configuration file.
        #[arg(long, default_value = "/etc/weft/federator.toml")]
        config: PathBuf,
    },
    /// Says what would keep it from running, and what to do about it.
    Doctor {
        /// Configuration file.
        #[arg(long, default_value = "/etc/weft/federator.toml")]
        config: PathBuf,
    },
    /// Answers one statement that comes through stdin; the program starts itself so.
    #[command(hide = true, name = apart::ARGUMENT)]
    AnswerSql,
    /// Prints the version.
    Version,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Version => println!("weft-federator {}", env!("CARGO_PKG_VERSION")),
        Command::Doctor { config } => {
            return if doctor(&config) {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(1)
            };
        }
        Command::AnswerSql => {
            // Whoever started it sees that there is no answer.
            return match apart::answer() {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(2),
            };
        }
        Command::Run { config } => {
            log_to_stderr();
            apart::enable();
            if let Err(error) = load_and_run(&config) {
                eprintln!(
                    "error: {error:#}\nhint:  weft-federator doctor --config {}",
                    config.display()
                );
                return ExitCode::from(2);
            }
        }
    }
    ExitCode::SUCCESS
}

fn load_and_run(path: &std::path::Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(config))
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
