//! The federator: takes halves from agents, stitches them, keeps them, and answers questions about them.
pub mod record;
pub mod journal;
pub mod store;
