//! One segment file of a spool.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use weft_wire::frame::{MAX_HALF_BATCH, MAX_LOOKUP_BATCH};

use super::SpoolError;

const MAGIC: [u8; 8] = *b"WEFTSPL1";
/// Stands for "no position yet"; a ring would have to carry 2^64 bytes to get there.
const NO_POSITION: u64 = u64::MAX;
const SUFFIX: &str = "seg";
/// Bytes of a segment's header.
pub(super) const HEADER_BYTES: u64 = 28;
/// Bytes of an entry before its batch.
pub(super) const ENTRY_BYTES: u64 = 8 + EntryHeader::PAYLOAD_BYTES as u64;
/// Longest entry (what its length field says).
const MAX_ENTRY: usize = {
    let (halves, lookups) = (MAX_HALF_BATCH, MAX_LOOKUP_BATCH + POSITION_BYTES);
    let batch = if halves > lookups { halves } else { lookups };
    batch + EntryHeader::PAYLOAD_BYTES
};
/// In the number of an entry's rows: it is a batch of lookups, and begins with a position of their ring.
const LOOKUPS: u32 = 1 << 31;
/// Bytes of that position.
pub(super) const POSITION_BYTES: usize = 8;

/// What is known of a segment file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// Number of its first entry, if it has any.
    pub(super) base_seq: u64,
    /// One more than the number of its last entry.
    pub(super) end_seq: u64,
    /// Whole entries end here.
    pub(super) bytes: u64,
    pub(super) rows: u64,
}

/// Where numbers and ring stood when a segment began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) base_seq: u64,
    pub(super) ring_position: Option<u64>,
}

/// An entry without its batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryHeader {
    pub(super) seq: u64,
    pub(super) ring_position: Option<u64>,
    pub(super) rows: u32,
    pub(super) lookups: bool,
}

impl EntryHeader {
    /// Bytes that the length field counts beside the batch.
    pub(super) const PAYLOAD_BYTES: usize = 20;
}

/// What an opening found in a file.
pub(super) struct Scan {
    /// `None` when it had no entries and was deleted.
    pub(super) segment: Option<Segment>,
    pub(super) end_seq: u64,
    pub(super) end_ring_position: Option<u64>,
    /// Position with the last batch of lookups, if it has any.
    pub(super) lookup_position: Option<u64>,
    pub(super) torn_bytes: u64,
}

/// The segment files of a directory, oldest first.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let io = |source| SpoolError::Io {
        path: dir.into(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
            paths.push(path);
        }
    }
    // Names are numbers of a fixed width.
    paths.sort();
    Ok(paths)
}

/// Makes a segment with its header.
pub(super) fn create(dir: &Path, header: Header) -> Result<(Segment, File), SpoolError> {
    let path = dir.join(format!("{:020}.{SUFFIX}", header.base_seq));
    let io = |source| SpoolError::Io {
        path: path.clone(),
        source,
    };
    // A file of this name can only be one without entries.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(io)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES as usize);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&header.base_seq.to_le_bytes());
    bytes.extend_from_slice(&header.ring_position.unwrap_or(NO_POSITION).to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    file.write_all_at(&bytes, 0).map_err(io)?;
    let segment = Segment {
        path,
        base_seq: header.base_seq,
        end_seq: header.base_seq,
        bytes: HEADER_BYTES,
        rows: 0,
    };
    Ok((segment, file))
}

/// An entry as bytes.
pub(super) fn encode_entry(header: EntryHeader, batch: &[u8]) -> Vec<u8> {
    let length = batch.len() + EntryHeader::PAYLOAD_BYTES;
    let mut bytes = Vec::with_capacity(8 + length);
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&header.seq.to_le_bytes());
    bytes.extend_from_slice(&header.ring_position.unwrap_or(NO_POSITION).to_le_bytes());
    let sort = if header.lookups { LOOKUPS } else { 0 };
    bytes.extend_from_slice(&(header.rows | sort).to_le_bytes());
    bytes.extend_from_slice(batch);
    let crc = crc32fast::hash(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The entry's fixed part at a place, and the value of its length field. The place must be one where a whole entry is.
pub(super) fn read_header(file: &File, at: u64) -> io::Result<(EntryHeader, u32)> {
    let mut bytes = [0; ENTRY_BYTES as usize];
    file.read_exact_at(&mut bytes, at)?;
    let length = word(&bytes, 0);
    if !(EntryHeader::PAYLOAD_BYTES..=MAX_ENTRY).contains(&(length as usize)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a damaged entry",
        ));
    }
    Ok((
        EntryHeader {
            seq: long(&bytes, 8),
            ring_position: position(&bytes),
            rows: word(&bytes, 24) & !LOOKUPS,
            lookups: word(&bytes, 24) & LOOKUPS != 0,
        },
        length,
    ))
}

