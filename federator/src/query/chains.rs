//! Chains: two connections of one process that are one way, with a proxy between them.
//!
//! The home of a proxy's agent has both of the proxy's ends, in rows of one process. What links them is
//! [`weft_stitching::chains`]; here its legs are read from the store: for each process that one of the asked ends belongs to, all
//! its TCP connections about that time. Nothing of it is stored.

use std::collections::BTreeMap;

use duckdb::types::Value as Bound;
use duckdb::{Connection as Database, params_from_iter};
use weft_stitching::chains::{Evidence, Leg, Standing, link};
use weft_wire::query::{Asker, ChainLink, Check, Confidence, MAX_CHAIN_HALVES, QueryError};
use weft_wire::{HalfId, Protocol, Role, Timestamp};

use super::filter::{FROM, time};
use super::rows::Names;
use super::{Answer, failure, store_failure};
use crate::record::{AgentNumber, OwnerNumber, Row, Side};
use crate::store::read;

/// Most connections of one process that are read for one question. With more about that time nothing is linked, and that is said.
const MAX_LEGS: usize = 20_000;
/// How far around the asked ends other connections of their process are read: those that overlap with them, and enough to
/// see whether the process connects on demand.
const AROUND_US: i64 = 60_000_000;
/// An open connection that an agent has said nothing of for so long, while it spoke of others, has not changed: it tells what did
/// every ten seconds, unless it is configured otherwise.
const TOLD_WITHIN_US: i64 = 30_000_000;

/// A process of one agent. Where its start could not be read, 0: then it is any with that id; about one time there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ProcessKey {
    agent: AgentNumber,
    pid: u32,
    started_at: Timestamp,
}

impl ProcessKey {
    fn is(&self, other: &Self) -> bool {
        let started = [self.started_at, other.started_at];
        self.pid == other.pid && (started[0] == started[1] || started.contains(&Timestamp(0)))
    }
}

/// What is known of connections with these ends.
pub fn chains(db: &Database, halves: &[HalfId]) -> Result<Answer, QueryError> {
    if halves.len() > MAX_CHAIN_HALVES {
        let cause = format!("it names {} ends, of {MAX_CHAIN_HALVES}", halves.len());
        return Err(failure(
            "E-CHAINS",
            "too much was asked at once",
            &cause,
            "a smaller --limit",
        ));
    }
    let list: Vec<String> = halves.iter().map(|half| half.0.to_string()).collect();
    if list.is_empty() {
        return Ok(Answer::default());
    }
    let list = list.join(",");
    let sql = format!(
        "SELECT k.* {FROM} WHERE k.protocol = 6 AND ((ca.key IS NOT NULL AND k.c_half IN ({list})) OR
            (sa.key IS NOT NULL AND k.s_half IN ({list})))"
    );
    let asked = read::rows(db, &sql, []).map_err(store_failure)?;
    let names = Names::read(db, &asked)?;
    let mut processes: BTreeMap<ProcessKey, Vec<(HalfId, Role)>> = BTreeMap::new();
    let mut spans: BTreeMap<ProcessKey, (i64, i64)> = BTreeMap::new();
    for side in asked.iter().flat_map(Row::sides) {
        let half = &side.half;
        let ours = names.key(side.agent).is_some() && halves.contains(&half.id);
        let Some(key) = names.process(side).filter(|_| ours) else {
            continue;
        };
        processes.entry(key).or_default().push((half.id, half.role));
        let end = half.closed_at.map_or(i64::MAX, |at| at.0);
        let span = spans.entry(key).or_insert((half.opened_at.0, end));
        *span = (span.0.min(half.opened_at.0), span.1.max(end));
    }
    let mut chains = Vec::new();
    for (key, asked) in processes {
        let span = spans.get(&key).copied().unwrap_or_default();
        chains.extend(of_process(db, key, &asked, span)?);
    }
    chains.sort_by_key(|link| link.half);
    Ok(Answer {
        chains,
        ..Answer::default()
    })
}

impl Names {
    fn process(&self, side: &Side) -> Option<ProcessKey> {
        let process = self.owner(side.half.owner)?.process.as_ref()?;
        (process.pid != 0).then_some(ProcessKey {
            agent: side.agent,
            pid: process.pid,
            started_at: process.started_at,
        })
    }

