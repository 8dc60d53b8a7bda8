//! Rows back from the store.

use std::collections::HashMap;
use std::sync::Arc;

use duckdb::arrow::array::{Array, PrimitiveArray, RecordBatch};
use duckdb::arrow::datatypes::{
    ArrowPrimitiveType, TimestampMicrosecondType as Time, UInt8Type as U8, UInt16Type as U16,
    UInt32Type as U32, UInt64Type as U64,
};
use duckdb::{Connection, Params};
use weft_mesh::Link;
use weft_wire::control::Handle;
use weft_wire::{
    AgentInfo, AgentKey, Application, Datagrams, Fingerprint, Half, HalfId, NameSource, Owner,
    PeerName, Pod, Process, Protocol, Role, Site, Timestamp,
};

use super::StoreError;
use super::schema::{ROW_COLUMNS, SIDE_COLUMNS};
use crate::record::{
    AgentNumber, AgentRecord, CutOff, Joined, NameNumber, OwnerNumber, Row, Side, code,
    socket_of_words,
};

/// Numbers looked up in one statement.
const LOOKUP_CHUNK: usize = 1000;

/// Runs a query whose first columns are those of one of the flat views, and reads its rows.
pub fn rows(
    connection: &Connection,
    sql: &str,
    params: impl Params,
) -> Result<Vec<Row>, StoreError> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = Vec::new();
    for batch in statement.query_arrow(params)? {
        let reader = RowReader { batch: &batch };
        for at in 0..batch.num_rows() {
            rows.push(reader.row(at));
        }
    }
    Ok(rows)
}

struct RowReader<'a> {
    batch: &'a RecordBatch,
}

impl RowReader<'_> {
    fn value<T: ArrowPrimitiveType>(&self, column: usize, at: usize) -> Option<T::Native> {
        let array = self
            .batch
            .column(column)
            .as_any()
            .downcast_ref::<PrimitiveArray<T>>()?;
        array.is_valid(at).then(|| array.value(at))
    }

    fn row(&self, at: usize) -> Row {
        let protocol = code::protocol(self.value::<U8>(1, at).unwrap_or(Protocol::Tcp as u8));
        let pick = |column| self.value::<U8>(column, at).map(usize::from);
        let joined = pick(6).and_then(|evidence| {
            Some(Joined {
                evidence: code::EVIDENCE.get(evidence)?,
                confidence: *code::CONFIDENCES.get(pick(7)?)?,
            })
        });
        let first = ROW_COLUMNS.len();
        let mut client = self.side(first, at, protocol, Role::Client);
        let mut server = self.side(first + SIDE_COLUMNS.len(), at, protocol, Role::Server);
        // Which end saw it is not kept.
        let application = pick(15).and_then(|number| Application::ALL.get(number).copied());
        for side in client.iter_mut().chain(&mut server) {
            side.half.application = application.unwrap_or_default();
        }
        if let Some(client) = &mut client {
            client.half.name = self.value::<U32>(13, at).unwrap_or_default();
            client.half.named_before_us = self.value::<U32>(14, at).unwrap_or_default();
        }
        let exchange = self.value::<U8>(12, at).unwrap_or_default();
        let unmatched = pick(8).and_then(|reason| code::UNMATCHED.get(reason).copied());
        Row {
            client,
            server,
            joined,
            unmatched,
            card_due: exchange & 1 != 0,
            cut_off: CutOff(exchange & (CutOff::OWNER | CutOff::HOME)),
            settled: false,
        }
    }

    fn side(&self, first: usize, at: usize, protocol: Protocol, role: Role) -> Option<Side> {
        let time = |column| self.value::<Time>(first + column, at).map(Timestamp);
        let word = |column| self.value::<U64>(first + column, at);
        let number = |column| self.value::<U32>(first + column, at);
        let port = |column| self.value::<U16>(first + column, at).unwrap_or(0);
        let fingerprint = match (number(4), number(5)) {
            (Some(client), Some(server)) => Fingerprint::TcpIsn { client, server },
            _ => Fingerprint::Unknown,
        };
        let state = usize::from(self.value::<U8>(first + 3, at)?);
        let half = Half {
            id: HalfId(word(0)?),
            cookie: 0,
            protocol,
            role,
            state: *code::HALF_STATES.get(state)?,
            fingerprint,
            local: socket_of_words(word(9)?, word(10)?, port(11)),
            remote: socket_of_words(word(12)?, word(13)?, port(14)),
            opened_at: time(6)?,
            closed_at: time(7),
            seen_at: time(8)?,
            bytes_sent: word(15)?,
            bytes_received: word(16)?,
            packets_sent: word(17)?,
            packets_received: word(18)?,
            rtt_us: number(19)?,
            retransmits: number(20)?,
            owner: number(2)?,
            ..Half::default()
        };
        Some(Side {
            half,
            agent: number(1)?,
        })
    }
}

