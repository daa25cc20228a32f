//! The block map in RocksDB: the only importer of `rocksdb`.
//!
//! Assumptions about RocksDB, each of which the conformance suite or a crash
//! test covers: a `WriteBatch` is atomic; a write with `sync` is durable when
//! it returns; a reopened database holds exactly a prefix of the batches that
//! contains every synced one.
//!
//! RocksDB cannot tell the end of its WAL from damage in it: a damaged record
//! looks like one that was being written when the power went. So the WAL is
//! read before RocksDB sees it ([`super::log_file`]); what follows the last whole
//! record was never durable, or [`super::guard`] knows better: it has the number
//! of the last change that was made durable. If that is there, a torn end is cut
//! off, and RocksDB, in its strictest mode, must find the WAL whole. If not, the
//! map is refused, and stays as it was found.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBRecoveryMode, Direction, IteratorMode, Options,
    ReadOptions, WaitForCompactOptions, WriteBatch, WriteOptions, properties,
};

use super::guard::Guard;
use super::log_file;
use super::{Batch, Change, Map, Visit};
use crate::device::FileBudget;
use crate::error::{Error, Result};

/// Bytes of RocksDB's block cache, which holds the indexes and filters of the
/// tables too: they grow with the map, and this is all the memory they get. The
/// map is read only when a file is first used, so a small one is enough.
const BLOCK_CACHE_BYTES: usize = 16 << 20;
/// Bytes of one memtable, and how many there are at most.
const MEMTABLE_BYTES: usize = 8 << 20;
const MEMTABLES: i32 = 3;
/// Range deletions of one memtable. Every read after a write puts all of them in
/// order anew, so a memtable that has that many is written to a table, where they
/// stay in order.
const MEMTABLE_RANGE_DELETIONS: u32 = 256;
/// Bytes of one table: the map of 1 TiB of changed pages has some 300.
const TABLE_BYTES: u64 = 16 << 20;
/// Bytes of the tables of the first level below the newest ones. Deleted ranges
/// that cover as much are compacted at once.
const LEVEL_BYTES: u64 = 32 << 20;
/// So is a table if half of it is deletions, or half of the records in a window
/// of that many.
const DELETIONS_SHARE: f64 = 0.5;
const DELETIONS_WINDOW: usize = 1024;
/// Every table is written anew after that long at the latest: nothing that was
/// deleted stays for longer.
const TABLE_AGE_SECONDS: u64 = 30 * 24 * 3600;
/// Bytes after which RocksDB's list of tables and its own log begin anew. A store
/// can be open for years.
const MANIFEST_BYTES: usize = 4 << 20;
const INFO_LOG_BYTES: usize = 1 << 20;
/// Keys are visited one by one during a check, never skipped by a search.
const NEVER_SKIP: u64 = u64::MAX;
/// Where a check links the files that it reads, beside the map.
const CHECK_SUFFIX: &str = "check";

/// The real map.
pub struct RocksMap {
    dir: PathBuf,
    db: RwLock<Handle>,
    guard: Option<Guard>,
}

/// What the database takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Tables on the disk.
    pub tables: u64,
    /// Their bytes.
    pub table_bytes: u64,
    /// Records in them, of every version, deletions included.
    pub entries: u64,
    /// Deletions among them.
    pub deletions: u64,
    /// Those of them that delete a range.
    pub range_deletions: u64,
    /// Bytes of memory for what is not in tables yet.
    pub memtable_bytes: u64,
    /// Bytes of memory for blocks of tables, their indexes and filters.
    pub cache_bytes: u64,
    /// Bytes of memory for open tables.
    pub reader_bytes: u64,
}

enum Handle {
    Open(Box<DB>),
    /// RocksDB stopped after a full disk and could not be opened anew yet.
    Stopped,
    Closed,
}

impl RocksMap {
    /// Opens the database in `dir`; makes it if `create` is set.
    pub fn open(dir: &Path, create: bool) -> Result<Self> {
        let (db, guard) = open_db(dir, create)?;
        let db = RwLock::new(Handle::Open(Box::new(db)));
        Ok(RocksMap { dir: dir.to_path_buf(), db, guard: Some(guard) })
    }

