//! The kernel's list of sockets: a datagram is read or refused, and gives no more sockets than fit into it.
#![no_main]

#[path = "../../node-agent/src/decode.rs"]
#[allow(dead_code)]
mod decode;
#[path = "../../node-agent/src/snapshot/diag.rs"]
#[allow(dead_code)]
mod diag;

use libfuzzer_sys::fuzz_target;

/// Bytes of a message's header and of a socket without its counters.
const SMALLEST: usize = 16 + 72;

fuzz_target!(|data: &[u8]| {
    let mut sockets = 0;
    // The answer to whatever the first message says it answers: another number would skip everything.
    let seq = data
        .get(8..12)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_ne_bytes);
    let _ = diag::parse(data, seq, |socket| {
        sockets += 1;
        for active in [false, true] {
            let (sent, received) = socket.payload(active);
            assert!(sent <= socket.info.acked && received <= socket.info.received);
        }
    });
    assert!(sockets * SMALLEST <= data.len());
});
