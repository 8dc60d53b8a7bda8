//! Questions meet their answers: lookups.
//!
//! Contract. Input: [`Lookups::packet`] for every message seen, in the order of time; [`Lookups::expire`] now and then. Output:
//! [`Lookups::drain`], the lookups that ended: answered, or unanswered for [`Limits::timeout_us`]. A failed one may wait
//! [`crate::search::HOLD_US`] more, to say what was meant by it.
//!
//! An answer belongs to the question that the same socket sent to the same peer under the same id; a question sent again before
//! its answer is the same lookup with one more try. Multicast DNS has no ids, and whoever knows answers: there the
//! question alone tells.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_wire::{Answer, Lookup, LookupProtocol, LookupTransport, MAX_ANSWERS, Role, Timestamp};

use crate::message::{Data, Malformed, Message, NXDOMAIN, Question, Record};
use crate::search::{Released, Search};

/// Port of multicast DNS.
pub const MDNS_PORT: u16 = 5353;
/// Most questions that wait under one socket and id (multicast DNS has one id for all); the oldest goes.
pub const MAX_PER_ID: usize = 64;

/// What may be remembered.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most questions that wait for an answer; beyond it the oldest is dropped and counted.
    pub pending: usize,
    /// How long a question waits before it counts as unanswered.
    pub timeout_us: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pending: 16_384,
            timeout_us: 10_000_000,
        }
    }
}

/// A message as it was seen at a socket.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a, O> {
    /// Kernel socket cookie.
    pub socket: u64,
    /// Sent by this end, else received.
    pub sent: bool,
    /// How it travelled.
    pub transport: LookupTransport,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// When.
    pub at: Timestamp,
    /// The message, as far as it was captured.
    pub bytes: &'a [u8],
    /// Its length.
    pub length: u32,
    /// Whose socket it is; goes out with the lookup.
    pub owner: &'a O,
    /// The same as a number: questions of one asker explain each other.
    pub asker: u64,
    /// The asker's search list; empty when it is not known.
    pub search: &'a [String],
}

/// A lookup that ended.
#[derive(Clone, Debug)]
pub struct Finished<O> {
    /// The row; its `owner` index is for whoever makes the batch.
    pub lookup: Lookup,
    /// Whose it is.
    pub owner: O,
}

/// Addresses that an answer gave to who asked.
#[derive(Clone, Debug)]
pub struct Learnt<O> {
    /// Whose answer.
    pub owner: O,
    /// The name asked for, whatever aliases led to the addresses.
    pub name: Arc<str>,
    /// Addresses, and for how many seconds each may be kept.
    pub addresses: Vec<(IpAddr, u32)>,
    /// When.
    pub at: Timestamp,
}

/// What was seen and is no row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages read.
    pub messages: u64,
    /// What was no message.
    pub malformed: u64,
    /// Messages of which the end could not be read: cut or malformed.
    pub damaged: u64,
    /// Messages that are no questions and answers (notify, update, ...) or have no question.
    pub other: u64,
    /// Multicast questions of others, and answers that nobody here had asked for.
    pub overheard: u64,
    /// Answers to what was answered before.
    pub duplicates: u64,
    /// Answers to no question that was seen; they are rows without a latency.
    pub orphans: u64,
    /// Questions dropped because too many waited.
    pub dropped: u64,
}

/// See the module. `O` is whatever the caller knows owners by.
#[derive(Debug)]
pub struct Lookups<O> {
    limits: Limits,
    pending: BTreeMap<Key, Vec<Pending<O>>>,
    by_age: BTreeMap<u64, Key>,
    serial: u64,
    search: Search<Finished<O>>,
    finished: Vec<Finished<O>>,
    learnt: Vec<Learnt<O>>,
    /// See [`Counters`].
    pub counters: Counters,
}

/// Socket and id.
type Key = (u64, u16);

#[derive(Debug)]
struct Pending<O> {
    serial: u64,
    role: Role,
    questions: Vec<Question>,
    row: Lookup,
    owner: O,
    asker: u64,
    search: Vec<String>,
    /// It was sent several times and is answered: further answers are to be expected.
    answered: bool,
}

