//! What can go wrong in the lab.

use std::io;
use std::path::Path;
use std::process::ExitStatus;

/// Result of everything in this crate.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// Why the lab could not do something.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A command ran and failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Its answer.
        source: io::Error,
    },
    /// The machine lacks something.
    #[error("{what} is missing\nhint: {hint}")]
    Missing {
        /// What.
        what: String,
        /// How to get it.
        hint: String,
    },
    /// A program answered in a form that was not understood.
    #[error("cannot understand {what}: {text}")]
    Unreadable {
        /// Whose answer.
        what: String,
        /// The answer, or why.
        text: String,
    },
    /// A condition did not come true within a generous time.
    #[error("waited in vain for {what}; last state: {last}")]
    InVain {
        /// The condition.
        what: String,
        /// What was seen last.
        last: String,
    },
    /// The truth contradicts itself, so that nothing can be measured against it.
    #[error("the ground truth is not sound: {0}")]
    Truth(String),
}

/// Says what was tried when the operating system refuses it.
pub(crate) trait During<T> {
    /// Wraps the error with `what` and the path.
    fn during(self, what: &str, path: &Path) -> Result<T>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, what: &str, path: &Path) -> Result<T> {
        self.map_err(|source| LabError::Io {
            what: format!("{what} {}", path.display()),
            source,
        })
    }
}
