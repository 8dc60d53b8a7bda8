//! What goes wrong, and when; and what a breakage does to messages.

use weft_wire::Fingerprint;
use weft_wire::control::PeerMessage;

use crate::breakage::Breakage;
use crate::queue::Event;
use crate::scenario::{MILLI, SECOND};
use crate::world::World;

/// A federator is down for at most so long.
const DOWN_US: u64 = 15 * SECOND as u64;
/// A link is broken for at most so long.
const CUT_US: u64 = 20 * SECOND as u64;
/// An agent is without session for at most so long.
const ABSENT_US: u64 = 10 * SECOND as u64;

/// Something that goes wrong.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    Crash(usize),
    /// These many, chosen at random, are parted from the rest for so long.
    Partition {
        members: usize,
        lasts: i64,
    },
    Cut(usize, usize),
    Absence(u32),
    /// One is down for so long.
    Gone(usize, i64),
}

impl World {
    /// Decides what will go wrong.
    pub(crate) fn plan(&mut self) {
        let scenario = self.scenario.clone();
        let (federators, agents) = (scenario.federators as u64, scenario.agents as u64);
        for _ in 0..scenario.crashes {
            let fault = Fault::Crash(self.random.below(federators) as usize);
            self.some_time(fault);
        }
        for _ in 0..scenario.partitions {
            let members = 1 + self.random.below(federators) as usize / 2;
            let lasts = self.random.below(scenario.partition_us.max(1) as u64) as i64;
            self.some_time(Fault::Partition { members, lasts });
        }
        if scenario.split_percent > 0 {
            let members = (scenario.federators * scenario.split_percent / 100).max(1);
            let fault = Fault::Partition {
                members,
                lasts: scenario.partition_us,
            };
            self.faults.push(fault);
            self.split_at = scenario.load_us / 6;
            self.heal_at = self.split_at + scenario.partition_us;
            self.queue
                .at(self.split_at, Event::Fault(self.faults.len() as u32 - 1));
        }
        if scenario.gone_us > 0 {
            let fault = Fault::Gone(self.random.below(federators) as usize, scenario.gone_us);
            self.faults.push(fault);
            let number = self.faults.len() as u32 - 1;
            self.queue
                .at(30 * SECOND + scenario.load_us / 3, Event::Fault(number));
        }
        for _ in 0..scenario.cuts {
            let (one, other) = (self.random.below(federators), self.random.below(federators));
            if one != other {
                self.some_time(Fault::Cut(one as usize, other as usize));
            }
        }
        for _ in 0..scenario.absences {
            let fault = Fault::Absence(self.random.below(agents) as u32);
            self.some_time(fault);
        }
    }

    fn some_time(&mut self, fault: Fault) {
        let at = self.random.below(self.scenario.load_us.max(1) as u64) as i64;
        self.faults.push(fault);
        self.queue
            .at(at, Event::Fault(self.faults.len() as u32 - 1));
    }

    pub(crate) fn goes_wrong(&mut self, number: u32) {
        let now = self.queue.now();
        match self.faults[number as usize] {
            Fault::Crash(home) => {
                if self.homes[home].is_up() {
                    let until = now + 100 * MILLI + self.random.below(DOWN_US) as i64;
                    self.crash(home, until);
                    self.queue.at(until, Event::Repair(number));
                }
            }
            Fault::Partition { members, lasts } => {
                let mut all: Vec<usize> = (0..self.homes.len()).collect();
                for place in 0..members.min(all.len()) {
                    let rest = (all.len() - place) as u64;
                    all.swap(place, place + self.random.below(rest) as usize);
                }
                let (parted, rest) = all.split_at(members.min(all.len()));
                let until = now + lasts;
                self.links.part(parted, until);
                for one in parted {
                    rest.iter()
                        .for_each(|other| self.severed(*one, *other, until));
                }
                self.queue.at(until, Event::Repair(number));
            }
            Fault::Cut(one, other) => {
                let until = now + self.random.below(CUT_US) as i64;
                self.links.cut(one, other, until);
                self.severed(one, other, until);
                self.queue.at(until, Event::Repair(number));
            }
            Fault::Gone(home, lasts) => {
                self.crash(home, now + lasts);
                self.queue.at(now + lasts, Event::Repair(number));
            }
            Fault::Absence(agent) => {
                let until = now + self.random.below(ABSENT_US) as i64;
                self.agent_lost(agent, until);
            }
        }
    }

    pub(crate) fn goes_right(&mut self, number: u32) {
        self.links.mend(self.queue.now());
        if let Fault::Crash(home) | Fault::Gone(home, _) = self.faults[number as usize] {
            self.restart(home);
        }
    }

    /// Whether this is broken in this run.
    pub(crate) fn broken(&self, breakage: Breakage) -> bool {
        self.scenario.breakage == Some(breakage)
    }

    /// What a breakage makes of a message: another receiver, another message, or nothing.
    pub(crate) fn tamper(
        &mut self,
        from: usize,
        to: usize,
        seq: u64,
        mut message: PeerMessage,
    ) -> Option<(usize, PeerMessage)> {
        let Some(breakage) = self.scenario.breakage else {
            return Some((to, message));
        };
        match (breakage, &mut message) {
            (Breakage::FirstOffersLost, PeerMessage::Offers(_)) if seq < 3 => return None,
            (Breakage::NoticesLost, PeerMessage::Matched(_)) if self.random.below(4) == 0 => {
                return None;
            }
            (Breakage::NoticesMisdirected, PeerMessage::Matched(notices)) => {
                if let [first, .., last] = notices.as_mut_slice() {
                    std::mem::swap(&mut first.theirs, &mut last.theirs);
                }
            }
            (Breakage::LastCardsLost, PeerMessage::Cards(cards)) => {
                cards.retain(|card| !card.half.state.finished());
                if cards.is_empty() {
                    return None;
                }
            }
            (Breakage::CardsGarbled, PeerMessage::Cards(cards)) => {
                for card in cards {
                    if let Fingerprint::TcpIsn { server, .. } = &mut card.half.fingerprint {
                        *server ^= 1;
                    }
                }
            }
            (Breakage::CardsMisdirected, PeerMessage::Cards(cards)) => {
                if let [first, .., last] = cards.as_mut_slice() {
                    std::mem::swap(&mut first.yours, &mut last.yours);
                }
            }
            (Breakage::OffersMisdirected, PeerMessage::Offers(_)) if self.random.below(4) == 0 => {
                let others = self.homes.len();
                let wrong = (to + 1) % others;
                return Some((if wrong == from { to } else { wrong }, message));
            }
            _ => {}
        }
        Some((to, message))
    }
}
