//! Standbys of a server outside of the store, and forks of them.

use std::path::Path;

use serde_json::Value;

use crate::common::pg::{Endpoint, Postgres, as_owner, owner};
use crate::common::plain::Plain;
use crate::common::process::{run, wait_until};
use crate::common::scratch::Scratch;
use crate::common::store::{Store, text};
use crate::common::turn_on_a_mount;
use crate::e2e::bad_input::{EXISTS, POSTGRES, STATE, USAGE, refused};
use crate::e2e::from_server::{url, value};

const SLOTS: &str =
    "SELECT coalesce(string_agg(slot_name || ' ' || active, ', '), '') FROM pg_replication_slots";

/// A server to follow.
fn production(scratch: &Scratch, config: &str) -> (Plain, Endpoint) {
    let production = Plain::create(scratch, "production", config);
    let at = production.start();
    value(&at, "CREATE TABLE t AS SELECT generate_series(1, 10000) n");
    (production, at)
}

/// What `show` says about whom a fork follows.
fn follows(store: &Store, fork: &str) -> Value {
    store.show(fork)["follows"].clone()
}

#[track_caller]
fn wait_for_state(store: &Store, fork: &str, wanted: &str) {
    wait_until(&format!("{fork} to be {wanted}"), || text(&follows(store, fork), "state") == wanted);
}

