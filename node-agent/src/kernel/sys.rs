//! The one module with `unsafe`: shared memory with the kernel, and system calls that have no safe wrapper.

#![allow(unsafe_code)]

pub mod tags;
pub mod batch;

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use weft_agent_common::{
    Connection, DatagramMeta, DatagramSocket, Listener, ListenerKey, Meta, SocketState,
};

/// A shared type as map value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Plain<T>(pub T);

// SAFETY: `repr(C)` integers and byte arrays without padding (their sizes are asserted where they are defined).
unsafe impl aya::Pod for Plain<Meta> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<SocketState> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Connection> {}

// SAFETY: as above.
unsafe impl aya::Pod for Plain<ListenerKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Listener> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<DatagramMeta> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<DatagramSocket> {}

/// Bit of a record's length word: the kernel is still writing it.
const BUSY: u32 = 1 << 31;
/// Bit of a record's length word: the kernel gave it up.
const DISCARDED: u32 = 1 << 30;
/// Bytes before each record: its length word and one that is the kernel's own.
const HEADER: u64 = 8;

/// The reader's side of a BPF ring buffer, which separates looking from consuming: what was looked at stays until
/// [`Ring::consume`] gives its space back.
#[derive(Debug)]
pub struct Ring {
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    size: u64,
}

#[derive(Debug)]
struct Mapping {
    at: NonNull<c_void>,
    len: usize,
}

// SAFETY: a mapping is memory of this process, not of a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(fd: impl AsFd, len: usize, offset: usize, protection: ProtFlags) -> io::Result<Self> {
        let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe {
            mmap(
                None,
                length,
                protection,
                MapFlags::MAP_SHARED,
                fd,
                offset as i64,
            )
        }?;
        Ok(Self { at, len })
    }

    fn byte(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len, "an offset within the mapping");
        // SAFETY: within the mapping, as asserted.
        unsafe { self.at.as_ptr().cast::<u8>().add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours, and its borrowers are gone.
        let _ = unsafe { munmap(self.at, self.len) };
    }
}

impl Ring {
    /// Maps a ring buffer map of `size` bytes.
    pub fn map(fd: impl AsFd, size: u32) -> io::Result<Self> {
        let page = usize::try_from(
            nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096),
        )
        .map_err(|_| io::ErrorKind::InvalidData)?;
        if !size.is_power_of_two() || (size as usize) < page {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let consumer = Mapping::new(
            fd.as_fd(),
            page,
            0,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        )?;
        let producer = Mapping::new(
            fd.as_fd(),
            page + 2 * size as usize,
            page,
            ProtFlags::PROT_READ,
        )?;
        Ok(Self {
            consumer,
            producer,
            page,
            size: u64::from(size),
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

    /// The record at `position` and the position of the next; `None` where the kernel has written no more. A record
    /// that the kernel gave up is empty.
    pub fn peek(&self, position: u64) -> Option<(&[u8], u64)> {
        if position >= self.produced() || position < self.consumed() {
            return None;
        }
        let at = self.page + (position & (self.size - 1)) as usize;
        // SAFETY: records are aligned to 8 bytes; the kernel writes this word atomically.
        let word = unsafe { &*self.producer.byte(at).cast::<AtomicU32>() }.load(Ordering::Acquire);
        if word & BUSY != 0 {
            return None;
        }
        let length = u64::from(word & !DISCARDED);
        let next = position + (HEADER + length).next_multiple_of(8);
        if word & DISCARDED != 0 {
            return Some((&[], next));
        }
        let first = self.producer.byte(at + HEADER as usize);
        let last = self
            .producer
            .byte(at + HEADER as usize + (length as usize).saturating_sub(1));
        let _ = last;
        // SAFETY: both ends are within the mapping, as `byte` asserts (the data is mapped twice in a row, so a record
        // never wraps); the kernel does not write between the consumer's position and the producer's again.
        Some((
            unsafe { std::slice::from_raw_parts(first, length as usize) },
            next,
        ))
    }
}

/// Bytes of a kernfs file handle: the cgroup's 64-bit id.
const KERNFS_HANDLE_BYTES: u32 = 8;
/// `FILEID_KERNFS`.
const FILEID_KERNFS: i32 = 0xfe;

#[repr(C)]
struct KernfsHandle {
    handle_bytes: u32,
    handle_type: i32,
    id: [u8; 8],
}

/// Path of the cgroup with this id, below any path of its mount; an error when it is gone.
pub fn cgroup_path(mount: &File, id: u64) -> io::Result<PathBuf> {
    let mut handle = KernfsHandle {
        handle_bytes: KERNFS_HANDLE_BYTES,
        handle_type: FILEID_KERNFS,
        id: id.to_ne_bytes(),
    };
    // SAFETY: the handle has the layout of `struct file_handle` with 8 bytes, and lives across the call.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just made, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    std::fs::read_link(Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string()))
}

/// A copy of another process's descriptor (kernel 5.6).
pub fn descriptor_of(pid: u32, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: system calls on numbers; each result is checked and owned by nobody else.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if process < 0 {
            return Err(io::Error::last_os_error());
        }
        let process = OwnedFd::from_raw_fd(process as i32);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0);
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(copy as i32))
    }
}
