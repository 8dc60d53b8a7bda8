//! The journal: what was acknowledged survives `kill -9`.
//!
//! Entries are appended to segment files and made durable in groups: whatever waits is written together and
//! costs one `fdatasync` (see [`crate::pipeline`] for the thread that does it). A position is a byte offset in the endless
//! concatenation of all segments, so it never repeats; the store remembers the position that its rows cover, and
//! [`Journal::release`] then deletes the segments below it.
//!
//! Order of calls: [`Journal::open`] replays what is above a position (of which the store may hold a part), [`Journal::append`] buffers, [`Journal::commit`] makes the buffered
//! entries durable. After an error nothing may be appended any more: what reached the disk is unknown.

mod entry;
mod segment;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use entry::{AgentEntry, BatchEntry, Entry, EntryRef, PeerEntry};
pub use segment::FRAME_HEADER_BYTES;

/// Size at which a segment is closed and the next begun.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Longest entry; a longer one in a file is damage.
pub const ENTRY_MAX_BYTES: usize = 16 << 20;

/// Why the journal failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused; what reached the disk is unknown.
    #[error("journal {path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A segment that was complete is damaged: entries after this position cannot be read.
    #[error("journal {path} is damaged at position {position}: {why}")]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where.
        position: u64,
        /// What does not fit.
        why: &'static str,
    },
    /// An entry longer than [`ENTRY_MAX_BYTES`]; nothing was changed.
    #[error("journal entry of {0} bytes is longer than {ENTRY_MAX_BYTES}")]
    Oversized(usize),
}

/// What [`Journal::open`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Entries replayed.
    pub entries: u64,
    /// Bytes of a torn tail that were cut off: written but never acknowledged.
    pub torn_bytes: u64,
    /// Bytes between the position asked for and the first that exists; not 0 only when files were removed by hand.
    pub missing_bytes: u64,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    file: File,
    path: PathBuf,
    /// Position of the first byte of the segment being written.
    start: u64,
    /// Position after the last durable byte.
    end: u64,
    /// Complete older segments: (start, path), oldest first.
    older: Vec<(u64, PathBuf)>,
    pending: Vec<u8>,
    segment_bytes: u64,
}

impl Journal {
    /// Opens or creates the journal in `folder`, cuts a torn tail and hands every entry above `from` to `replay`
    /// with the position after it. Positions up to `covered` are never given out again, even if their entries are gone.
    pub fn open(
        folder: &Path,
        from: u64,
        covered: u64,
        mut replay: impl FnMut(u64, Entry),
    ) -> Result<(Self, Recovery), JournalError> {
        std::fs::create_dir_all(folder).map_err(|source| io_error(folder, source))?;
        let mut segments = segment::list(folder)?;
        let mut recovery = Recovery::default();
        let mut end = from;
        for (index, (start, path)) in segments.iter().enumerate() {
            let last = index + 1 == segments.len();
            let following = segments.get(index + 1).map(|(start, _)| *start);
            if following.is_some_and(|following| following <= from) {
                continue;
            }
            if index == 0 || end < *start {
                recovery.missing_bytes += start.saturating_sub(end.max(from));
            }
            let scanned = segment::scan(path, *start, from, |position, entry| {
                if position > from {
                    recovery.entries += 1;
                    replay(position, entry);
                }
            })?;
            if let Some(why) = scanned.damage {
                if !last {
                    return Err(JournalError::Damaged {
                        path: path.clone(),
                        position: scanned.end,
                        why,
                    });
                }
                recovery.torn_bytes += scanned.file_end - scanned.end;
                segment::truncate(path, scanned.end - start)?;
            }
            end = scanned.end;
        }
        // A journal that ends below what the store already holds would give out its positions twice.
        let (start, path) = match segments.pop() {
            Some((start, path)) if end >= covered => (start, path),
            other => {
                segments.extend(other);
                end = covered;
                (covered, segment::create(folder, covered)?)
            }
        };
        let file = File::options()
            .append(true)
            .open(&path)
            .map_err(|source| io_error(&path, source))?;
        let journal = Self {
            folder: folder.to_path_buf(),
            file,
            path,
            start,
            end,
            older: segments,
            pending: Vec::new(),
            segment_bytes: SEGMENT_BYTES,
        };
        Ok((journal, recovery))
    }

    /// Uses smaller segments, for tests.
    pub fn with_segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Buffers an entry; returns the position after it. Not durable before [`Self::commit`].
    pub fn append(&mut self, entry: EntryRef<'_>) -> Result<u64, JournalError> {
        let position = self.end + self.pending.len() as u64;
        segment::encode(&mut self.pending, position, entry)?;
        Ok(self.end + self.pending.len() as u64)
    }

    /// Bytes buffered and not yet durable.
    pub fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Makes everything appended so far durable; returns the position after it.
    pub fn commit(&mut self) -> Result<u64, JournalError> {
        if self.pending.is_empty() {
            return Ok(self.end);
        }
        self.file
            .write_all(&self.pending)
            .and_then(|()| self.file.sync_data())
            .map_err(|source| io_error(&self.path, source))?;
        self.end += self.pending.len() as u64;
        self.pending.clear();
        if self.end - self.start >= self.segment_bytes {
            self.rotate()?;
        }
        Ok(self.end)
    }

    /// Position after the last durable entry.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes in all segments.
    pub fn bytes(&self) -> u64 {
        self.end - self.older.first().map_or(self.start, |(start, _)| *start)
    }

    /// Deletes segments that hold nothing above `covered`; returns how many.
    pub fn release(&mut self, covered: u64) -> Result<usize, JournalError> {
        let next_starts = self
            .older
            .iter()
            .skip(1)
            .map(|(start, _)| *start)
            .chain([self.start]);
        let releasable = next_starts
            .take(self.older.len())
            .take_while(|next| *next <= covered)
            .count();
        for (_, path) in self.older.drain(..releasable) {
            std::fs::remove_file(&path).map_err(|source| io_error(&path, source))?;
        }
        Ok(releasable)
    }

    fn rotate(&mut self) -> Result<(), JournalError> {
        let path = segment::create(&self.folder, self.end)?;
        let file = File::options()
            .append(true)
            .open(&path)
            .map_err(|source| io_error(&path, source))?;
        let full = std::mem::replace(&mut self.path, path);
        self.older.push((self.start, full));
        self.file = file;
        self.start = self.end;
        Ok(())
    }
}

fn io_error(path: &Path, source: io::Error) -> JournalError {
    JournalError::Io {
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
mod tests;
