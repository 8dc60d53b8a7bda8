//! Lookups: who asks, which names, what fails, what is outside, what somebody warns of.
//!
//! One statement groups lookups by name, outcome, agent and owner; everything else is decided here, in memory, over those
//! groups: the same for every report, and the same when several federators' rows are added up. Lookups whose names are not seen
//! (over TLS or HTTPS) are a report of their own, and in no other.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use duckdb::types::Value as Bound;
use duckdb::{Connection as Database, Row, params_from_iter};
use weft_dns::domain::{Domains, Kind, registered};
use weft_dns::threats::ThreatList;
use weft_wire::filter::{self as language, End, EndField, Expr, Field};
use weft_wire::query::{
    Asker, DnsReport, DnsRow, Filter, LookupRecord, QueryError, code_word, type_word,
};
use weft_wire::{LookupProtocol, LookupTransport, Owner, Role, Timestamp};

use super::{Answer, failure, filter, sql, store_failure};
use crate::config;
use crate::record::{AgentNumber, AgentRecord, OwnerNumber, socket_of_words};
use crate::store::read;

/// Most rows of one report.
pub const MAX_ROWS: u32 = 10_000;
/// Most lookups of one answer.
pub const MAX_LOOKUPS: u32 = 1_000_000;
/// Groups that a report is made of; those with the fewest lookups are left out, and the answer says so.
const MAX_GROUPS: usize = 200_000;

/// What the configuration says of names.
#[derive(Debug)]
pub struct Lists {
    domains: Domains,
    threats: Mutex<Vec<Watched>>,
}

/// A list of threats, as last read.
#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// When the file was changed, and its length.
    version: Option<(SystemTime, u64)>,
    list: Arc<ThreatList>,
}

impl Lists {
    /// Reads the lists for the first time.
    pub fn new(config: &config::Dns) -> Self {
        let (domains, refused) = Domains::new(config.internal.iter().map(String::as_str));
        for suffix in refused {
            tracing::warn!(suffix, "dns.internal has what is no name");
        }
        let watched = |path: &PathBuf| Watched {
            path: path.clone(),
            version: None,
            list: Arc::default(),
        };
        let lists = Self {
            domains,
            threats: Mutex::new(config.threats.iter().map(watched).collect()),
        };
        lists.threats();
        lists
    }

    /// The lists of threats; those that changed are read again. One that cannot be read stays as it was.
    fn threats(&self) -> Vec<Arc<ThreatList>> {
        let mut threats = self.threats.lock().unwrap_or_else(PoisonError::into_inner);
        threats.iter_mut().for_each(Watched::refresh);
        threats.iter().map(|watched| watched.list.clone()).collect()
    }
}

impl Watched {
    fn refresh(&mut self) {
        let version = std::fs::metadata(&self.path)
            .and_then(|metadata| Ok((metadata.modified()?, metadata.len())));
        let read = version.and_then(|version| {
            if self.version == Some(version) {
                return Ok(());
            }
            let text = std::fs::read(&self.path)?;
            let list = ThreatList::parse(&String::from_utf8_lossy(&text));
            tracing::info!(path = %self.path.display(), names = list.len(), skipped = list.skipped, "threat list read");
            (self.version, self.list) = (Some(version), Arc::new(list));
            Ok(())
        });
        if let Err(error) = read {
            tracing::warn!(path = %self.path.display(), %error, "a threat list cannot be read");
        }
    }
}

/// Lookups of one name, outcome, agent and owner.
struct Group {
    name: String,
    search_of: Option<String>,
    code: Option<u16>,
    /// Index into the askers.
    asker: usize,
    lookups: u64,
    repeated: u64,
    timed: u64,
    latency_total_us: u64,
    latency_max_us: Option<u64>,
    first_seen: Timestamp,
    last_seen: Timestamp,
    resolvers: Vec<String>,
    answers: Vec<String>,
    /// Of those whose names are not seen: by what, and from where the last one came.
    hidden: Option<(LookupTransport, String)>,
}

impl Group {
    /// By what and to whom, of those whose names are not seen.
    fn way(&self) -> String {
        let word = self.hidden.as_ref().map(|(by, _)| transport_word(*by));
        way(word.unwrap_or_default(), &self.resolvers)
    }

    /// Whether it only tried a suffix, in vain.
    fn wasted(&self) -> bool {
        self.search_of.is_some() && self.code.is_some_and(|code| code != 0)
    }

