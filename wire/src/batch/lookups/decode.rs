//! Bytes to lookups. Whatever the bytes are: an error or a valid batch, within the limits.

use std::net::{IpAddr, SocketAddr};

use zstd::bulk::Decompressor;

use super::super::bits::{Cursor, SLACK_BYTES};
use super::super::decode::decompress;
use super::super::dictionary::{self, OwnerCache};
use super::super::outline::Outline;
use super::super::unpack::Reader;
use super::super::{BatchError, check};
use super::{LOOKUP_VERSION, MAX_LOOKUP_TEXT_BYTES, MAX_LOOKUPS, MAX_RECORDS, MAX_TEXTS, flags};
use crate::frame::Kind as FrameKind;
use crate::model::{
    Answer, Lookup, LookupBatch, LookupProtocol, LookupTransport, MAX_ANSWERS, MAX_NAME_BYTES,
    Owner, Role, Timestamp,
};

/// Pairs of columns: of flows, questions, sets, records, times to live, rows.
const PAIRS: usize = 14;

/// Decodes batches one after another, and keeps its memory in between: at most
/// [`MAX_PLAIN_BYTES`](crate::batch::MAX_PLAIN_BYTES) and the owners of the last one.
#[derive(Default)]
pub struct LookupDecoder {
    decompressor: Option<Decompressor<'static>>,
    plain: Vec<u8>,
    known: OwnerCache,
    owners: Vec<Owner>,
}

impl std::fmt::Debug for LookupDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LookupDecoder").finish_non_exhaustive()
    }
}

impl LookupDecoder {
    /// A decoder without memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes a batch.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<LookupBatch, BatchError> {
        let outline = Outline::parse(bytes, LOOKUP_VERSION, ("lookups", MAX_LOOKUPS))?;
        let (decompressor, buffer) = (&mut self.decompressor, &mut self.plain);
        self.known.refresh(outline.owners, &mut self.owners, || {
            let bytes = decompress(decompressor, outline.owners, buffer)?;
            dictionary::read_owners(bytes, FrameKind::LookupBatch)
        })?;
        check("owners", self.owners.len(), outline.rows)?;
        let plain = decompress(
            &mut self.decompressor,
            outline.dictionaries,
            &mut self.plain,
        )?;
        let tables = Tables::read(plain, outline.rest, outline.rows, self.owners.len())?;
        Ok(LookupBatch {
            boot: outline.boot,
            owners: self.owners.clone(),
            lookups: tables.lookups()?,
        })
    }
}

/// Everything in a batch but the owners, as columns.
struct Tables<'a> {
    owners: usize,
    texts: Vec<&'a str>,
    addresses: Vec<IpAddr>,
    /// Where each set begins in `records`, and where the last one ends.
    sets: Vec<usize>,
    pairs: Vec<[Vec<u64>; 2]>,
}

/// Places of the pairs in a batch.
mod pair {
    pub(super) const FLAGS_OWNER: usize = 0;
    pub(super) const ENDS: usize = 1;
    pub(super) const PORT: usize = 2;
    pub(super) const NAME_TYPE: usize = 3;
    pub(super) const MEANT: usize = 4;
    pub(super) const LENGTHS: usize = 5;
    pub(super) const RECORDS: usize = 6;
    pub(super) const LIVES: usize = 7;
    pub(super) const ASKED_LATENCY: usize = 8;
    pub(super) const ID_PORT: usize = 9;
    pub(super) const FLOW_QUESTION: usize = 10;
    pub(super) const CODE_SET: usize = 11;
    pub(super) const BYTES: usize = 12;
    pub(super) const TRIES_MORE: usize = 13;
}

const RANGE: BatchError = BatchError::Malformed("an index or a number out of its range");

fn find<T: Copy>(all: &[T], index: u64) -> Result<T, BatchError> {
    let index = usize::try_from(index).map_err(|_| RANGE)?;
    all.get(index).copied().ok_or(RANGE)
}

fn narrow<T: TryFrom<u64>>(value: u64) -> Result<T, BatchError> {
    T::try_from(value).map_err(|_| RANGE)
}

