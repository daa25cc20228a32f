//! Who may use a store, and what others can find out: nothing.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::process::run;
use crate::common::store::{QUIET, Store, text};
use crate::common::{is_root, skipped, turn_on_a_mount};

/// A user with nothing to do here.
const NOBODY: u32 = 65_534;

/// Runs `work` on a thread that is another user.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // The raw calls change this thread alone; libc's change all.
            // SAFETY: no memory is passed, but for an empty list.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()), 0);
                assert_eq!(libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY), 0);
            }
            work()
        });
        thread.join().expect("the other user's thread")
    })
}

/// Nobody but its owner and root uses a store, by its commands or by its socket.
#[test]
fn another_user_is_refused() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    if !is_root() {
        return skipped("being another user needs root");
    }
    let store = Store::new();
    store.ok(["mount"]);
    // The program where that user can reach it.
    let program = store.scratch().join("pgcowfs-for-all");
    std::fs::copy(store.command_anywhere().get_program(), &program).expect("copy the program");
    let setpriv = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        run(command.arg("--store").arg(store.dir()).args(args).env_remove("PGCOWFS_STORE"))
    };
    let commands: [&[&str]; 7] = [
        &["list"],
        &["status"],
        &["create", "x"],
        &["umount", "--force"],
        &["mount"],
        &["rm", "x"],
        &["init"],
    ];
    for args in commands {
        let done = setpriv(args);
        assert!(!done.ok() && done.stdout.is_empty(), "{}", done.report());
    }
    assert_eq!(setpriv(&["list"]).code, 6, "permission is exit status 6");
    let control = store.dir().join("control.sock");
    let refused = as_nobody(|| UnixStream::connect(&control)).expect_err("the socket is closed to others");
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    // And if somebody has opened the socket to all, the daemon asks who they are.
    std::fs::set_permissions(&control, PermissionsExt::from_mode(0o777)).expect("open the socket");
    let mut answer = String::new();
    as_nobody(|| {
        let mut socket = UnixStream::connect(&control).expect("connect");
        // The daemon may have refused and closed before this comes.
        let _ = socket.write_all(b"{\"op\":\"hello\"}\n{\"op\":\"list\"}\n");
        // A socket that is closed with something unread in it ends with a reset.
        let _ = socket.read_to_string(&mut answer);
    });
    assert!(answer.contains("may not use this store") && !answer.contains("mountpoint"), "{answer:?}");
    assert_eq!(answer.lines().count(), 1, "{answer}");
    assert!(store.ok(["list"]).contains("NAME"), "its owner still may");
}

/// Requests that never end, clients that never go: the daemon lets them be, and serves the others.
#[test]
fn clients_have_limits() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.ok(["mount"]);
    let pid = store.daemon_pid();
    let connect = || {
        let socket = UnixStream::connect(store.dir().join("control.sock")).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a guard");
        socket
    };
    let hello = |socket: &UnixStream| {
        // Who is turned away may be so before this comes; the answer is there all the same.
        let _ = (&mut &*socket).write_all(b"{\"op\":\"hello\"}\n");
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).expect("an answer");
        line
    };
    // A gigabyte without a line's end: an error after a mebibyte of it.
    let mut endless = connect();
    let chunk = vec![b'x'; 1 << 20];
    let sent = (0..1024).take_while(|_| endless.write_all(&chunk).is_ok()).count();
    assert!(sent < 16, "{sent} MiB of one request were taken");
    // What is no request is answered, whatever it is.
    for odd in [
        "",
        "{",
        "[]",
        "null",
        "{\"op\":\"rm -rf\"}",
        "{\"op\":\"info\"}",
        "\u{0}\u{1}\u{2}",
        "{\"op\":\"info\",\"fork\":[[[[",
    ] {
        let mut socket = connect();
        socket.write_all(format!("{odd}\n").as_bytes()).expect("write");
        let mut line = String::new();
        BufReader::new(&socket).read_line(&mut line).expect("an answer");
        assert!(line.contains("does not understand"), "{odd:?}: {line}");
    }
    let deep = format!("{}\n", "[".repeat(900_000));
    let mut socket = connect();
    socket.write_all(deep.as_bytes()).expect("write");
    let mut line = String::new();
    BufReader::new(&socket).read_line(&mut line).expect("an answer");
    assert!(line.contains("does not understand"), "{line}");
    // Names that would lead out of the store.
    let mut socket = connect();
    for fork in ["..", ".", "", "a/b", "../../x", "/", "a\\u0000b", "\\u202e", "a\\nb", "-x", "con fig", "é"]
    {
        for op in ["info", "remove", "sync", "publish"] {
            let request = format!("{{\"op\":\"{op}\",\"fork\":\"{fork}\"}}\n");
            socket.write_all(request.as_bytes()).expect("write");
            let mut line = String::new();
            BufReader::new(&socket).read_line(&mut line).expect("an answer");
            assert!(line.contains("\"error\""), "{request}: {line}");
        }
    }
    drop(socket);
    // Too many at once: the first get their answers, and one more is told why it does not.
    let mut many = Vec::new();
    let refused = loop {
        let socket = connect();
        let answer = hello(&socket);
        if answer.contains("\"error\"") {
            break answer;
        }
        many.push(socket);
        assert!(many.len() <= 200, "no limit");
    };
    assert!(refused.contains("clients already"), "{refused}");
    let done = store.run(["list"]);
    assert_eq!(done.code, 5, "{}", done.report());
    assert!(done.stderr.contains("clients already"), "{}", done.report());
    drop(many);
    crate::common::process::wait_until("places for clients", || store.run(["list"]).ok());
    assert_eq!(store.daemon_pid(), pid, "the daemon has lived through it");
}

