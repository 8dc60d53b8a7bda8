//! Filters as SQL. Values are bound, never pasted; what an expression means is `weft_wire::filter`'s
//! `Expr::matches`, and the tests hold this against it.

use std::net::Ipv4Addr;

use duckdb::types::{TimeUnit, Value as Bound};
use weft_wire::filter::{self, End, EndField, Expr, Field, Network, Op, Value};
use weft_wire::query::{Confidence, ConnectionState, Filter, PathClass, QueryError, Unmatched};
use weft_wire::{Application, HalfState, Timestamp};

use super::failure;
use crate::record::{address_words, code};

/// The tables that a condition may name: `k` a connection, `ca`/`sa` its agents, `co`/`so` its owners.
pub const FROM: &str = "FROM connections_plain k
    LEFT JOIN agents ca ON ca.id = k.c_agent LEFT JOIN agents sa ON sa.id = k.s_agent
    LEFT JOIN owners co ON co.id = k.c_owner LEFT JOIN owners so ON so.id = k.s_owner";

/// A condition with the values that it needs, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Condition {
    /// SQL after `WHERE`.
    pub sql: String,
    /// Its parameters.
    pub values: Vec<Bound>,
}

/// A request's filter, its times included.
pub fn condition(filter: &Filter) -> Result<Condition, QueryError> {
    let mut condition = Condition {
        sql: "true".into(),
        values: Vec::new(),
    };
    if let Some(since) = filter.since {
        condition
            .sql
            .push_str(" AND (k.state = 0 OR k.seen_at >= ?)");
        condition.values.push(time(since));
    }
    if let Some(until) = filter.until {
        condition.sql.push_str(" AND k.opened_at < ?");
        condition.values.push(time(until));
    }
    if let Some(expression) = compiled(filter)? {
        condition.sql.push_str(" AND ");
        condition.add(&expression);
    }
    Ok(condition)
}

/// A request's filter without its times.
pub fn compiled(filter: &Filter) -> Result<Option<Expr>, QueryError> {
    filter::compile(filter).map_err(|error| {
        failure(
            "E-FILTER",
            "the filter cannot be understood",
            &error.to_string(),
            &error.hint,
        )
    })
}

