//! The join of the two ends of a connection. Pure.
