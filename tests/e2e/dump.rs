//! Logical backups from forks, and what is made of them again.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal::{SIGINT, SIGKILL, SIGTERM};
use serde_json::Value;

use super::bad_input::{BAD_INPUT, EXISTS, NOT_FOUND, STATE, USAGE, refused, refuses};
use super::lifecycle::psql;
use super::run::only;
use crate::common::disk::SmallDisk;
use crate::common::pg::Postgres;
use crate::common::process::{run, signal, wait_until};
use crate::common::sql::Sql;
use crate::common::store::{QUIET, Store, text};
use crate::common::{ordinary_users_mount, skipped, turn_on_a_mount};

/// A database whose name is no file's.
pub const ODD: &str = "my/Shop é";

/// Runs statements in a database.
#[track_caller]
pub fn sql(store: &Store, fork: &str, database: &str, statements: &str) {
    let at = Sql::connect(&store.endpoint(fork), database).expect("connect");
    at.run(statements).unwrap_or_else(|e| panic!("{e}: {statements}"));
}

/// A cluster with what a dump must carry: roles, databases with settings, kinds of tables, a large object, an extension.
pub fn rich() -> Store {
    let store = Store::new();
    store.create("main", QUIET);
    fill(&store, "main");
    store
}

fn fill(store: &Store, fork: &str) {
    store.start(fork);
    let statements = "CREATE ROLE app LOGIN PASSWORD 'secret'; CREATE ROLE readers; GRANT readers TO app;
         ALTER ROLE app SET work_mem = '7MB'";
    sql(store, fork, "postgres", statements);
    sql(store, fork, "postgres", &format!("CREATE DATABASE \"{ODD}\" OWNER app"));
    sql(store, fork, "postgres", &format!("ALTER DATABASE \"{ODD}\" SET statement_timeout = '77s'"));
    sql(store, fork, "postgres", "CREATE TABLE of_postgres AS SELECT 1 AS n");
    sql(store, fork, "postgres", "ALTER DATABASE postgres SET lock_timeout = '66s'");
    sql(store, fork, "postgres", "CREATE DATABASE bench");
    sql(store, fork, "template1", "CREATE TABLE of_template (n int); INSERT INTO of_template VALUES (5)");
    let tables = "CREATE SCHEMA s AUTHORIZATION app;
        CREATE TABLE s.t (id serial PRIMARY KEY, v text NOT NULL, b bytea);
        INSERT INTO s.t (v, b) SELECT 'é' || i, decode(md5(i::text), 'hex') FROM generate_series(1, 20000) i;
        CREATE INDEX ON s.t (v); ALTER TABLE s.t OWNER TO app; GRANT SELECT ON s.t TO readers;
        CREATE TABLE t (id int REFERENCES s.t, at timestamptz) PARTITION BY RANGE (id);
        CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (100);
        CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (100) TO (100000);
        INSERT INTO t SELECT i, 'epoch' FROM generate_series(1, 300) i;
        CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM s.t;
        CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 42';
        CREATE TABLE \"odd \"\"name\" AS SELECT f() AS n;
        SELECT lo_from_bytea(4711, decode(repeat('ab', 5000), 'hex'))";
    sql(store, fork, ODD, tables);
    let extensions = "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_trgm'";
    if Sql::connect(&store.endpoint(fork), ODD).expect("connect").number(extensions).expect("ask") == 1 {
        let words = "CREATE EXTENSION pg_trgm; CREATE TABLE words AS SELECT 'word' AS v; CREATE INDEX ON words USING gin (v gin_trgm_ops)";
        sql(store, fork, ODD, words);
    }
}

