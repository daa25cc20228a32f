//! A page write: take a slot, put the page into memory, point the file's page
//! table at it. The disk is not waited for; a commit makes it durable.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::block::{BLOCK_BYTES, BLOCK_SIZE, BlockNo, MAX_FILE_BYTES, Page, Part, blocks_for, parts};
use crate::class::Class;
use crate::delta::Delta;
use crate::delta::account::Need;
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::inplace::{HostFile, chunk_blocks};
use crate::layer::tree::{Entry, Removed};
use crate::layer::{Body, HIDDEN_MAX, PageTable, Pages, Place, Table};
use crate::map::schema::Slot;

use super::fork::{Fork, Head, Staged};

/// Blocks of which only a part has arrived are few, at most one for each writer;
/// beyond this many the oldest is taken as it is.
const STAGED_MAX: usize = 1024;

/// A whole block, ready to be placed.
pub(super) struct Ready {
    pub block: BlockNo,
    page: Arc<Page>,
    crc: u32,
}

impl Ready {
    pub fn new(block: BlockNo, page: Arc<Page>) -> Self {
        let crc = crc32fast::hash(&page[..]);
        Ready { block, page, crc }
    }
}

impl Fork {
    /// Writes all of `data`. When it returns, every read sees it; it is durable
    /// after the next `sync`.
    pub fn write(&self, file: FileId, offset: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= MAX_FILE_BYTES);
        let end = end.ok_or(Error::TooLarge)?;
        let class = {
            let head = self.head_with(file, true)?;
            let inode = head.inode(file)?;
            match &inode.body {
                Body::InPlace(..) => None,
                Body::Pages(_) => Some(inode.class),
                Body::Empty => return Err(Error::IsDirectory),
                Body::Link(_) => return Err(Error::Invalid("a symbolic link has no contents")),
            }
        };
        match class {
            None => match self.write_in_place(file, offset, data, end, Need::New) {
                // What has been written of it is written again.
                Err(Error::NoSpace) if self.core.make_room()? => {
                    self.write_in_place(file, offset, data, end, Need::New)
                }
                other => other,
            },
            Some(class) => self.write_pages(file, class, offset, data, end),
        }
    }

    fn write_pages(&self, file: FileId, class: Class, offset: u64, data: &[u8], end: u64) -> Result<()> {
        let delta = self.delta();
        self.limit_dirty(&delta)?;
        let mut ready = Vec::new();
        let mut staged = Vec::new();
        let mut completed = Vec::new();
        for part in parts(offset, data.len()) {
            let bytes = &data[part.range()];
            if part.is_whole() {
                // One copy, without zeros first: this is the hottest line of all.
                let page: std::result::Result<Arc<Page>, _> = Arc::<[u8]>::from(bytes).try_into();
                let page = page.map_err(|_| Error::Invalid("not a whole block"))?;
                ready.push(Ready::new(part.block, page));
            } else if class == Class::Paged {
                // The kernel splits a write where the writer's memory has a
                // page that is not there, which can be at any byte.
                staged.push(part);
            } else {
                let mut page = self.read_block(file, part.block)?;
                page[part.start..part.end].copy_from_slice(bytes);
                ready.push(Ready::new(part.block, Arc::new(*page)));
            }
        }
        for part in staged {
            if let Some(whole) = self.stage(file, part, &data[part.range()])? {
                completed.push(whole);
            }
        }
        let mut head = self.head_with(file, true)?;
        match self.place(&mut head, file, &delta, &ready, Need::New) {
            Err(e) if e.is_full() => {
                drop(head);
                let room = matches!(e, Error::NoSpace) && self.core.make_room()?;
                if !self.reclaim()? && !room {
                    return Err(e);
                }
                // Meanwhile its table may have been frozen, or dropped.
                head = self.head_with(file, true)?;
                self.place(&mut head, file, &delta, &ready, Need::New)?;
            }
            other => other?,
        }
        // The other parts of these were acknowledged when there was room.
        self.place(&mut head, file, &delta, &completed, Need::Acknowledged)?;
        if head.inode(file)?.size < end {
            head.set_size(file, end)?;
        }
        head.stamp(file)
    }

    /// Writes pages out before there are too many: the fork's own, and where
    /// those are not what fills the memory, whoever has most.
    fn limit_dirty(&self, delta: &Delta) -> Result<()> {
        let options = &self.core.options;
        let total = || self.core.delta_room.dirty_bytes.load(Ordering::Relaxed);
        let much = total() > options.dirty_total_bytes && delta.dirty_bytes() > 0;
        if much || delta.dirty_bytes() > options.dirty_limit_bytes {
            delta.write_out().inspect_err(|e| self.poison_unless_full(e))?;
        }
        if total() > options.dirty_total_bytes
            && let Some(most) = self.core.dirtiest()
            && let Err(e) = most.write_out()
        {
            // Its own fork meets the error when it writes next.
            log::warn!("{e}");
        }
        Ok(())
    }

    /// Makes slots free that only the last commit still refers to, by making
    /// another one; whether there may be any. On a full disk pages can thus
    /// still be overwritten.
    fn reclaim(&self) -> Result<bool> {
        let target = {
            let head = self.head_mut()?;
            if head.pending.released.is_empty() && head.pending.unused.is_empty() {
                return Ok(false);
            }
            head.target()
        };
        self.commit_up_to(target)?;
        self.core.grace.wait();
        Ok(true)
    }

    /// Keeps a part of a block until its other parts come; returns the block
    /// once it is whole.
    fn stage(&self, file: FileId, part: Part, bytes: &[u8]) -> Result<Option<Ready>> {
        let key = (file, part.block);
        let known = self.head()?.staged.contains_key(&key);
        let old = match known {
            true => None,
            false => {
                self.check_room_to_stage()?;
                Some(self.read_block(file, part.block)?)
            }
        };
        // Of a file with staged blocks the table stays in memory from here on.
        let mut head = self.head_with(file, true)?;
        let staged = match (head.staged.remove(&key), old) {
            (Some(staged), _) => Some(staged),
            (None, Some(page)) => Some(Staged { page, arrived: Vec::new(), since: Instant::now() }),
            (None, None) => None,
        };
        let Some(mut staged) = staged else {
            // Placed by a commit since the look above: begin anew.
            drop(head);
            return self.stage(file, part, bytes);
        };
        if staged.add(part.start, bytes) {
            return Ok(Some(Ready::new(part.block, Arc::from(staged.page))));
        }
        head.staged.insert(key, staged);
        if head.staged.len() > STAGED_MAX
            && let Some(oldest) = head.staged.iter().min_by_key(|(_, s)| s.since).map(|(key, _)| *key)
        {
            self.place_staged(&mut head, |key, _| *key == oldest)?;
        }
        Ok(None)
    }

    /// A part is acknowledged before its block has a slot: there must be room
    /// for one more.
    fn check_room_to_stage(&self) -> Result<()> {
        let staged = self.head()?.staged.len() as u64;
        self.check_room((staged + 1) * BLOCK_BYTES)
    }

    fn check_room(&self, bytes: u64) -> Result<()> {
        let delta = self.delta();
        match delta.left_bytes()? >= bytes || self.core.make_room()? && delta.left_bytes()? >= bytes {
            true => Ok(()),
            false => Err(Error::NoSpace),
        }
    }

    /// Takes staged blocks as they are: those that `which` chooses.
    pub(super) fn place_staged(
        &self,
        head: &mut Head,
        which: impl Fn(&(FileId, BlockNo), &Staged) -> bool,
    ) -> Result<()> {
        if head.staged.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = head.staged.iter().filter(|(key, s)| which(key, s)).map(|(key, _)| *key).collect();
        let delta = self.delta();
        for key in keys {
            let Some(staged) = head.staged.get(&key) else { continue };
            let ready = Ready::new(key.1, Arc::new(*staged.page));
            self.place(head, key.0, &delta, &[ready], Need::Acknowledged)?;
            head.staged.remove(&key);
        }
        Ok(())
    }

    /// Puts whole blocks into the fork: all of them, or none if there is no
    /// room.
    fn place(
        &self,
        head: &mut Head,
        file: FileId,
        delta: &Arc<Delta>,
        ready: &[Ready],
        need: Need,
    ) -> Result<()> {
        if ready.is_empty() {
            return Ok(());
        }
        self.own_table(head, file)?;
        let mut slots = Vec::with_capacity(ready.len());
        for one in ready {
            let reused = match self.table(head, file)?.get(one.block) {
                Place::Page(entry) if self.may_overwrite(head, delta, entry.slot) => Some(entry.slot),
                _ => None,
            };
            let slot = match reused {
                Some(slot) => slot,
                None => match delta.take(file, one.block, need) {
                    Ok(slot) => slot,
                    Err(e) => {
                        for (slot, new) in slots {
                            if new {
                                delta.release(Slot::index(slot));
                            }
                        }
                        return Err(e);
                    }
                },
            };
            slots.push((slot, reused.is_none()));
        }
        for (one, (slot, new)) in ready.iter().zip(slots) {
            self.enter(head, file, delta, slot, new, one)?;
        }
        Ok(())
    }

    /// Puts one block into a slot: a new one, or one that it may overwrite.
    pub(super) fn enter(
        &self,
        head: &mut Head,
        file: FileId,
        delta: &Arc<Delta>,
        slot: Slot,
        new: bool,
        one: &Ready,
    ) -> Result<()> {
        // What was staged of the block is older, and must not come back.
        head.staged.remove(&(file, one.block));
        delta.put(slot, one.page.clone());
        let entry = Entry { slot, crc: one.crc };
        let layer = head.owner_layer(file);
        let removed = head.table_mut(file)?.tree.set(one.block, entry, layer);
        if head.is_orphan(file) {
            if let (true, Some(old)) = (new, removed.filter(|r| r.owned)) {
                head.pending.unused.push(old.slot);
            }
            return Ok(());
        }
        if new {
            head.pending.add(slot);
            match removed {
                Some(old) if old.owned => head.pending.release(old.slot),
                older => {
                    head.pages += 1;
                    head.hidden += u64::from(older.is_some());
                }
            }
        }
        head.pending.file(file).blocks.insert(one.block);
        Ok(())
    }

    /// Whether a slot's page may be replaced where it is: no durable record, no
    /// snapshot and no other file refers to it.
    fn may_overwrite(&self, head: &Head, delta: &Arc<Delta>, slot: Slot) -> bool {
        slot.delta() == delta.id && head.pending.is_fresh(slot) && delta.space().references(slot.index()) == 1
    }

    /// Makes the file's page table the fork's own, to be changed.
    pub(super) fn own_table(&self, head: &mut Head, file: FileId) -> Result<()> {
        let loaded = match &head.inode(file)?.body {
            Body::Pages(pages) => match &pages.table {
                Table::Loaded(_) => return Ok(()),
                Table::Cold(cold) => cold.table.get().cloned(),
            },
            _ => return Err(Error::Invalid("not a paged file")),
        };
        let table = loaded.ok_or_else(|| Error::Map("a page table went cold during an operation".into()))?;
        if let Body::Pages(pages) = &mut head.inode_mut(file)?.body {
            pages.table = Table::Loaded(table);
        }
        Ok(())
    }

    pub(super) fn table<'a>(&self, head: &'a Head, file: FileId) -> Result<&'a PageTable> {
        match &head.inode(file)?.body {
            Body::Pages(pages) => pages.in_memory(),
            _ => Err(Error::Invalid("not a paged file")),
        }
    }

    pub(super) fn poison_unless_full(&self, e: &Error) {
        if !e.is_full() {
            self.poison(e);
        }
    }

    /// Turns a scratch file into an ordinary one, before it gets a name that
    /// forks inherit: they could not share it in place. Others stay as they are.
    pub(super) fn settle(&self, file: FileId) -> Result<()> {
        loop {
            let (layer, size) = {
                let head = self.head_mut()?;
                let inode = head.inode(file)?;
                if inode.class != Class::Scratch || head.is_orphan(file) {
                    return Ok(());
                }
                (head.layer, inode.size)
            };
            let delta = self.delta();
            let mut table = PageTable::default();
            for block in 0..blocks_for(size) {
                self.limit_dirty(&delta)?;
                let ready = Ready::new(block, Arc::new(*self.read_block(file, block)?));
                let slot = delta.take(file, block, Need::New).inspect_err(|_| give_back(&delta, &table))?;
                delta.put(slot, ready.page);
                table.tree.set(block, Entry { slot, crc: ready.crc }, layer);
            }
            let mut head = self.head_mut()?;
            if head.layer != layer || head.is_orphan(file) || head.inode(file)?.size != size {
                drop(head);
                give_back(&delta, &table);
                continue;
            }
            table.tree.visit(0, 1 << 32, layer, &mut |block, entry, _| {
                head.pending.add(entry.slot);
                head.pending.file(file).blocks.insert(block);
                head.pages += 1;
                true
            });
            let inode = head.inode_mut(file)?;
            inode.class = Class::Plain;
            inode.body = Body::Pages(Pages { table: Table::Loaded(table), base: None });
            head.changed(file);
            return Ok(());
        }
    }

    // ---- in place -------------------------------------------------------

    fn write_in_place(&self, file: FileId, offset: u64, data: &[u8], end: u64, need: Need) -> Result<()> {
        let delta = self.delta();
        // A fork waits until no write is on its way to a host file, so that the
        // file's contents are those of one instant.
        let _gate = self.gate.read();
        let mut at = 0;
        while at < data.len() {
            let here = offset + at as u64;
            let block = (here / BLOCK_BYTES) as BlockNo;
            let within = (here % BLOCK_BYTES) as usize;
            let direct = {
                let head = self.head_mut()?;
                let layer = head.owner_layer(file);
                head.extents(file)?.in_place(layer, block)
            };
            match direct {
                Some((host, place)) => {
                    // As far as the blocks lie in place together.
                    let run = self.in_place_run(file, block, data.len() - at + within)?;
                    let n = (run as usize * BLOCK_SIZE - within).min(data.len() - at);
                    host.write(&data[at..at + n], place + within as u64, &delta, need)?;
                    self.head_mut()?.unflushed(file, host)?;
                    at += n;
                }
                None => {
                    let (host, place, in_place) = self.writable_chunk(file, block, need)?;
                    if in_place {
                        continue;
                    }
                    let n = (BLOCK_SIZE - within).min(data.len() - at);
                    if n == BLOCK_SIZE {
                        host.write(&data[at..at + n], place, &delta, need)?;
                    } else {
                        let mut page = self.read_block(file, block)?;
                        page[within..within + n].copy_from_slice(&data[at..at + n]);
                        host.write(&page[..], place, &delta, need)?;
                    }
                    // In one step: a commit that records the block flushes it.
                    let mut head = self.head_mut()?;
                    let layer = head.owner_layer(file);
                    head.extents_mut(file)?.written(layer, block);
                    head.unflushed(file, host)?;
                    at += n;
                }
            }
        }
        let mut head = self.head_mut()?;
        if head.inode(file)?.class == Class::Wal {
            self.wal_writes.fetch_add(1, Ordering::SeqCst);
        }
        if head.inode(file)?.size < end {
            head.set_size(file, end)?;
        }
        head.stamp(file)
    }

    /// How many blocks from `block` on are in place in the same host file, at
    /// most as many as `bytes` need.
    fn in_place_run(&self, file: FileId, block: BlockNo, bytes: usize) -> Result<u32> {
        let head = self.head()?;
        let want = blocks_for(bytes as u64);
        Ok(head.extents(file)?.find(block).map_or(1, |(_, _, together)| together.min(want)))
    }

    /// The host file and offset to write `block` of an in-place file to; takes
    /// a new host file for its chunk if the fork has none of its own. Also
    /// whether the block lies in it by now.
    fn writable_chunk(&self, file: FileId, block: BlockNo, need: Need) -> Result<(Arc<HostFile>, u64, bool)> {
        let (covered, scattered) = {
            let head = self.head_mut()?;
            let extents = head.extents(file)?;
            if let Some((host, place)) = extents.writable(head.owner_layer(file), block) {
                return Ok((host, place, false));
            }
            (extents.covered(block), extents.scattered(block))
        };
        let gathered = match covered {
            0 => Some(self.core.hosts.create()?),
            blocks if scattered >= self.core.options.scattered_max => {
                self.gather(file, block, blocks, need)?
            }
            _ => None,
        };
        let (host, patterned) = match gathered {
            Some(host) => (host, 0),
            None => {
                let host = self.core.hosts.create_patterned(covered, &self.delta(), need)?;
                self.core.hosts.refill_spares();
                (host, covered)
            }
        };
        let mut head = self.head_mut()?;
        let layer = head.owner_layer(file);
        let extents = head.extents_mut(file)?;
        extents.add_top(layer, block, host, patterned);
        let found = extents.writable(layer, block);
        let in_place = extents.in_place(layer, block).is_some();
        head.changed(file);
        let (host, place) = found.ok_or_else(|| Error::Map("a chunk lost its host file".into()))?;
        Ok((host, place, in_place))
    }
}

