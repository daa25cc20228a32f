//! Layers: what a fork's files and names are, in memory.
//!
//! [`State`] is all of a fork at one instant: a handful of persistent maps. A
//! clone of it is a snapshot; a commit writes from one, and a fork *is* one.

pub mod load;
mod origin;
pub mod pending;
pub mod tree;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use imbl::{OrdMap, OrdSet};

use crate::attr::{Attr, Kind};
use crate::base::BaseFile;
use crate::block::BlockNo;
use crate::class::{Class, Role};
use crate::error::{Error, Result};
use crate::ids::{FileId, LayerId};
use crate::inplace::Extents;
use crate::map::schema::{InodeRecord, Time};
pub use origin::Origin;
use tree::{Entry, Removed, Tree};

/// A directory and a name in it.
pub type NameKey = (FileId, Arc<[u8]>);

/// A fork's files and names at one instant. Cloning it costs a few reference
/// counts, whatever it holds.
#[derive(Clone, Default)]
pub struct State {
    /// All files, by id.
    pub inodes: OrdMap<FileId, Arc<Inode>>,
    /// All names.
    pub names: OrdMap<NameKey, (FileId, Kind)>,
    /// Directories whose contents a fork leaves out.
    pub scratch_dirs: OrdSet<FileId>,
    /// Sum of the sizes of all regular files, in bytes. Modulo 2^64: sparse files
    /// come to that, and the sum must stay what it is for `check`.
    pub logical_bytes: u64,
}

impl State {
    /// A path of a file, for messages; `None` if it has no name.
    pub fn path_of(&self, file: FileId) -> Option<String> {
        let mut parts = Vec::new();
        let mut at = file;
        while at != FileId::ROOT {
            // Names are indexed by directory; a message may take the long way.
            let ((dir, name), _) = self.names.iter().find(|(_, (f, _))| *f == at)?;
            parts.push(String::from_utf8_lossy(name).into_owned());
            if parts.len() > 4096 {
                return None;
            }
            at = *dir;
        }
        parts.reverse();
        Some(parts.join("/"))
    }
}

/// One file.
#[derive(Clone)]
pub struct Inode {
    /// Its kind.
    pub kind: Kind,
    /// A directory's role.
    pub role: Role,
    /// A regular file's class.
    pub class: Class,
    /// Permission bits.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Device number.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Access time.
    pub atime: Time,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
    /// A directory's parent directory.
    pub parent: FileId,
    /// The commit that must have happened for size and places to be durable.
    pub meta_seq: u64,
    /// Its contents.
    pub body: Body,
}

/// The contents of a file.
#[derive(Clone)]
pub enum Body {
    /// None: directories, pipes, sockets, devices.
    Empty,
    /// A symbolic link's target.
    Link(Arc<[u8]>),
    /// Blocks out of place.
    Pages(Pages),
    /// Blocks in place.
    InPlace(Arc<Extents>, Option<Arc<BaseFile>>),
}

/// Blocks out of place.
#[derive(Clone)]
pub struct Pages {
    /// The page table, or how to load it.
    pub table: Table,
    /// The base file that shows through.
    pub base: Option<Arc<BaseFile>>,
}

/// A page table that may not be loaded.
#[derive(Clone)]
pub enum Table {
    /// In memory, this fork's own.
    Loaded(PageTable),
    /// Unchanged by this fork since the store was opened, or since the table was
    /// dropped: shared by all forks that inherit it, and loaded when one of them
    /// needs it.
    Cold(Arc<ColdFile>),
}

impl Pages {
    /// No blocks.
    pub fn empty() -> Self {
        Pages { table: Table::Loaded(PageTable::default()), base: None }
    }

    /// The page table if it is in memory.
    pub fn loaded(&self) -> Option<&PageTable> {
        match &self.table {
            Table::Loaded(table) => Some(table),
            Table::Cold(cold) => cold.table.get(),
        }
    }

    /// The page table, of which the caller has seen to it that it is in memory.
    pub fn in_memory(&self) -> Result<&PageTable> {
        self.loaded().ok_or_else(|| Error::Map("a page table is not loaded".into()))
    }
}

/// The page table of a file, and how much of its base shows.
#[derive(Clone, Debug, Default)]
pub struct PageTable {
    /// The changed blocks.
    pub tree: Tree,
    /// Blocks of the base below this one show through where the tree is empty.
    pub base_blocks: BlockNo,
    /// When it was used last.
    pub used: Used,
}

/// When something was used last, in ticks of a coarse clock.
#[derive(Debug, Default)]
pub struct Used(AtomicU32);

impl Used {
    /// It is used now. Many who use it at once write nothing: only the first one
    /// of each tick does.
    pub fn mark(&self, now: u32) {
        if self.0.load(Ordering::Relaxed) != now {
            self.0.store(now, Ordering::Relaxed);
        }
    }