    fn outcome(&self) -> String {
        match self.code {
            _ if self.wasted() => "search-path".into(),
            None => "unanswered".into(),
            Some(0) => "answered".into(),
            Some(code) => code_word(code),
        }
    }
}

/// This federator's part of a report.
pub fn report(
    db: &Database,
    lists: &Lists,
    report: &DnsReport,
    asked: &Filter,
    top: u32,
) -> Result<Answer, QueryError> {
    report_of(db, lists, report, asked, (top, MAX_GROUPS))
}

fn report_of(
    db: &Database,
    lists: &Lists,
    report: &DnsReport,
    asked: &Filter,
    (top, most): (u32, usize),
) -> Result<Answer, QueryError> {
    let mut askers = Askers::new(db, asked)?;
    let (groups, cut) = groups(db, &mut askers, report, asked, most)?;
    let rows = rows(report, &groups, &askers.list, lists);
    let (dns, truncated) = merge(report, rows, top.clamp(1, MAX_ROWS));
    Ok(Answer {
        dns,
        truncated: truncated || cut,
        ..Answer::default()
    })
}

fn window(asked: &Filter) -> (String, Vec<Bound>) {
    let (mut sql, mut values) = ("true".to_owned(), Vec::new());
    for (at, condition) in [
        (asked.since, " AND l.asked_at >= ?"),
        (asked.until, " AND l.asked_at < ?"),
    ] {
        if let Some(at) = at {
            sql.push_str(condition);
            values.push(filter::time(at));
        }
    }
    (sql, values)
}

/// The groups that a report is made of, and whether there were more than `most` before the filter on who asked was applied.
fn groups(
    db: &Database,
    askers: &mut Askers,
    report: &DnsReport,
    asked: &Filter,
    most: usize,
) -> Result<(Vec<Group>, bool), QueryError> {
    let (mut condition, mut values) = window(asked);
    let mut details = "'', ''";
    // Of what travels hidden, only connections are seen: no names, and nothing of answers.
    let hidden = *report == DnsReport::Bypass;
    let (compared, way, example) = if hidden {
        let example = "arg_max(l.local_high, l.asked_at), arg_max(l.local_low, l.asked_at), arg_max(l.local_port, l.asked_at)";
        (">=", "l.transport, l.resolver", example)
    } else {
        ("<", "NULL, NULL", "NULL, NULL, NULL")
    };
    let first_hidden = LookupTransport::Dot as u8;
    let place = if askers.by_place {
        "l.local_high, l.local_low, l.local_port"
    } else {
        "NULL, NULL, NULL"
    };
    if let DnsReport::Explain { name } = report {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        condition.push_str(" AND (l.name = ? OR ends_with(l.name, '.' || ?) OR l.search_of = ?)");
        values.extend([const { Bound::Null }; 3].map(|_| Bound::Text(name.clone())));
        details = "array_to_string(list_slice(list_sort(list(DISTINCT l.resolver)), 1, 8), ' '),
            array_to_string(list_slice(list_sort(list(DISTINCT l.answers)), 1, 8), ' ')";
    }
    let sql = format!(
        "SELECT l.name, l.search_of, l.code, l.agent, l.owner, count(*)::UBIGINT, sum(greatest(l.tries, 1) - 1)::UBIGINT,
            count(l.latency_us)::UBIGINT, coalesce(sum(l.latency_us), 0)::UBIGINT, max(l.latency_us)::UBIGINT,
            epoch_us(min(l.asked_at)), epoch_us(max(l.asked_at)), {details}, {place}, {way}, {example}
         FROM lookups l WHERE l.role = 0 AND l.transport {compared} {first_hidden} AND {condition}
         GROUP BY ALL ORDER BY 6 DESC, 1, 2, 3, 4, 5 LIMIT {}",
        most + 1
    );
    let mut statement = db.prepare(&sql).map_err(store_failure)?;
    let mut found = statement
        .query(params_from_iter(values.iter()))
        .map_err(store_failure)?;
    let mut rows = Vec::new();
    while let Some(row) = found.next().map_err(store_failure)? {
        rows.push(raw(row).map_err(store_failure)?);
    }
    let cut = rows.len() > most;
    rows.truncate(most);
    askers.learn(db, rows.iter().map(|(who, _)| *who))?;
    let groups = rows.into_iter().filter_map(|(who, group)| {
        let asker = askers.of(who)?;
        Some(Group { asker, ..group })
    });
    Ok((groups.collect(), cut))
}

