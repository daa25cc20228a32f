//! Threads for the requests that take long.
//!
//! A commit takes milliseconds. Served by the threads that read requests, a
//! handful of clients committing together would leave nobody to answer reads
//! and writes; so a sync is handed to a worker. The number of workers grows
//! with the syncs under way up to a bound, beyond which they queue, and idle
//! ones go away again. Jobs never wait for one another, so a full queue is
//! slow but cannot deadlock.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

type Job = Box<dyn FnOnce() + Send>;

/// How long a worker waits for its next job before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// A pool of threads.
pub struct Workers {
    limit: usize,
    state: Mutex<State>,
    /// A job has come, or the pool closes.
    work: Condvar,
    /// A worker has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Workers {
    /// A pool of at most `limit` threads; it starts with none.
    pub fn new(limit: usize) -> Arc<Workers> {
        Arc::new(Workers {
            limit: limit.max(1),
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
        })
    }

    /// Has `job` done by a worker; by the caller once the pool is closed, or
    /// if not a single thread can be had.
    pub fn run(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            return job();
        }
        state.queue.push_back(Box::new(job));
        if state.idle > 0 {
            self.work.notify_one();
        }
        // Idle workers count until they wake up, so jobs are set against them.
        if state.queue.len() > state.idle && state.threads < self.limit {
            state.threads += 1;
            drop(state);
            self.spawn();
        }
    }

    /// Starts a thread that `state.threads` counts already.
    fn spawn(self: &Arc<Self>) {
        let workers = self.clone();
        let made = thread::Builder::new()
            .name("pgcowfs-sync".into())
            .spawn(move || while workers.next().map(attempt).is_some() {});
        if let Err(e) = made {
            log::warn!("cannot start a worker thread: {e}");
            let mut state = self.state.lock();
            state.threads -= 1;
            self.ended.notify_all();
            // The others will come to the queue; without others it is ours.
            while state.threads == 0
                && let Some(job) = state.queue.pop_front()
            {
                MutexGuard::unlocked(&mut state, job);
            }
        }
    }

    /// Waits for a job. `None` ends the worker, whose count is given back
    /// under the same lock: a job that comes now finds one thread less.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let waited = self.work.wait_for(&mut state, IDLE);
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
        self.ended.notify_all();
        None
    }

    /// Finishes all jobs and ends all workers.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        self.work.notify_all();
        while state.threads > 0 {
            self.ended.wait(&mut state);
        }
    }
}

/// Does a job. The worker outlives a panic in it (which the panic hook has
/// reported): the jobs behind it must not wait for ever.
fn attempt(job: Job) {
    let _ = catch_unwind(AssertUnwindSafe(job));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn grows_to_its_limit_and_finishes_everything() {
        let workers = Workers::new(3);
        let (running, most, done) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..50 {
            let (running, most, done) = (running.clone(), most.clone(), done.clone());
            workers.run(move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(2));
                running.fetch_sub(1, Ordering::SeqCst);
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        workers.close();
        assert_eq!(done.load(Ordering::SeqCst), 50);
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn one_job_after_another_needs_one_thread() {
        let workers = Workers::new(8);
        let (send, receive) = mpsc::channel();
        let mut ids = std::collections::HashSet::new();
        for _ in 0..20 {
            let send = send.clone();
            workers.run(move || send.send(thread::current().id()).unwrap());
            ids.insert(receive.recv().unwrap());
            // Lets the worker get back to waiting.
            while workers.state.lock().idle == 0 {
                thread::yield_now();
            }
        }
        assert_eq!(ids.len(), 1);
        workers.close();
    }

    #[test]
    fn a_panic_does_not_stop_the_jobs_behind_it() {
        let workers = Workers::new(1);
        let (send, receive) = mpsc::channel();
        workers.run(|| panic!("expected by the test"));
        workers.run(move || send.send(()).unwrap());
        receive.recv().unwrap();
        workers.close();
    }

    #[test]
    fn after_closing_the_caller_does_the_work() {
        let workers = Workers::new(1);
        workers.close();
        let here = thread::current().id();
        let (send, receive) = mpsc::channel();
        workers.run(move || send.send(thread::current().id()).unwrap());
        assert_eq!(receive.recv().unwrap(), here);
    }
}
