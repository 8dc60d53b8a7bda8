//! Real messages (`packets/`), and lookups made of them.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::sync::Arc;

use weft_dns::message::{Data, MAX_QUESTIONS, Malformed, Message};
use weft_dns::stream::{Direction, Segment, Streams};
use weft_dns::{Limits, Lookups, Packet};
use weft_wire::{Answer, Lookup, LookupProtocol, LookupTransport, Role, Timestamp};

const A: &[u8] = include_bytes!("packets/a.query");
const A_ANSWER: &[u8] = include_bytes!("packets/a.answer");
const ALIAS: &[u8] = include_bytes!("packets/alias.query");
const ALIAS_ANSWER: &[u8] = include_bytes!("packets/alias.answer");
const SEARCH: &[u8] = include_bytes!("packets/search.query");
const SEARCH_ANSWER: &[u8] = include_bytes!("packets/search.answer");
const CUT: &[u8] = include_bytes!("packets/cut.query");
const CUT_ANSWER: &[u8] = include_bytes!("packets/cut.answer");
const TCP: &[u8] = include_bytes!("packets/tcp.query");
const TCP_ANSWER: &[u8] = include_bytes!("packets/tcp.answer");

fn parse(bytes: &[u8]) -> Message {
    Message::parse(bytes).unwrap()
}

#[test]
fn what_was_asked_and_answered() {
    let query = parse(A);
    assert!(!query.response && query.flags.recursion_desired && !query.damaged);
    assert_eq!(
        (query.questions[0].name.as_str(), query.questions[0].qtype),
        ("s3.example", 1)
    );
    let answer = parse(A_ANSWER);
    assert!(answer.response && answer.flags.authoritative);
    assert_eq!(
        (answer.id, answer.code, answer.answer_total),
        (query.id, 0, 1)
    );
    assert_eq!(
        answer.answers[0].data,
        Data::Address("52.216.1.1".parse().unwrap())
    );
}

#[test]
fn compression_chains_and_edns() {
    assert_eq!(parse(ALIAS).edns.map(|edns| edns.size), Some(1232));
    let answer = parse(ALIAS_ANSWER);
    let names: Vec<_> = answer
        .answers
        .iter()
        .map(|record| record.name.as_str())
        .collect();
    assert_eq!(names, ["www.example", "alias.example", "s3.example"]);
    assert_eq!(answer.answers[0].data, Data::Alias("alias.example".into()));
    assert_eq!(
        answer.answers[2].data,
        Data::Address("2001:db8::1".parse().unwrap())
    );
    assert!(answer.edns.is_some());
}

#[test]
fn other_types_and_odd_names() {
    let srv = parse(include_bytes!("packets/srv.answer"));
    assert_eq!(srv.questions[0].name, "_http._tcp.example");
    assert_eq!(srv.answers[0].data, Data::Target("s3.example".into()));
    let ptr = parse(include_bytes!("packets/ptr.answer"));
    assert_eq!(
        (ptr.questions[0].qtype, &ptr.answers[0].data),
        (12, &Data::Target("s3.example".into()))
    );
    let escaped = parse(include_bytes!("packets/escaped.query"));
    assert_eq!(escaped.questions[0].name, "we\\.ird\\000x.example");
    assert_eq!(
        parse(include_bytes!("packets/edns1.query"))
            .edns
            .map(|edns| edns.version),
        Some(1)
    );
    assert_eq!(
        (parse(SEARCH_ANSWER).code, parse(CUT_ANSWER).flags.truncated),
        (3, true)
    );
}

#[test]
fn every_truncation_is_read_as_far_as_it_goes() {
    for length in 0..ALIAS_ANSWER.len() {
        match Message::parse(&ALIAS_ANSWER[..length]) {
            Ok(message) => {
                assert!(message.damaged && message.answers.len() <= 3, "{length}");
                assert_eq!(message.questions, parse(ALIAS).questions);
            }
            Err(Malformed::Header) => assert!(length < 12),
            Err(error) => assert_eq!((error, length < 29), (Malformed::Question, true)),
        }
    }
}

