//! Statements, and what is refused.

use super::*;

fn limits() -> SqlLimits {
    SqlLimits {
        timeout: Duration::from_secs(1),
        memory: "64MB".into(),
        rows: 100,
    }
}

fn some() -> Vec<Connection> {
    let client = Endpoint {
        workload: "web".into(),
        local: "[2001:db8::1]:443".into(),
        bytes_sent: u64::MAX,
        ..nobody()
    };
    let mut list = vec![nothing(); 3000];
    list[7].client = Some(client);
    list
}

#[test]
fn an_answer_of_long_texts_is_cut() {
    let long = "SELECT repeat('x', 500000) AS long FROM range(101)";
    let limits = SqlLimits {
        memory: "256MB".into(),
        ..limits()
    };
    let answer = run(&some(), &[], &[], long, &limits).unwrap();
    assert!(answer.truncated);
    assert_eq!(answer.rows.len(), MAX_ANSWER_BYTES / 500_000 + 1);
}

#[test]
fn a_select_sees_the_connections() {
    let answer = run(
        &some(),
        &[],
        &[],
        "SELECT client_workload, client_address, client_port, client_bytes_sent, opened_at, server_pid
         FROM connection WHERE client_agent IS NULL AND client_workload = 'web' -- a comment",
        &limits(),
    )
    .unwrap();
    assert_eq!(answer.columns[..2], ["client_workload", "client_address"]);
    let time = SqlValue::Text("1970-01-01T00:00:00.000000Z".into());
    let text = |text: &str| SqlValue::Text(text.into());
    assert_eq!(
        answer.rows,
        [vec![
            text("web"),
            text("2001:db8::1"),
            SqlValue::Int(443),
            SqlValue::UInt(u64::MAX),
            time,
            SqlValue::Null
        ]]
    );
    let count = run(
        &some(),
        &[],
        &[],
        "WITH x AS (SELECT 1) SELECT count(*) AS n FROM connection, x;",
        &limits(),
    )
    .unwrap();
    assert_eq!(count.rows, [[SqlValue::Int(3000)]]);
    let object = weft_wire::cluster::ClusterObject {
        kind: weft_wire::cluster::ObjectKind::Service,
        namespace: "shop".into(),
        name: "web".into(),
        uid: "u".into(),
        of: String::new(),
        sort: "ClusterIP".into(),
        addresses: vec!["10.0.0.9".into(), "fd00::9".into()],
        ports: vec!["http:80/tcp".into()],
        hosts: Vec::new(),
        refers_to: Vec::new(),
    };
    let told = Told {
        cluster: "prod-a".into(),
        at: Timestamp(0),
        object,
    };
    let asked = "SELECT kind, addresses, told_at FROM cluster_objects WHERE cluster = 'prod-a'";
    assert!(needs_objects(asked) && !needs_objects("SELECT 1"));
    let objects = run(&some(), &[], &[told], asked, &limits()).unwrap();
    let time = SqlValue::Text("1970-01-01T00:00:00.000000Z".into());
    assert_eq!(
        objects.rows,
        [vec![text("Service"), text("10.0.0.9 fd00::9"), time]]
    );
    let cut = run(&some(), &[], &[], "SELECT id FROM connection", &limits()).unwrap();
    assert_eq!((cut.rows.len(), cut.truncated), (100, true));
    assert_eq!(
        run(&[], &[], &[], "SELECT id FROM connection", &limits())
            .unwrap()
            .columns,
        ["id"]
    );
}

#[test]
fn nothing_else_is_let_through() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.csv");
    let copy = format!("COPY connection TO '{}'", file.display());
    let export = format!("EXPORT DATABASE '{}'", folder.path().join("dump").display());
    let attach = format!(
        "ATTACH '{}' AS other",
        folder.path().join("other.duckdb").display()
    );
    for attempt in [
        copy.as_str(),
        export.as_str(),
        attach.as_str(),
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM '/etc/passwd.csv'",
        "SELECT * FROM 'https://example.com/x.parquet'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "LOAD '/tmp/x.duckdb_extension'",
        "PRAGMA enable_external_access=true",
        "SET enable_external_access = true",
        "SET memory_limit = '100GB'",
        "RESET ALL",
        "INSERT INTO connection (id) VALUES ('x')",
        "DELETE FROM connection",
        "DROP TABLE connection",
        "CREATE TABLE t AS SELECT 1",
        "CREATE SECRET s (TYPE s3)",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE connection",
        "SELECT getenv('HOME')",
        "SELECT * FROM read_blob('.tmp/*')",
        "SELECT * FROM enable_logging(storage='file', storage_path='.tmp/x.csv')",
        "SELECT * FROM query('SELECT * FROM enable_logging(level=''trace'',storage=''stdout'')')",
        "SELECT * FROM QUERY('SELECT 1')",
        "SELECT * FROM main.query('SELECT 1')",
        "SELECT * FROM query_table(['connection'])",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
        "SELECT write_log('FORGED LINE', scope := 'database')",
        "SELECT system.main.write_log('FORGED LINE')",
        "SELECT 1 ORDER BY write_log('FORGED LINE')",
        "SELECT list_transform([1], lambda x: write_log('FORGED LINE' || x))",
        "WITH a AS MATERIALIZED (SELECT count(*) c FROM query('SELECT * FROM enable_logging(level=''trace'',storage=''stdout'')'))
         SELECT write_log('FORGED LINE'||a.c, scope := 'database') AS w FROM a",
        "SELECT (SELECT count(*) FROM checkpoint())",
        "SELECT * FROM connection, LATERAL (SELECT * FROM query('SELECT 1'))",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM pragma_database_size()",
        "SELECT * FROM enable_profiling()",
        "SELECT * FROM disable_logging()",
        "SELECT * FROM truncate_duckdb_logs()",
        "SELECT sleep_ms(10000)",
        "SELECT 1) AS x; DROP TABLE connection; SELECT * FROM (SELECT 1",
        "CALL pragma_version()",
        "EXPLAIN ANALYZE SELECT 1",
        "SELEC 1",
        "",
    ] {
        let error = run(&some(), &[], &[], attempt, &limits()).expect_err(attempt);
        assert!(
            error.code.starts_with("E-SQL") && !error.cause.is_empty(),
            "{attempt}: {error:?}"
        );
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "nothing was written"
    );
}

