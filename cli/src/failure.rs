//! What goes wrong, in four lines: what, `cause:`, `hint:`, `more:`.

use std::io::Write;

use clap::CommandFactory;
use clap::error::ErrorKind;
use weft_transport::{CloseReason, IdentityError, Refusal, TransportError};
use weft_wire::Timestamp;
use weft_wire::control::{CloseCode, PROTOCOL_VERSION};
use weft_wire::filter::FilterError;
use weft_wire::query::QueryError;

use crate::args::Args;
use crate::figures::plain;
use crate::world::Target;
use crate::{EXIT_ERROR, Surroundings};

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// Whoever read our output stopped reading. Not a failure.
    ReaderLeft,
    /// Everything else, ready to be printed.
    Told(Box<Told>),
}

/// A failure in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Stable code, `weft help CODE` explains it.
    pub code: String,
    /// What went wrong.
    pub what: String,
    /// Why.
    pub cause: String,
    /// What to do; a command where there is one.
    pub hint: String,
    /// Exit code.
    pub exit: u8,
}

impl Failure {
    /// A failure with exit code 2.
    pub fn new(
        code: &str,
        what: impl Into<String>,
        cause: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let (what, cause, hint) = (what.into(), cause.into(), hint.into());
        Self::Told(Box::new(Told {
            code: code.to_owned(),
            what,
            cause,
            hint,
            exit: EXIT_ERROR,
        }))
    }

