//! A batch decoded: a vector per column, and the rows they make.

use std::net::{IpAddr, SocketAddr};

use super::BatchError;
use crate::model::{
    AgentKey, Application, DatagramSort, Datagrams, Fingerprint, Half, HalfId, HalfState, Owner,
    PeerName, Protocol, Role, Timestamp,
};

/// What many rows of a batch share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Which end.
    pub role: Role,
    /// State of the half.
    pub state: HalfState,
    /// What kind of fingerprint its rows have.
    pub fingerprint: FlowFingerprint,
    /// Whether that, of datagrams, has the hash of the server's too; otherwise it is 0.
    pub answered: bool,
    /// What is spoken.
    pub application: Application,
    /// Whether its rows have a closing time.
    pub closed: bool,
    /// Index into [`Columns::owners`].
    pub owner: u32,
    /// This end's own address.
    pub local: IpAddr,
    /// The peer's address.
    pub remote: IpAddr,
    /// The server's port: the remote one of a client's half, the local one of a server's.
    pub server_port: u16,
    /// The peer's name: 0 for none, else index + 1 into [`Columns::names`].
    pub name: u32,
}

/// What kind of fingerprint the rows of a flow have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FlowFingerprint {
    /// None is known.
    #[default]
    Unknown,
    /// Initial sequence numbers: [`Columns::client_isn`], [`Columns::server_isn`].
    TcpIsn,
    /// Hashes of the first datagrams: [`Columns::client_hash`], [`Columns::server_hash`].
    Datagrams {
        /// Which bytes were hashed.
        sort: DatagramSort,
        /// Whether they can tell flows apart.
        distinct: bool,
    },
}

/// What a [`Flow`] says in two bytes. The first: bit 0 role, bits 1 to 3 state, bit 4 UDP, bits 5 and 6 fingerprint
/// (unknown, initial sequence numbers, datagrams, datagrams of the client only), bit 7 closed. The second, of
/// datagrams: bits 0 and 1 sort, bit 2 distinct.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Kind(pub(super) [u8; 2]);

const ISN: u8 = 1;
const DATAGRAMS: u8 = 2;
const DATAGRAMS_OF_CLIENT: u8 = 3;

impl Kind {
    pub(super) fn of(half: &Half) -> Self {
        let state = match half.state {
            HalfState::Open => 0,
            // Agents see ends, and conclude none.
            HalfState::Closed | HalfState::HostRestarted | HalfState::AgentGone => 1,
            HalfState::Refused => 2,
            HalfState::TimedOut => 3,
            HalfState::Aborted => 4,
        };
        let flag = |set: bool, bit: u8| u8::from(set) << bit;
        let (fingerprint, second) = match half.fingerprint {
            Fingerprint::Unknown => (0, 0),
            Fingerprint::TcpIsn { .. } => (ISN, 0),
            Fingerprint::Datagrams(datagrams) => (
                match datagrams.server {
                    0 => DATAGRAMS_OF_CLIENT,
                    _ => DATAGRAMS,
                },
                datagrams.sort as u8 | flag(datagrams.distinct, 2),
            ),
        };
        let first = flag(half.role == Role::Server, 0)
            | state << 1
            | flag(half.protocol == Protocol::Udp, 4)
            | fingerprint << 5
            | flag(half.closed_at.is_some(), 7);
        Self([first, second])
    }

    pub(super) fn state(self) -> Result<HalfState, BatchError> {
        Ok(match self.0[0] >> 1 & 7 {
            0 => HalfState::Open,
            1 => HalfState::Closed,
            2 => HalfState::Refused,
            3 => HalfState::TimedOut,
            4 => HalfState::Aborted,
            _ => return Err(BatchError::Malformed("an unknown state")),
        })
    }

    pub(super) fn role(self) -> Role {
        if self.0[0] & 1 == 0 {
            Role::Client
        } else {
            Role::Server
        }
    }

    pub(super) fn protocol(self) -> Protocol {
        if self.0[0] & 0x10 == 0 {
            Protocol::Tcp
        } else {
            Protocol::Udp
        }
    }

    pub(super) fn closed(self) -> bool {
        self.0[0] & 0x80 != 0
    }

    /// Whether its rows have the hash of the server's datagram too.
    pub(super) fn answered(self) -> bool {
        self.0[0] >> 5 & 3 == DATAGRAMS
    }

    pub(super) fn fingerprint(self) -> Result<FlowFingerprint, BatchError> {
        let second = self.0[1];
        Ok(match (self.0[0] >> 5 & 3, second) {
            (0, 0) => FlowFingerprint::Unknown,
            (ISN, 0) => FlowFingerprint::TcpIsn,
            (DATAGRAMS | DATAGRAMS_OF_CLIENT, 0..8) => FlowFingerprint::Datagrams {
                sort: match second & 3 {
                    0 => DatagramSort::Other,
                    1 => DatagramSort::Dns,
                    2 => DatagramSort::Quic,
                    _ => return Err(BatchError::Malformed("an unknown sort of datagram")),
                },
                distinct: second & 4 != 0,
            },
            _ => return Err(BatchError::Malformed("unknown flags of a flow")),
        })
    }
}

