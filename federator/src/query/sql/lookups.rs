//! The table `lookups`: its columns are those of a lookup's record, flattened.

use std::sync::Arc;

use duckdb::Connection as Database;
use duckdb::arrow::array::ArrayRef;
use duckdb::arrow::datatypes::Schema;
use duckdb::arrow::record_batch::RecordBatch;
use weft_wire::query::{Asker, LookupRecord};
use weft_wire::{LookupProtocol, LookupTransport, Role, Timestamp};

use super::{COPY_ROWS, Cell, array, field, known, text};

type Column = (&'static str, fn(&LookupRecord) -> Cell);

const COLUMNS: [Column; 31] = [
    ("asked_at", |l| Cell::Time(Some(l.asked_at))),
    ("name", |l| text(&*l.name)),
    ("qtype", |l| text(&*l.qtype)),
    ("code", |l| Cell::Text(l.code.clone())),
    ("answers", |l| text(l.answers.join(" "))),
    ("answer_total", |l| number(l.answer_total)),
    ("latency_us", |l| Cell::Number(l.latency_us.map(u64::from))),
    ("tries", |l| number(l.tries)),
    ("truncated", |l| number(l.truncated)),
    ("search_of", |l| Cell::Text(l.search_of.clone())),
    ("request_bytes", |l| number(l.request_bytes)),
    ("response_bytes", |l| number(l.response_bytes)),
    ("role", |l| text(l.role.as_str())),
    ("protocol", |l| {
        text(match l.protocol {
            LookupProtocol::Dns => "dns",
            LookupProtocol::Mdns => "mdns",
        })
    }),
    ("transport", |l| {
        text(match l.transport {
            LookupTransport::Udp => "udp",
            LookupTransport::Tcp => "tcp",
            LookupTransport::Dot => "dot",
            LookupTransport::Doh => "doh",
        })
    }),
    ("local", |l| text(&*l.local)),
    ("resolver", |l| text(&*l.resolver)),
    ("agent", |l| known(&l.asker.agent)),
    ("federator", |l| known(&l.asker.federator)),
    ("cloud", |l| known(&l.asker.site.cloud)),
    ("account", |l| known(&l.asker.site.account)),
    ("region", |l| known(&l.asker.site.region)),
    ("zone", |l| known(&l.asker.site.zone)),
    ("network", |l| known(&l.asker.site.network)),
    ("cluster", |l| known(&l.asker.site.cluster)),
    ("namespace", |l| known(&l.asker.site.namespace)),
    ("workload", |l| known(&l.asker.workload)),
    ("pod", |l| Cell::Text(l.asker.pod.clone())),
    ("container", |l| Cell::Text(l.asker.container.clone())),
    ("process", |l| Cell::Text(l.asker.process.clone())),
    ("pid", |l| Cell::Number(l.pid.map(u64::from))),
];

fn number(number: impl Into<u64>) -> Cell {
    Cell::Number(Some(number.into()))
}

/// Makes the table and copies the lookups into it.
pub(super) fn copy(db: &Database, lookups: &[LookupRecord]) -> Result<(), duckdb::Error> {
    let nothing = nothing();
    let list: Vec<String> = COLUMNS
        .iter()
        .map(|(name, cell)| format!("{name} {}", cell(&nothing).sql()))
        .collect();
    db.execute_batch(&format!("CREATE TABLE lookups ({})", list.join(", ")))?;
    let fields = COLUMNS
        .iter()
        .map(|(name, cell)| field(name, cell(&nothing).sql()));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let mut appender = db.appender("lookups")?;
    for piece in lookups.chunks(COPY_ROWS) {
        let arrays: Vec<ArrayRef> = COLUMNS
            .iter()
            .map(|(_, cell)| array(piece.iter().map(cell).collect()))
            .collect();
        let batch = RecordBatch::try_new(schema.clone(), arrays)
            .map_err(|error| duckdb::Error::ToSqlConversionFailure(error.into()))?;
        appender.append_record_batch(batch)?;
    }
    appender.flush()
}

/// For the types of the columns.
fn nothing() -> LookupRecord {
    LookupRecord {
        asker: Asker::default(),
        pid: None,
        role: Role::Client,
        protocol: LookupProtocol::Dns,
        transport: LookupTransport::Udp,
        local: String::new(),
        resolver: String::new(),
        asked_at: Timestamp(0),
        latency_us: None,
        name: String::new(),
        qtype: String::new(),
        code: None,
        truncated: false,
        tries: 1,
        answers: Vec::new(),
        answer_total: 0,
        request_bytes: 0,
        response_bytes: 0,
        search_of: None,
    }
}
