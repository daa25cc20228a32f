//! Making root forks: empty, and over a base.

use std::sync::Arc;

use crate::attr::Kind;
use crate::base::{BaseFile, Found, Scanned};
use crate::class::{Class, Role};
use crate::error::{Error, Result};
use crate::ids::{FileId, ForkId, LayerId, check_fork_name};
use crate::inplace::Extents;
use crate::layer::{Body, Inode, PageTable, Pages, State, Table};
use crate::map::Batch;
use crate::map::schema::{ForkRecord, Life, Time};

use super::core::LayerInfo;
use super::fork::{Fork, Head};
use super::store::Store;

/// A name that nobody else can take while a fork is being made.
pub(super) struct Reserved<'a> {
    store: &'a Store,
    name: String,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.store.reserved.lock().remove(&self.name);
    }
}

impl Store {
    pub(super) fn reserve(&self, name: &str) -> Result<Reserved<'_>> {
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

    /// Makes a root fork over a PGDATA directory that is used in place, as it
    /// was found, and never written to; incomplete until [`Store::publish`].
    pub fn create_on_base(&self, name: &str, base: Scanned, meta: &[u8]) -> Result<Arc<Fork>> {
        let _name = self.reserve(name)?;
        let bad = |reason: &str| Error::BadBase { path: base.dir.clone(), reason: reason.into() };
        let path = base.dir.to_str().ok_or_else(|| bad("its path is not valid UTF-8"))?;
        let top = &base.top;
        let layer = LayerId(self.core.ids.next_layer()?);
        let mut bottom = Head::new(layer, LayerId(0), State::default(), State::default(), 0);
        use std::os::unix::fs::MetadataExt;
        let root = top_directory(top.uid(), top.gid(), (top.mode() & 0o7777) as u16);
        bottom.state.inodes.insert(FileId::ROOT, Arc::new(root));
        bottom.changed(FileId::ROOT);
        let mut extra = Batch::default();
        self.add_found(&mut bottom, FileId::ROOT, Role::Top, base.entries, &mut extra)?;
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
                        let table = PageTable { base_blocks: base.blocks(), ..PageTable::default() };
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
                head.state.logical_bytes = head.state.logical_bytes.wrapping_add(size);
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
            life: Life::Incomplete,
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

    /// Makes an incomplete fork durable, and complete. What it is now is what it was
    /// made from: nobody ever sees what it was before.
    pub fn publish(&self, name: &str) -> Result<()> {
        self.publish_for(name, Life::Lasting)
    }

    /// The same for one that ends with the store's closing.
    pub fn publish_ephemeral(&self, name: &str) -> Result<()> {
        self.publish_for(name, Life::Ephemeral)
    }

    fn publish_for(&self, name: &str, life: Life) -> Result<()> {
        let _one = self.changes.lock();
        let fork = self.by_name(name)?;
        if !fork.record.lock().parent.is_empty() {
            self.begin_here(&fork)?;
        }
        fork.sync_all()?;
        self.change_record(&fork, |record| record.life = life)
    }

    /// Replaces what the caller keeps with the fork.
    pub fn set_meta(&self, name: &str, meta: &[u8]) -> Result<()> {
        let fork = self.by_name(name)?;
        self.change_record(&fork, |record| record.meta = meta.to_vec())
    }

    fn change_record(&self, fork: &Arc<Fork>, change: impl FnOnce(&mut ForkRecord)) -> Result<()> {
        self.change_record_with(fork, Batch::default(), change)
    }

    /// The same together with what is in `batch`.
    pub(super) fn change_record_with(
        &self,
        fork: &Arc<Fork>,
        mut batch: Batch,
        change: impl FnOnce(&mut ForkRecord),
    ) -> Result<()> {
        let _commit = fork.settled()?;
        let mut record = fork.record.lock();
        let mut new = record.clone();
        change(&mut new);
        batch.put(new.encode());
        self.core.map.commit(&batch)?;
        *record = new.clone();
        if let Some(known) = self.forks.read().get(&fork.id()) {
            *known.record.lock() = new;
        }
        Ok(())
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
