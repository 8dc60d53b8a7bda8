//! A batch of lookups: what decodes encodes again, and decodes to the same rows.
//!
//! Where the first byte is odd, the rest is taken as a batch's parts before compression, as for `batch`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_wire::batch::lookups::{LOOKUP_VERSION, decode, encode};

#[path = "assemble.rs"]
mod assemble;

fuzz_target!(|data: &[u8]| {
    let Some((mode, bytes)) = data.split_first() else {
        return;
    };
    let assembled = if mode % 2 == 1 {
        assemble::assemble(LOOKUP_VERSION, bytes)
    } else {
        Some(bytes.to_vec())
    };
    let Some(bytes) = assembled else { return };
    let Ok(batch) = decode(&bytes) else {
        return;
    };
    let again = encode(&batch).expect("what decodes encodes");
    let again = decode(&again).expect("what was encoded decodes");
    assert_eq!(batch.boot, again.boot);
    assert_eq!(batch.lookups.len(), again.lookups.len());
    for (one, other) in batch.lookups.iter().zip(&again.lookups) {
        assert_eq!(
            batch.owners[one.owner as usize],
            again.owners[other.owner as usize]
        );
        let mut other = other.clone();
        other.owner = one.owner;
        assert_eq!(*one, other);
    }
});
