//! Connections older than the hooks.

use std::path::{Path, PathBuf};

use crate::attribution::Host;
use crate::capture::Capture;
use crate::sink::BatchSink;

/// Looks at sockets that the hooks do not report.
pub struct Snapshot {
    _cgroup: PathBuf,
}

impl Snapshot {
    /// Of the processes in this cgroup.
    pub fn new(cgroup: &Path) -> Self {
        Self { _cgroup: cgroup.into() }
    }

    /// Once, when the agent starts.
    pub fn start<H: Host, S: BatchSink>(&mut self, _capture: &mut Capture<H, S>) {}

    /// Now and then.
    pub fn sweep<H: Host, S: BatchSink>(&mut self, _capture: &mut Capture<H, S>) {}
}
