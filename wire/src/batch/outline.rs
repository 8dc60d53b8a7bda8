//! What a batch of halves and one of lookups have in common: version, sizes, owners, dictionaries, planes, bits.

use super::bits::{Cursor, SLACK_BYTES, write_varint};
use super::encode::compress;
use super::ints::{self, Plane, Written};
use super::{BatchError, MAX_PLAIN_BYTES, check};

/// What a batch begins with.
pub(super) struct Head {
    pub(super) version: u8,
    pub(super) rows: usize,
    pub(super) boot: u64,
}

/// Begins a batch: everything up to the stored planes. `plain` are the dictionaries, to which the pairs' layouts are added.
pub(super) fn begin(
    head: &Head,
    owners: &[u8],
    mut plain: Vec<u8>,
    pairs: &[Written],
) -> Result<Vec<u8>, BatchError> {
    let (mut planes, mut stored) = (Vec::new(), Vec::new());
    for pair in pairs {
        ints::write_layouts(&mut plain, pair);
        match &pair.plane {
            Plane::None => {}
            Plane::Compressed(bytes) => planes.push(bytes.as_slice()),
            Plane::Stored(bytes) => stored.extend_from_slice(bytes),
        }
    }
    let plain_bytes = plain.len() + planes.iter().map(|plane| plane.len()).sum::<usize>();
    check("bytes of owners", owners.len(), MAX_PLAIN_BYTES)?;
    check("bytes of dictionaries", plain_bytes, MAX_PLAIN_BYTES)?;
    let failed = |_| BatchError::Malformed("the compressor failed");
    let compressed_owners = compress(owners, &[]).map_err(failed)?;
    let compressed = compress(&plain, &planes).map_err(failed)?;
    let mut out = vec![head.version];
    for count in [
        head.rows,
        owners.len(),
        compressed_owners.len(),
        plain_bytes,
        compressed.len(),
    ] {
        write_varint(&mut out, count as u64);
    }
    out.extend_from_slice(&head.boot.to_le_bytes());
    out.extend_from_slice(&compressed_owners);
    out.extend_from_slice(&compressed);
    out.extend_from_slice(&stored);
    Ok(out)
}

/// Ends a batch: bits and slack.
pub(super) fn end(out: &mut Vec<u8>, pairs: &[Written]) {
    pairs
        .iter()
        .for_each(|pair| out.extend_from_slice(&pair.bits));
    out.extend_from_slice(&[0; SLACK_BYTES]);
}

/// The parts of a batch before anything in them is looked at.
pub(super) struct Outline<'a> {
    pub(super) rows: usize,
    pub(super) boot: u64,
    /// Plain bytes, compressed.
    pub(super) owners: (usize, &'a [u8]),
    pub(super) dictionaries: (usize, &'a [u8]),
    /// What [`begin`] wrote last, and all that came after.
    pub(super) rest: &'a [u8],
}

/// Bytes that the compressed parts of a batch, of halves or of lookups, have when unpacked; 0 of what is none.
pub fn unpacked_bytes(bytes: &[u8]) -> usize {
    let mut cursor = Cursor(bytes);
    let mut sum = || {
        cursor.byte()?;
        let _rows = cursor.varint()?;
        let owners = cursor.count("bytes after decompression", MAX_PLAIN_BYTES)?;
        let _compressed = cursor.varint()?;
        let dictionaries = cursor.count("bytes after decompression", MAX_PLAIN_BYTES)?;
        Ok::<_, BatchError>(owners + dictionaries)
    };
    sum().unwrap_or(0)
}

impl<'a> Outline<'a> {
    /// Of a batch of this version, with at most `most` of what it has.
    pub(super) fn parse(
        bytes: &'a [u8],
        version: u8,
        (what, most): (&'static str, usize),
    ) -> Result<Self, BatchError> {
        let mut cursor = Cursor(bytes);
        let found = cursor.byte()?;
        if found != version {
            return Err(BatchError::Version(found));
        }
        let rows = cursor.count(what, most)?;
        let mut part = || -> Result<_, BatchError> {
            let plain = cursor.count("bytes after decompression", MAX_PLAIN_BYTES)?;
            Ok((plain, cursor.count("compressed bytes", bytes.len())?))
        };
        let (owners, dictionaries) = (part()?, part()?);
        Ok(Self {
            rows,
            boot: u64::from_le_bytes(cursor.array()?),
            owners: (owners.0, cursor.take(owners.1)?),
            dictionaries: (dictionaries.0, cursor.take(dictionaries.1)?),
            rest: cursor.0,
        })
    }
}
