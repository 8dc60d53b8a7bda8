//! Figures and texts as people read them.

use std::fmt::Write;

use weft_wire::Timestamp;

/// `412 GB`: powers of 1000, three digits.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    scaled(count as f64, &UNITS, 1000.0)
}

fn scaled(count: f64, units: &[&str], step: f64) -> String {
    let (mut value, mut unit) = (count, 0);
    // 999.5 would print as 1000.
    while value >= step - 0.5 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// `41,200`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12 ms`, `1.5 s`, `4 min`, `3 h`, `61 d` of microseconds; a sign where it is negative.
pub fn duration_us(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    let text = match micros {
        0 => "0".to_owned(),
        1..=999 => format!("{micros} us"),
        1_000..=9_999 => format!("{:.1} ms", micros as f64 / 1e3),
        10_000..=999_999 => format!("{} ms", micros / 1_000),
        1_000_000..=9_999_999 => format!("{:.1} s", micros as f64 / 1e6),
        10_000_000..=119_999_999 => format!("{} s", micros / 1_000_000),
        120_000_000..=7_199_999_999 => format!("{} min", micros / 60_000_000),
        7_200_000_000..=172_799_999_999 => format!("{} h", micros / 3_600_000_000),
        _ => format!("{} d", micros / 86_400_000_000),
    };
    format!("{sign}{text}")
}

/// `2026-11-22 15:28:55`, UTC.
pub fn time(time: Timestamp) -> String {
    time.to_string()
        .replace('T', " ")
        .chars()
        .take(19)
        .collect()
}

/// `99.6 %`, rounded down so that 100 means all.
pub fn percent(part: f64) -> String {
    if part >= 100.0 {
        "100 %".to_owned()
    } else {
        format!("{:.1} %", (part * 10.0).floor() / 10.0)
    }
}

/// One thing or several: `1 row`, `2 rows`.
pub fn counted(number: usize, one: &str, many: &str) -> String {
    format!(
        "{} {}",
        count(number as u64),
        if number == 1 { one } else { many }
    )
}

/// A text from elsewhere that is safe to print: control characters and those that turn the direction of writing
/// (process names may hold any) appear as escapes.
pub fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || turns {
            // Writing to a String cannot fail.
            let _ = write!(safe, "{}", c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_540, "1.5 kB"),
            (99_949, "99.9 kB"),
            (99_960, "100 kB"),
            (999_499, "999 kB"),
            (999_600, "1.0 MB"),
            (412_000_000_000, "412 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(
            (count(0), count(999), count(41_200), count(1_000_000)),
            (
                "0".into(),
                "999".into(),
                "41,200".into(),
                "1,000,000".into()
            )
        );
        for (micros, text) in [
            (0, "0"),
            (250, "250 us"),
            (-1_500, "-1.5 ms"),
            (42_000, "42 ms"),
            (1_500_000, "1.5 s"),
            (119_000_000, "119 s"),
            (240_000_000, "4 min"),
            (61 * 86_400_000_000, "61 d"),
        ] {
            assert_eq!(duration_us(micros), text);
        }
        assert_eq!(
            (percent(100.0), percent(99.96), percent(0.0)),
            ("100 %".into(), "99.9 %".into(), "0.0 %".into())
        );
    }

    #[test]
    fn what_comes_from_elsewhere_cannot_steer_a_terminal() {
        assert_eq!(
            plain("a\x1b[31mb\nc\u{202e}d"),
            "a\\u{1b}[31mb\\nc\\u{202e}d"
        );
        assert_eq!(plain("müller"), "müller");
    }
}
