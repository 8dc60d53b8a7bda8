//! The federator: takes halves from agents, stitches them, keeps them, and answers questions about them.
//!
//! Data flows one way: [`server`] (sessions) -> [`pipeline`] (three threads: [`journal`], [`core`], [`store`]) -> [`query`]. What decides
//! anything is in [`core`], which is pure.
//!
//! Reading order: [`config`], [`run`], [`record`] (rows), [`journal`], [`core`], [`store`], [`pipeline`], [`agents`], [`peers`], [`membership`], [`server`],
//! [`query`].

pub mod config;
pub mod limits;
pub mod run;
pub mod recall;
pub mod times;
pub mod record;
pub mod journal;
pub mod core;
pub mod store;
pub mod pipeline;
pub mod agents;
pub mod peers;
pub mod membership;
pub mod server;
pub mod enrol;
pub mod clusters;
pub mod query;
pub mod health;
pub mod metrics;
mod delays;
pub mod doctor;
pub mod clock;
pub mod testing;
