//! Everything a command needs from outside: a clock, a federator, patience.

use std::path::PathBuf;
use std::time::Duration;

use weft_wire::Timestamp;
use weft_wire::federation::{FederationAnswer, FederationRequest};
use weft_wire::identity::{IdentityAnswer, IdentityRequest};
use weft_wire::query::{Request, Response};

use crate::failure::Failure;

/// Whom to ask, as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `host:port`.
    pub federator: String,
    /// Directory of the own certificate.
    pub identity: PathBuf,
}

/// What came in answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// In order. Ends with [`Response::End`] or [`Response::Error`] unless it was interrupted.
    pub responses: Vec<Response>,
    /// Ctrl-C cut it short.
    pub interrupted: bool,
}

/// How a pause ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Time passed.
    Elapsed,
    /// Ctrl-C.
    Interrupted,
}

/// Whether to show that something is happening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Say nothing.
    Silent,
    /// A line on stderr once it takes long, gone when it is done.
    Shown,
}

/// The world outside.
pub trait World {
    /// The time.
    fn now(&self) -> Timestamp;
    /// Asks and waits for the whole answer, or Ctrl-C.
    fn ask(
        &mut self,
        target: &Target,
        request: &Request,
        progress: Progress,
    ) -> Result<Received, Failure>;
    /// Asks something about certificates.
    fn identify(
        &mut self,
        target: &Target,
        request: &IdentityRequest,
    ) -> Result<IdentityAnswer, Failure>;
    /// Asks something about the federators themselves. A world that is a script knows none.
    fn federation(
        &mut self,
        _target: &Target,
        _request: &FederationRequest,
    ) -> Result<FederationAnswer, Failure> {
        Err(Failure::protocol("no federators are known"))
    }
    /// Waits, or until Ctrl-C.
    fn pause(&mut self, duration: Duration) -> Pause;
}
