//! The daemon's log: one line per event on stderr, which is STORE/daemon.log
//! for a daemon in the background. That file does not grow for ever: when it is
//! long it gets another name, in the place of the one before it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::error::one_line;

/// From this length on a log is put aside.
const LENGTH_MAX: u64 = 16 << 20;

/// stderr.
struct Logger {
    file: Option<Mutex<LogFile>>,
}

/// The file that stderr is.
struct LogFile {
    path: PathBuf,
    length: u64,
}

impl LogFile {
    fn new(path: &Path) -> LogFile {
        // What cannot be measured is written to all the same.
        let length = path.metadata().map_or(0, |meta| meta.len());
        LogFile { path: path.to_path_buf(), length }
    }

    /// Counts bytes; the file to go on with, once there are too many.
    fn count(&mut self, bytes: usize, most: u64) -> Option<io::Result<File>> {
        self.length += bytes as u64;
        if self.length < most {
            return None;
        }
        // Also if that fails: the next try is as many bytes away.
        self.length = 0;
        let old = self.path.with_extension("log.1");
        let mut options = File::options();
        let open = |()| options.create(true).append(true).mode(0o600).open(&self.path);
        Some(std::fs::rename(&self.path, old).and_then(open))
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => "ERROR",
            Level::Warn => "WARN ",
            Level::Info => "INFO ",
            Level::Debug => "DEBUG",
            Level::Trace => "TRACE",
        };
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
        let text = record.args().to_string();
        let line = format!("{now} {level} {}: {}\n", record.target(), one_line(&text));
        // A log that cannot be written must not end the daemon.
        let _ = io::stderr().lock().write_all(line.as_bytes());
        let Some(file) = &self.file else { return };
        // Who panicked while counting bytes has broken nothing.
        let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match file.count(line.len(), LENGTH_MAX) {
            None => {}
            Some(next) => {
                let turned = next.and_then(|next| Ok(nix::unistd::dup2_stderr(next)?));
                if let Err(e) = turned {
                    let _ = writeln!(io::stderr(), "cannot begin a new log: {e}");
                }
            }
        }
    }

    fn flush(&self) {}
}

/// Starts logging; `file` is the one that stderr is, if it is the daemon's own.
/// PGCOWFS_LOG is a level's name: error, warn, info, debug, trace.
pub fn init(file: Option<&Path>) {
    let level = std::env::var("PGCOWFS_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(LevelFilter::Info);
    let logger = Logger { file: file.map(|path| Mutex::new(LogFile::new(path))) };
    // Once, for as long as the process lives. It fails only when there is a logger already.
    if log::set_logger(Box::leak(Box::new(logger))).is_ok() {
        log::set_max_level(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.log");
        std::fs::write(&path, "first\n").unwrap();
        let mut log = LogFile::new(&path);
        assert!(log.count(6, 13).is_none(), "12 bytes");
        for round in ["second", "third"] {
            let mut next = log.count(12, 12).unwrap().unwrap();
            writeln!(next, "{round}").unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(["daemon.log", "daemon.log.1"].map(read), ["third\n", "second\n"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