    /// Its exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ReaderLeft => 0,
            Self::Told(told) => told.exit,
        }
    }

    pub(crate) fn value(option: &str, cause: &str, hint: &str) -> Self {
        Self::new(
            "E-USAGE",
            format!("{option} cannot be understood"),
            cause,
            hint,
        )
    }

    pub(crate) fn time(option: &str, text: &str) -> Self {
        let cause = format!("{text:?} is neither a duration nor a time");
        Self::new(
            "E-TIME",
            format!("{option} cannot be understood"),
            cause,
            format!("{option} 15m, {option} 2026-11-22T15:00Z"),
        )
    }

    pub(crate) fn empty_window(since: Timestamp, until: Timestamp) -> Self {
        let cause = format!("--since {since} is not before --until {until}");
        Self::new(
            "E-TIME",
            "the window is empty",
            cause,
            "--since 2h --until 1h",
        )
    }

    pub(crate) fn filter(option: &str, error: &FilterError) -> Self {
        Self::new(
            "E-FILTER",
            format!("{option} cannot be understood"),
            error.to_string(),
            error.hint.clone(),
        )
    }

    pub(crate) fn no_federator() -> Self {
        let cause = "neither --federator nor WEFT_FEDERATOR is set";
        Self::new(
            "E-CONFIG",
            "no federator to ask",
            cause,
            "export WEFT_FEDERATOR=fed.example:7443",
        )
    }

    pub(crate) fn no_identity() -> Self {
        let cause = "neither --identity nor WEFT_IDENTITY is set";
        Self::new(
            "E-CONFIG",
            "no certificate to ask with",
            cause,
            "export WEFT_IDENTITY=~/.config/weft",
        )
    }

    pub(crate) fn output(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::ReaderLeft,
            _ => Self::new(
                "E-OUTPUT",
                "the answer cannot be written",
                error.to_string(),
                "check the disk, or the reader",
            ),
        }
    }

    pub(crate) fn protocol(cause: impl Into<String>) -> Self {
        let hint = "compare weft --version with weft-federator --version";
        Self::new("E-PROTOCOL", "the answer makes no sense", cause, hint)
    }

    pub(crate) fn query(error: &QueryError) -> Self {
        Self::new(&error.code, &error.what, &error.cause, &error.hint)
    }

    pub(crate) fn identity(error: &IdentityError, directory: &std::path::Path) -> Self {
        let hint = match error {
            IdentityError::Exists(_) => "name another directory; nothing was changed".to_owned(),
            IdentityError::KeyReadable { path, .. } => format!("chmod 600 {}", path.display()),
            IdentityError::Domain { ca, .. } => format!("the CA issues for spiffe://{ca} only"),
            IdentityError::Name(_) => "letters, digits, '.', '_' and '-'".to_owned(),
            IdentityError::Io { .. } | IdentityError::Content { .. } | IdentityError::Crypto(_) => {
                "weft pki issue --role operator --region REGION --name NAME --out DIR".to_owned()
            }
        };
        let what = format!("certificates in {} cannot be used", directory.display());
        Self::new("E-IDENTITY", what, error.to_string(), hint)
    }

    /// A session that could not be made, or broke.
    pub(crate) fn transport(error: &TransportError, target: &Target) -> Self {
        let federator = &target.federator;
        let answer = format!("federator {federator} gave no answer");
        match error {
            TransportError::Unreachable { detail, .. } => Self::new(
                "E-REACH",
                format!("federator {federator} does not answer"),
                detail.clone(),
                "is it running, and is its UDP port open from here?",
            ),
            TransportError::TimedOut { .. } => Self::new(
                "E-TIMEOUT",
                answer,
                error.to_string(),
                "ask for less: --since 15m, --limit 100, --local",
            ),
            TransportError::PeerMisbehaved { code, detail } => {
                Self::misbehaved(*code, detail, target)
            }
            TransportError::Closed(reason) => Self::closed(reason, target),
            TransportError::StreamEnded => Self::new(
                "E-LOST",
                answer,
                "it ended the stream before the answer was complete",
                "its log says why; then ask again",
            ),
            TransportError::Misuse(detail) => {
                Self::new("E-INTERNAL", answer, detail.clone(), "please report this")
            }
        }
    }

    fn misbehaved(code: CloseCode, detail: &str, target: &Target) -> Self {
        match code {
            CloseCode::Role => {
                let what = format!("{} is not a federator", target.federator);
                Self::new(
                    "E-ROLE",
                    what,
                    detail,
                    "name a federator: --federator HOST:PORT",
                )
            }
            CloseCode::Version => Self::version(detail, target),
            _ => Self::protocol(detail),
        }
    }

    fn version(detail: &str, target: &Target) -> Self {
        let what = format!("federator {} speaks another version", target.federator);
        let hint = format!(
            "this weft speaks protocol {PROTOCOL_VERSION}: use the one of the federator's release"
        );
        Self::new("E-VERSION", what, detail, hint)
    }

    fn closed(reason: &CloseReason, target: &Target) -> Self {
        let federator = &target.federator;
        let refused = format!("federator {federator} refuses this certificate");
        match reason {
            CloseReason::Refused(refusal) => Self::refused(refusal, target),
            CloseReason::Peer {
                code: Some(CloseCode::Role),
                detail,
            } => {
                // Whom the federator lets do it stands in its words, if an operator is not enough.
                let role = match detail.ends_with("takes admin") {
                    true => "admin",
                    false => "operator",
                };
                let hint =
                    format!("weft pki issue --role {role} --region REGION --name NAME --out DIR");
                Self::new("E-ROLE", refused, detail.clone(), hint)
            }
            CloseReason::Peer {
                code: Some(CloseCode::Version),
                detail,
            } => Self::version(detail, target),
            CloseReason::Peer {
                code: Some(CloseCode::Limit | CloseCode::Draining | CloseCode::Superseded),
                ..
            } => {
                let what = format!("federator {federator} is busy");
                Self::new(
                    "E-BUSY",
                    what,
                    reason.to_string(),
                    "ask again in a moment, or another federator",
                )
            }
            _ => {
                let what = format!("federator {federator} went away");
                Self::new(
                    "E-LOST",
                    what,
                    reason.to_string(),
                    "its log says why; then ask again",
                )
            }
        }
    }

    fn refused(refusal: &Refusal, target: &Target) -> Self {
        let what = format!(
            "no trust between {} and federator {}",
            target.identity.display(),
            target.federator
        );
        let hint = match refusal {
            Refusal::Expired => "weft pki issue … makes a new certificate; compare both clocks",
            _ => "both certificates must come from one CA: weft pki issue",
        };
        Self::new("E-TRUST", what, refusal.to_string(), hint)
    }
}

