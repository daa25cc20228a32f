//! Bad input: a clear error that names the thing, an exit status, and nothing changed.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::disk::SmallDisk;
use crate::common::pg::{Postgres, owner};
use crate::common::plain::Plain;
use crate::common::process::{Done, is_alive, run};
use crate::common::scratch::Scratch;
use crate::common::store::{QUIET, Store, number, text};
use crate::common::{is_root, ordinary_users_mount, skipped, turn_on_a_mount};

/// The exit statuses of a command that refuses, as docs/CLI.md lists them.
pub const USAGE: i32 = 2;
pub const NOT_FOUND: i32 = 3;
pub const EXISTS: i32 = 4;
pub const STATE: i32 = 5;
const ENVIRONMENT: i32 = 6;
pub const BAD_INPUT: i32 = 7;
const STORAGE: i32 = 8;
pub const POSTGRES: i32 = 9;

/// A command must refuse: that exit status, nothing on stdout, and an error that names each of `names`.
#[track_caller]
pub fn refused(done: &Done, code: i32, names: &[&str]) {
    assert_eq!(done.code, code, "exit status of {}", done.report());
    assert!(done.stdout.trim().is_empty(), "an error belongs on stderr: {}", done.report());
    for name in names {
        assert!(done.stderr.contains(name), "the error does not name {name:?}: {}", done.report());
    }
}

/// The same for a command on a store, whose forks and snapshots stay as they are.
#[track_caller]
pub fn refuses(store: &Store, args: &[&str], code: i32, names: &[&str]) {
    let look = || (store.listing(), store.json(["snapshots"]));
    let before = look();
    refused(&store.run(args), code, names);
    assert_eq!(look(), before, "changed by {args:?}");
}

/// Names that are none, forks that are there or are not.
#[test]
fn names_and_forks() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    let long = "x".repeat(300);
    for name in ["", "a/b", "..", ".", "with\nnewline", "\x7f", "\x1b[31m", long.as_str()] {
        refuses(&store, &["create", "--", name], USAGE, &["name"]);
        refuses(&store, &["fork", "main", "--", name], USAGE, &["name"]);
    }
    // With a leading dash it is not even an argument, unless forced to be one.
    refuses(&store, &["fork", "main", "-x"], USAGE, &["-x"]);
    refuses(&store, &["fork", "main", "--", "-x"], USAGE, &["-x"]);
    // No terminal escapes of a name reach the user's terminal.
    assert!(!store.run(["fork", "main", "--", "\x1b[31m"]).stderr.contains("\x1b[31m"));

    refuses(&store, &["create", "main"], EXISTS, &["main"]);
    refuses(&store, &["fork", "main", "main"], EXISTS, &["main"]);
    refuses(&store, &["fork", "nobody", "child"], NOT_FOUND, &["nobody"]);
    for command in ["start", "stop", "rm", "show", "path", "url", "psql"] {
        refuses(&store, &[command, "nobody"], NOT_FOUND, &["nobody"]);
    }
    refuses(&store, &["no-such-command"], USAGE, &["no-such-command"]);
    refuses(&store, &["fork", "main", "child", "--no-such-option"], USAGE, &["--no-such-option"]);
    refuses(&store, &["fork", "main", "child", "--checkpoint", "perhaps"], USAGE, &["perhaps"]);
    // JSON or not, an error is an error.
    refuses(&store, &["show", "nobody", "--json"], NOT_FOUND, &["nobody"]);
}

/// Start of a running fork, stop of a stopped one, removal of a running one.
#[test]
fn wrong_state() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    refuses(&store, &["stop", "main"], STATE, &["main"]);
    store.start("main");
    let postmaster = store.postmaster("main").expect("a running server");
    refuses(&store, &["start", "main"], STATE, &["main"]);
    refuses(&store, &["rm", "main"], STATE, &["main", "--force"]);
    assert_eq!(store.postmaster("main"), Some(postmaster), "the server has not noticed");
    // With --force it goes, its server first.
    store.ok(["rm", "main", "--force"]);
    assert!(!is_alive(postmaster), "the server outlived its fork");
    assert!(store.listing().is_empty());
}

/// A port that someone else has, given or kept: start refuses and says which.
#[test]
fn port_in_use() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    let port = store.endpoint("main").port;
    store.stop("main");
    let taken = TcpListener::bind(("127.0.0.1", port)).expect("take the port");
    refuses(&store, &["start", "main"], STATE, &[&port.to_string()]);
    // A new fork gets another one.
    store.ok(["fork", "main", "child"]);
    store.start("child");
    assert_ne!(store.endpoint("child").port, port);
    store.stop("child");
    drop(taken);
    store.start("main");
    assert_eq!(store.endpoint("main").port, port, "its port stays with it");
    store.stop("main");
}

