//! Which processors have time to spare, and what follows for the threads that serve
//! requests there.
//!
//! When a request is answered, the kernel looks for a processor for the process that
//! waits. Its own is busy with the thread that answers; so it takes an idle one, and
//! waking that costs more than the request (docs/PERFORMANCE.md). A thread that runs
//! as `SCHED_IDLE` does not count as busy (sched(7); `sched_idle_cpu` in the kernel's
//! kernel/sched/fair.c): the process goes on where it was, at once.
//!
//! But a `SCHED_IDLE` thread waits for everybody who has something to do, and so would
//! whoever asks it for something. Whether that takes long is tried out: a *canary*, a
//! thread of the same class on the same processor, is woken all the time while there
//! are requests. While it comes promptly the threads there are `SCHED_IDLE`, and once
//! it does not they are like all others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};

use crate::error::Result;

/// How often canaries are woken while there are requests; so long may requests wait
/// for a processor that has just become busy.
const TICK: Duration = Duration::from_millis(20);
/// How often it is looked whether there are any.
const REST: Duration = Duration::from_millis(250);
/// How soon a canary has to come. A process that computes keeps its processor for at
/// least 3 ms.
const PROMPT: Duration = Duration::from_millis(2);
/// So many times in a row, for a change of class to be worth it.
const TIMES: u32 = 3;

/// The threads that serve the requests of one processor.
pub struct Processor {
    pub number: u16,
    pub threads: Vec<Pid>,
    /// Requests so far.
    pub served: Arc<AtomicU64>,
}

impl Processor {
    /// With no threads yet.
    pub fn new(number: u16) -> Processor {
        Processor { number, threads: Vec::new(), served: Arc::default() }
    }
}

/// A scheduling class.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Normal,
    Idle,
}

fn set_class(thread: Pid, class: Class) -> nix::Result<()> {
    let policy = match class {
        Class::Normal => libc::SCHED_OTHER,
        Class::Idle => libc::SCHED_IDLE,
    };
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads `param`, which outlives it, and no other memory.
    Errno::result(unsafe { libc::sched_setscheduler(thread.as_raw(), policy, &param) }).map(drop)
}

/// Has the calling thread run on one processor only.
pub fn stay_on(processor: u16) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(processor.into())?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Watches `processors` until all senders of `alive` are gone.
pub fn watch(processors: Vec<Processor>, alive: Receiver<()>) -> Result<()> {
    super::spawn("pgcowfs-spare", move || {
        // The way back needs root's rights, or a limit for RLIMIT_NICE.
        let own = gettid();
        if let Err(e) = set_class(own, Class::Idle).and_then(|()| set_class(own, Class::Normal)) {
            log::info!("requests are never served with time to spare only: sched_setscheduler: {e}");
            return;
        }
        let (answer, answers) = mpsc::channel();
        let watched = processors.into_iter().enumerate();
        let mut watched: Vec<_> =
            watched.filter_map(|(index, processor)| Watched::new(index, processor, &answer)).collect();
        let mut pause = REST;
        while let Err(RecvTimeoutError::Timeout) = alive.recv_timeout(pause) {
            let asked = Instant::now();
            let mut missing = watched.iter_mut().filter_map(|one| one.ask().then_some(())).count();
            pause = if missing > 0 { TICK } else { REST };
            while missing > 0
                && let Ok(index) = answers.recv_timeout(PROMPT.saturating_sub(asked.elapsed()))
            {
                // Some answers are to what was asked in an earlier turn.
                missing -= usize::from(watched[index].answered());
            }
            watched.iter_mut().for_each(Watched::conclude);
        }
    })
    .map(drop)
}

struct Watched {
    processor: Processor,
    canary: Sender<()>,
    class: Class,
    /// What `served` was when it was looked at last.
    served: u64,
    /// In this turn.
    asked: bool,
    /// The canary has been woken and has not come yet.
    expected: bool,
    prompt_times: u32,
}

