//! Batches on disk until the federator has them.
//!
//! A spool is a directory of segment files. A segment has a header and then entries, each with its length and a
//! checksum:
//!
//! ```text
//! header  magic [8]  base_seq u64  ring_position u64  crc32 u32
//! entry   length u32  crc32 u32  | seq u64  ring_position u64  rows u32  batch [length - 20]
//! ```
//!
//! A batch of lookups has the highest bit set in its number of rows, and before it, where their own ring stood (`u64`).
//! All integers are little-endian; the checksum of an entry covers what follows it. Segments are only appended to
//! and deleted whole. Every header repeats where the sequence and the ring stood, so that both survive when all
//! entries were acknowledged and their segments deleted.
//!
//! **Durability.** An append is a `write`: it survives the death of the process at any moment (kill -9), for the
//! page cache is the kernel's. A power loss may lose what was written since the last
//! [`SharedSpool::sync`](shared::SharedSpool::sync). Sequence numbers are not used twice even then: each opening begins at a number taken
//! from the clock, far above all that were used before. Where that fails (the directory or its tail was lost, and the
//! clock went back), the federator's welcome shows it, and [`Spool::renumber`] mends it.
//!
//! **When full.** At [`SpoolLimits::max_bytes`] the oldest segment is deleted, and the rows in it that were not
//! acknowledged are counted ([`SpoolTotals::rows_dropped`]).

mod segment;
pub mod homes;
pub mod shared;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use weft_wire::batch::lookups::{self, MAX_LOOKUPS};
use weft_wire::batch::{self, BatchError, MAX_ROWS};
use weft_wire::{Half, HalfBatch, Lookup, LookupBatch, Owner};

use segment::{ENTRY_BYTES, EntryHeader, HEADER_BYTES, Header, POSITION_BYTES, Scan, Segment};

/// How much a spool may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolLimits {
    /// Most bytes on disk. When an append would pass it the oldest segment goes. Sane from 1 MiB on; a busy host makes
    /// some 100 KB/s.
    pub max_bytes: u64,
}

impl SpoolLimits {
    /// The smallest limit that is kept: below it a segment would hold no batch.
    pub const MIN_BYTES: u64 = 64 << 10;
    /// Segments are a part of the limit, but not larger than this: what is lost at once when it is reached.
    pub const MAX_SEGMENT_BYTES: u64 = 8 << 20;

    fn total(self) -> u64 {
        self.max_bytes.max(Self::MIN_BYTES)
    }

    fn segment(self) -> u64 {
        (self.total() / 8).min(Self::MAX_SEGMENT_BYTES)
    }
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 20,
        }
    }
}

/// Most full segments that wait to be written to the disk. Beyond it the kernel writes them in its own time.
const MAX_UNSYNCED: usize = 16;

/// What went wrong with the spool.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// The disk. After a failed append the spool is as it was before.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A batch that cannot be encoded: a defect of the caller. Nothing changed.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// Totals since the opening, and what is there now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolTotals {
    /// Bytes on disk now.
    pub bytes: u64,
    /// Rows appended.
    pub rows: u64,
    /// Rows lost because the limit was reached.
    pub rows_dropped: u64,
    /// Rows skipped because the federator refused their batch again and again.
    pub rows_refused: u64,
    /// Segments that were deleted at the limit.
    pub segments_dropped: u64,
    /// Bytes of a torn or damaged tail, cut off at the opening.
    pub torn_bytes: u64,
}

/// An entry to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its sequence number.
    pub seq: u64,
    /// How many rows it has.
    pub rows: u32,
    /// Of lookups, else of halves.
    pub lookups: bool,
    /// The encoded batch.
    pub batch: Vec<u8>,
}

