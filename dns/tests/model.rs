//! Against simpler models: a byte string that is cut, shuffled and repeated; a list of all questions ever asked.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use weft_dns::stream::{Direction, Segment, Streams};
use weft_dns::{Limits, Lookups, Message, Packet};
use weft_wire::{LookupTransport, Timestamp};

const TIMEOUT_US: i64 = 1_000_000;

/// What a run made of questions and answers, in any order: (name, answered, tries, latency).
type Rows = Vec<(String, bool, u8, Option<u32>)>;

#[derive(Clone, Debug)]
struct Step {
    socket: u64,
    id: u16,
    name: usize,
    response: bool,
    pause: i64,
}

fn step() -> impl Strategy<Value = Step> {
    (
        0_u64..2,
        0_u16..2,
        0_usize..2,
        any::<bool>(),
        0_i64..400_000,
    )
        .prop_map(|(socket, id, name, response, pause)| Step {
            socket,
            id,
            name,
            response,
            pause,
        })
}

const NAMES: [&str; 2] = ["a.example", "b.example"];

fn bytes(step: &Step) -> Vec<u8> {
    let mut out = step.id.to_be_bytes().to_vec();
    out.extend([
        if step.response { 0x81 } else { 1 },
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
    ]);
    for label in NAMES[step.name].split('.') {
        out.push(label.len() as u8);
        out.extend(label.bytes());
    }
    out.extend([0, 0, 1, 0, 1]);
    out
}

fn real(steps: &[Step]) -> (Rows, u64) {
    let mut lookups: Lookups<()> = Lookups::new(Limits {
        pending: 1_000,
        timeout_us: TIMEOUT_US,
    });
    let (mut now, mut rows) = (0, Vec::new());
    for step in steps {
        now += step.pause;
        lookups.expire(Timestamp(now));
        let bytes = bytes(step);
        let packet = Packet {
            socket: step.socket,
            sent: !step.response,
            transport: LookupTransport::Udp,
            local: "10.0.0.1:1000".parse().unwrap(),
            remote: "10.0.0.2:53".parse().unwrap(),
            at: Timestamp(now),
            bytes: &bytes,
            length: bytes.len() as u32,
            owner: &(),
            asker: 0,
            search: &[],
        };
        lookups.packet(&packet).unwrap();
        rows.extend(lookups.drain());
    }
    rows.extend(lookups.close());
    let mut rows: Rows = rows
        .into_iter()
        .map(|row| {
            (
                row.lookup.name.clone(),
                row.lookup.answered(),
                row.lookup.tries,
                row.lookup.latency_us,
            )
        })
        .collect();
    rows.sort();
    (rows, lookups.counters.duplicates)
}

/// Every question in a list that is searched from its beginning.
fn model(steps: &[Step]) -> (Rows, u64) {
    struct Asked {
        key: (u64, u16, usize),
        at: i64,
        tries: u8,
        again: bool,
        gone: bool,
    }
    let (mut now, mut rows, mut asked, mut duplicates): (i64, Rows, Vec<Asked>, u64) =
        (0, Vec::new(), Vec::new(), 0);
    for step in steps {
        now += step.pause;
        for it in asked
            .iter_mut()
            .filter(|it| !it.gone && it.at + TIMEOUT_US <= now)
        {
            it.gone = true;
            if !it.again {
                rows.push((NAMES[it.key.2].into(), false, it.tries, None));
            }
        }
        let key = (step.socket, step.id, step.name);
        let known = asked
            .iter_mut()
            .filter(|it| !it.gone && it.key == key)
            .min_by_key(|it| it.again);
        match (step.response, known) {
            (false, Some(it)) if !it.again => it.tries += 1,
            (false, _) => asked.push(Asked {
                key,
                at: now,
                tries: 1,
                again: false,
                gone: false,
            }),
            (true, Some(it)) if it.again => duplicates += 1,
            (true, Some(it)) => {
                rows.push((
                    NAMES[step.name].into(),
                    true,
                    it.tries,
                    Some((now - it.at) as u32),
                ));
                let (at, tries) = (now, it.tries);
                it.gone = true;
                if tries > 1 {
                    asked.push(Asked {
                        key,
                        at,
                        tries,
                        again: true,
                        gone: false,
                    });
                }
            }
            (true, None) => rows.push((NAMES[step.name].into(), true, 1, None)),
        }
    }
    rows.extend(
        asked
            .iter()
            .filter(|it| !it.gone && !it.again)
            .map(|it| (NAMES[it.key.2].into(), false, it.tries, None)),
    );
    rows.sort();
    (rows, duplicates)
}

