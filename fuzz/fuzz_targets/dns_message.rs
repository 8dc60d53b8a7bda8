//! DNS messages: any bytes are read or refused, what is read is safe to print, and pairing keeps its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_dns::{Limits, Lookups, Message, Packet, name};
use weft_wire::{LookupTransport, MAX_ANSWERS, MAX_NAME_BYTES, Timestamp};

const LIMITS: Limits = Limits {
    pending: 8,
    timeout_us: 50,
};

fn printable(text: &str) {
    assert!(text.bytes().all(|byte| (0x21..=0x7e).contains(&byte)));
    assert!(text.len() <= MAX_NAME_BYTES);
    let labels: Vec<&str> = name::suffixes(text).collect();
    assert!(labels.len() <= 128);
}

// Messages, each behind a byte that says way, socket and pause, and one that says its length.
fuzz_target!(|data: &[u8]| {
    let mut lookups: Lookups<u8> = Lookups::new(LIMITS);
    let (mut rest, mut now) = (data, 0);
    while let [how, length, bytes @ ..] = rest {
        let (bytes, after) = bytes.split_at(bytes.len().min(usize::from(*length) * 2));
        rest = after;
        now += i64::from(how >> 4);
        if let Ok(message) = Message::parse(bytes) {
            message.questions.iter().for_each(|it| printable(&it.name));
            message.answers.iter().for_each(|it| printable(&it.name));
        }
        let port = if how & 4 == 0 { 53 } else { 5353 };
        let packet = Packet {
            socket: u64::from(how >> 1 & 1),
            sent: how & 1 == 0,
            transport: LookupTransport::Udp,
            local: ([10, 0, 0, 1], 1000).into(),
            remote: ([10, 0, 0, 2], port).into(),
            at: Timestamp(now),
            bytes,
            length: bytes.len() as u32,
            owner: how,
            asker: 1,
            search: &[],
        };
        let _ = lookups.packet(&packet);
        lookups.expire(Timestamp(now));
        assert!(lookups.pending() <= LIMITS.pending);
    }
    for finished in lookups.close() {
        printable(&finished.lookup.name);
        assert!(finished.lookup.answers.len() <= MAX_ANSWERS);
    }
    assert_eq!(lookups.pending(), 0);
});
