//! A full disk under the store: PostgreSQL gets "No space left on device" and nothing worse.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::disk::SmallDisk;
use crate::common::pg::{Endpoint, Postgres};
use crate::common::process::wait_until;
use crate::common::random::Random;
use crate::common::sql::Sql;
use crate::common::store::{AGGRESSIVE, Store, text};
use crate::common::{rounds, skipped, turn_on_a_mount};
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
    let at = recovered(&store);
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

/// The server of `main`, with room again: it may still recover by itself, or have given that up because the disk was
/// full when it tried.
#[track_caller]
fn recovered(store: &Store) -> Endpoint {
    let at = store.endpoint("main");
    wait_until("the server's recovery", || {
        if text(&store.show("main"), "state") != "running" {
            store.run(["start", "main"]);
        }
        Sql::connect(&at, DATABASE).is_ok()
    });
    at
}

/// What a few rounds came to.
#[derive(Debug, Default)]
struct Sums {
    rounds: usize,
    commits: u64,
    errors_met: usize,
    disk_full: usize,
    server_stopped: usize,
    forks_made: usize,
    forks_refused: usize,
}

/// Rounds on one disk: the layers of a parent that is forked again and again are not merged, so that its store grows.
const ROUNDS_PER_DISK: usize = 4;

/// Somebody else's files take space and give it back, by amounts and at moments that are left to chance, while a server
/// works and forks come and go. Now and then they take even what the store keeps back for itself. Whatever fails then,
/// each time that there is room again all acknowledged commits are there, the store is whole, and the daemon is the
/// one that it was.
///
/// `PGCOWFS_TEST_ROUNDS` sets the number of rounds, `PGCOWFS_TEST_SEED` another sequence.
#[test]
fn full_at_random_moments() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let seed = std::env::var("PGCOWFS_TEST_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let mut sums = Sums::default();
    let wanted = rounds(3);
    while sums.rounds < wanted {
        let disk = match SmallDisk::make(800) {
            Ok(disk) => disk,
            Err(why) => return skipped(&why),
        };
        rounds_on(&disk, seed, wanted, &mut sums);
    }
    println!("seed {seed}: {sums:?}");
    assert!(wanted < 10 || sums.disk_full > 0 && sums.forks_made > 0, "nothing of that happened: {sums:?}");
}

fn rounds_on(disk: &SmallDisk, seed: u64, wanted: usize, sums: &mut Sums) {
    let store = Store::at(&disk.join("store"));
    store.init();
    store.create("main", AGGRESSIVE);
    let mut at = store.start("main");
    oracle::install(&at);
    let daemon = store.daemon_pid();
    let mut found = vec![0; oracle::CLIENTS];
    for _ in 0..ROUNDS_PER_DISK.min(wanted - sums.rounds) {
        let round = sums.rounds;
        let mut random = Random::part(seed, round as u64);
        let postmaster = store.postmaster("main");
        let load = Load::start(&at, Some(&found));
        let stop = AtomicBool::new(false);
        let forks_seed = random.number();
        let (made, refused) = std::thread::scope(|scope| {
            let forks = scope.spawn(|| come_and_go(&store, &load, forks_seed, &stop));
            for _ in 0..random.between(1, 5) {
                std::thread::sleep(Duration::from_millis(random.below(400)));
                squeeze(disk, some_room(&mut random));
                std::thread::sleep(Duration::from_millis(random.below(1000)));
                release(disk);
            }
            stop.store(true, Ordering::Relaxed);
            forks.join().expect("the thread that makes forks")
        });
        let (window, errors) = load.end();
        at = recovered(&store);
        sums.rounds += 1;
        sums.forks_made += made.len();
        sums.forks_refused += refused;
        sums.server_stopped += usize::from(store.postmaster("main") != postmaster);
        sums.errors_met += usize::from(!errors.is_empty());
        sums.disk_full += usize::from(errors.iter().any(|e| e.state.as_deref() == Some("53100")));
        let context = || format!("seed {seed}, round {round}, window {window:?}, {errors:?}");
        let before: u64 = found.iter().sum();
        found = verify(&at, &window).unwrap_or_else(|v| panic!("{}:{}", context(), report(&v)));
        sums.commits += found.iter().sum::<u64>() - before;
        assert_eq!(store.daemon_pid(), daemon, "{}: the daemon is the same", context());
        // The forks: those whose command succeeded and that were not removed are there, and the last one is judged.
        let names = store.names();
        let there: Vec<_> = made.iter().filter(|fork| !fork.removed).collect();
        for fork in &there {
            assert!(names.contains(&fork.name), "{}: {} is not there: {names:?}", context(), fork.name);
        }
        if let Some(fork) = there.last() {
            let at = store.start(&fork.name);
            verify(&at, &fork.window)
                .unwrap_or_else(|v| panic!("{}: {}:{}", context(), fork.name, report(&v)));
            store.stop(&fork.name);
        }
        for name in names.iter().filter(|name| *name != "main") {
            store.ok(["rm", name]);
        }
        let done = store.run(["scrub"]);
        assert!(done.ok(), "{}: {}", context(), done.report());
    }
    store.stop("main");
    Postgres::get().checksums(&store.path("main")).expect_ok();
}

