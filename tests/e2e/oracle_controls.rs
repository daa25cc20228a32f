//! Positive controls: the oracle passes what is right and fails what is wrong, on a plain directory.

use std::path::Path;
use std::time::Duration;

use crate::common::pg::{Endpoint, Postgres, as_owner, owner};
use crate::common::plain::Plain;
use crate::common::process::run;
use crate::common::scratch::Scratch;
use crate::common::sql::Sql;
use crate::common::store::AGGRESSIVE;
use crate::common::turn_on_postgres;
use crate::oracle::{self, DATABASE, Kind, Load, Window, report, verify};

/// The kinds of violation that a state has.
fn kinds(at: &Endpoint, window: &Window) -> Vec<Kind> {
    match verify(at, window) {
        Ok(_) => Vec::new(),
        Err(violations) => {
            let mut kinds = Vec::new();
            violations.iter().for_each(|v| {
                if !kinds.contains(&v.kind) {
                    kinds.push(v.kind)
                }
            });
            kinds
        }
    }
}

/// Each way of damaging the data is found, and named as what it is.
#[test]
fn every_damage_is_found() {
    let Some(_turn) = turn_on_postgres() else {
        return;
    };
    let scratch = Scratch::new();
    let cluster = Plain::create(&scratch, "plain", AGGRESSIVE);
    let at = cluster.start();
    oracle::install(&at);
    let load = Load::start(&at, None);
    assert!(load.advance(800), "the clients met an error");
    let window = load.stop();
    let found = verify(&at, &window).unwrap_or_else(|v| panic!("an untouched cluster fails:{}", report(&v)));
    assert_eq!(found, window.acked, "all clients have ended, so that nothing is in doubt");
    assert!(
        found.iter().all(|n| *n > 2 * oracle::SCRATCH_EVERY),
        "each client has made and dropped scratch tables: {found:?}"
    );

    let admin = Sql::connect(&at, "postgres").expect("connect");
    admin.run(&format!("ALTER DATABASE {DATABASE} RENAME TO pristine")).expect("keep the right state");
    // Each case begins with a copy of the right state, so that none can spoil the next.
    let damaged = |damage: &str, window: &Window| {
        admin.run(&format!("DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")).expect("drop the last case");
        admin.run(&format!("CREATE DATABASE {DATABASE} TEMPLATE pristine")).expect("copy the right state");
        let sql = Sql::connect(&at, DATABASE).expect("connect");
        sql.run(damage).unwrap_or_else(|e| panic!("{damage}: {e}"));
        drop(sql);
        kinds(&at, window)
    };
    assert_eq!(damaged("", &window), [], "the copy itself is right");

    let (first, third) = (found[0], found[2]);
    let scratch_3 = format!("scratch_3_{}", third / oracle::SCRATCH_EVERY);
    // The money of the removed transaction goes back, so that only the gap is to be seen.
    let drop_commit = "UPDATE account a SET balance = balance + t.amount FROM txn t WHERE t.client = 1 AND t.seq = 7 AND a.id = t.source;
        UPDATE account a SET balance = balance - t.amount FROM txn t WHERE t.client = 1 AND t.seq = 7 AND a.id = t.target;
        DELETE FROM txn WHERE client = 1 AND seq = 7";
    let cases: Vec<(String, &[Kind])> = vec![
        (drop_commit.to_owned(), &[Kind::Gap]),
        (format!("DELETE FROM txn WHERE client = 1 AND seq = {first}"), &[Kind::Lost, Kind::Balance]),
        ("UPDATE txn SET payload = 'other' WHERE client = 3 AND seq = 9".to_owned(), &[Kind::Payload]),
        (
            "UPDATE txn SET payload = left(payload, -1) WHERE client = 3 AND seq = 10".to_owned(),
            &[Kind::Payload],
        ),
        (
            "UPDATE account SET balance = balance + CASE id WHEN 5 THEN -1 ELSE 1 END WHERE id IN (5, 6)"
                .to_owned(),
            &[Kind::Balance],
        ),
        ("UPDATE account SET balance = balance + 1 WHERE id = 5".to_owned(), &[Kind::Balance]),
        ("DELETE FROM account WHERE id = 5".to_owned(), &[Kind::Balance]),
        (
            format!("UPDATE txn SET seen_client = 3, seen_seq = {} WHERE client = 5 AND seq = 3", third + 1),
            &[Kind::Causality],
        ),
        ("CREATE TABLE scratch_1_0 ()".to_owned(), &[Kind::Scratch]),
        (format!("DELETE FROM {scratch_3} WHERE n = 1"), &[Kind::Scratch]),
        (format!("DROP TABLE {scratch_3}"), &[Kind::Scratch]),
        (HIDE_FROM_INDEX.to_owned(), &[Kind::Index, Kind::Amcheck]),
    ];
    for (damage, want) in cases {
        let got = damaged(&damage, &window);
        assert!(
            want.iter().all(|kind| got.contains(kind)),
            "{want:?} expected, {got:?} found, after: {damage}"
        );
    }

    // The window itself: one less sent, one more acknowledged than there is.
    let mut narrow = window.clone();
    narrow.sent[4] -= 1;
    assert_eq!(damaged("", &narrow), [Kind::Future]);
    let mut narrow = window.clone();
    narrow.acked[4] += 1;
    narrow.sent[4] += 1;
    assert_eq!(damaged("", &narrow), [Kind::Lost]);
    drop(admin);
    flipped_bit(&cluster, &at);
}