/// With few files to open a daemon serves many forks all the same; with far too few it says so.
#[test]
fn few_open_files() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    if crate::common::process::in_path("prlimit").is_none() {
        return skipped("no prlimit");
    }
    let store = Store::new();
    let with_files = |limit: u32| {
        let plain = store.command(["mount"]);
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}:{limit}")).arg(plain.get_program()).args(plain.get_args());
        run(command.env_remove("PGCOWFS_STORE"))
    };
    let refused = with_files(100);
    assert_eq!(refused.code, 6, "{}", refused.report());
    assert!(
        refused.stderr.contains("100 files open") && refused.stderr.contains("ulimit"),
        "{}",
        refused.report()
    );
    with_files(256).expect_ok();
    let daemon = store.daemon_pid();
    store.create("main", "max_wal_size = 32MB");
    let forks: Vec<String> = (0..80).map(|n| format!("f{n}")).collect();
    // Ports are not what this is about; the default range of a test has 40.
    for (n, fork) in forks.iter().enumerate() {
        store.ok(["fork", "main", fork, "--port", &(30_000 + n).to_string()]);
        for part in 0..3 {
            let file = store.dir().join("mnt").join(fork).join(format!("base/{part}{n}"));
            std::fs::write(file, [n as u8; 20_000]).expect("a file of the fork");
        }
    }
    for round in 0..3 {
        for (n, fork) in forks.iter().enumerate() {
            for part in 0..3 {
                let file = store.dir().join("mnt").join(fork).join(format!("base/{part}{n}"));
                let open = std::fs::File::options().read(true).write(true).open(&file).expect("open");
                use std::os::unix::fs::FileExt;
                let mut read = [0; 20_000];
                open.read_exact_at(&mut read, 0).expect("read");
                assert!(read == [n as u8 + round; 20_000], "{}", file.display());
                open.write_all_at(&[n as u8 + round + 1; 20_000], 0).expect("write");
                open.sync_data().expect("sync");
            }
        }
    }
    let open = std::fs::read_dir(format!("/proc/{daemon}/fd")).expect("the daemon's files").count();
    assert!(open < 256, "{open} files are open");
    // A server, and clients, beside all that.
    store.start("f7");
    assert_eq!(store.sql("f7", "postgres").number("select 42").expect("a number"), 42);
    store.stop("f7");
    assert_eq!(store.daemon_pid(), daemon, "the daemon is the same");
    let log = std::fs::read_to_string(store.dir().join("daemon.log")).expect("the daemon's log");
    assert!(!log.contains("ERROR"), "{log}");
}

/// All command lines that were seen while it ran.
struct CommandLines {
    stop: AtomicBool,
    seen: Mutex<BTreeSet<String>>,
}

impl CommandLines {
    fn watch(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
                    let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    self.seen.lock().expect("no panic").insert(line);
                }
            }
        }
    }
}

