//! Bits and variable-length integers, written and read with bounds.

use super::BatchError;

/// Widest field that one unaligned load of 8 bytes always covers.
pub(super) const LOAD_BITS: u32 = 56;
/// Zero bytes behind all bit sections, so that a load near the end stays inside.
pub(super) const SLACK_BYTES: usize = 8;

/// Appends bit fields, least significant bit first.
#[derive(Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    pending: u128,
    pending_bits: u32,
}

impl BitWriter {
    /// Appends the low `width` (at most 64) bits of `value`, which has no others.
    pub(super) fn write(&mut self, value: u64, width: u32) {
        self.pending |= u128::from(value) << self.pending_bits;
        self.pending_bits += width;
        if self.pending_bits >= 64 {
            self.bytes
                .extend_from_slice(&(self.pending as u64).to_le_bytes());
            self.pending >>= 64;
            self.pending_bits -= 64;
        }
    }

    /// The bytes, the last one filled with zeros.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let rest = self.pending_bits.div_ceil(8) as usize;
        self.bytes
            .extend_from_slice(&self.pending.to_le_bytes()[..rest]);
        self.bytes
    }
}

/// The 8 bytes at an offset, or the last 8 where it is beyond them: the caller checks afterwards that it did not read
/// past its section. No bytes at all read as zeros.
#[inline(always)]
pub(super) fn load(bytes: &[u8], at: usize) -> u64 {
    // One comparison without a branch; the compiler sees that the range is inside.
    let Some(last) = bytes.len().checked_sub(8) else {
        return 0;
    };
    let at = at.min(last);
    bytes[at..]
        .first_chunk()
        .map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// The lowest `width` bits set.
pub(super) fn mask(width: u32) -> u64 {
    1u64.checked_shl(width).map_or(u64::MAX, |bit| bit - 1)
}

/// How many bits a value needs.
pub(super) fn bit_length(value: u64) -> u32 {
    u64::BITS - value.leading_zeros()
}

/// Appends an integer in groups of 7 bits, the least significant first.
pub(super) fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads from the front of bytes.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], BatchError> {
        let (taken, rest) = self
            .0
            .split_at_checked(bytes)
            .ok_or(BatchError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], BatchError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(BatchError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, BatchError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn varint(&mut self) -> Result<u64, BatchError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(BatchError::Malformed("an integer of more than 64 bits"))
    }

    /// A number of things, within its limit.
    pub(super) fn count(&mut self, what: &'static str, limit: usize) -> Result<usize, BatchError> {
        let found = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        super::check(what, found, limit)?;
        Ok(found)
    }

    /// A text after its length in bytes.
    pub(super) fn text(&mut self, what: &'static str, limit: usize) -> Result<&'a str, BatchError> {
        let length = self.count(what, limit)?;
        std::str::from_utf8(self.take(length)?)
            .map_err(|_| BatchError::Malformed("a text that is not UTF-8"))
    }
}
