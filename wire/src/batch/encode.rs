//! Rows to bytes.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use zstd::stream::raw::{CParameter, Encoder, InBuffer, Operation, OutBuffer};

use super::bits::{SLACK_BYTES, write_varint, zigzag};
use super::columns::Kind;
use super::ints::{self, Written};
use super::{BATCH_VERSION, BatchError, MAX_PLAIN_BYTES, check};
use crate::codec;
use crate::frame::Kind as FrameKind;
use crate::model::{Fingerprint, Half, Owner, Role};

/// Compression level of the dictionaries: text, most of it.
const DICTIONARY_LEVEL: i32 = 3;
/// From so many rows on every plane has a compression block of its own.
const BLOCK_PER_PLANE_ROWS: usize = 1024;
/// Sequence numbers are written for all rows when at most one of so many has none.
const EVERYWHERE_ONE_IN: usize = 32;

pub(super) fn encode(boot: u64, owners: &[Owner], halves: &[Half]) -> Result<Vec<u8>, BatchError> {
    let dictionaries = Dictionaries::of(owners, halves)?;
    let columns: Vec<Written> = number_columns(halves, &dictionaries.flow)
        .iter()
        .map(|[a, b]| ints::write([a, b]))
        .collect();
    let mut dictionary = dictionaries.bytes()?;
    columns
        .iter()
        .for_each(|pair| ints::write_layouts(&mut dictionary, pair));
    let planes: Vec<Vec<u8>> = columns
        .iter()
        .filter_map(|pair| pair.class_bytes.clone())
        .collect();
    let plain_bytes = dictionary.len() + planes.iter().map(Vec::len).sum::<usize>();
    check("bytes of dictionaries", plain_bytes, MAX_PLAIN_BYTES)?;
    let compressed = compress(&dictionary, &planes)
        .map_err(|_| BatchError::Malformed("the compressor failed"))?;

    let mut out = vec![BATCH_VERSION];
    write_varint(&mut out, halves.len() as u64);
    write_varint(&mut out, plain_bytes as u64);
    write_varint(&mut out, compressed.len() as u64);
    out.extend_from_slice(&boot.to_le_bytes());
    out.extend_from_slice(&compressed);
    write_isns(&mut out, halves);
    columns
        .iter()
        .for_each(|column| out.extend_from_slice(&column.bits));
    out.extend_from_slice(&[0; SLACK_BYTES]);
    Ok(out)
}

/// The columns of integers in the order of the format. Those that tend to be large together are paired.
fn number_columns(halves: &[Half], flow: &[u16]) -> [[Vec<u64>; 2]; 6] {
    let column = |value: &dyn Fn(&Half) -> u64| halves.iter().map(value).collect::<Vec<u64>>();
    let since = |half: &Half, earlier: i64| zigzag(half.seen_at.0.wrapping_sub(earlier));
    let mut previous = 0;
    let seen = halves
        .iter()
        .map(|half| since(half, std::mem::replace(&mut previous, half.seen_at.0)))
        .collect();
    [
        [seen, column(&|half| half.cookie)],
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

/// What identifies a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct FlowKey {
    kind: Kind,
    owner: u32,
    local: IpAddr,
    remote: IpAddr,
    server_port: u16,
}

/// A flow by indices into the dictionaries.
struct Indexed {
    kind: Kind,
    owner: u16,
    local: u16,
    remote: u16,
    server_port: u16,
}

struct Dictionaries<'a> {
    owners: Vec<&'a Owner>,
    /// IPv4 first.
    addresses: Vec<IpAddr>,
    flows: Vec<Indexed>,
    /// Row: index into `flows`.
    flow: Vec<u16>,
}

impl<'a> Dictionaries<'a> {
    fn of(owners: &'a [Owner], halves: &[Half]) -> Result<Self, BatchError> {
        let (keys, flow) = by_frequency(halves.iter().map(|half| FlowKey {
            kind: Kind::of(half),
            owner: half.owner,
            local: half.local.ip(),
            remote: half.remote.ip(),
            server_port: ports(half).1,
        }));
        let mut used: Vec<u32> = keys.iter().map(|key| key.owner).collect();
        used.sort_unstable();
        used.dedup();
        let lookup = |owner: &u32| {
            owners.get(*owner as usize).ok_or(BatchError::Malformed(
                "an owner that is not in the dictionary",
            ))
        };
        let owners = used.iter().map(lookup).collect::<Result<Vec<_>, _>>()?;
        let mut addresses: Vec<IpAddr> = keys
            .iter()
            .flat_map(|key| [key.local, key.remote])
            .collect();
        // The order of the type: IPv4 before IPv6.
        addresses.sort_unstable();
        addresses.dedup();
        // Fit: there are at most twice as many as rows, and they were all just put in.
        let address = |ip: IpAddr| addresses.partition_point(|found| *found < ip) as u16;
        let index = |key: &FlowKey| Indexed {
            kind: key.kind,
            owner: used.partition_point(|found| *found < key.owner) as u16,
            local: address(key.local),
            remote: address(key.remote),
            server_port: key.server_port,
        };
        let flows = keys.iter().map(index).collect();
        Ok(Self {
            owners,
            addresses,
            flows,
            flow,
        })
    }

    fn bytes(&self) -> Result<Vec<u8>, BatchError> {
        let mut out = codec::to_bytes(FrameKind::HalfBatch, &self.owners)
            .map_err(|_| BatchError::Malformed("owners that cannot be encoded"))?;
        let mut bytes = Vec::with_capacity(out.len() + 64);
        write_varint(&mut bytes, out.len() as u64);
        bytes.append(&mut out);
        let v4 = self.addresses.partition_point(IpAddr::is_ipv4);
        write_varint(&mut bytes, v4 as u64);
        write_varint(&mut bytes, (self.addresses.len() - v4) as u64);
        for address in &self.addresses {
            match address {
                IpAddr::V4(v4) => bytes.extend_from_slice(&v4.octets()),
                IpAddr::V6(v6) => bytes.extend_from_slice(&v6.octets()),
            }
        }
        write_varint(&mut bytes, self.flows.len() as u64);
        bytes.extend(self.flows.iter().map(|flow| flow.kind.0));
        for field in [
            |flow: &Indexed| flow.owner,
            |flow: &Indexed| flow.local,
            |flow: &Indexed| flow.remote,
            |flow: &Indexed| flow.server_port,
        ] {
            bytes.extend(self.flows.iter().map(|flow| field(flow) as u8));
            bytes.extend(self.flows.iter().map(|flow| (field(flow) >> 8) as u8));
        }
        Ok(bytes)
    }
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

/// Two zstd frames, without checksum. The second has the planes, a block each when they are long, so that each
/// has a code table of its own; searching for repetitions in them is not worth the time that undoing it takes.
fn compress(dictionary: &[u8], planes: &[Vec<u8>]) -> io::Result<Vec<u8>> {
    let mut encoder = Encoder::new(DICTIONARY_LEVEL)?;
    let mut compressed = run(&mut encoder, &[dictionary], false)?;
    let mut encoder = Encoder::new(1)?;
    encoder.set_parameter(CParameter::MinMatch(7))?;
    encoder.set_parameter(CParameter::HashLog(6))?;
    let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    let blocks = planes
        .first()
        .is_some_and(|plane| plane.len() >= BLOCK_PER_PLANE_ROWS);
    compressed.append(&mut run(&mut encoder, &planes, blocks)?);
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
