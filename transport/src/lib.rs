//! mTLS QUIC between agents, federators and operators: identities, dialling, accepting, limits.
//!
//! The only crate that touches certificates. Both ends of a session present one; the peer is known by the SPIFFE
//! id in it, never by a host name. A node that has none yet is served by [`join`] alone. Time is read only where TLS checks
//! validity.
//!
//! Reading order: [`identity`] (who we are), `trust` (what a peer must prove), [`revocations`] (who is shut out), [`limits`], [`endpoint`]
//! ([`Listener`] and [`Dialler`]), [`session`] (what one can do with a peer), [`error`] (what goes wrong, by whose fault), [`token`]
//! and [`join`] (how a node gets its first certificate), [`proof`] (what clouds say of a node), [`pki`] (making certificates).

mod spiffe;
mod holder;
mod files;
pub mod identity;
mod trust;
mod guests;
mod seats;
pub mod limits;
pub mod revocations;
pub mod endpoint;
pub mod session;
pub mod error;
pub mod counters;
pub mod token;
pub mod join;
pub mod proof;
pub mod pki;

pub use counters::{Counters, Counts};
pub use endpoint::{Dialler, Expect, Listener};
pub use error::{CloseReason, Fault, IdentityError, Refusal, TransportError};
pub use identity::{Identity, PeerRole, SpiffeId};
pub use limits::Limits;
pub use revocations::Revocations;
pub use session::{FrameReceiver, FrameSender, Session};
pub use token::{Fingerprint, Token};
