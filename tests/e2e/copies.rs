//! Data directories go in and out by PostgreSQL's and everybody's tools, byte by byte the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::pg::{Postgres, as_owner, owner};
use crate::common::plain::Plain;
use crate::common::process::{in_path, run};
use crate::common::scratch::Scratch;
use crate::common::store::{AGGRESSIVE, QUIET, Store};
use crate::common::{skipped, turn_on_a_mount};
use crate::e2e::lifecycle::psql;
use crate::oracle::{self, Load, Window, report, verify};

/// What a directory tree is: kind, mode, owner and contents of each name.
pub fn tree(top: &Path) -> BTreeMap<PathBuf, String> {
    use std::os::unix::fs::MetadataExt;
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(top.join(&dir)).expect("list a directory").flatten() {
            let name = dir.join(entry.file_name());
            let meta = entry.metadata().expect("stat");
            let kind = if meta.is_dir() {
                todo.push(name.clone());
                "directory".to_owned()
            } else if meta.is_symlink() {
                format!("link to {}", std::fs::read_link(entry.path()).expect("read a link").display())
            } else {
                let bytes = std::fs::read(entry.path()).expect("read a file");
                format!(
                    "{} bytes, mtime {}.{:09}, crc {:08x}",
                    bytes.len(),
                    meta.mtime(),
                    meta.mtime_nsec(),
                    crc(&bytes)
                )
            };
            found
                .insert(name, format!("{kind}, mode {:o}, owner {}:{}", meta.mode(), meta.uid(), meta.gid()));
        }
    }
    found
}

/// A plain 64-bit FNV-1a: differing files are to differ here, nothing more.
fn crc(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[track_caller]
fn same_tree(a: &Path, b: &Path) {
    let (left, right) = (tree(a), tree(b));
    assert!(left.len() > 500, "a cluster has more files than that: {}", left.len());
    let differing: Vec<_> = left
        .iter()
        .filter(|(name, what)| right.get(*name) != Some(what))
        .map(|(name, what)| format!("{}: {what} / {:?}", name.display(), right.get(name)))
        .chain(
            right
                .keys()
                .filter(|name| !left.contains_key(*name))
                .map(|name| format!("{} only right", name.display())),
        )
        .collect();
    assert!(
        differing.is_empty(),
        "{} and {} differ in {} names: {:#?}",
        a.display(),
        b.display(),
        differing.len(),
        &differing[..differing.len().min(10)]
    );
}

/// cp -a, rsync and tar take a stopped fork out and put one in: the same bytes, modes, owners and times.
#[test]
fn out_and_in() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    psql(
        &store,
        "main",
        "CREATE TABLE t AS SELECT n, repeat('x', 100) AS filler FROM generate_series(1, 20000) n",
    );
    store.stop("main");
    store.ok(["fork", "main", "child"]);
    store.start("child");
    psql(&store, "child", "UPDATE t SET filler = 'y' WHERE n % 100 = 0; CREATE INDEX ON t (n)");
    store.stop("child");
    let data = store.path("child");
    let out = store.scratch().subdir_of("out", owner());
    let sh = |script: &str, from: &Path, to: &Path| {
        run(as_owner("sh").args(["-ec", script, "sh"]).arg(from).arg(to)).expect_ok()
    };

    let cp = "cp -a \"$1\" \"$2\"";
    let tar = "mkdir -m 700 \"$2\"; tar -C \"$1\" --format=posix -cf - . | tar -C \"$2\" -xpf -";
    let rsync = "rsync -aH --inplace \"$1/\" \"$2\"";
    let mut tools = vec![("cp", cp), ("tar", tar)];
    if in_path("rsync").is_some() {
        tools.push(("rsync", rsync));
    } else {
        skipped("the part with rsync: there is none");
    }
    for (tool, script) in tools {
        let copy = out.join(tool);
        sh(script, &data, &copy);
        same_tree(&data, &copy);
        // Out again it is an ordinary cluster: nothing of pgcowfs is needed, nor in its configuration.
        let home = store.scratch().subdir_of(&format!("home-{tool}"), owner());
        let plain = Plain::over(&copy, &home);
        let at = plain.start();
        let pg = Postgres::get();
        assert_eq!(
            pg.psql(&at, "postgres", "SELECT count(*) FILTER (WHERE filler = 'y') FROM t").expect_ok().trim(),
            "200"
        );
        assert_eq!(
            pg.psql(&at, "postgres", "SHOW full_page_writes").expect_ok().trim(),
            "on",
            "a setting of the mount went out with the copy"
        );
        plain.stop("fast");
        pg.checksums(&copy).expect_ok();

        // And back in, into a directory of the fork's own.
        let back = data.join(format!("back-{tool}"));
        sh(script, &copy, &back);
        same_tree(&copy, &back);
        run(as_owner("rm").arg("-r").arg(&back)).expect_ok();
    }
}

