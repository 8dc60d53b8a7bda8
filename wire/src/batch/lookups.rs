//! Batches of lookups as bytes: columns and dictionaries as halves have them, see [`super`]. `docs/wire-format.md` has
//! the layout.
//!
//! What repeats is a *flow* (who asked whom, and how), a *question* (name, type, what was meant) or a *set* (the
//! records of an answer without their times); a row names each by its index. Times to live follow in a column of
//! their own.

mod decode;
mod encode;

use super::{BatchError, check};
use crate::model::{Answer, Lookup, LookupBatch, MAX_ANSWERS, Owner};

pub use decode::LookupDecoder;

/// Version of the layout; the first byte of every batch.
pub const LOOKUP_VERSION: u8 = 1;
/// Most lookups in a batch; so also the most owners, flows, questions and sets.
pub const MAX_LOOKUPS: usize = 8_192;
/// Most distinct texts in a batch: names, what was meant, aliases.
pub const MAX_TEXTS: usize = 4 * MAX_LOOKUPS;
/// Most bytes of text in a batch after decoding, when every row has its own copy.
pub const MAX_LOOKUP_TEXT_BYTES: usize = 16 << 20;
/// Most records in the sets of a batch.
const MAX_RECORDS: usize = MAX_LOOKUPS * MAX_ANSWERS;

/// Encodes a batch. Of an IPv6 address, scope and flow label do not travel. Texts and lists that are over their limits
/// are cut; [`Lookup::answer_total`] still counts all answers.
pub fn encode(batch: &LookupBatch) -> Result<Vec<u8>, BatchError> {
    encode_rows(batch.boot, &batch.owners, &batch.lookups)
}

/// Encodes rows that point into `owners`; only owners that a row points to travel, so indices may change.
///
/// An error of the sort [`BatchError::Limit`] means that the rows must be split.
pub fn encode_rows(boot: u64, owners: &[Owner], lookups: &[Lookup]) -> Result<Vec<u8>, BatchError> {
    check("lookups", lookups.len(), MAX_LOOKUPS)?;
    let text = lookups.iter().map(text_bytes).sum();
    check("bytes of text", text, MAX_LOOKUP_TEXT_BYTES)?;
    encode::encode(boot, owners, lookups)
}

/// Decodes one batch. Who decodes many keeps a [`LookupDecoder`].
pub fn decode(bytes: &[u8]) -> Result<LookupBatch, BatchError> {
    LookupDecoder::new().decode(bytes)
}

fn text_bytes(lookup: &Lookup) -> usize {
    let aliases = lookup.answers.iter().map(|answer| match answer {
        Answer::Address(..) => 0,
        Answer::Alias(name) => name.len(),
    });
    lookup.name.len() + lookup.search_of.as_ref().map_or(0, String::len) + aliases.sum::<usize>()
}

/// What a flow says in one byte: bit 0 role, bit 1 multicast, bits 2 and 3 transport, bit 4 truncated.
mod flags {
    pub(super) const SERVER: u64 = 1;
    pub(super) const MDNS: u64 = 2;
    pub(super) const TRANSPORT_SHIFT: u32 = 2;
    pub(super) const TRUNCATED: u64 = 16;
    pub(super) const ALL: u64 = 31;
}

#[cfg(test)]
mod tests;
