//! Bytes to columns. Whatever the bytes are: an error or a valid batch, within the limits.

use std::net::IpAddr;

use zstd::bulk::Decompressor;

use super::bits::{Cursor, SLACK_BYTES};
use super::columns::{Columns, FlowFingerprint};
use super::dictionary::{self, Bounds, OwnerCache};
use super::outline::Outline;
use super::unpack::Reader;
use super::{BATCH_VERSION, BatchError, MAX_ADDRESSES, MAX_ROWS};
use crate::frame::Kind as FrameKind;
use crate::model::{AgentKey, HalfBatch, Protocol};

/// Pairs of number columns of the format that have a value for each row. One more has rows with a name only.
const PAIRS: usize = 6;

/// Decodes batches one after another, and keeps its memory in between: at most
/// [`MAX_PLAIN_BYTES`](super::MAX_PLAIN_BYTES) and about 150 bytes for each of [`MAX_ROWS`] rows.
#[derive(Default)]
pub struct BatchDecoder {
    decompressor: Option<Decompressor<'static>>,
    plain: Vec<u8>,
    owners: OwnerCache,
    addresses: Vec<IpAddr>,
    /// Of rows with a name.
    named: Vec<u32>,
    /// The second column of those: nothing.
    nothing: Vec<u32>,
    columns: Columns,
}

