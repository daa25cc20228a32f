//! What `refresh` reports.

use serde::Serialize;

use super::{ForkReport, MaskedReport, Report, connections};
use crate::ui::{bytes_text, ms_text};

/// `refresh`
#[derive(Debug, Serialize)]
pub struct RefreshReport {
    /// The fork.
    #[serde(flatten)]
    pub fork: ForkReport,
    /// What it was brought in from: a directory, or a server's connection string.
    pub refreshed_from: String,
    /// Bytes that differed, and were written.
    pub written_bytes: u64,
    /// What was masked; null if nothing was to be.
    pub masked: Option<MaskedReport>,
    /// How long it took, from the beginning to the end.
    pub refresh_ms: f64,
    /// How long the server took to stop; null if it did not run.
    pub stop_ms: Option<f64>,
    /// How long it took to start again; null if it did not run.
    pub start_ms: Option<f64>,
    /// What its user should know.
    pub warnings: Vec<String>,
}

impl Report for RefreshReport {
    fn human(&self, _color: bool) -> String {
        let name = &self.fork.name;
        let mut out = format!(
            "refreshed {name} from {} in {}: {} differed\n",
            self.refreshed_from,
            ms_text(self.refresh_ms),
            bytes_text(self.written_bytes)
        );
        out += &self.masked.as_ref().map_or(String::new(), |masked| masked.text(name));
        match self.start_ms {
            Some(ms) => out += &connections(&self.fork, ms),
            None => out += &format!("next: pgcowfs start {name}\n"),
        }
        out
    }
}