/// The standby has all that the server had.
#[track_caller]
fn catches_up(store: &Store, fork: &str, at: &Endpoint) {
    let there = value(at, "SELECT pg_current_wal_flush_lsn()");
    let standby = store.endpoint(fork);
    wait_until("the standby to catch up", || {
        value(&standby, &format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{there}', false)")) == "t"
    });
}

fn timeline(at: &Endpoint) -> u32 {
    let timeline = value(at, "SELECT timeline_id FROM pg_control_checkpoint()");
    timeline.parse().expect("a timeline")
}

/// A fork of a standby is a cluster of its own: it can be written to, on a timeline of its own, and knows nobody.
#[track_caller]
fn is_its_own(store: &Store, fork: &str, parent: &Endpoint) {
    let at = store.endpoint(fork);
    assert_eq!(value(&at, "SELECT pg_is_in_recovery()"), "f");
    assert!(timeline(&at) > timeline(parent), "{fork} is on its parent's timeline");
    value(&at, "INSERT INTO t VALUES (-1)");
    assert_eq!(value(&at, "SHOW archive_command"), "(disabled)");
    for name in ["primary_conninfo", "primary_slot_name"] {
        assert_eq!(value(&at, &format!("SHOW {name}")), "", "{name}");
    }
    assert_eq!(value(&at, "SELECT count(*) FROM pg_stat_wal_receiver"), "0");
    for name in ["standby.signal", "recovery.signal", "pgcowfs.pgpass"] {
        assert!(!store.path(fork).join(name).exists(), "{fork} has {name}");
    }
    let auto = std::fs::read_to_string(store.path(fork).join("postgresql.auto.conf")).expect("read");
    assert!(!auto.contains("until the new timeline") && !auto.contains("exit 1"), "{auto}");
    assert!(follows(store, fork).is_null());
}

/// The whole life of a standby.
#[test]
fn a_standby_and_its_forks() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let scratch = Scratch::new();
    let (production, at) = production(&scratch, "archive_mode = on\narchive_command = 'false'");
    let made = store.json(["create", "stage", "--follow", &url(&at)]);
    assert_eq!(text(&made, "state"), "running");
    assert_eq!(value(&at, SLOTS), "pgcowfs_stage true");
    catches_up(&store, "stage", &at);
    wait_for_state(&store, "stage", "streaming");
    wait_until("the standby to be up to date", || follows(&store, "stage")["lag_bytes"] == 0);
    let list = store.ok(["list"]);
    assert!(list.contains("follows, up to date"), "{list}");

    // It is a standby, and goes on to be one.
    let standby = store.endpoint("stage");
    assert_eq!(value(&standby, "SHOW transaction_read_only"), "on");
    store.ok(["stop", "stage"]);
    assert_eq!(text(&follows(&store, "stage"), "state"), "stopped");
    assert!(store.ok(["list"]).contains("follows when it runs"));
    store.ok(["rename", "stage", "staging"]);
    value(&at, "INSERT INTO t VALUES (10001)");
    store.ok(["start", "staging"]);
    catches_up(&store, "staging", &at);
    store.ok(["restart", "staging"]);
    catches_up(&store, "staging", &at);

    // Its forks, of what it is now and of what it was.
    store.ok(["snapshot", "staging", "before", "--max-lag", "1m"]);
    value(&at, "INSERT INTO t VALUES (10002)");
    catches_up(&store, "staging", &at);
    let forked =
        store.json(["fork", "staging", "dev", "--start", "--checkpoint", "always", "--max-lag", "1m"]);
    assert!(forked["warnings"].as_array().expect("warnings").is_empty(), "{forked}");
    store.ok(["fork", "staging@before", "then", "--start"]);
    for (fork, rows) in [("dev", "10002"), ("then", "10001")] {
        assert_eq!(value(&store.endpoint(fork), "SELECT count(*) FROM t"), rows, "{fork}");
        is_its_own(&store, fork, &at);
        // And so after a restart.
        store.ok(["restart", fork]);
        is_its_own(&store, fork, &at);
    }
    store.ok(["reset", "dev"]);
    is_its_own(&store, "dev", &at);
    assert_eq!(value(&store.endpoint("dev"), "SELECT count(*) FROM t"), "10003");
    store.ok(["reset", "then", "--to", "parent", "--max-lag", "1m"]);
    is_its_own(&store, "then", &at);
    // A fork of a fork is one as any other; one that was never started begins its own timeline.
    store.ok(["fork", "staging", "waits"]);
    store.ok(["fork", "waits", "child", "--start"]);
    is_its_own(&store, "child", &at);
    store.ok(["fork", "child", "grandchild", "--start"]);
    assert_eq!(timeline(&store.endpoint("grandchild")), timeline(&store.endpoint("child")));
    // By hand, too, and outside.
    by_pg_ctl(&scratch, &store.path("waits"));
    let exported = scratch.subdir_of("exported", owner()).join("data");
    store.ok(["export", "staging", exported.to_str().expect("a path")]);
    assert!(!exported.join("standby.signal").exists() && exported.join("recovery.signal").exists());
    by_pg_ctl(&scratch, &exported);

    // All that while the standby goes on.
    value(&at, "INSERT INTO t VALUES (10003)");
    catches_up(&store, "staging", &at);
    assert_eq!(value(&at, SLOTS), "pgcowfs_stage true");
    // The snapshot again: it is a standby, which catches up from there.
    store.ok(["reset", "staging", "--to", "before", "--force"]);
    catches_up(&store, "staging", &at);
    store.ok(["rm", "--force", "staging"]);
    assert_eq!(value(&at, SLOTS), "", "the slot is still there");
    assert_eq!(value(&store.endpoint("dev"), "SELECT count(*) FROM t WHERE n > 0"), "10002");
    drop(production);
}

/// A fork that somebody copies away before its first start, and starts by hand.
fn by_pg_ctl(scratch: &Scratch, from: &Path) {
    let home = scratch.subdir_of(&format!("away-{}", from.components().count()), owner());
    let copy = home.join("data");
    run(as_owner("cp").arg("-a").arg(from).arg(&copy)).expect_ok();
    let plain = Plain::over(&copy, &home).on_port(5991);
    let at = plain.start();
    // pg_ctl does not wait for the end of the recovery, before which nobody is let in.
    wait_until("the server to let somebody in", || Postgres::get().psql(&at, "postgres", "SELECT 1").ok());
    assert_eq!(value(&at, "SELECT pg_is_in_recovery()"), "f");
    assert!(timeline(&at) > 1);
    let auto = std::fs::read_to_string(copy.join("postgresql.auto.conf")).expect("read");
    assert!(!auto.contains("until the new timeline"), "{auto}");
    plain.stop("fast");
    plain.start();
}

