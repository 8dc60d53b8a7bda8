//! What can go wrong, by who is at fault.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use weft_wire::control::CloseCode;

use crate::spiffe::SpiffeError;

/// Why a session or a stream does not go on. The state of the session is given for each.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TransportError {
    /// The peer broke the protocol, or is not who it should be. The session has been closed with this code.
    #[error("the peer misbehaved ({}): {detail}", code.name())]
    PeerMisbehaved {
        /// What the peer was told.
        code: CloseCode,
        /// What it did.
        detail: String,
    },
    /// The session is over, for a reason that did not arise in this call. Normal in operation.
    #[error("{0}")]
    Closed(CloseReason),
    /// The peer ended this stream; the session may go on.
    #[error("the peer ended the stream")]
    StreamEnded,
    /// No session was made. Normal while the peer is away.
    #[error("cannot reach {address}: {detail}")]
    Unreachable {
        /// What was dialled.
        address: String,
        /// Why.
        detail: String,
    },
    /// The peer did not answer or read in time. When sending, the session has been closed, for part of a frame may
    /// be on its way; when receiving, it goes on.
    #[error("{what} took longer than {after:?}")]
    TimedOut {
        /// What took too long.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// This program asked for something that cannot be done. Nothing changed.
    #[error("{0}")]
    Misuse(String),
}

/// Who is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The peer broke the protocol or is not who it should be.
    Peer,
    /// Both are right, but they do not go together: versions, trust, roles.
    Incompatible,
    /// Nobody, or the network.
    Network,
    /// This program.
    Us,
}

impl TransportError {
    /// Who is at fault, as far as this end can tell.
    pub fn fault(&self) -> Fault {
        match self {
            Self::PeerMisbehaved {
                code: CloseCode::Version,
                ..
            } => Fault::Incompatible,
            Self::PeerMisbehaved { .. } => Fault::Peer,
            Self::Closed(reason) => reason.fault(),
            Self::StreamEnded | Self::Unreachable { .. } | Self::TimedOut { .. } => Fault::Network,
            Self::Misuse(_) => Fault::Us,
        }
    }
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// This end closed it.
    Here,
    /// The peer closed it and said why.
    Peer {
        /// The code; `None` for one of a later version.
        code: Option<CloseCode>,
        /// Its words.
        detail: String,
    },
    /// One end did not accept the other's certificate, or its protocol.
    Refused(Refusal),
    /// Nothing was heard from the peer for [`crate::endpoint::IDLE_TIMEOUT`].
    IdleTimeout,
    /// The peer lost its state, broke QUIC, or has no room.
    Lost(String),
}

impl CloseReason {
    /// Who is at fault, as far as this end can tell.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Here | Self::IdleTimeout | Self::Lost(_) => Fault::Network,
            Self::Peer { code, .. } => match code {
                Some(
                    CloseCode::Done
                    | CloseCode::Draining
                    | CloseCode::Superseded
                    | CloseCode::Limit,
                ) => Fault::Network,
                Some(CloseCode::Internal) => Fault::Peer,
                Some(CloseCode::Version | CloseCode::Role) | None => Fault::Incompatible,
                Some(
                    CloseCode::Oversized
                    | CloseCode::Malformed
                    | CloseCode::Identity
                    | CloseCode::Unexpected,
                ) => Fault::Us,
            },
            Self::Refused(_) => Fault::Incompatible,
        }
    }

    /// The code with which the peer closed it, if it did and said one.
    pub fn peer_code(&self) -> Option<CloseCode> {
        match self {
            Self::Peer { code, .. } => *code,
            _ => None,
        }
    }

    pub(crate) fn from_quinn(error: &quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as Quic;
        match error {
            Quic::LocallyClosed => Self::Here,
            Quic::ApplicationClosed(close) => Self::Peer {
                code: CloseCode::from_number(close.error_code.into_inner()),
                detail: String::from_utf8_lossy(&close.reason)
                    .chars()
                    .take(MAX_REASON_CHARS)
                    .collect(),
            },
            Quic::ConnectionClosed(close) => {
                Self::from_transport_code(close.error_code.into(), error)
            }
            Quic::TransportError(transport) => {
                Self::from_transport_code(transport.code.into(), error)
            }
            Quic::TimedOut => Self::IdleTimeout,
            Quic::VersionMismatch | Quic::Reset | Quic::CidsExhausted => {
                Self::Lost(error.to_string())
            }
        }
    }

    fn from_transport_code(code: u64, error: &quinn::ConnectionError) -> Self {
        match code {
            // RFC 9001, 4.8: a TLS alert is a code in this range.
            0x100..=0x1ff => {
                Self::Refused(Refusal::from_alert((code & 0xff) as u8, &error.to_string()))
            }
            _ => Self::Lost(error.to_string()),
        }
    }
}