#[test]
fn hostile_messages() {
    // A name that points to itself; a question count that is not there, and one that nobody means.
    let header = |questions: u16| {
        let mut bytes = vec![0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[4..6].copy_from_slice(&questions.to_be_bytes());
        bytes
    };
    let looped = [header(1), vec![0xc0, 12, 0, 1, 0, 1]].concat();
    assert_eq!(Message::parse(&looped), Err(Malformed::Question));
    assert_eq!(Message::parse(&header(3)), Err(Malformed::Question));
    assert_eq!(
        Message::parse(&header(MAX_QUESTIONS as u16 + 1)),
        Err(Malformed::TooManyQuestions)
    );
    // Counts of records that are not there.
    let mut counts = A.to_vec();
    counts[6..8].copy_from_slice(&[0xff, 0xff]);
    assert!(parse(&counts).damaged);
}

#[test]
fn an_extended_code_is_put_together() {
    // BADVERS is 16: 1 in the OPT record, 0 in the header.
    let mut answer = A_ANSWER[..28].to_vec();
    answer[7] = 0;
    answer[11] = 1;
    answer.extend([0, 0, 41, 0x10, 0, 1, 0, 0, 0, 0, 0]);
    let message = parse(&answer);
    assert_eq!(
        (message.code, message.edns.map(|edns| edns.size)),
        (16, Some(4096))
    );
}

/// Sends packets of one process at one socket, one a millisecond.
struct World {
    lookups: Lookups<u32>,
    now: i64,
    resolver: &'static str,
}

impl World {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self {
            lookups: Lookups::new(limits),
            now: 0,
            resolver: "10.0.0.53:53",
        }
    }

    fn packet(&mut self, sent: bool, bytes: &[u8]) {
        self.now += 1_000;
        let _ = self.lookups.packet(&Packet {
            socket: 1,
            sent,
            transport: LookupTransport::Udp,
            local: "10.0.0.1:40000".parse().unwrap(),
            remote: self.resolver.parse().unwrap(),
            at: Timestamp(self.now),
            bytes,
            length: bytes.len() as u32,
            owner: &7,
            asker: 7,
            search: &[],
        });
    }

    fn rows(&mut self) -> Vec<Lookup> {
        self.lookups
            .drain()
            .into_iter()
            .map(|row| row.lookup)
            .collect()
    }
}

/// A query for a name, or its answer without addresses.
fn message(id: u16, response: bool, code: u8, names: &[&str]) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([
        if response { 0x81 } else { 1 },
        code,
        0,
        names.len() as u8,
        0,
        0,
        0,
        0,
        0,
        0,
    ]);
    for name in names {
        for label in name.split('.') {
            out.push(label.len() as u8);
            out.extend(label.bytes());
        }
        out.extend([0, 0, 1, 0, 1]);
    }
    out
}

#[test]
fn a_lookup_from_both_ends() {
    let mut client = World::new();
    client.packet(true, ALIAS);
    client.packet(false, ALIAS_ANSWER);
    let rows = client.rows();
    let row = &rows[0];
    assert_eq!(
        (rows.len(), row.role, row.name.as_str(), row.qtype),
        (1, Role::Client, "www.example", 28)
    );
    assert_eq!(
        (row.latency_us, row.code, row.tries, row.answer_total),
        (Some(1_000), Some(0), 1, 3)
    );
    assert_eq!(row.answers[1], Answer::Alias("s3.example".into()));
    assert_eq!(
        (row.request_bytes, row.response_bytes),
        (ALIAS.len() as u32, ALIAS_ANSWER.len() as u32)
    );
    let learnt = client.lookups.learnt();
    let name: Arc<str> = "www.example".into();
    let address: IpAddr = "2001:db8::1".parse().unwrap();
    assert_eq!(
        (&learnt[0].name, learnt[0].addresses[0].0),
        (&name, address)
    );

    let mut server = World::new();
    server.resolver = "10.0.0.9:40000";
    server.packet(false, ALIAS);
    server.packet(true, ALIAS_ANSWER);
    assert_eq!(server.rows()[0].role, Role::Server);
    assert!(
        server.lookups.learnt().is_empty(),
        "who answers learns nothing"
    );
}

