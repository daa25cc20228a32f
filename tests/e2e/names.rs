//! Renaming, promoting and protecting forks.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal::SIGKILL;

use super::bad_input::{EXISTS, NOT_FOUND, STATE, USAGE, refuses};
use super::lifecycle::psql;
use crate::common::process::{is_alive, signal, wait_until};
use crate::common::random::Random;
use crate::common::store::{QUIET, Store, number, text};
use crate::common::turn_on_a_mount;

/// A renamed fork is the same fork, by its new name: for its children, its server, and after a new start.
#[test]
fn rename() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    // A file of its configuration that it finds by an absolute path.
    let dir = store.path("main");
    std::fs::rename(dir.join("pg_hba.conf"), dir.join("own_hba.conf")).expect("rename");
    store.configure("main", &format!("hba_file = '{}/own_hba.conf'", dir.display()));
    store.start("main");
    psql(&store, "main", "CREATE TABLE t AS SELECT 1 AS n");
    store.ok(["snapshot", "main", "one"]);
    store.ok(["fork", "main", "child", "--start"]);
    assert_eq!(psql(&store, "child", "SELECT n FROM t"), "1");
    let before = store.show("main");
    refuses(&store, &["rename", "main", "trunk"], STATE, &["main", "running", "pgcowfs stop main"]);
    store.stop("main");
    refuses(&store, &["rename", "main", "child"], EXISTS, &["child"]);
    refuses(&store, &["rename", "main", "main"], EXISTS, &["main"]);
    refuses(&store, &["rename", "nobody", "x"], NOT_FOUND, &["nobody"]);
    for name in ["", "a/b", "main@one", "\x1b[31m"] {
        refuses(&store, &["rename", "main", "--", name], USAGE, &["name"]);
    }
    let done = store.json(["rename", "main", "trunk"]);
    assert_eq!((text(&done, "name"), text(&done, "renamed_from")), ("trunk", "main"));
    assert_eq!(number(&done, "port"), number(&before, "port"));
    assert!(!dir.exists() && !store.dir().join("run/main").exists(), "the old name is still there");
    let look = |store: &Store| {
        assert_eq!(text(&store.show("child"), "parent"), "trunk");
        store.start("trunk");
        assert_eq!(psql(store, "trunk", "SELECT n FROM t"), "1");
        let sql = store.sql("trunk", "postgres");
        let show = |setting: &str| sql.value(&format!("SHOW {setting}")).expect("ask");
        assert_eq!(show("cluster_name"), "trunk");
        assert_eq!(show("hba_file"), store.path("trunk").join("own_hba.conf").to_str().expect("UTF-8"));
        assert!(show("unix_socket_directories").ends_with("/trunk"));
    };
    look(&store);
    assert!(store.dir().join("logs/trunk.log").exists() && !store.dir().join("logs/main.log").exists());
    // What was made before the rename knows its own files as well.
    store.ok(["fork", "trunk@one", "of-one", "--start"]);
    assert_eq!(psql(&store, "of-one", "SELECT n FROM t"), "1");
    psql(&store, "trunk", "UPDATE t SET n = 2");
    store.ok(["reset", "child", "--to", "parent"]);
    assert_eq!(psql(&store, "child", "SELECT n FROM t"), "2");
    store.ok(["reset", "trunk", "--to", "one"]);
    store.ok(["umount", "--stop"]);
    look(&store);
    // The name can be had again.
    store.ok(["fork", "trunk", "main", "--start"]);
    store.ok(["umount", "--stop"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}

/// The daemon dies in the middle of it: the fork has one of the names, and is all that by this name it must be.
#[test]
fn a_rename_cut_short() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let mut random = Random::new(7);
    store.create("a", QUIET);
    store.ok(["fork", "a", "child"]);
    let (mut name, mut other) = ("a", "b");
    for _ in 0..6 {
        let daemon = store.daemon_pid();
        let mut command = store.command(["rename", name, other]);
        let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start it");
        std::thread::sleep(Duration::from_micros(random.between(500, 6_000)));
        signal(daemon, SIGKILL);
        wait_until("the daemon's end", || !is_alive(daemon));
        let acknowledged = command.wait().expect("wait").success();
        let names = store.names();
        assert_eq!(names.len(), 2, "{names:?}");
        let renamed = names.iter().any(|there| there == other);
        assert!(renamed || !acknowledged, "{other} was acknowledged, and there is {names:?}");
        if renamed {
            (name, other) = (other, name);
        }
        assert!(names.iter().any(|there| there == name), "{names:?}");
        assert_eq!(text(&store.show("child"), "parent"), name);
        assert!(text(&store.show(name), "socket_dir").ends_with(&format!("/{name}")));
        store.start(name);
        assert_eq!(psql(&store, name, "SHOW cluster_name"), name);
        store.stop(name);
    }
}

