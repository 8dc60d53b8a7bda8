//! `weft help`: topics, error codes, schemas, man pages, completions. All of it offline.

use std::fmt::Write;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use weft_wire::filter::{Field, Kind};

use crate::args::Args;
use crate::failure::Failure;
use crate::figures::{bytes, duration_us, percent};
use crate::health::objectives::{self, Objectives, Subject, Unit};

const EXIT_CODES: &str = include_str!("../help/exit-codes.txt");
const ENVIRONMENT: &str = include_str!("../help/environment.txt");
const FORMATS: &str = include_str!("../help/formats.txt");
const FILTER: &str = include_str!("../help/filter.txt");
/// Sections, each headed by its code alone on a line.
const ERRORS: &str = include_str!("../help/errors.txt");

/// JSON schemas of the answers, by the name of their verb.
pub const SCHEMAS: &[(&str, &str)] = &[
    ("connections", include_str!("../schemas/connections.json")),
    ("explain", include_str!("../schemas/explain.json")),
    ("report", include_str!("../schemas/report.json")),
    ("sql", include_str!("../schemas/sql.json")),
    ("dns", include_str!("../schemas/dns.json")),
    ("health", include_str!("../schemas/health.json")),
    ("federators", include_str!("../schemas/federators.json")),
];

/// The text about a topic.
pub fn topic(words: &[String]) -> Result<String, Failure> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => Ok(Args::command().render_long_help().to_string()),
        ["exit-codes"] => Ok(EXIT_CODES.to_owned()),
        ["environment"] => Ok(ENVIRONMENT.to_owned()),
        ["formats" | "formatting"] => Ok(FORMATS.to_owned()),
        ["filter"] => Ok(filter()),
        ["health"] => Ok(format!("{}\n{}", verb(&["health"])?, thresholds())),
        ["objectives"] => Ok(objectives::sample()),
        ["errors"] => Ok(codes().map(|code| format!("{code}\n")).collect()),
        ["schemas"] => Ok(SCHEMAS
            .iter()
            .map(|(name, _)| format!("{name}\n"))
            .collect()),
        ["schemas", name] => schema(name),
        ["man"] => man(&Args::command()),
        ["man", dir] => man_pages(Path::new(dir)),
        [code] if code.starts_with("E-") || code.starts_with("e-") => {
            error(&code.to_ascii_uppercase())
        }
        verbs => verb(verbs),
    }
}

/// A completion script.
pub fn completion(shell: Shell) -> Result<String, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "weft", &mut script);
    String::from_utf8(script)
        .map_err(|e| Failure::new("E-INTERNAL", "no completion script", e.to_string(), ""))
}

/// Every error code there is help for.
pub fn codes() -> impl Iterator<Item = &'static str> {
    ERRORS
        .lines()
        .filter(|line| line.starts_with("E-") && !line.contains(' '))
}

fn error(code: &str) -> Result<String, Failure> {
    let mut lines = ERRORS.lines().skip_while(|line| *line != code);
    let Some(title) = lines.next() else {
        let hint = codes().collect::<Vec<_>>().join(" ");
        return Err(Failure::new(
            "E-USAGE",
            format!("there is no error code {code}"),
            "it may be of another version",
            hint,
        ));
    };
    let body: Vec<&str> = lines
        .take_while(|line| !codes().any(|code| code == *line))
        .collect();
    Ok(format!("{title}\n\n{}\n", body.join("\n").trim()))
}

fn verb(words: &[&str]) -> Result<String, Failure> {
    let mut command = Args::command();
    command.build();
    let mut found = &mut command;
    for word in words {
        found = found.find_subcommand_mut(word).ok_or_else(|| {
            let hint = "exit-codes environment formats filter health objectives errors schemas man, a verb, or an error code";
            Failure::new("E-USAGE", format!("there is no help on {}", words.join(" ")), "no such topic or verb", hint)
        })?;
    }
    Ok(found.render_long_help().to_string())
}

