//! How long the parts of a start take, for the log.

use std::fmt::Write;
use std::time::Instant;

/// A start under way.
pub(super) struct Phases {
    begin: Instant,
    last: Instant,
    text: String,
}

impl Phases {
    pub fn begin() -> Self {
        let now = Instant::now();
        Phases { begin: now, last: now, text: String::new() }
    }

    /// What began with the end of the phase before is done.
    pub fn end(&mut self, name: &str) {
        let now = Instant::now();
        let comma = if self.text.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{comma}{name} {}", (now - self.last).as_millis());
        self.last = now;
    }

    /// All of it.
    pub fn log(&self) {
        log::info!("store opened in {} ms: {}", self.begin.elapsed().as_millis(), self.text);
    }
}