/// Gives back the slots of a page table that is not used.
fn give_back(delta: &Delta, table: &PageTable) {
    table.tree.visit(0, 1 << 32, crate::ids::LayerId(0), &mut |_, entry, _| {
        delta.release(entry.slot.index());
        true
    });
}

impl Head {
    /// The layer that pages of the file are tagged with.
    pub(super) fn owner_layer(&self, file: FileId) -> crate::ids::LayerId {
        self.orphans.get(&file).map_or(self.layer, |o| o.layer)
    }

    /// The page table of a file, to be changed; [`Fork::own_table`] was called.
    pub(super) fn table_mut(&mut self, file: FileId) -> Result<&mut PageTable> {
        match &mut self.inode_mut(file)?.body {
            Body::Pages(pages) => match &mut pages.table {
                Table::Loaded(table) => Ok(table),
                Table::Cold(_) => Err(Error::Map("a page table is not the fork's own".into())),
            },
            _ => Err(Error::Invalid("not a paged file")),
        }
    }

    /// Notes that a host file of `file` was written to. Scratch and files
    /// without a name are in no commit.
    fn unflushed(&mut self, file: FileId, host: Arc<HostFile>) -> Result<()> {
        if self.inode(file)?.class == Class::Wal && !self.is_orphan(file) {
            self.pending.hosts.insert(host.id, host);
        }
        Ok(())
    }

