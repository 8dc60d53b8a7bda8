//! Bytes of a kernel record to an event. Pure; the kernel is trusted, the bytes are not: pins may outlive the program
//! that wrote them.

use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use weft_agent_common::{COMM_LEN, COOKIE_BITS, Connection, Record, kind, phase, role};
use weft_wire::{Fingerprint, HalfState, Role};

/// `ETIMEDOUT`.
const ETIMEDOUT: u32 = 110;

/// What one record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Unique to this connection until the next boot: socket cookie and generation.
    pub key: ConnectionKey,
    /// Which end.
    pub role: Role,
    /// Where in its life.
    pub state: HalfState,
    /// Both initial sequence numbers, where it was established.
    pub fingerprint: Fingerprint,
    /// This end.
    pub local: SocketAddr,
    /// The other.
    pub remote: SocketAddr,
    /// Monotonic time of opening.
    pub opened_ns: u64,
    /// Monotonic time of the record.
    pub at_ns: u64,
    /// Payload bytes sent and acknowledged.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// Segments sent.
    pub packets_sent: u32,
    /// Segments received.
    pub packets_received: u32,
    /// Smoothed round-trip time.
    pub rtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// Whose it is.
    pub owner: OwnerKey,
}

/// A socket cookie, and in the bits that cookies do not reach how often the socket had connected before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionKey(pub u64);

impl ConnectionKey {
    /// As the kernel does for a tag.
    pub fn new(cookie: u64, generation: u16) -> Self {
        Self(cookie ^ (u64::from(generation) << COOKIE_BITS))
    }

    /// The cookie alone.
    pub fn cookie(self) -> u64 {
        self.0 & ((1 << COOKIE_BITS) - 1)
    }
}

/// What the kernel says of a socket's owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OwnerKey {
    /// Process; 0 when unknown.
    pub pid: u32,
    /// User.
    pub uid: u32,
    /// Name, NUL-padded.
    pub comm: [u8; COMM_LEN],
    /// cgroup v2 id; 0 when unknown.
    pub cgroup: u64,
    /// Inode of the socket's network namespace; 0 when unknown.
    pub netns: u32,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too short or too long.
    #[error("a record of {0} bytes, expected {expected}", expected = size_of::<Record>())]
    Length(usize),
    /// No such kind.
    #[error("unknown record kind {0}")]
    Kind(u8),
    /// No such role.
    #[error("unknown role {0}")]
    Role(u8),
}

/// Reads a little-endian field of a record whose length was checked.
macro_rules! field {
    ($bytes:expr, $field:ident: $type:ty) => {{
        const AT: usize = offset_of!(Record, $field);
        const LEN: usize = size_of::<$type>();
        let mut value = [0_u8; LEN];
        value.copy_from_slice(&$bytes[AT..AT + LEN]);
        <$type>::from_ne_bytes(value)
    }};
}

/// Decodes one record.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let Ok(bytes) = <&[u8; size_of::<Record>()]>::try_from(bytes) else {
        return Err(DecodeError::Length(bytes.len()));
    };
    let kind = bytes[offset_of!(Record, kind)];
    let state = match kind {
        kind::OPEN | kind::UPDATE => HalfState::Open,
        kind::CLOSE => HalfState::Closed,
        kind::FAILED => failure(field!(bytes, error: u32)),
        other => return Err(DecodeError::Kind(other)),
    };
    let isn_local = field!(bytes, isn_local: u32);
    let isn_remote = field!(bytes, isn_remote: u32);
    let local = socket(
        address(bytes, offset_of!(Record, local)),
        field!(bytes, local_port: u16),
    );
    let remote = socket(
        address(bytes, offset_of!(Record, remote)),
        field!(bytes, remote_port: u16),
    );
    let role = which_end(
        bytes[offset_of!(Record, role)],
        (isn_local, local.port()),
        (isn_remote, remote.port()),
    )?;
    Ok(Event {
        key: ConnectionKey::new(field!(bytes, cookie: u64), field!(bytes, generation: u16)),
        role,
        state,
        fingerprint: fingerprint(state, role, isn_local, isn_remote),
        local,
        remote,
        opened_ns: field!(bytes, opened_ns: u64),
        at_ns: field!(bytes, at_ns: u64),
        bytes_sent: if state.established() {
            field!(bytes, bytes_sent: u64)
        } else {
            0
        },
        bytes_received: if state.established() {
            field!(bytes, bytes_received: u64)
        } else {
            0
        },
        packets_sent: field!(bytes, packets_sent: u32),
        packets_received: field!(bytes, packets_received: u32),
        rtt_us: field!(bytes, rtt_us: u32),
        retransmits: field!(bytes, retransmits: u32),
        owner: owner(bytes),
    })
}

/// The opening of a connection that the kernel keeps; `None` where it is not established.
pub fn opening(key: ConnectionKey, kept: &Connection) -> Option<Event> {
    if kept.state.phase != phase::ESTABLISHED {
        return None;
    }
    let local = socket(kept.local, kept.local_port);
    let remote = socket(kept.remote, kept.remote_port);
    let role = which_end(
        kept.state.role,
        (kept.isn_local, local.port()),
        (kept.isn_remote, remote.port()),
    );
    let role = role.ok()?;
    Some(Event {
        key,
        role,
        state: HalfState::Open,
        fingerprint: fingerprint(HalfState::Open, role, kept.isn_local, kept.isn_remote),
        local,
        remote,
        opened_ns: kept.state.opened_ns,
        at_ns: kept.state.opened_ns,
        bytes_sent: 0,
        bytes_received: 0,
        packets_sent: 0,
        packets_received: 0,
        rtt_us: 0,
        retransmits: 0,
        owner: OwnerKey {
            pid: kept.state.pid,
            uid: kept.state.uid,
            comm: kept.state.comm,
            cgroup: kept.state.cgroup,
            netns: kept.state.netns,
        },
    })
}

