//! The delta store: pages in host files, out of place.
//!
//! Each fork writes its changed pages to a delta file of its own. A page is
//! acknowledged from memory, written past the host's page cache in the
//! background, and becomes part of the fork when a map commit refers to it.
//! A slot that a durable map may refer to is never written again before that
//! reference is gone for good ([`space`], [`grace`]). How much a fork may take is
//! [`account`]'s; what nobody needs goes back to the host ([`reclaim`]).

pub mod account;
pub mod backing;
pub mod bits;
pub mod flush;
pub mod grace;
pub mod reclaim;
pub mod space;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::block::{BLOCK_BYTES, BLOCK_SIZE, BlockNo, Page};
use crate::device::{DeviceFile, DirectBuf};
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::map::schema::{SLOTS_PER_RECORD, Slot};
use account::{Account, Need, Room, Tally};
use flush::FlushState;
use space::SlotSpace;

/// What is written to the host at once.
const WRITE_BYTES: usize = 1 << 20;
/// Host space is taken in steps of this part of what is in use, with bounds: so much
/// more than its pages a file takes at the most.
const GROW_SHARE: u32 = 16;
const GROW_MIN_SLOTS: u32 = 32;
const GROW_MAX_SLOTS: u32 = 8192;
/// So many times free slots of which nothing is known are tried on a full disk.
const PROBES: u32 = 8;

/// The most slots of one delta file: nearly 32 TiB.
const SLOTS_MAX: u32 = u32::MAX - SLOTS_PER_RECORD;

/// One delta file.
pub struct Delta {
    /// Its number, 1 or more.
    pub id: u32,
    room: Arc<Room>,
    /// The quota of the fork that writes here.
    pub account: Account,
    file: OnceLock<Arc<dyn DeviceFile>>,
    /// Pages not written yet, by slot number.
    dirty: Mutex<BTreeMap<u32, Arc<Page>>>,
    dirty_bytes: AtomicU64,
    /// Data written since the last flush of the host file.
    unflushed: AtomicBool,
    flushing: FlushState,
    /// Held by the one who writes: two writes of one slot stay in order.
    writer: Mutex<()>,
    space: Mutex<SlotSpace>,
    /// Tells that the end of the file is not going any more.
    end_stays: Condvar,
    /// Held by the one who gives space back, for one step.
    reclaim: Mutex<()>,
    removed: AtomicBool,
    /// Held from the plan of a durable change to its application.
    commit: Mutex<()>,
    /// Its fork is gone: the file goes with its last page.
    pub retired: AtomicBool,
}

/// The host file's name for delta file `id`.
pub fn file_name(id: u32) -> String {
    format!("{id:08}")
}

impl Delta {
    /// The delta file of number `id`; the host file is opened or made when it is
    /// first needed.
    pub fn new(room: Arc<Room>, id: u32) -> Arc<Delta> {
        Arc::new(Delta {
            id,
            room,
            account: Account::default(),
            file: OnceLock::new(),
            dirty: Mutex::default(),
            dirty_bytes: AtomicU64::new(0),
            unflushed: AtomicBool::new(false),
            flushing: FlushState::default(),
            writer: Mutex::new(()),
            space: Mutex::default(),
            end_stays: Condvar::new(),
            reclaim: Mutex::default(),
            removed: AtomicBool::new(false),
            commit: Mutex::new(()),
            retired: AtomicBool::new(false),
        })
    }

