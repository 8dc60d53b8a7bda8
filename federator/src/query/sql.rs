//! The user's SQL, fenced in: it runs in a DuckDB of its own, in memory, that holds a copy of the window's connections and
//! nothing else, can reach neither files nor network, and is thrown away afterwards. Only one SELECT is taken.
//!
//! The table `connection` has the columns of a connection's JSON, flattened ([`columns`]); the table `lookups` is there when the
//! statement names it ([`names_lookups`]). The table `cluster_objects` has what agents told of the Kubernetes clusters whose
//! home this federator is.

mod lookups;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use duckdb::arrow::array::{ArrayRef, StringArray, TimestampMicrosecondArray, UInt64Array};
use duckdb::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use duckdb::arrow::record_batch::RecordBatch;
use duckdb::types::{TimeUnit as ValueUnit, Value};
use duckdb::{Config, Connection as Database};
use serde::{Deserialize, Serialize};
use weft_wire::query::{Connection, Endpoint, LookupRecord, QueryError, SqlValue};
use weft_wire::{Pod, Timestamp};

use super::failure;
use crate::clusters::Told;

/// Most rows of one answer.
pub const MAX_ROWS: u32 = 100_000;
/// Most bytes of text in one answer.
pub const MAX_ANSWER_BYTES: usize = 32 << 20;
/// Connections copied at a time.
const COPY_ROWS: usize = 2048;
/// Table functions that make rows of what they are given, and of nothing else. Others read files or settings, switch something, or run
/// a text as a statement of its own, past everything that was looked at.
const TABLE_FUNCTIONS: [&str; 7] = [
    "range",
    "generate_series",
    "unnest",
    "repeat",
    "repeat_row",
    "json_each",
    "json_tree",
];
/// Volatile functions that only give a value, or end the statement.
const VOLATILE: [&str; 6] = [
    "random",
    "uuid",
    "uuidv4",
    "uuidv7",
    "gen_random_uuid",
    "error",
];
/// Beginnings of the types that an answer has values for; of others it has what DuckDB casts to text.
const PLAIN_TYPES: [&str; 18] = [
    "BOOLEAN",
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "FLOAT",
    "DOUBLE",
    "VARCHAR",
    "JSON",
    "TIMESTAMP",
    "TIMESTAMP_S",
    "TIMESTAMP_MS",
    "TIMESTAMP_NS",
];

/// Limits of one statement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SqlLimits {
    /// How long it may run.
    pub timeout: Duration,
    /// DuckDB's memory.
    pub memory: String,
    /// Most rows of the answer.
    pub rows: u32,
}

/// An answer.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SqlAnswer {
    /// Column names.
    pub columns: Vec<String>,
    /// Rows.
    pub rows: Vec<Vec<SqlValue>>,
    /// There are more.
    pub truncated: bool,
}

enum Cell {
    Text(Option<String>),
    Number(Option<u64>),
    Time(Option<Timestamp>),
}

impl Cell {
    /// Its type.
    fn sql(&self) -> &'static str {
        match self {
            Self::Text(_) => "VARCHAR",
            Self::Number(_) => "UBIGINT",
            Self::Time(_) => "TIMESTAMP",
        }
    }
}

