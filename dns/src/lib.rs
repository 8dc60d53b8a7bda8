//! DNS as an observer reads it: what was asked, by whom, what was answered, and which name an address was known by.
//!
//! Pure: no IO, no clock, no randomness. Time comes in as [`weft_wire::Timestamp`]s, packets as bytes, and lookups go out as values.
//!
//! Reading order: [`name`] (names as text), [`message`] (bytes to questions and answers), [`stream`] (messages in TCP
//! segments), [`pairing`] (questions meet their answers: lookups), [`search`] (questions that only tried the search path),
//! [`cache`] (which name an address was known by), then what reports need: [`domain`] (internal or external),
//! [`threats`] (names on a list), [`resolvers`] (who answers DNS over TLS and HTTPS).
//!
//! What must stay absent: wall clocks, hash maps with random seeds, sockets, files, and any memory of a peer's making
//! without a limit.

#![forbid(unsafe_code)]

pub mod name;
pub mod message;
pub mod stream;
pub mod pairing;
pub mod search;
pub mod cache;
pub mod domain;
pub mod threats;
pub mod resolvers;

pub use cache::{Asker, NameCache};
pub use message::Message;
pub use pairing::{Limits, Lookups, Packet};
