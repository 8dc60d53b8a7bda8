//! Names as text: lower-case, no final dot, and safe to print anywhere. The root is the empty text.

use std::fmt::Write;

/// Longest name on the wire (RFC 1035, 2.3.4), its length bytes included.
pub const MAX_WIRE_BYTES: usize = 255;

/// Writes labels as text: ASCII letters in lower case, a dot or backslash within a label behind a backslash, what is not
/// printable ASCII as `\ddd` (RFC 1035, 5.1).
pub fn text<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut out = String::with_capacity(64);
    for (at, label) in labels.into_iter().enumerate() {
        if at > 0 {
            out.push('.');
        }
        for byte in label {
            match byte {
                b'.' | b'\\' => {
                    out.push('\\');
                    out.push(char::from(*byte));
                }
                0x21..=0x7e => out.push(char::from(byte.to_ascii_lowercase())),
                _ => {
                    // Writing to a string cannot fail.
                    let _ = write!(out, "\\{byte:03}");
                }
            }
        }
    }
    out
}

/// A name that a person wrote, in the form that [`text`] gives; `None` when it is none. A wildcard or dot in front
/// (`*.example.com`, `.example.com`) is left out: whoever lists such means what is below, and so do we.
pub fn normalise(written: &str) -> Option<String> {
    let name = written.trim().trim_end_matches('.');
    let name = name.strip_prefix("*.").unwrap_or(name);
    let name = name.strip_prefix('.').unwrap_or(name);
    let fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    (name.len() + 2 <= MAX_WIRE_BYTES && name.split('.').all(fits))
        .then(|| name.to_ascii_lowercase())
}

/// The name and what it is below of: `a.b.c`, `b.c`, `c`.
pub fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    let mut rest = (!name.is_empty()).then_some(name);
    std::iter::from_fn(move || {
        let here = rest?;
        rest = dot(here).map(|at| &here[at + 1..]);
        Some(here)
    })
}

/// Where the first label ends.
fn dot(name: &str) -> Option<usize> {
    let mut escaped = false;
    name.bytes().position(|byte| {
        let ends = byte == b'.' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// How many labels a name has.
pub fn labels(name: &str) -> usize {
    suffixes(name).count()
}

/// What stands before `suffix` in `name`: `a.b` of `a.b.c.d` and `c.d`. `None` when the name is not below the suffix.
pub fn before<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    let front = name.strip_suffix(suffix)?.strip_suffix('.')?;
    let escapes = front.bytes().rev().take_while(|b| *b == b'\\').count();
    (!front.is_empty() && !suffix.is_empty() && escapes % 2 == 0).then_some(front)
}

/// Whether a name is the suffix or below it.
pub fn within(name: &str, suffix: &str) -> bool {
    name == suffix || before(name, suffix).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_is_safe_and_says_what_was_there() {
        let labels: [&[u8]; 3] = [b"WWW", b"a.b\\c \x1b\xff", b"Example"];
        assert_eq!(text(labels), "www.a\\.b\\\\c\\032\\027\\255.example");
        assert_eq!(text([]), "");
    }

    #[test]
    fn suffixes_heed_escapes() {
        let found: Vec<_> = suffixes("x.a\\.b\\\\.com").collect();
        assert_eq!(found, ["x.a\\.b\\\\.com", "a\\.b\\\\.com", "com"]);
        assert_eq!(suffixes("").count(), 0);
        assert_eq!(before("x.a\\.com", "com"), None);
        assert_eq!(before("x.a\\\\.com", "com"), Some("x.a\\\\"));
        assert!(within("com", "com") && within("a.com", "com") && !within("acom", "com"));
        assert!(!within("a.com", ""));
    }

    #[test]
    fn what_people_write_is_normalised_or_refused() {
        assert_eq!(normalise(" Bad.Example. "), Some("bad.example".into()));
        assert_eq!(normalise("*.bad.example"), Some("bad.example".into()));
        for wrong in [
            "",
            ".",
            "a..b",
            "a b",
            "caf\u{e9}.fr",
            "a/b",
            &"x".repeat(64),
        ] {
            assert_eq!(normalise(wrong), None, "{wrong}");
        }
    }

    proptest! {
        /// Different labels give different texts (letters' case aside), and only printable ASCII.
        #[test]
        fn text_can_be_taken_apart_again(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..8), 0..6)) {
            let text = text(labels.iter().map(Vec::as_slice));
            prop_assert!(text.bytes().all(|b| (0x21..=0x7e).contains(&b)));
            let mut back: Vec<Vec<u8>> = Vec::new();
            let mut bytes = text.bytes().peekable();
            if !text.is_empty() { back.push(Vec::new()); }
            while let Some(byte) = bytes.next() {
                let label = back.last_mut().unwrap();
                match byte {
                    b'.' => back.push(Vec::new()),
                    b'\\' => match bytes.next().unwrap() {
                        first @ b'0'..=b'9' => {
                            let digits = [first, bytes.next().unwrap(), bytes.next().unwrap()];
                            label.push(std::str::from_utf8(&digits).unwrap().parse().unwrap());
                        }
                        other => label.push(other),
                    },
                    other => label.push(other),
                }
            }
            let lower: Vec<Vec<u8>> = labels.iter().map(|label| label.to_ascii_lowercase()).collect();
            prop_assert_eq!(back, lower);
            prop_assert_eq!(super::labels(&text), labels.len());
        }
    }
}