    pub(super) fn extents(&self, file: FileId) -> Result<&crate::inplace::Extents> {
        match &self.inode(file)?.body {
            Body::InPlace(extents, _) => Ok(extents),
            _ => Err(Error::Invalid("not an in-place file")),
        }
    }

    pub(super) fn extents_mut(&mut self, file: FileId) -> Result<&mut crate::inplace::Extents> {
        match &mut self.inode_mut(file)?.body {
            Body::InPlace(extents, _) => Ok(Arc::make_mut(extents)),
            _ => Err(Error::Invalid("not an in-place file")),
        }
    }
}

// ---- sizes, holes, copies ------------------------------------------------

impl Fork {
    /// Truncates or extends a regular file.
    pub(super) fn set_len(&self, file: FileId, size: u64) -> Result<()> {
        if size > MAX_FILE_BYTES {
            return Err(Error::TooLarge);
        }
        let old = {
            let head = self.head_with(file, true)?;
            let inode = head.inode(file)?;
            match &inode.body {
                Body::Pages(_) | Body::InPlace(..) => inode.size,
                Body::Empty => return Err(Error::IsDirectory),
                Body::Link(_) => return Err(Error::Invalid("a symbolic link has no contents")),
            }
        };
        if size < old {
            return self.cut_to(file, size);
        }
        let mut head = self.head_mut()?;
        head.set_size(file, size)?;
        head.stamp(file)
    }

