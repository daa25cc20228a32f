//! Forks of a cluster under load: each is the parent at one instant.

use std::time::Duration;

use crate::common::pg::{Endpoint, Postgres};
use crate::common::process::is_alive;
use crate::common::sql::Sql;
use crate::common::store::{AGGRESSIVE, Store, real};
use crate::common::{rounds, turn_on_a_mount};
use crate::oracle::{self, Counts, DATABASE, Load, Window, report, verify};

/// 24 forks while 8 clients write and a checkpoint runs five times a second. Every fork starts, holds exactly the
/// commits of its instant, passes amcheck and page checksums, and goes its own way; the parent loses nothing.
#[test]
fn forks_under_load_are_one_instant() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", AGGRESSIVE);
    let at = store.start("main");
    oracle::install(&at);
    let load = Load::start(&at, None);
    assert!(load.advance(200), "the clients met an error");

    let mut windows: Vec<(String, Window)> = Vec::new();
    // At least eight, for the end below.
    for round in 0..rounds(24).max(8) {
        // At a different point of the checkpoints' rhythm each time.
        std::thread::sleep(Duration::from_millis(37 * (round as u64 % 8)));
        let name = format!("f{round}");
        // Now and then as it comes, without a checkpoint first: recovery in the fork then has the most to do.
        let mode = if round % 3 == 0 { "never" } else { "auto" };
        let (fork, window) = load.around(|| store.json(["fork", "main", &name, "--checkpoint", mode]));
        assert!(real(&fork, "stall_ms") <= real(&fork, "fork_ms"), "{fork}");
        assert!(load.advance(20), "the clients met an error after fork {round}");
        if round % 8 == 7 {
            // While the load goes on: a fork's start, writes and removal must not disturb the parent either.
            judge(&store, &name, &window);
            store.ok(["rm", &name]);
        } else {
            windows.push((name, window));
        }
    }
    let last = load.stop();
    let end = verify(&at, &last).unwrap_or_else(|v| panic!("the parent:{}", report(&v)));
    assert_eq!(end, last.acked);
    assert!(
        windows.iter().all(|(_, w)| w.acked.iter().sum::<u64>() < end.iter().sum()),
        "the load went on after each fork"
    );

    for (index, (name, window)) in windows.iter().enumerate() {
        judge(&store, name, window);
        if index % 2 == 0 {
            store.ok(["rm", name]);
        }
    }
    // A fork of a fork, and the parent of both gone.
    let (kept, window) = windows.iter().rev().nth(1).expect("some forks are left");
    let found = verify_running(&store, kept, window);
    store.ok(["fork", kept, "second"]);
    assert_eq!(
        verify(&at, &last).unwrap_or_else(|v| panic!("the parent after its forks' writes:{}", report(&v))),
        end
    );
    store.stop("main");
    Postgres::get().checksums(&store.path("main")).expect_ok();
    store.ok(["rm", "main"]);
    store.stop(kept);
    store.ok(["rm", kept]);
    let second = verify_running(&store, "second", &Window { acked: found.clone(), sent: found.clone() });
    assert_eq!(second, found);
    store.stop("second");
}

/// Starts a fork and lets the oracle judge it.
#[track_caller]
fn verify_running(store: &Store, name: &str, window: &Window) -> Counts {
    let at = store.start(name);
    verify(&at, window).unwrap_or_else(|v| panic!("{name}, window {window:?}:{}", report(&v)))
}

/// Start, verdict, writes of its own, stop, checksums. Leaves the fork stopped and as right as it was.
#[track_caller]
fn judge(store: &Store, name: &str, window: &Window) {
    let found = verify_running(store, name, window);
    let at = store.endpoint(name);
    own_writes(&at, name);
    let again =
        verify(&at, window).unwrap_or_else(|v| panic!("{name} after writes of its own:{}", report(&v)));
    assert_eq!(again, found, "{name}: its parent's later commits came through");
    store.stop(name);
    Postgres::get().checksums(&store.path(name)).expect_ok();
}

/// Rewrites every account and adds a table: pages of all kinds part from the parent's. The oracle's view stays the same.
#[track_caller]
fn own_writes(at: &Endpoint, name: &str) {
    let sql = Sql::connect(at, DATABASE).unwrap_or_else(|e| panic!("connect to {name}: {e}"));
    sql.run(&format!(
        "UPDATE account SET filler = repeat('{}', 150);
         CREATE TABLE own AS SELECT n, '{name}' AS name FROM generate_series(1, 2000) n;
         CREATE INDEX ON own (n);
         CHECKPOINT;",
        name.chars().last().unwrap_or('y')
    ))
    .unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(sql.value("SELECT min(name) || count(*) FROM own").expect("read back"), format!("{name}2000"));
}

/// Forks under load of a cluster without page checksums and without full page images: a page that a fork had caught half
/// written would stay so.
#[test]
fn forks_without_page_images() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create_without_checksums("main", AGGRESSIVE);
    let at = store.start_without_page_images("main");
    oracle::install(&at);
    let load = Load::start(&at, None);
    assert!(load.advance(200), "the clients met an error");
    for round in 0..rounds(6) {
        std::thread::sleep(Duration::from_millis(53 * (round as u64 % 7)));
        let name = format!("f{round}");
        let (_, window) = load.around(|| store.json(["fork", "main", &name, "--checkpoint", "never"]));
        assert!(load.advance(20), "the clients met an error after fork {round}");
        let at = store.start_without_page_images(&name);
        verify(&at, &window).unwrap_or_else(|v| panic!("{name}, window {window:?}:{}", report(&v)));
        store.ok(["rm", "--force", &name]);
    }
    let last = load.stop();
    verify(&at, &last).unwrap_or_else(|v| panic!("the parent:{}", report(&v)));
    store.stop("main");
}

/// Forks made at the same time by several users of one store.
#[test]
fn concurrent_forks() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", AGGRESSIVE);
    let at = store.start("main");
    oracle::install(&at);
    let load = Load::start(&at, None);
    assert!(load.advance(100), "the clients met an error");
    let daemon = store.daemon_pid();
    let results: Vec<(String, Window)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|n| {
                let (store, load) = (&store, &load);
                scope.spawn(move || {
                    let name = format!("at-once-{n}");
                    let ((), window) = load.around(|| drop(store.json(["fork", "main", &name])));
                    (name, window)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a fork")).collect()
    });
    load.stop();
    let mut ports = Vec::new();
    for (name, window) in &results {
        verify_running(&store, name, window);
        ports.push(store.endpoint(name).port);
    }
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), results.len(), "each running fork has a port of its own");
    results.iter().for_each(|(name, _)| store.stop(name));
    assert!(is_alive(daemon) && store.daemon_pid() == daemon, "one daemon served it all");
    store.stop("main");
}
