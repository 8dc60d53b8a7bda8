//! Rows to bytes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use zstd::stream::raw::{CParameter, Encoder, InBuffer, Operation, OutBuffer};

use super::bits::write_varint;
use super::columns::Kind;
use super::ints::{self, Written};
use super::outline::{self, Head};
use super::{BATCH_VERSION, BatchError, Rows};
use crate::codec;
use crate::frame::Kind as FrameKind;
use crate::model::{
    Application, Fingerprint, Half, MAX_NAME_BYTES, Owner, PeerName, Protocol, Role, cut,
};

/// Compression level of the dictionaries: text, most of it.
const DICTIONARY_LEVEL: i32 = 3;
/// From so many rows on every plane has a compression block of its own.
const BLOCK_PER_PLANE_ROWS: usize = 1024;
/// Sequence numbers are written for all rows when at most one of so many has none.
const EVERYWHERE_ONE_IN: usize = 32;

pub(super) fn encode(rows: &Rows<'_>) -> Result<Vec<u8>, BatchError> {
    let halves = rows.halves;
    let dictionaries = Dictionaries::of(rows)?;
    let mut columns: Vec<Written> = number_columns(halves, &dictionaries.flow)
        .iter()
        .map(|[a, b]| ints::write([a, b]))
        .collect();
    columns.push(named_before(halves));
    let owners = dictionaries.owners()?;
    let head = Head {
        version: BATCH_VERSION,
        rows: halves.len(),
        boot: rows.boot,
    };
    let mut out = outline::begin(&head, &owners, dictionaries.bytes()?, &columns)?;
    write_isns(&mut out, halves);
    write_datagrams(&mut out, halves);
    outline::end(&mut out, &columns);
    Ok(out)
}

/// The columns of integers in the order of the format. Those that tend to be large together are paired. Differences
/// wrap: a negative one is a large number, and lies in a class with its like.
fn number_columns(halves: &[Half], flow: &[u16]) -> [[Vec<u64>; 2]; 6] {
    let column = |value: &dyn Fn(&Half) -> u64| halves.iter().map(value).collect::<Vec<u64>>();
    let since = |half: &Half, earlier: i64| half.seen_at.0.wrapping_sub(earlier) as u64;
    let mut previous = 0;
    let seen = halves
        .iter()
        .map(|half| since(half, std::mem::replace(&mut previous, half.seen_at.0)))
        .collect();
    // A datagram flow's cookie is random: it travels with the hashes.
    let cookie = |half: &Half| match half.protocol {
        Protocol::Tcp => half.cookie,
        Protocol::Udp => 0,
    };
    [
        [seen, column(&cookie)],
        [
            column(&|half| since(half, half.opened_at.0)),
            column(&|half| u64::from(half.rtt_us)),
        ],
        [
            column(&|half| half.bytes_sent),
            column(&|half| half.bytes_received),
        ],
        [
            column(&|half| half.packets_sent),
            column(&|half| half.packets_received),
        ],
        [
            column(&|half| half.closed_at.map_or(0, |closed| since(half, closed.0))),
            column(&|half| u64::from(half.retransmits)),
        ],
        [
            column(&|half| u64::from(ports(half).0)),
            flow.iter().map(|flow| u64::from(*flow)).collect(),
        ],
    ]
}

/// The last pair has rows with a name only, and nothing in its second column.
fn named_before(halves: &[Half]) -> Written {
    let before: Vec<u64> = halves
        .iter()
        .filter(|half| half.name > 0)
        .map(|half| u64::from(half.named_before_us))
        .collect();
    let nothing = vec![0; before.len()];
    ints::write([&before, &nothing])
}

/// The client's and the server's port.
fn ports(half: &Half) -> (u16, u16) {
    match half.role {
        Role::Client => (half.local.port(), half.remote.port()),
        Role::Server => (half.remote.port(), half.local.port()),
    }
}

