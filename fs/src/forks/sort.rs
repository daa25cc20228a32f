//! Sorting: pages that lie scattered are written anew, next to each other.
//!
//! Out of place, a file that is updated at random for a year lies at random, and
//! a sequential scan of it reads one slot at a time. While the store is idle, the
//! stretches of files that are in many pieces are written again, through the
//! fork's head like any other write, but with the same bytes and no new times.
//! Only pages that no other fork and no snapshot can see: of a shared page this
//! would make a second one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::block::{BLOCK_BYTES, BLOCK_SIZE, BlockNo, Page};
use crate::error::Result;
use crate::ids::{FileId, ForkId, LayerId};
use crate::layer::tree::Entry;
use crate::layer::{Body, PageTable, Place};
use crate::map::schema::{BlockRecord, Life, Slot, Time};

use super::fork::Fork;
use super::store::Store;
use super::write::Ready;

/// Blocks that are judged and sorted together: 1 MiB, the host's longest read
/// ahead.
const WINDOW: u32 = 128;
/// A window is sorted if its pieces are shorter than this on average.
const PIECE_MIN: u32 = 8;
/// A file that was written to within this time is left alone: it will be written
/// to again.
const SETTLED: Duration = Duration::from_secs(60);
/// What one round looks at, and what it moves, in blocks.
const LOOK_BLOCKS: u32 = 1 << 16;
const MOVE_BLOCKS: u32 = 512;
/// At least this much room is left for others, in bytes.
const ROOM_MIN: u64 = 256 << 20;
/// Pages that one look at a fork's layout counts.
const LAYOUT_PAGES_MAX: u64 = 4 << 20;

/// How a fork's pages lie on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Pages of its files.
    pub pages: u64,
    /// Pieces that they lie in: pages that follow each other in the file and on
    /// the host.
    pub pieces: u64,
}

/// Where the sorting goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    fork: Option<ForkId>,
    file: Option<FileId>,
    block: BlockNo,
}

impl Layout {
    fn add(&mut self, table: &PageTable) {
        let mut next = None;
        table.tree.visit(0, 1 << 32, LayerId(0), &mut |block, entry, _| {
            self.pages += 1;
            self.pieces += u64::from(next != Some((block, entry.slot.0)));
            next = Some((block + 1, entry.slot.0 + 1));
            self.pages < LAYOUT_PAGES_MAX
        });
    }
}

impl Store {
    /// How the pages of a fork lie, of the first 32 GiB of them.
    pub fn layout(&self, name: &str) -> Result<Layout> {
        let fork = self.by_name(name)?;
        let state = fork.head()?.state.clone();
        let mut layout = Layout::default();
        for inode in state.inodes.values() {
            let Body::Pages(pages) = &inode.body else { continue };
            match &pages.table {
                crate::layer::Table::Loaded(table) => layout.add(table),
                crate::layer::Table::Cold(cold) => match cold.table.get() {
                    Some(table) => layout.add(table),
                    // Only to be looked at: it is not kept.
                    None => {
                        let _still = self.core.moves.read();
                        layout.add(&self.core.load_table(cold)?);
                    }
                },
            }
            if layout.pages >= LAYOUT_PAGES_MAX {
                break;
            }
        }
        Ok(layout)
    }

    /// Sorts what is scattered worst in all forks that are in memory, whoever
    /// wrote it when. Returns the pages moved.
    pub fn sort_all(&self) -> Result<u64> {
        let mut moved = 0;
        for fork in self.loaded() {
            let mut cursor = Cursor { fork: Some(fork.id()), ..Cursor::default() };
            while cursor.fork == Some(fork.id()) {
                moved += self.sort_some(&fork, &mut cursor, Duration::ZERO)?;
            }
        }
        Ok(moved)
    }

    /// One round in the background, while nothing else goes on.
    pub(super) fn sort_in_background(&self, cursor: &mut Cursor) {
        let mut forks = self.loaded();
        forks.sort_by_key(|fork| fork.id());
        let at = cursor.fork;
        let Some(fork) = forks.iter().find(|fork| at.is_none_or(|id| fork.id() >= id)) else {
            *cursor = Cursor::default();
            return;
        };
        if at != Some(fork.id()) {
            *cursor = Cursor { fork: Some(fork.id()), ..Cursor::default() };
        }
        if let Err(e) = self.sort_some(fork, cursor, SETTLED) {
            log::debug!("fork {:?} is not sorted: {e}", fork.name());
            self.skip_fork(cursor);
        }
    }

    fn skip_fork(&self, cursor: &mut Cursor) {
        *cursor = Cursor { fork: cursor.fork.map(|id| ForkId(id.0 + 1)), ..Cursor::default() };
    }