/// All agents' descriptions.
pub fn agents(
    connection: &Connection,
) -> Result<HashMap<AgentNumber, Arc<AgentRecord>>, StoreError> {
    let mut statement = connection.prepare(
        "SELECT id, key, federator, name, version, kernel, host, cloud, account, region, zone, network, cluster,
         namespace, pods FROM agents ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    let mut found = HashMap::new();
    while let Some(row) = rows.next()? {
        let info = AgentInfo {
            name: row.get(3)?,
            version: row.get(4)?,
            kernel: row.get(5)?,
            host: row.get(6)?,
            site: Site {
                cloud: row.get(7)?,
                account: row.get(8)?,
                region: row.get(9)?,
                zone: row.get(10)?,
                network: row.get(11)?,
                cluster: row.get(12)?,
                namespace: row.get(13)?,
            },
        };
        let key = row.get::<_, Option<u64>>(1)?.map(AgentKey);
        found.insert(
            row.get(0)?,
            Arc::new(AgentRecord {
                key,
                federator: row.get(2)?,
                info,
                pods: row.get(14)?,
            }),
        );
    }
    Ok(found)
}

/// The owners with these numbers.
pub fn owners(
    connection: &Connection,
    numbers: impl IntoIterator<Item = OwnerNumber>,
) -> Result<HashMap<OwnerNumber, Arc<Owner>>, StoreError> {
    let mut numbers: Vec<OwnerNumber> = numbers.into_iter().collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut found = HashMap::with_capacity(numbers.len());
    for chunk in numbers.chunks(LOOKUP_CHUNK) {
        let list: Vec<String> = chunk.iter().map(u32::to_string).collect();
        let mut statement = connection.prepare(&format!(
            "SELECT id, pid, epoch_us(started_at), process, exe, uid, username, cgroup, container, netns, workload,
                 args, parent, parent_name, unit, escaped, pod_namespace, pod, pod_uid, pod_owner_kind, pod_owner, pod_container,
                 pod_image, pod_labels, sharers
             FROM owners WHERE id IN ({})",
            list.join(",")
        ))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let process = match row.get::<_, Option<u32>>(1)? {
                None => None,
                Some(pid) => Some(Process {
                    pid,
                    started_at: Timestamp(row.get(2)?),
                    name: row.get(3)?,
                    exe: row.get(4)?,
                    uid: row.get(5)?,
                    user: row.get(6)?,
                    args: row.get(11)?,
                    parent: row.get::<_, Option<u32>>(12)?.unwrap_or_default(),
                    parent_name: row.get::<_, Option<String>>(13)?.unwrap_or_default(),
                }),
            };
            let owner = Owner {
                process,
                cgroup: row.get(7)?,
                container: row.get(8)?,
                netns: row.get(9)?,
                workload: row.get(10)?,
                pod: pod(row)?,
                unit: row.get(14)?,
                escaped: row.get::<_, Option<bool>>(15)?.unwrap_or_default(),
                sharers: self::list(row, 24)?,
            };
            found.insert(row.get(0)?, Arc::new(owner));
        }
    }
    Ok(found)
}

/// The names with these numbers; 0 is none.
pub fn names(
    connection: &Connection,
    numbers: impl IntoIterator<Item = NameNumber>,
) -> Result<HashMap<NameNumber, Arc<PeerName>>, StoreError> {
    let mut numbers: Vec<NameNumber> = numbers.into_iter().filter(|number| *number > 0).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut found = HashMap::with_capacity(numbers.len());
    for chunk in numbers.chunks(LOOKUP_CHUNK) {
        let list: Vec<String> = chunk.iter().map(u32::to_string).collect();
        let mut statement = connection.prepare(&format!(
            "SELECT id, name, source FROM names WHERE id IN ({})",
            list.join(",")
        ))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let source = NameSource::ALL.get(usize::from(row.get::<_, u8>(2)?));
            let name = PeerName {
                name: row.get(1)?,
                source: source.copied().unwrap_or_default(),
            };
            found.insert(row.get(0)?, Arc::new(name));
        }
    }
    Ok(found)
}

