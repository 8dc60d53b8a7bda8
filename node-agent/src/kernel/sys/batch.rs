//! Hash maps read and written many entries at a time (kernel 5.6), for which the loader has no call.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use aya::maps::MapData;
use weft_agent_common::{FlowKey, FlowNote, FlowState};

/// Commands of the bpf system call.
const LOOKUP: i32 = 1;
const UPDATE: i32 = 2;
const DELETE: i32 = 3;
const LOOKUP_AND_DELETE: i32 = 21;
const LOOKUP_BATCH: i32 = 24;
const UPDATE_BATCH: i32 = 26;
const DELETE_BATCH: i32 = 27;
/// The kernel's own "not supported", which has no name outside it.
const ENOTSUPP: i32 = 524;
/// Entries asked for at a time; more only where one bucket of the map holds more.
const BATCH: usize = 1024;
/// Most entries one bucket is believed to hold.
const MAX_BATCH: usize = 1 << 20;

/// Types that are `repr(C)` integers and byte arrays without padding (their sizes are asserted where they are defined), so
/// that any bytes are a value and a value is its bytes.
///
/// # Safety
/// The type must be such.
pub unsafe trait Flat: Copy + Default {}

// SAFETY: as the trait demands.
unsafe impl Flat for FlowKey {}
// SAFETY: as the trait demands.
unsafe impl Flat for FlowState {}
// SAFETY: as the trait demands.
unsafe impl Flat for FlowNote {}

/// The part of `union bpf_attr` for batches.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for one entry.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A hash map.
#[derive(Debug)]
pub struct HashTable<K, V> {
    map: MapData,
    /// The kernel takes an entry and gives it back in one call (5.14).
    takes: AtomicBool,
    _types: PhantomData<(K, V)>,
}

impl<K: Flat, V: Flat> HashTable<K, V> {
    /// `None` when the map's keys or values are of other sizes.
    pub fn new(map: MapData) -> Option<Self> {
        let info = map.info().ok()?;
        let fits = info.key_size() as usize == size_of::<K>()
            && info.value_size() as usize == size_of::<V>();
        fits.then_some(Self {
            map,
            takes: AtomicBool::new(true),
            _types: PhantomData,
        })
    }

    /// Most entries it can hold.
    pub fn capacity(&self) -> u32 {
        self.map
            .info()
            .map(|info| info.max_entries())
            .unwrap_or_default()
    }

    /// Every entry. One that comes or goes meanwhile may be among them or not.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let (mut found, mut batch) = (Vec::new(), BATCH);
        let mut keys = vec![K::default(); batch];
        let mut values = vec![V::default(); batch];
        let (mut cursor, mut next) = (0_u64, 0_u64);
        let mut started = false;
        loop {
            let mut attr = BatchAttr {
                in_batch: if started {
                    (&raw const cursor) as u64
                } else {
                    0
                },
                out_batch: (&raw mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: batch as u32,
                map_fd: self.fd().as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: both arrays have room for `count` entries of the map's sizes, checked when this was made, and every
            // pointer lives across the call.
            let result = unsafe { bpf(LOOKUP_BATCH, &mut attr) };
            match result {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < MAX_BATCH => {
                    batch *= 2;
                    keys.resize(batch, K::default());
                    values.resize(batch, V::default());
                    continue;
                }
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
            let count = (attr.count as usize).min(batch);
            found.extend(
                keys[..count]
                    .iter()
                    .copied()
                    .zip(values[..count].iter().copied()),
            );
            if result.is_err() {
                return Ok(found);
            }
            (cursor, started) = (next, true);
        }
    }

    /// An entry.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::default();
        let found = self.element(LOOKUP, key, &raw mut value as u64, 0);
        found_or_not(found, value)
    }

    /// Takes an entry out.
    pub fn take(&self, key: &K) -> io::Result<Option<V>> {
        if self.takes.load(Ordering::Relaxed) {
            let mut value = V::default();
            let taken = self.element(LOOKUP_AND_DELETE, key, &raw mut value as u64, 0);
            let refused = [libc::EINVAL, ENOTSUPP, libc::EOPNOTSUPP];
            match &taken {
                Err(error)
                    if error
                        .raw_os_error()
                        .is_some_and(|code| refused.contains(&code)) =>
                {
                    self.takes.store(false, Ordering::Relaxed);
                }
                _ => return found_or_not(taken, value),
            }
        }
        let value = self.get(key)?;
        if value.is_some() {
            found_or_not(self.element(DELETE, key, 0, 0), ())?;
        }
        Ok(value)
    }

    /// Puts an entry in, if there is none with its key.
    pub fn put_new(&self, key: &K, value: &V) -> io::Result<()> {
        const NOEXIST: u64 = 1;
        self.element(UPDATE, key, (&raw const *value) as u64, NOEXIST)
    }

    /// Writes many entries, and says how many were written before an error.
    pub fn write(&self, keys: &[K], values: &[V]) -> (usize, io::Result<()>) {
        assert_eq!(keys.len(), values.len(), "a value for each key");
        self.many(UPDATE_BATCH, keys, values.as_ptr() as u64)
    }

    /// Removes many entries; those that are not there do not matter.
    pub fn remove(&self, keys: &[K]) -> io::Result<()> {
        let mut rest = keys;
        while !rest.is_empty() {
            let (done, result) = self.many(DELETE_BATCH, rest, 0);
            match result {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    rest = &rest[(done + 1).min(rest.len())..];
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn many(&self, command: i32, keys: &[K], values: u64) -> (usize, io::Result<()>) {
        if keys.is_empty() {
            return (0, Ok(()));
        }
        let mut attr = BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values,
            count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            map_fd: self.fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the arrays have `count` entries of the map's sizes, checked when this was made, and live across the call.
        let result = unsafe { bpf(command, &mut attr) };
        (attr.count as usize, result)
    }

    fn element(&self, command: i32, key: &K, value: u64, flags: u64) -> io::Result<()> {
        let mut attr = ElementAttr {
            map_fd: self.fd().as_raw_fd() as u32,
            zero: 0,
            key: (&raw const *key) as u64,
            value,
            flags,
        };
        // SAFETY: key and value have the map's sizes, checked when this was made, and live across the call.
        unsafe { bpf(command, &mut attr) }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

fn found_or_not<T>(result: io::Result<()>, value: T) -> io::Result<Option<T>> {
    match result {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// # Safety
/// `attr` must be what the command takes, and its pointers must be good for what the command does.
unsafe fn bpf<T>(command: i32, attr: &mut T) -> io::Result<()> {
    // SAFETY: the caller's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
