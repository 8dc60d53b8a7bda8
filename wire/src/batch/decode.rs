//! Bytes to columns. Whatever the bytes are: an error or a valid batch, within the limits.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use zstd::bulk::Decompressor;

use super::bits::{Cursor, SLACK_BYTES, unzigzag};
use super::columns::{Columns, Flow, Kind};
use super::ints::Reader;
use super::{BATCH_VERSION, BatchError, MAX_ADDRESSES, MAX_PLAIN_BYTES, MAX_ROWS};
use crate::codec;
use crate::frame::Kind as FrameKind;
use crate::model::{AgentKey, HalfBatch, Owner};

/// Pairs of number columns of the format.
const PAIRS: usize = 6;

/// Decodes batches one after another, and keeps its memory in between: at most [`MAX_PLAIN_BYTES`] and about 150 bytes
/// for each of [`MAX_ROWS`] rows.
#[derive(Default)]
pub struct BatchDecoder {
    decompressor: Option<Decompressor<'static>>,
    plain: Vec<u8>,
    /// What `columns.owners` was decoded from; empty when it was not.
    owner_bytes: Vec<u8>,
    numbers: [[Vec<u64>; 2]; PAIRS],
    columns: Columns,
}

impl std::fmt::Debug for BatchDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchDecoder")
            .field("rows", &self.columns.len())
            .finish_non_exhaustive()
    }
}

/// The parts of a batch before anything in them is looked at.
struct Outline<'a> {
    rows: usize,
    plain_bytes: usize,
    boot: u64,
    compressed: &'a [u8],
    /// Sequence numbers, bits, slack.
    rest: &'a [u8],
}

impl<'a> Outline<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let mut cursor = Cursor(bytes);
        match cursor.byte()? {
            BATCH_VERSION => {}
            other => return Err(BatchError::Version(other)),
        }
        let rows = cursor.count("rows", MAX_ROWS)?;
        let plain_bytes = cursor.count("bytes after decompression", MAX_PLAIN_BYTES)?;
        let compressed_bytes = cursor.count("compressed bytes", bytes.len())?;
        let boot = u64::from_le_bytes(cursor.array()?);
        Ok(Self {
            rows,
            plain_bytes,
            boot,
            compressed: cursor.take(compressed_bytes)?,
            rest: cursor.0,
        })
    }
}

