//! Aligned columns. In a pipe they are whole; on a terminal the least important ones give way.

use unicode_width::UnicodeWidthStr;

use crate::figures::plain;

/// Spaces between columns.
const GAP: usize = 2;
/// A column is not made narrower than this; it goes instead.
const MIN_WIDTH: usize = 8;

/// A table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Columns.
    pub columns: Vec<Column>,
    /// Rows, a cell a column.
    pub rows: Vec<Vec<String>>,
}

/// A column.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Title.
    pub title: String,
    /// Figures stand to the right.
    pub right: bool,
    /// 0 stays; of the others the largest goes first when there is no room.
    pub priority: u8,
    /// On a terminal so many characters are enough: an id by its beginning, as `weft explain` takes it.
    pub brief: Option<usize>,
}

/// A column of text.
pub fn text(title: &str, priority: u8) -> Column {
    Column {
        title: title.to_owned(),
        right: false,
        priority,
        brief: None,
    }
}

/// A column of text of which the beginning is enough on a terminal.
pub fn brief(title: &str, priority: u8, characters: usize) -> Column {
    Column {
        brief: Some(characters),
        ..text(title, priority)
    }
}

/// A column of figures.
pub fn figure(title: &str, priority: u8) -> Column {
    Column {
        right: true,
        ..text(title, priority)
    }
}

impl Table {
    /// The table as lines. `width`: of the terminal; `None` for a pipe, where nothing is left out.
    pub fn lines(&self, width: Option<usize>) -> Vec<String> {
        let cell =
            |(cell, column): (&String, &Column)| match column.brief.filter(|_| width.is_some()) {
                Some(characters) => plain(cell).chars().take(characters).collect(),
                None => plain(cell),
            };
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().zip(&self.columns).map(cell).collect())
            .collect();
        // Those of an SQL answer come from elsewhere, too.
        let titles: Vec<String> = self.columns.iter().map(|c| plain(&c.title)).collect();
        let mut shown: Vec<Shown> = (0..self.columns.len())
            .map(|index| {
                let cells = rows
                    .iter()
                    .filter_map(|row| row.get(index))
                    .map(|cell| cell.width());
                let width = cells.chain([titles[index].width()]).max().unwrap_or(0);
                Shown { index, width }
            })
            .collect();
        if let Some(width) = width {
            self.fit(&mut shown, width);
        }
        [&titles]
            .into_iter()
            .chain(&rows)
            .map(|row| self.line(row, &shown))
            .collect()
    }

    /// The table in Markdown.
    pub fn markdown(&self) -> Vec<String> {
        let escaped = |cell: &String| plain(cell).replace('\\', "\\\\").replace('|', "\\|");
        let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
        let titles = line(self.columns.iter().map(|c| escaped(&c.title)).collect());
        let rule = line(
            self.columns
                .iter()
                .map(|c| if c.right { "--:" } else { "---" }.to_owned())
                .collect(),
        );
        let rows = self
            .rows
            .iter()
            .map(|row| line(row.iter().map(escaped).collect()));
        [titles, rule].into_iter().chain(rows).collect()
    }

    /// Leaves out the least important columns, then narrows the widest, until the rest has room.
    fn fit(&self, shown: &mut Vec<Shown>, room: usize) {
        while total(shown) > room {
            let excess = total(shown) - room;
            let least = shown
                .iter()
                .map(|s| self.columns[s.index].priority)
                .max()
                .unwrap_or(0);
            let widest = shown
                .iter_mut()
                .filter(|s| !self.columns[s.index].right)
                .max_by_key(|s| s.width);
            match widest {
                // A little can be taken from the widest column without losing one.
                Some(column)
                    if column.width / 3 >= excess && column.width - excess >= MIN_WIDTH =>
                {
                    column.width -= excess;
                }
                _ if least > 0 => {
                    let last = shown
                        .iter()
                        .rposition(|s| self.columns[s.index].priority == least);
                    last.map(|at| shown.remove(at));
                }
                Some(column) if column.width > MIN_WIDTH => {
                    column.width = column.width.saturating_sub(excess).max(MIN_WIDTH);
                }
                _ => return,
            }
        }
    }

    fn line(&self, row: &[String], shown: &[Shown]) -> String {
        let mut line = String::new();
        for (at, column) in shown.iter().enumerate() {
            let cell = cut(
                row.get(column.index).map_or("", String::as_str),
                column.width,
            );
            let padding = " ".repeat(column.width - cell.width());
            if at > 0 {
                line.push_str(&" ".repeat(GAP));
            }
            if self.columns[column.index].right {
                line.push_str(&padding);
                line.push_str(&cell);
            } else {
                line.push_str(&cell);
                line.push_str(&padding);
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// A column that is shown, and how wide.
#[derive(Clone, Copy, Debug)]
struct Shown {
    index: usize,
    width: usize,
}

fn total(shown: &[Shown]) -> usize {
    shown.iter().map(|s| s.width).sum::<usize>() + GAP * shown.len().saturating_sub(1)
}

/// At most `width` columns of a text, the last one an ellipsis where something is missing.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        kept.push(c);
        if kept.width() + 1 > width {
            kept.pop();
            break;
        }
    }
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        Table {
            columns: vec![
                text("CLIENT", 0),
                text("SERVER", 0),
                text("VIA", 2),
                figure("BYTES", 1),
            ],
            rows: vec![
                vec![
                    "prod-a/web/checkout".into(),
                    "prod-a/pay/ledger".into(),
                    "203.0.113.9".into(),
                    "412 GB".into(),
                ],
                vec!["lab/étl".into(), "db".into(), "-".into(), "8 GB".into()],
            ],
        }
    }

    #[test]
    fn whole_in_a_pipe() {
        assert_eq!(
            sample().lines(None),
            [
                "CLIENT               SERVER             VIA           BYTES",
                "prod-a/web/checkout  prod-a/pay/ledger  203.0.113.9  412 GB",
                "lab/étl              db                 -              8 GB",
            ]
        );
    }

    #[test]
    fn fits_a_terminal() {
        for width in 20..80 {
            for line in sample().lines(Some(width)) {
                assert!(line.width() <= width, "{width}: {line}");
            }
        }
        assert_eq!(
            sample().lines(Some(46)),
            [
                "CLIENT               SERVER              BYTES",
                "prod-a/web/checkout  prod-a/pay/ledger  412 GB",
                "lab/étl              db                   8 GB",
            ]
        );
        assert_eq!(
            sample().lines(Some(30))[1],
            "prod-a/web…  prod-a/pay/ledger"
        );
    }

    #[test]
    fn markdown_escapes() {
        let table = Table {
            columns: vec![text("a || b", 0), figure("B", 0)],
            rows: vec![vec!["x|y".into(), "1".into()]],
        };
        assert_eq!(
            table.markdown(),
            ["| a \\|\\| b | B |", "| --- | --: |", "| x\\|y | 1 |"]
        );
    }

    #[test]
    fn titles_do_not_steer_a_terminal() {
        let table = Table {
            columns: vec![text("a\x1b[31m", 0)],
            rows: vec![],
        };
        assert_eq!(table.lines(None), ["a\\u{1b}[31m"]);
    }
}