    /// Opens the database to look at it, changing nothing: also one that
    /// [`RocksMap::open`] refuses. Commits fail.
    pub fn open_to_read(dir: &Path) -> Result<Self> {
        log_file::check_manifest(dir)?;
        let logs = log_file::logs(dir)?;
        if let Some((path, found)) = logs.iter().find(|(_, found)| found.is_torn()) {
            return Err(damaged_log(path, found.end));
        }
        let db = DB::open_for_read_only(&options(false)?, dir, false).map_err(map_error)?;
        Ok(RocksMap { dir: dir.to_path_buf(), db: RwLock::new(Handle::Open(Box::new(db))), guard: None })
    }

    /// Fails unless the database in `dir` holds every change that was durable.
    pub fn check_complete(dir: &Path) -> Result<()> {
        match Guard::read(dir)? {
            Some(durable) => check_sequence(dir, durable),
            None => Ok(()),
        }
    }

    /// What the database takes, when the compactions that are due are done.
    pub fn statistics(&self) -> Result<Statistics> {
        self.with(|db| {
            db.wait_for_compact(&WaitForCompactOptions::default()).map_err(map_error)?;
            let number = |name| Ok(db.property_int_value(name).map_err(map_error)?.unwrap_or(0));
            let tables = db.property_value(properties::AGGREGATED_TABLE_PROPERTIES).map_err(map_error)?;
            let tables = tables.unwrap_or_default();
            let sum = |name: &str| {
                let value =
                    tables.split("; ").find_map(|one| one.trim().strip_prefix(name)?.strip_prefix('='));
                let number = value.and_then(|text| text.parse().ok());
                number.ok_or_else(|| Error::Map(format!("RocksDB does not tell its number of {name}")))
            };
            let files = db.live_files().map_err(map_error)?;
            Ok(Statistics {
                tables: files.len() as u64,
                table_bytes: files.iter().map(|file| file.size as u64).sum(),
                entries: sum("# entries")?,
                deletions: sum("# deletions")?,
                range_deletions: sum("# range deletions")?,
                memtable_bytes: number(properties::SIZE_ALL_MEM_TABLES)?,
                cache_bytes: number(properties::BLOCK_CACHE_USAGE)?,
                reader_bytes: number(properties::ESTIMATE_TABLE_READERS_MEM)?,
            })
        })
    }

    fn with<T>(&self, work: impl FnOnce(&DB) -> Result<T>) -> Result<T> {
        loop {
            match &*self.db.read() {
                Handle::Open(db) => return work(db),
                Handle::Closed => return Err(Error::Map("it is closed".into())),
                Handle::Stopped => {}
            }
            self.reopen()?;
        }
    }

    /// RocksDB refuses all writes once one has failed. Opening it anew replays
    /// its WAL, which holds every batch that was acknowledged.
    fn reopen(&self) -> Result<()> {
        let mut db = self.db.write();
        if matches!(*db, Handle::Closed) {
            return Err(Error::Map("it is closed".into()));
        }
        *db = Handle::Stopped;
        *db = Handle::Open(Box::new(open_db(&self.dir, false)?.0));
        Ok(())
    }
}

fn options(create: bool) -> Result<Options> {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    // Its footers have a checksum, and checksums know the place they are for.
    table.set_format_version(6);
    table.set_bloom_filter(10.0, false);
    // In parts that come and go with the cache; only the first index of each
    // stays with its open table.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    // The binding has no call of its own for this one.
    let range_deletions = format!("memtable_max_range_deletions={MEMTABLE_RANGE_DELETIONS}");
    let mut options = options.get_options_from_string(range_deletions).map_err(map_error)?;
    options.create_if_missing(create);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(MEMTABLES);
    options.set_target_file_size_base(TABLE_BYTES);
    options.set_max_bytes_for_level_base(LEVEL_BYTES);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.add_compact_on_deletion_collector_factory(
        DELETIONS_WINDOW,
        DELETIONS_WINDOW / 2,
        DELETIONS_SHARE,
    );
    options.set_periodic_compaction_seconds(TABLE_AGE_SECONDS);
    options.set_max_open_files(FileBudget::of_process().map_files as i32);
    options.set_max_background_jobs(2);
    options.set_max_manifest_file_size(MANIFEST_BYTES);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    options.set_keep_log_file_num(4);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_paranoid_checks(true);
    options.set_wal_recovery_mode(DBRecoveryMode::AbsoluteConsistency);
    Ok(options)
}