fn raw(row: &Row<'_>) -> Result<(Who, Group), duckdb::Error> {
    let words = |column: usize| -> Result<Vec<String>, duckdb::Error> {
        let text: Option<String> = row.get(column)?;
        let mut words: Vec<String> = text
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        words.sort();
        words.dedup();
        words.truncate(8);
        Ok(words)
    };
    let socket = |first: usize| -> Result<Option<SocketAddr>, duckdb::Error> {
        let high: Option<u64> = row.get(first)?;
        let (low, port) = (row.get(first + 1)?, row.get(first + 2)?);
        let words: Option<(u64, (u64, u16))> = high.zip(Option::zip(low, port));
        Ok(words.map(|(high, (low, port))| socket_of_words(high, low, port)))
    };
    let transport: Option<u8> = row.get(17)?;
    let last_from = socket(19)?.map_or_else(String::new, |last| last.to_string());
    let mut resolvers = words(12)?;
    resolvers.extend(row.get::<_, Option<String>>(18)?);
    let group = Group {
        name: row.get(0)?,
        search_of: row.get(1)?,
        code: row.get(2)?,
        asker: 0,
        lookups: row.get(5)?,
        repeated: row.get(6)?,
        timed: row.get(7)?,
        latency_total_us: row.get(8)?,
        latency_max_us: row.get(9)?,
        first_seen: Timestamp(row.get(10)?),
        last_seen: Timestamp(row.get(11)?),
        resolvers,
        answers: words(13)?,
        hidden: transport.map(|number| (transport_of(number), last_from)),
    };
    Ok(((row.get(3)?, row.get(4)?, socket(14)?), group))
}

fn transport_of(number: u8) -> LookupTransport {
    match number {
        0 => LookupTransport::Udp,
        1 => LookupTransport::Tcp,
        2 => LookupTransport::Dot,
        _ => LookupTransport::Doh,
    }
}

fn transport_word(transport: LookupTransport) -> &'static str {
    match transport {
        LookupTransport::Udp => "udp",
        LookupTransport::Tcp => "tcp",
        LookupTransport::Dot => "dot",
        LookupTransport::Doh => "doh",
    }
}

/// Who asked: agent, owner, and from where if the filter asks for that.
type Who = (AgentNumber, OwnerNumber, Option<SocketAddr>);

/// Those who asked; whom the filter does not let pass is not there.
struct Askers {
    filter: Option<Expr>,
    /// Whether the filter asks for the address or port of who asked.
    by_place: bool,
    agents: HashMap<AgentNumber, Arc<AgentRecord>>,
    owners: HashMap<OwnerNumber, Arc<Owner>>,
    known: HashMap<Who, Option<usize>>,
    numbers: HashMap<Asker, usize>,
    list: Vec<Asker>,
}

impl Askers {
    fn new(db: &Database, asked: &Filter) -> Result<Self, QueryError> {
        Ok(Self {
            filter: filter::compiled(asked)?,
            by_place: names_place(asked)?,
            agents: read::agents(db).map_err(store_failure)?,
            owners: HashMap::new(),
            known: HashMap::new(),
            numbers: HashMap::new(),
            list: Vec::new(),
        })
    }

    fn learn(&mut self, db: &Database, seen: impl Iterator<Item = Who>) -> Result<(), QueryError> {
        let seen: HashSet<_> = seen.collect();
        let owners = read::owners(db, seen.iter().map(|(_, owner, _)| *owner));
        self.owners = owners.map_err(store_failure)?;
        for who in seen {
            let number = self.number(who);
            self.known.insert(who, number);
        }
        Ok(())
    }

    fn of(&self, who: Who) -> Option<usize> {
        self.known.get(&who).copied().flatten()
    }

