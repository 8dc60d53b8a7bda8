//! Batches from their parts before compression.

/// Rows (`u16`); length (`u16`) of what is to be compressed as owners, that; the same for the dictionaries; the rest.
pub fn assemble(version: u8, parts: &[u8]) -> Option<Vec<u8>> {
    let (rows, parts) = parts.split_first_chunk::<2>()?;
    let (owners, parts) = compress(parts)?;
    let (dictionaries, rest) = compress(parts)?;
    let mut out = vec![version];
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