fn open_db(dir: &Path, create: bool) -> Result<(DB, Guard)> {
    if !create {
        check_complete(dir)?;
    }
    let db = DB::open(&options(create)?, dir).map_err(map_error)?;
    let guard = Guard::open(dir, db.latest_sequence_number())?;
    Ok((db, guard))
}

fn damaged_log(path: &Path, at: u64) -> Error {
    Error::Damaged(format!("{}: the block map's log is damaged at byte {at}", path.display()))
}

/// Fails unless the database in `dir` holds every change that was durable. A
/// torn end of its log is cut off.
fn check_complete(dir: &Path) -> Result<()> {
    let durable = Guard::read(dir)?.unwrap_or(0);
    log_file::check_manifest(dir)?;
    let mut logs = log_file::logs(dir)?;
    let newest = logs.pop();
    if let Some((path, found)) = logs.iter().find(|(_, found)| found.is_torn()) {
        return Err(damaged_log(path, found.end));
    }
    let Some((path, found)) = newest else { return check_sequence(dir, durable) };
    if found.last_change >= durable {
        return if found.is_torn() { cut(&path, found.end) } else { Ok(()) };
    }
    if !found.is_torn() {
        return check_sequence(dir, durable);
    }
    // What was durable may be in the tables already, and the log just begun.
    // That is looked up in a copy without the torn end.
    let place = beside(dir);
    let looked = copy_for_check(dir, &place, &path, found.end).and_then(|()| check_sequence(&place, durable));
    remove_dir(&place)?;
    match looked {
        Ok(()) => cut(&path, found.end),
        Err(Error::Damaged(_)) => Err(damaged_log(&path, found.end)),
        Err(e) => Err(e),
    }
}

/// Cuts off what was never durable.
fn cut(log: &Path, end: u64) -> Result<()> {
    log::info!("{}: cutting off a torn end at byte {end}", log.display());
    let file = std::fs::File::options().write(true).open(log);
    file.and_then(|f| f.set_len(end).and_then(|()| f.sync_all()))
        .map_err(|e| Error::io(format!("cutting {}", log.display()), e))
}

/// The directory beside the map's that checks use.
fn beside(dir: &Path) -> PathBuf {
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    dir.with_file_name(format!("{name}.{CHECK_SUFFIX}"))
}

/// Links to the files of a database, and a copy of one log up to `end`.
fn copy_for_check(dir: &Path, place: &Path, log: &Path, end: u64) -> Result<()> {
    remove_dir(place)?;
    let copy = || -> std::io::Result<()> {
        std::fs::create_dir(place)?;
        for entry in std::fs::read_dir(dir)? {
            let (from, name) = entry.map(|e| (e.path(), e.file_name()))?;
            let text = name.to_string_lossy();
            if from == log {
                let mut whole = File::open(&from)?.take(end);
                std::io::copy(&mut whole, &mut File::create(place.join(&name))?)?;
            } else if text.ends_with(".log")
                || text.ends_with(".sst")
                || text.starts_with("MANIFEST-")
                || text == "CURRENT"
            {
                std::fs::hard_link(&from, place.join(&name))?;
            }
        }
        Ok(())
    };
    copy().map_err(|e| Error::io(format!("linking the block map to {}", place.display()), e))
}

/// Fails if the database in `dir` ends before change number `durable`.
fn check_sequence(dir: &Path, durable: u64) -> Result<()> {
    if durable == 0 {
        return Ok(());
    }
    let db = DB::open_for_read_only(&options(false)?, dir, false).map_err(map_error)?;
    let found = db.latest_sequence_number();
    if found < durable {
        return Err(Error::Damaged(format!(
            "the block map in {} ends at change {found}, but changes up to {durable} were durable: \
             its log is cut off or files of it are missing",
            dir.display()
        )));
    }
    Ok(())
}

fn map_error(e: rocksdb::Error) -> Error {
    let text = e.to_string();
    if text.contains("No space left") || text.contains("ENOSPC") { Error::NoSpace } else { Error::Map(text) }
}

