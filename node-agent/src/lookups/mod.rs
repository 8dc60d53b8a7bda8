//! DNS: from the name servers' ring to lookups, and to the names of connections' peers.
//!
//! [`packet`] and [`names`] are pure, what a message says is `weft_dns`'s; this module feeds them. Packets are read without
//! giving their space back; a batch of lookups and the position behind the last packet go to the sink together; only
//! then is the space given back. A question that waits for its answer is not in any batch: where the agent dies
//! meanwhile, the answer is a lookup without its question.

pub mod packet;
pub mod names;
pub mod saved;
mod connections;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use weft_dns::stream::{Direction, Segment, Streams};
use weft_dns::{Limits, Packet as Message};
use weft_wire::batch::lookups::MAX_LOOKUPS;
use weft_wire::{Lookup, LookupBatch, LookupTransport, Owner, Protocol};

use crate::attribution::{Attribution, Host};
use crate::calls::Calls;
use crate::clock::Clock;
use crate::counters::Counters;
use crate::decode::OwnerKey;
use crate::kernel::sys::Ring;
use crate::sink::BatchSink;
use connections::Connections;
use names::{Dictionary, Names, asker};
use packet::Packet;

/// Most lookups that wait because one of them, by TCP, may still be told whose it is; with more it goes without.
const MAX_HELD: usize = 32_768;
/// Most processes whose search list is remembered; full: they are read again.
const MAX_SEARCH_LISTS: usize = 4_096;
/// Most suffixes of a search list that count (what resolvers themselves take).
const MAX_SUFFIXES: usize = 32;

/// The ring's reader, and what it makes of packets.
pub struct Lookups {
    pairs: weft_dns::Lookups<Arc<Owner>>,
    streams: Streams,
    names: Names,
    connections: Connections,
    /// Search lists by process.
    search: HashMap<u64, Arc<[String]>>,
    ports: Vec<u16>,
    boot: u64,
    /// Added to a position to make it unique over all rings there ever were.
    ring_base: u64,
    position: u64,
    /// What was handed over reaches up to here, and what was cut into batches up to there.
    flushed: u64,
    cut: u64,
    /// Rows that wait for the next batch, and batches that the sink has not taken.
    rows: Vec<(Lookup, Arc<Owner>)>,
    unsent: VecDeque<(LookupBatch, u64)>,
    packets: u64,
    /// Packets are not looked at, to stay within the limits.
    skipping: bool,
    skipped: u64,
    unreadable: u64,
    sent: u64,
}

impl Lookups {
    /// Goes on where the last agent stopped: at the later of what was given back and what the sink has. `ports` are
    /// those of name servers.
    pub fn new(boot: u64, ring: &Ring, ring_base: u64, sink: Option<u64>, ports: Vec<u16>) -> Self {
        let consumed = ring.consumed();
        let position = sink
            .and_then(|last| last.checked_sub(ring_base))
            .filter(|position| (consumed..=ring.produced()).contains(position))
            .unwrap_or(consumed);
        Self {
            pairs: weft_dns::Lookups::new(Limits::default()),
            streams: Streams::default(),
            names: Names::default(),
            connections: Connections::default(),
            search: HashMap::new(),
            ports,
            boot,
            ring_base,
            position,
            flushed: position,
            cut: position,
            rows: Vec::new(),
            unsent: VecDeque::new(),
            packets: 0,
            skipping: false,
            skipped: 0,
            unreadable: 0,
            sent: 0,
        }
    }

    /// Takes over the names of addresses that an earlier agent wrote down there, and writes down those to come.
    pub fn save_names_in(&mut self, path: &Path) {
        self.names.save_in(path, self.boot);
    }

    /// Everything recorded of connections has been read; see the module `connections`.
    pub fn caught_up(&mut self) {
        self.connections.caught_up();
    }

    /// Tells the owner of a TCP connection. It may come after the connection's packets: what stays open is reported late.
    pub fn connection(&mut self, cookie: u64, ends: [SocketAddr; 2], owner: &Arc<Owner>) {
        if ends.iter().any(|end| self.ports.contains(&end.port())) {
            self.connections.tell(cookie, owner);
        }
    }

    /// Gives lookups that were not handed over yet the owners that took the place of theirs, by address. What was handed over
    /// stays as it was said. Names that they were told count as their pod's.
    pub fn reown(&mut self, renewed: &HashMap<*const Owner, Arc<Owner>>) {
        self.connections.reown(renewed);
        self.names.regroup(renewed.values());
        let waiting = self.rows.iter_mut().map(|(_, owner)| owner);
        for owner in waiting.chain(self.pairs.owners_mut()) {
            if let Some(new) = renewed.get(&Arc::as_ptr(owner)) {
                *owner = Arc::clone(new);
            }
        }
    }

    /// Whether to skip packets: then there are no lookups, and no names, which are forgotten.
    pub fn skip(&mut self, skip: bool) {
        self.skipping = skip;
        if skip {
            self.names.forget();
            self.search = HashMap::new();
        }
    }

