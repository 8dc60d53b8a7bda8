//! What an expression means: the reference that stores are tested against.

use std::cmp::Ordering;
use std::net::IpAddr;

use super::field::{End, EndField, Field};
use super::term::address_of;
use super::value::Value;
use super::{Expr, Op};
use crate::model::Timestamp;
use crate::query::{Connection, Endpoint};

/// A field's value in one connection.
enum Cell<'a> {
    Text(&'a str),
    Word(String),
    Number(u64),
    Time(Timestamp),
    Address(IpAddr),
    Seen,
}

impl Expr {
    /// Whether a connection passes.
    pub fn matches(&self, connection: &Connection) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(connection)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(connection)),
            Self::Not(inner) => !inner.matches(connection),
            Self::Null { field } => cells(*field, connection).is_empty(),
            Self::Compare { field, op, value } => cells(*field, connection)
                .iter()
                .any(|cell| op.holds(cell.compare(value))),
            Self::In { field, values } => {
                let cells = cells(*field, connection);
                cells
                    .iter()
                    .any(|cell| values.iter().any(|value| cell.is_in(value)))
            }
            Self::Like { field, pattern } => cells(*field, connection)
                .iter()
                .any(|cell| cell.is_like(pattern)),
        }
    }
}

impl Op {
    fn holds(self, ordering: Option<Ordering>) -> bool {
        ordering.is_some_and(|ordering| match self {
            Self::Eq => ordering.is_eq(),
            Self::Lt => ordering.is_lt(),
            Self::Le => ordering.is_le(),
            Self::Gt => ordering.is_gt(),
            Self::Ge => ordering.is_ge(),
        })
    }
}

impl Cell<'_> {
    fn compare(&self, value: &Value) -> Option<Ordering> {
        match (self, value) {
            (Self::Text(a), Value::Text(b)) => Some((*a).cmp(b.as_str())),
            (Self::Word(a), Value::Text(b)) => Some(a.cmp(b)),
            (Self::Number(a), Value::Number(b)) => Some(a.cmp(b)),
            (Self::Time(a), Value::Time(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    fn is_in(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Address(address), Value::Network(network)) => network.contains(*address),
            _ => self.compare(value) == Some(Ordering::Equal),
        }
    }

    fn is_like(&self, pattern: &str) -> bool {
        match self {
            Self::Text(text) => glob(pattern, text),
            Self::Word(text) => glob(pattern, text),
            _ => false,
        }
    }
}

/// The values of a field; none where it is not known.
fn cells(field: Field, c: &Connection) -> Vec<Cell<'_>> {
    let one = |cell: Cell<'static>| vec![cell];
    let word = |word: &'static str| vec![Cell::Text(word)];
    match field {
        Field::Id => one(Cell::Word(c.id.to_string())),
        Field::Protocol => word(c.protocol.as_str()),
        Field::State => word(c.state.as_str()),
        Field::Name => c.name.iter().map(|n| Cell::Text(&n.name)).collect(),
        Field::Application => c
            .application
            .iter()
            .map(|a| Cell::Text(a.as_str()))
            .collect(),
        Field::OpenedAt => one(Cell::Time(c.opened_at)),
        Field::ClosedAt => c.closed_at.map(Cell::Time).into_iter().collect(),
        Field::Duration => c
            .closed_at
            .map(|closed| {
                Cell::Number(u64::try_from(closed.0.saturating_sub(c.opened_at.0)).unwrap_or(0))
            })
            .into_iter()
            .collect(),
        Field::Bytes => {
            let end = c.client.as_ref().or(c.server.as_ref());
            end.map(|e| Cell::Number(e.bytes_sent.saturating_add(e.bytes_received)))
                .into_iter()
                .collect()
        }
        Field::Evidence => c.matched.iter().map(|m| Cell::Text(&m.evidence)).collect(),
        Field::Confidence => c
            .matched
            .iter()
            .map(|m| Cell::Text(m.confidence.as_str()))
            .collect(),
        Field::Nat => c
            .matched
            .iter()
            .flat_map(|m| &m.nat)
            .map(|n| Cell::Text(n))
            .collect(),
        Field::Class => word(c.path.class.as_str()),
        Field::Crosses => c.path.crosses.iter().map(|n| Cell::Text(n)).collect(),
        Field::Via => c
            .path
            .via
            .iter()
            .filter_map(|a| a.parse::<IpAddr>().ok())
            .map(Cell::Address)
            .collect(),
        Field::Unmatched => c
            .path
            .unmatched
            .map(|r| Cell::Text(r.as_str()))
            .into_iter()
            .collect(),
        Field::Of(End::Client, field) => c
            .client
            .as_ref()
            .and_then(|e| cell_of(field, e))
            .into_iter()
            .collect(),
        Field::Of(End::Server, field) => c
            .server
            .as_ref()
            .and_then(|e| cell_of(field, e))
            .into_iter()
            .collect(),
    }
}

fn cell_of(field: EndField, e: &Endpoint) -> Option<Cell<'_>> {
    let process = e.process.as_ref();
    match field {
        EndField::Seen => Some(Cell::Seen),
        EndField::Agent => known(&e.agent),
        EndField::Federator => known(&e.federator),
        EndField::Cloud => known(&e.site.cloud),
        EndField::Account => known(&e.site.account),
        EndField::Region => known(&e.site.region),
        EndField::Zone => known(&e.site.zone),
        EndField::Network => known(&e.site.network),
        EndField::Cluster => known(&e.site.cluster),
        EndField::Namespace => known(&e.site.namespace),
        EndField::Workload => known(&e.workload),
        EndField::Process => process.and_then(|p| known(&p.name)),
        EndField::Pid => process.map(|p| Cell::Number(p.pid.into())),
        EndField::Exe => process.and_then(|p| known(p.exe.as_deref()?)),
        EndField::Uid => process.map(|p| Cell::Number(p.uid.into())),
        EndField::User => process.and_then(|p| known(p.user.as_deref()?)),
        EndField::Container => known(e.container.as_deref()?),
        EndField::Pod => known(&e.pod.as_ref()?.name),
        EndField::Unit => known(e.unit.as_deref()?),
        EndField::Escaped => Some(Cell::Text(if e.escaped { "true" } else { "false" })),
        EndField::Address => address_of(&e.local).map(|(address, _)| Cell::Address(address)),
        EndField::Port => address_of(&e.local).map(|(_, port)| Cell::Number(port.into())),
        EndField::Remote => address_of(&e.remote).map(|(address, _)| Cell::Address(address)),
        EndField::RemotePort => address_of(&e.remote).map(|(_, port)| Cell::Number(port.into())),
        EndField::BytesSent => Some(Cell::Number(e.bytes_sent)),
        EndField::BytesReceived => Some(Cell::Number(e.bytes_received)),
        EndField::Rtt => e.rtt_us.map(|rtt| Cell::Number(rtt.into())),
        EndField::Retransmits => Some(Cell::Number(e.retransmits.into())),
        EndField::State => Some(Cell::Text(e.state.as_str())),
    }
}

/// An empty text is "not known", as everywhere in the model.
fn known(text: &str) -> Option<Cell<'_>> {
    (!text.is_empty()).then_some(Cell::Text(text))
}

/// `*` is any text, `?` one character. Linear in memory, at worst pattern times text in time.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on when a character does not fit: after the last star, one character further in the text.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, at)) => {
                    retry = Some((after_star, at + 1));
                    (p, t) = (after_star, at + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}
