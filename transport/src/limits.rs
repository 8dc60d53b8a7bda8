//! What a listener allows at most, and the sizes that hold for every session.

use std::time::Duration;

/// A session on which nothing is heard for so long is given up.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Who dialled says something so often on a quiet session: three chances within [`IDLE_TIMEOUT`]. The answer to it keeps the
/// other end's session, so who listens says nothing of its own accord.
pub const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// A handshake that takes longer is given up, on both sides.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most streams that a peer may have open at a time; it waits before it opens more.
pub const MAX_STREAMS: u32 = 64;
/// Most bytes that a peer may have on their way in one stream: a round trip of 100 ms at 40 MB/s.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Most bytes that a peer may have on their way in a session, so the most memory that it can take here for
/// what the program has not yet read.
pub const SESSION_WINDOW_BYTES: u32 = 8 << 20;
/// Most bytes kept for sending in a session, unacknowledged.
pub const SEND_WINDOW_BYTES: u64 = 8 << 20;
/// Size asked for the UDP socket's buffers; the kernel may give less (net.core.rmem_max, wmem_max).
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// What one network may have of [`Limits::handshakes`], as 1 in so many: a fleet behind one NAT still gets on, and whoever floods
/// from one place leaves the rest to others.
pub const HANDSHAKES_PART_OF_ONE: usize = 2;

/// Of [`Limits::handshakes`], so many times as many may wait for their turn, half of them of one network. A fleet that comes back
/// at once is served one after the other, and does not dial again and again.
pub const WAITING_HANDSHAKES: usize = 4;
/// Longest wait for a turn; after it a handshake is refused.
pub const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// Datagrams kept for a handshake that waits for its turn.
pub const WAITING_BYTES: u64 = 16 << 10;
/// Between two answers to datagrams of sessions that nobody knows here, as after a restart. Each answer is smaller than the datagram.
pub const RESET_INTERVAL: Duration = Duration::from_micros(200);

/// What a listener allows at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at a time; more are refused and counted. Memory: up to [`SESSION_WINDOW_BYTES`] each, for a peer that fills it.
    pub sessions: usize,
    /// Handshakes at a time; more wait for their turn, if their address is proven, or are refused and counted. From half of it
    /// on, a peer must first prove its address (a QUIC retry), so that forged addresses cannot fill it; an address (of IPv6: a
    /// /64) has half of it, and must prove itself from half of that on.
    pub handshakes: usize,
    /// Sessions of one agent or federator at a time: the one in use, those it left without a word (they last for
    /// [`IDLE_TIMEOUT`]), and a few. More are closed with `limit`.
    pub sessions_of_one: usize,
    /// Sessions of one operator or admin at a time: many programs may share a name.
    pub sessions_of_operator: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 20_480,
            handshakes: 1024,
            sessions_of_one: 8,
            sessions_of_operator: 64,
        }
    }
}
