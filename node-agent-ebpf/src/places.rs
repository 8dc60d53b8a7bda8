//! Where a connection is kept while it lives: at a place of its own, or in the hash map for those that found none.

use aya_ebpf::bindings::BPF_ANY;
use core::arch::asm;
use core::ptr::{null_mut, write_volatile};
use weft_agent_common::{COOKIE_BITS, Connection, PLACES, phase};

use crate::maps::{CONNECTIONS, CROWDED, TAGS};
use crate::{PLACE_MASK, Skip};

/// The part of a tag that is a cookie.
const COOKIE: u64 = (1 << COOKIE_BITS) - 1;
/// What an entry of the hash map begins with.
const EMPTY: Connection = Connection {
    state: crate::socket::EMPTY,
    local: [0; 16],
    remote: [0; 16],
    local_port: 0,
    remote_port: 0,
    isn_local: 0,
    isn_remote: 0,
    unused: 0,
};

/// A connection where it is kept.
pub struct Kept {
    /// Callbacks of one socket run one at a time: nobody else writes here.
    pub connection: &'static mut Connection,
    /// The tag of its place; null for an entry of the hash map.
    tag: *mut u64,
}

impl Kept {
    /// Whether the agent finds it by looking at the tags.
    #[inline(always)]
    pub fn has_place(&self) -> bool {
        !self.tag.is_null()
    }

    /// Forgets the connection.
    #[inline(always)]
    pub fn release(self, cookie: u64) {
        if self.tag.is_null() {
            let _ = CROWDED.remove(cookie);
            return;
        }
        self.connection.state.phase = phase::IDLE;
        // SAFETY: the tag is this connection's, in a map that outlives the program. The agent reads it at any time.
        unsafe { write_volatile(self.tag, 0) };
    }
}

/// A connection that is kept.
#[inline(always)]
pub fn find<const PLACED: bool>(cookie: u64) -> Result<Kept, Skip> {
    if PLACED {
        for step in 0..PLACES {
            let index = place(cookie, step);
            let Some(tag) = TAGS.get_ptr_mut(index) else {
                continue;
            };
            // SAFETY: a value of a map that outlives the program.
            if unsafe { *tag } & COOKIE == cookie {
                return at(index, tag);
            }
        }
    }
    crowded(cookie)
}

/// Makes room for a connection, the one after `generation` others of its socket. What is there is another's.
#[inline(always)]
pub fn keep<const PLACED: bool>(cookie: u64, generation: u16) -> Result<Kept, Skip> {
    if PLACED {
        let wanted = cookie | u64::from(generation) << COOKIE_BITS;
        for step in 0..PLACES {
            let index = place(cookie, step);
            if let Some(tag) = TAGS.get_ptr_mut(index).filter(|tag| take(*tag, wanted)) {
                return at(index, tag);
            }
        }
    }
    let inserted = CROWDED.insert(cookie, EMPTY, u64::from(BPF_ANY));
    inserted.map_err(|_| Skip::NoState)?;
    crowded(cookie)
}

#[inline(always)]
fn place(cookie: u64, step: u32) -> u32 {
    (cookie as u32).wrapping_add(step) & PLACE_MASK.load()
}

/// Takes a place that is nobody's. Two connections of different CPUs may want the same one.
#[inline(always)]
fn take(tag: *mut u64, wanted: u64) -> bool {
    let seen: u64;
    // SAFETY: an aligned value of a map that outlives the program. Rust's own exchange is not offered for this target.
    unsafe {
        asm!("r0 = cmpxchg_64({tag} + 0, r0, {wanted})",
            tag = in(reg) tag, wanted = in(reg) wanted, inout("r0") 0_u64 => seen);
    }
    seen == 0
}

#[inline(always)]
fn at(index: u32, tag: *mut u64) -> Result<Kept, Skip> {
    match CONNECTIONS.get_ptr_mut(index) {
        Some(connection) => Ok(Kept {
            // SAFETY: the place is this connection's until it is released; the map outlives the program.
            connection: unsafe { &mut *connection },
            tag,
        }),
        None => Err(Skip::NoState),
    }
}

#[inline(always)]
fn crowded(cookie: u64) -> Result<Kept, Skip> {
    match CROWDED.get_ptr_mut(cookie) {
        Some(connection) => Ok(Kept {
            // SAFETY: the entry lives at least until the program returns, and is this connection's.
            connection: unsafe { &mut *connection },
            tag: null_mut(),
        }),
        None => Err(Skip::NoState),
    }
}
