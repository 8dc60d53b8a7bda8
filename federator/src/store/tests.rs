use std::collections::HashSet;

use weft_wire::Owner;

use super::*;
use crate::record::{CutOff, Joined, LookupRow};
use weft_wire::query::{Confidence, Unmatched};
use weft_wire::{
    AgentInfo, Answer, Application, DatagramSort, Datagrams, Fingerprint, Half, HalfState, Lookup,
    NameSource, PeerName, Pod, Process, Protocol, Role, Site,
};

fn options(folder: &Path) -> StoreOptions {
    StoreOptions {
        path: folder.join("store.duckdb"),
        threads: 1,
        memory_limit: "256MB".into(),
    }
}

fn side(id: u64, role: Role, state: HalfState) -> Side {
    let half = Half {
        id: HalfId(id),
        cookie: 0,
        protocol: Protocol::Tcp,
        role,
        state,
        fingerprint: Fingerprint::TcpIsn {
            client: 7,
            server: 9,
        },
        local: if role == Role::Client {
            "10.0.0.1:5000"
        } else {
            "[2001:db8::2]:80"
        }
        .parse()
        .unwrap(),
        remote: "203.0.113.9:80".parse().unwrap(),
        opened_at: Timestamp(1_000_000),
        closed_at: state.finished().then_some(Timestamp(2_000_000)),
        seen_at: Timestamp(1_500_000),
        bytes_sent: 10,
        bytes_received: u64::MAX,
        packets_sent: 1,
        packets_received: 2,
        rtt_us: 40,
        retransmits: 3,
        owner: 0,
        ..Half::default()
    };
    Side { half, agent: 0 }
}

fn names() -> Flush {
    let process = Process {
        pid: 42,
        started_at: Timestamp(5),
        name: "nginx".into(),
        exe: Some("/usr/sbin/nginx".into()),
        uid: 33,
        user: None,
        args: Some("nginx -g daemon off;".into()),
        parent: 1,
        parent_name: "containerd-shim".into(),
    };
    let owner = Owner {
        process: Some(process.clone()),
        workload: "web".into(),
        unit: Some("nginx.service".into()),
        escaped: true,
        sharers: vec![process],
        pod: Some(Pod {
            namespace: "shop".into(),
            name: "web-7f9".into(),
            labels: vec![("app".into(), "web".into())],
            ..Pod::default()
        }),
        ..Owner::default()
    };
    let info = AgentInfo {
        name: "a1".into(),
        site: Site {
            cloud: "aws".into(),
            ..Site::default()
        },
        ..AgentInfo::default()
    };
    let agent = AgentRecord {
        key: Some(AgentKey(77)),
        federator: "fed-a".into(),
        info,
        pods: false,
    };
    Flush {
        position: 10,
        agents: vec![(0, Arc::new(agent))],
        owners: vec![(0, Arc::new(owner))],
        names: vec![(
            1,
            Arc::new(PeerName {
                name: "api.shop.example".into(),
                source: NameSource::Sni,
            }),
        )],
        sequences: vec![(AgentKey(77), 3)],
        ..Flush::default()
    }
}

fn count(store: &Store, table: &str) -> u64 {
    store
        .connection
        .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
            row.get(0)
        })
        .unwrap()
}

#[test]
fn lookups_are_kept_with_their_owners_until_they_are_old() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&options(folder.path())).unwrap();
    let lookup = |asked_at| LookupRow {
        agent: 0,
        lookup: Lookup {
            asked_at: Timestamp(asked_at),
            name: "db.shop.svc.cluster.local".into(),
            answers: vec![
                Answer::Alias("db-0.shop".into()),
                Answer::Address("10.0.0.9".parse().unwrap(), 30),
            ],
            ..Lookup::default()
        },
    };
    store
        .flush(&Flush {
            lookups: vec![lookup(1_000_000), lookup(2_000_000)],
            ..names()
        })
        .unwrap();
    drop(store);
    let mut store = Store::open(&options(folder.path())).unwrap();
    assert_eq!((count(&store, "lookups"), count(&store, "owners")), (2, 1));
    let row: (String, Option<u16>) = store
        .connection
        .query_row("SELECT answers, code FROM lookups", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(row, ("db-0.shop 10.0.0.9/30".into(), None));
    store.retain(Timestamp(1_500_000)).unwrap();
    assert_eq!(count(&store, "lookups"), 1);
}