/// pg_basebackup from a fork under load: the backup is a right cluster, and pg_verifybackup agrees.
#[test]
fn base_backup_of_a_fork() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", AGGRESSIVE);
    store.start("main");
    store.ok(["fork", "main", "child"]);
    let at = store.start("child");
    oracle::install(&at);
    let load = Load::start(&at, None);
    assert!(load.advance(100), "the clients met an error");
    let pg = Postgres::get();
    let home = store.scratch().subdir_of("backup", owner());
    let target = home.join("data");
    let (done, window) = load.around(|| {
        run(pg.client("pg_basebackup", &at).args(["-X", "stream", "-c", "fast", "-D"]).arg(&target))
    });
    done.expect_ok();
    load.stop();
    run(pg.command("pg_verifybackup").arg(&target)).expect_ok();
    let backup = Plain::over(&target, &home);
    let at = backup.start();
    verify(&at, &window).unwrap_or_else(|v| panic!("the backup, window {window:?}:{}", report(&v)));
    drop(backup);

    // The backup comes in as a new root, by copy: it holds exactly what it held.
    let clean = Plain::over(&target, &home);
    let at = clean.start();
    let found = verify(&at, &window).unwrap_or_else(|v| panic!("the backup again:{}", report(&v)));
    clean.stop("fast");
    store.ok(["create", "restored", "--from", target.to_str().expect("UTF-8")]);
    let at = store.start("restored");
    let exact = Window { acked: found.clone(), sent: found };
    verify(&at, &exact).unwrap_or_else(|v| panic!("restored:{}", report(&v)));
    store.stop("restored");
    store.stop("child");
    store.stop("main");
}

/// initdb by hand into the mount, and its server started by hand.
#[test]
fn initdb_by_hand() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    let pg = Postgres::get();
    // A directory in a fork is a directory like any other.
    let data = store.path("main").join("nested");
    run(pg.command("initdb").arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-k"])).expect_ok();
    pg.checksums(&data).expect_ok();
    let home = store.scratch().subdir_of("home-nested", owner());
    let plain = Plain::over(&data, &home);
    let at = plain.start();
    assert_eq!(pg.psql(&at, "postgres", "SELECT count(*) FROM pg_database").expect_ok().trim(), "3");
    plain.stop("fast");
    run(as_owner("rm").arg("-r").arg(&data)).expect_ok();
}