#[test]
fn promote() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.ok(["fork", "main", "child", "--start"]);
    psql(&store, "child", "CREATE TABLE t AS SELECT 1 AS n");
    store.ok(["snapshot", "child", "one"]);
    refuses(&store, &["promote", "main"], STATE, &["main", "root"]);
    refuses(&store, &["promote", "nobody"], NOT_FOUND, &["nobody"]);
    let done = store.json(["promote", "child"]);
    assert_eq!((text(&done, "name"), text(&done, "promoted_from")), ("child", "main"));
    assert!(store.show("child")["parent"].is_null());
    assert_eq!(psql(&store, "child", "SELECT n FROM t"), "1", "its server has noticed nothing");
    refuses(&store, &["reset", "child"], STATE, &["child", "root"]);
    refuses(&store, &["reset", "child", "--to", "parent"], STATE, &["child"]);
    refuses(&store, &["promote", "child"], STATE, &["child", "root"]);
    psql(&store, "child", "UPDATE t SET n = 2");
    store.ok(["reset", "child", "--to", "one"]);
    assert_eq!(psql(&store, "child", "SELECT n FROM t"), "1");
    // In the place of what it was made from.
    store.ok(["umount", "--stop"]);
    store.ok(["rename", "main", "old"]);
    store.ok(["rename", "child", "main"]);
    store.ok(["rm", "old"]);
    store.start("main");
    assert_eq!(psql(&store, "main", "SELECT n FROM t"), "1");
    store.stop("main");
}

/// Every fork has one place in the tree, whatever was removed, promoted and named like another.
#[test]
fn tree() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    assert_eq!(store.json(["tree"]), serde_json::json!([]));
    store.create("main", QUIET);
    store.ok(["snapshot", "main", "one"]);
    for (from, name) in [("main@one", "a"), ("main", "b"), ("a", "c"), ("main@one", "d"), ("b", "e")] {
        store.ok(["fork", from, name]);
    }
    let look = || {
        let shown = store.ok(["tree"]);
        assert!(shown.starts_with("NAME ") && !shown.contains('\x1b'), "{shown}");
        let names = shown.lines().skip(1).map(|line| {
            let name = line.split("  stopped").next().unwrap_or(line);
            name.split("  snapshot").next().unwrap_or(name).trim_end().to_owned()
        });
        names.collect::<Vec<_>>()
    };
    assert_eq!(look(), ["main", "├─ @one", "│  ├─ a", "│  │  └─ c", "│  └─ d", "└─ b", "   └─ e"]);
    let json = store.json(["tree"]);
    let one = &json[0]["children"][0];
    assert_eq!(
        (text(&json[0], "kind"), text(one, "kind"), text(one, "name")),
        ("fork", "snapshot", "main@one")
    );
    assert_eq!(text(&one["children"][0]["children"][0], "name"), "c");
    assert!(number(one, "changed_bytes") > 0 && text(&json[0], "state") == "stopped", "{json}");
    store.ok(["promote", "d"]);
    store.ok(["protect", "d"]);
    store.ok(["rm", "main@one", "b"]);
    assert_eq!(look(), ["main", "└─ a", "   └─ c", "d", "e"]);
    let shown = store.ok(["tree"]);
    assert!(shown.contains("of b, which is gone\n") && shown.contains("protected\n"), "{shown}");
    // A circle of names: main is gone, and a fork of its fork has its name.
    store.ok(["rm", "main"]);
    store.ok(["rename", "c", "main"]);
    assert_eq!(look(), ["d", "e", "a", "└─ main"]);
    store.ok(["rename", "a", "main2"]);
    store.ok(["rm", "main"]);
    store.ok(["rename", "main2", "main"]);
    assert_eq!(look(), ["main", "d", "e"], "its parent has its own name");
    refuses(&store, &["reset", "main", "--to", "parent"], NOT_FOUND, &["main", "gone"]);
}

#[test]
fn protect() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.ok(["fork", "main", "child"]);
    store.ok(["snapshot", "child", "one"]);
    let refused = || {
        let names = &["child", "protected", "pgcowfs protect child --off"];
        for args in [
            &["rm", "child"][..],
            &["rm", "--force", "child"],
            &["rm", "main", "child"],
            &["rm", "child@one"],
            &["reset", "child", "--force"],
            &["reset", "child", "--to", "one"],
            &["rename", "child", "x"],
        ] {
            refuses(&store, args, STATE, names);
        }
    };
    let done = store.json(["protect", "child"]);
    assert_eq!(
        (done["protected"].as_bool(), &done["protected_until"]),
        (Some(true), &serde_json::Value::Null)
    );
    refused();
    store.ok(["umount"]);
    refused();
    let done = store.json(["protect", "child", "--for", "2h"]);
    assert!(text(&done, "protected_until").starts_with("20"), "{done}");
    refused();
    assert!(store.ok(["show", "child"]).contains(&format!("protected  {}", text(&done, "protected_until"))));
    // It can be used, and what is made of it is not protected.
    store.start("child");
    store.ok(["snapshot", "child", "two"]);
    store.ok(["fork", "child", "grandchild"]);
    assert_eq!(store.show("grandchild")["protected"].as_bool(), Some(false));
    store.stop("child");
    store.ok(["rm", "grandchild"]);
    // A protection ends by itself, or is lifted.
    store.ok(["protect", "child", "--for", "1s"]);
    wait_until("the end of the protection", || store.show("child")["protected"] == false);
    store.ok(["rm", "child@one"]);
    store.ok(["protect", "child"]);
    let done = store.json(["protect", "child", "--off"]);
    assert_eq!(done["protected"].as_bool(), Some(false));
    store.ok(["reset", "child"]);
    store.ok(["rm", "child", "main"]);
    refuses(&store, &["protect", "child"], NOT_FOUND, &["child"]);
    for time in ["2", "-1h", "0s", "1000000000000d", "soon"] {
        refuses(&store, &["protect", "child", &format!("--for={time}")], USAGE, &["--for"]);
    }
}
