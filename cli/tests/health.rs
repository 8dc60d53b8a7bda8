//! `weft health` for machines: files, Nagios, Prometheus, and the alerts and units that are shipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::*;
use weft_wire::exposition;
use weft_wire::query::{Question, Response};

fn all() -> Vec<Vec<Response>> {
    vec![vec![
        Response::Health(vec![healthy(), lately(), unreached()]),
        end(),
    ]]
}

fn shipped(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn a_window_is_asked_for() {
    for (typed, asked) in [
        ("health", Question::Health),
        (
            "health --since 15m",
            Question::HealthSince { window_s: 900 },
        ),
    ] {
        assert_eq!(weft(typed, &pipe(), all()).asked[0].what, asked);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("objectives.toml");
    fs::write(&file, "since = \"10m\"\n").unwrap();
    let typed = format!("health --objectives '{}'", file.display());
    let asked = |typed: &str| weft(typed, &pipe(), all()).asked[0].what.clone();
    assert_eq!(asked(&typed), Question::HealthSince { window_s: 600 });
    // What is typed wins.
    let typed = format!("{typed} --since 5m");
    assert_eq!(asked(&typed), Question::HealthSince { window_s: 300 });
}

#[test]
fn objectives_decide_the_exit_code_and_mistakes_in_them_name_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("objectives.toml");
    let run = |text: &str| {
        fs::write(&file, text).unwrap();
        let typed = format!("health --objectives '{}'", file.display());
        weft(
            &typed,
            &pipe(),
            vec![vec![Response::Health(vec![healthy()]), end()]],
        )
    };
    // It is 0.9969.
    assert_eq!(run("[match_ratio]\nwarning = 0.99\n").code, 0);
    assert_eq!(run("[match_ratio]\nwarning = 0.999\n").code, 1);
    assert_eq!(run("[match_ratio]\ncritical = 0.999\n").code, 2);
    let wrong = run("[match_ratio]\nwarning = 99\n");
    assert_eq!((wrong.code, wrong.asked.len()), (3, 0));
    assert!(wrong.out.starts_with("unknown: the objectives "));
    assert!(
        wrong
            .err
            .contains("cause: line 2: match_ratio.warning: it is a part of a whole: 0 to 1"),
        "{}",
        wrong.err
    );
    assert!(wrong.err.contains("weft help E-OBJECTIVES"));
}

#[test]
fn prometheus_takes_it_also_when_nobody_answers() {
    let ran = weft("health --format prometheus", &pipe(), all());
    let read = exposition::read(&ran.out).unwrap_or_else(|wrong| panic!("{wrong}\n{}", ran.out));
    assert_eq!(read["weft_health_status"].values[""], 2.0);
    let of = |name: &str, federator: &str| {
        read[&format!("weft_health_{name}")].values[&format!("federator={federator:?}")]
    };
    assert_eq!(of("federators_unreached", "fed-c"), 1.0);
    assert_eq!(of("federators_unreached", "fed-a"), 0.0);
    assert_eq!(of("certificate_left_seconds", "fed-a"), 61.0 * 86_400.0);
    // Nobody is named: nothing is asked, and still there is something to read.
    let alone = weft_cli::Surroundings::default();
    let ran = weft("health --format prometheus", &alone, vec![]);
    assert_eq!(ran.code, 3);
    let read = exposition::read(&ran.out).unwrap();
    assert_eq!(read["weft_health_status"].values[""], 3.0);
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weft.prom");
    fs::write(&file, "old").unwrap();
    let typed = format!("health --format prometheus --output '{}'", file.display());
    let ran = weft(&typed, &pipe(), all());
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    exposition::read(&fs::read_to_string(&file).unwrap()).unwrap();
    let names = || fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names(), 1, "nothing is left beside it");
    let ran = weft(&typed, &weft_cli::Surroundings::default(), vec![]);
    assert_eq!(ran.code, 3);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("weft_health_status 3\n"), "{text}");
    // A directory stands where the file should be.
    fs::create_dir(folder.path().join("dir")).unwrap();
    let typed = format!("health --output '{}'", folder.path().join("dir").display());
    let ran = weft(&typed, &pipe(), all());
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("cannot be written"), "{}", ran.err);
    assert_eq!(names(), 2);
}

#[test]
fn each_alert_says_what_to_do_and_is_about_what_there_is() {
    let rules = shipped("packaging/prometheus/weft.rules.yml");
    let operating = shipped("docs/operating.md");
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 20, "{alerts:?}");
    for alert in &alerts {
        let section = operating
            .split(&format!("\n#### {alert}\n"))
            .nth(1)
            .unwrap_or_else(|| panic!("{alert} has no section in docs/operating.md"));
        let words = section.split("\n#").next().unwrap().trim();
        assert!(words.len() > 40, "{alert}: {words}");
        let runbook = format!("docs/operating.md#{}\n", alert.to_lowercase());
        assert!(
            rules.contains(&runbook),
            "{alert} does not name its section"
        );
    }
    for heading in operating
        .lines()
        .filter_map(|l| l.strip_prefix("#### Weft"))
    {
        assert!(
            alerts.contains(&format!("Weft{heading}").as_str()),
            "no alert Weft{heading}"
        );
    }
    let ran = weft("health --format prometheus", &pipe(), all());
    let read = exposition::read(&ran.out).unwrap();
    let named: BTreeSet<&str> = rules
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("weft_health_"))
        .collect();
    assert!(!named.is_empty());
    for name in named {
        assert!(read.contains_key(name), "an alert asks for {name}");
    }
}

/// The line that the unit runs is one that `weft` takes.
#[test]
fn the_unit_runs_what_there_is() {
    let unit = shipped("packaging/systemd/weft-health.service");
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/bin/weft "))
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let objectives = folder.path().join("objectives.toml");
    fs::write(&objectives, weft_cli::health::objectives::sample()).unwrap();
    let file = folder.path().join("weft.prom");
    let typed = line
        .replace("/etc/weft/objectives.toml", &objectives.to_string_lossy())
        .replace(
            "/var/lib/prometheus/node-exporter/weft.prom",
            &file.to_string_lossy(),
        );
    assert_ne!(typed, line);
    let ran = weft(&typed, &pipe(), all());
    assert_eq!((ran.code, ran.err.as_str()), (2, ""));
    exposition::read(&fs::read_to_string(&file).unwrap()).unwrap();
    let timer = shipped("packaging/systemd/weft-health.timer");
    assert!(timer.contains("WantedBy=timers.target"));
}