/// Batches on disk. See the module for what it promises.
///
/// Written by [`Spool::append`]; read in order by [`Spool::next_entry`], again from the first unacknowledged one after
/// [`Spool::rewind`]; emptied by [`Spool::acknowledge`].
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    limits: SpoolLimits,
    /// Oldest first; the last one is written to. Never empty.
    segments: VecDeque<Segment>,
    writing: File,
    /// Full segments that may not be on the disk yet.
    unsynced: Vec<File>,
    /// The reader's segment (by its base), its file and its place there.
    reading: Option<(u64, File, u64)>,
    next_seq: u64,
    /// Highest number that the reader has given out.
    read_seq: u64,
    /// Highest number that the federator can have from here: of earlier openings, or given out in this one.
    given_seq: u64,
    acknowledged: u64,
    ring_position: Option<u64>,
    lookup_position: Option<u64>,
    totals: SpoolTotals,
}

impl Spool {
    /// Opens a directory, which is created when missing, and cuts off what a crash left half-written.
    ///
    /// `clock_us` is the time now in microseconds since 1970: new numbers begin there, or after the last one used.
    pub fn open(dir: &Path, limits: SpoolLimits, clock_us: u64) -> Result<Self, SpoolError> {
        fs::create_dir_all(dir).map_err(|source| SpoolError::Io {
            path: dir.into(),
            source,
        })?;
        let mut totals = SpoolTotals::default();
        let mut segments = VecDeque::new();
        let (mut next_seq, mut ring_position, mut lookup_position) = (1, None, None);
        for path in segment::list(dir)? {
            let Scan {
                segment,
                end_seq,
                end_ring_position,
                lookup_position: lookups,
                torn_bytes,
            } = segment::recover(&path)?;
            totals.torn_bytes += torn_bytes;
            let Some(segment) = segment else { continue };
            // Above the base even of a segment without entries: no file is made twice.
            next_seq = next_seq
                .max(end_seq)
                .max(segment.base_seq.saturating_add(1));
            ring_position = end_ring_position;
            lookup_position = lookups.or(lookup_position);
            totals.bytes += segment.bytes;
            segments.push_back(segment);
        }
        next_seq = next_seq.max(clock_us);
        let first_seq = segments
            .front()
            .map_or(next_seq, |segment: &Segment| segment.base_seq);
        // A new segment also where the last is not full: its header then records the new numbers.
        let (segment, writing) = segment::create(
            dir,
            Header {
                base_seq: next_seq,
                ring_position,
            },
        )?;
        totals.bytes += segment.bytes;
        segments.push_back(segment);
        let acknowledged = first_seq - 1;
        let reading = None;
        let dir = dir.into();
        let mut spool = Self {
            dir,
            limits,
            segments,
            writing,
            unsynced: Vec::new(),
            reading,
            next_seq,
            read_seq: acknowledged,
            given_seq: next_seq - 1,
            acknowledged,
            ring_position,
            lookup_position,
            totals,
        };
        spool.drop_acknowledged();
        spool.make_room(0);
        Ok(spool)
    }

    /// Appends a batch, in several entries when it is over a limit of the format, and gives the last one's number. When
    /// it returns, the rows survive the death of this process. An empty batch records the ring position alone.
    ///
    /// After an error some of the rows may have been written, but not the ring position: appended again, they are in
    /// the spool twice, which the federator sees by their ids.
    pub fn append(&mut self, batch: &HalfBatch, ring_position: u64) -> Result<u64, SpoolError> {
        let mut encoded = Vec::new();
        for rows in batch.halves.chunks(MAX_ROWS) {
            encode_parts(batch, rows, &mut encoded)?;
        }
        if batch.halves.is_empty() && Some(ring_position) != self.ring_position {
            encoded.push((Vec::new(), 0));
        }
        for (index, (bytes, rows)) in encoded.iter().enumerate() {
            // Until the last part is written the ring has not been taken up to its new position.
            let last = index + 1 == encoded.len();
            let position = if last {
                Some(ring_position)
            } else {
                self.ring_position
            };
            self.append_entry(bytes, *rows, false, position)?;
        }
        Ok(self.next_seq - 1)
    }

