//! Directories that somebody with bad intentions gives to `create --from` and `create --base`. Either it works, and the
//! fork reads what an honest copy would hold, or it is an error that names the thing, the reason and the next step. The
//! store and all that lies outside stay as they were; nothing hangs, and nothing takes memory without bound.

mod race;
mod rig;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::mkfifo;

use self::rig::{LINKED, Rig, SECRET, Want, differences, judge_fork, survey};
use crate::common::pg::owner;
use crate::common::plain::Plain;
use crate::common::process::run;
use crate::common::scratch::in_memory;
use crate::common::store::QUIET;
use crate::common::{is_root, skipped, turn_on_a_mount};
use crate::e2e::lifecycle::psql;

const ENVIRONMENT: i32 = 6;
const BAD_INPUT: i32 = 7;

use Want::{Refused, Warns, Works};

fn link(target: impl AsRef<Path>, at: impl AsRef<Path>) {
    let at = at.as_ref();
    if let Ok(meta) = at.symlink_metadata() {
        match meta.is_dir() {
            true => fs::remove_dir_all(at).expect("remove what is there"),
            false => fs::remove_file(at).expect("remove what is there"),
        }
    }
    symlink(target, at).expect("make a link");
}

fn pipe(at: impl AsRef<Path>) {
    let at = at.as_ref();
    if at.exists() {
        fs::remove_file(at).expect("remove what is there");
    }
    mkfifo(at, Mode::from_bits_truncate(0o666)).expect("make a pipe");
}

/// Adds lines to the configuration.
fn conf(dir: &Path, lines: impl AsRef<[u8]>) {
    let file = dir.join("postgresql.conf");
    let mut text = fs::read(&file).expect("read the configuration");
    text.extend_from_slice(b"\n");
    text.extend_from_slice(lines.as_ref());
    fs::write(&file, text).expect("write the configuration");
}

/// Gives all of a directory to its owner: the tests run as root.
fn give_away(dir: &Path) {
    if let Some((uid, gid)) = owner() {
        let who = format!("{uid}:{gid}");
        run(Command::new("chown").args(["-hR", &who]).arg(dir)).expect_ok();
    }
}

/// Links within, out, to nothing, to devices, in circles.
#[test]
fn links_anywhere() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let rig = Rig::new();
    let out = rig.outside.clone();
    rig.both("honest", Works, |_| {});
    rig.both("link-to-file", Works, |dir| {
        for (at, target) in
            [("base/1/9999", out.join("linked")), ("server.key", "../../outside/linked".into())]
        {
            link(target, dir.join(at));
        }
    });
    // What is linked is there, as a file of the fork's own.
    let dir = rig.fresh("linked-contents");
    link(out.join("linked"), dir.join("base/1/9999"));
    for how in ["--from", "--base"] {
        assert!(rig.create(how, &dir).ok());
        let file = rig.store.path("prod").join("base/1/9999");
        assert_eq!(fs::read_to_string(&file).expect("read it"), LINKED);
        assert!(!file.is_symlink());
        rig.store.ok(["rm", "prod"]);
    }
    rig.both("link-within", Works, |dir| {
        link("../base", dir.join("global/b"));
        link(dir.join("base/1"), dir.join("absolute"));
        link(dir, dir.join("base/top"));
    });
    // By its text this leads to a file beside it; on the way it passes a link to the top, and comes out above.
    rig.both("link-through-link", Works, |dir| {
        fs::create_dir_all(dir.join("p/q")).expect("make directories");
        link("../..", dir.join("p/q/top"));
        link("top/../../outside/linked", dir.join("p/q/escape"));
        link("top/../link-through-link/PG_VERSION", dir.join("p/q/out-and-in"));
        give_away(&dir.join("p"));
    });
    for (case, target) in [("self", "self"), ("nothing", "/nowhere/at/all"), ("long", &*"x/".repeat(2000))] {
        rig.both(&format!("link-to-{case}"), Warns("was left out"), |dir| {
            link(target, dir.join("base/self"))
        });
    }
    rig.both("link-circle", Warns("cannot be reached"), |dir| {
        link("b", dir.join("global/a"));
        link("a", dir.join("global/b"));
    });
    rig.both("link-chain", Warns("cannot be reached"), |dir| {
        (0..50).for_each(|n| link(format!("l{}", n + 1), dir.join(format!("base/1/l{n}"))));
        link("1259", dir.join("base/1/l50"));
    });
    rig.both("link-to-directory", Warns("a directory elsewhere"), |dir| {
        link(out.join("foreign"), dir.join("extra"));
        link("/", dir.join("base/1/root"));
        link("/proc", dir.join("proc"));
    });
    for (case, target) in
        [("null", "/dev/null"), ("zero", "/dev/zero"), ("tty", "/dev/tty"), ("kmsg", "/dev/kmsg")]
    {
        if Path::new(target).exists() {
            rig.both(&format!("link-to-{case}"), Warns("a device"), |dir| {
                link(target, dir.join("base/1/1260"))
            });
        }
    }
    // PostgreSQL's own directories, behind links to what is not theirs.
    for (case, target) in [("root", "/"), ("proc", "/proc/self"), ("etc", "/etc"), ("dev", "/dev/shm")] {
        rig.both(&format!("base-1-to-{case}"), Refused(BAD_INPUT, "base/1 "), |dir| {
            link(target, dir.join("base/1"))
        });
    }
    let many = Warns("more things of such kinds");
    rig.both("many-dangling", many, |dir| {
        (0..500).for_each(|n| link("gone", dir.join(format!("base/1/l{n}"))))
    });
    rig.end();
}

