//! `weft report`: pairs of workloads and what flowed between them.

use weft_wire::Site;
use weft_wire::query::{Party, Report, ReportOrder, ReportRow};

use crate::answer::Answer;
use crate::connections::workload_name;
use crate::failure::Failure;
use crate::figures::{bytes, count, counted, time};
use crate::table::{Column, Table, brief, figure, text};
use crate::view::{Text, View, json_rows, paths};

pub(crate) fn view(
    which: Report,
    by: ReportOrder,
    rows: &[ReportRow],
    answer: &Answer,
) -> Result<View, Failure> {
    let name = which.as_str();
    let total = rows
        .iter()
        .fold(0_u64, |sum, row| sum.saturating_add(carried(row)));
    let connections = rows
        .iter()
        .fold(0_u64, |sum, row| sum.saturating_add(row.connections));
    let mut hints = Vec::new();
    if let Some(row) = rows.first() {
        let largest = match by {
            ReportOrder::Bytes => "carries most",
            ReportOrder::Connections => "connects most often",
        };
        hints.push(format!("what {largest}: weft explain {}", row.example));
    }
    if answer.truncated {
        hints.push("there are more: --top 100, or narrow with --where".to_owned());
    }
    let pairs = match which {
        Report::Hairpins => counted(rows.len(), "hairpin", "hairpins"),
        _ => counted(rows.len(), "pair of workloads", "pairs of workloads"),
    };
    Ok(View {
        schema: format!("weft.report.{name}/1"),
        rows: json_rows(rows)?,
        paths: csv_paths(),
        text: Text::table(table(which, rows)),
        summary: format!(
            "{pairs}, {} connections, {}",
            count(connections),
            bytes(total)
        ),
        hints,
        ..View::default()
    })
}

fn csv_paths() -> Vec<String> {
    let party = |end: &str| {
        [
            "workload",
            "managed",
            "site.cloud",
            "site.account",
            "site.region",
            "site.zone",
            "site.network",
            "site.cluster",
            "site.namespace",
        ]
        .map(|path| format!("{end}.{path}"))
    };
    let rest = paths(&[
        "class",
        "via",
        "connections",
        "bytes_to_server",
        "bytes_to_client",
        "first_seen",
        "last_seen",
        "example",
    ]);
    party("client")
        .into_iter()
        .chain(party("server"))
        .chain(rest)
        .collect()
}

fn table(which: Report, rows: &[ReportRow]) -> Table {
    let figures = [
        figure("CONNECTIONS", 2),
        figure("TO SERVER", 3),
        figure("TO CLIENT", 3),
        figure("BYTES", 0),
    ];
    let middle: Vec<Column> = middle(which)
        .into_iter()
        .map(|(column, _)| column)
        .collect();
    let last = [text("LAST SEEN", 5), brief("EXAMPLE", 6, 8)];
    let ends = [text("CLIENT", 0), text("SERVER", 0)];
    let cells = |row: &ReportRow| {
        let mut cells = vec![party_name(&row.client), party_name(&row.server)];
        cells.extend(middle_cells(which, row));
        cells.push(count(row.connections));
        cells.extend([row.bytes_to_server, row.bytes_to_client, carried(row)].map(bytes));
        cells.extend([time(row.last_seen), row.example.to_string()]);
        cells
    };
    Table {
        columns: ends
            .into_iter()
            .chain(middle)
            .chain(figures)
            .chain(last)
            .collect(),
        rows: rows.iter().map(cells).collect(),
    }
}

/// What a report shows between names and figures.
#[derive(Clone, Copy)]
enum Middle {
    /// The boundary that it is about, from one side to the other.
    Crossing(fn(&Site) -> &str),
    /// Whether the unmanaged end is called or calls.
    Direction,
    Class,
    Via,
}

fn middle(which: Report) -> Vec<(Column, Middle)> {
    let crossing = |title: &str, part: fn(&Site) -> &str| (text(title, 1), Middle::Crossing(part));
    let class = (text("CLASS", 2), Middle::Class);
    let via = (text("VIA", 4), Middle::Via);
    match which {
        Report::CrossCluster => vec![crossing("CLUSTERS", |s| &s.cluster), class, via],
        Report::CrossCloud => vec![crossing("CLOUDS", |s| &s.cloud), class, via],
        Report::CrossRegion => vec![crossing("REGIONS", |s| &s.region), class, via],
        Report::CrossNamespace => vec![crossing("NAMESPACES", |s| &s.namespace), class, via],
        Report::NorthSouth => vec![(text("DIRECTION", 1), Middle::Direction)],
        Report::Hairpins => vec![(text("VIA", 1), Middle::Via)],
        Report::Dependencies => vec![class, via],
    }
}

fn middle_cells(which: Report, row: &ReportRow) -> impl Iterator<Item = String> {
    middle(which).into_iter().map(move |(_, what)| match what {
        Middle::Crossing(part) => format!(
            "{} > {}",
            or_dash(part(&row.client.site)),
            or_dash(part(&row.server.site))
        ),
        Middle::Direction if !row.server.managed => "out".to_owned(),
        Middle::Direction => "in".to_owned(),
        Middle::Class => row.class.as_str().to_owned(),
        Middle::Via if row.via.is_empty() => "-".to_owned(),
        Middle::Via => row.via.join(" > "),
    })
}

fn party_name(party: &Party) -> String {
    workload_name(&party.site, &party.workload)
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn carried(row: &ReportRow) -> u64 {
    row.bytes_to_server.saturating_add(row.bytes_to_client)
}