/// The password that `create` makes is in no process list, in no log, and in no file that others can read; and nothing
/// in a store can be read by others at all.
#[test]
fn the_password_is_nowhere_else() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    let lines = CommandLines { stop: AtomicBool::new(false), seen: Mutex::default() };
    let verbose = |args: &[&str]| {
        run(store.command(args).env("PGCOWFS_LOG", "debug")).expect_ok();
    };
    let url = std::thread::scope(|scope| {
        scope.spawn(|| lines.watch());
        verbose(&["create", "main"]);
        verbose(&["start", "main"]);
        verbose(&["fork", "main", "child", "--checkpoint", "always", "--start"]);
        verbose(&["psql", "child", "--", "-c", "select 1"]);
        verbose(&["restart", "child"]);
        let url = store.json(["url", "main"]);
        run(Command::new("psql")
            .arg("-c")
            .arg("select 1")
            .env("PGPASSWORD", text(&url, "password"))
            .arg(store.show("main")["tcp_url"].as_str().expect("a URL")))
        .expect_ok();
        lines.stop.store(true, Ordering::SeqCst);
        url
    });
    let password = text(&url, "password");
    assert!(password.len() >= 16, "a password worth hiding");
    let seen = lines.seen.into_inner().expect("no panic");
    assert!(seen.iter().any(|line| line.contains("initdb")), "the sampling missed initdb: {seen:?}");
    assert!(seen.iter().any(|line| line.contains("fork main child")), "the sampling missed pgcowfs");
    let shown: Vec<_> = seen.iter().filter(|line| line.contains(password)).collect();
    assert!(shown.is_empty(), "in a process list: {shown:?}");
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["show", "child"],
        &["show", "child", "--json"],
        &["status", "--json"],
    ] {
        assert!(!store.ok(args).contains(password), "{args:?} shows it");
    }

    // The store's files, and those of the forks through the mount.
    let mut logs = 0;
    let mut files = 0;
    let mut walk = vec![store.dir().to_owned()];
    while let Some(dir) = walk.pop() {
        for entry in std::fs::read_dir(&dir).expect("list").flatten() {
            let path = entry.path();
            let Ok(meta) = path.symlink_metadata() else { continue };
            let mode = meta.mode() & 0o7777;
            if meta.is_dir() {
                assert!(mode & 0o066 == 0, "others can list {}: {mode:o}", path.display());
                walk.push(path);
                continue;
            }
            files += 1;
            // The socket of a server is open to all who can get to it.
            let guarded = guarded_by_directory(&path, store.dir());
            assert!(mode & 0o077 == 0 || guarded, "others can use {}: {mode:o}", path.display());
            if path.extension().is_some_and(|e| e == "log") && !path.starts_with(store.dir().join("map")) {
                logs += 1;
                let text = std::fs::read(&path).expect("read a log");
                assert!(!contains(&text, password.as_bytes()), "{} has it", path.display());
            }
        }
    }
    assert!(files > 1000 && logs >= 3, "{files} files and {logs} logs were looked at");
    let log = std::fs::read_to_string(store.dir().join("daemon.log")).expect("the daemon's log");
    assert!(log.contains("(secret)"), "the daemon was not chatty, so its log proves nothing");
    store.stop("child");
    store.stop("main");
}

/// What a fork's user can do to its files, and to the directory of its sockets, is that user's own trouble: no command
/// hangs or takes memory without bound, and the daemon goes on.
#[test]
fn a_forks_user_upsets_nobody_else() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.ok(["fork", "main", "other"]);
    let daemon = store.daemon_pid();
    let (data, sockets) = (store.path("main"), PathBuf::from(text(&store.show("main"), "socket_dir")));
    let pid_file = data.join("postmaster.pid");
    let pipe = |path: &Path| {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("make a pipe");
    };
    let write = |path: &Path, bytes: &[u8]| std::fs::write(path, bytes).expect("write a file");
    let spoils: [(&str, &dyn Fn()); 7] = [
        ("no number is its negation", &|| write(&pid_file, b"-2147483648\n")),
        ("no text", &|| write(&pid_file, b"\xff\xfe\0\n")),
        ("this very process", &|| write(&pid_file, format!("{}\n", std::process::id()).as_bytes())),
        ("a pipe", &|| pipe(&pid_file)),
        ("terabytes", &|| {
            let file = std::fs::File::create(&pid_file).expect("make a file");
            file.set_len(20 << 40).expect("make it large");
        }),
        ("a pipe for a socket's lock", &|| {
            write(&pid_file, b"1\n");
            pipe(&sockets.join("x.lock"));
        }),
        ("a socket's lock of no process", &|| write(&sockets.join("y.lock"), b"-2147483648\n/\n")),
    ];
    for (what, spoil) in spoils {
        spoil();
        let row = store.show("main");
        assert_ne!(text(&row, "state"), "running", "{what}");
        store.ok(["list"]);
        store.ok(["fork", "main", "child"]);
        store.ok(["rm", "child"]);
        store.start("main");
        store.stop("main");
        assert_eq!(store.daemon_pid(), daemon, "{what}: the daemon is the same");
    }
    // The daemon dies: what it left is found by those files too.
    pipe(&sockets.join("z.lock"));
    pipe(&pid_file);
    store.kill_daemon();
    assert_eq!(store.listing().len(), 2);
    store.start("main");
    store.stop("main");

    // Configuration that includes itself a million times over.
    write(&data.join("more.conf"), &b"include 'most.conf'\n".repeat(200));
    write(&data.join("most.conf"), &b"include 'all.conf'\n".repeat(200));
    write(&data.join("all.conf"), &b"include 'last.conf'\n".repeat(200));
    write(&data.join("last.conf"), b"");
    store.configure("main", &"include 'more.conf'\n".repeat(200));
    let done = store.run(["fork", "main", "child"]);
    assert!(done.code == 7 && done.stderr.contains("1000 files"), "{}", done.report());
    store.ok(["fork", "other", "child"]);
    assert_eq!(store.listing().len(), 3);
}

/// Whether a directory above `path` keeps everybody else out.
fn guarded_by_directory(path: &Path, store: &Path) -> bool {
    let above = path.ancestors().skip(1).take_while(|dir| dir.starts_with(store));
    above.map(PathBuf::from).any(|dir| dir.metadata().is_ok_and(|meta| meta.mode() & 0o077 == 0))
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}
