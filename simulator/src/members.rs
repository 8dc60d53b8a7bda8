//! Who is there, as federators find out: each runs the real membership, over a network that loses its messages.

use weft_mesh::membership::{Effect, Membership, Node};

use crate::core::Contact;
use crate::homes::{Incoming, name_of, number_of};
use crate::queue::Event;
use crate::scenario::{MILLI, SECOND};
use crate::world::World;

/// Who sees nobody asks again after this; who misses a known one, after three times this.
const JOIN_US: i64 = 2 * SECOND;
/// Changes of who owns what within this are told to a core together.
const GATHER_US: i64 = 200 * MILLI;

/// A message of a member, on its way.
pub(crate) struct Datagram {
    to: u16,
    bytes: Vec<u8>,
}

/// A federator's part in the membership.
#[derive(Default)]
pub(crate) struct Part {
    membership: Option<Membership>,
    /// When its next timer is due, if an event is on its way for that.
    due: Option<i64>,
    telling: bool,
}

impl World {
    /// A federator's membership begins, with its process.
    pub(crate) fn member_starts(&mut self, number: usize) {
        if !self.scenario.membership {
            return;
        }
        let run = u64::from(self.homes[number].run) << 20;
        let own = Node::new(&name_of(number), "", "192.0.2.1:7443", run);
        let seed = self.random.bits();
        self.parts[number] = Part {
            membership: Some(Membership::new(own, seed)),
            ..Part::default()
        };
        self.member_joins(number, self.homes[number].run);
    }

    /// Asks those that are known, for as long as one of them is not there.
    pub(crate) fn member_joins(&mut self, number: usize, run: u32) {
        let (now, others) = (self.queue.now(), self.homes.len());
        if self.homes[number].run != run || others < 2 {
            return;
        }
        let Some(membership) = &mut self.parts[number].membership else {
            return;
        };
        // Any of the first three is in every federator's configuration. One that is not there is asked again and again: those that
        // found only each other would stay by themselves.
        let known = self.random.below(others.min(3) as u64) as usize;
        let there = membership.up().any(|node| node.name == name_of(known));
        if !there {
            membership.join(now, &name_of(known), "192.0.2.1:7443");
        }
        let alone = membership.up().next().is_none();
        let (home, pause) = (number as u16, if alone { JOIN_US } else { 3 * JOIN_US });
        self.queue.after(pause, Event::MemberJoins { home, run });
        self.member_speaks(number);
    }

    pub(crate) fn member_due(&mut self, number: usize, run: u32) {
        if self.homes[number].run != run {
            return;
        }
        let now = self.queue.now();
        self.parts[number].due = None;
        if let Some(membership) = &mut self.parts[number].membership {
            membership.advance(now);
        }
        self.member_speaks(number);
    }

    pub(crate) fn datagram_arrives(&mut self, parcel: u32) {
        let now = self.queue.now();
        if let Some(Datagram { to, bytes }) = self.datagrams.take(parcel) {
            if let Some(membership) = &mut self.parts[usize::from(to)].membership {
                membership.received(now, &bytes);
            }
            self.member_speaks(to.into());
        }
    }

    /// Carries what a membership has to say.
    fn member_speaks(&mut self, number: usize) {
        let (now, run) = (self.queue.now(), self.homes[number].run);
        let mut told = false;
        while let Some(effect) = self.parts[number]
            .membership
            .as_mut()
            .and_then(Membership::poll)
        {
            match effect {
                Effect::Send { to, bytes } => {
                    let to = number_of(&to.name);
                    self.outcome.member_messages += 1;
                    self.outcome.member_bytes += bytes.len() as u64;
                    let lost = self.random.below(1_000_000) < self.scenario.loss_ppm;
                    if to >= self.homes.len() || lost || self.links.open_at(now, number, to) > now {
                        continue;
                    }
                    let takes = self.links.takes_us(number, to);
                    let parcel = self.datagrams.put(Datagram {
                        to: to as u16,
                        bytes,
                    });
                    self.queue.after(takes, Event::Datagram(parcel));
                }
                Effect::Owners(_) => told = true,
                Effect::Up(_) | Effect::Changed(_) | Effect::Down(_) => {}
            }
        }
        let home = number as u16;
        if told && !std::mem::replace(&mut self.parts[number].telling, true) {
            self.queue.after(GATHER_US, Event::OwnersTold { home, run });
        }
        let part = &mut self.parts[number];
        let next = part.membership.as_ref().and_then(Membership::next_timer);
        if let Some(next) = next.filter(|next| part.due.is_none_or(|due| *next < due)) {
            part.due = Some(next);
            self.queue.at(next, Event::MemberDue { home, run });
        }
    }

    /// A core hears who may own offers.
    pub(crate) fn owners_told(&mut self, number: usize, run: u32) {
        if self.homes[number].run != run {
            return;
        }
        let part = &mut self.parts[number];
        part.telling = false;
        if let Some(membership) = &part.membership {
            let owners = membership.owners().to_vec();
            self.outcome.owner_changes += 1;
            self.take_in(
                number,
                Incoming::Contact(Contact::Owners(owners), number as u16, 0),
            );
        }
    }
}
