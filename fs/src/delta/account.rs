//! What may still be taken of the host's disk: the store's low-water mark, and
//! each fork's quota.
//!
//! A fork's quota bounds what its own writes take: the slots in use in its
//! delta file, those that a fork made from it still needs included, and the
//! in-place files that it alone writes to. Both limits are looked at before a
//! write is acknowledged. What was acknowledged already is past them: it uses
//! the reserve.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::device::Device;
use crate::error::{Error, Result};

/// Host space that is left at least for the block map and for what must never
/// fail: commits, renames, removals.
pub const RESERVE_BYTES: u64 = 64 << 20;

/// Without a quota.
const NO_QUOTA: u64 = u64::MAX;

/// Why space is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// For a write that can still be refused.
    New,
    /// For one that was acknowledged.
    Acknowledged,
}

/// A device, and how much of its free space must stay free.
pub struct Room {
    /// The device.
    pub device: Arc<dyn Device>,
    keep_bytes: u64,
    /// Bytes of pages of all delta files that are not written yet.
    pub dirty_bytes: AtomicU64,
    /// Bytes given back to the host since the store was opened.
    pub given_back: AtomicU64,
    /// Whether the host can take the space of a part of a file.
    pub can_punch: AtomicBool,
}

impl Room {
    /// Keeps `keep_bytes` of the device free, and never less than
    /// [`RESERVE_BYTES`].
    pub fn new(device: Arc<dyn Device>, keep_bytes: u64) -> Arc<Room> {
        Arc::new(Room {
            device,
            keep_bytes: keep_bytes.max(RESERVE_BYTES),
            dirty_bytes: AtomicU64::new(0),
            given_back: AtomicU64::new(0),
            can_punch: AtomicBool::new(true),
        })
    }

    /// Bytes that can be taken.
    pub fn bytes(&self, need: Need) -> Result<u64> {
        let free = self.device.free_bytes().map_err(|e| Error::io("free space of the store", e))?;
        Ok(match need {
            Need::New => free.saturating_sub(self.keep_bytes),
            Need::Acknowledged => free,
        })
    }
}

/// Bytes of in-place files, shared by all who have to count there.
pub type Tally = Arc<AtomicU64>;

/// A fork's quota, and what its in-place files take of it.
#[derive(Debug)]
pub struct Account {
    quota: AtomicU64,
    in_place: Mutex<Tally>,
}

impl Default for Account {
    fn default() -> Self {
        Account { quota: AtomicU64::new(NO_QUOTA), in_place: Mutex::default() }
    }
}

impl Account {
    /// The quota in bytes.
    pub fn quota(&self) -> Option<u64> {
        Some(self.quota.load(Ordering::SeqCst)).filter(|&q| q != NO_QUOTA)
    }

    /// Sets or lifts the quota. What is over it stays.
    pub fn set_quota(&self, quota: Option<u64>) {
        self.quota.store(quota.unwrap_or(NO_QUOTA), Ordering::SeqCst);
    }

    /// Bytes of the in-place files that count.
    pub fn in_place_bytes(&self) -> u64 {
        self.in_place.lock().load(Ordering::SeqCst)
    }

    /// Where the fork's in-place files are counted now.
    pub fn tally(&self) -> Tally {
        self.in_place.lock().clone()
    }

    /// After a fork the in-place files so far are shared: they count for
    /// neither side.
    pub fn forget_in_place(&self) {
        *self.in_place.lock() = Tally::default();
    }

    /// Bytes that the quota leaves beside `page_bytes` in the delta file.
    pub fn left(&self, page_bytes: u64, need: Need) -> u64 {
        match (self.quota(), need) {
            (Some(quota), Need::New) => {
                quota.saturating_sub(page_bytes.saturating_add(self.in_place_bytes()))
            }
            _ => u64::MAX,
        }
    }
}
