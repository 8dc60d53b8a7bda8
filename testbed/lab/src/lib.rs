//! Clouds on one machine.