/// A server that does not come up: the end of its log is shown.
#[test]
fn server_that_does_not_start() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", "no_such_setting = 1");
    refuses(&store, &["start", "main"], POSTGRES, &["no_such_setting"]);
}

/// Socket paths have a limit of 107 bytes, directories do not: a deep store works, and a shorter directory is chosen.
#[test]
fn deep_store() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let scratch = Scratch::new();
    let deep = scratch.join("d".repeat(60)).join("e".repeat(60));
    std::fs::create_dir_all(&deep).expect("make directories");
    let store = Store::at(&deep.join("store"));
    store.ok(["init"]);
    store.create("main", QUIET);
    store.start("main");
    let answer = store.ok(["psql", "main", "--", "-XAtc", "SELECT 7"]);
    assert_eq!(answer.trim(), "7");
    let show = store.show("main");
    let port = number(&show, "port");
    assert!((6000..=6999).contains(&port), "port {port} by default");
    let socket = format!("{}/.s.PGSQL.{port}", text(&show, "socket_dir"));
    assert!(socket.len() <= 107 && Path::new(&socket).exists(), "{socket}");
    store.stop("main");
}

/// Stores that are none, newer, in use, read-only.
#[test]
fn stores() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let scratch = Scratch::new();
    let store = Store::new();
    let elsewhere =
        |dir: &Path, args: &[&str]| run(store.command_anywhere().arg("--store").arg(dir).args(args));
    let contents = |dir: &Path| {
        let mut names: Vec<PathBuf> =
            std::fs::read_dir(dir).expect("list").flatten().map(|entry| entry.path()).collect();
        names.sort();
        names
    };

    let missing = scratch.join("missing");
    refused(&elsewhere(&missing, &["list"]), NOT_FOUND, &["missing", "init"]);
    assert!(!missing.exists(), "a store appeared by asking for one");
    let other = scratch.subdir_of("other", None);
    std::fs::write(other.join("letter.txt"), "mine").expect("write");
    for args in [&["init"][..], &["list"], &["create", "main"], &["mount"]] {
        refused(&elsewhere(&other, args), BAD_INPUT, &["other"]);
    }
    assert_eq!(contents(&other), [other.join("letter.txt")], "someone's directory was touched");
    let file = scratch.join("file");
    std::fs::write(&file, "").expect("write");
    refused(&elsewhere(&file, &["init"]), BAD_INPUT, &["file"]);
    refused(&elsewhere(&file, &["list"]), BAD_INPUT, &["file"]);
    refuses(&store, &["init"], EXISTS, &["store"]);

    // Two daemons on one store: the second refuses, the first serves on.
    store.create("main", QUIET);
    let daemon = store.daemon_pid();
    refused(&store.run(["mount", "--foreground"]), STATE, &[&daemon.to_string()]);
    assert_eq!(store.daemon_pid(), daemon);

    // A directory that the user may not write to, and a store that is another user's.
    let closed = scratch.subdir_of("closed", None);
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o555)).expect("close");
    let user = Store::bare(owner());
    let as_user = |dir: &Path, args: &[&str]| run(user.command_anywhere().arg("--store").arg(dir).args(args));
    let done = as_user(&closed.join("store"), &["init"]);
    refused(&done, ENVIRONMENT, &["closed", "Permission denied"]);
    if is_root() {
        for command in ["list", "status"] {
            let done = as_user(store.dir(), &[command]);
            refused(&done, ENVIRONMENT, &[store.dir().to_str().expect("UTF-8")]);
        }
    }
}

/// A store of a later version: refused before anything in it is touched.
#[test]
fn newer_store() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.ok(["umount"]);
    let file = store.dir().join("STORE");
    let ours = std::fs::read(&file).expect("read STORE");
    let mut newer = ours.clone();
    // The version; the file's CRC is that version's business.
    newer[8] += 1;
    std::fs::write(&file, &newer).expect("write STORE");
    let before = store_files(store.dir());
    for args in [&["list"][..], &["start", "main"], &["mount", "--foreground"]] {
        refused(
            &store.run(args),
            BAD_INPUT,
            &[store.dir().to_str().expect("UTF-8"), &format!("format {}", newer[8]), "newer program"],
        );
    }
    assert_eq!(store_files(store.dir()), before, "the store was touched");
    assert!(!Store::is_mounted(&store.dir().join("mnt")));
    std::fs::write(&file, ours).expect("write STORE");
    assert_eq!(store.listing().len(), 1);
}

