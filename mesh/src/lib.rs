//! What federators decide together about the halves that found no partner at home: who is asked, who answers, what the two
//! homes then tell each other. Pure: no clock, no randomness, no IO.
//!
//! Reading order: [`keys`] (what an offer says of a half, and what it does not), [`members`] (who owns a routing key),
//! [`membership`] (who is there at all), [`summary`] (where their endpoints are),
//! [`mesh`](mod@mesh) (the whole state machine of one federator, [`Mesh`]), then its two parts, [`owner`] (who belongs together) and
//! [`home`] (what became of our halves), and [`policy`] (what is told to nobody).
//!
//! What must stay absent: anything about a half in an offer but keyed hashes, role and time; a match that rests on an owner's
//! word alone.

#![forbid(unsafe_code)]

pub mod home;
pub mod keys;
pub mod members;
pub mod membership;
pub mod mesh;
pub mod owner;
pub mod policy;
pub mod summary;

pub use home::{Link, Withdrawn};
pub use keys::{Keys, MAX_KEYS, MeshKey, card_view, half_view, host_key, network_key};
pub use members::{MAX_WEIGHT, Members};
pub use membership::{Membership, Node};
pub use mesh::{Card, Config, Counters, CutOff, Effect, Mesh, Misbehaved, Records};
pub use owner::KeptOffer;
pub use policy::KeepHome;
