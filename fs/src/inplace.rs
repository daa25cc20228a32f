//! Files that are written in place: WAL segments and scratch.
//!
//! A WAL segment is overwritten block by block, and each commit waits for it;
//! out-of-place pages would cost a map commit each time. So its blocks lie in
//! host files, at fixed places, and a commit is one flush of one host file.
//! PostgreSQL guards the contents with its own record CRCs while it writes them;
//! a host file at rest is sealed ([`crate::seal`]).
//!
//! A fork shares the host files with its parent: from that moment neither may
//! write to them. The first write after it takes a new host file for the chunk,
//! which *lies over* what is there: a block of it counts once it was written.
//! Which blocks those are needs no map commit, because the new file was filled
//! beforehand with a pattern; after a crash, sectors that still hold the
//! pattern were never written ([`resolve_after_crash`]).
//!
//! Invariants:
//! - a host file of a WAL segment is written only by the fork whose head layer
//!   owns the extents that have it as a top, and only between two forks of it;
//!   scratch is not inherited by forks, so its host files stay its own;
//! - runs do not overlap; a block without a run is zeros;
//! - a host file is removed when no durable record and nobody alive refers to it;
//! - a sealed host file is what its seal says: the first write removes the seal,
//!   durably, before it changes a byte.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::block::{BLOCK_BYTES, BLOCK_SIZE, BlockNo};
use crate::class::Class;
use crate::delta::Delta;
use crate::delta::account::{Need, Room, Tally};
use crate::delta::flush::FlushState;
use crate::device::{Device, DeviceFile};
use crate::error::{Error, Result};
use crate::ids::LayerId;
use crate::map::schema::{ExtentsRecord, RunRecord, TopRecord};
use crate::seal::{self, Seals};

/// Blocks of a WAL file in one host file: 16 MiB, PostgreSQL's default segment.
pub const WAL_CHUNK_BLOCKS: u32 = 2048;
/// Blocks of a scratch file in one host file: 1 GiB.
const SCRATCH_CHUNK_BLOCKS: u32 = 131_072;
/// The unit in which the host's disk may tear a write.
const SECTOR: usize = 512;
/// Host space is taken in steps of this many bytes.
const GROW_BYTES: u64 = 1 << 20;
/// Spare patterned files kept ready.
const SPARES: usize = 2;