/// Names, sizes and times of the core's files in a store.
fn store_files(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    for part in ["STORE", "map", "delta", "inplace"] {
        let top = dir.join(part);
        let below = std::fs::read_dir(&top).into_iter().flatten().flatten();
        for path in below.map(|entry| entry.path()).chain([top.clone()]) {
            let meta = std::fs::metadata(&path).expect("stat");
            found.push(format!(
                "{} {} bytes, {}.{:09}",
                path.display(),
                meta.len(),
                meta.mtime(),
                meta.mtime_nsec()
            ));
        }
    }
    found.sort();
    found
}

/// A disk that is mounted read-only, under a store and without one.
#[test]
fn read_only_disk() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let disk = match SmallDisk::make(300) {
        Ok(disk) => disk,
        Err(why) => return skipped(&why),
    };
    let store = Store::at(&disk.join("store"));
    store.init();
    store.create("main", QUIET);
    store.ok(["umount"]);
    disk.remount("ro");
    for args in [&["list"][..], &["fork", "main", "child"], &["mount", "--foreground"]] {
        refused(
            &store.run(args),
            STORAGE,
            &[disk.join("").to_str().expect("UTF-8"), "Read-only file system"],
        );
    }
    // It only looks, and can.
    assert_eq!(text(&store.status(), "state"), "stopped");
    let other = Store::at(&disk.join("other"));
    refused(
        &other.run(["init"]),
        STORAGE,
        &[disk.join("other").to_str().expect("UTF-8"), "Read-only file system"],
    );
    disk.remount("rw");
    assert_eq!(store.listing().len(), 1);
    store.start("main");
    store.stop("main");
}

/// No /dev/fuse, one that is none, and one that is closed to the user.
#[test]
fn no_fuse() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    // In a mount namespace of its own: the machine's /dev stays as it is.
    let hidden = |store: &Store, prepare: &str| {
        let inner = store.command(["mount"]);
        let script = format!("set -e; {prepare}; exec \"$@\"");
        let mut outer = std::process::Command::new("unshare");
        outer.args(["-m", "sh", "-c", &script, "sh"]);
        if let Some((uid, gid)) = store.run_as() {
            outer.args(["setpriv", "--clear-groups"]);
            outer.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
        }
        outer.arg(inner.get_program()).args(inner.get_args());
        outer.envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))));
        run(outer.current_dir("/"))
    };
    if !is_root() || !run(std::process::Command::new("unshare").args(["-m", "true"])).ok() {
        return skipped("hiding /dev/fuse from a command needs root and unshare");
    }
    let store = Store::new();
    let empty_dev = "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3";
    refused(&hidden(&store, empty_dev), ENVIRONMENT, &["/dev/fuse"]);
    // The store's lock is free again, and nothing is mounted.
    let mountpoint = store.dir().join("mnt");
    assert!(!Store::is_mounted(&mountpoint));
    let done = hidden(&store, "mount --bind /dev/null /dev/fuse");
    refused(&done, ENVIRONMENT, &["/dev/fuse"]);
    assert!(store.listing().is_empty());
    if !ordinary_users_mount() {
        return;
    }
    let user = Store::new_unprivileged();
    let closed = format!("{empty_dev}; mknod -m 600 /dev/fuse c 10 229");
    refused(&hidden(&user, &closed), ENVIRONMENT, &["/dev/fuse"]);
    assert!(user.listing().is_empty());
}

/// An ordinary user without `fusermount3`.
#[test]
fn no_fusermount() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    if !ordinary_users_mount() {
        return;
    }
    let store = Store::new_unprivileged();
    let bare = store.scratch().subdir_of("bin", None);
    let done = run(store.command(["mount"]).env("PATH", &bare));
    refused(&done, ENVIRONMENT, &["fusermount3", "fuse3"]);
    assert!(!Store::is_mounted(&store.dir().join("mnt")));
    assert!(store.listing().is_empty());
}

