//! Whatever freezes a fork's head, or begins on a frozen layer: forks, snapshots,
//! resets.
//!
//! A fork of a fork is one instant of it: the parent's head layer freezes, and
//! both go on in new layers above it. While that happens the parent's writes
//! are held; it is a handful of reference counts. What was not durable then is
//! made durable before the call returns, together with the names of the new
//! layers, in one batch. A snapshot is a name for the frozen layer (`snapshot.rs`), a
//! reset a new fork on one that takes the old one's name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::base;
use crate::error::{Error, Result};
use crate::ids::{FileId, ForkId, LayerId};
use crate::layer::pending::Unit;
use crate::layer::{Body, State};
use crate::map::Batch;
use crate::map::schema::{ForkRecord, LayerRecord, Life, QuotaRecord, SnapshotRecord, Time};

use super::core::LayerInfo;
use super::fork::{Backlog, Fork, Head};
use super::store::Store;

/// What one `fork`, `snapshot` or `reset` did.
#[derive(Clone, Copy, Debug)]
pub struct ForkReport {
    /// From the call to its return, the fork being durable.
    pub total: Duration,
    /// How long the parent's writes were held.
    pub stall: Duration,
    /// Bytes of the batch that the fork wrote to the block map.
    pub map_bytes: u64,
}

/// What a fork is put back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// What it was made from.
    Origin,
    /// One of its snapshots.
    Snapshot(String),
    /// What its parent is now.
    Parent,
    /// What that fork is now, which may be an incomplete one.
    Fork(String),
}

/// A change of a fork that is being made, before its name is visible; an error
/// undoes the fork.
pub type Edit<'a> = dyn FnMut(&Fork) -> Result<()> + 'a;

/// A fork whose head has been frozen; it is not durable yet. Until this is
/// dropped the fork makes no other commit.
pub(super) struct Frozen<'a> {
    fork: &'a Fork,
    backlog: MutexGuard<'a, Backlog>,
    pub layer: LayerId,
    state: State,
    /// The fork in its new layer.
    records: Batch,
    pub stall: Duration,
}

/// A fork that is being made.
struct Child {
    fork: Arc<Fork>,
    record: ForkRecord,
    /// What it stands on.
    origin: LayerId,
}

/// The fork whose place a child takes.
#[derive(Clone, Copy)]
struct Replaced {
    id: ForkId,
    /// What it was made from stays what it was made from.
    keeps_origin: bool,
}

impl Store {
    /// Forks `parent` as `child`. `edit` changes the child before its name is
    /// visible; an error from it undoes the fork. When this returns, the fork
    /// is durable with everything that the parent had acknowledged.
    pub fn fork(&self, parent: &str, child: &str, meta: &[u8], edit: &mut Edit<'_>) -> Result<ForkReport> {
        let start = Instant::now();
        let _nobody_renames = self.renames.read();
        let _name = self.reserve(child)?;
        let parent = self.whole_fork(parent)?;
        let mut record = self.new_record(child, meta)?;
        record.parent = parent.name();
        record.base = parent.record.lock().base.clone();
        self.fork_frozen(start, &parent, record, None, edit)
    }

    fn fork_frozen(
        &self,
        start: Instant,
        parent: &Fork,
        mut record: ForkRecord,
        replaced: Option<Replaced>,
        edit: &mut Edit<'_>,
    ) -> Result<ForkReport> {
        let frozen = self.freeze(parent)?;
        let stall = frozen.stall;
        record.head = LayerId(self.core.ids.next_layer()?);
        self.enter_layer(record.head, frozen.layer, record.id, frozen.state.logical_bytes);
        let made = self.begin_child(record, frozen.layer, frozen.state.clone());
        let map_bytes = self.finish_child(&made, Some(frozen), replaced, edit)?;
        Ok(ForkReport { total: start.elapsed(), stall, map_bytes })
    }

    /// Forks a snapshot of `parent` as `child`; see [`Store::fork`].
    pub fn fork_snapshot(
        &self,
        parent: &str,
        label: &str,
        child: &str,
        meta: &[u8],
        edit: &mut Edit<'_>,
    ) -> Result<ForkReport> {
        let start = Instant::now();
        let _nobody_renames = self.renames.read();
        let _name = self.reserve(child)?;
        let (id, parent) = self.record_of(parent)?;
        let mut record = self.new_record(child, meta)?;
        record.parent = parent.name;
        record.base = parent.base;
        let made = self.begin_on_snapshot(record, id, label)?;
        let map_bytes = self.finish_child(&made, None, None, edit)?;
        Ok(ForkReport { total: start.elapsed(), stall: Duration::ZERO, map_bytes })
    }

