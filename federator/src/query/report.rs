//! Reports: connections summed up by who talked to whom.

use std::collections::BTreeMap;

use duckdb::types::Value as Bound;
use duckdb::{Connection as Database, Row, params_from_iter};
use weft_wire::query::{Filter, Party, PathClass, QueryError, Report, ReportOrder, ReportRow};
use weft_wire::{HalfId, Site, Timestamp};

use super::filter::{self, Condition, FROM};
use super::{rows, store_failure};
use crate::query::Answer;
use crate::record::{address_of_words, code};
use crate::store::read;

/// Most rows of one report.
pub const MAX_ROWS: u32 = 10_000;
/// Addresses in between that a row names.
const MAX_VIA: usize = 8;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Which report.
    pub report: Report,
    /// Over which connections.
    pub filter: Filter,
    /// Order.
    pub by: ReportOrder,
    /// At most so many rows.
    pub top: u32,
    /// Homes whose connections are counted by the copies here.
    pub absent: Vec<String>,
}

/// This federator's part of a report.
pub fn report(db: &Database, name: &str, asked: &Asked) -> Result<Answer, QueryError> {
    let mut condition = filter::condition(&asked.filter)?;
    let halves = rows::half_counts(db, name, &condition)?;
    condition
        .sql
        .push_str(&format!(" AND {} AND ", of_report(asked.report)));
    keep_once(&mut condition, name, &asked.absent);
    let top = asked.top.clamp(1, MAX_ROWS);
    let order = match asked.by {
        ReportOrder::Bytes => "to_server + to_client",
        ReportOrder::Connections => "connections",
    };
    let sql = format!(
        "SELECT co.workload, ca.cloud, ca.account, ca.region, ca.zone, ca.network, ca.cluster, ca.namespace,
            so.workload, sa.cloud, sa.account, sa.region, sa.zone, sa.network, sa.cluster, sa.namespace,
            CASE WHEN k.c_half IS NULL THEN k.s_remote_high END AS client_high,
            CASE WHEN k.c_half IS NULL THEN k.s_remote_low END AS client_low,
            CASE WHEN k.s_half IS NULL THEN k.c_remote_high END AS server_high,
            CASE WHEN k.s_half IS NULL THEN k.c_remote_low END AS server_low,
            k.class, count(*)::UBIGINT AS connections,
            least(sum(coalesce(k.c_bytes_sent, k.s_bytes_received)), 18446744073709551615)::UBIGINT AS to_server,
            least(sum(coalesce(k.c_bytes_received, k.s_bytes_sent)), 18446744073709551615)::UBIGINT AS to_client,
            epoch_us(min(k.opened_at)), epoch_us(max(k.seen_at)), arg_max(k.id, k.opened_at),
            string_agg(DISTINCT k.via, ' ') FILTER (k.via > 0)
         {FROM} WHERE {} GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21
         ORDER BY ({order})::HUGEINT DESC, min(k.id) LIMIT {}",
        condition.sql,
        top + 1
    );
    let mut statement = db.prepare(&sql).map_err(store_failure)?;
    let mut found = statement
        .query(params_from_iter(condition.values.iter()))
        .map_err(store_failure)?;
    let mut report = Vec::new();
    while let Some(row) = found.next().map_err(store_failure)? {
        report.push(row_of(row).map_err(store_failure)?);
    }
    let truncated = report.len() > top as usize;
    report.truncate(top as usize);
    name_vias(db, &mut report).map_err(store_failure)?;
    Ok(Answer {
        report,
        halves,
        truncated,
        ..Answer::default()
    })
}

/// Which connections a report is about.
fn of_report(report: Report) -> String {
    let crosses = |name: &str| {
        let bit = code::CROSSES
            .iter()
            .position(|known| *known == name)
            .unwrap_or(0);
        format!("(k.crosses & {}) <> 0", 1 << bit)
    };
    let class = |class: PathClass| format!("k.class = {}", code::of(&code::CLASSES, &class));
    match report {
        Report::CrossCluster => crosses("cluster"),
        Report::CrossCloud => crosses("cloud"),
        Report::CrossRegion => crosses("region"),
        Report::CrossNamespace => crosses("namespace"),
        Report::NorthSouth => class(PathClass::NorthSouth),
        Report::Hairpins => class(PathClass::Hairpin),
        Report::Dependencies => "k.state <> 2".into(),
    }
}

/// A connection that two homes know is counted by its client's, or, where that cannot be asked, by its server's.
fn keep_once(condition: &mut Condition, name: &str, absent: &[String]) {
    condition
        .sql
        .push_str("(ca.federator = ? OR (k.c_half IS NULL AND sa.federator = ?)");
    for _ in 0..2 {
        condition.values.push(Bound::Text(name.into()));
    }
    for home in absent {
        condition.sql.push_str(" OR ca.federator = ?");
        condition.values.push(Bound::Text(home.clone()));
    }
    condition.sql.push(')');
}

