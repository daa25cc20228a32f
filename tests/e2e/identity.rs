//! A fork of production knows that it is not production: seen from the production server, and from outside of both.
//!
//! The server has all by which a fork could act in its name: it archives, a standby of it that commits wait for is
//! connected, it has slots, publishes, subscribes to another server, and has a tablespace elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;

use crate::common::pg::{Endpoint, Postgres, as_owner, owner};
use crate::common::plain::Plain;
use crate::common::process::{run, signal, wait_until};
use crate::common::scratch::Scratch;
use crate::common::sql::Sql;
use crate::common::store::Store;
use crate::common::turn_on_a_mount;
use crate::e2e::from_server::{url, value};

const SETTINGS: &str = "wal_level = logical\n\
    archive_mode = on\n\
    synchronous_standby_names = 'receiver'\n\
    primary_slot_name = 'of_another'\n\
    cron.launch_active_jobs = on\n\
    max_wal_size = 64MB\n\
    shared_buffers = 16MB\n";

struct World {
    production: Plain,
    at: Endpoint,
    publisher: Endpoint,
    archive: PathBuf,
    tablespace: PathBuf,
    receiver: Child,
    _publisher: Plain,
    scratch: Scratch,
}

impl World {
    fn new() -> World {
        let scratch = Scratch::new();
        let archive = scratch.subdir_of("archive", owner());
        let tablespace = scratch.subdir_of("tablespace", owner());
        let publisher = Plain::create(&scratch, "publisher", "wal_level = logical").on_port(5992);
        let from = publisher.start();
        value(&from, "CREATE TABLE news (n int); CREATE PUBLICATION news FOR TABLE news");

        // The archiver works in its data directory, whose name says whose it is.
        let command = format!("archive_command = 'echo %f >> {}/$(basename $(pwd))'", archive.display());
        let elsewhere = format!("primary_conninfo = 'host={} port=5992'", from.host.display());
        let settings = format!("{SETTINGS}{command}\n{elsewhere}\n");
        let production = Plain::create(&scratch, "production", &settings);
        let at = production.start();
        value(&at, "SELECT pg_create_physical_replication_slot('receiver')");
        let received = scratch.subdir_of("received", owner());
        let receiver = Postgres::get()
            .client("pg_receivewal", &at)
            .env("PGAPPNAME", "receiver")
            .args(["--synchronous", "--slot=receiver", "-D"])
            .arg(received)
            .stderr(Stdio::null())
            .spawn()
            .expect("start pg_receivewal");
        wait_until("the synchronous standby", || {
            value(&at, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1"
        });
        value(&at, "SELECT pg_create_logical_replication_slot('decoder', 'pgoutput')");
        Postgres::get()
            .psql(&at, "postgres", &format!("CREATE TABLESPACE outside LOCATION '{}'", tablespace.display()))
            .expect_ok();
        value(
            &at,
            "CREATE TABLE t TABLESPACE outside AS SELECT generate_series(1, 1000) n; CREATE TABLE news (n int)",
        );
        value(&at, "CREATE PUBLICATION everything FOR ALL TABLES");
        let subscribe = format!(
            "CREATE SUBSCRIPTION news CONNECTION 'host={} port=5992 user=postgres dbname=postgres' PUBLICATION news",
            from.host.display()
        );
        Postgres::get().psql(&at, "postgres", &subscribe).expect_ok();
        run(Postgres::get().client("pgbench", &at).args(["-i", "-q", "postgres"])).expect_ok();
        World {
            production,
            at,
            publisher: from,
            archive,
            tablespace,
            receiver,
            _publisher: publisher,
            scratch,
        }
    }

    /// Who has archived, by the name of the data directory.
    fn archivers(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.archive).expect("list the archive").flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Who reads what the other server publishes.
    fn readers_of_news(&self) -> String {
        value(&self.publisher, "SELECT count(*) FROM pg_stat_replication")
    }

    /// What production shows of replication.
    fn connected(&self) -> String {
        value(
            &self.at,
            "SELECT string_agg(slot_name || ' ' || active, ', ' ORDER BY slot_name) || '; ' || \
             (SELECT string_agg(application_name, ', ') FROM pg_stat_replication) || '; ' || \
             (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL) FROM pg_replication_slots",
        )
    }
}

impl Drop for World {
    fn drop(&mut self) {
        signal(self.receiver.id(), Signal::SIGKILL);
        let _ = self.receiver.wait();
    }
}

/// What is in a directory, byte by byte.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).expect("list a directory").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
            if kind.is_dir() {
                todo.push(path);
            } else if kind.is_file() {
                let bytes = std::fs::read(&path).expect("read a file");
                found.insert(path, bytes);
            }
        }
    }
    found
}

/// Has a fork do whatever could be seen outside.
fn act(store: &Store, fork: &str) {
    let at = store.endpoint(fork);
    value(&at, "INSERT INTO t SELECT generate_series(1, 1000)");
    value(&at, "SELECT pg_switch_wal()");
    value(&at, "CHECKPOINT");
    run(Postgres::get().client("pgbench", &at).args(["-c", "2", "-t", "50", "postgres"])).expect_ok();
    value(&at, "SELECT pg_switch_wal()");
}

