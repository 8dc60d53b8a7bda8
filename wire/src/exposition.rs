//! Numbers as Prometheus reads them: the text format 0.0.4, written by both daemons and by `weft health`, and a reader that
//! is stricter than Prometheus, by which tests hold them to its rules of naming.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write};

/// Content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Endings of names that say a unit which is not a base unit: seconds, bytes and ratios are.
const UNITS_TO_AVOID: [&str; 12] = [
    "us",
    "ms",
    "ns",
    "microseconds",
    "milliseconds",
    "nanoseconds",
    "minutes",
    "hours",
    "days",
    "kilobytes",
    "percent",
    "permille",
];

/// What a number does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from the program's start; its name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// A text that grows by one family of numbers after the other.
#[derive(Clone, Debug, Default)]
pub struct Exposition(String);

/// The family that is being written.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: String,
}

impl Exposition {
    /// Begins a family.
    pub fn family(&mut self, kind: Kind, name: &str, help: &str) -> Family<'_> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String cannot fail, here and below.
        let _ = write!(
            self.0,
            "# HELP {name} {help}\n# TYPE {name} {}\n",
            kind.word()
        );
        Family {
            text: &mut self.0,
            name: name.to_owned(),
        }
    }

    /// A family of one number without labels.
    pub fn one(&mut self, kind: Kind, name: &str, help: &str, value: impl Display) {
        self.family(kind, name, help).put(&[], value);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Adds a number.
    pub fn put(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(&self.name);
        for (index, (label, word)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            let word = word
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.text, "{label}=\"{word}\"");
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// A family as it was read: its numbers by labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Read {
    /// `counter` or `gauge`.
    pub kind: String,
    /// Numbers by what stands between the braces, as it stands there; empty for none.
    pub values: BTreeMap<String, f64>,
}

/// Reads a text, and holds it to the format and to the rules of naming: every family with HELP and TYPE before its numbers
/// and in one piece, counters in `_total` and nothing else, base units, no number twice.
pub fn read(text: &str) -> Result<BTreeMap<String, Read>, String> {
    let mut families: BTreeMap<String, Read> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut present = String::new();
    if !text.ends_with('\n') {
        return Err("the text does not end with a line's end".into());
    }
    for line in text.lines() {
        let wrong = |what: &str| Err(format!("{what}: {line}"));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let Some((name, help)) = rest.split_once(' ') else {
                return wrong("no help");
            };
            if help.trim().is_empty() || !helped.insert(name.to_owned()) {
                return wrong("empty help, or help twice");
            }
            present = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else {
                return wrong("no type");
            };
            if name != present || families.contains_key(name) {
                return wrong("a type that does not follow its help, or twice");
            }
            named_well(name, kind).map_err(|what| format!("{what}: {line}"))?;
            let read = Read {
                kind: kind.to_owned(),
                values: BTreeMap::new(),
            };
            families.insert(name.to_owned(), read);
        } else {
            let (name, labels, value) = sample(line).map_err(|what| format!("{what}: {line}"))?;
            let Some(family) = families.get_mut(name).filter(|_| name == present) else {
                return wrong("a number outside of its family");
            };
            if family.values.insert(labels.to_owned(), value).is_some() {
                return wrong("the same number twice");
            }
            if family.kind == "counter" && value < 0.0 {
                return wrong("a counter below zero");
            }
        }
    }
    match helped.iter().find(|name| !families.contains_key(*name)) {
        Some(name) => Err(format!("{name} has help and no type")),
        None => Ok(families),
    }
}

