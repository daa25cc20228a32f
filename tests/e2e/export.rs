//! `export`: a fork becomes a plain data directory, which runs without pgcowfs and comes back in.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal::{SIGINT, SIGTERM};

use super::bad_input::{EXISTS, NOT_FOUND, USAGE, refuses};
use super::copies::tree;
use crate::common::disk::SmallDisk;
use crate::common::pg::{Endpoint, Postgres, owner};
use crate::common::plain::Plain;
use crate::common::process::{run, signal, wait_until};
use crate::common::store::{AGGRESSIVE, QUIET, Store};
use crate::common::{is_root, skipped, turn_on_a_mount};
use crate::e2e::lifecycle::psql;

/// What the plain server of an exported directory takes for a setting when it is simply started.
fn setting(dir: &Path, name: &str) -> String {
    run(Postgres::get().command("postgres").arg("-D").arg(dir).args(["-C", name]))
        .expect_ok()
        .trim()
        .to_owned()
}

/// The four sums that pgbench keeps equal.
fn sums(at: &Endpoint) -> BTreeSet<String> {
    let sql = "SELECT sum(abalance) FROM pgbench_accounts UNION ALL SELECT sum(tbalance) FROM pgbench_tellers \
               UNION ALL SELECT sum(bbalance) FROM pgbench_branches UNION ALL SELECT sum(delta) FROM pgbench_history";
    let found = Postgres::get().psql(at, "postgres", sql).expect_ok();
    found.lines().map(str::to_owned).collect()
}

/// Under load, it is one instant; it runs elsewhere by itself, and comes back.
#[test]
fn a_running_fork_goes_out_and_comes_back() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", AGGRESSIVE);
    store.start("main");
    store.pgbench("main", ["-i", "-s", "5", "-q"]);
    let at = store.endpoint("main");
    let out = store.scratch().subdir_of("out", owner());
    let pg = Postgres::get();
    let mut load = pg.client("pgbench", &at);
    load.args(["-n", "-c", "4", "-T", "600", "postgres"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut load = load.spawn().expect("start pgbench");
    let count = || pg.psql(&at, "postgres", "SELECT count(*) FROM pgbench_history").expect_ok();
    wait_until("some transactions", || count().trim().parse::<u64>().expect("a count") > 100);
    let dir = out.join("main");
    let done = store.json(["export", "main", &dir.display().to_string()]);
    assert_eq!((&done["recovers"], &done["fork"]), (&true.into(), &"main".into()), "{done}");
    signal(load.id(), SIGTERM);
    load.wait().expect("wait for pgbench");
    store.stop("main");

    // It stands for itself: nothing in its configuration leads back, and nobody else gets in.
    let mount = store.path("main");
    let mount = mount.parent().expect("the mount point").display().to_string();
    let store_dir = store.dir().display().to_string();
    for file in ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"] {
        let text = std::fs::read_to_string(dir.join(file)).expect("read");
        assert!(!text.contains(&mount) && !text.contains(&store_dir), "{file}: {text}");
        assert!(!text.contains("recovery_init_sync_method = 'syncfs'"), "{file}: {text}");
    }
    assert!(!dir.join("postmaster.opts").exists() && !dir.join("postmaster.pid").exists());
    assert_eq!((setting(&dir, "port").as_str(), setting(&dir, "full_page_writes").as_str()), ("5432", "on"));
    assert_eq!(setting(&dir, "recovery_init_sync_method"), "fsync");
    let sockets = setting(&dir, "unix_socket_directories");
    assert!(!sockets.contains(&store_dir), "{sockets}");
    let hba = std::fs::read_to_string(dir.join("pg_hba.conf")).expect("read");
    assert!(!hba.lines().any(|line| line.starts_with("local") && line.contains("trust")), "{hba}");
    let meta = std::fs::metadata(&dir).expect("stat");
    assert_eq!(meta.permissions().mode() & 0o7777, 0o700);
    if let Some((uid, gid)) = owner() {
        assert_eq!((meta.uid(), meta.gid()), (uid, gid));
    }
    let left: Vec<_> = std::fs::read_dir(&out).expect("list").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["main"]);

    // Its first start recovers it.
    let home = store.scratch().subdir_of("home-out", owner());
    let plain = Plain::over(&dir, &home);
    let at = plain.start();
    let found = sums(&at);
    assert!(found.len() == 1 && !found.contains(""), "the sums differ: {found:?}");
    pg.psql(&at, "postgres", "CREATE EXTENSION amcheck").expect_ok();
    pg.amcheck(&at, "postgres").expect_ok();
    let rows = "SELECT count(*), sum(hashtext(h::text)) FROM pgbench_history h";
    let rows_out = pg.psql(&at, "postgres", rows).expect_ok();
    plain.stop("fast");
    pg.checksums(&dir).expect_ok();

    store.ok(["create", "back", "--from", &dir.display().to_string()]);
    store.start("back");
    assert_eq!(psql(&store, "back", rows).trim(), rows_out.trim());
    store.stop("back");
    assert_eq!(store.names(), ["back", "main"]);
}

