//! The federator: takes halves from agents, stitches them, keeps them, and answers questions about them.
pub mod journal;
