//! Forks that come and go beside a load, and which of them must be there after a sudden end.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use super::{Clock, Load, Window};
use crate::common::process::run;
use crate::common::random::Random;
use crate::common::store::Store;

/// No more forks than this at a time.
const FORKS_MAX: usize = 6;

/// A fork that was asked for. Times are by the load's clock.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its name.
    pub name: String,
    /// What it may hold.
    pub window: Window,
    asked: u64,
    made: Option<u64>,
    /// The command ended with an error.
    pub failed: bool,
    removal_asked: Option<u64>,
    removed: Option<u64>,
}

/// Whether a fork must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was made, for certain.
    There,
    /// It was never asked for, or removed for certain.
    Absent,
    /// The end came while it was being made or removed.
    InDoubt,
}

impl Attempt {
    /// What must be so in a state of that moment.
    pub fn fate(&self, moment: u64) -> Fate {
        let by = |time: Option<u64>| time.is_some_and(|time| time <= moment);
        if self.asked > moment || by(self.removed) {
            Fate::Absent
        } else if by(self.made) && !by(self.removal_asked) {
            Fate::There
        } else {
            Fate::InDoubt
        }
    }
}

/// Makes forks of `main` and of forks, starts and stops some, and removes some, until told to stop.
pub struct Churn<'a> {
    /// Where.
    pub store: &'a Store,
    /// What goes on meanwhile.
    pub load: &'a Load,
    /// Tells the times.
    pub clock: Clock,
    /// Begins all names.
    pub prefix: String,
    /// Milliseconds between two commands, at most.
    pub pause_ms: u64,
}

impl Churn<'_> {
    /// Runs until `stop`; everything that was tried. A command that fails is an error of the end under test or of the
    /// program: the caller can tell.
    pub fn run(&self, mut random: Random, stop: &AtomicBool) -> Vec<Attempt> {
        let mut attempts: Vec<Attempt> = Vec::new();
        while !stop.load(SeqCst) {
            let there: Vec<usize> = (0..attempts.len())
                .filter(|i| attempts[*i].fate(u64::MAX) == Fate::There && !attempts[*i].failed)
                .collect();
            let one = random.pick(&there).copied();
            match (one, random.below(10)) {
                (Some(i), 0..3) => self.remove(&mut attempts[i]),
                (Some(i), _) if there.len() >= FORKS_MAX => self.remove(&mut attempts[i]),
                (Some(i), 3) => {
                    // Its server writes as well: recovery, then a shutdown or the sudden end.
                    let name = attempts[i].name.clone();
                    run(&mut self.store.command(["start", &name]));
                    if random.percent(50) && !stop.load(SeqCst) {
                        run(&mut self.store.command(["stop", &name]));
                    }
                }
                (Some(i), 4) => {
                    let (parent, window) = (attempts[i].name.clone(), attempts[i].window.clone());
                    let mut attempt = self.fork(&parent, attempts.len(), &mut random);
                    attempt.window = window;
                    attempts.push(attempt);
                }
                _ => {
                    let attempt = self.fork("main", attempts.len(), &mut random);
                    attempts.push(attempt);
                }
            }
            std::thread::sleep(Duration::from_millis(random.below(self.pause_ms)));
        }
        attempts
    }

    fn fork(&self, parent: &str, n: usize, random: &mut Random) -> Attempt {
        let name = format!("{}n{n}", self.prefix);
        let checkpoint = if random.percent(30) { "auto" } else { "never" };
        let asked = (self.clock)();
        let (done, window) = self
            .load
            .around(|| run(&mut self.store.command(["fork", parent, &name, "--checkpoint", checkpoint])));
        let made = done.ok().then(|| (self.clock)());
        let failed = made.is_none();
        Attempt { name, window, asked, made, failed, removal_asked: None, removed: None }
    }

    fn remove(&self, attempt: &mut Attempt) {
        attempt.removal_asked = Some((self.clock)());
        let done = run(&mut self.store.command(["rm", "--force", &attempt.name]));
        attempt.removed = done.ok().then(|| (self.clock)());
    }
}

/// Compares the forks that are there with those that must be, and must not be.
pub fn presence(attempts: &[Attempt], moment: u64, there: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for attempt in attempts {
        match (attempt.fate(moment), there.contains(&attempt.name)) {
            (Fate::There, false) => wrong.push(format!("fork {} was made and is gone", attempt.name)),
            (Fate::Absent, true) => {
                wrong.push(format!("fork {} is there: never asked for by then, or removed", attempt.name));
            }
            _ => {}
        }
    }
    for name in there.iter().filter(|name| *name != "main") {
        if !attempts.iter().any(|attempt| attempt.name == *name) {
            wrong.push(format!("fork {name} is there, and nobody made it"));
        }
    }
    wrong
}