    /// Reads what is in the ring. Reads nothing while the sink refuses: the ring buffers. `kept` says whose a connection is that the
    /// kernel keeps.
    pub fn poll<H: Host>(
        &mut self,
        ring: &mut Ring,
        kept: &dyn Fn(u64) -> Option<OwnerKey>,
        attribution: &mut Attribution<H>,
        clock: &Clock,
        now_ns: u64,
    ) {
        let end = ring.produced();
        while self.unsent.is_empty() && self.position < end {
            let Some((bytes, next)) = ring.peek(self.position) else {
                break;
            };
            match packet::decode(bytes) {
                _ if self.skipping => self.skipped += 1,
                Ok(packet) => {
                    if packet.owner.is_none() && self.connections.is_new(packet.cookie) {
                        let told = kept(packet.cookie)
                            .map(|key| attribution.owner(&key, packet.at_ns, now_ns, clock));
                        if let Some(owner) = told {
                            self.connections.tell(packet.cookie, &owner);
                        }
                    }
                    self.packet(&packet, attribution, clock, now_ns);
                }
                Err(error) => {
                    tracing::debug!(%error, "packet skipped");
                    self.unreadable += 1;
                }
            }
            self.packets += 1;
            self.position = next;
        }
        if self.unsent.is_empty() {
            self.pairs.expire(clock.utc(now_ns));
        }
        self.collect();
    }

    fn packet<H: Host>(
        &mut self,
        packet: &Packet<'_>,
        attribution: &mut Attribution<H>,
        clock: &Clock,
        now_ns: u64,
    ) {
        let owner = match &packet.owner {
            Some(key) => attribution.owner(key, packet.at_ns, now_ns, clock),
            None => self.connections.owner(packet.cookie),
        };
        match packet.protocol {
            Protocol::Udp => {
                for (bytes, length) in packet.datagrams() {
                    self.message(packet, &owner, (bytes, length), attribution, clock);
                }
            }
            Protocol::Tcp => {
                let direction = Direction {
                    socket: packet.cookie,
                    sent: packet.sent,
                };
                let segment = Segment {
                    sequence: packet.sequence,
                    syn: packet.syn,
                    bytes: packet.payload,
                    length: packet.length,
                };
                for framed in self.streams.segment(direction, &segment) {
                    let bytes = (framed.bytes.as_slice(), framed.length);
                    if !self.message(packet, &owner, bytes, attribution, clock) {
                        // What is no message was no beginning of one.
                        self.streams.give_up(direction);
                    }
                }
                if packet.ends {
                    self.streams.close(direction);
                }
            }
        }
    }

    /// Whether it was a message.
    fn message<H: Host>(
        &mut self,
        packet: &Packet<'_>,
        owner: &Arc<Owner>,
        (bytes, length): (&[u8], u32),
        attribution: &Attribution<H>,
        clock: &Clock,
    ) -> bool {
        let process = asker(owner).process;
        let search = self.search_list(process, owner, attribution);
        self.pairs
            .packet(&Message {
                socket: packet.cookie,
                sent: packet.sent,
                transport: match packet.protocol {
                    Protocol::Udp => LookupTransport::Udp,
                    Protocol::Tcp => LookupTransport::Tcp,
                },
                local: packet.local,
                remote: packet.remote,
                at: clock.utc(packet.at_ns),
                bytes,
                length,
                owner,
                // Of unknown processes each socket is one.
                asker: if process == 0 { packet.cookie } else { process },
                search: &search,
            })
            .is_ok()
    }

    /// Where a process's resolver searches.
    fn search_list<H: Host>(
        &mut self,
        process: u64,
        owner: &Owner,
        attribution: &Attribution<H>,
    ) -> Arc<[String]> {
        if let Some(list) = self.search.get(&process) {
            return Arc::clone(list);
        }
        let text = owner
            .process
            .as_ref()
            .and_then(|process| attribution.resolver_configuration(process.pid));
        let list: Arc<[String]> = text.as_deref().map_or_else(Vec::new, search_list).into();
        if self.search.len() >= MAX_SEARCH_LISTS {
            self.search.clear();
        }
        self.search.insert(process, Arc::clone(&list));
        list
    }

    /// Takes over what was found out.
    fn collect(&mut self) {
        for learnt in self.pairs.learnt() {
            let owner = self.connections.real(&learnt.owner);
            for address in learnt.addresses {
                self.names.learn(owner, &learnt.name, address, learnt.at);
            }
        }
        let finished = self.pairs.drain().into_iter();
        self.rows
            .extend(finished.map(|finished| (finished.lookup, finished.owner)));
    }

    /// Ends everything that waits, without handing it over.
    pub fn close(&mut self) -> Vec<Lookup> {
        let ended = self.pairs.close().into_iter();
        ended.map(|finished| finished.lookup).collect()
    }

