//! What an entry says: a kind byte, fixed little-endian fields, then bytes that go on unread.

use weft_wire::{AgentKey, Timestamp};

/// An entry to be written; borrows what it carries.
#[derive(Clone, Copy, Debug)]
pub enum EntryRef<'a> {
    /// A batch of halves as it was received.
    Batch(BatchEntry<&'a [u8]>),
    /// A batch of lookups as it was received.
    Lookups(BatchEntry<&'a [u8]>),
    /// What an agent says of itself.
    Agent(AgentEntry<&'a [u8]>),
    /// An agent is taken for gone.
    Gone {
        /// When.
        arrived_at: Timestamp,
        /// The agent.
        agent: AgentKey,
    },
    /// Cards of a peer.
    Peer(PeerEntry<&'a [u8]>),
    /// Halves that come back from the store; the message is those.
    Found(PeerEntry<&'a [u8]>),
    /// The program was started.
    Start {
        /// When.
        arrived_at: Timestamp,
        /// Microseconds since the last entry before.
        down_us: i64,
    },
}

/// An entry that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A batch of halves as it was received.
    Batch(BatchEntry<Vec<u8>>),
    /// A batch of lookups as it was received.
    Lookups(BatchEntry<Vec<u8>>),
    /// What an agent says of itself.
    Agent(AgentEntry<Vec<u8>>),
    /// An agent is taken for gone.
    Gone {
        /// When.
        arrived_at: Timestamp,
        /// The agent.
        agent: AgentKey,
    },
    /// Cards of a peer.
    Peer(PeerEntry<Vec<u8>>),
    /// Halves that come back from the store; the message is those.
    Found(PeerEntry<Vec<u8>>),
    /// The program was started.
    Start {
        /// When.
        arrived_at: Timestamp,
        /// Microseconds since the last entry before.
        down_us: i64,
    },
}

/// A batch of halves or of lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchEntry<B> {
    /// When it arrived, by the federator's clock.
    pub arrived_at: Timestamp,
    /// The agent.
    pub agent: AgentKey,
    /// Its sequence number.
    pub seq: u64,
    /// The agent's clock ahead of the federator's, as estimated on arrival.
    pub skew_us: i64,
    /// The columnar batch.
    pub batch: B,
}

/// An agent's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentEntry<B> {
    /// When it connected, by the federator's clock.
    pub arrived_at: Timestamp,
    /// The agent.
    pub agent: AgentKey,
    /// Encoded `weft_wire::AgentInfo`.
    pub info: B,
}

/// A message of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerEntry<B> {
    /// When it arrived, by the federator's clock.
    pub arrived_at: Timestamp,
    /// Encoded (peer name, message), or halves.
    pub message: B,
}

const BATCH: u8 = 1;
const AGENT: u8 = 2;
const PEER: u8 = 3;
const START: u8 = 4;
const LOOKUPS: u8 = 5;
const FOUND: u8 = 6;
const GONE: u8 = 7;

impl EntryRef<'_> {
    /// Appends the entry's bytes.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Batch(entry) | Self::Lookups(entry) => {
                out.push(match self {
                    Self::Lookups(_) => LOOKUPS,
                    _ => BATCH,
                });
                out.extend_from_slice(&entry.arrived_at.0.to_le_bytes());
                out.extend_from_slice(&entry.agent.0.to_le_bytes());
                out.extend_from_slice(&entry.seq.to_le_bytes());
                out.extend_from_slice(&entry.skew_us.to_le_bytes());
                out.extend_from_slice(entry.batch);
            }
            Self::Agent(entry) => {
                out.push(AGENT);
                out.extend_from_slice(&entry.arrived_at.0.to_le_bytes());
                out.extend_from_slice(&entry.agent.0.to_le_bytes());
                out.extend_from_slice(entry.info);
            }
            Self::Peer(entry) | Self::Found(entry) => {
                out.push(match self {
                    Self::Found(_) => FOUND,
                    _ => PEER,
                });
                out.extend_from_slice(&entry.arrived_at.0.to_le_bytes());
                out.extend_from_slice(entry.message);
            }
            Self::Gone { arrived_at, agent } => {
                out.push(GONE);
                out.extend_from_slice(&arrived_at.0.to_le_bytes());
                out.extend_from_slice(&agent.0.to_le_bytes());
            }
            Self::Start {
                arrived_at,
                down_us,
            } => {
                out.push(START);
                out.extend_from_slice(&arrived_at.0.to_le_bytes());
                out.extend_from_slice(&down_us.to_le_bytes());
            }
        }
    }
}

impl Entry {
    /// Reads an entry's bytes; `None` when they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, mut rest) = bytes.split_first()?;
        let mut word = || -> Option<u64> {
            let (first, others) = rest.split_first_chunk::<8>()?;
            rest = others;
            Some(u64::from_le_bytes(*first))
        };
        let arrived_at = Timestamp(word()?.cast_signed());
        Some(match *kind {
            BATCH | LOOKUPS => {
                let (agent, seq, skew_us) = (AgentKey(word()?), word()?, word()?.cast_signed());
                let entry = BatchEntry {
                    arrived_at,
                    agent,
                    seq,
                    skew_us,
                    batch: rest.to_vec(),
                };
                match *kind {
                    LOOKUPS => Self::Lookups(entry),
                    _ => Self::Batch(entry),
                }
            }
            AGENT => {
                let agent = AgentKey(word()?);
                Self::Agent(AgentEntry {
                    arrived_at,
                    agent,
                    info: rest.to_vec(),
                })
            }
            PEER | FOUND => {
                let entry = PeerEntry {
                    arrived_at,
                    message: rest.to_vec(),
                };
                match *kind {
                    FOUND => Self::Found(entry),
                    _ => Self::Peer(entry),
                }
            }
            GONE => Self::Gone {
                arrived_at,
                agent: AgentKey(word()?),
            },
            START => Self::Start {
                arrived_at,
                down_us: word()?.cast_signed(),
            },
            _ => return None,
        })
    }
}
