//! Sessions between federators: each dials every other, says what it has to say on its own session, in order, and dials
//! again when that is lost.

use weft_wire::codec;
use weft_wire::control::PeerMessage;
use weft_wire::frame::Kind;

use crate::core::Contact;
use crate::homes::{Incoming, name_of};
use crate::queue::Event;
use crate::scenario::{MILLI, SECOND};
use crate::world::World;

/// A session without a sign of life for so long is dead.
const IDLE_US: i64 = 10 * SECOND;
/// Between two attempts to dial, at most.
const BACK_OFF_US: u64 = 2 * SECOND as u64;
/// All first sessions come up within this.
const FIRST_US: u64 = 2 * SECOND as u64;
/// A frame's length and kind.
const FRAME_BYTES: u64 = 5;

/// One federator's own session to another.
#[derive(Clone, Copy, Default)]
pub(crate) struct Session {
    /// Counts up; 0 before the first.
    number: u32,
    /// Which of them the dialler's core knows.
    known: u32,
    /// It stands, as far as anyone knows.
    up: bool,
    /// The other side is gone, and the dialler has not noticed.
    dead: bool,
    /// Nothing comes before what was sent earlier.
    clear_at: i64,
    acks_clear_at: i64,
}

/// A message on its way.
pub(crate) struct Parcel {
    from: u16,
    to: u16,
    number: u32,
    seq: u64,
    message: PeerMessage,
}

impl World {
    fn session(&mut self, from: usize, to: usize) -> &mut Session {
        let federators = self.homes.len();
        &mut self.sessions[from * federators + to]
    }

    /// A federator that has started dials all others.
    pub(crate) fn dial_all(&mut self, from: usize) {
        for to in (0..self.homes.len()).filter(|to| *to != from) {
            let pause = self.random.below(FIRST_US) as i64;
            self.dial_after(from, to, pause);
        }
    }

    fn dial_after(&mut self, from: usize, to: usize, pause: i64) {
        let run = self.homes[from].run;
        let event = Event::Dial {
            from: from as u16,
            to: to as u16,
            run,
        };
        self.queue.after(pause, event);
    }

    pub(crate) fn dial(&mut self, from: usize, to: usize, run: u32) {
        if self.homes[from].run != run || self.session(from, to).up {
            return;
        }
        let now = self.queue.now();
        let open_at = self.links.open_at(now, from, to);
        let pause = 100 * MILLI + self.random.below(BACK_OFF_US) as i64;
        if open_at > now || !self.homes[to].is_up() {
            // Nothing is gained by trying while it cannot succeed.
            return self.dial_after(from, to, open_at - now + pause);
        }
        let takes = self.links.takes_us(from, to);
        let session = self.session(from, to);
        session.number += 1;
        session.up = true;
        session.dead = false;
        session.clear_at = 0;
        session.acks_clear_at = 0;
        let (number, from, to) = (session.number, from as u16, to as u16);
        self.queue
            .after(takes, Event::Accepted { from, to, number });
    }

    pub(crate) fn accepted(&mut self, from: usize, to: usize, number: u32) {
        let session = *self.session(from, to);
        if session.number != number || !session.up {
            return;
        }
        if !self.homes[to].is_up() {
            self.session(from, to).up = false;
            let pause = self.random.below(BACK_OFF_US) as i64;
            return self.dial_after(from, to, pause);
        }
        let instance = u64::from(self.homes[from].run);
        let contact = Contact::PeerUp {
            peer: name_of(from),
            instance,
        };
        self.take_in(to, Incoming::Contact(contact, from as u16, number));
        let takes = self.links.takes_us(to, from);
        self.queue.after(
            takes,
            Event::Established {
                from: from as u16,
                to: to as u16,
                number,
            },
        );
    }

    pub(crate) fn established(&mut self, from: usize, to: usize, number: u32) {
        let session = *self.session(from, to);
        if session.number == number && session.up {
            let instance = u64::from(self.homes[to].run);
            let contact = Contact::Up {
                peer: name_of(to),
                instance,
            };
            self.take_in(from, Incoming::Contact(contact, to as u16, number));
        }
    }

    /// A federator's core is told of its session: what it says from here on is for this one.
    pub(crate) fn session_known(&mut self, from: usize, to: usize, number: u32) {
        self.session(from, to).known = number;
    }

