//! Bytes of a call record to what it says. Pure.

use std::mem::{offset_of, size_of};

use weft_agent_common::COMM_LEN;
use weft_agent_common::calls::{
    ARGUMENT_BYTES, EXECUTABLE_BYTES, FIRST_BYTES, ProcessCall, SocketCall, call_kind,
};

/// A process, as the kernel names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Process id (of the thread group).
    pub pid: u32,
    /// When it started, in nanoseconds since boot, sleep included: with the pid, unique.
    pub started_ns: u64,
    /// User.
    pub uid: u32,
    /// Parent.
    pub parent: u32,
    /// cgroup v2 id.
    pub cgroup: u64,
    /// Name, NUL-padded.
    pub comm: [u8; COMM_LEN],
}

/// How a process uses a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It accepted it.
    Accepted,
    /// It sent on it.
    Sent,
    /// It received on it.
    Received,
}

/// A process uses a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketUse {
    /// Socket cookie.
    pub cookie: u64,
    /// Monotonic time.
    pub at_ns: u64,
    /// How.
    pub way: Way,
    /// Who.
    pub process: Caller,
    /// The first bytes.
    pub first: Vec<u8>,
}

/// A process begins to run a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Who.
    pub process: Caller,
    /// Its parent's name.
    pub parent_comm: [u8; COMM_LEN],
    /// The program as it was asked for: perhaps not from the root, perhaps a script.
    pub executable: String,
    /// Its arguments, each ended by NUL, with every secret in them.
    pub arguments: Vec<u8>,
}

/// A process is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Who.
    pub process: Caller,
    /// As `wait` would say.
    pub exit_code: u32,
}

/// What one record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A process uses a socket.
    Socket(SocketUse),
    /// A process begins.
    Begun(Begun),
    /// A process ends.
    Ended(Ended),
}

/// Why bytes are no call record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Too short for its kind, or a length that leads beyond it.
    #[error("{0} bytes are too few")]
    Length(usize),
    /// A kind that does not exist.
    #[error("no such kind: {0}")]
    Kind(u8),
}

/// Reads a record.
pub fn decode(bytes: &[u8]) -> Result<Call, Malformed> {
    let short = Malformed::Length(bytes.len());
    match *bytes.first().ok_or(short)? {
        kind @ (call_kind::ACCEPTED | call_kind::SENT | call_kind::RECEIVED) => {
            socket(kind, bytes).ok_or(short).map(Call::Socket)
        }
        call_kind::EXECUTED => begun(bytes).ok_or(short).map(Call::Begun),
        call_kind::EXITED => ended(bytes).ok_or(short).map(Call::Ended),
        other => Err(Malformed::Kind(other)),
    }
}

fn socket(kind: u8, bytes: &[u8]) -> Option<SocketUse> {
    let bytes = bytes.get(..size_of::<SocketCall>())?;
    let length = usize::from(short(bytes, offset_of!(SocketCall, length))?);
    let first = bytes.get(offset_of!(SocketCall, first)..)?;
    Some(SocketUse {
        cookie: long(bytes, offset_of!(SocketCall, cookie))?,
        at_ns: long(bytes, offset_of!(SocketCall, at_ns))?,
        way: match kind {
            call_kind::ACCEPTED => Way::Accepted,
            call_kind::SENT => Way::Sent,
            _ => Way::Received,
        },
        process: Caller {
            pid: word(bytes, offset_of!(SocketCall, pid))?,
            started_ns: long(bytes, offset_of!(SocketCall, started_ns))?,
            uid: word(bytes, offset_of!(SocketCall, uid))?,
            parent: word(bytes, offset_of!(SocketCall, parent))?,
            cgroup: long(bytes, offset_of!(SocketCall, cgroup))?,
            comm: comm(bytes, offset_of!(SocketCall, comm))?,
        },
        first: first.get(..FIRST_BYTES)?.get(..length)?.to_vec(),
    })
}

