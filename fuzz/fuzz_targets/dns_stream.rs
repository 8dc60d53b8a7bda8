//! TCP segments of DNS: any segments keep the limits; those of one byte string, however cut, shuffled and repeated, give
//! what the string gives at once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_dns::stream::{Direction, Framed, Segment, Streams};

const HERE: Direction = Direction {
    socket: 1,
    sent: true,
};

fn feed(streams: &mut Streams, all: &[u8], from: usize, to: usize) -> Vec<Framed> {
    let to = to.min(all.len());
    let from = from.min(to);
    streams.segment(
        HERE,
        &Segment {
            sequence: (u32::MAX - 20).wrapping_add(from as u32),
            syn: false,
            bytes: &all[from..to],
            length: (to - from) as u32,
        },
    )
}

fn any_segments(data: &[u8]) {
    let mut streams = Streams::new(3, 2_000);
    let mut rest = data;
    while let [how, sequence, missing, length, bytes @ ..] = rest {
        let (bytes, after) = bytes.split_at(bytes.len().min(usize::from(*length)));
        rest = after;
        let direction = Direction {
            socket: u64::from(how & 3),
            sent: how & 4 != 0,
        };
        let segment = Segment {
            sequence: u32::from(*sequence) * 7,
            syn: how & 0xf8 == 0xf8,
            bytes,
            length: bytes.len() as u32 + u32::from(*missing),
        };
        for framed in streams.segment(direction, &segment) {
            assert!(framed.bytes.len() as u32 <= framed.length && framed.length <= 65_535);
        }
        assert!(streams.len() <= 3 && streams.bytes() <= 2_000);
        if how & 0x38 == 0x38 {
            streams.give_up(direction);
        }
    }
}

fn one_string(cuts: &[u8], all: &[u8]) {
    let mut whole = Streams::default();
    let expected = feed(&mut whole, all, 0, all.len());
    let mut streams = Streams::default();
    // The beginning first: it says where the stream begins.
    let mut got = feed(&mut streams, all, 0, 1);
    for pair in cuts.chunks_exact(2) {
        let from = usize::from(pair[0]) * 2;
        got.extend(feed(&mut streams, all, from, from + usize::from(pair[1])));
    }
    got.extend(feed(&mut streams, all, 0, all.len()));
    if streams.given_up == 0 {
        assert_eq!(got, expected);
    }
}

fuzz_target!(|data: &[u8]| {
    match data {
        [0, cuts, rest @ ..] => {
            let (cuts, all) = rest.split_at(rest.len().min(usize::from(*cuts)));
            one_string(cuts, all);
        }
        [_, rest @ ..] => any_segments(rest),
        [] => {}
    }
});
