//! Frames: how messages follow one another in a stream.
//!
//! A frame is a `u32` length (little-endian, of what follows it), a `u8` kind and the payload. Every kind has
//! a hard limit. [`Decoder`] takes bytes as they come and gives frames; it does no IO and holds at most
//! [`Decoder::PUSH_LIMIT`] bytes more than the largest frame.

use thiserror::Error;

use crate::control::CloseCode;

/// Bytes before the payload: length and kind.
pub const HEADER_BYTES: usize = 5;

/// Largest payload of [`Kind::AgentHello`]: some names and a site.
pub const MAX_AGENT_HELLO: usize = 16 << 10;
/// Largest payload of [`Kind::AgentWelcome`].
pub const MAX_AGENT_WELCOME: usize = 4 << 10;
/// Largest payload of [`Kind::AgentStatus`]: counters only.
pub const MAX_AGENT_STATUS: usize = 4 << 10;
/// Largest payload of [`Kind::HalfBatch`]: sequence number and a batch of [`crate::batch::MAX_ROWS`] rows that
/// do not compress.
pub const MAX_HALF_BATCH: usize = 8 << 20;
/// Largest payload of [`Kind::LookupBatch`]: sequence number and a batch of lookups.
pub const MAX_LOOKUP_BATCH: usize = 8 << 20;
/// Largest payload of [`Kind::ClusterObjects`]: one object with all its lists full is 2 MB.
pub const MAX_CLUSTER_OBJECTS: usize = 4 << 20;
/// Largest payload of [`Kind::Ack`].
pub const MAX_ACK: usize = 64;
/// Largest payload of [`Kind::PeerHello`].
pub const MAX_PEER_HELLO: usize = 4 << 10;
/// Largest payload of [`Kind::PeerMessages`].
pub const MAX_PEER_MESSAGES: usize = 4 << 20;
/// Largest payload of [`Kind::Request`]: a long SQL statement fits.
pub const MAX_REQUEST: usize = 256 << 10;
/// Largest payload of [`Kind::Response`]: a piece of an answer; long answers are many pieces.
pub const MAX_RESPONSE: usize = 8 << 20;
/// Largest payload of [`Kind::IdentityRequest`] and [`Kind::IdentityAnswer`]: [`crate::identity::MAX_SHARED`] revocations.
pub const MAX_IDENTITY: usize = 1 << 20;
/// Largest payload of [`Kind::FederationRequest`].
pub const MAX_FEDERATION_REQUEST: usize = 4 << 10;
/// Largest payload of [`Kind::FederationAnswer`]: some thousand federators.
pub const MAX_FEDERATION_ANSWER: usize = 4 << 20;
/// Largest payload of [`Kind::Member`].
pub const MAX_MEMBER: usize = 16 << 10;
/// Largest payload of [`Kind::Homes`].
pub const MAX_HOMES_BYTES: usize = 16 << 10;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// [`crate::control::AgentHello`], after the version.
    AgentHello = 1,
    /// [`crate::control::AgentWelcome`], after the version.
    AgentWelcome = 2,
    /// [`crate::control::AgentStatus`].
    AgentStatus = 3,
    /// Sequence number (`u64`, little-endian), then an encoded batch ([`crate::batch`]).
    HalfBatch = 4,
    /// [`crate::control::Ack`].
    Ack = 5,
    /// [`crate::control::PeerHello`], after the version.
    PeerHello = 6,
    /// Sequence number (`u64`, little-endian), then a [`crate::control::PeerMessage`].
    PeerMessages = 7,
    /// [`crate::query::Request`], after the version.
    Request = 8,
    /// [`crate::query::Response`].
    Response = 9,
    /// Sequence number (`u64`, little-endian; the same numbers as half batches have), then encoded lookups.
    LookupBatch = 10,
    /// Number (`u64`, little-endian, from 1 in each session), then a [`crate::cluster::ClusterBatch`].
    ClusterObjects = 11,
    /// [`crate::identity::IdentityRequest`], after the version.
    IdentityRequest = 12,
    /// [`crate::identity::IdentityAnswer`].
    IdentityAnswer = 13,
    /// [`crate::federation::FederationRequest`], after the version.
    FederationRequest = 14,
    /// [`crate::federation::FederationAnswer`].
    FederationAnswer = 15,
    /// A message of the membership (`weft_mesh::membership`) that did not fit into a datagram.
    Member = 16,
    /// [`crate::federation::Homes`].
    Homes = 17,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 17] = [
        Self::AgentHello,
        Self::AgentWelcome,
        Self::AgentStatus,
        Self::HalfBatch,
        Self::Ack,
        Self::PeerHello,
        Self::PeerMessages,
        Self::Request,
        Self::Response,
        Self::LookupBatch,
        Self::ClusterObjects,
        Self::IdentityRequest,
        Self::IdentityAnswer,
        Self::FederationRequest,
        Self::FederationAnswer,
        Self::Member,
        Self::Homes,
    ];

    /// Largest payload in bytes.
    pub const fn limit(self) -> usize {
        match self {
            Self::AgentHello => MAX_AGENT_HELLO,
            Self::AgentWelcome => MAX_AGENT_WELCOME,
            Self::AgentStatus => MAX_AGENT_STATUS,
            Self::HalfBatch => MAX_HALF_BATCH,
            Self::Ack => MAX_ACK,
            Self::PeerHello => MAX_PEER_HELLO,
            Self::PeerMessages => MAX_PEER_MESSAGES,
            Self::Request => MAX_REQUEST,
            Self::Response => MAX_RESPONSE,
            Self::LookupBatch => MAX_LOOKUP_BATCH,
            Self::ClusterObjects => MAX_CLUSTER_OBJECTS,
            Self::IdentityRequest | Self::IdentityAnswer => MAX_IDENTITY,
            Self::FederationRequest => MAX_FEDERATION_REQUEST,
            Self::FederationAnswer => MAX_FEDERATION_ANSWER,
            Self::Member => MAX_MEMBER,
            Self::Homes => MAX_HOMES_BYTES,
        }
    }

    /// The kind with this number.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// The payload.
    pub payload: Vec<u8>,
}

