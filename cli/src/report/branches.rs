//! What the commands about snapshots report, and those about whole forks.

use serde::Serialize;

use super::{ForkReport, Report, connections};
use crate::protocol::SnapshotRow;
use crate::ui::{Cell, age_text, bytes_text, ms_text, table};

/// One snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotEntry {
    /// FORK@LABEL.
    pub name: String,
    /// What the daemon knows.
    #[serde(flatten)]
    pub row: SnapshotRow,
}

impl SnapshotEntry {
    /// With its name.
    pub fn new(row: SnapshotRow) -> SnapshotEntry {
        SnapshotEntry { name: format!("{}@{}", row.fork, row.label), row }
    }
}

/// `snapshots`
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct SnapshotsReport(pub Vec<SnapshotEntry>);

impl Report for SnapshotsReport {
    fn human(&self, _color: bool) -> String {
        let row = |entry: &SnapshotEntry| {
            let row = &entry.row;
            vec![
                Cell::plain(&entry.name),
                Cell::plain(bytes_text(row.changed_bytes)),
                Cell::plain(bytes_text(row.logical_bytes)),
                Cell::plain(age_text(&row.created_at)),
                Cell::plain(if row.forks.is_empty() { "-".into() } else { row.forks.join(", ") }),
            ]
        };
        let rows: Vec<Vec<Cell>> = self.0.iter().map(row).collect();
        table(&["SNAPSHOT", "CHANGED", "SIZE", "AGE", "FORKS"], &[false, true, true, true, false], &rows)
    }
}

/// `snapshot`
#[derive(Debug, Serialize)]
pub struct SnapshotReport {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: SnapshotEntry,
    /// From the request to its durable end.
    pub snapshot_ms: f64,
    /// For how long the fork's writes were held.
    pub stall_ms: f64,
    /// How long the server's CHECKPOINT took; null if none was asked for.
    pub checkpoint_ms: Option<f64>,
}

impl Report for SnapshotReport {
    fn human(&self, _color: bool) -> String {
        let (name, SnapshotRow { fork, label, .. }) = (&self.snapshot.name, &self.snapshot.row);
        let mut out = format!(
            "kept {fork} as {name} in {:.1} ms ({fork}'s writes were held for {:.3} ms)\n",
            self.snapshot_ms, self.stall_ms
        );
        if let Some(ms) = self.checkpoint_ms {
            out += &format!("the CHECKPOINT before it took {}\n", ms_text(ms));
        }
        out + &format!("next: pgcowfs fork {name} NEW, or pgcowfs reset {fork} --to {label}\n")
    }
}

/// `reset`
#[derive(Debug, Serialize)]
pub struct ResetReport {
    /// The fork.
    #[serde(flatten)]
    pub fork: ForkReport,
    /// parent, or the snapshot's label; null: what it was made from.
    pub reset_to: Option<String>,
    /// From the request to its durable end, without the server's stop and start.
    pub reset_ms: f64,
    /// For how long the parent's writes were held.
    pub stall_ms: f64,
    /// How long the parent's CHECKPOINT took; null if none was asked for.
    pub checkpoint_ms: Option<f64>,
    /// How long its server took to stop; null if it did not run.
    pub stop_ms: Option<f64>,
    /// How long it took to start.
    pub start_ms: Option<f64>,
    /// What its user should know.
    pub warnings: Vec<String>,
}

impl Report for ResetReport {
    fn human(&self, _color: bool) -> String {
        let name = &self.fork.name;
        let to = match self.reset_to.as_deref() {
            None => "what it was made from".to_string(),
            Some("parent") => format!("what {} is now", self.fork.parent.as_deref().unwrap_or("its parent")),
            Some(label) => format!("{name}@{label}"),
        };
        let mut out = format!("put {name} back to {to} in {:.1} ms\n", self.reset_ms);
        if let Some(ms) = self.checkpoint_ms {
            out += &format!("the CHECKPOINT before it took {}\n", ms_text(ms));
        }
        match self.start_ms {
            Some(ms) => out + &connections(&self.fork, ms),
            None => out + &format!("next: pgcowfs start {name}\n"),
        }
    }
}

/// `promote`
#[derive(Debug, Serialize)]
pub struct PromoteReport {
    /// The fork.
    pub name: String,
    /// What it was made from.
    pub promoted_from: Option<String>,
}

impl Report for PromoteReport {
    fn human(&self, _color: bool) -> String {
        let parent = self.promoted_from.as_deref().unwrap_or("-");
        format!("{} is a root now, and no longer a fork of {parent}", self.name)
    }
}

/// `rename`
#[derive(Debug, Serialize)]
pub struct RenameReport {
    /// The fork.
    #[serde(flatten)]
    pub fork: ForkReport,
    /// Its name before.
    pub renamed_from: String,
}

impl Report for RenameReport {
    fn human(&self, _color: bool) -> String {
        let name = &self.fork.name;
        format!("{} is {name} now, at {}\nnext: pgcowfs start {name}", self.renamed_from, self.fork.url)
    }
}

/// `protect`
#[derive(Debug, Serialize)]
pub struct ProtectReport {
    /// The fork.
    pub name: String,
    /// Whether it is protected now.
    pub protected: bool,
    /// When that ends; null: when it is lifted.
    pub protected_until: Option<String>,
}

impl Report for ProtectReport {
    fn human(&self, _color: bool) -> String {
        let name = &self.name;
        match (self.protected, &self.protected_until) {
            (false, _) => format!("{name} is not protected"),
            (true, None) => format!("{name} is protected, until: pgcowfs protect {name} --off"),
            (true, Some(until)) => format!("{name} is protected until {until}"),
        }
    }
}