    fn proxy(&self, side: &Side) -> Option<Asker> {
        let (agent, owner) = (self.agent(side.agent)?, self.owner(side.half.owner)?);
        Some(Asker {
            agent: agent.info.name.clone(),
            federator: agent.federator.clone(),
            site: agent.info.site.clone(),
            workload: owner.workload.clone(),
            pod: owner.pod.as_ref().map(|pod| pod.name.clone()),
            container: owner.container.clone(),
            process: owner.process.as_ref().map(|process| process.name.clone()),
        })
    }
}

/// A connection's end at the process, and the connection.
struct Seen<'a> {
    side: &'a Side,
    row: &'a Row,
}

fn of_process(
    db: &Database,
    key: ProcessKey,
    asked: &[(HalfId, Role)],
    (first, last): (i64, i64),
) -> Result<Vec<ChainLink>, QueryError> {
    let owners = owners_of(db, key)?;
    let agents = agents_like(db, key.agent)?;
    let (from, to) = (
        first.saturating_sub(AROUND_US),
        last.saturating_add(AROUND_US),
    );
    let sql = format!(
        "SELECT k.* {FROM} WHERE k.protocol = 6 AND k.opened_at <= ? AND (k.state = 0 OR k.seen_at >= ?) AND
            ((k.c_agent IN ({agents}) AND k.c_owner IN ({owners})) OR (k.s_agent IN ({agents}) AND k.s_owner IN ({owners})))
         LIMIT {}",
        MAX_LEGS + 1
    );
    // The store's times have a last day.
    let bound = |at: i64| time(Timestamp(at.clamp(0, LAST_US)));
    let rows = read::rows(db, &sql, params_from_iter([bound(to), bound(from)].iter()))
        .map_err(store_failure)?;
    let names = Names::read(db, &rows)?;
    let (mut fronts, mut backs) = (Vec::new(), Vec::new());
    for row in &rows {
        for side in row.sides() {
            // The other end of a connection may be the same agent's, and another process.
            let same = names.process(side).is_some_and(|process| {
                process.is(&key) && names.key(process.agent) == names.key(key.agent)
            });
            if same && side.half.protocol == Protocol::Tcp && side.half.state.established() {
                match side.half.role {
                    Role::Server => fronts.push(Seen { side, row }),
                    Role::Client => backs.push(Seen { side, row }),
                }
            }
        }
    }
    if fronts.is_empty() || backs.is_empty() {
        return Ok(Vec::new());
    }
    let newest = rows.iter().map(|row| row.seen_at().0).max().unwrap_or(0);
    let legs = |seen: &[Seen<'_>]| -> Vec<Leg> {
        seen.iter()
            .map(|seen| leg(seen.side, newest, from, to))
            .collect()
    };
    let (front_legs, back_legs) = (legs(&fronts), legs(&backs));
    let too_many = rows.len() > MAX_LEGS;
    let found = if too_many {
        Default::default()
    } else {
        link(&front_legs, &back_legs)
    };
    let mut links = Vec::new();
    for (half, role) in asked {
        let (own, others, legs, other_legs, standings) = match role {
            Role::Server => (&fronts, &backs, &front_legs, &back_legs, &found.fronts),
            Role::Client => (&backs, &fronts, &back_legs, &front_legs, &found.backs),
        };
        let Some(at) = own.iter().position(|seen| seen.side.half.id == *half) else {
            continue;
        };
        let standing = standings.get(at).copied().unwrap_or(Standing::Alone);
        let mut answer = ChainLink {
            half: *half,
            role: *role,
            proxy: names.proxy(own[at].side).unwrap_or_default(),
            pid: Some(key.pid),
            other: None,
            evidence: String::new(),
            confidence: None,
            checks: Vec::new(),
            fitting: 0,
        };
        match standing {
            _ if too_many => answer.evidence = "too-many".into(),
            Standing::Alone => continue,
            Standing::Ambiguous { fitting } => {
                answer.evidence = "ambiguous".into();
                answer.fitting = fitting as u32;
            }
            Standing::Linked { other, evidence } => {
                answer.evidence = evidence.code().into();
                answer.fitting = 1;
                answer.confidence = Some(confidence(evidence));
                answer.other = names.connection(others[other].row).map(Box::new);
                let (front, back) = match role {
                    Role::Server => (&legs[at], &other_legs[other]),
                    Role::Client => (&other_legs[other], &legs[at]),
                };
                answer.checks = checks(front, back);
            }
        }
        links.push(answer);
    }
    Ok(links)
}

