//! A page read: look the places up, let go of the lock, fetch the bytes, and
//! check each page against its CRC.

use std::sync::Arc;

use crate::base::BaseFile;
use crate::block::{BLOCK_BYTES, BLOCK_SIZE, BlockNo, Page, blocks_for};
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::inplace::{Extents, Source};
use crate::layer::tree::Entry;
use crate::layer::{Body, Pages, Place};
use crate::map::schema::Slot;

use super::ahead::Stretch;
use super::fork::{Fork, Head};

/// How often a page that does not match its CRC is looked up again: the one who
/// wrote it may just have replaced it. A page that stays wrong is damaged.
const TRIES: u32 = 5;

/// A read of so many bytes is the kernel reading ahead of somebody who reads in order.
const IN_ORDER: usize = 64 << 10;

/// How far ahead of such a read the disk is set to work. Pages of one file may lie in
/// many places, of which the host's own read-ahead knows nothing.
const AHEAD: u64 = 1 << 20;

/// Where a stretch of blocks comes from.
enum Piece {
    Zeros(u32),
    /// Consecutive slots, with their CRCs.
    Slots(Slot, Vec<u32>),
    Base(Arc<BaseFile>, BlockNo, u32),
    Place(Source, Option<Arc<BaseFile>>, u64, u32),
    Staged(Box<Page>),
}

impl Piece {
    fn blocks(&self) -> u32 {
        match self {
            Piece::Zeros(n) | Piece::Base(_, _, n) | Piece::Place(_, _, _, n) => *n,
            Piece::Slots(_, crcs) => crcs.len() as u32,
            Piece::Staged(_) => 1,
        }
    }
}

impl Fork {
    /// Appends up to `len` bytes from `offset` to `out`; fewer only at the end
    /// of the file.
    pub fn read(&self, file: FileId, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let size = self.head()?.inode(file)?.size;
        let (start, len) = (out.len(), size.saturating_sub(offset).min(len as u64) as usize);
        out.resize(start + len, 0);
        let read = self.read_into(file, offset, &mut out[start..]);
        out.truncate(start + read.as_ref().map_or(0, |n| *n));
        read.map(drop)
    }

