//! mTLS QUIC between agents, federators and operators: identities, dialling, accepting, limits.
//!
//! The only crate that touches certificates. Both ends of a session present one; the peer is known by the SPIFFE
//! id in it, never by a host name. Time is read only where TLS checks validity.
//!
//! Reading order: [`identity`] (who we are, what a peer must prove), [`endpoint`] ([`Listener`] and [`Dialler`]),
//! [`session`] (what one can do with a peer), [`error`] (what goes wrong, by whose fault), [`pki`] (making
//! certificates).

mod spiffe;
pub mod identity;
pub mod endpoint;
pub mod session;
pub mod error;
pub mod counters;
pub mod pki;

pub use counters::{Counters, Counts};
pub use endpoint::{Dialler, Expect, Limits, Listener};
pub use error::{CloseReason, Fault, IdentityError, Refusal, TransportError};
pub use identity::{Identity, PeerRole, SpiffeId};
pub use session::{FrameReceiver, FrameSender, Session};