/// Mount points that are taken.
#[test]
fn mount_points() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::bare(None);
    store.init();
    let full = store.scratch().subdir_of("full", None);
    std::fs::write(full.join("letter.txt"), "mine").expect("write");
    let full_name = full.to_str().expect("UTF-8");
    refused(&store.run(["mount", "--mountpoint", full_name]), STATE, &[full_name]);
    assert_eq!(std::fs::read(full.join("letter.txt")).expect("read"), b"mine");
    let file = full.join("letter.txt");
    refused(&store.run(["mount", "--mountpoint", file.to_str().expect("UTF-8")]), NOT_FOUND, &["letter.txt"]);

    // One that another store is mounted on.
    let other = Store::new();
    other.create("main", QUIET);
    let taken = text(&other.status(), "mountpoint").to_owned();
    refused(&store.run(["mount", "--mountpoint", &taken]), STATE, &[&taken]);
    assert!(Store::is_mounted(Path::new(&taken)), "the other store's mount is gone");
    assert_eq!(other.listing().len(), 1);

    // A good one, by option.
    let good = store.scratch().subdir_of("good", None);
    store.ok(["mount", "--mountpoint", good.to_str().expect("UTF-8")]);
    assert!(Store::is_mounted(&good));
    assert_eq!(text(&store.status(), "mountpoint"), good.to_str().expect("UTF-8"));
    store.ok(["umount"]);
    assert!(!Store::is_mounted(&good));
    // Nothing is mounted now, which is what was asked for.
    assert_eq!(store.json(["umount"])["was_mounted"], false);
}

/// PostgreSQL that is not there, or not of the cluster's version.
#[test]
fn binaries() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let empty = store.scratch().subdir_of("empty", None);
    let empty_name = empty.to_str().expect("UTF-8");
    refuses(&store, &["create", "main", "--pg-bin", empty_name], ENVIRONMENT, &[empty_name]);
    refuses(&store, &["create", "main", "--pg-version", "9"], ENVIRONMENT, &["PostgreSQL 9"]);
    refuses(&store, &["create", "main", "--initdb-arg=--no-such-option"], POSTGRES, &["no-such-option"]);

    store.create("main", QUIET);
    let path = store.path("main").join("PG_VERSION");
    let right = std::fs::read_to_string(&path).expect("read PG_VERSION");
    std::fs::write(&path, "9\n").expect("write PG_VERSION");
    refuses(&store, &["start", "main"], POSTGRES, &["version 9"]);
    std::fs::write(&path, "rubbish\n").expect("write PG_VERSION");
    refuses(&store, &["start", "main"], POSTGRES, &["PG_VERSION"]);
    std::fs::write(&path, right).expect("write PG_VERSION");
    store.start("main");
    store.stop("main");
}

/// Source directories that cannot be brought in: none of them leaves a fork behind, and none is changed.
#[test]
fn sources() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let scratch = store.scratch();
    let each = |dir: &Path, code: i32, names: &[&str]| {
        for how in ["--from", "--base"] {
            refuses(&store, &["create", "prod", how, dir.to_str().expect("UTF-8")], code, names);
        }
    };
    each(&scratch.join("missing"), NOT_FOUND, &["missing"]);
    let empty = scratch.subdir_of("empty", owner());
    each(&empty, BAD_INPUT, &["empty", "PG_VERSION"]);
    let file = scratch.join("afile");
    std::fs::write(&file, "").expect("write");
    each(&file, BAD_INPUT, &["afile"]);
    assert_eq!(std::fs::read_dir(&empty).expect("list").count(), 0, "the directory is no longer empty");

    let source = Plain::create(scratch, "source", "");
    source.start();
    let postmaster = source.postmaster().expect("a running server");
    each(source.pgdata(), STATE, &["running", &postmaster.to_string()]);
    source.stop("fast");

    // A cluster of another major version, and one of another block size: by the files that say so.
    let version = source.pgdata().join("PG_VERSION");
    let right = std::fs::read(&version).expect("read PG_VERSION");
    std::fs::write(&version, "9.1\n").expect("write");
    each(source.pgdata(), BAD_INPUT, &["9.1"]);
    std::fs::write(&version, right).expect("write");
    let control = source.pgdata().join("global/pg_control");
    let right = std::fs::read(&control).expect("read pg_control");
    std::fs::write(&control, control_with_block_size(&right, 16384)).expect("write");
    each(source.pgdata(), BAD_INPUT, &["16384"]);
    std::fs::write(&control, &right).expect("write");

    // Right again: both work.
    store.ok(["create", "copied", "--from", source.pgdata().to_str().expect("UTF-8")]);
    store.ok(["create", "based", "--base", source.pgdata().to_str().expect("UTF-8")]);
    assert_eq!(store.listing().len(), 2);
}

