//! Databases for one command.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGKILL, SIGTERM};
use serde_json::Value;

use super::bad_input::{EXISTS, NOT_FOUND, USAGE, refuses};
use super::lifecycle::psql;
use crate::common::pg::Postgres;
use crate::common::process::{Done, is_alive, signal, wait_until};
use crate::common::random::Random;
use crate::common::store::{QUIET, Store};
use crate::common::{ordinary_users_mount, rounds, turn_on_a_mount};

/// A running cluster with a table of one row.
pub fn running_main() -> Store {
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    psql(&store, "main", "CREATE TABLE t AS SELECT 1 AS n");
    store
}

/// Runs a line of shell, in which `ask` is a query's answer and nothing else.
#[track_caller]
pub fn shell(store: &Store, options: &[&str], line: &str) -> Done {
    let line = with_ask(line);
    store.run([&["run"], options, &["--json", "--", "sh", "-c", &line]].concat())
}

fn with_ask(line: &str) -> String {
    let psql = Postgres::get().command("psql");
    let psql = psql.get_program().to_str().expect("UTF-8");
    format!("ask() {{ {psql} -XAtq -v ON_ERROR_STOP=1 \"$@\"; }}\n{line}")
}

/// What `run --json` tells at its end.
#[track_caller]
pub fn told(done: &Done) -> Value {
    let line = done.stderr.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|e| panic!("no JSON at the end ({e}): {}", done.report()))
}

/// These forks are there, and nothing is left of others.
#[track_caller]
pub fn only(store: &Store, forks: &[&str]) {
    assert_eq!(store.names(), forks);
    for (place, ending) in [("run", ""), ("logs", ".log")] {
        for entry in std::fs::read_dir(store.dir().join(place)).expect("list").flatten() {
            let name = entry.file_name().into_string().expect("UTF-8");
            let fork = name.strip_suffix(ending).unwrap_or(&name);
            assert!(forks.contains(&fork), "{place}/{name} is left");
        }
    }
}

/// The command has its own database, by all its names; its exit code is passed on, and then all is gone.
#[test]
fn a_database_for_a_command() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    let line = "ask -c 'UPDATE t SET n = 2'; ask -c 'SELECT n FROM t'
        ask \"$DATABASE_URL\" -c 'SHOW fsync'
        ask -h \"$PGHOST_1\" -p \"$PGPORT_1\" -c 'SHOW cluster_name'
        echo \"$PGCOWFS_FORK $PGUSER $PGDATABASE\"; exit 7";
    let done = shell(&store, &["main"], line);
    assert_eq!(done.code, 7, "{}", done.report());
    let told = told(&done);
    let fork = told["forks"][0].as_str().expect("its name");
    assert_eq!(done.stdout, format!("2\noff\n{fork}\n{fork} postgres postgres\n"));
    assert_eq!((told["exit_code"].as_u64(), told["ephemeral"].as_bool()), (Some(7), Some(true)), "{told}");
    assert!(told["ready_ms"].is_number() && told["kept"].as_array().is_some_and(Vec::is_empty), "{told}");
    only(&store, &["main"]);
    assert_eq!(psql(&store, "main", "SELECT n FROM t"), "1");

    let done = shell(&store, &["main", "--durable", "--name", "mine"], "ask -c 'SHOW fsync'; kill -9 $$");
    assert_eq!((done.code, done.stdout.as_str()), (128 + 9, "on\n"), "{}", done.report());
    only(&store, &["main"]);

    // Of a snapshot, in a database that this one has.
    store.ok(["snapshot", "main", "one"]);
    psql(&store, "main", "UPDATE t SET n = 3");
    psql(&store, "main", "CREATE DATABASE shop");
    let done = shell(&store, &["main@one"], "ask -c 'SELECT n FROM t'");
    assert_eq!((done.code, done.stdout.as_str()), (0, "1\n"), "{}", done.report());
    let done = shell(
        &store,
        &["main", "--database", "shop"],
        "ask \"$DATABASE_URL\" -c 'SELECT current_database()'",
    );
    assert_eq!((done.code, done.stdout.as_str()), (0, "shop\n"), "{}", done.report());
    only(&store, &["main"]);
    store.stop("main");
}

/// The same as an ordinary user, whose daemon ends servers of its own user.
#[test]
fn a_database_for_a_command_of_an_ordinary_user() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    if !ordinary_users_mount() {
        return;
    }
    let store = Store::new_unprivileged();
    store.create("main", QUIET);
    let done = shell(&store, &["main"], "ask -c 'SELECT 1'; ask \"$DATABASE_URL\" -c 'SELECT 2'; exit 3");
    assert_eq!((done.code, done.stdout.as_str()), (3, "1\n2\n"), "{}", done.report());
    let mut child = begin(&store, "echo ready; while kill -0 $PPID; do sleep 0.05; done");
    signal(child.id(), SIGKILL);
    child.wait().expect("wait");
    wait_until("the fork's end", || store.names() == ["main"]);
    only(&store, &["main"]);
}

/// Each worker of a parallel test run has a database of its own.
#[test]
fn many_databases_for_a_command() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    let line = "for n in 1 2 3; do
          eval url=\\$DATABASE_URL_$n; eval fork=\\$PGCOWFS_FORK_$n
          ask \"$url\" -c \"UPDATE t SET n = n + $n\"
          echo $fork $(ask \"$url\" -c 'SELECT n FROM t')
        done; echo $PGCOWFS_FORK";
    let done = shell(&store, &["main", "--count", "3", "--name", "worker"], line);
    assert_eq!(done.code, 0, "{}", done.report());
    assert_eq!(done.stdout, "worker-1 2\nworker-2 3\nworker-3 4\nworker-1\n");
    only(&store, &["main"]);
    store.stop("main");
}

