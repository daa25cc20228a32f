//! The host files of in-place data: by whom they are referred to, their space,
//! and the spare ones that are filled with the pattern.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::{SECTOR, WAL_CHUNK_BLOCKS};
use crate::block::{BLOCK_BYTES, BLOCK_SIZE};
use crate::delta::Delta;
use crate::delta::account::{Need, Room, Tally};
use crate::delta::flush::FlushState;
use crate::device::{Device, DeviceFile};
use crate::error::{Error, Result};
use crate::seal::{self, Seals};

/// Host space is taken in steps of this many bytes.
const GROW_BYTES: u64 = 1 << 20;
/// Spare patterned files kept ready.
const SPARES: usize = 2;

/// All host files of in-place data.
pub struct HostFiles {
    room: Arc<Room>,
    next: Arc<dyn Fn() -> Result<u64> + Send + Sync>,
    table: Mutex<HashMap<u64, Known>>,
    /// Patterned files that wait for a use.
    spares: Mutex<Vec<Arc<HostFile>>>,
    refill: Mutex<Refill>,
    /// Files were made whose names are not durable yet.
    new_names: Mutex<bool>,
    pattern: [u8; SECTOR],
    /// CRCs of those at rest.
    pub seals: Arc<Seals>,
    /// Counts writes, to tell which file was written last.
    clock: AtomicU64,
}

/// The thread that makes spare files.
#[derive(Default)]
struct Refill {
    thread: Option<JoinHandle<()>>,
    /// The store is being closed: no more of them.
    closed: bool,
}

#[derive(Default)]
struct Known {
    durable: u32,
    live: Weak<HostFile>,
}

/// One host file; the last reference to an unrecorded one removes it.
pub struct HostFile {
    /// Its number; the name is the number in decimal.
    pub id: u64,
    owner: Weak<HostFiles>,
    file: OnceLock<Arc<dyn DeviceFile>>,
    unflushed: AtomicBool,
    flushing: FlushState,
    /// Bytes from the start that have space on the host.
    room: AtomicU64,
    /// Held while it grows: where its bytes are counted.
    counted: Mutex<Option<Tally>>,
    /// Held by each write; alone by the one who seals or removes the seal.
    gate: RwLock<()>,
    written: Mutex<Written>,
}

/// When a host file was written.
struct Written {
    /// Number of the last write among all of the store; 0 for none.
    number: u64,
    at: Instant,
    /// It will be written again before anybody reads it, as a segment that
    /// PostgreSQL has recycled: not worth a seal.
    awaits_writes: bool,
}

fn name(id: u64) -> String {
    format!("{id:012}")
}

impl HostFiles {
    /// The host files on `room`'s device. `store_id` makes the pattern; `next` gives
    /// unused numbers.
    pub fn new(
        room: Arc<Room>,
        store_id: [u8; 16],
        next: Arc<dyn Fn() -> Result<u64> + Send + Sync>,
        seals: Arc<Seals>,
    ) -> Arc<Self> {
        let mut pattern = [0; SECTOR];
        for part in pattern.chunks_exact_mut(16) {
            part.copy_from_slice(&store_id);
        }
        Arc::new(HostFiles {
            room,
            next,
            table: Mutex::default(),
            spares: Mutex::default(),
            refill: Mutex::default(),
            new_names: Mutex::new(false),
            pattern,
            seals,
            clock: AtomicU64::new(0),
        })
    }

    /// Bytes given back to the host since the store was opened.
    pub fn given_back(&self) -> u64 {
        self.room.given_back.load(Ordering::Relaxed)
    }

    /// Where they lie.
    pub fn device(&self) -> &dyn Device {
        &*self.room.device
    }

