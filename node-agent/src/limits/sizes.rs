//! How large the kernel's maps are, and how large they may be. Pure.
//!
//! The arithmetic is the kernel's own: what it takes when a map is made, not what comes to be in it. What is taken for each
//! possible processor is counted as often as there are some, so that a limit that holds on four of them holds on sixty-four.

use weft_agent_common::{
    Connection, FlowKey, FlowNote, FlowState, Listener, ListenerKey, PLACES, calls::call_counter,
    counter, datagram_counter,
};

/// What decides the maps' sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Ring of connections and flows, bytes.
    pub ring_bytes: u32,
    /// Ring of name servers' packets, bytes; 0: there are no hooks for datagrams.
    pub dns_ring_bytes: u32,
    /// Ring of calls, bytes; 0: there are no call hooks.
    pub calls_ring_bytes: u32,
    /// Connections.
    pub max_connections: u32,
    /// UDP flows; 0: there are no hooks for datagrams.
    pub max_flows: u32,
}

/// Smallest sizes that an agent shrinks to by itself: with less it would see too little to be worth its place.
pub const LEAST: Sizes = Sizes {
    ring_bytes: 1 << 20,
    dns_ring_bytes: 1 << 18,
    calls_ring_bytes: 1 << 18,
    max_connections: 8_192,
    max_flows: 2_048,
};

/// The maps do not fit, however small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "[limits] kernel_memory_bytes = {limit} is too little: the smallest maps take {least} bytes on {processors} processors"
)]
pub struct TooLittle {
    limit: u64,
    least: u64,
    processors: u32,
}

/// Bytes of a page: what is mapped begins and ends with one.
const PAGE: u64 = 4096;
/// Of a hash map's entry beside key and value: links and hash, and a pointer that keeps it from being used again too soon.
const HASH_ENTRY: u64 = 48;
/// Of a hash map's bucket: the list's head and a lock. There are as many as entries, up to the next power of two.
const HASH_BUCKET: u64 = 16;
/// Entries of [`crate::kernel`]'s map of listeners, which takes memory as they come; all are counted.
const MAX_LISTENERS: u64 = 16_384;
/// Of every map: its own structure, and rounding.
const MAP: u64 = 4096;
/// A connection finds no place when its next few are taken; so many of a hundred do when all places but these are.
const CROWDED_PERCENT: u64 = 25;

/// Kernel memory that the maps take on a machine of so many possible processors.
pub fn kernel_bytes(sizes: &Sizes, processors: u32) -> u64 {
    let processors = u64::from(processors);
    let connections = u64::from(sizes.max_connections);
    let places = connections.max(u64::from(PLACES)).next_power_of_two();
    let crowded = connections * CROWDED_PERCENT / 100;
    let mut bytes = ring(sizes.ring_bytes)
        + array(places, 8)
        + array(places, size_of::<Connection>() as u64)
        + hash(crowded, 8, size_of::<Connection>() as u64, processors)
        + hash(
            MAX_LISTENERS,
            size_of::<ListenerKey>() as u64,
            size_of::<Listener>() as u64,
            0,
        )
        + per_cpu(counter::SLOTS, processors);
    if sizes.max_flows > 0 {
        let flows = u64::from(sizes.max_flows);
        let (key, state) = (size_of::<FlowKey>() as u64, size_of::<FlowState>() as u64);
        bytes += ring(sizes.dns_ring_bytes)
            + hash(flows, key, state, processors)
            + hash(flows, key, size_of::<FlowNote>() as u64, 0)
            + per_cpu(datagram_counter::SLOTS, processors);
    }
    if sizes.calls_ring_bytes > 0 {
        bytes += ring(sizes.calls_ring_bytes) + per_cpu(call_counter::SLOTS, processors);
    }
    bytes
}

fn ring(bytes: u32) -> u64 {
    // Positions and pointers to the pages come beside the data.
    u64::from(bytes) + u64::from(bytes) / PAGE * 16 + 3 * PAGE + MAP
}

fn array(entries: u64, value: u64) -> u64 {
    (entries * value.next_multiple_of(8)).next_multiple_of(PAGE) + MAP
}

/// One that takes its memory at once has an entry more for each processor.
fn hash(entries: u64, key: u64, value: u64, processors: u64) -> u64 {
    let entry = HASH_ENTRY + key.next_multiple_of(8) + value.next_multiple_of(8);
    (entries + processors) * entry + entries.next_power_of_two() * HASH_BUCKET + MAP
}

fn per_cpu(slots: u32, processors: u64) -> u64 {
    u64::from(slots) * (8 * processors + 8) + MAP
}

/// One of the sizes, and the least that it may become.
type Shrinks = fn(&mut Sizes) -> (&mut u32, u32);

/// What shrinks, in this order, each down to a half, a quarter and so on before the next does: first what only holds what nobody
/// has read yet, then how much can be open at a time.
const SHRINKING: [Shrinks; 5] = [
    |sizes| (&mut sizes.dns_ring_bytes, LEAST.dns_ring_bytes),
    |sizes| (&mut sizes.calls_ring_bytes, LEAST.calls_ring_bytes),
    |sizes| (&mut sizes.ring_bytes, LEAST.ring_bytes),
    |sizes| (&mut sizes.max_flows, LEAST.max_flows),
    |sizes| (&mut sizes.max_connections, LEAST.max_connections),
];

