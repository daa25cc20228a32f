//! The delta store: pages in host files, out of place.
//!
//! Each fork writes its changed pages to a delta file of its own. A page is
//! acknowledged from memory, written past the host's page cache in the
//! background, and becomes part of the fork when a map commit refers to it.
//! A slot that a durable map may refer to is never written again before that
//! reference is gone for good ([`space`], [`grace`]). How much a fork may take is
//! [`account`]'s.

pub mod account;
pub mod flush;
pub mod grace;
pub mod space;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};

use crate::block::{BLOCK_BYTES, BLOCK_SIZE, BlockNo, Page};
use crate::device::{DeviceFile, DirectBuf};
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::map::schema::{SLOTS_PER_RECORD, Slot};
use account::{Account, Need, Room, Tally};
use flush::FlushState;
use space::SlotSpace;

/// The largest single write to the host.
const WRITE_BYTES: usize = 1 << 20;
/// Host space is taken in steps that grow with the file, from one to the other.
const GROW_MIN_SLOTS: u32 = 32;
const GROW_MAX_SLOTS: u32 = 8192;

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
            let grown = if allowed > 0 { self.grow(&mut space, need) } else { Err(Error::Quota) };
            match grown {
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
        // Growth comes in smaller steps while the file is small.
        for _ in 0..=pages.div_ceil(GROW_MIN_SLOTS) {
            if let Some(index) = space.take_run(pages) {
                return Ok(Slot::new(self.id, index));
            }
            self.grow(&mut space, Need::New)?;
        }
        Err(Error::NoSpace)
    }

    fn grow(&self, space: &mut SlotSpace, need: Need) -> Result<()> {
        let file = self.file_for_growth()?;
        if space.host_slots() == 0 {
            let bytes = file.len().map_err(|e| self.error("measuring", e))?;
            if bytes >= BLOCK_BYTES {
                space.set_host_slots(u32::try_from(bytes / BLOCK_BYTES).unwrap_or(u32::MAX).min(SLOTS_MAX));
                return Ok(());
            }
        }
        let have = space.host_slots();
        let mut more = (have / 4).clamp(GROW_MIN_SLOTS, GROW_MAX_SLOTS);
        let room = self.room.bytes(need)? / BLOCK_BYTES;
        more = more.min(u32::try_from(room).unwrap_or(u32::MAX));
        let Some(total) = have.checked_add(more).filter(|&total| more > 0 && total <= SLOTS_MAX) else {
            return Err(Error::NoSpace);
        };
        file.allocate(u64::from(have) * BLOCK_BYTES, u64::from(more) * BLOCK_BYTES)
            .map_err(|e| self.error("growing", e))?;
        space.set_host_slots(total);
        Ok(())
    }

    /// Bytes that a write can still take: what the quota leaves of the host's
    /// room and of the slots that are free again.
    pub fn left_bytes(&self) -> Result<u64> {
        let space = self.space.lock();
        let live = space.live_bytes();
        let reusable = (u64::from(space.host_slots()) * BLOCK_BYTES).saturating_sub(live);
        let host = self.room.bytes(Need::New)?.saturating_add(reusable);
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
        let mut rest = pages.as_slice();
        while let Some(&(first, _)) = rest.first() {
            let together = rest
                .iter()
                .zip(first..)
                .take(WRITE_BYTES / BLOCK_SIZE)
                .take_while(|((index, _), want)| index == want)
                .count();
            let (run, others) = rest.split_at(together);
            buf.clear();
            for (_, page) in run {
                buf.push(&page[..]);
            }
            self.unflushed.store(true, Ordering::SeqCst);
            file.write_direct(buf.as_slice(), Slot::new(self.id, first).offset())
                .map_err(|e| self.error("writing", e))?;
            let mut dirty = self.dirty.lock();
            for (index, page) in run {
                // A page that was replaced meanwhile is written next time.
                if dirty.get(index).is_some_and(|now| Arc::ptr_eq(now, page)) {
                    dirty.remove(index);
                    self.dirty_bytes.fetch_sub(BLOCK_BYTES, Ordering::Relaxed);
                    self.room.dirty_bytes.fetch_sub(BLOCK_BYTES, Ordering::Relaxed);
                }
            }
            rest = others;
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
        self.room.device.remove(&file_name(self.id)).map_err(|e| self.error("removing", e))
    }

    /// Bytes on the host.
    pub fn host_bytes(&self) -> u64 {
        u64::from(self.space.lock().host_slots()) * BLOCK_BYTES
    }
}

impl Drop for Delta {
    fn drop(&mut self) {
        self.room.dirty_bytes.fetch_sub(self.dirty_bytes(), Ordering::Relaxed);
    }
}
