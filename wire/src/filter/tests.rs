//! Examples, errors, and the properties: what is printed parses back, nothing panics.

use proptest::prelude::*;

use super::*;
use crate::model::{
    Application, HalfId, HalfState, NameSource, Pod, Process, Protocol, Site, Timestamp,
};
use crate::query::{
    Confidence, Connection, ConnectionState, Endpoint, Match, Path, PathClass, ServerName,
    Unmatched,
};

fn connection() -> Connection {
    Connection {
        id: HalfId(0x7f3a_9c00_0000_0001),
        protocol: Protocol::Tcp,
        opened_at: Timestamp::parse("2026-11-22T15:00:00.000000Z").unwrap(),
        closed_at: Timestamp::parse("2026-11-22T15:00:02.500000Z"),
        state: ConnectionState::Closed,
        client: Some(endpoint("web", "10.1.0.2:48568", "203.0.113.9:443")),
        server: Some(endpoint(
            "ledger",
            "[2001:db8::7]:8443",
            "198.51.100.1:51713",
        )),
        matched: Some(Match {
            evidence: "tcp-isn-pair".into(),
            confidence: Confidence::Exact,
            nat: vec!["source".into(), "destination".into()],
            checks: vec![],
        }),
        name: Some(ServerName {
            name: "api.shop.example".into(),
            source: NameSource::DnsProcess,
            before_us: 71_000,
        }),
        application: Some(Application::Tls),
        path: Path {
            class: PathClass::CrossCloud,
            crosses: vec!["cloud".into(), "region".into()],
            via: vec!["198.51.100.1".into(), "203.0.113.9".into()],
            unmatched: None,
        },
    }
}

fn unmatched() -> Connection {
    let mut c = connection();
    c.server = None;
    c.matched = None;
    c.name = None;
    c.application = None;
    c.path = Path {
        class: PathClass::NorthSouth,
        crosses: vec![],
        via: vec![],
        unmatched: Some(Unmatched::NoPartner),
    };
    c
}

fn endpoint(workload: &str, local: &str, remote: &str) -> Endpoint {
    Endpoint {
        half: HalfId(1),
        agent: "node-a1".into(),
        federator: "fed-a".into(),
        site: Site {
            cloud: "aws".into(),
            cluster: format!("prod-{workload}"),
            namespace: format!("ns-{workload}"),
            ..Site::default()
        },
        workload: workload.into(),
        process: Some(Process {
            pid: 41,
            name: "nginx: \"w\"".into(),
            uid: 33,
            ..Process::default()
        }),
        container: None,
        pod: Some(Pod {
            name: format!("{workload}-7f9"),
            ..Pod::default()
        }),
        unit: Some(format!("{workload}.service")),
        escaped: false,
        sharers: vec![],
        local: local.into(),
        remote: remote.into(),
        bytes_sent: 900_000,
        bytes_received: 600_000,
        rtt_us: Some(1_500),
        retransmits: 0,
        state: HalfState::Closed,
        isn: None,
    }
}

