//! A batch: what decodes encodes again, and decodes to the same rows.
//!
//! Random changes to compressed bytes seldom survive decompression. Where the first byte is odd, the rest is therefore
//! taken as a batch's parts before compression, and put together here.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_wire::AgentKey;
use weft_wire::batch::{BATCH_VERSION, decode, encode};

const AGENT: AgentKey = AgentKey(7);

#[path = "assemble.rs"]
mod assemble;

fuzz_target!(|data: &[u8]| {
    let Some((mode, bytes)) = data.split_first() else {
        return;
    };
    let assembled = if mode % 2 == 1 {
        assemble::assemble(BATCH_VERSION, bytes)
    } else {
        Some(bytes.to_vec())
    };
    let Some(bytes) = assembled else { return };
    let Ok(batch) = decode(&bytes, AGENT) else {
        return;
    };
    let again = encode(&batch).expect("what decodes encodes");
    let again = decode(&again, AGENT).expect("what was encoded decodes");
    assert_eq!(batch.boot, again.boot);
    assert_eq!(batch.halves.len(), again.halves.len());
    for (one, other) in batch.halves.iter().zip(&again.halves) {
        assert_eq!(
            batch.owners[one.owner as usize],
            again.owners[other.owner as usize]
        );
        assert_eq!(batch.name_of(one), again.name_of(other));
        let mut other = *other;
        (other.owner, other.name) = (one.owner, one.name);
        assert_eq!(*one, other);
    }
});