/// How much the others leave: nothing, some of the store's reserve of 64 MiB, or little more than that.
fn some_room(random: &mut Random) -> u64 {
    const MIB: u64 = 1 << 20;
    match random.below(5) {
        0 => 0,
        1 => random.below(8 * MIB),
        2 => random.below(64 * MIB),
        3 => random.between(64 * MIB, 68 * MIB),
        _ => random.between(64 * MIB, 160 * MIB),
    }
}

/// Takes all space but so many bytes.
fn squeeze(disk: &SmallDisk, leave: u64) {
    let file = std::fs::File::create(disk.join("filler")).expect("make the filler");
    // What is free changes at the same time, so that it takes more than one attempt.
    for _ in 0..20 {
        let have = file.metadata().expect("its size").len();
        let take = disk.free().saturating_sub(leave);
        if take == 0 {
            return;
        }
        let end = |len: u64| i64::try_from(len).expect("a small disk");
        match nix::fcntl::posix_fallocate(&file, end(have), end(take)) {
            Ok(()) | Err(nix::errno::Errno::ENOSPC) => {}
            Err(e) => panic!("take space: {e}"),
        }
    }
}

/// Gives it back.
fn release(disk: &SmallDisk) {
    std::fs::remove_file(disk.join("filler")).expect("remove the filler");
}

/// A fork that was made while space came and went.
struct Made {
    name: String,
    /// What it may hold.
    window: Window,
    removed: bool,
}

/// Makes forks and removes them until told to stop. A command may be refused for want of space, and for nothing else.
/// Returns the forks, and how many were refused.
fn come_and_go(store: &Store, load: &Load, seed: u64, stop: &AtomicBool) -> (Vec<Made>, usize) {
    const STORAGE: i32 = 8;
    let mut random = Random::new(seed);
    let (mut made, mut refused): (Vec<Made>, _) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(random.below(600)));
        let some = random.below(made.len() as u64 * 2) as usize;
        if let Some(fork) = made.get_mut(some).filter(|fork| !fork.removed) {
            let done = store.run(["rm", &fork.name]);
            assert!(done.ok() || done.code == STORAGE, "{}", done.report());
            fork.removed = true;
            continue;
        }
        let name = format!("fork{}", made.len() + refused);
        let (done, window) = load.around(|| store.run(["fork", "main", &name]));
        assert!(done.ok() || done.code == STORAGE, "{}", done.report());
        match done.ok() {
            true => made.push(Made { name, window, removed: false }),
            false => refused += 1,
        }
    }
    (made, refused)
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
