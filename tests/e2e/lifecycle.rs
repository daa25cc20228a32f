//! What a user does by hand, command by command.

use crate::common::pg::Postgres;
use crate::common::process::{is_alive, run};
use crate::common::scratch::mount_type;
use crate::common::store::{QUIET, Store, number, text};
use crate::common::{ordinary_users_mount, turn_on_a_mount};

/// create, start, psql, fork of a running parent, independence, stop and start, fork of a fork of a fork, removal of
/// each parent before its children.
#[test]
fn a_family_of_forks() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    family(&Store::new());
}

/// The same as an ordinary user, through `fusermount3`.
#[test]
fn a_family_of_forks_as_an_ordinary_user() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    if !ordinary_users_mount() {
        return;
    }
    family(&Store::new_unprivileged());
}

fn family(store: &Store) {
    store.create("main", QUIET);
    let show = store.show("main");
    assert_eq!(text(&show, "state"), "stopped");
    assert!(show["parent"].is_null(), "a root fork has no parent: {show}");
    assert_eq!(
        text(&show, "pg_version").split('.').next(),
        Some(Postgres::get().major().to_string().as_str())
    );
    assert!(text(&show, "created_at").contains('T'), "RFC 3339: {show}");
    assert!(mount_type(&store.path("main")).starts_with("fuse"), "the data directory is on the mount");
    assert_eq!(store.path("main").to_str(), Some(text(&show, "pgdata")));

    store.start("main");
    assert_eq!(text(&store.show("main"), "state"), "running");
    psql(store, "main", "CREATE TABLE t (who text PRIMARY KEY, n int); INSERT INTO t VALUES ('main', 1)");

    let child = store.json(["fork", "main", "child"]);
    assert_eq!((text(&child, "name"), text(&child, "parent")), ("child", "main"));
    assert!(
        child["fork_ms"].is_number() && child["stall_ms"].is_number() && child["map_bytes"].is_number(),
        "{child}"
    );
    store.start("child");
    assert_eq!(psql(store, "child", "SELECT string_agg(who, ',') FROM t"), "main");

    // Each changes the same row its own way, and neither sees the other.
    psql(store, "main", "UPDATE t SET n = 2");
    psql(store, "child", "UPDATE t SET n = 3; INSERT INTO t VALUES ('child', 1)");
    assert_eq!(psql(store, "main", "SELECT string_agg(who || n, ',' ORDER BY who) FROM t"), "main2");
    assert_eq!(psql(store, "child", "SELECT string_agg(who || n, ',' ORDER BY who) FROM t"), "child1,main3");

    // The address stays over a restart.
    let before = store.show("child");
    store.stop("child");
    assert_eq!(text(&store.show("child"), "state"), "stopped");
    store.start("child");
    let after = store.show("child");
    assert_eq!(
        (before["port"].as_u64(), before["url"].as_str()),
        (after["port"].as_u64(), after["url"].as_str())
    );
    assert_ne!(number(&after, "port"), number(&store.show("main"), "port"));
    assert_eq!(store.ok(["url", "child"]).lines().next().unwrap_or("").trim(), text(&after, "url"));

    // A fork of a fork of a fork, the last of a stopped parent.
    let grandchild = store.json(["fork", "child", "grandchild"]);
    store.start("grandchild");
    psql(store, "grandchild", "INSERT INTO t VALUES ('grandchild', 1)");
    store.stop("grandchild");
    let great = store.json(["fork", "grandchild", "great"]);
    store.start("great");
    assert_eq!(
        psql(store, "great", "SELECT string_agg(who, ',' ORDER BY who) FROM t"),
        "child,grandchild,main"
    );
    // Each fork is one layer above what it was made from; the parent goes on in a layer of its own, too.
    let depths: Vec<u64> = [&child, &grandchild, &great].map(|fork| number(fork, "depth")).to_vec();
    assert_eq!(depths, [2, 3, 4], "depth at the time of the fork");
    let depths: Vec<u64> =
        ["main", "child", "grandchild", "great"].map(|name| number(&store.show(name), "depth")).to_vec();
    assert_eq!(depths, [2, 3, 4, 4], "depth after it");

    // Parents go before their children, who neither stop nor lose anything.
    for name in ["main", "child"] {
        store.stop(name);
        store.ok(["rm", name]);
    }
    store.ok(["rm", "grandchild"]);
    assert_eq!(store.listing().len(), 1, "only the youngest is left: {:?}", store.listing());
    assert_eq!(
        psql(store, "great", "SELECT string_agg(who, ',' ORDER BY who) FROM t"),
        "child,grandchild,main"
    );
    store.stop("great");
    Postgres::get().checksums(&store.path("great")).expect_ok();
    store.start("great");
    assert_eq!(psql(store, "great", "SELECT count(*) FROM t"), "3");
    store.stop("great");
    store.ok(["rm", "great"]);
    assert!(store.listing().is_empty());
}

/// `psql NAME -- -c SQL` through the product.
#[track_caller]
pub fn psql(store: &Store, name: &str, sql: &str) -> String {
    store.ok(["psql", name, "--", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]).trim_end().to_owned()
}

