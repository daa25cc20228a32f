//! What `export` reports.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::Report;
use crate::ui::{bytes_text, duration_text};

/// `export`
#[derive(Debug, Serialize)]
pub struct ExportReport {
    /// The fork.
    pub fork: String,
    /// The snapshot of it, if it was one.
    pub snapshot: Option<String>,
    /// The new data directory.
    pub dir: PathBuf,
    /// Sum of its files' sizes.
    pub bytes: u64,
    /// How many there are.
    pub files: usize,
    /// The major version.
    pub pg_version: String,
    /// Whether its first start recovers, as after a crash.
    pub recovers: bool,
    /// For how long the fork's writes were held.
    pub stall_ms: f64,
    /// How long the fork's CHECKPOINT took; null if none was asked for.
    pub checkpoint_ms: Option<f64>,
    /// How long it took.
    pub export_ms: f64,
    /// What its user should know.
    pub warnings: Vec<String>,
}

impl Report for ExportReport {
    fn human(&self, _color: bool) -> String {
        let label = self.snapshot.as_ref().map_or(String::new(), |label| format!("@{label}"));
        let took = duration_text(Duration::from_secs_f64(self.export_ms / 1e3));
        let dir = self.dir.display();
        let first = match self.recovers {
            true => "; its first start recovers it, as after a crash",
            false => "",
        };
        format!(
            "exported {}{label} to {dir} in {took}: {} in {} files, PostgreSQL {}{first}\nnext: pg_ctl -D {dir} start",
            self.fork,
            bytes_text(self.bytes),
            self.files,
            self.pg_version,
        )
    }
}