    /// Counts the durable records that refer to each file: `added` more,
    /// `removed` fewer. Files that nobody refers to any more are removed.
    pub fn count_durable(&self, added: &[u64], removed: &[u64]) {
        let mut gone = Vec::new();
        {
            let mut table = self.table.lock();
            for &id in added {
                table.entry(id).or_default().durable += 1;
            }
            for &id in removed {
                if let Some(known) = table.get_mut(&id) {
                    known.durable = known.durable.saturating_sub(1);
                    if known.durable == 0 && known.live.strong_count() == 0 {
                        table.remove(&id);
                        gone.push(id);
                    }
                }
            }
        }
        for id in gone {
            self.remove(id);
        }
    }

    /// Those of `files` that no durable record will refer to after `removed`
    /// references fewer and `added` more.
    pub fn unreferenced_after(&self, added: &[u64], removed: &[u64]) -> Vec<u64> {
        let mut ids = removed.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let table = self.table.lock();
        let count = |list: &[u64], id| list.iter().filter(|&&i| i == id).count() as u32;
        ids.retain(|&id| {
            let durable = table.get(&id).map_or(0, |known| known.durable);
            durable + count(added, id) <= count(removed, id)
        });
        ids
    }

    /// Whether a durable record refers to the file.
    pub fn is_recorded(&self, id: u64) -> bool {
        self.table.lock().get(&id).is_some_and(|k| k.durable > 0)
    }

    /// Whether anybody refers to the file, in a record or in memory.
    pub fn is_known(&self, id: u64) -> bool {
        self.table.lock().get(&id).is_some_and(|k| k.durable > 0 || k.live.strong_count() > 0)
    }

    fn remove(&self, id: u64) {
        match self.room.device.remove(&name(id)) {
            Ok(bytes) => drop(self.room.given_back.fetch_add(bytes, Ordering::Relaxed)),
            // It only takes space; the next start removes it.
            Err(e) => log::warn!("host file {} could not be removed: {e}", name(id)),
        }
    }

    /// Removes the files that no durable record refers to, when a store opens.
    pub fn remove_unrecorded(&self) -> Result<()> {
        let files = self.room.device.list().map_err(|e| Error::io("in-place directory", e))?;
        let table = self.table.lock();
        for file in files {
            let known = file.parse().is_ok_and(|id: u64| table.contains_key(&id));
            if !known {
                self.room.device.remove(&file).map_err(|e| Error::io(format!("removing {file}"), e))?;
            }
        }
        Ok(())
    }

    /// The file of that number, which a durable record names.
    pub fn get(self: &Arc<Self>, id: u64) -> Arc<HostFile> {
        let mut table = self.table.lock();
        let known = table.entry(id).or_default();
        known.live.upgrade().unwrap_or_else(|| {
            let file = HostFile::new(id, self, true);
            known.live = Arc::downgrade(&file);
            file
        })
    }

    /// Makes the names of all files durable, before a record refers to them.
    pub fn flush_names(&self) -> Result<()> {
        // Held over the flush: a commit that finds nothing to do here must know
        // that its names are durable, not on their way.
        let mut new_names = self.new_names.lock();
        if *new_names {
            self.room.device.flush_names().map_err(|e| Error::io("in-place directory", e))?;
            *new_names = false;
        }
        Ok(())
    }

    /// A new, empty file.
    pub fn create(self: &Arc<Self>) -> Result<Arc<HostFile>> {
        let id = (self.next)()?;
        let file = self
            .room
            .device
            .open(&name(id), true)
            .map_err(|e| Error::io(format!("making host file {}", name(id)), e))?;
        *self.new_names.lock() = true;
        let host = HostFile::new(id, self, false);
        // The cell is new: nobody can have set it.
        let _ = host.file.set(file);
        self.table.lock().entry(id).or_default().live = Arc::downgrade(&host);
        Ok(host)
    }

    /// A new file whose first `blocks` blocks hold the pattern, durably, for
    /// the fork that writes to `delta`.
    pub fn create_patterned(
        self: &Arc<Self>,
        blocks: u32,
        delta: &Delta,
        need: Need,
    ) -> Result<Arc<HostFile>> {
        let spare = if blocks == WAL_CHUNK_BLOCKS { self.spares.lock().pop() } else { None };
        let Some(spare) = spare else {
            return self.make_patterned(blocks, Some((delta, need)));
        };
        match spare.count_for(delta, need) {
            Ok(()) => Ok(spare),
            Err(e) => {
                self.spares.lock().push(spare);
                Err(e)
            }
        }
    }