type WholeColumn = (&'static str, fn(&Connection) -> Cell);
type EndColumn = (&'static str, fn(&Endpoint) -> Cell);

fn text(text: impl Into<String>) -> Cell {
    Cell::Text(Some(text.into()))
}

/// Empty is not known.
fn known(text: &str) -> Cell {
    Cell::Text((!text.is_empty()).then(|| text.to_owned()))
}

const WHOLE: [WholeColumn; 17] = [
    ("id", |c| text(c.id.to_string())),
    ("protocol", |c| text(c.protocol.as_str())),
    ("opened_at", |c| Cell::Time(Some(c.opened_at))),
    ("closed_at", |c| Cell::Time(c.closed_at)),
    ("duration_us", |c| {
        Cell::Number(
            c.closed_at
                .and_then(|at| u64::try_from(at.0.saturating_sub(c.opened_at.0)).ok()),
        )
    }),
    ("state", |c| text(c.state.as_str())),
    ("name", |c| {
        Cell::Text(c.name.as_ref().map(|n| n.name.clone()))
    }),
    ("name_source", |c| {
        Cell::Text(c.name.as_ref().map(|n| n.source.as_str().to_owned()))
    }),
    ("name_before_us", |c| {
        Cell::Number(c.name.as_ref().map(|n| n.before_us.into()))
    }),
    ("application", |c| {
        Cell::Text(c.application.map(|known| known.as_str().to_owned()))
    }),
    ("evidence", |c| {
        Cell::Text(c.matched.as_ref().map(|m| m.evidence.clone()))
    }),
    ("confidence", |c| {
        Cell::Text(c.matched.as_ref().map(|m| m.confidence.as_str().to_owned()))
    }),
    ("nat", |c| {
        Cell::Text(c.matched.as_ref().map(|m| m.nat.join(" ")))
    }),
    ("class", |c| text(c.path.class.as_str())),
    ("crosses", |c| text(c.path.crosses.join(" "))),
    ("via", |c| text(c.path.via.join(" "))),
    ("unmatched", |c| {
        Cell::Text(c.path.unmatched.map(|reason| reason.as_str().to_owned()))
    }),
];

const END: [EndColumn; 35] = [
    ("agent", |e| known(&e.agent)),
    ("federator", |e| known(&e.federator)),
    ("cloud", |e| known(&e.site.cloud)),
    ("account", |e| known(&e.site.account)),
    ("region", |e| known(&e.site.region)),
    ("zone", |e| known(&e.site.zone)),
    ("network", |e| known(&e.site.network)),
    ("cluster", |e| known(&e.site.cluster)),
    ("namespace", |e| known(&e.site.namespace)),
    ("workload", |e| known(&e.workload)),
    ("pid", |e| {
        Cell::Number(e.process.as_ref().map(|p| p.pid.into()))
    }),
    ("process", |e| {
        Cell::Text(e.process.as_ref().map(|p| p.name.clone()))
    }),
    ("exe", |e| {
        Cell::Text(e.process.as_ref().and_then(|p| p.exe.clone()))
    }),
    ("uid", |e| {
        Cell::Number(e.process.as_ref().map(|p| p.uid.into()))
    }),
    ("username", |e| {
        Cell::Text(e.process.as_ref().and_then(|p| p.user.clone()))
    }),
    ("args", |e| {
        Cell::Text(e.process.as_ref().and_then(|p| p.args.clone()))
    }),
    ("container", |e| Cell::Text(e.container.clone())),
    ("pod", |e| pod(e, |pod| &pod.name)),
    ("pod_owner_kind", |e| pod(e, |pod| &pod.owner_kind)),
    ("pod_owner", |e| pod(e, |pod| &pod.owner_name)),
    ("pod_container", |e| pod(e, |pod| &pod.container)),
    ("image", |e| pod(e, |pod| &pod.image)),
    ("unit", |e| Cell::Text(e.unit.clone())),
    ("escaped", |e| Cell::Number(Some(e.escaped.into()))),
    ("sharers", |e| {
        let ids: Vec<String> = e.sharers.iter().map(|p| p.pid.to_string()).collect();
        known(&ids.join(" "))
    }),
    ("local", |e| text(&*e.local)),
    ("remote", |e| text(&*e.remote)),
    ("address", |e| text(split(&e.local).0)),
    ("port", |e| Cell::Number(split(&e.local).1)),
    ("bytes_sent", |e| Cell::Number(Some(e.bytes_sent))),
    ("bytes_received", |e| Cell::Number(Some(e.bytes_received))),
    ("rtt_us", |e| Cell::Number(e.rtt_us.map(u64::from))),
    ("retransmits", |e| Cell::Number(Some(e.retransmits.into()))),
    ("state", |e| text(e.state.as_str())),
    ("isn", |e| {
        Cell::Text(e.isn.as_ref().map(|isn| isn.join("/")))
    }),
];

fn pod(end: &Endpoint, field: impl Fn(&Pod) -> &String) -> Cell {
    Cell::Text(
        end.pod
            .as_ref()
            .map(field)
            .filter(|text| !text.is_empty())
            .cloned(),
    )
}

fn split(endpoint: &str) -> (String, Option<u64>) {
    match endpoint.parse::<std::net::SocketAddr>() {
        Ok(socket) => (socket.ip().to_string(), Some(socket.port().into())),
        Err(_) => (endpoint.to_owned(), None),
    }
}

/// Names and SQL types of the table `connection`.
pub fn columns() -> Vec<(String, &'static str)> {
    let sample = |cell: Cell| cell.sql();
    let nothing = nothing();
    let whole = WHOLE
        .iter()
        .map(|(name, cell)| ((*name).to_owned(), sample(cell(&nothing))));
    let nobody = nobody();
    let ends = ["client", "server"].into_iter().flat_map(|end| {
        END.iter()
            .map(move |(name, cell)| (format!("{end}_{name}"), *cell))
    });
    whole
        .chain(ends.map(|(name, cell)| (name, sample(cell(&nobody)))))
        .collect()
}

/// Whether a statement may ask for lookups: then they are fetched for it.
pub fn names_lookups(statement: &str) -> bool {
    statement.to_ascii_lowercase().contains("lookups")
}

/// Runs one statement over these connections and lookups.
pub fn run(
    connections: &[Connection],
    lookups: &[LookupRecord],
    objects: &[Told],
    statement: &str,
    limits: &SqlLimits,
) -> Result<SqlAnswer, QueryError> {
    let db = fenced(limits).map_err(refused)?;
    copy(&db, connections).map_err(refused)?;
    if names_lookups(statement) {
        lookups::copy(&db, lookups).map_err(refused)?;
    }
    copy_objects(&db, objects).map_err(refused)?;
    db.execute_batch("SET lock_configuration = true")
        .map_err(refused)?;
    let select = single_select(&db, statement)?;
    let rows = limits.rows.clamp(1, MAX_ROWS);
    let handle = db.interrupt_handle();
    let (finished, watched) = channel::<()>();
    let timeout = limits.timeout;
    let watch = std::thread::spawn(move || {
        let late = watched.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout);
        if late {
            handle.interrupt();
        }
        late
    });
    let answer = bounded(&db, &select, rows)
        .and_then(|(names, bounded)| collect(&db, names, &bounded, rows as usize));
    drop(finished);
    let late = watch.join().unwrap_or(false);
    answer.map_err(|error| {
        if late {
            let cause = format!("it ran longer than {} s", limits.timeout.as_secs());
            return failure(
                "E-SQL-TIME",
                "the statement was stopped",
                &cause,
                "a narrower window: --since 10m",
            );
        }
        refused(error)
    })
}

/// An empty database that can reach nothing.
fn fenced(limits: &SqlLimits) -> Result<Database, duckdb::Error> {
    let config = Config::default()
        // Nothing spills to a file: beyond its memory a statement fails.
        .with("temp_directory", "")?
        .enable_external_access(false)?
        .enable_autoload_extension(false)?
        .threads(1)?
        .max_memory(&limits.memory)?
        .with("autoinstall_known_extensions", "false")?
        .with("allow_community_extensions", "false")?
        .with("allow_persistent_secrets", "false")?;
    Database::open_in_memory_with_flags(config)
}

/// The statement as DuckDB writes it, if it is one SELECT.
fn single_select(db: &Database, statement: &str) -> Result<String, QueryError> {
    let no = |cause: &str| {
        failure(
            "E-SQL",
            "the statement was refused",
            cause,
            "weft sql 'SELECT ... FROM connection'",
        )
    };
    let tree: String = db
        .query_row(
            "SELECT json_serialize_sql(?::VARCHAR)::VARCHAR",
            [statement],
            |row| row.get(0),
        )
        .map_err(refused)?;
    let parsed: serde_json::Value =
        serde_json::from_str(&tree).map_err(|error| no(&error.to_string()))?;
    if parsed["error"] != serde_json::Value::Bool(false) {
        let message = parsed["error_message"]
            .as_str()
            .unwrap_or("it is not a SELECT");
        let cause = if message.contains("Only SELECT") {
            "only one SELECT may be asked, which changes nothing"
        } else {
            message
        };
        return Err(no(cause));
    }
    match parsed["statements"].as_array().map(Vec::len) {
        Some(1) => {}
        _ => return Err(no("there is more than one statement")),
    }
    if let Some(refused) = steps_outside(db, &parsed["statements"]).map_err(refused)? {
        return Err(no(&format!("{refused} may not be called here")));
    }
    db.query_row("SELECT json_deserialize_sql(?::JSON)", [&tree], |row| {
        row.get(0)
    })
    .map_err(refused)
}

/// What a parsed statement calls that is more than a question, if anything: a table function that is not in [`TABLE_FUNCTIONS`], or
/// a function that DuckDB itself calls volatile or says has side effects, and that is not in [`VOLATILE`].
///
/// Only what is in the tree is looked at. That is enough because what runs a text as another statement (`query` and its like) is a
/// table function.
fn steps_outside(db: &Database, tree: &serde_json::Value) -> Result<Option<String>, duckdb::Error> {
    let mut called = Called::default();
    called.look(tree);
    if let Some(name) = called.tables.into_iter().find(|name| !may_be_table(name)) {
        return Ok(Some(name));
    }
    let mut statement = db.prepare(
        "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE stability = 'VOLATILE' OR has_side_effects",
    )?;
    let volatile = statement
        .query_map([], |row| row.get::<_, String>(0))?
        .collect::<Result<Vec<_>, _>>()?;
    let outside = |name: &String| volatile.contains(name) && !VOLATILE.contains(&name.as_str());
    Ok(called.functions.into_iter().find(outside))
}

fn may_be_table(name: &str) -> bool {
    TABLE_FUNCTIONS.contains(&name)
}

/// Names of the functions in a parsed statement, in lower case.
#[derive(Default)]
struct Called {
    /// Those that stand where a table does.
    tables: Vec<String>,
    /// All.
    functions: Vec<String>,
}

impl Called {
    fn look(&mut self, tree: &serde_json::Value) {
        match tree {
            serde_json::Value::Object(fields) => {
                let word = |value: Option<&serde_json::Value>| {
                    value.and_then(|value| Some(value.as_str()?.to_ascii_lowercase()))
                };
                if word(fields.get("type")).as_deref() == Some("table_function") {
                    let function = fields.get("function");
                    let name = word(function.and_then(|function| function.get("function_name")));
                    // Whatever else could stand there is not known to us.
                    self.tables
                        .push(name.unwrap_or_else(|| "a table function".to_owned()));
                }
                self.functions.extend(word(fields.get("function_name")));
                fields.values().for_each(|value| self.look(value));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| self.look(item)),
            _ => {}
        }
    }
}

fn refused(error: duckdb::Error) -> QueryError {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let fence = ["file system", "disabled", "Permission"]
        .iter()
        .any(|word| first.contains(word));
    let hint = if fence {
        "a statement can only see the tables connection, lookups and cluster_objects"
    } else {
        "weft sql 'SELECT * FROM connection LIMIT 1' shows the columns"
    };
    failure("E-SQL", "the statement failed", first, hint)
}

/// The names of a statement's columns, and the statement that gives one row more than the limit, with values that can be told: a date
/// or a list as text, as DuckDB writes it.
fn bounded(db: &Database, select: &str, rows: u32) -> Result<(Vec<String>, String), duckdb::Error> {
    let mut statement = db.prepare(&format!("DESCRIBE {select}"))?;
    let columns = statement
        .query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    let cells: Vec<String> = (columns.iter().enumerate())
        .map(|(at, (_, kind))| {
            if is_plain(kind) {
                format!("c{at}")
            } else {
                format!("c{at}::VARCHAR")
            }
        })
        .collect();
    let list: Vec<String> = (0..columns.len()).map(|at| format!("c{at}")).collect();
    let bounded = format!(
        "SELECT {} FROM (\n{select}\n) AS answer({}) LIMIT {}",
        cells.join(", "),
        list.join(", "),
        rows + 1
    );
    Ok((columns.into_iter().map(|(name, _)| name).collect(), bounded))
}

fn is_plain(kind: &str) -> bool {
    let decimal = kind.starts_with("DECIMAL(") && kind.ends_with(')');
    decimal || PLAIN_TYPES.contains(&kind)
}

fn collect(
    db: &Database,
    columns: Vec<String>,
    select: &str,
    limit: usize,
) -> Result<SqlAnswer, duckdb::Error> {
    let mut statement = db.prepare(select)?;
    let mut rows = statement.query([])?;
    let mut answer = SqlAnswer {
        columns,
        ..SqlAnswer::default()
    };
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        if answer.rows.len() == limit || bytes > MAX_ANSWER_BYTES {
            answer.truncated = true;
            break;
        }
        let width = row.as_ref().column_count();
        let cells: Result<Vec<SqlValue>, duckdb::Error> = (0..width)
            .map(|at| Ok(told(row.get::<_, Value>(at)?)))
            .collect();
        let cells = cells?;
        bytes += cells.iter().map(text_bytes).sum::<usize>();
        answer.rows.push(cells);
    }
    Ok(answer)
}

