//! What a machine said, and the table of all of them.

use std::collections::{BTreeMap, VecDeque};

/// What is known of a kernel program on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// Attached, with the number of instructions that the verifier went through where the kernel tells.
    Attached(Option<u64>),
    /// Not used there, because something better is.
    Unused(String),
    /// That kernel cannot have it, and the agent goes on without.
    Absent(String),
    /// Refused, and why.
    Refused(String),
}

/// One kernel's column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// `uname -r`.
    pub release: String,
    /// Programs by name, in the agent's order.
    pub programs: Vec<(String, Program)>,
    /// Cases in the order in which they ran, and whether they passed.
    pub cases: Vec<(String, bool)>,
    /// Cases that are about hooks which that kernel cannot have.
    pub skipped: u64,
    /// What each failed case said, by its name.
    pub messages: BTreeMap<String, String>,
    /// Why there is no more: the machine did not start, stopped, or fell silent.
    pub broken: Option<String>,
    /// What was said since the last case.
    said: VecDeque<String>,
}

/// Lines of a failed case that are kept.
const KEPT_LINES: usize = 20;
/// Characters of what it said that the closing line has.
const SHORT_CHARS: usize = 160;

impl Report {
    /// Takes one line of output. Lines that are nothing of ours are what tests print; of a failed case they are kept.
    pub fn line(&mut self, line: &str) {
        if let Some(release) = line.strip_prefix("weft-vm: kernel ") {
            self.release = release.to_owned();
        } else if let Some(rest) = line.strip_prefix("program ") {
            self.programs.extend(program(rest));
        } else if let Some((name, word)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        {
            match word {
                "skipped" => self.skipped += 1,
                word => self.cases.push((name.to_owned(), word == "ok")),
            }
            let said: Vec<String> = self.said.drain(..).collect();
            if word != "ok" && word != "skipped" {
                self.messages.insert(name.to_owned(), said.join("\n"));
            }
        } else if !line.trim().is_empty() {
            if self.said.len() == KEPT_LINES {
                self.said.pop_front();
            }
            self.said.push_back(line.trim_end().to_owned());
        }
    }

    /// What is not well, each in a few words: the machine, refused programs, failed cases.
    pub fn complaints(&self) -> Vec<String> {
        let mut all: Vec<String> = self.broken.iter().map(|why| short(why)).collect();
        all.extend(
            self.refused()
                .map(|(name, why)| format!("{name} refused: {}", short(why))),
        );
        all.extend(self.failed().map(|case| {
            let said = self.messages.get(case).map(String::as_str);
            format!("{case}: {}", short(said.unwrap_or_default()))
        }));
        if all.is_empty() && self.counts().0 + self.skipped == 0 {
            all.push("nothing ran".to_owned());
        }
        all
    }

    /// How many cases passed and how many did not.
    pub fn counts(&self) -> (u64, u64) {
        let passed = self.cases.iter().filter(|(_, passed)| *passed).count() as u64;
        (passed, self.cases.len() as u64 - passed)
    }

    /// The names of those that did not.
    pub fn failed(&self) -> impl Iterator<Item = &str> {
        self.cases
            .iter()
            .filter(|(_, passed)| !passed)
            .map(|(name, _)| name.as_str())
    }

    /// Programs that this kernel refused.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &str)> {
        self.programs
            .iter()
            .filter_map(|(name, program)| match program {
                Program::Refused(why) => Some((name.as_str(), why.as_str())),
                _ => None,
            })
    }
}

/// The beginning of what was said, on one line. Where a panic begins is no news.
fn short(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("thread '") && !line.starts_with("note: run with"))
        .collect();
    lines.join(" | ").chars().take(SHORT_CHARS).collect()
}

/// `NAME attached [INSTRUCTIONS]`, `NAME unused WHY`, `NAME absent WHY`, `NAME refused WHY`.
fn program(text: &str) -> Option<(String, Program)> {
    let (name, rest) = text.split_once(' ')?;
    let (word, detail) = rest.split_once(' ').unwrap_or((rest, ""));
    let program = match word {
        "attached" => Program::Attached(detail.parse().ok()),
        "unused" => Program::Unused(detail.to_owned()),
        "absent" => Program::Absent(detail.to_owned()),
        "refused" => Program::Refused(detail.to_owned()),
        _ => return None,
    };
    Some((name.to_owned(), program))
}