#[test]
fn first_datagrams_come_back_with_the_rows_that_may_still_change() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&options(folder.path())).unwrap();
    let end = |id, role, state, sort, server| {
        let mut side = side(id, role, state);
        side.half.protocol = Protocol::Udp;
        side.half.fingerprint = Fingerprint::Datagrams(Datagrams {
            sort,
            client: u64::MAX - 5,
            server,
            distinct: server == 0,
        });
        side
    };
    let row = |state, settled| Row {
        client: Some(end(1, Role::Client, state, DatagramSort::Quic, 0)),
        server: Some(end(2, Role::Server, state, DatagramSort::Dns, 9)),
        joined: Some(Joined {
            evidence: "udp-first-datagram",
            confidence: Confidence::High,
        }),
        unmatched: None,
        card_due: false,
        cut_off: CutOff::default(),
        settled,
    };
    let alone = Row {
        client: None,
        server: Some(end(
            3,
            Role::Server,
            HalfState::Closed,
            DatagramSort::Other,
            0,
        )),
        joined: None,
        unmatched: Some(Unmatched::Pending),
        ..row(HalfState::Open, false)
    };
    let open = row(HalfState::Open, false);
    store
        .flush(&Flush {
            rows: vec![open, alone],
            ..names()
        })
        .unwrap();
    drop(store);

    let mut store = Store::open(&options(folder.path())).unwrap();
    assert_eq!(store.load().unwrap().live, [open, alone]);
    let done = Flush {
        position: 20,
        rows: vec![row(HalfState::Closed, true)],
        replaced: vec![HalfId(1)],
        ..Flush::default()
    };
    store.flush(&done).unwrap();
    assert_eq!(store.load().unwrap().live, [alone]);
    assert_eq!(count(&store, "first_datagrams"), 1);
}

#[test]
fn a_live_row_comes_back_as_it_was_and_moves_when_settled() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&options(folder.path())).unwrap();
    let mut client = side(1, Role::Client, HalfState::Open);
    client.half.name = 1;
    client.half.named_before_us = 71_000;
    client.half.application = Application::Tls;
    let open = Row {
        client: Some(client),
        server: None,
        joined: None,
        unmatched: Some(Unmatched::Pending),
        card_due: true,
        cut_off: CutOff(CutOff::HOME),
        settled: false,
    };
    store
        .flush(&Flush {
            rows: vec![open],
            ..names()
        })
        .unwrap();
    drop(store);

    let mut store = Store::open(&options(folder.path())).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.live, [open]);
    assert_eq!((loaded.position, loaded.next_owner), (10, 1));
    assert_eq!(
        (loaded.next_name, &loaded.names[&1]),
        (2, &names().names[0].1)
    );
    assert_eq!(loaded.sequences, [(AgentKey(77), 3)]);
    assert_eq!(loaded.agents[&0], names().agents[0].1);
    assert_eq!(loaded.owners[&0], names().owners[0].1);

    let done = Row {
        client: Some(side(1, Role::Client, HalfState::Closed)),
        server: Some(side(2, Role::Server, HalfState::Closed)),
        joined: Some(Joined {
            evidence: "tcp-isn-pair",
            confidence: Confidence::Exact,
        }),
        unmatched: None,
        card_due: false,
        cut_off: CutOff(CutOff::HOME),
        settled: true,
    };
    let flush = Flush {
        position: 20,
        rows: vec![done],
        held: vec![HalfId(8), HalfId(9)],
        held_from: 15,
        replaced: vec![HalfId(1)],
        sequences: vec![(AgentKey(77), 4)],
        ..Flush::default()
    };
    store.flush(&flush).unwrap();
    let loaded = store.load().unwrap();
    assert!(loaded.live.is_empty());
    assert_eq!(loaded.held, HashSet::from([HalfId(8), HalfId(9)]));
    assert_eq!(loaded.held_from, 15);
    assert_eq!(loaded.departed, [HalfId(1), HalfId(2)]);
    assert_eq!(
        (loaded.position, loaded.sequences),
        (20, vec![(AgentKey(77), 4)])
    );
    let back = read::rows(&store.connection, "SELECT * FROM connections_plain", []).unwrap();
    assert_eq!(
        back,
        [Row {
            settled: false,
            ..done
        }]
    );
}

#[test]
fn retention_deletes_rows_and_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&options(folder.path())).unwrap();
    let row = Row {
        client: Some(side(1, Role::Client, HalfState::Closed)),
        server: None,
        joined: None,
        unmatched: Some(Unmatched::NoPartner),
        card_due: false,
        cut_off: CutOff(CutOff::HOME),
        settled: true,
    };
    let mut flush = Flush {
        rows: vec![row],
        ..names()
    };
    flush.owners.push((1, flush.owners[0].1.clone()));
    store.flush(&flush).unwrap();
    assert_eq!(store.retain(Timestamp(2_000_000)).unwrap(), 0);
    assert_eq!(store.retain(Timestamp(2_000_001)).unwrap(), 1);
    assert_eq!(count(&store, "connections"), 0);
    assert_eq!(
        count(&store, "owners"),
        2,
        "the core may still give them to halves"
    );
    drop(store);
    let store = Store::open(&options(folder.path())).unwrap();
    assert_eq!(
        count(&store, "owners"),
        1,
        "the highest number stays, so that it is not given out again"
    );
}

