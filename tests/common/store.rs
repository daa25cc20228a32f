//! A store of one test, driven through the `pgcowfs` program.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::pg::{Endpoint, Postgres, as_owner, owner};
use super::plain::append;
use super::process::{Done, is_alive, run, signal, try_run, wait_until};
use super::scratch::Scratch;
use super::sql::Sql;

/// Settings under which a fork that is not one instant shows it. With PostgreSQL's defaults even `cp -a` of a running
/// cluster passed as a fork: nearly all pages then sit in shared buffers and recovery repairs the rest.
pub const AGGRESSIVE: &str = "shared_buffers = 2MB\n\
    bgwriter_delay = 10ms\n\
    bgwriter_lru_maxpages = 1000\n\
    min_wal_size = 32MB\n\
    max_wal_size = 64MB\n\
    autovacuum_naptime = 1s\n\
    max_connections = 40\n";

/// Settings for exact counts: nothing writes unless the test asks for it.
pub const QUIET: &str = "autovacuum = off\n\
    checkpoint_timeout = 1h\n\
    max_wal_size = 4GB\n\
    bgwriter_lru_maxpages = 0\n\
    shared_buffers = 32MB\n\
    max_connections = 40\n";

/// A store in its own directory, unmounted and removed at the end of the test.
pub struct Store {
    dir: PathBuf,
    program: PathBuf,
    run_as: Option<(u32, u32)>,
    kept: bool,
    /// Last, so that the directory goes when everything in it has ended.
    scratch: Scratch,
}

impl Store {
    /// Makes a store, as whoever runs the tests.
    #[track_caller]
    pub fn new() -> Store {
        Store::bare(None).initialised()
    }

    /// Makes a store as an ordinary user: as root that is the owner of clusters, otherwise ourselves.
    #[track_caller]
    pub fn new_unprivileged() -> Store {
        Store::bare(owner()).initialised()
    }

    /// The same without `init`: `DIR` does not exist yet.
    #[track_caller]
    pub fn bare(run_as: Option<(u32, u32)>) -> Store {
        let scratch = Scratch::new();
        let home = scratch.subdir_of("home", run_as);
        let built = std::env::var_os("PGCOWFS_BIN")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_pgcowfs")), PathBuf::from);
        // Cargo's directory can be closed to other users.
        let program = if run_as.is_some() {
            let copy = scratch.join("pgcowfs");
            std::fs::copy(&built, &copy).expect("copy the program");
            copy
        } else {
            built
        };
        Store { dir: home.join("store"), program, run_as, kept: false, scratch }
    }

    /// A store in a given directory, not yet made, for tests that bring a disk of their own.
    #[track_caller]
    pub fn at(dir: &Path) -> Store {
        let mut store = Store::bare(None);
        store.dir = dir.to_owned();
        store
    }

    #[track_caller]
    fn initialised(self) -> Store {
        self.init();
        self
    }

    /// `init`, for a store whose directory a test has chosen.
    #[track_caller]
    pub fn init(&self) {
        // Stores that are in use at a time share the machine's ports: a fork's
        // port is free when it is given out, not for ever.
        static STORES: AtomicU32 = AtomicU32::new(0);
        let place = (std::process::id() + 7 * STORES.fetch_add(1, Ordering::Relaxed)) % 500;
        let first = 12_000 + 40 * place;
        self.ok(["init", "--port-range", &format!("{first}-{}", first + 39)]);
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves everything where it is, running or not, when this goes.
    pub fn keep(&mut self) {
        self.kept = true;
        self.scratch.keep();
    }

    /// The test's own directory, beside the store.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Whom its commands run as, if not as whoever runs the tests.
    pub fn run_as(&self) -> Option<(u32, u32)> {
        self.run_as
    }

    /// A `pgcowfs` command on this store, not yet run.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.command_anywhere();
        command.arg("--store").arg(&self.dir).args(args);
        command
    }

    /// A `pgcowfs` command without `--store`.
    pub fn command_anywhere(&self) -> Command {
        let mut command = Command::new(&self.program);
        let home = self.dir.parent().expect("the store is in a directory");
        command.current_dir("/").env("HOME", home);
        for name in [
            "PGCOWFS_STORE",
            "XDG_DATA_HOME",
            "XDG_CONFIG_HOME",
            "XDG_CACHE_HOME",
            "XDG_STATE_HOME",
            "PGDATA",
            "PGHOST",
            "PGPORT",
            "PGUSER",
        ] {
            command.env_remove(name);
        }
        if let Some(path) = path_with_tested_binaries() {
            command.env("PATH", path);
        }
        if let Some((uid, gid)) = self.run_as {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs `pgcowfs` to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        run(&mut self.command(args))
    }

    /// Runs `pgcowfs`, which must succeed; its standard output.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        self.run(args).expect_ok()
    }