impl Watched {
    /// With a canary, which answers with `index`; `None` if the processor cannot have one.
    fn new(index: usize, processor: Processor, answer: &Sender<usize>) -> Option<Watched> {
        let (canary, woken) = mpsc::channel();
        let (answer, number) = (answer.clone(), processor.number);
        let (tell, told) = mpsc::channel();
        let sing = move || {
            let ready = stay_on(number).and_then(|()| set_class(gettid(), Class::Idle));
            let _ = tell.send(ready);
            while woken.recv().is_ok() && answer.send(index).is_ok() {}
        };
        let started = super::spawn(&format!("pgcowfs-canary-{number}"), sing);
        let ready = started.map_err(|e| e.to_string()).and_then(|_| match told.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(e) => Err(e.to_string()),
        });
        if let Err(e) = ready {
            log::debug!("nobody watches processor {number}: {e}");
            return None;
        }
        Some(Watched::by(canary, processor))
    }

    /// With that canary, of which nothing is known yet.
    fn by(canary: Sender<()>, processor: Processor) -> Watched {
        let served = processor.served.load(Ordering::Relaxed);
        let class = Class::Normal;
        Watched { processor, canary, class, served, asked: false, expected: false, prompt_times: 0 }
    }

    /// Wakes the canary if there were requests; returns whether an answer is awaited.
    fn ask(&mut self) -> bool {
        let served = self.processor.served.load(Ordering::Relaxed);
        self.asked = served != self.served;
        self.served = served;
        if self.asked && !self.expected {
            self.expected = self.canary.send(()).is_ok();
        }
        self.asked && self.expected
    }

    /// Returns whether that was awaited in this turn.
    fn answered(&mut self) -> bool {
        self.expected = false;
        self.asked
    }

    fn conclude(&mut self) {
        // When requests cease the threads go back, for nobody looks at them any more.
        self.prompt_times = if self.asked && !self.expected { self.prompt_times + 1 } else { 0 };
        let class = if self.prompt_times >= TIMES { Class::Idle } else { Class::Normal };
        if class == self.class {
            return;
        }
        self.class = class;
        for &thread in &self.processor.threads {
            if let Err(e) = set_class(thread, class) {
                log::warn!("thread {thread} of processor {}: {e}", self.processor.number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One turn: with requests or without, and a canary that comes in time or does not.
    fn turn(one: &mut Watched, requests: bool, prompt: bool) -> Class {
        one.asked = requests;
        one.expected = requests && !prompt;
        one.conclude();
        one.class
    }

    #[test]
    fn threads_yield_only_while_canaries_are_prompt() {
        let (canary, _woken) = mpsc::channel();
        let mut one = Watched::by(canary, Processor::new(0));
        let mut turns = |turns: &[(bool, bool)]| -> Vec<bool> {
            turns.iter().map(|&(asked, prompt)| turn(&mut one, asked, prompt) == Class::Idle).collect()
        };
        let (quick, slow, none) = ((true, true), (true, false), (false, true));
        assert_eq!(turns(&[quick, quick, quick, quick]), [false, false, true, true]);
        assert_eq!(turns(&[slow, quick, quick, quick]), [false, false, false, true]);
        assert_eq!(turns(&[none, quick, none, quick]), [false; 4], "nobody asks: nobody looks either");
    }

    #[test]
    fn a_canary_is_asked_once_until_it_comes() {
        let (canary, woken) = mpsc::channel();
        let processor = Processor::new(0);
        let served = processor.served.clone();
        let mut one = Watched::by(canary, processor);
        assert!(!one.ask(), "there were no requests");
        for _ in 0..2 {
            served.fetch_add(1, Ordering::Relaxed);
            assert!(one.ask());
        }
        assert_eq!(woken.try_iter().count(), 1);
        assert!(one.answered());
        served.fetch_add(1, Ordering::Relaxed);
        assert!(one.ask());
        assert_eq!(woken.try_iter().count(), 1);
    }
}
