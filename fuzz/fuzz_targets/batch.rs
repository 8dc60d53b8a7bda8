//! A batch: what decodes encodes again, and decodes to the same rows.
//!
//! Random changes to compressed bytes seldom survive decompression. Where the first byte is odd, the rest is therefore
//! taken as a batch's parts before compression, and put together here.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_wire::AgentKey;
use weft_wire::batch::{BATCH_VERSION, decode, encode};

const AGENT: AgentKey = AgentKey(7);

/// Rows (`u16`); length (`u16`) of what is to be compressed as owners, that; the same for the dictionaries; the rest.
fn assemble(parts: &[u8]) -> Option<Vec<u8>> {
    let (rows, parts) = parts.split_first_chunk::<2>()?;
    let (owners, parts) = compress(parts)?;
    let (dictionaries, rest) = compress(parts)?;
    let mut out = vec![BATCH_VERSION];
    varint(&mut out, usize::from(u16::from_le_bytes(*rows)));
    for (plain_bytes, compressed) in [&owners, &dictionaries] {
        varint(&mut out, *plain_bytes);
        varint(&mut out, compressed.len());
    }
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&owners.1);
    out.extend_from_slice(&dictionaries.1);
    out.extend_from_slice(rest);
    Some(out)
}

/// Plain length and compressed bytes of the first part, and what follows it.
fn compress(parts: &[u8]) -> Option<((usize, Vec<u8>), &[u8])> {
    let (length, parts) = parts.split_first_chunk::<2>()?;
    let (plain, rest) = parts.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    Some(((plain.len(), zstd::bulk::compress(plain, 1).ok()?), rest))
}

/// Three bytes of a variable-length integer hold what there can be here.
fn varint(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(&[
        number as u8 | 0x80,
        (number >> 7) as u8 | 0x80,
        (number >> 14) as u8,
    ]);
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, bytes)) = data.split_first() else {
        return;
    };
    let assembled = if mode % 2 == 1 {
        assemble(bytes)
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