impl<O: Clone> Lookups<O> {
    /// Remembers nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pending: BTreeMap::new(),
            by_age: BTreeMap::new(),
            serial: 0,
            search: Search::default(),
            finished: Vec::new(),
            learnt: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Takes a message. What is none is counted.
    pub fn packet(&mut self, packet: &Packet<'_, O>) -> Result<(), Malformed> {
        let message = Message::parse(packet.bytes).inspect_err(|_| self.counters.malformed += 1)?;
        self.message(packet, &message);
        Ok(())
    }

    /// Takes a message that was read before.
    pub fn message(&mut self, packet: &Packet<'_, O>, message: &Message) {
        self.counters.messages += 1;
        self.counters.damaged += u64::from(message.damaged);
        let mdns = packet.remote.port() == MDNS_PORT || packet.local.port() == MDNS_PORT;
        if message.opcode != 0 || (message.questions.is_empty() && !(mdns && message.response)) {
            // A refusal may come without the question; its id must do.
            let refusal = message.opcode == 0 && message.response;
            if !refusal || !self.answer(packet, message, false) {
                self.counters.other += 1;
            }
            return;
        }
        match (message.response, mdns) {
            (false, true) if !packet.sent => self.counters.overheard += 1,
            (false, _) => self.question(packet, message, mdns),
            (true, true) => {
                if packet.sent || !self.multicast_answer(packet, message) {
                    self.counters.overheard += 1;
                }
            }
            (true, false) => {
                if !self.answer(packet, message, true) {
                    self.orphan(packet, message);
                }
            }
        }
    }

    /// Ends what has waited for too long.
    pub fn expire(&mut self, now: Timestamp) {
        let before = Timestamp(now.0.saturating_sub(self.limits.timeout_us));
        let after = Timestamp(now.0.saturating_add(self.limits.timeout_us));
        while let Some((serial, key)) = self.by_age.first_key_value().map(|(s, k)| (*s, *k)) {
            let asked = self.find(key, serial).map(|pending| pending.row.asked_at);
            // A clock that was set back must not keep questions for ever: those of the future go, too; but not what was asked
            // while the caller read the clock.
            if asked.is_some_and(|asked| asked > before && asked <= after) {
                break;
            }
            if let Some(pending) = self.remove(key, serial) {
                self.unanswered(pending);
            }
        }
        let mut released = Vec::new();
        self.search.due(now, &mut released);
        self.release(released);
    }

    /// Lookups that ended since the last time.
    pub fn drain(&mut self) -> Vec<Finished<O>> {
        std::mem::take(&mut self.finished)
    }

    /// Addresses learnt since the last time, in order.
    pub fn learnt(&mut self) -> Vec<Learnt<O>> {
        std::mem::take(&mut self.learnt)
    }

    /// Ends everything, as at the end of the program: what waits is unanswered so far.
    pub fn close(&mut self) -> Vec<Finished<O>> {
        self.by_age.clear();
        for pending in std::mem::take(&mut self.pending).into_values().flatten() {
            self.unanswered(pending);
        }
        let released = self.search.drain();
        self.release(released);
        self.drain()
    }

    /// The owners of everything that is not drained yet, for more may become known of them.
    pub fn owners_mut(&mut self) -> impl Iterator<Item = &mut O> {
        let waiting = self.pending.values_mut().flatten();
        let held = self.search.items_mut().chain(&mut self.finished);
        waiting
            .map(|pending| &mut pending.owner)
            .chain(held.map(|finished| &mut finished.owner))
    }

    /// Questions that wait for an answer.
    pub fn pending(&self) -> usize {
        self.by_age.len()
    }

    /// Rows that [`Lookups::drain`] would give.
    pub fn ready(&self) -> usize {
        self.finished.len()
    }

    fn question(&mut self, packet: &Packet<'_, O>, message: &Message, mdns: bool) {
        let role = if packet.sent {
            Role::Client
        } else {
            Role::Server
        };
        let key = (packet.socket, message.id);
        let again = self.pending.get_mut(&key).into_iter().flatten().find(|it| {
            !it.answered
                && it.role == role
                && it.row.resolver == packet.remote
                && it.questions == message.questions
        });
        if let Some(pending) = again {
            pending.row.tries = pending.row.tries.saturating_add(1);
            return;
        }
        if role == Role::Client && !mdns {
            let mut released = Vec::new();
            for question in &message.questions {
                self.search
                    .asked(packet.asker, &question.name, packet.search, &mut released);
            }
            self.release(released);
        }
        let row = Lookup {
            request_bytes: packet.length,
            ..row(packet, message, role)
        };
        self.insert(
            key,
            Pending {
                serial: 0,
                role,
                questions: message.questions.clone(),
                row,
                owner: packet.owner.clone(),
                asker: packet.asker,
                search: packet.search.to_vec(),
                answered: false,
            },
        );
    }