/// `pg_wal` and tablespaces behind links to odd places.
#[test]
fn servers_links() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let rig = Rig::new();
    let out = rig.outside.clone();
    rig.store.ok(["create", "other"]);
    let (store, mount, other) = (rig.store.dir(), rig.store.dir().join("mnt"), rig.store.path("other"));
    // Of those only what is PostgreSQL's comes in.
    let works = |fork: &Path| {
        assert!(fork.join("pg_wal/00000002.history").is_file() && !fork.join("pg_wal/passwd").exists());
        assert!(fork.join("pg_tblspc/16400/PG_15_202209061/5/16385").is_file());
        assert!(!fork.join("pg_tblspc/16400/passwd").exists());
        assert!(!fork.join("pg_wal/archive_status/etc").exists(), "a link in pg_wal to /etc");
    };
    let dir = rig.fresh("right");
    link(out.join("wal"), dir.join("pg_wal"));
    link(out.join("space"), dir.join("pg_tblspc/16400"));
    for how in ["--from", "--base"] {
        let done = rig.create(how, &dir);
        assert!(done.ok() && done.stderr.contains("a directory elsewhere"), "{}", done.report());
        works(&rig.store.path("prod"));
        rig.store.ok(["rm", "prod"]);
    }
    let places = [
        ("root", "/"),
        ("store", store.to_str().expect("UTF-8")),
        ("mount", mount.to_str().expect("UTF-8")),
        ("fork", other.to_str().expect("UTF-8")),
        ("foreign", out.join("foreign").to_str().expect("UTF-8")).to_owned(),
        ("parent", ".."),
        ("parents", "../../.."),
        ("proc", "/proc/self"),
        ("etc", "/etc"),
        ("dev", "/dev"),
        ("null", "/dev/null"),
        ("file", "/etc/hostname"),
    ]
    .map(|(case, target)| (case, target.to_owned()));
    for (case, target) in places {
        for at in ["pg_wal", "pg_tblspc/16400"] {
            // `..` is below pg_tblspc the data directory itself.
            let target = if at == "pg_wal" { target.clone() } else { target.replacen("..", "../..", 1) };
            let case = format!("{}-to-{case}", at.replace('/', "-"));
            rig.both(&case, Refused(BAD_INPUT, &at[..6]), |dir| link(&target, dir.join(at)));
        }
    }
    for (case, target) in [("self", "16400"), ("nothing", "/nowhere"), ("circle", "16401")] {
        rig.both(&format!("space-to-{case}"), Refused(BAD_INPUT, "pg_tblspc/16400"), |dir| {
            link("16400", dir.join("pg_tblspc/16401"));
            link(target, dir.join("pg_tblspc/16400"));
        });
    }
    rig.both("space-in-itself", Works, |dir| link("../base", dir.join("pg_tblspc/16400")));
    rig.both("space-is-top", Works, |dir| link(dir, dir.join("pg_tblspc/16400")));
    rig.both("wal-in-itself", Works, |dir| link("base", dir.join("pg_wal")));
    rig.each("two-to-one-space", Works, Refused(BAD_INPUT, "more than once"), |dir| {
        (16400..16403).for_each(|n| link(out.join("space"), dir.join(format!("pg_tblspc/{n}"))));
    });
    // Root may read it, the cluster's owner may not: no fork of that owner's shows it.
    if owner().is_some() {
        let closed = out.join("closed/wal");
        rig.both("closed-wal", Refused(BAD_INPUT, "pg_wal"), |dir| link(&closed, dir.join("pg_wal")));
        rig.both("closed-space", Refused(ENVIRONMENT, "pg_tblspc/1"), |dir| {
            link(&closed, dir.join("pg_tblspc/1"))
        });
        rig.both("closed-file", Refused(ENVIRONMENT, "base/1/9999"), |dir| {
            link(out.join("closed/passwd"), dir.join("base/1/9999"));
        });
    }
    // Another fork's WAL can be copied, and not be used in place: the store would wait for itself.
    let wal = other.join("pg_wal");
    rig.each("wal-of-a-fork", Works, Refused(BAD_INPUT, "in the mount"), |dir| {
        link(&wal, dir.join("pg_wal"))
    });
    rig.judge("a-fork", "--base", &other, Refused(BAD_INPUT, "in the mount"));
    rig.judge("a-fork", "--from", &other, Works);
    rig.judge("the-mount", "--base", &mount, Refused(BAD_INPUT, "PG_VERSION"));
    rig.judge("the-mount", "--from", &mount, Refused(BAD_INPUT, "PG_VERSION"));
    rig.store.ok(["rm", "other"]);
    rig.end();
}