fn named_well(name: &str, kind: &str) -> Result<(), String> {
    if !is_name(name) {
        return Err("no name of a metric".into());
    }
    let total = name.ends_with("_total");
    match kind {
        "counter" if !total => return Err("a counter without _total".into()),
        "gauge" if total => return Err("a gauge with _total".into()),
        "counter" | "gauge" => {}
        _ => return Err("an unknown type".into()),
    }
    let plain = name.strip_suffix("_total").unwrap_or(name);
    let last = plain.rsplit('_').next().unwrap_or_default();
    if UNITS_TO_AVOID.contains(&last) {
        return Err("not a base unit".into());
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let head = |c: char| c.is_ascii_lowercase() || c == '_';
    name.starts_with(head) && name.chars().all(|c| head(c) || c.is_ascii_digit())
}

fn sample(line: &str) -> Result<(&str, &str, f64), &'static str> {
    let (name, rest) = match line.find(['{', ' ']) {
        Some(end) => line.split_at(end),
        None => return Err("no value"),
    };
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => {
            let end = labels_end(rest)?;
            (&rest[..end], &rest[end + 1..])
        }
        None => ("", rest),
    };
    let value = value
        .strip_prefix(' ')
        .and_then(|value| value.parse::<f64>().ok())
        .ok_or("no number")?;
    if value.is_nan() {
        return Err("not a number");
    }
    Ok((name, labels, value))
}

/// Where the labels end, when they are well formed: `a="x",b="y"`.
fn labels_end(text: &str) -> Result<usize, &'static str> {
    let mut at = 0;
    loop {
        let equals = text[at..].find("=\"").ok_or("a label without a value")?;
        if !is_name(&text[at..at + equals]) {
            return Err("no name of a label");
        }
        at += equals + 2;
        let mut escaped = false;
        let end = text[at..].find(|c| {
            let quote = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            quote
        });
        at += end.ok_or("a label that does not end")? + 1;
        match text.as_bytes().get(at) {
            Some(b'}') => return Ok(at),
            Some(b',') => at += 1,
            _ => return Err("labels that do not end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut text = Exposition::default();
        text.one(Kind::Gauge, "weft_open", "Open ones.", 7_u64);
        let mut family = text.family(Kind::Counter, "weft_lost_total", "Lost,\nby cause.");
        family.put(&[("cause", "a \"b\\c\"\n}"), ("to", "x")], 1.5);
        family.put(&[("cause", "d"), ("to", "x")], u64::MAX);
        let read = read(&text.finish()).unwrap();
        assert_eq!(read["weft_open"].values[""], 7.0);
        let lost = &read["weft_lost_total"];
        assert_eq!(lost.kind, "counter");
        assert_eq!(
            lost.values[r#"cause="a \"b\\c\"\n}",to="x""#], 1.5,
            "{lost:?}"
        );
        assert_eq!(lost.values.len(), 2);
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let family = |name: &str, kind: &str, rest: &str| {
            read(&format!(
                "# HELP {name} Words.\n# TYPE {name} {kind}\n{rest}\n"
            ))
        };
        assert!(family("a_total", "counter", "a_total 1").is_ok());
        for (name, kind, rest) in [
            ("a", "counter", "a 1"),
            ("a_total", "gauge", "a_total 1"),
            ("a", "histogram", "a 1"),
            ("a_ms", "gauge", "a_ms 1"),
            ("a_us_total", "counter", "a_us_total 1"),
            ("A", "gauge", "A 1"),
            ("a", "gauge", "b 1"),
            ("a", "gauge", "a x"),
            ("a", "gauge", "a NaN"),
            ("a", "gauge", "a"),
            ("a", "gauge", "a 1\na 2"),
            ("a", "gauge", "a{b=\"c\" 1"),
            ("a", "gauge", "a{b} 1"),
            ("a", "gauge", "a{B=\"c\"} 1"),
            ("a_total", "counter", "a_total -1"),
        ] {
            assert!(family(name, kind, rest).is_err(), "{name} {kind} {rest}");
        }
        assert!(read("a 1\n").is_err(), "no family");
        assert!(read("# HELP a Words.\n").is_err(), "no type");
        assert!(read("# TYPE a gauge\na 1\n").is_err(), "no help");
        assert!(read("# HELP a W.\n# TYPE a gauge\na 1").is_err(), "no end");
    }
}