    /// Reads from `offset` into `out` and returns the number of bytes: all that `out`
    /// has room for, or up to the end of the file. What lies beyond them in `out` may
    /// have changed as well.
    pub fn read_into(&self, file: FileId, offset: u64, out: &mut [u8]) -> Result<usize> {
        for attempt in 1.. {
            let period = self.core.grace.enter();
            let (pieces, ahead, skip, take) = {
                let head = self.head_with(file, false)?;
                let inode = head.inode(file)?;
                let end = inode.size.min(offset.saturating_add(out.len() as u64));
                if offset >= end {
                    return Ok(0);
                }
                let first = (offset / BLOCK_BYTES) as BlockNo;
                let pieces = head.pieces(file, first, blocks_for(end))?;
                let ahead = if out.len() < IN_ORDER {
                    Vec::new()
                } else {
                    let last = blocks_for(inode.size);
                    let block = |from: usize| blocks_for(offset + AHEAD + from as u64).min(last);
                    head.stretches(file, block(0), block(out.len()))?
                };
                (pieces, ahead, (offset % BLOCK_BYTES) as usize, (end - offset) as usize)
            };
            self.core.ahead.want(ahead);
            let bytes = pieces.iter().map(|piece| piece.blocks() as usize).sum::<usize>() * BLOCK_SIZE;
            let fetched = if skip == 0 && bytes <= out.len() {
                self.fetch(file, &pieces, &mut out[..bytes])
            } else {
                let mut blocks = vec![0; bytes];
                let fetched = self.fetch(file, &pieces, &mut blocks);
                out[..take].copy_from_slice(&blocks[skip..skip + take]);
                fetched
            };
            drop(period);
            match fetched {
                Ok(None) => return Ok(take),
                Ok(Some(_)) if attempt < TRIES => {}
                Ok(Some((bad, place))) => {
                    let block = offset / BLOCK_BYTES + u64::from(bad);
                    let e = Error::Damaged(format!(
                        "fork {:?}, {}, block {block}: {place} does not match its CRC",
                        self.name,
                        self.path_of(file),
                    ));
                    log::error!("{e}");
                    return Err(e);
                }
                // Two states of a base must not be mixed: its forks stop.
                Err(e @ Error::BaseChanged { .. }) => {
                    self.poison(&e);
                    return Err(e);
                }
                Err(e) => {
                    log::error!("fork {:?}, {}: {e}", self.name, self.path_of(file));
                    return Err(e);
                }
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Fetches the pieces, which fill `out`; returns the first block that does not
    /// match its CRC, and where it lies.
    fn fetch(&self, file: FileId, pieces: &[Piece], out: &mut [u8]) -> Result<Option<(u32, String)>> {
        let (mut done, mut rest) = (0, out);
        for piece in pieces {
            let buf;
            (buf, rest) = rest.split_at_mut(piece.blocks() as usize * BLOCK_SIZE);
            let bad = match piece {
                Piece::Zeros(_) => {
                    buf.fill(0);
                    None
                }
                Piece::Staged(page) => {
                    buf.copy_from_slice(&page[..]);
                    None
                }
                Piece::Base(base, block, _) => self.fetch_base(file, base, *block, buf)?,
                Piece::Place(Source::Host(host), _, from, _) => host.read(buf, *from)?.map(|i| {
                    let block = from / BLOCK_BYTES + u64::from(i);
                    (i, format!("block {block} of in-place file {}", host.name()))
                }),
                Piece::Place(Source::Base, base, from, _) => match base {
                    Some(base) => self.fetch_base(file, base, (from / BLOCK_BYTES) as BlockNo, buf)?,
                    None => {
                        return Err(Error::Damaged("a file refers to a base that it does not have".into()));
                    }
                },
                Piece::Slots(first, crcs) => self.fetch_slots(*first, crcs, buf)?.map(|i| {
                    let slot = Slot(first.0 + u64::from(i));
                    (i, format!("the page in slot {} of delta file {}", slot.index(), slot.delta()))
                }),
            };
            if let Some((i, place)) = bad {
                return Ok(Some((done + i, place)));
            }
            if let Piece::Base(..) | Piece::Place(..) = piece {
                self.count(|amounts| &amounts.other_blocks, piece.blocks().into());
            }
            done += piece.blocks();
        }
        Ok(None)
    }

    fn fetch_base(
        &self,
        file: FileId,
        base: &BaseFile,
        block: BlockNo,
        buf: &mut [u8],
    ) -> Result<Option<(u32, String)>> {
        base.read(block, buf)?;
        let bad = self.core.hosts.seals.base_mismatch(file, block, buf)?;
        Ok(bad.map(|i| (i, format!("block {} of base file {}", block + i, base.path().display()))))
    }

    pub(super) fn fetch_slots(&self, first: Slot, crcs: &[u32], buf: &mut [u8]) -> Result<Option<u32>> {
        let delta = self.core.delta(first.delta());
        let slot = |i: usize| Slot(first.0 + i as u64);
        let (mut i, mut in_memory) = (0, 0);
        while i < crcs.len() {
            if let Some(page) = delta.dirty_page(slot(i)) {
                buf[i * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(&page[..]);
                i += 1;
                in_memory += 1;
                continue;
            }
            let mut end = i + 1;
            while end < crcs.len() && delta.dirty_page(slot(end)).is_none() {
                end += 1;
            }
            delta.read(slot(i), &mut buf[i * BLOCK_SIZE..end * BLOCK_SIZE])?;
            i = end;
        }
        if in_memory > 0 {
            self.count(|amounts| &amounts.memory_pages, in_memory);
        }
        if in_memory < crcs.len() as u64 {
            self.count(|amounts| &amounts.delta_pages, crcs.len() as u64 - in_memory);
        }
        let wrong =
            buf.chunks_exact(BLOCK_SIZE).zip(crcs).position(|(page, &crc)| crc32fast::hash(page) != crc);
        Ok(wrong.map(|i| i as u32))
    }

    /// One whole block as it reads now, zeros beyond the end of the file.
    pub(super) fn read_block(&self, file: FileId, block: BlockNo) -> Result<Box<Page>> {
        let mut bytes = Vec::with_capacity(BLOCK_SIZE);
        self.read(file, u64::from(block) * BLOCK_BYTES, BLOCK_SIZE, &mut bytes)?;
        let mut page = Box::new([0; BLOCK_SIZE]);
        page[..bytes.len()].copy_from_slice(&bytes);
        Ok(page)
    }

    /// A path of the file, for messages.
    pub(super) fn path_of(&self, file: FileId) -> String {
        let state = self.head().map(|head| head.state.clone()).unwrap_or_default();
        state.path_of(file).unwrap_or_else(|| format!("file {file} (without a name)"))
    }
}

impl Head {
    /// Where the blocks `first..end` of a file come from.
    fn pieces(&self, file: FileId, first: BlockNo, end: BlockNo) -> Result<Vec<Piece>> {
        match &self.inode(file)?.body {
            Body::Pages(pages) => self.page_pieces(file, pages, first, end),
            Body::InPlace(extents, base) => Ok(place_pieces(extents, base, first, end)),
            Body::Empty => Err(Error::IsDirectory),
            Body::Link(_) => Err(Error::Invalid("a symbolic link has no contents")),
        }
    }

    /// In which slots the blocks `first..end` of a file lie, as far as they do.
    fn stretches(&self, file: FileId, first: BlockNo, end: BlockNo) -> Result<Vec<Stretch>> {
        let Body::Pages(pages) = &self.inode(file)?.body else { return Ok(Vec::new()) };
        let table = pages.in_memory()?;
        let mut stretches: Vec<Stretch> = Vec::new();
        for block in first..end {
            let Place::Page(Entry { slot, .. }) = table.get(block) else { continue };
            match stretches.last_mut() {
                Some((start, slots)) if start.0 + *slots as u64 == slot.0 => *slots += 1,
                _ => stretches.push((slot, 1)),
            }
        }
        Ok(stretches)
    }

    fn page_pieces(&self, file: FileId, pages: &Pages, first: BlockNo, end: BlockNo) -> Result<Vec<Piece>> {
        let table = pages.in_memory()?;
        let mut pieces: Vec<Piece> = Vec::new();
        for block in first..end {
            if !self.staged.is_empty()
                && let Some(staged) = self.staged.get(&(file, block))
            {
                pieces.push(Piece::Staged(staged.page.clone()));
                continue;
            }
            match (table.get(block), pieces.last_mut()) {
                (Place::Page(Entry { slot, crc }), Some(Piece::Slots(start, crcs)))
                    if start.0 + crcs.len() as u64 == slot.0 =>
                {
                    crcs.push(crc);
                }
                (Place::Page(Entry { slot, crc }), _) => pieces.push(Piece::Slots(slot, vec![crc])),
                (Place::Hole, Some(Piece::Zeros(n))) | (Place::Base, Some(Piece::Base(_, _, n))) => *n += 1,
                (Place::Hole, _) => pieces.push(Piece::Zeros(1)),
                (Place::Base, _) => match &pages.base {
                    Some(base) => pieces.push(Piece::Base(base.clone(), block, 1)),
                    None => {
                        return Err(Error::Damaged("a file refers to a base that it does not have".into()));
                    }
                },
            }
        }
        Ok(pieces)
    }
}

fn place_pieces(extents: &Extents, base: &Option<Arc<BaseFile>>, first: BlockNo, end: BlockNo) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut block = first;
    while block < end {
        match extents.find(block) {
            Some((source, offset, together)) => {
                let n = together.min(end - block);
                pieces.push(Piece::Place(source, base.clone(), offset, n));
                block += n;
            }
            None => {
                let next = extents.next(block, true).map_or(end, |b| b.min(end));
                pieces.push(Piece::Zeros(next - block));
                block = next;
            }
        }
    }
    pieces
}
