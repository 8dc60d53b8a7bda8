//! Who is there: what operators ask about the federators themselves, and where agents of a region may report.
//!
//! One request is one bidirectional stream: a [`FederationRequest`] frame, then one [`FederationAnswer`].

use serde::{Deserialize, Serialize};

use crate::query::QueryError;

/// Most federators that an agent is told of; a region with more shares its agents among all, and each agent knows its best.
pub const MAX_HOMES: usize = 16;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FederationRequest {
    /// Operator to federator: who is there, as you see it.
    Federators,
    /// Federator to federator: the same, of yourself alone.
    Own,
    /// Administrator to federator: be relieved of agents and offers, or no longer. Only the one that is named does.
    Drain {
        /// Its name.
        federator: String,
        /// `false`: no longer.
        draining: bool,
    },
}

impl FederationRequest {
    /// Name of the kind of request, in tables and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Federators => "federators",
            Self::Own => "own",
            Self::Drain { .. } => "drain",
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FederationAnswer {
    /// To [`FederationRequest::Federators`] and [`FederationRequest::Own`].
    Federators(Vec<FederatorState>),
    /// To [`FederationRequest::Drain`]: it is, and stays so after a restart.
    Done {
        /// Agents connected to it now.
        agents: u64,
    },
    /// Not done.
    Error(QueryError),
}

/// How a federator is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// It is.
    Up,
    /// It is, to be relieved.
    Draining,
    /// It is, but comes and goes too often to own anything.
    Damped,
    /// The others hear it, and this one has no session to it; or nobody has heard of it since it began to be asked.
    Suspect,
    /// It is gone.
    Down,
}

impl Presence {
    /// In tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Damped => "damped",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// A federator, as the one that is asked sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FederatorState {
    /// Its name.
    pub name: String,
    /// Its region; empty while it is not known.
    pub region: String,
    /// Where it is reached; empty while that is not known.
    pub address: String,
    /// Whether it is the one that was asked.
    pub asked: bool,
    /// How it is there.
    pub state: Presence,
    /// Seconds since that is so.
    pub for_s: u64,
    /// How large a share of the offers it owns.
    pub weight: u8,
    /// Agents connected to it; null when it was not to be asked.
    pub agents: Option<u64>,
    /// Smoothed round-trip time of the session to it, in microseconds; null without one.
    pub rtt_us: Option<u64>,
    /// Why there is no session; null while there is one.
    pub error: Option<String>,
}

/// Federator to agent, when its session begins and when it changes: the federators of its region that take agents, the one it
/// belongs to first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Homes {
    /// At most [`MAX_HOMES`].
    pub homes: Vec<HomeAddress>,
}

/// Where an agent may report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeAddress {
    /// The federator's name.
    pub name: String,
    /// `host:port`.
    pub address: String,
}
