//! Snapshots: frozen layers that a fork keeps under a label.

use std::collections::HashMap;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;

use crate::block::BLOCK_BYTES;
use crate::error::{Error, Result};
use crate::ids::{LayerId, check_label};
use crate::map::Batch;
use crate::map::schema::{ForkRecord, SnapshotRecord, Time};

use super::branch::ForkReport;
use super::core::LayerInfo;
use super::fork::Fork;
use super::store::Store;

/// A snapshot of a fork.
#[derive(Clone, Debug)]
pub struct SnapshotInfo {
    /// The fork that keeps it.
    pub fork: String,
    /// Its label.
    pub label: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// Sum of the sizes of its files.
    pub logical_bytes: u64,
    /// Bytes of the pages by which it differs from what it stands on: another
    /// snapshot, or what another fork stands on, too.
    pub changed_bytes: u64,
    /// The forks that were made from it.
    pub forks: Vec<String>,
}

impl Store {
    /// Keeps what a fork is now under a label, durably.
    pub fn snapshot(&self, name: &str, label: &str) -> Result<ForkReport> {
        let start = Instant::now();
        check_label(label)?;
        let fork = self.whole_fork(name)?;
        let unused = || match self.core.snapshot(fork.id(), label) {
            Some(_) => Err(Error::SnapshotExists(name.to_string(), label.to_string())),
            None => Ok(()),
        };
        unused()?;
        let frozen = self.freeze(&fork)?;
        // Only now nobody else makes one. The head is frozen for nothing then; it
        // is merged again.
        unused()?;
        let record = SnapshotRecord { layer: frozen.layer, created: Time::now() };
        let mut extra = Batch::default();
        extra.put(record.encode(fork.id(), label));
        let stall = frozen.stall;
        let enter = || self.core.keep(fork.id(), label, record.clone());
        let map_bytes = self.commit_frozen(frozen, &[], extra, &enter)?;
        Ok(ForkReport { total: start.elapsed(), stall, map_bytes })
    }

    /// Makes what a fork is now what it was made from.
    pub(super) fn begin_here(&self, fork: &Fork) -> Result<()> {
        let frozen = self.freeze(fork)?;
        let record = SnapshotRecord { layer: frozen.layer, created: Time::now() };
        let mut extra = Batch::default();
        extra.put(record.encode(fork.id(), ""));
        let before = Mutex::new(None);
        let enter = || {
            *before.lock() = self.core.unkeep(fork.id(), "");
            self.core.keep(fork.id(), "", record.clone());
        };
        self.commit_frozen(frozen, &[], extra, &enter)?;
        self.let_go(before.into_inner());
        Ok(())
    }

    /// The snapshots of a fork, the oldest first.
    pub fn snapshots(&self, name: &str) -> Result<Vec<SnapshotInfo>> {
        Ok(self.describe_snapshots(&[self.record_of(name)?.1]))
    }

    /// The snapshots of all forks: by the fork's name, the oldest first.
    pub fn all_snapshots(&self) -> Vec<SnapshotInfo> {
        let mut records = self.records();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        self.describe_snapshots(&records)
    }

    fn describe_snapshots(&self, of: &[ForkRecord]) -> Vec<SnapshotInfo> {
        let all = self.records();
        let _still = self.core.moves.read();
        let kept: Vec<_> = of.iter().map(|record| (record, self.core.snapshots(record.id))).collect();
        let mut made_from: HashMap<LayerId, Vec<String>> = HashMap::new();
        for fork in all.iter().filter(|fork| !fork.is_incomplete()) {
            if let Some(origin) = self.core.snapshot(fork.id, "") {
                made_from.entry(origin.layer).or_default().push(fork.name.clone());
            }
        }
        let layers = self.core.layers.lock();
        let mut snapshots = Vec::new();
        for (record, mut kept) in kept {
            kept.retain(|(label, _)| !label.is_empty());
            kept.sort_by_key(|(_, snapshot)| (snapshot.created, snapshot.layer));
            snapshots.extend(kept.into_iter().map(|(label, snapshot)| {
                let mut forks = made_from.get(&snapshot.layer).cloned().unwrap_or_default();
                forks.sort();
                SnapshotInfo {
                    fork: record.name.clone(),
                    label,
                    created_at: snapshot.created.to_system(),
                    logical_bytes: layers.get(&snapshot.layer).map_or(0, |info| info.record.logical_bytes),
                    changed_bytes: changed_pages(snapshot.layer, &layers).saturating_mul(BLOCK_BYTES),
                    forks,
                }
            }));
        }
        snapshots
    }

    /// Removes a snapshot. Forks that were made from it keep all they have.
    pub fn remove_snapshot(&self, name: &str, label: &str) -> Result<()> {
        let _one = self.changes.lock();
        let (id, _) = self.record_of(name)?;
        let layer = {
            let _still = self.core.moves.read();
            if self.core.snapshot(id, label).filter(|_| !label.is_empty()).is_none() {
                return Err(Error::NoSuchSnapshot(name.to_string(), label.to_string()));
            }
            let mut batch = Batch::default();
            batch.delete(SnapshotRecord::key(id, label));
            self.core.map.commit(&batch)?;
            self.core.unkeep(id, label)
        };
        self.let_go(layer);
        Ok(())
    }

    /// Makes a fork a root of its own: it can be put back no more to what it was
    /// made from, and the pages that only this needs are given back.
    pub fn promote(&self, name: &str) -> Result<()> {
        let _one = self.changes.lock();
        let fork = self.by_name(name)?;
        if fork.record.lock().parent.is_empty() {
            return Err(Error::NoOrigin(name.to_string()));
        }
        let layer = {
            let _still = self.core.moves.read();
            let mut batch = Batch::default();
            batch.delete(SnapshotRecord::key(fork.id(), ""));
            self.change_record_with(&fork, batch, |record| record.parent.clear())?;
            // A store of the first format did not note it.
            self.core.unkeep(fork.id(), "")
        };
        self.let_go(layer);
        Ok(())
    }

    /// A layer has lost a name.
    fn let_go(&self, layer: Option<LayerId>) {
        if let Some(layer) = layer {
            self.queue_unreachable_from(layer);
        }
    }
}

/// Pages of a layer, and of those below that are part of nothing else.
fn changed_pages(layer: LayerId, layers: &HashMap<LayerId, LayerInfo>) -> u64 {
    let mut pages = 0u64;
    let mut at = layers.get(&layer);
    while let Some(info) = at {
        pages = pages.saturating_add(info.record.pages);
        at = layers.get(&info.record.parent).filter(|below| below.names == 0 && below.children.len() == 1);
    }
    pages
}
