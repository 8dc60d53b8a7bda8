//! The reader's side of a BPF ring buffer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::ProtFlags;

use super::Mapping;

/// Bit of a record's length word: the kernel is still writing it.
const BUSY: u32 = 1 << 31;
/// Bit of a record's length word: the kernel gave it up.
const DISCARDED: u32 = 1 << 30;
/// Bytes before each record: its length word and one that is the kernel's own.
const HEADER: u64 = 8;
/// Bytes of the ring that are mapped at a time. All that is mapped counts as memory of this process, and a ring is
/// mapped twice in a row: of one of 16 MiB that would be 32.
const WINDOW: u64 = 256 << 10;

/// A ring buffer, read in a way that separates looking from consuming: what was looked at stays until
/// [`Ring::consume`] gives its space back.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
    /// A part of the data, and where in the data it begins.
    window: Option<(Mapping, u64)>,
    page: u64,
    size: u64,
}

impl Ring {
    /// Maps a ring buffer map of `size` bytes.
    pub fn map(fd: impl AsFd, size: u32) -> io::Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
        let page = u64::try_from(page).map_err(|_| io::ErrorKind::InvalidData)?;
        let size = u64::from(size);
        if !size.is_power_of_two() || size < page {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let positions = |offset: u64, protection| {
            Mapping::new(fd.as_fd(), page as usize, offset as usize, protection)
        };
        Ok(Self {
            consumer: positions(0, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?,
            producer: positions(page, ProtFlags::PROT_READ)?,
            fd: fd.as_fd().try_clone_to_owned()?,
            window: None,
            page,
            size,
        })
    }

    fn consumer(&self) -> &AtomicU64 {
        // SAFETY: the page begins with the consumer's position, aligned, written only through this atomic.
        unsafe { AtomicU64::from_ptr(self.consumer.byte(0).cast()) }
    }

    /// Up to where space was given back.
    pub fn consumed(&self) -> u64 {
        self.consumer().load(Ordering::Acquire)
    }

    /// Up to where the kernel has reserved.
    pub fn produced(&self) -> u64 {
        // SAFETY: the page begins with the producer's position, aligned; the kernel writes it atomically.
        unsafe { &*self.producer.byte(0).cast::<AtomicU64>() }.load(Ordering::Acquire)
    }

    /// Gives back the space of everything before `position`, which [`Ring::peek`] returned.
    pub fn consume(&self, position: u64) {
        assert!(
            self.consumed() <= position && position <= self.produced(),
            "a position within the ring"
        );
        self.consumer().store(position, Ordering::Release);
    }

    /// The record at `position` and the position of the next; `None` where the kernel has written no more, or the ring cannot be
    /// mapped (which is logged). A record that the kernel gave up is empty.
    pub fn peek(&mut self, position: u64) -> Option<(&[u8], u64)> {
        if position >= self.produced() || position < self.consumed() {
            return None;
        }
        let at = position & (self.size - 1);
        let word = self.data(at, HEADER)?.cast::<AtomicU32>();
        // SAFETY: records are aligned to 8 bytes; the kernel writes this word atomically.
        let word = unsafe { &*word }.load(Ordering::Acquire);
        if word & BUSY != 0 {
            return None;
        }
        let length = u64::from(word & !DISCARDED);
        let next = position + (HEADER + length).next_multiple_of(8);
        if word & DISCARDED != 0 {
            return Some((&[], next));
        }
        let record = self.data(at, HEADER + length)?;
        // SAFETY: all of it is mapped (the data comes twice in a row, so a record never wraps); the kernel does not write
        // between the consumer's position and the producer's again, and the window moves only when this borrow has ended.
        let bytes = unsafe {
            std::slice::from_raw_parts(record.add(HEADER as usize).cast_const(), length as usize)
        };
        Some((bytes, next))
    }

    /// Where so many bytes of the data are in memory.
    fn data(&mut self, at: u64, length: u64) -> Option<*mut u8> {
        let inside = |from: u64, bytes: u64| from <= at && at + length <= from + bytes;
        let mapped = self.window.as_ref();
        if !mapped.is_some_and(|(window, from)| inside(*from, window.len as u64)) {
            // The one before is given up first.
            self.window = None;
            let from = at / self.page * self.page;
            let bytes = WINDOW
                .max(at + length - from)
                .next_multiple_of(self.page)
                .min(2 * self.size - from);
            // The two pages of positions come first.
            let offset = (2 * self.page + from) as usize;
            let window = Mapping::new(&self.fd, bytes as usize, offset, ProtFlags::PROT_READ);
            let window = window.inspect_err(|error| tracing::error!(%error, "map the ring"));
            self.window = Some((window.ok()?, from));
        }
        let (window, from) = self.window.as_ref()?;
        let _last = window.byte((at + length - 1 - from) as usize);
        Some(window.byte((at - from) as usize))
    }
}
