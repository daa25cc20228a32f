//! The examples in docs/examples and the README's tour, as they are, on a store of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal::SIGTERM;
use serde_json::Value;

use super::lifecycle::psql;
use crate::common::pg::Postgres;
use crate::common::plain::append;
use crate::common::process::{in_path, run, signal, wait_until};
use crate::common::scratch::Scratch;
use crate::common::store::{QUIET, Store};
use crate::common::{is_root, skipped, turn_on_a_mount};

/// A directory of docs/examples.
fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples").join(name)
}

/// Makes `main`, with what the examples expect in it.
fn shop(store: &Store) {
    store.create("main", QUIET);
    store.start("main");
    psql(store, "main", "CREATE DATABASE shop");
    store.sql("main", "shop").run(SHOP).expect("make a table");
}

const SHOP: &str = "CREATE TABLE orders AS SELECT i AS id, i % 100 AS total FROM generate_series(1, 1000) i";

/// A command that finds `pgcowfs`, the store, and PostgreSQL's programs, as somebody's shell would.
fn shell(store: &Store, program: impl AsRef<std::ffi::OsStr>, dir: &Path) -> Command {
    let bin = store.scratch().join("bin");
    if !bin.exists() {
        let given = store.command_anywhere();
        std::fs::create_dir(&bin).expect("make a directory");
        std::os::unix::fs::symlink(given.get_program(), bin.join("pgcowfs")).expect("link the program");
    }
    let psql = Postgres::get().command("psql");
    let postgres = Path::new(psql.get_program()).parent().expect("in a directory").to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([bin, postgres].into_iter().chain(std::env::split_paths(&path)));
    let mut command = Command::new(program);
    command.current_dir(dir).env("PATH", path.expect("a PATH")).env("PGCOWFS_STORE", store.dir());
    for name in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGOPTIONS", "PGSERVICE"]
    {
        command.env_remove(name);
    }
    command
}

/// What the examples were to leave alone is as it was, and nothing of theirs is there.
#[track_caller]
fn only_main(store: &Store) {
    assert_eq!(store.names(), ["main"]);
    let at = store.endpoint("main");
    let orders = Postgres::get().psql(&at, "shop", "SELECT count(*), max(id) FROM orders").expect_ok();
    assert_eq!(orders.trim(), "1000|1000");
}

/// The tour of the README, line by line as somebody types it; only the test runs in it are not there.
#[test]
fn the_tour() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::bare(None);
    let dir = store.scratch().subdir_of("tour", None);
    std::fs::write(dir.join("migration.sql"), "CREATE TABLE migrated (i int);").expect("write it");
    std::fs::write(dir.join("mask.sql"), "UPDATE t SET i = 0;").expect("write it");
    let readme = std::fs::read_to_string(example("../../README.md")).expect("read it");
    let tour = readme.split_once("\n## Five minutes\n").expect("it has a tour").1;
    let tour = tour.split_once("\nWith a cluster that exists").expect("which ends there").0;
    let commands: Vec<&str> = tour.lines().filter_map(|line| line.strip_prefix("$ pgcowfs ")).collect();
    assert!(commands.len() > 25, "it is all of the tour: {commands:?}");
    for command in commands {
        if command.starts_with("init ") {
            // With other ports than whoever uses pgcowfs on this machine.
            store.init();
            continue;
        }
        let line = format!("pgcowfs {command}")
            .replace("-- cargo test", "-- true")
            .replace("-- npx jest", "-- true");
        let done = run(shell(&store, "sh", &dir).args(["-ec", &line]));
        // There is no snapshot of that age yet, as it says.
        let expected = if command.contains("ago'") { super::bad_input::NOT_FOUND } else { 0 };
        assert_eq!(done.code, expected, "{}", done.report());
    }
    store.ok(["umount", "--stop"]);
}

/// The tests of a Cargo package, with a database for each thread.
#[test]
fn cargo_test() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    if in_path("cargo").is_none() {
        return skipped("no cargo");
    }
    let store = Store::new();
    shop(&store);
    let dir = example("cargo-test");
    let mut command = shell(&store, dir.join("test"), &dir);
    command.args(["--offline", "--locked"]).env("CARGO_TARGET_DIR", store.scratch().join("target"));
    let done = run(command.env("TEST_THREADS", "3"));
    assert!(done.ok() && done.stdout.contains("3 passed"), "{}", done.report());
    only_main(&store);
    store.stop("main");
}

/// The fixtures' module, without pytest: each database is its own, and goes.
#[test]
fn python() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    if in_path("python3").is_none() {
        return skipped("no python3");
    }
    let store = Store::new();
    shop(&store);
    let script = "
from database import fork_of
from test_orders import test_delete, test_orders_are_there
with fork_of('main', 'shop') as one, fork_of('main', 'shop') as two:
    test_delete(one)
    test_orders_are_there(two)
    print(one.fork != two.fork, one.url != two.url, one.sql('SHOW fsync'))
try:
    with fork_of('main', 'shop') as one:
        test_orders_are_there(one)
        raise KeyError
except KeyError:
    print('raised')
";
    let mut command = shell(&store, "python3", &example("pytest"));
    let done = run(command.args(["-B", "-c", script]));
    assert_eq!((done.code, done.stdout.as_str()), (0, "True True off\nraised\n"), "{}", done.report());
    only_main(&store);
    store.stop("main");
}