/// Programs down, kernels across: the verifier's instructions where a program is attached, a word where it is not.
pub fn table(columns: &[(String, Report)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (_, report) in columns {
        for (name, _) in &report.programs {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
    }
    let mut rows = vec![row("", columns.iter().map(|(title, _)| title.clone()))];
    rows.push(row(
        "release",
        columns.iter().map(|(_, report)| report.release.clone()),
    ));
    for name in names {
        rows.push(row(
            name,
            columns.iter().map(|(_, report)| {
                let found = report.programs.iter().find(|(known, _)| known == name);
                cell(found.map(|(_, program)| program))
            }),
        ));
    }
    rows.push(row(
        "tests passed",
        columns
            .iter()
            .map(|(_, report)| report.counts().0.to_string()),
    ));
    rows.push(row(
        "tests failed",
        columns
            .iter()
            .map(|(_, report)| report.counts().1.to_string()),
    ));
    rows.push(row(
        "tests skipped",
        columns.iter().map(|(_, report)| report.skipped.to_string()),
    ));
    aligned(&rows) + &notes(columns)
}

fn cell(program: Option<&Program>) -> String {
    match program {
        Some(Program::Attached(Some(instructions))) => format!("{instructions} insns"),
        Some(Program::Attached(None)) => "attached".to_owned(),
        Some(Program::Unused(_)) => "not needed".to_owned(),
        Some(Program::Absent(_)) => "absent".to_owned(),
        Some(Program::Refused(_)) => "REFUSED".to_owned(),
        None => "-".to_owned(),
    }
}

/// Why something is not attached, once for each reason.
fn notes(columns: &[(String, Report)]) -> String {
    let mut notes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (title, report) in columns {
        for (name, program) in &report.programs {
            let note = match program {
                Program::Attached(_) => continue,
                Program::Unused(why) => format!("{name} is not needed: {why}"),
                Program::Absent(why) => format!("absent: {why}"),
                Program::Refused(why) => format!("{name} is refused: {why}"),
            };
            let titles = notes.entry(note).or_default();
            if !titles.contains(&title.as_str()) {
                titles.push(title);
            }
        }
        for case in report.failed() {
            let said = report.messages.get(case).map(String::as_str);
            let said = said.unwrap_or_default().replace('\n', "\n    ");
            notes
                .entry(format!("test {case} failed: {said}"))
                .or_default()
                .push(title);
        }
        if let Some(why) = &report.broken {
            notes.entry(why.clone()).or_default().push(title);
        }
    }
    notes
        .iter()
        .map(|(note, titles)| format!("{}: {note}\n", titles.join(", ")))
        .collect()
}

fn row(head: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(head.to_owned()).chain(cells).collect()
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].len())
                .max()
                .unwrap_or_default()
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.line(line));
        report
    }

    #[test]
    fn a_machine_is_understood() {
        let report = report(
            "weft-vm: kernel 5.10.0-32\nweft-vm: programs\nprogram weft_ops attached 4711\n\
             program weft_create unused sock_ops names the process\nprogram weft_x refused E2BIG: too long\n\
             thread 'main' panicked\ntest ipv4 ... ok\ntest ipv6 ... FAILED\nweft-vm: end 1",
        );
        assert_eq!(report.release, "5.10.0-32");
        assert_eq!(report.counts(), (1, 1));
        assert_eq!(report.failed().collect::<Vec<_>>(), ["ipv6"]);
        assert_eq!(
            report.refused().collect::<Vec<_>>(),
            [("weft_x", "E2BIG: too long")]
        );
        assert_eq!(report.programs[0].1, Program::Attached(Some(4711)));
    }

    #[test]
    fn what_failed_is_said_with_its_message() {
        let mut report = report(
            "test a ... ok\nthread 'main' panicked at x.rs:1:2:\nassertion failed: left == right\n\
             test b ... FAILED\ntest c ... ok",
        );
        assert_eq!(report.complaints(), ["b: assertion failed: left == right"]);
        report.broken = Some("the machine said nothing for 420 s; its console:\n  oops".into());
        assert_eq!(
            report.complaints()[0],
            "the machine said nothing for 420 s; its console: | oops"
        );
        assert_eq!(Report::default().complaints(), ["nothing ran"]);
    }

    #[test]
    fn the_table_has_every_program_and_every_reason() {
        let old = report(
            "weft-vm: kernel 5.10\nprogram a attached\nprogram b refused no such type\ntest x ... FAILED",
        );
        let new = report(
            "weft-vm: kernel 6.12\nprogram a attached 12\ntest x ... ok\ntest y ... skipped",
        );
        let text = table(&[("5.10".into(), old), ("6.12".into(), new)]);
        let expected = "               5.10      6.12
release        5.10      6.12
a              attached  12 insns
b              REFUSED   -
tests passed   0         1
tests failed   1         0
tests skipped  0         1
5.10: b is refused: no such type
5.10: test x failed: 
";
        assert_eq!(text, expected);
    }
}
