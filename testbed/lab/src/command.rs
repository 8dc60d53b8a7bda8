//! The one place that runs the system's own tools (`ip`, `nft`, `nsenter`, `mount`).

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::error::{LabError, Result};

/// Runs a command to its end and gives what it wrote to stdout.
pub(crate) fn run<I, S>(program: &str, args: I) -> Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    output(&mut command, None)
}

/// Runs a prepared command to its end, feeding it `input`.
pub(crate) fn output(command: &mut Command, input: Option<&str>) -> Result<String> {
    let done = complete(command, input)?;
    if !done.status.success() {
        return Err(LabError::Command {
            command: describe(command),
            status: done.status,
            stderr: String::from_utf8_lossy(&done.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// As [`output`], whatever the exit status.
pub(crate) fn complete(command: &mut Command, input: Option<&str>) -> Result<Output> {
    let refused = |command: &Command, source| LabError::Io {
        what: describe(command),
        source,
    };
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    let mut child = command.spawn().map_err(|e| refused(command, e))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // A command that fails before it has read everything is reported by its status below.
        let _ = stdin.write_all(text.as_bytes());
    }
    child.wait_with_output().map_err(|e| refused(command, e))
}

/// The command line, for messages.
pub(crate) fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    words.join(" ")
}
