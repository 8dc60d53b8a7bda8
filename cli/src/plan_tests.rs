//! What is typed, and what it means.

use clap::Parser;
use weft_wire::Timestamp;

use super::*;

fn surroundings() -> Surroundings {
    let environment = [
        ("WEFT_FEDERATOR", "fed.example:7443"),
        ("WEFT_IDENTITY", "/etc/weft/me"),
    ];
    let environment = environment
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    Surroundings {
        environment,
        ..Surroundings::default()
    }
}

fn planned(typed: &[&str]) -> Result<Plan, Failure> {
    let typed = ["weft"].iter().chain(typed);
    plan(&Args::try_parse_from(typed).unwrap(), &surroundings())
}

fn ask(typed: &[&str]) -> Ask {
    match planned(typed).unwrap() {
        Plan::Ask(ask) => ask,
        other => panic!("{other:?}"),
    }
}

fn code(typed: &[&str]) -> String {
    match planned(typed) {
        Err(Failure::Told(told)) => told.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_hour_is_asked_about_unless_something_else_is_typed() {
    let now = Timestamp(10_000_000_000);
    let window = |typed: &[&str]| ask(typed).window.at(now).unwrap();
    let of = |since, until| Window { since, until };
    assert_eq!(
        window(&["connections"]),
        of(Some(Timestamp(6_400_000_000)), None)
    );
    assert_eq!(
        window(&["connections", "--since", "15m"]),
        of(Some(Timestamp(9_100_000_000)), None)
    );
    assert_eq!(
        window(&["report", "hairpins", "--since", "2h", "--until", "1h"]),
        of(
            Some(Timestamp(2_800_000_000)),
            Some(Timestamp(6_400_000_000))
        )
    );
    assert_eq!(
        window(&["sql", "SELECT 1", "--at", "1h"]),
        of(
            Some(Timestamp(6_400_000_000)),
            Some(Timestamp(6_400_000_001))
        )
    );
    assert_eq!(window(&["health"]), of(None, None));
    assert_eq!(window(&["explain", "7f3a9c"]), of(None, None));
}

#[test]
fn a_question_carries_what_was_typed() {
    let asked = ask(&[
        "report",
        "cross-cloud",
        "--from",
        "web",
        "--to",
        "cloud:gcp",
        "--where",
        "bytes > 1mb",
        "--by",
        "connections",
        "--top",
        "7",
        "--local",
    ]);
    let request = asked.request(&Window {
        since: Some(Timestamp(1)),
        until: None,
    });
    assert_eq!(request.version, PROTOCOL_VERSION);
    assert_eq!(request.scope, Scope::Local { absent: vec![] });
    let filter = Filter {
        since: Some(Timestamp(1)),
        until: None,
        from: Some("web".into()),
        to: Some("cloud:gcp".into()),
        expression: Some("bytes > 1mb".into()),
    };
    let expected = Question::Report {
        report: query::Report::CrossCloud,
        filter,
        by: ReportOrder::Connections,
        top: 7,
    };
    assert_eq!(request.what, expected);
    assert_eq!(
        ask(&["explain", "7F3A9C"]).what,
        What::Explain {
            id_prefix: "7f3a9c".into()
        }
    );
    assert_eq!(
        ask(&["connections", "--top", "3"]).what,
        ask(&["connections", "--limit", "3"]).what
    );
}

#[test]
fn an_option_wins_over_a_variable() {
    let target = ask(&["health"]).target;
    assert_eq!(
        (target.federator.as_str(), target.identity.to_str().unwrap()),
        ("fed.example:7443", "/etc/weft/me")
    );
    let target = ask(&[
        "health",
        "--federator",
        "[2001:db8::1]:7443",
        "--identity",
        "here",
    ])
    .target;
    assert_eq!(
        (target.federator.as_str(), target.identity.to_str().unwrap()),
        ("[2001:db8::1]:7443", "here")
    );
}

#[test]
fn watching_has_a_rhythm() {
    assert_eq!(ask(&["connections"]).watch, None);
    assert_eq!(
        ask(&["connections", "--watch"]).watch,
        Some(Duration::from_secs(5))
    );
    assert_eq!(
        ask(&["connections", "--watch=1m"]).watch,
        Some(Duration::from_secs(60))
    );
    assert_eq!(code(&["connections", "--watch=1ms"]), "E-USAGE");
}

#[test]
fn what_cannot_be_meant_is_said_at_once() {
    for (typed, expected) in [
        (&["connections", "--since", "yesterday"][..], "E-TIME"),
        (&["connections", "--where", "client.prot = 1"], "E-FILTER"),
        (&["connections", "--from", "clod:aws"], "E-FILTER"),
        (&["connections", "--limit", "0"], "E-USAGE"),
        (&["explain", "7f3"], "E-USAGE"),
        (&["explain", "7f3x9c"], "E-USAGE"),
        (&["health", "--federator", "fed.example"], "E-USAGE"),
        (&["health", "--federator", "2001:db8::1"], "E-USAGE"),
        (&["health", "--min-complete", "101"], "E-USAGE"),
        (&["help", "E-NOTHING"], "E-USAGE"),
        (&["help", "nothing"], "E-USAGE"),
    ] {
        assert_eq!(code(typed), expected, "{typed:?}");
    }
    let args = Args::try_parse_from(["weft", "health"]).unwrap();
    assert!(
        matches!(plan(&args, &Surroundings::default()), Err(Failure::Told(told)) if told.code == "E-CONFIG")
    );
}
