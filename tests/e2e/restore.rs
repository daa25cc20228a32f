//! Dumps from elsewhere, and what pg_dump gets from a running server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal::{SIGINT, SIGKILL};

use super::bad_input::{BAD_INPUT, EXISTS, NOT_FOUND, USAGE, refused, refuses};
use super::dump::{ODD, content, rich, same, sql};
use super::lifecycle::psql;
use super::run::only;
use crate::common::pg::Postgres;
use crate::common::process::{run, signal, wait_until};
use crate::common::sql::Sql;
use crate::common::store::{QUIET, Store};
use crate::common::turn_on_a_mount;

/// Something that pg_dump or pg_dumpall writes of a fork, beside the store.
fn made(store: &Store, program: &str, args: &[&str], name: &str) -> PathBuf {
    let path = store.scratch().join("made").join(name);
    let mut command = Postgres::get().client(program, &store.endpoint("main"));
    run(command.args(args).arg("-f").arg(&path)).expect_ok();
    path
}

fn str(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What PostgreSQL's own programs have made, in each of their formats.
#[test]
fn dumps_from_elsewhere() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = rich();
    store.scratch().subdir_of("made", crate::common::pg::owner());
    let database = format!("dbname='{ODD}'");
    let all = made(&store, "pg_dumpall", &[], "all.sql");
    let before = content(&store, "main");
    store.ok(["restore", str(&all), "all"]);
    store.start("all");
    // Settings of databases that are in every cluster are not in a script, and so have the defaults.
    let set = |line: &&String| !line.starts_with("postgres: postgres postgres");
    let known: Vec<String> = before.iter().filter(set).cloned().collect();
    let found: Vec<String> = content(&store, "all").iter().filter(set).cloned().collect();
    let differ =
        |a: &[String], b: &[String]| a.iter().filter(|line| !b.contains(line)).cloned().collect::<Vec<_>>();
    assert_eq!((differ(&found, &known), differ(&known, &found)), (Vec::new(), Vec::new()));
    store.stop("all");
    for (format, name) in [("c", "x.backup"), ("t", "x.tar"), ("d", "x")] {
        let dump = made(&store, "pg_dump", &["-F", format, "-d", &database], name);
        store.ok(["restore", str(&dump), format, "--no-owner", "-j", "2"]);
        store.start(format);
        let at = Sql::connect(&store.endpoint(format), ODD).expect("connect");
        assert_eq!(
            at.value("SELECT count(*), md5(lo_get(4711)) FROM s.t").expect("ask"),
            "20000",
            "{format}"
        );
        store.stop(format);
    }
    // A script of one database goes where psql would bring it.
    let plain = made(&store, "pg_dump", &["-Fp", "--no-owner", "--no-acl", "-d", &database], "plain.sql");
    store.ok(["restore", str(&plain), "plain"]);
    store.start("plain");
    assert_eq!(psql(&store, "plain", "SELECT count(*) FROM s.t"), "20000");
    // What is written there is the dump's, not this program's.
    refuses(&store, &["restore", str(&plain), "plain"], EXISTS, &["plain"]);
    refuses(&store, &["restore", str(&plain), "x", "-d", "shop"], USAGE, &["script"]);
    refuses(
        &store,
        &["restore", str(&store.scratch().join("made/x.tar")), "x", "-d", "no"],
        NOT_FOUND,
        &[ODD],
    );
    store.ok(["umount", "--stop"]);
}

