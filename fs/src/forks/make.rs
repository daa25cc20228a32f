//! Making forks: empty, over a base, and from another fork.
//!
//! A fork of a fork is one instant of it: the parent's head layer freezes, and
//! both go on in new layers above it. While that happens the parent's writes
//! are held; it is a handful of reference counts. What was not durable then is
//! made durable before the call returns, together with the names of the new
//! layers, in one batch.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::attr::Kind;
use crate::base::{self, BaseFile, Found};
use crate::class::{Class, Role};
use crate::error::{Error, Result};
use crate::ids::{FileId, ForkId, LayerId, check_fork_name};
use crate::inplace::Extents;
use crate::layer::pending::Unit;
use crate::layer::{Body, Inode, PageTable, Pages, State, Table};
use crate::map::Batch;
use crate::map::schema::{ForkRecord, LayerRecord, QuotaRecord, Time};

use super::core::LayerInfo;
use super::fork::{Fork, Head};
use super::store::Store;

/// What one `fork` did.
#[derive(Clone, Copy, Debug)]
pub struct ForkReport {
    /// From the call to its return, the fork being durable.
    pub total: Duration,
    /// How long the parent's writes were held.
    pub stall: Duration,
    /// Bytes of the batch that the fork wrote to the block map.
    pub map_bytes: u64,
}

/// A name that nobody else can take while a fork is being made.
struct Reserved<'a> {
    store: &'a Store,
    name: String,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.store.reserved.lock().remove(&self.name);
    }
}

