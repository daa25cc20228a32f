//! Snapshots that are made by the clock.

use super::bad_input::{NOT_FOUND, USAGE, refuses};
use super::lifecycle::psql;
use super::run::running_main;
use crate::common::process::wait_until;
use crate::common::store::{Store, text};
use crate::common::turn_on_a_mount;

/// Labels of a fork's snapshots.
fn labels(store: &Store, fork: &str) -> Vec<String> {
    let list = store.json(["snapshots", fork]);
    list.as_array().expect("an array").iter().map(|s| text(s, "label").to_owned()).collect()
}

/// They come and go, other snapshots stay, and a fork of one that went has all it needs.
#[test]
fn a_schedule() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    store.ok(["snapshot", "main", "mine"]);
    let rows = store.json(["schedule", "main", "--every", "1h", "--keep", "2"]);
    assert_eq!((text(&rows[0], "fork"), rows[0]["every_s"].as_u64()), ("main", Some(3600)), "{rows}");
    wait_until("the first", || labels(&store, "main").len() == 2);
    let first = labels(&store, "main").pop().expect("two");
    assert!(first.starts_with("auto-20"), "{first}");
    store.ok(["fork", &format!("main@{first}"), "child", "--start"]);
    psql(&store, "main", "UPDATE t SET n = 2");
    // A protected fork has its snapshots made and removed like any other.
    store.ok(["protect", "main"]);
    store.ok(["schedule", "main", "--every", "1s", "--keep", "2"]);
    wait_until("the first one's end", || !labels(&store, "main").contains(&first));
    assert_eq!(psql(&store, "child", "SELECT n FROM t"), "1");
    store.ok(["reset", "child"]);
    assert_eq!(psql(&store, "child", "SELECT n FROM t"), "1");
    assert!(store.ok(["schedule"]).contains("main"));
    // What is made from it, and it under another name, and after a new start.
    assert!(store.json(["schedule", "child"]).as_array().is_some_and(Vec::is_empty), "it is not inherited");
    store.stop("main");
    store.ok(["protect", "main", "--off"]);
    store.ok(["rename", "main", "trunk"]);
    store.ok(["umount", "--stop"]);
    let before = labels(&store, "trunk");
    wait_until("more", || labels(&store, "trunk").last() != before.last());
    store.ok(["schedule", "trunk", "--off"]);
    let left = labels(&store, "trunk");
    assert_eq!((left.len(), left[0].as_str()), (3, "mine"), "{left:?}");
    assert!(store.json(["schedule"]).as_array().is_some_and(Vec::is_empty));
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}

/// A time instead of a label.
#[test]
fn what_it_was_some_time_ago() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    store.ok(["snapshot", "main", "one"]);
    psql(&store, "main", "UPDATE t SET n = 2");
    store.ok(["snapshot", "main", "two"]);
    let fork = |when: &str, name: &str| {
        let made = store.json(["fork", &format!("main@{when}"), name, "--start"]);
        (text(&made, "snapshot").to_owned(), psql(&store, name, "SELECT n FROM t"))
    };
    // The newest that is as old as that.
    assert_eq!(fork("0s ago", "now"), ("two".into(), "2".into()));
    // However long all that took: it is one of the two, and the first if it was made so long before the second.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(fork("1 second ago", "before"), ("two".into(), "2".into()));
    store.ok(["rm", "main@two"]);
    assert_eq!(fork("2s ago", "first"), ("one".into(), "1".into()));
    refuses(&store, &["fork", "main@1 hour ago", "x"], NOT_FOUND, &["main", "1 hour ago", "main@one"]);
    refuses(&store, &["fork", "main@a while ago", "x"], USAGE, &["a while ago", "10 minutes ago"]);
    refuses(&store, &["fork", "main@10 minutes", "x"], USAGE, &["label"]);
    store.stop("main");
}

#[test]
fn bad_schedules() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    for every in ["", "soon", "* * * * *", "0s", "-1h", "1 fortnight"] {
        let every = format!("--every={every}");
        refuses(&store, &["schedule", "main", &every, "--keep", "2"], USAGE, &["--every", "30m, 2h or 7d"]);
    }
    for keep in ["0", "-1", "many"] {
        let keep = format!("--keep={keep}");
        refuses(&store, &["schedule", "main", "--every", "1h", &keep], USAGE, &["--keep"]);
    }
    refuses(&store, &["schedule", "main", "--every", "1h"], USAGE, &["--keep"]);
    refuses(&store, &["schedule", "--every", "1h", "--keep", "2"], USAGE, &["FORK"]);
    refuses(&store, &["schedule", "nobody", "--every", "1h", "--keep", "2"], NOT_FOUND, &["nobody"]);
    refuses(&store, &["schedule", "nobody"], NOT_FOUND, &["nobody"]);
    assert!(store.json(["schedule"]).as_array().is_some_and(Vec::is_empty));
    store.stop("main");
}
