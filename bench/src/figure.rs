//! What a bench yields, how it is printed, and how it is written down.

use std::fmt::Write as _;

use serde::Serialize;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// What somebody else's program reaches, measured in the same run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Peer {
    /// Who.
    pub name: String,
    /// In the figure's unit.
    pub value: f64,
}

/// One measured value. A bench that could not run has no value, and `note` says why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// `part.what` or `part.what.at`.
    pub name: String,
    /// Measured; null when it could not be.
    pub value: Option<f64>,
    /// Unit of value, goal and peer.
    pub unit: &'static str,
    /// What it must reach, where a goal is set.
    pub goal: Option<f64>,
    /// Which way is better.
    pub better: Better,
    /// The peer, where there is one.
    pub peer: Option<Peer>,
    /// How it was measured, what bounds it, or why there is no value.
    pub note: String,
}

impl Figure {
    /// A figure without a goal or peer.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, better: Better) -> Self {
        Self {
            name: name.into(),
            value: Some(value),
            unit,
            goal: None,
            better,
            peer: None,
            note: String::new(),
        }
    }

    /// With the value it must reach.
    pub fn goal(mut self, goal: f64) -> Self {
        self.goal = Some(goal);
        self
    }

    /// With what a peer reached.
    pub fn peer(mut self, name: &str, value: f64) -> Self {
        self.peer = Some(Peer {
            name: name.to_owned(),
            value,
        });
        self
    }

    /// With a remark.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// The row of a bench that could not run.
    pub fn error(name: &str, error: &anyhow::Error) -> Self {
        Self {
            name: name.to_owned(),
            value: None,
            unit: "",
            goal: None,
            better: Better::Higher,
            peer: None,
            note: format!("error: {error:#}"),
        }
    }

    fn meets_goal(&self) -> Option<bool> {
        let (value, goal) = (self.value?, self.goal?);
        Some(match self.better {
            Better::Higher => value >= goal,
            Better::Lower => value <= goal,
        })
    }
}

/// The table, in plain text: widths follow the content, notes come below their row.
pub fn table(figures: &[Figure]) -> String {
    let header = ["NAME", "VALUE", "UNIT", "GOAL", "", "PEER"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(figures.iter().map(|figure| {
        let verdict = match figure.meets_goal() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let goal = figure.goal.map_or_else(String::new, |goal| {
            let sign = if figure.better == Better::Higher {
                ">="
            } else {
                "<="
            };
            format!("{sign} {}", number(goal))
        });
        let peer = figure
            .peer
            .as_ref()
            .map_or_else(String::new, |p| format!("{} ({})", number(p.value), p.name));
        let value = figure.value.map_or_else(|| "ERROR".to_owned(), number);
        [
            figure.name.clone(),
            value,
            figure.unit.to_owned(),
            goal,
            verdict.to_owned(),
            peer,
        ]
    }));
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let [name, value, unit, goal, verdict, peer] = row;
        let [w0, w1, w2, w3, w4, _] = widths;
        let line =
            format!("{name:<w0$}  {value:>w1$}  {unit:<w2$}  {goal:>w3$}  {verdict:<w4$}  {peer}");
        let _ = writeln!(text, "{}", line.trim_end());
        if let Some(figure) = number.checked_sub(1).and_then(|at| figures.get(at))
            && !figure.note.is_empty()
        {
            let _ = writeln!(text, "    {}", figure.note);
        }
    }
    text
}

/// Four significant digits, thousands apart.
fn number(value: f64) -> String {
    if value.abs() < 1000.0 {
        return format!("{value:.*}", if value.abs() < 10.0 { 3 } else { 1 });
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(number(1_234_567.8), "1,234,568");
        assert_eq!(number(47.96), "48.0");
        assert_eq!(number(0.9731), "0.973");
    }

    #[test]
    fn a_missed_goal_is_said() {
        let met = Figure::new("a.b", 10.0, "x", Better::Lower).goal(10.0);
        let missed = Figure::new("a.c", 11.0, "x", Better::Lower)
            .goal(10.0)
            .note("why");
        let error = Figure::error("a.d", &anyhow::anyhow!("no"));
        let text = table(&[met, missed, error]);
        assert!(text.contains("met") && text.contains("MISSED") && text.contains("    why"));
        assert!(text.contains("ERROR") && text.contains("error: no"));
    }

    #[test]
    fn the_json_has_all_fields() {
        let figure = Figure::new("a.b", 1.5, "x", Better::Higher)
            .goal(2.0)
            .peer("p", 3.0)
            .note("n");
        let json = serde_json::to_value(&figure).expect("json");
        let expected = serde_json::json!({
            "name": "a.b", "value": 1.5, "unit": "x", "goal": 2.0, "better": "higher",
            "peer": {"name": "p", "value": 3.0}, "note": "n",
        });
        assert_eq!(json, expected);
    }
}
