//! Masked forks: nobody sees what was there before, not even in the bytes of their files.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::sys::signal::Signal::{SIGINT, SIGKILL, SIGTERM};

use super::bad_input::{EXISTS, NOT_FOUND, USAGE, refuses};
use crate::common::pg::{Postgres, owner};
use crate::common::plain::Plain;
use crate::common::process::{is_alive, run, signal, wait_until};
use crate::common::store::{QUIET, Store, number};
use crate::common::turn_on_a_mount;
use crate::e2e::lifecycle::psql;

/// What nobody is to read, wherever it was.
const SECRET: &[u8] = b"tell-tale";

/// Data with secrets in all the places where PostgreSQL keeps copies of data.
const FILL: &str = "
CREATE TABLE customers (id int PRIMARY KEY, email text, city text, note text);
ALTER TABLE customers ALTER note SET STORAGE EXTERNAL;
INSERT INTO customers SELECT n, 'tell-tale-' || n % 50 || '@x', 'tell-tale-city-' || n % 5,
    CASE WHEN n % 100 = 0 THEN repeat('tell-tale toast ', 500) END FROM generate_series(1, 5000) n;
CREATE INDEX ON customers (email);
CREATE INDEX ON customers (upper('tell-tale' || email));
CREATE STATISTICS both_of_them (mcv) ON email, city FROM customers;
COMMENT ON TABLE customers IS 'tell-tale comment';
CREATE TABLE people (id int, ssn text);
INSERT INTO people SELECT n, 'tell-tale-ssn-' || n FROM generate_series(1, 1000) n;
CREATE TABLE visits (day date, who text) PARTITION BY RANGE (day);
CREATE TABLE visits_1 PARTITION OF visits FOR VALUES FROM ('2020-01-01') TO ('2030-01-01');
INSERT INTO visits SELECT '2025-01-01', 'tell-tale-' || n % 20 FROM generate_series(1, 1000) n;
CREATE TABLE orders AS SELECT n AS id, n % 5000 AS customer, repeat('o', 100) AS filler FROM generate_series(1, 20000) n;
SELECT lo_from_bytea(0, 'tell-tale large object');
UPDATE customers SET city = city || '!' WHERE id % 7 = 0;
ANALYZE; CHECKPOINT";

/// What masks it.
const MASK: &str = "
\\connect shop
UPDATE customers SET email = 'c' || id || '@example.com', city = 'somewhere', note = NULL;
DROP INDEX customers_upper_idx;
COMMENT ON TABLE customers IS NULL;
ALTER TABLE people DROP COLUMN ssn;
UPDATE visits SET who = 'v';
SELECT lo_unlink(oid) FROM pg_largeobject_metadata;
NOTIFY something, 'tell-tale';
SELECT count(*) FROM orders;
";

/// The files below a directory that have the secret in them.
fn found(top: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut todo = vec![top.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).expect("list").flatten() {
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path()).expect("read a file");
                if bytes.windows(SECRET.len()).any(|window| window == SECRET) {
                    found.insert(entry.path().strip_prefix(top).expect("below it").to_path_buf());
                }
            }
        }
    }
    found
}

#[track_caller]
fn assert_clean(store: &Store, fork: &str) {
    assert_eq!(found(&store.path(fork)), BTreeSet::new(), "{fork}");
    let log = std::fs::read(store.dir().join(format!("logs/{fork}.log"))).unwrap_or_default();
    assert!(!log.windows(SECRET.len()).any(|window| window == SECRET), "{fork}'s log");
}

fn write(store: &Store, name: &str, text: &str, mode: u32) -> String {
    let file = store.scratch().join(name);
    std::fs::write(&file, text).expect("write a mask");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("set its mode");
    file.display().to_string()
}

/// A running `main` with a database `shop`.
fn shop() -> Store {
    let store = Store::new();
    store.create("main", &format!("{QUIET}\nlogging_collector = on\nlog_directory = 'kept-logs'\nlog_statement = all\nmax_prepared_transactions = 5"));
    store.start("main");
    psql(&store, "main", "CREATE DATABASE shop");
    store.sql("main", "shop").run(FILL).expect("fill");
    store
}

