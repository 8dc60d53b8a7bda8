//! The Weft agent: sees connections in the kernel, knows the process behind each, reports them to its federator.
//!
//! Data flows one way, and the modules are in that order: [`kernel`] (hooks and their ring) -> [`decode`] ->
//! [`table`], [`flows`] and [`lookups`] -> [`attribution`] -> [`capture`] (which drives them) -> [`sink`] -> [`spool`] -> [`uplink`].

pub mod config;
pub mod kernel;
pub mod decode;
pub mod clock;
pub mod time;
pub mod table;
pub mod places;
pub mod flows;
pub mod lookups;
pub mod attribution;
pub mod pods;
pub mod cluster;
pub mod calls;
pub mod capture;
pub mod snapshot;
pub mod limits;
pub mod sink;
pub mod spool;
pub mod uplink;
pub mod join;
pub mod counters;
pub mod metrics;
pub mod privileges;
pub mod doctor;
pub mod run;