/// What a field is in SQL.
enum Column {
    /// One value, null where it is not known.
    Scalar(String),
    /// An enumeration: a number, null where it is not known, and the words by number.
    Word(String, &'static [&'static str]),
    /// Addresses, each under a condition: (condition, high, low).
    Addresses(Vec<(String, String, String)>),
    /// Words, each with the condition under which it is among the field's values.
    Flags(Vec<(&'static str, String)>),
}

impl Condition {
    fn add(&mut self, expression: &Expr) {
        match expression {
            Expr::All(parts) => self.join(parts, " AND ", "true"),
            Expr::Any(parts) => self.join(parts, " OR ", "false"),
            Expr::Not(inner) => {
                self.sql.push_str("(NOT ");
                self.add(inner);
                self.sql.push(')');
            }
            Expr::Null { field } => self.null(&column(*field)),
            Expr::Compare { field, op, value } => self.compare(&column(*field), *op, value),
            Expr::In { field, values } => {
                let column = column(*field);
                self.each(values, |condition, value| {
                    condition.compare(&column, Op::Eq, value)
                });
            }
            Expr::Like { field, pattern } => self.like(&column(*field), pattern),
        }
    }

    fn join(&mut self, parts: &[Expr], with: &str, none: &str) {
        self.sql.push('(');
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                self.sql.push_str(with);
            }
            self.add(part);
        }
        self.sql.push_str(if parts.is_empty() { none } else { "" });
        self.sql.push(')');
    }

    fn each<T>(&mut self, items: &[T], mut one: impl FnMut(&mut Self, &T)) {
        self.sql.push_str("(false");
        for item in items {
            self.sql.push_str(" OR ");
            one(self, item);
        }
        self.sql.push(')');
    }

    fn null(&mut self, column: &Column) {
        match column {
            Column::Scalar(sql) | Column::Word(sql, _) => {
                self.sql.push_str(&format!("({sql} IS NULL)"))
            }
            Column::Addresses(list) => {
                let any: Vec<_> = list
                    .iter()
                    .map(|(known, ..)| format!("coalesce({known}, false)"))
                    .collect();
                self.sql.push_str(&format!("(NOT ({}))", any.join(" OR ")));
            }
            Column::Flags(list) => {
                let any: Vec<_> = list
                    .iter()
                    .map(|(_, set)| format!("coalesce({set}, false)"))
                    .collect();
                self.sql.push_str(&format!("(NOT ({}))", any.join(" OR ")));
            }
        }
    }

    fn compare(&mut self, column: &Column, op: Op, value: &Value) {
        let op = match op {
            Op::Eq => "=",
            Op::Lt => "<",
            Op::Le => "<=",
            Op::Gt => ">",
            Op::Ge => ">=",
        };
        match (column, value) {
            (Column::Scalar(sql), value) => {
                self.values.push(bound(value));
                self.sql.push_str(&format!("coalesce({sql} {op} ?, false)"));
            }
            (Column::Word(sql, words), Value::Text(word)) => {
                let Some(number) = words.iter().position(|known| known == word) else {
                    return self.sql.push_str("false");
                };
                self.sql
                    .push_str(&format!("coalesce({sql} {op} {number}, false)"));
            }
            (Column::Flags(list), Value::Text(word)) => {
                let set = list
                    .iter()
                    .find(|(known, _)| known == word)
                    .map_or("false", |(_, set)| set.as_str());
                self.sql.push_str(&format!("coalesce({set}, false)"));
            }
            (Column::Addresses(list), Value::Network(network)) => {
                self.each(list, |condition, (known, high, low)| {
                    condition.inside(known, high, low, network)
                });
            }
            _ => self.sql.push_str("false"),
        }
    }

    fn inside(&mut self, known: &str, high: &str, low: &str, network: &Network) {
        let ((first_high, first_low), (last_high, last_low)) = (
            address_words(network.first()),
            address_words(network.last()),
        );
        // IPv4 is kept mapped into IPv6, and is in no network of IPv6 all the same.
        let (mapped_high, mapped_first) = address_words(Ipv4Addr::UNSPECIFIED.into());
        let (_, mapped_last) = address_words(Ipv4Addr::BROADCAST.into());
        let mapped =
            format!("{high} = {mapped_high} AND {low} BETWEEN {mapped_first} AND {mapped_last}");
        let family = if network.first().is_ipv4() {
            "true".to_owned()
        } else {
            format!("NOT ({mapped})")
        };
        let known = format!("{known} AND {family}");
        // Numbers of ours, no text of the user's.
        self.sql.push_str(&if first_high == last_high {
            format!("coalesce({known} AND {high} = {first_high} AND {low} BETWEEN {first_low} AND {last_low}, false)")
        } else {
            format!("coalesce({known} AND {high} BETWEEN {first_high} AND {last_high}, false)")
        });
    }

    fn like(&mut self, column: &Column, pattern: &str) {
        let words = |list: &mut dyn Iterator<Item = (&'static str, String)>| -> Vec<String> {
            list.filter(|(word, _)| like_matches(pattern, word))
                .map(|(_, sql)| sql)
                .collect()
        };
        let any = match column {
            Column::Scalar(sql) => {
                self.values.push(Bound::Text(like_pattern(pattern)));
                return self
                    .sql
                    .push_str(&format!("coalesce({sql} LIKE ? ESCAPE '\\', false)"));
            }
            Column::Word(sql, list) => words(
                &mut list
                    .iter()
                    .enumerate()
                    .map(|(number, word)| (*word, format!("{sql} = {number}"))),
            ),
            Column::Flags(list) => words(&mut list.iter().cloned()),
            Column::Addresses(_) => Vec::new(),
        };
        self.each(&any, |condition, sql| {
            condition.sql.push_str(&format!("coalesce({sql}, false)"))
        });
    }
}

fn column(field: Field) -> Column {
    let scalar = |sql: &str| Column::Scalar(sql.into());
    let word = |sql: &str, words| Column::Word(sql.into(), words);
    match field {
        Field::Id => scalar("format('{:016x}', k.id)"),
        Field::Protocol => scalar("(CASE k.protocol WHEN 6 THEN 'tcp' WHEN 17 THEN 'udp' END)"),
        Field::State => word("k.state", ConnectionState::WORDS),
        // Few statements ask for it: the others need not look.
        Field::Name => scalar("(SELECT any_value(n.name) FROM names n WHERE n.id = k.name)"),
        Field::Application => word("nullif(k.application, 0)", Application::WORDS),
        Field::OpenedAt => scalar("k.opened_at"),
        Field::ClosedAt => scalar("k.closed_at"),
        Field::Duration => scalar("greatest(epoch_us(k.closed_at) - epoch_us(k.opened_at), 0)"),
        Field::Bytes => scalar(
            "(CASE WHEN k.c_half IS NOT NULL THEN k.c_bytes_sent::UHUGEINT + k.c_bytes_received
             ELSE k.s_bytes_sent::UHUGEINT + k.s_bytes_received END)",
        ),
        Field::Evidence => word("k.evidence", &code::EVIDENCE),
        Field::Confidence => word("k.confidence", Confidence::WORDS),
        Field::Nat => Column::Flags(vec![
            ("source", differs("c_local", "s_remote")),
            ("source-port", "k.c_local_port <> k.s_remote_port".into()),
            ("destination", differs("c_remote", "s_local")),
            (
                "destination-port",
                "k.c_remote_port <> k.s_local_port".into(),
            ),
        ]),
        Field::Class => word("k.class", PathClass::WORDS),
        Field::Crosses => Column::Flags(
            code::CROSSES
                .iter()
                .enumerate()
                .map(|(bit, name)| (*name, format!("(k.crosses & {}) <> 0", 1 << bit)))
                .collect(),
        ),
        Field::Via => Column::Addresses(vec![
            (
                differs("c_local", "s_remote"),
                "k.s_remote_high".into(),
                "k.s_remote_low".into(),
            ),
            (
                differs("c_remote", "s_local"),
                "k.c_remote_high".into(),
                "k.c_remote_low".into(),
            ),
        ]),
        Field::Unmatched => word("k.unmatched", Unmatched::WORDS),
        Field::Of(end, field) => end_column(end, field),
    }
}

