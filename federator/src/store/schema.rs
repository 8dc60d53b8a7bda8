//! Tables of the store, and the views over them.
//!
//! `connections_live` holds what may still change (open, unmatched, or a card is due) and stays small; a row that is settled
//! moves to `connections_done`, which is only appended to. Both keep the columns below: those that a window is cut by as
//! columns of their own, all others in three structs (`fact`, `c`, `s`), because DuckDB takes them a third faster like that:
//! for the fields of a struct it keeps no estimate of how many values are distinct. Strings stand in `owners`, `agents`,
//! `names` and `vias`. Addresses are two 64-bit columns, IPv4 mapped into IPv6. `lookups` is only appended to.
//!
//! `first_datagrams` has the fingerprints of UDP halves in `connections_live`, by the row's id: those of TCP are columns, and
//! rows that do not change any more need none.
//!
//! `progress` says which journal position all of it covers, and `held` which halves below that are still to be taken from the
//! journal.
//!
//! The view `connections` is for people who open the file with their own tools; [`PLAIN`] is the same with the number of
//! `via`, which spares a join.

/// The schema's version, kept in the file; another one is refused.
pub const SCHEMA_VERSION: u64 = 6;

/// View of all connections, flat.
pub const PLAIN: &str = "connections_plain";
/// View of those that may not, flat.
pub const DONE: &str = "connections_done_plain";
/// View of those that may change, flat.
pub const LIVE: &str = "connections_live_plain";

/// Stands for null in the columns of [`ROW_COLUMNS`] that say so: a null costs more than a value.
pub const NO_CODE: u8 = u8::MAX;

/// How a column is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// UTINYINT
    U8,
    /// USMALLINT
    U16,
    /// UINTEGER
    U32,
    /// UBIGINT
    U64,
    /// TIMESTAMP, UTC
    Time,
}

impl Type {
    fn sql(self) -> &'static str {
        match self {
            Self::U8 => "UTINYINT",
            Self::U16 => "USMALLINT",
            Self::U32 => "UINTEGER",
            Self::U64 => "UBIGINT",
            Self::Time => "TIMESTAMP",
        }
    }
}

/// Columns of a connection as a whole, in the order of the views. Of them, `id`, `opened_at` and `seen_at` are columns of the
/// tables, the others fields of `fact`; `evidence`, `confidence` and `unmatched` are kept as [`NO_CODE`] for null, `via`, `name` and
/// `application` as 0. `name` is the client's, `application` that of [`Row::application`](crate::record::Row::application).
/// `exchange` has bit 1 while a card is due, and those of [`CutOff`](crate::record::CutOff).
pub const ROW_COLUMNS: [(&str, Type); 16] = [
    ("id", Type::U64),
    ("protocol", Type::U8),
    ("state", Type::U8),
    ("opened_at", Type::Time),
    ("closed_at", Type::Time),
    ("seen_at", Type::Time),
    ("evidence", Type::U8),
    ("confidence", Type::U8),
    ("unmatched", Type::U8),
    ("class", Type::U8),
    ("crosses", Type::U8),
    ("via", Type::U32),
    ("exchange", Type::U8),
    ("name", Type::U32),
    ("named_before_us", Type::U32),
    ("application", Type::U8),
];

/// Those of [`ROW_COLUMNS`] that are columns of the tables.
pub const OWN_COLUMNS: [&str; 3] = ["id", "opened_at", "seen_at"];

/// Columns of each end, prefixed `c_` and `s_`; all null where the end was not seen.
pub const SIDE_COLUMNS: [(&str, Type); 21] = [
    ("half", Type::U64),
    ("agent", Type::U32),
    ("owner", Type::U32),
    ("state", Type::U8),
    ("isn_client", Type::U32),
    ("isn_server", Type::U32),
    ("opened_at", Type::Time),
    ("closed_at", Type::Time),
    ("seen_at", Type::Time),
    ("local_high", Type::U64),
    ("local_low", Type::U64),
    ("local_port", Type::U16),
    ("remote_high", Type::U64),
    ("remote_low", Type::U64),
    ("remote_port", Type::U16),
    ("bytes_sent", Type::U64),
    ("bytes_received", Type::U64),
    ("packets_sent", Type::U64),
    ("packets_received", Type::U64),
    ("rtt_us", Type::U32),
    ("retransmits", Type::U32),
];

/// The structs of the two ends; in the views, their fields are columns with these and `_` before their names.
pub const SIDES: [&str; 2] = ["c", "s"];

/// The fields of `fact`, in their order.
pub fn fact_columns() -> impl Iterator<Item = (&'static str, Type)> {
    ROW_COLUMNS
        .into_iter()
        .filter(|(name, _)| !OWN_COLUMNS.contains(name))
}

