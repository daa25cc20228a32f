//! Forks that end with the daemon.

use super::bad_input::{STATE, refuses};
use super::lifecycle::psql;
use crate::common::store::{QUIET, Store, text};
use crate::common::turn_on_a_mount;

fn settings(store: &Store, fork: &str) -> Vec<String> {
    let sql = store.sql(fork, "postgres");
    ["fsync", "synchronous_commit", "full_page_writes"]
        .iter()
        .map(|setting| sql.value(&format!("SHOW {setting}")).expect("ask"))
        .collect()
}

/// What it is made of, what is made of it, and that it is gone after every end of the daemon.
#[test]
fn an_ephemeral_fork() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    psql(&store, "main", "CREATE TABLE t AS SELECT 1 AS n");
    let made = store.json(["fork", "main", "brief", "--ephemeral", "--start"]);
    assert_eq!((made["ephemeral"].as_bool(), text(&made, "state")), (Some(true), "running"));
    assert_eq!(store.show("main")["ephemeral"].as_bool(), Some(false));
    for command in [&["show", "brief"][..], &["list"], &["tree"]] {
        assert!(store.ok(command).contains("ephemeral"), "{command:?} does not say so");
    }
    assert_eq!(settings(&store, "brief"), ["off", "off", "off"]);
    assert_eq!(settings(&store, "main"), ["on", "on", "on"], "its parent is none");
    psql(&store, "brief", "UPDATE t SET n = 2; CHECKPOINT");

    // It makes no sense to protect it, or to make it a root.
    let hint = "pgcowfs fork brief NEW";
    refuses(&store, &["promote", "brief"], STATE, &["brief", "ephemeral", hint]);
    refuses(&store, &["protect", "brief"], STATE, &["brief", "ephemeral", hint]);
    // It can be put back, and renamed, and stays what it is.
    store.ok(["reset", "brief"]);
    assert_eq!(psql(&store, "brief", "SELECT n FROM t"), "1");
    assert_eq!(settings(&store, "brief"), ["off", "off", "off"]);
    psql(&store, "brief", "UPDATE t SET n = 3; CHECKPOINT");
    store.stop("brief");
    store.ok(["rename", "brief", "short"]);
    store.start("short");
    // What is made from it lasts.
    let kept = store.json(["fork", "short", "kept", "--start"]);
    assert_eq!((kept["ephemeral"].as_bool(), text(&kept, "parent")), (Some(false), "short"));
    assert_eq!(psql(&store, "kept", "SELECT n FROM t"), "3");
    assert_eq!(settings(&store, "kept"), ["on", "on", "on"]);
    store.ok(["snapshot", "short", "three"]);
    store.ok(["fork", "short@three", "of-three", "--ephemeral"]);

    // Whether it is killed or ends by itself.
    store.kill_daemon();
    assert_eq!(store.names(), ["kept", "main"]);
    let log = std::fs::read_to_string(store.dir().join("daemon.log")).expect("read the log");
    assert!(log.contains("removing fork \"short\", which was ephemeral"), "{log}");
    for name in ["short", "of-three"] {
        assert!(!store.dir().join("run").join(name).exists(), "the sockets of {name} are left");
        assert!(!store.dir().join(format!("logs/{name}.log")).exists(), "the log of {name} is left");
    }
    store.start("kept");
    assert_eq!(psql(&store, "kept", "SELECT n FROM t"), "3");
    store.ok(["fork", "kept", "short", "--ephemeral", "--start"]);
    store.ok(["umount", "--stop"]);
    assert_eq!(store.names(), ["kept", "main"]);
    store.ok(["umount"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}