    fn number(&mut self, (agent, owner, place): Who) -> Option<usize> {
        let (agent, owner) = (self.agents.get(&agent)?, self.owners.get(&owner)?);
        let asker = Asker {
            agent: agent.info.name.clone(),
            federator: agent.federator.clone(),
            site: agent.info.site.clone(),
            workload: owner.workload.clone(),
            pod: owner.pod.as_ref().map(|pod| pod.name.clone()),
            container: owner.container.clone(),
            process: owner.process.as_ref().map(|process| process.name.clone()),
        };
        if let Some(filter) = &self.filter {
            // A lookup passes as a connection whose client is who asked, and whose server is not known.
            let mut connection = sql::nothing();
            let mut client = sql::nobody();
            client.agent.clone_from(&asker.agent);
            client.federator.clone_from(&asker.federator);
            client.site = asker.site.clone();
            client.workload.clone_from(&asker.workload);
            client.process.clone_from(&owner.process);
            client.container.clone_from(&asker.container);
            client.pod.clone_from(&owner.pod);
            client.unit.clone_from(&owner.unit);
            client.escaped = owner.escaped;
            client.local = place.map_or_else(String::new, |place| place.to_string());
            connection.client = Some(client);
            if !filter.matches(&connection) {
                return None;
            }
        }
        let next = self.list.len();
        Some(match self.numbers.entry(asker) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.list.push(new.key().clone());
                *new.insert(next)
            }
        })
    }
}

/// Whether a filter asks for the address or port of who asked; an error where it asks for what no lookup has.
fn names_place(asked: &Filter) -> Result<bool, QueryError> {
    let refuse = |field: &str| {
        failure(
            "E-FILTER",
            "the filter asks for what a lookup has not",
            &format!("{field} is not known of a lookup: only who asked is, as its client"),
            "client.workload, client.namespace, client.pod, client.process, client.address and others of the client's end",
        )
    };
    if asked.to.is_some() {
        return Err(refuse("the server's end (--to)"));
    }
    let mut named = Vec::new();
    if let Some(expression) = &asked.expression
        && let Ok(expression) = language::parse(expression)
    {
        fields(&expression, &mut named);
    }
    if let Some(field) = named.iter().find(|field| !of_asker(**field)) {
        return Err(refuse(&field.to_string()));
    }
    // A term about an address also asks for that by which a server knows it: nobody says.
    let term = asked
        .from
        .as_ref()
        .map(|from| language::term(End::Client, from));
    if let Some(Ok(term)) = term {
        fields(&term, &mut named);
    }
    let place = [EndField::Address, EndField::Port].map(|field| Field::Of(End::Client, field));
    Ok(named.iter().any(|field| place.contains(field)))
}

fn fields(expression: &Expr, named: &mut Vec<Field>) {
    match expression {
        Expr::All(parts) | Expr::Any(parts) => parts.iter().for_each(|part| fields(part, named)),
        Expr::Not(inner) => fields(inner, named),
        Expr::Compare { field, .. }
        | Expr::Like { field, .. }
        | Expr::In { field, .. }
        | Expr::Null { field } => named.push(*field),
    }
}

/// Whether it is known of who asked.
fn of_asker(field: Field) -> bool {
    let Field::Of(End::Client, field) = field else {
        return false;
    };
    !matches!(
        field,
        EndField::Remote
            | EndField::RemotePort
            | EndField::BytesSent
            | EndField::BytesReceived
            | EndField::Rtt
            | EndField::Retransmits
            | EndField::State
    )
}

/// What tells rows of [`DnsReport::Bypass`] apart besides who asked.
fn way(transport: &str, resolvers: &[String]) -> String {
    if transport.is_empty() {
        return String::new();
    }
    format!("{transport} {}", resolvers.join(" "))
}

/// Whether a report has a row for each that asked.
fn by_asker(report: &DnsReport) -> bool {
    match report {
        DnsReport::Top | DnsReport::Threats | DnsReport::Explain { .. } | DnsReport::Bypass => true,
        DnsReport::Hotspots | DnsReport::External | DnsReport::Failures => false,
    }
}

/// What rows of a report are added up by.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    name: String,
    kind: String,
    outcome: String,
    way: String,
    asker: Option<Asker>,
}

/// The row of a report as its parts are gathered.
#[derive(Default)]
struct Gathered {
    row: DnsRow,
    askers: HashMap<usize, u64>,
    names: HashSet<usize>,
}

