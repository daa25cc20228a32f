//! Running PostgreSQL's client programs: pg_dump, pg_restore, psql and the like.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use super::binaries::{self, Binaries};
use super::connect::Address;
use super::server::failure_kind;
use super::user::OsUser;
use crate::error::{Context, Error, Kind, Result};
use crate::proc;

/// How often it is looked whether somebody wants an end.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What a program is given to end by itself when it is told to.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many lines about what went wrong are kept: the first ones, which tell why.
const LINES_MAX: usize = 16;
/// A longer line is data that somebody quotes.
const LINE_MAX: usize = 600;

/// A server that client programs talk to.
pub enum Server<'a> {
    /// A fork's, as the fork's user.
    Fork(&'a Address<'a>),
    /// Any, by its URL and what libpq finds in the environment, as whoever runs this.
    Url(&'a str),
}

impl Server<'_> {
    /// A program that talks to one of its databases.
    pub fn command(&self, program: &Path, database: &str) -> Command {
        let mut command = match self {
            Server::Fork(address) => {
                let mut command = address.user.command(program);
                command
                    .env("PGHOST", address.socket_dir)
                    .env("PGPORT", address.port.to_string())
                    .env("PGUSER", address.role)
                    .arg("--dbname")
                    .arg(format!("dbname={}", quoted(database)));
                if let Some(password) = address.password {
                    command.env("PGPASSWORD", password);
                }
                command
            }
            Server::Url(url) => {
                let mut command = Command::new(program);
                command.arg("--dbname").arg(super::conninfo::with_database(url, database));
                command
            }
        };
        // What is read of their words must not be translated. Nobody is there to ask.
        command.env("LC_ALL", "C").env("PGAPPNAME", "pgcowfs").arg("--no-password");
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// The same for one that reads files of whoever runs this, and does nothing that a
    /// server or a file tells it to.
    pub fn command_as_caller(&self, program: &Path, database: &str) -> Result<Command> {
        match self {
            Server::Fork(address) => {
                let user = OsUser::current()?;
                let address = Address { user: &user, ..**address };
                Ok(Server::Fork(&address).command(program, database))
            }
            Server::Url(_) => Ok(self.command(program, database)),
        }
    }

    /// The answer to a query that makes JSON.
    pub fn ask<T: DeserializeOwned>(&self, own: &Binaries, database: &str, query: &str) -> Result<T> {
        let mut command = self.command(&client(own, "psql")?, database);
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", query]);
        let output = command.output().context(|| "cannot run psql")?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let what = format!("cannot ask the server about database {database:?}");
            return Err(Error::new(failure_kind(&said), what).detail(said));
        }
        serde_json::from_slice(&output.stdout).map_err(|e| {
            Error::new(Kind::Postgres, "the server's answer cannot be understood").cause(e.to_string())
        })
    }
}

/// A client program that must be there.
pub fn client(own: &Binaries, name: &str) -> Result<PathBuf> {
    binaries::client(name, own).ok_or_else(|| {
        Error::new(Kind::Environment, format!("there is no {name} on this machine"))
            .cause(format!("it is not in {}, nor in PATH", own.dir.display()))
            .hint(
                "install PostgreSQL's client programs (on Debian and Ubuntu: apt install postgresql-client)",
            )
    })
}

/// A value in a connection string.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// How a program ended.
pub struct Ended {
    /// With success.
    pub ok: bool,
    /// In words.
    status: String,
    /// What it said of what went wrong, the first lines.
    pub lines: Vec<String>,
}

impl Ended {
    /// Its failure as an error.
    pub fn error(&self, what: &str) -> Error {
        let said = self.lines.join("\n");
        Error::new(failure_kind(&said), format!("{what} failed")).cause(self.status.clone()).detail(said)
    }
}

/// Runs a program, which must succeed. `tell` hears every line that it says on stderr.
/// When `interrupted` says so it is ended, which is an error.
pub fn run(
    what: &str,
    command: &mut Command,
    interrupted: &AtomicBool,
    tell: &mut dyn FnMut(&str),
) -> Result<()> {
    let ended = run_to_end(what, command, interrupted, tell)?;
    if ended.ok { Ok(()) } else { Err(ended.error(what)) }
}