    fn make_patterned(self: &Arc<Self>, blocks: u32, whose: Option<(&Delta, Need)>) -> Result<Arc<HostFile>> {
        let host = self.create()?;
        let page = self.pattern.repeat(64 * BLOCK_SIZE / SECTOR);
        // All of it before the first byte: a refusal costs nothing then.
        host.reserve(u64::from(blocks) * BLOCK_BYTES, whose)?;
        let mut at = 0;
        while at < blocks {
            let now = (blocks - at).min(64);
            host.put(&page[..now as usize * BLOCK_SIZE], u64::from(at) * BLOCK_BYTES)?;
            at += now;
        }
        host.flush()?;
        Ok(host)
    }

    /// Makes spare files ready in the background, after a fork has shown that
    /// they are needed.
    pub fn refill_spares(self: &Arc<Self>) {
        let mut refill = self.refill.lock();
        let busy = refill.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if busy || refill.closed || self.spares.lock().len() >= SPARES {
            return;
        }
        let files = self.clone();
        refill.thread = Some(std::thread::spawn(move || {
            while files.spares.lock().len() < SPARES {
                match files.make_patterned(WAL_CHUNK_BLOCKS, None) {
                    Ok(spare) => files.spares.lock().push(spare),
                    // Without a spare the next fork's first commit makes one.
                    Err(e) => {
                        log::info!("no spare WAL file: {e}");
                        break;
                    }
                }
            }
        }));
    }

    /// Drops the spare files, and makes no more. When it returns, nobody writes
    /// to a file that the next one to open the store might give its number to.
    pub fn close(&self) {
        let thread = {
            let mut refill = self.refill.lock();
            refill.closed = true;
            refill.thread.take()
        };
        if thread.is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that makes spare WAL files has panicked");
        }
        self.spares.lock().clear();
    }

    pub(super) fn is_pattern(&self, sector: &[u8]) -> bool {
        sector == self.pattern
    }
}

impl HostFile {
    /// `written`: an earlier daemon may have written to it, and not flushed.
    fn new(id: u64, owner: &Arc<HostFiles>, written: bool) -> Arc<Self> {
        Arc::new(HostFile {
            id,
            owner: Arc::downgrade(owner),
            file: OnceLock::new(),
            unflushed: AtomicBool::new(written),
            flushing: FlushState::default(),
            room: AtomicU64::new(0),
            counted: Mutex::default(),
            gate: RwLock::new(()),
            written: Mutex::new(Written { number: 0, at: Instant::now(), awaits_writes: false }),
        })
    }

