//! How forks and snapshots differ, and what a fork has for itself: from page tables
//! alone, without reading a page.
//!
//! Page tables share what they have in common (`layer/tree.rs`), so the cost follows the
//! difference. A page may be in another place and have the same contents, for sorting
//! moves pages, and PostgreSQL writes pages without changing them; the CRC tells.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLockReadGuard;

use crate::block::{BLOCK_SIZE, BlockNo, blocks_for};
use crate::error::{Error, Result};
use crate::ids::{FileId, LayerId};
use crate::layer::{Body, Inode, PageTable, Pages, Place, State, Table};

use super::fork::Fork;
use super::store::Store;

/// A fork as it is now, or one of its snapshots.
#[derive(Clone, Debug)]
pub struct Side {
    /// The fork.
    pub fork: String,
    /// The snapshot's label.
    pub label: Option<String>,
}

/// By how many pages a file differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageChanges {
    /// Only on the second side, beyond the end on the first.
    pub added: u64,
    /// Only on the first side, beyond the end on the second.
    pub removed: u64,
    /// On both, with other contents.
    pub changed: u64,
    /// On both, in other places, with the same contents.
    pub rewritten: u64,
}

impl PageChanges {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == PageChanges::default()
    }
}

/// A file that differs. Only one of the two sides may have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// Its path.
    pub path: String,
    /// Its size on the first side.
    pub before: Option<u64>,
    /// Its size on the second side.
    pub after: Option<u64>,
    /// Its pages.
    pub pages: PageChanges,
}

/// What a file of a fork takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUsage {
    /// Its path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Pages that lie in layers of this fork alone.
    pub exclusive_pages: u64,
    /// Pages that lie in layers which others are built on, too.
    pub shared_pages: u64,
    /// Blocks that its base shows.
    pub base_pages: u64,
}

/// All files of a state that have pages, by path.
type Files<'a> = BTreeMap<String, (FileId, &'a Arc<Inode>, &'a Pages)>;

/// What a side shows; it stays so for as long as this lives.
struct Seen<'a> {
    state: State,
    fork: Arc<Fork>,
    _still: RwLockReadGuard<'a, ()>,
}

impl Store {
    /// The files that differ between two sides, by path. What lies in place (WAL,
    /// scratch) is left out.
    pub fn diff(&self, a: &Side, b: &Side) -> Result<Vec<FileChange>> {
        let (seen_a, seen_b) = (self.see(a)?, self.see(b)?);
        let mut differ = Vec::new();
        let (files_a, files_b) = (files(&seen_a.state), files(&seen_b.state));
        let all = files_a.keys().chain(files_b.keys().filter(|path| !files_a.contains_key(*path)));
        for path in all {
            let (file_a, file_b) = (files_a.get(path), files_b.get(path));
            let size = |file: Option<&(FileId, &Arc<Inode>, &Pages)>| file.map(|(_, inode, _)| inode.size);
            let (before, after) = (size(file_a), size(file_b));
            let blocks = |size: Option<u64>| size.map_or(0, |size| u64::from(blocks_for(size)));
            let (blocks_a, blocks_b) = (blocks(before), blocks(after));
            let mut pages = PageChanges {
                added: blocks_b.saturating_sub(blocks_a),
                removed: blocks_a.saturating_sub(blocks_b),
                ..PageChanges::default()
            };
            if let (Some((_, inode_a, pages_a)), Some((_, inode_b, pages_b))) = (file_a, file_b)
                && !Arc::ptr_eq(inode_a, inode_b)
                && !same_when_loaded(pages_a, pages_b)
            {
                let (table_a, table_b) = (seen_a.table(pages_a)?, seen_b.table(pages_b)?);
                compare((&table_a, pages_a), (&table_b, pages_b), blocks_a.min(blocks_b), &mut |_, a, b| {
                    match has_same_contents(a, b) {
                        true => pages.rewritten += 1,
                        false => pages.changed += 1,
                    }
                });
            }
            if !pages.is_empty() || before != after {
                differ.push(FileChange { path: path.clone(), before, after, pages });
            }
        }
        drop((files_a, files_b));
        differ.sort_by(|a, b| a.path.cmp(&b.path));
        self.is_still_there(a, &seen_a)?;
        self.is_still_there(b, &seen_b)?;
        Ok(differ)
    }

    /// What each file of a fork takes, by path; files in place are left out.
    pub fn usage(&self, name: &str) -> Result<Vec<FileUsage>> {
        let side = Side { fork: name.to_string(), label: None };
        let seen = self.see(&side)?;
        let below = self.shared_state(&seen.fork)?;
        let mut usage = Vec::new();
        for (path, (id, inode, pages)) in files(&seen.state) {
            let end = blocks_for(inode.size);
            let table = seen.table(pages)?;
            let mut held = 0u64;
            table.tree.visit(0, u64::from(end), LayerId(0), &mut |_, entry, _| {
                held += u64::from(entry.slot != crate::map::schema::Slot::HOLE);
                true
            });
            let base_pages = (0..end.min(table.base_blocks)).filter(|&b| table.get(b) == Place::Base).count();
            let shared = below.inodes.get(&id).and_then(|inode| match &inode.body {
                Body::Pages(pages) => Some((inode, pages)),
                _ => None,
            });
            let mut exclusive = held;
            if let Some((below_inode, below_pages)) = shared {
                exclusive = 0;
                if !Arc::ptr_eq(inode, below_inode) && !same_when_loaded(pages, below_pages) {
                    let below_table = seen.table(below_pages)?;
                    let both = ((&table, pages), (&below_table, below_pages));
                    compare(both.0, both.1, u64::from(end), &mut |_, own, _| {
                        exclusive += u64::from(matches!(own, Place::Page(_)));
                    });
                }
            }
            usage.push(FileUsage {
                path,
                bytes: inode.size,
                exclusive_pages: exclusive,
                shared_pages: held.saturating_sub(exclusive),
                base_pages: base_pages as u64,
            });
        }
        self.is_still_there(&side, &seen)?;
        Ok(usage)
    }