/// Pipes, sockets, devices, hard links, names, depths, sizes.
#[test]
fn odd_files() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let rig = Rig::new();
    rig.each("pipe", Warns("a pipe"), Works, |dir| pipe(dir.join("base/1/1260")));
    rig.each("wal-pipe", Warns("a pipe"), Works, |dir| pipe(dir.join("pg_wal/000000010000000000000002")));
    rig.each("socket", Warns("a socket"), Works, |dir| {
        // A socket's path is short.
        let bound = rig.store.scratch().join("s");
        drop(UnixListener::bind(&bound).expect("bind"));
        fs::rename(&bound, dir.join("base/1/1260")).expect("move it");
    });
    if is_root() {
        rig.each("device", Warns("a device"), Refused(BAD_INPUT, "a device"), |dir| {
            let mode = Mode::from_bits_truncate(0o666);
            mknod(&dir.join("base/1/1260"), SFlag::S_IFBLK, mode, nix::sys::stat::makedev(7, 200))
                .expect("mknod");
        });
    } else {
        skipped("the part with devices: making one needs root");
    }
    for name in ["PG_VERSION", "global/pg_control", "postmaster.pid", "postgresql.conf", "pg_ident.conf"] {
        let case = name.replace('/', "-");
        rig.both(&format!("{case}-is-a-pipe"), Refused(BAD_INPUT, name), |dir| pipe(dir.join(name)));
        rig.both(&format!("{case}-is-a-device"), Refused(BAD_INPUT, name), |dir| {
            link("/dev/zero", dir.join(name))
        });
        rig.both(&format!("{case}-is-a-directory"), Refused(BAD_INPUT, name), |dir| {
            let _ = fs::remove_file(dir.join(name));
            fs::create_dir(dir.join(name)).expect("make a directory");
        });
        rig.both(&format!("{case}-is-huge"), Refused(BAD_INPUT, name), |dir| {
            fs::File::create(dir.join(name)).and_then(|file| file.set_len(12 << 40)).expect("a sparse file");
        });
    }
    // What a server leaves at the top no fork inherits.
    rig.each("auto-conf-is-a-pipe", Warns("a pipe"), Works, |dir| pipe(dir.join("postgresql.auto.conf")));
    rig.both("hard-links", Works, |dir| {
        fs::hard_link(dir.join("base/1/1259"), dir.join("base/1/9998")).expect("link");
        fs::hard_link(dir.join("base/1/1259"), dir.join("pg_wal/000000010000000000000007")).expect("link");
    });
    rig.both("deep", Refused(BAD_INPUT, "64"), |dir| nest(&dir.join("base/1"), "d", 3000));
    rig.both("long-path", Refused(BAD_INPUT, "too long"), |dir| {
        nest(&dir.join("base/1"), &"d".repeat(255), 20)
    });
    rig.both("names", Works, |dir| {
        let long = "n".repeat(255);
        for name in
            ["two\nlines", "\x1b[31mred", "tab\t", "'quote\\", " ", "...", "-rf", "$(id)", "%s", &long]
        {
            fs::write(dir.join("base/1").join(name), name).expect("write a file");
        }
    });
    rig.both("names-of-links", Warns("was left out"), |dir| link("gone\x1b[31m\n", dir.join("a\x1b[2J\nb")));
    rig.each("not-utf8", Works, Refused(BAD_INPUT, "UTF-8"), |dir| {
        fs::write(dir.join("base/1").join(OsStr::from_bytes(b"\xff\x1b[31m\xfe")), "x")
            .expect("write a file");
    });
    rig.both("sizes", Works, |dir| {
        for (n, size) in [0, 1, 511, 4096, 8191, 8192, 8193, 12_345, 100_001].into_iter().enumerate() {
            for at in [
                format!("base/1/{}", 20_000 + n),
                format!("pg_wal/0000000100000000000000A{n}"),
                format!("x{n}"),
            ] {
                fs::write(dir.join(at), vec![b'x'; size]).expect("write a file");
            }
        }
    });
    rig.both("sparse", Works, |dir| {
        for name in ["base/1/9999", "pg_wal/000000010000000000000002", "huge"] {
            let file = fs::File::create(dir.join(name)).expect("make a file");
            file.set_len((12 << 40) + 5).expect("make it large");
            file.write_all_at(b"x", 7 << 40).expect("write into it");
        }
    });
    if owner().is_some() {
        rig.both("unreadable-file", Refused(ENVIRONMENT, "base/1/2619"), |dir| {
            close(&dir.join("base/1/2619"))
        });
        rig.both("unreadable-directory", Refused(ENVIRONMENT, "pg_xact"), |dir| close(&dir.join("pg_xact")));
    }
    rig.end();
}

