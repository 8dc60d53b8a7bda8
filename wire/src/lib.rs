//! The protocol between agents, federators and operators: data model, control messages, columnar
//! event batches, frames and their limits.
//!
//! Pure: this crate does no IO, reads no clock and starts no thread. `transport` moves what it encodes.
//!
//! Reading order: [`model`] (what is talked about), [`control`] (who says what to whom), [`query`]
//! (what an operator asks and is answered), [`cluster`] (what there is in a Kubernetes cluster), [`identity`] (tokens, certificates, revocations), [`federation`] (federators themselves, and homes of agents), [`words`] (their names in text), [`filter`] (which
//! connections), [`batch`] (columnar encoding of halves), [`frame`] and [`codec`] (how any of it becomes
//! bytes, with hard limits). Apart from it: [`exposition`] (counters as Prometheus reads them).

pub mod model;
pub mod control;
pub mod query;
pub mod cluster;
pub mod identity;
pub mod federation;
pub mod words;
pub mod filter;
pub mod batch;
pub mod frame;
pub mod codec;
pub mod exposition;
pub mod testing;

pub use model::*;
