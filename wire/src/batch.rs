//! Batches of halves as bytes.

use thiserror::Error;

use crate::codec;
use crate::control::CloseCode;
use crate::frame::Kind;
use crate::model::{AgentKey, Half, HalfBatch, HalfId, Owner};

/// Most rows in a batch.
pub const MAX_ROWS: usize = 16_384;
/// Most owners in a batch's dictionary.
pub const MAX_OWNERS: usize = 16_384;

/// The peer misbehaved, or a file is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    /// Not decodable.
    #[error("a batch cannot be decoded: {0}")]
    Malformed(String),
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
        CloseCode::Malformed
    }
}

/// Encodes a batch. [`crate::Half::id`] does not travel; cookie and boot do.
pub fn encode(batch: &HalfBatch) -> Result<Vec<u8>, BatchError> {
    encode_rows(batch.boot, &batch.owners, &batch.halves)
}

/// Encodes rows that point into `owners`; only owners that a row points to travel.
pub fn encode_rows(boot: u64, owners: &[Owner], halves: &[Half]) -> Result<Vec<u8>, BatchError> {
    check("rows", halves.len(), MAX_ROWS)?;
    let batch = HalfBatch {
        boot,
        owners: owners.to_vec(),
        halves: halves.to_vec(),
    };
    codec::to_bytes(Kind::HalfBatch, &batch)
        .map_err(|error| BatchError::Malformed(error.to_string()))
}

/// Decodes a batch of this agent's; ids are computed from its key.
pub fn decode(bytes: &[u8], agent: AgentKey) -> Result<HalfBatch, BatchError> {
    let mut batch: HalfBatch = codec::from_bytes(Kind::HalfBatch, bytes)
        .map_err(|error| BatchError::Malformed(error.to_string()))?;
    check("rows", batch.halves.len(), MAX_ROWS)?;
    check("owners", batch.owners.len(), MAX_OWNERS)?;
    for half in &mut batch.halves {
        half.id = HalfId::new(agent, batch.boot, half.cookie);
        if half.owner as usize >= batch.owners.len() {
            return Err(BatchError::Malformed(
                "an owner that is not in the dictionary".into(),
            ));
        }
    }
    Ok(batch)
}

fn check(what: &'static str, found: usize, limit: usize) -> Result<(), BatchError> {
    if found > limit {
        Err(BatchError::Limit { what, found, limit })
    } else {
        Ok(())
    }
}
