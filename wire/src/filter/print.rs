//! An expression as text that parses to the same expression.

use std::fmt;

use super::field::{Field, Kind};
use super::value::Value;
use super::{Expr, Op};

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(parts) => joined(f, parts, "and"),
            Self::Any(parts) => joined(f, parts, "or"),
            Self::Not(inner) => {
                f.write_str("not ")?;
                grouped(f, inner)
            }
            Self::Compare { field, op, value } => {
                write!(f, "{field} {op} ")?;
                write_value(f, *field, value)
            }
            Self::Like { field, pattern } => {
                write!(f, "{field} ~ ")?;
                quoted(f, pattern)
            }
            Self::In { field, values } => {
                write!(f, "{field} in (")?;
                for (index, value) in values.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    write_value(f, *field, value)?;
                }
                f.write_str(")")
            }
            Self::Null { field } => write!(f, "{field} is null"),
        }
    }
}

fn joined(f: &mut fmt::Formatter<'_>, parts: &[Expr], word: &str) -> fmt::Result {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            write!(f, " {word} ")?;
        }
        grouped(f, part)?;
    }
    Ok(())
}

/// In parentheses where it is made of parts.
fn grouped(f: &mut fmt::Formatter<'_>, expr: &Expr) -> fmt::Result {
    match expr {
        Expr::All(_) | Expr::Any(_) => write!(f, "({expr})"),
        _ => write!(f, "{expr}"),
    }
}

fn write_value(f: &mut fmt::Formatter<'_>, field: Field, value: &Value) -> fmt::Result {
    match value {
        Value::Text(text) => match field.kind() {
            Kind::Choice(_) => f.write_str(text),
            _ => quoted(f, text),
        },
        Value::Number(number) if field.kind() == Kind::Duration => write!(f, "{number}us"),
        Value::Number(number) => write!(f, "{number}"),
        Value::Time(time) => write!(f, "{time}"),
        Value::Network(network) => write!(f, "{network}"),
    }
}

fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            f.write_str("\\")?;
        }
        write!(f, "{c}")?;
    }
    f.write_str("\"")
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eq => "=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
        })
    }
}
