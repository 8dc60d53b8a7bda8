//! A kernel record: any bytes decode or are refused, and what decodes keeps its promises.
#![no_main]

#[path = "../../node-agent/src/decode.rs"]
#[allow(dead_code)]
mod decode;

use std::mem::{offset_of, size_of};

use libfuzzer_sys::fuzz_target;
use weft_agent_common::{Record, role};
use weft_wire::Fingerprint;

/// The same record as the other end of a connection without NAT would have it.
fn mirrored(record: &[u8]) -> Vec<u8> {
    let mut mirrored = record.to_vec();
    for (here, there, bytes) in [
        (
            offset_of!(Record, isn_local),
            offset_of!(Record, isn_remote),
            4,
        ),
        (
            offset_of!(Record, local_port),
            offset_of!(Record, remote_port),
            2,
        ),
    ] {
        mirrored[here..here + bytes].copy_from_slice(&record[there..there + bytes]);
        mirrored[there..there + bytes].copy_from_slice(&record[here..here + bytes]);
    }
    mirrored
}

fuzz_target!(|data: &[u8]| {
    let Ok(event) = decode::decode(data) else {
        return;
    };
    assert_eq!(data.len(), size_of::<Record>());
    for end in [event.local, event.remote] {
        assert_eq!(end.ip(), end.ip().to_canonical());
    }
    if !event.state.established() {
        assert_eq!(event.fingerprint, Fingerprint::Unknown);
        assert_eq!((event.bytes_sent, event.bytes_received), (0, 0));
    }
    if data[offset_of!(Record, role)] == role::SIMULTANEOUS {
        let other = decode::decode(&mirrored(data)).expect("as valid as its mirror image");
        assert_eq!(event.fingerprint, other.fingerprint);
        let told_apart =
            event.local.port() != event.remote.port() || isn(data, true) != isn(data, false);
        assert_eq!(event.role != other.role, told_apart);
    }
});

fn isn(record: &[u8], local: bool) -> &[u8] {
    let at = if local {
        offset_of!(Record, isn_local)
    } else {
        offset_of!(Record, isn_remote)
    };
    &record[at..at + 4]
}
