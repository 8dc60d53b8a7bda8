//! `weft dns`: who asks for which names, and what comes of it.

use weft_wire::query::{Asker, DnsReport, DnsRow};

use crate::EXIT_FINDING;
use crate::answer::Answer;
use crate::connections::workload_name;
use crate::failure::Failure;
use crate::figures::{count, counted, duration_us, time};
use crate::table::{Table, brief, figure, text};
use crate::view::{Block, Text, View, json_rows, paths};

pub(crate) fn view(
    report: &DnsReport,
    rows: &[DnsRow],
    answer: &Answer,
    top: u32,
) -> Result<View, Failure> {
    let lookups = sum(rows, |row| row.lookups);
    let mut hints = hints(report, rows);
    if answer.truncated {
        let more = top.saturating_mul(5);
        hints.push(format!(
            "there are more: --top {more}, or narrow with --from"
        ));
    }
    if rows.is_empty() && *report != DnsReport::Threats {
        hints.push(
            "no agent saw such a lookup in this window; look further back with --since 24h".into(),
        );
    }
    let things = match report {
        DnsReport::Top => counted(rows.len(), "asker", "askers"),
        DnsReport::External => counted(rows.len(), "domain", "domains"),
        DnsReport::Bypass => counted(rows.len(), "way past the names", "ways past the names"),
        DnsReport::Threats => counted(
            rows.len(),
            "listed name asked for",
            "listed names asked for",
        ),
        DnsReport::Failures | DnsReport::Hotspots | DnsReport::Explain { .. } => {
            counted(rows.len(), "row", "rows")
        }
    };
    let finding = *report == DnsReport::Threats && !rows.is_empty();
    Ok(View {
        schema: format!("weft.dns.{}/1", word(report)),
        rows: json_rows(rows)?,
        paths: csv_paths(),
        text: words(report, rows),
        summary: match report {
            DnsReport::Bypass => format!("{things}, {} connections", count(lookups)),
            _ => format!("{things}, {} lookups", count(lookups)),
        },
        hints,
        exit: if finding { EXIT_FINDING } else { 0 },
        ..View::default()
    })
}

/// The report's word, in its schema and on the command line.
pub(crate) fn word(report: &DnsReport) -> &'static str {
    match report {
        DnsReport::Top => "top",
        DnsReport::Hotspots => "hotspots",
        DnsReport::External => "external",
        DnsReport::Failures => "failures",
        DnsReport::Threats => "threats",
        DnsReport::Explain { .. } => "explain",
        DnsReport::Bypass => "bypass",
    }
}

fn hints(report: &DnsReport, rows: &[DnsRow]) -> Vec<String> {
    let Some(first) = rows.first() else {
        return Vec::new();
    };
    let wasted = sum(rows, |row| row.wasted);
    match report {
        DnsReport::Top if !first.asker.workload.is_empty() => {
            vec![format!(
                "what the first asks for: weft dns hotspots --from {}",
                first.asker.workload
            )]
        }
        DnsReport::Hotspots => vec![format!(
            "who asks, and what for an answer: weft dns explain {}",
            first.name
        )],
        DnsReport::Failures if wasted > 0 => vec![format!(
            "{} lookups only tried the search path: end names outside with a dot, or set ndots to 1 in the pod's dnsConfig",
            count(wasted)
        )],
        DnsReport::Threats => vec![format!("weft dns explain {}", first.name)],
        DnsReport::Bypass => {
            let last = first.example.as_deref();
            last.map(|last| {
                format!("the last connection of the first: weft connections --from {last}")
            })
            .into_iter()
            .collect()
        }
        _ => Vec::new(),
    }
}

fn words(report: &DnsReport, rows: &[DnsRow]) -> Text {
    match report {
        DnsReport::Top => Text::table(top(rows)),
        DnsReport::Hotspots => Text::table(hotspots(rows)),
        DnsReport::External => Text::table(external(rows)),
        DnsReport::Failures => Text::table(failures(rows)),
        DnsReport::Threats => Text::table(threats(rows)),
        DnsReport::Explain { name } => explain(name, rows),
        DnsReport::Bypass => Text::table(bypass(rows)),
    }
}

