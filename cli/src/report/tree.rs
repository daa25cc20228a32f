//! What `tree` reports.

use serde::Serialize;

use super::{ForkReport, Report, SnapshotEntry};
use crate::ui::{Cell, age_text, bytes_text, table};

/// A fork or a snapshot, and what was made from it.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TreeNode {
    /// A fork.
    Fork {
        /// It.
        #[serde(flatten)]
        fork: Box<ForkReport>,
        /// Its snapshots, and the forks of it.
        children: Vec<TreeNode>,
    },
    /// A snapshot.
    Snapshot {
        /// It.
        #[serde(flatten)]
        snapshot: SnapshotEntry,
        /// The forks of it.
        children: Vec<TreeNode>,
    },
}

/// `tree`
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct TreeReport(pub Vec<TreeNode>);

impl Report for TreeReport {
    fn human(&self, color: bool) -> String {
        let mut rows = Vec::new();
        self.0.iter().for_each(|root| root.rows("", "", color, &mut rows));
        let head = ["NAME", "STATE", "PORT", "OWN", "SIZE", "AGE", ""];
        table(&head, &[false, false, true, true, true, true, false], &rows)
    }
}

impl TreeNode {
    /// One row for itself, whose name stands behind `branch`, and those of what was
    /// made from it behind `stem`.
    fn rows(&self, branch: &str, stem: &str, color: bool, rows: &mut Vec<Vec<Cell>>) {
        let dim = color.then_some("36");
        let children = match self {
            TreeNode::Fork { fork, children } => {
                let mut remarks = fork.remarks();
                if let (true, Some(parent)) = (branch.is_empty(), &fork.parent) {
                    remarks.push(format!("of {parent}, which is gone"));
                }
                rows.push(vec![
                    Cell::plain(format!("{branch}{}", fork.name)),
                    fork.state_cell(color),
                    Cell::plain(fork.port.to_string()),
                    Cell::plain(bytes_text(fork.delta_bytes)),
                    Cell::plain(bytes_text(fork.logical_bytes)),
                    Cell::plain(age_text(&fork.created_at)),
                    Cell::plain(remarks.join(", ")),
                ]);
                children
            }
            TreeNode::Snapshot { snapshot, children } => {
                let row = &snapshot.row;
                rows.push(vec![
                    Cell::colored(format!("{branch}@{}", row.label), dim),
                    Cell::colored("snapshot", dim),
                    Cell::plain(""),
                    Cell::plain(bytes_text(row.changed_bytes)),
                    Cell::plain(bytes_text(row.logical_bytes)),
                    Cell::plain(age_text(&row.created_at)),
                    Cell::plain(""),
                ]);
                children
            }
        };
        for (number, child) in children.iter().enumerate() {
            let (turn, line) =
                if number + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            child.rows(&format!("{stem}{turn}"), &format!("{stem}{line}"), color, rows);
        }
    }
}
