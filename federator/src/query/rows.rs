//! Connections as they are told.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use duckdb::{Connection as Database, params_from_iter};
use weft_cloud_context::{classify, classify_unmatched};
use weft_stitching::{checks, nat};
use weft_wire::query::{
    Check, Connection, Endpoint, Filter, HalfCounts, Match, Path, PathClass, QueryError,
    ServerName, Unmatched,
};
use weft_wire::{AgentKey, Application, Owner, PeerName};

use super::filter::{self, Condition, FROM};
use super::{Answer, failure, store_failure};
use crate::core::view_of;
use crate::record::{AgentNumber, AgentRecord, NameNumber, OwnerNumber, Row, Side, code, isn_of};
use crate::store::{end_of, read};

/// Most connections that one prefix explains.
const MAX_EXPLAINED: u32 = 100;

/// Connections that pass the filter, newest first.
pub fn connections(
    db: &Database,
    name: &str,
    filter: &Filter,
    limit: u32,
) -> Result<Answer, QueryError> {
    let condition = filter::condition(filter)?;
    let mut answer = select(db, &condition, limit)?;
    answer.halves = half_counts(db, name, &condition)?;
    Ok(answer)
}

/// Connections whose id begins so.
pub fn explain(db: &Database, name: &str, prefix: &str) -> Result<Answer, QueryError> {
    let valid = (4..=16).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_hexdigit());
    let first = u64::from_str_radix(prefix, 16)
        .ok()
        .filter(|_| valid)
        .ok_or_else(|| {
            failure(
                "E-ID",
                &format!("{prefix:?} is not the beginning of an id"),
                "4 to 16 hexadecimal digits make one",
                "weft connections",
            )
        })?;
    let shift = 64 - 4 * prefix.len() as u32;
    let (first, last) = (
        first << shift,
        (first << shift) | (1u64.checked_shl(shift).unwrap_or(0).wrapping_sub(1)),
    );
    let last = if shift == 0 { first } else { last };
    let sql = format!("(k.id BETWEEN {first} AND {last} OR k.s_half BETWEEN {first} AND {last})");
    let condition = Condition {
        sql,
        values: Vec::new(),
    };
    let mut answer = select(db, &condition, MAX_EXPLAINED)?;
    answer.halves = half_counts(db, name, &condition)?;
    Ok(answer)
}

fn select(db: &Database, condition: &Condition, limit: u32) -> Result<Answer, QueryError> {
    let sql = format!(
        "SELECT k.* {FROM} WHERE {} ORDER BY k.opened_at DESC, k.id LIMIT {}",
        condition.sql,
        u64::from(limit) + 1
    );
    let mut rows =
        read::rows(db, &sql, params_from_iter(condition.values.iter())).map_err(store_failure)?;
    let truncated = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let names = Names::read(db, &rows)?;
    Ok(Answer {
        connections: rows
            .iter()
            .filter_map(|row| names.connection(row))
            .collect(),
        truncated,
        ..Answer::default()
    })
}

/// Our agents' halves among these connections, by what became of them.
pub fn half_counts(
    db: &Database,
    name: &str,
    condition: &Condition,
) -> Result<HalfCounts, QueryError> {
    let sql = format!(
        "SELECT k.unmatched, sum((coalesce(ca.federator = ?, false))::BIGINT + (coalesce(sa.federator = ?, false))::BIGINT)::UBIGINT
         {FROM} WHERE {} GROUP BY 1",
        condition.sql
    );
    let name = duckdb::types::Value::Text(name.into());
    let values = [&name, &name].into_iter().chain(&condition.values);
    let mut counts = HalfCounts {
        matched: 0,
        unmatched: BTreeMap::new(),
        dropped: 0,
    };
    let mut statement = db.prepare(&sql).map_err(store_failure)?;
    let mut rows = statement
        .query(params_from_iter(values))
        .map_err(store_failure)?;
    while let Some(row) = rows.next().map_err(store_failure)? {
        let count: u64 = row
            .get::<_, Option<u64>>(1)
            .map_err(store_failure)?
            .unwrap_or(0);
        match row
            .get::<_, Option<u8>>(0)
            .map_err(store_failure)?
            .and_then(|r| code::UNMATCHED.get(usize::from(r)))
        {
            Some(reason) => *counts.unmatched.entry(*reason).or_default() += count,
            None => counts.matched += count,
        }
    }
    Ok(counts)
}

