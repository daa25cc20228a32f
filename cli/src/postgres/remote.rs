//! A server that is none of the store's: how PostgreSQL's programs reach it, and
//! what it answers.
//!
//! The connection string and the caller's environment are libpq's, so hosts,
//! services, certificates and passwords are found as everywhere. Programs run as the
//! fork's user, who may be another one than the caller and cannot read the caller's
//! password file: it is handed over as a file without a name, which nobody else
//! sees and which is gone with this program. A password never is on a command line.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, PipeReader, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::binaries;
use super::conninfo;
use super::server::failure_kind;
use super::user::OsUser;
use crate::error::{Context, Error, Kind, Result};

/// Seconds until a server that does not answer counts as unreachable.
const CONNECT_TIMEOUT: &str = "15";

/// Variables of libpq that are not handed on as they are: secrets and files of the
/// caller's, and what is about a server's own directory.
const NOT_HANDED_ON: [&str; 4] = ["PGPASSWORD", "PGPASSFILE", "PGSERVICEFILE", "PGDATA"];

/// How to reach a server.
pub struct Remote {
    url: String,
    user: OsUser,
    env: Vec<(OsString, OsString)>,
    /// The passwords, in the form of a .pgpass.
    passwords: Option<Vec<u8>>,
    files: Vec<File>,
}

impl Remote {
    /// By a connection string and the caller's environment.
    pub fn new(url: &str, user: &OsUser) -> Result<Remote> {
        conninfo::check(url)?;
        let is_libpq = |name: &str| name.starts_with("PG") && !name.starts_with("PGCOWFS");
        let env = std::env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            is_libpq(&name) && !NOT_HANDED_ON.contains(&name.as_ref())
        });
        let mut remote = Remote::over(url, user, caller_passwords()?)?;
        remote.env.extend(env);
        if let Some(services) = caller_file("PGSERVICEFILE", ".pg_service.conf")? {
            let path = remote.hand_over(&services)?;
            remote.env.push(("PGSERVICEFILE".into(), path.into()));
        }
        Ok(remote)
    }

    /// By a connection string and passwords alone.
    pub fn over(url: &str, user: &OsUser, passwords: Option<Vec<u8>>) -> Result<Remote> {
        let env = vec![("PGCONNECT_TIMEOUT".into(), CONNECT_TIMEOUT.into())];
        let mut remote =
            Remote { url: url.to_string(), user: user.clone(), env, passwords: None, files: Vec::new() };
        // Without any, the user's own are not meant either.
        let path = remote.hand_over(passwords.as_deref().unwrap_or_default())?;
        remote.env.push(("PGPASSFILE".into(), path.into()));
        remote.passwords = passwords;
        Ok(remote)
    }

    /// The connection string. It has no secret in it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Who runs the programs.
    pub fn user(&self) -> &OsUser {
        &self.user
    }

    /// The lines of the password file that a standby may need which connects to one of
    /// these hosts as that role.
    pub fn passwords_for(&self, hosts: &str, role: &str) -> Option<Vec<u8>> {
        let text = String::from_utf8_lossy(self.passwords.as_deref()?).into_owned();
        let needed = |line: &&str| {
            let fields = pass_fields(line);
            let [on, _, database, of, _] = &fields[..] else { return false };
            (on == "*"
                || hosts.split(',').any(|host| on == host || (on == "localhost" && host.starts_with('/'))))
                && (database == "*" || database == "replication")
                && (of == "*" || of == role)
        };
        let lines: Vec<&str> = text.lines().filter(needed).collect();
        (!lines.is_empty()).then(|| (lines.join("\n") + "\n").into_bytes())
    }

    /// A program that reaches the server; it ends with this one.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = self.user.bound_command(program);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        // What it says is looked at.
        command.env("LC_ALL", "C").current_dir("/");
        command
    }

    /// Starts such a program.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let keep = |flag: FdFlag| {
            self.files.iter().try_for_each(|file| fcntl(file, FcntlArg::F_SETFD(flag)).map(|_| ()))
        };
        keep(FdFlag::empty()).context(|| "cannot hand a file over")?;
        let child = command.spawn();
        keep(FdFlag::FD_CLOEXEC).context(|| "cannot hand a file over")?;
        child.at("run", Path::new(command.get_program()))
    }

    /// A file without a name, which programs of the user find at the path.
    fn hand_over(&mut self, contents: &[u8]) -> Result<String> {
        let make = || -> std::io::Result<File> {
            let name = CString::new("pgcowfs")?;
            let mut file = File::from(memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC)?);
            file.write_all(contents)?;
            file.rewind()?;
            file.set_permissions(fs::Permissions::from_mode(0o400))?;
            if !self.user.is_current() {
                fchown(&file, Some(self.user.uid), Some(self.user.gid))?;
            }
            Ok(file)
        };
        let file = make().context(|| "cannot hand a file over")?;
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        self.files.push(file);
        Ok(path)
    }
}

