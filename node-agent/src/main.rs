//! The agent's commands.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use weft_agent::config::Config;
use weft_agent::{doctor, kernel, run};

/// Sees connections in the kernel and reports them to the federator of its region.
#[derive(Parser)]
#[command(name = "weft-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until SIGTERM. The hooks stay attached, and buffer, until `unload`.
    Run(File),
    /// Say which hooks this kernel gives, what is missing and what to do about it. Exit 1 when something is.
    Doctor(File),
    /// Detach the hooks and forget what they buffered. Stop the agent first.
    Unload(File),
    /// Print the version.
    Version,
}

#[derive(Args)]
struct File {
    /// Configuration file.
    #[arg(long, default_value = "/etc/weft/agent.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_ansi(false)
        .with_env_filter(filter)
        .init();
    let result = match cli.command {
        Command::Run(file) => load(&file)
            .and_then(|config| run::run(&config))
            .map(|()| ExitCode::SUCCESS),
        Command::Doctor(file) => load(&file).map(|config| check(&config)),
        Command::Unload(file) => load(&file).map(|config| unload(&config)),
        Command::Version => {
            print(concat!("weft-agent ", env!("CARGO_PKG_VERSION"), "\n"));
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        error
            .chain()
            .skip(1)
            .for_each(|cause| eprintln!("cause: {cause}"));
        eprintln!("hint:  weft-agent doctor");
        ExitCode::from(2)
    })
}

fn load(file: &File) -> anyhow::Result<Config> {
    use anyhow::Context;
    Config::load(&file.config)
        .with_context(|| format!("the configuration {} cannot be used", file.config.display()))
}

fn check(config: &Config) -> ExitCode {
    let findings = doctor::examine(config);
    print(&doctor::render(&findings));
    if findings.iter().all(doctor::Finding::passed) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn unload(config: &Config) -> ExitCode {
    let dir = config.pin_dir();
    let found = kernel::hooks::unload(&dir);
    print(&format!(
        "{} {}\n",
        if found {
            "detached"
        } else {
            "nothing was attached at"
        },
        dir.display()
    ));
    ExitCode::SUCCESS
}

/// A reader that went away is no error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