fn rows(report: &DnsReport, groups: &[Group], askers: &[Asker], lists: &Lists) -> Vec<DnsRow> {
    let threats = lists.threats();
    let threat = |name: &str| {
        let found = threats.iter().find_map(|list| list.find(name));
        found.map(str::to_owned)
    };
    let mut gathered: HashMap<(Key, Option<usize>), Gathered> = HashMap::new();
    let mut names: HashMap<&str, (usize, Kind)> = HashMap::new();
    for group in groups {
        // What failed on the search path is a failure to say the name that was meant.
        let meant = group.search_of.as_deref().filter(|_| group.wasted());
        let name = match report {
            DnsReport::Failures => meant.unwrap_or(&group.name),
            _ => &group.name,
        };
        let next = names.len();
        let (number, kind) = *names
            .entry(name)
            .or_insert_with(|| (next, lists.domains.kind(name)));
        let listed = match report {
            DnsReport::Top | DnsReport::Bypass => None,
            _ => threat(name),
        };
        let outcome = group.outcome();
        let Some(key) = key(report, name, kind, &outcome, listed.is_some()) else {
            continue;
        };
        let way = group.way();
        let gathered = gathered
            .entry((Key { way, ..key }, by_asker(report).then_some(group.asker)))
            .or_default();
        gathered.names.insert(number);
        *gathered.askers.entry(group.asker).or_default() += group.lookups;
        let internal = if kind.internal() { group.lookups } else { 0 };
        let part = of_group(group, internal, listed);
        if gathered.row.lookups == 0 {
            gathered.row = part;
        } else {
            gathered.row.add(part);
        }
    }
    gathered
        .into_iter()
        .map(|((key, _), gathered)| finish(key, gathered, askers))
        .collect()
}

/// What a lookup's row is about, if the report has one for it.
fn key(report: &DnsReport, name: &str, kind: Kind, outcome: &str, listed: bool) -> Option<Key> {
    let key = |name: &str, kind: &str, outcome: &str| {
        Some(Key {
            name: name.into(),
            kind: kind.into(),
            outcome: outcome.into(),
            way: String::new(),
            asker: None,
        })
    };
    let word = kind.word();
    match report {
        DnsReport::Top | DnsReport::Bypass => key("", "", ""),
        DnsReport::Hotspots => key(name, word, ""),
        DnsReport::External if kind.internal() => key("", word, ""),
        DnsReport::External => key(registered(name), word, ""),
        DnsReport::Failures if outcome == "answered" => None,
        DnsReport::Failures => key(name, word, outcome),
        DnsReport::Threats => listed.then(|| key(name, word, ""))?,
        DnsReport::Explain { .. } => key(name, word, outcome),
    }
}

fn of_group(group: &Group, internal: u64, threat: Option<String>) -> DnsRow {
    let when = |condition: bool| if condition { group.lookups } else { 0 };
    DnsRow {
        threat,
        lookups: group.lookups,
        internal,
        failed: when(group.code.is_some_and(|code| code != 0)),
        // Whether something hidden was answered is not seen.
        unanswered: when(group.code.is_none() && group.hidden.is_none()),
        wasted: when(group.wasted()),
        repeated: group.repeated,
        timed: group.timed,
        latency_us: group.latency_total_us.checked_div(group.timed),
        latency_max_us: group.latency_max_us,
        resolvers: group.resolvers.clone(),
        answers: group.answers.clone(),
        first_seen: group.first_seen,
        last_seen: group.last_seen,
        transport: group
            .hidden
            .as_ref()
            .map_or_else(String::new, |(by, _)| transport_word(*by).to_owned()),
        example: group.hidden.as_ref().map(|(_, last)| last.clone()),
        ..DnsRow::default()
    }
}

fn finish(key: Key, gathered: Gathered, askers: &[Asker]) -> DnsRow {
    let most = gathered
        .askers
        .iter()
        .max_by_key(|(asker, lookups)| (**lookups, std::cmp::Reverse(askers.get(**asker))));
    DnsRow {
        name: key.name,
        kind: key.kind,
        outcome: key.outcome,
        asker: most
            .and_then(|(asker, _)| askers.get(*asker).cloned())
            .unwrap_or_default(),
        asker_lookups: most.map_or(0, |(_, lookups)| *lookups),
        askers: gathered.askers.len() as u64,
        names: match gathered.row.example {
            Some(_) => 0,
            None => gathered.names.len() as u64,
        },
        ..gathered.row
    }
}