#[test]
fn nothing_of_a_fork_reaches_production() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let world = World::new();
    let at = &world.at;
    let usual = "decoder false, receiver true; receiver; 1";
    wait_until("the subscription", || {
        world.connected() == usual
            && value(at, "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate = 'r'") == "1"
    });

    // Production as a directory, with its slots and all: no server of the store ever runs on this fork.
    let stopped = world.scratch.subdir_of("stopped", owner());
    world.production.stop("fast");
    run(as_owner("cp").arg("-aL").arg(world.production.pgdata()).arg(stopped.join("data"))).expect_ok();
    world.production.start();
    // The receiver connects again by itself.
    wait_until("production to be as before", || world.connected() == usual);
    let data = stopped.join("data");
    let links = std::fs::read_dir(data.join("pg_tblspc")).expect("list tablespaces").flatten().count();
    assert_eq!(links, 1);
    store.ok(["create", "original", "--keep-identity", "--from", data.to_str().expect("a path")]);

    // Under load, forks of all kinds.
    let load = Postgres::get()
        .client("pgbench", at)
        .args(["-c", "2", "-T", "600", "postgres"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut load = load.expect("start pgbench");
    store.ok(["create", "copied", "--from-server", &url(at)]);
    store.ok(["create", "stage", "--follow", &url(at)]);
    let forks = ["plain", "newline", "of-copied", "of-stage", "copied"];
    store.ok(["fork", "original", "plain", "--start"]);
    store.ok(["fork", "original", "newline", "--start", "--new-timeline"]);
    store.ok(["fork", "copied", "of-copied", "--start"]);
    store.ok(["fork", "stage", "of-stage", "--start"]);
    store.ok(["start", "copied"]);
    for fork in forks {
        act(&store, fork);
        let its = store.endpoint(fork);
        for (name, wanted) in [
            ("archive_mode", "off"),
            ("archive_command", "(disabled)"),
            ("primary_conninfo", ""),
            ("primary_slot_name", ""),
            ("synchronous_standby_names", ""),
            ("cron.launch_active_jobs", "off"),
            ("max_logical_replication_workers", "0"),
        ] {
            assert_eq!(value(&its, &format!("SHOW {name}")), wanted, "{name} of {fork}");
        }
        for query in [
            "SELECT count(*) FROM pg_replication_slots",
            "SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL",
        ] {
            assert_eq!(value(&its, query), "0", "{query} of {fork}");
        }
    }
    // Production sees its standby, and none of them.
    store.ok(["rm", "--force", "stage"]);
    assert_eq!(world.connected(), usual);
    assert_eq!(world.readers_of_news(), "1");
    signal(load.id(), Signal::SIGTERM);
    load.wait().expect("the end of pgbench");
    value(at, "SELECT pg_switch_wal()");
    wait_until("production to archive", || world.archivers() == ["data"]);

    // Production rests: whatever happens now is a fork's doing.
    value(at, "CHECKPOINT");
    world.production.stop("fast");
    let (archived, tables) = (contents(&world.archive), contents(&world.tablespace));
    let cluster = contents(world.production.pgdata());
    wait_until("the subscription's end", || world.readers_of_news() == "0");
    value(&world.publisher, "INSERT INTO news VALUES (1)");
    for fork in forks {
        act(&store, fork);
        assert_eq!(
            value(&store.endpoint(fork), "SELECT count(*) FROM news"),
            "0",
            "{fork} has read the news"
        );
    }
    assert_eq!(world.readers_of_news(), "0");
    assert!(contents(&world.archive) == archived, "a fork has archived: {:?}", world.archivers());
    assert!(contents(&world.tablespace) == tables, "a fork has written to production's tablespace");
    assert!(contents(world.production.pgdata()) == cluster, "a fork has written to production");

    control(&store, &world);
    assert!(contents(&world.tablespace) == tables);
    // And production goes on where it was.
    world.production.start();
    assert_eq!(value(at, "SELECT count(*) FROM t"), "1000");
}

/// A fork that keeps its identity does all of it: what the test looks at can be seen.
fn control(store: &Store, world: &World) {
    store.ok(["fork", "original", "control", "--keep-identity"]);
    let at = store.start("control");
    assert_eq!(value(&at, "SELECT count(*) FROM pg_replication_slots"), "2");
    assert_eq!(value(&at, "SHOW cron.launch_active_jobs"), "on");
    wait_until("the control to subscribe in production's place", || world.readers_of_news() == "1");
    wait_until("the control to read the news", || value(&at, "SELECT count(*) FROM news") == "1");
    // It waits for production's standby, until somebody stops waiting.
    let waiting = Sql::connect(&at, "postgres").expect("connect");
    let waiter = std::thread::spawn(move || waiting.run("INSERT INTO t VALUES (1)"));
    let waits =
        "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'INSERT INTO t%'";
    wait_until("the control to wait for a standby", || !value(&at, waits).is_empty());
    value(&at, &format!("SELECT pg_cancel_backend(({waits}))"));
    waiter.join().expect("the end of the wait").expect("a commit with a warning");
    value(&at, "SELECT pg_switch_wal()");
    wait_until("the control to archive", || world.archivers().contains(&"control".to_owned()));
    store.ok(["stop", "control", "--mode", "immediate"]);
}