/// Damaged, truncated, of another version, or no dump at all: refused before anything is made, or at least with nothing
/// left of it.
#[test]
fn bad_dumps_to_restore() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    psql(&store, "main", "CREATE TABLE t AS SELECT i, md5(i::text) AS v FROM generate_series(1, 50000) i");
    let made = store.scratch().subdir_of("made", None);
    let path = |name: &str| made.join(name);
    store.ok(["dump", "main", "-o", str(&path("good")), "--nice", "0"]);
    store.ok(["dump", "main", "-o", str(&path("good.dump")), "-d", "postgres", "--nice", "0"]);
    let copy = |name: &str| {
        run(std::process::Command::new("cp").arg("-a").arg(path("good")).arg(path(name))).expect_ok();
        path(name)
    };
    let data = |dir: &Path| -> PathBuf {
        let files = fs::read_dir(dir.join("databases/postgres")).expect("list").flatten();
        files
            .map(|file| file.path())
            .max_by_key(|path| fs::metadata(path).expect("look").len())
            .expect("a file")
    };
    let bad = |path: &Path, names: &[&str]| {
        refuses(&store, &["restore", str(path), "x"], BAD_INPUT, &[&["hint"], names].concat());
        only(&store, &["main"]);
    };
    let dir = copy("flipped");
    let mut bytes = fs::read(data(&dir)).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(data(&dir), &bytes).expect("write");
    bad(&dir, &["flipped", "checksum", str(&data(&dir))]);
    let dir = copy("short");
    fs::write(data(&dir), &bytes[..middle]).expect("write");
    bad(&dir, &["short", "bytes"]);
    let dir = copy("missing");
    fs::remove_file(dir.join("globals.sql")).expect("remove");
    bad(&dir, &["globals.sql", "missing"]);
    let dir = copy("manifest");
    let text = fs::read_to_string(dir.join("pgcowfs-dump.json")).expect("read");
    fs::write(dir.join("pgcowfs-dump.json"), text.replace("\"t", "\"u")).expect("write");
    bad(&dir, &["pgcowfs-dump.json", "checksum"]);
    let dir = copy("bare");
    fs::remove_file(dir.join("pgcowfs-dump.json")).expect("remove");
    bad(&dir, &["bare", "neither"]);
    for (name, bytes, says) in [
        ("empty", &b""[..], "empty"),
        ("text.sql", b"SELECT 1;\n", "begin"),
        ("packed.sql.gz", b"\x1f\x8b\x08\x00", "gunzip"),
        ("begun.sql", b"--\n-- PostgreSQL database dump\n--\nSELECT 1;\n", "end"),
        ("head.dump", b"PGDMP\x01\x0e\x00\x04\x08", "head.dump"),
        (
            "outside.sql",
            b"--\n-- PostgreSQL database cluster dump\n--\nCREATE TABLESPACE fast OWNER postgres LOCATION '/mnt';\n\
              -- PostgreSQL database cluster dump complete\n",
            "fast",
        ),
    ] {
        fs::write(path(name), bytes).expect("write");
        bad(&path(name), &[says]);
    }
    refuses(&store, &["restore", str(&path("nothing")), "x"], NOT_FOUND, &["nothing"]);
    refuses(&store, &["restore", "/dev/null", "x"], BAD_INPUT, &["/dev/null"]);
    refuses(&store, &["restore", str(&path("good")), "x", "-d", "shop"], NOT_FOUND, &["shop", "postgres"]);
    refuses(&store, &["restore", str(&path("good")), "a/b"], USAGE, &["a/b"]);
    // Newer than anything here: a format, and a server.
    let mut bytes = fs::read(path("good.dump")).expect("read");
    bytes[6] = 99;
    fs::write(path("new.dump"), &bytes).expect("write");
    refuses(&store, &["restore", str(&path("new.dump")), "x"], 6, &["new.dump", "newer pg_dump", "--pg-bin"]);
    // Its table of contents is whole, and its data is not.
    let bytes = fs::read(path("good.dump")).expect("read");
    // (Version 18 may repeat the former at the end.)
    fs::write(path("cut.dump"), &bytes[..bytes.len() / 4 * 3]).expect("write");
    refuses(&store, &["restore", str(&path("cut.dump")), "x"], 9, &["pg_restore"]);
    only(&store, &["main"]);
    let script = "--\n-- PostgreSQL database dump\n--\nSELECT 1;\nSELECT nothing;\n-- PostgreSQL database dump complete\n";
    fs::write(path("wrong.sql"), script).expect("write");
    refuses(&store, &["restore", str(&path("wrong.sql")), "x"], 9, &["nothing", "--ignore-errors"]);
    only(&store, &["main"]);
    store.ok(["restore", str(&path("wrong.sql")), "x", "--ignore-errors"]);
    store.ok(["umount", "--stop"]);
}

/// A dump of a newer pg_dump, where there is an older PostgreSQL only.
#[test]
fn a_dump_of_a_newer_version() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    let dir = store.scratch().join("d");
    store.ok(["dump", "main", "-o", str(&dir), "--nice", "0"]);
    let manifest = dir.join("pgcowfs-dump.json");
    // As if PostgreSQL 99 had made it.
    let text = fs::read_to_string(&manifest).expect("read");
    let (body, _) = text.split_once(",\n  \"manifest_crc32c\"").expect("its end");
    let major = body.lines().find(|line| line.contains("\"pg_major\"")).expect("a version");
    let body = body.replace(major, "  \"pg_major\": 99,");
    let crc = crc32c::crc32c(body.as_bytes());
    fs::write(&manifest, format!("{body},\n  \"manifest_crc32c\": \"{crc:08x}\"\n}}\n")).expect("write");
    refuses(&store, &["restore", str(&dir), "x"], 6, &["PostgreSQL 99 or newer", "--pg-bin"]);
    store.stop("main");
}

