//! `--from` and `--to`: one end in a word.

use std::net::{IpAddr, SocketAddr};

use super::field::{End, EndField, Field, Kind, nearest};
use super::value::{Network, Value, read};
use super::{Expr, FilterError, MAX_LENGTH, Op};

/// Fields that a term may name, `cloud:aws`.
const PREFIXES: &[&str] = &[
    "workload",
    "agent",
    "federator",
    "cloud",
    "account",
    "region",
    "zone",
    "network",
    "cluster",
    "namespace",
    "process",
    "exe",
    "user",
    "uid",
    "pid",
    "container",
    "pod",
    "unit",
    "address",
    "port",
];

/// Reads what one end is to be, in one word:
///
/// - `10.0.0.0/8`, `203.0.113.9`, `203.0.113.9:443`: its own address, or the one by which the other end knows it;
/// - `process:nginx`, `cloud:aws`, `container:4f1c*`: a field (`weft help filter` lists them);
/// - `checkout`, `check*`: the name of a workload or an agent;
/// - `prod-a/web/checkout`, `web/checkout`: a workload as tables name it, by cluster and namespace or one of them.
pub fn term(end: End, text: &str) -> Result<Expr, FilterError> {
    if text.len() > MAX_LENGTH {
        return Err(FilterError::new(
            0,
            format!("longer than {MAX_LENGTH} bytes"),
            "name one workload or network",
        ));
    }
    let text = text.trim();
    if text.is_empty() {
        return Err(FilterError::new(
            0,
            "the name is empty",
            "a workload, a network, or cloud:aws",
        ));
    }
    if let Ok(network) = text.parse::<Network>() {
        return Ok(at_network(end, network));
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Ok(at_socket(end, socket));
    }
    match text.split_once(':') {
        Some((prefix, value)) => prefixed(end, prefix, value),
        None => Ok(called(end, text)),
    }
}

/// The whole word may be a name; with slashes it may also be the path of one.
fn called(end: End, text: &str) -> Expr {
    let is = |field, name: &str| named(Field::Of(end, field), name);
    let mut ways = vec![is(EndField::Workload, text), is(EndField::Agent, text)];
    let parts: Vec<&str> = text.splitn(3, '/').collect();
    match *parts.as_slice() {
        _ if parts.contains(&"") => {}
        [cluster, namespace, workload] => ways.push(Expr::All(vec![
            is(EndField::Cluster, cluster),
            is(EndField::Namespace, namespace),
            is(EndField::Workload, workload),
        ])),
        [place, workload] => {
            ways.extend(
                [EndField::Cluster, EndField::Namespace].map(|field| {
                    Expr::All(vec![is(field, place), is(EndField::Workload, workload)])
                }),
            );
        }
        _ => {}
    }
    Expr::Any(ways)
}

fn at_network(end: End, network: Network) -> Expr {
    let lies_in = |field| Expr::In {
        field,
        values: vec![Value::Network(network)],
    };
    Expr::Any(vec![
        lies_in(Field::Of(end, EndField::Address)),
        lies_in(Field::Of(end.opposite(), EndField::Remote)),
    ])
}

fn at_socket(end: End, socket: SocketAddr) -> Expr {
    let is_at = |address, port| {
        Expr::All(vec![
            Expr::In {
                field: address,
                values: vec![Value::Network(Network::host(socket.ip()))],
            },
            Expr::Compare {
                field: port,
                op: Op::Eq,
                value: Value::Number(socket.port().into()),
            },
        ])
    };
    let other = end.opposite();
    Expr::Any(vec![
        is_at(
            Field::Of(end, EndField::Address),
            Field::Of(end, EndField::Port),
        ),
        is_at(
            Field::Of(other, EndField::Remote),
            Field::Of(other, EndField::RemotePort),
        ),
    ])
}

fn prefixed(end: End, prefix: &str, value: &str) -> Result<Expr, FilterError> {
    let known = PREFIXES
        .contains(&prefix)
        .then(|| EndField::named(prefix))
        .flatten();
    let Some(end_field) = known else {
        let hint = match nearest(prefix, PREFIXES.iter().map(|p| (*p).to_owned())) {
            Some(name) => format!("did you mean {name}:{value}?"),
            None => format!("one of {}", PREFIXES.join(", ")),
        };
        return Err(FilterError::new(
            0,
            format!("{prefix}: is no field of an end"),
            hint,
        ));
    };
    let field = Field::Of(end, end_field);
    let value_at = prefix.chars().count() + 1;
    if value.trim().is_empty() {
        return Err(FilterError::new(
            value_at,
            format!("{prefix}: has no value"),
            format!("for ends of which it is not known: --where '{field} is null'"),
        ));
    }
    if field.kind() == Kind::Text {
        return Ok(named(field, value));
    }
    let read = read(field.kind(), value).map_err(|hint| {
        FilterError::new(
            value_at,
            format!("{value:?} is not a value of {prefix}"),
            hint,
        )
    })?;
    Ok(match read {
        Value::Network(network) => at_network(end, network),
        value => Expr::Compare {
            field,
            op: Op::Eq,
            value,
        },
    })
}

/// Equal to a name, or like it where it has a `*` or `?`.
fn named(field: Field, name: &str) -> Expr {
    if name.contains(['*', '?']) {
        return Expr::Like {
            field,
            pattern: name.to_owned(),
        };
    }
    Expr::Compare {
        field,
        op: Op::Eq,
        value: Value::Text(name.to_owned()),
    }
}

/// The address of an `ip:port`, brackets and all.
pub(super) fn address_of(endpoint: &str) -> Option<(IpAddr, u16)> {
    endpoint
        .parse::<SocketAddr>()
        .ok()
        .map(|socket| (socket.ip().to_canonical(), socket.port()))
}