    fn file(&self) -> Result<&Arc<dyn DeviceFile>> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let owner = self.owner.upgrade().ok_or(Error::Stale)?;
        let file = owner
            .room
            .device
            .open(&name(self.id), false)
            .map_err(|e| Error::io(format!("opening host file {}", name(self.id)), e))?;
        Ok(self.file.get_or_init(|| file))
    }

    /// Its name in the store's in-place directory.
    pub fn name(&self) -> String {
        name(self.id)
    }

    fn error(&self, verb: &str, e: std::io::Error) -> Error {
        Error::io(format!("{verb} host file {}", name(self.id)), e)
    }

    /// Fills `buf` from `offset`, both multiples of a block; zeros beyond the
    /// end. Returns the first block of `buf` that does not match the file's seal.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<Option<u32>> {
        let owner = self.owner.upgrade().ok_or(Error::Stale)?;
        loop {
            let removals = owner.seals.removals();
            let Some(crcs) = owner.seals.host(self.id)? else {
                self.read_unsealed(buf, offset)?;
                return Ok(None);
            };
            self.read_unsealed(buf, offset)?;
            let bad = seal::mismatch(&crcs, (offset / BLOCK_BYTES) as usize, buf);
            // Who writes removes the seal first.
            if bad.is_none() || owner.seals.is_whole(self.id) && owner.seals.removals() == removals {
                return Ok(bad);
            }
        }
    }

    /// Fills `buf` from `offset` without a look at the seal.
    pub(super) fn read_unsealed(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file()?.read_at(buf, offset).map_err(|e| self.error("reading", e))
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> Result<u64> {
        self.file()?.len().map_err(|e| self.error("measuring", e))
    }

    /// Writes for the fork that writes to `delta`; refused before anything is
    /// written if there is no room for that. The first write to a sealed file
    /// costs a commit of the block map.
    pub fn write(&self, data: &[u8], offset: u64, delta: &Delta, need: Need) -> Result<()> {
        self.reserve(offset + data.len() as u64, Some((delta, need)))?;
        self.put(data, offset)
    }

    /// Writes where there is space already.
    pub(super) fn put(&self, data: &[u8], offset: u64) -> Result<()> {
        let owner = self.owner.upgrade().ok_or(Error::Stale)?;
        let _gate = loop {
            let gate = self.gate.read();
            if !owner.seals.has_host(self.id) {
                break gate;
            }
            drop(gate);
            let _alone = self.gate.write();
            if owner.seals.has_host(self.id) {
                owner.seals.unseal_host(self.id)?;
            }
        };
        {
            let mut written = self.written.lock();
            written.number = owner.clock.fetch_add(1, Ordering::Relaxed) + 1;
            written.at = Instant::now();
            written.awaits_writes = false;
        }
        self.unflushed.store(true, Ordering::SeqCst);
        self.file()?.write_at(data, offset).map_err(|e| self.error("writing", e))
    }

    /// Notes that PostgreSQL has kept the file for later: what is in it now is
    /// read by nobody.
    pub fn await_writes(&self) {
        self.written.lock().awaits_writes = true;
    }

    /// The number of the last write to it; of two files, the one with the
    /// greater number was written later.
    pub fn last_write(&self) -> u64 {
        self.written.lock().number
    }

    /// Whether nobody has written to it for that long, and it holds something
    /// that may be read.
    pub fn is_at_rest(&self, idle: Duration) -> bool {
        let written = self.written.lock();
        !written.awaits_writes && written.at.elapsed() >= idle
    }

    /// Gives the file its seal. Returns false if somebody has written to it
    /// meanwhile. `still` is asked, with all writers held, whether it is right.
    pub fn seal(&self, still: &dyn Fn() -> bool) -> Result<bool> {
        let owner = self.owner.upgrade().ok_or(Error::Stale)?;
        let before = self.last_write();
        // The seal must not reach the disk before what it seals, also if that
        // was written by a daemon that died before it flushed it.
        self.unflushed.store(true, Ordering::SeqCst);
        self.flush()?;
        let crcs = self.crcs()?;
        let _alone = self.gate.write();
        if self.last_write() != before || owner.seals.has_host(self.id) || !still() {
            return Ok(false);
        }
        owner.seals.seal_host(self.id, &crcs)?;
        Ok(true)
    }

    /// Gives back the space of the blocks that hold nothing but the pattern, of a file
    /// that nobody writes to any more: no run has such a block, for it was never
    /// written, and after a crash nobody looks for the pattern but in files that are
    /// written to.
    pub fn trim(&self) -> Result<()> {
        let owner = self.owner.upgrade().ok_or(Error::Stale)?;
        let before = self.last_write();
        let mut bare: Vec<Range<u64>> = Vec::new();
        self.each_part(|offset, part| {
            for (block, page) in (0..).zip(part.chunks_exact(BLOCK_SIZE)) {
                if !page.chunks_exact(SECTOR).all(|sector| owner.is_pattern(sector)) {
                    continue;
                }
                let start = offset + block * BLOCK_BYTES;
                match bare.last_mut() {
                    Some(last) if last.end == start => last.end += BLOCK_BYTES,
                    _ => bare.push(start..start + BLOCK_BYTES),
                }
            }
        })?;
        let _alone = self.gate.write();
        if self.last_write() != before || owner.seals.has_host(self.id) {
            return Ok(());
        }
        for range in bare {
            let len = range.end - range.start;
            self.unflushed.store(true, Ordering::SeqCst);
            self.file()?.punch(range.start, len).map_err(|e| self.error("giving back space of", e))?;
            owner.room.given_back.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    }

    fn crcs(&self) -> Result<Vec<u32>> {
        let mut crcs = Vec::new();
        self.each_part(|_, part| crcs.extend(seal::crcs_of(part)))?;
        Ok(crcs)
    }

    /// Reads all of the file in parts of whole blocks; `see` gets the offset of each.
    fn each_part(&self, mut see: impl FnMut(u64, &[u8])) -> Result<()> {
        let blocks = self.len()?.div_ceil(BLOCK_BYTES);
        let mut buf = vec![0; 64 * BLOCK_SIZE];
        let mut at = 0;
        while at < blocks {
            let now = (blocks - at).min(64);
            let part = &mut buf[..now as usize * BLOCK_SIZE];
            self.read_unsealed(part, at * BLOCK_BYTES)?;
            see(at * BLOCK_BYTES, part);
            at += now;
        }
        Ok(())
    }

    /// Takes host space up to `end`, and counts it for a fork.
    fn reserve(&self, end: u64, whose: Option<(&Delta, Need)>) -> Result<()> {
        if end <= self.room.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut counted = self.counted.lock();
        let have = self.measure()?;
        if end <= have {
            return Ok(());
        }
        let more = (end - have).next_multiple_of(GROW_BYTES);
        let owner = self.owner.upgrade().ok_or(Error::Stale)?;
        let need = whose.map_or(Need::New, |(_, need)| need);
        if owner.room.bytes(need)? < more {
            return Err(Error::NoSpace);
        }
        if let Some((delta, need)) = whose {
            delta.charge(&mut counted, have, more, need)?;
        }
        // The new length is to be durable with what is written there, or sealed.
        self.unflushed.store(true, Ordering::SeqCst);
        if let Err(e) = self.file()?.allocate(have, more) {
            if let Some(tally) = &*counted {
                tally.fetch_sub(more, Ordering::SeqCst);
            }
            return Err(self.error("growing", e));
        }
        self.room.store(have + more, Ordering::Release);
        Ok(())
    }

    /// Bytes that have space on the host.
    fn measure(&self) -> Result<u64> {
        let have = self.len()?;
        self.room.store(have, Ordering::Release);
        Ok(have)
    }

    /// Counts the whole file for the fork that writes to `delta`.
    pub fn count_for(&self, delta: &Delta, need: Need) -> Result<()> {
        let mut counted = self.counted.lock();
        let have = self.measure()?;
        delta.charge(&mut counted, have, 0, need)
    }

    /// Makes everything written durable.
    pub fn flush(&self) -> Result<()> {
        // Not `Error::io`: whatever a flush reports, what was written may be
        // lost, also when the host calls it a full disk.
        self.flushing.flush(&self.unflushed, || {
            let context = || format!("flushing host file {}", name(self.id));
            self.file()?.flush().map_err(|source| Error::Io { context: context(), source })
        })
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        if let Some(tally) = self.counted.get_mut() {
            tally.fetch_sub(self.room.load(Ordering::Acquire), Ordering::SeqCst);
        }
        let Some(owner) = self.owner.upgrade() else { return };
        let gone = {
            let mut table = owner.table.lock();
            match table.get(&self.id) {
                // Another object may stand for the file by now.
                Some(known) if known.durable == 0 && known.live.strong_count() == 0 => {
                    table.remove(&self.id);
                    true
                }
                _ => false,
            }
        };
        if gone {
            owner.remove(self.id);
        }
    }
}
