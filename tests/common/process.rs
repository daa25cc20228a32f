//! Child processes with a limit: a file system under test can hang, and then the test must fail, not hang with it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// After this long without an end a child counts as hung. A guard, not a requirement on speed: nothing here comes near.
pub const HUNG_AFTER: Duration = Duration::from_secs(240);

/// What a finished child left.
pub struct Done {
    /// The command line, for messages.
    pub line: String,
    /// Exit status; -1 when it was ended by a signal.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Done {
    /// True for exit status 0.
    pub fn ok(&self) -> bool {
        self.code == 0
    }

    /// Everything about the run, for a failure message.
    pub fn report(&self) -> String {
        format!(
            "{}\nexit status {}\nstdout: {}\nstderr: {}",
            self.line,
            self.code,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }

    /// Its standard output; fails the test unless the status is 0.
    #[track_caller]
    pub fn expect_ok(self) -> String {
        assert!(self.ok(), "failed: {}", self.report());
        self.stdout
    }
}

/// Runs a command to its end, with no standard input. Fails the test when it cannot be started or hangs.
#[track_caller]
pub fn run(command: &mut Command) -> Done {
    try_run(command, HUNG_AFTER).unwrap_or_else(|why| panic!("{why}"))
}

/// The same for cleaning up after a test, where a second failure would only hide the first. Err says what happened.
pub fn try_run(command: &mut Command, limit: Duration) -> Result<Done, String> {
    let line = format!("{command:?}");
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = piped.spawn().map_err(|error| format!("cannot start {line}: {error}"))?;
    let pid = child.id();
    let (send, receive) = mpsc::channel();
    // The pipes end only when the last process that holds them ends: a daemon that keeps its starter's output open
    // is found here as well.
    std::thread::spawn(move || send.send(child.wait_with_output()));
    match receive.recv_timeout(limit) {
        Ok(Ok(Output { status, stdout, stderr })) => Ok(Done {
            line,
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }),
        Ok(Err(error)) => Err(format!("{line}: {error}")),
        Err(_) => {
            signal(pid, nix::sys::signal::Signal::SIGKILL);
            Err(format!("hung, or its output is held open by a process it left behind: {line}"))
        }
    }
}

/// Sends a signal; a process that is gone already is fine.
pub fn signal(pid: u32, what: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a process id fits in i32"));
    let _ = nix::sys::signal::kill(pid, what);
}

/// True while the process exists and is not a zombie: a killed child of a container's first process may never be reaped.
pub fn is_alive(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state is the first field after the command's name, which itself may hold spaces and brackets.
        Ok(stat) => !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => false,
    }
}

/// Waits until `done` says so; fails the test with `what` when that takes for ever.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < HUNG_AFTER, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The program's file, when it is in PATH.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| is_executable(file))
}

/// True for a regular file that someone may execute.
pub fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The processes that have a file below `dir` open, for messages: their number, name and the file.
pub fn users_of(dir: &std::path::Path) -> Vec<String> {
    let mut users = Vec::new();
    for process in std::fs::read_dir("/proc").expect("read /proc").flatten() {
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else { continue };
        for file in open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()) {
            if file.starts_with(dir) {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                let pid = process.file_name().to_string_lossy().into_owned();
                users.push(format!("{pid} {} {}", name.trim(), file.display()));
            }
        }
    }
    users
}
