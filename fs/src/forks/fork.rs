//! One fork: its state, and what every operation on it begins with.
//!
//! Locks, in the order they are taken: `commit` (one commit at a time), `gate`
//! (in-place writes against a fork), `head` (the state; held for memory work
//! only, never while waiting for the disk).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::attr::{Attr, Kind};
use crate::block::{BlockNo, Page};
use crate::delta::Delta;
use crate::error::{Error, Result};
use crate::ids::{FileId, ForkId, LayerId};
use crate::layer::pending::{Pending, Unit};
use crate::layer::{Body, ColdFile, Inode, State, Table};
use crate::map::schema::{ForkRecord, Life, Time};
use crate::stats::{Amounts, Stats};

use super::core::Core;

/// One fork's file operations. All are safe to call from many threads.
///
/// Writes to one file must come one after the other, as the kernel sends them
/// (it holds the inode's lock): two at once that meet in one block would each
/// complete the block from what was there before.
pub struct Fork {
    pub(super) core: Arc<Core>,
    pub(super) id: ForkId,
    pub(super) name: Name,
    pub(super) record: Mutex<ForkRecord>,
    pub(super) head: Mutex<Head>,
    pub(super) commit: Mutex<Backlog>,
    /// Number of the last commit that is durable.
    pub(super) committed: AtomicU64,
    pub(super) gate: RwLock<()>,
    /// Writes to WAL segments since it was loaded.
    pub(super) wal_writes: AtomicU64,
    pub(super) removed: AtomicBool,
    /// Why nothing more is accepted.
    pub(super) fault: Mutex<Option<String>>,
    pub(super) faulty: AtomicBool,
    /// Whether it is its base that has changed.
    pub(super) base_changed: AtomicBool,
    pub(super) stats: Stats,
}

/// A fork's name, which may change while it is printed.
pub(super) struct Name(RwLock<String>);

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.read().fmt(f)
    }
}

/// Frozen layers whose commit found no space; the next commit begins with them.
#[derive(Default)]
pub(super) struct Backlog {
    pub(super) units: Vec<Unit>,
}

/// What a fork is now.
pub(super) struct Head {
    /// The layer that is written to.
    pub layer: LayerId,
    /// The layer below it when it began; 0 for none.
    pub parent: LayerId,
    pub state: State,
    /// The state as it was when the layer began.
    pub below: State,
    pub pending: Pending,
    /// Number of the next commit.
    pub seq: u64,
    /// Pages of this layer.
    pub pages: u64,
    /// Pages of layers below that this one has replaced or dropped, about: what
    /// merging would give back if nobody else has them.
    pub hidden: u64,
    /// Open handles of each file.
    pub open: HashMap<FileId, u32>,
    /// Files without a name that are still open. They belong to no layer that a
    /// fork or a restart would see.
    pub orphans: HashMap<FileId, Orphan>,
    /// The directories removed last. Nobody tells that a directory is open, and
    /// `fstat` of one that was removed must still answer.
    pub removed_dirs: VecDeque<Attr>,
    /// Blocks of which only a part has arrived.
    pub staged: BTreeMap<(FileId, BlockNo), Staged>,
}

pub(super) struct Orphan {
    pub inode: Inode,
    /// The layer in which it lost its last name: its pages are tagged with it.
    pub layer: LayerId,
}

/// How many removed directories are remembered.
pub(super) const REMOVED_DIRS: usize = 256;

/// A block whose other parts are on their way.
pub(super) struct Staged {
    pub page: Box<Page>,
    /// The bytes that have arrived: ranges in order, with gaps between them.
    pub arrived: Vec<(usize, usize)>,
    /// When the first of them came.
    pub since: Instant,
}

/// The parts of a write that the kernel has split follow each other at once.
/// What is still a part after this long was written as one.
pub(super) const SPLIT_MAX: Duration = Duration::from_secs(1);

impl Staged {
    /// Whether no other part is on its way.
    pub fn is_settled(&self) -> bool {
        self.since.elapsed() >= SPLIT_MAX
    }

    /// Takes in the bytes `start..end`; whether all have arrived.
    pub fn add(&mut self, start: usize, bytes: &[u8]) -> bool {
        let end = start + bytes.len();
        self.page[start..end].copy_from_slice(bytes);
        self.arrived.push((start, end));
        self.arrived.sort_unstable();
        self.arrived.dedup_by(|next, before| {
            let touch = next.0 <= before.1;
            if touch {
                before.1 = before.1.max(next.1);
            }
            touch
        });
        self.arrived == [(0, self.page.len())]
    }
}

impl Fork {
    pub(super) fn new(core: Arc<Core>, record: ForkRecord, head: Head) -> Arc<Fork> {
        Arc::new(Fork {
            core,
            id: record.id,
            name: Name(RwLock::new(record.name.clone())),
            record: Mutex::new(record),
            committed: AtomicU64::new(head.seq - 1),
            head: Mutex::new(head),
            commit: Mutex::default(),
            gate: RwLock::new(()),
            wal_writes: AtomicU64::new(0),
            removed: AtomicBool::new(false),
            fault: Mutex::new(None),
            faulty: AtomicBool::new(false),
            base_changed: AtomicBool::new(false),
            stats: Stats::default(),
        })
    }

