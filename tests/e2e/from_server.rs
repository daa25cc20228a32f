//! Bringing a running server in: a base backup of one outside of the store, which notices nothing but a reader.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::common::disk::SmallDisk;
use crate::common::pg::{Endpoint, Postgres, owner};
use crate::common::plain::Plain;
use crate::common::process::{Done, run, signal, wait_until};
use crate::common::scratch::Scratch;
use crate::common::store::Store;
use crate::common::{skipped, turn_on_a_mount};
use crate::e2e::bad_input::{EXISTS, POSTGRES, USAGE, refused};
use crate::oracle::{self, Load, report, verify};

/// A connection string for a server of the tests.
pub fn url(at: &Endpoint) -> String {
    format!("host={} port={} user=postgres dbname=postgres", at.host.display(), at.port)
}

/// One value from a server.
#[track_caller]
pub fn value(at: &Endpoint, query: &str) -> String {
    Postgres::get().psql(at, "postgres", query).expect_ok().trim_end().to_owned()
}

/// Nobody copies from the server, and nothing keeps its WAL.
#[track_caller]
fn is_left_alone(at: &Endpoint) {
    wait_until("the end of all that read from the server", || {
        value(
            at,
            "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_stat_replication)",
        ) == "0"
    });
}

/// A copy of a busy server with a tablespace is a cluster of its own, with all that was acknowledged before.
#[test]
fn a_busy_server() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let scratch = Scratch::new();
    let production = Plain::create(&scratch, "production", "shared_buffers = 16MB\nmax_wal_size = 64MB");
    let outside = scratch.subdir_of("table=space", owner());
    let at = production.start();
    Postgres::get()
        .psql(&at, "postgres", &format!("CREATE TABLESPACE outside LOCATION '{}'", outside.display()))
        .expect_ok();
    value(&at, "CREATE TABLE there TABLESPACE outside AS SELECT generate_series(1, 50000) n");
    oracle::install(&at);
    let load = Load::start(&at, None);
    assert!(load.advance(100), "the clients met an error");
    let (made, window) = load.around(|| store.json(["create", "prod", "--from-server", &url(&at)]));
    assert!(load.advance(100), "the clients met an error");
    let (_, errors) = load.end();
    assert!(errors.is_empty(), "the server was disturbed: {errors:?}");
    is_left_alone(&at);
    assert!(made["warnings"].as_array().expect("warnings").is_empty(), "{made}");
    let link = store.path("prod").join("pg_tblspc");
    for entry in std::fs::read_dir(link).expect("list tablespaces").flatten() {
        let real = entry.path().canonicalize().expect("resolve");
        assert!(real.starts_with(store.path("prod")), "a tablespace outside: {}", real.display());
    }
    // As many rows as before a server's end: what was acknowledged before the copy began is in it at least.
    let copy = store.start("prod");
    let rows = value(&copy, "SELECT count(*) FROM there");
    assert_eq!(rows, "50000");
    verify(&copy, &window).unwrap_or_else(|found| panic!("{}", report(&found)));
    value(&copy, "INSERT INTO there VALUES (0)");
    assert_eq!(
        value(&at, "SELECT count(*) FROM there"),
        "50000",
        "the copy wrote to the server's tablespace"
    );
    // And it can be forked like any other.
    store.ok(["fork", "prod", "child", "--start"]);
    assert_eq!(value(&store.endpoint("child"), "SELECT count(*) FROM there"), "50001");
}