/// Reads a segment left by an earlier run, and cuts it after its last whole entry. A file without a valid header, or
/// without entries, is deleted: it holds nothing (but where numbers stood, which is returned).
pub(super) fn recover(path: &Path) -> Result<Scan, SpoolError> {
    let io = |source| SpoolError::Io {
        path: path.into(),
        source,
    };
    let bytes = fs::read(path).map_err(io)?;
    let Some(header) = parse_header(&bytes) else {
        fs::remove_file(path).map_err(io)?;
        return Ok(Scan {
            segment: None,
            end_seq: 0,
            end_ring_position: None,
            lookup_position: None,
            torn_bytes: bytes.len() as u64,
        });
    };
    let mut scan = Scan {
        segment: None,
        end_seq: header.base_seq,
        end_ring_position: header.ring_position,
        lookup_position: None,
        torn_bytes: 0,
    };
    let mut rows = 0;
    let mut at = HEADER_BYTES as usize;
    while let Some((entry, length)) = parse_entry(&bytes[at..]) {
        // Numbers only rise; anything else is damage that the checksum did not show.
        if entry.seq < scan.end_seq {
            break;
        }
        scan.end_seq = entry.seq.saturating_add(1);
        scan.end_ring_position = entry.ring_position;
        if entry.lookups && length >= ENTRY_BYTES as usize + POSITION_BYTES {
            let position = long(&bytes[at..], ENTRY_BYTES as usize);
            scan.lookup_position = known(position).or(scan.lookup_position);
        }
        rows += u64::from(entry.rows);
        at += length;
    }
    scan.torn_bytes = (bytes.len() - at) as u64;
    if scan.torn_bytes > 0 {
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(at as u64))
            .map_err(io)?;
    }
    scan.segment = Some(Segment {
        path: path.into(),
        base_seq: header.base_seq,
        end_seq: scan.end_seq,
        bytes: at as u64,
        rows,
    });
    Ok(scan)
}

/// Rows of a segment's entries above a number.
pub(super) fn rows_after(segment: &Segment, seq: u64) -> io::Result<u64> {
    let file = File::open(&segment.path)?;
    let (mut at, mut rows) = (HEADER_BYTES, 0);
    while at < segment.bytes {
        let (entry, length) = read_header(&file, at)?;
        if entry.seq > seq {
            rows += u64::from(entry.rows);
        }
        at += 8 + u64::from(length);
    }
    Ok(rows)
}

fn parse_header(bytes: &[u8]) -> Option<Header> {
    let bytes = bytes.get(..HEADER_BYTES as usize)?;
    let valid = bytes.starts_with(&MAGIC)
        && crc32fast::hash(&bytes[..24]) == word(bytes, 24)
        && long(bytes, 8) > 0;
    valid.then(|| Header {
        base_seq: long(bytes, 8),
        ring_position: position(bytes),
    })
}

/// The entry at the start of `bytes` and how many bytes it takes; `None` when it is torn or damaged.
fn parse_entry(bytes: &[u8]) -> Option<(EntryHeader, usize)> {
    if bytes.len() < ENTRY_BYTES as usize {
        return None;
    }
    let length = word(bytes, 0) as usize;
    if !(EntryHeader::PAYLOAD_BYTES..=MAX_ENTRY).contains(&length) {
        return None;
    }
    let body = bytes.get(8..8 + length)?;
    let entry = EntryHeader {
        seq: long(bytes, 8),
        ring_position: position(bytes),
        rows: word(bytes, 24) & !LOOKUPS,
        lookups: word(bytes, 24) & LOOKUPS != 0,
    };
    (crc32fast::hash(body) == word(bytes, 4)).then_some((entry, 8 + length))
}

/// The integer at an offset that is known to be inside.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The ring position of a header or an entry: both have it at the same offset.
fn position(bytes: &[u8]) -> Option<u64> {
    known(long(bytes, 16))
}

fn known(position: u64) -> Option<u64> {
    Some(position).filter(|position| *position != NO_POSITION)
}

/// What stands before a batch of lookups.
pub(super) fn encode_position(position: Option<u64>) -> [u8; POSITION_BYTES] {
    position.unwrap_or(NO_POSITION).to_le_bytes()
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}