    /// Runs `pgcowfs ... --json`, which must succeed and print one JSON value.
    #[track_caller]
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        let args: Vec<_> = args
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .chain([OsStr::new("--json").to_owned()])
            .collect();
        let done = self.run(args);
        assert!(done.ok(), "failed: {}", done.report());
        serde_json::from_str(&done.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {}", done.report()))
    }

    /// Makes a root fork with page checksums and the given lines in its configuration.
    #[track_caller]
    pub fn create(&self, name: &str, config: &str) {
        self.ok(["create", name, "--initdb-arg=--data-checksums"]);
        self.configure(name, config);
    }

    /// The same without page checksums: PostgreSQL then writes pages with nothing but hint bits changed, which have no
    /// image in the WAL.
    #[track_caller]
    pub fn create_without_checksums(&self, name: &str, config: &str) {
        // From version 18 on they are what one gets unasked.
        let off = (Postgres::get().major() >= 18).then_some("--initdb-arg=--no-data-checksums");
        self.ok(["create", name].into_iter().chain(off));
        self.configure(name, config);
    }

    /// Adds lines to a fork's configuration.
    #[track_caller]
    pub fn configure(&self, name: &str, lines: &str) {
        let file = self.path(name).join("postgresql.conf");
        if self.run_as.is_none() {
            return append(&file, lines);
        }
        // Only its own user reaches a mount that `fusermount3` has made, not even root does.
        run(as_owner("sh").args(["-ec", "printf '%s\\n' \"$2\" >> \"$1\"", "sh"]).arg(&file).arg(lines))
            .expect_ok();
    }

    /// Starts a fork's server.
    #[track_caller]
    pub fn start(&self, name: &str) -> Endpoint {
        self.ok(["start", name]);
        self.endpoint(name)
    }

    /// Starts a fork's server without full page images in its WAL: a page that is torn, by a crash or by a fork, stays
    /// torn.
    #[track_caller]
    pub fn start_without_page_images(&self, name: &str) -> Endpoint {
        self.ok(["start", name, "--full-page-writes", "off"]);
        self.endpoint(name)
    }

    /// Stops a fork's server.
    #[track_caller]
    pub fn stop(&self, name: &str) {
        self.ok(["stop", name]);
    }

    /// `show NAME --json`.
    #[track_caller]
    pub fn show(&self, name: &str) -> Value {
        self.json(["show", name])
    }

    /// How to reach a fork's server, by what `show` says.
    #[track_caller]
    pub fn endpoint(&self, name: &str) -> Endpoint {
        let show = self.show(name);
        let port = u16::try_from(number(&show, "port")).expect("a port");
        let (user, password) = credentials(text(&show, "url"));
        Endpoint { host: PathBuf::from(text(&show, "socket_dir")), port, user, password }
    }

    /// The data directory, by what `path` says.
    #[track_caller]
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(self.ok(["path", name]).trim_end())
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.json(["status"])
    }

    /// Process id of the daemon.
    #[track_caller]
    pub fn daemon_pid(&self) -> u32 {
        u32::try_from(number(&self.status(), "pid")).expect("a process id")
    }

    /// FUSE requests of one kind that have reached the daemon since it started.
    #[track_caller]
    pub fn requests(&self, kind: &str) -> u64 {
        let status = self.status();
        let counts = status["requests"]
            .as_object()
            .unwrap_or_else(|| panic!("status has no object \"requests\": {status}"));
        // A kind that has not occurred may be left out.
        counts
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(kind))
            .map_or(0, |(_, count)| count.as_u64().expect("a count"))
    }

    /// Ends the daemon the hard way and waits until it is gone.
    #[track_caller]
    pub fn kill_daemon(&self) {
        let pid = self.daemon_pid();
        signal(pid, nix::sys::signal::Signal::SIGKILL);
        wait_until("the daemon's end", || !is_alive(pid));
    }

    /// Names and states of all forks, sorted: what a refused command must not change.
    #[track_caller]
    pub fn listing(&self) -> Vec<String> {
        let list = self.json(["list"]);
        let mut lines: Vec<String> = list
            .as_array()
            .unwrap_or_else(|| panic!("list --json is no array: {list}"))
            .iter()
            .map(|fork| {
                format!(
                    "{} parent={} state={} port={}",
                    text(fork, "name"),
                    fork["parent"],
                    text(fork, "state"),
                    fork["port"]
                )
            })
            .collect();
        lines.sort();
        lines
    }

    /// Names of all forks.
    #[track_caller]
    pub fn names(&self) -> Vec<String> {
        let list = self.json(["list"]);
        let forks = list.as_array().unwrap_or_else(|| panic!("list --json is no array: {list}"));
        forks.iter().map(|fork| text(fork, "name").to_owned()).collect()
    }

    /// Process id of a fork's postmaster, by its pid file.
    pub fn postmaster(&self, name: &str) -> Option<u32> {
        let file = std::fs::read_to_string(self.path(name).join("postmaster.pid")).ok()?;
        file.lines().next()?.trim().parse().ok().filter(|pid| is_alive(*pid))
    }

    /// A connection to a fork's server.
    #[track_caller]
    pub fn sql(&self, name: &str, dbname: &str) -> Sql {
        let at = self.endpoint(name);
        Sql::connect(&at, dbname).unwrap_or_else(|error| panic!("connect to {name}: {error}"))
    }

    /// Runs pgbench against a fork; it must succeed. Its output.
    #[track_caller]
    pub fn pgbench<S: AsRef<OsStr>>(&self, name: &str, args: impl IntoIterator<Item = S>) -> String {
        let at = self.endpoint(name);
        run(Postgres::get().client("pgbench", &at).args(args).arg("postgres")).expect_ok()
    }

    /// True when a file system is mounted on `dir`.
    pub fn is_mounted(dir: &Path) -> bool {
        let table = std::fs::read_to_string("/proc/self/mounts").expect("read the mount table");
        let dir = dir.display().to_string().replace(' ', "\\040");
        table.lines().any(|line| line.split(' ').nth(1) == Some(dir.as_str()))
    }
}

