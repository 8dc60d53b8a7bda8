//! Tables of the store, and the views for people who open the file with their own tools.
//!
//! `connections_live` holds what may still change (open, unmatched, or a card is due) and stays small; a row that is settled
//! moves to `connections_done`, which is only appended to. Both have the columns below. Strings stand in `owners` and
//! `agents`. Addresses are two 64-bit columns, IPv4 mapped into IPv6.

/// The schema's version, kept in the file; another one is refused.
pub const SCHEMA_VERSION: u64 = 1;

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
    /// VARCHAR
    Text,
}

impl Type {
    fn sql(self) -> &'static str {
        match self {
            Self::U8 => "UTINYINT",
            Self::U16 => "USMALLINT",
            Self::U32 => "UINTEGER",
            Self::U64 => "UBIGINT",
            Self::Time => "TIMESTAMP",
            Self::Text => "VARCHAR",
        }
    }
}

/// Columns of a connection as a whole.
pub const ROW_COLUMNS: [(&str, Type); 13] = [
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
    ("via", Type::Text),
    ("card_due", Type::U8),
];

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

/// Prefixes of the two ends.
pub const SIDES: [&str; 2] = ["c_", "s_"];

/// All columns of a connection table in their order.
pub fn connection_columns() -> Vec<(String, Type)> {
    let row = ROW_COLUMNS
        .iter()
        .map(|(name, kind)| ((*name).to_owned(), *kind));
    let sides = SIDES.iter().flat_map(|prefix| {
        SIDE_COLUMNS
            .iter()
            .map(move |(name, kind)| (format!("{prefix}{name}"), *kind))
    });
    row.chain(sides).collect()
}

/// Statements that make an empty store.
pub fn create() -> String {
    let columns: Vec<String> = connection_columns()
        .iter()
        .map(|(name, kind)| format!("{name} {}", kind.sql()))
        .collect();
    let columns = columns.join(", ");
    format!(
        "CREATE TABLE IF NOT EXISTS connections_live ({columns});
         CREATE TABLE IF NOT EXISTS connections_done ({columns});
         CREATE TABLE IF NOT EXISTS agents (id UINTEGER, key UBIGINT, federator VARCHAR, name VARCHAR, version VARCHAR,
             kernel VARCHAR, host VARCHAR, cloud VARCHAR, account VARCHAR, region VARCHAR, zone VARCHAR, network VARCHAR,
             cluster VARCHAR, namespace VARCHAR);
         CREATE TABLE IF NOT EXISTS owners (id UINTEGER, pid UINTEGER, started_at TIMESTAMP, process VARCHAR, exe VARCHAR,
             uid UINTEGER, username VARCHAR, cgroup VARCHAR, container VARCHAR, netns UINTEGER, workload VARCHAR);
         CREATE TABLE IF NOT EXISTS links (half UBIGINT, peer VARCHAR, theirs UBIGINT, partial BOOLEAN, joined BOOLEAN,
             heard_final BOOLEAN, told_final BOOLEAN);
         CREATE TABLE IF NOT EXISTS sequences (agent UBIGINT, seq UBIGINT);
         CREATE TABLE IF NOT EXISTS progress (schema_version UBIGINT, position UBIGINT);
         CREATE OR REPLACE VIEW connections AS
             SELECT * FROM connections_done UNION ALL SELECT * FROM connections_live;"
    )
}
