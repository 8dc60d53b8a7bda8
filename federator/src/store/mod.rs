//! The store: DuckDB, one writer, any number of readers.
//!
//! A [`Flush`] is one transaction: rows replaced and added, new names, the journal position that all of it covers and the
//! sequence numbers below it. So the file is always the exact state at one journal position, and what the journal holds
//! above it is replayed into a core that starts with [`Store::load`].
//!
//! Schema: [`schema`]. Rows as Arrow columns: [`append`], with their paths: `paths`; back: [`read`].

pub mod append;
pub mod lookups;
mod paths;
pub mod read;
pub mod schema;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use duckdb::{Config, Connection, params};
use weft_cloud_context::End;
use weft_mesh::Link;
use weft_wire::{AgentKey, Fingerprint, HalfId, Timestamp};

use self::append::{Columns, VECTOR_ROWS};
use self::paths::Paths;
use crate::core::GENERATION;
pub use crate::record::Loaded;
use crate::record::{AgentNumber, AgentRecord, Flush, Row, Side, Standing, code};

/// Write-ahead log size at which DuckDB folds it into the file. With 64 MB that took an eighth of all the work of storing; what is in the
/// log is in memory too, and read again at the start.
const CHECKPOINT_THRESHOLD: &str = "256MB";

/// Before it, DuckDB has no times and `make_timestamp` fails; nothing so old comes here ([`crate::times`]), and it would cost the
/// federator.
const FIRST_OF_CALENDAR_US: i64 = -9_223_372_022_400_000_000;

/// Why the store failed. Nothing of the transaction was kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// DuckDB's error.
    #[error("store: {0}")]
    Database(#[from] duckdb::Error),
    /// Rows that do not fit the schema: a defect.
    #[error("store: {0}")]
    Arrow(#[from] duckdb::arrow::error::ArrowError),
    /// Made by another version of the program.
    #[error(
        "store {} has schema version {found}, this program needs {needed}: start the release that made it, or move the file away and \
         begin with an empty store (what it holds is not found any more then)", path.display()
    )]
    Version {
        /// File.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// Ours.
        needed: u64,
    },
    /// Something else's database.
    #[error(
        "{} is a DuckDB file, but not a store of this program: move it away, or name another data_dir", .0.display()
    )]
    NotAStore(PathBuf),
    /// A thread that held the reader's lock panicked.
    #[error("store: a reader failed")]
    Poisoned,
}

/// How the store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// File.
    pub path: PathBuf,
    /// DuckDB's threads.
    pub threads: u32,
    /// DuckDB's memory limit, `1GB` for one.
    pub memory_limit: String,
}

/// The writer.
pub struct Store {
    connection: Connection,
    agents: HashMap<AgentNumber, Arc<AgentRecord>>,
    paths: Paths,
    columns: Columns,
    /// Whether the table of that name may have rows: without UDP, nothing is spent on it.
    has_first_datagrams: bool,
}

/// Opens connections that only read.
#[derive(Clone)]
pub struct Readers {
    root: Arc<Mutex<Connection>>,
}

impl Store {
    /// Opens or creates the file.
    pub fn open(options: &StoreOptions) -> Result<Self, StoreError> {
        let config = Config::default()
            .threads(i64::from(options.threads.max(1)))?
            .max_memory(&options.memory_limit)?
            .with("checkpoint_threshold", CHECKPOINT_THRESHOLD)?
            .with("preserve_insertion_order", "false")?;
        let connection = Connection::open_with_flags(&options.path, config)?;
        // Before anything is made in it: a table of another version may have the same name and other columns.
        refuse_others(&connection, &options.path)?;
        connection.execute_batch(&schema::create())?;
        connection.execute(
            "INSERT INTO progress SELECT ?, 0, 0 WHERE NOT EXISTS (FROM progress)",
            params![schema::SCHEMA_VERSION],
        )?;
        let mut store = Self {
            connection,
            agents: HashMap::new(),
            paths: Paths::default(),
            columns: Columns::default(),
            has_first_datagrams: true,
        };
        store.forget_names()?;
        store.paths = Paths::new(read::vias(&store.connection, paths::MAX_VIAS)?);
        store.agents = read::agents(&store.connection)?;
        let first = "SELECT count(*) > 0 FROM first_datagrams";
        store.has_first_datagrams = store.connection.query_row(first, [], |row| row.get(0))?;
        store
            .connection
            .execute_batch("CREATE TEMP TABLE replaced_ids (id UBIGINT)")?;
        Ok(store)
    }

