use super::*;
use crate::record::{Flush, LookupRow};
use crate::store::{Store, StoreOptions};
use weft_wire::{AgentInfo, Lookup, Process};

/// Ten askers, each with two names from an address of its own, the later asker the later; the first also asks by TLS and HTTPS.
fn store(folder: &std::path::Path) -> Store {
    let mut store = Store::open(&StoreOptions {
        path: folder.join("store.duckdb"),
        threads: 1,
        memory_limit: "256MB".into(),
    })
    .unwrap();
    let agent = AgentRecord {
        key: None,
        federator: "fed-a".into(),
        info: AgentInfo {
            name: "a1".into(),
            ..AgentInfo::default()
        },
        pods: false,
    };
    let owner = |number: u32| Owner {
        process: Some(Process {
            name: format!("p{number}"),
            ..Process::default()
        }),
        workload: format!("w{number}"),
        unit: Some(format!("w{number}.service")),
        ..Owner::default()
    };
    let lookup = |number: u32, name: String, transport| Lookup {
        transport,
        local: SocketAddr::from(([10, 0, 0, number as u8], 40_000)),
        resolver: match transport {
            LookupTransport::Udp => "10.96.0.10:53",
            _ => "8.8.8.8:443",
        }
        .parse()
        .unwrap(),
        asked_at: Timestamp(1_000_000 + i64::from(number)),
        name,
        owner: number,
        ..Lookup::default()
    };
    let plain = (0..10).flat_map(|number| {
        ["x", "y"].map(|name| {
            lookup(
                number,
                format!("{name}{number}.example"),
                LookupTransport::Udp,
            )
        })
    });
    let hidden = [
        LookupTransport::Doh,
        LookupTransport::Doh,
        LookupTransport::Dot,
    ]
    .map(|transport| lookup(0, String::new(), transport));
    let flush = Flush {
        agents: vec![(0, Arc::new(agent))],
        owners: (0..10).map(|n| (n, Arc::new(owner(n)))).collect(),
        lookups: plain
            .chain(hidden)
            .map(|lookup| LookupRow { agent: 0, lookup })
            .collect(),
        ..Flush::default()
    };
    store.flush(&flush).unwrap();
    store
}

fn from(term: &str) -> Filter {
    Filter {
        from: Some(term.into()),
        ..Filter::default()
    }
}

fn of(expression: &str) -> Filter {
    Filter {
        expression: Some(expression.into()),
        ..Filter::default()
    }
}

fn lists() -> Lists {
    Lists::new(&config::Dns::default())
}

#[test]
fn a_cut_before_the_filter_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let db = store.readers().unwrap().connection().unwrap();
    let hotspots =
        |filter: &Filter, most| report_of(&db, &lists(), &DnsReport::Hotspots, filter, (100, most));
    let whole = hotspots(&from("w9"), 100).unwrap();
    assert_eq!((whole.dns.len(), whole.truncated), (2, false));
    // The first groups by name are of others: what is left after the filter is nothing, but not all.
    let cut = hotspots(&from("w9"), 5).unwrap();
    assert_eq!((cut.dns.len(), cut.truncated), (0, true));
    assert!(hotspots(&Filter::default(), 5).unwrap().truncated);
    assert!(!hotspots(&Filter::default(), 20).unwrap().truncated);

    let told = lookups_of(&db, &from("w0"), 100, 5).unwrap();
    assert_eq!((told.lookups.len(), told.truncated), (0, true));
    let told = lookups_of(&db, &from("w0"), 100, 100).unwrap();
    assert_eq!((told.lookups.len(), told.truncated), (5, false));
    let told = lookups_of(&db, &Filter::default(), 23, 23).unwrap();
    assert_eq!((told.lookups.len(), told.truncated), (23, false));
    let told = lookups_of(&db, &Filter::default(), 22, 22).unwrap();
    assert_eq!((told.lookups.len(), told.truncated), (22, true));
}