#[test]
fn rows_can_be_made_of_what_is_given() {
    for (asked, rows) in [
        ("SELECT * FROM range(3)", 3),
        ("SELECT i FROM generate_series(1, 4) t(i)", 4),
        ("SELECT unnest([1, 2])", 2),
        ("FROM unnest([1, 2, 3])", 3),
        ("SELECT * FROM json_each('[1, 2]')", 2),
        ("SELECT random() < 2, uuid() FROM range(2)", 2),
        ("SELECT [x + 1 for x in range(3)], now() > '2020-01-01'", 1),
        ("SELECT * FROM (DESCRIBE connection)", columns().len()),
    ] {
        let answer = run(&some(), &[], &[], asked, &limits());
        let answer = answer.unwrap_or_else(|error| panic!("{asked}: {error}"));
        assert_eq!(answer.rows.len(), rows, "{asked}");
    }
}

#[test]
fn what_has_no_type_of_its_own_is_told_as_duckdb_writes_it() {
    let asked = "SELECT DATE '2026-01-31' AS d, [1, 2] AS l, INTERVAL 90 MINUTE AS i, TIME '10:00:00' AS t,
            {'a': 1, 'b': 'x'} AS s, MAP {'k': 1} AS m, 'ab'::BLOB AS b, 1.50 AS \"a \"\"b\"\"\", 7 AS d,
            '6b1f7a8e-0000-4000-8000-000000000001'::UUID AS u, NULL AS n, ['2026-01-31'::DATE] AS dl";
    let answer = run(&some(), &[], &[], asked, &limits()).unwrap();
    let text = |text: &str| SqlValue::Text(text.into());
    assert_eq!(
        answer.rows,
        [vec![
            text("2026-01-31"),
            text("[1, 2]"),
            text("01:30:00"),
            text("10:00:00"),
            text("{'a': 1, 'b': x}"),
            text("{k=1}"),
            text("ab"),
            text("1.50"),
            SqlValue::Int(7),
            text("6b1f7a8e-0000-4000-8000-000000000001"),
            SqlValue::Null,
            text("[2026-01-31]"),
        ]]
    );
    assert_eq!(
        answer.columns,
        [
            "d", "l", "i", "t", "s", "m", "b", "a \"b\"", "d", "u", "n", "dl"
        ]
    );
    let by_day = "SELECT opened_at::DATE AS day, count(*) AS n FROM connection GROUP BY opened_at::DATE ORDER BY day";
    let answer = run(&some(), &[], &[], by_day, &limits()).unwrap();
    assert_eq!(answer.rows, [[text("1970-01-01"), SqlValue::Int(3000)]]);
    let newest_first = "SELECT i FROM range(5) t(i) ORDER BY i DESC LIMIT 2";
    let answer = run(&some(), &[], &[], newest_first, &limits()).unwrap();
    assert_eq!(answer.rows, [[SqlValue::Int(4)], [SqlValue::Int(3)]]);
}

#[test]
fn time_and_memory_are_limited() {
    let endless = "SELECT count(*) FROM connection a, connection b, connection c, connection d WHERE a.id <> d.id || b.id";
    let error = run(&some(), &[], &[], endless, &limits()).unwrap_err();
    assert_eq!(error.code, "E-SQL-TIME");
    let huge = "SELECT list(i) FROM range(100000000) t(i)";
    let long = SqlLimits {
        timeout: Duration::from_secs(60),
        memory: "32MB".into(),
        ..limits()
    };
    let error = run(&some(), &[], &[], huge, &long).unwrap_err();
    assert!(error.cause.contains("Out of Memory"), "{error:?}");
    let spills = "SELECT i FROM range(100000000) t(i) ORDER BY hash(i) OFFSET 99999999";
    let error = run(&some(), &[], &[], spills, &long).unwrap_err();
    assert!(error.cause.contains("Out of Memory"), "{error:?}");
}
