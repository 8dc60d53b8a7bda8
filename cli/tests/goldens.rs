//! What is printed, to the letter: both streams and the exit code. `SNAPSHOTS=overwrite cargo test -p weft-cli` writes
//! them anew.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

mod common;

use common::*;
use snapbox::assert_data_eq;
use weft_cli::Surroundings;
use weft_wire::query::{QueryError, Response, SqlValue};

macro_rules! golden {
    ($name:ident, $surroundings:expr, $typed:expr, [$($answer:expr),*]) => {
        #[test]
        fn $name() {
            let ran = weft($typed, &$surroundings, vec![$($answer),*]);
            let name = concat!(stringify!($name), ".txt");
            assert_data_eq!(ran.transcript($typed), snapshot(name));
        }
    };
}

fn snapshot(name: &str) -> snapbox::Data {
    snapbox::Data::read_from(
        &std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/goldens")
            .join(name),
        None,
    )
    .raw()
}

fn three() -> Response {
    Response::Connections(vec![hairpin(), outward(), ambiguous()])
}

fn one(c: weft_wire::query::Connection) -> Vec<Response> {
    vec![Response::Connections(vec![c]), end()]
}

fn rows() -> Vec<Response> {
    vec![Response::Report(report_rows()), end()]
}

fn names() -> Vec<Response> {
    vec![Response::Dns(dns_rows()), end_without_halves()]
}

fn sql() -> Vec<Response> {
    let columns = ["workload", "n", "n", "share"].map(str::to_owned).to_vec();
    let row = |w: SqlValue, n, share| {
        vec![
            w,
            SqlValue::Int(n),
            SqlValue::UInt(u64::MAX),
            SqlValue::Float(share),
        ]
    };
    vec![
        Response::SqlColumns(columns),
        Response::SqlRows(vec![
            row(SqlValue::Text("web, \"front\"".into()), -3, 0.5),
            row(SqlValue::Null, 1, f64::NAN),
        ]),
        end(),
    ]
}

