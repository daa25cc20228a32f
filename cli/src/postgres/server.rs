//! A fork's server process: is it there, start it, stop it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pgcowfs::device::foreign::read_small;

use super::binaries::Binaries;
use super::cluster::PID_FILE_MAX;
use super::pid_file;
use super::user::OsUser;
use crate::error::{Context, Error, Kind, Result};
use crate::proc;
use crate::ui::Ui;

/// Whether a fork's server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// That process serves the fork.
    Running(i32),
    /// It was shut down.
    Stopped,
    /// It left its postmaster.pid behind.
    Crashed,
}

impl State {
    /// From the fork's postmaster.pid. The number in it proves nothing, it may
    /// be another program's by now: the process must work in that directory.
    pub fn of(contents: Option<&str>, pgdata: &Path) -> State {
        let Some(text) = contents else {
            return State::Stopped;
        };
        match pid_file::process(text) {
            Some(pid) if serves(pid, pgdata) => State::Running(pid),
            _ => State::Crashed,
        }
    }

    /// Its word in reports.
    pub fn name(self) -> &'static str {
        match self {
            State::Running(_) => "running",
            State::Stopped => "stopped",
            State::Crashed => "crashed",
        }
    }

    /// The server's process.
    pub fn pid(self) -> Option<i32> {
        match self {
            State::Running(pid) => Some(pid),
            State::Stopped | State::Crashed => None,
        }
    }
}

fn serves(pid: i32, pgdata: &Path) -> bool {
    proc::alive(pid) && proc::cwd(pid).is_some_and(|cwd| cwd == pgdata)
}

/// How to start a server.
pub struct Start<'a> {
    /// Whose it is, for messages.
    pub fork: &'a str,
    /// The programs.
    pub binaries: &'a Binaries,
    /// The user.
    pub user: &'a OsUser,
    /// The data directory.
    pub pgdata: &'a Path,
    /// The socket's directory, the fork's own.
    pub socket_dir: &'a Path,
    /// The log, outside.
    pub log: &'a Path,
    /// Settings for the command line.
    pub settings: Vec<(String, String)>,
    /// How long to wait until it accepts connections.
    pub timeout: Duration,
}

/// Starts a server and waits until it accepts connections. It outlives this
/// program and holds nothing of it but its log.
pub fn start(start: &Start, ui: &Ui) -> Result<Duration> {
    clear_crashed(start)?;
    let began = Instant::now();
    let mut log = open_log(start)?;
    let log_begin = log.seek(SeekFrom::End(0)).at("read", start.log)?;
    let mut child = spawn(start, &log)?;
    let pid_path = start.pgdata.join("postmaster.pid");
    let mut waiting = ui.waiting();
    let mut ended = None;
    let ready = proc::wait_until(start.timeout, || {
        if let Ok(Some(status)) = child.try_wait() {
            ended = Some(status);
            return true;
        }
        waiting.tell(|| {
            let last = log_since(start.log, log_begin).lines().last().unwrap_or_default().to_string();
            format!("waiting for {}: {last}", start.fork)
        });
        // The fork's user can put anything in its place.
        read_small(&pid_path, PID_FILE_MAX).is_ok_and(|bytes| {
            let text = String::from_utf8_lossy(&bytes);
            // "standby": in a recovery, and nobody is let in. For a standby that is all it
            // will be; any other server comes to an end of it.
            pid_file::process(&text) == i32::try_from(child.id()).ok()
                && match pid_file::status(&text) {
                    Some("ready") => true,
                    Some("standby") => start.pgdata.join("standby.signal").exists(),
                    _ => false,
                }
        })
    });
    drop(waiting);
    let process = child.id();
    if ended.is_none() {
        // The daemon, which starts servers too, lives to see their ends. For a
        // command it is as good as nothing.
        std::thread::spawn(move || child.wait());
    }
    if let Some(status) = ended {
        let said = log_since(start.log, log_begin);
        return Err(Error::new(
            failure_kind(&said),
            format!("PostgreSQL did not start on fork {:?}", start.fork),
        )
        .cause(format!("it ended with {status}"))
        .detail(log_tail(&said))
        .hint(format!("the whole log is {}", start.log.display())));
    }
    if !ready {
        let waited = crate::ui::duration_text(start.timeout);
        return Err(Error::new(
            Kind::Postgres,
            format!("fork {:?} does not accept connections after {waited}", start.fork),
        )
        .cause(format!("the server is still starting, as process {process}"))
        .detail(log_tail(&log_since(start.log, log_begin)))
        .hint(format!(
            "it goes on by itself; follow {}, or wait longer next time with --timeout",
            start.log.display()
        )));
    }
    Ok(began.elapsed())
}

