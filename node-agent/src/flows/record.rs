//! Bytes of a kernel record about flows to what it says. Pure; the bytes may be of a program that is older than this one.

use std::mem::{offset_of, size_of};

use weft_agent_common::{
    FlowEnd, FlowFirst, FlowKey, FlowState, SNAP_LEN, SocketOwner, direction, flow_kind,
};

/// What one record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlowEvent {
    /// The first datagram in a direction.
    First {
        /// Which flow.
        key: FlowKey,
        /// Its counters, this datagram included.
        state: FlowState,
        /// One of [`direction`].
        way: u8,
        /// Payload bytes.
        length: u32,
        /// How they begin.
        snap: Vec<u8>,
    },
    /// A flow is over.
    End {
        /// Which.
        key: FlowKey,
        /// Its final counters.
        state: FlowState,
        /// When its socket was released; `None` when it was idle too long.
        released_ns: Option<u64>,
    },
    /// A socket is gone, and with it every flow it has.
    Release {
        /// Which socket.
        cookie: u64,
        /// When.
        at_ns: u64,
    },
}

/// Why bytes are no record about flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowRecordError {
    /// Of a length that its kind does not have.
    #[error("a flow record of kind {0} with {1} bytes")]
    Length(u8, usize),
    /// No such kind.
    #[error("unknown kind {0} of flow record")]
    Kind(u8),
    /// Not a direction.
    #[error("unknown direction {0}")]
    Direction(u8),
}

/// Whether bytes are a record of this module, and not one about connections.
pub fn is_flow_record(bytes: &[u8]) -> bool {
    bytes
        .first()
        .is_some_and(|kind| (flow_kind::FIRST..=flow_kind::RELEASE).contains(kind))
}

/// Decodes one record.
pub fn decode(bytes: &[u8]) -> Result<FlowEvent, FlowRecordError> {
    let kind = bytes.first().copied().unwrap_or_default();
    let length = |expected: usize| {
        (bytes.len() == expected)
            .then_some(())
            .ok_or(FlowRecordError::Length(kind, bytes.len()))
    };
    match kind {
        flow_kind::FIRST => {
            length(size_of::<FlowFirst>())?;
            first(bytes)
        }
        flow_kind::END | flow_kind::RELEASE => {
            length(size_of::<FlowEnd>())?;
            Ok(end(bytes, kind))
        }
        other => Err(FlowRecordError::Kind(other)),
    }
}

fn first(bytes: &[u8]) -> Result<FlowEvent, FlowRecordError> {
    let way = bytes[offset_of!(FlowFirst, direction)];
    if !matches!(way, direction::SENT | direction::RECEIVED) {
        return Err(FlowRecordError::Direction(way));
    }
    let captured = usize::from(u16_at(bytes, offset_of!(FlowFirst, captured))).min(SNAP_LEN);
    Ok(FlowEvent::First {
        key: key(bytes, offset_of!(FlowFirst, key)),
        state: state(bytes, offset_of!(FlowFirst, state)),
        way,
        length: u32_at(bytes, offset_of!(FlowFirst, length)),
        snap: bytes[offset_of!(FlowFirst, snap)..][..captured].to_vec(),
    })
}

fn end(bytes: &[u8], kind: u8) -> FlowEvent {
    let key = key(bytes, offset_of!(FlowEnd, key));
    let at_ns = u64_at(bytes, offset_of!(FlowEnd, at_ns));
    if kind == flow_kind::RELEASE {
        return FlowEvent::Release {
            cookie: key.cookie,
            at_ns,
        };
    }
    FlowEvent::End {
        key,
        state: state(bytes, offset_of!(FlowEnd, state)),
        released_ns: (bytes[offset_of!(FlowEnd, released)] != 0).then_some(at_ns),
    }
}

fn key(bytes: &[u8], at: usize) -> FlowKey {
    FlowKey {
        cookie: u64_at(bytes, at + offset_of!(FlowKey, cookie)),
        remote: array(bytes, at + offset_of!(FlowKey, remote)),
        local: array(bytes, at + offset_of!(FlowKey, local)),
        remote_port: u16_at(bytes, at + offset_of!(FlowKey, remote_port)),
        local_port: u16_at(bytes, at + offset_of!(FlowKey, local_port)),
        zero: 0,
    }
}

fn state(bytes: &[u8], at: usize) -> FlowState {
    let long = |field: usize| u64_at(bytes, at + field);
    FlowState {
        opened_ns: long(offset_of!(FlowState, opened_ns)),
        last_ns: long(offset_of!(FlowState, last_ns)),
        bytes_sent: long(offset_of!(FlowState, bytes_sent)),
        bytes_received: long(offset_of!(FlowState, bytes_received)),
        packets_sent: long(offset_of!(FlowState, packets_sent)),
        packets_received: long(offset_of!(FlowState, packets_received)),
        owner: owner(bytes, at + offset_of!(FlowState, owner)),
        opened_by: bytes[at + offset_of!(FlowState, opened_by)],
        seen: bytes[at + offset_of!(FlowState, seen)],
        lost: bytes[at + offset_of!(FlowState, lost)],
        dns: bytes[at + offset_of!(FlowState, dns)],
        zero: 0,
    }
}

fn owner(bytes: &[u8], at: usize) -> SocketOwner {
    SocketOwner {
        cgroup: u64_at(bytes, at + offset_of!(SocketOwner, cgroup)),
        pid: u32_at(bytes, at + offset_of!(SocketOwner, pid)),
        uid: u32_at(bytes, at + offset_of!(SocketOwner, uid)),
        comm: array(bytes, at + offset_of!(SocketOwner, comm)),
        netns: u32_at(bytes, at + offset_of!(SocketOwner, netns)),
        origin: u32_at(bytes, at + offset_of!(SocketOwner, origin)),
    }
}

/// The bytes at a place; callers have checked the length of the whole.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_where_the_kernel_puts_them() {
        let mut bytes = vec![0; size_of::<FlowFirst>()];
        bytes[0] = flow_kind::FIRST;
        bytes[1] = direction::SENT;
        bytes[2] = 3;
        bytes[4] = 200;
        bytes[16] = 9;
        bytes[16 + 40] = 53;
        bytes[64 + 16] = 77;
        bytes[160..164].copy_from_slice(b"abcd");
        let FlowEvent::First {
            key,
            state,
            way,
            length,
            snap,
        } = decode(&bytes).unwrap()
        else {
            panic!("a first datagram");
        };
        assert_eq!((key.cookie, key.remote_port), (9, 53));
        assert_eq!((state.bytes_sent, way, length), (77, direction::SENT, 200));
        assert_eq!(snap, b"abc");
    }

    #[test]
    fn what_is_no_record_is_refused() {
        assert!(!is_flow_record(&[]) && !is_flow_record(&[1]) && is_flow_record(&[17]));
        assert_eq!(decode(&[]), Err(FlowRecordError::Kind(0)));
        assert_eq!(decode(&[16]), Err(FlowRecordError::Length(16, 1)));
        let mut bytes = vec![0; size_of::<FlowFirst>()];
        bytes[0] = flow_kind::FIRST;
        assert_eq!(decode(&bytes), Err(FlowRecordError::Direction(0)));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 15_u8..20, cut in 0_usize..3) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            let length = [bytes.len(), size_of::<FlowFirst>(), size_of::<FlowEnd>()][cut];
            bytes.resize(length, 0);
            let _ = decode(&bytes);
        }
    }
}
