//! `copy_file_range` and `lseek`: questions to the page table, not to the data.

use crate::attr::Seek;
use crate::block::{BLOCK_BYTES, BlockNo, MAX_FILE_BYTES, blocks_for};
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::layer::{Body, PageTable, Place};

use super::fork::{Fork, Head};

/// Bytes that one call copies where pages cannot be shared.
const COPY_BYTES: u64 = 1 << 20;
/// Blocks that one call shares: 64 MiB, some milliseconds of memory work.
const SHARE_BLOCKS: u64 = 8192;

impl Fork {
    /// `copy_file_range(2)` within the fork; returns the number of bytes
    /// copied, 0 at the end of the source. Whole blocks are shared, not copied.
    pub fn copy_range(
        &self,
        from: FileId,
        from_offset: u64,
        to: FileId,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        let size = self.head_with(from, false)?.inode(from)?.size;
        let len = len.min(size.saturating_sub(from_offset));
        if len == 0 {
            return Ok(0);
        }
        let end = to_offset.checked_add(len).filter(|&e| e <= MAX_FILE_BYTES).ok_or(Error::TooLarge)?;
        if from == to && from_offset < end && to_offset < from_offset + len {
            return Err(Error::Invalid("the ranges overlap"));
        }
        let aligned = from_offset.is_multiple_of(BLOCK_BYTES) && to_offset.is_multiple_of(BLOCK_BYTES);
        let whole = len / BLOCK_BYTES;
        if aligned && whole > 0 {
            let blocks = whole.min(SHARE_BLOCKS) as u32;
            let shared = self.share_blocks(
                from,
                (from_offset / BLOCK_BYTES) as BlockNo,
                to,
                (to_offset / BLOCK_BYTES) as BlockNo,
                blocks,
            )?;
            if shared > 0 {
                return Ok(u64::from(shared) * BLOCK_BYTES);
            }
        }
        // Up to the next block border, so that what follows can be shared.
        let to_border = from_offset.next_multiple_of(BLOCK_BYTES) - from_offset;
        let mut n = len.min(COPY_BYTES);
        if to_border > 0 && (to_offset + to_border).is_multiple_of(BLOCK_BYTES) {
            n = n.min(to_border);
        }
        let mut bytes = Vec::new();
        self.read(from, from_offset, n as usize, &mut bytes)?;
        self.write(to, to_offset, &bytes)?;
        Ok(bytes.len() as u64)
    }

    /// Lets blocks of `to` refer to the pages of `from`; returns how many from
    /// the start could be shared. Blocks of a base and of in-place files have no
    /// page to share.
    fn share_blocks(
        &self,
        from: FileId,
        first: BlockNo,
        to: FileId,
        to_first: BlockNo,
        blocks: u32,
    ) -> Result<u32> {
        drop(self.head_with(from, true)?);
        let mut head = self.head_with(to, true)?;
        self.place_staged(&mut head, |(file, _), _| *file == from || *file == to)?;
        if head.is_orphan(to) || head.is_orphan(from) {
            return Ok(0);
        }
        let places: Vec<Place> = match (&head.inode(from)?.body, &head.inode(to)?.body) {
            (Body::Pages(source), Body::Pages(_)) => {
                let Some(table) = source.loaded() else { return Ok(0) };
                (first..first + blocks).map(|b| table.get(b)).take_while(|p| *p != Place::Base).collect()
            }
            _ => return Ok(0),
        };
        if places.is_empty() {
            return Ok(0);
        }
        let count = places.len() as u32;
        self.clear(&mut head, to, to_first, to_first + count)?;
        let layer = head.layer;
        for (i, place) in places.into_iter().enumerate() {
            let Place::Page(entry) = place else { continue };
            let block = to_first + i as u32;
            self.core.delta(entry.slot.delta()).space().share(entry.slot.index());
            head.pending.add(entry.slot);
            head.table_mut(to)?.tree.set(block, entry, layer);
            head.pages += 1;
            head.pending.file(to).blocks.insert(block);
        }
        let end = u64::from(to_first + count) * BLOCK_BYTES;
        if head.inode(to)?.size < end {
            head.set_size(to, end)?;
        }
        head.stamp(to)?;
        Ok(count)
    }

    /// The next data or hole at or after `offset` (`lseek`).
    pub fn seek(&self, file: FileId, offset: u64, what: Seek) -> Result<u64> {
        let head = self.head_with(file, false)?;
        let inode = head.inode(file)?;
        if offset >= inode.size {
            return Err(Error::NoData);
        }
        let first = (offset / BLOCK_BYTES) as BlockNo;
        let end = blocks_for(inode.size);
        let found = match &inode.body {
            Body::InPlace(extents, _) => extents.next(first, what == Seek::Data).filter(|&b| b < end),
            Body::Pages(pages) => head.next_block(file, pages.in_memory()?, first, end, what == Seek::Data),
            Body::Empty | Body::Link(_) => return Err(Error::Invalid("not a regular file")),
        };
        match (found, what) {
            (Some(block), _) => Ok((u64::from(block) * BLOCK_BYTES).max(offset).min(inode.size)),
            (None, Seek::Hole) => Ok(inode.size),
            (None, Seek::Data) => Err(Error::NoData),
        }
    }
}

impl Head {
    fn next_block(
        &self,
        file: FileId,
        table: &PageTable,
        first: BlockNo,
        end: BlockNo,
        data: bool,
    ) -> Option<BlockNo> {
        let is_data = |block| self.staged.contains_key(&(file, block)) || table.get(block) != Place::Hole;
        if data && table.base_blocks <= first && self.staged.is_empty() {
            // Holes can be long; the tree skips them.
            let mut found = None;
            table.tree.visit(first, u64::from(end), self.layer, &mut |block, entry, _| {
                if entry.slot != crate::map::schema::Slot::HOLE {
                    found = Some(block);
                }
                found.is_none()
            });
            return found;
        }
        (first..end).find(|&block| is_data(block) == data)
    }
}
