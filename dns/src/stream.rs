//! Messages in TCP segments: each is preceded by its length in two bytes (RFC 1035, 4.2.2), and segments come late, twice, cut,
//! or not at all.
//!
//! Contract. Input: [`Streams::segment`] for every segment seen of one direction of a connection, [`Streams::close`] at its
//! end. Output: the messages that a segment completed, in order. What cannot be followed any further (a gap that is not
//! filled, a length that cannot be known) is given up for the rest of that direction, and counted.

use std::collections::BTreeMap;

/// Most bytes that wait in one direction for a gap to be filled.
pub const MAX_EARLY_BYTES: usize = 65_536;
/// Most segments that do.
pub const MAX_EARLY_SEGMENTS: usize = 64;
/// Most directions followed at once; beyond it the one that was quiet longest is given up.
pub const MAX_STREAMS: usize = 4_096;
/// Most bytes held over all directions; likewise.
pub const MAX_TOTAL_BYTES: usize = 8 << 20;

/// One direction of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Direction {
    /// Socket cookie.
    pub socket: u64,
    /// Sent by this end, else received.
    pub sent: bool,
}

/// A segment as it was captured.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Sequence number of the first byte of payload (of the SYN, when it is one).
    pub sequence: u32,
    /// Opens the direction: payload begins behind it.
    pub syn: bool,
    /// Payload, as far as it was captured.
    pub bytes: &'a [u8],
    /// Bytes of payload that there were.
    pub length: u32,
}

/// A message taken from a direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Framed {
    /// Its first bytes; all of them unless the capture cut a segment.
    pub bytes: Vec<u8>,
    /// Its length.
    pub length: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Streams {
    streams: BTreeMap<Direction, Stream>,
    by_use: BTreeMap<u64, Direction>,
    uses: u64,
    bytes: usize,
    max_streams: usize,
    max_bytes: usize,
    /// Directions given up: see the module.
    pub given_up: u64,
}

#[derive(Debug)]
struct Stream {
    used: u64,
    /// Next sequence number to come; `None` before the first segment, and the message in progress.
    state: State,
    early: BTreeMap<u32, Early>,
    early_bytes: usize,
}

#[derive(Debug)]
enum State {
    Following { next: u32, frame: Frame },
    GivenUp,
}

#[derive(Debug)]
struct Early {
    bytes: Vec<u8>,
    length: u32,
}

/// The message in progress.
#[derive(Debug, Default)]
struct Frame {
    head: Vec<u8>,
    /// Bytes of the body that went by, captured or not.
    passed: usize,
    body: Vec<u8>,
    /// A part of the body is missing: what follows it is of no use.
    cut: bool,
}

/// The length of a message went by unseen.
struct LostLength;

impl Default for Streams {
    fn default() -> Self {
        Self::new(MAX_STREAMS, MAX_TOTAL_BYTES)
    }
}

impl Streams {
    /// With limits of one's own.
    pub fn new(max_streams: usize, max_bytes: usize) -> Self {
        Self {
            streams: BTreeMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
            bytes: 0,
            max_streams,
            max_bytes,
            given_up: 0,
        }
    }

    /// Takes a segment and gives the messages that it completes. Of a direction whose SYN was not seen, the first
    /// segment is taken to begin with a message.
    pub fn segment(&mut self, direction: Direction, segment: &Segment<'_>) -> Vec<Framed> {
        let start = segment.sequence.wrapping_add(u32::from(segment.syn));
        if segment.syn {
            self.close(direction);
        }
        if segment.length == 0 && !segment.syn {
            return Vec::new();
        }
        self.uses += 1;
        let stream = self
            .streams
            .entry(direction)
            .or_insert_with(|| Stream::new(start));
        self.by_use.remove(&stream.used);
        stream.used = self.uses;
        self.by_use.insert(self.uses, direction);
        let before = stream.bytes();
        let mut messages = Vec::new();
        let was_followed = stream.followed();
        stream.take(start, segment, &mut messages);
        if was_followed && !stream.followed() {
            self.given_up += 1;
        }
        self.bytes = self.bytes + stream.bytes() - before;
        self.make_room();
        messages
    }

    /// Gives a direction up: what came from it was no message.
    pub fn give_up(&mut self, direction: Direction) {
        if let Some(stream) = self.streams.get_mut(&direction).filter(|s| s.followed()) {
            self.bytes -= stream.bytes();
            stream.give_up();
            self.given_up += 1;
        }
    }

