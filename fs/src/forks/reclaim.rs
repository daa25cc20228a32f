//! Space that no fork needs goes back to the host: what a removed fork had in
//! memory, and what is free in the delta files.
//!
//! A living fork keeps what it has used lately ([`Keep`]), so that one that is
//! busy does not punch and allocate in a circle. Of a delta file whose fork is
//! gone nothing is kept; and when a write finds no room on the host, all forks
//! have to do with little.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::block::BLOCK_BYTES;
use crate::delta::Delta;
use crate::delta::account::Need;
use crate::delta::space::Keep;
use crate::error::Result;
use crate::layer::State;
use crate::map::schema::Slot;

use super::core::Core;
use super::fork::{Fork, Head};
use super::store::{Background, Store};

/// Between two steps in the background others have the disk.
const PAUSE: Duration = Duration::from_millis(5);
/// How often the background looks whether there is something to do.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A write that finds no room makes that much of it, if others can spare it.
const ROOM_BYTES: u64 = 16 << 20;
/// Slots that are released together.
const RELEASE_SLOTS: usize = 4096;

impl Fork {
    /// Ends the fork's life. What it was is left for [`Core::forget`]: freeing the
    /// memory of a big fork takes its time.
    pub(super) fn end(&self) -> Head {
        let mut head = self.head.lock();
        self.removed.store(true, Ordering::SeqCst);
        let empty = Head::new(head.layer, head.parent, State::default(), State::default(), 0);
        std::mem::replace(&mut *head, empty)
    }
}

impl Core {
    /// Gives back the slots that only a removed fork had, and its memory.
    pub(super) fn forget(&self, mut head: Head) {
        let mut slots: Vec<Slot> = head.take_uncommitted_slots();
        for (_, orphan) in head.orphans.drain() {
            slots.extend(orphan.owned_slots());
        }
        for slots in slots.chunks(RELEASE_SLOTS) {
            self.release_after_readers(slots.to_vec());
        }
    }

    fn all_deltas(&self) -> Vec<Arc<Delta>> {
        self.deltas.read().values().cloned().collect()
    }

    /// There is no room on the host: takes what other forks keep for themselves.
    /// Whether there is some now.
    pub(super) fn make_room(&self) -> Result<bool> {
        for delta in self.all_deltas() {
            if self.delta_room.bytes(Need::New)? >= ROOM_BYTES {
                break;
            }
            let mut made = 0;
            let mut go_on = |bytes| {
                made += bytes;
                made < ROOM_BYTES
            };
            if let Err(e) = self.give_back(&delta, Keep::Little, &mut go_on) {
                // The one who writes is not to suffer from another's file.
                log::warn!("{e}");
            }
        }
        Ok(self.delta_room.bytes(Need::New)? >= BLOCK_BYTES)
    }

    fn give_back(&self, delta: &Delta, keep: Keep, go_on: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
        let keep = if delta.retired.load(Ordering::SeqCst) { Keep::Nothing } else { keep };
        delta.give_back(keep, self.options.punch_min_bytes, go_on)
    }
}

impl Store {
    /// Gives back what the forks keep without having used it since they were
    /// asked last; a busy fork keeps what it uses.
    pub fn reclaim_unused(&self) -> Result<bool> {
        self.reclaim(Keep::Used, &mut |_| true)
    }

    /// Gives back all host space that is free in the delta files. `go_on` hears
    /// after each step how many bytes it was, and ends it. Whether it came to its
    /// end.
    pub fn reclaim_all(&self, go_on: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
        self.reclaim(Keep::Nothing, go_on)
    }

    /// Lets the background give all free space back when nothing waits to be dropped
    /// or merged.
    pub fn collect_soon(&self) {
        self.background.state.lock().give_back = true;
        self.background.wake.notify_all();
    }

    fn reclaim(&self, keep: Keep, go_on: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
        for delta in self.core.all_deltas() {
            let mut go_on = |bytes| go_on(bytes) && !self.background.state.lock().stop;
            if !self.core.give_back(&delta, keep, &mut go_on)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes given back to the host since the store was opened.
    pub fn given_back(&self) -> u64 {
        self.core.delta_room.given_back.load(Ordering::Relaxed) + self.core.hosts.given_back()
    }

    /// A look of the collecting thread when nothing waits to be dropped.
    pub(super) fn give_back_in_background(&self, background: &Background) {
        let (all, unused) = {
            let mut work = background.state.lock();
            let now = Instant::now();
            let asked = *work.asked.get_or_insert(now);
            let unused = now.duration_since(asked) >= self.core.options.give_back_after;
            if unused {
                work.asked = Some(now);
            }
            (std::mem::take(&mut work.give_back), unused)
        };
        // Merging may have taken the last pages out of some.
        self.remove_empty_deltas();
        for delta in self.core.all_deltas() {
            let retired = delta.retired.load(Ordering::SeqCst);
            let keep = match (all, unused) {
                (true, _) => Keep::Nothing,
                _ if retired && delta.space().take_news() => Keep::Nothing,
                (_, true) if !retired => Keep::Used,
                _ => continue,
            };
            let mut go_on = |_| {
                let mut work = background.state.lock();
                background.wake.wait_for(&mut work, PAUSE);
                !work.stop && work.is_done()
            };
            match self.core.give_back(&delta, keep, &mut go_on) {
                Ok(true) => {}
                Ok(false) => {
                    background.state.lock().give_back |= all;
                    delta.space().ask_again();
                    return;
                }
                Err(e) => log::warn!("{e}"),
            }
        }
        let mut work = background.state.lock();
        if !work.stop && work.is_done() && !work.give_back {
            background.wake.wait_for(&mut work, LOOK_INTERVAL);
        }
    }
}