#[test]
fn who_asked_can_be_named_by_address() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let db = store.readers().unwrap().connection().unwrap();
    for (filter, askers) in [
        (from("10.0.0.3"), 1),
        (from("10.0.0.3:40000"), 1),
        (from("10.0.0.3:40001"), 0),
        (from("10.0.0.0/30"), 4),
        (from("192.0.2.0/24"), 0),
        (of("client.address in 10.0.0.8/31"), 2),
        (of("client.port = 40000"), 10),
        (of("not client.address = 10.0.0.3"), 9),
        (of("client.unit = w3.service"), 1),
        (of("client.escaped = true or client.pod = x"), 0),
    ] {
        let top = report(&db, &lists(), &DnsReport::Top, &filter, 100).unwrap();
        assert_eq!(top.dns.len(), askers, "{filter:?}");
        let told = lookups(&db, &filter, 100).unwrap().lookups;
        let told: HashSet<_> = told.iter().map(|told| &told.asker.workload).collect();
        assert_eq!(told.len(), askers, "{filter:?}");
    }
}

#[test]
fn what_no_lookup_has_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let db = store.readers().unwrap().connection().unwrap();
    let to = Filter {
        to: Some("w3".into()),
        ..Filter::default()
    };
    for filter in [
        of("server.workload = w3"),
        of("bytes > 1kb"),
        of("client.workload = w3 and not (client.remote = 10.0.0.1)"),
        to,
    ] {
        let error = report(&db, &lists(), &DnsReport::Top, &filter, 100).unwrap_err();
        assert_eq!(error.code, "E-FILTER", "{filter:?}");
        assert!(error.hint.contains("client.workload"), "{error:?}");
        assert!(lookups(&db, &filter, 100).is_err());
    }
}

#[test]
fn what_is_hidden_is_in_no_report_but_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let db = store.readers().unwrap().connection().unwrap();
    let all = Filter::default();
    let ask = |which| report(&db, &lists(), &which, &all, 100).unwrap().dns;
    let count = |which| ask(which).iter().map(|row| row.lookups).sum::<u64>();
    let root = || DnsReport::Explain {
        name: String::new(),
    };
    for which in [
        DnsReport::Top,
        DnsReport::Hotspots,
        DnsReport::External,
        DnsReport::Failures,
    ] {
        assert_eq!(count(which.clone()), 20, "{which:?}");
        assert!(
            ask(which)
                .iter()
                .all(|row| row.transport.is_empty() && row.example.is_none())
        );
    }
    assert!(ask(root()).is_empty());
    let rows = ask(DnsReport::Bypass);
    let told: Vec<_> = rows
        .iter()
        .map(|row| {
            let process = row.asker.process.as_deref().unwrap_or_default();
            (
                process,
                row.transport.as_str(),
                &row.resolvers[..],
                row.lookups,
            )
        })
        .collect();
    let resolver = ["8.8.8.8:443".to_owned()];
    assert_eq!(
        told,
        [
            ("p0", "doh", &resolver[..], 2),
            ("p0", "dot", &resolver[..], 1)
        ]
    );
    assert_eq!(rows[0].example.as_deref(), Some("10.0.0.0:40000"));
    assert_eq!((rows[0].unanswered, rows[0].names), (0, 0));
    assert_eq!(rows[0].last_seen, Timestamp(1_000_000));

    // Two answers of one federator, and another's: the later example stays.
    let mut later = rows.clone();
    later[0].example = Some("10.0.0.0:50000".into());
    later[0].last_seen = Timestamp(2_000_000);
    let (merged, cut) = merge(&DnsReport::Bypass, [rows, later].concat(), 100);
    assert!(!cut);
    assert_eq!(merged.len(), 2);
    assert_eq!(merged[0].lookups, 4);
    assert_eq!(merged[0].example.as_deref(), Some("10.0.0.0:50000"));
}