/// Whoever runs the command may have passwords where libpq looks for them, and no place else.
#[test]
fn passwords() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let scratch = Scratch::new();
    let production = Plain::create(&scratch, "production", "");
    let at = production.start();
    value(&at, "ALTER ROLE postgres PASSWORD 'se:cr\\et'");
    std::fs::write(
        production.pgdata().join("pg_hba.conf"),
        "local all all scram-sha-256\nlocal replication all scram-sha-256\n",
    )
    .expect("write pg_hba.conf");
    run(Postgres::get().command("pg_ctl").arg("reload").arg("-D").arg(production.pgdata())).expect_ok();
    wait_until("the server's new rules", || !Postgres::get().psql(&at, "postgres", "SELECT 1").ok());

    let create = |name: &str| store.command(["create", name, "--from-server", &url(&at)]);
    let file = scratch.join("passwords");
    std::fs::write(&file, "*:*:*:postgres:se\\:cr\\\\et\n").expect("write passwords");
    let mode = |mode| std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("set a mode");
    refused(&run(&mut create("none")), POSTGRES, &["no password supplied", "~/.pgpass"]);
    refused(&run(create("wrong").env("PGPASSWORD", "other")), POSTGRES, &["authentication failed"]);
    mode(0o644);
    refused(&run(create("open").env("PGPASSFILE", &file)), 6, &["passwords", "chmod 600"]);
    refused(&run(create("missing").env("PGPASSFILE", "/no/such/file")), 3, &["/no/such/file", "PGPASSFILE"]);
    let with_secret = format!("postgresql://postgres:se%3Acr%5Cet@localhost:{}/postgres", at.port);
    let done = store.run(["create", "secret", "--from-server", &with_secret]);
    refused(&done, USAGE, &["has a password in it", "PGPASSFILE"]);
    assert!(!done.stderr.contains("se%3Acr"), "the error repeats it: {}", done.report());
    assert!(store.names().is_empty());

    mode(0o600);
    run(create("by-file").env("PGPASSFILE", &file)).expect_ok();
    run(create("by-variable").env("PGPASSWORD", "se:cr\\et")).expect_ok();
    let home = scratch.subdir_of("home", None);
    std::fs::copy(&file, home.join(".pgpass")).expect("copy the passwords");
    run(create("by-home").env("HOME", &home)).expect_ok();
    std::fs::write(
        home.join(".pg_service.conf"),
        format!("[prod]\nhost={}\nport={}\nuser=postgres\ndbname=postgres\n", at.host.display(), at.port),
    )
    .expect("write a service");
    let mut by_service = store.command(["create", "by-service", "--from-server", "service=prod"]);
    run(by_service.env("HOME", &home)).expect_ok();
    assert_eq!(store.names().len(), 4);
}

/// Servers that cannot be copied, and roles that may not: an error with a next step, and nothing made.
#[test]
fn refusals() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let scratch = Scratch::new();
    let nobody = format!("host={} port=5990", scratch.join("nowhere").display());
    let refuses = |url: &str, code: i32, names: &[&str]| {
        refused(&store.run(["create", "prod", "--from-server", url]), code, names);
        assert!(store.names().is_empty(), "something was made");
    };
    refuses(&nobody, POSTGRES, &["nowhere", "can be reached"]);
    refuses("host=localhost port=1 user=x", POSTGRES, &["refused", "can be reached"]);
    refuses("", USAGE, &["connection string"]);
    refuses("host='x", USAGE, &["connection string"]);

    let production = Plain::create(&scratch, "production", "max_wal_senders = 1\nmax_replication_slots = 1");
    let at = production.start();
    value(&at, "CREATE ROLE reader LOGIN; CREATE ROLE copier LOGIN REPLICATION");
    let as_role = |role: &str| url(&at).replace("user=postgres", &format!("user={role}"));
    refuses(&as_role("reader"), POSTGRES, &["reader", "REPLICATION"]);
    // The backup takes two places: one for the files, and one for the WAL.
    refuses(&url(&at), POSTGRES, &["max_wal_senders"]);
    is_left_alone(&at);
    store.json(["list"]);

    let set = |lines: &str| {
        production.stop("fast");
        production.configure(lines);
        production.start();
    };
    set("max_wal_senders = 5");
    value(&at, "SELECT pg_create_physical_replication_slot('mine')");
    refuses(&url(&at), POSTGRES, &["replication slots are in use", "max_replication_slots"]);
    value(&at, "SELECT pg_drop_replication_slot('mine')");
    set("wal_level = minimal\nmax_wal_senders = 0");
    refuses(&url(&at), POSTGRES, &["wal_level=replica"]);
    set("wal_level = replica\nmax_wal_senders = 5");

    let hba = production.pgdata().join("pg_hba.conf");
    let rules = |text: &str| {
        std::fs::write(&hba, text).expect("write pg_hba.conf");
        let loaded = || value(&at, "SELECT pg_conf_load_time()");
        let before = loaded();
        run(Postgres::get().command("pg_ctl").arg("reload").arg("-D").arg(production.pgdata())).expect_ok();
        wait_until("the server's new rules", || loaded() != before);
    };
    rules("local all all trust\n");
    refuses(&url(&at), POSTGRES, &["no pg_hba.conf entry for replication", "host replication"]);
    // Tablespaces are asked for in an ordinary connection.
    rules("local replication all trust\nlocal all postgres trust\n");
    refuses(&as_role("copier"), POSTGRES, &["no pg_hba.conf entry for host", "tablespaces"]);
    rules("local all all trust\nlocal replication all trust\n");
    store.ok(["create", "prod", "--from-server", &as_role("copier")]);
    refused(&store.run(["create", "prod", "--from-server", &url(&at)]), EXISTS, &["prod"]);
    let wrong = ["create", "other", "--from-server", &url(&at), "--pg-bin", "/nonexistent"];
    refused(&store.run(wrong), 6, &["/nonexistent"]);
    is_left_alone(&at);
}