/// The fixtures.
#[test]
fn pytest() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let there = Command::new("python3").args(["-c", "import pytest"]).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        return skipped("no python3 with pytest");
    }
    let store = Store::new();
    shop(&store);
    let mut command = shell(&store, "python3", &example("pytest"));
    let done = run(command.args(["-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"]));
    assert!(done.ok() && done.stdout.contains("3 passed"), "{}", done.report());
    only_main(&store);
    store.stop("main");
}

/// A new worktree has a database, and finds it in .env; nothing else that git checks out does.
#[test]
fn git_worktree() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    if in_path("git").is_none() {
        return skipped("no git");
    }
    let store = Store::new();
    shop(&store);
    let home = store.scratch().subdir_of("git", None);
    let repository = home.join("shop");
    let git = |dir: &Path, line: &str| {
        let mut command = shell(&store, "git", dir);
        // Neither the settings nor the repository of whoever runs the tests.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GIT_")) {
            command.env_remove(name);
        }
        command.env("HOME", &home).env("GIT_CONFIG_NOSYSTEM", "1").env("DATABASE", "shop");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "A").env(format!("GIT_{who}_EMAIL"), "a@example.org");
        }
        run(command.args(line.split(' '))).expect_ok()
    };
    git(&home, "init -q shop");
    git(&repository, "commit -q --allow-empty -m first");
    std::fs::create_dir_all(repository.join(".git/hooks")).expect("make a directory");
    let hook = example("git-worktree").join("post-checkout");
    std::fs::copy(hook, repository.join(".git/hooks/post-checkout")).expect("copy the hook");
    git(&repository, "checkout -q -b other");
    only_main(&store);

    git(&repository, "worktree add -q ../new~feature -b feature");
    let dotenv = home.join("new~feature/.env");
    let address = std::fs::read_to_string(&dotenv).expect("the hook has written it");
    let url = address.trim_end().strip_prefix("DATABASE_URL=").expect("as a shell has it");
    assert_eq!(store.names(), ["main", "wt-new-feature"]);
    assert!(store.show("wt-new-feature")["idle_s"].is_number());
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&dotenv).expect("it is there"));
    assert_eq!(mode & 0o777, 0o600, "it has the password");
    let ask = |query| run(shell(&store, "psql", &home).args(["-XAtq", url, "-c", query])).expect_ok();
    assert_eq!(ask("DELETE FROM orders RETURNING 1").lines().count(), 1000);
    git(&home.join("new~feature"), "checkout -q -b feature-2");

    // The worktree goes, and comes again: it goes on with its database.
    git(&repository, "worktree remove --force ../new~feature");
    git(&repository, "worktree add -q ../new~feature feature");
    assert_eq!(std::fs::read_to_string(&dotenv).expect("it is there again"), address);
    assert_eq!(ask("SELECT count(*) FROM orders"), "0\n");
    store.ok(["rm", "--force", "wt-new-feature"]);
    only_main(&store);
    store.stop("main");
}

/// CI's database: made of the dump in the first run, of the directory that is kept in the second.
#[test]
fn github_actions() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let kept = Scratch::new();
    let (dump, seed) = (kept.join("dump.sql"), kept.join("seed"));
    std::fs::write(&dump, format!("CREATE DATABASE shop;\n\\c shop\n{SHOP};\n")).expect("write a dump");
    for dump in [&dump, &kept.join("no such dump")] {
        let store = Store::new();
        let script = example("github-actions").join("database");
        run(shell(&store, script, Path::new("/")).arg(dump).arg(&seed)).expect_ok();
        let mut command = shell(&store, "pgcowfs", Path::new("/"));
        let line = "for n in 1 2; do eval url=\\$DATABASE_URL_$n; psql -XAtq $url -c 'SELECT count(*) FROM orders'; done";
        let done = run(command.args(["run", "main", "-d", "shop", "--count", "2", "--", "sh", "-c", line]));
        assert_eq!((done.code, done.stdout.as_str()), (0, "1000\n1000\n"), "{}", done.report());
        assert_eq!(store.names(), ["main"]);
    }
}

/// What the container runs, without the container: it makes the store, serves it, ends on SIGTERM with its servers
/// stopped, and finds everything again.
#[test]
fn docker() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    if !is_root() {
        return skipped("a container's programs run as root");
    }
    let store = Store::bare(None);
    for round in 0..2 {
        let mut command = shell(&store, example("docker").join("serve"), Path::new("/"));
        // Not the ports of another store.
        let command = command
            .env("PORTS", "11900-11919")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut serve = command.spawn().expect("start it");
        wait_until("the daemon", || {
            let status = store.run(["status", "--json"]).stdout;
            serde_json::from_str::<Value>(&status).is_ok_and(|status| status["state"] == "running")
        });
        if round == 0 {
            store.ok(["create", "main", "--listen", "*"]);
            // As compose.yml says it.
            append(&store.path("main").join("pg_hba.conf"), "host all all all scram-sha-256");
        }
        store.start("main");
        let rules = "SELECT count(*) FROM pg_hba_file_rules WHERE address = 'all' AND error IS NULL";
        assert_eq!(psql(&store, "main", &format!("SHOW listen_addresses; {rules}")), "*\n1");
        psql(&store, "main", &format!("CREATE TABLE t{round} AS SELECT 1 AS n"));
        assert_eq!(psql(&store, "main", "SELECT count(*) FROM t0"), "1");
        signal(serve.id(), SIGTERM);
        assert!(serve.wait().expect("wait").success());
        assert!(!Store::is_mounted(&store.dir().join("mnt")));
    }
    skipped(
        "the image and compose.yml: only what the container runs was tried, there is no Docker in the tests",
    );
}
