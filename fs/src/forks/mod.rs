//! Forks: their operations, and the store that holds them.

use std::time::Duration;

mod ahead;
mod branch;
mod check;
mod commit;
mod copy;
mod core;
mod diff;
#[cfg(feature = "rocks")]
mod directory;
mod fork;
mod gather;
mod gc;
mod info;
mod make;
mod merge;
mod names;
mod paths;
mod phases;
mod quota;
mod read;
mod reclaim;
mod rename;
mod rest;
mod snapshot;
mod sort;
mod store;
pub mod store_file;
mod tables;
mod write;

pub use branch::{Edit, ForkReport, ResetTo};
pub use diff::{FileChange, FileUsage, PageChanges, Side};
#[cfg(feature = "rocks")]
pub use directory::{check_closed, repair_closed};
pub use fork::Fork;
pub use info::{ForkEntry, ForkInfo, Space, Status};
pub use snapshot::SnapshotInfo;
pub use sort::Layout;
pub use store::{Parts, Store};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Unflushed data of one fork is kept below this many bytes, so that a
    /// commit or a fork has little to wait for.
    pub dirty_limit_bytes: u64,
    /// Unflushed data of all forks together is kept below about this many.
    pub dirty_total_bytes: u64,
    /// When the page tables of all forks take more memory than this, those that
    /// have not been used for longest are dropped.
    pub map_memory_bytes: u64,
    /// Bytes of the store's disk that forks leave free; less than
    /// [`crate::delta::account::RESERVE_BYTES`] counts as that much.
    pub keep_free_bytes: u64,
    /// A WAL segment gets its CRCs when nobody has written to it for that long.
    pub seal_after: Duration,
    /// A WAL segment whose blocks lie in so many host files is copied to one when
    /// it needs the next.
    pub scattered_max: usize,
    /// Whether layers are merged and files sorted in the background; if not,
    /// [`Store::collect_all`] and [`Store::sort_all`] do it.
    pub merge: bool,
    /// An ephemeral fork with that many changes that are not committed is committed
    /// in the background.
    pub ephemeral_pending_max: usize,
    /// A stretch of a file with fewer pages is not sorted.
    pub sort_pages_min: u32,
    /// Records of the block map that one step of merging moves, about.
    pub merge_step_records: usize,
    /// Free space in a fork's delta file goes back to the host when the fork has
    /// not used it for that long.
    pub give_back_after: Duration,
    /// Holes are made in delta files where that many bytes or more are free.
    pub punch_min_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            dirty_limit_bytes: 16 << 20,
            dirty_total_bytes: 256 << 20,
            map_memory_bytes: 1 << 30,
            keep_free_bytes: 0,
            seal_after: Duration::from_secs(10),
            scattered_max: 16,
            merge: true,
            // 128 MiB of pages, and some megabytes of memory.
            ephemeral_pending_max: 16 << 10,
            sort_pages_min: 32,
            merge_step_records: 1024,
            // Twice PostgreSQL's checkpoint_timeout: a server that writes the same
            // pages at every checkpoint needs the same slots again by then.
            give_back_after: Duration::from_secs(600),
            // A hole costs the host an entry in its tables, and who fills it a
            // call; 128 KiB is what a scan reads at a time.
            punch_min_bytes: 128 << 10,
        }
    }
}
