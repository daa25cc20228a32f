//! The block map's durable image: ordered keys and values, changed in atomic
//! batches.
//!
//! [`Map`] is all that the rest of the core knows of it. `rocks::RocksMap`
//! keeps it in RocksDB; [`mem::MemMap`] keeps it in memory and can crash. Both
//! pass the same conformance suite.

#[cfg(test)]
mod golden;
pub mod guard;
pub mod log_file;
pub mod mem;
#[cfg(feature = "rocks")]
pub mod rocks;
pub mod schema;

use crate::error::Result;

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets a key.
    Put(Vec<u8>, Vec<u8>),
    /// Removes a key; nothing if it is not there.
    Delete(Vec<u8>),
    /// Removes all keys from the first (inclusive) to the second (exclusive).
    DeleteRange(Vec<u8>, Vec<u8>),
}

/// Changes that become visible and durable together, in order.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The changes.
    pub changes: Vec<Change>,
}

impl Batch {
    /// Sets a key to a value.
    pub fn put(&mut self, record: (Vec<u8>, Vec<u8>)) {
        self.changes.push(Change::Put(record.0, record.1));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.changes.push(Change::Delete(key));
    }

    /// Removes the keys from `start` to `end`, the latter excluded.
    pub fn delete_range(&mut self, start: Vec<u8>, end: Vec<u8>) {
        self.changes.push(Change::DeleteRange(start, end));
    }

    /// Removes keys that are in order and have no others between them.
    pub fn delete_all(&mut self, keys: &[Vec<u8>]) {
        match keys {
            [first, .., last] if keys.len() >= RANGE_MIN => {
                // The first key that comes after the last.
                let end = [last.as_slice(), &[0]].concat();
                self.delete_range(first.clone(), end);
            }
            keys => keys.iter().for_each(|key| self.delete(key.clone())),
        }
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> u64 {
        self.changes
            .iter()
            .map(|change| match change {
                Change::Put(a, b) | Change::DeleteRange(a, b) => a.len() + b.len(),
                Change::Delete(a) => a.len(),
            })
            .sum::<usize>() as u64
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// What a scan does with a record: `Ok(true)` to go on, `Ok(false)` to stop.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<bool> + 'a;

/// An ordered map with atomic, durable batches.
pub trait Map: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Visits all records with `start <= key < end` in key order, as they are
    /// at one instant: what is committed meanwhile is not seen.
    fn scan(&self, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<()>;
    /// Applies a batch, wholly or not at all. When it returns, the batch is
    /// durable. [`crate::Error::NoSpace`] leaves the map as it was and usable.
    fn commit(&self, batch: &Batch) -> Result<()>;
    /// Writes everything to its final place, for a clean end.
    fn close(&self) -> Result<()>;
    /// Reads everything that is stored, past all caches, against its checksums;
    /// what is damaged, in words. Stops when `alive` says no.
    fn verify(&self, alive: &mut dyn FnMut() -> bool) -> Result<Vec<String>>;
}

/// From this many on, neighbours are deleted as a range. Fewer one by one: after
/// each range that is deleted, RocksDB's next read looks at all those that were
/// deleted since its tables were last written, and that is seldom.
const RANGE_MIN: usize = 256;

/// Adds the deletion of all records from `start` to `end`, the latter excluded.
/// Nobody adds any meanwhile.
pub fn delete_between(map: &dyn Map, start: Vec<u8>, end: Vec<u8>, batch: &mut Batch) -> Result<()> {
    let mut keys = Vec::new();
    map.scan(&start, &end, &mut |key, _| {
        keys.push(key.to_vec());
        Ok(keys.len() < RANGE_MIN)
    })?;
    match keys.len() {
        RANGE_MIN.. => batch.delete_range(start, end),
        _ => keys.into_iter().for_each(|key| batch.delete(key)),
    }
    Ok(())
}

/// The same for those with that prefix.
pub fn delete_prefix(map: &dyn Map, prefix: Vec<u8>, batch: &mut Batch) -> Result<()> {
    let end = prefix_end(&prefix);
    delete_between(map, prefix, end, batch)
}

/// The first key that comes after this one.
pub fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// The smallest key above all keys that begin with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}
