//! `refresh`: a root becomes what its source is now, and only what differs takes space.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::bad_input::refuses;
use crate::common::pg::{Endpoint, Postgres, owner};
use crate::common::plain::Plain;
use crate::common::process::run;
use crate::common::sql::Sql;
use crate::common::store::{QUIET, Store, number, text};
use crate::common::turn_on_a_mount;
use crate::e2e::lifecycle::psql;

/// The pages of the relations below a data directory.
fn pages(top: &Path) -> BTreeMap<(PathBuf, usize), Vec<u8>> {
    let mut found = BTreeMap::new();
    for part in ["base", "global"] {
        let mut todo = vec![top.join(part)];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(&dir).expect("list").flatten() {
                if entry.file_type().expect("a type").is_dir() {
                    todo.push(entry.path());
                    continue;
                }
                let name = entry.file_name().to_string_lossy().into_owned();
                if !name.starts_with(|c: char| c.is_ascii_digit()) {
                    continue;
                }
                let bytes = std::fs::read(entry.path()).expect("read");
                let path = entry.path().strip_prefix(top).expect("below it").to_path_buf();
                for (number, page) in bytes.chunks(8192).enumerate() {
                    found.insert((path.clone(), number), page.to_vec());
                }
            }
        }
    }
    found
}

/// How many pages a comparison of two sides has found: changed or added, removed, and written without need.
fn differing(store: &Store, a: &str, b: &str) -> (u64, u64, u64) {
    let diff = store.json(["diff", a, b]);
    let mut sums = (0, 0, 0);
    for relation in diff["relations"].as_array().expect("relations") {
        let pages = &relation["pages"];
        sums.0 += number(pages, "changed") + number(pages, "added");
        sums.1 += number(pages, "removed");
        sums.2 += number(pages, "same_contents");
    }
    sums
}

fn sql(at: &Endpoint, text: &str) {
    let sql = Sql::connect(at, "postgres").expect("connect");
    text.split("; ").for_each(|statement| sql.run(statement).unwrap_or_else(|e| panic!("{statement}: {e}")));
}

