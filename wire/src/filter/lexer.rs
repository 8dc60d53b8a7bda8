//! Text to tokens.

use super::{FilterError, MAX_LENGTH};

/// A token and where it begins, in characters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub at: usize,
    pub what: Lexeme,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Lexeme {
    /// A bare word: a field, a keyword or a value.
    Word(String),
    /// Quoted text: a value, whatever it says.
    Quoted(String),
    /// An operator, a parenthesis or a comma.
    Symbol(&'static str),
}

/// Longer ones first, so that `<=` is not read as `<`.
const SYMBOLS: &[&str] = &[
    "!=", "<>", "<=", ">=", "!~", "==", "=", "<", ">", "~", "(", ")", ",",
];

pub(super) fn lex(text: &str) -> Result<Vec<Token>, FilterError> {
    if text.len() > MAX_LENGTH {
        let what = format!("longer than {MAX_LENGTH} bytes");
        return Err(FilterError::new(
            0,
            what,
            "ask for less at once, or use weft sql",
        ));
    }
    let mut tokens = Vec::new();
    let mut rest = Rest { left: text, at: 0 };
    while let Some(c) = rest.peek() {
        let at = rest.at;
        if c.is_whitespace() {
            rest.next();
            continue;
        }
        let what = if matches!(c, '"' | '\'') {
            quoted(&mut rest)?
        } else if let Some(symbol) = SYMBOLS.iter().find(|s| rest.left.starts_with(**s)) {
            for _ in symbol.chars() {
                rest.next();
            }
            Lexeme::Symbol(symbol)
        } else if is_word(c) {
            let mut word = String::new();
            while let Some(c) = rest.peek().filter(|c| is_word(*c)) {
                word.push(c);
                rest.next();
            }
            Lexeme::Word(word)
        } else {
            return Err(FilterError::new(
                at,
                format!("{c:?} means nothing here"),
                "put values in \"quotes\"",
            ));
        };
        tokens.push(Token { at, what });
    }
    Ok(tokens)
}

/// What may stand in a word without quotes: names, numbers with units, addresses, times, paths and patterns.
pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_-./:*?@%+[]".contains(c)
}

fn quoted(rest: &mut Rest<'_>) -> Result<Lexeme, FilterError> {
    let start = rest.at;
    let quote = rest.next();
    let mut text = String::new();
    loop {
        match rest.next() {
            None => {
                return Err(FilterError::new(
                    start,
                    "this quote is never closed",
                    "close it",
                ));
            }
            end if end == quote => return Ok(Lexeme::Quoted(text)),
            Some('\\') => match rest.next() {
                Some(c @ ('"' | '\'' | '\\')) => text.push(c),
                _ => {
                    let hint = "\\\" is a quote, \\\\ a backslash";
                    return Err(FilterError::new(
                        rest.at.saturating_sub(1),
                        "unknown escape",
                        hint,
                    ));
                }
            },
            Some(c) => text.push(c),
        }
    }
}

struct Rest<'a> {
    left: &'a str,
    at: usize,
}

impl Rest<'_> {
    fn peek(&self) -> Option<char> {
        self.left.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.left = &self.left[c.len_utf8()..];
        self.at += 1;
        Some(c)
    }
}