    /// The tick.
    pub fn tick(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Clone for Used {
    fn clone(&self) -> Self {
        Used(AtomicU32::new(self.tick()))
    }
}

/// The most blocks of a base that are hidden by one hole in the middle of a
/// file, 128 GiB of them: each takes a place in the page table.
pub const HIDDEN_MAX: u32 = 1 << 24;

impl PageTable {
    /// Blocks of the base that clearing `start..end` would hide one by one.
    pub fn hides(&self, start: BlockNo, end: BlockNo) -> u32 {
        if end == u32::MAX { 0 } else { end.min(self.base_blocks).saturating_sub(start) }
    }

    /// Empties the blocks `start..end` (`u32::MAX`: to the end) on behalf of
    /// `layer`, the base's included; hands each page that was there to
    /// `removed`.
    pub fn clear(&mut self, start: BlockNo, end: BlockNo, layer: LayerId, removed: &mut dyn FnMut(Removed)) {
        if end == u32::MAX {
            self.tree.clear(start, 1 << 32, false, layer, removed);
            self.base_blocks = self.base_blocks.min(start);
            return;
        }
        self.tree.clear(start, u64::from(end), false, layer, removed);
        if start < self.base_blocks {
            self.tree.clear(start, u64::from(end.min(self.base_blocks)), true, layer, removed);
        }
    }

    /// What shows at `block`.
    pub fn get(&self, block: BlockNo) -> Place {
        match self.tree.get(block) {
            Some(entry) if entry.slot == crate::map::schema::Slot::HOLE => Place::Hole,
            Some(entry) => Place::Page(entry),
            None if block < self.base_blocks => Place::Base,
            None => Place::Hole,
        }
    }
}

/// Where a block's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a page of the delta store.
    Page(Entry),
    /// In the base file.
    Base,
    /// Nowhere: zeros.
    Hole,
}

/// How to load a page table: the file as the newest layer shows it that has a
/// record of it.
pub struct ColdFile {
    /// That layer.
    pub origin: Arc<Origin>,
    /// The file.
    pub file: FileId,
    /// Blocks of the base file.
    pub base_blocks: BlockNo,
    /// The table, once loaded. It stays for as long as this does: to drop it,
    /// those who have it take another, so nobody who looks at it needs a lock.
    pub table: OnceLock<PageTable>,
}

impl ColdFile {
    /// One that is not loaded.
    pub fn new(origin: Arc<Origin>, file: FileId, base_blocks: BlockNo) -> Self {
        ColdFile { origin, file, base_blocks, table: OnceLock::new() }
    }
}

impl Drop for ColdFile {
    fn drop(&mut self) {
        self.origin.clone().forget(self);
    }
}

impl Inode {
    /// As `stat` shows it.
    pub fn attr(&self, file: FileId) -> Attr {
        Attr {
            file,
            kind: self.kind,
            perm: self.perm,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            rdev: self.rdev,
            size: self.size,
            blocks: match self.kind {
                Kind::File => self.size.div_ceil(512),
                _ => 0,
            },
            atime: self.atime.to_system(),
            mtime: self.mtime.to_system(),
            ctime: self.ctime.to_system(),
        }
    }

    /// As stored.
    pub fn to_record(&self) -> InodeRecord {
        InodeRecord {
            kind: self.kind,
            role: self.role,
            class: self.class,
            perm: self.perm,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            rdev: self.rdev,
            size: self.size,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            parent: self.parent,
            target: match &self.body {
                Body::Link(target) => target.to_vec(),
                _ => Vec::new(),
            },
        }
    }

    /// From a stored record.
    pub fn from_record(rec: InodeRecord, body: Body) -> Self {
        Inode {
            kind: rec.kind,
            role: rec.role,
            class: rec.class,
            perm: rec.perm,
            uid: rec.uid,
            gid: rec.gid,
            nlink: rec.nlink,
            rdev: rec.rdev,
            size: rec.size,
            atime: rec.atime,
            mtime: rec.mtime,
            ctime: rec.ctime,
            parent: rec.parent,
            meta_seq: 0,
            body,
        }
    }
}

impl Time {
    /// The current time.
    pub fn now() -> Self {
        Time::from_system(SystemTime::now())
    }

    /// From the standard library's time.
    pub fn from_system(t: SystemTime) -> Self {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Time { secs: d.as_secs() as i64, nanos: d.subsec_nanos() },
            Err(before) => {
                let d = before.duration();
                let secs = 0i64.saturating_sub_unsigned(d.as_secs());
                match d.subsec_nanos() {
                    0 => Time { secs, nanos: 0 },
                    nanos => Time { secs: secs.saturating_sub(1), nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }

    /// As the standard library's time; the epoch if it is out of its range.
    pub fn to_system(self) -> SystemTime {
        let whole = Duration::from_secs(self.secs.unsigned_abs());
        let base = if self.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
        base.and_then(|t| t.checked_add(Duration::from_nanos(self.nanos.into()))).unwrap_or(UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_round_trip() {
        for (secs, nanos) in [(0, 0), (5, 7), (-1, 999_999_999), (-5, 0), (1 << 34, 1)] {
            let t = Time { secs, nanos };
            assert_eq!(Time::from_system(t.to_system()), t);
        }
    }
}