/// Rows of several federators as one report, most lookups first, and whether some were cut off.
pub fn merge(report: &DnsReport, parts: Vec<DnsRow>, top: u32) -> (Vec<DnsRow>, bool) {
    let mut merged: HashMap<Key, DnsRow> = HashMap::with_capacity(parts.len());
    for row in parts {
        let key = Key {
            name: row.name.clone(),
            kind: row.kind.clone(),
            outcome: row.outcome.clone(),
            way: way(&row.transport, &row.resolvers),
            asker: by_asker(report).then(|| row.asker.clone()),
        };
        match merged.entry(key) {
            Entry::Vacant(entry) => drop(entry.insert(row)),
            Entry::Occupied(mut entry) => entry.get_mut().add(row),
        }
    }
    let mut rows: Vec<DnsRow> = merged.into_values().collect();
    rows.sort_by(|a, b| {
        let order = |row: &DnsRow| std::cmp::Reverse(row.lookups);
        (order(a), &a.name, &a.outcome, &a.asker).cmp(&(order(b), &b.name, &b.outcome, &b.asker))
    });
    let truncated = rows.len() > top as usize;
    rows.truncate(top as usize);
    (rows, truncated)
}

/// Lookups that pass the filter, newest first.
pub fn lookups(db: &Database, asked: &Filter, limit: u32) -> Result<Answer, QueryError> {
    lookups_of(db, asked, limit, MAX_LOOKUPS as usize)
}

fn lookups_of(
    db: &Database,
    asked: &Filter,
    limit: u32,
    most: usize,
) -> Result<Answer, QueryError> {
    let mut askers = Askers::new(db, asked)?;
    let (condition, values) = window(asked);
    // A filter on who asked is applied afterwards: then more may have to be read than are told.
    let limit = limit.clamp(1, MAX_LOOKUPS) as usize;
    let sql = format!(
        "SELECT l.agent, l.owner, l.role, l.protocol, l.transport, l.local_high, l.local_low, l.local_port, l.resolver,
            epoch_us(l.asked_at), l.latency_us, l.name, l.qtype, l.code, l.truncated, l.tries, l.answers, l.answer_total,
            l.request_bytes, l.response_bytes, l.search_of
         FROM lookups l WHERE {condition} ORDER BY l.asked_at DESC LIMIT {}",
        most + 1
    );
    let mut statement = db.prepare(&sql).map_err(store_failure)?;
    let mut found = statement
        .query(params_from_iter(values.iter()))
        .map_err(store_failure)?;
    let mut rows = Vec::new();
    while let Some(row) = found.next().map_err(store_failure)? {
        rows.push(record(row).map_err(store_failure)?);
        if askers.filter.is_none() && rows.len() > limit {
            break;
        }
    }
    // Those that were not read may pass the filter too.
    let cut = rows.len() > most;
    rows.truncate(most);
    if askers.by_place {
        for ((_, _, place), record) in &mut rows {
            *place = record.local.parse().ok();
        }
    }
    askers.learn(db, rows.iter().map(|(who, _)| *who))?;
    let mut lookups = Vec::new();
    for (who, mut record) in rows {
        let owner = who.1;
        if let Some(asker) = askers.of(who).and_then(|at| askers.list.get(at)) {
            record.asker = asker.clone();
            record.pid = askers
                .owners
                .get(&owner)
                .and_then(|owner| owner.process.as_ref())
                .map(|process| process.pid);
            lookups.push(record);
        }
    }
    let truncated = cut || lookups.len() > limit;
    lookups.truncate(limit);
    Ok(Answer {
        lookups,
        truncated,
        ..Answer::default()
    })
}

fn record(row: &Row<'_>) -> Result<(Who, LookupRecord), duckdb::Error> {
    let answers: String = row.get(16)?;
    let record = LookupRecord {
        asker: Asker::default(),
        pid: None,
        role: match row.get::<_, u8>(2)? {
            0 => Role::Client,
            _ => Role::Server,
        },
        protocol: match row.get::<_, u8>(3)? {
            0 => LookupProtocol::Dns,
            _ => LookupProtocol::Mdns,
        },
        transport: transport_of(row.get(4)?),
        local: socket_of_words(row.get(5)?, row.get(6)?, row.get(7)?).to_string(),
        resolver: row.get(8)?,
        asked_at: Timestamp(row.get(9)?),
        latency_us: row.get(10)?,
        name: row.get(11)?,
        qtype: type_word(row.get(12)?),
        code: row.get::<_, Option<u16>>(13)?.map(code_word),
        truncated: row.get(14)?,
        tries: row.get(15)?,
        answers: answers.split_whitespace().map(str::to_owned).collect(),
        answer_total: row.get(17)?,
        request_bytes: row.get(18)?,
        response_bytes: row.get(19)?,
        search_of: row.get(20)?,
    };
    Ok(((row.get(0)?, row.get(1)?, None), record))
}

#[cfg(test)]
mod tests;