/// All that is in a cluster, by content: each table with a checksum of its rows, definitions of what is not a table, roles.
pub fn content(store: &Store, fork: &str) -> Vec<String> {
    let at = store.endpoint(fork);
    let mut found = Vec::new();
    let mut add = |database: &str, query: &str| {
        let server = Sql::connect(&at, database).expect("connect");
        let rows = server.rows(query).unwrap_or_else(|e| panic!("{e}: {query}"));
        found.extend(rows.into_iter().map(|row| format!("{database}: {}", row.join(" "))));
    };
    add(
        "postgres",
        "SELECT rolname, a.rolcanlogin, a.rolsuper, CASE WHEN a.oid <> 10 THEN a.rolpassword END, rolconfig
           FROM pg_authid a JOIN pg_roles USING (rolname) WHERE rolname NOT LIKE 'pg\\_%' ORDER BY 1",
    );
    add("postgres", "SELECT roleid::regrole, member::regrole FROM pg_auth_members ORDER BY 1, 2");
    add(
        "postgres",
        "SELECT datname, datdba::regrole, datistemplate, pg_encoding_to_char(encoding), datcollate, datctype, setconfig
           FROM pg_database LEFT JOIN pg_db_role_setting ON setdatabase = pg_database.oid ORDER BY 1",
    );
    let databases = "SELECT datname FROM pg_database WHERE datname <> 'template0' ORDER BY 1";
    let server = Sql::connect(&at, "postgres").expect("connect");
    for database in server.rows(databases).expect("list").into_iter().flatten() {
        let at = Sql::connect(&at, &database).expect("connect");
        let tables = "SELECT quote_ident(nspname) || '.' || quote_ident(relname), relowner::regrole::text, relacl::text
            FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
            WHERE relkind IN ('r', 'm', 'p', 'S', 'i') AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
            ORDER BY 1";
        for row in at.rows(tables).expect("list") {
            let rows = format!(
                "SELECT md5(string_agg(x::text, E'\\n' ORDER BY x::text)), count(*) FROM {} x",
                row[0]
            );
            // An index has none.
            let sum = at.rows(&rows).map(|rows| rows[0].join(" ")).unwrap_or_default();
            found.push(format!("{database}: {} {sum}", row.join(" ")));
        }
        for query in [
            "SELECT oid, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY 1",
            "SELECT extname FROM pg_extension ORDER BY 1",
            "SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
        ] {
            let rows = at.rows(query).unwrap_or_else(|e| panic!("{e}: {query}"));
            found.extend(rows.into_iter().map(|row| format!("{database}: {}", row.join(" "))));
        }
    }
    found
}

/// Same content, with what differs in the message.
#[track_caller]
pub fn same(store: &Store, a: &[String], fork: &str) {
    let b = content(store, fork);
    let missing: Vec<_> = a.iter().filter(|line| !b.contains(line)).collect();
    let more: Vec<_> = b.iter().filter(|line| !a.contains(line)).collect();
    assert!(missing.is_empty() && more.is_empty(), "{fork} lacks {missing:#?} and has {more:#?}");
}

/// Nothing but these is in a directory.
#[track_caller]
pub fn holds(dir: &Path, names: &[&str]) {
    let entries = std::fs::read_dir(dir).expect("list");
    let mut there: Vec<String> =
        entries.map(|entry| entry.expect("list").file_name().into_string().expect("UTF-8")).collect();
    there.sort();
    assert_eq!(there, names);
}

