//! How forks of a real cluster differ, and what they take: `diff` and `du`.

use serde_json::Value;

use crate::common::store::{QUIET, Store, number, text};
use crate::common::turn_on_a_mount;

/// The main fork of a relation, by its name.
#[track_caller]
fn relation<'a>(report: &'a Value, name: &str) -> &'a Value {
    let rows = report["relations"].as_array().expect("relations");
    let found =
        rows.iter().find(|row| row["name"] == name && (row["fork"] == "main" || row["fork"].is_null()));
    found.unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn has(report: &Value, name: &str) -> bool {
    report["relations"].as_array().expect("relations").iter().any(|row| row["name"] == name)
}

#[test]
fn diff_names_what_a_fork_has_changed() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    let sql = store.sql("main", "postgres");
    sql.run("CREATE SCHEMA shop; CREATE TABLE shop.items (id int PRIMARY KEY, note text); CREATE TABLE calm (i int);
             CREATE TABLE gone (i int); INSERT INTO gone SELECT generate_series(1, 1000);
             INSERT INTO calm SELECT generate_series(1, 1000); CREATE TABLE big (t text);
             INSERT INTO shop.items SELECT i, repeat('x', 100) FROM generate_series(1, 10000) i")
        .expect("fill");
    sql.run("VACUUM").expect("settle hint bits");
    store.ok(["fork", "main", "child", "--start", "--checkpoint", "always"]);
    let child = store.sql("child", "postgres");
    store.ok(["snapshot", "child", "before", "--checkpoint", "always"]);

    // One row of the last page, a table filled, one dropped, one written anew. Hint bits and visibility are settled.
    child
        .run("UPDATE shop.items SET note = 'y' WHERE id = 10000; DROP TABLE gone; TRUNCATE calm")
        .expect("change");
    child
        .run("INSERT INTO big SELECT string_agg(md5(i::text), '') FROM generate_series(1, 20000) i")
        .expect("a value in many pages");
    let report = store.json(["diff", "child@before", "child", "--checkpoint"]);
    assert_eq!((text(&report, "a"), text(&report, "b")), ("child@before", "child"));
    let items = relation(&report, "items");
    assert_eq!(
        (text(items, "database"), text(items, "schema"), text(items, "kind")),
        ("postgres", "shop", "table")
    );
    assert!((1..=2).contains(&number(&items["pages"], "changed")), "{items}");
    assert_eq!(number(&items["pages"], "removed"), 0);
    // Each side's server knows its own files.
    let both = store.json(["diff", "main", "child"]);
    let calm = relation(&both, "calm");
    assert_eq!(calm["new_files"], true, "{calm}");
    assert!(number(&calm["pages"], "removed") >= 4, "{calm}");
    assert!(number(&relation(&both, "gone")["pages"], "removed") >= 4, "{both}");
    // What a snapshot had, and its fork's server knows no more, has no name.
    assert!(!has(&report, "gone"), "{report}");
    let rows = report["relations"].as_array().expect("relations");
    let toast = rows.iter().find(|row| row["table"] == "public.big" && row["kind"] == "toast");
    let toast = toast.unwrap_or_else(|| panic!("no toast table in {report}"));
    assert!(number(&toast["pages"], "added") > 10, "{toast}");
    assert!(!has(&report, "pg_largeobject"), "what nobody has touched is not there: {report}");
    // The sum is that of the rows, and sorted.
    let changed = |row: &Value| number(&row["pages"], "changed");
    let files = report["files"].as_array().expect("files");
    assert_eq!(changed(&report), rows.iter().chain(files).map(changed).sum::<u64>());
    let differing = |row: &Value| {
        ["changed", "added", "removed"].map(|what| number(&row["pages"], what)).iter().sum::<u64>()
    };
    assert!(rows.is_sorted_by_key(|row| std::cmp::Reverse(differing(row))), "{report}");

    // For people; from the parent's side as well.
    let said = store.ok(["diff", "main", "child"]);
    assert!(said.contains("shop.items") && said.contains("written anew") && !said.contains('\x1b'), "{said}");
    assert!(store.ok(["diff", "child@before", "child@before"]).contains("the same pages"));

    // Without a server, files are named, and how to get names.
    store.stop("child");
    store.stop("main");
    let done = store.run(["diff", "child@before", "child"]);
    assert!(done.ok() && done.stderr.contains("pgcowfs start child"), "{}", done.report());
    assert!(done.stdout.contains("base/") && !done.stdout.contains("shop.items"), "{}", done.report());

    for (args, code) in [
        (&["diff", "main", "nobody"][..], 3),
        (&["diff", "main@none", "child"], 3),
        (&["diff", "main", "child", "--schema"], 5),
        (&["diff", "main", "child", "-d", "x"], 2),
    ] {
        let done = store.run(args);
        assert_eq!(done.code, code, "{}", done.report());
        assert!(code == 2 || done.stderr.contains("hint"), "{}", done.report());
    }
}

