//! Segment files: frames of `u32 length | u32 crc | body`, little-endian. The checksum covers the frame's position too, so
//! that bytes of another place never pass as valid.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::entry::{Entry, EntryRef};
use super::{ENTRY_MAX_BYTES, JournalError, io_error};

/// Length and checksum before every body.
pub const FRAME_HEADER_BYTES: usize = 8;

const EXTENSION: &str = "journal";

/// An entry whose checksum is right is of another version of the program.
const FOREIGN: &str = "the entry is of a kind that this program does not know; the version that wrote it has to be started once \
     more and stopped with SIGTERM, so that the store has it";

/// What [`scan`] found.
pub(super) struct Scanned {
    /// Position after the last good frame.
    pub end: u64,
    /// Position after the file's last byte.
    pub file_end: u64,
    /// Why the bytes between the two are not frames.
    pub damage: Option<&'static str>,
}

/// Segments in order: (first position, path).
pub(super) fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, JournalError> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|source| io_error(folder, source))? {
        let path = entry.map_err(|source| io_error(folder, source))?.path();
        let start = path
            .file_stem()
            .filter(|_| {
                path.extension()
                    .is_some_and(|extension| extension == EXTENSION)
            })
            .and_then(|stem| u64::from_str_radix(stem.to_str()?, 16).ok());
        if let Some(start) = start {
            segments.push((start, path));
        }
    }
    segments.sort();
    Ok(segments)
}

/// Creates an empty segment; durable, name included, when this returns.
pub(super) fn create(folder: &Path, start: u64) -> Result<PathBuf, JournalError> {
    let path = folder.join(format!("{start:016x}.{EXTENSION}"));
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|file| file.sync_all())
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(|source| io_error(&path, source))?;
    Ok(path)
}

/// Cuts a segment to `bytes`, durably.
pub(super) fn truncate(path: &Path, bytes: u64) -> Result<(), JournalError> {
    File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(bytes).and_then(|()| file.sync_all()))
        .map_err(|source| io_error(path, source))
}

/// Appends a frame that will stand at `position`; on an error `out` is as before.
pub(super) fn encode(
    out: &mut Vec<u8>,
    position: u64,
    entry: EntryRef<'_>,
) -> Result<(), JournalError> {
    let frame = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    entry.encode(out);
    let body = out.len() - frame - FRAME_HEADER_BYTES;
    let Some(length) = u32::try_from(body).ok().filter(|_| body <= ENTRY_MAX_BYTES) else {
        out.truncate(frame);
        return Err(JournalError::Oversized(body));
    };
    let crc = checksum(position, &out[frame + FRAME_HEADER_BYTES..]);
    out[frame..frame + 4].copy_from_slice(&length.to_le_bytes());
    out[frame + 4..frame + 8].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Reads every good frame from the start; stops at the first that is not one. A good frame of an unknown kind
/// is an error, unless it ends at or before `from`: of those nothing is needed any more.
pub(super) fn scan(
    path: &Path,
    start: u64,
    from: u64,
    mut each: impl FnMut(u64, Entry),
) -> Result<Scanned, JournalError> {
    let file = File::open(path).map_err(|source| io_error(path, source))?;
    let file_end = start
        + file
            .metadata()
            .map_err(|source| io_error(path, source))?
            .len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut position = start;
    let mut body = Vec::new();
    let damage = loop {
        if position == file_end {
            break None;
        }
        match read_frame(&mut reader, position, &mut body) {
            Ok(Ok(entry)) => {
                let end = position + (FRAME_HEADER_BYTES + body.len()) as u64;
                match entry {
                    Some(entry) => each(end, entry),
                    None if end <= from => {}
                    // Whole, and not to be understood: cutting it off would lose what was acknowledged.
                    None => {
                        return Err(JournalError::Damaged {
                            path: path.to_path_buf(),
                            position,
                            why: FOREIGN,
                        });
                    }
                }
                position = end;
            }
            Ok(Err(why)) => break Some(why),
            Err(source) if source.kind() == ErrorKind::UnexpectedEof => {
                break Some("the frame is cut short");
            }
            Err(source) => return Err(io_error(path, source)),
        }
    };
    Ok(Scanned {
        end: position,
        file_end,
        damage,
    })
}

/// A good frame's entry, `None` if it is of an unknown kind; or why it is no good frame.
fn read_frame(
    reader: &mut impl Read,
    position: u64,
    body: &mut Vec<u8>,
) -> std::io::Result<Result<Option<Entry>, &'static str>> {
    let mut header = [0; FRAME_HEADER_BYTES];
    reader.read_exact(&mut header)?;
    let [a, b, c, d, e, f, g, h] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length == 0 || length > ENTRY_MAX_BYTES {
        return Ok(Err("the length is impossible"));
    }
    body.resize(length, 0);
    reader.read_exact(body)?;
    if checksum(position, body) != u32::from_le_bytes([e, f, g, h]) {
        return Ok(Err("the checksum differs"));
    }
    Ok(Ok(Entry::decode(body)))
}

pub(super) fn checksum(position: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&position.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}