#[test]
fn retries_duplicates_and_silence() {
    let mut world = World::new();
    for _ in 0..3 {
        world.packet(true, A);
    }
    world.packet(false, A_ANSWER);
    world.packet(false, A_ANSWER);
    let rows = world.rows();
    assert_eq!(
        (rows.len(), rows[0].tries, rows[0].latency_us),
        (1, 3, Some(3_000))
    );
    assert_eq!(
        (
            world.lookups.counters.duplicates,
            world.lookups.counters.orphans
        ),
        (1, 0)
    );
    world.packet(true, SEARCH);
    world.lookups.expire(Timestamp(world.now + 9_999_999));
    assert!(world.rows().is_empty());
    world.lookups.expire(Timestamp(world.now + 10_000_000));
    let rows = world.rows();
    assert_eq!(
        (rows.len(), rows[0].code, rows[0].latency_us),
        (1, None, None)
    );
    assert_eq!(world.lookups.pending(), 0);
}

/// The caller reads its clock before it reads packets.
#[test]
fn what_was_asked_after_the_clock_was_read_still_waits() {
    let mut world = World::new();
    world.now = 100_000_000;
    let read = Timestamp(world.now);
    world.packet(true, A);
    world.lookups.expire(read);
    world.packet(false, A_ANSWER);
    let rows = world.rows();
    assert_eq!((rows.len(), rows[0].latency_us), (1, Some(1_000)));
    assert_eq!(world.lookups.counters.orphans, 0);
    // A clock that was set back by far.
    world.packet(true, A);
    world.lookups.expire(Timestamp(world.now - 60_000_000));
    assert_eq!((world.rows().len(), world.lookups.pending()), (1, 0));
}

#[test]
fn an_answer_without_its_question_and_from_the_wrong_peer() {
    let mut world = World::new();
    world.packet(false, A_ANSWER);
    let rows = world.rows();
    assert_eq!(
        (rows[0].latency_us, rows[0].code, rows[0].request_bytes),
        (None, Some(0), 0)
    );
    world.packet(true, A);
    world.resolver = "10.6.6.6:53";
    world.packet(false, A_ANSWER);
    assert_eq!(
        (world.lookups.counters.orphans, world.lookups.pending()),
        (2, 1)
    );
    world.resolver = "10.0.0.53:53";
    world.packet(false, &message(0, true, 0, &["s3.example"]));
    assert_eq!(world.lookups.pending(), 1, "another id answers nothing");
    // A refusal without the question is one all the same.
    let mut refusal = message(u16::from_be_bytes([A[0], A[1]]), true, 5, &[]);
    refusal[5] = 0;
    world.packet(false, &refusal);
    assert_eq!(world.rows().last().unwrap().code, Some(5));
}

#[test]
fn several_questions_are_several_rows() {
    let mut world = World::new();
    world.packet(true, &message(9, false, 0, &["a.example", "b.example"]));
    world.packet(false, &message(9, true, 0, &["a.example", "b.example"]));
    let rows = world.rows();
    let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["a.example", "b.example"]);
    assert!(
        rows.iter()
            .all(|row| row.latency_us == Some(1_000) && row.answer_total == 0)
    );
}

#[test]
fn the_search_path_is_named() {
    let mut world = World::new();
    world.packet(true, SEARCH);
    world.packet(false, SEARCH_ANSWER);
    assert!(
        world.rows().is_empty(),
        "a failure waits for what is asked next"
    );
    world.packet(true, A);
    let rows = world.rows();
    assert_eq!(rows[0].search_of.as_deref(), Some("s3.example"));
    world.packet(true, SEARCH);
    world.packet(false, SEARCH_ANSWER);
    world.lookups.expire(Timestamp(world.now + 1_000_000));
    assert_eq!(world.rows()[0].search_of, None);
}