    /// Forgets a direction.
    pub fn close(&mut self, direction: Direction) {
        if let Some(stream) = self.streams.remove(&direction) {
            self.by_use.remove(&stream.used);
            self.bytes -= stream.bytes();
        }
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Directions known now.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    fn make_room(&mut self) {
        while self.streams.len() > self.max_streams || self.bytes > self.max_bytes {
            let Some((_, direction)) = self.by_use.pop_first() else {
                return;
            };
            if let Some(stream) = self.streams.remove(&direction) {
                self.bytes -= stream.bytes();
                // One that holds nothing and is between two messages may simply have ended.
                self.given_up += u64::from(stream.followed() && stream.bytes() > 0);
            }
        }
    }
}

impl Stream {
    fn new(next: u32) -> Self {
        Self {
            used: 0,
            state: State::Following {
                next,
                frame: Frame::default(),
            },
            early: BTreeMap::new(),
            early_bytes: 0,
        }
    }

    fn followed(&self) -> bool {
        matches!(self.state, State::Following { .. })
    }

    fn bytes(&self) -> usize {
        match &self.state {
            State::Following { frame, .. } => frame.body.len() + self.early_bytes,
            State::GivenUp => 0,
        }
    }

    fn give_up(&mut self) {
        self.state = State::GivenUp;
        self.early.clear();
        self.early_bytes = 0;
    }

    fn take(&mut self, start: u32, segment: &Segment<'_>, out: &mut Vec<Framed>) {
        let State::Following { next, frame } = &mut self.state else {
            return;
        };
        let ahead = start.wrapping_sub(*next) as i32;
        let result = if ahead > 0 {
            self.keep(start, segment)
        } else {
            let length = segment.length.max(segment.bytes.len() as u32);
            advance(next, frame, start, segment.bytes, length, out)
                .and_then(|()| self.catch_up(out))
        };
        if result.is_err() {
            self.give_up();
        }
    }

    /// Keeps what came before its time.
    fn keep(&mut self, start: u32, segment: &Segment<'_>) -> Result<(), LostLength> {
        if self.early.len() >= MAX_EARLY_SEGMENTS
            || self.early_bytes + segment.bytes.len() > MAX_EARLY_BYTES
        {
            return Err(LostLength);
        }
        let early = Early {
            bytes: segment.bytes.to_vec(),
            length: segment.length.max(segment.bytes.len() as u32),
        };
        // Of two that begin alike the longer says more.
        if self
            .early
            .get(&start)
            .is_none_or(|known| known.bytes.len() < early.bytes.len())
        {
            self.early_bytes += early.bytes.len();
            if let Some(known) = self.early.insert(start, early) {
                self.early_bytes -= known.bytes.len();
            }
        }
        Ok(())
    }

    /// Takes what had come early and is due now.
    fn catch_up(&mut self, out: &mut Vec<Framed>) -> Result<(), LostLength> {
        let State::Following { next, frame } = &mut self.state else {
            return Ok(());
        };
        loop {
            // Sequence numbers wrap, so the map's order is not theirs; there are few.
            let due = self
                .early
                .keys()
                .copied()
                .find(|start| start.wrapping_sub(*next) as i32 <= 0);
            let Some((start, early)) = due.and_then(|start| self.early.remove_entry(&start)) else {
                return Ok(());
            };
            self.early_bytes -= early.bytes.len();
            advance(next, frame, start, &early.bytes, early.length, out)?;
        }
    }
}

/// Takes a segment that begins at or before `next`.
fn advance(
    next: &mut u32,
    frame: &mut Frame,
    start: u32,
    bytes: &[u8],
    length: u32,
    out: &mut Vec<Framed>,
) -> Result<(), LostLength> {
    let known = next.wrapping_sub(start);
    if known >= length {
        return Ok(());
    }
    let fresh = bytes.get(known as usize..).unwrap_or_default();
    *next = start.wrapping_add(length);
    frame.take(fresh, out);
    frame.skip((length - known) as usize - fresh.len(), out)
}

impl Frame {
    /// Length of the message, once it is known.
    fn wanted(&self) -> Option<usize> {
        let head: [u8; 2] = self.head.as_slice().try_into().ok()?;
        Some(usize::from(u16::from_be_bytes(head)))
    }

    fn take(&mut self, mut bytes: &[u8], out: &mut Vec<Framed>) {
        while !bytes.is_empty() {
            let Some(wanted) = self.wanted() else {
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
                self.finish(out);
                continue;
            };
            let (here, rest) = bytes.split_at(bytes.len().min(wanted - self.passed));
            if !self.cut {
                self.body.extend_from_slice(here);
            }
            self.passed += here.len();
            bytes = rest;
            self.finish(out);
        }
    }