/// True where an address was rewritten; null where an end was not seen.
fn differs(one: &str, other: &str) -> String {
    format!("(k.{one}_high <> k.{other}_high OR k.{one}_low <> k.{other}_low)")
}

fn end_column(end: End, field: EndField) -> Column {
    let s = if end == End::Client { "c" } else { "s" };
    let own = |name: &str| Column::Scalar(format!("k.{s}_{name}"));
    let agent = |name: &str| Column::Scalar(format!("nullif({s}a.{name}, '')"));
    let owner = |name: &str| Column::Scalar(format!("{s}o.{name}"));
    let owner_text = |name: &str| Column::Scalar(format!("nullif({s}o.{name}, '')"));
    let address = |name: &str| {
        let known = format!("k.{s}_half IS NOT NULL");
        Column::Addresses(vec![(
            known,
            format!("k.{s}_{name}_high"),
            format!("k.{s}_{name}_low"),
        )])
    };
    match field {
        EndField::Seen => own("half"),
        EndField::Agent => agent("name"),
        EndField::Federator => agent("federator"),
        EndField::Cloud => agent("cloud"),
        EndField::Account => agent("account"),
        EndField::Region => agent("region"),
        EndField::Zone => agent("zone"),
        EndField::Network => agent("network"),
        EndField::Cluster => agent("cluster"),
        EndField::Namespace => agent("namespace"),
        EndField::Workload => owner_text("workload"),
        EndField::Process => owner_text("process"),
        EndField::Pid => owner("pid"),
        EndField::Exe => owner_text("exe"),
        EndField::Uid => owner("uid"),
        EndField::User => owner_text("username"),
        EndField::Container => owner_text("container"),
        EndField::Pod => owner_text("pod"),
        EndField::Unit => owner_text("unit"),
        // Who was seen and is not known to have escaped has not.
        EndField::Escaped => Column::Word(
            format!(
                "(CASE WHEN k.{s}_half IS NOT NULL THEN coalesce({s}o.escaped, false)::UTINYINT END)"
            ),
            &["false", "true"],
        ),
        EndField::Address => address("local"),
        EndField::Port => own("local_port"),
        EndField::Remote => address("remote"),
        EndField::RemotePort => own("remote_port"),
        EndField::BytesSent => own("bytes_sent"),
        EndField::BytesReceived => own("bytes_received"),
        EndField::Rtt => Column::Scalar(format!("nullif(k.{s}_rtt_us, 0)")),
        EndField::Retransmits => own("retransmits"),
        EndField::State => Column::Word(format!("k.{s}_state"), HalfState::WORDS),
    }
}

/// A time as a parameter.
pub fn time(at: Timestamp) -> Bound {
    Bound::Timestamp(TimeUnit::Microsecond, at.0)
}

fn bound(value: &Value) -> Bound {
    match value {
        Value::Text(text) => Bound::Text(text.clone()),
        Value::Number(number) => Bound::UBigInt(*number),
        Value::Time(at) => time(*at),
        // Addresses are compared as numbers.
        Value::Network(_) => Bound::Null,
    }
}

/// A glob as a pattern of LIKE.
fn like_pattern(glob: &str) -> String {
    let mut pattern = String::with_capacity(glob.len());
    for c in glob.chars() {
        match c {
            '*' => pattern.push('%'),
            '?' => pattern.push('_'),
            '%' | '_' | '\\' => pattern.extend(['\\', c]),
            other => pattern.push(other),
        }
    }
    pattern
}

/// A glob on one of a few known words.
fn like_matches(glob: &str, text: &str) -> bool {
    match glob.chars().next() {
        None => text.is_empty(),
        Some('*') => {
            (0..=text.len()).any(|at| like_matches(glob.trim_start_matches('*'), &text[at..]))
        }
        Some(c) => text.chars().next().is_some_and(|t| {
            (c == '?' || c == t) && like_matches(&glob[c.len_utf8()..], &text[t.len_utf8()..])
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::like_matches;

    #[test]
    fn a_glob_of_many_stars_ends() {
        let stars = format!("{}x", "*".repeat(60));
        assert!(!like_matches(&stars, "cross-cluster"));
        assert!(like_matches(&"*".repeat(60), "cross-cluster"));
        assert!(like_matches("**-c*r", "cross-cluster"));
    }
}
