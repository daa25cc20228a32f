//! `pgcowfs snapshot` and `snapshots`

use super::checkpoint::checkpoint;
use super::{Context, ms};
use crate::args::{Snapshot, Snapshots};
use crate::error::Result;
use crate::protocol::{Request, SnapshotRow, Snapshotted};
use crate::report::{SnapshotEntry, SnapshotReport, SnapshotsReport};

/// Keeps what a fork is now under a label.
pub fn run(context: &Context, args: &Snapshot) -> Result<()> {
    if let Some(label) = &args.label {
        pgcowfs::check_label(label)?;
    }
    let mut client = context.client()?;
    let fork = client.info(&args.fork)?;
    if let Some(label) = &args.label {
        // A label that is taken should not cost a checkpoint.
        let there: Vec<SnapshotRow> = client.call(&Request::Snapshots { fork: Some(args.fork.clone()) })?;
        if there.iter().any(|snapshot| snapshot.label == *label) {
            return Err(pgcowfs::Error::SnapshotExists(args.fork.clone(), label.clone()).into());
        }
    }
    let checkpoint = checkpoint(context, &args.checkpoint, &fork)?;
    let made: Snapshotted =
        client.call(&Request::Snapshot { fork: args.fork.clone(), label: args.label.clone() })?;
    context.ui.print(&SnapshotReport {
        snapshot: SnapshotEntry::new(made.row),
        snapshot_ms: made.snapshot_ms,
        stall_ms: made.stall_ms,
        checkpoint_ms: checkpoint.map(ms),
    })
}

/// Lists snapshots.
pub fn list(context: &Context, args: &Snapshots) -> Result<()> {
    let rows: Vec<SnapshotRow> = context.client()?.call(&Request::Snapshots { fork: args.fork.clone() })?;
    if rows.is_empty() {
        let whose = args.fork.as_deref().map_or("the store has".into(), |fork| format!("{fork} has"));
        let fork = args.fork.as_deref().unwrap_or("FORK");
        context.ui.note(format!("{whose} no snapshots; make one with `pgcowfs snapshot {fork}`"));
    }
    context.ui.print(&SnapshotsReport(rows.into_iter().map(SnapshotEntry::new).collect()))
}