#[test]
fn only_changed_pages_are_written() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let source = Plain::create(store.scratch(), "source", QUIET);
    let at = source.start();
    sql(&at, "CREATE TABLE t AS SELECT n, repeat('x', 100) f FROM generate_series(1, 50000) n");
    sql(&at, "CREATE TABLE gone AS SELECT n FROM generate_series(1, 5000) n");
    sql(&at, "CREATE TABLE shrinks AS SELECT n FROM generate_series(1, 50000) n");
    sql(&at, "VACUUM ANALYZE; CHECKPOINT");
    source.stop("fast");
    let from = source.pgdata().display().to_string();
    store.ok(["create", "prod", "--from", &from, "--set", "work_mem=5MB"]);
    let before = store.show("prod");
    store.ok(["snapshot", "prod", "old"]);
    store.ok(["fork", "prod", "early"]);

    // Nothing has changed: not one page of a relation is written.
    let done = store.json(["refresh", "prod"]);
    assert_eq!(differing(&store, "prod@old", "prod"), (0, 0, 0), "{done}");
    // The configuration of the fork is not the source's.
    assert!(number(&done, "written_bytes") < 100_000, "{done}");

    let old = pages(source.pgdata());
    let at = source.start();
    sql(
        &at,
        "UPDATE t SET f = 'changed' WHERE n % 1000 = 0; DROP TABLE gone; DELETE FROM shrinks WHERE n > 10",
    );
    sql(&at, "CREATE TABLE fresh AS SELECT n FROM generate_series(1, 20000) n");
    sql(&at, "VACUUM shrinks; CHECKPOINT");
    source.stop("fast");
    let new = pages(source.pgdata());
    let written = new.iter().filter(|(at, page)| old.get(*at) != Some(*page)).count() as u64;
    let removed = old.keys().filter(|at| !new.contains_key(*at)).count() as u64;
    assert!(written > 100 && removed > 100 && written < new.len() as u64 / 2, "{written} and {removed}");

    // The root runs, and has been changed itself; it is stopped and started.
    store.start("prod");
    psql(&store, "prod", "CREATE TABLE own AS SELECT n FROM generate_series(1, 20000) n; CHECKPOINT");
    store.stop("prod");
    store.ok(["reset", "prod", "--to", "old"]);
    store.start("prod");
    let done = store.json(["refresh", "prod"]);
    assert_eq!(text(&done, "state"), "running");
    assert_eq!(text(&done, "refreshed_from"), from);
    store.stop("prod");
    // Its own recovery and shutdown write, too: what was brought in is in a fork of it that never ran.
    store.ok(["snapshot", "prod", "new"]);
    let after = store.show("prod");
    for field in ["port", "socket_dir", "url"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    store.ok(["reset", "prod", "--to", "old"]);
    store.ok(["refresh", "prod"]);
    let (changed, gone, same) = differing(&store, "prod@old", "prod");
    assert_eq!((changed, gone, same), (written, removed, 0));
    assert_eq!(pages(&store.path("prod")), new, "it is what the source is");
    let query = "SELECT count(*) FILTER (WHERE f = 'changed'), (SELECT count(*) FROM fresh), (SELECT count(*) FROM shrinks) FROM t";
    store.start("prod");
    assert_eq!(psql(&store, "prod", query).trim(), "50|20000|10");
    assert_eq!(psql(&store, "prod", "SHOW work_mem").trim(), "5MB");
    store.stop("prod");
    // Who forked it before has what it had.
    store.start("early");
    assert_eq!(
        psql(
            &store,
            "early",
            "SELECT count(*) FILTER (WHERE f = 'changed'), (SELECT count(*) FROM gone) FROM t"
        )
        .trim(),
        "0|5000"
    );
    store.stop("early");
    let snapshots = store.json(["snapshots", "prod"]);
    let labels: Vec<_> = snapshots.as_array().expect("snapshots").iter().map(|s| text(s, "label")).collect();
    assert_eq!(labels, ["old", "new"]);
    assert_eq!(store.names(), ["early", "prod"]);
    store.ok(["umount"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}

#[test]
fn a_masked_root_is_masked_again() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let source = Plain::create(store.scratch(), "source", QUIET);
    let at = source.start();
    sql(&at, "CREATE TABLE t AS SELECT n, 'tell-tale-' || n AS s FROM generate_series(1, 1000) n");
    source.stop("fast");
    let from = source.pgdata().display().to_string();
    let mask = store.scratch().join("mask.sql");
    std::fs::write(&mask, "UPDATE t SET s = 'masked'").expect("write");
    let mask = mask.display().to_string();
    store.ok(["create", "prod", "--from", &from, "--mask", &mask]);
    let at = source.start();
    sql(&at, "INSERT INTO t SELECT n, 'tell-tale-' || n FROM generate_series(1001, 2000) n");
    source.stop("fast");
    std::fs::remove_file(&mask).expect("it is kept");
    store.start("prod");
    let session = store.sql("prod", "postgres");
    refuses(&store, &["refresh", "prod"], 5, &["1 open session", "refresh --force prod"]);
    let done = store.json(["refresh", "prod", "--force"]);
    assert_eq!(done["masked"]["tables"], serde_json::json!(["postgres: public.t"]));
    drop(session);
    assert_eq!(psql(&store, "prod", "SELECT s, count(*) FROM t GROUP BY s").trim(), "masked|2000");
    store.stop("prod");
    let data = store.path("prod");
    let found = run(std::process::Command::new("grep").args(["-r", "-l", "-a", "tell-tale"]).arg(&data));
    assert_eq!((found.code, found.stdout.as_str()), (1, ""), "{}", found.report());
    let control = run(std::process::Command::new("grep").args(["-r", "-l", "-a", "tell-tale"]).arg(&from));
    assert!(control.ok(), "the control finds it in the source");
    Postgres::get();

    // A mask that does not fit any more: all is as it was.
    let at = source.start();
    sql(&at, "ALTER TABLE t RENAME TO renamed");
    source.stop("fast");
    refuses(&store, &["refresh", "prod"], 9, &["mask.sql", "does not exist"]);
    store.start("prod");
    assert_eq!(psql(&store, "prod", "SELECT count(*) FROM t").trim(), "2000");
    store.stop("prod");
}

#[test]
fn what_cannot_be_refreshed() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let source = Plain::create(store.scratch(), "source", QUIET);
    let from = source.pgdata().display().to_string();
    store.ok(["create", "fresh"]);
    store.ok(["create", "copied", "--from", &from]);
    let base = store.scratch().join("base");
    run(std::process::Command::new("cp").args(["-a", &from]).arg(&base)).expect_ok();
    store.ok(["create", "based", "--base", &base.display().to_string()]);
    store.ok(["fork", "copied", "child"]);
    refuses(&store, &["refresh", "nobody"], 3, &["nobody"]);
    refuses(&store, &["refresh", "fresh"], 5, &["initdb"]);
    refuses(&store, &["refresh", "fresh", "--from", &from], 5, &["initdb"]);
    refuses(&store, &["refresh", "child"], 5, &["reset child --to parent"]);
    refuses(&store, &["refresh", "based"], 5, &["in place", "--from"]);
    refuses(&store, &["refresh", "copied", "--from", "/none"], 3, &["/none"]);
    refuses(&store, &["refresh", "copied", "--max-rate", "1MB"], 2, &["--max-rate"]);
    let empty = store.scratch().subdir_of("empty", owner()).display().to_string();
    refuses(&store, &["refresh", "copied", "--from", &empty], 7, &["not a PostgreSQL data directory"]);
    source.start();
    refuses(&store, &["refresh", "copied"], 5, &["running"]);
    source.stop("fast");
    store.ok(["protect", "copied"]);
    refuses(&store, &["refresh", "copied"], 5, &["protected"]);
    store.ok(["protect", "copied", "--off"]);
    // A version that the fork is not of.
    let other = store.scratch().subdir_of("other", owner());
    run(std::process::Command::new("cp").arg("-a").arg(format!("{from}/.")).arg(&other)).expect_ok();
    std::fs::write(other.join("PG_VERSION"), "13\n").expect("write");
    let other = other.display().to_string();
    refuses(&store, &["refresh", "copied", "--from", &other], 7, &["13"]);
    // From another directory; that is what it is refreshed from, from then on.
    let newer = store.scratch().join("newer");
    run(std::process::Command::new("cp").args(["-a", &from]).arg(&newer)).expect_ok();
    let newer = newer.display().to_string();
    store.ok(["refresh", "copied", "--from", &newer]);
    assert_eq!(text(&store.json(["refresh", "copied"]), "refreshed_from"), newer);
    store.ok(["refresh", "based", "--from", &newer]);
    store.start("based");
    store.stop("based");
}