/// A whole cluster goes out and comes back, by content.
#[test]
fn there_and_back() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = rich();
    let before = content(&store, "main");
    // Where the server's user may not even look.
    let place = store.scratch().subdir_of("closed", None);
    std::fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("close it");
    let out = place.join("all");
    let path = out.to_str().expect("UTF-8");
    let told = store.json(["dump", "main", "-o", path, "-j", "2", "--nice", "0"]);
    assert_eq!(
        (text(&told, "path"), text(&told, "format"), text(&told, "fork")),
        (path, "directory", "main"),
        "{told}"
    );
    assert!(told["databases"].as_array().is_some_and(|all| all.len() == 4), "{told}");
    only(&store, &["main"]);
    holds(&place, &["all"]);
    for (name, mode) in
        [("", 0o700), ("globals.sql", 0o600), ("pgcowfs-dump.json", 0o600), ("databases", 0o700)]
    {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let meta = std::fs::metadata(out.join(name)).expect(name);
        assert_eq!(meta.permissions().mode() & 0o777, mode, "{name}");
        assert_eq!(meta.uid(), nix::unistd::geteuid().as_raw(), "{name}");
    }
    store.ok(["restore", path, "back", "-j", "2"]);
    assert_eq!(text(&store.show("back"), "state"), "stopped");
    store.start("back");
    same(&store, &before, "back");
    let back = store.endpoint("back");
    // It was only loaded without these.
    for setting in ["fsync", "full_page_writes"] {
        assert_eq!(psql(&store, "back", &format!("SHOW {setting}")), "on");
    }
    assert_eq!(psql(&store, "back", "SHOW wal_level"), "replica");
    let tcp = store.ok(["url", "back", "--tcp"]);
    run(Postgres::get().command("psql").args(["-XAtc", "SELECT 1"]).arg(tcp.trim())).expect_ok();
    let unanalyzed = "SELECT count(*) FROM pg_class WHERE relname = 't_2' AND reltuples <> 201";
    assert_eq!(Sql::connect(&back, ODD).expect("connect").number(unanalyzed).expect("ask"), 0);
    // Some of its databases, and without its roles.
    store.ok(["restore", path, "part", "--database", ODD, "--no-owner"]);
    store.start("part");
    assert_eq!(psql(&store, "part", "SELECT count(*) FROM pg_roles WHERE rolname = 'app'"), "0");
    let rows = Sql::connect(&store.endpoint("part"), ODD).expect("connect");
    assert_eq!(rows.number("SELECT count(*) FROM s.t").expect("ask"), 20_000);
    assert_eq!(psql(&store, "part", "SELECT to_regclass('of_postgres')"), "");
    store.ok(["umount", "--stop"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}

/// One database in a file, a snapshot, some tables, definitions only; pg_restore and psql can do without pgcowfs.
#[test]
fn parts_of_a_cluster() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = rich();
    let place = store.scratch().subdir_of("out", None);
    let path = |name: &str| place.join(name).to_str().expect("UTF-8").to_owned();
    store.ok(["snapshot", "main", "before"]);
    sql(&store, "main", ODD, "DELETE FROM s.t WHERE id > 1000");
    let (file, old) = (path("now.dump"), path("old.dump"));
    let dump = |more: &[&str]| store.json([&["dump"], more, &["--nice", "0"]].concat());
    let told = dump(&["main", "-o", &file, "--database", ODD]);
    assert_eq!((text(&told, "format"), &told["snapshot"]), ("file", &Value::Null), "{told}");
    let told = dump(&["main@before", "-o", &old, "--database", ODD]);
    assert_eq!(text(&told, "snapshot"), "before", "{told}");
    assert_eq!(&std::fs::read(&file).expect("read")[..5], b"PGDMP");
    let some = path("some");
    dump(&["main", "-o", &some, "--database", ODD, "--table", "s.*", "--compress", "none"]);
    let schema = path("schema");
    dump(&["main", "-o", &schema, "--schema-only"]);
    // Whoever waits for a dump to the same place need not.
    dump(&["main", "-o", &schema, "--schema-only", "--force"]);
    holds(&place, &["now.dump", "old.dump", "schema", "some"]);
    for (from, name, rows) in
        [(&file, "now", "1000"), (&old, "old", "20000"), (&some, "some", "1000"), (&schema, "schema", "0")]
    {
        let no_owner: &[&str] = if from.ends_with(".dump") { &["--no-owner"] } else { &[] };
        store.ok([&["restore", from.as_str(), name, "--quiet"], no_owner].concat());
        store.start(name);
        let at = Sql::connect(&store.endpoint(name), ODD).expect("connect");
        assert_eq!(at.value("SELECT count(*) FROM s.t").expect("ask"), rows, "{name}");
        let other = at.value("SELECT count(*) FROM pg_class WHERE relname = 'odd \"name'").expect("ask");
        assert_eq!(other == "0", name == "some", "{name}");
        store.stop(name);
    }
    // A file has no roles.
    refuses(&store, &["restore", &file, "x"], 9, &["role", "--no-owner"]);
    store.ok(["restore", &file, "lenient", "--ignore-errors"]);
    let program = Postgres::get().command("pg_restore").get_program().to_owned();
    let pg_restore = run(Command::new(program).arg("--list").arg(&file));
    assert!(pg_restore.ok(), "{}", pg_restore.report());
    store.ok(["umount", "--stop"]);
}