fn text_bytes(value: &SqlValue) -> usize {
    if let SqlValue::Text(text) = value {
        text.len()
    } else {
        0
    }
}

fn told(value: Value) -> SqlValue {
    let unsigned =
        |number: u64| i64::try_from(number).map_or(SqlValue::UInt(number), SqlValue::Int);
    match value {
        Value::Null => SqlValue::Null,
        Value::Boolean(value) => SqlValue::Bool(value),
        Value::TinyInt(number) => SqlValue::Int(number.into()),
        Value::SmallInt(number) => SqlValue::Int(number.into()),
        Value::Int(number) => SqlValue::Int(number.into()),
        Value::BigInt(number) => SqlValue::Int(number),
        Value::HugeInt(number) => match (i64::try_from(number), u64::try_from(number)) {
            (Ok(number), _) => SqlValue::Int(number),
            (_, Ok(number)) => SqlValue::UInt(number),
            _ => SqlValue::Text(number.to_string()),
        },
        Value::UTinyInt(number) => SqlValue::Int(number.into()),
        Value::USmallInt(number) => SqlValue::Int(number.into()),
        Value::UInt(number) => SqlValue::Int(number.into()),
        Value::UBigInt(number) => unsigned(number),
        Value::Float(number) => SqlValue::Float(number.into()),
        Value::Double(number) => SqlValue::Float(number),
        Value::Text(text) | Value::Enum(text) => SqlValue::Text(text),
        Value::Timestamp(unit, at) => {
            let micros = match unit {
                ValueUnit::Second => at.saturating_mul(1_000_000),
                ValueUnit::Millisecond => at.saturating_mul(1000),
                ValueUnit::Microsecond => at,
                ValueUnit::Nanosecond => at / 1000,
            };
            SqlValue::Text(Timestamp(micros).to_string())
        }
        Value::Decimal(decimal) => SqlValue::Text(decimal.to_string()),
        // All others were cast to text.
        other => SqlValue::Text(format!("{other:?}")),
    }
}