/// Passwords are in no place where others look.
#[test]
fn a_standby_with_a_password() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let scratch = Scratch::new();
    let (production, at) = production(&scratch, "");
    value(&at, "ALTER ROLE postgres PASSWORD 'hush-hush'");
    let rules = "local all all scram-sha-256\nlocal replication all scram-sha-256\n";
    std::fs::write(production.pgdata().join("pg_hba.conf"), rules).expect("write pg_hba.conf");
    run(Postgres::get().command("pg_ctl").arg("reload").arg("-D").arg(production.pgdata())).expect_ok();
    wait_until("the server's new rules", || !Postgres::get().psql(&at, "postgres", "SELECT 1").ok());
    let at = Endpoint { password: Some("hush-hush".into()), ..at };
    let mut create = store.command(["create", "stage", "--follow", &url(&at)]);
    run(create.env("PGPASSWORD", "hush-hush")).expect_ok();
    let copied = store.path("stage");
    wait_until("the standby to stream", || value(&at, SLOTS) == "pgcowfs_stage true");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(copied.join("pgcowfs.pgpass")).expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!store.ok(["show", "stage", "--json"]).contains("hush-hush"));
    for process in std::fs::read_dir("/proc").expect("list processes").flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains("hush-hush"), "{}", process.path().display());
    }
    let done = run(store.command(["fork", "stage", "dev"]).env_remove("PGPASSWORD"));
    done.expect_ok();
    let holders = run(as_owner("grep").args(["-rl", "hush-hush"]).arg(store.path("dev")));
    assert_eq!(holders.stdout, "", "the fork has the password");
    // Later it needs nobody's environment, nor does the end.
    store.ok(["restart", "stage"]);
    wait_until("the standby to stream", || value(&at, SLOTS) == "pgcowfs_stage true");
    store.ok(["rm", "--force", "stage"]);
    assert_eq!(value(&at, SLOTS), "");
}

/// Standbys that cannot follow say so, and forks that must not be old are refused.
#[test]
fn broken_standbys() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let scratch = Scratch::new();
    let (production, at) = production(&scratch, "max_wal_size = 32MB\nmin_wal_size = 32MB");
    store.ok(["create", "stage", "--follow", &url(&at), "--slot", "mine"]);
    assert_eq!(value(&at, SLOTS), "mine true");
    let again = ["create", "other", "--follow", &url(&at), "--slot", "mine"];
    refused(&store.run(again), EXISTS, &["mine", "--slot"]);
    catches_up(&store, "stage", &at);

    // It is behind: nothing is replayed for a while.
    let standby = store.endpoint("stage");
    value(&standby, "SELECT pg_wal_replay_pause()");
    wait_until("the pause", || value(&standby, "SELECT pg_get_wal_replay_pause_state()") == "paused");
    value(&at, "INSERT INTO t SELECT generate_series(1, 1000)");
    wait_until("the lag to grow", || {
        let now = follows(&store, "stage");
        now["lag_bytes"].as_u64().is_some_and(|bytes| bytes > 0)
            && now["lag_s"].as_f64().is_some_and(|s| s > 2.0)
    });
    let late = store.run(["fork", "stage", "dev", "--max-lag", "1s"]);
    refused(&late, STATE, &["stage", "behind", "--max-lag"]);
    assert_eq!(store.names(), ["stage"]);
    refused(&store.run(["snapshot", "stage", "x", "--max-lag", "1s"]), STATE, &["behind"]);
    store.ok(["fork", "stage", "old", "--max-lag", "1h"]);
    value(&standby, "SELECT pg_wal_replay_resume()");
    catches_up(&store, "stage", &at);
    store.ok(["fork", "stage", "dev", "--max-lag", "1m"]);
    refused(&store.run(["fork", "dev", "x", "--max-lag", "1m"]), USAGE, &["follows no server"]);

    // The server is away.
    production.stop("fast");
    wait_for_state(&store, "stage", "broken");
    wait_until("the reason to be known", || {
        follows(&store, "stage")["reason"].as_str().is_some_and(|why| why.contains("connect"))
    });
    refused(&store.run(["fork", "stage", "x", "--max-lag", "1h"]), STATE, &["does not follow"]);
    let fork = store.json(["fork", "stage", "meanwhile", "--start"]);
    assert_eq!(text(&fork, "state"), "running");
    is_its_own_without_server(&store, "meanwhile");
    production.start();
    wait_for_state(&store, "stage", "streaming");
    assert!(follows(&store, "stage")["reason"].is_null());

    // Its slot is gone, and then its WAL.
    store.ok(["stop", "stage"]);
    value(&at, "SELECT pg_drop_replication_slot('mine')");
    store.ok(["start", "stage"]);
    wait_until("the reason to be known", || {
        let now = follows(&store, "stage");
        text(&now, "state") == "broken" && now["reason"].as_str().is_some_and(|why| why.contains("\"mine\""))
    });
    assert!(store.ok(["list"]).contains("does not follow"));
    store.ok(["rm", "--force", "stage"]);

    store.ok(["create", "loose", "--follow", &url(&at), "--no-slot"]);
    assert_eq!(value(&at, SLOTS), "");
    catches_up(&store, "loose", &at);
    store.ok(["stop", "loose"]);
    for _ in 0..4 {
        value(&at, "INSERT INTO t SELECT generate_series(1, 200000)");
        value(&at, "SELECT pg_switch_wal()");
        value(&at, "CHECKPOINT");
    }
    store.ok(["start", "loose"]);
    wait_until("the reason to be known", || {
        let now = follows(&store, "loose");
        now["reason"].as_str().is_some_and(|why| why.contains("already been removed"))
    });

    // A server that is away at the end: whoever removes the standby hears what is left.
    store.ok(["create", "last", "--follow", &url(&at)]);
    production.stop("fast");
    let done = store.run(["rm", "--force", "last"]);
    assert!(done.ok(), "{}", done.report());
    assert!(done.stderr.contains("pg_drop_replication_slot('pgcowfs_last')"), "{}", done.report());
    assert!(!store.names().contains(&"last".to_owned()));
    refused(&store.run(["create", "none", "--follow", &url(&at)]), POSTGRES, &["can be reached"]);
}