/// A stopped fork and a snapshot: byte by byte the same, and holes stay holes.
#[test]
fn a_stopped_fork_is_the_same_outside() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    psql(&store, "main", "CREATE TABLE t AS SELECT n, repeat('x', 100) f FROM generate_series(1, 20000) n");
    store.stop("main");
    let data = store.path("main");
    let sparse = std::fs::File::create(data.join("sparse")).expect("make a file");
    sparse.set_len(256 << 20).expect("make a hole");
    if let Some((uid, gid)) = owner() {
        std::os::unix::fs::chown(data.join("sparse"), Some(uid), Some(gid)).expect("chown");
    }
    let out = store.scratch().subdir_of("out", owner());
    let path = |name: &str| out.join(name).display().to_string();
    // An empty directory is as good as none.
    std::fs::create_dir(out.join("a")).expect("make a directory");
    let done = store.json(["export", "main", &path("a")]);
    assert_eq!((&done["recovers"], &done["snapshot"]), (&false.into(), &serde_json::Value::Null));
    let ours = ["postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf", "postgresql.conf", "postmaster.opts"];
    let of = |top: &Path| {
        let mut found = tree(top);
        // The times of directories are those of their making.
        found.retain(|name, what| {
            !ours.contains(&name.to_str().unwrap_or_default()) && !what.starts_with("directory")
        });
        found
    };
    let same = |a: &Path, b: &Path| {
        let (a, b) = (of(a), of(b));
        assert!(a.len() > 500, "a cluster has more files than that: {}", a.len());
        let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
        let differ: Vec<_> = names.into_iter().filter(|name| a.get(*name) != b.get(*name)).collect();
        assert!(differ.is_empty(), "{differ:?}");
    };
    same(&data, &out.join("a"));
    let blocks = std::fs::metadata(out.join("a/sparse")).expect("stat").blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks");

    store.ok(["snapshot", "main", "kept"]);
    store.start("main");
    psql(&store, "main", "DELETE FROM t");
    store.stop("main");
    store.ok(["export", "main@kept", &path("b")]);
    same(&out.join("a"), &out.join("b"));

    let sh = |args: &[&str]| store.run([&["export"], args].concat());
    for (args, code, words) in
        [(vec!["nobody", "/x"], NOT_FOUND, "nobody"), (vec!["main@none", "/x"], NOT_FOUND, "none")]
    {
        let done = sh(&args);
        assert!(done.code == code && done.stderr.contains(words), "{}", done.report());
    }
    std::fs::write(out.join("file"), "x").expect("write");
    let before = tree(&out);
    refuses(&store, &["export", "main", &path("a")], EXISTS, &["not empty", "hint"]);
    refuses(&store, &["export", "main", &path("file")], EXISTS, &["not a directory"]);
    refuses(&store, &["export", "main", &path("none/x")], NOT_FOUND, &["none"]);
    let inside = data.parent().expect("the mount").join("x").display().to_string();
    refuses(&store, &["export", "main", &inside], USAGE, &["forks"]);
    refuses(&store, &["export", "main", "/"], USAGE, &["name"]);
    if is_root() {
        let closed = store.scratch().subdir_of("closed", None);
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).expect("close it");
        let to = closed.join("x").display().to_string();
        refuses(&store, &["export", "main", &to], 6, &["cannot reach", "chmod"]);
        assert_eq!(std::fs::read_dir(&closed).expect("list").count(), 0);
    }
    assert_eq!(tree(&out), before);
}

/// Nothing half-made stays: when the disk is full, or when somebody has had enough.
#[test]
fn an_export_that_ends_early_leaves_nothing() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    let bytes = "CREATE TABLE t AS SELECT n, repeat('x', 1000) f FROM generate_series(1, 200000) n";
    psql(&store, "main", bytes);
    match SmallDisk::make(100) {
        Err(why) => skipped(&format!("the part with a full disk: {why}")),
        Ok(disk) => {
            let free = disk.free();
            let to = disk.join("main").display().to_string();
            refuses(&store, &["export", "main", &to], 8, &["No space left"]);
            assert!(
                !disk.join("main").exists() && disk.free() + (1 << 20) > free,
                "{} of {free}",
                disk.free()
            );
            let entries = std::fs::read_dir(disk.join("")).expect("list").flatten();
            assert_eq!(entries.map(|e| e.file_name()).collect::<Vec<_>>(), ["lost+found"]);
        }
    }
    let out = store.scratch().subdir_of("out", owner());
    for sent in [SIGINT, SIGTERM] {
        let to = out.join("main").display().to_string();
        let mut command = store.command(["export", "main", &to]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start it");
        wait_until("its beginning", || std::fs::read_dir(&out).expect("list").count() == 1);
        std::thread::sleep(Duration::from_millis(50));
        signal(child.id(), sent);
        let status = child.wait().expect("wait");
        assert!(!status.success(), "{sent}: {status}");
        assert_eq!(std::fs::read_dir(&out).expect("list").count(), 0);
        assert_eq!(store.names(), ["main"]);
    }
    store.ok(["export", "main", &out.join("main").display().to_string()]);
    store.stop("main");
    store.ok(["umount"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}