    /// The fork's id.
    pub fn id(&self) -> ForkId {
        self.id
    }

    /// The fork's name.
    pub fn name(&self) -> String {
        self.name.0.read().clone()
    }

    /// How many writes to WAL segments there have been since this value was made:
    /// nothing is committed by the fork's server while it stays the same.
    pub fn wal_writes(&self) -> u64 {
        self.wal_writes.load(Ordering::SeqCst)
    }

    /// Whether it ends when the store is closed: a sync of it does nothing.
    pub fn is_ephemeral(&self) -> bool {
        self.record.lock().life == Life::Ephemeral
    }

    /// Makes a fork that is being made an ephemeral one, in [`super::Store::fork`]'s
    /// `edit`.
    pub fn set_ephemeral(&self) {
        self.record.lock().life = Life::Ephemeral;
    }

    /// Makes a fork that is being made an incomplete one, in [`super::Store::fork`]'s
    /// `edit`: until [`super::Store::publish`] it can be used by its maker alone, and is
    /// removed when the store is opened.
    pub fn set_incomplete(&self) {
        self.record.lock().life = Life::Incomplete;
    }

    /// What is counted of this fork, since it was loaded.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Counts something, for the fork and for all together.
    pub(crate) fn count(&self, what: impl Fn(&Amounts) -> &AtomicU64, n: u64) {
        for stats in [&self.stats, &self.core.stats] {
            what(&stats.amounts).fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Takes over what the map has of the fork now.
    pub(super) fn set_record(&self, record: ForkRecord) {
        self.name.0.write().clone_from(&record.name);
        *self.record.lock() = record;
    }

    /// The state, for an operation that only reads it.
    pub(super) fn head(&self) -> Result<MutexGuard<'_, Head>> {
        let head = self.head.lock();
        if self.removed.load(Ordering::Relaxed) {
            return Err(Error::Stale);
        }
        Ok(head)
    }

    /// The state, for an operation that changes it.
    pub(super) fn head_mut(&self) -> Result<MutexGuard<'_, Head>> {
        let head = self.head()?;
        self.check_fault()?;
        Ok(head)
    }

    pub(super) fn check_fault(&self) -> Result<()> {
        if self.faulty.load(Ordering::Relaxed) {
            let why = self.fault.lock().clone().unwrap_or_default();
            return Err(Error::Poisoned(self.name(), why));
        }
        Ok(())
    }

    /// Ends the fork's life: what it holds in memory may differ from what is
    /// durable, and nobody can tell any more which of the two is read.
    pub(super) fn poison(&self, e: &Error) {
        log::error!("fork {:?} stops: {e}", self.name);
        self.fault.lock().get_or_insert_with(|| {
            self.base_changed.store(matches!(e, Error::BaseChanged { .. }), Ordering::SeqCst);
            e.to_string()
        });
        self.faulty.store(true, Ordering::SeqCst);
    }

    /// Why the fork accepts nothing more, if so.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().clone()
    }

    /// Holds off commits, when the fork's record in memory is one that may be written
    /// to the map: a frozen layer that waits for its commit must be there before the
    /// record that names the layer above it.
    pub(super) fn settled(&self) -> Result<MutexGuard<'_, Backlog>> {
        self.sync_all()?;
        let backlog = self.commit.lock();
        if self.removed.load(Ordering::SeqCst) {
            return Err(Error::Stale);
        }
        match backlog.units.is_empty() {
            true => Ok(backlog),
            // Frozen since then, by one who found no room to make it durable.
            false => Err(Error::NoSpace),
        }
    }

    /// The delta file that the fork writes to.
    pub(super) fn delta(&self) -> Arc<Delta> {
        let id = self.record.lock().delta;
        self.core.delta(id)
    }

    /// Loads the page table of a file; without the lock, since it reads the block
    /// map.
    pub(super) fn warm(&self, cold: Arc<ColdFile>) -> Result<()> {
        self.core.drop_idle_tables();
        let _still = self.core.moves.read();
        if cold.table.get().is_none() {
            let table = self.core.load_table(&cold)?;
            table.used.mark(self.core.tables.now());
            // Somebody else may have been faster.
            let _ = cold.table.set(table);
        }
        Ok(())
    }

    /// The state once the page table of `file` is in memory.
    pub(super) fn head_with(&self, file: FileId, change: bool) -> Result<MutexGuard<'_, Head>> {
        loop {
            let head = if change { self.head_mut()? } else { self.head()? };
            let cold = match &head.inode(file)?.body {
                Body::Pages(pages) => match (pages.loaded(), &pages.table) {
                    (None, Table::Cold(cold)) => Some(cold.clone()),
                    (loaded, _) => {
                        loaded.inspect(|table| table.used.mark(self.core.tables.now()));
                        None
                    }
                },
                _ => None,
            };
            match cold {
                None => return Ok(head),
                Some(cold) => {
                    drop(head);
                    self.warm(cold)?;
                }
            }
        }
    }

    /// Attributes of a file.
    pub fn attr(&self, file: FileId) -> Result<Attr> {
        let head = self.head()?;
        match head.inode(file) {
            Ok(inode) => Ok(inode.attr(file)),
            Err(e) => head.removed_dirs.iter().find(|attr| attr.file == file).copied().ok_or(e),
        }
    }

    /// Counts an open handle: an unlinked file lives until its last `release`.
    pub fn open(&self, file: FileId) -> Result<()> {
        let mut head = self.head()?;
        head.inode(file)?;
        *head.open.entry(file).or_insert(0) += 1;
        Ok(())
    }

    /// Ends an open handle.
    pub fn release(&self, file: FileId) {
        let Ok(mut head) = self.head() else { return };
        let last = match head.open.get_mut(&file) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            Some(_) => head.open.remove(&file).is_some(),
            None => false,
        };
        if !last {
            return;
        }
        if let Some(orphan) = head.orphans.remove(&file) {
            let freed = orphan.owned_slots();
            self.core.release_after_readers(freed);
        }
        self.delta().space().end_run(file);
    }
}