/// The same for one whose failure may be no error.
pub fn run_to_end(
    what: &str,
    command: &mut Command,
    interrupted: &AtomicBool,
    tell: &mut dyn FnMut(&str),
) -> Result<Ended> {
    let spawned = command.stderr(Stdio::piped()).spawn();
    let mut child = spawned.context(|| format!("cannot run {}", command.get_program().display()))?;
    wait(what, &mut child, interrupted, tell)
}

/// Waits for a program that was started with a pipe for its stderr.
pub fn wait(
    what: &str,
    child: &mut Child,
    interrupted: &AtomicBool,
    tell: &mut dyn FnMut(&str),
) -> Result<Ended> {
    let pid =
        i32::try_from(child.id()).map_err(|_| Error::new(Kind::Failed, "a process number is too large"))?;
    let (send, lines) = mpsc::channel();
    if let Some(stderr) = child.stderr.take() {
        thread::spawn(move || read_lines(stderr, |line| send.send(line).is_ok()));
    } else {
        drop(send);
    }
    let (mut kept, mut asked) = (Vec::new(), None::<Instant>);
    loop {
        match lines.recv_timeout(LOOK_EVERY) {
            Ok(line) => {
                if tells_why(&line) && kept.len() < LINES_MAX {
                    kept.push(line.clone());
                }
                tell(&line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            // All who could write to it have ended.
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if interrupted.load(Ordering::SeqCst) {
            match asked {
                None => {
                    proc::signal(pid, Signal::SIGTERM);
                    asked = Some(Instant::now());
                }
                Some(when) if when.elapsed() > PATIENCE => proc::signal(pid, Signal::SIGKILL),
                Some(_) => {}
            }
        }
    }
    let status = child.wait().context(|| format!("cannot wait for {what}"))?;
    refuse_interrupted(interrupted)?;
    Ok(Ended { ok: status.success(), status: status.to_string(), lines: kept })
}

/// The end of what somebody has interrupted.
pub fn refuse_interrupted(interrupted: &AtomicBool) -> Result<()> {
    match interrupted.load(Ordering::SeqCst) {
        true => Err(Error::new(Kind::Failed, "interrupted").hint("nothing of it is left")),
        false => Ok(()),
    }
}

fn read_lines(from: impl Read, mut take: impl FnMut(String) -> bool) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    // A pipe that breaks ends like one whose writer has ended.
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line);
        let text: String = text.trim_end().chars().take(LINE_MAX).collect();
        line.clear();
        if !take(text) {
            return;
        }
    }
}

/// Whether a line is about what went wrong; with `--verbose` most are not.
fn tells_why(line: &str) -> bool {
    let words = ["error:", "ERROR:", "FATAL:", "detail:", "DETAIL:", "HINT:", "hint:", "from TOC entry"];
    line.starts_with("Command was:") || words.iter().any(|word| line.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_databases_are_not_connection_strings() {
        assert_eq!(quoted("shop"), "'shop'");
        assert_eq!(quoted(r"it's host=x \"), r"'it\'s host=x \\'");
    }

    #[test]
    fn the_first_failures_are_told() {
        let never = AtomicBool::new(false);
        let mut lines = 0;
        let script = "echo 'x: dumping t' >&2; echo 'x: error: no space' >&2; echo 'DETAIL:  d' >&2; exit 3";
        let error =
            run("x", Command::new("sh").args(["-c", script]), &never, &mut |_| lines += 1).unwrap_err();
        assert_eq!((lines, error.kind), (3, Kind::Postgres));
        assert_eq!(error.detail.as_deref(), Some("x: error: no space\nDETAIL:  d"));
        run("x", &mut Command::new("true"), &never, &mut |_| ()).unwrap();
        let full = "echo 'pg_dump: error: could not write: No space left on device' >&2; exit 1";
        let error = run("x", Command::new("sh").args(["-c", full]), &never, &mut |_| ()).unwrap_err();
        assert_eq!(error.kind, Kind::Storage);
    }

    #[test]
    fn an_interrupted_program_is_ended() {
        let now = AtomicBool::new(true);
        let error = run("x", Command::new("sleep").arg("1000"), &now, &mut |_| ()).unwrap_err();
        assert_eq!(error.message, "interrupted");
    }
}