fn filter() -> String {
    let mut text = FILTER.to_owned();
    for field in Field::all() {
        let kind = match field.kind() {
            Kind::Text => "text".to_owned(),
            Kind::Choice(words) => words.join(" "),
            Kind::Address => "address".to_owned(),
            Kind::Number => "number".to_owned(),
            Kind::Size => "size".to_owned(),
            Kind::Duration => "duration".to_owned(),
            Kind::Time => "time".to_owned(),
            Kind::End => "only is null".to_owned(),
        };
        // The server's fields are the client's.
        let name = field.to_string();
        if name.starts_with("server") {
            continue;
        }
        let both = if name.starts_with("client") {
            format!("{name} (server…)")
        } else {
            name
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {both:<36} {kind}");
    }
    text
}

fn thresholds() -> String {
    let built_in = Objectives::default();
    let bound = |subject: Subject, bound: Option<f64>| match (bound, subject.unit()) {
        (None, _) => String::new(),
        (Some(bound), Unit::Count) => format!("{bound}"),
        (Some(bound), Unit::Ratio) => percent(bound * 100.0),
        (Some(bound), Unit::Seconds) => duration_us((bound * 1e6) as i64),
        (Some(bound), Unit::Bytes) => bytes(bound as u64),
        (Some(bound), Unit::Days) => format!("{bound} d"),
    };
    let mut rows = Vec::new();
    for (subject, what) in [
        (Subject::Unreached, "federators that do not answer"),
        (Subject::Certificate, "certificate ends within"),
        (Subject::DiskFree, "free disk below"),
        (Subject::JournalFill, "journal filled beyond"),
        (
            Subject::AgentsSilent,
            "agents of a federator without a session",
        ),
        (Subject::PeersDown, "peers of a federator without a session"),
        (Subject::LostHalves, "halves or records lost"),
        (Subject::Skew, "a clock is off by more than"),
        (Subject::Lag, "halves become durable later than"),
        (
            Subject::Exchange,
            "matches between regions take, at the median",
        ),
        (
            Subject::MatchRatio,
            "part of halves matched, below (objectives only)",
        ),
        (
            Subject::LossRatio,
            "part of halves lost, beyond (objectives only)",
        ),
    ] {
        let bounds = built_in.of(subject);
        let (warn, fail) = (
            bound(subject, bounds.warning),
            bound(subject, bounds.critical),
        );
        rows.push((what, warn, fail));
    }
    let always = || "always".to_owned();
    rows.push((
        "refuses agents: disk or journal full",
        String::new(),
        always(),
    ));
    rows.push(("the store does not follow", String::new(), always()));
    rows.push(("an agent's spool takes nothing", String::new(), always()));
    rows.push((
        "a federator's clock was set, within the hour",
        always(),
        String::new(),
    ));
    rows.push(("an agent gives up detail", always(), String::new()));
    rows.push(("a limit cost matches", always(), String::new()));
    rows.push((
        "something was refused, with --since",
        always(),
        String::new(),
    ));
    let mut text = format!("THRESHOLDS\n\n  {:<48} {:<10} {}\n", "", "warn", "FAIL");
    for (what, warn, fail) in rows {
        let line = format!("  {what:<48} {warn:<10} {fail}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push_str(
        "\nCounters are since the programs' start, or with --since DURATION of that time. Other bounds: --objectives FILE,\n\
         weft help objectives prints one to begin with.\n",
    );
    text
}

fn schema(name: &str) -> Result<String, Failure> {
    SCHEMAS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| (*text).to_owned())
        .ok_or_else(|| {
            let hint = SCHEMAS
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(" ");
            Failure::new(
                "E-USAGE",
                format!("there is no schema {name}"),
                "schemas are named by their verb",
                hint,
            )
        })
}

fn man(command: &Command) -> Result<String, Failure> {
    let mut page = Vec::new();
    let failed = |detail: String| Failure::new("E-INTERNAL", "no man page", detail, "");
    clap_mangen::Man::new(command.clone())
        .render(&mut page)
        .map_err(|e| failed(e.to_string()))?;
    String::from_utf8(page).map_err(|e| failed(e.to_string()))
}

/// Writes a page a verb and gives the names of the files.
fn man_pages(dir: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(
            "E-OUTPUT",
            format!("no man pages in {}", dir.display()),
            error.to_string(),
            "name a directory that can be written",
        )
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut root = Args::command();
    root.build();
    let mut pages = vec![("weft".to_owned(), root.clone())];
    let mut names = String::new();
    while let Some((name, command)) = pages.pop() {
        for sub in command
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
        {
            let name = format!("{name}-{}", sub.get_name());
            pages.push((name, sub.clone()));
        }
        let path = dir.join(format!("{name}.1"));
        std::fs::write(&path, man(&command)?).map_err(failed)?;
        let _ = writeln!(names, "{}", path.display());
    }
    Ok(names)
}
