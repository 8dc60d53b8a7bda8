//! `weft`: reads the process's surroundings, runs, exits. Everything else is in the library, where it is tested without
//! a terminal.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use weft_cli::{Surroundings, live::Live};

fn main() -> ExitCode {
    let surroundings = Surroundings {
        stdout_is_terminal: std::io::stdout().is_terminal(),
        stderr_is_terminal: std::io::stderr().is_terminal(),
        width: terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)),
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
    };
    let mut world = Live::default();
    let stdout = std::io::stdout();
    let mut out = std::io::BufWriter::new(stdout.lock());
    let mut err = std::io::stderr();
    let code = weft_cli::run(
        std::env::args_os().collect(),
        &surroundings,
        &mut world,
        &mut out,
        &mut err,
    );
    // A reader that left early has seen what it wanted.
    let _ = out.flush();
    ExitCode::from(code)
}