golden!(
    connections_in_a_pipe,
    pipe(),
    "connections",
    [vec![three(), end()]]
);
golden!(
    connections_on_a_terminal,
    terminal(100),
    "connections --color never",
    [vec![three(), end()]]
);
golden!(
    connections_in_colour,
    terminal(80),
    "connections",
    [vec![three(), end()]]
);
golden!(
    connections_json,
    pipe(),
    "connections --json",
    [vec![three(), end()]]
);
golden!(
    connections_ndjson,
    pipe(),
    "connections --format ndjson --quiet",
    [vec![three(), end()]]
);
golden!(
    connections_csv,
    pipe(),
    "connections --format csv",
    [vec![three(), end()]]
);
golden!(
    connections_md,
    pipe(),
    "connections --format md",
    [vec![three(), end()]]
);
golden!(
    connections_none,
    pipe(),
    "connections --from nobody",
    [vec![end()]]
);
golden!(
    connections_with_a_gap,
    pipe(),
    "connections --quiet --min-complete 99",
    [vec![three(), end_with_gap()]]
);
golden!(
    connections_cut_off,
    pipe(),
    "connections --limit 3",
    [vec![three(), end_with_gap()]]
);
golden!(explain_hairpin, pipe(), "explain 7f3a9c", [one(hairpin())]);
golden!(
    explain_in_colour,
    terminal(80),
    "explain 7f3a9c",
    [one(hairpin())]
);
golden!(
    explain_json,
    pipe(),
    "explain 7f3a9c --json",
    [one(hairpin())]
);
golden!(
    explain_chain,
    pipe(),
    "explain 7f3a9c",
    [
        one(hairpin()),
        vec![Response::Chains(chain_links()), end()],
        vec![Response::Chains(vec![]), end()]
    ]
);
golden!(
    connections_chains,
    pipe(),
    "connections --chains",
    [
        vec![three(), end()],
        vec![Response::Chains(chain_links()), end()]
    ]
);
golden!(explain_unmatched, pipe(), "explain 7f3a0", [one(outward())]);
golden!(
    explain_ambiguous,
    pipe(),
    "explain a0b1",
    [one(ambiguous())]
);
golden!(
    explain_several,
    pipe(),
    "explain 7f3a",
    [vec![
        Response::Connections(vec![hairpin(), outward()]),
        end()
    ]]
);
golden!(
    explain_none,
    pipe(),
    "explain ffff",
    [vec![Response::Connections(vec![]), end_with_gap()]]
);
golden!(
    report_cross_cloud,
    pipe(),
    "report cross-cloud --since 24h",
    [rows()]
);
golden!(
    report_hairpins,
    pipe(),
    "report hairpins --since 24h",
    [rows()]
);
golden!(report_north_south, pipe(), "report north-south", [rows()]);
golden!(
    report_dependencies_csv,
    pipe(),
    "report dependencies --format csv",
    [rows()]
);
golden!(report_json, pipe(), "report cross-cloud --json", [rows()]);
golden!(sql_table, pipe(), "sql 'SELECT 1'", [sql()]);
golden!(sql_json, pipe(), "sql 'SELECT 1' --json", [sql()]);
golden!(sql_csv, pipe(), "sql 'SELECT 1' --format csv", [sql()]);
golden!(dns_top, pipe(), "dns top", [names()]);
golden!(
    dns_top_on_a_terminal,
    terminal(80),
    "dns top --color never",
    [names()]
);
golden!(dns_hotspots, pipe(), "dns hotspots --since 24h", [names()]);
golden!(dns_external, pipe(), "dns external", [names()]);
golden!(dns_failures, pipe(), "dns failures", [names()]);
golden!(dns_threats, pipe(), "dns threats", [names()]);
golden!(
    dns_threats_none,
    pipe(),
    "dns threats",
    [vec![end_without_halves()]]
);
golden!(
    dns_explain,
    pipe(),
    "dns explain s3.amazonaws.com",
    [names()]
);
golden!(
    dns_explain_none,
    pipe(),
    "dns explain nobody.example",
    [vec![end_without_halves()]]
);
golden!(dns_explain_what, pipe(), "dns explain", []);
golden!(
    dns_bypass,
    pipe(),
    "dns bypass",
    [vec![Response::Dns(hidden_rows()), end_without_halves()]]
);
golden!(
    dns_bypass_csv,
    pipe(),
    "dns bypass --format csv",
    [vec![Response::Dns(hidden_rows()), end_without_halves()]]
);
golden!(dns_json, pipe(), "dns failures --json", [names()]);
golden!(dns_csv, pipe(), "dns top --format csv", [names()]);
golden!(help_dns, pipe(), "help dns", []);
golden!(
    health_ok,
    pipe(),
    "health",
    [vec![Response::Health(vec![healthy()]), end()]]
);
golden!(
    health_warning,
    pipe(),
    "health",
    [vec![Response::Health(vec![healthy(), ailing()]), end()]]
);
golden!(
    health_critical,
    pipe(),
    "health",
    [vec![
        Response::Health(vec![healthy(), unreached()]),
        end_with_gap()
    ]]
);
golden!(health_unknown, pipe(), "health", [vec![end()]]);
golden!(
    health_nagios,
    pipe(),
    "health --format nagios",
    [vec![Response::Health(vec![healthy(), ailing()]), end()]]
);
golden!(
    health_prometheus,
    pipe(),
    "health --format prometheus",
    [vec![Response::Health(vec![healthy(), unreached()]), end()]]
);
golden!(
    health_since,
    pipe(),
    "health --since 10m",
    [vec![Response::Health(vec![lately()]), end()]]
);
golden!(
    nagios_is_of_health,
    pipe(),
    "connections --format nagios",
    []
);
golden!(help_objectives, pipe(), "help objectives", []);
golden!(
    health_json,
    pipe(),
    "health --json",
    [vec![Response::Health(vec![ailing(), unreached()]), end()]]
);
golden!(
    federators_ok,
    pipe(),
    "federators",
    [vec![Response::Health(vec![healthy()]), end()]]
);
golden!(
    federators_finding,
    pipe(),
    "federators",
    [vec![
        Response::Health(vec![healthy(), unreached()]),
        end_with_gap()
    ]]
);
golden!(help, pipe(), "--help", []);
golden!(help_short, pipe(), "-h", []);
golden!(help_report, pipe(), "help report", []);
golden!(help_filter, pipe(), "help filter", []);
golden!(help_exit_codes, pipe(), "help exit-codes", []);
golden!(help_health, pipe(), "help health", []);
golden!(help_error_code, pipe(), "help E-TRUST", []);
golden!(nothing_typed, pipe(), "", []);
golden!(no_report_named, pipe(), "report", []);
golden!(nothing_to_do_with_certificates, pipe(), "pki", []);
golden!(no_such_verb, pipe(), "conections", []);
golden!(no_such_option, pipe(), "connections --frm web", []);
golden!(no_such_report, pipe(), "report hairpin", []);
golden!(two_formats, pipe(), "connections --json --format csv", []);
golden!(no_federator, Surroundings::default(), "connections", []);
golden!(
    bad_filter,
    pipe(),
    "connections --where 'client.wrokload = web'",
    []
);
golden!(bad_time, pipe(), "connections --since yesterday", []);
golden!(
    refused_by_the_federator,
    pipe(),
    "sql 'SELEC 1'",
    [vec![Response::Error(QueryError {
        code: "E-SQL".into(),
        what: "the statement was not accepted".into(),
        cause: "Parser Error: syntax error at or near \"SELEC\"".into(),
        hint: "weft sql 'DESCRIBE connections'".into(),
    })]]
);

#[test]
fn every_golden_file_has_its_test() {
    let tests: String = include_str!("goldens.rs").split_whitespace().collect();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let stem = name.strip_suffix(".txt").unwrap();
        assert!(
            tests.contains(&format!("golden!({stem},")),
            "{name} belongs to no test"
        );
    }
}