impl Store {
    /// Prints the ends of the daemon's and the servers' logs, for whoever reads about a failure.
    fn show_logs(&self) {
        let servers = std::fs::read_dir(self.dir.join("logs"));
        let servers = servers.into_iter().flatten().flatten();
        let logs = servers.map(|entry| entry.path());
        for path in logs.chain([self.dir.join("daemon.log")]) {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            println!("---- the end of {}", path.display());
            for line in &lines[lines.len().saturating_sub(40)..] {
                println!("{line}");
            }
        }
    }
}

impl Drop for Store {
    /// Ends whatever the test left, also after a failure: servers, the daemon, the mount. Nothing in here may fail.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
            if std::env::var_os("PGCOWFS_TEST_KEEP").is_some() {
                println!("left as it is: {}", self.dir.display());
                self.keep();
            }
        }
        if self.kept {
            return;
        }
        let limit = std::time::Duration::from_secs(30);
        let ask = |args: &[&str]| match try_run(&mut self.command(args), limit) {
            Ok(done) => serde_json::from_str(&done.stdout).unwrap_or(Value::Null),
            Err(_) => Value::Null,
        };
        let status = ask(&["status", "--json"]);
        let daemon = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        if daemon.is_some() {
            for fork in ask(&["list", "--json"]).as_array().into_iter().flatten() {
                let pid = fork["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
                // By signal, not by `stop`: what is being cleaned up may be broken.
                if let Some(pid) = pid.filter(|pid| is_alive(*pid)) {
                    signal(pid, nix::sys::signal::Signal::SIGQUIT);
                    wait_briefly(|| !is_alive(pid));
                }
            }
        }
        let _ = try_run(&mut self.command(["umount"]), limit);
        if let Some(pid) = daemon {
            wait_briefly(|| !is_alive(pid));
            if is_alive(pid) {
                signal(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        let mountpoint = status["mountpoint"].as_str().map_or_else(|| self.dir.join("mnt"), PathBuf::from);
        if Store::is_mounted(&mountpoint) {
            let _ = try_run(Command::new("fusermount3").args(["-u", "-z"]).arg(&mountpoint), limit);
        }
    }
}

/// Waits a few seconds at most, for cleaning up only.
fn wait_briefly(mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// A string field that must be there.
#[track_caller]
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no string {field:?} in {value}"))
}

/// A whole number field that must be there.
#[track_caller]
pub fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no whole number {field:?} in {value}"))
}

/// A number field that must be there.
#[track_caller]
pub fn real(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or_else(|| panic!("no number {field:?} in {value}"))
}

/// User and password of a connection URL; a URL that names no user means the operating system's.
fn credentials(url: &str) -> (String, Option<String>) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or("");
    match authority.rsplit_once('@') {
        Some((user, _)) => match user.split_once(':') {
            Some((user, password)) => (user.to_owned(), Some(password.to_owned())),
            None => (user.to_owned(), None),
        },
        None => (if owner().is_some() { "postgres".to_owned() } else { whoami() }, None),
    }
}

/// Name of the user who runs the tests.
fn whoami() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    user.map_or_else(|| "postgres".to_owned(), |user| user.name)
}

/// PATH with the PostgreSQL that is tested with before all others, if one was chosen: the product is to find that one.
fn path_with_tested_binaries() -> Option<OsString> {
    let bin = std::env::var_os("PGCOWFS_TEST_PG_BIN")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(PathBuf::from(bin)).chain(std::env::split_paths(&path));
    Some(std::env::join_paths(dirs).expect("PATH and PGCOWFS_TEST_PG_BIN have no colons in names"))
}