/// Sequence numbers: for all rows (0 where unknown) when that is nearly as short, for its decoding is a copy; else
/// only for those that have them.
fn write_isns(out: &mut Vec<u8>, halves: &[Half]) {
    let isns = |half: &Half| match half.fingerprint {
        Fingerprint::TcpIsn { client, server } => Some((client, server)),
        Fingerprint::Unknown | Fingerprint::Datagrams(_) => None,
    };
    let known = halves.iter().filter_map(isns).count();
    let everywhere = (halves.len() - known) * EVERYWHERE_ONE_IN <= halves.len();
    out.push(u8::from(everywhere));
    let written: Vec<(u32, u32)> = match everywhere {
        true => halves
            .iter()
            .map(|half| isns(half).unwrap_or_default())
            .collect(),
        false => halves.iter().filter_map(isns).collect(),
    };
    written
        .iter()
        .for_each(|(client, _)| out.extend_from_slice(&client.to_le_bytes()));
    written
        .iter()
        .for_each(|(_, server)| out.extend_from_slice(&server.to_le_bytes()));
}

/// What of datagram flows does not compress: cookies of all that are UDP, then hashes of those that have them.
fn write_datagrams(out: &mut Vec<u8>, halves: &[Half]) {
    let udp = halves.iter().filter(|half| half.protocol == Protocol::Udp);
    udp.for_each(|half| out.extend_from_slice(&half.cookie.to_le_bytes()));
    let datagrams = || {
        halves.iter().filter_map(|half| match half.fingerprint {
            Fingerprint::Datagrams(datagrams) => Some(datagrams),
            _ => None,
        })
    };
    datagrams().for_each(|both| out.extend_from_slice(&both.client.to_le_bytes()));
    datagrams()
        .filter(|both| both.server != 0)
        .for_each(|both| out.extend_from_slice(&both.server.to_le_bytes()));
}

/// What identifies a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct FlowKey {
    kind: Kind,
    application: Application,
    owner: u32,
    local: IpAddr,
    remote: IpAddr,
    server_port: u16,
    name: u32,
}

/// A flow by indices into the dictionaries.
struct Indexed {
    kind: Kind,
    application: Application,
    owner: u16,
    local: u16,
    remote: u16,
    server_port: u16,
    name: u16,
}

struct Dictionaries<'a> {
    owners: Vec<&'a Owner>,
    names: Vec<&'a PeerName>,
    /// IPv4 first.
    addresses: Vec<IpAddr>,
    flows: Vec<Indexed>,
    /// Row: index into `flows`.
    flow: Vec<u16>,
}

impl<'a> Dictionaries<'a> {
    fn of(rows: &Rows<'a>) -> Result<Self, BatchError> {
        let (keys, flow) = by_frequency(rows.halves.iter().map(|half| FlowKey {
            kind: Kind::of(half),
            application: half.application,
            owner: half.owner,
            local: half.local.ip(),
            remote: half.remote.ip(),
            server_port: ports(half).1,
            name: half.name,
        }));
        let used_owners = sorted(keys.iter().map(|key| key.owner));
        let used_names = sorted(keys.iter().map(|key| key.name).filter(|name| *name > 0));
        // The order of the type: IPv4 before IPv6.
        let addresses = sorted(keys.iter().flat_map(|key| [key.local, key.remote]));
        // Fit: there are at most twice as many as rows, and they were all just put in.
        let address = |ip: IpAddr| addresses.partition_point(|found| *found < ip) as u16;
        let index = |key: &FlowKey| Indexed {
            kind: key.kind,
            application: key.application,
            owner: used_owners.partition_point(|found| *found < key.owner) as u16,
            local: address(key.local),
            remote: address(key.remote),
            server_port: key.server_port,
            // 0, for none, comes before all that are used.
            name: used_names.partition_point(|found| *found <= key.name) as u16,
        };
        let flows = keys.iter().map(index).collect();
        Ok(Self {
            owners: chosen(rows.owners, used_owners.iter().copied()).ok_or(
                BatchError::Malformed("an owner that is not in the dictionary"),
            )?,
            names: chosen(rows.names, used_names.iter().map(|name| name - 1)).ok_or(
                BatchError::Malformed("a name that is not in the dictionary"),
            )?,
            addresses,
            flows,
            flow,
        })
    }

    fn owners(&self) -> Result<Vec<u8>, BatchError> {
        let owners: Vec<Cow<'_, Owner>> = self.owners.iter().map(|owner| owner.cut()).collect();
        codec::to_bytes(FrameKind::HalfBatch, &owners)
            .map_err(|_| BatchError::Malformed("owners that cannot be encoded"))
    }

