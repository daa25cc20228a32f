//! What `dump` and `dumps` report.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::Report;
use crate::dumps::manifest::Database;
use crate::meta::DumpFailure;
use crate::protocol::DumpRow;
use crate::ui::{Cell, age_text, bytes_text, duration_text, ms_text, table};

/// `dump`
#[derive(Debug, Serialize)]
pub struct DumpReport {
    /// Where it is.
    pub path: PathBuf,
    /// directory or file.
    pub format: &'static str,
    /// What was dumped.
    pub fork: String,
    /// As it was when this snapshot was made; null: as it was at the beginning.
    pub snapshot: Option<String>,
    /// The major version.
    pub pg_version: String,
    /// The databases.
    pub databases: Vec<DumpedDatabase>,
    /// What it takes.
    pub bytes: u64,
    /// How long the fork took.
    pub fork_ms: f64,
    /// For how long the fork's writes were held.
    pub stall_ms: f64,
    /// How long the start of the fork's server took, with its recovery.
    pub start_ms: f64,
    /// All together.
    pub dump_ms: f64,
}

/// One of a dump's databases.
#[derive(Debug, Serialize)]
pub struct DumpedDatabase {
    /// Its name.
    pub name: String,
    /// How many tables with data.
    pub tables: u64,
    /// What these take in the server.
    pub table_bytes: u64,
}

impl From<Database> for DumpedDatabase {
    fn from(of: Database) -> DumpedDatabase {
        DumpedDatabase { name: of.name, tables: of.tables, table_bytes: of.bytes }
    }
}

/// `dumps`
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct DumpsReport(pub Vec<DumpRow>);

impl Report for DumpsReport {
    fn human(&self, _color: bool) -> String {
        let row = |row: &DumpRow| {
            vec![
                Cell::plain(&row.fork),
                Cell::plain(duration_text(Duration::from_secs(row.every_s))),
                Cell::plain(row.keep.to_string()),
                Cell::plain(row.dumps.len().to_string()),
                Cell::plain(row.last_at.as_deref().map_or("-".into(), age_text)),
                Cell::plain(row.dir.display().to_string()),
                Cell::plain(remark(row)),
            ]
        };
        let rows: Vec<Vec<Cell>> = self.0.iter().map(row).collect();
        let right = [false, true, true, true, true, false, false];
        table(&["FORK", "EVERY", "KEEP", "THERE", "LAST", "DIR", ""], &right, &rows)
    }
}

/// What is to be known about a schedule of dumps now.
fn remark(row: &DumpRow) -> String {
    let under_way = row.running_since.as_ref().map(|since| format!("under way for {}", age_text(since)));
    let failed = |failure: &DumpFailure| format!("failed {} ago: {}", age_text(&failure.at), failure.message);
    under_way.into_iter().chain(row.failure.as_ref().map(failed)).collect::<Vec<_>>().join("; ")
}

/// The schedules of dumps, for `status`.
pub fn dumps_text(rows: &[DumpRow]) -> String {
    let text = |row: &DumpRow| {
        let last =
            row.last_at.as_deref().map_or("none yet".into(), |last| format!("last {} ago", age_text(last)));
        let remark = remark(row);
        format!("{}: {last}{}{remark}", row.fork, if remark.is_empty() { "" } else { ", " })
    };
    rows.iter().map(text).collect::<Vec<_>>().join("; ")
}

impl Report for DumpReport {
    fn human(&self, _color: bool) -> String {
        let place = match &self.snapshot {
            Some(label) => format!("{}@{label}", self.fork),
            None => self.fork.clone(),
        };
        let tables: u64 = self.databases.iter().map(|of| of.tables).sum();
        let databases = match self.databases.len() {
            1 => "1 database".to_string(),
            n => format!("{n} databases"),
        };
        let (path, bytes, took) = (self.path.display(), bytes_text(self.bytes), ms_text(self.dump_ms));
        format!("dumped {place} to {path} in {took}: {databases}, {tables} tables with data, {bytes}")
    }
}
