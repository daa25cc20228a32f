//! One power supply for the devices and the map of a store in memory: a test
//! can stop the world at any point, take an image of all of it, or let an
//! operation fail.

use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock, RwLockWriteGuard};

/// Something that reaches a device or the map, and that a loss of power can
/// come right before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// Bytes are written to a file.
    Write,
    /// Space is reserved for a file.
    Allocate,
    /// A range of a file loses its space.
    Punch,
    /// A file is cut.
    Truncate,
    /// A file's bytes are made durable.
    Flush,
    /// A device's names are made durable.
    FlushNames,
    /// A file is removed.
    Remove,
    /// A batch is committed to the map.
    Commit,
}

/// Sees every point before it happens; an error makes it fail, without effect.
pub type Watcher = Box<dyn FnMut(Point) -> io::Result<()> + Send>;

/// Shared by everything that loses power together. Clones are the same one.
#[derive(Clone, Default)]
pub struct Power {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Held for reading by every change, so that an image is of one instant.
    changes: RwLock<()>,
    watcher: Mutex<Option<Watcher>>,
}

impl Power {
    /// Calls `watcher` before every point from now on, one at a time; `None`
    /// ends that.
    pub fn watch(&self, watcher: Option<Watcher>) {
        *self.shared.watcher.lock() = watcher;
    }

    /// Nothing changes while the guard lives.
    pub fn still(&self) -> RwLockWriteGuard<'_, ()> {
        self.shared.changes.write()
    }

    /// Does what `point` stands for, if the watcher lets it.
    pub(crate) fn change<T>(&self, point: Point, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if let Some(watcher) = self.shared.watcher.lock().as_mut() {
            watcher(point)?;
        }
        let _moving = self.shared.changes.read();
        change()
    }
}