/// `pg_control` with another block size and a right checksum (CRC-32C, as PostgreSQL has it).
fn control_with_block_size(control: &[u8], block_size: u32) -> Vec<u8> {
    let mut bytes = control.to_vec();
    let old = 8192_u32.to_le_bytes();
    // The first 8192 is the block size (blcksz), followed by the blocks per segment (131072).
    let pattern = [old, 131_072_u32.to_le_bytes()].concat();
    let at = bytes.windows(8).position(|window| window == pattern).expect("block and segment size");
    bytes[at..at + 4].copy_from_slice(&block_size.to_le_bytes());
    // The checksum covers everything before it, and is followed by nothing but zeros.
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("a checksum") + 1;
    let end = end.next_multiple_of(4);
    let crc = crc32c(&bytes[..end - 4]);
    bytes[end - 4..end].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// A base that changes underneath: its forks say so instead of giving wrong pages.
#[test]
fn changed_base() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let source = Plain::create(store.scratch(), "source", QUIET);
    let base = source.pgdata().to_str().expect("UTF-8").to_owned();
    let at = source.start();
    let pg = Postgres::get();
    let mut files = Vec::new();
    for table in ["kept", "changed"] {
        pg.psql(&at, "postgres", &format!("CREATE TABLE {table} AS SELECT generate_series(1, 10000) AS n"))
            .expect_ok();
        let file = pg.psql(&at, "postgres", &format!("SELECT pg_relation_filepath('{table}')")).expect_ok();
        files.push(file.trim().to_owned());
    }
    source.stop("fast");
    store.ok(["create", "prod", "--base", &base]);

    // Somebody writes into a table's file of the base. What the kernel or the server had read before would still be
    // right, so it is one that nobody has read through the fork.
    let file = source.pgdata().join(&files[1]);
    let mut bytes = std::fs::read(&file).expect("read a table");
    bytes[100] ^= 1;
    std::fs::write(&file, &bytes).expect("write it");
    let read = std::fs::read(store.path("prod").join(&files[1]));
    assert_eq!(
        read.as_ref().err().and_then(std::io::Error::raw_os_error),
        Some(libc::EIO),
        "a changed page of a base was given out"
    );
    let log = std::fs::read_to_string(store.dir().join("daemon.log")).expect("read the log");
    assert!(
        log.contains(file.to_str().expect("UTF-8")),
        "the daemon's log does not name the changed file: {log}"
    );
    // Two states of a base must not be mixed: the fork accepts nothing more, until a new daemon looks again.
    let name = file.to_str().expect("UTF-8");
    refuses(&store, &["start", "prod"], BAD_INPUT, &[name]);
    store.ok(["umount"]);
    let at = store.start("prod");
    let count = pg.psql(&at, "postgres", "SELECT count(*) FROM kept");
    assert_eq!(count.expect_ok().trim(), "10000");
    let count = pg.psql(&at, "postgres", "SELECT count(*) FROM changed");
    assert!(count.stderr.contains("Input/output error"), "{}", count.report());
    store.ok(["rm", "--force", "prod"]);

    // A server has run on a base: its pg_control tells, and nothing is even tried.
    store.ok(["create", "again", "--base", &base]);
    source.start();
    source.stop("fast");
    for args in [&["start", "again"][..], &["fork", "again", "child"]] {
        refuses(&store, args, BAD_INPUT, &[&base]);
    }
}

/// A base whose own server is started later.
#[test]
fn started_base() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let source = Plain::create(store.scratch(), "source", "");
    store.ok(["create", "prod", "--base", source.pgdata().to_str().expect("UTF-8")]);
    source.start();
    refuses(&store, &["start", "prod"], STATE, &[source.pgdata().to_str().expect("UTF-8")]);
    source.stop("fast");
}

/// A tablespace outside: a fork of it would share files with its parent. Refused, and named.
#[test]
fn tablespace_outside() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    let outside = store.scratch().subdir_of("outside", owner());
    let sql = store.sql("main", "postgres");
    sql.run(&format!("CREATE TABLESPACE far LOCATION '{}'", outside.display())).expect("make a tablespace");
    refuses(&store, &["fork", "main", "child"], BAD_INPUT, &[outside.to_str().expect("UTF-8")]);
    sql.run("DROP TABLESPACE far").expect("drop the tablespace");
    store.ok(["fork", "main", "child"]);
    store.stop("main");
}