#[test]
fn what_passes() {
    for (text, both, one) in [
        (r#"client.workload = "web""#, true, true),
        (
            "client.workload=web AND server.workload='ledger'",
            true,
            false,
        ),
        ("server.workload != ledger", false, true),
        ("not server.workload = ledger", false, true),
        ("server.workload ~ led*", true, false),
        ("server.workload !~ led*", false, true),
        ("server.workload ~ l?dger", true, false),
        ("server.workload ~ l?ger", false, false),
        (r#"client.process = "nginx: \"w\"""#, true, true),
        (
            "client.process.pid = 41 and client.uid in (0, 33)",
            true,
            true,
        ),
        ("client.exe is null", true, true),
        (
            "client.pod = web-7f9 and client.pod.name ~ web-*",
            true,
            true,
        ),
        ("server.pod is null", false, true),
        ("client.unit = web.service", true, true),
        ("client.escaped = false", true, true),
        ("client.escaped = true", false, false),
        ("server.escaped != true", true, true),
        ("name = api.shop.example", true, false),
        ("name ~ *.shop.example", true, false),
        ("name is null", false, true),
        ("application in (tls, http2)", true, false),
        ("application is null", false, true),
        ("server is null", false, true),
        ("server is not null", true, false),
        ("match.evidence is null", false, true),
        ("client.address in 10.0.0.0/8", true, true),
        ("client.address in (192.168.0.0/16, 10.1.0.2)", true, true),
        ("client.address in ::ffff:10.0.0.0/104", true, true),
        ("client.address != 10.1.0.2", false, false),
        ("client.address not in 10.2.0.0/16", true, true),
        (
            "server.address in 2001:db8::/32 and server.port = 8443",
            true,
            false,
        ),
        (
            "client.remote = 203.0.113.9 and client.remote_port >= 443",
            true,
            true,
        ),
        ("path.via in 198.51.100.0/24", true, false),
        ("bytes > 1mb", true, true),
        ("bytes >= 1.5mb and bytes <= 1500kb", true, true),
        ("bytes > 1.5mb", false, false),
        ("duration > 2s and duration <= 2500ms", true, true),
        ("client.rtt < 2ms", true, true),
        ("server.rtt < 2ms", true, false),
        (
            "opened_at >= 2026-11-22 and opened_at < 2026-11-22T15:00:01Z",
            true,
            true,
        ),
        ("path.class in (hairpin, cross-cloud)", true, false),
        ("path.crosses = region", true, false),
        ("path.crosses != zone", true, true),
        ("match.nat in (source, source-port)", true, false),
        ("path.unmatched = no-partner", false, true),
        ("id ~ 7f3a9c*", true, true),
        // `and` binds closer than `or`, `not` closest.
        (
            "client.workload = web or client.workload = x and client.workload = y",
            true,
            true,
        ),
        (
            "(client.workload = web or client.workload = x) and client.workload = y",
            false,
            false,
        ),
        (
            "not client.workload = x and client.workload = y",
            false,
            false,
        ),
    ] {
        let expr = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(expr.matches(&connection()), both, "{text}, both ends seen");
        assert_eq!(expr.matches(&unmatched()), one, "{text}, server unseen");
        assert_eq!(parse(&expr.to_string()).unwrap(), expr, "{expr}");
    }
}

#[test]
fn what_an_end_is_called() {
    for (from, to, passes) in [
        ("web", "ledger", true),
        ("we*", "*", true),
        ("node-a1", "node-a1", true),
        ("ledger", "web", false),
        ("10.0.0.0/8", "2001:db8::/32", true),
        // The address by which the other end knows it.
        ("198.51.100.1", "203.0.113.9", true),
        ("198.51.100.1:51713", "203.0.113.9:443", true),
        ("198.51.100.1:51714", "203.0.113.9:443", false),
        ("10.1.0.2:48568", "[2001:db8::7]:8443", true),
        ("cloud:aws", "namespace:ns-led*", true),
        ("cloud:gcp", "namespace:ns-led*", false),
        ("process:nginx*", "port:8443", true),
        ("uid:33", "address:2001:db8::7", true),
        // As tables name a workload.
        ("prod-web/ns-web/web", "prod-*/ns-ledger/l*", true),
        ("ns-web/web", "prod-ledger/ledger", true),
        ("prod-web/ns-web/ledger", "*", false),
        ("prod-x/ns-web/web", "*", false),
        ("ns-web/ledger", "*", false),
    ] {
        let filter = Filter {
            from: Some(from.into()),
            to: Some(to.into()),
            ..Filter::default()
        };
        let expr = compile(&filter).unwrap().unwrap();
        assert_eq!(
            expr.matches(&connection()),
            passes,
            "{from} to {to}: {expr}"
        );
        assert_eq!(parse(&expr.to_string()).unwrap(), expr);
    }
    assert_eq!(compile(&Filter::default()), Ok(None));
}

#[test]
fn errors_say_where_and_what_instead() {
    for (text, error, hint) in [
        (
            "",
            "the filter is empty (at character 1)",
            "server.port = 443",
        ),
        (
            "client.wrokload = web",
            "there is no field client.wrokload (at character 1)",
            "did you mean client.workload?",
        ),
        (
            "workload = web",
            "there is no field workload (at character 1)",
            "did you mean client.workload or server.workload?",
        ),
        (
            "client.port = 1 and sever.port = 2",
            "there is no field sever.port (at character 21)",
            "did you mean server.port?",
        ),
        (
            "zebra = 1",
            "there is no field zebra (at character 1)",
            "weft help filter lists the fields",
        ),
        (
            "path.class = hairpins",
            "\"hairpins\" is not a value of path.class (at character 14)",
            "hairpin? One of",
        ),
        (
            "bytes > 1zb",
            "\"1zb\" is not a value of bytes (at character 9)",
            "a size: 512, 10kb",
        ),
        (
            "client.rtt > 10",
            "\"10\" is not a value of client.rtt (at character 14)",
            "a duration with its unit",
        ),
        (
            "client.address = 10.0.0.0/33",
            "\"10.0.0.0/33\" is not a value of client.address (at character 18)",
            "an address",
        ),
        (
            "client.workload > web",
            "client.workload has no order, so > cannot be used on it (at character 17)",
            "one of = != in",
        ),
        (
            "client.port ~ 4*",
            "client.port is not text, so ~ cannot be used on it (at character 13)",
            "client.port = …",
        ),
        (
            "client.port",
            "client.port is compared with nothing (at character 12)",
            "one of =",
        ),
        (
            "client.port =",
            "a value is missing at the end (at character 14)",
            "server.port",
        ),
        (
            "client = web",
            "client is a whole end (at character 8)",
            "client is null",
        ),
        (
            "(client.port = 1",
            "a parenthesis is not closed (at character 17)",
            "add )",
        ),
        (
            "client.port = 1)",
            ") is one too many (at character 16)",
            "join tests",
        ),
        (
            "client.port = 1 server.port = 2",
            "server.port is one too many (at character 17)",
            "and, or",
        ),
        (
            "client.port in (1, 2",
            "a list is not closed (at character 21)",
            "(one",
        ),
        (
            "client.workload = \"wéb",
            "this quote is never closed (at character 19)",
            "close it",
        ),
        (
            "client.workload = null",
            "the word null stands where a value should (at character 19)",
            "\"null\"",
        ),
        (
            "client.workload = $x",
            "'$' means nothing here (at character 19)",
            "quotes",
        ),
    ] {
        let found = parse(text).expect_err(text);
        assert_eq!(found.to_string(), error);
        assert!(found.hint.contains(hint), "{text}: {}", found.hint);
    }
    let found = term(End::Client, "clod:aws").unwrap_err();
    assert_eq!(found.hint, "did you mean cloud:aws?");
    for empty in ["workload:", "workload: ", "port:"] {
        let found = term(End::Client, empty).expect_err(empty);
        assert!(found.to_string().contains(": has no value"), "{found}");
        assert!(found.hint.contains("is null"), "{}", found.hint);
    }
}

#[test]
fn limits_hold() {
    let deep = |n: usize| format!("{}client.port = 1{}", "(".repeat(n), ")".repeat(n));
    assert!(parse(&deep(MAX_DEPTH)).is_ok());
    assert!(parse(&deep(MAX_DEPTH + 1)).is_err());
    assert!(parse(&format!("{}client.port = 1", "not ".repeat(MAX_DEPTH + 1))).is_err());
    let wide = |n: usize| format!("client.port in ({})", vec!["1"; n].join(","));
    assert!(parse(&wide(MAX_TESTS)).is_ok());
    assert!(parse(&wide(MAX_TESTS + 1)).is_err());
    assert!(parse(&format!("client.workload = {}", "x".repeat(MAX_LENGTH))).is_err());
    assert!(term(End::Client, &"x".repeat(MAX_LENGTH + 1)).is_err());
}

#[test]
fn a_network_is_an_interval() {
    for (text, first, last) in [
        ("10.1.2.3/8", "10.0.0.0", "10.255.255.255"),
        ("10.1.2.3", "10.1.2.3", "10.1.2.3"),
        ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
        (
            "2001:db8::1/32",
            "2001:db8::",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
        ),
        ("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("::ffff:10.1.2.3", "10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3/104", "10.0.0.0", "10.255.255.255"),
    ] {
        let network: Network = text.parse().unwrap();
        assert_eq!(
            (network.first().to_string(), network.last().to_string()),
            (first.into(), last.into())
        );
        assert!(network.contains(network.first()) && network.contains(network.last()));
    }
    for wrong in [
        "10.0.0.0/33",
        "10.0.0.0/+8",
        "10.0.0.0/",
        "10.0.0",
        "::/129",
        "x/8",
    ] {
        assert!(wrong.parse::<Network>().is_err(), "{wrong}");
    }
}

#[test]
fn every_field_is_found_by_its_name() {
    assert_eq!(Field::all().count(), 16 + 2 * 28 + 2);
    for field in Field::all() {
        assert_eq!(Field::named(&field.to_string()), Some(field));
    }
}

fn any_field() -> impl Strategy<Value = Field> {
    let fields: Vec<Field> = Field::all().filter(|f| f.kind() != Kind::End).collect();
    proptest::sample::select(fields)
}

fn any_value(kind: Kind) -> BoxedStrategy<Value> {
    match kind {
        Kind::Choice(words) => proptest::sample::select(words)
            .prop_map(|w| Value::Text(w.to_owned()))
            .boxed(),
        Kind::Address => (any::<std::net::IpAddr>(), 0_u8..=32)
            .prop_filter_map("v4-mapped", |(ip, prefix)| {
                Network::new(ip.to_canonical(), prefix).map(Value::Network)
            })
            .boxed(),
        Kind::Number | Kind::Size | Kind::Duration => any::<u64>().prop_map(Value::Number).boxed(),
        Kind::Time => (0_i64..4_000_000_000_000_000)
            .prop_map(|t| Value::Time(Timestamp(t)))
            .boxed(),
        Kind::Text | Kind::End => any::<String>().prop_map(Value::Text).boxed(),
    }
}

fn any_test() -> impl Strategy<Value = Expr> {
    any_field().prop_flat_map(|field| {
        let ops = match field.kind() {
            Kind::Text | Kind::Choice(_) => vec![Op::Eq],
            _ => vec![Op::Eq, Op::Lt, Op::Le, Op::Gt, Op::Ge],
        };
        let value = any_value(field.kind());
        prop_oneof![
            (value, proptest::sample::select(ops)).prop_map(move |(value, op)| match value {
                Value::Network(_) => Expr::In {
                    field,
                    values: vec![value]
                },
                value => Expr::Compare { field, op, value },
            }),
            proptest::collection::vec(any_value(field.kind()), 1..4)
                .prop_map(move |values| Expr::In { field, values }),
            any::<String>().prop_map(move |pattern| match field.kind() {
                Kind::Text => Expr::Like { field, pattern },
                _ => Expr::Null { field },
            }),
        ]
    })
}

fn any_expr() -> impl Strategy<Value = Expr> {
    any_test().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::All),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::Any),
            inner.prop_map(|e| Expr::Not(Box::new(e))),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_printed_parses_back(expr in any_expr()) {
        let text = expr.to_string();
        if text.len() <= MAX_LENGTH {
            prop_assert_eq!(parse(&text), Ok(expr), "{}", text);
        }
    }

    #[test]
    fn nothing_panics(text in ".{0,60}") {
        let _ = (parse(&text), term(End::Client, &text));
    }

    #[test]
    fn nothing_panics_on_what_nearly_parses(
        words in proptest::collection::vec(proptest::sample::select(vec![
            "client.port", "server.workload", "client", "bytes", "opened_at", "client.address", "path.crosses", "(", ")",
            ",", "=", "!=", "~", "<", "in", "not", "and", "or", "is", "null", "1", "1.5mb", "\"a", "\"b\"", "10.0.0.0/8",
            "2026-11-22", "99999999999999999999", "1.9999999999tb", "é*",
        ]), 0..16)
    ) {
        if let Ok(expr) = parse(&words.join(" ")) {
            let _ = (expr.matches(&connection()), expr.matches(&unmatched()));
            prop_assert_eq!(parse(&expr.to_string()), Ok(expr));
        }
    }
}
