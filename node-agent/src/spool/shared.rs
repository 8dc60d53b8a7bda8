//! The spool between the capture that writes and the uplink that reads.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;
use weft_wire::{HalfBatch, LookupBatch};

use super::{Spool, SpoolError};
use crate::sink::BatchSink;

/// A spool with two users. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedSpool {
    spool: Arc<Mutex<Spool>>,
    appended: Arc<Notify>,
}

impl SharedSpool {
    /// Shares a spool.
    pub fn new(spool: Spool) -> Self {
        Self {
            spool: Arc::new(Mutex::new(spool)),
            appended: Arc::default(),
        }
    }

    /// The spool, for a moment: its calls are short (page cache, no network).
    pub fn lock(&self) -> MutexGuard<'_, Spool> {
        // A panic while it was held leaves at worst an entry that the next append overwrites.
        self.spool
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Writes to the disk what a power loss could still take. That takes the time the disk takes: the spool is not locked meanwhile.
    pub fn sync(&self) -> Result<(), SpoolError> {
        let files = self.lock().unsynced()?;
        files.iter().try_for_each(|file| {
            file.sync_data().map_err(|source| SpoolError::Io {
                path: "the spool".into(),
                source,
            })
        })
    }

    /// Waits until something was appended since the last wait.
    pub async fn appended(&self) {
        self.appended.notified().await;
    }
}

impl BatchSink for SharedSpool {
    fn append(&mut self, batch: &HalfBatch, ring_position: u64) -> io::Result<()> {
        self.lock()
            .append(batch, ring_position)
            .map_err(io::Error::other)?;
        self.appended.notify_one();
        Ok(())
    }

    fn last_ring_position(&self) -> Option<u64> {
        self.lock().last_ring_position()
    }

    fn append_lookups(&mut self, batch: &LookupBatch, position: u64) -> io::Result<()> {
        self.lock()
            .append_lookups(batch, position)
            .map_err(io::Error::other)?;
        self.appended.notify_one();
        Ok(())
    }

    fn last_lookup_position(&self) -> Option<u64> {
        self.lock().last_lookup_position()
    }
}
