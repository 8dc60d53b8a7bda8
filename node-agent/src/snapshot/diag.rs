//! sock_diag: the kernel's list of TCP sockets (`linux/inet_diag.h`). Pure: bytes in, bytes out.

use std::net::{IpAddr, SocketAddr};

use weft_wire::HalfState;

use crate::decode::socket;

/// TCP states of `include/net/tcp_states.h`.
pub mod state {
    /// Data flows.
    pub const ESTABLISHED: u8 = 1;
    /// Our FIN is under way.
    pub const FIN_WAIT1: u8 = 4;
    /// Our FIN was acknowledged.
    pub const FIN_WAIT2: u8 = 5;
    /// Over: only the address is kept from being used again too soon.
    pub const TIME_WAIT: u8 = 6;
    /// The peer's FIN was received.
    pub const CLOSE_WAIT: u8 = 8;
    /// Accepts connections.
    pub const LISTEN: u8 = 10;
}

const HEADER_LEN: usize = 16;
const MESSAGE_LEN: usize = 72;
const REQUEST_LEN: usize = HEADER_LEN + 56;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
/// The list changed while it was read: sockets may be missing from it.
const NLM_F_DUMP_INTR: u16 = 0x10;
const INET_DIAG_INFO: u16 = 2;
const TCP: u8 = 6;

/// A socket as listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// One of [`state`] or another TCP state.
    pub state: u8,
    /// Own end.
    pub local: SocketAddr,
    /// Other end.
    pub remote: SocketAddr,
    /// Socket cookie.
    pub cookie: u64,
    /// User.
    pub uid: u32,
    /// Inode in sockfs; 0 when no process has it any more.
    pub inode: u32,
    /// Counters; zero when the kernel gave none.
    pub info: Info,
}

/// The part of `tcp_info` that is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// Sequence numbers acknowledged: an active end's SYN and a FIN count.
    pub acked: u64,
    /// Sequence numbers received: a FIN counts.
    pub received: u64,
    /// Segments sent.
    pub segments_out: u32,
    /// Segments received.
    pub segments_in: u32,
}

impl Listed {
    /// Payload bytes sent and received, SYN and FIN taken out.
    pub fn payload(&self, active: bool) -> (u64, u64) {
        let fin_sent = u64::from(self.state == state::FIN_WAIT2);
        let fin_received = u64::from(self.state == state::CLOSE_WAIT);
        let sent = self.info.acked.saturating_sub(u64::from(active) + fin_sent);
        (sent, self.info.received.saturating_sub(fin_received))
    }

    /// How the half stands; `None` for what is no established connection.
    pub fn half_state(&self) -> Option<HalfState> {
        use state::{CLOSE_WAIT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2};
        matches!(self.state, ESTABLISHED | CLOSE_WAIT | FIN_WAIT1 | FIN_WAIT2)
            .then_some(HalfState::Open)
    }
}

/// What a datagram of the answer held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More will come.
    More,
    /// That was all.
    Done,
}

/// The answer makes no sense, or the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiagError {
    /// Truncated or misframed.
    #[error("malformed answer")]
    Malformed,
    /// Error number.
    #[error("refused, error {0}")]
    Refused(i32),
    /// The kernel's list changed while it was read.
    #[error("interrupted")]
    Interrupted,
}

/// Asks for every TCP socket of an address family (`AF_INET`, `AF_INET6`), with its counters. The answer carries the number `seq`.
pub fn request(family: u8, seq: u32) -> Vec<u8> {
    let mut bytes = header(family, NLM_F_REQUEST | NLM_F_DUMP, seq, u32::MAX);
    bytes.resize(REQUEST_LEN, 0);
    bytes
}

