//! When may a slot be used again? Not while a read that began before the slot
//! was superseded may still look at it.
//!
//! A reader enters the current period before it looks the page up and leaves it
//! (drops it) after the last byte is read. Work that must wait is hung on the
//! current period, which then ends; it runs when the last reader of that period,
//! and of all earlier ones, has left.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

type Work = Box<dyn FnOnce() + Send>;

/// The current period.
pub struct Grace {
    current: Mutex<Arc<Period>>,
}

/// A stretch of time; held by those who read in it.
pub struct Period {
    /// Each period keeps its successor alive, so that a successor's work waits
    /// for the readers of all earlier ones too.
    next: OnceLock<Arc<Period>>,
    work: Mutex<Vec<Work>>,
}

impl Period {
    fn new() -> Arc<Self> {
        Arc::new(Period { next: OnceLock::new(), work: Mutex::new(Vec::new()) })
    }

    fn finish(&mut self) -> Option<Arc<Period>> {
        for work in self.work.get_mut().drain(..) {
            work();
        }
        self.next.take()
    }
}

impl Drop for Period {
    fn drop(&mut self) {
        // In a loop, not by recursion: a slow reader may have left a long chain.
        let mut next = self.finish();
        while let Some(period) = next {
            next = match Arc::try_unwrap(period) {
                Ok(mut last) => last.finish(),
                Err(_) => None,
            };
        }
    }
}

impl Grace {
    /// Begins the first period.
    pub fn new() -> Self {
        Grace { current: Mutex::new(Period::new()) }
    }

    /// Enters the current period; dropping the result leaves it.
    pub fn enter(&self) -> Arc<Period> {
        self.current.lock().clone()
    }

    /// Waits until all who are reading now have left. The caller must not be
    /// one of them.
    pub fn wait(&self) {
        let (left, all_left) = std::sync::mpsc::channel();
        self.after_readers(move || drop(left));
        // An error is what is waited for: the sender is gone.
        let _: Result<(), _> = all_left.recv();
    }

    /// Runs `work` when all who are reading now have left.
    pub fn after_readers(&self, work: impl FnOnce() + Send + 'static) {
        let next = Period::new();
        let mut current = self.current.lock();
        let last = std::mem::replace(&mut *current, next.clone());
        drop(current);
        last.work.lock().push(Box::new(work));
        // A period has one successor: only the thread that replaced it sets it.
        let _ = last.next.set(next);
    }
}

impl Default for Grace {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

    #[test]
    fn work_waits_for_all_earlier_readers() {
        let grace = Grace::new();
        let done = Arc::new(AtomicU32::new(0));
        let add = |n| {
            let done = done.clone();
            grace.after_readers(move || {
                done.fetch_add(n, SeqCst);
            })
        };
        add(1);
        assert_eq!(done.load(SeqCst), 1, "nobody reads");
        let first = grace.enter();
        add(10);
        let second = grace.enter();
        add(100);
        assert_eq!(done.load(SeqCst), 1);
        drop(second);
        assert_eq!(done.load(SeqCst), 1, "the first reader began before both");
        drop(first);
        assert_eq!(done.load(SeqCst), 111);
    }

    #[test]
    fn a_long_chain_does_not_exhaust_the_stack() {
        let grace = Grace::new();
        let reader = grace.enter();
        for _ in 0..1_000_000 {
            grace.after_readers(|| {});
        }
        drop(reader);
    }
}
