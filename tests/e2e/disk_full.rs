//! A full disk under the store: PostgreSQL gets "No space left on device" and nothing worse.

use std::path::Path;

use crate::common::disk::SmallDisk;
use crate::common::pg::Postgres;
use crate::common::sql::Sql;
use crate::common::store::{AGGRESSIVE, Store, text};
use crate::common::{skipped, turn_on_a_mount};
use crate::oracle::{self, DATABASE, Load, Window, report, verify};

/// The disk fills under load: statements fail with SQLSTATE 53100, what was acknowledged stays, and when there is
/// space again everything goes on with the same daemon.
#[test]
fn disk_full_under_load() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let disk = match SmallDisk::make(800) {
        Ok(disk) => disk,
        Err(why) => return skipped(&why),
    };
    // Space that someone else takes, and gives back later.
    let balloon = disk.join("balloon");
    inflate(&balloon, 250 << 20);
    let store = Store::at(&disk.join("store"));
    store.init();
    store.create("main", AGGRESSIVE);
    let at = store.start("main");
    oracle::install(&at);
    let daemon = store.daemon_pid();
    let load = Load::start(&at, None);
    assert!(load.advance(200), "the clients met an error before the disk was full");
    store.ok(["fork", "main", "early"]);

    // A table that grows until something gives way. Its owner or the clients get the news.
    let mut refusal = None;
    match Sql::connect(&at, DATABASE) {
        Ok(sql) => {
            let _ = sql
                .run("CREATE TABLE filler (n int, t text); ALTER TABLE filler ALTER t SET STORAGE EXTERNAL");
            for _ in 0..200 {
                if let Err(error) =
                    sql.run("INSERT INTO filler SELECT n, repeat('f', 7000) FROM generate_series(1, 1000) n")
                {
                    refusal = Some(error);
                    break;
                }
            }
        }
        Err(error) => refusal = Some(error),
    }
    let refusal = refusal.expect("1.4 GB went into a disk of 0.8 GB");
    let (window, errors) = load.end();
    let log = server_log(&store, "main");
    // The statement's own error, or, when WAL could not be extended, the server's last words: PostgreSQL stops itself then.
    let told = refusal.state.as_deref() == Some("53100")
        || errors.iter().any(|e| e.state.as_deref() == Some("53100"));
    assert!(
        told || log.contains("No space left on device"),
        "nobody was told the reason: {refusal}; {errors:?}\n{log}"
    );
    assert!(
        !log.contains("could not fsync") && !log.contains("Input/output error"),
        "an fsync failed for want of space:\n{log}"
    );
    assert_eq!(store.daemon_pid(), daemon, "the daemon is the same");
    // Forks can still be listed, and go away.
    store.ok(["rm", "early"]);

    std::fs::remove_file(&balloon).expect("give space back");
    assert!(disk.free() > 100 << 20, "there is space again");
    let at = store.endpoint("main");
    // It may still recover by itself, or give that up because the disk was full when it tried.
    crate::common::process::wait_until("the server's recovery", || {
        if text(&store.show("main"), "state") != "running" {
            store.run(["start", "main"]);
        }
        Sql::connect(&at, DATABASE).is_ok()
    });
    // No statement came through by halves. Then the table goes: checking it would write hints on all its pages, and
    // fill the disk again.
    let sql = Sql::connect(&at, DATABASE).expect("connect");
    let rows = sql.number("SELECT count(*) FROM filler").expect("count the rows");
    assert!(rows > 0 && rows.is_multiple_of(1000), "{rows} rows");
    sql.run("DROP TABLE filler").expect("drop the table");
    sql.run("CHECKPOINT").expect("a checkpoint");
    drop(sql);
    let found = verify(&at, &window)
        .unwrap_or_else(|v| panic!("after the disk was full, window {window:?}:{}", report(&v)));

    // And on: more commits, a fork, checksums, with the daemon that lived through it.
    let load = Load::start(&at, Some(&found));
    assert!(load.advance(200), "the clients met an error after space was given back");
    let ((), during) = load.around(|| drop(store.json(["fork", "main", "late", "--checkpoint", "always"])));
    let last = load.stop();
    verify(&at, &last).unwrap_or_else(|v| panic!("at the end:{}", report(&v)));
    let late = store.start("late");
    verify(&late, &Window { acked: during.acked, sent: during.sent })
        .unwrap_or_else(|v| panic!("the fork:{}", report(&v)));
    store.stop("late");
    store.stop("main");
    Postgres::get().checksums(&store.path("main")).expect_ok();
    assert_eq!(store.daemon_pid(), daemon);
}