proptest! {
    #[test]
    fn lookups_are_what_a_list_of_all_questions_says(steps in proptest::collection::vec(step(), 0..60)) {
        prop_assert_eq!(real(&steps), model(&steps));
    }

    /// Cut anywhere, in any order within the limits, with repetitions and overlaps: the same messages.
    #[test]
    fn segments_in_any_order_give_the_messages(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..8),
        start in any::<u32>(),
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..12),
        order in any::<u64>(),
        size in 40_usize..400,
    ) {
        let mut all = Vec::new();
        for message in &messages {
            all.extend((message.len() as u16).to_be_bytes());
            all.extend(message);
        }
        // A partition that covers everything, and pieces that overlap it.
        let mut pieces: Vec<(usize, usize)> = (0..all.len()).step_by(size).map(|at| (at, (at + size).min(all.len()))).collect();
        pieces.extend(cuts.iter().map(|(one, other)| {
            let (one, other) = (one.index(all.len()), other.index(all.len()));
            (one.min(other), one.max(other) + 1)
        }));
        let mut seed = order;
        for last in (1..pieces.len()).rev() {
            seed = weft_wire::mix64(seed.wrapping_add(1));
            pieces.swap(last, (seed % (last as u64 + 1)) as usize);
        }
        let mut streams = Streams::default();
        let direction = Direction { socket: 3, sent: false };
        let syn = Segment { sequence: start.wrapping_sub(1), syn: true, bytes: &[], length: 0 };
        let mut got = streams.segment(direction, &syn);
        for (from, to) in pieces {
            let segment = Segment {
                sequence: start.wrapping_add(from as u32),
                syn: false,
                bytes: &all[from..to],
                length: (to - from) as u32,
            };
            got.extend(streams.segment(direction, &segment));
        }
        let got: Vec<Vec<u8>> = got.into_iter().map(|framed| framed.bytes).collect();
        let expected: Vec<Vec<u8>> = messages.into_iter().filter(|message| !message.is_empty()).collect();
        prop_assert_eq!(got, expected);
        prop_assert_eq!((streams.bytes(), streams.given_up), (0, 0));
    }

    /// Any segments at all: limits hold, the sum of bytes is right, and nothing panics.
    #[test]
    fn any_segments(
        segments in proptest::collection::vec((0_u64..4, any::<bool>(), 0_u32..600, any::<bool>(), 0_usize..90, 0_u32..40), 0..200),
    ) {
        let mut streams = Streams::new(5, 600);
        for (socket, sent, sequence, syn, captured, missing) in segments {
            let direction = Direction { socket, sent };
            let bytes = vec![u8::from(captured % 7 == 0); captured];
            streams.segment(direction, &Segment { sequence, syn: syn && missing > 30, bytes: &bytes, length: captured as u32 + missing / 8 });
            prop_assert!(streams.len() <= 5 && streams.bytes() <= 600);
        }
        for socket in 0..4 {
            for sent in [false, true] {
                streams.close(Direction { socket, sent });
            }
        }
        prop_assert_eq!((streams.len(), streams.bytes()), (0, 0));
    }

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = Message::parse(&bytes) {
            for question in &message.questions {
                prop_assert!(question.name.bytes().all(|b| (0x21..=0x7e).contains(&b)));
            }
        }
    }
}
