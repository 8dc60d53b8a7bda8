//! The agent's commands.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use weft_agent::config::Config;
use weft_agent::{doctor, join, kernel, run};

/// Sees connections in the kernel and reports them to the federator of its region.
#[derive(Parser)]
#[command(name = "weft-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get this node's certificate with a token, which is asked for (or read from stdin, or a file).
    Join(Joining),
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
struct Joining {
    /// Configuration file; written when it is not there.
    #[arg(long, default_value = "/etc/weft/agent.toml")]
    config: PathBuf,
    /// Directory for the certificate; by default the configuration's, or /etc/weft/identity.
    #[arg(long)]
    identity: Option<PathBuf>,
    /// Name of this agent; by default the configuration's, the token's, or this host's.
    #[arg(long)]
    name: Option<String>,
    /// File with the token; - for stdin.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Replace a certificate that still holds.
    #[arg(long)]
    replace: bool,
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
        Command::Join(typed) => return joined(typed),
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

fn joined(typed: Joining) -> ExitCode {
    let typed = join::Join {
        config: typed.config,
        identity: typed.identity,
        name: typed.name,
        token_file: typed.token_file,
        replace: typed.replace,
    };
    match join::join(&typed) {
        Ok(said) => {
            print(&said);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
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