    fn cut_to(&self, file: FileId, size: u64) -> Result<()> {
        let keep = blocks_for(size);
        let within = (size % BLOCK_BYTES) as usize;
        // The rest of the last block must read as zeros when the file grows.
        let tail = if within > 0 {
            let mut page = self.read_block(file, keep - 1)?;
            page[within..].fill(0);
            Some(page)
        } else {
            None
        };
        if matches!(self.head()?.inode(file)?.body, Body::InPlace(..)) {
            return self.cut_in_place(file, size, tail);
        }
        let delta = self.delta();
        let mut head = self.head_with(file, true)?;
        if let Some(page) = tail {
            head.staged.remove(&(file, keep - 1));
            let last = [Ready::new(keep - 1, Arc::new(*page))];
            self.place(&mut head, file, &delta, &last, Need::Acknowledged)?;
        }
        self.clear(&mut head, file, keep, u32::MAX)?;
        head.set_size(file, size)?;
        head.stamp(file)
    }

    /// Cuts an in-place file down to `size` bytes, `tail` being what its last
    /// block has to be if that is not a whole one. Old blocks of a WAL segment
    /// must not be taken for new ones after a crash, so it goes on in a new host
    /// file; all that can fail comes first.
    fn cut_in_place(&self, file: FileId, size: u64, tail: Option<Box<Page>>) -> Result<()> {
        let keep = (size / BLOCK_BYTES) as BlockNo;
        let delta = self.delta();
        let class = self.head()?.inode(file)?.class;
        let mut tail_host = None;
        if let Some(page) = tail {
            let before = keep % chunk_blocks(class);
            match (class, before) {
                // Scratch stays where it is.
                (Class::Scratch, _) => {
                    let at = u64::from(keep) * BLOCK_BYTES;
                    self.write_in_place(file, at, &page[..], size, Need::Acknowledged)?;
                }
                (_, 0) => tail_host = Some((self.core.hosts.create()?, before)),
                _ => {
                    tail_host =
                        Some((self.core.hosts.create_patterned(before, &delta, Need::Acknowledged)?, before))
                }
            }
            if let Some((host, _)) = &tail_host {
                host.write(&page[..], u64::from(before) * BLOCK_BYTES, &delta, Need::Acknowledged)?;
            }
        }
        let _gate = self.gate.read();
        let mut head = self.head_mut()?;
        let layer = head.owner_layer(file);
        let extents = head.extents_mut(file)?;
        extents.truncate(if class == Class::Wal { keep } else { blocks_for(size) });
        if let Some((host, before)) = tail_host {
            extents.add_top(layer, keep, host.clone(), before);
            head.unflushed(file, host)?;
        }
        head.set_size(file, size)?;
        head.changed(file);
        head.stamp(file)
    }