/// The caller's passwords, as lines of a .pgpass. The environment goes first.
fn caller_passwords() -> Result<Option<Vec<u8>>> {
    if let Some(password) = std::env::var_os("PGPASSWORD").filter(|password| !password.is_empty()) {
        let password = password.into_string().map_err(|_| {
            Error::new(Kind::Usage, "PGPASSWORD is not text").hint("put the password into ~/.pgpass instead")
        })?;
        let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
        return Ok(Some(format!("*:*:*:*:{escaped}\n").into_bytes()));
    }
    caller_file("PGPASSFILE", ".pgpass")
}

/// A file of the caller's, which a variable names or which is in the home directory.
fn caller_file(variable: &str, usual: &str) -> Result<Option<Vec<u8>>> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(usual));
    let Some(path) = named.clone().or_else(home) else { return Ok(None) };
    match pgcowfs::device::foreign::read_small(&path, CALLER_FILE_MAX) {
        Ok(bytes) => {
            let mode = fs::metadata(&path).at("look at", &path)?.permissions().mode();
            match variable == "PGPASSFILE" && mode & 0o077 != 0 {
                true => Err(Error::new(
                    Kind::Environment,
                    format!("the password file {} is readable for others", path.display()),
                )
                .cause("PostgreSQL's programs do not use such a file")
                .hint(format!("chmod 600 {}", path.display()))),
                false => Ok(Some(bytes)),
            }
        }
        Err(e) if named.is_none() && e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("cannot read {}", path.display()), &e)
            .hint(format!("it is {variable}, or {usual} in the home directory"))),
    }
}

/// The largest password or service file that is read.
const CALLER_FILE_MAX: u64 = 1 << 20;

/// The fields of a line of a .pgpass.
fn pass_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.len() - 1;
        match c {
            '\\' => fields[last].extend(chars.next()),
            ':' if fields.len() < 5 => fields.push(String::new()),
            c => fields[last].push(c),
        }
    }
    fields
}

/// What one answer ends with.
const MARK: &str = "pgcowfs-end-of-answer";

/// A connection that statements are sent over, by psql: it is libpq, with all that
/// people have set up for it. It ends with this program, however that ends.
pub struct Session {
    url: String,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<PipeReader>,
}

impl Session {
    /// Connects to the database of the connection string, or for replication.
    pub fn open(remote: &Remote, replication: bool) -> Result<Session> {
        let Some(psql) = binaries::client_anywhere("psql", None) else {
            return Err(Error::new(Kind::Environment, "there is no psql on this machine")
                .hint("install PostgreSQL's client programs (on Debian and Ubuntu: postgresql-client)"));
        };
        let url = match replication {
            // Where passwords are looked up this is the database's name, as with a standby.
            true => {
                conninfo::with(&conninfo::with(&remote.url, "dbname", "replication"), "replication", "true")
            }
            false => conninfo::with(&remote.url, "application_name", "pgcowfs"),
        };
        let (reader, writer) = std::io::pipe().context(|| "cannot make a pipe")?;
        let mut command = remote.command(&psql);
        command.args(["-X", "-A", "-t", "-q", "-w", "-d"]).arg(url).stdin(Stdio::piped());
        let second = writer.try_clone().context(|| "cannot make a pipe")?;
        command.stdout(second).stderr(writer);
        let mut child = remote.spawn(&mut command)?;
        // The command holds the pipe's other end.
        drop(command);
        let input = child.stdin.take();
        let mut session = Session { url: remote.url.clone(), child, input, output: BufReader::new(reader) };
        // Whether there is a connection at all.
        session.ask("SHOW server_version_num")?;
        Ok(session)
    }

    /// The lines that a statement brings.
    pub fn ask(&mut self, statement: &str) -> Result<Vec<String>> {
        let send = |input: &mut ChildStdin| {
            input.write_all(format!("{statement};\n\\echo {MARK} :ERROR\n").as_bytes())?;
            input.flush()
        };
        // If psql is gone, it has said why.
        let sent = self.input.as_mut().map(send);
        let mut lines: Vec<String> = Vec::new();
        let mut line = String::new();
        loop {
            line.clear();
            match self.output.read_line(&mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => return Err(Error::io("cannot read what psql says", &e)),
            }
            let text = line.trim_end_matches('\n');
            match text.strip_prefix(MARK) {
                Some(" false") => return Ok(lines),
                Some(_) => break,
                None => lines.push(text.to_string()),
            }
        }
        drop(sent);
        Err(explain(&self.url, &lines.join("\n")))
    }

