//! What `footprint` reports.

use serde::Serialize;

use super::diff::shown;
use super::{Pages, RelationDiff, Report};
use crate::error::one_line;
use crate::postgres::observe::Waits;
use crate::ui::{Cell, bytes_text, ms_text, pairs, table};

/// `footprint`
#[derive(Debug, Serialize)]
pub struct FootprintReport {
    /// What was forked.
    pub fork: String,
    /// What was run.
    pub command: Vec<String>,
    /// The command's exit status; null if it was killed.
    pub exit_status: Option<i32>,
    /// Whether it was stopped because it took too long.
    pub stopped: bool,
    /// How long it took.
    pub time_ms: f64,
    /// WAL that was written meanwhile.
    pub wal_bytes: u64,
    /// Pages changed and added.
    pub pages_written: u64,
    /// Pages of all relations.
    pub pages: Pages,
    /// Tables and indexes that are not what they were, the most different first.
    pub relations: Vec<RelationDiff>,
    /// Waits for locks; null before PostgreSQL 14.
    pub lock_waits: Option<Waits>,
    /// The budgets that are exceeded, in words.
    pub exceeded: Vec<String>,
}

impl Report for FootprintReport {
    fn human(&self, color: bool) -> String {
        let row = |relation: &RelationDiff| {
            vec![
                relation.called.database(),
                Cell::plain(relation.title()),
                relation.called.kind(),
                Cell::plain(&relation.fork),
                Cell::plain(relation.pages.changed.to_string()),
                Cell::plain(relation.pages.added.to_string()),
                Cell::plain(relation.pages.removed.to_string()),
            ]
        };
        let rows: Vec<Vec<Cell>> = shown(&self.relations).iter().map(row).collect();
        let mut out = String::new();
        if !rows.is_empty() {
            let head = ["DATABASE", "RELATION", "KIND", "FORK", "CHANGED", "ADDED", "REMOVED"];
            out += &table(&head, &[false, false, false, false, true, true, true], &rows);
            out.push('\n');
        }
        let locks = match &self.lock_waits {
            None => "not known before PostgreSQL 14".into(),
            Some(Waits { longest: None, samples }) => format!("nobody was seen waiting ({samples} looks)"),
            Some(Waits { longest: Some(longest), samples }) => format!(
                "{} for {} on a {}: {} ({samples} looks)",
                ms_text(longest.wait_ms),
                longest.mode,
                longest.on,
                one_line(&longest.query)
            ),
        };
        let status = self.exit_status.map_or("killed".into(), |code| code.to_string());
        let bad = self.exit_status != Some(0);
        out += &pairs(&[
            ("exit status", Cell::colored(status, Some("31").filter(|_| bad && color))),
            ("time", Cell::plain(ms_text(self.time_ms))),
            (
                "pages written",
                Cell::plain(format!("{} ({})", self.pages_written, bytes_text(self.pages_written * 8192))),
            ),
            ("WAL", Cell::plain(bytes_text(self.wal_bytes))),
            ("lock wait", Cell::plain(locks)),
        ]);
        out
    }
}
