//! A block map that counts what is asked of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use pgcowfs::Error;
use pgcowfs::map::mem::MemMap;
use pgcowfs::map::{Batch, Map, Visit};

use crate::mem::Parts3;

/// A map that counts how often it is asked, and the records that it shows.
#[derive(Clone)]
pub struct Counting {
    map: MemMap,
    lookups: Arc<AtomicU64>,
    records: Arc<AtomicU64>,
}

impl Counting {
    pub fn of(parts: &Parts3) -> Counting {
        Counting { map: parts.map.clone(), lookups: Arc::default(), records: Arc::default() }
    }

    /// Lookups and records since the last call.
    pub fn taken(&self) -> (u64, u64) {
        (self.lookups.swap(0, SeqCst), self.records.swap(0, SeqCst))
    }
}

impl Map for Counting {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.lookups.fetch_add(1, SeqCst);
        self.records.fetch_add(1, SeqCst);
        self.map.get(key)
    }
    fn scan(&self, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<(), Error> {
        self.lookups.fetch_add(1, SeqCst);
        self.map.scan(start, end, &mut |k, v| {
            self.records.fetch_add(1, SeqCst);
            visit(k, v)
        })
    }
    fn commit(&self, batch: &Batch) -> Result<(), Error> {
        self.map.commit(batch)
    }
    fn close(&self) -> Result<(), Error> {
        self.map.close()
    }
    fn verify(&self, alive: &mut dyn FnMut() -> bool) -> Result<Vec<String>, Error> {
        self.map.verify(alive)
    }
}