/// What rows refer to.
pub struct Names {
    agents: HashMap<AgentNumber, Arc<AgentRecord>>,
    owners: HashMap<OwnerNumber, Arc<Owner>>,
    names: HashMap<NameNumber, Arc<PeerName>>,
}

impl Names {
    /// Looks up what these rows need.
    pub fn read(db: &Database, rows: &[Row]) -> Result<Self, QueryError> {
        let agents = read::agents(db).map_err(store_failure)?;
        let owners = read::owners(
            db,
            rows.iter().flat_map(Row::sides).map(|side| side.half.owner),
        );
        let names = read::names(db, rows.iter().map(|row| row.name().0));
        Ok(Self {
            agents,
            owners: owners.map_err(store_failure)?,
            names: names.map_err(store_failure)?,
        })
    }

    /// An agent's description.
    pub fn agent(&self, number: AgentNumber) -> Option<&AgentRecord> {
        self.agents.get(&number).map(Arc::as_ref)
    }

    /// The key of an agent of ours; a peer's has none.
    pub fn key(&self, number: AgentNumber) -> Option<AgentKey> {
        self.agent(number)?.key
    }

    /// An owner.
    pub fn owner(&self, number: OwnerNumber) -> Option<&Owner> {
        self.owners.get(&number).map(Arc::as_ref)
    }

    /// A row as it is told.
    pub fn connection(&self, row: &Row) -> Option<Connection> {
        let protocol = row.sides().next()?.half.protocol;
        Some(Connection {
            id: row.id(),
            protocol,
            opened_at: row.opened_at(),
            closed_at: row.closed_at(),
            state: row.state(),
            name: self.name(row),
            application: Some(row.application()).filter(|known| *known != Application::Unknown),
            client: row.client.and_then(|side| self.endpoint(&side)),
            server: row.server.and_then(|side| self.endpoint(&side)),
            matched: matched(row),
            path: self.path(row),
        })
    }

    fn endpoint(&self, side: &Side) -> Option<Endpoint> {
        let agent = self.agents.get(&side.agent)?;
        let owner = self.owners.get(&side.half.owner)?;
        let half = &side.half;
        Some(Endpoint {
            half: half.id,
            agent: agent.info.name.clone(),
            federator: agent.federator.clone(),
            site: agent.info.site.clone(),
            workload: owner.workload.clone(),
            process: owner.process.clone(),
            container: owner.container.clone(),
            pod: owner.pod.clone(),
            unit: owner.unit.clone(),
            escaped: owner.escaped,
            sharers: owner.sharers.clone(),
            local: half.local.to_string(),
            remote: half.remote.to_string(),
            bytes_sent: half.bytes_sent,
            bytes_received: half.bytes_received,
            rtt_us: (half.rtt_us > 0).then_some(half.rtt_us),
            retransmits: half.retransmits,
            state: half.state,
            isn: isn_of(half.fingerprint)
                .map(|(client, server)| [format!("{client:08x}"), format!("{server:08x}")]),
        })
    }

    fn name(&self, row: &Row) -> Option<ServerName> {
        let (number, before_us) = row.name();
        let known = self.names.get(&number)?;
        Some(ServerName {
            name: known.name.clone(),
            source: known.source,
            before_us,
        })
    }

    fn path(&self, row: &Row) -> Path {
        let (Some(client), Some(server)) = (&row.client, &row.server) else {
            return classify_unmatched(row.unmatched.unwrap_or(Unmatched::Pending));
        };
        match (end_of(&self.agents, client), end_of(&self.agents, server)) {
            (Some(client), Some(server)) => classify(&client, &server),
            _ => Path {
                class: PathClass::Unknown,
                crosses: Vec::new(),
                via: Vec::new(),
                unmatched: None,
            },
        }
    }
}

fn matched(row: &Row) -> Option<Match> {
    let joined = row.joined?;
    let (client, server) = (view_of(&row.client?.half), view_of(&row.server?.half));
    let checks = checks(&client, &server).map(|check| Check {
        code: check.code().into(),
        agrees: check.agrees(),
        detail: check.to_string(),
    });
    Some(Match {
        evidence: joined.evidence.into(),
        confidence: joined.confidence,
        nat: nat(&client, &server).words().map(str::to_owned).collect(),
        checks: checks.collect(),
    })
}