/// The sizes, or smaller ones that the limit has room for.
pub fn fit(wanted: Sizes, processors: u32, limit: u64) -> Result<Sizes, TooLittle> {
    let mut sizes = wanted;
    // Round after round, so that nothing is gone entirely while other things are whole.
    loop {
        let before = sizes;
        for field in SHRINKING {
            if kernel_bytes(&sizes, processors) <= limit {
                return Ok(sizes);
            }
            let (size, least) = field(&mut sizes);
            // What is smaller already, or off, was wanted so.
            if *size / 2 >= least {
                *size /= 2;
            }
        }
        if sizes == before {
            let least = kernel_bytes(&sizes, processors);
            return if least <= limit {
                Ok(sizes)
            } else {
                Err(TooLittle {
                    limit,
                    least,
                    processors,
                })
            };
        }
    }
}

/// Processors that the kernel may have: maps of its own are made for all of them.
pub fn possible_processors() -> u32 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    parse_processors(&text).unwrap_or_else(|| {
        std::thread::available_parallelism().map_or(1, |processors| processors.get() as u32)
    })
}

/// `0-63`, `0`, `0-3,8-11`: one more than the last.
fn parse_processors(text: &str) -> Option<u32> {
    let last = text.trim().rsplit([',', '-']).next()?;
    last.parse::<u32>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEFAULT: Sizes = Sizes {
        ring_bytes: 16 << 20,
        dns_ring_bytes: 8 << 20,
        calls_ring_bytes: 4 << 20,
        max_connections: 262_144,
        max_flows: 65_536,
    };

    #[test]
    fn sixty_four_processors_take_hardly_more_than_two() {
        let [two, many] = [2, 64].map(|processors| kernel_bytes(&DEFAULT, processors));
        assert!(many > two);
        assert!(many - two < 64 << 10, "{} bytes more", many - two);
    }

    #[test]
    fn the_default_sizes_fit_the_default_limit_on_any_machine() {
        let limit = crate::config::Limits::default().kernel_memory_bytes;
        for processors in [1, 64, 8_192] {
            assert_eq!(fit(DEFAULT, processors, limit), Ok(DEFAULT), "{processors}");
        }
    }

    #[test]
    fn a_tight_limit_shrinks_and_an_impossible_one_is_refused_with_the_numbers() {
        let fitted = fit(DEFAULT, 64, 32 << 20).unwrap();
        assert!(kernel_bytes(&fitted, 64) <= 32 << 20);
        assert!(fitted.ring_bytes.is_power_of_two() && fitted.dns_ring_bytes.is_power_of_two());
        let refused = fit(DEFAULT, 64, 1 << 20).unwrap_err();
        let words = refused.to_string();
        assert!(
            words.contains("1048576") && words.contains("64 processors"),
            "{words}"
        );
        assert_eq!(fit(DEFAULT, 64, refused.least), Ok(LEAST_OF_DEFAULT));
    }

    const LEAST_OF_DEFAULT: Sizes = LEAST;

    #[test]
    fn what_is_off_stays_off() {
        let off = Sizes {
            dns_ring_bytes: 0,
            calls_ring_bytes: 0,
            max_flows: 0,
            ..DEFAULT
        };
        let fitted = fit(off, 4, 8 << 20).unwrap();
        assert_eq!(
            (
                fitted.max_flows,
                fitted.dns_ring_bytes,
                fitted.calls_ring_bytes
            ),
            (0, 0, 0)
        );
    }

    #[test]
    fn processors_are_counted_by_the_last_number() {
        for (text, count) in [
            ("0-63\n", Some(64)),
            ("0", Some(1)),
            ("0-3,8-11", Some(12)),
            ("", None),
        ] {
            assert_eq!(parse_processors(text), count, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_fits_is_within_the_limit_and_no_larger_than_wanted(
            ring in 20_u32..27, dns in 18_u32..26, calls in 18_u32..26,
            connections in 1_u32..3_000_000, flows in 1_u32..1_000_000,
            processors in 1_u32..1_024, limit in 1_u64 << 20..1 << 30,
        ) {
            let wanted = Sizes {
                ring_bytes: 1 << ring, dns_ring_bytes: 1 << dns, calls_ring_bytes: 1 << calls,
                max_connections: connections, max_flows: flows,
            };
            match fit(wanted, processors, limit) {
                Ok(sizes) => {
                    prop_assert!(kernel_bytes(&sizes, processors) <= limit);
                    prop_assert!(sizes.max_connections <= connections && sizes.ring_bytes <= 1 << ring);
                    prop_assert!(sizes == wanted || kernel_bytes(&wanted, processors) > limit);
                }
                Err(refused) => prop_assert!(refused.least > limit),
            }
        }
    }
}
