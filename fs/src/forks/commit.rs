//! Group commit: everything changed in a fork becomes durable at once.
//!
//! One commit takes a snapshot of the fork and what is pending, flushes the
//! data, and writes one batch to the block map. Whoever asks for durability
//! while it runs waits for the next one, which serves them all.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::layer::Body;
use crate::layer::pending::Unit;
use crate::map::Batch;

use super::fork::{Fork, Head, Staged};

/// How often a wait for the other part of a block looks.
const PART_INTERVAL: Duration = Duration::from_micros(200);

impl Head {
    /// Takes what is pending, with the state of this instant.
    pub(super) fn take_unit(&mut self) -> Unit {
        let seq = self.seq;
        self.seq += 1;
        Unit {
            layer: self.layer_record(),
            seq,
            state: self.state.clone(),
            below: self.below.clone(),
            pending: std::mem::take(&mut self.pending),
        }
    }
}

impl Fork {
    /// `fsync` (`data_only`: `fdatasync`) of a file or directory. Makes all of
    /// the fork durable; only `fdatasync` of an in-place file whose size and
    /// place are durable flushes just that file's data. An ephemeral fork has
    /// nothing to make durable.
    pub fn sync(&self, file: FileId, data_only: bool) -> Result<()> {
        let (hosts, target) = {
            let mut head = self.head_mut()?;
            // The kernel sends no sync of a file in the middle of a write to it
            // (both hold the inode's lock): a part was written as one.
            self.place_staged(&mut head, |(of, _), _| *of == file)?;
            let inode = head.inode(file)?;
            if self.is_ephemeral() {
                return Ok(());
            }
            let hosts = match &inode.body {
                Body::InPlace(extents, _) => Some(extents.written_hosts()),
                _ => None,
            };
            let settled = inode.meta_seq <= self.committed.load(Ordering::SeqCst) || head.is_orphan(file);
            let target = head.target();
            (hosts, if hosts_only(&head, file, data_only, settled) { None } else { Some(target) })
        };
        for host in hosts.into_iter().flatten() {
            self.count(|amounts| &amounts.wal_flushes, 1);
            host.flush().inspect_err(|e| self.poison_unless_full(e))?;
        }
        match target {
            Some(target) => self.commit_up_to(target),
            None => Ok(()),
        }
    }

    /// Makes everything in the fork durable. A block of which a part is on its
    /// way is left out.
    pub fn sync_all(&self) -> Result<()> {
        self.wait_for_parts();
        self.sync_with(|staged| staged.is_settled())
    }

    /// The same when nobody writes any more: parts are all that comes.
    pub(super) fn sync_at_end(&self) -> Result<()> {
        self.sync_with(|_| true)
    }

    fn sync_with(&self, which: impl Fn(&Staged) -> bool) -> Result<()> {
        let target = {
            let mut head = self.head_mut()?;
            self.place_staged(&mut head, |_, staged| which(staged))?;
            head.target()
        };
        self.commit_up_to(target)
    }

    /// Waits until the writes that have been split and are half here now are
    /// whole, or turn out to be no halves.
    pub(super) fn wait_for_parts(&self) {
        let now = Instant::now();
        while self.head.lock().staged.values().any(|s| s.since < now && !s.is_settled()) {
            std::thread::sleep(PART_INTERVAL);
        }
    }

    /// Returns when commit number `target` is durable.
    pub(super) fn commit_up_to(&self, target: u64) -> Result<()> {
        if self.committed.load(Ordering::SeqCst) >= target {
            return Ok(());
        }
        let mut backlog = self.commit.lock();
        if self.committed.load(Ordering::SeqCst) >= target {
            return Ok(());
        }
        let unit = self.head_mut()?.take_unit();
        let frozen = std::mem::take(&mut backlog.units);
        let units: Vec<&Unit> = frozen.iter().chain([&unit]).collect();
        let mut extra = Batch::default();
        if !frozen.is_empty() {
            extra.put(self.record.lock().encode());
        }
        match self.commit_units(&units, extra) {
            Ok(_) => Ok(()),
            Err(e) if e.is_full() => {
                backlog.units = frozen;
                self.head.lock().take_back(unit);
                Err(e)
            }
            Err(e) => {
                self.poison(&e);
                Err(e)
            }
        }
    }

    /// Flushes the units' data and commits them with the changes in `extra`;
    /// the caller holds the commit lock. Returns the bytes of the batch.
    pub(super) fn commit_units(&self, units: &[&Unit], extra: Batch) -> Result<u64> {
        self.flush_units(units)?;
        self.stats.amounts.map_commits.fetch_add(1, Ordering::Relaxed);
        let bytes = self.core.commit_units(units, extra)?;
        if let Some(last) = units.last() {
            self.committed.store(last.seq, Ordering::SeqCst);
        }
        Ok(bytes)
    }

    /// Makes the data that units refer to durable.
    pub(super) fn flush_units(&self, units: &[&Unit]) -> Result<()> {
        if units.iter().any(|u| !u.pending.added.is_empty()) {
            self.delta().flush()?;
        }
        for host in units.iter().flat_map(|u| u.pending.hosts.values()) {
            host.flush()?;
        }
        Ok(())
    }

    /// Commits an ephemeral fork if much is pending: nobody else does, and what is
    /// pending takes memory, and keeps slots and page tables from going.
    pub(super) fn commit_if_ephemeral(&self) {
        if !self.is_ephemeral() || self.fault().is_some() {
            return;
        }
        let entries = self.head.lock().pending.entries();
        if entries < self.core.options.ephemeral_pending_max {
            return;
        }
        match self.sync_all() {
            Ok(()) | Err(Error::Stale) => {}
            // If that is more than a lack of space, the fork has stopped.
            Err(e) => log::warn!("ephemeral fork {:?}: {e}", self.name),
        }
    }

    /// Writes dirty pages to the delta file, without making them durable.
    pub(super) fn write_back(&self) {
        if let Err(e) = self.delta().write_out() {
            self.poison_unless_full(&e);
        }
    }

    /// The fork's record with another head.
    pub(super) fn record_with_head(&self, head: crate::ids::LayerId) -> crate::map::schema::ForkRecord {
        let mut record = self.record.lock();
        record.head = head;
        record.clone()
    }
}

impl Head {
    /// The commit that makes everything up to now durable.
    pub(super) fn target(&self) -> u64 {
        if self.pending.is_empty() { self.seq - 1 } else { self.seq }
    }

    /// Takes back a unit whose commit found no space.
    pub(super) fn take_back(&mut self, unit: Unit) {
        self.pending.absorb(unit.pending);
        // Its files are not durable yet: they belong to the next commit.
        let seq = self.seq;
        let files: Vec<FileId> = self.pending.files.keys().copied().collect();
        for file in files {
            if let Ok(inode) = self.inode_mut(file)
                && inode.meta_seq == unit.seq
            {
                inode.meta_seq = seq;
            }
        }
    }
}

fn hosts_only(head: &Head, file: FileId, data_only: bool, settled: bool) -> bool {
    let in_place = head.inode(file).is_ok_and(|i| matches!(i.body, Body::InPlace(..)));
    in_place && data_only && settled
}
