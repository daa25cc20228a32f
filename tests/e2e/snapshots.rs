//! Snapshots, and what is done with them.

use super::bad_input::{BAD_INPUT, EXISTS, NOT_FOUND, STATE, USAGE, refuses};
use super::lifecycle::psql;
use crate::common::pg::owner;
use crate::common::store::{QUIET, Store, number, text};
use crate::common::turn_on_a_mount;

/// A running cluster with a table `t`, whose one row says how far it has come.
fn running_main() -> Store {
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    psql(&store, "main", "CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    store
}

fn set(store: &Store, fork: &str, n: u32) {
    psql(store, fork, &format!("UPDATE t SET n = {n}"));
}

fn get(store: &Store, fork: &str) -> String {
    psql(store, fork, "SELECT n FROM t")
}

/// Labels of a fork's snapshots.
fn labels(store: &Store, fork: &str) -> Vec<String> {
    let list = store.json(["snapshots", fork]);
    list.as_array().expect("an array").iter().map(|s| text(s, "label").to_owned()).collect()
}

/// Snapshots of a running server, forks of them, and their removal in any order.
#[test]
fn snapshots_of_a_running_fork() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    let made = store.json(["snapshot", "main", "one", "--checkpoint", "always"]);
    assert_eq!((text(&made, "name"), text(&made, "fork"), text(&made, "label")), ("main@one", "main", "one"));
    assert!(made["snapshot_ms"].is_number() && made["stall_ms"].is_number(), "{made}");
    assert!(made["checkpoint_ms"].is_number(), "it was asked for: {made}");
    set(&store, "main", 2);
    let first = store.json(["snapshot", "main"]);
    let second = store.json(["snapshot", "main"]);
    let (first, second) = (text(&first, "label").to_owned(), text(&second, "label").to_owned());
    assert!(first.starts_with("20") && first != second, "labels by the time: {first}, {second}");
    set(&store, "main", 3);
    assert_eq!(labels(&store, "main"), ["one", first.as_str(), second.as_str()], "the oldest first");

    let child = store.json(["fork", "main@one", "child", "--start"]);
    assert_eq!((text(&child, "parent"), text(&child, "snapshot")), ("main", "one"));
    assert_eq!(get(&store, "child"), "1");
    store.ok(["fork", &format!("main@{first}"), "other"]);
    store.start("other");
    assert_eq!((get(&store, "other").as_str(), get(&store, "main").as_str()), ("2", "3"));
    let list = store.json(["snapshots"]);
    assert_eq!((text(&list[0], "name"), list[0]["forks"][0].as_str()), ("main@one", Some("child")));
    assert!(number(&list[0], "logical_bytes") > 1 << 20 && number(&list[0], "changed_bytes") > 0, "{list}");
    let table = store.ok(["snapshots"]);
    assert!(
        table.starts_with("SNAPSHOT") && table.contains("\nmain@one ") && table.contains(" child\n"),
        "{table}"
    );

    // Forks and snapshots go in any order.
    let removed = store.json(["rm", "--force", "main@one", "other", &format!("main@{second}")]);
    assert_eq!(removed["removed"][0].as_str(), Some("main@one"));
    assert_eq!(labels(&store, "main"), [first.as_str()]);
    set(&store, "child", 7);
    assert_eq!(get(&store, "child"), "7", "it has all it needs");
    store.ok(["rm", "--force", "main"]);
    assert!(store.json(["snapshots"]).as_array().expect("an array").is_empty(), "they go with their fork");
    store.stop("child");
    store.ok(["umount"]);
    store.start("child");
    assert_eq!(get(&store, "child"), "7");
    assert!(store.ok(["check"]).contains("nothing is wrong"));
    store.stop("child");
}

