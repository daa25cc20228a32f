//! What `doctor` says of a machine and a store.

use serde_json::Value;

use crate::common::process::{run, wait_until};
use crate::common::store::{Store, text};
use crate::common::turn_on_a_mount;

#[track_caller]
fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// The report, and the exit code.
#[track_caller]
fn examine(store: &Store) -> (Value, i32) {
    let done = store.run(["doctor", "--json"]);
    let report: Value = serde_json::from_str(&done.stdout)
        .unwrap_or_else(|error| panic!("no JSON ({error}): {}", done.report()));
    // What is not in order comes with what to do about it.
    for check in report["checks"].as_array().expect("checks") {
        assert!(check["state"] == "ok" || check["mend"].is_string(), "{check}");
    }
    assert_eq!(report["ok"] == true, done.code == 0, "{}", done.report());
    (report, done.code)
}

#[test]
fn a_machine_that_works() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::bare(None);
    // Without a store.
    let (report, code) = examine(&store);
    assert_eq!((code, text(check(&report, "store"), "state")), (0, "note"), "{report}");
    assert!(text(check(&report, "store"), "mend").contains("pgcowfs init"));
    assert!(!store.dir().exists(), "it makes nothing");

    store.init();
    store.create("main", "");
    store.ok(["umount"]);
    let (report, code) = examine(&store);
    assert_eq!(code, 0, "{report}");
    assert!(text(check(&report, "mount point"), "found").ends_with("is not mounted"), "{report}");
    assert_eq!(text(&store.status(), "state"), "stopped", "it starts nothing");
    store.ok(["mount"]);
    let (report, _) = examine(&store);
    assert!(text(check(&report, "mount point"), "found").ends_with("is mounted"), "{report}");
    assert!(text(check(&report, "forks"), "found").starts_with("1 forks"), "{report}");
    for name in ["FUSE", "kernel", "open files", "PostgreSQL", "clock"] {
        assert_eq!(text(check(&report, name), "state"), "ok", "{report}");
    }
    let said = store.ok(["doctor"]);
    assert!(said.contains("PostgreSQL") && !said.contains('\x1b'), "{said}");
}

#[test]
fn what_is_in_the_way() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", "");
    // A mount that is left over.
    store.kill_daemon();
    // The kernel ends the mount when the last of its threads is gone.
    let mount = store.dir().join("mnt");
    wait_until("the mount's end", || std::fs::read_dir(&mount).is_err());
    let (report, code) = examine(&store);
    let stale = check(&report, "stale mounts");
    assert!(
        code == 0 && stale["state"] == "warning" && text(stale, "mend").contains("fusermount3 -uz"),
        "{report}"
    );
    store.ok(["umount"]);

    // Without PostgreSQL in sight nothing can be started; the hint says what to install. The usual places are looked
    // at as well, so this machine may have one there.
    let mut command = store.command(["doctor", "--json"]);
    let done = run(command.env("PATH", "/nonexistent"));
    let report: Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert!(["ok", "problem"].contains(&text(check(&report, "PostgreSQL"), "state")), "{report}");

    // A process that may open few files.
    let mut command = std::process::Command::new("prlimit");
    command.arg("--nofile=100:100").arg(store.command([""]).get_program());
    command.arg("--store").arg(store.dir()).arg("doctor");
    let done = run(&mut command);
    assert_eq!(done.code, 6, "{}", done.report());
    assert!(done.stdout.contains("problem") && done.stderr.contains("ulimit"), "{}", done.report());

    // A clock that was set back.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(7200);
    let log = std::fs::File::options().append(true).open(store.dir().join("daemon.log")).expect("the log");
    log.set_modified(later).expect("set its time");
    assert_eq!(check(&examine(&store).0, "clock")["state"], "warning");

    // A store that is none.
    let other = Store::bare(None);
    std::fs::create_dir_all(other.dir().join("x")).expect("a directory");
    let (report, code) = examine(&other);
    assert!(code == 6 && check(&report, "store")["state"] == "problem", "{report}");
}