/// A decoded batch. All row columns have the same length, and every index in it is valid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// Names the boot of the kernel that made the cookies.
    pub boot: u64,
    /// Processes and workloads.
    pub owners: Vec<Owner>,
    /// Names of peers.
    pub names: Vec<PeerName>,
    /// Distinct flows, the most frequent first.
    pub flows: Vec<Flow>,
    /// Row: index into [`Columns::flows`].
    pub flow: Vec<u16>,
    /// Row: initial sequence number of the client; means nothing where the flow has none.
    pub client_isn: Vec<u32>,
    /// Row: initial sequence number of the server; means nothing where the flow has none.
    pub server_isn: Vec<u32>,
    /// Row: hash of the client's first datagram; means nothing where the flow has none. Empty where no flow has.
    pub client_hash: Vec<u64>,
    /// Row: hash of the server's first datagram; means nothing where the flow has none. Empty where no flow has.
    pub server_hash: Vec<u64>,
    /// Row: how long before it was opened the peer's name was learnt; means nothing where the flow has none. Empty where
    /// no flow has.
    pub named_before_us: Vec<u32>,
    /// Row: the client's port: the local one of a client's half, the remote one of a server's.
    pub client_port: Vec<u16>,
    /// Row: socket cookie.
    pub cookie: Vec<u64>,
    /// Row: opened, microseconds since 1970.
    pub opened_at: Vec<i64>,
    /// Row: closed, microseconds since 1970; means nothing where the flow is not closed.
    pub closed_at: Vec<i64>,
    /// Row: counters read, microseconds since 1970.
    pub seen_at: Vec<i64>,
    /// Row: payload bytes sent.
    pub bytes_sent: Vec<u64>,
    /// Row: payload bytes received.
    pub bytes_received: Vec<u64>,
    /// Row: segments sent.
    pub packets_sent: Vec<u64>,
    /// Row: segments received.
    pub packets_received: Vec<u64>,
    /// Row: smoothed round-trip time in microseconds.
    pub rtt_us: Vec<u32>,
    /// Row: segments sent again.
    pub retransmits: Vec<u32>,
}

impl Columns {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.flow.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.flow.is_empty()
    }

    /// What row `row` shares with others.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn flow_of(&self, row: usize) -> &Flow {
        &self.flows[usize::from(self.flow[row])]
    }

    /// The identity of row `row` if the batch came from this agent.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn id(&self, row: usize, agent: AgentKey) -> HalfId {
        HalfId::new(agent, self.boot, self.cookie[row])
    }

    /// Row `row` of a batch that came from this agent.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn half(&self, row: usize, agent: AgentKey) -> Half {
        let flow = self.flow_of(row);
        let (local_port, remote_port) = match flow.role {
            Role::Client => (self.client_port[row], flow.server_port),
            Role::Server => (flow.server_port, self.client_port[row]),
        };
        let fingerprint = match flow.fingerprint {
            FlowFingerprint::Unknown => Fingerprint::Unknown,
            FlowFingerprint::TcpIsn => Fingerprint::TcpIsn {
                client: self.client_isn[row],
                server: self.server_isn[row],
            },
            FlowFingerprint::Datagrams { sort, distinct } => Fingerprint::Datagrams(Datagrams {
                sort,
                client: self.client_hash[row],
                server: self.server_hash[row],
                distinct,
            }),
        };
        let named_before_us = match flow.name {
            0 => 0,
            _ => self.named_before_us[row],
        };
        Half {
            id: self.id(row, agent),
            cookie: self.cookie[row],
            protocol: flow.protocol,
            role: flow.role,
            state: flow.state,
            fingerprint,
            local: SocketAddr::new(flow.local, local_port),
            remote: SocketAddr::new(flow.remote, remote_port),
            opened_at: Timestamp(self.opened_at[row]),
            closed_at: flow.closed.then_some(Timestamp(self.closed_at[row])),
            seen_at: Timestamp(self.seen_at[row]),
            bytes_sent: self.bytes_sent[row],
            bytes_received: self.bytes_received[row],
            packets_sent: self.packets_sent[row],
            packets_received: self.packets_received[row],
            rtt_us: self.rtt_us[row],
            retransmits: self.retransmits[row],
            owner: flow.owner,
            name: flow.name,
            named_before_us,
            application: flow.application,
        }
    }

    /// All rows of a batch that came from this agent.
    pub fn halves(&self, agent: AgentKey) -> impl ExactSizeIterator<Item = Half> + '_ {
        (0..self.len()).map(move |row| self.half(row, agent))
    }
}
