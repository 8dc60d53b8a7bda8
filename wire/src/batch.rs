//! Batches of halves as bytes: columns, dictionaries, compression. `docs/wire-format.md` has the layout.
//!
//! A batch stands for itself: nothing in it refers to another one. [`encode`] makes one, [`BatchDecoder`] reads one
//! into [`Columns`] without allocating per row, [`decode`] into a [`HalfBatch`].
//!
//! How a row becomes about 20 bytes: what repeats (state, owner, addresses, the server's port) is a *flow* and named
//! by its index; times are differences; every number column is cut into up to 16 classes (a base and a width in bits)
//! chosen from its values, so that a number costs its class, which compresses, and its offset in the class, which
//! does not. Initial sequence numbers are random and stand as they are.

mod bits;
mod columns;
mod decode;
mod dictionary;
mod encode;
mod ints;
pub mod lookups;
mod outline;
mod unpack;

use thiserror::Error;

use crate::control::CloseCode;
use crate::model::{AgentKey, Half, HalfBatch, Owner, PeerName};

pub use columns::{Columns, Flow, FlowFingerprint};
pub use decode::BatchDecoder;
pub use outline::unpacked_bytes;

/// Version of the layout; the first byte of every batch.
pub const BATCH_VERSION: u8 = 2;
/// Most rows in a batch; so also the most flows, owners and names.
pub const MAX_ROWS: usize = 16_384;
/// Most distinct addresses in a batch: two for each row.
pub const MAX_ADDRESSES: usize = 2 * MAX_ROWS;
/// Most bytes of either compressed part after decompression: owners; dictionaries and up to 7 bytes a row.
pub const MAX_PLAIN_BYTES: usize = 4 << 20;

/// The peer misbehaved, or a file is damaged; when encoding, the batch must be split.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    /// A layout of another version.
    #[error("a batch of layout {0}, which this program does not know")]
    Version(u8),
    /// It ends too early.
    #[error("a batch is truncated")]
    Truncated,
    /// Not decodable.
    #[error("a batch cannot be decoded: {0}")]
    Malformed(&'static str),
    /// Over a limit.
    #[error("a batch has {found} {what}, the limit is {limit}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
}

impl BatchError {
    /// What the peer hears.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Version(_) => CloseCode::Version,
            Self::Truncated | Self::Malformed(_) | Self::Limit { .. } => CloseCode::Malformed,
        }
    }
}

/// Encodes a batch. [`Half::id`] does not travel; cookie and boot do.
///
/// Of an IPv6 address, scope and flow label do not travel, nor does [`Half::named_before_us`] where there is no name. Texts
/// and lists that are over their limits ([`Owner::within_limits`], [`crate::model::MAX_NAME_BYTES`]) are cut.
pub fn encode(batch: &HalfBatch) -> Result<Vec<u8>, BatchError> {
    Rows::of(batch).encode()
}

/// Rows that point into owners and names. Only what a row points to travels, so indices may change.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Names the boot of the kernel.
    pub boot: u64,
    /// Of [`Half::owner`].
    pub owners: &'a [Owner],
    /// Of [`Half::name`].
    pub names: &'a [PeerName],
    /// The rows.
    pub halves: &'a [Half],
}

impl<'a> Rows<'a> {
    /// All rows of a batch.
    pub fn of(batch: &'a HalfBatch) -> Self {
        Self {
            boot: batch.boot,
            owners: &batch.owners,
            names: &batch.names,
            halves: &batch.halves,
        }
    }

    /// Encodes them as a batch; see [`encode()`].
    pub fn encode(&self) -> Result<Vec<u8>, BatchError> {
        check("rows", self.halves.len(), MAX_ROWS)?;
        encode::encode(self)
    }
}

/// Decodes one batch of this agent's; ids are computed from its key. Who decodes many keeps a [`BatchDecoder`].
pub fn decode(bytes: &[u8], agent: AgentKey) -> Result<HalfBatch, BatchError> {
    BatchDecoder::new().decode_batch(bytes, agent)
}

fn check(what: &'static str, found: usize, limit: usize) -> Result<(), BatchError> {
    if found > limit {
        Err(BatchError::Limit { what, found, limit })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
