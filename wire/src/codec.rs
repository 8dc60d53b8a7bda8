//! Control messages as bytes. The one module that knows bincode (see `docs/decisions/`).
//!
//! A message that opens a conversation ([`Message::OPENS`]) begins with the protocol version as a `u16`,
//! little-endian, outside bincode: a peer of another version is recognised before anything else is decoded.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::cluster::ClusterBatch;
use crate::control::{
    Ack, AgentHello, AgentStatus, AgentWelcome, CloseCode, PROTOCOL_VERSION, PeerHello, PeerMessage,
};
use crate::federation::{FederationAnswer, FederationRequest, Homes};
use crate::frame::{self, Frame, Kind, TooLong};
use crate::identity::{IdentityAnswer, IdentityRequest};
use crate::query::{Request, Response};

/// A message that has a frame of its own.
pub trait Message: Serialize + DeserializeOwned {
    /// Its kind of frame.
    const KIND: Kind;
    /// Whether the version comes first.
    const OPENS: bool = false;
}

impl Message for AgentHello {
    const KIND: Kind = Kind::AgentHello;
    const OPENS: bool = true;
}

impl Message for AgentWelcome {
    const KIND: Kind = Kind::AgentWelcome;
    const OPENS: bool = true;
}

impl Message for AgentStatus {
    const KIND: Kind = Kind::AgentStatus;
}

impl Message for Ack {
    const KIND: Kind = Kind::Ack;
}

impl Message for PeerHello {
    const KIND: Kind = Kind::PeerHello;
    const OPENS: bool = true;
}

impl Message for Request {
    const KIND: Kind = Kind::Request;
    const OPENS: bool = true;
}

impl Message for Response {
    const KIND: Kind = Kind::Response;
}

impl Message for IdentityRequest {
    const KIND: Kind = Kind::IdentityRequest;
    const OPENS: bool = true;
}

impl Message for IdentityAnswer {
    const KIND: Kind = Kind::IdentityAnswer;
}

impl Message for FederationRequest {
    const KIND: Kind = Kind::FederationRequest;
    const OPENS: bool = true;
}

impl Message for FederationAnswer {
    const KIND: Kind = Kind::FederationAnswer;
}

impl Message for Homes {
    const KIND: Kind = Kind::Homes;
}

/// The peer misbehaved, or speaks another version.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Another protocol version.
    #[error("the peer speaks protocol version {theirs}, this program {PROTOCOL_VERSION}")]
    Version {
        /// The peer's.
        theirs: u16,
    },
    /// Another kind of frame than the state allows.
    #[error("expected a frame of kind {expected:?}, received {received:?}")]
    Unexpected {
        /// What should have come.
        expected: Kind,
        /// What came.
        received: Kind,
    },
    /// Too short for its fixed part.
    #[error("a frame of kind {0:?} is truncated")]
    Truncated(Kind),
    /// Not decodable, or it claims more than its bytes can hold.
    #[error("a frame of kind {kind:?} cannot be decoded: {detail}")]
    Malformed {
        /// Its kind.
        kind: Kind,
        /// The decoder's words.
        detail: String,
    },
    /// Bytes follow the message.
    #[error("a frame of kind {kind:?} has {bytes} bytes after its message")]
    Trailing {
        /// Its kind.
        kind: Kind,
        /// How many.
        bytes: usize,
    },
}

impl DecodeError {
    /// What the peer hears.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Version { .. } => CloseCode::Version,
            Self::Unexpected { .. } => CloseCode::Unexpected,
            Self::Truncated(_) | Self::Malformed { .. } | Self::Trailing { .. } => {
                CloseCode::Malformed
            }
        }
    }
}

/// A message of ours that cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The caller must split it.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// A type that bincode cannot represent: a defect of this program.
    #[error("a message of kind {kind:?} cannot be encoded: {detail}")]
    Unrepresentable {
        /// Its kind.
        kind: Kind,
        /// The encoder's words.
        detail: String,
    },
}

/// Appends the message to `out` as a whole frame.
pub fn append<M: Message>(out: &mut Vec<u8>, message: &M) -> Result<(), EncodeError> {
    let body = to_bytes(M::KIND, message)?;
    if M::OPENS {
        frame::append(out, M::KIND, &[&PROTOCOL_VERSION.to_le_bytes(), &body])?;
    } else {
        frame::append(out, M::KIND, &[&body])?;
    }
    Ok(())
}

/// Decodes a frame that must be of this message's kind.
pub fn decode<M: Message>(frame: &Frame) -> Result<M, DecodeError> {
    if frame.kind != M::KIND {
        return Err(DecodeError::Unexpected {
            expected: M::KIND,
            received: frame.kind,
        });
    }
    let mut body = frame.payload.as_slice();
    if M::OPENS {
        let (version, rest) = body
            .split_first_chunk::<2>()
            .ok_or(DecodeError::Truncated(M::KIND))?;
        let theirs = u16::from_le_bytes(*version);
        if theirs != PROTOCOL_VERSION {
            return Err(DecodeError::Version { theirs });
        }
        body = rest;
    }
    from_bytes(M::KIND, body)
}