/// A fork's quota: its statements fail with SQLSTATE 53100, its parent does not notice, and once the quota is raised
/// it goes on with the same server.
#[test]
fn a_quota_stops_one_fork_only() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    // WAL stays below the quota, so that it is a table that meets it.
    store.create("main", "max_wal_size = 32MB\nmin_wal_size = 32MB");
    store.ok(["fork", "main", "bound", "--quota", "160MB"]);
    let at = store.start("bound");
    let pid = store.show("bound")["pid"].clone();
    assert_eq!(store.show("bound")["quota_bytes"], 160 << 20);
    assert!(store.show("main")["quota_bytes"].is_null(), "the parent has none");
    let sql = Sql::connect(&at, "postgres").expect("connect");
    // Unlogged: no WAL for its rows, which could end the server instead.
    sql.run("CREATE UNLOGGED TABLE filler (n int, t text); ALTER TABLE filler ALTER t SET STORAGE EXTERNAL")
        .expect("make a table");
    let insert = "INSERT INTO filler SELECT n, repeat('f', 7000) FROM generate_series(1, 1000) n";
    let refusal = (0..100).find_map(|_| sql.run(insert).err()).expect("0.7 GB went into a quota of 160 MB");
    assert_eq!(refusal.state.as_deref(), Some("53100"), "{refusal}");
    let row = store.show("bound");
    let used = row["used_bytes"].as_u64().expect("a number");
    assert!(used > 100 << 20 && used <= 160 << 20, "{used} bytes");
    // What statfs says of the fork's directory, any program can have.
    let rest = nix::sys::statvfs::statvfs(&store.path("bound")).expect("statvfs");
    assert!(rest.blocks() * rest.fragment_size() == 160 << 20, "the quota is the size");
    assert!(rest.blocks_available() * rest.fragment_size() < 64 << 20, "{used} bytes are used");

    store.ok(["quota", "bound", "none"]);
    for _ in 0..30 {
        sql.run(insert).expect("without a quota it goes on");
    }
    sql.run("CHECKPOINT").expect("a checkpoint");
    let rows = sql.number("SELECT count(*) FROM filler").expect("count");
    assert!(rows >= 30_000 && rows.is_multiple_of(1000), "{rows} rows");
    assert_eq!(store.show("bound")["pid"], pid, "the server is the same");
    drop(sql);
    store.stop("bound");
}

/// A store cannot be made, nor a fork created, on a disk without space: refused, and no half store is left.
#[test]
fn no_space_from_the_start() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let disk = match SmallDisk::make(40) {
        Ok(disk) => disk,
        Err(why) => return skipped(&why),
    };
    let store = Store::at(&disk.join("store"));
    store.init();
    // A cluster is 40 MB and does not fit.
    let done = store.run(["create", "main"]);
    assert!(!done.ok() && done.code != 101, "{}", done.report());
    assert!(
        done.stderr.contains("No space left") || done.stderr.to_lowercase().contains("space"),
        "{}",
        done.report()
    );
    assert!(store.listing().is_empty(), "half a cluster is left: {:?}", store.listing());
}

/// Takes space that is really allocated.
fn inflate(file: &Path, bytes: i64) {
    let open = std::fs::File::create(file).expect("make the balloon");
    nix::fcntl::posix_fallocate(&open, 0, bytes).expect("take space");
}

/// What the server of a fork logged, wherever the product puts it.
fn server_log(store: &Store, name: &str) -> String {
    let mut log = String::new();
    for dir in [
        store.dir().to_owned(),
        store.dir().join("log"),
        store.dir().join("logs"),
        store.path(name).join("log"),
        store.path(name),
    ] {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|ext| ext == "log") {
                log.push_str(&std::fs::read_to_string(entry.path()).unwrap_or_default());
            }
        }
    }
    log
}
