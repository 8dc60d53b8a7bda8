//! Where an address or a site is, and how a path travelled.
//!
//! Pure: everything here is decided from what it is given. Knows nothing of agents' sessions, stores or clocks.
//!
//! Reading order: [`path`] (the classification and its rules), [`place`] (boundaries between two sites),
//! [`address`] (what kind of address it is).

pub mod address;
pub mod path;
pub mod place;

pub use address::{AddressClass, canonical};
pub use path::{End, classify, classify_unmatched};
pub use place::{Boundary, crossed};