/// Takes a row's entry out of an index, as a lost page write would: while the catalogue says that the index takes no
/// entries, the row is put in anew.
const HIDE_FROM_INDEX: &str =
    "UPDATE pg_index SET indisready = false, indisvalid = false WHERE indexrelid = 'txn_pkey'::regclass;
    WITH old AS (DELETE FROM txn WHERE client = 2 AND seq = 5 RETURNING *) INSERT INTO txn SELECT * FROM old;
    UPDATE pg_index SET indisready = true, indisvalid = true WHERE indexrelid = 'txn_pkey'::regclass;";

/// One bit of one page, on disk: `pg_checksums` finds it.
fn flipped_bit(cluster: &Plain, at: &Endpoint) {
    let file = Sql::connect(at, DATABASE)
        .and_then(|sql| sql.value("SELECT pg_relation_filepath('account')"))
        .expect("path of a table");
    cluster.stop("fast");
    let pg = Postgres::get();
    pg.checksums(cluster.pgdata()).expect_ok();
    let path = cluster.pgdata().join(file);
    let mut bytes = std::fs::read(&path).expect("read a table's file");
    bytes[8192 + 4000] ^= 1;
    std::fs::write(&path, bytes).expect("write it back");
    assert!(!pg.checksums(cluster.pgdata()).ok(), "a flipped bit passed pg_checksums");
}

/// Loss of commits that were acknowledged too early is found: the crash tests rest on this.
#[test]
fn early_acknowledgement_is_found() {
    let Some(_turn) = turn_on_postgres() else {
        return;
    };
    // Whether something had just been flushed for another reason is up to chance.
    let found = (0..10).any(|_| {
        let scratch = Scratch::new();
        let cluster = Plain::create(&scratch, "plain", oracle::LAZY);
        let at = cluster.start();
        oracle::install(&at);
        let load = Load::start_acknowledged_early(&at, None);
        assert!(load.advance(300), "the clients met an error");
        kill_server(&cluster);
        let (window, errors) = load.end();
        assert!(!errors.is_empty(), "the clients noticed nothing of the kill");
        let at = cluster.start();
        kinds(&at, &window).contains(&Kind::Lost)
    });
    assert!(found, "no commit that was acknowledged before it was written was missed");
}

