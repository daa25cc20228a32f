//! What the daemon does about snapshots, and with whole forks.

use pgcowfs::SnapshotInfo;

use super::Daemon;
use crate::error::{Error, Kind, Result};
use crate::postgres::identity;
use crate::postgres::tree::ForkTree;
use crate::protocol::{SnapshotRow, Snapshotted};

/// No snapshot has this label: `reset --to` means something else by it.
const PARENT: &str = "parent";

impl Daemon {
    pub(super) fn snapshots(&self, fork: Option<&str>) -> Result<Vec<SnapshotRow>> {
        let found = match fork {
            Some(fork) => self.store.snapshots(fork)?,
            None => self.store.all_snapshots(),
        };
        found.into_iter().map(snapshot_row).collect()
    }

    pub(super) fn snapshot(&self, fork: &str, label: Option<&str>) -> Result<Snapshotted> {
        let _changes = self.changes.lock();
        self.info(fork)?;
        let label = match label {
            Some(PARENT) => {
                return Err(Error::new(Kind::Usage, format!("{PARENT:?} cannot be a snapshot's label"))
                    .cause("`reset --to parent` means the fork that a fork was made from")
                    .hint("choose another label"));
            }
            Some(label) => label.to_string(),
            None => self.label_of_now(fork)?,
        };
        // Nothing could be made of it.
        identity::check_contained(&ForkTree(&*self.store.by_name(fork)?), fork)?;
        let report = self.store.snapshot(fork, &label)?;
        log::info!("kept {fork} as {fork}@{label} in {:?}, stall {:?}", report.total, report.stall);
        let made = self.snapshots(Some(fork))?.into_iter().find(|snapshot| snapshot.label == label);
        Ok(Snapshotted {
            row: made.ok_or_else(|| Error::from(pgcowfs::Error::NoSuchSnapshot(fork.into(), label)))?,
            snapshot_ms: report.total.as_secs_f64() * 1e3,
            stall_ms: report.stall.as_secs_f64() * 1e3,
        })
    }

    /// The time, and a number if there was a snapshot in this second already.
    fn label_of_now(&self, fork: &str) -> Result<String> {
        let taken: Vec<String> = self.store.snapshots(fork)?.into_iter().map(|s| s.label).collect();
        let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
        let labels = std::iter::once(now.clone()).chain((2..).map(|n| format!("{now}-{n}")));
        let free = labels.into_iter().find(|label| !taken.contains(label));
        Ok(free.unwrap_or(now))
    }

    pub(super) fn remove_snapshot(&self, fork: &str, label: &str) -> Result<()> {
        let _changes = self.changes.lock();
        pgcowfs::check_label(label)?;
        self.store.remove_snapshot(fork, label)?;
        log::info!("removed {fork}@{label}");
        Ok(())
    }
}

fn snapshot_row(info: SnapshotInfo) -> Result<SnapshotRow> {
    Ok(SnapshotRow {
        created_at: super::requests::rfc3339(info.created_at)?,
        fork: info.fork,
        label: info.label,
        logical_bytes: info.logical_bytes,
        changed_bytes: info.changed_bytes,
        forks: info.forks,
    })
}
