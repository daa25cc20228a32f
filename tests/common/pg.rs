//! PostgreSQL's own programs, run as the user that owns the cluster.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use super::process::{Done, is_alive, is_executable, run, signal, wait_until};

/// How to reach a server.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Directory of its socket.
    pub host: PathBuf,
    /// Its port.
    pub port: u16,
    /// A superuser.
    pub user: String,
    /// That user's password, when one is asked for.
    pub password: Option<String>,
}

impl Endpoint {
    /// The environment that libpq programs read.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let mut env = vec![
            ("PGHOST", self.host.display().to_string()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", self.user.clone()),
            ("PGCONNECT_TIMEOUT", "30".to_owned()),
        ];
        if let Some(password) = &self.password {
            env.push(("PGPASSWORD", password.clone()));
        }
        env
    }
}

/// One installed PostgreSQL.
#[derive(Clone)]
pub struct Postgres {
    bin: PathBuf,
}

impl Postgres {
    /// The one to test with: `PGCOWFS_TEST_PG_BIN`, or the packaged version 15. Err says why there is none.
    pub fn find() -> Result<Postgres, String> {
        let bin = std::env::var_os("PGCOWFS_TEST_PG_BIN")
            .map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from);
        let missing = [
            "postgres",
            "initdb",
            "pg_ctl",
            "psql",
            "pgbench",
            "pg_amcheck",
            "pg_checksums",
            "pg_basebackup",
        ]
        .into_iter()
        .find(|program| !is_executable(&bin.join(program)));
        if let Some(program) = missing {
            return Err(format!("no {program} in {}", bin.display()));
        }
        if super::is_root() && owner().is_none() {
            return Err("run as root, and there is no user postgres to run a server as".to_owned());
        }
        Ok(Postgres { bin })
    }

    /// The same, for tests that have passed the check already.
    pub fn get() -> Postgres {
        Postgres::find().expect("checked when the test took its turn")
    }

    /// Its major version, by the server's own word.
    pub fn major(&self) -> u32 {
        let version = run(self.command("postgres").arg("--version")).expect_ok();
        let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        number.and_then(|n| n.split('.').next()).and_then(|n| n.parse().ok()).expect("a version number")
    }

    /// A command that runs one of its programs as the owner of clusters.
    pub fn command(&self, program: &str) -> Command {
        as_owner(self.bin.join(program))
    }

    /// The same, connected to a server.
    pub fn client(&self, program: &str, at: &Endpoint) -> Command {
        let mut command = self.command(program);
        command.envs(at.env());
        command
    }

    /// `psql -c` against a database; the output unaligned and without decoration.
    pub fn psql(&self, at: &Endpoint, dbname: &str, sql: &str) -> Done {
        run(self.client("psql", at).args(["-XAt", "-v", "ON_ERROR_STOP=1", "-d", dbname, "-c", sql]))
    }

    /// Heap and index checks of every relation in a database, each heap tuple looked up in its indexes.
    pub fn amcheck(&self, at: &Endpoint, dbname: &str) -> Done {
        run(self.client("pg_amcheck", at).args([
            "--heapallindexed",
            "--parent-check",
            "-j",
            "2",
            "-d",
            dbname,
        ]))
    }

    /// The checksum of every page of a stopped cluster.
    pub fn checksums(&self, pgdata: &Path) -> Done {
        run(self.command("pg_checksums").arg("--check").arg("-D").arg(pgdata))
    }
}

/// uid and gid that clusters belong to when the tests run as root; None otherwise (then it is ourselves).
pub fn owner() -> Option<(u32, u32)> {
    if !super::is_root() {
        return None;
    }
    let user = nix::unistd::User::from_name("postgres").ok().flatten()?;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

/// A command that runs as the owner of clusters, from a directory that this user can enter.
pub fn as_owner(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    // Settings of whoever runs the tests must not reach a server or a client of theirs.
    for name in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGOPTIONS", "PGSERVICE"]
    {
        command.env_remove(name);
    }
    if let Some((uid, gid)) = owner() {
        command.uid(uid).gid(gid).env("HOME", "/tmp");
    }
    command
}

/// `kill -9` of a postmaster, and with `everyone` of all its children too; returns when none of them is left: children
/// notice their postmaster's end by themselves.
#[track_caller]
pub fn kill_server(postmaster: u32, everyone: bool) {
    let children = children_with_title(postmaster, "");
    signal(postmaster, Signal::SIGKILL);
    if everyone {
        children.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
    }
    wait_until("the server's end", || !is_alive(postmaster) && !children.iter().any(|pid| is_alive(*pid)));
}

/// Process ids of the server's processes whose title holds `what`, from `pg_stat_activity`'s point of view the
/// children of `postmaster`.
pub fn children_with_title(postmaster: u32, what: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("list processes").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        if !status.lines().any(|line| line == format!("PPid:\t{postmaster}")) {
            continue;
        }
        let title = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&title).contains(what) {
            found.push(pid);
        }
    }
    found
}
