//! A map in memory that can crash: the twin of the real one for tests.

use std::sync::Arc;

use imbl::OrdMap;
use parking_lot::Mutex;

use super::{Batch, Change, Map, Visit};
use crate::device::power::{Point, Power};
use crate::error::{Error, Result};

type Records = OrdMap<Vec<u8>, Vec<u8>>;

/// Records in memory. Clones share them, so that a test can keep the contents
/// over a "crash" of the store that used them.
#[derive(Clone, Default)]
pub struct MemMap {
    inner: Arc<Mutex<Inner>>,
    power: Power,
}

#[derive(Default)]
struct Inner {
    records: Records,
    commits: u64,
    /// Commits that still succeed; then each one fails without any effect.
    budget: Option<u64>,
}

impl MemMap {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty map that loses power with devices.
    pub fn on(power: &Power) -> Self {
        MemMap { power: power.clone(), ..MemMap::default() }
    }

    /// Batches committed so far.
    pub fn commits(&self) -> u64 {
        self.inner.lock().commits
    }

    /// Lets `commits` more batches succeed and all later ones fail; `None`
    /// ends that.
    pub fn fail_after(&self, commits: Option<u64>) {
        self.inner.lock().budget = commits;
    }

    /// A separate map with the records as they are now: what a crash at this
    /// moment leaves.
    pub fn crash_image(&self) -> MemMap {
        self.crash_image_on(&Power::default())
    }

    /// The same, on a power supply of its own.
    pub fn crash_image_on(&self, power: &Power) -> MemMap {
        let records = self.inner.lock().records.clone();
        let inner = Inner { records, ..Inner::default() };
        MemMap { inner: Arc::new(Mutex::new(inner)), power: power.clone() }
    }
}

impl Map for MemMap {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.inner.lock().records.get(key).cloned())
    }

    fn scan(&self, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        if start >= end {
            return Ok(());
        }
        let found: Vec<_> = {
            let inner = self.inner.lock();
            inner.records.range(start.to_vec()..end.to_vec()).map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        for (key, value) in found {
            if !visit(&key, &value)? {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: &Batch) -> Result<()> {
        let changed = self.power.change(Point::Commit, || Ok(self.apply(batch)));
        changed.map_err(|e| Error::io("commit", e))?
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }

    /// Memory has no checksums.
    fn verify(&self, _alive: &mut dyn FnMut() -> bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

impl MemMap {
    fn apply(&self, batch: &Batch) -> Result<()> {
        let mut inner = self.inner.lock();
        if let Some(left) = &mut inner.budget {
            if *left == 0 {
                return Err(Error::Map("commit refused by the test".into()));
            }
            *left -= 1;
        }
        for change in &batch.changes {
            match change {
                Change::Put(key, value) => {
                    inner.records.insert(key.clone(), value.clone());
                }
                Change::Delete(key) => {
                    inner.records.remove(key);
                }
                Change::DeleteRange(start, end) if start >= end => {}
                Change::DeleteRange(start, end) => {
                    let keys: Vec<_> =
                        inner.records.range(start.clone()..end.clone()).map(|(key, _)| key.clone()).collect();
                    for key in keys {
                        inner.records.remove(&key);
                    }
                }
            }
        }
        inner.commits += 1;
        Ok(())
    }
}