    /// Bytes that went by without being captured.
    fn skip(&mut self, length: usize, out: &mut Vec<Framed>) -> Result<(), LostLength> {
        if length == 0 {
            return Ok(());
        }
        let wanted = self.wanted().ok_or(LostLength)?;
        let left = wanted - self.passed;
        self.passed += length.min(left);
        self.cut = true;
        self.finish(out);
        if length > left {
            Err(LostLength)
        } else {
            Ok(())
        }
    }

    fn finish(&mut self, out: &mut Vec<Framed>) {
        if let Some(wanted) = self.wanted().filter(|wanted| self.passed == *wanted) {
            let done = std::mem::take(self);
            if wanted > 0 {
                out.push(Framed {
                    bytes: done.body,
                    length: wanted as u32,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Direction = Direction {
        socket: 1,
        sent: true,
    };

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            out.extend((message.len() as u16).to_be_bytes());
            out.extend_from_slice(message);
        }
        out
    }

    fn segment(sequence: u32, bytes: &[u8]) -> Segment<'_> {
        Segment {
            sequence,
            syn: false,
            bytes,
            length: bytes.len() as u32,
        }
    }

    fn texts(messages: Vec<Framed>) -> Vec<Vec<u8>> {
        messages.into_iter().map(|message| message.bytes).collect()
    }

    #[test]
    fn messages_in_one_segment_and_one_message_in_many() {
        let mut streams = Streams::default();
        let bytes = framed(&[b"one", b"", b"three"]);
        assert_eq!(
            texts(streams.segment(HERE, &segment(u32::MAX, &bytes))),
            [b"one".to_vec(), b"three".to_vec()]
        );
        let mut at = u32::MAX.wrapping_add(bytes.len() as u32);
        let bytes = framed(&[b"abcdef"]);
        for byte in &bytes[..7] {
            assert!(streams.segment(HERE, &segment(at, &[*byte])).is_empty());
            at = at.wrapping_add(1);
        }
        assert_eq!(
            texts(streams.segment(HERE, &segment(at, b"f"))),
            [b"abcdef"]
        );
        assert_eq!((streams.bytes(), streams.given_up), (0, 0));
    }

    #[test]
    fn a_syn_says_where_it_begins() {
        let mut streams = Streams::default();
        let bytes = framed(&[b"first", b"second"]);
        let syn = Segment {
            sequence: 99,
            syn: true,
            bytes: &[],
            length: 0,
        };
        streams.segment(HERE, &syn);
        assert!(streams.segment(HERE, &segment(107, &bytes[7..])).is_empty());
        let both = texts(streams.segment(HERE, &segment(100, &bytes[..7])));
        assert_eq!(both, [b"first".to_vec(), b"second".to_vec()]);
    }

    #[test]
    fn a_segment_cut_by_the_capture_shortens_a_message_and_no_more() {
        let mut streams = Streams::default();
        let bytes = framed(&[&[7; 1000], b"next"]);
        let cut = Segment {
            bytes: &bytes[..300],
            length: 1002,
            ..segment(5, &[])
        };
        let got = streams.segment(HERE, &cut);
        assert_eq!((got[0].bytes.len(), got[0].length), (298, 1000));
        let rest = streams.segment(HERE, &segment(5 + 1002, &bytes[1002..]));
        assert_eq!(texts(rest), [b"next"]);
        // A cut that hides a length cannot be survived.
        let cut = Segment {
            bytes: &bytes[..300],
            length: 1008,
            ..segment(5 + 1008, &[])
        };
        assert_eq!(streams.segment(HERE, &cut).len(), 1);
        assert_eq!(streams.given_up, 1);
        assert!(streams.segment(HERE, &segment(5 + 2016, &bytes)).is_empty());
        assert_eq!(streams.bytes(), 0);
    }

    #[test]
    fn what_waits_is_bounded_in_one_direction_and_in_all() {
        let mut streams = Streams::new(8, 100_000);
        streams.segment(HERE, &segment(0, &[0]));
        for at in 0..=MAX_EARLY_SEGMENTS as u32 {
            streams.segment(HERE, &segment(10 + 2 * at, b"x"));
        }
        assert_eq!((streams.given_up, streams.bytes()), (1, 0));
        for socket in 0..20 {
            let direction = Direction {
                socket,
                sent: false,
            };
            streams.segment(direction, &segment(0, &[0]));
            streams.segment(direction, &segment(10, &[1; 30_000]));
            assert!(streams.bytes() <= 100_000 && streams.len() <= 8);
        }
        assert_eq!(streams.given_up, 1 + 17);
    }
}
