//! Dumps that are made by the clock.

use std::path::Path;

use serde_json::Value;

use super::bad_input::{NOT_FOUND, STATE, USAGE, refuses};
use super::dump::holds;
use super::lifecycle::psql;
use super::run::{only, running_main};
use crate::common::process::wait_until;
use crate::common::store::{Store, text};
use crate::common::turn_on_a_mount;

/// The only schedule.
#[track_caller]
fn schedule(store: &Store) -> Value {
    let mut rows = store.json(["dumps"]);
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    rows[0].take()
}

fn names(store: &Store) -> Vec<String> {
    let row = schedule(store);
    let dumps = row["dumps"].as_array().expect("an array");
    dumps.iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
}

fn under_way(store: &Store) -> bool {
    !schedule(store)["running_since"].is_null()
}

/// They come and go, what else is there stays, and the newest can be restored.
#[test]
fn by_the_clock() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    let place = store.scratch().join("backup");
    let dir = place.to_str().expect("UTF-8");
    let set = ["dump", "main", "-o", dir, "--every", "1s", "--keep", "2", "--nice", "0", "-j", "1"];
    let rows = store.json(set);
    assert_eq!((text(&rows[0], "fork"), rows[0]["every_s"].as_u64()), ("main", Some(1)), "{rows}");
    // Another's, with a name of this kind.
    let other = place.join("main-20200101-000000");
    std::fs::create_dir(&other).expect("make");
    std::fs::write(other.join("pgcowfs-dump.json"), "{}").expect("write");
    wait_until("the first", || !names(&store).is_empty());
    let first = names(&store).remove(0);
    assert!(first.starts_with("main-20"), "{first}");
    wait_until("the first one's end", || !names(&store).contains(&first) && !place.join(&first).exists());
    // Another number of them, and what there is stays the schedule's own.
    store.ok([&set[..7], &["1", "--nice", "0"]].concat());
    wait_until("one at a time", || names(&store).len() == 1);
    let row = schedule(&store);
    assert!(row["last_at"].is_string() && row["failure"].is_null(), "{row}");
    assert_eq!(text(&store.show("main"), "dump_dir"), dir);
    assert!(store.ok(["status"]).contains("last"));
    store.ok(["dumps", "main", "--off"]);
    assert!(store.json(["dumps"]).as_array().is_some_and(Vec::is_empty));
    wait_until("the last one's end", || store.names() == ["main"]);
    only(&store, &["main"]);
    let mut left: Vec<_> =
        std::fs::read_dir(&place).expect("list").map(|e| e.expect("list").path()).collect();
    left.sort();
    assert!(left.contains(&other) && left.len() >= 2, "{left:?}");
    let newest = left.last().expect("one").to_str().expect("UTF-8");
    store.ok(["restore", newest, "back"]);
    store.start("back");
    assert_eq!(psql(&store, "back", "SELECT n FROM t"), "1");
    store.ok(["umount", "--stop"]);
}

/// A failure is told until there is a success; one under way is cancelled, and ends with the daemon.
#[test]
fn failures_and_ends() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    psql(
        &store,
        "main",
        "CREATE TABLE large AS SELECT i, md5(i::text) AS v FROM generate_series(1, 1500000) i",
    );
    let place = store.scratch().join("backup");
    let dir = place.to_str().expect("UTF-8");
    let every = ["dump", "main", "-o", dir, "--every", "1h", "--keep", "2", "--nice", "0", "-j", "1"];
    store.ok(every);
    wait_until("one under way", || under_way(&store) && store.names().len() == 2);
    store.ok(["dumps", "main", "--cancel"]);
    wait_until("its end", || !under_way(&store));
    let failed = |what: &str| {
        let row = schedule(&store);
        assert!(text(&row["failure"], "message").contains(what) && row["last_at"].is_null(), "{row}");
    };
    failed("interrupted");
    assert!(text(&store.show("main"), "dump_failure").contains("interrupted"));
    assert!(store.ok(["status"]).contains("interrupted") && store.ok(["dumps"]).contains("interrupted"));
    holds(&place, &[]);
    only(&store, &["main"]);
    refuses(&store, &["dumps", "main", "--cancel"], STATE, &["under way"]);
    // Whatever was wrong is mended: it is tried again at once.
    store.ok([&every[..], &["--compress", "odd"]].concat());
    wait_until("a failure", || schedule(&store)["failure"].to_string().contains("odd"));
    store.ok(every);
    wait_until("one under way", || under_way(&store));
    // It does not keep the daemon from ending.
    store.stop("main");
    store.ok(["umount"]);
    holds(&place, &[]);
    wait_until("the dump that is due", || names(&store).len() == 1);
    failed_not(&store);
    // A place that is gone.
    std::fs::rename(&place, store.scratch().join("away")).expect("move");
    store.ok([&every[..4], &["--every", "1s", "--keep", "2"]].concat());
    std::fs::remove_dir_all(&place).expect("remove");
    wait_until("a failure", || schedule(&store)["failure"].is_object());
    assert!(Path::new(&store.scratch().join("away")).exists());
    store.ok(["dumps", "main", "--off"]);
    store.ok(["umount", "--stop"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}

#[track_caller]
fn failed_not(store: &Store) {
    let row = schedule(store);
    assert!(row["failure"].is_null() && row["last_at"].is_string(), "{row}");
}

#[test]
fn bad_schedules_of_dumps() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    let place = store.scratch().join("backup");
    let dir = place.to_str().expect("UTF-8");
    let dump = |more: &[&str], code: i32, names: &[&str]| {
        refuses(&store, &[&["dump"], more].concat(), code, names);
    };
    dump(&["main", "-o", dir, "--every", "1h"], USAGE, &["--keep"]);
    dump(&["main", "-o", dir, "--every", "soon", "--keep", "2"], USAGE, &["--every"]);
    dump(&["main", "-o", dir, "--every", "1h", "--keep", "0"], USAGE, &["--keep"]);
    dump(&["main", "-o", dir, "--every", "1h", "--keep", "2", "--force"], USAGE, &["--force"]);
    dump(&["main@x", "-o", dir, "--every", "1h", "--keep", "2"], USAGE, &["snapshot"]);
    dump(&["main", "-o", "/no/where", "--every", "1h", "--keep", "2"], NOT_FOUND, &["/no"]);
    dump(&["nobody", "-o", dir, "--every", "1h", "--keep", "2"], NOT_FOUND, &["nobody"]);
    refuses(&store, &["dumps", "nobody"], NOT_FOUND, &["nobody"]);
    refuses(&store, &["dumps", "--off"], USAGE, &["FORK"]);
    assert!(store.json(["dumps"]).as_array().is_some_and(Vec::is_empty));
    store.stop("main");
}