/// A fork is put back, stopped and running, to each thing it can be put back to; it stays itself, and does not become
/// its parent.
#[test]
fn resets() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    // The parent archives, as a production server would.
    let sql = store.sql("main", "postgres");
    for setting in ["archive_mode = on", "archive_command = 'false'"] {
        sql.run(&format!("ALTER SYSTEM SET {setting}")).expect("change a setting");
    }
    drop(sql);
    store.ok(["restart", "main"]);
    store.ok(["fork", "main", "child", "--set", "work_mem=5MB", "--quota", "1GB"]);
    let address = |store: &Store| {
        let show = store.show("child");
        ["name", "parent", "port", "socket_dir", "url", "tcp_url", "pgdata", "quota_bytes", "created_at"]
            .map(|field| show[field].clone())
    };
    let before = (address(&store), store.ok(["url", "child", "--tcp"]));
    let is_itself = |n: &str| {
        let sql = store.sql("child", "postgres");
        let show = |setting: &str| sql.value(&format!("SHOW {setting}")).expect("ask");
        assert_eq!(sql.value("SELECT n FROM t").expect("ask"), n);
        assert_eq!((show("archive_mode").as_str(), show("work_mem").as_str()), ("off", "5MB"));
        assert_eq!(show("cluster_name"), "child");
        assert_eq!((address(&store), store.ok(["url", "child", "--tcp"])), before);
    };
    set(&store, "main", 2);
    store.start("child");
    set(&store, "child", 10);
    store.ok(["snapshot", "child", "ten"]);
    set(&store, "child", 11);

    // It runs, and goes on running.
    let done = store.json(["reset", "child"]);
    assert!(
        done["reset_to"].is_null() && done["reset_ms"].is_number() && done["stop_ms"].is_number(),
        "{done}"
    );
    assert_eq!(text(&done, "state"), "running");
    is_itself("1");
    set(&store, "child", 12);
    let done = store.json(["reset", "child", "--to", "ten"]);
    assert_eq!(text(&done, "reset_to"), "ten");
    is_itself("10");
    assert_eq!(text(&store.json(["reset", "child", "--to", "parent"]), "reset_to"), "parent");
    is_itself("2");
    // From now on that is what it was made from. Stopped, it stays so; whoever looks sees the right files at once.
    set(&store, "child", 13);
    set(&store, "main", 3);
    store.stop("child");
    let done = store.json(["reset", "child"]);
    assert_eq!((text(&done, "state"), &done["start_ms"]), ("stopped", &serde_json::Value::Null));
    store.start("child");
    is_itself("2");

    // A root has its snapshots only. Its own archiving is over, too: its history is another one from here on.
    store.ok(["snapshot", "main", "three"]);
    set(&store, "main", 4);
    store.ok(["reset", "main", "--to", "three"]);
    assert_eq!(get(&store, "main"), "3");
    assert_eq!(store.sql("main", "postgres").value("SHOW archive_mode").expect("ask"), "off");
    store.ok(["umount", "--stop"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
    for (fork, n) in [("main", "3"), ("child", "2")] {
        store.start(fork);
        assert_eq!(get(&store, fork), n, "{fork}, after a new start of the daemon");
    }
    store.ok(["rm", "--force", "main"]);
    let parent_is_gone: &[&str] = &["main", "gone", "pgcowfs reset child"];
    refuses(&store, &["reset", "child", "--to", "parent"], NOT_FOUND, parent_is_gone);
    store.ok(["reset", "child"]);
    is_itself("2");
    store.stop("child");
}

/// Who is connected is not thrown out unasked; what cannot be is refused before a server has stopped.
#[test]
fn bad_resets() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    store.ok(["snapshot", "main", "one"]);
    store.ok(["fork", "main", "child", "--start"]);
    let postmaster = store.postmaster("child");
    refuses(&store, &["reset", "nobody"], NOT_FOUND, &["nobody"]);
    refuses(&store, &["reset", "main"], STATE, &["main", "root", "pgcowfs snapshots main"]);
    refuses(&store, &["reset", "main", "--to", "parent"], STATE, &["main", "pgcowfs snapshots main"]);
    refuses(
        &store,
        &["reset", "child", "--to", "one"],
        NOT_FOUND,
        &["child", "one", "pgcowfs snapshots child"],
    );
    refuses(&store, &["reset", "child", "--to", "a/b"], USAGE, &["a/b", "label"]);
    let session = store.sql("child", "postgres");
    refuses(&store, &["reset", "child"], STATE, &["child", "1 open session", "pgcowfs reset --force child"]);
    assert_eq!(session.value("SELECT n FROM t").expect("ask"), "1", "it is still connected");
    assert_eq!(store.postmaster("child"), postmaster, "its server has noticed nothing");
    session.run("UPDATE t SET n = 5").expect("update");
    store.ok(["reset", "child", "--force"]);
    assert!(session.value("SELECT 1").is_err(), "it was disconnected");
    assert_eq!(get(&store, "child"), "1");
    store.stop("child");
    store.stop("main");
}

#[test]
fn bad_snapshots() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    store.ok(["snapshot", "main", "one"]);
    refuses(&store, &["snapshot", "main", "one"], EXISTS, &["main", "one", "pgcowfs rm main@one"]);
    refuses(&store, &["snapshot", "nobody"], NOT_FOUND, &["nobody"]);
    refuses(&store, &["snapshots", "nobody"], NOT_FOUND, &["nobody"]);
    for label in ["", "a/b", "a@b", "..", "with space", "\x1b[31m", "parent"] {
        refuses(&store, &["snapshot", "main", "--", label], USAGE, &["label"]);
    }
    for place in ["main@none", "nobody@one", "main@one@one"] {
        let code = if place == "main@one@one" { USAGE } else { NOT_FOUND };
        refuses(&store, &["fork", place, "child"], code, &["error"]);
        refuses(&store, &["rm", place], code, &["error"]);
    }
    refuses(&store, &["fork", "main@none", "child"], NOT_FOUND, &["main", "none", "pgcowfs snapshots main"]);
    refuses(&store, &["fork", "main@", "child"], USAGE, &["label"]);
    refuses(&store, &["fork", "main@one", "main"], EXISTS, &["main"]);
    refuses(
        &store,
        &["fork", "main@one", "child", "--checkpoint", "always"],
        USAGE,
        &["--checkpoint", "main@one"],
    );
    // All of them or none.
    refuses(&store, &["rm", "main@one", "main@none"], NOT_FOUND, &["none"]);
    refuses(&store, &["rm", "main@one", "main@one"], USAGE, &["main@one"]);
    // A snapshot is no fork.
    for command in ["start", "stop", "show", "path", "psql", "url"] {
        refuses(&store, &[command, "main@one"], NOT_FOUND, &["main@one", "pgcowfs fork main@one"]);
    }
    let outside = store.scratch().subdir_of("outside", owner());
    let sql = store.sql("main", "postgres");
    sql.run(&format!("CREATE TABLESPACE far LOCATION '{}'", outside.display())).expect("make a tablespace");
    refuses(&store, &["snapshot", "main", "two"], BAD_INPUT, &[outside.to_str().expect("UTF-8")]);
    drop(sql);
    store.stop("main");
}
