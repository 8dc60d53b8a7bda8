//! Views to bytes: formats, streams, colour.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use weft_wire::Timestamp;
use weft_wire::query::{HalfCounts, Reach};

use crate::Surroundings;
use crate::answer::Answer;
use crate::args::{Format, Global, When};
use crate::failure::Failure;
use crate::figures::{count, percent, plain, time};
use crate::health::measures::Check;
use crate::view::{Block, View, json};
use crate::world::Progress;

/// stdout and stderr, and how to write to them.
pub struct Output<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    format: Format,
    style: Style,
    watching: bool,
    file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug)]
struct Style {
    colour_out: bool,
    colour_err: bool,
    /// Of the terminal on stdout; `None` where stdout is something else.
    width: Option<usize>,
    quiet: bool,
    progress: bool,
}

/// Width where a terminal does not say how wide it is.
const DEFAULT_WIDTH: usize = 100;

#[derive(Serialize)]
struct Window {
    since: Option<Timestamp>,
    until: Timestamp,
}

#[derive(Serialize)]
struct Completeness<'a> {
    percent: f64,
    federators: &'a [Reach],
    halves: &'a HalfCounts,
}

/// Whether the environment lets us use colour where there is a terminal (no-color.org, bixense.com/clicolors).
pub(crate) fn colour_wanted(surroundings: &Surroundings) -> bool {
    surroundings.variable("NO_COLOR").is_none() && surroundings.variable("TERM") != Some("dumb")
}

impl<'a> Output<'a> {
    /// Decides once how everything is written.
    pub fn new(
        global: &Global,
        surroundings: &Surroundings,
        out: &'a mut dyn Write,
        err: &'a mut dyn Write,
    ) -> Self {
        let format = if global.json {
            Format::Json
        } else {
            global.format.unwrap_or(Format::Table)
        };
        let forced = surroundings
            .variable("CLICOLOR_FORCE")
            .is_some_and(|v| v != "0")
            && surroundings.variable("NO_COLOR").is_none();
        let colour = |terminal: bool| match global.color {
            When::Always => true,
            When::Never => false,
            When::Auto => forced || (terminal && colour_wanted(surroundings)),
        };
        let style = Style {
            colour_out: format == Format::Table && colour(surroundings.stdout_is_terminal),
            colour_err: colour(surroundings.stderr_is_terminal),
            width: surroundings
                .stdout_is_terminal
                .then(|| surroundings.width.unwrap_or(DEFAULT_WIDTH)),
            quiet: global.quiet,
            progress: surroundings.stderr_is_terminal && !global.quiet,
        };
        Self {
            out,
            err,
            format,
            style,
            watching: false,
            file: None,
        }
    }

    /// Writes answers to a file from now on, if there is one: each replaces the one before, and whoever reads it sees one or the
    /// other, whole.
    #[must_use]
    pub fn into_file(mut self, file: Option<PathBuf>) -> Self {
        if file.is_some() {
            self.style.colour_out = false;
            self.style.width = None;
        }
        self.file = file;
        self
    }

    /// How progress may be shown.
    pub fn progress_style(&self) -> Progress {
        if self.style.progress && !self.watching {
            Progress::Shown
        } else {
            Progress::Silent
        }
    }

    /// From now on every answer replaces the one before (terminal) or is one line of JSON (pipe).
    pub fn begin_watch(&mut self) {
        self.watching = true;
    }

