//! A role for whoever uses a fork: `fork --user`.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use crate::common::pg::{Endpoint, Postgres};
use crate::common::process::Done;
use crate::common::store::{QUIET, Store, number};
use crate::common::turn_on_a_mount;

const SECRET: &str = "tell-tale pass'word";

fn password_file(store: &Store, text: &str, mode: u32) -> String {
    let file = store.scratch().join("password");
    std::fs::write(&file, text).expect("write a password");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("set its mode");
    file.display().to_string()
}

/// Runs SQL as a role over TCP, where the server asks for a password.
fn ask(store: &Store, fork: &str, user: &str, password: &str, sql: &str) -> Done {
    let port = u16::try_from(number(&store.show(fork), "port")).expect("a port");
    let (host, password) = (PathBuf::from("localhost"), Some(password.into()));
    Postgres::get().psql(&Endpoint { host, port, user: user.into(), password }, "postgres", sql)
}

#[test]
fn a_role_for_the_forks_user() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", &format!("{QUIET}\nlog_statement = all\nlog_min_duration_statement = 0"));
    store.start("main");
    let sql = store.sql("main", "postgres");
    sql.run("CREATE SCHEMA shop; CREATE TABLE shop.items (id serial, note text); CREATE ROLE other LOGIN SUPERUSER")
        .expect("fill");
    let file = password_file(&store, &format!("{SECRET}\n"), 0o600);

    let made = store.json(["fork", "main", "free", "--start", "--user", "app", "--password-file", &file]);
    assert_eq!(made["user"], "app");
    let superuser = "SELECT 'superuser ' || current_setting('is_superuser')";
    assert!(ask(&store, "free", "app", SECRET, superuser).expect_ok().contains("superuser on"));
    assert!(!ask(&store, "free", "app", "wrong", superuser).ok(), "the server asks for the password");
    assert!(!ask(&store, "main", "app", SECRET, superuser).ok(), "the parent has no such role");

    // One that is there loses its rights; the password comes through standard input.
    let args =
        ["fork", "main", "tight", "--start", "--user", "other", "--password-file", "-", "--restricted"];
    let mut child =
        store.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start fork");
    writeln!(child.stdin.take().expect("its input"), "{SECRET}").expect("write the password");
    let output = child.wait_with_output().expect("wait for fork");
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("role    other"));
    let other = |sql: &str| ask(&store, "tight", "other", SECRET, sql);
    assert!(other(superuser).expect_ok().contains("superuser off"));
    for allowed in
        ["INSERT INTO shop.items (note) VALUES ('x')", "CREATE TABLE own (i int)", "CREATE SCHEMA mine"]
    {
        other(allowed).expect_ok();
    }
    for refused in
        ["DROP TABLE shop.items", "CREATE ROLE x", "CREATE DATABASE x", "COPY own TO PROGRAM 'true'"]
    {
        assert!(!other(refused).ok(), "{refused}");
    }

    // The password is nowhere: not in a log, not in the store, not in the fork.
    for file in ["daemon.log", "logs/free.log", "logs/tight.log", "logs/main.log"] {
        let text = std::fs::read(store.dir().join(file)).expect("read a log");
        let text = String::from_utf8_lossy(&text);
        assert!(!text.contains("tell-tale") && !text.contains("SCRAM-SHA-256$"), "{file}: {text}");
    }
    let log = std::fs::read_to_string(store.dir().join("logs/main.log")).expect("read a log");
    assert!(log.contains("CREATE SCHEMA shop"), "control: statements are logged");
    store.ok(["rm", "--force", "free", "tight"]);

    // What cannot be used is refused before anything is made.
    let before = store.listing();
    for (text, mode) in [(SECRET, 0o644), (SECRET, 0o640), ("", 0o600)] {
        let file = password_file(&store, text, mode);
        let done = store.run(["fork", "main", "x", "--start", "--user", "app", "--password-file", &file]);
        assert_eq!(done.code, 7, "{}", done.report());
        assert!(done.stderr.contains("hint") && !done.stderr.contains("tell-tale"), "{}", done.report());
    }
    let file = password_file(&store, SECRET, 0o600);
    for (name, code) in [("pg_app", 2), ("", 2), ("postgres", 2)] {
        let done = store.run(["fork", "main", "x", "--start", "--user", name, "--password-file", &file]);
        assert_eq!(done.code, code, "{}", done.report());
    }
    assert_eq!(
        store.run(["fork", "main", "x", "--start", "--user", "a", "--password-file", "/none"]).code,
        3
    );
    assert_eq!(store.listing(), before);
    store.stop("main");
}
