//! Streams, exit codes, watching, interruption: what holds for every verb.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

mod common;

use std::io::{self, Write};
use std::path::Path;

use common::*;
use weft_cli::run;
use weft_cli::world::Received;
use weft_wire::query::{Question, Response};

fn three() -> Response {
    Response::Connections(vec![hairpin(), outward(), ambiguous()])
}

/// A reader that goes away after some bytes.
struct Closing(usize);

impl Write for Closing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that is full.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_to(out: &mut dyn Write, format: &str) -> (u8, String) {
    let received = Received {
        responses: vec![three(), end()],
        interrupted: false,
    };
    let mut world = Script {
        answers: [received].into(),
        asked: vec![],
        pauses: 0,
    };
    let mut err = Vec::new();
    let code = run(
        words(&format!("connections --format {format}")),
        &pipe(),
        &mut world,
        out,
        &mut err,
    );
    (code, String::from_utf8(err).unwrap())
}

#[test]
fn a_reader_that_leaves_is_a_success_and_a_full_disk_is_not() {
    for format in ["table", "json", "ndjson", "csv", "md"] {
        assert_eq!(write_to(&mut Closing(10), format), (0, String::new()));
        let (code, err) = write_to(&mut Full, format);
        assert_eq!(code, 2);
        assert!(
            err.starts_with("error: the answer cannot be written\ncause: ")
                && err.contains("E-OUTPUT"),
            "{err}"
        );
    }
}

#[test]
fn only_rows_go_to_stdout_and_nothing_there_steers_the_terminal() {
    for format in ["table", "json", "ndjson", "csv", "md"] {
        let ran = weft(
            &format!("connections --format {format}"),
            &pipe(),
            vec![vec![three(), end()]],
        );
        assert!(!ran.out.contains('\x1b'), "{format}: {}", ran.out);
        assert!(!ran.out.contains("complete "), "{format}");
        assert!(
            ran.err.contains("complete 99.5 %: 2 of 2 federators"),
            "{format}: {}",
            ran.err
        );
    }
}

#[test]
fn colour_is_for_terminals() {
    let out =
        |typed: &str, surroundings| weft(typed, &surroundings, vec![vec![three(), end()]]).out;
    let with = |name: &str, value: &str, mut surroundings: weft_cli::Surroundings| {
        surroundings.environment.insert(name.into(), value.into());
        surroundings
    };
    for (typed, surroundings, coloured) in [
        ("connections", terminal(80), true),
        ("connections", pipe(), false),
        ("connections", with("NO_COLOR", "1", terminal(80)), false),
        ("connections", with("NO_COLOR", "", terminal(80)), true),
        ("connections", with("TERM", "dumb", terminal(80)), false),
        ("connections", with("CLICOLOR_FORCE", "1", pipe()), true),
        ("connections", with("CLICOLOR_FORCE", "0", pipe()), false),
        (
            "connections",
            with("NO_COLOR", "1", with("CLICOLOR_FORCE", "1", pipe())),
            false,
        ),
        (
            "connections --color always",
            with("NO_COLOR", "1", pipe()),
            true,
        ),
        ("connections --color never", terminal(80), false),
        ("connections --json", terminal(80), false),
        ("connections --json --color always", terminal(80), false),
        (
            "connections --format csv --color always",
            terminal(80),
            false,
        ),
    ] {
        let out = out(typed, surroundings.clone());
        assert_eq!(out.contains("\x1b["), coloured, "{typed} {surroundings:?}");
    }
}

#[test]
fn an_interrupted_answer_shows_what_is_known() {
    let half = || Received {
        responses: vec![three()],
        interrupted: true,
    };
    let ran = play("connections", &pipe(), [half()].into());
    assert_eq!(ran.code, 130);
    assert!(ran.out.contains("prod-a/web/checkout"), "{}", ran.out);
    assert!(ran.err.contains("interrupted: "), "{}", ran.err);
    let ran = play("connections --json", &pipe(), [half()].into());
    let envelope: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&envelope["truncated"], &envelope["completeness"]),
        (&true.into(), &serde_json::Value::Null)
    );
    let nothing = || Received {
        responses: vec![],
        interrupted: true,
    };
    for verb in ["report hairpins", "health", "sql x"] {
        let ran = play(verb, &pipe(), [nothing()].into());
        let told = "interrupted: nothing was known by then\n";
        assert_eq!(
            (ran.code, ran.out.as_str(), ran.err.as_str()),
            (130, "", told)
        );
    }
}

#[test]
fn health_that_is_typed_wrongly_is_unknown_and_not_critical() {
    for (typed, code) in [
        ("health --bogus", 3),
        ("health --watch=x", 3),
        ("health --since 2d", 3),
        ("health --since now", 3),
        ("health --objectives /nowhere/at/all", 3),
        ("health --json --format csv", 3),
        ("health one two", 3),
        ("--federator fed-a health --min-complete x", 3),
        ("--bogus health", 3),
        ("--color sometimes health", 3),
        ("health --help", 0),
        ("connections --from health --bogus", 2),
        ("help health --bogus", 2),
        ("healthy", 2),
    ] {
        let ran = weft(typed, &pipe(), vec![]);
        assert_eq!(ran.code, code, "{typed}: {}{}", ran.out, ran.err);
    }
}