#[test]
fn diff_of_definitions() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    store.sql("main", "postgres").run("CREATE TABLE items (id int)").expect("create");
    store.ok(["fork", "main", "child", "--start"]);
    assert!(store.ok(["diff", "main", "child", "--schema"]).contains("the same definitions"));
    let child = store.sql("child", "postgres");
    child.run("ALTER TABLE items ADD note text").expect("alter");
    child.run("CREATE DATABASE more").expect("another database");
    let said = store.ok(["diff", "main", "child", "--schema", "--database", "postgres"]);
    assert!(
        said.contains("\n+    note text\n") && said.starts_with("--- main/postgres\n+++ child/postgres"),
        "{said}"
    );
    let report = store.json(["diff", "main", "child", "--schema"]);
    let databases = report["databases"].as_array().expect("databases");
    let more = databases.iter().find(|of| of["database"] == "more").expect("a database of one side");
    assert!(databases.len() == 2 && more["equal"] == false, "{report}");
    assert_eq!(store.run(["diff", "main", "child", "--schema", "-d", "none"]).code, 3);
    store.ok(["snapshot", "child", "v1"]);
    let done = store.run(["diff", "main", "child@v1", "--schema"]);
    assert!(done.code == 2 && done.stderr.contains("pgcowfs fork child@v1"), "{}", done.report());
    store.stop("child");
    store.stop("main");
}

#[test]
fn du_tells_own_from_shared() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    store.pgbench("main", ["-i", "-q", "-s", "2"]);
    // What the parent has not written, the child's recovery would write for itself.
    store.ok(["fork", "main", "child", "--start", "--checkpoint", "always"]);
    let fresh = store.json(["du", "child"]);
    assert!(number(&fresh, "shared_bytes") > 20 << 20, "{fresh}");
    store
        .sql("child", "postgres")
        .run("UPDATE pgbench_branches SET filler = 'x'; CREATE TABLE own AS SELECT generate_series(1, 100000) i; CHECKPOINT")
        .expect("change");
    let report = store.json(["du", "child", "--relations", "--top", "3"]);
    assert_eq!(report["relations"].as_array().expect("relations").len(), 3);
    let own = relation(&report, "own");
    assert_eq!(number(own, "shared_bytes"), 0);
    assert!(number(own, "exclusive_bytes") >= 3 << 20, "{own}");
    assert_eq!(report["relations"][0]["name"], "own", "{report}");
    let all = store.json(["du", "child", "--relations", "--top", "1000"]);
    let accounts = relation(&all, "pgbench_accounts");
    assert_eq!(number(accounts, "exclusive_bytes"), 0, "{accounts}");
    assert!(number(accounts, "shared_bytes") > 20 << 20, "{accounts}");
    // What `show` says only this fork has, but for pages that it has not made durable.
    store.ok(["snapshot", "child", "v1"]);
    let (du, show) = (store.json(["du", "child"]), store.show("child"));
    assert_eq!(
        number(&du, "exclusive_bytes") + number(&du, "kept_bytes"),
        number(&show, "delta_bytes"),
        "{du} {show}"
    );
    let said = store.ok(["du", "child", "--relations"]);
    assert!(said.contains("public.own") && said.contains("exclusive"), "{said}");
    assert_eq!(store.run(["du", "nobody"]).code, 3);
    store.stop("child");
    store.stop("main");
    let done = store.run(["du", "child", "--relations"]);
    assert!(done.ok() && done.stderr.contains("pgcowfs start child"), "{}", done.report());
}