    /// Rows that wait for the next batch.
    pub fn pending(&self) -> usize {
        self.rows.len()
    }

    /// Hands over every row that is due, and gives the ring's space back. On an error nothing is lost: the same batch is
    /// offered again next time. While one of the rows may still be told its owner all wait, and their packets stay in the ring.
    pub fn flush(&mut self, ring: &Ring, sink: &mut impl BatchSink) -> io::Result<()> {
        if self.unsent.is_empty() {
            self.cut_batches();
        }
        while let Some((batch, position)) = self.unsent.front() {
            sink.append_lookups(batch, self.ring_base.saturating_add(*position))?;
            self.sent += batch.lookups.len() as u64;
            self.unsent.pop_front();
        }
        self.names.save();
        self.flushed = self.cut;
        ring.consume(self.flushed);
        Ok(())
    }

    /// All rows, in batches, unless they have to wait. Only the last carries the new position.
    fn cut_batches(&mut self) {
        // These come of connections, not of packets.
        let mut rows = self.names.hidden();
        let mut owners = self.rows.iter().map(|(_, owner)| owner);
        let held = self.rows.len() < MAX_HELD && owners.any(|it| self.connections.awaits(it));
        if !held {
            self.cut = self.position;
            let due = std::mem::take(&mut self.rows).into_iter();
            rows.extend(due.map(|(lookup, owner)| {
                let owner = Arc::clone(self.connections.real(&owner));
                (lookup, owner)
            }));
        }
        while !rows.is_empty() {
            let rest = rows.split_off(rows.len().min(MAX_LOOKUPS));
            let position = if rest.is_empty() {
                self.cut
            } else {
                self.flushed
            };
            self.unsent.push_back((batch(self.boot, rows), position));
            rows = rest;
        }
    }

    /// Brings the shared counters up to date.
    pub fn publish(&self, counters: &Counters) {
        let pairs = &self.pairs.counters;
        for (counter, value) in [
            (&counters.dns_packets, self.packets),
            (&counters.dns_packets_skipped, self.skipped),
            (&counters.dns_messages, pairs.messages),
            (
                &counters.dns_malformed,
                pairs.malformed + pairs.damaged + self.unreadable,
            ),
            (&counters.dns_other, pairs.other + pairs.overheard),
            (&counters.dns_duplicates, pairs.duplicates),
            (&counters.dns_orphans, pairs.orphans),
            (&counters.dns_questions_dropped, pairs.dropped),
            (&counters.dns_waiting, self.pairs.pending() as u64),
            (&counters.dns_streams_given_up, self.streams.given_up),
            (&counters.dns_owners_unknown, self.connections.unknown),
            (&counters.lookups, self.sent),
            (&counters.names_save_failures, self.names.unsaved()),
            (&counters.names_known, self.names.len() as u64),
            (
                &counters.names_dropped,
                self.names.evicted() + self.names.unkept,
            ),
            (&counters.connections_named, self.names.named),
        ] {
            counter.store(value, Relaxed);
        }
    }
}

/// Names the peers of a batch's rows, by what was looked up, else by what was spoken.
pub fn name_rows<'a>(
    mut lookups: Option<&mut Lookups>,
    calls: Option<&Calls>,
    rows: impl Iterator<Item = (&'a mut weft_wire::Half, &'a Arc<Owner>)>,
) -> Vec<weft_wire::PeerName> {
    let mut names = Dictionary::default();
    for (half, owner) in rows {
        let spoken = calls.and_then(|calls| calls.named(half.id));
        match (&mut lookups, spoken) {
            (Some(lookups), spoken) => lookups.names.name(half, owner, spoken, &mut names),
            (None, Some(spoken)) => names.name(half, spoken),
            (None, None) => {}
        }
    }
    names.into_names()
}

/// The suffixes in a `resolv.conf`: the last `search` or `domain` counts.
fn search_list(text: &str) -> Vec<String> {
    let mut list = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if matches!(words.next(), Some("search" | "domain")) {
            list = words
                .filter_map(weft_dns::name::normalise)
                .take(MAX_SUFFIXES)
                .collect();
        }
    }
    list
}

/// Rows to a batch: equal owners become one entry of its dictionary.
fn batch(boot: u64, rows: Vec<(Lookup, Arc<Owner>)>) -> LookupBatch {
    let mut batch = LookupBatch {
        boot,
        owners: Vec::new(),
        lookups: Vec::with_capacity(rows.len()),
    };
    let mut known: HashMap<*const Owner, u32> = HashMap::new();
    for (mut lookup, owner) in rows {
        lookup.owner = *known.entry(Arc::as_ptr(&owner)).or_insert_with(|| {
            batch.owners.push(Owner::clone(&owner));
            (batch.owners.len() - 1) as u32
        });
        batch.lookups.push(lookup);
    }
    batch
}

#[cfg(test)]
mod tests;