fn spawn(start: &Start, log: &File) -> Result<Child> {
    let program = start.binaries.program("postgres");
    let mut command = start.user.command(&program);
    command.arg("-D").arg(start.pgdata);
    for (name, value) in &start.settings {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let output = || log.try_clone().at("open", start.log);
    command.stdin(Stdio::null()).stdout(output()?).stderr(output()?).current_dir("/");
    let new_session = || nix::unistd::setsid().map(|_| ()).map_err(std::io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed;
    // this is one bare system call. In a session of its own the server gets no
    // signal of the terminal this program may run in.
    unsafe { command.pre_exec(new_session) };
    command.spawn().at("run", &program)
}

/// The log in append mode, the fork's user's own.
fn open_log(start: &Start) -> Result<File> {
    let mut options = File::options();
    options.create(true).append(true).read(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(start.log).at("open", start.log)?;
    let own = || {
        fchown(&file, Some(start.user.uid), Some(start.user.gid))?;
        file.set_permissions(fs::Permissions::from_mode(0o600))
    };
    own().at("hand over", start.log)?;
    Ok(file)
}

fn log_since(log: &Path, begin: u64) -> String {
    let read = || {
        let mut file = File::open(log)?;
        let end = file.seek(SeekFrom::End(0))?;
        // A server that fails in a loop writes a lot; the end is what matters.
        file.seek(SeekFrom::Start(begin.max(end.saturating_sub(64 << 10))))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|e| format!("(cannot read {}: {e})", log.display()))
}

/// The last lines of a program's output.
pub fn log_tail(text: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// What sort of failure PostgreSQL's own words are about.
pub fn failure_kind(said: &str) -> Kind {
    let disk =
        ["No space left on device", "Read-only file system", "Input/output error", "Disk quota exceeded"];
    if disk.iter().any(|text| said.contains(text)) { Kind::Storage } else { Kind::Postgres }
}

/// Removes the lock files of a server that died. PostgreSQL does so itself
/// when the number in them is free; here it is known that whoever has the
/// number now is not a server of this fork: it may be another program, or the
/// dead server itself, which nobody has reaped. The server's last backends
/// must be gone.
fn clear_crashed(start: &Start) -> Result<()> {
    let path = start.pgdata.join("postmaster.pid");
    if path.exists() {
        let mut left = Vec::new();
        let gone = proc::wait_until(Duration::from_secs(5), || {
            left = proc::postgres_under(start.pgdata);
            left.is_empty()
        });
        if !gone {
            let left: Vec<String> = left.iter().map(ToString::to_string).collect();
            return Err(Error::new(
                Kind::State,
                format!("processes of fork {:?}'s last server are still there", start.fork),
            )
            .cause(format!("processes {}", left.join(", ")))
            .hint("end them first, with kill"));
        }
        fs::remove_file(&path).at("remove", &path)?;
    }
    let entries = fs::read_dir(start.socket_dir).at("list", start.socket_dir)?;
    for entry in entries {
        let lock = entry.at("list", start.socket_dir)?.path();
        if lock.extension().is_some_and(|e| e == "lock") {
            // It is the fork's user's directory, who may have put anything there.
            let text = read_small(&lock, PID_FILE_MAX).unwrap_or_default();
            if !is_held(&String::from_utf8_lossy(&text)) {
                fs::remove_file(&lock).at("remove", &lock)?;
            }
        }
    }
    Ok(())
}

/// Whether the server that made a socket's lock file is alive. The second line
/// is its data directory: after a reboot the number can be another server's.
/// A loss of power can have left the file empty.
fn is_held(lock: &str) -> bool {
    let pgdata = lock.lines().nth(1).map(Path::new);
    pgdata.is_some_and(|pgdata| State::of(Some(lock), pgdata).pid().is_some())
}

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopHow {
    /// When its clients have gone.
    Smart,
    /// Disconnecting them.
    Fast,
    /// Without a checkpoint.
    Immediate,
}

impl StopHow {
    fn signal(self) -> Signal {
        match self {
            StopHow::Smart => Signal::SIGTERM,
            StopHow::Fast => Signal::SIGINT,
            StopHow::Immediate => Signal::SIGQUIT,
        }
    }
}

/// Stops the server `pid` of the fork in `pgdata` and waits until it and all
/// its processes are gone.
pub fn stop(fork: &str, pgdata: &Path, pid: i32, how: StopHow, timeout: Duration) -> Result<Duration> {
    let began = Instant::now();
    proc::signal(pid, how.signal());
    if !proc::wait_until(timeout, || !serves(pid, pgdata)) {
        let waited = crate::ui::duration_text(timeout);
        return Err(Error::new(Kind::Postgres, format!("fork {fork:?} has not stopped after {waited}"))
            .cause(match how {
                StopHow::Smart => "it waits for its clients to disconnect",
                StopHow::Fast | StopHow::Immediate => "it is still busy",
            })
            .hint("wait longer with --timeout, or stop it harder: --mode fast, --mode immediate"));
    }
    // Backends look for their postmaster's death by themselves.
    if !proc::wait_until(Duration::from_secs(10), || proc::postgres_under(pgdata).is_empty()) {
        for pid in proc::postgres_under(pgdata) {
            proc::signal(pid, Signal::SIGKILL);
        }
        proc::wait_until(Duration::from_secs(10), || proc::postgres_under(pgdata).is_empty());
    }
    Ok(began.elapsed())
}

/// What to tell about a fork whose server should run and does not.
pub fn not_running(fork: &str, state: State) -> Error {
    let error = Error::new(Kind::State, format!("fork {fork:?} is not running"));
    match state {
        State::Crashed => error.cause("its server ended without a shutdown; the next start recovers it"),
        State::Running(_) | State::Stopped => error,
    }
    .hint(format!("start it: pgcowfs start {fork}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        let here = std::env::current_dir().unwrap();
        let me = std::process::id();
        assert_eq!(State::of(None, &here), State::Stopped);
        assert_eq!(State::of(Some(&format!("{me}\n/x\n")), &here), State::Running(me as i32));
        assert_eq!(State::of(Some(&format!("{me}\n")), Path::new("/elsewhere")), State::Crashed);
        for text in ["", "x", "999999999\n"] {
            assert_eq!(State::of(Some(text), &here), State::Crashed, "{text:?}");
        }
    }

    #[test]
    fn a_lock_file_holds_while_its_server_lives() {
        let here = std::env::current_dir().unwrap();
        let me = std::process::id();
        assert!(is_held(&format!("{me}\n{}\n", here.display())));
        // Another program has the number by now; the power went; it was written in part.
        for text in [&format!("{me}\n/elsewhere\n"), "", "12", &format!("{me}\n"), "\0\0\0\0"] {
            assert!(!is_held(text), "{text:?}");
        }
    }

    #[test]
    fn a_full_disk_is_not_postgres_fault() {
        assert_eq!(failure_kind("FATAL:  could not write to file: No space left on device"), Kind::Storage);
        assert_eq!(failure_kind("FATAL:  lock file exists"), Kind::Postgres);
    }

    #[test]
    fn tail_is_the_end() {
        let text: String = (0..100).map(|n| format!("line {n}\n\n")).collect();
        let tail = log_tail(&text);
        assert!(tail.starts_with("line 80\n") && tail.ends_with("line 99"));
        assert_eq!(log_tail(""), "");
    }
}