    /// Appends lookups, as [`Spool::append`] does halves, with a position of their own ring.
    pub fn append_lookups(
        &mut self,
        batch: &LookupBatch,
        position: u64,
    ) -> Result<u64, SpoolError> {
        let mut encoded = Vec::new();
        for rows in batch.lookups.chunks(MAX_LOOKUPS) {
            encode_lookups(batch.boot, &batch.owners, rows, &mut encoded)?;
        }
        for (index, (bytes, rows)) in encoded.iter().enumerate() {
            let last = index + 1 == encoded.len();
            let position = last.then_some(position).or(self.lookup_position);
            let body = [&segment::encode_position(position)[..], bytes].concat();
            self.append_entry(&body, *rows, true, self.ring_position)?;
            self.lookup_position = position;
        }
        Ok(self.next_seq - 1)
    }

    /// The position given with the newest lookups that are here; `None` when there are none.
    pub fn last_lookup_position(&self) -> Option<u64> {
        self.lookup_position
    }

    /// The ring position of the last append, also after a restart; `None` when there never was one.
    pub fn last_ring_position(&self) -> Option<u64> {
        self.ring_position
    }

    /// The next entry to send; `None` when all were given.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, SpoolError> {
        loop {
            let Some(index) = self.readable() else {
                return Ok(None);
            };
            let segment = &self.segments[index];
            let path = segment.path.clone();
            let io = |source| SpoolError::Io { path, source };
            let (file, at) = match &mut self.reading {
                Some((base, file, at)) if *base == segment.base_seq => (file, at),
                slot => {
                    let file = File::open(&segment.path).map_err(io.clone())?;
                    let (_, file, at) = slot.insert((segment.base_seq, file, HEADER_BYTES));
                    (file, at)
                }
            };
            let (header, length) = segment::read_header(file, *at).map_err(io.clone())?;
            let seq = header.seq;
            let entry = if seq > self.read_seq && seq > self.acknowledged && header.rows > 0 {
                let before = if header.lookups { POSITION_BYTES } else { 0 };
                let length = length as usize - EntryHeader::PAYLOAD_BYTES;
                let mut batch = vec![0; length.saturating_sub(before)];
                file.read_exact_at(&mut batch, *at + ENTRY_BYTES + before as u64)
                    .map_err(io)?;
                Some(Entry {
                    seq,
                    rows: header.rows,
                    lookups: header.lookups,
                    batch,
                })
            } else {
                None
            };
            *at += ENTRY_BYTES - EntryHeader::PAYLOAD_BYTES as u64 + u64::from(length);
            self.read_seq = self.read_seq.max(seq);
            if entry.is_some() {
                self.given_seq = self.given_seq.max(seq);
                return Ok(entry);
            }
        }
    }

    /// Whether [`Spool::next_entry`] may have more.
    pub fn has_unread(&self) -> bool {
        self.readable().is_some()
    }

    /// Whether it has rows that are not acknowledged.
    pub fn has_rows(&self) -> bool {
        (0..self.segments.len()).any(|at| self.segments[at].rows > 0)
            && self.unacknowledged_rows(self.segments.len()) > 0
    }

    /// Reads again from the first entry that is not acknowledged: after a session was lost.
    pub fn rewind(&mut self) {
        self.read_seq = self.acknowledged;
        self.reading = None;
    }

    /// Everything up to `seq` is durable elsewhere. Lower numbers than before change nothing.
    pub fn acknowledge(&mut self, seq: u64) -> Result<(), SpoolError> {
        let seq = seq.min(self.next_seq - 1);
        if seq <= self.acknowledged {
            return Ok(());
        }
        self.acknowledged = seq;
        let last = self.last_segment();
        if seq >= last.end_seq - 1 && last.bytes > self.limits.segment() / 2 {
            self.rotate()?;
        }
        self.drop_acknowledged();
        Ok(())
    }

    /// Gives up the oldest entry that is not acknowledged, if it is this one; returns its rows.
    pub fn skip(&mut self, seq: u64) -> Result<Option<u32>, SpoolError> {
        self.rewind();
        let first = self.next_entry()?;
        self.rewind();
        let Some(refused) = first.filter(|entry| entry.seq == seq) else {
            return Ok(None);
        };
        self.totals.rows_refused += u64::from(refused.rows);
        self.acknowledge(seq)?;
        Ok(Some(refused.rows))
    }

    /// Whether the federator can have this number from this spool: it is of an earlier opening, or was read in this one.
    pub fn may_have_given(&self, seq: u64) -> bool {
        seq <= self.given_seq
    }

    /// The federator has durable numbers up to `durable_seq`, which this spool never gave: the directory was lost and the
    /// clock stood before its last use. What waits is written again with higher numbers, and later appends get
    /// higher ones still. A death in between loses what was not yet written again.
    pub fn renumber(&mut self, durable_seq: u64) -> Result<(), SpoolError> {
        let (last_old, given, rows) = (self.next_seq - 1, self.given_seq, self.totals.rows);
        // Another name than the last segment's, even if that is empty.
        self.next_seq = self.next_seq.max(durable_seq) + 1;
        self.rotate()?;
        self.rewind();
        let written = self.write_again(last_old);
        // After an error the federator's numbers are as foreign as before.
        self.given_seq = given;
        self.totals.rows = rows;
        written?;
        self.acknowledged = self.acknowledged.max(durable_seq).max(last_old);
        self.given_seq = self.acknowledged;
        self.drop_acknowledged();
        self.rewind();
        Ok(())
    }

    /// Appends every entry up to `last_old` under a new number.
    fn write_again(&mut self, last_old: u64) -> Result<(), SpoolError> {
        while let Some(entry) = self.next_entry()? {
            if entry.seq > last_old {
                break;
            }
            let mut batch = entry.batch;
            if entry.lookups {
                batch.splice(..0, segment::encode_position(self.lookup_position));
            }
            self.append_entry(&batch, entry.rows, entry.lookups, self.ring_position)?;
            // Its copy stands: making room must not count it as lost.
            self.acknowledged = entry.seq;
            self.drop_acknowledged();
        }
        Ok(())
    }

    /// The files that a power loss could still take something from, to be written to the disk while others use the spool.
    pub fn unsynced(&mut self) -> Result<Vec<File>, SpoolError> {
        let writing = self.writing.try_clone().map_err(|source| SpoolError::Io {
            path: self.last_segment().path.clone(),
            source,
        })?;
        let mut files = std::mem::take(&mut self.unsynced);
        files.push(writing);
        Ok(files)
    }

    /// What happened, and how full it is.
    pub fn totals(&self) -> SpoolTotals {
        self.totals
    }

    /// Highest number given to an entry, or the one below the first.
    pub fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    fn append_entry(
        &mut self,
        batch: &[u8],
        rows: u32,
        lookups: bool,
        ring_position: Option<u64>,
    ) -> Result<(), SpoolError> {
        let bytes = segment::encode_entry(
            EntryHeader {
                seq: self.next_seq,
                ring_position,
                rows,
                lookups,
            },
            batch,
        );
        let segment_limit = self.limits.segment();
        let last = self.last_segment();
        if last.bytes + bytes.len() as u64 > segment_limit && last.bytes > HEADER_BYTES {
            self.rotate()?;
        }
        self.make_room(bytes.len() as u64);
        let last = self.last_segment();
        let (path, end) = (last.path.clone(), last.bytes);
        if let Err(source) = self.writing.write_all_at(&bytes, end) {
            // Half an entry would hide all later ones. Should this fail too, the next append overwrites it.
            let _ = self.writing.set_len(end);
            return Err(SpoolError::Io { path, source });
        }
        self.next_seq += 1;
        let next_seq = self.next_seq;
        if let Some(last) = self.segments.back_mut() {
            last.bytes += bytes.len() as u64;
            last.rows += u64::from(rows);
            last.end_seq = next_seq;
        }
        self.ring_position = ring_position;
        self.totals.bytes += bytes.len() as u64;
        self.totals.rows += u64::from(rows);
        Ok(())
    }

    fn last_segment(&self) -> &Segment {
        // Never empty: opening adds one, and only segments before the last are removed.
        &self.segments[self.segments.len() - 1]
    }

    /// Index of the segment with the first entry after the reader's place.
    fn readable(&self) -> Option<usize> {
        let after = self.read_seq.max(self.acknowledged);
        self.segments
            .iter()
            .position(|segment| segment.end_seq > segment.base_seq && segment.end_seq - 1 > after)
    }

    fn rotate(&mut self) -> Result<(), SpoolError> {
        let header = Header {
            base_seq: self.next_seq,
            ring_position: self.ring_position,
        };
        let (segment, writing) = segment::create(&self.dir, header)?;
        self.totals.bytes += segment.bytes;
        self.segments.push_back(segment);
        let full = std::mem::replace(&mut self.writing, writing);
        if self.unsynced.len() < MAX_UNSYNCED {
            self.unsynced.push(full);
        }
        Ok(())
    }

    fn drop_acknowledged(&mut self) {
        while self.segments.len() > 1
            && self.segments[0].end_seq <= self.acknowledged.saturating_add(1)
        {
            self.remove_first();
        }
    }

    /// Deletes oldest segments until `bytes` more fit.
    fn make_room(&mut self, bytes: u64) {
        while self.segments.len() > 1 && self.totals.bytes + bytes > self.limits.total() {
            self.totals.rows_dropped += self.unacknowledged_rows(1);
            self.totals.segments_dropped += 1;
            self.acknowledged = self.acknowledged.max(self.segments[0].end_seq - 1);
            self.remove_first();
        }
    }

    fn remove_first(&mut self) {
        if let Some(segment) = self.segments.pop_front() {
            self.totals.bytes -= segment.bytes;
            if let Err(error) = fs::remove_file(&segment.path) {
                // It will be read again at the next opening; the federator knows its numbers.
                tracing::warn!(path = %segment.path.display(), %error, "a spool segment cannot be deleted");
            }
        }
    }

    /// Rows in the first `count` segments that are not acknowledged.
    fn unacknowledged_rows(&self, count: usize) -> u64 {
        let rows = |segment: &Segment| match segment.end_seq {
            end if end <= self.acknowledged.saturating_add(1) => 0,
            _ if segment.base_seq > self.acknowledged => segment.rows,
            _ => segment::rows_after(segment, self.acknowledged).unwrap_or(segment.rows),
        };
        self.segments.iter().take(count).map(rows).sum()
    }
}