/// A server whose configuration is not in its data directory: the copy has the settings that it runs with.
#[test]
fn configuration_elsewhere() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let scratch = Scratch::new();
    let production = Plain::create(&scratch, "production", "work_mem = 7MB\nmax_connections = 33");
    let etc = scratch.subdir_of("etc", owner());
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        std::fs::rename(production.pgdata().join(name), etc.join(name)).expect("move a file");
    }
    let home = production.pgdata().parent().expect("a parent").to_owned();
    let options = format!(
        "-c config_file={0}/postgresql.conf -c hba_file={0}/pg_hba.conf -c listen_addresses= -p 5990 -k {1}",
        etc.display(),
        home.display()
    );
    run(Postgres::get()
        .command("pg_ctl")
        .args(["start", "-w", "-s", "-o", &options, "-D"])
        .arg(production.pgdata())
        .arg("-l")
        .arg(home.join("log")))
    .expect_ok();
    let at = Endpoint { host: home, port: 5990, user: "postgres".to_owned(), password: None };
    let made = store.json(["create", "prod", "--from-server", &url(&at)]);
    assert!(made["warnings"].to_string().contains("postgresql.conf"), "{made}");
    let copy = store.start("prod");
    for (name, wanted) in [("work_mem", "7MB"), ("max_connections", "33")] {
        assert_eq!(value(&copy, &format!("SHOW {name}")), wanted);
    }
    // Over TCP it asks for a password, whatever the server's rules were.
    let over_tcp = Endpoint { host: "localhost".into(), ..copy };
    let done =
        Postgres::get().client("psql", &over_tcp).args(["-w", "-c", "SELECT 1"]).output().expect("run psql");
    assert!(!done.status.success(), "it lets in whoever comes");
}

/// An end in the middle, of whatever kind, leaves neither a fork nor a slot.
#[test]
fn interrupted() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let scratch = Scratch::new();
    let production = Plain::create(&scratch, "production", "");
    let at = production.start();
    store.json(["list"]);
    for what in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut child = store
            .command(["create", "prod", "--from-server", &url(&at), "--max-rate", "1MB"])
            .stderr(Stdio::null())
            .spawn()
            .expect("start create");
        wait_until("the copy to be under way", || {
            value(&at, "SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 2000000")
                == "1"
        });
        signal(child.id(), what);
        child.wait().expect("the end of create");
        is_left_alone(&at);
        wait_until("the daemon to remove what was made", || {
            !store.dir().join("mnt/prod").exists() && !store.dir().join("run/prod").exists()
        });
        assert!(store.names().is_empty());
    }
    // The server goes away in the middle.
    let mut child = store
        .command(["create", "prod", "--from-server", &url(&at), "--max-rate", "1MB"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("start create");
    wait_until("the copy to be under way", || {
        value(&at, "SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 2000000") == "1"
    });
    production.stop("immediate");
    assert_eq!(child.wait().expect("the end of create").code(), Some(POSTGRES));
    assert!(store.names().is_empty());
    production.start();
    store.ok(["create", "prod", "--from-server", &url(&at)]);
}

/// A disk that is too small for the server.
#[test]
fn full_disk() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let disk = match SmallDisk::make(400) {
        Ok(disk) => disk,
        Err(why) => return skipped(&why),
    };
    let store = Store::at(&disk.join("store"));
    store.init();
    store.json(["list"]);
    let before = disk.free();
    let scratch = Scratch::new();
    let production = Plain::create(&scratch, "production", "max_wal_size = 256MB");
    let at = production.start();
    value(
        &at,
        "CREATE TABLE filler (n int, t text); ALTER TABLE filler ALTER t SET STORAGE EXTERNAL; \
         INSERT INTO filler SELECT n, repeat('f', 7000) FROM generate_series(1, 60000) n",
    );
    let done: Done = store.run(["create", "prod", "--from-server", &url(&at)]);
    refused(&done, 8, &["No space left on device", "free some space"]);
    assert!(store.names().is_empty());
    is_left_alone(&at);
    store.ok(["gc", "--wait"]);
    assert!(before - disk.free() < 100 << 20, "{} of {before} bytes are free", disk.free());
    assert_eq!(value(&at, "SELECT count(*) FROM filler"), "60000");
}