    /// The one value that a statement brings.
    pub fn value(&mut self, statement: &str) -> Result<String> {
        let lines = self.ask(statement)?;
        lines.into_iter().next().ok_or_else(|| {
            Error::new(Kind::Postgres, "the server has no answer").cause(format!("to: {statement}"))
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // psql ends at the end of its input.
        self.input = None;
        if let Err(e) = self.child.wait() {
            log::debug!("psql: {e}");
        }
    }
}

/// What a server, or the way to it, has said, as an error with a next step.
pub fn explain(url: &str, said: &str) -> Error {
    let has = |text: &str| said.contains(text);
    let hint = match () {
        () if has("no pg_hba.conf entry for replication") => {
            "let the role in, in the server's pg_hba.conf: host replication ROLE ADDRESS scram-sha-256; then \
             have it read that: SELECT pg_reload_conf()"
        }
        () if has("no pg_hba.conf entry") => {
            "let the role in, in the server's pg_hba.conf: host DATABASE ROLE ADDRESS scram-sha-256 (tablespaces \
             and settings are asked for in an ordinary connection; dbname= chooses the database)"
        }
        () if has("authentication failed") || has("no password supplied") || has("fe_sendauth") => {
            "check role and password; a password comes from ~/.pgpass, or from PGPASSFILE or PGPASSWORD in the \
             environment"
        }
        () if (has("max_wal_senders") && has("(currently 0)")) || has("requires wal_level") => {
            "the server does not allow replication: set wal_level=replica and max_wal_senders=10 there, and \
             restart it"
        }
        () if has("max_wal_senders") || has("remaining connection slots") || has("too many clients") => {
            "all of the server's places for replication are taken: wait, end another backup or standby, or raise \
             max_wal_senders there"
        }
        () if has("replication slots are in use") => {
            "drop a slot that nobody needs (SELECT * FROM pg_replication_slots), or raise max_replication_slots \
             there"
        }
        () if has("start WAL sender") || has("replication role") || has("REPLICATION attribute") => {
            "give the role the right: ALTER ROLE name REPLICATION"
        }
        () if has("No space left on device") => "free some space, and try again; nothing was kept",
        () => "check that the server runs and can be reached from here: psql with the same connection string",
    };
    let text = said.trim();
    let text = if text.is_empty() { "the connection ended without a word" } else { text };
    Error::new(failure_kind(said), format!("the server at {url} cannot be used")).detail(text).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_passwords_that_are_needed() {
        let user = OsUser::current().unwrap();
        let lines =
            "db1:5432:replication:repl:a\\:b\nother:5432:*:repl:c\n*:*:shop:repl:d\ndb1:*:*:app:e\n# x\n";
        let remote = Remote::over("host=db1 user=repl", &user, Some(lines.into())).unwrap();
        let kept = remote.passwords_for("db0,db1", "repl").unwrap();
        assert_eq!(String::from_utf8(kept).unwrap(), "db1:5432:replication:repl:a\\:b\n");
        assert_eq!(remote.passwords_for("db1", "nobody"), None);
        assert_eq!(pass_fields("a:b:c:d:e:f\\:g"), ["a", "b", "c", "d", "e:f:g"]);
    }

    #[test]
    fn programs_see_what_is_handed_over_and_nobody_else() {
        let user = OsUser::current().unwrap();
        let remote = Remote::over("host=db1", &user, Some(b"secret".into())).unwrap();
        let mut command = remote.command(Path::new("sh"));
        command.args(["-c", "cat $PGPASSFILE; stat -Lc %a $PGPASSFILE"]).stdout(Stdio::piped());
        let output = remote.spawn(&mut command).unwrap().wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "secret400\n");
        let other = Command::new("sh").args(["-c", "ls -l /proc/self/fd"]).output().unwrap();
        assert!(!String::from_utf8_lossy(&other.stdout).contains("memfd"));
    }

    #[test]
    fn each_refusal_has_a_next_step() {
        for (said, hint) in [
            ("FATAL:  no pg_hba.conf entry for replication connection from host \"1\"", "host replication"),
            ("FATAL:  no pg_hba.conf entry for host \"1\"", "host DATABASE"),
            ("FATAL:  password authentication failed for user \"x\"", "PGPASSFILE"),
            ("number of requested standby connections exceeds max_wal_senders (currently 0)", "wal_level"),
            (
                "number of requested standby connections exceeds \"max_wal_senders\" (currently 0)",
                "wal_level",
            ),
            ("number of requested standby connections exceeds max_wal_senders (currently 2)", "are taken"),
            ("ERROR:  all replication slots are in use", "max_replication_slots"),
            ("connection refused", "can be reached"),
        ] {
            let error = explain("host=x", said);
            assert!(error.hint.as_deref().is_some_and(|h| h.contains(hint)), "{said}: {error:?}");
            assert_eq!(error.kind, Kind::Postgres);
        }
        assert_eq!(explain("host=x", "could not write: No space left on device").kind, Kind::Storage);
    }
}