    /// Whether the answer met its question, or repeats one that did.
    fn answer(&mut self, packet: &Packet<'_, O>, message: &Message, strict: bool) -> bool {
        let role = if packet.sent {
            Role::Server
        } else {
            Role::Client
        };
        let key = (packet.socket, message.id);
        let fits = |it: &&Pending<O>| {
            it.role == role
                && it.row.resolver == packet.remote
                && (!strict || it.questions == message.questions)
        };
        let same_id = self.pending.get(&key).map_or(&[][..], Vec::as_slice);
        let serial = same_id
            .iter()
            .filter(fits)
            // The id may have been used again since.
            .min_by_key(|it| it.answered);
        let Some((serial, answered)) = serial.map(|it| (it.serial, it.answered)) else {
            return false;
        };
        if answered {
            self.counters.duplicates += 1;
            return true;
        }
        if let Some(pending) = self.remove(key, serial) {
            if pending.row.tries > 1 {
                self.expect_duplicates(key, &pending, packet.at);
            }
            self.answered(packet, message, pending);
        }
        true
    }

    /// Whether a multicast answer was waited for. It need not repeat the question.
    fn multicast_answer(&mut self, packet: &Packet<'_, O>, message: &Message) -> bool {
        let key = (packet.socket, message.id);
        let answers = |question: &Question| {
            message
                .answers
                .iter()
                .any(|record| record.name == question.name)
        };
        let serials: Vec<u64> = self
            .pending
            .get(&key)
            .into_iter()
            .flatten()
            .filter(|it| it.role == Role::Client && it.questions.iter().any(answers))
            .map(|it| it.serial)
            .collect();
        for serial in &serials {
            if let Some(pending) = self.remove(key, *serial) {
                self.answered(packet, message, pending);
            }
        }
        !serials.is_empty()
    }

    /// An answer to a question that was not seen: the agent came late, or the question was lost.
    fn orphan(&mut self, packet: &Packet<'_, O>, message: &Message) {
        self.counters.orphans += 1;
        let role = if packet.sent {
            Role::Server
        } else {
            Role::Client
        };
        let pending = Pending {
            serial: 0,
            role,
            questions: message.questions.clone(),
            row: row(packet, message, role),
            owner: packet.owner.clone(),
            asker: packet.asker,
            search: packet.search.to_vec(),
            answered: false,
        };
        self.end(packet, message, pending, None);
    }

    fn answered(&mut self, packet: &Packet<'_, O>, message: &Message, pending: Pending<O>) {
        let waited = packet.at.0.saturating_sub(pending.row.asked_at.0);
        let latency = u32::try_from(waited.max(0)).unwrap_or(u32::MAX);
        self.end(packet, message, pending, Some(latency));
    }

    /// One row for each question.
    fn end(
        &mut self,
        packet: &Packet<'_, O>,
        message: &Message,
        pending: Pending<O>,
        latency_us: Option<u32>,
    ) {
        for question in &pending.questions {
            let records: Vec<&Record> = if pending.row.protocol == LookupProtocol::Mdns {
                let about = |record: &&Record| record.name == question.name;
                message.answers.iter().filter(about).collect()
            } else {
                message.answers_to(question)
            };
            let alone = pending.questions.len() == 1 && pending.row.protocol == LookupProtocol::Dns;
            let lookup = Lookup {
                latency_us,
                name: question.name.clone(),
                qtype: question.qtype,
                code: Some(message.code),
                truncated: message.flags.truncated,
                answers: records
                    .iter()
                    .take(MAX_ANSWERS)
                    .map(|r| answer(r))
                    .collect(),
                answer_total: if alone {
                    message.answer_total
                } else {
                    u16::try_from(records.len()).unwrap_or(u16::MAX)
                },
                response_bytes: packet.length,
                ..pending.row.clone()
            };
            if pending.role == Role::Client {
                self.learn(packet, &pending.owner, &question.name, &records);
            }
            self.finish(&pending, lookup, packet.at);
        }
    }

