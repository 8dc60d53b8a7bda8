//! The federator.