fn begun(bytes: &[u8]) -> Option<Begun> {
    let bytes = bytes.get(..size_of::<ProcessCall>())?;
    let length = |at: usize| short(bytes, at).map(usize::from);
    let executable = bytes
        .get(offset_of!(ProcessCall, executable)..)?
        .get(..EXECUTABLE_BYTES)?;
    let executable = executable.get(..length(offset_of!(ProcessCall, executable_length))?)?;
    let arguments = bytes
        .get(offset_of!(ProcessCall, arguments)..)?
        .get(..ARGUMENT_BYTES)?;
    let arguments = arguments.get(..length(offset_of!(ProcessCall, arguments_length))?)?;
    Some(Begun {
        process: process(bytes)?,
        parent_comm: comm(bytes, offset_of!(ProcessCall, parent_comm))?,
        executable: String::from_utf8_lossy(executable).into_owned(),
        arguments: arguments.to_vec(),
    })
}

fn ended(bytes: &[u8]) -> Option<Ended> {
    let bytes = bytes.get(..size_of::<ProcessCall>())?;
    Some(Ended {
        process: process(bytes)?,
        exit_code: word(bytes, offset_of!(ProcessCall, exit_code))?,
    })
}

fn process(bytes: &[u8]) -> Option<Caller> {
    Some(Caller {
        pid: word(bytes, offset_of!(ProcessCall, pid))?,
        started_ns: long(bytes, offset_of!(ProcessCall, started_ns))?,
        uid: word(bytes, offset_of!(ProcessCall, uid))?,
        parent: word(bytes, offset_of!(ProcessCall, parent))?,
        cgroup: long(bytes, offset_of!(ProcessCall, cgroup))?,
        comm: comm(bytes, offset_of!(ProcessCall, comm))?,
    })
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn comm(bytes: &[u8], at: usize) -> Option<[u8; COMM_LEN]> {
    bytes.get(at..at + COMM_LEN)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> Vec<u8> {
        let mut bytes = vec![0; size_of::<ProcessCall>()];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &[call_kind::EXECUTED]);
        put(
            offset_of!(ProcessCall, executable_length),
            &9_u16.to_le_bytes(),
        );
        put(
            offset_of!(ProcessCall, arguments_length),
            &12_u16.to_le_bytes(),
        );
        put(offset_of!(ProcessCall, pid), &77_u32.to_le_bytes());
        put(offset_of!(ProcessCall, started_ns), &5_u64.to_le_bytes());
        put(offset_of!(ProcessCall, comm), b"true");
        put(offset_of!(ProcessCall, executable), b"/bin/true~~~");
        put(offset_of!(ProcessCall, arguments), b"true\0--help\0~~~");
        bytes
    }

    #[test]
    fn a_program_is_read() {
        let Ok(Call::Begun(begun)) = decode(&record()) else {
            panic!("no program");
        };
        assert_eq!(begun.executable, "/bin/true");
        assert_eq!(begun.arguments, b"true\0--help\0");
        assert_eq!((begun.process.pid, begun.process.started_ns), (77, 5));
        assert_eq!(begun.process.comm, *b"true\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn a_length_beyond_the_record_is_no_record() {
        let mut bytes = record();
        bytes[offset_of!(ProcessCall, arguments_length)..][..2]
            .copy_from_slice(&513_u16.to_le_bytes());
        assert_eq!(decode(&bytes), Err(Malformed::Length(bytes.len())));
        assert_eq!(decode(&[9]), Err(Malformed::Kind(9)));
        assert_eq!(decode(&[]), Err(Malformed::Length(0)));
    }

    proptest! {
        #[test]
        fn any_bytes_do_no_harm(kind in 0_u8..8, bytes in prop::collection::vec(any::<u8>(), 0..900)) {
            let _ = decode(&[&[kind], &bytes[..]].concat());
        }
    }
}
