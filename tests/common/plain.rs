//! A cluster in an ordinary directory, without pgcowfs: for the oracle's controls and as a source to bring in.

use std::path::{Path, PathBuf};

use super::pg::{Endpoint, Postgres, owner};
use super::process::{Done, is_alive, run, wait_until};
use super::scratch::Scratch;

/// A cluster under a test's scratch directory; its server is stopped when this goes.
pub struct Plain {
    pg: Postgres,
    pgdata: PathBuf,
    socket_dir: PathBuf,
    port: u16,
}

impl Plain {
    /// Makes a cluster named `name` with the given lines added to its configuration.
    pub fn create(scratch: &Scratch, name: &str, config: &str) -> Plain {
        let home = scratch.subdir_of(name, owner());
        let plain = Plain::over(&home.join("data"), &home);
        let initdb = run(plain.pg.command("initdb").arg("-D").arg(&plain.pgdata).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-k",
            "--no-sync",
        ]));
        initdb.expect_ok();
        plain.configure(config);
        plain
    }

    /// Takes an existing data directory, with its socket in `home`.
    pub fn over(pgdata: &Path, home: &Path) -> Plain {
        Plain { pg: Postgres::get(), pgdata: pgdata.to_owned(), socket_dir: home.to_owned(), port: 5990 }
    }

    /// The same on another port, beside a cluster that is running.
    pub fn on_port(mut self, port: u16) -> Plain {
        self.port = port;
        self
    }

    /// Adds lines to the configuration.
    pub fn configure(&self, lines: &str) {
        append(&self.pgdata.join("postgresql.conf"), lines);
    }

    /// Starts the server; Err is what it said.
    pub fn try_start(&self) -> Result<Endpoint, String> {
        // Not through pipes: the server would inherit them and hold them open.
        let log = self.socket_dir.join("server.log");
        let options = format!("-c listen_addresses= -p {} -k '{}'", self.port, self.socket_dir.display());
        let done: Done = run(self
            .pg
            .command("pg_ctl")
            .args(["start", "-w", "-t", "120", "-s", "-o", &options, "-D"])
            .arg(&self.pgdata)
            .arg("-l")
            .arg(&log));
        if !done.ok() {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(format!("{}\n{log}", done.report()));
        }
        Ok(Endpoint {
            host: self.socket_dir.clone(),
            port: self.port,
            user: "postgres".to_owned(),
            password: None,
        })
    }

    /// Starts the server.
    #[track_caller]
    pub fn start(&self) -> Endpoint {
        self.try_start().unwrap_or_else(|why| panic!("the server does not start: {why}"))
    }

    /// Stops the server: `fast`, `smart` or `immediate`.
    #[track_caller]
    pub fn stop(&self, mode: &str) {
        run(self.pg.command("pg_ctl").args(["stop", "-w", "-s", "-m", mode, "-D"]).arg(&self.pgdata))
            .expect_ok();
    }

    /// Removes the lock files of a server that was killed: its postmaster can stay a zombie for as long as the
    /// machine's first process likes, and by these files it would still count as running.
    #[track_caller]
    pub fn forget_the_dead(&self) {
        assert_eq!(self.postmaster(), None, "the server is alive");
        for file in
            [self.pgdata.join("postmaster.pid"), self.socket_dir.join(format!(".s.PGSQL.{}.lock", self.port))]
        {
            std::fs::remove_file(&file).unwrap_or_else(|e| panic!("remove {}: {e}", file.display()));
        }
    }

    /// The data directory.
    pub fn pgdata(&self) -> &Path {
        &self.pgdata
    }

    /// Process id of the postmaster, while there is one.
    pub fn postmaster(&self) -> Option<u32> {
        let file = std::fs::read_to_string(self.pgdata.join("postmaster.pid")).ok()?;
        file.lines().next()?.trim().parse().ok().filter(|pid| is_alive(*pid))
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        if let Some(pid) = self.postmaster() {
            super::process::signal(pid, nix::sys::signal::Signal::SIGQUIT);
            if !std::thread::panicking() {
                wait_until("the server's end", || !is_alive(pid));
            }
        }
    }
}

/// Adds lines to a file, keeping its owner and mode.
#[track_caller]
pub fn append(file: &Path, lines: &str) {
    use std::io::Write;
    let mut open = std::fs::OpenOptions::new()
        .append(true)
        .open(file)
        .unwrap_or_else(|e| panic!("open {}: {e}", file.display()));
    writeln!(open, "{lines}").unwrap_or_else(|e| panic!("write {}: {e}", file.display()));
}