impl BatchDecoder {
    /// A decoder without memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes a batch. The columns are valid until the next call; after an error there are none.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<&Columns, BatchError> {
        self.columns.flow.clear();
        let outline = Outline::parse(bytes)?;
        self.decompress(&outline)?;
        // Taken for the time of the call, so that `self` can be filled from it.
        let plain = std::mem::take(&mut self.plain);
        let decoded = self.fill(&outline, &plain);
        self.plain = plain;
        if decoded.is_err() {
            self.columns.flow.clear();
        }
        decoded.map(|()| &self.columns)
    }

    /// As [`decode`](Self::decode), as rows with their owners; ids are computed from the agent's key.
    pub fn decode_batch(&mut self, bytes: &[u8], agent: AgentKey) -> Result<HalfBatch, BatchError> {
        let columns = self.decode(bytes)?;
        Ok(HalfBatch {
            names: Vec::new(),
            boot: columns.boot,
            owners: columns.owners.clone(),
            halves: columns.halves(agent).collect(),
        })
    }

    fn decompress(&mut self, outline: &Outline<'_>) -> Result<(), BatchError> {
        let failed = |_| BatchError::Malformed("its compressed part");
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new().map_err(failed)?),
        };
        self.plain.resize(outline.plain_bytes, 0);
        let written = decompressor
            .decompress_to_buffer(outline.compressed, self.plain.as_mut_slice())
            .map_err(failed)?;
        if written == outline.plain_bytes {
            Ok(())
        } else {
            Err(BatchError::Truncated)
        }
    }

    fn fill(&mut self, outline: &Outline<'_>, plain: &[u8]) -> Result<(), BatchError> {
        let mut cursor = Cursor(plain);
        self.columns.boot = outline.boot;
        self.read_dictionaries(&mut cursor, outline.rows)?;
        let mut pairs = Vec::with_capacity(PAIRS);
        for _ in 0..PAIRS {
            pairs.push(Reader::parse(&mut cursor)?);
        }
        let bits = pairs
            .iter()
            .try_fold(SLACK_BYTES, |sum, pair| sum.checked_add(pair.bytes));
        let isns = bits
            .and_then(|bits| outline.rest.len().checked_sub(bits))
            .ok_or(BatchError::Truncated)?;
        let (isns, bits) = outline.rest.split_at(isns);
        self.read_numbers(&mut cursor, &pairs, outline.rows, bits)?;
        if !cursor.0.is_empty() {
            return Err(BatchError::Malformed("bytes after its class columns"));
        }
        self.finish()?;
        self.read_isns(isns)
    }

    fn read_dictionaries(
        &mut self,
        cursor: &mut Cursor<'_>,
        rows: usize,
    ) -> Result<(), BatchError> {
        let owner_bytes = cursor.count("bytes of owners", MAX_PLAIN_BYTES)?;
        let owner_bytes = cursor.take(owner_bytes)?;
        // A node's processes change more slowly than its batches come: most often they are those of the last batch.
        if owner_bytes != self.owner_bytes {
            self.owner_bytes.clear();
            self.columns.owners.clear();
            let owners: Owners = codec::from_bytes(FrameKind::HalfBatch, owner_bytes)
                .map_err(|_| BatchError::Malformed("its owners"))?;
            self.columns.owners = owners.0;
            self.owner_bytes.extend_from_slice(owner_bytes);
        }
        let owners = self.columns.owners.len();
        super::check("owners", owners, rows)?;
        let v4 = cursor.count("IPv4 addresses", MAX_ADDRESSES)?;
        let v6 = cursor.count("IPv6 addresses", MAX_ADDRESSES - v4)?;
        let mut addresses = Vec::with_capacity(v4 + v6);
        for octets in cursor.take(v4 * 4)?.as_chunks::<4>().0 {
            addresses.push(IpAddr::V4(Ipv4Addr::from(*octets)));
        }
        for octets in cursor.take(v6 * 16)?.as_chunks::<16>().0 {
            addresses.push(IpAddr::V6(Ipv6Addr::from(*octets)));
        }
        let count = cursor.count("flows", rows)?;
        let kinds = cursor.take(count)?;
        let mut field = || -> Result<_, BatchError> {
            let (low, high) = (cursor.take(count)?, cursor.take(count)?);
            Ok(move |row: usize| u16::from_le_bytes([low[row], high[row]]))
        };
        let (owner, local, remote, server_port) = (field()?, field()?, field()?, field()?);
        let address = |index: u16| {
            addresses
                .get(usize::from(index))
                .copied()
                .ok_or(BatchError::Malformed(
                    "an address that is not in the dictionary",
                ))
        };
        self.columns.flows.clear();
        for (index, kind) in kinds.iter().enumerate() {
            let kind = Kind(*kind).check()?;
            if usize::from(owner(index)) >= owners {
                return Err(BatchError::Malformed(
                    "an owner that is not in the dictionary",
                ));
            }
            self.columns.flows.push(Flow {
                protocol: kind.protocol(),
                role: kind.role(),
                state: kind.state()?,
                fingerprinted: kind.fingerprinted(),
                closed: kind.closed(),
                owner: u32::from(owner(index)),
                local: address(local(index))?,
                remote: address(remote(index))?,
                server_port: server_port(index),
            });
        }
        Ok(())
    }

    /// Reads the initial sequence numbers, once it is known which rows have them.
    fn read_isns(&mut self, section: &[u8]) -> Result<(), BatchError> {
        let columns = &mut self.columns;
        let mut cursor = Cursor(section);
        let everywhere = match cursor.byte()? {
            0 => false,
            1 => true,
            _ => {
                return Err(BatchError::Malformed(
                    "an unknown layout of its sequence numbers",
                ));
            }
        };
        let has = |flow: &u16| columns.flows[usize::from(*flow)].fingerprinted;
        let known = if everywhere {
            columns.flow.len()
        } else {
            columns.flow.iter().filter(|flow| has(flow)).count()
        };
        for isns in [&mut columns.client_isn, &mut columns.server_isn] {
            let mut values = cursor
                .take(known * 4)?
                .as_chunks::<4>()
                .0
                .iter()
                .map(|bytes| u32::from_le_bytes(*bytes));
            isns.clear();
            if everywhere {
                isns.extend(values);
            } else {
                isns.extend(columns.flow.iter().map(|flow| {
                    if has(flow) {
                        values.next().unwrap_or(0)
                    } else {
                        0
                    }
                }));
            }
        }
        if cursor.0.is_empty() {
            Ok(())
        } else {
            Err(BatchError::Malformed("the lengths of its columns"))
        }
    }

    fn read_numbers(
        &mut self,
        cursor: &mut Cursor<'_>,
        pairs: &[Reader],
        rows: usize,
        mut bits: &[u8],
    ) -> Result<(), BatchError> {
        for (pair, [first, second]) in pairs.iter().zip(&mut self.numbers) {
            let class_bytes = if pair.has_classes() {
                cursor.take(rows)?
            } else {
                &[]
            };
            first.resize(rows, 0);
            second.resize(rows, 0);
            pair.read(class_bytes, bits, [first, second])?;
            bits = &bits[pair.bytes..];
        }
        Ok(())
    }

    /// Turns differences into times and narrows what is narrower.
    fn finish(&mut self) -> Result<(), BatchError> {
        let [
            [seen, cookie],
            [life, rtt],
            [sent, received],
            [packets_sent, packets_received],
            [closed, retransmits],
            [port, flow],
        ] = &mut self.numbers;
        let columns = &mut self.columns;
        narrow(rtt, &mut columns.rtt_us, u64::from(u32::MAX), |value| {
            value as u32
        })?;
        narrow(
            retransmits,
            &mut columns.retransmits,
            u64::from(u32::MAX),
            |value| value as u32,
        )?;
        narrow(
            port,
            &mut columns.client_port,
            u64::from(u16::MAX),
            |value| value as u16,
        )?;
        narrow(flow, &mut columns.flow, u64::from(u16::MAX), |value| {
            value as u16
        })?;
        if columns
            .flow
            .iter()
            .max()
            .is_some_and(|max| usize::from(*max) >= columns.flows.len())
        {
            return Err(BatchError::Malformed(
                "a flow that is not in the dictionary",
            ));
        }
        std::mem::swap(&mut columns.cookie, cookie);
        std::mem::swap(&mut columns.bytes_sent, sent);
        std::mem::swap(&mut columns.bytes_received, received);
        std::mem::swap(&mut columns.packets_sent, packets_sent);
        std::mem::swap(&mut columns.packets_received, packets_received);
        let mut now = 0i64;
        columns.seen_at.clear();
        columns.seen_at.extend(seen.iter().map(|delta| {
            now = now.wrapping_add(unzigzag(*delta));
            now
        }));
        let before = |(seen, delta): (&i64, &u64)| seen.wrapping_sub(unzigzag(*delta));
        columns.opened_at.clear();
        columns
            .opened_at
            .extend(columns.seen_at.iter().zip(life.iter()).map(before));
        columns.closed_at.clear();
        columns
            .closed_at
            .extend(columns.seen_at.iter().zip(closed.iter()).map(before));
        Ok(())
    }
}

