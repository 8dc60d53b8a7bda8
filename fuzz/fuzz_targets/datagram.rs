//! A datagram as the kernel shows it: any record decodes or is refused, any first bytes have a print, and the print is of what
//! it says it is of.
#![no_main]

#[path = "../../node-agent/src/flows/fingerprint.rs"]
#[allow(dead_code)]
mod fingerprint;
#[path = "../../node-agent/src/flows/record.rs"]
#[allow(dead_code)]
mod record;

use libfuzzer_sys::fuzz_target;
use weft_agent_common::SNAP_LEN;
use weft_wire::DatagramSort;

fuzz_target!(|data: &[u8]| {
    if let Ok(record::FlowEvent::First { length, snap, .. }) = record::decode(data) {
        assert!(snap.len() <= SNAP_LEN);
        let _ = fingerprint::print(length, &snap);
    }
    let snap = &data[..data.len().min(SNAP_LEN)];
    let length = data.len() as u32;
    let print = fingerprint::print(length, snap);
    assert_ne!(print.hash, 0);
    assert_eq!(
        print,
        fingerprint::print(length, snap),
        "the same at both ends"
    );
    let mut other = snap.to_vec();
    match (print.sort, other.as_mut_slice()) {
        // Flags and counts of answers are not hashed; the id is.
        (DatagramSort::Dns, bytes) => {
            bytes[2] ^= 0x80;
            bytes[7] ^= 1;
            let answer = fingerprint::print(length, bytes);
            // Other flags may make it look like QUIC, to which every DNS message comes close.
            assert!(answer.hash == print.hash || answer.sort == DatagramSort::Quic);
            bytes[0] ^= 1;
            assert_ne!(fingerprint::print(length, bytes).hash, print.hash);
        }
        // The type of packet is not hashed; the ids are.
        (DatagramSort::Quic, bytes) => {
            bytes[0] ^= 0x30;
            assert_eq!(fingerprint::print(length, bytes).hash, print.hash);
        }
        (DatagramSort::Other, [.., last]) => {
            *last ^= 1;
            assert_ne!(fingerprint::print(length, &other).hash, print.hash);
        }
        _ => {}
    }
});