/// While transfers go on, a dump has one instant of them, and the server that it is taken from goes on.
#[test]
fn a_dump_under_load() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    store.pgbench("main", ["-i", "-q", "-s", "5"]);
    let at = store.endpoint("main");
    let mut load = Postgres::get()
        .client("pgbench", &at)
        .args(["-n", "-c", "4", "-T", "1000", "postgres"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start pgbench");
    let place = store.scratch().subdir_of("out", None);
    let out = place.join("d");
    let out = out.to_str().expect("UTF-8");
    let history = "SELECT count(*) FROM pgbench_history";
    wait_until("some transactions", || psql(&store, "main", history).len() > 2);
    for round in 0..2 {
        let before: u64 = psql(&store, "main", history).parse().expect("a number");
        store.ok(["dump", "main", "-o", out, "--nice", "0", "--force"]);
        let after: u64 = psql(&store, "main", history).parse().expect("a number");
        let name = format!("r{round}");
        store.ok(["restore", out, &name]);
        store.start(&name);
        let sums =
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
            AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)
            AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history)";
        assert_eq!(psql(&store, &name, sums), "t");
        let there: u64 = psql(&store, &name, history).parse().expect("a number");
        assert!(before <= there && there <= after, "{before} {there} {after}");
        store.ok(["rm", "--force", &name]);
    }
    load.kill().expect("end the load");
    load.wait().expect("wait");
    store.stop("main");
}

/// A table that takes a while to be dumped.
fn large(store: &Store) {
    store.create("main", QUIET);
    store.start("main");
    let table = "CREATE TABLE t AS SELECT i, md5(i::text) || md5((i + 1)::text) AS v FROM generate_series(1, 1500000) i";
    psql(store, "main", table);
}

/// `pgcowfs` in the background.
fn begin(store: &Store, args: &[&str]) -> Child {
    let mut command = store.command(args);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start it")
}

/// No client program of PostgreSQL's works on this store.
fn clients_of(store: &Store) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").expect("list").flatten() {
        let comm = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if ["pg_dump", "pg_dumpall", "pg_restore", "psql", "vacuumdb"].contains(&comm.trim()) {
            let environ = std::fs::read(process.path().join("environ")).unwrap_or_default();
            let dir = store.dir().to_str().expect("UTF-8");
            if String::from_utf8_lossy(&environ).contains(dir) {
                found.push(format!("{} {}", process.path().display(), comm.trim()));
            }
        }
    }
    found
}

/// Whoever is ended in the middle leaves nothing: neither a fork, nor a file, nor a process.
#[test]
fn an_end_in_the_middle() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    large(&store);
    let place = store.scratch().subdir_of("out", None);
    let written = |least: u64| {
        let size = run(Command::new("du").arg("-sb").arg(&place));
        size.stdout.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n > least)
    };
    let partial = [".d.pgcowfs-partial"];
    let out = place.join("d");
    let out = out.to_str().expect("UTF-8");
    let dump = ["dump", "main", "-o", out, "-j", "2", "--nice", "0"];
    for (what, code) in [(SIGINT, Some(1)), (SIGTERM, Some(1)), (SIGKILL, None)] {
        let mut child = begin(&store, &dump);
        wait_until("some data", || written(1 << 20));
        holds(&place, &partial);
        // Nobody else writes to the same place.
        refused(&store.run(dump), STATE, &[out, "under way"]);
        signal(child.id(), what);
        assert_eq!(child.wait().expect("wait").code(), code, "{what}");
        wait_until("the fork's end", || store.names() == ["main"]);
        wait_until("the programs' end", || clients_of(&store).is_empty());
        only(&store, &["main"]);
        holds(&place, if what == SIGKILL { &partial } else { &[] });
    }
    // Before anything is written.
    for pause in [5, 50, 150] {
        let mut child = begin(&store, &["dump", "main", "-o", out, "--nice", "0"]);
        std::thread::sleep(std::time::Duration::from_millis(pause));
        signal(child.id(), SIGINT);
        child.wait().expect("wait");
        wait_until("the fork's end", || store.names() == ["main"]);
    }
    // The next one takes away what the killed one has left, and one that goes wrong leaves nothing.
    refused(&store.run(["dump", "main", "-o", out, "--compress", "odd"]), 9, &["odd"]);
    holds(&place, &[]);
    store.ok(dump);
    holds(&place, &["d"]);

    // The same of a restore: its fork never was there.
    for what in [SIGINT, SIGKILL] {
        let mut child = begin(&store, &["restore", out, "back"]);
        wait_until("a server that is loaded", || !clients_of(&store).is_empty());
        assert_eq!(store.names(), ["main"]);
        signal(child.id(), what);
        assert!(!child.wait().expect("wait").success());
        wait_until("the programs' end", || clients_of(&store).is_empty());
        wait_until("the fork's end", || store.run(["create", "back"]).ok());
        store.ok(["rm", "back"]);
        only(&store, &["main"]);
    }
    store.ok(["umount", "--stop"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}

/// A full disk under the dump, and one under the store.
#[test]
fn no_room() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let disk = match SmallDisk::make(40) {
        Ok(disk) => disk,
        Err(why) => return skipped(&why),
    };
    let store = Store::new();
    large(&store);
    let dir = disk.join("d");
    let dir = dir.to_str().expect("UTF-8");
    let free = disk.free();
    let dump = ["dump", "main", "-o", dir, "--compress", "none", "--nice", "0"];
    refuses(&store, &dump, 8, &["No space left"]);
    assert!(!Path::new(dir).exists());
    assert!(disk.free() + (1 << 20) > free, "it is given back");
    only(&store, &["main"]);
    let whole = store.scratch().join("whole");
    let whole = whole.to_str().expect("UTF-8");
    store.ok(["dump", "main", "-o", whole, "--nice", "0"]);
    store.ok(["umount", "--stop"]);

    let disk = SmallDisk::make(200).expect("a second one");
    let small = Store::at(&disk.join("store"));
    small.init();
    let done = small.run(["restore", whole, "back"]);
    refused(&done, 8, &["No space left"]);
    only(&small, &[]);
    assert!(small.ok(["check"]).contains("nothing is wrong"));
}

