//! A batch decoded: a vector per column, and the rows they make.

use std::net::{IpAddr, SocketAddr};

use super::BatchError;
use crate::model::{
    AgentKey, Fingerprint, Half, HalfId, HalfState, Owner, Protocol, Role, Timestamp,
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
    /// Whether its rows have initial sequence numbers; otherwise the fingerprint is unknown.
    pub fingerprinted: bool,
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
}

/// The flags of a [`Flow`] as a byte: bit 0 role, bits 1 to 3 state, bit 4 UDP, bit 5 fingerprinted, bit 6 closed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Kind(pub(super) u8);

impl Kind {
    pub(super) fn of(half: &Half) -> Self {
        let state = match half.state {
            HalfState::Open => 0,
            HalfState::Closed => 1,
            HalfState::Refused => 2,
            HalfState::TimedOut => 3,
            HalfState::Aborted => 4,
        };
        let flag = |set: bool, bit: u8| u8::from(set) << bit;
        Self(
            flag(half.role == Role::Server, 0)
                | state << 1
                | flag(half.protocol == Protocol::Udp, 4)
                | flag(matches!(half.fingerprint, Fingerprint::TcpIsn { .. }), 5)
                | flag(half.closed_at.is_some(), 6),
        )
    }

    pub(super) fn state(self) -> Result<HalfState, BatchError> {
        Ok(match self.0 >> 1 & 7 {
            0 => HalfState::Open,
            1 => HalfState::Closed,
            2 => HalfState::Refused,
            3 => HalfState::TimedOut,
            4 => HalfState::Aborted,
            _ => return Err(BatchError::Malformed("an unknown state")),
        })
    }

    pub(super) fn check(self) -> Result<Self, BatchError> {
        if self.0 < 0x80 {
            Ok(self)
        } else {
            Err(BatchError::Malformed("unknown flags of a flow"))
        }
    }

    pub(super) fn role(self) -> Role {
        if self.0 & 1 == 0 {
            Role::Client
        } else {
            Role::Server
        }
    }

    pub(super) fn protocol(self) -> Protocol {
        if self.0 & 0x10 == 0 {
            Protocol::Tcp
        } else {
            Protocol::Udp
        }
    }

    pub(super) fn fingerprinted(self) -> bool {
        self.0 & 0x20 != 0
    }

    pub(super) fn closed(self) -> bool {
        self.0 & 0x40 != 0
    }
}

/// A decoded batch. All row columns have the same length, and every index in it is valid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// Names the boot of the kernel that made the cookies.
    pub boot: u64,
    /// Processes and workloads.
    pub owners: Vec<Owner>,
    /// Distinct flows, the most frequent first.
    pub flows: Vec<Flow>,
    /// Row: index into [`Columns::flows`].
    pub flow: Vec<u16>,
    /// Row: initial sequence number of the client; means nothing where the flow has none.
    pub client_isn: Vec<u32>,
    /// Row: initial sequence number of the server; means nothing where the flow has none.
    pub server_isn: Vec<u32>,
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
        let fingerprint = match flow.fingerprinted {
            true => Fingerprint::TcpIsn {
                client: self.client_isn[row],
                server: self.server_isn[row],
            },
            false => Fingerprint::Unknown,
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
            ..Half::default()
        }
    }

    /// All rows of a batch that came from this agent.
    pub fn halves(&self, agent: AgentKey) -> impl ExactSizeIterator<Item = Half> + '_ {
        (0..self.len()).map(move |row| self.half(row, agent))
    }
}