#[test]
fn too_little_completeness_is_an_exit_code() {
    for (least, code) in [("99", 0), ("99.5", 0), ("99.9", 3), ("100", 3)] {
        let ran = weft(
            &format!("report hairpins --min-complete {least}"),
            &pipe(),
            vec![vec![end()]],
        );
        assert_eq!(ran.code, code, "{least}: {}", ran.err);
    }
}

#[test]
fn watching_appends_in_a_pipe_and_redraws_on_a_terminal() {
    let answers = || vec![vec![three(), end()], vec![end()], vec![three(), end()]];
    let ran = weft("connections --watch=1s", &pipe(), answers());
    assert_eq!(ran.code, 130);
    let schemas: Vec<String> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["schema"].to_string())
        .collect();
    assert_eq!(schemas, ["\"weft.connections/1\""; 3]);
    let ran = weft("connections --watch", &terminal(100), answers());
    assert_eq!(ran.out.matches("\x1b[H\x1b[2J").count(), 3);
    assert!(
        ran.asked.len() == 3
            && ran
                .asked
                .iter()
                .all(|r| matches!(r.what, Question::Connections { .. }))
    );
}

#[test]
fn contradictions_are_the_federators_fault() {
    let ran = weft("report hairpins", &pipe(), vec![vec![three(), end()]]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("error: the answer makes no sense")
            && ran.err.contains("more:  weft help E-PROTOCOL")
    );
}

#[test]
fn every_error_code_is_explained() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    // What a federator answers is printed by us.
    read_sources(&here.join("src"), &mut sources);
    read_sources(&here.join("../federator/src"), &mut sources);
    let known: Vec<&str> = weft_cli::help::codes().collect();
    let mut used = 0;
    for source in &sources {
        for rest in source.split("\"E-").skip(1) {
            let code = rest.split('"').next().unwrap();
            if !code.is_empty() && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
                assert!(
                    known.contains(&format!("E-{code}").as_str()),
                    "E-{code} is not explained"
                );
                used += 1;
            }
        }
    }
    assert!(used > 30, "{used}");
    for code in known {
        let explained = weft(&format!("help {code}"), &pipe(), vec![]);
        assert!(
            explained.code == 0 && explained.out.lines().count() > 2,
            "{code}"
        );
    }
}

fn read_sources(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, found);
        } else if !path.ends_with("plan_tests.rs") {
            found.push(std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn completions_and_man_pages_come_from_the_same_definition() {
    for (shell, known) in [
        ("bash", "hairpins"),
        ("zsh", "hairpins"),
        ("fish", "connections"),
    ] {
        let ran = weft(&format!("completion {shell}"), &pipe(), vec![]);
        assert!(
            ran.code == 0 && ran.out.contains("min-complete") && ran.out.contains(known),
            "{shell}"
        );
    }
    assert!(weft("help man", &pipe(), vec![]).out.contains(".TH weft 1"));
    let dir = tempfile::tempdir().unwrap();
    let ran = weft(
        &format!("help man {}", dir.path().display()),
        &pipe(),
        vec![],
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    let page = std::fs::read_to_string(dir.path().join("weft-connections.1")).unwrap();
    assert!(
        page.contains("since") && page.contains("weft\\-connections"),
        "{page}"
    );
}

#[test]
fn certificates_are_made_and_their_keys_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, me) = (dir.path().join("ca"), dir.path().join("me"));
    let init = format!("pki init --dir {} --domain weft.example", ca.display());
    let ran = weft(&init, &pipe(), vec![]);
    assert_eq!(
        (ran.code, ran.out.contains("spiffe://weft.example")),
        (0, true),
        "{}",
        ran.err
    );
    let issue = format!(
        "pki issue --ca {} --out {} --role operator --region use1 --name ana",
        ca.display(),
        me.display()
    );
    let issued = weft(&issue, &pipe(), vec![]);
    assert!(
        issued
            .out
            .starts_with("spiffe://weft.example/region/use1/operator/ana\n"),
        "{} {}",
        issued.out,
        issued.err
    );
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        assert!(me.join(file).exists());
    }
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(me.join("key.pem"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    let key = std::fs::read_to_string(me.join("key.pem")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    // A second time nothing is overwritten.
    let again = weft(&issue, &pipe(), vec![]);
    assert_eq!(again.code, 2);
    assert!(
        again.err.contains("exists already") && again.err.contains("E-PKI"),
        "{}",
        again.err
    );
    for ran in [&ran, &issued, &again] {
        assert!(
            ![&ran.out, &ran.err]
                .iter()
                .any(|text| text.contains("PRIVATE") || text.contains(secret))
        );
    }
    assert_eq!(weft(&init, &pipe(), vec![]).code, 2);
    let bad = format!(
        "pki issue --ca {} --out {} --role agent --region use1 --name a/b",
        ca.display(),
        dir.path().join("x").display()
    );
    assert!(weft(&bad, &pipe(), vec![]).err.contains("a/b"));
}
