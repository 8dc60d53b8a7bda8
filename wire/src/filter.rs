//! The one filter language of command line and API: `--where EXPR`, `--from TERM`, `--to TERM`.
//!
//! ```text
//! client.workload = "web" and (server.port = 5432 or bytes > 1mb)
//!     and path.class in (hairpin, cross-cloud) and not server.namespace ~ "kube-*"
//! client.address in 10.0.0.0/8        server is null        match.nat = destination
//! ```
//!
//! Grammar (keywords in any case):
//!
//! ```text
//! any   := all ("or" all)*
//! all   := one ("and" one)*
//! one   := "not" one | "(" any ")" | test
//! test  := FIELD ("=" | "!=" | "<" | "<=" | ">" | ">=") VALUE
//!        | FIELD ("~" | "!~") PATTERN                     * is any text, ? one character
//!        | FIELD ["not"] "in" (VALUE | "(" VALUE ("," VALUE)* ")")
//!        | FIELD "is" ["not"] "null"
//! ```
//!
//! A value is quoted text or a bare word. Sizes take `b kb mb gb tb` (powers of 1000) or `kib mib gib tib` (of 1024),
//! durations `us ms s m h d`, times are RFC 3339 UTC, addresses may be networks in CIDR notation.
//!
//! Truth has two values. A test on something that is not known (an end that was not seen, an RTT not
//! measured) is false, and `not` makes it true; `a != b` is exactly `not a = b`. A field that holds several values
//! (`path.crosses`, `path.via`, `match.nat`) passes when one of them does. Text compares by bytes.
//!
//! [`parse`] and [`term`] never panic and stop at [`MAX_LENGTH`], [`MAX_DEPTH`] and [`MAX_TESTS`]. What an
//! expression means is [`Expr::matches`]; stores translate the same tree and are tested against it.
//!
//! Reading order: `field` (what can be asked about), `value`, `lexer`, `parser`, `term` (`--from`, `--to`),
//! `print`, `eval`.

mod field;
mod value;
mod lexer;
mod parser;
mod term;
mod print;
mod eval;

pub use field::{End, EndField, Field, Kind};
pub use parser::parse;
pub use term::term;
pub use value::{Network, Value};

use crate::query::Filter;

/// Longest expression or term, in bytes.
pub const MAX_LENGTH: usize = 4096;
/// Deepest nesting of parentheses and `not`.
pub const MAX_DEPTH: usize = 32;
/// Most tests in an expression; each value of an `in` list counts as one.
pub const MAX_TESTS: usize = 256;

/// A parsed expression. Values fit their field's [`Kind`]; whoever builds one by hand sees to that.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// All of them; at least two.
    All(Vec<Expr>),
    /// At least one of them; at least two.
    Any(Vec<Expr>),
    /// Not that one.
    Not(Box<Expr>),
    /// A comparison with one value. Order only for numbers, sizes, durations and times; never on addresses.
    Compare {
        /// What is compared.
        field: Field,
        /// How.
        op: Op,
        /// With what.
        value: Value,
    },
    /// Glob match of a text: `*` is any text, `?` one character, nothing else is special.
    Like {
        /// What is matched.
        field: Field,
        /// The pattern.
        pattern: String,
    },
    /// One of these; for addresses: inside one of these networks (`=` on an address is this, too).
    In {
        /// What is looked for.
        field: Field,
        /// At least one.
        values: Vec<Value>,
    },
    /// Not known, or the whole end not seen.
    Null {
        /// What is not known.
        field: Field,
    },
}

/// Comparisons. There is no "not equal": that is [`Expr::Not`] of [`Op::Eq`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `=`
    Eq,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
}

/// Why an expression cannot be understood. Prints as one line, for `cause:`; [`FilterError::hint`] is the next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (at character {})", .at + 1)]
pub struct FilterError {
    /// Characters before the offending place.
    pub at: usize,
    /// What is wrong there.
    pub what: String,
    /// What was probably meant.
    pub hint: String,
}

/// Everything that a request's filter asks of connections apart from their time; `None` where it asks nothing.
pub fn compile(filter: &Filter) -> Result<Option<Expr>, FilterError> {
    let mut parts = Vec::new();
    if let Some(text) = &filter.from {
        parts.push(term(End::Client, text)?);
    }
    if let Some(text) = &filter.to {
        parts.push(term(End::Server, text)?);
    }
    if let Some(text) = &filter.expression {
        parts.push(parse(text)?);
    }
    Ok(if parts.len() > 1 {
        Some(Expr::All(parts))
    } else {
        parts.pop()
    })
}

impl FilterError {
    fn new(at: usize, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            at,
            what: what.into(),
            hint: hint.into(),
        }
    }
}

#[cfg(test)]
mod tests;