#[test]
fn a_failed_flush_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&options(folder.path())).unwrap();
    store.flush(&names()).unwrap();
    store
        .connection
        .execute_batch("ALTER TABLE sequences RENAME TO hidden")
        .unwrap();
    let row = Row {
        client: Some(side(1, Role::Client, HalfState::Closed)),
        server: None,
        joined: None,
        unmatched: None,
        card_due: false,
        cut_off: CutOff(CutOff::HOME),
        settled: true,
    };
    let flush = Flush {
        rows: vec![row],
        position: 99,
        sequences: vec![(AgentKey(1), 1)],
        ..Flush::default()
    };
    assert!(store.flush(&flush).is_err());
    store
        .connection
        .execute_batch("ALTER TABLE hidden RENAME TO sequences")
        .unwrap();
    assert_eq!(count(&store, "connections"), 0);
    assert_eq!(store.load().unwrap().position, 10);
}

/// A store as another version left it: tables of the same names, with other columns.
fn other_version(folder: &Path, version: u64) {
    let file = Connection::open(options(folder).path).unwrap();
    file.execute_batch(&format!(
        "CREATE TABLE progress (schema_version UBIGINT, position UBIGINT);
         CREATE TABLE connections_live (id UBIGINT);
         CREATE TABLE connections_done (id UBIGINT);
         CREATE TABLE sequences (agent UBIGINT, seq UBIGINT);
         INSERT INTO progress VALUES ({version}, 7)"
    ))
    .unwrap();
}

#[test]
fn a_store_of_another_version_is_refused_with_what_to_do() {
    for version in [4, schema::SCHEMA_VERSION + 1] {
        let folder = tempfile::tempdir().unwrap();
        other_version(folder.path(), version);
        let Err(error) = Store::open(&options(folder.path())) else {
            panic!("it was opened");
        };
        let words = error.to_string();
        for part in [
            "store.duckdb",
            &format!("has schema version {version}"),
            &format!("needs {}", schema::SCHEMA_VERSION),
            "move the file away",
        ] {
            assert!(words.contains(part), "{words}");
        }
        // And nothing was changed in it.
        let file = Connection::open(options(folder.path()).path).unwrap();
        let sql = "SELECT count(*) FROM duckdb_tables()";
        let tables: u64 = file.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 4);
    }
}

#[test]
fn somebody_elses_database_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = Connection::open(options(folder.path()).path).unwrap();
    file.execute_batch("CREATE TABLE theirs (id UBIGINT)")
        .unwrap();
    drop(file);
    let opened = Store::open(&options(folder.path()));
    assert!(matches!(opened, Err(StoreError::NotAStore(_))));
}

#[test]
fn what_is_known_of_an_agent_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let standing = Standing {
        skew_us: -7,
        boot: Some(u64::MAX),
        newest: Timestamp(9),
        gone_before: Some(Timestamp(3)),
    };
    let flush = Flush {
        position: 1,
        sequences: vec![(AgentKey(1), 5), (AgentKey(2), 6)],
        standings: vec![(AgentKey(1), standing), (AgentKey(2), Standing::default())],
        ..Flush::default()
    };
    Store::open(&options(folder.path()))
        .unwrap()
        .flush(&flush)
        .unwrap();
    let mut loaded = Store::open(&options(folder.path()))
        .unwrap()
        .load()
        .unwrap();
    loaded.standings.sort_by_key(|(key, _)| *key);
    assert_eq!(loaded.standings, flush.standings);
}

/// Why there is no file for each day: a flush is one transaction. See docs/decisions/one-store-file.md.
#[test]
fn a_transaction_of_duckdb_writes_to_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = Connection::open(options(folder.path()).path).unwrap();
    let day = folder.path().join("day.duckdb");
    file.execute_batch(&format!(
        "ATTACH '{}' AS day; CREATE TABLE here (id INTEGER); CREATE TABLE day.there (id INTEGER)",
        day.display()
    ))
    .unwrap();
    file.execute_batch("BEGIN; INSERT INTO here VALUES (1)")
        .unwrap();
    assert!(
        file.execute_batch("INSERT INTO day.there VALUES (1)")
            .is_err()
    );
}
