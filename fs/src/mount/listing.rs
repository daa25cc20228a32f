//! Open directories.
//!
//! A listing shows the directory as it was when reading began: `readdir` at
//! offset 0 takes all entries into the handle, later calls go on in that list
//! by index. However the directory changes meanwhile, no entry that stays is
//! skipped or shown twice; and a rewind takes a new list.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::convert::Refusal;

/// One entry of a listing, `.` and `..` included.
#[derive(Debug)]
pub struct Listed {
    pub node: u64,
    /// Its type, as the upper bits of a mode.
    pub mode: u32,
    pub name: Box<[u8]>,
}

pub type Listing = Arc<Vec<Listed>>;

/// The open directories, by file handle.
#[derive(Default)]
pub struct OpenDirectories {
    last: AtomicU64,
    listings: Mutex<HashMap<u64, Option<Listing>>>,
}

impl OpenDirectories {
    /// Makes a handle, without a listing yet.
    pub fn open(&self) -> u64 {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.listings.lock().insert(handle, None);
        handle
    }

    pub fn close(&self, handle: u64) {
        self.listings.lock().remove(&handle);
    }

    /// The handle's listing, taken by `list` if it has none or if `fresh`.
    pub fn listing(
        &self,
        handle: u64,
        fresh: bool,
        list: impl FnOnce() -> Result<Vec<Listed>, Refusal>,
    ) -> Result<Listing, Refusal> {
        let held = self.listings.lock().get(&handle).cloned().flatten();
        if let (Some(listing), false) = (held, fresh) {
            return Ok(listing);
        }
        // Not under the lock: a large directory takes a while.
        let listing = Arc::new(list()?);
        if let Some(slot) = self.listings.lock().get_mut(&handle) {
            *slot = Some(listing.clone());
        }
        Ok(listing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(n: u64) -> Vec<Listed> {
        (0..n).map(|node| Listed { node, mode: libc::S_IFREG, name: Box::from(*b"x") }).collect()
    }

    #[test]
    fn a_listing_stays_until_rewound() {
        let open = OpenDirectories::default();
        let handle = open.open();
        let count = |fresh, n| open.listing(handle, fresh, || Ok(entries(n))).map(|l| l.len()).unwrap();
        assert_eq!(count(true, 3), 3);
        assert_eq!(count(false, 9), 3);
        assert_eq!(count(true, 9), 9);
        open.close(handle);
        assert!(open.listings.lock().is_empty());
    }
}
