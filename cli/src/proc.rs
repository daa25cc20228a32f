//! Processes, as /proc shows them.
//!
//! Only `/proc` is read, never a path under the mount: looking at a process
//! must not hang when the daemon that serves its files is dead.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// All processes.
pub fn pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether the process runs: a zombie does not, unless threads of it are still
/// on their way out. Until the last has gone, its files are open.
pub fn alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The name in parentheses may hold anything, so look behind the last one.
    let state = stat.rfind(')').and_then(|at| stat[at + 1..].trim_start().chars().next());
    match state {
        None | Some('X') => false,
        Some('Z') => fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1),
        Some(_) => true,
    }
}

/// Its current directory, where it may be read.
pub fn cwd(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// Its command name.
pub fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map(|s| s.trim_end().to_string()).unwrap_or_default()
}

/// Whether it is a process of PostgreSQL's server.
pub fn is_postgres(pid: i32) -> bool {
    let named = |name: &str| matches!(name, "postgres" | "postmaster");
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(exe) => {
            let name = exe.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            // An upgraded binary shows as "postgres (deleted)".
            named(name.trim_end_matches(" (deleted)"))
        }
        Err(_) => named(&comm(pid)),
    }
}

/// The server processes that work in `dir` or below it.
pub fn postgres_under(dir: &Path) -> Vec<i32> {
    pids()
        .into_iter()
        .filter(|&pid| cwd(pid).is_some_and(|c| c.starts_with(dir)) && is_postgres(pid))
        .collect()
}

/// All processes that have their current directory, their binary or an open
/// file below `dir`, for messages.
pub fn users_of(dir: &Path) -> Vec<String> {
    let uses = |pid: i32| {
        let link =
            |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).is_ok_and(|p| p.starts_with(dir));
        link("cwd") || link("exe") || link("root") || {
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|p| p.starts_with(dir)))
        }
    };
    pids().into_iter().filter(|&pid| uses(pid)).map(|pid| format!("{} ({pid})", comm(pid))).collect()
}

/// Sends a signal; a process that is gone is fine.
pub fn signal(pid: i32, signal: Signal) {
    if let Err(error) = kill(Pid::from_raw(pid), signal) {
        log::debug!("signal {signal} to {pid}: {error}");
    }
}

/// Waits until `done` says so, looking more and more rarely; false at the
/// end of `limit`.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if done() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_itself_and_a_dead_child() {
        let me = std::process::id() as i32;
        assert!(alive(me) && pids().contains(&me) && !is_postgres(me));
        assert_eq!(cwd(me).unwrap(), std::env::current_dir().unwrap());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(wait_until(Duration::from_secs(10), || !alive(pid)), "a zombie counts as dead");
        child.wait().unwrap();
        assert!(!alive(pid));
        assert!(!wait_until(Duration::from_millis(5), || false));
    }
}
