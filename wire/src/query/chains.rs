//! Connections with a proxy between them.

use serde::{Deserialize, Serialize};

use super::{Asker, Check, Confidence, Connection};
use crate::model::{HalfId, Role};

/// Most halves of one [`Question::Chains`](super::Question::Chains).
pub const MAX_CHAIN_HALVES: usize = 1_024;

/// What is known of a connection's end at a process that might be a proxy: which other connection of that process is the
/// same way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChainLink {
    /// The end that was asked about.
    pub half: HalfId,
    /// Server: the way goes on from here with the other connection; client: it came with that.
    pub role: Role,
    /// The proxy, and who saw it.
    pub proxy: Asker,
    /// The proxy's process id.
    pub pid: Option<u32>,
    /// The other connection; null when several would fit.
    pub other: Option<Box<Connection>>,
    /// What links the two: `relayed-bytes`, `relayed-bytes-by-elimination`, `relayed-bytes-in-order`, `proxy-address`; of what
    /// is not linked why: `ambiguous`, `too-many`.
    pub evidence: String,
    /// How sure that is; null when they are not linked.
    pub confidence: Option<Confidence>,
    /// What was compared.
    pub checks: Vec<Check>,
    /// How many connections would fit.
    pub fitting: u32,
}
