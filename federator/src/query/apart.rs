//! The user's statement in a process of its own, whose memory the kernel bounds.
//!
//! DuckDB's memory limit is for its buffers: one long string is not among them, and may be made while the statement is planned, where
//! nothing interrupts it. So the program starts itself for each statement ([`enable`]), hands it the rows through a pipe, and
//! reads the answer from another. What goes wrong there ends that process alone.

use std::io::{BufReader, BufWriter, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use weft_wire::codec;
use weft_wire::frame::Kind;
use weft_wire::query::{Connection, LookupRecord, QueryError};

use super::failure;
use super::sql::{self, SqlAnswer, SqlLimits};
use crate::clusters::Told;

/// The program's argument that makes it answer one statement.
pub const ARGUMENT: &str = "answer-sql";
/// Address space beyond DuckDB's memory limit: the program, its libraries, the rows before they are copied, and what a statement may
/// have in long values.
const BESIDE: u64 = 1 << 30;
/// DuckDB's limit where it cannot be read.
const MEMORY: u64 = 512 << 20;
/// Time beyond a statement's own: for the rows to be copied.
const GRACE: Duration = Duration::from_secs(30);
/// Rows of one piece.
const PIECE_ROWS: usize = 512;
/// Bytes of one piece, either way.
const MAX_PIECE: usize = 128 << 20;

static PROGRAM: OnceLock<&'static str> = OnceLock::new();

/// Statements run apart from now on; only for a program that takes [`ARGUMENT`]. In tests within one process they do not.
pub fn enable() {
    // Whatever has become of its file since.
    PROGRAM.get_or_init(|| "/proc/self/exe");
}

/// What the process is told.
#[derive(Serialize, Deserialize)]
enum Piece {
    Connections(Vec<Connection>),
    Lookups(Vec<LookupRecord>),
    Objects(Vec<Told>),
    Statement { text: String, limits: SqlLimits },
}

/// As [`sql::run`].
pub fn run(
    connections: Vec<Connection>,
    lookups: Vec<LookupRecord>,
    objects: Vec<Told>,
    text: String,
    limits: SqlLimits,
) -> Result<SqlAnswer, QueryError> {
    let Some(program) = PROGRAM.get() else {
        return sql::run(&connections, &lookups, &objects, &text, &limits);
    };
    let patience = limits.timeout + GRACE;
    let started = Command::new(program)
        .arg(ARGUMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let failed = |cause: String| {
        let hint = "less at once: a shorter --since, fewer and shorter values";
        failure("E-SQL-TIME", "the statement was ended", &cause, hint)
    };
    let mut child = started.map_err(|error| failed(format!("no process for it: {error}")))?;
    let pieces = pieces(connections, lookups, objects).chain([Piece::Statement { text, limits }]);
    let answered = watched(&mut child, patience, pieces);
    // It has answered, or is of no more use.
    let _ = child.kill();
    let ended = child.wait();
    match answered {
        Ok(answer) => answer,
        Err(_) => Err(failed(match ended {
            Ok(status) => format!("it took more memory or time than it may ({status})"),
            Err(error) => error.to_string(),
        })),
    }
}

fn pieces(
    connections: Vec<Connection>,
    lookups: Vec<LookupRecord>,
    objects: Vec<Told>,
) -> impl Iterator<Item = Piece> {
    fn of<T>(rows: Vec<T>, piece: fn(Vec<T>) -> Piece) -> impl Iterator<Item = Piece> {
        let mut rows = rows.into_iter();
        std::iter::from_fn(move || {
            let some: Vec<T> = rows.by_ref().take(PIECE_ROWS).collect();
            (!some.is_empty()).then(|| piece(some))
        })
    }
    of(connections, Piece::Connections)
        .chain(of(lookups, Piece::Lookups))
        .chain(of(objects, Piece::Objects))
}

/// Tells it everything and hears the answer; kills it when that takes too long.
fn watched(
    child: &mut Child,
    patience: Duration,
    pieces: impl Iterator<Item = Piece>,
) -> anyhow::Result<Result<SqlAnswer, QueryError>> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (stdin, mut stdout) = (stdin.context("no stdin")?, stdout.context("no stdout")?);
    let (finished, watching) = channel::<()>();
    let watch = std::thread::spawn(move || {
        if watching.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            // Not waited for before this thread has ended, so the number is still its own.
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let talk = || {
        let mut stdin = BufWriter::new(stdin);
        for piece in pieces {
            write(&mut stdin, &piece)?;
        }
        stdin.flush()?;
        drop(stdin);
        read(&mut stdout)
    };
    let answered = talk();
    drop(finished);
    let _ = watch.join();
    answered
}

/// What the started process does.
pub fn answer() -> anyhow::Result<()> {
    let mut stdin = BufReader::new(std::io::stdin().lock());
    // Until the limit is known.
    let bound = |memory: u64| setrlimit(Resource::RLIMIT_AS, memory, memory);
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (mut connections, mut lookups, mut objects) = (Vec::new(), Vec::new(), Vec::new());
    let (text, limits) = loop {
        match read(&mut stdin)? {
            Piece::Connections(rows) => connections.extend(rows),
            Piece::Lookups(rows) => lookups.extend(rows),
            Piece::Objects(rows) => objects.extend(rows),
            Piece::Statement { text, limits } => break (text, limits),
        }
    };
    bound(
        bytes_of(&limits.memory)
            .unwrap_or(MEMORY)
            .saturating_add(BESIDE),
    )?;
    let seconds = (limits.timeout + GRACE).as_secs();
    setrlimit(Resource::RLIMIT_CPU, seconds, seconds)?;
    let answered = sql::run(&connections, &lookups, &objects, &text, &limits);
    let mut stdout = std::io::stdout().lock();
    write(&mut stdout, &answered)?;
    Ok(stdout.flush()?)
}

/// A size as DuckDB takes it.
fn bytes_of(size: &str) -> Option<u64> {
    let size = size.trim();
    let digits = size
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(size.len());
    let (number, unit) = size.split_at(digits);
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KIB" => 1 << 10,
        "MIB" => 1 << 20,
        "GIB" => 1 << 30,
        "TIB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn write<T: Serialize>(to: &mut impl Write, value: &T) -> anyhow::Result<()> {
    let bytes = codec::to_bytes(Kind::Response, value)?;
    to.write_all(&u32::try_from(bytes.len())?.to_le_bytes())?;
    Ok(to.write_all(&bytes)?)
}

fn read<T: serde::de::DeserializeOwned>(from: &mut impl Read) -> anyhow::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_PIECE {
        bail!("a piece of {length} bytes");
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(codec::from_bytes(Kind::Response, &bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_duckdb_reads_them() {
        assert_eq!(bytes_of("512MB"), Some(512_000_000));
        assert_eq!(bytes_of(" 2 GiB "), Some(2 << 30));
        assert_eq!(bytes_of("80%"), None);
        assert_eq!(bytes_of(""), None);
    }
}
