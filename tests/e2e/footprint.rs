//! What a command leaves behind, tried on a throwaway fork: `footprint`.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::pg::Postgres;
use crate::common::process::{Done, run, signal, wait_until};
use crate::common::store::{QUIET, Store, number, real};
use crate::common::turn_on_a_mount;

fn filled() -> Store {
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    store
        .sql("main", "postgres")
        .run(
            "CREATE TABLE items (id int PRIMARY KEY, note text); CREATE TABLE calm (i int);
             INSERT INTO items SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i;
             INSERT INTO calm SELECT generate_series(1, 1000)",
        )
        .expect("fill");
    store.sql("main", "postgres").run("VACUUM").expect("settle hint bits");
    store
}

/// `footprint main OPTIONS --json -- sh -c SCRIPT`, where psql is in PATH.
fn footprint(store: &Store, options: &[&str], script: &str) -> Done {
    let args: Vec<&str> = [&["footprint", "main", "--json"], options, &["--", "sh", "-ec", script]].concat();
    let mut command = store.command(args);
    let psql = Postgres::get().command("psql");
    let dir = std::path::Path::new(psql.get_program())
        .parent()
        .expect("psql is in a directory")
        .display()
        .to_string();
    run(command.env("PATH", format!("{dir}:{}", std::env::var("PATH").unwrap_or_default())))
}

#[track_caller]
fn report(done: &Done) -> Value {
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {}", done.report()))
}

fn relation<'a>(report: &'a Value, name: &str) -> Option<&'a Value> {
    let rows = report["relations"].as_array().expect("relations");
    rows.iter().find(|row| row["name"] == name && row["fork"] == "main")
}

#[test]
fn a_command_is_measured_and_nothing_stays() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = filled();
    let before = store.listing();

    let done = footprint(&store, &[], "psql -qc \"update items set note = 'y' where id = 1\"");
    let said = report(&done);
    assert_eq!((done.code, said["exit_status"].as_i64()), (0, Some(0)), "{}", done.report());
    let items = relation(&said, "items").unwrap_or_else(|| panic!("no items in {said}"));
    assert!((1..=3).contains(&number(&items["pages"], "changed")) && items["new_files"] == false, "{items}");
    assert!(relation(&said, "calm").is_none(), "{said}");
    assert!((1..4 << 20).contains(&number(&said, "wal_bytes")), "{said}");
    assert!(real(&said, "time_ms") > 0.0 && said["lock_waits"]["samples"].as_u64() >= Some(1), "{said}");

    // A table that is written anew, with its index, is known as the same one.
    let done = footprint(&store, &[], "psql -qc 'alter table items alter id type bigint'");
    let said = report(&done);
    for name in ["items", "items_pkey"] {
        let anew = relation(&said, name).unwrap_or_else(|| panic!("no {name} in {said}"));
        assert!(anew["new_files"] == true && number(&anew["pages"], "added") > 40, "{anew}");
    }

    // Somebody waits for a lock.
    let script = "psql -qc 'begin; lock items; select pg_sleep(1.5)' & sleep 0.5
                  psql -qc 'select count(*) from items'; wait";
    // What the command prints does not get into the report.
    let said = report(&footprint(&store, &[], script));
    let longest = &said["lock_waits"]["longest"];
    assert!(real(longest, "wait_ms") > 100.0 && longest["mode"] == "AccessShareLock", "{said}");

    // The parent has seen nothing of it, and no fork is left.
    assert_eq!(store.listing(), before);
    assert_eq!(
        store
            .sql("main", "postgres")
            .value("SELECT note = repeat('x', 100) FROM items WHERE id = 1")
            .as_deref()
            .ok(),
        Some("t")
    );

    let done = run(&mut store.command(["footprint", "main", "--", "true"]));
    assert!(
        done.ok() && done.stdout.contains("pages written") && !done.stdout.contains('\x1b'),
        "{}",
        done.report()
    );
    store.stop("main");
}

#[test]
fn budgets_failures_and_interruptions() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = filled();
    let before = store.listing();
    let change = "psql -qc \"update items set note = 'y'\"";
    for (budget, what) in
        [(&["--max-pages", "10"][..], "pages written"), (&["--max-wal", "8kB"], "bytes of WAL")]
    {
        let done = footprint(&store, budget, change);
        assert_eq!(done.code, 10, "{}", done.report());
        let said = report(&done)["exceeded"].clone();
        assert!(said.as_array().expect("exceeded").len() == 1 && said.to_string().contains(what), "{said}");
        assert!(done.stderr.contains(what), "{}", done.report());
    }
    let done = footprint(&store, &["--max-pages", "100000", "--max-wal", "1GB", "--max-time", "600"], change);
    assert_eq!(done.code, 0, "{}", done.report());
    let waits = "psql -qc 'begin; lock items; select pg_sleep(1.5)' & sleep 0.5
                 psql -qc 'select count(*) from items'; wait";
    assert_eq!(footprint(&store, &["--max-lock-wait", "0.1"], waits).code, 10);
    // A command that takes too long is stopped.
    let done = footprint(&store, &["--max-time", "0.3"], "exec sleep 1000");
    assert_eq!(done.code, 10, "{}", done.report());
    assert_eq!(report(&done)["stopped"], true);
    // One that fails.
    let done = footprint(&store, &[], "exit 7");
    assert_eq!((done.code, report(&done)["exit_status"].as_i64()), (1, Some(7)), "{}", done.report());
    let done = run(&mut store.command(["footprint", "main", "--", "/nonexistent/program"]));
    assert_eq!(done.code, 3, "{}", done.report());
    assert_eq!(store.run(["footprint", "nobody", "--", "true"]).code, 3);

    // One that is interrupted.
    let mark = store.scratch().join("begun");
    let script = format!("echo > {}; exec sleep 1000", mark.display());
    let mut command = store.command(["footprint", "main", "--", "sh", "-ec", &script]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start");
    wait_until("the command's beginning", || mark.exists());
    signal(child.id(), Signal::SIGINT);
    assert_eq!(child.wait().expect("wait").code(), Some(1));
    assert_eq!(store.listing(), before);
    store.stop("main");
}
