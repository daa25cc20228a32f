//! Reading ahead. The kernel asks for the next blocks of a file that somebody reads
//! in order while that somebody is still busy with the last ones, but not far enough
//! ahead for a disk; and the host, which would be, sees slots of a delta file, where
//! neighbours in the file may be far apart. So the places of what comes later are
//! handed to a thread that has the host read them, on a processor of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::store::{Background, Store};
use crate::map::schema::Slot;

/// More stretches than that nobody waits for: these are but hints.
const STRETCHES_MAX: usize = 1024;
/// How long the thread, which keeps the store from being dropped, waits at a time.
const PAUSE: Duration = Duration::from_secs(1);

/// Consecutive slots that will soon be read.
pub type Stretch = (Slot, usize);

/// What is to be read ahead.
#[derive(Default)]
pub struct Ahead {
    wanted: Mutex<VecDeque<Stretch>>,
    more: Condvar,
}

impl Ahead {
    /// Asks for some more; what there is no room for is left out.
    pub fn want(&self, stretches: Vec<Stretch>) {
        if stretches.is_empty() {
            return;
        }
        let mut wanted = self.wanted.lock();
        let room = STRETCHES_MAX - wanted.len();
        wanted.extend(stretches.into_iter().take(room));
        self.more.notify_one();
    }

    /// Takes a stretch, after waiting for one for a while.
    fn next(&self, background: &Background) -> Option<Stretch> {
        let mut wanted = self.wanted.lock();
        // Looked at under this lock: then `end` does not come in between.
        if wanted.is_empty() && !background.state.lock().stop {
            self.more.wait_for(&mut wanted, PAUSE);
        }
        wanted.pop_front()
    }

    /// Wakes the thread for the last time.
    pub fn end(&self) {
        let _wanted = self.wanted.lock();
        self.more.notify_all();
    }
}

impl Store {
    /// What the thread does, over and over.
    pub(super) fn read_ahead(background: &Arc<Background>, store: &Store) {
        if let Some((first, slots)) = store.core.ahead.next(background) {
            store.core.delta(first.delta()).read_ahead(first, slots);
        }
    }
}