    /// Connections for readers.
    pub fn readers(&self) -> Result<Readers, StoreError> {
        Ok(Readers {
            root: Arc::new(Mutex::new(self.connection.try_clone()?)),
        })
    }

    /// What may still change, with everything it refers to.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let (position, held_from) =
            self.connection
                .query_row("SELECT position, held_from FROM progress", [], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
        let mut statement = self.connection.prepare("SELECT half FROM held")?;
        let held = statement
            .query_map([], |row| Ok(HalfId(row.get(0)?)))?
            .collect::<Result<_, _>>()?;
        let mut live = read::rows(
            &self.connection,
            &format!("SELECT * FROM {} ORDER BY id", schema::LIVE),
            [],
        )?;
        read::first_datagrams(&self.connection, &mut live)?;
        let owners = read::owners(
            &self.connection,
            live.iter().flat_map(Row::sides).map(|side| side.half.owner),
        )?;
        let names = read::names(
            &self.connection,
            live.iter().flat_map(Row::sides).map(|side| side.half.name),
        )?;
        let next_name = self.connection.query_row(
            "SELECT coalesce(max(id) + 1, 1)::UINTEGER FROM names",
            [],
            |row| row.get(0),
        )?;
        let next_owner = self.connection.query_row(
            "SELECT coalesce(max(id) + 1, 0)::UINTEGER FROM owners",
            [],
            |row| row.get(0),
        )?;
        let mut statement = self
            .connection
            .prepare("SELECT agent, seq FROM sequences ORDER BY agent")?;
        let sequences = statement
            .query_map([], |row| Ok((AgentKey(row.get(0)?), row.get(1)?)))?
            .collect::<Result<Vec<_>, _>>()?;
        let mut statement = self
            .connection
            .prepare("SELECT agent, description FROM sequences WHERE description IS NOT NULL")?;
        let descriptions = statement
            .query_map([], |row| Ok((AgentKey(row.get(0)?), row.get(1)?)))?
            .collect::<Result<Vec<_>, _>>()?;
        let mut statement = self
            .connection
            .prepare("SELECT agent, skew_us, boot, newest, gone_before FROM sequences")?;
        let standings = statement
            .query_map([], |row| {
                let standing = Standing {
                    skew_us: row.get(1)?,
                    boot: row.get(2)?,
                    newest: Timestamp(row.get(3)?),
                    gone_before: row.get::<_, Option<i64>>(4)?.map(Timestamp),
                };
                Ok((AgentKey(row.get(0)?), standing))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        let links = read::links(&self.connection)?;
        Ok(Loaded {
            position,
            held,
            held_from,
            departed: read::latest_halves(&self.connection, GENERATION)?,
            live,
            agents: self.agents.clone(),
            owners,
            next_owner,
            names,
            next_name,
            links,
            sequences,
            descriptions,
            standings,
        })
    }

    /// Writes one transaction.
    pub fn flush(&mut self, flush: &Flush) -> Result<(), StoreError> {
        for (number, agent) in &flush.agents {
            self.agents.insert(*number, agent.clone());
        }
        self.connection.execute_batch("BEGIN")?;
        let written = self.write(flush);
        let ended = self.connection.execute_batch(if written.is_ok() {
            "COMMIT"
        } else {
            "ROLLBACK"
        });
        written?;
        Ok(ended?)
    }

    fn write(&mut self, flush: &Flush) -> Result<(), StoreError> {
        self.write_names(flush)?;
        self.delete_ids(&flush.replaced, "connections_live", "id")?;
        self.delete_first_datagrams(&flush.replaced)?;
        // Rows are in the order of time, more or less: what is older need not be looked through.
        let since = format!(
            "opened_at >= make_timestamp({}) AND id",
            flush.replaced_from.0.max(FIRST_OF_CALENDAR_US)
        );
        self.delete_ids(&flush.replaced_done, "connections_done", &since)?;
        self.append(
            flush.rows.iter().filter(|row| !row.settled),
            "connections_live",
        )?;
        self.append(
            flush.rows.iter().filter(|row| row.settled),
            "connections_done",
        )?;
        self.write_first_datagrams(&flush.rows)?;
        self.write_vias()?;
        lookups::append(&self.connection, &flush.lookups)?;
        self.delete_ids(&flush.links_changed, "links", "half")?;
        let mut appender = self.connection.appender("links")?;
        for (half, link) in &flush.links {
            let Link {
                peer,
                theirs,
                partial,
                joined,
                heard_final,
                told_final,
            } = link;
            appender.append_row(params![
                half.0,
                peer,
                theirs.0,
                partial,
                joined,
                heard_final,
                told_final
            ])?;
        }
        appender.flush()?;
        drop(appender);
        // All at once: of thousands of agents, many have news in every flush.
        let agents = flush.sequences.iter().map(|(agent, _)| agent.0);
        self.delete_numbers(agents, "sequences", "agent")?;
        let mut appender = self.connection.appender("sequences")?;
        let descriptions: HashMap<AgentKey, AgentNumber> =
            flush.descriptions.iter().copied().collect();
        let standings: HashMap<AgentKey, Standing> = flush.standings.iter().copied().collect();
        for (agent, seq) in &flush.sequences {
            let standing = standings.get(agent).copied().unwrap_or_default();
            appender.append_row(params![
                agent.0,
                seq,
                descriptions.get(agent),
                standing.skew_us,
                standing.boot,
                standing.newest.0,
                standing.gone_before.map(|at| at.0)
            ])?;
        }
        appender.flush()?;
        drop(appender);
        self.connection.execute_batch("DELETE FROM held")?;
        let mut appender = self.connection.appender("held")?;
        for id in &flush.held {
            appender.append_row(params![id.0])?;
        }
        appender.flush()?;
        self.connection.execute(
            "UPDATE progress SET position = ?, held_from = ?",
            params![flush.position, flush.held_from],
        )?;
        Ok(())
    }

    fn write_names(&self, flush: &Flush) -> Result<(), StoreError> {
        let mut appender = self.connection.appender("agents")?;
        for (number, agent) in &flush.agents {
            let AgentRecord {
                key,
                federator,
                info,
                pods,
            } = &**agent;
            let site = &info.site;
            appender.append_row(params![
                number,
                key.map(|key| key.0),
                federator,
                info.name,
                info.version,
                info.kernel,
                info.host,
                site.cloud,
                site.account,
                site.region,
                site.zone,
                site.network,
                site.cluster,
                site.namespace,
                pods
            ])?;
        }
        appender.flush()?;
        let mut appender = self.connection.appender("owners")?;
        for (number, owner) in &flush.owners {
            let (process, pod) = (owner.process.as_ref(), owner.pod.as_ref());
            appender.append_row(params![
                number,
                process.map(|process| process.pid),
                process.map(|process| duckdb::types::Value::Timestamp(
                    duckdb::types::TimeUnit::Microsecond,
                    process.started_at.0
                )),
                process.map(|process| &process.name),
                process.and_then(|process| process.exe.as_ref()),
                process.map(|process| process.uid),
                process.and_then(|process| process.user.as_ref()),
                owner.cgroup,
                owner.container,
                owner.netns,
                owner.workload,
                process.and_then(|process| process.args.as_ref()),
                process.map(|process| process.parent),
                process.map(|process| &process.parent_name),
                owner.unit,
                owner.escaped,
                pod.map(|pod| &pod.namespace),
                pod.map(|pod| &pod.name),
                pod.map(|pod| &pod.uid),
                pod.map(|pod| &pod.owner_kind),
                pod.map(|pod| &pod.owner_name),
                pod.map(|pod| &pod.container),
                pod.map(|pod| &pod.image),
                pod.map(|pod| json(&pod.labels)),
                (!owner.sharers.is_empty()).then(|| json(&owner.sharers))
            ])?;
        }
        appender.flush()?;
        if !flush.names.is_empty() {
            let mut appender = self.connection.appender("names")?;
            for (number, name) in &flush.names {
                appender.append_row(params![number, name.name, name.source as u8])?;
            }
            appender.flush()?;
        }
        Ok(())
    }

    fn delete_ids(&self, ids: &[HalfId], table: &str, column: &str) -> Result<(), StoreError> {
        self.delete_numbers(ids.iter().map(|id| id.0), table, column)
    }

    fn delete_numbers(
        &self,
        numbers: impl ExactSizeIterator<Item = u64>,
        table: &str,
        column: &str,
    ) -> Result<(), StoreError> {
        if numbers.len() == 0 {
            return Ok(());
        }
        self.connection.execute_batch("DELETE FROM replaced_ids")?;
        let mut appender =
            self.connection
                .appender_to_catalog_and_db("replaced_ids", "temp", "main")?;
        for number in numbers {
            appender.append_row(params![number])?;
        }
        appender.flush()?;
        drop(appender);
        self.connection.execute_batch(&format!(
            "DELETE FROM {table} WHERE {column} IN (SELECT id FROM replaced_ids)"
        ))?;
        Ok(())
    }

    fn append<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a Row>,
        table: &str,
    ) -> Result<(), StoreError> {
        let rows: Vec<&Row> = rows.collect();
        let mut paths = Vec::with_capacity(VECTOR_ROWS);
        for chunk in rows.chunks(VECTOR_ROWS * 16) {
            let mut appender = self.connection.appender(table)?;
            for vector in chunk.chunks(VECTOR_ROWS) {
                paths.clear();
                for row in vector {
                    paths.push(self.paths.of(&self.agents, row));
                }
                appender.append_record_batch(self.columns.batch(vector, &paths)?)?;
            }
            appender.flush()?;
        }
        Ok(())
    }

    /// Right after these rows were deleted: their ids are still listed.
    fn delete_first_datagrams(&self, replaced: &[HalfId]) -> Result<(), StoreError> {
        if !replaced.is_empty() && self.has_first_datagrams {
            self.connection.execute_batch(
                "DELETE FROM first_datagrams WHERE id IN (SELECT id FROM replaced_ids)",
            )?;
        }
        Ok(())
    }

    /// Of the rows that may still change: with nothing else can their UDP halves be told after a restart.
    fn write_first_datagrams(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        let of_side = |side: Option<&Side>| match side?.half.fingerprint {
            Fingerprint::Datagrams(first) => Some(first),
            Fingerprint::Unknown | Fingerprint::TcpIsn { .. } => None,
        };
        let ends = rows.iter().filter(|row| !row.settled).flat_map(|row| {
            let ends = [(row.client.as_ref(), false), (row.server.as_ref(), true)];
            ends.map(|(side, server_end)| (row.id(), server_end, of_side(side)))
        });
        let mut known = ends
            .filter_map(|(id, server_end, first)| Some((id, server_end, first?)))
            .peekable();
        if known.peek().is_none() {
            return Ok(());
        }
        self.has_first_datagrams = true;
        let mut appender = self.connection.appender("first_datagrams")?;
        for (id, server_end, first) in known {
            appender.append_row(params![
                id.0,
                server_end,
                code::of(&code::DATAGRAM_SORTS, &first.sort),
                first.client,
                first.server,
                first.distinct
            ])?;
        }
        appender.flush()?;
        Ok(())
    }

    /// After the rows, whose paths gave new numbers.
    fn write_vias(&mut self) -> Result<(), StoreError> {
        let mut appender = self.connection.appender("vias")?;
        for (number, addresses) in self.paths.take_fresh() {
            appender.append_row(params![number, &*addresses])?;
        }
        appender.flush()?;
        Ok(())
    }

    /// Deletes settled connections last seen before `before`, and lookups asked before it; returns how many. Their owners go
    /// when the store is opened next.
    pub fn retain(&mut self, before: Timestamp) -> Result<usize, StoreError> {
        let deleted = self.connection.execute(
            "DELETE FROM connections_done WHERE seen_at < make_timestamp(?)",
            params![before.0],
        )?;
        let lookups = self.connection.execute(
            "DELETE FROM lookups WHERE asked_at < make_timestamp(?)",
            params![before.0],
        )?;
        let deleted = deleted + lookups;
        Ok(deleted)
    }

    /// Deletes owners and paths that no connection and no lookup refers to. Only before the core has loaded them: later it
    /// may give their numbers to new halves.
    fn forget_names(&self) -> Result<(), StoreError> {
        Ok(self.connection.execute_batch(&format!(
            "DELETE FROM owners WHERE id NOT IN (
                 SELECT c_owner FROM {0} WHERE c_owner IS NOT NULL
                 UNION SELECT s_owner FROM {0} WHERE s_owner IS NOT NULL
                 UNION SELECT owner FROM lookups)
             AND id < (SELECT max(id) FROM owners);
             DELETE FROM names WHERE id NOT IN (SELECT name FROM {0}) AND id < (SELECT max(id) FROM names);
             DELETE FROM vias WHERE id NOT IN (SELECT DISTINCT via FROM {0} WHERE via IS NOT NULL)
             AND id < (SELECT max(id) FROM vias)",
            schema::PLAIN
        ))?)
    }
}

