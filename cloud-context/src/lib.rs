//! Where an address or a site is, and how a path travelled.