/// Directories in each other, deeper than any path is long.
fn nest(dir: &Path, name: &str, levels: usize) {
    let script = "cd \"$1\"; i=0; while [ $i -lt $3 ]; do mkdir $2; cd -P $2; i=$((i+1)); done";
    run(crate::common::pg::as_owner("sh")
        .args(["-ec", script, "sh"])
        .arg(dir)
        .arg(name)
        .arg(levels.to_string()))
    .expect_ok();
}

/// Makes something root's alone.
fn close(path: &Path) {
    std::os::unix::fs::chown(path, Some(0), Some(0)).expect("take it");
    fs::set_permissions(path, PermissionsExt::from_mode(0o000)).expect("close it");
}

/// Files of exbibytes, of which two are more than can be counted.
#[test]
fn files_beyond_counting() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() || !in_memory(memory) {
        return skipped("files of exbibytes need tmpfs at /dev/shm");
    }
    let rig = Rig::new();
    let place = tempfile::Builder::new().prefix("pgcowfs-test-").tempdir_in(memory).expect("a directory");
    fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).expect("open it");
    for (case, sizes, want) in [
        ("beyond", vec![i64::MAX as u64; 3], Refused(BAD_INPUT, "is the most")),
        // The largest that a fork can have, and so many that their sum is no number.
        ("largest", vec![u64::from(u32::MAX) * 8192; 20], Works),
    ] {
        let dir = rig.fresh(case);
        let there = place.path().join(case);
        run(Command::new("cp").arg("-a").arg(&dir).arg(&there)).expect_ok();
        for (n, size) in sizes.into_iter().enumerate() {
            let file = fs::File::create(there.join(format!("base/1/{}", 20_000 + n))).expect("make a file");
            file.set_len(size).expect("make it large");
        }
        give_away(&there);
        for how in ["--from", "--base"] {
            rig.judge(case, how, &there, want);
        }
    }
    rig.end();
}