/// Whether a statement may read `cluster_objects`.
pub fn needs_objects(statement: &str) -> bool {
    statement.to_ascii_lowercase().contains("cluster_objects")
}

/// What agents told of their clusters; a list is one text, its entries divided by spaces.
fn copy_objects(db: &Database, objects: &[Told]) -> Result<(), duckdb::Error> {
    db.execute_batch(
        "CREATE TABLE cluster_objects (cluster VARCHAR, kind VARCHAR, namespace VARCHAR, name VARCHAR, uid VARCHAR,
             belongs_to VARCHAR, sort VARCHAR, addresses VARCHAR, ports VARCHAR, hosts VARCHAR, refers_to VARCHAR,
             told_at TIMESTAMP)",
    )?;
    let mut appender = db.appender("cluster_objects")?;
    for Told {
        cluster,
        at,
        object,
    } in objects
    {
        appender.append_row(duckdb::params![
            cluster,
            object.kind.as_str(),
            object.namespace,
            object.name,
            object.uid,
            object.of,
            object.sort,
            object.addresses.join(" "),
            object.ports.join(" "),
            object.hosts.join(" "),
            object.refers_to.join(" "),
            Value::Timestamp(ValueUnit::Microsecond, at.0)
        ])?;
    }
    appender.flush()
}

