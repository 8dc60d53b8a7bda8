//! Messages that may be lost: one QUIC datagram each.

use bytes::Bytes;

use super::{Session, closed};
use crate::error::TransportError;

/// Bytes of datagrams that wait to be read in one session; beyond it QUIC drops the oldest.
pub const DATAGRAM_BUFFER_BYTES: usize = 64 << 10;

impl Session {
    /// Whether the peer takes datagrams: programs of releases before those had any do not, nor know what goes in their place.
    pub fn takes_datagrams(&self) -> bool {
        self.inner.connection.max_datagram_size().is_some()
    }

    /// Sends a message that may be lost; `false` when it does not fit into one datagram, or the peer takes none.
    pub fn send_datagram(&self, message: &[u8]) -> bool {
        let fits = self.inner.connection.max_datagram_size();
        fits.is_some_and(|most| message.len() <= most)
            && self
                .inner
                .connection
                .send_datagram(Bytes::copy_from_slice(message))
                .is_ok()
    }

    /// Waits for a message that may have been lost.
    pub async fn recv_datagram(&self) -> Result<Vec<u8>, TransportError> {
        let message = self.inner.connection.read_datagram().await;
        message.map(|bytes| bytes.to_vec()).map_err(closed)
    }
}