impl std::fmt::Debug for BatchDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchDecoder")
            .field("rows", &self.columns.len())
            .finish_non_exhaustive()
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
        // Taken for the time of the call, so that `self` can be filled from it.
        let mut plain = std::mem::take(&mut self.plain);
        let outline = Outline::parse(bytes, BATCH_VERSION, ("rows", MAX_ROWS));
        let decoded = outline.and_then(|outline| self.fill(&outline, &mut plain));
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
            boot: columns.boot,
            owners: columns.owners.clone(),
            names: columns.names.clone(),
            halves: columns.halves(agent).collect(),
        })
    }

    fn fill(&mut self, outline: &Outline<'_>, plain: &mut Vec<u8>) -> Result<(), BatchError> {
        self.columns.boot = outline.boot;
        self.read_owners(outline, plain)?;
        let mut cursor = Cursor(decompress(
            &mut self.decompressor,
            outline.dictionaries,
            plain,
        )?);
        self.read_dictionaries(&mut cursor, outline.rows)?;
        let mut pairs = Vec::with_capacity(PAIRS);
        for _ in 0..PAIRS {
            pairs.push(Reader::parse(&mut cursor)?);
        }
        let named = Reader::parse(&mut cursor)?;
        let bits = pairs
            .iter()
            .chain([&named])
            .try_fold(SLACK_BYTES, |sum, pair| sum.checked_add(pair.bytes));
        let words = bits
            .and_then(|bits| outline.rest.len().checked_sub(bits))
            .ok_or(BatchError::Truncated)?;
        let (words, mut bits) = outline.rest.split_at(words);
        let mut words = Cursor(words);
        self.read_numbers(&pairs, outline.rows, &mut cursor, &mut words, &mut bits)?;
        self.check_flows()?;
        self.read_named(&named, &mut cursor, &mut words, bits)?;
        if !cursor.0.is_empty() {
            return Err(BatchError::Malformed("bytes after its class columns"));
        }
        self.read_isns(&mut words)?;
        self.read_datagrams(&mut words)?;
        if !words.0.is_empty() {
            return Err(BatchError::Malformed("the lengths of its columns"));
        }
        self.finish_times();
        Ok(())
    }

    fn read_owners(
        &mut self,
        outline: &Outline<'_>,
        plain: &mut Vec<u8>,
    ) -> Result<(), BatchError> {
        let decompressor = &mut self.decompressor;
        self.owners
            .refresh(outline.owners, &mut self.columns.owners, || {
                let bytes = decompress(decompressor, outline.owners, plain)?;
                dictionary::read_owners(bytes, FrameKind::HalfBatch)
            })?;
        dictionary::check_owners(&self.columns.owners, outline.rows)
    }

    fn read_dictionaries(
        &mut self,
        cursor: &mut Cursor<'_>,
        rows: usize,
    ) -> Result<(), BatchError> {
        let columns = &mut self.columns;
        dictionary::read_names(cursor, rows, &mut columns.names)?;
        dictionary::read_addresses(cursor, MAX_ADDRESSES, &mut self.addresses)?;
        let bounds = Bounds {
            rows,
            owners: columns.owners.len(),
            names: columns.names.len(),
            addresses: &self.addresses,
        };
        dictionary::read_flows(cursor, &bounds, &mut columns.flows)
    }

    /// Times are still differences after this.
    fn read_numbers<'a>(
        &mut self,
        pairs: &[Reader],
        rows: usize,
        compressed: &mut Cursor<'a>,
        stored: &mut Cursor<'a>,
        bits: &mut &'a [u8],
    ) -> Result<(), BatchError> {
        let columns = &mut self.columns;
        let mut pairs = pairs.iter();
        macro_rules! read {
            ($first:ident, $second:ident) => {
                if let Some(pair) = pairs.next() {
                    let classes = pair.plane(rows, compressed, stored)?;
                    let (first, second) = (&mut columns.$first, &mut columns.$second);
                    pair.read(rows, classes, bits, first, second)?;
                    *bits = &bits[pair.bytes..];
                }
            };
        }
        read!(seen_at, cookie);
        read!(opened_at, rtt_us);
        read!(bytes_sent, bytes_received);
        read!(packets_sent, packets_received);
        read!(closed_at, retransmits);
        read!(client_port, flow);
        Ok(())
    }

    fn check_flows(&self) -> Result<(), BatchError> {
        let max = self.columns.flow.iter().fold(0, |max, flow| max.max(*flow));
        if self.columns.is_empty() || usize::from(max) < self.columns.flows.len() {
            Ok(())
        } else {
            Err(BatchError::Malformed(
                "a flow that is not in the dictionary",
            ))
        }
    }

    /// Reads what only rows with a name have, and puts it in their places.
    fn read_named<'a>(
        &mut self,
        pair: &Reader,
        compressed: &mut Cursor<'a>,
        stored: &mut Cursor<'a>,
        bits: &[u8],
    ) -> Result<(), BatchError> {
        let columns = &mut self.columns;
        let flows = &columns.flows;
        let has = |flow: &u16| flows[usize::from(*flow)].name > 0;
        let any = flows.iter().any(|flow| flow.name > 0);
        let rows = match any {
            true => columns.flow.iter().filter(|flow| has(flow)).count(),
            false => 0,
        };
        let classes = pair.plane(rows, compressed, stored)?;
        pair.read(rows, classes, bits, &mut self.named, &mut self.nothing)?;
        columns.named_before_us.clear();
        if any {
            let mut values = self.named.iter();
            let value = |flow| match has(flow) {
                true => values.next().copied().unwrap_or(0),
                false => 0,
            };
            columns
                .named_before_us
                .extend(columns.flow.iter().map(value));
        }
        Ok(())
    }

    /// Reads the initial sequence numbers, once it is known which rows have them.
    fn read_isns(&mut self, words: &mut Cursor<'_>) -> Result<(), BatchError> {
        let columns = &mut self.columns;
        let everywhere = match words.byte()? {
            0 => false,
            1 => true,
            _ => {
                return Err(BatchError::Malformed(
                    "an unknown layout of its sequence numbers",
                ));
            }
        };
        let flows = &columns.flows;
        let has = |flow: &u16| flows[usize::from(*flow)].fingerprint == FlowFingerprint::TcpIsn;
        for isns in [&mut columns.client_isn, &mut columns.server_isn] {
            if everywhere {
                let bytes = words.take(columns.flow.len() * 4)?.as_chunks::<4>().0;
                isns.clear();
                isns.extend(bytes.iter().map(|bytes| u32::from_le_bytes(*bytes)));
            } else {
                scatter(words, &columns.flow, has, isns, u32::from_le_bytes)?;
            }
        }
        Ok(())
    }

    /// Reads cookies and hashes of datagram flows, where there are any.
    fn read_datagrams(&mut self, words: &mut Cursor<'_>) -> Result<(), BatchError> {
        let columns = &mut self.columns;
        let flows = &columns.flows;
        if flows.iter().any(|flow| flow.protocol == Protocol::Udp) {
            for (flow, cookie) in columns.flow.iter().zip(&mut columns.cookie) {
                if flows[usize::from(*flow)].protocol == Protocol::Udp {
                    *cookie = u64::from_le_bytes(words.array()?);
                }
            }
        }
        let hashed = |flow: &u16| {
            matches!(
                flows[usize::from(*flow)].fingerprint,
                FlowFingerprint::Datagrams { .. }
            )
        };
        let answered = |flow: &u16| flows[usize::from(*flow)].answered;
        let (client, server) = (&mut columns.client_hash, &mut columns.server_hash);
        client.clear();
        server.clear();
        let any =
            |flow: &super::Flow| matches!(flow.fingerprint, FlowFingerprint::Datagrams { .. });
        if flows.iter().any(any) {
            scatter(words, &columns.flow, hashed, client, u64::from_le_bytes)?;
            scatter(words, &columns.flow, answered, server, u64::from_le_bytes)?;
        }
        Ok(())
    }

    /// Turns differences into times.
    fn finish_times(&mut self) {
        let columns = &mut self.columns;
        let mut now = 0i64;
        for seen in &mut columns.seen_at {
            now = now.wrapping_add(*seen);
            *seen = now;
        }
        for times in [&mut columns.opened_at, &mut columns.closed_at] {
            for (time, seen) in times.iter_mut().zip(&columns.seen_at) {
                *time = seen.wrapping_sub(*time);
            }
        }
    }
}

/// Reads words that only some rows have to their places; others get 0.
fn scatter<T: Default, const N: usize>(
    words: &mut Cursor<'_>,
    flow: &[u16],
    has: impl Fn(&u16) -> bool,
    to: &mut Vec<T>,
    word: impl Fn([u8; N]) -> T,
) -> Result<(), BatchError> {
    to.clear();
    to.reserve(flow.len());
    for flow in flow {
        to.push(if has(flow) {
            word(words.array()?)
        } else {
            T::default()
        });
    }
    Ok(())
}

/// Decompresses a part into `buffer`.
pub(super) fn decompress<'a>(
    decompressor: &mut Option<Decompressor<'static>>,
    (plain_bytes, compressed): (usize, &[u8]),
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], BatchError> {
    let failed = |_| BatchError::Malformed("its compressed part");
    let decompressor = match decompressor {
        Some(decompressor) => decompressor,
        none => none.insert(Decompressor::new().map_err(failed)?),
    };
    buffer.resize(plain_bytes, 0);
    let written = decompressor
        .decompress_to_buffer(compressed, buffer.as_mut_slice())
        .map_err(failed)?;
    if written == plain_bytes {
        Ok(buffer)
    } else {
        Err(BatchError::Truncated)
    }
}