impl Map for RocksMap {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.with(|db| db.get(key).map_err(map_error))
    }

    fn scan(&self, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        self.with(|db| {
            let mut read = ReadOptions::default();
            read.set_iterate_upper_bound(end.to_vec());
            read.set_verify_checksums(true);
            for record in db.iterator_opt(IteratorMode::From(start, Direction::Forward), read) {
                let (key, value) = record.map_err(map_error)?;
                if !visit(&key, &value)? {
                    break;
                }
            }
            Ok(())
        })
    }

    fn commit(&self, batch: &Batch) -> Result<()> {
        let write = || {
            let mut changes = WriteBatch::default();
            for change in &batch.changes {
                match change {
                    Change::Put(key, value) => changes.put(key, value),
                    Change::Delete(key) => changes.delete(key),
                    Change::DeleteRange(start, end) => changes.delete_range(start, end),
                }
            }
            let mut durable = WriteOptions::default();
            durable.set_sync(true);
            self.with(|db| {
                db.write_opt(changes, &durable).map_err(map_error)?;
                if let Some(guard) = &self.guard {
                    // What RocksDB has published is durable: every write is synced.
                    guard.advance(db.latest_sequence_number());
                }
                Ok(())
            })
        };
        match write() {
            // The disk may have room again: RocksDB itself stays stopped, so it
            // is opened anew and the batch tried once more. It is safe to write
            // a batch twice: it only sets and removes keys.
            Err(Error::NoSpace) => {
                self.reopen()?;
                write()
            }
            other => other,
        }
    }

    fn close(&self) -> Result<()> {
        match std::mem::replace(&mut *self.db.write(), Handle::Closed) {
            Handle::Open(db) => match &self.guard {
                Some(guard) => db.flush().map_err(map_error).and_then(|()| guard.flush()),
                None => Ok(()),
            },
            Handle::Stopped | Handle::Closed => Ok(()),
        }
    }

    fn verify(&self, alive: &mut dyn FnMut() -> bool) -> Result<Vec<String>> {
        let place = beside(&self.dir);
        if self.guard.is_none() {
            return Ok(verify_dir(&self.dir, alive));
        }
        // A link to every file, so that none goes away while it is read. One
        // that a crash has left goes first.
        remove_dir(&place)?;
        let linked =
            self.with(|db| Checkpoint::new(db).and_then(|c| c.create_checkpoint(&place)).map_err(map_error));
        let found = match linked {
            Ok(()) => verify_dir(&place, alive),
            Err(Error::NoSpace) => return Err(Error::NoSpace),
            Err(e) => vec![e.to_string()],
        };
        remove_dir(&place)?;
        Ok(found)
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", dir.display()), e))
        }
        _ => Ok(()),
    }
}

/// Reads all of a database past all caches, every version of every key, and
/// says which checksums do not match.
fn verify_dir(dir: &Path, alive: &mut dyn FnMut() -> bool) -> Vec<String> {
    let mut options = match options(false) {
        Ok(options) => options,
        Err(e) => return vec![format!("block map: {e}")],
    };
    options.set_use_direct_reads(true);
    options.set_max_sequential_skip_in_iterations(NEVER_SKIP);
    let db = match DB::open_for_read_only(&options, dir, false) {
        Ok(db) => db,
        Err(_) => {
            // Not every file system has direct reads.
            options.set_use_direct_reads(false);
            match DB::open_for_read_only(&options, dir, false) {
                Ok(db) => db,
                Err(e) => return vec![format!("block map: {e}")],
            }
        }
    };
    // File by file, so that one that is damaged does not hide another.
    let ranges: Vec<(Vec<u8>, Vec<u8>)> = match db.live_files() {
        Ok(files) => files.into_iter().filter_map(|f| Some((f.start_key?, f.end_key?))).collect(),
        Err(e) => return vec![format!("block map: {e}")],
    };
    let mut found = Vec::new();
    for (start, mut end) in ranges {
        end.push(0);
        let mut read = ReadOptions::default();
        read.set_verify_checksums(true);
        read.fill_cache(false);
        // Deprecated for its use in speeding reads up, which is not what it is for here.
        #[allow(deprecated)]
        read.set_ignore_range_deletions(true);
        read.set_iterate_upper_bound(end);
        for record in db.iterator_opt(IteratorMode::From(&start, Direction::Forward), read) {
            if let Err(e) = record {
                let text = format!("block map: {e}");
                if !found.contains(&text) {
                    found.push(text);
                }
                break;
            }
            if !alive() {
                return found;
            }
        }
    }
    found
}
