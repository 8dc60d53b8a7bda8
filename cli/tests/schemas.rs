//! Every JSON answer against the schema that is shipped, which here allows no field that it does not name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

mod common;

use common::*;
use serde_json::Value;
use weft_wire::query::{Response, SqlValue};

/// Within a version fields are added, so shipped schemas allow others; a test must see them.
fn strict(schema: &mut Value) {
    if let Some(object) = schema.as_object_mut() {
        if object.contains_key("properties") && !object.contains_key("additionalProperties") {
            object.insert("additionalProperties".into(), false.into());
        }
        object.values_mut().for_each(strict);
    } else if let Some(list) = schema.as_array_mut() {
        list.iter_mut().for_each(strict);
    }
}

fn schema(name: &str) -> Value {
    let (_, text) = weft_cli::help::SCHEMAS
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap();
    let mut schema: Value = serde_json::from_str(text).unwrap();
    jsonschema::meta::validate(&schema).unwrap();
    strict(&mut schema);
    schema
}

fn check(name: &str, typed: &str, rows: Response) {
    let validator = jsonschema::validator_for(&schema(name)).unwrap();
    let ran = weft(
        &format!("{typed} --json"),
        &pipe(),
        vec![vec![rows, end_with_gap()]],
    );
    let answer: Value = serde_json::from_str(&ran.out)
        .unwrap_or_else(|e| panic!("{typed}: {e}: {}{}", ran.out, ran.err));
    let errors: Vec<String> = validator
        .iter_errors(&answer)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{typed}: {errors:#?}");
    assert!(!answer["rows"].as_array().unwrap().is_empty());
}

#[test]
fn answers_are_what_their_schemas_say() {
    let connections = || Response::Connections(vec![hairpin(), outward(), ambiguous()]);
    check("connections", "connections", connections());
    check("explain", "explain 7f3a", connections());
    for report in [
        "cross-cluster",
        "cross-cloud",
        "cross-region",
        "cross-namespace",
        "north-south",
        "hairpins",
        "dependencies",
    ] {
        check(
            "report",
            &format!("report {report}"),
            Response::Report(report_rows()),
        );
    }
    for report in [
        "top",
        "hotspots",
        "external",
        "failures",
        "threats",
        "explain s3.amazonaws.com",
    ] {
        check("dns", &format!("dns {report}"), Response::Dns(dns_rows()));
    }
    check("dns", "dns bypass", Response::Dns(hidden_rows()));
    check(
        "health",
        "health",
        Response::Health(vec![healthy(), ailing(), lately(), unreached()]),
    );
    check(
        "federators",
        "federators",
        Response::Health(vec![healthy(), ailing(), unreached()]),
    );
}

#[test]
fn sql_answers_are_what_their_schema_says() {
    let values = [
        SqlValue::Null,
        SqlValue::Bool(true),
        SqlValue::Int(-1),
        SqlValue::UInt(1),
        SqlValue::Float(0.5),
        SqlValue::Text("x".into()),
    ];
    let columns = Response::SqlColumns((0..values.len()).map(|n| format!("c{n}")).collect());
    let validator = jsonschema::validator_for(&schema("sql")).unwrap();
    let answer = vec![columns, Response::SqlRows(vec![values.to_vec()]), end()];
    let ran = weft("sql 'SELECT 1' --json", &pipe(), vec![answer]);
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert!(validator.is_valid(&answer), "{answer}");
}

/// The fields of a row as the product promises them; a rename anywhere shows here.
#[test]
fn a_row_has_the_promised_fields() {
    let ran = weft(
        "connections --format ndjson",
        &pipe(),
        vec![vec![Response::Connections(vec![hairpin()]), end()]],
    );
    let row: Value = serde_json::from_str(ran.out.trim()).unwrap();
    let has = |at: &str, fields: &[&str]| {
        for field in fields {
            let path = format!("{at}/{field}");
            assert!(row.pointer(&path).is_some(), "{path}");
        }
    };
    has(
        "",
        &[
            "id",
            "protocol",
            "opened_at",
            "closed_at",
            "state",
            "client",
            "server",
            "match",
            "path",
        ],
    );
    for end in ["/client", "/server"] {
        let fields = [
            "agent",
            "federator",
            "site",
            "workload",
            "process",
            "container",
            "local",
            "remote",
            "bytes_sent",
            "bytes_received",
            "rtt_us",
            "retransmits",
        ];
        has(end, &fields);
        has(
            &format!("{end}/site"),
            &[
                "cloud",
                "account",
                "region",
                "zone",
                "network",
                "cluster",
                "namespace",
            ],
        );
        has(&format!("{end}/process"), &["pid", "name", "exe", "uid"]);
    }
    has("/match", &["evidence", "confidence", "nat"]);
    assert_eq!(row["opened_at"], "2026-11-22T15:28:55.123456Z");
    assert_eq!(row["client"]["local"], "10.1.4.7:48568");
}