/// Addresses between two ends by their number, the latest.
pub fn vias(connection: &Connection, limit: usize) -> Result<Vec<(u32, Arc<str>)>, StoreError> {
    let mut statement =
        connection.prepare("SELECT id, addresses FROM vias ORDER BY id DESC LIMIT ?")?;
    let rows = statement.query_map([limit as u64], |row| {
        Ok((row.get(0)?, row.get::<_, String>(1)?.into()))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Addresses between two ends with these numbers.
pub fn vias_of(
    connection: &Connection,
    numbers: impl IntoIterator<Item = u32>,
) -> Result<HashMap<u32, String>, StoreError> {
    let mut numbers: Vec<u32> = numbers.into_iter().collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut found = HashMap::with_capacity(numbers.len());
    for chunk in numbers.chunks(LOOKUP_CHUNK) {
        let list: Vec<String> = chunk.iter().map(u32::to_string).collect();
        let mut statement = connection.prepare(&format!(
            "SELECT id, addresses FROM vias WHERE id IN ({})",
            list.join(",")
        ))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            found.insert(row.get(0)?, row.get(1)?);
        }
    }
    Ok(found)
}

/// Halves of our own agents in the last `rows` settled rows, oldest first.
pub fn latest_halves(connection: &Connection, rows: usize) -> Result<Vec<HalfId>, StoreError> {
    let mut statement = connection.prepare(
        "SELECT unnest(list_filter([CASE WHEN ca.key IS NOT NULL THEN k.c.half END,
             CASE WHEN sa.key IS NOT NULL THEN k.s.half END], lambda half: half IS NOT NULL))
         FROM (SELECT rowid AS number, c, s FROM connections_done
               WHERE rowid >= (SELECT coalesce(max(rowid), 0) FROM connections_done) - ?) k
         LEFT JOIN agents ca ON ca.id = k.c.agent LEFT JOIN agents sa ON sa.id = k.s.agent ORDER BY number",
    )?;
    let mut halves = Vec::new();
    for batch in statement.query_arrow([rows as i64])? {
        let ids = batch
            .column(0)
            .as_any()
            .downcast_ref::<PrimitiveArray<U64>>();
        halves.extend(ids.into_iter().flatten().flatten().map(HalfId));
    }
    Ok(halves)
}

fn pod(row: &duckdb::Row<'_>) -> Result<Option<Pod>, StoreError> {
    let Some(namespace) = row.get::<_, Option<String>>(16)? else {
        return Ok(None);
    };
    Ok(Some(Pod {
        namespace,
        name: row.get(17)?,
        uid: row.get(18)?,
        owner_kind: row.get(19)?,
        owner_name: row.get(20)?,
        container: row.get(21)?,
        image: row.get(22)?,
        labels: list(row, 23)?,
    }))
}

/// A list that is kept as text.
fn list<T: serde::de::DeserializeOwned>(
    row: &duckdb::Row<'_>,
    column: usize,
) -> Result<Vec<T>, StoreError> {
    let text: Option<String> = row.get(column)?;
    Ok(text
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default())
}

/// Fingerprints of the UDP halves in these rows, which are those of [`LIVE`](super::schema::LIVE).
pub fn first_datagrams(connection: &Connection, live: &mut [Row]) -> Result<(), StoreError> {
    let mut statement = connection
        .prepare("SELECT id, server_end, sort, client, server, telling FROM first_datagrams")?;
    let mut rows = statement.query([])?;
    let mut found: HashMap<(u64, bool), Datagrams> = HashMap::new();
    while let Some(row) = rows.next()? {
        let sort = usize::from(row.get::<_, u8>(2)?);
        let first = Datagrams {
            sort: code::DATAGRAM_SORTS.get(sort).copied().unwrap_or_default(),
            client: row.get(3)?,
            server: row.get(4)?,
            distinct: row.get(5)?,
        };
        found.insert((row.get(0)?, row.get(1)?), first);
    }
    for row in live {
        let id = row.id().0;
        for (side, server_end) in [(&mut row.client, false), (&mut row.server, true)] {
            if let (Some(side), Some(first)) = (side, found.get(&(id, server_end))) {
                side.half.fingerprint = Fingerprint::Datagrams(*first);
            }
        }
    }
    Ok(())
}

/// Links to other homes.
pub fn links(connection: &Connection) -> Result<HashMap<HalfId, Link>, StoreError> {
    let mut statement = connection.prepare(
        "SELECT half, peer, theirs, partial, joined, heard_final, told_final FROM links",
    )?;
    let mut rows = statement.query([])?;
    let mut found = HashMap::new();
    while let Some(row) = rows.next()? {
        let link = Link {
            peer: row.get(1)?,
            theirs: Handle(row.get(2)?),
            partial: row.get(3)?,
            joined: row.get(4)?,
            heard_final: row.get(5)?,
            told_final: row.get(6)?,
        };
        found.insert(HalfId(row.get(0)?), link);
    }
    Ok(found)
}
