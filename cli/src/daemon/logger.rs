//! The daemon's log: one line per event on stderr, which is STORE/daemon.log
//! for a daemon in the background.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::error::one_line;

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                Level::Error => "ERROR",
                Level::Warn => "WARN ",
                Level::Info => "INFO ",
                Level::Debug => "DEBUG",
                Level::Trace => "TRACE",
            };
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
            // A log that cannot be written must not end the daemon.
            let text = record.args().to_string();
            let _ =
                writeln!(std::io::stderr().lock(), "{now} {level} {}: {}", record.target(), one_line(&text));
        }
    }

    fn flush(&self) {}
}

/// Starts logging. PGCOWFS_LOG is a level's name: error, warn, info, debug, trace.
pub fn init() {
    let level = std::env::var("PGCOWFS_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(LevelFilter::Info);
    // It fails only when there is a logger already.
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(level);
    }
}