    /// Puts a fork back: under its name is then a new fork, with the snapshots and
    /// quota of the old one, whose open files get ESTALE, and with its `meta` unless
    /// another one is given. `edit` as for [`Store::fork`]. If anything fails,
    /// nothing has changed.
    ///
    /// What the fork was made from stays so, unless it becomes what its parent or
    /// another fork is now: then that is what it was made from. A root stays one.
    pub fn reset(
        &self,
        name: &str,
        to: &ResetTo,
        meta: Option<&[u8]>,
        edit: &mut Edit<'_>,
    ) -> Result<ForkReport> {
        let start = Instant::now();
        // Two at once could each wait for a fork that the other one holds.
        let _one = self.changes.lock();
        let (id, old) = self.record_of(name)?;
        let mut record = self.new_record(name, meta.unwrap_or(&old.meta))?;
        record.parent = old.parent.clone();
        record.base = old.base;
        record.created = old.created;
        record.life = old.life;
        let is_root = old.parent.is_empty();
        let replaced = Replaced { id, keeps_origin: is_root || matches!(to, ResetTo::Snapshot(_)) };
        let label = match to {
            ResetTo::Origin => "",
            ResetTo::Snapshot(label) => label,
            ResetTo::Parent | ResetTo::Fork(_) => {
                let other = match to {
                    ResetTo::Fork(other) if other == name => {
                        return Err(Error::Invalid("a fork cannot be put back to itself"));
                    }
                    ResetTo::Fork(other) => self.by_name(other)?,
                    _ if is_root => return Err(Error::NoOrigin(name.to_string())),
                    _ => self.whole_fork(&old.parent)?,
                };
                other.check_fault()?;
                record.base = other.record.lock().base.clone();
                return self.fork_frozen(start, &other, record, Some(replaced), edit);
            }
        };
        let made = self.begin_on_snapshot(record, id, label)?;
        let map_bytes = self.finish_child(&made, None, Some(replaced), edit)?;
        Ok(ForkReport { total: start.elapsed(), stall: Duration::ZERO, map_bytes })
    }

    /// A fork that others can be made from.
    pub(super) fn whole_fork(&self, name: &str) -> Result<Arc<Fork>> {
        let fork = self.by_name(name)?;
        fork.check_fault()?;
        if fork.record.lock().is_incomplete() {
            return Err(Error::NoSuchFork(name.to_string()));
        }
        Ok(fork)
    }

    /// The record of a fork, which need not be sound.
    pub(super) fn record_of(&self, name: &str) -> Result<(ForkId, ForkRecord)> {
        let id = self.names.read().get(name).copied();
        let known = id.and_then(|id| self.forks.read().get(&id).cloned());
        let record = known.map(|known| known.record.lock().clone()).filter(|record| !record.is_incomplete());
        record.map(|record| (record.id, record)).ok_or_else(|| Error::NoSuchFork(name.to_string()))
    }

    fn new_record(&self, name: &str, meta: &[u8]) -> Result<ForkRecord> {
        let ids = &self.core.ids;
        Ok(ForkRecord {
            id: ForkId(ids.next_fork()?),
            name: name.to_string(),
            parent: String::new(),
            // Given when it is known what it stands on.
            head: LayerId(0),
            delta: ids.next_delta()?,
            created: Time::now(),
            life: Life::Lasting,
            meta: meta.to_vec(),
            base: String::new(),
        })
    }

