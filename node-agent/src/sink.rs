//! Where finished batches go. The spool is one; tests and the bench have simpler ones.

use std::io;

use weft_wire::{HalfBatch, LookupBatch};

/// Takes batches in order. What it took must survive the agent's death: only then does the agent tell the kernel that
/// it may reuse the ring's space.
pub trait BatchSink: Send {
    /// Takes a batch and, with it and as durably, the ring position behind its last record.
    fn append(&mut self, batch: &HalfBatch, ring_position: u64) -> io::Result<()>;

    /// The position given with the newest batch it holds or ever held; `None` when it never took one.
    fn last_ring_position(&self) -> Option<u64>;

    /// The same with lookups and the ring of name servers' packets.
    fn append_lookups(&mut self, _batch: &LookupBatch, _position: u64) -> io::Result<()> {
        Ok(())
    }

    /// The position given with the newest lookups it holds.
    fn last_lookup_position(&self) -> Option<u64> {
        None
    }
}

/// Takes everything and keeps nothing.
#[derive(Debug, Default)]
pub struct Discard {
    last: Option<u64>,
}

impl BatchSink for Discard {
    fn append(&mut self, _batch: &HalfBatch, ring_position: u64) -> io::Result<()> {
        self.last = Some(ring_position);
        Ok(())
    }

    fn last_ring_position(&self) -> Option<u64> {
        self.last
    }
}