/// What a cluster says about itself: version, block size, process, backup.
#[test]
fn lying_files() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let rig = Rig::new();
    let versions: [&[u8]; 10] = [
        b"",
        b"\n",
        b"x",
        b"-15",
        b"15x",
        b"11",
        b"\xff\xfe",
        b"15\0",
        b"\x1b[31m15",
        b"99999999999999999999999999",
    ];
    for (n, version) in versions.into_iter().enumerate() {
        rig.both(&format!("version-{n}"), Refused(BAD_INPUT, "PG_VERSION"), |dir| {
            if version == b"11" {
                // Said otherwise: it is a version.
                return fs::write(dir.join("PG_VERSION"), b"PG").expect("write");
            }
            fs::write(dir.join("PG_VERSION"), version).expect("write");
        });
    }
    rig.both("version-of-the-future", Refused(ENVIRONMENT, "4000000000"), |dir| {
        fs::write(dir.join("PG_VERSION"), "4000000000\n").expect("write");
    });
    let control = fs::read(rig.fresh("control").join("global/pg_control")).expect("read pg_control");
    let other: Vec<u8> = control.iter().map(|byte| byte.wrapping_add(77)).collect();
    let controls: [&[u8]; 6] = [b"", b"x", &control[..200], &[0; 8192], &[0xff; 8192], &other];
    for (n, bytes) in controls.into_iter().enumerate() {
        rig.both(&format!("control-{n}"), Refused(BAD_INPUT, "pg_control"), |dir| {
            fs::write(dir.join("global/pg_control"), bytes).expect("write");
        });
    }
    rig.both("no-control", Refused(BAD_INPUT, "pg_control"), |dir| {
        fs::remove_file(dir.join("global/pg_control")).expect("remove");
    });
    // Whatever a postmaster.pid says, a server is one that works in that directory.
    let me = format!("{}\n/elsewhere\n", std::process::id());
    let pids: [&[u8]; 8] =
        [b"", me.as_bytes(), b"1\n", b"0\n", b"-1\n", b"-2147483648\n", b"99999999999\n", b"\xff\0\x1b\n"];
    for (n, text) in pids.into_iter().enumerate() {
        rig.both(&format!("pid-{n}"), Works, |dir| {
            fs::write(dir.join("postmaster.pid"), text).expect("write")
        });
    }
    // A server that begins with a backup makes links to where the map says.
    let map = format!("16400 {}\n", rig.outside.join("space").display());
    rig.both("map-without-label", Works, |dir| fs::write(dir.join("tablespace_map"), &map).expect("write"));
    rig.both("map-with-label", Refused(BAD_INPUT, "tablespace 16400"), |dir| {
        fs::write(dir.join("tablespace_map"), &map).expect("write");
        fs::write(
            dir.join("backup_label"),
            "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n",
        )
        .expect("write");
    });
    rig.both("lying-label", Works, |dir| {
        fs::write(dir.join("tablespace_map"), "16400 ../base\n\nx\n").expect("write");
        fs::write(dir.join("backup_label"), vec![0xff; 100_000]).expect("write");
    });
    rig.end();
}

