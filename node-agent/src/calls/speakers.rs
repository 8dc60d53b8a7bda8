//! Who speaks on a socket, and what. Pure.
//!
//! The speaker is the first process to send or receive on it; where nobody did, the one that accepted it. So a socket
//! that was handed on (`SCM_RIGHTS`, `fork`) belongs to the process that works with it, and all others that had to do with it
//! are its sharers.

use std::collections::{HashMap, VecDeque};

use weft_wire::{Application, MAX_SHARERS, Role};

use super::decode::{Caller, SocketUse, Way};
use super::protocol::{self, Named};

/// Most sockets remembered, at some 900 bytes each while their first bytes are kept, else 200. Full: the oldest is
/// forgotten and counted; the socket hooks' word stands for it.
pub const MAX_SOCKETS: usize = 16_384;

/// See the module.
#[derive(Debug, Default)]
pub struct Speakers {
    sockets: HashMap<u64, Socket>,
    order: VecDeque<u64>,
    /// Sockets forgotten because there were too many.
    pub evictions: u64,
}

#[derive(Debug, Default)]
struct Socket {
    /// Everyone, in the order of their first use; the acceptor first.
    users: Vec<Caller>,
    /// The first who sent or received, by its place in `users`.
    speaker: Option<usize>,
    sent: Vec<u8>,
    received: Vec<u8>,
    spoken: Option<(Application, Option<Named>)>,
}

impl Speakers {
    /// Takes one use of a socket.
    pub fn apply(&mut self, call: SocketUse) {
        if !self.sockets.contains_key(&call.cookie) {
            self.make_room();
            self.order.push_back(call.cookie);
        }
        let socket = self.sockets.entry(call.cookie).or_default();
        let same = |known: &Caller| {
            (known.pid, known.started_ns) == (call.process.pid, call.process.started_ns)
        };
        let place = match socket.users.iter_mut().position(|known| same(known)) {
            Some(place) => {
                // Its name may have changed with the program it runs.
                socket.users[place] = call.process;
                Some(place)
            }
            // The speaker and as many sharers as are reported.
            None if socket.users.len() <= MAX_SHARERS => {
                socket.users.push(call.process);
                Some(socket.users.len() - 1)
            }
            None => None,
        };
        let bytes = match call.way {
            Way::Accepted => return,
            Way::Sent => &mut socket.sent,
            Way::Received => &mut socket.received,
        };
        if bytes.is_empty() && socket.spoken.is_none() {
            *bytes = call.first;
        }
        if socket.speaker.is_none() {
            socket.speaker = place;
        }
    }

    fn make_room(&mut self) {
        // The order also has sockets that were let go since.
        while self.sockets.len() >= MAX_SOCKETS {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            self.evictions += u64::from(self.sockets.remove(&oldest).is_some());
        }
    }

    /// The process that speaks on a socket.
    pub fn speaker(&self, cookie: u64) -> Option<&Caller> {
        let socket = self.sockets.get(&cookie)?;
        socket.users.get(socket.speaker.unwrap_or(0))
    }

    /// All other processes that used the socket.
    pub fn sharers(&self, cookie: u64) -> impl Iterator<Item = &Caller> {
        let socket = self.sockets.get(&cookie);
        let speaker = socket.and_then(|socket| socket.speaker).unwrap_or(0);
        socket
            .into_iter()
            .flat_map(|socket| socket.users.iter().enumerate())
            .filter(move |(place, _)| *place != speaker)
            .map(|(_, process)| process)
            .take(MAX_SHARERS)
    }

    /// What is spoken on a socket, and the name that the client called the server by. Once that is known the first bytes
    /// are let go.
    pub fn spoken(&mut self, cookie: u64, role: Role) -> (Application, Option<Named>) {
        let Some(socket) = self.sockets.get_mut(&cookie) else {
            return (Application::Unknown, None);
        };
        if let Some(known) = &socket.spoken {
            return known.clone();
        }
        let (client, server) = match role {
            Role::Client => (&socket.sent, &socket.received),
            Role::Server => (&socket.received, &socket.sent),
        };
        let found = protocol::detect(client, server);
        if found.0 != Application::Unknown {
            socket.spoken = Some(found.clone());
            socket.sent = Vec::new();
            socket.received = Vec::new();
        }
        found
    }

    /// A connection has ended.
    pub fn forget(&mut self, cookie: u64) {
        if self.sockets.remove(&cookie).is_some() && self.order.len() > 2 * MAX_SOCKETS {
            let sockets = &self.sockets;
            self.order.retain(|cookie| sockets.contains_key(cookie));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32) -> Caller {
        Caller {
            pid,
            started_ns: 1,
            ..Caller::default()
        }
    }

    fn call(cookie: u64, pid: u32, way: Way, first: &[u8]) -> SocketUse {
        SocketUse {
            cookie,
            at_ns: 0,
            way,
            process: process(pid),
            first: first.to_vec(),
        }
    }

    fn pids<'a>(processes: impl Iterator<Item = &'a Caller>) -> Vec<u32> {
        processes.map(|process| process.pid).collect()
    }

    #[test]
    fn the_process_that_works_with_a_socket_is_its_speaker() {
        let mut speakers = Speakers::default();
        assert_eq!(speakers.speaker(1), None);
        speakers.apply(call(1, 10, Way::Accepted, b""));
        assert_eq!(speakers.speaker(1).map(|process| process.pid), Some(10));
        speakers.apply(call(
            1,
            11,
            Way::Received,
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ));
        speakers.apply(call(1, 10, Way::Sent, b"HTTP/1.1 200 OK\r\n"));
        assert_eq!(speakers.speaker(1).map(|process| process.pid), Some(11));
        assert_eq!(pids(speakers.sharers(1)), [10]);
        assert_eq!(speakers.spoken(1, Role::Server).0, Application::Http1);
        assert_eq!(speakers.spoken(1, Role::Server).0, Application::Http1);
        speakers.forget(1);
        assert_eq!(speakers.speaker(1), None);
    }

    #[test]
    fn sockets_and_sharers_have_limits() {
        let mut speakers = Speakers::default();
        for pid in 0..100 {
            speakers.apply(call(1, pid, Way::Sent, b""));
        }
        assert_eq!(pids(speakers.sharers(1)).len(), MAX_SHARERS);
        for cookie in 2..MAX_SOCKETS as u64 + 3 {
            speakers.apply(call(cookie, 1, Way::Accepted, b""));
        }
        assert_eq!(
            (speakers.sockets.len(), speakers.evictions),
            (MAX_SOCKETS, 2)
        );
        assert_eq!(speakers.speaker(1), None);
    }
}