fn top(rows: &[DnsRow]) -> Table {
    Table {
        columns: vec![
            text("ASKER", 0),
            text("PROCESS", 1),
            text("POD", 2),
            brief("CONTAINER", 4, 12),
            text("AGENT", 5),
            figure("LOOKUPS", 0),
            figure("NAMES", 2),
            figure("FAILED", 1),
            figure("SEARCH PATH", 3),
            figure("UNANSWERED", 3),
            figure("LATENCY", 2),
        ],
        rows: rows
            .iter()
            .map(|row| {
                vec![
                    who(&row.asker),
                    or_dash(row.asker.process.as_deref()),
                    or_dash(row.asker.pod.as_deref()),
                    or_dash(row.asker.container.as_deref()),
                    row.asker.agent.clone(),
                    count(row.lookups),
                    count(row.names),
                    count(row.failed.saturating_sub(row.wasted)),
                    count(row.wasted),
                    count(row.unanswered),
                    latency(row),
                ]
            })
            .collect(),
    }
}

fn hotspots(rows: &[DnsRow]) -> Table {
    Table {
        columns: vec![
            text("NAME", 0),
            text("SIDE", 3),
            figure("LOOKUPS", 0),
            figure("ASKERS", 1),
            text("MOST BY", 1),
            figure("OF THEM", 2),
            figure("FAILED", 2),
            figure("LATENCY", 2),
            text("THREAT", 4),
        ],
        rows: rows
            .iter()
            .map(|row| {
                vec![
                    name(row),
                    row.kind.clone(),
                    count(row.lookups),
                    count(row.askers),
                    process_of(&row.asker),
                    count(row.asker_lookups),
                    count(row.failed + row.unanswered),
                    latency(row),
                    or_dash(row.threat.as_deref()),
                ]
            })
            .collect(),
    }
}

fn external(rows: &[DnsRow]) -> Table {
    let all = sum(rows, |row| row.lookups).max(1);
    Table {
        columns: vec![
            text("DOMAIN", 0),
            figure("LOOKUPS", 0),
            figure("SHARE", 1),
            figure("NAMES", 2),
            figure("ASKERS", 2),
            text("MOST BY", 1),
            figure("FAILED", 2),
            figure("LATENCY", 3),
        ],
        rows: rows
            .iter()
            .map(|row| {
                let domain = match row.name.as_str() {
                    "" if row.internal > 0 => format!("(internal, {})", row.kind),
                    _ => name(row),
                };
                let share = row.lookups as f64 * 100.0 / all as f64;
                vec![
                    domain,
                    count(row.lookups),
                    format!("{share:.1} %"),
                    count(row.names),
                    count(row.askers),
                    process_of(&row.asker),
                    count(row.failed + row.unanswered),
                    latency(row),
                ]
            })
            .collect(),
    }
}

fn failures(rows: &[DnsRow]) -> Table {
    Table {
        columns: vec![
            text("NAME", 0),
            text("OUTCOME", 0),
            figure("LOOKUPS", 0),
            figure("ASKERS", 2),
            text("MOST BY", 1),
            figure("OF THEM", 3),
            text("LAST SEEN", 4),
        ],
        rows: rows
            .iter()
            .map(|row| {
                vec![
                    name(row),
                    row.outcome.clone(),
                    count(row.lookups),
                    count(row.askers),
                    process_of(&row.asker),
                    count(row.asker_lookups),
                    time(row.last_seen),
                ]
            })
            .collect(),
    }
}

fn threats(rows: &[DnsRow]) -> Table {
    Table {
        columns: vec![
            text("NAME", 0),
            text("LISTED AS", 2),
            text("ASKER", 0),
            text("PROCESS", 1),
            text("POD", 3),
            brief("CONTAINER", 4, 12),
            text("AGENT", 3),
            figure("LOOKUPS", 1),
            text("LAST SEEN", 2),
        ],
        rows: rows
            .iter()
            .map(|row| {
                vec![
                    name(row),
                    or_dash(row.threat.as_deref()),
                    who(&row.asker),
                    or_dash(row.asker.process.as_deref()),
                    or_dash(row.asker.pod.as_deref()),
                    or_dash(row.asker.container.as_deref()),
                    row.asker.agent.clone(),
                    count(row.lookups),
                    time(row.last_seen),
                ]
            })
            .collect(),
    }
}