fn copy(db: &Database, connections: &[Connection]) -> Result<(), duckdb::Error> {
    let columns = columns();
    let list: Vec<String> = columns
        .iter()
        .map(|(name, kind)| format!("{name} {kind}"))
        .collect();
    db.execute_batch(&format!("CREATE TABLE connection ({})", list.join(", ")))?;
    let fields = columns.iter().map(|(name, kind)| field(name, kind));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let mut appender = db.appender("connection")?;
    for piece in connections.chunks(COPY_ROWS) {
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.len());
        for (_, cell) in WHOLE {
            arrays.push(array(piece.iter().map(cell).collect()));
        }
        let (clients, servers): (Vec<_>, Vec<_>) = piece
            .iter()
            .map(|c| (c.client.as_ref(), c.server.as_ref()))
            .unzip();
        for ends in [clients, servers] {
            for (_, cell) in END {
                let empty = cell(&nobody());
                arrays.push(array(
                    ends.iter()
                        .map(|end| end.map_or_else(|| null(&empty), cell))
                        .collect(),
                ));
            }
        }
        let batch = RecordBatch::try_new(schema.clone(), arrays)
            .map_err(|error| duckdb::Error::ToSqlConversionFailure(error.into()))?;
        appender.append_record_batch(batch)?;
    }
    appender.flush()
}