    /// Empties whole blocks, `u32::MAX` meaning to the end.
    pub(super) fn clear(&self, head: &mut Head, file: FileId, start: BlockNo, end: BlockNo) -> Result<()> {
        self.own_table(head, file)?;
        if self.table(head, file)?.hides(start, end) > HIDDEN_MAX {
            return Err(Error::Unsupported);
        }
        let staged: Vec<_> = head.staged.range((file, start)..(file, end)).map(|(key, _)| *key).collect();
        for key in staged {
            head.staged.remove(&key);
        }
        let layer = head.owner_layer(file);
        let mut removed = Vec::new();
        head.table_mut(file)?.clear(start, end, layer, &mut |r| removed.push(r));
        if head.is_orphan(file) {
            head.pending.unused.extend(removed.iter().filter(|r| r.owned).map(|r| r.slot));
            return Ok(());
        }
        let (own, below): (Vec<Removed>, Vec<Removed>) = removed.into_iter().partition(|r| r.owned);
        head.hidden += below.len() as u64;
        for old in own {
            head.pending.release(old.slot);
            head.pages = head.pages.saturating_sub(1);
            head.pending.file(file).dropped.insert(old.block);
        }
        head.pending.file(file).cleared.push((start, end));
        head.changed(file);
        Ok(())
    }