impl<'a> Tables<'a> {
    fn read(
        plain: &'a [u8],
        rest: &'a [u8],
        rows: usize,
        owners: usize,
    ) -> Result<Self, BatchError> {
        let mut cursor = Cursor(plain);
        let texts = read_texts(&mut cursor)?;
        let mut addresses = Vec::new();
        let limit = MAX_RECORDS + 2 * MAX_LOOKUPS;
        dictionary::read_addresses(&mut cursor, limit, &mut addresses)?;
        let flows = cursor.count("flows", rows)?;
        let questions = cursor.count("questions", rows)?;
        let sets = cursor.count("sets", rows)?;
        let records = cursor.count("records", sets * MAX_ANSWERS)?;
        let lives = cursor.count("times to live", rows * MAX_ANSWERS)?;
        let mut readers = Vec::with_capacity(PAIRS);
        for _ in 0..PAIRS {
            readers.push(Reader::parse(&mut cursor)?);
        }
        let bits = readers
            .iter()
            .try_fold(SLACK_BYTES, |sum, pair| sum.checked_add(pair.bytes));
        let stored = bits
            .and_then(|bits| rest.len().checked_sub(bits))
            .ok_or(BatchError::Truncated)?;
        let (stored, mut bits) = rest.split_at(stored);
        let mut stored = Cursor(stored);
        let counts = [
            flows, flows, flows, questions, questions, sets, records, lives,
        ];
        let counts = counts.into_iter().chain(std::iter::repeat(rows));
        let mut pairs = Vec::with_capacity(PAIRS);
        for (reader, count) in readers.iter().zip(counts) {
            let (mut first, mut second) = (Vec::new(), Vec::new());
            let classes = reader.plane(count, &mut cursor, &mut stored)?;
            reader.read(count, classes, bits, &mut first, &mut second)?;
            bits = &bits[reader.bytes..];
            pairs.push([first, second]);
        }
        if !cursor.0.is_empty() || !stored.0.is_empty() {
            return Err(BatchError::Malformed("the lengths of its columns"));
        }
        let mut tables = Self {
            owners,
            texts,
            addresses,
            sets: vec![0],
            pairs,
        };
        tables.find_sets(records)?;
        Ok(tables)
    }

    fn find_sets(&mut self, records: usize) -> Result<(), BatchError> {
        let mut end = 0;
        for length in &self.pairs[pair::LENGTHS][0] {
            end += narrow::<usize>(*length)
                .ok()
                .filter(|length| *length <= MAX_ANSWERS)
                .ok_or(RANGE)?;
            self.sets.push(end);
        }
        if end == records { Ok(()) } else { Err(RANGE) }
    }

    fn column(&self, pair: usize, side: usize) -> &[u64] {
        &self.pairs[pair][side]
    }

    fn lookups(&self) -> Result<Vec<Lookup>, BatchError> {
        let rows = self.column(pair::ID_PORT, 0).len();
        let mut lives = self.column(pair::LIVES, 0).iter();
        let (mut now, mut text_bytes) = (0i64, 0);
        let mut lookups = Vec::with_capacity(rows);
        for row in 0..rows {
            now = now.wrapping_add(self.column(pair::ASKED_LATENCY, 0)[row] as i64);
            let lookup = self.lookup(row, Timestamp(now), &mut lives)?;
            text_bytes += super::text_bytes(&lookup);
            check("bytes of text", text_bytes, MAX_LOOKUP_TEXT_BYTES)?;
            lookups.push(lookup);
        }
        match lives.next() {
            None => Ok(lookups),
            Some(_) => Err(RANGE),
        }
    }

