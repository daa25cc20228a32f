//! Host space that no slot of a delta file needs goes back to the host: the end
//! of the file is cut off, and runs of free slots are punched.
//!
//! What lets a slot be punched is that it is free: nobody reads it, no dirty page
//! waits for it, and no durable record refers to it. Its neighbours go on being
//! read and written meanwhile, and the lock on the slots is not held while the
//! host works: the slots that are *going* cannot be taken.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::Delta;
use super::space::{Give, Keep};
use crate::block::BLOCK_BYTES;
use crate::error::Result;

/// The most slots given back in one step: 64 MiB, so that nobody who writes to
/// the file waits long for the host.
const STEP_SLOTS: u32 = 8192;

impl Delta {
    /// Gives back what is more than `keep`, in steps. `go_on` hears after each
    /// how many bytes it was, and ends it. Holes are made of runs of at least
    /// `min_bytes`. Whether all of it was given back.
    pub fn give_back(&self, keep: Keep, min_bytes: u64, go_on: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
        let mut left = {
            let mut space = self.space();
            if !space.backing().is_measured() {
                let Some(file) = self.existing()? else { return Ok(true) };
                self.measure(&mut space, &*file)?;
            }
            space.surplus(keep)
        };
        if left == 0 {
            return Ok(true);
        }
        let Some(file) = self.existing()? else { return Ok(true) };
        let measure = || file.allocated().map_err(|e| self.error("measuring", e));
        let min = u32::try_from(min_bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX).max(1);
        let mut below = u32::MAX;
        while left > 0 && !self.removed.load(Ordering::SeqCst) {
            let turn = self.reclaim.lock();
            let before = measure()?;
            let (give, slots) = {
                let min = self.room.can_punch.load(Ordering::Relaxed).then_some(min);
                let most = u32::try_from(left).unwrap_or(u32::MAX).min(STEP_SLOTS);
                self.space().give(&mut below, min, most)?
            };
            let done = match &give {
                Give::Done => break,
                Give::Look => Ok(()),
                Give::Punch(slots) => self.host_gives(slots, |start, len| file.punch(start, len)),
                Give::Cut(slots) => self.host_gives(slots, |start, _| file.truncate(start)),
            };
            self.space().given(&give, done.is_ok());
            self.end_stays.notify_all();
            match done {
                Ok(()) => left = left.saturating_sub(slots),
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    log::info!("the store's disk punches no holes: only whole files and their ends go back");
                    self.room.can_punch.store(false, Ordering::Relaxed);
                }
                Err(e) => return Err(self.error("giving back space of", e)),
            }
            let bytes = before.saturating_sub(measure()?);
            self.room.given_back.fetch_add(bytes, Ordering::Relaxed);
            drop(turn);
            if !go_on(bytes) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn host_gives(
        &self,
        slots: &Range<u32>,
        how: impl FnOnce(u64, u64) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        // Who is writing may have begun when the slots were in use; who begins
        // from now on finds no page for them.
        drop(self.writer.lock());
        how(u64::from(slots.start) * BLOCK_BYTES, u64::from(slots.end - slots.start) * BLOCK_BYTES)
    }
}