/// From the running server that it was copied from.
#[test]
fn a_server_is_copied_again() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let source = Plain::create(store.scratch(), "source", QUIET);
    let at = source.start();
    sql(
        &at,
        "CREATE TABLE t AS SELECT n, 'tell-tale-' || n AS s FROM generate_series(1, 50000) n; VACUUM; CHECKPOINT",
    );
    let url = format!("host={} port={} user=postgres dbname=postgres", at.host.display(), at.port);
    let mask = store.scratch().join("mask.sql");
    std::fs::write(&mask, "UPDATE t SET s = 'masked' WHERE n <= 100").expect("write");
    store.ok(["create", "prod", "--from-server", &url]);
    store.ok(["create", "dev", "--from-server", &url, "--mask", &mask.display().to_string()]);
    store.ok(["snapshot", "prod", "old"]);
    sql(&at, "UPDATE t SET s = 'newer' WHERE n > 49990; CHECKPOINT");
    let done = store.json(["refresh", "prod", "--max-rate", "500MB"]);
    assert_eq!(text(&done, "refreshed_from"), url);
    let (changed, _, same) = differing(&store, "prod@old", "prod");
    // A page or two of the table, the server's catalogs as they are changed by all that connect.
    assert!(changed > 0 && changed < 50 && same == 0, "{changed} changed, {same} written without need");
    store.start("prod");
    assert_eq!(psql(&store, "prod", "SELECT count(*) FROM t WHERE s = 'newer'").trim(), "10");
    store.stop("prod");
    store.ok(["refresh", "dev"]);
    store.start("dev");
    assert_eq!(psql(&store, "dev", "SELECT count(*) FROM t WHERE s IN ('masked', 'newer')").trim(), "110");
    store.stop("dev");
    assert_eq!(store.names(), ["dev", "prod"]);
    // Nothing is left on the server.
    let left =
        "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_stat_replication)";
    assert_eq!(Postgres::get().psql(&at, "postgres", left).expect_ok().trim(), "0");
    source.stop("fast");
    refuses(&store, &["refresh", "prod"], 9, &["hint"]);
    assert_eq!(store.names(), ["dev", "prod"]);
}
