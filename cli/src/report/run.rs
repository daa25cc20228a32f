//! What `run` reports.

use serde::Serialize;

use super::Report;

/// `run`
#[derive(Debug, Serialize)]
pub struct RunReport {
    /// The forks.
    pub forks: Vec<String>,
    /// Whether they were ephemeral.
    pub ephemeral: bool,
    /// How many of them came from a pool.
    pub pooled: usize,
    /// From the beginning until the command was started.
    pub ready_ms: f64,
    /// What it ended with.
    pub exit_code: u8,
    /// The forks that are kept.
    pub kept: Vec<String>,
}

impl Report for RunReport {
    fn human(&self, _color: bool) -> String {
        let line = |name: &String| {
            format!("kept {name}: pgcowfs psql {name}; when you are done: pgcowfs rm --force {name}\n")
        };
        self.kept.iter().map(line).collect()
    }
}