    /// Sends what a core says.
    pub(crate) fn send(&mut self, from: usize, to: usize, seq: u64, message: PeerMessage) {
        let session = *self.session(from, to);
        if !session.up || session.number != session.known {
            return;
        }
        let Some((to, message)) = self.tamper(from, to, seq, message) else {
            return;
        };
        let bytes =
            codec::to_bytes(Kind::PeerMessages, &message).map_or(0, |bytes| bytes.len() as u64);
        self.outcome.sent(&message, bytes + FRAME_BYTES + 8);
        let now = self.queue.now();
        let open_at = self.links.open_at(now, from, to);
        let takes = self.links.takes_us(from, to);
        let session = self.session(from, to);
        let number = session.number;
        let at = (open_at + takes).max(session.clear_at);
        session.clear_at = at;
        let parcel = self.parcels.put(Parcel {
            from: from as u16,
            to: to as u16,
            number,
            seq,
            message,
        });
        self.queue.at(at, Event::Message(parcel));
    }

    pub(crate) fn message_arrives(&mut self, parcel: u32) {
        let Some(Parcel {
            from,
            to,
            number,
            seq,
            message,
        }) = self.parcels.take(parcel)
        else {
            return;
        };
        let session = *self.session(from.into(), to.into());
        if session.number != number || !session.up || session.dead {
            return;
        }
        if self.broken(crate::Breakage::CardAcknowledgedEarly)
            && matches!(message, PeerMessage::Cards(_))
        {
            self.acknowledge(to.into(), from.into(), number, seq);
        }
        self.take_in(
            to.into(),
            Incoming::Peer {
                from,
                number,
                seq,
                message,
            },
        );
    }

    /// Tells a peer what of its session is durable.
    pub(crate) fn acknowledge(&mut self, by: usize, from: usize, number: u32, seq: u64) {
        let session = *self.session(from, by);
        if session.number != number || !session.up {
            return;
        }
        self.outcome.acknowledgements += 1;
        let seq = if self.broken(crate::Breakage::AcknowledgedTooMuch) {
            seq + 3
        } else {
            seq
        };
        let now = self.queue.now();
        let open_at = self.links.open_at(now, by, from);
        let takes = self.links.takes_us(by, from);
        let session = self.session(from, by);
        let at = (open_at + takes).max(session.acks_clear_at);
        session.acks_clear_at = at;
        self.queue.at(
            at,
            Event::Acked {
                from: from as u16,
                to: by as u16,
                number,
                seq,
            },
        );
    }

    pub(crate) fn acked(&mut self, from: usize, to: usize, number: u32, seq: u64) {
        let session = *self.session(from, to);
        if session.number == number && session.up {
            let contact = Contact::Acked {
                peer: name_of(to),
                seq,
            };
            self.take_in(from, Incoming::Contact(contact, to as u16, number));
        }
    }

    /// A core gives a session up.
    pub(crate) fn redial(&mut self, from: usize, to: usize) {
        self.session(from, to).up = false;
        let pause = self.random.below(BACK_OFF_US) as i64;
        self.dial_after(from, to, pause);
    }

    /// The dialler notices that a session is dead.
    pub(crate) fn lost(&mut self, from: usize, to: usize, number: u32) {
        let session = self.session(from, to);
        if session.number != number || !session.up {
            return;
        }
        session.up = false;
        if self.homes[from].is_up() {
            let contact = Contact::Down { peer: name_of(to) };
            self.take_in(from, Incoming::Contact(contact, to as u16, number));
            let pause = self.random.below(BACK_OFF_US) as i64;
            self.dial_after(from, to, pause);
        }
    }

    /// A federator is gone: its own sessions with it; those of others when they notice.
    pub(crate) fn sessions_crash(&mut self, gone: usize) {
        for other in (0..self.homes.len()).filter(|other| *other != gone) {
            self.session(gone, other).up = false;
            self.session(other, gone).dead = true;
            self.lose_later(other, gone);
        }
    }

    /// The two cannot reach each other until then: sessions that last so long live on.
    pub(crate) fn severed(&mut self, one: usize, other: usize, until: i64) {
        if until - self.queue.now() > IDLE_US {
            self.lose_later(one, other);
            self.lose_later(other, one);
        }
    }

    fn lose_later(&mut self, from: usize, to: usize) {
        let session = *self.session(from, to);
        if session.up {
            let number = session.number;
            let pause = IDLE_US / 2 + self.random.below(IDLE_US as u64 / 2) as i64;
            self.queue.after(
                pause,
                Event::Lost {
                    from: from as u16,
                    to: to as u16,
                    number,
                },
            );
        }
    }
}