fn field(name: &str, kind: &str) -> Field {
    let kind = match kind {
        "UBIGINT" => DataType::UInt64,
        "TIMESTAMP" => DataType::Timestamp(TimeUnit::Microsecond, None),
        _ => DataType::Utf8,
    };
    Field::new(name, kind, true)
}

fn array(cells: Vec<Cell>) -> ArrayRef {
    match cells.first() {
        Some(Cell::Number(_)) => Arc::new(
            cells
                .into_iter()
                .map(|cell| if let Cell::Number(n) = cell { n } else { None })
                .collect::<UInt64Array>(),
        ),
        Some(Cell::Time(_)) => Arc::new(
            cells
                .into_iter()
                .map(|cell| {
                    if let Cell::Time(t) = cell {
                        t.map(|t| t.0)
                    } else {
                        None
                    }
                })
                .collect::<TimestampMicrosecondArray>(),
        ),
        _ => Arc::new(
            cells
                .into_iter()
                .map(|cell| if let Cell::Text(t) = cell { t } else { None })
                .collect::<StringArray>(),
        ),
    }
}

/// Not known, of the same type.
fn null(cell: &Cell) -> Cell {
    match cell {
        Cell::Text(_) => Cell::Text(None),
        Cell::Number(_) => Cell::Number(None),
        Cell::Time(_) => Cell::Time(None),
    }
}

pub(super) fn nothing() -> Connection {
    use weft_wire::query::{ConnectionState, Path, PathClass};
    Connection {
        id: weft_wire::HalfId(0),
        protocol: weft_wire::Protocol::Tcp,
        opened_at: Timestamp(0),
        closed_at: None,
        state: ConnectionState::Open,
        name: None,
        application: None,
        client: None,
        server: None,
        matched: None,
        path: Path {
            class: PathClass::Unknown,
            crosses: Vec::new(),
            via: Vec::new(),
            unmatched: None,
        },
    }
}

pub(super) fn nobody() -> Endpoint {
    Endpoint {
        half: weft_wire::HalfId(0),
        agent: String::new(),
        federator: String::new(),
        site: weft_wire::Site::default(),
        workload: String::new(),
        process: None,
        container: None,
        pod: None,
        unit: None,
        escaped: false,
        sharers: Vec::new(),
        local: String::new(),
        remote: String::new(),
        bytes_sent: 0,
        bytes_received: 0,
        rtt_us: None,
        retransmits: 0,
        state: weft_wire::HalfState::Open,
        isn: None,
    }
}

#[cfg(test)]
mod tests;