    /// Freezes a fork's head as it is at one instant; the fork goes on above it.
    pub(super) fn freeze<'a>(&self, fork: &'a Fork) -> Result<Frozen<'a>> {
        // Most of what is dirty is on the disk before anybody has to wait.
        fork.delta().write_out().inspect_err(|e| fork.poison_unless_full(e))?;
        fork.wait_for_parts();
        let mut backlog = fork.commit.lock();
        // Only now: a layer's number is higher than that of each one below it.
        let above = LayerId(self.core.ids.next_layer()?);
        let held = Instant::now();
        let (unit, stall) = {
            let _gate = fork.gate.write();
            let mut head = fork.head_mut()?;
            // A block of which a part came since then is not in the child: the
            // write is still under way. It stays with the parent.
            fork.place_staged(&mut head, |_, staged| staged.is_settled())?;
            let unit = head.begin_above(above);
            fork.delta().account.forget_in_place();
            (unit, held.elapsed())
        };
        let (layer, state) = (unit.layer.id, unit.state.clone());
        backlog.units.push(unit);
        let records = self.enter_head(fork, layer, above, state.logical_bytes);
        Ok(Frozen { fork, backlog, layer, state, records, stall })
    }

    /// Enters a fork's new head into the tree of layers; returns the records that
    /// say so.
    fn enter_head(&self, fork: &Fork, frozen: LayerId, above: LayerId, logical_bytes: u64) -> Batch {
        let record = fork.record_with_head(above);
        if let Some(known) = self.forks.read().get(&fork.id()) {
            *known.record.lock() = record.clone();
        }
        let mut records = Batch::default();
        records.put(record.encode());
        // As it begins: what the fork has written since then is in no batch yet,
        // and must not be counted by this one.
        self.enter_layer(above, frozen, fork.id(), logical_bytes);
        records.put(LayerRecord { id: above, parent: frozen, pages: 0, logical_bytes }.encode());
        if let Some(info) = self.core.layers.lock().get_mut(&frozen) {
            info.head_of = None;
        }
        records
    }

    /// Enters a fork's head above a layer, which keeps that one from going away;
    /// false if it has gone already.
    fn enter_layer(&self, id: LayerId, parent: LayerId, fork: ForkId, logical_bytes: u64) -> bool {
        let mut layers = self.core.layers.lock();
        let Some(info) = layers.get_mut(&parent) else { return false };
        info.children.insert(id);
        let record = LayerRecord { id, parent, pages: 0, logical_bytes };
        layers.insert(id, LayerInfo::new(record, Some(fork)));
        true
    }

    /// Takes a layer back that is not in the map.
    fn leave_layer(&self, id: LayerId) {
        let below = {
            let mut layers = self.core.layers.lock();
            let below = layers.remove(&id).map(|info| info.record.parent);
            if let Some(parent) = below.and_then(|below| layers.get_mut(&below)) {
                parent.children.remove(&id);
            }
            below
        };
        // What it stood on may have been removed meanwhile.
        if let Some(below) = below {
            self.queue_unreachable_from(below);
        }
    }

    /// Makes a frozen layer durable, together with `units` above it and what is in
    /// `extra`; then `enter` is called, before any layer is merged. If there is no
    /// space for that, the next commit of the fork makes up for it.
    pub(super) fn commit_frozen(
        &self,
        mut frozen: Frozen<'_>,
        units: &[&Unit],
        mut extra: Batch,
        enter: &dyn Fn(),
    ) -> Result<u64> {
        let fork = frozen.fork;
        extra.changes.append(&mut frozen.records.changes);
        let all: Vec<&Unit> = frozen.backlog.units.iter().chain(units.iter().copied()).collect();
        // A failure here is the fork's: it has acknowledged what may be lost now.
        let failed = |e: &Error| fork.poison_unless_full(e);
        fork.flush_units(&all[..frozen.backlog.units.len()]).inspect_err(failed)?;
        fork.stats.amounts.map_commits.fetch_add(1, Ordering::Relaxed);
        let still = self.core.moves.read();
        let bytes = self.core.commit_units(&all, extra).inspect_err(failed)?;
        enter();
        drop(still);
        if let Some(last) = frozen.backlog.units.last() {
            fork.committed.store(last.seq, Ordering::SeqCst);
        }
        frozen.backlog.units.clear();
        drop(frozen);
        self.look_for_pairs();
        Ok(bytes)
    }

    /// A fork that begins with `state` on the frozen layer `origin`, above which
    /// its layer has been entered.
    fn begin_child(&self, record: ForkRecord, origin: LayerId, state: State) -> Child {
        let head = Head::new(record.head, origin, state.clone(), state, 0);
        Child { fork: Fork::new(self.core.clone(), record.clone(), head), record, origin }
    }

    fn begin_on_snapshot(&self, mut record: ForkRecord, of: ForkId, label: &str) -> Result<Child> {
        let core = &self.core;
        let _still = core.moves.read();
        let kept = core.snapshot(of, label);
        record.head = LayerId(core.ids.next_layer()?);
        let logical_bytes =
            |layer| core.layers.lock().get(&layer).map_or(0, |info| info.record.logical_bytes);
        let entered = kept
            .filter(|kept| self.enter_layer(record.head, kept.layer, record.id, logical_bytes(kept.layer)));
        let Some(SnapshotRecord { layer, .. }) = entered else {
            return Err(match label {
                "" => Error::NoOrigin(record.name),
                label => {
                    let whose = self.forks.read().get(&of).map(|known| known.record.lock().name.clone());
                    Error::NoSuchSnapshot(whose.unwrap_or(record.name), label.to_string())
                }
            });
        };
        let near = self.loaded_fork(of).and_then(|fork| fork.below(layer));
        let state = match near {
            Some(state) => state,
            None => {
                let state = self.state_of(layer, &roots(&record));
                state.inspect_err(|_| self.leave_layer(record.head))?
            }
        };
        Ok(self.begin_child(record, layer, state))
    }

    /// What a frozen layer of a fork shows. The caller holds `moves`.
    pub(super) fn frozen_state(&self, fork: &Fork, layer: LayerId) -> Result<State> {
        match fork.below(layer) {
            Some(state) => Ok(state),
            None => self.state_of(layer, &roots(&fork.record.lock().clone())),
        }
    }

    /// Makes a child durable, and visible under its name; in the place of another
    /// fork if there is one to be replaced. Returns the bytes of the batch.
    fn finish_child(
        &self,
        child: &Child,
        frozen: Option<Frozen<'_>>,
        replaced: Option<Replaced>,
        edit: &mut Edit<'_>,
    ) -> Result<u64> {
        let finished = self.try_finish_child(child, frozen, replaced, edit);
        if finished.is_err() {
            // A frozen layer of its parent stays; the parent's next commit makes
            // it durable. The child never was.
            self.discard(child);
        }
        finished
    }

    fn try_finish_child(
        &self,
        child: &Child,
        frozen: Option<Frozen<'_>>,
        replaced: Option<Replaced>,
        edit: &mut Edit<'_>,
    ) -> Result<u64> {
        let fork = &child.fork;
        fork.leave_server_behind()?;
        edit(fork)?;
        let record = &fork.record.lock().clone();
        let unit = {
            let mut head = fork.head.lock();
            head.touched(FileId::ROOT);
            head.take_unit()
        };
        let known = |old: Replaced| self.forks.read().get(&old.id).cloned().ok_or(Error::Stale);
        let old = replaced.map(known).transpose()?;
        // Nobody loads the old one, or commits anything of it, from here on.
        let loaded = old.as_ref().map(|known| known.fork.lock());
        let commits = loaded.as_ref().and_then(|fork| fork.as_ref()).map(|fork| fork.commit.lock());
        let _still = self.core.moves.read();
        let below = match &frozen {
            Some(frozen) => frozen.layer,
            // It may have been merged since the child began on it.
            None => self.layer_parent(record.head).unwrap_or(child.origin),
        };
        let mut extra = Batch::default();
        extra.put(record.encode());
        // What it was made from, and its snapshots.
        let origin = (String::new(), SnapshotRecord { layer: below, created: record.created });
        let mut kept = vec![origin];
        let mut quota = fork.quota();
        if let Some(Replaced { id, keeps_origin }) = replaced {
            if !self.forks.read().contains_key(&id) {
                return Err(Error::Stale);
            }
            quota = old.as_ref().and_then(|known| self.core.delta(known.record.lock().delta).account.quota());
            fork.set_first_quota(quota);
            extra.delete(ForkRecord::key(id));
            extra.delete(QuotaRecord::key(id));
            let before = self.core.snapshots(id);
            for (label, _) in &before {
                extra.delete(SnapshotRecord::key(id, label));
            }
            if keeps_origin {
                kept.clear();
            }
            kept.extend(before.into_iter().filter(|(label, _)| keeps_origin || !label.is_empty()));
        }
        for (label, snapshot) in &kept {
            extra.put(snapshot.encode(record.id, label));
        }
        if let Some(bytes) = quota {
            extra.put(QuotaRecord::encode(record.id, bytes));
        }
        let enter = || {
            for (label, snapshot) in &kept {
                self.core.keep(record.id, label, snapshot.clone());
            }
        };
        fork.flush_units(&[&unit])?;
        fork.stats.amounts.map_commits.fetch_add(1, Ordering::Relaxed);
        let bytes = match frozen {
            Some(frozen) => self.commit_frozen(frozen, &[&unit], extra, &enter)?,
            None => self.core.commit_units(&[&unit], extra).inspect(|_| enter())?,
        };
        fork.committed.store(unit.seq, Ordering::SeqCst);
        self.add_known(record.clone(), Some(fork.clone()));
        if let Some(Replaced { id, .. }) = replaced {
            self.retire(id, loaded.as_ref().and_then(|fork| fork.as_ref()));
        }
        // Whoever is told may ask for the forks.
        drop(commits);
        drop(loaded);
        if let Some(Replaced { id, .. }) = replaced {
            self.tell(&record.name, id);
        }
        self.tell(&record.name, fork.id());
        Ok(bytes)
    }

    /// Takes a fork back that was never visible and is nowhere on the disk.
    fn discard(&self, child: &Child) {
        let slots = {
            let mut head = child.fork.head.lock();
            child.fork.removed.store(true, Ordering::SeqCst);
            head.take_uncommitted_slots()
        };
        self.core.release_after_readers(slots);
        self.leave_layer(child.record.head);
    }

    /// Gives a fork a new head layer over the one it has, so that this one can be
    /// merged. Nobody else stands on it: WAL goes on in the same host files.
    pub(super) fn freeze_head(&self, fork: &Arc<Fork>) -> Result<()> {
        if fork.fault().is_some() || fork.record.lock().is_incomplete() {
            return Ok(());
        }
        fork.write_back();
        let mut backlog = fork.commit.lock();
        let above = LayerId(self.core.ids.next_layer()?);
        if !backlog.units.is_empty() {
            // What was frozen before is not durable yet.
            return Ok(());
        }
        let (unit, own) = {
            let _gate = fork.gate.write();
            let mut head = fork.head_mut()?;
            fork.place_staged(&mut head, |_, staged| staged.is_settled())?;
            let unit = head.begin_above(above);
            let frozen = unit.layer.id;
            let recorded: Vec<FileId> = {
                let extents = self.core.extents.lock();
                extents.keys().filter(|(layer, _)| *layer == frozen).map(|(_, file)| *file).collect()
            };
            for file in recorded.iter().chain(unit.pending.files.keys()) {
                head.take_tops_over(*file, frozen)?;
            }
            (unit, head.take_unit())
        };
        let records = self.enter_head(fork, unit.layer.id, above, unit.state.logical_bytes);
        match fork.commit_units(&[&unit, &own], records) {
            Ok(_) => {
                drop(backlog);
                self.look_for_pairs();
                Ok(())
            }
            Err(e) if e.is_full() => {
                backlog.units.push(unit);
                fork.head.lock().take_back(own);
                Err(e)
            }
            Err(e) => {
                fork.poison(&e);
                Err(e)
            }
        }
    }
}