/// Configuration that has no end, leads elsewhere, or is none.
#[test]
fn hostile_configuration() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let rig = Rig::new();
    let out = rig.outside.clone();
    let refused = |what| Refused(BAD_INPUT, what);
    rig.both("include-itself", refused("levels"), |dir| conf(dir, "include 'postgresql.conf'"));
    rig.both("include-circle", refused("levels"), |dir| {
        conf(dir, "include 'a.conf'");
        fs::write(dir.join("a.conf"), "include 'b.conf'").expect("write");
        fs::write(dir.join("b.conf"), "include 'a.conf'").expect("write");
    });
    rig.both("include-chain", refused("levels"), |dir| {
        conf(dir, "include 'c0'");
        (0..5000).for_each(|n| {
            fs::write(dir.join(format!("c{n}")), format!("include 'c{}'", n + 1)).expect("write");
        });
    });
    rig.both("include-bomb", refused("1000 files"), |dir| {
        conf(dir, "include 'c0'\n".repeat(30));
        (0..9).for_each(|n| {
            fs::write(dir.join(format!("c{n}")), format!("include 'c{}'\n", n + 1).repeat(30))
                .expect("write");
        });
        fs::write(dir.join("c9"), "").expect("write");
    });
    rig.both("include-top", refused("levels"), |dir| conf(dir, "include_dir '.'"));
    rig.both("include-above", refused("levels"), |dir| {
        conf(dir, "include_dir 'conf.d'");
        fs::create_dir(dir.join("conf.d")).expect("make a directory");
        fs::write(dir.join("conf.d/a.conf"), "include_dir '..'").expect("write");
    });
    rig.both("include-root", Works, |dir| {
        conf(dir, "include_dir '/'\ninclude_dir '/dev'\ninclude_if_exists '/x'")
    });
    rig.both("include-linked", Works, |dir| {
        conf(dir, format!("include '{}/wal/00000002.history'", out.display()))
    });
    let long = "x".repeat(1 << 20);
    for (case, line, what) in [
        ("zero", "include '/dev/zero'", "a device"),
        ("pipe", "include 'pipe'", "a pipe"),
        ("etc", "include '/etc'", "a directory"),
        ("file", "include_dir 'PG_VERSION'", "PG_VERSION"),
        ("nothing", "include 'nothing'", "does not exist"),
        ("no-directory", "include_dir 'nothing'", "does not exist"),
        ("nul", "include 'a\\000b'", "does not exist"),
        ("long", &format!("include '{long}'"), "mend that line"),
        ("escape", "include '\\033[31m'", "does not exist"),
        ("hba-zero", "hba_file = '/dev/zero'", "/dev/zero"),
        ("hba-pipe", "hba_file = 'pipe'", "a pipe"),
        ("hba-directory", "hba_file = '/etc'", "a directory"),
        ("hba-nul", "hba_file = 'a\\000b'", "a"),
        ("hba-long", &format!("hba_file = '{long}'"), "long"),
        ("ident-pipe", "ident_file = 'pipe'", "a pipe"),
        ("ident-nothing", "ident_file = '/nowhere'", "/nowhere"),
    ] {
        rig.both(&format!("conf-{case}"), refused(what), |dir| {
            fs::create_dir(dir.join("d")).expect("make a directory");
            pipe(dir.join("d/pipe"));
            conf(dir, line.replace("'pipe'", "'d/pipe'"));
        });
    }
    if owner().is_some() {
        let closed = format!("include '{}/closed/passwd'", out.display());
        rig.both("conf-closed", Refused(BAD_INPUT, "closed/passwd"), |dir| conf(dir, &closed));
    }
    rig.both("conf-is-bytes", Works, |dir| {
        fs::write(dir.join("postgresql.conf"), (0..=255).cycle().take(100_000).collect::<Vec<u8>>())
            .expect("write");
    });
    rig.both("conf-is-one-line", Works, |dir| conf(dir, format!("a = '{}'", "'' ".repeat(2 << 20))));
    rig.both("conf-is-empty", Works, |dir| fs::write(dir.join("postgresql.conf"), "").expect("write"));
    rig.both("conf-is-long", refused("postgresql.conf"), |dir| conf(dir, "# x\n".repeat(5 << 20)));
    rig.both("ssl-pipe", Warns("ssl is off"), |dir| {
        pipe(dir.join("pipe"));
        conf(dir, "ssl = on\nssl_key_file = 'pipe'\nssl_cert_file = '/dev/zero'");
    });
    rig.end();
}