/// Asks for one established socket, with its counters. The answer is one message: the socket or an error.
pub fn request_one(local: SocketAddr, remote: SocketAddr, cookie: u64, seq: u32) -> Vec<u8> {
    let family = match local {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let mut bytes = header(family as u8, NLM_F_REQUEST, seq, u32::MAX);
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    for end in [local.ip(), remote.ip()] {
        let mut address = [0; 16];
        match end {
            IpAddr::V4(v4) => address[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => address.copy_from_slice(&v6.octets()),
        }
        bytes.extend(address);
    }
    bytes.extend([0; 4]);
    bytes.extend((cookie as u32).to_ne_bytes());
    bytes.extend(((cookie >> 32) as u32).to_ne_bytes());
    bytes
}

fn header(family: u8, flags: u16, seq: u32, states: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST_LEN);
    bytes.extend((REQUEST_LEN as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(seq.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    bytes.extend(states.to_ne_bytes());
    bytes
}

/// Parses a datagram of the answer to the request numbered `seq`. What answers an earlier one, whose reading was given up, is skipped.
pub fn parse(
    mut bytes: &[u8],
    seq: u32,
    mut each: impl FnMut(Listed),
) -> Result<Progress, DiagError> {
    while !bytes.is_empty() {
        let length = u32_at(bytes, 0)? as usize;
        let kind = u16_at(bytes, 4)?;
        let message = bytes.get(HEADER_LEN..length).ok_or(DiagError::Malformed)?;
        let ours = u32_at(bytes, 8)? == seq;
        if ours && u16_at(bytes, 6)? & NLM_F_DUMP_INTR != 0 {
            return Err(DiagError::Interrupted);
        }
        match kind {
            _ if !ours => {}
            NLMSG_DONE => return Ok(Progress::Done),
            NLMSG_ERROR => {
                let error = u32_at(message, 0)? as i32;
                return Err(DiagError::Refused(error.wrapping_neg()));
            }
            SOCK_DIAG_BY_FAMILY => each(listed(message)?),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Progress::More)
}

fn listed(message: &[u8]) -> Result<Listed, DiagError> {
    let head = message.get(..MESSAGE_LEN).ok_or(DiagError::Malformed)?;
    let ipv6 = i32::from(head[0]) == libc::AF_INET6;
    let end = |port: usize, at: usize| {
        let mut address = [0; 16];
        if ipv6 {
            address.copy_from_slice(&head[at..at + 16]);
        } else {
            address[10..12].copy_from_slice(&[0xff, 0xff]);
            address[12..].copy_from_slice(&head[at..at + 4]);
        }
        socket(address, u16::from_be_bytes([head[port], head[port + 1]]))
    };
    Ok(Listed {
        state: head[1],
        local: end(4, 8),
        remote: end(6, 24),
        cookie: u64::from(u32_at(head, 44)?) | u64::from(u32_at(head, 48)?) << 32,
        uid: u32_at(head, 64)?,
        inode: u32_at(head, 68)?,
        info: info(&message[MESSAGE_LEN..])?,
    })
}

fn info(mut attributes: &[u8]) -> Result<Info, DiagError> {
    while attributes.len() >= 4 {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..length).ok_or(DiagError::Malformed)?;
        // Older kernels give a shorter `tcp_info`.
        if u16_at(attributes, 2)? == INET_DIAG_INFO && value.len() >= 144 {
            return Ok(Info {
                rtt_us: u32_at(value, 68)?,
                retransmits: u32_at(value, 100)?,
                acked: u64_at(value, 120)?,
                received: u64_at(value, 128)?,
                segments_out: u32_at(value, 136)?,
                segments_in: u32_at(value, 140)?,
            });
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(Info::default())
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, DiagError> {
    let field = bytes
        .get(at..at + 2)
        .and_then(|field| field.try_into().ok())
        .ok_or(DiagError::Malformed)?;
    Ok(u16::from_ne_bytes(field))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, DiagError> {
    let field = bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok())
        .ok_or(DiagError::Malformed)?;
    Ok(u32::from_ne_bytes(field))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, DiagError> {
    Ok(u64::from(u32_at(bytes, at)?) | u64::from(u32_at(bytes, at + 4)?) << 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer() -> Vec<u8> {
        let mut message = vec![libc::AF_INET as u8, state::CLOSE_WAIT, 0, 0];
        message.extend(443_u16.to_be_bytes());
        message.extend(5000_u16.to_be_bytes());
        message.extend([10, 0, 0, 1]);
        message.extend([0; 12]);
        message.extend([10, 0, 0, 2]);
        message.extend([0; 12]);
        message.extend([0; 4]);
        message.extend(0x1_0000_0007_u64.to_ne_bytes());
        message.extend([0; 12]);
        message.extend(33_u32.to_ne_bytes());
        message.extend(77_u32.to_ne_bytes());
        message.extend(148_u16.to_ne_bytes());
        message.extend(INET_DIAG_INFO.to_ne_bytes());
        let mut info = [0; 144];
        info[120..128].copy_from_slice(&101_u64.to_ne_bytes());
        info[128..136].copy_from_slice(&51_u64.to_ne_bytes());
        message.extend(info);
        let mut bytes = ((HEADER_LEN + message.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(SEQ.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(message);
        bytes.extend(20_u32.to_ne_bytes());
        bytes.extend(NLMSG_DONE.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(SEQ.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes
    }

    const SEQ: u32 = 7;

    #[test]
    fn an_answer_to_another_request_is_skipped() {
        let mut found = 0;
        assert_eq!(
            parse(&answer(), SEQ + 1, |_| found += 1),
            Ok(Progress::More)
        );
        assert_eq!(found, 0);
    }

    #[test]
    fn a_list_that_changed_meanwhile_is_not_taken_for_whole() {
        let mut bytes = answer();
        bytes[6] |= NLM_F_DUMP_INTR as u8;
        assert_eq!(parse(&bytes, SEQ, |_| {}), Err(DiagError::Interrupted));
        assert_eq!(parse(&bytes, SEQ + 1, |_| {}), Ok(Progress::More));
    }

    #[test]
    fn one_socket_is_asked_for_by_its_ends_and_cookie() {
        let [local, remote] = ["10.0.0.1:443", "10.0.0.2:5000"].map(|end| end.parse().unwrap());
        let bytes = request_one(local, remote, 0x1_0000_0007, SEQ);
        assert_eq!((bytes.len(), bytes[6]), (REQUEST_LEN, 1));
        assert_eq!(&bytes[24..28], &[1, 187, 19, 136]);
        assert_eq!(
            (&bytes[28..32], &bytes[44..48]),
            (&[10, 0, 0, 1][..], &[10, 0, 0, 2][..])
        );
        assert_eq!(&bytes[64..72], &[7, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn a_socket_is_read_and_its_fin_is_no_byte() {
        let mut found = Vec::new();
        assert_eq!(
            parse(&answer(), SEQ, |listed| found.push(listed)),
            Ok(Progress::Done)
        );
        let [listed] = found[..] else {
            panic!("one socket")
        };
        assert_eq!(
            (listed.local, listed.remote),
            (
                "10.0.0.1:443".parse().unwrap(),
                "10.0.0.2:5000".parse().unwrap()
            )
        );
        assert_eq!(
            (listed.cookie, listed.uid, listed.inode),
            (0x1_0000_0007, 33, 77)
        );
        assert_eq!(listed.payload(true), (100, 50));
    }

    proptest! {
        #[test]
        fn damaged_answers_do_no_harm(at in 0_usize..260, value in any::<u8>(), cut in 0_usize..260) {
            let mut bytes = answer();
            let length = bytes.len();
            bytes[at % length] = value;
            bytes.truncate(length - cut % length);
            let _ = parse(&bytes, SEQ, |_| {});
        }
    }
}