    fn file(&self) -> Result<&Arc<dyn DeviceFile>> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = self.room.device.open(&file_name(self.id), false).map_err(|e| self.error("opening", e))?;
        Ok(self.file.get_or_init(|| file))
    }

    /// The host file for writing: made if there is none, and its name durable.
    fn file_for_growth(&self) -> Result<&Arc<dyn DeviceFile>> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        // The name is flushed also if the file is there: an earlier try may
        // have got only that far.
        let device = &self.room.device;
        let file = device
            .open(&file_name(self.id), true)
            .and_then(|f| device.flush_names().map(|()| f))
            .map_err(|e| self.error("making", e))?;
        Ok(self.file.get_or_init(|| file))
    }

    /// The host file if there is one, whether or not its name is durable.
    fn existing(&self) -> Result<Option<Arc<dyn DeviceFile>>> {
        if let Some(file) = self.file.get() {
            return Ok(Some(file.clone()));
        }
        match self.room.device.open(&file_name(self.id), false) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.error("opening", e)),
        }
    }

    fn error(&self, verb: &str, e: std::io::Error) -> Error {
        Error::io(format!("{verb} delta file {}", file_name(self.id)), e)
    }

    /// The slots.
    pub fn space(&self) -> MutexGuard<'_, SlotSpace> {
        self.space.lock()
    }

    /// Keeps other commits away from this file's durable counts.
    pub fn lock_commit(&self) -> MutexGuard<'_, ()> {
        self.commit.lock()
    }

    /// A free slot with space on the host, for `block` of `file`.
    pub fn take(&self, file: FileId, block: BlockNo, need: Need) -> Result<Slot> {
        let mut space = self.space.lock();
        let mut runs_ended = false;
        loop {
            let allowed = self.account.left(space.live_bytes(), need) / BLOCK_BYTES;
            if let Some(index) = space.take(file, block, u32::try_from(allowed).unwrap_or(u32::MAX)) {
                return Ok(Slot::new(self.id, index));
            }
            let found = if allowed > 0 { self.reserve(&mut space, need) } else { Err(Error::Quota) };
            match found {
                Ok(()) => {}
                // Slots that other files' runs have set aside are as good.
                Err(e) if e.is_full() && !runs_ended => {
                    space.end_runs();
                    runs_ended = true;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Free slots next to each other for `pages` new pages that nobody waits for;
    /// the first of them.
    pub fn take_run(&self, pages: u32) -> Result<Slot> {
        let mut space = self.space.lock();
        if self.account.left(space.live_bytes(), Need::New) < u64::from(pages) * BLOCK_BYTES {
            return Err(Error::Quota);
        }
        if let Some(index) = space.take_run(pages) {
            return Ok(Slot::new(self.id, index));
        }
        let file = self.file_for_growth()?;
        self.measure(&mut space, &**file)?;
        if self.room.bytes(Need::New)? < u64::from(pages) * BLOCK_BYTES {
            return Err(Error::NoSpace);
        }
        while space.is_end_going() {
            self.end_stays.wait(&mut space);
        }
        let end = space.backing().end();
        let beyond = end.checked_add(pages).filter(|&total| total <= SLOTS_MAX).map(|total| end..total);
        let slots = space.wide_hole(pages).or(beyond).ok_or(Error::NoSpace)?;
        self.allocate(&mut space, &**file, slots.clone())?;
        space.take_all(slots.clone());
        Ok(Slot::new(self.id, slots.start))
    }

    /// Reserves host space for more slots: for free ones that have none, else
    /// beyond the end of the file.
    fn reserve(&self, space: &mut MutexGuard<'_, SlotSpace>, need: Need) -> Result<()> {
        let file = self.file_for_growth()?;
        self.measure(space, &**file)?;
        let room = u32::try_from(self.room.bytes(need)? / BLOCK_BYTES).unwrap_or(u32::MAX);
        let in_use = u32::try_from(space.live_bytes() / BLOCK_BYTES).unwrap_or(u32::MAX);
        let most = (in_use / GROW_SHARE).clamp(GROW_MIN_SLOTS, GROW_MAX_SLOTS).min(room);
        if let Some(slots) = space.bare_run(most, GROW_MAX_SLOTS) {
            return self.allocate(space, &**file, slots);
        }
        if most == 0 && self.probe(space, &**file)? {
            return Ok(());
        }
        if space.is_end_going() {
            self.end_stays.wait(space);
            return Ok(());
        }
        let have = space.backing().end();
        match have.checked_add(most).filter(|&total| most > 0 && total <= SLOTS_MAX) {
            Some(total) => self.allocate(space, &**file, have..total),
            None => Err(Error::NoSpace),
        }
    }

    fn measure(&self, space: &mut SlotSpace, file: &dyn DeviceFile) -> Result<()> {
        if !space.backing().is_measured() {
            let bytes = file.len().map_err(|e| self.error("measuring", e))?;
            space.measured(u32::try_from(bytes / BLOCK_BYTES).unwrap_or(u32::MAX).min(SLOTS_MAX));
        }
        Ok(())
    }

    fn allocate(&self, space: &mut SlotSpace, file: &dyn DeviceFile, slots: Range<u32>) -> Result<()> {
        let len = u64::from(slots.end - slots.start) * BLOCK_BYTES;
        match file.allocate(u64::from(slots.start) * BLOCK_BYTES, len) {
            Ok(()) => {
                space.reserved(slots);
                Ok(())
            }
            Err(e) => {
                space.doubted(&slots);
                Err(self.error("growing", e))
            }
        }
    }

    /// There is no room on the host: looks for free slots that had space when
    /// the store was opened. Whether it found some.
    fn probe(&self, space: &mut SlotSpace, file: &dyn DeviceFile) -> Result<bool> {
        let measure = || file.allocated().map_err(|e| self.error("measuring", e));
        for _ in 0..PROBES {
            let Some(slots) = space.unknown_run(GROW_MIN_SLOTS) else { break };
            let before = measure()?;
            match self.allocate(space, file, slots.clone()) {
                // The host may have needed a block to keep its books.
                Ok(()) if measure()? < before + BLOCK_BYTES => return Ok(true),
                Ok(()) => {
                    // This is what must stay free.
                    let len = u64::from(slots.end - slots.start) * BLOCK_BYTES;
                    file.punch(u64::from(slots.start) * BLOCK_BYTES, len)
                        .map_err(|e| self.error("giving back space of", e))?;
                }
                Err(e) if e.is_full() => {}
                Err(e) => return Err(e),
            }
            space.emptied(slots);
        }
        Ok(false)
    }

    /// Bytes that a write can still take: what the quota leaves of the host's
    /// room and of the slots that are ready.
    pub fn left_bytes(&self) -> Result<u64> {
        let mut space = self.space.lock();
        let live = space.live_bytes();
        let room = self.room.bytes(Need::New)?;
        if room + space.ready_bytes() < BLOCK_BYTES
            && let Some(file) = self.existing()?
        {
            self.measure(&mut space, &*file)?;
            self.probe(&mut space, &*file)?;
        }
        let host = room.saturating_add(space.ready_bytes());
        Ok(host.min(self.account.left(live, Need::New)))
    }

    /// Bytes that count against the quota.
    pub fn used_bytes(&self) -> u64 {
        self.space.lock().live_bytes() + self.account.in_place_bytes()
    }

    /// Counts an in-place file of `have` bytes, which grows by `more`, or
    /// refuses that. `counted` is where the file was counted before.
    pub fn charge(&self, counted: &mut Option<Tally>, have: u64, more: u64, need: Need) -> Result<()> {
        // The lock keeps pages from taking the same bytes.
        let space = self.space.lock();
        let tally = self.account.tally();
        let new =
            if counted.as_ref().is_some_and(|old| Arc::ptr_eq(old, &tally)) { more } else { have + more };
        if self.account.left(space.live_bytes(), need) < new {
            return Err(Error::Quota);
        }
        if new > more
            && let Some(old) = counted
        {
            old.fetch_sub(have, Ordering::SeqCst);
        }
        tally.fetch_add(new, Ordering::SeqCst);
        *counted = Some(tally);
        Ok(())
    }

    /// Places a page in a slot that nobody else can refer to yet.
    pub fn put(&self, slot: Slot, page: Arc<Page>) {
        if self.dirty.lock().insert(slot.index(), page).is_none() {
            self.dirty_bytes.fetch_add(BLOCK_BYTES, Ordering::Relaxed);
            self.room.dirty_bytes.fetch_add(BLOCK_BYTES, Ordering::Relaxed);
        }
    }

    /// Bytes of pages not written yet.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes.load(Ordering::Relaxed)
    }

    /// The page of a slot if it is not written yet.
    pub fn dirty_page(&self, slot: Slot) -> Option<Arc<Page>> {
        if self.dirty_bytes() == 0 {
            return None;
        }
        self.dirty.lock().get(&slot.index()).cloned()
    }

    /// Reads consecutive slots from the host file.
    pub fn read(&self, first: Slot, buf: &mut [u8]) -> Result<()> {
        self.file()?.read_at(buf, first.offset()).map_err(|e| self.error("reading", e))
    }

    /// Has the host read `n` pages in the background. That may race with a write to a
    /// slot that has become free: the host makes direct I/O wait for such a read.
    pub fn read_ahead(&self, first: Slot, n: usize) {
        let hinted = self.file().and_then(|file| {
            file.read_ahead(first.offset(), n as u64 * BLOCK_BYTES)
                .map_err(|e| self.error("reading ahead in", e))
        });
        if let Err(e) = hinted {
            log::debug!("{e}");
        }
    }

    /// Drops one live reference; a slot that becomes free loses its page.
    pub fn release(&self, index: u32) {
        let mut space = self.space.lock();
        if space.references(index) == 1 && self.dirty.lock().remove(&index).is_some() {
            self.dirty_bytes.fetch_sub(BLOCK_BYTES, Ordering::Relaxed);
            self.room.dirty_bytes.fetch_sub(BLOCK_BYTES, Ordering::Relaxed);
        }
        space.release(index);
    }

    /// Writes all pages that are dirty now, neighbours together.
    pub fn write_out(&self) -> Result<()> {
        let _writer = self.writer.lock();
        let pages: Vec<(u32, Arc<Page>)> =
            self.dirty.lock().iter().map(|(&index, page)| (index, page.clone())).collect();
        if pages.is_empty() {
            return Ok(());
        }
        let file = self.file()?;
        // Not kept: most forks have little to write, and there may be many.
        let mut buf = DirectBuf::with_capacity(WRITE_BYTES.min(pages.len() * BLOCK_SIZE));
        for batch in pages.chunks(WRITE_BYTES / BLOCK_SIZE) {
            buf.clear();
            let mut parts: Vec<(u64, Range<usize>)> = Vec::new();
            for (index, page) in batch {
                let (offset, at) = (Slot::new(self.id, *index).offset(), buf.as_slice().len());
                buf.push(&page[..]);
                match parts.last_mut() {
                    Some((start, part)) if *start + part.len() as u64 == offset => part.end += BLOCK_SIZE,
                    _ => parts.push((offset, at..at + BLOCK_SIZE)),
                }
            }
            self.unflushed.store(true, Ordering::SeqCst);
            file.write_direct_parts(buf.as_slice(), &parts).map_err(|e| self.error("writing", e))?;
            let mut dirty = self.dirty.lock();
            for (index, page) in batch {
                // A page that was replaced meanwhile is written next time.
                if dirty.get(index).is_some_and(|now| Arc::ptr_eq(now, page)) {
                    dirty.remove(index);
                    self.dirty_bytes.fetch_sub(BLOCK_BYTES, Ordering::Relaxed);
                    self.room.dirty_bytes.fetch_sub(BLOCK_BYTES, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Makes all pages placed so far durable.
    pub fn flush(&self) -> Result<()> {
        self.write_out()?;
        self.flushing.flush(&self.unflushed, || self.file()?.flush().map_err(|e| self.flush_error(e)))
    }

    /// Not [`Error::io`]: whatever a flush reports, what was written may be
    /// lost, also when the host calls it a full disk.
    fn flush_error(&self, source: std::io::Error) -> Error {
        Error::Io { context: format!("flushing delta file {}", file_name(self.id)), source }
    }

    /// Removes the host file.
    pub fn remove(&self) -> Result<()> {
        self.removed.store(true, Ordering::SeqCst);
        let bytes = self.room.device.remove(&file_name(self.id)).map_err(|e| self.error("removing", e))?;
        self.room.given_back.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Delta {
    fn drop(&mut self) {
        self.room.dirty_bytes.fetch_sub(self.dirty_bytes(), Ordering::Relaxed);
    }
}