/// The peer misbehaved; the stream is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Longer than its kind allows.
    #[error("a frame of kind {kind:?} announces {bytes} bytes of payload, the limit is {}", kind.limit())]
    Oversized {
        /// Its kind.
        kind: Kind,
        /// The length it announces.
        bytes: usize,
    },
    /// A length of 0: there is no room for the kind.
    #[error("a frame without a kind")]
    Empty,
    /// A kind that this version does not know.
    #[error("a frame of the unknown kind {0}")]
    UnknownKind(u8),
}

impl FrameError {
    /// What the peer hears.
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::Oversized { .. } => CloseCode::Oversized,
            Self::Empty | Self::UnknownKind(_) => CloseCode::Malformed,
        }
    }
}

/// A payload of ours that is longer than its kind allows: the caller must split it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a payload of {bytes} bytes is too long for a frame of kind {kind:?}, the limit is {}", kind.limit())]
pub struct TooLong {
    /// The kind it was meant for.
    pub kind: Kind,
    /// Its length.
    pub bytes: usize,
}

/// Appends a frame to `out`; the payload is the concatenation of `parts`. On an error `out` is unchanged.
pub fn append(out: &mut Vec<u8>, kind: Kind, parts: &[&[u8]]) -> Result<(), TooLong> {
    let bytes = parts.iter().map(|part| part.len()).sum::<usize>();
    if bytes > kind.limit() {
        return Err(TooLong { kind, bytes });
    }
    out.reserve(HEADER_BYTES + bytes);
    // The limits are far below 4 GiB.
    out.extend_from_slice(&(bytes as u32 + 1).to_le_bytes());
    out.push(kind as u8);
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(())
}

/// Cuts a stream of bytes into frames.
///
/// Inputs: [`Decoder::push`]. Outputs: [`Decoder::poll`], to be called until it gives `None` after each push.
/// After an error every further poll gives the same error: the boundary of frames is lost.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already given out.
    taken: usize,
    failed: Option<FrameError>,
}

impl Decoder {
    /// The most that should be pushed between polls; more works and takes more memory.
    pub const PUSH_LIMIT: usize = 64 << 10;

    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole frame, `None` when more bytes are needed.
    pub fn poll(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        match parse(&self.buffer[self.taken..]) {
            Ok(Some((kind, payload_bytes))) => {
                let start = self.taken + HEADER_BYTES;
                let payload = self.buffer[start..start + payload_bytes].to_vec();
                self.taken = start + payload_bytes;
                self.compact();
                Ok(Some(Frame { kind, payload }))
            }
            Ok(None) => {
                self.compact();
                Ok(None)
            }
            Err(error) => {
                self.failed = Some(error);
                self.buffer = Vec::new();
                self.taken = 0;
                Err(error)
            }
        }
    }

