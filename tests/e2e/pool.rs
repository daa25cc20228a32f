//! Started forks that are kept ready.

use nix::sys::signal::Signal::SIGQUIT;
use serde_json::Value;

use super::bad_input::{NOT_FOUND, USAGE, refuses};
use super::lifecycle::psql;
use super::run::{only, running_main, shell, told};
use crate::common::process::{is_alive, signal, wait_until};
use crate::common::store::{Store, text};
use crate::common::turn_on_a_mount;

/// The names in one list of a fork's pool.
fn members(store: &Store, fork: &str, which: &str) -> Vec<String> {
    let pools = store.json(["pool", fork]);
    let names = pools[0][which].as_array().unwrap_or_else(|| panic!("no {which}: {pools}"));
    names.iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
}

fn ready(store: &Store, fork: &str) -> Vec<String> {
    members(store, fork, "ready")
}

/// What a command with `count` forks sees in the table of the first, and how many of them came from the pool.
#[track_caller]
fn run(store: &Store, options: &[&str]) -> (String, u64, Value) {
    let done = shell(store, options, "ask -c 'SELECT n FROM t'");
    assert_eq!(done.code, 0, "{}", done.report());
    let told = told(&done);
    (done.stdout.trim_end().to_owned(), told["pooled"].as_u64().expect("a number"), told)
}

/// They are handed out, replaced, and never older than they may be.
#[test]
fn a_pool() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    store.ok(["snapshot", "main", "one"]);
    let pool = store.json(["pool", "main", "--size", "2"]);
    assert_eq!((text(&pool[0], "fork"), pool[0]["size"].as_u64()), ("main", Some(2)));
    wait_until("the pool", || ready(&store, "main").len() == 2);
    assert!(store.ok(["status"]).contains("main: 2 of 2 ready"));
    assert!(store.ok(["list"]).contains("ephemeral, in a pool"));

    // A part of what is wanted.
    let (n, pooled, told) = run(&store, &["main", "--count", "3"]);
    assert_eq!((n.as_str(), pooled), ("1", 2), "{told}");
    assert!(told["forks"][0].as_str().is_some_and(|name| name.starts_with("main-pool-")), "{told}");
    // What has wishes of its own is made.
    assert_eq!(run(&store, &["main", "--name", "mine"]).1, 0);
    wait_until("the pool", || ready(&store, "main").len() == 2);

    // Whoever has committed something finds it.
    for n in 2..5 {
        psql(&store, "main", &format!("UPDATE t SET n = {n}"));
        assert_eq!(run(&store, &["main"]).0, n.to_string());
    }
    wait_until("a new pool", || run(&store, &["main"]).1 == 1);
    assert_eq!(run(&store, &["main"]).0, "4");
    // Unless it need not be found at once.
    store.ok(["pool", "main", "--size", "1", "--max-age", "1h"]);
    wait_until("the pool", || ready(&store, "main").len() == 1);
    psql(&store, "main", "UPDATE t SET n = 5");
    let (n, pooled, _) = run(&store, &["main"]);
    assert_eq!((n.as_str(), pooled), ("4", 1));

    // A server that ends is replaced.
    store.ok(["pool", "main", "--size", "1"]);
    wait_until("the pool", || ready(&store, "main").len() == 1);
    let member = ready(&store, "main").swap_remove(0);
    let server = store.postmaster(&member).expect("it runs");
    signal(server, SIGQUIT);
    wait_until("its end", || !is_alive(server));
    wait_until("another one", || ready(&store, "main").first().is_some_and(|name| *name != member));

    // What it was made of is put back, gets another name, and outlives its daemon.
    store.ok(["reset", "main", "--to", "one", "--force"]);
    assert_eq!(run(&store, &["main"]).0, "1");
    wait_until("the pool", || run(&store, &["main"]).1 == 1);
    assert_eq!(run(&store, &["main"]).0, "1");
    store.stop("main");
    store.ok(["rename", "main", "trunk"]);
    wait_until("the pool", || ready(&store, "trunk").len() == 1);
    assert_eq!(run(&store, &["trunk"]).0, "1");
    store.kill_daemon();
    wait_until("the pool", || ready(&store, "trunk").len() == 1);
    assert_eq!(run(&store, &["trunk"]).0, "1");

    // It is no server that somebody uses.
    wait_until("the pool", || ready(&store, "trunk").len() == 1);
    store.ok(["umount"]);
    wait_until("the pool", || ready(&store, "trunk").len() == 1);
    store.ok(["umount", "--stop"]);
    store.ok(["pool", "trunk", "--size", "0"]);
    wait_until("its end", || store.names() == ["trunk"]);
    assert!(store.json(["pool"]).as_array().is_some_and(Vec::is_empty));
    only(&store, &["trunk"]);
    store.ok(["umount"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}

#[test]
fn bad_pools() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    refuses(&store, &["pool", "nobody"], NOT_FOUND, &["nobody", "pgcowfs list"]);
    refuses(&store, &["pool", "nobody", "--size", "1"], NOT_FOUND, &["nobody"]);
    refuses(&store, &["pool", "--size", "1"], USAGE, &["FORK"]);
    refuses(&store, &["pool", "main", "--size", "-1"], USAGE, &["-1"]);
    refuses(&store, &["pool", "main", "--max-age", "1h"], USAGE, &["--size"]);
    refuses(&store, &["pool", "main", "--size", "1", "--max-age", "soon"], USAGE, &["30m, 2h or 7d"]);
    // One that cannot be made says why.
    store.configure("main", "shared_buffers = lots");
    store.ok(["pool", "main", "--size", "1"]);
    wait_until("a failure", || store.json(["pool", "main"])[0]["failure"].is_string());
    let pools = store.json(["pool", "main"]);
    assert!(text(&pools[0], "failure").contains("did not start"), "{pools}");
    assert_eq!(store.names(), ["main"]);
    store.ok(["pool", "main", "--size", "0"]);
    store.stop("main");
}