impl Orphan {
    /// The slots that only this file holds now.
    pub(super) fn owned_slots(&self) -> Vec<crate::map::schema::Slot> {
        let mut slots = Vec::new();
        if let Body::Pages(pages) = &self.inode.body
            && let Some(table) = pages.loaded()
        {
            table.tree.visit(0, 1 << 32, self.layer, &mut |_, entry, owned| {
                if owned {
                    slots.push(entry.slot);
                }
                true
            });
        }
        slots
    }
}

impl Head {
    pub(super) fn new(layer: LayerId, parent: LayerId, state: State, below: State, pages: u64) -> Self {
        Head {
            layer,
            parent,
            state,
            below,
            pending: Pending::default(),
            seq: 1,
            pages,
            // Not known after a start: at most one for each page.
            hidden: pages,
            open: HashMap::new(),
            orphans: HashMap::new(),
            removed_dirs: VecDeque::new(),
            staged: BTreeMap::new(),
        }
    }

    /// Takes the slots that only what is pending refers to, once for each
    /// reference: the fork will make no commit any more.
    pub(super) fn take_uncommitted_slots(&mut self) -> Vec<crate::map::schema::Slot> {
        let mut slots: Vec<_> = self.pending.unused.drain(..).collect();
        for (slot, count) in self.pending.added.drain() {
            slots.extend(std::iter::repeat_n(slot, count as usize));
        }
        slots
    }

    /// A file, with or without a name.
    pub(super) fn inode(&self, file: FileId) -> Result<&Inode> {
        match self.state.inodes.get(&file) {
            Some(inode) => Ok(inode),
            None => self.orphans.get(&file).map(|o| &o.inode).ok_or(Error::NotFound),
        }
    }

    /// The same, to be changed; copies what a snapshot shares.
    pub(super) fn inode_mut(&mut self, file: FileId) -> Result<&mut Inode> {
        match self.state.inodes.get_mut(&file) {
            Some(inode) => Ok(Arc::make_mut(inode)),
            None => self.orphans.get_mut(&file).map(|o| &mut o.inode).ok_or(Error::NotFound),
        }
    }

    pub(super) fn is_orphan(&self, file: FileId) -> bool {
        self.orphans.contains_key(&file)
    }

    /// Notes a change of a file's attributes that must be durable for the file
    /// to be whole: size, place, owner, names.
    pub(super) fn changed(&mut self, file: FileId) {
        let seq = self.seq;
        if let Ok(inode) = self.inode_mut(file) {
            inode.meta_seq = seq;
        }
        self.touched(file);
    }

    /// Notes a change of time stamps only, or of blocks.
    pub(super) fn touched(&mut self, file: FileId) {
        if !self.is_orphan(file) {
            self.pending.file(file);
        }
    }

    pub(super) fn directory(&self, dir: FileId) -> Result<&Inode> {
        let inode = self.inode(dir)?;
        match inode.kind {
            Kind::Directory => Ok(inode),
            _ => Err(Error::NotDirectory),
        }
    }

    /// Sets a regular file's size, keeping the sum of all sizes.
    pub(super) fn set_size(&mut self, file: FileId, size: u64) -> Result<()> {
        let named = !self.is_orphan(file);
        let inode = self.inode_mut(file)?;
        let old = std::mem::replace(&mut inode.size, size);
        if named {
            self.state.logical_bytes = self.state.logical_bytes.wrapping_sub(old).wrapping_add(size);
        }
        if old != size {
            self.changed(file);
        }
        Ok(())
    }

    /// Sets modification and change time.
    pub(super) fn stamp(&mut self, file: FileId) -> Result<()> {
        let now = Time::now();
        let inode = self.inode_mut(file)?;
        inode.mtime = now;
        inode.ctime = now;
        self.touched(file);
        Ok(())
    }
}