impl Told {
    /// As printed on stderr.
    pub fn lines(&self, red: bool) -> String {
        let error = if red {
            "\x1b[1;31merror:\x1b[0m"
        } else {
            "error:"
        };
        let mut text = format!("{error} {}\n", plain(&self.what));
        for (label, line) in [("cause:", &self.cause), ("hint: ", &self.hint)] {
            if !line.is_empty() {
                text.push_str(&format!("{label} {}\n", plain(line)));
            }
        }
        text.push_str(&format!("more:  weft help {}\n", plain(&self.code)));
        text
    }
}

/// Help and version go to stdout; anything else typed wrongly becomes four lines like every error.
pub(crate) fn usage(
    error: &clap::Error,
    surroundings: &Surroundings,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let answered = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Some(0),
        _ => None,
    };
    if let Some(code) = answered {
        let text = error.render();
        let written =
            if surroundings.stdout_is_terminal && crate::output::colour_wanted(surroundings) {
                write!(out, "{}", text.ansi())
            } else {
                write!(out, "{text}")
            };
        // Nothing is left to do when nobody reads the help.
        let _ = written.and_then(|()| out.flush());
        return code;
    }
    let told = told(error);
    let red = surroundings.stderr_is_terminal && crate::output::colour_wanted(surroundings);
    // There is nowhere else to say that stderr is closed.
    let _ = err.write_all(told.lines(red).as_bytes());
    told.exit
}

/// The verb that a line of usage is about, and the words that lead to it.
fn meant(usage: &str) -> (Vec<&str>, clap::Command) {
    let mut words = vec!["weft"];
    let mut command = Args::command();
    for word in usage.split_whitespace().skip(1) {
        let Some(found) = command.find_subcommand(word).cloned() else {
            break;
        };
        words.push(word);
        command = found;
    }
    (words, command)
}

fn told(error: &clap::Error) -> Told {
    let rendered = error.render().to_string();
    let mut blocks = rendered.split("\n\n").map(str::trim);
    let first = blocks.next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let (what, cause) = first.split_once('\n').unwrap_or((first, ""));
    let usage = rendered
        .lines()
        .find_map(|line| line.strip_prefix("Usage: "));
    let tip = rendered
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "));
    let mut hint = match (tip, usage) {
        (Some(tip), _) => tip.to_owned(),
        (None, Some(usage)) => usage.to_owned(),
        (None, None) => "weft --help".to_owned(),
    };
    let cause = cause.trim().trim_start_matches('[').trim_end_matches(']');
    let mut cause: String = cause.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut what = what.to_owned();
    let (words, command) = meant(usage.unwrap_or_default());
    match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            what = "a verb is missing".to_owned();
            let verbs = command.get_subcommands().map(clap::Command::get_name);
            cause = format!("there are {}", verbs.collect::<Vec<_>>().join(", "));
            hint = format!("{} --help", words.join(" "));
        }
        // What may stand there, where that is one of a few words.
        ErrorKind::MissingRequiredArgument => {
            for argument in command
                .get_positionals()
                .filter(|one| one.is_required_set())
            {
                let values = argument.get_possible_values();
                if !values.is_empty() {
                    let values: Vec<_> = values.iter().map(|value| value.get_name()).collect();
                    cause = format!("{cause}: one of {}", values.join(", "));
                }
            }
        }
        _ => {}
    }
    Told {
        code: "E-USAGE".to_owned(),
        what,
        cause,
        hint,
        exit: EXIT_ERROR,
    }
}