/// Appends a batch ([`crate::batch`]) with its sequence number to `out` as a whole frame.
pub fn append_batch(out: &mut Vec<u8>, seq: u64, batch: &[u8]) -> Result<(), TooLong> {
    frame::append(out, Kind::HalfBatch, &[&seq.to_le_bytes(), batch])
}

/// Sequence number and encoded batch of a frame that must be a batch.
pub fn split_batch(frame: &Frame) -> Result<(u64, &[u8]), DecodeError> {
    split_seq(frame, Kind::HalfBatch)
}

/// Appends lookups ([`crate::batch::lookups`]) with their sequence number to `out` as a whole frame.
pub fn append_lookups(out: &mut Vec<u8>, seq: u64, batch: &[u8]) -> Result<(), TooLong> {
    frame::append(out, Kind::LookupBatch, &[&seq.to_le_bytes(), batch])
}

/// Sequence number and encoded lookups of a frame that must be such.
pub fn split_lookups(frame: &Frame) -> Result<(u64, &[u8]), DecodeError> {
    split_seq(frame, Kind::LookupBatch)
}

/// Appends what happened in a cluster with its number to `out` as a whole frame.
pub fn append_cluster(
    out: &mut Vec<u8>,
    seq: u64,
    batch: &ClusterBatch,
) -> Result<(), EncodeError> {
    let body = to_bytes(Kind::ClusterObjects, batch)?;
    frame::append(out, Kind::ClusterObjects, &[&seq.to_le_bytes(), &body])?;
    Ok(())
}

/// Number and content of a frame that must tell what happened in a cluster.
pub fn decode_cluster(frame: &Frame) -> Result<(u64, ClusterBatch), DecodeError> {
    let (seq, body) = split_seq(frame, Kind::ClusterObjects)?;
    Ok((seq, from_bytes(Kind::ClusterObjects, body)?))
}

/// Appends a message between federators with its sequence number to `out` as a whole frame.
pub fn append_peer(out: &mut Vec<u8>, seq: u64, message: &PeerMessage) -> Result<(), EncodeError> {
    let body = to_bytes(Kind::PeerMessages, message)?;
    frame::append(out, Kind::PeerMessages, &[&seq.to_le_bytes(), &body])?;
    Ok(())
}

/// Sequence number and message of a frame that must be a message between federators.
pub fn decode_peer(frame: &Frame) -> Result<(u64, PeerMessage), DecodeError> {
    let (seq, body) = split_seq(frame, Kind::PeerMessages)?;
    Ok((seq, from_bytes(Kind::PeerMessages, body)?))
}

fn split_seq(frame: &Frame, expected: Kind) -> Result<(u64, &[u8]), DecodeError> {
    if frame.kind != expected {
        return Err(DecodeError::Unexpected {
            expected,
            received: frame.kind,
        });
    }
    let (seq, body) = frame
        .payload
        .split_first_chunk::<8>()
        .ok_or(DecodeError::Truncated(expected))?;
    Ok((u64::from_le_bytes(*seq), body))
}

/// Any serialisable value in the encoding of control messages: for what is kept on disk. `kind` only gives
/// errors a name.
pub fn to_bytes<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, EncodeError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).map_err(|error| {
        EncodeError::Unrepresentable {
            kind,
            detail: error.to_string(),
        }
    })
}

/// The inverse of [`to_bytes`]. All bytes must be used, and no length inside may claim much more memory than
/// there are bytes.
pub fn from_bytes<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, DecodeError> {
    // bincode's limit is a constant of the type, and it counts the in-memory size of what it reads (an integer
    // of one byte on the wire counts as 8). The smallest class with room for 16 times the input therefore
    // never refuses what is honest, and bounds what a hostile length inside can allocate.
    let config = bincode::config::standard();
    let decoded = match bytes.len() {
        0..=0xff => bincode::serde::decode_from_slice(bytes, config.with_limit::<{ 16 << 8 }>()),
        0x100..=0xfff => {
            bincode::serde::decode_from_slice(bytes, config.with_limit::<{ 16 << 12 }>())
        }
        0x1000..=0xffff => {
            bincode::serde::decode_from_slice(bytes, config.with_limit::<{ 16 << 16 }>())
        }
        0x1_0000..=0xf_ffff => {
            bincode::serde::decode_from_slice(bytes, config.with_limit::<{ 16 << 20 }>())
        }
        _ => bincode::serde::decode_from_slice(bytes, config.with_limit::<{ 16 << 23 }>()),
    };
    let (value, used) = decoded.map_err(|error| DecodeError::Malformed {
        kind,
        detail: error.to_string(),
    })?;
    match bytes.len() - used {
        0 => Ok(value),
        rest => Err(DecodeError::Trailing { kind, bytes: rest }),
    }
}