/// A little before the last day that the store knows.
const LAST_US: i64 = 9_000_000_000_000_000;

fn confidence(evidence: Evidence) -> Confidence {
    match evidence {
        Evidence::Bytes => Confidence::High,
        Evidence::Elimination | Evidence::Order => Confidence::Medium,
    }
}

fn leg(side: &Side, newest: i64, from: i64, to: i64) -> Leg {
    let half = &side.half;
    // One that is older than its agent was opened at some time before.
    let opened = (half.fingerprint != weft_wire::Fingerprint::Unknown).then_some(half.opened_at.0);
    let closed = half.closed_at.map(|at| at.0);
    let counted = match closed {
        Some(_) => half.seen_at.0,
        None => half.seen_at.0.max(newest.saturating_sub(TOLD_WITHIN_US)),
    };
    Leg {
        opened,
        closed,
        counted,
        received: half.bytes_received,
        sent: half.bytes_sent,
        whole: half.opened_at.0 >= from && closed.unwrap_or(i64::MAX) <= to,
    }
}

/// What was compared, in words.
fn checks(front: &Leg, back: &Leg) -> Vec<Check> {
    let same = |code: &str, words: [&str; 2], figures: [u64; 2]| Check {
        code: code.into(),
        agrees: figures[0] == figures[1],
        detail: format!("{} {} = {} {}", words[0], figures[0], words[1], figures[1]),
    };
    let mut checks = vec![
        same(
            "bytes-to-server",
            ["received", "sent on"],
            [front.received, back.sent],
        ),
        same(
            "bytes-to-client",
            ["received", "sent on"],
            [back.received, front.sent],
        ),
    ];
    if let (Some(front), Some(back)) = (front.opened, back.opened) {
        let after = back.saturating_sub(front);
        checks.push(Check {
            code: "opened-in-order".into(),
            agrees: after >= 0,
            detail: format!(
                "the proxy opened its connection {} us {}",
                after.unsigned_abs(),
                if after >= 0 {
                    "after it was called"
                } else {
                    "before it was called"
                }
            ),
        });
    }
    checks
}

/// Numbers of all owners that are this process, as a list for SQL.
fn owners_of(db: &Database, key: ProcessKey) -> Result<String, QueryError> {
    let sql =
        "SELECT id FROM owners WHERE pid = ? AND (started_at = ? OR epoch_us(started_at) = 0 OR ?)";
    let unknown = Bound::Boolean(key.started_at.0 == 0);
    numbers(
        db,
        sql,
        &[Bound::UInt(key.pid), time(key.started_at), unknown],
    )
}

/// Numbers of all descriptions of an agent, as a list for SQL.
fn agents_like(db: &Database, agent: AgentNumber) -> Result<String, QueryError> {
    let sql = "SELECT id FROM agents WHERE key = (SELECT key FROM agents WHERE id = ?)";
    numbers(db, sql, &[Bound::UInt(agent)])
}

fn numbers(db: &Database, sql: &str, values: &[Bound]) -> Result<String, QueryError> {
    let mut statement = db.prepare(sql).map_err(store_failure)?;
    let rows = statement.query_map(params_from_iter(values.iter()), |row| {
        row.get::<_, OwnerNumber>(0)
    });
    let numbers: Result<Vec<u32>, _> = rows.map_err(store_failure)?.collect();
    let mut list: Vec<String> = numbers
        .map_err(store_failure)?
        .iter()
        .map(u32::to_string)
        .collect();
    if list.is_empty() {
        list.push("NULL".into());
    }
    Ok(list.join(","))
}

/// Links of several federators: each end is told of by the home of its agent alone.
pub fn merge(mut links: Vec<ChainLink>) -> Vec<ChainLink> {
    links.sort_by_key(|link| (link.half, link.confidence));
    links.dedup_by_key(|link| link.half);
    links
}