/// Longest part of a peer's words that is kept.
pub const MAX_REASON_CHARS: usize = 256;

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("the session was closed by this program"),
            Self::Peer { code, detail } => {
                let code = code.map_or("unknown code", CloseCode::name);
                write!(f, "the peer closed the session ({code}): {detail}")
            }
            Self::Refused(refusal) => write!(f, "the handshake was refused: {refusal}"),
            Self::IdleTimeout => f.write_str("nothing was heard from the peer"),
            Self::Lost(detail) => write!(f, "the session was lost: {detail}"),
        }
    }
}

/// Why a handshake failed. The end that refuses and the end that is refused come to the same value: TLS carries it as an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The certificate was issued by a CA that the other end does not trust.
    UnknownCa,
    /// The certificate is expired or not valid yet, by the other end's clock.
    Expired,
    /// The certificate carries no SPIFFE id of the same trust domain, or more than one.
    NotIdentified,
    /// No certificate was presented.
    NoCertificate,
    /// The certificate may not be used like this, or is damaged.
    BadCertificate,
    /// The certificate, its name or its CA is revoked.
    Revoked,
    /// The other end does not speak this protocol.
    Protocol,
    /// Another TLS failure.
    Other(String),
}

impl Refusal {
    /// Names for the counters, in the order of [`Refusal::index`].
    pub const NAMES: [&'static str; 8] = [
        "unknown-ca",
        "expired",
        "not-identified",
        "no-certificate",
        "bad-certificate",
        "revoked",
        "protocol",
        "other",
    ];

    /// Index into [`Refusal::NAMES`].
    pub fn index(&self) -> usize {
        match self {
            Self::UnknownCa => 0,
            Self::Expired => 1,
            Self::NotIdentified => 2,
            Self::NoCertificate => 3,
            Self::BadCertificate => 4,
            Self::Revoked => 5,
            Self::Protocol => 6,
            Self::Other(_) => 7,
        }
    }

    /// From a TLS alert (RFC 8446, 6.2).
    fn from_alert(alert: u8, words: &str) -> Self {
        match alert {
            48 => Self::UnknownCa,
            45 => Self::Expired,
            49 => Self::NotIdentified,
            116 => Self::NoCertificate,
            44 => Self::Revoked,
            42 | 43 | 46 | 51 => Self::BadCertificate,
            70 | 120 => Self::Protocol,
            _ => Self::Other(words.into()),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCa => f.write_str("the certificate was issued by an unknown CA"),
            Self::Expired => f.write_str("the certificate is expired or not valid yet"),
            Self::NotIdentified => {
                f.write_str("the certificate carries no SPIFFE id of the trust domain")
            }
            Self::NoCertificate => f.write_str("no certificate was presented"),
            Self::BadCertificate => f.write_str("the certificate may not be used for this"),
            Self::Revoked => f.write_str("the certificate is revoked"),
            Self::Protocol => f.write_str("the other end does not speak this protocol"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

/// What is wrong with our own certificates or files.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file would be overwritten. Nothing was changed.
    #[error("{0} exists already and is left as it is")]
    Exists(PathBuf),
    /// A private key that others can read.
    #[error("{path} can be read by others (mode {mode:o}); its mode must be 600")]
    KeyReadable {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file holds something else than it should.
    #[error("{path}: {detail}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A name is not valid, or a certificate carries none.
    #[error(transparent)]
    Name(#[from] SpiffeError),
    /// The CA names another trust domain.
    #[error("the CA is of trust domain {ca}, not {wanted}")]
    Domain {
        /// The CA's.
        ca: String,
        /// The one asked for.
        wanted: String,
    },
    /// The cryptography library refused.
    #[error("{0}")]
    Crypto(String),
}