fn row_of(row: &Row<'_>) -> Result<ReportRow, duckdb::Error> {
    let party = |first: usize, address: usize| -> Result<Party, duckdb::Error> {
        let words = (
            row.get::<_, Option<u64>>(address)?,
            row.get::<_, Option<u64>>(address + 1)?,
        );
        if let (Some(high), Some(low)) = words {
            let workload = address_of_words(high, low).to_string();
            return Ok(Party {
                workload,
                site: Site::default(),
                managed: false,
            });
        }
        let text = |index: usize| {
            Ok::<_, duckdb::Error>(
                row.get::<_, Option<String>>(first + index)?
                    .unwrap_or_default(),
            )
        };
        let site = Site {
            cloud: text(1)?,
            account: text(2)?,
            region: text(3)?,
            zone: text(4)?,
            network: text(5)?,
            cluster: text(6)?,
            namespace: text(7)?,
        };
        Ok(Party {
            workload: text(0)?,
            site,
            managed: true,
        })
    };
    let class = usize::from(row.get::<_, u8>(20)?);
    let via: Option<String> = row.get(27)?;
    Ok(ReportRow {
        client: party(0, 16)?,
        server: party(8, 18)?,
        class: code::CLASSES
            .get(class)
            .copied()
            .unwrap_or(PathClass::Unknown),
        via: via
            .iter()
            .flat_map(|via| via.split(' '))
            .map(str::to_owned)
            .collect(),
        connections: row.get(21)?,
        bytes_to_server: row.get::<_, Option<u64>>(22)?.unwrap_or(0),
        bytes_to_client: row.get::<_, Option<u64>>(23)?.unwrap_or(0),
        first_seen: Timestamp(row.get(24)?),
        last_seen: Timestamp(row.get(25)?),
        example: HalfId(row.get(26)?),
    })
}

/// Rows come with numbers; they go with the addresses that these stand for.
fn name_vias(db: &Database, report: &mut [ReportRow]) -> Result<(), crate::store::StoreError> {
    let numbers = |row: &ReportRow| -> Vec<u32> {
        row.via.iter().filter_map(|via| via.parse().ok()).collect()
    };
    let names = read::vias_of(db, report.iter().flat_map(numbers))?;
    for row in report {
        let found = numbers(row);
        row.via = distinct(
            found
                .iter()
                .filter_map(|number| names.get(number))
                .flat_map(|via| via.split(' '))
                .map(str::to_owned),
        );
    }
    Ok(())
}

fn distinct(addresses: impl Iterator<Item = String>) -> Vec<String> {
    let mut found: Vec<String> = addresses.filter(|address| !address.is_empty()).collect();
    found.sort();
    found.dedup();
    found.truncate(MAX_VIA);
    found
}

/// Rows of several federators as one report.
pub fn merge(parts: Vec<ReportRow>, by: ReportOrder, top: u32) -> (Vec<ReportRow>, bool) {
    let mut merged: BTreeMap<(Party, Party, PathClass), ReportRow> = BTreeMap::new();
    for row in parts {
        let key = (row.client.clone(), row.server.clone(), row.class);
        match merged.entry(key) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(row);
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let sum = entry.get_mut();
                sum.connections += row.connections;
                sum.bytes_to_server = sum.bytes_to_server.saturating_add(row.bytes_to_server);
                sum.bytes_to_client = sum.bytes_to_client.saturating_add(row.bytes_to_client);
                sum.via = distinct(std::mem::take(&mut sum.via).into_iter().chain(row.via));
                sum.first_seen = sum.first_seen.min(row.first_seen);
                if row.last_seen > sum.last_seen {
                    (sum.last_seen, sum.example) = (row.last_seen, row.example);
                }
            }
        }
    }
    let mut rows: Vec<_> = merged.into_values().collect();
    rows.sort_by_key(|row| {
        std::cmp::Reverse(match by {
            ReportOrder::Bytes => u128::from(row.bytes_to_server) + u128::from(row.bytes_to_client),
            ReportOrder::Connections => row.connections.into(),
        })
    });
    let truncated = rows.len() > top as usize;
    rows.truncate(top as usize);
    (rows, truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(client: &str, connections: u64, seen: i64) -> ReportRow {
        let party = |name: &str| Party {
            workload: name.into(),
            site: Site::default(),
            managed: true,
        };
        ReportRow {
            client: party(client),
            server: party("db"),
            class: PathClass::CrossCloud,
            via: vec![format!("10.0.0.{seen}")],
            connections,
            bytes_to_server: connections,
            bytes_to_client: 1,
            first_seen: Timestamp(seen),
            last_seen: Timestamp(seen),
            example: HalfId(seen as u64),
        }
    }

    #[test]
    fn parts_are_added_up_by_who_talked_to_whom() {
        let (rows, truncated) = merge(
            vec![row("web", 3, 1), row("batch", 5, 2), row("web", 4, 3)],
            ReportOrder::Connections,
            10,
        );
        assert!(!truncated);
        assert_eq!(
            rows.iter().map(|row| row.connections).collect::<Vec<_>>(),
            [7, 5]
        );
        assert_eq!(rows[0].via, ["10.0.0.1", "10.0.0.3"]);
        assert_eq!(
            (rows[0].first_seen, rows[0].last_seen, rows[0].example),
            (Timestamp(1), Timestamp(3), HalfId(3))
        );
        assert_eq!(
            merge(vec![row("a", 1, 1), row("b", 2, 2)], ReportOrder::Bytes, 1).0[0].connections,
            2
        );
    }
}