/// What failed can be looked at.
#[test]
fn a_failure_is_kept() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    let keep = ["main", "--keep-on-failure", "--name", "mine"];
    assert_eq!(shell(&store, &keep, "true").code, 0);
    only(&store, &["main"]);
    let done = shell(&store, &keep, "ask -c 'UPDATE t SET n = 9'; false");
    assert_eq!((done.code, told(&done)["kept"][0].as_str()), (1, Some("mine")), "{}", done.report());
    assert_eq!(psql(&store, "mine", "SELECT n FROM t"), "9");
    only(&store, &["main", "mine"]);
    store.ok(["rm", "--force", "mine"]);
    let done = store.run(["run", "main", "--keep-on-failure", "--name", "mine", "--", "false"]);
    assert!(done.code == 1 && done.stderr.contains("pgcowfs psql mine"), "{}", done.report());
    store.ok(["rm", "--force", "mine"]);
    store.stop("main");
}

/// Refused before anything is made; and what cannot be run leaves nothing.
#[test]
fn bad_runs() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    store.ok(["fork", "main", "there-2"]);
    refuses(&store, &["run", "nobody", "--", "true"], NOT_FOUND, &["nobody", "pgcowfs list"]);
    refuses(&store, &["run", "main@none", "--", "true"], NOT_FOUND, &["none", "pgcowfs snapshots main"]);
    refuses(&store, &["run", "main", "--name", "main", "--", "true"], EXISTS, &["main"]);
    refuses(&store, &["run", "main", "--name", "there", "--count", "2", "--", "true"], EXISTS, &["there-2"]);
    refuses(&store, &["run", "main", "--name", "a/b", "--", "true"], USAGE, &["a/b", "name"]);
    refuses(&store, &["run", "main", "--count", "0", "--", "true"], USAGE, &["--count"]);
    refuses(&store, &["run", "main"], USAGE, &["COMMAND"]);
    refuses(&store, &["run", "main", "--", "/no/such/command"], 127, &["/no/such/command", "hint"]);
    refuses(&store, &["run", "main", "--", "/"], 126, &["hint"]);
    // A server that does not start is no reason to leave its fork.
    refuses(&store, &["run", "main", "--set", "shared_buffers=lots", "--", "true"], 9, &["shared_buffers"]);
    // More forks than there are ports.
    refuses(&store, &["run", "main", "--count", "60", "--", "true"], 5, &["port"]);
    only(&store, &["main", "there-2"]);
    store.stop("main");
}

/// `pgcowfs run` in the background, once its command has said a word.
fn begin(store: &Store, line: &str) -> Child {
    begin_with(store, &[], line)
}

fn begin_with(store: &Store, options: &[&str], line: &str) -> Child {
    let mut command =
        store.command([&["run", "main", "--name", "mine"], options, &["--", "sh", "-c", line]].concat());
    command.env("DAEMON", store.daemon_pid().to_string());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start it");
    let mut said = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut said).expect("read");
    assert_eq!(said, "ready\n");
    child
}

/// Signals reach the command, whose end is the end of all.
#[test]
fn signals_are_passed_on() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    for (sent, name) in [(SIGTERM, "TERM"), (SIGINT, "INT"), (SIGHUP, "HUP")] {
        let line = format!("trap 'exit 42' {name}; echo ready; while :; do sleep 0.05; done");
        let mut child = begin(&store, &line);
        signal(child.id(), sent);
        assert_eq!(child.wait().expect("wait").code(), Some(42), "SIG{name}");
        only(&store, &["main"]);
    }
    let mut child = begin(&store, "echo ready; while :; do sleep 0.05; done");
    signal(child.id(), SIGTERM);
    assert_eq!(child.wait().expect("wait").code(), Some(128 + 15));
    only(&store, &["main"]);
    store.stop("main");
}

/// Who is killed leaves nothing behind, at whatever moment: neither the fork nor its server.
#[test]
fn a_run_that_is_killed() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = running_main();
    let mut child = begin(&store, "echo ready; while kill -0 $PPID; do sleep 0.05; done");
    let server = store.postmaster("mine").expect("it runs");
    signal(child.id(), SIGKILL);
    child.wait().expect("wait");
    let gone = || store.names() == ["main"];
    wait_until("the fork's end", gone);
    wait_until("its server's end", || !is_alive(server));
    only(&store, &["main"]);
    let mut random = Random::new(11);
    for round in 0..rounds(8) {
        let what = if round % 2 == 0 { SIGKILL } else { SIGTERM };
        let mut command = store.command(["run", "main", "--count", "2", "--", "true"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start it");
        std::thread::sleep(Duration::from_millis(random.between(1, 400)));
        signal(child.id(), what);
        child.wait().expect("wait");
        wait_until("the forks' end", gone);
    }
    // Its server is the only one that is left.
    let of_main = store.path("main");
    wait_until("the servers' end", || {
        let servers = std::fs::read_dir("/proc").expect("list").flatten();
        let places = servers.filter_map(|process| std::fs::read_link(process.path().join("cwd")).ok());
        let mount = of_main.parent().expect("the mount point");
        places.filter(|place| place.starts_with(mount)).all(|place| place.starts_with(&of_main))
    });
    only(&store, &["main"]);
    // If it is the daemon, the command goes on without its database, and still says how it ended.
    for options in [&[][..], &["--durable"]] {
        let mut child =
            begin_with(&store, options, "echo ready; while kill -0 $DAEMON; do sleep 0.05; done; exit 7");
        store.kill_daemon();
        assert_eq!(child.wait().expect("wait").code(), Some(7));
        only(&store, &["main"]);
    }
    store.ok(["umount"]);
    assert!(store.ok(["check"]).contains("nothing is wrong"));
}
