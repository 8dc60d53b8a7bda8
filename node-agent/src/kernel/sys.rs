//! The one module with `unsafe`: shared memory with the kernel, and system calls that have no safe wrapper.

#![allow(unsafe_code)]

mod ring;
pub mod tags;
pub mod batch;

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use weft_agent_common::{
    Connection, DatagramMeta, DatagramSocket, Listener, ListenerKey, Meta, SocketState,
};

pub use ring::Ring;

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

/// Allocations of this size and more go back to the system when they are freed.
const LARGE_BYTES: i32 = 256 << 10;
/// The same in busy times. A batch's are smaller: taking their pages from the system each time costs more than filling them.
const LARGE_WHEN_BUSY_BYTES: i32 = 8 << 20;
/// So much that is free at a heap's end stays there until [`give_back`].
const KEPT_BYTES: i32 = 128 << 10;
const KEPT_WHEN_BUSY_BYTES: i32 = 16 << 20;
/// Heaps that threads share.
const HEAPS: i32 = 2;

/// Makes the allocator give back what is freed: by default it learns from the first large buffer to keep such ones, and gives each
/// thread a heap of its own.
pub fn keep_little() {
    // SAFETY: settings of the allocator; it checks them.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Makes the allocator keep what a busy moment needs for the next one, or give that back and keep little again.
pub fn keep_for_next(busy: bool) {
    let (large, kept) = if busy {
        (LARGE_WHEN_BUSY_BYTES, KEPT_WHEN_BUSY_BYTES)
    } else {
        (LARGE_BYTES, KEPT_BYTES)
    };
    // SAFETY: settings of the allocator; it checks them.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, large);
        libc::mallopt(libc::M_TRIM_THRESHOLD, kept);
    }
    if !busy {
        give_back();
    }
}

/// Gives back what was freed since.
pub fn give_back() {
    // SAFETY: touches only memory that is free.
    unsafe { libc::malloc_trim(0) };
}

/// Lets go of the program's code: what is needed comes back from its file, and what only the start needed does not.
pub fn forget_code() {
    let Ok(code) = code() else { return };
    for (from, to) in code {
        let (Ok(from), Ok(length)) = (usize::try_from(from), usize::try_from(to - from)) else {
            continue;
        };
        // SAFETY: a mapping of our own file that may not be written, so that it holds what the file holds.
        unsafe { libc::madvise(from as *mut c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Where this program's own code is.
fn code() -> io::Result<Vec<(u64, u64)>> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let code = maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, rights) = (fields.next()?, fields.next()?);
        let path = fields.nth(3)?;
        if rights != "r-xp" || Path::new(path) != program {
            return None;
        }
        let (from, to) = range.split_once('-')?;
        Some((
            u64::from_str_radix(from, 16).ok()?,
            u64::from_str_radix(to, 16).ok()?,
        ))
    });
    Ok(code.collect())
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