    /// A text as it is.
    pub fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush())
            .map_err(|e| Failure::output(&e))
    }

    /// What stands in place of an answer when a check could not be made.
    pub fn failed_check(&mut self, check: &Check) -> Result<(), Failure> {
        match self.format {
            Format::Table => {
                let line = format!("{}: {}", check.status.word(), plain(&check.summary));
                self.answer(&format!("{}\n", self.coloured(&line)))
            }
            Format::Nagios => self.answer(&check.nagios()),
            Format::Prometheus => self.answer(&check.prometheus()),
            _ => Ok(()),
        }
    }

    /// To the file, if there is one, else to stdout.
    fn answer(&mut self, text: &str) -> Result<(), Failure> {
        match &self.file {
            Some(file) => replace(file, text).map_err(|error| {
                let what = format!("{} cannot be written", file.display());
                Failure::new(
                    "E-OUTPUT",
                    what,
                    error.to_string(),
                    "is there room, and may it be written?",
                )
            }),
            None => self.text(text),
        }
    }

    /// Says that Ctrl-C came before anything was known.
    pub fn interrupted(&mut self) {
        self.tell("interrupted: nothing was known by then");
    }

    /// A remark on stderr, unless quiet.
    pub fn remark(&mut self, text: &str) {
        if !self.style.quiet {
            self.tell(text);
        }
    }

    /// A failure on stderr.
    pub fn failure(&mut self, failure: &Failure) {
        // What is known so far comes first.
        let _ = self.out.flush();
        if let Failure::Told(told) = failure {
            let lines = told.lines(self.style.colour_err);
            let _ = self.err.write_all(lines.as_bytes());
        }
    }

    /// An answer: the rows to stdout, what it rests on to stderr.
    pub fn show(&mut self, view: &View, answer: &Answer) -> Result<(), Failure> {
        let text = self.render(view, answer)?;
        if self.watching && self.style.width.is_some() && self.format == Format::Table {
            self.text("\x1b[H\x1b[2J\x1b[3J")?;
        }
        self.answer(&text)?;
        if self.format == Format::Table || self.format == Format::Md {
            let summary = Some(&view.summary).filter(|s| !s.is_empty() && !self.watching);
            if let Some(summary) = summary {
                self.remark(summary);
            }
        }
        self.completeness(answer);
        if !self.watching {
            for hint in &view.hints {
                self.remark(&format!("hint: {}", plain(hint)));
            }
        }
        Ok(())
    }

    fn render(&self, view: &View, answer: &Answer) -> Result<String, Failure> {
        let in_pipe = self.watching && self.style.width.is_none();
        match self.format {
            Format::Json | Format::Table if in_pipe => envelope(view, answer, ""),
            Format::Table => Ok(self.words(view)),
            Format::Json => envelope(view, answer, "\n"),
            Format::Ndjson => Ok(view.rows.iter().map(|row| format!("{row}\n")).collect()),
            Format::Csv => csv(view),
            Format::Md => Ok(markdown(view)),
            Format::Nagios => Ok(view.check.as_ref().map(Check::nagios).unwrap_or_default()),
            Format::Prometheus => Ok(view
                .check
                .as_ref()
                .map(Check::prometheus)
                .unwrap_or_default()),
        }
    }

    fn words(&self, view: &View) -> String {
        let parts: Vec<Vec<String>> = view
            .text
            .0
            .iter()
            .map(|block| self.block(block))
            .filter(|b| !b.is_empty())
            .collect();
        let mut text = String::new();
        for (index, lines) in parts.iter().enumerate() {
            // Two tables need a line between them.
            if index > 1 && lines.len() > 1 {
                text.push('\n');
            }
            for line in lines {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    fn block(&self, block: &Block) -> Vec<String> {
        match block {
            Block::Lines(lines) => lines
                .iter()
                .map(|line| self.coloured(&plain(line)))
                .collect(),
            Block::Table(table) => {
                let mut lines = table.lines(self.style.width);
                for (index, line) in lines.iter_mut().enumerate() {
                    *line = match index {
                        0 if self.style.colour_out => format!("\x1b[1m{line}\x1b[0m"),
                        0 => continue,
                        _ => self.coloured(line),
                    };
                }
                lines
            }
        }
    }

    /// The words that say how things stand, in the colour that says it again.
    fn coloured(&self, line: &str) -> String {
        if !self.style.colour_out {
            return line.to_owned();
        }
        let mut text = String::new();
        for piece in line.split_inclusive(' ') {
            let word = piece.trim_end();
            let colour = match word.trim_end_matches(':') {
                "ok" | "exact" | "agrees" => "32",
                "warn" | "low" | "medium" | "hairpin" => "33",
                "FAIL" | "DIFFERS" => "31",
                _ => "",
            };
            // Writing to a String cannot fail.
            let _ = match colour {
                "" => write!(text, "{piece}"),
                colour => write!(text, "\x1b[{colour}m{word}\x1b[0m{}", &piece[word.len()..]),
            };
        }
        text
    }

    /// What the answer rests on. Gaps are said even when quiet.
    fn completeness(&mut self, answer: &Answer) {
        let Some(completeness) = &answer.completeness else {
            self.tell("interrupted: this is what was known by then");
            return;
        };
        for reach in completeness.federators.iter().filter(|f| !f.reached) {
            let why = reach.error.as_deref().unwrap_or("no reason known");
            let name = plain(&reach.federator);
            self.tell(&format!(
                "incomplete: federator {name} was not reached: {}",
                plain(why)
            ));
        }
        let line = completeness_line(
            answer.percent_complete(),
            &completeness.federators,
            &completeness.halves,
        );
        if !self.watching {
            self.remark(&line);
        } else if self.style.width.is_some() {
            self.remark(&format!(
                "{} UTC, until Ctrl-C; {line}",
                time(answer.asked_at)
            ));
        }
    }

    fn tell(&mut self, line: &str) {
        // There is nowhere else to say that stderr is closed.
        let _ = writeln!(self.err, "{line}");
    }
}

/// Writes a file beside the one that is meant, and puts it in its place.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let name = file
        .file_name()
        .ok_or_else(|| std::io::Error::other("it has no name"))?;
    // Not `*.prom`: whoever gathers those must not find it.
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", std::process::id()));
    let beside = file.with_file_name(beside);
    let written = std::fs::File::create(&beside)
        .and_then(|mut new| {
            new.write_all(text.as_bytes())?;
            new.sync_all()
        })
        .and_then(|()| std::fs::rename(&beside, file));
    if written.is_err() {
        // What is left of it is of no use.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

fn completeness_line(percent_complete: f64, federators: &[Reach], halves: &HalfCounts) -> String {
    let reached = federators.iter().filter(|f| f.reached).count();
    let mut line = format!(
        "complete {}: {reached} of {} federators",
        percent(percent_complete),
        federators.len()
    );
    // Health is about federators, not about halves of a window: there is nothing to count.
    if *halves == HalfCounts::default() {
        return line;
    }
    let _ = write!(line, "; halves: {} matched", count(halves.matched));
    for (reason, number) in halves.unmatched.iter().filter(|(_, number)| **number > 0) {
        let _ = write!(line, ", {} {}", count(*number), reason.as_str());
    }
    let _ = write!(line, ", {} dropped", count(halves.dropped));
    line
}

/// The envelope, a row a line; `between` is what stands between the rows.
fn envelope(view: &View, answer: &Answer, between: &str) -> Result<String, Failure> {
    let window = Window {
        since: answer.window.since,
        until: answer.window.until.unwrap_or(answer.asked_at),
    };
    let completeness = answer.completeness.as_ref().map(|c| Completeness {
        percent: answer.percent_complete(),
        federators: &c.federators,
        halves: &c.halves,
    });
    let mut text = format!(
        "{{\"schema\":{},\"window\":{},\"completeness\":{},\"truncated\":{}",
        json(&view.schema)?,
        json(&window)?,
        json(&completeness)?,
        answer.truncated
    );
    for (name, value) in &view.more {
        let _ = write!(text, ",\"{name}\":{value}");
    }
    let rows = view.rows.join(&format!(",{between}"));
    let _ = writeln!(
        text,
        ",\"rows\":[{between}{rows}{}]}}",
        if view.rows.is_empty() { "" } else { between }
    );
    Ok(text)
}

fn csv(view: &View) -> Result<String, Failure> {
    let mut text = view
        .paths
        .iter()
        .map(|path| csv_cell(path))
        .collect::<Vec<_>>()
        .join(",");
    text.push('\n');
    for row in &view.rows {
        let row: Value = serde_json::from_str(row).map_err(|e| Failure::protocol(e.to_string()))?;
        let flat = |path: &String| {
            row.get(path.as_str())
                .or_else(|| row.pointer(&format!("/{}", path.replace('.', "/"))))
        };
        let cells: Vec<String> = view
            .paths
            .iter()
            .map(|path| csv_value(flat(path)))
            .collect();
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    Ok(text)
}

fn csv_value(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => csv_cell(text),
        Some(Value::Array(items)) => {
            let items: Vec<String> = items
                .iter()
                .map(|i| i.as_str().map_or_else(|| i.to_string(), str::to_owned))
                .collect();
            csv_cell(&items.join(" "))
        }
        Some(figure @ (Value::Number(_) | Value::Bool(_))) => figure.to_string(),
        Some(object) => csv_cell(&object.to_string()),
    }
}

/// A cell by RFC 4180. A text that a spreadsheet would take for a formula gets a `'` before it: names of processes
/// and workloads are chosen by others.
fn csv_cell(text: &str) -> String {
    // Line ends and tabs are data here; other control characters could steer a terminal that shows the file.
    let text: String = text
        .split_inclusive(['\n', '\t'])
        .map(|piece| match piece.strip_suffix(['\n', '\t']) {
            Some(line) => plain(line) + &piece[line.len()..],
            None => plain(piece),
        })
        .collect();
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let quoted = formula || text.contains(['"', ',', '\n', '\r']);
    match (quoted, formula) {
        (false, _) => text,
        (true, false) => format!("\"{}\"", text.replace('"', "\"\"")),
        (true, true) => format!("\"'{}\"", text.replace('"', "\"\"")),
    }
}

fn markdown(view: &View) -> String {
    let block = |block: &Block| match block {
        Block::Table(table) => table.markdown(),
        Block::Lines(lines) if lines.is_empty() => Vec::new(),
        Block::Lines(lines) => {
            let fence = || std::iter::once("```".to_owned());
            std::iter::once("```text".to_owned())
                .chain(lines.iter().map(|l| plain(l)))
                .chain(fence())
                .collect()
        }
    };
    let blocks: Vec<String> = view
        .text
        .0
        .iter()
        .map(block)
        .filter(|lines| !lines.is_empty())
        .map(|l| l.join("\n"))
        .collect();
    format!("{}\n", blocks.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spreadsheet_runs_nothing_of_ours() {
        for (text, cell) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("=HYPERLINK(\"x\")", "\"'=HYPERLINK(\"\"x\"\")\""),
            ("+1", "\"'+1\""),
            ("-1", "\"'-1\""),
            ("@sum", "\"'@sum\""),
            ("10.0.0.1:80", "10.0.0.1:80"),
        ] {
            assert_eq!(csv_cell(text), cell);
        }
        assert_eq!(csv_value(Some(&Value::from(-5))), "-5");
    }

    #[test]
    fn halves_are_spoken_of_where_some_were_counted() {
        assert_eq!(
            completeness_line(100.0, &[], &HalfCounts::default()),
            "complete 100 %: 0 of 0 federators"
        );
        let dropped = HalfCounts {
            dropped: 1,
            ..HalfCounts::default()
        };
        assert_eq!(
            completeness_line(99.0, &[], &dropped),
            "complete 99.0 %: 0 of 0 federators; halves: 0 matched, 1 dropped"
        );
    }
}