    fn lookup<'b>(
        &self,
        row: usize,
        asked_at: Timestamp,
        lives: &mut impl Iterator<Item = &'b u64>,
    ) -> Result<Lookup, BatchError> {
        let value = |pair: usize, side: usize| self.column(pair, side)[row];
        let flow = value(pair::FLOW_QUESTION, 0);
        let of_flow = |pair: usize, side: usize| find(self.column(pair, side), flow);
        let flags = of_flow(pair::FLAGS_OWNER, 0)?;
        let owner = of_flow(pair::FLAGS_OWNER, 1)?;
        if flags > flags::ALL || owner >= self.owners as u64 {
            return Err(RANGE);
        }
        let (asker, other) = (
            narrow::<u16>(value(pair::ID_PORT, 1))?,
            narrow::<u16>(of_flow(pair::PORT, 0)?)?,
        );
        let (role, local, resolver) = match flags & flags::SERVER {
            0 => (Role::Client, asker, other),
            _ => (Role::Server, other, asker),
        };
        let question = value(pair::FLOW_QUESTION, 1);
        let of_question = |pair: usize, side: usize| find(self.column(pair, side), question);
        let optional = |value: u64| value.checked_sub(1);
        let meant = optional(of_question(pair::MEANT, 0)?)
            .map(|text| find(&self.texts, text))
            .transpose()?;
        let answers = self.answers(value(pair::CODE_SET, 1), lives)?;
        let total = value(pair::TRIES_MORE, 1).wrapping_add(answers.len() as u64);
        Ok(Lookup {
            protocol: match flags & flags::MDNS {
                0 => LookupProtocol::Dns,
                _ => LookupProtocol::Mdns,
            },
            transport: match flags >> flags::TRANSPORT_SHIFT & 3 {
                0 => LookupTransport::Udp,
                1 => LookupTransport::Tcp,
                2 => LookupTransport::Dot,
                _ => LookupTransport::Doh,
            },
            role,
            local: SocketAddr::new(find(&self.addresses, of_flow(pair::ENDS, 0)?)?, local),
            resolver: SocketAddr::new(find(&self.addresses, of_flow(pair::ENDS, 1)?)?, resolver),
            asked_at,
            latency_us: optional(value(pair::ASKED_LATENCY, 1))
                .map(narrow)
                .transpose()?,
            id: narrow(value(pair::ID_PORT, 0))?,
            name: find(&self.texts, of_question(pair::NAME_TYPE, 0)?)?.to_owned(),
            qtype: narrow(of_question(pair::NAME_TYPE, 1)?)?,
            code: optional(value(pair::CODE_SET, 0)).map(narrow).transpose()?,
            truncated: flags & flags::TRUNCATED != 0,
            tries: narrow(value(pair::TRIES_MORE, 0))?,
            answers,
            answer_total: narrow(total)?,
            request_bytes: narrow(value(pair::BYTES, 0))?,
            response_bytes: narrow(value(pair::BYTES, 1))?,
            search_of: meant.map(str::to_owned),
            owner: owner as u32,
        })
    }

    fn answers<'b>(
        &self,
        set: u64,
        lives: &mut impl Iterator<Item = &'b u64>,
    ) -> Result<Vec<Answer>, BatchError> {
        let end = find(&self.sets, set.checked_add(1).ok_or(RANGE)?)?;
        let records = &self.column(pair::RECORDS, 0)[find(&self.sets, set)?..end];
        let mut previous = 0u32;
        let mut answers = Vec::with_capacity(records.len());
        for record in records {
            answers.push(match record & 1 {
                0 => {
                    let address = find(&self.addresses, record >> 1)?;
                    let life = narrow::<u32>(*lives.next().ok_or(RANGE)?)?;
                    previous = previous.wrapping_add(life);
                    Answer::Address(address, previous)
                }
                _ => Answer::Alias(find(&self.texts, record >> 1)?.to_owned()),
            });
        }
        Ok(answers)
    }
}

fn read_texts<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<&'a str>, BatchError> {
    let count = cursor.count("texts", MAX_TEXTS)?;
    let mut lengths = Vec::new();
    for _ in 0..count {
        lengths.push(cursor.count("bytes of a text", MAX_NAME_BYTES)?);
    }
    let text = |length: usize| {
        std::str::from_utf8(cursor.take(length)?)
            .map_err(|_| BatchError::Malformed("a text that is not UTF-8"))
    };
    lengths.into_iter().map(text).collect()
}