    /// Whether bytes of an incomplete frame are held: at the end of a stream that is a truncation.
    pub fn is_partial(&self) -> bool {
        self.taken < self.buffer.len()
    }

    /// Moves the rest to the front when that is cheap, and gives memory of a past large frame back.
    fn compact(&mut self) {
        let rest = self.buffer.len() - self.taken;
        if rest == 0 {
            self.buffer.clear();
            self.buffer.shrink_to(Self::PUSH_LIMIT);
            self.taken = 0;
        } else if self.taken > rest {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
    }
}

/// Kind and payload length of the frame at the start of `bytes`, `None` when it is not complete. The limit is
/// checked as soon as the header is there, before the payload is awaited.
fn parse(bytes: &[u8]) -> Result<Option<(Kind, usize)>, FrameError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return match bytes.first_chunk::<4>() {
            Some([0, 0, 0, 0]) => Err(FrameError::Empty),
            _ => Ok(None),
        };
    };
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let Some(payload_bytes) = length.checked_sub(1) else {
        return Err(FrameError::Empty);
    };
    let kind = Kind::from_byte(header[4]).ok_or(FrameError::UnknownKind(header[4]))?;
    if payload_bytes > kind.limit() {
        return Err(FrameError::Oversized {
            kind,
            bytes: payload_bytes,
        });
    }
    Ok((bytes.len() - HEADER_BYTES >= payload_bytes).then_some((kind, payload_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(frames: &[Frame]) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in frames {
            append(&mut out, frame.kind, &[&frame.payload]).unwrap();
        }
        out
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            payloads in prop::collection::vec((0usize..Kind::ALL.len(), prop::collection::vec(any::<u8>(), 0..64)), 0..20),
            cuts in prop::collection::vec(1usize..40, 1..200),
        ) {
            let frames: Vec<Frame> =
                payloads.into_iter().map(|(kind, payload)| Frame { kind: Kind::ALL[kind], payload }).collect();
            let bytes = stream(&frames);
            let (mut decoder, mut got, mut at) = (Decoder::new(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                if at == bytes.len() { break; }
                let end = (at + cut).min(bytes.len());
                decoder.push(&bytes[at..end]);
                at = end;
                while let Some(frame) = decoder.poll().unwrap() { got.push(frame); }
            }
            prop_assert!(!decoder.is_partial());
            prop_assert_eq!(got, frames);
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_from_the_header_alone() {
        for kind in Kind::ALL {
            let mut decoder = Decoder::new();
            decoder.push(&(kind.limit() as u32 + 2).to_le_bytes());
            assert_eq!(decoder.poll(), Ok(None));
            decoder.push(&[kind as u8]);
            let error = decoder.poll().unwrap_err();
            assert_eq!(
                error,
                FrameError::Oversized {
                    kind,
                    bytes: kind.limit() + 1
                }
            );
            assert_eq!(error.close_code(), CloseCode::Oversized);
            decoder.push(&[0; 100]);
            assert_eq!(decoder.poll(), Err(error), "an error is final");
        }
    }

    #[test]
    fn nonsense_is_malformed() {
        let mut decoder = Decoder::new();
        decoder.push(&[0, 0, 0, 0]);
        assert_eq!(
            decoder.poll().unwrap_err().close_code(),
            CloseCode::Malformed
        );
        let mut decoder = Decoder::new();
        decoder.push(&[1, 0, 0, 0, 77]);
        assert_eq!(decoder.poll(), Err(FrameError::UnknownKind(77)));
    }

    #[test]
    fn what_we_send_is_held_to_the_same_limit() {
        let mut out = vec![1];
        let error = append(&mut out, Kind::Ack, &[&[0; MAX_ACK], &[0]]).unwrap_err();
        assert_eq!(
            error,
            TooLong {
                kind: Kind::Ack,
                bytes: MAX_ACK + 1
            }
        );
        assert_eq!(out, [1]);
    }
}