    fn learn(&mut self, packet: &Packet<'_, O>, owner: &O, name: &str, records: &[&Record]) {
        let addresses: Vec<(IpAddr, u32)> = records
            .iter()
            .filter_map(|record| match record.data {
                Data::Address(address) => Some((address, record.ttl)),
                _ => None,
            })
            .collect();
        if !addresses.is_empty() {
            self.learnt.push(Learnt {
                owner: owner.clone(),
                name: name.into(),
                addresses,
                at: packet.at,
            });
        }
    }

    fn unanswered(&mut self, pending: Pending<O>) {
        if pending.answered {
            return;
        }
        for question in &pending.questions {
            let lookup = Lookup {
                name: question.name.clone(),
                qtype: question.qtype,
                ..pending.row.clone()
            };
            self.finished.push(Finished {
                lookup,
                owner: pending.owner.clone(),
            });
        }
    }

    fn finish(&mut self, pending: &Pending<O>, lookup: Lookup, at: Timestamp) {
        let failed = lookup.code == Some(NXDOMAIN)
            && lookup.role == Role::Client
            && lookup.protocol == LookupProtocol::Dns;
        let name = lookup.name.clone();
        let finished = Finished {
            lookup,
            owner: pending.owner.clone(),
        };
        if failed {
            let mut released = Vec::new();
            let (asker, search) = (pending.asker, &pending.search);
            self.search
                .failed(asker, &name, search, at, finished, &mut released);
            self.release(released);
        } else {
            self.finished.push(finished);
        }
    }

    fn release(&mut self, released: Vec<Released<Finished<O>>>) {
        for (mut finished, meant) in released {
            finished.lookup.search_of = meant;
            self.finished.push(finished);
        }
    }

    /// Of a question sent several times, every copy may be answered.
    fn expect_duplicates(&mut self, key: Key, pending: &Pending<O>, at: Timestamp) {
        let expected = Pending {
            serial: 0,
            role: pending.role,
            questions: pending.questions.clone(),
            row: Lookup {
                asked_at: at,
                ..pending.row.clone()
            },
            owner: pending.owner.clone(),
            asker: pending.asker,
            search: Vec::new(),
            answered: true,
        };
        self.insert(key, expected);
    }

    fn insert(&mut self, key: Key, mut pending: Pending<O>) {
        self.serial += 1;
        pending.serial = self.serial;
        self.by_age.insert(self.serial, key);
        let same_id = self.pending.entry(key).or_default();
        same_id.push(pending);
        let oldest = if same_id.len() > MAX_PER_ID {
            Some((same_id[0].serial, key))
        } else if self.by_age.len() > self.limits.pending {
            self.by_age.first_key_value().map(|(s, k)| (*s, *k))
        } else {
            None
        };
        let dropped = oldest.and_then(|(serial, key)| self.remove(key, serial));
        self.counters.dropped += u64::from(dropped.is_some_and(|pending| !pending.answered));
    }

    fn find(&self, key: Key, serial: u64) -> Option<&Pending<O>> {
        self.pending
            .get(&key)?
            .iter()
            .find(|it| it.serial == serial)
    }

    fn remove(&mut self, key: Key, serial: u64) -> Option<Pending<O>> {
        self.by_age.remove(&serial);
        let same_id = self.pending.get_mut(&key)?;
        let at = same_id.iter().position(|it| it.serial == serial)?;
        let pending = same_id.remove(at);
        if same_id.is_empty() {
            self.pending.remove(&key);
        }
        Some(pending)
    }
}

fn row<O>(packet: &Packet<'_, O>, message: &Message, role: Role) -> Lookup {
    let mdns = packet.remote.port() == MDNS_PORT || packet.local.port() == MDNS_PORT;
    Lookup {
        protocol: if mdns {
            LookupProtocol::Mdns
        } else {
            LookupProtocol::Dns
        },
        transport: packet.transport,
        role,
        local: packet.local,
        resolver: packet.remote,
        asked_at: packet.at,
        id: message.id,
        ..Lookup::default()
    }
}

fn answer(record: &Record) -> Answer {
    match &record.data {
        Data::Address(address) => Answer::Address(*address, record.ttl),
        Data::Alias(name) | Data::Target(name) => Answer::Alias(name.clone()),
    }
}