/// A server outside of the store is one that the test reaches by its URL: all of it, a database, some tables.
#[test]
fn what_a_server_has() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let production = rich();
    let at = production.endpoint("main");
    let url = |database: &str, user: &str| {
        format!("postgresql://{user}@/{database}?host={}&port={}", at.host.display(), at.port)
    };
    let before = content(&production, "main");
    let store = Store::new();
    store.ok(["create", "all", "--from-dump", &url("", &at.user), "-j", "2"]);
    store.start("all");
    same(&store, &before, "all");
    store.stop("all");
    store.ok(["create", "shop", "--from-dump", &url("my%2FShop%20%C3%A9", &at.user)]);
    store.start("shop");
    assert_eq!(
        psql(
            &store,
            "shop",
            "SELECT string_agg(datname, ' ' ORDER BY 1) FROM pg_database WHERE datname LIKE 'my%'"
        ),
        ODD
    );
    assert_eq!(psql(&store, "shop", "SELECT to_regclass('of_postgres')"), "");
    store.stop("shop");
    let table =
        ["create", "some", "--from-dump", &url("", &at.user), "-d", ODD, "-t", "s.t", "-t", "s.t_id_seq"];
    store.ok(table);
    store.start("some");
    let some = Sql::connect(&store.endpoint("some"), ODD).expect("connect");
    assert_eq!(some.value("SELECT count(*) FROM s.t").expect("ask"), "20000");
    assert!(some.value("SELECT count(*) FROM m").is_err());
    store.stop("some");
    assert!(!store.dir().join("incoming").exists());
    same(&production, &before, "main");
    store.ok(["umount", "--stop"]);
    production.ok(["umount", "--stop"]);
}

/// Passwords come by the usual ways; a role that may not read all gets what it may, and is told.
#[test]
fn passwords_of_a_server() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let production = rich();
    let port = production.endpoint("main").port;
    sql(
        &production,
        "main",
        ODD,
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO app; ALTER MATERIALIZED VIEW m OWNER TO app",
    );
    let store = Store::new();
    let url = format!("postgresql://app@localhost:{port}/my%2FShop%20%C3%A9");
    let create = |secret: Option<&str>, url: &str, more: &[&str]| {
        let mut command = store.command([&["create", "shop", "--from-dump", url], more].concat());
        command.env_remove("PGPASSWORD").env("PGPASSFILE", "/nowhere");
        if let Some(secret) = secret {
            command.env("PGPASSWORD", secret);
        }
        run(&mut command)
    };
    refused(&create(None, &url, &[]), 9, &["password", "PGPASSFILE"]);
    refused(&create(Some("wrong"), &url, &[]), 9, &["authentication failed", "hint"]);
    let telling = url.replace("app@", "app:secret@");
    let done = create(None, &telling, &[]);
    refused(&done, USAGE, &["password", ".pgpass"]);
    assert!(!done.stderr.contains("secret"), "{}", done.report());
    refused(&create(Some("secret"), &url.replace(&port.to_string(), "1"), &[]), 9, &["refused", "psql"]);
    refused(&create(Some("secret"), &url, &["-d", "none"]), NOT_FOUND, &["none", ODD]);
    assert!(store.listing().is_empty());
    // Some tables are its own, and it has all that there is to know about roles but passwords.
    let file = store.scratch().join("pgpass");
    fs::write(&file, format!("localhost:{port}:*:app:secret\n")).expect("write");
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("close it");
    let mut command = store.command(["create", "shop", "--from-dump", &url, "-d", ODD, "-t", "s.t"]);
    let done = run(command.env("PGPASSFILE", &file));
    assert!(done.ok() && done.stderr.contains("without their passwords"), "{}", done.report());
    store.start("shop");
    let password = "SELECT count(*) FROM pg_authid WHERE rolname = 'app' AND rolpassword IS NULL";
    assert_eq!(psql(&store, "shop", password), "1");
    store.ok(["umount", "--stop"]);
    production.ok(["umount", "--stop"]);
}

/// Whoever is ended in the middle leaves nothing in the store, and nothing with the server.
#[test]
fn an_end_while_a_server_is_copied() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    let at = store.start("main");
    psql(&store, "main", "CREATE TABLE t AS SELECT i, md5(i::text) AS v FROM generate_series(1, 2000000) i");
    let url = format!("postgresql://{}@/postgres?host={}&port={}", at.user, at.host.display(), at.port);
    let incoming = store.dir().join("incoming");
    for what in [SIGINT, SIGKILL] {
        let mut command = store.command(["create", "copy", "--from-dump", &url]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start it");
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY %'";
        wait_until("a copy", || psql(&store, "main", busy) != "0");
        signal(child.id(), what);
        assert!(!child.wait().expect("wait").success());
        let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump'";
        wait_until("the sessions' end", || psql(&store, "main", left) == "0");
        wait_until("the fork's end", || !store.dir().join("run/copy").exists());
        assert_eq!(incoming.exists(), what == SIGKILL);
        only(&store, &["main"]);
    }
    // What the killed one has left goes with the next one.
    store.ok(["create", "copy", "--from-dump", &url]);
    assert!(!incoming.exists());
    store.ok(["umount", "--stop"]);
}