    fn bytes(&self) -> Result<Vec<u8>, BatchError> {
        let mut out = Vec::with_capacity(self.flows.len() * 12 + 64);
        write_varint(&mut out, self.names.len() as u64);
        for name in &self.names {
            let text = cut(&name.name, MAX_NAME_BYTES);
            out.push(name.source as u8);
            write_varint(&mut out, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
        }
        let v4 = self.addresses.partition_point(IpAddr::is_ipv4);
        write_varint(&mut out, v4 as u64);
        write_varint(&mut out, (self.addresses.len() - v4) as u64);
        for address in &self.addresses {
            match address {
                IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
                IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
            }
        }
        write_varint(&mut out, self.flows.len() as u64);
        for byte in [
            |flow: &Indexed| flow.kind.0[0],
            |flow: &Indexed| flow.kind.0[1],
            |flow: &Indexed| flow.application as u8,
        ] {
            out.extend(self.flows.iter().map(byte));
        }
        for field in [
            |flow: &Indexed| flow.owner,
            |flow: &Indexed| flow.local,
            |flow: &Indexed| flow.remote,
            |flow: &Indexed| flow.server_port,
            |flow: &Indexed| flow.name,
        ] {
            out.extend(self.flows.iter().map(|flow| field(flow) as u8));
            out.extend(self.flows.iter().map(|flow| (field(flow) >> 8) as u8));
        }
        Ok(out)
    }
}

/// Distinct values in their order.
pub(super) fn sorted<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

pub(super) fn chosen<T>(all: &[T], indices: impl Iterator<Item = u32>) -> Option<Vec<&T>> {
    indices.map(|index| all.get(index as usize)).collect()
}

/// Distinct keys, the most frequent first, and the index of each row's.
fn by_frequency(keys: impl ExactSizeIterator<Item = FlowKey>) -> (Vec<FlowKey>, Vec<u16>) {
    let mut seen: HashMap<FlowKey, usize> = HashMap::new();
    let (mut flows, mut counts) = (Vec::new(), Vec::new());
    let mut first = Vec::with_capacity(keys.len());
    for key in keys {
        let index = *seen.entry(key).or_insert_with(|| {
            flows.push(key);
            counts.push(0u32);
            flows.len() - 1
        });
        counts[index] += 1;
        first.push(index);
    }
    let mut order: Vec<usize> = (0..flows.len()).collect();
    order.sort_by_key(|index| u32::MAX - counts[*index]);
    let mut rank = vec![0u16; flows.len()];
    order
        .iter()
        .enumerate()
        .for_each(|(place, index)| rank[*index] = place as u16);
    (
        order.iter().map(|index| flows[*index]).collect(),
        first.iter().map(|index| rank[*index]).collect(),
    )
}

/// Two zstd frames, without checksum. The second, where there are any, has the planes, a block each when they are long, so that each
/// has a code table of its own; searching for repetitions in them is not worth the time that undoing it takes.
pub(super) fn compress(dictionary: &[u8], planes: &[&[u8]]) -> io::Result<Vec<u8>> {
    let mut encoder = Encoder::new(DICTIONARY_LEVEL)?;
    let mut compressed = run(&mut encoder, &[dictionary], false)?;
    if planes.is_empty() {
        return Ok(compressed);
    }
    let mut encoder = Encoder::new(1)?;
    encoder.set_parameter(CParameter::MinMatch(7))?;
    encoder.set_parameter(CParameter::HashLog(6))?;
    let blocks = planes
        .first()
        .is_some_and(|plane| plane.len() >= BLOCK_PER_PLANE_ROWS);
    compressed.append(&mut run(&mut encoder, planes, blocks)?);
    Ok(compressed)
}

fn run(encoder: &mut Encoder<'_>, parts: &[&[u8]], blocks: bool) -> io::Result<Vec<u8>> {
    let plain: usize = parts.iter().map(|part| part.len()).sum();
    // Sizes the compressor's tables, which are cleared for each batch.
    encoder.set_pledged_src_size(Some(plain as u64))?;
    // What does not compress grows by a few bytes for each block.
    let mut buffer = vec![0; plain + plain / 128 + 64 * (parts.len() + 2)];
    let mut out = OutBuffer::around(buffer.as_mut_slice());
    for part in parts {
        let mut input = InBuffer::around(part);
        while input.pos() < part.len() {
            encoder.run(&mut input, &mut out)?;
        }
        while blocks && encoder.flush(&mut out)? > 0 {}
    }
    while encoder.finish(&mut out, true)? > 0 {}
    let written = out.pos();
    buffer.truncate(written);
    Ok(buffer)
}
