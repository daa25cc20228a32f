//! Sudden deaths under load: no acknowledged commit is lost, whoever dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use nix::sys::signal::Signal::SIGKILL;

use crate::common::check::check_store;
use crate::common::pg::{Endpoint, Postgres, children_with_title, kill_server};
use crate::common::process::{is_alive, signal, wait_until};
use crate::common::random::Random;
use crate::common::sql::Sql;
use crate::common::store::{AGGRESSIVE, Store, text};
use crate::common::{rounds, turn_on_a_mount};
use crate::oracle::{
    self, Churn, Clock, Counts, DATABASE, Kind, LAZY, Load, Window, presence, report, verify, verify_one_of,
};

/// Kills in the middle of a load, and gives the window that what is found afterwards must fit.
#[track_caller]
fn kill_under(load: Load, commits: u64, kill: impl FnOnce()) -> Window {
    assert!(load.advance(commits), "the clients met an error before the kill");
    kill();
    // Clients that wait for an answer from a dead server end with an error; those that had one before are counted.
    let (window, errors) = load.end();
    assert!(!errors.is_empty(), "the clients noticed nothing of the kill");
    window
}

/// A cluster with the oracle's tables, running.
#[track_caller]
fn cluster(config: &str) -> (Store, Endpoint) {
    let store = Store::new();
    store.create("main", config);
    let at = store.start("main");
    oracle::install(&at);
    (store, at)
}

/// `kill -9` of the daemon, several times. The next command mounts again, `start` recovers, and everything
/// acknowledged is there; a fork taken before the kill is as it was.
#[test]
fn kill_of_the_daemon() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let (store, at) = cluster(AGGRESSIVE);
    kill_the_daemon_again_and_again(&store, at, |name| store.start(name));
    store.stop("main");
    Postgres::get().checksums(&store.path("main")).expect_ok();
}

/// The same without page checksums and without full page images: nothing but the store's atomic blocks keeps pages
/// whole then.
#[test]
fn kill_of_the_daemon_without_page_images() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create_without_checksums("main", AGGRESSIVE);
    let at = store.start_without_page_images("main");
    oracle::install(&at);
    let sql = store.sql("main", "postgres");
    for setting in ["full_page_writes", "data_checksums", "wal_log_hints"] {
        let value = sql.value(&format!("SHOW {setting}")).expect("ask");
        assert_eq!(value, "off", "{setting}");
    }
    drop(sql);
    kill_the_daemon_again_and_again(&store, at, |name| store.start_without_page_images(name));
    store.stop("main");
}

#[track_caller]
fn kill_the_daemon_again_and_again(store: &Store, mut at: Endpoint, start: impl Fn(&str) -> Endpoint) {
    let mut done: Option<Counts> = None;
    let mut fork: Option<(String, Window)> = None;
    for round in 0..rounds(4) {
        let postmaster = store.postmaster("main").expect("a running server");
        let load = Load::start(&at, done.as_ref());
        assert!(load.advance(150 + 130 * (round as u64 % 8)), "the clients met an error before the kill");
        if round % 2 == 1 {
            // Durable as soon as it has returned, whatever happens next.
            let name = format!("before{round}");
            let (_, window) = load.around(|| store.json(["fork", "main", &name]));
            fork = Some((name, window));
        }
        let old = store.daemon_pid();
        store.kill_daemon();
        let (window, errors) = load.end();
        assert!(!errors.is_empty(), "round {round}: the clients noticed nothing of the kill");

        let state = store.show("main");
        assert_ne!(text(&state, "state"), "running", "no server outlives its file system: {state}");
        assert_ne!(store.daemon_pid(), old, "a new daemon serves");
        at = start("main");
        assert!(!is_alive(postmaster), "the old server is still there");
        done = Some(
            verify(&at, &window)
                .unwrap_or_else(|v| panic!("round {round}, window {window:?}:{}", report(&v))),
        );
        if let Some((name, window)) = fork.take() {
            let at = start(&name);
            verify(&at, &window).unwrap_or_else(|v| panic!("fork {name}, window {window:?}:{}", report(&v)));
            store.stop(&name);
            store.ok(["rm", &name]);
        }
    }
}