fn is_its_own_without_server(store: &Store, fork: &str) {
    let at = store.endpoint(fork);
    assert_eq!(value(&at, "SELECT pg_is_in_recovery()"), "f");
    value(&at, "INSERT INTO t VALUES (-2)");
}

/// A standby that cannot start is not made, and leaves no slot.
#[test]
fn a_standby_that_cannot_start() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let scratch = Scratch::new();
    let (_production, at) = production(&scratch, "");
    let create =
        ["create", "stage", "--follow", &url(&at), "--set", "shared_preload_libraries=no_such_library"];
    refused(&store.run(create), POSTGRES, &["did not start", "no_such_library"]);
    assert!(store.names().is_empty());
    assert_eq!(value(&at, SLOTS), "");
}

/// `--new-timeline` does for any fork what every fork of a standby has.
#[test]
fn a_new_timeline() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", "");
    let at = store.start("main");
    value(&at, "CREATE TABLE t AS SELECT generate_series(1, 1000) n");
    store.ok(["fork", "main", "same", "--start"]);
    assert_eq!(timeline(&store.endpoint("same")), timeline(&at), "the control");
    store.ok(["fork", "main", "own", "--start", "--new-timeline"]);
    is_its_own(&store, "own", &at);
    let first = timeline(&store.endpoint("own"));
    store.ok(["restart", "own"]);
    assert_eq!(timeline(&store.endpoint("own")), first, "one timeline, not one at each start");
    store.ok(["reset", "own"]);
    is_its_own(&store, "own", &at);
    // Of a parent that was shut down.
    store.ok(["stop", "main"]);
    store.ok(["fork", "main", "later", "--new-timeline", "--ephemeral", "--start"]);
    assert!(timeline(&store.endpoint("later")) > first - 1);
    let both = ["fork", "main", "x", "--new-timeline", "--keep-identity"];
    refused(&store.run(both), USAGE, &["--keep-identity"]);
    store.configure("main", "wal_level = minimal\nmax_wal_senders = 0");
    refused(&store.run(["fork", "main", "x", "--new-timeline"]), 7, &["wal_level=minimal"]);
}