/// Columns of a table: each alone, or a struct with its fields.
fn table_columns() -> String {
    let list = |columns: &mut dyn Iterator<Item = (&'static str, Type)>| -> String {
        let columns: Vec<String> = columns
            .map(|(name, kind)| format!("{name} {}", kind.sql()))
            .collect();
        columns.join(", ")
    };
    let own = list(
        &mut ROW_COLUMNS
            .into_iter()
            .filter(|(name, _)| OWN_COLUMNS.contains(name)),
    );
    let (fact, side) = (
        list(&mut fact_columns()),
        list(&mut SIDE_COLUMNS.into_iter()),
    );
    format!("{own}, fact STRUCT({fact}), c STRUCT({side}), s STRUCT({side})")
}

/// Columns of the views, over a table of ours.
fn view_columns() -> String {
    let row = ROW_COLUMNS.iter().map(|(name, _)| match *name {
        name if OWN_COLUMNS.contains(&name) => name.to_owned(),
        "evidence" | "confidence" | "unmatched" => {
            format!("nullif(fact.{name}, {NO_CODE}) AS {name}")
        }
        name => format!("fact.{name} AS {name}"),
    });
    let sides = SIDES.iter().flat_map(|side| {
        SIDE_COLUMNS
            .iter()
            .map(move |(name, _)| format!("{side}.{name} AS {side}_{name}"))
    });
    row.chain(sides).collect::<Vec<_>>().join(", ")
}

/// Statements that make an empty store.
pub fn create() -> String {
    let (columns, view) = (table_columns(), view_columns());
    format!(
        "CREATE TABLE IF NOT EXISTS connections_live ({columns});
         CREATE TABLE IF NOT EXISTS connections_done ({columns});
         CREATE TABLE IF NOT EXISTS agents (id UINTEGER, key UBIGINT, federator VARCHAR, name VARCHAR, version VARCHAR,
             kernel VARCHAR, host VARCHAR, cloud VARCHAR, account VARCHAR, region VARCHAR, zone VARCHAR, network VARCHAR,
             cluster VARCHAR, namespace VARCHAR, pods BOOLEAN);
         CREATE TABLE IF NOT EXISTS owners (id UINTEGER, pid UINTEGER, started_at TIMESTAMP, process VARCHAR, exe VARCHAR,
             uid UINTEGER, username VARCHAR, cgroup VARCHAR, container VARCHAR, netns UINTEGER, workload VARCHAR,
             args VARCHAR, parent UINTEGER, parent_name VARCHAR, unit VARCHAR, escaped BOOLEAN, pod_namespace VARCHAR, pod VARCHAR,
             pod_uid VARCHAR, pod_owner_kind VARCHAR, pod_owner VARCHAR, pod_container VARCHAR, pod_image VARCHAR,
             pod_labels VARCHAR, sharers VARCHAR);
         CREATE TABLE IF NOT EXISTS lookups (agent UINTEGER, owner UINTEGER, role UTINYINT, protocol UTINYINT,
             transport UTINYINT, local_high UBIGINT, local_low UBIGINT, local_port USMALLINT, resolver VARCHAR, asked_at TIMESTAMP,
             latency_us UINTEGER, message USMALLINT, name VARCHAR, qtype USMALLINT, code USMALLINT, truncated BOOLEAN,
             tries UTINYINT, answers VARCHAR, answer_total USMALLINT, request_bytes UINTEGER, response_bytes UINTEGER,
             search_of VARCHAR);
         CREATE TABLE IF NOT EXISTS names (id UINTEGER, name VARCHAR, source UTINYINT);
         CREATE TABLE IF NOT EXISTS vias (id UINTEGER, addresses VARCHAR);
         CREATE TABLE IF NOT EXISTS first_datagrams (id UBIGINT, server_end BOOLEAN, sort UTINYINT, client UBIGINT,
             server UBIGINT, telling BOOLEAN);
         CREATE TABLE IF NOT EXISTS links (half UBIGINT, peer VARCHAR, theirs UBIGINT, partial BOOLEAN, joined BOOLEAN,
             heard_final BOOLEAN, told_final BOOLEAN);
         CREATE TABLE IF NOT EXISTS sequences (agent UBIGINT, seq UBIGINT, description UINTEGER, skew_us BIGINT, boot UBIGINT,
             newest BIGINT, gone_before BIGINT);
         CREATE TABLE IF NOT EXISTS progress (schema_version UBIGINT, position UBIGINT, held_from UBIGINT);
         CREATE TABLE IF NOT EXISTS held (half UBIGINT);"
    ) + &format!(
        "CREATE OR REPLACE VIEW {LIVE} AS SELECT {view} FROM connections_live;
         CREATE OR REPLACE VIEW {DONE} AS SELECT {view} FROM connections_done;
         CREATE OR REPLACE VIEW {PLAIN} AS
             SELECT {view} FROM connections_done UNION ALL SELECT {view} FROM connections_live;
         CREATE OR REPLACE VIEW connections AS
             SELECT k.* REPLACE (v.addresses AS via, n.name AS name,
                 CASE WHEN k.name > 0 THEN k.named_before_us END AS named_before_us,
                 nullif(k.application, 0) AS application), n.source AS name_source
             FROM {PLAIN} k LEFT JOIN vias v ON v.id = k.via LEFT JOIN names n ON n.id = k.name;"
    )
}