    /// A side as it is at this moment.
    fn see(&self, side: &Side) -> Result<Seen<'_>> {
        let still = self.core.moves.read();
        let fork = self.by_name(&side.fork)?;
        let state = match &side.label {
            None => fork.head()?.state.clone(),
            Some(label) => {
                let none = || Error::NoSuchSnapshot(side.fork.clone(), label.clone());
                let kept = self.core.snapshot(fork.id(), label).filter(|_| !label.is_empty());
                self.frozen_state(&fork, kept.ok_or_else(none)?.layer)?
            }
        };
        Ok(Seen { state, fork, _still: still })
    }

    /// What was removed, or put back, while it was looked at, may have lost records.
    fn is_still_there(&self, side: &Side, seen: &Seen<'_>) -> Result<()> {
        drop(seen.fork.head().map_err(|_| Error::NoSuchFork(side.fork.clone()))?);
        match &side.label {
            Some(label) if self.core.snapshot(seen.fork.id(), label).is_none() => {
                Err(Error::NoSuchSnapshot(side.fork.clone(), label.clone()))
            }
            _ => Ok(()),
        }
    }

    /// What the nearest layer shows that others than this fork are built on, too.
    fn shared_state(&self, fork: &Fork) -> Result<State> {
        let layers = self.core.layers.lock();
        let head = fork.record.lock().head;
        let mut at = layers.get(&head).map_or(LayerId(0), |info| info.record.parent);
        while let Some(info) = layers.get(&at).filter(|info| info.children.len() == 1) {
            at = info.record.parent;
        }
        drop(layers);
        self.frozen_state(fork, at)
    }
}

impl Seen<'_> {
    /// A page table of the state, loaded if need be.
    fn table(&self, pages: &Pages) -> Result<PageTable> {
        if let (None, Table::Cold(cold)) = (pages.loaded(), &pages.table) {
            self.fork.warm(cold.clone())?;
        }
        pages.in_memory().cloned()
    }
}

/// The files of a state that have pages out of place, by path.
fn files(state: &State) -> Files<'_> {
    let mut found = Files::new();
    let mut dirs = vec![(FileId::ROOT, String::new())];
    while let Some((dir, path)) = dirs.pop() {
        let entries = state.names.range((dir, Arc::from(&b""[..]))..(FileId(dir.0 + 1), Arc::from(&b""[..])));
        for ((_, name), &(file, _)) in entries {
            let path = match path.as_str() {
                "" => String::from_utf8_lossy(name).into_owned(),
                path => format!("{path}/{}", String::from_utf8_lossy(name)),
            };
            match state.inodes.get(&file) {
                Some(inode) if inode.kind == crate::attr::Kind::Directory => dirs.push((file, path)),
                Some(inode) => {
                    if let Body::Pages(pages) = &inode.body {
                        found.insert(path, (file, inode, pages));
                    }
                }
                None => {}
            }
        }
    }
    found
}

/// Whether two page tables are the same without a look at either.
fn same_when_loaded(a: &Pages, b: &Pages) -> bool {
    match (&a.table, &b.table) {
        (Table::Cold(a), Table::Cold(b)) => {
            Arc::ptr_eq(a, b) || (a.file == b.file && Arc::ptr_eq(&a.origin.root(), &b.origin.root()))
        }
        _ => false,
    }
}

/// Visits the blocks below `end` that are in different places.
fn compare(
    (a, a_pages): (&PageTable, &Pages),
    (b, b_pages): (&PageTable, &Pages),
    end: u64,
    visit: &mut dyn FnMut(BlockNo, Place, Place),
) {
    let one_base = match (&a_pages.base, &b_pages.base) {
        (None, None) => true,
        (Some(a), Some(b)) => a.path() == b.path(),
        _ => false,
    };
    let mut see = |block: BlockNo| {
        let (a, b) = (a.get(block), b.get(block));
        let same = match (a, b) {
            (Place::Page(a), Place::Page(b)) => a.slot == b.slot,
            (Place::Base, Place::Base) => one_base,
            (a, b) => a == b,
        };
        if !same {
            visit(block, a, b);
        }
    };
    if one_base && a.base_blocks == b.base_blocks {
        a.tree.diff(&b.tree, end, &mut |block, _, _| see(block));
    } else {
        // Where both trees have nothing, one of them shows its base and the other not.
        (0..end).for_each(|block| see(block as BlockNo));
    }
}

/// Whether two pages have the same contents, by their CRC. What is in a base has none.
fn has_same_contents(a: Place, b: Place) -> bool {
    let crc = |place| match place {
        Place::Page(entry) => Some(entry.crc),
        Place::Hole => Some(crc32fast::hash(&[0; BLOCK_SIZE])),
        Place::Base => None,
    };
    crc(a).is_some() && crc(a) == crc(b)
}