#[test]
fn nothing_of_what_was_masked_is_left() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = shop();
    let mask = write(&store, "mask.sql", MASK, 0o644);
    // As a server that dies at work on a new file leaves it.
    let sql = store.sql("main", "shop");
    let database = sql.value("SELECT oid FROM pg_database WHERE datname = 'shop'").expect("ask");
    let orphan = store.path("main").join(format!("base/{database}/99999"));
    std::fs::write(&orphan, b"tell-tale orphan").expect("write");
    if let Some((uid, gid)) = owner() {
        std::os::unix::fs::chown(&orphan, Some(uid), Some(gid)).expect("chown");
    }
    let statistic = sql.value("SELECT pg_relation_filepath('pg_statistic')").expect("ask");

    // The control: without the clean-up a mask leaves the secret all over the place.
    let mut before = found(&store.path("main"));
    assert!(before.contains(Path::new(&statistic)) && before.len() > 8, "{before:?}");
    store.ok(["fork", "main", "raw", "--start"]);
    run(store.command(["psql", "raw", "--", "-q", "-f", &mask]).stdin(Stdio::null())).expect_ok();
    store.stop("raw");
    before = found(&store.path("raw"));
    let has = |what: &str| before.iter().any(|path| path.to_string_lossy().contains(what));
    assert!(
        has("base/") && has("pg_wal/") && has("kept-logs/") && has("99999") && has(&statistic),
        "{before:?}"
    );
    store.ok(["rm", "raw"]);

    let made = store.json(["fork", "main", "dev", "--mask", &mask]);
    assert_clean(&store, "dev");
    let tables: Vec<&str> =
        made["masked"]["tables"].as_array().expect("tables").iter().filter_map(|t| t.as_str()).collect();
    assert_eq!(tables, ["shop: public.customers", "shop: public.people", "shop: public.visits_1"]);
    assert_eq!((&made["masks"], &made["parent"]), (&serde_json::json!(["mask.sql"]), &"main".into()));
    let check = |fork: &str| {
        store.start(fork);
        let sql = store.sql(fork, "shop");
        let masked = "SELECT count(*) FROM customers WHERE email LIKE 'c%@example.com' AND note IS NULL";
        assert_eq!(sql.number(masked).expect("ask"), 5000);
        assert_eq!(sql.number("SELECT count(*) FROM orders").expect("ask"), 20000);
        assert!(sql.rows("SELECT ssn FROM people").is_err());
        let statistics = "SELECT count(*) FROM pg_stats WHERE tablename IN ('customers', 'visits')";
        assert!(sql.number(statistics).expect("ask") > 3, "they are made anew");
        sql.run("CREATE EXTENSION amcheck").expect("make it");
        Postgres::get().amcheck(&store.endpoint(fork), "shop").expect_ok();
        assert_clean(&store, fork);
        store.stop(fork);
    };
    check("dev");
    Postgres::get().checksums(&store.path("dev")).expect_ok();

    // There is no way back to what it was.
    store.ok(["reset", "dev"]);
    assert_clean(&store, "dev");
    sql.run("INSERT INTO people VALUES (1001, 'tell-tale-ssn-1001')").expect("insert");
    store.ok(["start", "dev"]);
    store.ok(["reset", "dev", "--to", "parent", "--force"]);
    assert_clean(&store, "dev");
    assert_eq!(store.sql("dev", "shop").number("SELECT count(*) FROM people").expect("ask"), 1001);
    store.ok(["reset", "dev", "--force"]);
    assert_eq!(store.sql("dev", "shop").number("SELECT count(*) FROM people").expect("ask"), 1001);
    store.stop("dev");
    store.ok(["fork", "dev", "child"]);
    assert_clean(&store, "child");
    store.ok(["reset", "child", "--to", "parent"]);
    assert_clean(&store, "child");
    check("child");
    assert_eq!(store.names(), ["child", "dev", "main"]);
    assert!(store.ok(["list"]).contains("masked"));
    // The parent has all that it had.
    assert!(found(&store.path("main")).contains(Path::new(&statistic)));
    store.ok(["rm", "--force", "main"]);
    check("dev");
    store.ok(["umount"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}

/// A mask that fails leaves nothing but its own words.
#[test]
fn a_mask_that_fails() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = shop();
    let wrong = write(
        &store,
        "wrong.sql",
        "\\connect shop\nUPDATE customers SET city = '';\nSELECT nonsense;",
        0o644,
    );
    let failing = write(&store, "failing", "#!/bin/sh\necho one reason\necho another >&2\nexit 3", 0o755);
    let lost = write(&store, "lost", "#!/no/such/shell\n", 0o755);
    let binary = write(&store, "binary", "", 0o644);
    std::fs::write(&binary, [0xff, 0xfe]).expect("write");
    let huge = write(&store, "huge.sql", &"-- x\n".repeat(1 << 17), 0o644);
    let update = write(
        &store,
        "update.sql",
        "\\connect shop\nUPDATE orders SET filler = 'x'; CREATE TABLE b AS SELECT repeat('y', 1000) FROM generate_series(1, 100000)",
        0o644,
    );
    let fork = |mask: &str, more: &[&str], code: i32, words: &[&str]| {
        refuses(&store, &[&["fork", "main", "dev", "--mask", mask], more].concat(), code, words);
        let left = |dir: &str| store.dir().join(dir).read_dir().expect("list").flatten().count();
        assert_eq!((left("run"), left("logs"), left("mnt")), (1, 1, 1), "{mask}");
    };
    fork(&wrong, &[], 9, &["wrong.sql", "nonsense", "LINE 1", "nothing was kept"]);
    fork(&failing, &[], 1, &["failing", "one reason", "another", "exit status: 3"]);
    fork(&lost, &[], 3, &["lost"]);
    fork(&binary, &[], 7, &["UTF-8"]);
    fork(&huge, &[], 7, &["huge.sql"]);
    fork("/none", &[], NOT_FOUND, &["/none"]);
    fork("/", &[], 7, &["directory"]);
    fork("anon", &[], 6, &["PostgreSQL Anonymizer", "hint"]);
    fork(&wrong, &["--keep-identity"], USAGE, &["--keep-identity"]);
    fork(&update, &["--quota", "64MB"], 8, &["No space left"]);
    fork(&update, &["--mask-database", "none"], 9, &["none"]);
    refuses(&store, &["fork", "main", "main", "--mask", &wrong], EXISTS, &["main"]);
    let sql = store.sql("main", "shop");
    sql.run("BEGIN; INSERT INTO orders VALUES (0, 0, ''); PREPARE TRANSACTION 'unended'").expect("prepare");
    let fine = write(&store, "fine.sql", MASK, 0o644);
    fork(&fine, &[], 7, &["unended", "ROLLBACK PREPARED"]);
    let ends = write(&store, "ends.sql", "\\connect shop\nROLLBACK PREPARED 'unended'", 0o644);
    // A program that leaves a session behind, which sees what was there.
    let program = "#!/bin/sh\npsql -d shop -Xqc 'SET idle_session_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM customers LIMIT 1' -c 'SELECT pg_sleep(600)' >/dev/null 2>&1 &\nsleep 1\n";
    let leaves = write(&store, "leaves", program, 0o755);
    store.ok(["fork", "main", "dev", "--mask", &ends, "--mask", &leaves, "--mask", &fine]);
    assert_clean(&store, "dev");
    store.ok(["rm", "dev"]);
    store.stop("main");
}