/// `kill -9` of the daemon while forks are made, started, stopped and removed: each of them is there as one instant, or
/// not at all. (`scripts/torture` does this for hours.)
#[test]
fn kill_of_the_daemon_while_it_forks() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let (store, mut at) = cluster(AGGRESSIVE);
    let mut done: Option<Counts> = None;
    for round in 0..rounds(3) {
        let load = Load::start(&at, done.as_ref());
        assert!(load.advance(100), "the clients met an error before the kill");
        let daemon = store.daemon_pid();
        let (stop, clock): (_, Clock) = (AtomicBool::new(false), Arc::new(|| 0));
        let churn = Churn { store: &store, load: &load, clock, prefix: format!("r{round}"), pause_ms: 1 };
        let attempts = std::thread::scope(|scope| {
            let worker = scope.spawn(|| churn.run(Random::new(round as u64), &stop));
            std::thread::sleep(Duration::from_millis(300 + 37 * (round as u64 % 11)));
            // In the middle of a command, mostly; the next one would bring up a new daemon.
            stop.store(true, SeqCst);
            signal(daemon, SIGKILL);
            wait_until("the daemon's end", || !is_alive(daemon));
            worker.join().expect("no fork panics")
        });
        let (window, _) = load.end();
        at = store.start("main");
        done = Some(
            verify(&at, &window)
                .unwrap_or_else(|v| panic!("round {round}, window {window:?}:{}", report(&v))),
        );
        let there = store.names();
        assert_eq!(presence(&attempts, u64::MAX, &there), Vec::<String>::new());
        // The last ones, and the one that the kill met if it is there.
        let judged = attempts.iter().rev().filter(|attempt| there.contains(&attempt.name));
        for attempt in judged.take(2) {
            let name = &attempt.name;
            if text(&store.show(name), "state") != "running" {
                store.start(name);
            }
            verify_one_of(&store.endpoint(name), &attempt.windows(u64::MAX))
                .unwrap_or_else(|why| panic!("fork {name}: {why}"));
            store.stop(name);
            Postgres::get().checksums(&store.path(name)).expect_ok();
        }
        for name in there.iter().filter(|name| *name != "main") {
            store.ok(["rm", "--force", name]);
        }
    }
    store.stop("main");
    Postgres::get().checksums(&store.path("main")).expect_ok();
    store.ok(["umount"]);
    assert_eq!(check_store(store.dir()), Vec::<String>::new());
}

/// The control for the test above: commits that PostgreSQL acknowledges before it writes them are lost by the same
/// kill, and the oracle says so.
#[test]
fn kill_of_the_daemon_with_early_acknowledgement_is_found() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let (store, mut at) = cluster(LAZY);
    let mut done: Option<Counts> = None;
    // One kill may find nothing unwritten: when all clients have come to where a transaction syncs a file of its own.
    let mut windows = Vec::new();
    let lost = (0..5).any(|_| {
        let window =
            kill_under(Load::start_acknowledged_early(&at, done.as_ref()), 300, || store.kill_daemon());
        at = store.start("main");
        let verified = verify(&at, &window);
        windows.push(window);
        match verified {
            Ok(counts) => {
                done = Some(counts);
                false
            }
            Err(violations) if violations.iter().any(|v| v.kind == Kind::Lost) => true,
            Err(violations) => panic!("nothing is lost, but: {}", report(&violations)),
        }
    });
    assert!(lost, "the early acknowledged commits are there each time, windows {windows:?}");
    store.stop("main");
}

/// `kill -9` of every process of the server, while the daemon lives on.
#[test]
fn kill_of_the_server() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let (store, mut at) = cluster(AGGRESSIVE);
    let daemon = store.daemon_pid();
    let mut done: Option<Counts> = None;
    for round in 0..rounds(2) {
        let window = kill_under(Load::start(&at, done.as_ref()), 300, || {
            let postmaster = store.postmaster("main").expect("a running server");
            // The first round takes the postmaster alone: its children notice, and only then may a new one begin.
            kill_server(postmaster, round > 0);
        });
        assert_eq!(text(&store.show("main"), "state"), "crashed");
        // A fork of the crashed cluster first: it has to recover just as its parent has.
        let name = format!("crashed{round}");
        store.ok(["fork", "main", &name]);
        at = store.start("main");
        done = Some(
            verify(&at, &window)
                .unwrap_or_else(|v| panic!("round {round}, window {window:?}:{}", report(&v))),
        );
        let fork = store.start(&name);
        assert_eq!(
            verify(&fork, &window).unwrap_or_else(|v| panic!("the fork, window {window:?}:{}", report(&v))),
            done.clone().unwrap_or_default()
        );
        store.stop(&name);
    }
    assert_eq!(store.daemon_pid(), daemon);
    store.stop("main");
    Postgres::get().checksums(&store.path("main")).expect_ok();
}

/// `kill -9` of one backend: the postmaster recovers by itself and has then lost its list of files to sync. A
/// checkpoint, then the daemon's death: what the checkpoint promised is there.
#[test]
fn kill_of_a_backend_then_of_the_daemon() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let (store, mut at) = cluster(AGGRESSIVE);
    let mut done: Option<Counts> = None;
    for round in 0..rounds(2) {
        let postmaster = store.postmaster("main").expect("a running server");
        let window = kill_under(Load::start(&at, done.as_ref()), 200, || {
            let backends = children_with_title(postmaster, &format!(" {DATABASE} "));
            signal(*backends.first().expect("a backend of the load"), SIGKILL);
            // Its end makes the postmaster end all others and start recovery.
            wait_until("the end of all backends", || !backends.iter().any(|pid| is_alive(*pid)));
        });
        assert!(is_alive(postmaster), "the postmaster outlives a backend");
        wait_until("the server's own recovery", || Sql::connect(&at, DATABASE).is_ok());
        let found = verify(&at, &window)
            .unwrap_or_else(|v| panic!("round {round}, window {window:?}:{}", report(&v)));
        let sql = Sql::connect(&at, DATABASE).expect("connect");
        sql.run("CHECKPOINT").expect("checkpoint");
        drop(sql);
        store.kill_daemon();
        at = store.start("main");
        let window = Window { acked: found.clone(), sent: found };
        done = Some(
            verify(&at, &window)
                .unwrap_or_else(|v| panic!("round {round}, after the daemon's death:{}", report(&v))),
        );
    }
    store.stop("main");
    Postgres::get().checksums(&store.path("main")).expect_ok();
}
