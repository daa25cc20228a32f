//! Forks that are removed when their time is over.

use super::bad_input::{NOT_FOUND, STATE, USAGE, refuses};
use super::lifecycle::psql;
use super::run::{only, running_main};
use crate::common::process::{is_alive, wait_until};
use crate::common::store::{Store, text};
use crate::common::turn_on_a_mount;

fn log(store: &Store) -> String {
    std::fs::read_to_string(store.dir().join("daemon.log")).expect("read the log")
}

/// After its time, used or not; and after some time in which nobody was connected.
#[test]
fn forks_that_expire() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    let made = store.json(["fork", "main", "brief", "--ttl", "1h", "--idle", "2h"]);
    assert_eq!((made["expires_at"].is_string(), made["idle_s"].as_u64()), (true, Some(7200)), "{made}");
    for command in [&["show", "brief"][..], &["list"], &["tree"], &["expire", "brief"]] {
        let said = store.ok(command);
        assert!(said.contains("59 min") && said.contains("idle for 2 h"), "{command:?}: {said}");
    }
    // What is made from it has time without end.
    let child = store.json(["fork", "brief", "child"]);
    assert!(child["expires_at"].is_null() && child["idle_s"].is_null(), "{child}");
    let changed = store.json(["expire", "brief", "--idle", "3h"]);
    assert_eq!((&changed["expires_at"], changed["idle_s"].as_u64()), (&made["expires_at"], Some(10_800)));
    store.ok(["reset", "brief"]);
    assert_eq!(store.show("brief")["expires_at"], made["expires_at"], "a reset changes nothing about it");
    let off = store.json(["expire", "brief", "--off"]);
    assert!(off["expires_at"].is_null() && off["idle_s"].is_null(), "{off}");
    assert!(store.ok(["expire", "brief"]).contains("stays"));

    // Somebody uses it, and it goes all the same.
    store.start("brief");
    let server = store.postmaster("brief").expect("it runs");
    let session = store.sql("brief", "postgres");
    store.ok(["snapshot", "brief", "one"]);
    store.ok(["expire", "brief", "--ttl", "1s"]);
    wait_until("its end", || store.names() == ["child", "main"]);
    assert!(session.value("SELECT 1").is_err() && !is_alive(server));
    only(&store, &["child", "main"]);
    let log_now = log(&store);
    let lines: Vec<&str> =
        log_now.lines().filter(|line| line.contains("WARN") && line.contains("brief")).collect();
    assert!(lines.iter().any(|line| line.contains("brief will be removed in")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("removing brief: its time is over")), "{lines:?}");

    // Nobody does.
    store.start("child");
    let session = store.sql("child", "postgres");
    store.ok(["expire", "child", "--idle", "1s"]);
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_secs(4) {
        assert_eq!(session.value("SELECT n FROM t").expect("it is used"), "1");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    drop(session);
    wait_until("its end", || store.names() == ["main"]);
    assert!(log(&store).contains("removing child: nobody has been connected to it for"), "{}", log(&store));
    only(&store, &["main"]);

    // While no daemon runs nobody is there to do it; the next one is.
    store.ok(["fork", "main", "late", "--ttl", "2s"]);
    store.ok(["umount", "--stop"]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    wait_until("its end", || store.names() == ["main"]);
    store.start("main");
    assert_eq!(psql(&store, "main", "SELECT n FROM t"), "1");
    store.stop("main");
    store.ok(["umount"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}

#[test]
fn bad_ends() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    store.ok(["fork", "main", "brief", "--ttl", "1h"]);
    store.ok(["protect", "main"]);
    for options in [["--ttl", "1h"], ["--idle", "1h"]] {
        let args = [&["expire", "main"], &options[..]].concat();
        refuses(&store, &args, STATE, &["main", "protected", "pgcowfs protect main --off"]);
    }
    refuses(&store, &["protect", "brief"], STATE, &["brief", "pgcowfs expire brief --off"]);
    refuses(&store, &["expire", "nobody", "--ttl", "1h"], NOT_FOUND, &["nobody"]);
    for time in ["", "soon", "0s", "-1h", "100y"] {
        refuses(&store, &["fork", "main", "new", &format!("--ttl={time}")], USAGE, &["--ttl"]);
        refuses(&store, &["expire", "brief", &format!("--idle={time}")], USAGE, &["--idle"]);
    }
    refuses(&store, &["expire", "brief", "--off", "--ttl", "1h"], USAGE, &["--off"]);
    assert!(text(&store.show("brief"), "expires_at").ends_with('Z'));
    store.stop("main");
}
