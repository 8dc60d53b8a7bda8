//! Whose the kernel's places for connections are, as memory shared with it.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::ProtFlags;

use super::Mapping;

/// The tags of all places: 0 for nobody's. The kernel changes them at any time.
#[derive(Debug)]
pub struct Tags {
    mapping: Mapping,
    count: usize,
}

impl Tags {
    /// Maps an array map of `count` eight-byte values.
    pub fn map(fd: impl AsFd, count: u32) -> io::Result<Self> {
        let count = count as usize;
        // The kernel rounds the mapping up to whole pages.
        let mapping = Mapping::new(
            fd,
            count * size_of::<u64>(),
            0,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        )?;
        Ok(Self { mapping, count })
    }

    /// Number of places.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn tag(&self, index: usize) -> &AtomicU64 {
        // SAFETY: within the mapping, as `byte` asserts; aligned, since a mapping begins with a page; changed by atomic accesses only.
        unsafe { AtomicU64::from_ptr(self.mapping.byte(index * size_of::<u64>()).cast()) }
    }

    /// Whose place it is.
    pub fn get(&self, index: usize) -> u64 {
        self.tag(index).load(Ordering::Acquire)
    }

    /// Makes a place nobody's, if it is still whose it was.
    pub fn free(&self, index: usize, tag: u64) -> bool {
        self.tag(index)
            .compare_exchange(tag, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}