/// What cannot be done is refused, and nothing is changed.
#[test]
fn bad_dumps() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    let place = store.scratch().subdir_of("out", None);
    std::fs::create_dir(place.join("precious")).expect("make");
    std::fs::write(place.join("precious/thesis"), "x").expect("write");
    std::fs::write(place.join("file"), "x").expect("write");
    let path = |name: &str| place.join(name).to_str().expect("UTF-8").to_owned();
    let (precious, file, new) = (path("precious"), path("file"), path("new"));
    let (dump, nowhere) = (path("a.dump"), path("no/where"));
    refuses(&store, &["dump", "main", "-o", &precious], EXISTS, &["precious", "--force"]);
    refuses(&store, &["dump", "main", "-o", &precious, "--force"], BAD_INPUT, &["precious", "no dump"]);
    refuses(&store, &["dump", "main", "-o", &file, "--force"], BAD_INPUT, &["file"]);
    refuses(&store, &["dump", "main", "-o", &nowhere], NOT_FOUND, &["no"]);
    refuses(&store, &["dump", "main", "-o", "/"], USAGE, &["/"]);
    refuses(&store, &["dump", "main", "-o", &dump], USAGE, &["--database"]);
    refuses(&store, &["dump", "main", "-o", &dump, "--database", "postgres", "-j", "2"], USAGE, &["one job"]);
    refuses(&store, &["dump", "main", "-o", &new, "-d", "a", "-d", "b", "--table", "t"], USAGE, &["--table"]);
    refuses(&store, &["dump", "nobody", "-o", &new], NOT_FOUND, &["nobody"]);
    refuses(&store, &["dump", "main@none", "-o", &new], NOT_FOUND, &["none"]);
    refuses(&store, &["dump", "main", "-o", &new, "-d", "none"], NOT_FOUND, &["none", "postgres, template1"]);
    refuses(
        &store,
        &["dump", "main", "-o", &new, "-d", "postgres", "-t", "none"],
        9,
        &["no matching tables"],
    );
    holds(&place, &["file", "precious"]);
    holds(&place.join("precious"), &["thesis"]);
    only(&store, &["main"]);
}

/// An ordinary user's store.
#[test]
fn a_dump_of_an_ordinary_user() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    if !ordinary_users_mount() {
        return;
    }
    let store = Store::new_unprivileged();
    store.create("main", QUIET);
    let place = store.scratch().subdir_of("out", store.run_as());
    let out = place.join("d");
    let out = out.to_str().expect("UTF-8");
    store.ok(["dump", "main", "-o", out, "--nice", "0"]);
    store.ok(["restore", out, "back"]);
    assert_eq!(store.names(), ["back", "main"]);
    only(&store, &["back", "main"]);
}