impl Readers {
    /// A connection of its own for one reader.
    pub fn connection(&self) -> Result<Connection, StoreError> {
        Ok(self
            .root
            .lock()
            .map_err(|_| StoreError::Poisoned)?
            .try_clone()?)
    }
}

/// Whether the file is empty or a store of this version.
fn refuse_others(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let count = |condition: &str| {
        let sql = format!("SELECT count(*) FROM duckdb_tables() WHERE {condition}");
        connection.query_row(&sql, [], |row| row.get::<_, u64>(0))
    };
    if count("true")? == 0 {
        return Ok(());
    }
    if count("table_name = 'progress'")? == 0 {
        return Err(StoreError::NotAStore(path.to_path_buf()));
    }
    let found: Option<u64> =
        connection.query_row("SELECT max(schema_version) FROM progress", [], |row| {
            row.get(0)
        })?;
    match found {
        None | Some(schema::SCHEMA_VERSION) => Ok(()),
        Some(found) => Err(StoreError::Version {
            path: path.to_path_buf(),
            found,
            needed: schema::SCHEMA_VERSION,
        }),
    }
}

/// A list as a column of text keeps it.
fn json<T: serde::Serialize>(list: &T) -> Option<String> {
    serde_json::to_string(list).ok()
}

/// One end as the classification sees it.
pub fn end_of<'a>(
    agents: &'a HashMap<AgentNumber, Arc<AgentRecord>>,
    side: &Side,
) -> Option<End<'a>> {
    let agent = agents.get(&side.agent)?;
    Some(End {
        agent: &agent.info.name,
        federator: &agent.federator,
        site: &agent.info.site,
        local: side.half.local,
        remote: side.half.remote,
    })
}

#[cfg(test)]
mod tests;