#[test]
fn multicast_dns() {
    let mut world = World::new();
    world.resolver = "224.0.0.251:5353";
    world.packet(true, &message(0, false, 0, &["printer.local"]));
    world.packet(false, &message(0, false, 0, &["printer.local"]));
    world.packet(true, &message(0, false, 0, &["nas.local"]));
    // Another host answers the group, without a question.
    let mut answer = vec![0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0, 7];
    answer.extend(b"printer\x05local\0\0\x01\x80\x01\0\0\0\x78\0\x04\x0a\0\0\x2a");
    world.resolver = "10.0.0.42:5353";
    world.packet(false, &answer);
    world.packet(false, &answer);
    let rows = world.rows();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].protocol, rows[0].name.as_str()),
        (LookupProtocol::Mdns, "printer.local")
    );
    assert_eq!(
        rows[0].answers,
        [Answer::Address("10.0.0.42".parse().unwrap(), 120)]
    );
    assert_eq!(
        (world.lookups.counters.overheard, world.lookups.pending()),
        (2, 1)
    );
}

#[test]
fn questions_that_wait_are_bounded() {
    let mut world = World::with(Limits {
        pending: 10,
        ..Limits::default()
    });
    for id in 0..25 {
        world.packet(true, &message(id, false, 0, &["a.example"]));
    }
    assert_eq!(
        (world.lookups.pending(), world.lookups.counters.dropped),
        (10, 15)
    );
    for _ in 0..100 {
        let name = format!("n{}.example", world.now);
        world.packet(true, &message(99, false, 0, &[&name]));
    }
    assert!(world.lookups.pending() <= 10);
    assert_eq!(world.lookups.close().len(), 10);
}

#[test]
fn what_is_no_question_is_no_row() {
    let mut world = World::new();
    let mut notify = A.to_vec();
    notify[2] = 4 << 3;
    world.packet(true, &notify);
    world.packet(true, &[0; 5]);
    world.packet(true, &message(1, false, 0, &[]));
    let counters = world.lookups.counters;
    assert_eq!(
        (counters.other, counters.malformed, counters.messages),
        (2, 1, 2)
    );
    assert_eq!(world.lookups.pending(), 0);
}

#[test]
fn by_tcp() {
    let mut streams = Streams::default();
    let mut world = World::new();
    for (sent, bytes, step) in [(true, TCP, 1), (false, TCP_ANSWER, 1000)] {
        let direction = Direction { socket: 1, sent };
        for (at, part) in bytes.chunks(step).enumerate() {
            let segment = Segment {
                sequence: (at * step) as u32,
                syn: false,
                bytes: part,
                length: part.len() as u32,
            };
            for framed in streams.segment(direction, &segment) {
                world.packet(sent, &framed.bytes);
            }
        }
    }
    let rows = world.rows();
    assert_eq!(
        (
            rows[0].name.as_str(),
            rows[0].answer_total,
            rows[0].truncated
        ),
        ("big.example", 1, false)
    );
    assert_eq!(rows[0].response_bytes as usize, TCP_ANSWER.len() - 2);
    let mut udp = World::new();
    udp.packet(true, CUT);
    udp.packet(false, CUT_ANSWER);
    assert!(udp.rows()[0].truncated);
}

#[test]
fn owners_are_renewed_until_a_row_is_drained() {
    let mut world = World::new();
    world.packet(true, &message(1, false, 0, &["answered.example"]));
    world.packet(false, &message(1, true, 0, &["answered.example"]));
    world.packet(true, &message(2, false, 0, &["failed.example"]));
    world.packet(false, &message(2, true, 3, &["failed.example"]));
    world.packet(true, &message(3, false, 0, &["waiting.example"]));
    let renewed = world.lookups.owners_mut().map(|owner| *owner = 8).count();
    assert_eq!(renewed, 3, "what waits, what is held, what is ready");
    let mut rows = world.lookups.drain();
    rows.extend(world.lookups.close());
    let owners: Vec<u32> = rows.iter().map(|row| row.owner).collect();
    assert_eq!(owners, [8, 8, 8]);
    assert_eq!(world.lookups.owners_mut().count(), 0);
}
