//! Keeps a WAL segment from being scattered.
//!
//! Each fork leaves a host file behind in which a segment has a few of its blocks,
//! and for their sake all of it stays. A segment that is being written for as long
//! as a thousand forks take would be a thousand host files of 16 MiB, and its
//! record as long. So one that lies in many is copied, when it needs the next.

use std::sync::Arc;

use crate::block::{BLOCK_BYTES, BLOCK_SIZE, BlockNo};
use crate::delta::account::Need;
use crate::error::Result;
use crate::ids::FileId;
use crate::inplace::{HostFile, chunk_blocks};

use super::fork::Fork;

/// Blocks copied at a time.
const COPY_BLOCKS: u32 = 64;

impl Fork {
    /// A new host file with a copy of the first `blocks` blocks of `block`'s
    /// chunk, durable: from then on the chunk lies in it alone. Nobody else writes
    /// to the file meanwhile. `None` if something cannot be read, which must not
    /// keep other blocks from being written.
    pub(super) fn gather(
        &self,
        file: FileId,
        block: BlockNo,
        blocks: u32,
        need: Need,
    ) -> Result<Option<Arc<HostFile>>> {
        let (host, delta) = (self.core.hosts.create()?, self.delta());
        let chunk = chunk_blocks(self.head()?.inode(file)?.class);
        let first = block / chunk * chunk;
        let mut bytes = Vec::new();
        let mut at = 0;
        while at < blocks {
            let now = (blocks - at).min(COPY_BLOCKS);
            let (start, len) = (u64::from(first + at) * BLOCK_BYTES, now as usize * BLOCK_SIZE);
            bytes.clear();
            if let Err(e) = self.read(file, start, len, &mut bytes) {
                let path = self.path_of(file);
                log::warn!("{path} of fork {:?} stays in many host files: {e}", self.name);
                return Ok(None);
            }
            // Beyond the file's end there are zeros.
            bytes.resize(len, 0);
            host.write(&bytes, u64::from(at) * BLOCK_BYTES, &delta, need)?;
            at += now;
        }
        // Before a record names it.
        host.flush()?;
        Ok(Some(host))
    }
}