    /// `fallocate(2)`: mode 0, `KEEP_SIZE`, `PUNCH_HOLE | KEEP_SIZE`,
    /// `ZERO_RANGE` with or without `KEEP_SIZE`. Space is promised as far as the
    /// disk has it now; pages out of place take theirs when they are written.
    pub fn fallocate(&self, file: FileId, mode: i32, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Err(Error::Invalid("no length"));
        }
        let end = offset.checked_add(len).filter(|&e| e <= MAX_FILE_BYTES).ok_or(Error::TooLarge)?;
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let size = {
            let head = self.head_with(file, true)?;
            let inode = head.inode(file)?;
            if !matches!(inode.body, Body::Pages(_) | Body::InPlace(..)) {
                return Err(Error::Invalid("not a regular file"));
            }
            inode.size
        };
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => self.check_room(len)?,
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => self.zero(file, offset, end.min(size))?,
            libc::FALLOC_FL_ZERO_RANGE => self.zero(file, offset, end.min(size))?,
            _ => return Err(Error::Unsupported),
        }
        let mut head = self.head_mut()?;
        if !keep_size && head.inode(file)?.size < end {
            head.set_size(file, end)?;
        }
        head.stamp(file)
    }

    /// Makes `offset..end` read as zeros; whole blocks become holes.
    fn zero(&self, file: FileId, offset: u64, end: u64) -> Result<()> {
        if offset >= end {
            return Ok(());
        }
        let in_place = matches!(self.head()?.inode(file)?.body, Body::InPlace(..));
        let first = offset.next_multiple_of(BLOCK_BYTES);
        let last = end / BLOCK_BYTES * BLOCK_BYTES;
        if in_place || first >= last {
            return self.write_zeros(file, offset, end);
        }
        self.write_zeros(file, offset, first)?;
        self.write_zeros(file, last, end)?;
        let mut head = self.head_with(file, true)?;
        self.clear(&mut head, file, (first / BLOCK_BYTES) as BlockNo, (last / BLOCK_BYTES) as BlockNo)
    }

    fn write_zeros(&self, file: FileId, mut offset: u64, end: u64) -> Result<()> {
        let zeros = vec![0; (end.saturating_sub(offset)).min(1 << 20) as usize];
        while offset < end {
            let n = (end - offset).min(zeros.len() as u64) as usize;
            self.write(file, offset, &zeros[..n])?;
            offset += n as u64;
        }
        Ok(())
    }
}
