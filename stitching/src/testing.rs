//! For benchmarks.
