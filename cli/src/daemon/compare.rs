//! What the daemon tells of pages: how forks differ, and what is theirs alone.

use pgcowfs::block::BLOCK_BYTES;

use super::Daemon;
use crate::error::Result;
use crate::protocol::{FileChangeRow, FileUsageRow, Side};

impl Daemon {
    /// The files that differ between two sides.
    pub(super) fn diff(&self, a: &Side, b: &Side) -> Result<Vec<FileChangeRow>> {
        let side = |of: &Side| -> Result<pgcowfs::Side> {
            // A fork that is not whole yet is not there.
            self.info(&of.fork)?;
            Ok(pgcowfs::Side { fork: of.fork.clone(), label: of.label.clone() })
        };
        let changes = self.store.diff(&side(a)?, &side(b)?)?;
        let row = |change: pgcowfs::FileChange| FileChangeRow {
            path: change.path,
            before: change.before,
            after: change.after,
            added: change.pages.added,
            removed: change.pages.removed,
            changed: change.pages.changed,
            rewritten: change.pages.rewritten,
        };
        Ok(changes.into_iter().map(row).collect())
    }

    /// What each file of a fork takes.
    pub(super) fn usage(&self, fork: &str) -> Result<Vec<FileUsageRow>> {
        self.info(fork)?;
        let row = |file: pgcowfs::FileUsage| FileUsageRow {
            path: file.path,
            bytes: file.bytes,
            exclusive_bytes: file.exclusive_pages.saturating_mul(BLOCK_BYTES),
            shared_bytes: file.shared_pages.saturating_mul(BLOCK_BYTES),
            base_bytes: file.base_pages.saturating_mul(BLOCK_BYTES),
        };
        Ok(self.store.usage(fork)?.into_iter().map(row).collect())
    }
}