fn bypass(rows: &[DnsRow]) -> Table {
    Table {
        columns: vec![
            text("ASKER", 0),
            text("PROCESS", 0),
            text("POD", 2),
            brief("CONTAINER", 4, 12),
            text("AGENT", 3),
            text("BY", 0),
            text("RESOLVER", 0),
            figure("CONNECTIONS", 0),
            text("LAST SEEN", 1),
            text("LAST FROM", 3),
        ],
        rows: rows
            .iter()
            .map(|row| {
                vec![
                    who(&row.asker),
                    or_dash(row.asker.process.as_deref()),
                    or_dash(row.asker.pod.as_deref()),
                    or_dash(row.asker.container.as_deref()),
                    row.asker.agent.clone(),
                    row.transport.clone(),
                    row.resolvers.join(" "),
                    count(row.lookups),
                    time(row.last_seen),
                    or_dash(row.example.as_deref()),
                ]
            })
            .collect(),
    }
}

fn explain(asked: &str, rows: &[DnsRow]) -> Text {
    let Some(first) = rows.first() else {
        return Text::lines(vec![format!("nobody asked for {asked}")]);
    };
    let side = match first.kind.as_str() {
        "external" => "outside: its last labels are on the public suffix list".to_owned(),
        "configured" => "inside: the federator's dns.internal says so".to_owned(),
        kind => format!("inside: {kind}"),
    };
    let mut lines = vec![format!("name    {asked}, {side}")];
    let threat = rows.iter().find_map(|row| row.threat.as_deref());
    lines.extend(threat.map(|entry| format!("threat  listed as {entry}")));
    let mut resolvers: Vec<&str> = rows
        .iter()
        .flat_map(|row| &row.resolvers)
        .map(String::as_str)
        .collect();
    resolvers.sort_unstable();
    resolvers.dedup();
    lines.push(format!("asked   {}", resolvers.join(", ")));
    lines.push(format!(
        "seen    {} lookups, {} answered with an error ({} on the search path), {} not answered, {} sent again",
        count(sum(rows, |row| row.lookups)),
        count(sum(rows, |row| row.failed)),
        count(sum(rows, |row| row.wasted)),
        count(sum(rows, |row| row.unanswered)),
        count(sum(rows, |row| row.repeated)),
    ));
    let table = Table {
        columns: vec![
            text("NAME", 0),
            text("OUTCOME", 0),
            text("ASKER", 0),
            text("PROCESS", 1),
            text("POD", 3),
            figure("LOOKUPS", 0),
            figure("LATENCY", 1),
            figure("LONGEST", 4),
            text("ANSWERS", 2),
        ],
        rows: rows
            .iter()
            .map(|row| {
                vec![
                    name(row),
                    row.outcome.clone(),
                    who(&row.asker),
                    or_dash(row.asker.process.as_deref()),
                    or_dash(row.asker.pod.as_deref()),
                    count(row.lookups),
                    latency(row),
                    row.latency_max_us.map_or("-".into(), micros),
                    if row.answers.is_empty() {
                        "-".to_owned()
                    } else {
                        row.answers.join(" ")
                    },
                ]
            })
            .collect(),
    };
    Text(vec![Block::Lines(lines), Block::Table(table)])
}

fn csv_paths() -> Vec<String> {
    paths(&[
        "name",
        "kind",
        "threat",
        "outcome",
        "asker.agent",
        "asker.federator",
        "asker.site.cloud",
        "asker.site.account",
        "asker.site.region",
        "asker.site.zone",
        "asker.site.network",
        "asker.site.cluster",
        "asker.site.namespace",
        "asker.workload",
        "asker.pod",
        "asker.container",
        "asker.process",
        "asker_lookups",
        "askers",
        "names",
        "lookups",
        "internal",
        "failed",
        "unanswered",
        "wasted",
        "repeated",
        "timed",
        "latency_us",
        "latency_max_us",
        "resolvers",
        "answers",
        "first_seen",
        "last_seen",
        "transport",
        "example",
    ])
}

fn sum(rows: &[DnsRow], each: impl Fn(&DnsRow) -> u64) -> u64 {
    rows.iter()
        .fold(0, |sum: u64, row| sum.saturating_add(each(row)))
}

/// The root has a name too.
fn name(row: &DnsRow) -> String {
    match row.name.as_str() {
        "" => ".".to_owned(),
        name => name.to_owned(),
    }
}

fn who(asker: &Asker) -> String {
    workload_name(&asker.site, &asker.workload)
}

fn process_of(asker: &Asker) -> String {
    match &asker.process {
        Some(process) => format!("{} ({process})", who(asker)),
        None => who(asker),
    }
}

fn latency(row: &DnsRow) -> String {
    row.latency_us.map_or("-".into(), micros)
}

fn micros(micros: u64) -> String {
    duration_us(i64::try_from(micros).unwrap_or(i64::MAX))
}

fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or("-")
        .to_owned()
}