/// A fork is not its parent: what it must not inherit is gone before any server starts in it, so that a plain
/// `pg_ctl` is safe as well.
#[test]
fn a_fork_started_by_pg_ctl() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    // `create` has switched all of this off, as `fork` does; somebody wants it for this cluster.
    let sql = store.sql("main", "postgres");
    for setting in [
        "archive_mode = on",
        "archive_command = 'false'",
        "wal_level = logical",
        "max_logical_replication_workers = 4",
        "primary_conninfo = 'host=192.0.2.1'",
        "primary_slot_name = 'parent_slot'",
    ] {
        sql.run(&format!("ALTER SYSTEM SET {setting}")).expect("change a setting");
    }
    drop(sql);
    store.ok(["restart", "main"]);
    let sql = store.sql("main", "postgres");
    sql.run("SELECT pg_create_physical_replication_slot('kept', true)").expect("make a slot");
    assert_eq!(sql.value("SHOW archive_mode").expect("ask"), "on", "the parent does archive");
    store.ok(["fork", "main", "child"]);
    let data = store.path("child");
    assert!(store.path("main").join("postmaster.pid").exists(), "the parent runs");
    assert!(!data.join("postmaster.pid").exists(), "the fork believes that it runs");

    let pg = Postgres::get();
    let log = store.scratch().subdir_of("log", crate::common::pg::owner()).join("server.log");
    let started = run(pg.command("pg_ctl").args(["start", "-w", "-s", "-D"]).arg(&data).arg("-l").arg(&log));
    assert!(started.ok(), "{}\n{}", started.report(), std::fs::read_to_string(&log).unwrap_or_default());
    let sql = store.sql("child", "postgres");
    for (setting, want) in [
        ("archive_mode", "off"),
        ("archive_command", "(disabled)"),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("max_logical_replication_workers", "0"),
    ] {
        assert_eq!(sql.value(&format!("SHOW {setting}")).expect("ask"), want, "{setting}");
    }
    assert_eq!(
        sql.number("SELECT count(*) FROM pg_replication_slots").expect("ask"),
        0,
        "the parent's slots"
    );
    assert_eq!(
        store.sql("main", "postgres").number("SELECT count(*) FROM pg_replication_slots").expect("ask"),
        1
    );
    assert_eq!(text(&store.show("child"), "state"), "running", "also one that pg_ctl started");
    drop(sql);
    run(pg.command("pg_ctl").args(["stop", "-w", "-s", "-m", "fast", "-D"]).arg(&data)).expect_ok();
    assert_eq!(text(&store.show("child"), "state"), "stopped");
}

/// umount ends the daemon and the mount; everything is there again afterwards. SIGTERM does the same.
#[test]
fn unmount_and_mount() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    psql(&store, "main", "CREATE TABLE t AS SELECT 42 AS n");
    store.stop("main");
    let mountpoint = std::path::PathBuf::from(text(&store.status(), "mountpoint"));
    for round in 0..2 {
        let before = store.listing();
        let daemon = store.daemon_pid();
        if round == 0 {
            store.ok(["umount"]);
        } else {
            crate::common::process::signal(daemon, nix::sys::signal::Signal::SIGTERM);
        }
        crate::common::process::wait_until("the daemon's end", || !is_alive(daemon));
        assert!(!Store::is_mounted(&mountpoint), "still mounted, round {round}");
        assert_eq!(store.listing(), before, "round {round}");
        store.start("main");
        assert_eq!(psql(&store, "main", "SELECT n FROM t"), "42");
        assert!(Store::is_mounted(&mountpoint));
        store.stop("main");
    }
    let status = store.status();
    for field in ["forks", "layers", "map_entries", "map_memory_bytes", "store_bytes"] {
        assert!(number(&status, field) > 0, "{field}: {status}");
    }
    assert!(status["uptime_s"].is_number() && status["version"].is_string(), "{status}");
    assert_eq!(
        text(&status, "store"),
        std::fs::canonicalize(store.dir()).expect("path").to_str().expect("UTF-8")
    );
}

/// The limit for page tables is kept with the store; it cannot be changed while a daemon serves.
#[test]
fn a_limit_for_page_tables() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::bare(None);
    store.ok(["init"]);
    store.ok(["mount", "--map-memory", "48MB"]);
    let refused = store.run(["mount", "--map-memory", "64MB"]);
    assert!(!refused.ok() && refused.report().contains("pgcowfs umount"), "{}", refused.report());
    store.ok(["mount"]);
    store.ok(["umount"]);
    let settings = || std::fs::read_to_string(store.dir().join("config.json")).expect("read the settings");
    assert!(settings().contains("\"map_memory\": \"50331648B\""), "{}", settings());
    store.ok(["mount", "--mountpoint", store.scratch().join("elsewhere").to_str().expect("UTF-8")]);
    store.ok(["umount"]);
    assert!(settings().contains("50331648B"), "{}", settings());
}

/// `mount --foreground` serves until it is told to stop.
#[test]
fn mount_in_the_foreground() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    let mountpoint = std::path::PathBuf::from(text(&store.status(), "mountpoint"));
    store.ok(["umount"]);
    let mut child = store.command(["mount", "--foreground"]).spawn().expect("start the daemon");
    // It is mounted a moment before it listens.
    let runs = || text(&store.status(), "state") == "running";
    crate::common::process::wait_until("the daemon", || runs() || child.try_wait().expect("wait").is_some());
    assert!(Store::is_mounted(&mountpoint) && runs(), "the daemon ended early");
    assert_eq!(u64::from(child.id()), number(&store.status(), "pid"));
    crate::common::process::signal(child.id(), nix::sys::signal::Signal::SIGTERM);
    let status = child.wait().expect("wait for the daemon");
    assert!(status.success(), "SIGTERM is an ordinary end: {status}");
    assert!(!Store::is_mounted(&mountpoint));
}
