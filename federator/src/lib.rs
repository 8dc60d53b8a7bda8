//! The federator: takes halves from agents, stitches them, keeps them, and answers questions about them.
pub mod record;
pub mod core;
pub mod journal;
pub mod store;