impl Store {
    fn reserve(&self, name: &str) -> Result<Reserved<'_>> {
        check_fork_name(name)?;
        let mut reserved = self.reserved.lock();
        if self.names.read().contains_key(name) || !reserved.insert(name.to_string()) {
            return Err(Error::ForkExists(name.to_string()));
        }
        Ok(Reserved { store: self, name: name.to_string() })
    }

    /// Makes an empty root fork, incomplete until [`Store::publish`]; its top
    /// directory belongs to `uid` and `gid`, with mode 0700.
    pub fn create(&self, name: &str, uid: u32, gid: u32, meta: &[u8]) -> Result<Arc<Fork>> {
        let _name = self.reserve(name)?;
        let layer = LayerId(self.core.ids.next_layer()?);
        let mut head = Head::new(layer, LayerId(0), State::default(), State::default(), 0);
        head.state.inodes.insert(FileId::ROOT, Arc::new(top_directory(uid, gid, 0o700)));
        head.changed(FileId::ROOT);
        self.add_root(name, meta, String::new(), head)
    }

    /// Makes a root fork over a PGDATA directory that is used in place and
    /// never written to; incomplete until [`Store::publish`].
    pub fn create_on_base(&self, name: &str, dir: &Path, meta: &[u8]) -> Result<Arc<Fork>> {
        let _name = self.reserve(name)?;
        let bad = |reason: &str| Error::BadBase { path: dir.to_path_buf(), reason: reason.into() };
        let dir = &dir.canonicalize().map_err(|e| bad(&e.to_string()))?;
        let path = dir.to_str().ok_or_else(|| bad("its path is not valid UTF-8"))?;
        let top = std::fs::metadata(dir).map_err(|e| bad(&e.to_string()))?;
        let found = base::scan(dir)?;
        let layer = LayerId(self.core.ids.next_layer()?);
        let mut bottom = Head::new(layer, LayerId(0), State::default(), State::default(), 0);
        use std::os::unix::fs::MetadataExt;
        let root = top_directory(top.uid(), top.gid(), (top.mode() & 0o7777) as u16);
        bottom.state.inodes.insert(FileId::ROOT, Arc::new(root));
        bottom.changed(FileId::ROOT);
        let mut extra = Batch::default();
        self.add_found(&mut bottom, FileId::ROOT, Role::Top, found, &mut extra)?;
        let unit = bottom.take_unit();
        self.core.commit_units(&[&unit], extra)?;
        let head_layer = LayerId(self.core.ids.next_layer()?);
        let mut info = LayerInfo::new(unit.layer, None);
        info.children.insert(head_layer);
        self.core.layers.lock().insert(layer, info);
        let mut head = Head::new(head_layer, layer, unit.state.clone(), unit.state, 0);
        head.touched(FileId::ROOT);
        let made = self.add_root(name, meta, path.to_string(), head);
        let fork = made.inspect_err(|_| {
            if let Some(info) = self.core.layers.lock().get_mut(&layer) {
                info.children.clear();
            }
            self.queue_unreachable_from(layer);
        })?;
        // A base that somebody has stopped uncleanly, or copied while it ran,
        // brings files along that belong to its server.
        fork.leave_server_behind()?;
        Ok(fork)
    }

    fn add_found(
        &self,
        head: &mut Head,
        dir: FileId,
        role: Role,
        found: Vec<Found>,
        extra: &mut Batch,
    ) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        for one in found {
            let file = FileId(self.core.ids.next_file()?);
            let class = Class::of_new(role, &one.name);
            let child_role = if one.kind == Kind::Directory { role.of_child(&one.name) } else { Role::Other };
            let body = match (one.kind, one.file) {
                (Kind::File, Some(record)) => {
                    extra.put(record.encode(head.layer, file));
                    let base = Arc::new(BaseFile::new(record));
                    if class.is_in_place() {
                        let extents = Extents::over_base(class, head.layer, base.blocks());
                        Body::InPlace(Arc::new(extents), Some(base))
                    } else {
                        let table = PageTable { tree: Default::default(), base_blocks: base.blocks() };
                        Body::Pages(Pages { table: Table::Loaded(table), base: Some(base) })
                    }
                }
                (Kind::Symlink, _) => Body::Link(one.target.into()),
                _ => Body::Empty,
            };
            let size = match one.kind {
                Kind::Directory => 0,
                _ => one.meta.size(),
            };
            let inode = Inode {
                kind: one.kind,
                role: child_role,
                class: if one.kind == Kind::File { class } else { Class::Plain },
                perm: (one.meta.mode() & 0o7777) as u16,
                uid: one.meta.uid(),
                gid: one.meta.gid(),
                nlink: if one.kind == Kind::Directory { 2 } else { 1 },
                rdev: 0,
                size,
                atime: Time { secs: one.meta.atime(), nanos: one.meta.atime_nsec() as u32 },
                mtime: Time { secs: one.meta.mtime(), nanos: one.meta.mtime_nsec() as u32 },
                ctime: Time { secs: one.meta.ctime(), nanos: one.meta.ctime_nsec() as u32 },
                parent: dir,
                meta_seq: 0,
                body,
            };
            if one.kind == Kind::File {
                head.state.logical_bytes += size;
            }
            if child_role == Role::Scratch {
                head.state.scratch_dirs.insert(file);
            }
            head.state.inodes.insert(file, Arc::new(inode));
            head.state.names.insert((dir, one.name.clone().into()), (file, one.kind));
            head.pending.file(file);
            head.pending.names.insert((dir, one.name.into()));
            if one.kind == Kind::Directory {
                head.inode_mut(dir)?.nlink += 1;
                self.add_found(head, file, child_role, one.entries, extra)?;
            }
        }
        Ok(())
    }

    fn add_root(&self, name: &str, meta: &[u8], base: String, mut head: Head) -> Result<Arc<Fork>> {
        let record = ForkRecord {
            id: ForkId(self.core.ids.next_fork()?),
            name: name.to_string(),
            parent: String::new(),
            head: head.layer,
            delta: self.core.ids.next_delta()?,
            created: Time::now(),
            incomplete: true,
            meta: meta.to_vec(),
            base,
        };
        let unit = head.take_unit();
        let mut extra = Batch::default();
        extra.put(record.encode());
        self.core.commit_units(&[&unit], extra)?;
        let info = LayerInfo::new(unit.layer, Some(record.id));
        self.core.layers.lock().insert(head.layer, info);
        let fork = Fork::new(self.core.clone(), record.clone(), head);
        self.add_known(record, Some(fork.clone()));
        self.tell(name, fork.id());
        Ok(fork)
    }

    /// Makes an incomplete fork durable, and complete.
    pub fn publish(&self, name: &str) -> Result<()> {
        let fork = self.by_name(name)?;
        fork.sync_all()?;
        self.change_record(&fork, |record| record.incomplete = false)
    }

    /// Replaces what the caller keeps with the fork.
    pub fn set_meta(&self, name: &str, meta: &[u8]) -> Result<()> {
        let fork = self.by_name(name)?;
        self.change_record(&fork, |record| record.meta = meta.to_vec())
    }

    fn change_record(&self, fork: &Arc<Fork>, change: impl FnOnce(&mut ForkRecord)) -> Result<()> {
        // A frozen layer that waits for its commit must reach the map before
        // the record that names the layer above it.
        fork.sync_all()?;
        let _commit = fork.commit.lock();
        let mut record = fork.record.lock();
        let mut new = record.clone();
        change(&mut new);
        let mut batch = Batch::default();
        batch.put(new.encode());
        self.core.map.commit(&batch)?;
        *record = new.clone();
        if let Some(known) = self.forks.read().get(&fork.id()) {
            *known.record.lock() = new;
        }
        Ok(())
    }

    /// Forks `parent` as `child`. `edit` changes the child before its name is
    /// visible; an error from it undoes the fork. When this returns, the fork
    /// is durable with everything that the parent had acknowledged.
    pub fn fork(
        &self,
        parent: &str,
        child: &str,
        meta: &[u8],
        edit: &mut dyn FnMut(&Fork) -> Result<()>,
    ) -> Result<ForkReport> {
        let start = Instant::now();
        let _name = self.reserve(child)?;
        let parent = self.by_name(parent)?;
        parent.check_fault()?;
        if parent.record.lock().incomplete {
            return Err(Error::NoSuchFork(parent.name().to_string()));
        }
        let ids = &self.core.ids;
        let (above, beside) = (LayerId(ids.next_layer()?), LayerId(ids.next_layer()?));
        let child_record = ForkRecord {
            id: ForkId(ids.next_fork()?),
            name: child.to_string(),
            parent: parent.name().to_string(),
            head: beside,
            delta: ids.next_delta()?,
            created: Time::now(),
            incomplete: false,
            meta: meta.to_vec(),
            base: parent.record.lock().base.clone(),
        };
        // Most of what is dirty is on the disk before anybody has to wait.
        parent.delta().write_out().inspect_err(|e| parent.poison_unless_full(e))?;
        parent.wait_for_parts();

        let mut backlog = parent.commit.lock();
        let held = Instant::now();
        let (unit, stall) = {
            let _gate = parent.gate.write();
            let mut head = parent.head_mut()?;
            // A block of which a part came since then is not in the child: the
            // write is still under way. It stays with the parent.
            parent.place_staged(&mut head, |_, staged| staged.is_settled())?;
            let unit = head.take_unit();
            head.parent = unit.layer.id;
            head.layer = above;
            head.below = unit.state.clone();
            head.pages = 0;
            head.hidden = 0;
            parent.delta().account.forget_in_place();
            (unit, held.elapsed())
        };
        let frozen = unit.layer.id;
        // As it begins: what the parent has written since then is in no batch
        // yet, and must not be counted by this one.
        let above_record =
            LayerRecord { id: above, parent: frozen, pages: 0, logical_bytes: unit.state.logical_bytes };
        let heads = [(above, parent.id()), (beside, child_record.id)];
        self.freeze(frozen, unit.state.logical_bytes, &heads);
        let head = Head::new(beside, frozen, unit.state.clone(), unit.state.clone(), 0);
        let fork = Fork::new(self.core.clone(), child_record.clone(), head);
        let parent_record = parent.record_with_head(above);
        if let Some(known) = self.forks.read().get(&parent.id()) {
            *known.record.lock() = parent_record.clone();
        }
        backlog.units.push(unit);

        let edited = fork.leave_server_behind().and_then(|()| edit(&fork));
        let made = edited.and_then(|()| {
            let child_unit = {
                let mut head = fork.head.lock();
                head.touched(FileId::ROOT);
                head.take_unit()
            };
            let mut extra = Batch::default();
            extra.put(parent_record.encode());
            extra.put(child_record.encode());
            extra.put(above_record.encode());
            if let Some(bytes) = fork.quota() {
                extra.put(QuotaRecord::encode(fork.id(), bytes));
            }
            let all: Vec<&Unit> = backlog.units.iter().chain([&child_unit]).collect();
            let (parents, own) = all.split_at(backlog.units.len());
            fork.flush_units(own)?;
            // A failure here is the parent's: it has acknowledged what may be
            // lost now.
            let failed = |e: &Error| parent.poison_unless_full(e);
            parent.flush_units(parents).inspect_err(failed)?;
            let map_bytes = self.core.commit_units(&all, extra).inspect_err(failed)?;
            fork.committed.store(child_unit.seq, Ordering::SeqCst);
            Ok(map_bytes)
        });
        match made {
            Ok(map_bytes) => {
                if let Some(last) = backlog.units.last() {
                    parent.committed.store(last.seq, Ordering::SeqCst);
                }
                backlog.units.clear();
                drop(backlog);
                self.look_for_pairs();
                self.add_known(child_record, Some(fork.clone()));
                self.tell(child, fork.id());
                Ok(ForkReport { total: start.elapsed(), stall, map_bytes })
            }
            Err(e) => {
                // The parent's layer stays frozen; its next commit makes it
                // durable. The child never was.
                drop(backlog);
                self.discard(&fork, beside);
                Err(e)
            }
        }
    }

    /// Gives a fork a new head layer over the one it has, so that this one can be
    /// merged. Nobody else stands on it: WAL goes on in the same host files.
    pub(super) fn freeze_head(&self, fork: &Arc<Fork>) -> Result<()> {
        if fork.fault().is_some() || fork.record.lock().incomplete {
            return Ok(());
        }
        let above = LayerId(self.core.ids.next_layer()?);
        fork.write_back();
        let mut backlog = fork.commit.lock();
        if !backlog.units.is_empty() {
            // What was frozen before is not durable yet.
            return Ok(());
        }
        let (unit, own) = {
            let _gate = fork.gate.write();
            let mut head = fork.head_mut()?;
            fork.place_staged(&mut head, |_, staged| staged.is_settled())?;
            let unit = head.take_unit();
            let frozen = unit.layer.id;
            head.parent = frozen;
            head.layer = above;
            head.below = unit.state.clone();
            head.pages = 0;
            head.hidden = 0;
            let recorded: Vec<FileId> = {
                let extents = self.core.extents.lock();
                extents.keys().filter(|(layer, _)| *layer == frozen).map(|(_, file)| *file).collect()
            };
            for file in recorded.iter().chain(unit.pending.files.keys()) {
                head.take_tops_over(*file, frozen)?;
            }
            (unit, head.take_unit())
        };
        self.freeze(unit.layer.id, unit.state.logical_bytes, &[(above, fork.id())]);
        let record = fork.record_with_head(above);
        if let Some(known) = self.forks.read().get(&fork.id()) {
            *known.record.lock() = record.clone();
        }
        let mut extra = Batch::default();
        extra.put(record.encode());
        match fork.commit_units(&[&unit, &own], extra) {
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

    /// Enters the layers above a frozen one into the tree of layers.
    fn freeze(&self, frozen: LayerId, logical_bytes: u64, heads: &[(LayerId, ForkId)]) {
        let mut layers = self.core.layers.lock();
        if let Some(info) = layers.get_mut(&frozen) {
            info.children.extend(heads.iter().map(|(layer, _)| *layer));
            info.head_of = None;
        }
        for &(id, fork) in heads {
            let record = LayerRecord { id, parent: frozen, pages: 0, logical_bytes };
            layers.insert(id, LayerInfo::new(record, Some(fork)));
        }
    }

    /// Takes a fork back that was never visible and is nowhere on the disk.
    fn discard(&self, fork: &Arc<Fork>, layer: LayerId) {
        let slots = {
            let mut head = fork.head.lock();
            fork.removed.store(true, Ordering::SeqCst);
            head.take_uncommitted_slots()
        };
        self.core.release_after_readers(slots);
        let mut layers = self.core.layers.lock();
        if let Some(info) = layers.remove(&layer)
            && let Some(parent) = layers.get_mut(&info.record.parent)
        {
            parent.children.remove(&layer);
        }
    }
}

impl Head {
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

fn top_directory(uid: u32, gid: u32, perm: u16) -> Inode {
    let now = Time::now();
    Inode {
        kind: Kind::Directory,
        role: Role::Top,
        class: Class::Plain,
        perm,
        uid,
        gid,
        nlink: 2,
        rdev: 0,
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        parent: FileId::ROOT,
        meta_seq: 0,
        body: Body::Empty,
    }
}
