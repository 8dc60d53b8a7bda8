//! `weft connections`: a row a connection. What names an end is here too, for all views.

use serde::Serialize;
use weft_wire::Site;
use weft_wire::query::{Connection, Endpoint};

use crate::answer::Answer;
use crate::chains::{self, Step};
use crate::failure::Failure;
use crate::figures::{bytes, counted, duration_us, time};
use crate::table::{Table, brief, figure, text};
use crate::view::{Text, View, json, json_rows};

/// Fields of an end in CSV, after `client.` or `server.`.
const END_PATHS: &[&str] = &[
    "agent",
    "federator",
    "site.cloud",
    "site.account",
    "site.region",
    "site.zone",
    "site.network",
    "site.cluster",
    "site.namespace",
    "workload",
    "process.pid",
    "process.name",
    "process.exe",
    "process.uid",
    "container",
    "local",
    "remote",
    "bytes_sent",
    "bytes_received",
    "rtt_us",
    "retransmits",
    "state",
];

/// A row with what goes on through proxies.
#[derive(Serialize)]
struct Followed<'a> {
    #[serde(flatten)]
    connection: &'a Connection,
    chain: Vec<Step<'a>>,
}

pub(crate) fn view(
    rows: &[Connection],
    answer: &Answer,
    limit: u32,
    follow: bool,
) -> Result<View, Failure> {
    let matched = rows.iter().filter(|row| row.matched.is_some()).count();
    let mut hints = Vec::new();
    if answer.truncated {
        hints.push(format!(
            "there are more: --limit {}, or narrow with --where",
            limit.saturating_mul(4)
        ));
    } else if rows.is_empty() {
        hints.push("nothing was open in this window; look further back with --since 24h, or run weft health".into());
    }
    let (mut shown, mut lines) = (table(rows), json_rows(rows)?);
    if follow {
        shown.columns.push(text("CHAIN", 1));
        for (line, row) in shown.rows.iter_mut().zip(rows) {
            line.push(chains::cell(row, &answer.chains));
        }
        let followed = rows.iter().map(|connection| {
            json(&Followed {
                connection,
                chain: chains::of(connection, &answer.chains)
                    .map(chains::step)
                    .collect(),
            })
        });
        lines = followed.collect::<Result<_, _>>()?;
    }
    Ok(View {
        schema: "weft.connections/1".to_owned(),
        rows: lines,
        paths: csv_paths(),
        text: Text::table(shown),
        summary: format!(
            "{}, {matched} with both ends",
            counted(rows.len(), "connection", "connections")
        ),
        hints,
        ..View::default()
    })
}

pub(crate) fn csv_paths() -> Vec<String> {
    let of = |end: &'static str| END_PATHS.iter().map(move |path| format!("{end}.{path}"));
    let first = [
        "id",
        "protocol",
        "opened_at",
        "closed_at",
        "state",
        "name.name",
        "name.source",
        "name.before_us",
        "application",
    ]
    .map(str::to_owned);
    let last = [
        "match.evidence",
        "match.confidence",
        "match.nat",
        "path.class",
        "path.crosses",
        "path.via",
        "path.unmatched",
    ]
    .map(str::to_owned);
    first
        .into_iter()
        .chain(of("client"))
        .chain(of("server"))
        .chain(last)
        .collect()
}

pub(crate) fn table(rows: &[Connection]) -> Table {
    let columns = vec![
        brief("ID", 0, 8),
        text("OPENED", 5),
        text("CLIENT", 0),
        text("SERVER", 0),
        text("NAME", 4),
        text("APP", 5),
        text("CLIENT SEES", 6),
        text("SERVER SEES", 6),
        text("NAT", 4),
        text("MATCH", 2),
        text("CLASS", 1),
        figure("BYTES", 1),
        figure("RTT", 7),
        text("STATE", 3),
    ];
    Table {
        columns,
        rows: rows.iter().map(row).collect(),
    }
}

fn row(c: &Connection) -> Vec<String> {
    let end = c.client.as_ref().or(c.server.as_ref());
    let sees = |e: Option<&Endpoint>, arrow: &str| {
        e.map_or("-".into(), |e| format!("{} {arrow} {}", e.local, e.remote))
    };
    vec![
        c.id.to_string(),
        time(c.opened_at),
        client_name(c),
        server_name(c),
        c.name.as_ref().map_or("-".into(), |n| n.name.clone()),
        c.application
            .map_or("-".into(), |known| known.as_str().to_owned()),
        sees(c.client.as_ref(), ">"),
        sees(c.server.as_ref(), "<"),
        c.matched.as_ref().map_or("-".into(), |m| nat(&m.nat)),
        match_words(c),
        c.path.class.as_str().to_owned(),
        end.map_or("-".into(), |e| {
            bytes(e.bytes_sent.saturating_add(e.bytes_received))
        }),
        c.client
            .as_ref()
            .and_then(|e| e.rtt_us)
            .map_or("-".into(), |rtt| duration_us(rtt.into())),
        c.state.as_str().to_owned(),
    ]
}

fn match_words(c: &Connection) -> String {
    match (&c.matched, c.path.unmatched) {
        (Some(m), _) => format!("{} {}", m.confidence.as_str(), m.evidence),
        (None, Some(reason)) => format!("none: {}", reason.as_str()),
        (None, None) => "none".to_owned(),
    }
}

/// NAT in two words: SNAT for the source, DNAT for the destination, with ` port` where only the port changed.
pub(crate) fn nat(rewrites: &[String]) -> String {
    let has = |what: &str| rewrites.iter().any(|r| r == what);
    let part = |name: &str, address: &str, port: &str| {
        if has(address) {
            Some(name.to_owned())
        } else if has(port) {
            Some(format!("{name} port"))
        } else {
            None
        }
    };
    let parts: Vec<String> = [
        part("SNAT", "source", "source-port"),
        part("DNAT", "destination", "destination-port"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if parts.is_empty() {
        "none".to_owned()
    } else {
        parts.join(", ")
    }
}

/// `cluster/namespace/workload`, without what is not known.
pub(crate) fn workload_name(site: &Site, workload: &str) -> String {
    let parts = [site.cluster.as_str(), site.namespace.as_str(), workload];
    let known: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    if known.is_empty() {
        "?".to_owned()
    } else {
        known.join("/")
    }
}

/// Its workload, or the address by which the server knows it.
pub(crate) fn client_name(c: &Connection) -> String {
    name(c.client.as_ref(), c.server.as_ref())
}

/// Its workload, or the address that the client called.
pub(crate) fn server_name(c: &Connection) -> String {
    name(c.server.as_ref(), c.client.as_ref())
}

fn name(own: Option<&Endpoint>, other: Option<&Endpoint>) -> String {
    match (own, other) {
        (Some(own), _) => workload_name(&own.site, &own.workload),
        (None, Some(other)) => other.remote.clone(),
        (None, None) => "?".to_owned(),
    }
}