/// The oracle can fail: each kind of thing that it is to find is put before it.
#[test]
fn the_judge_sees_what_it_is_to_see() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let rig = Rig::new();
    let honest = rig.fresh("honest");
    assert_eq!(judge_fork(&honest, &honest), Vec::<String>::new());
    type Spoil = fn(&Path);
    let wrongs: [(&str, Spoil); 5] = [
        ("leads out", |fork| link("/etc/hostname", fork.join("base/1/x"))),
        ("a secret", |fork| fs::write(fork.join("base/1/x"), format!("...{SECRET}...")).expect("write")),
        ("differ", |fork| fs::write(fork.join("base/1/112"), "another").expect("write")),
        ("differ", |fork| fs::remove_file(fork.join("pg_xact/0000")).expect("remove")),
        ("differ", |fork| fs::write(fork.join("PG_VERSION"), "16\n").expect("write")),
    ];
    for (n, (what, spoil)) in wrongs.into_iter().enumerate() {
        let fork = rig.fresh(&format!("wrong-{n}"));
        spoil(&fork);
        let found = judge_fork(&honest, &fork);
        assert!(found.len() == 1 && found[0].contains(what), "{what}: {found:?}");
    }
    let look = || {
        let mut all = std::collections::BTreeMap::new();
        survey(&rig.outside, &mut all);
        all
    };
    let before = look();
    assert!(differences(&before, &look()).is_empty());
    fs::write(rig.outside.join("linked"), SECRET).expect("write");
    fs::remove_file(rig.outside.join("wal/passwd")).expect("remove");
    let found = differences(&before, &look());
    assert!(found.iter().any(|line| line.contains("linked")), "{found:?}");
    assert!(found.iter().any(|line| line.contains("wal/passwd")), "{found:?}");
}

/// Spoiled and brought in all the same: the servers of both kinds of forks start and read what the cluster had.
#[test]
fn a_spoiled_cluster_serves() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let rig = Rig::new();
    let source = Plain::create(rig.store.scratch(), "spoiled", QUIET);
    let at = source.start();
    let pg = crate::common::pg::Postgres::get();
    pg.psql(&at, "postgres", "CREATE TABLE t AS SELECT generate_series(1, 20000) AS n").expect_ok();
    source.stop("fast");
    let dir = source.pgdata();
    link("/", dir.join("base/5/root"));
    link("self", dir.join("self"));
    link(rig.outside.join("linked"), dir.join("linked"));
    pipe(dir.join("base/pipe"));
    fs::write(dir.join("postmaster.pid"), "-2147483648\n").expect("write");
    fs::write(dir.join("two\nlines"), "x").expect("write");
    fs::File::create(dir.join("base/5/99999"))
        .and_then(|file| file.set_len(12 << 40))
        .expect("a sparse file");
    give_away(dir);
    for (name, how) in [("copied", "--from"), ("based", "--base")] {
        rig.store.ok(["create", name, how, dir.to_str().expect("UTF-8")]);
        assert_eq!(judge_fork(dir, &rig.store.path(name)), Vec::<String>::new());
        rig.store.start(name);
        assert_eq!(psql(&rig.store, name, "SELECT count(*), max(n) FROM t"), "20000|20000");
        rig.store.ok(["fork", name, "child"]);
        rig.store.start("child");
        assert_eq!(psql(&rig.store, "child", "UPDATE t SET n = 0; SELECT sum(n) FROM t"), "0");
        for fork in ["child", name] {
            rig.store.stop(fork);
            rig.store.ok(["rm", fork]);
        }
    }
    rig.end();
}