/// A fork that is being masked is for nobody else, and goes with whoever makes it.
#[test]
fn a_fork_is_not_there_before_it_is_masked() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = shop();
    let go = store.scratch().join("go");
    let slow = format!(
        "#!/bin/sh\necho $PGPORT > {0}.port\nwhile [ ! -e {0} ]; do kill -0 $PPID || exit 1; sleep 0.05; done\n",
        go.display()
    );
    let slow = write(&store, "slow", &slow, 0o755);
    let mask = write(&store, "mask.sql", MASK, 0o644);
    let port_file = store.scratch().join("go.port");
    let begin = || -> (Child, u16) {
        let _ = std::fs::remove_file(&port_file);
        let mut command = store.command(["fork", "main", "dev", "--mask", &slow, "--mask", &mask]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start it");
        let mut said = String::new();
        BufReader::new(child.stderr.take().expect("a pipe")).read_line(&mut said).expect("read");
        assert!(said.contains("masking dev with"), "{said}");
        let read = || std::fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse().ok());
        wait_until("the mask's beginning", || read().is_some());
        (child, read().expect("a port"))
    };
    let server = || {
        let pid = std::fs::read_to_string(store.dir().join("mnt/dev/postmaster.pid")).expect("it runs");
        pid.lines().next().and_then(|pid| pid.parse::<u32>().ok()).expect("a process id")
    };
    let (mut child, port) = begin();
    assert_eq!(store.names(), ["main"]);
    let top = std::fs::read_dir(store.dir().join("mnt")).expect("list").flatten();
    assert_eq!(top.map(|entry| entry.file_name()).collect::<Vec<_>>(), ["main"]);
    assert!(std::net::TcpStream::connect(("localhost", port)).is_err(), "it listens on its socket alone");
    for args in [
        &["fork", "dev", "x"][..],
        &["start", "dev"],
        &["psql", "dev"],
        &["rm", "dev"],
        &["export", "dev", "/x"],
    ] {
        let done = store.run(args);
        assert!(done.code == 5 && done.stderr.contains("still being made"), "{}", done.report());
    }
    refuses(&store, &["snapshot", "dev"], 5, &["still being made"]);
    refuses(&store, &["fork", "main", "dev"], EXISTS, &["dev"]);
    // It goes with its maker, however that ends; servers, too.
    for (number, sent) in [SIGKILL, SIGINT, SIGTERM].into_iter().enumerate() {
        if number > 0 {
            child = begin().0;
        }
        let pid = server();
        signal(child.id(), sent);
        child.wait().expect("wait");
        wait_until("its server's end", || !is_alive(pid));
        wait_until("its end", || {
            !store.dir().join("mnt/dev").exists() && store.run(["show", "dev"]).code == NOT_FOUND
        });
    }
    // And with the daemon.
    let (mut child, _) = begin();
    store.kill_daemon();
    std::fs::write(&go, "").expect("let it go on");
    assert!(!child.wait().expect("wait").success());
    assert_eq!(store.names(), ["main"]);
    assert!(!store.dir().join("run/dev").exists() && !store.dir().join("logs/dev.log").exists());
    store.start("main");
    let (mut child, _) = begin();
    assert!(child.wait().expect("wait").success());
    assert_clean(&store, "dev");
    assert_eq!(store.names(), ["dev", "main"]);
    store.stop("main");
    store.ok(["umount"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}

/// Roots: masked when they come in, or with forks that are.
#[test]
fn roots_are_masked_or_their_forks_are() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let source = Plain::create(store.scratch(), "source", QUIET);
    let at = source.start();
    let pg = Postgres::get();
    pg.psql(&at, "postgres", "CREATE DATABASE shop").expect_ok();
    crate::common::sql::Sql::connect(&at, "shop").expect("connect").run(FILL).expect("fill");
    source.stop("immediate");
    let from = source.pgdata().display().to_string();
    let mask = write(&store, "mask.sql", MASK, 0o644);
    for (name, how) in [("copied", "--from"), ("in-place", "--base")] {
        store.ok(["create", name, how, &from, "--mask", &mask]);
        assert_clean(&store, name);
        store.start(name);
        let sql = store.sql(name, "shop");
        assert_eq!(sql.number("SELECT count(*) FROM customers WHERE note IS NULL").expect("ask"), 5000);
        store.stop(name);
        store.ok(["rm", name]);
    }
    let program = write(&store, "program", "#!/bin/sh\n", 0o755);
    refuses(&store, &["create", "prod", "--from", &from, "--mask-forks", &program], USAGE, &["script"]);
    store.ok(["create", "prod", "--from", &from, "--mask-forks", &mask]);
    assert!(!found(&store.path("prod")).is_empty());
    // The script is the store's: no fork is made without it.
    std::fs::remove_file(&mask).expect("remove it");
    store.ok(["snapshot", "prod", "kept"]);
    for (place, name) in [("prod", "dev"), ("prod@kept", "old")] {
        store.ok(["fork", place, name]);
        assert_clean(&store, name);
    }
    store.ok(["reset", "dev", "--to", "parent"]);
    assert_clean(&store, "dev");
    assert_eq!(store.json(["show", "dev"])["masks"], serde_json::json!(["mask.sql"]));
    let look = "! grep -r -l -a tell-tale \"$PGHOST\"/../../mnt/$PGCOWFS_FORK/ && psql -d shop -Atc 'SELECT count(*) FROM customers WHERE note IS NULL'";
    assert_eq!(store.ok(["run", "prod", "--", "sh", "-c", look]).trim(), "5000");
    let out = store.scratch().subdir_of("out", owner()).join("x").display().to_string();
    refuses(&store, &["export", "prod", &out], 5, &["masked", "hint"]);
    refuses(&store, &["pool", "prod", "--size", "1"], 5, &["masked", "hint"]);
    store.ok(["export", "dev", &out]);
    assert_eq!(found(Path::new(&out)), BTreeSet::new());
    assert!(number(&store.json(["show", "dev"]), "delta_bytes") > 0);
}