/// kill -9 of a plain server under load loses nothing: the oracle does not cry wolf after a recovery.
#[test]
fn recovery_of_a_plain_cluster_passes() {
    let Some(_turn) = turn_on_postgres() else {
        return;
    };
    let scratch = Scratch::new();
    let cluster = Plain::create(&scratch, "plain", AGGRESSIVE);
    let mut at = cluster.start();
    oracle::install(&at);
    let mut done = None;
    for round in 0..2 {
        let load = Load::start(&at, done.as_ref());
        assert!(load.advance(300), "the clients met an error");
        kill_server(&cluster);
        let (window, errors) = load.end();
        assert!(!errors.is_empty(), "the clients noticed nothing of the kill");
        at = cluster.start();
        done = Some(verify(&at, &window).unwrap_or_else(|v| panic!("round {round}:{}", report(&v))));
    }
}

/// kill -9 of the postmaster and of every process it leaves.
fn kill_server(cluster: &Plain) {
    let postmaster = cluster.postmaster().expect("a running server");
    crate::common::pg::kill_server(postmaster, true);
    cluster.forget_the_dead();
}

/// What a fork must not be: files copied one after the other from a running cluster. The oracle finds it out.
#[test]
fn a_copy_of_a_running_cluster_is_found() {
    let Some(_turn) = turn_on_postgres() else {
        return;
    };
    let scratch = Scratch::new();
    let cluster = Plain::create(&scratch, "plain", AGGRESSIVE);
    let at = cluster.start();
    oracle::install(&at);
    let load = Load::start(&at, None);
    assert!(load.advance(200), "the clients met an error");
    let mut verdicts = Vec::new();
    // A copy can be lucky. That a good many in a row are all lucky does not happen under these settings.
    for round in 0..8 {
        let home = scratch.subdir_of(&format!("copy{round}"), owner());
        // First as people do it, then with a breath after the tables.
        let breath = Duration::from_millis(if round < 3 { 0 } else { 700 });
        let ((), window) = load.around(|| copy_running(cluster.pgdata(), &home.join("data"), breath));
        let copy = Plain::over(&home.join("data"), &home).on_port(5991);
        let verdict = match copy.try_start() {
            Err(_) => vec![Kind::Unreadable],
            Ok(at) => kinds(&at, &window),
        };
        drop(copy);
        let _ = std::fs::remove_dir_all(&home);
        let bad = !verdict.is_empty();
        verdicts.push(verdict);
        if bad {
            break;
        }
    }
    let window = load.stop();
    verify(&at, &window).unwrap_or_else(|v| panic!("the original fails:{}", report(&v)));
    println!("verdicts on copies of the running cluster: {verdicts:?}");
    assert!(verdicts.iter().any(|v| !v.is_empty()), "every copy of the running cluster passed: {verdicts:?}");
}

/// `cp -a` of a PGDATA that is in use, tables first. Several checkpoints during the `breath` before `pg_control` and the
/// WAL make recovery start behind changes that the copied tables do not hold.
fn copy_running(from: &Path, to: &Path, breath: Duration) {
    std::fs::create_dir(to).expect("make the copy's directory");
    let copy = |names: &[&str]| {
        let mut command = as_owner("cp");
        command.arg("-a").args(names.iter().map(|name| from.join(name))).arg(to);
        // Files that vanish meanwhile make cp complain: part of what is being shown.
        let _ = run(&mut command);
    };
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(to, PermissionsExt::from_mode(0o700)).expect("close the copy's directory");
    if let Some((uid, gid)) = owner() {
        std::os::unix::fs::chown(to, Some(uid), Some(gid)).expect("give the copy away");
    }
    copy(&["base"]);
    std::thread::sleep(breath);
    let names: Vec<String> = std::fs::read_dir(from)
        .expect("list the cluster")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "base" && name != "postmaster.pid")
        .collect();
    copy(&names.iter().map(String::as_str).collect::<Vec<_>>());
}