impl Fork {
    /// What that layer shows, if it is the one that the head stands on.
    fn below(&self, layer: LayerId) -> Option<State> {
        let head = self.head.lock();
        (head.parent == layer).then(|| head.below.clone())
    }
}

/// The directories of the base that a fork has in place.
fn roots(record: &ForkRecord) -> Vec<PathBuf> {
    match record.base.as_str() {
        "" => Vec::new(),
        base => base::roots(Path::new(base)),
    }
}

impl Head {
    /// Takes what is pending, and goes on in a new layer.
    fn begin_above(&mut self, layer: LayerId) -> Unit {
        let unit = self.take_unit();
        self.parent = unit.layer.id;
        self.layer = layer;
        self.below = unit.state.clone();
        self.pages = 0;
        self.hidden = 0;
        unit
    }

    /// The host files that `frozen` wrote to are the head's own.
    fn take_tops_over(&mut self, file: FileId, frozen: LayerId) -> Result<()> {
        let layer = self.layer;
        let Some(inode) = self.state.inodes.get(&file) else { return Ok(()) };
        let Body::InPlace(extents, _) = &inode.body else { return Ok(()) };
        if extents.tops_of(frozen).is_empty() {
            return Ok(());
        }
        if let Body::InPlace(extents, _) = &mut self.inode_mut(file)?.body {
            Arc::make_mut(extents).change_owner(layer);
        }
        self.changed(file);
        Ok(())
    }

    pub(super) fn layer_record(&self) -> LayerRecord {
        LayerRecord {
            id: self.layer,
            parent: self.parent,
            pages: self.pages,
            logical_bytes: self.state.logical_bytes,
        }
    }
}
