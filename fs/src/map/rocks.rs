//! The block map in RocksDB: the only importer of `rocksdb`.
//!
//! Assumptions about RocksDB, each of which the conformance suite or a crash
//! test covers: a `WriteBatch` is atomic; a write with `sync` is durable when
//! it returns; a reopened database holds exactly a prefix of the batches that
//! contains every synced one.
//!
//! Its WAL is recovered up to the first record that is not whole. A batch that
//! was being written when the power went can have its length on the disk, and
//! zeros or old bytes for some of its pages: the mode that only forgives a log
//! that is too short refuses to open then. The price is that damage to a record
//! is taken for the log's end as well.

use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBRecoveryMode, IteratorMode, Options, ReadOptions, WriteBatch,
    WriteOptions,
};

use super::{Batch, Change, Map, Visit};
use crate::device::FileBudget;
use crate::error::{Error, Result};

/// Bytes of RocksDB's block cache. The map is read from RocksDB only when a
/// file is first opened, so a small one is enough.
const BLOCK_CACHE_BYTES: usize = 16 << 20;
/// Bytes of one memtable.
const MEMTABLE_BYTES: usize = 16 << 20;

/// The real map.
pub struct RocksMap {
    dir: PathBuf,
    db: RwLock<Handle>,
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
        let db = open_db(dir, create)?;
        Ok(RocksMap { dir: dir.to_path_buf(), db: RwLock::new(Handle::Open(Box::new(db))) })
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
        *db = Handle::Open(Box::new(open_db(&self.dir, false)?));
        Ok(())
    }
}

fn options(create: bool) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    table.set_format_version(5);
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.create_if_missing(create);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_max_open_files(FileBudget::of_process().map_files as i32);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(4);
    options.set_max_total_wal_size(64 << 20);
    options.set_paranoid_checks(true);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options
}

fn open_db(dir: &Path, create: bool) -> Result<DB> {
    DB::open(&options(create), dir).map_err(map_error)
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
            for record in db.iterator_opt(IteratorMode::From(start, rocksdb::Direction::Forward), read) {
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
            self.with(|db| db.write_opt(changes, &durable).map_err(map_error))
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
            Handle::Open(db) => db.flush().map_err(map_error),
            Handle::Stopped | Handle::Closed => Ok(()),
        }
    }
}
