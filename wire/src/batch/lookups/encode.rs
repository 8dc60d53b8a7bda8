//! Lookups to bytes.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use super::super::bits::write_varint;
use super::super::encode::{chosen, sorted};
use super::super::ints::{self, Written};
use super::super::outline::{self, Head};
use super::super::{BatchError, check};
use super::{LOOKUP_VERSION, MAX_RECORDS, MAX_TEXTS, flags};
use crate::codec;
use crate::frame::Kind as FrameKind;
use crate::model::{Answer, Lookup, LookupProtocol, MAX_ANSWERS, MAX_NAME_BYTES, Owner, Role, cut};

pub(super) fn encode(
    boot: u64,
    owners: &[Owner],
    lookups: &[Lookup],
) -> Result<Vec<u8>, BatchError> {
    let dictionaries = Dictionaries::of(lookups);
    check("texts", dictionaries.texts.len(), MAX_TEXTS)?;
    let used_owners = sorted(lookups.iter().map(|lookup| lookup.owner));
    let owners = chosen(owners, used_owners.iter().copied()).ok_or(BatchError::Malformed(
        "an owner that is not in the dictionary",
    ))?;
    let owners: Vec<_> = owners.into_iter().map(Owner::cut).collect();
    let owners = codec::to_bytes(FrameKind::LookupBatch, &owners)
        .map_err(|_| BatchError::Malformed("owners that cannot be encoded"))?;

    let mut plain = Vec::new();
    dictionaries.write(&mut plain);
    let columns = dictionaries.columns(lookups, &used_owners, &mut plain)?;
    let head = Head {
        version: LOOKUP_VERSION,
        rows: lookups.len(),
        boot,
    };
    let mut out = outline::begin(&head, &owners, plain, &columns)?;
    outline::end(&mut out, &columns);
    Ok(out)
}

/// What identifies a flow; the port is the one that is not the asker's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    flags: u64,
    owner: u32,
    local: IpAddr,
    resolver: IpAddr,
    port: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Question<'a> {
    name: &'a str,
    qtype: u16,
    search_of: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Record<'a> {
    Address(IpAddr),
    Alias(&'a str),
}

struct Dictionaries<'a> {
    texts: Vec<&'a str>,
    /// IPv4 first.
    addresses: Vec<IpAddr>,
    flows: Ranked<Flow>,
    questions: Ranked<Question<'a>>,
    sets: Ranked<Vec<Record<'a>>>,
}

/// Distinct keys, the most frequent first, and the index of each row's.
struct Ranked<K> {
    keys: Vec<K>,
    rows: Vec<u64>,
}

impl<K: Clone + Eq + Hash> Ranked<K> {
    fn of(keys: impl Iterator<Item = K>) -> Self {
        let mut seen: HashMap<K, usize> = HashMap::new();
        let mut counted: Vec<(usize, K)> = Vec::new();
        let first: Vec<usize> = keys
            .map(|key| {
                let index = *seen.entry(key).or_insert_with_key(|key| {
                    counted.push((0, key.clone()));
                    counted.len() - 1
                });
                counted[index].0 += 1;
                index
            })
            .collect();
        let mut order: Vec<usize> = (0..counted.len()).collect();
        order.sort_by_key(|index| usize::MAX - counted[*index].0);
        let mut rank = vec![0; counted.len()];
        for (place, index) in (0..).zip(&order) {
            rank[*index] = place;
        }
        Self {
            keys: order
                .iter()
                .map(|index| counted[*index].1.clone())
                .collect(),
            rows: first.iter().map(|index| rank[*index]).collect(),
        }
    }
}

/// The asker's port and the other one.
fn ports(lookup: &Lookup) -> (u16, u16) {
    match lookup.role {
        Role::Client => (lookup.local.port(), lookup.resolver.port()),
        Role::Server => (lookup.resolver.port(), lookup.local.port()),
    }
}

fn flow(lookup: &Lookup) -> Flow {
    let flag = |set: bool, flag: u64| if set { flag } else { 0 };
    Flow {
        flags: flag(lookup.role == Role::Server, flags::SERVER)
            | flag(lookup.protocol == LookupProtocol::Mdns, flags::MDNS)
            | (lookup.transport as u64) << flags::TRANSPORT_SHIFT
            | flag(lookup.truncated, flags::TRUNCATED),
        owner: lookup.owner,
        local: lookup.local.ip(),
        resolver: lookup.resolver.ip(),
        port: ports(lookup).1,
    }
}

fn question(lookup: &Lookup) -> Question<'_> {
    Question {
        name: cut(&lookup.name, MAX_NAME_BYTES),
        qtype: lookup.qtype,
        search_of: lookup
            .search_of
            .as_deref()
            .map(|name| cut(name, MAX_NAME_BYTES)),
    }
}

fn set(lookup: &Lookup) -> Vec<Record<'_>> {
    let record = |answer| match answer {
        &Answer::Address(address, _) => Record::Address(address),
        Answer::Alias(name) => Record::Alias(cut(name, MAX_NAME_BYTES)),
    };
    lookup
        .answers
        .iter()
        .take(MAX_ANSWERS)
        .map(record)
        .collect()
}