/// A cluster with a tablespace and a pg_wal elsewhere comes in whole: the fork's links stay inside the fork.
#[test]
fn links_are_brought_in() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let scratch = store.scratch();
    let source = Plain::create(scratch, "source", "");
    let space = scratch.subdir_of("space", owner());
    let wal = scratch.subdir_of("wal", owner());
    let pg = Postgres::get();
    move_wal(source.pgdata(), &wal);
    let at = source.start();
    pg.psql(&at, "postgres", &format!("CREATE TABLESPACE far LOCATION '{}'", space.display())).expect_ok();
    pg.psql(&at, "postgres", "CREATE TABLE t TABLESPACE far AS SELECT generate_series(1, 5000) AS n")
        .expect_ok();
    source.stop("fast");
    let before = (fingerprint(&space), fingerprint(&wal), fingerprint(source.pgdata()));

    for how in ["--from", "--base"] {
        let name = how.trim_start_matches('-');
        store.ok(["create", name, how, source.pgdata().to_str().expect("UTF-8")]);
        let data = store.path(name);
        stays_inside(&data);
        store.start(name);
        assert_eq!(psql(&store, name, "SELECT count(*), max(n) FROM t"), "5000|5000");
        psql(
            &store,
            name,
            "UPDATE t SET n = -n; CREATE TABLE u TABLESPACE far AS SELECT 1 AS one; CHECKPOINT",
        );
        store.ok(["fork", name, &format!("{name}-child")]);
        let child = format!("{name}-child");
        stays_inside(&store.path(&child));
        store.start(&child);
        psql(&store, &child, "UPDATE t SET n = 7; CHECKPOINT");
        assert_eq!(
            psql(&store, name, "SELECT max(n) FROM t"),
            "-1",
            "the child wrote into its parent's tablespace"
        );
        store.stop(&child);
        store.stop(name);
    }
    assert!(
        before == (fingerprint(&space), fingerprint(&wal), fingerprint(source.pgdata())),
        "the source was written to"
    );
}

/// All files below with their contents, in one number.
fn fingerprint(top: &Path) -> u64 {
    let all: String = tree(top).iter().map(|(name, what)| format!("{}{what}\n", name.display())).collect();
    crc(all.as_bytes())
}

/// Moves pg_wal elsewhere and leaves a link, as `initdb --waldir` would have.
fn move_wal(pgdata: &Path, to: &Path) {
    let script = "mv \"$1\"/pg_wal/* \"$2\"; rmdir \"$1/pg_wal\"; ln -s \"$2\" \"$1/pg_wal\"";
    run(as_owner("sh").args(["-ec", script, "sh"]).arg(pgdata).arg(to)).expect_ok();
}

/// No link in a data directory leads out of it.
#[track_caller]
fn stays_inside(data: &Path) {
    let top = std::fs::canonicalize(data).expect("path of a fork");
    for dir in [top.join("pg_tblspc"), top.clone()] {
        for entry in std::fs::read_dir(&dir).expect("list").flatten() {
            if entry.file_type().expect("type").is_symlink() {
                let target = std::fs::canonicalize(entry.path())
                    .unwrap_or_else(|e| panic!("{}: {e}", entry.path().display()));
                assert!(target.starts_with(&top), "{} leads to {}", entry.path().display(), target.display());
            }
        }
    }
    let spaces = std::fs::read_dir(top.join("pg_tblspc")).expect("list").count();
    assert_eq!(spaces, 1, "the tablespace is there");
}

/// The directory must be one that this tool can tell apart: a changed byte is a difference.
#[test]
fn same_tree_can_fail() {
    let scratch = Scratch::new();
    for name in ["a", "b"] {
        let dir = scratch.subdir_of(name, None);
        (0..600).for_each(|n| std::fs::write(dir.join(n.to_string()), [1, 2, 3]).expect("write"));
        run(Command::new("sh").args(["-c", "touch -d @1000000000 \"$1\"/*", "sh"]).arg(&dir)).expect_ok();
    }
    same_tree(&scratch.join("a"), &scratch.join("b"));
    let file = scratch.join("b/17");
    let times = std::fs::metadata(&file).and_then(|meta| meta.modified()).expect("stat");
    std::fs::write(&file, [1, 2, 4]).expect("write");
    std::fs::File::options()
        .write(true)
        .open(&file)
        .and_then(|open| open.set_modified(times))
        .expect("set the time");
    let caught = std::panic::catch_unwind(|| same_tree(&scratch.join("a"), &scratch.join("b")));
    assert!(caught.is_err(), "a changed byte was not noticed");
}
