//! What rows share, read: owners, names, addresses, flows.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use super::bits::Cursor;
use super::columns::{Flow, Kind};
use super::{BatchError, MAX_ROWS, check};
use crate::codec;
use crate::frame::Kind as FrameKind;
use crate::model::{Application, MAX_NAME_BYTES, NameSource, Owner, PeerName};

/// Owners, each within its limits.
pub(super) fn read_owners(bytes: &[u8], kind: FrameKind) -> Result<Vec<Owner>, BatchError> {
    let owners: Owners =
        codec::from_bytes(kind, bytes).map_err(|_| BatchError::Malformed("its owners"))?;
    if owners.0.iter().all(Owner::within_limits) {
        Ok(owners.0)
    } else {
        Err(BatchError::Malformed("an owner over its limits"))
    }
}

/// Names of peers, not more than rows.
pub(super) fn read_names(
    cursor: &mut Cursor<'_>,
    rows: usize,
    names: &mut Vec<PeerName>,
) -> Result<(), BatchError> {
    let count = cursor.count("names", rows)?;
    names.clear();
    for _ in 0..count {
        let source = match cursor.byte()? {
            0 => NameSource::DnsProcess,
            1 => NameSource::DnsPod,
            2 => NameSource::DnsNode,
            3 => NameSource::Sni,
            4 => NameSource::HttpHost,
            _ => return Err(BatchError::Malformed("an unknown source of a name")),
        };
        let name = cursor.text("bytes of a name", MAX_NAME_BYTES)?.to_owned();
        names.push(PeerName { name, source });
    }
    Ok(())
}

/// IPv4 addresses, then IPv6.
pub(super) fn read_addresses(
    cursor: &mut Cursor<'_>,
    limit: usize,
    addresses: &mut Vec<IpAddr>,
) -> Result<(), BatchError> {
    let v4 = cursor.count("IPv4 addresses", limit)?;
    let v6 = cursor.count("IPv6 addresses", limit - v4)?;
    addresses.clear();
    let octets = cursor.take(v4 * 4)?.as_chunks::<4>().0;
    addresses.extend(
        octets
            .iter()
            .map(|octets| IpAddr::V4(Ipv4Addr::from(*octets))),
    );
    let octets = cursor.take(v6 * 16)?.as_chunks::<16>().0;
    addresses.extend(
        octets
            .iter()
            .map(|octets| IpAddr::V6(Ipv6Addr::from(*octets))),
    );
    Ok(())
}

/// How many of each a flow may point to.
pub(super) struct Bounds<'a> {
    pub(super) rows: usize,
    pub(super) owners: usize,
    pub(super) names: usize,
    pub(super) addresses: &'a [IpAddr],
}

/// Flows, every index in them checked.
pub(super) fn read_flows(
    cursor: &mut Cursor<'_>,
    bounds: &Bounds<'_>,
    flows: &mut Vec<Flow>,
) -> Result<(), BatchError> {
    let count = cursor.count("flows", bounds.rows)?;
    let (kinds, datagrams) = (cursor.take(count)?, cursor.take(count)?);
    let applications = cursor.take(count)?;
    let mut field = || -> Result<_, BatchError> {
        let (low, high) = (cursor.take(count)?, cursor.take(count)?);
        Ok(move |row: usize| u16::from_le_bytes([low[row], high[row]]))
    };
    let (owner, local, remote, server_port, name) =
        (field()?, field()?, field()?, field()?, field()?);
    let address = |index: u16| {
        let found = bounds.addresses.get(usize::from(index)).copied();
        found.ok_or(BatchError::Malformed(
            "an address that is not in the dictionary",
        ))
    };
    flows.clear();
    flows.reserve(count);
    for index in 0..count {
        let kind = Kind([kinds[index], datagrams[index]]);
        if usize::from(owner(index)) >= bounds.owners || usize::from(name(index)) > bounds.names {
            return Err(BatchError::Malformed(
                "an owner or a name that is not in the dictionary",
            ));
        }
        flows.push(Flow {
            protocol: kind.protocol(),
            role: kind.role(),
            state: kind.state()?,
            fingerprint: kind.fingerprint()?,
            answered: kind.answered(),
            application: *Application::ALL
                .get(usize::from(applications[index]))
                .ok_or(BatchError::Malformed("an unknown application"))?,
            closed: kind.closed(),
            owner: u32::from(owner(index)),
            local: address(local(index))?,
            remote: address(remote(index))?,
            server_port: server_port(index),
            name: u32::from(name(index)),
        });
    }
    Ok(())
}

/// Owners of a batch, never more than [`MAX_ROWS`]: an empty one takes nine bytes on the wire and forty times that in
/// memory.
struct Owners(Vec<Owner>);

impl<'de> Deserialize<'de> for Owners {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;

        impl<'de> Visitor<'de> for Bounded {
            type Value = Owners;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_ROWS} owners")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Owners, A::Error> {
                let mut owners = Vec::new();
                while let Some(owner) = seq.next_element()? {
                    if owners.len() == MAX_ROWS {
                        return Err(Error::invalid_length(MAX_ROWS + 1, &self));
                    }
                    owners.push(owner);
                }
                Ok(Owners(owners))
            }
        }

        deserializer.deserialize_seq(Bounded)
    }
}

/// Knows which bytes owners were decoded from.
#[derive(Default)]
pub(super) struct OwnerCache {
    /// Their length after decompression.
    plain_bytes: usize,
    /// As they came, compressed; empty when the owners are of no bytes.
    compressed: Vec<u8>,
}

impl OwnerCache {
    /// Brings `owners` to what a compressed part says. A node's processes change more slowly than its batches come:
    /// most often they are those of the last batch, and then nothing is done.
    pub(super) fn refresh(
        &mut self,
        (plain_bytes, compressed): (usize, &[u8]),
        owners: &mut Vec<Owner>,
        decode: impl FnOnce() -> Result<Vec<Owner>, BatchError>,
    ) -> Result<(), BatchError> {
        let known = plain_bytes == self.plain_bytes && compressed == self.compressed;
        if !known || compressed.is_empty() {
            self.compressed.clear();
            owners.clear();
            *owners = decode()?;
            self.plain_bytes = plain_bytes;
            self.compressed.extend_from_slice(compressed);
        }
        Ok(())
    }
}

/// That there are not more owners than rows.
pub(super) fn check_owners(owners: &[Owner], rows: usize) -> Result<(), BatchError> {
    check("owners", owners.len(), rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_owners_than_rows_can_be_are_not_taken() {
        for (count, fits) in [(MAX_ROWS, true), (MAX_ROWS + 1, false)] {
            let owners = vec![Owner::default(); count];
            let bytes = codec::to_bytes(FrameKind::HalfBatch, &owners).unwrap();
            let decoded = read_owners(&bytes, FrameKind::HalfBatch);
            assert_eq!(decoded.is_ok_and(|owners| owners.len() == count), fits);
        }
    }

    #[test]
    fn an_owner_with_more_than_may_be_is_not_taken() {
        let long = Owner {
            cgroup: "x".repeat(crate::model::MAX_TEXT_BYTES + 1),
            ..Owner::default()
        };
        let bytes = |owner: &Owner| codec::to_bytes(FrameKind::HalfBatch, &vec![owner]).unwrap();
        assert!(read_owners(&bytes(&long), FrameKind::HalfBatch).is_err());
        assert!(read_owners(&bytes(&long.cut()), FrameKind::HalfBatch).is_ok());
    }
}