/// Client or server, from the kernel's word and the initial sequence number and port of either end, own first.
fn which_end(role: u8, local: (u32, u16), remote: (u32, u16)) -> Result<Role, DecodeError> {
    match role {
        role::CLIENT => Ok(Role::Client),
        role::SERVER | role::CROSSED => Ok(Role::Server),
        role::SIMULTANEOUS => Ok(simultaneous(local, remote)),
        other => Err(DecodeError::Role(other)),
    }
}

/// Why a connection never came to be. No error: this end closed the socket while it was connecting. What the
/// network said (reset, unreachable, prohibited) is a refusal.
fn failure(error: u32) -> HalfState {
    match error {
        0 => HalfState::Aborted,
        ETIMEDOUT => HalfState::TimedOut,
        _ => HalfState::Refused,
    }
}

/// Roles in a simultaneous open, where both ends sent a SYN first: the end with the lower initial sequence number is
/// the client. Addresses cannot decide, because a NAT shows each end others; both know the same two numbers. (Equal
/// numbers: a socket that connected to itself, or one case in four billion; then the lower port.)
fn simultaneous(local: (u32, u16), remote: (u32, u16)) -> Role {
    if local <= remote {
        Role::Client
    } else {
        Role::Server
    }
}

fn fingerprint(state: HalfState, role: Role, local: u32, remote: u32) -> Fingerprint {
    match (state.established(), role) {
        (false, _) => Fingerprint::Unknown,
        (true, Role::Client) => Fingerprint::TcpIsn {
            client: local,
            server: remote,
        },
        (true, Role::Server) => Fingerprint::TcpIsn {
            client: remote,
            server: local,
        },
    }
}

fn owner(bytes: &[u8; size_of::<Record>()]) -> OwnerKey {
    let mut comm = [0_u8; COMM_LEN];
    comm.copy_from_slice(&bytes[offset_of!(Record, comm)..][..COMM_LEN]);
    OwnerKey {
        pid: field!(bytes, pid: u32),
        uid: field!(bytes, uid: u32),
        comm,
        cgroup: field!(bytes, cgroup: u64),
        netns: field!(bytes, netns: u32),
    }
}

fn address(bytes: &[u8; size_of::<Record>()], at: usize) -> [u8; 16] {
    let mut address = [0_u8; 16];
    address.copy_from_slice(&bytes[at..][..16]);
    address
}

/// An address of the kernel's; IPv4 mapped into IPv6 is IPv4.
pub fn socket(address: [u8; 16], port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(address)).to_canonical(), port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(kind: u8, role: u8, error: u32) -> Vec<u8> {
        let mut bytes = vec![0_u8; size_of::<Record>()];
        bytes[offset_of!(Record, kind)] = kind;
        bytes[offset_of!(Record, role)] = role;
        bytes[offset_of!(Record, error)..][..4].copy_from_slice(&error.to_ne_bytes());
        bytes[offset_of!(Record, isn_local)..][..4].copy_from_slice(&7_u32.to_ne_bytes());
        bytes[offset_of!(Record, isn_remote)..][..4].copy_from_slice(&5_u32.to_ne_bytes());
        bytes[offset_of!(Record, local)..][..16]
            .copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 1, 0, 2]);
        bytes[offset_of!(Record, local_port)..][..2].copy_from_slice(&443_u16.to_ne_bytes());
        bytes
    }

    #[test]
    fn roles_and_fingerprints_agree_between_the_ends() {
        let client = decode(&bytes(kind::OPEN, role::CLIENT, 0)).unwrap();
        assert_eq!(
            client.fingerprint,
            Fingerprint::TcpIsn {
                client: 7,
                server: 5
            }
        );
        assert_eq!(client.local, "10.1.0.2:443".parse().unwrap());
        let server = decode(&bytes(kind::CLOSE, role::SERVER, 0)).unwrap();
        assert_eq!(
            server.fingerprint,
            Fingerprint::TcpIsn {
                client: 5,
                server: 7
            }
        );
        let both = decode(&bytes(kind::OPEN, role::SIMULTANEOUS, 0)).unwrap();
        assert_eq!(
            (both.role, both.fingerprint),
            (
                Role::Server,
                Fingerprint::TcpIsn {
                    client: 5,
                    server: 7
                }
            )
        );
        assert_eq!(simultaneous((5, 1), (7, 1)), Role::Client);
    }

    #[test]
    fn failures_are_told_apart() {
        for (error, state) in [
            (0, HalfState::Aborted),
            (110, HalfState::TimedOut),
            (111, HalfState::Refused),
            (113, HalfState::Refused),
        ] {
            let event = decode(&bytes(kind::FAILED, role::CLIENT, error)).unwrap();
            assert_eq!(
                (event.state, event.fingerprint),
                (state, Fingerprint::Unknown)
            );
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        assert_eq!(decode(&[0; 7]), Err(DecodeError::Length(7)));
        assert_eq!(
            decode(&bytes(9, role::CLIENT, 0)),
            Err(DecodeError::Kind(9))
        );
        assert_eq!(decode(&bytes(kind::OPEN, 0, 0)), Err(DecodeError::Role(0)));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }
}