impl<'a> Dictionaries<'a> {
    fn of(lookups: &'a [Lookup]) -> Self {
        let flows = Ranked::of(lookups.iter().map(flow));
        let questions = Ranked::of(lookups.iter().map(question));
        let sets = Ranked::of(lookups.iter().map(set));
        let records = || sets.keys.iter().flatten();
        let aliases = records().filter_map(|record| match record {
            Record::Alias(name) => Some(*name),
            Record::Address(_) => None,
        });
        let asked = questions.keys.iter().map(|question| question.name);
        let meant = questions
            .keys
            .iter()
            .filter_map(|question| question.search_of);
        let answered = records().filter_map(|record| match record {
            Record::Address(address) => Some(*address),
            Record::Alias(_) => None,
        });
        let ends = flows
            .keys
            .iter()
            .flat_map(|flow| [flow.local, flow.resolver]);
        Self {
            texts: sorted(asked.chain(meant).chain(aliases)),
            // The order of the type: IPv4 before IPv6.
            addresses: sorted(answered.chain(ends)),
            flows,
            questions,
            sets,
        }
    }

    fn text(&self, text: &str) -> u64 {
        self.texts.partition_point(|found| *found < text) as u64
    }

    fn address(&self, address: IpAddr) -> u64 {
        self.addresses.partition_point(|found| *found < address) as u64
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_varint(out, self.texts.len() as u64);
        for text in &self.texts {
            write_varint(out, text.len() as u64);
        }
        for text in &self.texts {
            out.extend_from_slice(text.as_bytes());
        }
        let v4 = self.addresses.partition_point(IpAddr::is_ipv4);
        write_varint(out, v4 as u64);
        write_varint(out, (self.addresses.len() - v4) as u64);
        for address in &self.addresses {
            match address {
                IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
                IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
            }
        }
    }

    /// All columns in the order of the format; how long those are that have not a value for each row goes to `out`.
    fn columns(
        &self,
        lookups: &[Lookup],
        owners: &[u32],
        out: &mut Vec<u8>,
    ) -> Result<Vec<Written>, BatchError> {
        let records: Vec<u64> = self
            .sets
            .keys
            .iter()
            .flatten()
            .map(|record| match record {
                Record::Address(address) => self.address(*address) << 1,
                Record::Alias(name) => self.text(name) << 1 | 1,
            })
            .collect();
        check("records", records.len(), MAX_RECORDS)?;
        let lives = lives(lookups);
        for count in [
            self.flows.keys.len(),
            self.questions.keys.len(),
            self.sets.keys.len(),
            records.len(),
            lives.len(),
        ] {
            write_varint(out, count as u64);
        }
        let mut pairs = Vec::new();
        let mut pair =
            |first: Vec<u64>, second: Vec<u64>| pairs.push(ints::write([&first, &second]));
        let flow = |value: &dyn Fn(&Flow) -> u64| self.flows.keys.iter().map(value).collect();
        let owner = |flow: &Flow| owners.partition_point(|owner| *owner < flow.owner) as u64;
        pair(flow(&|flow| flow.flags), flow(&owner));
        pair(
            flow(&|flow| self.address(flow.local)),
            flow(&|flow| self.address(flow.resolver)),
        );
        let nothing = |count| vec![0; count];
        pair(
            flow(&|flow| u64::from(flow.port)),
            nothing(self.flows.keys.len()),
        );
        let asked =
            |value: &dyn Fn(&Question<'_>) -> u64| self.questions.keys.iter().map(value).collect();
        pair(
            asked(&|question| self.text(question.name)),
            asked(&|question| u64::from(question.qtype)),
        );
        pair(
            asked(&|question| question.search_of.map_or(0, |name| self.text(name) + 1)),
            nothing(self.questions.keys.len()),
        );
        let lengths = self.sets.keys.iter().map(|set| set.len() as u64).collect();
        pair(lengths, nothing(self.sets.keys.len()));
        let none = nothing(records.len());
        pair(records, none);
        let none = nothing(lives.len());
        pair(lives, none);

        let column = |value: &dyn Fn(&Lookup) -> u64| lookups.iter().map(value).collect::<Vec<_>>();
        let mut previous = 0;
        let asked_at = lookups.iter().map(|lookup| {
            let before = std::mem::replace(&mut previous, lookup.asked_at.0);
            lookup.asked_at.0.wrapping_sub(before) as u64
        });
        pair(
            asked_at.collect(),
            column(&|lookup| {
                lookup
                    .latency_us
                    .map_or(0, |latency| u64::from(latency) + 1)
            }),
        );
        pair(
            column(&|lookup| u64::from(lookup.id)),
            column(&|lookup| u64::from(ports(lookup).0)),
        );
        pair(self.flows.rows.clone(), self.questions.rows.clone());
        pair(
            column(&|lookup| lookup.code.map_or(0, |code| u64::from(code) + 1)),
            self.sets.rows.clone(),
        );
        pair(
            column(&|lookup| u64::from(lookup.request_bytes)),
            column(&|lookup| u64::from(lookup.response_bytes)),
        );
        pair(
            column(&|lookup| u64::from(lookup.tries)),
            column(&|lookup| {
                let travel = lookup.answers.len().min(MAX_ANSWERS) as u64;
                u64::from(lookup.answer_total).wrapping_sub(travel)
            }),
        );
        Ok(pairs)
    }
}

/// Times to live of all addresses: of a row's first as it is, then as differences to the one before.
fn lives(lookups: &[Lookup]) -> Vec<u64> {
    let mut lives = Vec::new();
    for lookup in lookups {
        let mut previous = 0;
        for answer in lookup.answers.iter().take(MAX_ANSWERS) {
            if let Answer::Address(_, life) = answer {
                lives.push(u64::from(life.wrapping_sub(previous)));
                previous = *life;
            }
        }
    }
    lives
}