/// Encodes rows, in halves where their owners are too much text for one batch.
fn encode_parts(
    batch: &HalfBatch,
    rows: &[Half],
    out: &mut Vec<(Vec<u8>, u32)>,
) -> Result<(), BatchError> {
    let part = batch::Rows {
        halves: rows,
        ..batch::Rows::of(batch)
    };
    match part.encode() {
        Ok(bytes) => {
            out.push((bytes, rows.len() as u32));
            Ok(())
        }
        Err(BatchError::Limit { .. }) if rows.len() > 1 => {
            let (first, second) = rows.split_at(rows.len() / 2);
            encode_parts(batch, first, out)?;
            encode_parts(batch, second, out)
        }
        Err(error) => Err(error),
    }
}

/// The same of lookups.
fn encode_lookups(
    boot: u64,
    owners: &[Owner],
    rows: &[Lookup],
    out: &mut Vec<(Vec<u8>, u32)>,
) -> Result<(), BatchError> {
    match lookups::encode_rows(boot, owners, rows) {
        Ok(bytes) => {
            out.push((bytes, rows.len() as u32));
            Ok(())
        }
        Err(BatchError::Limit { .. }) if rows.len() > 1 => {
            let (first, second) = rows.split_at(rows.len() / 2);
            encode_lookups(boot, owners, first, out)?;
            encode_lookups(boot, owners, second, out)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
pub(crate) mod tests;