    /// Looks at the next files of a fork, and moves some pages.
    fn sort_some(&self, fork: &Fork, cursor: &mut Cursor, settled: Duration) -> Result<u64> {
        let full = fork.delta().left_bytes()? < ROOM_MIN;
        if full || fork.fault().is_some() || fork.record.lock().life != Life::Lasting {
            self.skip_fork(cursor);
            return Ok(0);
        }
        let now = Time::now().secs;
        let state = fork.head()?.state.clone();
        let own = self.layers_of_one(fork.head()?.layer);
        let (mut looked, mut moved) = (0, 0);
        for (&file, inode) in state.inodes.range(cursor.file.unwrap_or(FileId(0))..) {
            if cursor.file != Some(file) {
                (cursor.file, cursor.block) = (Some(file), 0);
            }
            let Body::Pages(pages) = &inode.body else { continue };
            // One that nobody has read since the start is read by nobody.
            let Some(table) = pages.loaded() else { continue };
            if now.saturating_sub(inode.mtime.secs) < settled.as_secs() as i64 {
                continue;
            }
            let blocks = u32::try_from(inode.size.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX);
            while cursor.block < blocks {
                if looked >= LOOK_BLOCKS || moved >= MOVE_BLOCKS {
                    fork.end_sort(moved)?;
                    return Ok(moved.into());
                }
                let start = cursor.block;
                let end = start.saturating_add(WINDOW).min(blocks);
                looked += end - start;
                if self.is_scattered(&entries_in(table, start, end)) {
                    moved += self.sort_window(fork, &own, file, table, start, end)?;
                }
                cursor.block = end;
            }
        }
        self.skip_fork(cursor);
        fork.end_sort(moved)?;
        Ok(moved.into())
    }

    /// The layers that only this head shows, itself first.
    fn layers_of_one(&self, head: LayerId) -> Vec<LayerId> {
        let layers = self.core.layers.lock();
        let mut own = vec![head];
        let mut at = layers.get(&head).map(|info| info.record.parent);
        while let Some((id, info)) = at.and_then(|id| Some((id, layers.get(&id)?)))
            && info.children.len() == 1
            && info.names == 0
        {
            own.push(id);
            at = Some(info.record.parent);
        }
        own
    }

    /// Whether the pages of a window are worth being moved together.
    fn is_scattered(&self, entries: &[(BlockNo, Entry)]) -> bool {
        let breaks = entries.windows(2).filter(|pair| {
            let [(a, from), (b, to)] = pair else { return false };
            to.slot.0 != from.slot.0 + u64::from(b - a)
        });
        let pages = entries.len() as u32;
        pages >= self.core.options.sort_pages_min && (breaks.count() as u32 + 1) * PIECE_MIN > pages
    }

    fn sort_window(
        &self,
        fork: &Fork,
        own: &[LayerId],
        file: FileId,
        table: &PageTable,
        start: BlockNo,
        end: BlockNo,
    ) -> Result<u32> {
        let mut mine = Vec::new();
        {
            let _still = self.core.moves.read();
            for (block, entry) in entries_in(table, start, end) {
                for &layer in own {
                    let key = BlockRecord::key(layer, file, block);
                    let Some(value) = self.core.map.get(&key)? else { continue };
                    if BlockRecord::decode(&key, &value)?.2.slot == entry.slot {
                        mine.push((block, entry));
                    }
                    break;
                }
            }
        }
        if !self.is_scattered(&mine) || shared_slots(fork, &mine) {
            return Ok(0);
        }
        fork.move_pages(file, &mine)
    }
}

/// Whether one of the pages is also part of another file: a copy shares its
/// pages.
fn shared_slots(fork: &Fork, entries: &[(BlockNo, Entry)]) -> bool {
    entries.iter().any(|(_, entry)| {
        let delta = fork.core.delta(entry.slot.delta());
        let references = delta.space().references(entry.slot.index());
        references > 1
    })
}

fn entries_in(table: &PageTable, start: BlockNo, end: BlockNo) -> Vec<(BlockNo, Entry)> {
    let page = |block| match table.get(block) {
        Place::Page(entry) => Some((block, entry)),
        Place::Base | Place::Hole => None,
    };
    (start..end).filter_map(page).collect()
}

impl Fork {
    /// Writes pages anew, one after the other, unless they have changed since.
    fn move_pages(&self, file: FileId, entries: &[(BlockNo, Entry)]) -> Result<u32> {
        let mut pages: Vec<(Ready, Entry)> = Vec::with_capacity(entries.len());
        for &(block, entry) in entries {
            let mut page: Box<Page> = Box::new([0; BLOCK_SIZE]);
            let _period = self.core.grace.enter();
            let now = match &self.head_with(file, false)?.inode(file)?.body {
                Body::Pages(pages) => pages.loaded().map(|table| table.get(block)),
                _ => None,
            };
            // One that has changed, or is damaged, stays where it is.
            if now == Some(Place::Page(entry))
                && self.fetch_slots(entry.slot, &[entry.crc], &mut page[..])?.is_none()
            {
                pages.push((Ready::new(block, Arc::from(page)), entry));
            }
        }
        let delta = self.delta();
        let mut head = self.head_with(file, true)?;
        if head.is_orphan(file) {
            return Ok(0);
        }
        let staged: HashSet<BlockNo> =
            head.staged.range((file, 0)..=(file, BlockNo::MAX)).map(|((_, block), _)| *block).collect();
        self.own_table(&mut head, file)?;
        let mut still = Vec::with_capacity(pages.len());
        for (one, entry) in &pages {
            let same = self.table(&head, file)?.get(one.block) == Place::Page(*entry);
            if same && !staged.contains(&one.block) {
                still.push(one);
            }
        }
        if still.is_empty() {
            return Ok(0);
        }
        let first = match delta.take_run(still.len() as u32) {
            Ok(slot) => slot,
            // It was only to be better than before.
            Err(e) if e.is_full() => return Ok(0),
            Err(e) => return Err(e),
        };
        for (one, slot) in still.iter().zip(first.0..) {
            self.enter(&mut head, file, &delta, Slot(slot), true, one)?;
        }
        Ok(still.len() as u32)
    }

    /// Makes what was sorted durable, so that the old pages are free.
    fn end_sort(&self, moved: u32) -> Result<()> {
        if moved > 0 {
            self.sync_all()?;
        }
        Ok(())
    }
}