/// Blocks of a file of that class in one host file.
pub fn chunk_blocks(class: Class) -> u32 {
    match class {
        Class::Wal => WAL_CHUNK_BLOCKS,
        _ => SCRATCH_CHUNK_BLOCKS,
    }
}

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
        if let Err(e) = self.room.device.remove(&name(id)) {
            // It only takes space; the next start removes it.
            log::warn!("host file {} could not be removed: {e}", name(id));
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
        let page: Vec<u8> = self.pattern.iter().copied().cycle().take(64 * BLOCK_SIZE).collect();
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

    fn is_pattern(&self, sector: &[u8]) -> bool {
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
    fn read_unsealed(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file()?.read_at(buf, offset).map_err(|e| self.error("reading", e))
    }

    /// Its length in bytes.
    fn len(&self) -> Result<u64> {
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
    fn put(&self, data: &[u8], offset: u64) -> Result<()> {
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

    fn crcs(&self) -> Result<Vec<u32>> {
        let blocks = self.file()?.len().map_err(|e| self.error("measuring", e))?.div_ceil(BLOCK_BYTES);
        let mut crcs = Vec::with_capacity(blocks as usize);
        let mut buf = vec![0; 64 * BLOCK_SIZE];
        let mut at = 0;
        while at < blocks {
            let now = (blocks - at).min(64);
            let part = &mut buf[..now as usize * BLOCK_SIZE];
            self.read_unsealed(part, at * BLOCK_BYTES)?;
            crcs.extend(seal::crcs_of(part));
            at += now;
        }
        Ok(crcs)
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

/// Where a run of blocks lies.
#[derive(Clone)]
pub enum Source {
    /// In a host file.
    Host(Arc<HostFile>),
    /// In the base file, at the same offset.
    Base,
}

impl Source {
    fn id(&self) -> u64 {
        match self {
            Source::Host(host) => host.id,
            Source::Base => 0,
        }
    }
}

/// A run of blocks in one place.
#[derive(Clone)]
pub struct Run {
    start: BlockNo,
    len: u32,
    source: Source,
}

impl Run {
    fn end(&self) -> BlockNo {
        self.start + self.len
    }
}

/// A host file that is written to.
#[derive(Clone)]
struct Top {
    chunk: u32,
    host: Arc<HostFile>,
    patterned: u32,
}

/// Where the blocks of an in-place file lie.
#[derive(Clone)]
pub struct Extents {
    /// The layer that may write to `tops`.
    owner: LayerId,
    class: Class,
    chunk_blocks: u32,
    runs: Vec<Run>,
    tops: Vec<Top>,
}

impl Extents {
    /// No blocks yet.
    pub fn new(class: Class, owner: LayerId) -> Self {
        Extents { owner, class, chunk_blocks: chunk_blocks(class), runs: Vec::new(), tops: Vec::new() }
    }

    /// All of a base file.
    pub fn over_base(class: Class, owner: LayerId, blocks: u32) -> Self {
        let mut extents = Extents::new(class, owner);
        if blocks > 0 {
            extents.runs.push(Run { start: 0, len: blocks, source: Source::Base });
        }
        extents
    }

    /// From a stored record of `layer`.
    pub fn from_record(
        rec: &ExtentsRecord,
        class: Class,
        layer: LayerId,
        files: &Arc<HostFiles>,
    ) -> Result<Self> {
        let blocks = chunk_blocks(class);
        let (mut chunks, mut hosts) = (HashSet::new(), HashSet::new());
        for top in &rec.tops {
            let fits = top.chunk < u32::MAX / blocks && top.patterned <= blocks;
            if !fits || !chunks.insert(top.chunk) || !hosts.insert(top.host) {
                return Err(Error::Damaged("the host files of an in-place file cannot be".into()));
            }
        }
        let source = |host| if host == 0 { Source::Base } else { Source::Host(files.get(host)) };
        Ok(Extents {
            owner: layer,
            class,
            chunk_blocks: blocks,
            runs: rec
                .runs
                .iter()
                .map(|r| Run { start: r.start, len: r.len, source: source(r.host) })
                .collect(),
            tops: rec
                .tops
                .iter()
                .map(|t| Top { chunk: t.chunk, host: files.get(t.host), patterned: t.patterned })
                .collect(),
        })
    }

    /// As stored. Only the owner's record has its tops.
    pub fn to_record(&self, layer: LayerId) -> ExtentsRecord {
        let tops = if self.belongs_to(layer) { self.tops.as_slice() } else { &[] };
        ExtentsRecord {
            runs: self
                .runs
                .iter()
                .map(|r| RunRecord { start: r.start, len: r.len, host: r.source.id() })
                .collect(),
            tops: tops
                .iter()
                .map(|t| TopRecord { chunk: t.chunk, host: t.host.id, patterned: t.patterned })
                .collect(),
        }
    }

    /// Offset of a block within the host file of its chunk.
    fn offset_in(&self, source: &Source, block: BlockNo) -> u64 {
        match source {
            Source::Host(_) => u64::from(block % self.chunk_blocks) * BLOCK_BYTES,
            Source::Base => u64::from(block) * BLOCK_BYTES,
        }
    }

    fn run_at(&self, block: BlockNo) -> Option<&Run> {
        let i = self.runs.partition_point(|r| r.end() <= block);
        self.runs.get(i).filter(|r| r.start <= block)
    }

    /// Where `block` lies: the place, the byte offset there, and how many
    /// blocks from it on lie there together.
    pub fn find(&self, block: BlockNo) -> Option<(Source, u64, u32)> {
        let run = self.run_at(block)?;
        let in_chunk = self.chunk_blocks - block % self.chunk_blocks;
        let together = (run.end() - block).min(in_chunk);
        Some((run.source.clone(), self.offset_in(&run.source, block), together))
    }

    /// Whether `block` is read from the host file of `top`.
    fn lies_in(&self, top: &Top, block: BlockNo) -> bool {
        let source = self.run_at(block).map(|run| &run.source);
        matches!(source, Some(Source::Host(host)) if host.id == top.host.id)
    }

    /// The first block at or after `block` that has a place, or has none.
    pub fn next(&self, block: BlockNo, placed: bool) -> Option<BlockNo> {
        let mut at = block;
        for run in &self.runs {
            if run.end() <= at {
                continue;
            }
            if placed {
                return Some(run.start.max(at));
            }
            if run.start > at {
                return Some(at);
            }
            at = run.end();
        }
        (!placed).then_some(at)
    }

    /// Whether `layer` may write to the tops.
    fn belongs_to(&self, layer: LayerId) -> bool {
        self.owner == layer || self.class == Class::Scratch
    }

    /// The host file that `layer` writes `block`'s chunk to, if it has one.
    fn top(&self, layer: LayerId, block: BlockNo) -> Option<&Top> {
        let chunk = block / self.chunk_blocks;
        self.belongs_to(layer).then(|| self.tops.iter().find(|t| t.chunk == chunk)).flatten()
    }

    /// The host file and offset if `layer` may overwrite `block` where it is.
    pub fn in_place(&self, layer: LayerId, block: BlockNo) -> Option<(Arc<HostFile>, u64)> {
        let top = self.top(layer, block)?;
        match &self.run_at(block)?.source {
            Source::Host(host) if host.id == top.host.id => {
                Some((top.host.clone(), u64::from(block % self.chunk_blocks) * BLOCK_BYTES))
            }
            _ => None,
        }
    }

    /// The host file and offset to which `layer` writes `block`, if the chunk
    /// has a host file of the layer's own.
    pub fn writable(&self, layer: LayerId, block: BlockNo) -> Option<(Arc<HostFile>, u64)> {
        let top = self.top(layer, block)?;
        Some((top.host.clone(), u64::from(block % self.chunk_blocks) * BLOCK_BYTES))
    }

    /// How many blocks of `block`'s chunk, from its start, have something that
    /// a new host file would lie over.
    pub fn covered(&self, block: BlockNo) -> u32 {
        let first = block / self.chunk_blocks * self.chunk_blocks;
        let end = first + self.chunk_blocks;
        self.runs
            .iter()
            .filter(|r| r.start < end && r.end() > first)
            .map(|r| r.end().min(end) - first)
            .max()
            .unwrap_or(0)
    }

    /// Gives `block`'s chunk a host file of `layer`'s own, whose first
    /// `patterned` blocks hold the pattern; the rest of the chunk lies in it at
    /// once.
    pub fn add_top(&mut self, layer: LayerId, block: BlockNo, host: Arc<HostFile>, patterned: u32) {
        if !self.belongs_to(layer) {
            self.tops.clear();
        }
        self.owner = layer;
        let chunk = block / self.chunk_blocks;
        let first = chunk * self.chunk_blocks;
        self.tops.retain(|t| t.chunk != chunk);
        self.tops.push(Top { chunk, host: host.clone(), patterned });
        self.place(first + patterned, self.chunk_blocks - patterned, Source::Host(host));
    }

    /// Notes that `block` has been written to its chunk's host file.
    pub fn written(&mut self, layer: LayerId, block: BlockNo) {
        if let Some(top) = self.top(layer, block) {
            let host = Source::Host(top.host.clone());
            self.place(block, 1, host);
        }
    }

    fn place(&mut self, start: BlockNo, len: u32, source: Source) {
        if len == 0 {
            return;
        }
        self.cut(start, start + len);
        let i = self.runs.partition_point(|r| r.start < start);
        self.runs.insert(i, Run { start, len, source });
        self.join(i);
        if i > 0 {
            self.join(i - 1);
        }
    }

    /// Joins run `i` with the next one if they lie together.
    fn join(&mut self, i: usize) {
        if let [a, b, ..] = &self.runs[i..]
            && a.end() == b.start
            && a.source.id() == b.source.id()
        {
            self.runs[i].len += self.runs[i + 1].len;
            self.runs.remove(i + 1);
        }
    }

    /// Takes the blocks `start..end` out of all runs.
    fn cut(&mut self, start: BlockNo, end: BlockNo) {
        let mut kept = Vec::with_capacity(self.runs.len() + 1);
        for run in self.runs.drain(..) {
            if run.end() <= start || run.start >= end {
                kept.push(run);
                continue;
            }
            if run.start < start {
                kept.push(Run { start: run.start, len: start - run.start, source: run.source.clone() });
            }
            if run.end() > end {
                kept.push(Run { start: end, len: run.end() - end, source: run.source });
            }
        }
        self.runs = kept;
    }

    /// Cuts the file down to its first `blocks` blocks. A WAL segment's old
    /// blocks must not be taken for newly written ones after a crash, so the
    /// host files of the chunks cut into are written no more; scratch has no
    /// such promise and goes on with its host files.
    pub fn truncate(&mut self, blocks: u32) {
        self.cut(blocks, u32::MAX);
        if self.class == Class::Wal {
            let last = blocks / self.chunk_blocks;
            self.tops.retain(|t| t.chunk < last);
        }
    }

    /// The host files that `layer` may write to.
    pub fn tops_of(&self, layer: LayerId) -> Vec<Arc<HostFile>> {
        let tops = if self.belongs_to(layer) { self.tops.as_slice() } else { &[] };
        tops.iter().map(|t| t.host.clone()).collect()
    }

    /// The host files that are written to.
    pub fn written_hosts(&self) -> Vec<Arc<HostFile>> {
        self.tops.iter().map(|t| t.host.clone()).collect()
    }

    /// Bytes in host files that this file alone writes to.
    pub fn top_blocks(&self) -> u32 {
        self.tops.len() as u32 * self.chunk_blocks
    }
}

/// Reads a block into a page from where the extents have it.
pub type ReadBelow<'a> = dyn Fn(&Extents, BlockNo, &mut [u8]) -> Result<()> + 'a;

/// After a crash: finds the blocks of patterned host files that had been
/// written since the record was made, and completes those of which only some
/// sectors had. `below` reads a block as it was before. What was written beyond
/// `size`, the file's length in bytes as it is durable, is zeroed: it must not
/// show when the file grows again.
///
/// Returns whether blocks were found that no record knew of. The caller has the
/// tops flushed before the next commit.
pub fn resolve_after_crash(
    extents: &mut Extents,
    size: u64,
    files: &HostFiles,
    below: &ReadBelow<'_>,
) -> Result<bool> {
    let mut found = false;
    for top in extents.tops.clone() {
        // It was sealed when the record had all its blocks, and not written since.
        if files.seals.has_host(top.host.id) {
            continue;
        }
        let first = top.chunk * extents.chunk_blocks;
        for block in first..first + top.patterned {
            resolve_block(extents, &top, block, files, below, &mut found)?;
        }
        zero_beyond(extents, &top, size)?;
    }
    Ok(found)
}

/// One block of a patterned host file.
fn resolve_block(
    extents: &mut Extents,
    top: &Top,
    block: BlockNo,
    files: &HostFiles,
    below: &ReadBelow<'_>,
    found: &mut bool,
) -> Result<()> {
    let recorded = extents.lies_in(top, block);
    let offset = u64::from(block % extents.chunk_blocks) * BLOCK_BYTES;
    let mut page = [0; BLOCK_SIZE];
    top.host.read_unsealed(&mut page, offset)?;
    let unwritten = page.chunks_exact(SECTOR).filter(|s| files.is_pattern(s)).count();
    if unwritten == page.len() / SECTOR {
        return Ok(());
    }
    if unwritten > 0 {
        let mut old = [0; BLOCK_SIZE];
        if !recorded {
            below(extents, block, &mut old)?;
        }
        for (sector, was) in page.chunks_exact_mut(SECTOR).zip(old.chunks_exact(SECTOR)) {
            if files.is_pattern(sector) {
                sector.copy_from_slice(was);
            }
        }
        top.host.put(&page, offset)?;
    }
    if !recorded {
        extents.place(block, 1, Source::Host(top.host.clone()));
        *found = true;
    }
    Ok(())
}

/// Zeroes what a top holds beyond `size` bytes of the file.
fn zero_beyond(extents: &Extents, top: &Top, size: u64) -> Result<()> {
    let start = u64::from(top.chunk * extents.chunk_blocks) * BLOCK_BYTES;
    let chunk_end = start + u64::from(extents.chunk_blocks) * BLOCK_BYTES;
    let end = chunk_end.min(start + top.host.len()?);
    let mut at = size.max(start);
    let mut page = [0; BLOCK_SIZE];
    while at < end {
        let block = (at / BLOCK_BYTES) as BlockNo;
        let next = end.min((u64::from(block) + 1) * BLOCK_BYTES);
        let bytes = &mut page[..(next - at) as usize];
        if extents.lies_in(top, block) {
            top.host.read_unsealed(bytes, at - start)?;
            if bytes.iter().any(|b| *b != 0) {
                bytes.fill(0);
                top.host.put(bytes, at - start)?;
            }
        }
        at = next;
    }
    Ok(())
}