fn narrow<T>(
    from: &[u64],
    to: &mut Vec<T>,
    max: u64,
    cast: impl Fn(u64) -> T,
) -> Result<(), BatchError> {
    // Limits are all ones: a value is over it when it has another bit.
    if from.iter().fold(0, |bits, value| bits | value) > max {
        return Err(BatchError::Malformed("a number out of its range"));
    }
    to.clear();
    to.extend(from.iter().map(|value| cast(*value)));
    Ok(())
}

/// Owners of a batch, never more than [`MAX_ROWS`]: an empty one takes five bytes on the wire and forty times that in memory.
struct Owners(Vec<Owner>);

impl<'de> Deserialize<'de> for Owners {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;

        impl<'de> Visitor<'de> for Bounded {
            type Value = Owners;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_ROWS} owners")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Owners, A::Error> {
                let mut owners = Vec::new();
                while let Some(owner) = seq.next_element()? {
                    if owners.len() == MAX_ROWS {
                        return Err(Error::invalid_length(MAX_ROWS + 1, &self));
                    }
                    owners.push(owner);
                }
                Ok(Owners(owners))
            }
        }

        deserializer.deserialize_seq(Bounded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_owners_than_rows_can_be_are_not_taken() {
        for (count, fits) in [(MAX_ROWS, true), (MAX_ROWS + 1, false)] {
            let owners = vec![Owner::default(); count];
            let bytes = codec::to_bytes(FrameKind::HalfBatch, &owners).unwrap();
            let decoded = codec::from_bytes::<Owners>(FrameKind::HalfBatch, &bytes);
            assert_eq!(decoded.is_ok_and(|owners| owners.0.len() == count), fits);
        }
    }
}
